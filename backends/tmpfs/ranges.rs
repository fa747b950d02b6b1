//! Sets of page numbers.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of page numbers, kept as runs: its size in memory and the cost of its operations follow the number of runs
/// (of those met, and the logarithm of all), not of pages.
///
/// Invariant: no run is empty and no two touch; `len` is the sum of their lengths.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet {
    /// First page of a run to the page after its last.
    runs: BTreeMap<u64, u64>,
    len: u64,
}

impl RangeSet {
    /// Number of pages in the set.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no page in the set.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The runs that meet `within`, cut to it, in ascending order.
    pub(crate) fn runs(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let reaching_in = self.runs.range(..within.start).next_back().filter(|(_, end)| **end > within.start);
        let first = reaching_in.map_or(within.start, |(start, _)| *start);
        self.runs
            .range(first..)
            .take_while(move |(start, _)| **start < within.end)
            .map(move |(start, end)| (*start).max(within.start)..(*end).min(within.end))
            .filter(|run| !run.is_empty())
    }

    /// Number of pages of the set in `within`.
    pub(crate) fn overlap(&self, within: Range<u64>) -> u64 {
        self.runs(within).map(|run| run.end - run.start).sum()
    }

    /// Adds `pages`; those already in the set stay.
    pub(crate) fn insert(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        let mut run = pages;
        if let Some((&start, &end)) = self.runs.range(..=run.start).next_back()
            && end >= run.start
        {
            if end >= run.end {
                return;
            }
            // Its key is the new run's, which takes its place.
            self.len -= end - start;
            run.start = start;
        }
        while let Some((&start, &end)) = self.runs.range(run.start + 1..=run.end).next() {
            self.runs.remove(&start);
            self.len -= end - start;
            run.end = run.end.max(end);
        }
        self.len += run.end - run.start;
        self.runs.insert(run.start, run.end);
    }

    /// Takes `pages` out; those not in the set are passed over.
    pub(crate) fn remove(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        let reaching_in = self.runs.range_mut(..pages.start).next_back();
        if let Some((_, end)) = reaching_in.filter(|(_, end)| **end > pages.start) {
            let old = std::mem::replace(end, pages.start);
            self.len -= old - pages.start;
            self.put_back(pages.end..old);
        }
        while let Some((&start, &end)) = self.runs.range(pages.clone()).next() {
            self.runs.remove(&start);
            self.len -= end - start;
            self.put_back(pages.end..end);
        }
    }

    /// Restores what a removed run had beyond the pages to be taken out, if anything.
    fn put_back(&mut self, rest: Range<u64>) {
        if !rest.is_empty() {
            self.len += rest.end - rest.start;
            self.runs.insert(rest.start, rest.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0u64..40, 0u64..12).prop_map(|(start, len)| start..start + len)
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), range(), range()), 1..40)) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (adds, pages, within) in steps {
                if adds {
                    set.insert(pages.clone());
                    model.extend(pages);
                } else {
                    set.remove(pages.clone());
                    model.retain(|page| !pages.contains(page));
                }
                let runs: Vec<_> = set.runs(0..u64::MAX).collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "{runs:?} touch");
                prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.is_empty(), model.is_empty());
                let part: BTreeSet<_> = model.iter().copied().filter(|page| within.contains(page)).collect();
                prop_assert_eq!(set.overlap(within.clone()), part.len() as u64);
                prop_assert_eq!(set.runs(within).flatten().collect::<BTreeSet<_>>(), part);
            }
        }
    }
}
