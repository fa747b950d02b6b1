//! Open files: each is an open file of one layer, and moves to the upper layer when its node does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLock;
use splicefs_core::{
    Attr, Caller, Errno, Error, Ioctl, Layer, OpenFlags, Opened, ReadPlan, Result, SeekTo, SetAttr, SetTime,
    Span, WriteMode, sys,
};

use crate::Overlay;
use crate::copyup::Need;
use crate::data::{self, Open};
use crate::node::Node;

/// The layer's file behind an open file.
enum Real<L: Layer, U: Layer> {
    Upper(U::File),
    /// Of this layer.
    Lower(usize, L::File),
}

/// An open file.
pub struct File<L: Layer, U: Layer> {
    pub(crate) node: Arc<Node<L, U>>,
    flags: OpenFlags,
    /// Lock order: a leaf but for opening the upper file.
    real: RwLock<Arc<Real<L, U>>>,
}

/// What of the flags an open file is opened again with.
const AGAIN: i32 = !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY);

impl<L: Layer, U: Layer> File<L, U> {
    fn new<F>(
        node: Arc<Node<L, U>>,
        flags: OpenFlags,
        opened: Opened<F>,
        real: impl FnOnce(F) -> Real<L, U>,
    ) -> Opened<Self> {
        let Opened { file, direct_io, stream, changed } = opened;
        let real = RwLock::new(Arc::new(real(file)));
        Opened { file: Self { node, flags, real }, direct_io, stream, changed }
    }

    /// Whether the contents are a lower layer's still.
    pub(crate) fn is_lower(&self) -> bool {
        matches!(**self.real.read(), Real::Lower(..)) && !self.node.has_upper_data()
    }

    /// An open file of the upper layer.
    pub(crate) fn upper(node: Arc<Node<L, U>>, flags: OpenFlags, opened: Opened<U::File>) -> Opened<Self> {
        Self::new(node, flags, opened, Real::Upper)
    }
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    pub(crate) fn open_file(
        &self,
        caller: &Caller,
        node: &Arc<Node<L, U>>,
        flags: OpenFlags,
    ) -> Result<Opened<File<L, U>>> {
        self.check_opening(node, flags)?;
        let truncates = flags.has(libc::O_TRUNC);
        if flags.writes() || truncates {
            let lower = node.upper().is_none();
            if !truncates {
                self.copy_up(node, Need::All)?;
            } else if let Some(opened) = self.copy_up_truncated(caller, node, flags)? {
                return Ok(Opened { changed: true, ..File::upper(node.clone(), flags, opened) });
            }
            return Ok(Opened { changed: lower, ..self.open_upper(caller, node, flags)? });
        }
        if node.has_upper_data() {
            return self.open_upper(caller, node, flags);
        }
        let lower = node.lowers().last().ok_or(Errno::ESTALE)?;
        let opened = self.lowers[lower.layer()].layer.open(caller, &lower.node, flags)?;
        Ok(File::new(node.clone(), flags, opened, |file| Real::Lower(lower.layer(), file)))
    }

    fn open_upper(
        &self,
        caller: &Caller,
        node: &Arc<Node<L, U>>,
        flags: OpenFlags,
    ) -> Result<Opened<File<L, U>>> {
        let upper = self.changes()?;
        let counterpart = node.upper().ok_or(Errno::ESTALE)?;
        let opened = upper.layer.open(caller, counterpart, flags)?;
        Ok(File::upper(node.clone(), flags, opened))
    }

    /// The layer's file that holds the contents now. One that was opened before its node was copied up is opened again: what
    /// others have written since is in the copy.
    fn real(&self, file: &File<L, U>) -> Result<Arc<Real<L, U>>> {
        let real = file.real.read().clone();
        if matches!(*real, Real::Upper(_)) || !file.node.has_upper_data() {
            return Ok(real);
        }
        let opened = self.open_upper(&Caller::DAEMON, &file.node, OpenFlags(file.flags.0 & AGAIN))?.file;
        let opened = opened.real.into_inner();
        let mut real = file.real.write();
        if matches!(**real, Real::Lower(..)) {
            *real = opened;
        }
        Ok(real.clone())
    }

    /// Runs `with` on the upper file of one that is open for writing.
    pub(crate) fn on_upper<T>(
        &self,
        file: &File<L, U>,
        with: impl FnOnce(&U, &U::File) -> Result<T>,
    ) -> Result<T> {
        match &*self.real(file)? {
            Real::Upper(real) => with(&self.changes()?.layer, real),
            Real::Lower(..) => Err(Error::fault(Errno::EBADF, "a lower file is open for writing")),
        }
    }

    /// Runs one of the two on the layer's file.
    fn on_either<T>(
        &self,
        file: &File<L, U>,
        upper: impl FnOnce(&U, &U::File) -> Result<T>,
        lower: impl FnOnce(&L, &L::File) -> Result<T>,
    ) -> Result<T> {
        match &*self.real(file)? {
            Real::Upper(real) => upper(&self.changes()?.layer, real),
            Real::Lower(layer, real) => lower(&self.lowers[*layer].layer, real),
        }
    }

    pub(crate) fn plan(
        &self,
        file: &File<L, U>,
        span: Span,
        execute: &mut dyn FnMut(&ReadPlan<'_>),
    ) -> Result<()> {
        match &*self.real(file)? {
            Real::Upper(real) => self.changes()?.layer.plan_read(real, span, execute),
            Real::Lower(layer, real) => self.lowers[*layer].layer.plan_read(real, span, execute),
        }
    }

    /// The upper file's descriptor, which no copy-up replaces; a lower one's where there is nothing to copy up to. Not one
    /// of a file that must only grow, which the kernel does not know.
    pub(crate) fn backing_file(&self, file: &File<L, U>) -> Option<Arc<OwnedFd>> {
        if !self.protection(&file.node).is_ok_and(|protection| !protection.any()) {
            return None;
        }
        match (&**file.real.read(), &self.upper) {
            (Real::Upper(real), Some(upper)) => upper.layer.backing(real),
            (Real::Lower(layer, real), None) => self.lowers[*layer].layer.backing(real),
            _ => None,
        }
    }

    pub(crate) fn file_mode(&self, file: &File<L, U>) -> Result<u32> {
        self.on_either(file, |layer, real| layer.mode(real), |layer, real| layer.mode(real))
    }

    pub(crate) fn flush_file(&self, file: &File<L, U>) -> Result<()> {
        self.on_either(file, |layer, real| layer.flush(real), |_, _| Ok(()))
    }

    pub(crate) fn fsync_file(&self, file: &File<L, U>, data_only: bool) -> Result<()> {
        if self.config.volatile {
            return Ok(());
        }
        // A lower file has nothing that is not on disk.
        self.on_either(file, |layer, real| layer.fsync(real, data_only), |_, _| Ok(()))
    }

    pub(crate) fn seek_file(&self, file: &File<L, U>, offset: u64, to: SeekTo) -> Result<u64> {
        self.on_either(
            file,
            |layer, real| layer.seek(real, offset, to),
            |layer, real| layer.seek(real, offset, to),
        )
    }

    pub(crate) fn copy_between(
        &self,
        caller: &Caller,
        from: (&File<L, U>, u64),
        to: (&File<L, U>, u64),
        len: usize,
    ) -> Result<usize> {
        self.check_writing(&to.0.node, WriteMode::default())?;
        let source = self.real(from.0)?;
        self.on_upper(to.0, |layer, target| match &*source {
            Real::Upper(source) => layer.copy_range(caller, (source, from.1), (target, to.1), len),
            Real::Lower(index, source) => {
                let lower = Open { layer: &self.lowers[*index].layer, file: source };
                data::copy_by_hand(&lower, &Open { layer, file: target }, caller, (from.1, to.1), len)
            }
        })
    }

    pub(crate) fn ioctl(&self, file: &File<L, U>, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        if sys::ioctl::changes_attributes(request.command) {
            self.copy_up(&file.node, Need::All)?;
        }
        self.ioctl_flags(&file.node, request, |request| {
            self.on_either(
                file,
                |layer, real| layer.ioctl_file(real, request),
                |layer, real| layer.ioctl_file(real, request),
            )
        })
    }

    pub(crate) fn file_attr(&self, node: &Arc<Node<L, U>>, file: &File<L, U>) -> Result<Attr> {
        match &*self.real(file)? {
            Real::Upper(real) => {
                let counterpart = node.upper().ok_or(Errno::ESTALE)?;
                let attr = self.changes()?.layer.getattr(counterpart, Some(real))?;
                self.shown(node, attr)
            }
            Real::Lower(..) => self.attr(node),
        }
    }

    /// Whether setting this size makes a file shorter that is in lower layers alone.
    fn is_cut(&self, node: &Arc<Node<L, U>>, size: Option<u64>) -> Result<bool> {
        match size {
            Some(size) if node.upper().is_none() => Ok(size < self.attr(node)?.size),
            _ => Ok(false),
        }
    }

    pub(crate) fn set_attr(
        &self,
        caller: &Caller,
        node: &Arc<Node<L, U>>,
        file: Option<&File<L, U>>,
        change: &SetAttr,
    ) -> Result<Attr> {
        self.changes()?;
        self.check_setting(node, change)?;
        self.config.check_set_id(caller, node.kind, change)?;
        let change = &self.config.owners.change(change);
        let cut = SetAttr { size: change.size, mtime: change.mtime, ..SetAttr::default() };
        let need = match change.size {
            // What is cut off need not be copied, as long as nothing else in the change can be refused after that. The kernel
            // tells the time, too, if it has a writeback cache.
            Some(size) if *change == cut => Need::Upto(size),
            Some(_) => Need::All,
            None => Need::Attributes,
        };
        let mut change = *change;
        if change.mtime.is_none() && self.is_cut(node, change.size)? {
            // The copy has the new length already, and setting it once more would not set the time.
            change.mtime = Some(SetTime::Now);
        }
        let counterpart = self.copy_up(node, need)?;
        let layer = &self.changes()?.layer;
        let real = file.map(|file| self.real(file)).transpose()?;
        let real = match real.as_deref() {
            Some(Real::Upper(real)) => Some(real),
            _ => None,
        };
        let attr = layer.setattr(caller, &counterpart, real, &change)?;
        self.shown(node, attr)
    }
}
