//! The handle by which a file of the upper layer says which lower file it was copied from
//! (`struct ovl_fb` in fs/overlayfs/overlayfs.h).

use splicefs_core::FileHandle;

/// The most that such a value takes, in bytes: its head and the longest handle.
pub(crate) const MAX: usize = HEAD + 128;
/// Version, magic number, length, flags, type of the handle, and the file system's UUID.
const HEAD: usize = 5 + 16;
const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
/// Integers in the handle are big-endian (`OVL_FH_FLAG_BIG_ENDIAN`).
const BIG_ENDIAN: u8 = 1;
const OWN_ENDIAN: u8 = if cfg!(target_endian = "big") { BIG_ENDIAN } else { 0 };
/// The handle reads the same in either order (`OVL_FH_FLAG_ANY_ENDIAN`).
const ANY_ENDIAN: u8 = 1 << 1;

/// Where a file comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// Of the file system.
    pub(crate) uuid: [u8; 16],
    pub(crate) handle: FileHandle,
}

impl Origin {
    /// As it stands in the attribute; `None` where a handle is too long or of a type that fits into no byte.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let len = u8::try_from(HEAD + self.handle.bytes.len()).ok()?;
        let kind = u8::try_from(self.handle.kind).ok()?;
        let mut value = vec![VERSION, MAGIC, len, OWN_ENDIAN, kind];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.handle.bytes);
        Some(value)
    }

    /// Reads the attribute. What is none, or of another byte order or version, is no origin, as in the kernel
    /// (`ovl_check_fb_len`, `ovl_get_fh`).
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let (head, handle) = value.split_at_checked(HEAD)?;
        let (fixed, uuid) = head.split_at(5);
        let &[version, magic, len, flags, kind] = fixed else { return None };
        let same_order = flags & ANY_ENDIAN != 0 || flags & BIG_ENDIAN == OWN_ENDIAN;
        if version > VERSION || magic != MAGIC || usize::from(len) != value.len() || !same_order {
            return None;
        }
        let handle = FileHandle { kind: kind.into(), bytes: handle.to_vec() };
        Some(Self { uuid: uuid.try_into().ok()?, handle })
    }

    /// The inode number in the handle, for the file systems whose handles hold it where include/linux/exportfs.h,
    /// mm/shmem.c and fs/btrfs/export.h say.
    pub(crate) fn guess_ino(&self) -> Option<u64> {
        const INO32_GEN: i32 = 1;
        const INO64_GEN: i32 = 0x81;
        const BTRFS: i32 = 0x4d;
        let bytes = &self.handle.bytes;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        match (self.handle.kind, bytes.len()) {
            (INO32_GEN, 8) => word(0).map(u64::from),
            // shmem: the generation first.
            (INO32_GEN, 12) => Some(u64::from(word(8)?) << 32 | u64::from(word(4)?)),
            (INO64_GEN | BTRFS, _) => long(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(kind: i32, bytes: &[u8]) -> Origin {
        Origin { uuid: [9; 16], handle: FileHandle { kind, bytes: bytes.to_vec() } }
    }

    #[test]
    fn what_is_written_is_read() {
        for bytes in [&[1u8, 2, 3, 4, 5, 6, 7, 8][..], &[0; 128]] {
            let origin = origin(1, bytes);
            assert_eq!(Origin::parse(&origin.encode().unwrap()), Some(origin));
        }
        assert_eq!(origin(256, &[]).encode(), None);
        assert_eq!(origin(1, &[0; 250]).encode(), None);
    }

    #[test]
    fn a_damaged_attribute_is_no_origin() {
        let good = origin(1, &[1; 8]).encode().unwrap();
        for cut in 0..good.len() {
            assert_eq!(Origin::parse(&good[..cut]), None);
        }
        for (at, byte) in [(0, 1), (1, 0xfc), (2, 0), (3, 1 - OWN_ENDIAN)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Origin::parse(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn inode_numbers_stand_where_the_file_systems_put_them() {
        let mut ext4 = 77u32.to_ne_bytes().to_vec();
        ext4.extend([1; 4]);
        assert_eq!(origin(1, &ext4).guess_ino(), Some(77));
        let shmem: Vec<u8> = [5u32, 78, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(origin(1, &shmem).guess_ino(), Some((1 << 32) + 78));
        let mut xfs = 79u64.to_ne_bytes().to_vec();
        xfs.extend([1; 4]);
        assert_eq!(origin(0x81, &xfs).guess_ino(), Some(79));
        assert_eq!(origin(0x99, &xfs).guess_ino(), None);
        assert_eq!(origin(1, &[1; 3]).guess_ino(), None);
    }
}
