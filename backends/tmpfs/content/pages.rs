//! Bytes to pages and back. Page numbers stay under 2^51, so nothing here overflows.

use std::ops::Range;

use crate::store::PAGE;

/// The pages that hold a byte of `bytes`.
pub(super) fn touched(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / PAGE..bytes.end.div_ceil(PAGE)
}

/// The pages that lie wholly in `bytes`.
pub(super) fn whole(bytes: &Range<u64>) -> Range<u64> {
    bytes.start.div_ceil(PAGE)..bytes.end / PAGE
}

/// The bytes of `pages`.
pub(super) fn bytes_of(pages: &Range<u64>) -> Range<u64> {
    pages.start * PAGE..pages.end * PAGE
}

/// The bytes that both ranges hold; an empty range where there is none.
pub(super) fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Number of pages or bytes in `range`.
pub(super) fn count(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// `n` as a length in memory. Nothing in memory is longer than `usize::MAX`, so what does not fit is as good as that.
pub(super) fn in_memory(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
