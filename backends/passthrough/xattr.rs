//! Extended attributes, POSIX ACLs among them.

use std::ffi::CStr;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags as OsFlags, getxattr, listxattr, removexattr, setxattr};
use splicefs_core::sys::creds::As;
use splicefs_core::{Caller, Result, XattrFlags};

use crate::node::Node;
use crate::tree::{Tree, path_of};

impl Tree {
    pub(crate) fn get_xattr(&self, node: &Arc<Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        let fd = self.descriptor(node)?;
        let mut value = Vec::with_capacity(limit);
        getxattr(path_of(&fd), name, spare_capacity(&mut value))?;
        Ok(value)
    }

    pub(crate) fn list_xattr(&self, node: &Arc<Node>, limit: usize) -> Result<Vec<u8>> {
        let fd = self.descriptor(node)?;
        let mut names = Vec::with_capacity(limit);
        listxattr(path_of(&fd), spare_capacity(&mut names))?;
        Ok(names)
    }

    /// Sets an attribute. An access ACL takes the setgid bit with it when it is set by one outside the file's group:
    /// the source does that itself for a caller without CAP_FSETID (`posix_acl_update_mode` in fs/posix_acl.c).
    pub(crate) fn set_xattr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let fd = self.descriptor(node)?;
        let _guard = if flags.kill_sgid { Some(caller.act(As::Creator, true)?) } else { None };
        Ok(setxattr(path_of(&fd), name, value, OsFlags::from_bits_retain(flags.flags.cast_unsigned()))?)
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node>, name: &CStr) -> Result<()> {
        let fd = self.descriptor(node)?;
        Ok(removexattr(path_of(&fd), name)?)
    }
}
