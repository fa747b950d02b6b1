//! What others change past the mount, for backends whose files they can.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::id::NodeId;
use crate::name::Name;

/// What was heard to have changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Contents or attributes of this node.
    Node(NodeId),
    /// Contents or attributes of what this name leads to in this directory.
    Named(NodeId, Name),
    /// What this name leads to in this directory.
    Name(NodeId, Name),
    /// More than was told.
    Anything,
}

/// Hears of changes. It is asked by one thread, which holds no lock and serves no request.
pub trait Listener: Send + Sync {
    /// A descriptor that is readable when there is something to hear.
    fn ready(&self) -> BorrowedFd<'_>;
    /// Hands on to `sink` what was heard so far, and does not wait for more.
    ///
    /// # Errors
    /// Where nothing will be heard any more.
    fn hear(&self, sink: &mut dyn FnMut(Change)) -> Result<()>;
    /// The nodes that a change is of, besides the directory. What a change of a name made uncertain is heard of no longer
    /// ([`crate::Backend::hears`]) until the name is looked up again.
    fn touched(&self, change: &Change) -> Vec<NodeId>;
    /// How many watches there are.
    fn watches(&self) -> usize;
}
