//! Files so new that another could be taken for them.
//!
//! An inode number is used again as soon as its file is gone, and birth times are those of a coarse clock (`ktime_get_coarse_real_ts64`), so
//! that a file and the one that takes its number within one tick look the same: the kernel would let a caller do to the second what it has
//! checked of the first. A descriptor prevents it, since the number of a file that somebody holds open is not given out. It is held from the
//! look that tells the kernel of the file until the tick is over for certain. Nothing is done through it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};
use splicefs_core::sys::creds::Standing;
use splicefs_core::{Caller, Entry, Errno, Identified, Name, NodeId, Result, sys};

use crate::file::File;
use crate::node::Node;
use crate::stat::{self, Identity};
use crate::tree::{Tree, open_beneath, stale_if_gone};

/// Twice as long as the longest tick (CONFIG_HZ=100).
const RECENT_NS: u64 = 20_000_000;
const RECENT: Duration = Duration::from_nanos(RECENT_NS);
/// So many are held at once: more than are looked at within a tick.
const MOST_HELD: usize = 512;
/// Whoever loses the race for a name this often makes the kernel look again.
const ATTEMPTS: usize = 8;
const NS: u64 = 1_000_000_000;

impl Identity {
    /// Whether a file of this identity may have had the inode number in the same tick as one before. Not where there are no birth times: there
    /// that can be so at any time.
    fn is_recent(&self) -> bool {
        let Some((seconds, nanoseconds)) = self.born() else { return false };
        let now = clock_gettime(ClockId::Realtime);
        let now_ns = (now.tv_sec.cast_unsigned() & Self::SECONDS) * NS + now.tv_nsec.cast_unsigned();
        now_ns.abs_diff(seconds * NS + nanoseconds) < RECENT_NS
    }
}

/// Descriptors (`O_PATH`) of recent files, the oldest first, and when they were opened.
///
/// Lock order: a leaf, held over no system call: what is given up is closed after the lock.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<(NodeId, Instant, OwnedFd)>>);

impl Recent {
    fn has(&self, id: NodeId) -> bool {
        self.0.lock().iter().any(|(of, ..)| *of == id)
    }

    fn put(&self, id: NodeId, fd: OwnedFd) {
        let _closed_after_the_lock = {
            let mut held = self.0.lock();
            held.push_back((id, Instant::now(), fd));
            if held.len() > MOST_HELD { held.pop_front() } else { None }
        };
    }

    /// Gives up what need not be held any longer, and in any case what is held of `gone`.
    pub(crate) fn tidy(&self, gone: Option<NodeId>) {
        let mut given_up = Vec::new();
        let mut held = self.0.lock();
        if held.is_empty() {
            return;
        }
        while held.front().is_some_and(|(_, since, _)| since.elapsed() > RECENT) {
            given_up.extend(held.pop_front());
        }
        if let Some(at) = held.iter().position(|(of, ..)| Some(*of) == gone) {
            given_up.extend(held.remove(at));
        }
        drop(held);
    }
}

impl Tree {
    /// As [`Tree::lookup`], for a kernel that checks callers by what it is told.
    pub(crate) fn lookup_held(&self, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        for _ in 0..ATTEMPTS {
            let entry = self.lookup(parent, name)?;
            match self.hold(parent, name, entry) {
                Err(e) if e.errno() == Errno::ESTALE => {}
                held => return held,
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// Holds the node of `entry`, found under `name` in `parent`, open if it is recent. The attributes are those of what is held.
    pub(crate) fn hold(&self, parent: &Arc<Node>, name: &Name, entry: Entry<Node>) -> Result<Entry<Node>> {
        let (node, recent) = (entry.node, &self.nodes.recent);
        recent.tidy(None);
        if !node.identity().is_recent() || recent.has(node.id()) || node.descriptor_at_hand().is_some() {
            return Ok(Entry { node, ..entry });
        }
        let dir = self.descriptor(parent)?;
        let open = || open_beneath(dir.as_fd(), name, OFlags::PATH, Mode::empty());
        let fd = self.nodes.descriptors.with_room(open).map_err(stale_if_gone)?;
        let st = stat::of_fd(&fd)?;
        if !self.is(&node, &st) {
            return Err(Errno::ESTALE.into());
        }
        recent.put(node.id(), fd);
        Ok(Entry { attr: self.attr(&st), node })
    }

    /// Holds a file that `caller` has created and has open. The daemon's own user has no rights to gain by it.
    pub(crate) fn hold_created(&self, caller: &Caller, node: &Arc<Node>, file: &File) -> Result<()> {
        if caller.standing()? == Standing::Own {
            return Ok(());
        }
        self.nodes.recent.tidy(None);
        let fd = self.nodes.descriptors.with_room(|| sys::reopen(file.fd(), OFlags::PATH))?;
        self.nodes.recent.put(node.id(), fd);
        Ok(())
    }
}
