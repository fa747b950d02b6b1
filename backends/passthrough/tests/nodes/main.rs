//! The mirrored directory in process, without FUSE.

mod common;
mod conformance;
mod identity;
