//! Extended attributes, POSIX ACLs among them.

use std::ffi::CStr;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, Mode, XattrFlags as OsFlags, chmodat, getxattr, listxattr, removexattr, setxattr,
};
use splicefs_core::sys::creds::As;
use splicefs_core::{Caller, Identified, Result, XattrFlags};

use crate::lend::change_mode;
use crate::modes::correct_acl;
use crate::node::Node;
use crate::setattr::mode_of;
use crate::tree::{Tree, path_of};

const ACCESS_ACL: &CStr = c"system.posix_acl_access";

impl Tree {
    pub(crate) fn get_xattr(&self, node: &Arc<Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        let fd = self.descriptor(node)?;
        loop {
            let seen = self.nodes.modes.seen();
            let mut value = Vec::with_capacity(limit);
            getxattr(path_of(&fd), name, spare_capacity(&mut value))?;
            // An access ACL is a mode as well.
            let correct = |mode| correct_acl(&mut value, mode);
            if name != ACCESS_ACL || self.nodes.modes.put_right(node.id(), seen, correct) {
                return Ok(value);
            }
        }
    }

    pub(crate) fn list_xattr(&self, node: &Arc<Node>, limit: usize) -> Result<Vec<u8>> {
        let fd = self.descriptor(node)?;
        let mut names = Vec::with_capacity(limit);
        listxattr(path_of(&fd), spare_capacity(&mut names))?;
        Ok(names)
    }

    /// Sets an attribute. An access ACL takes the setgid bit with it when it is set by one outside the file's group: the source
    /// does that itself for a caller without CAP_FSETID (`posix_acl_update_mode` in fs/posix_acl.c), unless it has another group
    /// than the mount shows (shifted owners), by which the kernel has decided.
    pub(crate) fn set_xattr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let fd = self.descriptor(node)?;
        let _changing = if name == ACCESS_ACL { change_mode(&self.nodes.modes, node) } else { None };
        let set =
            || setxattr(path_of(&fd), name, value, OsFlags::from_bits_retain(flags.flags.cast_unsigned()));
        if !flags.kill_sgid {
            return Ok(set()?);
        }
        {
            let _guard = caller.act(As::Creator, true)?;
            set()?;
        }
        let mode = mode_of(&fd)?;
        if mode & libc::S_ISGID != 0 {
            let without = Mode::from_bits_retain(mode & 0o7777 & !libc::S_ISGID);
            chmodat(CWD, path_of(&fd), without, AtFlags::empty())?;
        }
        Ok(())
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node>, name: &CStr) -> Result<()> {
        let fd = self.descriptor(node)?;
        let _changing = if name == ACCESS_ACL { change_mode(&self.nodes.modes, node) } else { None };
        Ok(removexattr(path_of(&fd), name)?)
    }
}
