//! Merged directories, listed (fs/overlayfs/readdir.c).
//!
//! The names of all layers are merged once, when a stream is first read or rewound, and shared by the streams that are
//! open at the time. It is `stream` that hands them out.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use splicefs_core::{Errno, FileKind, Identified, Layer, Name, Result};

use crate::Overlay;
use crate::lowers::Hides;
use crate::marks::{DOT_WHITEOUT, each_entry, entry_of, is_whiteout_device};
use crate::node::{Key, Node};
use crate::resolve::Found;

/// The names in a merged directory, `.` and `..` aside.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// All names, one after the other.
    names: Vec<u8>,
    entries: Vec<Listed>,
}

#[derive(Clone, Copy, Debug)]
struct Listed {
    /// Where the name ends in `names`; it begins where the one before ends.
    end: usize,
    ino: u64,
    kind: FileKind,
}

impl Listing {
    fn push(&mut self, name: &[u8], ino: u64, kind: FileKind) {
        self.names.extend_from_slice(name);
        self.entries.push(Listed { end: self.names.len(), ino, kind });
    }

    /// The entry at a place in the list: its name, inode number and kind.
    pub(crate) fn entry(&self, index: usize) -> Option<(&[u8], u64, FileKind)> {
        self.get(index).map(|(name, listed)| (name, listed.ino, listed.kind))
    }

    fn get(&self, index: usize) -> Option<(&[u8], Listed)> {
        let entry = *self.entries.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.entries[before].end);
        Some((&self.names[start..entry.end], entry))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.entries.len()).filter_map(|index| Some(self.get(index)?.0))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What is known of a name while layers are merged.
enum Seen {
    /// It is hidden, or listed with a number that is right.
    Done,
    /// A directory of the upper layer, listed at this place; a lower one of the same name would give it its number.
    Directory(usize),
}

/// Whether an entry's inode number in its layer is the one that is shown.
enum Number {
    Right,
    /// Unless a lower layer has a directory of the same name.
    OfLower,
    /// Only a lookup tells.
    Unsure,
}

/// An entry of one layer's directory.
struct Raw {
    name: Vec<u8>,
    ino: u64,
    kind: FileKind,
}

/// Names from the layers gone through so far.
#[derive(Default)]
struct Merge {
    listing: Listing,
    seen: HashMap<Vec<u8>, Seen>,
    /// Places in the list whose number only a lookup tells.
    unsure: Vec<usize>,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The merged names of a directory as they are now.
    pub(crate) fn listing(&self, node: &Arc<Node<L, U>>) -> Result<Arc<Listing>> {
        let Some(state) = &node.dir else { return Err(Errno::ENOTDIR.into()) };
        let _entries = state.entries.read();
        self.listing_locked(node)
    }

    /// The same for one who holds the directory's `entries`.
    pub(crate) fn listing_locked(&self, node: &Arc<Node<L, U>>) -> Result<Arc<Listing>> {
        let Some(state) = &node.dir else { return Err(Errno::ENOTDIR.into()) };
        if let Some(listing) = state.listing.lock().upgrade() {
            return Ok(listing);
        }
        let listing = Arc::new(self.merge(node)?);
        *state.listing.lock() = Arc::downgrade(&listing);
        Ok(listing)
    }

    fn merge(&self, node: &Arc<Node<L, U>>) -> Result<Listing> {
        let mut merge = Merge::default();
        if let (Some(upper), Some(dir), Some(state)) = (&self.upper, node.upper(), &node.dir) {
            let impure = self.is_impure(node)?;
            let own = |ino| self.own_ino(ino);
            self.add(&mut merge, &upper.layer, dir, state.hides(), own, |kind| {
                if impure {
                    Number::Unsure
                } else if kind == FileKind::Directory && !node.lowers().is_empty() {
                    Number::OfLower
                } else {
                    Number::Right
                }
            })?;
        }
        for lower in node.lower_dirs() {
            let index = lower.layer();
            self.add(
                &mut merge,
                &self.lowers[index].layer,
                &lower.node,
                &lower.hides,
                |ino| self.lower_ino(index, ino),
                |_| Number::Right,
            )?;
        }
        let Merge { mut listing, unsure, .. } = merge;
        for index in unsure {
            let Some((name, _)) = listing.get(index) else { continue };
            if let Some(found) = self.resolve(node, &Name::new(name)?)? {
                listing.entries[index].ino = self.living_ino(&found);
            }
        }
        Ok(listing)
    }

    /// The inode number of what was found: one that lives keeps its number where nothing on disk could tell it.
    fn living_ino(&self, found: &Found<L, U>) -> u64 {
        let Some(counterpart) = &found.upper else { return found.ino };
        let living = self.nodes.known(&Key::Upper(counterpart.id()));
        living.map_or(found.ino, |node| node.ino())
    }

    /// Adds the names of one layer that those above neither have nor hide. `number` says for each kind
    /// whether the layer's own number is what is shown.
    fn add<B: Layer>(
        &self,
        merge: &mut Merge,
        layer: &B,
        dir: &Arc<B::Node>,
        hides: &Hides,
        shown: impl Fn(u64) -> u64,
        number: impl Fn(FileKind) -> Number,
    ) -> Result<()> {
        let (mut hidden, mut last) = (Vec::new(), None);
        for Raw { name, ino, kind } in raw_entries(layer, dir)? {
            if let Some(name) = name.strip_prefix(DOT_WHITEOUT) {
                hidden.push(name.to_vec());
                continue;
            }
            match merge.seen.get(&name) {
                Some(Seen::Directory(index)) if kind == FileKind::Directory => {
                    merge.unsure.push(*index);
                    merge.seen.insert(name, Seen::Done);
                    continue;
                }
                Some(_) => continue,
                None => {}
            }
            let Some(kind) = self.listed_kind(layer, (dir, hides), (&name, ino, kind), &mut last)? else {
                merge.seen.insert(name, Seen::Done);
                continue;
            };
            let index = merge.listing.entries.len();
            merge.listing.push(&name, shown(ino), kind);
            let seen = match number(kind) {
                Number::Right => Seen::Done,
                Number::OfLower => Seen::Directory(index),
                Number::Unsure => {
                    merge.unsure.push(index);
                    Seen::Done
                }
            };
            merge.seen.insert(name, seen);
        }
        for name in hidden {
            merge.seen.entry(name).or_insert(Seen::Done);
        }
        Ok(())
    }

    /// The kind of an entry; `None` for a whiteout. `last` is the number of the file that was last found to be one in this
    /// directory, for the many names that such a file has.
    pub(crate) fn listed_kind<B: Layer>(
        &self,
        layer: &B,
        (dir, hides): (&Arc<B::Node>, &Hides),
        (name, ino, kind): (&[u8], u64, FileKind),
        last: &mut Option<u64>,
    ) -> Result<Option<FileKind>> {
        let may_be_whiteout = match kind {
            FileKind::CharDevice | FileKind::Unknown => true,
            FileKind::Regular => hides.xattrs,
            _ => false,
        };
        if !may_be_whiteout {
            return Ok(Some(kind));
        }
        if kind == FileKind::CharDevice && *last == Some(ino) {
            return Ok(None);
        }
        // Gone since it was listed: no entry any more.
        let Some(entry) = entry_of(layer, dir, &Name::new(name)?)? else { return Ok(None) };
        let whiteout = self.marks.is_whiteout(layer, &entry.node, &entry.attr, hides.xattrs)?;
        // Some file systems list any number (FUSE_UNKNOWN_INO in fs/fuse/readdir.c): it must be the file's.
        if whiteout && entry.attr.ino == ino && is_whiteout_device(&entry.attr) {
            *last = Some(ino);
        }
        Ok((!whiteout).then(|| entry.attr.kind()))
    }
}

/// The entries of one layer's directory, all read before anything is looked up: the layer may hold a lock while it lists.
fn raw_entries<B: Layer>(layer: &B, dir: &Arc<B::Node>) -> Result<Vec<Raw>> {
    let mut all = Vec::new();
    each_entry(layer, dir, |entry| {
        all.push(Raw { name: entry.name.to_vec(), ino: entry.ino, kind: entry.kind });
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

/// Whether a directory of a layer has no entries at all, not even whiteouts.
pub(crate) fn is_bare<B: Layer>(layer: &B, dir: &Arc<B::Node>) -> Result<bool> {
    let mut bare = true;
    each_entry(layer, dir, |_| {
        bare = false;
        ControlFlow::Break(())
    })?;
    Ok(bare)
}
