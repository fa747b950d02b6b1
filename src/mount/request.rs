//! What to mount, and how mount(2) and fusermount3 want to hear it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use splicefs_tmpfs::Atime;

use crate::options::{Access, Options, for_fusermount, is_fsname};

/// The name shown as source where what is served has none that could be shown.
const PLAIN_FSNAME: &str = "splicefs";

/// A mount to make.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a mount flag of its own")]
pub struct Request {
    mount_point: PathBuf,
    fsname: OsString,
    subtype: String,
    flags: MountFlags,
    default_permissions: bool,
    allow_other: bool,
    auto_unmount: bool,
    max_read: usize,
    acls: bool,
}

impl Request {
    /// Mounts on `mount_point` as `options` say, with `name` as the source unless they have another; no read request
    /// shall be longer than `max_read` bytes.
    pub fn new(name: &OsStr, mount_point: &Path, options: &Options, max_read: usize) -> Self {
        let default_name = || OsString::from(if is_fsname(name) { name } else { OsStr::new(PLAIN_FSNAME) });
        Self {
            mount_point: mount_point.to_owned(),
            fsname: options.fsname.clone().unwrap_or_else(default_name),
            subtype: options.subtype.clone(),
            flags: flags(options),
            // Where ACLs are negotiated they imply it; without, the kernel would check nothing.
            default_permissions: options.default_permissions || !options.overlay.has_acls(),
            // The kernel knows no allow_root: everybody may come in, and the session turns the others away.
            allow_other: options.access != Access::Owner,
            auto_unmount: options.auto_unmount,
            max_read,
            acls: options.overlay.has_acls(),
        }
    }

    /// Whether files have ACLs.
    pub(super) fn has_acls(&self) -> bool {
        self.acls
    }

    /// Where to mount.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Whether the mount shall go when the daemon dies. Neither the kernel nor fusermount3 is told of it.
    pub fn auto_unmount(&self) -> bool {
        self.auto_unmount
    }

    /// mount(2)'s source: an argument of its own, which no option can be hidden in.
    pub(super) fn fsname(&self) -> &OsString {
        &self.fsname
    }

    /// mount(2)'s file system type.
    pub(super) fn fs_type(&self) -> String {
        if self.subtype.is_empty() { "fuse".to_owned() } else { format!("fuse.{}", self.subtype) }
    }

    /// mount(2)'s flags.
    pub(super) fn flags(&self) -> MountFlags {
        self.flags
    }

    /// mount(2)'s data, made of numbers and fixed words only (Documentation/filesystems/fuse.rst).
    pub(super) fn kernel_data(&self, device: BorrowedFd<'_>, uid: u32, gid: u32) -> String {
        let fd = device.as_raw_fd();
        let mut data = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid}");
        self.push_kernel_options(&mut data);
        data
    }

    /// The same for the user who runs this process.
    pub(super) fn data(&self, device: BorrowedFd<'_>) -> String {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        self.kernel_data(device, uid, gid)
    }

    fn push_kernel_options(&self, list: &mut String) {
        if self.default_permissions {
            list.push_str(",default_permissions");
        }
        if self.allow_other {
            list.push_str(",allow_other");
        }
        // Writing to a String cannot fail.
        write!(list, ",max_read={}", self.max_read).unwrap_or_default();
    }

    /// The text after fusermount3's `-o`. The name goes last: whatever a version makes of it, nothing follows that it
    /// could swallow. `may_set_suid_dev` says whether fusermount3 would honour `suid` and `dev`: root only.
    pub(super) fn fusermount_options(&self, may_set_suid_dev: bool) -> OsString {
        let mut list = String::from(if self.flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
        let words = [
            (self.flags.contains(MountFlags::NOEXEC), ",noexec"),
            (self.flags.contains(MountFlags::NOATIME), ",noatime"),
            (self.flags.contains(MountFlags::SYNCHRONOUS), ",sync"),
            // Its own default is nosuid,nodev.
            (may_set_suid_dev && !self.flags.contains(MountFlags::NOSUID), ",suid"),
            (may_set_suid_dev && !self.flags.contains(MountFlags::NODEV), ",dev"),
        ];
        list.extend(words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word));
        self.push_kernel_options(&mut list);
        if !self.subtype.is_empty() {
            list.push_str(",subtype=");
            list.push_str(&self.subtype);
        }
        list.push_str(",fsname=");
        let mut list = OsString::from(list);
        list.push(for_fusermount(&self.fsname));
        list
    }
}

fn flags(options: &Options) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, !options.exec);
    flags.set(MountFlags::NOATIME, options.atime == Atime::Never);
    flags.set(MountFlags::STRICTATIME, options.atime == Atime::Strict);
    flags.set(MountFlags::SYNCHRONOUS, options.sync);
    flags
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use proptest::prelude::*;

    use super::*;
    use crate::options::Unknown;

    fn request(list: &str) -> Request {
        let options = Options::parse(&[list], Unknown::Refuse).expect("good options");
        Request::new(OsStr::new("/the/source"), Path::new("/mnt"), &options, 65536)
    }

    /// fusermount3's own reading of its list (util/fusermount.c: `prepare_mount`, `get_string_opt`).
    fn as_fusermount_reads(list: &[u8]) -> Vec<Vec<u8>> {
        let mut elements = Vec::new();
        let mut at = 0;
        while at < list.len() {
            let rest = &list[at..];
            let escapes = rest.starts_with(b"fsname=") || rest.starts_with(b"subtype=");
            let mut element = Vec::new();
            let mut len = 0;
            while len < rest.len() {
                if escapes && rest[len] == b'\\' && len + 1 < rest.len() {
                    len += 1;
                } else if rest[len] == b',' {
                    break;
                }
                element.push(rest[len]);
                len += 1;
            }
            elements.push(element);
            at += len + 1;
        }
        elements
    }

    /// What versions since 3.15 do before that (`extract_x_options`): elements that begin with `x-` go elsewhere.
    fn without_x_options(list: &[u8]) -> Vec<u8> {
        let elements: Vec<_> =
            list.split(|&b| b == b',').filter(|element| !element.starts_with(b"x-")).collect();
        elements.join(&b',')
    }

    #[test]
    fn the_kernel_hears_numbers_and_fixed_words_only() {
        let device = std::fs::File::open("/dev/null").expect("/dev/null");
        let fd = device.as_raw_fd();
        let data = |list: &str| request(list).kernel_data(device.as_fd(), 7, 8);
        let base = format!("fd={fd},rootmode=40000,user_id=7,group_id=8");
        assert_eq!(data(""), format!("{base},max_read=65536"));
        assert_eq!(data("fsname=a\\,allow_other"), format!("{base},max_read=65536"));
        assert_eq!(data("allow_root"), format!("{base},allow_other,max_read=65536"));
        assert_eq!(data("noacl"), format!("{base},default_permissions,max_read=65536"));
        assert_eq!(
            data("default_permissions,allow_other"),
            format!("{base},default_permissions,allow_other,max_read=65536")
        );
    }

    #[test]
    fn flags_are_safe_by_default_and_follow_the_options() {
        let safe = MountFlags::NOSUID | MountFlags::NODEV;
        assert_eq!(request("").flags(), safe);
        assert_eq!(request("suid,dev").flags(), MountFlags::empty());
        assert_eq!(request("ro,noexec").flags(), safe | MountFlags::RDONLY | MountFlags::NOEXEC);
        assert_eq!(request("sync,dirsync").flags(), safe | MountFlags::SYNCHRONOUS);
        assert_eq!(request("noatime").flags(), safe | MountFlags::NOATIME);
        assert_eq!(request("strictatime").flags(), safe | MountFlags::STRICTATIME);
        assert_eq!(request("noatime,relatime").flags(), safe);
    }

    #[test]
    fn type_and_source_have_defaults() {
        assert_eq!(
            (request("").fs_type().as_str(), request("").fsname().as_os_str()),
            ("fuse.splicefs", OsStr::new("/the/source"))
        );
        assert_eq!(request("subtype=").fs_type(), "fuse");
        assert_eq!(request("fsname=x").fsname(), "x");
        let odd = Request::new(OsStr::new("/a\nb"), Path::new("/mnt"), &Options::default(), 1);
        assert_eq!(odd.fsname(), PLAIN_FSNAME);
    }

    #[test]
    fn fusermount_is_told_the_same() {
        let list =
            |options: &str, root| request(options).fusermount_options(root).into_string().expect("UTF-8");
        assert_eq!(list("", false), "rw,max_read=65536,subtype=splicefs,fsname=/the/source");
        assert_eq!(
            list(
                "ro,noexec,noatime,sync,dirsync,auto_unmount,allow_root,default_permissions,subtype=,fsname=x",
                false
            ),
            "ro,noexec,noatime,sync,default_permissions,allow_other,max_read=65536,fsname=x"
        );
        assert_eq!(list("suid,dev,fsname=x", true), "rw,suid,dev,max_read=65536,subtype=splicefs,fsname=x");
        assert_eq!(list("suid,dev,fsname=x", false), "rw,max_read=65536,subtype=splicefs,fsname=x");
    }

    proptest! {
        #[test]
        fn no_name_smuggles_an_option_past_fusermount(
            parts in prop::collection::vec(prop::sample::select(vec![
                &b","[..], b"\\", b"x-", b"allow_other", b"suid", b"=", b"fsname=", b"\xff", b"a", b" ",
            ]), 1..20)
        ) {
            let name = parts.concat();
            let options = Options { fsname: Some(OsString::from_vec(name.clone())), ..Options::default() };
            let request = Request::new(OsStr::new("/s"), Path::new("/m"), &options, 1);
            let list = request.fusermount_options(true);
            let mut expected: Vec<Vec<u8>> =
                ["rw", "max_read=1", "subtype=splicefs"].map(|word| word.as_bytes().to_vec()).into();
            expected.push([b"fsname=", &name[..]].concat());
            prop_assert_eq!(&as_fusermount_reads(list.as_bytes()), &expected);
            prop_assert_eq!(&as_fusermount_reads(&without_x_options(list.as_bytes())), &expected);
        }
    }
}
