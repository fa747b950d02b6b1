//! System calls that no library wraps as we need them, and the process-wide facts they depend on.
//!
//! The only unsafe code of the project is in here, and of that only [`ioctl`] and [`memory`] have any.

pub mod creds;
pub mod ioctl;
pub mod memory;
mod proc;

pub use proc::{Activity, activity, detach_from_mounts, fd_path, open_proc, reopen};
