//! The attributes of a layer that keeps records: the record itself is nobody's to see or to set, and where it is the
//! user's own (`user.`), so are the `security.` attributes, which a user could not set.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use splicefs_core::{Errno, Result};

use crate::xattr::ACL;

/// In which attribute the owners and modes of a layer are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Store {
    /// Only root could have written it.
    Security,
    /// What containers/storage and fuse-overlayfs since 1.14 write.
    Containers,
    /// What fuse-overlayfs wrote before.
    Old,
}

/// What the names begin with under which `security.` attributes are kept.
const OVERRIDE: &[u8] = b"user.containers.override_";
const SECURITY: &[u8] = b"security.";
/// The longest name (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

/// What a caller means by the name of an attribute.
pub(super) enum Meant<'a> {
    /// The one that the layer keeps under this name.
    Kept(Cow<'a, CStr>),
    /// One that the overlay keeps to itself.
    Private,
    /// An ACL.
    Acl,
}

impl Store {
    /// All of them, in the order in which a layer is asked for them (`direct_load_data_source` in fuse-overlayfs).
    pub(super) const ALL: [Self; 3] = [Self::Security, Self::Containers, Self::Old];

    /// The name of the attribute.
    pub(super) fn name(self) -> &'static CStr {
        match self {
            Self::Security => c"security.fuseoverlayfs.override_stat",
            Self::Containers => c"user.containers.override_stat",
            Self::Old => c"user.fuseoverlayfs.override_stat",
        }
    }

    /// What a caller means by `name`.
    ///
    /// # Errors
    /// `ERANGE` for a name that is too long to be kept.
    pub(super) fn meant(self, name: &CStr) -> Result<Meant<'_>> {
        let bytes = name.to_bytes();
        if bytes.starts_with(ACL) {
            return Ok(Meant::Acl);
        }
        if bytes.starts_with(OVERRIDE) || Self::ALL.iter().any(|store| store.name() == name) {
            return Ok(Meant::Private);
        }
        if self != Self::Containers || !bytes.starts_with(SECURITY) {
            return Ok(Meant::Kept(Cow::Borrowed(name)));
        }
        if OVERRIDE.len() + bytes.len() > NAME_MAX {
            return Err(Errno::ERANGE.into());
        }
        let kept = CString::new([OVERRIDE, bytes].concat()).map_err(|_| Errno::EINVAL)?;
        Ok(Meant::Kept(Cow::Owned(kept)))
    }

    /// What callers call the attribute that the layer keeps as `name`; `None` for one that they do not see.
    pub(super) fn shown(self, name: &[u8]) -> Option<&[u8]> {
        let own = |store: &Self| store.name().to_bytes() == name;
        if self == Self::Containers {
            let escaped = name.strip_prefix(OVERRIDE).filter(|name| name.starts_with(SECURITY));
            if let Some(escaped) = escaped {
                return (!Self::ALL.iter().any(|store| store.name().to_bytes() == escaped))
                    .then_some(escaped);
            }
            if name.starts_with(SECURITY) {
                return None;
            }
        }
        let hidden = name.starts_with(OVERRIDE) || Self::ALL.iter().any(own) || name.starts_with(ACL);
        (!hidden).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(store: Store, name: &CStr) -> Option<Vec<u8>> {
        match store.meant(name).unwrap() {
            Meant::Kept(name) => Some(name.to_bytes().to_vec()),
            Meant::Private | Meant::Acl => None,
        }
    }

    #[test]
    fn records_are_nobodys_business() {
        for store in Store::ALL {
            for hidden in Store::ALL {
                assert!(matches!(store.meant(hidden.name()), Ok(Meant::Private)), "{store:?} {hidden:?}");
                assert_eq!(store.shown(hidden.name().to_bytes()), None, "{store:?} {hidden:?}");
            }
            assert_eq!(kept(store, c"user.x").unwrap(), b"user.x");
            assert_eq!(store.shown(b"user.x").unwrap(), b"user.x");
            assert_eq!(store.shown(b"system.posix_acl_access"), None);
            assert!(matches!(store.meant(c"system.posix_acl_default"), Ok(Meant::Acl)));
            // Not by its kept name either: who may not set capabilities must not set what stands for them.
            let smuggled = c"user.containers.override_security.capability";
            assert!(matches!(store.meant(smuggled), Ok(Meant::Private)), "{store:?}");
        }
    }

    #[test]
    fn security_attributes_are_the_users_own() {
        let name = c"security.capability";
        let stored = kept(Store::Containers, name).unwrap();
        assert_eq!(stored, b"user.containers.override_security.capability");
        assert_eq!(Store::Containers.shown(&stored).unwrap(), name.to_bytes());
        assert_eq!(Store::Containers.shown(name.to_bytes()), None);
        for store in [Store::Security, Store::Old] {
            assert_eq!(kept(store, name).unwrap(), name.to_bytes());
            assert_eq!(store.shown(&stored), None);
        }
        let long = CString::new([SECURITY, &[b'x'; 240]].concat()).unwrap();
        assert_eq!(Store::Containers.meant(&long).map(drop).unwrap_err().errno(), Errno::ERANGE);
    }
}
