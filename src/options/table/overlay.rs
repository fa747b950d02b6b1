//! The options of the overlay: those of the kernel's overlayfs, and those of fuse-overlayfs.

use std::ffi::OsStr;

use splicefs_overlay::Records;

use super::super::{ids, lowers, values};
use super::{Group, Spec, Takes, flag, ignored, refused, set, value};

const fn overlay(spec: Spec) -> Spec {
    Spec { group: Group::Overlay, ..spec }
}

const fn escaped(
    name: &'static str,
    form: &'static str,
    set: fn(&mut super::Options, &OsStr) -> Result<(), String>,
    help: &'static str,
) -> Spec {
    super::spec(name, Group::Overlay, Takes::Escaped { form, set }, help)
}

pub(super) const SPECS: &[Spec] = &[
    escaped(
        "lowerdir",
        "DIR:DIR::DATA",
        |o, v| o.overlay.set_lowers(v),
        "directories to merge, the topmost first, at most 500; behind `::` stand those that only hold data of files named above; write `\\:` and `\\,` for a colon and a comma in a name",
    ),
    overlay(value(
        "lowerdir+",
        "DIR",
        |o, v| o.overlay.add_lower(v, false),
        "one more lower directory, below the others; its colons need no backslash",
    )),
    overlay(value(
        "datadir+",
        "DIR",
        |o, v| o.overlay.add_lower(v, true),
        "one more data-only directory, below the others",
    )),
    escaped(
        "upperdir",
        "DIR",
        |o, v| set(&mut o.overlay.upper, lowers::path(v).map(Some)),
        "takes the changes; without it the mount is read-only",
    ),
    escaped(
        "workdir",
        "DIR",
        |o, v| set(&mut o.overlay.work, lowers::path(v).map(Some)),
        "an empty directory on the file system of upperdir, in which changes are prepared",
    ),
    overlay(value(
        "upper",
        "tmpfs[:LIMITS]",
        |o, v| o.overlay.set_upper_in_memory(v),
        "keep the changes in memory, and lose them at unmount: tmpfs, or tmpfs:size=1g:nr_inodes=10k; in place of upperdir and workdir",
    )),
    overlay(value(
        "redirect_dir",
        "MODE",
        |o, v| set(&mut o.overlay.redirect, values::redirect(v).map(Some)),
        "directories of lower layers are renamed by a redirect (on; default with trusted. attributes), by copying all they hold (copy; default with userxattr, where the kernel follows no redirects), or not (EXDEV: follow or off; nofollow refuses redirected ones too)",
    )),
    overlay(value(
        "metacopy",
        "on|off",
        |o, v| set(&mut o.overlay.metacopy, values::on_or_off(v)),
        "a change of attributes alone copies no data up (default: off); not with userxattr",
    )),
    overlay(value(
        "index",
        "on|off",
        |o, v| set(&mut o.overlay.index, values::on_or_off(v)),
        "hard links of a lower file stay one file when it is copied up (default: on)",
    )),
    overlay(value(
        "xino",
        "MODE",
        |o, v| set(&mut o.overlay.xino, values::xino(v)),
        "inode numbers of layers on several file systems: on or auto (made distinct, default) or off (those of the layers)",
    )),
    overlay(flag(
        "userxattr",
        |o| o.overlay.userxattr = true,
        "keep the overlay's own attributes as user.overlay. and not trusted.overlay. (default unless you are root outside of a user namespace)",
    )),
    overlay(flag(
        "noacl",
        |o| o.overlay.noacl = true,
        "have no POSIX ACLs: those in the layers do not count, modes alone do",
    )),
    overlay(flag(
        "volatile",
        |o| o.overlay.volatile = true,
        "make nothing durable: faster, and the upper layer is lost when the machine stops",
    )),
    overlay(value(
        "fsync",
        "0|1",
        |o, v| set(&mut o.overlay.volatile, values::zero_or_one(v).map(|on| !on)),
        "0 is volatile, 1 the default",
    )),
    overlay(value(
        "prefetch",
        "SIZE",
        |o, v| set(&mut o.overlay.prefetch, values::size(v)),
        "where files are opened (open=handle), those of lower layers up to this size come with the reply to that, without being asked for (default: 32K); 0 for none",
    )),
    overlay(flag(
        "static_nlink",
        |o| o.overlay.static_nlink = true,
        "show every directory with one link, without counting",
    )),
    overlay(value(
        "timeout",
        "SECONDS",
        |o, v| {
            let time = Some(values::seconds(v)?);
            (o.entry_timeout, o.attr_timeout) = (time, time);
            Ok(())
        },
        "both entry_timeout and attr_timeout",
    )),
    overlay(value(
        "uidmapping",
        "RANGES",
        |o, v| set(&mut o.overlay.owners.users.ranges, ids::ranges(v)),
        "show users of the layers as others: ID:SHOWN:COUNT, several separated by colons; the others are nobody's",
    )),
    overlay(value(
        "gidmapping",
        "RANGES",
        |o, v| set(&mut o.overlay.owners.groups.ranges, ids::ranges(v)),
        "the same for groups",
    )),
    overlay(flag(
        "squash_to_root",
        |o| {
            // An owner that is named counts more, wherever it stands.
            o.overlay.owners.users.squash.get_or_insert(0);
            o.overlay.owners.groups.squash.get_or_insert(0);
        },
        "show every file as root's, and keep new ones as root's",
    )),
    overlay(value(
        "squash_to_uid",
        "USER",
        |o, v| set(&mut o.overlay.owners.users.squash, values::uid(v).map(Some)),
        "show every file as this user's, and keep new ones as this user's",
    )),
    overlay(value(
        "squash_to_gid",
        "GROUP",
        |o, v| set(&mut o.overlay.owners.groups.squash, values::gid(v).map(Some)),
        "show every file as this group's, and keep new ones as this group's",
    )),
    overlay(value(
        "xattr_permissions",
        "1|2",
        |o, v| set(&mut o.overlay.records, records(v).map(Some)),
        "keep owners and modes in an extended attribute that root may set (1) or you may (2), so that files can be anybody's without privileges; there are no ACLs then",
    )),
    overlay(value(
        "copyup_owner",
        "keep|mounter",
        |o, v| set(&mut o.overlay.copyup_owner, values::copyup_owner(v).map(Some)),
        "a change of a lower file whose owner or group you may not give to the copy is refused (keep; default as root and in user namespaces), or the copy is yours, with no more rights for others (mounter; default of other users, and where owners are squashed)",
    )),
    overlay(value(
        "nfs_export",
        "off",
        |_, v| values::only_off(v, "a file handle would lead nowhere once the kernel has forgotten the file"),
        "accepted for the kernel's sake",
    )),
    overlay(value(
        "verity",
        "off",
        |_, v| values::only_off(v, "digests of data-only layers are not checked"),
        "accepted for the kernel's sake",
    )),
    refused("nooverride_creds", "layers are read and written as the daemon, whoever asks"),
    ignored("override_creds"),
    ignored("uuid"),
];

fn records(value: &OsStr) -> Result<Records, String> {
    match values::utf8(value) {
        "1" => Ok(Records::Root),
        "2" => Ok(Records::User),
        _ => Err("`1` or `2`".to_owned()),
    }
}
