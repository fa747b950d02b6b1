//! Strangers in a mount that lets them in (`allow_other`), root's and a user's: what the kernel has checked is the file that it knows by a
//! name, and another may be there by now, put there by somebody past the mount. The stranger gets what the source itself would give.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::OFlags;

use crate::harness::{Identity, Mount, Need, as_caller, long_run, ready, scratch, with_user_allow_other};
use crate::posix::script::open;

const STRANGER: u32 = 4001;
const MODES: [&str; 4] = ["auto", "never", "always", "notify"];
/// So many tries in each mode, in the ordinary run and in the long one.
const TRIES: [u64; 2] = [500, 100_000];

fn tries() -> u64 {
    TRIES[usize::from(long_run())]
}

/// A mount that strangers enter, with a directory `t` of the mounter's in the source.
struct Ground {
    mount: Mount,
    /// Whose files the stranger must not touch.
    owner: Identity,
}

impl Ground {
    fn new(of_user: bool, cache: &str, mode: u32) -> Self {
        let owner = if of_user { Identity::unprivileged() } else { Identity::user(4002) };
        let mut builder = Mount::builder().options(&format!("allow_other,cache={cache}"));
        if of_user {
            builder = builder.user((owner.uid, owner.gid));
        }
        let mounter = if of_user { owner.uid } else { 0 };
        for (name, mode, uid) in [("t", mode, mounter), ("own", 0o777, STRANGER)] {
            let path = builder.source().join(name);
            fs::create_dir(&path).expect("mkdir");
            chown(&path, Some(uid), Some(uid)).expect("chown");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        }
        Self { mount: builder.start(), owner }
    }

    fn natively(&self, name: &str) -> PathBuf {
        self.mount.source().join(name)
    }

    fn mounted(&self, name: &str) -> PathBuf {
        self.mount.point().join(name)
    }
}

/// Runs `what` on the mount of root and on that of a user, in each cache mode.
fn on_each_mount(mode: u32, what: impl Fn(&Ground, &str) + Sync) {
    if !ready(&[Need::Root, Need::Fuse, Need::UserMounts]) {
        return;
    }
    for of_user in [false, true] {
        for cache in MODES {
            let named = format!("{} mount, cache={cache}", if of_user { "a user's" } else { "root's" });
            with_user_allow_other(|| what(&Ground::new(of_user, cache, mode), &named));
        }
    }
}

/// Does `what` with the file-system ids of `uid`, and so without root's capabilities over files.
fn acting<T>(uid: u32, what: impl FnOnce() -> T) -> T {
    setfsgid(Gid::from_raw(uid));
    setfsuid(Uid::from_raw(uid));
    let done = what();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    done
}

fn create(path: &Path, mode: u32) -> Result<File, rustix::io::Errno> {
    open(path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, mode)
}

/// Removes a file if it is there.
fn remove(path: &Path) {
    if let Err(e) = fs::remove_file(path) {
        assert_eq!(e.kind(), ErrorKind::NotFound, "removing {path:?}: {e}");
    }
}

#[test]
fn a_file_that_appears_while_a_stranger_creates_it_is_opened_by_its_own_mode() {
    on_each_mount(0o777, |ground, named| {
        let (theirs, mounted) = (ground.natively("t/x"), ground.mounted("t/x"));
        let done = AtomicBool::new(false);
        let (tried, opened, stolen) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                as_caller(&ground.owner, || {
                    while tried.load(Ordering::Relaxed) < tries() {
                        while create(&theirs, 0o600).is_err() {
                            remove(&theirs);
                        }
                        remove(&theirs);
                    }
                });
                done.store(true, Ordering::Release);
            });
            as_caller(&Identity::user(STRANGER), || {
                while !done.load(Ordering::Acquire) {
                    tried.fetch_add(1, Ordering::Relaxed);
                    let Ok(file) = open(&mounted, OFlags::CREATE | OFlags::RDWR, 0o666) else { continue };
                    opened.fetch_add(1, Ordering::Relaxed);
                    if file.metadata().is_ok_and(|meta| meta.mode() & 0o777 == 0o600) {
                        stolen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        });
        println!("{named}: {tried:?} tries, {opened:?} opened by the stranger, {stolen:?} private");
        assert_eq!(stolen.into_inner(), 0, "{named}: private files opened by a stranger");
    });
}

/// What a stranger tries to do to a name in a sticky directory.
const ATTEMPTS: [&str; 3] = ["remove", "rename", "replace"];

fn attempt(what: &str, ground: &Ground) -> Result<(), i32> {
    let (there, own) = (ground.mounted("t/x"), ground.mounted("own/y"));
    let done = match what {
        "remove" => fs::remove_file(there),
        "rename" => fs::rename(there, own),
        _ => fs::rename(own, there),
    };
    done.map_err(|e| e.raw_os_error().expect("an error of the system"))
}

#[test]
fn a_stranger_takes_nothing_from_a_sticky_directory_that_has_replaced_a_file_of_the_strangers() {
    on_each_mount(0o1777, |ground, named| {
        let path = ground.natively("t/x");
        for what in ATTEMPTS {
            remove(&path);
            if what == "replace" {
                acting(STRANGER, || fs::write(ground.natively("own/y"), b"evil")).expect("write");
            }
            drop(acting(STRANGER, || create(&path, 0o644)).expect("create"));
            acting(STRANGER, || fs::metadata(ground.mounted("t/x"))).expect("stat");
            acting(STRANGER, || fs::metadata(ground.mounted("own"))).expect("stat");
            acting(STRANGER, || fs::remove_file(&path)).expect("remove");
            let theirs = acting(ground.owner.uid, || create(&path, 0o600)).expect("create");
            let refused = acting(STRANGER, || attempt(what, ground));
            assert!(refused.is_err(), "{named}: the stranger could {what} the file");
            let (now, was) = (fs::metadata(&path).expect("stat"), theirs.metadata().expect("stat"));
            assert_eq!((now.ino(), was.nlink()), (was.ino(), 1), "{named}: {what}");
        }
    });
}

#[test]
fn a_stranger_takes_nothing_from_a_sticky_directory_in_any_race() {
    on_each_mount(0o1777, |ground, named| {
        let path = ground.natively("t/x");
        let done = AtomicBool::new(false);
        let (attempts, done_to_own, taken) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let make = |uid, mode| loop {
                    match acting(uid, || create(&path, mode)) {
                        Ok(file) => return file,
                        Err(_) => remove(&path),
                    }
                };
                for _ in 0..tries() {
                    drop(make(STRANGER, 0o644));
                    let seen = attempts.load(Ordering::Relaxed);
                    remove(&path);
                    let theirs = make(ground.owner.uid, 0o600);
                    // Until the stranger has tried it, or has what was tried before behind.
                    while attempts.load(Ordering::Relaxed) < seen + 2 {
                        std::thread::yield_now();
                    }
                    let is_there = fs::metadata(&path).is_ok_and(|now| {
                        theirs.metadata().is_ok_and(|was| was.nlink() == 1 && was.ino() == now.ino())
                    });
                    taken.fetch_add(u64::from(!is_there), Ordering::Relaxed);
                    remove(&path);
                }
                done.store(true, Ordering::Release);
            });
            as_caller(&Identity::user(STRANGER), || {
                for what in ATTEMPTS.iter().cycle() {
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                    if *what == "replace" {
                        drop(open(&ground.natively("own/y"), OFlags::CREATE | OFlags::WRONLY, 0o644));
                    }
                    done_to_own.fetch_add(u64::from(attempt(what, ground).is_ok()), Ordering::Relaxed);
                    attempts.fetch_add(1, Ordering::Release);
                }
            });
        });
        println!(
            "{named}: {} tries, {attempts:?} attempts, {done_to_own:?} succeeded, {taken:?} taken",
            tries()
        );
        assert_eq!(taken.into_inner(), 0, "{named}: files of others taken from a sticky directory");
    });
}

/// The directory itself lets the stranger in, and what is there is the stranger's: nothing is refused that natively is not.
#[test]
fn a_stranger_removes_and_renames_what_is_the_strangers_in_root_mounts() {
    if !ready(&[Need::Root, Need::Fuse]) {
        return;
    }
    let ground = Ground::new(false, "auto", 0o1777);
    as_caller(&Identity::user(STRANGER), || {
        for name in ["t/a", "t/b", "t/c"] {
            fs::write(ground.mounted(name), b"own").expect("write");
        }
        fs::remove_file(ground.mounted("t/a")).expect("remove");
        fs::rename(ground.mounted("t/b"), ground.mounted("t/c")).expect("replace");
        fs::rename(ground.mounted("t/c"), ground.mounted("own/c")).expect("rename");
        fs::create_dir(ground.mounted("t/d")).expect("mkdir");
        fs::rename(ground.mounted("t/d"), ground.mounted("own/d")).expect("move a directory");
        fs::remove_dir(ground.mounted("own/d")).expect("rmdir");
    });
}

/// What a process of the stranger's sees in a procfs: the owners of processes that it lists, and what it can read of the first.
fn seen_in(proc: &Path) -> String {
    let script = "cd \"$1\" && for p in [0-9]*; do sed -n 's/^Uid:[^0-9]*\\([0-9]*\\).*/\\1/p' $p/status 2>/dev/null; done | sort -u
        stat -c %n 1 2>/dev/null; cat 1/cmdline 2>/dev/null; ls 1 2>/dev/null; readlink self >/dev/null && echo self; true";
    let ids = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"), "--clear-groups".to_owned()];
    let output = Command::new("setpriv").args(ids).args(["sh", "-c", script, "sh"]).arg(proc).output();
    String::from_utf8(output.expect("running setpriv").stdout).expect("text")
}

#[test]
fn a_stranger_sees_of_processes_what_procfs_shows_to_the_stranger() {
    if !ready(&[Need::Root, Need::Fuse, Need::UserMounts]) {
        return;
    }
    with_user_allow_other(|| {
        let dir = scratch();
        mount(Some("proc"), dir.path(), Some("proc"), MsFlags::empty(), Some("hidepid=2")).expect("procfs");
        for cache in MODES {
            let mirror =
                || Mount::builder().mirroring(dir.path()).options(&format!("allow_other,cache={cache}"));
            let mounted = mirror().start();
            // Root looks first, and everything is in the kernel's cache.
            let all = fs::read_dir(mounted.point()).expect("list").count();
            let own = fs::metadata(mounted.point().join("1/cmdline")).expect("stat");
            assert!(all > 10 && own.is_file());
            let natively = seen_in(dir.path());
            assert_eq!(natively, format!("{STRANGER}\nself\n"));
            assert_eq!(seen_in(mounted.point()), natively, "root's mount, cache={cache}");
            if let Some(daemon) = mounted.pid() {
                let daemon = mounted.point().join(daemon.to_string());
                let seen = as_caller(&Identity::user(STRANGER), || fs::metadata(daemon));
                assert_eq!(seen.map_err(|e| e.kind()).err(), Some(ErrorKind::NotFound));
            }
            drop(mounted);
        }
        umount2(dir.path(), MntFlags::MNT_DETACH).expect("umount");
    });
}

/// A user's daemon cannot look as another, and what it sees itself is not for everybody.
#[test]
fn a_stranger_sees_nothing_of_procfs_in_a_users_mount() {
    if !ready(&[Need::Root, Need::Fuse, Need::UserMounts, Need::Splicefs]) {
        return;
    }
    with_user_allow_other(|| {
        let user = Identity::unprivileged();
        let builder = Mount::builder().user((user.uid, user.gid));
        let mounted = builder.mirroring("/proc").options("allow_other").start();
        as_caller(&user, || fs::read_dir(mounted.point()).expect("list").count());
        let listed = as_caller(&Identity::user(STRANGER), || fs::read_dir(mounted.point()).map(drop));
        assert_eq!(listed.expect_err("a stranger lists").kind(), ErrorKind::PermissionDenied);
        assert!(as_caller(&Identity::root(), || fs::read_dir(mounted.point())).is_ok());
    });
}

/// A directory that gets another parent must be writable itself.
#[test]
fn a_stranger_moves_no_directory_that_has_replaced_one_of_the_strangers() {
    on_each_mount(0o777, |ground, named| {
        let path = ground.natively("t/d");
        acting(STRANGER, || fs::create_dir(&path)).expect("mkdir");
        acting(STRANGER, || fs::metadata(ground.mounted("t/d"))).expect("stat");
        acting(STRANGER, || fs::metadata(ground.mounted("own"))).expect("stat");
        acting(STRANGER, || fs::remove_dir(&path)).expect("rmdir");
        acting(ground.owner.uid, || fs::create_dir(&path)).expect("mkdir");
        let moved = acting(STRANGER, || fs::rename(ground.mounted("t/d"), ground.mounted("own/d")));
        assert!(moved.is_err(), "{named}: the stranger could move the directory");
        assert!(path.exists(), "{named}");
    });
}
