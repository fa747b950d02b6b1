//! A mount that is served before it is anywhere: its root can be chosen then ([`crate::transport::ROOT_NAME`]).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{Mounted, Request, device};
use crate::failure::Failure;
use crate::transport::ROOT_NAME;

/// It is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Detached(OwnedFd);

impl Detached {
    /// Makes the mount that `request` describes, for the daemon that has `device` open.
    ///
    /// # Errors
    /// Those of the system calls, which may be unknown to the kernel or forbidden: mount(2) may do all the same.
    pub(super) fn make(request: &Request, device: &OwnedFd) -> Result<Self> {
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", request.fsname())?;
        if let Some((_, subtype)) = request.fs_type().split_once('.') {
            fsconfig_set_string(&context, "subtype", subtype)?;
        }
        let flags = request.flags();
        for (flag, name) in [(MountFlags::RDONLY, "ro"), (MountFlags::SYNCHRONOUS, "sync")] {
            if flags.contains(flag) {
                fsconfig_set_flag(&context, name)?;
            }
        }
        for option in request.data(device.as_fd()).split(',') {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, option)?,
            }
        }
        fsconfig_create(&context)?;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))?))
    }

    /// Mounts it on the mount point of `request`, once it is served; `name_root` says to the session whether the root is reached by
    /// its name. Kernels before 6.15 give no part of a mount that is nowhere: then it is all of it.
    ///
    /// # Errors
    /// One line that says what to do.
    pub(super) fn attach(
        self,
        request: &Request,
        name_root: impl Fn(bool),
    ) -> std::result::Result<Mounted, Failure> {
        name_root(true);
        let part =
            open_tree(&self.0, ROOT_NAME, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let tree = part.unwrap_or_else(|error| {
            log::debug!("the root is the kernel's first, whose ACL it does not keep: {error}");
            name_root(false);
            self.0
        });
        let point = request.mount_point();
        let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        move_mount(&tree, "", CWD, point, how).map_err(|error| device::mount_failure(point, error))?;
        Ok(Mounted::new(point))
    }
}

/// The flags of mount(2) that are attributes of the mount.
fn attributes(flags: MountFlags) -> MountAttrFlags {
    let all = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    all.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, attribute)| attribute).collect()
}
