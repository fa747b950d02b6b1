//! A layer whose files' owners and modes are kept in an extended attribute (`xattr_permissions=`), compatible with
//! fuse-overlayfs.
//!
//! The files themselves belong to the daemon and are readable, so that it can serve them without privileges; what the
//! attribute says is what callers see, and what the kernel checks their permissions by. So nothing is done to the files
//! as the caller: the daemon acts as itself, and what the file system would do for a caller (ownership of what is made,
//! setuid and setgid bits that a change clears) is done to the record instead. A layer without records is passed through.
//!
//! Records are kept of regular files and directories: with `user.` attributes nothing else can have any. Links and special
//! files belong to whom they really belong to.

mod backend;
mod changes;
mod names;
mod record;

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use splicefs_core::sys::creds::has_special_bits;
use splicefs_core::{
    Attr, Caller, Errno, Error, FileKind, Identified, Layer, Result, SetAttr, XattrFlags, ownership,
};

use crate::Lower;
use crate::attributes::XATTR_MAX;
use changes::Changes;
use names::Store;
use record::{Record, Type};

/// Whose attribute records are kept in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Records {
    /// Root's: `security.fuseoverlayfs.override_stat` (`xattr_permissions=1`).
    Root,
    /// The user's: `user.containers.override_stat` (`xattr_permissions=2`), or `user.fuseoverlayfs.override_stat` where an
    /// earlier fuse-overlayfs has begun with that.
    User,
}

/// What files really are: readable to all, as with fuse-overlayfs, whose layers other users may share.
const REAL_FILE: u32 = 0o644;
const REAL_DIRECTORY: u32 = 0o755;
/// What they are until their record is written, so that a cut shows no one what was to be private.
const UNRECORDED_FILE: u32 = 0o600;
const UNRECORDED_DIRECTORY: u32 = 0o700;

const CAPABILITY: &CStr = c"security.capability";

/// A layer with or without records.
pub struct Recorded<B: Layer> {
    inner: B,
    store: Option<Store>,
    /// Other layers may have records, whose attributes none shows then.
    recorded: bool,
    /// Nobody else changes a record between reading and writing it.
    changes: Changes,
}

/// An open file, and the node whose record counts for it.
pub struct RecordedFile<B: Layer> {
    inner: B::File,
    node: Arc<B::Node>,
}

impl<B: Layer> Recorded<B> {
    fn with(inner: B, recorded: bool) -> Self {
        Self { inner, store: None, recorded, changes: Default::default() }
    }

    /// A lower layer. It has records if its root has one; with records of root's, those of users do not count, who could
    /// make files root's with them. `None` reads no records at all.
    ///
    /// # Errors
    /// Those of reading the root's attributes.
    pub fn lower(inner: B, records: Option<Records>) -> Result<Self> {
        let mut layer = Self::with(inner, records.is_some());
        layer.store = match records {
            None => None,
            Some(Records::Root) => layer.find_store(&[Store::Security])?,
            Some(Records::User) => layer.find_store(&Store::ALL)?,
        };
        Ok(layer)
    }

    /// An upper layer. Its root gets a record if it has none yet: that of the topmost of the layers `below` that has one, or
    /// what it is now.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has no such attributes, `EPERM` where the daemon may not set them; those of
    /// reading the roots.
    pub fn upper<L: Layer>(inner: B, records: Option<Records>, below: &[Lower<Recorded<L>>]) -> Result<Self> {
        let mut layer = Self::with(inner, records.is_some());
        let Some(records) = records else { return Ok(layer) };
        let (usual, known) = match records {
            Records::Root => (Store::Security, &[Store::Security][..]),
            Records::User => (Store::Containers, &[Store::Containers, Store::Old][..]),
        };
        let found = layer.find_store(known)?;
        layer.store = Some(found.unwrap_or(usual));
        if found.is_none() {
            let root = layer.inner.root();
            let shown = below.iter().map(|lower| lower.layer.root_record());
            let first = shown.filter_map(Result::transpose).next().transpose()?;
            let record = match first {
                Some(record) => record,
                None => Record::of(&layer.inner.getattr(&root, None)?),
            };
            layer.write(usual, &root, &record)?;
        }
        Ok(layer)
    }

    /// The first of the stores that the root has a record in.
    fn find_store(&self, among: &[Store]) -> Result<Option<Store>> {
        for &store in among {
            if self.read_text(store, &self.inner.root())?.is_some() {
                return Ok(Some(store));
            }
        }
        Ok(None)
    }

    fn root_record(&self) -> Result<Option<Record>> {
        let Some(store) = self.store else { return Ok(None) };
        let root = self.inner.root();
        self.read(store, &root, &self.inner.getattr(&root, None)?)
    }

    fn read_text(&self, store: Store, node: &Arc<B::Node>) -> Result<Option<Vec<u8>>> {
        match self.inner.getxattr(node, store.name(), record::MAX) {
            Ok(text) => Ok(Some(text)),
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The record of a node that really is as `real` says, if it has one.
    ///
    /// # Errors
    /// `EIO` for one that makes no sense: whoever it kept out must not come in.
    fn read(&self, store: Store, node: &Arc<B::Node>, real: &Attr) -> Result<Option<Record>> {
        let bad = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            Error::fault(
                Errno::EIO,
                format!("a bad {}: {text:?}, of inode {}", store.name().to_string_lossy(), real.ino),
            )
        };
        let text = match self.read_text(store, node) {
            Err(e) if e.errno() == Errno::ERANGE => return Err(bad(b"(too long)")),
            other => other?,
        };
        let Some(text) = text else { return Ok(None) };
        let record = Record::parse(&text).filter(|record| record.shown(real).is_some());
        record.map(Some).ok_or_else(|| bad(&text))
    }

    fn write(&self, store: Store, node: &Arc<B::Node>, record: &Record) -> Result<()> {
        let flags = XattrFlags { flags: 0, kill_sgid: false };
        self.inner.setxattr(&Caller::DAEMON, node, store.name(), record.encode().as_bytes(), flags)
    }

    /// The attributes that callers see of a node that really has these.
    fn shown(&self, node: &Arc<B::Node>, real: Attr) -> Result<Attr> {
        let Some(store) = self.store_for(&real) else { return Ok(real) };
        let record = self.read(store, node, &real)?;
        Ok(record.and_then(|record| record.shown(&real)).unwrap_or(real))
    }

    /// Where the record of a node is kept that really has these attributes.
    fn store_for(&self, real: &Attr) -> Option<Store> {
        self.store.filter(|_| matches!(real.kind(), FileKind::Regular | FileKind::Directory))
    }

    /// Changes the record of a node, which gets one if it has none.
    fn change_record(
        &self,
        store: Store,
        node: &Arc<B::Node>,
        change: impl FnOnce(&mut Record),
    ) -> Result<()> {
        let _changing = self.changes.begin(node.id());
        let real = self.inner.getattr(node, None)?;
        let known = self.read(store, node, &real)?;
        let mut record = known.unwrap_or_else(|| Record::of(&real));
        change(&mut record);
        if known == Some(record) {
            return Ok(());
        }
        let set_mode = |mode: u32| {
            let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
            self.inner.setattr(&Caller::DAEMON, node, None, &change).map(drop)
        };
        let (least, usual) = match real.kind() {
            FileKind::Directory => (UNRECORDED_DIRECTORY, REAL_DIRECTORY),
            _ => (UNRECORDED_FILE, REAL_FILE),
        };
        if known.is_none() && real.mode & least != least {
            // Only a file that its owner may write takes attributes of users.
            set_mode(real.mode & 0o7777 | least)?;
        }
        self.write(store, node, &record)?;
        if known.is_none() {
            set_mode(usual)?;
        }
        Ok(())
    }

    /// What a change of the contents by `caller` takes away: setuid and setgid bits, and capabilities, which a file system
    /// knows of only where they are under their own name.
    fn drop_privileges(&self, caller: &Caller, node: &Arc<B::Node>) -> Result<()> {
        let Some(store) = self.store else { return Ok(()) };
        if !caller.fsetid && has_special_bits(self.shown(node, self.inner.getattr(node, None)?)?.mode) {
            self.change_record(store, node, |record| {
                record.mode = ownership::without_setid(record.mode, record.gid, caller);
            })?;
        }
        if store == Store::Containers { self.drop_capabilities(node) } else { Ok(()) }
    }

    fn drop_capabilities(&self, node: &Arc<B::Node>) -> Result<()> {
        let Some(names::Meant::Kept(name)) = self.store.map(|store| store.meant(CAPABILITY)).transpose()?
        else {
            return Ok(());
        };
        // Not removed unseen: that would want a right that is not needed mostly.
        match self.inner.getxattr(node, &name, XATTR_MAX) {
            Ok(_) => self.inner.removexattr(node, &name),
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Changes attributes of what keeps its owner and mode itself. Where it cannot be given away it stays whose it is, as with
    /// fuse-overlayfs: programs that unpack archives would stop at the first link.
    fn set_real(&self, caller: &Caller, node: &Arc<B::Node>, change: &SetAttr) -> Result<Attr> {
        let owner = SetAttr { uid: change.uid, gid: change.gid, ..SetAttr::default() };
        let rest = SetAttr { uid: None, gid: None, ..*change };
        if owner != SetAttr::default() || *change == SetAttr::default() {
            match self.inner.setattr(caller, node, None, &owner) {
                Err(e) if matches!(e.errno(), Errno::EPERM | Errno::EINVAL) => {
                    log::debug!("a link or special file keeps its owner: {e}");
                }
                other => drop(other?),
            }
        }
        if rest != SetAttr::default() {
            self.inner.setattr(caller, node, None, &rest)?;
        }
        self.inner.getattr(node, None)
    }

    /// Changes the attributes of a node with a record. The size comes first: nothing else can be refused for want of room.
    fn set_recorded(
        &self,
        store: Store,
        caller: &Caller,
        (node, file): (&Arc<B::Node>, Option<&B::File>),
        change: &SetAttr,
    ) -> Result<Attr> {
        let set = |change: SetAttr| self.inner.setattr(&Caller::DAEMON, node, file, &change).map(drop);
        if change.size.is_some() {
            set(SetAttr { size: change.size, ..SetAttr::default() })?;
            self.drop_privileges(caller, node)?;
        }
        // A change of nothing is chown(2) with -1 twice, which clears setuid and setgid bits like any other.
        let owner = change.uid.is_some() || change.gid.is_some() || *change == SetAttr::default();
        if owner || change.mode.is_some() {
            let directory = self.inner.getattr(node, None)?.kind() == FileKind::Directory;
            // First what may be refused.
            if owner && !directory {
                self.drop_capabilities(node)?;
            }
            self.change_record(store, node, |record| {
                if owner && !directory {
                    record.mode = ownership::without_setid(record.mode, record.gid, caller);
                }
                record.uid = change.uid.unwrap_or(record.uid);
                record.gid = change.gid.unwrap_or(record.gid);
                record.mode = change.mode.map_or(record.mode, |mode| mode & 0o7777);
            })?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            set(SetAttr { atime: change.atime, mtime: change.mtime, ..SetAttr::default() })?;
        }
        self.shown(node, self.inner.getattr(node, file)?)
    }

    /// The record of what `caller` makes in a directory. Without ACLs the umask always counts.
    fn born(&self, caller: &Caller, parent: &Arc<B::Node>, mode: u32) -> Result<Record> {
        let parent = self.shown(parent, self.inner.getattr(parent, None)?)?;
        let (gid, mode) = ownership::inherited(parent.mode, parent.gid, caller, mode);
        Ok(Record { uid: caller.uid, gid, mode: mode & 0o7777 & !(caller.umask & 0o777), stands_for: None })
    }

    /// Whether a special file of that sort is kept as a regular file that stands for it, so that it has a record and
    /// needs no privilege. The device 0/0 is a whiteout, which the kernel must know.
    fn stand_in(store: Store, mode: u32, rdev: u32) -> Option<Type> {
        let kind = FileKind::from_mode(mode);
        let special =
            matches!(kind, FileKind::Fifo | FileKind::Socket | FileKind::BlockDevice | FileKind::CharDevice);
        let whiteout = kind == FileKind::CharDevice && rdev == 0;
        let has_number = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice);
        (store == Store::Containers && special && !whiteout)
            .then_some(Type { kind, rdev: if has_number { rdev } else { 0 } })
    }
}

impl<B: Layer> fmt::Debug for Recorded<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("store", &self.store).finish_non_exhaustive()
    }
}
