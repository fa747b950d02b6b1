//! Contents that say where they belong: the byte of a pattern file at any offset is known and is never zero.

use std::sync::OnceLock;

/// No multiple of a page or of a pipe, so that a shifted reply shows.
const PERIOD: u8 = 251;
/// The longest slice that [`slice()`] gives.
const LONGEST: usize = 4 << 20;

/// The byte that a pattern file has at `offset`: never zero, so that a hole or a cleared page shows.
pub(crate) fn pattern_byte(offset: u64) -> u8 {
    // The modulus keeps it within a byte.
    u8::try_from(offset % u64::from(PERIOD)).unwrap_or(0) + 1
}

/// The pattern from `offset` on, at most 4 MiB of it.
fn slice(offset: u64, length: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = PATTERN.get_or_init(|| (1..=PERIOD).cycle().take(LONGEST + usize::from(PERIOD)).collect());
    let start = usize::from(pattern_byte(offset)) - 1;
    &bytes[start..start + length]
}

/// `length` pattern bytes starting at `offset`.
pub(crate) fn fill(offset: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        let at = offset + out.len() as u64;
        out.extend_from_slice(slice(at, (length - out.len()).min(LONGEST)));
    }
    out
}

/// Where `data`, read at `offset`, first differs from the pattern.
pub(crate) fn first_difference(data: &[u8], offset: u64) -> Option<usize> {
    let mut done = 0;
    for chunk in data.chunks(LONGEST) {
        let expected = slice(offset + done as u64, chunk.len());
        // The comparison of slices is a memcmp; only a failure is looked into byte by byte.
        if chunk != expected {
            return chunk.iter().zip(expected).position(|(got, right)| got != right).map(|at| done + at);
        }
        done += chunk.len();
    }
    None
}

#[test]
fn the_pattern_is_the_same_byte_by_byte_and_in_bulk() {
    for offset in [0, 1, 250, 251, 252, 4095, 1 << 33] {
        let bulk = fill(offset, 1000);
        assert_eq!(bulk.len(), 1000);
        assert!((0..1000u64).zip(&bulk).all(|(i, &byte)| byte == pattern_byte(offset + i) && byte != 0));
        assert_eq!(first_difference(&bulk, offset), None);
        assert_eq!(first_difference(&bulk, offset + 1), Some(0));
    }
    let mut long = fill(7, (4 << 20) + 5000);
    assert_eq!(first_difference(&long, 7), None);
    long[(4 << 20) + 100] = 0;
    assert_eq!(first_difference(&long, 7), Some((4 << 20) + 100));
}
