//! How the kernel serves reads and writes of an open file: from its page cache, for which it asks us, or in the backing
//! file by itself (kernel passthrough).
//!
//! The kernel opens a file one way or the other for all who have it open at once, and answers `EIO` to an open that was
//! told otherwise (fs/fuse/iomode.c). So the first to open a file decides, and the others follow until the last has closed it. What we
//! count as open is open in the kernel at most as long: it leaves the mode before it sends RELEASE.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use splicefs_core::sys::creds;
use splicefs_core::{Backend, Result};

use super::{OpenFile, Used, Vfs};

/// The kernel's number for a file that it reads and writes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackingId(pub i32);

/// How an open file is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the page cache of the kernel.
    Cached,
    /// By the kernel in the backing file.
    Backed(BackingId),
    /// Each read and write is asked for. Such an open file has no part in the mode.
    Direct,
}

/// What the opens of a node that last until now have agreed on.
#[derive(Debug, Default)]
struct State {
    /// Open files but those that are [`Way::Direct`].
    open: usize,
    /// Those of them that may be written through.
    writers: usize,
    backing: Option<BackingId>,
    /// The kernel is being given the contents.
    prefetching: bool,
    /// The kernel has written past its page cache and past us, and a mapping may do so even after it is closed.
    bypassed: bool,
}

/// The mode of a node.
///
/// Lock order: a leaf, but for the kernel's table of backing files.
#[derive(Debug, Default)]
pub(super) struct IoMode {
    state: Mutex<State>,
    /// The last one has left, or the kernel has been given the contents.
    free: Condvar,
}

/// RELEASE comes after close(2) has returned: so long does an open that must not join wait for those of files that are closed.
const RELEASING: Duration = Duration::from_millis(20);

/// How far attributes can be relied on while the kernel changes the file by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bypass {
    /// It does not.
    Never,
    /// It may change them by a mapping that outlived its descriptor.
    Once,
    /// It may at any time.
    Now,
}

/// As long as it lives, nobody else enters.
#[must_use]
pub(super) struct Alone<'a>(&'a IoMode);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.state.lock().prefetching = false;
        self.0.free.notify_all();
    }
}

impl IoMode {
    /// One more opens the node. `backing` is asked for the file that the kernel is to serve it from, if nobody has it open.
    /// One who had `better_be_asked` waits a moment for that.
    pub(super) fn enter(
        &self,
        writes: bool,
        better_be_asked: bool,
        backing: impl FnOnce() -> Option<BackingId>,
    ) -> Way {
        let mut state = self.state.lock();
        if better_be_asked && state.backing.is_some() {
            self.free.wait_while_for(&mut state, |state| state.open > 0, RELEASING);
        }
        // Last, for the wait before lets others in.
        self.wait_until_given(&mut state);
        if state.open == 0 {
            state.backing = backing();
        }
        state.open += 1;
        state.writers += usize::from(writes);
        match state.backing {
            Some(id) => {
                state.bypassed |= writes;
                Way::Backed(id)
            }
            None => Way::Cached,
        }
    }

    /// Waits while the kernel is being given the contents.
    fn wait_until_given(&self, state: &mut MutexGuard<'_, State>) {
        self.free.wait_while(state, |state| state.prefetching);
    }

    /// One who opens the node without entering waits as those do.
    pub(super) fn pass_by(&self) {
        self.wait_until_given(&mut self.state.lock());
    }

    /// Keeps others from entering, for one that has entered and is not known to the kernel yet, to give it the contents: if nobody else
    /// has the node open, and the kernel serves it from its page cache.
    pub(super) fn alone(&self) -> Option<Alone<'_>> {
        let mut state = self.state.lock();
        if state.open != 1 || state.writers > 0 || state.backing.is_some() || state.prefetching {
            return None;
        }
        state.prefetching = true;
        Some(Alone(self))
    }

    /// One of those that entered has closed the node. Returns the backing file that nobody needs any longer.
    pub(super) fn leave(&self, writes: bool) -> Option<BackingId> {
        let mut state = self.state.lock();
        state.open = state.open.saturating_sub(1);
        state.writers = state.writers.saturating_sub(usize::from(writes));
        if state.open > 0 {
            return None;
        }
        self.free.notify_all();
        state.backing.take()
    }

    /// Whether the node is open for writing, or was closed a moment ago.
    pub(super) fn is_written(&self) -> bool {
        self.state.lock().writers > 0
    }

    /// Whether the kernel changes the node by itself.
    pub(super) fn bypass(&self) -> Bypass {
        let state = self.state.lock();
        match (state.bypassed, state.backing.is_some() && state.writers > 0) {
            (_, true) => Bypass::Now,
            (true, false) => Bypass::Once,
            (false, false) => Bypass::Never,
        }
    }
}

/// How an open file came to be served as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HowOpened {
    /// By the kernel.
    Backed,
    /// From the page cache, since files are not given to the kernel on this mount, or others had it open so.
    Cached,
    /// The same, since the backend must hear of what is read and written.
    NoBacking,
    /// The same, since a write may have to clear setuid or setgid bits, and not everybody's does.
    SpecialBits,
    /// The same, since the kernel did not take the file.
    Refused,
}

impl HowOpened {
    const ALL: [(Self, &str); 5] = [
        (Self::Backed, "passthrough"),
        (Self::Cached, "cached"),
        (Self::NoBacking, "cached_no_backing"),
        (Self::SpecialBits, "cached_special_bits"),
        (Self::Refused, "cached_refused"),
    ];
}

/// Counts how files were opened.
#[derive(Debug, Default)]
pub(super) struct Opens([AtomicU64; HowOpened::ALL.len()]);

impl Opens {
    pub(super) fn count(&self, how: HowOpened) {
        self.0[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now, by their names in `stats`.
    pub(super) fn snapshot(&self) -> BTreeMap<String, u64> {
        let counts = HowOpened::ALL.iter().zip(&self.0);
        counts.map(|((_, key), n)| ((*key).to_owned(), n.load(Ordering::Relaxed))).collect()
    }
}

impl<B: Backend> Vfs<B> {
    /// Decides how an open file is served. [`Vfs::leave`] undoes it.
    pub(super) fn enter(&self, used: &Used, file: &B::File, writes: bool) -> Way {
        let mut how = HowOpened::Cached;
        // The kernel writes with our rights and not the caller's, which it would take to keep setuid and setgid bits. Who only
        // reads such a file would have a writer follow.
        let special = self.gives_to_kernel() && self.backend.mode(file).map_or(true, creds::has_special_bits);
        let way = used.io_mode.enter(writes, special && writes, || {
            let chosen = self.choose(file, special);
            how = chosen.map_or_else(|how| how, |_| HowOpened::Backed);
            chosen.ok()
        });
        if matches!(way, Way::Backed(_)) {
            how = HowOpened::Backed;
        }
        self.count_open(how);
        way
    }

    /// The file that the kernel is to serve by itself, or why there is none.
    fn choose(&self, file: &B::File, special: bool) -> std::result::Result<BackingId, HowOpened> {
        if !self.gives_to_kernel() {
            return Err(HowOpened::Cached);
        }
        let backing = self.backend.backing(file).ok_or(HowOpened::NoBacking)?;
        if special {
            return Err(HowOpened::SpecialBits);
        }
        self.open_backing(backing.as_fd()).map_err(|e| {
            log::debug!("the kernel does not serve a file by itself: {e}");
            HowOpened::Refused
        })
    }

    fn open_backing(&self, file: std::os::fd::BorrowedFd<'_>) -> Result<BackingId> {
        // For whoever writes, a setuid bit that was set meanwhile goes: better once too often than once too few.
        let _rights = creds::without_fsetid()?;
        self.kernel.open_backing(file)
    }

    /// An open file is closed.
    pub(super) fn leave(&self, open: &OpenFile<B>) {
        if open.way == Way::Direct {
            return;
        }
        if let Some(id) = open.used.io_mode.leave(open.writes)
            && let Err(e) = self.kernel.close_backing(id)
        {
            log::warn!("the kernel keeps backing file {}: {e}", id.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;
    use std::sync::mpsc;

    use splicefs_core::{Caller, Errno, Name, NodeId, OpenFlags, Ownership};

    use super::*;
    use crate::aligned::PAGE;
    use crate::reply::{Engine, Policy, ZeroSource};
    use crate::vfs::{Access, Cache, Caching, Facilities, Facility, Kernel, LookedUp, Stats};

    const FILE: BackingId = BackingId(7);

    fn never() -> Option<BackingId> {
        panic!("somebody has decided already")
    }

    #[test]
    fn the_first_decides_for_all_who_have_it_open_at_once() {
        let mode = IoMode::default();
        assert_eq!(mode.enter(false, false, || Some(FILE)), Way::Backed(FILE));
        assert_eq!(mode.enter(true, false, never), Way::Backed(FILE));
        assert_eq!(mode.leave(false), None);
        assert_eq!(mode.enter(false, false, never), Way::Backed(FILE));
        assert_eq!((mode.leave(true), mode.leave(false)), (None, Some(FILE)));

        let mode = IoMode::default();
        assert_eq!(mode.enter(false, false, || None), Way::Cached);
        assert_eq!(mode.enter(true, false, never), Way::Cached);
        assert_eq!((mode.leave(false), mode.leave(true)), (None, None));
        assert_eq!(mode.enter(false, false, || Some(FILE)), Way::Backed(FILE));
    }

    #[test]
    fn who_had_better_be_asked_waits_for_a_file_that_is_being_closed() {
        let mode = IoMode::default();
        mode.enter(true, false, || Some(FILE));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(RELEASING / 10);
                mode.leave(true);
            });
            assert_eq!(mode.enter(true, true, || None), Way::Cached);
        });
        mode.leave(true);
        mode.enter(true, false, || Some(FILE));
        assert_eq!(mode.enter(true, true, never), Way::Backed(FILE), "but not for one that stays open");
    }

    #[test]
    fn contents_are_given_to_the_first_and_others_wait_for_it() {
        let mode = IoMode::default();
        assert!(mode.alone().is_none(), "nobody has it open");
        mode.enter(false, false, || None);
        let alone = mode.alone().unwrap();
        assert!(mode.alone().is_none());
        let (entered, order) = mpsc::channel();
        std::thread::scope(|scope| {
            for writes in [false, true] {
                let (mode, entered) = (&mode, entered.clone());
                scope.spawn(move || {
                    mode.enter(writes, false, never);
                    entered.send("entered").unwrap();
                });
            }
            let (mode, passed) = (&mode, entered.clone());
            scope.spawn(move || {
                mode.pass_by();
                passed.send("entered").unwrap();
            });
            std::thread::sleep(RELEASING);
            entered.send("given").unwrap();
            drop(alone);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["given", "entered", "entered", "entered"]);
        assert!(mode.alone().is_none(), "others have it open");
    }

    /// The wait for a file to be closed lets others in, the first of whom may be giving the contents when it ends.
    #[test]
    fn regression_who_waits_for_others_to_close_waits_for_the_contents_as_well() {
        for _ in 0..100 {
            let mode = IoMode::default();
            mode.enter(false, false, || Some(FILE));
            let (entered, order) = mpsc::channel();
            let was_alone = std::thread::scope(|scope| {
                let by = &mode;
                scope.spawn(move || {
                    by.enter(true, true, || None);
                    entered.send(()).unwrap();
                });
                std::thread::sleep(RELEASING / 10);
                mode.leave(false);
                mode.enter(false, false, || None);
                // Nobody is where the writer was faster, or had not begun to wait.
                let Some(alone) = mode.alone() else { return false };
                std::thread::sleep(2 * RELEASING);
                assert!(order.try_recv().is_err(), "it entered while the contents were given");
                drop(alone);
                true
            });
            if was_alone {
                return;
            }
        }
        panic!("the writer was always faster");
    }

    #[test]
    fn contents_are_not_given_of_what_the_kernel_serves_or_somebody_writes() {
        let backed = IoMode::default();
        backed.enter(false, false, || Some(FILE));
        assert!(backed.alone().is_none());
        let written = IoMode::default();
        written.enter(true, false, || None);
        assert!(written.alone().is_none());
    }

    #[test]
    fn attributes_are_relied_on_as_long_as_nobody_writes() {
        let mode = IoMode::default();
        assert_eq!(mode.bypass(), Bypass::Never);
        mode.enter(false, false, || Some(FILE));
        assert_eq!(mode.bypass(), Bypass::Never);
        mode.enter(true, false, never);
        assert_eq!(mode.bypass(), Bypass::Now);
        mode.leave(true);
        assert_eq!(mode.bypass(), Bypass::Once);
        mode.leave(false);
        assert_eq!(mode.bypass(), Bypass::Once);
    }

    /// A kernel that no longer takes files, as one does whose daemon has lost CAP_SYS_ADMIN.
    struct Unprivileged;

    impl Kernel for Unprivileged {
        fn wake(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn attributes_changed(&self, _: NodeId) -> io::Result<()> {
            Ok(())
        }

        fn node_changed(&self, _: NodeId) -> io::Result<()> {
            Ok(())
        }

        fn name_changed(&self, _: NodeId, _: &Name) -> io::Result<()> {
            Ok(())
        }

        fn contents(&self, _: NodeId, _: &[u8]) -> io::Result<()> {
            panic!("a mirrored file may change at any time")
        }

        fn write_back(&self, _id: NodeId, _offset: u64) -> io::Result<()> {
            Ok(())
        }
        fn all_names_changed(&self) -> io::Result<()> {
            Ok(())
        }

        fn open_backing(&self, _: BorrowedFd<'_>) -> Result<BackingId> {
            Err(Errno::EPERM.into())
        }

        fn close_backing(&self, _: BackingId) -> Result<()> {
            panic!("nothing was taken")
        }
    }

    #[test]
    fn a_daemon_that_loses_its_rights_serves_files_itself_from_then_on() {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), b"contents").unwrap();
        let backend = splicefs_passthrough::Passthrough::new(&splicefs_passthrough::Options {
            source: source.path().to_owned(),
            mount_point: None,
            noatime: false,
            block_devices_as_files: false,
            listen: false,
        })
        .unwrap();
        let facility = |serving| Facility { mode: "auto".into(), serving, why: String::new() };
        let facilities = Facilities {
            splice: facility(true),
            passthrough: facility(true),
            unopened: facility(false),
            writeback: facility(false),
        };
        let stats = Stats::new(facilities, facility(false), Arc::default());
        let caching = Caching::new(Ownership::Shared, Cache::Auto, None, None, false);
        let access = Access { owner: 0, owner_and_root_only: false, acls: true };
        let vfs = Vfs::new(backend, caching, access, stats, Arc::new(Unprivileged)).unwrap();
        let name = Name::new(b"file").unwrap();
        let looked_up = vfs.lookup(&Caller::DAEMON, NodeId::ROOT, &name, |looked_up| *looked_up).unwrap();
        let LookedUp::Found(found) = looked_up else { panic!("the file is there") };
        let policy = Policy { splice: false, splice_min: 0 };
        let mut engine =
            Engine::new(policy, Arc::new(ZeroSource::new().unwrap()), PAGE, Arc::default()).unwrap();
        for flags in [libc::O_RDONLY, libc::O_RDWR] {
            let (way, handle) = vfs
                .open(&Caller::DAEMON, found.id, OpenFlags(flags), &mut engine, |handle| {
                    (handle.way, handle.id)
                })
                .unwrap();
            assert_eq!(way, Way::Cached);
            vfs.release(handle).unwrap();
        }
    }
}
