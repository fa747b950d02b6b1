//! Files in memory: splicefs tmpfs, the kernel's tmpfs, and peers that somebody has mounted, side by side.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::mount::{MsFlags, mount, umount};
use rustix::fs::Advice;

use crate::setup::{Mounted, Outcome, Sample, base};

const RUNS: usize = 9;
/// Small files in a directory, and how often they are made and removed in one run.
const FILES: usize = 100;
const ROUNDS: usize = 10;
/// Length of the large file.
const SIZE: usize = 256 << 20;
const BUFFER: usize = 1 << 20;

/// A directory to measure, by name.
struct Place {
    name: String,
    dir: PathBuf,
}

/// The kernel's tmpfs, for comparison.
struct KernelTmpfs(PathBuf);

impl Drop for KernelTmpfs {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            eprintln!("{} could not be unmounted: {error}", self.0.display());
        }
    }
}

/// Makes and removes small files in `dir`; operations a second of each.
fn small_files(dir: &Path) -> std::io::Result<(f64, f64)> {
    let paths: Vec<_> = (0..FILES).map(|n| dir.join(n.to_string())).collect();
    let (mut creating, mut removing) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for path in &paths {
            OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&[7; 4096])?;
        }
        creating += start.elapsed().as_secs_f64();
        let start = Instant::now();
        for path in &paths {
            fs::remove_file(path)?;
        }
        removing += start.elapsed().as_secs_f64();
    }
    let operations = (FILES * ROUNDS) as f64;
    Ok((operations / creating, operations / removing))
}

/// The same by several threads, each in a directory of its own; their rates added up.
fn small_files_by(threads: usize, dir: &Path) -> Result<(f64, f64), Box<dyn Error>> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let own = dir.join(format!("thread-{n}"));
                scope.spawn(move || {
                    fs::create_dir_all(&own)?;
                    small_files(&own)
                })
            })
            .collect();
        let mut total = (0.0, 0.0);
        for worker in workers {
            let (created, removed) = worker.join().map_err(|_| "a thread panicked")??;
            total = (total.0 + created, total.1 + removed);
        }
        Ok(total)
    })
}

/// Writes a large file and reads it cold; megabytes a second of each.
fn large_file(dir: &Path) -> std::io::Result<(f64, f64)> {
    let path = dir.join("large");
    let mut buffer = vec![7; BUFFER];
    let megabytes = (SIZE >> 20) as f64 * 1.048_576;
    let start = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..SIZE / BUFFER {
        file.write_all(&buffer)?;
    }
    let writing = start.elapsed().as_secs_f64();
    let mut file = File::open(&path)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    let start = Instant::now();
    while file.read(&mut buffer)? > 0 {}
    let reading = start.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok((megabytes / writing, megabytes / reading))
}

/// Measures `what` in every place, interleaved, and prints the medians of both its figures.
fn compare(
    places: &[Place],
    titles: [&str; 2],
    what: impl Fn(&Path) -> Result<(f64, f64), Box<dyn Error>>,
) -> Outcome {
    let mut figures: Vec<[Vec<f64>; 2]> = places.iter().map(|_| Default::default()).collect();
    // The first round warms up.
    for run in 0..=RUNS {
        for (place, [first, second]) in places.iter().zip(&mut figures) {
            let (one, two) = what(&place.dir)?;
            if run > 0 {
                first.push(one);
                second.push(two);
            }
        }
    }
    for (title, which) in titles.into_iter().zip(0..) {
        println!("{title}:");
        for (place, figures) in places.iter().zip(&figures) {
            let sample = Sample::new(figures[which].clone());
            let (middle, low, high) = (sample.median(), sample.smallest(), sample.largest());
            println!("  {:16} {middle:9.0}  ({low:.0} to {high:.0})", place.name);
        }
    }
    Ok(())
}

/// Prints the medians. Peers are the mounted directories that `SPLICEFS_BENCH_PEERS=NAME=DIR,...` names.
pub(crate) fn run() -> Outcome {
    let dir = tempfile::Builder::new().prefix("splicefs-bench-").tempdir_in(base())?;
    let ours = Mounted::tmpfs(dir.path().join("ours"))?;
    let kernel = KernelTmpfs(dir.path().join("kernel"));
    fs::create_dir(&kernel.0)?;
    mount(Some("tmpfs"), &kernel.0, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let mut places = vec![
        Place { name: "splicefs tmpfs".into(), dir: ours.point().to_owned() },
        Place { name: "kernel's tmpfs".into(), dir: kernel.0.clone() },
    ];
    let peers = std::env::var("SPLICEFS_BENCH_PEERS").unwrap_or_default();
    for peer in peers.split(',').filter(|peer| !peer.is_empty()) {
        let (name, dir) = peer.split_once('=').ok_or("SPLICEFS_BENCH_PEERS is NAME=DIR,...")?;
        places.push(Place { name: name.to_owned(), dir: dir.into() });
    }
    println!("tmpfs: medians of {RUNS} interleaved runs (smallest to largest)");
    compare(&places, ["1 MiB writes, MB/s", "1 MiB reads, cold, MB/s"], |dir| Ok(large_file(dir)?))?;
    for (threads, titles) in [
        (1, ["create, write 4 KiB, close, op/s", "unlink, op/s"]),
        (4, ["create, write 4 KiB, close, 4 threads, op/s", "unlink, 4 threads, op/s"]),
    ] {
        compare(&places, titles, |dir| small_files_by(threads, dir))?;
    }
    Ok(())
}
