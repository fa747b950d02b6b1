//! Names with `*` for any part of them.

/// Whether `pattern` names `text`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter_map(|at| text.get(at..)).any(|text| matches(rest, text))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_is_any_part_of_a_name() {
        for (pattern, text, is) in [
            ("read", "read", true),
            ("read", "reads", false),
            ("read-*", "read-cold", true),
            ("*-cold", "read-cold", true),
            ("r*d-*d", "read-cold", true),
            ("*", "", true),
            ("*", "read", true),
            ("*x*", "read", false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} and {text}");
        }
    }
}
