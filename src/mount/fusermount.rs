//! Mounting and unmounting through fusermount3, the set-user-id helper of libfuse.
//!
//! It mounts, and sends the descriptor of /dev/fuse back through a socket whose number it finds in `_FUSE_COMMFD`.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::unmount::{How, Trouble};
use super::{Mount, Mounted, Request, Stage, mountinfo};
use crate::daemon;
use crate::failure::Failure;

const PROGRAM: &str = "fusermount3";
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";
/// Where it is when PATH, as cron and services have it, does not say.
const USUAL_PLACES: &str = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin";

/// Mounts as `request` says.
pub(super) fn mount(request: &Request) -> Result<Mount, Failure> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| cannot_run(&error))?;
    let mut child = start(request, theirs).map_err(|error| cannot_run(&error))?;
    let stderr = child.stderr.take();
    match receive_device(&ours) {
        Ok(Some(device)) => {
            // From here on the mount stands, so whatever happens it has its guard.
            let mounted = Mounted::new(request.mount_point());
            finish(child, stderr);
            Ok(Mount::new(device, Stage::Mounted(mounted)))
        }
        Ok(None) => Err(explain(child, stderr, request)),
        Err(error) => {
            log::debug!("{}", explain(child, stderr, request));
            Err(Failure::new(format!("{PROGRAM} sent no descriptor of the mount: {error}")))
        }
    }
}

fn start(request: &Request, theirs: UnixStream) -> io::Result<Child> {
    let program = find().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // The one descriptor that fusermount3 inherits. No other thread of ours starts a program meanwhile, since there
    // is none yet, and `theirs` closes when this function returns.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let privileged = rustix::process::getuid().is_root();
    let child = command(&program)
        .arg("-o")
        .arg(request.fusermount_options(privileged))
        .arg("--")
        .arg(request.mount_point())
        .env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string())
        .spawn();
    drop(theirs);
    child
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Its messages are matched below.
    command.env("LC_ALL", "C").env_remove(daemon::ROLE_VARIABLE);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The descriptor fusermount3 sends, or `None` when it ended without sending one.
fn receive_device(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut data = [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(_) => break,
        }
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a message without a descriptor"))
}

/// Waits for a helper that has mounted, and logs what it warned of.
fn finish(mut child: Child, stderr: Option<ChildStderr>) {
    let said = said(stderr);
    if !said.is_empty() {
        log::warn!("{PROGRAM}: {said}");
    }
    match daemon::wait(&mut child) {
        Ok(None) => {}
        Ok(Some(status)) if status.success() => {}
        Ok(Some(status)) => log::warn!("{PROGRAM} mounted, then ended with {status}"),
        Err(error) => log::warn!("cannot wait for {PROGRAM}: {error}"),
    }
}

/// All the helper wrote to its stderr, in one line and without its name.
fn said(stderr: Option<ChildStderr>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stderr) = stderr
        && let Err(error) = stderr.read_to_end(&mut bytes)
    {
        log::debug!("cannot read what {PROGRAM} says: {error}");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(|line| line.split_once(": ").map_or(line, |(_program, rest)| rest));
    lines.collect::<Vec<_>>().join("; ")
}

/// Why the helper did not mount, and what to do about it.
fn explain(mut child: Child, stderr: Option<ChildStderr>, request: &Request) -> Failure {
    let said = said(stderr);
    let point = request.mount_point().display();
    let status = match daemon::wait(&mut child) {
        Ok(Some(status)) => status.to_string(),
        Ok(None) => "an unknown status".to_owned(),
        Err(error) => error.to_string(),
    };
    Failure::new(match said.as_str() {
        "" => format!("cannot mount on {point}: {PROGRAM} ended with {status} and gave no reason"),
        text if text.contains("user_allow_other") => super::preflight::ALLOW_OTHER_IS_OFF.to_owned(),
        text if text.contains("no write access") || text.contains("not owned by user") => {
            format!("you may not mount on {point}: take a directory that is yours and that you can write to")
        }
        text if text.contains("Operation not permitted") => format!(
            "cannot mount on {point}: not permitted; {PROGRAM} must be set-user-id root, and a container needs `--cap-add SYS_ADMIN --device /dev/fuse`"
        ),
        text if text.contains("mount_max") || text.contains("too many FUSE") => {
            format!("too many FUSE mounts: unmount some, or raise mount_max in /etc/fuse.conf ({text})")
        }
        text => format!("cannot mount on {point}: {PROGRAM} says: {text}"),
    })
}

fn cannot_run(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        return missing();
    }
    Failure::new(format!("cannot run {PROGRAM}: {error}"))
}

/// The program is not installed.
pub(super) fn missing() -> Failure {
    Failure::new(format!(
        "{PROGRAM} is missing: install the package fuse3 (`apt install fuse3` or `dnf install fuse3`)"
    ))
}

/// Where the program is.
pub(super) fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = OsStr::new(USUAL_PLACES);
    let folders =
        env::split_paths(&path).chain(env::split_paths(usual)).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(PROGRAM)).find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Unmounts `point`, absolute, for a user who may not call umount2(2).
pub(super) fn unmount(point: &Path, how: How) -> Result<(), Trouble> {
    let program = find().ok_or_else(|| Trouble::Other(missing().to_string()))?;
    let mut command = command(&program);
    command.arg("-u");
    if how == How::Lazily {
        command.arg("-z");
    }
    let before = top(point);
    let run = command.arg("--").arg(point).spawn().and_then(|mut child| {
        let said = said(child.stderr.take());
        Ok((daemon::wait(&mut child)?, said))
    });
    match run {
        Ok((Some(status), _)) if status.success() => Ok(()),
        Ok((None, said)) if said.is_empty() && top(point) != before => Ok(()),
        Ok((_, said)) => Err(trouble(&said)),
        Err(error) => Err(Trouble::Other(format!("cannot run {PROGRAM}: {error}"))),
    }
}

/// What is mounted on `point`; judges a helper whose status nobody knows.
fn top(point: &Path) -> Option<mountinfo::Entry> {
    let entries = mountinfo::read().ok()?;
    mountinfo::top_at(&entries, point).cloned()
}

fn trouble(said: &str) -> Trouble {
    if said.contains("Device or resource busy") {
        Trouble::Busy
    } else if said.contains("not found in") || said.contains("Operation not permitted") {
        // It looks for an entry of the caller's own.
        Trouble::NotPermitted
    } else if said.contains("not mounted") {
        Trouble::NotMounted
    } else {
        Trouble::Other(format!("{PROGRAM} says: {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fusermount_says_becomes_a_kind_of_trouble() {
        assert_eq!(trouble("failed to unmount /m: Device or resource busy"), Trouble::Busy);
        assert_eq!(trouble("entry for /m not found in /etc/mtab"), Trouble::NotPermitted);
        assert_eq!(trouble("/m not mounted"), Trouble::NotMounted);
        assert!(matches!(trouble("else"), Trouble::Other(text) if text.contains("else")));
    }

    #[test]
    fn a_helper_that_ends_without_a_descriptor_is_noticed() {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        drop(theirs);
        assert!(receive_device(&ours).expect("end of file is no error").is_none());
    }

    #[test]
    fn a_byte_without_a_descriptor_is_an_error() {
        use std::io::Write;
        let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
        theirs.write_all(&[0]).expect("room in the socket");
        assert!(receive_device(&ours).is_err());
    }
}
