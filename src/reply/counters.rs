//! What became of the bytes, counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use splicefs_core::CopyReason;

use super::Outcome;

/// The outcomes of all reads of a mount.
#[derive(Debug, Default)]
pub struct Counters {
    spliced_bytes: AtomicU64,
    zero_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    prefetched_bytes: AtomicU64,
    copies: [AtomicU64; CopyReason::ALL.len()],
    failed: AtomicU64,
    gone: AtomicU64,
}

/// The counters at one moment, as `stats` shows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadStats {
    /// Bytes of files that reached the kernel by splice(2).
    pub spliced_bytes: u64,
    /// Bytes of holes, sent as zero pages or as zeroed memory; no file was read for them.
    pub zero_bytes: u64,
    /// Bytes that were read into the daemon's memory and written from there.
    pub copied_bytes: u64,
    /// Bytes of small files that the kernel got with the reply to an open; they are in no other number.
    #[serde(default)]
    pub prefetched_bytes: u64,
    /// Number of replies copied, by reason.
    pub copies: BTreeMap<String, u64>,
    /// Replies that told of an error.
    pub failed: u64,
    /// Replies the kernel no longer waited for.
    pub gone: u64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Spliced { data, zeros } => {
                add(&self.spliced_bytes, data);
                add(&self.zero_bytes, zeros);
            }
            Outcome::Copied { data, zeros, reason } => {
                add(&self.copied_bytes, data);
                add(&self.zero_bytes, zeros);
                if let Some(i) = CopyReason::ALL.iter().position(|r| *r == reason) {
                    add(&self.copies[i], 1);
                }
            }
            Outcome::EndOfFile => {}
            Outcome::Failed(_) => add(&self.failed, 1),
            Outcome::Gone => add(&self.gone, 1),
        }
    }

    pub(super) fn prefetched(&self, bytes: usize) {
        add(&self.prefetched_bytes, bytes);
    }

    /// The counters now.
    pub fn snapshot(&self) -> ReadStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let copies = CopyReason::ALL.iter().zip(&self.copies);
        ReadStats {
            spliced_bytes: get(&self.spliced_bytes),
            zero_bytes: get(&self.zero_bytes),
            copied_bytes: get(&self.copied_bytes),
            prefetched_bytes: get(&self.prefetched_bytes),
            copies: copies.map(|(reason, n)| (reason.key().to_owned(), get(n))).collect(),
            failed: get(&self.failed),
            gone: get(&self.gone),
        }
    }
}
