//! Files that the kernel reads and writes by itself (kernel passthrough): that it does, that it shows what the file holds,
//! and that it never gets one that it must not have.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};

use crate::harness::{
    Mount, Need, Random, Stats, aligned, command, fill, first_difference, ready, scratch, shell, until,
};
use crate::mapped::Mapping;
use crate::overlay::{Layers, Overlay};
use crate::posix::script::open;

const SIZE: usize = 1 << 20;

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs])
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Reads and writes in every way, and finds the same in the mount and below it.
fn exercise(path: &Path, below: &Path) {
    fs::write(path, fill(0, SIZE)).expect("write");
    assert_eq!(first_difference(&fs::read(below).expect("read"), 0), None);
    let file = open(path, OFlags::RDWR | OFlags::APPEND, 0).expect("open");
    (&file).write_all(&fill(SIZE as u64, 100)).expect("append");
    assert_eq!(file.metadata().expect("fstat").len(), SIZE as u64 + 100);
    let direct = open(path, OFlags::RDWR | OFlags::DIRECT, 0).expect("open with O_DIRECT");
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, 8192);
    direct.read_exact_at(buffer, 4096).expect("direct read");
    assert_eq!(first_difference(buffer, 4096), None);
    buffer.fill(b'D');
    direct.write_all_at(buffer, 8192).expect("direct write");
    let mapping = Mapping::writable(&file, SIZE).expect("mmap");
    mapping.store(0, b'M');
    let mut seen = [0; 4];
    mapping.copy(8190, &mut seen);
    assert_eq!(seen[2..], *b"DD");
    assert_eq!(fs::read(below).expect("read")[0], b'M', "a store is seen below at once");
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 65536, 65536)
        .expect("punch");
    file.set_len(SIZE as u64 / 2).expect("truncate");
    file.sync_all().expect("fsync");
    let above = fs::read(path).expect("read");
    assert!(above == fs::read(below).expect("read"), "the two differ");
    assert_eq!((above.len(), above[65536], above[0]), (SIZE / 2, 0, b'M'));
}

/// Nothing of the contents went through the daemon.
fn untouched(stats: &Stats) {
    let asked = (stats.requests("read"), stats.requests("write"));
    assert_eq!(asked, (0, 0), "the daemon was asked to read or write: {}", stats.json());
    assert!(stats.opens("passthrough") > 0 && stats.opens("cached") == 0, "{}", stats.json());
}

#[test]
fn the_kernel_serves_a_mirrored_file() {
    if !can_run() {
        return;
    }
    let mount = Mount::builder().options("passthrough=on").start();
    exercise(&mount.point().join("file"), &mount.source().join("file"));
    let program = mount.point().join("program");
    fs::copy("/bin/true", &program).expect("copying a program");
    assert!(Command::new(&program).status().expect("running it").success());
    untouched(&mount.stats().expect("stats"));
}

#[test]
fn the_kernel_serves_a_file_of_the_upper_layer() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fs::write(layers.lower().join("lower"), fill(0, SIZE)).expect("write");
    let mount = layers.mount_with("passthrough=on");
    exercise(&mount.at("file"), &layers.upper().join("file"));
    untouched(&mount.stats().expect("stats"));
    // One of a lower layer may have to be written, and then it must not be that one.
    assert_eq!(first_difference(&fs::read(mount.at("lower")).expect("read"), 0), None);
    let stats = mount.stats().expect("stats");
    assert_eq!(stats.opens("cached_no_backing"), 1, "{}", stats.json());
}

/// As it happened to another file system: the writer was given the backing file of the reader, which was in a lower layer.
#[test]
fn a_writer_never_gets_the_lower_file_that_a_reader_has_open() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fs::write(layers.lower().join("file"), fill(0, SIZE)).expect("write");
    let mount = layers.mount_with("passthrough=on");
    let reader = File::open(mount.at("file")).expect("open");
    let writer = open(&mount.at("file"), OFlags::RDWR, 0).expect("open for writing");
    writer.write_all_at(b"written", 0).expect("write");
    let mut seen = [0; 7];
    reader.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"written");
    drop((reader, writer));
    let stats = || mount.stats().expect("stats");
    until("both to be closed", || stats().files() == 0);
    assert_eq!(stats().opens("passthrough"), 0);
    assert_eq!(&fs::read(mount.at("file")).expect("read")[..7], b"written");
    assert_eq!(stats().opens("passthrough"), 1, "{}", stats().json());
}

#[test]
fn the_kernel_serves_lower_files_where_nothing_is_above() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple().read_only();
    fs::write(layers.lower().join("file"), fill(0, SIZE)).expect("write");
    let mount = layers.mount_with("passthrough=on");
    assert_eq!(first_difference(&fs::read(mount.at("file")).expect("read"), 0), None);
    untouched(&mount.stats().expect("stats"));
}

/// The times of a file that the kernel writes by itself are asked for, although those of an overlay's files are for ever.
#[test]
fn times_follow_stores_through_a_mapping_that_outlives_its_descriptor() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    let mount = layers.mount_with("passthrough=on");
    fs::write(mount.at("file"), fill(0, SIZE)).expect("write");
    let file = open(&mount.at("file"), OFlags::RDWR, 0).expect("open");
    let mapping = Mapping::writable(&file, SIZE).expect("mmap");
    drop(file);
    until("it to be closed", || mount.stats().expect("stats").files() == 0);
    let time = || fs::metadata(mount.at("file")).map(|meta| (meta.mtime(), meta.mtime_nsec())).expect("stat");
    let before = time();
    thread::sleep(Duration::from_millis(20));
    mapping.store(0, b'M');
    until("the store to show in the time of modification", || time() != before);
}

/// A decision of ours (README): who writes by itself has no right to keep them.
#[test]
fn setuid_bits_given_while_the_kernel_writes_go_with_the_next_write() {
    if !can_run() {
        return;
    }
    let mount = Mount::builder().options("passthrough=on").start();
    let path = mount.point().join("file");
    let file = File::create(&path).expect("create");
    mode(&path, 0o4755);
    file.write_all_at(b"x", 0).expect("write");
    assert_eq!(file.metadata().expect("fstat").mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o755);
}

/// The kernel answers EIO to an open that was told another way than those before it (fs/fuse/iomode.c).
#[test]
fn opens_that_change_between_the_ways_never_fail() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fs::write(layers.lower().join("file"), fill(0, SIZE)).expect("write");
    let mount = layers.mount_with("passthrough=on");
    let path = mount.at("file");
    let end = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for seed in 1..=3 {
            let path = &path;
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut memory = Vec::new();
                let buffer = aligned(&mut memory, 4096);
                while Instant::now() < end {
                    // Now and then nobody has it open.
                    thread::sleep(Duration::from_micros(random.below(500)));
                    let flags = match random.below(6) {
                        0 => OFlags::RDWR,
                        1 => OFlags::RDWR | OFlags::DIRECT,
                        2 => OFlags::WRONLY | OFlags::APPEND,
                        3 => OFlags::RDONLY | OFlags::DIRECT,
                        _ => OFlags::RDONLY,
                    };
                    // With a setuid bit, the daemon serves those who write.
                    match random.below(8) {
                        0 => mode(path, 0o4755),
                        1 => mode(path, 0o755),
                        _ => {}
                    }
                    let file = open(path, flags, 0).unwrap_or_else(|e| panic!("open {flags:?}: {e}"));
                    if flags.intersects(OFlags::WRONLY) {
                        (&file).write_all(b"appended").expect("append");
                    } else {
                        file.read_at(buffer, 0).expect("read");
                    }
                }
            });
        }
    });
    let stats = mount.stats().expect("stats");
    let ways = [stats.opens("passthrough"), stats.opens("cached_special_bits"), stats.opens("cached")];
    assert!(ways.iter().all(|&opens| opens > 10), "{}", stats.json());
}

/// A file of a file system that is itself stacked the kernel does not take: the daemon serves it.
#[test]
fn a_source_that_is_stacked_is_served_by_the_daemon() {
    if !can_run() {
        return;
    }
    let below = Layers::simple();
    fs::write(below.lower().join("file"), fill(0, SIZE)).expect("write");
    let stacked = below.mount_by(crate::overlay::Engine::Kernel, "");
    let mount = Mount::builder().mirroring(stacked.point()).options("passthrough=on").start();
    assert_eq!(first_difference(&fs::read(mount.point().join("file")).expect("read"), 0), None);
    let stats = mount.stats().expect("stats");
    assert_eq!((stats.opens("passthrough"), stats.opens("cached_refused")), (0, 1), "{}", stats.json());
    drop(mount);
    below.unseal();
}

#[test]
fn an_overlay_stacks_over_a_mount_whose_files_the_kernel_serves() {
    if !can_run() {
        return;
    }
    let builder = Mount::builder().options("passthrough=on,allow_other");
    fs::write(builder.source().join("file"), fill(0, SIZE)).expect("write");
    let below = builder.start();
    let layers = Layers::simple().over(below.point());
    let stacked: Overlay = layers.mount_by(crate::overlay::Engine::Kernel, "");
    assert_eq!(first_difference(&fs::read(stacked.at("file")).expect("read"), 0), None);
    fs::write(stacked.at("file"), "changed").expect("write");
    assert_eq!(first_difference(&fs::read(below.point().join("file")).expect("read"), 0), None);
}

/// The kernel reads without O_NOATIME.
#[test]
fn where_access_times_stay_the_daemon_reads() {
    if !can_run() {
        return;
    }
    let builder = Mount::builder().options("noatime");
    fs::write(builder.source().join("file"), "x").expect("write");
    let mount = builder.start();
    let time = || fs::metadata(mount.source().join("file")).expect("stat").atime_nsec();
    let before = time();
    thread::sleep(Duration::from_millis(20));
    fs::read(mount.point().join("file")).expect("read");
    assert_eq!(time(), before);
    assert_eq!(mount.stats().expect("stats").opens("cached_no_backing"), 1);
}

#[test]
fn what_cannot_be_had_is_said_before_mounting() {
    if !can_run() {
        return;
    }
    let dir = scratch();
    for name in ["source", "mnt"] {
        fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    let refused = |command: &mut Command| {
        let output = command.output().expect("running splicefs");
        assert!(!output.status.success(), "it mounted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(command().arg("tmpfs").arg(dir.path().join("mnt")).args(["-o", "passthrough=on"]));
    assert!(said.contains("passthrough=on") && said.contains("this backend"), "{said}");
    // Root of a user namespace is nobody on the machine.
    let program = command().get_program().to_owned();
    let said = refused(
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(program)
            .arg("passthrough")
            .args([dir.path().join("source"), dir.path().join("mnt")])
            .args(["-o", "passthrough=on"]),
    );
    assert!(said.contains("initial user namespace"), "{said}");
    shell("! mountpoint -q \"$1\"", &dir.path().join("mnt"));
}
