//! Open directories.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, fdatasync, fsync, seek};
use splicefs_core::{Cookie, DirEntry, DirSink, Errno, FileKind, Result};

use crate::node::Node;
use crate::tree::Tree;

/// The least and the most that one getdents64(2) is given, in bytes.
const BUFFER: std::ops::RangeInclusive<usize> = 4096..=64 * 1024;

/// An open directory stream: the source's own, so that its cookies are as stable as the source's are.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    dev: u64,
    /// A name that is not shown.
    hidden: Option<CString>,
    /// Where the descriptor stands. Held over getdents64(2): a stream is read by one at a time.
    position: Mutex<Cookie>,
}

impl Tree {
    pub(crate) fn open_dir(&self, node: &Arc<Node>, noatime: bool) -> Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = match self.open_node(node, if noatime { flags | OFlags::NOATIME } else { flags }) {
            // O_NOATIME is the owner's alone to ask for.
            Err(e) if noatime && e.errno() == Errno::EPERM => self.open_node(node, flags),
            other => other,
        }?;
        let hidden = self.own_process_in(node, &fd)?;
        Ok(Dir { fd, dev: node.identity().dev(), hidden, position: Mutex::new(Cookie::START) })
    }

    pub(crate) fn read_dir(
        &self,
        dir: &Dir,
        from: Cookie,
        hint: usize,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        let mut position = dir.position.lock();
        // The beginning is sought each time: rewinddir(3) must show what was added since.
        if *position != from || from == Cookie::START {
            seek(&dir.fd, SeekFrom::Start(from.0))?;
        }
        let mut buffer = vec![MaybeUninit::uninit(); hint.clamp(*BUFFER.start(), *BUFFER.end())];
        let mut entries = RawDir::new(&dir.fd, &mut buffer);
        let mut last = from;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    *position = UNKNOWN;
                    // What has been handed on counts; the next call begins where this one failed.
                    return if last == from { Err(e.into()) } else { Ok(()) };
                }
            };
            let next = Cookie(entry.next_entry_cookie());
            if dir.hidden.as_deref() == Some(entry.file_name()) {
                last = next;
                continue;
            }
            let taken = sink(DirEntry {
                name: entry.file_name().to_bytes(),
                ino: self.shown_ino(entry.ino(), dir.dev),
                kind: self.shown_kind(kind(entry.file_type())),
                next,
            });
            if taken.is_break() {
                // The descriptor has read on; the next call seeks back to where the sink stopped.
                *position = UNKNOWN;
                return Ok(());
            }
            last = next;
        }
        *position = last;
        Ok(())
    }

    fn shown_kind(&self, kind: FileKind) -> FileKind {
        if self.block_devices_as_files && kind == FileKind::BlockDevice { FileKind::Regular } else { kind }
    }
}

/// No cookie of a directory: the next read seeks.
const UNKNOWN: Cookie = Cookie(u64::MAX);

fn kind(file_type: FileType) -> FileKind {
    match file_type {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => FileKind::Unknown,
    }
}

impl Dir {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn fsync(&self, data_only: bool) -> Result<()> {
        if data_only {
            fdatasync(&self.fd)?;
        } else {
            fsync(&self.fd)?;
        }
        Ok(())
    }
}
