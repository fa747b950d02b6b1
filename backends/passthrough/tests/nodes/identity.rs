//! Nodes are found again, and never confused with others, whatever happens to the source.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use crate::common::{mirror, mkdir, name};
use splicefs_core::{Backend, Caller, Errno, OpenFlags, RenameFlags, Result};
use splicefs_passthrough::{Node, Passthrough};

fn lookup(fs: &Passthrough, parent: &Arc<Node>, text: &str) -> Result<Arc<Node>> {
    Ok(fs.lookup(parent, &name(text))?.node)
}

fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => e.errno(),
    }
}

#[test]
fn hard_links_are_one_node() {
    let (fs, source) = mirror();
    std::fs::write(source.path().join("a"), b"x").unwrap();
    std::fs::hard_link(source.path().join("a"), source.path().join("b")).unwrap();
    let (a, b) = (lookup(&fs, &fs.root(), "a").unwrap(), lookup(&fs, &fs.root(), "b").unwrap());
    assert!(Arc::ptr_eq(&a, &b));
}

#[test]
fn a_removed_file_is_reached_as_long_as_its_node_lives() {
    let (fs, source) = mirror();
    std::fs::write(source.path().join("a"), b"abc").unwrap();
    let node = lookup(&fs, &fs.root(), "a").unwrap();
    fs.unlink(&fs.root(), &name("a")).unwrap();
    let attr = fs.getattr(&node, None).unwrap();
    assert_eq!((attr.size, attr.nlink), (3, 0));
    assert_eq!(errno(fs.lookup(&fs.root(), &name("a"))), Errno::ENOENT);
}

#[test]
fn an_overwritten_file_is_reached_as_long_as_its_node_lives() {
    let (fs, source) = mirror();
    std::fs::write(source.path().join("old"), b"old").unwrap();
    std::fs::write(source.path().join("new"), b"newer").unwrap();
    let old = lookup(&fs, &fs.root(), "old").unwrap();
    let new = lookup(&fs, &fs.root(), "new").unwrap();
    let root = fs.root();
    fs.rename(&Caller::DAEMON, (&root, &name("new")), (&root, &name("old")), RenameFlags(0)).unwrap();
    assert_eq!(fs.getattr(&old, None).unwrap().nlink, 0);
    assert_eq!(fs.getattr(&new, None).unwrap().size, 5);
    assert!(Arc::ptr_eq(&lookup(&fs, &root, "old").unwrap(), &new));
}

#[test]
fn what_replaced_a_file_underneath_is_stale_and_is_not_truncated() {
    let (fs, source) = mirror();
    let path = source.path().join("f");
    std::fs::write(&path, b"first").unwrap();
    let node = lookup(&fs, &fs.root(), "f").unwrap();
    // The first inode stays in use, so that its number is not given to the second.
    let _first = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"second").unwrap();
    let flags = OpenFlags(libc::O_WRONLY | libc::O_TRUNC);
    assert_eq!(errno(fs.open(&Caller::DAEMON, &node, flags)), Errno::ESTALE);
    assert_eq!(errno(fs.getattr(&node, None)), Errno::ESTALE);
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
}

#[test]
fn a_link_put_in_a_directorys_place_leads_nowhere() {
    let (fs, source) = mirror();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    std::fs::create_dir(source.path().join("d")).unwrap();
    let directory = lookup(&fs, &fs.root(), "d").unwrap();
    std::fs::remove_dir(source.path().join("d")).unwrap();
    symlink(outside.path(), source.path().join("d")).unwrap();
    assert_eq!(errno(fs.lookup(&directory, &name("secret"))), Errno::ESTALE);
    let link = lookup(&fs, &fs.root(), "d").unwrap();
    assert_eq!(errno(fs.lookup(&link, &name("secret"))), Errno::ENOTDIR);
}

#[test]
fn a_fifo_put_in_a_files_place_holds_no_one() {
    let (fs, source) = mirror();
    let path = source.path().join("f");
    std::fs::write(&path, b"").unwrap();
    let node = lookup(&fs, &fs.root(), "f").unwrap();
    std::fs::remove_file(&path).unwrap();
    mkfifo(&path);
    assert_eq!(errno(fs.open(&Caller::DAEMON, &node, OpenFlags(libc::O_RDONLY))), Errno::ESTALE);
}

fn mkfifo(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// Each node holds its parent; dropping the last of a deep chain must not recurse once a level.
#[test]
fn the_nodes_of_a_deep_tree_are_dropped_without_overflowing_the_stack() {
    const DEPTH: usize = 5_000;
    let (fs, _source) = mirror();
    let mut way = vec![fs.root()];
    for _ in 0..DEPTH {
        let inner = mkdir(&fs, &way[way.len() - 1], "d");
        way.push(inner);
    }
    let deepest = way.pop().unwrap();
    let on_a_small_stack = std::thread::Builder::new().stack_size(64 * 1024);
    // Emptied from the top, the vector leaves the whole chain to the deepest node.
    drop(way);
    on_a_small_stack.spawn(move || drop(deepest)).unwrap().join().unwrap();
    remove_chain(&fs);
}

/// The standard library removes trees recursively, which this one is too deep for.
fn remove_chain(fs: &Passthrough) {
    let mut way = vec![fs.root()];
    while let Ok(inner) = lookup(fs, &way[way.len() - 1], "d") {
        way.push(inner);
    }
    while way.len() > 1 {
        way.pop();
        fs.rmdir(&way[way.len() - 1], &name("d")).unwrap();
    }
}
