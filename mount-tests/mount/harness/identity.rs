//! Doing things as someone else. Linux credentials belong to threads, so a thread of its own is enough, and the other
//! tests of the process notice nothing.

use std::thread;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid, umask};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// A caller: ids, supplementary groups and umask.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
}

impl Identity {
    /// Root with the usual umask.
    pub(crate) const fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), umask: 0o022 }
    }

    /// A user in the group of the same number and in no other, with the usual umask.
    pub(crate) const fn user(id: u32) -> Self {
        Self { uid: id, gid: id, groups: Vec::new(), umask: 0o022 }
    }

    /// The real unprivileged user ([`unprivileged_user`]).
    pub(crate) fn unprivileged() -> Self {
        let (uid, gid) = unprivileged_user();
        Self { gid, ..Self::user(uid) }
    }

    pub(crate) fn with_groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    pub(crate) const fn with_umask(mut self, umask: u32) -> Self {
        self.umask = umask;
        self
    }

    fn assume(&self) -> rustix::io::Result<()> {
        #[allow(
            deprecated,
            reason = "CLONE_FS separates umask and working directory, which nothing here shares"
        )]
        rustix::thread::unshare(UnshareFlags::FS)?;
        umask(Mode::from_raw_mode(self.umask));
        if rustix::process::geteuid().is_root() {
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
        }
        Ok(())
    }
}

/// Runs `action` in a thread that is `identity`.
pub(crate) fn as_caller<T: Send>(identity: &Identity, action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            identity.assume().expect("taking on an identity");
            action()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The uid and gid of the real unprivileged user that tests become: `SPLICEFS_TESTS_USER`, by default `nobody`.
pub(crate) fn unprivileged_user() -> (u32, u32) {
    let name = std::env::var("SPLICEFS_TESTS_USER").unwrap_or_else(|_| "nobody".into());
    let user = nix::unistd::User::from_name(&name).expect("reading the user database");
    let user = user.unwrap_or_else(|| panic!("there is no user {name}"));
    (user.uid.as_raw(), user.gid.as_raw())
}
