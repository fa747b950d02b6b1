//! The upper layer, and the work directory in which every change of more than one step is prepared.
//!
//! What is prepared has a name that no one sees; one rename then shows it. What a crash leaves is swept at the next
//! mount. The layout is the kernel's (`workdir/work`, fs/overlayfs/super.c).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use splicefs_core::{Attr, Caller, Errno, Error, FileKind, Layer, Make, Name, RenameFlags, Result};

use crate::config::Config;
use crate::index;
use crate::lowers::Hides;
use crate::marks::{Marks, dot_whiteout, each_entry, entry_of, make_empty_file};
use crate::{Overlay, Upper};

/// Trees of leftovers are no deeper: a whole directory comes here only when it is empty but for whiteouts.
const DEEPEST: usize = 64;

/// The layer that takes the changes, and where they are prepared.
pub(crate) struct Changes<U: Layer> {
    pub(crate) layer: U,
    /// The inode numbers of `upperdir` and `workdir`.
    pub(crate) own: [u64; 2],
    /// `workdir/work`.
    pub(crate) work: Arc<U::Node>,
    /// `workdir/index`, where it is kept.
    pub(crate) index: Option<Arc<U::Node>>,
    next: AtomicU64,
    /// Whether whiteouts can be devices.
    devices: bool,
}

impl<U: Layer> Changes<U> {
    /// Makes the work directory ready: what an earlier mount left in it goes.
    pub(crate) fn prepare(upper: Upper<U>, config: &Config) -> Result<Self> {
        let Upper { layer, root, work: outer } = upper;
        let own = [layer.getattr(&root, None)?.ino, layer.getattr(&outer, None)?.ino];
        let name = Name::new(b"work")?;
        if let Some(old) = entry_of(&layer, &outer, &name)? {
            refuse_incompatible(&layer, &old.node, config.volatile)?;
            wipe(&layer, &outer, &name, &old.attr, DEEPEST)?;
        }
        let work = layer.make(&Caller::DAEMON, &outer, &name, Make::Directory(0o700))?.node;
        if config.volatile {
            // What a crash left of a volatile mount is not to be trusted: its work directory says so until it is removed.
            let incompat =
                layer.make(&Caller::DAEMON, &work, &Name::new(b"incompat")?, Make::Directory(0o700))?.node;
            let volatile =
                layer.make(&Caller::DAEMON, &incompat, &Name::new(b"volatile")?, Make::Directory(0o700))?;
            make_empty_file(&layer, &volatile.node, &Name::new(b"dirty")?)?;
        }
        let index = match config.index.then(|| index::open(&layer, &outer, Marks(config.namespace))) {
            // Without attributes no file could say where it comes from.
            Some(Err(e)) if e.errno() == Errno::EOPNOTSUPP => None,
            index => index.transpose()?,
        };
        let devices = whiteouts_are_devices(&layer, &work)?;
        Ok(Self { layer, own, work, index, next: AtomicU64::new(0), devices })
    }

    /// A name in the work directory that no one has.
    pub(crate) fn temp(&self) -> Result<Name> {
        Name::new(format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).as_bytes())
    }

    /// Renames within the upper layer; the flags are those of renameat2(2).
    pub(crate) fn rename(
        &self,
        from: (&Arc<U::Node>, &Name),
        to: (&Arc<U::Node>, &Name),
        flags: u32,
    ) -> Result<()> {
        self.layer.rename(&Caller::DAEMON, from, to, RenameFlags(flags))
    }

    /// Shows in `dir` what was prepared under `temp`; fails where the name is taken.
    pub(crate) fn show(&self, temp: &Name, dir: &Arc<U::Node>, name: &Name) -> Result<()> {
        self.rename((&self.work, temp), (dir, name), libc::RENAME_NOREPLACE)
    }

    /// Whether whiteouts are devices.
    pub(crate) fn devices(&self) -> bool {
        self.devices
    }

    /// Hides `name` of the layers below, in one step with the removal of what the upper layer has under it.
    pub(crate) fn hide(
        &self,
        dir: &Arc<U::Node>,
        hides: &Hides,
        name: &Name,
        own: Option<FileKind>,
    ) -> Result<()> {
        let Some(kind) = own else {
            return if self.devices {
                self.layer.make_whiteout(dir, name)
            } else {
                self.hide_by_dot(dir, hides, name)
            };
        };
        if !self.devices {
            // What the directory has under the name shows until it is removed.
            self.hide_by_dot(dir, hides, name)?;
            return self.remove(dir, name, kind);
        }
        let temp = self.temp()?;
        self.layer.make_whiteout(&self.work, &temp)?;
        let exchange = if kind == FileKind::Directory { libc::RENAME_EXCHANGE } else { 0 };
        if let Err(e) = self.rename((&self.work, &temp), (dir, name), exchange) {
            self.discard(&self.work, &temp);
            return Err(e);
        }
        if exchange != 0 {
            self.discard(&self.work, &temp);
        }
        Ok(())
    }

    /// Hides `name` by a file beside it.
    pub(crate) fn hide_by_dot(&self, dir: &Arc<U::Node>, hides: &Hides, name: &Name) -> Result<()> {
        let hider = dot_whiteout(name).ok_or(Errno::ENAMETOOLONG)?;
        match make_empty_file(&self.layer, dir, &hider) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e),
            _ => hides.dot_made(),
        }
        Ok(())
    }

    /// The name has an entry of its own now: what hid those below it by its name alone is not needed any more.
    pub(crate) fn unhide_dot(&self, dir: &Arc<U::Node>, hides: &Hides, name: &Name) -> Result<()> {
        if !hides.has_dots() {
            return Ok(());
        }
        let Some(hider) = dot_whiteout(name) else { return Ok(()) };
        match self.layer.unlink(dir, &hider) {
            Err(e) if e.errno() != Errno::ENOENT => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes an entry that nothing below is to show through. A directory may hold whiteouts.
    pub(crate) fn remove(&self, dir: &Arc<U::Node>, name: &Name, kind: FileKind) -> Result<()> {
        if kind != FileKind::Directory {
            return self.layer.unlink(dir, name);
        }
        match self.layer.rmdir(dir, name) {
            Err(e) if matches!(e.errno(), Errno::ENOTEMPTY | Errno::EEXIST) => {}
            other => return other,
        }
        let temp = self.temp()?;
        self.rename((dir, name), (&self.work, &temp), libc::RENAME_NOREPLACE)?;
        self.discard(&self.work, &temp);
        Ok(())
    }

    /// Removes what is not needed any more, from the work directory or one in it. What cannot be removed now is swept at
    /// the next mount.
    pub(crate) fn discard(&self, dir: &Arc<U::Node>, temp: &Name) {
        let removed = entry_of(&self.layer, dir, temp).and_then(|entry| match entry {
            Some(entry) => wipe(&self.layer, dir, temp, &entry.attr, DEEPEST),
            None => Ok(()),
        });
        if let Err(e) = removed {
            log::warn!("{:?} stays in the work directory: {e}", temp.as_os_str());
        }
        self.layer.release_whiteout();
    }
}

/// Refuses a work directory that says what this program cannot honour, as the kernel does (`ovl_workdir_cleanup`). A
/// volatile mount goes on where another one left: who asks for it waives durability once more.
fn refuse_incompatible<U: Layer>(layer: &U, work: &Arc<U::Node>, volatile: bool) -> Result<()> {
    let Some(incompat) = entry_of(layer, work, &Name::new(b"incompat")?)? else { return Ok(()) };
    let mut features = Vec::new();
    each_entry(layer, &incompat.node, |entry| {
        features.push(String::from_utf8_lossy(entry.name).into_owned());
        ControlFlow::Continue(())
    })?;
    // Container engines take the mark away once they have synced, and leave its directory.
    if features.iter().all(|feature| volatile && feature == "volatile") {
        return Ok(());
    }
    Err(Error::fault(
        Errno::EINVAL,
        format!(
            "the upper layer was left behind by a mount with {}, whose last changes may be lost; if that does not matter, remove work/incompat from the work directory",
            features.join(", ")
        ),
    ))
}

/// Whether the upper file system lets us make whiteouts as devices, and by renaming, tried out in the work directory: a
/// refusal elsewhere has another reason.
fn whiteouts_are_devices<U: Layer>(layer: &U, work: &Arc<U::Node>) -> Result<bool> {
    let (first, second) = (Name::new(b"#first")?, Name::new(b"#second")?);
    let tried = layer.make_whiteout(work, &first).and_then(|()| {
        let whiteout = RenameFlags(libc::RENAME_WHITEOUT);
        layer.rename(&Caller::DAEMON, (work, &first), (work, &second), whiteout)
    });
    for name in [first, second] {
        if entry_of(layer, work, &name)?.is_some() {
            layer.unlink(work, &name)?;
        }
    }
    layer.release_whiteout();
    match tried {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.errno(), Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
            log::info!(
                "no whiteout devices can be made in the upper layer ({e}): whiteouts are files named .wh.*"
            );
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Removes an entry and what is below it.
fn wipe<U: Layer>(layer: &U, dir: &Arc<U::Node>, name: &Name, attr: &Attr, deepest: usize) -> Result<()> {
    if attr.kind() != FileKind::Directory {
        return layer.unlink(dir, name);
    }
    if deepest == 0 {
        return Err(Error::fault(Errno::ELOOP, "the work directory is too deep"));
    }
    let node = layer.lookup(dir, name)?.node;
    let mut entries = Vec::new();
    each_entry(layer, &node, |entry| {
        entries.push((entry.name.to_vec(), entry.kind));
        ControlFlow::Continue(())
    })?;
    for (below, kind) in entries {
        let below = Name::new(&below)?;
        if kind == FileKind::CharDevice {
            // A whiteout, as nearly always: looked up, it would be a file that somebody knows and may go on using.
            match layer.unlink(&node, &below) {
                Err(e) if e.errno() != Errno::ENOENT => return Err(e),
                _ => {}
            }
        } else if let Some(entry) = entry_of(layer, &node, &below)? {
            wipe(layer, &node, &below, &entry.attr, deepest - 1)?;
        }
    }
    layer.rmdir(dir, name)
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Makes the contents of a file durable, unless that was waived.
    pub(crate) fn durable(&self, layer: &U, file: &U::File) -> Result<()> {
        if self.config.volatile {
            return Ok(());
        }
        match layer.fsync(file, false) {
            // There is nothing to make durable there, and to the kernel the same answer would mean that the request at hand
            // need never be sent.
            Err(e) if e.errno() == Errno::ENOSYS => Ok(()),
            other => other,
        }
    }
}
