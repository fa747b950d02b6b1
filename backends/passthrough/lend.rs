//! Rights that the daemon, who owns a file and is not root, lends itself.
//!
//! Who may do what is the kernel's to decide, by the modes that are shown, before it asks; but then an unprivileged daemon still has to do it
//! with its own rights, which are less than the kernel's of an overlay would be:
//!
//! - who has opened a file goes on reading and writing it whatever becomes of its mode, or of those of the directories above it. Where
//!   the kernel has opened nothing (zero-message opens), or the file was copied up since, the daemon opens it now, by its mode of now;
//! - a file in a directory that cannot be written may be written, and so has to be copied up into that directory;
//! - an overlay keeps marks at directories that cannot be read.
//!
//! To a file of its own that it may not use (for want of `CAP_DAC_OVERRIDE`) it has no other way than to change the mode for a moment. That
//! lets nobody in but the owner, and nobody is shown it ([`crate::modes`]). It is done in upper layers alone: a lower one is never
//! written, and what is mirrored belongs to others, too.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, chmodat};
use rustix::process::{getegid, geteuid, getgroups};
use splicefs_core::{Errno, FileKind, Identified, Name, NodeId, Result};

use crate::Passthrough;
use crate::modes::{Changing, Modes, SPECIAL, meant};
use crate::node::{Node, Place};
use crate::stat;
use crate::tree::{DEEPEST, Tree, path_of};

/// What leads through a directory.
const SEARCHES: u32 = 0o100;
/// What a file, or a directory, is used with.
const USES_FILE: u32 = 0o600;
const USES_DIRECTORY: u32 = 0o700;
const SETGID: u32 = 0o2000;
/// Who may write beside the owner.
const WRITTEN_BY_OTHERS: u32 = 0o022;

thread_local! {
    /// The calling thread has lent itself rights.
    static LENDS: Cell<bool> = const { Cell::new(false) };
    /// The nodes whose modes are wider for it.
    static LENT: RefCell<Vec<NodeId>> = const { RefCell::new(Vec::new()) };
}

/// For one who is about to change the mode of `node`, which is to be what it is meant to be: not for the calling thread, which may
/// have lent itself the right to do so.
pub(crate) fn change_mode<'a>(modes: &'a Modes, node: &Node) -> Option<Changing<'a>> {
    let is_own = LENT.with_borrow(|lent| lent.contains(&node.id()));
    if is_own { None } else { modes.change(node.id()) }
}

/// As long as it lives, the calling thread has rights lent; then all modes are as before, but those that others have wider, too.
#[must_use]
struct Lent<'a> {
    /// What is wider, in the order in which it was made so.
    wider: Vec<(NodeId, Arc<OwnedFd>)>,
    modes: &'a Modes,
}

fn set_mode(fd: &OwnedFd, mode: u32) -> Result<()> {
    Ok(chmodat(CWD, path_of(fd), Mode::from_bits_retain(mode), AtFlags::empty())?)
}

fn is_own_group(gid: u32) -> Result<bool> {
    Ok(getegid().as_raw() == gid || getgroups()?.iter().any(|group| group.as_raw() == gid))
}

impl<'a> Lent<'a> {
    fn new(modes: &'a Modes) -> Self {
        LENDS.set(true);
        Self { wider: Vec::new(), modes }
    }

    /// Adds rights of the owner's to those that `fd`, a descriptor of the node, gives, if that is the daemon.
    fn add(&mut self, node: NodeId, fd: Arc<OwnedFd>, rights: u32) -> Result<()> {
        let changing = self.modes.switch(node);
        let st = stat::of_fd(&fd)?;
        let mode = u32::from(st.stx_mode) & 0o7777;
        let is_enough = mode & rights == rights;
        // What another owns is open to the daemon as it was, or not at all.
        if st.stx_uid != geteuid().as_raw() || (is_enough && changing.lent().is_none()) {
            return Ok(());
        }
        if is_enough {
            // As others have it; and it is to stay so when they are done.
            changing.lend(mode);
            self.wider.push((node, fd));
            LENT.with_borrow_mut(|lent| lent.push(node));
            return Ok(());
        }
        // chmod(2) takes the setgid bit from who is not in the group. And others who write a file just then clear both bits, which must not
        // come back.
        let is_directory = u32::from(st.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        let is_safe = is_directory || mode & SPECIAL == 0 || mode & WRITTEN_BY_OTHERS == 0;
        if !is_safe || (mode & SETGID != 0 && !is_own_group(st.stx_gid)?) {
            return Err(Errno::EACCES.into());
        }
        changing.lend(mode);
        if let Err(e) = set_mode(&fd, mode | rights) {
            changing.give_back();
            return Err(e);
        }
        self.wider.push((node, fd));
        LENT.with_borrow_mut(|lent| lent.push(node));
        Ok(())
    }
}

/// The mode that was `before`, without what a write has cleared meanwhile.
fn restore(fd: &OwnedFd, before: u32) -> Result<()> {
    let now = if before & SPECIAL == 0 { 0 } else { u32::from(stat::of_fd(fd)?.stx_mode) };
    set_mode(fd, meant(before, now))
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        for (node, fd) in self.wider.iter().rev() {
            let changing = self.modes.switch(*node);
            if let Some((before, 1)) = changing.lent()
                && let Err(e) = restore(fd, before)
            {
                log::error!(
                    "the mode of a file or directory of the upper layer stays too wide, {before:o} was refused: {e}"
                );
            }
            changing.give_back();
        }
        LENT.with_borrow_mut(Vec::clear);
        LENDS.set(false);
    }
}

impl Tree {
    /// Lends the calling thread the right to use `nodes`, whatever their modes and those of the directories on the way to them.
    ///
    /// # Errors
    /// `EACCES` where a mode cannot be changed for a moment without losing something.
    fn lend(&self, nodes: &[Arc<Node>]) -> Result<Lent<'_>> {
        let mut lent = Lent::new(&self.nodes.modes);
        for node in nodes {
            let directories = directories_to(node);
            // A file that is a lower layer's, too, may have been found there.
            if !self.has_root(directories.last().unwrap_or(node)) {
                return Err(Errno::EACCES.into());
            }
            if node.descriptor_at_hand().is_none() {
                for directory in directories.iter().rev() {
                    lent.add(directory.id(), self.descriptor(directory)?, SEARCHES)?;
                }
            }
            let is_directory = node.identity().kind() == FileKind::Directory;
            let rights = if is_directory { USES_DIRECTORY } else { USES_FILE };
            lent.add(node.id(), self.descriptor(node)?, rights)?;
        }
        Ok(lent)
    }
}

/// The directories that lead to `node` from the root, the nearest first.
fn directories_to(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let mut directories = Vec::new();
    let mut next = node.clone();
    while let Some(parent) = directory_of(&next)
        && directories.len() < DEEPEST
    {
        directories.push(parent.clone());
        next = parent;
    }
    directories
}

/// The directory that `node` is found in.
pub(crate) fn directory_of(node: &Node) -> Option<Arc<Node>> {
    match node.place() {
        Place::At(parent, _) => Some(parent),
        _ => None,
    }
}

impl Passthrough {
    /// Does `what`, which the kernel has allowed: if the daemon may not, then with the right to use `nodes`, where they are its own.
    pub(crate) fn allowed<T>(
        &self,
        nodes: impl FnOnce() -> Vec<Arc<Node>>,
        what: impl Fn() -> Result<T>,
    ) -> Result<T> {
        match what() {
            Err(e) if e.errno() == Errno::EACCES && self.lends && !LENDS.get() => {
                let _lent = match self.tree.lend(&nodes()) {
                    Ok(lent) => lent,
                    Err(why) => {
                        log::debug!("no rights are lent: {why}");
                        return Err(e);
                    }
                };
                // Even if nothing had to be lent: the mode may have been another when it was tried before.
                what()
            }
            done => done,
        }
    }

    /// The directory that `name` in `parent` is, if it is one that lives: to move one, it must be writable itself.
    pub(crate) fn moved_directory(&self, parent: &Arc<Node>, name: &Name) -> Option<Arc<Node>> {
        let dir = self.tree.descriptor(parent).ok()?;
        let (node, _) = self.tree.known(&dir, name)?;
        (node.identity().kind() == FileKind::Directory).then_some(node)
    }
}
