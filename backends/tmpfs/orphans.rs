//! Files without a name that are still open, and so take room.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use splicefs_core::{Errno, Result};

/// How long an operation that finds no room waits for files without a name to be closed. The kernel does not wait for the
/// answer to RELEASE, so another thread may be about to serve it; a file that stays open is not worth waiting for.
const PATIENCE: Duration = Duration::from_millis(20);

/// An orphan this old is still there because somebody holds it open.
const YOUTH: Duration = Duration::from_millis(100);

/// How many nodes in use have no name, and since when the last of them has none.
#[derive(Debug, Default)]
struct Count {
    nodes: usize,
    last: Option<Instant>,
}

impl Count {
    /// Whether one of the nodes may be about to go.
    fn is_changing(&self) -> bool {
        self.nodes > 0 && self.last.is_some_and(|last| last.elapsed() < YOUTH)
    }
}

/// The nodes that have no name and are in use.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    count: Mutex<Count>,
    one_less: Condvar,
}

impl Orphans {
    /// A node in use has lost its last name, or one without a name is used.
    pub(crate) fn born(&self) {
        let mut count = self.count.lock();
        count.nodes += 1;
        count.last = Some(Instant::now());
    }

    /// A node without a name is no longer used, or has got a name.
    pub(crate) fn gone(&self) {
        self.count.lock().nodes -= 1;
        self.one_less.notify_all();
    }

    /// Does `operation`, again and again for a short while as long as it finds no room (`ENOSPC`) that nodes without a
    /// name may be about to give back. To a caller the room of a file is free when its last name is removed, as long as
    /// nobody holds it open.
    ///
    /// # Errors
    /// Those of `operation`.
    pub(crate) fn patiently<T>(&self, mut operation: impl FnMut() -> Result<T>) -> Result<T> {
        let mut result = operation();
        let mut deadline = None;
        while matches!(&result, Err(e) if e.errno() == Errno::ENOSPC) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            let mut count = self.count.lock();
            if !count.is_changing() || self.one_less.wait_until(&mut count, deadline).timed_out() {
                return result;
            }
            drop(count);
            result = operation();
        }
        result
    }

    /// Waits a short while until the nodes that have just lost their names are closed, so that what statfs(2) tells after
    /// close(2) and unlink(2) is as one would expect.
    pub(crate) fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut count = self.count.lock();
        while count.is_changing() {
            if self.one_less.wait_until(&mut count, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn room_that_is_about_to_come_is_waited_for() {
        let (orphans, room) = (Orphans::default(), AtomicBool::new(false));
        let take = || if room.load(Ordering::SeqCst) { Ok(()) } else { Err(Errno::ENOSPC.into()) };
        assert_eq!(orphans.patiently(take).unwrap_err().errno(), Errno::ENOSPC, "no orphan, no wait");
        orphans.born();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                room.store(true, Ordering::SeqCst);
                orphans.gone();
            });
            orphans.patiently(take).unwrap();
        });
    }

    #[test]
    fn a_file_that_stays_open_is_not_waited_for_for_long() {
        let orphans = Orphans::default();
        orphans.born();
        let start = Instant::now();
        let result: Result<()> = orphans.patiently(|| Err(Errno::ENOSPC.into()));
        assert_eq!(result.unwrap_err().errno(), Errno::ENOSPC);
        assert!(start.elapsed() >= PATIENCE);
        let old = Instant::now().checked_sub(2 * YOUTH);
        orphans.count.lock().last = old;
        let start = Instant::now();
        orphans.settle();
        orphans.patiently(|| Err::<(), _>(Errno::ENOSPC.into())).unwrap_err();
        assert!(start.elapsed() < PATIENCE, "one that has long been there is not waited for at all");
    }
}
