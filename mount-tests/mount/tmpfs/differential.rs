//! Random sequences on two file systems at once: after each step the answers, the attributes of what it named, which
//! times it changed and the use of the file system must be the same, and at the end the trees.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, StatFs};

use super::mounts::Mounts;
use crate::differential::compare::{same_answers, same_trees, watched};
use crate::differential::generate::{Room, sequence};
use crate::differential::op::Step;
use crate::differential::run::{Side, View};
use crate::differential::runner::{self, Progress};
use crate::differential::tree::snapshot;
use crate::differential::watch::{TICK, lends_times};
use crate::harness::{Identity, as_caller};

/// How long the use of two file systems may differ: a FUSE daemon hears of the end of a node a little later.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_WHEN_SHRINKING: Duration = Duration::from_millis(100);

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

    let (mounts, progress) = (RefCell::new(mounts), Progress::default());
    let pair = Pair { mounts, make, progress, clean: Cell::new(true) };
    let agree = |steps: &Vec<Step>, watching| pair.agree(steps, watching);
    runner::run(&format!("{room:?}"), &sequence(room), operations, &pair.progress, agree, |steps| {
        tell(steps)
    });
}

/// Steps as lines.
fn tell(steps: &[Step]) -> String {
    steps.iter().enumerate().fold(String::new(), |mut text, (number, step)| {
        write!(text, "\n    {number:3} {step:?}").expect("writing to a string");
        text
    })
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
    progress: Progress,
    /// The last sequence ended well.
    clean: Cell<bool>,
}

impl Pair<'_> {
    fn usage(&self) -> [Usage; 2] {
        self.mounts.borrow().points().map(Usage::of)
    }

    /// Waits until the use of both has changed in the same way since `start`, or by nothing.
    fn same_usage(&self, start: [Usage; 2], nothing: bool) -> Result<(), String> {
        let patience = if self.progress.failed() { PATIENCE_WHEN_SHRINKING } else { PATIENCE };
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
    fn agree(&self, steps: &[Step], watching: bool) -> Result<(), String> {
        if !self.clean.replace(false) {
            // Shrinking: what a failure left behind, such as a leak, must not be there for the next attempt.
            self.progress.fail();
            self.mounts.replace((self.make)());
        }
        let start = self.usage();
        let mut sides = self.mounts.borrow().points().map(|point| Side::new(point.join("t"), View::Exact));
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
        result
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
            self.progress.step();
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
            sides.each_ref().map(|side| snapshot(side.root.parent().expect("a mount point"), side.view));
        same_trees(["native", "mounted"], [&native, &mounted])
    }
}
