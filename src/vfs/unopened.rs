//! Files that the kernel reads and writes without having opened them (zero-message opens): after one OPEN was answered
//! `ENOSYS` it asks to open nothing more (`fc->no_open` in fs/fuse/file.c), and names the node alone.
//!
//! What was used last stays open here, by node and by what it is used for; it goes when the kernel forgets the node. What is open
//! for writing goes soon after the last write, too, since nobody tells when the last descriptor is closed: a file that is open for
//! writing cannot be run (`ETXTBSY`), nor its file system be made read-only. It is opened again for the next write.

use std::io;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use splicefs_core::{Backend, Caller, Errno, HandleId, Identified, NodeId, OpenFlags, Opened, Result, sys};

use super::{Handle, OpenFile, Used, Vfs, Way};
use crate::idle::{IdleThread, IdleTimer};

/// The part of the descriptor limit that these files may hold; as many are the backends'.
const SHARE: u64 = 4;
const AT_LEAST: u64 = 16;
const AT_MOST: u64 = 1024;

/// The number that requests carry in place of a handle. No open file has it ([`splicefs_core::HandleTable`]).
pub(super) const NO_HANDLE: HandleId = HandleId(0);

/// The file that a request means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRef {
    /// Its node.
    pub node: NodeId,
    /// The open file, if it has been opened.
    pub handle: HandleId,
    /// What the caller has opened it with; nothing where the request does not tell.
    pub flags: OpenFlags,
}

impl FileRef {
    /// Whether it was not opened.
    pub(super) fn is_unopened(&self) -> bool {
        self.handle == NO_HANDLE
    }
}

/// What a file is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Use {
    /// Contents or attributes are read.
    Read,
    /// Contents are changed, and perhaps read.
    Write,
}

impl Use {
    fn flags(self) -> OpenFlags {
        OpenFlags(match self {
            Self::Read => libc::O_RDONLY,
            Self::Write => libc::O_RDWR,
        })
    }
}

/// What an open file can serve: a use, past the page cache (`O_DIRECT`) or not.
type Kind = (Use, bool);

const KINDS: [Kind; 4] = [(Use::Read, false), (Use::Write, false), (Use::Read, true), (Use::Write, true)];

type Key = (NodeId, Kind);

/// An open file.
struct Kept<B: Backend> {
    open: Arc<OpenFile<B>>,
    /// The tick at which it was used last.
    used: u64,
}

struct Files<B: Backend> {
    kept: LruCache<Key, Kept<B>>,
    /// Counts the ticks of the idle timer.
    tick: u64,
}

/// The files used last. One that falls out while it is in use lives until its user is done.
///
/// Lock order: a leaf, held over no system call: what falls out is closed after the lock.
pub(super) struct Unopened<B: Backend> {
    files: Mutex<Files<B>>,
    timer: Arc<IdleTimer>,
}

impl<B: Backend> Unopened<B> {
    /// A cache for the descriptor limit (`RLIMIT_NOFILE`) in force, which starts `timer` when something is open for writing.
    pub(super) fn new(timer: Arc<IdleTimer>) -> Self {
        let kept = LruCache::new(sys::descriptor_share(SHARE, AT_LEAST, AT_MOST));
        Self { files: Mutex::new(Files { kept, tick: 0 }), timer }
    }

    fn get(&self, key: &Key) -> Option<Arc<OpenFile<B>>> {
        let mut files = self.files.lock();
        let tick = files.tick;
        let kept = files.kept.get_mut(key)?;
        kept.used = tick;
        Some(kept.open.clone())
    }

    fn put(&self, key: Key, open: Arc<OpenFile<B>>) {
        let _closed_after_the_lock = {
            let mut files = self.files.lock();
            let used = files.tick;
            files.kept.push(key, Kept { open, used })
        };
        let (_, (what, _)) = key;
        if what == Use::Write {
            self.timer.start();
        }
    }

    /// A tick of the timer: closes what is open for writing and was not used for a whole tick. Says whether more is open for
    /// writing.
    fn close_idle_writers(&self) -> bool {
        let mut more = false;
        let _closed_after_the_lock: Vec<_> = {
            let mut files = self.files.lock();
            files.tick += 1;
            let tick = files.tick;
            let mut idle = Vec::new();
            for (key, kept) in files.kept.iter().filter(|((_, (what, _)), _)| *what == Use::Write) {
                if kept.used + 1 < tick && Arc::strong_count(&kept.open) == 1 {
                    idle.push(*key);
                } else {
                    more = true;
                }
            }
            idle.iter().filter_map(|key| files.kept.pop(key)).collect()
        };
        more
    }

    /// The kernel has forgotten the node.
    pub(super) fn forget(&self, id: NodeId) {
        let _closed_after_the_lock = {
            let kept = &mut self.files.lock().kept;
            if kept.is_empty() { Default::default() } else { KINDS.map(|kind| kept.pop(&(id, kind))) }
        };
    }

    /// Closes half of what is open.
    fn shed(&self) {
        let _closed_after_the_lock: Vec<_> = {
            let kept = &mut self.files.lock().kept;
            let half = kept.len().div_ceil(2);
            std::iter::from_fn(|| kept.pop_lru()).take(half).collect()
        };
    }
}

impl<B: Backend> OpenFile<B> {
    /// A file that the kernel did not ask us to open.
    fn unasked(node: Arc<B::Node>, used: Arc<Used>, file: B::File, writes: bool) -> Self {
        Self { node, used, file, made_for_caller: false, way: Way::Direct, writes, runs: false }
    }
}

impl<B: Backend> Vfs<B> {
    /// Starts the thread that closes what was not written for a moment, where files are not opened.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn close_idle_writers(self: &Arc<Self>) -> io::Result<Option<IdleThread>> {
        if !self.caching.unopened {
            return Ok(None);
        }
        let vfs = self.clone();
        IdleThread::start(self.unopened.timer.clone(), move || vfs.unopened.close_idle_writers()).map(Some)
    }

    /// The open file that a request means: the one that it names, or one of the node if it names none.
    pub(super) fn opened(&self, file: FileRef, what: Use) -> Result<Arc<OpenFile<B>>> {
        if !file.is_unopened() {
            return self.files.get(file.handle);
        }
        if !self.caching.unopened {
            return Err(Errno::EBADF.into());
        }
        let key = (file.node, (what, file.flags.has(libc::O_DIRECT)));
        if let Some(open) = self.unopened.get(&key) {
            return Ok(open);
        }
        let (open, lasts) = self.open_unasked(key.0, key.1)?;
        let open = Arc::new(open);
        if lasts {
            self.unopened.put(key, open.clone());
        }
        Ok(open)
    }

    /// A file that was created and so is open. The kernel is given no handle for it: it would not tell when it is closed
    /// (`fuse_file_put` in fs/fuse/file.c).
    pub(super) fn keep_unopened(
        &self,
        node: Arc<B::Node>,
        opened: Opened<B::File>,
        flags: OpenFlags,
    ) -> Handle {
        let writes = flags.writes();
        let what = if writes { Use::Write } else { Use::Read };
        let key = (node.id(), (what, flags.has(libc::O_DIRECT)));
        let used = self.nodes.state(&node);
        let open = OpenFile::unasked(node, used, opened.file, writes);
        self.unopened.put(key, Arc::new(open));
        Handle {
            id: NO_HANDLE,
            way: Way::Cached,
            keep: self.caching.keeps_contents(),
            direct: false,
            stream: false,
            closes_silently: !writes,
        }
    }

    /// The open file of a request that may name one.
    pub(super) fn opened_if_any(&self, handle: Option<HandleId>) -> Result<Option<Arc<OpenFile<B>>>> {
        handle.filter(|handle| *handle != NO_HANDLE).map(|handle| self.files.get(handle)).transpose()
    }

    /// Opens a node for requests that name no open file; and says whether it may serve others later.
    fn open_unasked(&self, id: NodeId, (what, direct): Kind) -> Result<(OpenFile<B>, bool)> {
        let node = self.node(id)?;
        // The caller was checked when it opened the file, which was the kernel's to do.
        let open = |flags: OpenFlags| self.backend.open(&Caller::DAEMON, &node, flags);
        let wanted = OpenFlags(what.flags().0 | if direct { libc::O_DIRECT } else { 0 });
        let mut opened = open(wanted);
        if opened.as_ref().is_err_and(|e| matches!(e.errno(), Errno::EMFILE | Errno::ENFILE)) {
            self.unopened.shed();
            opened = open(wanted);
        }
        let mut lasts = true;
        let opened = match opened {
            // A file system without O_DIRECT would have refused the open, which nobody asked it for.
            Err(e) if direct && e.errno() == Errno::EINVAL => open(what.flags()),
            // A file that only grows is opened to append, and not for those who come when it need not only grow any more.
            Err(e) if what == Use::Write && e.errno() == Errno::EPERM => {
                lasts = false;
                open(OpenFlags(libc::O_WRONLY | libc::O_APPEND))
            }
            // Some files may be written and not read.
            Err(e) if what == Use::Write && e.errno() == Errno::EACCES => open(OpenFlags(libc::O_WRONLY)),
            opened => opened,
        };
        let Opened { file, direct_io, changed, .. } = opened?;
        if direct_io {
            // A file of procfs and its kind, whose size says nothing: the kernel would take it for empty.
            return Err(Errno::EOPNOTSUPP.into());
        }
        if changed {
            self.attributes_changed(id);
        }
        let writes = what == Use::Write;
        let used = self.nodes.state(&node);
        Ok((OpenFile::unasked(node, used, file, writes), lasts))
    }
}
