//! What a test needs of the machine. Locally a missing thing skips the test with its reason; in CI it is a failure.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::mountinfo::entries;
use super::tools::have_program;

/// A requirement of a test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// A usable /dev/fuse.
    Fuse,
    /// fusermount3 and a /dev/fuse that any user may open, as udev sets it up.
    UserMounts,
    /// Effective uid 0.
    Root,
    /// splicefs itself, so not under the native control.
    Splicefs,
    /// A program on the path.
    Program(&'static str),
    /// A free loop device.
    LoopDevice,
    /// Control groups that can be made, and their memory limited.
    MemoryGroups,
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Fuse if native_control() => None,
            Self::Fuse => (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".into()),
            Self::UserMounts => {
                let mode = std::fs::metadata("/dev/fuse").map_or(0, |meta| meta.permissions().mode());
                let reason = "users may not open /dev/fuse (chmod 666 /dev/fuse)".to_owned();
                (mode & 0o006 != 0o006).then_some(reason).or_else(|| Self::Program("fusermount3").missing())
            }
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "it must run as root".into()),
            Self::Splicefs => None,
            Self::Program(name) => (!have_program(name)).then(|| format!("the program {name} is missing")),
            Self::LoopDevice => {
                (!Path::new("/dev/loop-control").exists()).then(|| "there are no loop devices".into())
            }
            Self::MemoryGroups => memory_groups()
                .is_none()
                .then(|| "no control groups with a memory controller are mounted".into()),
        }
    }
}

/// Where groups can be made whose memory is limited, and the file that limits it: version 1, or version 2 where the
/// machine has its groups' memory controlled.
pub(crate) fn memory_groups() -> Option<(PathBuf, &'static str)> {
    entries().into_iter().find_map(|entry| {
        let point = PathBuf::from(&entry.point);
        let controlled = || std::fs::read_to_string(point.join("cgroup.subtree_control")).unwrap_or_default();
        match entry.kind.as_str() {
            "cgroup" if entry.has("memory") => Some((point, "memory.limit_in_bytes")),
            "cgroup2" if controlled().split_whitespace().any(|name| name == "memory") => {
                Some((point, "memory.max"))
            }
            _ => None,
        }
    })
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| matches!(value.as_str(), "1" | "true"))
}

/// Whether mounts are bind mounts of the source, to test the tests.
pub(crate) fn native_control() -> bool {
    is_set("SPLICEFS_TESTS_NATIVE")
}

/// Whether the long forms of the tests were asked for.
pub(crate) fn long_run() -> bool {
    is_set("SPLICEFS_TESTS_LONG")
}

/// Whether the test can run. A false answer has been explained on stderr; where tests are required it panics instead.
pub(crate) fn ready(needs: &[Need]) -> bool {
    if native_control() && needs.contains(&Need::Splicefs) {
        eprintln!("not run under the native control: it is about splicefs itself");
        return false;
    }
    let missing: Vec<_> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return true;
    }
    let reason = missing.join("; ");
    assert!(!is_set("CI") && !is_set("SPLICEFS_TESTS_REQUIRE"), "the test cannot run: {reason}");
    eprintln!("SKIPPED: {reason}");
    false
}
