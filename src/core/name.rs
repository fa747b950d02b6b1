//! One component of a path.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Errno, Result};

/// The name of a directory entry: 1 to 255 bytes, neither `.` nor `..`, with no `/` and no NUL in it.
///
/// Names are bytes, not text. A `Name` given to openat2(2) and its kind is one step down and can never lead up.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Bytes);

/// Every node has a name, and most are short: these need no memory of their own. Which form a name has is settled by its
/// length, so that equal names have equal forms.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Bytes {
    /// Filled up with NULs, of which there is one at least.
    Short([u8; SHORT]),
    Long(Box<CStr>),
}

/// As much as fits beside the tag without making a name larger than its other form does.
const SHORT: usize = 23;

/// The longest name that Linux directories hold, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

impl Name {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// `ENAMETOOLONG` over 255 bytes; `EINVAL` for what can be no entry's name.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Errno::EINVAL.into());
        }
        if bytes.contains(&0) {
            return Err(Errno::EINVAL.into());
        }
        if bytes.len() < SHORT {
            let mut short = [0; SHORT];
            short[..bytes.len()].copy_from_slice(bytes);
            return Ok(Self(Bytes::Short(short)));
        }
        let long = CString::new(bytes).map_err(|_| Errno::EINVAL)?;
        Ok(Self(Bytes::Long(long.into_boxed_c_str())))
    }

    /// The name as system calls take it.
    pub fn as_c_str(&self) -> &CStr {
        match &self.0 {
            Bytes::Short(bytes) => CStr::from_bytes_until_nul(bytes).unwrap_or_default(),
            Bytes::Long(name) => name,
        }
    }

    /// The bytes of the name, without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.as_c_str().to_bytes()
    }

    /// The name as the standard library takes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_c_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_can_be_no_entry() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
            assert_eq!(Name::new(bad).unwrap_err().errno(), Errno::EINVAL, "{bad:?}");
        }
        assert_eq!(Name::new(&[b'x'; 256]).unwrap_err().errno(), Errno::ENAMETOOLONG);
    }

    #[test]
    fn takes_any_other_bytes() {
        for good in [&b"a"[..], b"...", b".hidden", b"\xff\xfe", b"a\nb", &[b'x'; 255]] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
    }

    #[test]
    fn a_name_of_any_length_is_what_it_was_made_of() {
        let mut names = std::collections::HashSet::new();
        for len in 1..=NAME_MAX {
            let bytes = vec![b'x'; len];
            let name = Name::new(&bytes).unwrap();
            assert_eq!((name.as_bytes(), name.as_c_str().to_bytes_with_nul().len()), (&bytes[..], len + 1));
            assert!(names.insert(name.clone()) && names.contains(&name));
        }
        assert_eq!(size_of::<Name>(), 24);
    }
}
