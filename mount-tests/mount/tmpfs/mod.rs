//! The tmpfs backend against the kernel's tmpfs.
//!
//! - `SPLICEFS_TESTS_OPS`: how many operations the differential tests perform (20,000; 200,000 in the long form);
//! - `SPLICEFS_TESTS_SEED`: the first sequence. A failure prints the seed that repeats it.

mod differential;
mod killed;
mod limits;
mod memory;
mod mounts;
mod observed;
mod sparse;

use crate::differential::generate::Room;
use crate::differential::runner::operations;
use crate::harness::{Mount, Need, ready};
use differential::compare;
use mounts::{KernelTmpfs, Mounted, Mounts};
pub(crate) use observed::Observed;

const AMPLE: &str = "size=1g,nr_inodes=10000";
/// 256 blocks.
const TIGHT: &str = "size=1m,nr_inodes=40";

/// The control: where this fails, the test is wrong about the kernel.
fn kernel_with_itself(options: &str, room: Room) {
    if ready(&[Need::Root]) {
        compare(room, operations() / 4, &|| Mounts {
            mounted: Mounted::Kernel(KernelTmpfs::mount(options)),
            native: KernelTmpfs::mount(options),
        });
    }
}

/// The same operations through the passthrough backend: what differs there is FUSE's own, or passthrough's.
fn passthrough_of_the_kernels(options: &str, room: Room) {
    if ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        compare(room, operations() / 4, &|| {
            let source = KernelTmpfs::mount(options);
            let mount = Mount::builder().mirroring(source.point()).options("allow_other").start();
            Mounts { mounted: Mounted::Passthrough(mount, source), native: KernelTmpfs::mount(options) }
        });
    }
}

fn tmpfs(options: &str, room: Room) {
    if ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        compare(room, operations(), &|| Mounts {
            mounted: Mounted::Tmpfs(Observed::mount(&format!("allow_other,mode=755,{options}"))),
            native: KernelTmpfs::mount(options),
        });
    }
}

#[test]
fn the_kernel_agrees_with_itself() {
    kernel_with_itself(AMPLE, Room::Ample);
}

#[test]
fn the_kernel_agrees_with_itself_at_its_limits() {
    kernel_with_itself(TIGHT, Room::Tight);
}

#[test]
fn passthrough_agrees_with_the_kernels_tmpfs() {
    passthrough_of_the_kernels(AMPLE, Room::Ample);
}

#[test]
fn passthrough_agrees_with_the_kernels_tmpfs_at_its_limits() {
    passthrough_of_the_kernels(TIGHT, Room::Tight);
}

#[test]
fn tmpfs_agrees_with_the_kernels() {
    tmpfs(AMPLE, Room::Ample);
}

#[test]
fn tmpfs_agrees_with_the_kernels_at_its_limits() {
    tmpfs(TIGHT, Room::Tight);
}
