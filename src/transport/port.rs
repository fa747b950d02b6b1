//! The descriptor that requests come from and replies go to.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno as Os, writev};
use splicefs_core::sys::ioctl;
use splicefs_core::{Errno, Name, NodeId, Result};

use super::root::{ROOT_NAME, Root};
use super::wire::{InvalEntryOut, InvalInodeOut, PollWakeupOut, StoreOut, flag};
use crate::reply::{HEADER, header};
use crate::vfs::{BackingId, Kernel};
use zerocopy::IntoBytes;

/// A `/dev/fuse` descriptor. A reply must go to the descriptor that read its request, so all threads share one.
#[derive(Debug)]
pub struct Port {
    device: OwnedFd,
    pub(super) root: Root,
}

/// Whether a reply arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// The kernel has it.
    Taken,
    /// The kernel no longer waited for it: what it would have referred to must be taken back.
    Gone,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Port {
    /// A port on `device`.
    pub fn new(device: OwnedFd) -> Self {
        Self { device, root: Root::default() }
    }

    /// Whether the kernel reaches the root by its name from now on ([`super::ROOT_NAME`]).
    pub fn name_root(&self, named: bool) {
        self.root.set_named(named);
        // The kernel may have found it by then: it is to ask again.
        if !named
            && let Ok(name) = Name::new(ROOT_NAME.as_bytes())
            && let Err(e) = self.name_changed(NodeId::ROOT, &name)
        {
            log::warn!("the name {ROOT_NAME} may lead to the root: {e}");
        }
    }

    /// Answers `unique` with `payload`.
    pub(crate) fn reply(&self, unique: u64, payload: &[u8]) -> Sent {
        self.send(unique, &header(unique, payload.len(), None), payload)
    }

    /// Answers `unique` with an error.
    pub(crate) fn error(&self, unique: u64, errno: Errno) -> Sent {
        self.send(unique, &header(unique, 0, Some(errno)), &[])
    }

    fn send(&self, unique: u64, header: &[u8; HEADER], payload: &[u8]) -> Sent {
        loop {
            return match writev(&self.device, &[IoSlice::new(header), IoSlice::new(payload)]) {
                Ok(_) => Sent::Taken,
                Err(Os::INTR) => continue,
                Err(Os::NOENT) => Sent::Gone,
                Err(Os::NODEV | Os::NOTCONN | Os::CONNABORTED) => Sent::Gone,
                Err(e) => {
                    log::error!("reply {unique} of {} bytes was not taken: {e}", payload.len());
                    Sent::Gone
                }
            };
        }
    }

    /// Sends a notification: a reply to no request, with its code where the error would stand.
    fn notify(&self, code: i32, body: &[u8]) -> std::io::Result<()> {
        self.notify_of(code, body, &[])
    }

    /// The same about a name, which ends with a NUL, or with data.
    fn notify_of(&self, code: i32, body: &[u8], rest: &[u8]) -> std::io::Result<()> {
        let mut head = header(0, body.len() + rest.len(), None);
        head[4..8].copy_from_slice(&code.to_ne_bytes());
        match writev(&self.device, &[IoSlice::new(&head), IoSlice::new(body), IoSlice::new(rest)]) {
            // The kernel knows the node or the waiter no longer.
            Ok(_) | Err(Os::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The node's attributes are to be asked for again, and its pages from the offset on to be written back and dropped: a length of 0
    /// has no end.
    fn invalidate(&self, id: NodeId, off: i64) -> std::io::Result<()> {
        let out = InvalInodeOut { ino: self.root.id_of(id), off, len: 0 };
        self.notify(flag::NOTIFY_INVAL_INODE, out.as_bytes())
    }
}

impl Kernel for Port {
    fn wake(&self, waiter: u64) -> std::io::Result<()> {
        self.notify(flag::NOTIFY_POLL, PollWakeupOut { kh: waiter }.as_bytes())
    }

    fn attributes_changed(&self, id: NodeId) -> std::io::Result<()> {
        // A negative offset leaves the page cache alone, whose locks the request being served may hold.
        self.invalidate(id, -1)
    }

    fn node_changed(&self, id: NodeId) -> std::io::Result<()> {
        self.invalidate(id, 0)
    }

    fn write_back(&self, id: NodeId, offset: u64) -> std::io::Result<()> {
        self.invalidate(id, i64::try_from(offset).map_err(std::io::Error::other)?)
    }

    fn name_changed(&self, dir: NodeId, name: &Name) -> std::io::Result<()> {
        // Expired and not dropped: what is in use, a working directory even, stays what it is if it is found again.
        let namelen = u32::try_from(name.as_bytes().len()).unwrap_or(0);
        let out = InvalEntryOut { parent: self.root.id_of(dir), namelen, flags: flag::EXPIRE_ONLY };
        self.notify_of(flag::NOTIFY_INVAL_ENTRY, out.as_bytes(), name.as_c_str().to_bytes_with_nul())
    }

    fn contents(&self, id: NodeId, bytes: &[u8]) -> std::io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        let out = StoreOut { nodeid: self.root.id_of(id), offset: 0, size, padding: 0 };
        self.notify_of(flag::NOTIFY_STORE, out.as_bytes(), bytes)
    }

    fn all_names_changed(&self) -> std::io::Result<()> {
        self.notify(flag::NOTIFY_INC_EPOCH, &[])
    }

    fn open_backing(&self, file: BorrowedFd<'_>) -> Result<BackingId> {
        ioctl::open_backing(&self.device, file).map(BackingId)
    }

    fn close_backing(&self, id: BackingId) -> Result<()> {
        ioctl::close_backing(&self.device, id.0)
    }
}
