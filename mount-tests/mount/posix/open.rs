//! open(2): every flag that files know.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use super::differential;
use super::script::{Script, open, os, summary};
use crate::harness::{Identity, aligned, fill};

#[test]
fn open_flags_decide_as_natively() {
    differential(|script| {
        script.file("file", b"0123456789");
        script.directory("dir", 0o755);
        for (name, target) in
            [("to-file", "file"), ("to-dir", "dir"), ("dangling", "missing"), ("loop", "loop")]
        {
            rustix::fs::symlink(target, script.at(name)).expect("symlink");
        }
        let access =
            [("r", OFlags::RDONLY), ("w", OFlags::WRONLY), ("rw", OFlags::RDWR), ("path", OFlags::PATH)];
        let extra = [
            ("", OFlags::empty()),
            ("creat-excl", OFlags::CREATE.union(OFlags::EXCL)),
            ("directory", OFlags::DIRECTORY),
            ("nofollow", OFlags::NOFOLLOW),
            ("nofollow-directory", OFlags::NOFOLLOW.union(OFlags::DIRECTORY)),
            ("append", OFlags::APPEND),
            ("sync", OFlags::SYNC),
            ("dsync", OFlags::DSYNC),
            ("noatime", OFlags::NOATIME),
            ("nonblock", OFlags::NONBLOCK),
        ];
        for name in
            ["file", "dir", "to-file", "to-dir", "dangling", "loop", "missing", "file/below", "missing/below"]
        {
            for (access_name, access) in access {
                for (extra_name, extra) in extra {
                    if extra.contains(OFlags::CREATE) && name == "missing" {
                        continue;
                    }
                    let result = open(&script.at(name), access | extra, 0o644);
                    script.outcome(format_args!("open {name} {access_name} {extra_name}"), result);
                }
            }
        }
        script.outcome_as(&Identity::user(4001), "open with O_NOATIME", {
            let path = script.at("file");
            move || open(&path, OFlags::RDONLY | OFlags::NOATIME, 0)
        });
    });
}

#[test]
fn creating_through_links_and_over_directories() {
    differential(|script| {
        script.directory("dir", 0o755);
        rustix::fs::symlink("made-through-link", script.at("link")).expect("symlink");
        let create = OFlags::CREATE | OFlags::WRONLY;
        script.outcome("O_CREAT on a directory", open(&script.at("dir"), create, 0o644));
        script.outcome("O_CREAT with a slash", open(&script.at("slash/"), create, 0o644));
        script.outcome("O_CREAT|O_EXCL on a link", open(&script.at("link"), create | OFlags::EXCL, 0o644));
        script.outcome(
            "O_CREAT|O_NOFOLLOW on a link",
            open(&script.at("link"), create | OFlags::NOFOLLOW, 0o644),
        );
        script.outcome("O_CREAT through a link", open(&script.at("link"), create, 0o604));
        script.attributes("made-through-link");
        // A file is created with a mode that its own descriptor does not need.
        if let Some(mut file) = script.outcome("create read-only", open(&script.at("locked"), create, 0o000))
        {
            script.outcome("write", os(file.write_all(b"still writable")));
        }
        script.outcome_as(&Identity::user(4001), "reopen", {
            let path = script.at("locked");
            move || open(&path, OFlags::RDONLY, 0)
        });
    });
}

#[test]
fn truncating_opens_empty_the_file() {
    differential(|script| {
        for (name, flags) in [
            ("w", OFlags::WRONLY),
            ("rw", OFlags::RDWR),
            ("append", OFlags::WRONLY.union(OFlags::APPEND)),
            ("create", OFlags::RDWR.union(OFlags::CREATE)),
        ] {
            script.file(name, &fill(0, 10_000));
            script.outcome(
                format_args!("truncate {name}"),
                open(&script.at(name), flags | OFlags::TRUNC, 0o644),
            );
            script.attributes(name);
        }
        // Whoever has it open sees it go and can write on.
        let path = script.file("held", &fill(0, 10_000));
        let held = open(&path, OFlags::RDWR, 0).expect("open");
        open(&path, OFlags::WRONLY | OFlags::TRUNC, 0).expect("truncating open");
        let mut buffer = [0; 100];
        script.note("read after truncation", os(held.read_at(&mut buffer, 0)));
        script.note("write after truncation", os(held.write_at(b"later", 5000)));
        script.contents("held");
        script.outcome_as(&Identity::user(4001), "truncate someone's", move || {
            open(&path, OFlags::WRONLY | OFlags::TRUNC, 0)
        });
        script.contents("held");
    });
}

#[test]
fn appends_go_to_the_end() {
    differential(|script| {
        let path = script.file("log", b"start\n");
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let mut first = open(&path, flags, 0).expect("open");
        let mut second = open(&path, flags, 0).expect("open");
        let plain = open(&path, OFlags::RDWR, 0).expect("open");
        for round in 0..20 {
            first.write_all(format!("first {round}\n").as_bytes()).expect("append");
            second.write_all(format!("second {round}\n").as_bytes()).expect("append");
        }
        script.contents("log");
        // pwrite(2) on an append descriptor appends on Linux.
        script.note("pwrite at 0", os(first.write_at(b"not at zero\n", 0)));
        script.note("plain pwrite at 0", os(plain.write_at(b"START", 0)));
        script.contents("log");
        plain.set_len(3).expect("truncate");
        script.note("append after truncation", os(second.write_all(b"...end")));
        script.contents("log");
        // Without O_APPEND at open, switched on later.
        rustix::fs::fcntl_setfl(&plain, OFlags::APPEND).expect("fcntl");
        script.note("switched to append", os(plain.write_at(b"!", 0)));
        script.contents("log");
    });
}

#[test]
fn access_mode_binds_the_descriptor() {
    differential(|script| {
        let path = script.file("file", &fill(0, 5000));
        let mut buffer = [0; 16];
        let mut reader = open(&path, OFlags::RDONLY, 0).expect("open");
        let mut writer = open(&path, OFlags::WRONLY, 0).expect("open");
        script.outcome("write a reader", os(reader.write(b"x")));
        script.outcome("truncate a reader", os(reader.set_len(1)));
        script.outcome("read a writer", os(writer.read(&mut buffer)));
        let directory = open(&script.at(""), OFlags::RDONLY, 0).expect("open");
        script.outcome("read a directory", rustix::io::read(&directory, &mut buffer[..]));
        script.note("write a writer", os(writer.write(b"x")));
        script.outcome("fsync a reader", rustix::fs::fsync(&reader));
        script.outcome("fdatasync a writer", rustix::fs::fdatasync(&writer));
        script.outcome("fsync a directory", rustix::fs::fsync(&directory));
        script.outcome("syncfs", rustix::fs::syncfs(&directory));
    });
}

#[test]
fn path_descriptors_work() {
    differential(|script| {
        let path = script.file("file", b"contents");
        rustix::fs::symlink("file", script.at("link")).expect("symlink");
        for (name, flags) in [("file", OFlags::PATH), ("link", OFlags::PATH.union(OFlags::NOFOLLOW))] {
            let handle = open(&script.at(name), flags, 0).expect("O_PATH");
            let stat = rustix::fs::fstat(&handle).expect("fstat");
            script.note(format_args!("fstat {name}"), (stat.st_mode, stat.st_size, stat.st_nlink));
            script.outcome("read", rustix::io::read(&handle, &mut [0; 4][..]));
            script.outcome("fchmod", rustix::fs::fchmod(&handle, rustix::fs::Mode::RUSR));
            script.note("readlinkat", rustix::fs::readlinkat(&handle, "", Vec::new()));
        }
        // The descriptor follows the file when it is renamed, and reopens it.
        let handle = open(&path, OFlags::PATH, 0).expect("O_PATH");
        rustix::fs::rename(&path, script.at("renamed")).expect("rename");
        let reopened = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
        script.note("reopened", os(std::fs::read(reopened)));
    });
}

#[test]
fn direct_descriptors_read_and_write() {
    differential(|script| {
        let path = script.at("direct");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT;
        let Some(file) = script.outcome("open with O_DIRECT", open(&path, flags, 0o644)) else { return };
        let mut memory = Vec::new();
        let buffer = aligned(&mut memory, 65536);
        buffer.copy_from_slice(&fill(0, 65536));
        script.note("write", os(file.write_at(buffer, 0)));
        script.note("write past a hole", os(file.write_at(&buffer[..8192], 262_144)));
        buffer.fill(0);
        let length = os(file.read_at(buffer, 4096));
        script.note("read", length.map(|length| summary(&buffer[..length])));
        let length = os(file.read_at(buffer, 131_072));
        script.note("read a hole", length.map(|length| summary(&buffer[..length])));
        let length = os(file.read_at(buffer, 266_240));
        script.note("read over the end", length.map(|length| summary(&buffer[..length])));
        script.note("read at the end", os(file.read_at(buffer, 270_336)));
        script.outcome("truncate unaligned", os(file.set_len(5001)));
        let length = os(file.read_at(buffer, 0));
        script.note("read a short file", length.map(|length| summary(&buffer[..length])));
        // Buffered and direct descriptors see each other's data.
        buffered_sees_direct(script, &file);
    });
}

fn buffered_sees_direct(script: &mut Script, direct: &std::fs::File) {
    let buffered = open(&script.at("direct"), OFlags::RDWR, 0).expect("open");
    let mut byte = [0; 4];
    script.note("buffered read", os(buffered.read_at(&mut byte, 4096)).map(|length| byte[..length].to_vec()));
    let mut memory = Vec::new();
    let block = aligned(&mut memory, 8192);
    block.fill(b'd');
    script.note("direct write", os(direct.write_at(block, 4096)));
    script.note("buffered read", os(buffered.read_at(&mut byte, 4096)).map(|length| byte[..length].to_vec()));
    script.note("buffered write", os(buffered.write_at(b"BBBB", 4096)));
    let length = os(direct.read_at(block, 4096));
    script.note("direct read", length.map(|length| summary(&block[..length])));
}
