//! Directories to be merged: lower ones, which must be the same at the end as they were at the start, and an upper one.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::mounted::{Engine, Overlay, Plan};
use super::seal::Seal;
use crate::differential::compare::same_trees;
use crate::harness::{Need, ready, scratch, shell, unprivileged_user};

/// Where layers lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ground {
    /// A plain directory of the file system that tests use (ext4, by `mount-tests/run.sh`).
    Directory,
    /// A tmpfs of the kernel's.
    Tmpfs,
    /// An ext4 of its own of so many MiB, in memory.
    Ext4(u32),
}

/// The layers of an overlay, and a place to mount it. Dropping it checks that no lower layer has changed since
/// [`Layers::seal`], or the first mount.
pub(crate) struct Layers {
    /// Topmost first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Upper and work directory.
    pub(crate) writable: Option<(PathBuf, PathBuf)>,
    options: String,
    user: Option<(u32, u32)>,
    descriptors: Option<u64>,
    ground: Ground,
    marks_reading: bool,
    seals: RefCell<Vec<Seal>>,
    dir: TempDir,
}

fn make(path: &Path) -> PathBuf {
    fs::create_dir(path).expect("mkdir");
    // Exactly this mode, whatever the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path.to_owned()
}

impl Layers {
    /// `lowers` empty directories under an upper one.
    pub(crate) fn new(ground: Ground, lowers: usize) -> Self {
        let dir = scratch();
        let fs = make(&dir.path().join("fs"));
        make(&dir.path().join("mnt"));
        match ground {
            Ground::Directory => {}
            Ground::Tmpfs => {
                let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
                mount(Some("tmpfs"), &fs, Some("tmpfs"), flags, Some("huge=never,mode=755"))
                    .expect("mounting a tmpfs");
            }
            Ground::Ext4(size) => {
                // In memory, since copying up syncs. Detached, the tmpfs goes with the loop device.
                let script = format!(
                    "mkdir \"$1/ram\" && mount -t tmpfs tmpfs \"$1/ram\" && truncate -s {size}M \"$1/ram/image\" &&
                     mkfs.ext4 -q -I 256 \"$1/ram/image\" && mount -o loop,nodev,nosuid \"$1/ram/image\" \"$1/fs\" &&
                     umount -l \"$1/ram\" && rmdir \"$1/ram\""
                );
                shell(&script, dir.path());
            }
        }
        let lowers = (0..lowers).map(|index| make(&fs.join(format!("l{index}")))).collect();
        let writable = Some((make(&fs.join("upper")), make(&fs.join("work"))));
        Self {
            lowers,
            writable,
            options: String::new(),
            user: None,
            descriptors: None,
            ground,
            marks_reading: false,
            seals: RefCell::default(),
            dir,
        }
    }

    /// One lower directory on the file system that tests use, and an upper one.
    pub(crate) fn simple() -> Self {
        Self::new(Ground::Directory, 1)
    }

    /// The same with a directory `d` in the lower one, for tests that set ACLs; `None` where those cannot run.
    pub(super) fn for_acls() -> Option<Self> {
        if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("setfacl")]) {
            return None;
        }
        let layers = Self::simple();
        fs::create_dir(layers.lower().join("d")).expect("mkdir");
        Some(layers)
    }

    /// Options of overlayfs(5), which both engines understand.
    pub(crate) fn options(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// Without an upper layer.
    pub(crate) fn read_only(mut self) -> Self {
        self.writable = None;
        self
    }

    /// A mounted file system as the only lower layer. What is read of it may mark files as read in what lies below it.
    pub(crate) fn over(mut self, lower: &Path) -> Self {
        self.lowers = vec![lower.to_owned()];
        self.marks_reading = true;
        self
    }

    /// The daemon's limit of open descriptors.
    pub(crate) fn descriptor_limit(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// All of it belongs to the unprivileged user, who will mount.
    pub(crate) fn of_user(mut self) -> Self {
        let (uid, gid) = unprivileged_user();
        let (upper, work) = self.writable.clone().expect("an upper layer");
        for path in self.lowers.iter().chain([&upper, &work, &self.point()]) {
            chown(path, Some(uid), Some(gid)).expect("giving a directory to the user");
        }
        self.user = Some((uid, gid));
        self
    }

    /// The topmost lower layer.
    pub(crate) fn lower(&self) -> &Path {
        &self.lowers[0]
    }

    pub(crate) fn upper(&self) -> &Path {
        &self.writable.as_ref().expect("an upper layer").0
    }

    pub(crate) fn work(&self) -> &Path {
        &self.writable.as_ref().expect("an upper layer").1
    }

    pub(crate) fn point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The directory that holds everything, on the file system that tests use.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether reading by the daemon must not change the times of access.
    fn shows_reading(&self) -> bool {
        self.user.is_none() && !self.marks_reading
    }

    /// From now on the lower layers must not change.
    pub(crate) fn seal(&self) {
        self.seals.replace(self.lowers.iter().map(|path| Seal::of(path, self.shows_reading())).collect());
    }

    /// What changed in the lower layers since they were sealed.
    pub(crate) fn unchanged(&self) -> Result<(), String> {
        for (path, seal) in self.lowers.iter().zip(&*self.seals.borrow()) {
            let now = Seal::of(path, self.shows_reading());
            same_trees(["sealed", "now"], [&seal.lines, &now.lines])
                .map_err(|difference| format!("the lower layer {path:?} has changed: {difference}"))?;
        }
        Ok(())
    }

    /// The lower layers may change, or have been looked at.
    pub(crate) fn unseal(&self) {
        self.seals.borrow_mut().clear();
    }

    /// Mounts by the engine under test, with further options for splicefs alone.
    pub(crate) fn mount_with(&self, own: &str) -> Overlay {
        self.mount_by(Engine::tested(), own)
    }

    pub(crate) fn mount(&self) -> Overlay {
        self.mount_with("")
    }

    pub(crate) fn mount_by(&self, engine: Engine, own: &str) -> Overlay {
        if self.seals.borrow().is_empty() {
            self.seal();
        }
        Overlay::start(
            engine,
            &Plan {
                lowers: &self.lowers,
                writable: self.writable.as_ref(),
                options: &self.options,
                own,
                point: self.point(),
                dir: self.dir.path(),
                user: self.user,
                descriptors: self.descriptors,
            },
        )
    }

    /// The upper layer becomes the topmost lower one, below a fresh upper layer. Nothing may be mounted.
    pub(crate) fn rotate(&mut self) {
        let (upper, work) = self.writable.take().expect("an upper layer");
        let (fs, number) = (self.dir.path().join("fs"), self.lowers.len());
        let full = fs.join(format!("l{number}"));
        fs::rename(upper, &full).expect("renaming the upper layer");
        fs::rename(work, fs.join(format!("old-work{number}"))).expect("renaming the work directory");
        self.lowers.insert(0, full);
        self.writable = Some((make(&fs.join("upper")), make(&fs.join("work"))));
        self.seal();
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let checked = if thread::panicking() { Ok(()) } else { self.unchanged() };
        if self.ground != Ground::Directory {
            let fs = self.dir.path().join("fs");
            if let Err(e) = umount2(&fs, MntFlags::MNT_DETACH) {
                eprintln!("umount of {fs:?}: {e}");
            }
        }
        if let Err(difference) = checked {
            panic!("{difference}");
        }
    }
}
