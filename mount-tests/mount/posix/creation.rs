//! Making things: modes under a umask, setgid directories, default ACLs, special files.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::differential;
use super::script::{Script, open, os};
use crate::harness::{
    ACCESS_ACL, ACL_GROUP, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, Identity, NO_ID, acl,
    as_caller,
};

const MODES: [u32; 12] = [0, 0o400, 0o600, 0o644, 0o666, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6777];

/// Creates one of each type with `mode` in `directory`; the names start with `prefix`.
pub(crate) fn one_of_each(directory: &Path, prefix: &str, mode: u32) -> Vec<(String, Result<(), Errno>)> {
    let at = |kind: &str| directory.join(format!("{prefix}-{kind}"));
    let raw = Mode::from_raw_mode(mode);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let results = vec![
        ("file", open(&at("file"), flags, mode).map(drop)),
        ("dir", rustix::fs::mkdir(at("dir"), raw)),
        ("node", rustix::fs::mknodat(CWD, at("node"), FileType::RegularFile, raw, 0)),
        ("fifo", rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, raw, 0)),
        ("socket", rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, raw, 0)),
        ("link", rustix::fs::symlink("nowhere", at("link"))),
    ];
    results.into_iter().map(|(kind, result)| (format!("{prefix}-{kind}"), result)).collect()
}

/// As [`one_of_each`] as `identity`, recording outcomes and attributes.
pub(crate) fn create_all(script: &mut Script, directory: &str, identity: &Identity, modes: &[u32]) {
    let path = script.at(directory);
    for &mode in modes {
        let prefix = format!("{}-{}-{:o}-{mode:o}", identity.uid, identity.gid, identity.umask);
        for (name, result) in as_caller(identity, || one_of_each(&path, &prefix, mode)) {
            script.outcome(format_args!("create {name}"), result);
            script.attributes(Path::new(directory).join(name));
        }
    }
}

/// A default ACL that names a user and a group, with a mask that takes writing away.
pub(crate) fn named_acl(mask: u16) -> Vec<u8> {
    acl(&[
        (ACL_USER_OBJ, 7, NO_ID),
        (ACL_USER, 7, 4001),
        (ACL_GROUP_OBJ, 5, NO_ID),
        (ACL_GROUP, 7, 4242),
        (ACL_MASK, mask, NO_ID),
        (ACL_OTHER, 0, NO_ID),
    ])
}

/// Sets an ACL and records whether the file system has any.
pub(crate) fn set_acl(script: &mut Script, name: &str, kind: &str, value: &[u8]) {
    let result = rustix::fs::setxattr(script.at(name), kind, value, XattrFlags::empty());
    script.outcome(format_args!("set {kind} on {name}"), result);
}

#[test]
fn modes_follow_the_umask() {
    differential(|script| {
        for umask in [0, 0o022, 0o027, 0o077, 0o777] {
            create_all(script, "", &Identity::root().with_umask(umask), &MODES);
            create_all(script, "", &Identity::user(4001).with_umask(umask), &MODES);
        }
    });
}

#[test]
fn setgid_directories_give_their_group() {
    differential(|script| {
        for (name, mode) in [("setgid", 0o2777), ("setgid-sticky", 0o3777), ("plain", 0o777)] {
            let path = script.directory(name, 0o755);
            rustix::fs::chown(&path, None, Some(rustix::process::Gid::from_raw(4242))).expect("chown");
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
            create_all(script, name, &Identity::root(), &[0o644, 0o2755, 0o2745, 0o6777]);
            create_all(
                script,
                name,
                &Identity::user(4001).with_groups(&[4242]),
                &[0o644, 0o2755, 0o2745, 0o6777],
            );
            create_all(
                script,
                name,
                &Identity::user(4002).with_groups(&[77]),
                &[0o644, 0o2755, 0o2745, 0o6777],
            );
        }
    });
}

#[test]
fn default_acls_are_inherited() {
    differential(|script| {
        for (name, mask) in [("wide", 7), ("narrow", 5), ("none", 0)] {
            script.directory(name, 0o777);
            set_acl(script, name, "system.posix_acl_default", &named_acl(mask));
            for umask in [0, 0o022, 0o077] {
                create_all(script, name, &Identity::root().with_umask(umask), &[0o600, 0o666, 0o777]);
                create_all(script, name, &Identity::user(4001).with_umask(umask), &[0o600, 0o666, 0o777]);
            }
            // Two levels down it is still inherited.
            let below = script.at(name).join("below");
            script.outcome("mkdir below", rustix::fs::mkdir(&below, Mode::from_raw_mode(0o777)));
            create_all(script, &format!("{name}/below"), &Identity::root(), &[0o666]);
        }
    });
}

#[test]
fn acl_and_mode_change_each_other() {
    differential(|script| {
        let path = script.file("file", b"contents");
        set_acl(script, "file", ACCESS_ACL, &named_acl(7));
        script.attributes("file");
        for mode in [0o600, 0o640, 0o755, 0o2777] {
            script.outcome("chmod", rustix::fs::chmod(&path, Mode::from_raw_mode(mode)));
            script.attributes("file");
            let mut value = [0; 256];
            let length = rustix::fs::getxattr(&path, ACCESS_ACL, &mut value[..]);
            script.note("access ACL", length.map(|length| value[..length].to_vec()));
        }
        script.outcome("remove it", rustix::fs::removexattr(&path, ACCESS_ACL));
        script.attributes("file");
        set_acl(script, "file", "system.posix_acl_default", &named_acl(7));
        set_acl(script, "file", ACCESS_ACL, b"nonsense");
        set_acl(script, "file", ACCESS_ACL, &acl(&[(ACL_USER_OBJ, 7, NO_ID)]));
        let minimal = acl(&[(ACL_USER_OBJ, 6, NO_ID), (ACL_GROUP_OBJ, 4, NO_ID), (ACL_OTHER, 4, NO_ID)]);
        set_acl(script, "file", ACCESS_ACL, &minimal);
        let stranger = Identity::user(4009);
        script.outcome_as(&stranger, "set an ACL", || {
            rustix::fs::setxattr(&path, ACCESS_ACL, &minimal, XattrFlags::empty())
        });
    });
}

#[test]
fn devices_are_made_by_root_only() {
    differential(|script| {
        let (null, disk) = (rustix::fs::makedev(1, 3), rustix::fs::makedev(7, 250));
        for (name, kind, device) in [
            ("null", FileType::CharacterDevice, null),
            ("zero-zero", FileType::CharacterDevice, 0),
            ("disk", FileType::BlockDevice, disk),
        ] {
            let path = script.at(name);
            let make = || rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device);
            script.outcome_as(&Identity::user(4001), format_args!("mknod {name}"), make);
            script.outcome(format_args!("mknod {name}"), make());
            script.outcome(format_args!("mknod {name} again"), make());
            script.attributes(name);
        }
        if let Some(device) = script.outcome("open null", open(&script.at("null"), OFlags::RDWR, 0)) {
            script.outcome("write null", rustix::io::write(&device, b"gone"));
            let mut buffer = [0; 8];
            script.note("read null", rustix::io::read(&device, &mut buffer[..]));
        }
        script.outcome("open disk", open(&script.at("disk"), OFlags::RDONLY, 0));
    });
}

#[test]
fn fifos_and_sockets_connect() {
    differential(|script| {
        let path = script.at("fifo");
        script.outcome("mkfifo", rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)));
        script.outcome("open without a reader", open(&path, OFlags::WRONLY | OFlags::NONBLOCK, 0));
        let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, 0).expect("the reading end");
        let writer = open(&path, OFlags::WRONLY | OFlags::NONBLOCK, 0).expect("the writing end");
        script.note("write", rustix::io::write(&writer, b"through the fifo"));
        let mut buffer = [0; 64];
        let length = rustix::io::read(&reader, &mut buffer[..]).expect("reading a fifo");
        script.note("read", &buffer[..length]);

        // A socket's address has 108 bytes; the working directory of this thread is its own.
        rustix::process::chdir(script.at("")).expect("chdir");
        let listener = script.outcome("bind", os(UnixListener::bind("socket")));
        script.attributes("socket");
        script.outcome("bind again", os(UnixListener::bind("socket")));
        script.outcome("connect", os(UnixStream::connect("socket")));
        drop(listener);
        script.outcome("connect to nobody", os(UnixStream::connect("socket")));
        script.outcome("open a socket", open(&script.at("socket"), OFlags::RDONLY, 0));
        rustix::process::chdir("/").expect("chdir");
    });
}
