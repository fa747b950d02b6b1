//! Acting for a caller: per-thread credentials, umask and capabilities.
//!
//! As root, what a caller creates must be the caller's, and the source file system must clear setuid and setgid bits
//! as it would for the caller. The calling thread takes the caller's file-system identity on (setfsuid(2)) for the
//! length of a guard. An unprivileged daemon has one identity and keeps it.

use std::cell::Cell;
use std::io::Read;
use std::marker::PhantomData;
use std::sync::OnceLock;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::process::umask;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::error::{Errno, Error, Result};
use crate::sys::proc::open_proc;

/// Who asks, as the request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Thread id in the daemon's pid namespace; 0 where it cannot be told.
    pub pid: u32,
    /// Permission bits that what is created must not have, until a default ACL says otherwise (umask(2)).
    pub umask: u32,
    /// Whether setuid and setgid bits survive what the caller changes (CAP_FSETID).
    pub fsetid: bool,
}

/// How much of the caller a thread becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum As {
    /// Creates as the caller: ownership, umask, setgid rules. The kernel has checked the permission to create, so the
    /// daemon's right to pass directories stays.
    Creator,
    /// As `Creator`, and takes from sticky directories only what the caller may take (without CAP_FOWNER).
    Remover,
    /// Is the caller in every way a file system asks about, with no capability unless the caller is root.
    Caller,
}

/// What the daemon can do about a caller's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The caller is the daemon's own user.
    Own,
    /// The daemon can take the caller's identity on, so that the source checks the caller.
    Assumable,
    /// The caller is another user, and the daemon stays who it is.
    Foreign,
}

/// What the daemon is by itself.
struct Own {
    /// Whether other identities can be taken on.
    switches: bool,
    caps: CapabilitySets,
    uid: Uid,
    gid: Gid,
    groups: Vec<rustix::process::Gid>,
}

fn own() -> Result<&'static Own> {
    static OWN: OnceLock<Own> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    // Quotas are to bind the callers, whatever the daemon may exceed (ignore_hardlimit in fs/quota/dquot.c).
    let mut caps = rustix::thread::capabilities(None)?;
    caps.effective -= CapabilitySet::SYS_RESOURCE;
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let uid = Uid::effective();
    let own = Own {
        switches: uid.is_root() && caps.effective.contains(needed),
        caps,
        uid,
        gid: Gid::effective(),
        groups: rustix::process::getgroups()?,
    };
    Ok(OWN.get_or_init(|| own))
}

thread_local! {
    /// Whether the thread has a umask of its own.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
    /// Whether the thread has failed to take its own identity back.
    static TAINTED: Cell<bool> = const { Cell::new(false) };
}

/// Gives the thread a umask of its own (unshare(2), CLONE_FS) and clears it.
fn separate_umask() -> Result<()> {
    if !OWN_UMASK.get() {
        #[allow(
            deprecated,
            reason = "CLONE_FS shares nothing whose separation is unsafe, unlike CLONE_FILES"
        )]
        rustix::thread::unshare(UnshareFlags::FS)?;
        umask(rustix::fs::Mode::empty());
        OWN_UMASK.set(true);
    }
    Ok(())
}

/// The thread acts for a caller until this is dropped.
#[derive(Debug)]
pub struct Guard {
    switched: bool,
    groups: bool,
    lowered: bool,
    masked: bool,
    /// A guard belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Guard {
    /// The thread stays as it is.
    #[must_use]
    pub const fn none() -> Self {
        Self { switched: false, groups: false, lowered: false, masked: false, _thread: PhantomData }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.masked {
            umask(rustix::fs::Mode::empty());
        }
        if !self.take_back() {
            TAINTED.set(true);
        }
    }
}

impl Guard {
    /// Makes the thread the daemon's own again. Capabilities first: the rest needs them.
    fn take_back(&self) -> bool {
        if !(self.switched || self.groups || self.lowered) {
            return true;
        }
        let Ok(own) = own() else { return false };
        let mut restored = rustix::thread::set_capabilities(None, own.caps).is_ok();
        if self.switched {
            setfsuid(own.uid);
            setfsgid(own.gid);
            restored &= fs_ids() == (own.uid, own.gid);
        }
        if self.groups {
            restored &= rustix::thread::set_thread_groups(&own.groups).is_ok();
        }
        // Leaving uid 0 behind and coming back changed the effective set by itself (capabilities(7)).
        restored && rustix::thread::set_capabilities(None, own.caps).is_ok()
    }
}

/// Whether the thread acts for another user than the daemon's.
///
/// # Errors
/// Those of learning what the daemon is.
pub fn acts_for_another() -> Result<bool> {
    Ok(fs_ids().0 != own()?.uid)
}

/// Whether the thread could not become itself again after acting for a caller. It must serve no one any more.
pub fn is_tainted() -> bool {
    TAINTED.get()
}

/// The thread's file-system ids: setfsuid(2) with an id that cannot be answers what they are.
fn fs_ids() -> (Uid, Gid) {
    (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)))
}

impl Caller {
    /// The daemon itself, with no umask.
    pub const DAEMON: Self = Self { uid: 0, gid: 0, pid: 0, umask: 0, fsetid: true };

    /// Acts for the caller until the guard is dropped. `needs_groups` says that it matters whether a group is among
    /// the caller's supplementary groups, which costs reading them from procfs.
    ///
    /// # Errors
    /// `EPERM` where the identity cannot be taken on; nothing has changed then.
    pub fn act(&self, how: As, needs_groups: bool) -> Result<Guard> {
        let own = own()?;
        separate_umask()?;
        let mut guard = Guard::none();
        umask(rustix::fs::Mode::from_bits_truncate(self.umask));
        guard.masked = true;
        if !own.switches || (self.uid == own.uid.as_raw() && self.gid == own.gid.as_raw()) {
            return Ok(guard);
        }
        if self.uid != own.uid.as_raw() && (needs_groups || how == As::Caller) {
            rustix::thread::set_thread_groups(&self.groups()?)?;
            guard.groups = true;
        }
        guard.switched = true;
        setfsgid(Gid::from_raw(self.gid));
        setfsuid(Uid::from_raw(self.uid));
        if fs_ids() != (Uid::from_raw(self.uid), Gid::from_raw(self.gid)) {
            return Err(Errno::EPERM.into());
        }
        if self.uid != own.uid.as_raw() {
            set_effective(
                own,
                match how {
                    As::Creator => own.caps.effective - CapabilitySet::FSETID,
                    As::Remover => own.caps.effective - CapabilitySet::FSETID - CapabilitySet::FOWNER,
                    As::Caller => CapabilitySet::empty(),
                },
            )?;
        }
        Ok(guard)
    }

    /// What the daemon can do about the caller's identity.
    ///
    /// # Errors
    /// Those of learning what the daemon is.
    pub fn standing(&self) -> Result<Standing> {
        let own = own()?;
        Ok(if self.uid == own.uid.as_raw() {
            Standing::Own
        } else if own.switches {
            Standing::Assumable
        } else {
            Standing::Foreign
        })
    }

    /// Acts for the caller with its ids and groups and no capability at all, until the guard is dropped: what the source then allows, the
    /// caller may do. What it refuses, a capability may still allow the caller. `None` where the daemon cannot have the caller's ids and
    /// groups, or cannot know them.
    ///
    /// # Errors
    /// As [`Caller::act`].
    pub fn act_without_capabilities(&self) -> Result<Option<Guard>> {
        let own = own()?;
        if self.pid == 0 {
            return Ok(None);
        }
        let groups = self.groups()?;
        if !own.switches {
            let sorted = |groups: &[rustix::process::Gid]| {
                let mut ids: Vec<_> = groups.iter().map(|group| group.as_raw()).collect();
                ids.sort_unstable();
                ids
            };
            let is_own = self.uid == own.uid.as_raw() && self.gid == own.gid.as_raw();
            if !is_own || sorted(&groups) != sorted(&own.groups) {
                return Ok(None);
            }
        }
        separate_umask()?;
        let mut guard = Guard::none();
        umask(rustix::fs::Mode::from_bits_truncate(self.umask));
        guard.masked = true;
        if own.switches {
            rustix::thread::set_thread_groups(&groups)?;
            guard.groups = true;
            guard.switched = true;
            setfsgid(Gid::from_raw(self.gid));
            setfsuid(Uid::from_raw(self.uid));
            if fs_ids() != (Uid::from_raw(self.uid), Gid::from_raw(self.gid)) {
                return Err(Errno::EPERM.into());
            }
        }
        set_effective(own, CapabilitySet::empty())?;
        guard.lowered = true;
        Ok(Some(guard))
    }

    /// Whether a capability makes the caller the owner of files of `uid` and `gid` (CAP_FOWNER), as far as procfs tells.
    pub fn owns_all(&self, uid: u32, gid: u32) -> bool {
        self.is_capable_over(CapabilitySet::FOWNER, uid, gid)
    }

    /// Whether a capability opens files of `uid` and `gid` to the caller whatever their modes (CAP_DAC_OVERRIDE), as far as procfs tells.
    pub fn overrides_modes_of(&self, uid: u32, gid: u32) -> bool {
        self.is_capable_over(CapabilitySet::DAC_OVERRIDE, uid, gid)
    }

    /// As `capable_wrt_inode_uidgid` in kernel/capability.c.
    fn is_capable_over(&self, needed: CapabilitySet, uid: u32, gid: u32) -> bool {
        if self.pid == 0 {
            // Root of another pid namespace.
            return self.uid == 0;
        }
        let capable = || -> Result<bool> {
            let status = read_proc(&format!("{}/status", self.pid))?;
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
            let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
            if effective & needed.bits() != needed.bits() {
                return Ok(false);
            }
            for (map, id) in [("uid_map", uid), ("gid_map", gid)] {
                let theirs = read_proc(&format!("{}/{map}", self.pid))?;
                if theirs != read_proc(&format!("self/{map}"))? && !maps_to(&theirs, id) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        capable().unwrap_or_else(|e| {
            log::debug!("the capabilities of process {} are not known: {e}", self.pid);
            false
        })
    }

    /// Acts as one for whom a change to a file with `mode` clears its setuid and setgid bits as the caller's own would,
    /// until the guard is dropped. A setgid bit without group execution stays for members of the group
    /// (`setattr_should_drop_sgid` in fs/attr.c), so for such a file the caller's groups are taken on as well.
    ///
    /// # Errors
    /// As [`Caller::act`].
    pub fn clearing(&self, mode: u32) -> Result<Guard> {
        if self.fsetid || !has_special_bits(mode) {
            return Ok(Guard::none());
        }
        if mode & 0o2010 == 0o2000 { self.act(As::Creator, true) } else { without_fsetid() }
    }

    /// Whether the caller is in group `gid`. Where that cannot be told, it is not.
    pub fn in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        match self.groups() {
            Ok(groups) => groups.iter().any(|group| group.as_raw() == gid),
            Err(e) => {
                log::debug!("{e}");
                false
            }
        }
    }

    /// The caller's supplementary groups, from procfs.
    fn groups(&self) -> Result<Vec<rustix::process::Gid>> {
        if self.pid == 0 {
            // A process of another pid namespace, of which procfs tells us nothing.
            return Ok(Vec::new());
        }
        let mut status = String::new();
        let path = format!("{}/status", self.pid);
        open_proc(&path).and_then(|fd| Ok(std::fs::File::from(fd).read_to_string(&mut status)?)).map_err(
            |e| Error::fault(Errno::EPERM, format!("reading the groups of process {}: {e}", self.pid)),
        )?;
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
        Ok(line
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .map(rustix::process::Gid::from_raw)
            .collect())
    }
}

fn read_proc(path: &str) -> Result<String> {
    let mut text = String::new();
    std::fs::File::from(open_proc(path)?).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a map of ids (user_namespaces(7)) has `id` outside.
fn maps_to(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1).map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(count))) = (words.next(), words.next()) else { return false };
        u64::from(id).checked_sub(first).is_some_and(|offset| offset < count)
    })
}

/// Whether a mode has a setuid or setgid bit.
pub fn has_special_bits(mode: u32) -> bool {
    mode & 0o6000 != 0
}

/// Gives up the right to keep setuid and setgid bits (CAP_FSETID) until the guard is dropped.
///
/// # Errors
/// Those of capset(2); nothing has changed then.
pub fn without_fsetid() -> Result<Guard> {
    let own = own()?;
    let mut guard = Guard::none();
    if own.caps.effective.contains(CapabilitySet::FSETID) {
        set_effective(own, own.caps.effective - CapabilitySet::FSETID)?;
        guard.lowered = true;
    }
    Ok(guard)
}

fn set_effective(own: &Own, effective: CapabilitySet) -> Result<()> {
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective, ..own.caps })?)
}

/// The inode number of the initial user namespace in procfs (`PROC_USER_INIT_INO` in include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether the process has CAP_SYS_ADMIN in the initial user namespace, as only there it counts for some things.
///
/// # Errors
/// Those of capget(2) and of procfs.
pub fn administers_the_machine() -> Result<bool> {
    let admin = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN);
    Ok(admin && in_initial_user_namespace()?)
}

/// Whether the process is in the initial user namespace, where all users are known.
///
/// # Errors
/// Those of looking at procfs.
pub fn in_initial_user_namespace() -> Result<bool> {
    static INITIAL: OnceLock<bool> = OnceLock::new();
    if let Some(initial) = INITIAL.get() {
        return Ok(*initial);
    }
    let initial = rustix::fs::fstat(open_proc("self/ns/user")?)?.st_ino == INITIAL_USER_NAMESPACE;
    Ok(*INITIAL.get_or_init(|| initial))
}

/// Whether the process may open files whatever their modes say (CAP_DAC_OVERRIDE).
///
/// # Errors
/// Those of capget(2).
pub fn overrides_permissions() -> Result<bool> {
    Ok(rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::DAC_OVERRIDE))
}

/// Whether the process may give files to others (CAP_CHOWN).
///
/// # Errors
/// Those of capget(2).
pub fn gives_files_away() -> Result<bool> {
    Ok(rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::CHOWN))
}

/// Makes the calling thread a worker: with a umask of its own, and without the right to exceed quotas.
///
/// # Errors
/// Those of unshare(2) and capset(2).
pub fn enter_worker() -> Result<()> {
    separate_umask()?;
    Ok(rustix::thread::set_capabilities(None, own()?.caps)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_guard_masks_and_its_drop_gives_everything_back() {
        let dir = tempfile::tempdir().unwrap();
        let caller = Caller {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            pid: 0,
            umask: 0o027,
            fsetid: true,
        };
        let before = fs_ids();
        {
            let _guard = caller.act(As::Creator, false).unwrap();
            std::fs::File::create(dir.path().join("masked")).unwrap();
        }
        std::fs::File::create(dir.path().join("plain")).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("masked")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(std::fs::metadata(dir.path().join("plain")).unwrap().mode() & 0o777, 0o666);
        assert_eq!(fs_ids(), before);
    }

    #[test]
    fn a_map_of_ids_has_those_outside_that_it_leads_to() {
        let map = "         0     100000      65536\n     70000       1000          1\n";
        assert!(maps_to(map, 100_000) && maps_to(map, 165_535) && maps_to(map, 1000));
        assert!(!maps_to(map, 0) && !maps_to(map, 165_536) && !maps_to(map, 1001) && !maps_to("", 0));
    }

    #[test]
    fn root_creates_as_the_caller_and_becomes_root_again() {
        if !own().unwrap().switches {
            eprintln!("not run: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let caller = Caller { uid: 1234, gid: 2345, pid: std::process::id(), umask: 0, fsetid: false };
        {
            let _guard = caller.act(As::Creator, true).unwrap();
            std::fs::File::create(dir.path().join("theirs")).unwrap();
        }
        {
            let _guard = caller.act(As::Caller, false).unwrap();
            let refused = std::fs::File::create(dir.path().join("refused")).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            assert!(rustix::thread::capabilities(None).unwrap().effective.is_empty());
        }
        assert!(!is_tainted());
        std::fs::File::create(dir.path().join("ours")).unwrap();
        let theirs = std::fs::metadata(dir.path().join("theirs")).unwrap();
        assert_eq!((theirs.uid(), theirs.gid()), (1234, 2345));
        let ours = std::fs::metadata(dir.path().join("ours")).unwrap();
        assert_eq!((ours.uid(), ours.gid()), (0, 0));
        assert_eq!(rustix::thread::capabilities(None).unwrap(), own().unwrap().caps);
    }
}
