//! Files whose pages the kernel writes back later (`FUSE_WRITEBACK_CACHE`): write(2) ends in the page cache, and what many
//! writes have left there comes in one WRITE, at fsync(2), at close(2), or when the kernel needs to.
//!
//! Of a regular file that it knows, the kernel then believes its own size and times and not ours
//! (`fuse_get_cache_mask` in fs/fuse/inode.c), and tells them by SETATTR. What follows from that, beside what
//! [`super::Caching`] says:
//!
//! - of a page that is written in part the kernel reads the rest, by whatever descriptor it writes: one for writing alone is
//!   opened for reading, too. Where that is not allowed, each write is asked for;
//! - where an append goes is the kernel's to know, since the end of the file may not have reached us. A file that only grows
//!   (`chattr +a`) takes no pages back but those of descriptors that are older: each write to it is asked for, too;
//! - LSEEK comes while data that we have not seen is in the page cache (`fuse_lseek` in fs/fuse/file.c writes nothing back).
//!   Pages are written back before a descriptor is released, so of a file that nobody has open for writing we know all.
//!   Of another one we have the kernel write back what lies where is asked (`FUSE_NOTIFY_INVAL_INODE` does, and waits). The thread that waits is
//!   one less to answer the WRITEs: if many do, we say that we know no holes, upon which the kernel asks no more and takes all files for data;
//! - a page that comes back is no modification, which was when the page was written to: if the kernel's time has changed, it
//!   tells it, before or after. So the source's time stays what it was;
//! - how much of a page was written it does not look at: a WRITE of pages is done whole, or fails ([`Vfs::write`]).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use splicefs_core::sys::creds;
use splicefs_core::{
    Attr, Backend, Caller, CreateFlags, Errno, Identified, OpenFlags, Opened, Result, SetAttr, SetTime,
    Timestamp,
};

use super::{OpenFile, Vfs};

/// The time of modification that the kernel was told, or has told since.
///
/// Lock order: before every lock of the backend.
#[derive(Debug, Default)]
pub(super) struct Modified(Mutex<Option<Timestamp>>);

/// So long a request waits for others that wait for the kernel to write back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which requests have the kernel write back, and wait for it: that takes other threads, which answer it.
///
/// Lock order: a leaf.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    counts: Mutex<Counts>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Requests that wait for the kernel.
    fetching: usize,
    /// Requests that wait for those.
    queued: usize,
}

/// A request that waits for the kernel.
#[must_use]
struct Fetch<'a>(&'a Fetching);

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        self.0.counts.lock().fetching -= 1;
        self.0.ended.notify_one();
    }
}

impl Fetching {
    /// One more begins, when there is room for it: of all `threads` a quarter waits for the kernel, and at most half of them for that;
    /// some others may wait for something else.
    fn enter(&self, threads: usize) -> Option<Fetch<'_>> {
        let most = (threads / 4).max(1);
        let left = threads.checked_sub(most + 1)?;
        let mut counts = self.counts.lock();
        if counts.fetching >= most {
            if counts.queued >= left.min(threads / 2) {
                return None;
            }
            counts.queued += 1;
            self.ended.wait_while_for(&mut counts, |counts| counts.fetching >= most, PATIENCE);
            counts.queued -= 1;
            if counts.fetching >= most {
                return None;
            }
        }
        counts.fetching += 1;
        Some(Fetch(self))
    }
}

/// The same file, for reading as well.
fn readable(flags: OpenFlags) -> OpenFlags {
    if flags.writes() { OpenFlags(flags.0 & !libc::O_ACCMODE | libc::O_RDWR) } else { flags }
}

/// The change that is left to one who may write a file without owning it, for whom the source sets the times; `None` where
/// that is none of it. The kernel gives each time that it tells the form of one that a person has chosen, but for the access
/// time of a touch.
fn without_rights(change: &SetAttr) -> Option<SetAttr> {
    let touched = change.atime == Some(SetTime::Now);
    let chosen = matches!(change.atime, Some(SetTime::At(_)));
    let owner = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
    let told = matches!(change.mtime, Some(SetTime::At(_))) && !chosen && !owner;
    told.then(|| SetAttr { mtime: touched.then_some(SetTime::Now), ..*change })
}

impl<B: Backend> Vfs<B> {
    /// Opens a file so that the kernel can write its pages back, and says whether it can. A file that only grows cannot be
    /// mapped to be stored to either, then.
    pub(super) fn open_backend(
        &self,
        caller: &Caller,
        node: &Arc<B::Node>,
        flags: OpenFlags,
    ) -> Result<(Opened<B::File>, bool)> {
        let wanted = if self.caching.writeback { readable(flags) } else { flags };
        match self.backend.open(caller, node, wanted) {
            Err(e) if wanted != flags && matches!(e.errno(), Errno::EACCES | Errno::EPERM) => {
                Ok((self.backend.open(caller, node, flags)?, false))
            }
            opened => {
                let opened = opened?;
                let asks = flags.writes() && self.backend.only_grows(&opened.file)?;
                Ok((opened, !asks))
            }
        }
    }

    /// The flags for a file that is created, which its maker may read whatever its mode.
    pub(super) fn creating(&self, flags: CreateFlags) -> CreateFlags {
        if self.caching.writeback { CreateFlags { open: readable(flags.open), ..flags } } else { flags }
    }

    /// Whether a write with `O_APPEND` goes where the source's end is, and not where the kernel says.
    pub(super) fn appends_to_source(&self, open: &OpenFile<B>) -> Result<bool> {
        Ok(!self.caching.writeback || self.backend.only_grows(&open.file)?)
    }

    /// Whether the kernel may have data of the file that has not been written back. Of a file that it need not open nobody tells us.
    fn is_dirty(&self, open: &OpenFile<B>) -> bool {
        self.caching.writeback && (self.caching.unopened || open.used.io_mode.is_written())
    }

    /// Has all data of the file from `offset` on come here.
    ///
    /// # Errors
    /// `ENOSYS` where too few threads are left to take it.
    pub(super) fn fetch_written(&self, open: &OpenFile<B>, offset: u64) -> Result<()> {
        // No file goes as far as where a negative number leads (generic/448 of xfstests).
        if !self.is_dirty(open) || i64::try_from(offset).is_err() {
            return Ok(());
        }
        let _fetching = self.fetching.enter(self.turns.count()).ok_or(Errno::ENOSYS)?;
        Ok(self.kernel.write_back(open.node.id(), offset)?)
    }

    /// Changes attributes in the source.
    pub(super) fn change_attributes(
        &self,
        caller: &Caller,
        node: &Arc<B::Node>,
        file: Option<&B::File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let set = |change: &SetAttr| self.backend.setattr(caller, node, file, change);
        if !self.caching.writeback {
            return set(change);
        }
        if let Some(SetTime::At(time)) = change.mtime
            && *change == (SetAttr { mtime: change.mtime, ..SetAttr::default() })
        {
            // The kernel tells its times of a file whose name goes, too, which must not be copied up for that. It tells each once: what
            // is written back from now on, or is on its way, leaves this one.
            let used = self.nodes.state_if_any(node);
            let told = used.as_ref().map(|used| used.modified.0.lock());
            let attr = self.backend.getattr(node, file)?;
            if attr.mtime == time {
                if let Some(mut told) = told {
                    *told = Some(time);
                }
                return Ok(attr);
            }
        }
        let used = self.nodes.state(node);
        let mut told = used.modified.0.lock();
        match (set(change), without_rights(change)) {
            (Err(e), Some(rest)) if e.errno() == Errno::EPERM => {
                log::debug!("the source keeps its own time of modification: {e}");
                if rest == SetAttr::default() { self.backend.getattr(node, file) } else { set(&rest) }
            }
            (result, _) => {
                let attr = result?;
                if let Some(SetTime::At(time)) = change.mtime {
                    *told = Some(time);
                }
                Ok(attr)
            }
        }
    }

    /// Has pages written back by `write`, and the source keep its time of modification. In a user namespace it takes that of the
    /// writing back: there the kernel cannot tell its times on its own account (`fuse_get_req` in fs/fuse/dev.c has no user to
    /// tell them as), and an old time would stay.
    pub(super) fn write_back<T>(&self, open: &OpenFile<B>, write: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.caching.writeback || !creds::in_initial_user_namespace()? {
            return write();
        }
        let (node, file) = (&open.node, Some(&open.file));
        let known = *open.used.modified.0.lock();
        if known.is_none() {
            let before = self.backend.getattr(node, file)?.mtime;
            open.used.modified.0.lock().get_or_insert(before);
        }
        let written = write();
        let modified = open.used.modified.0.lock();
        let change = SetAttr { mtime: modified.map(SetTime::At), ..SetAttr::default() };
        if let Err(e) = self.backend.setattr(&Caller::DAEMON, node, file, &change) {
            // As for one who may write a file without owning it.
            let level = if e.errno() == Errno::EPERM { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "a file shows the time when it was written back: {e}");
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Option<SetTime> = Some(SetTime::At(Timestamp { sec: 1, nsec: 2 }));

    #[test]
    fn files_for_writing_are_readable() {
        for (flags, expected) in [
            (libc::O_WRONLY | libc::O_APPEND, libc::O_RDWR | libc::O_APPEND),
            (libc::O_RDWR, libc::O_RDWR),
            (libc::O_RDONLY, libc::O_RDONLY),
        ] {
            assert_eq!(readable(OpenFlags(flags)), OpenFlags(expected));
        }
    }

    #[test]
    fn who_may_not_set_a_time_leaves_it_to_the_source() {
        let none = SetAttr::default();
        let told = SetAttr { mtime: THEN, ..none };
        assert_eq!(without_rights(&told), Some(none));
        let touched = SetAttr { atime: Some(SetTime::Now), mtime: THEN, ..none };
        assert_eq!(without_rights(&touched), Some(SetAttr { mtime: Some(SetTime::Now), ..touched }));
        let cut = SetAttr { size: Some(5), mtime: THEN, ..none };
        assert_eq!(without_rights(&cut), Some(SetAttr { size: Some(5), ..none }));
        for chosen in [SetAttr { atime: THEN, ..told }, SetAttr { mode: Some(0), ..told }, none] {
            assert_eq!(without_rights(&chosen), None, "{chosen:?}");
        }
    }
}
