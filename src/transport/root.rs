//! The root, reached by a name.
//!
//! The kernel makes the inode of a mount's root before it hears from the daemon that files have ACLs, and so never keeps
//! that one's (`ACL_DONT_CACHE`, `fuse_init_inode` in fs/fuse/inode.c): whoever does not own the root asks for it again with
//! each path that begins there, a GETXATTR for each system call. Until Linux 6.18.42, 6.12.101 and 6.6.148 the first GETATTR of the
//! root mended that by accident. So where the daemon can arrange it (`crate::mount`), the root that is mounted is another
//! inode of the kernel's, found by a name in the one that was made too early, which nobody but the daemon ever sees.

use std::sync::atomic::{AtomicBool, Ordering};

use splicefs_core::NodeId;

/// The name under which the root is found in itself. The mount table shows it.
pub const ROOT_NAME: &str = ".root";

/// The node id that it is found with; no other node comes to have it.
const NAMED: u64 = 1 << 63;

/// The node that the kernel means.
pub(super) fn node(id: u64) -> NodeId {
    if id == NAMED { NodeId::ROOT } else { NodeId(id) }
}

/// Whether the root is reached by its name.
#[derive(Debug, Default)]
pub(super) struct Root(AtomicBool);

impl Root {
    /// Whether it is, from now on.
    pub(super) fn set_named(&self, named: bool) {
        self.0.store(named, Ordering::SeqCst);
    }

    /// What the kernel calls that node.
    pub(super) fn id_of(&self, node: NodeId) -> u64 {
        if node == NodeId::ROOT && self.0.load(Ordering::SeqCst) { NAMED } else { node.0 }
    }

    /// The id to answer with where that name in the directory of that id leads to the root.
    pub(super) fn found(&self, dir: u64, name: &[u8]) -> Option<NodeId> {
        let named = dir == NodeId::ROOT.0 && name == ROOT_NAME.as_bytes() && self.0.load(Ordering::SeqCst);
        named.then_some(NodeId(NAMED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_a_name_where_it_was_arranged_and_nowhere_else() {
        let root = Root::default();
        let name = ROOT_NAME.as_bytes();
        assert_eq!(root.found(NodeId::ROOT.0, name), None);
        assert_eq!(root.id_of(NodeId::ROOT), NodeId::ROOT.0);
        root.set_named(true);
        let named = root.found(NodeId::ROOT.0, name).expect("it has a name");
        assert_eq!((node(named.0), root.id_of(NodeId::ROOT)), (NodeId::ROOT, named.0));
        // Once mounted, it is a directory like any other, where the name may be somebody's.
        assert_eq!(root.found(named.0, name), None);
        assert_eq!(root.found(NodeId::ROOT.0, b"other"), None);
        assert_eq!((node(7), root.id_of(NodeId(7))), (NodeId(7), 7));
    }
}
