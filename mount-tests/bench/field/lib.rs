//! splicefs beside the file system below it, the kernel's overlayfs and tmpfs, and any peer.
//!
//! Each system serves the same data. A workload is run on each in turn, rep by rep, so that whatever else the machine does
//! falls on all of them alike; the order turns by one each time. What is measured runs in a process of its own, as the user
//! who is asked for. The source is in the page cache before anything is measured: a cold read is one that the FUSE file
//! system has not cached, on a source that is warm.

mod args;
mod data;
mod directory;
mod interrupt;
mod launch;
mod load;
mod machine;
#[allow(dead_code, reason = "the tests store through mappings, too")]
#[path = "../../mount/mapped.rs"]
mod mapped;
mod measure;
mod mounted;
mod mountinfo;
mod pattern;
mod processes;
mod report;
mod results;
mod system;
mod task;
mod user;
mod worker;
mod workload;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// What anything here may fail with: it is told to a person.
type Failure = Box<dyn Error>;
type Result<T> = std::result::Result<T, Failure>;

/// The argument with which the program is started again to do one task.
const WORKER: &str = "--worker";

/// Measures what the command line asks for. `splicefs` is the program.
pub fn main(splicefs: &Path) -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == WORKER) {
        return worker::main();
    }
    let args = args::Args::parse();
    if args.list {
        args::list();
        return ExitCode::SUCCESS;
    }
    match run(&args, splicefs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("field: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &args::Args, splicefs: &Path) -> Result<()> {
    interrupt::catch()?;
    let results = measure::run(args, splicefs)?;
    print!("{}", report::terminal::table(&results));
    report::write(args, &results)?;
    match results.failures() {
        0 => Ok(()),
        count => Err(format!("{count} times a system failed at a workload").into()),
    }
}
