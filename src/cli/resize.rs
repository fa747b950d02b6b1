//! `splicefs resize`: changes the limits of a mounted tmpfs, through an extended attribute of its root.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU64;
use std::path::Path;

use rustix::fs::{StatVfs, XattrFlags};
use serde_json::Value;
use splicefs_tmpfs::{PAGE_BYTES, Resize};

use super::amount::amount;
use super::ask;
use crate::failure::{Failure, shell_word};
use crate::vfs::RECONFIGURE_XATTR;

/// How the command is written.
const USAGE: &str = "`splicefs resize MNT size=SIZE,nr_inodes=N`";

/// Gives the mount on `given` the limits in `lists`, all of them or none. Nothing is printed.
pub(super) fn resize(given: &Path, lists: &[OsString]) -> Result<(), Failure> {
    let text = lists.join(OsStr::new(","));
    let Some(text) = text.to_str() else {
        return Err(Failure::usage(format!("`{}` is no list of limits: {USAGE}", text.display())));
    };
    let limits = Resize::parse(text).map_err(Failure::usage)?;
    if limits == Resize::default() {
        return Err(Failure::usage(format!("no limit was named: {USAGE}")));
    }
    rustix::fs::setxattr(given, RECONFIGURE_XATTR, text.as_bytes(), XattrFlags::empty())
        .map_err(|error| explain(given, limits, text, &error.into()))
}

fn explain(given: &Path, limits: Resize, text: &str, error: &io::Error) -> Failure {
    let shown = given.display();
    let word = shell_word(given);
    let mounted = ask::mounted_on(given);
    let fuse = mounted.as_ref().is_some_and(|entry| entry.is_fuse());
    Failure::new(match error.raw_os_error() {
        Some(libc::EINVAL) if fuse => match rustix::fs::statvfs(given) {
            Ok(now) => refusal(&shown.to_string(), limits, &now),
            Err(_) => format!("{shown} cannot take the limits `{text}`, and does not say what is in use"),
        },
        Some(libc::EPERM) if fuse => {
            format!("you may not resize {shown}: only the user who mounted it and root may")
        }
        // That a user's mount cannot even be entered is explained with the others.
        Some(libc::EACCES) if given.metadata().is_ok() => format!(
            "you may not resize {shown}: only the user who mounted it and root may, and only who may write to it (`ls -ld {word}`)"
        ),
        Some(libc::EROFS) if fuse => format!(
            "{shown} is mounted read-only, and takes no new limits: make it writable first (`mount -i -o remount,rw {word}`)"
        ),
        Some(libc::EOPNOTSUPP) if mounted.is_some_and(|entry| entry.fs_type == "tmpfs") => {
            format!("{shown} is the kernel's own tmpfs: `mount -o remount,{text} {word}`")
        }
        Some(libc::EOPNOTSUPP) if fuse && backend(given).is_some() => format!(
            "{shown} is served by {}, which has no limits to change: only a tmpfs has",
            backend(given).unwrap_or_default()
        ),
        _ => return ask::explain(given, "resize", error),
    })
}

/// Which backend serves the mount, if splicefs does.
fn backend(given: &Path) -> Option<String> {
    let stats: Value = serde_json::from_str(&ask::stats(given).ok()?).ok()?;
    stats["backend"].as_str().map(str::to_owned)
}

/// Why a tmpfs of which `now` tells what is in use refuses `limits` (mm/shmem.c, `shmem_reconfigure`).
fn refusal(shown: &str, limits: Resize, now: &StatVfs) -> String {
    let wanted = |limit: Option<Option<NonZeroU64>>| limit.flatten().map(NonZeroU64::get);
    let (used_pages, used_inodes) =
        (now.f_blocks.saturating_sub(now.f_bfree), now.f_files.saturating_sub(now.f_ffree));
    let bytes = |pages: u64| amount(pages.saturating_mul(PAGE_BYTES));
    let unlimited =
        |what: &str| format!("{shown} has no limit of its {what}, and can be given none while it is mounted");
    match (wanted(limits.pages), wanted(limits.inodes)) {
        (Some(_), _) if now.f_blocks == 0 => unlimited("size"),
        (_, Some(_)) if now.f_files == 0 => unlimited("inodes"),
        (Some(pages), _) if pages < used_pages => format!(
            "{shown} cannot shrink to {}: {} are in use; remove files first",
            bytes(pages),
            bytes(used_pages)
        ),
        (_, Some(inodes)) if inodes < used_inodes => format!(
            "{shown} cannot be limited to {inodes} inodes: {used_inodes} are in use; remove files first"
        ),
        // Files were removed since, or the daemon is of another version.
        _ => format!(
            "{shown} refused these limits, with {} and {used_inodes} inodes in use",
            bytes(used_pages)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, lists: &[&str]) -> String {
        let lists: Vec<_> = lists.iter().map(OsString::from).collect();
        resize(Path::new(path), &lists).expect_err("no tmpfs of ours").to_string()
    }

    #[test]
    fn mistakes_are_found_before_anything_is_asked() {
        assert!(line("/none", &[]).contains("no limit was named: `splicefs resize MNT size=SIZE"));
        assert!(line("/none", &["size=lots"]).contains("option `size=lots`: expected bytes"));
        assert!(line("/none", &["size=1g", "uid=3"]).contains("`uid=3` cannot change"));
        assert!(line("/none", &["size=1g"]).contains("/none does not exist"));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().to_str().expect("UTF-8");
        assert!(line(path, &["size=1g"]).contains("not the mount point of a splicefs mount"));
    }

    #[test]
    fn a_refusal_says_how_much_is_in_use() {
        let of = |f_blocks, f_files| StatVfs {
            f_bsize: 4096,
            f_frsize: 4096,
            f_blocks,
            f_bfree: f_blocks / 2,
            f_bavail: f_blocks / 2,
            f_files,
            f_ffree: f_files / 2,
            f_favail: f_files / 2,
            f_fsid: 0,
            f_flag: rustix::fs::StatVfsMountFlags::empty(),
            f_namemax: 255,
        };
        let line = |text: &str, now: &StatVfs| refusal("/m", Resize::parse(text).expect("limits"), now);
        assert_eq!(
            line("size=1m,nr_inodes=1", &of(1024, 100)),
            "/m cannot shrink to 1.0 MiB: 2.0 MiB are in use; remove files first"
        );
        assert_eq!(
            line("size=1g,nr_inodes=1", &of(1024, 100)),
            "/m cannot be limited to 1 inodes: 50 are in use; remove files first"
        );
        assert!(line("size=1g", &of(0, 100)).contains("no limit of its size"));
        assert!(line("nr_inodes=9", &of(100, 0)).contains("no limit of its inodes"));
        assert!(line("size=1g", &of(100, 100)).contains("refused"));
    }
}
