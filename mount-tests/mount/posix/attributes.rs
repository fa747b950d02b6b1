//! chmod, chown and times.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::process::{Gid, Uid};

use super::differential;
use super::script::{Script, open, os};
use crate::harness::Identity;

fn chown(path: &std::path::Path, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
    rustix::fs::chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

#[test]
fn chmod_is_for_owners() {
    differential(|script| {
        let file = script.file("file", b"x");
        let directory = script.directory("dir", 0o755);
        for path in [&file, &directory] {
            chown(path, Some(4001), Some(4001)).expect("chown");
        }
        let owner = Identity::user(4001);
        let callers = [Identity::root(), owner.clone(), owner.with_groups(&[4242]), Identity::user(4002)];
        for name in ["file", "dir", "missing"] {
            for mode in [0, 0o640, 0o777, 0o1777, 0o2750, 0o4711, 0o7777] {
                for caller in &callers {
                    let path = script.at(name);
                    let change = || rustix::fs::chmod(&path, Mode::from_raw_mode(mode));
                    script.outcome_as(caller, format_args!("chmod {name} {mode:o}"), change);
                    script.attributes(name);
                }
            }
        }
        // setgid cannot be given to a file of a group one is not in.
        chown(&file, Some(4001), Some(4242)).expect("chown");
        for caller in [Identity::user(4001), Identity::user(4001).with_groups(&[4242])] {
            script
                .outcome_as(&caller, "chmod 2755", || rustix::fs::chmod(&file, Mode::from_raw_mode(0o2755)));
            script.attributes("file");
        }
    });
}

#[test]
fn descriptors_change_modes_and_owners_too() {
    differential(|script| {
        let path = script.file("file", b"x");
        let file = open(&path, OFlags::RDONLY, 0).expect("open");
        script.outcome("fchmod", rustix::fs::fchmod(&file, Mode::from_raw_mode(0o604)));
        script.outcome("fchown", rustix::fs::fchown(&file, Some(Uid::from_raw(4003)), None));
        script.attributes("file");
        rustix::fs::symlink("file", script.at("link")).expect("symlink");
        let link = script.at("link");
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Some(Uid::from_raw(4004)), Some(Gid::from_raw(4005)));
        script.outcome("lchown", rustix::fs::chownat(CWD, &link, uid, gid, nofollow));
        script
            .outcome("chown through the link", rustix::fs::chownat(CWD, &link, None, gid, AtFlags::empty()));
        script.attributes("link");
        script.attributes("file");
    });
}

#[test]
fn owners_give_files_to_their_groups_only() {
    differential(|script| {
        let path = script.file("file", b"x");
        chown(&path, Some(4001), Some(4001)).expect("chown");
        let owner = Identity::user(4001).with_groups(&[4242]);
        let stranger = Identity::user(4002).with_groups(&[4242]);
        for (uid, gid) in [
            (Some(4002), None),
            (Some(4001), None),
            (None, Some(4242)),
            (None, Some(77)),
            (Some(4001), Some(4001)),
            (None, None),
        ] {
            for caller in [&stranger, &owner] {
                let step = format!("chown {uid:?}:{gid:?}");
                script.outcome_as(caller, step, || chown(&path, uid, gid));
                script.attributes("file");
            }
        }
        for (uid, gid) in [(Some(0), Some(0)), (Some(u32::MAX - 1), Some(u32::MAX - 1)), (Some(65534), None)]
        {
            script.outcome(format_args!("chown {uid:?}:{gid:?}"), chown(&path, uid, gid));
            script.attributes("file");
        }
    });
}

fn stamp(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

fn note_times(script: &mut Script, step: &str, name: &str) {
    let meta = fs::symlink_metadata(script.at(name)).expect("lstat");
    let times = (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec());
    script.note(format_args!("times of {name} after {step}"), times);
}

#[test]
fn times_are_kept_exactly() {
    differential(|script| {
        script.file("file", b"x");
        script.directory("dir", 0o755);
        rustix::fs::symlink("file", script.at("link")).expect("symlink");
        let times = [
            ("zero", stamp(0, 0)),
            ("nanoseconds", stamp(1_000_000_000, 123_456_789)),
            ("before 1970", stamp(-1, 999_999_999)),
            ("long before 1970", stamp(-2_000_000_000, 1)),
            ("after 2038", stamp(4_000_000_000, 5)),
            ("far future", stamp(15_000_000_000, 7)),
        ];
        for (step, mtime) in times {
            for name in ["file", "dir", "link"] {
                let stamps =
                    Timestamps { last_access: stamp(mtime.tv_sec - 10, 42), last_modification: mtime };
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                script.outcome(step, rustix::fs::utimensat(CWD, script.at(name), &stamps, nofollow));
                note_times(script, step, name);
            }
        }
        let file = open(&script.at("file"), OFlags::RDWR, 0).expect("open");
        let stamps = Timestamps { last_access: stamp(-5, 5), last_modification: stamp(-6, 6) };
        script.outcome("futimens", rustix::fs::futimens(&file, &stamps));
        note_times(script, "futimens", "file");
        drop(file);
        note_times(script, "close", "file");
        let invalid = Timestamps { last_access: stamp(0, 1_000_000_000), last_modification: stamp(0, 0) };
        script.outcome(
            "too many ns",
            rustix::fs::utimensat(CWD, script.at("file"), &invalid, AtFlags::empty()),
        );
    });
}

fn is_recent(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    u64::try_from(seconds).is_ok_and(|seconds| now.abs_diff(seconds) < 600)
}

/// Times relative to what they were set to and to now, which no two runs share.
fn note_kinds(script: &mut Script, step: &str) {
    let meta = fs::symlink_metadata(script.at("file")).expect("lstat");
    let kind = |time: i64| if is_recent(time) { "now".to_owned() } else { time.to_string() };
    script.note(step, (kind(meta.atime()), kind(meta.mtime()), kind(meta.ctime())));
}

#[test]
fn times_now_and_omitted() {
    differential(|script| {
        let path = script.file("file", b"x");
        let (now, omit) = (stamp(0, UTIME_NOW), stamp(0, UTIME_OMIT));
        let set = |access: Timespec, modification: Timespec| {
            let stamps = Timestamps { last_access: access, last_modification: modification };
            rustix::fs::utimensat(CWD, &path, &stamps, AtFlags::empty())
        };
        let base = (stamp(1000, 1), stamp(2000, 2));
        for (step, access, modification) in [
            ("both now", now, now),
            ("atime omitted", omit, stamp(7000, 0)),
            ("mtime omitted", stamp(8000, 0), omit),
            ("both omitted", omit, omit),
            ("atime now", now, omit),
            ("mtime now", omit, now),
        ] {
            for caller in [Identity::root(), Identity::user(4001), Identity::user(4002)] {
                set(base.0, base.1).expect("utimensat");
                // One may write without owning: enough for now, not for anything else.
                rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).expect("chmod");
                chown(&path, Some(4001), Some(4001)).expect("chown");
                script.outcome_as(&caller, step, || set(access, modification));
                note_kinds(script, step);
            }
        }
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600)).expect("chmod");
        script.outcome_as(&Identity::user(4002), "now without write permission", || set(now, now));
    });
}

#[test]
fn changes_move_the_right_times() {
    differential(|script| {
        let path = script.file("file", b"0123456789");
        let reset = |script: &mut Script, step: &str| {
            note_kinds(script, step);
            let old = Timestamps { last_access: stamp(1000, 0), last_modification: stamp(2000, 0) };
            rustix::fs::utimensat(CWD, &path, &old, AtFlags::empty()).expect("utimensat");
        };
        reset(script, "create");
        os(fs::write(&path, b"new")).expect("write");
        reset(script, "write");
        os(fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1)))
            .expect("truncate");
        reset(script, "truncate");
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600)).expect("chmod");
        reset(script, "chmod");
        chown(&path, Some(1), Some(1)).expect("chown");
        reset(script, "chown");
        rustix::fs::link(&path, script.at("other")).expect("link");
        reset(script, "link");
        rustix::fs::setxattr(&path, "user.x", b"y", rustix::fs::XattrFlags::empty()).expect("setxattr");
        reset(script, "setxattr");
        rustix::fs::rename(script.at("other"), script.at("renamed")).expect("rename");
        reset(script, "rename");
        let file = open(&path, OFlags::WRONLY, 0).expect("open");
        reset(script, "open for writing");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10_000).expect("fallocate");
        drop(file);
        reset(script, "fallocate");
        note_kinds(script, "the end");
    });
}

#[test]
fn directories_change_when_their_entries_do() {
    differential(|script| {
        let directory = script.directory("dir", 0o755);
        let old = Timestamps { last_access: stamp(1000, 0), last_modification: stamp(2000, 0) };
        type Step = fn(&std::path::Path) -> rustix::io::Result<()>;
        let steps: [(&str, Step); 7] = [
            ("create", |d| open(&d.join("a"), OFlags::CREATE | OFlags::WRONLY, 0o644).map(drop)),
            ("mkdir", |d| rustix::fs::mkdir(d.join("b"), Mode::RWXU)),
            ("link", |d| rustix::fs::link(d.join("a"), d.join("c"))),
            ("rename", |d| rustix::fs::rename(d.join("c"), d.join("d"))),
            ("unlink", |d| rustix::fs::unlink(d.join("d"))),
            ("rmdir", |d| rustix::fs::rmdir(d.join("b"))),
            ("symlink", |d| rustix::fs::symlink("x", d.join("s"))),
        ];
        for (name, step) in steps {
            rustix::fs::utimensat(CWD, &directory, &old, AtFlags::empty()).expect("utimensat");
            script.outcome(name, step(&directory));
            let meta = fs::metadata(&directory).expect("stat");
            script.note("mtime is now", is_recent(meta.mtime()));
            script.attributes("dir");
        }
    });
}

#[test]
fn statfs_is_the_sources() {
    differential(|script| {
        script.file("file", b"x");
        for name in ["", "file"] {
            let fs = rustix::fs::statvfs(script.at(name)).expect("statvfs");
            script.note("size", (fs.f_blocks, fs.f_frsize, fs.f_files, fs.f_namemax));
            let file = open(&script.at(name), OFlags::RDONLY, 0).expect("open");
            let by_descriptor = rustix::fs::fstatvfs(&file).expect("fstatvfs");
            script.note("by descriptor", (by_descriptor.f_blocks, by_descriptor.f_namemax));
        }
        script.outcome("statfs of nothing", rustix::fs::statfs(script.at("missing")));
    });
}
