//! A mounted file system being served: negotiation with the kernel, then threads until it is unmounted.

mod negotiate;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use splicefs_core::Backend;

pub use crate::reply::max_read_bytes;
use crate::reply::{Counters, Engine, Policy, ZeroSource, probe};
use crate::transport::{Port, Worker};
use crate::vfs::{Access, Lifetimes, SpliceState, Stats, Vfs};
use negotiate::{Handshake, MAX_WRITE};

/// Reads of fewer bytes are copied, since that is the faster of the two (`mount-tests/bench`, splice_min).
pub const DEFAULT_SPLICE_MIN: usize = 32 * 1024;

/// Whether reads are spliced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpliceMode {
    /// Where the host allows it.
    Auto,
    /// Always; mounting fails where the host does not allow it.
    On,
    /// Never.
    Off,
}

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Number of threads; by default as many as processors, at least 4 and at most 16.
    pub threads: Option<NonZeroUsize>,
    /// Whether reads are spliced.
    pub splice: SpliceMode,
    /// Reads of fewer bytes are copied.
    pub splice_min: usize,
    /// How long the kernel may trust a name.
    pub entry_timeout: Duration,
    /// How long the kernel may trust attributes.
    pub attr_timeout: Duration,
    /// The user who mounted, who may read the statistics, as root may.
    pub owner: u32,
    /// Others than that user and root get `EACCES`.
    pub allow_root: bool,
}

/// A file system that is being served.
#[derive(Debug)]
pub struct Running {
    workers: Vec<JoinHandle<io::Result<()>>>,
    /// Keeps fuser's end of the connection.
    _handshake: Handshake,
}

/// As many as processors. The standard library would look into /proc and /sys for limits of control groups, and those
/// may be what has just been mounted over.
fn default_threads() -> usize {
    let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    usize::try_from(processors).unwrap_or(1).clamp(4, 16)
}

/// Whether to splice, and why.
fn splice_state(mode: SpliceMode) -> io::Result<SpliceState> {
    let state = |mode: &str, serving, why: String| SpliceState { mode: mode.to_owned(), serving, why };
    Ok(match (mode, probe()) {
        (SpliceMode::Off, _) => state("off", false, "turned off".to_owned()),
        (SpliceMode::On, Ok(())) => state("on", true, "splice(2) works here".to_owned()),
        (SpliceMode::Auto, Ok(())) => state("auto", true, "splice(2) works here".to_owned()),
        (SpliceMode::On, Err(why)) => {
            return Err(io::Error::other(format!("splice=on cannot be had here: {why}")));
        }
        (SpliceMode::Auto, Err(why)) => {
            log::warn!("reads are copied: {why}");
            state("auto", false, why)
        }
    })
}

/// Does the handshake on the mounted `device` and serves `backend` from threads. Returns once requests are served.
///
/// # Errors
/// Where the handshake fails, threads cannot be started, or `splice=on` cannot be had.
pub fn start<B: Backend>(backend: B, device: OwnedFd, config: &SessionConfig) -> io::Result<Running> {
    let splice = splice_state(config.splice)?;
    let policy = Policy { splice: splice.serving, splice_min: config.splice_min };
    let port = Arc::new(Port::new(device.try_clone()?));
    let handshake = Handshake::new(device)?;
    let counters = Arc::new(Counters::default());
    let zeros = Arc::new(ZeroSource::new()?);
    let lifetimes = Lifetimes { entry: config.entry_timeout, attr: config.attr_timeout };
    let access = Access { owner: config.owner, owner_and_root_only: config.allow_root };
    let stats = Stats::new(splice, counters.clone());
    let vfs = Arc::new(Vfs::new(backend, lifetimes, access, stats, port.clone())?);
    let threads = config.threads.map_or_else(default_threads, NonZeroUsize::get);
    let mut workers = Vec::with_capacity(threads);
    for i in 0..threads {
        let engine = Engine::new(policy, zeros.clone(), max_read_bytes(), counters.clone());
        let mut worker = Worker::new(vfs.clone(), port.clone(), engine, max_read_bytes());
        let thread = std::thread::Builder::new().name(format!("worker-{i}"));
        workers.push(
            thread
                .spawn(move || worker.serve(MAX_WRITE).inspect_err(|e| log::error!("a worker ends: {e}")))?,
        );
    }
    Ok(Running { workers, _handshake: handshake })
}

impl Running {
    /// Returns when the file system has been unmounted.
    ///
    /// # Errors
    /// The first of what ended a thread before that.
    pub fn wait(self) -> io::Result<()> {
        let mut result = Ok(());
        for worker in self.workers {
            let ended = worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")));
            result = result.and(ended);
        }
        result
    }
}
