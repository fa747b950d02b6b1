//! The memory of the process.

/// Gives the memory that the allocator holds and nobody uses back to the system (malloc_trim(3)). It walks all of the
/// allocator's memory, so it is for moments at which much has been freed. Does nothing where the C library is not glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes no pointer, locks each arena as malloc does, and touches only pages of memory that is
        // free.
        #[allow(unsafe_code)]
        let _whether_there_was_any = unsafe { libc::malloc_trim(0) };
    }
}
