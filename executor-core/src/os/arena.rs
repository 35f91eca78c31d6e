//! An arena: one anonymous file with many large pieces of shared memory.
//!
//! ```text
//!  one memfd, sealed at its full length, empty until written
//!  ┌────────┬───────────┬───────────┬── … ──┬────────────┐
//!  │ header │ segment 0 │ segment 1 │       │ segment 63 │  each has room for 2 GiB and uses
//!  └────────┴───────────┴───────────┴── … ──┴────────────┘  the pages written since the last punch
//!  0        4 GiB       8 GiB
//! ```
//!
//! There is one descriptor, not one per segment. It is sent once, when the worker starts. So
//! nothing can fail later for lack of descriptors, and no message has to say which memory belongs
//! to which number.
//!
//! The length is sealed far beyond the part that is ever used. So no access to a mapped segment can
//! hit the end of the file, whatever the other side does. Memory is given back by punching a hole.
//! This works while other processes have the pages mapped: they then see zeros.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, fcntl_get_seals, fstat, open},
    mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mremap, munmap},
};

use super::{available_memory::has_memory_for, file, signals};

/// Number of segments in an arena: one bit each in a word.
pub(crate) const SEGMENTS: usize = 64;

/// Maximum length of a segment. Longer data is sent in parts.
pub(crate) const SEGMENT_BYTES_MAX: usize = 2 << 30;

const STRIDE: u64 = 4 << 30;
const LENGTH: u64 = STRIDE * (SEGMENTS as u64 + 1);
const PAGE_BYTES: usize = 4096;

/// Minimum length of a buffer for which huge pages are requested. A buffer of 64 MiB is then filled
/// at 6 GB/s instead of 1.5 GB/s, because most of the time is spent in page faults. Smaller buffers
/// do not need it: the allocator hands out memory that was used before.
const HUGE_FROM: usize = 4 << 20;

/// Minimum length of a buffer for which the memory available is checked first. The check takes 30
/// µs; filling a buffer of this size takes several milliseconds.
const ASKED_FROM: usize = 64 << 20;

/// An anonymous file with room for segments.
#[derive(Debug)]
pub(crate) struct Arena {
    file: OwnedFd,
    /// The file's identity. A task that closes a descriptor it does not own may have caused another
    /// file to get the same descriptor number.
    inode: (u64, u64),
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Arena {
    /// Creates an empty arena.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        // The file belongs to the user that creates it, and only that user may change its mode. So
        // this thread's user must not change in between.
        signals::as_one_user(|_| {
            let file = file::anonymous(name)?;
            file::set_len(&file, LENGTH)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            // This stops others from opening the file again for writing through `/proc`, at least
            // by mistake.
            fchmod(&file, Mode::RUSR)?;
            Self::open(file)
        })
    }

    /// Makes an arena from a descriptor that came from the parent.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let inode = inode(&file)?;
        Ok(Arena { file, inode })
    }

    /// Makes an arena from a descriptor that came from a process which is not trusted. Refuses a
    /// file that has another length, or that could become shorter.
    pub(crate) fn open_foreign(file: OwnedFd) -> io::Result<Self> {
        let seals = fcntl_get_seals(&file)?;
        if fstat(&file)?.st_size.cast_unsigned() != LENGTH || !seals.contains(SealFlags::SHRINK) {
            let text = "no file for segments of this protocol";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Self::open(file)
    }

    /// Returns a descriptor that only allows reading: no writable mapping can be made from it. The
    /// call fails if this process runs as another user than the one that created the arena.
    pub(crate) fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Maps the first `len` bytes of segment `number`.
    pub(crate) fn map(&self, number: u8, len: usize, access: Access) -> io::Result<Mapping> {
        assert!(
            usize::from(number) < SEGMENTS && len <= SEGMENT_BYTES_MAX,
            "a segment that there is not"
        );
        if inode(&self.file)? != self.inode {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the descriptor was closed by somebody else",
            ));
        }
        Mapping::new(&self.file, (u64::from(number) + 1) * STRIDE, len, access)
    }

    /// Gives the memory of a segment back to the system. Processes that have it mapped then see
    /// zeros.
    pub(crate) fn punch(&self, number: u8) -> io::Result<()> {
        file::punch(&self.file, (u64::from(number) + 1) * STRIDE, STRIDE)
    }

    /// Returns how many bytes of memory the whole file uses now.
    pub(crate) fn bytes(&self) -> u64 {
        fstat(&self.file).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the device and inode number of the file behind a descriptor.
pub(crate) fn inode(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Pages of shared memory. They are unmapped when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Callers argue why their access to its
// bytes is sound.
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
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let at =
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset)? };
        Ok(Mapping { at: NonNull::new(at.cast()).ok_or_else(at_zero)?, len })
    }

    /// Makes the mapping longer. Its address may change. Pages that were written keep their
    /// content.
    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        let len = len.next_multiple_of(PAGE_BYTES);
        if len <= self.len {
            return Ok(());
        }
        // SAFETY: this is the whole of a mapping that `self` owns. `&mut self` ensures that nothing
        // borrows from it.
        let at = unsafe { mremap(self.at.as_ptr().cast(), self.len, len, MremapFlags::MAYMOVE)? };
        self.at = NonNull::new(at.cast()).ok_or_else(at_zero)?;
        self.len = len;
        Ok(())
    }

    /// Allocates memory for these bytes now. This costs less in one call than page by page, and a
    /// lack of memory is an error here but a signal at a later access. On a kernel too old for this
    /// call, the pages are allocated by page faults.
    pub(crate) fn populate(&mut self, from: usize, to: usize) -> io::Result<()> {
        let from = from / PAGE_BYTES * PAGE_BYTES;
        let to = to.next_multiple_of(PAGE_BYTES).min(self.len);
        if from >= to {
            return Ok(());
        }
        // SAFETY: within the mapping. Populating changes no byte.
        match unsafe {
            madvise(self.at.as_ptr().add(from).cast(), to - from, Advice::LinuxPopulateWrite)
        } {
            Err(
                error @ (rustix::io::Errno::NOMEM
                | rustix::io::Errno::FAULT
                | rustix::io::Errno::NOSPC),
            ) => Err(error.into()),
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
        // SAFETY: `self` owns the mapping, which has this length. No reference outlives `self`.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

fn at_zero() -> io::Error {
    io::Error::other("mapped at address zero")
}

/// Returns an empty vector with capacity for exactly `len` bytes, ready to be filled completely.
pub(crate) fn vec_to_fill(len: usize) -> io::Result<Vec<u8>> {
    let mut vec: Vec<u8> = Vec::new();
    // The system grants an allocation of any length, and kills the process when it fills the
    // memory.
    if len >= ASKED_FROM && !has_memory_for(len as u64) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    vec.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if len >= HUGE_FROM {
        // The advice takes whole pages, so leave out the partial ones at both ends.
        let spare: &mut [MaybeUninit<u8>] = vec.spare_capacity_mut();
        let start =
            (spare.as_mut_ptr() as usize).next_multiple_of(PAGE_BYTES) - spare.as_ptr() as usize;
        let len = (spare.len() - start) / PAGE_BYTES * PAGE_BYTES;
        // SAFETY: these are whole pages of memory that the vector owns and does not use yet. The
        // advice changes no byte. If it is refused (by a kernel without huge pages), nothing
        // changes.
        let _ =
            unsafe { madvise(spare.as_mut_ptr().add(start).cast(), len, Advice::LinuxHugepage) };
    }
    Ok(vec)
}

/// Copies `bytes`, as `to_vec` does, and faster for large slices.
pub(crate) fn copy(bytes: &[u8]) -> Vec<u8> {
    match vec_to_fill(bytes.len()) {
        Ok(mut vec) => {
            vec.extend_from_slice(bytes);
            vec
        }
        // This fails in the same way as std.
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
        // SAFETY: one byte within the mapping, which nothing else uses.
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
    fn a_file_that_could_become_shorter_is_no_arena() {
        let arena = Arena::create("test").unwrap();
        assert!(Arena::open_foreign(arena.file).is_ok());
        let (short, open) = (file::anonymous("x").unwrap(), file::anonymous("x").unwrap());
        file::set_len(&short, 1 << 20).unwrap();
        fcntl_add_seals(&short, SealFlags::SHRINK).unwrap();
        file::set_len(&open, LENGTH).unwrap();
        for file in [short, open] {
            let refused = Arena::open_foreign(file).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
        assert!(Arena::open_foreign(super::super::socket::pair().unwrap().0).is_err());
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
