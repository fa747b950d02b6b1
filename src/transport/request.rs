//! Requests as the kernel sends them, decoded without trust in their form.

use std::ffi::CStr;

use splicefs_core::{Errno, Name, Result};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::wire::InHeader;

macro_rules! opcodes {
    ($($name:ident = $number:literal, $key:literal;)*) => {
        /// The operations of the protocol (`enum fuse_opcode`).
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Opcode {
            $(
                #[allow(missing_docs, reason = "the kernel's header documents them under these names")]
                $name,
            )*
        }

        impl Opcode {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The operation of that number, if it is known.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The key in `stats` and the name in the log.
            pub fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }
        }
    };
}

opcodes! {
    Lookup = 1, "lookup"; Forget = 2, "forget"; Getattr = 3, "getattr"; Setattr = 4, "setattr";
    Readlink = 5, "readlink"; Symlink = 6, "symlink"; Mknod = 8, "mknod"; Mkdir = 9, "mkdir"; Unlink = 10, "unlink";
    Rmdir = 11, "rmdir"; Rename = 12, "rename"; Link = 13, "link"; Open = 14, "open"; Read = 15, "read";
    Write = 16, "write"; Statfs = 17, "statfs"; Release = 18, "release"; Fsync = 20, "fsync"; Setxattr = 21, "setxattr";
    Getxattr = 22, "getxattr"; Listxattr = 23, "listxattr"; Removexattr = 24, "removexattr"; Flush = 25, "flush";
    Opendir = 27, "opendir"; Readdir = 28, "readdir"; Releasedir = 29, "releasedir"; Fsyncdir = 30, "fsyncdir";
    Create = 35, "create"; Interrupt = 36, "interrupt"; Destroy = 38, "destroy"; Ioctl = 39, "ioctl"; Poll = 40, "poll";
    BatchForget = 42, "batch_forget"; Fallocate = 43, "fallocate"; Readdirplus = 44, "readdirplus";
    Rename2 = 45, "rename2"; Lseek = 46, "lseek"; CopyFileRange = 47, "copy_file_range"; Tmpfile = 51, "tmpfile";
    CopyFileRange64 = 53, "copy_file_range_64";
}

/// A request: its header and a cursor over its arguments.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: InHeader,
    arguments: &'a [u8],
}

impl<'a> Request<'a> {
    /// The request in `message`.
    ///
    /// # Errors
    /// `EIO` for a message too short to have a header, which has no id to answer to.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self> {
        let (header, arguments) = InHeader::read_from_prefix(message).map_err(|_| Errno::EIO)?;
        Ok(Self { header, arguments })
    }

    /// The operation, if it is one we know.
    pub(crate) fn opcode(&self) -> Option<Opcode> {
        Opcode::from_number(self.header.opcode)
    }

    /// What is left of the arguments.
    pub(crate) fn arguments(&self) -> &'a [u8] {
        self.arguments
    }

    /// The next argument.
    ///
    /// # Errors
    /// `EIO` where the message is too short for it.
    pub(crate) fn take<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Result<T> {
        let (value, rest) = T::read_from_prefix(self.arguments).map_err(|_| Errno::EIO)?;
        self.arguments = rest;
        Ok(value)
    }

    /// The next string.
    ///
    /// # Errors
    /// `EIO` where none is ended by a NUL.
    pub(crate) fn text(&mut self) -> Result<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.arguments).map_err(|_| Errno::EIO)?;
        self.arguments = &self.arguments[text.to_bytes_with_nul().len()..];
        Ok(text)
    }

    /// The next string, as the name of a directory entry.
    ///
    /// # Errors
    /// Those of [`Name::new`].
    pub(crate) fn name(&mut self) -> Result<Name> {
        Name::new(self.text()?.to_bytes())
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// `EIO` where there are fewer.
    pub(crate) fn bytes(&mut self, len: u32) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| Errno::EIO)?;
        let (bytes, rest) = self.arguments.split_at_checked(len).ok_or(Errno::EIO)?;
        self.arguments = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::MkdirIn;
    use super::*;

    #[test]
    fn short_messages_are_errors_not_panics() {
        assert!(Request::parse(&[0; 39]).is_err());
        let mut request = Request::parse(&[0; 44]).unwrap();
        assert!(request.take::<MkdirIn>().is_err());
        assert!(request.bytes(5).is_err());
        assert_eq!(request.bytes(2).unwrap(), [0, 0]);
        assert_eq!(request.text().unwrap(), c"");
        assert_eq!(request.text().unwrap(), c"");
        assert!(request.text().is_err());
        assert!(request.opcode().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_decoded_or_refused(message: Vec<u8>, len: u32) {
            if let Ok(mut request) = Request::parse(&message) {
                let _ignored = (request.opcode(), request.name(), request.bytes(len), request.text());
            }
        }
    }
}
