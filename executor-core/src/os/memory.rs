//! One page of shared memory that two processes map.
//!
//! It is anonymous (a memfd), so no name can be left behind. It is sealed against shrinking and
//! growing, so no access can hit a missing page.

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

/// A type that can lie in shared memory. Every bit pattern is a value of it and all its fields are
/// atomics, so another process may write to it at any moment.
///
/// # Safety
/// The type is `#[repr(C)]`, consists only of atomic integers and arrays of them, needs no drop,
/// and all-zero memory is a value of it.
pub(crate) unsafe trait SharedLayout: Sync {}

/// A `T` in memory that other processes share.
pub(crate) struct Shared<T: SharedLayout> {
    at: NonNull<T>,
}

// SAFETY: `T` consists of atomics (`SharedLayout`), and a mapping belongs to the process, not to a
// thread.
unsafe impl<T: SharedLayout> Send for Shared<T> {}
// SAFETY: as above; all shared access is through atomics.
unsafe impl<T: SharedLayout> Sync for Shared<T> {}

impl<T: SharedLayout> Shared<T> {
    /// Creates zeroed memory. Also returns the descriptor that another process needs to map it.
    pub(crate) fn create(name: &str) -> io::Result<(Self, OwnedFd)> {
        let fd = file::anonymous(name)?;
        file::set_len(&fd, size_of::<T>() as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Maps memory that another process created. Refuses a file that is too small or could still
    /// shrink.
    pub(crate) fn open(fd: impl AsFd) -> io::Result<Self> {
        let size = rustix::fs::fstat(&fd)?.st_size;
        if (size as u64) < size_of::<T>() as u64
            || !fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not the shared page of this protocol",
            ));
        }
        Self::map(fd)
    }

    fn map(fd: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
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
        let at =
            NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Shared { at })
    }
}

#[cfg(any(test, fuzzing))]
impl<T: SharedLayout> Shared<T> {
    /// Returns the memory as plain words, to which a broken process may write anything.
    pub(crate) fn words(&self) -> &[std::sync::atomic::AtomicU64] {
        const { assert!(align_of::<T>() >= 8) };
        // SAFETY: within the mapping and aligned. By `SharedLayout`, any content is a value of `T`
        // for those who access it as a `T`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), size_of::<T>() / 8) }
    }
}

impl<T: SharedLayout> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping has `size_of::<T>()` bytes, is page-aligned, lives until drop, and
        // cannot shrink (sealed). By `SharedLayout`, any content is a `T` whose fields are atomics,
        // so a write by another process is no data race.
        unsafe { self.at.as_ref() }
    }
}

impl<T: SharedLayout> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: `map` mapped it with this size, and no reference outlives `self`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), size_of::<T>()) };
    }
}
