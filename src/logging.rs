//! Where log lines go: to stderr while a person waits for the start and in the foreground; behind, to the file of
//! `-o log=`, else to the journal, else to a file in the state directory.
//!
//! `RUST_LOG` chooses what is logged, as env_logger reads it; `-d` asks for debug lines.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use env_logger::{Builder, Logger, Target};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::failure::{Failure, one_line};

const JOURNAL: &str = "/run/systemd/journal/socket";
const ROOTS_FILE: &str = "/var/log/splicefs.log";
const FILE_VARIABLE: &str = "RUST_LOG";
/// A journal that does not read must not stop the threads that serve.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(1);
/// Far below the journal's socket buffer; a longer line is cut.
const JOURNAL_MOST_BYTES: usize = 16 * 1024;

/// What the command line says about logging.
#[derive(Clone, Debug, Default)]
pub struct Setup<'a> {
    /// `-d`.
    pub debug: bool,
    /// Whether the process goes behind once it serves.
    pub background: bool,
    /// `-o log=`.
    pub file: Option<&'a Path>,
}

/// The destination for the time after the start, open already: its path may lie under the mount point.
#[derive(Debug, Default)]
pub struct Behind(Option<Destination>);

#[derive(Debug)]
enum Destination {
    File(File),
    Journal(UnixDatagram),
}

/// Starts logging to stderr.
///
/// # Errors
/// When the file of `-o log=` cannot be opened, or logging has been started already.
pub fn start(setup: &Setup<'_>) -> Result<Behind, Failure> {
    let filters = Filters::of(setup);
    let front = builder(&filters, LevelFilter::Warn).format(stderr_line(filters.is_plain())).build();
    let most = front.filter().max(behind_level(&filters));
    if LOGGER.front.set(front).is_err() || LOGGER.filters.set(filters).is_err() {
        return Err(Failure::new("logging was started twice"));
    }
    log::set_logger(&LOGGER).map_err(|error| Failure::new(error.to_string()))?;
    log::set_max_level(most);
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(Behind(destination(setup)?))
}

impl Behind {
    /// From now on, log here. Without a destination, lines keep going to stderr.
    pub fn switch(self) {
        let Some(destination) = self.0 else { return };
        let filters = LOGGER.filters.get_or_init(Filters::default);
        let sink = match destination {
            Destination::File(file) => {
                let target = Target::Pipe(Box::new(file));
                let logger = builder(filters, LevelFilter::Info).target(target).format(file_line).build();
                Sink::File(logger)
            }
            Destination::Journal(socket) => {
                Sink::Journal(builder(filters, LevelFilter::Info).build(), socket)
            }
        };
        if LOGGER.behind.set(sink).is_err() {
            log::debug!("the log has moved behind already");
        }
    }
}

/// What decides which lines are logged.
#[derive(Debug, Default)]
struct Filters {
    variable: Option<String>,
    debug: bool,
}

impl Filters {
    fn of(setup: &Setup<'_>) -> Self {
        let variable = env::var(FILE_VARIABLE).ok().filter(|text| !text.is_empty());
        Self { variable, debug: setup.debug }
    }

    /// Whether nobody asked for more than warnings, which then look like the program's other messages.
    fn is_plain(&self) -> bool {
        self.variable.is_none() && !self.debug
    }
}

fn builder(filters: &Filters, default: LevelFilter) -> Builder {
    let mut builder = Builder::new();
    match &filters.variable {
        Some(text) => builder.parse_filters(text),
        None => builder.filter_level(if filters.debug { LevelFilter::Debug } else { default }),
    };
    builder
}

fn behind_level(filters: &Filters) -> LevelFilter {
    builder(filters, LevelFilter::Info).build().filter()
}

type Format = fn(&mut env_logger::fmt::Formatter, &Record<'_>) -> io::Result<()>;

fn stderr_line(plain: bool) -> Format {
    if plain { plain_line } else { file_line }
}

fn plain_line(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    let kind = if record.level() == Level::Warn { "warning: " } else { "" };
    writeln!(out, "splicefs: {kind}{}", one_line(&record.args().to_string()))
}

/// One line a record whatever a file name in it holds.
fn file_line(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    let process = std::process::id();
    let (level, target) = (record.level(), record.target());
    writeln!(out, "{time} [{process}] {level:<5} {target}: {}", one_line(&record.args().to_string()))
}

fn destination(setup: &Setup<'_>) -> Result<Option<Destination>, Failure> {
    if let Some(path) = setup.file {
        let file = append(path)
            .map_err(|error| Failure::new(format!("cannot open the log file {}: {error}", path.display())))?;
        return Ok(Some(Destination::File(file)));
    }
    if !setup.background {
        return Ok(None);
    }
    match open_journal() {
        Ok(socket) => return Ok(Some(Destination::Journal(socket))),
        Err(error) => log::debug!("no journal: {error}"),
    }
    Ok(open_state_file())
}

fn open_journal() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL)?;
    socket.set_write_timeout(Some(JOURNAL_PATIENCE))?;
    Ok(socket)
}

/// Without a place for it there is no log behind, which is worth a warning and no more.
fn open_state_file() -> Option<Destination> {
    let Some(path) = state_file() else {
        log::warn!(
            "no log will be kept: neither XDG_STATE_HOME nor HOME is set (`-o log=FILE` names a file)"
        );
        return None;
    };
    let open = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        append(&path)
    };
    match open() {
        Ok(file) => Some(Destination::File(file)),
        Err(error) => {
            let path = path.display();
            log::warn!("no log will be kept: cannot open {path}: {error} (`-o log=FILE` names another file)");
            None
        }
    }
}

fn state_file() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(ROOTS_FILE));
    }
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // https://specifications.freedesktop.org/basedir-spec: relative values are ignored.
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("splicefs/splicefs.log"))
}

fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// The program's logger: stderr first, then what [`Behind::switch`] sets.
struct Switch {
    front: OnceLock<Logger>,
    behind: OnceLock<Sink>,
    filters: OnceLock<Filters>,
}

enum Sink {
    File(Logger),
    /// The logger only says which lines are wanted.
    Journal(Logger, UnixDatagram),
}

static LOGGER: Switch = Switch { front: OnceLock::new(), behind: OnceLock::new(), filters: OnceLock::new() };

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match (self.behind.get(), self.front.get()) {
            (Some(Sink::File(logger) | Sink::Journal(logger, _)), _) | (None, Some(logger)) => {
                logger.enabled(metadata)
            }
            (None, None) => false,
        }
    }

    fn log(&self, record: &Record<'_>) {
        match (self.behind.get(), self.front.get()) {
            (Some(Sink::Journal(filter, socket)), _) => {
                if filter.matches(record) {
                    to_journal(socket, record);
                }
            }
            (Some(Sink::File(logger)), _) | (None, Some(logger)) => logger.log(record),
            (None, None) => {}
        }
    }

    fn flush(&self) {}
}

fn to_journal(socket: &UnixDatagram, record: &Record<'_>) {
    let datagram = journal_datagram(record);
    if socket.send(&datagram).is_err() {
        // journald was restarted, perhaps. If it still does not listen the line is lost: there is nobody to tell.
        if let Err(_nobody) = socket.connect(JOURNAL).and_then(|()| socket.send(&datagram)) {}
    }
}

/// The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a line a field. The message has no newline, so
/// the binary form is not needed.
fn journal_datagram(record: &Record<'_>) -> Vec<u8> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut message = one_line(&record.args().to_string());
    let end = (0..=JOURNAL_MOST_BYTES.min(message.len())).rev().find(|&at| message.is_char_boundary(at));
    message.truncate(end.unwrap_or(0));
    let target = one_line(record.target());
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=splicefs\nTARGET={target}\nMESSAGE={message}\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(text: &str) -> String {
        let bytes = journal_datagram(
            &Record::builder().level(Level::Warn).target("t").args(format_args!("{text}")).build(),
        );
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_journal_message_is_one_field_whatever_a_name_holds() {
        assert_eq!(
            datagram("a\nPRIORITY=0"),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=splicefs\nTARGET=t\nMESSAGE=a\\nPRIORITY=0\n"
        );
    }

    #[test]
    fn a_long_journal_message_is_cut_between_characters() {
        let long = datagram(&format!("x{}", "é".repeat(JOURNAL_MOST_BYTES)));
        assert!(long.len() < JOURNAL_MOST_BYTES + 100 && long.ends_with("é\n"));
    }

    #[test]
    fn a_log_file_is_appended_to_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("log");
        for line in ["a\n", "b\n"] {
            append(&path).and_then(|mut file| file.write_all(line.as_bytes())).expect("writable");
        }
        assert_eq!(fs::read_to_string(&path).expect("readable"), "a\nb\n");
        assert_eq!(path.metadata().expect("exists").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn more_is_logged_only_when_asked_for() {
        let level = |variable: Option<&str>, debug| {
            let filters = Filters { variable: variable.map(str::to_owned), debug };
            (builder(&filters, LevelFilter::Warn).build().filter(), filters.is_plain())
        };
        assert_eq!(level(None, false), (LevelFilter::Warn, true));
        assert_eq!(level(None, true), (LevelFilter::Debug, false));
        assert_eq!(level(Some("error"), true), (LevelFilter::Error, false));
    }
}
