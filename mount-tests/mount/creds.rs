//! A root mount that others use: what they create is theirs, exactly as natively.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};

use crate::harness::{Identity, Mount, Need, as_caller, ready};
use crate::posix::creation::{create_all, named_acl, set_acl};
use crate::posix::script::{Script, open};
use crate::posix::{differential, differential_with};

fn callers() -> [Identity; 6] {
    [
        Identity::root().with_umask(0),
        Identity::user(4001),
        Identity { gid: 4242, ..Identity::user(4001) },
        Identity::user(4002).with_groups(&[4242, 77, 4001]).with_umask(0o002),
        Identity::user(4003).with_groups(&(5000..5040).collect::<Vec<_>>()).with_umask(0o077),
        Identity::user(65534),
    ]
}

/// Directories that treat what is created in them differently.
fn directories(script: &mut Script) -> [&'static str; 6] {
    let names = ["plain", "sticky", "setgid", "acl", "setgid-acl", "closed"];
    for (name, mode) in names.iter().zip([0o777, 0o1777, 0o2777, 0o777, 0o2777, 0o750]) {
        let path = script.directory(name, 0o755);
        rustix::fs::chown(&path, Some(Uid::from_raw(4009)), Some(Gid::from_raw(4242))).expect("chown");
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
        if name.ends_with("acl") {
            set_acl(script, name, "system.posix_acl_default", &named_acl(6));
        }
    }
    names
}

fn everyone_creates(script: &mut Script) {
    for name in directories(script) {
        for caller in callers() {
            create_all(script, name, &caller, &[0o666, 0o777, 0o2775, 0o4711]);
        }
    }
}

#[test]
fn what_is_created_belongs_to_its_creator() {
    differential(everyone_creates);
}

#[test]
fn what_is_created_belongs_to_its_creator_uncached() {
    differential_with("entry_timeout=0,attr_timeout=0,default_permissions", everyone_creates);
}

/// Many callers at once: a worker thread that kept one caller's credentials would show.
#[test]
fn callers_do_not_mix() {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().options("allow_other,threads=4").start();
    rustix::fs::chmod(mount.source(), Mode::from_raw_mode(0o777)).expect("chmod");
    let root = mount.point();
    std::thread::scope(|scope| {
        for id in 4100..4108 {
            scope.spawn(move || {
                as_caller(&Identity::user(id).with_umask(id % 8), || {
                    for number in 0..300 {
                        let path = root.join(format!("{id}-{number}"));
                        open(&path, OFlags::CREATE | OFlags::WRONLY, 0o666).expect("create");
                        let meta = fs::metadata(&path).expect("stat");
                        let expected = (id, id, 0o666 & !(id % 8));
                        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), expected, "{path:?}");
                    }
                });
            });
        }
    });
}

/// What root may do through its capabilities a caller without them may not.
#[test]
fn the_daemons_privilege_is_not_the_callers() {
    differential(|script| {
        let secret = script.file("secret", b"root only");
        rustix::fs::chmod(&secret, Mode::from_raw_mode(0o600)).expect("chmod");
        let closed = script.directory("closed", 0o700);
        fs::write(closed.join("inside"), b"x").expect("write");
        let caller = Identity::user(4001);
        let inside = closed.join("inside");
        script.outcome_as(&caller, "read a secret", || open(&secret, OFlags::RDONLY, 0));
        script.outcome_as(&caller, "write a secret", || open(&secret, OFlags::WRONLY, 0));
        script.outcome_as(&caller, "truncate a secret", || {
            nix::unistd::truncate(&secret, 0).map_err(|e| rustix::io::Errno::from_raw_os_error(e as i32))
        });
        script.outcome_as(&caller, "stat inside", || rustix::fs::stat(&inside));
        script.outcome_as(&caller, "create inside", || rustix::fs::mkdir(closed.join("x"), Mode::RWXU));
        script.outcome_as(&caller, "remove a secret", || rustix::fs::unlink(&secret));
        script.outcome_as(&caller, "link a secret", || rustix::fs::link(&secret, secret.with_extension("x")));
        script.outcome_as(&caller, "chmod a secret", || rustix::fs::chmod(&secret, Mode::RWXO));
        script.contents("secret");
    });
}
