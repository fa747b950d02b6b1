//! splicefs
fn main() {}
