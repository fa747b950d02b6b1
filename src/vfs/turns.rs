//! Which requests are being answered: what one of them tells the kernel may have been true only when it was looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// The turn of one thread: odd while it answers a request.
#[derive(Debug, Default)]
pub struct Turn(AtomicU64);

impl Turn {
    /// A request is answered from now on: nothing was looked at for it yet.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Its reply has been sent.
    pub(crate) fn end(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The turns of all threads.
#[derive(Debug, Default)]
pub(super) struct Turns(RwLock<Vec<Arc<Turn>>>);

/// The requests that were being answered at one moment.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Vec<(Arc<Turn>, u64)>);

impl Turns {
    /// One more thread answers requests.
    pub(super) fn join(&self) -> Arc<Turn> {
        let turn = Arc::new(Turn::default());
        self.0.write().push(turn.clone());
        turn
    }

    /// How many threads have joined.
    pub(super) fn count(&self) -> usize {
        self.0.read().len()
    }

    /// What is being answered now.
    pub(super) fn under_way(&self) -> UnderWay {
        let turns = self.0.read();
        let now = turns.iter().map(|turn| (turn.clone(), turn.0.load(Ordering::SeqCst)));
        UnderWay(now.filter(|(_, turn)| turn % 2 == 1).collect())
    }
}

impl UnderWay {
    /// Whether nothing was.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of `other` as well. What has been answered need not be remembered.
    pub(super) fn join(&mut self, other: Self) {
        self.0.extend(other.0);
        self.0.retain(|(turn, then)| turn.0.load(Ordering::SeqCst) == *then);
    }

    /// Whether all of it has been answered.
    pub(super) fn is_over(&self) -> bool {
        self.0.iter().all(|(turn, then)| turn.0.load(Ordering::SeqCst) != *then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_over_when_it_is_answered_whatever_came_later() {
        let turns = Turns::default();
        let (one, other) = (turns.join(), turns.join());
        assert!(turns.under_way().is_over());
        one.begin();
        let first = turns.under_way();
        assert!(!first.is_over());
        other.begin();
        one.end();
        assert!(first.is_over() && !turns.under_way().is_over());
        one.begin();
        assert!(first.is_over());
    }
}
