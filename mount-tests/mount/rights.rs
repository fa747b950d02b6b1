//! Who has opened a file goes on reading and writing it, whatever becomes of its mode or of those above it: also where the daemon is a
//! user, who may not open it again, and has not been asked to open it in the first place.

mod regressions;
mod strangers;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::harness::{Identity, Need, as_caller, fill, first_difference, ready};
use crate::overlay::{Ground, Layers, Overlay};
use crate::posix::script::open;

/// How files are opened, and what is written gets to the daemon.
const MANNERS: [&str; 4] =
    ["open=zero", "open=zero,writeback=off", "open=handle", "open=handle,writeback=off"];
const LENGTH: usize = 20_000;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("stat of {path:?}: {e}")).mode() & 0o7777
}

/// Layers of a user, who is returned as well.
fn users_layers() -> Option<(Layers, Identity)> {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts])
        .then(|| (Layers::simple().of_user(), Identity::unprivileged()))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .unwrap_or_else(|e| panic!("chmod of {path:?}: {e}"));
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH + 100];
    let length = file.read_at(&mut bytes, 0).expect("read");
    bytes.truncate(length);
    bytes
}

/// A user's overlay in each manner, with files `lower` and `dir/lower` below and `upper`, `dir/upper` above; nothing is open or cached
/// yet. Afterwards `check` looks at the upper layer.
fn in_each_manner(descriptors: Option<u64>, what: impl Fn(&Overlay) + Sync, check: impl Fn(&Layers)) {
    for manner in MANNERS {
        println!("{manner}");
        let Some((mut layers, user)) = users_layers() else { return };
        if let Some(limit) = descriptors {
            layers = layers.descriptor_limit(limit);
        }
        let (lower, upper) = (layers.lower().to_owned(), layers.upper().to_owned());
        as_caller(&user, || {
            for (layer, name) in [(&lower, "lower"), (&upper, "upper")] {
                fs::create_dir(layer.join("dir")).expect("mkdir");
                for path in [layer.join(name), layer.join("dir").join(name)] {
                    fs::write(path, fill(0, LENGTH)).expect("write");
                }
            }
        });
        let mount = layers.mount_with(manner);
        as_caller(&user, || what(&mount));
        mount.unmount();
        check(&layers);
    }
}

#[test]
fn a_file_whose_mode_takes_all_rights_away_is_read_and_written_on() {
    in_each_manner(
        None,
        |mount| {
            for name in ["lower", "upper"] {
                let reader = File::open(mount.at(name)).expect("open");
                let writer = open(&mount.at(name), OFlags::RDWR, 0).expect("open for writing");
                set_mode(&mount.at(name), 0);
                writer.write_all_at(b"written", 3).expect("write");
                writer.sync_all().expect("fsync");
                let seen = contents(&reader);
                assert_eq!((&seen[3..10], first_difference(&seen[10..], 10)), (&b"written"[..], None));
                assert_eq!(contents(&writer), seen);
                writer.set_len(5).expect("ftruncate");
                assert_eq!(contents(&reader).len(), 5);
                assert_eq!(mode(&mount.at(name)), 0);
                assert_eq!(File::open(mount.at(name)).unwrap_err().raw_os_error(), Some(libc::EACCES));
            }
        },
        |layers| {
            for name in ["lower", "upper"] {
                assert_eq!(mode(&layers.upper().join(name)), 0, "the mode of {name}");
                assert_eq!(
                    fs::read(layers.upper().join(name)).expect("read"),
                    [&fill(0, 3)[..], b"wr"].concat()
                );
            }
        },
    );
}

/// Nothing was opened before the directories were closed.
#[test]
fn a_file_is_read_and_written_on_when_its_directory_is_closed() {
    in_each_manner(
        None,
        |mount| {
            for name in ["dir/lower", "dir/upper"] {
                let file = open(&mount.at(name), OFlags::RDWR, 0).expect("open");
                // In the upper layer already, so that nothing below the directory need be found to do it.
                set_mode(&mount.at("dir"), 0);
                let written = file.write_all_at(b"written", 3).and_then(|()| file.sync_all());
                let seen = contents(&file);
                set_mode(&mount.at("dir"), 0o755);
                written.unwrap_or_else(|e| panic!("writing {name}: {e}"));
                assert_eq!(
                    (&seen[3..10], first_difference(&seen[10..], 10)),
                    (&b"written"[..], None),
                    "{name}"
                );
            }
        },
        |layers| assert_eq!(mode(&layers.upper().join("dir")), 0o755),
    );
}

/// Of a page that is written in part the kernel reads the rest.
#[test]
fn a_file_that_may_be_written_and_not_read_is_appended_to() {
    in_each_manner(
        None,
        |mount| {
            set_mode(&mount.at("upper"), 0o200);
            let mut blind = open(&mount.at("upper"), OFlags::WRONLY | OFlags::APPEND, 0).expect("open");
            blind.write_all(b"end").expect("append");
        },
        |layers| {
            let upper = layers.upper().join("upper");
            assert_eq!(mode(&upper), 0o200);
            let seen = fs::read(upper).expect("read");
            assert_eq!((first_difference(&seen[..LENGTH], 0), &seen[LENGTH..]), (None, &b"end"[..]));
        },
    );
}

/// As archives are unpacked: more files than descriptors, none of which may be written by its mode.
#[test]
fn files_created_read_only_are_written_however_many_are_open() {
    const FILES: u64 = 600;
    in_each_manner(
        Some(1024),
        |mount| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let created = |n: u64| open(&mount.at(n.to_string()), flags, 0o444).expect("create");
            let mut files: Vec<File> = (0..FILES).map(created).collect();
            for (n, file) in (0..FILES).zip(&mut files) {
                file.write_all(&fill(n, 3000)).expect("write");
            }
            for file in &files {
                file.sync_all().expect("fsync");
                file.set_len(2999).expect("ftruncate");
            }
        },
        |layers| {
            for n in 0..FILES {
                let path = layers.upper().join(n.to_string());
                let seen = fs::read(&path).expect("read");
                assert_eq!((mode(&path), seen.len(), first_difference(&seen, n)), (0o444, 2999, None));
            }
        },
    );
}

/// Setuid and setgid bits stay; what others may write is not lent with them, who might clear them meanwhile.
#[test]
fn special_bits_are_there_afterwards() {
    in_each_manner(
        None,
        |mount| {
            let [own, others] = ["upper", "dir/upper"].map(|name| File::open(mount.at(name)).expect("open"));
            set_mode(&mount.at("upper"), 0o6111);
            set_mode(&mount.at("dir/upper"), 0o4022);
            assert_eq!(own.read_at(&mut [0; 10], 0).expect("read"), 10);
            match others.read_at(&mut [0; 10], 0) {
                Ok(10) => {}
                Err(e) => assert_eq!(Errno::from_io_error(&e), Some(Errno::ACCESS)),
                Ok(other) => panic!("{other} bytes"),
            }
        },
        |layers| {
            assert_eq!(mode(&layers.upper().join("upper")), 0o6111);
            assert_eq!(mode(&layers.upper().join("dir/upper")), 0o4022);
        },
    );
}

/// While the daemon lends itself rights, nobody sees them, and whoever changes a mode meanwhile has changed it.
#[test]
fn nobody_sees_rights_that_are_lent() {
    in_each_manner(
        Some(1024),
        |mount| {
            let dir = mount.at("many");
            fs::create_dir(&dir).expect("mkdir");
            let path = |n: u32| dir.join(n.to_string());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
            let files: Vec<File> = (0..300).map(|n| open(&path(n), flags, 0o444).expect("create")).collect();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for file in files.iter().chain(&files).chain(&files) {
                        file.write_all_at(b"x", 1).and_then(|()| file.sync_data()).expect("write");
                    }
                });
                scope.spawn(|| {
                    for n in (0..300).rev() {
                        set_mode(&path(n), 0o400);
                    }
                });
                scope.spawn(|| {
                    for n in (0..300).cycle().take(3000) {
                        assert!(matches!(mode(&path(n)), 0o444 | 0o400), "{:o}", mode(&path(n)));
                    }
                });
            });
            for n in 0..300 {
                assert_eq!(mode(&path(n)), 0o400);
            }
        },
        |layers| {
            for n in 0..300 {
                assert_eq!(mode(&layers.upper().join("many").join(n.to_string())), 0o400);
            }
        },
    );
}

/// As trees of packages are that nobody is to change: what is in them may be changed all the same, by the modes of the files.
#[test]
fn files_in_directories_that_cannot_be_written_are_copied_up() {
    let Some((layers, user)) = users_layers() else { return };
    let lower = layers.lower().to_owned();
    as_caller(&user, || {
        for directory in ["read", "read/sub", "read/sub/deep"] {
            fs::create_dir(lower.join(directory)).expect("mkdir");
            fs::write(lower.join(directory).join("file"), "old").expect("write");
            fs::write(lower.join(directory).join("other"), "old").expect("write");
        }
        for directory in ["read/sub/deep", "read/sub", "read"] {
            set_mode(&lower.join(directory), 0o555);
        }
    });
    let mount = layers.mount();
    as_caller(&user, || {
        fs::write(mount.at("read/sub/deep/file"), "new")
            .expect("writing a file of a directory that cannot be written");
        set_mode(&mount.at("read/file"), 0o640);
        File::open(mount.at("read/sub/file"))
            .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
            .expect("touching one");
        // What the modes forbid is forbidden.
        for name in ["read/sub/file", "read/sub/new"] {
            let denied = fs::rename(mount.at("read/other"), mount.at(name)).unwrap_err();
            assert_eq!(Errno::from_io_error(&denied), Some(Errno::ACCESS));
        }
        let denied = fs::remove_file(mount.at("read/sub/other")).unwrap_err();
        assert_eq!(Errno::from_io_error(&denied), Some(Errno::ACCESS));
        set_mode(&mount.at("read/sub"), 0o755);
        fs::remove_file(mount.at("read/sub/other")).expect("unlink");
        fs::rename(mount.at("read/sub/file"), mount.at("read/sub/moved")).expect("rename");
        assert_eq!(fs::read_dir(mount.at("read/sub")).expect("readdir").count(), 2);
        for (directory, shown) in [("read", 0o555), ("read/sub", 0o755), ("read/sub/deep", 0o555)] {
            assert_eq!(mode(&mount.at(directory)), shown, "{directory}");
        }
    });
    mount.unmount();
    let upper = |name: &str| layers.upper().join(name);
    assert_eq!(fs::read(upper("read/sub/deep/file")).expect("read"), b"new");
    assert_eq!((mode(&upper("read/file")), mode(&upper("read"))), (0o640, 0o555));
    assert_eq!((mode(&upper("read/sub")), mode(&upper("read/sub/deep"))), (0o755, 0o555));
}

/// An overlay keeps marks at directories, which it cannot read where they are closed: that is no reason not to show them.
#[test]
fn directories_that_cannot_be_read_are_shown() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let user = Identity::unprivileged();
    let layers = Layers::new(Ground::Directory, 2).of_user();
    for lower in &layers.lowers {
        fs::create_dir(lower.join("roots")).expect("mkdir");
        set_mode(&lower.join("roots"), 0o700);
    }
    let (lower, upper) = (layers.lowers[1].clone(), layers.upper().to_owned());
    as_caller(&user, || {
        fs::create_dir_all(lower.join("own/hidden")).expect("mkdir");
        fs::create_dir(lower.join("merged")).expect("mkdir");
        fs::create_dir(upper.join("merged")).expect("mkdir");
        set_mode(&upper.join("merged"), 0o300);
    });
    let mount = layers.mount();
    let listed = || {
        let names = fs::read_dir(mount.point()).expect("readdir").map(|entry| {
            let entry = entry.expect("an entry");
            (entry.file_name().into_string().expect("a name"), mode(&entry.path()))
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    as_caller(&user, || {
        // One that hides what is below it goes on hiding it.
        fs::remove_dir_all(mount.at("own")).expect("rm -r");
        fs::create_dir(mount.at("own")).expect("mkdir");
        set_mode(&mount.at("own"), 0);
        let shown =
            [("merged", 0o300), ("own", 0), ("roots", 0o700)].map(|(name, mode)| (name.to_owned(), mode));
        assert_eq!(listed(), shown);
        fs::write(mount.at("merged/new"), "x").expect("write");
        set_mode(&mount.at("own"), 0o755);
        assert_eq!(fs::read_dir(mount.at("own")).expect("readdir").count(), 0);
        set_mode(&mount.at("own"), 0);
    });
    mount.unmount();
    let mount = layers.mount();
    as_caller(&user, || {
        assert_eq!(mode(&mount.at("own")), 0);
        set_mode(&mount.at("own"), 0o755);
        assert_eq!(fs::read_dir(mount.at("own")).expect("readdir").count(), 0);
    });
}
