//! Numbers of bytes for a person.

/// Bytes in the largest unit that leaves at least one, with one decimal place.
pub(super) fn amount(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let Some((at, unit)) = units.into_iter().enumerate().rev().find(|(at, _)| bytes >> (10 * (at + 1)) > 0)
    else {
        return format!("{bytes} B");
    };
    let shift = 10 * (at + 1);
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        assert_eq!(amount(0), "0 B");
        assert_eq!(amount(1023), "1023 B");
        assert_eq!(amount(1536), "1.5 KiB");
        assert_eq!(amount(u64::MAX), "16383.9 PiB");
    }
}
