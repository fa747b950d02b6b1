//! What layers say of themselves on disk: whiteouts, opaque directories, redirects and their kin.
//!
//! Names and values are those of fs/overlayfs/overlayfs.h (`OVL_XATTR_*`); whiteouts and opaque directories in the
//! form of AUFS (`.wh.NAME`, `.wh..wh..opq`), which fuse-overlayfs writes where it may make no devices, are read too.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::sync::Arc;

use splicefs_core::{
    Attr, Caller, Cookie, DirEntry, Errno, Error, FileKind, Layer, Make, Name, Result, XattrFlags,
};

use crate::config::Namespace;

/// What a name begins with that hides another one.
pub(crate) const DOT_WHITEOUT: &[u8] = b".wh.";
/// The file that makes its directory opaque.
const DOT_OPAQUE: &[u8] = b".wh..wh..opq";
/// The longest redirect is a path.
const REDIRECT_MAX: usize = 4096;
/// Marks other than redirects and handles are one letter or little more.
const SHORT_MAX: usize = 64;

/// An extended attribute of overlayfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// The directory hides those of the same name below it (`y`), or may hold whiteouts that are attributes (`x`).
    Opaque,
    /// Where the directory is found in the layers below.
    Redirect,
    /// The file holds attributes alone.
    Metacopy,
    /// The lower file this one was copied from.
    Origin,
    /// The directory holds entries that have an origin.
    Impure,
    /// A regular file that is a whiteout.
    Whiteout,
    /// How many names an indexed file has.
    Nlink,
    /// The file is immutable, or only grows.
    Protattr,
}

impl Mark {
    /// The attribute's name.
    pub(crate) fn name(self, namespace: Namespace) -> &'static CStr {
        use Namespace::{Trusted, User};
        match (self, namespace) {
            (Self::Opaque, Trusted) => c"trusted.overlay.opaque",
            (Self::Opaque, User) => c"user.overlay.opaque",
            (Self::Redirect, Trusted) => c"trusted.overlay.redirect",
            (Self::Redirect, User) => c"user.overlay.redirect",
            (Self::Metacopy, Trusted) => c"trusted.overlay.metacopy",
            (Self::Metacopy, User) => c"user.overlay.metacopy",
            (Self::Origin, Trusted) => c"trusted.overlay.origin",
            (Self::Origin, User) => c"user.overlay.origin",
            (Self::Impure, Trusted) => c"trusted.overlay.impure",
            (Self::Impure, User) => c"user.overlay.impure",
            (Self::Whiteout, Trusted) => c"trusted.overlay.whiteout",
            (Self::Whiteout, User) => c"user.overlay.whiteout",
            (Self::Nlink, Trusted) => c"trusted.overlay.nlink",
            (Self::Nlink, User) => c"user.overlay.nlink",
            (Self::Protattr, Trusted) => c"trusted.overlay.protattr",
            (Self::Protattr, User) => c"user.overlay.protattr",
        }
    }
}

/// Whether a directory hides what is below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opaque {
    No,
    Yes,
    /// It does not, and may hold whiteouts that are attributes of regular files.
    XattrWhiteouts,
}

/// Reads and writes marks in one namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks(pub(crate) Namespace);

impl Marks {
    /// The value of a mark of at most `limit` bytes. A file system without attributes has no marks, nor has what the daemon may not read, as
    /// in the kernel (`ovl_path_check_dir_xattr` in fs/overlayfs/util.c).
    pub(crate) fn get<B: Layer>(
        self,
        layer: &B,
        node: &Arc<B::Node>,
        mark: Mark,
        limit: usize,
    ) -> Result<Option<Vec<u8>>> {
        match layer.getxattr(node, mark.name(self.0), limit) {
            Ok(value) => Ok(Some(value)),
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EACCES) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn has<B: Layer>(self, layer: &B, node: &Arc<B::Node>, mark: Mark) -> Result<bool> {
        match self.get(layer, node, mark, SHORT_MAX) {
            Err(e) if e.errno() == Errno::ERANGE => Ok(true),
            other => Ok(other?.is_some()),
        }
    }

    pub(crate) fn set<B: Layer>(
        self,
        layer: &B,
        node: &Arc<B::Node>,
        mark: Mark,
        value: &[u8],
    ) -> Result<()> {
        let flags = XattrFlags { flags: 0, kill_sgid: false };
        layer.setxattr(&Caller::DAEMON, node, mark.name(self.0), value, flags)
    }

    pub(crate) fn remove<B: Layer>(self, layer: &B, node: &Arc<B::Node>, mark: Mark) -> Result<()> {
        match layer.removexattr(node, mark.name(self.0)) {
            Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Whether a directory of a layer is opaque.
    pub(crate) fn opaque<B: Layer>(self, layer: &B, node: &Arc<B::Node>) -> Result<Opaque> {
        match self.get(layer, node, Mark::Opaque, SHORT_MAX)?.as_deref() {
            Some(b"y") => return Ok(Opaque::Yes),
            Some(b"x") => return Ok(Opaque::XattrWhiteouts),
            _ => {}
        }
        Ok(if exists(layer, node, &Name::new(DOT_OPAQUE)?)? { Opaque::Yes } else { Opaque::No })
    }

    /// Makes a directory of the upper layer opaque; by a file where it can have no attributes.
    pub(crate) fn set_opaque<B: Layer>(self, layer: &B, node: &Arc<B::Node>) -> Result<()> {
        match self.set(layer, node, Mark::Opaque, b"y") {
            Err(e) if e.errno() == Errno::EOPNOTSUPP => make_empty_file(layer, node, &Name::new(DOT_OPAQUE)?),
            other => other,
        }
    }

    /// Where a directory is found in the layers below.
    pub(crate) fn redirect<B: Layer>(self, layer: &B, node: &Arc<B::Node>) -> Result<Option<Way>> {
        match self.get(layer, node, Mark::Redirect, REDIRECT_MAX)? {
            Some(value) => Way::parse(&value).map(Some),
            None => Ok(None),
        }
    }

    /// Whether what a layer has under a name hides the name. `xattrs` says that whiteouts may be attributes here.
    pub(crate) fn is_whiteout<B: Layer>(
        self,
        layer: &B,
        node: &Arc<B::Node>,
        attr: &Attr,
        xattrs: bool,
    ) -> Result<bool> {
        if is_whiteout_device(attr) {
            return Ok(true);
        }
        if !xattrs || attr.kind() != FileKind::Regular || attr.size != 0 {
            return Ok(false);
        }
        self.has(layer, node, Mark::Whiteout)
    }
}

/// Where the lower part of a renamed directory or file is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Beside where it is now, under this name.
    Beside(Name),
    /// By this path from the root of the layer.
    FromRoot(Vec<Name>),
}

impl Way {
    fn parse(value: &[u8]) -> Result<Self> {
        let bad =
            || Error::fault(Errno::EIO, format!("a bad redirect: {:?}", String::from_utf8_lossy(value)));
        let name = |bytes: &[u8]| Name::new(bytes).map_err(|_| bad());
        match value.strip_prefix(b"/") {
            Some(path) => Ok(Self::FromRoot(path.split(|&b| b == b'/').map(name).collect::<Result<_>>()?)),
            None => Ok(Self::Beside(name(value)?)),
        }
    }

    /// As it stands in the attribute.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Beside(name) => name.as_bytes().to_vec(),
            Self::FromRoot(names) => names.iter().flat_map(|n| [b"/", n.as_bytes()].concat()).collect(),
        }
    }
}

/// The name that hides `name`, in the form of AUFS; `None` where that would be too long.
pub(crate) fn dot_whiteout(name: &Name) -> Option<Name> {
    Name::new(&[DOT_WHITEOUT, name.as_bytes()].concat()).ok()
}

/// A character device 0/0 is a whiteout.
pub(crate) fn is_whiteout_device(attr: &Attr) -> bool {
    attr.kind() == FileKind::CharDevice && attr.rdev == 0
}

/// The entry of that name in a layer, if it has one.
pub(crate) fn entry_of<B: Layer>(
    layer: &B,
    dir: &Arc<B::Node>,
    name: &Name,
) -> Result<Option<splicefs_core::Entry<B::Node>>> {
    match layer.lookup(dir, name) {
        Ok(entry) => Ok(Some(entry)),
        Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether there is a mark that is a file. In a directory where the daemon may not look, nothing will ever be looked up.
fn exists<B: Layer>(layer: &B, dir: &Arc<B::Node>, name: &Name) -> Result<bool> {
    match entry_of(layer, dir, name) {
        Err(e) if e.errno() == Errno::EACCES => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// Makes a file that says something by its name alone.
pub(crate) fn make_empty_file<B: Layer>(layer: &B, dir: &Arc<B::Node>, name: &Name) -> Result<()> {
    let regular = Make::Node(libc::S_IFREG | 0o600, 0);
    layer.make(&Caller::DAEMON, dir, name, regular).map(drop)
}

/// Whether a directory of a layer has entries that hide others by their names.
pub(crate) fn has_dot_whiteouts<B: Layer>(layer: &B, node: &Arc<B::Node>) -> Result<bool> {
    let mut found = false;
    each_entry(layer, node, |entry| {
        found = entry.name.starts_with(DOT_WHITEOUT);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

/// Hands every entry of a layer's directory but `.` and `..` to `take`, until that breaks off.
pub(crate) fn each_entry<B: Layer>(
    layer: &B,
    node: &Arc<B::Node>,
    mut take: impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    /// Bytes of names worth reading at once.
    const HINT: usize = 32 * 1024;
    let dir = layer.opendir(node)?;
    let mut from = Cookie::START;
    loop {
        let (mut last, mut stop) = (from, false);
        layer.read_dir(&dir, from, HINT, &mut |entry| {
            last = entry.next;
            if !matches!(entry.name, b"." | b"..") && take(entry).is_break() {
                stop = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if stop || last == from {
            return Ok(());
        }
        from = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8]) -> Name {
        Name::new(bytes).unwrap()
    }

    #[test]
    fn redirects_are_read_as_they_are_written() {
        for way in [
            Way::Beside(name(b"a b")),
            Way::FromRoot(vec![name(b"a")]),
            Way::FromRoot(vec![name(b"a"), name(b"\xff"), name(b"c")]),
        ] {
            assert_eq!(Way::parse(&way.encode()).unwrap(), way);
        }
        assert_eq!(Way::FromRoot(vec![name(b"a"), name(b"b")]).encode(), b"/a/b");
    }

    #[test]
    fn a_redirect_cannot_lead_out_of_the_layer() {
        for bad in [&b""[..], b"/", b"..", b"/..", b"/a/../b", b"a/b", b"//a", b"/a/", b"/a\0b", b"."] {
            assert_eq!(Way::parse(bad).unwrap_err().errno(), Errno::EIO, "{bad:?}");
        }
    }
}
