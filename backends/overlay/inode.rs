//! Inode numbers: one mount shows files of several file systems, and a file keeps its number when it is copied up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::{Attr, Errno, FileKind, Layer, Result};

use crate::Overlay;
use crate::config::Xino;
use crate::marks::Mark;
use crate::node::Node;
use crate::origin::{self, Origin};

/// Which file systems the layers are on.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The upper layer's first.
    file_systems: Vec<u64>,
    xino: Xino,
}

impl Numbers {
    /// For layers on these file systems, repetitions allowed.
    pub(crate) fn new(all: impl IntoIterator<Item = u64>, xino: Xino) -> Self {
        let mut file_systems = Vec::new();
        for file_system in all {
            if !file_systems.contains(&file_system) {
                file_systems.push(file_system);
            }
        }
        Self { file_systems, xino }
    }

    /// The number callers see for `ino` of a file system. With more than one, its index stands in the upper bits, as
    /// the kernel's `xino` has it; a number that needs those bits itself is hashed.
    pub(crate) fn shown(&self, file_system: u64, ino: u64) -> u64 {
        if self.file_systems.len() < 2 || self.xino == Xino::Off {
            return ino;
        }
        let index = self.file_systems.iter().position(|&known| known == file_system).unwrap_or(0) as u64;
        // The sign bit stays clear, for programs that keep the number in a signed type.
        let bits = 63 - (self.file_systems.len() as u64).ilog2() - 1;
        if ino >> bits == 0 {
            return index << bits | ino;
        }
        let mixed = (ino ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed >> 1 | 1
    }
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The number of a file of the upper layer.
    pub(crate) fn own_ino(&self, ino: u64) -> u64 {
        match &self.upper {
            Some(upper) => self.numbers.shown(upper.layer.file_system(), ino),
            None => ino,
        }
    }

    /// The number of a file of a lower layer.
    pub(crate) fn lower_ino(&self, layer: usize, ino: u64) -> u64 {
        self.numbers.shown(self.lowers[layer].layer.file_system(), ino)
    }

    /// The number of the lower file that a file of the upper layer was copied from, if that can be told.
    pub(crate) fn origin_ino(&self, node: &Arc<U::Node>) -> Result<Option<u64>> {
        let Some(upper) = &self.upper else { return Ok(None) };
        let Some(value) = self.marks.get(&upper.layer, node, Mark::Origin, origin::MAX)? else {
            return Ok(None);
        };
        let Some(origin) = Origin::parse(&value) else { return Ok(None) };
        if origin.uuid == [0; 16] && self.nameless_file_systems() > 1 {
            // Which of them the handle is of cannot be told (`ovl_lower_uuid_ok`).
            return Ok(None);
        }
        let mut asked = Vec::new();
        for lower in &self.lowers {
            let file_system = lower.layer.file_system();
            if lower.layer.uuid() != origin.uuid || asked.contains(&file_system) {
                continue;
            }
            asked.push(file_system);
            let ino = match lower.layer.inode_of(&origin.handle) {
                Ok(ino) => ino,
                // The handle is opaque to those who may not open it; the common ones are known.
                Err(e) if e.errno() == Errno::EPERM => origin.guess_ino(),
                Err(e) => return Err(e),
            };
            if let Some(ino) = ino {
                return Ok(Some(self.numbers.shown(file_system, ino)));
            }
        }
        Ok(None)
    }

    /// How many of the lower layers' file systems have no UUID.
    fn nameless_file_systems(&self) -> usize {
        let nameless = self.lowers.iter().filter(|lower| lower.layer.uuid() == [0; 16]);
        let mut all: Vec<_> = nameless.map(|lower| lower.layer.file_system()).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    /// The attributes of a node as callers see them, from those of its topmost counterpart.
    pub(crate) fn shown(&self, node: &Node<L, U>, mut attr: Attr) -> Result<Attr> {
        attr.ino = node.ino();
        self.config.show_owner(&mut attr);
        let upper = node.upper().is_some();
        if node.kind == FileKind::Directory {
            // As the kernel says of merged directories: find(1) takes 1 for "not known".
            let merged = node.lowers().len() + usize::from(upper) > 1;
            if merged || self.config.static_nlink {
                attr.nlink = 1;
            }
            return Ok(attr);
        }
        if let Some(links) = node.links() {
            attr.nlink = links;
        } else if !upper {
            attr.nlink = attr.nlink.saturating_sub(node.removed.load(Ordering::Acquire));
        }
        if node.kind == FileKind::Regular
            && node.metacopy.load(Ordering::Acquire)
            && let Some(data) = node.lowers().last()
        {
            attr.blocks = self.lowers[data.layer()].layer.getattr(&data.node, None)?.blocks;
        }
        Ok(attr)
    }

    /// The attributes of a node.
    pub(crate) fn attr(&self, node: &Arc<Node<L, U>>) -> Result<Attr> {
        let attr = match (&self.upper, node.upper()) {
            (Some(upper), Some(counterpart)) => upper.layer.getattr(counterpart, None)?,
            _ => {
                let lower = Self::topmost(node)?;
                self.lowers[lower.layer()].layer.getattr(&lower.node, None)?
            }
        };
        self.shown(node, attr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let numbers = Numbers::new([7, 7, 7], Xino::On);
        assert_eq!(numbers.shown(7, u64::MAX), u64::MAX);
    }

    #[test]
    fn two_file_systems_never_share_a_small_number() {
        for count in 2..9 {
            let numbers = Numbers::new(0..count, Xino::On);
            let mut seen = std::collections::HashSet::new();
            for file_system in 0..count {
                for ino in [1, 2, 1 << 32, (1 << 58) + 5] {
                    let shown = numbers.shown(file_system, ino);
                    assert!(seen.insert(shown) && shown >> 63 == 0, "{count} {file_system} {ino}");
                }
            }
        }
        assert_eq!(Numbers::new([1, 2], Xino::Off).shown(2, 42), 42);
        assert_eq!(Numbers::new([1, 2], Xino::On).shown(1, 42), 42);
    }

    #[test]
    fn a_number_that_fills_its_bits_is_told_apart_too() {
        let numbers = Numbers::new([1, 2], Xino::On);
        assert_ne!(numbers.shown(1, u64::MAX), numbers.shown(2, u64::MAX));
        assert_ne!(numbers.shown(1, u64::MAX), 0);
    }
}
