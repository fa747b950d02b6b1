//! Open directories.

use std::ops::ControlFlow;
use std::sync::Arc;

use splicefs_core::{Backend, Caller, Cookie, DirEntry, HandleId, Ioctl, Name, NodeId, Result};

use super::lookups::Answering;
use super::{Found, Kept, Vfs};

impl<B: Backend> Vfs<B> {
    /// Opens a directory stream.
    ///
    /// The second value says whether the kernel may keep its entries.
    pub fn opendir(&self, caller: &Caller, id: NodeId) -> Result<(HandleId, bool)> {
        let node = self.node(id)?;
        let _as_caller = self.backend.look_as(caller, &node)?;
        let dir = self.backend.opendir(&node)?;
        let kept = self.kept(&node).contents && self.backend.keeps_entries(&dir);
        Ok((self.dirs.insert(dir), kept))
    }

    /// Hands the entries from `from` on to `sink` until it takes no more.
    pub fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        id: HandleId,
        from: Cookie,
        hint: usize,
        sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let _as_caller = self.backend.look_as(caller, &self.node(node)?)?;
        self.backend.read_dir(&*self.dirs.get(id)?, from, hint, sink)
    }

    /// As [`Vfs::readdir`], with each entry looked up. What `sink` takes, the kernel holds a reference to; an entry that
    /// is gone when it is looked up, and `.` and `..`, come without a node. What is returned is to be held until the answer is
    /// written.
    pub(crate) fn readdirplus(
        &self,
        caller: &Caller,
        parent: NodeId,
        id: HandleId,
        from: Cookie,
        hint: usize,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<Found>) -> ControlFlow<()>,
    ) -> Result<Vec<Answering<'_>>> {
        let parent = self.node(parent)?;
        let names = self.kept(&parent);
        let _as_caller = self.backend.look_as(caller, &parent)?;
        let mut answering = Vec::new();
        self.backend.read_dir(&*self.dirs.get(id)?, from, hint, &mut |entry| {
            let looked_up = self.look_up_entry(caller, (&parent, names), entry.name);
            let found = looked_up.map(|(found, noted)| {
                answering.extend(noted);
                found
            });
            let taken = sink(entry, found);
            if taken.is_break()
                && let Some(found) = found
            {
                self.forget(found.id, 1);
            }
            taken
        })?;
        Ok(answering)
    }

    /// An entry's node, unless it is `.` or `..` or gone meanwhile; then the kernel is told its name alone.
    fn look_up_entry(
        &self,
        caller: &Caller,
        (parent, names): (&Arc<B::Node>, Kept),
        name: &[u8],
    ) -> Option<(Found, Option<Answering<'_>>)> {
        // `.` and `..` are no names.
        let name = Name::new(name).ok()?;
        let before = self.lookups.changes();
        let looked_up = self.backend.lookup(parent, &name).and_then(|entry| {
            // The directory is locked: a file of no other name cannot lose this one.
            let is_elsewhere = entry.attr.nlink > 1;
            let (mut found, node) = self.remember(entry, names);
            let noted = if is_elsewhere { self.note(&mut found, &node, caller, before)? } else { None };
            Ok((found, noted))
        });
        looked_up.inspect_err(|e| log::debug!("an entry that cannot be looked up: {e}")).ok()
    }

    /// Closes a directory stream.
    pub fn releasedir(&self, id: HandleId) -> Result<()> {
        self.dirs.remove(id).map(drop)
    }

    /// Makes a directory durable.
    pub fn fsyncdir(&self, id: HandleId, data_only: bool) -> Result<()> {
        self.backend.fsyncdir(&*self.dirs.get(id)?, data_only)
    }

    /// As ioctl(2) on a directory.
    pub fn ioctl_dir(&self, id: NodeId, handle: HandleId, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        let result = self.backend.ioctl_dir(&*self.dirs.get(handle)?, request)?;
        self.ioctl_done(id, request);
        Ok(result)
    }
}
