//! What files cost the daemon, and that few descriptors are enough for many files.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::thread;

use super::observed::Observed;
use crate::harness::{Need, drop_file_cache, fill, first_difference, long_run, ready, until};

const NEEDS: [Need; 4] = [Need::Root, Need::Fuse, Need::Splicefs, Need::Program("prlimit")];
/// Files of one directory.
const PER_DIRECTORY: usize = 1000;

impl Observed {
    fn file(&self, n: usize) -> PathBuf {
        self.point().join((n / PER_DIRECTORY).to_string()).join(n.to_string())
    }

    /// Does `action` with each number of `files`, in two threads.
    fn for_each(files: std::ops::Range<usize>, action: impl Fn(usize) + Sync) {
        thread::scope(|scope| {
            for odd in [0, 1] {
                let (files, action) = (files.clone(), &action);
                scope.spawn(move || files.filter(|n| n % 2 == odd).for_each(action));
            }
        });
    }

    fn make(&self, files: std::ops::Range<usize>, length: usize) {
        for directory in files.clone().step_by(PER_DIRECTORY) {
            let path = self.file(directory);
            fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        }
        Self::for_each(files, |n| fs::write(self.file(n), fill(n as u64, length)).expect("write"));
    }

    fn check(&self, files: std::ops::Range<usize>, length: usize) {
        Self::for_each(files, |n| {
            let mut file = File::open(self.file(n)).expect("open");
            // What the kernel still has of the writes says nothing about the daemon.
            drop_file_cache(&file);
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("reading file {n}: {e}"));
            assert_eq!((bytes.len(), first_difference(&bytes, n as u64)), (length, None), "file {n}");
        });
    }

    fn delete(&self) {
        for entry in fs::read_dir(self.point()).expect("readdir") {
            fs::remove_dir_all(entry.expect("readdir").path()).expect("deleting");
        }
    }
}

#[test]
fn a_small_file_costs_less_than_a_page() {
    const LENGTH: usize = 1 << 10;
    const COST: u64 = 2048;
    if !ready(&NEEDS) {
        return;
    }
    let files = if long_run() { 1_000_000 } else { 20_000 };
    // The hard limit stays.
    let mount = Observed::with_descriptors("1024:", "size=8g,nr_inodes=0");
    // The workers make their buffers when they are first needed.
    mount.make(0..PER_DIRECTORY, LENGTH);
    let before = mount.resident();
    let more = PER_DIRECTORY..PER_DIRECTORY + files;
    mount.make(more.clone(), LENGTH);
    let each = (mount.resident() - before) / files as u64;
    eprintln!("{each} bytes of memory for a file of {LENGTH}");
    assert!(each >= LENGTH as u64, "{each} bytes for a file of {LENGTH}: that was not measured");
    assert!(each < COST, "{each} bytes for a file of {LENGTH}");
    assert_eq!(mount.used(), (PER_DIRECTORY + files) as u64 * 4096);
    assert_eq!(mount.memfds(), 0, "small files need no descriptor");
    mount.check(more.end - PER_DIRECTORY..more.end, LENGTH);
    mount.delete();
    mount.until_empty(before);
}

#[test]
fn more_large_files_than_descriptors_are_all_there() {
    const FILES: usize = 3000;
    const LENGTH: usize = 100 << 10;
    if !ready(&NEEDS) {
        return;
    }
    let mount = Observed::with_descriptors("1024:1024", "size=1g,nr_inodes=0");
    let before = mount.resident();
    mount.make(0..FILES, LENGTH);
    let memfds = mount.memfds();
    assert!((512..1024).contains(&memfds), "{memfds} files have a descriptor");
    let in_heap = ((FILES - memfds) * LENGTH) as u64;
    let grown = mount.resident() - before;
    eprintln!("{memfds} files in memfds; the others, {in_heap} bytes, take {grown} bytes of memory");
    assert!(grown >= in_heap, "{grown} bytes cannot hold {in_heap}");
    assert!(grown < in_heap + in_heap / 4, "{grown} bytes hold {in_heap}");
    mount.check(0..FILES, LENGTH);
    // A reply is counted after it is sent. The kernel may have kept a page or two in spite of the advice.
    let in_memfds = (memfds * LENGTH) as u64;
    let nearly = |counted: u64, all: u64| counted <= all && counted >= all - all / 100;
    until("the files in memfds to have been spliced", || nearly(mount.stats().spliced_bytes(), in_memfds));
    until("the files in the heap to have been copied", || nearly(mount.stats().copied_bytes(), in_heap));
    mount.delete();
    mount.until_empty(before);
    // A descriptor that was given back is there for the next file.
    mount.make(0..1, LENGTH);
    assert_eq!(mount.memfds(), 1);
}
