//! Mounting and unmounting: by mount(2) where the process may, else through fusermount3.
//!
//! Nothing here looks a path up inside a mount this process serves before it is served: such a request would wait for
//! itself.

mod dead;
mod detached;
mod device;
mod fusermount;
pub mod keeper;
pub mod mountinfo;
pub mod preflight;
pub mod readahead;
mod request;
mod unmount;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use crate::failure::Failure;
pub(crate) use dead::{is_from_dead_mount, mount_around as dead_mount_around};
use detached::Detached;
use keeper::Keeper;
pub use request::Request;
pub use unmount::{How, Trouble, unmount, unmount_command};

/// Where a mount of ours is, and how to tell it from another one at the same place.
#[derive(Clone, Debug)]
pub struct MountPoint {
    path: PathBuf,
    /// The mount's own line of /proc/self/mountinfo, when that could be read.
    entry: Option<mountinfo::Entry>,
    /// Its number that no other mount ever has, where the kernel tells (since Linux 6.8).
    unique: Option<u64>,
}

/// The number of what is mounted on `path` that no other mount ever has (statx(2)). Nobody is asked for attributes.
fn unique_id(path: &Path) -> Option<u64> {
    let wanted = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    let st = statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    (st.stx_mask & libc::STATX_MNT_ID_UNIQUE != 0).then_some(st.stx_mnt_id)
}

impl MountPoint {
    /// Finds what was just mounted on `path`.
    fn just_mounted(path: &Path) -> Self {
        let entry = match mountinfo::read() {
            Ok(entries) => mountinfo::top_at(&entries, path).filter(|entry| entry.is_fuse()).cloned(),
            Err(error) => {
                log::warn!("cannot read the mount table: {error}");
                None
            }
        };
        let unique = entry.as_ref().and_then(|_| unique_id(path));
        Self { path: path.to_owned(), entry, unique }
    }

    /// The directory mounted on, as it was called then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mount's device number as `MAJOR:MINOR`, read from the mount table and so without asking the mount.
    pub fn device(&self) -> Option<String> {
        self.entry.as_ref().map(|entry| entry.device.clone())
    }

    /// The directory mounted on, as it is called now: a directory above it may have been renamed.
    pub fn current_path(&self) -> PathBuf {
        match self.state() {
            State::Stands(path) | State::Covered(path) => path,
            State::Gone => self.path.clone(),
        }
    }

    /// What is at the mount point now.
    fn state(&self) -> State {
        match (&self.entry, mountinfo::read()) {
            (Some(ours), Ok(entries)) => state_in(ours, &entries),
            // The table cannot tell: what is done next finds out.
            _ => State::Stands(self.path.clone()),
        }
    }

    /// Unmounts this mount, and no other: what somebody has mounted over it or after it is left alone.
    ///
    /// # Errors
    /// [`Trouble::NotMounted`] when it is gone already, [`Trouble::Busy`] when it is in use and `how` is not lazy.
    pub fn unmount(&self, how: How) -> Result<(), Trouble> {
        match self.state() {
            State::Gone => Err(Trouble::NotMounted),
            State::Covered(_) => Err(Trouble::Covered),
            State::Stands(path) => unmount(&path, how),
        }
    }

    /// Whether it is another mount that stands on `path`, though with the same numbers, which the kernel gives out again at once.
    fn is_another(&self, path: &Path) -> bool {
        self.unique.zip(unique_id(path)).is_some_and(|(ours, now)| ours != now)
    }

    /// Unmounts this mount after the end of its daemon. By then it may be gone, and a new one may stand in its place: so only a
    /// dead one is touched, and not another's where the kernel tells them apart.
    ///
    /// # Errors
    /// [`Trouble::NotMounted`] when it is gone, or what stands there is alive.
    pub fn unmount_dead(&self) -> Result<(), Trouble> {
        for wait in DEATH_WAITS_MS {
            match self.state() {
                State::Gone => return Err(Trouble::NotMounted),
                State::Covered(_) => return Err(Trouble::Covered),
                State::Stands(path) if self.is_another(&path) => return Err(Trouble::NotMounted),
                State::Stands(path) if is_dead(&path) => return unmount(&path, How::Lazily),
                State::Stands(_) => thread::sleep(Duration::from_millis(wait)),
            }
        }
        Err(Trouble::NotMounted)
    }
}

/// A dying process closes its descriptors one by one, the device perhaps last: look again after these times.
const DEATH_WAITS_MS: [u64; 5] = [10, 40, 200, 750, 0];
/// A file system that answers statfs later than this is not dead, only slow.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Whether the mount on `path` has lost its daemon. statfs always asks; stat may be answered from a cache. A thread
/// asks, so that a daemon that hangs makes nobody else hang.
fn is_dead(path: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    let ask = move || {
        // The receiver may have lost patience.
        tell.send(rustix::fs::statfs(&path).err()).unwrap_or_default();
    };
    if let Err(error) = thread::Builder::new().name("ask".to_owned()).spawn(ask) {
        log::warn!("cannot start a thread: {error}");
        return false;
    }
    let dead = [Some(Errno::NOTCONN), Some(Errno::CONNABORTED)];
    told.recv_timeout(ANSWER_PATIENCE).is_ok_and(|error| dead.contains(&error))
}

/// The paths are where the mount is now.
#[derive(PartialEq, Eq, Debug)]
enum State {
    Stands(PathBuf),
    /// Another mount lies on top of ours.
    Covered(PathBuf),
    Gone,
}

fn state_in(ours: &mountinfo::Entry, entries: &[mountinfo::Entry]) -> State {
    let Some(now) = entries.iter().find(|entry| ours.is_same_mount(entry)) else { return State::Gone };
    let path = now.mount_point.clone();
    match mountinfo::top_at(entries, &path) {
        Some(top) if !ours.is_same_mount(top) => State::Covered(path),
        _ => State::Stands(path),
    }
}

/// A mount of ours. Dropping it unmounts what still stands, so that neither a start that fails halfway nor an aborted
/// connection leaves a dead mount behind.
#[derive(Debug)]
pub struct Mounted {
    point: MountPoint,
    /// Whether the session has ended by itself.
    ended: bool,
    /// Open for as long as the daemon lives (`auto_unmount`).
    #[allow(dead_code, reason = "what counts is when it closes")]
    keeper: Option<Keeper>,
}

impl Mounted {
    /// Takes charge of what was just mounted on `path`.
    fn new(path: &Path) -> Self {
        Self { point: MountPoint::just_mounted(path), ended: false, keeper: None }
    }

    /// The session has ended: mostly because of an unmount, perhaps because the connection was aborted, and then the
    /// mount still stands and is unmounted now.
    pub fn session_ended(mut self) {
        self.ended = true;
    }

    /// Where the mount is.
    pub fn point(&self) -> &MountPoint {
        &self.point
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let result = if self.ended { self.point.unmount_dead() } else { self.point.unmount(How::Lazily) };
        match result {
            Ok(()) => log::info!("unmounted {}, which still stood", self.point.path().display()),
            Err(Trouble::NotMounted) => {}
            Err(trouble) => log::error!("{}", trouble.describe(&self.point.current_path())),
        }
    }
}

/// Mounts as `request` says.
///
/// # Errors
/// One line that says what to do. Nothing stays mounted then.
pub fn mount(request: &Request) -> Result<Mount, Failure> {
    let keeper = if request.auto_unmount() { Some(Keeper::start()?) } else { None };
    let mount = device::mount(request)?;
    Ok(Mount { keeper, ..mount })
}

/// What mounting gives: the descriptor requests are read from, and the mount.
#[derive(Debug)]
pub struct Mount {
    /// /dev/fuse, bound to the mount.
    device: OwnedFd,
    stage: Stage,
    keeper: Option<Keeper>,
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// It is nowhere yet.
    Detached(Detached),
    Mounted(Mounted),
}

impl Mount {
    fn new(device: OwnedFd, stage: Stage) -> Self {
        Self { device, stage, keeper: None }
    }

    /// Has `serve` serve the mount, and mounts it, if that is still to be done. `name_root` says to what serves it whether the
    /// root is reached by its name. Unmounts when dropped.
    ///
    /// # Errors
    /// Those of `serve`, and one line that says why it cannot be mounted. Nothing stays mounted then.
    pub fn serve<S>(
        self,
        request: &Request,
        serve: impl FnOnce(OwnedFd) -> Result<S, Failure>,
        name_root: impl Fn(&S, bool),
    ) -> Result<(S, Mounted), Failure> {
        let Self { device, stage, keeper } = self;
        let session = serve(device)?;
        let mut mounted = match stage {
            Stage::Mounted(mounted) => mounted,
            Stage::Detached(detached) => detached.attach(request, |named| name_root(&session, named))?,
        };
        if let Some(mut keeper) = keeper {
            keeper.watch(mounted.point())?;
            mounted.keeper = Some(keeper);
        }
        Ok((session, mounted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_where_it_is_now() {
        let table = |text: &[u8]| mountinfo::parse(text);
        let before = table(b"36 27 0:40 / /par/mnt rw - fuse.splicefs /src rw\n");
        let state = |text: &[u8]| state_in(&before[0], &table(text));
        assert_eq!(state(b""), State::Gone);
        assert_eq!(state(b"36 27 0:41 / /par/mnt rw - fuse.splicefs /src rw\n"), State::Gone);
        let renamed = b"36 27 0:40 / /par2/mnt rw - fuse.splicefs /src rw\n";
        assert_eq!(state(renamed), State::Stands("/par2/mnt".into()));
        let covered = [&renamed[..], b"37 36 0:42 / /par2/mnt rw - tmpfs x rw\n"].concat();
        assert_eq!(state(&covered), State::Covered("/par2/mnt".into()));
    }
}
