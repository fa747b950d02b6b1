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
//! that truncated has gone on: it sleeps again, has used processor time, or sends another request. The reply made it
//! runnable, and the size is the first thing that it stores. Nothing in the protocol tells us more: a notification
//! neither waits for `i_size` nor shows it (`fuse_retrieve` looks at it, but leaves out folios that are still being read).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use splicefs_core::Result;
use splicefs_core::sys::{self, Activity};

/// The longest that a READ waits, and that a truncation makes any wait: as long as a thread may wait for a processor on a
/// busy machine.
///
/// It must have an end: `truncate_pagecache`, which follows on the new size, waits for the folios of the READ. That is
/// also why the thread is soon asleep where it matters.
const SETTLING: Duration = Duration::from_millis(200);
/// The same where the thread cannot be seen: it is gone, or in another pid namespace, or hidden (`hidepid`).
const SETTLING_UNSEEN: Duration = Duration::from_millis(5);
/// Between two looks at the thread, at first; each pause is twice as long as the one before.
const PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// The kernel has been told that the file is shorter now.
#[derive(Debug)]
struct Shrunk {
    when: Instant,
    /// The thread that asked for it, as requests name it; 0 is any that we cannot see, and the kernel's own.
    by: u32,
    /// How long that thread had run when it was first looked at, or [`NOT_LOOKED`].
    ticks: AtomicU64,
    /// That thread has gone on.
    settled: AtomicBool,
}

const NOT_LOOKED: u64 = u64::MAX;

impl Shrunk {
    fn new(by: u32) -> Self {
        Self { when: Instant::now(), by, ticks: AtomicU64::new(NOT_LOOKED), settled: AtomicBool::new(false) }
    }

    /// Whether `thread` is the one that asked for it.
    fn is_by(&self, thread: u32) -> bool {
        self.by == thread && thread != 0
    }

    /// Whether it is too long ago, at `now`, to matter to an answer to thread `reader`, or known to be over.
    fn is_settled(&self, reader: u32, now: Instant) -> bool {
        self.settled.load(Ordering::Relaxed)
            || self.is_by(reader)
            || now.duration_since(self.when) >= SETTLING
    }

    /// Looks at the thread, at `now`: whether it is known or must be taken to have gone on.
    fn look(&self, now: Instant) -> bool {
        let activity = if self.by == 0 { None } else { sys::activity(self.by) };
        let settled = match activity {
            None => now.duration_since(self.when) >= SETTLING_UNSEEN,
            Some(Activity { asleep: true, .. }) => true,
            Some(Activity { asleep: false, ticks }) => {
                let first = self.ticks.fetch_min(ticks, Ordering::Relaxed);
                first != NOT_LOOKED && ticks > first
            }
        };
        if settled {
            self.settled.store(true, Ordering::Relaxed);
        }
        settled
    }
}

/// Held for reading from the plan of a read to its reply, for writing over what shortens the file and its reply. The
/// pages in a pipe are the file's own, and a truncation zeroes the rest of the last page: a reader must not see that as
/// data.
///
/// Lock order: before every lock of the backend.
#[derive(Debug, Default)]
pub(crate) struct Length(RwLock<Latest>);

/// The last time that the file was made shorter; few files ever are.
type Latest = Option<Box<Shrunk>>;

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
        let (start, mut pause) = (Instant::now(), PAUSE);
        loop {
            let now = Instant::now();
            let settled = kept.as_ref().is_none_or(|shrunk| shrunk.is_settled(reader, now));
            if settled || now.duration_since(start) >= SETTLING || !crosses_end()? {
                return Ok(Kept(kept));
            }
            if kept.as_ref().is_some_and(|shrunk| shrunk.look(now)) {
                return Ok(Kept(kept));
            }
            // Another truncation may come in between; its reply is waited for as well.
            RwLockReadGuard::unlocked(&mut kept, || thread::sleep(pause));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The file may become shorter: waits until nobody keeps its length.
    pub(super) fn change(&self) -> Change<'_> {
        Change(self.0.write())
    }

    /// Whether no truncation matters any longer.
    pub(super) fn is_settled(&self) -> bool {
        self.0.read().as_ref().is_none_or(|shrunk| shrunk.when.elapsed() >= SETTLING)
    }

    /// Thread `caller` has sent a request about the file.
    pub(super) fn heard_from(&self, caller: u32) {
        // Where this would block, another truncation is under way.
        if let Some(Some(shrunk)) = self.0.try_read().as_deref()
            && shrunk.is_by(caller)
        {
            shrunk.settled.store(true, Ordering::Relaxed);
        }
    }
}

/// As long as it lives, nobody reads the file.
#[must_use]
pub(super) struct Change<'a>(RwLockWriteGuard<'a, Latest>);

impl Change<'_> {
    /// The reply to thread `by`, that the file is shorter, has just been written.
    pub(super) fn told_shorter(mut self, by: u32) {
        *self.0 = Some(Box::new(Shrunk::new(by)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No thread has this number.
    const NO_THREAD: u32 = u32::MAX;

    #[test]
    fn a_truncation_matters_for_so_long() {
        let shrunk = Shrunk::new(7);
        assert!(!shrunk.is_settled(1, shrunk.when));
        assert!(!shrunk.is_settled(0, shrunk.when));
        assert!(shrunk.is_settled(1, shrunk.when + SETTLING));
    }

    #[test]
    fn a_thread_that_goes_on_has_seen_its_reply() {
        let length = Length(RwLock::new(Some(Box::new(Shrunk::new(7)))));
        let is_settled =
            |reader| length.0.read().as_ref().is_some_and(|shrunk| shrunk.is_settled(reader, shrunk.when));
        assert!(is_settled(7) && !is_settled(1));
        length.heard_from(8);
        assert!(!is_settled(1));
        length.heard_from(7);
        assert!(is_settled(1));
    }

    #[test]
    fn a_thread_that_sleeps_or_has_run_has_seen_its_reply() {
        let this = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let running = Shrunk::new(this);
        assert!(
            !running.look(running.when + SETTLING_UNSEEN),
            "it may have waited for a processor until now"
        );
        while !running.look(running.when) {}
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let sleeper = thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_pid().cast_unsigned()).unwrap();
            gone.recv().unwrap_err();
        });
        let shrunk = Shrunk::new(told.recv().unwrap());
        while !shrunk.look(shrunk.when) {
            thread::yield_now();
        }
        assert!(shrunk.is_settled(1, shrunk.when));
        drop(go);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_thread_that_is_not_seen_has_less_time() {
        let shrunk = Shrunk::new(NO_THREAD);
        assert!(!shrunk.look(shrunk.when));
        assert!(shrunk.look(shrunk.when + SETTLING_UNSEEN));
    }

    #[test]
    fn nobody_is_not_a_thread() {
        let length = Length(RwLock::new(Some(Box::new(Shrunk::new(0)))));
        length.heard_from(0);
        let kept = length.0.read();
        let shrunk = kept.as_ref().unwrap();
        assert!(!shrunk.is_settled(0, shrunk.when) && !shrunk.look(shrunk.when));
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
        length.change().told_shorter(NO_THREAD);
        assert!(length.keep(1, || Ok(false)).is_ok());
        assert!(length.keep(1, || Ok(true)).is_ok());
        assert!(before.elapsed() >= SETTLING_UNSEEN);
    }

    #[test]
    fn no_read_waits_forever() {
        let (length, stop) = (Length::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    length.change().told_shorter(NO_THREAD);
                    thread::sleep(SETTLING_UNSEEN / 5);
                }
            });
            assert!(length.keep(1, || Ok(true)).is_ok());
            stop.store(true, Ordering::Relaxed);
        });
    }
}
