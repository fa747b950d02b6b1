//! The daemons: found as descendants of ours, whatever they did to run in the background.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::Result;

/// How long a daemon may take to end after its unmount, and after a signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// While this exists, this process is the parent of every orphan among its descendants, a daemon above all. When it is
/// dropped, those that are left are ended.
pub(crate) struct Orphans;

impl Orphans {
    pub(crate) fn adopt() -> Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Self)
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        match Daemon::since(&[]) {
            Ok(left) => left.end(),
            Err(error) => eprintln!("processes may be left: {error}"),
        }
        // What went into the background has left the process that it was before.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

/// The parent and the state letter of a process (proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(_, state)| state != 'Z')
}

/// The running descendants of this process.
pub(crate) fn descendants() -> Result<Vec<i32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        if let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>()
            && let Some((parent, state)) = stat(pid)
            && state != 'Z'
        {
            parents.insert(pid, parent);
        }
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let is_ours = |&pid: &i32| {
        // A chain that processes change meanwhile may be a circle.
        std::iter::successors(parents.get(&pid), |parent| parents.get(parent)).take(64).any(|&p| p == own)
    };
    Ok(parents.keys().copied().filter(is_ours).collect())
}

/// The processes that serve a mount.
#[derive(Clone, Debug, Default)]
pub(crate) struct Daemon(Vec<i32>);

impl Daemon {
    /// What has been started since `before` were the descendants.
    pub(crate) fn since(before: &[i32]) -> Result<Self> {
        Ok(Self(descendants()?.into_iter().filter(|pid| !before.contains(pid)).collect()))
    }

    pub(crate) fn exists(&self) -> bool {
        !self.0.is_empty()
    }

    /// Processor time used so far, of the user and the system: by the clock of the process, which counts what /proc/PID/stat
    /// does, in nanoseconds instead of hundredths of a second.
    pub(crate) fn cpu(&self) -> Duration {
        let clock = |&pid: &i32| clock_getcpuclockid(Pid::from_raw(pid)).and_then(|clock| clock.now());
        // A process that is gone has used nothing since.
        self.0.iter().filter_map(|pid| clock(pid).ok()).map(Duration::from).sum()
    }

    /// Resident memory, in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let one = |pid: &i32| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
        };
        self.0.iter().filter_map(one).sum()
    }

    /// Waits, at most `limit`, until the daemon does nothing: what it still does for one task belongs to that task.
    pub(crate) fn settle(&self, limit: Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let start = Instant::now();
        let (mut before, mut quiet) = (self.cpu(), 0);
        while self.exists() && quiet < 2 && start.elapsed() < limit {
            std::thread::sleep(STEP);
            let now = self.cpu();
            // Timers of an idle daemon do not count.
            quiet = if now - before < STEP / 50 { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// Waits until the daemon has ended, which it does by itself after an unmount, and helps when it takes too long.
    pub(crate) fn end(&self) {
        for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
            if let Some(signal) = signal {
                self.send(signal);
            }
            let start = Instant::now();
            while start.elapsed() < PATIENCE {
                if !self.0.iter().any(|&pid| is_alive(pid)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn send(&self, signal: Signal) {
        for &pid in self.0.iter().filter(|&&pid| is_alive(pid)) {
            eprintln!("process {pid} of an unmounted file system gets {signal}");
            if let Err(error) = kill(Pid::from_raw(pid), signal) {
                eprintln!("{signal} to process {pid}: {error}");
            }
        }
    }

    /// Takes the exit statuses of those that have become children of ours, so that they are gone altogether.
    pub(crate) fn reap(&self) {
        for &pid in &self.0 {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                // ECHILD: another's child, or one whose status has been taken.
                Ok(_) | Err(Errno::ECHILD) => {}
                Err(error) => eprintln!("waiting for process {pid}: {error}"),
            }
        }
    }
}
