//! The mount table, /proc/self/mountinfo (proc_pid_mountinfo(5)): reading it asks no file system anything, so it is
//! how we look at mounts of our own and at dead ones. A daemon reads it through the procfs it holds open, which a mount
//! of its own over /proc does not cover.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use splicefs_core::sys;

/// The table's place in procfs.
const TABLE: &str = "self/mountinfo";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its number among the mounts that stand now; used again after an unmount.
    pub id: u64,
    /// The number of the mount it is mounted on.
    pub parent: u64,
    /// `MAJOR:MINOR`.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The type, with the subtype after a dot.
    pub fs_type: String,
    /// The source.
    pub source: OsString,
}

impl Entry {
    /// Whether a FUSE daemon serves it.
    pub fn is_fuse(&self) -> bool {
        let main = self.fs_type.split('.').next();
        matches!(main, Some("fuse" | "fuseblk"))
    }

    /// Whether `other`, read at another time, is the same mount.
    pub fn is_same_mount(&self, other: &Self) -> bool {
        self.id == other.id && self.device == other.device && self.fs_type == other.fs_type
    }
}

/// All mounts this process sees.
///
/// # Errors
/// When the table cannot be read, as where /proc is not mounted.
pub fn read() -> io::Result<Vec<Entry>> {
    let table = sys::open_proc(TABLE).map_err(|e| io::Error::from_raw_os_error(e.errno().raw()))?;
    let mut bytes = Vec::new();
    File::from(table).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

/// The mounts in `table`. A line that is not as the manual page says is left out.
pub fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|&byte| byte == b'\n').filter_map(entry).collect()
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = text(fields.next()?)?;
    let _root = fields.next()?;
    let mount_point = unescape(fields.next()?);
    // The mount options, then optional fields up to a single hyphen.
    fields.find(|&field| field == b"-")?;
    let fs_type = String::from_utf8_lossy(unescape(fields.next()?).as_bytes()).into_owned();
    let source = unescape(fields.next()?);
    Some(Entry { id, parent, device, mount_point: mount_point.into(), fs_type, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(field).ok()?.to_owned())
}

/// Undoes the kernel's octal escapes (fs/seq_file.c, `mangle_path`): a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        match octal(rest) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &rest[4..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

fn octal(at: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = at else { return None };
    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
}

/// The topmost mount on exactly `point`: of several, the one that no other is mounted on.
pub fn top_at<'a>(entries: &'a [Entry], point: &Path) -> Option<&'a Entry> {
    let here = || entries.iter().filter(|entry| entry.mount_point == point);
    here().rev().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
}

/// The mount that `path`, absolute and canonical, lies in.
pub fn containing<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    path.ancestors().find_map(|ancestor| top_at(entries, ancestor))
}

/// What a person calls the mount: its type, and its source.
pub fn title(entry: &Entry) -> String {
    format!("{} mount of {}", entry.fs_type, Path::new(&entry.source).display())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
36 27 0:40 / /mnt/a\\040b\\134c\\011d\\012e rw,nosuid shared:7 master:3 - fuse.splicefs /src\\040dir rw,user_id=0\n\
37 27 0:41 / /mnt/twice rw - fuse first rw\n\
38 37 0:42 / /mnt/twice rw - tmpfs second rw\n\
39 27 0:43 / /mnt/\\43hash rw - fuseblk x rw\n\
40 27 0:44 / /mnt/\xff rw - fuse.a.b  rw\n\
a bad line\n";

    #[test]
    fn escapes_and_optional_fields_are_read() {
        let entries = parse(TABLE);
        assert_eq!(entries.len(), 6);
        let ours = &entries[1];
        assert_eq!(ours.mount_point, Path::new("/mnt/a b\\c\td\ne"));
        assert_eq!((ours.id, ours.parent, ours.device.as_str()), (36, 27, "0:40"));
        assert_eq!(
            (ours.fs_type.as_str(), ours.source.as_os_str()),
            ("fuse.splicefs", OsStr::new("/src dir"))
        );
        assert_eq!(entries[4].mount_point, Path::new("/mnt/\\43hash"), "two digits are no escape");
        assert_eq!(entries[5].mount_point.as_os_str().as_bytes(), b"/mnt/\xff");
        assert_eq!(entries[5].source, "");
    }

    #[test]
    fn the_topmost_of_two_is_the_one_nothing_is_mounted_on() {
        let mut entries = parse(TABLE);
        assert_eq!(top_at(&entries, Path::new("/mnt/twice")).map(|e| e.id), Some(38));
        entries.swap(2, 3);
        assert_eq!(top_at(&entries, Path::new("/mnt/twice")).map(|e| e.id), Some(38));
        assert_eq!(top_at(&entries, Path::new("/mnt")), None);
        assert_eq!(containing(&entries, Path::new("/mnt/twice/x/y")).map(|e| e.id), Some(38));
        assert_eq!(containing(&entries, Path::new("/mnt")).map(|e| e.id), Some(27));
    }

    #[test]
    fn fuse_types_are_told_from_their_control_file_system() {
        let of = |fs_type: &str| Entry { fs_type: fs_type.to_owned(), ..parse(TABLE)[0].clone() };
        for fuse in ["fuse", "fuseblk", "fuse.splicefs", "fuseblk.ntfs"] {
            assert!(of(fuse).is_fuse(), "{fuse}");
        }
        for other in ["fusectl", "ext4", "", "xfuse.fuse"] {
            assert!(!of(other).is_fuse(), "{other}");
        }
    }

    #[test]
    fn this_machines_table_has_a_root() {
        assert!(top_at(&read().expect("/proc is mounted"), Path::new("/")).is_some());
    }
}
