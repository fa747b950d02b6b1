//! What a process of the benchmark can be told to do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is done with each name of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Visit {
    /// It is listed.
    Name,
    /// Its attributes are asked for.
    Stat,
    /// A file is opened, read and closed.
    Read,
    /// It is removed.
    Remove,
}

/// What is done with each of many small files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Act {
    Create,
    Stat,
    Rename,
    Unlink,
}

/// Many files in several directories below `dir`; the threads share the directories.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Many {
    pub(crate) dir: PathBuf,
    pub(crate) dirs: usize,
    pub(crate) each: usize,
    /// Bytes in each file.
    pub(crate) size: usize,
    pub(crate) threads: usize,
}

/// One thing to do, and to time. Paths are absolute, sizes in bytes. With `drop`, what the kernel has cached of the file is
/// dropped before the time begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Reads of files from their begin to their end, each by a thread of its own.
    Read { files: Vec<PathBuf>, buffer: usize, passes: usize, drop: bool, direct: bool },
    /// Reads of `size` bytes, at random places, or one after the other without read-ahead.
    ReadAt { file: PathBuf, size: usize, count: usize, random: bool, drop: bool },
    /// A load of each page of a mapping.
    Map { file: PathBuf, drop: bool },
    /// Writes from the begin on, into a new file or over what is there.
    Write { file: PathBuf, length: u64, buffer: usize, new: bool },
    /// Writes of `size` bytes at random places.
    WriteAt { file: PathBuf, size: usize, count: usize },
    /// Writes with O_APPEND to a new file.
    Append { file: PathBuf, size: usize, count: usize },
    /// A walk over a tree.
    Walk { dir: PathBuf, visit: Visit },
    /// stat(2) of names that do not exist.
    Missing { dir: PathBuf, count: usize },
    /// statfs(2), which always reaches the daemon.
    StatFs { path: PathBuf, count: usize },
    /// Something with each of many files.
    Files { files: Many, act: Act },
    /// Directories and files of several sizes, with times and modes, as tar makes them.
    Unpack { dir: PathBuf, dirs: usize, each: usize },
    /// A directory, and those above it.
    MakeDir { dir: PathBuf },
    /// A copy of a tree, holes as holes.
    Copy { from: PathBuf, to: PathBuf },
    /// Uses processor time until the one who started it ends.
    Spin,
}

/// What came of a task.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) seconds: f64,
    /// Bytes moved, or operations done.
    pub(crate) amount: u64,
}
