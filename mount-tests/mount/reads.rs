//! The same bytes on every read path, and the proof of which path they took.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::OFlags;

use crate::harness::{
    Mount, MountBuilder, Need, Stats, aligned, drop_file_cache, fill, first_difference, long_run, read_range,
    ready, shell, trace, until_some,
};
use crate::mapped::Mapping;
use crate::posix::script::open;

const MIB: usize = 1 << 20;

/// Bytes of the large file.
fn large_size() -> usize {
    if long_run() { 1024 * MIB } else { 256 * MIB }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReadPath {
    Buffered,
    Direct,
    Mapped,
    Sendfile,
    FourReaders,
}

const PATHS: [ReadPath; 5] =
    [ReadPath::Buffered, ReadPath::Direct, ReadPath::Mapped, ReadPath::Sendfile, ReadPath::FourReaders];

/// Hands the file's bytes to `check`, piece by piece with their offsets, read in the way of `path`.
fn read_by(path: ReadPath, file: &Path, check: &(dyn Fn(&[u8], u64) + Sync)) {
    match path {
        ReadPath::Buffered => buffered(file, 0, u64::MAX, check),
        ReadPath::Direct => direct(file, check),
        ReadPath::Mapped => mapped(file, check),
        ReadPath::Sendfile => sent(file, check),
        ReadPath::FourReaders => {
            let length = fs::metadata(file).expect("stat").len();
            let part = length.div_ceil(4);
            thread::scope(|scope| {
                for reader in 0..4 {
                    scope.spawn(move || {
                        let end = ((reader + 1) * part).min(length);
                        buffered(file, reader * part, end, check);
                    });
                }
            });
        }
    }
}

fn buffered(path: &Path, start: u64, end: u64, check: &(dyn Fn(&[u8], u64) + Sync)) {
    let file = File::open(path).expect("open");
    let mut buffer = vec![0; MIB];
    let mut offset = start;
    while offset < end {
        let want = usize::try_from(end - offset).map_or(MIB, |left| left.min(MIB));
        let got = read_range(&file, &mut buffer[..want], offset).expect("read");
        if got == 0 {
            break;
        }
        check(&buffer[..got], offset);
        offset += got as u64;
    }
}

fn direct(path: &Path, check: &(dyn Fn(&[u8], u64) + Sync)) {
    let file = open(path, OFlags::RDONLY | OFlags::DIRECT, 0).expect("open with O_DIRECT");
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, MIB);
    let mut offset = 0;
    loop {
        let got = file.read_at(buffer, offset).expect("direct read");
        if got == 0 {
            break;
        }
        check(&buffer[..got], offset);
        offset += got as u64;
    }
}

fn mapped(path: &Path, check: &(dyn Fn(&[u8], u64) + Sync)) {
    let file = File::open(path).expect("open");
    let length = usize::try_from(file.metadata().expect("fstat").len()).expect("a length");
    if length == 0 {
        return;
    }
    let mapping = Mapping::new(&file, length).expect("mmap");
    let mut buffer = vec![0; MIB.min(length)];
    for offset in (0..length).step_by(MIB) {
        let part = &mut buffer[..MIB.min(length - offset)];
        mapping.copy(offset, part);
        check(part, offset as u64);
    }
}

fn sent(path: &Path, check: &(dyn Fn(&[u8], u64) + Sync)) {
    let file = File::open(path).expect("open");
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    thread::scope(|scope| {
        scope.spawn(move || while rustix::fs::sendfile(&writer, &file, None, MIB).expect("sendfile") > 0 {});
        let mut reader = File::from(reader);
        let (mut buffer, mut offset) = (vec![0; MIB], 0);
        loop {
            let got = reader.read(&mut buffer).expect("reading the pipe");
            if got == 0 {
                break;
            }
            check(&buffer[..got], offset);
            offset += got as u64;
        }
    });
}

fn write_pattern(path: &Path, length: usize) {
    let mut file = File::create(path).expect("create");
    for offset in (0..length).step_by(MIB) {
        file.write_all(&fill(offset as u64, MIB.min(length - offset))).expect("write");
    }
}

/// What was read between two moments: (spliced, zero-filled, copied) bytes.
fn delta(before: &Stats, after: &Stats) -> (u64, u64, u64) {
    (
        after.spliced_bytes() - before.spliced_bytes(),
        after.zero_bytes() - before.zero_bytes(),
        after.copied_bytes() - before.copied_bytes(),
    )
}

/// Reads `file` below the mount in each way, comparing with the source, and hands the counters to `judge`.
fn each_path(mount: &Mount, file: &str, judge: impl Fn(ReadPath, (u64, u64, u64))) {
    let (below, above) = (mount.source().join(file), mount.point().join(file));
    let length = fs::metadata(&below).expect("stat").len();
    for path in PATHS {
        drop_file_cache(File::open(&above).expect("open"));
        let before = mount.stats();
        let source = File::open(&below).expect("open");
        let total = std::sync::atomic::AtomicU64::new(0);
        read_by(path, &above, &|bytes, offset| {
            let mut expected = vec![0; bytes.len()];
            let got = read_range(&source, &mut expected, offset).expect("reading the source");
            assert!(got == bytes.len() && expected == bytes, "{path:?}: {file} differs near offset {offset}");
            total.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), length, "{path:?}: length of {file}");
        if let Some(before) = before {
            // A reply is counted after it is sent. The kernel may have kept a page or two in spite of the advice.
            let counted = until_some("the bytes read to be counted", || {
                let (spliced, zero, copied) = delta(&before, &mount.stats()?);
                (spliced + zero + copied >= length - length / 100).then_some((spliced, zero, copied))
            });
            judge(path, counted);
        }
    }
}

fn large_file(options: &str, judge: impl Fn(ReadPath, (u64, u64, u64))) {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let builder = Mount::builder().options("passthrough=off").options(options);
    write_pattern(&builder.source().join("large"), large_size());
    let mount = builder.start();
    each_path(&mount, "large", judge);
}

#[test]
fn a_large_file_is_spliced() {
    large_file("splice=on", |path, (spliced, zero, copied)| {
        let served = spliced + zero + copied;
        // O_DIRECT has no pages to share, and page faults ask for little at a time.
        let enough = match path {
            ReadPath::Direct => 0,
            ReadPath::Mapped => served / 2,
            _ => served - served / 20,
        };
        assert!(spliced >= enough, "{path:?}: {spliced} of {served} bytes spliced, {copied} copied");
    });
}

#[test]
fn a_large_file_without_splice() {
    large_file("splice=off", |path, (spliced, _, _)| {
        assert_eq!(spliced, 0, "{path:?}: spliced although it is off");
    });
}

/// Islands of data between holes, with edges on and off page boundaries, ending in a hole.
fn write_sparse(path: &Path) {
    let file = File::create(path).expect("create");
    for (number, offset) in (0..64 * MIB as u64).step_by(3 * MIB + 12_345).enumerate() {
        let length = [1, 4095, 4096, 65_537, 300_000, 1_500_000][number % 6];
        file.write_all_at(&fill(offset, length), offset).expect("write");
    }
    file.set_len(80 * MIB as u64 + 77).expect("truncate");
    file.sync_all().expect("fsync");
}

fn sparse_file(options: &str, judge: impl Fn(ReadPath, (u64, u64, u64))) {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let builder = Mount::builder().options("passthrough=off").options(options);
    write_sparse(&builder.source().join("sparse"));
    let mount = builder.start();
    each_path(&mount, "sparse", judge);
    // The file system reports the same holes, and reading has filled none.
    let map = |path: PathBuf| shell("stat -c %b \"$1\"", &path);
    assert_eq!(map(mount.source().join("sparse")), map(mount.point().join("sparse")));
}

#[test]
fn a_sparse_file_is_spliced_and_zero_filled() {
    sparse_file("splice=on", |path, (spliced, zero, copied)| {
        if matches!(path, ReadPath::Buffered | ReadPath::Sendfile | ReadPath::FourReaders) {
            let fast = spliced + zero;
            assert!(fast > 9 * copied, "{path:?}: {spliced} spliced, {zero} zero-filled, {copied} copied");
        }
    });
}

#[test]
fn a_sparse_file_without_splice() {
    sparse_file("splice=off", |path, (spliced, _, _)| assert_eq!(spliced, 0, "{path:?}"));
}

/// 10,000 files of 0 to 20 KB in 100 directories.
fn write_small(builder: &MountBuilder) {
    for directory in 0..100 {
        let path = builder.source().join(format!("dir{directory:02}"));
        fs::create_dir(&path).expect("mkdir");
        for number in 0..100_u64 {
            let seed = directory * 100 + number;
            let length = usize::try_from(seed * 7919 % 20_481).expect("a small length");
            fs::write(path.join(format!("file{number:02}")), fill(seed, length)).expect("write");
        }
    }
}

fn small_files(options: &str) {
    if !ready(&[Need::Fuse, Need::Root, Need::Program("sha256sum")]) {
        return;
    }
    let builder = Mount::builder().options("passthrough=off").options(options);
    write_small(&builder);
    let mount = builder.start();
    let sums = |root: &Path| {
        let script = "cd \"$1\" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
        shell(script, root)
    };
    let native = sums(mount.source());
    assert_eq!(native.lines().count(), 10_000);
    assert!(native == sums(mount.point()), "the SHA-256 sums of the small files differ");
    for path in PATHS {
        for seed in (0..10_000_u64).step_by(if long_run() { 1 } else { 7 }) {
            let name = format!("dir{:02}/file{:02}", seed / 100, seed % 100);
            let file = mount.point().join(&name);
            read_by(path, &file, &|bytes, offset| {
                assert_eq!(first_difference(bytes, seed + offset), None, "{path:?}: {name} at {offset}");
            });
        }
    }
}

#[test]
fn small_files_with_splice() {
    small_files("splice=on");
}

#[test]
fn small_files_without_splice() {
    small_files("splice=off");
}

/// Splicing however little is asked for: the threshold is a matter of speed, not of correctness.
#[test]
fn small_files_always_spliced() {
    small_files("splice=on,splice_min=1");
}

/// Sums the results of each system call in what strace wrote: (bytes by splice, bytes by the copying calls).
fn traced_bytes(trace: &str) -> (u64, u64) {
    let mut sums = (0, 0);
    for line in trace.lines() {
        let result = line
            .rsplit_once(" = ")
            .and_then(|(_, result)| result.split_whitespace().next()?.parse::<u64>().ok());
        let Some(result) = result else { continue };
        if line.contains("splice") && !line.contains("vmsplice") {
            sums.0 += result;
        } else if ["pread64", "preadv", "writev"].iter().any(|call| line.contains(call)) {
            sums.1 += result;
        }
    }
    sums
}

/// Attaches strace to the daemon, reads a file through the mount, and says what the system calls moved.
fn trace_reading(options: &str) -> Option<(u64, u64)> {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs, Need::Program("strace")]) {
        return None;
    }
    let builder = Mount::builder().options("passthrough=off").options(options);
    write_pattern(&builder.source().join("file"), 32 * MIB);
    let mount = builder.start();
    let (pid, output) = (mount.pid().expect("a daemon"), mount.dir().join("trace"));
    let trace = trace(pid, "splice,pread64,preadv,preadv2,writev", &output, || {
        buffered(&mount.point().join("file"), 0, u64::MAX, &|bytes, offset| {
            assert_eq!(first_difference(bytes, offset), None, "at {offset}");
        });
    });
    Some(traced_bytes(&trace))
}

#[test]
fn strace_sees_splices() {
    let Some((spliced, copied)) = trace_reading("splice=on") else { return };
    // Every byte passes splice(2) twice: into the pipe, and out of it into the device.
    let twice = 2 * 32 * MIB as u64;
    assert!(
        spliced >= twice - twice / 20,
        "splice(2) moved {spliced} bytes of {twice}; copying calls moved {copied}"
    );
}

#[test]
fn strace_sees_no_splice_when_it_is_off() {
    let Some((spliced, copied)) = trace_reading("splice=off") else { return };
    assert_eq!(spliced, 0, "splice(2) was called");
    assert!(copied >= 2 * 32 * MIB as u64, "the copying calls moved {copied} bytes only");
}

#[test]
fn traces_are_summed_over_split_lines() {
    let trace = "12 splice(5, NULL, 6, NULL, 100, 0) = 100\n13 splice(5 <unfinished ...>\n\
                 13 <... splice resumed>, NULL) = 28\n12 pread64(4, \"\"..., 10, 0) = 10\n12 splice(1) = -1 EAGAIN (x)\n";
    assert_eq!(traced_bytes(trace), (128, 10));
}
