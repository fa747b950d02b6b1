//! Mount options: what the kernel is told, who may enter, who may ask for the counters.

use std::fs;
use std::path::Path;

use super::{NEEDS, Place, assert_complains, assert_success, run, user_command};
use crate::harness::{
    Identity, Mount, Need, Stats, as_caller, command, entry_at, is_mounted, ready, unprivileged_user, until,
};

/// Texts that would be options of their own if they were pasted into a list.
const NAMES: [&str; 7] =
    ["plain", "x,allow_other", "a,b\\,c", "back\\slash\\", "with space", "x,user_id=0", "tab\tand\u{e9}"];

/// fsname as it is given to `-o`: commas and backslashes escaped as mount options have them.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace(',', "\\,")
}

#[test]
fn names_are_shown_exactly_and_smuggle_nothing() {
    if !ready(&NEEDS) {
        return;
    }
    for name in NAMES {
        let mount = Mount::builder().options(&format!("fsname={}", escaped(name))).start();
        let entry = entry_at(mount.point()).expect("a mount");
        assert_eq!(entry.source, name);
        assert!(!entry.has("allow_other") && !entry.has("user_id=65534"), "{entry:?}");
        let stranger = as_caller(&Identity::user(4009), || fs::metadata(mount.point()).is_ok());
        assert!(!stranger, "a stranger enters a mount without allow_other: {entry:?}");
    }
}

#[test]
fn names_of_users_mounts_are_shown_exactly_and_smuggle_nothing() {
    if !ready(&NEEDS) || !ready(&[Need::UserMounts]) {
        return;
    }
    let user = unprivileged_user();
    for name in NAMES {
        let mount = Mount::builder().user(user).options(&format!("fsname={}", escaped(name))).start();
        let entry = entry_at(mount.point()).expect("a mount");
        assert_eq!(entry.source, name);
        assert!(!entry.has("allow_other") && entry.has(&format!("user_id={}", user.0)), "{entry:?}");
        assert!(entry.has("nosuid") && entry.has("nodev"), "{entry:?}");
    }
}

#[test]
fn the_type_is_as_asked() {
    if !ready(&NEEDS) {
        return;
    }
    let kind = |options: &str| {
        let mount = Mount::builder().options(options).start();
        let entry = entry_at(mount.point()).expect("a mount");
        (entry.kind, entry.source == *mount.source().as_os_str())
    };
    assert_eq!(kind(""), ("fuse.splicefs".into(), true));
    assert_eq!(kind("subtype=other"), ("fuse.other".into(), true));
    assert_eq!(kind("subtype="), ("fuse".into(), true));
}

#[test]
fn mount_options_reach_the_kernel() {
    if !ready(&NEEDS) {
        return;
    }
    for (options, shown) in [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("allow_other", "allow_other"),
        ("default_permissions", "default_permissions"),
        ("rw,nosuid,nodev,noexec,relatime", "nosuid"),
    ] {
        let mount = Mount::builder().options(options).start();
        let entry = entry_at(mount.point()).expect("a mount");
        assert!(entry.has(shown), "-o {options}: {entry:?}");
        assert!(options.contains("allow_other") || !entry.has("allow_other"), "-o {options}: {entry:?}");
    }
    let mount = Mount::builder().options("ro").start();
    let refused = fs::write(mount.point().join("file"), b"x").expect_err("a read-only mount");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn a_killed_daemon_is_unmounted_automatically() {
    if !ready(&NEEDS) || !ready(&[Need::UserMounts]) {
        return;
    }
    for user in [None, Some(unprivileged_user())] {
        let builder = Mount::builder().options("auto_unmount");
        let mut mount = match user {
            Some(user) => builder.user(user).start(),
            None => builder.start(),
        };
        mount.kill_daemon();
        until("the mount to go away by itself", || !is_mounted(mount.point()));
    }
}

#[test]
fn counters_are_for_root_and_the_mounter() {
    if !ready(&NEEDS) {
        return;
    }
    let mount = Mount::builder().options("allow_other").start();
    let stats = Stats::of(mount.point());
    assert_eq!(stats.json()["backend"], "passthrough");
    assert_eq!(stats.json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(stats.requests("getxattr") > 0 || stats.requests("getattr") > 0, "{}", stats.json());
    let ask = |point: &Path| {
        let mut value = [0; 65536];
        rustix::fs::getxattr(point, "splicefs.stats", &mut value[..]).map(drop)
    };
    assert_eq!(ask(mount.point()), Ok(()));
    let stranger = as_caller(&Identity::user(4009), || ask(mount.point()));
    assert_eq!(stranger, Err(rustix::io::Errno::NODATA));
    // It is no attribute of the file: lists and copies do not carry it.
    assert_eq!(rustix::fs::listxattr_query(mount.point()), Ok(0));
    let readable = run(command().arg("stats").arg(mount.point()));
    assert_success(&readable);
    assert!(!readable.stdout.is_empty());
}

#[test]
fn the_form_of_mount_8_works() {
    let Some(place) = Place::new() else { return };
    let options =
        "rw,nosuid,nodev,relatime,_netdev,noauto,x-systemd.automount,backend=passthrough,splice=off";
    let output = run(command().arg(place.source()).arg(place.point()).args(["-o", options]));
    assert_success(&output);
    assert_eq!(fs::read(place.point().join("file")).expect("read"), b"contents");
    assert_eq!(Stats::of(&place.point()).json()["splice"]["mode"], "off");
    assert_success(&place.unmount());
    let output = run(command().arg(place.source()).arg(place.point()).args(["-o", "ro"]));
    assert_complains(&output, &["backend", "passthrough"]);
}

#[test]
fn others_enter_as_allowed() {
    if !ready(&NEEDS) || !ready(&[Need::UserMounts]) {
        return;
    }
    let user = unprivileged_user();
    let enters =
        |mount: &Mount, uid: u32| as_caller(&Identity::user(uid), || fs::read_dir(mount.point()).is_ok());
    let mount = Mount::builder().options("allow_other").start();
    assert!(enters(&mount, 0) && enters(&mount, 4009) && enters(&mount, user.0));
    drop(mount);
    let mount = Mount::builder().options("allow_root").start();
    assert!(enters(&mount, 0), "the owner, who is root");
    assert!(!enters(&mount, 4009), "allow_root lets others in");
    drop(mount);
    let mount = Mount::builder().start();
    assert!(enters(&mount, 0) && !enters(&mount, 4009));
    drop(mount);
    // A user may let others in only where the administrator says so.
    let configured = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allowed = configured.lines().any(|line| line.trim() == "user_allow_other");
    if !allowed {
        let builder = Mount::builder().user(user);
        let mut command = user_command(builder.dir(), user);
        command.arg("passthrough").arg(builder.source());
        let output = run(command.arg(builder.dir().join("mnt")).args(["-o", "allow_other"]));
        assert_complains(&output, &["user_allow_other", "/etc/fuse.conf"]);
    }
}
