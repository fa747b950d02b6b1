//! Whiteouts: character devices 0/0, of which one is like the other, so that one file serves under all their names, as with
//! the kernel's overlayfs (`ovl_whiteout` in fs/overlayfs/dir.c). A further name is made faster than a file.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, linkat, makedev, mknodat};
use splicefs_core::{FileKind, Name, Result};

use crate::descriptors::Descriptors;
use crate::stat;
use crate::tree::{open_beneath, path_of};

/// The whiteout that further ones are names of. It lasts as long as it has a name.
///
/// Lock order: a leaf, held over no system call.
#[derive(Debug, Default)]
pub(crate) struct Whiteouts(Mutex<Option<Arc<OwnedFd>>>);

impl Whiteouts {
    /// Makes a whiteout, of the daemon's and without permissions.
    pub(crate) fn make(&self, descriptors: &Descriptors, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        let shared = self.0.lock().clone();
        if let Some(shared) = shared
            && linkat(CWD, path_of(&shared), dir, name.as_c_str(), AtFlags::SYMLINK_FOLLOW).is_ok()
        {
            return Ok(());
        }
        // There is none yet, or it has lost its last name or cannot have more of them (EMLINK), or not in this directory. Or
        // there is no making one here at all, for a reason that this tells as well.
        mknodat(dir, name.as_c_str(), FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?;
        let open = || open_beneath(dir, name, OFlags::PATH, Mode::empty());
        // Without a descriptor for it, it is a whiteout all the same.
        let made = descriptors.with_room(open).and_then(|fd| Ok((stat::of_fd(&fd)?, fd)));
        match made {
            Ok((st, fd)) if is_whiteout(&st) => *self.0.lock() = Some(Arc::new(fd)),
            Ok(_) => log::debug!("a whiteout was replaced as soon as it was made"),
            Err(e) => log::debug!("a whiteout cannot be shared: {e}"),
        }
        Ok(())
    }

    /// Lets go of the shared whiteout if it has no name any more.
    pub(crate) fn release(&self) {
        let Some(shared) = self.0.lock().clone() else { return };
        if stat::of_fd(&shared).is_ok_and(|st| st.stx_nlink > 0) {
            return;
        }
        // Another one may have been made meanwhile.
        let mut now = self.0.lock();
        if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &shared)) {
            *now = None;
        }
    }
}

fn is_whiteout(st: &Statx) -> bool {
    let kind = FileKind::from_mode(u32::from(st.stx_mode));
    kind == FileKind::CharDevice && st.stx_rdev_major == 0 && st.stx_rdev_minor == 0
}
