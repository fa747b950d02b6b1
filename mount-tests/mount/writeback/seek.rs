//! SEEK_DATA and SEEK_HOLE in files of which the kernel has what we have not seen.

use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, SeekFrom as To, seek};
use rustix::io::Errno;

use super::{can_run, create, stats};
use crate::harness::{Watchdog, fill};
use crate::overlay::Layers;
use crate::posix::script::open;

#[test]
fn data_that_is_not_written_back_yet_is_no_hole() {
    if !can_run() {
        return;
    }
    for own in ["writeback=on", "writeback=on,open=zero"] {
        let layers = Layers::simple();
        let mount = layers.mount_with(own);
        let sparse = create(&layers.upper().join("file"));
        sparse.write_all_at(b"data", 1 << 20).expect("write");
        let file = open(&mount.at("file"), OFlags::RDWR, 0).expect("open");
        file.write_all_at(&fill(0, 4096), 512 << 10).expect("write into the hole");
        file.write_all_at(&fill(0, 4096), 2 << 20).expect("write beyond the end");
        let places = [
            To::Data(0),
            To::Hole(512 << 10),
            To::Data(600 << 10),
            To::Data((1 << 20) + 4096),
            To::Hole(2 << 20),
        ];
        let expected = [512 << 10, 516 << 10, 1 << 20, 2 << 20, (2 << 20) + 4096];
        assert_eq!(places.map(|place| seek(&file, place).expect("seek")), expected, "{own}");
        assert_eq!(seek(&file, To::Data((2 << 20) + 4096)), Err(Errno::NXIO));
        // A negative offset is beyond every end.
        assert_eq!(seek(&file, To::Data(u64::MAX)), Err(Errno::NXIO), "{own}");
        // What has been written since as well.
        file.write_all_at(&fill(0, 4096), 256 << 10).expect("write into the hole");
        assert_eq!(seek(&file, To::Data(0)), Ok(256 << 10), "{own}");
        assert!(stats(&mount).requests("lseek") > 6, "the kernel asks each time");
    }
}

/// Each waits for the kernel to write back, which takes threads that are left to answer it.
#[test]
fn many_look_for_holes_in_what_is_being_written() {
    const FILES: u64 = 40;
    if !can_run() {
        return;
    }
    for own in ["writeback=on,threads=1", "writeback=on,threads=3,open=zero", "writeback=on,open=zero"] {
        let layers = Layers::simple();
        let mount = layers.mount_with(own);
        let _watchdog = Watchdog::new("looking for holes", Duration::from_secs(60));
        thread::scope(|scope| {
            for n in 0..FILES {
                let path = mount.at(n.to_string());
                scope.spawn(move || {
                    let file = open(&path, OFlags::CREATE | OFlags::RDWR, 0o644).expect("create");
                    for place in (1..10).rev() {
                        file.write_all_at(&fill(n, 4096), place << 18).expect("write");
                        let data = seek(&file, To::Data(0)).expect("SEEK_DATA");
                        assert!(data == place << 18 || data == 0, "data is said to be at {data}");
                        assert!(seek(&file, To::Hole(place << 18)).expect("SEEK_HOLE") > place << 18);
                    }
                });
            }
        });
    }
}
