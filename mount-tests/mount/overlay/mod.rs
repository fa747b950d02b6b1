//! The overlay backend against the kernel's overlayfs.
//!
//! - `SPLICEFS_TESTS_OPS`, `SPLICEFS_TESTS_SEED`: as for tmpfs;
//! - `SPLICEFS_TESTS_NATIVE=1`: the control. Every mount is the kernel's overlayfs with the same options.

mod build;
mod coherence;
mod depth;
mod differential;
mod flags;
mod foreign;
mod idle;
mod killed;
mod layers;
mod many;
mod mounted;
mod noacl;
mod peers;
mod prefetch;
mod recorded;
mod scenarios;
mod seal;
mod shifted;
mod user;
mod versions;

use crate::differential::runner::operations;
use crate::harness::{Need, ready};
use differential::Comparison;
pub(crate) use layers::Layers;
pub(crate) use mounted::{Engine, Overlay};

pub(crate) use layers::Ground;
use mounted::IN_MEMORY;

/// Directories are renamed, hard links broken by copy-up.
const PLAIN: &str = "redirect_dir=on,index=off,metacopy=off";
/// Hard links are kept.
const INDEXED: &str = "redirect_dir=on,index=on,metacopy=off";
/// Attributes are copied up without the data.
const METACOPY: &str = "redirect_dir=on,index=off,metacopy=on";
/// The marks that a user may set.
const USER: &str = "userxattr,index=off";

/// The control: where this fails, the test is wrong about the kernel.
fn kernel_with_itself(options: &'static str, ground: Ground) {
    if ready(&[Need::Root]) {
        Comparison { options, own: "", ground, with: Engine::Kernel }.run(operations() / 4);
    }
}

fn agrees(options: &'static str, own: &'static str, ground: Ground, share: usize) {
    if ready(&[Need::Root, Need::Fuse, Need::Splicefs]) {
        Comparison { options, own, ground, with: Engine::Splicefs }.run(operations() / share);
    }
}

#[test]
fn the_kernel_agrees_with_itself() {
    kernel_with_itself(PLAIN, Ground::Tmpfs);
}

#[test]
fn the_kernel_agrees_with_itself_on_ext4() {
    kernel_with_itself(PLAIN, Ground::Ext4(256));
}

#[test]
fn the_kernel_agrees_with_itself_with_an_index() {
    kernel_with_itself(INDEXED, Ground::Tmpfs);
}

#[test]
fn the_kernel_agrees_with_itself_with_metacopy() {
    kernel_with_itself(METACOPY, Ground::Tmpfs);
}

#[test]
fn the_kernel_agrees_with_itself_with_marks_of_users() {
    kernel_with_itself(USER, Ground::Tmpfs);
}

#[test]
fn overlay_agrees_with_the_kernels() {
    agrees(PLAIN, "open=handle", Ground::Tmpfs, 1);
}

#[test]
fn overlay_agrees_with_the_kernels_on_ext4() {
    agrees(PLAIN, "open=handle", Ground::Ext4(256), 4);
}

#[test]
fn overlay_agrees_with_the_kernels_with_an_index() {
    agrees(INDEXED, "open=handle", Ground::Tmpfs, 2);
}

#[test]
fn overlay_agrees_with_the_kernels_with_metacopy() {
    agrees(METACOPY, "open=handle", Ground::Tmpfs, 2);
}

#[test]
fn overlay_in_memory_agrees_with_the_kernels() {
    agrees(PLAIN, IN_MEMORY, Ground::Tmpfs, 2);
}

#[test]
fn overlay_in_memory_agrees_with_the_kernels_with_an_index() {
    agrees(INDEXED, IN_MEMORY, Ground::Tmpfs, 4);
}

#[test]
fn overlay_in_memory_agrees_with_the_kernels_with_metacopy() {
    agrees(METACOPY, IN_MEMORY, Ground::Tmpfs, 4);
}

#[test]
fn overlay_agrees_with_the_kernels_with_marks_of_users() {
    agrees(USER, "redirect_dir=off,open=handle", Ground::Tmpfs, 2);
}

#[test]
fn overlay_agrees_with_the_kernels_without_opening() {
    agrees(INDEXED, "open=zero", Ground::Tmpfs, 2);
}

#[test]
fn overlay_agrees_with_the_kernels_without_opening_when_written_back_later() {
    agrees(INDEXED, "open=zero,writeback=on", Ground::Tmpfs, 2);
}

/// The kernel keeps what is written, and its times.
#[test]
fn overlay_agrees_with_the_kernels_when_written_back_later() {
    agrees(INDEXED, "writeback=on", Ground::Tmpfs, 2);
}
