//! Copying up: a node of a lower layer gets a counterpart in the upper one before it is changed
//! (fs/overlayfs/copy_up.c).
//!
//! The counterpart is made complete where no one sees it, and one link or rename shows it. What is copied is owned and
//! may do what the lower one is and may, and nothing else. Of several who want the same node copied, one copies and the
//! others wait; nobody waits for the copying of another node's data.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::{
    Attr, Backend, Caller, CreateFlags, Errno, Error, FileKind, Identified, Layer, Make, Name, OpenFlags,
    Opened, Result, SetAttr, XattrFlags,
};

use crate::Overlay;
use crate::attributes::{self, XATTR_MAX, times};
use crate::data::{self, Open};
use crate::index;
use crate::lowers::LowerNode;
use crate::marks::Mark;
use crate::node::{Node, Place};
use crate::work::Changes;

/// A lower file that is changed this often while it is copied up is busy.
pub(crate) const VERSIONS: usize = 16;
/// Who loses the race for a directory that is being renamed this often is told so.
const ATTEMPTS: usize = 64;
/// An attribute that chown(2) and writing clear.
const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// What of a regular file is needed in the upper layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Its attributes; its data too, unless metacopy=on lets that wait.
    Attributes,
    /// Everything.
    All,
    /// Everything up to this length, to which it is about to be truncated.
    Upto(u64),
}

/// The copy is to be opened before anybody sees it: by whom, and how.
pub(crate) type OpenCopy<'a> = Option<(&'a Caller, OpenFlags)>;

/// The counterpart of a node; the open file, if it was to be opened and was made just now.
type Copied<U> = (Arc<<U as Backend>::Node>, Option<Opened<<U as Backend>::File>>);

/// A counterpart that no one sees yet.
struct Prepared<U: Layer> {
    node: Arc<U::Node>,
    /// Its name in the work directory; without one, it is linked.
    temp: Option<Name>,
    /// Keeps a file without a name alive until it has one.
    file: Option<U::File>,
    /// The file that was to be opened.
    opened: Option<Opened<U::File>>,
    /// What it says of the lower file it is a copy of.
    origin: Option<Vec<u8>>,
    /// It is to be found by all names of the lower file.
    indexed: bool,
    /// How many names the lower file has.
    lower_links: u32,
    metacopy: bool,
    /// It has the owner and the group of the lower file.
    has_owner: bool,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The counterpart of `node` in the upper layer, made if there is none.
    ///
    /// # Errors
    /// `EROFS` without an upper layer, and whatever keeps the copy from being
    /// complete. Nothing has changed then.
    pub(crate) fn copy_up(&self, node: &Arc<Node<L, U>>, need: Need) -> Result<Arc<U::Node>> {
        Ok(self.copy_up_and_open(node, need, None)?.0)
    }

    /// Copies a file up without its contents and opens it, in one step: where it cannot be opened it is not copied up. `None` where
    /// there is a counterpart already.
    ///
    /// # Errors
    /// As [`Overlay::copy_up`], and those of opening.
    pub(crate) fn copy_up_truncated(
        &self,
        caller: &Caller,
        node: &Arc<Node<L, U>>,
        flags: OpenFlags,
    ) -> Result<Option<Opened<U::File>>> {
        Ok(self.copy_up_and_open(node, Need::Upto(0), Some((caller, flags)))?.1)
    }

    fn copy_up_and_open(&self, node: &Arc<Node<L, U>>, need: Need, open: OpenCopy<'_>) -> Result<Copied<U>> {
        let upper = self.changes()?;
        if let Some(counterpart) = self.copied(node, need) {
            return Ok((counterpart, None));
        }
        for above in Self::lower_ancestors(node).into_iter().rev() {
            self.copy_up_one(upper, &above, Need::Attributes, None)?;
        }
        self.copy_up_one(upper, node, need, open)
    }

    /// The directories above a node that have no counterpart yet, the nearest first.
    fn lower_ancestors(node: &Arc<Node<L, U>>) -> Vec<Arc<Node<L, U>>> {
        let mut above = Vec::new();
        let mut place = node.place();
        while let Place::At(parent, _) = place {
            if parent.upper().is_some() {
                break;
            }
            place = parent.place();
            above.push(parent);
        }
        above
    }

    fn copy_up_one(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        need: Need,
        open: OpenCopy<'_>,
    ) -> Result<Copied<U>> {
        let _copying = node.copying.lock();
        if let Some(counterpart) = self.copied(node, need) {
            return Ok((counterpart, None));
        }
        if let Some(counterpart) = node.upper() {
            self.copy_up_data(upper, node, counterpart)?;
            return Ok((counterpart.clone(), None));
        }
        let prepared = self.prepare(upper, node, need, open)?;
        self.publish(upper, node, prepared)
    }

    fn copied(&self, node: &Arc<Node<L, U>>, need: Need) -> Option<Arc<U::Node>> {
        let enough = need == Need::Attributes || !node.metacopy.load(Ordering::Acquire);
        node.upper().filter(|_| enough).cloned()
    }

    /// Makes the counterpart, complete in everything but its name, and of one version of the lower file: if that was changed meanwhile,
    /// another one is made.
    ///
    /// # Errors
    /// `EBUSY` if it is being changed all the time.
    fn prepare(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        need: Need,
        open: OpenCopy<'_>,
    ) -> Result<Prepared<U>> {
        for _ in 0..VERSIONS {
            let version = self.lower_version(node)?;
            let mut prepared = self.prepare_bare(upper, node, &version.attr)?;
            let finished = self.finish_prepared(upper, node, &version.attr, (need, open), &mut prepared);
            let is_current = finished.is_ok() && self.is_current(node, &version)?;
            if is_current {
                return Ok(prepared);
            }
            if let Some(temp) = &prepared.temp {
                upper.discard(&upper.work, temp);
            }
            if let Err(e) = finished
                && self.is_current(node, &version)?
            {
                return Err(e);
            }
        }
        Err(Error::fault(Errno::EBUSY, "a lower file was changed again and again while it was copied up"))
    }

    fn prepare_bare(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, attr: &Attr) -> Result<Prepared<U>> {
        let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
        let made = |node, temp, file| Prepared {
            node,
            temp,
            file,
            opened: None,
            origin: None,
            indexed: false,
            lower_links: 1,
            metacopy: false,
            has_owner: true,
        };
        if node.kind == FileKind::Regular {
            match upper.layer.tmpfile(&Caller::DAEMON, &upper.work, 0o600, flags) {
                Ok((entry, opened)) => return Ok(made(entry.node, None, Some(opened.file))),
                Err(e) if matches!(e.errno(), Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EISDIR) => {}
                Err(e) => return Err(e),
            }
        }
        let temp = upper.temp()?;
        let target;
        let what = match node.kind {
            FileKind::Regular => {
                let flags = CreateFlags { exclusive: true, ..flags };
                let (entry, opened) =
                    upper.layer.create(&Caller::DAEMON, &upper.work, &temp, 0o600, flags)?;
                return Ok(made(entry.node, Some(temp), Some(opened.file)));
            }
            FileKind::Directory => Make::Directory(0o700),
            FileKind::Symlink => {
                target = self.readlink_lower(Self::topmost(node)?)?;
                Make::Symlink(&target)
            }
            _ => Make::Node(attr.mode & libc::S_IFMT | 0o600, attr.rdev),
        };
        let entry = upper.layer.make(&Caller::DAEMON, &upper.work, &temp, what)?;
        Ok(made(entry.node, Some(temp), None))
    }

    fn finish_prepared(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        attr: &Attr,
        (need, open): (Need, OpenCopy<'_>),
        prepared: &mut Prepared<U>,
    ) -> Result<()> {
        let lower = Self::topmost(node)?;
        let layer = &self.lowers[lower.layer()].layer;
        if let Some(file) = &prepared.file {
            prepared.metacopy = need == Need::Attributes && self.config.metacopy && attr.size > 0;
            let len = match need {
                Need::Upto(len) => len.min(attr.size),
                _ => attr.size,
            };
            if !prepared.metacopy {
                self.copy_data(upper, node, file, len, attr.size)?;
            }
            let size = SetAttr { size: Some(len), ..SetAttr::default() };
            upper.layer.setattr(&Caller::DAEMON, &prepared.node, Some(file), &size)?;
        }
        let to = (&upper.layer, &prepared.node, prepared.file.as_ref());
        let copy = self.config.copy_owner_and_xattrs((layer, &lower.node), to, attr)?;
        self.copy_flags(upper, node, attr, (&prepared.node, prepared.file.as_ref()))?;
        prepared.has_owner = copy.has_owner;
        prepared.indexed = self.indexed(lower, attr).is_some();
        // One of several names that becomes a file of its own is no copy of the others' file (c->origin in copy_up.c).
        if prepared.indexed || node.kind == FileKind::Directory || attr.nlink == 1 {
            prepared.origin = self.set_origin(upper, lower, &prepared.node)?;
        }
        if prepared.indexed && prepared.origin.is_none() {
            return Err(Errno::EPERM.into());
        }
        prepared.lower_links = attr.nlink;
        if prepared.metacopy {
            self.marks.set(&upper.layer, &prepared.node, Mark::Metacopy, b"")?;
        }
        if let Some((caller, flags)) = open {
            let flags = OpenFlags(flags.0 & !libc::O_TRUNC);
            prepared.opened = Some(upper.layer.open(caller, &prepared.node, flags)?);
        }
        // A user may set nothing on a file of mode 0444 but its mode and times.
        attributes::set_mode_and_times(to, &Attr { mode: copy.mode, ..*attr })?;
        if let Some((caller, _)) = open {
            // What truncating does besides: it sets the time, and clears setuid and setgid bits.
            let cut = SetAttr { size: Some(0), ..SetAttr::default() };
            upper.layer.setattr(caller, &prepared.node, prepared.file.as_ref(), &cut)?;
        }
        match &prepared.file {
            Some(file) => self.durable(&upper.layer, file),
            None => Ok(()),
        }
    }

    /// Copies the first `len` of the `size` bytes of a lower file.
    pub(crate) fn copy_data(
        &self,
        upper: &Changes<U>,
        node: &Node<L, U>,
        file: &U::File,
        len: u64,
        size: u64,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let lower = node.lowers().last().ok_or(Errno::ESTALE)?;
        let layer = &self.lowers[lower.layer()].layer;
        let opened = layer.open(&Caller::DAEMON, &lower.node, OpenFlags(libc::O_RDONLY))?;
        let from = Open { layer, file: &opened.file };
        data::copy(&from, &Open { layer: &upper.layer, file }, len, size)
    }

    /// Says in the copy which lower file it is of; what it says, if that could be said.
    fn set_origin(
        &self,
        upper: &Changes<U>,
        lower: &LowerNode<L>,
        to: &Arc<U::Node>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(value) = self.origin_of(lower)? else { return Ok(None) };
        match self.marks.set(&upper.layer, to, Mark::Origin, &value) {
            // Symbolic links and devices take no attributes of users, some file systems none at all.
            Err(e) if matches!(e.errno(), Errno::EOPNOTSUPP | Errno::EPERM) => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(Some(value)),
        }
    }

    /// Shows the counterpart where the node is now.
    fn publish(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        prepared: Prepared<U>,
    ) -> Result<Copied<U>> {
        let shown = self.try_publish(upper, node, &prepared);
        if let (Err(_), Some(temp)) = (&shown, &prepared.temp) {
            upper.discard(&upper.work, temp);
        }
        shown?;
        Ok((prepared.node, prepared.opened))
    }

    fn try_publish(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, prepared: &Prepared<U>) -> Result<()> {
        // Whoever comes upon the counterpart must find this node by it, and not make another.
        let id = prepared.node.id();
        self.nodes.announce(node, id);
        let shown = self.show(upper, node, prepared);
        if shown.is_err() {
            self.nodes.withdraw(node, id);
        }
        shown
    }

    fn show(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, prepared: &Prepared<U>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Place::At(parent, name) = node.place() else {
                // Removed meanwhile: whoever has it open goes on with a file without a name, unless it has others.
                if !self.put_in_index(upper, node, prepared)?
                    && let Some(temp) = &prepared.temp
                {
                    upper.remove(&upper.work, temp, node.kind)?;
                }
                return self.settled(upper, node, prepared, 1);
            };
            let dir = self.copy_up(&parent, Need::Attributes)?;
            let Some(state) = &parent.dir else { return Err(Errno::ENOTDIR.into()) };
            let _entries = state.entries.write();
            if !node.is_at(&parent, &name) {
                continue;
            }
            self.make_impure(&parent)?;
            let before = upper.layer.getattr(&dir, None)?;
            let in_index = self.put_in_index(upper, node, prepared)?;
            let named = match &prepared.temp {
                Some(temp) if !in_index => upper.show(temp, &dir, &name),
                _ => upper.layer.link(&prepared.node, &dir, &name).map(drop),
            };
            if let Err(e) = named {
                self.take_from_index(upper, prepared, in_index);
                return Err(e);
            }
            self.settled(upper, node, prepared, 2)?;
            if !prepared.indexed && prepared.lower_links > 1 {
                // It has a number of its own now.
                parent.names_changed();
            }
            // To its users the directory has not changed.
            if let Err(e) = upper.layer.setattr(&Caller::DAEMON, &dir, None, &times(&before)) {
                log::warn!("a directory's times are those of a copy-up in it: {e}");
            }
            return Ok(());
        }
        Err(Error::fault(Errno::EBUSY, "a file was renamed too often while it was copied up"))
    }

    /// The counterpart is where it belongs, with `own` names if it is in the index.
    fn settled(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        prepared: &Prepared<U>,
        own: u32,
    ) -> Result<()> {
        node.metacopy.store(prepared.metacopy, Ordering::Release);
        if prepared.indexed {
            let links = prepared.lower_links.saturating_sub(node.removed.load(Ordering::Acquire));
            node.set_links(links);
            if let Err(e) = self.set_links(upper, &prepared.node, links, own) {
                // What stands there says the same of the lower file's names.
                log::debug!("the number of names is not brought up to date: {e}");
            }
        } else if node.kind != FileKind::Directory && prepared.lower_links > 1 {
            node.set_ino(self.own_ino(upper.layer.getattr(&prepared.node, prepared.file.as_ref())?.ino));
        }
        node.set_upper(prepared.node.clone());
        if !prepared.has_owner {
            self.changed_owners.add(node.id);
        }
        Ok(())
    }

    /// Puts a file that has more than one name where it is found by each of them; whether it is one.
    fn put_in_index(&self, upper: &Changes<U>, node: &Node<L, U>, prepared: &Prepared<U>) -> Result<bool> {
        let removed = node.removed.load(Ordering::Acquire);
        let (Some(origin), Some(index)) = (&prepared.origin, &upper.index) else { return Ok(false) };
        if !prepared.indexed || prepared.lower_links <= removed {
            return Ok(false);
        }
        self.set_lower_links(upper, &prepared.node, removed)?;
        let name = index::name_of(origin)?;
        match &prepared.temp {
            Some(temp) => upper.show(temp, index, &name)?,
            None => upper.layer.link(&prepared.node, index, &name).map(drop)?,
        }
        Ok(true)
    }

    /// The name could not be given: the copy is not to be found by the others either.
    fn take_from_index(&self, upper: &Changes<U>, prepared: &Prepared<U>, in_index: bool) {
        let (true, Some(origin), Some(index)) = (in_index, &prepared.origin, &upper.index) else { return };
        if let Err(e) = index::name_of(origin).and_then(|name| upper.layer.unlink(index, &name)) {
            log::warn!("a copy stays in the index: {e}");
        }
    }

    /// Brings the data to a counterpart that has only attributes.
    fn copy_up_data(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        counterpart: &Arc<U::Node>,
    ) -> Result<()> {
        let attr = upper.layer.getattr(counterpart, None)?;
        let opened = upper.layer.open(&Caller::DAEMON, counterpart, OpenFlags(libc::O_RDWR))?;
        let capability = match upper.layer.getxattr(counterpart, CAPABILITY, XATTR_MAX) {
            Ok(value) => Some(value),
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => None,
            Err(e) => return Err(e),
        };
        self.copy_data_of_one_version(upper, node, &opened.file, attr.size)?;
        if let Some(value) = capability {
            let flags = XattrFlags { flags: 0, kill_sgid: false };
            upper.layer.setxattr(&Caller::DAEMON, counterpart, CAPABILITY, &value, flags)?;
        }
        upper.layer.setattr(&Caller::DAEMON, counterpart, Some(&opened.file), &times(&attr))?;
        self.durable(&upper.layer, &opened.file)?;
        self.marks.remove(&upper.layer, counterpart, Mark::Metacopy)?;
        node.metacopy.store(false, Ordering::Release);
        Ok(())
    }
}
