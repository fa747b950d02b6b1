//! When the room of a file is free again.

use std::num::NonZeroU64;
use std::sync::Arc;

use splicefs_core::testkit::execute;
use splicefs_core::{
    Backend, Caller, CreateFlags, Entry, Name, OpenFlags, Opened, Span, WriteMode, XattrFlags,
};
use splicefs_tmpfs::{Atime, File, Node, Options, Tmpfs};

const ROOT: Caller = Caller::DAEMON;

fn fs() -> Tmpfs {
    let (pages, inodes) = (NonZeroU64::new(100), NonZeroU64::new(10));
    let options =
        Options { pages, inodes, mode: 0o1777, uid: 0, gid: 0, inode32: false, atime: Atime::Relative };
    Tmpfs::new(&options).unwrap()
}

fn name() -> Name {
    Name::new(b"file").unwrap()
}

/// A file of 40 pages and an attribute, open.
fn file(fs: &Tmpfs) -> (Arc<Node>, Opened<File>) {
    let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: true };
    let (Entry { node, .. }, opened) = fs.create(&ROOT, &fs.root(), &name(), 0o644, flags).unwrap();
    assert_eq!(fs.write(&ROOT, &opened.file, 0, &[7; 160 << 10], WriteMode::default()).unwrap(), 160 << 10);
    let flags = XattrFlags { flags: 0, kill_sgid: false };
    fs.setxattr(&ROOT, &node, c"user.test", &[1; 3000], flags).unwrap();
    (node, opened)
}

/// Pages and inodes in use.
fn used(fs: &Tmpfs) -> (u64, u64) {
    let st = fs.statfs(&fs.root()).unwrap();
    (st.blocks - st.bfree, st.files - st.ffree)
}

#[test]
fn a_removed_file_is_free_while_the_kernel_still_remembers_it() {
    let fs = fs();
    let (node, opened) = file(&fs);
    assert_eq!(used(&fs), (40, 5));
    fs.unlink(&fs.root(), &name()).unwrap();
    assert_eq!(used(&fs), (40, 5), "it is open");
    drop(opened);
    assert_eq!(used(&fs), (0, 1), "nobody has it");
    drop(node);
    assert_eq!(used(&fs), (0, 1), "given back once");
}

#[test]
fn a_removed_file_that_is_opened_once_more_has_its_bytes_and_takes_its_room() {
    let fs = fs();
    let (node, opened) = file(&fs);
    drop(opened);
    fs.unlink(&fs.root(), &name()).unwrap();
    assert_eq!(used(&fs), (0, 1));
    let opened = fs.open(&ROOT, &node, OpenFlags(libc::O_RDONLY)).unwrap();
    assert_eq!(used(&fs), (40, 5));
    let mut bytes = Vec::new();
    fs.plan_read(&opened.file, Span { offset: 0, len: 200 << 10 }, &mut |plan| bytes = execute(plan))
        .unwrap();
    assert!(bytes.len() == 160 << 10 && bytes.iter().all(|byte| *byte == 7));
    fs.removexattr(&node, c"user.test").unwrap();
    assert_eq!(used(&fs), (40, 2));
    drop(opened);
    drop(node);
    assert_eq!(used(&fs), (0, 1));
}

#[test]
fn a_file_made_without_a_name_takes_room_until_it_is_closed_or_named_and_removed() {
    let fs = fs();
    let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
    let (Entry { node, .. }, opened) = fs.tmpfile(&ROOT, &fs.root(), 0o600, flags).unwrap();
    fs.write(&ROOT, &opened.file, 0, &[7; 8192], WriteMode::default()).unwrap();
    assert_eq!(used(&fs), (2, 2));
    fs.link(&node, &fs.root(), &name()).unwrap();
    drop(opened);
    assert_eq!(used(&fs), (2, 2), "it has a name");
    fs.unlink(&fs.root(), &name()).unwrap();
    assert_eq!(used(&fs), (0, 1));
    let (_, opened) = fs.tmpfile(&ROOT, &fs.root(), 0o600, flags).unwrap();
    assert_eq!(used(&fs), (0, 2));
    drop(opened);
    assert_eq!(used(&fs), (0, 1));
}
