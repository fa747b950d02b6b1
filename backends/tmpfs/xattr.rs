//! Extended attributes and ACLs of a node (xattr(7), acl(5)).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use splicefs_core::{Errno, FileKind, Result, XattrFlags};

use crate::acl::Acl;
use crate::life::InUse;
use crate::node::{Meta, Node};
use crate::store::Store;

const ACCESS: &CStr = c"system.posix_acl_access";
const DEFAULT: &CStr = c"system.posix_acl_default";
/// File capabilities, which a change of the contents or the owner takes away.
const CAPABILITY: &CStr = c"security.capability";
/// What an attribute counts for beside its name and value, in bytes (`simple_xattr_space` in fs/xattr.c).
const OVERHEAD: u64 = 40;

/// The extended attributes of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    values: BTreeMap<Box<CStr>, Box<[u8]>>,
    pub(crate) access: Option<Acl>,
    pub(crate) default: Option<Acl>,
}

fn space_of(name: &CStr, value: &[u8]) -> u64 {
    OVERHEAD + (name.count_bytes() + value.len()) as u64
}

impl Attributes {
    /// What the attributes take of the space for inodes, in bytes. ACLs take none, as in the kernel.
    pub(crate) fn space(&self) -> u64 {
        self.values.iter().map(|(name, value)| space_of(name, value)).sum()
    }

    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.access.is_none() && self.default.is_none()
    }
}

/// Whether the file system has attributes of this name (`shmem_xattr_handlers` in mm/shmem.c).
///
/// # Errors
/// `EINVAL` for a class alone, `EOPNOTSUPP` for a name of no known class (`xattr_resolve_name` in fs/xattr.c).
fn check_name(name: &CStr) -> Result<()> {
    let name = name.to_bytes();
    let classes = [&b"user."[..], b"trusted.", b"security."];
    match classes.iter().find_map(|class| name.strip_prefix(*class)) {
        Some(b"") => Err(Errno::EINVAL.into()),
        Some(_) => Ok(()),
        None => Err(Errno::EOPNOTSUPP.into()),
    }
}

fn fits(value: Vec<u8>, limit: usize) -> Result<Vec<u8>> {
    if value.len() > limit { Err(Errno::ERANGE.into()) } else { Ok(value) }
}

/// The value of an attribute, of at most `limit` bytes.
///
/// # Errors
/// `ENODATA` where there is none, `ERANGE` where it is longer, `EOPNOTSUPP` for a name of no known class.
pub(crate) fn get(node: &Node, name: &CStr, limit: usize) -> Result<Vec<u8>> {
    let meta = node.meta();
    let attributes = meta.attributes.as_deref();
    let value = if name == ACCESS {
        attributes.and_then(|a| a.access.as_ref()).map(Acl::to_xattr)
    } else if name == DEFAULT {
        attributes.and_then(|a| a.default.as_ref()).map(Acl::to_xattr)
    } else {
        check_name(name)?;
        attributes.and_then(|a| a.values.get(name)).map(|value| value.to_vec())
    };
    fits(value.ok_or(Errno::ENODATA)?, limit)
}

/// The names, each ended by a NUL, of at most `limit` bytes.
///
/// # Errors
/// `ERANGE` where they are longer.
pub(crate) fn list(node: &Node, limit: usize) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    if let Some(attributes) = &node.meta().attributes {
        let acls = [(&attributes.access, ACCESS), (&attributes.default, DEFAULT)];
        let present = acls.iter().filter(|(acl, _)| acl.is_some()).map(|(_, name)| *name);
        for name in present.chain(attributes.values.keys().map(|name| &**name)) {
            names.extend_from_slice(name.to_bytes_with_nul());
        }
    }
    fits(names, limit)
}

/// Sets an attribute.
///
/// # Errors
/// Those of setxattr(2); `ENOSPC` where attributes would take more room than `nr_inodes` leaves.
pub(crate) fn set(node: &Arc<Node>, name: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    if name == ACCESS || name == DEFAULT {
        return set_acl(node, name, Acl::parse(value)?, flags.kill_sgid);
    }
    check_name(name)?;
    let _in_use = InUse::new(node.clone());
    let mut meta = node.meta();
    let old = meta.attributes.as_ref().and_then(|a| a.values.get(name)).map(|old| space_of(name, old));
    if flags.flags & libc::XATTR_CREATE != 0 && old.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if flags.flags & libc::XATTR_REPLACE != 0 && old.is_none() {
        return Err(Errno::ENODATA.into());
    }
    // The new value's room is taken before the old one's is given back, as in `shmem_xattr_handler_set`.
    node.store().limits.take_inode_space(space_of(name, value))?;
    node.store().limits.give_inode_space(old.unwrap_or(0));
    meta.attributes.get_or_insert_default().values.insert(name.into(), value.into());
    meta.changed();
    Ok(())
}

/// Removes an attribute.
///
/// # Errors
/// `ENODATA` where there is none, `EOPNOTSUPP` for a name of no known class.
pub(crate) fn remove(node: &Arc<Node>, name: &CStr) -> Result<()> {
    if name == ACCESS || name == DEFAULT {
        return set_acl(node, name, None, false);
    }
    check_name(name)?;
    let _in_use = InUse::new(node.clone());
    let mut meta = node.meta();
    if !remove_value(&mut meta, node.store(), name) {
        return Err(Errno::ENODATA.into());
    }
    meta.changed();
    Ok(())
}

/// Whether there was such an attribute.
fn remove_value(meta: &mut Meta, store: &Store, name: &CStr) -> bool {
    let Some(attributes) = &mut meta.attributes else { return false };
    let Some(value) = attributes.values.remove(name) else { return false };
    store.limits.give_inode_space(space_of(name, &value));
    forget_if_empty(meta);
    true
}

fn forget_if_empty(meta: &mut Meta) {
    if meta.attributes.as_ref().is_some_and(|attributes| attributes.is_empty()) {
        meta.attributes = None;
    }
}

/// Takes file capabilities away (`security_inode_need_killpriv` in security/commoncap.c).
pub(crate) fn remove_capabilities(meta: &mut Meta, store: &Store) {
    remove_value(meta, store, CAPABILITY);
}

/// Sets or removes an ACL. The mode follows the access ACL, and an ACL that the mode says all of is not kept
/// (`simple_set_acl` and `posix_acl_update_mode` in fs/posix_acl.c).
fn set_acl(node: &Arc<Node>, name: &CStr, acl: Option<Acl>, kill_sgid: bool) -> Result<()> {
    let kind = node.kind();
    if kind == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let mut meta = node.meta();
    if name == ACCESS {
        let mut kept = acl;
        if let Some(acl) = &kept {
            let (permissions, mode_says_it_all) = acl.equiv_mode();
            meta.mode = meta.mode & !0o777 | permissions;
            if mode_says_it_all {
                kept = None;
            }
        }
        if kill_sgid {
            meta.mode &= !libc::S_ISGID;
        }
        meta.attributes.get_or_insert_default().access = kept;
    } else {
        if kind != FileKind::Directory {
            return if acl.is_some() { Err(Errno::EACCES.into()) } else { Ok(()) };
        }
        meta.attributes.get_or_insert_default().default = acl;
    }
    forget_if_empty(&mut meta);
    meta.changed();
    Ok(())
}
