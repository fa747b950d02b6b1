//! Descriptors are bounded. Alone in its process, whose descriptors it counts.

use std::sync::Arc;

use splicefs_core::{Backend, Caller, Make, Name, RenameFlags};
use splicefs_passthrough::{Node, Options, Passthrough};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn mkdir(fs: &Passthrough, parent: &Arc<Node>, text: &str) -> Arc<Node> {
    fs.make(&Caller::DAEMON, parent, &name(text), Make::Directory(0o755)).unwrap().node
}

/// More directories than descriptors are kept for: each is found again, after a rename above it too.
#[test]
fn a_tree_larger_than_the_descriptor_cache_is_found_again() {
    const DIRECTORIES: usize = 5000;
    let source = tempfile::tempdir().unwrap();
    let options = Options {
        source: source.path().to_owned(),
        mount_point: None,
        noatime: false,
        block_devices_as_files: false,
    };
    let fs = Passthrough::new(&options).unwrap();
    let root = fs.root();
    let top = mkdir(&fs, &root, "top");
    let nodes: Vec<_> = (0..DIRECTORIES).map(|i| mkdir(&fs, &top, &i.to_string())).collect();
    for node in &nodes {
        fs.statfs(node).unwrap();
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < DIRECTORIES, "{open} descriptors for {DIRECTORIES} directories");
    fs.rename((&root, &name("top")), (&root, &name("renamed")), RenameFlags(0)).unwrap();
    for (i, node) in nodes.iter().enumerate() {
        fs.statfs(node).unwrap();
        assert!(Arc::ptr_eq(&fs.lookup(&top, &name(&i.to_string())).unwrap().node, node));
    }
}
