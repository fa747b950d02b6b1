//! The thread that closes what nobody has used for a moment. It sleeps as long as there is nothing to close.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// What was not used for one of these, and at most two, is closed.
const TICK: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct State {
    /// There may be something to close.
    wanted: bool,
    ended: bool,
}

/// Wakes the thread.
///
/// Lock order: a leaf, held over no system call.
#[derive(Debug, Default)]
pub struct IdleTimer {
    state: Mutex<State>,
    changed: Condvar,
}

impl IdleTimer {
    /// From now on there is something to close once it is idle.
    pub fn start(&self) {
        let mut state = self.state.lock();
        if !state.wanted {
            state.wanted = true;
            self.changed.notify_one();
        }
    }

    /// Waits until there may be something to close, and then for a tick; `false` when the thread is to end.
    fn tick(&self) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| !state.wanted && !state.ended);
        if !state.ended {
            self.changed.wait_while_for(&mut state, |state| !state.ended, TICK);
        }
        state.wanted = false;
        !state.ended
    }
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct IdleThread {
    timer: Arc<IdleTimer>,
    thread: Option<JoinHandle<()>>,
}

impl IdleThread {
    /// Runs `close` at each tick as long as it says that there is something left.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(timer: Arc<IdleTimer>, close: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        let waits_for = timer.clone();
        let run = move || {
            while waits_for.tick() {
                if close() {
                    waits_for.start();
                }
            }
        };
        let thread = std::thread::Builder::new().name("idle".into()).spawn(run)?;
        Ok(Self { timer, thread: Some(thread) })
    }
}

impl Drop for IdleThread {
    fn drop(&mut self) {
        self.timer.state.lock().ended = true;
        self.timer.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that closes idle files panicked");
        }
    }
}
