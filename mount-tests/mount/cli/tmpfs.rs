//! `splicefs tmpfs` and `splicefs resize` as a person meets them.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::mount::{MsFlags, mount};
use rustix::process::{Signal, kill_process};

use super::{Place, assert_complains, assert_success, run, stdout, user_command};
use crate::harness::{
    Identity, Need, as_caller, command, entry_at, fill, ready, splicefs_binary, unprivileged_user,
    until_dead, until_umounted,
};

/// Bytes and inodes that fit in, as df(1) shows them.
fn room(point: &Path) -> (u64, u64) {
    let now = rustix::fs::statvfs(point).expect("statvfs");
    (now.f_blocks * now.f_frsize, now.f_files)
}

fn resize(point: &Path, arguments: &[&str]) -> Output {
    run(command().arg("resize").arg(point).args(arguments))
}

#[test]
fn a_file_system_in_memory_is_announced_and_sized() {
    let Some(place) = Place::new() else { return };
    let output = place.mount_tmpfs(&["-o", "size=1g,nr_inodes=1k"]);
    assert_success(&output);
    let said = stdout(&output);
    let point = place.point();
    let shown = point.display();
    assert_eq!(
        said,
        format!(
            "splicefs: tmpfs (size 1.0 GiB) is mounted on {shown}; look: df -h {shown}; stop, and lose its files: splicefs unmount {shown}\n"
        )
    );
    let entry = entry_at(&point).expect("a mount");
    assert_eq!((entry.kind.as_str(), entry.source.to_str()), ("fuse.splicefs", Some("tmpfs")));
    assert_eq!(room(&point), (1 << 30, 1024));
    let root = fs::metadata(&point).expect("stat");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o1777, 0, 0));
    fs::write(point.join("file"), b"contents").expect("write");
    assert_eq!(fs::read(point.join("file")).expect("read"), b"contents");
    assert_success(&place.unmount());
    assert_success(&place.mount_tmpfs(&[]));
    assert!(!point.join("file").exists(), "a new mount is empty");
    assert!(room(&point).0 > 0, "half of memory");
    assert_success(&place.unmount());
}

#[test]
fn the_root_is_as_the_options_say() {
    let Some(place) = Place::new() else { return };
    assert_success(&place.mount_tmpfs(&["-o", "mode=0750,uid=12,gid=34,size=0,nr_inodes=0,strictatime"]));
    let root = fs::metadata(place.point()).expect("stat");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o750, 12, 34));
    assert_eq!(room(&place.point()), (0, 0), "no limits");
    assert!(!entry_at(&place.point()).expect("a mount").has("relatime"));
    assert_success(&place.unmount());
}

#[test]
fn the_forms_of_mount_8_mount_memory() {
    let Some(place) = Place::new() else { return };
    let point = place.point();
    let options = "rw,nosuid,nodev,relatime,_netdev,backend=tmpfs,size=1m";
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("xfstests-config/mount.fuse.splicefs");
    let helped = || {
        let mut helped = Command::new(&helper);
        helped.env("SPLICEFS", splicefs_binary());
        helped
    };
    for (mut program, source) in
        [(command(), "scratch"), (command(), "tmpfs"), (helped(), "scratch"), (helped(), "tmpfs")]
    {
        let output = run(program.arg(source).arg(&point).args(["-n", "-s", "-o", options]));
        assert_success(&output);
        assert_eq!(stdout(&output), "", "mount(8) says nothing");
        assert_eq!(entry_at(&point).expect("a mount").source, source);
        assert_eq!(room(&point).0, 1 << 20);
        assert_success(&place.unmount());
    }
    let output = run(command().arg("tmpfs").arg(&point).args(["-v", "-o", options]));
    assert!(stdout(&output).contains("is mounted on"), "{}", stdout(&output));
    assert_success(&place.unmount());
}

#[test]
fn each_mistake_has_its_line() {
    let Some(place) = Place::new() else { return };
    let cases = [
        ("size=lots", "expected bytes"),
        ("nr_inodes=-1", "expected a number of files"),
        ("sizes=1g", "the nearest known one is `size`"),
        ("mode=999", "octal"),
        ("uid=no-such-user-here", "a user's number or name"),
        ("huge=always", "expected `never`"),
        ("mpol=interleave", "numactl --interleave=all splicefs tmpfs"),
        ("noswap", "MemorySwapMax=0"),
        ("usrquota", "is not to be had"),
        ("block_devices_as_files", "is for passthrough"),
        ("backend=passthrough", "contradict each other"),
        ("remount,size=1m", "splicefs resize MNT size=SIZE"),
    ];
    for (options, expected) in cases {
        assert_complains(&place.mount_tmpfs(&["-o", options]), &[expected]);
    }
    assert_complains(&place.mount(&["-o", "size=1g"]), &["option `size` is for tmpfs"]);
    assert_complains(&run(command().arg("tmpfs")), &["`splicefs tmpfs MNT`"]);
    let point = place.point();
    let with_source = run(command().arg("tmpfs").arg(place.source()).arg(&point));
    assert_complains(
        &with_source,
        &["takes a mount point alone", &format!("splicefs tmpfs {}", point.display())],
    );
    assert_complains(&run(command().arg("tmpf").arg(&point)), &["`tmpf` is no command", "`splicefs tmpfs "]);
    assert_complains(&run(command().arg("tmpfs").arg("/")), &["cannot mount on /"]);
    assert!(entry_at(&point).is_none(), "a failed start leaves no mount");
}

#[test]
fn limits_change_while_mounted_down_to_what_is_in_use() {
    let Some(place) = Place::new() else { return };
    let point = place.point();
    assert_success(&place.mount_tmpfs(&["-o", "size=1m,nr_inodes=100"]));
    for n in 0..8 {
        fs::write(point.join(n.to_string()), fill(0, 64 << 10)).expect("write");
    }
    let output = resize(&point, &["size=2m"]);
    assert_success(&output);
    assert_eq!((stdout(&output).as_str(), room(&point)), ("", (2 << 20, 100)));
    assert_complains(&resize(&point, &["size=256k"]), &["cannot shrink to 256.0 KiB", "are in use"]);
    assert_complains(&resize(&point, &["-o", "nr_inodes=3,size=1g"]), &["cannot be limited to 3 inodes"]);
    assert_eq!(room(&point), (2 << 20, 100), "what is refused changes nothing");
    assert_success(&resize(&point, &["nr_blocks=192,nr_inodes=50"]));
    assert_eq!(room(&point), (768 << 10, 50));
    fs::write(point.join("more"), fill(0, 512 << 10)).expect_err("more than there is room for");
    for (words, expected) in [
        (&["size=lots"][..], "option `size=lots`: expected"),
        (&["uid=1"], "cannot change while it is mounted"),
        (&[], "no limit was named"),
    ] {
        assert_complains(&resize(&point, words), &[expected]);
    }
    assert_complains(&run(command().arg("resize")), &["`splicefs resize MNT size=SIZE`"]);
    assert_success(&resize(&point, &["size=0"]));
    assert_eq!(room(&point).0, 0);
    assert_complains(&resize(&point, &["size=1g"]), &["no limit of its size"]);
    assert_success(&place.unmount());
}

#[test]
fn what_cannot_be_resized_says_why() {
    let Some(place) = Place::new() else { return };
    let point = place.point();
    let refused = || resize(&point, &["size=1m"]);
    assert_complains(&refused(), &["not the mount point of a splicefs mount"]);
    assert_complains(&resize(&point.join("none"), &["size=1m"]), &["does not exist"]);
    assert_success(&place.mount(&[]));
    assert_complains(&refused(), &["served by passthrough", "only a tmpfs"]);
    assert_success(&place.unmount());
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .expect("a tmpfs of the kernel's");
    assert_complains(&refused(), &["the kernel's own tmpfs", "mount -o remount,size=1m"]);
    until_umounted(&point);
    assert_success(&place.mount_tmpfs(&["-o", "ro"]));
    assert_complains(&refused(), &["read-only"]);
    assert_success(&place.unmount());
    assert_success(&place.mount_tmpfs(&["-o", "allow_other"]));
    let stranger = run(user_command(place.dir.path(), (4009, 4009)).arg("resize").arg(&point).arg("size=1m"));
    assert_complains(&stranger, &["only the user who mounted it and root may"]);
    for pid in place.daemons() {
        kill_process(pid, Signal::KILL).expect("kill");
    }
    until_dead(&point);
    assert_complains(&refused(), &["dead mount", "splicefs unmount"]);
    assert_success(&place.unmount());
}

#[test]
fn a_user_mounts_resizes_and_unmounts_memory() {
    if !ready(&[Need::UserMounts]) {
        return;
    }
    let Some(place) = Place::new() else { return };
    let user = unprivileged_user();
    let point = place.point();
    chown(&point, Some(user.0), Some(user.1)).expect("chown");
    let as_user = |arguments: &[&str]| {
        let [word, rest @ ..] = arguments else { unreachable!("a command") };
        run(user_command(place.dir.path(), user).arg(word).arg(&point).args(rest))
    };
    let identity = Identity { uid: user.0, gid: user.1, ..Identity::root() };
    assert_success(&as_user(&["tmpfs", "-o", "size=1m,mode=0700"]));
    as_caller(&identity, || {
        let root = fs::metadata(&point).expect("stat");
        assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (user.0, user.1, 0o700));
        fs::write(point.join("file"), fill(0, 512 << 10)).expect("write");
        assert_eq!(room(&point).0, 1 << 20);
    });
    assert_complains(&as_user(&["resize", "size=4k"]), &["are in use"]);
    assert_success(&as_user(&["resize", "size=2m"]));
    assert_eq!(as_caller(&identity, || room(&point).0), 2 << 20);
    assert_complains(&resize(&point, &["size=1m"]), &["only the user who mounted it may"]);
    assert_success(&as_user(&["unmount"]));
}

/// RLIMIT_FSIZE counts for the memory that large files lie in, too: a write past it must fail and end nothing.
#[test]
fn a_limit_on_file_sizes_ends_no_daemon() {
    if !ready(&[Need::UserMounts]) {
        return;
    }
    let Some(place) = Place::new() else { return };
    let user = unprivileged_user();
    let point = place.point();
    chown(&point, Some(user.0), Some(user.1)).expect("chown");
    let mut program = user_command(place.dir.path(), user);
    // As that user, so that nothing lets the daemon raise its hard limit.
    program.arg("tmpfs").arg(&point).args(["-o", "size=64m"]);
    let mut limited = Command::new("prlimit");
    limited.arg("--fsize=1048576:1048576").arg(program.get_program()).args(program.get_args());
    limited.env("HOME", place.dir.path().join("home")).env_remove("XDG_STATE_HOME");
    assert_success(&run(limited.uid(user.0).gid(user.1)));
    let identity = Identity { uid: user.0, gid: user.1, ..Identity::root() };
    as_caller(&identity, || {
        fs::write(point.join("small"), b"kept").expect("write");
        let large = fs::write(point.join("large"), fill(0, 8 << 20));
        let errno = large.as_ref().err().and_then(std::io::Error::raw_os_error);
        assert!(matches!(errno, None | Some(libc::EFBIG | libc::ENOSPC)), "{large:?}");
        assert_eq!(fs::read(point.join("small")).expect("the daemon lives"), b"kept");
    });
    assert_success(&place.unmount());
}
