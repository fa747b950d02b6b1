//! A system that is mounted, and unmounted when this is dropped.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::data::{Names, Part};
use crate::directory::succeed;
use crate::processes::{Daemon, descendants};
use crate::system::{Kind, Paths, System, Way};
use crate::task::Task;
use crate::user::{User, is_root};
use crate::{Result, interrupt, launch, mountinfo};

/// How long a file system may take to mount.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a command may take to go into the background after its mount is there; one that stays is the daemon.
const BACKGROUND: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(1);

/// What all systems of a run have in common.
pub(crate) struct Common {
    /// The program.
    pub(crate) splicefs: PathBuf,
    /// The directory that is mirrored; `read` in it holds the data, `write` what is written.
    pub(crate) source: PathBuf,
    /// Who mounts and measures, if not we.
    pub(crate) user: Option<User>,
}

impl Common {
    /// The data, past every mount.
    pub(crate) fn names(&self) -> Names {
        Names(self.source.join("read"))
    }
}

/// One system.
pub(crate) struct Mounted<'r> {
    pub(crate) system: &'r System,
    common: &'r Common,
    paths: Paths,
    /// Where what it writes goes, as its users see it.
    write: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    daemon: Daemon,
    /// The parts of the data that a file system in memory has been given.
    filled: Vec<Part>,
}

impl<'r> Mounted<'r> {
    /// Mounts `system`, with `dir` for whatever it needs.
    pub(crate) fn new(system: &'r System, common: &'r Common, dir: &Path) -> Result<Self> {
        let paths = Paths {
            source: common.source.clone(),
            lower: common.names().0,
            upper: dir.join("upper"),
            work: dir.join("work"),
            point: dir.join("mnt"),
        };
        // The source's own file system writes beside the data, so that an overlay of the data does not see it change.
        let below = Path::new("write").join(dir.file_name().unwrap_or_default());
        let write = match system.kind {
            Kind::Native => common.source.join(below),
            Kind::Passthrough => paths.point.join(below),
            Kind::Overlay | Kind::Tmpfs => paths.point.join("new"),
        };
        let log = dir.join("log");
        let mut mounted = Self {
            system,
            common,
            paths,
            write,
            log,
            child: None,
            daemon: Daemon::default(),
            filled: Vec::new(),
        };
        for made in [&mounted.paths.point, &mounted.paths.upper, &mounted.paths.work] {
            mounted.make(made)?;
        }
        mounted.mount()?;
        Ok(mounted)
    }

    fn make(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        self.common.user.as_ref().map_or(Ok(()), |user| user.own(dir))
    }

    /// The data as this system shows it.
    pub(crate) fn names(&self) -> Names {
        match self.system.kind {
            Kind::Native => self.common.names(),
            Kind::Passthrough => Names(self.paths.point.join("read")),
            Kind::Overlay | Kind::Tmpfs => Names(self.paths.point.clone()),
        }
    }

    /// A directory to write in; it need not exist.
    pub(crate) fn write(&self) -> &Path {
        &self.write
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Does `task` as the user of this system.
    pub(crate) fn run(&self, task: &Task) -> Result<crate::task::Done> {
        launch::run(task, self.common.user.as_ref())
    }

    /// A file system in memory gets the data it does not have yet.
    pub(crate) fn fill(&mut self, parts: &[Part]) -> Result<()> {
        for &part in parts.iter().filter(|_| self.system.kind == Kind::Tmpfs) {
            if !self.filled.contains(&part) {
                let to = self.names().part(part);
                self.run(&Task::MakeDir { dir: to.clone() })?;
                self.run(&Task::Copy { from: self.common.names().part(part), to })?;
                self.filled.push(part);
            }
        }
        Ok(())
    }

    /// Unmounts it and mounts it again: nothing of it is cached any more. With `empty`, an overlay's upper layer is new.
    pub(crate) fn remount(&mut self, empty: bool) -> Result<()> {
        self.unmount()?;
        if empty && self.system.kind == Kind::Overlay {
            for dir in [&self.paths.upper, &self.paths.work] {
                fs::remove_dir_all(dir)?;
                self.make(dir)?;
            }
        }
        self.mount()
    }

    fn mount(&mut self) -> Result<()> {
        let before = descendants()?;
        let command = match &self.system.way {
            Way::None => return Ok(()),
            Way::Kernel(options) => return self.mount_kernel(options),
            Way::Splicefs(options) => self.splicefs(options),
            Way::Command(template) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(self.paths.fill(template));
                command
            }
        };
        self.start(command)?;
        self.daemon = Daemon::since(&before)?;
        if !self.daemon.exists() {
            return Err(format!("{}: mounted, but no daemon runs", self.system.label).into());
        }
        Ok(())
    }

    fn mount_kernel(&self, options: &str) -> Result<()> {
        let Paths { lower, upper, work, point, .. } = &self.paths;
        let more = if options.is_empty() { String::new() } else { format!(",{options}") };
        let (kind, options) = match self.system.kind {
            Kind::Overlay => {
                let layers = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
                let layers = layers.map(|(name, path)| format!("{name}={}", path.display()));
                ("overlay", layers.join(",") + &more)
            }
            _ => ("tmpfs", format!("mode=1777{more}")),
        };
        mount(Some(kind), point, Some(kind), MsFlags::empty(), Some(options.as_str()))
            .map_err(|error| format!("{}: {error} (see dmesg)", self.system.label).into())
    }

    fn splicefs(&self, options: &str) -> Command {
        let Paths { source, lower, upper, work, point } = &self.paths;
        let mut command = Command::new(&self.common.splicefs);
        match self.system.kind {
            Kind::Passthrough => command.arg("passthrough").args([source, point]),
            Kind::Tmpfs => command.arg("tmpfs").arg(point),
            Kind::Overlay | Kind::Native => {
                let layers = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
                let layers = layers.map(|(name, path)| format!("{name}={}", path.display())).join(",");
                command.arg("overlay").arg(point).args(["-o", &layers])
            }
        };
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command
    }

    /// Runs `command` until the mount is there.
    fn start(&mut self, mut command: Command) -> Result<()> {
        let log = File::create(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        // The terminal's ^C is ours: we unmount.
        command.process_group(0);
        if let Some(user) = &self.common.user {
            user.become_in(&mut command);
        }
        let child = self.child.insert(command.spawn()?);
        let start = Instant::now();
        while !mountinfo::is_mounted(&self.paths.point)? {
            interrupt::check()?;
            let failed = child.try_wait()?.is_some_and(|status| !status.success());
            if failed || start.elapsed() > PATIENCE {
                let told = fs::read_to_string(&self.log)?;
                return Err(format!("{}: not mounted: {}", self.system.label, told.trim()).into());
            }
            std::thread::sleep(STEP);
        }
        let start = Instant::now();
        while child.try_wait()?.is_none() && start.elapsed() < BACKGROUND {
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let start = Instant::now();
        while mountinfo::is_mounted(&self.paths.point)? {
            if !is_root() {
                succeed(Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&self.paths.point))?;
                break;
            }
            let flags = if start.elapsed() < Duration::from_secs(2) {
                MntFlags::empty()
            } else {
                MntFlags::MNT_DETACH
            };
            match umount2(&self.paths.point, flags) {
                Ok(()) => {}
                Err(Errno::EBUSY) => std::thread::sleep(STEP),
                Err(error) => return Err(format!("{}: not unmounted: {error}", self.system.label).into()),
            }
        }
        self.filled.clear();
        let daemon = std::mem::take(&mut self.daemon);
        daemon.end();
        if let Some(mut child) = self.child.take() {
            if child.try_wait()?.is_none() {
                // It has not mounted anything, or is a shell around what has ended.
                child.kill()?;
            }
            child.wait()?;
        }
        daemon.reap();
        Ok(())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error}");
        }
    }
}
