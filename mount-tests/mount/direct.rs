//! What fsx does, with O_DIRECT, which it cannot: random aligned operations on two descriptors, direct and buffered,
//! compared with a model after each.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags};

use crate::harness::{Mount, Need, aligned, fill, long_run, ready};
use crate::posix::script::open;

const BLOCK: u64 = 4096;
const LARGEST: u64 = 1 << 20;

struct Exerciser {
    direct: File,
    buffered: File,
    model: Vec<u8>,
    random: u64,
    memory: Vec<u8>,
}

fn to_size(value: u64) -> usize {
    usize::try_from(value).expect("within a megabyte")
}

impl Exerciser {
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit.max(1)
    }

    /// An offset and a length within the largest size, both aligned.
    fn span(&mut self) -> (u64, u64) {
        let offset = self.below(LARGEST / BLOCK) * BLOCK;
        let length = (1 + self.below(32)) * BLOCK;
        (offset, length.min(LARGEST - offset))
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = to_size(offset) + bytes.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[to_size(offset)..end].copy_from_slice(bytes);
    }

    fn expect(&self, offset: u64, length: u64) -> &[u8] {
        let start = to_size(offset).min(self.model.len());
        &self.model[start..(start + to_size(length)).min(self.model.len())]
    }

    fn step(&mut self, number: u64) {
        let (offset, length) = self.span();
        let operation = self.below(10);
        match operation {
            0..=2 => {
                let data = fill(number, to_size(length));
                let mut memory = std::mem::take(&mut self.memory);
                let buffer = aligned(&mut memory, data.len());
                buffer.copy_from_slice(&data);
                self.direct.write_all_at(buffer, offset).expect("direct write");
                self.memory = memory;
                self.put(offset, &data);
            }
            3 => {
                let offset = offset + self.below(BLOCK);
                let length = length.min(LARGEST - offset);
                let data = fill(number, to_size(length));
                self.buffered.write_all_at(&data, offset).expect("buffered write");
                self.put(offset, &data);
            }
            4..=6 => self.read_direct(number, offset, length),
            7 => {
                let mut buffer = vec![0; to_size(length)];
                let got =
                    crate::harness::read_range(&self.buffered, &mut buffer, offset).expect("buffered read");
                assert!(
                    buffer[..got] == *self.expect(offset, length),
                    "operation {number}: buffered read at {offset}"
                );
            }
            8 => {
                let size = self.below(LARGEST);
                self.direct.set_len(size).expect("truncate");
                self.model.resize(to_size(size), 0);
            }
            _ => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.direct, punch, offset, length).expect("punch");
                let end = to_size(offset + length).min(self.model.len());
                if let Some(hole) = self.model.get_mut(to_size(offset)..end) {
                    hole.fill(0);
                }
            }
        }
        let size = self.buffered.metadata().expect("fstat").len();
        assert_eq!(size, self.model.len() as u64, "size after operation {number} ({operation})");
    }

    fn read_direct(&mut self, number: u64, offset: u64, length: u64) {
        let mut memory = std::mem::take(&mut self.memory);
        let buffer = aligned(&mut memory, to_size(length));
        let mut done = 0;
        // A direct read may be short where a buffered one is not.
        while done < buffer.len() {
            let got = self.direct.read_at(&mut buffer[done..], offset + done as u64).expect("direct read");
            done += got;
            if got == 0 || !got.is_multiple_of(to_size(BLOCK)) {
                break;
            }
        }
        let expected = self.expect(offset, length);
        assert!(
            buffer[..done] == *expected,
            "operation {number}: direct read of {length} at {offset} gave {done}"
        );
        self.memory = memory;
    }
}

fn exercise(options: &str, seed: u64) {
    if !ready(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = Mount::builder().options(options).start();
    let path = mount.point().join("file");
    let flags = OFlags::RDWR | OFlags::CREATE;
    let buffered = open(&path, flags, 0o644).expect("create");
    let direct = open(&path, flags | OFlags::DIRECT, 0o644).expect("open with O_DIRECT");
    let mut exerciser = Exerciser { direct, buffered, model: Vec::new(), random: seed, memory: Vec::new() };
    for number in 0..if long_run() { 200_000 } else { 20_000 } {
        exerciser.step(number);
    }
    let whole = std::fs::read(mount.source().join("file")).expect("read");
    assert!(whole == exerciser.model, "the source differs from the model at the end (seed {seed})");
}

#[test]
fn random_operations_with_splice() {
    exercise("passthrough=off,splice=on,splice_min=1", 42);
}

#[test]
fn random_operations_by_the_kernel_itself() {
    exercise("passthrough=on", 44);
}

#[test]
fn random_operations_without_splice() {
    exercise("passthrough=off,splice=off", 43);
}
