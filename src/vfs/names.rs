//! Names, attributes and what changes them.

use std::sync::Arc;

use splicefs_core::{
    Backend, Caller, Change, Errno, FileKind, HandleId, Make, Name, NodeId, RenameFlags, Result, SetAttr,
    SetTime, StatFs,
};

use super::lookups::{Answering, Changes};
use super::{Found, LookedUp, NODE_BYTES, Shown, UNHEARD, Vfs};

impl<B: Backend> Vfs<B> {
    /// Looks up what `name` leads to, and gives it to `reply`, whose result is returned; the kernel holds one more reference to a
    /// node.
    ///
    /// # Errors
    /// `ENOENT` where it leads nowhere and the kernel is not to keep that.
    pub fn lookup<R>(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &Name,
        reply: impl FnOnce(&LookedUp) -> R,
    ) -> Result<R> {
        let parent = self.node(parent)?;
        let names = self.kept(&parent);
        let before = self.lookups.changes();
        let looked_up = {
            let _as_caller = self.backend.look_as(caller, &parent)?;
            self.backend.lookup(&parent, name)
        };
        let entry = match looked_up {
            Err(e) if e.errno() == Errno::ENOENT && !names.negative.is_zero() => {
                return Ok(reply(&LookedUp::Missing(names.negative)));
            }
            entry => entry?,
        };
        let (mut found, node) = self.remember(entry, names);
        let _answering = self.note(&mut found, &node, caller, before)?;
        Ok(reply(&LookedUp::Found(found)))
    }

    /// `caller` is about to be told that `node` was `found`, which was looked at after `before`. It is looked at again where that was
    /// too early. To be called when the lookup is counted.
    ///
    /// # Errors
    /// Those of looking. The lookup is not counted any more, then.
    pub(super) fn note(
        &self,
        found: &mut Found,
        node: &Arc<B::Node>,
        caller: &Caller,
        before: Changes,
    ) -> Result<Option<Answering<'_>>> {
        if found.shown.attr.kind() != FileKind::Regular {
            return Ok(None);
        }
        let (answering, changed) = self.lookups.note(found.id, caller.pid, before);
        if changed {
            let again = self.backend.getattr(node, None).inspect_err(|_| self.forget(found.id, 1))?;
            found.shown = self.show(node, again, self.caching.kept(true));
        }
        Ok(answering)
    }

    /// `caller` has changed the node, and is about to be told so: waits for those who do not know of it.
    pub(super) fn settle(&self, id: NodeId, caller: &Caller) {
        if let Some(change) = self.lookups.changed()
            && self.nodes.is_looked_up_again(id)
        {
            self.lookups.settle(id, caller.pid, change);
        }
    }

    /// The kernel gives `count` references back.
    pub fn forget(&self, id: NodeId, count: u64) {
        if self.nodes.forget(id, count) {
            self.unopened.forget(id);
            self.heap.freed(NODE_BYTES);
            self.heap.trim_if_due();
        }
    }

    /// The attributes, through the open file where the request names one.
    pub fn getattr(&self, caller: &Caller, id: NodeId, handle: Option<HandleId>) -> Result<Shown> {
        // A handle that is gone is no reason to fail: the node answers.
        let open = self.opened_if_any(handle).ok().flatten();
        let node = open.as_ref().map_or_else(|| self.node(id), |open| Ok(open.node.clone()))?;
        let before = self.kept(&node);
        let _as_caller = self.backend.look_as(caller, &node)?;
        let attr = self.backend.getattr(&node, open.as_ref().map(|open| &open.file))?;
        Ok(self.show(&node, attr, before))
    }

    /// Changes attributes, and calls `reply` with them. A change of size waits for the reads that are on their way, and
    /// others wait for its reply.
    pub fn setattr(
        &self,
        caller: &Caller,
        id: NodeId,
        handle: Option<HandleId>,
        change: &SetAttr,
        reply: impl FnOnce(&Shown),
    ) -> Result<()> {
        let open = self.opened_if_any(handle)?;
        let node = self.node(id)?;
        let file = open.as_ref().map(|open| &open.file);
        let kept = self.kept(&node);
        let Some(_) = change.size else {
            let attr = self.change_attributes(caller, &node, file, change)?;
            self.settle(id, caller);
            reply(&self.show(&node, attr, kept));
            return Ok(());
        };
        let used = self.nodes.state(&node);
        let length = used.length.change();
        let before = self.backend.getattr(&node, file)?.size;
        let mut change = *change;
        if self.caching.unopened && !self.caching.writeback && change.size == Some(0) && before == 0 {
            // open(2) with O_TRUNC sets the time of an empty file, too, which is all that is left to tell it from truncate(2). With a
            // writeback cache the kernel tells the time itself.
            change.mtime = change.mtime.or(Some(SetTime::Now));
        }
        let attr = self.change_attributes(caller, &node, file, &change)?;
        self.settle(id, caller);
        reply(&self.show(&node, attr, kept));
        if attr.size < before {
            length.told_shorter(caller.pid);
        }
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, caller: &Caller, id: NodeId) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        // Whether the caller may; the backend reads it as the caller by itself.
        drop(self.backend.look_as(caller, &node)?);
        self.backend.readlink(caller, &node)
    }

    /// Creates a node.
    pub fn make(&self, caller: &Caller, parent: NodeId, name: &Name, what: Make<'_>) -> Result<Found> {
        let parent = self.node(parent)?;
        let names = self.kept(&parent);
        Ok(self.remember(self.backend.make(caller, &parent, name, what)?, names).0)
    }

    /// Gives a node one more name.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &Name) -> Result<Found> {
        let (node, parent) = (self.node(id)?, self.node(parent)?);
        let names = self.kept(&parent);
        Ok(self.remember(self.backend.link(&node, &parent, name)?, names).0)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, caller: &Caller, parent: NodeId, name: &Name) -> Result<()> {
        self.backend.remove(caller, &self.node(parent)?, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: NodeId, name: &Name) -> Result<()> {
        self.backend.remove(caller, &self.node(parent)?, name, true)
    }

    /// Renames.
    pub fn rename(
        &self,
        caller: &Caller,
        from: (NodeId, &Name),
        to: (NodeId, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.node(from.0)?, self.node(to.0)?);
        self.backend.rename(caller, (&from_dir, from.1), (&to_dir, to.1), flags)?;
        // The kernel trusts a name where it has moved as long as it did where it was.
        for ((id, name), dir) in [(from, from_dir), (to, to_dir)] {
            if self.caching.listens() && self.heard(&dir) == UNHEARD {
                self.uncertain.add(Change::Name(id, name.clone()));
            }
        }
        Ok(())
    }

    /// The file system that the node is of, if that is not the root's.
    pub fn file_system_below(&self, id: NodeId) -> Option<u64> {
        let own = self.backend.file_system_of(&*self.node(id).ok()?);
        (own != self.backend.file_system_of(&self.backend.root())).then_some(own)
    }

    /// Size and room of the file system that holds the node.
    pub fn statfs(&self, id: NodeId) -> Result<StatFs> {
        self.backend.statfs(&self.node(id)?)
    }
}
