//! What is measured.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Result;
use crate::user::is_root;

/// What a system is to the workloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The source itself.
    Native,
    /// A mirror of the source.
    Passthrough,
    /// The source as a lower layer, and an upper one.
    Overlay,
    /// A file system in memory, into which the data is copied.
    Tmpfs,
}

/// How a system comes to be mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Not at all.
    None,
    /// By mount(2), with these options.
    Kernel(String),
    /// By splicefs, with these options.
    Splicefs(String),
    /// By a shell command.
    Command(String),
}

/// A file system to measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct System {
    pub(crate) label: String,
    pub(crate) kind: Kind,
    pub(crate) way: Way,
}

/// The paths a mount is made of.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) source: PathBuf,
    pub(crate) lower: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) point: PathBuf,
}

impl Paths {
    /// `template` with the paths in place of `{mnt}` and its kind.
    pub(crate) fn fill(&self, template: &str) -> String {
        let put = |text: String, (name, path): (&str, &Path)| text.replace(name, &path.to_string_lossy());
        [
            ("{src}", &*self.source),
            ("{lower}", &*self.lower),
            ("{upper}", &*self.upper),
            ("{work}", &*self.work),
            ("{mnt}", &*self.point),
        ]
        .into_iter()
        .fold(template.to_owned(), put)
    }
}

impl System {
    /// What can be had here without asking anybody.
    pub(crate) fn defaults() -> Result<Vec<Self>> {
        let is_possible = |system: &&str| is_root() || !system.starts_with("kernel");
        [
            "native",
            "splicefs-passthrough",
            "kernel-overlay",
            "splicefs-overlay",
            "kernel-tmpfs",
            "splicefs-tmpfs",
        ]
        .into_iter()
        .filter(is_possible)
        .map(|system| system.parse().map_err(String::into))
        .collect()
    }

    /// Whether a daemon serves it, with caches of the kernel's before it.
    pub(crate) fn is_fuse(&self) -> bool {
        matches!(self.way, Way::Splicefs(_) | Way::Command(_))
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let is_label = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some((label, system)) = text.split_once('=')
            && !label.is_empty()
            && label.chars().all(is_label)
        {
            return Ok(Self { label: label.to_owned(), ..system.parse()? });
        }
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let options = rest.to_owned();
        let (kind, way) = match name {
            "native" if rest.is_empty() => (Kind::Native, Way::None),
            "kernel-overlay" => (Kind::Overlay, Way::Kernel(options)),
            "kernel-tmpfs" => (Kind::Tmpfs, Way::Kernel(options)),
            "splicefs-passthrough" => (Kind::Passthrough, Way::Splicefs(options)),
            "splicefs-overlay" => (Kind::Overlay, Way::Splicefs(options)),
            "splicefs-tmpfs" => (Kind::Tmpfs, Way::Splicefs(options)),
            "peer" => return peer(rest),
            _ => return Err("see --help for the systems".into()),
        };
        Ok(Self { label: text.to_owned(), kind, way })
    }
}

fn peer(text: &str) -> std::result::Result<System, String> {
    let (label, command) = text.split_once('=').ok_or("a peer is peer:NAME=COMMAND")?;
    if label.is_empty() || !command.contains("{mnt}") {
        return Err("a peer has a name, and a command with {mnt}".into());
    }
    let kind = if command.contains("{lower}") {
        Kind::Overlay
    } else if command.contains("{src}") {
        Kind::Passthrough
    } else {
        Kind::Tmpfs
    };
    Ok(System { label: label.to_owned(), kind, way: Way::Command(command.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(text: &str) -> System {
        text.parse().unwrap()
    }

    #[test]
    fn options_belong_to_the_system_and_a_label_stands_before_it() {
        let plain = system("splicefs-passthrough:splice=off,ro");
        assert_eq!(plain.label, "splicefs-passthrough:splice=off,ro");
        assert_eq!(plain.way, Way::Splicefs("splice=off,ro".into()));
        let labelled = system("copying=splicefs-passthrough:splice=off,ro");
        assert_eq!(labelled, System { label: "copying".into(), ..plain });
        assert_eq!(system("native").kind, Kind::Native);
        assert!(!system("kernel-overlay").is_fuse());
    }

    #[test]
    fn the_placeholders_say_what_a_peer_is() {
        let overlay = system("peer:a=x -o lowerdir={lower},upperdir={upper},workdir={work} {mnt}");
        assert_eq!((overlay.kind, &*overlay.label), (Kind::Overlay, "a"));
        assert_eq!(system("peer:a=x {src} {mnt}").kind, Kind::Passthrough);
        assert_eq!(system("peer:a=A=1 x {mnt}").kind, Kind::Tmpfs);
        for wrong in ["peer:a=x", "peer:=x {mnt}", "peer:a", "native:ro", "zfs", "a=", ""] {
            assert!(wrong.parse::<System>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_placeholder_is_filled() {
        let paths = Paths {
            source: "/s".into(),
            lower: "/l".into(),
            upper: "/u".into(),
            work: "/w".into(),
            point: "/m".into(),
        };
        assert_eq!(paths.fill("{mnt} {src}{lower} {upper},{work} {other}"), "/m /s/l /u,/w {other}");
    }
}
