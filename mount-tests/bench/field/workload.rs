//! The workloads: what is done with a system, and what of it is a figure.

use std::path::PathBuf;

use crate::data::{EACH, HUGE_EACH, Names, Part, Sizes};
use crate::results::Unit;
use crate::system::Kind;
use crate::task::{Act, Many, Task, Visit};

/// What is there when a workload starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    /// Whatever the workloads before it have left in the caches.
    Warm,
    /// A new mount: nothing of it is cached.
    Cold,
    /// As `Cold`, and the upper layer of an overlay is empty.
    Empty,
}

/// A system as a workload sees it.
pub(crate) struct Place<'s> {
    /// The data.
    pub(crate) names: Names,
    /// An empty directory of this repetition's own.
    pub(crate) fresh: PathBuf,
    /// Whether the kernel keeps a cache before a daemon, which a cold read must not find. Elsewhere the pages that would be
    /// dropped are the source's.
    pub(crate) is_fuse: bool,
    pub(crate) sizes: &'s Sizes,
}

/// One step of a workload.
pub(crate) enum Step {
    /// It prepares.
    Do(Task),
    /// It is a figure.
    Time(&'static str, Unit, Task),
    /// The daemon's memory is a figure.
    Rss(&'static str),
    /// The daemon's memory here is what [`Step::Growth`] counts from.
    Mark,
    /// What the daemon's memory has grown by, for each of so many.
    Growth(&'static str, usize),
    /// The kernel is made to forget all names that are not in use (as root).
    Forget,
}

use Step::{Do, Time};
use Unit::{Bytes, Operations};

/// Something to measure.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether it is only done when asked for by name.
    pub(crate) long: bool,
    pub(crate) start: Start,
    pub(crate) parts: &'static [Part],
    on: &'static [Kind],
    steps: fn(&Place<'_>) -> Vec<Step>,
}

impl Workload {
    /// Whether it says anything about a system of this kind.
    pub(crate) fn is_for(&self, kind: Kind) -> bool {
        self.on.contains(&kind)
    }

    pub(crate) fn steps(&self, place: &Place<'_>) -> Vec<Step> {
        (self.steps)(place)
    }
}

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

const ANY: &[Kind] = &[Kind::Native, Kind::Passthrough, Kind::Overlay, Kind::Tmpfs];
/// Those that have the data when they are mounted: a file system in memory is never cold.
const MOUNTED: &[Kind] = &[Kind::Native, Kind::Passthrough, Kind::Overlay];

const fn workload(
    name: &'static str,
    about: &'static str,
    start: Start,
    parts: &'static [Part],
    on: &'static [Kind],
    steps: fn(&Place<'_>) -> Vec<Step>,
) -> Workload {
    Workload { name, about, long: false, start, parts, on, steps }
}

const LARGE: &[Part] = &[Part::Large];
const SMALL: &[Part] = &[Part::Small];

/// Every workload, in the order in which they are measured.
#[rustfmt::skip]
pub(crate) static ALL: [Workload; 30] = [
    workload("read-cold", "sequential reads of 1 MiB, not cached", Start::Warm, LARGE, ANY, read_cold),
    workload("read-warm", "sequential reads of 1 MiB, cached", Start::Warm, LARGE, ANY, read_warm),
    workload("read-random-cold", "reads of 4 KiB at random places, not cached", Start::Warm, LARGE, ANY, random_cold),
    workload("read-random-warm", "reads of 4 KiB at random places, cached", Start::Warm, LARGE, ANY, random_warm),
    workload("read-mapped-cold", "a load from each page of a mapping, not cached", Start::Warm, LARGE, ANY, mapped_cold),
    workload("read-mapped-warm", "a load from each page of a mapping, cached", Start::Warm, LARGE, ANY, mapped_warm),
    workload("read-direct", "sequential reads of 1 MiB with O_DIRECT", Start::Warm, LARGE, ANY, direct),
    workload("read-sparse", "sequential reads of 1 MiB of a file that is a hole, not cached", Start::Warm, LARGE, ANY, sparse),
    workload("read-shared", "four readers, each of a file of its own, not cached", Start::Warm, LARGE, ANY, shared),
    Workload { long: true, ..workload("read-sizes", "single cold reads of 4 KiB to 1 MiB, without read-ahead: from where on splicing pays", Start::Warm, LARGE, ANY, sizes) },
    workload("write", "writes of 1 MiB to a new file, and over it", Start::Warm, &[], ANY, write),
    workload("write-4k", "sequential writes of 4 KiB to a new file", Start::Warm, &[], ANY, write_4k),
    workload("write-random", "writes of 4 KiB at random places", Start::Warm, &[], ANY, write_random),
    workload("append", "appends of 100 bytes", Start::Warm, &[], ANY, append),
    workload("small-cold", "open, read and close of each small file, on a new mount", Start::Cold, SMALL, MOUNTED, small_cold),
    workload("small-warm", "open, read and close of each small file, again", Start::Warm, SMALL, ANY, small_warm),
    workload("walk-cold", "names and attributes of a tree, on a new mount", Start::Cold, SMALL, MOUNTED, walk_cold),
    workload("walk-warm", "names and attributes of a tree, again", Start::Warm, SMALL, ANY, walk_warm),
    workload("list-cold", "names of a directory of 20,000, on a new mount", Start::Cold, SMALL, MOUNTED, list_cold),
    workload("list-warm", "names of a directory of 20,000, again", Start::Warm, SMALL, ANY, list_warm),
    workload("missing", "names that do not exist, asked for once, and again", Start::Cold, SMALL, MOUNTED, missing),
    workload("files-1", "create, write 4 KiB, close; stat; rename; unlink", Start::Warm, &[], ANY, |place| files(place, 1)),
    workload("files-4", "the same by 4 threads", Start::Warm, &[], ANY, |place| files(place, 4)),
    workload("unpack", "a tree made as tar does it, and removed", Start::Warm, &[], ANY, unpack),
    workload("remove-lower", "removal of a tree of the lower layer", Start::Empty, SMALL, &[Kind::Overlay], remove_lower),
    workload("statfs", "a request without content and back", Start::Warm, SMALL, ANY, statfs),
    workload("memory-walk", "the daemon's memory after the mount, and after a walk", Start::Cold, SMALL, MOUNTED, memory_walk),
    workload("memory-idle", "the memory of a daemon that has nothing to serve", Start::Cold, &[], &[Kind::Tmpfs], |_| vec![Step::Rss(IDLE)]),
    workload("memory-files", "the daemon's memory for each file it keeps", Start::Cold, &[], &[Kind::Tmpfs], memory_files),
    Workload { long: true, ..workload("memory-many", "the daemon's memory over a walk of 300,000 names, and when they are forgotten", Start::Cold, &[Part::Huge], MOUNTED, memory_many) },
];

fn read(files: Vec<PathBuf>, passes: usize, drop: bool) -> Task {
    Task::Read { files, buffer: MIB, passes, drop, direct: false }
}

/// What brings the large file into the kernel's cache.
fn cache(place: &Place<'_>) -> Step {
    Do(read(vec![place.names.large()], 1, false))
}

fn read_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("read 1 MiB, cold", Bytes, read(vec![place.names.large()], 1, place.is_fuse))]
}

fn read_warm(place: &Place<'_>) -> Vec<Step> {
    vec![cache(place), Time("read 1 MiB, warm", Bytes, read(vec![place.names.large()], 3, false))]
}

fn random(place: &Place<'_>, count: usize, drop: bool) -> Task {
    let count = count / place.sizes.less;
    Task::ReadAt { file: place.names.large(), size: PAGE, count, random: true, drop }
}

fn random_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("read 4 KiB at random, cold", Operations, random(place, 8000, place.is_fuse))]
}

fn random_warm(place: &Place<'_>) -> Vec<Step> {
    vec![cache(place), Time("read 4 KiB at random, warm", Operations, random(place, 100_000, false))]
}

fn mapped_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("mmap, cold", Bytes, Task::Map { file: place.names.large(), drop: place.is_fuse })]
}

fn mapped_warm(place: &Place<'_>) -> Vec<Step> {
    vec![cache(place), Time("mmap, warm", Bytes, Task::Map { file: place.names.large(), drop: false })]
}

fn direct(place: &Place<'_>) -> Vec<Step> {
    let files = vec![place.names.large()];
    vec![Time(
        "read 1 MiB, O_DIRECT",
        Bytes,
        Task::Read { files, buffer: MIB, passes: 1, drop: false, direct: true },
    )]
}

fn sparse(place: &Place<'_>) -> Vec<Step> {
    vec![Time("read 1 MiB of a hole, cold", Bytes, read(vec![place.names.sparse()], 1, place.is_fuse))]
}

fn shared(place: &Place<'_>) -> Vec<Step> {
    vec![Time("read 1 MiB, 4 readers, cold", Bytes, read(place.names.shared(), 1, place.is_fuse))]
}

fn sizes(place: &Place<'_>) -> Vec<Step> {
    const KIB: [(&str, usize); 12] = [
        ("single read of 4 KiB", 4),
        ("single read of 8 KiB", 8),
        ("single read of 12 KiB", 12),
        ("single read of 16 KiB", 16),
        ("single read of 24 KiB", 24),
        ("single read of 32 KiB", 32),
        ("single read of 48 KiB", 48),
        ("single read of 64 KiB", 64),
        ("single read of 128 KiB", 128),
        ("single read of 256 KiB", 256),
        ("single read of 512 KiB", 512),
        ("single read of 1 MiB", 1024),
    ];
    let whole = usize::try_from(place.sizes.large).unwrap_or(usize::MAX);
    let one = |(name, kib): (&'static str, usize)| {
        let size = kib << 10;
        // No page is read twice.
        let count = (whole / size).min(1000);
        let task =
            Task::ReadAt { file: place.names.large(), size, count, random: false, drop: place.is_fuse };
        Time(name, Bytes, task)
    };
    KIB.map(one).into()
}

fn write_task(place: &Place<'_>, part: u64, buffer: usize, new: bool) -> Task {
    Task::Write { file: place.fresh.join("file"), length: place.sizes.large / part, buffer, new }
}

fn write(place: &Place<'_>) -> Vec<Step> {
    vec![
        Time("write 1 MiB, new file", Bytes, write_task(place, 1, MIB, true)),
        Time("write 1 MiB, over it", Bytes, write_task(place, 1, MIB, false)),
    ]
}

fn write_4k(place: &Place<'_>) -> Vec<Step> {
    vec![Time("write 4 KiB, new file", Bytes, write_task(place, 8, PAGE, true))]
}

fn write_random(place: &Place<'_>) -> Vec<Step> {
    let count = 10_000 / place.sizes.less;
    vec![
        Do(write_task(place, 2, MIB, true)),
        Time(
            "write 4 KiB at random",
            Operations,
            Task::WriteAt { file: place.fresh.join("file"), size: PAGE, count },
        ),
    ]
}

fn append(place: &Place<'_>) -> Vec<Step> {
    let count = 10_000 / place.sizes.less;
    vec![Time(
        "append 100 bytes",
        Operations,
        Task::Append { file: place.fresh.join("file"), size: 100, count },
    )]
}

fn walk(dir: PathBuf, visit: Visit) -> Task {
    Task::Walk { dir, visit }
}

fn small_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("open, read, close small files, cold", Operations, walk(place.names.tree(), Visit::Read))]
}

fn small_warm(place: &Place<'_>) -> Vec<Step> {
    let task = walk(place.names.tree(), Visit::Read);
    vec![Do(task.clone()), Time("open, read, close small files, warm", Operations, task)]
}

fn walk_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("walk and stat, cold", Operations, walk(place.names.tree(), Visit::Stat))]
}

fn walk_warm(place: &Place<'_>) -> Vec<Step> {
    let task = walk(place.names.tree(), Visit::Stat);
    vec![Do(task.clone()), Time("walk and stat, warm", Operations, task)]
}

fn list_cold(place: &Place<'_>) -> Vec<Step> {
    vec![Time("readdir of 20,000, cold", Operations, walk(place.names.flat(), Visit::Name))]
}

fn list_warm(place: &Place<'_>) -> Vec<Step> {
    let task = walk(place.names.flat(), Visit::Name);
    vec![Do(task.clone()), Time("readdir of 20,000, warm", Operations, task)]
}

fn missing(place: &Place<'_>) -> Vec<Step> {
    let task = Task::Missing { dir: place.names.tree(), count: 10_000 / place.sizes.less };
    vec![
        Time("missing name, first time", Operations, task.clone()),
        Time("missing name, again", Operations, task),
    ]
}

fn many(place: &Place<'_>, dirs: usize, size: usize, threads: usize) -> Many {
    // Each thread has a directory at least.
    let dirs = (dirs / place.sizes.less).max(threads);
    Many { dir: place.fresh.clone(), dirs, each: EACH, size, threads }
}

fn files(place: &Place<'_>, threads: usize) -> Vec<Step> {
    let files = many(place, 40, PAGE, threads);
    let names = match threads {
        1 => ["create, write 4 KiB, close", "stat of new files", "rename", "unlink"],
        _ => [
            "create, write 4 KiB, close, 4 threads",
            "stat of new files, 4 threads",
            "rename, 4 threads",
            "unlink, 4 threads",
        ],
    };
    let acts = [Act::Create, Act::Stat, Act::Rename, Act::Unlink];
    let time = |(name, act)| Time(name, Operations, Task::Files { files: files.clone(), act });
    names.into_iter().zip(acts).map(time).collect()
}

fn unpack(place: &Place<'_>) -> Vec<Step> {
    let (dir, dirs) = (place.fresh.join("tree"), (20 / place.sizes.less).max(1));
    vec![
        Time("untar", Operations, Task::Unpack { dir: dir.clone(), dirs, each: EACH }),
        Time("rm -rf", Operations, walk(dir, Visit::Remove)),
    ]
}

fn remove_lower(place: &Place<'_>) -> Vec<Step> {
    vec![Time("rm -rf of a lower tree", Operations, walk(place.names.tree(), Visit::Remove))]
}

fn statfs(place: &Place<'_>) -> Vec<Step> {
    let task = Task::StatFs { path: place.names.tree(), count: 10_000 / place.sizes.less };
    vec![Time("statfs", Operations, task)]
}

const IDLE: &str = "daemon's memory, idle";

fn memory_walk(place: &Place<'_>) -> Vec<Step> {
    vec![
        Step::Rss(IDLE),
        Do(walk(place.names.tree(), Visit::Stat)),
        Do(walk(place.names.flat(), Visit::Stat)),
        Step::Rss("daemon's memory after a walk of 30,000"),
    ]
}

fn memory_files(place: &Place<'_>) -> Vec<Step> {
    let files = many(place, 200, 0, 1);
    let count = files.dirs * files.each;
    vec![
        Step::Mark,
        Do(Task::Files { files, act: Act::Create }),
        Step::Growth("daemon's memory for an empty file", count),
    ]
}

fn memory_many(place: &Place<'_>) -> Vec<Step> {
    let count = place.sizes.huge_dirs * HUGE_EACH;
    vec![
        Step::Mark,
        Time("walk and stat of 300,000, cold", Operations, walk(place.names.huge(), Visit::Stat)),
        Step::Growth("daemon's memory for each of 300,000", count),
        Step::Forget,
        Step::Growth("the same, when the kernel has forgotten them", count),
    ]
}
