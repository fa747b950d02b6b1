//! Flags of chattr(1) in lower layers, over copy-up, and on disk, against the kernel's overlayfs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, IFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW,
    XattrFlags,
};
use rustix::io::Errno;

use super::layers::{Ground, Layers};
use super::mounted::{Engine, Overlay};
use crate::harness::{Need, ready};
use crate::posix::script::open;

/// What is looked at: `FS_IOC_GETFLAGS` has more, which depends on the file system.
const SHOWN: [IFlags; 5] = [IFlags::APPEND, IFlags::IMMUTABLE, IFlags::NOATIME, IFlags::SYNC, IFlags::NODUMP];

fn flags(path: &Path) -> Result<IFlags, Errno> {
    let all = rustix::fs::ioctl_getflags(open(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?)?;
    Ok(SHOWN.into_iter().filter(|flag| all.contains(*flag)).collect())
}

fn set(path: &Path, on: IFlags, off: IFlags) -> Result<(), Errno> {
    let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
    let old = rustix::fs::ioctl_getflags(&file)?;
    rustix::fs::ioctl_setflags(&file, (old - off) | on)
}

/// Takes every flag that protects off what is below a directory, so that it can be removed.
struct Unprotected<'a>(&'a Path);

impl Drop for Unprotected<'_> {
    fn drop(&mut self) {
        fn walk(path: &Path) {
            let Ok(meta) = fs::symlink_metadata(path) else { return };
            if !meta.is_file() && !meta.is_dir() {
                return;
            }
            if let Err(e) = set(path, IFlags::empty(), IFlags::IMMUTABLE | IFlags::APPEND) {
                eprintln!("chattr -ia {path:?}: {e}");
            }
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                walk(&entry.path());
            }
        }
        walk(self.0);
    }
}

const KINDS: [(&str, IFlags); 5] = [
    ("i", IFlags::IMMUTABLE),
    ("a", IFlags::APPEND),
    ("A", IFlags::NOATIME),
    ("S", IFlags::SYNC),
    ("aA", IFlags::APPEND.union(IFlags::NOATIME)),
];

/// Files `file-X` and directories `dir-X`, which hold `kept`, each with a flag.
fn make(root: &Path) {
    for (letter, flag) in KINDS {
        let (file, dir) = (root.join(format!("file-{letter}")), root.join(format!("dir-{letter}")));
        fs::write(&file, b"contents").expect("write");
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("kept"), b"contents").expect("write");
        for path in [&file, &dir] {
            set(path, flag, IFlags::empty()).expect("chattr");
        }
    }
    for name in ["spare", "plain"] {
        fs::write(root.join(name), b"spare").expect("write");
    }
}

fn layers() -> Layers {
    let layers = Layers::new(Ground::Ext4(64), 1).options("redirect_dir=on");
    make(layers.lower());
    layers
}

fn os<T>(result: std::io::Result<T>) -> Result<(), Errno> {
    result.map(drop).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Everything that a flag may forbid, on one file or directory, and what was answered.
fn attempts(root: &Path, name: &str, said: &mut Vec<String>) {
    let path = root.join(name);
    let mut note = |what: &str, answer: Result<(), Errno>| said.push(format!("{name}: {what}: {answer:?}"));
    let is_file = path.is_file();
    if is_file {
        note("open", open(&path, OFlags::WRONLY, 0).map(drop));
        note("open, truncating", open(&path, OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC, 0).map(drop));
        note("truncate", os(File::options().append(true).open(&path).and_then(|file| file.set_len(3))));
        match open(&path, OFlags::WRONLY | OFlags::APPEND, 0) {
            Err(e) => note("append", Err(e)),
            Ok(file) => {
                note("append", os(file.write_all_at(b"+", 0)));
                let keep = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 16);
                note("fallocate, keeping the size", keep);
                note("fallocate", rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 16));
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                note("punch", rustix::fs::fallocate(&file, punch, 0, 1 << 12));
            }
        }
    }
    note("chmod", rustix::fs::chmod(&path, Mode::RWXU));
    note("chown", os(chown(&path, Some(1), Some(1))));
    let time = |nsec| Timestamps {
        last_access: Timespec { tv_sec: 7, tv_nsec: nsec },
        last_modification: Timespec { tv_sec: 7, tv_nsec: nsec },
    };
    note("touch", rustix::fs::utimensat(CWD, &path, &time(UTIME_NOW), AtFlags::empty()));
    note("times", rustix::fs::utimensat(CWD, &path, &time(0), AtFlags::empty()));
    note("setxattr", rustix::fs::setxattr(&path, "user.x", b"y", XattrFlags::empty()));
    note("removexattr", rustix::fs::removexattr(&path, "user.x"));
    if is_file {
        note("link", rustix::fs::link(&path, root.join("linked")));
        note("unlink of that", rustix::fs::unlink(root.join("linked")));
        note("rename over", rustix::fs::rename(root.join("spare"), &path));
        fs::write(root.join("spare"), b"spare").expect("write");
        let both = rustix::fs::renameat_with(CWD, root.join("spare"), CWD, &path, RenameFlags::EXCHANGE);
        note("exchange", both);
    } else {
        note("create inside", open(&path.join("new"), OFlags::CREATE | OFlags::WRONLY, 0o644).map(drop));
        note("mkdir inside", rustix::fs::mkdir(path.join("sub"), Mode::RWXU));
        note("link inside", rustix::fs::link(root.join("plain"), path.join("linked")));
        note("O_TMPFILE", open(&path, OFlags::TMPFILE | OFlags::RDWR, 0o600).map(drop));
        note("write inside", os(File::options().append(true).open(path.join("kept")).map(drop)));
        note("chmod inside", rustix::fs::chmod(path.join("kept"), Mode::RWXU));
        note("rename inside", rustix::fs::rename(path.join("kept"), path.join("renamed")));
        note("rename out", rustix::fs::rename(path.join("kept"), root.join("out")));
        note("rename in", rustix::fs::rename(root.join("plain"), path.join("in")));
        fs::write(root.join("plain"), b"plain").expect("write");
        note("remove inside", rustix::fs::unlink(path.join("linked")));
    }
    note("rename", rustix::fs::rename(&path, root.join("renamed")));
    note("and back", rustix::fs::rename(root.join("renamed"), &path));
    said.push(format!("{name}: {:?}", flags(&path)));
}

fn all_flags(root: &Path) -> Vec<String> {
    let names = KINDS.iter().flat_map(|(letter, _)| [format!("file-{letter}"), format!("dir-{letter}")]);
    names.map(|name| format!("{name}: {:?}", flags(&root.join(&name)))).collect()
}

/// What an engine answers on flagged files of a lower layer, before they are copied up and after; then its upper layer.
fn answers(engine: Engine, twice: bool) -> (Vec<String>, Layers) {
    let layers = layers();
    let mut said = Vec::new();
    {
        let _lower = Unprotected(layers.lower());
        let mount = layers.mount_by(engine, "open=handle");
        said.extend(all_flags(mount.point()));
        for (letter, _) in KINDS {
            for kind in ["file", "dir"] {
                let name = format!("{kind}-{letter}");
                attempts(mount.point(), &name, &mut said);
                if twice {
                    attempts(mount.point(), &name, &mut said);
                }
            }
        }
        drop(mount);
        layers.unchanged().expect("the lower layer");
        layers.unseal();
    }
    (said, layers)
}

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::LoopDevice])
}

#[test]
fn flags_of_lower_files_are_obeyed_as_by_the_kernel() {
    if can_run() {
        let (kernel, _kernels) = answers(Engine::Kernel, true);
        let (ours, _ours) = answers(Engine::Splicefs, true);
        assert!(kernel.iter().any(|line| line.starts_with("file-i: chmod: Err")), "{kernel:#?}");
        assert!(kernel.iter().any(|line| line == "file-a: append: Ok(())"), "{kernel:#?}");
        let differ: Vec<_> = kernel.iter().zip(&ours).filter(|(kernel, ours)| kernel != ours).collect();
        assert!(differ.is_empty(), "the kernel's and ours: {differ:#?}");
        assert_eq!(ours.len(), kernel.len());
    }
}

/// Sets and clears flags in a mount.
fn change(mount: &Overlay) {
    let at = |name: &str| mount.at(name);
    set(&at("plain"), IFlags::IMMUTABLE, IFlags::empty()).expect("chattr +i");
    set(&at("spare"), IFlags::APPEND | IFlags::NODUMP, IFlags::empty()).expect("chattr +ad");
    set(&at("file-i"), IFlags::APPEND, IFlags::IMMUTABLE).expect("chattr +a-i");
    set(&at("dir-i"), IFlags::empty(), IFlags::IMMUTABLE).expect("chattr -i");
    set(&at("dir-a"), IFlags::IMMUTABLE, IFlags::empty()).expect("chattr +i");
    fs::write(at("dir-i/new"), b"").expect("create in what was immutable");
    File::options()
        .append(true)
        .open(at("file-a"))
        .and_then(|file| file.write_all_at(b"+", 0))
        .expect("append");
}

/// What either writes, the other shows and obeys: `trusted.overlay.protattr`.
#[test]
fn flags_are_the_same_on_disk() {
    if !can_run() {
        return;
    }
    let names = ["plain", "spare", "file-i", "dir-i", "dir-a", "file-a", "dir-A", "file-S"];
    for (writer, reader) in [(Engine::Splicefs, Engine::Kernel), (Engine::Kernel, Engine::Splicefs)] {
        let layers = layers();
        let _lower = Unprotected(layers.lower());
        let look = |mount: &Overlay| names.map(|name| format!("{name}: {:?}", flags(&mount.at(name))));
        let written = {
            let mount = layers.mount_by(writer, "");
            change(&mount);
            look(&mount)
        };
        assert!(!flags(&layers.upper().join("plain")).expect("flags").contains(IFlags::IMMUTABLE));
        let mark = |name: &str| {
            let mut value = [0; 32];
            let length =
                rustix::fs::getxattr(layers.upper().join(name), "trusted.overlay.protattr", &mut value[..]);
            length.map(|length| String::from_utf8_lossy(&value[..length]).into_owned())
        };
        assert_eq!(
            [mark("plain"), mark("spare"), mark("dir-a"), mark("dir-i")],
            [Ok("i".into()), Ok("a".into()), Ok("ai".into()), Err(Errno::NODATA)],
            "{writer:?}"
        );
        let mount = layers.mount_by(reader, "");
        assert_eq!(look(&mount), written, "{writer:?} wrote, {reader:?} reads");
        let chmod = |name| fs::set_permissions(mount.at(name), fs::Permissions::from_mode(0o600));
        assert_eq!(os(chmod("plain")), Err(Errno::PERM), "{reader:?}");
        assert_eq!(os(fs::remove_file(mount.at("spare"))), Err(Errno::PERM), "{reader:?}");
        assert_eq!(os(File::create(mount.at("dir-a/new"))), Err(Errno::PERM), "{reader:?}");
        layers.unseal();
    }
}
