//! Taking a name from its file for a caller: removing, renaming, replacing.
//!
//! What the kernel has checked is the file that it knows by the name. In a mirrored directory another may be there by now, for as long as names
//! are kept, and UNLINK and RENAME carry names alone. In most directories that makes no difference, since natively it is the directory that
//! must be writable. It does in two cases, which are decided here, by what is there now:
//!
//! - from a sticky directory only the owners of the file and of the directory take a name (`check_sticky` in fs/namei.c);
//! - a directory that is moved to another parent must be writable itself (`vfs_rename`).
//!
//! A daemon that can take the caller's identity on lets the source decide, in the call itself. Any other one has only the time between looking
//! and the call to decide in, in which the file can be replaced. So it does not take what belongs to the caller from a sticky directory of
//! somebody else: that directory would let it take anybody's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Statx, fstat};
use splicefs_core::sys::creds::{As, Standing};
use splicefs_core::{Caller, Errno, Error, FileKind, Name, RenameFlags, Result};

use crate::node::Node;
use crate::stat;
use crate::tree::Tree;

/// A name that is taken from what it leads to.
#[derive(Clone, Copy)]
pub(crate) struct Taken<'a> {
    pub(crate) dir: &'a OwnedFd,
    pub(crate) name: &'a Name,
}

/// A directory, and what is known to be found in it by a name.
pub(crate) type Known<'a> = (&'a Arc<Node>, Option<&'a (Arc<Node>, Statx)>);

/// Refused by the rights of the caller.
fn is_refusal(e: &Error) -> bool {
    matches!(e.errno(), Errno::EPERM | Errno::EACCES)
}

impl Taken<'_> {
    /// The owner of the directory, if it is sticky.
    fn sticky(&self) -> Result<Option<u32>> {
        let st = fstat(self.dir)?;
        Ok((st.st_mode & libc::S_ISVTX != 0).then_some(st.st_uid))
    }

    fn is_there(&self) -> Result<bool> {
        match stat::of_name(self.dir.as_fd(), self.name.as_c_str()) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Errno::ENOENT => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a capability lets the caller take it.
    fn is_for_capable(&self, caller: &Caller) -> Result<bool> {
        let st = stat::of_name(self.dir.as_fd(), self.name.as_c_str())?;
        Ok(caller.owns_all(st.stx_uid, st.stx_gid))
    }
}

impl Tree {
    /// Does `what`, which takes `names` from what they lead to, if the caller may. `what` is told whether it acts as the caller.
    pub(crate) fn taking<T>(
        &self,
        caller: &Caller,
        names: &[Taken<'_>],
        what: impl Fn(bool) -> Result<T>,
    ) -> Result<T> {
        let standing = if *caller == Caller::DAEMON { Standing::Own } else { caller.standing()? };
        if standing == Standing::Own {
            return what(false);
        }
        let mut sticky = Vec::new();
        for taken in names {
            if let Some(owner) = taken.sticky()? {
                sticky.push((taken, owner));
            }
        }
        if sticky.is_empty() {
            return what(false);
        }
        if standing == Standing::Assumable {
            let refused = {
                let _guard = caller.act(As::Remover, false)?;
                match what(true) {
                    Err(e) if e.errno() == Errno::EPERM => e,
                    done => return done,
                }
            };
            for (taken, _) in sticky {
                if taken.is_there()? && !taken.is_for_capable(caller)? {
                    return Err(refused);
                }
            }
            return what(false);
        }
        for (taken, owner) in sticky {
            if owner != caller.uid && !taken.is_for_capable(caller)? {
                return Err(Errno::EPERM.into());
            }
        }
        what(false)
    }

    /// As [`Tree::taking`], of a rename from the first name to the second by `rename`, which is told the flags as well. `directories` are
    /// the parents and the nodes known of what gets another parent, in the order of the names.
    pub(crate) fn renaming(
        &self,
        caller: &Caller,
        [from, to]: [Taken<'_>; 2],
        directories: &[Known<'_>],
        flags: RenameFlags,
        rename: impl Fn(bool, u32) -> Result<()>,
    ) -> Result<()> {
        let standing = if *caller == Caller::DAEMON { Standing::Own } else { caller.standing()? };
        if standing == Standing::Own {
            return rename(false, flags.0);
        }
        let names = [from, to];
        // What is not known may be a directory; the kernel knows what it renames.
        let may_move_directory = directories
            .iter()
            .any(|(_, known)| known.is_none_or(|(node, _)| node.identity().kind() == FileKind::Directory));
        if may_move_directory {
            if standing == Standing::Assumable && caller.pid != 0 {
                let refused = {
                    let _guard = caller.act(As::Caller, true)?;
                    match rename(true, flags.0) {
                        Err(e) if is_refusal(&e) => e,
                        done => return done,
                    }
                };
                for (taken, _) in names.iter().zip(directories) {
                    let st = stat::of_name(taken.dir.as_fd(), taken.name.as_c_str())?;
                    if !caller.overrides_modes_of(st.stx_uid, st.stx_gid) {
                        return Err(refused);
                    }
                }
            } else {
                for (taken, (parent, known)) in names.iter().zip(directories) {
                    if !known.is_some_and(|(node, _)| node.is_at(parent, taken.name)) {
                        return Err(Errno::ESTALE.into());
                    }
                }
            }
        }
        let exchanges = flags.0 & libc::RENAME_EXCHANGE != 0;
        if exchanges || to.is_there()? {
            return self.taking(caller, &names, |acting| rename(acting, flags.0));
        }
        if standing == Standing::Assumable {
            return self.taking(caller, &names, |acting| rename(acting, flags.0));
        }
        let careful = to.sticky()?.is_some();
        let noreplace = if careful { flags.0 | libc::RENAME_NOREPLACE } else { flags.0 };
        match self.taking(caller, &[from], |acting| rename(acting, noreplace)) {
            // There is something to be replaced now, which has not been decided on.
            Err(e) if e.errno() == Errno::EEXIST && noreplace != flags.0 => Err(Errno::ESTALE.into()),
            done => done,
        }
    }
}
