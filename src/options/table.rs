//! Every mount option, once: its name, what it takes and does, and its line in the help.

mod overlay;

use std::ffi::OsStr;

use splicefs_tmpfs::Atime;

use super::{Access, BackendName, Options, values};

/// Under which heading the help lists an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// For every backend.
    Common,
    /// For the passthrough backend.
    Passthrough,
    /// For the tmpfs backend.
    Tmpfs,
    /// For the overlay backend.
    Overlay,
    /// Accepted because mount(8) and fstab hand it over; does nothing here.
    DoesNothing,
    /// Known from the kernel's file systems, and never accepted.
    Refused,
}

impl Group {
    /// The one backend that understands options of this group.
    pub(super) fn backend(self) -> Option<BackendName> {
        match self {
            Self::Passthrough => Some(BackendName::Passthrough),
            Self::Tmpfs => Some(BackendName::Tmpfs),
            Self::Overlay => Some(BackendName::Overlay),
            Self::Common | Self::DoesNothing | Self::Refused => None,
        }
    }

    /// Whether a person may have meant an option of this group.
    pub(super) fn is_useful(self) -> bool {
        !matches!(self, Self::DoesNothing | Self::Refused)
    }
}

/// What an option of one backend is to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Elsewhere {
    Refused,
    Ignored,
}

/// What an option takes, and what it then does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    Nothing(fn(&mut Options)),
    /// A value, `form` in the help; the error of `set` says what is expected.
    Value {
        form: &'static str,
        set: fn(&mut Options, &OsStr) -> Result<(), String>,
    },
    /// The same, for a value in which a backslash can stand before more characters than in others: `set` gets it with
    /// every backslash that was written.
    Escaped {
        form: &'static str,
        set: fn(&mut Options, &OsStr) -> Result<(), String>,
    },
    /// With or without a value, nothing happens.
    Ignored,
    /// The same for every option whose name begins so.
    IgnoredPrefix,
    /// The option is refused, value or not, for this reason.
    Refused(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) takes: Takes,
    pub(super) elsewhere: Elsewhere,
    help: &'static str,
}

/// Two options are the same when they have the same name, since each stands in the table once.
impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Spec {}

const fn spec(name: &'static str, group: Group, takes: Takes, help: &'static str) -> Spec {
    Spec { name, group, takes, elsewhere: Elsewhere::Refused, help }
}

const fn flag(name: &'static str, set: fn(&mut Options), help: &'static str) -> Spec {
    spec(name, Group::Common, Takes::Nothing(set), help)
}

const fn value(
    name: &'static str,
    form: &'static str,
    set: fn(&mut Options, &OsStr) -> Result<(), String>,
    help: &'static str,
) -> Spec {
    spec(name, Group::Common, Takes::Value { form, set }, help)
}

const fn ignored(name: &'static str) -> Spec {
    spec(name, Group::DoesNothing, Takes::Ignored, "")
}

const fn ignored_prefix(name: &'static str) -> Spec {
    spec(name, Group::DoesNothing, Takes::IgnoredPrefix, "")
}

const fn refused(name: &'static str, reason: &'static str) -> Spec {
    spec(name, Group::Refused, Takes::Refused(reason), "")
}

const fn passthrough(spec: Spec) -> Spec {
    Spec { group: Group::Passthrough, ..spec }
}

const fn tmpfs(spec: Spec) -> Spec {
    Spec { group: Group::Tmpfs, ..spec }
}

/// An option that fstab hands over for any file system, and only tmpfs can follow.
const fn tmpfs_alone(spec: Spec) -> Spec {
    Spec { elsewhere: Elsewhere::Ignored, ..tmpfs(spec) }
}

/// Why there are no quotas.
const NO_QUOTAS: &str =
    "nothing is counted for each user or group; `size` and `nr_inodes` limit a tmpfs as a whole";
/// Why names are bytes.
const NO_CASEFOLD: &str = "names are told apart byte by byte";

/// The options of every backend, but [`overlay::SPECS`].
const SPECS: &[Spec] = &[
    value(
        "backend",
        "NAME",
        |o, v| set(&mut o.backend, values::backend(v).map(Some)),
        "serve from this backend (`splicefs SRC MNT -o backend=NAME`): passthrough, tmpfs or overlay",
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
        "let the kernel check the file modes; it does so in any case",
    ),
    flag(
        "noatime",
        |o| o.atime = Atime::Never,
        "do not update access times, in the source either where its owner allows that",
    ),
    flag(
        "atime",
        |o| o.atime = Atime::Relative,
        "update access times (default): as the source does, or in tmpfs as with relatime",
    ),
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
        "the source shown by findmnt and df (default: SRC, tmpfs or overlay)",
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
        "threads that serve requests, most of them only when slow ones hold up the others (default: four a processor, 16 to 64)",
    ),
    value(
        "splice",
        "MODE",
        |o, v| set(&mut o.splice, values::choice(v)),
        "reads leave by splice(2): auto (where it works, default), on (or fail to start) or off (copy)",
    ),
    value(
        "passthrough",
        "MODE",
        |o, v| set(&mut o.passthrough, values::choice(v)),
        "the kernel reads and writes files by itself: auto (where it may, default), on (or fail to start) or off; takes root",
    ),
    value(
        "open",
        "MODE",
        |o, v| set(&mut o.opens, values::opens(v)),
        "zero: files of an overlay are used without the daemon being asked to open them; handle: each is opened; auto (default): zero for a user's overlay",
    ),
    value(
        "writeback",
        "MODE",
        |o, v| set(&mut o.writeback, values::choice(v)),
        "write(2) ends in the page cache, and the kernel writes back later: auto (overlay, where the kernel does not serve files by itself, default), on (or fail to start; excludes passthrough) or off",
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
    passthrough(value(
        "cache",
        "MODE",
        |o, v| set(&mut o.cache, values::cache(v)),
        "what the kernel keeps: auto (names and attributes for a second, data until it is opened again; default), always (everything: only this mount changes the source), never, or notify (everything until the source is seen to change)",
    )),
    passthrough(flag(
        "block_devices_as_files",
        |o| o.block_devices_as_files = true,
        "show block devices as regular files of their real size, read-only",
    )),
    tmpfs(value(
        "size",
        "SIZE",
        |o, v| o.limits.set_size(values::utf8(v)),
        "the most that files may take: bytes, with k, m, g or t behind them, or a share such as 25% of the memory that the machine and the daemon's control group allow; 0 for no limit (default: 50%)",
    )),
    tmpfs(value("nr_blocks", "N", |o, v| o.limits.set_blocks(values::utf8(v)), "the same in pages of 4 KiB")),
    tmpfs(value(
        "nr_inodes",
        "N",
        |o, v| o.limits.set_inodes(values::utf8(v)),
        "the most files, with k, m or g behind the number; 0 for no limit (default: half as many as that memory has pages)",
    )),
    tmpfs(value(
        "mode",
        "MODE",
        |o, v| set(&mut o.root_mode, values::mode(v)),
        "permission bits of the root, in octal (default: 1777)",
    )),
    tmpfs(value(
        "uid",
        "USER",
        |o, v| set(&mut o.root_uid, values::uid(v).map(Some)),
        "owner of the root, by number or name (default: you)",
    )),
    tmpfs(value(
        "gid",
        "GROUP",
        |o, v| set(&mut o.root_gid, values::gid(v).map(Some)),
        "group of the root, by number or name (default: yours)",
    )),
    tmpfs(flag("inode32", |o| o.inode32 = true, "keep inode numbers under 2^32, for old programs")),
    tmpfs(flag("inode64", |o| o.inode32 = false, "use inode numbers of 64 bits (default)")),
    tmpfs_alone(flag(
        "relatime",
        |o| o.atime = Atime::Relative,
        "update access times once after each change, and once a day (default); does nothing elsewhere",
    )),
    tmpfs_alone(flag(
        "strictatime",
        |o| o.atime = Atime::Strict,
        "update access times with every read that reaches the daemon; does nothing elsewhere",
    )),
    tmpfs_alone(flag("nostrictatime", not_strict, "undo strictatime")),
    tmpfs(value(
        "huge",
        "never",
        |_, v| values::huge(v),
        "accepted for the kernel's sake: whether memory comes in huge pages is the machine's setting",
    )),
    tmpfs(value(
        "mpol",
        "POLICY",
        |_, v| values::memory_policy(v),
        "default or local; for others start the daemon under numactl(8)",
    )),
    refused(
        "noswap",
        "the memory is the daemon's, and stays out of swap in a control group without any: `systemd-run --scope -p MemorySwapMax=0 splicefs tmpfs ...`",
    ),
    refused("quota", NO_QUOTAS),
    refused("usrquota", NO_QUOTAS),
    refused("grpquota", NO_QUOTAS),
    refused("usrquota_block_hardlimit", NO_QUOTAS),
    refused("usrquota_inode_hardlimit", NO_QUOTAS),
    refused("grpquota_block_hardlimit", NO_QUOTAS),
    refused("grpquota_inode_hardlimit", NO_QUOTAS),
    refused("casefold", NO_CASEFOLD),
    refused("strict_encoding", NO_CASEFOLD),
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
    ignored("norelatime"),
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

fn not_strict(options: &mut Options) {
    if options.atime == Atime::Strict {
        options.atime = Atime::Relative;
    }
}

/// Every option.
pub(super) fn all() -> impl Iterator<Item = &'static Spec> {
    SPECS.iter().chain(overlay::SPECS)
}

/// The option called `name`.
pub(super) fn find(name: &[u8]) -> Option<&'static Spec> {
    all().find(|spec| match spec.takes {
        Takes::IgnoredPrefix => name.starts_with(spec.name.as_bytes()),
        _ => name == spec.name.as_bytes(),
    })
}

/// The options of `group` for the help: how each is written, and what it does.
pub fn help_rows(group: Group) -> Vec<(String, &'static str)> {
    let written = |spec: &Spec| match spec.takes {
        Takes::Value { form, .. } | Takes::Escaped { form, .. } => format!("{}={form}", spec.name),
        Takes::IgnoredPrefix => format!("{}*", spec.name),
        Takes::Nothing(_) | Takes::Ignored | Takes::Refused(_) => spec.name.to_owned(),
    };
    all().filter(|spec| spec.group == group).map(|spec| (written(spec), spec.help)).collect()
}
