//! Lookups whose answers the kernel may not have stored yet, and what is changed meanwhile.
//!
//! With a writeback cache the kernel takes size and time of modification of a file from us once, when it makes the inode, and
//! believes itself from then on. Between our answer to a LOOKUP and that moment others can find the file, change it, and be
//! done with it: the inode that they changed is evicted, and what the first thread then makes of its old answer stays wrong. A
//! file shows its old length: what was cut off reads as zeros, what was added is missing and soon written over. Kernels before 6.14
//! (`evict_ctr` in fs/fuse/inode.c) take such an answer for a new one without a writeback cache as well, and keep it as long as it says.
//!
//! It takes two who look up a file for the first time: since Linux 6.16 a thread that finds the name which another one has just
//! entered, but not yet marked with its epoch (`fuse_lookup` in fs/fuse/dir.c), throws it away and asks again. Or it takes a file
//! of several names, of which the one by which it was changed is removed: then the first answer may be to a READDIRPLUS as well.
//!
//! As long as a request is not answered, the inode that it changes is there, and an answer that arrives is about this one and
//! changes nothing. So what has changed a file is answered when those who looked it up before have gone on ([`super::replied`]),
//! and who looks up a file while any is changed looks at it again. One of the two sees the other: a change is counted, then
//! lookups are gone through; a lookup is noted, then the count is compared. Nobody waits who changes a file of which a single
//! lookup is counted: the inode was made by its answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use splicefs_core::NodeId;
use splicefs_core::sys::Doing;

use super::replied::{Replied, pauses};

/// Nodes share these many sets of lookups, by their ids.
const SETS: usize = 64;
/// The most lookups that are known of one set; a new one takes the place of one that is over, or of the oldest.
const WAYS: usize = 16;
/// Threads share these many places for what was heard of them last.
const PLACES: u32 = 1024;

/// The lookups of the last while, and how often anything was changed.
pub(super) struct Lookups {
    /// None where the kernel soon asks again.
    sets: Box<[Mutex<Set>]>,
    changes: AtomicU64,
    heard: Heard,
}

type Set = [Option<Lookup>; WAYS];

/// Which thread has sent a request last, of those that share a place, and how many they have sent: a thread that has sent another
/// one is done with the answer before.
struct Heard(Box<[AtomicU64]>);

impl Heard {
    fn place(&self, thread: u32) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(thread % PLACES).unwrap_or(0))
    }

    /// What its place says.
    fn of(&self, thread: u32) -> u64 {
        self.place(thread).map_or(0, |place| place.load(Ordering::Acquire))
    }

    fn add(&self, thread: u32) {
        let Some(place) = self.place(thread) else { return };
        let times = (place.load(Ordering::Relaxed) + 1) & u64::from(u32::MAX);
        place.store(u64::from(thread) << 32 | times, Ordering::Release);
    }
}

#[derive(Debug)]
struct Lookup {
    node: NodeId,
    thread: u32,
    since: Instant,
    /// The changes that it knows of.
    knows: Changes,
    /// What had been heard of its thread.
    heard: u64,
    /// Its answer, once that is written.
    reply: Option<Replied>,
}

/// How often anything had been changed at some time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) struct Changes(u64);

/// A lookup that is being answered; when it is dropped, it has been.
#[must_use]
pub(crate) struct Answering<'a> {
    lookups: &'a Lookups,
    node: NodeId,
    thread: u32,
}

impl Lookups {
    /// Whether an old answer `matters` is for [`super::Caching::outlasts_answers`] to say.
    pub(super) fn new(matters: bool) -> Self {
        let (sets, places) = if matters { (SETS, PLACES) } else { (0, 0) };
        let heard = Heard((0..places).map(|_| AtomicU64::new(0)).collect());
        Self { sets: (0..sets).map(|_| Mutex::default()).collect(), changes: AtomicU64::new(0), heard }
    }

    fn set(&self, node: NodeId) -> Option<&Mutex<Set>> {
        self.sets.get(usize::try_from(node.0).unwrap_or(0) % SETS)
    }

    /// Thread `thread` asks for something, and waits for that itself.
    pub(super) fn heard_from(&self, thread: u32) {
        self.heard.add(thread);
    }

    /// To be asked before a file is looked at.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.changes.load(Ordering::SeqCst))
    }

    /// Thread `thread` is about to be told of `node`, which was looked at after `before`; and whether that must be done again.
    pub(super) fn note(&self, node: NodeId, thread: u32, before: Changes) -> (Option<Answering<'_>>, bool) {
        // A thread that we cannot see would make everybody wait.
        let Some(set) = self.set(node).filter(|_| thread != 0) else {
            return (None, self.changes() != before);
        };
        let mut lookups = set.lock();
        // Of those that are known a thread has one for each node, since each change may wait for it.
        let own = |known: &Lookup| (known.thread, known.node) == (thread, node);
        let find = |is: &dyn Fn(&Lookup) -> bool| lookups.iter().position(|way| way.as_ref().is_some_and(is));
        let now = Instant::now();
        let way = find(&own).or_else(|| lookups.iter().position(Option::is_none));
        let way = way.or_else(|| find(&|known| self.is_over(known, now)));
        let oldest = || (0..WAYS).min_by_key(|&way| lookups[way].as_ref().map(|known| known.since));
        let knows = self.changes();
        if let Some(way) = way.or_else(oldest) {
            let heard = self.heard.of(thread);
            lookups[way] = Some(Lookup { node, thread, since: now, knows, heard, reply: None });
        }
        drop(lookups);
        (Some(Answering { lookups: self, node, thread }), knows != before)
    }

    /// Something was changed; `None` where that does not matter.
    pub(super) fn changed(&self) -> Option<Changes> {
        let matters = !self.sets.is_empty();
        matters.then(|| Changes(self.changes.fetch_add(1, Ordering::SeqCst) + 1))
    }

    /// Thread `by` has changed `node`, and is told so when this returns: those who looked it up before have gone on.
    pub(super) fn settle(&self, node: NodeId, by: u32, change: Changes) {
        let Some(set) = self.set(node) else { return };
        for pause in pauses() {
            let mut waits = false;
            for known in set.lock().iter_mut() {
                // Who looks it up later is told of the change.
                if known.as_ref().is_some_and(|lookup| lookup.node == node && lookup.knows < change) {
                    known.take_if(|lookup| lookup.thread == by || self.has_gone_on(lookup));
                    waits |= known.is_some();
                }
            }
            if !waits {
                return;
            }
            thread::sleep(pause);
        }
    }

    /// Whether its thread has sent another request, or all that is too long ago.
    fn is_over(&self, lookup: &Lookup, now: Instant) -> bool {
        let heard = self.heard.of(lookup.thread);
        (heard >> 32 == u64::from(lookup.thread) && heard != lookup.heard)
            || lookup.reply.as_ref().is_some_and(|reply| reply.is_old(now))
    }

    /// Whether its thread has acted upon its answer. What it waits for meanwhile may be memory for the inode.
    fn has_gone_on(&self, lookup: &Lookup) -> bool {
        let now = Instant::now();
        self.is_over(lookup, now) || lookup.reply.as_ref().is_some_and(|reply| reply.look(now, Doing::Sleeps))
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

    /// Thread `by` changes `node`.
    fn change(lookups: &Lookups, node: NodeId, by: u32) {
        lookups.settle(node, by, lookups.changed().expect("it matters"));
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
            let changes = scope.spawn(|| change(&lookups, NODE, 1));
            thread::sleep(SETTLING / 10);
            let waits = !changes.is_finished();
            // On a machine that stood still meanwhile it has given up.
            assert!(waits || start.elapsed() >= SETTLING);
            drop(answering);
            changes.join().unwrap();
        });
        assert_eq!(known(&lookups), 0);
    }

    #[test]
    fn a_change_does_not_wait_for_ever() {
        let lookups = Lookups::new(true);
        let _answering = noted(&lookups, NODE, NO_THREAD);
        change(&lookups, NODE, 1);
        assert_eq!(known(&lookups), 1, "it gave up");
    }

    #[test]
    fn who_asks_for_something_else_is_not_waited_for() {
        let lookups = Lookups::new(true);
        let start = Instant::now();
        for thread in [3, 3 + PLACES] {
            lookups.heard_from(thread);
            let answering = noted(&lookups, NODE, thread);
            // Another one that shares the place says nothing of it.
            lookups.heard_from(3 + 2 * PLACES);
            assert!(!lookups.is_over(lookups.sets[7].lock()[0].as_ref().unwrap(), start));
            lookups.heard_from(thread);
            assert!(lookups.is_over(lookups.sets[7].lock()[0].as_ref().unwrap(), start));
            change(&lookups, NODE, 1);
            assert_eq!(known(&lookups), 0);
            drop(answering);
        }
        assert!(start.elapsed() < SETTLING);
    }

    #[test]
    fn a_change_waits_for_nobody_who_knows_of_it() {
        let lookups = Lookups::new(true);
        let start = Instant::now();
        let before = lookups.changed().expect("it matters");
        let _answering = noted(&lookups, NODE, NO_THREAD);
        lookups.settle(NODE, 1, before);
        assert!(start.elapsed() < SETTLING);
        assert_eq!(known(&lookups), 1);
    }

    #[test]
    fn a_change_waits_for_nobody_else() {
        let lookups = Lookups::new(true);
        let other = NodeId(NODE.0 + SETS as u64);
        let start = Instant::now();
        let (_own, _other) = (noted(&lookups, NODE, 1), noted(&lookups, other, 2));
        change(&lookups, NODE, 1);
        assert!(start.elapsed() < SETTLING || known(&lookups) == 1);
        assert_eq!(known(&lookups), 1, "its own is over");
    }

    #[test]
    fn who_looked_before_a_change_looks_again() {
        let lookups = Lookups::new(true);
        let before = lookups.changes();
        assert!(!lookups.note(NODE, 1, before).1);
        change(&lookups, NODE, 1);
        assert!(lookups.note(NODE, 1, before).1);
        assert!(!lookups.note(NODE, 1, lookups.changes()).1);
    }

    #[test]
    fn all_lookups_of_one_answer_are_known() {
        let lookups = Lookups::new(true);
        let nodes = (0..4).map(|times| NodeId(NODE.0 + times * SETS as u64));
        let answering: Vec<_> = nodes.map(|node| noted(&lookups, node, 1)).collect();
        assert_eq!(known(&lookups), 4);
        drop(answering);
    }

    #[test]
    fn the_latest_lookups_are_known_but_for_those_that_are_over() {
        let lookups = Lookups::new(true);
        let threads = || {
            let set = lookups.set(NODE).expect("a set").lock();
            let mut threads: Vec<_> = set.iter().flatten().map(|lookup| lookup.thread).collect();
            threads.sort_unstable();
            threads
        };
        for thread in 1..=20 {
            drop(noted(&lookups, NODE, thread));
            drop(noted(&lookups, NODE, thread));
        }
        assert_eq!(threads(), (5..=20).collect::<Vec<_>>());
        lookups.heard_from(18);
        drop(noted(&lookups, NODE, 21));
        assert_eq!(threads(), (5..=17).chain(19..=21).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_noted_of_threads_unseen_or_where_it_does_not_matter() {
        assert!(Lookups::new(true).note(NODE, 0, Changes(0)).0.is_none());
        let unneeded = Lookups::new(false);
        assert!(unneeded.note(NODE, 1, unneeded.changes()).0.is_none());
        assert_eq!(unneeded.changed(), None);
        assert!(!unneeded.note(NODE, 1, Changes(0)).1);
    }
}
