//! The C library's allocator, which Rust programs use unless they choose another one.

/// Gives memory that is free in the allocator back to the system, as far as whole pages are free.
///
/// glibc keeps it otherwise: up to twice the longest block of up to 32 MiB that was ever freed, and
/// everything that lies between blocks in use. It looks at all free blocks, and others that
/// allocate wait meanwhile, so this is for a process that has nothing to do. Other C libraries have
/// no such call.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time by any thread. It takes the allocator's own locks, also
    // in a fork, where glibc has made them free. Memory that others have in use stays as it is.
    unsafe {
        libc::malloc_trim(0);
    }
}
