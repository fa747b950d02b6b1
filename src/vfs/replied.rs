//! Replies that the thread they went to may not have acted upon yet.
//!
//! A reply makes its thread runnable, and what the kernel is told is stored when that thread runs again. Nothing in the protocol
//! tells us when. But a thread that sleeps again, has used processor time, or sends another request has gone on; and what it
//! stores of a reply is the first thing that it does, though it may have to wait for memory first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use splicefs_core::sys::{self, Activity, Doing};

/// How long a reply matters at most: as long as a thread may wait for a processor on a busy machine.
pub(super) const SETTLING: Duration = Duration::from_millis(200);
/// The same where the thread cannot be seen: it is in another pid namespace, or hidden (`hidepid`).
pub(super) const SETTLING_UNSEEN: Duration = Duration::from_millis(5);
/// Between two looks at a thread, at first; each pause is twice as long as the one before.
const PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// A reply, which has just been written.
#[derive(Debug)]
pub(super) struct Replied {
    pub(super) when: Instant,
    /// The thread that asked, as requests name it; 0 is any that we cannot see, and the kernel's own.
    to: u32,
    /// How long that thread had run when it was first looked at, or [`NOT_LOOKED`].
    ticks: AtomicU64,
    /// That thread has gone on.
    settled: AtomicBool,
}

const NOT_LOOKED: u64 = u64::MAX;
/// So many ticks more are the end of one at least in which it ran throughout.
const HAS_RUN: u64 = 2;

impl Replied {
    pub(super) fn new(to: u32) -> Self {
        Self { when: Instant::now(), to, ticks: AtomicU64::new(NOT_LOOKED), settled: AtomicBool::new(false) }
    }

    /// Whether it went to `thread`.
    pub(super) fn is_to(&self, thread: u32) -> bool {
        self.to == thread && thread != 0
    }

    /// Whether it is too long ago, at `now`, to matter to thread `other`, or known to have been acted upon.
    pub(super) fn is_settled(&self, other: u32, now: Instant) -> bool {
        self.settled.load(Ordering::Relaxed) || self.is_to(other) || self.is_old(now)
    }

    /// Whether it is too long ago, at `now`, to matter to anybody.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.duration_since(self.when) >= SETTLING
    }

    /// Its thread has sent another request.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Looks at the thread, at `now`: whether it is known or must be taken to have gone on, which it has as well if it does what
    /// is `enough`.
    pub(super) fn look(&self, now: Instant, enough: Doing) -> bool {
        let activity = if self.to == 0 { None } else { sys::activity(self.to) };
        let settled = match activity {
            None => now.duration_since(self.when) >= SETTLING_UNSEEN || self.has_ended(),
            Some(Activity { doing, .. }) if doing >= enough => true,
            Some(Activity { ticks, .. }) => {
                let first = self.ticks.fetch_min(ticks, Ordering::Relaxed);
                first != NOT_LOOKED && ticks >= first + HAS_RUN
            }
        };
        if settled {
            self.settle();
        }
        settled
    }

    /// Whether there is no such thread any longer.
    fn has_ended(&self) -> bool {
        self.to != 0 && !sys::is_thread(self.to)
    }
}

/// The pauses between looks, one by one; none after [`SETTLING`].
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    let start = Instant::now();
    std::iter::successors(Some(PAUSE), |pause| Some((*pause * 2).min(LONGEST_PAUSE)))
        .take_while(move |_| start.elapsed() < SETTLING)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// No thread has this number.
    const NO_THREAD: u32 = u32::MAX;

    #[test]
    fn a_reply_matters_for_so_long() {
        let reply = Replied::new(7);
        assert!(!reply.is_settled(1, reply.when));
        assert!(!reply.is_settled(0, reply.when));
        assert!(reply.is_settled(1, reply.when + SETTLING));
        assert!(!reply.is_old(reply.when) && reply.is_old(reply.when + SETTLING));
    }

    #[test]
    fn a_thread_that_sleeps_or_has_run_has_seen_its_reply() {
        let this = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let running = Replied::new(this);
        assert!(
            !running.look(running.when + SETTLING_UNSEEN, Doing::Waits),
            "it may have waited for a processor until now"
        );
        while !running.look(running.when, Doing::Waits) {}
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let sleeper = thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_pid().cast_unsigned()).unwrap();
            gone.recv().unwrap_err();
        });
        let reply = Replied::new(told.recv().unwrap());
        while !reply.look(reply.when, Doing::Sleeps) {
            thread::yield_now();
        }
        assert!(reply.is_settled(1, reply.when));
        drop(go);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_thread_that_is_not_seen_has_less_time() {
        let reply = Replied::new(0);
        assert!(!reply.look(reply.when, Doing::Sleeps));
        assert!(reply.look(reply.when + SETTLING_UNSEEN, Doing::Sleeps));
    }

    #[test]
    fn a_thread_that_has_ended_waits_for_nothing() {
        let reply = Replied::new(NO_THREAD);
        assert!(reply.look(reply.when, Doing::Sleeps) && reply.is_settled(1, reply.when));
    }
}
