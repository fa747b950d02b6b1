//! The command line: the only place that reads arguments, and what each command does.

mod amount;
mod args;
mod ask;
mod help;
mod in_use;
mod layers;
mod near;
mod overlay;
mod resize;
mod serve;
mod stats;
mod unmount;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use args::{Arguments, Cli, Command, FuseOverlayfs, HelperFlags, Mount8, MountArgs};

use crate::daemon;
use crate::failure::Failure;
use crate::logging::{self, Setup};
use crate::mount::keeper;
use crate::options::{BackendName, Options, Unknown};
use serve::{Manner, Order, Served};

/// The source shown for a mount in memory that was given no other name, as most people call that of the kernel.
const TMPFS_NAME: &str = "tmpfs";
/// The same for merged directories.
const OVERLAY_NAME: &str = "overlay";
/// What container engines expect of root's mounts, as fuse-overlayfs has it, unless their own options say otherwise:
/// the users of a container come in, and its set-user-id programs work.
const ROOTS_CONTAINERS: &str = "allow_other,suid";

/// Runs the program: reads the arguments, does what they say, and gives the exit status. A failure is one line on
/// stderr, or in the background process on the pipe its parent reads.
pub fn main() -> ExitCode {
    if daemon::is_keeper() {
        keeper::keep();
        return ExitCode::SUCCESS;
    }
    let result = read_arguments().and_then(|arguments| match arguments {
        Arguments::Splicefs(cli) => run(*cli),
        Arguments::FuseOverlayfs(form) => fuse_overlayfs(form),
    });
    match result {
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
fn read_arguments() -> Result<Arguments, Failure> {
    let arguments: Vec<_> = std::env::args_os().collect();
    args::parse(&arguments).map_err(|error| near::explain(&error, &arguments).unwrap_or_else(|| error.exit()))
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
        Some(Command::Overlay { mount_point, mount, flags }) => {
            let options = Options::parse(&mount.options, unknown(&flags))?;
            let announce = options.backend.is_none() || flags.verbose;
            start(Served::Layers(OVERLAY_NAME.into()), mount_point, options, &mount, announce)
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
            unmount::unmount(Path::new(&mount_point), lazy)
        }
        None => mount8(cli.mount8),
    }
}

/// `splicefs SRC MNT -o backend=NAME,...`, as mount(8) calls its helpers.
fn mount8(form: Mount8) -> Result<(), Failure> {
    let (source, mount_point) = match (form.source, form.mount_point) {
        (Some(source), Some(mount_point)) => (source, mount_point),
        (only, _) => return mount_program(only, &form.mount, form.flags.verbose),
    };
    let options = Options::parse(&form.mount.options, unknown(&form.flags))?;
    let served = match options.backend {
        None => return Err(near::no_backend(&source, &mount_point)),
        Some(BackendName::Passthrough) => Served::Directory(source.into()),
        Some(BackendName::Tmpfs) => Served::Memory(source),
        Some(BackendName::Overlay) => Served::Layers(source),
    };
    start(served, mount_point, options, &form.mount, form.flags.verbose)
}

/// `splicefs -o lowerdir=...,upperdir=...,workdir=... MNT`, as container engines call their mount_program.
fn mount_program(mount_point: Option<OsString>, mount: &MountArgs, announce: bool) -> Result<(), Failure> {
    let options = container_options(mount)?;
    match mount_point {
        Some(mount_point) if !options.overlay.lowers.is_empty() => {
            start(Served::Layers(OVERLAY_NAME.into()), mount_point, options, mount, announce)
        }
        _ => Err(Failure::usage(
            "a source and a mount point are needed: `splicefs passthrough SRC MNT`, `splicefs tmpfs MNT`, `splicefs overlay MNT -o lowerdir=DIR`, or see `splicefs --help`",
        )),
    }
}

/// The same under the name of fuse-overlayfs: `fuse-overlayfs [NAME] MNT -o lowerdir=...`, with a name by mount.fuse3(8).
fn fuse_overlayfs(form: FuseOverlayfs) -> Result<(), Failure> {
    let FuseOverlayfs { mut places, mount, flags } = form;
    let mount_point = places.pop().unwrap_or_default();
    let name = places.pop().unwrap_or_else(|| OVERLAY_NAME.into());
    start(Served::Layers(name), mount_point, container_options(&mount)?, &mount, flags.verbose)
}

/// Container engines hand over what the kernel's overlayfs would understand, and more.
fn container_options(mount: &MountArgs) -> Result<Options, Failure> {
    let usual = rustix::process::geteuid().is_root().then_some(OsStr::new(ROOTS_CONTAINERS));
    let lists: Vec<_> = usual.into_iter().chain(mount.options.iter().map(OsString::as_os_str)).collect();
    Options::parse(&lists, Unknown::PassOver)
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
