//! Renames that are under way, and those that came in between a look and what is remembered of it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use splicefs_core::NodeId;

/// Directories share these many counts, by their ids.
const COUNTS: usize = 64;

/// The renames of a set of nodes.
///
/// A rename is made without any lock: file systems inside the source may hang, and a look-up in one of them must not hold up a
/// rename elsewhere, nor that rename other look-ups. Instead,
/// - the places of nodes are changed under `noting`, over no system call, and each rename is counted for its directories. A
///   look-up compares the count of its directory under the same lock, and looks again where a rename was noted since;
/// - who does not find a node in its place waits for the rename that moves this very node, if there is one.
///
/// Lock order: `noting`, then a node's whereabouts; `under_way` is a leaf.
#[derive(Debug)]
pub(crate) struct Moves {
    counts: [AtomicU64; COUNTS],
    noting: Mutex<()>,
    /// The nodes that lose or change a name just now.
    under_way: Mutex<Vec<NodeId>>,
    ended: Condvar,
}

/// How many renames had been noted of a directory, and of those that share its count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Count(u64);

/// A change of names that is under way, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct UnderWay<'a> {
    moves: &'a Moves,
    nodes: Vec<NodeId>,
}

impl Default for Moves {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            noting: Mutex::default(),
            under_way: Mutex::default(),
            ended: Condvar::new(),
        }
    }
}

impl Moves {
    fn of(&self, dir: NodeId) -> &AtomicU64 {
        &self.counts[usize::try_from(dir.0).unwrap_or(0) % COUNTS]
    }

    /// To be asked before a name of the directory is looked at.
    pub(crate) fn count(&self, dir: NodeId) -> Count {
        Count(self.of(dir).load(Ordering::SeqCst))
    }

    /// Places are changed while the guard lives. What that drops is to outlive the guard.
    pub(crate) fn noting(&self) -> MutexGuard<'_, ()> {
        self.noting.lock()
    }

    /// Names of these directories have changed: to be called under [`Moves::noting`], before the places are.
    pub(crate) fn moved(&self, dirs: [NodeId; 2]) {
        for dir in dirs {
            self.of(dir).fetch_add(1, Ordering::SeqCst);
        }
    }

    /// These nodes are about to lose or to change a name.
    pub(crate) fn begin(&self, nodes: impl IntoIterator<Item = NodeId>) -> UnderWay<'_> {
        let nodes: Vec<_> = nodes.into_iter().collect();
        self.under_way.lock().extend(&nodes);
        UnderWay { moves: self, nodes }
    }

    /// Waits until no change of the node's names is under way; whether there was one.
    pub(crate) fn wait_for(&self, node: NodeId) -> bool {
        let mut under_way = self.under_way.lock();
        let is_moved = under_way.contains(&node);
        self.ended.wait_while(&mut under_way, |under_way| under_way.contains(&node));
        is_moved
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.moves.under_way.lock();
        for node in &self.nodes {
            if let Some(at) = under_way.iter().position(|other| other == node) {
                under_way.swap_remove(at);
            }
        }
        drop(under_way);
        self.moves.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_is_waited_for_by_those_who_look_for_what_it_moves() {
        let moves = Moves::default();
        let (moved, other) = (NodeId(7), NodeId(8));
        let under_way = moves.begin([moved]);
        assert!(!moves.wait_for(other));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| moves.wait_for(moved));
            drop(under_way);
            // Whether it came before or after the end.
            waits.join().unwrap();
        });
        assert!(!moves.wait_for(moved));
    }

    #[test]
    fn a_rename_is_counted_for_its_directories() {
        let moves = Moves::default();
        let (from, to, other) = (NodeId(1), NodeId(2), NodeId(3));
        let before = [from, to, other].map(|dir| moves.count(dir));
        moves.moved([from, to]);
        let after = [from, to, other].map(|dir| moves.count(dir));
        assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2]);
    }
}
