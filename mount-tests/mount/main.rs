//! Tests on real mounts. They need /dev/fuse and, most of them, root: `mount-tests/run.sh` provides both.
//!
//! Environment:
//! - `SPLICEFS_TESTS_REQUIRE=1` (or `CI=true`): a missing privilege or device is a failure, not a skip;
//! - `SPLICEFS_TESTS_DIR`: where sources and mount points are created (default: the temporary directory);
//! - `SPLICEFS_TESTS_NATIVE=1`: the control. Every mount is a bind mount of the source, or the kernel's overlayfs in place
//!   of ours, so that a test which fails there is wrong about Linux and not about splicefs;
//! - `SPLICEFS_TESTS_BINARY=FILE`: the program to test, if not the one that was built with the tests;
//! - `SPLICEFS_TESTS_LONG=1`: the long forms (1 GiB, 300,000 files, minutes of storm, 200,000 operations).

mod backed;
mod cache;
mod cli;
mod creds;
mod differential;
mod direct;
mod hanging;
mod harness;
mod late;
mod mapped;
mod overlay;
mod posix;
mod reads;
mod regressions;
mod requests;
mod rights;
mod root;
mod special;
mod storm;
mod tmpfs;
mod unopened;
mod user;
mod writeback;
