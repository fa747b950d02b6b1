//! Copies of lower files that are changed, or cannot be opened, while they are made.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::Layers;
use crate::harness::{Need, ready, until};

const CHUNK: usize = 64 << 10;
const CHUNKS: u64 = 64;

/// Writes one version after another, each of one byte throughout, with a rest between them.
fn rewrite(file: &File, stop: &AtomicBool) {
    let mut version = 1u8;
    while !stop.load(Ordering::Relaxed) {
        for chunk in 0..CHUNKS {
            file.write_all_at(&vec![version; CHUNK], chunk * CHUNK as u64).expect("write");
            thread::sleep(Duration::from_micros(500));
        }
        version = version.wrapping_add(1);
        thread::sleep(Duration::from_millis(100));
    }
}

/// A lower file that its owner rewrites is copied up as it was at one time.
#[test]
fn a_copy_is_of_one_version() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    const FILES: usize = 12;
    let layers = Layers::simple();
    let name = |number: usize| format!("file{number}");
    for number in 0..FILES {
        fs::write(layers.lower().join(name(number)), vec![0; CHUNK * 64]).expect("write");
    }
    let mount = layers.mount();
    for number in 0..FILES {
        let lower = File::options().write(true).open(layers.lower().join(name(number))).expect("open");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| rewrite(&lower, &stop));
            // At another moment of a round each time.
            thread::sleep(Duration::from_millis(120 + 9 * number as u64));
            File::options()
                .append(true)
                .open(mount.at(name(number)))
                .and_then(|mut file| file.write_all(b"x"))
                .expect("append");
            stop.store(true, Ordering::Relaxed);
        });
        let copy = fs::read(layers.upper().join(name(number))).expect("read");
        assert_eq!(copy.len(), CHUNK * 64 + 1);
        let torn = copy[..CHUNK * 64].iter().position(|byte| *byte != copy[0]);
        assert_eq!(torn, None, "{}: of two versions", name(number));
    }
    drop(mount);
    layers.unseal();
}

/// Traces the process and has one of its next system calls of that name fail, the one of that number in each thread.
fn failing_opens(pid: u32, call: &str, number: u32) -> Child {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()]);
    command.args(["-e", &format!("trace={call}"), "-e"]);
    command.arg(format!("inject={call}:error=EIO:when={number}"));
    let tracer = command.spawn().expect("starting strace");
    until("every thread to be traced", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads");
        tasks.flatten().all(|task| {
            fs::read_to_string(task.path().join("status"))
                .is_ok_and(|status| status.contains(&format!("TracerPid:\t{}\n", tracer.id())))
        })
    });
    tracer
}

/// An open that truncates and fails leaves the file what it was, whichever step of it fails.
#[test]
fn an_open_that_fails_truncates_nothing() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("strace")]) {
        return;
    }
    let steps = ["openat", "openat2"].into_iter().flat_map(|call| (1..=4).map(move |number| (call, number)));
    let layers = Layers::simple();
    for (call, number) in steps.clone() {
        fs::write(layers.lower().join(format!("{call}-{number}")), b"contents").expect("write");
    }
    let mount = layers.mount_with("open=handle,passthrough=off,prefetch=0");
    let daemon = mount.stats().expect("splicefs").pid();
    let mut failed = 0;
    for (call, number) in steps {
        let path = mount.at(format!("{call}-{number}"));
        fs::metadata(&path).expect("stat");
        let mut tracer = failing_opens(daemon, call, number);
        let opened = File::options().write(true).truncate(true).open(&path);
        rustix::process::kill_process(Pid::from_child(&tracer), Signal::TERM).expect("kill");
        tracer.wait().expect("strace");
        let expected: &[u8] = if opened.is_ok() { b"" } else { b"contents" };
        failed += u32::from(opened.is_err());
        assert_eq!(fs::read(&path).expect("read"), expected, "{call} {number} ({opened:?})");
    }
    assert!(failed > 2 && failed < 8, "{failed} opens failed");
}
