//! Small files of lower layers come with the reply to the open: their bytes go into the kernel's page cache before it
//! (`FUSE_NOTIFY_STORE`), and nobody has to ask for them.
//!
//! `fuse_notify_store` (fs/fuse/dev.c) overwrites whatever the page cache holds, and waits for each folio's lock. So that it neither
//! undoes a write nor waits for a read that only one of our threads could answer, it is done
//!
//! - of files alone that nobody has written and that the next who wants to must open first: a lower layer's;
//! - for the first to open a file, before the reply: nobody has it open who could read it;
//! - while opens of that file wait ([`super::iomode::IoMode::alone`]) and its length is kept: who writes or truncates
//!   it comes after, and by then the file is in the upper layer, and no longer to be had here.
//!
//! It never waits for a disk, either: what is not in the page cache of the source is asked for when it is read.

use splicefs_core::{Backend, Caller, Identified, OpenFlags, Result, Span};

use super::{Handle, Vfs, Way};
use crate::reply::Engine;

impl<B: Backend> Vfs<B> {
    /// Gives the kernel the contents of a file that was just opened, if they are better not asked for. What is not given is read.
    pub(super) fn prefetch(&self, caller: &Caller, handle: &Handle, flags: OpenFlags, engine: &mut Engine) {
        let read_from_cache = handle.way == Way::Cached && handle.keep && !flags.has(libc::O_DIRECT);
        if self.caching.prefetch == 0 || !read_from_cache || flags.writes() {
            return;
        }
        if let Err(e) = self.give_contents(caller, handle, engine) {
            log::debug!("a file was not given to the kernel with its open: {e}");
        }
    }

    fn give_contents(&self, caller: &Caller, handle: &Handle, engine: &mut Engine) -> Result<()> {
        let open = self.files.get(handle.id)?;
        // Before any lock, for the many that have been; what it says counts under the locks.
        if !self.backend.is_worth_prefetching(&open.file) {
            return Ok(());
        }
        // First the length: whoever truncates waits with that in hand for those who open.
        let _length = open.used.length.keep(caller.pid, || Ok(false))?;
        let Some(_alone) = open.used.io_mode.alone() else { return Ok(()) };
        if !self.backend.is_worth_prefetching(&open.file) {
            return Ok(());
        }
        self.backend.prefetched(&open.file);
        let most = self.caching.prefetch;
        let span = Span { offset: 0, len: most.saturating_add(1) };
        let mut given = Ok(());
        self.backend.plan_read(&open.file, span, &mut |plan| {
            if plan.len() <= most {
                given = engine.prefetch(plan, |bytes| self.kernel.contents(open.node.id(), bytes));
            }
        })?;
        Ok(given?)
    }
}
