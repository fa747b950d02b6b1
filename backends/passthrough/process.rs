//! The daemon's own process in a procfs that is mirrored.
//!
//! A process may always look at itself (`same_thread_group` in `ptrace_may_access`, kernel/ptrace.c), whoever it acts for. What it would show
//! of itself to others is more than they may see, and so it shows them nothing.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::readlinkat;
use splicefs_core::sys::creds;
use splicefs_core::{Errno, Name, Result};

use crate::fsclass::FsClass;
use crate::node::Node;
use crate::stat;
use crate::tree::Tree;

/// The inode number of the root of procfs (`PROC_ROOT_INO` in include/linux/proc_fs.h).
const PROC_ROOT: u64 = 1;

impl Tree {
    /// Whether what is seen of the node depends on who looks.
    pub(crate) fn is_pseudo(&self, node: &Arc<Node>) -> bool {
        self.class(node).is_ok_and(FsClass::is_pseudo)
    }

    fn is_proc_root(&self, node: &Arc<Node>) -> bool {
        node.identity().ino() == PROC_ROOT && self.class(node).is_ok_and(|class| class == FsClass::Proc)
    }

    /// # Errors
    /// `ENOENT` if `name` is that of a thread of the daemon, and the calling thread acts for another user.
    pub(crate) fn refuse_own_process(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        let is_number = name.as_bytes().iter().all(u8::is_ascii_digit);
        if !is_number || !self.is_proc_root(parent) || !creds::acts_for_another()? {
            return Ok(());
        }
        let mut task = b"self/task/".to_vec();
        task.extend_from_slice(name.as_bytes());
        let task = CString::new(task).map_err(|_| Errno::EINVAL)?;
        let dir = self.descriptor(parent)?;
        match stat::of_name(dir.as_fd(), &task) {
            Ok(_) => Err(Errno::ENOENT.into()),
            Err(_) => Ok(()),
        }
    }

    /// The name that a listing of `node`, opened as `fd`, is to leave out.
    pub(crate) fn own_process_in(&self, node: &Arc<Node>, fd: &OwnedFd) -> Result<Option<CString>> {
        if !self.is_proc_root(node) || !creds::acts_for_another()? {
            return Ok(None);
        }
        // Where the daemon has no number there, it is not listed.
        Ok(readlinkat(fd, c"self", Vec::new()).ok())
    }
}
