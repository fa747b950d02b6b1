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

/// From now on what is large is memory of its own, which goes back to the system as soon as it is freed. By default the
/// allocator counts each such block that is freed as a reason to keep the next one of its size (mallopt(3),
/// `M_MMAP_THRESHOLD`): what a table has outgrown would stay, as much as half of the table. Does nothing where the C library
/// is not glibc.
pub fn give_large_back() {
    #[cfg(target_env = "gnu")]
    {
        /// What the allocator begins with, in bytes.
        const LARGE: libc::c_int = 128 << 10;
        /// Free memory at the end of the heap that is kept for what comes next, in bytes.
        const KEPT: libc::c_int = 1 << 20;
        for (what, bytes) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, KEPT)] {
            // SAFETY: mallopt takes no pointer, and locks the allocator as malloc does.
            #[allow(unsafe_code)]
            let done = unsafe { libc::mallopt(what, bytes) };
            if done == 0 {
                log::debug!("the allocator does not take {bytes} for option {what}");
            }
        }
    }
}
