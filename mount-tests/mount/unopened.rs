//! Files that are used without the daemon being asked to open them (zero-message opens).

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::harness::{
    Identity, Need, Stats, as_caller, command, drop_file_cache, fill, first_difference, ready, scratch,
    shell, splicefs_binary, unprivileged_user, until,
};
use crate::overlay::{Layers, Overlay};
use crate::posix::script::open;

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs])
}

/// An overlay over so many small files.
fn overlay(files: u64, own: &str) -> (Overlay, Layers) {
    let layers = Layers::simple();
    for number in 0..files {
        fs::write(layers.lower().join(number.to_string()), fill(number, 5000)).expect("write");
    }
    (layers.mount_with(own), layers)
}

fn read(mount: &Overlay, number: u64) {
    let mut buffer = [0; 8192];
    let file = File::open(mount.at(number.to_string())).expect("open");
    assert_eq!(file.read_at(&mut buffer, 0).expect("read"), 5000);
    assert_eq!(first_difference(&buffer[..5000], number), None);
}

fn asked(stats: &Stats) -> u64 {
    let counted = ["lookup", "open", "read", "flush", "release", "getattr", "create", "write"];
    counted.into_iter().map(|operation| stats.requests(operation)).sum()
}

/// Reads 100 small files twice, as somebody who may see the statistics.
fn reads_again_without_a_message(mount: &Overlay) {
    let stats = || Stats::of(mount.point());
    (0..100).for_each(|number| read(mount, number));
    let before = stats();
    assert_eq!(before.requests("open"), 1, "one is answered, and then none is asked for");
    (0..100).for_each(|number| read(mount, number));
    // To look at the statistics takes a message or two itself, and the kernel may have dropped a page or two. Asked about each
    // file it would be 300.
    let all = asked(&stats()) - asked(&before);
    assert!(all < 20, "{all} messages for 100 files: {}", stats().json());
}

#[test]
fn what_was_read_is_read_again_without_a_message() {
    if !can_run() {
        return;
    }
    let (mount, _layers) = overlay(100, "open=zero");
    reads_again_without_a_message(&mount);
}

#[test]
fn each_open_is_asked_for_if_wanted() {
    if !can_run() {
        return;
    }
    let (mount, _layers) = overlay(10, "open=handle");
    (0..10).for_each(|number| read(&mount, number));
    assert_eq!(mount.stats().expect("stats").requests("open"), 10);
}

/// Where nothing can be written an open has nothing to refuse or to copy up: it need not be asked for. What may not be read is
/// refused all the same.
#[test]
fn a_users_overlay_that_cannot_be_written_is_read_without_opens() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let layers = Layers::simple().of_user().read_only();
    for number in 0..100 {
        fs::write(layers.lower().join(number.to_string()), fill(number, 5000)).expect("write");
    }
    let secret = layers.lower().join("secret");
    fs::write(&secret, b"secret").expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    let mount = layers.mount();
    as_caller(&Identity::unprivileged(), || {
        reads_again_without_a_message(&mount);
        assert_eq!(File::open(mount.at("secret")).map(drop).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(fs::write(mount.at("0"), b"x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    });
}

/// What is written comes back later, and in few messages, as with files that are opened.
#[test]
fn a_users_overlay_is_read_and_written_without_opens() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let layers = Layers::simple().of_user();
    for number in 0..100 {
        fs::write(layers.lower().join(number.to_string()), fill(number, 5000)).expect("write");
    }
    let mount = layers.mount();
    as_caller(&Identity::unprivileged(), || {
        reads_again_without_a_message(&mount);
        let mut log = File::create(mount.at("log")).expect("create");
        for line in 0..1000 {
            log.write_all(&fill(line * 10, 10)).expect("write");
        }
        drop(log);
        let stats = Stats::of(mount.point());
        assert!(stats.requests("write") < 10 && stats.requests("release") == 0, "{}", stats.json());
    });
    mount.unmount();
    let written = fs::read(layers.upper().join("log")).expect("read");
    assert_eq!((written.len(), first_difference(&written, 0)), (10_000, None));
}

/// Root of a user namespace may open there what the daemon, who is a user of the machine, may not.
#[test]
fn in_a_user_namespace_files_are_opened() {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("unshare")]) {
        return;
    }
    let (uid, gid) = unprivileged_user();
    let dir = scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let script = format!(
        r#"cd "$1" && cp {binary} program
        exec setpriv --reuid {uid} --regid {gid} --clear-groups unshare -Urm sh -ec 'mkdir l m; echo x > l/file
        ./program overlay m -o lowerdir=l >said
        cat m/file m/file >said; ./program stats m --json; ./program unmount m'"#,
        binary = splicefs_binary().display()
    );
    let stats: serde_json::Value = serde_json::from_str(&shell(&script, dir.path())).expect("stats");
    assert_eq!(stats["requests"]["open"], 2, "{stats}");
}

/// As root the kernel serves files that cannot be written by itself, which is faster for large ones.
#[test]
fn roots_overlay_that_cannot_be_written_is_opened_unless_that_gains_nothing() {
    if !can_run() {
        return;
    }
    for (own, opens) in
        [("", 10), ("open=handle,passthrough=off", 10), ("passthrough=off", 1), ("open=zero", 1)]
    {
        let layers = Layers::simple().read_only();
        (0..10).for_each(|n| fs::write(layers.lower().join(n.to_string()), fill(n, 5000)).expect("write"));
        let mount = layers.mount_with(own);
        (0..10).for_each(|number| read(&mount, number));
        assert_eq!(mount.stats().expect("stats").requests("open"), opens, "{own}");
    }
}

/// Creates, appends, truncates and removes while open; what is in the upper layer is what was written.
#[test]
fn what_is_written_is_in_the_upper_layer() {
    if !can_run() {
        return;
    }
    let (mount, layers) = overlay(3, "open=zero");
    let at = |name: &str| mount.at(name);
    (0..3).for_each(|number| read(&mount, number));
    let mut made = File::create(at("made")).expect("create");
    made.write_all(b"one ").expect("write");
    drop(made);
    open(&at("made"), OFlags::WRONLY | OFlags::APPEND, 0).expect("open").write_all(b"two").expect("append");
    assert_eq!(fs::read(layers.upper().join("made")).expect("read"), b"one two");
    // A lower file, open for reading and written by another.
    let reader = File::open(at("0")).expect("open");
    let writer = open(&at("0"), OFlags::RDWR | OFlags::SYNC, 0).expect("open for writing");
    writer.write_all_at(b"written", 0).expect("write");
    let mut seen = [0; 7];
    reader.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"written");
    // Truncated by open(2).
    drop(open(&at("1"), OFlags::WRONLY | OFlags::TRUNC, 0).expect("open with O_TRUNC"));
    assert_eq!(fs::metadata(layers.upper().join("1")).expect("stat").len(), 0);
    // Removed while it is open.
    let file = open(&at("2"), OFlags::RDWR, 0).expect("open");
    fs::remove_file(at("2")).expect("unlink");
    file.write_all_at(b"gone", 0).expect("write");
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!((&seen, file.metadata().expect("fstat").nlink()), (b"gone", 0));
}

/// `: > stamp` is how builds mark that something was done.
#[test]
fn truncating_an_empty_file_by_open_sets_its_time() {
    if !can_run() {
        return;
    }
    let (mount, _layers) = overlay(0, "open=zero");
    let stamp = mount.at("stamp");
    File::create(&stamp).expect("create");
    let time = || fs::metadata(&stamp).map(|meta| (meta.mtime(), meta.mtime_nsec())).expect("stat");
    let before = time();
    shell("sleep 0.02; : > \"$1\"", &stamp);
    assert_ne!(time(), before);
}

#[test]
fn few_descriptors_are_enough_for_many_open_files() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple().descriptor_limit(256);
    let number =
        |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
    for number in 0..2000_u64 {
        fs::write(layers.lower().join(number.to_string()), fill(number, 5000)).expect("write");
    }
    let mount = layers.mount_with("open=zero");
    let mut files = Vec::new();
    for entry in fs::read_dir(mount.point()).expect("readdir") {
        let path = entry.expect("readdir").path();
        let file = open(&path, OFlags::RDWR, 0).expect("open");
        file.write_all_at(b"x", 5000).expect("write");
        files.push((number(&path), file));
    }
    assert_eq!(files.len(), 2000);
    for (number, file) in &mut files {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!((first_difference(&bytes[..5000], *number), &bytes[5000..]), (None, &b"x"[..]));
    }
}

/// Files of procfs have to be opened; so must all where something is mounted inside a layer, and where it is checked who opens.
#[test]
fn where_files_must_be_opened_it_is_refused() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    shell("mkdir \"$1/inside\" && mount -t tmpfs tmpfs \"$1/inside\"", layers.lower());
    let refused = |arguments: &[&str], options: String| {
        let output = command().args(arguments).arg(layers.point()).args(["-o", &options]).output();
        let output = output.expect("running splicefs");
        assert!(!output.status.success(), "it mounted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let overlay =
        |lower: &str, options: &str| refused(&["overlay"], format!("lowerdir={lower},open=zero{options}"));
    let lower = layers.lower().display().to_string();
    for (said, reason) in [
        (overlay(&lower, ""), "mounted inside a layer"),
        (overlay("/proc/sys", ""), "sizes may not be true"),
        (overlay("/usr/bin", ",allow_root"), "allow_root"),
        (overlay("/usr/bin", ",passthrough=on"), "passthrough=on"),
        (overlay("/usr/bin", ",upper=tmpfs"), "must hear"),
        (refused(&["tmpfs"], "open=zero".into()), "must hear"),
    ] {
        assert!(said.contains("open=zero") && said.contains(reason), "{reason}: {said}");
    }
    shell("umount \"$1/inside\"", layers.lower());
}

/// What was written a moment ago is open still, on our side; that gives nobody the right to write it.
#[test]
fn regression_a_file_made_immutable_is_written_no_more() {
    if !can_run() || !ready(&[Need::Program("chattr")]) {
        return;
    }
    let (mount, _layers) = overlay(0, "open=zero");
    let path = mount.at("file");
    fs::write(&path, "one").expect("write");
    let append = || {
        let file = open(&path, OFlags::WRONLY | OFlags::APPEND, 0)?;
        rustix::io::write(&file, b"two").map(drop)
    };
    shell("chattr +i \"$1\"", &path);
    assert_eq!(append(), Err(rustix::io::Errno::PERM));
    shell("chattr -i \"$1\"; chattr +a \"$1\"", &path);
    assert_eq!(append(), Ok(()));
    shell("chattr -a \"$1\"", &path);
    open(&path, OFlags::WRONLY, 0).expect("open").write_all_at(b"ONE", 0).expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"ONEtwo");
}

/// So many files are used that the daemon has closed every other.
fn use_many_files(mount: &Overlay) {
    for number in 0..400 {
        let path = mount.at(format!("many-{number}"));
        fs::write(&path, fill(number, 100)).expect("write");
        drop_file_cache(File::open(&path).expect("open"));
        assert_eq!(first_difference(&fs::read(&path).expect("read"), number), None);
    }
}

/// A file that loses one of its names is found by another, or held open if that is not known: nobody opens it, and so nobody looks it up
/// again.
#[test]
fn regression_a_file_is_used_on_after_one_of_its_names_is_gone() {
    if !can_run() {
        return;
    }
    for own in ["open=zero", "open=zero,writeback=on", "open=handle"] {
        let layers = Layers::simple().descriptor_limit(256);
        for name in ["lower-1", "upper-1"] {
            let layer = if name == "lower-1" { layers.lower() } else { layers.upper() };
            fs::write(layer.join(name), fill(0, 5000)).expect("write");
            fs::hard_link(layer.join(name), layer.join(name.replace('1', "2"))).expect("link");
        }
        let mount = layers.mount_with(own);
        let at = |name: &str| mount.at(name);
        let whole = |file: &File| {
            drop_file_cache(file);
            let mut seen = vec![0; 6000];
            let length = file.read_at(&mut seen, 0).unwrap_or_else(|e| panic!("reading with {own}: {e}"));
            seen.truncate(length);
            seen
        };
        // As mail is delivered, and objects are stored.
        fs::write(at("new"), fill(0, 5000)).expect("write");
        fs::hard_link(at("new"), at("stored")).expect("link");
        fs::remove_file(at("new")).expect("unlink");
        let written = open(&at("written"), OFlags::CREATE | OFlags::RDWR, 0o644).expect("create");
        written.write_all_at(&fill(0, 1000), 0).expect("write");
        written.sync_all().expect("fsync");
        fs::hard_link(at("written"), at("written-2")).expect("link");
        fs::remove_file(at("written")).expect("unlink");
        let open_files = ["lower-1", "upper-1"].map(|name| open(&at(name), OFlags::RDWR, 0).expect("open"));
        // Its other names have not been seen.
        for name in ["lower-1", "upper-1"] {
            fs::write(at("over"), "over").expect("write");
            fs::rename(at("over"), at(name)).expect("rename");
        }
        use_many_files(&mount);
        let stored = File::open(at("stored")).expect("open");
        assert_eq!((whole(&stored).len(), first_difference(&whole(&stored), 0)), (5000, None), "{own}");
        written.write_all_at(&fill(1000, 1000), 1000).expect("write");
        written.sync_all().unwrap_or_else(|e| panic!("fsync with {own}: {e}"));
        for file in &open_files {
            assert_eq!((whole(file).len(), first_difference(&whole(file), 0)), (5000, None), "{own}");
            file.write_all_at(b"end", 5000).and_then(|()| file.sync_all()).expect("write");
        }
        let seen = fs::read(layers.upper().join("written-2")).expect("read");
        assert_eq!((seen.len(), first_difference(&seen, 0)), (2000, None), "{own}");
        assert_eq!(&fs::read(at("upper-2")).expect("read")[5000..], b"end", "{own}");
        fs::rename(at("stored"), at("elsewhere")).expect("rename");
        use_many_files(&mount);
        assert_eq!(first_difference(&whole(&File::open(at("elsewhere")).expect("open")), 0), None);
    }
}

/// Nobody tells a daemon that opens nothing when a file is closed. What it has open for writing keeps a program from being run from the
/// upper directory, and its file system from being made read-only.
#[test]
fn what_is_written_no_more_is_not_kept_open_for_writing() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::UserMounts]) {
        return;
    }
    let layers = Layers::simple().of_user();
    let mount = layers.mount();
    let mut kept_open = None;
    as_caller(&Identity::unprivileged(), || {
        fs::copy("/bin/true", mount.at("program")).expect("copy");
        for number in 0..40 {
            fs::write(mount.at(number.to_string()), fill(number, 5000)).expect("write");
        }
        let written = open(&mount.at("written"), OFlags::CREATE | OFlags::RDWR, 0o644).expect("create");
        written.write_all_at(&fill(0, 5000), 0).expect("write");
        rustix::fs::syncfs(&written).expect("syncfs");
        kept_open = Some(written);
    });
    let program = layers.upper().join("program");
    until("the program can be run from the upper directory", || {
        std::process::Command::new(&program).status().is_ok_and(|status| status.success())
    });
    let upper = layers.upper().to_owned();
    until("nothing is open for writing", || writers_below(&upper) == 0);
    // It is opened again when there is more to write.
    let written = kept_open.expect("made");
    written.write_all_at(&fill(5000, 5000), 5000).and_then(|()| written.sync_all()).expect("write again");
    let stored = fs::read(layers.upper().join("written")).expect("read");
    assert_eq!((stored.len(), first_difference(&stored, 0)), (10_000, None));
    until("that is closed, too", || writers_below(&upper) == 0);
}

/// How many descriptors of other processes' are open for writing on files below `dir`.
fn writers_below(dir: &Path) -> usize {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let processes = entries(Path::new("/proc")).filter(|entry| {
        entry.file_name().to_string_lossy().parse::<u32>().is_ok_and(|pid| pid != std::process::id())
    });
    processes
        .flat_map(|process| {
            let base = process.path();
            entries(&base.join("fd")).map(move |fd| (base.join("fdinfo").join(fd.file_name()), fd.path()))
        })
        .filter(|(info, fd)| {
            let below = fs::read_link(fd).is_ok_and(|target| target.starts_with(dir));
            below && fs::read_to_string(info).is_ok_and(|info| is_open_for_writing(&info))
        })
        .count()
}

/// Whether the flags in a file of /proc/PID/fdinfo are those of open(2) for writing.
fn is_open_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim();
    let flags = i32::from_str_radix(flags, 8).unwrap_or(0);
    flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
}
