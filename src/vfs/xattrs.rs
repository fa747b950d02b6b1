//! Extended attributes, and the one that splicefs itself answers: the statistics of the mount.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use splicefs_core::{Backend, Caller, Errno, NodeId, Result, XattrFlags};

use super::Vfs;
use crate::reply::{Counters, ReadStats};
use crate::transport::Opcode;

/// The attribute of the root that holds the statistics. No file system has attributes of this name: it has none of the
/// prefixes of xattr(7).
pub const STATS_XATTR: &CStr = c"splicefs.stats";

/// Whether and why reads are spliced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpliceState {
    /// What was asked for: `auto`, `on` or `off`.
    pub mode: String,
    /// Whether reads are spliced.
    pub serving: bool,
    /// Why it is so.
    pub why: String,
}

/// What a mount counts.
#[derive(Debug)]
pub struct Stats {
    splice: SpliceState,
    reads: Arc<Counters>,
    requests: Vec<AtomicU64>,
}

/// The statistics at one moment: what `splicefs stats --json` prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// Version of the daemon.
    pub version: String,
    /// Whether reads are spliced.
    pub splice: SpliceState,
    /// What became of the bytes read.
    pub read: ReadStats,
    /// Number of requests, by operation.
    pub requests: BTreeMap<String, u64>,
    /// Nodes the kernel knows.
    pub nodes: usize,
    /// Open files.
    pub files: usize,
}

impl Stats {
    /// Statistics that count from nothing.
    pub fn new(splice: SpliceState, reads: Arc<Counters>) -> Self {
        Self { splice, reads, requests: Opcode::ALL.iter().map(|_| AtomicU64::new(0)).collect() }
    }
}

impl<B: Backend> Vfs<B> {
    /// Counts one request.
    pub fn count(&self, opcode: Opcode) {
        self.stats.requests[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The statistics now.
    pub fn report(&self) -> Report {
        let stats = &self.stats;
        let counts = Opcode::ALL.iter().zip(&stats.requests);
        Report {
            backend: B::NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            splice: stats.splice.clone(),
            read: stats.reads.snapshot(),
            requests: counts.map(|(op, n)| (op.key().to_owned(), n.load(Ordering::Relaxed))).collect(),
            nodes: self.nodes.len(),
            files: self.files.len(),
        }
    }

    /// The statistics, if that is what is asked for; to anyone but root and the mounting user they do not exist.
    fn stats_value(&self, caller: &Caller, id: NodeId, name: &CStr) -> Result<Option<Vec<u8>>> {
        if id != NodeId::ROOT || name != STATS_XATTR {
            return Ok(None);
        }
        if caller.uid != 0 && caller.uid != self.access.owner {
            return Err(Errno::ENODATA.into());
        }
        Ok(Some(serde_json::to_vec(&self.report()).map_err(|_| Errno::EIO)?))
    }

    /// The value of an attribute, of at most `limit` bytes.
    pub fn getxattr(&self, caller: &Caller, id: NodeId, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        match self.stats_value(caller, id, name)? {
            Some(value) if value.len() > limit => Err(Errno::ERANGE.into()),
            Some(value) => Ok(value),
            None => self.backend.getxattr(&self.node(id)?.node, name, limit),
        }
    }

    /// The names of the attributes.
    pub fn listxattr(&self, id: NodeId, limit: usize) -> Result<Vec<u8>> {
        self.backend.listxattr(&self.node(id)?.node, limit)
    }

    /// Sets an attribute.
    pub fn setxattr(
        &self,
        caller: &Caller,
        id: NodeId,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.backend.setxattr(caller, &self.node(id)?.node, name, value, flags)
    }

    /// Removes an attribute.
    pub fn removexattr(&self, id: NodeId, name: &CStr) -> Result<()> {
        self.backend.removexattr(&self.node(id)?.node, name)
    }
}
