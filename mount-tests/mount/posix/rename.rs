//! rename with every flag on every pair of types; link and unlink.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::process::{Gid, Uid};

use super::script::{Script, open, os};
use super::{differential, differential_with};
use crate::harness::Identity;

const KINDS: [&str; 6] = ["missing", "file", "empty", "full", "symlink", "fifo"];

fn make(script: &mut Script, kind: &str, name: &str) {
    match kind {
        "missing" => {}
        "file" => drop(script.file(name, name.as_bytes())),
        "empty" => drop(script.directory(name, 0o755)),
        "full" => {
            script.directory(name, 0o755);
            script.file(Path::new(name).join("inside"), b"x");
        }
        "symlink" => rustix::fs::symlink("target", script.at(name)).expect("symlink"),
        _ => rustix::fs::mkfifoat(CWD, script.at(name), Mode::RWXU).expect("mkfifo"),
    }
}

fn every_pair(script: &mut Script) {
    let flags = [
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
        RenameFlags::WHITEOUT,
        RenameFlags::NOREPLACE | RenameFlags::WHITEOUT,
        RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
        RenameFlags::EXCHANGE | RenameFlags::WHITEOUT,
    ];
    for flag in flags {
        for from in KINDS {
            for to in KINDS {
                let case = script.directory(format!("{}-{from}-{to}", flag.bits()), 0o755);
                let prefix = case.file_name().expect("a name").to_string_lossy().into_owned();
                let (left, right) = (format!("{prefix}/a"), format!("{prefix}/b"));
                make(script, from, &left);
                make(script, to, &right);
                let result = rustix::fs::renameat_with(CWD, script.at(&left), CWD, script.at(&right), flag);
                script.outcome(format_args!("rename {from} {to} {flag:?}"), result);
                script.attributes(&left);
                script.attributes(&right);
            }
        }
    }
}

#[test]
fn flags_on_every_pair_of_types() {
    differential(every_pair);
}

/// Without any caching in the kernel each step is asked for again.
#[test]
fn flags_on_every_pair_of_types_uncached() {
    differential_with("entry_timeout=0,attr_timeout=0", every_pair);
}

#[test]
fn between_directories_and_into_oneself() {
    differential(|script| {
        for name in ["a", "b", "a/sub", "a/sub/deep"] {
            script.directory(name, 0o755);
        }
        script.file("a/file", b"moves");
        script.outcome("into oneself", rustix::fs::rename(script.at("a"), script.at("a/sub/x")));
        script.outcome("over a parent", rustix::fs::rename(script.at("a/sub/deep"), script.at("a")));
        script.outcome("to itself", rustix::fs::rename(script.at("a"), script.at("a")));
        script.outcome("a file across", rustix::fs::rename(script.at("a/file"), script.at("b/file")));
        script.outcome("a directory across", rustix::fs::rename(script.at("a/sub"), script.at("b/sub")));
        for name in ["a", "b", "b/sub", "b/sub/deep", "b/file"] {
            script.attributes(name);
        }
        // `..` of a moved directory is its new parent.
        let parent = fs::metadata(script.at("b/sub/..")).expect("stat").ino();
        script.note("dot-dot", parent == fs::metadata(script.at("b")).expect("stat").ino());
        let two = RenameFlags::EXCHANGE;
        script.outcome(
            "exchange",
            rustix::fs::renameat_with(CWD, script.at("b/sub"), CWD, script.at("a"), two),
        );
        script.outcome("exchange with one's parent", {
            rustix::fs::renameat_with(CWD, script.at("b/sub"), CWD, script.at("b"), two)
        });
        // Hard links of one file: rename does nothing and succeeds.
        rustix::fs::link(script.at("b/file"), script.at("b/same")).expect("link");
        script
            .outcome("over another name of it", rustix::fs::rename(script.at("b/file"), script.at("b/same")));
        script.attributes("b/file");
    });
}

#[test]
fn open_files_survive_renames() {
    differential(|script| {
        let (old, new) = (script.file("old", b"old contents"), script.file("new", b"new contents"));
        let held_old = open(&old, OFlags::RDWR, 0).expect("open");
        let held_new = open(&new, OFlags::RDWR, 0).expect("open");
        script.outcome("rename over an open file", rustix::fs::rename(&old, &new));
        for (name, file) in [("moved", &held_old), ("overwritten", &held_new)] {
            let mut buffer = [0; 20];
            let length = std::os::unix::fs::FileExt::read_at(file, &mut buffer, 0).expect("read");
            script.note(name, buffer[..length].escape_ascii().to_string());
            script.note("links", file.metadata().expect("fstat").nlink());
            script.note("write", os(std::os::unix::fs::FileExt::write_at(file, name.as_bytes(), 4)));
            script.note("size", file.metadata().expect("fstat").len());
        }
        script.contents("new");
        // A directory that is in use moves as well.
        let directory = script.directory("dir", 0o755);
        script.file("dir/file", b"x");
        let held = open(&directory, OFlags::RDONLY | OFlags::DIRECTORY, 0).expect("open");
        script.outcome("rename an open directory", rustix::fs::rename(&directory, script.at("dir2")));
        script.outcome("stat below it", rustix::fs::statat(&held, "file", AtFlags::empty()));
        let created = rustix::fs::openat(&held, "later", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        script.outcome("create below it", created);
        script.attributes("dir2/later");
    });
}

#[test]
fn sticky_directories_protect() {
    differential(|script| {
        for mode in [0o777, 0o1777] {
            let directory = format!("dir{mode:o}");
            script.directory(&directory, mode);
            for owner in [4001, 4002] {
                let path = script.file(format!("{directory}/{owner}"), b"x");
                rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
                    .expect("chown");
            }
            let caller = Identity::user(4001);
            let (own, other) =
                (script.at(format!("{directory}/4001")), script.at(format!("{directory}/4002")));
            let third = script.at(format!("{directory}/third"));
            script.outcome_as(&caller, "rename another's", || rustix::fs::rename(&other, &third));
            script.outcome_as(&caller, "rename over another's", || rustix::fs::rename(&own, &other));
            script.outcome_as(&caller, "unlink another's", || rustix::fs::unlink(&other));
            script.outcome_as(&caller, "rename one's own", || rustix::fs::rename(&own, &third));
            script.outcome_as(&caller, "unlink one's own", || rustix::fs::unlink(&third));
        }
        let closed = script.directory("closed", 0o755);
        script.outcome_as(&Identity::user(4001), "create in root's", || {
            rustix::fs::mkdir(closed.join("x"), Mode::RWXU)
        });
    });
}

#[test]
fn links_share_one_inode() {
    differential(|script| {
        let first = script.file("first", b"shared");
        script.directory("dir", 0o755);
        for name in ["second", "dir/third"] {
            script.outcome("link", rustix::fs::link(&first, script.at(name)));
        }
        let inode = |name: &str| fs::symlink_metadata(script.at(name)).expect("lstat").ino();
        let same = inode("first") == inode("second") && inode("first") == inode("dir/third");
        script.note("one inode", same);
        script.note("write one", os(fs::write(script.at("second"), b"changed for all")));
        for name in ["first", "second", "dir/third"] {
            script.contents(name);
            script.attributes(name);
        }
        script.outcome("chmod one", rustix::fs::chmod(script.at("dir/third"), Mode::RUSR));
        script.attributes("first");
        script.outcome("unlink one", rustix::fs::unlink(&first));
        script.attributes("second");
        rustix::fs::symlink("second", script.at("link")).expect("symlink");
        script.outcome("link a symlink", rustix::fs::link(script.at("link"), script.at("link2")));
        let follow =
            rustix::fs::linkat(CWD, script.at("link"), CWD, script.at("followed"), AtFlags::SYMLINK_FOLLOW);
        script.outcome("link what it points to", follow);
        for (from, to) in
            [("dir", "x"), ("missing", "x"), ("second", "second"), ("second", "dir"), ("second", "no/x")]
        {
            script
                .outcome(format_args!("link {from} {to}"), rustix::fs::link(script.at(from), script.at(to)));
        }
        for name in ["link2", "followed", "link"] {
            script.attributes(name);
        }
    });
}

#[test]
fn removing_the_wrong_thing() {
    differential(|script| {
        for kind in KINDS {
            make(script, kind, kind);
        }
        for kind in KINDS {
            let path = script.at(kind);
            for other in [path.clone(), path.join("."), path.join("x"), path.join("..")] {
                script.outcome(format_args!("rmdir {kind}"), rustix::fs::rmdir(&other));
                if !(other == path && ["file", "symlink", "fifo"].contains(&kind)) {
                    script.outcome(format_args!("unlink {kind}"), rustix::fs::unlink(&other));
                }
            }
            script.attributes(kind);
        }
        let tree = script.at("full");
        script.outcome("remove a tree", os(fs::remove_dir_all(tree)));
    });
}
