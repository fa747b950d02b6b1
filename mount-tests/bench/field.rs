//! `cargo bench --bench field -- --help`: splicefs beside the kernel's file systems and its peers.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    splicefs_field::main(Path::new(env!("CARGO_BIN_EXE_splicefs")))
}
