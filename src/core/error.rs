//! Errors: an expected errno is a value, trouble carries its operation and cause.

use std::fmt;
use std::io;

/// An error number of errno(3), always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs, reason = "errno(3) documents them")]
        impl Errno { $(pub const $name: Self = Self(libc::$name);)* }
    };
}
errnos! {
    E2BIG EACCES EAGAIN EBADF EEXIST EFBIG EINTR EINVAL EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODATA ENODEV ENOENT
    ENOMEM ENOSPC ENOSYS ENOTCONN ENOTDIR ENOTEMPTY ENOTTY ENXIO EOPNOTSUPP EOVERFLOW EPERM ERANGE EROFS ESPIPE ESTALE EXDEV
    EBUSY ENOBUFS ETXTBSY EDQUOT
}

impl Errno {
    /// `raw` as the kernel gives it; anything that is no errno becomes `EIO`, so that no reply ever claims success
    /// for an error nor carries a number the kernel refuses (fs/fuse/dev.c takes 1 to 511).
    pub fn from_raw(raw: i32) -> Self {
        if (1..512).contains(&raw) { Self(raw) } else { Self::EIO }
    }

    /// The positive number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(e: rustix::io::Errno) -> Self {
        Self::from_raw(e.raw_os_error())
    }
}

impl From<nix::Error> for Errno {
    fn from(e: nix::Error) -> Self {
        Self::from_raw(e as i32)
    }
}

/// Trouble of the daemon or its host, as opposed to an answer a caller may well expect.
#[derive(Debug)]
pub struct Fault {
    /// What the caller is told.
    pub errno: Errno,
    /// What was being done, to what, and why it failed: one line for the log.
    pub context: String,
}

/// Why an operation gave no result.
#[derive(Debug)]
pub enum Error {
    /// An answer like any other: no such entry, no permission, no space.
    Errno(Errno),
    /// Trouble that is logged, once, where the reply leaves.
    Fault(Box<Fault>),
    /// Somebody has a lease on a file, who was told to give it back: nothing was done, and it is to be tried again.
    Leased,
}

/// What every operation of a backend returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A fault: `errno` for the caller, `context` for the log.
    pub fn fault(errno: Errno, context: impl Into<String>) -> Self {
        Self::Fault(Box::new(Fault { errno, context: context.into() }))
    }

    /// What the caller is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) => *errno,
            Self::Fault(fault) => fault.errno,
            Self::Leased => Errno::EAGAIN,
        }
    }
}

impl<E: Into<Errno>> From<E> for Error {
    fn from(e: E) -> Self {
        Self::Errno(e.into())
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        match e.raw_os_error() {
            Some(raw) => Self::Errno(Errno::from_raw(raw)),
            None => Self::fault(Errno::EIO, e.to_string()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "{errno:?}"),
            Self::Leased => write!(f, "somebody has a lease"),
            Self::Fault(fault) => write!(f, "{} ({:?})", fault.context, fault.errno),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_errno_becomes_eio() {
        for bad in [0, -1, 512, i32::MAX, i32::MIN] {
            assert_eq!(Errno::from_raw(bad), Errno::EIO);
        }
        assert_eq!(Errno::from_raw(libc::ENOENT), Errno::ENOENT);
    }
}
