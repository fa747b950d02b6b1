//! Small files of lower layers reach the page cache with the reply to their open, and no write is undone by that.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use super::layers::Layers;
use super::mounted::Overlay;
use crate::harness::{Need, Stats, Watchdog, drop_file_cache, fill, ready};
use crate::posix::script::open;

/// Up to here by default.
const MOST: usize = 32 << 10;

fn can_run() -> bool {
    ready(&[Need::Root, Need::Fuse, Need::Splicefs])
}

/// The first `len` bytes of what every file here holds.
fn contents(len: usize) -> Vec<u8> {
    fill(0, len)
}

fn stats(mount: &Overlay) -> Stats {
    mount.stats().expect("stats")
}

/// Runs `what`, and says how many READs it took and how many bytes came without.
fn costs(mount: &Overlay, what: impl FnOnce()) -> (u64, u64) {
    let before = stats(mount);
    what();
    let after = stats(mount);
    (after.requests("read") - before.requests("read"), after.prefetched_bytes() - before.prefetched_bytes())
}

#[test]
fn a_small_lower_file_is_read_without_being_asked_for() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    let sizes = [0, 1, 4095, 4096, 4097, 20_000, MOST, MOST + 1, 100_000];
    for size in sizes {
        fs::write(layers.lower().join(size.to_string()), contents(size)).expect("write");
    }
    let sparse = File::create(layers.lower().join("sparse")).expect("create");
    sparse.set_len(MOST as u64).expect("ftruncate");
    sparse.write_all_at(b"data", 9000).expect("write");
    for own in ["", "passthrough=off,writeback=off", "passthrough=off,writeback=on"] {
        let mount = layers.mount_with(own);
        for size in sizes {
            let read =
                || assert!(fs::read(mount.at(size.to_string())).expect("read") == contents(size), "{size}");
            let (asked, given) = costs(&mount, read);
            let expected = if size > MOST { 0 } else { size as u64 };
            assert_eq!((given, asked > 0), (expected, size > MOST), "{size} bytes, `{own}`");
            assert_eq!(costs(&mount, read), (0, 0), "{size} bytes again, `{own}`");
        }
        let read = || {
            let mut expected = vec![0; MOST];
            expected[9000..9004].copy_from_slice(b"data");
            assert!(fs::read(mount.at("sparse")).expect("read") == expected);
        };
        assert_eq!(costs(&mount, read), (0, MOST as u64), "a hole, `{own}`");
    }
}

#[test]
fn what_the_kernel_has_dropped_is_asked_for() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    fs::write(layers.lower().join("file"), contents(5000)).expect("write");
    let mount = layers.mount();
    let read = || assert!(fs::read(mount.at("file")).expect("read") == contents(5000));
    assert_eq!(costs(&mount, read), (0, 5000));
    drop_file_cache(File::open(mount.at("file")).expect("open"));
    assert_eq!(costs(&mount, read), (1, 0));
}

#[test]
fn nothing_is_given_of_other_files_or_where_it_is_not_wanted() {
    if !can_run() {
        return;
    }
    let layers = Layers::simple();
    for (name, path) in [("lower", layers.lower()), ("direct", layers.lower()), ("upper", layers.upper())] {
        fs::write(path.join(name), contents(4096)).expect("write");
    }
    let read = |path: &Path| assert!(fs::read(path).expect("read") == contents(4096));
    {
        let mount = layers.mount_with("prefetch=0");
        assert_eq!(costs(&mount, || read(&mount.at("lower"))), (1, 0), "prefetch=0");
    }
    let mount = layers.mount_with("passthrough=off");
    assert_eq!(costs(&mount, || read(&mount.at("upper"))), (1, 0), "an upper file");
    let direct = || drop(open(&mount.at("direct"), OFlags::RDONLY | OFlags::DIRECT, 0).expect("open"));
    assert_eq!(costs(&mount, direct), (0, 0), "past the page cache");
    let written = || {
        let file = OpenOptions::new().read(true).write(true).open(mount.at("lower")).expect("open");
        file.write_all_at(b"new", 0).expect("write");
    };
    assert_eq!(costs(&mount, written).1, 0, "opened for writing");
}

/// Readers open files while others write and truncate them: what has been written stays.
fn races(own: &str) {
    const FILES: usize = 400;
    const SIZE: usize = 8192;
    let _watchdog = Watchdog::new("opens that race with writes", Duration::from_secs(60));
    let layers = Layers::simple();
    for number in 0..FILES {
        fs::write(layers.lower().join(number.to_string()), contents(SIZE)).expect("write");
    }
    let mount = layers.mount_with(own);
    let paths: Vec<_> = (0..FILES).map(|number| mount.at(number.to_string())).collect();
    let start = Barrier::new(4);
    let each = |act: &dyn Fn(&Path, usize)| {
        for (number, path) in paths.iter().enumerate() {
            start.wait();
            act(path, number);
        }
    };
    let read = |path: &Path, _| {
        let mut bytes = Vec::new();
        File::open(path).expect("open").read_to_end(&mut bytes).expect("read");
    };
    let write = |path: &Path, number| {
        if number % 2 == 0 {
            let file = OpenOptions::new().write(true).open(path).expect("open");
            file.write_all_at(&[b'W'; SIZE], 0).expect("write");
        } else {
            nix::unistd::truncate(path, 100).expect("truncate");
        }
    };
    thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(|| each(&read))));
        each(&write);
    });
    for (number, path) in paths.iter().enumerate() {
        let expected = if number % 2 == 0 { vec![b'W'; SIZE] } else { contents(100) };
        let found = fs::read(path).expect("read");
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert!(
            found == expected,
            "file {number} is not what was written (`{own}`): {} bytes, the first that differs is {differs:?}; {:?} and {:?} long",
            found.len(),
            fs::metadata(path).map(|meta| meta.len()),
            fs::metadata(layers.upper().join(number.to_string())).map(|meta| meta.len()),
        );
    }
    assert!(stats(&mount).prefetched_bytes() > 0, "nothing was given (`{own}`)");
}

#[test]
fn no_write_is_undone() {
    if !can_run() {
        return;
    }
    races("passthrough=off,writeback=off");
    races("passthrough=off,writeback=on");
    races("passthrough=on");
}

/// Every thread that serves has an open to answer, and every file several who read it: nobody waits for ever.
#[test]
fn many_who_open_the_same_files_do_not_wait_for_each_other() {
    const FILES: usize = 60;
    if !can_run() {
        return;
    }
    let _watchdog = Watchdog::new("opens of the same files", Duration::from_secs(60));
    let layers = Layers::simple();
    for number in 0..FILES {
        fs::write(layers.lower().join(number.to_string()), contents(MOST)).expect("write");
    }
    let mount = layers.mount_with("passthrough=off,threads=4");
    let start = Barrier::new(24);
    thread::scope(|scope| {
        for first in 0..24 {
            let (mount, start) = (&mount, &start);
            scope.spawn(move || {
                start.wait();
                for number in 0..FILES {
                    let path = mount.at(((number + first / 3) % FILES).to_string());
                    assert!(fs::read(path).expect("read") == contents(MOST));
                }
            });
        }
    });
}
