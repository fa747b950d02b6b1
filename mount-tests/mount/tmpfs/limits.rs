//! The limits of a mount, met by many at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::observed::Observed;
use crate::harness::{Need, drop_file_cache, fill, first_difference, ready, until};

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Splicefs];
const SIZE: u64 = 64 << 20;
const WRITERS: usize = 8;
const ROUNDS: usize = 10;
/// What is appended, in bytes: within a page, a page, and more than is kept in the heap.
const PIECES: [usize; 3] = [100, 4 << 10, 300 << 10];
/// Files of one writer. Each takes pieces of one size.
const FILES: usize = 12;

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Appends to files of its own until none of them takes more, and returns how long each has become.
fn fill_up(mount: &Observed, writer: usize) -> Vec<u64> {
    let mut lengths = vec![0; FILES];
    let mut growing: Vec<usize> = (0..FILES).collect();
    while !growing.is_empty() {
        growing.retain(|&n| {
            let piece = fill(lengths[n], PIECES[n % PIECES.len()]);
            let mut file = appended(&mount.point().join(format!("{writer}-{n}"))).expect("open");
            match file.write(&piece) {
                Ok(written) => {
                    lengths[n] += written as u64;
                    assert!(lengths[n] <= SIZE, "the limit was not met");
                    true
                }
                Err(e) if is_full(&e) => {
                    assert_eq!(mount.room().f_bfree, 0, "ENOSPC with room left, to {} bytes", piece.len());
                    false
                }
                Err(e) => panic!("appending {} bytes: {e}", piece.len()),
            }
        });
    }
    lengths
}

/// The room that files take by what stat(2) tells of each.
fn held(point: &Path) -> u64 {
    let files = fs::read_dir(point).expect("readdir").map(|entry| entry.expect("readdir"));
    files.map(|file| file.metadata().expect("stat").blocks() * 512).sum()
}

/// Watches until `done`: files only grow, so what they held before is not more than what is used after.
fn sample(mount: &Observed, done: &AtomicBool) {
    loop {
        // The sample after the end is one, too.
        let last = done.load(Ordering::Relaxed);
        let held = held(mount.point());
        let used = mount.used();
        assert!(held <= used && used <= SIZE, "files hold {held}, {used} are used of {SIZE}");
        if last {
            return;
        }
    }
}

fn check_contents(point: &Path, lengths: &[Vec<u64>]) {
    for (writer, lengths) in lengths.iter().enumerate() {
        for (n, &length) in lengths.iter().enumerate() {
            let mut bytes = Vec::new();
            let mut file = File::open(point.join(format!("{writer}-{n}"))).expect("open");
            // What the kernel still has of the writes says nothing about the daemon.
            drop_file_cache(&file);
            file.read_to_end(&mut bytes).expect("read");
            assert_eq!(bytes.len() as u64, length, "{writer}-{n}");
            assert_eq!(first_difference(&bytes, 0), None, "{writer}-{n}");
        }
    }
}

fn fill_to_the_brim(mount: &Observed) -> Vec<Vec<u64>> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(mount, &done));
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || fill_up(mount, writer))).collect();
        let lengths: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        sampler.join().expect("the sampler");
        lengths.into_iter().map(|lengths| lengths.expect("a writer")).collect()
    })
}

#[test]
fn writers_fill_a_mount_to_the_last_page_and_leave_nothing() {
    if !ready(&NEEDS) {
        return;
    }
    let mount = Observed::mount(&format!("size={SIZE},nr_inodes=1000"));
    let mut baseline = None;
    for round in 0..ROUNDS {
        let lengths = fill_to_the_brim(&mount);
        assert_eq!((mount.room().f_bfree, mount.used()), (0, SIZE));
        assert_eq!(held(mount.point()), SIZE, "what the files hold is what is used");
        let pages: u64 = lengths.iter().flatten().map(|length| length.div_ceil(4096)).sum();
        assert_eq!(pages * 4096, SIZE, "short writes add up");
        if round == 0 || round == ROUNDS - 1 {
            check_contents(mount.point(), &lengths);
        }
        for entry in fs::read_dir(mount.point()).expect("readdir") {
            fs::remove_file(entry.expect("readdir").path()).expect("unlink");
        }
        until("the room to be free", || mount.used() == 0);
        until("the memfds to be closed", || mount.memfds() == 0);
        let baseline = *baseline.get_or_insert_with(|| mount.resident());
        mount.until_empty(baseline);
    }
}

#[test]
fn what_fallocate_cannot_have_whole_it_does_not_take_in_part() {
    if !ready(&NEEDS) {
        return;
    }
    let mount = Observed::mount(&format!("size={SIZE},nr_inodes=1000"));
    let file = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(mount.point().join(name)).expect("open")
    };
    let allocate = |file: &File, flags, offset, length| rustix::fs::fallocate(file, flags, offset, length);
    // What is left is not enough for a small file in the heap, and for a large one in a memfd.
    for left in [3 * 4096, 4 << 20] {
        allocate(&file("ballast"), FallocateFlags::empty(), 0, SIZE - left).expect("it fits");
        for (name, written) in [("empty", 0), ("small", 100), ("large", left / 2)] {
            let file = file(name);
            let written = usize::try_from(written).expect("a length");
            (&file).write_all(&fill(0, written)).expect("write");
            for flags in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
                for (offset, length) in [(0, left + 4096), (SIZE * 2, left + 1), (100, SIZE)] {
                    let before = (mount.used(), file.metadata().expect("stat"));
                    let refused = allocate(&file, flags, offset, length);
                    assert_eq!(refused, Err(Errno::NOSPC), "{length} bytes at {offset} of {name}");
                    let after = (mount.used(), file.metadata().expect("stat"));
                    assert_eq!(after.0, before.0, "used");
                    let shape = |meta: &fs::Metadata| (meta.len(), meta.blocks());
                    assert_eq!(shape(&after.1), shape(&before.1), "length and blocks of {name}");
                }
            }
            drop_file_cache(&file);
            let bytes = fs::read(mount.point().join(name)).expect("read");
            assert_eq!((bytes.len(), first_difference(&bytes, 0)), (written, None));
            // To the last page it is granted.
            let free = mount.room().f_bfree * 4096;
            allocate(&file, FallocateFlags::KEEP_SIZE, SIZE, free).expect("exactly what is left");
            assert_eq!(mount.room().f_bfree, 0);
            fs::remove_file(mount.point().join(name)).expect("unlink");
            drop(file);
            until("the room to be free", || mount.used() == SIZE - left);
        }
        fs::remove_file(mount.point().join("ballast")).expect("unlink");
        until("the room to be free", || mount.used() == 0);
    }
}

#[test]
fn threads_create_exactly_as_many_files_as_there_are_inodes() {
    const INODES: usize = 2000;
    if !ready(&NEEDS) {
        return;
    }
    let mount = Observed::mount(&format!("size={SIZE},nr_inodes={INODES}"));
    let create = |writer: usize| {
        let dir = mount.point().join(writer.to_string());
        for n in 0..INODES {
            match File::create_new(dir.join(n.to_string())) {
                Ok(_) => {}
                Err(e) if is_full(&e) => return n,
                Err(e) => panic!("creating file {n}: {e}"),
            }
        }
        panic!("{INODES} files were created, and the limit was not met")
    };
    for writer in 0..WRITERS {
        fs::create_dir(mount.point().join(writer.to_string())).expect("mkdir");
    }
    // The root is one, too.
    let rest = INODES - 1 - WRITERS;
    for _ in 0..3 {
        let created: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || create(writer))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        assert_eq!(created, rest);
        assert_eq!(mount.room().f_ffree, 0);
        let mut listed = 0;
        for writer in 0..WRITERS {
            for entry in fs::read_dir(mount.point().join(writer.to_string())).expect("readdir") {
                fs::remove_file(entry.expect("readdir").path()).expect("unlink");
                listed += 1;
            }
        }
        assert_eq!(listed, rest);
        until("the inodes to be free", || mount.room().f_ffree == rest as u64);
    }
}

/// As in the kernel's tmpfs, which sets the times before it looks for room.
#[test]
fn regression_a_copy_that_finds_no_room_shows_its_time() {
    if !ready(&NEEDS) {
        return;
    }
    let mount = Observed::mount("size=16k");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.point().join("file"));
    let file = file.expect("create");
    // The first page stays a hole.
    file.write_all_at(&fill(0, 4 * 4096), 4096).expect("write");
    let time = || file.metadata().map(|meta| (meta.mtime(), meta.mtime_nsec())).expect("fstat");
    let before = time();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 8192), &file, Some(&mut 0), 1);
    assert_eq!(copied, Err(Errno::NOSPC));
    assert_ne!(time(), before);
}
