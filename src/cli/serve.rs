//! Mounting and serving: from the command line to the exit of the daemon.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use splicefs_core::{Backend, sys};
use splicefs_passthrough::Passthrough;

use crate::daemon::{self, Reporter};
use crate::failure::{Failure, shell_word};
use crate::logging::{self, Behind, Setup};
use crate::mount::preflight::{self, Places};
use crate::mount::{self, Mount, Request, readahead};
use crate::options::{Access, BackendName, Options};
use crate::session::{self, SessionConfig};
use crate::signals;

/// What the person asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) backend: BackendName,
    pub(super) source: OsString,
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
    preflight::check_machine(options)?;
    let places = preflight::check_places(&order.source, &order.mount_point)?;
    if reporter == Reporter::Parent {
        daemon::leave_directory().map_err(|error| Failure::new(format!("cannot enter /: {error}")))?;
    }
    // A file's mode is the caller's business: the kernel or the backend applies the caller's umask, not ours.
    rustix::process::umask(rustix::fs::Mode::empty());
    let start = Start { order, places, reporter, behind };
    match order.backend {
        BackendName::Passthrough => {
            let backend = passthrough(&start.places, options)?;
            start.serve(backend)
        }
    }
}

fn passthrough(places: &Places, options: &Options) -> Result<Passthrough, Failure> {
    let options = splicefs_passthrough::Options {
        source: places.source.clone(),
        mount_point: Some(places.mount_point.clone()),
        noatime: options.noatime,
        block_devices_as_files: options.block_devices_as_files,
    };
    Passthrough::new(&options)
        .map_err(|error| Failure::new(format!("cannot serve {}: {error}", places.source.display())))
}

/// Everything but the backend, checked and ready.
struct Start<'a> {
    order: &'a Order,
    places: Places,
    reporter: Reporter,
    behind: Behind,
}

impl Start<'_> {
    fn serve<B: Backend>(self, backend: B) -> Result<(), Failure> {
        let Places { source, mount_point, created } = self.places;
        let max_read = session::max_read_bytes();
        let request = Request::new(&source, &mount_point, &self.order.options, max_read);
        sys::detach_from_mounts()
            .map_err(|error| Failure::new(format!("cannot use /proc, which must be mounted: {error}")))?;
        let signals = signals::catch()
            .and_then(signals::Caught::start)
            .map_err(|error| Failure::new(format!("cannot catch signals: {error}")))?;
        let cannot =
            |error: io::Error| Failure::new(format!("cannot serve {}: {error}", mount_point.display()));
        let prepared = session::prepare(&session_config(&self.order.options)).map_err(cannot)?;
        let Mount { device, mounted } = mount::mount(&request)?;
        let running = prepared.serve(backend, device).map_err(cannot)?;
        readahead::raise(mounted.point(), max_read);
        let created = created.keep();
        let announcement = match (self.reporter, self.order.manner.announce) {
            (Reporter::Person, false) => String::new(),
            _ => announcement(&source, &mount_point, created),
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
        log::info!("{} is mounted on {}", source.display(), mount_point.display());
        log_ignored(&self.order.options);
        let result = running.wait();
        mounted.session_ended();
        result.map_err(cannot)?;
        log::info!("{} is unmounted", mount_point.display());
        Ok(())
    }
}

fn session_config(options: &Options) -> SessionConfig {
    SessionConfig {
        threads: options.threads,
        splice: options.splice,
        splice_min: options.splice_min,
        entry_timeout: options.entry_timeout,
        attr_timeout: options.attr_timeout,
        owner: rustix::process::getuid().as_raw(),
        allow_root: options.access == Access::Root,
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
fn announcement(source: &Path, mount_point: &Path, created: bool) -> String {
    let name = shell_word(mount_point);
    let made = if created { " (created)" } else { "" };
    format!(
        "splicefs: {} is mounted on {}{made}; look: ls {name}; stop: splicefs unmount {name}",
        source.display(),
        mount_point.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_can_be_pasted_into_a_shell() {
        let line = announcement(Path::new("/s"), Path::new("/m"), false);
        assert_eq!(line, "splicefs: /s is mounted on /m; look: ls /m; stop: splicefs unmount /m");
        let line = announcement(Path::new("/s"), Path::new("/a b'c"), true);
        assert!(line.contains("(created)") && line.ends_with(r"splicefs unmount '/a b'\''c'"));
    }

    #[test]
    fn allow_root_is_the_sessions_to_enforce() {
        let config = |list: &str| {
            let options = Options::parse(&[list], crate::options::Unknown::Refuse).expect("good options");
            session_config(&options)
        };
        assert!(config("allow_root").allow_root);
        assert!(!config("allow_other").allow_root);
        assert_eq!(config("splice_min=1K").splice_min, 1024);
    }
}
