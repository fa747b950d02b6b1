//! Directory entries, packed into a reply of the size the kernel asked for.

use std::ops::ControlFlow;

use splicefs_core::DirEntry;
use zerocopy::IntoBytes;

use super::answer;
use super::wire::{Dirent, EntryOut};
use crate::vfs::Found;

/// Entries of one reply.
pub(crate) struct Entries<'o> {
    out: &'o mut Vec<u8>,
    size: usize,
}

/// Every entry starts at a multiple of this (`FUSE_DIRENT_ALIGN`).
const ALIGN: usize = 8;

impl<'o> Entries<'o> {
    /// Packs into `out`, at most `size` bytes.
    pub(crate) fn new(out: &'o mut Vec<u8>, size: usize) -> Self {
        out.clear();
        Self { out, size }
    }

    /// Adds an entry (`struct fuse_dirent`), if it fits.
    pub(crate) fn add(&mut self, entry: DirEntry<'_>) -> ControlFlow<()> {
        self.push(None, entry)
    }

    /// Adds an entry and its node (`struct fuse_direntplus`), if it fits. Without a node the kernel takes the name and
    /// looks it up itself when it needs to.
    pub(crate) fn add_plus(&mut self, entry: DirEntry<'_>, found: Option<&Found>) -> ControlFlow<()> {
        let out = found.map_or_else(EntryOut::default, answer::entry);
        self.push(Some(&out), entry)
    }

    fn push(&mut self, node: Option<&EntryOut>, entry: DirEntry<'_>) -> ControlFlow<()> {
        let lead = node.map_or(0, |_| size_of::<EntryOut>());
        let len = (lead + size_of::<Dirent>() + entry.name.len()).next_multiple_of(ALIGN);
        let end = self.out.len() + len;
        if end > self.size {
            return ControlFlow::Break(());
        }
        if let Some(node) = node {
            self.out.extend_from_slice(node.as_bytes());
        }
        let dirent = Dirent {
            ino: entry.ino,
            off: entry.next.0,
            // A name of a directory has at most 255 bytes on Linux.
            namelen: u32::try_from(entry.name.len()).unwrap_or(0),
            kind: entry.kind.to_dtype(),
        };
        self.out.extend_from_slice(dirent.as_bytes());
        self.out.extend_from_slice(entry.name);
        self.out.resize(end, 0);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use splicefs_core::{Cookie, FileKind};

    use super::*;

    #[test]
    fn entries_are_packed_until_the_size_asked_for() {
        let entry = |name| DirEntry { name, ino: 7, kind: FileKind::Regular, next: Cookie(9) };
        let mut out = vec![1, 2, 3];
        let mut entries = Entries::new(&mut out, 64);
        assert!(entries.add(entry(b"a")).is_continue());
        assert!(entries.add(entry(b"bcdefghi")).is_continue());
        assert!(entries.add(entry(b"c")).is_break());
        assert_eq!(out.len(), 64);
        assert_eq!((&out[..8], out[24], &out[25..32]), (&7u64.to_ne_bytes()[..], b'a', &[0; 7][..]));
        assert_eq!(&out[56..64], b"bcdefghi");
    }
}
