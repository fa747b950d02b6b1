//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::NonEmptyStringValueParser;

use crate::Result;
use crate::pattern;
use crate::system::System;
use crate::user::User;
use crate::workload::{self, Workload};

/// Measures splicefs beside the file system below it, the kernel's file systems and any peer.
///
/// Builds its data, mounts the systems, runs each workload on each of them in turn, and prints medians, the smallest and
/// largest value, the ratio to one of the systems, and the daemon's processor time and memory. It leaves nothing behind.
#[derive(Parser, Debug)]
#[command(name = "field", after_help = SYSTEMS)]
pub(crate) struct Args {
    /// What to measure (see below). Without any: the source and splicefs, and as root the kernel's file systems
    pub(crate) systems: Vec<System>,
    /// The workloads, by name; `*` stands for anything (see --list)
    #[arg(short, long, value_delimiter = ',', default_value = "*")]
    pub(crate) workloads: Vec<String>,
    /// Workloads to leave out, as for --workloads
    #[arg(long, value_delimiter = ',')]
    pub(crate) skip: Vec<String>,
    /// How often each is measured, after one time that does not count
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) reps: u32,
    /// The system to which the others are compared, by label [default: native, or the first]
    #[arg(short, long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) base: Option<String>,
    /// Mount and measure as this user; FUSE file systems are mounted through fusermount3 (needs root to become the user)
    #[arg(short, long)]
    pub(crate) user: Option<User>,
    /// Run that many busy processes beside it
    #[arg(long, default_value_t = 0)]
    pub(crate) load: u32,
    /// Where the data and the mount points are made [default: $SPLICEFS_BENCH_DIR, or /var/tmp]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the data on an ext4 of its own in a file in this directory, /dev/shm for one (as root; needs a loop device)
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// A small part of the data and the work: to see that everything runs, not to measure
    #[arg(long)]
    pub(crate) small: bool,
    /// Write everything that was measured, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the tables, for a README
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write a plot of the ratios
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// List the workloads and end
    #[arg(long)]
    pub(crate) list: bool,
    /// cargo bench passes it.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

const SYSTEMS: &str = "\
Systems:
  native                     the source directory itself
  kernel-overlay[:OPTIONS]   the kernel's overlayfs over it (as root)
  kernel-tmpfs[:OPTIONS]     the kernel's tmpfs (as root)
  splicefs-passthrough[:OPTIONS], splicefs-overlay[:OPTIONS], splicefs-tmpfs[:OPTIONS]
                             splicefs, with -o OPTIONS
  peer:NAME=COMMAND          any other: a shell command that mounts {mnt}, in the background or not. With {lower}, {upper} and
                             {work} it is an overlay, with {src} a mirror of a directory, with {mnt} alone a file system in memory

LABEL=SYSTEM calls a system LABEL: copying=splicefs-passthrough:splice=off

Example, as root:
  cargo bench --bench field -- native splicefs-passthrough copying=splicefs-passthrough:splice=off \\
      --workloads 'read-*' --svg reads.svg
  cargo bench --bench field -- splicefs-overlay \\
      'peer:fuse-overlayfs=fuse-overlayfs -o lowerdir={lower},upperdir={upper},workdir={work} {mnt}' \\
      --user nobody --base fuse-overlayfs --skip 'memory-*'";

impl Args {
    /// The systems asked for, or those that can be had here.
    pub(crate) fn systems(&self) -> Result<Vec<System>> {
        let systems = if self.systems.is_empty() { System::defaults()? } else { self.systems.clone() };
        for (at, system) in systems.iter().enumerate() {
            if systems[..at].iter().any(|before| before.label == system.label) {
                return Err(format!("{} is there twice; LABEL=SYSTEM tells them apart", system.label).into());
            }
        }
        Ok(systems)
    }

    /// The workloads asked for, in the order of the table.
    pub(crate) fn workloads(&self) -> Result<Vec<&'static Workload>> {
        for wanted in self.workloads.iter().chain(&self.skip) {
            if !workload::ALL.iter().any(|workload| pattern::matches(wanted, workload.name)) {
                return Err(format!("no workload is called {wanted}; --list shows them").into());
            }
        }
        let named = |patterns: &[String], workload: &Workload| {
            // What takes long is only done when its name is given.
            patterns
                .iter()
                .any(|wanted| pattern::matches(wanted, workload.name) && (wanted != "*" || !workload.long))
        };
        let chosen = workload::ALL.iter();
        Ok(chosen.filter(|w| named(&self.workloads, w) && !named(&self.skip, w)).collect())
    }

    /// The system that is compared to, as an index.
    pub(crate) fn base(&self, systems: &[System]) -> Result<usize> {
        match &self.base {
            None => Ok(systems.iter().position(|system| system.label == "native").unwrap_or(0)),
            Some(label) => systems
                .iter()
                .position(|system| system.label == *label)
                .ok_or_else(|| format!("--base {label}: there is no such system").into()),
        }
    }
}

/// Prints the workloads.
pub(crate) fn list() {
    for workload in &workload::ALL {
        let long = if workload.long { " (only when named)" } else { "" };
        println!("{:22} {}{long}", workload.name, workload.about);
    }
}
