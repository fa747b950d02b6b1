//! Open files: reading, writing and what else is done with bytes.

use std::sync::Arc;

use splicefs_core::{Caller, Errno, OpenFlags, ReadPlan, Result, SeekTo, Span, WriteMode};

use crate::life::InUse;
use crate::node::Node;

/// Data of a copy passes through a buffer of this many bytes.
const COPY_BUFFER: usize = 256 << 10;
/// The modes of fallocate(2) that the kernel's tmpfs has.
const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned();

/// An open file.
#[derive(Debug)]
pub struct File {
    node: InUse,
    /// Opened with `O_NOATIME`.
    noatime: bool,
}

impl File {
    pub(crate) fn new(node: Arc<Node>, flags: OpenFlags) -> Self {
        Self { node: InUse::new(node), noatime: flags.has(libc::O_NOATIME) }
    }

    /// Type and permission bits.
    pub(crate) fn mode(&self) -> u32 {
        self.node.meta().mode
    }

    /// Where the bytes of `span` are. They stay there until `execute` returns.
    pub(crate) fn plan_read(&self, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()> {
        let content = self.node.content()?.read();
        if !self.noatime {
            self.node.accessed();
        }
        execute(&content.plan(span));
        Ok(())
    }

    /// Writes what there is room for.
    pub(crate) fn write(&self, caller: &Caller, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
        let store = self.node.store();
        let mut content = self.node.content()?.write();
        let start = if mode.append { content.size() } else { offset };
        // Before the bytes, as the kernel has it (`__generic_file_write_iter`): a write that fails has begun.
        self.modified(caller);
        let mut done = 0;
        // What is written short for want of room is tried again where files without a name may be about to go.
        let result = self.node.shared().orphans.patiently(|| {
            done += content.write(store, start + done as u64, &data[done..])?;
            if done < data.len() { Err(Errno::ENOSPC.into()) } else { Ok(()) }
        });
        match result {
            Err(e) if done == 0 => Err(e),
            _ => Ok(done),
        }
    }

    fn modified(&self, caller: &Caller) {
        let mut meta = self.node.meta();
        meta.remove_privileges(caller, self.node.store());
        meta.modified();
    }

    /// As fallocate(2), with the modes that the kernel's tmpfs has (`shmem_fallocate`).
    pub(crate) fn fallocate(&self, caller: &Caller, mode: u32, offset: u64, len: u64) -> Result<()> {
        let store = self.node.store();
        match mode {
            0 | KEEP_SIZE => {
                let keep_size = mode == KEEP_SIZE;
                self.node.shared().orphans.patiently(|| {
                    let mut content = self.node.content()?.write();
                    content.allocate(store, offset, len, keep_size)
                })?;
            }
            _ if mode == PUNCH_HOLE | KEEP_SIZE => {
                self.node.content()?.write().punch(store, offset, len)?;
                store.heap.trim_if_due();
            }
            _ => return Err(Errno::EOPNOTSUPP.into()),
        }
        self.modified(caller);
        Ok(())
    }

    /// The next data or hole.
    pub(crate) fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        self.node.content()?.read().seek(offset, to)
    }

    /// Copies up to `len` bytes from `offset` to `target_offset` of `target`; holes stay holes.
    ///
    /// One content is locked at a time, so that two copies can cross each other.
    pub(crate) fn copy_range(
        &self,
        caller: &Caller,
        offset: u64,
        target: &Self,
        target_offset: u64,
        len: usize,
    ) -> Result<usize> {
        let end = offset.saturating_add(len as u64).min(self.node.content()?.read().size());
        let mut buffer = Vec::new();
        let mut at = offset;
        target.modified(caller);
        while at < end {
            let goal = target_offset + (at - offset);
            match self.copy_piece(at, end, target, goal, &mut buffer) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if at == offset => return Err(e),
                // What has been copied has been copied.
                Err(_) => break,
            }
        }
        if !self.noatime {
            self.node.accessed();
        }
        Ok(usize::try_from(at.saturating_sub(offset)).unwrap_or(len))
    }

    /// Copies one hole, or one buffer of data.
    fn copy_piece(&self, from: u64, end: u64, target: &Self, goal: u64, buffer: &mut Vec<u8>) -> Result<u64> {
        let source = self.node.content()?.read();
        let end = end.min(source.size());
        let data = source.next_data(from, end);
        let hole_end = data.as_ref().map_or(end, |data| data.start);
        if hole_end > from {
            drop(source);
            target.copy_hole(goal, hole_end - from)?;
            return Ok(hole_end - from);
        }
        let Some(data) = data else { return Ok(0) };
        let len = usize::try_from(data.end - from).unwrap_or(usize::MAX).min(COPY_BUFFER);
        buffer.resize(len, 0);
        let got = source.read(from, buffer)?;
        drop(source);
        let store = target.node.store();
        let put = || target.node.content()?.write().write(store, goal, &buffer[..got]);
        Ok(target.node.shared().orphans.patiently(put)? as u64)
    }

    /// Makes a hole, and the file longer where the hole reaches beyond its end.
    fn copy_hole(&self, offset: u64, len: u64) -> Result<()> {
        let store = self.node.store();
        let mut content = self.node.content()?.write();
        content.punch(store, offset, len)?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if content.size() < end { content.truncate(store, end) } else { Ok(()) }
    }
}

/// Changes the length of a file. `explicit` is ftruncate(2) and `O_TRUNC`, which set the times in any case; truncate(2)
/// sets them where the length changes or there are pages that could be cut off (`do_truncate` in fs/open.c,
/// `shmem_setattr` and `shmem_truncate_range` in mm/shmem.c).
pub(crate) fn set_size(node: &Arc<Node>, caller: &Caller, size: u64, explicit: bool) -> Result<()> {
    let in_use = InUse::new(node.clone());
    let changed = {
        let mut content = node.content()?.write();
        let (before, pages) = (content.size(), content.pages());
        content.truncate(node.store(), size)?;
        before != size || pages > 0
    };
    let mut meta = node.meta();
    let mode = meta.mode;
    meta.remove_privileges(caller, node.store());
    if changed || explicit {
        meta.modified();
    } else if meta.mode != mode && meta.attributes.as_ref().is_some_and(|a| a.access.is_some()) {
        // The ACL is set anew with the mode, and that is a change of the node (`posix_acl_chmod`).
        meta.changed();
    }
    drop(meta);
    drop(in_use);
    node.store().heap.trim_if_due();
    Ok(())
}
