//! Tasks in processes of their own.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::task::{Done, Task};
use crate::user::User;
use crate::{Result, WORKER, interrupt};

/// A task that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// Starts this program again, as `user`, to do `task`.
pub(crate) fn start(task: &Task, user: Option<&User>) -> Result<Child> {
    // Not by its path, which another user may not be able to reach.
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    if let Some(user) = user {
        user.become_in(&mut command);
    }
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(&serde_json::to_vec(task)?)?;
    }
    Ok(child)
}

/// Does `task` as `user` and waits for it.
pub(crate) fn run(task: &Task, user: Option<&User>) -> Result<Done> {
    interrupt::check()?;
    let mut child = start(task, user)?;
    if let Err(error) = wait(&child) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    let status = child.wait()?;
    let read = |from: Option<&mut dyn Read>| -> Result<String> {
        let mut text = String::new();
        if let Some(from) = from {
            from.read_to_string(&mut text)?;
        }
        Ok(text)
    };
    let errors = read(child.stderr.as_mut().map(|e| e as &mut dyn Read))?;
    if !status.success() {
        let reason = errors.trim();
        return Err(if reason.is_empty() { status.to_string() } else { reason.to_owned() }.into());
    }
    Ok(serde_json::from_str(&read(child.stdout.as_mut().map(|o| o as &mut dyn Read))?)?)
}

/// Waits until `child` has ended; fails when it takes too long, or a signal has come.
fn wait(child: &Child) -> Result<()> {
    let start = Instant::now();
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return interrupt::check(),
            Err(error) => return Err(error.into()),
        }
        interrupt::check()?;
        if start.elapsed() > LIMIT {
            return Err(format!("not done after {} s", LIMIT.as_secs()).into());
        }
    }
}
