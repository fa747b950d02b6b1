//! Who mounts and measures.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use nix::unistd::{Gid, Uid};

use crate::Result;

/// A user of this machine.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    uid: Uid,
    gid: Gid,
}

impl FromStr for User {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = nix::unistd::User::from_name(name).map_err(|error| error.to_string())?;
        let found = found.ok_or("there is no such user")?;
        Ok(Self { name: name.to_owned(), uid: found.uid, gid: found.gid })
    }
}

impl User {
    /// Makes `command` run as this user, without further groups.
    pub(crate) fn become_in(&self, command: &mut Command) {
        command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
    }

    /// Gives a file or directory to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<()> {
        Ok(std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))?)
    }
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
