//! Layers that contain a mount point, or are one.

use std::path::Path;
use std::sync::Arc;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use splicefs_core::{Backend, Errno, RenameFlags};

use crate::common::{DAEMON, attr, errno, find, name, privileged, root_of_the_host};
use splicefs_passthrough::{LayerOptions, LayerSet, Passthrough};

/// Runs `test` with mounts of its own, that are shared as most are (mount_namespaces(7)).
fn with_own_mounts(test: impl FnOnce() + Send) {
    if !privileged() {
        return;
    }
    std::thread::scope(|scope| {
        let apart = || {
            #[allow(deprecated, reason = "descriptors stay shared, and they are what that is about")]
            rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
            let recursive = MountPropagationFlags::REC;
            mount_change("/", MountPropagationFlags::PRIVATE | recursive).unwrap();
            mount_change("/", MountPropagationFlags::SHARED | recursive).unwrap();
            test();
        };
        scope.spawn(apart).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn cover(path: &Path) {
    mount("none", path, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    std::fs::write(path.join("on top"), b"").unwrap();
}

fn layer(set: &LayerSet, path: &Path, read_only: bool) -> Passthrough {
    set.open(&LayerOptions { path: path.to_owned(), noatime: false, read_only, lends: !read_only }).unwrap()
}

/// A directory `mnt` with a directory `below` in it.
fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(source.path().join("mnt/below")).unwrap();
    source
}

#[test]
fn what_the_mount_covers_is_shown_as_it_is_underneath() {
    with_own_mounts(|| {
        let source = source();
        let mount_point = source.path().join("mnt");
        let set = LayerSet::new(Some(&mount_point)).unwrap();
        let upper = layer(&set, source.path(), false);
        let lower = layer(&set, source.path(), true);
        assert!(lower.is_sealed());
        cover(&mount_point);
        for fs in [&upper, &lower] {
            find(fs, &fs.root(), "mnt/below");
            let covered = find(fs, &fs.root(), "mnt");
            assert_eq!(errno(fs.lookup(&covered, &name("on top"))), Errno::ENOENT);
        }
        let root = upper.root();
        assert_eq!(errno(upper.rmdir(&root, &name("mnt"))), Errno::EBUSY);
        let moved = upper.rename(&DAEMON, (&root, &name("mnt")), (&root, &name("x")), RenameFlags(0));
        assert_eq!(errno(moved), Errno::EBUSY);
        unmount(&mount_point, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn what_the_lower_layer_shows_underneath_is_sealed_as_well() {
    with_own_mounts(|| {
        let source = source();
        let mount_point = source.path().join("mnt");
        let set = LayerSet::new(Some(&mount_point)).unwrap();
        let (upper, lower) = (layer(&set, source.path(), false), layer(&set, source.path(), true));
        cover(&mount_point);
        let below = |fs: &Passthrough| find(fs, &fs.root(), "mnt/below");
        // The same directory on two mounts: only if it is reached on the clone's own is it another node.
        assert!(!Arc::ptr_eq(&below(&lower), &below(&upper)));
        assert_eq!(attr(&lower, &below(&lower)).ino, attr(&upper, &below(&upper)).ino);
        unmount(&mount_point, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_layer_that_is_the_mount_point_is_what_is_underneath() {
    with_own_mounts(|| {
        let source = source();
        let mount_point = source.path().join("mnt");
        let set = LayerSet::new(Some(&mount_point)).unwrap();
        let layers = [false, true].map(|read_only| layer(&set, &mount_point, read_only));
        let around = layer(&set, source.path(), false);
        cover(&mount_point);
        for fs in &layers {
            find(fs, &fs.root(), "below");
            assert_eq!(errno(fs.lookup(&fs.root(), &name("on top"))), Errno::ENOENT);
            fs.opendir(&fs.root()).unwrap();
        }
        assert!(Arc::ptr_eq(&find(&around, &around.root(), "mnt"), &layers[0].root()));
        unmount(&mount_point, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn mounts_made_later_do_not_reach_a_sealed_layer_and_earlier_ones_are_not_in_it() {
    with_own_mounts(|| {
        let source = source();
        let elsewhere = source.path().join("other");
        std::fs::create_dir(&elsewhere).unwrap();
        cover(&elsewhere);
        let set = LayerSet::new(None).unwrap();
        let (upper, lower) = (layer(&set, source.path(), false), layer(&set, source.path(), true));
        cover(&source.path().join("mnt"));
        for dir in ["mnt", "other"] {
            find(&upper, &upper.root(), &format!("{dir}/on top"));
            let underneath = find(&lower, &lower.root(), dir);
            assert_eq!(errno(lower.lookup(&underneath, &name("on top"))), Errno::ENOENT, "{dir}");
            unmount(source.path().join(dir), UnmountFlags::DETACH).unwrap();
        }
    });
}

/// Handles are opened by way of the clone, which stands in no mount namespace.
#[test]
fn a_layer_on_a_file_system_that_was_unmounted_still_works() {
    with_own_mounts(|| {
        let source = source();
        let place = source.path().join("mnt");
        cover(&place);
        let lower = layer(&LayerSet::new(None).unwrap(), &place, true);
        unmount(&place, UnmountFlags::DETACH).unwrap();
        let file = find(&lower, &lower.root(), "on top");
        let handle = splicefs_core::Layer::handle(&lower, &file).unwrap();
        if let Some(handle) = handle.filter(|_| root_of_the_host()) {
            let ino = splicefs_core::Layer::inode_of(&lower, &handle).unwrap();
            assert_eq!(ino, Some(attr(&lower, &file).ino));
        }
    });
}
