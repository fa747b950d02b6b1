//! A mounted file system being served: negotiation with the kernel, then threads until it is unmounted.

mod facilities;
mod negotiate;

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use memmap2::MmapMut;
use splicefs_core::Backend;

use crate::idle::IdleThread;
pub use crate::reply::max_read_bytes;
use crate::reply::{Counters, Engine, Policy, ZeroSource};
use crate::transport::{Crew, Foreman, Port, Stock, Worker};
use crate::vfs::{Access, Cache, Caching, Facilities, Hearing, Stats, Vfs};
pub use facilities::{Choice, Opens};
use negotiate::{Handshake, MAX_WRITE, Negotiator};

/// Reads of fewer bytes are copied, since that is the faster of the two (`cargo bench --bench field`, read-sizes).
pub const DEFAULT_SPLICE_MIN: usize = 32 * 1024;

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Number of threads, of which as many as processors, at least 3 (2 where files are not opened) and at most 16, wait for requests; by default four
    /// times as many, and 16 at least.
    pub threads: Option<NonZeroUsize>,
    /// Whether reads are spliced.
    pub splice: Choice,
    /// Whether the kernel serves files by itself.
    pub passthrough: Choice,
    /// Whether the kernel asks to open each file.
    pub opens: Opens,
    /// Why it has to, if that depends on what is served.
    pub must_be_opened: Option<String>,
    /// Whether anything can be written through the mount, permissions aside.
    pub writable: bool,
    /// Whether the kernel writes files back later.
    pub writeback: Choice,
    /// Reads of fewer bytes are copied.
    pub splice_min: usize,
    /// Files of lower layers of at most so many bytes are given to the kernel with their open.
    pub prefetch: usize,
    /// What the kernel keeps.
    pub cache: Cache,
    /// How long the kernel may trust a name; by default as the backend allows ([`Caching`]).
    pub entry_timeout: Option<Duration>,
    /// How long the kernel may trust attributes; by default as the backend allows.
    pub attr_timeout: Option<Duration>,
    /// The user who mounted, who may read the statistics, as root may.
    pub owner: u32,
    /// Others than that user are let in.
    pub allow_other: bool,
    /// Others than that user and root get `EACCES`.
    pub allow_root: bool,
    /// Files have POSIX ACLs. Without, the mount must ask for `default_permissions`.
    pub acls: bool,
}

/// How many threads wait for requests: as many as processors. Where files are opened, one more is busy with those that are closed. The
/// standard library would look into /proc and /sys for limits of control groups, and those may be what has just been mounted over.
fn waiting_threads(opened: bool) -> NonZeroUsize {
    let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    let fewest = if opened { 3 } else { 2 };
    let waiting = usize::try_from(processors).unwrap_or(1).clamp(fewest, 16);
    NonZeroUsize::new(waiting).unwrap_or(NonZeroUsize::MIN)
}

/// For each thread that waits for requests so many serve, if slow requests hold those up.
const THREADS_FOR_ONE_WAITING: usize = 4;
/// So many serve at least.
const FEWEST_THREADS: usize = 16;

/// What a thread does once there is something to serve.
type Job = Box<dyn FnOnce(Stock) -> io::Result<()> + Send>;

/// A thread that has all it needs and waits for its job.
struct Ready {
    thread: JoinHandle<io::Result<()>>,
    job: Sender<Job>,
}

/// Everything a session needs, before anything is mounted: threads, buffers, pipes' limits. What can fail fails here,
/// where no mount is left behind.
pub struct Prepared<B> {
    facilities: Facilities,
    counters: Arc<Counters>,
    mode: Cache,
    caching: Caching,
    access: Access,
    threads: Vec<Ready>,
    crew: Arc<Crew>,
    foreman: Foreman,
    _backend: PhantomData<fn(B)>,
}

/// Memory that the handshake takes for a moment, in bytes (fuser's read buffer).
const HANDSHAKE_BUFFER: usize = 17 << 20;

/// Prepares a session. Call it before mounting.
///
/// # Errors
/// Where threads or memory are not to be had, or `splice=on` is not.
pub fn prepare<B: Backend>(config: &SessionConfig) -> io::Result<Prepared<B>> {
    let facilities = facilities::of::<B>(config)?;
    let policy = Policy { splice: facilities.splice.serving, splice_min: config.splice_min };
    let counters = Arc::new(Counters::default());
    let zeros = Arc::new(ZeroSource::new()?);
    let waiting = waiting_threads(!facilities.unopened.serving);
    let count = config
        .threads
        .map_or((waiting.get() * THREADS_FOR_ONE_WAITING).max(FEWEST_THREADS), NonZeroUsize::get);
    let mut threads = Vec::new();
    for i in 0..count {
        let (zeros, counters) = (zeros.clone(), counters.clone());
        let stock = move || {
            let engine = Engine::new(policy, zeros, max_read_bytes(), counters)?;
            Stock::new(engine, max_read_bytes(), MAX_WRITE)
        };
        match Ready::start(i, stock) {
            Ok(thread) => threads.push(thread),
            // Nobody asked for so many, and enough wait for requests.
            Err(e) if config.threads.is_none() && i >= waiting.get() => {
                log::warn!("{i} threads serve and not {count}: slow files may hold up others sooner: {e}");
                break;
            }
            Err(e) => {
                let fewer = "take fewer with `-o threads=N`";
                let text = format!("cannot start thread {} of {count} ({fewer}): {e}", i + 1);
                return Err(io::Error::new(e.kind(), text));
            }
        }
    }
    let crew = Arc::new(Crew::new(threads.len(), waiting)?);
    let foreman = Foreman::start(crew.clone())?;
    // Not asked of the allocator, which would from then on keep as much as it was given back.
    drop(MmapMut::map_anon(HANDSHAKE_BUFFER)?);
    Ok(Prepared {
        mode: config.cache,
        caching: Caching::new(
            B::OWNERSHIP,
            config.cache,
            config.entry_timeout,
            config.attr_timeout,
            facilities.unopened.serving,
        )
        .prefetching(config.prefetch.min(max_read_bytes()))
        .written_back(facilities.writeback.serving),
        facilities,
        counters,
        access: Access { owner: config.owner, owner_and_root_only: config.allow_root, acls: config.acls },
        threads,
        crew,
        foreman,
        _backend: PhantomData,
    })
}

impl Ready {
    /// Starts a thread and waits until it has its stock.
    fn start(index: usize, stock: impl FnOnce() -> io::Result<Stock> + Send + 'static) -> io::Result<Self> {
        let (job, jobs) = channel::<Job>();
        let (report, reports) = channel();
        let run = move || {
            let stock = match stock() {
                Ok(stock) => stock,
                Err(e) => return report.send(Err(e)).map_err(io::Error::other),
            };
            report.send(Ok(())).map_err(io::Error::other)?;
            // No job comes where mounting failed.
            let Ok(job) = jobs.recv() else { return Ok(()) };
            job(stock).inspect_err(|e| log::error!("a worker ends: {e}"))
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(run)?;
        reports.recv().map_err(io::Error::other)??;
        Ok(Self { thread, job })
    }
}

impl<B: Backend> Prepared<B> {
    /// Does the handshake on the mounted `device` and serves `backend`. Returns once requests are served.
    ///
    /// # Errors
    /// Where the handshake fails.
    pub fn serve(self, backend: B, device: OwnedFd) -> io::Result<Running> {
        let port = Arc::new(Port::new(device.try_clone()?));
        let mut caching = self.caching;
        let maps_direct = Arc::new(AtomicBool::new(false));
        let handshake = Handshake::new(
            device,
            Negotiator {
                caching,
                passthrough: self.facilities.passthrough.serving,
                acls: self.access.acls,
                maps_direct: maps_direct.clone(),
            },
        )?;
        let cache =
            facilities::cache::<B>(self.mode, &mut caching, maps_direct.load(Ordering::Relaxed), || {
                facilities::can_hear(&backend, &*port)
            });
        let passthrough = facilities::probed_passthrough(self.facilities.passthrough.clone(), &*port)?;
        let stats = Stats::new(Facilities { passthrough, ..self.facilities }, cache, self.counters);
        let vfs = Arc::new(Vfs::new(backend, caching, self.access, stats, port.clone())?);
        let hearing = match vfs.listener() {
            Some(listener) => Some(Hearing::start(vfs.clone(), listener)?),
            None => None,
        };
        let idle = vfs.close_idle_writers()?;
        let mut workers = Vec::with_capacity(self.threads.len());
        for Ready { thread, job } in self.threads {
            let (vfs, port, crew) = (vfs.clone(), port.clone(), self.crew.clone());
            let serve: Job = Box::new(move |stock| Worker::serve(vfs, port, &crew, stock));
            job.send(serve).map_err(|_| io::Error::other("a worker is gone"))?;
            workers.push(thread);
        }
        Ok(Running { workers, foreman: self.foreman, hearing, idle, port, _handshake: handshake })
    }
}

/// A file system that is being served.
#[derive(Debug)]
pub struct Running {
    workers: Vec<JoinHandle<io::Result<()>>>,
    foreman: Foreman,
    hearing: Option<Hearing>,
    idle: Option<IdleThread>,
    port: Arc<Port>,
    /// Keeps fuser's end of the connection.
    _handshake: Handshake,
}

impl Running {
    /// Whether the kernel reaches the root by its name from now on ([`crate::transport::ROOT_NAME`]).
    pub fn name_root(&self, named: bool) {
        self.port.name_root(named);
    }

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
        drop(self.foreman);
        drop(self.idle);
        result.and(self.hearing.map_or(Ok(()), Hearing::end))
    }
}
