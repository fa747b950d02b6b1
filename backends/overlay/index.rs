//! The index: hard links of a lower file stay one file when it is copied up (`index=on`, fs/overlayfs/namei.c).
//!
//! The copy is linked into `workdir/index` under the handle of the lower file, so that whoever comes by another of its
//! names finds it there. How many names the file has left stands in an attribute of the copy, as a difference to the
//! number of the copy's own.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use splicefs_core::{Attr, Caller, Entry, Errno, FileKind, Layer, Make, Name, Result};

use crate::Overlay;
use crate::config::Namespace;
use crate::lowers::LowerNode;
use crate::marks::{Mark, Marks, each_entry, entry_of, is_whiteout_device};
use crate::node::Node;
use crate::origin::{self, Origin};
use crate::work::Changes;

/// The longest value: a letter, a sign, and a number.
const NLINK_MAX: usize = 16;

/// The index's name for a file with this origin, as it stands in the attribute.
pub(crate) fn name_of(origin: &[u8]) -> Result<Name> {
    let mut text = String::with_capacity(2 * origin.len());
    for byte in origin {
        // Writing into a string cannot fail.
        write!(text, "{byte:02x}").map_err(|_| Errno::EIO)?;
    }
    Name::new(text.as_bytes())
}

/// Number of names: that of the upper or the lower file, and what the attribute adds to it.
fn parse_nlink(value: &[u8], upper: u32, lower: impl FnOnce() -> Result<Option<u32>>) -> Result<Option<u32>> {
    let Some((base, difference)) = value.split_first() else { return Ok(None) };
    let difference =
        std::str::from_utf8(difference).ok().and_then(|text| text.trim_end_matches('\0').parse::<i64>().ok());
    let Some(difference) = difference else { return Ok(None) };
    let base = match base {
        b'U' => upper,
        b'L' => match lower()? {
            Some(lower) => lower,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(u32::try_from(i64::from(base) + difference).ok().filter(|&links| links > 0))
}

/// Opens the index, and removes from it what no name leads to any more.
pub(crate) fn open<U: Layer>(layer: &U, outer: &Arc<U::Node>, marks: Marks) -> Result<Arc<U::Node>> {
    let name = Name::new(b"index")?;
    let index = match entry_of(layer, outer, &name)? {
        Some(entry) => entry.node,
        None => layer.make(&Caller::DAEMON, outer, &name, Make::Directory(0o700))?.node,
    };
    // Where no file can say how many names it has, there is no index.
    marks.set(layer, &index, Mark::Nlink, b"U+0")?;
    marks.remove(layer, &index, Mark::Nlink)?;
    let mut names = Vec::new();
    each_entry(layer, &index, |entry| {
        if entry.kind != FileKind::Directory {
            names.push(entry.name.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    for name in names {
        let name = Name::new(&name)?;
        let Some(entry) = entry_of(layer, &index, &name)? else { continue };
        if entry.attr.nlink == 1
            && let Some(value) = marks.get(layer, &entry.node, Mark::Nlink, NLINK_MAX)?
            && value.first() == Some(&b'U')
            && parse_nlink(&value, 1, || Ok(None))?.is_none()
        {
            layer.unlink(&index, &name)?;
        }
    }
    Ok(index)
}

/// Whether a file has several names.
pub(crate) fn is_linked(attr: &Attr) -> bool {
    attr.kind() != FileKind::Directory && attr.nlink > 1
}

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// Whether hard links of files of this lower layer stay one file.
    pub(crate) fn keeps_links(&self, layer: usize) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.index.is_some()) && self.has_handles[layer]
    }

    /// The origin of what is copied from a lower file, as it stands in the attribute; `None` where the file system has no
    /// handles.
    pub(crate) fn origin_of(&self, lower: &LowerNode<L>) -> Result<Option<Vec<u8>>> {
        let layer = &self.lowers[lower.layer()].layer;
        let Some(handle) = layer.handle(&lower.node)? else { return Ok(None) };
        Ok((Origin { uuid: layer.uuid(), handle }).encode())
    }

    /// The copy of a lower file that was copied up under another of its names.
    pub(crate) fn find_linked(&self, lower: &LowerNode<L>, attr: &Attr) -> Result<Option<Entry<U::Node>>> {
        let Some((upper, index)) = self.indexed(lower, attr) else { return Ok(None) };
        let Some(origin) = self.origin_of(lower)? else { return Ok(None) };
        let entry = entry_of(&upper.layer, index, &name_of(&origin)?)?;
        Ok(entry.filter(|entry| !is_whiteout_device(&entry.attr)))
    }

    /// The upper layer and its index, where a lower file belongs into that when it is copied up.
    pub(crate) fn indexed(&self, lower: &LowerNode<L>, attr: &Attr) -> Option<(&Changes<U>, &Arc<U::Node>)> {
        let upper = self.upper.as_ref()?;
        let index = upper.index.as_ref()?;
        // Users' attributes are for regular files alone.
        let marked = self.config.namespace == Namespace::Trusted || attr.kind() == FileKind::Regular;
        (is_linked(attr) && marked && self.has_handles[lower.layer()]).then_some((upper, index))
    }

    /// How many names an upper file has, if it is in the index. `lower` tells the number of its lower file's.
    pub(crate) fn links(
        &self,
        node: &Arc<U::Node>,
        attr: &Attr,
        lower: impl FnOnce() -> Result<Option<u32>>,
    ) -> Result<Option<u32>> {
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.index.is_some()) else { return Ok(None) };
        if attr.kind() == FileKind::Directory {
            return Ok(None);
        }
        let Some(value) = self.marks.get(&upper.layer, node, Mark::Nlink, NLINK_MAX)? else {
            return Ok(None);
        };
        // Where it cannot be told: the names of the copy, without the one in the index.
        let fallback = attr.nlink.saturating_sub(1).max(1);
        Ok(Some(parse_nlink(&value, attr.nlink, lower)?.unwrap_or(fallback)))
    }

    /// Writes down that a copy has as many names as the lower file, less those that were `removed`: true whether or not it has
    /// got its own yet.
    pub(crate) fn set_lower_links(
        &self,
        upper: &Changes<U>,
        counterpart: &Arc<U::Node>,
        removed: u32,
    ) -> Result<()> {
        let value = format!("L{:+}", -i64::from(removed));
        self.marks.set(&upper.layer, counterpart, Mark::Nlink, value.as_bytes())
    }

    /// Writes down how many names a file has, `own` of them its copy's, the one in the index included.
    pub(crate) fn set_links(
        &self,
        upper: &Changes<U>,
        counterpart: &Arc<U::Node>,
        links: u32,
        own: u32,
    ) -> Result<()> {
        let value = format!("U{:+}", i64::from(links) - i64::from(own));
        self.marks.set(&upper.layer, counterpart, Mark::Nlink, value.as_bytes())
    }

    /// A node in the index has lost a name. `own` says that it was one of the copy's names and not a lower one, which
    /// only a whiteout hides.
    pub(crate) fn link_lost(&self, node: &Arc<Node<L, U>>, own: bool) -> Result<()> {
        let (Some(upper), Some(counterpart)) = (&self.upper, node.upper()) else { return Ok(()) };
        let Some(left) = node.change_links(-1) else { return Ok(()) };
        if left > 0 {
            if own {
                return Ok(());
            }
            let names = upper.layer.getattr(counterpart, None)?.nlink;
            return self.set_links(upper, counterpart, left, names);
        }
        let (Some(index), Some(origin)) =
            (&upper.index, self.marks.get(&upper.layer, counterpart, Mark::Origin, origin::MAX)?)
        else {
            return Ok(());
        };
        match upper.layer.unlink(index, &name_of(&origin)?) {
            Err(e) if e.errno() != Errno::ENOENT => Err(e),
            _ => Ok(()),
        }
    }

    /// Gives the copy a name of its own where it is found by a lower one so far.
    pub(crate) fn link_up(
        &self,
        node: &Arc<Node<L, U>>,
        parent: &Arc<Node<L, U>>,
        name: &Name,
    ) -> Result<()> {
        let (Some(upper), Some(counterpart)) = (&self.upper, node.upper()) else { return Ok(()) };
        let Some(links) = node.links() else { return Ok(()) };
        let dir = self.upper_dir(parent)?;
        let Some(state) = &parent.dir else { return Err(Errno::ENOTDIR.into()) };
        let _entries = state.entries.write();
        if entry_of(&upper.layer, &dir, name)?.is_some() {
            return Ok(());
        }
        self.make_impure(parent)?;
        let attr = upper.layer.link(counterpart, &dir, name)?.attr;
        self.set_links(upper, counterpart, links, attr.nlink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_names_is_relative_to_either_file() {
        let links = |value: &[u8]| parse_nlink(value, 3, || Ok(Some(7))).unwrap();
        assert_eq!(links(b"U+0"), Some(3));
        assert_eq!(links(b"U-1"), Some(2));
        assert_eq!(links(b"L-2"), Some(5));
        assert_eq!(links(b"L+1\0"), Some(8));
        for bad in [&b""[..], b"U", b"X+1", b"U-3", b"U-9", b"L99999999999999", b"U+x"] {
            assert_eq!(links(bad), None, "{bad:?}");
        }
        assert_eq!(parse_nlink(b"L+0", 3, || Ok(None)).unwrap(), None);
    }

    #[test]
    fn the_name_in_the_index_is_the_kernels() {
        assert_eq!(name_of(&[0, 0xfb, 0x1d]).unwrap().as_bytes(), b"00fb1d");
        assert!(name_of(&[1; 128]).is_err());
    }
}
