//! Making one node look like another: its owner, mode, extended attributes and times (`ovl_copy_up_metadata` in
//! fs/overlayfs/copy_up.c).

use std::ffi::CStr;
use std::sync::Arc;

use splicefs_core::{Attr, Backend, Caller, Errno, FileKind, Result, SetAttr, SetTime, XattrFlags};

use crate::config::{Config, CopyupOwner};
use crate::copyup_owner::Kept;
use crate::xattr::{is_acl, is_own_mark};

/// The longest list of attributes, and the longest value of one (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
pub(crate) const XATTR_MAX: usize = 64 * 1024;

/// What a copy is to have besides what it has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CopyMode {
    /// Its mode.
    pub(crate) mode: u32,
    /// It has the owner and the group of the lower file.
    pub(crate) has_owner: bool,
}

impl Config {
    /// Gives `to` the owner, the mode, the times and the extended attributes of `from`, whose attributes are `attr`; not what
    /// the overlay itself has noted there. Owner first, then what a change of owner would clear; then the mode, which may keep its
    /// owner from setting attributes, and the times.
    ///
    /// # Errors
    /// Those of reading and setting them. What the target's file system has no place for is left out, unless access depends
    /// on it.
    pub fn copy_attributes<A: Backend, B: Backend>(
        &self,
        from: (&A, &Arc<A::Node>),
        (to, target, file): (&B, &Arc<B::Node>, Option<&B::File>),
        attr: &Attr,
    ) -> Result<()> {
        let copy = self.copy_owner_and_xattrs(from, (to, target, file), attr)?;
        set_mode_and_times((to, target, file), &Attr { mode: copy.mode, ..*attr })
    }

    /// The first half of [`Config::copy_attributes`]; what remains to be set.
    pub(crate) fn copy_owner_and_xattrs<A: Backend, B: Backend>(
        &self,
        from: (&A, &Arc<A::Node>),
        (to, target, file): (&B, &Arc<B::Node>, Option<&B::File>),
        attr: &Attr,
    ) -> Result<CopyMode> {
        let kept = self.give_owner((to, target, file), attr)?;
        let acl = self.copy_xattrs(from, (to, target), kept)?;
        Ok(CopyMode { mode: kept.mode(attr.mode, acl), has_owner: kept.is_all() })
    }

    /// Copies the extended attributes; the permissions that the access ACL of the copy stands for, if it has one.
    fn copy_xattrs<A: Backend, B: Backend>(
        &self,
        (from, source): (&A, &Arc<A::Node>),
        (to, target): (&B, &Arc<B::Node>),
        kept: Kept,
    ) -> Result<Option<u32>> {
        let mut permissions = None;
        let names = match from.listxattr(source, XATTR_MAX) {
            Err(e) if e.errno() == Errno::EOPNOTSUPP => return Ok(None),
            other => other?,
        };
        for name in names.split_inclusive(|&byte| byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            if is_own_mark(self.namespace, name) || !kept.takes(name) {
                continue;
            }
            let mut value = match from.getxattr(source, name, XATTR_MAX) {
                Err(e) if e.errno() == Errno::ENODATA => continue,
                other => other?,
            };
            if is_acl(name) {
                let stands_for = kept.narrow_acl(&mut value);
                permissions = if name == c"system.posix_acl_access" { stands_for } else { permissions };
            }
            let flags = XattrFlags { flags: 0, kill_sgid: false };
            match to.setxattr(&Caller::DAEMON, target, name, &value, flags) {
                Err(e) if self.may_be_left_out(name, e.errno()) => {
                    log::debug!("{name:?} is not copied: {e}");
                }
                other => other?,
            }
        }
        Ok(permissions)
    }

    /// Whether a copy may go without an attribute that the target refuses in this way. A label of a security module is not the
    /// mounter's to give: the copy has the one that the module gives to what the mounter makes.
    fn may_be_left_out(&self, name: &CStr, error: Errno) -> bool {
        let is_security = name.to_bytes().starts_with(b"security.");
        match error {
            Errno::EOPNOTSUPP => !self.decides_access(name),
            Errno::EPERM => is_security && self.copyup_owner == CopyupOwner::Mounter,
            _ => false,
        }
    }

    /// Whether a copy without this attribute could be used by those who may not use the original, or the reverse
    /// (`ovl_must_copy_xattr`).
    fn decides_access(&self, name: &CStr) -> bool {
        name.to_bytes().starts_with(b"security.") || is_acl(name) && self.acls
    }
}

/// The second half of [`Config::copy_attributes`]: when the node lacks nothing else.
pub(crate) fn set_mode_and_times<B: Backend>(
    (to, target, file): (&B, &Arc<B::Node>, Option<&B::File>),
    attr: &Attr,
) -> Result<()> {
    let set = |change: SetAttr| to.setattr(&Caller::DAEMON, target, file, &change);
    if attr.kind() != FileKind::Symlink {
        set(SetAttr { mode: Some(attr.mode & 0o7777), ..SetAttr::default() })?;
    }
    set(times(attr)).map(drop)
}

/// The change that gives a node the times in `attr`.
pub(crate) fn times(attr: &Attr) -> SetAttr {
    SetAttr {
        atime: Some(SetTime::At(attr.atime)),
        mtime: Some(SetTime::At(attr.mtime)),
        ..SetAttr::default()
    }
}
