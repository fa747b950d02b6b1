//! Descriptors are bounded. Alone in its process, whose descriptors it counts.

#[path = "nodes/common.rs"]
mod common;

use std::sync::Arc;

use common::{mirror, mkdir, name};
use splicefs_core::{Backend, RenameFlags};

/// More directories than descriptors are kept for: each is found again, after a rename above it too.
#[test]
fn a_tree_larger_than_the_descriptor_cache_is_found_again() {
    const DIRECTORIES: usize = 5000;
    let (fs, _source) = mirror();
    let root = fs.root();
    let top = mkdir(&fs, &root, "top");
    let nodes: Vec<_> = (0..DIRECTORIES).map(|i| mkdir(&fs, &top, &i.to_string())).collect();
    for node in &nodes {
        fs.statfs(node).unwrap();
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < DIRECTORIES, "{open} descriptors for {DIRECTORIES} directories");
    fs.rename(
        &splicefs_core::Caller::DAEMON,
        (&root, &name("top")),
        (&root, &name("renamed")),
        RenameFlags(0),
    )
    .unwrap();
    for (i, node) in nodes.iter().enumerate() {
        fs.statfs(node).unwrap();
        assert!(Arc::ptr_eq(&fs.lookup(&top, &name(&i.to_string())).unwrap().node, node));
    }
}
