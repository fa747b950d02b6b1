//! Names are bytes, up to 255 of them; paths are as long as one likes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};

use super::differential;
use super::script::{Script, open, os, short};

fn name(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Everything that takes a name, on `subject`, which exists when it can.
fn use_name(script: &mut Script, subject: &Path) {
    let path = script.at(subject);
    let step = |what: &str| format!("{what} {}", short(subject));
    script.outcome(step("create"), open(&path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, 0o644));
    script.attributes(subject);
    script.outcome(step("open"), open(&path, OFlags::RDONLY, 0));
    script.outcome(step("rename from"), rustix::fs::rename(&path, script.at("elsewhere")));
    script.outcome(step("rename to"), rustix::fs::rename(script.at("elsewhere"), &path));
    script.outcome(step("link to"), rustix::fs::link(script.at("anchor"), &path));
    script.outcome(step("unlink"), rustix::fs::unlink(&path));
    script.outcome(step("link"), rustix::fs::link(script.at("anchor"), &path));
    script.outcome(step("unlink"), rustix::fs::unlink(&path));
    script.outcome(step("symlink"), rustix::fs::symlink("target", &path));
    script.outcome(step("readlink"), rustix::fs::readlink(&path, Vec::new()));
    script.outcome(step("unlink"), rustix::fs::unlink(&path));
    script.outcome(step("mkdir"), rustix::fs::mkdir(&path, Mode::RWXU));
    script.outcome(step("rmdir"), rustix::fs::rmdir(&path));
    script.outcome(step("mknod"), rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0));
    script.outcome(step("chmod"), rustix::fs::chmod(&path, Mode::RWXU));
    script.outcome(step("setxattr"), rustix::fs::lsetxattr(&path, "trusted.x", b"y", XattrFlags::empty()));
    script.outcome(step("unlink"), rustix::fs::unlinkat(CWD, &path, AtFlags::empty()));
    script.outcome(step("stat"), rustix::fs::stat(&path));
}

#[test]
fn every_byte_can_be_a_name() {
    differential(|script| {
        script.file("anchor", b"x");
        for byte in 1..=u8::MAX {
            if byte == b'/' || byte == b'.' {
                continue;
            }
            use_name(script, name(&[byte]));
            script.file(name(&[b'n', byte, byte]), &[byte]);
        }
        let mut names: Vec<_> =
            os(fs::read_dir(script.at(""))).expect("readdir").map(|e| e.expect("readdir")).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        script.note("listing", names.iter().map(fs::DirEntry::file_name).collect::<Vec<_>>());
    });
}

#[test]
fn names_end_at_255_bytes() {
    differential(|script| {
        script.file("anchor", b"x");
        for length in [1, 100, 254, 255, 256, 257, 1000, 4000] {
            use_name(script, name(&vec![b'a'; length]));
            use_name(script, name(&vec![0xff; length]));
            // In the middle of a path it is the same error.
            let middle = [vec![b'm'; length], b"/below".to_vec()].concat();
            script.outcome(format_args!("through {length}"), rustix::fs::stat(script.at(name(&middle))));
        }
        let file = script.file(name(&[b'k'; 255]), b"kept");
        script.note("a longest name", os(fs::read(file)));
    });
}

#[test]
fn odd_names_and_trailing_slashes() {
    differential(|script| {
        script.file("file", b"x");
        script.directory("dir", 0o755);
        for odd in
            ["", ".", "..", "dir/.", "dir/..", "file/", "file/.", "dir/", "missing/", " ", "a\nb", "\\", "*"]
        {
            let path = script.at(odd);
            script.outcome(format_args!("stat {odd:?}"), rustix::fs::lstat(&path));
            script.outcome(format_args!("mkdir {odd:?}"), rustix::fs::mkdir(&path, Mode::RWXU));
            script.outcome(format_args!("rename {odd:?}"), rustix::fs::rename(&path, script.at("renamed")));
            script.outcome(
                "back",
                rustix::fs::rename(script.at("renamed"), path.components().collect::<PathBuf>()),
            );
            script.outcome(format_args!("rmdir {odd:?}"), rustix::fs::rmdir(&path));
            script.outcome("mkdir", rustix::fs::mkdir(script.at("dir"), Mode::RWXU));
        }
    });
}

#[test]
fn symlinks_hold_any_bytes() {
    differential(|script| {
        for length in [1, 59, 60, 255, 1023, 4000, 4095, 4096] {
            let target = vec![b't'; length];
            let link = script.at(format!("link{length}"));
            script.outcome(format_args!("symlink of {length}"), rustix::fs::symlink(&target[..], &link));
            let read = rustix::fs::readlink(&link, Vec::new());
            script.note("it says", read.map(|read| (read.as_bytes().len(), read.as_bytes() == target)));
            script.attributes(format!("link{length}"));
        }
        for target in [&b"\xff\xfe"[..], b"a\nb", b"/", b"//x", b".", b"..", b" "] {
            let link = script.at("odd");
            script.outcome("symlink", rustix::fs::symlink(target, &link));
            script.note("it says", rustix::fs::readlink(&link, Vec::new()));
            rustix::fs::unlink(&link).expect("unlink");
        }
        script.outcome("an empty target", rustix::fs::symlink("", script.at("empty")));
        script.file("file", b"followed");
        script.directory("dir", 0o755);
        for (link, target) in
            [("one", "file"), ("two", "one"), ("up", "dir/../file"), ("dot", "dir/."), ("self", "self")]
        {
            rustix::fs::symlink(target, script.at(link)).expect("symlink");
            script.contents(link);
        }
        script.outcome("readlink of a file", rustix::fs::readlink(script.at("file"), Vec::new()));
    });
}

#[test]
fn directories_500_levels_deep() {
    differential(|script| {
        const LEVELS: usize = 500;
        let top = script.directory("deep", 0o755);
        let mut directories = vec![open(&top, OFlags::PATH, 0).expect("open")];
        for level in 0..LEVELS {
            let parent = directories.last().expect("at least the top");
            let name = format!("a-directory-with-a-long-name-{level}");
            rustix::fs::mkdirat(parent, &name, Mode::RWXU).expect("mkdir");
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let next = rustix::fs::openat(parent, &name, flags, Mode::empty()).expect("open");
            directories.push(next.into());
        }
        let bottom = directories.last().expect("the bottom");
        let flags = OFlags::CREATE | OFlags::RDWR;
        let file = rustix::fs::openat(bottom, "file", flags, Mode::RWXU).expect("create at the bottom");
        script.note("write at the bottom", rustix::io::write(&file, b"deep"));
        let stat = rustix::fs::statat(bottom, "file", AtFlags::empty()).expect("stat at the bottom");
        script.note("stat at the bottom", (stat.st_size, stat.st_nlink));
        // The whole path is longer than PATH_MAX.
        let long: PathBuf =
            (0..LEVELS).map(|level| format!("a-directory-with-a-long-name-{level}")).collect();
        script.outcome("the whole path", rustix::fs::stat(top.join(long)));
        rustix::fs::unlinkat(bottom, "file", AtFlags::empty()).expect("unlink");
        for level in (0..LEVELS).rev() {
            directories.pop();
            let parent = directories.last().expect("a parent");
            let name = format!("a-directory-with-a-long-name-{level}");
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR).expect("rmdir");
        }
        script.attributes("deep");
    });
}
