//! Extended attributes: the overlay's own are not shown, and those of a mount above this one are kept apart from them
//! (fs/overlayfs/xattrs.c).

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::sync::Arc;

use splicefs_core::{Caller, Errno, Layer, Result, XattrFlags};

use crate::Overlay;
use crate::config::Namespace;
use crate::copyup::Need;
use crate::node::Node;

/// Stands behind the prefix in names that belong to an overlay mounted on this one (`OVL_XATTR_ESCAPE_PREFIX`).
const ESCAPE: &[u8] = b"overlay.";

fn prefix(namespace: Namespace) -> &'static [u8] {
    match namespace {
        Namespace::Trusted => b"trusted.overlay.",
        Namespace::User => b"user.overlay.",
    }
}

/// The name under which a layer keeps what callers call `name`.
fn stored(namespace: Namespace, name: &CStr) -> Result<Cow<'_, CStr>> {
    let prefix = prefix(namespace);
    let Some(rest) = name.to_bytes().strip_prefix(prefix) else { return Ok(Cow::Borrowed(name)) };
    let escaped = CString::new([prefix, ESCAPE, rest].concat()).map_err(|_| Errno::EINVAL)?;
    Ok(Cow::Owned(escaped))
}

/// What callers call the attribute that a layer keeps as `name`; `None` for the overlay's own.
fn shown(namespace: Namespace, name: &[u8]) -> Option<Cow<'_, [u8]>> {
    let prefix = prefix(namespace);
    let Some(rest) = name.strip_prefix(prefix) else { return Some(Cow::Borrowed(name)) };
    rest.strip_prefix(ESCAPE).map(|rest| Cow::Owned([prefix, rest].concat()))
}

/// What the names of ACLs begin with.
pub(crate) const ACL: &[u8] = b"system.posix_acl_";

pub(crate) fn is_acl(name: &CStr) -> bool {
    name.to_bytes().starts_with(ACL)
}

/// Whether an attribute of a layer is the overlay's own.
pub(crate) fn is_own_mark(namespace: Namespace, name: &CStr) -> bool {
    shown(namespace, name.to_bytes()).is_none()
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    fn check(&self, name: &CStr) -> Result<()> {
        if is_acl(name) && !self.config.acls {
            return Err(Errno::EOPNOTSUPP.into());
        }
        Ok(())
    }

    pub(crate) fn get_xattr(&self, node: &Arc<Node<L, U>>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        self.check(name)?;
        let name = stored(self.config.namespace, name)?;
        let mut value = match (&self.upper, node.upper()) {
            (Some(upper), Some(counterpart)) => upper.layer.getxattr(counterpart, &name, limit)?,
            _ => {
                let lower = Self::topmost(node)?;
                self.lowers[lower.layer()].layer.getxattr(&lower.node, &name, limit)?
            }
        };
        if is_acl(&name) {
            self.config.owners.show_acl(&mut value);
        }
        Ok(value)
    }

    pub(crate) fn list_xattr(&self, node: &Arc<Node<L, U>>, limit: usize) -> Result<Vec<u8>> {
        /// `XATTR_LIST_MAX`: what is not shown must not make the rest seem too long.
        const MOST: usize = 64 * 1024;
        let all = match (&self.upper, node.upper()) {
            (Some(upper), Some(counterpart)) => upper.layer.listxattr(counterpart, MOST)?,
            _ => {
                let lower = Self::topmost(node)?;
                self.lowers[lower.layer()].layer.listxattr(&lower.node, MOST)?
            }
        };
        let names = all.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        let mut list = Vec::with_capacity(all.len());
        let acls = self.config.acls;
        let names = names.filter(|name| acls || !name.starts_with(ACL));
        for name in names.filter_map(|name| shown(self.config.namespace, name)) {
            list.extend_from_slice(&name);
            list.push(0);
        }
        if list.len() > limit { Err(Errno::ERANGE.into()) } else { Ok(list) }
    }

    pub(crate) fn set_xattr(
        &self,
        caller: &Caller,
        node: &Arc<Node<L, U>>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.check(name)?;
        let name = stored(self.config.namespace, name)?;
        self.check_unprotected(node)?;
        let mut value = Cow::Borrowed(value);
        if is_acl(&name) {
            self.config.owners.keep_acl(value.to_mut())?;
        }
        let counterpart = self.copy_up(node, Need::Attributes)?;
        self.changes()?.layer.setxattr(caller, &counterpart, &name, &value, flags)
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node<L, U>>, name: &CStr) -> Result<()> {
        self.check(name)?;
        self.check_unprotected(node)?;
        if node.upper().is_none() {
            // What is not there is not worth a copy.
            self.get_xattr(node, name, 64 * 1024)?;
        }
        let name = stored(self.config.namespace, name)?;
        let counterpart = self.copy_up(node, Need::Attributes)?;
        self.changes()?.layer.removexattr(&counterpart, &name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_above_this_one_has_its_attributes_to_itself() {
        use Namespace::{Trusted, User};
        for (namespace, name) in [
            (Trusted, c"trusted.overlay.opaque"),
            (Trusted, c"trusted.overlay.overlay.opaque"),
            (User, c"user.overlay.redirect"),
        ] {
            let kept = stored(namespace, name).unwrap();
            assert_ne!(&*kept, name);
            assert_eq!(shown(namespace, kept.to_bytes()).unwrap(), name.to_bytes());
            assert_eq!(shown(namespace, b"trusted.overlay.opaque").is_none(), namespace == Trusted);
        }
        for name in [c"user.x", c"trusted.overlayx", c"system.posix_acl_access"] {
            assert_eq!(&*stored(Trusted, name).unwrap(), name);
            assert_eq!(shown(Trusted, name.to_bytes()).unwrap(), name.to_bytes());
        }
        assert_eq!(shown(User, b"user.overlay.origin"), None);
    }
}
