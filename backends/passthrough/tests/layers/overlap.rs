//! Layers that overlap share nodes, and each stays whole.

use std::sync::Arc;

use splicefs_core::{Backend, RenameFlags};

use crate::common::{DAEMON, attr, create, evict, find, mkdir, name, read_only, set, writable};

#[test]
fn one_directory_twice_is_one_tree() {
    let source = tempfile::tempdir().unwrap();
    let set = set();
    let (a, b) = (writable(&set, source.path()), writable(&set, source.path()));
    assert!(Arc::ptr_eq(&a.root(), &b.root()));
    let (file, _) = create(&a, &a.root(), "f", b"abc");
    assert!(Arc::ptr_eq(&find(&b, &b.root(), "f"), &file));
    b.rename(&DAEMON, (&b.root(), &name("f")), (&b.root(), &name("g")), RenameFlags(0)).unwrap();
    drop(b);
    assert_eq!(attr(&a, &file).size, 3);
}

#[test]
fn a_root_stays_reached_when_the_layer_above_renames_or_removes_it() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(source.path().join("out/in")).unwrap();
    let set = set();
    let outer = writable(&set, source.path());
    let inner = writable(&set, &source.path().join("out/in"));
    let (file, opened) = create(&inner, &inner.root(), "f", b"abc");
    let met = find(&outer, &outer.root(), "out/in");
    assert!(Arc::ptr_eq(&met, &inner.root()), "one node, since one mount");
    let out = find(&outer, &outer.root(), "out");
    drop(opened);
    evict(&set);
    outer.rename(&DAEMON, (&out, &name("in")), (&outer.root(), &name("moved")), RenameFlags(0)).unwrap();
    // Seen again under its new name: it is still where the inner layer begins.
    assert!(Arc::ptr_eq(&find(&outer, &outer.root(), "moved"), &inner.root()));
    assert_eq!(attr(&inner, &file).size, 3);
    outer.unlink(&inner.root(), &name("f")).unwrap();
    outer.rmdir(&outer.root(), &name("moved")).unwrap();
    assert_eq!(attr(&inner, &inner.root()).nlink, 0);
    assert_eq!(attr(&outer, &file).nlink, 0);
}

#[test]
fn a_directory_that_was_met_before_becomes_a_root() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(source.path().join("out/in")).unwrap();
    let set = set();
    let outer = writable(&set, source.path());
    let met = find(&outer, &outer.root(), "out/in");
    let inner = writable(&set, &source.path().join("out/in"));
    assert!(Arc::ptr_eq(&met, &inner.root()));
    find(&outer, &outer.root(), "out/in");
    // By the name it was met by, for the second time now, it cannot be found any more.
    std::fs::rename(source.path().join("out/in"), source.path().join("elsewhere")).unwrap();
    evict(&set);
    assert_eq!(attr(&inner, &inner.root()).nlink, 2);
    mkdir(&inner, &inner.root(), "d");
    assert!(source.path().join("elsewhere/d").is_dir());
}

#[test]
fn read_only_layers_of_one_directory_know_nothing_of_each_other() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(source.path().join("a/b")).unwrap();
    let set = set();
    let upper = writable(&set, source.path());
    let lowers = [read_only(&set, source.path()), read_only(&set, &source.path().join("a"))];
    for lower in &lowers {
        // On a mount of its own even the same directory is another node.
        assert!(!lower.is_sealed() || !Arc::ptr_eq(&lower.root(), &upper.root()));
    }
    let below = [find(&lowers[0], &lowers[0].root(), "a/b"), find(&lowers[1], &lowers[1].root(), "b")];
    upper.rename(&DAEMON, (&upper.root(), &name("a")), (&upper.root(), &name("z")), RenameFlags(0)).unwrap();
    assert_eq!(
        attr(&lowers[1], &below[1]).ino,
        attr(&lowers[0], &find(&lowers[0], &lowers[0].root(), "z/b")).ino
    );
    assert_eq!(attr(&lowers[0], &below[0]).ino, attr(&lowers[1], &below[1]).ino);
}
