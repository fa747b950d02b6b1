//! What was measured.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;

use crate::args::Args;
use crate::machine::Machine;
use crate::system::System;
use crate::task::Done;
use crate::workload::Workload;

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) enum Unit {
    /// Bytes a second, told in MB/s.
    #[serde(rename = "MB/s")]
    Bytes,
    /// Operations a second.
    #[serde(rename = "op/s")]
    Operations,
    /// Memory, in KiB.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// Memory for one of many.
    #[serde(rename = "bytes each")]
    BytesEach,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bytes => "MB/s",
            Self::Operations => "op/s",
            Self::Kibibytes => "KiB",
            Self::BytesEach => "bytes each",
        }
    }

    /// What the daemon's processor time is told in.
    pub(crate) fn cpu_name(self) -> &'static str {
        if self == Self::Bytes { "ms a GB" } else { "us each" }
    }

    /// Whether it is a speed, of which more is better.
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Self::Bytes | Self::Operations)
    }
}

/// One measurement of one system.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    figure: &'static str,
    unit: Unit,
    value: f64,
    cpu: Option<f64>,
    rss_kib: Option<f64>,
}

impl Measured {
    pub(crate) fn plain(figure: &'static str, unit: Unit, value: f64) -> Self {
        Self { figure, unit, value, cpu: None, rss_kib: None }
    }

    /// The speed of a task, and what it cost the daemon: processor time, and its memory (bytes) afterwards.
    pub(crate) fn timed(
        figure: &'static str,
        unit: Unit,
        done: Done,
        served: Option<(Duration, u64)>,
    ) -> Self {
        let amount = done.amount as f64;
        let (scale, cpu_scale) = if unit == Unit::Bytes { (1e6, 1e12) } else { (1.0, 1e6) };
        Self {
            figure,
            unit,
            value: amount / done.seconds / scale,
            cpu: served.map(|(cpu, _)| cpu.as_secs_f64() * cpu_scale / amount),
            rss_kib: served.map(|(_, bytes)| bytes as f64 / 1024.0),
        }
    }
}

/// Several measurements of one thing, in the order in which they were made.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Sample(pub(crate) Vec<f64>);

impl Sample {
    /// The middle; `None` where nothing was measured.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
        Some(f64::midpoint(*low, *high))
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Each value over that of the same repetition in `base`; nothing where one of them has fewer, or none to divide by.
    fn over(&self, base: &Self) -> Self {
        if self.0.len() != base.0.len() || base.0.contains(&0.0) {
            return Self::default();
        }
        Self(self.0.iter().zip(&base.0).map(|(own, base)| own / base).collect())
    }
}

/// One figure of one system.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Cell {
    pub(crate) values: Sample,
    /// Processor time of the daemon for a part of the work (see [`Unit::cpu_name`]).
    pub(crate) cpu: Sample,
    /// Memory of the daemon afterwards.
    pub(crate) rss_kib: Sample,
    /// Why there is nothing.
    pub(crate) error: Option<String>,
}

/// One figure of every system.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    #[serde(skip)]
    workload: &'static str,
    pub(crate) name: String,
    pub(crate) unit: Unit,
    /// In the order of [`Results::systems`].
    pub(crate) cells: Vec<Cell>,
}

impl Figure {
    /// How the values of `system` compare to those of `base`, repetition by repetition.
    pub(crate) fn ratios(&self, system: usize, base: usize) -> Sample {
        self.cells[system].values.over(&self.cells[base].values)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cells.iter().all(|cell| cell.values.0.is_empty() && cell.error.is_none())
    }
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) data_on: String,
    pub(crate) user: Option<String>,
    pub(crate) load: u32,
    pub(crate) reps: u32,
    pub(crate) systems: Vec<String>,
    /// The system the others are compared to.
    pub(crate) base: usize,
    pub(crate) figures: Vec<Figure>,
}

impl Results {
    pub(crate) fn new(
        systems: &[System],
        base: usize,
        args: &Args,
        machine: Machine,
        data_on: String,
    ) -> Self {
        Self {
            command: command(std::env::args().skip(1)),
            machine,
            data_on,
            user: args.user.as_ref().map(|user| user.name.clone()),
            load: args.load,
            reps: args.reps,
            systems: systems.iter().map(|system| system.label.clone()).collect(),
            base,
            figures: Vec::new(),
        }
    }

    fn figure(&mut self, workload: &'static str, name: &str, unit: Unit) -> &mut Figure {
        let at = self.figures.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            let cells = vec![Cell::default(); self.systems.len()];
            self.figures.push(Figure { workload, name: name.to_owned(), unit, cells });
            self.figures.len() - 1
        });
        &mut self.figures[at]
    }

    /// Adds one repetition of one system.
    pub(crate) fn add(&mut self, workload: &Workload, system: usize, measured: Vec<Measured>) {
        for one in measured {
            let cell = &mut self.figure(workload.name, one.figure, one.unit).cells[system];
            cell.values.0.push(one.value);
            cell.cpu.0.extend(one.cpu);
            cell.rss_kib.0.extend(one.rss_kib);
        }
    }

    /// Notes that a system has failed at a workload; what it had done of it does not count.
    pub(crate) fn fail(&mut self, workload: &Workload, system: usize, error: &str) {
        let failed = Cell { error: Some(error.to_owned()), ..Cell::default() };
        let mut figures =
            self.figures.iter_mut().filter(|figure| figure.workload == workload.name).peekable();
        if figures.peek().is_some() {
            figures.for_each(|figure| figure.cells[system] = failed.clone());
        } else {
            // It has been the first: the workload stands for its figures.
            self.figure(workload.name, workload.name, Unit::Operations).cells[system] = failed;
        }
    }

    /// How often a system has failed at a workload.
    pub(crate) fn failures(&self) -> usize {
        let failed = self.figures.iter().flat_map(|figure| {
            let at = (0..figure.cells.len()).filter(|&at| figure.cells[at].error.is_some());
            at.map(|at| (figure.workload, at))
        });
        failed.collect::<HashSet<_>>().len()
    }

    pub(crate) fn has_failed(&self, workload: &Workload, system: usize) -> bool {
        let mut figures = self.figures.iter().filter(|figure| figure.workload == workload.name);
        figures.any(|figure| figure.cells[system].error.is_some())
    }
}

/// The command that was given, without what only says where the results go.
fn command(mut given: impl Iterator<Item = String>) -> String {
    const FILES: [&str; 3] = ["--json", "--markdown", "--svg"];
    let mut command = "cargo bench --bench field --".to_owned();
    while let Some(argument) = given.next() {
        if FILES.contains(&&*argument) {
            given.next();
        } else if argument != "--bench" && !FILES.iter().any(|file| argument.starts_with(&format!("{file}=")))
        {
            command.push(' ');
            command.push_str(&quoted(&argument));
        }
    }
    command
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results of three systems: the base, one of half its speed, one that failed.
    pub(crate) fn example() -> Results {
        let cell = |values: &[f64]| Cell { values: Sample(values.to_vec()), ..Cell::default() };
        let slower = Cell {
            cpu: Sample(vec![100.0, 130.0, 110.0]),
            rss_kib: Sample(vec![4096.0]),
            ..cell(&[500.0, 1000.0, 400.0])
        };
        let failed = Cell { error: Some("Input/output error".into()), ..Cell::default() };
        Results {
            command: "cargo bench --bench field -- native 'peer:<a>=x {mnt}'".into(),
            machine: Machine {
                date: "2026-11-23".into(),
                kernel: "6.18".into(),
                processors: 2,
                ..Machine::default()
            },
            data_on: "ext4".into(),
            user: None,
            load: 0,
            reps: 3,
            systems: vec!["native".into(), "splicefs-passthrough".into(), "<a>".into()],
            base: 0,
            figures: vec![Figure {
                workload: "read-cold",
                name: "read 1 MiB, cold".into(),
                unit: Unit::Bytes,
                cells: vec![cell(&[1000.0, 1000.0, 2000.0]), slower, failed],
            }],
        }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(Sample(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Sample(vec![4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Sample::default().median(), None);
    }

    #[test]
    fn ratios_are_those_of_the_pairs() {
        let ratios = example().figures[0].ratios(1, 0);
        assert_eq!(ratios, Sample(vec![0.5, 1.0, 0.2]));
        assert_eq!(ratios.median(), Some(0.5));
        assert_eq!(example().figures[0].ratios(2, 0).median(), None);
    }

    #[test]
    fn a_failed_workload_counts_for_nothing_and_is_not_done_again() {
        let mut results = example();
        let workload = &crate::workload::ALL[0];
        results.fail(workload, 1, "no");
        assert!(results.figures[0].cells[1].values.0.is_empty());
        assert!(results.has_failed(workload, 1) && !results.has_failed(workload, 0));
        let other = &crate::workload::ALL[1];
        results.fail(other, 0, "no");
        assert!(results.has_failed(other, 0));
        assert_eq!(results.figures.len(), 2);
        results.fail(other, 1, "no");
        assert_eq!(results.failures(), 4, "one was there before");
    }

    #[test]
    fn the_command_is_the_one_to_type_again() {
        let given = ["native", "--svg", "a.svg", "--reps", "3", "--json=b", "--bench", "peer:a=b {mnt}"];
        let command = command(given.into_iter().map(str::to_owned));
        assert_eq!(command, "cargo bench --bench field -- native --reps 3 'peer:a=b {mnt}'");
    }

    #[test]
    fn an_argument_is_quoted_where_a_shell_would_read_more_into_it() {
        assert_eq!(quoted("splicefs-passthrough:splice=off"), "splicefs-passthrough:splice=off");
        assert_eq!(quoted("peer:a=b {mnt}"), "'peer:a=b {mnt}'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
