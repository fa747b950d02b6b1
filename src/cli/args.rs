//! The arguments, as clap reads them.

use std::ffi::OsString;
use std::path::Path;

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
    /// Mount directories merged into one, as the kernel's overlayfs; lower ones are never written
    Overlay {
        /// The directory to mount on; made when only its last part is missing
        #[arg(value_name = "MNT")]
        mount_point: OsString,
        #[command(flatten)]
        mount: MountArgs,
        /// `mount -t fuse.splicefs overlay MNT` puts them behind what then reads as this command.
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

/// The form mount(8) and fstab use through a mount helper. With one word it is that of container engines.
#[derive(Args, Debug)]
pub(super) struct Mount8 {
    /// What to mount, with `-o backend=NAME`: a directory, or for tmpfs and overlay any name; left out, -o must have
    /// lowerdir= (`splicefs -o lowerdir=A:B,upperdir=U,workdir=W MNT`, a mount_program)
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

/// The name under which this program takes the arguments of fuse-overlayfs.
pub(super) const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// The program called as fuse-overlayfs: there are no commands, and any word is a place.
#[derive(Parser, Debug)]
#[command(
    name = "splicefs",
    bin_name = FUSE_OVERLAYFS,
    version,
    about = "Merge directories: `splicefs overlay` with the arguments of fuse-overlayfs"
)]
pub(super) struct FuseOverlayfs {
    /// The directory to mount on, perhaps behind a name for the mount
    #[arg(value_name = "MNT", required = true, num_args = 1..=2)]
    pub(super) places: Vec<OsString>,
    #[command(flatten)]
    pub(super) mount: MountArgs,
    #[command(flatten)]
    pub(super) flags: HelperFlags,
}

/// The arguments, by the name of the program.
#[derive(Debug)]
pub(super) enum Arguments {
    Splicefs(Box<Cli>),
    FuseOverlayfs(FuseOverlayfs),
}

/// Whether the program was called by the name of fuse-overlayfs.
pub(super) fn is_fuse_overlayfs(arguments: &[OsString]) -> bool {
    arguments.first().and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == FUSE_OVERLAYFS)
}

/// Reads `arguments`, the program's name first.
pub(super) fn parse(arguments: &[OsString]) -> Result<Arguments, clap::Error> {
    if is_fuse_overlayfs(arguments) {
        return FuseOverlayfs::try_parse_from(arguments).map(Arguments::FuseOverlayfs);
    }
    let matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches).map(Box::new).map(Arguments::Splicefs)
}

fn command() -> clap::Command {
    let with_options = |command: clap::Command, words: &str| {
        command
            .after_help(format!("`{words} --help` has examples and all mount options."))
            .after_long_help(format!("{}\n{}", help::EXAMPLES, help::mount_options()))
    };
    let without_flags = |command: clap::Command| {
        let hidden = ["no_mtab", "verbose", "sloppy"];
        hidden.into_iter().fold(command, |command, name| command.mut_arg(name, |arg| arg.hide(true)))
    };
    with_options(Cli::command(), "splicefs")
        .mut_subcommand("passthrough", |command| with_options(command, "splicefs passthrough"))
        .mut_subcommand("tmpfs", |command| with_options(without_flags(command), "splicefs tmpfs"))
        .mut_subcommand("overlay", |command| with_options(without_flags(command), "splicefs overlay"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parsed(arguments: &[&str]) -> Cli {
        let all = std::iter::once("splicefs").chain(arguments.iter().copied()).map(OsString::from);
        parsed_as_they_are(&all.collect::<Vec<_>>())
    }

    fn parsed_as_they_are(arguments: &[OsString]) -> Cli {
        match parse(arguments) {
            Ok(Arguments::Splicefs(cli)) => *cli,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn under_the_name_of_fuse_overlayfs_every_word_is_a_place() {
        let read = |arguments: &[&str]| match parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
        {
            Ok(Arguments::FuseOverlayfs(form)) => form,
            other => panic!("{arguments:?}: {other:?}"),
        };
        let form = read(&["/usr/bin/fuse-overlayfs", "-o", "lowerdir=a", "-f", "-o", "ro", "stats"]);
        assert_eq!(
            (form.places, form.mount.options),
            (vec!["stats".into()], vec!["lowerdir=a".into(), "ro".into()])
        );
        assert!(form.mount.foreground);
        let form = read(&["fuse-overlayfs", "overlay", "/m", "-o", "lowerdir=a,dev,suid"]);
        assert_eq!(form.places, ["overlay", "/m"]);
        for bad in [&["fuse-overlayfs"][..], &["fuse-overlayfs", "a", "b", "c"]] {
            parse(&bad.iter().map(OsString::from).collect::<Vec<_>>()).expect_err("no places, or too many");
        }
        FuseOverlayfs::command().debug_assert();
    }

    #[test]
    fn an_overlay_has_a_mount_point_alone_and_so_has_a_mount_program() {
        let Some(Command::Overlay { mount_point, mount, flags }) =
            parsed(&["overlay", "/m", "-n", "-o", "rw,backend=overlay,lowerdir=/a:/b"]).command
        else {
            panic!("a command")
        };
        assert_eq!(
            (mount_point, mount.options),
            ("/m".into(), vec!["rw,backend=overlay,lowerdir=/a:/b".into()])
        );
        assert!(flags.no_mtab);
        let form = parsed(&["-o", "lowerdir=l/A,upperdir=/u,workdir=/w", "/m", "-d"]);
        assert!(form.command.is_none() && form.mount8.mount.debug);
        assert_eq!((form.mount8.source, form.mount8.mount_point), (Some("/m".into()), None));
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
        let Some(Command::Unmount { mount_point, lazy }) = parsed_as_they_are(&arguments).command else {
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
            "lowerdir=DIR:DIR::DATA",
            "splicefs passthrough",
            "splicefs tmpfs",
        ] {
            assert!(text.contains(needed), "{needed}");
        }
    }
}
