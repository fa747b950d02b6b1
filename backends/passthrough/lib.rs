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
mod node;
mod setattr;
mod stat;
mod tree;
mod xattr;

use std::path::PathBuf;
use std::sync::Arc;

pub use dir::Dir;
pub use file::File;
pub use node::Node;

use tree::Tree;

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
}

/// A mirrored directory.
#[derive(Debug)]
pub struct Passthrough {
    tree: Arc<Tree>,
    noatime: bool,
}

impl Passthrough {
    /// Opens the source, and the mount point underneath the mount to be. To be called before mounting.
    ///
    /// # Errors
    /// Those of opening the two.
    pub fn new(options: &Options) -> std::io::Result<Self> {
        let tree =
            Tree::open(&options.source, options.mount_point.as_deref(), options.block_devices_as_files)
                .map_err(|e| std::io::Error::from_raw_os_error(e.errno().raw()))?;
        Ok(Self { tree, noatime: options.noatime })
    }
}
