//! Mirrored directories as the layers of an overlay.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use splicefs_core::sys::mount::seal;
use splicefs_core::{Errno, FileHandle, FileKind, Layer, Name, Result, sys};

use crate::lend::directory_of;
use crate::node::Nodes;
use crate::stat;
use crate::tree::{Covered, Tree, open_directory};
use crate::whiteout::Whiteouts;
use crate::{File, Node, Passthrough};

/// A directory that becomes a layer, and how.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// The directory.
    pub path: PathBuf,
    /// Reading leaves access times alone, where the daemon may ask for that (`O_NOATIME`). Those of a read-only layer
    /// are left alone in any case.
    pub noatime: bool,
    /// Every change is refused (`EROFS`).
    ///
    /// Where the daemon has the right to mount, the layer is reached through a clone of its mount that is nobody else's, is
    /// read-only and so notes no access times, as the kernel's overlayfs does it (`clone_private_mount` in fs/namespace.c):
    /// then the kernel refuses what this code might forget to. File systems mounted inside the layer are not in the
    /// clone; without that right they are seen, as below any mirrored directory.
    pub read_only: bool,
    /// The daemon may change the mode of what is its own for a moment, where it may not do what the kernel has allowed. Never of a read-only
    /// layer.
    pub lends: bool,
}

/// The layers of one overlay: they share the bound on descriptors, and no two nodes of theirs have one id.
#[derive(Debug)]
pub struct LayerSet {
    nodes: Arc<Nodes>,
    covered: Option<Arc<Covered>>,
}

/// What a layer keeps for the questions of [`Layer`].
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// The layer's own clone of its mount, which lasts as long as the descriptor of its root.
    pub(crate) sealed: bool,
    /// The file system's, once somebody asked: a mirrored directory that is no layer never needs it.
    uuid: OnceLock<[u8; 16]>,
    /// The root, open for reading, once a handle had to be opened.
    readable: OnceLock<OwnedFd>,
    whiteouts: Whiteouts,
}

fn io_error(e: &splicefs_core::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno().raw())
}

impl LayerSet {
    /// A set without layers yet, of an overlay that is to be mounted on `mount_point`: a layer that contains it shows it
    /// as it is underneath. To be called before mounting.
    ///
    /// # Errors
    /// Those of opening the mount point.
    pub fn new(mount_point: Option<&Path>) -> io::Result<Self> {
        let covered = mount_point.map(Covered::open).transpose().map_err(|e| io_error(&e))?.flatten();
        Ok(Self { nodes: Nodes::new(None), covered: covered.map(Arc::new) })
    }

    /// Opens a layer. To be called before mounting.
    ///
    /// The id of its root is [`splicefs_core::NodeId::ROOT`] in the first layer alone: a layer of a set is to be composed,
    /// not to be served.
    ///
    /// # Errors
    /// Those of opening the directory.
    pub fn open(&self, options: &LayerOptions) -> io::Result<Passthrough> {
        self.open_layer(options).map_err(|e| io_error(&e))
    }

    fn open_layer(&self, options: &LayerOptions) -> Result<Passthrough> {
        let sealed = if options.read_only { sealed_clone(&options.path) } else { None };
        let is_sealed = sealed.is_some();
        let fd = sealed.map_or_else(|| open_directory(&options.path), Ok)?;
        // What is mounted later is not in a clone. What is underneath is there to be seen, and on the clone's own mount.
        let covered = if is_sealed { None } else { self.covered.clone() };
        if options.lends && !options.read_only {
            self.nodes.modes.allow();
        }
        let tree = Tree::open(self.nodes.clone(), fd, covered, false)?;
        if tree.root().identity().kind() != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        let held = Held { sealed: is_sealed, ..Held::default() };
        let noatime = options.noatime || options.read_only;
        let read_only = options.read_only;
        let lends = options.lends && !read_only;
        Ok(Passthrough { tree, noatime, read_only, lends, held, is_served: false, deaf: None })
    }
}

/// A mount of `path` that is nobody else's and that cannot be written; `None` where the daemon may not have one. It is
/// gone with the descriptor.
fn sealed_clone(path: &Path) -> Option<OwnedFd> {
    let clone = || -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = open_tree(CWD, path, flags)?;
        seal(&fd)?;
        Ok(fd)
    };
    // A path that leads nowhere is refused by what comes instead of this, and by its own name.
    clone().inspect_err(|e| log::debug!("no read-only mount of {} for the layer: {e}", path.display())).ok()
}

/// Zeros where the file system has none, or the daemon may not ask.
fn uuid(tree: &Tree) -> [u8; 16] {
    let root = tree.open_node(&tree.root(), OFlags::RDONLY | OFlags::DIRECTORY);
    root.and_then(sys::ioctl::file_system_uuid).unwrap_or_default()
}

impl Passthrough {
    /// Opens a second directory, `path`, which lies on the same file system and is reached through the same mount as the
    /// root, so that files can be renamed between the two: the work directory beside an upper layer. Every method takes
    /// nodes below it, and it can be reached whatever becomes of its name.
    ///
    /// # Errors
    /// `EXDEV` where it is on another mount or file system; else those of opening it.
    pub fn adopt(&self, path: &Path) -> io::Result<Arc<Node>> {
        self.tree.adopt(path).map_err(|e| io_error(&e))
    }

    /// Whether the kernel refuses every change of this layer, through a mount of its own ([`LayerOptions::read_only`]).
    pub fn is_sealed(&self) -> bool {
        self.held.sealed
    }

    /// The root, open for reading: open_by_handle_at(2) takes no `O_PATH` descriptor for a mount.
    fn readable_root(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.held.readable.get() {
            return Ok(fd.as_fd());
        }
        let fd = self.tree.open_node(&self.tree.root(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(self.held.readable.get_or_init(|| fd).as_fd())
    }
}

impl Layer for Passthrough {
    const COUNTS_OPENS: bool = false;

    fn tells_late(&self) -> Result<bool> {
        Ok(self.tree.class(&self.tree.root())?.tells_late())
    }

    fn file_system(&self) -> u64 {
        self.tree.root_dev()
    }

    fn uuid(&self) -> [u8; 16] {
        *self.held.uuid.get_or_init(|| uuid(&self.tree))
    }

    fn handle(&self, node: &Arc<Node>) -> Result<Option<FileHandle>> {
        let look = || sys::handle::of(self.tree.descriptor(node)?.as_fd());
        self.allowed(|| directory_of(node).into_iter().collect(), look)
    }

    fn inode_of(&self, handle: &FileHandle) -> Result<Option<u64>> {
        match sys::handle::open(self.readable_root()?, handle, OFlags::PATH) {
            Ok(fd) => {
                let st = stat::of_fd(&fd)?;
                Ok(Some(self.tree.shown_ino(st.stx_ino, stat::device(&st))))
            }
            // The file is gone, or its file system does not know such a handle.
            Err(e) if matches!(e.errno(), Errno::ESTALE | Errno::EINVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn make_whiteout(&self, dir: &Arc<Node>, name: &Name) -> Result<()> {
        // Nobody is to know it, so that it need not be looked at.
        let make = || {
            let dir = self.tree.descriptor(dir)?;
            self.held.whiteouts.make(&self.tree.nodes.descriptors, dir.as_fd(), name)
        };
        self.allowed(|| vec![dir.clone()], make)
    }

    fn release_whiteout(&self) {
        self.held.whiteouts.release();
    }

    fn descriptor<'f>(&self, file: &'f File) -> Option<BorrowedFd<'f>> {
        file.pages()
    }
}
