//! Directories: complete, seekable, and honest while they change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::{Dir, OFlags, RawDir};

use super::differential;
use super::script::{open, os};
use crate::harness::{Mount, Need, ready};

fn open_dir(path: &Path) -> Dir {
    let file = open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0).expect("opening a directory");
    Dir::new(file).expect("reading a directory")
}

fn name_of(entry: &rustix::fs::DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}

fn fill_directory(path: &Path, prefix: &str, count: usize) {
    for number in 0..count {
        fs::write(path.join(format!("{prefix}{number:05}")), b"").expect("creating a file");
    }
}

fn mounted() -> Option<Mount> {
    ready(&[Need::Fuse, Need::Root]).then(|| Mount::builder().options("allow_other").start())
}

#[test]
fn listings_are_complete() {
    differential(|script| {
        let empty = script.directory("empty", 0o755);
        let names: BTreeSet<String> =
            open_dir(&empty).map(|entry| name_of(&entry.expect("readdir"))).collect();
        script.note("empty", names);
        for count in [1, 10, 100, 1000, 5000] {
            let path = script.directory(format!("of{count}"), 0o755);
            fill_directory(&path, "file", count);
            let names: Vec<String> = open_dir(&path).map(|entry| name_of(&entry.expect("readdir"))).collect();
            let distinct: BTreeSet<&String> = names.iter().collect();
            script.note(
                "names",
                (names.len(), distinct.len(), names.iter().any(|n| n == ".."), names.contains(&".".into())),
            );
        }
        script.outcome("remove 5000", os(fs::remove_dir_all(script.at("of5000"))));
        let file = script.file("file", b"x");
        script.outcome("read a file", os(fs::read_dir(file)));
    });
}

/// The order and the cookies of a directory that does not change: seeking to a cookie gives exactly the rest again.
#[test]
fn seekdir_returns_to_where_telldir_was() {
    let Some(mount) = mounted() else { return };
    let path = mount.point().join("dir");
    fs::create_dir(&path).expect("mkdir");
    fill_directory(&path, "entry", 3000);
    let mut dir = open_dir(&path);
    let mut walk = Vec::new();
    while let Some(entry) = dir.read() {
        let entry = entry.expect("readdir");
        walk.push((name_of(&entry), entry.offset()));
    }
    assert_eq!(walk.len(), 3002);
    for position in [0, 1, 2, 100, 1500, 2999, 3000, 700, 3001] {
        dir.seek(walk[position].1).expect("seekdir");
        let mut rest = Vec::new();
        while let Some(entry) = dir.read() {
            rest.push(name_of(&entry.expect("readdir")));
        }
        let expected: Vec<String> = walk[position + 1..].iter().map(|(name, _)| name.clone()).collect();
        assert!(
            rest == expected,
            "seeking to entry {position} gave {} entries, not {}",
            rest.len(),
            expected.len()
        );
    }
    dir.rewind();
    let again = std::iter::from_fn(|| dir.read()).filter(|entry| entry.is_ok()).count();
    assert_eq!(again, walk.len(), "after rewinddir");
    // Cookies hold in another handle of the same directory, as network servers need it.
    let mut other = open_dir(&path);
    other.seek(walk[1234].1).expect("seekdir");
    let next = other.read().expect("an entry").expect("readdir");
    assert_eq!(name_of(&next), walk[1235].0, "a cookie from another handle");
}

#[test]
fn a_walk_with_a_small_buffer_is_complete() {
    let Some(mount) = mounted() else { return };
    let path = mount.point().join("dir");
    fs::create_dir(&path).expect("mkdir");
    fill_directory(&path, &"long-name-".repeat(10), 500);
    for size in [300, 512, 4096, 65536] {
        let file = open(&path, OFlags::RDONLY | OFlags::DIRECTORY, 0).expect("open");
        let mut buffer = vec![MaybeUninit::uninit(); size];
        let mut walk = RawDir::new(file, &mut buffer);
        let mut names = BTreeSet::new();
        while let Some(entry) = walk.next() {
            let entry = entry.expect("getdents");
            assert!(
                names.insert(entry.file_name().to_bytes().to_vec()),
                "twice with {size}: {:?}",
                entry.file_name()
            );
        }
        assert_eq!(names.len(), 502, "with a buffer of {size} bytes");
    }
}

/// What exists during the whole walk is told exactly once; what comes or goes meanwhile at most once.
#[test]
fn entries_added_and_removed_during_a_walk() {
    let Some(mount) = mounted() else { return };
    for round in 0..3 {
        let path = mount.point().join(format!("dir{round}"));
        fs::create_dir(&path).expect("mkdir");
        fill_directory(&path, "stays", 2000);
        fill_directory(&path, "goes", 1000);
        let mut dir = open_dir(&path);
        let mut seen = BTreeMap::<String, u32>::new();
        for step in 0.. {
            let Some(entry) = dir.read() else { break };
            *seen.entry(name_of(&entry.expect("readdir"))).or_default() += 1;
            if step % 10 == 0 && step / 10 < 1000 {
                let gone = path.join(format!("goes{:05}", step / 10));
                fs::remove_file(gone).expect("removing a file during the walk");
                fs::write(path.join(format!("new{step:05}")), b"").expect("adding a file during the walk");
            }
        }
        for number in 0..2000 {
            let name = format!("stays{number:05}");
            assert_eq!(seen.get(&name), Some(&1), "how often {name} was told");
        }
        let repeated: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
        assert!(repeated.is_empty(), "told more than once: {repeated:?}");
        // A fresh walk tells what is there, and rewinding the old one does too.
        let there: BTreeSet<String> =
            open_dir(&path).map(|entry| name_of(&entry.expect("readdir"))).collect();
        dir.rewind();
        let again: BTreeSet<String> =
            std::iter::from_fn(|| dir.read()).map(|entry| name_of(&entry.expect("readdir"))).collect();
        assert_eq!(there, again);
        let native: BTreeSet<String> = open_dir(&mount.source().join(format!("dir{round}")))
            .map(|entry| name_of(&entry.expect("readdir")))
            .collect();
        assert_eq!(there, native);
    }
}

/// Removing while walking is what `rm -r` does.
#[test]
fn removing_while_walking_removes_everything() {
    let Some(mount) = mounted() else { return };
    let path = mount.point().join("dir");
    fs::create_dir(&path).expect("mkdir");
    fill_directory(&path, "entry", 4000);
    let mut dir = open_dir(&path);
    while let Some(entry) = dir.read() {
        let name = name_of(&entry.expect("readdir"));
        if name != "." && name != ".." {
            fs::remove_file(path.join(name)).expect("unlink during the walk");
        }
    }
    fs::remove_dir(&path).expect("the directory is empty after one walk");
}

/// Changes made in the source appear: at once where nothing is cached.
#[test]
fn changes_in_the_source_are_seen() {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().options("entry_timeout=0,attr_timeout=0").start();
    let (source, point) = (mount.source().to_owned(), mount.point().to_owned());
    let listing = |path: &Path| -> BTreeSet<String> {
        open_dir(path).map(|entry| name_of(&entry.expect("readdir"))).collect()
    };
    for round in 0..20 {
        let name = format!("file{round}");
        assert!(fs::metadata(point.join(&name)).is_err());
        fs::write(source.join(&name), b"made below").expect("write");
        assert_eq!(fs::read(point.join(&name)).expect("read"), b"made below");
        assert_eq!(listing(&source), listing(&point));
        fs::write(source.join(&name), b"changed below, and longer").expect("write");
        assert_eq!(fs::read(point.join(&name)).expect("read"), b"changed below, and longer");
        if round % 2 == 0 {
            fs::remove_file(source.join(&name)).expect("unlink");
            assert!(fs::metadata(point.join(&name)).is_err(), "{name} is gone below");
        } else {
            // Replaced by another file of the same name, as editors and package managers do.
            fs::write(source.join("replacement"), b"another file").expect("write");
            fs::rename(source.join("replacement"), source.join(&name)).expect("rename");
            assert_eq!(fs::read(point.join(&name)).expect("read"), b"another file");
        }
        assert_eq!(listing(&source), listing(&point));
    }
}
