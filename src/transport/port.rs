//! The descriptor that requests come from and replies go to.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno as Os, writev};
use splicefs_core::Errno;

use super::wire::{PollWakeupOut, flag};
use crate::reply::{HEADER, header};
use zerocopy::IntoBytes;

/// A `/dev/fuse` descriptor. A reply must go to the descriptor that read its request, so all threads share one.
#[derive(Debug)]
pub struct Port(OwnedFd);

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
        self.0.as_fd()
    }
}

impl Port {
    /// A port on `device`.
    pub fn new(device: OwnedFd) -> Self {
        Self(device)
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
            return match writev(&self.0, &[IoSlice::new(header), IoSlice::new(payload)]) {
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

    /// Wakes the waiter of poll(2) that the kernel gave the number `kernel_handle`.
    ///
    /// # Errors
    /// Those of write(2) on the device.
    pub fn wake(&self, kernel_handle: u64) -> std::io::Result<()> {
        let body = PollWakeupOut { kh: kernel_handle };
        // A notification is a reply to no request, with its code where the error would stand.
        let mut head = header(0, size_of::<PollWakeupOut>(), None);
        head[4..8].copy_from_slice(&flag::NOTIFY_POLL.to_ne_bytes());
        writev(&self.0, &[IoSlice::new(&head), IoSlice::new(body.as_bytes())])?;
        Ok(())
    }
}
