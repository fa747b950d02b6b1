//! Who owns a copy, and what becomes of its permissions where the owner of the lower file cannot be kept.
//!
//! A daemon without privileges gives files to nobody but itself and its groups, and in a user namespace some owners have no id
//! at all. With `copyup_owner=keep` such a file is not copied up. With `copyup_owner=mounter` the copy is the daemon's, and
//! - its new owner keeps what everybody had;
//! - neither the new group nor others, to whom the old group belongs now, get more than both had;
//! - no set-id bit and no file capability survives.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::process::{getegid, geteuid};
use splicefs_core::{Attr, Backend, Caller, Errno, Error, FileKind, NO_ID, NodeId, Result, SetAttr};

use crate::config::{Config, CopyupOwner};

const SET_ID: u32 = 0o6000;
const SETGID: u32 = 0o2000;

/// What of the ownership of the lower file the copy has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    uid: bool,
    gid: bool,
}

impl Kept {
    const ALL: Self = Self { uid: true, gid: true };

    pub(crate) fn is_all(self) -> bool {
        self == Self::ALL
    }

    /// The mode of the copy, from the lower file's, and from the permissions that the copy's access ACL stands for, if it has one.
    pub(crate) fn mode(self, mode: u32, acl: Option<u32>) -> u32 {
        if self.is_all() {
            return mode;
        }
        let permissions = acl.unwrap_or_else(|| self.narrow(Classes::of_mode(mode)).to_mode());
        // In a directory setgid gives new files its group, which is harmless if that is the one it was.
        let is_directory = FileKind::from_mode(mode) == FileKind::Directory;
        let dropped = if self.gid && is_directory { SET_ID & !SETGID } else { SET_ID };
        mode & !(dropped | 0o777) | permissions
    }

    fn narrow(self, Classes { user, group, other }: Classes) -> Classes {
        let user = if self.uid { user } else { user | other };
        let (group, other) = if self.gid { (group, other) } else { (group & other, group & other) };
        Classes { user, group, other }
    }

    /// Narrows an ACL, access or default, as the mode is narrowed; the permissions that it stands for then. What is no ACL stays, for
    /// the file system to refuse.
    pub(crate) fn narrow_acl(self, value: &mut [u8]) -> Option<u32> {
        const VERSION: [u8; 4] = [2, 0, 0, 0];
        const USER: u8 = 0x01;
        const GROUP: u8 = 0x04;
        const MASK: u8 = 0x10;
        const OTHER: u8 = 0x20;
        let Some((&mut VERSION, entries)) = value.split_first_chunk_mut() else { return None };
        let entries = entries.as_chunks_mut::<8>().0;
        let of = |tag: u8| {
            let mut found = entries.iter().filter(|entry| entry[0] == tag);
            found.next().map(|entry| u32::from(entry[2] & 7))
        };
        let mask = of(MASK);
        // What the group had is under the mask.
        let group = of(GROUP)? & mask.unwrap_or(7);
        let narrowed = self.narrow(Classes { user: of(USER)?, group, other: of(OTHER)? });
        for entry in entries {
            let class = match entry[0] {
                USER => narrowed.user,
                GROUP if !self.gid => narrowed.group,
                OTHER => narrowed.other,
                _ => continue,
            };
            entry[2] = class.to_le_bytes()[0];
        }
        Some(Classes { group: mask.unwrap_or(narrowed.group), ..narrowed }.to_mode())
    }

    /// Whether the copy takes over an extended attribute of the lower file.
    pub(crate) fn takes(self, name: &CStr) -> bool {
        self.is_all() || name != c"security.capability"
    }
}

/// Nodes that have become the mounter's, of which the kernel has not been told.
///
/// Lock order: a leaf.
#[derive(Debug, Default)]
pub(crate) struct ChangedOwners {
    are_there: AtomicBool,
    nodes: Mutex<Vec<NodeId>>,
}

impl ChangedOwners {
    pub(crate) fn add(&self, node: NodeId) {
        self.nodes.lock().push(node);
        self.are_there.store(true, Ordering::Release);
    }

    pub(crate) fn take(&self) -> Vec<NodeId> {
        if !self.are_there.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut nodes = self.nodes.lock();
        self.are_there.store(false, Ordering::Release);
        std::mem::take(&mut nodes)
    }
}

/// Permissions of the three classes, three bits each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Classes {
    user: u32,
    group: u32,
    other: u32,
}

impl Classes {
    fn of_mode(mode: u32) -> Self {
        Self { user: mode >> 6 & 7, group: mode >> 3 & 7, other: mode & 7 }
    }

    fn to_mode(self) -> u32 {
        self.user << 6 | self.group << 3 | self.other
    }
}

impl Config {
    /// Shows the owner and the group in the mount. Those without an id are the mounter's where a copy would be.
    pub(crate) fn show_owner(&self, attr: &mut Attr) {
        if self.copyup_owner == CopyupOwner::Mounter {
            if attr.uid == NO_ID {
                attr.uid = geteuid().as_raw();
            }
            if attr.gid == NO_ID {
                attr.gid = getegid().as_raw();
            }
        }
        self.owners.show(attr);
    }

    /// Refuses to give set-id bits to a file that may have become the mounter's: the kernel has checked the owner of before, who may
    /// have written what is to run as the mounter.
    ///
    /// # Errors
    /// `EPERM`.
    pub(crate) fn check_set_id(&self, caller: &Caller, kind: FileKind, change: &SetAttr) -> Result<()> {
        let gives = kind == FileKind::Regular && change.mode.is_some_and(|mode| mode & SET_ID != 0);
        let by_mounter = caller.uid == geteuid().as_raw();
        if gives && self.copyup_owner == CopyupOwner::Mounter && !by_mounter {
            return Err(Errno::EPERM.into());
        }
        Ok(())
    }

    /// Gives `to` the owner and the group in `attr`, as far as that is possible.
    ///
    /// # Errors
    /// With `copyup_owner=keep`, `EPERM` where the daemon may not, and `EOVERFLOW` where one of them has no id in the daemon's user
    /// namespace (`ovl_copy_up_start` in fs/overlayfs/copy_up.c).
    pub(crate) fn give_owner<B: Backend>(
        &self,
        (to, target, file): (&B, &Arc<B::Node>, Option<&B::File>),
        attr: &Attr,
    ) -> Result<Kept> {
        let own = to.getattr(target, file)?;
        if (own.uid, own.gid) == (attr.uid, attr.gid) {
            return Ok(Kept::ALL);
        }
        let give = |uid: Option<u32>, gid: Option<u32>| {
            let owner = SetAttr { uid, gid, ..SetAttr::default() };
            match to.setattr(&Caller::DAEMON, target, file, &owner) {
                Err(e) if e.errno() == Errno::EINVAL && [uid, gid].contains(&Some(NO_ID)) => {
                    Err(Errno::EOVERFLOW.into())
                }
                given => given.map(drop),
            }
        };
        match give(Some(attr.uid), Some(attr.gid)) {
            Ok(()) => return Ok(Kept::ALL),
            Err(e) if self.copyup_owner == CopyupOwner::Mounter && cannot_be_given(&e) => {}
            // Some file systems say EINVAL of an id that they do not know.
            Err(e) => return Err(e),
        }
        let gid = own.gid == attr.gid
            || match give(None, Some(attr.gid)) {
                Err(e) if !cannot_be_given(&e) => return Err(e),
                given => given.is_ok(),
            };
        Ok(Kept { uid: own.uid == attr.uid, gid })
    }
}

/// Whether an owner is refused as such.
fn cannot_be_given(e: &Error) -> bool {
    matches!(e.errno(), Errno::EPERM | Errno::EINVAL | Errno::EOVERFLOW | Errno::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTERS: Kept = Kept { uid: false, gid: false };
    const MOUNTERS_IN_GROUP: Kept = Kept { uid: false, gid: true };
    const IN_ANOTHER_GROUP: Kept = Kept { uid: true, gid: false };

    #[test]
    fn nobody_but_the_new_owner_gains_rights() {
        for (kept, before, after) in [
            (Kept::ALL, 0o104_755, 0o104_755),
            (MOUNTERS, 0o100_666, 0o100_666),
            (MOUNTERS, 0o104_755, 0o100_755),
            (MOUNTERS, 0o102_755, 0o100_755),
            (MOUNTERS, 0o100_660, 0o100_600),
            (MOUNTERS, 0o100_640, 0o100_600),
            (MOUNTERS, 0o100_604, 0o100_600),
            (MOUNTERS, 0o100_466, 0o100_666),
            (MOUNTERS, 0o041_777, 0o041_777),
            (MOUNTERS, 0o042_775, 0o040_755),
            (MOUNTERS_IN_GROUP, 0o102_664, 0o100_664),
            (MOUNTERS_IN_GROUP, 0o042_775, 0o042_775),
            (IN_ANOTHER_GROUP, 0o100_664, 0o100_644),
            (IN_ANOTHER_GROUP, 0o102_775, 0o100_755),
        ] {
            assert_eq!(kept.mode(before, None), after, "{kept:?} {before:o}");
        }
    }

    /// The permissions of user, a named user, group, mask and other.
    fn acl(permissions: [u8; 5]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permission) in [1u8, 2, 4, 0x10, 0x20].into_iter().zip(permissions) {
            let id = if tag == 2 { 7 } else { u32::MAX };
            value.extend([tag, 0, permission, 0]);
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn an_acl_is_narrowed_as_a_mode_is() {
        // With an ACL the group's bits in the mode are the mask.
        for (kept, before, after, mode) in [
            (Kept::ALL, [6, 6, 6, 6, 0], [6, 6, 6, 6, 0], 0o660),
            (MOUNTERS, [6, 6, 6, 6, 0], [6, 6, 0, 6, 0], 0o660),
            (MOUNTERS, [6, 6, 0, 6, 4], [6, 6, 0, 6, 0], 0o660),
            (MOUNTERS, [4, 6, 6, 4, 6], [6, 6, 4, 4, 4], 0o644),
            (MOUNTERS_IN_GROUP, [4, 6, 6, 6, 2], [6, 6, 6, 6, 2], 0o662),
            (IN_ANOTHER_GROUP, [4, 6, 6, 6, 2], [4, 6, 2, 6, 2], 0o462),
        ] {
            let mut value = acl(before);
            assert_eq!(kept.narrow_acl(&mut value), Some(mode), "{kept:?} {before:?}");
            assert_eq!(value, acl(after), "{kept:?} {before:?}");
        }
        assert_eq!(MOUNTERS.mode(0o106_664, Some(0o660)), 0o100_660);
        for no_acl in [&b""[..], b"\x02\0\0", b"\x01\0\0\0\x01\0\x07\0\xff\xff\xff\xff", b"\x02\0\0\0\x01"] {
            let mut value = no_acl.to_vec();
            assert_eq!(MOUNTERS.narrow_acl(&mut value), None);
            assert_eq!(value, no_acl);
        }
    }

    #[test]
    fn capabilities_go_with_the_owner() {
        assert!(Kept::ALL.takes(c"security.capability") && !MOUNTERS.takes(c"security.capability"));
        assert!(MOUNTERS.takes(c"user.kept"));
    }
}
