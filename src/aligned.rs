//! Memory that starts on a page boundary, as `O_DIRECT` asks for.

use memmap2::MmapMut;

/// The size of a page, in bytes: what the kernel's page cache and pipes count in.
pub(crate) const PAGE: usize = 4096;

/// A buffer, some bytes of which lie before a page boundary and the others after it.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: MmapMut,
    start: usize,
    end: usize,
}

impl AlignedBuffer {
    /// A buffer of `lead` bytes, at most a page, before the boundary and `len` after it. It takes memory when it is used: the
    /// allocator clears what it hands out a second time, and with that takes all of it.
    ///
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn new(lead: usize, len: usize) -> std::io::Result<Self> {
        debug_assert!(lead <= PAGE);
        let memory = MmapMut::map_anon(PAGE + len)?;
        Ok(Self { memory, start: PAGE - lead, end: PAGE + len })
    }

    /// The bytes, those before the boundary first.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_lead_starts_on_a_page() {
        for lead in [0, 16, 80, PAGE] {
            let mut buffer = AlignedBuffer::new(lead, 3 * PAGE).unwrap();
            let bytes = buffer.bytes();
            assert_eq!(bytes.len(), lead + 3 * PAGE);
            assert_eq!(bytes[lead..].as_ptr().addr() % PAGE, 0);
        }
    }
}
