//! The directory in which everything is made, and which is gone at the end.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use tempfile::{NamedTempFile, TempDir};

use crate::args::Args;
use crate::{Result, mountinfo};

/// A directory of our own; at the end whatever is still mounted in it is unmounted, and it is removed.
pub(crate) struct Directory {
    // Dropped in this order: the image after what is mounted of it.
    dir: TempDir,
    image: Option<NamedTempFile>,
}

/// Room on the ext4, if it is one of its own. The file has holes: it occupies what is written.
const IMAGE_BYTES: u64 = 8 << 30;

impl Directory {
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let base = args.dir.clone().or_else(|| std::env::var_os("SPLICEFS_BENCH_DIR").map(PathBuf::from));
        let base = fs::canonicalize(base.unwrap_or_else(|| "/var/tmp".into()))?;
        let dir = tempfile::Builder::new().prefix("splicefs-bench-").tempdir_in(base)?;
        let mut directory = Self { dir, image: None };
        if let Some(at) = &args.image {
            let image = tempfile::Builder::new().prefix("splicefs-bench-").suffix(".ext4").tempfile_in(at)?;
            image.as_file().set_len(IMAGE_BYTES)?;
            succeed(
                Command::new("mkfs.ext4")
                    .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
                    .arg(image.path()),
            )?;
            succeed(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(directory.dir.path()))?;
            directory.image = Some(image);
        }
        // Other users pass through it.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the data lies on, for the report.
    pub(crate) fn file_system(&self) -> Result<String> {
        let kind = match rustix::fs::fstatfs(File::open(self.path())?)?.f_type {
            0xef53 => "ext4".to_owned(),
            0x5846_5342 => "xfs".to_owned(),
            0x9123_683e => "btrfs".to_owned(),
            0x0102_1994 => "tmpfs".to_owned(),
            other => format!("file system {other:#x}"),
        };
        Ok(if self.image.is_some() { format!("{kind} in a file") } else { kind })
    }
}

/// Runs `command`, which must succeed.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}: {}", output.status, told.trim()).into());
    }
    Ok(())
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Never into a mount with the removal of the directory.
        let unmounted = mountinfo::below(self.path())
            .and_then(|points| points.iter().try_for_each(|point| Ok(umount2(point, MntFlags::MNT_DETACH)?)));
        if let Err(error) = unmounted {
            eprintln!("{} is left as it is: {error}", self.path().display());
            self.dir.disable_cleanup(true);
        }
    }
}
