//! File handles (name_to_handle_at(2), open_by_handle_at(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use crate::error::{Errno, Error, Result};
use crate::layer::FileHandle;

/// The longest handle there is, in bytes (`MAX_HANDLE_SZ`, include/linux/exportfs.h).
const LONGEST: usize = 128;

/// `struct file_handle` with room for every handle.
#[repr(C)]
struct Buffer {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; LONGEST],
}

fn last_error() -> Error {
    std::io::Error::last_os_error().into()
}

/// The handle of what `fd` has open, which may be an `O_PATH` descriptor; `None` where its file system has no handles
/// (`EOPNOTSUPP`), or none that fit (`EOVERFLOW`).
///
/// # Errors
/// Any other of name_to_handle_at(2).
pub fn of(fd: BorrowedFd<'_>) -> Result<Option<FileHandle>> {
    let mut mount_id = 0;
    let mut buffer = Buffer { handle_bytes: 128, handle_type: 0, f_handle: [0; LONGEST] };
    let handle = (&raw mut buffer).cast();
    // SAFETY: the path is a C string; `buffer` has the layout of a `struct file_handle` followed by the `handle_bytes`
    // bytes that it announces, and outlives the call, as `mount_id` does.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::name_to_handle_at(fd.as_raw_fd(), c"".as_ptr(), handle, &raw mut mount_id, libc::AT_EMPTY_PATH)
    };
    if result < 0 {
        let error = last_error();
        return match error.errno() {
            Errno::EOPNOTSUPP | Errno::EOVERFLOW => Ok(None),
            _ => Err(error),
        };
    }
    let len = usize::try_from(buffer.handle_bytes).unwrap_or(LONGEST).min(LONGEST);
    Ok(Some(FileHandle { kind: buffer.handle_type, bytes: buffer.f_handle[..len].to_vec() }))
}

/// Opens the file that `handle` leads to on the file system of `mount`, which is a descriptor that is not `O_PATH`.
///
/// # Errors
/// `ESTALE` where there is no such file; `EINVAL` for what is no handle of that file system; `EPERM` without
/// CAP_DAC_READ_SEARCH; else those of open(2).
pub fn open(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd> {
    let mut buffer = Buffer { handle_bytes: 0, handle_type: handle.kind, f_handle: [0; LONGEST] };
    let room = buffer.f_handle.get_mut(..handle.bytes.len()).ok_or(Errno::EINVAL)?;
    room.copy_from_slice(&handle.bytes);
    buffer.handle_bytes = u32::try_from(handle.bytes.len()).map_err(|_| Errno::EINVAL)?;
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: `buffer` has the layout of a `struct file_handle` followed by the `handle_bytes` bytes that it announces,
    // and outlives the call.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut buffer).cast(), flags) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_longer_than_any_handle_is_none() {
        let file = tempfile::tempfile().unwrap();
        let handle = FileHandle { kind: 1, bytes: vec![0; LONGEST + 1] };
        assert_eq!(open(file.as_fd(), &handle, OFlags::PATH).unwrap_err().errno(), Errno::EINVAL);
    }

    #[test]
    fn a_file_system_without_handles_has_none() {
        let proc = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(of(proc.as_fd()).unwrap(), None);
    }
}
