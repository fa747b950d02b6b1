//! Serving in the background.
//!
//! The parent executes this same program once more, with the same arguments and [`ROLE_VARIABLE`] set, and waits for
//! one line on its stdout: nothing forks in a process that has threads. It prints what the line says and exits with
//! zero only once the mount serves.

use std::env;
use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Resource, Rlimit};

use crate::failure::{Failure, one_line};

/// Tells the program that it was executed by itself, and what for.
pub const ROLE_VARIABLE: &str = "SPLICEFS_ROLE";
/// To serve in the background.
const ROLE_SERVER: &str = "server";
/// To unmount when the server is gone.
pub const ROLE_KEEPER: &str = "keeper";

/// The first word of the line, before what the person is told.
const SERVING: &str = "serving ";
const FAILED: &str = "failed ";

const STDERR: RawFd = 2;

/// Whether this process was started by [`launch`].
pub fn is_server() -> bool {
    env::var_os(ROLE_VARIABLE).is_some_and(|role| role == ROLE_SERVER)
}

/// Whether this process waits to unmount ([`crate::mount::keeper`]).
pub fn is_keeper() -> bool {
    env::var_os(ROLE_VARIABLE).is_some_and(|role| role == ROLE_KEEPER)
}

/// Starts the background process, waits until it serves or has failed, and gives what it has to say.
///
/// # Errors
/// The child's own line, or how it ended when it could say nothing.
pub fn launch() -> Result<String, Failure> {
    let cannot = |error: io::Error| Failure::new(format!("cannot start the background process: {error}"));
    let mut child = spawn().map_err(cannot)?;
    let mut line = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_until(b'\n', &mut line).map_err(cannot)?;
    }
    let line = String::from_utf8_lossy(&line);
    let line = line.trim_end_matches('\n');
    if let Some(text) = line.strip_prefix(SERVING) {
        return Ok(text.to_owned());
    }
    // Before any wait, which gives no status where SIGCHLD is ignored.
    if let Some(text) = line.strip_prefix(FAILED) {
        return Err(Failure::new(text));
    }
    let how = match wait(&mut child).map_err(cannot)? {
        Some(status) => format!(" ({status})"),
        None => String::new(),
    };
    Err(Failure::new(format!("the background process ended before the mount served{how}")))
}

/// Waits for `child`. `None` when it has ended and nobody knows how: this process inherited an ignored SIGCHLD, and
/// the kernel then keeps no status (wait(2), ECHILD).
///
/// # Errors
/// When it cannot be waited for.
pub fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    match child.wait() {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        result => result.map(Some),
    }
}

fn spawn() -> io::Result<Child> {
    execute_again(|command| {
        let mut args = env::args_os();
        command.arg0(args.next().unwrap_or_else(|| OsString::from("splicefs"))).args(args);
        command.env(ROLE_VARIABLE, ROLE_SERVER);
        // Warnings of the start reach the person directly.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    })
}

/// Executes this program once more, as `adapt` says.
///
/// # Errors
/// When no process can be started.
pub fn execute_again(adapt: impl Fn(&mut Command)) -> io::Result<Child> {
    let run = |program: &Path| {
        let mut command = Command::new(program);
        adapt(&mut command);
        command.spawn()
    };
    // The link leads to the program that runs even where its file has been replaced or removed.
    run(Path::new("/proc/self/exe")).or_else(|_no_proc| run(&env::current_exe()?))
}

/// To whom a serving process reports: the person, or the parent that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reporter {
    /// In the foreground.
    Person,
    /// In the background, through the pipe on stdout.
    Parent,
}

impl Reporter {
    /// Says that the mount serves, `text` in one line, and in the background lets go of the terminal.
    ///
    /// # Errors
    /// When the parent does not listen any more: whoever started us has given up.
    pub fn serving(self, text: &str) -> io::Result<()> {
        match self {
            Self::Person => {
                if !text.is_empty() {
                    print_line(text)?;
                }
            }
            Self::Parent => {
                print_line(&format!("{SERVING}{text}"))?;
                release_stdio()?;
            }
        }
        Ok(())
    }

    /// Says why this process ends.
    pub fn failed(self, failure: &Failure) {
        let told = match self {
            Self::Person => Err(io::ErrorKind::Unsupported.into()),
            Self::Parent => print_line(&format!("{FAILED}{failure}")),
        };
        // A parent that is gone reads nothing; its terminal may still show it.
        if told.is_err()
            && let Err(error) = writeln!(io::stderr(), "splicefs: {failure}")
        {
            // Nobody can be told; the exit status still says it.
            log::debug!("cannot write to stderr: {error}");
        }
    }
}

fn print_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", one_line(text))?;
    stdout.flush()
}

/// Names the process in ps(1) and pgrep(1): after an exec of /proc/self/exe it would be `exe`.
pub fn take_name(name: &CStr) {
    if let Err(error) = rustix::thread::set_name(name) {
        log::debug!("the process keeps the name exe: {error}");
    }
}

/// Closes what the process that started us left open: a test runner or a shell would wait for its pipes to close for
/// as long as the mount serves. Call it first of all, when every descriptor above stderr is an inherited one.
pub fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return };
    let names = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    // Among them is the directory's own, closed again by then.
    let inherited: Vec<_> = names.filter(|fd| *fd > STDERR).collect();
    for fd in inherited {
        match nix::unistd::close(fd) {
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(error) => log::debug!("closing the inherited descriptor {fd}: {error}"),
        }
    }
}

/// Leaves the session of the terminal, so that no hang-up or interrupt of it comes here.
///
/// # Errors
/// When the process leads a session or group already, which a child of [`launch`] does not.
pub fn leave_terminal() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Keeps no directory busy. Relative paths mean nothing afterwards.
///
/// # Errors
/// When `/` cannot be entered.
pub fn leave_directory() -> io::Result<()> {
    env::set_current_dir("/")
}

fn release_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Raises the limits that would fail requests: the number of descriptors, and the largest file (a write through the
/// mount is limited by its caller's own).
pub fn raise_limits() {
    for (resource, name) in [(Resource::Nofile, "RLIMIT_NOFILE"), (Resource::Fsize, "RLIMIT_FSIZE")] {
        let limit = rustix::process::getrlimit(resource);
        if limit.current == limit.maximum {
            continue;
        }
        if let Err(error) = rustix::process::setrlimit(resource, Rlimit { current: limit.maximum, ..limit }) {
            log::warn!("cannot raise {name}: {error}");
        }
    }
    lift_file_size_limit();
}

/// Where CAP_SYS_RESOURCE allows it, no limit at all.
fn lift_file_size_limit() {
    let none = Rlimit { current: None, maximum: None };
    if rustix::process::getrlimit(Resource::Fsize).maximum.is_some()
        && let Err(error) = rustix::process::setrlimit(Resource::Fsize, none)
    {
        log::debug!("RLIMIT_FSIZE stays: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_rise_to_the_hard_ones() {
        raise_limits();
        let limit = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
