//! From a name in a merged directory to what the layers have under it (fs/overlayfs/namei.c).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use splicefs_core::{Attr, Entry, Errno, Error, FileKind, Identified, Layer, Name, Result};

use crate::Overlay;
use crate::config::Redirect;
use crate::index::is_linked;
use crate::lowers::{Hides, LowerDir, LowerNode, Lowers};
use crate::marks::{self, DOT_WHITEOUT, Mark, Opaque, Way, entry_of};
use crate::node::{Key, Node, Parts, Place};

/// What the layers have under a name.
pub(crate) struct Found<L: Layer, U: Layer> {
    /// The topmost counterpart's.
    pub(crate) attr: Attr,
    pub(crate) upper: Option<Arc<U::Node>>,
    pub(crate) lowers: Lowers<L>,
    /// The topmost holds attributes alone.
    pub(crate) metacopy: bool,
    /// The last one does, too.
    incomplete: bool,
    /// The inode number callers see.
    pub(crate) ino: u64,
    links: Option<u32>,
    hides: Option<Arc<Hides>>,
}

impl<L: Layer, U: Layer> Found<L, U> {
    /// What has these attributes, in no layer yet.
    fn new(attr: Attr, ino: u64, metacopy: bool) -> Self {
        Self {
            attr,
            upper: None,
            lowers: Lowers::default(),
            metacopy,
            incomplete: metacopy,
            ino,
            links: None,
            hides: None,
        }
    }
}

/// What one layer has under a name.
enum Here<N> {
    /// Nothing; the layers below are asked.
    Nothing,
    /// Nothing, and the layers below are not asked.
    Hidden,
    Is(Hit<N>),
}

struct Hit<N> {
    entry: Entry<N>,
    below: Below,
    xattr_whiteouts: bool,
}

/// Where the layers below have more of what was found.
enum Below {
    /// Nowhere.
    Stop,
    /// Under the same name.
    Same,
    Via(Way),
}

/// What there may be below an entry of a layer.
#[derive(Clone, Copy)]
struct Beneath {
    /// Directories that are merged with the entry's.
    same: bool,
    /// Whatever a redirect leads to.
    redirects: bool,
    /// The data of a file.
    metacopies: bool,
}

impl Beneath {
    fn any(self) -> bool {
        self.same || self.redirects
    }
}

/// In which directories of the lower layers a name is looked for.
struct Search<L: Layer> {
    dirs: std::collections::VecDeque<LowerDir<L>>,
    path: Vec<Name>,
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The node that `name` leads to, and its attributes.
    pub(crate) fn find(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<Option<Entry<Node<L, U>>>> {
        self.resolve(parent, name)?.map(|found| self.node_of(parent, name, found)).transpose()
    }

    /// The node that `name` leads to, for one who is about to change the name. The kernel has looked it up, so that as a rule
    /// it lives, and one look into the upper layer tells which it is.
    pub(crate) fn child(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<Option<Arc<Node<L, U>>>> {
        let state = parent.dir.as_ref().ok_or(Errno::ENOTDIR)?;
        let _entries = state.entries.read();
        if name.as_bytes().starts_with(DOT_WHITEOUT) {
            return Ok(None);
        }
        let own = self.upper_entry(parent, name)?;
        if let Some(entry) = &own
            && let Some(node) = self.nodes.known(&Key::Upper(entry.node.id()))
        {
            return Ok(Some(node));
        }
        let found = self.resolve_from(parent, name, own)?;
        found.map(|found| Ok(self.node_of(parent, name, found)?.node)).transpose()
    }

    /// What the upper layer has under `name`.
    fn upper_entry(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<Option<Entry<U::Node>>> {
        match (&self.upper, parent.upper()) {
            (Some(upper), Some(dir)) => entry_of(&upper.layer, dir, name),
            _ => Ok(None),
        }
    }

    /// The node for what was found under `name`.
    pub(crate) fn node_of(
        &self,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        found: Found<L, U>,
    ) -> Result<Entry<Node<L, U>>> {
        let Found { attr, upper, lowers, metacopy, incomplete: _, ino, links, hides } = found;
        let from_upper = upper.is_some();
        let key = self.key(parent, name, upper.as_ref(), &lowers, &attr);
        let place = Place::At(parent.clone(), name.clone());
        // An upper file may have a mark besides.
        let protection = (!from_upper).then_some(attr.protection);
        let linked = is_linked(&attr);
        let parts = Parts::new(attr.kind(), ino, place);
        let parts = Parts { upper, lowers, metacopy, links, linked, protection, hides, ..parts };
        let node = self.nodes.intern(Some(key), parts);
        if node.is_dir() || matches!(node.place(), Place::Nowhere) {
            self.settle(&node, parent, name);
        }
        let attr = if from_upper || node.upper().is_none() {
            self.shown(&node, attr)?
        } else {
            // Copied up since the layers were asked, or under another of its names.
            self.attr(&node)?
        };
        Ok(Entry { node, attr })
    }

    /// `node` was found under `name`.
    fn settle(&self, node: &Arc<Node<L, U>>, parent: &Arc<Node<L, U>>, name: &Name) {
        if !node.is_at(parent, name) && !Arc::ptr_eq(node, &self.root) && !Arc::ptr_eq(node, parent) {
            node.set_place(Place::At(parent.clone(), name.clone()));
        }
    }

    fn key(
        &self,
        parent: &Node<L, U>,
        name: &Name,
        upper: Option<&Arc<U::Node>>,
        lowers: &[LowerNode<L>],
        attr: &Attr,
    ) -> Key {
        if let Some(node) = upper {
            return Key::Upper(node.id());
        }
        let topmost = &lowers[0];
        if is_linked(attr) && self.upper.is_some() && self.indexed(topmost, attr).is_none() {
            return Key::named(parent.id, name);
        }
        Key::lower(topmost)
    }

    /// What the layers have under `name`.
    pub(crate) fn resolve(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<Option<Found<L, U>>> {
        if name.as_bytes().starts_with(DOT_WHITEOUT) {
            return Ok(None);
        }
        self.resolve_from(parent, name, self.upper_entry(parent, name)?)
    }

    /// The same, where `own` is what the upper layer has under `name`.
    fn resolve_from(
        &self,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        own: Option<Entry<U::Node>>,
    ) -> Result<Option<Found<L, U>>> {
        let mut search = Search { dirs: parent.lower_dirs().collect(), path: vec![name.clone()] };
        let mut found = None;
        if let (Some(upper), Some(dir), Some(state)) = (&self.upper, parent.upper(), &parent.dir) {
            let below = self.below(!search.dirs.is_empty(), 0, || self.is_impure(parent))?;
            match self.look(&upper.layer, dir, state.hides(), name, own, below)? {
                Here::Nothing => {}
                Here::Hidden => return Ok(None),
                Here::Is(hit) => {
                    let metacopy = hit.is_metacopy();
                    let attr = hit.entry.attr;
                    let hides = (attr.kind() == FileKind::Directory).then(|| Hides::new(hit.xattr_whiteouts));
                    if !self.follow(&mut search, None, hit.below, metacopy)? {
                        search.dirs.clear();
                    }
                    let ino = self.upper_ino(parent, &hit.entry)?;
                    found =
                        Some(Found { upper: Some(hit.entry.node), hides, ..Found::new(attr, ino, metacopy) });
                }
            }
        }
        self.resolve_lower(search, &mut found)?;
        if let Some(found) = &mut found {
            self.finish(parent, name, found)?;
        }
        Ok(found)
    }

    /// Goes down the lower layers.
    fn resolve_lower(&self, mut search: Search<L>, found: &mut Option<Found<L, U>>) -> Result<()> {
        while let Some(dir) = search.dirs.pop_front() {
            let (index, layer) = (dir.index, dir.layer());
            let Some(hit) = self.descend(&mut search, dir)? else { continue };
            let attr = hit.entry.attr;
            let is_dir = attr.kind() == FileKind::Directory;
            let (merges, wants_data) = match found {
                Some(found) => (found.attr.kind() == FileKind::Directory, found.incomplete),
                None => (is_dir, false),
            };
            if is_dir != merges || (wants_data && attr.kind() != FileKind::Regular) {
                // A file under a directory, or the reverse: what is above hides it.
                return Ok(());
            }
            if is_dir && self.is_trap(layer, attr.ino) {
                return Err(Errno::ELOOP.into());
            }
            let metacopy = hit.is_metacopy();
            let ino = self.lower_ino(layer, attr.ino);
            let found = match found {
                Some(found) => {
                    if is_dir && found.lowers.is_empty() {
                        found.ino = ino;
                    }
                    found.incomplete = metacopy;
                    found
                }
                None => found.insert(Found::new(attr, ino, metacopy)),
            };
            let lower = LowerNode { index, node: hit.entry.node };
            if is_dir {
                found.lowers.push_dir(LowerDir { lower, hides: Hides::new(hit.xattr_whiteouts) });
            } else {
                found.lowers.push(lower);
            }
            if !self.follow(&mut search, Some(layer), hit.below, metacopy)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether a directory of a lower layer is the one that takes the changes, or the one where they are prepared: going on
    /// there would show changes as something to be changed (`ovl_lookup_trap_inode`).
    fn is_trap(&self, layer: usize, ino: u64) -> bool {
        self.upper.as_ref().is_some_and(|upper| {
            upper.own.contains(&ino) && upper.layer.file_system() == self.lowers[layer].layer.file_system()
        })
    }

    /// Looks for the path in one layer. `None` where the layer does not have it; where it hides it as well, there are no
    /// more directories to search.
    fn descend(&self, search: &mut Search<L>, dir: LowerDir<L>) -> Result<Option<Hit<L::Node>>> {
        let index = dir.layer();
        let LowerDir { lower: LowerNode { node: mut at, .. }, mut hides } = dir;
        let layer = &self.lowers[index].layer;
        let path = search.path.clone();
        let (last, way) = match path.split_last() {
            Some(split) => split,
            None => return Ok(None),
        };
        for (step, name) in way.iter().enumerate() {
            let below = self.below_lower(search, index, &at, &hides)?;
            let hit = match self.look(layer, &at, &hides, name, entry_of(layer, &at, name)?, below)? {
                Here::Nothing => return Ok(None),
                Here::Is(hit) if hit.entry.attr.kind() == FileKind::Directory => hit,
                Here::Hidden | Here::Is(_) => {
                    search.dirs.clear();
                    return Ok(None);
                }
            };
            hides = Hides::new(hit.xattr_whiteouts);
            at = hit.entry.node;
            match hit.below {
                Below::Stop => search.dirs.clear(),
                Below::Same => {}
                // This layer is gone through as it is; the ones below know the directory by another path.
                Below::Via(to) => self.redirect(search, index + 1, to, way.len() - step, false)?,
            }
        }
        let below = self.below_lower(search, index, &at, &hides)?;
        match self.look(layer, &at, &hides, last, entry_of(layer, &at, last)?, below)? {
            Here::Nothing => Ok(None),
            Here::Hidden => {
                search.dirs.clear();
                Ok(None)
            }
            Here::Is(hit) => Ok(Some(hit)),
        }
    }

    /// Sets the search to where `below` says, for the layers under `layer`; whether there are any. `data` says that the
    /// data of a file is searched for.
    fn follow(&self, search: &mut Search<L>, layer: Option<usize>, below: Below, data: bool) -> Result<bool> {
        match below {
            Below::Stop => return Ok(false),
            Below::Same => {}
            Below::Via(way) => {
                self.redirect(search, layer.map_or(0, |layer| layer + 1), way, 0, data)?;
            }
        }
        Ok(!search.dirs.is_empty())
    }

    /// From layer `first` on, what has `after` components behind it in the path is found by `way`.
    fn redirect(
        &self,
        search: &mut Search<L>,
        first: usize,
        way: Way,
        after: usize,
        data: bool,
    ) -> Result<()> {
        // The path may be longer or shorter by now than the one that led here, but not behind this component.
        let step = search.path.len().checked_sub(after + 1).ok_or(Errno::EIO)?;
        if self.config.redirect == Redirect::NoFollow {
            return Err(Error::fault(Errno::EPERM, "a redirected file, and redirect_dir=nofollow"));
        }
        match way {
            Way::Beside(name) => search.path[step] = name,
            Way::FromRoot(mut path) => {
                path.extend(search.path.drain(step + 1..));
                search.path = path;
                let roots = self.lower_roots.iter().filter(|root| root.layer() >= first);
                search.dirs =
                    roots.filter(|root| data || !self.lowers[root.layer()].data_only).cloned().collect();
            }
        }
        Ok(())
    }

    /// What one layer has under `name`, where its `entry` is; `below` says what there may be for it to hide
    /// or to share.
    fn look<B: Layer>(
        &self,
        layer: &B,
        dir: &Arc<B::Node>,
        hides: &Hides,
        name: &Name,
        entry: Option<Entry<B::Node>>,
        below: Beneath,
    ) -> Result<Here<B::Node>> {
        let Some(entry) = entry else {
            let hidden = below.same && Self::is_dot_hidden(layer, dir, hides, name)?;
            return Ok(if hidden { Here::Hidden } else { Here::Nothing });
        };
        if self.marks.is_whiteout(layer, &entry.node, &entry.attr, hides.xattrs)? {
            return Ok(Here::Hidden);
        }
        let mut hit = Hit { entry, below: Below::Stop, xattr_whiteouts: false };
        match hit.entry.attr.kind() {
            FileKind::Directory if below.any() || hides.xattrs => {
                match self.marks.opaque(layer, &hit.entry.node)? {
                    Opaque::Yes => return Ok(Here::Is(hit)),
                    Opaque::XattrWhiteouts => hit.xattr_whiteouts = true,
                    Opaque::No => {}
                }
            }
            FileKind::Regular if below.metacopies => {
                if !self.marks.has(layer, &hit.entry.node, Mark::Metacopy)? {
                    return Ok(Here::Is(hit));
                }
                if !self.follows_metacopy() {
                    return Err(Error::fault(
                        Errno::EPERM,
                        "a file without its data (metacopy), and no metacopy=on",
                    ));
                }
            }
            _ => return Ok(Here::Is(hit)),
        }
        if below.any() || hit.entry.attr.kind() == FileKind::Regular {
            hit.below = match self.marks.redirect(layer, &hit.entry.node)? {
                Some(way) => Below::Via(way),
                None => Below::Same,
            };
        }
        Ok(Here::Is(hit))
    }

    /// Whether files may be without their data.
    fn follows_metacopy(&self) -> bool {
        self.config.metacopy || self.lowers.iter().any(|lower| lower.data_only)
    }

    /// What is below an entry of a directory. `same` says that directories of lower layers are merged with this one; from
    /// layer `first` on, a redirect may lead to others. `impure` says whether entries of this directory came from elsewhere:
    /// only then are they asked for redirects, and without metacopy=on for being copies of attributes alone.
    fn below(&self, same: bool, first: usize, impure: impl FnOnce() -> Result<bool>) -> Result<Beneath> {
        let layers = self.lower_roots.len() > first;
        let follows = self.config.redirect != Redirect::NoFollow;
        let always = self.follows_metacopy();
        let impure = layers && (!same || !always) && impure()?;
        Ok(Beneath { same, redirects: impure && follows, metacopies: layers && (always || impure) })
    }

    /// The same for a directory of a lower layer.
    fn below_lower(
        &self,
        search: &Search<L>,
        index: usize,
        dir: &Arc<L::Node>,
        hides: &Hides,
    ) -> Result<Beneath> {
        self.below(!search.dirs.is_empty(), index + 1, || {
            if let Some(impure) = hides.impure.get() {
                return Ok(*impure);
            }
            let impure = self.marks.has(&self.lowers[index].layer, dir, Mark::Impure)?;
            Ok(*hides.impure.get_or_init(|| impure))
        })
    }

    fn is_dot_hidden<B: Layer>(layer: &B, dir: &Arc<B::Node>, hides: &Hides, name: &Name) -> Result<bool> {
        let dots = match hides.dots.get() {
            Some(dots) => dots,
            None => {
                let has = marks::has_dot_whiteouts(layer, dir)?;
                hides.dots.get_or_init(|| AtomicBool::new(has))
            }
        };
        if !dots.load(Ordering::Acquire) {
            return Ok(false);
        }
        match marks::dot_whiteout(name) {
            Some(hider) => Ok(entry_of(layer, dir, &hider)?.is_some()),
            None => Ok(false),
        }
    }

    /// Whether a lower layer has something under `name` that an upper entry hides, and that would show without it.
    pub(crate) fn is_below(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<bool> {
        Ok(self.nlink_below(parent, name)?.is_some())
    }

    /// How many names the lower file has that an upper entry was copied from, if it is still there.
    fn nlink_below(&self, parent: &Arc<Node<L, U>>, name: &Name) -> Result<Option<u32>> {
        let mut search = Search { dirs: parent.lower_dirs().collect(), path: vec![name.clone()] };
        while let Some(dir) = search.dirs.pop_front() {
            if let Some(hit) = self.descend(&mut search, dir)? {
                return Ok(Some(hit.entry.attr.nlink));
            }
        }
        Ok(None)
    }

    /// What can be said only when all layers have been asked.
    fn finish(&self, parent: &Arc<Node<L, U>>, name: &Name, found: &mut Found<L, U>) -> Result<()> {
        if found.incomplete {
            return Err(Error::fault(
                Errno::EIO,
                format!("the data of {:?} is in none of the layers", name.as_os_str()),
            ));
        }
        let lower_links = || match found.lowers.first() {
            Some(lower) => Ok(Some(self.lowers[lower.layer()].layer.getattr(&lower.node, None)?.nlink)),
            None => self.nlink_below(parent, name),
        };
        if let Some(upper) = &found.upper {
            if found.attr.nlink > 1 && self.is_impure(parent)? {
                found.links = self.links(upper, &found.attr, lower_links)?;
            }
        } else if let Some(copy) = self.find_linked(&found.lowers[0], &found.attr)? {
            found.links = self.links(&copy.node, &copy.attr, lower_links)?;
            found.attr = copy.attr;
            if copy.attr.kind() == FileKind::Regular
                && let Some(upper) = &self.upper
            {
                found.metacopy = self.marks.has(&upper.layer, &copy.node, Mark::Metacopy)?;
            }
            found.upper = Some(copy.node);
        }
        Ok(())
    }

    /// The inode number of an upper entry: its own, or that of the lower file it was copied from.
    fn upper_ino(&self, parent: &Arc<Node<L, U>>, entry: &Entry<U::Node>) -> Result<u64> {
        let own = self.own_ino(entry.attr.ino);
        if entry.attr.kind() == FileKind::Directory || !self.is_impure(parent)? {
            return Ok(own);
        }
        Ok(self.origin_ino(&entry.node)?.unwrap_or(own))
    }

    /// Whether entries of the upper directory may have an origin.
    pub(crate) fn is_impure(&self, parent: &Arc<Node<L, U>>) -> Result<bool> {
        let (Some(state), Some(upper), Some(dir)) = (&parent.dir, &self.upper, parent.upper()) else {
            return Ok(false);
        };
        if let Some(impure) = state.impure.get() {
            return Ok(impure.load(Ordering::Acquire));
        }
        let read = self.marks.has(&upper.layer, dir, Mark::Impure)?;
        Ok(state.impure.get_or_init(|| AtomicBool::new(read)).load(Ordering::Acquire))
    }

    /// An entry with an origin is about to come into the upper directory.
    pub(crate) fn make_impure(&self, parent: &Arc<Node<L, U>>) -> Result<()> {
        let (Some(state), Some(upper), Some(dir)) = (&parent.dir, &self.upper, parent.upper()) else {
            return Ok(());
        };
        if self.is_impure(parent)? {
            return Ok(());
        }
        match self.marks.set(&upper.layer, dir, Mark::Impure, b"y") {
            // Without attributes there are no origins either.
            Err(e) if e.errno() == Errno::EOPNOTSUPP => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                state.impure.get_or_init(|| AtomicBool::new(true)).store(true, Ordering::Release);
                Ok(())
            }
        }
    }
}

impl<N> Hit<N> {
    /// Regular files are searched on only where they are without their data.
    fn is_metacopy(&self) -> bool {
        self.entry.attr.kind() == FileKind::Regular && !matches!(self.below, Below::Stop)
    }
}
