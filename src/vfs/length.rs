//! The length of a file, as reads and truncations agree on it.
//!
//! To the kernel a short reply to a cached READ is the end of the file: it fills the folios up with zeros
//! (`fuse_do_readfolio`, `fuse_readpages_end`) and lowers `i_size` before anyone sees them (`fuse_short_read`). But
//! while a truncation is under way it does not: `fuse_do_setattr` sets `FUSE_I_SIZE_UNSTABLE`, upon which
//! `fuse_read_update_size` does nothing, and stores the new `i_size` itself, when its thread runs again after the reply.
//! Until then `filemap_read` trusts the old `i_size`, and shows the zeros of a short reply as data. With `O_TRUNC` in
//! OPEN there is no such flag, but the same happens where attributes arrived after the READ was sent (`attr_version`).
//!
//! So no READ is answered between a truncation and its reply, and one that crosses the new end waits until the thread
//! that truncated has gone on ([`super::replied`]): the size is the first thing that it stores. Nothing in the protocol tells us
//! more: a notification neither waits for `i_size` nor shows it (`fuse_retrieve` looks at it, but leaves out folios that are
//! still being read).
//!
//! That wait must have an end, for both: `truncate_pagecache`, which follows on the new size, waits for the folios of the READ.
//! That is also why the thread is soon asleep where it matters.

use std::thread;
use std::time::Instant;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use splicefs_core::Result;
use splicefs_core::sys::Doing;

use super::replied::{Replied, pauses};

/// Held for reading from the plan of a read to its reply, for writing over what shortens the file and its reply. The
/// pages in a pipe are the file's own, and a truncation zeroes the rest of the last page: a reader must not see that as
/// data.
///
/// Lock order: before every lock of the backend.
#[derive(Debug, Default)]
pub(crate) struct Length(RwLock<Latest>);

/// The last reply that said that the file is shorter now; few files ever are.
type Latest = Option<Box<Replied>>;

/// As long as it lives, the file is not made shorter.
#[must_use]
pub(super) struct Kept<'a>(
    #[allow(dead_code, reason = "it is held for its drop")] RwLockReadGuard<'a, Latest>,
);

impl Length {
    /// Keeps the length, for an answer to a READ of thread `reader`. `crosses_end` says whether the READ goes beyond the
    /// end of the file; it is asked only soon after a truncation.
    ///
    /// # Errors
    /// Those of `crosses_end`.
    pub(super) fn keep(&self, reader: u32, crosses_end: impl Fn() -> Result<bool>) -> Result<Kept<'_>> {
        let kept = self.0.read();
        if kept.is_none() {
            return Ok(Kept(kept));
        }
        self.keep_settled(kept, reader, crosses_end)
    }

    #[cold]
    fn keep_settled<'a>(
        &'a self,
        mut kept: RwLockReadGuard<'a, Latest>,
        reader: u32,
        crosses_end: impl Fn() -> Result<bool>,
    ) -> Result<Kept<'a>> {
        for pause in pauses() {
            let now = Instant::now();
            let settled = kept.as_ref().is_none_or(|shrunk| shrunk.is_settled(reader, now));
            if settled
                || !crosses_end()?
                || kept.as_ref().is_some_and(|shrunk| shrunk.look(now, Doing::Waits))
            {
                break;
            }
            // Another truncation may come in between; its reply is waited for as well.
            RwLockReadGuard::unlocked(&mut kept, || thread::sleep(pause));
        }
        Ok(Kept(kept))
    }

    /// The file may become shorter: waits until nobody keeps its length.
    pub(super) fn change(&self) -> Change<'_> {
        Change(self.0.write())
    }

    /// Whether no truncation matters any longer.
    pub(super) fn is_settled(&self) -> bool {
        self.0.read().as_ref().is_none_or(|shrunk| shrunk.is_old(Instant::now()))
    }

    /// Thread `caller` has sent a request about the file.
    pub(super) fn heard_from(&self, caller: u32) {
        // Where this would block, another truncation is under way.
        if let Some(Some(shrunk)) = self.0.try_read().as_deref()
            && shrunk.is_to(caller)
        {
            shrunk.settle();
        }
    }
}

/// As long as it lives, nobody reads the file.
#[must_use]
pub(super) struct Change<'a>(RwLockWriteGuard<'a, Latest>);

impl Change<'_> {
    /// The reply to thread `by`, that the file is shorter, has just been written.
    pub(super) fn told_shorter(mut self, by: u32) {
        *self.0 = Some(Box::new(Replied::new(by)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::replied::SETTLING_UNSEEN;
    use super::*;

    /// A thread that cannot be seen.
    const UNSEEN: u32 = 0;

    #[test]
    fn one_who_truncates_and_asks_again_has_seen_the_reply() {
        let length = Length(RwLock::new(Some(Box::new(Replied::new(7)))));
        let is_settled =
            |reader| length.0.read().as_ref().is_some_and(|shrunk| shrunk.is_settled(reader, shrunk.when));
        assert!(is_settled(7) && !is_settled(1));
        length.heard_from(8);
        assert!(!is_settled(1));
        length.heard_from(7);
        assert!(is_settled(1));
    }

    #[test]
    fn nobody_is_not_a_thread() {
        let length = Length(RwLock::new(Some(Box::new(Replied::new(UNSEEN)))));
        length.heard_from(UNSEEN);
        let kept = length.0.read();
        let shrunk = kept.as_ref().unwrap();
        assert!(!shrunk.is_settled(UNSEEN, shrunk.when) && !shrunk.look(shrunk.when, Doing::Waits));
    }

    #[test]
    fn a_file_that_was_never_shortened_is_not_asked_for_its_end() {
        let length = Length::default();
        drop(length.change());
        assert!(length.keep(1, || panic!("it was")).is_ok());
    }

    #[test]
    fn only_a_read_across_the_end_waits() {
        let length = Length::default();
        let before = Instant::now();
        length.change().told_shorter(UNSEEN);
        assert!(length.keep(1, || Ok(false)).is_ok());
        assert!(length.keep(1, || Ok(true)).is_ok());
        assert!(before.elapsed() >= SETTLING_UNSEEN);
    }

    #[test]
    fn no_read_waits_forever() {
        let (length, stop) = (Length::default(), AtomicBool::new(false));
        length.change().told_shorter(UNSEEN);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    length.change().told_shorter(UNSEEN);
                    thread::sleep(SETTLING_UNSEEN / 5);
                }
            });
            assert!(length.keep(1, || Ok(true)).is_ok());
            stop.store(true, Ordering::Relaxed);
        });
    }
}
