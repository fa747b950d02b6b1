//! Who may do what: mode bits, groups and ACLs decide as natively.

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::creation::{named_acl, set_acl};
use super::differential;
use super::script::{Script, open};
use crate::harness::{ACCESS_ACL, Identity, as_caller};

fn callers() -> [Identity; 6] {
    [
        Identity::root(),
        Identity::user(4001),
        Identity::user(4002),
        Identity::user(4003).with_groups(&[4001]),
        Identity::user(4003).with_groups(&[4242, 77]),
        Identity::user(4004),
    ]
}

/// Everything that permission bits decide, as a row of letters for what is allowed.
fn allowed(path: &Path) -> String {
    type Try = fn(&Path) -> Result<(), Errno>;
    let tries: [(char, Try); 9] = [
        ('f', |p| rustix::fs::access(p, Access::EXISTS)),
        ('r', |p| rustix::fs::access(p, Access::READ_OK)),
        ('w', |p| rustix::fs::access(p, Access::WRITE_OK)),
        ('x', |p| rustix::fs::access(p, Access::EXEC_OK)),
        ('e', |p| rustix::fs::accessat(CWD, p, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS)),
        ('R', |p| open(p, OFlags::RDONLY, 0).map(drop)),
        ('W', |p| open(p, OFlags::WRONLY, 0).map(drop)),
        ('B', |p| open(p, OFlags::RDWR, 0).map(drop)),
        ('s', |p| rustix::fs::stat(p).map(drop)),
    ];
    tries.map(|(letter, attempt)| if attempt(path).is_ok() { letter } else { '-' }).into_iter().collect()
}

fn note_allowed(script: &mut Script, name: &str) {
    let path = script.at(name);
    for caller in callers() {
        let row = as_caller(&caller, || allowed(&path));
        script.note(format_args!("{name} for {}:{}{:?}", caller.uid, caller.gid, caller.groups), row);
    }
}

#[test]
fn mode_bits_decide() {
    differential(|script| {
        for mode in [0, 0o400, 0o040, 0o004, 0o755, 0o070, 0o007, 0o111, 0o640, 0o777] {
            let path = script.file("file", b"x");
            rustix::fs::chown(&path, Some(Uid::from_raw(4001)), Some(Gid::from_raw(4001))).expect("chown");
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
            note_allowed(script, "file");
            script.attributes("file");
            rustix::fs::unlink(&path).expect("unlink");
        }
    });
}

#[test]
fn directories_must_be_passable() {
    differential(|script| {
        let directory = script.directory("dir", 0o755);
        script.file("dir/file", b"x");
        rustix::fs::chown(&directory, Some(Uid::from_raw(4001)), Some(Gid::from_raw(4242))).expect("chown");
        for mode in [0, 0o700, 0o710, 0o770, 0o111, 0o444, 0o755, 0o777] {
            rustix::fs::chmod(&directory, Mode::from_raw_mode(mode)).expect("chmod");
            note_allowed(script, "dir");
            note_allowed(script, "dir/file");
            for caller in callers() {
                let (made, held) = (directory.join("made"), directory.clone());
                script.outcome_as(&caller, "mkdir", || rustix::fs::mkdir(&made, Mode::RWXU));
                script.outcome_as(&caller, "rmdir", || rustix::fs::rmdir(&made));
                script.outcome_as(&caller, "list", || {
                    std::fs::read_dir(&held).map(drop).map_err(|e| super::script::errno(&e))
                });
            }
        }
    });
}

#[test]
fn acls_decide() {
    differential(|script| {
        for mask in [0, 4, 5, 6, 7] {
            for name in ["file", "dir"] {
                let path =
                    if name == "dir" { script.directory(name, 0o700) } else { script.file(name, b"x") };
                set_acl(script, name, ACCESS_ACL, &named_acl(mask));
                script.attributes(name);
                note_allowed(script, name);
                std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)).expect("remove");
            }
        }
    });
}

#[test]
fn programs_run_from_the_mount() {
    differential(|script| {
        let path = script.file("program", b"#!/bin/sh\necho ran \"$1\"\n");
        for mode in [0o644, 0o755, 0o700] {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
            for caller in [Identity::root(), Identity::user(4001)] {
                let output = as_caller(&caller, || std::process::Command::new(&path).arg("well").output());
                script.note(
                    format_args!("run {mode:o} as {}", caller.uid),
                    output.map(|output| output.stdout).map_err(|e| e.raw_os_error()),
                );
            }
        }
        let copy = script.at("true");
        std::fs::copy("/bin/true", &copy).expect("copying a program");
        let status = std::process::Command::new(&copy).status();
        script.note("a real program", status.map(|status| status.code()).map_err(|e| e.raw_os_error()));
    });
}
