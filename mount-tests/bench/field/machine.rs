//! Where and when it was measured.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::Result;

/// The machine, as a reader of the results wants to know it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    pub(crate) model: String,
    pub(crate) memory_mib: u64,
}

impl Machine {
    pub(crate) fn this() -> Result<Self> {
        let date = Command::new("date").arg("+%F").output()?;
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let memory = rustix::system::sysinfo();
        Ok(Self {
            date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism()?.get(),
            model: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            memory_mib: (memory.totalram * u64::from(memory.mem_unit)) >> 20,
        })
    }
}
