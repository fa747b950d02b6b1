//! `cargo bench --bench inside`: what a request costs in the daemon, without a kernel to wait for: plans, the tables of
//! nodes and handles, and replies through a pipe.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use splicefs::reply::{Counters, Engine, Outcome, Policy, ZeroSource, max_read_bytes};
use splicefs_core::{FileExtent, HandleTable, Identified, NodeId, NodeTable, ReadPlan, Segment, Via};

const KIB: usize = 1024;
/// Nodes that the kernel knows after a walk of moderate size.
const NODES: u64 = 100_000;

/// A file of the page cache that holds the largest read.
fn source() -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&vec![0x5a; max_read_bytes()])?;
    Ok(file)
}

fn extent(file: &File, offset: usize, len: usize) -> Segment<'_> {
    Segment::File(FileExtent { fd: file.as_fd(), offset: offset as u64, len, via: Via::Splice })
}

/// A plan of so many segments, data and holes by turns.
fn alternating(file: &File, segments: usize) -> ReadPlan<'_> {
    let mut plan = ReadPlan::end_of_file();
    for index in 0..segments {
        plan.push(match index % 2 {
            0 => extent(file, index * 4 * KIB, 4 * KIB),
            _ => Segment::Zeros(4 * KIB),
        });
    }
    plan
}

fn plans(criterion: &mut Criterion) {
    let file = source().expect("a file to read");
    let mut group = criterion.benchmark_group("plan");
    // Four fit without memory of their own.
    for segments in [1, 4, 64] {
        let id = BenchmarkId::new("build", segments);
        group.bench_with_input(id, &segments, |bencher, &segments| {
            bencher.iter(|| black_box(alternating(black_box(&file), segments)).must_copy());
        });
    }
    group.finish();
}

struct Node(NodeId);

impl Identified for Node {
    fn id(&self) -> NodeId {
        self.0
    }
}

fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    let node = |id| Arc::new(Node(NodeId(id)));
    let nodes = NodeTable::<_, ()>::new(&node(NodeId::ROOT.0));
    for id in 2..NODES {
        nodes.remember(&node(id));
    }
    let mut turn = 2;
    let mut next = move || {
        turn = if turn + 1 < NODES { turn + 1 } else { 2 };
        NodeId(turn)
    };
    group.bench_function("node, get", |bencher| bencher.iter(|| nodes.get(black_box(next()))));
    group.bench_function("node, looked up again", |bencher| {
        bencher.iter(|| {
            let node = nodes.get(black_box(next())).expect("a node that is known");
            black_box(nodes.remember(&node));
            nodes.forget(node.0, 1);
        });
    });
    group.bench_function("node, new and forgotten", |bencher| {
        let mut id = NODES;
        bencher.iter(|| {
            id += 1;
            black_box(nodes.remember(&node(id)));
            nodes.forget(NodeId(id), 1);
        });
    });
    let handles = HandleTable::default();
    let open: Vec<_> = (0..1000).map(|value| handles.insert(value)).collect();
    let mut turns = open.iter().cycle();
    group.bench_function("handle, get", |bencher| {
        bencher.iter(|| handles.get(black_box(*turns.next().expect("a cycle has no end"))));
    });
    group.bench_function("handle, opened and closed", |bencher| {
        bencher.iter(|| {
            let handle = handles.insert(0);
            handles.remove(handle)
        });
    });
    group.finish();
}

/// A pipe in place of the device, emptied after each reply without a look at the bytes.
struct Sink {
    read: OwnedFd,
    write: OwnedFd,
    null: OwnedFd,
}

impl Sink {
    fn new() -> rustix::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&write, KIB * KIB)?;
        let null = openat(CWD, "/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { read, write, null })
    }

    fn empty(&self) -> rustix::io::Result<()> {
        loop {
            match splice(&self.read, None, &self.null, None, KIB * KIB, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn engine(splice: bool) -> io::Result<Engine> {
    let policy = Policy { splice, splice_min: 1 };
    Engine::new(policy, Arc::new(ZeroSource::new()?), max_read_bytes(), Arc::new(Counters::default()))
}

fn replies(criterion: &mut Criterion) {
    let file = source().expect("a file to read");
    let sink = Sink::new().expect("a pipe to write to");
    let mut group = criterion.benchmark_group("reply");
    for (way, is_spliced) in [("spliced", true), ("copied", false)] {
        let mut engine = engine(is_spliced).expect("an engine");
        let mut measure = |name: String, plan: &ReadPlan<'_>| {
            group.throughput(Throughput::Bytes(plan.len() as u64));
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let outcome = engine.send(&sink.write, 1, plan);
                    assert_eq!(matches!(outcome, Outcome::Spliced { .. }), is_spliced, "{outcome:?}");
                    sink.empty().expect("emptying the pipe");
                });
            });
        };
        for kib in [4, 32, 128, 512] {
            measure(format!("{way}/{kib} KiB"), &ReadPlan::of(extent(&file, 0, kib * KIB)));
        }
        measure(format!("{way}/the largest"), &ReadPlan::of(extent(&file, 0, max_read_bytes())));
        measure(format!("{way}/128 KiB of a hole"), &ReadPlan::of(Segment::Zeros(128 * KIB)));
        measure(format!("{way}/32 pages, every other a hole"), &alternating(&file, 32));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    plans(&mut criterion);
    tables(&mut criterion);
    replies(&mut criterion);
    criterion.final_summary();
}
