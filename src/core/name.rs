//! One component of a path.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use crate::error::{Errno, Result};

/// The name of a directory entry: 1 to 255 bytes, neither `.` nor `..`, with no `/` and no NUL in it.
///
/// Names are bytes, not text. A `Name` given to openat2(2) and its kind is one step down and can never lead up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Name(CString);

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
        CString::new(bytes).map(Self).map_err(|_| Errno::EINVAL.into())
    }

    /// The name as system calls take it.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// The bytes of the name, without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The name as the standard library takes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.0.as_bytes())
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
}
