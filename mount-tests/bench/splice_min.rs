//! The threshold below which a reply is copied: cold reads of each size without read-ahead (POSIX_FADV_RANDOM), so that
//! each read(2) is one request of that size, up to the largest that the mount negotiated. O_DIRECT would not do: it
//! reaches the source, whose pages are then not shared but copied from the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::Advice;

use crate::setup::{Outcome, Sample, Setup};

const SIZE: usize = 64 << 20;
const ROUNDS: usize = 9;
const KIB: usize = 1024;

fn open_random(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
    Ok(file)
}

/// Microseconds a cold read of the buffer's size takes, over `count` of them in a row, none of a page twice.
fn time_reads(file: &File, buffer: &mut [u8], count: usize) -> std::io::Result<f64> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
    let start = Instant::now();
    let mut offset = 0;
    for _ in 0..count {
        file.read_exact_at(buffer, offset as u64)?;
        offset += buffer.len();
    }
    // Counts are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let reads = count as f64;
    Ok(start.elapsed().as_secs_f64() * 1e6 / reads)
}

/// Prints a row for each size.
pub(crate) fn run() -> Outcome {
    let setup = Setup::new(SIZE, "splice=on,splice_min=1")?;
    let (on, off) = (open_random(&setup.spliced.file())?, open_random(&setup.copied.file())?);
    let mut memory = vec![0_u8; 1024 * KIB];
    println!("splice_min: microseconds a cold read, medians of {ROUNDS} interleaved rounds");
    println!("  {:>6}  {:>8}  {:>8}  {:>6}  faster", "KiB", "spliced", "copied", "ratio");
    for size in [4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512, 1020, 1024].map(|kib| kib * KIB) {
        let buffer = &mut memory[..size];
        let count = (SIZE / size).min(1000);
        for file in [&on, &off] {
            time_reads(file, buffer, count)?;
        }
        let (mut spliced, mut copied) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            spliced.push(time_reads(&on, buffer, count)?);
            copied.push(time_reads(&off, buffer, count)?);
        }
        let (spliced, copied) = (Sample::new(spliced).median(), Sample::new(copied).median());
        let ratio = copied / spliced;
        let faster = match ratio {
            r if r > 1.03 => "spliced",
            r if r < 0.97 => "copied",
            _ => "neither",
        };
        println!("  {:>6}  {spliced:8.1}  {copied:8.1}  {ratio:6.2}  {faster}", size / KIB);
    }
    Ok(())
}
