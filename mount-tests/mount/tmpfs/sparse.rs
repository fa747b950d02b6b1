//! Holes cost nothing: reading them takes neither the daemon's memory nor the mount's room, and copies nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::observed::Observed;
use crate::harness::{Need, drop_file_cache, long_run, ready};
use crate::mapped::Mapping;

const PIECE: usize = 1 << 20;
const TERABYTE: u64 = 1 << 40;
const SAMPLES: u64 = 256;
/// Of each sample.
const SAMPLE: usize = 128 << 10;
/// What the daemon's memory may differ by, in bytes.
const NOTHING: u64 = 1 << 20;

fn hole(mount: &Observed, name: &str, length: u64) -> File {
    let path = mount.point().join(name);
    File::create_new(&path).and_then(|file| file.set_len(length)).expect("a sparse file");
    File::open(path).expect("open")
}

/// Runs `action`, which reads at least `least` bytes, all in holes.
fn costs_nothing(mount: &Observed, what: &str, least: u64, action: impl FnOnce()) {
    let (resident, stats) = (mount.resident(), mount.stats());
    action();
    let after = mount.stats();
    let grown = mount.resident().abs_diff(resident);
    assert!(grown <= NOTHING, "{what}: the daemon's memory differs by {grown} bytes");
    assert_eq!(mount.used(), 0, "{what}: a hole was filled");
    assert_eq!(after.spliced_bytes(), stats.spliced_bytes(), "{what}: spliced");
    assert_eq!(after.copied_bytes(), stats.copied_bytes(), "{what}: copied");
    let zeros = after.zero_bytes() - stats.zero_bytes();
    assert!(zeros >= least, "{what}: {zeros} zeros were answered, not {least}");
}

fn read_through(file: &File, length: u64) {
    let (zeros, mut buffer) = (vec![0; PIECE], vec![1; PIECE]);
    for offset in (0..length).step_by(PIECE) {
        file.read_exact_at(&mut buffer, offset).expect("read");
        // Slices are compared by memcmp.
        assert!(buffer == zeros, "a hole has bytes at {offset}");
        if offset % (64 << 20) == 0 {
            drop_file_cache(file);
        }
        buffer[0] = 1;
    }
    assert_eq!(file.read_at(&mut buffer, length).expect("read"), 0, "the end");
    drop_file_cache(file);
}

/// Spread from the beginning to the end.
fn samples() -> impl Iterator<Item = u64> {
    let last = TERABYTE - SAMPLE as u64;
    (0..SAMPLES).map(move |n| last / (SAMPLES - 1) * n / 4096 * 4096)
}

fn send_samples(mount: &Observed, file: &File) {
    let out = mount.point().parent().expect("a directory").join("sent");
    for offset in samples() {
        let sink = File::options().create(true).truncate(true).write(true).open(&out).expect("open");
        let mut place = offset;
        let mut left = SAMPLE;
        while left > 0 {
            let sent = rustix::fs::sendfile(&sink, file, Some(&mut place), left).expect("sendfile");
            assert_ne!(sent, 0, "the file ends");
            left -= sent;
        }
        assert!(fs::read(&out).expect("read").iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_hole_is_read_for_nothing() {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        return;
    }
    let mount = Observed::mount("size=64m");
    // The workers make their buffers when they are first needed.
    read_through(&hole(&mount, "warm", 256 << 20), 256 << 20);

    let length = if long_run() { 4 << 30 } else { 1 << 30 };
    let file = hole(&mount, "hole", length);
    costs_nothing(&mount, "reading to the end", length, || read_through(&file, length));

    let file = hole(&mount, "terabyte", TERABYTE);
    let total = SAMPLES * SAMPLE as u64;
    costs_nothing(&mount, "read", total, || {
        let mut buffer = vec![1; SAMPLE];
        for offset in samples() {
            buffer[0] = 1;
            file.read_exact_at(&mut buffer, offset).expect("read");
            assert!(buffer.iter().all(|&byte| byte == 0), "a hole has bytes at {offset}");
        }
    });
    drop_file_cache(&file);
    costs_nothing(&mount, "sendfile", total, || send_samples(&mount, &file));
    drop_file_cache(&file);
    let part = 8 << 20;
    costs_nothing(&mount, "mmap", part as u64, || {
        let mapping = Mapping::new(&file, part).expect("mmap");
        let mut bytes = vec![1; part];
        mapping.copy(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
    });
}
