//! The directories of an overlay: found, checked against each other, and held for as long as they are served.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Statx, StatxFlags, flock, openat, statx};
use rustix::io::Errno;

use super::in_use::{self, Identity};
use crate::failure::Failure;
use crate::mount::mountinfo;
use crate::mount::preflight::{check_writable, find_directory};
use crate::options::{LowerDir, OverlayOptions};

/// A daemon ends a moment after its mount is gone, and lets go of its directories only then: a new mount of the same
/// waits so long for it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// The directories that are merged, absolute and without symbolic links.
#[derive(Debug)]
pub(super) struct Layers {
    /// The topmost first.
    pub(super) lowers: Vec<LowerDir>,
    pub(super) changes: Option<Changes>,
}

/// The directories that take changes.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    #[allow(
        dead_code,
        reason = "what counts is when they close: no other mount of ours has these directories before"
    )]
    locks: [OwnedFd; 2],
}

impl Layers {
    /// Every directory whose names are shown.
    pub(super) fn shown(&self) -> Vec<&Path> {
        let lowers = self.lowers.iter().filter(|lower| !lower.data_only).map(|lower| &*lower.path);
        self.changes.iter().map(|changes| &*changes.upper).chain(lowers).collect()
    }
}

impl Layers {
    /// Why files of these directories may have to be opened each time: as those of procfs, on a file system that is not known to
    /// have true sizes, one of the directories' own or mounted inside one; or to tell how writing ended when they are closed.
    ///
    /// # Errors
    /// When the table of mounts or a file system cannot be read.
    pub(super) fn must_be_opened(&self) -> std::io::Result<Option<String>> {
        let lowers = self.lowers.iter().map(|lower| &*lower.path);
        let all: Vec<&Path> = self.changes.iter().map(|changes| &*changes.upper).chain(lowers).collect();
        for path in &all {
            if !splicefs_passthrough::sizes_are_true(path)? {
                return Ok(Some(format!(
                    "{} is on a file system whose sizes may not be true",
                    path.display()
                )));
            }
        }
        if let Some(Changes { upper, .. }) = &self.changes
            && splicefs_passthrough::tells_late(upper)?
        {
            let place = upper.display();
            return Ok(Some(format!("{place} is on a file system that tells at close(2) how writing ended")));
        }
        let is_inside = |mount: &Path| all.iter().any(|layer| mount != *layer && mount.starts_with(layer));
        let mut mounts = mountinfo::read()?.into_iter().map(|entry| entry.mount_point);
        let inside = mounts.find(|mount| is_inside(mount));
        Ok(inside.map(|mount| format!("{} is mounted inside a layer", mount.display())))
    }
}

/// Finds and checks the directories that `options` name; relative paths are relative to the directory of this process.
///
/// # Errors
/// One line that names the directory as it was given.
pub(super) fn find(options: &OverlayOptions) -> Result<Layers, Failure> {
    let lowers = options.lowers.iter().map(|lower| Directory::find(LOWER, &lower.path));
    let mut all = lowers.collect::<Result<Vec<_>, _>>()?;
    if let (Some(upper), Some(work)) = (&options.upper, &options.work) {
        all.push(Directory::find_writable("upperdir", upper)?);
        all.push(Directory::find_writable("workdir", work)?);
    }
    check_apart(&all)?;
    let above = all.split_off(options.lowers.len());
    let data_only = options.lowers.iter().map(|lower| lower.data_only);
    let lowers = all.into_iter().zip(data_only);
    Ok(Layers {
        lowers: lowers.map(|(found, data_only)| LowerDir { path: found.path, data_only }).collect(),
        changes: <[Directory<'_>; 2]>::try_from(above).ok().map(Changes::hold).transpose()?,
    })
}

impl Changes {
    fn hold([upper, work]: [Directory<'_>; 2]) -> Result<Self, Failure> {
        if upper.mount != work.mount || upper.chain[0].0 != work.chain[0].0 {
            return Err(Failure::new(format!(
                "{upper} and {work} must lie on the same mount of the same file system"
            )));
        }
        let locks = [upper.lock()?, work.lock()?];
        Ok(Self { upper: upper.path, work: work.path, locks })
    }
}

/// The option that names lower layers.
const LOWER: &str = "lowerdir";

/// A directory, found.
struct Directory<'a> {
    what: &'static str,
    given: &'a Path,
    path: PathBuf,
    /// The mount it lies on.
    mount: u64,
    /// Whose it is.
    owner: u32,
    /// The directory, and those above it on the same file system.
    chain: Vec<Identity>,
}

impl std::fmt::Display for Directory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.what, self.given.display())
    }
}

impl<'a> Directory<'a> {
    fn find(what: &'static str, given: &'a Path) -> Result<Self, Failure> {
        let path = find_directory(what, given)?;
        let cannot = |error: Errno| Failure::new(format!("cannot use {what} {}: {error}", given.display()));
        let fd = open_path(CWD, &path).map_err(cannot)?;
        let st = look(&fd).map_err(cannot)?;
        let chain = chain(fd, identity(&st));
        Ok(Self { what, given, path, mount: st.stx_mnt_id, owner: st.stx_uid, chain })
    }

    fn find_writable(what: &'static str, given: &'a Path) -> Result<Self, Failure> {
        let found = Self::find(what, given)?;
        check_writable(what, given, &found.path)?;
        Ok(found)
    }

    /// Keeps other mounts of ours from the directory until the descriptor is closed. A stranger's lock is passed over: then the lock is
    /// shared with it, which is enough to be seen by other mounts of ours.
    fn lock(&self) -> Result<OwnedFd, Failure> {
        let cannot = |error: Errno| Failure::new(format!("cannot open {self}: {error}"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, &self.path, flags, Mode::empty()).map_err(cannot)?;
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(fd),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                    if in_use::users(self.chain[0], self.owner).is_some_and(|users| users.is_empty()) {
                        log::info!(
                            "{self} is locked by a process that may not change it, which does not matter"
                        );
                        return self.share_lock(fd);
                    }
                    thread::sleep(LOCK_WAIT);
                }
                Err(Errno::WOULDBLOCK) => return Err(self.in_use()),
                Err(error) => {
                    log::warn!("nothing keeps other mounts from {self}: it cannot be locked: {error}");
                    return Ok(fd);
                }
            }
        }
    }
}

impl Directory<'_> {
    /// Shares a stranger's lock, if it can be shared, so that the next mount of ours sees that there is one.
    fn share_lock(&self, fd: OwnedFd) -> Result<OwnedFd, Failure> {
        if flock(&fd, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(fd);
        }
        let own = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        let users = in_use::users(self.chain[0], self.owner).unwrap_or_default();
        if users.iter().any(|user| *user != own) { Err(self.in_use()) } else { Ok(fd) }
    }

    fn in_use(&self) -> Failure {
        let users = in_use::users(self.chain[0], self.owner).unwrap_or_default();
        let by = match users.first() {
            Some(daemon) => in_use::explain(*daemon),
            None => "unmount that one first, or take other directories".to_owned(),
        };
        Failure::new(format!("{self} is in use by another splicefs mount: {by}"))
    }
}

/// Refuses directories of which one is another or lies inside it: changes would then change a layer below. What takes the
/// changes may lie inside a lower layer (an overlay of `/` has no other place for it): there it cannot be entered through
/// the mount. All as in the kernel (`ovl_check_layer` in fs/overlayfs/super.c).
fn check_apart(all: &[Directory<'_>]) -> Result<(), Failure> {
    let mut roots: HashMap<Identity, &Directory<'_>> = HashMap::new();
    for directory in all {
        if let Some(other) = roots.insert(directory.chain[0], directory) {
            return Err(Failure::new(format!(
                "{other} and {directory} are the same directory: each layer must have its own"
            )));
        }
    }
    for directory in all {
        let takes_changes = directory.what != LOWER;
        let mut around = directory.chain[1..].iter().filter_map(|above| roots.get(above));
        if let Some(around) = around.find(|around| !(takes_changes && around.what == LOWER)) {
            return Err(Failure::new(format!(
                "{directory} lies inside {around}: layers must not contain each other"
            )));
        }
    }
    Ok(())
}

/// `own`, the identity of `directory`, and those of the directories above it on the same file system, as far as they can
/// be seen.
fn chain(mut directory: OwnedFd, own: Identity) -> Vec<Identity> {
    let mut chain = vec![own];
    let above = |directory: &OwnedFd| {
        let parent = open_path(directory, Path::new("..")).ok()?;
        let identity = identity(&look(&parent).ok()?);
        Some((parent, identity))
    };
    // At the root, `..` leads to the root.
    while let Some((parent, identity)) = above(&directory).filter(|(_, identity)| !chain.contains(identity)) {
        if identity.0 != own.0 {
            break;
        }
        chain.push(identity);
        directory = parent;
    }
    chain
}

fn open_path(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn look(fd: &OwnedFd) -> rustix::io::Result<Statx> {
    statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

fn identity(st: &Statx) -> Identity {
    (rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor), st.stx_ino)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::options::{BackendName, Options, Unknown};

    fn line(list: &str) -> Result<Layers, String> {
        let options = Options::parse(&[list], Unknown::Refuse)
            .and_then(|options| options.for_backend(BackendName::Overlay))
            .expect("good options");
        find(&options.overlay).map_err(|failure| failure.to_string())
    }

    /// A directory with `a`, `a/in`, `b`, `u`, `u/in`, `w`, `link` (to `a`) and the file `file`; its path.
    fn place() -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().canonicalize().expect("exists");
        for name in ["a/in", "b", "u/in", "w/in"] {
            fs::create_dir_all(path.join(name)).expect("mkdir");
        }
        fs::write(path.join("file"), "").expect("write");
        symlink("a", path.join("link")).expect("symlink");
        let text = path.to_str().expect("UTF-8").to_owned();
        (folder, text)
    }

    #[test]
    fn each_mistake_has_its_line_with_the_path_as_given() {
        let (_folder, p) = place();
        let cases = [
            (format!("lowerdir={p}/none:{p}/a"), "lowerdir PLACE/none does not exist"),
            (format!("lowerdir={p}/a:{p}/file"), "lowerdir PLACE/file is not a directory"),
            (format!("lowerdir={p}/a,upperdir={p}/x,workdir={p}/w"), "upperdir PLACE/x does not exist"),
            (
                format!("lowerdir={p}/a,upperdir={p}/u,workdir={p}/file"),
                "workdir PLACE/file is not a directory",
            ),
            (
                format!("lowerdir={p}/a:{p}/b:{p}/link"),
                "lowerdir PLACE/a and lowerdir PLACE/link are the same directory: each layer must have its own",
            ),
            (
                format!("lowerdir={p}/a,upperdir={p}/a,workdir={p}/w"),
                "lowerdir PLACE/a and upperdir PLACE/a are the same",
            ),
            (
                format!("lowerdir={p}/a,upperdir={p}/u,workdir={p}/u"),
                "upperdir PLACE/u and workdir PLACE/u are the same",
            ),
            (
                format!("lowerdir={p}/a,upperdir={p}/u,workdir={p}/u/in"),
                "workdir PLACE/u/in lies inside upperdir PLACE/u: layers must not contain each other",
            ),
            (
                format!("lowerdir={p}/a,upperdir={p}/w/in,workdir={p}/w"),
                "upperdir PLACE/w/in lies inside workdir PLACE/w",
            ),
            (
                format!("lowerdir={p}/u/in,upperdir={p}/u,workdir={p}/w"),
                "lowerdir PLACE/u/in lies inside upperdir PLACE/u",
            ),
            (format!("lowerdir={p}/a:{p}/a/in"), "lowerdir PLACE/a/in lies inside lowerdir PLACE/a"),
            (format!("lowerdir={p}:{p}/a"), "lowerdir PLACE/a lies inside lowerdir PLACE:"),
        ];
        for (list, expected) in cases {
            let said = line(&list).expect_err(&list).replace(&p, "PLACE");
            assert!(said.starts_with(expected), "{list}: {said}");
        }
    }

    #[test]
    fn what_is_good_is_absolute_and_complete() {
        let (_folder, p) = place();
        let layers = line(&format!("lowerdir={p}/link/../a:{p}/b::{p}/u/in")).expect("good layers");
        let lower = |name: &str, data_only| LowerDir { path: format!("{p}/{name}").into(), data_only };
        assert_eq!(layers.lowers, [lower("a", false), lower("b", false), lower("u/in", true)]);
        assert!(layers.changes.is_none());
        assert_eq!(layers.shown(), [Path::new(&format!("{p}/a")), Path::new(&format!("{p}/b"))]);
    }

    #[test]
    fn what_takes_the_changes_may_lie_in_a_lower_layer() {
        let (_folder, p) = place();
        line(&format!("lowerdir={p},upperdir={p}/u,workdir={p}/w")).expect("as the kernel has it");
    }

    #[test]
    fn directories_for_changes_have_one_user() {
        let (_folder, p) = place();
        let of = |upper: &str, work: &str| {
            line(&format!("lowerdir={p}/a,upperdir={p}/{upper},workdir={p}/{work}"))
        };
        let first = of("u", "w").expect("free");
        assert_eq!(first.shown()[0], Path::new(&format!("{p}/u")));
        for (upper, work, named) in [("u", "w", "upperdir"), ("u", "b", "upperdir"), ("b", "w", "workdir")] {
            let said = of(upper, work).expect_err("in use");
            assert!(said.starts_with(named) && said.contains("in use by another splicefs mount"), "{said}");
        }
        drop(first);
        of("u", "w").expect("free again");
        // One that ends is waited for.
        let ending = of("u", "w").expect("free");
        let end = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(ending);
        });
        of("u", "w").expect("free soon");
        end.join().expect("the other");
    }

    #[test]
    fn another_file_system_is_no_place_for_the_work_directory() {
        let (_folder, p) = place();
        let shm = Path::new("/dev/shm");
        if !shm.is_dir()
            || shm
                .metadata()
                .and_then(|a| {
                    Ok(std::os::unix::fs::MetadataExt::dev(&a)
                        == std::os::unix::fs::MetadataExt::dev(&Path::new(&p).metadata()?))
                })
                .unwrap_or(true)
        {
            eprintln!("SKIPPED: there is no second file system at /dev/shm");
            return;
        }
        let other = tempfile::tempdir_in(shm).expect("a temporary directory");
        let said = line(&format!("lowerdir={p}/a,upperdir={p}/u,workdir={}", other.path().display()));
        assert!(said.expect_err("refused").contains("must lie on the same mount"));
    }
}
