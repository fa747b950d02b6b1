//! A thread that serves requests: one exit for every one of them, panics included.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::{Errno as Os, read};
use splicefs_core::sys::creds;
use splicefs_core::{Backend, Errno, Error, Result};

use super::answer::{Given, Reply};
use super::crew::{Crew, Next, Place};
use super::port::{Port, Sent};
use super::request::{Opcode, Request};
use super::root::node;
use super::waiting::{Aside, Keys, Leased};
use crate::aligned::{AlignedBuffer, PAGE};
use crate::reply::Engine;
use crate::vfs::{Turn, Vfs};

/// Length of the headers of a WRITE request, in bytes: read to just before a page boundary, its data lies on one, as
/// `O_DIRECT` asks for.
const WRITE_HEADERS: usize = 80;

/// What a thread needs to serve requests, taken before anything is mounted: then nothing is left to fail.
pub struct Stock {
    engine: Engine,
    /// The message being served. The kernel asks for room for the headers and the largest write.
    buffer: AlignedBuffer,
    max_read: usize,
}

impl Stock {
    /// Makes the calling thread a worker, for requests that carry at most `max_write` bytes and are answered with at most
    /// `max_read`.
    ///
    /// # Errors
    /// Where there is no memory, or the thread cannot have credentials of its own.
    pub fn new(engine: Engine, max_read: usize, max_write: usize) -> io::Result<Self> {
        creds::enter_worker().map_err(|e| io::Error::from_raw_os_error(e.errno().raw()))?;
        Ok(Self { engine, buffer: AlignedBuffer::new(WRITE_HEADERS, max_write + PAGE)?, max_read })
    }
}

/// Where no request may be set aside, one that finds a lease is tried again after so long.
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    Answered,
    /// Nothing was done: somebody has a lease.
    Leased,
}

/// Serves the requests of one thread.
pub struct Worker<B: Backend> {
    pub(super) vfs: Arc<Vfs<B>>,
    pub(super) port: Arc<Port>,
    pub(super) engine: Engine,
    /// The payload of the reply that is being put together.
    pub(super) out: Vec<u8>,
    /// The most bytes a reply has.
    pub(super) max_read: usize,
    turn: Arc<Turn>,
}

impl<B: Backend> Worker<B> {
    /// Answers on `port`, as one of `crew`, until the file system is unmounted.
    ///
    /// # Errors
    /// Those of read(2) on the device that mean it can no longer be served, and that of a thread which could not become
    /// itself again after acting for a caller.
    pub fn serve(vfs: Arc<Vfs<B>>, port: Arc<Port>, crew: &Crew, stock: Stock) -> io::Result<()> {
        let Stock { engine, mut buffer, max_read } = stock;
        let turn = vfs.join();
        let worker = Self { vfs, port, engine, out: Vec::new(), max_read, turn };
        let ended = worker.work(crew, buffer.bytes());
        match &ended {
            Ok(()) => crew.dismiss(),
            Err(_) => crew.quit(),
        }
        ended
    }

    fn work(mut self, crew: &Crew, buffer: &mut [u8]) -> io::Result<()> {
        let place = crew.join();
        loop {
            let (len, tries) = match crew.idle() {
                Next::Leave => return Ok(()),
                Next::Serve(Aside { message, tries, .. }) => {
                    buffer[..message.len()].copy_from_slice(&message);
                    (message.len(), Some(tries))
                }
                Next::Wait => {
                    let received = read(&*self.port, &mut *buffer);
                    crew.busy();
                    match received {
                        Ok(len) => (len, None),
                        // ENOENT: the request was interrupted before it was read.
                        Err(Os::INTR | Os::AGAIN | Os::NOENT) => continue,
                        Err(Os::NODEV | Os::CONNABORTED) => return Ok(()),
                        Err(e) => return Err(e.into()),
                    }
                }
            };
            self.take(crew, &place, &buffer[..len], tries)?;
            if creds::is_tainted() {
                return Err(io::Error::other("a thread kept a caller's credentials"));
            }
        }
    }

    /// Serves the request in `message`, or sets it aside. One that had been set aside has found a lease so many times.
    fn take(&mut self, crew: &Crew, place: &Place, message: &[u8], tries: Option<u32>) -> io::Result<()> {
        let parse = || {
            let no_header = |_| io::Error::new(io::ErrorKind::InvalidData, "a request without a header");
            Request::parse(message).map_err(no_header)
        };
        let request = parse()?;
        let (opcode, unique) = (request.opcode(), request.header.unique);
        if opcode == Some(Opcode::Interrupt) {
            self.interrupt(crew, request);
            return Ok(());
        }
        if tries.is_none() {
            if let Some(opcode) = opcode {
                self.vfs.count(opcode);
            }
            match crew.queue(message, &request, &|id| self.vfs.file_system_below(node(id))) {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(()) => {
                    self.port.error(unique, Errno::EAGAIN);
                    return Ok(());
                }
            }
        }
        place.begin(Keys::of(&request, opcode));
        let mut done = self.take_turn(request);
        while done == Done::Leased && !crew.sets_aside() {
            std::thread::sleep(LEASE_PAUSE);
            done = self.take_turn(parse()?);
        }
        crew.served(place, tries.is_some(), &|id| self.vfs.file_system_below(node(id)));
        if done == Done::Leased {
            let request = parse()?;
            let aside = Aside::new(message, &request, tries.unwrap_or(0));
            let errno = match crew.lease(aside, request.is_asked_by_a_caller()) {
                Leased::Waits => return Ok(()),
                Leased::Interrupted => Errno::EINTR,
                Leased::Refused => Errno::EAGAIN,
            };
            self.port.error(unique, errno);
        }
        Ok(())
    }

    /// Only what waits for a lease can be interrupted, as natively.
    fn interrupt(&self, crew: &Crew, mut request: Request<'_>) {
        self.vfs.count(Opcode::Interrupt);
        let Ok(unique) = request.take::<u64>() else { return };
        if crew.interrupt(unique) {
            self.port.error(unique, Errno::EINTR);
        }
    }

    /// Answers one request, and is known to while its reply may tell the kernel something to keep.
    fn take_turn(&mut self, request: Request<'_>) -> Done {
        if request.opcode().is_none_or(Opcode::tells_nothing) {
            return self.handle(request);
        }
        self.turn.begin();
        let done = self.handle(request);
        self.turn.end();
        done
    }

    /// Answers one request, whatever becomes of it, unless it finds a lease.
    fn handle(&mut self, mut request: Request<'_>) -> Done {
        let unique = request.header.unique;
        let Some(opcode) = request.opcode() else {
            log::debug!("request {unique}: operation {} is not known", request.header.opcode);
            self.port.error(unique, Errno::ENOSYS);
            return Done::Answered;
        };
        match guarded(|| self.admit_and_dispatch(opcode, &mut request)) {
            Ok(Reply::None | Reply::Sent) => {}
            Ok(Reply::Empty) => {
                self.port.reply(unique, &[]);
            }
            Ok(Reply::Body(given)) => {
                if self.port.reply(unique, &self.out) == Sent::Gone {
                    self.take_back(given);
                }
            }
            Err(Error::Leased) if !opcode.is_unanswered() => return Done::Leased,
            Err(e) => {
                log_error(opcode, &request, &e);
                if !opcode.is_unanswered() {
                    self.port.error(unique, e.errno());
                }
            }
        }
        Done::Answered
    }

    fn admit_and_dispatch(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        if opcode.is_asked_by_a_user() {
            if !self.vfs.admits(request.header.uid) {
                return Err(Errno::EACCES.into());
            }
            // No other operation is certain to be waited for by the thread that it names (FUSE_ASYNC_READ, RELEASE).
            self.vfs.heard_from(request.header.pid);
        }
        let reply = self.dispatch(opcode, request);
        self.vfs.tell_changed();
        reply
    }

    /// The kernel did not take the reply (its caller was killed): what it handed over is nobody's.
    pub(super) fn take_back(&self, given: Given) {
        if let Some(id) = given.node {
            self.vfs.forget(id, 1);
        }
        let file = given.file.map_or(Ok(()), |id| self.vfs.release(id));
        let dir = given.dir.map_or(Ok(()), |id| self.vfs.releasedir(id));
        if let Err(e) = file.and(dir) {
            log::error!("taking back what a lost reply opened: {e}");
        }
    }
}

impl Opcode {
    /// Whether the kernel keeps nothing of the reply but what the request had in it. Some of these may take long.
    fn tells_nothing(self) -> bool {
        self.is_unanswered()
            || matches!(
                self,
                Self::Write
                    | Self::Statfs
                    | Self::Release
                    | Self::Fsync
                    | Self::Flush
                    | Self::Releasedir
                    | Self::Fsyncdir
                    | Self::Destroy
                    | Self::Ioctl
                    | Self::Poll
                    | Self::Fallocate
                    | Self::Lseek
                    | Self::CopyFileRange
                    | Self::CopyFileRange64
            )
    }

    /// Whether the protocol has no reply to it.
    fn is_unanswered(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt)
    }

    /// Whether it names the user who asks. The others the kernel may send on its own account, or on a handle that a user
    /// who was let in has opened.
    fn is_asked_by_a_user(self) -> bool {
        !self.is_unanswered()
            && !matches!(
                self,
                Self::Read
                    | Self::Write
                    | Self::Readdir
                    | Self::Readdirplus
                    | Self::Fsync
                    | Self::Fsyncdir
                    | Self::Flush
                    | Self::Release
                    | Self::Releasedir
                    | Self::Destroy
            )
    }
}

/// Runs `handler`; its panic is a fault like any other.
fn guarded<T>(handler: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = catch_unwind(AssertUnwindSafe(handler));
    outcome.unwrap_or_else(|panic| Err(Error::fault(Errno::EIO, panic_message(&*panic))))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a handler panicked: {}", text.unwrap_or("no message"))
}

/// The one place where what goes wrong with a request is logged.
fn log_error(opcode: Opcode, request: &Request<'_>, error: &Error) {
    let header = &request.header;
    let level = match error {
        Error::Fault(_) => log::Level::Error,
        Error::Errno(errno)
            if matches!(*errno, Errno::EIO | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) =>
        {
            log::Level::Warn
        }
        Error::Errno(_) | Error::Leased => log::Level::Debug,
    };
    log::log!(
        level,
        "{} of node {} by uid {} pid {} (request {}): {error}",
        opcode.key(),
        node(header.nodeid),
        header.uid,
        header.pid,
        header.unique
    );
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;
    use splicefs_core::sys;
    use splicefs_passthrough::Passthrough;
    use splicefs_tmpfs::{Resize, Tmpfs};

    use super::*;
    use crate::reply::{Counters, Policy, ZeroSource};
    use crate::transport::wire::InHeader;
    use crate::vfs::{Access, Cache, Caching, Facilities, Facility, Stats};

    #[test]
    fn a_panic_in_a_handler_is_eio_with_its_message() {
        let result: Result<()> = guarded(|| panic!("of {}", "all things"));
        let error = result.unwrap_err();
        assert_eq!(error.errno(), Errno::EIO);
        assert!(error.to_string().contains("of all things"), "{error}");
    }

    fn passthrough(source: &std::path::Path) -> Passthrough {
        Passthrough::new(&splicefs_passthrough::Options {
            source: source.to_owned(),
            mount_point: None,
            noatime: false,
            block_devices_as_files: false,
            listen: false,
        })
        .unwrap()
    }

    /// With limits that requests can meet.
    fn tmpfs() -> Tmpfs {
        let limits = Resize { pages: Some(NonZeroU64::new(64)), inodes: Some(NonZeroU64::new(50)) };
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Tmpfs::new(&splicefs_tmpfs::Options::new(limits, uid, gid)).unwrap()
    }

    /// A worker on `backend`, whose replies go nowhere.
    fn worker<B: Backend>(backend: B) -> Worker<B> {
        let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let port = Arc::new(Port::new(nowhere.into()));
        let counters = Arc::new(Counters::default());
        let serving = Facility { mode: "auto".into(), serving: true, why: String::new() };
        let caching = Caching::new(B::OWNERSHIP, Cache::Auto, None, None, false);
        let access = Access { owner: 0, owner_and_root_only: false, acls: true };
        let facilities = Facilities {
            splice: serving.clone(),
            passthrough: serving.clone(),
            unopened: serving.clone(),
            writeback: serving.clone(),
        };
        let stats = Stats::new(facilities, serving, counters.clone());
        let vfs = Vfs::new(backend, caching, access, stats, port.clone()).unwrap();
        let policy = Policy { splice: true, splice_min: 1 };
        let engine = Engine::new(policy, Arc::new(ZeroSource::new().unwrap()), PAGE, counters).unwrap();
        let turn = vfs.join();
        Worker { vfs: Arc::new(vfs), port, engine, out: Vec::new(), max_read: PAGE, turn }
    }

    fn message(opcode: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
        let uid = rustix::process::getuid().as_raw();
        let header = InHeader { opcode, nodeid, uid, unique: 7, ..InHeader::default() };
        let mut bytes = Vec::new();
        for word in [header.len, header.opcode] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&header.unique.to_ne_bytes());
        bytes.extend_from_slice(&header.nodeid.to_ne_bytes());
        for word in [header.uid, header.gid, header.pid, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(body);
        bytes
    }

    /// An operation, a node and a body of a request.
    type Sketch = (u32, u64, Vec<u8>);

    fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
        proptest::collection::vec((1u32..60, 0u64..5, proptest::collection::vec(any::<u8>(), 0..160)), 1..12)
    }

    fn survives(backend: impl Backend, requests: &[Sketch]) -> std::result::Result<(), TestCaseError> {
        let mut worker = worker(backend);
        for (opcode, nodeid, body) in requests {
            let message = message(*opcode, *nodeid, body);
            let mut request = Request::parse(&message).unwrap();
            if let Some(opcode) = request.opcode() {
                // Not `handle`, which would catch the panic.
                if let Err(e) = worker.admit_and_dispatch(opcode, &mut request) {
                    prop_assert!((1..512).contains(&e.errno().raw()));
                }
            }
        }
        prop_assert!(!sys::creds::is_tainted());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Whatever a request holds, it is answered and no handler panics. Names of files are among the bytes; what
        /// they make is made in a directory of its own.
        #[test]
        fn no_request_makes_a_handler_panic(requests in sketches()) {
            let source = tempfile::tempdir().unwrap();
            survives(passthrough(source.path()), &requests)?;
        }

        #[test]
        fn no_request_makes_a_handler_of_tmpfs_panic(requests in sketches()) {
            survives(tmpfs(), &requests)?;
        }
    }
}
