//! Copying a whole directory up: what a rename does where no redirect can be left behind.

use std::sync::Arc;

use splicefs_core::{Errno, Error, Layer, Name, Result};

use crate::Overlay;
use crate::copyup::Need;
use crate::marks::entry_of;
use crate::node::Node;

/// Whoever is outrun this often by others who change the directory is told so.
const ATTEMPTS: usize = 16;

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Copies a directory up with everything in it, and makes it opaque, so that it needs nothing from below any more. Its
    /// lower directories go on being hidden by whatever takes its place.
    pub(crate) fn copy_up_tree(&self, node: &Arc<Node<L, U>>, deepest: usize) -> Result<()> {
        let upper = self.changes()?;
        let counterpart = self.copy_up(node, Need::All)?;
        let Some(state) = &node.dir else { return Ok(()) };
        if deepest == 0 {
            return Err(Errno::ELOOP.into());
        }
        for _ in 0..ATTEMPTS {
            for name in self.listing(node)?.names() {
                let name = Name::new(name)?;
                if let Some(entry) = self.find(node, &name)? {
                    self.copy_up_tree(&entry.node, deepest - 1)?;
                    self.link_up(&entry.node, node, &name)?;
                }
            }
            if node.lowers().is_empty() {
                return Ok(());
            }
            let _entries = state.entries.write();
            let mut complete = true;
            for name in self.listing_locked(node)?.names() {
                complete &= entry_of(&upper.layer, &counterpart, &Name::new(name)?)?.is_some();
            }
            if complete {
                self.marks.set_opaque(&upper.layer, &counterpart)?;
                node.set_opaque();
                return Ok(());
            }
        }
        Err(Error::fault(Errno::EBUSY, "a directory changed too often while it was copied up"))
    }
}
