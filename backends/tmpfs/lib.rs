//! A file system in memory that behaves as the kernel's tmpfs (tmpfs(5), mm/shmem.c) and never populates a hole.
mod options;

pub use options::{Atime, Options};
