//! Random layers and random sequences, merged by the kernel and by splicefs at once. After each step answers, attributes
//! and changed times must be the same, and at the end of each phase the trees: as they are, when mounted again, when each
//! upper layer is mounted by the other, and when it has become a lower one. Where ours keeps changes in memory, there is one
//! phase.

use std::fmt::Write;

use proptest::collection::vec;
use proptest::prelude::*;

use super::build::{Item, build, stack};
use super::layers::{Ground, Layers};
use super::mounted::{Engine, IN_MEMORY, Overlay};
use crate::differential::compare::{same_answers, same_trees, watched};
use crate::differential::generate::{Room, sequence};
use crate::differential::known::Explained;
use crate::differential::op::{Op, Step};
use crate::differential::run::{Side, View};
use crate::differential::runner::{self, Progress};
use crate::differential::tree::snapshot;
use crate::differential::watch::{TICK, lends_times};
use crate::harness::{Identity, as_caller};

/// What happens after a sequence, when both are unmounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// Each is mounted again by its own.
    Remount,
    /// Each is mounted by the other.
    Swap,
    /// The upper layer becomes a lower one.
    Rotate,
}

/// Layers, topmost first, and what is done to them.
#[derive(Clone, Debug)]
struct Case {
    layers: Vec<Vec<Item>>,
    phases: Vec<(Vec<Step>, Then)>,
}

fn case() -> impl Strategy<Value = Case> {
    let then = prop_oneof![1 => Just(Then::Remount), 3 => Just(Then::Swap), 3 => Just(Then::Rotate)];
    (stack(), vec((sequence(Room::Layers), then), 1..=3)).prop_map(|(layers, phases)| Case { layers, phases })
}

fn tell(case: &Case) -> String {
    let mut text = String::new();
    for (index, layer) in case.layers.iter().enumerate() {
        write!(text, "\n  layer {index} from the top:").expect("writing to a string");
        for item in layer {
            write!(text, "\n      {item:?}").expect("writing to a string");
        }
    }
    for (steps, then) in &case.phases {
        for (number, step) in steps.iter().enumerate() {
            write!(text, "\n    {number:3} {step:?}").expect("writing to a string");
        }
        write!(text, "\n    then {then:?}").expect("writing to a string");
    }
    text
}

fn removes_directories(step: &Step) -> bool {
    matches!(step.op, Op::Rmdir(_) | Op::Rename { .. })
}

/// A comparison: which options, on which ground, with whom.
#[derive(Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) options: &'static str,
    /// For splicefs alone.
    pub(crate) own: &'static str,
    pub(crate) ground: Ground,
    pub(crate) with: Engine,
}

impl Comparison {
    /// Runs cases of at least `operations` operations in all.
    pub(crate) fn run(self, operations: usize) {
        let what = format!("{} on {:?}", self.options, self.ground);
        // A thread of its own: its umask and identity change all the time.
        as_caller(&Identity::root(), || {
            let progress = Progress::default();
            let agree = |case: &Case, watching| {
                let agreed = self.agree(case, watching, &progress);
                if agreed.is_err() {
                    progress.fail();
                }
                agreed
            };
            runner::run(&what, &case(), operations, &progress, agree, tell);
        });
    }

    fn explained(self) -> Explained {
        match self.with {
            Engine::Kernel => Explained::OfKernelOverlay,
            Engine::Splicefs => match ["open=zero", "writeback=on"].map(|option| self.own.contains(option)) {
                [true, true] => Explained::OfUnopenedWrittenBackOverlay,
                [true, false] => Explained::OfUnopenedOverlay,
                [false, true] => Explained::OfWrittenBackOverlay,
                [false, false] => Explained::OfOverlay,
            },
        }
    }

    /// The index, by which the names of a file that is copied up stay one, belongs to the upper layer: below another one only
    /// the name that was copied up has what was written.
    fn possible(self, then: Then) -> Then {
        if then == Then::Rotate && self.options.contains("index=on") { Then::Swap } else { then }
    }

    fn mount(self, layers: &Layers, engine: Engine) -> Overlay {
        layers.mount_by(engine, self.own)
    }

    fn agree(self, case: &Case, watching: bool, progress: &Progress) -> Result<(), String> {
        let prefix = if self.options.contains("userxattr") { "user." } else { "trusted." };
        let mut both = [(); 2].map(|()| {
            let layers = Layers::new(self.ground, case.layers.len()).options(self.options);
            build(&case.layers, &layers.lowers, prefix);
            layers.seal();
            layers
        });
        let result = self.phases(&mut both, case, watching, progress);
        for layers in &both {
            // It was looked at, and to panic for it here would end the search for a shorter case.
            layers.unseal();
        }
        result
    }

    fn phases(
        self,
        both: &mut [Layers; 2],
        case: &Case,
        watching: bool,
        progress: &Progress,
    ) -> Result<(), String> {
        let engines = [Engine::Kernel, self.with];
        let marked = case.layers.iter().flatten().any(Item::is_marked);
        for (number, (steps, then)) in case.phases.iter().enumerate() {
            let failed = |difference: String| format!("phase {number}, {difference}");
            let mounts = [0, 1].map(|index| self.mount(&both[index], engines[index]));
            let steps: Vec<_> =
                steps.iter().filter(|step| !(marked && removes_directories(step))).cloned().collect();
            let before = self.steps(&mounts, &steps, watching, progress).map_err(failed)?;
            mounts.into_iter().for_each(Overlay::unmount);
            if self.own.contains(IN_MEMORY) {
                // Nothing is left to go on with.
                let left = std::fs::read_dir(both[1].upper()).expect("readdir").count();
                assert_eq!(left, 0, "changes went to a directory");
                return both.iter().try_for_each(Layers::unchanged).map_err(failed);
            }
            self.again(both, engines, self.possible(*then), &before).map_err(failed)?;
        }
        Ok(())
    }

    /// What a mount shows. Data that is brought to a metacopy changes its times in the kernel (see `known`), and not here.
    fn tree(self, mount: &Overlay) -> Vec<String> {
        let mut lines = snapshot(mount.point(), View::Merged);
        if self.options.contains("metacopy=on") {
            for line in lines.iter_mut().filter(|line| line.contains(": RegularFile ")) {
                let words = line.split(' ').filter(|word| !word.starts_with("mtime="));
                *line = words.collect::<Vec<_>>().join(" ");
            }
        }
        lines
    }

    /// Performs the steps, and gives the two trees that they left.
    fn steps(
        self,
        mounts: &[Overlay; 2],
        steps: &[Step],
        watching: bool,
        progress: &Progress,
    ) -> Result<[Vec<String>; 2], String> {
        let mut sides = mounts.each_ref().map(|mount| Side::new(mount.at("t"), View::Merged));
        for (number, step) in steps.iter().enumerate() {
            progress.step();
            if self.explained().leaves_out(step, &sides[0]) {
                continue;
            }
            let failed = |difference: String| format!("step {number}, {step:?}: {difference}");
            if watching {
                if number % 8 == 5 && lends_times(step) {
                    std::thread::sleep(TICK);
                }
                watched(&mut sides, step, self.explained()).map_err(failed)?;
            } else {
                let answers = sides.each_mut().map(|side| side.perform(step));
                same_answers(step, &answers, self.explained()).map_err(failed)?;
            }
        }
        for side in &mut sides {
            side.close_all();
        }
        let trees = mounts.each_ref().map(|mount| self.tree(mount));
        same_trees(["native", "mounted"], trees.each_ref().map(Vec::as_slice))?;
        Ok(trees)
    }

    /// Mounts the layers again, and differently, which must not change what they show; nor may any lower one have changed.
    fn again(
        self,
        both: &mut [Layers; 2],
        mut engines: [Engine; 2],
        then: Then,
        before: &[Vec<String>; 2],
    ) -> Result<(), String> {
        for layers in both.iter_mut() {
            layers.unchanged()?;
            if then == Then::Rotate {
                layers.rotate();
            }
        }
        if then == Then::Swap {
            engines.reverse();
        }
        for index in 0..2 {
            let mount = self.mount(&both[index], engines[index]);
            let after = self.tree(&mount);
            mount.unmount();
            let writer = ["the kernel", "splicefs"][index];
            same_trees(["before", "after"], [&before[index], &after])
                .map_err(|e| format!("what {writer} wrote, {then:?}, read by {:?}: {e}", engines[index]))?;
            both[index].unchanged()?;
        }
        Ok(())
    }
}
