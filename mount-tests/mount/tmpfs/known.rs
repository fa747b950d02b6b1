//! Differences from the kernel's tmpfs that are explained: those that FUSE itself makes, where the kernel decides
//! before, or without, asking a daemon; and those of the passthrough backend, which the rehearsal goes through, and of the tmpfs backend.
//! Everything else is a failure.

use rustix::fs::{FallocateFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use super::op::{Op, Step, Whence, Who};
use super::run::{Answer, Side};
use super::watch::{Change, Changes};

/// Who makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Fuse,
    Passthrough,
    /// The tmpfs backend, by decision.
    Tmpfs,
}

/// A difference that is explained: by whom and why, and where.
struct Known<Applies> {
    by: By,
    #[allow(dead_code, reason = "for whoever reads the table")]
    reason: &'static str,
    applies: Applies,
}

type Answers = fn(&Step, &Answer, &Answer) -> bool;
type Times = fn(&Step, &Stat, &Changes, &Changes) -> bool;
/// The side is the native one, as it is before the step.
type Steps = fn(&Step, &Side) -> bool;

/// Answers that differ.
const ANSWERS: [Known<Answers>; 1] = [Known {
    by: By::Fuse,
    reason: "lseek(2) in a directory: fs/fuse/dir.c has generic_file_llseek, which knows the size and so SEEK_DATA, \
                 SEEK_HOLE and SEEK_END; tmpfs has offset_dir_llseek, which knows SEEK_SET and SEEK_CUR",
    applies: |step, native, mounted| {
        *native == Err(Errno::INVAL)
            && match step.op {
                Op::Seek { whence: Whence::Data | Whence::Hole | Whence::End, .. } => {
                    matches!(mounted, Ok(_) | Err(Errno::NXIO))
                }
                // The write after it fails.
                Op::Append { seek: true, .. } => *mounted == Err(Errno::BADF),
                _ => false,
            }
    },
}];

/// Times that differ in whether a step changed them.
const TIMES: [Known<Times>; 2] = [
    Known {
        by: By::Fuse,
        reason: "writing to a FIFO: fs/pipe.c calls file_update_time, which FUSE's inodes, S_NOCMTIME without writeback \
                 cache, ignore; no daemon hears of the write",
        applies: |step, node, native, mounted| {
            let unchanged = Changes { modified: Change::No, changed: Change::No };
            let fifo = FileType::from_raw_mode(node.st_mode) == FileType::Fifo;
            fifo && matches!(step.op, Op::Append { .. })
                && native.modified == Change::Yes
                && *mounted == unchanged
        },
    },
    Known {
        by: By::Passthrough,
        reason: "truncate(2) to the size that a file has changes no time on tmpfs while the file has no page \
                 (shmem_setattr), and ftruncate(2), which the daemon uses for both, does",
        applies: |step, _, native, mounted| {
            let changed = Changes { modified: Change::Yes, changed: Change::Yes };
            matches!(step.op, Op::Truncate(..)) && native.modified == Change::No && *mounted == changed
        },
    },
];

/// Steps that are left out, since the trees would go on to differ.
const STEPS: [Known<Steps>; 7] = [
    Known {
        by: By::Fuse,
        reason: "chown(2) of nothing takes setuid away, and is for the owner. fuse_setattr takes both the change of the \
                 mode and with it the check out, and a SETATTR of nothing is all that the daemon gets; it is the same \
                 that fallocate(2) by a stranger with a writable descriptor sends for file_remove_privs, so that the \
                 daemon must take setuid away",
        applies: |step, _| step.who != Who::Root && matches!(step.op, Op::Chown(_, None, None)),
    },
    Known {
        by: By::Fuse,
        reason: "fuse_file_fallocate takes setuid away before it asks the daemon, which then refuses the mode",
        applies: |step, _| {
            use FallocateFlags as F;
            let taken = [F::empty(), F::KEEP_SIZE, F::PUNCH_HOLE | F::KEEP_SIZE];
            step.who != Who::Root && matches!(step.op, Op::Fallocate { mode, .. } if !taken.contains(&mode))
        },
    },
    Known {
        by: By::Passthrough,
        reason: "the whiteout that a user's rename leaves belongs to the daemon: renameat2(2) makes it itself",
        applies: |step, _| {
            let whiteout =
                matches!(step.op, Op::Rename { flags, .. } if flags.contains(RenameFlags::WHITEOUT));
            whiteout && step.who != Who::Root
        },
    },
    Known {
        by: By::Tmpfs,
        reason: "a descriptor of O_PATH, of a FIFO or a device holds a removed file, and no daemon hears of it: what has \
                 neither a name nor an open file counts as free",
        applies: |step, native| {
            matches!(step.op, Op::Unlink(..) | Op::Rmdir(..) | Op::Rename { .. }) && native.holds_unseen()
        },
    },
    Known {
        by: By::Tmpfs,
        reason: "an open file without a name holds the directory in which it had its last one, in the kernel's dcache, and \
                 no daemon hears of that",
        applies: |step, native| {
            matches!(step.op, Op::Rmdir(..) | Op::Rename { .. }) && native.holds_nameless()
        },
    },
    Known {
        by: By::Tmpfs,
        reason: "copy_file_range(2) keeps holes; in the kernel's tmpfs, which has none of its own, it is a splice that \
                 fills the target with pages of zeros",
        applies: |step, native| {
            let Op::CopyRange { from, from_offset, length, .. } = step.op else { return false };
            native.has_hole(from, from_offset, length)
        },
    },
    Known {
        by: By::Tmpfs,
        reason: "to SEEK_DATA what fallocate(2) reserves is a hole, and data once it is reserved again: in the kernel's \
                 tmpfs only, where shmem_get_folio_gfp clears a page that it finds and so makes it data",
        applies: |step, native| {
            let Op::Fallocate { slot, mode, .. } = step.op else { return false };
            !mode.contains(FallocateFlags::PUNCH_HOLE) && native.has_reserved(slot)
        },
    },
];

/// The differences that count on one mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Explained {
    /// None: it is the kernel's too.
    Nothing,
    OfPassthrough,
    OfTmpfs,
}

impl Explained {
    fn counts(self, by: By) -> bool {
        match by {
            By::Fuse => self != Self::Nothing,
            By::Passthrough => self == Self::OfPassthrough,
            By::Tmpfs => self == Self::OfTmpfs,
        }
    }

    /// Whether it is explained that the kernel answered `native` and the mount `mounted`.
    pub(crate) fn answers(self, step: &Step, native: &Answer, mounted: &Answer) -> bool {
        ANSWERS.iter().any(|known| self.counts(known.by) && (known.applies)(step, native, mounted))
    }

    /// Whether it is explained that the times of `node` differ in whether the step changed them.
    pub(crate) fn times(self, step: &Step, node: &Stat, native: &Changes, mounted: &Changes) -> bool {
        TIMES.iter().any(|known| self.counts(known.by) && (known.applies)(step, node, native, mounted))
    }

    /// Whether the step is to be left out.
    pub(crate) fn leaves_out(self, step: &Step, native: &Side) -> bool {
        STEPS.iter().any(|known| self.counts(known.by) && (known.applies)(step, native))
    }
}
