//! An upper layer and its work directory: two roots, one mount.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use splicefs_core::{
    Backend, Caller, CreateFlags, Errno, FileKind, Make, OpenFlags, RenameFlags, SetAttr, XattrFlags,
};
use splicefs_passthrough::{LayerSet, Node, Passthrough};

use crate::common::{
    DAEMON, attr, create, errno, evict, find, mkdir, name, privileged, root_of_the_host, set, writable,
};

struct Fixture {
    base: tempfile::TempDir,
    set: LayerSet,
    fs: Passthrough,
    upper: Arc<Node>,
    work: Arc<Node>,
}

impl Fixture {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for dir in ["upper", "work"] {
            std::fs::create_dir(base.path().join(dir)).unwrap();
        }
        let set = set();
        let fs = writable(&set, &base.path().join("upper"));
        let work = fs.adopt(&base.path().join("work")).unwrap();
        Self { upper: fs.root(), base, set, fs, work }
    }

    fn rename(&self, from: (&Arc<Node>, &str), to: (&Arc<Node>, &str), flags: u32) {
        let (from_name, to_name) = (name(from.1), name(to.1));
        self.fs.rename(&DAEMON, (from.0, &from_name), (to.0, &to_name), RenameFlags(flags)).unwrap();
    }

    fn evict(&self) {
        evict(&self.set);
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.base.path().join(path)
    }
}

#[test]
fn a_work_directory_on_another_mount_is_refused() {
    let t = Fixture::new();
    for elsewhere in ["/proc", "/dev"] {
        assert_eq!(t.fs.adopt(Path::new(elsewhere)).unwrap_err().raw_os_error(), Some(libc::EXDEV));
    }
    assert_eq!(t.fs.adopt(&t.path("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn a_file_made_in_the_work_directory_is_renamed_into_the_layer() {
    let t = Fixture::new();
    let (node, file) = create(&t.fs, &t.work, "new", b"abc");
    drop(file);
    t.rename((&t.work, "new"), (&t.upper, "f"), 0);
    assert!(Arc::ptr_eq(&find(&t.fs, &t.upper, "f"), &node));
    t.evict();
    assert_eq!(attr(&t.fs, &node).size, 3);
    t.fs.open(&DAEMON, &node, OpenFlags(libc::O_RDWR)).unwrap();
    assert_eq!(std::fs::read(t.path("upper/f")).unwrap(), b"abc");
}

#[test]
fn what_is_replaced_is_reached_as_long_as_its_node_lives() {
    let t = Fixture::new();
    let (old, old_file) = create(&t.fs, &t.upper, "f", b"old");
    let (new, new_file) = create(&t.fs, &t.work, "new", b"newer");
    drop((old_file, new_file));
    t.rename((&t.work, "new"), (&t.upper, "f"), 0);
    t.evict();
    assert_eq!((attr(&t.fs, &old).nlink, attr(&t.fs, &old).size), (0, 3));
    assert_eq!((attr(&t.fs, &new).nlink, attr(&t.fs, &new).size), (1, 5));
    let file = t.fs.open(&DAEMON, &old, OpenFlags(libc::O_RDONLY)).unwrap().file;
    assert_eq!(t.fs.getattr(&old, Some(&file)).unwrap().size, 3);
}

#[test]
fn two_directories_change_places() {
    let t = Fixture::new();
    let full = mkdir(&t.fs, &t.upper, "d");
    let (inside, file) = create(&t.fs, &full, "f", b"abc");
    let empty = mkdir(&t.fs, &t.work, "opaque");
    drop(file);
    t.rename((&t.work, "opaque"), (&t.upper, "d"), libc::RENAME_EXCHANGE);
    t.evict();
    assert_eq!(attr(&t.fs, &inside).size, 3);
    assert!(Arc::ptr_eq(&find(&t.fs, &t.upper, "d"), &empty));
    assert!(Arc::ptr_eq(&find(&t.fs, &t.work, "opaque"), &full));
    let below = mkdir(&t.fs, &empty, "below");
    assert!(t.path("upper/d/below").is_dir());
    t.fs.unlink(&full, &name("f")).unwrap();
    t.fs.rmdir(&t.work, &name("opaque")).unwrap();
    assert_eq!(attr(&t.fs, &full).nlink, 0);
    assert_eq!(attr(&t.fs, &below).nlink, 2);
}

#[test]
fn a_directory_and_a_whiteout_change_places() {
    if !privileged() {
        return;
    }
    let t = Fixture::new();
    let dir = mkdir(&t.fs, &t.upper, "d");
    let made = t.fs.make(&DAEMON, &t.work, &name("w"), Make::Node(libc::S_IFCHR, 0)).unwrap();
    assert_eq!((made.attr.kind(), made.attr.rdev), (FileKind::CharDevice, 0));
    t.rename((&t.work, "w"), (&t.upper, "d"), libc::RENAME_EXCHANGE);
    t.evict();
    assert!(std::fs::symlink_metadata(t.path("upper/d")).unwrap().file_type().is_char_device());
    assert_eq!(attr(&t.fs, &made.node).rdev, 0);
    t.fs.rmdir(&t.work, &name("w")).unwrap();
    assert_eq!(attr(&t.fs, &dir).nlink, 0);
    // One whiteout serves for many names.
    t.fs.link(&made.node, &t.upper, &name("other")).unwrap();
    assert_eq!(attr(&t.fs, &made.node).nlink, 2);
}

#[test]
fn renaming_leaves_a_whiteout_that_the_caller_owns() {
    if !root_of_the_host() {
        return;
    }
    let t = Fixture::new();
    let (node, file) = create(&t.fs, &t.upper, "f", b"abc");
    drop(file);
    let caller = Caller { uid: 1234, gid: 2345, pid: std::process::id(), umask: 0, fsetid: false };
    let (from, to) = ((&t.upper, &name("f")), (&t.work, &name("g")));
    t.fs.rename(&caller, from, to, RenameFlags(libc::RENAME_WHITEOUT)).unwrap();
    t.evict();
    assert_eq!(attr(&t.fs, &node).size, 3);
    let whiteout = std::fs::symlink_metadata(t.path("upper/f")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!((whiteout.rdev(), whiteout.uid(), whiteout.gid()), (0, 1234, 2345));
    assert!(!Arc::ptr_eq(&find(&t.fs, &t.upper, "f"), &node));
}

#[test]
fn a_nameless_file_is_linked_into_the_layer() {
    let t = Fixture::new();
    let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: false };
    let (entry, opened) = t.fs.tmpfile(&DAEMON, &t.work, 0o600, flags).unwrap();
    t.fs.write(&DAEMON, &opened.file, 0, b"abc", Default::default()).unwrap();
    let flags = XattrFlags { flags: 0, kill_sgid: false };
    t.fs.setxattr(&DAEMON, &entry.node, c"user.origin", b"x", flags).unwrap();
    t.fs.link(&entry.node, &t.upper, &name("f")).unwrap();
    drop(opened);
    t.evict();
    assert_eq!(attr(&t.fs, &entry.node).nlink, 1);
    assert_eq!(t.fs.getxattr(&entry.node, c"user.origin", 10).unwrap(), b"x");
    assert!(Arc::ptr_eq(&find(&t.fs, &t.upper, "f"), &entry.node));
}

#[test]
fn a_file_with_names_on_both_sides_keeps_the_one_that_is_left() {
    let t = Fixture::new();
    let (node, file) = create(&t.fs, &t.work, "index", b"abc");
    t.fs.link(&node, &t.upper, &name("f")).unwrap();
    drop(file);
    t.fs.unlink(&t.work, &name("index")).unwrap();
    t.evict();
    assert_eq!((attr(&t.fs, &node).nlink, attr(&t.fs, &node).size), (1, 3));
    // The other way round as well.
    t.fs.link(&node, &t.work, &name("index")).unwrap();
    t.fs.unlink(&t.work, &name("index")).unwrap();
    t.evict();
    assert_eq!(attr(&t.fs, &node).nlink, 1);
    assert!(Arc::ptr_eq(&find(&t.fs, &t.upper, "f"), &node));
}

/// Each name that the file was found by is known, whatever becomes of it; and one of which no name is known is held open.
#[test]
fn a_file_of_many_names_is_found_by_any_that_is_left() {
    let t = Fixture::new();
    let (node, file) = create(&t.fs, &t.upper, "0", b"abc");
    drop(file);
    for n in 1..5 {
        t.fs.link(&node, &t.upper, &name(&n.to_string())).unwrap();
    }
    t.rename((&t.upper, "1"), (&t.work, "moved"), 0);
    // One that nobody has seen, behind our back.
    std::fs::hard_link(t.path("upper/0"), t.path("unseen")).unwrap();
    for (dir, gone, left) in [(&t.upper, "4", 5), (&t.upper, "0", 4), (&t.upper, "2", 3), (&t.upper, "3", 2)]
    {
        t.fs.unlink(dir, &name(gone)).unwrap();
        t.evict();
        assert_eq!(attr(&t.fs, &node).nlink, left, "after {gone}");
    }
    t.fs.unlink(&t.work, &name("moved")).unwrap();
    t.evict();
    assert_eq!((attr(&t.fs, &node).nlink, attr(&t.fs, &node).size), (1, 3));
    std::fs::remove_file(t.path("unseen")).unwrap();
    assert_eq!(attr(&t.fs, &node).nlink, 0);
}

#[test]
fn the_two_roots_are_nodes_like_others_and_cannot_be_lost() {
    let t = Fixture::new();
    std::fs::rename(t.path("work"), t.path("elsewhere")).unwrap();
    std::fs::rename(t.path("upper"), t.path("above")).unwrap();
    t.evict();
    for root in [&t.upper, &t.work] {
        assert_eq!(attr(&t.fs, root).kind(), FileKind::Directory);
        let change = SetAttr { mode: Some(0o700), ..SetAttr::default() };
        assert_eq!(t.fs.setattr(&DAEMON, root, None, &change).unwrap().mode & 0o777, 0o700);
        let flags = XattrFlags { flags: 0, kill_sgid: false };
        t.fs.setxattr(&DAEMON, root, c"user.x", b"y", flags).unwrap();
        assert_eq!(t.fs.getxattr(root, c"user.x", 10).unwrap(), b"y");
        t.fs.statfs(root).unwrap();
        t.fs.opendir(root).unwrap();
        mkdir(&t.fs, root, "d");
    }
    assert!(t.path("elsewhere/d").is_dir() && t.path("above/d").is_dir());
}

/// Before, everything below the second root was to be found by names from the first.
#[test]
fn a_deep_tree_moves_from_one_root_to_the_other() {
    let t = Fixture::new();
    let top = mkdir(&t.fs, &t.work, "top");
    let middle = mkdir(&t.fs, &top, "middle");
    let (deep, file) = create(&t.fs, &middle, "deep", b"abc");
    drop(file);
    t.rename((&t.work, "top"), (&t.upper, "top"), 0);
    t.rename((&t.upper, "top"), (&t.upper, "pot"), 0);
    t.evict();
    assert_eq!(attr(&t.fs, &deep).size, 3);
    let into_itself = (&middle, &name("x"));
    let refused = t.fs.rename(&DAEMON, (&t.upper, &name("pot")), into_itself, RenameFlags(0));
    assert_eq!(errno(refused), Errno::EINVAL);
    assert_eq!(attr(&t.fs, &deep).size, 3);
}
