//! Extended attributes, and the one that splicefs itself answers: the statistics of the mount.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use splicefs_core::{Backend, Caller, Errno, Error, FileKind, NodeId, Result, SetAttr, XattrFlags};

use super::iomode::{HowOpened, Opens};
use super::lost::LostWrites;
use super::{Shown, Vfs};
use crate::reply::{Counters, ReadStats};
use crate::transport::Opcode;

/// The attribute of the root that holds the statistics. No file system has attributes of this name: it has none of the
/// prefixes of xattr(7).
pub const STATS_XATTR: &CStr = c"splicefs.stats";

/// The attribute of the root to which mount options are written that shall change (`splicefs resize`).
pub const RECONFIGURE_XATTR: &CStr = c"splicefs.options";

/// The longest list of names there is, in bytes (include/uapi/linux/limits.h).
const XATTR_LIST_MAX: usize = 64 * 1024;

/// The largest value of an attribute, in bytes (include/uapi/linux/limits.h).
const XATTR_SIZE_MAX: usize = 64 * 1024;

/// The capabilities of a program (capabilities(7)), and the length of their value, in bytes (`XATTR_CAPS_SZ_2`).
const CAPABILITY: &CStr = c"security.capability";
const CAPABILITY_SIZE: usize = 20;

/// Whether the file has no such attribute, or its file system none at all.
fn lacks_attribute(e: &Error) -> bool {
    matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP)
}

/// Whether and why something that the host must allow is in use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facility {
    /// What was asked for: `auto`, `on` or `off`.
    pub mode: String,
    /// Whether it is in use.
    pub serving: bool,
    /// Why it is so.
    pub why: String,
}

/// What of all that is in use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facilities {
    /// Whether reads are spliced.
    pub splice: Facility,
    /// Whether the kernel serves files by itself.
    pub passthrough: Facility,
    /// Whether files are used without being opened.
    pub unopened: Facility,
    /// Whether the kernel writes files back later.
    pub writeback: Facility,
}

/// What a mount counts.
#[derive(Debug)]
pub struct Stats {
    facilities: Facilities,
    cache: Facility,
    reads: Arc<Counters>,
    opens: Opens,
    pub(super) lost: LostWrites,
    requests: Vec<AtomicU64>,
}

/// The statistics at one moment: what `splicefs stats --json` prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// Version of the daemon.
    pub version: String,
    /// The daemon's process, in its own pid namespace.
    pub pid: u32,
    /// What is in use of what the host must allow.
    #[serde(flatten)]
    pub facilities: Facilities,
    /// Whether what the kernel keeps outlasts a second, and why.
    pub cache: Facility,
    /// What was heard of others' changes, and what the kernel was told of them.
    pub changes: BTreeMap<String, u64>,
    /// Files opened, by how they are served.
    pub opens: BTreeMap<String, u64>,
    /// Requests to write back what write(2) had acknowledged that failed, by error.
    pub lost_writes: BTreeMap<String, u64>,
    /// What became of the bytes read.
    pub read: ReadStats,
    /// Number of requests, by operation.
    pub requests: BTreeMap<String, u64>,
    /// Nodes the kernel knows.
    pub nodes: usize,
    /// Open files.
    pub files: usize,
}

/// Where ACLs are negotiated, a file system without them has none on any file: told anything else, the kernel fails the permission check
/// that it wants the ACL for (`fuse_get_acl` in fs/fuse/acl.c).
fn no_acl(name: &CStr, e: Error) -> Error {
    let is_acl = matches!(name.to_bytes(), b"system.posix_acl_access" | b"system.posix_acl_default");
    if is_acl && e.errno() == Errno::EOPNOTSUPP { Errno::ENODATA.into() } else { e }
}

impl Stats {
    /// Statistics that count from nothing.
    pub fn new(facilities: Facilities, cache: Facility, reads: Arc<Counters>) -> Self {
        let requests = Opcode::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { facilities, cache, reads, opens: Opens::default(), lost: LostWrites::default(), requests }
    }
}

impl<B: Backend> Vfs<B> {
    /// Whether files are given to the kernel to serve.
    pub(super) fn gives_to_kernel(&self) -> bool {
        self.stats.facilities.passthrough.serving
    }

    /// Counts one file opened.
    pub(super) fn count_open(&self, how: HowOpened) {
        self.stats.opens.count(how);
    }

    /// Counts one request.
    pub fn count(&self, opcode: Opcode) {
        self.stats.requests[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The statistics now.
    pub fn report(&self) -> Report {
        let stats = &self.stats;
        let counts = Opcode::ALL.iter().zip(&stats.requests);
        Report {
            backend: B::NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            facilities: stats.facilities.clone(),
            cache: stats.cache.clone(),
            changes: self.told.snapshot(self.backend.listener().map_or(0, |listener| listener.watches())),
            opens: stats.opens.snapshot(),
            lost_writes: stats.lost.snapshot(),
            read: stats.reads.snapshot(),
            requests: counts.map(|(op, n)| (op.key().to_owned(), n.load(Ordering::Relaxed))).collect(),
            nodes: self.nodes.len(),
            files: self.files.len(),
        }
    }

    /// The statistics, if that is what is asked for; to anyone but root and the mounting user they do not exist.
    fn stats_value(&self, caller: &Caller, id: NodeId, name: &CStr) -> Result<Option<Vec<u8>>> {
        if id != NodeId::ROOT || name != STATS_XATTR {
            return Ok(None);
        }
        if !self.is_master(caller) {
            return Err(Errno::ENODATA.into());
        }
        Ok(Some(serde_json::to_vec(&self.report()).map_err(|_| Errno::EIO)?))
    }

    /// Whether the caller has power over the mount as such.
    fn is_master(&self, caller: &Caller) -> bool {
        caller.uid == 0 || caller.uid == self.access.owner
    }

    /// The value of an attribute, of at most `limit` bytes.
    pub fn getxattr(&self, caller: &Caller, id: NodeId, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        match self.stats_value(caller, id, name)? {
            Some(value) if value.len() > limit => Err(Errno::ERANGE.into()),
            Some(value) => Ok(value),
            None => {
                let value = self.backend.getxattr(&self.node(id)?, name, limit);
                value.map_err(|e| if self.access.acls { no_acl(name, e) } else { e })
            }
        }
    }

    /// The length of an attribute's value, without the value.
    ///
    /// Before it changes the contents of a file the kernel asks so for `security.capability`, to take it away
    /// (`cap_inode_need_killpriv` in security/commoncap.c). Where it opens nothing and writes back later, that is all we hear
    /// before write(2) is acknowledged: if the write may be refused, we say that there is a capability. The kernel then removes it
    /// ([`Vfs::removexattr`]) and sends a SETATTR of no attribute ([`Vfs::prepare_write`]; `__remove_privs` in fs/inode.c), whose error
    /// is what write(2) says.
    pub fn xattr_length(&self, caller: &Caller, id: NodeId, name: &CStr) -> Result<usize> {
        match self.getxattr(caller, id, name, XATTR_SIZE_MAX) {
            Err(e) if lacks_attribute(&e) && self.asks_before_writing(id, name) => Ok(CAPABILITY_SIZE),
            value => Ok(value?.len()),
        }
    }

    /// Whether a SETATTR that names no attribute comes before a write to a regular file. Otherwise it is a chown(2) to nobody, which of such a
    /// file comes with the time of the change where there is a writeback cache (`iattr_to_fattr` in fs/fuse/dir.c).
    pub fn asks_to_write(&self) -> bool {
        self.caching.writeback
    }

    /// The kernel asks before it writes to the file; its attributes, then.
    ///
    /// # Errors
    /// Those that writing would have to tell.
    pub fn prepare_write(&self, caller: &Caller, id: NodeId) -> Result<Shown> {
        let node = self.node(id)?;
        let kept = self.kept(&node);
        let mut attr = self.backend.getattr(&node, None)?;
        if attr.kind() != FileKind::Regular {
            attr = self.change_attributes(caller, &node, None, &SetAttr::default())?;
        } else if self.caching.unopened {
            // Where files are opened, that was done then.
            self.backend.prepare_write(&node)?;
            attr = self.backend.getattr(&node, None)?;
        }
        self.settle(id, caller);
        Ok(self.show(&node, attr, kept))
    }

    /// Whether this attribute is how the kernel is made to ask before it writes to the file.
    fn asks_before_writing(&self, id: NodeId, name: &CStr) -> bool {
        name == CAPABILITY
            && self.caching.unopened
            && self.caching.writeback
            && self.node(id).is_ok_and(|node| self.backend.may_refuse_writes(&node))
    }

    /// The names of the attributes. Those of the trusted class exist for root alone (xattr(7)).
    pub fn listxattr(&self, caller: &Caller, id: NodeId, limit: usize) -> Result<Vec<u8>> {
        let mut names = self.backend.listxattr(&self.node(id)?, XATTR_LIST_MAX)?;
        if caller.uid != 0 {
            let each = names.split_inclusive(|byte| *byte == 0);
            names = each.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect();
        }
        if names.len() > limit { Err(Errno::ERANGE.into()) } else { Ok(names) }
    }

    /// Sets an attribute; the one that changes mount options is the master's to set.
    pub fn setxattr(
        &self,
        caller: &Caller,
        id: NodeId,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        if id == NodeId::ROOT && name == RECONFIGURE_XATTR {
            if !self.is_master(caller) {
                return Err(Errno::EPERM.into());
            }
            let options = std::str::from_utf8(value).map_err(|_| Errno::EINVAL)?;
            return self.backend.reconfigure(options);
        }
        self.backend.setxattr(caller, &self.node(id)?, name, value, flags)
    }

    /// Removes an attribute. One that was only said to be there is gone at once ([`Vfs::xattr_length`]).
    pub fn removexattr(&self, id: NodeId, name: &CStr) -> Result<()> {
        match self.backend.removexattr(&self.node(id)?, name) {
            Err(e) if lacks_attribute(&e) && self.asks_before_writing(id, name) => Ok(()),
            removed => removed,
        }
    }
}
