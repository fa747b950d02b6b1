//! The arguments, as clap reads them.

use std::ffi::OsString;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::help;

#[derive(Parser, Debug)]
#[command(
    name = "splicefs",
    version,
    about = "Serve a directory or memory through FUSE, reads by splice(2)",
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) mount8: Mount8,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Mount a directory that mirrors another one
    Passthrough {
        /// The directory to mirror
        #[arg(value_name = "SRC")]
        source: OsString,
        /// The directory to mount on; made when only its last part is missing
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        #[command(flatten)]
        mount: MountArgs,
    },
    /// Mount a file system in memory, as the kernel's tmpfs; its files are gone after the unmount
    Tmpfs {
        /// The directory to mount on; made when only its last part is missing
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        #[command(flatten)]
        mount: MountArgs,
        /// `mount -t fuse.splicefs tmpfs MNT` puts them behind what then reads as this command.
        #[command(flatten)]
        flags: HelperFlags,
    },
    /// Change the limits of a mounted tmpfs
    Resize {
        /// The mount point
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        /// New limits, separated by commas: size=SIZE or nr_blocks=N, and nr_inodes=N
        #[arg(value_name = "LIMITS")]
        limits: Option<OsString>,
        /// The same, as mount(8) would be given them
        #[arg(short = 'o', value_name = "LIMITS")]
        options: Vec<OsString>,
    },
    /// Show what a mount has served, and how
    Stats {
        /// The mount point
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Unmount, dead mounts too
    Unmount {
        /// The mount point
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        /// Detach it even when it is in use; it ends when its last user leaves
        #[arg(long, short = 'l', visible_short_alias = 'z')]
        lazy: bool,
    },
}

#[derive(Args, Debug)]
pub(super) struct MountArgs {
    /// Mount options, separated by commas (`\,` is a comma in a value)
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<OsString>,
    /// Stay in the foreground and log to stderr
    #[arg(short = 'f', long)]
    pub(super) foreground: bool,
    /// Stay in the foreground and log every detail
    #[arg(short = 'd', long)]
    pub(super) debug: bool,
}

/// The form mount(8) and fstab use through a mount helper.
#[derive(Args, Debug)]
pub(super) struct Mount8 {
    /// What to mount, with `-o backend=NAME`: a directory, or for tmpfs any name
    #[arg(value_name = "SRC")]
    pub(super) source: Option<OsString>,
    /// The directory to mount on
    #[arg(value_name = "MNT", requires = "source")]
    pub(super) mount_point: Option<OsString>,
    #[command(flatten)]
    pub(super) mount: MountArgs,
    #[command(flatten)]
    pub(super) flags: HelperFlags,
}

/// The flags mount(8) hands to its helpers.
#[derive(Args, Debug)]
pub(super) struct HelperFlags {
    /// Do not write to /etc/mtab, which this program never does
    #[arg(short = 'n')]
    pub(super) no_mtab: bool,
    /// Say what was mounted
    #[arg(short = 'v')]
    pub(super) verbose: bool,
    /// Pass over unknown mount options
    #[arg(short = 's')]
    pub(super) sloppy: bool,
}

/// Reads `arguments`, the program's name first.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

fn command() -> clap::Command {
    let with_options = |command: clap::Command, words: &str| {
        command
            .after_help(format!("`{words} --help` has examples and all mount options."))
            .after_long_help(format!("{}\n{}", help::EXAMPLES, help::mount_options()))
    };
    with_options(Cli::command(), "splicefs")
        .mut_subcommand("passthrough", |command| with_options(command, "splicefs passthrough"))
        .mut_subcommand("tmpfs", |command| {
            let hidden = ["no_mtab", "verbose", "sloppy"];
            let command =
                hidden.into_iter().fold(command, |command, name| command.mut_arg(name, |arg| arg.hide(true)));
            with_options(command, "splicefs tmpfs")
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parsed(arguments: &[&str]) -> Cli {
        let all = std::iter::once("splicefs").chain(arguments.iter().copied()).map(OsString::from);
        parse(all).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn both_forms_are_read() {
        let Some(Command::Passthrough { source, mount_point, mount }) =
            parsed(&["passthrough", "a", "b", "-o", "ro", "-f", "-o", "x=1,y"]).command
        else {
            panic!("a command")
        };
        assert_eq!((source, mount_point), ("a".into(), "b".into()));
        assert_eq!(mount.options, ["ro", "x=1,y"]);
        assert!(mount.foreground && !mount.debug);

        let form = parsed(&["/s", "/m", "-n", "-v", "-s", "-o", "backend=passthrough"]);
        assert!(form.command.is_none());
        let form = form.mount8;
        assert_eq!((form.source, form.mount_point), (Some("/s".into()), Some("/m".into())));
        assert!(form.flags.no_mtab && form.flags.verbose && form.flags.sloppy);
    }

    #[test]
    fn tmpfs_has_a_mount_point_alone_and_mount_8s_flags() {
        let Some(Command::Tmpfs { mount_point, mount, flags }) =
            parsed(&["tmpfs", "/m", "-n", "-s", "-v", "-o", "rw,backend=tmpfs"]).command
        else {
            panic!("a command")
        };
        assert_eq!((mount_point, mount.options), ("/m".into(), vec!["rw,backend=tmpfs".into()]));
        assert!(flags.no_mtab && flags.verbose && flags.sloppy);
    }

    #[test]
    fn new_limits_come_alone_or_behind_o() {
        let read = |arguments: &[&str]| match parsed(arguments).command {
            Some(Command::Resize { mount_point, limits, options }) => (mount_point, limits, options),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&["resize", "m", "size=1g"]), ("m".into(), Some("size=1g".into()), vec![]));
        assert_eq!(read(&["resize", "-o", "a=1", "m"]), ("m".into(), None, vec!["a=1".into()]));
    }

    #[test]
    fn a_path_that_is_not_utf8_is_kept() {
        let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe").to_owned();
        let arguments = ["splicefs".into(), "unmount".into(), "--lazy".into(), odd.clone()];
        let Some(Command::Unmount { mount_point, lazy }) = parse(arguments).expect("good").command else {
            panic!("a command")
        };
        assert!(lazy && mount_point == odd);
        for alias in ["-l", "-z"] {
            let command = parsed(&["unmount", alias, "m"]).command;
            assert!(matches!(command, Some(Command::Unmount { lazy: true, .. })), "{alias}");
        }
    }

    #[test]
    fn the_long_help_shows_every_option_and_examples() {
        let text = command().render_long_help().to_string();
        for needed in [
            "allow_other",
            "entry_timeout=SECONDS",
            "block_devices_as_files",
            "nr_inodes=N",
            "splicefs passthrough",
            "splicefs tmpfs",
        ] {
            assert!(text.contains(needed), "{needed}");
        }
    }
}
