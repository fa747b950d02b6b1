//! The splicefs backend that mirrors a source directory.
//!
//! A file's bytes are in the source file: a read is planned as an extent of it, and zeros where the source has a hole.
//! Names lead to nodes by one statx(2) in the parent; a node's `O_PATH` descriptor is opened when something needs it,
//! kept in an LRU with a bound, and found again by name and checked identity afterwards. Nothing ever walks a path of
//! more than one component, so a source that is changed underneath cannot lead anything outside.

mod backend;
mod change;
mod descriptors;
mod dir;
mod file;
mod fsclass;
mod heed;
mod layer;
mod lend;
mod modes;
mod moves;
mod node;
mod process;
mod recent;
mod setattr;
mod stat;
mod taking;
mod tree;
mod unmapped;
mod watch;
mod whiteout;
mod xattr;

use std::path::PathBuf;
use std::sync::Arc;

use splicefs_core::{Errno, Result};

pub use dir::Dir;
pub use file::File;
pub use layer::{LayerOptions, LayerSet};
pub use node::Node;

use fsclass::FsClass;
use layer::Held;
use node::Nodes;
use tree::{Covered, Tree, open_directory};
use watch::Watches;

/// What is mirrored, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source directory.
    pub source: PathBuf,
    /// The mount point, if it may lie inside the source: the directory that is mounted over is shown as it is
    /// underneath, so that the mount never walks into itself.
    pub mount_point: Option<PathBuf>,
    /// Reading leaves the access times of the source alone (`O_NOATIME`), where the daemon may ask for that.
    pub noatime: bool,
    /// Block devices appear as regular files of their real size that can only be read.
    pub block_devices_as_files: bool,
    /// Changes by others are heard of (inotify), as far as that can be had.
    pub listen: bool,
}

/// A mirrored directory: one that is served, or a layer of several ([`LayerSet`]).
#[derive(Debug)]
pub struct Passthrough {
    tree: Arc<Tree>,
    noatime: bool,
    /// Nothing is ever changed through this.
    read_only: bool,
    /// The daemon lends itself rights to what is its own ([`lend`]).
    lends: bool,
    held: Held,
    /// It is served itself, and no layer.
    is_served: bool,
    /// Why no changes are heard of.
    deaf: Option<Errno>,
}

/// Whether the files of the file system that holds `path` have true sizes, as far as is known: those of procfs and its kind have
/// not, and must be opened each time.
///
/// # Errors
/// Those of statfs(2).
pub fn sizes_are_true(path: &std::path::Path) -> std::io::Result<bool> {
    Ok(FsClass::of_path(path)?.is_true_to_size())
}

/// Whether errors of writing may be told when a file is closed, and not before, on the file system that holds `path` (NFS).
///
/// # Errors
/// Those of statfs(2).
pub fn tells_late(path: &std::path::Path) -> std::io::Result<bool> {
    Ok(FsClass::of_path(path)?.tells_late())
}

impl Passthrough {
    /// Opens the source, and the mount point underneath the mount to be. To be called before mounting.
    ///
    /// # Errors
    /// Those of opening the two.
    pub fn new(options: &Options) -> std::io::Result<Self> {
        Self::open(options).map_err(|e| std::io::Error::from_raw_os_error(e.errno().raw()))
    }

    fn open(options: &Options) -> Result<Self> {
        let fd = open_directory(&options.source)?;
        let covered = options.mount_point.as_deref().map(Covered::open).transpose()?.flatten().map(Arc::new);
        let (watches, deaf) = match options.listen.then(Watches::new) {
            None => (None, Some(Errno::EOPNOTSUPP)),
            Some(Err(e)) => (None, Some(e.into())),
            Some(Ok(watches)) => (Some(watches), None),
        };
        let tree = Tree::open(Nodes::new(watches), fd, covered, options.block_devices_as_files)?;
        let root = tree.root();
        tree.watch(&root, || tree.descriptor(&root));
        Ok(Self {
            tree,
            noatime: options.noatime,
            read_only: false,
            lends: false,
            held: Held::default(),
            is_served: true,
            deaf,
        })
    }
}
