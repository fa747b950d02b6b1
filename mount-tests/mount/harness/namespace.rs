//! Mounts of users that others may enter.

use std::fs;
use std::thread;

use nix::mount::{MsFlags, mount};
use rustix::thread::UnshareFlags;

use super::scratch;

/// Runs `action` in a thread with mounts of its own, where `/etc/fuse.conf` lets users mount with `allow_other`: no other test sees that.
pub(crate) fn with_user_allow_other<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    let dir = scratch();
    let conf = dir.path().join("fuse.conf");
    fs::write(&conf, "user_allow_other\n").expect("write");
    let in_namespace = || {
        #[allow(deprecated, reason = "mounts are separated, and not descriptors")]
        rustix::thread::unshare(UnshareFlags::NEWNS).expect("unshare");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some(&conf), "/etc/fuse.conf", none, MsFlags::MS_BIND, none).expect("a bind mount");
        action()
    };
    thread::scope(|scope| match scope.spawn(in_namespace).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
