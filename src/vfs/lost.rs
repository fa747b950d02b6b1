//! Writes that write(2) acknowledged and that could not be written back later.
//!
//! What can be known before is told by open(2) or write(2) (see [`super::xattrs`] for files that are not opened). What is left is the
//! medium's: no room, a quota, a failing device, a file system that was made read-only meanwhile. The caller hears of it from fsync(2)
//! and close(2), the operator from the log, once a file, and from `stats`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use splicefs_core::{Backend, Errno, Error, NodeId};

use super::Vfs;

/// How many requests to write back have failed, by the name of the error.
///
/// Lock order: a leaf.
#[derive(Debug, Default)]
pub(super) struct LostWrites(Mutex<BTreeMap<&'static str, u64>>);

impl LostWrites {
    fn count(&self, error: Errno) {
        *self.0.lock().entry(name(error)).or_default() += 1;
    }

    pub(super) fn snapshot(&self) -> BTreeMap<String, u64> {
        self.0.lock().iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }
}

fn name(error: Errno) -> &'static str {
    match error {
        Errno::ENOSPC => "ENOSPC",
        Errno::EDQUOT => "EDQUOT",
        Errno::EIO => "EIO",
        Errno::EROFS => "EROFS",
        Errno::EFBIG => "EFBIG",
        Errno::EPERM => "EPERM",
        Errno::EACCES => "EACCES",
        Errno::ENFILE | Errno::EMFILE => "ENFILE",
        Errno::ENOMEM => "ENOMEM",
        Errno::ESTALE => "ESTALE",
        _ => "other",
    }
}

/// What the kernel is told of an error of writing back. It remembers ENOSPC and takes all else for EIO (`mapping_set_error` in
/// include/linux/pagemap.h): a quota that is used up is a lack of room.
fn told(error: Error) -> Error {
    if error.errno() == Errno::EDQUOT { Errno::ENOSPC.into() } else { error }
}

impl<B: Backend> Vfs<B> {
    /// Counts and logs that pages of a file could not be written back; what the kernel is told.
    pub(super) fn lost_write(&self, id: NodeId, error: Error) -> Error {
        self.stats.lost.count(error.errno());
        let is_first = self.node(id).map_or(true, |node| {
            let used = self.nodes.state(&node);
            !used.lost.swap(true, Ordering::Relaxed)
        });
        if is_first {
            let path = self.node(id).ok().and_then(|node| self.backend.path_of(&node));
            let file = path.map_or_else(|| format!("node {id}"), |path| format!("{path:?}"));
            log::error!(
                "{file}: what was written to it is lost, as fsync(2) and close(2) of its writers say: {error}"
            );
        }
        told(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_that_is_used_up_is_told_as_no_room_and_counted_as_what_it_is() {
        assert_eq!(told(Errno::EDQUOT.into()).errno(), Errno::ENOSPC);
        for same in [Errno::ENOSPC, Errno::EIO, Errno::EFBIG] {
            assert_eq!(told(same.into()).errno(), same);
        }
        let lost = LostWrites::default();
        for error in [Errno::EDQUOT, Errno::EDQUOT, Errno::ELOOP] {
            lost.count(error);
        }
        let counted = [("EDQUOT".to_owned(), 2), ("other".to_owned(), 1)];
        assert_eq!(lost.snapshot(), BTreeMap::from(counted));
    }
}
