//! How much memory there is for this process: the machine's, or what its memory control group leaves of it.
//!
//! A group that takes more than its limit is reclaimed from, and then its processes are killed (cgroups(7),
//! Documentation/admin-guide/cgroup-v2.rst): what a mount in memory may hold has to stay below the limits of the daemon's group
//! and of all groups around it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use crate::options::PAGE_BYTES;

/// The lowest limit of the groups that this process is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLimit {
    /// In bytes.
    pub bytes: u64,
    /// The file that sets it.
    pub file: PathBuf,
}

/// What limits a group, in version 2 and in version 1. Above `memory.high` a group is not killed, but slowed down until it
/// hardly runs, since what lies in memory for good cannot be reclaimed.
const FILES_V2: &[&str] = &["memory.max", "memory.high"];
const FILES_V1: &[&str] = &["memory.limit_in_bytes"];

/// Memory this process may take, in pages of 4 KiB: the machine's, or the limit of its group where that is lower.
pub(crate) fn available_pages() -> u64 {
    let machine = machine_pages();
    group_limit().map_or(machine, |limit| machine.min(limit.bytes / PAGE_BYTES))
}

/// The limit of this process's memory control group, where it is lower than the machine's memory. It is read once, by the
/// first to ask, which is before anything is mounted: later the files may lie behind a mount of this process itself.
pub(crate) fn group_limit() -> Option<&'static GroupLimit> {
    static LIMIT: OnceLock<Option<GroupLimit>> = OnceLock::new();
    let read = || {
        let groups = fs::read("/proc/self/cgroup").ok()?;
        let mounts = fs::read("/proc/self/mountinfo").ok()?;
        let limit = lowest(&groups, &mounts)?;
        (limit.bytes / PAGE_BYTES < machine_pages()).then_some(limit)
    };
    LIMIT.get_or_init(read).as_ref()
}

/// The memory the kernel manages, in pages of 4 KiB (`totalram_pages`, sysinfo(2)).
fn machine_pages() -> u64 {
    let memory = rustix::system::sysinfo();
    // The fields are of the C type `unsigned long`, which is not 64 bits wide everywhere.
    #[allow(clippy::useless_conversion, reason = "32-bit machines")]
    let total = u64::from(memory.totalram);
    total.saturating_mul(u64::from(memory.mem_unit.max(1))) / PAGE_BYTES
}

/// The lowest limit, of `groups` (/proc/PID/cgroup) and the control groups in `mounts` (/proc/PID/mountinfo).
fn lowest(groups: &[u8], mounts: &[u8]) -> Option<GroupLimit> {
    let v2 = group(groups, |number, controllers| number == b"0" && controllers.is_empty());
    let v1 =
        group(groups, |_, controllers| controllers.split(|&byte| byte == b',').any(|one| one == b"memory"));
    let lines = mounts.split(|&byte| byte == b'\n');
    let limits = lines.filter_map(mounted).filter_map(|mount| {
        let (path, files) = if mount.is_v2 { (v2?, FILES_V2) } else { (v1?, FILES_V1) };
        let around = directories(&mount, Path::new(OsStr::from_bytes(path)));
        around
            .into_iter()
            .flat_map(|directory| files.iter().map(move |file| directory.join(file)))
            .filter_map(limit)
            .min_by_key(bytes)
    });
    limits.min_by_key(bytes)
}

fn bytes(limit: &GroupLimit) -> u64 {
    limit.bytes
}

/// The limit that `file` sets; `None` for `max`, and for a file that is not there: the root group has none.
fn limit(file: PathBuf) -> Option<GroupLimit> {
    let bytes = fs::read_to_string(&file).ok()?.trim_ascii().parse().ok()?;
    Some(GroupLimit { bytes, file })
}

/// The group in the line whose number and controllers are those `wanted` (`NUMBER:CONTROLLERS:PATH`).
fn group(groups: &[u8], wanted: impl Fn(&[u8], &[u8]) -> bool) -> Option<&[u8]> {
    groups.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        wanted(number, controllers).then_some(path)
    })
}

/// A mount of control groups that may have the memory controller.
struct Mount {
    /// The group that its root is, as this process's cgroup namespace names it.
    root: PathBuf,
    point: PathBuf,
    is_v2: bool,
}

/// The mount in a line of mountinfo (proc_pid_mountinfo(5)), if it is one of control groups with memory.
fn mounted(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (root, point) = (unescaped(fields.nth(3)?), unescaped(fields.next()?));
    fields.find(|&field| field == b"-")?;
    let is_v2 = match fields.next()? {
        b"cgroup2" => true,
        b"cgroup" => false,
        _ => return None,
    };
    let mut has_memory = || {
        fields.nth(1).is_some_and(|options| options.split(|&byte| byte == b',').any(|one| one == b"memory"))
    };
    (is_v2 || has_memory()).then_some(Mount { root, point, is_v2 })
}

/// The directories of the group `path` and of those around it, as far as they are below `mount`. Both paths are relative to
/// the root of this process's cgroup namespace, and begin with `..` for what lies outside (cgroup_namespaces(7)).
fn directories(mount: &Mount, path: &Path) -> Vec<PathBuf> {
    if let Ok(inside) = path.strip_prefix(&mount.root) {
        return match inside.components().any(|one| one == Component::ParentDir) {
            // Outside of the namespace, and so of what is mounted.
            true => Vec::new(),
            false => inside.ancestors().map(|group| mount.point.join(group)).collect(),
        };
    }
    // A root so many groups above the namespace is around everything in it, but the names between are not known.
    let ups = |path: &Path| path.components().skip(1).take_while(|one| *one == Component::ParentDir).count();
    let is_above = ups(&mount.root) + 1 == mount.root.components().count() && ups(path) < ups(&mount.root);
    if is_above { vec![mount.point.clone()] } else { Vec::new() }
}

/// A field of mountinfo, in which some bytes are written in octal.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Control groups made of plain files below a directory with a space in its name.
    struct Made {
        _folder: tempfile::TempDir,
        at: PathBuf,
    }

    impl Made {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let at = folder.path().join("c g");
            for (name, contents) in files {
                let file = at.join(name);
                fs::create_dir_all(file.parent().expect("a directory")).expect("mkdir");
                fs::write(file, format!("{contents}\n")).expect("write");
            }
            Self { _folder: folder, at }
        }

        /// The lowest limit and its file, of a process in `groups` that sees group `root` mounted with `options`.
        fn lowest(&self, groups: &str, root: &str, kind: &str, options: &str) -> Option<(u64, String)> {
            let point = self.at.to_str().expect("UTF-8").replace(' ', "\\040");
            let mounts = format!(
                "22 1 254:0 / / rw - ext4 /dev/vda rw\nnot a line\n30 22 0:26 {root} {point} rw,relatime shared:4 - {kind} {kind} {options}\n"
            );
            let found = lowest(groups.as_bytes(), mounts.as_bytes())?;
            let file = found.file.strip_prefix(&self.at).expect("inside");
            Some((found.bytes, file.to_str().expect("UTF-8").to_owned()))
        }
    }

    #[track_caller]
    fn found(bytes: u64, file: &str) -> Option<(u64, String)> {
        Some((bytes, file.to_owned()))
    }

    #[test]
    fn the_lowest_limit_of_a_group_and_those_around_it_counts() {
        let made = Made::new(&[
            ("a/memory.max", "4096000"),
            ("a/memory.high", "max"),
            ("a/b/memory.max", "max"),
            ("a/b/memory.high", "8192000"),
            ("a/b/c/memory.max", "16384000"),
            ("a/h/memory.high", "1000"),
            ("x/memory.max", "1"),
        ]);
        let lowest = |path: &str| made.lowest(&format!("0::{path}\n"), "/", "cgroup2", "rw,nsdelegate");
        assert_eq!(lowest("/a/b/c"), found(4_096_000, "a/memory.max"));
        assert_eq!(lowest("/a/h"), found(1000, "a/h/memory.high"));
        assert_eq!(lowest("/"), None, "the root has no limit");
        assert_eq!(lowest("/other/gone"), None);
    }

    #[test]
    fn version_1_is_read_where_the_memory_controller_is() {
        let made = Made::new(&[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("a/memory.limit_in_bytes", "5000"),
            ("a/b/memory.limit_in_bytes", "9223372036854771712"),
        ]);
        let groups = "5:cpu,cpuacct:/elsewhere\n4:blkio,memory:/a/b\n1:name=systemd:/a:b\n0::/x\n";
        assert_eq!(
            made.lowest(groups, "/", "cgroup", "rw,blkio,memory"),
            found(5000, "a/memory.limit_in_bytes")
        );
        assert_eq!(made.lowest(groups, "/", "cgroup", "rw,cpu"), None, "another controller's");
        assert_eq!(made.lowest("5:cpu:/a\n", "/", "cgroup", "rw,memory"), None, "in no memory group");
    }

    #[test]
    fn groups_are_found_below_the_root_of_what_is_mounted() {
        let made = Made::new(&[("memory.max", "7000"), ("in/memory.max", "8000"), ("out/memory.max", "1")]);
        let lowest = |path: &str, root: &str| made.lowest(&format!("0::{path}\n"), root, "cgroup2", "rw");
        // A container without a cgroup namespace: what is mounted is its group.
        assert_eq!(lowest("/docker/1/in", "/docker/1"), found(7000, "memory.max"));
        assert_eq!(lowest("/docker/2/in", "/docker/1"), None, "another container's");
        // One with a namespace, and one whose mount is older than that.
        assert_eq!(lowest("/in", "/"), found(7000, "memory.max"));
        assert_eq!(lowest("/in", "/../.."), found(7000, "memory.max"));
        // A process that came into the namespace from outside.
        assert_eq!(lowest("/../out", "/"), None);
        assert_eq!(lowest("/../out", "/.."), found(1, "out/memory.max"));
    }

    #[test]
    fn no_table_panics() {
        for (groups, mounts) in [
            ("", ""),
            (":::\n::\n0:\n", "1 2 3\n\n- cgroup2\n"),
            ("0::", "1 2 3:4 / /x rw - cgroup2"),
            ("0::", "1 2 3:4 / /x\\0 rw - cgroup c"),
        ] {
            assert_eq!(lowest(groups.as_bytes(), mounts.as_bytes()), None);
        }
    }
}
