//! Who keeps a directory for changes: other mounts of ours, named with the way out, and no stranger.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::Layers;
use crate::cli::{assert_complains, assert_success, run};
use crate::harness::{Need, ready, until, until_umounted};

/// A process that is ended with the test.
struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("starting a process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::KILL).expect("kill");
        self.0.wait().expect("wait");
    }
}

/// A lock of flock(2) takes no more than the right to read; it must not keep the owner from mounting, nor other mounts of the owner
/// from being seen.
#[test]
fn a_strangers_lock_keeps_nobody_from_mounting() {
    let Some(layers) = Layers::new() else { return };
    if !ready(&[Need::Root, Need::Program("flock"), Need::Program("setpriv")]) {
        return;
    }
    fs::create_dir(layers.at("new")).expect("mkdir");
    fs::create_dir(layers.at("work2")).expect("mkdir");
    for kind in ["--shared", "--exclusive"] {
        let stranger = ["--reuid=12345", "--regid=12345", "--clear-groups"];
        let mut flock = Command::new("setpriv");
        flock.args(stranger).args(["flock", kind, "--no-fork"]).arg(layers.at("upper")).args(["sleep", "60"]);
        let _stranger = Process::spawn(&mut flock);
        until("the stranger to hold the lock", || {
            !Command::new("flock")
                .args(["--nonblock", "--exclusive"])
                .arg(layers.at("upper"))
                .arg("true")
                .status()
                .expect("flock")
                .success()
        });
        assert_success(&layers.mount(&layers.options()));
        let mut second = layers.program();
        // What the stranger's lock leaves of ours on the upper directory is shared; on the work directory it is whole.
        let work = if kind == "--shared" { "work2" } else { "work" };
        let options = format!("lowerdir=b,upperdir=upper,workdir={work}");
        let refused = run(second.arg("overlay").arg("new").args(["-o", &options]));
        assert_complains(&refused, &["is in use by another splicefs mount"]);
        layers.unmount();
    }
}

/// A mount that somebody has a copy of, in a mount namespace of their own, keeps its directories: who that is is said, and how to end it.
#[test]
fn a_mount_that_is_seen_elsewhere_is_named_with_its_process() {
    let Some(layers) = Layers::new() else { return };
    if !ready(&[Need::Root, Need::Program("unshare"), Need::Program("nsenter")]) {
        return;
    }
    assert_success(&layers.mount(&layers.options()));
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sleep", "60"]);
    let elsewhere = Process::spawn(&mut unshare);
    let pid = elsewhere.0.id();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("a namespace");
    until("a mount namespace of its own", || namespace(&pid.to_string()) != namespace("self"));
    let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("procfs");
    until("sleep to run", || of("comm").trim() == "sleep");
    until_umounted(&layers.point());
    let refused = layers.mount(&layers.options());
    let way_out = format!("nsenter -t {pid} -m umount {}", layers.point().display());
    assert_complains(
        &refused,
        &[
            "upperdir",
            "is in use by another splicefs mount: process",
            "gone here and still seen by process",
            &way_out,
        ],
    );
    // What it says to do helps.
    let ended = Command::new("sh").args(["-c", &way_out]).status().expect("nsenter");
    assert!(ended.success());
    assert_success(&layers.mount(&layers.options()));
    layers.unmount();
}
