//! Telling the kernel what others have changed, in a thread of its own: the kernel takes the lock of a directory for it, which
//! a request that waits for one of our workers may hold.
//!
//! A reply that is on its way may tell what was true before a change, and arrive after the kernel was told of it. So what was
//! told while requests were being answered is told again when those have been. Then the kernel need not have taken a reply in
//! yet, which is up to the thread that had asked. Most hold the lock of the directory until they have, and to tell of a name waits
//! for that lock; a name that is looked up once more holds none (`fuse_dentry_revalidate`), so that it is told a last time, later.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use splicefs_core::{Backend, Change, Listener, NodeId};

use super::Vfs;
use super::turns::UnderWay;

/// Between two looks at requests that are being answered, at first; each pause is twice as long as the one before.
const PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// There are at most so many batches that are to be told again.
const MOST_PENDING: usize = 64;
/// By then a thread that has been sent its reply has long been running.
const TAKEN_IN: Duration = Duration::from_millis(100);

/// What the kernel was told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    heard: AtomicU64,
    overflows: AtomicU64,
    nodes: AtomicU64,
    names: AtomicU64,
    repeated: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Told {
    /// The counters now, by their names in `stats`.
    pub(super) fn snapshot(&self, watches: usize) -> BTreeMap<String, u64> {
        let counts = [
            ("heard", &self.heard),
            ("overflows", &self.overflows),
            ("invalidated_nodes", &self.nodes),
            ("invalidated_names", &self.names),
            ("repeated", &self.repeated),
        ];
        let watches = ("watches".to_owned(), u64::try_from(watches).unwrap_or(u64::MAX));
        let counts = counts.into_iter().map(|(key, n)| (key.to_owned(), n.load(Ordering::Relaxed)));
        counts.chain([watches]).collect()
    }
}

/// Names that the kernel may not trust any more, though nobody was heard to have changed them.
#[derive(Debug)]
pub(super) struct Uncertain {
    changes: Mutex<Vec<Change>>,
    /// Readable when there are any.
    ready: OwnedFd,
}

impl Uncertain {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self { changes: Mutex::default(), ready: eventfd(0, flags)? })
    }

    /// The kernel is to be told of `change`, by a thread that serves no request.
    pub(super) fn add(&self, change: Change) {
        self.changes.lock().push(change);
        if let Err(e) = rustix::io::write(&self.ready, &1u64.to_ne_bytes()) {
            log::warn!("a name that was moved is trusted for too long: {e}");
        }
    }

    fn take(&self) -> Vec<Change> {
        // What is added from here on makes it readable again. Nothing to read is no error.
        if let Err(e) = rustix::io::read(&self.ready, &mut [0; 8])
            && e != rustix::io::Errno::AGAIN
        {
            log::debug!("an eventfd cannot be read: {e}");
        }
        std::mem::take(&mut *self.changes.lock())
    }
}

/// Changes that were heard of at once.
#[derive(Default)]
struct Batch {
    changes: HashSet<Change>,
    /// What they were found to be of.
    nodes: HashSet<NodeId>,
    under_way: UnderWay,
    /// What was under way has been answered, and this is when and how it is told a last time.
    last: Option<(Instant, Manner)>,
}

impl Batch {
    /// Whether it is to be told now.
    fn is_due(&self) -> bool {
        self.last.map_or_else(|| self.under_way.is_over(), |(last, _)| Instant::now() >= last)
    }
}

impl Batch {
    /// Takes in another one. Both are told when the requests under way for either are answered.
    fn absorb(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.nodes.extend(other.nodes);
        self.under_way.join(other.under_way);
        self.last = None;
    }
}

/// How changes are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// At once.
    Quick,
    /// After replies that may have told otherwise.
    Thorough,
}

/// The thread that hears.
#[derive(Debug)]
pub struct Hearing {
    thread: JoinHandle<()>,
    stop: Arc<OwnedFd>,
}

impl Hearing {
    /// Begins to tell the kernel of `vfs` what `listener` hears.
    ///
    /// # Errors
    /// Where there is no thread or descriptor to be had.
    pub fn start<B: Backend>(vfs: Arc<Vfs<B>>, listener: Arc<dyn Listener>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = stop.clone();
        let run = move || Ear { vfs, listener, stop: stopped, pending: Vec::new(), pause: PAUSE }.run();
        Ok(Self { thread: std::thread::Builder::new().name("hearing".into()).spawn(run)?, stop })
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn end(self) -> io::Result<()> {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes())?;
        self.thread.join().map_err(|_| io::Error::other("the thread that hears of changes panicked"))
    }
}

struct Ear<B: Backend> {
    vfs: Arc<Vfs<B>>,
    listener: Arc<dyn Listener>,
    stop: Arc<OwnedFd>,
    /// What is to be told once more.
    pending: Vec<Batch>,
    pause: Duration,
}

impl<B: Backend> Ear<B> {
    /// Hears until it is over, or as long as it can: then nothing is trusted any more, and the kernel told that all has changed.
    fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.listen()));
        let Err(e) = ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked"))) else { return };
        log::error!("changes of the source are heard of no longer, and it is trusted for a second only: {e}");
        self.vfs.deaf.store(true, Ordering::SeqCst);
        let mut all = Batch { under_way: self.vfs.turns.under_way(), ..Batch::default() };
        all.changes.insert(Change::Anything);
        self.tell(&mut all, Manner::Quick);
        while !all.under_way.is_over() {
            std::thread::sleep(LONGEST_PAUSE);
        }
        std::thread::sleep(TAKEN_IN);
        self.tell(&mut all, Manner::Thorough);
    }

    fn listen(&mut self) -> io::Result<()> {
        while self.wait()? {
            let mut batch = Batch::default();
            let heard = self.listener.hear(&mut |change| {
                count(&self.vfs.told.heard);
                batch.changes.insert(change);
            });
            heard.map_err(|e| io::Error::from_raw_os_error(e.errno().raw()))?;
            batch.changes.extend(self.vfs.uncertain.take());
            self.repeat();
            if batch.changes.is_empty() {
                continue;
            }
            // Before it is told: what is answered meanwhile may arrive at any time.
            batch.under_way = self.vfs.turns.under_way();
            self.tell(&mut batch, Manner::Quick);
            if batch.under_way.is_empty() {
                // A reply that has been sent may not have been taken in.
                batch.last = Some((Instant::now() + TAKEN_IN, Manner::Quick));
            }
            self.keep(batch);
            self.pause = PAUSE;
        }
        Ok(())
    }

    /// Waits until there is something to hear or to repeat. False: it is over.
    fn wait(&mut self) -> io::Result<bool> {
        let pause = (!self.pending.is_empty()).then_some(self.pause);
        let timeout = pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) });
        let (ready, stop) = (self.listener.ready(), self.stop.as_fd());
        let uncertain = &self.vfs.uncertain.ready;
        let mut fds =
            [&ready, &stop, &uncertain.as_fd()].map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => self.pause = (self.pause * 2).min(LONGEST_PAUSE),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(fds[1].revents().is_empty())
    }

    /// Tells again what was told while requests were being answered that have been now.
    fn repeat(&mut self) {
        let all = std::mem::take(&mut self.pending);
        let (due, pending): (Vec<Batch>, Vec<Batch>) = all.into_iter().partition(Batch::is_due);
        self.pending = pending;
        for mut batch in due {
            count(&self.vfs.told.repeated);
            let manner = batch.last.map_or(Manner::Thorough, |(_, manner)| manner);
            self.tell(&mut batch, manner);
            if batch.last.is_none() {
                batch.last = Some((Instant::now() + TAKEN_IN, Manner::Thorough));
                self.keep(batch);
            }
        }
    }

    /// Keeps a batch that is to be told again. While a request hangs they do not grow in number.
    fn keep(&mut self, batch: Batch) {
        let full = self.pending.len() >= MOST_PENDING;
        match self.pending.last_mut() {
            Some(last) if full => last.absorb(batch),
            _ => self.pending.push(batch),
        }
    }

    fn tell(&self, batch: &mut Batch, manner: Manner) {
        let vfs = &self.vfs;
        for change in &batch.changes {
            batch.nodes.extend(self.listener.touched(change));
            let told = match change {
                Change::Name(dir, name) => {
                    batch.nodes.insert(*dir);
                    count(&vfs.told.names);
                    vfs.kernel.name_changed(*dir, name)
                }
                Change::Anything => {
                    count(&vfs.told.overflows);
                    vfs.kernel.all_names_changed()
                }
                // It waits for whoever looks the name up. To whom the name is new, so is the file, and what is told of a file that
                // the kernel does not know is lost.
                Change::Named(dir, name) if manner == Manner::Thorough => {
                    count(&vfs.told.names);
                    vfs.kernel.name_changed(*dir, name)
                }
                Change::Node(_) | Change::Named(..) => Ok(()),
            };
            self.failed("a name", told);
        }
        for id in &batch.nodes {
            count(&vfs.told.nodes);
            self.failed("a file", vfs.kernel.node_changed(*id));
        }
    }

    fn failed(&self, what: &str, told: io::Result<()>) {
        if let Err(e) = told {
            log::debug!("the kernel could not be told that {what} has changed: {e}");
        }
    }
}
