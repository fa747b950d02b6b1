//! Open directories.
//!
//! A directory that only one layer has is read from that layer as it is asked for, with that layer's positions, however
//! large it is. One that is merged is read from its list of names, where positions are places in the list: they stay what
//! they are whatever changes meanwhile.

use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;
use splicefs_core::{Cookie, DirEntry, DirSink, Errno, FileKind, Layer, Result};

use crate::Overlay;
use crate::listing::Listing;
use crate::lowers::Hides;
use crate::marks::DOT_WHITEOUT;
use crate::node::{Node, Place};

/// The most entries that are taken from a layer at once.
const BATCH: usize = 512;
/// Places of `.` and `..` in a merged directory; the list comes after them.
const DOTS: u64 = 2;

/// Where the entries come from.
enum Source<L: Layer, U: Layer> {
    Merged(Arc<Listing>),
    Upper(U::Dir),
    /// Of this layer.
    Lower(usize, L::Dir),
}

/// An open directory stream.
pub struct Dir<L: Layer, U: Layer> {
    pub(crate) node: Arc<Node<L, U>>,
    /// Chosen when the stream is read from its beginning.
    source: Mutex<Option<Arc<Source<L, U>>>>,
}

/// The inode numbers of a directory and of the one it is in.
#[derive(Clone, Copy)]
struct Dots {
    own: u64,
    parent: u64,
}

/// An entry taken from a layer.
struct Taken {
    name: Vec<u8>,
    ino: u64,
    kind: FileKind,
    next: Cookie,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    pub(crate) fn open_dir(&self, node: &Arc<Node<L, U>>) -> Result<Dir<L, U>> {
        if !node.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(Dir { node: node.clone(), source: Mutex::new(None) })
    }

    pub(crate) fn read_open_dir(
        &self,
        dir: &Dir<L, U>,
        from: Cookie,
        hint: usize,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        let source = {
            let mut source = dir.source.lock();
            match &*source {
                Some(source) if from != Cookie::START => source.clone(),
                _ => source.insert(Arc::new(self.source(&dir.node)?)).clone(),
            }
        };
        let own = dir.node.ino();
        let parent = if let Place::At(parent, _) = dir.node.place() { parent.ino() } else { own };
        let dots = Dots { own, parent };
        match &*source {
            Source::Merged(listing) => {
                hand_out(listing, dots, from, sink);
                Ok(())
            }
            Source::Upper(stream) => {
                let upper = self.changes()?;
                let (Some(at), Some(state)) = (dir.node.upper(), &dir.node.dir) else {
                    return Err(Errno::ESTALE.into());
                };
                let shown = |ino| self.own_ino(ino);
                self.pass_on((&upper.layer, stream, at, state.hides()), dots, (from, hint), shown, sink)
            }
            Source::Lower(layer, stream) => {
                let index = *layer;
                let layer = &self.lowers[index].layer;
                let lower = dir.node.lower_dir_in(index).ok_or(Errno::ESTALE)?;
                let shown = |ino| self.lower_ino(index, ino);
                self.pass_on((layer, stream, &lower.node, &lower.hides), dots, (from, hint), shown, sink)
            }
        }
    }

    fn source(&self, node: &Arc<Node<L, U>>) -> Result<Source<L, U>> {
        match (&self.upper, node.upper(), node.lowers()) {
            (Some(upper), Some(dir), []) if !self.is_impure(node)? => {
                Ok(Source::Upper(upper.layer.opendir(dir)?))
            }
            (_, None, [lower]) => {
                Ok(Source::Lower(lower.layer(), self.lowers[lower.layer()].layer.opendir(&lower.node)?))
            }
            _ => Ok(Source::Merged(self.listing(node)?)),
        }
    }

    /// Hands on what one layer has, whiteouts aside.
    fn pass_on<B: Layer>(
        &self,
        (layer, stream, at, hides): (&B, &B::Dir, &Arc<B::Node>, &Hides),
        dots: Dots,
        (mut from, hint): (Cookie, usize),
        shown: impl Fn(u64) -> u64,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        let mut whiteout = None;
        loop {
            // The layer may hold a lock while it lists, so nothing is looked up meanwhile.
            let mut batch = Vec::new();
            layer.read_dir(stream, from, hint, &mut |DirEntry { name, ino, kind, next }| {
                batch.push(Taken { name: name.to_vec(), ino, kind, next });
                if batch.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let Some(last) = batch.last() else { return Ok(()) };
            from = last.next;
            let mut any = false;
            for Taken { name, ino, kind, next } in batch {
                let entry = match &name[..] {
                    b"." => DirEntry { name: &name, ino: dots.own, kind, next },
                    b".." => DirEntry { name: &name, ino: dots.parent, kind, next },
                    hidden if hidden.starts_with(DOT_WHITEOUT) => continue,
                    _ => match self.listed_kind(layer, (at, hides), (&name, ino, kind), &mut whiteout)? {
                        Some(kind) => DirEntry { name: &name, ino: shown(ino), kind, next },
                        None => continue,
                    },
                };
                if sink(entry).is_break() {
                    return Ok(());
                }
                any = true;
            }
            if any {
                return Ok(());
            }
        }
    }
}

/// Hands out entries of a merged directory from a place on.
fn hand_out(listing: &Listing, dots: Dots, from: Cookie, sink: &mut DirSink<'_>) {
    for at in from.0.. {
        let next = Cookie(at + 1);
        let dot = |name, ino| DirEntry { name, ino, kind: FileKind::Directory, next };
        let entry = match at {
            0 => dot(b".", dots.own),
            1 => dot(b"..", dots.parent),
            _ => {
                let index = usize::try_from(at - DOTS).unwrap_or(usize::MAX);
                let Some((name, ino, kind)) = listing.entry(index) else { return };
                DirEntry { name, ino, kind, next }
            }
        };
        if sink(entry).is_break() {
            return;
        }
    }
}
