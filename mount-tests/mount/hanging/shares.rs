//! Callers that wait for ever, for leases or for a file system below that hangs: they keep a share of the threads at most.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use nix::sys::statfs::statfs;

use super::{Bound, Stopped, UNCACHED, below, held, soon, until_held};
use crate::harness::{Identity, Mount, Need, as_caller, ready, unprivileged_user, until};

/// More than there are threads.
const CALLERS: usize = 40;
/// Of 16 threads.
const MOST_HELD: usize = 12;

/// A process of the unprivileged user that has leases on the files that it is given, and never gives them back.
struct Leases(Child);

impl Leases {
    /// F_SETLEASE, F_WRLCK (fcntl(2)).
    const TAKE: &'static str = r#"$SIG{IO} = "IGNORE"; my @files;
        for (@ARGV) { open(my $file, "+<", $_) or die $!; fcntl($file, 1024, 1) or die $!; push @files, $file }
        $| = 1; print "taken\n"; sleep 600;"#;

    fn take(dir: &Path) -> Self {
        let (uid, gid) = unprivileged_user();
        let mut command = Command::new("perl");
        command.arg("-e").arg(Self::TAKE).args((0..CALLERS).map(|number| dir.join(number.to_string())));
        let mut child = command.uid(uid).gid(gid).stdout(Stdio::piped()).spawn().expect("perl");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("reading");
        assert_eq!(line, "taken\n");
        Self(child)
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Err(e) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending a process: {e}");
        }
    }
}

/// A mount with files of the unprivileged user, one for each caller.
fn with_files() -> Option<Mount> {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("perl")]) {
        return None;
    }
    let builder = Mount::builder().options("passthrough=off,allow_other");
    let (uid, gid) = unprivileged_user();
    fs::create_dir(builder.source().join("own")).expect("mkdir");
    for number in 0..CALLERS {
        let path = builder.source().join("own").join(number.to_string());
        fs::write(&path, "own").expect("write");
        chown(path, Some(uid), Some(gid)).expect("chown");
    }
    fs::write(builder.source().join("other"), "other").expect("write");
    fs::set_permissions(builder.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
    Some(builder.start())
}

/// Each does its own in a thread of the user's.
fn callers<T: Send + 'static>(
    what: impl Fn(usize) -> T + Send + Sync + Clone + 'static,
) -> Vec<JoinHandle<T>> {
    super::begin_all(CALLERS, move |number| as_caller(&Identity::unprivileged(), || what(number)))
}

/// Root's statfs(2) of the mount, and the look-up of another user, several times.
fn others_go_on(mount: &Mount, names: impl Fn(u32) -> String) {
    for number in 0..8 {
        let (point, path) = (mount.point().to_owned(), mount.point().join(names(number)));
        soon("root's statfs", move || assert!(statfs(&point).is_ok()));
        let look_up = move || fs::metadata(path).map(drop).expect("stat");
        soon("another user's look-up", move || as_caller(&Identity::user(12345), look_up));
    }
}

#[test]
fn forty_leases_of_a_user_hold_no_thread_and_hold_up_nobody() {
    let Some(mount) = with_files() else { return };
    let leases = Leases::take(&mount.source().join("own"));
    let own = mount.point().join("own");
    let before = mount.stats().expect("stats").requests("open");
    let opens = callers(move |number| fs::read(own.join(number.to_string())));
    let pid = mount.pid().expect("a daemon");
    let asked = || mount.stats().expect("stats").requests("open") - before;
    soon("the statistics", {
        let point = mount.point().to_owned();
        move || drop(crate::harness::Stats::of(&point))
    });
    until("all opens to have been asked for", || asked() >= CALLERS as u64);
    others_go_on(&mount, |_| "other".to_owned());
    until("no thread to be held", || held(pid).is_empty());
    assert!(opens.iter().all(|open| !open.is_finished()));
    drop(leases);
    for open in opens {
        assert_eq!(open.join().expect("the thread").expect("the read"), b"own");
    }
    assert_eq!(asked(), CALLERS as u64);
}

#[test]
fn who_waits_for_a_lease_can_be_killed() {
    let Some(mount) = with_files() else { return };
    let leases = Leases::take(&mount.source().join("own"));
    let before = mount.stats().expect("stats").requests("open");
    let mut waits = Command::new("cat").arg(mount.point().join("own/0")).spawn().expect("cat");
    until("the open", || mount.stats().expect("stats").requests("open") > before);
    waits.kill().expect("kill");
    let status = soon("the end of a process that was killed", move || waits.wait());
    assert!(!status.expect("wait").success());
    drop(leases);
}

#[test]
fn who_truncates_a_leased_file_waits_for_it() {
    let Some(mount) = with_files() else { return };
    let leases = Leases::take(&mount.source().join("own"));
    let own = mount.point().join("own");
    let path = own.clone();
    let truncated = callers(move |number| {
        let path = path.join(number.to_string());
        rustix::fs::open(
            &path,
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC,
            rustix::fs::Mode::empty(),
        )
        .map(drop)
    });
    let pid = mount.pid().expect("a daemon");
    others_go_on(&mount, |_| "other".to_owned());
    until("no thread to be held", || held(pid).is_empty());
    drop(leases);
    for open in truncated {
        open.join().expect("the thread").expect("the open");
    }
    assert_eq!(fs::read(own.join("0")).expect("read"), b"");
}

/// More callers than threads look up names in the file system that hangs: by a path that leads there through the mount, or from a
/// directory that they have open. Others are not held up, and all come back in the end.
fn a_hanging_file_system_holds_a_share(from_inside: bool) {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let inner = below::inner_with(CALLERS);
    let builder = Mount::builder().options(UNCACHED).options("allow_other,threads=16");
    below::plant(builder.source(), "ok", 10);
    let bound = Bound::new(inner.point(), builder.source().join("hung"));
    let mount = builder.start();
    fs::set_permissions(mount.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let pid = mount.pid().expect("a daemon");
    let dir = File::open(mount.point().join("hung/d")).expect("open");
    let directory = if from_inside {
        format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd()).into()
    } else {
        mount.point().join("hung/d")
    };
    let stopped = Stopped::new(&inner);
    let looks = super::begin_all(CALLERS, move |number| fs::metadata(directory.join(format!("f{number}"))));
    until_held(pid, 4);
    others_go_on(&mount, |number| format!("ok/f{number}"));
    let now = held(pid);
    assert!(now.len() <= MOST_HELD, "{} threads are held: {now:?}", now.len());
    drop(stopped);
    for look in looks {
        look.join().expect("the thread").expect("stat");
    }
    drop(dir);
    drop(mount);
    drop(bound);
}

#[test]
fn callers_whose_way_leads_through_a_mount_point_that_hangs_hold_a_share_of_the_threads() {
    a_hanging_file_system_holds_a_share(false);
}

#[test]
fn callers_inside_a_file_system_that_hangs_hold_a_share_of_the_threads() {
    a_hanging_file_system_holds_a_share(true);
}
