//! How much a mount may hold: `size=` or `nr_blocks=`, and `nr_inodes=` (tmpfs(5)).

use parking_lot::Mutex;
use splicefs_core::{Errno, Result, StatFs};

use crate::store::PAGE;

/// Bytes of inode space that a node takes (`BOGO_INODE_SIZE`, mm/shmem.c).
const INODE: u64 = 1024;

/// Longest name, in bytes (`NAME_MAX`).
const NAME_MAX: u32 = 255;

/// Something of which there is so much.
///
/// `used` is at most `max`, but for what [`Limits::take_again`] does. It is counted without a limit, too.
#[derive(Debug)]
struct Account {
    max: Option<u64>,
    used: u64,
}

impl Account {
    fn left(&self) -> u64 {
        self.max.unwrap_or(u64::MAX).saturating_sub(self.used)
    }

    fn take_some(&mut self, n: u64) -> u64 {
        let taken = n.min(self.left());
        self.used += taken;
        taken
    }

    fn take(&mut self, n: u64) -> Result<()> {
        if n > self.left() {
            return Err(Errno::ENOSPC.into());
        }
        self.used += n;
        Ok(())
    }

    fn give(&mut self, n: u64) {
        debug_assert!(n <= self.used, "{n} given back of {}", self.used);
        self.used = self.used.saturating_sub(n);
    }

    /// Whether the limit may become `max` (`shmem_reconfigure`): not below what is in use, and none where there was
    /// none.
    fn may_become(&self, max: Option<u64>) -> bool {
        max.is_none_or(|max| self.max.is_some() && self.used <= max)
    }
}

/// The limits of a mount and what is in use; exact under concurrency. What is taken never exceeds them; what had been
/// given back too early may ([`Limits::take_again`]).
///
/// Lock order: leaves; where both are held, `pages` first.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Pages of files.
    pages: Mutex<Account>,
    /// Bytes of inode space: nodes and their extended attributes.
    inode_space: Mutex<Account>,
}

fn space_of(inodes: Option<u64>) -> Option<u64> {
    inodes.map(|inodes| inodes.saturating_mul(INODE))
}

impl Limits {
    /// At most `max_pages` pages of 4 KiB and `max_inodes` nodes; `None` for no limit.
    pub(crate) fn new(max_pages: Option<u64>, max_inodes: Option<u64>) -> Self {
        Self {
            pages: Mutex::new(Account { max: max_pages, used: 0 }),
            inode_space: Mutex::new(Account { max: space_of(max_inodes), used: 0 }),
        }
    }

    /// Takes `n` pages.
    ///
    /// # Errors
    /// `ENOSPC`, and none is taken, where there are fewer.
    pub(crate) fn take_pages(&self, n: u64) -> Result<()> {
        if n == 0 { Ok(()) } else { self.pages.lock().take(n) }
    }

    /// Takes up to `n` pages and returns how many there were: a write that finds too few is a short one.
    pub(crate) fn take_some_pages(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.pages.lock().take_some(n) }
    }

    /// Gives `n` pages back.
    pub(crate) fn give_pages(&self, n: u64) {
        if n != 0 {
            self.pages.lock().give(n);
        }
    }

    /// Takes `pages`, an inode and `space` bytes for attributes again, which had been given back for a file that nobody
    /// could open any more, but somebody did: beyond the limits where others have taken them meanwhile.
    pub(crate) fn take_again(&self, pages: u64, space: u64) {
        self.pages.lock().used += pages;
        self.inode_space.lock().used += INODE + space;
    }

    /// Number of pages in use.
    pub(crate) fn pages_in_use(&self) -> u64 {
        self.pages.lock().used
    }

    /// Takes the inode space of one node (`shmem_reserve_inode`).
    ///
    /// # Errors
    /// `ENOSPC`
    pub(crate) fn take_inode(&self) -> Result<()> {
        self.take_inode_space(INODE)
    }

    /// Gives the inode space of one node back.
    pub(crate) fn give_inode(&self) {
        self.give_inode_space(INODE);
    }

    /// Takes `bytes` of inode space, for an extended attribute (`shmem_xattr_handler_set`).
    ///
    /// # Errors
    /// `ENOSPC`; never where the number of inodes has no limit.
    pub(crate) fn take_inode_space(&self, bytes: u64) -> Result<()> {
        self.inode_space.lock().take(bytes)
    }

    /// Gives `bytes` of inode space back.
    pub(crate) fn give_inode_space(&self, bytes: u64) {
        self.inode_space.lock().give(bytes);
    }

    /// Sets new limits; an outer `None` leaves one as it is, an inner `None` lifts it (`mount -o remount`).
    ///
    /// # Errors
    /// `EINVAL`, and neither changes, where one is below what is in use, or is put on what had none: the kernel's rule
    /// (`shmem_reconfigure`).
    pub(crate) fn resize(&self, pages: Option<Option<u64>>, inodes: Option<Option<u64>>) -> Result<()> {
        let mut page_account = self.pages.lock();
        let mut space_account = self.inode_space.lock();
        let max_pages = pages.unwrap_or(page_account.max);
        let max_space = inodes.map_or(space_account.max, space_of);
        if pages.is_some() && !page_account.may_become(max_pages)
            || inodes.is_some() && !space_account.may_become(max_space)
        {
            return Err(Errno::EINVAL.into());
        }
        page_account.max = max_pages;
        space_account.max = max_space;
        Ok(())
    }

    /// What statfs(2) tells (`shmem_statfs`): zeros for what has no limit.
    pub(crate) fn statfs(&self) -> StatFs {
        let (blocks, bfree) = {
            let pages = self.pages.lock();
            pages.max.map_or((0, 0), |max| (max, pages.left()))
        };
        let (files, ffree) = {
            let space = self.inode_space.lock();
            space.max.map_or((0, 0), |max| (max / INODE, space.left() / INODE))
        };
        #[expect(clippy::cast_possible_truncation, reason = "4096")]
        let page = PAGE as u32;
        StatFs { blocks, bfree, bavail: bfree, files, ffree, bsize: page, frsize: page, namelen: NAME_MAX }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn failed(result: Result<()>) -> Option<Errno> {
        result.err().map(|e| e.errno())
    }

    #[test]
    fn pages_are_taken_whole_or_in_part() {
        let limits = Limits::new(Some(10), None);
        limits.take_pages(7).unwrap();
        assert_eq!(failed(limits.take_pages(4)), Some(Errno::ENOSPC));
        assert_eq!(limits.take_some_pages(4), 3);
        assert_eq!(limits.take_some_pages(1), 0);
        limits.give_pages(10);
        assert_eq!(limits.pages_in_use(), 0);
    }

    /// Each node is 1024 bytes of one space, which extended attributes share: 978 bytes of `user.a` are the most beside
    /// the root of a kernel tmpfs with nr_inodes=2.
    #[test]
    fn nodes_and_attributes_share_the_inode_space() {
        let limits = Limits::new(None, Some(2));
        limits.take_inode().unwrap();
        assert_eq!(failed(limits.take_inode_space(1025)), Some(Errno::ENOSPC));
        limits.take_inode_space(1024).unwrap();
        assert_eq!(failed(limits.take_inode()), Some(Errno::ENOSPC));
        limits.give_inode_space(1024);
        assert_eq!(limits.statfs().ffree, 1);
        limits.take_inode().unwrap();
        limits.give_inode();
        limits.give_inode();
        assert_eq!((limits.statfs().files, limits.statfs().ffree), (2, 2));
    }

    #[test]
    fn statfs_is_zero_without_limits() {
        let free = Limits::new(None, None);
        free.take_pages(u64::MAX / 2).unwrap();
        free.take_inode().unwrap();
        let told = free.statfs();
        assert_eq!((told.blocks, told.bfree, told.bavail, told.files, told.ffree), (0, 0, 0, 0, 0));
        let limited = Limits::new(Some(9), Some(5));
        limited.take_pages(2).unwrap();
        let told = limited.statfs();
        assert_eq!((told.blocks, told.bfree, told.bavail, told.files, told.ffree), (9, 7, 7, 5, 5));
        assert_eq!((told.bsize, told.frsize, told.namelen), (4096, 4096, 255));
    }

    #[test]
    fn resizing_follows_the_kernel() {
        let limits = Limits::new(Some(10), Some(4));
        limits.take_pages(6).unwrap();
        limits.take_inode().unwrap();
        limits.take_inode_space(1).unwrap();
        for (pages, inodes) in
            [(Some(Some(5)), None), (Some(Some(20)), Some(Some(1))), (Some(Some(5)), Some(None))]
        {
            assert_eq!(failed(limits.resize(pages, inodes)), Some(Errno::EINVAL), "{pages:?} {inodes:?}");
            assert_eq!((limits.statfs().blocks, limits.statfs().files), (10, 4));
        }
        limits.resize(Some(Some(6)), Some(Some(2))).unwrap();
        assert_eq!((limits.statfs().bfree, limits.statfs().ffree), (0, 0));
        limits.resize(Some(None), Some(None)).unwrap();
        limits.resize(None, None).unwrap();
        assert_eq!(failed(limits.resize(Some(Some(1000)), None)), Some(Errno::EINVAL));
        assert_eq!(failed(limits.resize(None, Some(Some(1000)))), Some(Errno::EINVAL));
        limits.give_pages(6);
        assert_eq!(limits.pages_in_use(), 0);
    }

    #[test]
    fn never_exceeded_by_many_threads() {
        let limits = Limits::new(Some(100), None);
        let taken: u64 = thread::scope(|scope| {
            let take = || (0..1000).map(|n| limits.take_some_pages(n % 3)).sum::<u64>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, limits.pages_in_use()), (100, 100));
    }
}
