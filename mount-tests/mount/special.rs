//! Sources that are no ordinary directories: procfs and sysfs, block devices, a source that contains its own mount
//! point, more files than descriptors.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::harness::{
    Mount, Need, Watchdog, fill, first_difference, long_run, ready, scratch, shell, splicefs_binary,
};
use crate::posix::script::{open, os};

fn mirror(source: &str) -> Option<Mount> {
    let ready = ready(&[Need::Fuse, Need::Root]);
    ready.then(|| Mount::builder().mirroring(source).options("allow_other").start())
}

/// Files below `root` whose contents do not change between two reads.
const STEADY: [&str; 8] = [
    "version",
    "cmdline",
    "filesystems",
    "devices",
    "sys/kernel/ostype",
    "sys/kernel/osrelease",
    "sys/fs/pipe-max-size",
    "sys/kernel/cap_last_cap",
];

#[test]
fn proc_files_read_as_natively() {
    let Some(mount) = mirror("/proc") else { return };
    for name in STEADY {
        let native = fs::read(Path::new("/proc").join(name)).expect("reading /proc");
        assert!(!native.is_empty(), "{name}");
        let path = mount.point().join(name);
        assert_eq!(fs::read(&path).expect("read"), native, "{name}");
        let cat = Command::new("cat").arg(&path).output().expect("running cat");
        assert_eq!(cat.stdout, native, "cat {name}");
        let source = mount.source().join(name);
        assert_eq!(byte_by_byte(&path), byte_by_byte(&source), "{name} byte by byte");
    }
}

/// A file as readers with small buffers get it. Some files of procfs end after the first read, natively too.
fn byte_by_byte(path: &Path) -> Vec<u8> {
    let file = File::open(path).expect("open");
    let mut bytes = Vec::new();
    let mut byte = [0];
    while file.read_at(&mut byte, bytes.len() as u64).expect("read") == 1 {
        bytes.push(byte[0]);
    }
    bytes
}

/// Files of many pages that say their size is 0.
#[test]
fn long_files_without_a_size_are_read_whole() {
    let Some(mount) = mirror("/proc") else { return };
    for name in ["kallsyms", "sys/../slabinfo", "zoneinfo", "self/../1/smaps", "modules", "interrupts"] {
        let Ok(native) = fs::read(Path::new("/proc").join(name)) else { continue };
        let name = name.replace("sys/../", "").replace("self/../", "");
        let mounted = fs::read(mount.point().join(&name)).expect("read");
        if name == "kallsyms" {
            assert!(mounted == native, "{name}: {} bytes, natively {}", mounted.len(), native.len());
        } else {
            // Counters move; the length stays about the same.
            assert!(
                mounted.len().abs_diff(native.len()) * 4 <= native.len(),
                "{name}: {} bytes",
                mounted.len()
            );
        }
    }
}

/// What `grep -r` prints for a tree, as lines without the root's name.
fn grep(root: &Path, tree: &str) -> BTreeSet<String> {
    let mut command = Command::new("grep");
    // Some files refuse to be read: grep says so on stderr and goes on, natively too.
    let output =
        command.args(["-r", "-s", "-a", ".", tree]).current_dir(root).output().expect("running grep");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Lines that two native runs around the mounted one agree on, and that the mounted one lacks.
fn missing_lines(mount: &Mount, tree: &str) -> Vec<String> {
    let before = grep(mount.source(), tree);
    let mounted = grep(mount.point(), tree);
    let after = grep(mount.source(), tree);
    let steady: Vec<_> = before.intersection(&after).collect();
    assert!(steady.len() > 3, "{tree}: only {} steady lines", steady.len());
    let added = mounted.len().abs_diff(before.len());
    assert!(added * 10 <= before.len() + 50, "{tree}: {} lines, natively {}", mounted.len(), before.len());
    steady.into_iter().filter(|line| !mounted.contains(*line)).take(5).cloned().collect()
}

/// A counter may show one number before and after and another one in between, but hardly each time.
fn grep_agrees(mount: &Mount, tree: &str) {
    let missing: Vec<_> =
        (0..3).map(|_| missing_lines(mount, tree)).take_while(|lines| !lines.is_empty()).collect();
    assert!(missing.len() < 3, "{tree}: steady lines are missing: {missing:?}");
}

#[test]
fn grep_over_proc_agrees() {
    let Some(mount) = mirror("/proc") else { return };
    let _watchdog = Watchdog::new("grep -r over /proc/sys", Duration::from_secs(120));
    for tree in ["sys/kernel", "sys/fs", "sys/net/core"] {
        grep_agrees(&mount, tree);
    }
}

#[test]
fn grep_over_sys_agrees() {
    let Some(mount) = mirror("/sys") else { return };
    let _watchdog = Watchdog::new("grep -r over /sys", Duration::from_secs(120));
    for tree in ["kernel/mm", "devices/system/cpu/cpu0", "module/fuse"] {
        grep_agrees(&mount, tree);
    }
}

/// Mounts over the source itself, in a mount namespace of its own, and prints what is read there.
fn over_itself(tree: &str, script: &str) -> Option<String> {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare"), Need::Program("setpriv")]) {
        return None;
    }
    // The daemon dies with the shell, whatever happens to the shell, and the namespace with both.
    let whole = format!(
        "# The new namespace holds copies of the other tests' mounts, which would keep those busy.
         awk '$0 ~ / - fuse/ {{ print $5 }}' /proc/self/mountinfo | while read -r other; do umount -l \"$other\"; done
         setpriv --pdeathsig KILL \"$1\" passthrough {tree} {tree} -f -o allow_other >&2 & pid=$!
         until [ \"$(stat -f -c %T {tree})\" = fuse ] || [ \"$(stat -f -c %T {tree})\" = fuseblk ]; do
             kill -0 $pid || exit 1
             sleep 0.02
         done
         {script}
         \"$1\" unmount {tree} && wait $pid"
    );
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "30", "unshare", "-m", "--propagation", "private", "sh", "-uc", &whole, "sh"]);
    let output = command.arg(splicefs_binary()).output().expect("running unshare");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mounted over {tree} itself: {}\n{said}", output.status);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn mounted_over_proc_itself() {
    let script = "cat /proc/version /proc/filesystems && grep -r -s -a . /proc/sys/kernel/pty /proc/sys/fs/mqueue || :";
    let Some(mounted) = over_itself("/proc", script) else { return };
    assert_eq!(mounted, shell(script, Path::new("/")));
}

#[test]
fn mounted_over_sys_itself() {
    let script =
        "cat /sys/kernel/mm/transparent_hugepage/enabled; grep -r -s -a . /sys/module/fuse/parameters || :";
    let Some(mounted) = over_itself("/sys", script) else { return };
    assert_eq!(mounted, shell(script, Path::new("/")));
}

/// A loop device over an image, detached at the end.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(image: &Path) -> Self {
        let name = shell("losetup --find --show \"$1\"", image);
        Self(name.trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        shell("losetup --detach \"$1\"", &self.0);
    }
}

#[test]
fn block_devices_can_be_shown_as_files() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::LoopDevice, Need::Program("losetup")]) {
        return;
    }
    const SIZE: usize = (8 << 20) + 4096;
    let directory = scratch();
    let image = directory.path().join("image");
    fs::write(&image, fill(0, SIZE)).expect("write");
    let device = LoopDevice::new(&image);
    let number = fs::metadata(&device.0).expect("stat").rdev();
    for (options, shown) in [("block_devices_as_files", true), ("", false)] {
        let builder = Mount::builder().options("allow_other,dev").options(options);
        let node = builder.source().join("disk");
        rustix::fs::mknodat(CWD, node, FileType::BlockDevice, Mode::RUSR, number).expect("mknod");
        let mount = builder.start();
        let path = mount.point().join("disk");
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!(meta.file_type().is_file(), shown, "with options `{options}`");
        assert_eq!(meta.file_type().is_block_device(), !shown, "with options `{options}`");
        if !shown {
            assert_eq!(meta.rdev(), number);
            continue;
        }
        assert_eq!(meta.len(), SIZE as u64);
        assert_eq!(meta.mode() & 0o222, 0, "read-only");
        for flags in [OFlags::WRONLY, OFlags::RDWR] {
            assert!(os(open(&path, flags, 0).map_err(Into::into)).is_err(), "it must not be writable");
        }
        let contents = fs::read(&path).expect("read");
        assert_eq!((contents.len(), first_difference(&contents, 0)), (SIZE, None));
        assert_eq!(fs::read(&image).expect("read"), contents, "the device is as it was");
    }
}

fn names_below(root: &Path, skip: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("readdir") {
            let path = entry.expect("readdir").path();
            let relative = path.strip_prefix(root).expect("below the root").to_owned();
            if path.symlink_metadata().expect("lstat").is_dir() && relative != skip {
                waiting.push(path);
            }
            found.insert(relative);
        }
    }
    found
}

#[test]
fn a_mount_point_inside_the_source_does_not_recurse() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let _watchdog = Watchdog::new("a mount point inside its source", Duration::from_secs(60));
    let builder = Mount::builder().options("allow_other");
    fs::write(builder.source().join("file"), b"x").expect("write");
    let whole = builder.dir().to_owned();
    let mount = builder.mirroring(&whole).start();
    let expected = names_below(&whole, Path::new("mnt"));
    assert_eq!(names_below(mount.point(), Path::new("")), expected);
    // Inside, the mount point is the plain directory it covers: empty, and it can be used.
    let inner = mount.point().join("mnt");
    assert_eq!(fs::read_dir(&inner).expect("readdir").count(), 0);
    fs::write(inner.join("covered"), b"below the mount").expect("write");
    assert_eq!(fs::read(inner.join("covered")).expect("read"), b"below the mount");
    fs::remove_file(inner.join("covered")).expect("unlink");
}

/// A walk over many more files than the daemon may have open, twice, while some are held open.
#[test]
fn more_files_than_descriptors() {
    if !ready(&[Need::Fuse, Need::Root, Need::Program("prlimit")]) {
        return;
    }
    const LIMIT: u64 = 1024;
    let (directories, files) = if long_run() { (300, 1000) } else { (100, 300) };
    let builder = Mount::builder().options("allow_other").descriptor_limit(LIMIT);
    let name = |directory: u64, file: u64| format!("dir{directory:03}/file{file:04}");
    for directory in 0..directories {
        fs::create_dir(builder.source().join(format!("dir{directory:03}"))).expect("mkdir");
        for file in 0..files {
            let contents = (directory * files + file).to_string();
            fs::write(builder.source().join(name(directory, file)), contents).expect("write");
        }
    }
    let mount = builder.start();
    let held: Vec<File> = (0..100)
        .map(|file| File::open(mount.point().join(name(0, file))).expect("opening a file to hold"))
        .collect();
    for round in 0..2 {
        let mut inodes = BTreeSet::new();
        for directory in 0..directories {
            let path = mount.point().join(format!("dir{directory:03}"));
            let entries = fs::read_dir(path).expect("readdir").map(|entry| entry.expect("readdir"));
            inodes.extend(entries.map(|entry| entry.metadata().expect("stat").ino()));
        }
        assert_eq!(inodes.len() as u64, directories * files, "distinct inodes in round {round}");
        assert!((mount.open_files() as u64) < LIMIT, "the daemon has {} files open", mount.open_files());
    }
    // After the walk each file is still the one it was, the first as well as the last.
    for directory in (0..directories).step_by(7) {
        for file in (0..files).step_by(13) {
            let path = mount.point().join(name(directory, file));
            let contents = fs::read_to_string(&path).expect("read");
            assert_eq!(contents, (directory * files + file).to_string(), "{path:?}");
        }
    }
    for (number, file) in held.iter().enumerate() {
        let mut buffer = [0; 16];
        let length = file.read_at(&mut buffer, 0).expect("reading a held file");
        assert_eq!(buffer[..length], *number.to_string().as_bytes());
    }
    fs::rename(mount.point().join("dir001"), mount.point().join("moved")).expect("rename");
    let path = mount.point().join("moved/file0007");
    assert_eq!(fs::read_to_string(path).expect("read"), (files + 7).to_string());
}

/// A source that changes under the daemon never leads it out of the source.
#[test]
fn links_swapped_in_below_do_not_lead_out() {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let builder = Mount::builder().options("allow_other,entry_timeout=0,attr_timeout=0");
    fs::write(builder.dir().join("secret"), b"secret").expect("write");
    fs::create_dir(builder.source().join("dir")).expect("mkdir");
    fs::write(builder.source().join("dir/secret"), b"harmless").expect("write");
    let mount = builder.start();
    let path = mount.point().join("dir/secret");
    assert_eq!(fs::read(&path).expect("read"), b"harmless");
    fs::rename(mount.source().join("dir"), mount.source().join("old")).expect("rename");
    // Absolute, so that the kernel's own walk above the mount leads elsewhere than the daemon's would.
    std::os::unix::fs::symlink(mount.dir(), mount.source().join("dir")).expect("symlink");
    let link = fs::symlink_metadata(mount.point().join("dir")).expect("lstat");
    assert!(link.file_type().is_symlink(), "the link is shown as a link, and the caller's kernel follows it");
    assert_eq!(fs::read(mount.point().join("old/secret")).expect("read"), b"harmless");
}
