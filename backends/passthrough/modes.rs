//! Modes that are for a moment wider than they are meant to be ([`crate::lend`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use splicefs_core::NodeId;

/// Setuid and setgid.
pub(crate) const SPECIAL: u32 = 0o6000;
/// In the value of an ACL (include/uapi/linux/posix_acl_xattr.h): after a header, entries of a tag, permissions and an id.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER_OBJ: [u8; 2] = 1u16.to_le_bytes();

/// What is done with a node's mode.
#[derive(Debug, Default)]
struct Use {
    /// Somebody changes it just now.
    busy: bool,
    lent: Option<Lent>,
}

/// A mode that is wider.
#[derive(Clone, Copy, Debug)]
struct Lent {
    /// What it is meant to be.
    before: u32,
    /// How many have it so.
    times: usize,
}

/// The modes of a set of nodes.
///
/// Who changes a mode waits for who changes the mode of this very node, or has it wider; nobody waits to look at one. What a look
/// shows of a node whose mode is wider is put right, and one that may have seen a wider mode, which is no more, is done again.
///
/// Lock order: a leaf, held over no system call.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    /// Some may be wider at all.
    may_lend: AtomicBool,
    uses: Mutex<HashMap<NodeId, Use>>,
    free: Condvar,
    /// How many are wider now.
    lent: AtomicUsize,
    /// How many have become wider, or what they were.
    changes: AtomicU64,
}

/// How many modes had become wider, or what they were, before a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen(u64);

/// As long as it lives, nobody else changes the mode of the node.
#[derive(Debug)]
#[must_use]
pub(crate) struct Changing<'a> {
    modes: &'a Modes,
    node: NodeId,
}

/// The mode that was `before`, without what a write has cleared meanwhile, which is `now`.
pub(crate) fn meant(before: u32, now: u32) -> u32 {
    before & !SPECIAL | before & now & SPECIAL
}

impl Modes {
    /// Modes may be widened from now on.
    pub(crate) fn allow(&self) {
        self.may_lend.store(true, Ordering::SeqCst);
    }

    /// Waits for whoever changes the mode of the node, and for who has it wider if `is_meant`.
    fn take(&self, node: NodeId, is_meant: bool) -> Changing<'_> {
        let mut uses = self.uses.lock();
        self.free.wait_while(&mut uses, |uses| {
            uses.get(&node).is_some_and(|used| used.busy || is_meant && used.lent.is_some())
        });
        uses.entry(node).or_default().busy = true;
        Changing { modes: self, node }
    }

    /// For one who is about to change the mode to what it is meant to be. `None` where none is ever wider.
    pub(crate) fn change(&self, node: NodeId) -> Option<Changing<'_>> {
        self.may_lend.load(Ordering::SeqCst).then(|| self.take(node, true))
    }

    /// For one who is about to make the mode wider, or what it was.
    pub(crate) fn switch(&self, node: NodeId) -> Changing<'_> {
        self.take(node, false)
    }

    /// To be asked before a mode is looked at.
    pub(crate) fn seen(&self) -> Seen {
        Seen(self.changes.load(Ordering::SeqCst))
    }

    /// Puts right what a look after `seen` has shown of the node by `correct`, which is given what the mode is meant to be where it
    /// is wider. False: it may have shown a mode that was wider then, and is to be done again.
    pub(crate) fn put_right(&self, node: NodeId, seen: Seen, correct: impl FnOnce(u32)) -> bool {
        let is_unchanged = || self.changes.load(Ordering::SeqCst) == seen.0;
        if self.lent.load(Ordering::SeqCst) == 0 && is_unchanged() {
            return true;
        }
        let lent = self.uses.lock().get(&node).and_then(|used| used.lent);
        match lent {
            Some(lent) => {
                correct(lent.before);
                true
            }
            None => is_unchanged(),
        }
    }
}

impl Changing<'_> {
    /// What the mode is meant to be, if it is wider, and how many have it so.
    pub(crate) fn lent(&self) -> Option<(u32, usize)> {
        self.modes.uses.lock().get(&self.node)?.lent.map(|lent| (lent.before, lent.times))
    }

    /// The mode is about to be made wider than it is, or one more has it so.
    pub(crate) fn lend(&self, mode: u32) {
        let mut uses = self.modes.uses.lock();
        let used = uses.entry(self.node).or_default();
        if let Some(lent) = &mut used.lent {
            lent.times += 1;
            return;
        }
        used.lent = Some(Lent { before: mode, times: 1 });
        self.modes.lent.fetch_add(1, Ordering::SeqCst);
        self.modes.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// One who had it wider does not any more. The last one has made it what it was.
    pub(crate) fn give_back(&self) {
        let mut uses = self.modes.uses.lock();
        let used = uses.entry(self.node).or_default();
        match &mut used.lent {
            Some(lent) if lent.times > 1 => lent.times -= 1,
            _ => {
                used.lent = None;
                self.modes.changes.fetch_add(1, Ordering::SeqCst);
                self.modes.lent.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut uses = self.modes.uses.lock();
        if uses.get(&self.node).is_some_and(|used| used.lent.is_none()) {
            uses.remove(&self.node);
        } else if let Some(used) = uses.get_mut(&self.node) {
            used.busy = false;
        }
        drop(uses);
        self.modes.free.notify_all();
    }
}

/// An access ACL as it is meant to be, where the mode is meant to be `mode`: of what is lent, it shows the owner's rights.
pub(crate) fn correct_acl(acl: &mut [u8], mode: u32) {
    let owner = u16::try_from(mode >> 6 & 7).unwrap_or(0).to_le_bytes();
    for entry in acl.get_mut(ACL_HEADER..).unwrap_or_default().chunks_exact_mut(ACL_ENTRY) {
        if entry.starts_with(&ACL_USER_OBJ) {
            entry[2..4].copy_from_slice(&owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn what_is_wider_is_shown_as_it_is_meant_to_be() {
        let modes = Modes::default();
        modes.allow();
        let shown = |seen| {
            let mut shown = 0o700;
            modes.put_right(NODE, seen, |before| shown = before).then_some(shown)
        };
        let early = modes.seen();
        assert_eq!(shown(early), Some(0o700));
        let changing = modes.switch(NODE);
        changing.lend(0o400);
        drop(changing);
        assert_eq!(shown(early), Some(0o400));
        let during = modes.seen();
        assert!(modes.put_right(NodeId(8), during, |_| panic!("another node")));
        let changing = modes.switch(NODE);
        assert_eq!(changing.lent(), Some((0o400, 1)));
        changing.give_back();
        drop(changing);
        // It may have been looked at while it was wider.
        assert_eq!(shown(during), None);
        assert_eq!(shown(modes.seen()), Some(0o700));
        assert!(modes.uses.lock().is_empty());
    }

    #[test]
    fn who_sets_a_mode_waits_until_nobody_has_it_wider() {
        let modes = Modes::default();
        assert!(modes.change(NODE).is_none());
        modes.allow();
        for _ in 0..2 {
            modes.switch(NODE).lend(0o400);
        }
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| modes.change(NODE).unwrap().lent());
            modes.switch(NODE).give_back();
            assert!(!waits.is_finished());
            modes.switch(NODE).give_back();
            assert_eq!(waits.join().unwrap(), None);
        });
    }

    #[test]
    fn an_acl_shows_the_owner_what_is_meant() {
        let mut acl = vec![2, 0, 0, 0];
        for (tag, permissions) in [(1u8, 7u8), (4, 5), (16, 5), (32, 4)] {
            acl.extend([tag, 0, permissions, 0, 255, 255, 255, 255]);
        }
        correct_acl(&mut acl, 0o455);
        assert_eq!([acl[6], acl[14], acl[22], acl[30]], [4, 5, 5, 4]);
        correct_acl(&mut [], 0o700);
    }
}
