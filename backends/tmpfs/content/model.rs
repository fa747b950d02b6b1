//! What a file is, said as plainly as possible, and the operations that tests do on it.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use splicefs_core::Errno;

use super::MAX_SIZE;
use crate::store::PAGE;

/// An operation on a file.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Offset, length, and the byte written.
    Write(u64, usize, u8),
    /// The new size.
    Truncate(u64),
    /// To the size that it has, which frees what is set aside beyond the end.
    TruncateToSize,
    /// Offset, length, and whether the size stays.
    Allocate(u64, u64, bool),
    /// Offset and length.
    Punch(u64, u64),
    /// Everything is given back.
    Clear,
}

/// A page of the model: its bytes, or `None` where it is set aside and not written.
type Page = Option<Vec<u8>>;

/// A file that is nothing but its rules. What an operation answers is what the store must answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) size: u64,
    pub(super) pages: BTreeMap<u64, Page>,
}

fn overlap(page: u64, bytes: &Range<u64>) -> Range<usize> {
    let cut = |at: u64| usize::try_from(at.clamp(page * PAGE, (page + 1) * PAGE) - page * PAGE).unwrap();
    cut(bytes.start)..cut(bytes.end)
}

impl Model {
    /// Does `op` where `room` pages are left, and returns the number of bytes written (0 for what writes none).
    pub(super) fn apply(&mut self, op: &Op, room: u64) -> Result<usize, Errno> {
        match *op {
            Op::Write(offset, len, byte) => self.write(offset, len, byte, room),
            Op::TruncateToSize => self.apply(&Op::Truncate(self.size), room),
            Op::Truncate(size) if size > MAX_SIZE => Err(Errno::EFBIG),
            Op::Truncate(size) => {
                if size <= self.size {
                    self.free(size..u64::MAX);
                }
                self.size = size;
                Ok(0)
            }
            Op::Allocate(_, 0, _) | Op::Punch(_, 0) => Err(Errno::EINVAL),
            Op::Allocate(offset, len, _) | Op::Punch(offset, len) if offset + len > MAX_SIZE => {
                Err(Errno::EFBIG)
            }
            Op::Allocate(offset, len, keep_size) => {
                let pages = offset / PAGE..(offset + len).div_ceil(PAGE);
                let missing = pages.clone().filter(|page| !self.pages.contains_key(page)).count() as u64;
                if missing > room {
                    return Err(Errno::ENOSPC);
                }
                for page in pages {
                    self.pages.entry(page).or_default();
                }
                if !keep_size {
                    self.size = self.size.max(offset + len);
                }
                Ok(0)
            }
            Op::Punch(offset, len) => {
                self.free(offset..offset + len);
                Ok(0)
            }
            Op::Clear => {
                *self = Self::default();
                Ok(0)
            }
        }
    }

    fn write(&mut self, offset: u64, len: usize, byte: u8, mut room: u64) -> Result<usize, Errno> {
        if len == 0 {
            return Ok(0);
        }
        if offset >= MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let bytes = offset..(offset + len as u64).min(MAX_SIZE);
        let mut written = 0;
        for page in bytes.start / PAGE..bytes.end.div_ceil(PAGE) {
            if !self.pages.contains_key(&page) {
                if room == 0 {
                    break;
                }
                room -= 1;
            }
            let part = overlap(page, &bytes);
            written += part.len();
            self.pages.entry(page).or_default().get_or_insert_with(|| vec![0; 4096])[part].fill(byte);
        }
        if written == 0 {
            return Err(Errno::ENOSPC);
        }
        self.size = self.size.max(offset + written as u64);
        Ok(written)
    }

    /// Frees the pages in `bytes`, and zeroes what they have of others.
    fn free(&mut self, bytes: Range<u64>) {
        self.pages.retain(|page, data| {
            let part = overlap(*page, &bytes);
            if let Some(data) = data {
                data[part.clone()].fill(0);
            }
            part.len() < 4096
        });
    }

    fn is_written(&self, page: u64) -> bool {
        self.pages.get(&page).is_some_and(Option::is_some)
    }

    /// Whether a page of the range is set aside and not written.
    pub(super) fn has_unwritten(&self, offset: u64, len: u64) -> bool {
        self.pages.range(offset / PAGE..(offset + len).div_ceil(PAGE)).any(|(_, page)| page.is_none())
    }

    /// The bytes of `span`, up to the size, and whether each is in a written page.
    pub(super) fn read(&self, span: Range<u64>) -> (Vec<u8>, Vec<bool>) {
        let span = span.start..span.end.min(self.size);
        let (mut bytes, mut written) = (Vec::new(), Vec::new());
        if span.is_empty() {
            return (bytes, written);
        }
        for page in span.start / PAGE..span.end.div_ceil(PAGE) {
            let part = overlap(page, &span);
            written.resize(written.len() + part.len(), self.is_written(page));
            match self.pages.get(&page) {
                Some(Some(data)) => bytes.extend_from_slice(&data[part]),
                _ => bytes.resize(bytes.len() + part.len(), 0),
            }
        }
        (bytes, written)
    }

    /// `SEEK_DATA`; `None` for `ENXIO`.
    pub(super) fn seek_data(&self, offset: u64) -> Option<u64> {
        let mut written = self.pages.range(offset / PAGE..).filter(|(_, data)| data.is_some());
        let at = written.next()?.0 * PAGE;
        Some(at.max(offset)).filter(|at| *at < self.size)
    }

    /// `SEEK_HOLE`; `None` for `ENXIO`.
    pub(super) fn seek_hole(&self, offset: u64) -> Option<u64> {
        let hole = (offset / PAGE..).find(|page| !self.is_written(*page))? * PAGE;
        (offset < self.size).then_some(hole.max(offset).min(self.size))
    }

    /// The next run of data in `from..to`.
    pub(super) fn next_data(&self, from: u64, to: u64) -> Option<Range<u64>> {
        let start = self.seek_data(from).filter(|start| *start < to)?;
        Some(start..self.seek_hole(start)?.min(to))
    }

    /// Offsets at which something begins or ends, and their neighbours.
    pub(super) fn edges(&self) -> Vec<u64> {
        let starts = self.pages.keys().filter(|page| **page == 0 || !self.pages.contains_key(&(*page - 1)));
        let ends = self.pages.keys().map(|page| page + 1).filter(|page| !self.pages.contains_key(page));
        let edges = starts.copied().chain(ends).map(|page| page * PAGE).chain([0, self.size]);
        let mut all: Vec<_> =
            edges.flat_map(|at| [at.saturating_sub(1), at, at + 1]).filter(|at| *at <= MAX_SIZE).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// A page number: near the start, around the sizes at which a file moves between the tiers, and far out.
fn page() -> impl Strategy<Value = u64> {
    const TIB: u64 = (1 << 40) / PAGE;
    prop_oneof![
        6 => 0u64..4,
        6 => 0u64..20,
        3 => 6u64..40,
        2 => TIB..TIB + 12,
        1 => MAX_SIZE / PAGE - 3..=MAX_SIZE / PAGE,
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    let within = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(PAGE - 1), 3 => 0..PAGE];
    (page(), within).prop_map(|(page, within)| page * PAGE + within)
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0u64),
        2 => 1u64..3,
        3 => 1..PAGE,
        4 => (1u64..20).prop_map(|pages| pages * PAGE),
        4 => 1..24 * PAGE,
    ]
}

/// An operation, on any kind of range.
pub(super) fn op() -> impl Strategy<Value = Op> {
    let write = (offset(), len(), 1u8..)
        .prop_map(|(at, len, byte)| Op::Write(at, usize::try_from(len).unwrap(), byte));
    prop_oneof![
        12 => write,
        5 => prop_oneof![9 => offset(), 1 => Just(0), 1 => Just(MAX_SIZE + 1)].prop_map(Op::Truncate),
        4 => (offset(), len(), any::<bool>()).prop_map(|(at, len, keep)| Op::Allocate(at, len, keep)),
        4 => (offset(), prop_oneof![4 => len(), 1 => Just(1u64 << 41)]).prop_map(|(at, len)| Op::Punch(at, len)),
        1 => Just(Op::TruncateToSize),
        1 => Just(Op::Clear),
    ]
}
