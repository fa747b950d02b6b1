//! Extended attributes: namespaces, flags, sizes, lists.

use std::path::Path;

use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;

use super::differential;
use super::script::{Script, summary};
use crate::harness::Identity;

fn get(path: &Path, name: &str, room: usize) -> Result<String, Errno> {
    let mut value = vec![0; room];
    rustix::fs::lgetxattr(path, name, &mut value[..]).map(|length| summary(&value[..length]))
}

fn list(path: &Path) -> Result<Vec<String>, Errno> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut names: Vec<String> = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| name.escape_ascii().to_string())
        .collect();
    names.sort();
    Ok(names)
}

fn subjects(script: &mut Script) -> [&'static str; 4] {
    script.file("file", b"x");
    script.directory("dir", 0o755);
    rustix::fs::symlink("file", script.at("link")).expect("symlink");
    rustix::fs::mkfifoat(rustix::fs::CWD, script.at("fifo"), Mode::RWXU).expect("mkfifo");
    ["file", "dir", "link", "fifo"]
}

#[test]
fn namespaces_on_every_type() {
    differential(|script| {
        let names = [
            "user.a",
            "trusted.b",
            "security.c",
            "security.capability",
            "system.d",
            "unknown.e",
            "plain",
            "user.",
            "trusted.",
            ".",
            "user.\u{e9}",
            "USER.a",
        ];
        for subject in subjects(script) {
            let path = script.at(subject);
            for name in names {
                for caller in [Identity::user(4001), Identity::root()] {
                    let set = || rustix::fs::lsetxattr(&path, name, b"value", XattrFlags::empty());
                    script.outcome_as(&caller, format_args!("set {name} on {subject}"), set);
                    script.outcome_as(&caller, format_args!("get {name}"), || get(&path, name, 100));
                }
            }
            script.note(format_args!("list of {subject}"), list(&path));
            for name in names {
                script.outcome(format_args!("remove {name}"), rustix::fs::lremovexattr(&path, name));
                script.outcome(format_args!("remove {name} again"), rustix::fs::lremovexattr(&path, name));
            }
            script.note(format_args!("list of {subject}"), list(&path));
        }
    });
}

#[test]
fn create_and_replace() {
    differential(|script| {
        let path = script.file("file", b"x");
        let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
        let both = XattrFlags::CREATE | XattrFlags::REPLACE;
        for name in ["user.a", "trusted.b"] {
            script.outcome("replace nothing", set(name, b"1", XattrFlags::REPLACE));
            script.outcome("both", set(name, b"2", both));
            script.outcome("create", set(name, b"3", XattrFlags::CREATE));
            script.outcome("create again", set(name, b"4", XattrFlags::CREATE));
            script.note("value", get(&path, name, 100));
            script.outcome("replace", set(name, b"5", XattrFlags::REPLACE));
            script.outcome("both", set(name, b"6", both));
            script.note("value", get(&path, name, 100));
            script.outcome("set empty", set(name, b"", XattrFlags::empty()));
            script.note("empty value", get(&path, name, 100));
        }
    });
}

#[test]
fn sizes_are_told_and_kept_to() {
    differential(|script| {
        let path = script.file("file", b"x");
        script.note("list of nothing", rustix::fs::listxattr_query(&path));
        for length in [0, 1, 100, 1000, 3000] {
            let value = crate::harness::fill(0, length);
            let name = format!("user.of{length}");
            script.outcome(
                format_args!("set {length}"),
                rustix::fs::setxattr(&path, &name, &value, XattrFlags::empty()),
            );
            script.note("its size", rustix::fs::getxattr_query(&path, &name));
            for room in [1, length.saturating_sub(1).max(1), length.max(1), length + 100] {
                script.note(format_args!("with room for {room}"), get(&path, &name, room));
            }
            rustix::fs::removexattr(&path, &name).expect("removexattr");
        }
        for length in [60_000, 65_536, 65_537] {
            let value = vec![b'v'; length];
            let set = rustix::fs::setxattr(&path, "user.long", &value, XattrFlags::empty());
            script.outcome(format_args!("set {length}"), set);
            script.note("it is", get(&path, "user.long", 65_536));
        }
        for length in [200, 249, 250, 251, 300] {
            let name = format!("user.{}", "n".repeat(length));
            script.outcome(format_args!("name of {length}"), {
                rustix::fs::setxattr(&path, &name, b"x", XattrFlags::empty())
            });
            script.note("it is", get(&path, &name, 100));
        }
        script.note("list size", rustix::fs::listxattr_query(&path));
        let mut small = [0; 10];
        script.note("list without room", rustix::fs::listxattr(&path, &mut small[..]));
        script.note("list", list(&path));
    });
}

#[test]
fn by_descriptor_and_through_links() {
    differential(|script| {
        let path = script.file("file", b"x");
        rustix::fs::symlink("file", script.at("link")).expect("symlink");
        let file = std::fs::File::open(&path).expect("open");
        script.outcome(
            "fsetxattr",
            rustix::fs::fsetxattr(&file, "user.fd", b"by descriptor", XattrFlags::empty()),
        );
        let link = script.at("link");
        script.outcome(
            "through a link",
            rustix::fs::setxattr(&link, "user.link", b"followed", XattrFlags::empty()),
        );
        let mut names = [0; 200];
        let length = rustix::fs::flistxattr(&file, &mut names[..]);
        script.note("flistxattr", length);
        script.note("list", list(&path));
        script.outcome("fremovexattr", rustix::fs::fremovexattr(&file, "user.link"));
        script.note("list", list(&path));
        script.outcome(
            "of a missing file",
            rustix::fs::setxattr(script.at("no"), "user.a", b"", XattrFlags::empty()),
        );
    });
}

#[test]
fn permissions_are_those_of_the_data() {
    differential(|script| {
        let path = script.file("file", b"x");
        rustix::fs::setxattr(&path, "user.a", b"secret", XattrFlags::empty()).expect("setxattr");
        rustix::fs::setxattr(&path, "trusted.a", b"secret", XattrFlags::empty()).expect("setxattr");
        for mode in [0o600, 0o604, 0o602, 0o606] {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
            let caller = Identity::user(4001);
            script.outcome_as(&caller, format_args!("get with {mode:o}"), || get(&path, "user.a", 100));
            script.outcome_as(&caller, "get trusted", || get(&path, "trusted.a", 100));
            script.outcome_as(&caller, "set", || {
                rustix::fs::setxattr(&path, "user.b", b"x", XattrFlags::empty())
            });
            script.outcome_as(&caller, "remove", || rustix::fs::removexattr(&path, "user.b"));
            let listed = crate::harness::as_caller(&caller, || list(&path));
            script.note("list", listed);
        }
    });
}
