//! The C library's allocator, which Rust programs use unless they choose another one.

/// Gives memory that is free in the allocator back to the system, as far as whole pages are free.
/// For the thread that allocates the most.
///
/// glibc keeps it otherwise: up to twice the longest block of up to 32 MiB that was ever freed, and
/// everything that lies between blocks in use. It looks at all free blocks, and others that
/// allocate wait meanwhile, so this is for a process that has nothing to do. Other C libraries have
/// no such call.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    {
        /// What glibc comes to by itself when a block of the greatest length is freed that is not a
        /// mapping of its own.
        const USUAL: (libc::c_int, libc::c_int) = (32 << 20, 64 << 20);
        /// glibc's default.
        const LOW: libc::c_int = 128 << 10;
        /// Freeing this much makes glibc look at the end of the thread's arena.
        const LOOKED_AT: usize = 96 << 10;
        // `malloc_trim` leaves the end of the arenas of threads as it is. It goes when a block is
        // freed there, if the threshold is low.
        //
        // SAFETY: these may be called at any time by any thread. They take the allocator's own
        // locks, also in a fork, where glibc has made them free. Memory that others have in use
        // stays as it is.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, USUAL.0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LOW);
            drop(std::hint::black_box(Vec::<u8>::with_capacity(LOOKED_AT)));
            libc::malloc_trim(0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, USUAL.1);
        }
    }
}
