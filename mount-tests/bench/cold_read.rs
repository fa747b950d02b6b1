//! Cold sequential reads: the source is in the page cache, the mount's own cache is not.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use rustix::fs::Advice;

use crate::setup::{Outcome, Sample, Setup};

const SIZE: usize = 256 << 20;
const BUFFER: usize = 1 << 20;
const RUNS: usize = 9;

/// Megabytes a second of one cold read of the whole file.
fn read_cold(path: &Path) -> std::io::Result<f64> {
    let mut file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut buffer = vec![0; BUFFER];
    let start = Instant::now();
    let mut total = 0;
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        total += got;
    }
    assert_eq!(total, SIZE, "the file was not read whole");
    Ok((SIZE >> 20) as f64 * 1.048_576 / start.elapsed().as_secs_f64())
}

/// Prints the medians and the ratio.
pub(crate) fn run() -> Outcome {
    let setup = Setup::new(SIZE, "splice=on")?;
    let (on, off) = (setup.spliced.file(), setup.copied.file());
    // One unmeasured round each: the source comes into the cache, the daemons get their threads and pipes.
    for path in [&on, &off] {
        read_cold(path)?;
    }
    let before = (setup.spliced.cpu_ms()?, setup.copied.cpu_ms()?);
    let (mut spliced, mut copied, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (with, without) = (read_cold(&on)?, read_cold(&off)?);
        spliced.push(with);
        copied.push(without);
        ratios.push(with / without);
    }
    let (spliced, copied, ratios) = (Sample::new(spliced), Sample::new(copied), Sample::new(ratios));
    println!("cold_read: 256 MiB, 1 MiB buffers, medians of {RUNS} interleaved runs (smallest to largest)");
    for (name, sample) in [("splice=on ", &spliced), ("splice=off", &copied)] {
        let (middle, low, high) = (sample.median(), sample.smallest(), sample.largest());
        println!("  {name}  {middle:7.0} MB/s  ({low:.0} to {high:.0})");
    }
    let ratio = spliced.median() / copied.median();
    println!(
        "  ratio of the medians {ratio:.2}; of each pair {:.2} to {:.2}",
        ratios.smallest(),
        ratios.largest()
    );
    let per_gib = |ms: f64| ms * 1024.0 / (RUNS * (SIZE >> 20)) as f64;
    let on = per_gib(setup.spliced.cpu_ms()? - before.0);
    let off = per_gib(setup.copied.cpu_ms()? - before.1);
    println!("  daemon's processor time, ms a GiB: spliced {on:.0}, copied {off:.0}, ratio {:.2}", on / off);
    Ok(())
}
