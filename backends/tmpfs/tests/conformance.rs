//! The suite that every backend passes.

use std::num::NonZeroU64;

use splicefs_core::testkit::conformance;
use splicefs_tmpfs::{Atime, Options, Tmpfs};

fn options() -> Options {
    let (pages, inodes) = (NonZeroU64::new(100_000), NonZeroU64::new(1000));
    Options { pages, inodes, mode: 0o1777, uid: 0, gid: 0, inode32: false, atime: Atime::Relative }
}

#[test]
fn behaves_like_the_reference_model() {
    conformance(400, || (Tmpfs::new(&options()).unwrap(), ()));
}
