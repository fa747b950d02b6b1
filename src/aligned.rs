//! Memory that starts on a page boundary, as `O_DIRECT` asks for.

/// The size of a page, in bytes: what the kernel's page cache and pipes count in.
pub(crate) const PAGE: usize = 4096;

/// A buffer, `lead` bytes of which lie before a page boundary and `len` after it.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl AlignedBuffer {
    /// Memory that is touched only when it is used.
    ///
    /// # Errors
    /// Where there is none: asked for first, since memory that is simply taken ends the process when it is not to be had.
    pub(crate) fn new(lead: usize, len: usize) -> std::io::Result<Self> {
        debug_assert!(lead <= PAGE);
        let len_in_all = len + 2 * PAGE;
        Vec::<u8>::new().try_reserve_exact(len_in_all).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let memory = vec![0u8; len_in_all];
        let boundary = memory.as_ptr().addr().wrapping_neg() % PAGE;
        let boundary = if boundary < lead { boundary + PAGE } else { boundary };
        Ok(Self { memory, start: boundary - lead, end: boundary + len })
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
