//! The plan oracle: plans executed into a second pipe that poses as the device, against what pread(2) gives.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use splicefs_core::testkit::execute;
use splicefs_core::{CopyReason, FileExtent, ReadPlan, Segment, Span, Via};

use super::pipe::Pipe;
use super::{Counters, Engine, HEADER, Outcome, Policy, ZeroSource, max_read_bytes};
use crate::aligned::PAGE;

const UNIQUE: u64 = 0x1122_3344_5566_7788;

/// A pipe that takes replies as the device does, and lets a test read them.
struct FakeDevice {
    read: OwnedFd,
    write: OwnedFd,
}

impl FakeDevice {
    fn new() -> Self {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        fcntl_setpipe_size(&write, 256 * PAGE).unwrap();
        Self { read, write }
    }

    /// The one reply that was sent: its header is checked, its payload returned.
    fn reply(&self) -> Vec<u8> {
        let mut bytes = vec![0; 256 * PAGE];
        let mut len = 0;
        while let Ok(n @ 1..) = rustix::io::read(&self.read, &mut bytes[len..]) {
            len += n;
        }
        bytes.truncate(len);
        check_header(&bytes)
    }
}

fn check_header(reply: &[u8]) -> Vec<u8> {
    assert_eq!(reply[..4], u32::try_from(reply.len()).unwrap().to_ne_bytes(), "the length");
    assert_eq!(reply[4..8], 0i32.to_ne_bytes(), "the error");
    assert_eq!(reply[8..HEADER], UNIQUE.to_ne_bytes(), "the request");
    reply[HEADER..].to_vec()
}

fn engine(policy: Policy) -> Engine {
    Engine::new(policy, Arc::new(ZeroSource::new().unwrap()), max_read_bytes(), Arc::new(Counters::default()))
        .unwrap()
}

fn splicing() -> Engine {
    engine(Policy { splice: true, splice_min: 1 })
}

fn copying() -> Engine {
    engine(Policy { splice: false, splice_min: 1 })
}

/// A file of `len` bytes, none of them zero, each told by its offset.
fn file(len: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap() + 1).collect();
    file.write_all(&bytes).unwrap();
    file
}

fn extent(file: &File, offset: u64, len: usize) -> Segment<'_> {
    Segment::File(FileExtent { fd: file.as_fd(), offset, len, via: Via::Splice })
}

#[test]
fn the_largest_read_is_spliced_whole_aligned_or_not() {
    let file = file(300 * PAGE);
    let (mut engine, device) = (splicing(), FakeDevice::new());
    for offset in [0, 1, 4095, 8192] {
        let plan = ReadPlan::of(extent(&file, offset, max_read_bytes()));
        let outcome = engine.send(&device.write, UNIQUE, &plan);
        assert_eq!(outcome, Outcome::Spliced { data: max_read_bytes(), zeros: 0 }, "from {offset}");
        assert!(device.reply() == execute(&plan), "from {offset}");
    }
    assert_eq!(engine.counters.snapshot().spliced_bytes, 4 * max_read_bytes() as u64);
    assert_eq!(engine.counters.snapshot().copied_bytes, 0);
}

#[test]
fn holes_are_zero_pages_and_counted_apart() {
    let file = file(2 * PAGE);
    let (mut engine, device) = (splicing(), FakeDevice::new());
    let mut plan = ReadPlan::of(Segment::Zeros(40 * PAGE));
    plan.push(extent(&file, 0, 2 * PAGE));
    let outcome = engine.send(&device.write, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Spliced { data: 2 * PAGE, zeros: 40 * PAGE });
    assert_eq!(device.reply(), execute(&plan));
}

#[test]
fn policy_copies_what_is_small_off_or_must_be_and_says_why() {
    let file = file(4 * PAGE);
    let device = FakeDevice::new();
    let whole = ReadPlan::of(extent(&file, 0, 4 * PAGE));
    let direct = ReadPlan::of(Segment::File(FileExtent {
        fd: file.as_fd(),
        offset: 0,
        len: PAGE,
        via: Via::Copy(CopyReason::Direct),
    }));
    let memory = ReadPlan::of(Segment::Bytes(b"in memory"));
    let above = Policy { splice: true, splice_min: 5 * PAGE };
    let cases = [
        (engine(above), &whole, CopyReason::Small),
        (copying(), &whole, CopyReason::SpliceOff),
        (splicing(), &direct, CopyReason::Direct),
        (splicing(), &memory, CopyReason::Memory),
    ];
    for (mut engine, plan, reason) in cases {
        let outcome = engine.send(&device.write, UNIQUE, plan);
        assert_eq!(outcome, Outcome::Copied { data: plan.len(), zeros: 0, reason });
        assert_eq!(device.reply(), execute(plan));
        assert_eq!(engine.counters.snapshot().copies[reason.key()], 1);
        assert_eq!(engine.counters.snapshot().spliced_bytes, 0);
    }
}

#[test]
fn the_end_of_the_file_is_an_empty_reply() {
    let device = FakeDevice::new();
    assert_eq!(splicing().send(&device.write, UNIQUE, &ReadPlan::end_of_file()), Outcome::EndOfFile);
    assert_eq!(device.reply(), b"");
}

#[test]
fn a_source_that_ends_early_gives_a_short_reply_and_no_byte_of_it_is_left_behind() {
    let short = file(10 * PAGE + 17);
    let other = file(3 * PAGE);
    let (mut engine, device) = (splicing(), FakeDevice::new());
    let mut plan = ReadPlan::of(extent(&short, 0, 20 * PAGE));
    plan.push(Segment::Bytes(b"what follows a file's end is not the file's"));
    let outcome = engine.send(&device.write, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Copied { data: 10 * PAGE + 17, zeros: 0, reason: CopyReason::Short });
    assert_eq!(device.reply(), execute(&plan));
    assert!(engine.pipe.is_none(), "the pipe that held bytes is closed");
    let next = ReadPlan::of(extent(&other, 0, 3 * PAGE));
    assert_eq!(engine.send(&device.write, UNIQUE, &next), Outcome::Spliced { data: 3 * PAGE, zeros: 0 });
    assert_eq!(device.reply(), execute(&next), "the next reader sees its own bytes");
}

#[test]
fn a_file_that_shrank_after_it_was_planned_is_read_again() {
    let file = file(8 * PAGE);
    let plan_len = 8 * PAGE;
    let (mut engine, device) = (splicing(), FakeDevice::new());
    // The page in the pipe would be whole, its end zeroed: splice(2) itself notices nothing.
    file.set_len(8 * PAGE as u64 - 100).unwrap();
    let plan = ReadPlan::of(extent(&file, 0, plan_len));
    let outcome = engine.send(&device.write, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Copied { data: plan_len - 100, zeros: 0, reason: CopyReason::Short });
    assert_eq!(device.reply().len(), plan_len - 100);
}

#[test]
fn a_source_that_refuses_splice_is_copied() {
    // pagemap(5) has no splice_read; the entries of pages never mapped are zero.
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let (mut engine, device) = (splicing(), FakeDevice::new());
    let plan = ReadPlan::of(extent(&pagemap, 0, 64));
    let outcome = engine.send(&device.write, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Copied { data: 64, zeros: 0, reason: CopyReason::SourceRefused });
    assert_eq!(device.reply(), [0; 64]);
    assert!(engine.pipe.is_none(), "its header is still in the pipe");
}

#[test]
fn a_device_that_refuses_splice_is_written_to_once_more_by_copy() {
    // splice(2) into a file opened with O_APPEND is EINVAL; writev(2) is not.
    let device = tempfile::NamedTempFile::new().unwrap();
    let append = OFlags::WRONLY | OFlags::APPEND;
    let fd = rustix::fs::open(device.path(), append, rustix::fs::Mode::empty()).unwrap();
    let file = file(16 * PAGE);
    let mut engine = splicing();
    let plan = ReadPlan::of(extent(&file, 0, 16 * PAGE));
    let outcome = engine.send(&fd, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Copied { data: 16 * PAGE, zeros: 0, reason: CopyReason::DeviceRefused });
    assert_eq!(check_header(&std::fs::read(device.path()).unwrap()), execute(&plan), "one reply, whole");
    assert!(engine.pipe.is_none());
}

#[test]
fn a_reply_that_a_small_pipe_cannot_hold_is_copied_and_smaller_ones_are_spliced() {
    let file = file(64 * PAGE);
    let device = FakeDevice::new();
    let mut engine = splicing();
    engine.pipe = Some(Pipe::with_pages(16));
    let large = ReadPlan::of(extent(&file, 0, 15 * PAGE));
    let outcome = engine.send(&device.write, UNIQUE, &large);
    assert_eq!(outcome, Outcome::Copied { data: 15 * PAGE, zeros: 0, reason: CopyReason::NoPipe });
    assert_eq!(device.reply(), execute(&large));
    let small = ReadPlan::of(extent(&file, 1, 14 * PAGE));
    assert_eq!(engine.send(&device.write, UNIQUE, &small), Outcome::Spliced { data: 14 * PAGE, zeros: 0 });
    assert_eq!(device.reply(), execute(&small));
}

#[test]
fn a_source_that_cannot_be_read_is_an_error_to_the_caller() {
    let write_only = tempfile::NamedTempFile::new().unwrap();
    let fd = rustix::fs::open(write_only.path(), OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
    write_only.as_file().set_len(PAGE as u64).unwrap();
    let device = FakeDevice::new();
    let plan =
        ReadPlan::of(Segment::File(FileExtent { fd: fd.as_fd(), offset: 0, len: PAGE, via: Via::Splice }));
    let outcome = splicing().send(&device.write, UNIQUE, &plan);
    assert_eq!(outcome, Outcome::Failed(splicefs_core::Errno::EBADF));
}

/// A short reply is the end of the file to the kernel, which then cuts the file off there: an error must be told, whole.
#[test]
fn regression_an_error_after_good_bytes_is_an_error_and_not_a_short_reply() {
    let good = file(4 * PAGE);
    let bad = tempfile::NamedTempFile::new().unwrap();
    bad.as_file().set_len(PAGE as u64).unwrap();
    let unreadable = rustix::fs::open(bad.path(), OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
    for mut engine in [splicing(), copying()] {
        let device = FakeDevice::new();
        let mut plan = ReadPlan::of(extent(&good, 0, 4 * PAGE));
        let fd = unreadable.as_fd();
        plan.push(Segment::File(FileExtent { fd, offset: 0, len: PAGE, via: Via::Splice }));
        let outcome = engine.send(&device.write, UNIQUE, &plan);
        assert_eq!(outcome, Outcome::Failed(splicefs_core::Errno::EBADF));
    }
}

/// A segment of a random plan over a file of [`FILE_PAGES`] pages.
#[derive(Clone, Debug)]
enum Piece {
    File(Span),
    Zeros(usize),
    Bytes(Vec<u8>),
}

const FILE_PAGES: usize = 24;

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let limit = FILE_PAGES * PAGE;
    let piece = prop_oneof![
        3 => (0..limit as u64, 0..limit).prop_map(|(offset, len)| Piece::File(Span { offset, len })),
        1 => (0..8 * PAGE).prop_map(Piece::Zeros),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Piece::Bytes),
    ];
    proptest::collection::vec(piece, 0..6)
}

proptest! {
    /// Any plan, spliced or copied, is the same reply, and every reply is the next one's neighbour in a reused pipe.
    #[test]
    fn splice_and_copy_agree_with_pread(plans in proptest::collection::vec(pieces(), 1..4)) {
        let file = file(FILE_PAGES * PAGE - 123);
        let (mut splicing, mut copying, device) = (splicing(), copying(), FakeDevice::new());
        for pieces in &plans {
            let mut plan = ReadPlan::end_of_file();
            for piece in pieces {
                plan.push(match piece {
                    Piece::File(span) => extent(&file, span.offset, span.len),
                    Piece::Zeros(len) => Segment::Zeros(*len),
                    Piece::Bytes(bytes) => Segment::Bytes(bytes),
                });
            }
            splicing.send(&device.write, UNIQUE, &plan);
            prop_assert!(device.reply() == execute(&plan), "spliced");
            copying.send(&device.write, UNIQUE, &plan);
            prop_assert!(device.reply() == execute(&plan), "copied");
        }
        prop_assert_eq!(copying.counters.snapshot().spliced_bytes, 0);
    }
}
