//! What a node has in the lower layers, and how directories of layers hide names of those below.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;
use splicefs_core::Layer;

/// Which lower layer, the topmost being 0: [`Overlay::new`](crate::Overlay::new) takes no more than there are numbers.
pub(crate) type LayerIndex = u16;

/// A node's counterpart in a lower layer.
pub(crate) struct LowerNode<L: Layer> {
    pub(crate) index: LayerIndex,
    pub(crate) node: Arc<L::Node>,
}

impl<L: Layer> LowerNode<L> {
    /// Which layer, the topmost being 0.
    pub(crate) fn layer(&self) -> usize {
        self.index.into()
    }
}

impl<L: Layer> Clone for LowerNode<L> {
    fn clone(&self) -> Self {
        Self { index: self.index, node: self.node.clone() }
    }
}

/// A directory of a lower layer.
pub(crate) struct LowerDir<L: Layer> {
    pub(crate) lower: LowerNode<L>,
    /// What is known of its whiteouts.
    pub(crate) hides: Arc<Hides>,
}

impl<L: Layer> Deref for LowerDir<L> {
    type Target = LowerNode<L>;

    fn deref(&self) -> &Self::Target {
        &self.lower
    }
}

impl<L: Layer> Clone for LowerDir<L> {
    fn clone(&self) -> Self {
        Self { lower: self.lower.clone(), hides: self.hides.clone() }
    }
}

/// Counterparts in lower layers, the topmost first.
pub(crate) struct Lowers<L: Layer> {
    pub(crate) nodes: SmallVec<[LowerNode<L>; 1]>,
    /// Of directories, as many.
    pub(crate) hides: Vec<Arc<Hides>>,
}

impl<L: Layer> Default for Lowers<L> {
    fn default() -> Self {
        Self { nodes: SmallVec::new(), hides: Vec::new() }
    }
}

impl<L: Layer> Lowers<L> {
    /// Adds what is not a directory, below the others.
    pub(crate) fn push(&mut self, lower: LowerNode<L>) {
        self.nodes.push(lower);
    }

    /// Adds a directory below the others.
    pub(crate) fn push_dir(&mut self, LowerDir { lower, hides }: LowerDir<L>) {
        self.push(lower);
        self.hides.push(hides);
    }
}

impl<L: Layer> Deref for Lowers<L> {
    type Target = [LowerNode<L>];

    fn deref(&self) -> &Self::Target {
        &self.nodes
    }
}

/// By what means a directory of one layer hides names of the layers below it, besides devices.
#[derive(Debug, Default)]
pub(crate) struct Hides {
    /// By attributes of regular files.
    pub(crate) xattrs: bool,
    /// By names that begin with `.wh.`, once that has been looked up.
    pub(crate) dots: OnceLock<AtomicBool>,
    /// Of a lower directory: whether entries came from elsewhere (`Mark::Impure`), once that has been read.
    pub(crate) impure: OnceLock<bool>,
}

impl Hides {
    /// For a directory that may hold whiteouts that are attributes.
    pub(crate) fn new(xattrs: bool) -> Arc<Self> {
        Arc::new(Self { xattrs, ..Self::default() })
    }

    /// For a directory that was just made.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self { dots: OnceLock::from(AtomicBool::new(false)), ..Self::default() })
    }

    /// Whether there may be names that begin with `.wh.`.
    pub(crate) fn has_dots(&self) -> bool {
        self.dots.get().is_some_and(|dots| dots.load(Ordering::Acquire))
    }

    /// A name that begins with `.wh.` has been made in the directory.
    pub(crate) fn dot_made(&self) {
        self.dots.get_or_init(|| AtomicBool::new(true)).store(true, Ordering::Release);
    }
}
