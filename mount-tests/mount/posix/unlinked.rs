//! Files and directories that are open and have no name any more.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::process::{Gid, Uid};

use super::differential;
use super::script::{Script, open, os, summary};
use crate::harness::fill;

/// The time of modification; what was modified just now was so a moment later in the mount than natively.
fn time(meta: &fs::Metadata) -> String {
    let modified = meta.modified().expect("a time");
    match modified.elapsed() {
        Ok(ago) if ago > Duration::from_secs(3600) => meta.mtime().to_string(),
        _ => "now".to_owned(),
    }
}

fn note_file(script: &mut Script, step: &str, file: &fs::File) {
    let meta = file.metadata().map_err(|e| e.raw_os_error());
    script.note(
        step,
        meta.map(|m| (m.nlink(), m.len(), format!("{:o}", m.mode()), m.uid(), m.gid(), time(&m))),
    );
    let mut buffer = vec![0; 65536];
    let read = os(file.read_at(&mut buffer, 0)).map(|length| summary(&buffer[..length]));
    script.note(format_args!("{step}: contents"), read);
}

fn use_unlinked(script: &mut Script, file: &fs::File) {
    note_file(script, "unlinked", file);
    script.note("write", os(file.write_at(b"written after", 5)));
    note_file(script, "written", file);
    script.outcome("truncate", os(file.set_len(9000)));
    note_file(script, "truncated", file);
    script.outcome("fchmod", rustix::fs::fchmod(file, Mode::from_raw_mode(0o4640)));
    script.outcome("fchown", rustix::fs::fchown(file, Some(Uid::from_raw(4001)), Some(Gid::from_raw(4002))));
    let stamp = |seconds| Timespec { tv_sec: seconds, tv_nsec: 5 };
    let times = Timestamps { last_access: stamp(-5), last_modification: stamp(-6) };
    script.outcome("futimens", rustix::fs::futimens(file, &times));
    note_file(script, "changed", file);
    script.outcome("fsetxattr", rustix::fs::fsetxattr(file, "user.after", b"unlink", XattrFlags::empty()));
    let mut value = [0; 32];
    let length = rustix::fs::fgetxattr(file, "user.after", &mut value[..]);
    script.note("fgetxattr", length.map(|length| value[..length].to_vec()));
    script.outcome("fallocate", rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, 100_000));
    script.outcome("fsync", rustix::fs::fsync(file));
    script.note("seek data", rustix::fs::seek(file, SeekFrom::Data(0)));
    let flags = OFlags::RDWR;
    let again = open(format!("/proc/thread-self/fd/{}", file.as_raw_fd()).as_ref(), flags, 0);
    if let Some(again) = script.outcome("reopen", again) {
        script.note("write through the second", os(again.write_at(b"second", 0)));
        note_file(script, "reopened", &again);
    }
    note_file(script, "at the end", file);
}

#[test]
fn unlinked_files_live_while_open() {
    differential(|script| {
        let path = script.file("file", &fill(0, 20_000));
        let file = open(&path, OFlags::RDWR, 0).expect("open");
        let second = open(&path, OFlags::RDONLY, 0).expect("open");
        script.outcome("unlink", rustix::fs::unlink(&path));
        use_unlinked(script, &file);
        // A new file of the same name is another file.
        script.file("file", b"the new one");
        note_file(script, "the old one", &second);
        script.contents("file");
        drop(file);
        note_file(script, "the last descriptor", &second);
    });
}

#[test]
fn created_and_unlinked_at_once() {
    differential(|script| {
        let path = script.at("temporary");
        let file = open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600).expect("create");
        script.outcome("unlink", rustix::fs::unlink(&path));
        script.note("write", os(file.write_at(&fill(0, 10_000), 0)));
        use_unlinked(script, &file);
    });
}

#[test]
fn overwritten_files_live_while_open() {
    differential(|script| {
        let path = script.file("file", &fill(0, 20_000));
        let file = open(&path, OFlags::RDWR, 0).expect("open");
        let other = script.file("other", b"other");
        script.outcome("rename over it", rustix::fs::rename(other, &path));
        use_unlinked(script, &file);
        script.contents("file");
    });
}

#[test]
fn removed_directories_are_empty() {
    differential(|script| {
        let path = script.directory("dir", 0o755);
        let held = open(&path, OFlags::RDONLY | OFlags::DIRECTORY, 0).expect("open");
        script.outcome("rmdir", rustix::fs::rmdir(&path));
        script.note("links", held.metadata().map(|meta| meta.nlink()).map_err(|e| e.raw_os_error()));
        let create = OFlags::CREATE | OFlags::WRONLY;
        script.outcome("create in it", rustix::fs::openat(&held, "x", create, Mode::RWXU));
        script.outcome("mkdir in it", rustix::fs::mkdirat(&held, "x", Mode::RWXU));
        script.outcome("symlink in it", rustix::fs::symlinkat("t", &held, "x"));
        let anchor = script.file("anchor", b"x");
        script.outcome(
            "link into it",
            rustix::fs::linkat(CWD, &anchor, &held, "x", rustix::fs::AtFlags::empty()),
        );
        script.outcome("rename into it", rustix::fs::renameat(CWD, &anchor, &held, "x"));
        let entries = rustix::fs::Dir::read_from(&held).map(|dir| dir.filter(Result::is_ok).count());
        script.note("entries", entries.map(|count| count == 0));
        script.outcome("fchmod", rustix::fs::fchmod(&held, Mode::RWXU));
    });
}

#[test]
fn unlinked_symlinks_and_fifos_stay_by_descriptor() {
    differential(|script| {
        rustix::fs::symlink("target", script.at("link")).expect("symlink");
        let link = open(&script.at("link"), OFlags::PATH | OFlags::NOFOLLOW, 0).expect("O_PATH");
        rustix::fs::unlink(script.at("link")).expect("unlink");
        script.note("readlink", rustix::fs::readlinkat(&link, "", Vec::new()));
        let stat = rustix::fs::fstat(&link).expect("fstat");
        script.note("fstat", (stat.st_nlink, stat.st_size));
        rustix::fs::mkfifoat(CWD, script.at("fifo"), Mode::RWXU).expect("mkfifo");
        let fifo = open(&script.at("fifo"), OFlags::RDWR | OFlags::NONBLOCK, 0).expect("open");
        rustix::fs::unlink(script.at("fifo")).expect("unlink");
        script.note("write", rustix::io::write(&fifo, b"data"));
        script.note("fstat", rustix::fs::fstat(&fifo).map(|stat| stat.st_nlink));
    });
}
