//! A read-only layer cannot be written, by our code nor past it.

use std::fs::{FileTimes, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use splicefs_core::testkit::execute;
use splicefs_core::{
    Backend, Cookie, CreateFlags, Errno, Ioctl, Layer, Make, OpenFlags, RenameFlags, Result, SetAttr, Span,
    WriteMode, XattrFlags, sys,
};
use splicefs_passthrough::{Node, Passthrough};

use crate::common::{DAEMON, attr, errno, find, name, privileged, read_only, set};

/// The thread has no right that root has over an ordinary user, but the files are still its own.
pub(crate) fn give_up_rights() {
    let mut caps = rustix::thread::capabilities(None).unwrap();
    caps.effective = rustix::thread::CapabilitySet::empty();
    rustix::thread::set_capabilities(None, caps).unwrap();
}

/// A directory with a file, a directory and a link in it.
fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), b"contents").unwrap();
    std::fs::create_dir(source.path().join("dir")).unwrap();
    symlink("file", source.path().join("link")).unwrap();
    source
}

/// Runs `test` on the directory as a read-only layer, once as this process has it and once as an ordinary user has it.
fn both_ways(test: impl Fn(&Passthrough, &Path) + Sync) {
    let source = source();
    if privileged() {
        let fs = read_only(&set(), source.path());
        assert!(fs.is_sealed());
        test(&fs, source.path());
    }
    std::thread::scope(|scope| {
        let unprivileged = || {
            give_up_rights();
            let fs = read_only(&set(), source.path());
            assert!(!fs.is_sealed());
            test(&fs, source.path());
        };
        // The scope would panic with a message of its own.
        scope.spawn(unprivileged).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn open(fs: &Passthrough, node: &Arc<Node>, flags: i32) -> Result<splicefs_passthrough::File> {
    Ok(fs.open(&DAEMON, node, OpenFlags(flags))?.file)
}

#[test]
fn every_change_is_refused() {
    both_ways(|fs, path| {
        let root = fs.root();
        let (file, dir) = (find(fs, &root, "file"), find(fs, &root, "dir"));
        let new = name("new");
        let mut refused = Vec::new();
        let mut refuses = |what: &str, result: Result<()>| refused.push((what.to_owned(), errno(result)));
        refuses("setattr", fs.setattr(&DAEMON, &file, None, &SetAttr::default()).map(drop));
        refuses("mkdir", fs.make(&DAEMON, &root, &new, Make::Directory(0o755)).map(drop));
        refuses("mknod", fs.make(&DAEMON, &root, &new, Make::Node(libc::S_IFREG | 0o644, 0)).map(drop));
        refuses("symlink", fs.make(&DAEMON, &root, &new, Make::Symlink(b"x")).map(drop));
        refuses("link", fs.link(&file, &root, &new).map(drop));
        refuses("unlink", fs.unlink(&root, &name("file")));
        refuses("rmdir", fs.rmdir(&root, &name("dir")));
        for flags in [0, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT] {
            let to = (&root, &name("link"));
            refuses("rename", fs.rename(&DAEMON, (&root, &name("file")), to, RenameFlags(flags)));
        }
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
            refuses("open", open(fs, &file, flags).map(drop));
        }
        for flags in [libc::O_RDONLY, libc::O_RDWR] {
            let flags = CreateFlags { open: OpenFlags(flags), exclusive: false };
            refuses("create", fs.create(&DAEMON, &root, &new, 0o644, flags).map(drop));
            refuses("tmpfile", fs.tmpfile(&DAEMON, &dir, 0o644, flags).map(drop));
        }
        let opened = open(fs, &file, libc::O_RDONLY).unwrap();
        refuses("write", fs.write(&DAEMON, &opened, 0, b"x", WriteMode::default()).map(drop));
        refuses("fallocate", fs.fallocate(&DAEMON, &opened, 0, 0, 1));
        refuses("copy", fs.copy_range(&DAEMON, (&opened, 0), (&opened, 4), 4).map(drop));
        let flags = XattrFlags { flags: 0, kill_sgid: false };
        refuses("setxattr", fs.setxattr(&DAEMON, &file, c"user.x", b"x", flags));
        refuses("removexattr", fs.removexattr(&file, c"user.x"));
        let stream = fs.opendir(&dir).unwrap();
        for command in [0x4008_6602, 0x401c_5820] {
            let request = Ioctl { command, input: &[0; 28], output_len: 0 };
            refuses("ioctl", fs.ioctl_file(&opened, request).map(drop));
            refuses("ioctl", fs.ioctl_dir(&stream, request).map(drop));
        }
        for (what, errno) in refused {
            assert_eq!(errno, Errno::EROFS, "{what}");
        }
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"contents");
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 3);
    });
}

#[test]
fn the_kernel_refuses_what_our_code_would_let_pass() {
    if !privileged() {
        return;
    }
    let source = source();
    let fs = read_only(&set(), source.path());
    let file = open(&fs, &find(&fs, &fs.root(), "file"), libc::O_RDONLY).unwrap();
    let fd = fs.descriptor(&file).unwrap();
    assert_eq!(errno(sys::reopen(fd, OFlags::WRONLY)), Errno::EROFS);
    assert_eq!(rustix::fs::fchmod(fd, rustix::fs::Mode::RWXU), Err(rustix::io::Errno::ROFS));
    OpenOptions::new().write(true).open(source.path().join("file")).unwrap();
}

/// Access times that relatime would bring up to date.
fn make_old(path: &Path) -> SystemTime {
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    std::fs::File::open(path).unwrap().set_times(FileTimes::new().set_accessed(old)).unwrap();
    old
}

#[test]
fn reading_leaves_access_times_alone() {
    both_ways(|fs, path| {
        std::fs::write(path.join("dir/entry"), b"").unwrap();
        let old = [make_old(&path.join("file")), make_old(&path.join("dir"))];
        let root = fs.root();
        let file = open(fs, &find(fs, &root, "file"), libc::O_RDONLY).unwrap();
        let mut bytes = Vec::new();
        fs.plan_read(&file, Span { offset: 0, len: 100 }, &mut |plan| bytes = execute(plan)).unwrap();
        assert_eq!(bytes, b"contents");
        let dir = fs.opendir(&find(fs, &root, "dir")).unwrap();
        let mut names = 0;
        let mut count = |_: splicefs_core::DirEntry<'_>| {
            names += 1;
            ControlFlow::Continue(())
        };
        fs.read_dir(&dir, Cookie::START, 4096, &mut count).unwrap();
        assert_eq!(names, 3);
        for (name, old) in ["file", "dir"].iter().zip(old) {
            assert_eq!(std::fs::metadata(path.join(name)).unwrap().accessed().unwrap(), old, "{name}");
        }
    });
}

#[test]
fn a_sealed_layer_leaves_the_access_times_of_links_alone() {
    if !privileged() {
        return;
    }
    let source = source();
    let fs = read_only(&set(), source.path());
    let link = find(&fs, &fs.root(), "link");
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 2_000_000, tv_nsec: 0 },
    };
    let path = source.path().join("link");
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(fs.readlink(&DAEMON, &link).unwrap(), b"file");
    assert_eq!(attr(&fs, &link).atime.sec, 1_000_000);
}

#[test]
fn many_layers_take_one_descriptor_each() {
    const LAYERS: usize = 500;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|limit| limit < 2 * LAYERS as u64) {
        eprintln!("not run: too few descriptors");
        return;
    }
    let source = source();
    let set = set();
    let layers: Vec<_> = (0..LAYERS).map(|_| read_only(&set, source.path())).collect();
    for layer in &layers {
        find(layer, &layer.root(), "file");
    }
    let ino = source.path().metadata().unwrap().ino();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fd.ok());
    let of_the_root =
        descriptors.filter(|fd| std::fs::metadata(fd.path()).is_ok_and(|m| m.ino() == ino)).count();
    // Without mounts of their own, layers of one directory are one tree.
    assert_eq!(of_the_root, if privileged() { LAYERS } else { 1 });
}
