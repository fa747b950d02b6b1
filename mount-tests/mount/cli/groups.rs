//! A file system in memory in a control group whose memory is limited.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Place, assert_success, run, stderr, stdout};
use crate::harness::{Need, command, memory_groups, ready, splicefs_binary, until};

/// What the groups of these tests allow, in bytes.
const ALLOWED: u64 = 256 << 20;

/// A memory control group with a limit; removed when dropped.
struct Group(PathBuf);

impl Group {
    /// A group with another around it, which alone has the limit.
    fn new() -> Option<Self> {
        if !ready(&[Need::MemoryGroups]) {
            return None;
        }
        let (root, limit) = memory_groups().expect("a need that is met");
        let around =
            root.join(format!("splicefs-test-{}-{:?}", std::process::id(), std::thread::current().id()));
        let group = Self(around.join("inner"));
        fs::create_dir_all(&group.0).expect("make groups");
        fs::write(around.join(limit), ALLOWED.to_string()).expect("limit the group");
        Some(group)
    }

    /// Runs splicefs in the group.
    fn run(&self, arguments: &[&str], point: &Path) -> Output {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.0)
            .arg(splicefs_binary());
        run(command.args(&arguments[..1]).arg(point).args(&arguments[1..]))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A daemon leaves its group a moment after its mount is gone: what is mounted is to be dropped before.
        until("the group is empty", || fs::remove_dir(&self.0).is_ok());
        if let Some(around) = self.0.parent() {
            fs::remove_dir(around).expect("remove the group around");
        }
    }
}

fn size_of(point: &Path) -> u64 {
    let now = rustix::fs::statvfs(point).expect("statvfs");
    now.f_blocks * now.f_frsize
}

#[test]
fn by_default_memory_is_half_of_what_the_control_group_allows() {
    let Some(group) = Group::new() else { return };
    let Some(place) = Place::new() else { return };
    let point = place.point();
    let lower = format!("lowerdir={}", place.source().display());
    let cases: [(&[&str], u64); 4] = [
        (&["tmpfs"], 2),
        (&["tmpfs", "-o", "size=25%"], 4),
        (&["overlay", "-o", &lower, "-o", "upper=tmpfs"], 2),
        (&["overlay", "-o", &lower, "-o", "upper=tmpfs:size=25%"], 4),
    ];
    for (arguments, share) in cases {
        let output = group.run(arguments, &point);
        assert_success(&output);
        assert_eq!(size_of(&point), ALLOWED / share, "{arguments:?}");
        assert!(!stderr(&output).contains("control group"), "{}", stderr(&output));
        assert!(stdout(&output).contains(&format!("size {}.0 MiB", (ALLOWED / share) >> 20)));
        if arguments == ["tmpfs"] {
            let files = rustix::fs::statvfs(&point).expect("statvfs").f_files;
            assert_eq!(files, ALLOWED / 2 / 4096);
            assert_success(&run(command().arg("resize").arg(&point).arg("size=50%,nr_inodes=7")));
            assert_eq!(size_of(&point), ALLOWED / 2, "a share while it is mounted");
        }
        assert_success(&place.unmount());
    }
}

#[test]
fn more_memory_than_the_control_group_allows_is_warned_of() {
    let Some(group) = Group::new() else { return };
    let Some(place) = Place::new() else { return };
    let point = place.point();
    let lower = format!("lowerdir={}", place.source().display());
    for size in ["257m", "101%", "0"] {
        let tmpfs = format!("size={size}");
        let upper = format!("upper=tmpfs:size={size}");
        for arguments in [&["tmpfs", "-o", &tmpfs][..], &["overlay", "-o", &lower, "-o", &upper]] {
            let output = group.run(arguments, &point);
            assert_success(&output);
            let said = stderr(&output);
            assert!(said.contains("control group of the daemon allows 256.0 MiB"), "{arguments:?}: {said}");
            assert_success(&place.unmount());
        }
    }
    let log = place.dir.path().join("log-resize");
    assert_success(&group.run(&["tmpfs", "-o", &format!("size=256m,log={}", log.display())], &point));
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    assert!(!logged().contains("control group"), "{}", logged());
    assert_success(&run(command().arg("resize").arg(&point).arg("size=1g")));
    until("the log has it", || logged().contains("`size=1g` is more than the memory control group"));
    assert_success(&place.unmount());
}
