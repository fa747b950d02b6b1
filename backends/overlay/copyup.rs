//! Copying up: a node of a lower layer gets a counterpart in the upper one before it is changed
//! (fs/overlayfs/copy_up.c).
//!
//! The counterpart is made complete where no one sees it, and one link or rename shows it. What is copied is owned and
//! may do what the lower one is and may, and nothing else. Of several who want the same node copied, one copies and the
//! others wait; nobody waits for the copying of another node's data.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::{
    Attr, Caller, CreateFlags, Errno, Error, FileKind, Identified, Layer, Make, Name, OpenFlags, Result,
    SetAttr, XattrFlags,
};

use crate::Overlay;
use crate::attributes::{self, XATTR_MAX, times};
use crate::data::{self, Open};
use crate::index;
use crate::lowers::LowerNode;
use crate::marks::Mark;
use crate::node::{Node, Place};
use crate::work::Changes;

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

/// A counterpart that no one sees yet.
struct Prepared<U: Layer> {
    node: Arc<U::Node>,
    /// Its name in the work directory; without one, it is linked.
    temp: Option<Name>,
    /// Keeps a file without a name alive until it has one.
    file: Option<U::File>,
    /// What it says of the lower file it is a copy of.
    origin: Option<Vec<u8>>,
    /// It is to be found by all names of the lower file.
    indexed: bool,
    /// How many names the lower file has.
    lower_links: u32,
    metacopy: bool,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The counterpart of `node` in the upper layer, made if there is none.
    ///
    /// # Errors
    /// `EROFS` without an upper layer, and whatever keeps the copy from being
    /// complete. Nothing has changed then.
    pub(crate) fn copy_up(&self, node: &Arc<Node<L, U>>, need: Need) -> Result<Arc<U::Node>> {
        let upper = self.changes()?;
        if let Some(counterpart) = self.copied(node, need) {
            return Ok(counterpart);
        }
        for above in Self::lower_ancestors(node).into_iter().rev() {
            self.copy_up_one(upper, &above, Need::Attributes)?;
        }
        self.copy_up_one(upper, node, need)
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

    fn copy_up_one(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, need: Need) -> Result<Arc<U::Node>> {
        let _copying = node.copying.lock();
        if let Some(counterpart) = self.copied(node, need) {
            return Ok(counterpart);
        }
        if let Some(counterpart) = node.upper() {
            self.copy_up_data(upper, node, counterpart)?;
            return Ok(counterpart.clone());
        }
        let prepared = self.prepare(upper, node, need)?;
        self.publish(upper, node, prepared)
    }

    fn copied(&self, node: &Arc<Node<L, U>>, need: Need) -> Option<Arc<U::Node>> {
        let enough = need == Need::Attributes || !node.metacopy.load(Ordering::Acquire);
        node.upper().filter(|_| enough).cloned()
    }

    /// Makes the counterpart, complete in everything but its name.
    fn prepare(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, need: Need) -> Result<Prepared<U>> {
        let lower = Self::topmost(node)?;
        let layer = &self.lowers[lower.layer()].layer;
        let attr = layer.getattr(&lower.node, None)?;
        let mut prepared = self.prepare_bare(upper, node, &attr)?;
        let finished = self.finish_prepared(upper, node, &attr, need, &mut prepared);
        if let (Err(_), Some(temp)) = (&finished, &prepared.temp) {
            upper.discard(&upper.work, temp);
        }
        finished.map(|()| prepared)
    }

    fn prepare_bare(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>, attr: &Attr) -> Result<Prepared<U>> {
        let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
        let made = |node, temp, file| Prepared {
            node,
            temp,
            file,
            origin: None,
            indexed: false,
            lower_links: 1,
            metacopy: false,
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
        need: Need,
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
        self.config.copy_owner_and_xattrs((layer, &lower.node), to, attr)?;
        self.copy_flags(upper, node, attr, (&prepared.node, prepared.file.as_ref()))?;
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
        // A user may set nothing on a file of mode 0444 but its mode and times.
        attributes::set_mode_and_times(to, attr)?;
        match &prepared.file {
            Some(file) => self.durable(&upper.layer, file),
            None => Ok(()),
        }
    }

    /// Copies the first `len` of the `size` bytes of a lower file.
    fn copy_data(
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
    ) -> Result<Arc<U::Node>> {
        let shown = self.try_publish(upper, node, &prepared);
        if let (Err(_), Some(temp)) = (&shown, &prepared.temp) {
            upper.discard(&upper.work, temp);
        }
        shown?;
        Ok(prepared.node)
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
        // All of it, whatever is cut off then: the file has its full size already, and a hole where data is missing.
        self.copy_data(upper, node, &opened.file, attr.size, attr.size)?;
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
