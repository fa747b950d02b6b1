//! splicefs: a FUSE daemon whose reads reach the kernel by splice(2).
//!
//! A request goes from the [`transport`], which knows the protocol, to the [`vfs`], which knows nodes and handles, to a
//! backend, which knows where bytes are; what a read's plan says is moved by [`reply`].

mod aligned;
pub mod cli;
pub mod daemon;
pub mod failure;
mod idle;
pub mod logging;
pub mod mount;
pub mod options;
pub mod reply;
pub mod session;
pub mod signals;
pub mod transport;
pub mod vfs;
