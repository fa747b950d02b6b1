//! The root of a mount, which the kernel reaches by a name where that can be had (src/transport/root.rs).

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use rustix::fs::{XattrFlags, setxattr};

use crate::harness::{
    Identity, Mount, Need, as_caller, command, is_mounted, native_control, ready, scratch, splicefs_binary,
    until, until_unmounted,
};
use crate::posix::creation::named_acl;

/// Whoever it is, the owner of no file here.
const STRANGER: Identity = Identity::user(4003);

/// A root's mount that all may use, and a file two levels down.
fn mount() -> Option<Mount> {
    if !ready(&[Need::Fuse, Need::Root]) {
        return None;
    }
    let builder = Mount::builder().options("allow_other,entry_timeout=100,attr_timeout=100");
    fs::create_dir(builder.source().join("d")).expect("mkdir");
    fs::write(builder.source().join("d/f"), b"x").expect("write");
    Some(builder.start())
}

/// What the mount table says of the root of what is mounted on `point`.
fn named_in_the_table(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let fields = |line: &str| line.split(' ').skip(3).take(2).map(str::to_owned).collect::<Vec<_>>();
    table.lines().map(fields).any(|at| at == ["/.root", point.to_str().expect("UTF-8")])
}

/// The kernel does not keep the ACL of the root that it makes by itself: each path that begins there would be a message.
#[test]
fn regression_strangers_walk_from_the_root_without_asking_for_its_acl() {
    let Some(mount) = mount().filter(|_| !native_control()) else { return };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    let version: Vec<u32> = release.split('.').take(2).filter_map(|part| part.parse().ok()).collect();
    if version < vec![6, 15] {
        // No part of a mount that is nowhere can be had: the root is the kernel's first.
        assert!(!named_in_the_table(mount.point()));
        return;
    }
    assert!(named_in_the_table(mount.point()));
    let walk = || {
        as_caller(&STRANGER, || {
            for _ in 0..200 {
                assert!(fs::metadata(mount.point().join("d/f")).is_ok());
            }
        });
    };
    walk();
    let requests = || mount.stats().expect("stats").json()["requests"].clone();
    let before = requests();
    walk();
    let after = requests();
    for (name, count) in after.as_object().expect("requests") {
        // Looking at the statistics takes some.
        let count = count.as_u64().expect("a number") - before[name].as_u64().expect("a number");
        assert!(count < 20, "{count} {name} for 200 paths");
    }
}

#[test]
fn the_acl_and_the_mode_of_the_root_count_at_once() {
    let Some(mount) = mount() else { return };
    let enter = |who: Identity| {
        as_caller(&who, || fs::metadata(mount.point().join("d/f")).map(drop).map_err(|e| e.kind()))
    };
    let acl = |mask| {
        setxattr(mount.point(), "system.posix_acl_access", &named_acl(mask), XattrFlags::empty())
            .expect("setfacl");
    };
    let refused = Err(io::ErrorKind::PermissionDenied);
    let named = || Identity::user(4001);
    assert_eq!((enter(named()), enter(STRANGER)), (Ok(()), Ok(())));
    acl(7);
    assert_eq!((enter(named()), enter(STRANGER)), (Ok(()), refused));
    acl(0);
    assert_eq!((enter(named()), enter(STRANGER)), (refused, refused));
    acl(7);
    assert_eq!((enter(named()), enter(STRANGER)), (Ok(()), refused));
    rustix::fs::removexattr(mount.point(), "system.posix_acl_access").expect("setfacl -b");
    rustix::fs::chmod(mount.point(), 0o705.into()).expect("chmod");
    assert_eq!((enter(named()), enter(STRANGER)), (Ok(()), Ok(())));
    rustix::fs::chmod(mount.point(), 0o700.into()).expect("chmod");
    assert_eq!((enter(named()), enter(STRANGER)), (refused, refused));
}

#[test]
fn the_name_that_the_root_is_reached_by_is_anybodys() {
    let Some(mount) = mount() else { return };
    let path = mount.point().join(".root");
    assert!(!path.exists());
    fs::write(&path, b"mine").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"mine");
    let mut names: Vec<_> = fs::read_dir(mount.point())
        .expect("readdir")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".root", "d"]);
    fs::rename(&path, mount.point().join("d/.root")).expect("rename");
    fs::rename(mount.point().join("d/.root"), mount.point().join("other")).expect("rename into the root");
    assert_eq!(fs::read(mount.source().join("other")).expect("read"), b"mine");
    fs::hard_link(mount.point().join("other"), &path).expect("link");
    fs::remove_file(&path).expect("unlink");
    assert!(!path.exists());
}

/// What a test that fails leaves mounted there is unmounted.
struct LeftAt<'a>(&'a Path);

impl Drop for LeftAt<'_> {
    fn drop(&mut self) {
        if is_mounted(self.0)
            && let Err(e) = umount2(self.0, MntFlags::MNT_DETACH)
        {
            eprintln!("umount of {:?}: {e}", self.0);
        }
    }
}

/// Mounts where `call` fails with `errno`, as it does on an older kernel: the mount is as it was before there was that call.
fn without(call: &str, errno: &str) {
    if native_control() || !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("strace")]) {
        return;
    }
    let dir = scratch();
    let [source, point] = ["src", "mnt"].map(|name| dir.path().join(name));
    fs::create_dir_all(source.join("d")).expect("mkdir");
    fs::create_dir(&point).expect("mkdir");
    fs::write(source.join("d/f"), b"x").expect("write");
    let mut daemon = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            &format!("trace={call}"),
            "-e",
            &format!("inject={call}:error={errno}"),
            "-o",
        ])
        .arg(dir.path().join("trace"))
        .arg(splicefs_binary())
        .args(["passthrough", "-f", "-o", "allow_other"])
        .args([&source, &point])
        .stderr(Stdio::null())
        .spawn()
        .expect("starting strace");
    let _left = LeftAt(&point);
    until("the mount", || is_mounted(&point));
    assert!(!named_in_the_table(&point));
    as_caller(&STRANGER, || assert_eq!(fs::read(point.join("d/f")).expect("read"), b"x"));
    // The name is anybody's.
    let named = point.join(".root");
    assert_eq!(fs::metadata(&named).expect_err("nobody has made it").kind(), io::ErrorKind::NotFound);
    fs::write(&named, b"mine").expect("write");
    assert_eq!(fs::read(source.join(".root")).expect("read"), b"mine");
    let mut unmount = command();
    unmount.arg("unmount").arg(&point);
    until_unmounted(unmount);
    assert!(daemon.wait().expect("waiting for strace").success());
    let trace = fs::read_to_string(dir.path().join("trace")).expect("the trace");
    assert!(trace.contains("(INJECTED)"), "{call} was not called: {trace}");
}

#[test]
fn where_no_part_of_a_detached_mount_can_be_had_all_of_it_is_mounted() {
    without("open_tree", "EINVAL");
}

#[test]
fn where_no_mount_can_be_detached_it_is_mounted_by_mount_2() {
    without("fsopen", "ENOSYS");
}
