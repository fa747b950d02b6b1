//! Owners in the mount that are others than in the layers: ids that are shifted, or all the same.
//!
//! The options are fuse-overlayfs's (`uidmapping`, `gidmapping`, `squash_to_root`, `squash_to_uid`, `squash_to_gid`).

use splicefs_core::{Attr, Caller, Errno, Result, SetAttr};

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

    /// The id in the mount for one in the layers.
    fn shown(&self, id: u32) -> u32 {
        if let Some(all) = self.squash {
            return all;
        }
        if self.ranges.is_empty() {
            return id;
        }
        let within = |range: &IdRange| shift(id, range.layers, range.mount, range.count);
        self.ranges.iter().find_map(within).unwrap_or(OVERFLOW)
    }

    /// The id in the layers for one in the mount.
    ///
    /// # Errors
    /// `EOVERFLOW` where no range has it.
    fn kept(&self, id: u32) -> Result<u32> {
        let id = self.squash.unwrap_or(id);
        if self.ranges.is_empty() {
            return Ok(id);
        }
        let within = |range: &IdRange| shift(id, range.mount, range.layers, range.count);
        Ok(self.ranges.iter().find_map(within).ok_or(Errno::EOVERFLOW)?)
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

    /// Attributes in the mount, from those in a layer.
    pub(crate) fn show(&self, attr: &mut Attr) {
        attr.uid = self.users.shown(attr.uid);
        attr.gid = self.groups.shown(attr.gid);
    }

    /// A change in a layer, from one in the mount.
    pub(crate) fn change(&self, change: &SetAttr) -> Result<SetAttr> {
        Ok(SetAttr {
            uid: change.uid.map(|uid| self.users.kept(uid)).transpose()?,
            gid: change.gid.map(|gid| self.groups.kept(gid)).transpose()?,
            ..*change
        })
    }

    /// Who creates something in a layer, for one who creates it in the mount.
    pub(crate) fn creator(&self, caller: &Caller) -> Result<Caller> {
        Ok(Caller { uid: self.users.kept(caller.uid)?, gid: self.groups.kept(caller.gid)?, ..*caller })
    }
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
            assert_eq!(ids().kept(mount).unwrap(), layers);
        }
        assert_eq!(ids().shown(65537), OVERFLOW);
        for outside in [0, 999, 1001, 175_536, u32::MAX] {
            assert_eq!(ids().kept(outside).unwrap_err().errno(), Errno::EOVERFLOW, "{outside}");
        }
    }

    #[test]
    fn squashing_comes_first() {
        let all = Ids { squash: Some(1000), ..ids() };
        assert_eq!(all.shown(7), 1000);
        assert_eq!(all.kept(7).unwrap(), 0);
        let all = Ids { squash: Some(5), ranges: Vec::new() };
        assert_eq!((all.shown(0), all.kept(9).unwrap()), (5, 5));
        assert!(Ids::default().is_plain() && !all.is_plain());
    }
}
