//! Versions of lower files: a copy is made of one, however the file is changed meanwhile.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use splicefs_core::{Attr, Backend, Errno, Error, FileKind, Layer, Result, Timestamp};

use crate::Overlay;
use crate::copyup::VERSIONS;
use crate::node::Node;
use crate::work::Changes;

/// Two changes within one tick of the clock that a file system takes its times from have the same time: 10 ms at most (`CONFIG_HZ`), but
/// for the coarsest, which a copy cannot wait for.
const TICK: Duration = Duration::from_millis(20);

/// What a lower file was when its copy began.
pub(crate) struct Version {
    /// Of the topmost counterpart.
    pub(crate) attr: Attr,
    /// Of the one that holds the data.
    data: Attr,
}

/// What tells a version from the next. A directory's times say that its entries changed, which are not copied.
fn stamp(attr: &Attr) -> (u64, Timestamp, Timestamp, u32, u32, u32) {
    let none = Timestamp::default();
    let (size, mtime, ctime) = match attr.kind() {
        FileKind::Regular => (attr.size, attr.mtime, attr.ctime),
        _ => (0, none, none),
    };
    (size, mtime, ctime, attr.mode, attr.uid, attr.gid)
}

/// How long ago that was; `None` for a time that is to come.
fn age(time: Timestamp) -> Option<Duration> {
    let since = Duration::new(u64::try_from(time.sec).ok()?, time.nsec);
    SystemTime::now().duration_since(UNIX_EPOCH.checked_add(since)?).ok()
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    fn look_at_version(&self, node: &Node<L, U>) -> Result<Version> {
        let top = Self::topmost(node)?;
        let attr = self.lowers[top.layer()].layer.getattr(&top.node, None)?;
        let data = match node.lowers() {
            [_, .., data] if node.kind == FileKind::Regular => {
                self.lowers[data.layer()].layer.getattr(&data.node, None)?
            }
            _ => attr,
        };
        Ok(Version { attr, data })
    }

    /// The version of now. If it is so young that the next one might have the same time, it is waited for that.
    pub(crate) fn lower_version(&self, node: &Node<L, U>) -> Result<Version> {
        let version = self.look_at_version(node)?;
        let is_file = node.kind == FileKind::Regular && version.data.size > 0;
        match age(version.data.ctime) {
            Some(age) if is_file && age < TICK => {
                thread::sleep(TICK - age);
                self.look_at_version(node)
            }
            _ => Ok(version),
        }
    }

    /// Whether the lower file is of that version still.
    pub(crate) fn is_current(&self, node: &Node<L, U>, version: &Version) -> Result<bool> {
        let now = self.look_at_version(node)?;
        Ok(stamp(&now.attr) == stamp(&version.attr) && stamp(&now.data) == stamp(&version.data))
    }

    /// Brings the data of one version to a file of `size` bytes that is a hole so far, and that nobody reads.
    ///
    /// # Errors
    /// `EBUSY` if the lower file is being changed all the time; those of copying, and of making holes.
    pub(crate) fn copy_data_of_one_version(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        file: &U::File,
        size: u64,
    ) -> Result<()> {
        const HOLE: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
        for _ in 0..VERSIONS {
            let version = self.lower_version(node)?;
            let copied = self.copy_data(upper, node, file, size, size);
            if self.is_current(node, &version)? {
                return copied;
            }
            // The size is the file's own, and has to stay.
            Backend::fallocate(&upper.layer, &splicefs_core::Caller::DAEMON, file, HOLE, 0, size)?;
        }
        Err(Error::fault(Errno::EBUSY, "a lower file was changed again and again while it was copied up"))
    }
}
