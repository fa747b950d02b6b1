//! Everything that can be seen of a tree, each node as a line.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::run::{View, describe, entries};
use crate::posix::script::summary;

const PAGE: usize = 4096;
/// As much of a file's data as is read; no sequence writes more.
const MOST: u64 = 256 << 20;

/// The lines of the tree below `root`, sorted by name: attributes, contents with the places of the holes, targets,
/// extended attributes, and which names are one node.
pub(crate) fn snapshot(root: &Path, view: View) -> Vec<String> {
    let mut tree = Tree { view, lines: Vec::new(), first_names: HashMap::new() };
    tree.walk(root, ".");
    tree.lines
}

struct Tree {
    view: View,
    lines: Vec<String>,
    first_names: HashMap<u64, String>,
}

fn open(path: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

impl Tree {
    fn walk(&mut self, path: &Path, name: &str) {
        let stat = rustix::fs::lstat(path).unwrap_or_else(|e| panic!("stat of {name}: {e}"));
        let kind = FileType::from_raw_mode(stat.st_mode);
        let body = match kind {
            FileType::RegularFile => {
                contents(path, &stat, self.view).unwrap_or_else(|e| format!("unreadable: {e:?}"))
            }
            FileType::Symlink => std::fs::read_link(path)
                .map_or_else(|e| e.to_string(), |target| summary(target.as_os_str().as_bytes())),
            _ => String::new(),
        };
        let first = self.first_names.entry(stat.st_ino).or_insert_with(|| name.to_owned());
        // Marks of users cannot be on links and special files, whose numbers an overlay then makes up.
        let told = self.view == View::Exact || kind == FileType::RegularFile;
        let first = if first == name || !told { String::new() } else { format!(" is {first}") };
        let time = if self.view == View::Merged { old_time(&stat) } else { String::new() };
        let attributes = describe(&stat, self.view);
        self.lines.push(format!("{name}{first}: {attributes}{time} [{body}] {}", xattrs(path)));
        if kind == FileType::Directory {
            self.directory(path, name, &stat);
        }
    }

    fn directory(&mut self, path: &Path, name: &str, stat: &Stat) {
        let directory = open(path, OFlags::DIRECTORY).unwrap_or_else(|e| panic!("opening {name}: {e}"));
        let entries = entries(directory).unwrap_or_else(|e| panic!("reading {name}: {e}"));
        for (entry, kind, number) in entries {
            let entry = entry.to_string_lossy();
            if entry == "." {
                assert_eq!(number, stat.st_ino, "the number of . in {name}");
            }
            if entry == "." || entry == ".." {
                continue;
            }
            let (path, name) = (path.join(entry.as_ref()), format!("{name}/{entry}"));
            let stat = rustix::fs::lstat(&path).unwrap_or_else(|e| panic!("stat of the entry {name}: {e}"));
            let expected = (FileType::from_raw_mode(stat.st_mode), stat.st_ino);
            if (kind, number) != expected {
                self.lines.push(format!("{name}: readdir says {:?}, stat {expected:?}", (kind, number)));
            }
            self.walk(&path, &name);
        }
    }
}

/// The data of a file, and where it lies.
fn contents(path: &Path, stat: &Stat, view: View) -> Result<String, Errno> {
    let file = File::from(open(path, OFlags::empty())?);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let (mut text, mut place, mut total) = (String::new(), 0, 0);
    while place < size {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(place)) {
            Ok(data) => data,
            Err(Errno::NXIO) => size,
            Err(errno) => return Err(errno),
        };
        if data > place {
            text.push_str(hole(&file, place, data)?);
        }
        if data >= size {
            break;
        }
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
        total += hole - data;
        if total > MOST {
            text.push_str(&format!("{data}..{hole} too much to read "));
            break;
        }
        let mut bytes = vec![0; usize::try_from(hole - data).map_err(|_| Errno::OVERFLOW)?];
        file.read_exact_at(&mut bytes, data).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        match view {
            View::Exact => text.push_str(&format!("{data}..{hole} {} ", summary(&bytes))),
            View::Merged => blocks(&mut text, &bytes, data),
        }
        place = hole;
    }
    Ok(text)
}

/// A line's part for each block that is not zero, wherever the holes are.
fn blocks(text: &mut String, bytes: &[u8], offset: u64) {
    /// No file system has smaller ones, so data and holes begin where a block does.
    const BLOCK: usize = 1024;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        // The rest of a block, past the end of the file, is zero or is not there.
        if let Some(last) = block.iter().rposition(|&byte| byte != 0) {
            let mut hasher = DefaultHasher::new();
            block[..=last].hash(&mut hasher);
            text.push_str(&format!("{}:{:x} ", offset + (index * BLOCK) as u64, hasher.finish()));
        }
    }
}

/// The time of the last modification, where it is older than any test: it was given and must have been kept.
fn old_time(stat: &Stat) -> String {
    /// 2024.
    const RECENT: i64 = 1_700_000_000;
    let old = stat.st_mtime < RECENT || stat.st_mtime > 2 * RECENT;
    if old { format!(" mtime={}.{:09}", stat.st_mtime, stat.st_mtime_nsec) } else { String::new() }
}

/// What is to be said of a hole whose first and last page are read: nothing when they are zero.
fn hole(file: &File, start: u64, end: u64) -> Result<&'static str, Errno> {
    let mut page = [0; PAGE];
    for place in [start, end.saturating_sub(PAGE as u64).max(start)] {
        let length = usize::try_from(end - place).map_or(PAGE, |length| length.min(PAGE));
        let page = &mut page[..length];
        let count = file.read_at(page, place).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        if page[..count].iter().any(|&byte| byte != 0) {
            return Ok("a hole that is not zero ");
        }
    }
    Ok("")
}

fn xattrs(path: &Path) -> String {
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(errno) => return format!("{errno:?}"),
    };
    let mut names: Vec<_> = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 65536];
        let shown = match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => format!("{length} bytes {}", summary(&value[..length])),
            Err(errno) => format!("{errno:?}"),
        };
        text.push_str(&format!("{}={shown} ", name.escape_ascii()));
    }
    text
}
