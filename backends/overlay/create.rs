//! Creating and linking in the upper layer (fs/overlayfs/dir.c).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use splicefs_core::{
    Caller, CreateFlags, Entry, Errno, FileKind, Identified, Layer, Make, Name, Opened, Protection, Result,
    SetAttr, XattrFlags,
};

use crate::Overlay;
use crate::copyup::Need;
use crate::file::File;
use crate::lowers::Hides;
use crate::marks::{DOT_WHITEOUT, entry_of};
use crate::node::{Key, Node, Parts, Place};
use crate::work::Changes;

const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";
/// A default ACL is no longer than any attribute.
const ACL_MAX: usize = 64 * 1024;

/// A new file and its open file.
type Created<L, U> = (Entry<Node<L, U>>, Opened<File<L, U>>);

/// Refuses names that mean something else in a layer.
pub(crate) fn check_name(name: &Name) -> Result<()> {
    if name.as_bytes().starts_with(DOT_WHITEOUT) { Err(Errno::EPERM.into()) } else { Ok(()) }
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The upper counterpart of a directory whose names are about to change.
    pub(crate) fn upper_dir(&self, parent: &Arc<Node<L, U>>) -> Result<Arc<U::Node>> {
        if matches!(parent.place(), Place::Nowhere) {
            return Err(Errno::ENOENT.into());
        }
        self.copy_up(parent, Need::Attributes)
    }

    pub(crate) fn make_node(
        &self,
        caller: &Caller,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Entry<Node<L, U>>> {
        if matches!(what, Make::Node(mode, 0) if mode & libc::S_IFMT == libc::S_IFCHR) {
            // It would be a whiteout: gone as soon as it is made.
            return Err(Errno::EPERM.into());
        }
        let upper = self.changes()?;
        let caller = self.config.owners.creator(caller);
        let make = |dir: &Arc<U::Node>, name: &Name| upper.layer.make(&caller, dir, name, what);
        let is_dir = matches!(what, Make::Directory(_));
        let (entry, alone) = self.make_in(parent, name, is_dir, make, |entry| &entry.node)?;
        self.born(parent, name, entry, alone)
    }

    pub(crate) fn create_file(
        &self,
        caller: &Caller,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<Created<L, U>> {
        let upper = self.changes()?;
        let exclusive = CreateFlags { exclusive: true, ..flags };
        let caller = self.config.owners.creator(caller);
        let create =
            |dir: &Arc<U::Node>, name: &Name| upper.layer.create(&caller, dir, name, mode, exclusive);
        let ((entry, opened), alone) =
            match self.make_in(parent, name, false, create, |(entry, _)| &entry.node) {
                // Someone else made it since the kernel looked; it looks again.
                Err(e) if e.errno() == Errno::EEXIST && !flags.exclusive => return Err(Errno::ESTALE.into()),
                other => other?,
            };
        let entry = self.born(parent, name, entry, alone)?;
        let opened = File::upper(entry.node.clone(), flags.open, opened);
        Ok((entry, opened))
    }

    pub(crate) fn create_nameless(
        &self,
        caller: &Caller,
        parent: &Arc<Node<L, U>>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<Created<L, U>> {
        let upper = self.changes()?;
        self.check_adding(parent)?;
        let dir = self.upper_dir(parent)?;
        let (entry, opened) = upper.layer.tmpfile(&self.config.owners.creator(caller), &dir, mode, flags)?;
        let entry = self.born_at(Place::Nowhere, entry)?;
        let opened = File::upper(entry.node.clone(), flags.open, opened);
        Ok((entry, opened))
    }

    pub(crate) fn link_node(
        &self,
        node: &Arc<Node<L, U>>,
        parent: &Arc<Node<L, U>>,
        name: &Name,
    ) -> Result<Entry<Node<L, U>>> {
        let upper = self.changes()?;
        self.check_adding(parent)?;
        self.check_unprotected(node)?;
        let counterpart = self.copy_up(node, Need::Attributes)?;
        if node.metacopy.load(Ordering::Acquire) {
            // By its new name the data would not be found (`ovl_set_link_redirect`).
            self.set_redirect(upper, node, &counterpart, false)?;
        }
        self.upper_dir(parent)?;
        if self.comes_from_below(upper, node, &counterpart)? {
            self.make_impure(parent)?;
        }
        let link = |dir: &Arc<U::Node>, name: &Name| upper.layer.link(&counterpart, dir, name);
        self.make_in(parent, name, false, link, |entry| &entry.node)?;
        node.change_links(1);
        node.alone.store(false, Ordering::Release);
        if matches!(node.place(), Place::Nowhere) {
            node.set_place(Place::At(parent.clone(), name.clone()));
        }
        Ok(Entry { node: node.clone(), attr: self.attr(node)? })
    }

    /// Makes something in the upper counterpart of `parent`, over a whiteout if there is one; whether there was none. Then no
    /// lower layer shows anything under the name either, or the kernel would have found that.
    fn make_in<T>(
        &self,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        is_dir: bool,
        make: impl Fn(&Arc<U::Node>, &Name) -> Result<T>,
        node: impl Fn(&T) -> &Arc<U::Node>,
    ) -> Result<(T, bool)> {
        check_name(name)?;
        let upper = self.changes()?;
        self.check_adding(parent)?;
        let dir = self.upper_dir(parent)?;
        let Some(state) = &parent.dir else { return Err(Errno::ENOTDIR.into()) };
        let _entries = state.entries.write();
        if matches!(parent.place(), Place::Nowhere) {
            return Err(Errno::ENOENT.into());
        }
        let made = match make(&dir, name) {
            Err(e) if e.errno() == Errno::EEXIST => {
                (self.make_over_whiteout(upper, (&dir, state.hides()), name, is_dir, &make, &node)?, false)
            }
            Err(e) => return Err(e),
            Ok(made) => {
                // Not to be merged with what a lower layer may have under the name one day.
                if is_dir && !parent.lowers().is_empty() {
                    // Nothing is below, so it may as well stay as it is.
                    if let Err(e) = self.marks.set_opaque(&upper.layer, node(&made)) {
                        log::debug!("a new directory is not marked opaque: {e}");
                    }
                }
                // A name beside it may hide it from below.
                (made, !state.hides().has_dots())
            }
        };
        if let Err(e) = upper.unhide_dot(&dir, state.hides(), name) {
            // The entry counts, but for whoever removes it by hand.
            log::warn!("a whiteout stays beside {:?}: {e}", name.as_os_str());
        }
        parent.names_changed();
        Ok(made)
    }

    /// Prepares it in the work directory, and puts it in the whiteout's place in one step.
    fn make_over_whiteout<T>(
        &self,
        upper: &Changes<U>,
        (dir, hides): (&Arc<U::Node>, &Hides),
        name: &Name,
        is_dir: bool,
        make: &impl Fn(&Arc<U::Node>, &Name) -> Result<T>,
        node: &impl Fn(&T) -> &Arc<U::Node>,
    ) -> Result<T> {
        let there = entry_of(&upper.layer, dir, name)?.ok_or(Errno::ESTALE)?;
        if !self.marks.is_whiteout(&upper.layer, &there.node, &there.attr, hides.xattrs)? {
            return Err(Errno::EEXIST.into());
        }
        let stage = Stage::new(upper, dir)?;
        let temp = upper.temp()?;
        let made = make(&stage.dir, &temp)?;
        let put = || {
            if !is_dir {
                return upper.rename((&stage.dir, &temp), (dir, name), 0);
            }
            self.marks.set_opaque(&upper.layer, node(&made))?;
            upper.rename((&stage.dir, &temp), (dir, name), libc::RENAME_EXCHANGE)
        };
        let put = put();
        if is_dir || put.is_err() {
            upper.discard(&stage.dir, &temp);
        }
        upper.layer.release_whiteout();
        put.map(|()| made)
    }

    fn born(
        &self,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        entry: Entry<U::Node>,
        alone: bool,
    ) -> Result<Entry<Node<L, U>>> {
        let entry = self.born_at(Place::At(parent.clone(), name.clone()), entry)?;
        entry.node.alone.store(alone, Ordering::Release);
        Ok(entry)
    }

    /// The node for what was just made in the upper layer.
    fn born_at(&self, place: Place<L, U>, entry: Entry<U::Node>) -> Result<Entry<Node<L, U>>> {
        let kind = entry.attr.kind();
        let ino = self.own_ino(entry.attr.ino);
        let key = Key::Upper(entry.node.id());
        let hides = (kind == FileKind::Directory).then(Hides::none);
        let protection = Some(Protection::default());
        let parts = Parts { upper: Some(entry.node), protection, hides, ..Parts::new(kind, ino, place) };
        let node = self.nodes.intern(Some(key), parts);
        if let Some(state) = &node.dir {
            state.impure.get_or_init(|| AtomicBool::new(false));
        }
        let attr = self.shown(&node, entry.attr)?;
        Ok(Entry { node, attr })
    }
}

/// Where something is made that is to look as if it had been made in another directory: in the work directory, or where
/// the other gives what is made in it a group or an ACL, in a directory like it.
struct Stage<'a, U: Layer> {
    upper: &'a Changes<U>,
    dir: Arc<U::Node>,
    temp: Option<Name>,
}

impl<'a, U: Layer> Stage<'a, U> {
    fn new(upper: &'a Changes<U>, like: &Arc<U::Node>) -> Result<Self> {
        let attr = upper.layer.getattr(like, None)?;
        let acl = match upper.layer.getxattr(like, DEFAULT_ACL, ACL_MAX) {
            Ok(acl) => Some(acl),
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => None,
            Err(e) => return Err(e),
        };
        if acl.is_none() && attr.mode & libc::S_ISGID == 0 {
            return Ok(Self { upper, dir: upper.work.clone(), temp: None });
        }
        let temp = upper.temp()?;
        let dir = upper.layer.make(&Caller::DAEMON, &upper.work, &temp, Make::Directory(0o700))?.node;
        let stage = Self { upper, dir, temp: Some(temp) };
        let set = |change| upper.layer.setattr(&Caller::DAEMON, &stage.dir, None, &change).map(drop);
        set(SetAttr { uid: Some(attr.uid), gid: Some(attr.gid), ..SetAttr::default() })?;
        set(SetAttr { mode: Some(attr.mode & 0o7777), ..SetAttr::default() })?;
        if let Some(acl) = acl {
            let flags = XattrFlags { flags: 0, kill_sgid: false };
            upper.layer.setxattr(&Caller::DAEMON, &stage.dir, DEFAULT_ACL, &acl, flags)?;
        }
        Ok(stage)
    }
}

impl<U: Layer> Drop for Stage<'_, U> {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp {
            self.upper.discard(&self.upper.work, temp);
        }
    }
}
