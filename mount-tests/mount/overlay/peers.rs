//! What other overlays got wrong (`field.md` of the project's notes): a test for each.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::layers::{Ground, Layers};
use super::mounted::Engine;
use crate::harness::{Identity, Need, as_caller, fill, first_difference, ready, shell};
use crate::posix::script::open;

const MIB: u64 = 1 << 20;

/// Everything below the work directory but the directories `work` and `index` themselves, and whiteouts: one is kept to be
/// linked to where it is needed.
pub(crate) fn leftovers(work: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten();
        entries.map(|entry| entry.expect("reading the work directory").path()).collect()
    };
    let inner = |path: PathBuf| {
        let own = matches!(path.file_name().map(OsStrExt::as_bytes), Some(b"work" | b"index"));
        if own && path.is_dir() { list(&path) } else { vec![path] }
    };
    let whiteout = |path: &PathBuf| {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
    };
    list(work).into_iter().flat_map(inner).filter(|path| !whiteout(path)).collect()
}

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse])
}

fn write_lower(layers: &Layers, name: &str, contents: &[u8]) {
    let path = layers.lower().join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
    fs::write(path, contents).expect("write");
}

/// fuse-overlayfs 2.0 leaves the emptied directory in the work directory, and later takes its name again.
#[test]
fn a_lower_directory_emptied_and_removed_leaves_nothing() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    for directory in 0..20 {
        for file in 0..3 {
            write_lower(&layers, &format!("d{directory}/sub/f{file}"), b"contents");
        }
    }
    for round in 0..3 {
        let mount = layers.mount();
        for directory in (0..20).map(|number| mount.at(format!("d{number}"))) {
            if directory.exists() {
                fs::remove_dir_all(&directory).expect("rm -r of a lower directory");
            }
            assert!(!directory.exists());
            if round < 2 {
                fs::create_dir(&directory).expect("mkdir of a removed name");
                fs::write(directory.join("new"), b"new").expect("write");
                assert_eq!(
                    fs::read_dir(&directory).expect("readdir").count(),
                    1,
                    "the old contents came back"
                );
            }
        }
        assert_eq!(leftovers(layers.work()), Vec::<PathBuf>::new(), "round {round}, mounted");
        mount.unmount();
        assert_eq!(leftovers(layers.work()), Vec::<PathBuf>::new(), "round {round}");
    }
    assert_eq!(fs::read_dir(layers.mount().point()).expect("readdir").count(), 0);
}

#[test]
fn linking_a_lower_file_keeps_its_number() {
    if !can_run() {
        return;
    }
    for options in ["index=off", "index=on"] {
        let layers = Layers::simple().options(options);
        write_lower(&layers, "d/file", b"contents");
        let number = |path: &Path| fs::metadata(path).map(|meta| (meta.ino(), meta.nlink())).expect("stat");
        let before;
        {
            let mount = layers.mount();
            before = number(&mount.at("d/file")).0;
            fs::hard_link(mount.at("d/file"), mount.at("linked")).expect("link");
            assert_eq!(
                [number(&mount.at("d/file")), number(&mount.at("linked"))],
                [(before, 2); 2],
                "{options}"
            );
        }
        let mount = layers.mount();
        assert_eq!(
            [number(&mount.at("d/file")), number(&mount.at("linked"))],
            [(before, 2); 2],
            "{options}, later"
        );
    }
}

#[test]
fn a_repository_in_a_lower_layer_is_cloned_by_links() {
    if !ready(&[Need::Root, Need::Fuse, Need::Program("git")]) {
        return;
    }
    let layers = Layers::simple();
    let script = "cd \"$1\" && export HOME=/nonexistent GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 && git init -q r &&
         cd r && for n in 1 2 3; do echo $n > f$n && git add . &&
         git -c user.name=n -c user.email=e commit -q -m $n; done";
    shell(script, layers.lower());
    let mount = layers.mount();
    let script = "cd \"$1\" && export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 && git clone -q --local r clone && cd clone &&
         git fsck --strict && git log --oneline | wc -l";
    assert_eq!(shell(script, mount.point()).trim(), "3");
}

#[test]
fn the_umask_is_the_callers() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    write_lower(&layers, "d/file", b"");
    rustix::fs::chmod(layers.lower().join("d"), Mode::from_raw_mode(0o777)).expect("chmod");
    let mount = layers.mount();
    for umask in [0, 0o027, 0o077] {
        as_caller(&Identity::user(1001).with_umask(umask), || {
            let mode =
                |name: &str| fs::metadata(mount.at(name)).map(|meta| meta.mode() & 0o7777).expect("stat");
            let (file, directory) = (format!("d/f{umask}"), format!("d/d{umask}"));
            drop(open(&mount.at(&file), OFlags::CREATE | OFlags::WRONLY, 0o666).expect("create"));
            rustix::fs::mkdir(mount.at(&directory), Mode::from_raw_mode(0o777)).expect("mkdir");
            assert_eq!((mode(&file), mode(&directory)), (0o666 & !umask, 0o777 & !umask));
        });
    }
}

#[test]
fn copying_up_keeps_holes() {
    // The kernel copies a whole MiB wherever there is data.
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    for own in ["", "passthrough=off", "passthrough=off,splice=off"] {
        let layers = Layers::simple();
        let path = layers.lower().join("sparse");
        let file = File::create(&path).expect("create");
        file.set_len(1 << 30).expect("truncate");
        for offset in [0, 100 * MIB, 777 * MIB, (1 << 30) - 65536] {
            file.write_all_at(&fill(offset, 65536), offset).expect("write");
        }
        file.write_all_at(&fill(500 * MIB, 768 << 10), 500 * MIB).expect("write");
        file.sync_all().expect("fsync");
        drop(file);
        let mount = layers.mount_with(own);
        open(&mount.at("sparse"), OFlags::RDWR, 0).expect("open").write_all_at(b"!", 100).expect("write");
        let upper = layers.upper().join("sparse");
        File::open(&upper).and_then(|file| file.sync_all()).expect("fsync");
        let meta = fs::metadata(&upper).expect("stat");
        assert_eq!(meta.size(), 1 << 30);
        assert!(
            meta.blocks() * 512 <= 2 * MIB,
            "{} bytes are allocated for 1 MiB of data",
            meta.blocks() * 512
        );
        let file = File::open(mount.at("sparse")).expect("open");
        let mut buffer = vec![0; 768 << 10];
        file.read_exact_at(&mut buffer, 500 * MIB).expect("read");
        assert_eq!(first_difference(&buffer, 500 * MIB), None);
        file.read_exact_at(&mut buffer, 300 * MIB).expect("read");
        assert!(buffer.iter().all(|&byte| byte == 0), "a hole is not zero");
    }
}

/// What copying up says where the upper file system lacks room, for attributes and for data, and what it leaves.
fn without_room(engine: Engine) -> Vec<String> {
    let small = Layers::new(Ground::Ext4(8), 0);
    let mut layers = Layers::new(Ground::Tmpfs, 1);
    layers.writable.clone_from(&small.writable);
    write_lower(&layers, "attributes", b"contents");
    rustix::fs::setxattr(layers.lower().join("attributes"), "user.large", &[b'x'; 3000], XattrFlags::empty())
        .expect("setxattr");
    write_lower(&layers, "data", &fill(0, 20 << 20));
    // Opening copies up, as in the kernel.
    let mount = layers.mount_by(engine, "open=handle");
    let mut answers = Vec::new();
    for name in ["attributes", "data"] {
        let path = mount.at(name);
        let outcome = |result: Result<(), Errno>| result.map_err(|e| e.raw_os_error());
        let opened = outcome(open(&path, OFlags::RDWR, 0).map(drop));
        answers.push(format!("{name}, open: {opened:?}"));
        let chmod = outcome(rustix::fs::chmod(&path, Mode::from_raw_mode(0o600)));
        answers.push(format!("{name}, chmod: {chmod:?}"));
        answers.push(format!("{name}, in upper: {}", layers.upper().join(name).exists()));
        answers.push(format!("{name}, left: {:?}", leftovers(layers.work())));
        let contents =
            fs::read(&path).map(|bytes| first_difference(&bytes, 0).is_none() || bytes == b"contents");
        answers.push(format!(
            "{name}, read: {contents:?}, unlink: {:?}",
            fs::remove_file(&path).map_err(|e| e.kind())
        ));
    }
    drop(mount);
    answers
}

#[test]
fn copying_up_without_room_fails_and_leaves_nothing() {
    if can_run() {
        let (kernel, tested) = (without_room(Engine::Kernel), without_room(Engine::tested()));
        assert!(
            kernel.iter().any(|line| line.contains("attributes, open: Err")),
            "there was room: {kernel:?}"
        );
        assert_eq!(kernel, tested);
    }
}

#[test]
fn times_before_1970_are_kept() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    write_lower(&layers, "d/file", b"");
    let times = |seconds| Timestamps {
        last_access: Timespec { tv_sec: seconds, tv_nsec: 999_999_999 },
        last_modification: Timespec { tv_sec: seconds - 1, tv_nsec: 1 },
    };
    for name in ["d/file", "d"] {
        rustix::fs::utimensat(CWD, layers.lower().join(name), &times(-2_000_000_000), AtFlags::empty())
            .expect("utimensat");
    }
    let mount = layers.mount();
    let modified = |name: &str| {
        let meta = fs::metadata(mount.at(name)).expect("stat");
        (meta.mtime(), meta.mtime_nsec())
    };
    rustix::fs::chmod(mount.at("d/file"), Mode::from_raw_mode(0o600)).expect("chmod");
    assert_eq!([modified("d/file"), modified("d")], [(-2_000_000_001, 1); 2]);
    rustix::fs::utimensat(CWD, mount.at("d/file"), &times(-1), AtFlags::empty()).expect("utimensat");
    assert_eq!(modified("d/file"), (-2, 1));
}

#[test]
fn names_of_255_bytes_lead_on() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    let long = "n".repeat(255);
    for name in ["in", "moved", "removed"] {
        write_lower(&layers, &format!("{long}/{name}/{long}"), b"contents");
    }
    let mount = layers.mount();
    let inner = mount.at(&long);
    assert_eq!(fs::read(inner.join("in").join(&long)).expect("read"), b"contents");
    fs::write(inner.join("in").join(&long), b"changed").expect("write");
    fs::rename(inner.join("moved").join(&long), inner.join("m".repeat(255))).expect("rename");
    fs::remove_file(inner.join("removed").join(&long)).expect("unlink");
    fs::remove_dir(inner.join("removed")).expect("rmdir");
    fs::create_dir(inner.join("x".repeat(255))).expect("mkdir");
    assert_eq!(fs::read(inner.join("in").join(&long)).expect("read"), b"changed");
    assert_eq!(fs::read(inner.join("m".repeat(255))).expect("read"), b"contents");
    for path in [mount.at("n".repeat(256)), mount.at("n".repeat(256)).join("x")] {
        let e = fs::metadata(&path).expect_err("a name too long");
        assert_eq!(Errno::from_io_error(&e), Some(Errno::NAMETOOLONG));
    }
    assert_eq!(leftovers(layers.work()), Vec::<PathBuf>::new());
}

/// Names that are no UTF-8, which fuse-backend-rs changes.
#[test]
fn names_are_bytes() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe:,\\\n");
    fs::write(layers.lower().join(name), b"contents").expect("write");
    // Opening copies up.
    let mount = layers.mount_with("open=handle");
    open(&mount.at(name), OFlags::RDWR, 0).expect("copying up");
    assert_eq!(fs::read(layers.upper().join(name)).expect("read"), b"contents");
    fs::remove_file(mount.at(name)).expect("unlink");
    assert_eq!(fs::read_dir(mount.point()).expect("readdir").count(), 0);
}
