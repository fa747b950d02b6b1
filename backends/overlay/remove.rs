//! Removing names: what a lower layer has is hidden by a whiteout (fs/overlayfs/dir.c).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use splicefs_core::{Errno, Error, Layer, Name, Result};

use crate::Overlay;
use crate::copyup::Need;
use crate::create::check_name;
use crate::entries::Changing;
use crate::listing::is_bare;
use crate::marks::{entry_of, is_whiteout_device};
use crate::node::{DirState, Node};
use crate::work::Changes;

/// The locks of directories whose names change together.
pub(crate) type Locks<'a> = SmallVec<[Changing<'a>; 3]>;

/// Locks the names of these directories; one may be named twice. While one is waited for, perhaps for long, the others are free.
pub(crate) fn lock<'a, L: Layer, U: Layer>(nodes: &[&'a Arc<Node<L, U>>]) -> Locks<'a> {
    let mut nodes: SmallVec<[&Arc<Node<L, U>>; 3]> = nodes.iter().copied().collect();
    nodes.sort_by_key(|node| node.id);
    nodes.dedup_by_key(|node| node.id);
    let dirs: SmallVec<[&DirState; 3]> = nodes.iter().filter_map(|node| node.dir.as_deref()).collect();
    let mut waits_for = 0;
    loop {
        let mut locks = Locks::new();
        locks.extend(dirs.get(waits_for).map(|dir| dir.entries.write()));
        let others = (0..dirs.len()).filter(|&other| other != waits_for);
        let busy = others.into_iter().find(|&other| match dirs[other].entries.try_write() {
            Some(lock) => {
                locks.push(lock);
                false
            }
            None => true,
        });
        match busy {
            Some(busy) => waits_for = busy,
            None => return locks,
        }
    }
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Removes a name, of a directory if `directory`.
    pub(crate) fn remove(&self, parent: &Arc<Node<L, U>>, name: &Name, directory: bool) -> Result<()> {
        check_name(name).map_err(|_| Errno::ENOENT)?;
        let upper = self.changes()?;
        let node = self.child(parent, name)?.ok_or(Errno::ENOENT)?;
        self.check_removing(parent, &node)?;
        match (node.is_dir(), directory) {
            (true, false) => return Err(Errno::EISDIR.into()),
            (false, true) => return Err(Errno::ENOTDIR.into()),
            _ => {}
        }
        // Kept until the end, so that the second look, under the locks, need not merge the names again.
        let names = directory.then(|| self.listing(&node)).transpose()?;
        if names.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err(self.why_not_removed(upper, parent, name, &node));
        }
        let dir = self.upper_dir(parent)?;
        self.before_removal(&node)?;
        let locks = if directory { lock(&[parent, &node]) } else { lock(&[parent]) };
        if directory && !self.listing_locked(&node)?.is_empty() {
            return Err(Errno::ENOTEMPTY.into());
        }
        let own = if self.is_only_below(upper, parent, name, &node) {
            upper.layer.make_whiteout(&dir, name)?;
            false
        } else {
            self.remove_from(upper, (parent, &dir), name, &node)?
        };
        self.removed(parent, name, &node, own);
        drop(locks);
        Ok(())
    }

    /// Whether it is known without a look that the upper layer has nothing under the name of `node`, so that a whiteout is all
    /// it takes; if somebody has put something there behind the mount, there is no making one.
    fn is_only_below(
        &self,
        upper: &Changes<U>,
        parent: &Arc<Node<L, U>>,
        name: &Name,
        node: &Arc<Node<L, U>>,
    ) -> bool {
        upper.devices() && node.upper().is_none() && node.is_at(parent, name)
    }

    /// Removes the name of `node` from the upper directory, and hides what is below; whether there was something to remove.
    fn remove_from(
        &self,
        upper: &Changes<U>,
        (parent, dir): (&Arc<Node<L, U>>, &Arc<U::Node>),
        name: &Name,
        node: &Arc<Node<L, U>>,
    ) -> Result<bool> {
        let own = entry_of(&upper.layer, dir, name)?.map(|entry| entry.attr);
        if own.as_ref().is_some_and(is_whiteout_device) {
            return Err(Errno::ENOENT.into());
        }
        let own = own.map(|attr| attr.kind());
        let state = parent.dir.as_ref().ok_or(Errno::ENOTDIR)?;
        // What has a name and nothing in the upper layer under it is below.
        let is_below = match own {
            None if node.upper().is_none() => true,
            _ => !node.alone.load(Ordering::Acquire) && self.is_below(parent, name)?,
        };
        if is_below {
            upper.hide(dir, state.hides(), name, own)?;
        } else if let Some(kind) = own {
            upper.remove(dir, name, kind)?;
        }
        Ok(own.is_some())
    }

    /// A lower file of several names must be in the index before one of them goes, or the number of those left would be
    /// forgotten (`ovl_nlink_start`).
    pub(crate) fn before_removal(&self, node: &Arc<Node<L, U>>) -> Result<()> {
        if node.upper().is_some() || !node.linked {
            return Ok(());
        }
        let lower = Self::topmost(node)?;
        let layer = &self.lowers[lower.layer()].layer;
        if self.indexed(lower, &layer.getattr(&lower.node, None)?).is_some() {
            self.copy_up(node, Need::Attributes)?;
        }
        Ok(())
    }

    /// Why a directory that is not empty cannot be removed: the upper file system may have a reason that comes first (an
    /// immutable directory).
    fn why_not_removed(
        &self,
        upper: &Changes<U>,
        parent: &Node<L, U>,
        name: &Name,
        node: &Node<L, U>,
    ) -> Error {
        let (Some(dir), Some(counterpart)) = (parent.upper(), node.upper()) else {
            return Errno::ENOTEMPTY.into();
        };
        match is_bare(&upper.layer, counterpart) {
            Err(e) => e,
            Ok(true) => Errno::ENOTEMPTY.into(),
            // It is asked only what it must refuse.
            Ok(false) => upper.layer.rmdir(dir, name).err().unwrap_or_else(|| Errno::ENOTEMPTY.into()),
        }
    }

    /// `node` has lost this name; `own` says that it was one in the upper layer.
    pub(crate) fn removed(&self, parent: &Arc<Node<L, U>>, name: &Name, node: &Arc<Node<L, U>>, own: bool) {
        if let Err(e) = self.link_lost(node, own) {
            // The name is gone, whatever the count says.
            log::warn!("the number of names of a file is wrong: {e}");
        }
        node.removed.fetch_add(1, Ordering::AcqRel);
        node.unplace(parent, name);
        node.names_changed();
        parent.names_changed();
    }
}
