//! The ioctl(2) requests that files of a local file system answer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::error::{Errno, Result};

/// Requests that are passed on: each takes one flat structure of at most [`LARGEST`] bytes and no pointers in it
/// (include/uapi/linux/fs.h). Everything else is refused: a pointer of the caller's means nothing
/// here, and for the numbers of 32-bit programs (`FS_IOC32_SETFLAGS`) the kernel checks no permission on the way, having
/// turned those of real 32-bit programs into these.
const PASSED_ON: [u32; 5] = [
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4008_6602, // FS_IOC_SETFLAGS
    0x8008_7601, // FS_IOC_GETVERSION
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x401c_5820, // FS_IOC_FSSETXATTR
];

/// The largest structure among them, in bytes (`struct fsxattr` is 28), with room to spare.
const LARGEST: usize = 64;

/// Whether `command` is one that a file system answers without following pointers.
fn is_passed_on(command: u32) -> bool {
    PASSED_ON.contains(&command)
}

/// Whether `command` changes flags of the file, and its change time with them.
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, 0x4008_6602 | 0x401c_5820)
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
