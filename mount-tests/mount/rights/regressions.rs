//! What went wrong with rights that are lent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{mode, set_mode, users_layers};
use crate::harness::{
    ACCESS_ACL, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, NO_ID, Need, acl, aligned,
    as_caller, ready,
};
use crate::posix::script::open;

/// What a user's overlay makes of hard links takes marks at files that may not be written.
#[test]
fn regression_names_of_setuid_files_that_cannot_be_written_are_removed() {
    let Some((layers, user)) = users_layers() else { return };
    let lower = layers.lower().to_owned();
    as_caller(&user, || {
        fs::write(lower.join("one"), "x").expect("write");
        set_mode(&lower.join("one"), 0o4555);
        for name in ["two", "three"] {
            fs::hard_link(lower.join("one"), lower.join(name)).expect("link");
        }
    });
    let mount = layers.mount();
    as_caller(&user, || {
        fs::remove_file(mount.at("one")).expect("unlink");
        fs::rename(mount.at("two"), mount.at("moved")).expect("rename");
        let three = File::open(mount.at("three")).expect("open");
        three.set_modified(std::time::UNIX_EPOCH).expect("futimens");
        assert_eq!(
            (mode(&mount.at("moved")), fs::metadata(mount.at("three")).expect("stat").nlink()),
            (0o4555, 2)
        );
    });
}

/// Nor do those who ask for ACLs see rights that are lent.
#[test]
fn regression_acls_are_read_as_they_are() {
    let Some((layers, user)) = users_layers() else { return };
    let lower = layers.lower().to_owned();
    as_caller(&user, || {
        fs::create_dir(lower.join("closed")).expect("mkdir");
        for n in 0..400 {
            fs::write(lower.join("closed").join(n.to_string()), "lower").expect("write");
        }
        set_mode(&lower.join("closed"), 0o555);
        let entries = [
            (ACL_USER_OBJ, 5, NO_ID),
            (ACL_USER, 4, 5),
            (ACL_GROUP_OBJ, 5, NO_ID),
            (ACL_MASK, 5, NO_ID),
            (ACL_OTHER, 5, NO_ID),
        ];
        let (closed, acl) = (lower.join("closed"), acl(&entries));
        rustix::fs::setxattr(closed, ACCESS_ACL, &acl, rustix::fs::XattrFlags::empty()).expect("setfacl");
    });
    let mount = layers.mount();
    as_caller(&user, || {
        let closed = mount.at("closed");
        let get = || {
            let mut value = vec![0; 1000];
            let length = rustix::fs::getxattr(&closed, ACCESS_ACL, &mut value[..]).expect("getfacl");
            value.truncate(length);
            value
        };
        let before = get();
        std::thread::scope(|scope| {
            let copies = scope.spawn(|| {
                for n in 0..400 {
                    fs::write(closed.join(n.to_string()), "upper").expect("write");
                }
            });
            while !copies.is_finished() {
                // What the kernel has kept of it goes with the time.
                File::open(&closed)
                    .and_then(|dir| dir.set_modified(std::time::SystemTime::now()))
                    .expect("futimens");
                assert_eq!(get(), before);
            }
        });
    });
}

/// Somebody who holds a write lease (fcntl(2)) on `file` until its standard input ends. The calling thread's user does.
fn lease(file: &Path) -> Child {
    let script = "$SIG{IO} = 'IGNORE'; open(F, '+<', $ARGV[0]) && fcntl(F, 1024, 1) or die $!; $| = 1; print qq(held\n); <STDIN>";
    let mut holder = Command::new("perl")
        .args(["-e", script])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl");
    let mut said = [0; 5];
    holder.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a lease");
    holder
}

/// Whoever waits for a lease to be given back holds up nobody else, not those who need rights lent.
#[test]
fn regression_a_lease_on_a_file_that_is_lent_holds_up_nobody() {
    type Use = fn(&File) -> std::io::Result<usize>;
    let truncated: Use = |file| file.set_len(1).map(|()| 1);
    let read: Use = |file| file.read_at(&mut [0], 0);
    if !ready(&[Need::Program("perl")]) {
        return;
    }
    for (own, what) in [(0o600, truncated), (0, truncated), (0, read)] {
        let Some((layers, user)) = users_layers() else { return };
        let leased = layers.upper().join("leased");
        as_caller(&user, || fs::write(&leased, "x").expect("write"));
        let mount = layers.mount_with("open=zero");
        as_caller(&user, || {
            let file = open(&mount.at("leased"), OFlags::RDWR, 0).expect("open");
            fs::create_dir(mount.at("other")).expect("mkdir");
            set_mode(&mount.at("other"), 0o300);
            let mut holder = lease(&leased);
            set_mode(&mount.at("leased"), own);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| what(&file));
                std::thread::sleep(Duration::from_millis(300));
                let begun = Instant::now();
                fs::create_dir(mount.at("other/new")).expect("mkdir");
                fs::write(mount.at("other/new/file"), "x").expect("write");
                assert!(begun.elapsed() < Duration::from_secs(2), "others waited {:?}", begun.elapsed());
                assert!(!waiting.is_finished(), "a lease was broken by nobody");
                drop(holder.stdin.take());
                holder.wait().expect("waiting for the holder");
                assert_eq!(waiting.join().expect("who waited").expect("what was asked for"), 1);
            });
        });
    }
}

/// A mount that is read-only changes nothing, not for a moment.
#[test]
fn regression_a_read_only_mount_lends_nothing() {
    let Some((layers, user)) = users_layers() else { return };
    let closed = layers.upper().join("closed");
    as_caller(&user, || {
        fs::create_dir(&closed).expect("mkdir");
        set_mode(&closed, 0o300);
    });
    let changed = || fs::metadata(&closed).map(|meta| (meta.ctime(), meta.ctime_nsec())).expect("stat");
    let before = changed();
    let mount = layers.mount_with("ro");
    as_caller(&user, || assert_eq!(mode(&mount.at("closed")), 0o300));
    assert_eq!(changed(), before);
}

/// A second descriptor, past the page cache, cannot be had then.
#[test]
fn regression_a_file_is_created_read_only_with_o_direct() {
    let Some((layers, user)) = users_layers() else { return };
    let mount = layers.mount();
    as_caller(&user, || {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT | OFlags::RDWR;
        let mut file = open(&mount.at("direct"), flags, 0o444).expect("create");
        let mut buffer = Vec::new();
        let page = aligned(&mut buffer, 4096);
        page.fill(7);
        file.write_all(page).expect("write");
        file.read_exact_at(page, 0).expect("read");
        assert_eq!((page[0], page[4095]), (7, 7));
    });
}

/// A mode that was in the way is not any more when rights are to be lent.
#[test]
fn regression_a_mode_that_comes_and_goes_refuses_nothing() {
    const FILES: u32 = 3000;
    let Some((layers, user)) = users_layers() else { return };
    let upper = layers.upper().to_owned();
    as_caller(&user, || {
        for n in 0..FILES {
            fs::write(upper.join(n.to_string()), "x").expect("write");
        }
    });
    let mount = layers.mount_with("open=zero");
    as_caller(&user, || {
        let path = |n: u32| mount.at(n.to_string());
        let files: Vec<File> = (0..FILES).map(|n| File::open(path(n)).expect("open")).collect();
        let at = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (n, file) in (0..).zip(&files) {
                    at.store(n, Ordering::Relaxed);
                    file.read_at(&mut [0], 0).unwrap_or_else(|e| panic!("reading file {n}: {e}"));
                }
                at.store(FILES, Ordering::Relaxed);
            });
            for _ in 0..3 {
                scope.spawn(|| {
                    for mode in [0, 0o644].into_iter().cycle() {
                        let n = at.load(Ordering::Relaxed);
                        if n == FILES {
                            break;
                        }
                        set_mode(&path(n), mode);
                    }
                });
            }
        });
    });
}
