//! What the kernel keeps of a source that others change (`cache=`).

mod modes;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::harness::{Mount, Need, Stats, ready};

/// A mount as root over a small tree, with the source's files older than any granularity of times.
fn mount(options: &str) -> Option<Mount> {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return None;
    }
    let mount = Mount::builder().options(options);
    plant(mount.source());
    Some(mount.start())
}

/// Directories `d0` to `d4` with files `f0` to `f9` of the text "old", and a link to one.
fn plant(source: &Path) {
    for dir in 0..5 {
        let dir = source.join(format!("d{dir}"));
        fs::create_dir(&dir).expect("mkdir");
        for file in 0..10 {
            fs::write(dir.join(format!("f{file}")), "old").expect("write");
        }
        std::os::unix::fs::symlink("f0", dir.join("link")).expect("symlink");
    }
}

/// Looks at everything below `dir` and reads every file; returns what it saw, sorted.
fn walk(dir: &Path) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(dir).expect("readdir") {
        let path = entry.expect("readdir").path();
        let meta = fs::symlink_metadata(&path).expect("stat");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if meta.is_dir() {
            seen.extend(walk(&path).into_iter().map(|(below, what)| (format!("{name}/{below}"), what)));
            seen.push((name, format!("directory of {} links", meta.nlink())));
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).expect("readlink");
            seen.push((name, format!("link to {}", target.display())));
        } else {
            let text = fs::read_to_string(&path).expect("read");
            seen.push((name, format!("{} bytes: {text}", meta.len())));
        }
    }
    seen.sort();
    seen
}

/// Requests that ask what something is or holds.
fn asked(stats: &Stats) -> u64 {
    let counted = ["lookup", "getattr", "read", "readdir", "readdirplus", "readlink"];
    counted.into_iter().map(|operation| stats.requests(operation)).sum()
}

fn stats(mount: &Mount) -> Stats {
    mount.stats().expect("stats")
}

/// The first bytes of an open file.
fn start(file: &File) -> String {
    let mut buffer = [0; 64];
    let length = file.read_at(&mut buffer, 0).expect("read");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}
