//! Files that the kernel writes back later (`writeback=`): that what is written arrives, with its size and times, that what goes
//! wrong is told, and that nobody sees less meanwhile.

mod seek;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, IFlags, OFlags, ioctl_setflags};

use crate::harness::{
    Identity, Mount, Need, Stats, aligned, as_caller, command, fill, first_difference, long_run, ready,
    scratch, shell, splicefs_binary, unprivileged_user, until,
};
use crate::mapped::Mapping;
use crate::overlay::{Ground, Layers, Overlay};
use crate::posix::script::open;
use crate::tmpfs::Observed;

const WRITE: OFlags = OFlags::WRONLY;

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs])
}

/// An overlay of root's, whose files the kernel writes back.
fn overlay() -> Option<(Overlay, Layers)> {
    can_run().then(|| {
        let layers = Layers::simple();
        (layers.mount_with("writeback=on"), layers)
    })
}

fn stats(mount: &Overlay) -> Stats {
    mount.stats().expect("stats")
}

fn size_and_times(path: &Path) -> (u64, i64, i64) {
    let meta = fs::metadata(path).unwrap_or_else(|e| panic!("stat of {path:?}: {e}"));
    (meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn create(path: &Path) -> File {
    open(path, OFlags::CREATE | WRITE, 0o644).expect("create")
}

/// Longer than the kernel's clock of files takes to go on.
fn tick() {
    thread::sleep(Duration::from_millis(30));
}

/// As a user, who has it without asking for it.
#[test]
fn a_thousand_appends_of_a_user_are_a_few_requests() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let user = Identity::unprivileged();
    let layers = Layers::simple().of_user();
    let mount = layers.mount_with("");
    as_caller(&user, || {
        let file = open(&mount.at("log"), OFlags::CREATE | WRITE | OFlags::APPEND, 0o644).expect("create");
        for line in 0..1000 {
            (&file).write_all(&fill(line * 100, 100)).expect("append");
        }
        assert_eq!(file.metadata().expect("fstat").len(), 100_000);
        let mut value = vec![0; 65536];
        let length = rustix::fs::getxattr(mount.point(), "splicefs.stats", &mut value[..]).expect("stats");
        let stats = Stats::parse(&value[..length]);
        assert_eq!(stats.json()["writeback"]["serving"], true, "{}", stats.json());
        assert!(stats.requests("write") < 10, "{}", stats.json());
        // Who may write a file and not read it: each write is asked for.
        fs::set_permissions(mount.at("log"), fs::Permissions::from_mode(0o200)).expect("chmod");
        let blind = open(&mount.at("log"), WRITE, 0).expect("open for writing alone");
        blind.write_all_at(b"blind", 10).expect("write");
        let appending = open(&mount.at("log"), WRITE | OFlags::APPEND, 0).expect("open for appending");
        (&appending).write_all(b"end").expect("append");
    });
    mount.unmount();
    let contents = fs::read(layers.upper().join("log")).expect("read");
    assert_eq!((&contents[10..15], &contents[100_000..]), (&b"blind"[..], &b"end"[..]));
    assert_eq!(first_difference(&contents[15..100_000], 15), None);
}

#[test]
fn sizes_and_times_are_the_same_when_mounted_again() {
    let Some((mount, layers)) = overlay() else { return };
    fs::write(mount.at("cut"), fill(0, 50_000)).expect("write");
    // Written in one tick of the clock, and back in another.
    let held = create(&mount.at("held"));
    held.write_all_at(b"held", 5000).expect("write");
    let synced = create(&mount.at("synced"));
    synced.write_all_at(&fill(0, 5000), 0).expect("write");
    synced.sync_all().expect("fsync");
    tick();
    synced.write_all_at(&fill(5000, 5000), 5000).expect("write");
    let touched = create(&mount.at("touched"));
    touched.write_all_at(b"touched", 0).expect("write");
    touched.set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000, 7)).expect("futimens");
    let cut = open(&mount.at("cut"), OFlags::RDWR, 0).expect("open");
    cut.write_all_at(&fill(50_000, 50_000), 50_000).expect("write");
    cut.set_len(70_000).expect("truncate");
    let copied = create(&mount.at("copied"));
    rustix::fs::copy_file_range(&cut, Some(&mut 60_000), &copied, Some(&mut 3), 10_000).expect("copy");
    let names = ["cut", "held", "synced", "touched", "copied"];
    let seen = names.map(|name| size_and_times(&mount.at(name)));
    tick();
    drop((held, synced, touched, cut, copied));
    assert_eq!(names.map(|name| size_and_times(&mount.at(name))), seen, "after closing");
    mount.unmount();
    assert_eq!(names.map(|name| size_and_times(&layers.upper().join(name))), seen, "in the upper layer");
    let again = layers.mount_with("writeback=on");
    assert_eq!(names.map(|name| size_and_times(&again.at(name))), seen, "mounted again");
    assert_eq!(first_difference(&fs::read(again.at("cut")).expect("read"), 0), None);
    assert_eq!(first_difference(&fs::read(again.at("copied")).expect("read")[3..], 60_000), None);
}

/// Files opened for writing alone: the rest of the page is read.
#[test]
fn what_is_written_in_part_keeps_the_rest() {
    let Some((mount, layers)) = overlay() else { return };
    fs::write(layers.upper().join("file"), fill(0, 20_000)).expect("write");
    let file = open(&mount.at("file"), WRITE, 0).expect("open");
    file.write_all_at(b"part", 5000).expect("write");
    file.write_all_at(b"end", 19_999).expect("write");
    drop(file);
    let contents = fs::read(layers.upper().join("file")).expect("read");
    assert_eq!((&contents[5000..5004], &contents[19_999..]), (&b"part"[..], &b"end"[..]));
    assert_eq!(first_difference(&contents[..5000], 0), None);
    assert_eq!(first_difference(&contents[5004..19_999], 5004), None);
}

/// Two append, one stores into a mapping, one writes past the cache: each sees what the others have written.
#[test]
fn writers_of_every_kind_agree() {
    let Some((mount, layers)) = overlay() else { return };
    let path = mount.at("file");
    let append = || open(&path, OFlags::CREATE | WRITE | OFlags::APPEND, 0o644).expect("open");
    let (mut one, mut two) = (append(), append());
    for _ in 0..1000 {
        one.write_all(b"11111").expect("append");
        two.write_all(b"22222").expect("append");
    }
    let both = open(&path, OFlags::RDWR, 0).expect("open");
    let mapping = Mapping::writable(&both, 10_000).expect("mmap");
    mapping.store(9999, b'M');
    let mut direct =
        open(&path, OFlags::RDWR | OFlags::DIRECT | OFlags::APPEND, 0).expect("open with O_DIRECT");
    both.write_all_at(&[b'-'; 2288], 10_000).expect("write up to a block");
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, 4096);
    buffer.fill(b'D');
    direct.write_all(buffer).expect("direct append, where dirty pages are before the end");
    drop((one, two, both, mapping, direct));
    let check = |contents: &[u8]| {
        assert_eq!(contents.len(), 12_288 + 4096);
        assert!(contents[..9990].chunks(10).all(|ten| ten == b"1111122222"));
        assert_eq!(contents[9999], b'M');
        assert!(contents[10_000..12_288].iter().all(|byte| *byte == b'-'));
        assert!(contents[12_288..].iter().all(|byte| *byte == b'D'));
    };
    check(&fs::read(&path).expect("read"));
    mount.unmount();
    check(&fs::read(layers.upper().join("file")).expect("read"));
}

/// What fallocate(2) does changes the source's time, often to that of the kernel, which is told once, then: what is written back later must not
/// undo that.
#[test]
fn regression_a_time_that_is_the_sources_already_is_not_undone() {
    const FILES: u64 = 400;
    if !can_run() {
        return;
    }
    for ground in [Ground::Directory, Ground::Tmpfs] {
        let layers = Layers::new(ground, 1);
        let old = std::time::UNIX_EPOCH + Duration::new(1_000_000, 7);
        for n in 0..FILES {
            let file = create(&layers.lower().join(n.to_string()));
            file.set_modified(old).expect("futimens");
        }
        let mount = layers.mount_with("writeback=on");
        for n in 0..FILES {
            let file = open(&mount.at(n.to_string()), OFlags::RDWR, 0).expect("open");
            file.write_all_at(&fill(n, 8192), 0).expect("write");
            let punch = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
            rustix::fs::fallocate(&file, punch, 0, 1).expect("punching a hole");
            file.sync_all().expect("fsync");
            file.write_all_at(b"end", 1 << 20).expect("write");
        }
        mount.unmount();
        for n in 0..FILES {
            let modified = fs::metadata(layers.upper().join(n.to_string())).and_then(|meta| meta.modified());
            assert_ne!(modified.expect("stat"), old, "file {n} on {ground:?}");
        }
    }
}

#[test]
fn no_room_is_told_at_fsync_and_at_close() {
    if !can_run() {
        return;
    }
    let layers = Layers::new(Ground::Ext4(32), 1);
    let mount = layers.mount_with("writeback=on");
    let over = |name: &str| {
        let mut file = create(&mount.at(name));
        for chunk in 0..64 {
            if let Err(e) = file.write_all(&fill(chunk << 20, 1 << 20)) {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
            }
        }
        file
    };
    let synced = over("synced");
    assert_eq!(synced.sync_all().expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    drop(synced);
    let stats = mount.stats().expect("splicefs");
    assert!(stats.json()["lost_writes"]["ENOSPC"].as_u64() > Some(0), "{}", stats.json());
    // One line a file, however many of its pages.
    let log = fs::read_to_string(layers.dir().join("log")).expect("the log");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("what was written to it is lost")).collect();
    assert!(lines.len() == 1 && lines[0].contains("\"synced\""), "{log}");
    fs::remove_file(mount.at("synced")).expect("unlink");
    // A process that another test has just forked closes the descriptor, too, and may be told in place of us.
    let told = (0..5).any(|_| {
        let told = nix::unistd::close(over("closed").into_raw_fd());
        fs::remove_file(mount.at("closed")).expect("unlink");
        told == Err(nix::errno::Errno::ENOSPC)
    });
    assert!(told, "closing tells nothing");
    fs::write(mount.at("small"), fill(0, 10_000)).expect("there is room again");
    mount.unmount();
    assert_eq!(first_difference(&fs::read(layers.upper().join("small")).expect("read"), 0), None);
}

/// A write of pages that was cut short was taken for whole: the kernel does not look at its length.
#[test]
fn regression_a_last_write_that_is_cut_short_is_told() {
    if !can_run() {
        return;
    }
    let mount = Observed::mount("size=512k,writeback=on");
    let mut file = create(&mount.point().join("file"));
    file.write_all(&fill(0, 600 << 10)).expect("write");
    assert_eq!(file.sync_all().expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
}

/// A file that has been removed, or replaced, was copied up for a time that the kernel told of it.
#[test]
fn regression_removing_a_lower_file_copies_nothing() {
    if !can_run() {
        return;
    }
    let layers = Layers::new(Ground::Ext4(64), 1);
    for name in ["removed", "replaced"] {
        fs::write(layers.lower().join(name), fill(0, 8 << 20)).expect("write");
    }
    let mount = layers.mount_with("writeback=on");
    let pid = stats(&mount).json()["pid"].as_u64().expect("a process");
    // What the daemon has written to files, copies among them.
    let written = || {
        let counts = fs::read_to_string(format!("/proc/{pid}/io")).expect("procfs");
        let count = counts.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("wchar");
        count.parse::<u64>().expect("a number")
    };
    let before = written();
    fs::remove_file(mount.at("removed")).expect("unlink");
    fs::write(mount.at("new"), b"new").expect("write");
    fs::rename(mount.at("new"), mount.at("replaced")).expect("rename");
    shell("sync -f \"$1\"", mount.point());
    let copied = written() - before;
    assert!(copied < 1 << 20, "{copied} bytes were written");
}

/// Pages that the kernel writes back on its own account do not come with a time where its user is unknown, and the old one
/// stayed.
#[test]
fn regression_in_a_user_namespace_what_is_written_has_a_new_time() {
    // The kernel writes back on its own account after half a minute.
    if !long_run() || !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare")]) {
        return;
    }
    let (uid, gid) = unprivileged_user();
    let dir = scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let write = "import os, time
fd = os.open('m/file', os.O_WRONLY | os.O_APPEND)
os.write(fd, b'new')
while os.stat('u/file').st_size < 8: time.sleep(0.1)
os.close(fd)
";
    fs::write(dir.path().join("write.py"), write).expect("write");
    let script = format!(
        r#"cd "$1" && cp {binary} program
        exec setpriv --reuid {uid} --regid {gid} --clear-groups unshare -Urm sh -ec 'mkdir l u w m
        ./program overlay m -o lowerdir=l,upperdir=u,workdir=w,log=log >said
        echo olds > u/file; touch -d 2020-01-01 u/file
        python3 write.py; ./program stats m --json | grep -c "many writes at once"
        ./program unmount m; stat -c %Y u/file'"#,
        binary = splicefs_binary().display()
    );
    let said = shell(&script, dir.path());
    let (served, time) = said.trim().split_once('\n').expect("two lines");
    assert_eq!(served, "1", "it is written back");
    assert!(time.parse::<u64>().expect("a time") > 1_700_000_000, "{time}");
}

/// A tmpfs that is asked for it counts when the pages come.
#[test]
fn a_tmpfs_tells_at_fsync_that_it_is_full() {
    if !can_run() {
        return;
    }
    let mount = Observed::mount("size=1m,writeback=on");
    let mut file = create(&mount.point().join("file"));
    file.write_all(&fill(0, 4 << 20)).expect("write");
    assert_eq!(file.sync_all().expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    fs::remove_file(mount.point().join("file")).expect("unlink");
    until("the room to be free", || mount.room().f_bfree == mount.room().f_blocks);
    fs::write(mount.point().join("file"), fill(0, 100_000)).expect("write");
    assert_eq!(first_difference(&fs::read(mount.point().join("file")).expect("read"), 0), None);
}

#[test]
fn setuid_bits_go_with_the_write() {
    let Some((mount, layers)) = overlay() else { return };
    let (uid, gid) = unprivileged_user();
    let user = Identity::unprivileged();
    fs::set_permissions(mount.point(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = mount.at("program");
    fs::write(&path, b"program").expect("write");
    chown(&path, Some(uid), Some(gid)).expect("chown");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("chmod");
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    let upper = layers.upper().join("program");
    as_caller(&user, || {
        let file = open(&path, WRITE, 0).expect("open");
        file.write_all_at(b"P", 0).expect("write");
        assert_eq!((mode(&path), mode(&upper)), (0o755, 0o755));
        // Bits that are set after a write stay when it is written back.
        file.write_all_at(b"R", 1).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).expect("chmod");
    });
    assert_eq!(mode(&path), 0o4711);
    mount.unmount();
    assert_eq!((mode(&upper), fs::read(&upper).expect("read")), (0o4711, b"PRogram".to_vec()));
}

/// Whoever reads a lower file that another writes, truncates, renames and removes has what was written.
#[test]
fn readers_of_a_lower_file_see_what_is_not_written_back() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fs::write(layers.lower().join("file"), fill(0, 100_000)).expect("write");
    let mount = layers.mount_with("writeback=on");
    let mut reader = File::open(mount.at("file")).expect("open");
    let writer = open(&mount.at("file"), WRITE, 0).expect("open");
    writer.write_all_at(b"written", 50_000).expect("write");
    writer.set_len(60_000).expect("truncate");
    writer.set_len(80_000).expect("extend");
    writer.write_all_at(b"end", 79_997).expect("write");
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&writer, flags, 0, 4096).expect("punch");
    fs::rename(mount.at("file"), mount.at("moved")).expect("rename");
    fs::hard_link(mount.at("moved"), mount.at("linked")).expect("link");
    fs::remove_file(mount.at("moved")).expect("unlink");
    let check = |contents: &[u8]| {
        assert_eq!((contents.len(), &contents[50_000..50_007]), (80_000, &b"written"[..]));
        assert!(contents[..4096].iter().all(|byte| *byte == 0), "what was punched");
        assert_eq!(first_difference(&contents[4096..50_000], 4096), None);
        assert!(contents[60_000..79_997].iter().all(|byte| *byte == 0), "beyond the end that was");
        assert_eq!(&contents[79_997..], b"end");
    };
    let mut contents = Vec::new();
    reader.seek(SeekFrom::Start(0)).expect("seek");
    reader.read_to_end(&mut contents).expect("read");
    check(&contents);
    drop((reader, writer));
    mount.unmount();
    check(&fs::read(layers.upper().join("linked")).expect("read"));
}

/// An append-only file takes no pages back: each append is asked for.
#[test]
fn files_that_only_grow_are_appended_to() {
    let Some((mount, layers)) = overlay() else { return };
    fs::write(mount.at("log"), b"one ").expect("write");
    shell("chattr +a \"$1/log\"", mount.point());
    let append = || open(&mount.at("log"), WRITE | OFlags::APPEND, 0).expect("open");
    append().write_all(b"two ").expect("append");
    let (mut first, mut second) = (append(), append());
    second.write_all(b"three ").expect("append");
    first.write_all(b"four").expect("append");
    drop((first, second));
    assert_eq!(fs::read(mount.at("log")).expect("read"), b"one two three four");
    shell("touch \"$1/log\" && chattr -a \"$1/log\"", mount.point());
    mount.unmount();
    assert_eq!(fs::read(layers.upper().join("log")).expect("read"), b"one two three four");
}

/// What was written before `chattr` said no more was refused when it was written back, and lost.
#[test]
fn regression_protecting_a_file_does_not_lose_what_was_written_before() {
    if !ready(&[Need::Program("chattr")]) {
        return;
    }
    let Some((mount, layers)) = overlay() else { return };
    for flag in ["a", "i"] {
        let path = mount.at(flag);
        let file = create(&path);
        (&file).write_all(&fill(1, 10_000)).expect("write");
        let protect = if flag == "a" { IFlags::APPEND } else { IFlags::IMMUTABLE };
        ioctl_setflags(&file, protect).expect("FS_IOC_SETFLAGS");
        file.sync_all().expect("fsync");
        drop(file);
        let written = fs::read(layers.upper().join(flag)).expect("read");
        shell(&format!("chattr -{flag} \"$1\""), &path);
        assert_eq!(written.len(), 10_000, "+{flag}");
        assert_eq!(first_difference(&written, 1), None, "+{flag}");
    }
}

#[test]
fn closing_is_no_request() {
    let Some((mount, _layers)) = overlay() else { return };
    for number in 0..100 {
        fs::write(mount.at(number.to_string()), fill(number, 1000)).expect("write");
        assert_eq!(first_difference(&fs::read(mount.at(number.to_string())).expect("read"), number), None);
    }
    let stats = stats(&mount);
    assert!(stats.requests("flush") <= 1 && stats.requests("write") >= 100, "{}", stats.json());
}

#[test]
fn what_excludes_it_is_told() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    let point = layers.dir().join("mnt");
    let directories = format!(
        "lowerdir={},upperdir={},workdir={}",
        layers.lower().display(),
        layers.upper().display(),
        layers.work().display()
    );
    let refused = |arguments: &[&str], options: &str, why: &str| {
        let output =
            command().args(arguments).arg(&point).args(["-o", options]).output().expect("running it");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{options}: {said}");
    };
    let lower = layers.lower().to_str().expect("a path of text");
    refused(
        &["passthrough", lower],
        "writeback=on",
        "writeback=on cannot be had here: others use the directory",
    );
    let both = format!("{directories},writeback=on,passthrough=on");
    refused(&["overlay"], &both, "passthrough=on cannot be had here: writeback=on excludes it");
    // Where nobody insists, the kernel serves by itself; and a live directory is written at once.
    let state = |stats: &Stats, name: &str| stats.json()[name]["serving"].as_bool();
    let mount = layers.mount_with("passthrough=on");
    assert_eq!(state(&stats(&mount), "writeback"), Some(false));
    drop(mount);
    let mount = layers.mount_with("writeback=on");
    assert_eq!(["writeback", "passthrough"].map(|n| state(&stats(&mount), n)), [Some(true), Some(false)]);
    drop(mount);
    // Root makes files that may not be written, and hears of it at write(2); but may choose.
    for (own, serving) in [("open=zero", [false, true]), ("open=zero,writeback=on", [true, true])] {
        let mount = layers.mount_with(own);
        assert_eq!(["writeback", "unopened"].map(|n| state(&stats(&mount), n)), serving.map(Some), "{own}");
    }
    let mount = Mount::builder().options("passthrough=off").start();
    assert_eq!(state(&mount.stats().expect("stats"), "writeback"), Some(false));
}
