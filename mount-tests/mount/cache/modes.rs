//! `cache=auto|always|never`.

use std::fs::{self, File};

use super::{FEW, asked, mount, start, stats, walk};
use crate::harness::{command, shell};
use crate::mapped::Mapping;

/// Everything that was seen stays as it was seen, without a message.
#[test]
fn what_is_kept_always_is_not_asked_for_again() {
    let Some(mount) = mount("cache=always,passthrough=off") else { return };
    let first = walk(mount.point());
    assert!(!mount.point().join("d0/missing").exists());
    walk(mount.point());
    let before = asked(&stats(&mount));
    assert_eq!(walk(mount.point()), first);
    assert!(!mount.point().join("d0/missing").exists());
    let after = asked(&stats(&mount));
    // To look at the statistics takes a message or two itself.
    assert!(after - before < FEW, "{} messages for a walk: {}", after - before, stats(&mount).json());
    // The promise was broken: what was seen is shown on, for longer than `auto` would.
    fs::write(mount.source().join("d0/f0"), "newer").expect("write");
    fs::write(mount.source().join("d0/missing"), "").expect("write");
    shell("sleep 1.5", mount.point());
    assert_eq!(walk(mount.point()), first);
    assert!(!mount.point().join("d0/missing").exists());
}

/// What is done through the mount is seen all the same.
#[test]
fn what_is_changed_through_a_mount_that_keeps_everything_is_seen() {
    let Some(mount) = mount("cache=always") else { return };
    walk(mount.point());
    fs::write(mount.point().join("d0/f0"), "changed").expect("write");
    fs::write(mount.point().join("d0/made"), "made").expect("write");
    fs::rename(mount.point().join("d1"), mount.point().join("moved")).expect("rename");
    fs::remove_file(mount.point().join("d2/f3")).expect("unlink");
    shell("echo more >> \"$1\"", &mount.point().join("d3/f0"));
    assert_eq!(walk(mount.point()), walk(mount.source()));
}

/// Names, sizes, contents and missing names, with nothing in between: not even a file that stays open is read from memory.
fn every_look_is_the_sources(options: &str) {
    let Some(mount) = mount(options) else { return };
    let (shown, real) = (mount.point().join("d0/f0"), mount.source().join("d0/f0"));
    let open = File::open(&shown).expect("open");
    for round in 0..50 {
        let text = format!("{round:03}");
        fs::write(&real, &text).expect("write");
        assert_eq!(start(&open), text, "the open file");
        assert_eq!(fs::read_to_string(&shown).expect("read"), text);
        let longer = "x".repeat(round);
        fs::write(&real, &longer).expect("write");
        assert_eq!(fs::metadata(&shown).expect("stat").len(), longer.len() as u64);
        let (name, other) = (mount.point().join("d0/new"), mount.source().join("d0/new"));
        assert!(!name.exists());
        fs::write(&other, "").expect("write");
        assert!(name.exists());
        fs::remove_file(&other).expect("unlink");
    }
    assert_eq!(walk(mount.point()), walk(mount.source()));
}

#[test]
fn where_nothing_is_kept_every_look_is_the_sources() {
    every_look_is_the_sources("cache=never");
}

#[test]
fn where_nothing_is_kept_and_the_daemon_reads_every_look_is_the_sources() {
    every_look_is_the_sources("cache=never,passthrough=off");
    every_look_is_the_sources("cache=never,passthrough=off,splice=off");
}

/// Programs are run, files are mapped, and what is stored through a mapping arrives.
#[test]
fn where_nothing_is_kept_files_can_be_mapped() {
    let Some(mount) = mount("cache=never,passthrough=off") else { return };
    fs::copy("/bin/true", mount.source().join("true")).expect("copying a program");
    shell("\"$1\"", &mount.point().join("true"));
    let path = mount.point().join("d0/f0");
    shell("printf x | dd of=\"$1\" bs=1 seek=8191 conv=notrunc 2> /dev/null", &path);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("open");
    assert_eq!(file.metadata().expect("stat").len(), 8192);
    Mapping::writable(&file, 8192).expect("mmap").store(0, b'M');
    file.sync_all().expect("fsync");
    assert_eq!(&fs::read(mount.source().join("d0/f0")).expect("read")[..4], b"Mld\0");
}

#[test]
fn the_option_is_passthroughs_and_has_four_values() {
    for (arguments, reason) in [
        (["tmpfs", "/nonexistent", "-o", "cache=always"], "is for passthrough, and means nothing to tmpfs"),
        (
            ["overlay", "/nonexistent", "-o", "cache=notify"],
            "is for passthrough, and means nothing to overlay",
        ),
        (["tmpfs", "/nonexistent", "-o", "cache=yes"], "expected `auto`, `always`, `never` or `notify`"),
    ] {
        let output = command().args(arguments).output().expect("running splicefs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }
}
