//! One change of a node's record at a time.

use parking_lot::{Condvar, Mutex};
use splicefs_core::NodeId;

/// The nodes whose records are being changed. Each change waits for those of the same node alone: it is made by system calls, and a
/// file system that hangs must not hold up changes of other nodes.
///
/// Lock order: a leaf, held over no system call.
#[derive(Debug, Default)]
pub(super) struct Changes {
    nodes: Mutex<Vec<NodeId>>,
    ended: Condvar,
}

/// The record of the node is being changed until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Changing<'a> {
    changes: &'a Changes,
    node: NodeId,
}

impl Changes {
    /// Waits for who changes the record of the same node.
    pub(super) fn begin(&self, node: NodeId) -> Changing<'_> {
        let mut nodes = self.nodes.lock();
        self.ended.wait_while(&mut nodes, |nodes| nodes.contains(&node));
        nodes.push(node);
        Changing { changes: self, node }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.changes.nodes.lock().retain(|node| *node != self.node);
        self.changes.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_for_another_of_the_same_node_alone() {
        let changes = Changes::default();
        let one = changes.begin(NodeId(1));
        drop(changes.begin(NodeId(2)));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(changes.begin(NodeId(1))));
            assert!(!other.is_finished());
            drop(one);
            other.join().unwrap();
        });
    }
}
