//! `cache=notify`: what others change is shown at once, and what they do not is not asked for.

use std::fs::{self, File};
use std::path::Path;

use super::{FEW, asked, mount, shows_the_source, start, stats, walk};
use crate::harness::{Mount, until};
use crate::posix::script::open;
use rustix::fs::OFlags;

const NOTIFY: &str = "cache=notify,passthrough=off";

/// Waits until nothing more is heard, a change through the mount is heard of, too, and the kernel is told nothing more: it is
/// told again a tenth of a second later of what was told while requests were being answered (`TAKEN_IN` in src/vfs/hearing.rs).
fn settle(mount: &Mount) {
    let told = || {
        let stats = stats(mount);
        ["heard", "repeated", "invalidated_names", "invalidated_nodes"].map(|what| stats.change(what))
    };
    let mut last = None;
    until("nothing more to be heard and told", || {
        std::thread::sleep(std::time::Duration::from_millis(150));
        let now = Some(told());
        std::mem::replace(&mut last, now) == now
    });
}

/// What the mount shows becomes what the source shows, and then is not asked for.
fn becomes_the_source(mount: &Mount, what: &str) {
    until(what, || shows_the_source(mount));
    settle(mount);
    walk(mount.point());
    let before = asked(&stats(mount));
    walk(mount.point());
    let after = asked(&stats(mount));
    assert!(after - before < FEW, "{what}: {} messages for a walk: {}", after - before, stats(mount).json());
}

#[test]
fn a_warm_walk_sends_nothing_and_each_change_is_seen() {
    let Some(mount) = mount(NOTIFY) else { return };
    let source = mount.source().to_owned();
    let at = |name: &str| source.join(name);
    becomes_the_source(&mount, "the first walk");
    let changes: [(&str, &dyn Fn()); 13] = [
        ("contents of the same size", &|| fs::write(at("d0/f0"), "new").expect("write")),
        ("contents of another size", &|| fs::write(at("d0/f1"), "longer").expect("write")),
        ("a rename", &|| fs::rename(at("d0/f2"), at("d0/renamed")).expect("rename")),
        ("a move", &|| fs::rename(at("d0/f3"), at("d1/moved")).expect("rename")),
        ("a removal", &|| fs::remove_file(at("d0/f4")).expect("unlink")),
        ("a replacement by rename", &|| {
            fs::write(at("tmp"), "another").expect("write");
            fs::rename(at("tmp"), at("d0/f5")).expect("rename");
        }),
        ("a tree of directories", &|| {
            fs::create_dir_all(at("d2/a/b/c")).expect("mkdir");
            fs::write(at("d2/a/b/c/file"), "deep").expect("write");
        }),
        ("a directory moved", &|| fs::rename(at("d2/a"), at("d3/a")).expect("rename")),
        ("a file in a directory that was moved", &|| fs::write(at("d3/a/b/more"), "more").expect("write")),
        ("a tree removed", &|| fs::remove_dir_all(at("d3/a")).expect("rmdir")),
        ("another target of a link", &|| {
            fs::remove_file(at("d0/link")).expect("unlink");
            std::os::unix::fs::symlink("f1", at("d0/link")).expect("symlink");
        }),
        ("a truncation", &|| drop(File::create(at("d0/f1")).expect("truncate"))),
        ("an exchange of a file for a directory", &|| {
            fs::remove_file(at("d0/f6")).expect("unlink");
            fs::create_dir(at("d0/f6")).expect("mkdir");
        }),
    ];
    for (what, change) in changes {
        change();
        becomes_the_source(&mount, what);
    }
}

/// In milliseconds, not when a second has passed.
#[test]
fn a_change_is_seen_at_once() {
    let Some(mount) = mount(NOTIFY) else { return };
    let (shown, real) = (mount.point().join("d0/f0"), mount.source().join("d0/f0"));
    let mut times = Vec::new();
    for round in 0..50 {
        let text = format!("{round:03}");
        fs::read_to_string(&shown).expect("read");
        fs::write(&real, &text).expect("write");
        let then = std::time::Instant::now();
        until("the new contents", || fs::read_to_string(&shown).expect("read") == text);
        times.push(then.elapsed());
    }
    times.sort();
    assert!(times[25].as_millis() < 100, "{times:?}");
}

#[test]
fn a_missing_name_is_kept_until_it_is_there() {
    let Some(mount) = mount(NOTIFY) else { return };
    let (shown, real) = (mount.point().join("d0/new"), mount.source().join("d0/new"));
    for _ in 0..20 {
        until("the name to be gone", || !shown.exists());
        settle(&mount);
        assert!(!shown.exists());
        let before = stats(&mount).requests("lookup");
        assert!(!shown.exists() && !shown.exists());
        assert_eq!(stats(&mount).requests("lookup"), before, "a missing name is asked for");
        fs::write(&real, "x").expect("write");
        until("the name to be there", || shown.exists());
        fs::remove_file(&real).expect("unlink");
    }
}

/// Files that stay open are told of, too, by each of their names and by none.
#[test]
fn an_open_file_shows_what_others_do_to_it() {
    let Some(mount) = mount(NOTIFY) else { return };
    let at = |name: &str| mount.source().join(name);
    let file = File::open(mount.point().join("d0/f0")).expect("open");
    assert_eq!(start(&file), "old");
    fs::write(at("d0/f0"), "new").expect("write");
    until("new contents", || start(&file) == "new");
    fs::rename(at("d0/f0"), at("d1/other")).expect("rename");
    fs::write(at("d1/other"), "moved").expect("write");
    until("contents after a move", || start(&file) == "moved");
    fs::remove_file(at("d1/other")).expect("unlink");
    until("the lost name", || std::os::unix::fs::MetadataExt::nlink(&file.metadata().expect("stat")) == 0);
    assert_eq!(start(&file), "moved");
}

/// A file of two names is changed by the one that nobody has looked up.
#[test]
fn a_file_is_heard_of_by_a_name_that_was_never_looked_up() {
    let Some(mount) = mount(NOTIFY) else { return };
    let at = |name: &str| mount.source().join(name);
    fs::create_dir(at("hidden")).expect("mkdir");
    fs::hard_link(at("d0/f0"), at("hidden/other")).expect("link");
    for number in 1..10 {
        fs::hard_link(at(&format!("d0/f{number}")), at(&format!("hidden/f{number}"))).expect("link");
    }
    let shown = mount.point().join("d0/f0");
    let read = || fs::read_to_string(&shown).expect("read");
    walk(&mount.point().join("d0"));
    // After a read the kernel asks for the time of access.
    walk(&mount.point().join("d0"));
    // Longer than what is not heard of is kept.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let before = asked(&stats(&mount));
    walk(&mount.point().join("d0"));
    assert!(asked(&stats(&mount)) - before < 5, "files of two names are kept");
    fs::write(at("hidden/other"), "new").expect("write");
    until("the contents by the other name", || read() == "new");
    fs::remove_file(at("hidden/other")).expect("unlink");
    let links = || std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&shown).expect("stat"));
    until("one name", || links() == 1);
    fs::write(at("d0/f0"), "once more").expect("write");
    until("the contents by the one name", || read() == "once more");
}

/// What is done through the mount is heard of as well, and nothing in use is lost by that.
#[test]
fn a_working_directory_survives_that_its_making_is_heard_of() {
    let Some(mount) = mount("cache=notify") else { return };
    let script = "cd \"$1\" && mkdir new && cd new && sleep 0.2 && echo text > file && sleep 0.2 && pwd -P && cat file";
    let said = crate::harness::shell(script, mount.point());
    assert_eq!(said, format!("{}\ntext\n", mount.point().join("new").display()));
    let file = open(&mount.point().join("new/file"), OFlags::RDWR, 0).expect("open");
    settle(&mount);
    assert_eq!(fs::read_link(fd_link(&file)).expect("readlink"), mount.point().join("new/file"));
    until("the source", || shows_the_source(&mount));
}

fn fd_link(file: &File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// A store through a mapping of the source is told of when the file is closed and unmapped.
#[test]
fn a_mapped_store_is_seen_when_the_file_is_closed() {
    let Some(mount) = mount(NOTIFY) else { return };
    let (shown, real) = (mount.point().join("d0/f0"), mount.source().join("d0/f0"));
    for _ in 0..2 {
        // After a read the kernel asks for the time of access, and would see that of the change.
        assert_eq!(fs::read_to_string(&shown).expect("read"), "old");
        fs::metadata(&shown).expect("stat");
    }
    let file = open(&real, OFlags::RDWR, 0).expect("open");
    let mapping = crate::mapped::Mapping::writable(&file, 3).expect("mmap");
    mapping.store(0, b'O');
    drop((mapping, file));
    until("the store", || fs::read_to_string(&shown).expect("read") == "Old");
}

/// Served by the kernel itself, too.
#[test]
fn with_kernel_passthrough_the_source_is_shown() {
    let Some(mount) = mount("cache=notify") else { return };
    until("the source", || shows_the_source(&mount));
    fs::write(mount.source().join("d0/f0"), "longer than it was").expect("write");
    until("the source again", || shows_the_source(&mount));
    fs::write(mount.point().join("d0/f1"), "through the mount").expect("write");
    fs::rename(mount.source().join("d0"), mount.source().join("e0")).expect("rename");
    until("the source at last", || shows_the_source(&mount));
}
