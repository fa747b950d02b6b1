//! The clock, and when an access is worth noting.

use rustix::time::{ClockId, clock_gettime};
use splicefs_core::Timestamp;

use crate::options::Atime;

/// An access time older than this is renewed in any case (`relatime_need_update` in fs/inode.c).
const DAY: i64 = 24 * 60 * 60;

/// The time of day.
pub(crate) fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Realtime);
    Timestamp { sec: time.tv_sec, nsec: u32::try_from(time.tv_nsec).unwrap_or(0) }
}

fn key(time: Timestamp) -> (i64, u32) {
    (time.sec, time.nsec)
}

/// Whether a read at `now` sets the access time, by the rules of mount(8) and `relatime_need_update` in fs/inode.c.
pub(crate) fn access_counts(
    policy: Atime,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    now: Timestamp,
) -> bool {
    match policy {
        Atime::Never => false,
        Atime::Strict => true,
        Atime::Relative => {
            key(mtime) >= key(atime) || key(ctime) >= key(atime) || now.sec.saturating_sub(atime.sec) >= DAY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_counts_once_after_a_change_and_once_a_day() {
        let at = |sec| Timestamp { sec, nsec: 5 };
        let counts = |atime, changed, now| {
            access_counts(Atime::Relative, at(atime), at(changed), at(changed), at(now))
        };
        assert!(counts(100, 100, 101), "the first read after a change");
        assert!(counts(99, 100, 101));
        assert!(!counts(101, 100, 102), "a second one");
        assert!(counts(101, 100, 101 + DAY));
        assert!(!access_counts(Atime::Never, at(1), at(2), at(2), at(3)));
        assert!(access_counts(Atime::Strict, at(3), at(2), at(2), at(3)));
    }
}
