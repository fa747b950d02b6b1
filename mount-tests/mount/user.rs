//! A real unprivileged user mounts a directory of their own through fusermount3 and needs nothing else.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;

use rustix::fs::{Access, Mode, OFlags, XattrFlags};

use crate::harness::{
    Identity, Mount, Need, Stats, as_caller, entry_at, fill, first_difference, read_range, ready,
    unprivileged_user,
};
use crate::posix::script::open;

/// A mount of the user's and the user, as who tests act.
fn user_mount(options: &str) -> Option<(Mount, Identity)> {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::UserMounts]) {
        return None;
    }
    let (uid, gid) = unprivileged_user();
    let mount = Mount::builder().user((uid, gid)).options(options).start();
    Some((mount, Identity::unprivileged()))
}

/// The user's counters, asked as the user: nobody else gets them but root, who cannot enter a private mount.
fn stats(mount: &Mount, user: &Identity) -> Stats {
    let mut value = vec![0; 65536];
    let point = mount.point();
    let length = as_caller(user, || rustix::fs::getxattr(point, "splicefs.stats", &mut value[..]));
    Stats::parse(&value[..length.expect("the mounter reads the counters")])
}

#[test]
fn a_user_works_in_a_mount_of_their_own() {
    let Some((mount, user)) = user_mount("") else { return };
    let root = mount.point();
    as_caller(&user, || {
        fs::create_dir(root.join("dir")).expect("mkdir");
        fs::write(root.join("dir/file"), fill(0, 3 << 20)).expect("write");
        fs::rename(root.join("dir/file"), root.join("moved")).expect("rename");
        fs::hard_link(root.join("moved"), root.join("linked")).expect("link");
        std::os::unix::fs::symlink("moved", root.join("symlink")).expect("symlink");
        let contents = fs::read(root.join("symlink")).expect("read");
        assert_eq!((contents.len(), first_difference(&contents, 0)), (3 << 20, None));
        rustix::fs::setxattr(root.join("moved"), "user.mine", b"yes", XattrFlags::empty()).expect("setxattr");
        rustix::fs::chmod(root.join("moved"), Mode::from_raw_mode(0o640)).expect("chmod");
        let meta = fs::metadata(root.join("linked")).expect("stat");
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()),
            (user.uid, user.gid, 0o640, 2)
        );
        fs::remove_dir(root.join("dir")).expect("rmdir");
        fs::remove_file(root.join("linked")).expect("unlink");
    });
    assert_eq!(fs::metadata(mount.source().join("moved")).expect("stat").uid(), user.uid);
}

#[test]
fn a_users_reads_are_spliced() {
    let Some((mount, user)) = user_mount("splice=on") else { return };
    const SIZE: usize = 64 << 20;
    let path = mount.point().join("large");
    fs::write(mount.source().join("large"), fill(0, SIZE)).expect("write");
    chown(mount.source().join("large"), Some(user.uid), Some(user.gid)).expect("chown");
    let before = stats(&mount, &user);
    as_caller(&user, || {
        let file = File::open(&path).expect("open");
        let mut buffer = vec![0; 1 << 20];
        for offset in (0..SIZE as u64).step_by(1 << 20) {
            let got = read_range(&file, &mut buffer, offset).expect("read");
            assert_eq!((got, first_difference(&buffer[..got], offset)), (1 << 20, None), "at {offset}");
        }
    });
    let after = stats(&mount, &user);
    let spliced = after.spliced_bytes() - before.spliced_bytes();
    let copied = after.copied_bytes() - before.copied_bytes();
    assert!(spliced >= SIZE as u64 / 100 * 95, "{spliced} bytes spliced, {copied} copied; {}", after.json());
}

#[test]
fn the_mount_is_the_users() {
    let Some((mount, user)) = user_mount("") else { return };
    let entry = entry_at(mount.point()).expect("a mount");
    assert_eq!(entry.kind, "fuse.splicefs");
    assert!(entry.has(&format!("user_id={}", user.uid)), "{entry:?}");
    assert!(entry.has("nosuid") && entry.has("nodev"), "fusermount3 insists on both: {entry:?}");
    // Nobody else enters, root included, whatever the modes.
    for stranger in [Identity::root(), Identity::user(4009)] {
        let seen = as_caller(&stranger, || rustix::fs::access(mount.point(), Access::EXISTS));
        assert!(seen.is_err(), "uid {} enters", stranger.uid);
    }
}

/// The source's permissions bind the user, who has no more through the mount than without it.
#[test]
fn the_source_decides() {
    let Some((mount, user)) = user_mount("") else { return };
    let make = |name: &str, owner: u32, mode: u32| {
        let path = mount.source().join(name);
        fs::write(&path, b"contents").expect("write");
        chown(&path, Some(owner), Some(owner)).expect("chown");
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
    };
    make("roots", 0, 0o600);
    make("readable", 0, 0o644);
    make("locked", user.uid, 0o000);
    let attempts = |root: &Path| -> Vec<bool> {
        let mut answers = Vec::new();
        for name in ["roots", "readable", "locked"] {
            for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
                answers.push(open(&root.join(name), flags, 0).is_ok());
            }
            answers.push(rustix::fs::chmod(root.join(name), Mode::from_raw_mode(0o604)).is_ok());
            let group = Some(rustix::process::Gid::from_raw(4242));
            answers.push(rustix::fs::chown(root.join(name), None, group).is_ok());
        }
        answers
    };
    let mounted = as_caller(&user, || attempts(mount.point()));
    rustix::fs::chmod(mount.source().join("locked"), Mode::empty()).expect("chmod");
    let native = as_caller(&user, || attempts(mount.source()));
    assert_eq!(mounted, native);
}

/// Their own umask and modes, and unlinked files, without root's help.
#[test]
fn modes_and_unlinked_files_are_the_users() {
    let Some((mount, user)) = user_mount("") else { return };
    for umask in [0, 0o027, 0o077] {
        as_caller(&user.clone().with_umask(umask), || {
            for mode in [0o600, 0o666, 0o755, 0o4711] {
                let path = mount.point().join(format!("{umask:o}-{mode:o}"));
                let file = open(&path, OFlags::CREATE | OFlags::RDWR | OFlags::EXCL, mode).expect("create");
                let meta = file.metadata().expect("fstat");
                assert_eq!(meta.mode() & 0o7777, mode & !umask, "{path:?}");
                fs::remove_file(&path).expect("unlink");
                file.write_all_at(b"no name", 0).expect("write");
                let mut buffer = [0; 7];
                file.read_exact_at(&mut buffer, 0).expect("read");
                assert_eq!((&buffer, file.metadata().expect("fstat").nlink()), (b"no name", 0));
            }
        });
    }
}
