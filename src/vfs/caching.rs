//! What the kernel may keep, in one place.
//!
//! | who changes the files | names, attributes | missing names | data over open(2) | directories, links | data checked by times |
//! |---|---|---|---|---|---|
//! | others too (passthrough) | 1 second | not kept | dropped | asked for each time | yes |
//! | the kernel alone (tmpfs) | for ever | for ever | kept | kept | no |
//!
//! With a writeback cache ([`super::writeback`]), which is for the kernel alone, sizes and times of modification are the kernel's.
//!
//! `entry_timeout` and `attr_timeout` override the second column. Of a file that the kernel serves by itself (kernel
//! passthrough), attributes are asked for each time while somebody may write it, and kept for a second at most after that.

use std::time::Duration;

use splicefs_core::{Attr, Ownership};

use super::iomode::Bypass;

/// libfuse's default, and short enough that a change of the source underneath is soon seen.
const SHARED_TIMEOUT: Duration = Duration::from_secs(1);
/// Ten years: longer than any mount, and far from the overflow of the kernel's jiffies.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86400);

/// What the kernel may keep, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caching {
    /// How long a name leads to a node.
    pub entry: Duration,
    /// How long a name that leads nowhere does so.
    pub negative: Duration,
    /// How long a node has these attributes.
    pub attr: Duration,
    /// Whether data, entries of directories and targets of links outlive the file's being closed.
    pub contents: bool,
    /// Files are used without being opened (zero-message opens).
    pub unopened: bool,
    /// What is written stays in the page cache until the kernel writes it back.
    pub writeback: bool,
}

/// Attributes, and how long the kernel may rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The attributes.
    pub attr: Attr,
    /// For how long.
    pub lifetime: Duration,
}

impl Caching {
    /// The lifetime of attributes of a file that the kernel changes by itself as `bypass` says: while it does so, it tells us
    /// nothing of it, and of its own it keeps the size alone.
    pub(super) fn attr_of(&self, bypass: Bypass) -> Duration {
        match bypass {
            Bypass::Never => self.attr,
            Bypass::Once => self.attr.min(SHARED_TIMEOUT),
            Bypass::Now => Duration::ZERO,
        }
    }

    /// The policy for files that `ownership` says who changes, with the lifetimes a person has asked for.
    pub fn new(
        ownership: Ownership,
        entry: Option<Duration>,
        attr: Option<Duration>,
        unopened: bool,
    ) -> Self {
        let exclusive = ownership == Ownership::Exclusive;
        let lifetime = if exclusive { FOR_EVER } else { SHARED_TIMEOUT };
        let entry = entry.unwrap_or(lifetime);
        let negative = if exclusive { entry } else { Duration::ZERO };
        Self {
            entry,
            negative,
            attr: attr.unwrap_or(lifetime),
            contents: exclusive,
            unopened,
            writeback: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_change_is_asked_for_again() {
        let caching = Caching::new(Ownership::Shared, None, None, false);
        assert_eq!((caching.entry, caching.attr), (SHARED_TIMEOUT, SHARED_TIMEOUT));
        assert_eq!((caching.negative, caching.contents), (Duration::ZERO, false));
    }

    #[test]
    fn what_a_person_asks_for_counts() {
        let zero = Some(Duration::ZERO);
        let caching = Caching::new(Ownership::Exclusive, zero, zero, false);
        assert_eq!((caching.entry, caching.negative, caching.attr), Default::default());
        assert!(caching.contents);
    }
}
