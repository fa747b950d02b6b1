//! Ending on request: SIGINT, SIGTERM and SIGHUP unmount, and the process ends when its mount has.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::mount::{How, MountPoint, Trouble};

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

impl Caught {
    /// Acts on the signals from a thread of its own: the first unmounts `mount`, lazily when it is busy; the second
    /// ends the process.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn act(self, mount: MountPoint) -> io::Result<()> {
        thread::Builder::new().name("signals".to_owned()).spawn(move || run(self.0, &mount))?;
        Ok(())
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
        log::info!("{name}: unmounting {}", mount.path().display());
        asked = true;
        end(mount);
    }
}

/// Unmounts, which ends the session and so the process.
fn end(mount: &MountPoint) {
    let shown = mount.path().display();
    let result = match mount.unmount(How::Now) {
        Err(Trouble::Busy) => {
            log::warn!(
                "{shown} is busy: detached it lazily; this process ends with its last user (see `fuser -vm {shown}`), or at once at a second signal"
            );
            mount.unmount(How::Lazily)
        }
        other => other,
    };
    match result {
        Ok(()) | Err(Trouble::NotMounted) => {}
        Err(trouble) => {
            log::error!("{}; a second signal ends this process all the same", trouble.describe(mount.path()));
        }
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
