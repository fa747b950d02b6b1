//! Everything that can be seen of a tree.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, OFlags};

use super::script::{describe, open, short, summary};

struct Seen {
    portable: String,
    exact: String,
}

/// A tree, each entry in two ways: as any two directories must agree, and as two views of one directory must.
pub(crate) struct Tree(Vec<Seen>);

impl Tree {
    /// Names, attributes, contents, link targets, extended attributes.
    pub(crate) fn portable_lines(&self) -> Vec<String> {
        self.0.iter().map(|seen| seen.portable.clone()).collect()
    }

    /// Those and inode numbers, modification and change times, and sizes of directories.
    pub(crate) fn exact_lines(&self) -> Vec<String> {
        self.0.iter().map(|seen| format!("{} {}", seen.portable, seen.exact)).collect()
    }
}

/// Walks the tree below `root`, sorted by name.
pub(crate) fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree(Vec::new());
    walk(root, Path::new("."), &mut tree);
    tree
}

fn walk(root: &Path, relative: &Path, tree: &mut Tree) {
    let path = root.join(relative);
    let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("stat of {path:?}: {e}"));
    let kind = meta.file_type();
    let body = if kind.is_file() {
        // An immutable or unreadable file is still read by root.
        fs::read(&path)
            .map_or_else(|e| format!("unreadable: {:?}", e.raw_os_error()), |bytes| summary(&bytes))
    } else if kind.is_symlink() {
        fs::read_link(&path).map_or_else(|e| e.to_string(), |target| summary(target.as_os_str().as_bytes()))
    } else {
        String::new()
    };
    let portable = format!("{} {} [{body}] {}", short(relative), describe(&path), xattrs(&path));
    let exact = format!(
        "ino={} mtime={}.{:09} ctime={}.{:09} size={}",
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.size()
    );
    tree.0.push(Seen { portable, exact });
    if kind.is_dir() {
        let mut entries = entries_checked(&path);
        entries.sort();
        for name in entries {
            walk(root, &relative.join(name), tree);
        }
    }
}

/// The names in a directory, after checking that each entry's inode number and type are those of lstat(2).
fn entries_checked(path: &Path) -> Vec<std::ffi::OsString> {
    let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0).expect("opening a directory");
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(directory).expect("reading a directory") {
        let entry = entry.expect("reading a directory");
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." {
            continue;
        }
        let stat =
            rustix::fs::statat(CWD, path.join(&name), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("lstat");
        assert_eq!(entry.ino(), stat.st_ino, "d_ino and st_ino of {name:?} in {path:?}");
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let told = entry.file_type();
        assert!(
            told == kind || told == rustix::fs::FileType::Unknown,
            "d_type of {name:?}: {told:?} for {kind:?}"
        );
        names.push(name);
    }
    names
}

/// Every extended attribute, ACLs included, sorted.
fn xattrs(path: &Path) -> String {
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(e) => return format!("xattrs: {e:?}"),
    };
    let mut names: Vec<&[u8]> = list[..length].split(|&b| b == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut out = String::new();
    for name in names {
        let mut value = vec![0; 65536];
        let value = rustix::fs::lgetxattr(path, name, &mut value[..]).map(|length| summary(&value[..length]));
        out.push_str(&format!("{}={value:?} ", name.escape_ascii()));
    }
    out
}
