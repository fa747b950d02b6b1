//! Files that must not change, or only grow (chattr(1) `+i`, `+a`), and the other flags that a copy takes along
//! (`ovl_copy_fileattr` in fs/overlayfs/copy_up.c, `ovl_set_protattr` in fs/overlayfs/util.c).
//!
//! In the upper layer these two flags are a mark: with the flags themselves, a copy could be neither finished nor given its
//! name. So nobody but this module enforces them, by the rules of the kernel (`may_delete`, `may_setattr`, `xattr_permission`,
//! `may_open`), which does not know them on FUSE. The other flags are the upper file's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use splicefs_core::sys::ioctl::{Flags, FlagsRequest};
use splicefs_core::{
    Attr, Errno, FileKind, Ioctl, Layer, OpenFlags, Protection, Result, SetAttr, SetTime, WriteMode,
};

use crate::Overlay;
use crate::copyup::Need;
use crate::marks::Mark;
use crate::node::Node;
use crate::work::Changes;

/// Reserved for more letters (`OVL_PROTATTR_MAX`).
const MARK_MAX: usize = 32;

/// What the letters of the mark say; those that are not known end it, as in the kernel.
fn parse(value: &[u8]) -> Protection {
    let mut protection = Protection::default();
    for letter in value {
        match letter {
            b'a' => protection.append = true,
            b'i' => protection.immutable = true,
            _ => {
                log::warn!("a mark that this version does not know: protattr={value:?}");
                return Protection::default();
            }
        }
    }
    protection
}

fn encode(protection: Protection) -> Vec<u8> {
    let letters = [(protection.append, b'a'), (protection.immutable, b'i')];
    letters.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect()
}

/// Whether a layer says by this that it knows no flags.
fn knows_no_flags(e: Errno) -> bool {
    matches!(e, Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS)
}

/// What a node is protected from, once that has been read.
#[derive(Debug)]
pub(crate) struct KnownProtection(AtomicU8);

impl KnownProtection {
    const READ: u8 = 1;
    const APPEND: u8 = 2;
    const IMMUTABLE: u8 = 4;

    /// What is known from the beginning.
    pub(crate) fn new(known: Option<Protection>) -> Self {
        Self(AtomicU8::new(known.map_or(0, Self::pack)))
    }

    fn pack(protection: Protection) -> u8 {
        let bit = |set, bit| if set { bit } else { 0 };
        Self::READ | bit(protection.append, Self::APPEND) | bit(protection.immutable, Self::IMMUTABLE)
    }

    fn unpack(bits: u8) -> Protection {
        Protection { append: bits & Self::APPEND != 0, immutable: bits & Self::IMMUTABLE != 0 }
    }

    fn get(&self) -> Option<Protection> {
        let bits = self.0.load(Ordering::Acquire);
        (bits & Self::READ != 0).then_some(Self::unpack(bits))
    }

    /// It has been read. Returns what is to count: what was set meanwhile is newer.
    fn note(&self, read: Protection) -> Protection {
        match self.0.compare_exchange(0, Self::pack(read), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => read,
            Err(stands) => Self::unpack(stands),
        }
    }

    /// It has been changed.
    fn set(&self, protection: Protection) {
        self.0.store(Self::pack(protection), Ordering::Release);
    }
}

fn refuse(if_so: bool) -> Result<()> {
    if if_so { Err(Errno::EPERM.into()) } else { Ok(()) }
}

/// The flags of a file or directory of a layer; `None` where it has none.
fn flags_of(ask: impl FnOnce(Ioctl<'_>) -> Result<(i32, Vec<u8>)>) -> Result<Option<Flags>> {
    match ask(Flags::GET) {
        Ok((_, answer)) => Ok(Flags::parse(&answer)),
        Err(e) if knows_no_flags(e.errno()) => Ok(None),
        Err(e) => Err(e),
    }
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// What the node is protected from: by its flags in the layer that shows it, and by its mark in the upper one.
    pub(crate) fn protection(&self, node: &Node<L, U>) -> Result<Protection> {
        if let Some(known) = node.protection.get() {
            return Ok(known);
        }
        let protection = match (&self.upper, node.upper()) {
            (Some(upper), Some(counterpart)) => {
                let own = upper.layer.getattr(counterpart, None)?.protection;
                let mark = match self.marks.get(&upper.layer, counterpart, Mark::Protattr, MARK_MAX) {
                    Err(e) if e.errno() == Errno::ERANGE => {
                        log::warn!("a mark that this version does not know: protattr is too long");
                        None
                    }
                    other => other?,
                };
                own | mark.map_or(Protection::default(), |value| parse(&value))
            }
            _ => {
                let lower = Self::topmost(node)?;
                self.lowers[lower.layer()].layer.getattr(&lower.node, None)?.protection
            }
        };
        Ok(node.protection.note(protection))
    }

    /// Refuses a further name in a directory.
    pub(crate) fn check_adding(&self, parent: &Node<L, U>) -> Result<()> {
        refuse(self.protection(parent)?.immutable)
    }

    /// Refuses to take a name of the node from a directory.
    pub(crate) fn check_removing(&self, parent: &Node<L, U>, node: &Node<L, U>) -> Result<()> {
        refuse(self.protection(parent)?.any() || self.protection(node)?.any())
    }

    /// Refuses a change of extended attributes, or a further name for the node.
    pub(crate) fn check_unprotected(&self, node: &Node<L, U>) -> Result<()> {
        refuse(self.protection(node)?.any())
    }

    /// Refuses a change of attributes. What only grows may be touched.
    pub(crate) fn check_setting(&self, node: &Node<L, U>, change: &SetAttr) -> Result<()> {
        let now = |time: Option<SetTime>| time.is_none_or(|time| time == SetTime::Now);
        let only_times = SetAttr { atime: change.atime, mtime: change.mtime, ..SetAttr::default() };
        let touches =
            *change == only_times && *change != SetAttr::default() && now(change.atime) && now(change.mtime);
        let protection = self.protection(node)?;
        refuse(protection.immutable || protection.append && !touches)
    }

    /// Refuses to open a file for what may not be done to it.
    pub(crate) fn check_opening(&self, node: &Node<L, U>, flags: OpenFlags) -> Result<()> {
        let truncates = flags.has(libc::O_TRUNC);
        if !flags.writes() && !truncates {
            return Ok(());
        }
        let protection = self.protection(node)?;
        let appends = flags.has(libc::O_APPEND) && !truncates;
        refuse(protection.immutable || protection.append && !appends)
    }

    /// Refuses to write to a file that must not change, and anywhere but to the end of one that only grows, by one who has
    /// it open. What the kernel writes back was written, or could be stored, before that was so.
    pub(crate) fn check_writing(&self, node: &Node<L, U>, mode: WriteMode) -> Result<()> {
        let protection = self.protection(node)?;
        let refused = protection.immutable || protection.append && !mode.append;
        refuse(refused && !mode.from_page_cache)
    }

    /// Refuses to allocate room in a protected file, but beyond the end of one that only grows.
    pub(crate) fn check_allocating(&self, node: &Node<L, U>, mode: u32) -> Result<()> {
        let keeps_size = mode & !(libc::FALLOC_FL_KEEP_SIZE.cast_unsigned()) == 0;
        let protection = self.protection(node)?;
        refuse(protection.immutable || protection.append && !keeps_size)
    }

    /// Gives a copy the flags of the lower file: its protection as a mark, `+S` and `+A` as flags.
    pub(crate) fn copy_flags(
        &self,
        upper: &Changes<U>,
        node: &Node<L, U>,
        attr: &Attr,
        (to, file): (&Arc<U::Node>, Option<&U::File>),
    ) -> Result<()> {
        let kind = attr.kind();
        if !matches!(kind, FileKind::Regular | FileKind::Directory) {
            return Ok(());
        }
        let protection = self.protection(node)?;
        if protection.any() {
            self.set_mark(upper, to, protection)?;
        }
        let lower = Self::topmost(node)?;
        let (layer, from) = (&self.lowers[lower.layer()].layer, &lower.node);
        let flags = flags_of(|request| match kind {
            FileKind::Directory => layer.ioctl_dir(&layer.opendir(from)?, request),
            _ => layer.ioctl_file(
                &layer.open(&splicefs_core::Caller::DAEMON, from, OpenFlags(libc::O_RDONLY))?.file,
                request,
            ),
        });
        let copied = match flags {
            // Flags are copied where that can be done, as in the kernel: without the right to read there is no asking for them.
            Err(e) if e.errno() == Errno::EACCES => return Ok(()),
            other => other?.map_or(0, Flags::copied),
        };
        if copied == 0 {
            return Ok(());
        }
        let pass = |request: Ioctl<'_>| match file {
            Some(file) => upper.layer.ioctl_file(file, request),
            None => upper.layer.ioctl_dir(&upper.layer.opendir(to)?, request),
        };
        let Some(own) = flags_of(pass)? else {
            log::debug!("the upper layer has no flags for a copy");
            return Ok(());
        };
        match pass(Ioctl { input: &own.with(copied).encode(), ..Flags::SET }) {
            // It knows flags, and not these (tmpfs has no `+S`).
            Err(e) if knows_no_flags(e.errno()) => {
                log::debug!("the upper layer does not take the flags of a copy: {e}");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn set_mark(&self, upper: &Changes<U>, to: &Arc<U::Node>, protection: Protection) -> Result<()> {
        match self.marks.set(&upper.layer, to, Mark::Protattr, &encode(protection)) {
            // What cannot be noted cannot be kept.
            Err(e) if e.errno() == Errno::EOPNOTSUPP => Err(Errno::EPERM.into()),
            other => other,
        }
    }

    /// Answers a request for flags: `pass` asks the layer that holds the node, once it has been copied up for a change.
    pub(crate) fn ioctl_flags(
        &self,
        node: &Arc<Node<L, U>>,
        request: Ioctl<'_>,
        pass: impl Fn(Ioctl<'_>) -> Result<(i32, Vec<u8>)>,
    ) -> Result<(i32, Vec<u8>)> {
        let Some(flags) = FlagsRequest::of(request.command) else { return pass(request) };
        if !flags.changes {
            let (result, mut answer) = pass(request)?;
            flags.show(&mut answer, self.protection(node)?);
            return Ok((result, answer));
        }
        let upper = self.changes()?;
        let (input, wanted) = flags.split(request.input)?;
        let counterpart = self.copy_up(node, Need::Attributes)?;
        // First what may be refused.
        let answer = pass(Ioctl { input: &input, ..request })?;
        if wanted.any() {
            self.set_mark(upper, &counterpart, wanted)?;
        } else if self.marks.has(&upper.layer, &counterpart, Mark::Protattr)? {
            self.marks.remove(&upper.layer, &counterpart, Mark::Protattr)?;
        }
        node.protection.set(wanted);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_the_kernels() {
        let protection = |append, immutable| Protection { append, immutable };
        for (value, expected) in [
            (&b"a"[..], protection(true, false)),
            (b"i", protection(false, true)),
            (b"ai", protection(true, true)),
        ] {
            assert_eq!(parse(value), expected);
            assert_eq!(encode(expected), value);
        }
        for unknown in [&b"x"[..], b"ax", b"i\0"] {
            assert_eq!(parse(unknown), Protection::default(), "{unknown:?}");
        }
    }
}
