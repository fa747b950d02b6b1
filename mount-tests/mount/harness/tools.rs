//! Small things that several tests do.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Advice;
use tempfile::TempDir;

/// A directory of the test's own that everyone can pass. `SPLICEFS_TESTS_DIR` says where.
pub(crate) fn scratch() -> TempDir {
    let base = std::env::var_os("SPLICEFS_TESTS_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir =
        tempfile::Builder::new().prefix("splicefs-test-").tempdir_in(base).expect("a temporary directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("opening it to all");
    dir
}

pub(crate) fn have_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |dir: PathBuf| dir.join(name).is_file();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(found)
}

/// What a shell command prints on stdout; it must succeed. `$1` is `argument`.
pub(crate) fn shell(script: &str, argument: &Path) -> String {
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(argument).output().expect("running sh");
    assert!(
        output.status.success(),
        "`{script}` on {argument:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Drops the clean cached pages of an open file.
pub(crate) fn drop_file_cache(file: impl AsFd) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("posix_fadvise");
}

/// A part of `buffer` that starts on a page and holds `length` bytes; `buffer` grows to hold it. O_DIRECT needs that.
pub(crate) fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    const PAGE: usize = 4096;
    buffer.resize(length + PAGE, 0);
    let start = buffer.as_ptr().align_offset(PAGE);
    &mut buffer[start..start + length]
}

/// Reads at `offset` until `buffer` is full or the file ends.
pub(crate) fn read_range(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// xorshift: the seed, which is not 0, repeats the numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number under `limit`; 0 where there is none.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
