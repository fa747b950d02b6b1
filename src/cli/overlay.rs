//! The overlay backend from the command line's options: its layers opened, before anything is mounted.

use std::io;
use std::path::Path;

use rustix::fs::{MemfdFlags, XattrFlags as RustixXattrFlags, fsetxattr, memfd_create};
use rustix::io::Errno as Os;
use splicefs_core::sys::creds;
use splicefs_core::{Backend, Caller, Errno, Error, Make, Name};
use splicefs_overlay::{Config, CopyupOwner, Lower, Namespace, Overlay, Recorded, Records, Upper};
use splicefs_passthrough::{LayerOptions, LayerSet, Passthrough};
use splicefs_tmpfs::{Atime, Resize, Tmpfs};

use super::layers::{Changes, Layers};
use super::serve::{room, warn_of_group};
use crate::failure::Failure;
use crate::options::{LowerDir, Options, OverlayOptions};

/// An attribute that only says whether it could be set.
const PROBE: &str = "trusted.overlay.splicefs-probe";

/// Where the overlay keeps its own attributes: `trusted.` only where this process may set and see those, which takes
/// CAP_SYS_ADMIN outside of any user namespace. The kernel checks that before it looks at the file system, so a file
/// in memory tells it for all, and no layer is touched.
pub(super) fn namespace(options: &OverlayOptions) -> Namespace {
    if options.userxattr {
        return Namespace::User;
    }
    let probe = memfd_create("probe", MemfdFlags::CLOEXEC)
        .and_then(|file| fsetxattr(file, PROBE, b"", RustixXattrFlags::empty()));
    match probe {
        // Without such attributes in memory it is not the permission that was missing.
        Ok(()) | Err(Os::OPNOTSUPP) => Namespace::Trusted,
        Err(error) => {
            log::debug!("attributes are kept as user.overlay.: {error}");
            Namespace::User
        }
    }
}

/// Who owns a copy whose owner cannot be kept, where `copyup_owner` does not say. Root keeps every owner. Other users keep nobody's but their
/// own, and without the second answer could change no file of another's that they may write, nor anything in `/tmp`. In a user
/// namespace most owners can be kept, and the others are refused as the kernel refuses them, unless owners are squashed: then all are
/// to be changed.
fn usual_owner(options: &OverlayOptions) -> Result<CopyupOwner, Failure> {
    if options.records.is_some() {
        // Owners are in an attribute, where every one can be kept.
        return Ok(CopyupOwner::Keep);
    }
    let rights = creds::gives_files_away().and_then(|gives| Ok((gives, creds::in_initial_user_namespace()?)));
    let rights = rights
        .map_err(|error| Failure::new(format!("cannot look at the rights of this process: {error}")))?;
    Ok(match rights {
        (true, true) => CopyupOwner::Keep,
        (false, true) => CopyupOwner::Mounter,
        (_, false) if options.owners.can_be_named() => CopyupOwner::Keep,
        (_, false) => CopyupOwner::Mounter,
    })
}

/// What to say of an overlay that serves: where changes go, and what ending it means.
pub(super) fn announced(layers: &Layers, options: &Options) -> (String, &'static str) {
    match (&layers.changes, options.overlay.in_memory) {
        (Some(changes), _) if options.read_only => {
            (format!("read-only, with upperdir {}", changes.upper.display()), "stop")
        }
        (Some(changes), _) => (format!("changes go to {}", changes.upper.display()), "stop"),
        (None, Some(limits)) => {
            let room = room(&memory(limits, options));
            (format!("changes are kept in memory ({room})"), "stop, and lose the changes")
        }
        (None, None) => ("read-only for want of an upperdir".to_owned(), "stop"),
    }
}

/// A file system in memory that takes changes.
fn memory(limits: Resize, options: &Options) -> splicefs_tmpfs::Options {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    splicefs_tmpfs::Options { atime: options.atime, ..splicefs_tmpfs::Options::new(limits, uid, gid) }
}

/// That there is no memory, or no limit that leaves room for anything.
pub(super) fn no_memory(error: &Error) -> Failure {
    Failure::new(format!("cannot make a file system in memory: {error}"))
}

/// An overlay, ready to be served.
pub(super) enum Built {
    /// Changes go to a directory, or nowhere.
    OnDirectories(Overlay<Directory, Directory>),
    /// Changes are kept in memory.
    InMemory(Overlay<Directory, Tmpfs>),
}

/// A directory as a layer, whose files' owners may be kept in an attribute.
type Directory = Recorded<Passthrough>;

/// Opens the layers and merges them. To be called before mounting.
///
/// # Errors
/// One line that names the directory, or the option that cannot be had.
pub(super) fn build(layers: &Layers, mount_point: &Path, options: &Options) -> Result<Built, Failure> {
    let config = options.overlay.config(namespace(&options.overlay), usual_owner(&options.overlay)?)?;
    let cannot = |error: Error| Failure::new(format!("cannot merge the layers: {error}"));
    let set =
        LayerSet::new(Some(mount_point)).map_err(|error| unopened("mount point", mount_point, &error))?;
    let open = |what: &str, path: &Path, read_only| {
        let noatime = read_only || options.atime == Atime::Never;
        // Nothing at all is changed of a mount that is read-only.
        let lends = !read_only && !options.read_only;
        set.open(&LayerOptions { path: path.to_owned(), noatime, read_only, lends })
            .map_err(|error| unopened(what, path, &error))
    };
    let records = options.overlay.records;
    let lower = |LowerDir { path, data_only }: &LowerDir| {
        let layer = Recorded::lower(open("lowerdir", path, true)?, records);
        let layer = layer.map_err(|error| unrecorded("lowerdir", path, records, &error))?;
        Ok(Lower { layer, data_only: *data_only })
    };
    let lowers: Vec<_> = layers.lowers.iter().map(lower).collect::<Result<_, Failure>>()?;
    if let (Some(limits), Some(topmost)) = (options.overlay.in_memory, lowers.first()) {
        // There is nothing that could be made durable.
        let config = Config { volatile: true, ..config };
        let memory = memory(limits, options);
        warn_of_group(&memory);
        let upper = in_memory(&memory, &topmost.layer, &config);
        let upper = upper.map_err(|error| no_memory(&error))?;
        return Overlay::new(config, lowers, Some(upper)).map(Built::InMemory).map_err(cannot);
    }
    let upper = |changes: &Changes| {
        let layer = open("upperdir", &changes.upper, false)?;
        let work = layer.adopt(&changes.work).map_err(|error| unopened("workdir", &changes.work, &error))?;
        let layer = Recorded::upper(layer, records, &lowers)
            .map_err(|error| unrecorded("upperdir", &changes.upper, records, &error))?;
        Ok(Upper { root: layer.root(), layer, work })
    };
    let upper = layers.changes.as_ref().map(upper).transpose()?;
    Overlay::new(config, lowers, upper).map(Built::OnDirectories).map_err(cannot)
}

fn unopened(what: &str, path: &Path, error: &io::Error) -> Failure {
    let hint =
        if error.raw_os_error() == Some(libc::EMFILE) { "; raise the limit (`ulimit -n`)" } else { "" };
    Failure::new(format!("cannot open {what} {}: {error}{hint}", path.display()))
}

/// That owners cannot be kept in an attribute there.
fn unrecorded(what: &str, path: &Path, records: Option<Records>, error: &Error) -> Failure {
    let hint = match (records, error.errno()) {
        (_, Errno::EOPNOTSUPP) => "; its file system has no such attributes",
        (Some(Records::Root), Errno::EPERM) => "; only root may set it, `xattr_permissions=2` is for users",
        _ => "",
    };
    Failure::new(format!("cannot keep owners in an attribute of {what} {}: {error}{hint}", path.display()))
}

/// An upper layer in memory, whose root is like that of `below`.
fn in_memory(
    options: &splicefs_tmpfs::Options,
    below: &impl Backend,
    config: &Config,
) -> splicefs_core::Result<Upper<Tmpfs>> {
    let layer = Tmpfs::new(options)?;
    let make = |name: &[u8]| -> splicefs_core::Result<_> {
        let what = Make::Directory(0o700);
        Ok(layer.make(&Caller::DAEMON, &layer.root(), &Name::new(name)?, what)?.node)
    };
    let (root, work) = (make(b"upper")?, make(b"work")?);
    let attr = below.getattr(&below.root(), None)?;
    config.copy_attributes((below, &below.root()), (&layer, &root, None), &attr)?;
    Ok(Upper { layer, root, work })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::options::{BackendName, Unknown};

    fn options(list: &str) -> Options {
        Options::parse(&[list], Unknown::Refuse)
            .and_then(|options| options.for_backend(BackendName::Overlay))
            .expect("good options")
    }

    #[test]
    fn attributes_are_roots_where_root_may_set_them() {
        assert_eq!(namespace(&options("lowerdir=/l,userxattr").overlay), Namespace::User);
        let by_user = !rustix::process::geteuid().is_root();
        if by_user {
            assert_eq!(namespace(&options("lowerdir=/l").overlay), Namespace::User);
        }
    }

    #[test]
    fn an_upper_layer_in_memory_has_the_root_of_the_layer_below() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1751)).expect("chmod");
        let empty = RustixXattrFlags::empty();
        let has_xattrs = rustix::fs::setxattr(folder.path(), "user.kept", b"1", empty).is_ok()
            && rustix::fs::setxattr(folder.path(), "user.overlay.opaque", b"y", empty).is_ok();
        let below = Passthrough::new(&splicefs_passthrough::Options {
            source: folder.path().to_owned(),
            mount_point: None,
            noatime: true,
            block_devices_as_files: false,
            listen: false,
        })
        .expect("a layer");
        let config = Config { namespace: Namespace::User, ..Config::default() };
        let limits = memory(Resize::default(), &Options::default());
        let made = in_memory(&limits, &below, &config).expect("room");
        let attr = made.layer.getattr(&made.root, None).expect("attributes");
        let real = folder.path().metadata().expect("stat");
        assert_eq!((attr.mode, attr.uid, attr.gid), (real.mode(), real.uid(), real.gid()));
        assert_eq!((attr.mtime.sec, i64::from(attr.mtime.nsec)), (real.mtime(), real.mtime_nsec()));
        if has_xattrs {
            let names = made.layer.listxattr(&made.root, 1024).expect("names");
            assert_eq!(names, b"user.kept\0", "{}", String::from_utf8_lossy(&names));
        }
    }
}
