//! A script acts below a root directory and records what each step answered, without naming the root.

use std::fmt::{Debug, Display};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::harness::{Identity, as_caller};

/// The record of a run below one root.
pub(crate) struct Script {
    root: PathBuf,
    lines: Vec<String>,
}

impl Script {
    /// Creates `root`, runs `case` there and returns the record.
    pub(crate) fn run(root: &Path, case: fn(&mut Self)) -> Vec<String> {
        fs::create_dir(root).expect("creating the root of the script");
        // Other users act in it too.
        rustix::fs::chmod(root, Mode::from_raw_mode(0o777)).expect("chmod of the root of the script");
        let mut script = Self { root: root.to_owned(), lines: Vec::new() };
        case(&mut script);
        script.lines
    }

    /// The path of `name` below the root.
    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Records what `step` answered.
    pub(crate) fn note(&mut self, step: impl Display, answer: impl Debug) {
        self.lines.push(format!("{step}: {answer:?}"));
    }

    /// Records an answer where only the error matters.
    pub(crate) fn outcome<T>(&mut self, step: impl Display, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(step, "ok");
                Some(value)
            }
            Err(errno) => {
                self.note(step, errno_name(errno));
                None
            }
        }
    }

    /// Runs `action` as `identity` and records its outcome.
    pub(crate) fn outcome_as<T: Send>(
        &mut self,
        identity: &Identity,
        step: impl Display,
        action: impl FnOnce() -> Result<T, Errno> + Send,
    ) -> Option<T> {
        let result = as_caller(identity, action);
        self.outcome(format!("{step} as {}:{}{:?}", identity.uid, identity.gid, identity.groups), result)
    }

    /// Records type, mode, owner, link count, size and device number of `name`.
    pub(crate) fn attributes(&mut self, name: impl AsRef<Path>) {
        let name = name.as_ref();
        let described = describe(&self.at(name));
        self.note(format_args!("attributes of {}", short(name)), described);
    }

    /// A file with the given contents and mode 0644, made by whoever runs.
    pub(crate) fn file(&mut self, name: impl AsRef<Path>, contents: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, contents).expect("writing a file for a script");
        path
    }

    /// A directory with exactly this mode.
    pub(crate) fn directory(&mut self, name: impl AsRef<Path>, mode: u32) -> PathBuf {
        let path = self.at(name);
        fs::create_dir(&path).expect("making a directory for a script");
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod for a script");
        path
    }

    /// Records the contents of a file.
    pub(crate) fn contents(&mut self, name: impl AsRef<Path>) {
        let name = name.as_ref();
        let contents = fs::read(self.at(name)).map(|bytes| summary(&bytes)).map_err(|e| e.raw_os_error());
        self.note(format_args!("contents of {}", short(name)), contents);
    }
}

/// open(2) with flags and mode, as scripts do it; programs that other tests start at the same time do not get the descriptor.
pub(crate) fn open(path: &Path, flags: OFlags, mode: u32) -> Result<fs::File, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map(fs::File::from)
}

/// The error number of an `std` result.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Turns an `std` result into one that scripts record.
pub(crate) fn os<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| errno(&e))
}

fn errno_name(errno: Errno) -> String {
    format!("{errno:?} ({})", errno.raw_os_error())
}

/// Attributes as text, leaving out what no two directories share (times, inode numbers, sizes of directories).
pub(crate) fn describe(path: &Path) -> String {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) => return errno_name(errno(&e)),
    };
    let kind = FileType::from_raw_mode(meta.mode());
    let size = if meta.is_dir() { String::new() } else { format!(" size={}", meta.size()) };
    let device = if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
        format!(" rdev={:#x}", meta.rdev())
    } else {
        String::new()
    };
    let (mode, links) = (meta.mode() & 0o7777, meta.nlink());
    format!("{kind:?} {mode:04o} {}:{} links={links}{size}{device}", meta.uid(), meta.gid())
}

/// Bytes as text: short ones whole, long ones by length and a sum that depends on the order.
pub(crate) fn summary(bytes: &[u8]) -> String {
    if bytes.len() <= 64 {
        return bytes.escape_ascii().to_string();
    }
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes, sum {sum:016x}", bytes.len())
}

/// A name for the record: long ones would hide the rest of the line.
pub(crate) fn short(name: &Path) -> String {
    let text = name.as_os_str().as_bytes().escape_ascii().to_string();
    if text.len() <= 80 { text } else { format!("{}...({} bytes)", &text[..40], name.as_os_str().len()) }
}

/// Fails with the first difference and what came before it.
pub(crate) fn compare(left_name: &str, left: &[String], right_name: &str, right: &[String]) {
    let common = left.iter().zip(right).take_while(|(l, r)| l == r).count();
    if common == left.len() && common == right.len() {
        return;
    }
    let before = left[common.saturating_sub(3)..common].join("\n    ");
    let line = |lines: &[String]| lines.get(common).map_or("(the end)", String::as_str).to_owned();
    let all = left.iter().zip(right).filter(|(l, r)| l != r).count();
    panic!(
        "{left_name} and {right_name} differ in {all} of {} lines (lengths {} and {}), first in line {common}\n    \
         {before}\n{left_name}: {}\n{right_name}: {}",
        left.len(),
        left.len(),
        right.len(),
        line(left),
        line(right)
    );
}
