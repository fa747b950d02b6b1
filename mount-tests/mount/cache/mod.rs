//! What the kernel keeps of a source that others change (`cache=`).

mod limits;
mod modes;
mod notify;
mod regressions;
mod storm;

use std::fs::{self, File};
use std::io;
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

/// What is seen by looking at everything and reading every file: sorted paths with what each is.
type Sight = Vec<(String, String)>;

/// Looks at everything below `dir` and reads every file.
fn walk(dir: &Path) -> Sight {
    try_walk(dir).unwrap_or_else(|e| panic!("walking over {dir:?}: {e}"))
}

/// The same while others change the tree: names may be gone between two looks.
fn try_walk(dir: &Path) -> io::Result<Sight> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if meta.is_dir() {
            seen.extend(try_walk(&path)?.into_iter().map(|(below, what)| (format!("{name}/{below}"), what)));
            seen.push((name, format!("directory of {} links", meta.nlink())));
        } else if meta.is_symlink() {
            seen.push((name, format!("link to {}", fs::read_link(&path)?.display())));
        } else {
            let text = fs::read_to_string(&path)?;
            seen.push((name, format!("{} bytes, {} names: {text}", meta.len(), meta.nlink())));
        }
    }
    seen.sort();
    Ok(seen)
}

/// Whether the mount shows what the source holds.
fn shows_the_source(mount: &Mount) -> bool {
    try_walk(mount.point()).is_ok_and(|shown| shown == walk(mount.source()))
}

/// More messages than to look at the statistics takes, and at the time of access of each link that was read.
const FEW: u64 = 10;

/// Requests that ask what something is or holds, but for links, which are asked for each time.
fn asked(stats: &Stats) -> u64 {
    let counted = ["lookup", "getattr", "read", "readdir", "readdirplus"];
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
