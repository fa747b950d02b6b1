//! The only writer of READ replies: executes a [`ReadPlan`] and reports what became of it.
//!
//! A plan is spliced where that is possible and worth it, else copied, with the same result. What fs/fuse/dev.c asks
//! for, and what follows from it:
//!
//! - One reply is one splice(2) into the device, header included, and the header must name the number of bytes the
//!   pipe holds. So the length is settled before, and a source that turns out shorter is read again by copy.
//! - The device takes buffers out of the pipe even when it then fails. So a spliced reply is never sent twice: the plan
//!   is executed again, by copy.
//! - A byte left in a pipe would be the next reader's. So a pipe that is not provably empty is closed.

mod copy;
mod counters;
mod pipe;
mod prefetch;
mod splice;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use splicefs_core::{CopyReason, Errno, ReadPlan};

pub use counters::{Counters, ReadStats};
pub use pipe::{ZeroSource, max_read_bytes, probe};

use crate::aligned::AlignedBuffer;
use pipe::Pipe;

/// Length of `struct fuse_out_header`, in bytes.
pub(crate) const HEADER: usize = 16;

/// What became of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The file's pages were handed over, and zero pages for its holes. In bytes.
    Spliced {
        /// Bytes of files and memory.
        data: usize,
        /// Bytes of holes.
        zeros: usize,
    },
    /// The bytes went through the daemon.
    Copied {
        /// Bytes of files and memory.
        data: usize,
        /// Bytes of holes.
        zeros: usize,
        /// Why they were not spliced.
        reason: CopyReason,
    },
    /// The end of the file: an empty reply.
    EndOfFile,
    /// The caller was told of an error.
    Failed(Errno),
    /// The kernel no longer waits for this reply.
    Gone,
}

/// How replies are to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Whether plans are spliced at all.
    pub splice: bool,
    /// Plans of fewer bytes are copied.
    pub splice_min: usize,
}

impl Policy {
    /// Why `plan` is to be copied; `None` if it is to be spliced.
    fn copy_reason(self, plan: &ReadPlan<'_>) -> Option<CopyReason> {
        if let Some(reason) = plan.must_copy() {
            Some(reason)
        } else if !self.splice {
            Some(CopyReason::SpliceOff)
        } else if plan.len() < self.splice_min {
            Some(CopyReason::Small)
        } else if plan.segments().iter().all(|s| matches!(s, splicefs_core::Segment::Bytes(_))) {
            Some(CopyReason::Memory)
        } else {
            None
        }
    }
}

/// Sends the replies to READ of one thread, with a pipe and a buffer of its own.
pub struct Engine {
    policy: Policy,
    zeros: Arc<ZeroSource>,
    pipe: Option<Pipe>,
    buffer: AlignedBuffer,
    counters: Arc<Counters>,
}

impl Engine {
    /// An engine for replies of up to `max_read` bytes.
    ///
    /// # Errors
    /// Where there is no memory for its buffer.
    pub fn new(
        policy: Policy,
        zeros: Arc<ZeroSource>,
        max_read: usize,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        Ok(Self { policy, zeros, pipe: None, buffer: AlignedBuffer::new(HEADER, max_read)?, counters })
    }

    /// Answers request `unique` on `device` with the bytes of `plan`, exactly once, and counts the outcome.
    pub fn send(&mut self, device: impl AsFd, unique: u64, plan: &ReadPlan<'_>) -> Outcome {
        let outcome = self.execute(device.as_fd(), unique, plan);
        self.counters.count(outcome);
        outcome
    }

    fn execute(&mut self, device: BorrowedFd<'_>, unique: u64, plan: &ReadPlan<'_>) -> Outcome {
        if plan.is_empty() {
            return copy::send_bytes(device, unique, &[]).map_or_else(|o| o, |()| Outcome::EndOfFile);
        }
        let reason = match self.policy.copy_reason(plan) {
            Some(reason) => reason,
            None => match self.splice(device, unique, plan) {
                Ok(outcome) => return outcome,
                Err(reason) => reason,
            },
        };
        copy::send(device, unique, plan, reason, self.buffer.bytes())
    }
}

/// The header of a reply (`struct fuse_out_header`): its whole length, the negative errno or 0, and the request's id.
pub(crate) fn header(unique: u64, payload: usize, error: Option<Errno>) -> [u8; HEADER] {
    // A reply is bounded by max_read and max_pages, far under 4 GiB.
    let len = u32::try_from(HEADER + payload).unwrap_or(u32::MAX);
    let error = error.map_or(0, |errno| -errno.raw());
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod oracle;
