//! The system calls of a daemon.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::wait::until;

/// What strace says of those system calls of process `pid` that `which` names (strace(1), `trace=`) while `what` runs. It is kept
/// in `output`.
pub(crate) fn trace(pid: u32, which: &str, output: &Path, what: impl FnOnce()) -> String {
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", &format!("trace={which}"), "-o"])
        .arg(output)
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("starting strace");
    until("strace to have attached to every thread", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads");
        tasks
            .map(|task| task.expect("listing threads").path().join("status"))
            .all(|status| fs::read_to_string(status).is_ok_and(|text| !text.contains("TracerPid:\t0\n")))
    });
    what();
    // SIGINT makes strace let go of the daemon and end.
    kill_process(Pid::from_child(&strace), Signal::INT).expect("interrupting strace");
    strace.wait().expect("waiting for strace");
    fs::read_to_string(output).expect("reading the trace")
}
