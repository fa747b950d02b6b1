//! What a step did to the nodes that it names: their attributes, and which of their times it changed.
//!
//! The kernel's tmpfs has multigrain times: once somebody has looked at a time, the next change gives a later one,
//! within a tick of the clock as well. So looking before each step makes each change visible, and a daemon must take
//! its times from a fine clock to agree. One exception: linking and unlinking give the directory the time of the node
//! (`shmem_unlink` and its like), which need not be a new one for the directory, for as long as a tick.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::time::Duration;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::op::{Op, Step};
use super::run::{Side, View, describe};

type Instant = (i64, u64);

/// A node as one of its names shows it. The parent of a name is looked at too.
pub(crate) struct Seen {
    pub(crate) label: String,
    pub(crate) node: Result<Stat, Errno>,
}

impl Seen {
    pub(crate) fn text(&self, view: View) -> String {
        match &self.node {
            Ok(stat) => describe(stat, view),
            Err(errno) => format!("{errno:?}"),
        }
    }
}

/// Whether a time changed during a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Yes,
    No,
    /// The node was not seen before, or the kernel may have set a time to what it was.
    Unknown,
}

impl Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "changed",
            Self::No => "unchanged",
            Self::Unknown => "unknown",
        })
    }
}

impl Change {
    pub(crate) fn agrees(self, other: Self) -> bool {
        self == other || self == Self::Unknown || other == Self::Unknown
    }
}

/// Longer than a tick of the coarse clock.
pub(crate) const TICK: Duration = Duration::from_millis(11);

/// A moment that the times of what is made from now on are not before. File systems take theirs from the same coarse clock; how
/// far that is behind the fine one, nobody can say: where the processor that keeps the time is another guest's for a while,
/// by more than a tick.
pub(crate) fn now() -> Instant {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Looks at every name and descriptor of the step, as root.
pub(crate) fn look(side: &Side, step: &Step) -> Vec<Seen> {
    let mut seen = Vec::new();
    for at in step.op.paths() {
        let path = side.path(at);
        seen.push(Seen { label: format!("{at:?}"), node: rustix::fs::lstat(&path) });
        // A new link leads to a node that may be old, and was not looked at before.
        if !matches!(step.op, Op::Symlink(..)) {
            seen.push(Seen { label: format!("{at:?} followed"), node: rustix::fs::stat(&path) });
        }
        let parent = at.parent();
        seen.push(Seen { label: format!("{parent:?}"), node: rustix::fs::stat(side.path(&parent)) });
    }
    for slot in step.op.slots() {
        let node = side.slot(slot).and_then(rustix::fs::fstat);
        seen.push(Seen { label: format!("descriptor {slot}"), node });
    }
    seen
}

/// Modification and change of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Changes {
    pub(crate) modified: Change,
    pub(crate) changed: Change,
}

fn modified(stat: &Stat) -> Instant {
    (stat.st_mtime, stat.st_mtime_nsec)
}

fn changed(stat: &Stat) -> Instant {
    (stat.st_ctime, stat.st_ctime_nsec)
}

impl Changes {
    pub(crate) fn agree(&self, other: &Self) -> bool {
        self.modified.agrees(other.modified) && self.changed.agrees(other.changed)
    }
}

/// How a step treats times.
struct Manner {
    start: Instant,
    /// What it names is made by it.
    makes: bool,
    /// As [`lends_times`] says.
    lends: bool,
}

impl Manner {
    fn change(&self, before: Option<Instant>, after: Instant) -> Change {
        match before {
            Some(before) if before != after => Change::Yes,
            Some(_) if self.lends && after >= self.start => Change::Unknown,
            Some(_) => Change::No,
            None if self.makes && after >= self.start => Change::Yes,
            None if self.makes => Change::No,
            None => Change::Unknown,
        }
    }
}

/// Whether the kernel gives a directory the time of a node here (`shmem_unlink`, `shmem_link`).
pub(crate) fn lends_times(step: &Step) -> bool {
    matches!(
        step.op,
        Op::Link { .. } | Op::LinkOpen { .. } | Op::Unlink(_) | Op::Rmdir(_) | Op::Rename { .. }
    )
}

/// Which times of which nodes a step that began at `start` changed. Nodes are told apart by number, not by name.
/// One answer for each of `after`.
pub(crate) fn changes(
    before: &[Seen],
    after: &[Seen],
    start: Instant,
    step: &Step,
    view: View,
) -> Vec<Changes> {
    let old: BTreeMap<u64, &Stat> =
        before.iter().filter_map(|seen| seen.node.as_ref().ok()).map(|stat| (stat.st_ino, stat)).collect();
    let manner = Manner {
        start,
        // Or it fails; an open may lead elsewhere.
        makes: matches!(step.op, Op::Mkdir(..) | Op::Mknod(..) | Op::Symlink(..)),
        // A file that is copied up is a new one, whose time of change nobody had looked at.
        lends: lends_times(step) || view == View::Merged,
    };
    let of = |stat: &Stat| {
        let old = old.get(&stat.st_ino);
        // A directory above something that is copied up is copied up too, and is changed by that alone, if one looks.
        let above = view == View::Merged && FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Changes {
            modified: manner.change(old.map(|old| modified(old)), modified(stat)),
            changed: if above {
                Change::Unknown
            } else {
                manner.change(old.map(|old| changed(old)), changed(stat))
            },
        }
    };
    let nowhere = Changes { modified: Change::Unknown, changed: Change::Unknown };
    after.iter().map(|seen| seen.node.as_ref().map_or(nowhere, of)).collect()
}

/// In a merged tree a node keeps its number when it is copied up, renamed, or linked. An exception: files with several names
/// in a lower layer, which copying up parts where there is no index.
pub(crate) fn same_numbers(before: &[Seen], after: &[Seen], step: &Step) -> Result<(), String> {
    let find = |seen: &[Seen], label: &str| {
        seen.iter().find(|seen| seen.label == label).and_then(|seen| seen.node.as_ref().ok().copied())
    };
    let one_name =
        |stat: &Stat| stat.st_nlink == 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let mut pairs = Vec::new();
    match &step.op {
        Op::Rename { from, to, .. } => {
            // Where it did not take place, both are still there.
            if find(after, &format!("{from:?}")).is_none() {
                pairs.push((format!("{from:?}"), format!("{to:?}")));
            }
        }
        Op::Open { .. } | Op::Tmpfile { .. } | Op::Mknod(..) | Op::Mkdir(..) | Op::Symlink(..) => {}
        Op::Link { .. } | Op::LinkOpen { .. } | Op::Unlink(..) | Op::Rmdir(..) | Op::Close(_) => {}
        _ => pairs.extend(before.iter().map(|seen| (seen.label.clone(), seen.label.clone()))),
    }
    for (old, new) in pairs {
        let (Some(was), Some(is)) = (find(before, &old), find(after, &new)) else { continue };
        if was.st_ino != is.st_ino && one_name(&was) {
            return Err(format!("number {} of {old} became {} of {new}", was.st_ino, is.st_ino));
        }
    }
    Ok(())
}
