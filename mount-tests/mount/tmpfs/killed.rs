//! A daemon that dies takes its files along; what it leaves can be cleared away.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use super::observed::Observed;
use crate::harness::{Need, Watchdog, command, drop_file_cache, fill, is_mounted, ready, until};

fn is_dead<T>(result: io::Result<T>) -> bool {
    result.err().and_then(|e| e.raw_os_error()) == Some(libc::ENOTCONN)
}

/// Processes that name `point` in their arguments.
fn processes(point: &Path) -> Vec<String> {
    let needle = point.as_os_str().as_encoded_bytes();
    let names = |line: &[u8]| line.split(|&byte| byte == 0).any(|argument| argument == needle);
    let entries = fs::read_dir("/proc").expect("listing processes").filter_map(Result::ok);
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| names(line)).map(|line| String::from_utf8_lossy(&line).into_owned()).collect()
}

#[test]
fn a_killed_daemon_leaves_a_dead_mount_and_a_way_out() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    let _watchdog = Watchdog::new("a killed daemon", Duration::from_secs(60));
    for options in ["size=64m", "size=64m,auto_unmount"] {
        let mut mount = Observed::mount(options);
        let point = mount.point().to_owned();
        // In the heap and in a memfd.
        for (name, length) in [("small", 100), ("large", 1 << 20)] {
            fs::write(point.join(name), fill(0, length)).expect("write");
        }
        let mut held = File::open(point.join("large")).expect("open");
        assert!(!processes(&point).is_empty(), "the daemon names its mount point");
        mount.kill();
        // The kernel itself answers from what it still has.
        drop_file_cache(&held);
        assert!(is_dead(held.read(&mut [0; 100])), "read of an open file");
        drop(held);
        if options.contains("auto_unmount") {
            until("the mount to go away by itself", || !is_mounted(&point));
        } else {
            assert!(is_dead(rustix::fs::statvfs(&point).map_err(Into::into)), "statfs");
            assert!(is_dead(fs::metadata(point.join("unknown"))), "a lookup");
            assert!(is_dead(fs::write(point.join("new"), b"x")), "a new file");
            assert!(is_dead(fs::read_dir(&point).map(drop)), "a listing");
            let stats = command().arg("stats").arg(&point).output().expect("running splicefs stats");
            let said = String::from_utf8_lossy(&stats.stderr);
            assert!(!stats.status.success() && said.contains("a dead mount"), "{said}");
            assert!(said.contains(&format!("`splicefs unmount {}`", point.display())), "{said}");
            let unmount = command().arg("unmount").arg(&point).output().expect("running splicefs unmount");
            assert!(unmount.status.success(), "{}", String::from_utf8_lossy(&unmount.stderr));
            assert!(!is_mounted(&point));
        }
        until("every process of the mount to end", || processes(&point).is_empty());
        assert_eq!(fs::read_dir(&point).expect("the directory below").count(), 0);
    }
}
