//! What the tests of layers share.

use std::path::Path;
use std::sync::Arc;

use splicefs_core::{Attr, Backend, Caller, CreateFlags, Errno, Make, Name, OpenFlags, Result};
use splicefs_passthrough::{File, LayerOptions, LayerSet, Node, Passthrough};

pub(crate) const DAEMON: Caller = Caller::DAEMON;

/// More than descriptors are kept for, whatever the limit of the process.
const MORE_THAN_CACHED: usize = 4200;

/// A set without a mount point.
pub(crate) fn set() -> LayerSet {
    LayerSet::new(None).unwrap()
}

/// `path` as a layer that may be changed.
pub(crate) fn writable(set: &LayerSet, path: &Path) -> Passthrough {
    set.open(&LayerOptions { path: path.to_owned(), noatime: false, read_only: false, lends: true }).unwrap()
}

/// `path` as a layer that may not.
pub(crate) fn read_only(set: &LayerSet, path: &Path) -> Passthrough {
    set.open(&LayerOptions { path: path.to_owned(), noatime: false, read_only: true, lends: true }).unwrap()
}

/// `text` as a name.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// What a path of `/` leads to, below `at`.
pub(crate) fn find(fs: &Passthrough, at: &Arc<Node>, path: &str) -> Arc<Node> {
    path.split('/').fold(at.clone(), |at, part| fs.lookup(&at, &name(part)).unwrap().node)
}

pub(crate) fn attr(fs: &Passthrough, node: &Arc<Node>) -> Attr {
    fs.getattr(node, None).unwrap()
}

pub(crate) fn mkdir(fs: &Passthrough, parent: &Arc<Node>, text: &str) -> Arc<Node> {
    fs.make(&DAEMON, parent, &name(text), Make::Directory(0o755)).unwrap().node
}

/// Makes a file with `bytes` in it.
pub(crate) fn create(fs: &Passthrough, parent: &Arc<Node>, text: &str, bytes: &[u8]) -> (Arc<Node>, File) {
    let flags = CreateFlags { open: OpenFlags(libc::O_RDWR), exclusive: true };
    let (entry, opened) = fs.create(&DAEMON, parent, &name(text), 0o644, flags).unwrap();
    assert_eq!(fs.write(&DAEMON, &opened.file, 0, bytes, Default::default()).unwrap(), bytes.len());
    (entry.node, opened.file)
}

pub(crate) fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => e.errno(),
    }
}

/// Drives the descriptors of all other nodes of the set out of the cache.
pub(crate) fn evict(set: &LayerSet) {
    // Thousands of directories are made in no time in memory.
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    for i in 0..MORE_THAN_CACHED {
        std::fs::create_dir(scratch.path().join(i.to_string())).unwrap();
    }
    let fs = writable(set, scratch.path());
    let root = fs.root();
    let nodes: Vec<_> = (0..MORE_THAN_CACHED).map(|i| find(&fs, &root, &i.to_string())).collect();
    for node in &nodes {
        fs.statfs(node).unwrap();
    }
}

/// Whether the process may mount, in a user namespace perhaps; says so where it may not.
pub(crate) fn privileged() -> bool {
    let caps = rustix::thread::capabilities(None).unwrap().effective;
    let mounts = caps.contains(rustix::thread::CapabilitySet::SYS_ADMIN);
    if !mounts {
        eprintln!("not run: needs the right to mount");
    }
    mounts
}

/// Whether the process is root of the host, with all users and all files; says so where it is not.
pub(crate) fn root_of_the_host() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let host = map.split_whitespace().eq(["0", "0", "4294967295"]) && privileged();
    if !host {
        eprintln!("not run: needs root of the host");
    }
    host
}
