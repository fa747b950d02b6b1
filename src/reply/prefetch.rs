//! Gathering what is given to the kernel unasked.

use std::io::IoSliceMut;

use rustix::io::{ReadWriteFlags, preadv2};
use splicefs_core::{ReadPlan, Segment};

use super::{Engine, HEADER};

impl Engine {
    /// Hands the bytes of `plan` to `give`, and counts them when it has taken them. Nothing happens where they are not to be had at once:
    /// not in the source's page cache, on a file system that does not say so (`RWF_NOWAIT`), or not to be cached at all.
    ///
    /// # Errors
    /// Those of `give`.
    pub fn prefetch(
        &mut self,
        plan: &ReadPlan<'_>,
        give: impl FnOnce(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let Some(place) = self.buffer.bytes().get_mut(HEADER..HEADER + plan.len()) else { return Ok(()) };
        if plan.is_empty() || plan.must_copy().is_some() || gather(plan, place).is_none() {
            return Ok(());
        }
        give(place)?;
        self.counters.prefetched(plan.len());
        Ok(())
    }
}

/// Fills `place` with all of `plan`, or gives up.
fn gather(plan: &ReadPlan<'_>, mut place: &mut [u8]) -> Option<()> {
    for segment in plan.segments() {
        let (here, rest) = place.split_at_mut(segment.len());
        match segment {
            Segment::Zeros(_) => here.fill(0),
            Segment::Bytes(bytes) => here.copy_from_slice(bytes),
            Segment::File(extent) => {
                let wanted = here.len();
                let parts = &mut [IoSliceMut::new(here)];
                let got = preadv2(extent.fd, parts, extent.offset, ReadWriteFlags::NOWAIT).ok()?;
                if got < wanted {
                    return None;
                }
            }
        }
        place = rest;
    }
    Some(())
}
