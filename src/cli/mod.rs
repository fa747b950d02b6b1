//! The command line: the only place that reads arguments, and what each command does.

mod args;
mod help;
mod near;
mod serve;
mod stats;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use args::{Cli, Command, Mount8};
use clap::error::ErrorKind;

use crate::daemon;
use crate::failure::Failure;
use crate::logging::{self, Setup};
use crate::mount::{How, keeper, unmount_command};
use crate::options::{BackendName, Options, Unknown};
use serve::{Manner, Order};

/// Runs the program: reads the arguments, does what they say, and gives the exit status. A failure is one line on
/// stderr, or in the background process on the pipe its parent reads.
pub fn main() -> ExitCode {
    if daemon::is_keeper() {
        keeper::keep();
        return ExitCode::SUCCESS;
    }
    match read_arguments().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let reporter =
                if daemon::is_server() { daemon::Reporter::Parent } else { daemon::Reporter::Person };
            reporter.failed(&failure);
            ExitCode::from(failure.status())
        }
    }
}

/// What clap says of wrong arguments it prints itself, and ends the process.
fn read_arguments() -> Result<Cli, Failure> {
    let arguments: Vec<_> = std::env::args_os().collect();
    args::parse(arguments.iter().cloned()).map_err(|error| {
        let conflict = error.kind() == ErrorKind::ArgumentConflict;
        near::explain(&arguments).filter(|_| conflict).unwrap_or_else(|| error.exit())
    })
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Some(Command::Passthrough { source, mount_point, mount }) => {
            let options = Options::parse(&mount.options, Unknown::Refuse)?;
            if options.backend.is_some_and(|backend| backend != BackendName::Passthrough) {
                return Err(Failure::usage(
                    "`splicefs passthrough` and the option `backend` contradict each other",
                ));
            }
            let manner = Manner { foreground: mount.foreground, debug: mount.debug, announce: true };
            serve::run(&Order { backend: BackendName::Passthrough, source, mount_point, options, manner })
        }
        Some(Command::Stats { mount_point, json }) => {
            logging::start(&Setup::default())?;
            print(&stats::text(Path::new(&mount_point), json)?)
        }
        Some(Command::Unmount { mount_point, lazy }) => {
            logging::start(&Setup::default())?;
            unmount_command(Path::new(&mount_point), if lazy { How::Lazily } else { How::Now })
        }
        None => mount8(cli.mount8),
    }
}

/// `splicefs SRC MNT -o backend=NAME,...`, as mount(8) calls its helpers.
fn mount8(form: Mount8) -> Result<(), Failure> {
    let (Some(source), Some(mount_point)) = (form.source, form.mount_point) else {
        return Err(Failure::usage(
            "a source and a mount point are needed: `splicefs passthrough SRC MNT`, or see `splicefs --help`",
        ));
    };
    let unknown = if form.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    let options = Options::parse(&form.mount.options, unknown)?;
    let Some(backend) = options.backend else {
        return Err(near::no_backend(&source, &mount_point));
    };
    let manner =
        Manner { foreground: form.mount.foreground, debug: form.mount.debug, announce: form.verbose };
    serve::run(&Order { backend, source, mount_point, options, manner })
}

/// Prints to stdout; a reader that has seen enough is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
