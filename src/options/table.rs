//! Every mount option, once: its name, what it takes and does, and its line in the help.

use std::ffi::OsStr;

use super::{Access, Options, values};

/// Under which heading the help lists an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// For every backend.
    Common,
    /// For the passthrough backend.
    Passthrough,
    /// Accepted because mount(8) and fstab hand it over; does nothing here.
    DoesNothing,
}

/// What an option takes, and what it then does.
#[derive(Clone, Copy)]
pub(super) enum Takes {
    Nothing(fn(&mut Options)),
    /// A value, `form` in the help; the error of `set` says what is expected.
    Value {
        form: &'static str,
        set: fn(&mut Options, &OsStr) -> Result<(), String>,
    },
    /// With or without a value, nothing happens.
    Ignored,
    /// The same for every option whose name begins so.
    IgnoredPrefix,
}

/// One option.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) takes: Takes,
    help: &'static str,
}

const fn flag(name: &'static str, set: fn(&mut Options), help: &'static str) -> Spec {
    Spec { name, group: Group::Common, takes: Takes::Nothing(set), help }
}

const fn value(
    name: &'static str,
    form: &'static str,
    set: fn(&mut Options, &OsStr) -> Result<(), String>,
    help: &'static str,
) -> Spec {
    Spec { name, group: Group::Common, takes: Takes::Value { form, set }, help }
}

const fn ignored(name: &'static str) -> Spec {
    Spec { name, group: Group::DoesNothing, takes: Takes::Ignored, help: "" }
}

const fn ignored_prefix(name: &'static str) -> Spec {
    Spec { name, group: Group::DoesNothing, takes: Takes::IgnoredPrefix, help: "" }
}

const fn passthrough(spec: Spec) -> Spec {
    Spec { group: Group::Passthrough, ..spec }
}

/// The table.
pub(super) const SPECS: &[Spec] = &[
    value(
        "backend",
        "NAME",
        |o, v| set(&mut o.backend, values::backend(v).map(Some)),
        "serve from this backend (`splicefs SRC MNT -o backend=NAME`): passthrough",
    ),
    flag(
        "allow_other",
        |o| o.access = Access::Everybody,
        "let every user in, as the file modes allow; users need user_allow_other in /etc/fuse.conf",
    ),
    flag(
        "allow_root",
        |o| o.access = Access::Root,
        "let root in besides you; users need user_allow_other in /etc/fuse.conf",
    ),
    flag("ro", |o| o.read_only = true, "refuse every change"),
    flag("rw", |o| o.read_only = false, "allow changes (default)"),
    flag(
        "default_permissions",
        |o| o.default_permissions = true,
        "let the kernel check the file modes; it does so in any case, for the sake of POSIX ACLs",
    ),
    flag(
        "noatime",
        |o| o.noatime = true,
        "do not update access times, in the source either where its owner allows that",
    ),
    flag("atime", |o| o.noatime = false, "update access times as the source does (default)"),
    flag("suid", |o| o.suid = true, "honour set-user-id and set-group-id programs (root only)"),
    flag(
        "nosuid",
        |o| o.suid = false,
        "ignore set-user-id and set-group-id bits when running programs (default, for root too)",
    ),
    flag("dev", |o| o.dev = true, "let device files be opened (root only)"),
    flag("nodev", |o| o.dev = false, "refuse to open device files (default, for root too)"),
    flag("exec", |o| o.exec = true, "let programs be run (default)"),
    flag("noexec", |o| o.exec = false, "refuse to run programs"),
    flag("sync", |o| o.sync = true, "write synchronously"),
    flag("async", |o| o.sync = false, "write asynchronously (default)"),
    value(
        "fsname",
        "NAME",
        |o, v| set(&mut o.fsname, values::fsname(v).map(Some)),
        "the source shown by findmnt and df (default: SRC)",
    ),
    value(
        "subtype",
        "NAME",
        |o, v| set(&mut o.subtype, values::subtype(v)),
        "shown as type fuse.NAME, or fuse when empty (default: splicefs)",
    ),
    flag(
        "auto_unmount",
        |o| o.auto_unmount = true,
        "unmount even when the daemon is killed: a second process waits for that",
    ),
    value(
        "entry_timeout",
        "SECONDS",
        |o, v| set(&mut o.entry_timeout, values::seconds(v).map(Some)),
        "how long the kernel may keep names (default: 1; tmpfs: for ever)",
    ),
    value(
        "attr_timeout",
        "SECONDS",
        |o, v| set(&mut o.attr_timeout, values::seconds(v).map(Some)),
        "how long the kernel may keep attributes (default: 1; tmpfs: for ever)",
    ),
    value(
        "threads",
        "N",
        |o, v| set(&mut o.threads, values::threads(v).map(Some)),
        "threads that serve requests (default: one a processor, 4 to 16)",
    ),
    value(
        "splice",
        "MODE",
        |o, v| set(&mut o.splice, values::splice(v)),
        "reads leave by splice(2): auto (where it works, default), on (or fail to start) or off (copy)",
    ),
    value(
        "splice_min",
        "SIZE",
        |o, v| set(&mut o.splice_min, values::size(v)),
        "copy reads smaller than this, such as 4096 or 64K",
    ),
    value(
        "log",
        "FILE",
        |o, v| set(&mut o.log, values::path(v).map(Some)),
        "append the log to FILE (default: the journal, else a file in the state directory)",
    ),
    passthrough(flag(
        "block_devices_as_files",
        |o| o.block_devices_as_files = true,
        "show block devices as regular files of their real size, read-only",
    )),
    ignored("defaults"),
    ignored("_netdev"),
    ignored("auto"),
    ignored("noauto"),
    ignored("nofail"),
    ignored("user"),
    ignored("nouser"),
    ignored("users"),
    ignored("nousers"),
    ignored("owner"),
    ignored("noowner"),
    ignored("group"),
    ignored("nogroup"),
    ignored("comment"),
    ignored("relatime"),
    ignored("norelatime"),
    ignored("strictatime"),
    ignored("nostrictatime"),
    ignored("diratime"),
    ignored("nodiratime"),
    ignored("lazytime"),
    ignored("nolazytime"),
    ignored("dirsync"),
    ignored("iversion"),
    ignored("noiversion"),
    ignored("mand"),
    ignored("nomand"),
    ignored("silent"),
    ignored("loud"),
    ignored("nonempty"),
    ignored_prefix("x-"),
    ignored_prefix("X-"),
];

fn set<T>(field: &mut T, value: Result<T, String>) -> Result<(), String> {
    *field = value?;
    Ok(())
}

/// The option called `name`.
pub(super) fn find(name: &[u8]) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| match spec.takes {
        Takes::IgnoredPrefix => name.starts_with(spec.name.as_bytes()),
        _ => name == spec.name.as_bytes(),
    })
}

/// The options of `group` for the help: how each is written, and what it does.
pub fn help_rows(group: Group) -> Vec<(String, &'static str)> {
    let written = |spec: &Spec| match spec.takes {
        Takes::Value { form, .. } => format!("{}={form}", spec.name),
        Takes::IgnoredPrefix => format!("{}*", spec.name),
        Takes::Nothing(_) | Takes::Ignored => spec.name.to_owned(),
    };
    SPECS.iter().filter(|spec| spec.group == group).map(|spec| (written(spec), spec.help)).collect()
}
