//! Changing attributes (setattr_copy and notify_change in fs/attr.c, `shmem_setattr`).

use std::sync::Arc;

use splicefs_core::{Caller, FileKind, Result, SetAttr, SetTime, Timestamp};

use crate::file;
use crate::life::InUse;
use crate::node::{Meta, Node};
use crate::store::Store;
use crate::time::now;
use crate::xattr;

fn moment(time: SetTime) -> Timestamp {
    match time {
        SetTime::Now => now(),
        SetTime::At(time) => time,
    }
}

/// Applies `change`. Ownership first, since it clears the setuid and setgid bits that a new mode may set; times last,
/// since everything else sets them. `explicit`: see [`file::set_size`].
pub(crate) fn set_attr(node: &Arc<Node>, caller: &Caller, change: &SetAttr, explicit: bool) -> Result<()> {
    // The one step that can fail comes first, so that a change is made as a whole or not at all.
    if let Some(size) = change.size {
        file::set_size(node, caller, size, explicit)?;
    }
    // A change of owner gives room back, of a file without a name too: only what is taken can be given.
    let _in_use = InUse::new(node.clone());
    let mut meta = node.meta();
    // A change of nothing is chown(2) with -1 twice, which clears setuid and setgid bits like any other.
    if change.uid.is_some() || change.gid.is_some() || *change == SetAttr::default() {
        set_owner(&mut meta, caller, change, node.store());
    }
    if let Some(mode) = change.mode {
        meta.mode = meta.mode & libc::S_IFMT | mode & 0o7777;
        if let Some(acl) = meta.attributes.as_mut().and_then(|attributes| attributes.access.as_mut()) {
            acl.chmod(mode);
        }
    }
    if let Some(atime) = change.atime {
        meta.atime = moment(atime);
    }
    if let Some(mtime) = change.mtime {
        meta.mtime = moment(mtime);
    }
    if change.size.is_none() || *change != (SetAttr { size: change.size, ..SetAttr::default() }) {
        meta.changed();
    }
    Ok(())
}

/// chown(2). On anything but a directory the setuid bit goes whoever asks, and so do file capabilities (`chown_common` in
/// fs/open.c).
fn set_owner(meta: &mut Meta, caller: &Caller, change: &SetAttr, store: &Store) {
    if FileKind::from_mode(meta.mode) != FileKind::Directory {
        meta.drop_setid(caller);
        xattr::remove_capabilities(meta, store);
    }
    meta.uid = change.uid.unwrap_or(meta.uid);
    meta.gid = change.gid.unwrap_or(meta.gid);
}
