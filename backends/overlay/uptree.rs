//! Copying a whole directory up: what a rename does where no redirect can be left behind.

use std::sync::Arc;

use splicefs_core::{Errno, Error, Layer, Name, Result};

use crate::Overlay;
use crate::copyup::Need;
use crate::marks::entry_of;
use crate::node::Node;

/// Whoever is outrun this often by others who change a directory is told so.
const ATTEMPTS: usize = 16;

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Copies a directory up with everything in it, and makes it opaque, so that it needs nothing from below any more. What
    /// is below goes on being hidden by whatever takes its place.
    pub(crate) fn copy_up_tree(&self, root: &Arc<Node<L, U>>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            // Each directory stands behind the one that it is in.
            let mut dirs = vec![root.clone()];
            let mut next = 0;
            while let Some(dir) = dirs.get(next).cloned() {
                self.copy_up_entries(&dir, &mut dirs)?;
                next += 1;
            }
            if dirs.iter().rev().try_fold(true, |all, dir| Ok::<_, Error>(self.cut_off(dir)? && all))? {
                return Ok(());
            }
        }
        Err(Error::fault(Errno::EBUSY, "a directory changed too often while it was copied up"))
    }

    /// Copies a directory and its entries up; those that are directories are added to `dirs`.
    fn copy_up_entries(&self, dir: &Arc<Node<L, U>>, dirs: &mut Vec<Arc<Node<L, U>>>) -> Result<()> {
        self.copy_up(dir, Need::All)?;
        for name in self.listing(dir)?.names() {
            let name = Name::new(name)?;
            let Some(node) = self.child(dir, &name)? else { continue };
            if node.is_dir() {
                dirs.push(node);
            } else {
                self.copy_up(&node, Need::All)?;
                self.link_up(&node, dir, &name)?;
            }
        }
        Ok(())
    }

    /// Makes a directory opaque whose entries are all in the upper layer; whether they are.
    fn cut_off(&self, dir: &Arc<Node<L, U>>) -> Result<bool> {
        let upper = self.changes()?;
        let (Some(state), Some(counterpart)) = (&dir.dir, dir.upper()) else { return Ok(true) };
        if dir.lowers().is_empty() {
            return Ok(true);
        }
        let _entries = state.entries.write();
        for name in self.listing_locked(dir)?.names() {
            if entry_of(&upper.layer, counterpart, &Name::new(name)?)?.is_none() {
                return Ok(false);
            }
        }
        self.marks.set_opaque(&upper.layer, counterpart)?;
        dir.set_opaque();
        Ok(true)
    }
}
