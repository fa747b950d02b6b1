//! A look-up in a file system below that hangs, and a second request somewhere else: neither holds up look-ups.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Bound, Stopped, UNCACHED, begin, soon, until_held};
use crate::harness::{Mount, Need, ready};
use crate::overlay::Layers;

/// What is asked while a look-up hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Second {
    Rename,
    Unlink,
    Mkdir,
    Readdir,
}

/// A directory with so many files.
pub(super) fn plant(dir: &Path, name: &str, files: usize) {
    fs::create_dir(dir.join(name)).expect("mkdir");
    for number in 0..files {
        fs::write(dir.join(name).join(format!("f{number}")), "x").expect("write");
    }
}

/// The file system that is going to hang.
pub(super) fn inner_with(files: usize) -> Mount {
    let builder = Mount::builder().options(UNCACHED).options("allow_other");
    plant(builder.source(), "d", files);
    builder.start()
}

/// While a look-up in `hung` hangs, which `inner` serves, and after the second request, look-ups in `ok` are answered.
fn look_ups_go_on(inner: &Mount, daemon: u32, (hung, ok): (PathBuf, PathBuf), second: Second) {
    let known = |path: &Path| fs::metadata(path).expect("stat").len();
    known(&hung.join("f0"));
    known(&ok.join("f0"));
    let stopped = Stopped::new(inner);
    let first = {
        let path = hung.join("f1");
        begin(move || fs::metadata(path).map(drop))
    };
    until_held(daemon, 1);
    let look_up = |number: u32| {
        let path = ok.join(format!("f{number}"));
        soon("a look-up", move || assert_eq!(fs::metadata(path).expect("stat").len(), 1));
    };
    look_up(2);
    let at = |name: &str| ok.join(name);
    let (from, to, gone, made) = (at("f3"), at("renamed"), at("f4"), at("made"));
    let other = match second {
        Second::Rename => begin(move || fs::rename(from, to)),
        Second::Unlink => begin(move || fs::remove_file(gone)),
        Second::Mkdir => begin(move || fs::create_dir(made)),
        Second::Readdir => {
            let listed = begin(move || fs::read_dir(hung).map(|entries| assert!(entries.count() > 0)));
            until_held(daemon, 2);
            listed
        }
    };
    let hangs = second == Second::Readdir;
    let other = if hangs { Err(other) } else { Ok(soon("the second request", move || other.join())) };
    for number in 5..8 {
        look_up(number);
    }
    drop(stopped);
    let other = other.unwrap_or_else(|other| other.join());
    other.expect("the thread").expect("the second request");
    first.join().expect("the thread").expect("the first look-up");
    look_up(8);
}

fn below_passthrough(second: Second) {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let inner = inner_with(10);
    let builder = Mount::builder().options(UNCACHED);
    plant(builder.source(), "ok", 10);
    let bound = Bound::new(inner.point(), builder.source().join("hung"));
    let mount = builder.start();
    let (hung, ok) = (mount.point().join("hung/d"), mount.point().join("ok"));
    look_ups_go_on(&inner, mount.pid().expect("a daemon"), (hung, ok), second);
    drop(mount);
    drop(bound);
}

fn below_overlay(second: Second) {
    if !ready(&[Need::Fuse, Need::Root, Need::Splicefs]) {
        return;
    }
    let inner = inner_with(10);
    let mut layers = Layers::simple();
    plant(layers.lower(), "ok", 10);
    layers.lowers.push(inner.point().to_owned());
    // The two directories are known, or they would be looked for in the layer that hangs.
    let mount = layers.mount_with("passthrough=off");
    let daemon = mount.stats().expect("stats").pid();
    look_ups_go_on(&inner, daemon, (mount.at("d"), mount.at("ok")), second);
    mount.unmount();
    // What was listed has another time of access.
    layers.unseal();
    drop(layers);
}

#[test]
fn a_rename_beside_a_hanging_look_up_holds_up_no_look_up_of_a_mirror() {
    below_passthrough(Second::Rename);
}

#[test]
fn a_removal_beside_a_hanging_look_up_holds_up_no_look_up_of_a_mirror() {
    below_passthrough(Second::Unlink);
}

#[test]
fn a_new_directory_beside_a_hanging_look_up_holds_up_no_look_up_of_a_mirror() {
    below_passthrough(Second::Mkdir);
}

#[test]
fn a_hanging_listing_beside_a_hanging_look_up_holds_up_no_look_up_of_a_mirror() {
    below_passthrough(Second::Readdir);
}

#[test]
fn a_rename_beside_a_hanging_look_up_holds_up_no_look_up_of_an_overlay() {
    below_overlay(Second::Rename);
}

#[test]
fn a_removal_beside_a_hanging_look_up_holds_up_no_look_up_of_an_overlay() {
    below_overlay(Second::Unlink);
}

#[test]
fn a_new_directory_beside_a_hanging_look_up_holds_up_no_look_up_of_an_overlay() {
    below_overlay(Second::Mkdir);
}

#[test]
fn a_hanging_listing_beside_a_hanging_look_up_holds_up_no_look_up_of_an_overlay() {
    below_overlay(Second::Readdir);
}
