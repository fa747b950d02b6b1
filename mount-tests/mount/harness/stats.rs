//! `splicefs stats --json`, as the tests ask it.

use std::path::Path;

use serde_json::Value;

/// The counters of a mount at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Stats(Value);

impl Stats {
    pub(crate) fn parse(text: &[u8]) -> Self {
        let value = serde_json::from_slice(text);
        Self(value.unwrap_or_else(|e| panic!("stats are not JSON: {e}: {}", String::from_utf8_lossy(text))))
    }

    /// The counters of the splicefs mount at `point`.
    pub(crate) fn of(point: &Path) -> Self {
        let output =
            super::command().arg("stats").arg(point).arg("--json").output().expect("running splicefs stats");
        assert!(output.status.success(), "splicefs stats: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&output.stdout)
    }

    fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {pointer} in {}", self.0))
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.number("/pid")).expect("a process")
    }

    pub(crate) fn spliced_bytes(&self) -> u64 {
        self.number("/read/spliced_bytes")
    }

    pub(crate) fn zero_bytes(&self) -> u64 {
        self.number("/read/zero_bytes")
    }

    pub(crate) fn copied_bytes(&self) -> u64 {
        self.number("/read/copied_bytes")
    }

    pub(crate) fn prefetched_bytes(&self) -> u64 {
        self.number("/read/prefetched_bytes")
    }

    /// How often an operation was asked for; an operation that stats do not know counts as never.
    pub(crate) fn requests(&self, operation: &str) -> u64 {
        self.0.pointer("/requests").and_then(|map| map.get(operation)).and_then(Value::as_u64).unwrap_or(0)
    }

    /// How many files were opened so.
    pub(crate) fn opens(&self, how: &str) -> u64 {
        self.number(&format!("/opens/{how}"))
    }

    /// What was heard of others' changes, or told to the kernel.
    pub(crate) fn change(&self, what: &str) -> u64 {
        self.number(&format!("/changes/{what}"))
    }

    /// How many files are open.
    pub(crate) fn files(&self) -> u64 {
        self.number("/files")
    }

    pub(crate) fn json(&self) -> &Value {
        &self.0
    }
}
