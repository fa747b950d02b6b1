//! Reading the values of options. An error is the end of a sentence that begins with "expected".

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Group, User};
use splicefs_overlay::{CopyupOwner, Redirect, Xino};

use super::BackendName;
use crate::session::{Choice, Opens};
use crate::vfs::{Cache, FOR_EVER};

/// The kernel copies a mount's source name from at most a page (mm/util.c, `strndup_user` with PATH_MAX).
pub(crate) const FSNAME_MAX_BYTES: usize = 4095;
const SUBTYPE_MAX_BYTES: usize = 64;
/// More threads than this only cost memory: each has a pipe and a buffer of its own.
const THREADS_MAX: usize = 256;

type Value<T> = Result<T, String>;

/// `value` as text, for whoever looks for words and numbers in it.
pub(super) fn utf8(value: &OsStr) -> &str {
    // A text that is not UTF-8 is none of the words and numbers looked for, and "" is none either.
    value.to_str().unwrap_or_default()
}

pub(super) fn backend(value: &OsStr) -> Value<BackendName> {
    BackendName::ALL.into_iter().find(|backend| backend.name() == utf8(value)).ok_or_else(backends)
}

/// The names of all backends, as a sentence lists them.
pub(crate) fn backends() -> String {
    let names = BackendName::ALL.map(|backend| format!("`{}`", backend.name()));
    let [others @ .., last] = &names;
    format!("{} or {last}", others.join(", "))
}

pub(super) fn on_or_off(value: &OsStr) -> Value<bool> {
    match utf8(value) {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("`on` or `off`".to_owned()),
    }
}

pub(super) fn zero_or_one(value: &OsStr) -> Value<bool> {
    match utf8(value) {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("`0` or `1`".to_owned()),
    }
}

/// For what cannot be turned on, because of `reason`.
pub(super) fn only_off(value: &OsStr, reason: &str) -> Value<()> {
    if utf8(value) == "off" { Ok(()) } else { Err(format!("`off`: {reason}")) }
}

/// The kernel's `off` follows redirects unless its module parameter `redirect_always_follow` says otherwise.
pub(super) fn redirect(value: &OsStr) -> Value<Redirect> {
    match utf8(value) {
        "on" => Ok(Redirect::On),
        "copy" => Ok(Redirect::Copy),
        "follow" | "off" => Ok(Redirect::Follow),
        "nofollow" => Ok(Redirect::NoFollow),
        _ => Err("`on`, `copy`, `follow`, `nofollow` or `off`".to_owned()),
    }
}

pub(super) fn xino(value: &OsStr) -> Value<Xino> {
    match utf8(value) {
        "on" | "auto" => Ok(Xino::On),
        "off" => Ok(Xino::Off),
        _ => Err("`on`, `auto` or `off`".to_owned()),
    }
}

pub(super) fn copyup_owner(value: &OsStr) -> Value<CopyupOwner> {
    match utf8(value) {
        "keep" => Ok(CopyupOwner::Keep),
        "mounter" => Ok(CopyupOwner::Mounter),
        _ => Err("`keep` or `mounter`".to_owned()),
    }
}

pub(super) fn seconds(value: &OsStr) -> Value<Duration> {
    match utf8(value).parse::<f64>() {
        Ok(seconds) if (0.0..=FOR_EVER.as_secs_f64()).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("seconds, 0 or more, such as 1 or 0.5".to_owned()),
    }
}

pub(super) fn threads(value: &OsStr) -> Value<NonZeroUsize> {
    match utf8(value).parse::<NonZeroUsize>() {
        Ok(threads) if threads.get() <= THREADS_MAX => Ok(threads),
        _ => Err(format!("a whole number from 1 to {THREADS_MAX}")),
    }
}

pub(super) fn opens(value: &OsStr) -> Value<Opens> {
    match utf8(value) {
        "auto" => Ok(Opens::Auto),
        "zero" => Ok(Opens::Zero),
        "handle" => Ok(Opens::Handle),
        _ => Err("`auto`, `zero` or `handle`".to_owned()),
    }
}

pub(super) fn cache(value: &OsStr) -> Value<Cache> {
    match utf8(value) {
        "auto" => Ok(Cache::Auto),
        "always" => Ok(Cache::Always),
        "never" => Ok(Cache::Never),
        "notify" => Ok(Cache::Notify),
        _ => Err("`auto`, `always`, `never` or `notify`".to_owned()),
    }
}

pub(super) fn choice(value: &OsStr) -> Value<Choice> {
    match utf8(value) {
        "auto" => Ok(Choice::Auto),
        "on" => Ok(Choice::On),
        "off" => Ok(Choice::Off),
        _ => Err("`auto`, `on` or `off`".to_owned()),
    }
}

/// Bytes, or with the suffix K, M or G units of 1024, 1024² or 1024³ bytes.
pub(super) fn size(value: &OsStr) -> Value<usize> {
    let text = utf8(value);
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // `parse` takes a leading plus sign, a size has none.
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<usize>().ok()).flatten();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "a size in bytes, such as 4096, 64K or 1M".to_owned())
}

/// Permission bits with setuid, setgid and sticky bit, in octal.
pub(super) fn mode(value: &OsStr) -> Value<u32> {
    let text = utf8(value);
    let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o7777);
    mode.ok_or_else(|| "permission bits in octal, such as 1777 or 0755".to_owned())
}

pub(super) fn uid(value: &OsStr) -> Value<u32> {
    let named = |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
    id(value, named, "a user's number or name")
}

pub(super) fn gid(value: &OsStr) -> Value<u32> {
    let named = |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
    id(value, named, "a group's number or name")
}

/// A number, or what `named` finds under a name. The largest number means "none" to the kernel (chown(2)).
fn id(value: &OsStr, named: impl Fn(&str) -> nix::Result<Option<u32>>, expected: &str) -> Value<u32> {
    let text = utf8(value);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| expected.to_owned());
    }
    match named(text) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("{expected} that this machine knows")),
        Err(error) => Err(format!("{expected}, and looking up a name failed: {error}")),
    }
}

/// Says why huge pages are not the mount's to choose, and what is done here all the same.
pub(super) fn huge(value: &OsStr) -> Value<()> {
    match utf8(value) {
        "never" => Ok(()),
        _ => Err("`never`: the files lie in memory of the daemon, huge pages for which are the machine's to give (/sys/kernel/mm/transparent_hugepage/shmem_enabled)".to_owned()),
    }
}

/// The policies of tmpfs(5) (mm/mempolicy.c, `mpol_parse_str`) that are what the daemon does by itself. For the others
/// the error has the command that gives the whole daemon such a policy.
pub(super) fn memory_policy(value: &OsStr) -> Value<()> {
    let text = utf8(value);
    let (mode, nodes) = text.split_once(':').unwrap_or((text, ""));
    // After the name, a flag such as `=static`, which numactl(8) has no word for.
    let mode = mode.split_once('=').map_or(mode, |(mode, _flag)| mode);
    let (option, usual_nodes) = match (text, mode) {
        ("default" | "local", _) => return Ok(()),
        (_, "bind") => ("membind", "NODES"),
        (_, "prefer") => ("preferred", "NODE"),
        (_, "prefer (many)") => ("preferred-many", "NODES"),
        (_, "interleave") => ("interleave", "all"),
        (_, "weighted interleave") => ("weighted-interleave", "all"),
        _ => return Err("`default` or `local`".to_owned()),
    };
    let nodes = if nodes.is_empty() { usual_nodes } else { nodes };
    Err(format!(
        "`default` or `local`: the memory is the daemon's, so start it as `numactl --{option}={nodes} splicefs tmpfs ...`"
    ))
}

pub(super) fn fsname(value: &OsStr) -> Value<OsString> {
    if is_fsname(value) {
        return Ok(value.to_owned());
    }
    Err(format!("a name of 1 to {FSNAME_MAX_BYTES} bytes without newline"))
}

/// Whether `name` may stand as the source of a mount: the readers of /etc/mtab split at newlines, C strings at NUL.
pub(crate) fn is_fsname(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    (1..=FSNAME_MAX_BYTES).contains(&bytes.len()) && !bytes.iter().any(|b| matches!(b, 0 | b'\n'))
}

pub(super) fn subtype(value: &OsStr) -> Value<String> {
    let text = utf8(value);
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    let good = text.len() == value.len() && text.len() <= SUBTYPE_MAX_BYTES && text.bytes().all(safe);
    if good && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err(format!(
        "at most {SUBTYPE_MAX_BYTES} letters, digits, `.`, `_`, `-` or `+`, or nothing for the plain type fuse"
    ))
}

pub(super) fn path(value: &OsStr) -> Value<PathBuf> {
    if value.is_empty() {
        return Err("a file to append the log to".to_owned());
    }
    Ok(Path::new(value).to_owned())
}
