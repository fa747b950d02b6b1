//! The ioctl(2) requests that files of a local file system answer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::attr::Protection;
use crate::backend::Ioctl;
use crate::error::{Errno, Result};

/// Requests that are passed on: each takes one flat structure of at most [`LARGEST`] bytes and no pointers in it
/// (include/uapi/linux/fs.h). Everything else is refused: a pointer of the caller's means nothing
/// here, and for the numbers of 32-bit programs (`FS_IOC32_SETFLAGS`) the kernel checks no permission on the way, having
/// turned those of real 32-bit programs into these.
const PASSED_ON: [u32; 5] = [GETFLAGS, SETFLAGS, GETVERSION, FSGETXATTR, FSSETXATTR];

const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETVERSION: u32 = 0x8008_7601;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// The largest structure among them, in bytes (`struct fsxattr` is 28), with room to spare.
const LARGEST: usize = 64;

/// Whether `command` is one that a file system answers without following pointers.
fn is_passed_on(command: u32) -> bool {
    PASSED_ON.contains(&command)
}

/// Whether `command` changes flags of the file, and its change time with them.
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, SETFLAGS | FSSETXATTR)
}

/// The flags of chattr(1) (`FS_*_FL`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(u32);

impl Flags {
    /// Asks for them.
    pub const GET: Ioctl<'static> = Ioctl { command: GETFLAGS, input: &[], output_len: 8 };
    /// Sets those that are put into its input.
    pub const SET: Ioctl<'static> = Ioctl { command: SETFLAGS, input: &[], output_len: 0 };
    /// `FS_SYNC_FL` and `FS_NOATIME_FL`: what a copy takes over (`OVL_COPY_FS_FLAGS_MASK`).
    const COPIED: u32 = 0x8 | 0x80;

    /// Reads the answer to [`Flags::GET`].
    #[must_use]
    pub fn parse(answer: &[u8]) -> Option<Self> {
        first_word(answer).map(Self)
    }

    /// Those of them that a copy takes over.
    #[must_use]
    pub fn copied(self) -> u32 {
        self.0 & Self::COPIED
    }

    /// These and more.
    #[must_use]
    pub fn with(self, more: u32) -> Self {
        Self(self.0 | more)
    }

    /// As the input of [`Flags::SET`].
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        u64::from(self.0).to_ne_bytes()
    }
}

/// A request to read or change flags, two of which protect a file. Either structure begins with a word of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlagsRequest {
    /// It changes them.
    pub changes: bool,
    append: u32,
    immutable: u32,
}

impl FlagsRequest {
    /// `None` for any other request.
    #[must_use]
    pub fn of(command: u32) -> Option<Self> {
        let changes = changes_attributes(command);
        match command {
            GETFLAGS | SETFLAGS => Some(Self { changes, append: 0x20, immutable: 0x10 }),
            // FS_XFLAG_APPEND, FS_XFLAG_IMMUTABLE
            FSGETXATTR | FSSETXATTR => Some(Self { changes, append: 0x10, immutable: 0x8 }),
            _ => None,
        }
    }

    /// Adds the flags of `protection` to an answer.
    pub fn show(self, answer: &mut [u8], protection: Protection) {
        let append = if protection.append { self.append } else { 0 };
        let immutable = if protection.immutable { self.immutable } else { 0 };
        if let (Some(word), Some(place)) = (first_word(answer), answer.get_mut(..4)) {
            place.copy_from_slice(&(word | append | immutable).to_ne_bytes());
        }
    }

    /// The input of a change without the flags that protect, and these.
    ///
    /// # Errors
    /// `EINVAL` for an input that is too short.
    pub fn split(self, input: &[u8]) -> Result<(Vec<u8>, Protection)> {
        let word = first_word(input).ok_or(Errno::EINVAL)?;
        let protection =
            Protection { append: word & self.append != 0, immutable: word & self.immutable != 0 };
        let mut rest = input.to_vec();
        rest[..4].copy_from_slice(&(word & !(self.append | self.immutable)).to_ne_bytes());
        Ok((rest, protection))
    }
}

fn first_word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Passes `command` with `input` on to what `fd` has open, and returns the result and up to `output_len` bytes.
///
/// # Errors
/// `ENOTTY` for a request that is not passed on; else those of the file system.
pub fn pass_on(fd: BorrowedFd<'_>, command: u32, input: &[u8], output_len: usize) -> Result<(i32, Vec<u8>)> {
    if !is_passed_on(command) || input.len() > LARGEST || output_len > LARGEST {
        return Err(Errno::ENOTTY.into());
    }
    let mut buffer = [0u64; LARGEST / 8];
    for (word, chunk) in buffer.iter_mut().zip(input.chunks(8)) {
        let mut bytes = [0u8; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(bytes);
    }
    // SAFETY: `buffer` outlives the call, is aligned for every structure of PASSED_ON, and at LARGEST bytes is longer
    // than any of them; none of them holds a pointer, so the kernel touches nothing but the buffer.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(command), buffer.as_mut_ptr()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let bytes = buffer.iter().flat_map(|word| word.to_ne_bytes()).take(output_len).collect();
    Ok((result, bytes))
}

/// The size of a block device in bytes (`BLKGETSIZE64`, include/uapi/linux/fs.h).
///
/// # Errors
/// `ENOTTY` where `fd` is no block device.
pub fn block_device_size(fd: impl AsFd) -> Result<u64> {
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64, to a variable that outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(size) }
}

/// `struct fsuuid2` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// The UUID of the file system that holds `fd`, which is not `O_PATH` (`FS_IOC_GETFSUUID`, linux 6.9); a shorter one is
/// filled up with zeros.
///
/// # Errors
/// `ENOTTY` where the file system has none or the kernel does not know the question.
pub fn file_system_uuid(fd: impl AsFd) -> Result<[u8; 16]> {
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let mut answer = FsUuid::default();
    // SAFETY: FS_IOC_GETFSUUID writes one `struct fsuuid2`, to a variable that outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let len = usize::from(answer.len).min(answer.uuid.len());
    answer.uuid[len..].fill(0);
    Ok(answer.uuid)
}

/// `struct fuse_backing_map` (include/uapi/linux/fuse.h).
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Has the kernel keep `file` as one that it reads and writes by itself for the FUSE connection of `device`, with the
/// credentials that the calling thread has now (`FUSE_DEV_IOC_BACKING_OPEN`, linux 6.9). Returns the number that
/// names it in replies to OPEN.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in the initial user namespace, or where the connection did not negotiate it; `ELOOP` where
/// the file lies on a file system that is itself stacked.
pub fn open_backing(device: impl AsFd, file: impl AsFd) -> Result<i32> {
    const FUSE_DEV_IOC_BACKING_OPEN: libc::c_ulong = 0x4010_e501;
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads one `struct fuse_backing_map`, which outlives the call.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), FUSE_DEV_IOC_BACKING_OPEN, &raw const map) };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(result) }
}

/// Takes the number of a backing file back (`FUSE_DEV_IOC_BACKING_CLOSE`); what is open keeps the file.
///
/// # Errors
/// `ENOENT` for a number that names none.
pub fn close_backing(device: impl AsFd, id: i32) -> Result<()> {
    const FUSE_DEV_IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads one u32, which outlives the call.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &raw const id) };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit program may send FS_IOC32_SETFLAGS; the kernel would hand it on without asking who owns the file.
    #[test]
    fn regression_numbers_of_32_bit_programs_are_not_passed_on() {
        let file = tempfile::tempfile().unwrap();
        for command in [0x4004_6602, 0x8004_6601] {
            let refused = pass_on(file.as_fd(), command, &[0; 4], 4).unwrap_err();
            assert_eq!(refused.errno(), Errno::ENOTTY);
        }
    }
}
