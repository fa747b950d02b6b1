//! The file system as the upper layer of an overlay: what an overlay does with it, in process.

use std::num::NonZeroU64;
use std::sync::Arc;

use splicefs_core::testkit::execute;
use splicefs_core::{
    Attr, Backend, Caller, CreateFlags, Entry, Errno, FileHandle, FileKind, Layer, Make, Name, OpenFlags,
    Opened, RenameFlags, Result, SetAttr, Span, WriteMode, XattrFlags,
};
use splicefs_tmpfs::{Atime, File, Node, Options, Tmpfs};

const DAEMON: Caller = Caller::DAEMON;
const NO_FLAGS: XattrFlags = XattrFlags { flags: 0, kill_sgid: false };
const BYTES: usize = 8 << 12;

struct Fixture {
    fs: Tmpfs,
    upper: Arc<Node>,
    work: Arc<Node>,
    /// Pages and inodes in use at the beginning.
    empty: (u64, u64),
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => e.errno(),
    }
}

fn used(fs: &Tmpfs) -> (u64, u64) {
    let st = fs.statfs(&fs.root()).unwrap();
    (st.blocks - st.bfree, st.files - st.ffree)
}

impl Fixture {
    fn new() -> Self {
        let (pages, inodes) = (NonZeroU64::new(100), NonZeroU64::new(100));
        let (mode, atime) = (0o755, Atime::Relative);
        let fs = Tmpfs::new(&Options { pages, inodes, mode, uid: 0, gid: 0, inode32: false, atime }).unwrap();
        let mkdir = |text| fs.make(&DAEMON, &fs.root(), &name(text), Make::Directory(0o755)).unwrap().node;
        let (upper, work) = (mkdir("upper"), mkdir("work"));
        let empty = used(&fs);
        Self { fs, upper, work, empty }
    }

    fn make(&self, parent: &Arc<Node>, text: &str, what: Make<'_>) -> Arc<Node> {
        self.fs.make(&DAEMON, parent, &name(text), what).unwrap().node
    }

    fn whiteout(&self, parent: &Arc<Node>, text: &str) -> Arc<Node> {
        self.make(parent, text, Make::Node(libc::S_IFCHR, 0))
    }

    /// A file without a name, of some pages and with an attribute.
    fn nameless(&self, byte: u8) -> (Arc<Node>, Opened<File>) {
        let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
        let (Entry { node, .. }, opened) = self.fs.tmpfile(&DAEMON, &self.work, 0o600, flags).unwrap();
        let written = self.fs.write(&DAEMON, &opened.file, 0, &[byte; BYTES], WriteMode::default());
        assert_eq!(written.unwrap(), BYTES);
        self.fs.setxattr(&DAEMON, &node, c"trusted.overlay.origin", &[1; 900], NO_FLAGS).unwrap();
        (node, opened)
    }

    fn rename(&self, from: (&Arc<Node>, &str), to: (&Arc<Node>, &str), flags: u32) {
        let (from_name, to_name) = (name(from.1), name(to.1));
        self.fs.rename(&DAEMON, (from.0, &from_name), (to.0, &to_name), RenameFlags(flags)).unwrap();
    }

    fn find(&self, parent: &Arc<Node>, text: &str) -> Arc<Node> {
        self.fs.lookup(parent, &name(text)).unwrap().node
    }

    fn attr(&self, node: &Arc<Node>) -> Attr {
        self.fs.getattr(node, None).unwrap()
    }

    fn bytes(&self, file: &File) -> Vec<u8> {
        let mut bytes = Vec::new();
        let span = Span { offset: 0, len: 2 * BYTES };
        self.fs.plan_read(file, span, &mut |plan| bytes = execute(plan)).unwrap();
        bytes
    }
}

#[test]
fn it_is_on_no_device_and_knows_no_handles() {
    let t = Fixture::new();
    assert!(t.fs.file_system() > u64::from(u32::MAX));
    assert_eq!(t.fs.uuid(), [0; 16]);
    assert_eq!(t.fs.handle(&t.upper).unwrap(), None);
    assert_eq!(t.fs.inode_of(&FileHandle { kind: 1, bytes: vec![1; 12] }).unwrap(), None);
    let (_node, opened) = t.nameless(1);
    assert!(t.fs.descriptor(&opened.file).is_none());
}

#[test]
fn a_copied_file_takes_the_place_of_another_that_is_still_used() {
    let t = Fixture::new();
    let (old, old_file) = t.nameless(1);
    t.fs.link(&old, &t.upper, &name("f")).unwrap();
    let (new, new_file) = t.nameless(2);
    t.fs.link(&new, &t.work, &name("#1")).unwrap();
    t.rename((&t.work, "#1"), (&t.upper, "f"), 0);
    assert!(Arc::ptr_eq(&t.find(&t.upper, "f"), &new));
    assert_eq!(t.attr(&old).nlink, 0);
    assert_eq!(t.bytes(&old_file.file), [1; BYTES]);
    assert_eq!(t.bytes(&new_file.file), [2; BYTES]);
    assert_eq!(used(&t.fs).0, 16, "both are used");
    drop((old_file, new_file));
    assert_eq!(used(&t.fs).0, 8, "the one has neither name nor user, though its node is held");
    assert_eq!((t.attr(&old).size, t.attr(&old).blocks), (BYTES as u64, 64), "and can still be asked");
    let again = t.fs.open(&DAEMON, &old, OpenFlags(libc::O_RDONLY)).unwrap();
    assert_eq!(t.bytes(&again.file), [1; BYTES]);
    drop(again);
    t.fs.unlink(&t.upper, &name("f")).unwrap();
    assert_eq!(used(&t.fs), t.empty);
    drop((old, new));
    assert_eq!(used(&t.fs), t.empty, "given back once");
}

#[test]
fn whiteouts_come_and_go() {
    let t = Fixture::new();
    let whiteout = t.whiteout(&t.work, "w");
    let attr = t.attr(&whiteout);
    assert_eq!((attr.kind(), attr.rdev, attr.nlink), (FileKind::CharDevice, 0, 1));
    t.fs.setxattr(&DAEMON, &whiteout, c"trusted.overlay.whiteout", b"", NO_FLAGS).unwrap();
    for i in 0..10 {
        t.fs.link(&whiteout, &t.upper, &name(&i.to_string())).unwrap();
    }
    assert_eq!(t.attr(&whiteout).nlink, 11);
    for i in 0..10 {
        t.fs.unlink(&t.upper, &name(&i.to_string())).unwrap();
    }
    t.fs.unlink(&t.work, &name("w")).unwrap();
    assert_eq!(used(&t.fs), t.empty);
}

#[test]
fn renaming_leaves_a_whiteout() {
    let t = Fixture::new();
    let (node, opened) = t.nameless(1);
    t.fs.link(&node, &t.upper, &name("f")).unwrap();
    let caller = Caller { uid: 1234, gid: 2345, pid: 0, umask: 0, fsetid: false };
    let (from, to) = ((&t.upper, &name("f")), (&t.work, &name("g")));
    t.fs.rename(&caller, from, to, RenameFlags(libc::RENAME_WHITEOUT)).unwrap();
    let left = t.attr(&t.find(&t.upper, "f"));
    assert_eq!((left.kind(), left.rdev, left.uid, left.gid), (FileKind::CharDevice, 0, 1234, 2345));
    assert!(Arc::ptr_eq(&t.find(&t.work, "g"), &node));
    t.fs.unlink(&t.upper, &name("f")).unwrap();
    t.fs.unlink(&t.work, &name("g")).unwrap();
    drop((node, opened));
    assert_eq!(used(&t.fs), t.empty);
}

#[test]
fn a_directory_and_a_whiteout_change_places_and_the_directory_is_emptied_and_removed() {
    let t = Fixture::new();
    let dir = t.make(&t.upper, "d", Make::Directory(0o755));
    t.fs.setxattr(&DAEMON, &dir, c"trusted.overlay.opaque", b"y", NO_FLAGS).unwrap();
    t.whiteout(&dir, "hidden");
    let whiteout = t.whiteout(&t.work, "w");
    t.rename((&t.work, "w"), (&t.upper, "d"), libc::RENAME_EXCHANGE);
    assert!(Arc::ptr_eq(&t.find(&t.upper, "d"), &whiteout));
    assert!(Arc::ptr_eq(&t.find(&t.work, "w"), &dir));
    assert_eq!((t.attr(&t.upper).nlink, t.attr(&t.work).nlink), (2, 3));
    assert_eq!(errno(t.fs.rmdir(&t.work, &name("w"))), Errno::ENOTEMPTY);
    let stream = t.fs.opendir(&dir).unwrap();
    t.fs.unlink(&dir, &name("hidden")).unwrap();
    t.fs.rmdir(&t.work, &name("w")).unwrap();
    assert_eq!((t.attr(&dir).nlink, t.attr(&t.work).nlink), (0, 2));
    assert_eq!(t.fs.getxattr(&dir, c"trusted.overlay.opaque", 10).unwrap(), b"y");
    assert_eq!(errno(t.fs.make(&DAEMON, &dir, &name("x"), Make::Directory(0o755))), Errno::ENOENT);
    assert_eq!(errno(t.fs.lookup(&dir, &name("hidden"))), Errno::ENOENT);
    t.fs.unlink(&t.upper, &name("d")).unwrap();
    drop(stream);
    assert_eq!(used(&t.fs), t.empty, "though the nodes of both are held");
    drop((dir, whiteout));
    assert_eq!(used(&t.fs), t.empty);
}

#[test]
fn what_is_done_to_a_node_without_a_name_changes_no_count() {
    let t = Fixture::new();
    let (node, opened) = t.nameless(1);
    t.fs.link(&node, &t.upper, &name("f")).unwrap();
    t.fs.unlink(&t.upper, &name("f")).unwrap();
    drop(opened);
    assert_eq!(used(&t.fs), t.empty);
    t.fs.setxattr(&DAEMON, &node, c"trusted.overlay.metacopy", &[1; 2000], NO_FLAGS).unwrap();
    t.fs.removexattr(&node, c"trusted.overlay.origin").unwrap();
    let change = SetAttr { size: Some(100), mode: Some(0o644), ..SetAttr::default() };
    assert_eq!(t.fs.setattr(&DAEMON, &node, None, &change).unwrap().size, 100);
    assert_eq!(used(&t.fs), t.empty);
    t.fs.link(&node, &t.upper, &name("back")).unwrap();
    assert_eq!(used(&t.fs), (t.empty.0 + 1, t.empty.1 + 4), "a name makes it a file like any other");
    t.fs.unlink(&t.upper, &name("back")).unwrap();
    drop(node);
    assert_eq!(used(&t.fs), t.empty);
}

/// The room of the capabilities was given back with the last name, and again with the change of owner.
#[test]
fn regression_a_change_of_owner_gives_no_room_back_twice() {
    let t = Fixture::new();
    let other = t.make(&t.upper, "other", Make::Directory(0o755));
    t.fs.setxattr(&DAEMON, &other, c"user.room", &[1; 4000], NO_FLAGS).unwrap();
    let (node, opened) = t.nameless(1);
    t.fs.setxattr(&DAEMON, &node, c"security.capability", &[1; 3000], NO_FLAGS).unwrap();
    let before = used(&t.fs);
    assert!(before.1 > t.empty.1 + 5);
    drop(opened);
    let after = used(&t.fs);
    let change = SetAttr { uid: Some(1), ..SetAttr::default() };
    t.fs.setattr(&DAEMON, &node, None, &change).unwrap();
    assert_eq!(used(&t.fs), after);
    assert_eq!(errno(t.fs.getxattr(&node, c"security.capability", 4000)), Errno::ENODATA);
    drop(node);
    assert_eq!(used(&t.fs), after);
}
