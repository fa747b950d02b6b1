//! Ending on request: SIGINT, SIGTERM and SIGHUP unmount, and the process ends when its mount has.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::mount::{How, MountPoint, Trouble};

/// A session that nobody uses ends sooner than this after its unmount.
const SESSION_PATIENCE: Duration = Duration::from_secs(1);

/// Signals are caught but not yet acted upon: one that comes during the start takes effect after it, so that none
/// leaves a half-made mount.
#[derive(Debug)]
pub struct Caught(Signals);

/// Catches the signals that end the process. Call it right before mounting.
///
/// SIGPIPE is ignored by Rust's runtime. SIGXFSZ gets a handler that does nothing: the write that caused it fails with
/// EFBIG, as it does for a process that ignores the signal.
///
/// # Errors
/// When a handler cannot be installed.
pub fn catch() -> io::Result<Caught> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let mut signals = vec![SIGINT, SIGTERM];
    // nohup(1) has it ignored, and means it.
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    Ok(Caught(Signals::new(signals)?))
}

fn is_ignored(signal: i32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| is_in_mask(&status, signal))
}

/// Whether `SigIgn:` of /proc/self/status, a mask in hexadecimal, names `signal`, which is 1 or more.
fn is_in_mask(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    (mask >> (signal - 1)) & 1 == 1
}

/// The thread that acts on signals, waiting for the mount to act on.
#[derive(Debug)]
pub struct Waiting(Sender<MountPoint>);

impl Caught {
    /// Starts the thread that will act on the signals. Before mounting, when a failure leaves nothing behind.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(self) -> io::Result<Waiting> {
        let (tell, told) = channel();
        let wait = move || {
            // Nothing is told where mounting failed.
            if let Ok(mount) = told.recv() {
                run(self.0, &mount);
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
        Ok(Waiting(tell))
    }
}

impl Waiting {
    /// From now on the first signal unmounts `mount`, lazily when it is busy, and the second ends the process.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn act(self, mount: MountPoint) -> io::Result<()> {
        self.0.send(mount).map_err(|_| io::Error::other("the thread that acts on signals is gone"))
    }
}

fn run(mut signals: Signals, mount: &MountPoint) {
    let mut asked = false;
    for signal in signals.forever() {
        let name = signal_name(signal).unwrap_or("signal");
        if asked {
            log::warn!("{name} again: ending at once; what still uses the mount gets errors");
            std::process::exit(128 + signal);
        }
        log::info!("{name}: unmounting {}", mount.current_path().display());
        asked = true;
        end(mount);
    }
}

/// Unmounts, which ends the session and so the process.
fn end(mount: &MountPoint) {
    let path = mount.current_path();
    let shown = path.display();
    let result = match mount.unmount(How::Now) {
        Err(Trouble::Busy) => {
            log::warn!(
                "{shown} is busy: detached it lazily; this process ends with its last user, or at once at a second signal"
            );
            mount.unmount(How::Lazily)
        }
        Ok(()) | Err(Trouble::NotMounted) => {
            tell_of_users(shown.to_string());
            return;
        }
        other => other,
    };
    match result {
        Ok(()) | Err(Trouble::NotMounted) => {}
        Err(trouble) => {
            log::error!("{}; a second signal ends this process all the same", trouble.describe(&path));
        }
    }
}

/// The mount is out of our table, but the file system lives as long as anybody uses it: somebody may have detached it
/// while it was in use, or another mount namespace may have a copy. The end of the session ends the process, so a
/// process that is still here after a while says what it waits for.
fn tell_of_users(shown: String) {
    let tell = move || {
        thread::sleep(SESSION_PATIENCE);
        log::warn!(
            "{shown} is detached, but a process or another mount namespace still uses it; this process ends with its last user, or at once at a second signal"
        );
    };
    // From a thread of its own, so that a second signal is acted upon meanwhile.
    if let Err(error) = thread::Builder::new().name("users".to_owned()).spawn(tell) {
        log::debug!("cannot start a thread: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found_in_the_mask() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert!(is_in_mask(status, SIGHUP));
        assert!(!is_in_mask(status, SIGINT));
        assert!(is_in_mask(status, 13));
        assert!(!is_in_mask("", SIGHUP));
    }
}
