//! The text form of an option list: `a,b=c`, where `\,` is a comma and `\\` a backslash.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The elements of `list`, escapes and all. Empty elements are left out, as mount(8) does.
pub(super) fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut elements = Vec::new();
    let mut element = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' => elements.push(std::mem::take(&mut element)),
            _ => element.push(byte),
        }
        if byte == b'\\' {
            element.extend(bytes.next_if(is_escaped));
        }
    }
    elements.push(element);
    elements.retain(|element| !element.is_empty());
    elements
}

/// `element` as it is meant: a backslash before anything but a comma or a backslash stands for itself.
pub(super) fn unescape(element: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(element.len());
    let mut bytes = element.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let meant = if byte == b'\\' { bytes.next_if(is_escaped) } else { None };
        plain.push(meant.unwrap_or(byte));
    }
    plain
}

fn is_escaped(byte: &u8) -> bool {
    matches!(byte, b',' | b'\\')
}

/// Puts together again what `split` has taken apart within double quotes: `context="a,b"` is how container engines
/// hand labels over. Only elements that `foreign` says are of no concern here may have quotes; in a path they are
/// characters like any other.
pub(super) fn rejoin_quoted(elements: &[Vec<u8>], foreign: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut joined = Vec::with_capacity(elements.len());
    let mut rest = elements;
    while let Some((first, after)) = rest.split_first() {
        let (name, value) = name_and_value(first);
        let open = value.is_some_and(|value| value.starts_with(b"\"") && !closes(&value[1..]));
        let more = if open && foreign(name) { after.iter().position(|next| closes(next)) } else { None };
        let length = more.map_or(1, |more| more + 2);
        joined.push(rest[..length].join(&b','));
        rest = &rest[length..];
    }
    joined
}

fn closes(text: &[u8]) -> bool {
    text.ends_with(b"\"")
}

/// `name=value` at its first equals sign, or `name` alone.
pub(super) fn name_and_value(element: &[u8]) -> (&[u8], Option<&[u8]>) {
    match element.iter().position(|&byte| byte == b'=') {
        Some(at) => (&element[..at], Some(&element[at + 1..])),
        None => (element, None),
    }
}

/// `value` written so that [`Options::parse`](super::Options::parse) and fusermount3 read it back as one value.
///
/// fusermount3 takes whatever follows a backslash literally. Since 3.15 it also moves every element that begins with
/// `x-` elsewhere before it looks at escapes, so an `x` that follows a comma is told apart by [`for_fusermount`].
pub fn escape(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// As [`escape`], and also safe from fusermount3's search for `,x-`.
pub(crate) fn for_fusermount(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    let mut after_comma = false;
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') || (after_comma && byte == b'x') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
        after_comma = byte == b',';
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_split_at_bare_commas_only() {
        let cases: &[(&[u8], &[&[u8]])] = &[
            (b"", &[]),
            (b",,", &[]),
            (b"ro", &[b"ro"]),
            (b"ro,,rw,", &[b"ro", b"rw"]),
            (br"fsname=a\,b,ro", &[b"fsname=a,b", b"ro"]),
            (br"fsname=a\\,ro", &[br"fsname=a\", b"ro"]),
            (br"fsname=a\\\,ro", &[br"fsname=a\,ro"]),
            (br"fsname=a\b", &[br"fsname=a\b"]),
            (br"fsname=a\", &[br"fsname=a\"]),
            (b"fsname=\xff", &[b"fsname=\xff"]),
        ];
        for (list, elements) in cases {
            let read: Vec<_> = split(list).iter().map(|element| unescape(element)).collect();
            assert_eq!(read, *elements, "{}", String::from_utf8_lossy(list));
        }
        assert_eq!(split(br"a=\:\,b\\,c"), [&br"a=\:\,b\\"[..], b"c"], "escapes are kept");
    }

    #[test]
    fn quotes_hold_an_unknown_option_together() {
        let read = |list: &str| {
            let elements = rejoin_quoted(&split(list.as_bytes()), |name| name != b"known");
            elements.into_iter().map(|element| String::from_utf8(element).expect("UTF-8")).collect::<Vec<_>>()
        };
        assert_eq!(read(r#"a,context="u:s0:c1,c2",ro"#), ["a", r#"context="u:s0:c1,c2""#, "ro"]);
        assert_eq!(read(r#"x="a,b,c",y="d""#), [r#"x="a,b,c""#, r#"y="d""#]);
        assert_eq!(read(r#"x="a,ro,b"#), [r#"x="a"#, "ro", "b"], "no end, no quotation");
        assert_eq!(read(r#"x=",ro",b"#), [r#"x=",ro""#, "b"]);
        assert_eq!(read(r#"known="a,ro,b""#), [r#"known="a"#, "ro", r#"b""#]);
    }

    #[test]
    fn the_first_equals_sign_ends_the_name() {
        assert_eq!(name_and_value(b"a=b=c"), (&b"a"[..], Some(&b"b=c"[..])));
        assert_eq!(name_and_value(b"a="), (&b"a"[..], Some(&b""[..])));
        assert_eq!(name_and_value(b"a"), (&b"a"[..], None));
    }
}
