//! The splicefs backend that merges layers as the kernel's overlayfs does (Documentation/filesystems/overlayfs.rst).
//!
//! - what the layers have under a name: `resolve`, with the marks they leave on disk (`marks`, `origin`)
//! - nodes, what they have in lower layers, and their inode numbers: `node`, `lowers`, `inode`
//! - bringing things up: `copyup`, `data`, and `work`, the directory where changes are prepared
//! - what a copy takes over besides the data: `attributes`, `copyup_owner`, `protect`; layers with owners in an attribute: `recorded`
//! - changes: `create`, `remove`, `rename`, `xattr`; directories: `listing` and `stream`; open files: `file`
//!
//! No data passes through here: an open file is a file of one of the layers, and the plan of a read is that layer's. A
//! lower layer is only ever opened for reading. The order of locks stands at [`Node`].

mod attributes;
mod backend;
mod config;
mod copyup;
mod copyup_owner;
mod create;
mod data;
mod entries;
mod file;
mod index;
mod inode;
mod listing;
mod lowers;
mod marks;
mod node;
mod origin;
mod owners;
mod protect;
mod recorded;
mod remove;
mod rename;
mod resolve;
mod stream;
mod uptree;
mod version;
mod work;
mod xattr;

use std::fmt;
use std::sync::Arc;

use splicefs_core::{Errno, FileKind, Layer, Result};

pub use config::{Config, CopyupOwner, Namespace, Redirect, Xino};
pub use file::File;
pub use node::Node;
pub use owners::{IdRange, Ids, Owners};
pub use recorded::{Recorded, RecordedFile, Records};
pub use stream::Dir;

use copyup_owner::ChangedOwners;
use inode::Numbers;
use lowers::{Hides, LayerIndex, LowerDir, LowerNode, Lowers};
use marks::{Marks, Opaque};
use node::{Nodes, Parts, Place};
use work::Changes;

/// A layer that is never written.
pub struct Lower<L: Layer> {
    /// The layer; its root is what is merged.
    pub layer: L,
    /// The layer's names are not merged: it only holds the contents of files whose attributes are above (`::DATA`).
    pub data_only: bool,
}

/// The layer that takes the changes.
pub struct Upper<U: Layer> {
    /// The layer that holds the two directories.
    pub layer: U,
    /// What is merged (`upperdir=`).
    pub root: Arc<U::Node>,
    /// Where changes are prepared (`workdir=`), on the same file system.
    pub work: Arc<U::Node>,
}

/// Merged layers.
pub struct Overlay<L: Layer, U: Layer> {
    config: Config,
    marks: Marks,
    numbers: Numbers,
    lowers: Vec<Lower<L>>,
    lower_roots: Vec<LowerDir<L>>,
    /// Of each lower layer, whether its files have handles.
    has_handles: Vec<bool>,
    upper: Option<Changes<U>>,
    nodes: Arc<Nodes<L, U>>,
    root: Arc<Node<L, U>>,
    /// Nodes whose copies have another owner than the lower files.
    changed_owners: ChangedOwners,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Merges `lowers`, the topmost first, under `upper`. Without an upper layer, every change is refused (`EROFS`).
    ///
    /// # Errors
    /// `EINVAL` without any layer, or with more than 65,536; those of reading the roots and of preparing the work directory.
    pub fn new(config: Config, lowers: Vec<Lower<L>>, upper: Option<Upper<U>>) -> Result<Self> {
        let marks = Marks(config.namespace);
        let lower_roots = lower_roots(marks, &lowers)?;
        let file_systems = upper.iter().map(|upper| upper.layer.file_system());
        let file_systems = file_systems.chain(lowers.iter().map(|lower| lower.layer.file_system()));
        let numbers = Numbers::new(file_systems, config.xino);
        let mut merged = Lowers::default();
        for root in lower_roots.iter().filter(|root| !lowers[root.layer()].data_only) {
            merged.push_dir(root.clone());
        }
        let (ino, root, hides) = match &upper {
            Some(Upper { layer, root, .. }) => {
                let ino = numbers.shown(layer.file_system(), layer.getattr(root, None)?.ino);
                let hides = Hides::new(marks.opaque(layer, root)? == Opaque::XattrWhiteouts);
                (ino, Some(root.clone()), Some(hides))
            }
            None => {
                let first = merged.first().ok_or(Errno::EINVAL)?;
                let layer = &lowers[first.layer()].layer;
                (numbers.shown(layer.file_system(), layer.getattr(&first.node, None)?.ino), None, None)
            }
        };
        let has_handles =
            lower_roots.iter().map(|root| Ok(lowers[root.layer()].layer.handle(&root.node)?.is_some()));
        let has_handles = has_handles.collect::<Result<_>>()?;
        let upper = upper.map(|upper| Changes::prepare(upper, &config)).transpose()?;
        let nodes = Nodes::new();
        let parts = Parts::new(FileKind::Directory, ino, Place::Root);
        let root = nodes.intern(None, Parts { upper: root, lowers: merged, hides, ..parts });
        let changed_owners = ChangedOwners::default();
        Ok(Self {
            config,
            marks,
            numbers,
            lowers,
            lower_roots,
            has_handles,
            upper,
            nodes,
            root,
            changed_owners,
        })
    }

    /// The upper layer.
    fn changes(&self) -> Result<&Changes<U>> {
        Ok(self.upper.as_ref().ok_or(Errno::EROFS)?)
    }

    /// The topmost counterpart of a node that is in lower layers.
    fn topmost(node: &Node<L, U>) -> Result<&LowerNode<L>> {
        Ok(node.lowers().first().ok_or(Errno::ESTALE)?)
    }
}

fn lower_roots<L: Layer>(marks: Marks, lowers: &[Lower<L>]) -> Result<Vec<LowerDir<L>>> {
    let root = |(number, lower): (usize, &Lower<L>)| {
        let index = LayerIndex::try_from(number).map_err(|_| Errno::EINVAL)?;
        let node = lower.layer.root();
        let xattrs = marks.opaque(&lower.layer, &node)? == Opaque::XattrWhiteouts;
        Ok(LowerDir { lower: LowerNode { index, node }, hides: Hides::new(xattrs) })
    };
    lowers.iter().enumerate().map(root).collect()
}

impl<L: Layer, U: Layer> fmt::Debug for Overlay<L, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay").field("config", &self.config).finish_non_exhaustive()
    }
}
