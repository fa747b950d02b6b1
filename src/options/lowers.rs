//! The list of lower directories, `A:B:C::DATA`, and the escapes of paths in it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The most lower layers (fs/overlayfs/ovl_entry.h, `OVL_MAX_STACK`).
pub const LOWERS_MAX: usize = 500;

/// A lower layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowerDir {
    /// As it was given, unescaped.
    pub path: PathBuf,
    /// It only holds the contents of files that are named in the layers above.
    pub data_only: bool,
}

/// What is expected of a list that is too long.
pub(super) fn too_many() -> String {
    format!("at most {LOWERS_MAX} directories")
}

/// The directories in `list`, where `:` ends one and `::` says besides that the next is data-only (fs/overlayfs/params.c,
/// `ovl_parse_param_lowerdir`). `\:`, `\,` and `\\` are a colon, a comma and a backslash; before anything else a
/// backslash stands for itself, while the kernel drops it.
pub(super) fn lowers(list: &OsStr) -> Result<Vec<LowerDir>, String> {
    let mut lowers: Vec<LowerDir> = Vec::new();
    let mut data_only = false;
    for (path, colons) in parts(list.as_bytes()) {
        if path.is_empty() {
            return Err("a directory on each side of `:` and `::` (`\\:` is a colon in a name)".to_owned());
        }
        if colons == 1 && data_only {
            return Err("data-only directories last, each behind `::`".to_owned());
        }
        lowers.push(LowerDir { path: OsString::from_vec(path).into(), data_only });
        data_only = colons == 2;
    }
    if lowers.len() > LOWERS_MAX {
        return Err(too_many());
    }
    Ok(lowers)
}

/// A path in which the same may be escaped as in a list.
pub(super) fn path(value: &OsStr) -> Result<PathBuf, String> {
    // A bare colon is nothing special here.
    let parts = parts(value.as_bytes());
    let bytes = parts.into_iter().flat_map(|(part, colons)| [part, vec![b':'; colons]].concat());
    let path: Vec<u8> = bytes.collect();
    if path.is_empty() { Err("a directory".to_owned()) } else { Ok(OsString::from_vec(path).into()) }
}

/// What stands between bare colons, unescaped, each part with the number of colons behind it, at most two; the last part
/// has none.
fn parts(list: &[u8]) -> Vec<(Vec<u8>, usize)> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => part.push(bytes.next_if(|next| matches!(next, b',' | b':' | b'\\')).unwrap_or(b'\\')),
            b':' => {
                let colons = if bytes.next_if_eq(&b':').is_some() { 2 } else { 1 };
                parts.push((std::mem::take(&mut part), colons));
            }
            _ => part.push(byte),
        }
    }
    parts.push((part, 0));
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(list: &str) -> Result<Vec<(String, bool)>, String> {
        let read = |lower: LowerDir| (lower.path.display().to_string(), lower.data_only);
        lowers(OsStr::new(list)).map(|lowers| lowers.into_iter().map(read).collect())
    }

    #[test]
    fn colons_separate_and_escapes_do_not() {
        let cases: &[(&str, &[(&str, bool)])] = &[
            ("/a", &[("/a", false)]),
            ("l/A:l/B:/c d", &[("l/A", false), ("l/B", false), ("/c d", false)]),
            (r"/a\:b:c\,d:e\\", &[("/a:b", false), ("c,d", false), (r"e\", false)]),
            (r"/a\\:b", &[(r"/a\", false), ("b", false)]),
            (r"/a\\\:b", &[(r"/a\:b", false)]),
            (r"/dev-disk\x2dby:\", &[(r"/dev-disk\x2dby", false), (r"\", false)]),
            ("/a::/d", &[("/a", false), ("/d", true)]),
            ("/a:/b::/d::/e", &[("/a", false), ("/b", false), ("/d", true), ("/e", true)]),
            (r"/a\::/b", &[("/a:", false), ("/b", false)]),
        ];
        for (list, expected) in cases {
            let expected = expected.iter().map(|(path, data)| ((*path).to_owned(), *data)).collect();
            assert_eq!(read(list), Ok(expected), "{list}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        for list in ["", ":/a", "::/a", "/a:", "/a::", "/a:::/b", "/a::::/b", ":"] {
            assert!(read(list).expect_err(list).starts_with("a directory on each side of `:`"), "{list}");
        }
        for list in ["/a::/d:/b", "/a::/d::/e:/f"] {
            assert!(read(list).expect_err(list).contains("data-only directories last"), "{list}");
        }
        let many = |n: usize| vec!["/l"; n].join(":");
        assert_eq!(read(&many(LOWERS_MAX)).map(|lowers| lowers.len()), Ok(LOWERS_MAX));
        assert_eq!(read(&many(LOWERS_MAX + 1)), Err("at most 500 directories".to_owned()));
    }

    #[test]
    fn a_path_alone_may_be_escaped_and_need_not() {
        let read = |text: &str| path(OsStr::new(text)).map(|path| path.display().to_string());
        assert_eq!(read(r"/a:b::c\:d\,e\\f\g:"), Ok(r"/a:b::c:d,e\f\g:".to_owned()));
        assert_eq!(read(""), Err("a directory".to_owned()));
    }

    proptest! {
        #[test]
        fn any_escaped_paths_come_back(
            paths in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..9), 1..6)
        ) {
            let escape = |path: &Vec<u8>| {
                let escape = |byte: &u8| match byte {
                    b',' | b':' | b'\\' => vec![b'\\', *byte],
                    _ => vec![*byte],
                };
                path.iter().flat_map(escape).collect::<Vec<u8>>()
            };
            let list = paths.iter().map(escape).collect::<Vec<_>>().join(&b':');
            let expected = paths.iter().map(|path| LowerDir {
                path: OsString::from_vec(path.clone()).into(),
                data_only: false,
            });
            prop_assert_eq!(lowers(OsStr::from_bytes(&list)), Ok(expected.collect::<Vec<_>>()));
            prop_assert_eq!(path(OsStr::from_bytes(&escape(&paths[0]))), Ok(OsString::from_vec(paths[0].clone()).into()));
        }
    }
}
