//! What `-o` says about an overlay: its layers, and how they are merged.

use std::ffi::OsStr;
use std::path::PathBuf;

use splicefs_overlay::{Config, CopyupOwner, Namespace, Owners, Records, Redirect, Xino};
use splicefs_tmpfs::Resize;

use super::lowers::{LOWERS_MAX, LowerDir, lowers, too_many};
use super::values::utf8;
use crate::failure::Failure;

/// A read of more than that is spliced, and takes long beside the round trip that is saved.
const DEFAULT_PREFETCH: usize = 32 * 1024;

/// The layers, and how they are merged.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a mount option of its own")]
pub struct OverlayOptions {
    /// `lowerdir=`, `lowerdir+=`, `datadir+=`: the topmost first, data-only ones last.
    pub lowers: Vec<LowerDir>,
    /// The lower layers were given one by one.
    one_by_one: bool,
    /// `upperdir=`.
    pub upper: Option<PathBuf>,
    /// `workdir=`.
    pub work: Option<PathBuf>,
    /// `upper=tmpfs`: changes are kept in memory, within these limits.
    pub in_memory: Option<Resize>,
    /// `redirect_dir=`.
    pub redirect: Option<Redirect>,
    /// `metacopy=`.
    pub metacopy: bool,
    /// `index=`.
    pub index: bool,
    /// `xino=`.
    pub xino: Xino,
    /// `userxattr`.
    pub userxattr: bool,
    /// `noacl`.
    pub noacl: bool,
    /// `volatile`, `fsync=0`.
    pub volatile: bool,
    /// `prefetch=`, in bytes: lower files up to this size come with the reply to their open.
    pub prefetch: usize,
    /// `static_nlink`.
    pub static_nlink: bool,
    /// `uidmapping=`, `gidmapping=`, `squash_to_root`, `squash_to_uid=`, `squash_to_gid=`.
    pub owners: Owners,
    /// `xattr_permissions=`.
    pub records: Option<Records>,
    /// `copyup_owner=`.
    pub copyup_owner: Option<CopyupOwner>,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        let Config { metacopy, index, xino, volatile, static_nlink, .. } = Config::default();
        Self {
            lowers: Vec::new(),
            one_by_one: false,
            upper: None,
            work: None,
            in_memory: None,
            redirect: None,
            metacopy,
            index,
            xino,
            userxattr: false,
            noacl: false,
            volatile,
            prefetch: DEFAULT_PREFETCH,
            static_nlink,
            owners: Owners::default(),
            records: None,
            copyup_owner: None,
        }
    }
}

impl OverlayOptions {
    /// Whether there is nowhere for changes to go.
    pub fn has_no_upper(&self) -> bool {
        self.upper.is_none() && self.in_memory.is_none()
    }

    /// Reads the value of `lowerdir=`, escapes and all. It replaces what an earlier one said.
    pub(super) fn set_lowers(&mut self, value: &OsStr) -> Result<(), String> {
        if self.one_by_one {
            return Err(NOT_MIXED.to_owned());
        }
        self.lowers = lowers(value)?;
        Ok(())
    }

    /// Reads the value of `lowerdir+=` or `datadir+=`: one more layer, below the others.
    pub(super) fn add_lower(&mut self, value: &OsStr, data_only: bool) -> Result<(), String> {
        if !self.lowers.is_empty() && !self.one_by_one {
            return Err(NOT_MIXED.to_owned());
        }
        if value.is_empty() {
            return Err("a directory".to_owned());
        }
        if !data_only && self.lowers.last().is_some_and(|lower| lower.data_only) {
            return Err("no further `lowerdir+` after the first `datadir+`".to_owned());
        }
        if self.lowers.len() == LOWERS_MAX {
            return Err(too_many());
        }
        self.lowers.push(LowerDir { path: value.into(), data_only });
        self.one_by_one = true;
        Ok(())
    }

    /// Reads the value of `upper=`.
    pub(super) fn set_upper_in_memory(&mut self, value: &OsStr) -> Result<(), String> {
        let mut words = utf8(value).split(':');
        if words.next() != Some("tmpfs") {
            return Err(format!("{IN_MEMORY} (a directory is given as `upperdir`)"));
        }
        let mut limits = Resize::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let read = match name {
                "size" => limits.set_size(value),
                "nr_blocks" => limits.set_blocks(value),
                "nr_inodes" => limits.set_inodes(value),
                _ => return Err(IN_MEMORY.to_owned()),
            };
            read.map_err(|expected| format!("for `{name}` {expected}"))?;
        }
        self.in_memory = Some(limits);
        Ok(())
    }

    /// Checks what no option can be told alone.
    ///
    /// # Errors
    /// A line that names the options.
    pub fn check(&self) -> Result<(), Failure> {
        match self.contradiction() {
            Some(line) => Err(Failure::usage(line)),
            None => Ok(()),
        }
    }

    fn contradiction(&self) -> Option<&'static str> {
        if self.lowers.is_empty() {
            return Some("an overlay needs a lower directory: `-o lowerdir=DIR`");
        }
        if self.lowers.iter().all(|lower| lower.data_only) {
            return Some("every lower directory is data-only: at least one must have names in it");
        }
        match (&self.upper, &self.work) {
            (None, None) => {}
            _ if self.in_memory.is_some() => {
                return Some("`upper=tmpfs` keeps changes in memory: leave `upperdir` and `workdir` out");
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) => {
                return Some(
                    "`upperdir` needs a `workdir`: an empty directory beside it, on the same file system",
                );
            }
            (None, Some(_)) => return Some("`workdir` is of no use without `upperdir`"),
        }
        self.metacopy_without_redirect().then_some(
            "`metacopy=on` needs `redirect_dir=on`: a renamed file leads to its data by a redirect",
        )
    }

    /// As the kernel has it (fs/overlayfs/params.c, `ovl_fs_params_verify`): what has been renamed leads to its data by
    /// a redirect.
    fn metacopy_without_redirect(&self) -> bool {
        self.metacopy && self.redirect.is_some_and(|redirect| redirect != Redirect::On)
    }

    /// How the layers are merged, with attributes in `namespace`, and with `usual_owner` for a copy whose owner cannot be kept.
    ///
    /// # Errors
    /// A line that names the option that cannot be had there.
    pub fn config(&self, namespace: Namespace, usual_owner: CopyupOwner) -> Result<Config, Failure> {
        if self.metacopy && namespace == Namespace::User {
            // fs/overlayfs/params.c, `ovl_fs_params_verify`.
            return Err(Failure::usage(
                "`metacopy=on` is not to be had with `userxattr`, which is the default unless you are the machine's root: a user could make a file show another one's contents",
            ));
        }
        // With `user.` attributes the kernel follows no redirect: it would refuse the directory.
        let usual = if namespace == Namespace::Trusted { Redirect::On } else { Redirect::Copy };
        Ok(Config {
            namespace,
            redirect: self.redirect.unwrap_or(usual),
            metacopy: self.metacopy,
            index: self.index,
            xino: self.xino,
            volatile: self.volatile,
            static_nlink: self.static_nlink,
            owners: self.owners.clone(),
            acls: self.has_acls(),
            copyup_owner: self.copyup_owner.unwrap_or(usual_owner),
        })
    }

    /// Whether files have POSIX ACLs. These name users and groups, so a mount where all are one has none.
    pub fn has_acls(&self) -> bool {
        !self.noacl && self.records.is_none() && self.owners.can_be_named()
    }

    /// Whether permissions are those of the files in the layers: who may open a file in the mount may open it there.
    pub fn has_permissions_of_layers(&self) -> bool {
        self.has_acls() && self.owners.are_plain()
    }
}

const NOT_MIXED: &str = "either `lowerdir` or any number of `lowerdir+` and `datadir+`, not both";
const IN_MEMORY: &str = "`tmpfs`, perhaps with limits behind it, such as `tmpfs:size=1g:nr_inodes=10k`";

#[cfg(test)]
mod tests;
