//! Random cases one after another, each from a seed that repeats it, and the shortest that fails.

use std::cell::Cell;
use std::fmt::Debug;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::harness::long_run;

/// How many operations a run has: `SPLICEFS_TESTS_OPS`, or 200,000 in the long form, or 20,000.
pub(crate) fn operations() -> usize {
    let given = std::env::var("SPLICEFS_TESTS_OPS").ok();
    let given = given.map(|text| text.parse().expect("SPLICEFS_TESTS_OPS is a number"));
    given.unwrap_or(if long_run() { 200_000 } else { 20_000 })
}

pub(crate) fn first_seed() -> u64 {
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

/// How far a run is.
#[derive(Default)]
pub(crate) struct Progress {
    performed: Cell<usize>,
    failed: Cell<bool>,
}

impl Progress {
    /// Counts an operation.
    pub(crate) fn step(&self) {
        self.performed.set(self.performed.get() + usize::from(!self.failed.get()));
    }

    /// From now on a failure is being shrunk.
    pub(crate) fn fail(&self) {
        self.failed.set(true);
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }
}

/// Runs cases of at least `operations` operations in all. `agree` is told whether to watch each step; without looking in
/// between the kernel's caches are in states that looking would refresh.
pub(crate) fn run<S: Strategy>(
    what: &str,
    strategy: &S,
    operations: usize,
    progress: &Progress,
    agree: impl Fn(&S::Value, bool) -> Result<(), String>,
    tell: impl Fn(&S::Value) -> String,
) where
    S::Value: Debug,
{
    let (mut seed, start) = (first_seed(), Instant::now());
    while progress.performed.get() < operations {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { failure_persistence: None, max_shrink_iters: 3000, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let tree = strategy.new_tree(&mut runner).expect("a sequence");
        let watching = !seed.is_multiple_of(4);
        let result = runner.run_one(tree, |case| agree(&case, watching).map_err(TestCaseError::fail));
        if let Err(failure) = result {
            let (reason, case) = match failure {
                TestError::Fail(reason, case) => (reason, tell(&case)),
                TestError::Abort(reason) => (reason, String::new()),
            };
            panic!(
                "after {} operations (SPLICEFS_TESTS_SEED={seed} repeats this sequence at once; {what}): {reason}\n\
                 the shortest sequence found:{case}",
                progress.performed.get()
            );
        }
        seed += 1;
    }
    eprintln!("{} operations agreed in {:?}, {what}", progress.performed.get(), start.elapsed());
}
