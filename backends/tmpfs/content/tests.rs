//! The store against a model, the model against the kernel, and what neither shows: tiers, failures, memory.

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate};
use splicefs_core::testkit::execute;

use super::model::{Model, Op, op};
use super::*;
use crate::limits::Limits;

fn store(pages: Option<u64>, descriptors: usize) -> Store {
    Store::new(Limits::new(pages, None), descriptors)
}

fn apply(content: &mut Content, store: &Store, op: &Op) -> std::result::Result<usize, Errno> {
    let done = match *op {
        Op::Write(offset, len, byte) => content.write(store, offset, &vec![byte; len]),
        Op::Truncate(size) => content.truncate(store, size).map(|()| 0),
        Op::TruncateToSize => content.truncate(store, content.size()).map(|()| 0),
        Op::Allocate(offset, len, keep_size) => content.allocate(store, offset, len, keep_size).map(|()| 0),
        Op::Punch(offset, len) => content.punch(store, offset, len).map(|()| 0),
        Op::Clear => {
            content.clear(store);
            Ok(0)
        }
    };
    done.map_err(|e| e.errno())
}

/// What there is to read of `span`, three times, and that its plan shows every hole.
fn check_read(content: &Content, model: &Model, span: Range<u64>) -> TestCaseResult {
    let len = in_memory(count(&span));
    let (bytes, written) = model.read(span.clone());
    let plan = content.plan(Span { offset: span.start, len });
    prop_assert_eq!(plan.len(), bytes.len());
    prop_assert!(execute(&plan) == bytes, "{span:?} of {plan:?}");
    prop_assert!(execute(&plan) == bytes, "a second time, {span:?} of {plan:?}");
    let mut buf = vec![0xee; len];
    let n = content.read(span.start, &mut buf).unwrap();
    prop_assert!(buf[..n] == bytes, "read {span:?}");

    let mut rest = &written[..];
    for segment in plan.segments() {
        let (part, behind) = rest.split_at(segment.len());
        match segment {
            Segment::Zeros(_) => {}
            _ => prop_assert!(part.iter().all(|written| *written), "a hole is not planned as one: {plan:?}"),
        }
        rest = behind;
    }
    for pair in plan.segments().windows(2) {
        let split =
            matches!(pair, [Segment::Zeros(_), Segment::Zeros(_)] | [Segment::File(_), Segment::File(_)]);
        prop_assert!(!split, "one segment in two: {plan:?}");
    }
    Ok(())
}

/// That every answer of the file is the model's.
fn check(content: &Content, model: &Model) -> TestCaseResult {
    prop_assert_eq!((content.size(), content.pages()), (model.size, model.pages.len() as u64));
    let edges = model.edges();
    for pair in edges.windows(2) {
        // Between two edges all is alike: enough of the far ones is their ends.
        check_read(content, model, pair[0]..pair[1].min(pair[0] + 200_000))?;
    }
    check_read(content, model, 0..40 * PAGE)?;
    for at in edges {
        let answer = |to| content.seek(at, to).map_err(|e| e.errno());
        prop_assert_eq!(answer(SeekTo::Data), model.seek_data(at).ok_or(Errno::ENXIO), "data from {}", at);
        prop_assert_eq!(answer(SeekTo::Hole), model.seek_hole(at).ok_or(Errno::ENXIO), "hole from {}", at);
        for to in [at, at + 1, at + 5 * PAGE, u64::MAX] {
            prop_assert_eq!(content.next_data(at, to), model.next_data(at, to), "data in {}..{}", at, to);
        }
    }
    Ok(())
}

/// Does `ops` on two files of one store and on their models.
fn run(ops: &[(bool, Op)], pages: Option<u64>, descriptors: usize) -> TestCaseResult {
    let store = store(pages, descriptors);
    let mut files: [(Content, Model); 2] = Default::default();
    for (which, op) in ops {
        let used = store.limits.pages_in_use();
        let (content, model) = &mut files[usize::from(*which)];
        let expected = model.apply(op, pages.map_or(u64::MAX, |pages| pages - used));
        prop_assert_eq!(apply(content, &store, op), expected, "{:?}", op);
        check(content, model)?;
        let taken: usize = files.iter().map(|(_, model)| model.pages.len()).sum();
        prop_assert_eq!(store.limits.pages_in_use(), taken as u64);
    }
    let moved = files.iter().filter(|(content, _)| matches!(content.tier, Tier::Memfd(_))).count();
    prop_assert_eq!(store.descriptors_left(), descriptors - moved);
    files.iter_mut().for_each(|(content, _)| content.clear(&store));
    prop_assert_eq!((store.limits.pages_in_use(), store.descriptors_left()), (0, descriptors));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn two_files_agree_with_their_models(
        ops in proptest::collection::vec((proptest::bool::weighted(0.3), op()), 1..30),
        pages in proptest::option::of(1u64..60),
        descriptors in prop_oneof![Just(0usize), Just(1), Just(100)],
    ) {
        run(&ops, pages, descriptors)?;
    }

    /// The model is the kernel's tmpfs, but for one thing: a page that fallocate(2) finds set aside counts as written
    /// from then on there (SGP_FALLOC in `shmem_get_folio_gfp`), and as a hole here.
    #[test]
    fn the_model_agrees_with_the_kernel(ops in proptest::collection::vec(op(), 1..30)) {
        let file = rustix::fs::memfd_create(c"model", MemfdFlags::CLOEXEC).unwrap();
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Allocate(offset, len, _) if model.has_unwritten(offset, len) => continue,
                // The end of the last page is no `loff_t`, and the kernel's seeking trips over that.
                Op::Allocate(offset, len, _) if offset + len > MAX_SIZE - PAGE => continue,
                Op::Write(offset, len, _) if offset + len as u64 > MAX_SIZE - PAGE => continue,
                _ => {}
            }
            prop_assert_eq!(model.apply(&op, u64::MAX), on_kernel(&file, &op), "{:?}", op);
            let stat = fstat(&file).unwrap();
            prop_assert_eq!(u64::try_from(stat.st_size), Ok(model.size));
            prop_assert_eq!(u64::try_from(stat.st_blocks), Ok(model.pages.len() as u64 * 8));
            for at in model.edges() {
                let seek = |to| rustix::fs::seek(&file, to).ok();
                prop_assert_eq!(seek(rustix::fs::SeekFrom::Data(at)), model.seek_data(at), "data from {}", at);
                prop_assert_eq!(seek(rustix::fs::SeekFrom::Hole(at)), model.seek_hole(at), "hole from {}", at);
                let (bytes, _) = model.read(at..at + 9000);
                let mut buf = vec![0; bytes.len()];
                memfd::read_exact(&file, at, &mut buf).unwrap();
                prop_assert!(buf == bytes, "bytes from {}", at);
            }
        }
    }
}

fn on_kernel(file: &OwnedFd, op: &Op) -> std::result::Result<usize, Errno> {
    let done = match *op {
        Op::Write(offset, len, byte) => return Ok(rustix::io::pwrite(file, &vec![byte; len], offset)?),
        // The system call takes no size over the largest.
        Op::Truncate(size) if size > MAX_SIZE => return Err(Errno::EFBIG),
        Op::Truncate(size) => ftruncate(file, size),
        Op::TruncateToSize => ftruncate(file, fstat(file)?.st_size.unsigned_abs()),
        Op::Clear => ftruncate(file, 0),
        Op::Allocate(offset, len, true) => fallocate(file, FallocateFlags::KEEP_SIZE, offset, len),
        Op::Allocate(offset, len, false) => fallocate(file, FallocateFlags::empty(), offset, len),
        Op::Punch(offset, len) => {
            fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
        }
    };
    Ok(done.map(|()| 0)?)
}

fn is_memfd(content: &Content) -> bool {
    matches!(content.tier, Tier::Memfd(_))
}

#[test]
fn a_file_is_in_a_memfd_from_17_pages_and_in_the_heap_again_from_8() {
    let store = store(None, 1);
    let mut file = Content::new();
    file.write(&store, 0, &[1; 16 * 4096]).unwrap();
    assert!(!is_memfd(&file));
    file.write(&store, 100 * PAGE, b"more").unwrap();
    assert!(is_memfd(&file));
    assert_eq!(store.descriptors_left(), 0);
    file.truncate(&store, 9 * PAGE).unwrap();
    assert!(is_memfd(&file));
    file.punch(&store, 0, PAGE).unwrap();
    assert!(!is_memfd(&file));
    assert_eq!((file.pages(), file.size(), store.descriptors_left()), (8, 9 * PAGE, 1));
    let bytes = execute(&file.plan(Span { offset: 0, len: 1 << 20 }));
    assert_eq!(bytes, [vec![0; 4096], vec![1; 8 * 4096]].concat());
}

#[test]
fn the_system_sets_aside_what_fallocate_asks_for() {
    let store = store(None, 1);
    let mut file = Content::new();
    file.allocate(&store, 0, 16 * PAGE, true).unwrap();
    assert!(!is_memfd(&file));
    file.allocate(&store, 0, 100 * PAGE, true).unwrap();
    let Tier::Memfd(memfd) = &file.tier else { panic!("{file:?}") };
    assert_eq!(fstat(memfd.file()).unwrap().st_blocks, 800);
    assert_eq!((file.size(), file.pages()), (0, 100));
}

#[test]
fn without_a_descriptor_a_large_file_is_whole_and_moves_when_there_is_one() {
    let store = store(None, 1);
    let held = store.take_descriptor();
    let mut file = Content::new();
    let bytes: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
    file.write(&store, 5, &bytes).unwrap();
    assert!(!is_memfd(&file));
    drop(held);
    file.write(&store, 1 << 20, b"x").unwrap();
    assert!(is_memfd(&file));
    let mut back = vec![0; bytes.len()];
    file.read(5, &mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn more_than_the_host_has_cannot_be_set_aside() {
    let store = store(None, 0);
    let mut file = Content::new();
    let refused = file.allocate(&store, 0, MAX_SIZE, false).unwrap_err();
    assert_eq!((refused.errno(), file.pages(), file.size()), (Errno::ENOSPC, 0, 0));
}

/// A file in a memfd of 20 pages, 10 more set aside, that the system refuses `seals` from now on; `None` on a kernel
/// that does not let a memfd be sealed unasked (before 6.3).
fn sealed(store: &Store, seals: SealFlags) -> Option<Content> {
    let mut file = Content::new();
    file.write(store, 0, &[1; 20 * 4096]).unwrap();
    file.allocate(store, 20 * PAGE, 10 * PAGE, true).unwrap();
    let Tier::Memfd(memfd) = &file.tier else { panic!("{file:?}") };
    match fcntl_add_seals(memfd.file(), seals) {
        Ok(()) => Some(file),
        Err(e) => {
            eprintln!("skipped: a memfd cannot be sealed here: {e}");
            None
        }
    }
}

#[test]
fn what_the_system_refuses_changes_nothing() {
    let store = store(Some(40), 1);
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
    let Some(mut file) = sealed(&store, seals) else { return };
    let (size, pages) = (file.size(), file.pages());
    let ops = [
        Op::Write(0, 10, 1),
        Op::Write(35 * PAGE, 30 * 4096, 1),
        Op::Truncate(PAGE),
        Op::Truncate(100 * PAGE),
        Op::Allocate(25 * PAGE, 10 * PAGE, false),
        Op::Punch(0, PAGE),
    ];
    for op in ops {
        assert_eq!(apply(&mut file, &store, &op), Err(Errno::EPERM), "{op:?}");
        assert_eq!((file.size(), file.pages(), store.limits.pages_in_use()), (size, pages, pages), "{op:?}");
    }
    file.clear(&store);
    assert_eq!((store.limits.pages_in_use(), store.descriptors_left()), (0, 1));
}

/// A memfd that cannot grow takes what lies within it and refuses the rest: a short write.
#[test]
fn what_a_short_write_did_not_write_is_given_back() {
    let store = store(Some(100), 1);
    let Some(mut file) = sealed(&store, SealFlags::GROW) else { return };
    assert_eq!(file.write(&store, 18 * PAGE, &[2; 40 * 4096]).unwrap(), 2 * 4096);
    assert_eq!((file.size(), file.pages(), store.limits.pages_in_use()), (20 * PAGE, 30, 30));
    file.clear(&store);
}

/// Resident memory of the process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The last file stays, so that the end of the heap does, and only looking for free memory finds any.
#[test]
fn freed_memory_goes_back_to_the_system() {
    const FILES: usize = 50_000;
    let store = store(None, 0);
    let mut files: Vec<_> = (0..FILES).map(|_| Content::new()).collect();
    for file in &mut files {
        file.write(&store, 0, &[1; 2000]).unwrap();
    }
    let full = resident();
    files[..FILES - 1].iter_mut().for_each(|file| file.clear(&store));
    store.heap.trim_if_due();
    let left = full.saturating_sub(resident());
    assert!(left > 60_000, "only {left} KiB went back");
}
