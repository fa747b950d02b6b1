//! Differences from the kernel's file systems that are explained: those that FUSE itself makes, where the kernel decides
//! before, or without, asking a daemon; those of the passthrough backend, which the rehearsal of tmpfs goes through; and
//! those of the tmpfs and the overlay backend.
//! Everything else is a failure.

use rustix::fs::{FallocateFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use super::op::{Object, Op, Step, Whence, Who};
use super::run::{Answer, Side};
use super::watch::{Change, Changes};

/// Who makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Fuse,
    /// The passthrough backend, and the overlay backend where it hands a file of a layer on.
    Passthrough,
    /// The tmpfs backend, by decision.
    Tmpfs,
    /// The kernel's overlayfs, which then does not agree with what other file systems do.
    KernelOverlay,
    /// The overlay backend, by decision.
    Overlay,
    /// Files that are used without being opened.
    Unopened,
    /// The kernel's writeback cache for FUSE.
    Writeback,
}

/// A difference that is explained: by whom and why, and where.
struct Known<Applies> {
    by: By,
    #[allow(dead_code, reason = "for whoever reads the table")]
    reason: &'static str,
    applies: Applies,
}

type Answers = fn(&Step, &Answer, &Answer) -> bool;
type Times = fn(&Step, &Answer, &Stat, &Changes, &Changes) -> bool;
/// The side is the native one, as it is before the step.
type Steps = fn(&Step, &Side) -> bool;

/// Answers that differ.
const ANSWERS: [Known<Answers>; 3] = [
    Known {
        by: By::Fuse,
        reason: "lseek(2) in a directory: fs/fuse/dir.c has generic_file_llseek, which knows the size and so SEEK_DATA, \
                 SEEK_HOLE and SEEK_END; tmpfs has offset_dir_llseek, which knows SEEK_SET and SEEK_CUR",
        applies: |step, native, mounted| {
            // ext4's directories end where their hashes do (ext4_dir_llseek).
            let hashed = matches!(step.op, Op::Seek { whence: Whence::End, .. })
                && matches!(native, Ok(end) if end == "9223372036854775807");
            hashed
                || *native == Err(Errno::INVAL)
                    && match step.op {
                        Op::Seek { whence: Whence::Data | Whence::Hole | Whence::End, .. } => {
                            matches!(mounted, Ok(_) | Err(Errno::NXIO))
                        }
                        // The write after it fails.
                        Op::Append { seek: true, .. } => *mounted == Err(Errno::BADF),
                        _ => false,
                    }
        },
    },
    Known {
        by: By::KernelOverlay,
        reason: "a list of attributes must fit together with the overlay's own, which are then left out (ovl_listxattr)",
        applies: |step, native, mounted| match (&step.op, native, mounted) {
            (Op::ListXattr { .. }, Err(errno), Ok(_)) => *errno == Errno::RANGE,
            // The size is that of all.
            (Op::ListXattr { room: 0, .. }, Ok(native), Ok(mounted)) => {
                let size = |text: &str| text.split(':').next().and_then(|size| size.parse::<usize>().ok());
                size(native) > size(mounted)
            }
            _ => false,
        },
    },
    Known {
        by: By::KernelOverlay,
        reason: "a merged directory is read by the kernel itself at times, which is an access: its time is then not the one that was \
                 set (`ovl_dir_read_merged`)",
        applies: |step, native, mounted| {
            let modified = |answer: &Answer| Some(answer.as_ref().ok()?.split_once(" mtime ")?.1.to_owned());
            matches!(step.op, Op::Utimens(..))
                && modified(native).is_some()
                && modified(native) == modified(mounted)
        },
    },
];

/// Times that differ in whether a step changed them.
const TIMES: [Known<Times>; 5] = [
    Known {
        by: By::Fuse,
        reason: "writing to a FIFO: fs/pipe.c calls file_update_time, which FUSE's inodes, S_NOCMTIME without writeback \
                 cache, ignore; no daemon hears of the write",
        applies: |step, _, node, native, mounted| {
            let unchanged = Changes { modified: Change::No, changed: Change::No };
            let fifo = FileType::from_raw_mode(node.st_mode) == FileType::Fifo;
            fifo && matches!(step.op, Op::Append { .. })
                && native.modified == Change::Yes
                && *mounted == unchanged
        },
    },
    Known {
        by: By::KernelOverlay,
        reason: "opening a metacopy for writing brings it its data by writing, which changes its times \
                 (ovl_copy_up_meta_inode_data); nobody has changed the file",
        applies: |step, _, _, native, mounted| {
            let opened = matches!(step.op, Op::Open { .. });
            opened && native.modified == Change::Yes && mounted.modified != Change::Yes
        },
    },
    Known {
        by: By::KernelOverlay,
        reason: "truncating an empty metacopy to nothing takes the mark off (ovl_copy_up_meta_inode_data), which is a change; \
                 an empty file of ours has none, as there is no data to be missing",
        applies: |step, _, node, native, mounted| {
            let truncated = matches!(step.op, Op::Truncate(_, 0) | Op::Ftruncate(_, 0)) && node.st_size == 0;
            truncated && native.modified.agrees(mounted.modified) && mounted.changed == Change::No
        },
    },
    Known {
        by: By::KernelOverlay,
        reason: "a rename that fails in the end has copied up what it was to move, and changed the time of the directory above",
        applies: |step, answer, node, native, mounted| {
            let directory = FileType::from_raw_mode(node.st_mode) == FileType::Directory;
            let failed = matches!(step.op, Op::Rename { .. }) && answer.is_err();
            failed && directory && native.modified == Change::Yes && mounted.modified == Change::No
        },
    },
    Known {
        by: By::Overlay,
        reason: "copying up makes a new file with a new time of change, which is not shown before the kernel asks again; \
                 what asked for the copy, an open or something that then failed, has not changed the file",
        applies: |step, answer, _, native, mounted| {
            let no_change = answer.is_err() || !step.op.changes_attributes();
            native.modified.agrees(mounted.modified) && (no_change || mounted.changed == Change::Yes)
        },
    },
];

/// Steps that are left out, since the trees would go on to differ.
const STEPS: [Known<Steps>; 14] = [
    Known {
        by: By::Passthrough,
        reason: "setuid and setgid bits that a file is given while the kernel writes it by itself go with the next write, root's \
                 too: it writes with rights that it was lent before, and those are without CAP_FSETID",
        applies: |step, native| matches!(&step.op, Op::Chmod(object, mode) if mode & 0o6000 != 0 && native.is_open(object)),
    },
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
    Known {
        by: By::KernelOverlay,
        reason: "a lower file that is removed while it is open cannot be copied up any more (EEXIST, or a directory listing \
                 that names a wrong type afterwards), and still tells one link",
        applies: |step, native| {
            !matches!(step.op, Op::Close(_))
                && step.op.slots().into_iter().any(|slot| native.was_removed_below(slot))
        },
    },
    Known {
        by: By::Overlay,
        reason: "setxattr(2) of what must, or must not, be there, or is of no class that can be set: the kernel copies up before it looks, and so parts a lower file \
                 that has several names where there is no index, for nothing",
        applies: |step, native| {
            let Op::SetXattr { object, name, flags, .. } = &step.op else { return false };
            let links = native.stat(object).map_or(0, |stat| stat.st_nlink);
            let class = ["user.", "trusted.", "security."].iter().find_map(|class| name.strip_prefix(class));
            (*flags != 0 || class.is_none_or(str::is_empty)) && links > 1
        },
    },
    Known {
        by: By::Writeback,
        reason: "fuse_file_fallocate sets its own times, which count, before it asks the daemon, which then refuses the mode",
        applies: |step, _| {
            use FallocateFlags as F;
            let taken = [F::empty(), F::KEEP_SIZE, F::PUNCH_HOLE | F::KEEP_SIZE];
            matches!(step.op, Op::Fallocate { mode, .. } if !taken.contains(&mode))
        },
    },
    Known {
        by: By::Writeback,
        reason: "a truncation to the size that a file has changes its times in the layers, and the kernel's, which count, not \
                 (fuse_do_setattr)",
        applies: |step, native| {
            let (object, length) = match &step.op {
                Op::Truncate(path, length) => (Object::Follow(path.clone()), *length),
                Op::Ftruncate(slot, length) => (Object::Open(*slot), *length),
                _ => return false,
            };
            native.stat(&object).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(length))
        },
    },
    Known {
        by: By::Unopened,
        reason: "an open for writing copies up later, with the directories above; to remove an ACL that is not there is an error below \
                 (ENODATA) and none above (simple_set_acl)",
        applies: |step, _| matches!(&step.op, Op::RemoveXattr { name, .. } if name.starts_with("system.posix_acl_")),
    },
    Known {
        by: By::Unopened,
        reason: "of an empty file, truncate(2) to nothing changes no time and open(2) with O_TRUNC does; FUSE sends the same \
                 SETATTR for both, which is taken for the second",
        applies: |step, native| {
            let Op::Truncate(path, 0) = &step.op else { return false };
            native.stat(&Object::Follow(path.clone())).is_ok_and(|stat| stat.st_size == 0)
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
    /// None but the kernel's own, for it is the kernel's overlayfs too.
    OfKernelOverlay,
    OfOverlay,
    /// With `open=zero`.
    OfUnopenedOverlay,
    /// With `writeback=on`.
    OfWrittenBackOverlay,
    /// With both.
    OfUnopenedWrittenBackOverlay,
}

impl Explained {
    fn is_of_our_overlay(self) -> bool {
        matches!(self, Self::OfOverlay) || self.counts(By::Unopened) || self.counts(By::Writeback)
    }

    fn counts(self, by: By) -> bool {
        match by {
            By::Fuse => !matches!(self, Self::Nothing | Self::OfKernelOverlay),
            By::Passthrough => self == Self::OfPassthrough || self.is_of_our_overlay(),
            By::Tmpfs => self == Self::OfTmpfs,
            By::KernelOverlay => self == Self::OfKernelOverlay || self.is_of_our_overlay(),
            By::Overlay => self.is_of_our_overlay(),
            By::Unopened => matches!(self, Self::OfUnopenedOverlay | Self::OfUnopenedWrittenBackOverlay),
            By::Writeback => matches!(self, Self::OfWrittenBackOverlay | Self::OfUnopenedWrittenBackOverlay),
        }
    }

    /// Whether it is explained that the kernel answered `native` and the mount `mounted`.
    pub(crate) fn answers(self, step: &Step, native: &Answer, mounted: &Answer) -> bool {
        ANSWERS.iter().any(|known| self.counts(known.by) && (known.applies)(step, native, mounted))
    }

    /// Whether it is explained that the times of `node` differ in whether the step changed them.
    pub(crate) fn times(
        self,
        (step, answer): (&Step, &Answer),
        node: &Stat,
        native: &Changes,
        mounted: &Changes,
    ) -> bool {
        TIMES
            .iter()
            .any(|known| self.counts(known.by) && (known.applies)(step, answer, node, native, mounted))
    }

    /// Whether the step is to be left out.
    pub(crate) fn leaves_out(self, step: &Step, native: &Side) -> bool {
        STEPS.iter().any(|known| self.counts(known.by) && (known.applies)(step, native))
    }
}
