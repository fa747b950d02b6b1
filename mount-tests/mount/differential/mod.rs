//! What the differential tests share: random operations, performed on two file systems at once, and what is seen of
//! them afterwards. `tmpfs` and `overlay` use it.

pub(crate) mod compare;
pub(crate) mod generate;
mod holes;
pub(crate) mod known;
mod mapping;
pub(crate) mod op;
pub(crate) mod run;
pub(crate) mod runner;
pub(crate) mod tree;
pub(crate) mod watch;
