//! Mount options: what a text after `-o` means, typed.
//!
//! [`table`] declares every option once; parsing, the check for unknown names and the help all read it.

mod ids;
mod lowers;
mod overlay;
mod table;
mod text;
mod values;

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

pub use lowers::{LOWERS_MAX, LowerDir};
pub use overlay::OverlayOptions;
pub use table::{Group, help_rows};
pub use text::escape;
pub(crate) use text::for_fusermount;
pub(crate) use values::{backends, is_fsname};

use splicefs_tmpfs::{Atime, Resize};

use crate::failure::Failure;
use crate::session::{Choice, DEFAULT_SPLICE_MIN, Opens};
use crate::vfs::Cache;
use table::{Elsewhere, Spec, Takes};

/// The subtype unless the person says otherwise: the mount is listed as `fuse.splicefs`.
pub const DEFAULT_SUBTYPE: &str = "splicefs";
/// Of a longer value, a message shows so many characters.
const VALUE_SHOWN_MAX: usize = 120;

/// Who may use the mount besides the user who mounted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nobody.
    Owner,
    /// Root (`allow_root`).
    Root,
    /// Everybody, as the file modes say (`allow_other`).
    Everybody,
}

/// The backends a mount can be served from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendName {
    /// Mirrors a source directory.
    Passthrough,
    /// Keeps everything in memory.
    Tmpfs,
    /// Merges directories.
    Overlay,
}

impl BackendName {
    /// Every backend, for messages and help.
    pub const ALL: [Self; 3] = [Self::Passthrough, Self::Tmpfs, Self::Overlay];

    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Tmpfs => "tmpfs",
            Self::Overlay => "overlay",
        }
    }
}

/// An option that means something to one backend only, and was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Particular {
    spec: &'static Spec,
    /// As it was written.
    element: OsString,
}

/// Everything `-o` can say, after parsing.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a mount flag of its own, named as mount(8) names it"
)]
pub struct Options {
    /// `backend=`: which backend serves, in the mount(8) form.
    pub backend: Option<BackendName>,
    /// `allow_other`, `allow_root`.
    pub access: Access,
    /// `ro`.
    pub read_only: bool,
    /// `default_permissions`: asked for; the kernel applies it in any case once POSIX ACLs are negotiated.
    pub default_permissions: bool,
    /// `noatime`, `relatime`, `strictatime`.
    pub atime: Atime,
    /// `suid`: set-user-id bits count. Off by default, as in libfuse, for root too.
    pub suid: bool,
    /// `dev`: device files can be opened. Off by default, as in libfuse, for root too.
    pub dev: bool,
    /// `exec`: programs can be run.
    pub exec: bool,
    /// `sync`.
    pub sync: bool,
    /// `fsname=`: the name shown as the mount's source; without it, the source path.
    pub fsname: Option<OsString>,
    /// `subtype=`: the mount is listed as `fuse.SUBTYPE`, or as `fuse` when this is empty.
    pub subtype: String,
    /// `auto_unmount`: the mount goes when the daemon dies, however it dies.
    pub auto_unmount: bool,
    /// `entry_timeout=`; without it, the backend decides.
    pub entry_timeout: Option<Duration>,
    /// `attr_timeout=`; without it, the backend decides.
    pub attr_timeout: Option<Duration>,
    /// `threads=`; without it, the session decides.
    pub threads: Option<NonZeroUsize>,
    /// `splice=`.
    pub splice: Choice,
    /// `open=`: whether the kernel asks to open each file.
    pub opens: Opens,
    /// `passthrough=`: the kernel reads and writes files by itself.
    pub passthrough: Choice,
    /// `writeback=`: the kernel writes files back later.
    pub writeback: Choice,
    /// `splice_min=`, in bytes: smaller reads are copied.
    pub splice_min: usize,
    /// `log=`.
    pub log: Option<PathBuf>,
    /// `cache=` (passthrough).
    pub cache: Cache,
    /// `block_devices_as_files` (passthrough).
    pub block_devices_as_files: bool,
    /// `size=`, `nr_blocks=` and `nr_inodes=` (tmpfs).
    pub limits: Resize,
    /// `mode=`: permission bits of the root (tmpfs).
    pub root_mode: u32,
    /// `uid=`: the root's owner; without it, who mounts (tmpfs).
    pub root_uid: Option<u32>,
    /// `gid=`: the root's group; without it, that of who mounts (tmpfs).
    pub root_gid: Option<u32>,
    /// `inode32` (tmpfs).
    pub inode32: bool,
    /// What is merged, and how (overlay).
    pub overlay: OverlayOptions,
    /// Options that are accepted because mount(8) and fstab hand them over and that do nothing here.
    pub ignored: Vec<OsString>,
    /// What only one backend has, until [`Options::for_backend`] has looked at it.
    pub(crate) particular: Vec<Particular>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: None,
            access: Access::Owner,
            read_only: false,
            default_permissions: false,
            atime: Atime::Relative,
            suid: false,
            dev: false,
            exec: true,
            sync: false,
            fsname: None,
            subtype: DEFAULT_SUBTYPE.to_owned(),
            auto_unmount: false,
            entry_timeout: None,
            attr_timeout: None,
            threads: None,
            splice: Choice::Auto,
            opens: Opens::Auto,
            passthrough: Choice::Auto,
            writeback: Choice::Auto,
            splice_min: DEFAULT_SPLICE_MIN,
            log: None,
            cache: Cache::Auto,
            block_devices_as_files: false,
            limits: Resize::default(),
            root_mode: splicefs_tmpfs::DEFAULT_MODE,
            root_uid: None,
            root_gid: None,
            inode32: false,
            overlay: OverlayOptions::default(),
            ignored: Vec::new(),
            particular: Vec::new(),
        }
    }
}

/// What to do with an option nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// Refuse it, naming the nearest known one.
    Refuse,
    /// Pass over it and list it among the ignored: mount(8)'s `-s` ("sloppy").
    Ignore,
    /// The same, but what is known and cannot be had is refused: it would be missed. Container engines hand over what
    /// is meant for others, such as `context="..."`.
    PassOver,
}

impl Options {
    /// Reads the texts of each `-o`, in their order: where two contradict each other the last one wins, as in
    /// mount(8).
    ///
    /// # Errors
    /// A line that names the option and what is expected.
    pub fn parse<T: AsRef<OsStr>>(lists: &[T], unknown: Unknown) -> Result<Self, Failure> {
        let mut options = Self::default();
        for list in lists {
            let mut elements = text::split(list.as_ref().as_bytes());
            if unknown == Unknown::PassOver {
                elements = text::rejoin_quoted(&elements, |name| table::find(name).is_none());
            }
            for element in elements {
                options.apply(&element, unknown)?;
            }
        }
        Ok(options)
    }

    fn apply(&mut self, raw: &[u8], unknown: Unknown) -> Result<(), Failure> {
        let element = text::unescape(raw);
        let (name, value) = text::name_and_value(&element);
        // Not with `-s` either: it would mount a second time.
        if name == b"remount" {
            return Err(Failure::usage(
                "this program cannot remount: the kernel does it alone (`mount -i -o remount,ro MNT`), and limits of a tmpfs change by `splicefs resize MNT size=SIZE`",
            ));
        }
        let Some(spec) = table::find(name) else {
            if unknown == Unknown::Refuse {
                return Err(unknown_option(name));
            }
            self.ignored.push(OsStr::from_bytes(&element).to_owned());
            return Ok(());
        };
        match (spec.takes, value) {
            (Takes::Nothing(set), None) => set(self),
            (Takes::Nothing(_), Some(_)) => {
                return Err(Failure::usage(format!("option `{}` takes no value: write it alone", spec.name)));
            }
            (Takes::Value { form, .. } | Takes::Escaped { form, .. }, None) => {
                return Err(Failure::usage(format!("option `{0}` needs a value: {0}={form}", spec.name)));
            }
            (Takes::Value { set, .. }, Some(value)) => {
                set(self, OsStr::from_bytes(value)).map_err(|expected| bad_value(spec, value, &expected))?;
            }
            (Takes::Escaped { set, .. }, Some(_)) => {
                let value = text::name_and_value(raw).1.unwrap_or_default();
                set(self, OsStr::from_bytes(value)).map_err(|expected| bad_value(spec, value, &expected))?;
            }
            (Takes::Ignored | Takes::IgnoredPrefix, _) => {
                self.ignored.push(OsStr::from_bytes(&element).to_owned());
            }
            (Takes::Refused(_), _) if unknown == Unknown::Ignore => {
                self.ignored.push(OsStr::from_bytes(&element).to_owned());
            }
            (Takes::Refused(reason), _) => {
                return Err(Failure::usage(format!("option `{}` is not to be had: {reason}", spec.name)));
            }
        }
        if spec.group.backend().is_some() {
            self.particular.push(Particular { spec, element: OsStr::from_bytes(&element).to_owned() });
        }
        Ok(())
    }

    /// The options for a mount served from `backend`: those that another backend alone understands are refused, or
    /// where they cannot matter listed among the ignored.
    ///
    /// # Errors
    /// A line that names the option and the backend it is for.
    pub fn for_backend(mut self, backend: BackendName) -> Result<Self, Failure> {
        if let Some(other) = self.backend.filter(|other| *other != backend) {
            return Err(Failure::usage(format!(
                "`splicefs {}` and the option `backend={}` contradict each other",
                backend.name(),
                other.name()
            )));
        }
        for Particular { spec, element } in std::mem::take(&mut self.particular) {
            let Some(its) = spec.group.backend().filter(|its| *its != backend) else { continue };
            match spec.elsewhere {
                Elsewhere::Ignored => self.ignored.push(element),
                Elsewhere::Refused => {
                    return Err(Failure::usage(format!(
                        "option `{}` is for {}, and means nothing to {}",
                        spec.name,
                        its.name(),
                        backend.name()
                    )));
                }
            }
        }
        if backend != BackendName::Tmpfs && self.atime == Atime::Strict {
            self.atime = Atime::Relative;
        }
        if backend == BackendName::Overlay {
            self.overlay.check()?;
            self.read_only |= self.overlay.has_no_upper();
        }
        Ok(self)
    }
}

fn bad_value(spec: &Spec, value: &[u8], expected: &str) -> Failure {
    let text = String::from_utf8_lossy(value);
    let cut = text
        .char_indices()
        .nth(VALUE_SHOWN_MAX)
        .map_or(String::new(), |(at, _)| format!("{}...", &text[..at]));
    let shown = if cut.is_empty() { &*text } else { &cut };
    Failure::usage(format!("option `{}={shown}`: expected {expected}", spec.name))
}

fn unknown_option(name: &[u8]) -> Failure {
    let name = String::from_utf8_lossy(name);
    let hint = nearest(&name).map(|near| format!("; the nearest known one is `{near}`")).unwrap_or_default();
    Failure::usage(format!("unknown option `{name}`{hint} (`splicefs --help` lists all)"))
}

/// The option that was probably meant. Three letters are near to too much: `uid` has nothing to do with `suid`.
fn nearest(name: &str) -> Option<&'static str> {
    let length = name.chars().count();
    let lower = name.to_lowercase();
    let useful = table::all().filter(|spec| spec.group.is_useful()).map(|spec| spec.name);
    let far = |known: &str| strsim::damerau_levenshtein(&lower, known);
    let known = useful.min_by_key(|known| far(known))?;
    (length > 3 && far(known) <= (length / 3).max(2)).then_some(known)
}

#[cfg(test)]
mod tests;
