//! Inode flags (chattr) by ioctl, and what they forbid.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::{IFlags, OFlags};
use rustix::io::Errno;

use super::differential;
use super::script::{Script, open, os};
use crate::harness::{Identity, as_caller};

fn flags_of(path: &Path) -> Result<IFlags, Errno> {
    rustix::fs::ioctl_getflags(open(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?)
}

fn set_flags(path: &Path, flags: IFlags) -> Result<(), Errno> {
    let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
    let old = rustix::fs::ioctl_getflags(&file)?;
    let changeable = IFlags::IMMUTABLE | IFlags::APPEND | IFlags::NODUMP | IFlags::NOATIME;
    rustix::fs::ioctl_setflags(&file, (old - changeable) | flags)
}

fn attempts(script: &mut Script, name: &str) {
    let path = script.at(name);
    script.outcome("open for writing", open(&path, OFlags::WRONLY, 0));
    script.outcome("open for appending", open(&path, OFlags::WRONLY | OFlags::APPEND, 0));
    script.outcome("open truncating", open(&path, OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC, 0));
    script.outcome("read", os(fs::read(&path)));
    script.outcome("chmod", rustix::fs::chmod(&path, rustix::fs::Mode::RWXU));
    script.outcome("link", rustix::fs::link(&path, path.with_extension("link")));
    script.outcome("setxattr", rustix::fs::setxattr(&path, "user.x", b"y", rustix::fs::XattrFlags::empty()));
    script.outcome("rename", rustix::fs::rename(&path, path.with_extension("renamed")));
    script.outcome("and back", rustix::fs::rename(path.with_extension("renamed"), &path));
    // Over a directory the kernel's FUSE client, which does not know the flags, says EISDIR before anyone is asked.
    if path.is_file() {
        script.outcome("rename over", rustix::fs::rename(script.at("spare"), &path));
    }
    script.outcome("create inside", open(&path.join("new"), OFlags::CREATE | OFlags::WRONLY, 0o644));
    script.outcome("remove inside", rustix::fs::unlink(path.join("kept")));
}

#[test]
fn flags_are_read_set_and_obeyed() {
    differential(|script| {
        for (letter, flag) in
            [("i", IFlags::IMMUTABLE), ("a", IFlags::APPEND), ("d", IFlags::NODUMP), ("A", IFlags::NOATIME)]
        {
            for kind in ["file", "dir"] {
                let name = format!("{kind}-{letter}");
                if kind == "dir" {
                    script.directory(&name, 0o755);
                    script.file(Path::new(&name).join("kept"), b"x");
                } else {
                    script.file(&name, b"contents");
                }
                script.file("spare", b"spare");
                let path = script.at(&name);
                script.outcome_as(&Identity::user(4001), format_args!("set +{letter}"), || {
                    set_flags(&path, flag)
                });
                let set = script.outcome(format_args!("set +{letter} on {kind}"), set_flags(&path, flag));
                script.note("flags", flags_of(&path));
                attempts(script, &name);
                let cleared = set.map(|()| set_flags(&path, IFlags::empty()));
                script.note("cleared", cleared);
                script.note("flags", flags_of(&path));
                script.outcome("unlink", rustix::fs::unlink(&path));
            }
        }
    });
}

fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("running a program of e2fsprogs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// lsattr and chattr, with project ids (FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR).
#[test]
fn the_programs_for_flags_work() {
    differential(|script| {
        for name in ["lsattr", "chattr"] {
            assert!(crate::harness::have_program(name), "{name} is missing: install e2fsprogs");
        }
        let path = script.file("file", b"x");
        script.directory("dir", 0o755);
        let directory = script.at("");
        let listing = |program: &str| {
            let text = said(Command::new(program).arg("-p").arg("file").current_dir(&directory));
            (text.0, text.1.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        script.note("lsattr -p", listing("lsattr"));
        for change in ["+A", "+d", "-A", "=d", "+i", "-i", "+a", "-a"] {
            let (code, _) = said(Command::new("chattr").arg(change).arg(&path));
            script.note(format_args!("chattr {change}"), code);
            script.note("lsattr -p", listing("lsattr"));
        }
        script.note("chattr -p", said(Command::new("chattr").args(["-p", "17"]).arg(&path)).0);
        script.note("lsattr -p", listing("lsattr"));
        script.note("lsattr -d", said(Command::new("lsattr").args(["-d", "dir"]).current_dir(&directory)));
    });
}

#[test]
fn other_ioctls_are_refused_alike() {
    differential(|script| {
        let path = script.file("file", &[b'x'; 10_000]);
        let file = open(&path, OFlags::RDWR, 0).expect("open");
        let waiting = rustix::io::ioctl_fionread(&file);
        // FIONREAD tells what is left to read of a regular file.
        script.note("FIONREAD", waiting);
        let cloned = open(&script.at("clone"), OFlags::CREATE | OFlags::RDWR, 0o644).expect("create");
        let stranger = as_caller(&Identity::user(4001), || flags_of(&path));
        script.note("flags for a stranger", stranger);
        drop(cloned);
    });
}
