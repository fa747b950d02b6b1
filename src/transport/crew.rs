//! Which threads wait for requests, and which come in when those are held up.
//!
//! A request may take long: the source is on a server that does not answer, a lease has to be given back, a disk is
//! slow. Threads that wait for nothing but that cost little as long as they sleep; but the more of them wait for requests, the
//! longer each has slept when the kernel, which wakes the one that has waited longest, comes to it. So only some wait. When
//! none has waited for a moment, a foreman calls one more, and whoever is ready when there are enough sits down. Those that have
//! been busy since he looked last are held: of the threads, what holds them has a share ([`super::waiting`]).

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno as Os, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::request::Request;
use super::waiting::{Aside, FileSystems, Keys, Leased, Shares, Waiting};

/// So long nobody waits for requests before the foreman looks.
const PATIENCE: Duration = Duration::from_millis(1);

/// Threads that do not wait for requests.
#[derive(Debug, Default)]
struct Bench {
    /// How many sit here.
    seated: usize,
    /// How many of them have been called and not got up yet.
    called: usize,
    /// There is nothing left to do, for anybody.
    dismissed: bool,
}

/// What a thread serves.
#[derive(Debug, Default)]
pub(super) struct Place {
    number: usize,
    /// Odd while it serves a request.
    turn: AtomicU64,
    uid: AtomicU32,
    node: AtomicU64,
    name: AtomicU64,
    /// The foreman has found it held.
    held: AtomicBool,
}

impl Place {
    /// The thread serves a request from now on.
    pub(super) fn begin(&self, keys: Keys) {
        self.uid.store(keys.uid, Ordering::Relaxed);
        self.node.store(keys.node, Ordering::Relaxed);
        self.name.store(keys.name, Ordering::Relaxed);
        self.turn.store(self.turn.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn keys(&self) -> Keys {
        Keys {
            uid: self.uid.load(Ordering::Relaxed),
            node: self.node.load(Ordering::Relaxed),
            name: self.name.load(Ordering::Relaxed),
        }
    }
}

/// The threads of a session.
///
/// Lock order: `places`, then `requests`; `bench` is a leaf.
#[derive(Debug)]
pub struct Crew {
    /// Requests may wait without a thread: there is another one to serve them later.
    sets_aside: bool,
    /// What every thread serves, and its turn when the foreman looked last.
    places: Mutex<Vec<(Arc<Place>, u64)>>,
    requests: Mutex<Waiting>,
    /// Some threads are held.
    holds_any: AtomicBool,
    /// Some requests that were set aside are to be served.
    has_ready: AtomicBool,
    /// So many threads wait for requests at most.
    waiting_max: usize,
    /// Threads that do.
    waiting: AtomicUsize,
    bench: Mutex<Bench>,
    calls: Condvar,
    /// Wakes the foreman.
    alarm: OwnedFd,
    /// The alarm is set, or the foreman has not heard it yet.
    alarmed: AtomicBool,
}

/// Who looks after a crew. When he is dropped, everybody is dismissed.
#[derive(Debug)]
pub struct Foreman {
    crew: Arc<Crew>,
    thread: Option<JoinHandle<()>>,
}

/// What a thread is to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Wait for a request.
    Wait,
    /// Serve this one, which had been set aside.
    Serve(Aside),
    /// End.
    Leave,
}

impl Crew {
    /// A crew of `threads`, nobody of whom has come yet, and of whom at most `waiting_max` will wait for requests.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new(threads: usize, waiting_max: NonZeroUsize) -> io::Result<Self> {
        Ok(Self {
            sets_aside: threads > 1,
            places: Mutex::default(),
            requests: Mutex::new(Waiting::new(Shares::of(threads))),
            holds_any: AtomicBool::new(false),
            has_ready: AtomicBool::new(false),
            // One at least is left for what was set aside.
            waiting_max: waiting_max.get().min(threads.saturating_sub(1)).max(1),
            waiting: AtomicUsize::new(0),
            bench: Mutex::default(),
            calls: Condvar::new(),
            alarm: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            alarmed: AtomicBool::new(false),
        })
    }

    /// The calling thread is one of the crew.
    pub(super) fn join(&self) -> Arc<Place> {
        let mut places = self.places.lock();
        let place = Arc::new(Place { number: places.len(), ..Place::default() });
        places.push((place.clone(), 0));
        place
    }

    /// Whether requests may wait without a thread.
    pub(super) fn sets_aside(&self) -> bool {
        self.sets_aside
    }

    /// Sets the request in `message` aside if it has to wait for a share; whether it did. `Err` where there is no room for it.
    pub(super) fn queue(
        &self,
        message: &[u8],
        request: &Request<'_>,
        file_systems: FileSystems<'_>,
    ) -> Result<bool, ()> {
        if !self.holds_any.load(Ordering::Relaxed) || !self.sets_aside {
            return Ok(false);
        }
        self.requests.lock().queue(message, request, file_systems)
    }

    /// The request has found a lease.
    pub(super) fn lease(&self, aside: Aside, may_be_refused: bool) -> Leased {
        let leased = self.requests.lock().lease(aside, Instant::now(), may_be_refused);
        // The foreman learns that there is something to be tried again.
        if leased == Leased::Waits && !self.alarmed.swap(true, Ordering::SeqCst) {
            self.set_alarm(PATIENCE);
        }
        leased
    }

    /// The request of that number is interrupted: whether it waited for a lease, and does not any more.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        self.requests.lock().interrupt(unique)
    }

    /// The calling thread has served what it took at its `place`; `waited` says that it had been set aside.
    pub(super) fn served(&self, place: &Place, waited: bool, file_systems: FileSystems<'_>) {
        place.turn.store(place.turn.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
        let was_held = place.held.load(Ordering::SeqCst);
        if !was_held && !waited {
            return;
        }
        let mut requests = self.requests.lock();
        if was_held {
            place.held.store(false, Ordering::SeqCst);
            requests.release(place.number, file_systems);
        } else {
            requests.admit_next(file_systems);
        }
        self.holds_any.store(requests.holds_any(), Ordering::SeqCst);
        self.has_ready.store(requests.has_ready(), Ordering::SeqCst);
    }

    fn ready(&self) -> Option<Aside> {
        if !self.has_ready.load(Ordering::SeqCst) {
            return None;
        }
        let mut requests = self.requests.lock();
        let ready = requests.next();
        self.has_ready.store(requests.has_ready(), Ordering::SeqCst);
        ready
    }

    /// The calling thread has nothing to do. Returns when it is to serve a request, to wait for one, or to end.
    pub(super) fn idle(&self) -> Next {
        loop {
            if let Some(aside) = self.ready() {
                return Next::Serve(aside);
            }
            if self.is_joined() {
                return Next::Wait;
            }
            let mut bench = self.bench.lock();
            if bench.dismissed {
                return Next::Leave;
            }
            // Those who waited may have taken a request since. From here on the foreman sees us.
            if self.waiting.load(Ordering::SeqCst) < self.waiting_max || self.has_ready.load(Ordering::SeqCst)
            {
                continue;
            }
            bench.seated += 1;
            self.calls.wait_while(&mut bench, |bench| bench.called == 0 && !bench.dismissed);
            bench.seated -= 1;
            bench.called = bench.called.saturating_sub(1);
        }
    }

    /// Whether the calling thread has found room among those who wait.
    fn is_joined(&self) -> bool {
        let join = |waiting| (waiting < self.waiting_max).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, join).is_ok()
    }

    /// The calling thread waits no longer: it has a request, or has failed to get one.
    pub(super) fn busy(&self) {
        let others = self.waiting.fetch_sub(1, Ordering::SeqCst) - 1;
        if others == 0 && !self.alarmed.swap(true, Ordering::SeqCst) {
            self.set_alarm(PATIENCE);
        }
    }

    /// The calling thread ends although there is work to do: somebody else has to do it.
    pub(super) fn quit(&self) {
        self.call(&mut self.bench.lock());
    }

    /// There will be no more requests: everybody ends.
    pub(super) fn dismiss(&self) {
        self.bench.lock().dismissed = true;
        self.calls.notify_all();
        self.set_alarm(Duration::from_nanos(1));
    }

    fn set_alarm(&self, after: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Timespec { tv_sec: 0, tv_nsec: after.subsec_nanos().into() };
        let timer = Itimerspec { it_interval: zero, it_value: once };
        if let Err(e) = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &timer) {
            log::error!("slow requests may hold up others: the foreman cannot be woken: {e}");
        }
    }

    fn call(&self, bench: &mut Bench) {
        if bench.called < bench.seated {
            bench.called += 1;
            self.calls.notify_one();
        }
    }

    /// What the foreman does until everybody is dismissed.
    fn supervise(&self) -> io::Result<()> {
        let mut rings = [0; 8];
        let mut try_again = None;
        loop {
            if self.alarm_before(try_again)? {
                match read(&self.alarm, &mut rings) {
                    Ok(_) => {}
                    Err(Os::INTR) => continue,
                    Err(e) => return Err(e.into()),
                }
                self.alarmed.store(false, Ordering::SeqCst);
                if self.waiting.load(Ordering::SeqCst) == 0 {
                    self.find_held();
                }
            }
            let again;
            (again, try_again) = {
                let mut requests = self.requests.lock();
                let due = requests.try_again(Instant::now());
                self.has_ready.store(requests.has_ready(), Ordering::SeqCst);
                due
            };
            let mut bench = self.bench.lock();
            if bench.dismissed {
                return Ok(());
            }
            let wanted = usize::from(self.waiting.load(Ordering::SeqCst) == 0) + again;
            (0..wanted).for_each(|_| self.call(&mut bench));
        }
    }

    /// Waits for the alarm, or until then; whether it was the alarm.
    fn alarm_before(&self, until: Option<Instant>) -> io::Result<bool> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(1),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut alarm = [PollFd::new(&self.alarm, PollFlags::IN)];
        match poll(&mut alarm, left.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Os::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Threads that have served the same request since this was done last are held.
    fn find_held(&self) {
        let mut places = self.places.lock();
        let mut requests = self.requests.lock();
        for (place, seen) in places.iter_mut() {
            let turn = place.turn.load(Ordering::SeqCst);
            let is_busy = turn % 2 == 1;
            if is_busy && turn == *seen && !place.held.load(Ordering::SeqCst) {
                let keys = place.keys();
                // First this, and then another look at the turn: one of the two sees the other.
                place.held.store(true, Ordering::SeqCst);
                if place.turn.load(Ordering::SeqCst) == turn {
                    requests.hold(place.number, keys);
                } else {
                    place.held.store(false, Ordering::SeqCst);
                }
            }
            *seen = turn;
        }
        self.holds_any.store(requests.holds_any(), Ordering::SeqCst);
    }
}

impl Foreman {
    /// Has a thread look after `crew`.
    ///
    /// # Errors
    /// Where there is none to be had.
    pub fn start(crew: Arc<Crew>) -> io::Result<Self> {
        let looked_after = crew.clone();
        let run = move || {
            if let Err(e) = looked_after.supervise() {
                log::error!("slow requests may hold up others from now on: {e}");
            }
        };
        let thread = std::thread::Builder::new().name("foreman".into()).spawn(run)?;
        Ok(Self { crew, thread: Some(thread) })
    }
}

impl Drop for Foreman {
    fn drop(&mut self) {
        self.crew.dismiss();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the foreman panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    /// Threads that serve a crew as workers do, but whose requests are a sleep until the test lets them go on.
    struct Shop {
        crew: Arc<Crew>,
        foreman: Option<Foreman>,
        requests: Sender<()>,
        /// One message for each request that a thread has taken.
        taken: Receiver<()>,
        go_on: Sender<()>,
        threads: Vec<JoinHandle<()>>,
    }

    /// More than any thread needs to be called on a busy machine.
    const LONG: Duration = Duration::from_secs(20);

    impl Shop {
        fn new(threads: usize, waiting: usize) -> Self {
            let crew = Arc::new(Crew::new(threads, NonZeroUsize::new(waiting).unwrap()).unwrap());
            let (requests, inbox) = channel::<()>();
            let (took, taken) = channel();
            let (go_on, gate) = channel::<()>();
            let (inbox, gate) = (Arc::new(Mutex::new(inbox)), Arc::new(Mutex::new(gate)));
            let work = || {
                let (crew, inbox, took, gate) = (crew.clone(), inbox.clone(), took.clone(), gate.clone());
                std::thread::spawn(move || {
                    while matches!(crew.idle(), Next::Wait) {
                        let received = inbox.lock().recv();
                        crew.busy();
                        if received.is_err() {
                            return crew.dismiss();
                        }
                        took.send(()).unwrap();
                        gate.lock().recv().unwrap();
                    }
                })
            };
            let threads = (0..threads).map(|_| work()).collect();
            let foreman = Some(Foreman::start(crew.clone()).unwrap());
            Self { crew, foreman, requests, taken, go_on, threads }
        }

        fn seated(&self) -> usize {
            self.crew.bench.lock().seated
        }

        fn wait_until_seated(&self, seated: usize) {
            let begun = Instant::now();
            while self.seated() != seated {
                assert!(begun.elapsed() < LONG, "{} sit instead of {seated}", self.seated());
                std::thread::yield_now();
            }
        }

        fn end(mut self) {
            drop(self.requests);
            for thread in self.threads {
                thread.join().unwrap();
            }
            drop(self.foreman.take());
        }
    }

    #[test]
    fn requests_that_hold_up_all_who_wait_hold_up_nobody_else() {
        let shop = Shop::new(6, 2);
        shop.wait_until_seated(4);
        for n in 0..6 {
            shop.requests.send(()).unwrap();
            shop.taken.recv_timeout(LONG).unwrap_or_else(|_| panic!("nobody takes request {n}"));
        }
        assert_eq!(shop.seated(), 0);
        // Held up all of them; whoever goes on takes the next.
        shop.requests.send(()).unwrap();
        shop.go_on.send(()).unwrap();
        shop.taken.recv_timeout(LONG).unwrap();
        for _ in 0..6 {
            shop.go_on.send(()).unwrap();
        }
        shop.wait_until_seated(4);
        shop.end();
    }

    #[test]
    fn who_ends_early_is_replaced() {
        let crew = Arc::new(Crew::new(2, NonZeroUsize::MIN).unwrap());
        assert!(matches!(crew.idle(), Next::Wait));
        let other = {
            let crew = crew.clone();
            std::thread::spawn(move || crew.idle())
        };
        while crew.bench.lock().seated == 0 {
            std::thread::yield_now();
        }
        crew.busy();
        crew.quit();
        assert!(matches!(other.join().unwrap(), Next::Wait));
    }

    #[test]
    fn everybody_leaves_when_the_foreman_is_let_go() {
        let crew = Arc::new(Crew::new(2, NonZeroUsize::MIN).unwrap());
        let foreman = Foreman::start(crew.clone()).unwrap();
        assert!(matches!(crew.idle(), Next::Wait));
        let other = std::thread::spawn(move || crew.idle());
        drop(foreman);
        assert!(matches!(other.join().unwrap(), Next::Leave));
    }
}
