//! One page of shared memory: anonymous (a memfd, so no name that could be left behind), sealed against shrinking and
//! growing (so that no access can hit a missing page), mapped by both sides.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{SealFlags, fcntl_add_seals, fcntl_get_seals},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::file;

/// Types for which every bit pattern is a value and all of whose fields are atomics, so that another process may
/// write at any moment.
///
/// # Safety
/// The type is `#[repr(C)]`, consists of atomic integers (and arrays of them) only, needs no drop, and an all-zero
/// memory is a value of it.
pub(crate) unsafe trait SharedLayout: Sync {}

/// A `T` in memory that other processes see.
pub(crate) struct Shared<T: SharedLayout> {
    at: NonNull<T>,
}

// SAFETY: `T` is all atomics (`SharedLayout`), the mapping belongs to the process and not to a thread.
unsafe impl<T: SharedLayout> Send for Shared<T> {}
// SAFETY: as above; shared access goes through atomics only.
unsafe impl<T: SharedLayout> Sync for Shared<T> {}

impl<T: SharedLayout> Shared<T> {
    /// New, zeroed memory, and the descriptor by which another process maps it.
    pub(crate) fn create(name: &str) -> io::Result<(Self, OwnedFd)> {
        let fd = file::anonymous(name)?;
        file::set_len(&fd, size_of::<T>() as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Maps what another process created. Refuses a descriptor that is too small or could still shrink.
    pub(crate) fn open(fd: impl AsFd) -> io::Result<Self> {
        let size = rustix::fs::fstat(&fd)?.st_size;
        if (size as u64) < size_of::<T>() as u64 || !fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the shared page of this protocol"));
        }
        Self::map(fd)
    }

    fn map(fd: impl AsFd) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Shared { at })
    }
}

#[cfg(any(test, fuzzing))]
impl<T: SharedLayout> Shared<T> {
    /// The same memory as a broken process sees it.
    pub(crate) fn words(&self) -> &[std::sync::atomic::AtomicU64] {
        const { assert!(align_of::<T>() >= 8) };
        // SAFETY: within the mapping, aligned, and by `SharedLayout` any content is a value to those who see a `T`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), size_of::<T>() / 8) }
    }
}

impl<T: SharedLayout> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is `size_of::<T>()` bytes, page aligned, lives until drop, cannot shrink (sealed), and
        // by `SharedLayout` its every content is a `T` whose fields are atomics, so foreign writes are no data race.
        unsafe { self.at.as_ref() }
    }
}

impl<T: SharedLayout> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; no reference outlives `self`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), size_of::<T>()) };
    }
}
