//! Renaming, as renameat2(2) and `shmem_rename2`.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use splicefs_core::{Caller, Errno, FileKind, Identified, Name, NodeId, RenameFlags, Result};

use crate::Tmpfs;
use crate::dir::Directory;
use crate::node::Node;
use crate::remove::bury;

/// What is to be done, with its locks held.
struct Rename<'a> {
    fs: &'a Tmpfs,
    caller: &'a Caller,
    from: (&'a Arc<Node>, &'a Name),
    to: (&'a Arc<Node>, &'a Name),
    moved: Arc<Node>,
    target: Option<Arc<Node>>,
}

/// The entries of both directories, which may be one.
struct Locked<'a> {
    from: RwLockWriteGuard<'a, Directory>,
    to: Option<RwLockWriteGuard<'a, Directory>>,
}

impl Locked<'_> {
    fn to(&mut self) -> &mut Directory {
        self.to.as_deref_mut().unwrap_or(&mut self.from)
    }
}

fn is_directory(node: &Node) -> bool {
    node.kind() == FileKind::Directory
}

impl Tmpfs {
    /// Renames. A rename between two directories holds the gate, so that no directory can be moved meanwhile and what is
    /// above what stays so.
    pub(crate) fn rename_node(
        &self,
        caller: &Caller,
        from: (&Arc<Node>, &Name),
        to: (&Arc<Node>, &Name),
        RenameFlags(flags): RenameFlags,
    ) -> Result<()> {
        let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if flags & !known != 0 || exchange && flags & !libc::RENAME_EXCHANGE != 0 {
            return Err(Errno::EINVAL.into());
        }
        let same = Arc::ptr_eq(from.0, to.0);
        let _gate = (!same).then(|| self.gate.lock());
        // An entry of a directory is never above it: with one directory there is nothing to look for.
        let above = if same { Default::default() } else { Above { from: line(from.0)?, to: line(to.0)? } };
        let from_first =
            above.to.contains(&from.0.id()) || !above.from.contains(&to.0.id()) && from.0.id() < to.0.id();
        // Dropped after the locks.
        let _gone = self.shared.orphans.patiently(|| {
            let mut locked = if same {
                Locked { from: from.0.directory()?.write(), to: None }
            } else if from_first {
                let first = from.0.directory()?.write();
                Locked { from: first, to: Some(to.0.directory()?.write()) }
            } else {
                let first = to.0.directory()?.write();
                Locked { from: from.0.directory()?.write(), to: Some(first) }
            };
            let moved = locked.from.get(from.1)?;
            locked.to().check_alive()?;
            let target = locked.to().find(to.1).cloned();
            let rename = Rename { fs: self, caller, from, to, moved, target };
            rename.check(flags, &above)?;
            match &rename.target {
                Some(target) if Arc::ptr_eq(target, &rename.moved) => Ok(None),
                Some(target) if exchange => rename.exchange(&mut locked, target).map(|()| None),
                _ => rename.replace(&mut locked, flags & libc::RENAME_WHITEOUT != 0),
            }
        })?;
        Ok(())
    }
}

/// Two directories, each with all that are above it.
#[derive(Default)]
struct Above {
    from: Vec<NodeId>,
    to: Vec<NodeId>,
}

/// The line from a directory up to the root, both included. None of its locks is held.
fn line(directory: &Arc<Node>) -> Result<Vec<NodeId>> {
    let mut line = vec![directory.id()];
    let mut at = directory.directory()?.read().parent();
    while let Some(node) = at {
        line.push(node.id());
        at = node.directory()?.read().parent();
    }
    Ok(line)
}

impl Rename<'_> {
    /// The rules of renameat2(2) (`vfs_rename` in fs/namei.c).
    fn check(&self, flags: u32, above: &Above) -> Result<()> {
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if exchange && self.target.is_none() {
            return Err(Errno::ENOENT.into());
        }
        if flags & libc::RENAME_NOREPLACE != 0 && self.target.is_some() {
            return Err(Errno::EEXIST.into());
        }
        // A directory must not come to lie in itself.
        if above.to.contains(&self.moved.id()) {
            return Err(Errno::EINVAL.into());
        }
        let Some(target) = &self.target else { return Ok(()) };
        if above.from.contains(&target.id()) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY }.into());
        }
        match (is_directory(&self.moved), is_directory(target)) {
            _ if exchange => Ok(()),
            (true, false) => Err(Errno::ENOTDIR.into()),
            (false, true) => Err(Errno::EISDIR.into()),
            _ => Ok(()),
        }
    }

    fn exchange(&self, locked: &mut Locked<'_>, target: &Arc<Node>) -> Result<()> {
        locked.from.replace(self.from.1, target.clone());
        locked.to().replace(self.to.1, self.moved.clone());
        if !Arc::ptr_eq(self.from.0, self.to.0) {
            self.move_directory(&self.moved, self.from.0, self.to.0)?;
            self.move_directory(target, self.to.0, self.from.0)?;
        }
        target.meta().changed();
        self.done();
        Ok(())
    }

    /// Returns what was replaced.
    fn replace(&self, locked: &mut Locked<'_>, whiteout: bool) -> Result<Option<Arc<Node>>> {
        // What can fail comes before what changes anything.
        let whiteout = whiteout.then(|| self.fs.new_whiteout(self.caller, self.from.0)).transpose()?;
        if let Some(target) = &self.target
            && is_directory(target)
        {
            bury(&mut target.directory()?.write())?;
        }
        if let Some(node) = whiteout {
            locked.from.replace(self.from.1, node);
        } else {
            locked.from.remove(self.from.1);
        }
        let gone = locked.to().remove(self.to.1);
        locked.to().add(self.to.1, self.moved.clone());
        if !Arc::ptr_eq(self.from.0, self.to.0) {
            self.move_directory(&self.moved, self.from.0, self.to.0)?;
        }
        if let Some(gone) = &gone {
            if is_directory(gone) {
                gone.lose_directory();
                self.to.0.meta().nlink -= 1;
            } else {
                gone.lose_name();
            }
        }
        self.done();
        Ok(gone)
    }

    /// `node`, if it is a directory, now lies in `to`.
    fn move_directory(&self, node: &Arc<Node>, from: &Arc<Node>, to: &Arc<Node>) -> Result<()> {
        if is_directory(node) {
            node.directory()?.write().set_parent(to);
            from.meta().nlink -= 1;
            to.meta().nlink += 1;
        }
        Ok(())
    }

    /// Sets the times (`simple_rename_timestamp` in fs/libfs.c).
    fn done(&self) {
        self.from.0.meta().modified();
        if !Arc::ptr_eq(self.from.0, self.to.0) {
            self.to.0.meta().modified();
        }
        self.moved.meta().changed();
    }
}
