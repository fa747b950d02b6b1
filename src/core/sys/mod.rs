//! System calls that no library wraps as we need them, and the process-wide facts they depend on.
//!
//! The only unsafe code of the project is in here, and of that only [`handle`], [`ioctl`], [`memory`] and [`mount`] have
//! any.

pub mod creds;
pub mod handle;
pub mod ioctl;
pub mod memory;
pub mod mount;
mod proc;

pub use proc::{
    Activity, Doing, activity, descriptor_share, detach_from_mounts, fd_path, is_thread, open_proc, reopen,
};
