//! setuid, setgid and file capabilities go when a file is changed by someone without the right to keep them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::differential;
use super::script::{Script, open, os};
use crate::harness::{Identity, aligned};

type Action = fn(&File, &Path) -> Result<(), Errno>;

const ACTIONS: [(&str, Action); 12] = [
    ("write", |file, _| os(file.write_at(b"changed", 0)).map(drop)),
    ("append", |_, path| {
        let file = open(path, OFlags::WRONLY | OFlags::APPEND, 0)?;
        rustix::io::write(&file, b"more").map(drop)
    }),
    ("direct write", |_, path| {
        let file = open(path, OFlags::WRONLY | OFlags::DIRECT, 0)?;
        let mut memory = Vec::new();
        os(file.write_at(aligned(&mut memory, 4096), 0)).map(drop)
    }),
    ("write nothing", |file, _| os(file.write_at(b"", 0)).map(drop)),
    ("ftruncate shorter", |file, _| os(file.set_len(3))),
    ("ftruncate longer", |file, _| os(file.set_len(30_000))),
    ("ftruncate to the same", |file, _| os(file.metadata().and_then(|meta| file.set_len(meta.len())))),
    ("open with O_TRUNC", |_, path| open(path, OFlags::WRONLY | OFlags::TRUNC, 0).map(drop)),
    ("fallocate", |file, _| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 20_000)),
    ("punch", |file, _| {
        rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)
    }),
    ("zero", |file, _| rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE, 0, 4096)),
    ("copy_file_range", |file, path| {
        let from = open(&path.with_file_name("other"), OFlags::RDONLY, 0)?;
        rustix::fs::copy_file_range(from, Some(&mut 0), file, Some(&mut 0), 100).map(drop)
    }),
];

fn changed_by(script: &mut Script, caller: &Identity) {
    script.file("other", &[b'o'; 1000]);
    for mode in [0o4777, 0o2777, 0o6777, 0o2767, 0o6767, 0o6711] {
        for owner in [0, 4001] {
            for (name, action) in ACTIONS {
                let path = script.file("file", &[b'x'; 8192]);
                rustix::fs::chown(&path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(4242)))
                    .expect("chown");
                // The descriptor is the caller's if it may have one.
                rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
                let step = format!("{name} of {owner}'s {mode:o}");
                script.outcome_as(caller, step, || action(&open(&path, OFlags::RDWR, 0)?, &path));
                script.attributes("file");
            }
        }
    }
}

#[test]
fn changed_by_root_they_stay() {
    differential(|script| changed_by(script, &Identity::root()));
}

#[test]
fn changed_by_a_stranger_they_go() {
    differential(|script| changed_by(script, &Identity::user(4001)));
}

#[test]
fn changed_by_a_member_of_the_group_they_go() {
    differential(|script| changed_by(script, &Identity::user(4001).with_groups(&[4242])));
}

#[test]
fn chown_clears_them() {
    differential(|script| {
        for mode in [0o4777, 0o2777, 0o6755, 0o2767, 0o6711, 0o2700] {
            for (uid, gid) in [(Some(4001), None), (None, Some(4242)), (Some(4001), Some(4242)), (None, None)]
            {
                for caller in [Identity::root(), Identity::user(4001).with_groups(&[4242])] {
                    for kind in ["file", "dir"] {
                        let name = format!("{kind}-{mode:o}-{uid:?}-{gid:?}-{}", caller.uid);
                        let path = if kind == "dir" {
                            script.directory(&name, 0o755)
                        } else {
                            script.file(&name, b"x")
                        };
                        let (owner, group) = (Some(Uid::from_raw(4001)), Some(Gid::from_raw(4001)));
                        rustix::fs::chown(&path, owner, group).expect("chown");
                        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
                        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                        script.outcome_as(&caller, "chown", || rustix::fs::chown(&path, uid, gid));
                        script.attributes(&name);
                    }
                }
            }
        }
    });
}

/// cap_net_raw, permitted and effective, version 2 (capabilities(7)).
pub(crate) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn capability(path: &Path) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 64];
    rustix::fs::getxattr(path, "security.capability", &mut value[..]).map(|length| value[..length].to_vec())
}

#[test]
fn file_capabilities_are_set_by_root_and_go_with_changes() {
    differential(|script| {
        script.file("other", &[b'o'; 1000]);
        for caller in [Identity::root(), Identity::user(4001)] {
            for (name, action) in ACTIONS {
                let path = script.file("file", &[b'x'; 8192]);
                rustix::fs::chmod(&path, Mode::from_raw_mode(0o777)).expect("chmod");
                let set =
                    || rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty());
                script.outcome_as(&Identity::user(4001), "set a capability", set);
                script.outcome("set a capability", set());
                script.note("it is", capability(&path));
                script.outcome_as(&caller, name, || action(&open(&path, OFlags::RDWR, 0)?, &path));
                script.note(format_args!("after {name}"), capability(&path));
            }
        }
        let path = script.file("given", b"x");
        rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty())
            .expect("setxattr");
        rustix::fs::chown(&path, Some(Uid::from_raw(4001)), None).expect("chown");
        script.note("after chown", capability(&path));
    });
}
