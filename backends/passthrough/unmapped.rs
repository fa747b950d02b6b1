//! Owners that have no id in the daemon's user namespace.
//!
//! stat(2) says the overflow id of them (`/proc/sys/kernel/overflowuid`), which is also the id of the namespace's `nobody`: who is told no
//! more takes the files of strangers for nobody's, and gives them to nobody when they are copied up. The kernel itself lets nobody
//! write to such a file, whatever its mode and whoever asks (`HAS_UNMAPPED_ID` in fs/namei.c). By that the two are told apart.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::{Access, AtFlags, CWD, Statx, accessat};
use rustix::io::Errno as Os;
use splicefs_core::sys::creds;
use splicefs_core::sys::{fd_path, open_proc};
use splicefs_core::{NO_ID, Result};

/// The overflow ids, in a user namespace where not everybody has an id.
#[derive(Clone, Copy, Debug)]
struct Overflow {
    uid: u32,
    gid: u32,
    /// The namespace has a user, and a group, of these ids.
    are_mapped: [bool; 2],
}

fn read(path: &str) -> Result<String> {
    let mut text = String::new();
    File::from(open_proc(path)?).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a map of ids (user_namespaces(7)) has the id `id` inside.
fn has_id(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (words.next(), words.next(), words.next())
        else {
            return false;
        };
        u64::from(id).checked_sub(first).is_some_and(|offset| offset < count)
    })
}

/// `None` where every owner has an id.
fn overflow() -> Result<Option<&'static Overflow>> {
    static OVERFLOW: OnceLock<Option<Overflow>> = OnceLock::new();
    if let Some(overflow) = OVERFLOW.get() {
        return Ok(overflow.as_ref());
    }
    let found = if creds::in_initial_user_namespace()? {
        None
    } else {
        // The usual ids, where procfs shows no others.
        let id = |path| read(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534);
        let (uid, gid) = (id("sys/kernel/overflowuid"), id("sys/kernel/overflowgid"));
        let are_mapped = [has_id(&read("self/uid_map")?, uid), has_id(&read("self/gid_map")?, gid)];
        Some(Overflow { uid, gid, are_mapped })
    };
    Ok(OVERFLOW.get_or_init(|| found).as_ref())
}

/// Puts [`NO_ID`] in the place of ids that are not known. `may_write` asks the kernel whether the daemon may write.
fn correct(st: &mut Statx, overflow: &Overflow, may_write: impl FnOnce() -> std::result::Result<(), Os>) {
    let shown = [st.stx_uid == overflow.uid, st.stx_gid == overflow.gid];
    if shown == [false, false] {
        return;
    }
    let surely = [shown[0] && !overflow.are_mapped[0], shown[1] && !overflow.are_mapped[1]];
    let maybe = [shown[0] && overflow.are_mapped[0], shown[1] && overflow.are_mapped[1]];
    // What cannot be told is refused. A file with one unknown id cannot be asked about the other.
    let is_unknown = maybe != [false, false] && may_write().is_err();
    if surely[0] || maybe[0] && is_unknown {
        st.stx_uid = NO_ID;
    }
    if surely[1] || maybe[1] && is_unknown {
        st.stx_gid = NO_ID;
    }
}

/// Corrects what statx(2) said of what `fd` has open.
pub(crate) fn correct_fd(st: &mut Statx, fd: BorrowedFd<'_>) -> Result<()> {
    if let Some(overflow) = overflow()? {
        correct(st, overflow, || accessat(CWD, fd_path(fd), Access::WRITE_OK, AtFlags::EACCESS));
    }
    Ok(())
}

/// Corrects what statx(2) said of `name` in `dir`.
pub(crate) fn correct_name(st: &mut Statx, dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<()> {
    if let Some(overflow) = overflow()? {
        let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
        correct(st, overflow, || accessat(dir, name, Access::WRITE_OK, flags));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_says_which_ids_are_known() {
        let podman = "         0       1000          1\n         1     100000      65536\n";
        for (id, known) in [(0, true), (1, true), (65534, true), (65536, true), (65537, false)] {
            assert_eq!(has_id(podman, id), known, "{id}");
        }
        assert!(!has_id("0 1000 1\n", 65534) && !has_id("", 0) && !has_id("x y z\n", 0));
        assert!(has_id("0 0 4294967295\n", u32::MAX - 1));
    }

    fn corrected(uid: u32, gid: u32, are_mapped: [bool; 2], may_write: bool) -> (u32, u32) {
        let dir = tempfile::tempdir().unwrap();
        let file = File::open(dir.path()).unwrap();
        let mut st =
            rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::BASIC_STATS).unwrap();
        (st.stx_uid, st.stx_gid) = (uid, gid);
        let overflow = Overflow { uid: 65534, gid: 65534, are_mapped };
        correct(&mut st, &overflow, || if may_write { Ok(()) } else { Err(Os::ACCESS) });
        (st.stx_uid, st.stx_gid)
    }

    #[test]
    fn owners_without_an_id_are_told_from_nobody() {
        const ALL: [bool; 2] = [true, true];
        assert_eq!(corrected(5, 5, ALL, false), (5, 5));
        assert_eq!(corrected(65534, 65534, ALL, true), (65534, 65534));
        assert_eq!(corrected(65534, 5, ALL, false), (NO_ID, 5));
        assert_eq!(corrected(5, 65534, ALL, false), (5, NO_ID));
        assert_eq!(corrected(65534, 65534, ALL, false), (NO_ID, NO_ID));
        assert_eq!(corrected(65534, 65534, [false, false], true), (NO_ID, NO_ID));
    }
}
