//! From a file's first name to its end: when its room is free again.
//!
//! Without a name and without anybody who has it open, a file is gone for everybody, and its room counts as free. The
//! kernel's FORGET comes later, when it has dropped what it kept of the file (for a large one that takes a tenth of a
//! second and more), and only then the bytes go: until that, a descriptor opened with `O_PATH` may open the file again
//! through /proc/self/fd.

use std::ops::Deref;
use std::sync::Arc;

use splicefs_core::Result;

use crate::node::{Body, Meta, Node};

/// Somebody uses the bytes or attributes of a node: as long as this lives, its room counts as taken.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Node>);

impl InUse {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        node.with_pages(|pages, meta| {
            meta.users += 1;
            if meta.nlink == 0 && meta.users == 1 {
                node.take_room_again(meta, pages);
                node.shared().orphans.born();
            }
        });
        Self(node)
    }
}

impl Deref for InUse {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let node = &self.0;
        node.with_pages(|pages, meta| {
            meta.users -= 1;
            if meta.nlink == 0 && meta.users == 0 {
                node.shared().orphans.gone();
                node.give_room(meta, pages);
            }
        });
    }
}

impl Node {
    /// Takes a name from what is no directory.
    pub(crate) fn lose_name(&self) {
        self.with_pages(|pages, meta| {
            meta.nlink = meta.nlink.saturating_sub(1);
            meta.changed();
            if meta.nlink > 0 {
                // Each name beyond the first counts as an inode (`shmem_unlink`).
                self.store().limits.give_inode();
            } else {
                self.lost_last_name(meta, pages);
            }
        });
    }

    /// Takes its only name from a directory, which is empty and can hold nothing any more.
    pub(crate) fn lose_directory(&self) {
        let mut meta = self.meta();
        meta.nlink = 0;
        meta.changed();
        self.lost_last_name(&mut meta, 0);
    }

    fn lost_last_name(&self, meta: &mut Meta, pages: u64) {
        if meta.users > 0 {
            self.shared().orphans.born();
        } else {
            self.give_room(meta, pages);
        }
    }

    /// Gives a name to what is no directory. A name beyond the first counts as an inode, since the kernel's tmpfs counts
    /// it so (`shmem_link`).
    ///
    /// # Errors
    /// `ENOSPC` where the limits leave no inode.
    pub(crate) fn gain_name(&self) -> Result<()> {
        self.with_pages(|pages, meta| {
            if meta.nlink > 0 {
                self.store().limits.take_inode()?;
            } else if meta.users > 0 {
                self.shared().orphans.gone();
            } else {
                self.take_room_again(meta, pages);
            }
            meta.nlink += 1;
            meta.changed();
            Ok(())
        })
    }

    /// Does `operation` with the pages that the node counts for, which stay as many meanwhile.
    fn with_pages<T>(&self, operation: impl FnOnce(u64, &mut Meta) -> T) -> T {
        match self.body() {
            Body::File(content) => {
                let content = content.read();
                operation(content.pages(), &mut self.meta())
            }
            Body::Symlink(_, pages) => operation(*pages, &mut self.meta()),
            Body::Directory(_) | Body::Special(_) => operation(0, &mut self.meta()),
        }
    }

    /// Counts the room of the node as free.
    fn give_room(&self, meta: &mut Meta, pages: u64) {
        meta.room_given = true;
        let limits = &self.store().limits;
        limits.give_pages(pages);
        limits.give_inode();
        limits.give_inode_space(meta.attributes.as_ref().map_or(0, |attributes| attributes.space()));
    }

    /// Counts the room of a node as taken again, which somebody has opened once more: even where a limit is exceeded by
    /// it, since the bytes are there.
    fn take_room_again(&self, meta: &mut Meta, pages: u64) {
        if std::mem::take(&mut meta.room_given) {
            let space = meta.attributes.as_ref().map_or(0, |attributes| attributes.space());
            self.store().limits.take_again(pages, space);
        }
    }
}
