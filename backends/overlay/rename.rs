//! Renaming, by one rename(2) in the upper layer (fs/overlayfs/dir.c, `ovl_rename`).
//!
//! A directory with a lower part takes a redirect along, by which that part is found from its new name; one without is
//! made opaque, so that it does not merge with what a lower layer has under that name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::{Caller, Entry, Errno, FileKind, Layer, Make, Name, RenameFlags, Result};

use crate::Overlay;
use crate::config::Redirect;
use crate::copyup::Need;
use crate::create::check_name;
use crate::marks::{Mark, Way, entry_of, is_whiteout_device};
use crate::node::{Node, Place};
use crate::remove::lock;
use crate::work::Changes;

/// A longer redirect is refused, as the kernel does (`redirect_max`).
const REDIRECT_MAX: usize = 256;
/// No tree is this deep.
const DEEPEST: usize = 4096;

/// A name in a directory.
type Spot<'a, L, U> = (&'a Arc<Node<L, U>>, &'a Name);

impl<L: Layer, U: Layer> Overlay<L, U> {
    pub(crate) fn rename_node(
        &self,
        from: Spot<'_, L, U>,
        to: Spot<'_, L, U>,
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.0 & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(Errno::EINVAL.into());
        }
        check_name(from.1)?;
        check_name(to.1)?;
        let exchange = flags.0 & libc::RENAME_EXCHANGE != 0;
        let moved = self.child(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        let there = self.child(to.0, to.1)?;
        match &there {
            Some(_) if flags.0 & libc::RENAME_NOREPLACE != 0 => return Err(Errno::EEXIST.into()),
            Some(there) if Arc::ptr_eq(there, &moved) => return Ok(()),
            _ => {}
        }
        self.check_removing(from.0, &moved)?;
        match &there {
            Some(there) => self.check_removing(to.0, there)?,
            None => self.check_adding(to.0)?,
        }
        match &there {
            Some(there) if !exchange && there.is_dir() && !moved.is_dir() => return Err(Errno::EISDIR.into()),
            Some(there) if !exchange && !there.is_dir() && moved.is_dir() => {
                return Err(Errno::ENOTDIR.into());
            }
            None if exchange => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        let back = there.as_ref().filter(|_| exchange);
        for node in std::iter::once(&moved).chain(back) {
            self.check_movable(node)?;
        }
        let victim = there.as_ref().filter(|_| !exchange);
        // Kept until the end, so that the second look, under the locks, need not merge the names again.
        let names = victim.filter(|victim| victim.is_dir()).map(|victim| self.listing(victim)).transpose()?;
        if names.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY.into());
        }
        for (node, (parent, name)) in std::iter::once((&moved, from)).chain(back.map(|back| (back, to))) {
            if node.upper().is_none() && !node.is_at(parent, name) {
                // Of several names, this is the one to be copied up.
                node.set_place(Place::At(parent.clone(), name.clone()));
            }
            if node.is_dir() && self.config.redirect == Redirect::Copy {
                self.copy_up_tree(node)?;
            } else {
                self.copy_up(node, Need::Attributes)?;
            }
        }
        if let Some(victim) = victim {
            self.before_removal(victim)?;
        }
        self.link_up(&moved, from.0, from.1)?;
        if let Some(back) = back {
            self.link_up(back, to.0, to.1)?;
        }
        self.upper_dir(from.0)?;
        self.upper_dir(to.0)?;
        let locks = match victim {
            Some(victim) if victim.is_dir() => lock(&[from.0, to.0, victim]),
            _ => lock(&[from.0, to.0]),
        };
        let replaced = match back {
            Some(back) => self.exchange(from, to, &moved, back).map(|()| false)?,
            None => self.move_over(from, to, &moved, victim)?,
        };
        from.0.names_changed();
        to.0.names_changed();
        moved.set_place(Place::At(to.0.clone(), to.1.clone()));
        match &there {
            Some(back) if exchange => {
                back.set_place(Place::At(from.0.clone(), from.1.clone()));
            }
            Some(victim) => self.removed(to.0, to.1, victim, replaced),
            None => {}
        }
        drop(locks);
        Ok(())
    }

    /// A directory with a lower part moves by a redirect, or as a copy of all it holds, or not at all.
    fn check_movable(&self, node: &Node<L, U>) -> Result<()> {
        if node.is_dir() && !node.lowers().is_empty() {
            return match self.config.redirect {
                Redirect::On | Redirect::Copy => Ok(()),
                Redirect::Follow | Redirect::NoFollow => Err(Errno::EXDEV.into()),
            };
        }
        Ok(())
    }

    fn exchange(
        &self,
        from: Spot<'_, L, U>,
        to: Spot<'_, L, U>,
        moved: &Arc<Node<L, U>>,
        back: &Arc<Node<L, U>>,
    ) -> Result<()> {
        let upper = self.changes()?;
        for node in [moved, back] {
            node.alone.store(false, Ordering::Release);
        }
        self.mark_moved(upper, moved, from, to.0)?;
        self.mark_moved(upper, back, to, from.0)?;
        let (old, new) = (self.upper_dir(from.0)?, self.upper_dir(to.0)?);
        upper.rename((&old, from.1), (&new, to.1), libc::RENAME_EXCHANGE)
    }

    /// Whether the upper layer had something under the name that is replaced.
    fn move_over(
        &self,
        from: Spot<'_, L, U>,
        to: Spot<'_, L, U>,
        moved: &Arc<Node<L, U>>,
        victim: Option<&Arc<Node<L, U>>>,
    ) -> Result<bool> {
        let upper = self.changes()?;
        let (old, new) = (self.upper_dir(from.0)?, self.upper_dir(to.0)?);
        if let Some(victim) = victim
            && victim.is_dir()
            && !self.listing_locked(victim)?.is_empty()
        {
            return Err(Errno::ENOTEMPTY.into());
        }
        let alone = moved.alone.load(Ordering::Acquire);
        let below = !alone && self.is_below(from.0, from.1)?;
        self.mark_moved(upper, moved, from, to.0)?;
        let there = entry_of(&upper.layer, &new, to.1)?;
        if let (Some(there), Some(victim)) = (&there, victim)
            && victim.is_dir()
        {
            self.empty(upper, (&new, to.1), there)?;
        }
        let (old_hides, new_hides) = match (&from.0.dir, &to.0.dir) {
            (Some(old), Some(new)) => (old.hides(), new.hides()),
            _ => return Err(Errno::ENOTDIR.into()),
        };
        let replaces = match (&there, victim) {
            (Some(there), Some(_)) => !is_whiteout_device(&there.attr),
            _ => false,
        };
        if there.is_some() && !replaces && moved.is_dir() {
            // A directory replaces no device; the two change places.
            upper.rename((&old, from.1), (&new, to.1), libc::RENAME_EXCHANGE)?;
            if !below {
                upper.layer.unlink(&old, from.1)?;
            }
        } else {
            let mut whiteout = 0;
            if below && upper.devices() {
                whiteout = libc::RENAME_WHITEOUT;
            } else if below {
                upper.hide_by_dot(&old, old_hides, from.1)?;
            }
            upper.rename((&old, from.1), (&new, to.1), whiteout)?;
        }
        upper.unhide_dot(&new, new_hides, to.1)?;
        if there.is_some() {
            upper.layer.release_whiteout();
        }
        let nothing_there = there.is_none() && victim.is_none() && !new_hides.has_dots();
        moved.alone.store(alone && nothing_there, Ordering::Release);
        Ok(replaces)
    }

    /// Says in a node that is about to leave `from` for the directory `to` what its lower part is, or that it has none.
    fn mark_moved(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        from: Spot<'_, L, U>,
        to: &Arc<Node<L, U>>,
    ) -> Result<()> {
        let Some(counterpart) = node.upper() else { return Err(Errno::ESTALE.into()) };
        let metacopy = node.kind == FileKind::Regular && node.metacopy.load(Ordering::Acquire);
        if (node.is_dir() && !node.lowers().is_empty()) || metacopy {
            self.make_impure(to)?;
            return self.set_redirect(upper, node, counterpart, Arc::ptr_eq(from.0, to) && !metacopy);
        }
        if node.is_dir() {
            if !to.lowers().is_empty() {
                self.marks.set_opaque(&upper.layer, counterpart)?;
            }
            return Ok(());
        }
        if self.comes_from_below(upper, node, counterpart)? {
            self.make_impure(to)?;
        }
        Ok(())
    }

    /// Whether a node has an inode number other than its upper counterpart's.
    pub(crate) fn comes_from_below(
        &self,
        upper: &Changes<U>,
        node: &Node<L, U>,
        counterpart: &Arc<U::Node>,
    ) -> Result<bool> {
        Ok(!node.lowers().is_empty() || self.marks.has(&upper.layer, counterpart, Mark::Origin)?)
    }

    pub(crate) fn set_redirect(
        &self,
        upper: &Changes<U>,
        node: &Arc<Node<L, U>>,
        counterpart: &Arc<U::Node>,
        same_dir: bool,
    ) -> Result<()> {
        let known = self.marks.redirect(&upper.layer, counterpart)?;
        if matches!(known, Some(Way::FromRoot(_))) || (known.is_some() && same_dir) {
            // It still leads there.
            return Ok(());
        }
        let way = match node.place() {
            Place::At(_, name) if same_dir => Way::Beside(name),
            _ => Way::FromRoot(self.lower_path(upper, node)?),
        };
        let value = way.encode();
        if value.len() > REDIRECT_MAX {
            return Err(Errno::EXDEV.into());
        }
        match self.marks.set(&upper.layer, counterpart, Mark::Redirect, &value) {
            // Without a redirect it cannot be renamed; a caller that moves things between file systems copies it.
            Err(e) if matches!(e.errno(), Errno::EOPNOTSUPP | Errno::ERANGE | Errno::ENOSPC) => {
                Err(Errno::EXDEV.into())
            }
            other => other,
        }
    }

    /// The path by which the layers below know a node: its own, with the redirects of those above it. It stays what it is whatever is
    /// renamed meanwhile: a directory has its redirect before it has another name.
    fn lower_path(&self, upper: &Changes<U>, node: &Arc<Node<L, U>>) -> Result<Vec<Name>> {
        if matches!(node.place(), Place::Nowhere) {
            return Err(Errno::ESTALE.into());
        }
        let mut path = Vec::new();
        let mut at = node.clone();
        for _ in 0..DEEPEST {
            let Place::At(parent, name) = at.place() else {
                path.reverse();
                return Ok(path);
            };
            let way = match at.upper().filter(|_| !at.lowers().is_empty()) {
                Some(counterpart) => self.marks.redirect(&upper.layer, counterpart)?,
                None => None,
            };
            match way {
                None => path.push(name),
                Some(Way::Beside(name)) => path.push(name),
                Some(Way::FromRoot(names)) => {
                    path.extend(names.into_iter().rev());
                    path.reverse();
                    return Ok(path);
                }
            }
            at = parent;
        }
        Err(Errno::ELOOP.into())
    }

    /// Puts an empty directory in the place of one that is empty but for whiteouts, so that a rename can replace it.
    fn empty(
        &self,
        upper: &Changes<U>,
        (dir, name): (&Arc<U::Node>, &Name),
        there: &Entry<U::Node>,
    ) -> Result<()> {
        if there.attr.kind() != FileKind::Directory || crate::listing::is_bare(&upper.layer, &there.node)? {
            return Ok(());
        }
        let temp = upper.temp()?;
        let fresh = upper.layer.make(&Caller::DAEMON, &upper.work, &temp, Make::Directory(0o700))?.node;
        let ready = || {
            let (from, to) = ((&upper.layer, &there.node), (&upper.layer, &fresh, None));
            self.config.copy_attributes(from, to, &there.attr)?;
            self.marks.set_opaque(&upper.layer, &fresh)?;
            upper.rename((&upper.work, &temp), (dir, name), libc::RENAME_EXCHANGE)
        };
        let done = ready();
        upper.discard(&upper.work, &temp);
        done
    }
}
