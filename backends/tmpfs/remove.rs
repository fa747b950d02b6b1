//! Taking names away.

use std::sync::Arc;

use splicefs_core::{Errno, FileKind, Name, Result};

use crate::Tmpfs;
use crate::dir::Directory;
use crate::node::Node;

impl Tmpfs {
    /// Removes a name of anything but a directory.
    pub(crate) fn remove_file(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        // Dropped after the lock: giving the bytes of a large file back takes time.
        let _gone = {
            let mut directory = parent.directory()?.write();
            if directory.get(name)?.kind() == FileKind::Directory {
                return Err(Errno::EISDIR.into());
            }
            let gone = directory.remove(name);
            if let Some(node) = &gone {
                node.lose_name();
                parent.meta().modified();
            }
            gone
        };
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        let _gone = {
            let mut directory = parent.directory()?.write();
            let node = directory.get(name)?;
            bury(&mut node.directory()?.write())?;
            let gone = directory.remove(name);
            node.lose_directory();
            let mut of_parent = parent.meta();
            of_parent.nlink -= 1;
            of_parent.modified();
            gone
        };
        Ok(())
    }
}

/// Closes an empty directory for ever.
///
/// # Errors
/// `ENOTEMPTY` where it is not empty.
pub(crate) fn bury(directory: &mut Directory) -> Result<()> {
    if !directory.is_empty() {
        return Err(Errno::ENOTEMPTY.into());
    }
    directory.die();
    Ok(())
}
