//! A file is truncated and appended to without pause while it is read in every way. Whatever offset has a byte at all
//! always has the same one, so every byte that a reader gets can be judged.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::harness::{
    Mount, Need, Random, Watchdog, aligned, drop_file_cache, fill, first_difference, long_run,
    native_control, ready,
};
use crate::mapped::Mapping;
use crate::posix::script::open;

const PAGE: u64 = 4096;
const LARGEST: u64 = 8 << 20;
const READ: usize = 512 << 10;
const CHILD_FILE: &str = "SPLICEFS_STORM_MAPPED_FILE";
/// What a mapped reader writes for each read: it may die at any moment, and the test harness writes too.
const MARK_RIGHT: u8 = b'+';
const MARK_CLEARED: u8 = b'#';

/// How long a storm lasts. It ends by time because it looks for races, not for a result.
fn duration() -> Duration {
    Duration::from_secs(if long_run() { 120 } else { 3 })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edges {
    /// The file's length is always a multiple of a page.
    Aligned,
    /// Any length.
    Any,
}

/// What a reader may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// The pattern.
    Right,
    /// The pattern and cleared pages.
    Cleared,
    /// Bytes that the file never held.
    Wrong,
}

/// Truncation clears in place what it cuts off within a folio of the page cache, which is one page or many. A reader
/// who has passed the check of the length, or a pipe that holds the page, then sees zeros: the native control shows
/// it, by sendfile(2) in particular. So zeros are told apart from wrong bytes, and bounded in number: they begin where
/// the file can have ended. Where they end says nothing, since the page may be seen while it is being cleared.
fn judge(bytes: &[u8], offset: u64, edges: Edges) -> Verdict {
    let mut verdict = Verdict::Right;
    let mut done = 0;
    while let Some(at) = first_difference(&bytes[done..], offset + done as u64) {
        let start = done + at;
        let run = bytes[start..].iter().take_while(|&&byte| byte == 0).count();
        let begins = offset + start as u64;
        let may_begin = edges == Edges::Any || begins.is_multiple_of(PAGE) || start == 0;
        if run == 0 || !may_begin {
            return Verdict::Wrong;
        }
        verdict = Verdict::Cleared;
        done = start + run;
    }
    verdict
}

/// The ways a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Buffered,
    Direct,
    Sendfile,
    Mapped,
}

impl How {
    const ALL: [Self; 4] = [Self::Buffered, Self::Direct, Self::Sendfile, Self::Mapped];
}

/// What the readers of one way saw.
#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    cleared: AtomicU64,
}

struct Storm {
    edges: Edges,
    stop: AtomicBool,
    bytes_read: AtomicU64,
    seen: [Seen; How::ALL.len()],
    changes: AtomicU64,
}

impl Storm {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn judge(&self, how: How, bytes: &[u8], offset: u64) {
        // Folios of many pages, which FUSE does not use, are cleared in place even at a page's edge, and one that is
        // being copied meanwhile has its zeros begin anywhere.
        let edges = if native_control() { Edges::Any } else { self.edges };
        let verdict = judge(bytes, offset, edges);
        let difference = first_difference(bytes, offset);
        assert!(
            verdict != Verdict::Wrong,
            "{how:?}: a read of {} at {offset} differs at {difference:?}: {:?}",
            bytes.len(),
            difference.map(|at| &bytes[at..bytes.len().min(at + 32)])
        );
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.count(how, 1, u64::from(verdict == Verdict::Cleared));
    }

    fn count(&self, how: How, reads: u64, cleared: u64) {
        let seen = &self.seen[how as usize];
        seen.reads.fetch_add(reads, Ordering::Relaxed);
        seen.cleared.fetch_add(cleared, Ordering::Relaxed);
    }

    fn write(&self, path: &Path) {
        let mut file = open(path, OFlags::WRONLY | OFlags::APPEND, 0).expect("open for appending");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut length = file.metadata().expect("fstat").len();
        let round = |value: u64| if self.edges == Edges::Aligned { value / PAGE * PAGE } else { value };
        while self.goes_on() {
            let room = LARGEST - length;
            if random.below(64) == 0 {
                length = 0;
                drop(open(path, OFlags::WRONLY | OFlags::TRUNC, 0).expect("open with O_TRUNC"));
            } else if room < PAGE || random.below(3) == 0 {
                length = round(length - random.below(length.min(1 << 20)));
                file.set_len(length).expect("truncate");
            } else {
                let more = round((1 + random.below(256 << 10)).min(room));
                file.write_all(&fill(length, usize::try_from(more).expect("a small length")))
                    .expect("append");
                length += more;
            }
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read_buffered(&self, path: &Path, seed: u64) {
        let file = File::open(path).expect("open");
        let (mut buffer, mut random) = (vec![0; READ], Random(seed));
        while self.goes_on() {
            let offset = random.below(LARGEST);
            let length = 1 + usize::try_from(random.below(READ as u64 - 1)).expect("a small length");
            let got = file.read_at(&mut buffer[..length], offset).expect("read");
            self.judge(How::Buffered, &buffer[..got], offset);
            if random.below(16) == 0 {
                drop_file_cache(&file);
            }
        }
    }

    fn read_direct(&self, path: &Path) {
        let file = open(path, OFlags::RDONLY | OFlags::DIRECT, 0).expect("open with O_DIRECT");
        let (mut memory, mut random) = (Vec::new(), Random(77));
        let buffer = aligned(&mut memory, READ);
        while self.goes_on() {
            let offset = random.below(LARGEST) / PAGE * PAGE;
            let got = file.read_at(buffer, offset).expect("direct read");
            self.judge(How::Direct, &buffer[..got], offset);
        }
    }

    fn read_sent(&self, path: &Path) {
        let file = File::open(path).expect("open");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let (mut buffer, mut random) = (vec![0; 65536], Random(99));
        while self.goes_on() {
            let start = random.below(LARGEST);
            let mut offset = start;
            let sent = rustix::fs::sendfile(&writer, &file, Some(&mut offset), 65536).expect("sendfile");
            let mut done = 0;
            while done < sent {
                done += rustix::io::read(&reader, &mut buffer[done..sent]).expect("reading the pipe");
            }
            self.judge(How::Sendfile, &buffer[..sent], start);
        }
    }

    /// Where the file ends under a mapping the reader dies of SIGBUS: so the readers are processes, one after another.
    fn read_mapped(&self, path: &Path) {
        let program = std::env::current_exe().expect("the test program");
        while self.goes_on() {
            let output = Command::new(&program)
                .args(["--exact", "storm::mapped_reader", "--nocapture"])
                .env(CHILD_FILE, path)
                .stderr(Stdio::inherit())
                .output()
                .expect("running a reader");
            let status = output.status;
            let bus = status.signal() == Some(libc::SIGBUS);
            assert!(status.success() || bus, "the mapped reader ended with {status}");
            let verdicts = |mark| output.stdout.iter().filter(|&&byte| byte == mark).count() as u64;
            let (right, cleared) = (verdicts(MARK_RIGHT), verdicts(MARK_CLEARED));
            self.count(How::Mapped, right + cleared, cleared);
        }
    }
}

/// Not a test by itself: the process that a storm starts to read a mapping.
#[test]
fn mapped_reader() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let file = File::open(path).expect("open");
    let length = usize::try_from(LARGEST).expect("a small length");
    let mapping = Mapping::new(&file, length).expect("mmap");
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    let mut buffer = vec![0; 16384];
    for _ in 0..2000 {
        let end = file.metadata().expect("fstat").len();
        let offset = random.below(end);
        let room = usize::try_from(end - offset).expect("a small length").min(buffer.len());
        mapping.copy(usize::try_from(offset).expect("a small offset"), &mut buffer[..room]);
        // The rest of the last page is zero in a mapping, whatever its edges.
        let verdict = judge(&buffer[..room], offset, Edges::Any);
        assert!(verdict != Verdict::Wrong, "mapped: wrong bytes at {offset}");
        let mark = if verdict == Verdict::Cleared { MARK_CLEARED } else { MARK_RIGHT };
        rustix::io::write(std::io::stdout(), &[mark]).expect("write a mark");
    }
}

/// How many of so many reads may see cleared pages: natively up to 10 of a million do, most by sendfile(2) and through
/// mappings. Where the daemon does not wait for the kernel to know the new size, it is 500 (src/vfs/length.rs).
fn tolerated(reads: u64) -> u64 {
    20 + reads * 20 / 1_000_000
}

fn storm(options: &str, edges: Edges) {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let _watchdog = Watchdog::new("a storm", duration() * 3 + Duration::from_secs(120));
    let builder = Mount::builder().options("allow_other").options(options);
    fs::write(builder.source().join("file"), fill(0, 4 << 20)).expect("write");
    let mount = builder.start();
    let path = mount.point().join("file");
    let (bytes_read, changes) = (0.into(), 0.into());
    let storm = Storm { edges, stop: false.into(), bytes_read, seen: Default::default(), changes };
    thread::scope(|scope| {
        let threads = [
            scope.spawn(|| storm.write(&path)),
            scope.spawn(|| storm.read_buffered(&path, 1)),
            scope.spawn(|| storm.read_buffered(&path, 2)),
            scope.spawn(|| storm.read_direct(&path)),
            scope.spawn(|| storm.read_sent(&path)),
            scope.spawn(|| storm.read_mapped(&path)),
        ];
        let start = Instant::now();
        while start.elapsed() < duration() && !threads.iter().any(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(20));
        }
        storm.stop.store(true, Ordering::Relaxed);
    });
    let (bytes, changes) = (storm.bytes_read.into_inner(), storm.changes.into_inner());
    let mut all = (0, 0);
    let mut summary =
        format!("{options} {edges:?}: {bytes} bytes read, {changes} changes; reads with cleared pages:");
    for (how, seen) in How::ALL.into_iter().zip(storm.seen) {
        let (reads, cleared) = (seen.reads.into_inner(), seen.cleared.into_inner());
        all = (all.0 + reads, all.1 + cleared);
        summary.push_str(&format!(" {how:?} {cleared} of {reads}"));
    }
    eprintln!("{summary}");
    let (reads, cleared) = all;
    assert!(cleared <= tolerated(reads), "{cleared} of {reads} reads saw cleared pages");
    assert!(bytes > 1 << 20 && changes > 20, "too little happened: {bytes} bytes read, {changes} changes");
    // The calm after it: both views hold the same whole pattern.
    let (above, below) =
        (fs::read(&path).expect("read"), fs::read(mount.source().join("file")).expect("read"));
    assert_eq!((above.len(), first_difference(&above, 0)), (below.len(), None));
    assert_eq!(first_difference(&below, 0), None);
}

#[test]
fn page_edges_with_splice() {
    storm("passthrough=off,splice=on,splice_min=1", Edges::Aligned);
}

#[test]
fn page_edges_without_splice() {
    storm("passthrough=off,splice=off", Edges::Aligned);
}

#[test]
fn any_edges_with_splice() {
    storm("passthrough=off,splice=on,splice_min=1", Edges::Any);
}

#[test]
fn any_edges_without_splice() {
    storm("passthrough=off,splice=off", Edges::Any);
}

#[test]
fn any_edges_by_the_kernel_itself() {
    storm("passthrough=on", Edges::Any);
}

#[test]
fn cleared_pages_are_told_from_wrong_bytes() {
    let (any, aligned) = (Edges::Any, Edges::Aligned);
    let mut bytes = fill(100, 20_000);
    assert_eq!(judge(&bytes, 100, aligned), Verdict::Right);
    let page = 4096 * 2 - 100;
    bytes[page - 50..page].fill(0);
    assert_eq!(judge(&bytes, 100, any), Verdict::Cleared);
    assert_eq!(judge(&bytes, 100, aligned), Verdict::Wrong, "no such length");
    bytes[page - 10..page].copy_from_slice(&fill(100 + page as u64 - 10, 10));
    assert_eq!(judge(&bytes, 100, any), Verdict::Cleared, "seen while it was being cleared");
    bytes[page - 50..].fill(0);
    assert_eq!(judge(&bytes, 100, any), Verdict::Cleared);
    bytes[19_999] = 1;
    assert_eq!(judge(&bytes, 100, any), Verdict::Wrong, "a foreign byte");
}
