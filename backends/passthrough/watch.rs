//! Watches on the source by inotify(7): which nodes' changes are heard of, and under which names they were found.
//!
//! A directory is watched from when it is looked up to when its node goes. That tells of its names, and of the contents and
//! attributes of the files under them. A file of several names is watched itself, since it may be changed by a name elsewhere.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno as Os;
use splicefs_core::{Change, FileKind, Identified, Name, NodeId, Result};

use crate::node::{Node, Place};
use crate::tree::path_of;

/// Everything that others can change. A store through a mapping is told of when the file is closed and unmapped.
const EVENTS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);
/// Those after which a name leads elsewhere.
const OF_NAMES: ReadFlags =
    ReadFlags::CREATE.union(ReadFlags::DELETE).union(ReadFlags::MOVED_FROM).union(ReadFlags::MOVED_TO);
/// Events are read in pieces of this many bytes.
const BUFFER: usize = 64 * 1024;

/// A number that grows with each watch and each name that is added: what is heard of under the same number was so all the time.
type Since = u64;

#[derive(Debug, Default)]
struct Table {
    /// The nodes of each watch: several where mounts show one directory several times.
    nodes: HashMap<i32, Vec<(NodeId, Weak<Node>)>>,
    watches: HashMap<NodeId, (i32, Since)>,
    /// What was found in watched directories since they are watched; of files of one name only.
    names: HashMap<NodeId, HashMap<Name, (NodeId, Since)>>,
}

/// The watches of one source.
///
/// Lock order: the table comes after a node's whereabouts and is a leaf; no node is dropped under it. It is held over the calls
/// that add and remove a watch, which look at no file system but procfs, so that it agrees with the kernel's.
#[derive(Debug)]
pub(crate) struct Watches {
    inotify: OwnedFd,
    table: Mutex<Table>,
    last: AtomicU64,
    /// It was said that there are too many.
    complained: AtomicBool,
}

impl Watches {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            table: Mutex::default(),
            last: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        })
    }

    /// Readable when something was heard.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.lock().nodes.len()
    }

    /// To be asked before a file is looked at: what is heard of since then or longer will tell of every change after that look.
    pub(crate) fn begin(&self) -> Since {
        self.last.load(Ordering::SeqCst)
    }

    fn next(&self) -> Since {
        self.last.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Since when changes of the node are heard of.
    pub(crate) fn hears(&self, node: &Node) -> Option<Since> {
        // Declared before the lock: what may be the last reference to a directory goes after it.
        let place = node.place();
        let table = self.table.lock();
        if let Some((_, since)) = table.watches.get(&node.id()) {
            return Some(*since);
        }
        let Place::At(parent, name) = &place else { return None };
        let (id, since) = table.names.get(&parent.id())?.get(name)?;
        (*id == node.id()).then_some(*since)
    }

    /// Whether the node has a watch of its own, and had it at `begun`.
    pub(crate) fn is_watched(&self, node: &Node, begun: Since) -> bool {
        self.table.lock().watches.get(&node.id()).is_some_and(|(_, since)| *since <= begun)
    }

    /// Watches what `fd` has open, which is `node`. Returns whether it is watched.
    pub(crate) fn add(&self, node: &Arc<Node>, fd: &OwnedFd) -> bool {
        let mut table = self.table.lock();
        if table.watches.contains_key(&node.id()) {
            return true;
        }
        match add_watch(&self.inotify, path_of(fd), EVENTS) {
            Ok(watch) => {
                table.watches.insert(node.id(), (watch, self.next()));
                table.nodes.entry(watch).or_default().push((node.id(), Arc::downgrade(node)));
                true
            }
            Err(e) => {
                drop(table);
                self.complain(e);
                false
            }
        }
    }

    fn complain(&self, e: Os) {
        if e == Os::NOSPC && !self.complained.swap(true, Ordering::Relaxed) {
            log::warn!(
                "there are as many watches as the user may have (fs.inotify.max_user_watches): what is not watched is kept for a second"
            );
        } else {
            log::debug!("a file of the source is not watched: {e}");
        }
    }

    /// `node`, a file of one name, was found under `name` in `parent` by a look that began at `begun`.
    pub(crate) fn named(&self, parent: &Node, name: &Name, node: &Node, begun: Since) {
        let mut table = self.table.lock();
        if table.watches.get(&parent.id()).is_none_or(|(_, since)| *since > begun) {
            return;
        }
        let names = table.names.entry(parent.id()).or_default();
        if names.get(name).is_none_or(|(id, _)| *id != node.id()) {
            names.insert(name.clone(), (node.id(), self.next()));
        }
    }

    /// The node is no longer heard of by its name.
    pub(crate) fn unnamed(&self, node: NodeId, place: &Place) {
        let Place::At(parent, name) = place else { return };
        let mut table = self.table.lock();
        if let Some(names) = table.names.get_mut(&parent.id())
            && names.get(name).is_some_and(|(id, _)| *id == node)
        {
            names.remove(name);
        }
    }

    /// The node goes.
    pub(crate) fn gone(&self, node: NodeId) {
        let mut table = self.table.lock();
        table.names.remove(&node);
        let Some((watch, _)) = table.watches.remove(&node) else { return };
        let Some(nodes) = table.nodes.get_mut(&watch) else { return };
        nodes.retain(|(id, _)| *id != node);
        if nodes.is_empty() {
            table.nodes.remove(&watch);
            if let Err(e) = remove_watch(&self.inotify, watch) {
                // It went with its directory, which an event says that was not read yet.
                log::debug!("a watch is gone: {e}");
            }
        }
    }

    /// The node that was found under `name` in the directory. It is forgotten that it was if it leads elsewhere now.
    pub(crate) fn child(&self, dir: NodeId, name: &Name, leads_elsewhere: bool) -> Option<NodeId> {
        let mut table = self.table.lock();
        let names = table.names.get_mut(&dir)?;
        let found = if leads_elsewhere { names.remove(name) } else { names.get(name).copied() };
        found.map(|(id, _)| id)
    }

    /// A watched node, if it lives.
    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        let table = self.table.lock();
        let (watch, _) = table.watches.get(&id)?;
        table.nodes.get(watch)?.iter().find(|(other, _)| *other == id)?.1.upgrade()
    }

    /// Nothing that was found is certain any more.
    pub(crate) fn forget_names(&self) {
        self.table.lock().names.clear();
    }

    /// Hands on what was heard.
    pub(crate) fn hear(&self, sink: &mut dyn FnMut(Change)) -> Result<()> {
        let mut buffer = [const { MaybeUninit::uninit() }; BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().and_then(|name| Name::new(name.to_bytes()).ok());
                    self.meant(event.wd(), event.events(), name.as_ref(), sink);
                    if reader.is_buffer_empty() {
                        return Ok(());
                    }
                }
                Err(Os::AGAIN) => return Ok(()),
                Err(Os::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn meant(&self, watch: i32, events: ReadFlags, name: Option<&Name>, sink: &mut dyn FnMut(Change)) {
        if events.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT) {
            sink(Change::Anything);
        }
        let mut table = self.table.lock();
        let ids: Vec<NodeId> = table.nodes.get(&watch).into_iter().flatten().map(|(id, _)| *id).collect();
        if events.contains(ReadFlags::IGNORED) {
            table.nodes.remove(&watch);
            for id in &ids {
                table.watches.remove(id);
                table.names.remove(id);
            }
        }
        drop(table);
        for id in ids {
            match name {
                Some(name) if events.intersects(OF_NAMES) => sink(Change::Name(id, name.clone())),
                // A directory is watched itself.
                Some(_) if events.contains(ReadFlags::ISDIR) => {}
                Some(name) => sink(Change::Named(id, name.clone())),
                None => sink(Change::Node(id)),
            }
        }
    }
}

/// Whether a node of that kind is heard of by a watch of its own, when it has so many names.
pub(crate) fn needs_watch(kind: FileKind, names: u32) -> bool {
    kind == FileKind::Directory || names > 1
}
