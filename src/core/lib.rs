//! What every splicefs backend is built from.
//!
//! A [`Backend`] says what a file system holds and, for a read, *where the bytes are* ([`ReadPlan`]); it never moves
//! them. The tables, identifiers and system-call helpers that backends and the serving code share live here, so that
//! a backend depends on this crate alone and knows nothing of FUSE.

mod attr;
mod backend;
mod changes;
pub mod device;
mod error;
mod heap;
mod id;
mod layer;
mod living;
mod name;
pub mod ownership;
mod plan;
pub mod sys;
mod table;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use attr::{Attr, FileKind, Protection, SetAttr, SetTime, StatFs, Timestamp};
pub use backend::{
    Backend, CreateFlags, DirEntry, DirSink, Entry, Ioctl, Make, OpenFlags, Opened, Ownership, RenameFlags,
    SeekTo, WriteMode, XattrFlags,
};
pub use changes::{Change, Listener};
pub use error::{Errno, Error, Fault, Result};
pub use heap::HeapUse;
pub use id::{Cookie, HandleId, NO_ID, NodeId};
pub use layer::{FileHandle, Layer};
pub use living::Living;
pub use name::Name;
pub use plan::{CopyReason, FileExtent, ReadPlan, Segment, Span, Via};
pub use sys::creds::Caller;
pub use table::{HandleTable, Identified, NodeTable};
