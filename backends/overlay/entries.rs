//! The lock of a directory's names.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// So long a look-up lets a change go first that waits for other look-ups.
const PATIENCE: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct State {
    readers: u32,
    is_changing: bool,
    /// So many changes wait.
    waiting: u32,
}

/// Held by one for changing the names of a directory, or by many for looking at them.
///
/// It is held over system calls on the layers. A look-up that hangs, in a file system inside a layer, so holds up changes of the
/// names of this one directory; but not other look-ups, which after a moment do not let a waiting change go first.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    state: Mutex<State>,
    released: Condvar,
}

/// The names stay as they are.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reading<'a>(&'a Entries);

/// Nobody else looks at the names.
#[derive(Debug)]
#[must_use]
pub(crate) struct Changing<'a>(&'a Entries);

impl Entries {
    /// Waits until nobody changes the names.
    pub(crate) fn read(&self) -> Reading<'_> {
        let mut state = self.state.lock();
        if state.is_changing || state.waiting > 0 {
            let until = Instant::now() + PATIENCE;
            let waits = |state: &mut State| state.is_changing || state.waiting > 0;
            if self.released.wait_while_until(&mut state, waits, until).timed_out() {
                self.released.wait_while(&mut state, |state| state.is_changing);
            }
        }
        state.readers += 1;
        Reading(self)
    }

    /// Waits until nobody changes the names or looks at them.
    pub(crate) fn write(&self) -> Changing<'_> {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.released.wait_while(&mut state, |state| state.is_changing || state.readers > 0);
        state.waiting -= 1;
        state.is_changing = true;
        Changing(self)
    }

    /// The same, where nobody has to be waited for.
    pub(crate) fn try_write(&self) -> Option<Changing<'_>> {
        let mut state = self.state.lock();
        if state.is_changing || state.readers > 0 {
            return None;
        }
        state.is_changing = true;
        Some(Changing(self))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.readers -= 1;
        let is_last = state.readers == 0;
        drop(state);
        if is_last {
            self.0.released.notify_all();
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_changing = false;
        self.0.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_waits_for_a_look_up_holds_up_no_other() {
        let entries = Entries::default();
        std::thread::scope(|scope| {
            let hangs = entries.read();
            let change = scope.spawn(|| drop(entries.write()));
            while entries.state.lock().waiting == 0 {
                std::thread::yield_now();
            }
            drop(entries.read());
            assert!(!change.is_finished());
            drop(hangs);
            change.join().unwrap();
        });
        assert!(entries.try_write().is_some());
    }

    #[test]
    fn a_change_is_alone() {
        let entries = Entries::default();
        let change = entries.write();
        assert!(entries.try_write().is_none());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| drop(entries.read()));
            std::thread::sleep(2 * PATIENCE);
            assert!(!reader.is_finished());
            drop(change);
            reader.join().unwrap();
        });
    }
}
