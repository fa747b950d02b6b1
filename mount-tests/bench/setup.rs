//! A source, two mounts of it, and medians.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What a benchmark ends with.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// One mount of the source.
pub(crate) struct Mounted {
    point: PathBuf,
}

impl Mounted {
    fn passthrough(source: &Path, point: PathBuf, options: &str) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_splicefs"));
        command.arg("passthrough").arg(source).arg(&point).args(["-o", options]);
        Self::start(command, point)
    }

    /// An empty file system in memory.
    pub(crate) fn tmpfs(point: PathBuf) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_splicefs"));
        command.arg("tmpfs").arg(&point).args(["-o", "allow_other"]);
        Self::start(command, point)
    }

    /// Makes the mount point. The command exits once the mount serves.
    fn start(mut command: Command, point: PathBuf) -> Result<Self, Box<dyn Error>> {
        fs::create_dir(&point)?;
        let status = command.status()?;
        if !status.success() {
            return Err(format!("{command:?}: {status}").into());
        }
        Ok(Self { point })
    }

    /// The mount point.
    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    /// The file that is read, below this mount.
    pub(crate) fn file(&self) -> PathBuf {
        self.point.join("data")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new(env!("CARGO_BIN_EXE_splicefs")).arg("unmount").arg(&self.point).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.point.display());
        }
    }
}

/// Where benchmarks make their directories.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("SPLICEFS_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A file in the page cache, seen through two mounts.
pub(crate) struct Setup {
    pub(crate) spliced: Mounted,
    pub(crate) copied: Mounted,
    // Dropped after the mounts.
    _dir: TempDir,
}

impl Setup {
    /// A source with one file of `size` bytes, mounted with `on_options` and with splice off.
    pub(crate) fn new(size: usize, on_options: &str) -> Result<Self, Box<dyn Error>> {
        let dir = tempfile::Builder::new().prefix("splicefs-bench-").tempdir_in(base())?;
        let source = dir.path().join("src");
        fs::create_dir(&source)?;
        let mut file = fs::File::create(source.join("data"))?;
        let block: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
        for _ in 0..size >> 20 {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        let spliced = Mounted::passthrough(&source, dir.path().join("on"), on_options)?;
        let copied = Mounted::passthrough(&source, dir.path().join("off"), "splice=off")?;
        Ok(Self { spliced, copied, _dir: dir })
    }
}

impl Mounted {
    /// Processor time the daemon has used so far, in milliseconds (user and system, proc_pid_stat(5)).
    pub(crate) fn cpu_ms(&self) -> Result<f64, Box<dyn Error>> {
        let output = Command::new(env!("CARGO_BIN_EXE_splicefs"))
            .arg("stats")
            .arg(&self.point)
            .arg("--json")
            .output()?;
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", stats["pid"]))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        Ok(ticks as f64 * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// The middle of several measurements, and how far they lie apart.
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    pub(crate) fn smallest(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn largest(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}
