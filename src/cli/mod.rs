//! The command line: the only place that reads arguments, and what each command does.

mod amount;
mod args;
mod ask;
mod help;
mod near;
mod resize;
mod serve;
mod stats;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use args::{Cli, Command, HelperFlags, Mount8, MountArgs};

use crate::daemon;
use crate::failure::Failure;
use crate::logging::{self, Setup};
use crate::mount::{How, keeper, unmount_command};
use crate::options::{BackendName, Options, Unknown};
use serve::{Manner, Order, Served};

/// The source shown for a mount in memory that was given no other name, as most people call that of the kernel.
const TMPFS_NAME: &str = "tmpfs";

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
    args::parse(arguments.iter().cloned())
        .map_err(|error| near::explain(error.kind(), &arguments).unwrap_or_else(|| error.exit()))
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Some(Command::Passthrough { source, mount_point, mount }) => {
            let options = Options::parse(&mount.options, Unknown::Refuse)?;
            start(Served::Directory(source.into()), mount_point, options, &mount, true)
        }
        Some(Command::Tmpfs { mount_point, mount, flags }) => {
            let options = Options::parse(&mount.options, unknown(&flags))?;
            // `mount -t fuse.splicefs tmpfs MNT -o backend=tmpfs` arrives here as well; mount(8) says nothing.
            let announce = options.backend.is_none() || flags.verbose;
            start(Served::Memory(TMPFS_NAME.into()), mount_point, options, &mount, announce)
        }
        Some(Command::Resize { mount_point, limits, options }) => {
            logging::start(&Setup::default())?;
            let limits: Vec<_> = limits.into_iter().chain(options).collect();
            resize::resize(Path::new(&mount_point), &limits)
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
            "a source and a mount point are needed: `splicefs passthrough SRC MNT`, `splicefs tmpfs MNT`, or see `splicefs --help`",
        ));
    };
    let options = Options::parse(&form.mount.options, unknown(&form.flags))?;
    let served = match options.backend {
        None => return Err(near::no_backend(&source, &mount_point)),
        Some(BackendName::Passthrough) => Served::Directory(source.into()),
        Some(BackendName::Tmpfs) => Served::Memory(source),
    };
    start(served, mount_point, options, &form.mount, form.flags.verbose)
}

fn unknown(flags: &HelperFlags) -> Unknown {
    if flags.sloppy { Unknown::Ignore } else { Unknown::Refuse }
}

fn start(
    served: Served,
    mount_point: OsString,
    options: Options,
    mount: &MountArgs,
    announce: bool,
) -> Result<(), Failure> {
    let options = options.for_backend(served.backend())?;
    let manner = Manner { foreground: mount.foreground, debug: mount.debug, announce };
    serve::run(&Order { served, mount_point, options, manner })
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
