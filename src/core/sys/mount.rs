//! Mounts that nobody but the holder of their descriptor sees.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::Result;

/// `struct mount_attr` (include/uapi/linux/mount.h).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MS_PRIVATE` (include/uapi/linux/mount.h): libc has it as wide as a long is.
const PRIVATE: u64 = 1 << 18;

/// Makes the mount whose root `mount` has open refuse every write, the noting of access times among them, and take no part
/// in mounts and unmounts elsewhere (mount_setattr(2)). To be called on a detached mount (open_tree(2) with
/// `OPEN_TREE_CLONE`): any other is everybody's.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn seal(mount: impl AsFd) -> Result<()> {
    let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, propagation: PRIVATE, ..MountAttr::default() };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is a C string, and `attr` a `struct mount_attr` of the size told, which outlives the call and is
    // only read.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}
