//! Access control lists as their attributes hold them (include/uapi/linux/posix_acl_xattr.h).

/// The attribute of an access ACL.
pub(crate) const ACCESS_ACL: &str = "system.posix_acl_access";

pub(crate) const ACL_USER_OBJ: u16 = 0x01;
pub(crate) const ACL_USER: u16 = 0x02;
pub(crate) const ACL_GROUP_OBJ: u16 = 0x04;
pub(crate) const ACL_GROUP: u16 = 0x08;
pub(crate) const ACL_MASK: u16 = 0x10;
pub(crate) const ACL_OTHER: u16 = 0x20;
/// The id of entries that have none.
pub(crate) const NO_ID: u32 = u32::MAX;

/// The value of entries of tag, permissions and id.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
