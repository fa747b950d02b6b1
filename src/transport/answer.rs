//! From the project's types to the protocol's.

use std::time::Duration;

use splicefs_core::{Attr, HandleId, NodeId, StatFs};
use zerocopy::IntoBytes;

use super::wire::{AttrOut, AttrOutBody, EntryOut, OpenOut, StatfsOut, flag};
use crate::vfs::{Found, Handle, Shown, Way};

/// What a reply hands to the kernel, and what must be taken back when the kernel no longer wants it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Given {
    /// A reference to a node.
    pub(crate) node: Option<NodeId>,
    /// An open file.
    pub(crate) file: Option<HandleId>,
    /// An open directory.
    pub(crate) dir: Option<HandleId>,
}

impl Given {
    /// Nothing to take back.
    pub(crate) const NOTHING: Self = Self { node: None, file: None, dir: None };
}

/// How a request is answered.
pub(crate) enum Reply {
    /// Not at all: the protocol has no reply for it.
    None,
    /// It has been.
    Sent,
    /// With no payload.
    Empty,
    /// With the payload that has been put together, which hands these over.
    Body(Given),
}

/// A payload that hands nothing over.
pub(crate) const BODY: Reply = Reply::Body(Given::NOTHING);

fn split(lifetime: Duration) -> (u64, u32) {
    (lifetime.as_secs(), lifetime.subsec_nanos())
}

pub(crate) fn attr_body(attr: &Attr) -> AttrOutBody {
    AttrOutBody {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.sec,
        mtime: attr.mtime.sec,
        ctime: attr.ctime.sec,
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// An entry: the node, its attributes, and how long both may be trusted. The generation is always 0, since ids are
/// never used twice.
pub(crate) fn entry(found: &Found) -> EntryOut {
    let (entry_valid, entry_valid_nsec) = split(found.lifetime);
    let (attr_valid, attr_valid_nsec) = split(found.shown.lifetime);
    EntryOut {
        nodeid: found.id.0,
        generation: 0,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr_body(&found.shown.attr),
    }
}

/// A name that leads nowhere, for as long as the kernel may keep that (node id 0 in fs/fuse/dir.c).
pub(crate) fn no_entry(lifetime: Duration) -> EntryOut {
    let (entry_valid, entry_valid_nsec) = split(lifetime);
    EntryOut { entry_valid, entry_valid_nsec, ..EntryOut::default() }
}

pub(crate) fn attr(shown: &Shown) -> AttrOut {
    let (attr_valid, attr_valid_nsec) = split(shown.lifetime);
    AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr_body(&shown.attr) }
}

/// An open file. No FLUSH is sent for one that has nothing to tell when it is closed.
pub(crate) fn open(handle: &Handle) -> OpenOut {
    let mut backing_id = 0;
    let mut open_flags = match handle.way {
        Way::Cached if handle.direct => flag::FOPEN_DIRECT_IO,
        Way::Cached if handle.keep => flag::FOPEN_KEEP_CACHE,
        Way::Cached => 0,
        Way::Direct => flag::FOPEN_DIRECT_IO,
        Way::Backed(id) => {
            // Such an open drops what the page cache holds (fuse_finish_open in fs/fuse/file.c), so that it is not stale later.
            backing_id = id.0;
            flag::FOPEN_PASSTHROUGH
        }
    };
    if handle.stream {
        open_flags |= flag::FOPEN_STREAM | flag::FOPEN_NONSEEKABLE;
    }
    if handle.closes_silently {
        open_flags |= flag::FOPEN_NOFLUSH;
    }
    OpenOut { fh: handle.id.0, open_flags, backing_id }
}

/// An open directory, whose entries the kernel may keep if they are `kept`.
pub(crate) fn opendir(handle: HandleId, kept: bool) -> OpenOut {
    let open_flags = if kept { flag::FOPEN_KEEP_CACHE | flag::FOPEN_CACHE_DIR } else { 0 };
    OpenOut { fh: handle.0, open_flags, backing_id: 0 }
}

pub(crate) fn statfs(st: &StatFs) -> StatfsOut {
    StatfsOut {
        blocks: st.blocks,
        bfree: st.bfree,
        bavail: st.bavail,
        files: st.files,
        ffree: st.ffree,
        bsize: st.bsize,
        namelen: st.namelen,
        frsize: st.frsize,
        padding: 0,
        spare: [0; 6],
    }
}

/// Replaces what `out` holds by `body`.
pub(crate) fn put<T: IntoBytes + zerocopy::Immutable>(out: &mut Vec<u8>, body: &T) {
    out.clear();
    out.extend_from_slice(body.as_bytes());
}
