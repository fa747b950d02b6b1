//! Mirrored directories as layers of an overlay, in process.

mod common;
mod conformance;
mod handles;
mod mounts;
mod overlap;
mod sealed;
mod upper;
mod whiteouts;
