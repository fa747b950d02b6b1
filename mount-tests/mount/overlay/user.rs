//! A real unprivileged user merges directories of their own through fusermount3. Marks are attributes that a user may set,
//! without an option that says so.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::layers::Layers;
use super::mounted::Engine;
use super::peers::leftovers;
use super::seal::xattrs;
use crate::differential::compare::same_trees;
use crate::differential::run::View;
use crate::differential::tree::snapshot;
use crate::harness::{Identity, Need, as_caller, fill, first_difference, ready};

fn give(path: &Path, user: &Identity) {
    chown(path, Some(user.uid), Some(user.gid)).expect("chown");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("readdir") {
            give(&entry.expect("readdir").path(), user);
        }
    }
}

fn scene() -> Option<(Layers, Identity)> {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return None;
    }
    let user = Identity::unprivileged();
    let layers = Layers::simple();
    for name in ["d/one", "d/two", "e/three", "emptied/four", "file"] {
        let path = layers.lower().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        fs::write(path, fill(0, 100_000)).expect("write");
    }
    give(layers.lower(), &user);
    Some((layers.of_user(), user))
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("readdir");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readdir").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn work(root: &Path) {
    let at = |name: &str| root.join(name);
    let file = File::options().read(true).write(true).open(at("file")).expect("open");
    file.write_all_at(b"changed", 10).expect("write");
    fs::set_permissions(at("d/one"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::rename(at("d/one"), at("moved")).expect("rename");
    fs::remove_file(at("d/two")).expect("unlink");
    fs::write(at("d/new"), b"new").expect("write");
    fs::remove_dir_all(at("emptied")).expect("rm -r");
    fs::create_dir(at("emptied")).expect("mkdir");
    fs::hard_link(at("e/three"), at("e/linked")).expect("link");
    std::os::unix::fs::symlink("moved", at("link")).expect("symlink");
}

fn check(root: &Path, user: &Identity) {
    assert_eq!(names(root), ["d", "e", "emptied", "file", "link", "moved"]);
    assert_eq!(names(&root.join("d")), ["new"]);
    assert_eq!(names(&root.join("e")), ["linked", "three"]);
    assert_eq!(names(&root.join("emptied")), Vec::<String>::new());
    let contents = fs::read(root.join("file")).expect("read");
    assert_eq!((&contents[10..17], contents.len()), (&b"changed"[..], 100_000));
    assert_eq!(first_difference(&fs::read(root.join("link")).expect("read"), 0), None);
    let meta = fs::metadata(root.join("moved")).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (user.uid, user.gid, 0o600));
}

#[test]
fn a_user_merges_and_merges_again() {
    let Some((layers, user)) = scene() else { return };
    {
        let mount = layers.mount();
        as_caller(&user, || {
            work(mount.point());
            check(mount.point(), &user);
        });
    }
    for _ in 0..2 {
        let mount = layers.mount();
        as_caller(&user, || check(mount.point(), &user));
    }
    assert_eq!(leftovers(layers.work()), Vec::<PathBuf>::new());
    let marks = xattrs(&layers.upper().join("emptied"));
    assert!(marks.contains("user.overlay.opaque=y"), "the marks of a directory made anew: {marks}");
}

/// What a user's mount wrote, the kernel reads with `userxattr`.
#[test]
fn the_kernel_reads_what_a_user_wrote() {
    let Some((layers, user)) = scene() else { return };
    {
        let mount = layers.mount();
        as_caller(&user, || work(mount.point()));
    }
    let ours = {
        let mount = layers.mount();
        as_caller(&user, || snapshot(mount.point(), View::Merged))
    };
    let layers = layers.options("userxattr");
    let mount = layers.mount_by(Engine::Kernel, "");
    let kernels = snapshot(mount.point(), View::Merged);
    same_trees(["ours", "the kernel's"], [&ours, &kernels])
        .unwrap_or_else(|difference| panic!("{difference}"));
    as_caller(&user, || check(mount.point(), &user));
}

/// The copy of a file that its owner may not write has attributes and marks set before it has its mode; and who created such
/// a file writes and cuts it through the descriptor, as git and tar do.
#[test]
fn regression_files_that_may_only_be_read_are_copied_up_and_made() {
    let Some((layers, user)) = scene() else { return };
    for (name, mode) in [("d/one", 0o444), ("e/three", 0o400), ("emptied", 0o555)] {
        fs::set_permissions(layers.lower().join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let lower = layers.lower().join("d/one");
    rustix::fs::setxattr(lower, "user.kept", b"value", rustix::fs::XattrFlags::empty()).expect("setxattr");
    let mount = layers.mount();
    as_caller(&user, || {
        fs::rename(mount.at("d/one"), mount.at("moved")).expect("rename");
        fs::set_permissions(mount.at("e/three"), fs::Permissions::from_mode(0o640)).expect("chmod");
        fs::set_permissions(mount.at("emptied"), fs::Permissions::from_mode(0o755)).expect("chmod of one");
        let (file, flags) = (mount.at("made"), rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR);
        let made = crate::posix::script::open(&file, flags, 0o444).expect("create");
        made.write_all_at(b"contents", 0).expect("write");
        made.set_len(4).expect("truncate");
        assert_eq!(fs::read(&file).expect("read"), b"cont");
    });
    let moved = layers.upper().join("moved");
    let mut value = [0; 9];
    let length = rustix::fs::getxattr(&moved, "user.kept", &mut value[..]).expect("getxattr");
    assert_eq!(&value[..length], b"value");
    assert_eq!(fs::metadata(moved).expect("stat").mode() & 0o7777, 0o444);
}
