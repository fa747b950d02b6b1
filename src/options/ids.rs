//! Ids in a mount that are others than in its layers.

use std::ffi::OsStr;

use splicefs_overlay::IdRange;

use super::values::utf8;

/// Ranges, separated by colons like the numbers in them; one colon may come first, as podman writes it (for `--userns`).
pub(super) fn ranges(value: &OsStr) -> Result<Vec<IdRange>, String> {
    let text = utf8(value);
    let numbers: Option<Vec<u32>> = text.strip_prefix(':').unwrap_or(text).split(':').map(number).collect();
    let ranges: Option<Vec<_>> = numbers.and_then(|numbers| numbers.chunks(3).map(range).collect());
    let ranges =
        ranges.ok_or_else(|| "ranges of ids, ID:SHOWN:COUNT, such as 0:1000:1:1:100000:65536".to_owned())?;
    if overlap(&ranges, |range| range.layers) || overlap(&ranges, |range| range.mount) {
        return Err("ranges of ids of which none is part of another, neither as ID nor as SHOWN".to_owned());
    }
    Ok(ranges)
}

/// Whether two of the ranges that begin with `first` have an id in common: it would lead to two, as in no user namespace
/// (user_namespaces(7), uid_map).
fn overlap(ranges: &[IdRange], first: impl Fn(&IdRange) -> u32) -> bool {
    let mut spans: Vec<_> = ranges.iter().map(|range| (first(range), range.count)).collect();
    spans.sort_unstable();
    // No range reaches beyond the largest number.
    spans.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
}

/// Digits alone: `parse` takes a leading plus sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The largest number is no id (chown(2)), and no range reaches it.
fn range(numbers: &[u32]) -> Option<IdRange> {
    let &[layers, mount, count] = numbers else { return None };
    let fits = |first: u32| first.checked_add(count).is_some();
    (count > 0 && fits(layers) && fits(mount)).then_some(IdRange { layers, mount, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_triples_and_hold_ids_only() {
        let read = |text: &str| ranges(OsStr::new(text));
        let range = |layers, mount, count| IdRange { layers, mount, count };
        assert_eq!(read("0:1000:1"), Ok(vec![range(0, 1000, 1)]));
        assert_eq!(read("0:1000:1:1:100000:65536"), Ok(vec![range(0, 1000, 1), range(1, 100_000, 65536)]));
        assert_eq!(read(":0:1:1000:1000:0:1"), read("0:1:1000:1000:0:1"), "as podman writes it");
        assert_eq!(read("0:0:4294967295"), Ok(vec![range(0, 0, u32::MAX)]));
        for bad in [
            "",
            ":",
            "::0:1:1",
            "0",
            "0:0",
            "0:0:0",
            "0:1:2:3",
            "a:b:c",
            "+1:0:1",
            "-1:0:1",
            "1:0:4294967295",
            "0:0:1:",
        ] {
            assert!(read(bad).expect_err(bad).contains("ID:SHOWN:COUNT"), "{bad}");
        }
    }

    #[test]
    fn no_id_is_in_two_ranges() {
        let read = |text: &str| ranges(OsStr::new(text));
        for twice in
            ["0:0:10:9:100:1", "5:100:1:0:0:10", "0:100:10:10:109:1", "0:0:1:0:0:1", "9:9:1:0:0:4294967295"]
        {
            assert!(read(twice).expect_err(twice).contains("none is part of another"), "{twice}");
        }
        for apart in ["0:0:10:10:100:1", "10:100:1:0:0:10", "1:1:4294967294:0:0:1"] {
            assert!(read(apart).is_ok(), "{apart}");
        }
    }
}
