//! Layers that are file systems of another kind, or overlays themselves: contents are the same to any depth, and the bytes
//! of large files are spliced.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::layers::{Ground, Layers};
use super::mounted::{Engine, Overlay};
use crate::harness::{Mount, Need, drop_file_cache, fill, ready};
use crate::posix::script::open;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Of the file, in its middle.
const HOLE: std::ops::Range<u64> = 16 * MIB..48 * MIB;

/// `large` has data everywhere, `holed` a hole of half its length.
fn fill_lower(lower: &Path) {
    for (name, holed) in [("large", false), ("holed", true)] {
        let file = File::create(lower.join(name)).expect("create");
        for offset in (0..SIZE).step_by(1 << 20) {
            if !(holed && HOLE.contains(&offset)) {
                file.write_all_at(&fill(offset, 1 << 20), offset).expect("write");
            }
        }
        file.sync_all().expect("fsync");
    }
    fs::create_dir(lower.join("d")).expect("mkdir");
    fs::write(lower.join("d/small"), b"small").expect("write");
}

fn digest(path: &Path) -> u64 {
    // A trace of our own reading would look like one of the daemon's.
    let file = open(path, OFlags::RDONLY | OFlags::NOATIME, 0).expect("open");
    drop_file_cache(&file);
    let (mut hasher, mut buffer) = (DefaultHasher::new(), vec![0; 1 << 20]);
    for offset in (0..SIZE).step_by(1 << 20) {
        file.read_exact_at(&mut buffer, offset).expect("read");
        buffer.hash(&mut hasher);
    }
    assert_eq!(file.read_at(&mut buffer, SIZE).expect("read"), 0, "{path:?} is longer");
    hasher.finish()
}

/// Compares what `mount` shows with what is in `original`, and looks at how the bytes came.
fn reads_delegate(mount: &Overlay, original: &Path) {
    for name in ["large", "holed"] {
        let before = mount.stats();
        assert_eq!(digest(&mount.at(name)), digest(&original.join(name)), "the contents of {name}");
        let (Some(before), Some(after)) = (before, mount.stats()) else { continue };
        let spliced = after.spliced_bytes() - before.spliced_bytes();
        let zeros = after.zero_bytes() - before.zero_bytes();
        let hole = if name == "holed" { HOLE.end - HOLE.start } else { 0 };
        let data = SIZE - hole;
        assert!(
            spliced >= data / 100 * 95,
            "{name}: {spliced} of {data} bytes were spliced: {}",
            after.json()
        );
        assert!(
            zeros >= hole / 100 * 95,
            "{name}: {zeros} of {hole} bytes were known to be zero: {}",
            after.json()
        );
    }
    assert_eq!(fs::read(mount.at("d/small")).expect("read"), b"small");
}

/// Changes land in the upper layer of this overlay, whatever is below.
fn changes_stay_above(mount: &Overlay, layers: &Layers) {
    fs::write(mount.at("d/small"), b"changed").expect("write");
    fs::remove_file(mount.at("holed")).expect("unlink");
    fs::rename(mount.at("large"), mount.at("d/moved")).expect("rename");
    assert_eq!(fs::read(layers.upper().join("d/small")).expect("read"), b"changed");
    assert!(layers.upper().join("d/moved").exists());
    assert!(!mount.at("holed").exists());
}

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse])
}

#[test]
fn over_a_directory() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fill_lower(layers.lower());
    let mount = layers.mount_with("passthrough=off,splice=on");
    reads_delegate(&mount, layers.lower());
    changes_stay_above(&mount, &layers);
}

#[test]
fn over_a_tmpfs_of_the_kernels() {
    if !can_run() {
        return;
    }
    let layers = Layers::new(Ground::Tmpfs, 1);
    fill_lower(layers.lower());
    let mount = layers.mount_with("passthrough=off,splice=on");
    reads_delegate(&mount, layers.lower());
    changes_stay_above(&mount, &layers);
}

#[test]
fn over_a_passthrough_mount() {
    if !can_run() {
        return;
    }
    let builder = Mount::builder().options("allow_other");
    fill_lower(builder.source());
    let below = builder.start();
    let layers = Layers::simple().over(below.point());
    let mount = layers.mount_with("passthrough=off,splice=on");
    reads_delegate(&mount, below.source());
    changes_stay_above(&mount, &layers);
}

/// An overlay whose lower layer is an overlay by `engine`, in which some of the files are in the upper layer.
fn over_an_overlay(engine: Engine) {
    if !can_run() {
        return;
    }
    let lower = Layers::simple();
    fill_lower(lower.lower());
    fs::write(lower.lower().join("gone"), b"gone").expect("write");
    let below = lower.mount_by(engine, "");
    // Copied up by the overlay below.
    fs::set_permissions(below.at("large"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("chmod");
    fs::remove_file(below.at("gone")).expect("unlink");
    let layers = Layers::simple().over(below.point());
    let mount = layers.mount_with("passthrough=off,splice=on");
    assert!(!mount.at("gone").exists());
    reads_delegate(&mount, lower.lower());
    changes_stay_above(&mount, &layers);
}

#[test]
fn over_an_overlay_of_the_kernels() {
    over_an_overlay(Engine::Kernel);
}

#[test]
fn over_an_overlay_of_ours() {
    over_an_overlay(Engine::tested());
}

#[test]
fn without_an_upper_layer_nothing_changes() {
    if !can_run() {
        return;
    }
    // The kernel wants two lower layers then.
    let layers = Layers::new(Ground::Directory, 2).read_only();
    fill_lower(layers.lower());
    let mount = layers.mount_with("passthrough=off");
    reads_delegate(&mount, layers.lower());
    let refused = |result: std::io::Result<()>| result.expect_err("read-only").raw_os_error();
    assert_eq!(refused(fs::write(mount.at("new"), b"")), Some(libc::EROFS));
    assert_eq!(refused(fs::remove_file(mount.at("large"))), Some(libc::EROFS));
    assert_eq!(refused(File::options().write(true).open(mount.at("large")).map(drop)), Some(libc::EROFS));
}
