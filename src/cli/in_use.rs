//! Who uses a directory for changes already: read from the kernel's table of locks, where strangers may stand as well.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::makedev;
use splicefs_core::sys::open_proc;

use crate::mount::mountinfo;

/// A file, by the device number of its file system and its inode number.
pub(super) type Identity = (u64, u64);

fn read(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(open_proc(path).ok()?).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn text(path: &str) -> Option<String> {
    read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The processes that hold a lock of flock(2) on the file, from a table as proc_locks(5) has it.
fn holders_in(table: &str, (device, inode): Identity) -> Vec<u32> {
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        // Behind an arrow stands who waits.
        (words.next()? == "FLOCK").then_some(())?;
        let pid = words.nth(2)?.parse().ok()?;
        let mut file = words.next()?.split(':');
        let mut hexadecimal = || u32::from_str_radix(file.next()?, 16).ok();
        let of = makedev(hexadecimal()?, hexadecimal()?);
        (of == device && file.next()?.parse() == Ok(inode)).then_some(pid)
    };
    table.lines().filter_map(holder).collect()
}

/// The effective user of a process, from `/proc/PID/status`.
fn user_in(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The processes of users who may change the directory that hold a lock on it. `None` if nobody is seen to hold one, as from
/// within a container.
///
/// A lock needs no more than the right to read. Those of strangers keep nobody from anything, and those of processes that have ended (a
/// child of theirs may hold the lock still) are none of ours: our daemons take theirs themselves.
pub(super) fn users(file: Identity, owner: u32) -> Option<Vec<u32>> {
    let holders = holders_in(&text("locks")?, file);
    if holders.is_empty() {
        return None;
    }
    let trusted = [0, owner, rustix::process::geteuid().as_raw()];
    let is_trusted = |pid: &u32| {
        text(&format!("{pid}/status"))
            .and_then(|status| user_in(&status))
            .is_some_and(|uid| trusted.contains(&uid))
    };
    Some(holders.into_iter().filter(is_trusted).collect())
}

/// The connection of a FUSE daemon, as device number of its mounts (`fuse_dev_show_fdinfo` in fs/fuse/dev.c, Linux 6.15).
fn connection(daemon: u32) -> Option<String> {
    let folder = format!("/proc/{daemon}/fdinfo");
    let files = std::fs::read_dir(folder).ok()?;
    files.flatten().find_map(|entry| {
        let info = std::fs::read_to_string(entry.path()).ok()?;
        let number = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
        Some(format!("0:{}", number.trim()))
    })
}

/// A process that sees a mount of that device, in a mount namespace other than ours, and where.
fn seen_elsewhere(device: &str) -> Option<(u32, PathBuf)> {
    let own = std::fs::read_link("/proc/self/ns/mnt").ok()?;
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        if std::fs::read_link(entry.path().join("ns/mnt")).ok()? == own {
            return None;
        }
        let table = mountinfo::parse(&std::fs::read(entry.path().join("mountinfo")).ok()?);
        let mount = table.into_iter().find(|mount| mount.device == device)?;
        Some((pid, mount.mount_point))
    })
}

fn name(pid: u32) -> String {
    text(&format!("{pid}/comm")).map_or_else(|| "unknown".to_owned(), |name| name.trim_end().to_owned())
}

/// Who has the directory, and the way out.
pub(super) fn explain(daemon: u32) -> String {
    let is_here = |device: &str| {
        let mounts = mountinfo::read().ok()?;
        mounts.into_iter().find(|mount| mount.device == device).map(|mount| mount.mount_point)
    };
    let who = format!("process {daemon} ({})", name(daemon));
    let Some(device) = connection(daemon) else {
        return format!("{who}: unmount that one first, or take other directories");
    };
    if let Some(point) = is_here(&device) {
        return format!(
            "{who}, mounted on {}: unmount that one first, or take other directories",
            point.display()
        );
    }
    match seen_elsewhere(&device) {
        Some((pid, point)) => gone_here(&who, pid, &point),
        None => format!(
            "{who}, whose mount is not seen here: it is in a mount namespace of another's; end that process, or take other directories"
        ),
    }
}

fn gone_here(who: &str, pid: u32, point: &Path) -> String {
    let point = point.display();
    format!(
        "{who}, whose mount is gone here and still seen by process {pid} ({}) in a mount namespace of its own: end that one, or `nsenter -t {pid} -m umount {point}`",
        name(pid)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holders_of_a_lock_are_those_of_this_file() {
        let table = "1: FLOCK  ADVISORY  WRITE 1811 fe:00:1049012 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  42 fe:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 43 fe:00:7 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 44 fe:00:7 0 EOF\n\
                     4: FLOCK  ADVISORY  READ  45 fe:00:7 0 EOF\n\
                     5: FLOCK  ADVISORY  READ  46 fe:01:7 0 EOF\n\
                     nonsense\n6: FLOCK\n7: FLOCK ADVISORY READ x fe:00:7 0 EOF\n";
        assert_eq!(holders_in(table, (makedev(0xfe, 0), 7)), [42, 45]);
        assert_eq!(holders_in(table, (makedev(0xfe, 0), 8)), [0; 0]);
    }

    #[test]
    fn the_user_of_a_process_is_the_effective_one() {
        assert_eq!(user_in("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(0));
        assert_eq!(user_in("Name:\tx\n"), None);
        let own = text("self/status").and_then(|status| user_in(&status));
        assert_eq!(own, Some(rustix::process::geteuid().as_raw()));
    }
}
