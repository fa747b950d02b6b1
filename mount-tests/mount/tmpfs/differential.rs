//! Random sequences on two file systems at once: after each step the answers, the attributes of what it named, which
//! times it changed and the use of the file system must be the same, and at the end the trees.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rustix::fs::{Mode, StatFs};

use super::generate::{Room, sequence};
use super::known::Explained;
use super::mounts::Mounts;
use super::op::Step;
use super::run::{Answer, Side};
use super::tree::snapshot;
use super::watch::{TICK, changes, lends_times, look, now};
use crate::harness::{Identity, as_caller, long_run};

/// How long the use of two file systems may differ: a FUSE daemon hears of the end of a node a little later.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_WHEN_SHRINKING: Duration = Duration::from_millis(100);

/// How many operations a run has: `SPLICEFS_TESTS_OPS`, or 200,000 in the long form, or 20,000.
pub(crate) fn operations() -> usize {
    let given = std::env::var("SPLICEFS_TESTS_OPS").ok();
    let given = given.map(|text| text.parse().expect("SPLICEFS_TESTS_OPS is a number"));
    given.unwrap_or(if long_run() { 200_000 } else { 20_000 })
}

fn first_seed() -> u64 {
    let given = std::env::var("SPLICEFS_TESTS_SEED").ok();
    // Chosen anew in each run; a failure prints it.
    given.map_or_else(
        || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::from(time.subsec_nanos()) << 20)
        },
        |text| text.parse().expect("SPLICEFS_TESTS_SEED is a number"),
    )
}

/// Runs sequences of at least `operations` operations in all, in two mounts that `make` makes.
pub(crate) fn compare(room: Room, operations: usize, make: &(dyn Fn() -> Mounts + Sync)) {
    // A thread of its own: its umask and identity change all the time.
    as_caller(&Identity::root(), || run(room, operations, make));
}

fn run(room: Room, operations: usize, make: &dyn Fn() -> Mounts) {
    let mounts = make();
    let points = mounts.points();
    let [native, mounted] = points.map(limits);
    assert_eq!(native, mounted, "the limits differ");
    let [native, mounted] = points.map(Usage::of);
    assert_eq!(native, mounted, "the use of the empty file systems differs");

    let pair = Pair {
        mounts: RefCell::new(mounts),
        make,
        performed: Cell::new(0),
        clean: Cell::new(true),
        failed: Cell::new(false),
    };
    let strategy = sequence(room);
    let (mut seed, start) = (first_seed(), Instant::now());
    while pair.performed.get() < operations {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { failure_persistence: None, max_shrink_iters: 3000, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let tree = strategy.new_tree(&mut runner).expect("a sequence");
        // Without looking in between the kernel's caches are in states that looking would refresh.
        let watching = !seed.is_multiple_of(4);
        let result = runner.run_one(tree, |steps| pair.agree(&steps, watching));
        if let Err(failure) = result {
            let (reason, steps) = match failure {
                TestError::Fail(reason, steps) => (reason, steps),
                TestError::Abort(reason) => (reason, vec![]),
            };
            let lines = steps.iter().enumerate().fold(String::new(), |mut text, (number, step)| {
                write!(text, "\n    {number:3} {step:?}").expect("writing to a string");
                text
            });
            panic!(
                "after {} operations (SPLICEFS_TESTS_SEED={seed} repeats this sequence at once; {room:?}): {reason}\n\
                 the shortest sequence found:{lines}",
                pair.performed.get()
            );
        }
        seed += 1;
    }
    eprintln!("{} operations agreed in {:?}, {room:?}", pair.performed.get(), start.elapsed());
}

/// What statfs(2) says of the use of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usage {
    free_blocks: i64,
    available_blocks: i64,
    free_files: i64,
}

/// What statfs(2) says without the use, and without what is a mount's own.
fn limits(point: &Path) -> String {
    let StatFs { f_blocks, f_bsize, f_files, f_namelen, .. } = rustix::fs::statfs(point).expect("statfs");
    format!("{f_blocks} blocks of {f_bsize} bytes, {f_files} files, names of {f_namelen} bytes")
}

impl Usage {
    fn of(point: &Path) -> Self {
        let statfs = rustix::fs::statfs(point).expect("statfs");
        let signed = |value: u64| i64::try_from(value).expect("a reasonable number");
        Self {
            free_blocks: signed(statfs.f_bfree),
            available_blocks: signed(statfs.f_bavail),
            free_files: signed(statfs.f_ffree),
        }
    }

    fn since(self, start: Self) -> Self {
        Self {
            free_blocks: self.free_blocks - start.free_blocks,
            available_blocks: self.available_blocks - start.available_blocks,
            free_files: self.free_files - start.free_files,
        }
    }
}

/// Removes everything: a link from the root of a sequence to `../a` can have led to a file beside it.
fn empty(point: &Path) {
    for entry in fs::read_dir(point).expect("reading a mount point") {
        let path = entry.expect("reading a mount point").path();
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            .expect("emptying");
    }
}

/// The mounts under comparison, and the state of the run.
struct Pair<'a> {
    mounts: RefCell<Mounts>,
    make: &'a dyn Fn() -> Mounts,
    performed: Cell<usize>,
    /// The last sequence ended well.
    clean: Cell<bool>,
    /// Some sequence did not.
    failed: Cell<bool>,
}

impl Pair<'_> {
    fn usage(&self) -> [Usage; 2] {
        self.mounts.borrow().points().map(Usage::of)
    }

    /// Waits until the use of both has changed in the same way since `start`, or by nothing.
    fn same_usage(&self, start: [Usage; 2], nothing: bool) -> Result<(), String> {
        let patience = if self.failed.get() { PATIENCE_WHEN_SHRINKING } else { PATIENCE };
        let (begin, mut pause) = (Instant::now(), Duration::from_micros(50));
        loop {
            let [native, mounted] = self.usage();
            let changes = [native.since(start[0]), mounted.since(start[1])];
            if changes[0] == changes[1] && (!nothing || changes[0] == native.since(native)) {
                return Ok(());
            }
            if begin.elapsed() > patience {
                let [native, mounted] = changes;
                return Err(format!("use of the file system\n  native:  {native:?}\n  mounted: {mounted:?}"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// One sequence, from empty to empty.
    fn agree(&self, steps: &[Step], watching: bool) -> Result<(), TestCaseError> {
        if !self.clean.replace(false) {
            // Shrinking: what a failure left behind, such as a leak, must not be there for the next attempt.
            self.failed.set(true);
            self.mounts.replace((self.make)());
        }
        let start = self.usage();
        let mut sides = self.mounts.borrow().points().map(|point| Side::new(point.join("t")));
        for side in &sides {
            fs::create_dir(&side.root).expect("making the root of a sequence");
            rustix::fs::chmod(&side.root, Mode::from_raw_mode(0o777)).expect("chmod");
        }
        let result = self.steps(&mut sides, steps, watching, start);
        for side in &mut sides {
            side.close_all();
            empty(side.root.parent().expect("a mount point"));
        }
        let result = result.and_then(|()| {
            self.same_usage(start, true).map_err(|leak| format!("a leak: emptied, but {leak}"))
        });
        self.clean.set(result.is_ok());
        result.map_err(TestCaseError::fail)
    }

    fn steps(
        &self,
        sides: &mut [Side; 2],
        steps: &[Step],
        watching: bool,
        start: [Usage; 2],
    ) -> Result<(), String> {
        let explained = self.mounts.borrow().explained();
        for (number, step) in steps.iter().enumerate() {
            self.performed.set(self.performed.get() + usize::from(!self.failed.get()));
            if explained.leaves_out(step, &sides[0]) {
                continue;
            }
            let failed = |difference: String| format!("step {number}, {step:?}: {difference}");
            if watching {
                if number % 8 == 5 && lends_times(step) {
                    // Now and then every time is an old one, so that each change shows (see `watch`).
                    std::thread::sleep(TICK);
                }
                watched(sides, step, explained).map_err(failed)?;
            } else {
                let answers = sides.each_mut().map(|side| side.perform(step));
                same_answers(step, &answers, explained).map_err(failed)?;
            }
            self.same_usage(start, false).map_err(failed)?;
        }
        let [native, mounted] =
            sides.each_ref().map(|side| snapshot(side.root.parent().expect("a mount point")));
        if native == mounted {
            return Ok(());
        }
        let mut text = "the trees differ".to_owned();
        for line in native.iter().filter(|line| !mounted.contains(line)) {
            text += &format!("\n  native:  {line}");
        }
        for line in mounted.iter().filter(|line| !native.contains(line)) {
            text += &format!("\n  mounted: {line}");
        }
        Err(text)
    }
}

fn same_answers(step: &Step, [native, mounted]: &[Answer; 2], explained: Explained) -> Result<(), String> {
    if native == mounted || explained.answers(step, native, mounted) {
        return Ok(());
    }
    Err(format!("answers\n  native:  {native:?}\n  mounted: {mounted:?}"))
}

/// Performs a step on both sides and compares all that it answered and did to what it names.
fn watched(sides: &mut [Side; 2], step: &Step, explained: Explained) -> Result<(), String> {
    let results = sides.each_mut().map(|side| {
        let before = look(side, step);
        let start = now();
        let answer = side.perform(step);
        let after = look(side, step);
        let changes = changes(&before, &after, start, step);
        (answer, after, changes)
    });
    let [(native, native_after, native_changes), (mounted, mounted_after, mounted_changes)] = results;
    same_answers(step, &[native, mounted], explained)?;
    for (index, (native, mounted)) in native_after.iter().zip(&mounted_after).enumerate() {
        let label = &native.label;
        if native.text() != mounted.text() {
            let (native, mounted) = (native.text(), mounted.text());
            return Err(format!("attributes of {label}\n  native:  {native}\n  mounted: {mounted}"));
        }
        let Ok(node) = &native.node else { continue };
        let (native, mounted) = (&native_changes[index], &mounted_changes[index]);
        if !native.agree(mounted) && !explained.times(step, node, native, mounted) {
            return Err(format!("times of {label}\n  native:  {native:?}\n  mounted: {mounted:?}"));
        }
    }
    Ok(())
}
