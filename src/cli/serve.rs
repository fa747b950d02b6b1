//! Mounting and serving: from the command line to the exit of the daemon.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use splicefs_core::{Backend, sys};
use splicefs_passthrough::Passthrough;
use splicefs_tmpfs::{Atime, Tmpfs};

use super::amount::amount;
use super::layers::{self, Layers};
use super::overlay::{self, Built};
use crate::daemon::{self, Reporter};
use crate::failure::{Failure, shell_word};
use crate::logging::{self, Behind, Setup};
use crate::mount::preflight::{self, Place, Shown};
use crate::mount::{self, Request, readahead};
use crate::options::{Access, BackendName, Options};
use crate::session::{self, Opens, SessionConfig};
use crate::signals;
use crate::vfs::Cache;

/// What is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Served {
    /// A directory, mirrored.
    Directory(PathBuf),
    /// Files in memory, shown under this name.
    Memory(OsString),
    /// The directories that the options name, merged, shown under this name.
    Layers(OsString),
}

impl Served {
    pub(super) fn backend(&self) -> BackendName {
        match self {
            Self::Directory(_) => BackendName::Passthrough,
            Self::Memory(_) => BackendName::Tmpfs,
            Self::Layers(_) => BackendName::Overlay,
        }
    }

    /// The same, found and checked.
    fn find(&self, options: &Options) -> Result<Found, Failure> {
        match self {
            Self::Directory(given) => preflight::find_directory("source", given).map(Found::Directory),
            Self::Memory(name) => Ok(Found::Memory(name.clone())),
            Self::Layers(name) => Ok(Found::Layers(name.clone(), layers::find(&options.overlay)?)),
        }
    }
}

/// What is served, with absolute paths.
#[derive(Debug)]
enum Found {
    Directory(PathBuf),
    Memory(OsString),
    Layers(OsString, Layers),
}

impl Found {
    fn place(&self, mount_point: &OsStr) -> Result<Place, Failure> {
        match self {
            Self::Directory(source) => preflight::find_place(mount_point, Shown::Source(source)),
            Self::Memory(_) => preflight::find_place(mount_point, Shown::Nothing),
            Self::Layers(_, layers) => preflight::find_place(mount_point, Shown::Layers(&layers.shown())),
        }
    }

    /// Whether anything can be written through the mount, permissions aside.
    fn is_writable(&self, options: &Options) -> bool {
        !matches!(self, Self::Layers(..)) || !options.overlay.has_no_upper()
    }

    /// Why files have to be opened each time, if that would be news to those who asked for something else.
    fn must_be_opened(&self, options: &Options) -> Option<String> {
        let asked = options.opens;
        match self {
            // With owners or permissions other than the files' own, the kernel may allow what the daemon may not.
            Self::Layers(..) if asked == Opens::Auto && !options.overlay.has_permissions_of_layers() => {
                Some("permissions are not those of the files themselves".to_owned())
            }
            Self::Layers(_, layers) if asked != Opens::Handle => layers
                .must_be_opened()
                .unwrap_or_else(|e| Some(format!("what the layers are is not known: {e}"))),
            _ => None,
        }
    }

    /// The mount's source as the kernel is told it, unless an option says otherwise.
    fn name(&self) -> &OsStr {
        match self {
            Self::Directory(path) => path.as_os_str(),
            Self::Memory(name) | Self::Layers(name, _) => name,
        }
    }
}

/// What the person asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) served: Served,
    pub(super) mount_point: OsString,
    pub(super) options: Options,
    pub(super) manner: Manner,
}

/// How the person wants it done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) foreground: bool,
    pub(super) debug: bool,
    /// Whether to say on stdout that the mount serves.
    pub(super) announce: bool,
}

/// Mounts and serves. In the background it returns once the mount serves, else when it has ended.
pub(super) fn run(order: &Order) -> Result<(), Failure> {
    let foreground = order.manner.foreground || order.manner.debug;
    if foreground {
        return serve(order, Reporter::Person);
    }
    if daemon::is_server() {
        daemon::take_name(c"splicefs");
        daemon::close_inherited();
        daemon::leave_terminal()
            .map_err(|error| Failure::new(format!("cannot leave the terminal: {error}")))?;
        return serve(order, Reporter::Parent);
    }
    let announcement = daemon::launch()?;
    // The mount serves whether or not anybody can read this.
    if order.manner.announce
        && let Err(failure) = super::print(&format!("{announcement}\n"))
    {
        log::warn!("{failure}");
    }
    Ok(())
}

fn serve(order: &Order, reporter: Reporter) -> Result<(), Failure> {
    let options = &order.options;
    let behind = logging::start(&Setup {
        debug: order.manner.debug,
        background: reporter == Reporter::Parent,
        file: options.log.as_deref(),
    })?;
    daemon::raise_limits();
    sys::memory::give_large_back();
    preflight::check_machine(options)?;
    let found = order.served.find(options)?;
    let place = found.place(&order.mount_point)?;
    if reporter == Reporter::Parent {
        daemon::leave_directory().map_err(|error| Failure::new(format!("cannot enter /: {error}")))?;
    }
    // A file's mode is the caller's business: the kernel or the backend applies the caller's umask, not ours.
    rustix::process::umask(rustix::fs::Mode::empty());
    match &found {
        Found::Directory(source) => {
            let backend = passthrough(source, &place, options)?;
            Start { order, found, place, reporter, behind }.serve(backend)
        }
        Found::Memory(_) => {
            let memory = in_memory(options);
            warn_of_group(&memory);
            let backend = Tmpfs::new(&memory).map_err(|error| overlay::no_memory(&error))?;
            Start { order, found, place, reporter, behind }.serve(backend)
        }
        Found::Layers(_, layers) => match overlay::build(layers, &place.mount_point, options)? {
            Built::OnDirectories(backend) => Start { order, found, place, reporter, behind }.serve(backend),
            Built::InMemory(backend) => Start { order, found, place, reporter, behind }.serve(backend),
        },
    }
}

fn passthrough(source: &Path, place: &Place, options: &Options) -> Result<Passthrough, Failure> {
    let options = splicefs_passthrough::Options {
        source: source.to_owned(),
        mount_point: Some(place.mount_point.clone()),
        noatime: options.atime == Atime::Never,
        block_devices_as_files: options.block_devices_as_files,
        listen: options.cache == Cache::Notify,
    };
    Passthrough::new(&options)
        .map_err(|error| Failure::new(format!("cannot serve {}: {error}", source.display())))
}

/// What a mount in memory is made with: the root is the mounting user's unless the options say otherwise.
fn in_memory(options: &Options) -> splicefs_tmpfs::Options {
    let uid = options.root_uid.unwrap_or_else(|| rustix::process::getuid().as_raw());
    let gid = options.root_gid.unwrap_or_else(|| rustix::process::getgid().as_raw());
    splicefs_tmpfs::Options {
        mode: options.root_mode,
        inode32: options.inode32,
        atime: options.atime,
        ..splicefs_tmpfs::Options::new(options.limits, uid, gid)
    }
}

/// Everything but the backend, checked and ready.
struct Start<'a> {
    order: &'a Order,
    /// Holds the locks of an overlay's directories until the session has ended.
    found: Found,
    place: Place,
    reporter: Reporter,
    behind: Behind,
}

impl Start<'_> {
    fn serve<B: Backend>(self, backend: B) -> Result<(), Failure> {
        let Place { mount_point, created } = self.place;
        let max_read = session::max_read_bytes();
        let request = Request::new(self.found.name(), &mount_point, &self.order.options, max_read);
        sys::detach_from_mounts()
            .map_err(|error| Failure::new(format!("cannot use /proc, which must be mounted: {error}")))?;
        let signals = signals::catch()
            .and_then(signals::Caught::start)
            .map_err(|error| Failure::new(format!("cannot catch signals: {error}")))?;
        let cannot =
            |error: io::Error| Failure::new(format!("cannot serve {}: {error}", mount_point.display()));
        let config = session_config(&self.order.options, &self.found);
        let prepared = session::prepare::<B>(&config).map_err(cannot)?;
        let serve = |device| prepared.serve(backend, device).map_err(cannot);
        let (running, mounted) =
            mount::mount(&request)?.serve(&request, serve, session::Running::name_root)?;
        readahead::raise(mounted.point(), max_read);
        let created = created.keep();
        let announcement = match (self.reporter, self.order.manner.announce) {
            (Reporter::Person, false) => String::new(),
            _ => announcement(&self.found, &self.order.options, &mount_point, created),
        };
        // Last of all the parent is told, which then says that all is well.
        let acting = signals.act(mounted.point().clone());
        let acting = acting.and_then(|()| self.reporter.serving(&announcement));
        if let Err(error) = acting {
            // Unmounting ends the session, and must come before anything waits for its threads.
            drop(mounted);
            return Err(Failure::new(format!("unmounted {} again: {error}", mount_point.display())));
        }
        self.behind.switch();
        log::info!("{} is mounted on {}", self.found.name().display(), mount_point.display());
        log_ignored(&self.order.options);
        let result = running.wait();
        mounted.session_ended();
        result.map_err(cannot)?;
        log::info!("{} is unmounted", mount_point.display());
        Ok(())
    }
}

fn session_config(options: &Options, found: &Found) -> SessionConfig {
    let writable = found.is_writable(options);
    SessionConfig {
        threads: options.threads,
        splice: options.splice,
        passthrough: options.passthrough,
        opens: options.opens,
        must_be_opened: found.must_be_opened(options),
        writable,
        writeback: options.writeback,
        splice_min: options.splice_min,
        prefetch: options.overlay.prefetch,
        cache: options.cache,
        entry_timeout: options.entry_timeout,
        attr_timeout: options.attr_timeout,
        owner: rustix::process::getuid().as_raw(),
        allow_other: options.access == Access::Everybody,
        allow_root: options.access == Access::Root,
        acls: options.overlay.has_acls(),
    }
}

/// An option that does nothing says so, once.
fn log_ignored(options: &Options) {
    if !options.ignored.is_empty() {
        let names: Vec<_> = options.ignored.iter().map(|name| name.to_string_lossy()).collect();
        log::info!("options that do nothing here: {}", names.join(", "));
    }
}

/// What a person needs next.
fn announcement(found: &Found, options: &Options, mount_point: &Path, created: bool) -> String {
    let word = shell_word(mount_point);
    let shown = found.name().display();
    let mounted =
        format!("is mounted on {}{}", mount_point.display(), if created { " (created)" } else { "" });
    match found {
        Found::Directory(_) => {
            format!("splicefs: {shown} {mounted}; look: ls {word}; stop: splicefs unmount {word}")
        }
        Found::Memory(_) => {
            let room = room(&in_memory(options));
            format!(
                "splicefs: {shown} ({room}) {mounted}; look: df -h {word}; stop, and lose its files: splicefs unmount {word}"
            )
        }
        Found::Layers(_, layers) => {
            let (changes, stop) = overlay::announced(layers, options);
            let count = layers.lowers.len() + usize::from(!options.overlay.has_no_upper());
            let plural = if count == 1 { "" } else { "s" };
            format!(
                "splicefs: overlay of {count} layer{plural} {mounted}, {changes}; look: ls {word}; {stop}: splicefs unmount {word}"
            )
        }
    }
}

/// Says that the daemon may be killed before its files take what they may.
pub(super) fn warn_of_group(options: &splicefs_tmpfs::Options) {
    if let Some(limit) = options.exceeded_group() {
        log::warn!(
            "{}, but the memory control group of the daemon allows {} ({}): at that it is killed, and the files are lost",
            room(options),
            amount(limit.bytes),
            limit.file.display()
        );
    }
}

/// How much a mount in memory may hold.
pub(super) fn room(options: &splicefs_tmpfs::Options) -> String {
    match options.pages.map(NonZeroU64::get) {
        Some(pages) => format!("size {}", amount(pages.saturating_mul(splicefs_tmpfs::PAGE_BYTES))),
        None => "no size limit".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Unknown;

    #[test]
    fn the_announcement_can_be_pasted_into_a_shell() {
        let found = Found::Directory("/s".into());
        let line =
            |point: &str, created| announcement(&found, &Options::default(), Path::new(point), created);
        assert_eq!(
            line("/m", false),
            "splicefs: /s is mounted on /m; look: ls /m; stop: splicefs unmount /m"
        );
        let line = line("/a b'c", true);
        assert!(line.contains("(created)") && line.ends_with(r"splicefs unmount '/a b'\''c'"));
    }

    #[test]
    fn the_announcement_of_memory_says_how_much_and_that_it_is_lost() {
        let line = |list: &str| {
            let options = Options::parse(&[list], Unknown::Refuse).expect("good options");
            announcement(&Found::Memory("tmpfs".into()), &options, Path::new("/m"), false)
        };
        assert_eq!(
            line("size=1g"),
            "splicefs: tmpfs (size 1.0 GiB) is mounted on /m; look: df -h /m; stop, and lose its files: splicefs unmount /m"
        );
        assert!(line("size=0").contains("tmpfs (no size limit) is"));
    }

    #[test]
    fn the_announcement_of_an_overlay_says_where_changes_go() {
        let line = |list: &str, changes| {
            let options = Options::parse(&[list], Unknown::Refuse).expect("good options");
            let found =
                Found::Layers("overlay".into(), Layers { lowers: options.overlay.lowers.clone(), changes });
            announcement(&found, &options, Path::new("/m"), true)
        };
        assert_eq!(
            line("lowerdir=/a:/b", None),
            "splicefs: overlay of 2 layers is mounted on /m (created), read-only for want of an upperdir; look: ls /m; stop: splicefs unmount /m"
        );
        assert!(line("lowerdir=/a", None).starts_with("splicefs: overlay of 1 layer is"));
        assert_eq!(
            line("lowerdir=/a,upper=tmpfs:size=1g", None),
            "splicefs: overlay of 2 layers is mounted on /m (created), changes are kept in memory (size 1.0 GiB); look: ls /m; stop, and lose the changes: splicefs unmount /m"
        );
    }

    #[test]
    fn options_reach_the_file_system_in_memory() {
        let made = |list: &str| {
            let options = Options::parse(&[list], Unknown::Refuse).expect("good options");
            in_memory(&options.for_backend(BackendName::Tmpfs).expect("options of tmpfs"))
        };
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        assert_eq!(made(""), splicefs_tmpfs::Options::new(splicefs_tmpfs::Resize::default(), own.0, own.1));
        let all = made("nr_blocks=7,nr_inodes=0,mode=0700,uid=3,gid=4,inode32,strictatime");
        let expected = splicefs_tmpfs::Options {
            pages: NonZeroU64::new(7),
            inodes: None,
            mode: 0o700,
            uid: 3,
            gid: 4,
            inode32: true,
            atime: Atime::Strict,
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn allow_root_is_the_sessions_to_enforce() {
        let config = |list: &str| {
            let options = Options::parse(&[list], Unknown::Refuse).expect("good options");
            session_config(&options, &Found::Memory("memory".into()))
        };
        assert!(config("allow_root").allow_root);
        assert!(!config("allow_other").allow_root);
        assert_eq!(config("splice_min=1K").splice_min, 1024);
    }
}
