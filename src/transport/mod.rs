//! The FUSE protocol over a `/dev/fuse` descriptor: reading requests, decoding them, and sending what the vfs answers.
//!
//! fuser does the INIT handshake on the same descriptor (see the session); from the first request on it is ours.

mod answer;
mod crew;
mod dispatch;
mod port;
mod readdir;
mod request;
mod root;
mod waiting;
mod wire;
mod worker;

pub use crew::{Crew, Foreman};
pub use port::Port;
pub use request::Opcode;
pub use root::ROOT_NAME;
pub use worker::{Stock, Worker};
