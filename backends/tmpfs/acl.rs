//! POSIX ACLs (acl(5)): their encoding as extended attributes and the rules of fs/posix_acl.c.

use splicefs_core::{Errno, Result};

#[cfg(test)]
mod tests;

/// The only version of the encoding (`POSIX_ACL_XATTR_VERSION` in include/uapi/linux/posix_acl_xattr.h).
const VERSION: u32 = 2;
/// What the encoding has for the id of an entry that names nobody (`ACL_UNDEFINED_ID`), which is no id of
/// anybody.
const UNDEFINED_ID: u32 = u32::MAX;
/// The permission bits of one class of a mode.
const CLASS: u32 = 0o7;

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The owner.
    UserObj,
    /// A user by id.
    User(u32),
    /// The owning group.
    GroupObj,
    /// A group by id.
    Group(u32),
    /// The most that entries other than the owner's and `Other` grant.
    Mask,
    /// Everybody else.
    Other,
}

/// An entry of an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    who: Who,
    /// Read 4, write 2, execute 1.
    perm: u32,
}

/// A valid POSIX ACL: the owner, named users, the owning group, named groups, a mask, and others, in this
/// order. There is at most one mask, and there is one where anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Box<[Entry]>);

impl Entry {
    /// An entry as it is encoded: a tag and permissions of 16 bits each, then an id of 32, little endian
    /// (`struct posix_acl_xattr_entry`). `None` where it can be in no ACL.
    fn decode(bytes: [u8; 8]) -> Option<Self> {
        let [t0, t1, p0, p1, id @ ..] = bytes;
        let (perm, id) = (u16::from_le_bytes([p0, p1]).into(), u32::from_le_bytes(id));
        let who = match u16::from_le_bytes([t0, t1]) {
            0x01 => Who::UserObj,
            0x02 if id != UNDEFINED_ID => Who::User(id),
            0x04 => Who::GroupObj,
            0x08 if id != UNDEFINED_ID => Who::Group(id),
            0x10 => Who::Mask,
            0x20 => Who::Other,
            _ => return None,
        };
        (perm <= CLASS).then_some(Self { who, perm })
    }

    /// The reverse of [`Entry::decode`].
    fn encode(self) -> [u8; 8] {
        let (tag, id) = match self.who {
            Who::UserObj => (0x01, UNDEFINED_ID),
            Who::User(id) => (0x02, id),
            Who::GroupObj => (0x04, UNDEFINED_ID),
            Who::Group(id) => (0x08, id),
            Who::Mask => (0x10, UNDEFINED_ID),
            Who::Other => (0x20, UNDEFINED_ID),
        };
        // Two little endian halves are one little endian word.
        let [t0, t1, p0, p1] = (tag | self.perm << 16).to_le_bytes();
        let [i0, i1, i2, i3] = id.to_le_bytes();
        [t0, t1, p0, p1, i0, i1, i2, i3]
    }

    /// Where in a mode the permissions of this entry stand: by how many bits they are shifted. `None` where
    /// the mode says nothing of it. With a mask, the mode's group bits are the mask.
    fn shift(self, masked: bool) -> Option<u32> {
        match self.who {
            Who::UserObj => Some(6),
            Who::Mask => Some(3),
            Who::GroupObj if !masked => Some(3),
            Who::Other => Some(0),
            Who::User(_) | Who::GroupObj | Who::Group(_) => None,
        }
    }
}

/// Whether entries are those of an ACL (`posix_acl_valid`). Like the kernel, this asks neither that ids
/// ascend nor that they differ.
fn is_valid(entries: &[Entry]) -> bool {
    let mut rest = entries.iter().map(|entry| entry.who).peekable();
    let mut named = false;
    if rest.next() != Some(Who::UserObj) {
        return false;
    }
    while rest.next_if(|who| matches!(who, Who::User(_))).is_some() {
        named = true;
    }
    if rest.next() != Some(Who::GroupObj) {
        return false;
    }
    while rest.next_if(|who| matches!(who, Who::Group(_))).is_some() {
        named = true;
    }
    let masked = rest.next_if_eq(&Who::Mask).is_some();
    rest.next() == Some(Who::Other) && rest.next().is_none() && (masked || !named)
}

impl Acl {
    /// The ACL that a `system.posix_acl_*` attribute holds, `None` where the attribute has no entries
    /// (`posix_acl_from_xattr`, `posix_acl_valid`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for another version of the encoding; `EINVAL` for what is no valid ACL, no bytes at all
    /// among that.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let (version, entries) = bytes.split_first_chunk().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let (entries, rest) = entries.as_chunks();
        if !rest.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries: Option<Box<[Entry]>> = entries.iter().copied().map(Entry::decode).collect();
        Ok(Some(Self(entries.filter(|entries| is_valid(entries)).ok_or(Errno::EINVAL)?)))
    }

    /// The attribute that holds this ACL (`posix_acl_to_xattr`).
    pub(crate) fn to_xattr(&self) -> Vec<u8> {
        let entries = self.0.iter().flat_map(|entry| entry.encode());
        VERSION.to_le_bytes().into_iter().chain(entries).collect()
    }

    /// Whether there is a mask. Then, and only then, the ACL says more than a mode can.
    fn is_masked(&self) -> bool {
        self.0.iter().any(|entry| entry.who == Who::Mask)
    }

    /// The permission bits of a mode, within 0o777, that this ACL stands for as an access ACL, and whether
    /// they say all of it (`posix_acl_equiv_mode`).
    pub(crate) fn equiv_mode(&self) -> (u32, bool) {
        let masked = self.is_masked();
        let classes = self.0.iter().filter_map(|entry| Some(entry.perm << entry.shift(masked)?));
        (classes.fold(0, |mode, class| mode | class), !masked)
    }

    /// Makes the permission bits of `mode` those of this ACL, as chmod(2) does with an access ACL
    /// (`__posix_acl_chmod_masq`). Other bits of `mode` do not matter.
    pub(crate) fn chmod(&mut self, mode: u32) {
        let masked = self.is_masked();
        for entry in &mut self.0 {
            if let Some(shift) = entry.shift(masked) {
                entry.perm = mode >> shift & CLASS;
            }
        }
    }

    /// What a node gets that is made with `mode` in a directory whose default ACL this is: the access ACL,
    /// unless the mode says all of it, and the mode (`posix_acl_create_masq`). Nobody gets more than both
    /// `mode` and the ACL grant; bits outside 0o777 stay as they are.
    pub(crate) fn create(&self, mode: u32) -> (Option<Self>, u32) {
        let (granted, mode_says_it_all) = self.equiv_mode();
        let mode = mode & (granted | !0o777);
        if mode_says_it_all {
            return (None, mode);
        }
        let mut access = self.clone();
        access.chmod(mode);
        (Some(access), mode)
    }
}
