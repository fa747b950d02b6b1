//! Everything a person may have got wrong, found before anything is mounted and said in one line.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access as Permission;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::{dead, device, fusermount, mountinfo, unmount};
use crate::failure::{Failure, shell_word};
use crate::options::{Access, Options};

const FUSE_CONF: &str = "/etc/fuse.conf";
/// More entries of a hidden directory are not counted.
const COUNT_MOST: usize = 1000;

/// What to say to a user who may not let others in.
pub(super) const ALLOW_OTHER_IS_OFF: &str = "allow_other and allow_root need the line `user_allow_other` in /etc/fuse.conf: ask root to add it, or leave the option out";

/// Whether the kernel lets this process call mount(2): CAP_SYS_ADMIN is in effect.
pub(super) fn may_mount() -> bool {
    match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective.contains(CapabilitySet::SYS_ADMIN),
        Err(error) => {
            log::debug!("cannot read capabilities: {error}");
            rustix::process::geteuid().is_root()
        }
    }
}

/// Checks the machine: /dev/fuse, fusermount3 where it is needed, and leave to let others in.
///
/// # Errors
/// One line that says what to do.
pub fn check_machine(options: &Options) -> Result<(), Failure> {
    drop(device::open().map_err(|error| device::device_failure(&error))?);
    if !may_mount() && fusermount::find().is_none() {
        return Err(fusermount::missing());
    }
    if !rustix::process::getuid().is_root() {
        check_user(options)?;
    }
    Ok(())
}

fn check_user(options: &Options) -> Result<(), Failure> {
    if (options.suid || options.dev) && !may_mount() {
        log::warn!("the options suid and dev do nothing here: only root may set them");
    }
    if options.access == Access::Owner || may_mount() {
        return Ok(());
    }
    match fs::read(FUSE_CONF) {
        Ok(text) if allows_others(&text) => Ok(()),
        Ok(_) => Err(Failure::new(ALLOW_OTHER_IS_OFF)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new(ALLOW_OTHER_IS_OFF)),
        // fusermount3, which is root, can read it and decides.
        Err(error) => {
            log::debug!("cannot read {FUSE_CONF}: {error}");
            Ok(())
        }
    }
}

fn allows_others(fuse_conf: &[u8]) -> bool {
    fuse_conf.split(|&byte| byte == b'\n').any(|line| line.trim_ascii() == b"user_allow_other")
}

/// Where to mount.
#[derive(Debug)]
pub struct Place {
    /// The directory to mount on, absolute and without symbolic links.
    pub mount_point: PathBuf,
    /// Removes a mount point made by us unless the mount comes to stand.
    pub created: Created,
}

/// A directory that was made for the mount, or not.
#[derive(Debug)]
pub struct Created(Option<PathBuf>);

impl Created {
    /// The mount serves: the directory stays. Says whether there is one.
    pub fn keep(mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_dir(path)
        {
            log::warn!("cannot remove {}, made for the mount: {error}", path.display());
        }
    }
}

/// The directories that will be served, as [`find_directory`] found them.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// None.
    Nothing,
    /// A directory that is mirrored.
    Source(&'a Path),
    /// Directories that are merged, and are reached without their paths from the start on.
    Layers(&'a [&'a Path]),
}

impl Shown<'_> {
    /// Whether the mount shows what it covers.
    fn includes(self, mount_point: &Path) -> bool {
        match self {
            Self::Nothing => false,
            Self::Source(source) => source == mount_point,
            Self::Layers(layers) => layers.contains(&mount_point),
        }
    }
}

/// Finds and checks the mount point for what will be `shown`; makes it when only its last part is missing.
///
/// # Errors
/// One line that says what to do.
pub fn find_place(mount_point: &OsStr, shown: Shown<'_>) -> Result<Place, Failure> {
    let (mount_point, created) = find_mount_point(Path::new(mount_point))?;
    let over_itself = shown.includes(&mount_point);
    if let Shown::Source(source) = shown
        && source.starts_with(&mount_point)
        && !over_itself
    {
        return Err(Failure::new(format!(
            "source {} lies inside the mount point {}, which would hide it: take another mount point",
            source.display(),
            mount_point.display()
        )));
    }
    if !may_mount() && rustix::fs::access(&mount_point, Permission::WRITE_OK).is_err() {
        return Err(Failure::new(format!(
            "you may not mount on {}: take a directory that is yours and that you can write to",
            mount_point.display()
        )));
    }
    if !over_itself {
        warn_of_hidden(&mount_point);
    }
    Ok(Place { mount_point, created })
}

/// Finds and checks a directory to be served, in messages called `what`: absolute and without symbolic links.
///
/// # Errors
/// One line that says what to do.
pub fn find_directory(what: &str, given: &Path) -> Result<PathBuf, Failure> {
    let failure = |error: io::Error| directory_failure(what, given, &error);
    let path = given.canonicalize().map_err(failure)?;
    // Also asks a dead mount, which canonicalize need not have done.
    let meta = path.metadata().map_err(failure)?;
    if !meta.is_dir() {
        return Err(Failure::new(format!("{what} {} is not a directory", given.display())));
    }
    if rustix::fs::access(&path, Permission::READ_OK | Permission::EXEC_OK).is_err() {
        return Err(Failure::new(format!(
            "you may not read and enter {what} {0}: see its permissions (`ls -ld {1}`)",
            given.display(),
            shell_word(given)
        )));
    }
    Ok(path)
}

/// Checks that a directory, found at `path`, can be written to.
///
/// # Errors
/// One line that says what to do.
pub fn check_writable(what: &str, given: &Path, path: &Path) -> Result<(), Failure> {
    let shown = given.display();
    match rustix::fs::access(path, Permission::WRITE_OK | Permission::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(Errno::ROFS) => Err(Failure::new(format!("{what} {shown} is on a read-only file system"))),
        Err(_) => Err(Failure::new(format!(
            "you may not write to {what} {shown}: see its permissions (`ls -ld {}`)",
            shell_word(given)
        ))),
    }
}

fn directory_failure(what: &str, given: &Path, error: &io::Error) -> Failure {
    let shown = given.display();
    Failure::new(match error.raw_os_error() {
        Some(libc::ENOENT) if given.as_os_str().is_empty() => format!("the {what} is an empty name"),
        Some(libc::ENOENT) => format!("{what} {shown} does not exist"),
        Some(libc::ENOTDIR) => format!("{what} {shown} is not a directory"),
        _ if dead::is_from_dead_mount(error) => {
            format!("{what} {shown} {}", in_dead_mount(given))
        }
        _ => format!("cannot use {what} {shown}: {error}"),
    })
}

fn find_mount_point(given: &Path) -> Result<(PathBuf, Created), Failure> {
    refuse_fuse_mount(given)?;
    let (path, created) = match given.canonicalize() {
        Ok(path) => (path, Created(None)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_mount_point(given)?,
        Err(error) => return Err(mount_point_failure(given, &error)),
    };
    let meta = path.metadata().map_err(|error| mount_point_failure(given, &error))?;
    if !meta.is_dir() {
        return Err(Failure::new(format!("mount point {} is not a directory", given.display())));
    }
    if path == Path::new("/") {
        return Err(Failure::new(
            "cannot mount on /, where everything would be hidden: take another mount point",
        ));
    }
    Ok((path, created))
}

fn mount_point_failure(given: &Path, error: &io::Error) -> Failure {
    let shown = given.display();
    Failure::new(match error.raw_os_error() {
        Some(libc::ENOTDIR) => format!("mount point {shown} is not a directory"),
        _ if dead::is_from_dead_mount(error) => format!("mount point {shown} {}", in_dead_mount(given)),
        _ => format!("cannot use mount point {shown}: {error}"),
    })
}

/// The end of a sentence that begins with `given`.
fn in_dead_mount(given: &Path) -> String {
    let word = shell_word(&dead::mount_around(given));
    format!(
        "is, or lies in, a dead mount (Transport endpoint is not connected): unmount it first (`splicefs unmount {word}`)"
    )
}

/// Refuses a mount point that is a FUSE mount already, alive or dead; a mount of anything else may be covered.
fn refuse_fuse_mount(given: &Path) -> Result<(), Failure> {
    let Ok(entries) = mountinfo::read() else { return Ok(()) };
    // A mount point that cannot be found is somebody else's message.
    let Ok(point) = unmount::locate(given, &entries) else { return Ok(()) };
    let Some(entry) = mountinfo::top_at(&entries, &point) else { return Ok(()) };
    if !entry.is_fuse() {
        return Ok(());
    }
    if super::is_dead(&point) {
        return Err(Failure::new(format!("mount point {} {}", given.display(), in_dead_mount(given))));
    }
    Err(Failure::new(format!(
        "{} is a {} already: unmount it first (`splicefs unmount {}`)",
        given.display(),
        mountinfo::title(entry),
        shell_word(given)
    )))
}

fn make_mount_point(given: &Path) -> Result<(PathBuf, Created), Failure> {
    let refuse = |reason: &str| Failure::new(format!("mount point {} {reason}", given.display()));
    if given.as_os_str().is_empty() {
        return Err(Failure::new("the mount point is an empty name"));
    }
    match fs::create_dir(given) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse("does not exist and neither does its parent: create it (`mkdir -p`)"));
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(refuse("is a symbolic link that leads nowhere"));
        }
        Err(error) => return Err(refuse(&format!("does not exist and cannot be created: {error}"))),
    }
    match given.canonicalize() {
        Ok(path) => Ok((path.clone(), Created(Some(path)))),
        Err(error) => Err(refuse(&format!("was created and is gone again: {error}"))),
    }
}

fn warn_of_hidden(mount_point: &Path) {
    let Ok(entries) = fs::read_dir(mount_point) else { return };
    let shown = mount_point.display();
    match entries.take(COUNT_MOST + 1).count() {
        0 => {}
        1 => log::warn!("mount point {shown} is not empty: its 1 entry is hidden while mounted"),
        n if n > COUNT_MOST => {
            log::warn!(
                "mount point {shown} is not empty: its more than {COUNT_MOST} entries are hidden while mounted"
            );
        }
        n => log::warn!("mount point {shown} is not empty: its {n} entries are hidden while mounted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &Path, mount_point: &Path) -> Result<Place, Failure> {
        find_place(mount_point.as_os_str(), Shown::Source(&find_directory("source", source)?))
    }

    #[test]
    fn each_mistake_has_its_line() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("src/inner")).expect("mkdir");
        fs::create_dir(at("mnt")).expect("mkdir");
        fs::write(at("file"), "").expect("write");
        std::os::unix::fs::symlink("nowhere", at("dangling")).expect("symlink");
        let cases = [
            (at("none"), at("mnt"), "does not exist"),
            (PathBuf::new(), at("mnt"), "empty name"),
            (at("file"), at("mnt"), "is not a directory"),
            (at("file/x"), at("mnt"), "is not a directory"),
            (at("src"), at("file"), "mount point"),
            (at("src"), at("a/b"), "mkdir -p"),
            (at("src"), PathBuf::new(), "empty name"),
            (at("src"), at("dangling"), "leads nowhere"),
            (at("src/inner"), at("src"), "lies inside the mount point"),
            (at("src"), "/".into(), "cannot mount on /"),
        ];
        for (source, mount_point, expected) in cases {
            let line = check(&source, &mount_point).expect_err("refused").to_string();
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn good_places_are_canonical_and_a_missing_mount_point_is_made() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let root = folder.path().canonicalize().expect("exists");
        fs::create_dir(root.join("src")).expect("mkdir");
        let check = |source: &str, mount_point: &str| {
            check(&root.join(source), &root.join(mount_point)).expect("good places")
        };
        assert_eq!(check("src/../src", "src").mount_point, root.join("src"), "over itself");
        let made = check("src", "mnt/");
        assert_eq!(made.mount_point, root.join("mnt"));
        drop(made);
        assert!(!root.join("mnt").exists(), "a start that fails removes what it made");
        assert!(check("src", "mnt").created.keep());
        assert!(root.join("mnt").exists());
        assert!(!check("src", "mnt").created.keep());
        assert_eq!(check("src", "src/inside").mount_point, root.join("src/inside"), "inside the source");
        let sourceless = find_place(root.join("mnt").as_os_str(), Shown::Nothing).expect("a good place");
        assert_eq!(sourceless.mount_point, root.join("mnt"));
        let layers = [&*root.join("src/inside"), &root.join("src")];
        let over = find_place(root.join("src").as_os_str(), Shown::Layers(&layers)).expect("over its layers");
        assert_eq!(over.mount_point, root.join("src"));
    }

    #[test]
    fn fuse_conf_is_read_as_fusermount_reads_it() {
        assert!(allows_others(b"# x\nuser_allow_other\n"));
        assert!(allows_others(b"mount_max = 3\n  user_allow_other  "));
        assert!(!allows_others(b"#user_allow_other\n"));
        assert!(!allows_others(b"user_allow_other = 1\n"));
        assert!(!allows_others(b""));
    }
}
