//! /proc/thread-self/mountinfo, read exactly: fields are octal-escaped bytes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug)]
pub(crate) struct MountEntry {
    pub(crate) point: OsString,
    pub(crate) kind: String,
    pub(crate) source: OsString,
    /// Per-mount options.
    pub(crate) options: Vec<String>,
    /// Options of the file system.
    pub(crate) super_options: Vec<String>,
}

impl MountEntry {
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().chain(&self.super_options).any(|o| o == option)
    }
}

fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn parse(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let list = |field: &[u8]| String::from_utf8_lossy(field).split(',').map(str::to_owned).collect();
    Some(MountEntry {
        point: unescape(fields.get(4)?),
        options: list(fields.get(5)?),
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: unescape(fields.get(dash + 2)?),
        super_options: list(fields.get(dash + 3)?),
    })
}

/// All mounts this thread sees.
pub(crate) fn entries() -> Vec<MountEntry> {
    let text = std::fs::read("/proc/thread-self/mountinfo").expect("reading mountinfo");
    text.split(|&b| b == b'\n').filter_map(parse).collect()
}

/// The topmost mount at exactly `point`, if there is one.
pub(crate) fn entry_at(point: &Path) -> Option<MountEntry> {
    entries().into_iter().rfind(|entry| entry.point.as_bytes() == point.as_os_str().as_bytes())
}

pub(crate) fn is_mounted(point: &Path) -> bool {
    entry_at(point).is_some()
}

#[test]
fn escapes_of_mountinfo_are_undone_once() {
    assert_eq!(unescape(br"a\040b\134054\011"), OsString::from("a b\\054\t"));
    assert_eq!(unescape(br"tail\04"), OsString::from(r"tail\04"));
}
