//! The text form of an option list: `a,b=c`, where `\,` is a comma and `\\` a backslash.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The elements of `list`, unescaped. Empty elements are left out, as mount(8) does. A backslash before anything but
/// a comma or a backslash stands for itself.
pub(super) fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut elements = Vec::new();
    let mut element = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => element.push(bytes.next_if(|&next| next == b',' || next == b'\\').unwrap_or(b'\\')),
            b',' => elements.push(std::mem::take(&mut element)),
            _ => element.push(byte),
        }
    }
    elements.push(element);
    elements.retain(|element| !element.is_empty());
    elements
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
            assert_eq!(split(list), *elements, "{}", String::from_utf8_lossy(list));
        }
    }

    #[test]
    fn the_first_equals_sign_ends_the_name() {
        assert_eq!(name_and_value(b"a=b=c"), (&b"a"[..], Some(&b"b=c"[..])));
        assert_eq!(name_and_value(b"a="), (&b"a"[..], Some(&b""[..])));
        assert_eq!(name_and_value(b"a"), (&b"a"[..], None));
    }
}
