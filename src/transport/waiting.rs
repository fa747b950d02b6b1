//! Requests that wait without a thread, and shares of the threads.
//!
//! A request that has kept its thread for long while no thread was left to wait for requests is *held*. Of the threads, what is held
//! for one caller, for one file system below or for one name has a share. A request that may be held by the same is set aside once
//! the share is full, with its own copy of the message, and served when one of those that were held comes back. So the others go on
//! reading requests.
//!
//! What may be held: a request for a file that is not of the root's own file system, by that file system; and one that looks at
//! names, where something else may be mounted. What the kernel asks for on its own account is never set aside, nor what may hold
//! locks of pages or directories that others want ([`Keys::of`]): only its own caller waits for a request that is.
//!
//! A request that finds a lease is set aside, too, and tried again from time to time: the lease is given back, or the kernel takes it
//! (`lease-break-time`, fcntl(2)).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::request::{Opcode, Request};
use super::wire::flag;

/// A request that finds a lease is tried again after so long, at first; each time twice as long as before.
const LEASE_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_LEASE_PAUSE: Duration = Duration::from_millis(64);
/// Bytes of messages that are set aside, of all callers and of one.
const MOST_BYTES: usize = 64 << 20;
const MOST_BYTES_OF_ONE: usize = 8 << 20;
/// What a message takes at least.
const OVERHEAD: usize = 256;
/// Interrupts that found nothing are remembered for so many more: what they meant may be about to be set aside.
const MOST_MISSED: usize = 64;

/// Who asks for what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Keys {
    pub(super) uid: u32,
    pub(super) node: u64,
    /// Of the name in the directory that is looked at; 0 without one.
    pub(super) name: u64,
}

impl Keys {
    pub(super) fn of(request: &Request<'_>, opcode: Option<Opcode>) -> Self {
        let names = opcode.is_some_and(Opcode::looks_at_names);
        let name = if names { hash(request.header.nodeid, request.arguments()) } else { 0 };
        Self { uid: request.header.uid, node: request.header.nodeid, name }
    }
}

impl Opcode {
    /// Whether something else may be mounted on a name that it looks at.
    fn looks_at_names(self) -> bool {
        matches!(
            self,
            Self::Lookup | Self::Readdirplus | Self::Unlink | Self::Rmdir | Self::Rename | Self::Rename2
        )
    }

    /// Whether the request is the kernel's own, for which others may wait.
    fn is_the_kernels(self, request: &Request<'_>) -> bool {
        // In a WRITE: a handle, an offset, the length, then flags.
        const WRITE_FLAGS: usize = 20;
        match self {
            Self::Forget
            | Self::BatchForget
            | Self::Interrupt
            | Self::Release
            | Self::Releasedir
            | Self::Destroy => true,
            Self::Write => {
                let flags = request.arguments().get(WRITE_FLAGS..WRITE_FLAGS + 4);
                let flags = flags.and_then(|flags| flags.try_into().ok()).map_or(0, u32::from_ne_bytes);
                flags & flag::WRITE_CACHE != 0
            }
            _ => false,
        }
    }
}

impl Request<'_> {
    /// Whether somebody waits for the answer who can be told that there is no room for the request.
    pub(super) fn is_asked_by_a_caller(&self) -> bool {
        self.opcode().is_some_and(|opcode| !opcode.is_the_kernels(self))
    }
}

/// FNV-1a; never 0.
fn hash(node: u64, name: &[u8]) -> u64 {
    let bytes = node.to_ne_bytes();
    let all = bytes.iter().chain(name);
    let hash = all.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

/// The file system of a node, if it is not the root's.
pub(super) type FileSystems<'a> = &'a dyn Fn(u64) -> Option<u64>;

/// A request that was set aside and is to be served now.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) message: Box<[u8]>,
    keys: Keys,
    unique: u64,
    /// It has found a lease so many times.
    pub(super) tries: u32,
}

impl Aside {
    pub(super) fn new(message: &[u8], request: &Request<'_>, tries: u32) -> Self {
        let keys = Keys::of(request, request.opcode());
        Self { message: message.into(), keys, unique: request.header.unique, tries }
    }

    fn bytes(&self) -> usize {
        self.message.len() + OVERHEAD
    }
}

/// What became of a request that was to wait for a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leased {
    /// It waits.
    Waits,
    /// It was interrupted.
    Interrupted,
    /// So much waits that there is no room for it.
    Refused,
}

/// How many threads may be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// For a file system below; for a caller, if more in file systems below are asked for.
    file_system: usize,
    /// For a caller, if names are looked at.
    caller: usize,
    /// For one name.
    name: usize,
}

impl Shares {
    pub(super) fn of(threads: usize) -> Self {
        Self {
            file_system: (threads * 3 / 8).max(1),
            caller: (threads * 5 / 8).max(1),
            name: (threads / 4).max(1),
        }
    }
}

/// What is held, and what waits.
#[derive(Debug)]
pub(super) struct Waiting {
    shares: Shares,
    /// The threads that are held, by their numbers, and by what.
    held: Vec<(usize, Keys)>,
    /// For a share.
    queued: VecDeque<Aside>,
    /// For a lease, and when they are tried again.
    leased: Vec<(Instant, Aside)>,
    /// To be served by the next thread that is free.
    ready: VecDeque<Aside>,
    bytes: usize,
    missed: VecDeque<u64>,
}

impl Waiting {
    pub(super) fn new(shares: Shares) -> Self {
        Self {
            shares,
            held: Vec::new(),
            queued: VecDeque::new(),
            leased: Vec::new(),
            ready: VecDeque::new(),
            bytes: 0,
            missed: VecDeque::new(),
        }
    }

    /// Whether a request may have to wait.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Thread `thread` is held.
    pub(super) fn hold(&mut self, thread: usize, keys: Keys) {
        if self.held.iter().all(|(other, _)| *other != thread) {
            self.held.push((thread, keys));
        }
    }

    /// Thread `thread` is free again. What may be served now that had to wait is ready then.
    pub(super) fn release(&mut self, thread: usize, file_systems: FileSystems<'_>) {
        self.held.retain(|(other, _)| *other != thread);
        self.admit_next(file_systems);
    }

    /// One of those that wait for a share is ready, if one may be. To be called when one that had waited has been served.
    pub(super) fn admit_next(&mut self, file_systems: FileSystems<'_>) {
        let free = self.queued.iter().position(|aside| !self.is_full(aside.keys, file_systems));
        self.ready.extend(free.and_then(|free| self.queued.remove(free)));
    }

    /// Whether a request of these keys has to wait for a share.
    fn is_full(&self, keys: Keys, file_systems: FileSystems<'_>) -> bool {
        let count = |is: &dyn Fn(&Keys) -> bool| self.held.iter().filter(|(_, held)| is(held)).count();
        let of_caller = count(&|held| held.uid == keys.uid);
        if let Some(own) = file_systems(keys.node) {
            let below = count(&|held| file_systems(held.node) == Some(own));
            return below >= self.shares.file_system || of_caller >= self.shares.file_system;
        }
        keys.name != 0
            && (of_caller >= self.shares.caller || count(&|held| held.name == keys.name) >= self.shares.name)
    }

    /// Sets the request in `message` aside if it has to wait for a share. `Err` where there is no room for it.
    pub(super) fn queue(
        &mut self,
        message: &[u8],
        request: &Request<'_>,
        file_systems: FileSystems<'_>,
    ) -> Result<bool, ()> {
        let Some(opcode) = request.opcode() else { return Ok(false) };
        let keys = Keys::of(request, Some(opcode));
        if opcode.is_the_kernels(request) || !self.is_full(keys, file_systems) {
            return Ok(false);
        }
        let aside = Aside::new(message, request, 0);
        if !self.has_room(&aside) {
            return Err(());
        }
        self.bytes += aside.bytes();
        self.queued.push_back(aside);
        Ok(true)
    }

    /// The request has found a lease.
    pub(super) fn lease(&mut self, aside: Aside, now: Instant, may_be_refused: bool) -> Leased {
        if let Some(missed) = self.missed.iter().position(|unique| *unique == aside.unique) {
            self.missed.remove(missed);
            return Leased::Interrupted;
        }
        if may_be_refused && !self.has_room(&aside) {
            return Leased::Refused;
        }
        self.bytes += aside.bytes();
        let pause = (LEASE_PAUSE * 2u32.saturating_pow(aside.tries.min(16))).min(LONGEST_LEASE_PAUSE);
        self.leased.push((now + pause, Aside { tries: aside.tries.saturating_add(1), ..aside }));
        Leased::Waits
    }

    fn has_room(&self, aside: &Aside) -> bool {
        let waiting = self.queued.iter().chain(self.leased.iter().map(|(_, leased)| leased));
        let own: usize = waiting.filter(|other| other.keys.uid == aside.keys.uid).map(Aside::bytes).sum();
        self.bytes + aside.bytes() <= MOST_BYTES && own + aside.bytes() <= MOST_BYTES_OF_ONE
    }

    /// Makes ready what is to be tried again at `now`; how many there are, and when the next one is.
    pub(super) fn try_again(&mut self, now: Instant) -> (usize, Option<Instant>) {
        let before = self.ready.len();
        let due = self.leased.extract_if(.., |(when, _)| *when <= now);
        self.ready.extend(due.map(|(_, aside)| aside));
        (self.ready.len() - before, self.leased.iter().map(|(when, _)| *when).min())
    }

    /// The next request that is ready.
    pub(super) fn next(&mut self) -> Option<Aside> {
        let aside = self.ready.pop_front()?;
        self.bytes -= aside.bytes();
        Some(aside)
    }

    /// The request of that number is interrupted: whether it waited for a lease, and does not any more.
    pub(super) fn interrupt(&mut self, unique: u64) -> bool {
        let Some(at) = self.leased.iter().position(|(_, aside)| aside.unique == unique) else {
            if self.missed.len() == MOST_MISSED {
                self.missed.pop_front();
            }
            self.missed.push_back(unique);
            return false;
        };
        let (_, aside) = self.leased.swap_remove(at);
        self.bytes -= aside.bytes();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const RELEASE: u32 = 18;
    /// Nodes from here on are of a file system below.
    const BELOW: u64 = 100;

    fn file_systems(node: u64) -> Option<u64> {
        (node >= BELOW).then_some(node / BELOW)
    }

    fn message(opcode: u32, node: u64, uid: u32, name: &str) -> Vec<u8> {
        let mut message = vec![0; 40];
        message[4..8].copy_from_slice(&opcode.to_ne_bytes());
        message[8..16].copy_from_slice(&u64::from(uid).to_ne_bytes());
        message[16..24].copy_from_slice(&node.to_ne_bytes());
        message[24..28].copy_from_slice(&uid.to_ne_bytes());
        message.extend_from_slice(name.as_bytes());
        message.push(0);
        message
    }

    fn waiting() -> Waiting {
        Waiting::new(Shares::of(16))
    }

    /// Holds as many threads as the request may hold; how many.
    fn fill(waiting: &mut Waiting, messages: impl Iterator<Item = Vec<u8>>) -> usize {
        for (thread, message) in messages.enumerate() {
            let request = Request::parse(&message).unwrap();
            if waiting.queue(&message, &request, &file_systems).unwrap() {
                return thread;
            }
            waiting.hold(thread, Keys::of(&request, request.opcode()));
        }
        panic!("there is no share");
    }

    fn waits(waiting: &mut Waiting, message: &[u8]) -> bool {
        let request = Request::parse(message).unwrap();
        waiting.queue(message, &request, &file_systems).unwrap()
    }

    #[test]
    fn callers_file_systems_and_names_have_shares_and_hold_up_no_others() {
        let mut of_file_system = waiting();
        assert_eq!(fill(&mut of_file_system, (0..).map(|uid| message(GETATTR, BELOW, uid, ""))), 6);
        assert!(!waits(&mut of_file_system, &message(GETATTR, 2 * BELOW, 1, "")));
        assert!(!waits(&mut of_file_system, &message(GETATTR, 1, 1, "")));
        assert!(!waits(&mut of_file_system, &message(RELEASE, BELOW, 1, "")));
        assert!(waits(&mut of_file_system, &message(LOOKUP, BELOW + 1, 1, "name")));
        let mut of_caller = waiting();
        let elsewhere = (1..).map(|number| message(GETATTR, number * BELOW, 7, ""));
        assert_eq!(fill(&mut of_caller, elsewhere), 6);
        assert!(!waits(&mut of_caller, &message(GETATTR, 50 * BELOW, 8, "")));
        assert!(!waits(&mut of_caller, &message(LOOKUP, 1, 7, "name")));
        let mut of_name = waiting();
        assert_eq!(fill(&mut of_name, (0..).map(|uid| message(LOOKUP, 1, uid, "hung"))), 4);
        assert!(!waits(&mut of_name, &message(LOOKUP, 1, 1, "other")));
        let mut of_names = waiting();
        let names = (0..).map(|number: u32| message(LOOKUP, 1, 7, &number.to_string()));
        assert_eq!(fill(&mut of_names, names), 10);
        assert!(!waits(&mut of_names, &message(GETATTR, 1, 7, "")));
        assert!(!waits(&mut of_names, &message(LOOKUP, 1, 8, "another")));
    }

    #[test]
    fn what_waits_for_a_share_is_served_when_one_comes_back() {
        let mut waiting = waiting();
        assert_eq!(fill(&mut waiting, (0..).map(|uid| message(GETATTR, BELOW, uid, ""))), 6);
        assert!(waiting.next().is_none());
        waiting.release(3, &file_systems);
        assert_eq!(waiting.next().unwrap().keys.uid, 6);
        waiting.admit_next(&file_systems);
        assert!(waiting.next().is_none());
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn a_lease_is_tried_again_and_can_be_interrupted() {
        let mut waiting = waiting();
        let message = message(GETATTR, 1, 7, "");
        let request = Request::parse(&message).unwrap();
        let now = Instant::now();
        let aside = |tries| Aside::new(&message, &request, tries);
        assert_eq!(waiting.lease(aside(0), now, true), Leased::Waits);
        let (none, next) = waiting.try_again(now);
        assert_eq!((none, next), (0, Some(now + LEASE_PAUSE)));
        assert_eq!(waiting.try_again(now + LEASE_PAUSE), (1, None));
        let again = waiting.next().unwrap();
        assert_eq!(again.tries, 1);
        // While it is tried.
        assert!(!waiting.interrupt(7));
        assert_eq!(waiting.lease(again, now, true), Leased::Interrupted);
        assert_eq!(waiting.lease(aside(100), now, true), Leased::Waits);
        assert_eq!(waiting.try_again(now).1, Some(now + LONGEST_LEASE_PAUSE));
        assert!(waiting.interrupt(7));
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn one_caller_cannot_take_all_memory() {
        let mut waiting = waiting();
        let now = Instant::now();
        let mut large = message(GETATTR, 1, 7, "");
        large.resize(1 << 20, 0);
        let request = Request::parse(&large).unwrap();
        let mut taken = 0;
        while waiting.lease(Aside::new(&large, &request, 0), now, true) == Leased::Waits {
            taken += large.len();
        }
        assert!((1..=MOST_BYTES_OF_ONE).contains(&taken));
        // Data that the kernel writes back is never refused.
        assert_eq!(waiting.lease(Aside::new(&large, &request, 0), now, false), Leased::Waits);
        let other = message(GETATTR, 1, 8, "");
        let request = Request::parse(&other).unwrap();
        assert_eq!(waiting.lease(Aside::new(&other, &request, 0), now, true), Leased::Waits);
    }
}
