//! What a person or a script at the command line meets: starting, failing, stopping.

mod groups;
mod options;
mod overlay;
mod surprises;
mod tmpfs;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{
    Mount, Need, command, entry_at, is_mounted, ready, scratch, splicefs_binary, until, until_dead,
    until_stopped,
};

const NEEDS: [Need; 3] = [Need::Fuse, Need::Root, Need::Splicefs];

/// A source and a mount point for runs that start the program themselves; unmounts at the end whatever happened.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Option<Self> {
        if !ready(&NEEDS) {
            return None;
        }
        let dir = scratch();
        for name in ["src", "mnt"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        fs::write(dir.path().join("src/file"), b"contents").expect("write");
        Some(Self { dir })
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `splicefs passthrough SRC MNT` with further arguments, in the background.
    fn mount(&self, arguments: &[&str]) -> Output {
        run(command().arg("passthrough").arg(self.source()).arg(self.point()).args(arguments))
    }

    /// `splicefs tmpfs MNT` with further arguments, in the background.
    fn mount_tmpfs(&self, arguments: &[&str]) -> Output {
        run(command().arg("tmpfs").arg(self.point()).args(arguments))
    }

    fn unmount(&self) -> Output {
        run(command().arg("unmount").arg(self.point()))
    }

    /// The daemons that serve this place.
    fn daemons(&self) -> Vec<Pid> {
        let needle = self.point().into_os_string().into_encoded_bytes();
        let processes = fs::read_dir("/proc").expect("listing processes").filter_map(Result::ok);
        let serves = |path: &Path| {
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            line.starts_with(b"/") && line.split(|&b| b == 0).any(|argument| argument == needle)
        };
        let pid = |path: &Path| path.file_name()?.to_str()?.parse::<i32>().ok();
        let paths = processes.map(|entry| entry.path());
        paths.filter(|path| serves(path)).filter_map(|path| Pid::from_raw(pid(&path)?)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for path in [self.point(), self.dir.path().join("new"), self.dir.path().join("renamed/mnt")] {
            while is_mounted(&path) {
                umount2(&path, MntFlags::MNT_DETACH).expect("umount");
            }
        }
        if !std::thread::panicking() {
            until("the daemon to end after its mount is gone", || self.daemons().is_empty());
        }
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("running {command:?}: {e}"))
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program as a user runs it: a copy in `dir`, since a build directory under a private home cannot be entered, and
/// with `dir` as the home.
fn user_command(dir: &Path, (uid, gid): (u32, u32)) -> Command {
    let copy = dir.join("splicefs");
    if !copy.exists() {
        // By another process: a descriptor of ours, open for writing, could be in a child that another test has just
        // forked, and a program that is open for writing cannot be executed (ETXTBSY).
        let status = Command::new("cp").arg(splicefs_binary()).arg(&copy).status().expect("running cp");
        assert!(status.success(), "copying the program: {status}");
    }
    let home = dir.join("home");
    fs::create_dir_all(&home).expect("mkdir");
    chown(&home, Some(uid), Some(gid)).expect("chown");
    let mut command = Command::new(copy);
    command.env("HOME", home).env_remove("XDG_STATE_HOME").uid(uid).gid(gid);
    command
}

/// A mount with a file in it that is open: it is in use.
fn mount_in_use() -> Option<(Mount, fs::File)> {
    if !ready(&NEEDS) {
        return None;
    }
    let builder = Mount::builder();
    fs::write(builder.source().join("file"), b"held").expect("write");
    let mount = builder.start();
    let held = fs::File::open(mount.point().join("file")).expect("open");
    Some((mount, held))
}

fn daemon_of(mount: &Mount) -> Pid {
    i32::try_from(mount.pid().expect("a daemon")).ok().and_then(Pid::from_raw).expect("a pid")
}

/// One line on stderr with each of these words, and a failure.
fn assert_complains(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert!(!output.status.success(), "it succeeded and said: {said}");
    assert!(output.status.code().is_some(), "it died: {}", output.status);
    assert_eq!(said.trim_end().lines().count(), 1, "one line: {said}");
    for word in words {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "`{word}` is missing in: {said}");
    }
}

#[test]
fn the_background_start_returns_when_it_serves() {
    for _ in 0..5 {
        let Some(place) = Place::new() else { return };
        assert_success(&place.mount(&[]));
        // No waiting: it serves now.
        assert_eq!(fs::read(place.point().join("file")).expect("read"), b"contents");
        assert_eq!(entry_at(&place.point()).expect("a mount").kind, "fuse.splicefs");
        let daemons = place.daemons();
        assert_eq!(daemons.len(), 1, "daemons: {daemons:?}");
        assert_success(&place.unmount());
        assert!(!is_mounted(&place.point()), "unmount returns when it is done");
        until("the daemon to exit", || place.daemons().is_empty());
        assert_complains(&place.unmount(), &[]);
    }
}

#[test]
fn a_missing_mount_point_is_made() {
    let Some(place) = Place::new() else { return };
    let new = place.dir.path().join("new");
    assert_success(&run(command().arg("passthrough").arg(place.source()).arg(&new)));
    assert_eq!(fs::read(new.join("file")).expect("read"), b"contents");
    assert_success(&run(command().arg("unmount").arg(&new)));
    let nowhere = place.dir.path().join("no/parent");
    let output = run(command().arg("passthrough").arg(place.source()).arg(nowhere));
    assert_complains(&output, &["no/parent"]);
}

#[test]
fn failures_say_what_is_wrong() {
    let Some(place) = Place::new() else { return };
    let (source, point) = (place.source(), place.point());
    let missing = place.dir.path().join("missing");
    let mount = |source: &Path, point: &Path| run(command().arg("passthrough").arg(source).arg(point));
    assert_complains(&mount(&missing, &point), &["missing"]);
    assert_complains(&mount(&source.join("file"), &point), &["file", "directory"]);
    assert_complains(&mount(&source, &source.join("file")), &["directory"]);
    fs::create_dir(point.join("inner")).expect("mkdir");
    assert_complains(&mount(&point.join("inner"), &point), &["inside", "mount point"]);
    for (option, nearest) in
        [("alow_other", "allow_other"), ("splic=on", "splice"), ("entry_timeot=1", "entry_timeout")]
    {
        assert_complains(&place.mount(&["-o", option]), &[nearest]);
    }
    for value in
        ["splice=maybe", "threads=0", "threads=many", "entry_timeout=-1", "entry_timeout=x", "splice_min=?"]
    {
        assert_complains(&place.mount(&["-o", value]), &[value.split('=').next().expect("a name")]);
    }
    assert!(!is_mounted(&point), "a failed start leaves no mount");
    assert!(place.daemons().is_empty());
    assert!(!run(command().arg("nonsense")).status.success());
    assert_complains(&run(command().arg("unmount").arg(&source)), &["not"]);
    assert_complains(&run(command().arg("stats").arg(&source)), &[]);
}

#[test]
fn help_and_version_are_given() {
    if !ready(&[Need::Splicefs]) {
        return;
    }
    let version = run(command().arg("--version"));
    assert!(stdout(&version).contains(env!("CARGO_PKG_VERSION")));
    let help = run(command().arg("--help"));
    assert_success(&help);
    let text = stdout(&help);
    for word in [
        "passthrough",
        "tmpfs",
        "overlay",
        "unmount",
        "resize",
        "stats",
        "/mnt",
        "Mount options of tmpfs",
        "Mount options of overlay",
    ] {
        assert!(text.contains(word), "`{word}` is missing in the help");
    }
}

#[test]
fn a_killed_daemons_mount_is_cleaned_up() {
    let Some(place) = Place::new() else { return };
    assert_success(&place.mount(&[]));
    for pid in place.daemons() {
        kill_process(pid, Signal::KILL).expect("kill");
    }
    until("the daemon to be gone", || place.daemons().is_empty());
    until_dead(&place.point());
    assert_complains(&place.mount(&[]), &["transport endpoint", "unmount"]);
    assert_success(&place.unmount());
    assert!(!is_mounted(&place.point()));
    assert_success(&place.mount(&[]));
    assert_success(&place.unmount());
}

/// A daemon that learns late that its mount is gone finds another in its place, of the same numbers and without a daemon.
#[test]
fn regression_a_dead_mount_is_left_to_whom_it_belongs() {
    let Some(place) = Place::new() else { return };
    let point = place.point();
    assert_success(&place.mount(&[]));
    let late = place.daemons();
    for pid in &late {
        kill_process(*pid, Signal::STOP).expect("stop");
        until_stopped(pid.as_raw_nonzero().get().cast_unsigned());
    }
    umount2(&point, MntFlags::MNT_DETACH).expect("umount");
    assert_success(&place.mount(&[]));
    for pid in place.daemons().into_iter().filter(|pid| !late.contains(pid)) {
        kill_process(pid, Signal::KILL).expect("kill");
    }
    until_dead(&point);
    for pid in late {
        kill_process(pid, Signal::CONT).expect("continue");
    }
    until("the daemons to be gone", || place.daemons().is_empty());
    assert!(is_mounted(&point), "the dead mount of one daemon was unmounted by another");
    assert_success(&place.unmount());
}

#[test]
fn signals_unmount() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        if !ready(&NEEDS) {
            return;
        }
        let mut mount = Mount::builder().start();
        kill_process(daemon_of(&mount), signal).expect("kill");
        mount.wait_exit();
    }
    let Some(place) = Place::new() else { return };
    assert_success(&place.mount(&[]));
    kill_process(place.daemons()[0], Signal::TERM).expect("kill");
    until("the daemon in the background to end", || {
        place.daemons().is_empty() && !is_mounted(&place.point())
    });
}

/// What it served can be unmounted next. A daemon that gives much memory back takes a while to end.
#[test]
fn unmount_returns_when_the_daemon_has_ended() {
    let Some(place) = Place::new() else { return };
    assert_success(&place.mount_tmpfs(&[]));
    let file = fs::File::create(place.point().join("large")).expect("create");
    for number in 0..300 {
        std::os::unix::fs::FileExt::write_at(&file, &vec![1; 1 << 20], number << 20).expect("write");
    }
    drop(file);
    assert_success(&place.unmount());
    assert!(place.daemons().is_empty());
}

#[test]
fn a_busy_mount_is_detached() {
    let Some((mut mount, held)) = mount_in_use() else { return };
    let output = run(&mut mount.unmount_command());
    assert!(!output.status.success() || !is_mounted(mount.point()), "{}", stderr(&output));
    kill_process(daemon_of(&mount), Signal::TERM).expect("kill");
    until("the busy mount to be detached", || !is_mounted(mount.point()));
    drop(held);
    mount.wait_exit();
    assert!(mount.log().to_lowercase().contains("busy"), "it says so: {}", mount.log());
}

#[test]
fn unmount_lazily_detaches_what_is_busy() {
    let Some((mut mount, held)) = mount_in_use() else { return };
    assert_success(&run(mount.unmount_command().arg("--lazy")));
    assert!(!is_mounted(mount.point()));
    let mut buffer = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&held, &mut buffer, 0).expect("what is open still works");
    assert_eq!(&buffer, b"held");
    drop(held);
    mount.wait_exit();
}
