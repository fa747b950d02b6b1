//! System calls that no library wraps as we need them, and the process-wide facts they depend on.
//!
//! The only unsafe code of the project is in here, and of that only [`ioctl`] has any.

pub mod creds;
pub mod ioctl;
mod proc;

pub use proc::{detach_from_mounts, fd_path, open_proc, reopen};
