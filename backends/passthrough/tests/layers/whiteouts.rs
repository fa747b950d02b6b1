//! Whiteouts: one file under many names.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use splicefs_core::{Backend, Errno, Layer};
use splicefs_passthrough::Passthrough;

use crate::common::{errno, find, mkdir, name, set, writable};

fn layer() -> (tempfile::TempDir, Passthrough) {
    let base = tempfile::tempdir().unwrap();
    let fs = writable(&set(), base.path());
    (base, fs)
}

/// The inode number of the whiteout of that name.
fn whiteout(base: &tempfile::TempDir, path: &str) -> u64 {
    let st = std::fs::symlink_metadata(base.path().join(path)).unwrap();
    assert!(st.file_type().is_char_device() && st.rdev() == 0 && st.mode() & 0o7777 == 0, "{st:?}");
    st.ino()
}

#[test]
fn whiteouts_are_one_file_in_all_directories() {
    let (base, fs) = layer();
    let root = fs.root();
    let dir = mkdir(&fs, &root, "d");
    fs.make_whiteout(&root, &name("a")).unwrap();
    fs.make_whiteout(&dir, &name("b")).unwrap();
    assert_eq!(whiteout(&base, "a"), whiteout(&base, "d/b"));
    assert_eq!(errno(fs.make_whiteout(&root, &name("d"))), Errno::EEXIST);
    assert_eq!(errno(fs.make_whiteout(&dir, &name("b"))), Errno::EEXIST);
    // It goes name by name.
    fs.unlink(&root, &name("a")).unwrap();
    assert_eq!(whiteout(&base, "d/b"), fs.getattr(&find(&fs, &dir, "b"), None).unwrap().ino);
}

#[test]
fn without_any_name_left_a_whiteout_is_made_anew() {
    let (base, fs) = layer();
    let root = fs.root();
    for round in 0..3 {
        fs.make_whiteout(&root, &name("a")).unwrap();
        fs.make_whiteout(&root, &name("b")).unwrap();
        assert_eq!(whiteout(&base, "a"), whiteout(&base, "b"), "round {round}");
        fs.unlink(&root, &name("a")).unwrap();
        fs.unlink(&root, &name("b")).unwrap();
    }
}

#[test]
fn there_are_more_whiteouts_than_a_file_can_have_names() {
    /// ext4 allows 65,000 (`EXT4_LINK_MAX`).
    const MANY: usize = 65_100;
    let (base, fs) = layer();
    let root = fs.root();
    for number in 0..MANY {
        fs.make_whiteout(&root, &name(&number.to_string())).unwrap();
    }
    let files: HashSet<_> = (0..MANY).map(|number| whiteout(&base, &number.to_string())).collect();
    assert!(files.len() <= 2, "{} files", files.len());
}
