//! Lookups whose answers the kernel may not have stored yet, and what is changed meanwhile.
//!
//! With a writeback cache the kernel takes size and time of modification of a file from us once, when it makes the inode, and
//! believes itself from then on. Between our answer to a LOOKUP and that moment others can find the file, change it, and be
//! done with it: the inode that they changed is evicted, and what the first thread then makes of its old answer stays wrong. A
//! file shows its old length: what was cut off reads as zeros, what was added is missing and soon written over.
//!
//! It takes two who look up a file for the first time: since Linux 6.16 a thread that finds the name which another one has just
//! entered, but not yet marked with its epoch (`fuse_lookup` in fs/fuse/dir.c), throws it away and asks again.
//!
//! As long as a request is not answered, the inode that it changes is there, and an answer that arrives is about this one and
//! changes nothing. So what has changed a file is answered when those who look it up have gone on ([`super::replied`]), and who
//! looks up a file while any is changed looks at it again. Both of them see the other: a change is counted, then lookups are
//! gone through; a lookup is noted, then the count is compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use splicefs_core::NodeId;

use super::replied::{Replied, pauses};

/// Nodes share these many sets of lookups, by their ids.
const SETS: usize = 64;
/// The most lookups that are known of one set; a new one takes the place of the oldest.
const WAYS: usize = 8;

/// The lookups of the last while, and how often anything was changed.
pub(super) struct Lookups {
    /// None where the kernel believes us.
    sets: Box<[Mutex<[Option<Lookup>; WAYS]>]>,
    changes: AtomicU64,
}

#[derive(Debug)]
struct Lookup {
    node: NodeId,
    thread: u32,
    since: Instant,
    /// Its answer, once that is written.
    reply: Option<Replied>,
}

/// How often anything had been changed at some time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes(u64);

/// A lookup that is being answered; when it is dropped, it has been.
#[must_use]
pub(super) struct Answering<'a> {
    lookups: &'a Lookups,
    node: NodeId,
    thread: u32,
}

impl Lookups {
    /// They matter with a writeback cache.
    pub(super) fn new(writeback: bool) -> Self {
        let sets = if writeback { SETS } else { 0 };
        Self { sets: (0..sets).map(|_| Mutex::default()).collect(), changes: AtomicU64::new(0) }
    }

    fn set(&self, node: NodeId) -> Option<&Mutex<[Option<Lookup>; WAYS]>> {
        self.sets.get(usize::try_from(node.0).unwrap_or(0) % SETS)
    }

    /// To be asked before a file is looked at.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.changes.load(Ordering::SeqCst))
    }

    /// Thread `thread` is about to be told of `node`, which was looked at after `before`; and whether that must be done again.
    pub(super) fn note(&self, node: NodeId, thread: u32, before: Changes) -> (Option<Answering<'_>>, bool) {
        // A thread that we cannot see would make everybody wait.
        let Some(set) = self.set(node).filter(|_| thread != 0) else { return (None, false) };
        let mut lookups = set.lock();
        let same =
            lookups.iter().position(|known| known.as_ref().is_some_and(|known| known.thread == thread));
        let oldest = || (0..WAYS).min_by_key(|&way| lookups[way].as_ref().map(|known| known.since));
        if let Some(way) = same.or_else(oldest) {
            lookups[way] = Some(Lookup { node, thread, since: Instant::now(), reply: None });
        }
        drop(lookups);
        (Some(Answering { lookups: self, node, thread }), self.changes() != before)
    }

    /// Thread `by` has changed `node`, and is told so when this returns: those who look it up have gone on.
    pub(super) fn settle(&self, node: NodeId, by: u32) {
        let Some(set) = self.set(node) else { return };
        self.changes.fetch_add(1, Ordering::SeqCst);
        for pause in pauses() {
            let mut waits = false;
            for known in set.lock().iter_mut() {
                if known.as_ref().is_some_and(|lookup| lookup.node == node) {
                    known.take_if(|lookup| lookup.has_gone_on(by));
                    waits |= known.is_some();
                }
            }
            if !waits {
                return;
            }
            thread::sleep(pause);
        }
    }
}

impl Lookup {
    /// Whether its thread is `by`, or has acted upon its answer.
    fn has_gone_on(&self, by: u32) -> bool {
        let now = Instant::now();
        self.thread == by
            || self.reply.as_ref().is_some_and(|reply| reply.is_settled(by, now) || reply.look(now))
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let Some(set) = self.lookups.set(self.node) else { return };
        let mut lookups = set.lock();
        let own = |lookup: &&mut Lookup| lookup.thread == self.thread && lookup.node == self.node;
        if let Some(lookup) = lookups.iter_mut().flatten().find(own) {
            lookup.reply = Some(Replied::new(self.thread));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::replied::SETTLING;
    use super::*;

    const NODE: NodeId = NodeId(7);
    /// No thread has this number.
    const NO_THREAD: u32 = u32::MAX;

    fn noted(lookups: &Lookups, node: NodeId, thread: u32) -> Answering<'_> {
        lookups.note(node, thread, lookups.changes()).0.expect("it is noted")
    }

    fn known(lookups: &Lookups) -> usize {
        lookups.sets.iter().map(|set| set.lock().iter().flatten().count()).sum()
    }

    #[test]
    fn a_change_waits_for_the_answer_of_a_lookup() {
        let lookups = Lookups::new(true);
        let start = Instant::now();
        let answering = noted(&lookups, NODE, NO_THREAD);
        thread::scope(|scope| {
            let change = scope.spawn(|| lookups.settle(NODE, 1));
            thread::sleep(SETTLING / 10);
            let waits = !change.is_finished();
            // On a machine that stood still meanwhile it has given up.
            assert!(waits || start.elapsed() >= SETTLING);
            drop(answering);
            change.join().unwrap();
        });
        assert_eq!(known(&lookups), 0);
    }

    #[test]
    fn a_change_does_not_wait_for_ever() {
        let lookups = Lookups::new(true);
        let _answering = noted(&lookups, NODE, NO_THREAD);
        lookups.settle(NODE, 1);
        assert_eq!(known(&lookups), 1, "it gave up");
    }

    #[test]
    fn a_change_waits_for_nobody_else() {
        let lookups = Lookups::new(true);
        let other = NodeId(NODE.0 + SETS as u64);
        let start = Instant::now();
        let (_own, _other) = (noted(&lookups, NODE, 1), noted(&lookups, other, 2));
        lookups.settle(NODE, 1);
        assert!(start.elapsed() < SETTLING || known(&lookups) == 1);
        assert_eq!(known(&lookups), 1, "its own is over");
    }

    #[test]
    fn who_looked_before_a_change_looks_again() {
        let lookups = Lookups::new(true);
        let before = lookups.changes();
        assert!(!lookups.note(NODE, 1, before).1);
        lookups.settle(NODE, 1);
        assert!(lookups.note(NODE, 1, before).1);
        assert!(!lookups.note(NODE, 1, lookups.changes()).1);
    }

    #[test]
    fn the_latest_lookups_are_known_one_of_each_thread() {
        let lookups = Lookups::new(true);
        for thread in 1..=20 {
            drop(noted(&lookups, NODE, thread));
            drop(noted(&lookups, NODE, thread));
        }
        let set = lookups.set(NODE).expect("a set").lock();
        let mut threads: Vec<_> = set.iter().flatten().map(|lookup| lookup.thread).collect();
        threads.sort_unstable();
        assert_eq!(threads, (13..=20).collect::<Vec<_>>());
        assert!(set.iter().flatten().all(|lookup| lookup.reply.is_some()));
    }

    #[test]
    fn nothing_is_noted_of_threads_unseen_or_where_it_does_not_matter() {
        assert!(Lookups::new(true).note(NODE, 0, Changes(0)).0.is_none());
        let unneeded = Lookups::new(false);
        assert!(unneeded.note(NODE, 1, unneeded.changes()).0.is_none());
        unneeded.settle(NODE, 2);
        assert!(!unneeded.note(NODE, 1, Changes(0)).1);
    }
}
