//! Reading and writing.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

use rustix::fs::Advice;

use super::timed;
use crate::Result;
use crate::mapped::Mapping;
use crate::task::Done;

const PAGE: usize = 4096;

/// A buffer that starts on a page, as O_DIRECT needs it, and whose pages are there already.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    fn new(length: usize) -> Self {
        let memory = vec![0x5a; length + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// A seed of this process's own, so that no two processes read the same pages.
fn random() -> Random {
    let pid = u64::from(std::process::id());
    Random(0x9e37_79b9_7f4a_7c15 ^ (pid << 20))
}

fn forget_pages(file: impl AsFd) -> Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

fn read_whole(mut file: &File, buffer: &mut [u8]) -> std::io::Result<u64> {
    let mut total = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => total += n as u64,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sequential reads, each file by a thread.
pub(super) fn read(
    files: &[PathBuf],
    buffer: usize,
    passes: usize,
    drop: bool,
    direct: bool,
) -> Result<Done> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let mut opened = Vec::new();
    for path in files {
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if drop {
            forget_pages(&file)?;
        }
        opened.push(file);
    }
    let begin = Barrier::new(files.len());
    let passed = std::thread::scope(|scope| {
        let begin = &begin;
        let reader = |file: File| scope.spawn(move || read_passes(&file, buffer, passes, begin));
        let readers: Vec<_> = opened.into_iter().map(reader).collect();
        let ended =
            readers.into_iter().map(|reader| Ok(reader.join().map_err(|_| "a reader panicked")??));
        ended.collect::<Result<Vec<Passed>>>()
    })?;
    // By the clocks of the readers: whoever started them may come to run when they are done.
    let start = passed.iter().map(|reader| reader.start).min().ok_or("no file to read")?;
    let end = passed.iter().map(|reader| reader.end).max().ok_or("no file to read")?;
    let amount = passed.iter().map(|reader| reader.amount).sum();
    Ok(Done { seconds: (end - start).as_secs_f64(), amount })
}

/// What one reader has done.
struct Passed {
    start: Instant,
    end: Instant,
    amount: u64,
}

/// Waits for the others before it begins.
fn read_passes(mut file: &File, buffer: usize, passes: usize, begin: &Barrier) -> std::io::Result<Passed> {
    let mut memory = Buffer::new(buffer);
    begin.wait();
    let start = Instant::now();
    let mut amount = 0;
    for _ in 0..passes {
        file.rewind()?;
        amount += read_whole(file, memory.bytes())?;
    }
    Ok(Passed { start, end: Instant::now(), amount })
}

/// Reads of `size` bytes.
pub(super) fn read_at(path: &Path, size: usize, count: usize, is_random: bool, drop: bool) -> Result<Done> {
    let file = File::open(path)?;
    let places = file.metadata()?.len() / size as u64;
    if drop {
        forget_pages(&file)?;
    }
    if !is_random {
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
    }
    let (mut memory, mut random) = (Buffer::new(size), random());
    timed(|| {
        for index in 0..count as u64 {
            let place = if is_random { random.below(places) } else { index % places };
            file.read_exact_at(memory.bytes(), place * size as u64)?;
        }
        Ok(if is_random { count as u64 } else { (count * size) as u64 })
    })
}

/// Loads from every page of a mapping.
pub(super) fn map(path: &Path, drop: bool) -> Result<Done> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    if drop {
        forget_pages(&file)?;
    }
    timed(|| {
        let mapping = Mapping::new(&file, length)?;
        let mut bytes = [0; 8];
        for offset in (0..length - bytes.len()).step_by(PAGE) {
            mapping.copy(offset, &mut bytes);
        }
        Ok(length as u64)
    })
}

/// Sequential writes; closing counts, for there errors and buffered data come out.
pub(super) fn write(path: &Path, length: u64, buffer: usize, new: bool) -> Result<Done> {
    let mut memory = Buffer::new(buffer);
    timed(|| {
        let mut file = OpenOptions::new().write(true).create_new(new).open(path)?;
        let mut written = 0;
        while written < length {
            file.write_all(memory.bytes())?;
            written += buffer as u64;
        }
        Ok(written)
    })
}

/// Writes of `size` bytes at random places.
pub(super) fn write_at(path: &Path, size: usize, count: usize) -> Result<Done> {
    let file = OpenOptions::new().write(true).open(path)?;
    let places = file.metadata()?.len() / size as u64;
    let (mut memory, mut random) = (Buffer::new(size), random());
    timed(|| {
        for _ in 0..count {
            file.write_all_at(memory.bytes(), random.below(places) * size as u64)?;
        }
        Ok(count as u64)
    })
}

/// Writes at the end.
pub(super) fn append(path: &Path, size: usize, count: usize) -> Result<Done> {
    let mut file = OpenOptions::new().append(true).create_new(true).open(path)?;
    let mut memory = Buffer::new(size);
    timed(|| {
        for _ in 0..count {
            file.write_all(memory.bytes())?;
        }
        Ok(count as u64)
    })
}
