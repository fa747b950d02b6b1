//! What the host must allow and this mount would use: found out before, where failing leaves no mount behind.

use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use splicefs_core::sys::creds;
use splicefs_core::{Backend, Ownership};
use std::os::fd::AsFd;

use super::SessionConfig;
use crate::reply::probe;
use crate::vfs::{Cache, Caching, Facilities, Facility, Kernel};

/// Whether something is used that the host must allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Where the host allows it.
    Auto,
    /// Always; mounting fails where the host does not allow it.
    On,
    /// Never.
    Off,
}

impl Choice {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// What comes of the choice, where `found` says what the host allows.
    fn facility(
        self,
        option: &str,
        found: impl FnOnce() -> Result<&'static str, String>,
    ) -> io::Result<Facility> {
        let state = |serving, why: String| Facility { mode: self.name().to_owned(), serving, why };
        if self == Self::Off {
            return Ok(state(false, "turned off".to_owned()));
        }
        match found() {
            Ok(why) => Ok(state(true, why.to_owned())),
            Err(why) if self == Self::On => {
                Err(io::Error::other(format!("{option}=on cannot be had here: {why}")))
            }
            Err(why) => Ok(state(false, why)),
        }
    }
}

/// Whether the kernel asks to open each file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opens {
    /// As is safest: each time.
    Auto,
    /// Never: files are used without being opened (zero-message opens).
    Zero,
    /// Each time.
    Handle,
}

/// What of all that is used for backend `B`.
///
/// # Errors
/// Where what must be cannot be.
pub(super) fn of<B: Backend>(config: &SessionConfig) -> io::Result<Facilities> {
    let splice = splice(config.splice)?;
    let unopened = unopened::<B>(config)?;
    let passthrough = passthrough::<B>(config, unopened.serving)?;
    let writeback = writeback::<B>(config, &passthrough, &unopened)?;
    Ok(Facilities { splice, passthrough, unopened, writeback })
}

/// Whether files of backend `B` are used without being opened, and why. Unasked that is done where the kernel does not serve files by
/// itself, and where what an open would have refused can be told later, if at all.
fn unopened<B: Backend>(config: &SessionConfig) -> io::Result<Facility> {
    let state = |mode: &str, serving, why: String| Facility { mode: mode.to_owned(), serving, why };
    let excluded = must_be_opened::<B>(config)?;
    Ok(match (config.opens, excluded) {
        (Opens::Handle, _) => state("handle", false, "turned off".to_owned()),
        (Opens::Zero, Some(why)) => {
            return Err(io::Error::other(format!("open=zero cannot be had here: {why}")));
        }
        (Opens::Zero, None) => state("zero", true, "asked for".to_owned()),
        (Opens::Auto, Some(why)) => state("auto", false, why),
        (Opens::Auto, None) => match better_opened::<B>(config)? {
            Some(why) => state("auto", false, why.to_owned()),
            None if config.writable => state("auto", true, "nobody else changes the files".to_owned()),
            None => state("auto", true, "nothing can be written".to_owned()),
        },
    })
}

/// Why files that need not be opened each time had better be.
fn better_opened<B: Backend>(config: &SessionConfig) -> io::Result<Option<&'static str>> {
    let known = |found: splicefs_core::Result<bool>| found.map_err(|e| io::Error::other(e.to_string()));
    Ok(if passthrough::<B>(config, false)?.serving {
        Some("the kernel serves files by itself (passthrough)")
    } else if !known(creds::in_initial_user_namespace())? {
        Some("in a user namespace the kernel may allow what the daemon may not")
    } else if config.writable && known(creds::administers_the_machine())? {
        // Root makes files immutable, or such that they only grow, and is to be told of it by open(2).
        Some("open=zero does it")
    } else {
        None
    })
}

/// Why files of backend `B` have to be opened each time. With `passthrough=on` the kernel is to serve files by itself, which it
/// can do with what it opens alone; with `allow_root` each open is refused to others.
fn must_be_opened<B: Backend>(config: &SessionConfig) -> io::Result<Option<String>> {
    let overrides = creds::overrides_permissions().map_err(|e| io::Error::other(e.to_string()))?;
    let why = if B::HEARS_OPENS {
        "the backend must hear when a file is opened and closed"
    } else if config.passthrough == Choice::On {
        "passthrough=on excludes it"
    } else if config.allow_root {
        "allow_root is checked at each open"
    } else if !overrides && config.allow_other {
        "without CAP_DAC_OVERRIDE others may read files that the daemon may not"
    } else {
        return Ok(config.must_be_opened.clone());
    };
    Ok(Some(why.to_owned()))
}

/// What the kernel keeps, and why; `caching` is corrected where the kernel cannot do what it says.
pub(super) fn cache<B: Backend>(
    mode: Cache,
    caching: &mut Caching,
    maps_direct: bool,
    can_hear: impl FnOnce() -> Result<(), String>,
) -> Facility {
    caching.direct &= maps_direct;
    let (mode, serving, why) = match mode {
        _ if B::OWNERSHIP == Ownership::Exclusive => ("auto", true, "nobody else changes the files"),
        Cache::Auto => {
            ("auto", false, "others may change the source: a second is trusted, or until a file is opened")
        }
        Cache::Always => ("always", true, "it was said that nobody else changes the source"),
        Cache::Never if maps_direct => ("never", false, "every read is asked for"),
        Cache::Never => {
            ("never", false, "data is checked at every read: mapped files need a page cache before Linux 6.6")
        }
        Cache::Notify => {
            let heard = can_hear();
            if let Err(why) = &heard {
                log::warn!("cache=notify: the source is trusted for a second: {why}");
                *caching = caching.deaf();
            }
            let serving = heard.is_ok();
            let why =
                heard.err().unwrap_or_else(|| "changes of the source are heard of by inotify".to_owned());
            return Facility { mode: "notify".to_owned(), serving, why };
        }
    };
    Facility { mode: mode.to_owned(), serving, why: why.to_owned() }
}

/// Whether changes can be heard of, and the kernel told of them.
pub(super) fn can_hear(backend: &impl Backend, kernel: &impl Kernel) -> Result<(), String> {
    backend.listener().map_err(|e| format!("there is no inotify instance to be had: {e}"))?;
    // Nothing is known yet: whether the kernel understands is all that this asks.
    kernel
        .all_names_changed()
        .map_err(|e| format!("the kernel cannot drop all names at once (Linux 6.16 can): {e}"))
}

/// Whether to splice, and why.
fn splice(choice: Choice) -> io::Result<Facility> {
    let facility = choice.facility("splice", || probe().map(|()| "splice(2) works here"))?;
    if choice == Choice::Auto && !facility.serving {
        log::warn!("reads are copied: {}", facility.why);
    }
    Ok(facility)
}

/// Whether to have the kernel serve files by itself, as far as that can be known before it is asked. It does not serve what is
/// used `unopened`.
fn passthrough<B: Backend>(config: &SessionConfig, unopened: bool) -> io::Result<Facility> {
    config.passthrough.facility("passthrough", || {
        if unopened {
            return Err("files are used without being opened".to_owned());
        }
        if config.writeback == Choice::On {
            return Err("writeback=on excludes it".to_owned());
        }
        if !B::HAS_BACKING {
            return Err("this backend must hear of every write, to count what files take".to_owned());
        }
        match creds::administers_the_machine() {
            Ok(true) => Ok("the kernel serves files by itself"),
            Ok(false) => Err("it takes CAP_SYS_ADMIN in the initial user namespace".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    })
}

/// Whether to have the kernel keep what is written and write it back later. Where it serves files by itself there is nothing to
/// gain, and it does not do both.
fn writeback<B: Backend>(
    config: &SessionConfig,
    passthrough: &Facility,
    unopened: &Facility,
) -> io::Result<Facility> {
    config.writeback.facility("writeback", || {
        let why = if B::OWNERSHIP == Ownership::Shared {
            "others use the directory, too, and see what is written at once"
        } else if passthrough.serving {
            "the kernel serves files by itself (passthrough)"
        } else if config.writeback == Choice::Auto && !config.writable {
            "nothing can be written"
        } else if config.allow_root {
            "the kernel tells times as whoever closes a file, whom allow_root refuses"
        } else if config.writeback == Choice::Auto
            && unopened.serving
            && creds::administers_the_machine().map_err(|e| e.to_string())?
        {
            "what may not be written (`chattr +i`, `+a`) would be told when a file is closed, and not before"
        } else if config.writeback == Choice::Auto && !B::HAS_BACKING {
            "this backend counts what files take, and says at once when there is no room"
        } else {
            // Known from now on, whatever comes to lie over /proc.
            creds::in_initial_user_namespace().map_err(|e| e.to_string())?;
            return Ok("the kernel writes files back later, many writes at once");
        };
        Err(why.to_owned())
    })
}

/// The facility of passthrough once it is negotiated: the kernel is shown a file.
pub(super) fn probed_passthrough(facility: Facility, kernel: &impl Kernel) -> io::Result<Facility> {
    if !facility.serving {
        return Ok(facility);
    }
    let file = memfd_create("splicefs-probe", MemfdFlags::CLOEXEC)?;
    let taken = kernel.open_backing(file.as_fd()).and_then(|id| kernel.close_backing(id));
    let Err(e) = taken else { return Ok(facility) };
    let why = format!("the kernel does not take files to serve by itself: {e}");
    if facility.mode == Choice::On.name() {
        return Err(io::Error::other(format!("passthrough=on cannot be had here: {why}")));
    }
    Ok(Facility { serving: false, why, ..facility })
}
