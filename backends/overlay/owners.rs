//! Owners in the mount that are others than in the layers: ids that are shifted, or all the same.
//!
//! The options are fuse-overlayfs's (`uidmapping`, `gidmapping`, `squash_to_root`, `squash_to_uid`, `squash_to_gid`).

use std::convert::Infallible;

use splicefs_core::{Attr, Caller, Errno, NO_ID, Result, SetAttr};

/// What an id becomes that no range has (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

/// A range of ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRange {
    /// The first id in the layers.
    pub layers: u32,
    /// The first id in the mount.
    pub mount: u32,
    /// How many there are.
    pub count: u32,
}

/// What becomes of the ids of one sort, users or groups.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ids {
    /// Ranges; without any, ids are what they are.
    pub ranges: Vec<IdRange>,
    /// All are this one.
    pub squash: Option<u32>,
}

impl Ids {
    fn is_plain(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }

    /// The id in the mount for one in the layers. Who is not known in the layers is not known here.
    fn shown(&self, id: u32) -> u32 {
        let outside = if id == NO_ID { NO_ID } else { OVERFLOW };
        self.shown_if_any(id).unwrap_or(outside)
    }

    /// The same; `None` where no range has it.
    fn shown_if_any(&self, id: u32) -> Option<u32> {
        if self.squash.is_some() {
            return self.squash;
        }
        if self.ranges.is_empty() {
            return Some(id);
        }
        let within = |range: &IdRange| shift(id, range.layers, range.mount, range.count);
        self.ranges.iter().find_map(within)
    }

    /// The id in the layers for one in the mount; `None` where no range has it.
    fn kept(&self, id: u32) -> Option<u32> {
        let id = self.squash.unwrap_or(id);
        if self.ranges.is_empty() {
            return Some(id);
        }
        let within = |range: &IdRange| shift(id, range.mount, range.layers, range.count);
        self.ranges.iter().find_map(within)
    }

    /// Whose that is in the layers which is this one's in the mount: nobody's where no range has it, as in fuse-overlayfs. podman
    /// makes a container's files, and changes owners, from outside of the container's user namespace.
    fn owner(&self, id: u32) -> u32 {
        self.kept(id).unwrap_or(OVERFLOW)
    }
}

fn shift(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|&offset| offset < count)?;
    to.checked_add(offset)
}

/// Whose files are, in the mount and in the layers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owners {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
}

impl Owners {
    /// Whether owners are what they are in the layers.
    pub fn are_plain(&self) -> bool {
        self.users.is_plain() && self.groups.is_plain()
    }

    /// Whether an ACL that names some means them in the mount, too: where all are one, it means nobody.
    pub fn can_be_named(&self) -> bool {
        self.users.squash.is_none() && self.groups.squash.is_none()
    }

    /// Attributes in the mount, from those in a layer.
    pub(crate) fn show(&self, attr: &mut Attr) {
        attr.uid = self.users.shown(attr.uid);
        attr.gid = self.groups.shown(attr.gid);
    }

    /// A change in a layer, from one in the mount.
    pub(crate) fn change(&self, change: &SetAttr) -> SetAttr {
        SetAttr {
            uid: change.uid.map(|uid| self.users.owner(uid)),
            gid: change.gid.map(|gid| self.groups.owner(gid)),
            ..*change
        }
    }

    /// Who creates something in a layer, for one who creates it in the mount.
    pub(crate) fn creator(&self, caller: &Caller) -> Caller {
        Caller { uid: self.users.owner(caller.uid), gid: self.groups.owner(caller.gid), ..*caller }
    }

    /// An ACL in the mount, from one in a layer. What it grants to somebody who has no id in the mount it grants to nobody, not
    /// to whoever is called nobody.
    pub(crate) fn show_acl(&self, value: &mut [u8]) {
        let Ok(()) = change_names::<Infallible>(value, |who, id, permissions| {
            let shown = self.ids(who).shown_if_any(id);
            if shown.is_none() {
                *permissions = 0;
            }
            Ok(shown.unwrap_or(OVERFLOW))
        });
    }

    /// An ACL in a layer, from one in the mount.
    ///
    /// # Errors
    /// `EINVAL` where it names somebody who is nobody in the layers, as for who has no id in the caller's user namespace
    /// (`posix_acl_from_xattr` in fs/posix_acl.c).
    pub(crate) fn keep_acl(&self, value: &mut [u8]) -> Result<()> {
        change_names(value, |who, id, _| self.ids(who).kept(id).ok_or_else(|| Errno::EINVAL.into()))
    }

    fn ids(&self, who: Named) -> &Ids {
        match who {
            Named::User => &self.users,
            Named::Group => &self.groups,
        }
    }
}

/// Whom an entry of an ACL names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Named {
    User,
    Group,
}

/// Changes the ids in the value of an ACL's attribute (include/uapi/linux/posix_acl_xattr.h): a version, then entries of tag,
/// permissions (of which the first byte holds all that there are) and id. What is no such value stays, for the file system to refuse.
fn change_names<E>(
    value: &mut [u8],
    change: impl Fn(Named, u32, &mut u8) -> std::result::Result<u32, E>,
) -> std::result::Result<(), E> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    let Some((&mut VERSION, entries)) = value.split_first_chunk_mut() else { return Ok(()) };
    for entry in entries.as_chunks_mut::<8>().0 {
        let [tag, _, permissions, _, id @ ..] = entry;
        let who = match *tag {
            0x02 => Named::User,
            0x08 => Named::Group,
            _ => continue,
        };
        *id = change(who, u32::from_le_bytes(*id), permissions)?.to_le_bytes();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Ids {
        let range = |layers, mount, count| IdRange { layers, mount, count };
        Ids { ranges: vec![range(0, 1000, 1), range(1, 110_000, 65536)], squash: None }
    }

    #[test]
    fn ids_are_shifted_there_and_back() {
        for (layers, mount) in [(0, 1000), (1, 110_000), (65536, 175_535)] {
            assert_eq!(ids().shown(layers), mount);
            assert_eq!(ids().kept(mount), Some(layers));
        }
        assert_eq!(ids().shown(65537), OVERFLOW);
        for outside in [0, 999, 1001, 175_536, u32::MAX] {
            assert_eq!((ids().kept(outside), ids().owner(outside)), (None, OVERFLOW), "{outside}");
        }
    }

    #[test]
    fn acls_name_the_same_users_and_groups() {
        let owners = Owners { users: ids(), groups: Ids::default() };
        let acl = |user: u32, group: u32| {
            let mut acl = vec![2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255];
            for (tag, id) in [(2, user), (4, u32::MAX), (8, group), (16, u32::MAX), (32, u32::MAX)] {
                acl.extend([tag, 0, 4, 0]);
                acl.extend(id.to_le_bytes());
            }
            acl
        };
        let mut value = acl(7, 7);
        owners.show_acl(&mut value);
        assert_eq!(value, acl(110_006, 7));
        owners.keep_acl(&mut value).unwrap();
        assert_eq!(value, acl(7, 7));
        let mut stranger = acl(999_999, 7);
        owners.show_acl(&mut stranger);
        let mut expected = acl(OVERFLOW, 7);
        expected[14] = 0;
        assert_eq!(stranger, expected, "nobody is given what a stranger has");
        assert_eq!(owners.keep_acl(&mut stranger).unwrap_err().errno(), Errno::EINVAL);
        for no_acl in
            [&b""[..], b"\x02\0\0", b"\x01\0\0\0\x02\0\0\0\x07\0\0\0", b"\x02\0\0\0\x02\0\0\0\x07\0\0"]
        {
            let mut value = no_acl.to_vec();
            owners.keep_acl(&mut value).unwrap();
            assert_eq!(value, no_acl);
        }
    }

    #[test]
    fn squashing_comes_first() {
        let all = Ids { squash: Some(1000), ..ids() };
        assert_eq!(all.shown(7), 1000);
        assert_eq!(all.kept(7), Some(0));
        let all = Ids { squash: Some(5), ranges: Vec::new() };
        assert_eq!((all.shown(0), all.kept(9)), (5, Some(5)));
        assert!(Ids::default().is_plain() && !all.is_plain());
    }
}
