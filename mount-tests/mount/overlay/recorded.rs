//! Owners and modes kept in an extended attribute (`xattr_permissions=`), as fuse-overlayfs keeps them.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::umount2;
use rustix::fs::{FileType, OFlags, XattrFlags};
use rustix::io::Errno;

use super::layers::Layers;
use super::mounted::Overlay;
use crate::harness::{
    ACCESS_ACL, ACL_GROUP_OBJ, ACL_OTHER, ACL_USER_OBJ, Identity, NO_ID, Need, acl, as_caller, is_mounted,
    program_for, ready, shell, unprivileged_user, until,
};
use crate::posix::script::open;

const ROOTS: &str = "security.fuseoverlayfs.override_stat";
const USERS: &str = "user.containers.override_stat";
const OLD: &str = "user.fuseoverlayfs.override_stat";
/// The option, and the attribute that it writes.
const FORMS: [(&str, &str); 2] = [("xattr_permissions=1", ROOTS), ("xattr_permissions=2", USERS)];

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs])
}

/// An attribute as text; empty where there is none.
fn text(path: &Path, name: &str) -> String {
    let mut value = vec![0; 256];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => String::from_utf8_lossy(&value[..length]).into_owned(),
        Err(Errno::NODATA) => String::new(),
        Err(e) => panic!("{name} of {path:?}: {e}"),
    }
}

fn record(path: &Path, name: &str, text: &str) {
    rustix::fs::setxattr(path, name, text.as_bytes(), XattrFlags::empty()).expect("setxattr");
}

/// Owner, group and permission bits.
fn who(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| Errno::from_io_error(&e))
}

/// One lower directory with `d/file` and `d/other` in it.
fn scene() -> Layers {
    let layers = Layers::simple();
    fs::create_dir(layers.lower().join("d")).expect("mkdir");
    for name in ["d/file", "d/other"] {
        fs::write(layers.lower().join(name), b"contents").expect("write");
    }
    layers
}

#[test]
fn what_is_given_away_is_only_said_to_be() {
    if !can_run() {
        return;
    }
    for (option, attribute) in FORMS {
        let layers = scene();
        let look = |mount: &Overlay| {
            assert_eq!(who(mount.at("d/file")), (1234, 2345, 0o4750), "{option}");
            assert_eq!(who(mount.at("d")), (0, 0, 0o755), "{option}");
            assert_eq!(who(mount.at("d/other")), (0, 0, 0o644), "{option}");
            assert_eq!(fs::read(mount.at("d/file")).expect("read"), b"contents");
        };
        let mount = layers.mount_with(option);
        chown(mount.at("d/file"), Some(1234), Some(2345)).expect("chown");
        chmod(mount.at("d/file"), 0o4750);
        look(&mount);
        mount.unmount();
        look(&layers.mount_with(option));
        assert_eq!(who(layers.upper().join("d/file")), (0, 0, 0o644), "{option}");
        assert_eq!(who(layers.upper().join("d")), (0, 0, 0o755), "{option}");
        assert_eq!(text(&layers.upper().join("d/file"), attribute), "1234:2345:4750");
        assert_eq!(text(&layers.upper().join("d"), attribute), "0:0:755");
        assert_eq!(text(layers.upper(), attribute), "0:0:755", "the root says that there are records");
    }
}

#[test]
fn what_is_made_is_its_makers_and_kept_from_others() {
    if !can_run() {
        return;
    }
    for (option, attribute) in FORMS {
        let layers = scene();
        let mount = layers.mount_with(option);
        chmod(mount.at("d"), 0o1777);
        let (one, two) = (Identity::user(1001).with_umask(0o027), Identity::user(1002));
        as_caller(&one, || {
            drop(open(&mount.at("d/made"), OFlags::CREATE | OFlags::WRONLY, 0o666).expect("create"));
            fs::write(mount.at("d/private"), b"mine").expect("write");
            chmod(mount.at("d/private"), 0o600);
            fs::create_dir(mount.at("d/sub")).expect("mkdir");
            symlink("made", mount.at("d/link")).expect("symlink");
            drop(open(&mount.at("d"), OFlags::TMPFILE | OFlags::RDWR, 0o600).expect("O_TMPFILE"));
        });
        assert_eq!(who(mount.at("d/made")), (1001, 1001, 0o640), "{option}");
        assert_eq!(who(mount.at("d/sub")), (1001, 1001, 0o750), "{option}");
        assert_eq!(who(mount.at("d/link")), (1001, 1001, 0o777), "{option}");
        assert_eq!(text(&layers.upper().join("d/private"), attribute), "1001:1001:600");
        assert_eq!(who(layers.upper().join("d/private")), (0, 0, 0o644), "{option}");
        as_caller(&two, || {
            assert_eq!(errno(File::open(mount.at("d/private"))), Some(Errno::ACCESS), "{option}");
            assert_eq!(errno(fs::write(mount.at("d/made"), b"x")), Some(Errno::ACCESS), "{option}");
            assert_eq!(errno(fs::remove_file(mount.at("d/made"))), Some(Errno::PERM), "sticky, {option}");
            assert_eq!(errno(fs::read_dir(mount.at("d/sub"))), Some(Errno::ACCESS), "{option}");
        });
        as_caller(&one, || assert_eq!(fs::read(mount.at("d/private")).expect("read"), b"mine"));
    }
}

#[test]
fn a_setgid_directory_hands_its_recorded_group_on() {
    if !can_run() {
        return;
    }
    for (option, _) in FORMS {
        let layers = scene();
        let mount = layers.mount_with(option);
        chown(mount.at("d"), Some(0), Some(2345)).expect("chown");
        chmod(mount.at("d"), 0o2777);
        as_caller(&Identity::user(1001), || {
            fs::write(mount.at("d/made"), b"").expect("write");
            fs::create_dir(mount.at("d/sub")).expect("mkdir");
        });
        assert_eq!(who(mount.at("d/made")), (1001, 2345, 0o644), "{option}");
        assert_eq!(who(mount.at("d/sub")), (1001, 2345, 0o2755), "{option}");
        // The same where a whiteout is in the way.
        fs::remove_file(mount.at("d/file")).expect("unlink");
        as_caller(&Identity::user(1001), || fs::write(mount.at("d/file"), b"").expect("write"));
        assert_eq!(who(mount.at("d/file")), (1001, 2345, 0o644), "{option}");
    }
}

/// What a change is called, and the change of a file.
type Change = (&'static str, fn(&Path));

#[test]
fn a_stranger_who_changes_a_file_takes_its_setuid_bit() {
    if !can_run() {
        return;
    }
    let changes: [Change; 4] = [
        ("write", |file| fs::write(file, b"changed").expect("write")),
        ("truncate", |file| open(file, OFlags::WRONLY, 0).expect("open").set_len(1).expect("truncate")),
        ("append", |file| {
            let appending = open(file, OFlags::WRONLY | OFlags::APPEND, 0).expect("open");
            std::io::Write::write_all(&mut &appending, b"more").expect("write");
        }),
        ("fallocate", |file| {
            let open = open(file, OFlags::WRONLY, 0).expect("open");
            rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, 4096).expect("fallocate");
        }),
    ];
    for (option, attribute) in FORMS {
        let layers = scene();
        let mount = layers.mount_with(option);
        let file = mount.at("d/file");
        for (what, change) in changes {
            chmod(&file, 0o6777);
            as_caller(&Identity::user(1001), || change(&file));
            assert_eq!(who(&file).2, 0o777, "{option}, {what}");
            assert_eq!(text(&layers.upper().join("d/file"), attribute), "0:0:777", "{option}, {what}");
        }
        chmod(&file, 0o6777);
        fs::write(&file, b"root may keep it").expect("write");
        assert_eq!(who(&file).2, 0o6777, "{option}");
        chown(&file, Some(1), Some(1)).expect("chown");
        assert_eq!(who(&file), (1, 1, 0o777), "{option}, chown");
    }
}

/// What `setcap` would set: CAP_NET_BIND_SERVICE, effective and permitted (`struct vfs_cap_data`, revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn capabilities_go_with_a_change() {
    if !can_run() {
        return;
    }
    for (option, attribute) in FORMS {
        let layers = scene();
        let mount = layers.mount_with(option);
        let file = mount.at("d/file");
        let set = || {
            rustix::fs::setxattr(&file, "security.capability", &CAPABILITY, XattrFlags::empty())
                .expect("setxattr");
            assert_ne!(text(&file, "security.capability"), "", "{option}");
        };
        set();
        let kept = attribute == USERS;
        let stored = text(&layers.upper().join("d/file"), "user.containers.override_security.capability");
        assert_eq!(!stored.is_empty(), kept, "{option}");
        fs::write(&file, b"changed").expect("write");
        assert_eq!(text(&file, "security.capability"), "", "{option}, write");
        set();
        chown(&file, Some(7), Some(7)).expect("chown");
        assert_eq!(text(&file, "security.capability"), "", "{option}, chown");
    }
}

#[test]
fn records_are_not_shown_and_not_set() {
    if !can_run() {
        return;
    }
    for (option, _) in FORMS {
        let layers = scene();
        let mount = layers.mount_with(option);
        let file = mount.at("d/file");
        chown(&file, Some(1234), None).expect("chown");
        rustix::fs::setxattr(&file, "user.kept", b"1", XattrFlags::empty()).expect("setxattr");
        let mut list = vec![0; 1024];
        let length = rustix::fs::listxattr(&file, &mut list[..]).expect("listxattr");
        assert_eq!(String::from_utf8_lossy(&list[..length]), "user.kept\0", "{option}");
        for name in [ROOTS, USERS, OLD, "user.containers.override_security.capability"] {
            assert_eq!(text(&file, name), "", "{option}, {name}");
            let set = rustix::fs::setxattr(&file, name, b"0:0:4755", XattrFlags::empty());
            assert_eq!(set, Err(Errno::PERM), "{option}, {name}");
            assert_eq!(rustix::fs::removexattr(&file, name), Err(Errno::PERM), "{option}, {name}");
        }
        assert_eq!(who(&file), (1234, 0, 0o644), "{option}");
    }
}

#[test]
fn what_makes_no_sense_opens_nothing() {
    if !can_run() {
        return;
    }
    for (option, attribute) in FORMS {
        let layers = scene();
        record(layers.lower(), attribute, "0:0:755");
        let long = "9".repeat(300);
        let bad = ["", "0:0", "0:0:9", "x:0:755", "0:0:644:dir", "0:0:644:bogus", &long];
        for (number, text) in bad.into_iter().enumerate() {
            let path = layers.lower().join(format!("bad{number}"));
            fs::write(&path, b"").expect("write");
            record(&path, attribute, text);
        }
        let mount = layers.mount_with(option);
        for number in 0..7 {
            let path = mount.at(format!("bad{number}"));
            assert_eq!(errno(fs::metadata(&path)), Some(Errno::IO), "{option}, {number}");
            assert_eq!(errno(File::open(&path)), Some(Errno::IO), "{option}, {number}");
        }
        assert_eq!(fs::read(mount.at("d/file")).expect("read"), b"contents", "{option}");
        assert_eq!(fs::read_dir(mount.at("d")).expect("readdir").count(), 2, "{option}");
    }
}

/// Records of lower layers count only where the root has one, and those of users not where root's are asked for.
#[test]
fn the_root_of_a_layer_says_that_it_has_records() {
    if !can_run() {
        return;
    }
    for (option, attribute, root_has, shown) in [
        ("xattr_permissions=2", USERS, true, 1234),
        ("xattr_permissions=2", OLD, true, 1234),
        ("xattr_permissions=2", ROOTS, true, 1234),
        ("xattr_permissions=2", USERS, false, 0),
        ("xattr_permissions=1", ROOTS, true, 1234),
        ("xattr_permissions=1", USERS, true, 0),
        ("xattr_permissions=1", ROOTS, false, 0),
        ("volatile", USERS, true, 0),
    ] {
        for writable in [false, true] {
            let layers = scene();
            record(&layers.lower().join("d/file"), attribute, "1234:0:644");
            if root_has {
                record(layers.lower(), attribute, "5:6:755");
            }
            let layers = if writable { layers } else { layers.read_only() };
            let what = format!("{option}, {attribute}, {root_has}, {writable}");
            let mount = layers.mount_with(option);
            assert_eq!(who(mount.at("d/file")), (shown, 0, 0o644), "{what}");
            // An upper layer that has no records yet takes over what the topmost below says of its root.
            let root = match (shown, writable, attribute) {
                (0, true, _) if root_has && option.ends_with('2') => 5,
                (0, ..) => 0,
                _ => 5,
            };
            assert_eq!(who(mount.point()).0, root, "{what}");
        }
    }
}

#[test]
fn a_file_stands_for_a_special_one() {
    if !can_run() {
        return;
    }
    let layers = scene();
    record(layers.lower(), USERS, "0:0:755");
    for (name, text) in
        [("disk", "0:6:660:block-8-1"), ("null", "0:0:666:char-1-3"), ("pipe", "7:8:600:pipe")]
    {
        fs::write(layers.lower().join(name), b"").expect("write");
        record(&layers.lower().join(name), USERS, text);
    }
    let look = |mount: &Overlay, name: &str| {
        let meta = fs::symlink_metadata(mount.at(name)).expect("stat");
        (FileType::from_raw_mode(meta.mode()), meta.rdev(), who(mount.at(name)))
    };
    let mount = layers.mount_with("xattr_permissions=2");
    assert_eq!(look(&mount, "disk"), (FileType::BlockDevice, rustix::fs::makedev(8, 1), (0, 6, 0o660)));
    assert_eq!(look(&mount, "null"), (FileType::CharacterDevice, rustix::fs::makedev(1, 3), (0, 0, 0o666)));
    for entry in fs::read_dir(mount.point()).expect("readdir") {
        let entry = entry.expect("readdir");
        let listed = entry.file_type().expect("the type of an entry");
        assert_eq!(listed, fs::symlink_metadata(entry.path()).expect("stat").file_type(), "{entry:?}");
    }
    // What is made needs no privilege, and its owner is remembered as well.
    chown(mount.at("pipe"), Some(9), None).expect("chown");
    assert_eq!(look(&mount, "pipe"), (FileType::Fifo, 0, (9, 8, 0o600)));
    as_caller(&Identity::user(1001), || {
        let made = mount.at("d");
        assert_eq!(errno(fs::write(made.join("no"), b"")), Some(Errno::ACCESS));
    });
    shell("mkfifo -m 640 \"$1/made\" && mknod \"$1/tty\" c 5 0", mount.point());
    assert_eq!(look(&mount, "made"), (FileType::Fifo, 0, (0, 0, 0o640)));
    assert_eq!(text(&layers.upper().join("made"), USERS), "0:0:640:pipe");
    assert_eq!(text(&layers.upper().join("tty"), USERS), "0:0:644:char-5-0");
    assert!(fs::symlink_metadata(layers.upper().join("tty")).expect("stat").is_file());
    // What hides another is what the kernel knows.
    fs::remove_file(mount.at("disk")).expect("unlink");
    let whiteout = fs::symlink_metadata(layers.upper().join("disk")).expect("stat");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
}

#[test]
fn records_are_shifted_and_squashed_like_owners() {
    if !can_run() {
        return;
    }
    let layers = scene();
    let mount = layers.mount_with("xattr_permissions=2,uidmapping=0:100000:65536,squash_to_gid=7");
    chown(mount.at("d/file"), Some(101_234), Some(8)).expect("chown");
    assert_eq!(who(mount.at("d/file")), (101_234, 7, 0o644));
    assert_eq!(text(&layers.upper().join("d/file"), USERS), "1234:7:644");
}

#[test]
fn a_mount_with_records_has_no_acls() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("setfacl")]) {
        return;
    }
    let layers = scene();
    shell("setfacl -m u:1001:rwx \"$1/d/file\" && setfacl -d -m u:1001:rwx \"$1/d\"", layers.lower());
    let mount = layers.mount_with("xattr_permissions=2");
    chmod(mount.at("d/file"), 0o640);
    assert_eq!(who(mount.at("d/file")).2, 0o640);
    assert_eq!(shell("getfacl -cpE \"$1/d/file\"", mount.point()).trim().lines().count(), 3);
    let acl = acl(&[(ACL_USER_OBJ, 6, NO_ID), (ACL_GROUP_OBJ, 4, NO_ID), (ACL_OTHER, 4, NO_ID)]);
    let set = rustix::fs::setxattr(mount.at("d/file"), ACCESS_ACL, &acl, XattrFlags::empty());
    assert_eq!(set, Err(Errno::OPNOTSUPP));
    as_caller(&Identity::user(0).with_umask(0o077), || fs::write(mount.at("d/new"), b"").expect("write"));
    assert_eq!(who(mount.at("d/new")).2, 0o600, "the umask counts");
}

/// The tree as find(1) tells it.
fn tree(root: &Path) -> String {
    shell("cd \"$1\" && find . -printf '%P %y %U:%G %m %l\\n' | sort", root)
}

/// A tree served by fuse-overlayfs; dropping it unmounts it.
struct Peer(PathBuf);

impl Peer {
    fn start(lower: &Path, writable: Option<(&Path, &Path)>, option: &str, point: &Path) -> Self {
        let mut options = format!("lowerdir={},{option}", lower.display());
        if let Some((upper, work)) = writable {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        let mut command = Command::new("fuse-overlayfs");
        let status = command.args(["-o", &options]).arg(point).stderr(Stdio::null()).status();
        assert!(status.expect("running fuse-overlayfs").success(), "fuse-overlayfs -o {options}");
        until("fuse-overlayfs to serve", || is_mounted(point));
        Self(point.to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        until("fuse-overlayfs to be unmounted", || umount2(&self.0, nix::mount::MntFlags::empty()).is_ok());
    }
}

/// Changes that leave records, of files named for `who` does it.
fn changes(root: &Path, who: &str) {
    let at = |name: &str| root.join(format!("{name}-{who}"));
    fs::write(at("made"), b"made").expect("write");
    // In this order: fuse-overlayfs 1.10 forgets the owner when it changes the mode.
    chmod(at("made"), 0o600);
    chown(at("made"), Some(1234), Some(2345)).expect("chown");
    fs::create_dir(at("dir")).expect("mkdir");
    chmod(at("dir"), 0o1777);
    chown(at("dir"), Some(3), Some(4)).expect("chown");
    fs::write(at("dir").join("plain"), b"").expect("write");
    if who != "theirs" {
        // fuse-overlayfs 1.10 cannot: it wants to set the attribute of the link.
        symlink("made", at("link")).expect("symlink");
    }
}

/// With `xattr_permissions=1` the two share an upper layer; with 2 they do where fuse-overlayfs 1.10 has begun, and read the
/// names of either in lower layers.
#[test]
fn what_we_write_fuse_overlayfs_shows_and_the_reverse() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("fuse-overlayfs")]) {
        return;
    }
    for (option, attribute) in [("xattr_permissions=1", ROOTS), ("xattr_permissions=2", OLD)] {
        let layers = scene();
        let writable = Some((layers.upper(), layers.work()));
        let (theirs, first) = {
            let peer = Peer::start(layers.lower(), writable, option, &layers.point());
            changes(&peer.0, "theirs");
            chown(peer.0.join("d/file"), Some(77), Some(78)).expect("chown");
            (tree(&peer.0), fs::read(peer.0.join("made-theirs")).expect("read"))
        };
        assert!(
            theirs.contains("made-theirs f 1234:2345 600") && theirs.contains("d/file f 77:78 "),
            "{theirs}"
        );
        let ours = {
            let mount = layers.mount_with(option);
            assert_eq!(tree(mount.point()), theirs, "{option}: what fuse-overlayfs wrote");
            assert_eq!(fs::read(mount.at("made-theirs")).expect("read"), first);
            changes(mount.point(), "ours");
            chown(mount.at("d/other"), Some(87), Some(88)).expect("chown");
            chmod(mount.at("made-theirs"), 0o4711);
            tree(mount.point())
        };
        assert_eq!(text(&layers.upper().join("made-ours"), attribute), "1234:2345:600");
        let peer = Peer::start(layers.lower(), writable, option, &layers.point());
        assert_eq!(tree(&peer.0), ours, "{option}: what we wrote");
    }
}

#[test]
fn fuse_overlayfs_reads_our_records_in_a_lower_layer_and_the_reverse() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("fuse-overlayfs")]) {
        return;
    }
    for (option, attribute) in FORMS {
        let mut layers = scene();
        let ours = {
            let mount = layers.mount_with(option);
            changes(mount.point(), "ours");
            tree(mount.point())
        };
        assert_eq!(text(&layers.upper().join("made-ours"), attribute), "1234:2345:600");
        layers.rotate();
        // fuse-overlayfs marks lower directories as read.
        layers.unseal();
        let both = format!("{}:{}", layers.lowers[0].display(), layers.lowers[1].display());
        {
            let peer = Peer::start(Path::new(&both), None, option, &layers.point());
            assert_eq!(tree(&peer.0), ours, "{option}");
        }
        layers.unseal();
        let mount = layers.mount_with(option);
        assert_eq!(tree(mount.point()), ours, "{option}");
        changes(mount.point(), "later");
        assert_eq!(who(mount.at("made-later")), (1234, 2345, 0o600));
    }
}

/// Serves as the unprivileged user through fusermount3, lets everybody in, and does `acts` as root. Only root may give files
/// away; that the daemon may not is the point.
#[test]
fn an_unprivileged_daemon_remembers_owners() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts, Need::Program("setpriv")]) {
        return;
    }
    let layers = scene();
    for path in ["d", "d/file", "d/other"] {
        let (uid, gid) = unprivileged_user();
        lchown(layers.lower().join(path), Some(uid), Some(gid)).expect("chown");
    }
    let layers = layers.of_user();
    let user = unprivileged_user();
    let program = program_for(Some(user), layers.dir());
    let at = |path: &Path| path.display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},xattr_permissions=2,allow_other",
        at(layers.lower()),
        at(layers.upper()),
        at(layers.work())
    );
    // In mounts of its own, so that no other test sees the changed /etc/fuse.conf.
    let script = format!(
        "cd \"$1\" && echo user_allow_other > conf && mount --bind conf /etc/fuse.conf &&
         setpriv --reuid={0} --regid={1} --clear-groups {2} overlay mnt -o {options} >&2 &&
         chown 1234:2345 mnt/d/file && chmod 4750 mnt/d/file && chown -h 5:6 mnt/d && chmod 1777 mnt/d &&
         setpriv --reuid=1001 --regid=1001 --clear-groups sh -c 'echo mine > mnt/d/mine && chmod 600 mnt/d/mine &&
             ln -s mine mnt/d/link && mkfifo -m 600 mnt/d/pipe' &&
         chown -h 8:9 mnt/d/link mnt/d/pipe &&
         if setpriv --reuid=1002 --regid=1002 --clear-groups cat mnt/d/mine 2>/dev/null; then exit 1; fi &&
         cd mnt && stat -c '%n %u:%g %a' d d/file d/mine d/pipe && cd .. &&
         setpriv --reuid={0} --regid={1} --clear-groups {2} unmount mnt",
        user.0,
        user.1,
        program.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(layers.dir())
        .output()
        .expect("running unshare");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "d 5:6 1777\nd/file 1234:2345 4750\nd/mine 1001:1001 600\nd/pipe 8:9 600\n",
        "{said}"
    );
    let real = |name: &str| fs::symlink_metadata(layers.upper().join(name)).expect("stat").uid();
    assert_eq!([real("d"), real("d/file"), real("d/mine"), real("d/pipe"), real("d/link")], [user.0; 5]);
    assert_eq!(text(&layers.upper().join("d/file"), USERS), "1234:2345:4750");
    assert_eq!(text(&layers.upper().join("d/mine"), USERS), "1001:1001:600");
}
