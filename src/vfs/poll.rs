//! poll(2) on files that are not always ready (procfs, sysfs): waiting, and waking the kernel's waiters.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use splicefs_core::{Backend, Result};

use super::{FileRef, Kernel, Use, Vfs};

/// Files that someone waits for, watched by a thread that starts with the first of them.
pub(super) struct Wakeups {
    watcher: Arc<Watcher>,
    started: OnceLock<bool>,
}

struct Watcher {
    epoll: OwnedFd,
    kernel: Arc<dyn Kernel>,
}

impl Wakeups {
    /// Wakes the waiters of `kernel`.
    pub(super) fn new(kernel: Arc<dyn Kernel>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { watcher: Arc::new(Watcher { epoll, kernel }), started: OnceLock::new() })
    }

    /// Wakes waiter `kernel_handle` once, when one of `events` comes true of `fd`. Closing `fd` ends the wait.
    fn watch(&self, fd: BorrowedFd<'_>, events: u32, kernel_handle: u64) -> Result<()> {
        let started = self.started.get_or_init(|| {
            let watcher = self.watcher.clone();
            let thread = std::thread::Builder::new().name("wakeups".into()).spawn(move || watcher.run());
            thread.inspect_err(|e| log::error!("no thread to wake the waiters of poll(2): {e}")).is_ok()
        });
        if !started {
            return Ok(());
        }
        let data = EventData::new_u64(kernel_handle);
        let flags = EventFlags::from_bits_retain(events) | EventFlags::ONESHOT;
        match epoll::add(&self.watcher.epoll, fd, data, flags) {
            // Its file system has no poll: nothing will ever change.
            Err(rustix::io::Errno::PERM) => Ok(()),
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.watcher.epoll, fd, data, flags)?),
            other => Ok(other?),
        }
    }
}

impl Watcher {
    fn run(&self) {
        loop {
            let mut events = Vec::with_capacity(16);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None::<&Timespec>) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return log::error!("waiting for files to become ready: {e}"),
            }
            for event in events {
                if let Err(e) = self.kernel.wake(event.data.u64()) {
                    log::debug!("waking a waiter of poll(2): {e}");
                }
            }
        }
    }
}

/// What poll(2) says of a file that is always ready (`DEFAULT_POLLMASK` in include/linux/poll.h).
const ALWAYS: u32 = 0x145;

impl<B: Backend> Vfs<B> {
    /// Which of `events` are true of the file. If none is, and `waiter` is given, it is woken when that changes.
    pub fn poll(&self, file: FileRef, events: u32, waiter: Option<u64>) -> Result<u32> {
        let open = self.opened(file, Use::Read)?;
        let Some(fd) = self.backend.pollable(&open.file) else { return Ok(ALWAYS & events) };
        // The events of poll(2) and epoll(7) have the same values, and those of poll(2) fit 16 bits.
        let wanted = PollFlags::from_bits_retain(u16::try_from(events & 0xffff).unwrap_or(u16::MAX));
        let mut fds = [PollFd::new(&fd, wanted)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let ready = u32::from(fds[0].revents().bits());
        if ready == 0
            && let Some(waiter) = waiter
        {
            self.wakeups.watch(fd.as_fd(), events, waiter)?;
        }
        Ok(ready)
    }
}
