//! Changes by others that race looks through the mount: when they stop, nothing old is left.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{mount, shows_the_source, try_walk, walk};
use crate::harness::{Random, Watchdog, long_run, native_control};

/// One change at random; that it may fail, since another came before, is part of it.
fn change(random: &mut Random, source: &Path) {
    let mut path =
        |kind: &str, count| source.join(format!("d{}/{kind}{}", random.below(5), random.below(count)));
    let (one, other, dir) = (path("f", 10), path("f", 10), path("sub", 2));
    let text = "x".repeat(usize::try_from(random.below(40)).unwrap_or(0));
    let done = match random.below(9) {
        0..=2 => fs::write(&one, text),
        3 => fs::rename(&one, &other),
        4 => fs::remove_file(&one),
        5 => fs::hard_link(&one, &other),
        6 => fs::create_dir_all(dir.join("deep")).and_then(|()| fs::write(dir.join("deep/file"), text)),
        7 => fs::rename(&dir, source.join(format!("d{}/sub{}", random.below(5), random.below(2)))),
        _ => fs::remove_dir_all(&dir),
    };
    drop(done);
}

fn storm(options: &str, seed: u64) {
    let Some(mount) = mount(options) else { return };
    let length = Duration::from_secs(if long_run() { 60 } else { 3 });
    let _watchdog = Watchdog::new("a storm of changes", length + Duration::from_secs(60));
    let (begin, over) = (Instant::now(), AtomicBool::new(native_control()));
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (mount, over) = (&mount, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Names come and go: what a walk meets does not matter, what it leaves in the kernel does.
                    drop(try_walk(mount.point()));
                    drop(fs::metadata(mount.point().join(format!("d{number}/sub0/deep/file"))));
                }
            });
        }
        let mut random = Random(seed);
        while begin.elapsed() < length {
            // Bursts and pauses: a change that nothing follows is the one that must not be missed.
            for _ in 0..1 + random.below(8) {
                change(&mut random, mount.source());
            }
            std::thread::sleep(Duration::from_micros(random.below(2000)));
            if random.below(20) == 0 {
                calm(&mount, seed, begin);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    calm(&mount, seed, begin);
}

/// Soon after the last change the mount shows the source.
fn calm(mount: &crate::harness::Mount, seed: u64, begin: Instant) {
    let end = Instant::now() + Duration::from_secs(2);
    while !shows_the_source(mount) {
        if Instant::now() > end {
            let shown = try_walk(mount.point());
            panic!(
                "seed {seed}, after {:?}: the mount shows\n{shown:#?}\nand the source holds\n{:#?}",
                begin.elapsed(),
                walk(mount.source())
            );
        }
    }
}

#[test]
fn after_a_storm_of_changes_nothing_old_is_shown() {
    storm("cache=notify,passthrough=off", 0x5eed);
}

#[test]
fn after_a_storm_of_changes_nothing_old_is_shown_with_one_thread() {
    storm("cache=notify,passthrough=off,threads=1", 0xfeed);
}

#[test]
fn after_a_storm_of_changes_nothing_old_is_shown_by_the_kernel_itself() {
    storm("cache=notify", 0xbeef);
}

/// The replies to a look at a large directory are milliseconds old when they are sent. The kernel was told of what changed meanwhile
/// when it knew nothing of it yet.
#[test]
fn what_changes_while_a_reply_is_on_its_way_is_seen() {
    const FILES: u64 = 2000;
    let Some(mount) = mount("cache=notify,passthrough=off") else { return };
    let mut random = Random(0xf00d);
    for round in 0..if long_run() { 300 } else { 40 } {
        let (shown, real) =
            (mount.point().join(format!("big{round}")), mount.source().join(format!("big{round}")));
        fs::create_dir(&real).expect("mkdir");
        (0..FILES).for_each(|number| fs::write(real.join(format!("f{number}")), "").expect("write"));
        let delay = Duration::from_micros(random.below(6000));
        let changed: Vec<_> = (0..FILES).step_by(50).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for entry in fs::read_dir(&shown).expect("readdir") {
                    // Some are gone already.
                    drop(fs::metadata(entry.expect("readdir").path()));
                }
            });
            std::thread::sleep(delay);
            for number in &changed {
                fs::remove_file(real.join(format!("f{number}"))).expect("unlink");
                fs::write(real.join(format!("f{}", number + 1)), "x").expect("write");
            }
        });
        // By name: a listing would be looked up anew.
        let length = |number: u64| {
            fs::metadata(shown.join(format!("f{number}"))).map_or(None, |meta| Some(meta.len()))
        };
        let is_shown =
            || changed.iter().all(|number| (length(*number), length(number + 1)) == (None, Some(1)));
        let end = Instant::now() + Duration::from_secs(2);
        while !is_shown() {
            assert!(Instant::now() < end, "round {round}, changes after {delay:?}: something old is shown");
        }
    }
}
