//! What a mount in memory is made with, and which of it can change while it stands.
//!
//! Names and values are those of tmpfs(5), read as the kernel reads them (mm/shmem.c, `shmem_parse_one`), with one
//! difference: numbers are decimal. The kernel takes a leading zero for octal; such a number is refused here, since
//! whoever writes it means something else.

use std::num::NonZeroU64;

use crate::memory::{GroupLimit, available_pages, group_limit};

/// The page that limits count and `nr_blocks=` means, in bytes.
pub const PAGE_BYTES: u64 = 4096;
/// The most pages a limit can name: as many as hold the longest file there can be (`i64::MAX` bytes). In bytes that
/// still is a number of 64 bits.
const MAX_PAGES: u64 = 1 << 51;
/// The most inodes a limit can name: each takes 1 KiB of the space that is accounted (mm/shmem.c, `BOGO_INODE_SIZE`).
const MAX_INODES: u64 = u64::MAX / 1024;
/// Permission bits of a root nobody chose others for (tmpfs(5)).
pub const DEFAULT_MODE: u32 = 0o1777;

/// The most there may be of something; `None` for no limit.
pub type Limit = Option<NonZeroU64>;

/// When reading updates access times (mount(8)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Atime {
    /// Where the access time is not later than the last change, or older than a day (`relatime`, the kernel's default).
    #[default]
    Relative,
    /// With every read that reaches the daemon (`strictatime`).
    Strict,
    /// Never (`noatime`).
    Never,
}

/// What the mount is made with. The names are those of tmpfs(5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `size=` and `nr_blocks=`: the most pages of 4 KiB that files may take; `None` for no limit.
    pub pages: Limit,
    /// `nr_inodes=`: the most inodes; `None` for no limit.
    pub inodes: Limit,
    /// `mode=`: permission bits of the root.
    pub mode: u32,
    /// `uid=`: owner of the root.
    pub uid: u32,
    /// `gid=`: group of the root.
    pub gid: u32,
    /// `inode32`: inode numbers stay under 2^32 and may come again after that many.
    pub inode32: bool,
    /// When reading updates access times.
    pub atime: Atime,
}

impl Options {
    /// Those of a mount of which only `limits` were said, its root owned by `uid` and `gid`: half of the memory
    /// there is for this process, and half as many inodes as that has pages (`shmem_default_max_blocks`, `shmem_default_max_inodes`).
    pub fn new(limits: Resize, uid: u32, gid: u32) -> Self {
        let half = NonZeroU64::new(available_pages() / 2).unwrap_or(NonZeroU64::MIN);
        Self {
            pages: limits.pages.unwrap_or(Some(half)),
            inodes: limits.inodes.unwrap_or(Some(half)),
            mode: DEFAULT_MODE,
            uid,
            gid,
            inode32: false,
            atime: Atime::default(),
        }
    }

    /// The limit of the daemon's memory control group, where files may take more than that: before they do, the daemon is
    /// killed.
    pub fn exceeded_group(&self) -> Option<&'static GroupLimit> {
        beyond_group(self.pages)
    }
}

/// New limits. What is `None` stays as it is, or has its default; `Some(None)` takes the limit away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resize {
    /// `size=` or `nr_blocks=`, whichever came last: in pages of 4 KiB.
    pub pages: Option<Limit>,
    /// `nr_inodes=`.
    pub inodes: Option<Limit>,
}

impl Resize {
    /// Reads a list such as `size=1g,nr_inodes=0`. Of two that contradict each other the last one wins.
    ///
    /// # Errors
    /// A sentence that names the option and what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let read = match name {
                "size" => limits.set_size(value),
                "nr_blocks" => limits.set_blocks(value),
                "nr_inodes" => limits.set_inodes(value),
                _ => {
                    return Err(format!(
                        "`{option}` cannot change while it is mounted: `size`, `nr_blocks` and `nr_inodes` can"
                    ));
                }
            };
            read.map_err(|expected| format!("option `{option}`: expected {expected}"))?;
        }
        Ok(limits)
    }

    /// Reads the value of `size=`: bytes, rounded up to whole pages, or a share of the memory there is for this process.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn set_size(&mut self, value: &str) -> Result<(), String> {
        let bytes = match value.strip_suffix('%') {
            Some(percent) => whole(percent).map(|percent| share_of(available_pages(), percent)),
            None => number(value).map(u128::from),
        };
        let pages = bytes.and_then(|bytes| u64::try_from(bytes.div_ceil(u128::from(PAGE_BYTES))).ok());
        self.pages = Some(limit(pages, MAX_PAGES).ok_or(
            "bytes with k, m, g or t behind them (`512m`), a share of memory (`50%`), or 0 for no limit",
        )?);
        Ok(())
    }

    /// Reads the value of `nr_blocks=`: pages of 4 KiB.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn set_blocks(&mut self, value: &str) -> Result<(), String> {
        let limit = limit(number(value), MAX_PAGES);
        self.pages = Some(limit.ok_or("pages of 4 KiB, such as 1000 or 64k, or 0 for no limit")?);
        Ok(())
    }

    /// Reads the value of `nr_inodes=`.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn set_inodes(&mut self, value: &str) -> Result<(), String> {
        let limit = limit(number(value), MAX_INODES);
        self.inodes = Some(limit.ok_or("a number of files, such as 1000 or 64k, or 0 for no limit")?);
        Ok(())
    }
}

/// The limit of this process's memory control group, where `pages` are more.
pub(crate) fn beyond_group(pages: Limit) -> Option<&'static GroupLimit> {
    group_limit()
        .filter(|limit| pages.is_none_or(|pages| pages.get().saturating_mul(PAGE_BYTES) > limit.bytes))
}

/// `percent` of `pages`, in bytes.
fn share_of(pages: u64, percent: u64) -> u128 {
    // Of three factors the product of two numbers of 64 bits always fits, and the third is the page.
    (u128::from(percent) * u128::from(pages)).saturating_mul(u128::from(PAGE_BYTES)) / 100
}

/// 0 as no limit; `None` for what is no number or more than `most`.
fn limit(number: Option<u64>, most: u64) -> Option<Limit> {
    number.filter(|number| *number <= most).map(NonZeroU64::new)
}

/// A whole number, perhaps with one of the suffixes of `memparse` (lib/cmdline.c): powers of 1024.
fn number(text: &str) -> Option<u64> {
    const SUFFIXES: [char; 6] = ['k', 'm', 'g', 't', 'p', 'e'];
    let lower = text.chars().last()?.to_ascii_lowercase();
    match SUFFIXES.iter().position(|suffix| *suffix == lower) {
        // A suffix is one byte long, whatever stands before it.
        Some(at) => whole(&text[..text.len() - 1])?.checked_mul(1024_u64.pow(u32::try_from(at).ok()? + 1)),
        None => whole(text),
    }
}

/// Digits, nothing else (`parse` would take a plus sign), and no leading zero.
fn whole(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let octal = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| digits && !octal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> Resize {
        Resize::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn values_are_read_as_the_kernel_reads_them() {
        let sizes = [
            ("0", 0),
            ("1", 1),
            ("4096", 1),
            ("4097", 2),
            ("12k", 3),
            ("13K", 4),
            ("1m", 256),
            ("1M", 256),
            ("2g", 524_288),
            ("1T", 268_435_456),
            ("1p", 1 << 38),
            ("1e", 1 << 48),
            ("8191p", 8191 << 38),
            ("0%", 0),
            ("0g", 0),
        ];
        for (value, pages) in sizes {
            assert_eq!(parsed(&format!("size={value}")).pages, Some(NonZeroU64::new(pages)), "{value}");
        }
        assert_eq!(parsed("size=50%").pages, Some(NonZeroU64::new(available_pages().div_ceil(2))));
        assert_eq!(parsed("size=200%").pages, Some(NonZeroU64::new(available_pages() * 2)));
        assert_eq!(parsed("nr_blocks=3k").pages, Some(NonZeroU64::new(3072)));
        assert_eq!(parsed("nr_inodes=1m").inodes, Some(NonZeroU64::new(1 << 20)));
        assert_eq!(parsed("nr_blocks=0,nr_inodes=0"), Resize { pages: Some(None), inodes: Some(None) });
    }

    #[test]
    fn of_size_and_blocks_the_last_one_wins() {
        assert_eq!(parsed("size=1m,nr_blocks=2").pages, Some(NonZeroU64::new(2)));
        assert_eq!(parsed("nr_blocks=2,size=0").pages, Some(None));
        assert_eq!(parsed(""), Resize::default());
        assert_eq!(parsed(",nr_inodes=5,").pages, None, "what is not named stays");
    }

    #[test]
    fn what_is_no_limit_is_refused_with_what_is_expected() {
        let bad =
            ["", "x", "-1", "+1", "1.5g", "1kk", "k", "%", "5%%", "1k%", "0x10", "010", "1 ", "1ké", "é"];
        for value in bad {
            for name in ["size", "nr_blocks", "nr_inodes"] {
                let error = Resize::parse(&format!("{name}={value}")).expect_err(value);
                assert!(error.contains("expected") && error.contains(name), "{error}");
            }
        }
        for large in [
            "size=9e",
            "size=16e",
            "size=99999999999999999999",
            "nr_blocks=8e",
            "nr_inodes=16e",
            "size=18446744073709551615%",
        ] {
            Resize::parse(large).expect_err(large);
        }
        for other in ["mode=700", "uid=1", "size", "ro", "sizes=1"] {
            Resize::parse(other).expect_err(other);
        }
    }

    #[test]
    fn a_mount_without_options_has_half_of_memory() {
        let options = Options::new(Resize::default(), 7, 8);
        assert_eq!(options.pages.map(NonZeroU64::get), Some(available_pages() / 2));
        assert_eq!((options.pages, options.uid, options.gid), (options.inodes, 7, 8));
        let none = Options::new(parsed("size=0,nr_inodes=3"), 0, 0);
        assert_eq!((none.pages, none.inodes), (None, NonZeroU64::new(3)));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}", value in "[0-9]{1,21}[kKmMgGtTpPeE%]?") {
            if let Err(error) = Resize::parse(&text) {
                prop_assert!(!error.is_empty());
            }
            if let Ok(limits) = Resize::parse(&format!("size={value}")) {
                let pages = limits.pages.flatten().map_or(0, NonZeroU64::get);
                prop_assert!(pages.checked_mul(PAGE_BYTES).is_some());
            }
        }
    }
}
