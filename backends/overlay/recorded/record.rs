//! What stands in the attribute: `UID:GID:MODE`, and behind that perhaps `:TYPE`.
//!
//! The text is that of fuse-overlayfs (`override_mode`, `write_permission_xattr`) and of containers/storage, which write ids
//! in decimal and the mode in octal. Since 1.15 a regular file can say that it stands for another type of node, devices as
//! `block-MAJOR-MINOR` and `char-MAJOR-MINOR`.

use splicefs_core::{Attr, FileKind, device};

/// The longest text there is: two ids, a mode, a type with two numbers.
pub(super) const MAX: usize = 128;

/// Owner, mode and perhaps type of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits, without those of the type.
    pub(super) mode: u32,
    /// The type it stands for, if that is not its own.
    pub(super) stands_for: Option<Type>,
}

/// A type of node that a regular file can stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Type {
    pub(super) kind: FileKind,
    /// Of a device, in the kernel's 32-bit encoding.
    pub(super) rdev: u32,
}

impl Record {
    /// What a node of these attributes says if nothing else is recorded.
    pub(super) fn of(attr: &Attr) -> Self {
        Self { uid: attr.uid, gid: attr.gid, mode: attr.mode & 0o7777, stands_for: None }
    }

    /// Reads the text; `None` where it is no such text.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        // Some writers count the NUL behind it.
        let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
        let mut parts = text.splitn(4, ':');
        let (uid, gid) = (id(parts.next()?)?, id(parts.next()?)?);
        // Version 1.10 writes the type bits of a directory along.
        let mode = number(parts.next()?, 8)? & 0o7777;
        let stands_for = match parts.next() {
            Some(text) => Type::parse(text)?,
            None => None,
        };
        Some(Self { uid, gid, mode, stands_for })
    }

    /// The text.
    pub(super) fn encode(&self) -> String {
        let Self { uid, gid, mode, .. } = self;
        match self.stands_for {
            None => format!("{uid}:{gid}:{mode:o}"),
            Some(what) => format!("{uid}:{gid}:{mode:o}:{}", what.encode()),
        }
    }

    /// The attributes that are shown for a node that has these; `None` where it cannot stand for what the record says.
    pub(super) fn shown(&self, attr: &Attr) -> Option<Attr> {
        let shown = Attr { uid: self.uid, gid: self.gid, ..*attr };
        let Some(Type { kind, rdev }) = self.stands_for.filter(|what| what.kind != attr.kind()) else {
            return Some(Attr { mode: attr.mode & libc::S_IFMT | self.mode, ..shown });
        };
        // What has no names in it is no directory, and a directory is nothing else.
        (attr.kind() == FileKind::Regular && kind != FileKind::Directory).then_some(Attr {
            mode: kind.to_dtype() << 12 | self.mode,
            rdev,
            ..shown
        })
    }
}

impl Type {
    /// `Some(None)` for the node's own type, whatever it is.
    fn parse(text: &str) -> Option<Option<Self>> {
        let plain = |kind| Some(Some(Self { kind, rdev: 0 }));
        match text {
            "dir" => plain(FileKind::Directory),
            "file" => Some(None),
            "symlink" => plain(FileKind::Symlink),
            "pipe" => plain(FileKind::Fifo),
            "socket" => plain(FileKind::Socket),
            _ => {
                let (kind, numbers) = match text.split_once('-')? {
                    ("block", numbers) => (FileKind::BlockDevice, numbers),
                    ("char", numbers) => (FileKind::CharDevice, numbers),
                    _ => return None,
                };
                let (major, minor) = numbers.split_once('-')?;
                let rdev = device_number(number(major, 10)?, number(minor, 10)?)?;
                // What stands for a whiteout would be gone from some views and not from others.
                (rdev != 0 || kind != FileKind::CharDevice).then_some(Some(Self { kind, rdev }))
            }
        }
    }

    fn encode(self) -> String {
        let (major, minor) = device::decode(self.rdev);
        let device = |name| format!("{name}-{major}-{minor}");
        match self.kind {
            FileKind::Directory => "dir".to_owned(),
            FileKind::Symlink => "symlink".to_owned(),
            FileKind::Fifo => "pipe".to_owned(),
            FileKind::Socket => "socket".to_owned(),
            FileKind::BlockDevice => device("block"),
            FileKind::CharDevice => device("char"),
            FileKind::Regular | FileKind::Unknown => "file".to_owned(),
        }
    }
}

fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then(|| device::encode(major, minor))
}

/// An id: those beyond 2^31 are written as negative numbers. -1 is nobody's.
fn id(text: &str) -> Option<u32> {
    let id = match text.strip_prefix('-') {
        Some(_) => text.parse::<i32>().ok()?.cast_unsigned(),
        None => number(text, 10)?,
    };
    (id != u32::MAX).then_some(id)
}

/// Digits alone, without the sign that the standard library takes.
fn number(text: &str, radix: u32) -> Option<u32> {
    if text.starts_with('+') { None } else { u32::from_str_radix(text, radix).ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(uid: u32, gid: u32, mode: u32) -> Record {
        Record { uid, gid, mode, stands_for: None }
    }

    fn typed(kind: FileKind, rdev: u32) -> Option<Type> {
        Some(Type { kind, rdev })
    }

    #[test]
    fn what_others_write_is_read() {
        let cases: [(&[u8], Record); 9] = [
            (b"0:0:755", record(0, 0, 0o755)),
            (b"1000:100:4755", record(1000, 100, 0o4755)),
            // fuse-overlayfs 1.10 on the root, and for ids beyond 2^31.
            (b"0:0:40755", record(0, 0, 0o755)),
            (b"-2:-1294967296:100644", record(u32::MAX - 1, 3_000_000_000, 0o644)),
            (b"0:0:644\0", record(0, 0, 0o644)),
            (b"5:6:700:file", record(5, 6, 0o700)),
            (b"5:6:600:pipe", Record { stands_for: typed(FileKind::Fifo, 0), ..record(5, 6, 0o600) }),
            (
                b"0:6:660:block-8-1",
                Record { stands_for: typed(FileKind::BlockDevice, 0x801), ..record(0, 6, 0o660) },
            ),
            (
                b"0:0:666:char-1-259",
                Record { stands_for: typed(FileKind::CharDevice, 0x10_0103), ..record(0, 0, 0o666) },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Record::parse(text), Some(expected), "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(record(1000, 100, 0o4755).encode(), "1000:100:4755");
    }

    #[test]
    fn anything_else_is_no_record() {
        let bad: [&[u8]; 18] = [
            b"",
            b"0:0",
            b"0:0:",
            b"x:0:755",
            b"0:0:799",
            b"+1:0:755",
            b"-1:0:755",
            b"0:4294967295:755",
            b"0:4294967296:755",
            b" 0:0:755",
            b"0:0:755:",
            b"0:0:755:bogus",
            b"0:0:755:block",
            b"0:0:755:block-8",
            b"0:0:755:block-8-x",
            b"0:0:755:char-0-0",
            b"0:0:755:char-4096-0",
            b"\xff:0:755",
        ];
        for text in bad {
            assert_eq!(Record::parse(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_node_stands_for_what_it_can() {
        let time = splicefs_core::Timestamp::default();
        let attr = |mode| Attr {
            ino: 1,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 512,
            protection: splicefs_core::Protection::default(),
        };
        let shown = |text: &[u8], mode| Record::parse(text).and_then(|r| r.shown(&attr(mode)));
        let modes = |text: &[u8], mode| shown(text, mode).map(|attr| (attr.mode, attr.rdev));
        assert_eq!(modes(b"1:2:4711", libc::S_IFREG | 0o644), Some((libc::S_IFREG | 0o4711, 0)));
        assert_eq!(modes(b"1:2:700:dir", libc::S_IFDIR | 0o755), Some((libc::S_IFDIR | 0o700, 0)));
        assert_eq!(modes(b"1:2:660:block-8-0", libc::S_IFREG), Some((libc::S_IFBLK | 0o660, 0x800)));
        for (text, mode) in [(&b"1:2:700:dir"[..], libc::S_IFREG), (b"1:2:700:pipe", libc::S_IFDIR)] {
            assert_eq!(modes(text, mode), None, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(record) = Record::parse(&text) {
                prop_assert_eq!(Record::parse(record.encode().as_bytes()), Some(record));
            }
        }

        #[test]
        fn texts_of_numbers_are_read_as_they_are_written(
            uid in 0..u32::MAX, gid in 0..u32::MAX, mode in 0..0o10000u32,
            major in 1..0x1000u32, minor in 0..0x10_0000u32,
        ) {
            let stands_for = device_number(major, minor).map(|rdev| Type { kind: FileKind::CharDevice, rdev });
            let record = Record { uid, gid, mode, stands_for };
            prop_assert!(stands_for.is_some());
            prop_assert_eq!(Record::parse(record.encode().as_bytes()), Some(record));
            prop_assert!(record.encode().len() <= MAX);
        }
    }
}
