//! Whose new nodes are, and what a change takes from a mode: the kernel's rules, for backends that keep owners and modes
//! themselves and cannot leave that to a file system below.

use crate::attr::FileKind;
use crate::sys::creds::Caller;

/// The group of a node that `caller` makes in `parent`, and its mode as it was asked for, `mode` with type bits: a setgid
/// directory hands on its group, and to directories the bit as well (`inode_init_owner` in fs/inode.c). The umask is not
/// applied yet.
#[must_use]
pub fn inherited(parent_mode: u32, parent_gid: u32, caller: &Caller, mode: u32) -> (u32, u32) {
    if parent_mode & libc::S_ISGID == 0 {
        return (caller.gid, mode);
    }
    let directory = FileKind::from_mode(mode) == FileKind::Directory;
    (parent_gid, if directory { mode | libc::S_ISGID } else { mode })
}

/// The mode without the setuid bit, and without the setgid bit too where the group may execute the file, or else `caller` has
/// no right to it: is not in the group and has no CAP_FSETID (`setattr_should_drop_sgid` in fs/attr.c).
#[must_use]
pub fn without_setid(mode: u32, gid: u32, caller: &Caller) -> u32 {
    let setgid = mode & libc::S_ISGID != 0;
    let keeps = || mode & libc::S_IXGRP == 0 && (caller.fsetid || caller.in_group(gid));
    let mode = mode & !libc::S_ISUID;
    if setgid && !keeps() { mode & !libc::S_ISGID } else { mode }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: Caller = Caller { uid: 7, gid: 8, pid: 0, umask: 0, fsetid: false };

    #[test]
    fn setid_bits_go_as_the_kernel_has_it() {
        let member = Caller { gid: 9, ..STRANGER };
        let cases = [
            (0o104755, &STRANGER, 0o100755),
            (0o106755, &STRANGER, 0o100755),
            (0o106755, &Caller::DAEMON, 0o100755),
            (0o102644, &STRANGER, 0o100644),
            (0o102644, &member, 0o102644),
            (0o102644, &Caller::DAEMON, 0o102644),
            (0o101644, &STRANGER, 0o101644),
        ];
        for (before, caller, after) in cases {
            assert_eq!(without_setid(before, 9, caller), after, "{before:o} {caller:?}");
        }
    }

    #[test]
    fn a_setgid_directory_hands_its_group_on() {
        assert_eq!(inherited(0o40755, 5, &STRANGER, 0o100644), (8, 0o100644));
        assert_eq!(inherited(0o42755, 5, &STRANGER, 0o100644), (5, 0o100644));
        assert_eq!(inherited(0o42755, 5, &STRANGER, 0o40755), (5, 0o42755));
    }
}
