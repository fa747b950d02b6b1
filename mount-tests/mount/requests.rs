//! How many messages common operations take, and how many system calls the daemon makes for them: fewer of both are the first
//! of all speed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::harness::{Mount, Need, Stats, ready, trace};
use crate::overlay::{Layers, Overlay};
use crate::tmpfs::Observed;

/// Each operation is done so many times.
const TIMES: u64 = 50;

/// Which messages an operation takes each time, but for a few.
fn messages(stats: impl Fn() -> Stats, operation: impl Fn(u64)) -> Vec<String> {
    // What is done for the first time takes more.
    operation(0);
    let before = stats();
    (1..=TIMES).for_each(operation);
    let after = stats();
    let mut each = Vec::new();
    for (name, count) in after.json()["requests"].as_object().expect("requests") {
        let times = (count.as_u64().expect("a number") - before.requests(name) + TIMES / 5) / TIMES;
        // RELEASE and FORGET nobody waits for, so that they may come later.
        if times > 0 && !["release", "forget", "batch_forget"].contains(&name.as_str()) {
            each.push(if times == 1 { name.clone() } else { format!("{times} {name}") });
        }
    }
    each.sort();
    each
}

/// What creating and writing a file takes, renaming it, and removing it.
fn of_a_file(root: &Path, stats: impl Fn() -> Stats) -> [Vec<String>; 3] {
    let directory = root.join("d");
    fs::create_dir(&directory).expect("mkdir");
    let file = |kind: &str, number: u64| directory.join(format!("{kind}{number}"));
    [
        messages(&stats, |number| fs::write(file("made", number), [1; 4096]).expect("write")),
        messages(&stats, |number| {
            fs::rename(file("made", number), file("renamed", number)).expect("rename");
        }),
        messages(&stats, |number| fs::remove_file(file("renamed", number)).expect("unlink")),
    ]
}

/// GETATTR is of the directory: a change of its entries makes the kernel forget what it checks permissions by
/// (`fuse_dir_changed`). GETXATTR is of `security.capability`, by which the kernel knows whether a write has to clear it.
const CREATE: [&str; 5] = ["create", "getattr", "getxattr", "lookup", "write"];

#[test]
fn a_file_in_memory_takes_no_message_too_many() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let mount = Observed::mount("");
    let [create, rename, unlink] = of_a_file(mount.point(), || mount.stats());
    assert_eq!(create, CREATE);
    assert_eq!(rename, ["getattr", "lookup", "rename"]);
    assert_eq!(unlink, ["getattr", "unlink"]);
}

/// Nor a FLUSH, as the upper file system is a local one.
#[test]
fn a_file_of_an_overlay_takes_no_message_too_many() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let layers = Layers::simple();
    let mount = layers.mount_with("passthrough=off,writeback=off");
    let [create, rename, unlink] = of_a_file(mount.point(), || mount.stats().expect("stats"));
    assert_eq!(create, CREATE);
    assert_eq!(rename, ["getattr", "lookup", "rename"]);
    assert_eq!(unlink, ["getattr", "unlink"]);
}

/// What a directory of others' looks like is asked for more often.
#[test]
fn a_mirrored_file_is_flushed_where_closing_it_may_fail() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let flushed = |mount: &Mount| {
        let write = |number| fs::write(mount.point().join(format!("{number}")), b"data").expect("write");
        messages(|| mount.stats().expect("stats"), write).contains(&"flush".to_owned())
    };
    let local = Mount::builder().options("passthrough=off").start();
    assert!(!flushed(&local), "a local file system");
    // A FUSE file system may be of any kind.
    let above = Mount::builder().mirroring(local.point()).options("passthrough=off").start();
    assert!(flushed(&above), "a FUSE file system");
}

/// By these a daemon is asked and answers, sees to it that somebody waits, and lets go of what the kernel has forgotten.
const AROUND: [&str; 5] = ["read", "writev", "timerfd_settime", "fcntl", "close"];

/// How often each of the other system calls of an overlay's daemon begins while `what` runs.
fn calls(mount: &Overlay, layers: &Layers, what: impl FnOnce()) -> BTreeMap<String, u64> {
    let pid = mount.stats().expect("stats").pid();
    let trace = trace(pid, "%file,%desc", &layers.dir().join("trace"), what);
    let mut calls = BTreeMap::new();
    for line in trace.lines() {
        // The number of the thread comes first; a call that is interrupted by another thread's has two lines.
        let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('('));
        if let Some((name, _)) = call.filter(|(name, _)| !AROUND.contains(name)) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn a_whiteout_takes_a_link_and_a_listing_looks_at_one_of_many() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("strace")]) {
        return;
    }
    let layers = Layers::simple();
    let names: Vec<_> = (0..=TIMES).map(|number| number.to_string()).collect();
    fs::create_dir(layers.lower().join("d")).expect("mkdir");
    for name in &names {
        fs::write(layers.lower().join("d").join(name), name).expect("write");
    }
    fs::write(layers.lower().join("d/stays"), "it does").expect("write");
    let mount = layers.mount_with("");
    let dir = mount.at("d");
    assert_eq!(fs::read_dir(&dir).expect("list").count(), names.len() + 1);
    names.iter().for_each(|name| assert!(dir.join(name).exists()));
    // The directory is copied up, and a whiteout made that the others are names of.
    fs::remove_file(dir.join("0")).expect("unlink");
    let removing = calls(&mount, &layers, || {
        names[1..].iter().for_each(|name| fs::remove_file(dir.join(name)).expect("unlink"));
    });
    // In both layers; and of the directory, whose attributes the kernel asks for (`fuse_dir_changed`).
    let about = |count: u64, times: u64| (times * TIMES..=times * TIMES + TIMES / 5).contains(&count);
    assert!(about(removing["statx"], 3), "{removing:?}");
    assert!(about(removing["linkat"], 1), "{removing:?}");
    let others: u64 = removing
        .iter()
        .filter(|(name, _)| !["statx", "linkat"].contains(&name.as_str()))
        .map(|(_, count)| count)
        .sum();
    assert!(others < TIMES / 5, "{removing:?}");
    let listing = calls(&mount, &layers, || {
        assert_eq!(fs::read_dir(&dir).expect("list").count(), 1);
    });
    assert!(listing["statx"] < TIMES / 5, "{listing:?}");
    assert!(listing["getdents64"] > 0, "{listing:?}");
}
