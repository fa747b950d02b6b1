//! What the kernel may keep, in one place.
//!
//! | who changes the files | names, attributes | missing names | data over open(2) | directories | targets of links | data checked by times |
//! |---|---|---|---|---|---|---|
//! | others too (passthrough) | 1 second | not kept | dropped | asked for each time | asked for each time | yes |
//! | others, and nothing is to be kept (`cache=never`) | not kept | not kept | not kept at all | asked for each time | asked for each time | yes |
//! | others, who are heard (`cache=notify`) | for ever | for ever | kept | kept | asked for each time | yes |
//! | the kernel alone, or so a person says (`cache=always`) | for ever | for ever | kept | kept | asked for each time | no |
//! | the kernel alone (tmpfs, overlay) | for ever | for ever | kept | kept | kept | no |
//!
//! With a writeback cache ([`super::writeback`]), which is for the kernel alone, sizes and times of modification are the kernel's.
//!
//! With `cache=notify`, what is not heard of is kept as the first line says. `entry_timeout` and `attr_timeout` override the
//! second column. Of a file that the kernel serves by itself (kernel passthrough), attributes are asked for each time while
//! somebody may write it, and kept for a second at most after that.

use std::time::Duration;

use splicefs_core::{Attr, Ownership};

use super::iomode::Bypass;

/// libfuse's default, and short enough that a change of the source underneath is soon seen.
const SHARED_TIMEOUT: Duration = Duration::from_secs(1);
/// Ten years: longer than any mount, and far from the overflow of the kernel's jiffies.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86400);

/// What a person asks the kernel to keep of files that others change, too (`cache=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// What is soon asked for again.
    Auto,
    /// Everything: nobody else changes the files.
    Always,
    /// Nothing.
    Never,
    /// Everything until a change is heard of.
    Notify,
}

/// What the kernel may keep of one node, or of one directory's names, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// How long a name leads to a node.
    pub entry: Duration,
    /// How long a name that leads nowhere does so.
    pub negative: Duration,
    /// How long a node has these attributes.
    pub attr: Duration,
    /// Whether data, entries of directories and targets of links outlive the file's being closed.
    pub contents: bool,
}

/// What the kernel may keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caching {
    /// Of what nobody else changes, or whose changes are heard of.
    trusted: Kept,
    /// Of what others may change unheard; `None` where nothing is to be heard in the first place.
    unheard: Option<Kept>,
    /// Data is dropped when times or size are seen to have changed.
    pub checked: bool,
    /// Targets of symbolic links are kept, all of them: no link leads each caller elsewhere, as those of procfs do.
    pub links: bool,
    /// Each read is asked for, if the kernel then still maps files.
    pub direct: bool,
    /// Files are used without being opened (zero-message opens).
    pub unopened: bool,
    /// Files of lower layers of at most so many bytes reach the page cache with the reply to their open ([`super::prefetch`]).
    pub prefetch: usize,
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

impl Kept {
    /// Nothing is kept.
    pub(super) const NOTHING: Self =
        Self { entry: Duration::ZERO, negative: Duration::ZERO, attr: Duration::ZERO, contents: false };

    /// The lifetime of attributes of a file that the kernel changes by itself as `bypass` says: while it does so, it tells us
    /// nothing of it, and of its own it keeps the size alone.
    pub(super) fn attr_of(&self, bypass: Bypass) -> Duration {
        match bypass {
            Bypass::Never => self.attr,
            Bypass::Once => self.attr.min(SHARED_TIMEOUT),
            Bypass::Now => Duration::ZERO,
        }
    }
}

impl Caching {
    /// The policy for files that `ownership` says who changes, with what a person has asked for.
    pub fn new(
        ownership: Ownership,
        cache: Cache,
        entry: Option<Duration>,
        attr: Option<Duration>,
        unopened: bool,
    ) -> Self {
        let kept = |lifetime: Duration, contents| Kept {
            entry: entry.unwrap_or(lifetime),
            negative: if contents { entry.unwrap_or(lifetime) } else { Duration::ZERO },
            attr: attr.unwrap_or(lifetime),
            contents,
        };
        let cache = if ownership == Ownership::Exclusive { Cache::Always } else { cache };
        let (for_ever, shared) = (kept(FOR_EVER, true), kept(SHARED_TIMEOUT, false));
        let trusted = match cache {
            Cache::Always | Cache::Notify => for_ever,
            Cache::Auto => shared,
            Cache::Never => kept(Duration::ZERO, false),
        };
        Self {
            trusted,
            unheard: (cache == Cache::Notify).then_some(shared),
            checked: cache != Cache::Always,
            links: ownership == Ownership::Exclusive,
            direct: cache == Cache::Never,
            unopened,
            prefetch: 0,
            writeback: false,
        }
    }

    /// The same with files of at most so many bytes prefetched.
    #[must_use]
    pub fn prefetching(self, prefetch: usize) -> Self {
        Self { prefetch, ..self }
    }

    /// The same with, or without, a writeback cache.
    #[must_use]
    pub fn written_back(self, writeback: bool) -> Self {
        Self { writeback, ..self }
    }

    /// Whether the kernel believes what it was once told of a file for longer than an answer may be on its way.
    pub(super) fn outlasts_answers(&self) -> bool {
        self.writeback || self.trusted.attr > SHARED_TIMEOUT
    }

    /// Whether changes are to be heard of.
    pub fn listens(&self) -> bool {
        self.unheard.is_some()
    }

    /// The policy where nothing can be heard.
    #[must_use]
    pub fn deaf(self) -> Self {
        Self { trusted: self.unheard.unwrap_or(self.trusted), unheard: None, ..self }
    }

    /// Whether anything at all is kept for long.
    pub fn keeps_contents(&self) -> bool {
        self.trusted.contents
    }

    /// What may be kept of what is `heard` of, or not.
    pub fn kept(&self, heard: bool) -> Kept {
        if heard { self.trusted } else { self.unheard.unwrap_or(self.trusted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(cache: Cache) -> Caching {
        Caching::new(Ownership::Shared, cache, None, None, false)
    }

    #[test]
    fn what_others_change_is_asked_for_again() {
        let kept = shared(Cache::Auto).kept(true);
        assert_eq!((kept.entry, kept.attr), (SHARED_TIMEOUT, SHARED_TIMEOUT));
        assert_eq!((kept.negative, kept.contents), (Duration::ZERO, false));
    }

    #[test]
    fn what_a_person_asks_for_counts() {
        let zero = Some(Duration::ZERO);
        let kept = Caching::new(Ownership::Exclusive, Cache::Auto, zero, zero, false).kept(true);
        assert_eq!((kept.entry, kept.negative, kept.attr), Default::default());
        assert!(kept.contents);
    }

    #[test]
    fn an_answer_that_is_late_matters_where_it_is_kept_for_long() {
        let exclusive = Caching::new(Ownership::Exclusive, Cache::Auto, None, None, false);
        assert!(exclusive.outlasts_answers() && shared(Cache::Notify).outlasts_answers());
        assert!(!shared(Cache::Auto).outlasts_answers() && !shared(Cache::Never).outlasts_answers());
        let soon = Caching::new(Ownership::Exclusive, Cache::Auto, None, Some(SHARED_TIMEOUT), false);
        assert!(!soon.outlasts_answers() && soon.written_back(true).outlasts_answers());
    }

    #[test]
    fn what_is_vouched_for_is_kept_as_what_is_the_kernels_alone() {
        let exclusive = Caching::new(Ownership::Exclusive, Cache::Auto, None, None, false);
        // But for links, which in procfs lead each caller elsewhere, whoever changes them.
        assert_eq!(shared(Cache::Always), Caching { links: false, ..exclusive });
        assert!(exclusive.links);
        let never = shared(Cache::Never);
        assert_eq!(
            never.kept(true),
            Kept { entry: Duration::ZERO, negative: Duration::ZERO, attr: Duration::ZERO, contents: false }
        );
        assert!(never.direct && never.checked);
    }

    #[test]
    fn what_is_heard_of_is_kept_and_the_rest_is_asked_for_again() {
        let notify = shared(Cache::Notify);
        assert_eq!(notify.kept(true), shared(Cache::Always).kept(true));
        assert_eq!(notify.kept(false), shared(Cache::Auto).kept(true));
        assert_eq!(notify.deaf().kept(true), shared(Cache::Auto).kept(true));
        assert!(notify.listens() && !notify.deaf().listens() && notify.checked);
    }
}
