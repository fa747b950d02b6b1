//! What kind of file system a file lies on, as far as reading it and knowing it again depend on that.

use std::collections::HashMap;
use std::os::fd::AsFd;

use parking_lot::RwLock;
use rustix::fs::{Statx, fstatfs};
use splicefs_core::Result;

use crate::stat::{self, Identity};

/// How far the sizes and the birth times of a file system's files can be believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FsClass {
    /// A file's size is what reading it gives.
    Ordinary,
    /// As `Ordinary`, but somewhere else, where others change it: what becomes of a write may be told by close(2) alone (`flush` in the
    /// file operations).
    Remote,
    /// As `Ordinary`, but a copy-up changes the birth time of a file (overlayfs).
    Overlay,
    /// Contents are made as they are read, and sizes mean nothing (procfs and its kind).
    Pseudo,
    /// The process directory: as `Pseudo`, and `self` is another for each caller.
    Proc,
    /// Unknown: a file that claims to be empty is tried.
    Unknown,
}

/// `f_type` of statfs(2), from include/uapi/linux/magic.h.
const ORDINARY: [u64; 10] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x4d44,      // vfat
    0x2011_bab0, // exfat
    0x9660,      // isofs
];
const REMOTE: [u64; 3] = [
    0x6969,      // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // cifs, of version 2 and later
];
const PSEUDO: [u64; 17] = [
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0x6e66_7364, // nfsd
    0x5a3c_69f0, // apparmorfs
];
const PROC: u64 = 0x9fa0;
const OVERLAY: u64 = 0x794c_7630;

impl FsClass {
    fn of_magic(magic: u64) -> Self {
        match magic {
            PROC => Self::Proc,
            OVERLAY => Self::Overlay,
            _ if PSEUDO.contains(&magic) => Self::Pseudo,
            _ if ORDINARY.contains(&magic) => Self::Ordinary,
            _ if REMOTE.contains(&magic) => Self::Remote,
            _ => Self::Unknown,
        }
    }

    /// The class of the file system that holds `path`.
    pub(crate) fn of_path(path: &std::path::Path) -> std::io::Result<Self> {
        let magic = rustix::fs::statfs(path)?.f_type;
        Ok(Self::of_magic(magic.cast_unsigned()))
    }

    /// Whether a file's size is known to be what reading it gives.
    pub(crate) fn is_true_to_size(self) -> bool {
        matches!(self, Self::Ordinary | Self::Remote | Self::Overlay)
    }

    /// Whether every change is made by this machine's kernel, which tells of it.
    pub(crate) fn is_local(self) -> bool {
        matches!(self, Self::Ordinary | Self::Overlay)
    }

    /// Whether errors of writing may be told when a file is closed, and not before: local file systems have no `flush` in their
    /// file operations.
    pub(crate) fn tells_late(self) -> bool {
        !matches!(self, Self::Ordinary)
    }

    /// Whether contents are made as they are read.
    pub(crate) fn is_pseudo(self) -> bool {
        matches!(self, Self::Pseudo | Self::Proc)
    }
}

/// The classes of the file systems met so far, by mount and device number: device numbers are used again when a file system
/// inside the source is unmounted.
///
/// Lock order: a leaf, held over no system call.
#[derive(Debug, Default)]
pub(crate) struct FsClasses(RwLock<HashMap<(u64, u64), FsClass>>);

impl FsClasses {
    /// The class of the file system with that mount and device number; `open` gives a descriptor on it when it is new.
    pub(crate) fn get<F: AsFd>(&self, on: (u64, u64), open: impl FnOnce() -> Result<F>) -> Result<FsClass> {
        if let Some(class) = self.0.read().get(&on) {
            return Ok(*class);
        }
        let fd = open()?;
        // f_type is signed on some machines; the magic numbers have 32 bits.
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
        let magic = fstatfs(&fd)?.f_type as u64 & 0xffff_ffff;
        let class = FsClass::of_magic(magic);
        self.0.write().insert(on, class);
        Ok(class)
    }

    /// What tells the file of `st` apart; `open` gives a descriptor on its file system when that is new. On overlayfs the
    /// birth time is the layer's, and another after copy-up.
    pub(crate) fn identity<F: AsFd>(&self, st: &Statx, open: impl FnOnce() -> Result<F>) -> Result<Identity> {
        let class = self.get((st.stx_mnt_id, stat::device(st)), open)?;
        Ok(Identity::of(st, class != FsClass::Overlay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_and_sys_are_known_for_what_they_are() {
        let classes = FsClasses::default();
        let open = |path: &str| -> Result<std::fs::File> { Ok(std::fs::File::open(path)?) };
        assert_eq!(classes.get((1, 1), || open("/proc")).unwrap(), FsClass::Proc);
        assert!(classes.get((1, 2), || open("/sys")).unwrap().is_pseudo());
        assert_eq!(
            classes.get((1, 1), || -> Result<std::fs::File> { panic!("cached") }).unwrap(),
            FsClass::Proc
        );
    }
}
