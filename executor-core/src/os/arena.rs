//! Large pieces of shared memory, many of them in one anonymous file.
//!
//! ```text
//!  one memfd, sealed at its full length, empty until written
//!  ┌────────┬───────────┬───────────┬── … ──┬────────────┐
//!  │ header │ segment 0 │ segment 1 │       │ segment 63 │    each has room for 2 GiB, and takes the pages
//!  └────────┴───────────┴───────────┴── … ──┴────────────┘    that were written, until they are punched out
//!  0        4 GiB       8 GiB
//! ```
//!
//! One descriptor instead of one for each segment: it travels once, when the worker starts, so that nothing can fail
//! later for want of descriptors, and no message says which memory belongs to which number. The length is sealed far
//! beyond what is ever used: no access to a mapped segment can hit the end of the file, whatever the other side does.
//! Pages are given back by punching a hole, which works while others have them mapped: they see zeros.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, fstat, open},
    mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mremap, munmap},
};

use super::{file, room, signals};

/// Segments of an arena: a bit each in one word.
pub(crate) const SEGMENTS: usize = 64;

/// The longest segment. What is longer goes in parts.
pub(crate) const SEGMENT_BYTES_MAX: usize = 2 << 30;

const STRIDE: u64 = 4 << 30;
const LENGTH: u64 = STRIDE * (SEGMENTS as u64 + 1);
const PAGE_BYTES: usize = 4096;

/// From here on, fresh memory is asked for in huge pages: 64 MiB are then filled at 6 GB/s instead of 1.5, since most of
/// the time goes into faults. Below, the allocator hands out memory that was used before.
const HUGE_FROM: usize = 4 << 20;

/// From here on, it is asked first whether there is that much memory: the question takes 30 µs, to fill it some milliseconds.
const ASKED_FROM: usize = 64 << 20;

/// An anonymous file with room for segments.
#[derive(Debug)]
pub(crate) struct Arena {
    file: OwnedFd,
    /// Which file it was: a task that closes what it does not own may have put another one in its place.
    inode: (u64, u64),
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Arena {
    /// A new, empty one.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        // It belongs to whoever this process is now, and nobody else may change its mode.
        signals::as_one_user(|_| {
            let file = file::anonymous(name)?;
            file::set_len(&file, LENGTH)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            // Nobody else opens it again for writing by way of `/proc`, at least not by mistake.
            fchmod(&file, Mode::RUSR)?;
            Self::open(file)
        })
    }

    /// The one behind a descriptor that came from the parent.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let inode = inode(&file)?;
        Ok(Arena { file, inode })
    }

    /// A descriptor that allows reading only: nobody who has it can get a writable mapping from it. Another user than the one who has
    /// made it does not get it.
    pub(crate) fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Maps the first bytes of a segment.
    pub(crate) fn map(&self, number: u8, len: usize, access: Access) -> io::Result<Mapping> {
        assert!(usize::from(number) < SEGMENTS && len <= SEGMENT_BYTES_MAX, "a segment that there is not");
        if inode(&self.file)? != self.inode {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the descriptor was closed by somebody else",
            ));
        }
        Mapping::new(&self.file, (u64::from(number) + 1) * STRIDE, len, access)
    }

    /// Gives the memory of a segment back to the system. Whoever has it mapped sees zeros.
    pub(crate) fn punch(&self, number: u8) -> io::Result<()> {
        file::punch(&self.file, (u64::from(number) + 1) * STRIDE, STRIDE)
    }

    /// Bytes of memory that the whole file takes now.
    pub(crate) fn bytes(&self) -> u64 {
        fstat(&self.file).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Device and number of the file behind a descriptor.
pub(crate) fn inode(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Some pages of shared memory, mapped until this is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access to its bytes is what callers argue for.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &OwnedFd, offset: u64, len: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let len = len.max(1).next_multiple_of(PAGE_BYTES);
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing.
        let at = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset)? };
        Ok(Mapping { at: NonNull::new(at.cast()).ok_or_else(at_zero)?, len })
    }

    /// Makes it longer; it may move. Pages that were written stay where they are.
    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        let len = len.next_multiple_of(PAGE_BYTES);
        if len <= self.len {
            return Ok(());
        }
        // SAFETY: the whole of a mapping that is ours; `&mut self` says that nobody borrows from it.
        let at = unsafe { mremap(self.at.as_ptr().cast(), self.len, len, MremapFlags::MAYMOVE)? };
        self.at = NonNull::new(at.cast()).ok_or_else(at_zero)?;
        self.len = len;
        Ok(())
    }

    /// Takes memory for these bytes now: in one go it costs less than page by page, and that there is none is an error
    /// here and a signal later. What an old kernel does not know is left to the page faults.
    pub(crate) fn populate(&mut self, from: usize, to: usize) -> io::Result<()> {
        let from = from / PAGE_BYTES * PAGE_BYTES;
        let to = to.next_multiple_of(PAGE_BYTES).min(self.len);
        if from >= to {
            return Ok(());
        }
        // SAFETY: within the mapping; populating changes no byte.
        match unsafe { madvise(self.at.as_ptr().add(from).cast(), to - from, Advice::LinuxPopulateWrite) } {
            Err(error @ (rustix::io::Errno::NOMEM | rustix::io::Errno::FAULT | rustix::io::Errno::NOSPC)) => {
                Err(error.into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn at(&self) -> NonNull<u8> {
        self.at
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, of this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

fn at_zero() -> io::Error {
    io::Error::other("mapped at address zero")
}

/// A vector with room for exactly this much, ready to be filled from end to end.
pub(crate) fn vec_to_fill(len: usize) -> io::Result<Vec<u8>> {
    let mut vec: Vec<u8> = Vec::new();
    // An allocation of any length is granted, and whoever fills it is killed.
    if len >= ASKED_FROM && !room::has_room_for(len as u64) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    vec.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if len >= HUGE_FROM {
        let spare: &mut [MaybeUninit<u8>] = vec.spare_capacity_mut();
        let start = (spare.as_mut_ptr() as usize).next_multiple_of(PAGE_BYTES) - spare.as_ptr() as usize;
        let len = (spare.len() - start) / PAGE_BYTES * PAGE_BYTES;
        // SAFETY: whole pages within memory that is ours and unused; the advice changes no byte, and that it is
        // refused (a kernel without huge pages) changes nothing.
        let _ = unsafe { madvise(spare.as_mut_ptr().add(start).cast(), len, Advice::LinuxHugepage) };
    }
    Ok(vec)
}

/// A copy of `bytes`, as `to_vec`, and faster for large ones.
pub(crate) fn copy(bytes: &[u8]) -> Vec<u8> {
    match vec_to_fill(bytes.len()) {
        Ok(mut vec) => {
            vec.extend_from_slice(bytes);
            vec
        }
        // Fails in the way in which std's fails.
        Err(_) => bytes.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_was_written_and_goes_back_by_punching() {
        let arena = Arena::create("test").unwrap();
        assert_eq!(arena.bytes(), 0);
        let mut mapping = arena.map(63, 10, Access::Write).unwrap();
        mapping.grow(1 << 20).unwrap();
        mapping.populate(0, 1 << 20).unwrap();
        assert_eq!(arena.bytes(), 1 << 20);
        // SAFETY: one byte within the mapping, which nobody else uses.
        unsafe { mapping.at().as_ptr().add(5).write(7) };
        let reader = Arena::open(arena.read_only().unwrap()).unwrap();
        let view = reader.map(63, 10, Access::Read).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { view.at().as_ptr().add(5).read() }, 7);
        assert!(reader.map(63, 10, Access::Write).is_err(), "a reader cannot write");
        assert!(reader.punch(63).is_err(), "nor punch");
        arena.punch(63).unwrap();
        assert_eq!(arena.bytes(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { view.at().as_ptr().add(5).read_volatile() }, 0, "no signal, zeros");
    }

    #[test]
    fn copies_of_all_sizes_are_whole() {
        for len in [0, 1, 5000, HUGE_FROM - 1, HUGE_FROM + 12345] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let copied = copy(&bytes);
            assert_eq!(copied.capacity(), len);
            assert!(copied == bytes, "{len}");
        }
    }
}
