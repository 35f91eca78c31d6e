//! A sparse anonymous file of which pieces are taken, used for a while and given back; and windows through which words of
//! it are seen.
//!
//! What was given back is a hole, and reads as zeros, until its place is given to somebody else; who has which place is for the
//! user of this to say. The file never shrinks (sealed), so that no access to a window can hit its end.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Arc, atomic::AtomicU64},
};

use rustix::{
    buffer::spare_capacity,
    fs::{SealFlags, Stat, fcntl_add_seals, fcntl_get_seals, fstat},
    io::pread,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use crate::os::{asked::Asked, file, room, socket::retry};

const PAGE: u64 = 4096;

/// Beyond it there is no place: far below what a file can have, so that sums do not overflow.
const END: u64 = 1 << 60;

/// The longest window on a file that may have less memory than that. All pages of a window are mapped and filled at once, and its
/// length comes from memory that others write to, so a longer window may show no more than the file has memory already.
const WINDOW_MAX: u64 = 1 << 20;

/// See the module's opening.
#[derive(Debug)]
pub(crate) struct Extents {
    file: Arc<OwnedFd>,
}

impl Extents {
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        let file = file::anonymous(name).asked("shared memory (memfd_create)")?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).asked("shared memory (fcntl)")?;
        Ok(Extents { file: Arc::new(file) })
    }

    /// What another process has made.
    pub(crate) fn open(file: Arc<OwnedFd>) -> io::Result<Self> {
        // Other files than memory have no seals, which is an error here.
        if !fcntl_get_seals(&*file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its memory could shrink"));
        }
        Ok(Extents { file })
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// How much of the file a piece of so many bytes takes.
    pub(crate) fn whole(len: u64) -> u64 {
        len.min(END).next_multiple_of(PAGE)
    }

    /// Makes sure that this piece is there, zeroed, and has its memory: none of it will be missing later.
    pub(crate) fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        check(at, len)?;
        file::allocate(&self.file, at, len)
    }

    /// Gives the memory of a piece back: it reads as zeros then. Whether it does; the system may have no memory to note the hole.
    pub(crate) fn punch(&self, at: u64, len: u64) -> bool {
        check(at, len).is_ok() && len > 0 && file::punch(&self.file, at, Self::whole(len)).is_ok()
    }

    /// Fills a piece that nobody sees yet. If it is `new`, it is asked first whether there is memory for it.
    pub(crate) fn write(&self, at: u64, bytes: &[u8], new: bool) -> io::Result<()> {
        check(at, bytes.len() as u64)?;
        if new && !room::has_room_for(bytes.len() as u64) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match file::write_at(&self.file, bytes, at) {
            // The limit holds for what is written by a system call, also where the file is long enough already.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => self.write_mapped(at, bytes, error),
            other => other,
        }
    }

    /// As [`write`](Self::write), within what the file has; otherwise the error is the caller's.
    fn write_mapped(&self, at: u64, bytes: &[u8], too_large: io::Error) -> io::Result<()> {
        let whole = Self::whole(bytes.len() as u64);
        if !at.is_multiple_of(PAGE)
            || at + whole > fstat(&self.file).asked("shared memory (fstat)")?.st_size.cast_unsigned()
        {
            return Err(too_large);
        }
        // Its memory first: want of it is an error here, and a signal in the copy.
        self.allocate(at, whole)?;
        for (at, bytes) in (at..).step_by(WINDOW_MAX as usize).zip(bytes.chunks(WINDOW_MAX as usize)) {
            self.window(at, Self::whole(bytes.len() as u64))?.write(0, bytes);
        }
        Ok(())
    }

    /// Whether the file has so much memory, unless that is little, which is not asked.
    pub(crate) fn may_hold(&self, len: u64) -> io::Result<bool> {
        Ok(len <= WINDOW_MAX || len <= memory_of(&fstat(&self.file)?))
    }

    /// Appends a piece to a vector.
    pub(crate) fn read(&self, mut at: u64, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "it is not within its memory");
        check(at, len)?;
        let stat = fstat(&self.file).asked("shared memory (fstat)")?;
        // A file can be made long for nothing. What lies in it has memory already, so that as much again is no more than twice.
        if at + len > stat.st_size as u64 || len > memory_of(&stat) {
            return Err(garbled());
        }
        let len = usize::try_from(len).map_err(|_| garbled())?;
        out.try_reserve_exact(len)?;
        let end = out.len() + len;
        while out.len() < end {
            // It may read more than that, into room that is there anyway.
            match retry(|| pread(&self.file, spare_capacity(out), at))? {
                0 => return Err(garbled()),
                n => at += n as u64,
            }
        }
        out.truncate(end);
        Ok(())
    }

    /// Sees a piece that was allocated.
    pub(crate) fn window(&self, at: u64, len: u64) -> io::Result<Window> {
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "it is not within its memory");
        check(at, len)?;
        let stat = fstat(&self.file)?;
        if len == 0
            || len > WINDOW_MAX && len > memory_of(&stat)
            || !len.is_multiple_of(PAGE)
            || !at.is_multiple_of(PAGE)
            || at + len > stat.st_size as u64
        {
            return Err(garbled());
        }
        let len = usize::try_from(len).map_err(|_| garbled())?;
        Window::map(&self.file, at, len)
    }
}

/// What a file has, whatever its length.
fn memory_of(stat: &Stat) -> u64 {
    (stat.st_blocks as u64).saturating_mul(512)
}

fn check(at: u64, len: u64) -> io::Result<()> {
    match at <= END && len <= END {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not within its memory")),
    }
}

/// Words of shared memory, and the bytes that lie in them.
#[derive(Debug)]
pub(crate) struct Window {
    at: NonNull<u64>,
    words: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; its content is atomics, or bytes that are only copied.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn map(file: impl AsFd, at: u64, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // All of it now: a fault for each page costs more.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping where the kernel chooses.
        let at = unsafe { mmap(ptr::null_mut(), len, protection, flags, file, at)? };
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Window { at, words: len / 8 })
    }

    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// # Panics
    /// If it is beyond the window: an error of the caller's, whatever another process writes.
    #[cfg_attr(
        all(test, any(executor_loom, executor_shuttle)),
        expect(dead_code, reason = "models have their own")
    )]
    #[inline]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "beyond the window");
        // SAFETY: within the mapping, aligned, an atomic; and the file does not shrink.
        unsafe { self.at.cast::<AtomicU64>().add(index).as_ref() }
    }

    /// Copies bytes in, from this word on.
    ///
    /// # Panics
    /// As [`word`](Self::word).
    #[inline]
    pub(crate) fn write(&self, index: usize, bytes: &[u8]) {
        assert!(index <= self.words && bytes.len() <= (self.words - index) * 8, "beyond the window");
        // SAFETY: within the mapping. There is no reference to these bytes, and nobody looks at them before they are published.
        // That is the protocol's word. Where a hostile process garbles the places, two threads of this one may be led to the same
        // bytes: formally a race, of two copies by pointer of which no byte is looked at, and not something that a check here
        // could see. Words would be no cure: the same bytes may be another thread's text.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(index).cast().as_ptr(), bytes.len()) }
    }

    /// Appends bytes from this word on to a vector.
    ///
    /// # Panics
    /// As [`word`](Self::word).
    #[inline]
    pub(crate) fn read(&self, index: usize, len: usize, out: &mut Vec<u8>) {
        assert!(index <= self.words && len <= (self.words - index) * 8, "beyond the window");
        out.reserve(len);
        // SAFETY: within the mapping, and `out` has room behind its end, which is no part of the mapping. Nobody writes to them
        // who keeps to the protocol. If somebody does, which may be a thread of this process that garbled places have led here
        // (see `write`), what is copied is any bytes, and it is looked at in `out` only.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            ptr::copy_nonoverlapping(self.at.add(index).cast::<u8>().as_ptr().cast_const(), end, len);
            out.set_len(out.len() + len);
        }
    }
}

impl Default for Window {
    /// Of no length.
    fn default() -> Self {
        Window { at: NonNull::dangling(), words: 0 }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.words > 0 {
            // SAFETY: mapped by `map` with this length; no reference outlives `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.words * 8) };
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn pieces_are_written_read_and_given_back() {
        let extents = Extents::create("x").unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        extents.write(8192, &bytes, true).unwrap();
        let mut out = vec![9];
        extents.read(8192, 100_000, &mut out).unwrap();
        assert!(out[0] == 9 && out[1..] == bytes);
        let used = || fstat(extents.descriptor()).unwrap().st_blocks * 512;
        assert!(used() >= 100_000);
        assert!(extents.punch(8192, 100_000));
        assert_eq!(used(), 0);
        assert!(extents.punch(8192, 100_000), "again");
        assert!(!extents.punch(u64::MAX, 1));
        out.clear();
        assert!(extents.read(8192, 10, &mut out).is_err(), "as many bytes are not in the whole file");
        extents.write(1 << 20, b"x", true).unwrap();
        extents.read(8192, 10, &mut out).unwrap();
        assert_eq!(out, [0; 10]);
    }

    #[test]
    fn a_length_that_another_process_wrote_is_not_believed_as_far_as_the_file_goes() {
        let extents = Extents::create("x").unwrap();
        file::set_len(extents.descriptor(), 1 << 50).unwrap();
        assert!(extents.window(0, 300 << 20).is_err());
        assert!(extents.window(0, WINDOW_MAX + PAGE).is_err());
        assert_eq!(extents.window(0, PAGE).unwrap().words(), 512);
        let mut out = Vec::new();
        let error = extents.read(0, 1 << 49, &mut out).unwrap_err();
        assert_eq!((error.kind(), out.capacity()), (io::ErrorKind::InvalidData, 0));
        assert_eq!(fstat(extents.descriptor()).unwrap().st_blocks * 512, 4096, "the one page");
    }

    #[test]
    fn a_window_may_be_as_long_as_its_file_has_memory() {
        let extents = Extents::create("x").unwrap();
        extents.allocate(PAGE, 4 * WINDOW_MAX).unwrap();
        let window = extents.window(PAGE, 4 * WINDOW_MAX).unwrap();
        assert_eq!(window.words() as u64, WINDOW_MAX / 2);
    }

    #[test]
    fn a_long_piece_is_written_through_windows() {
        let extents = Extents::create("x").unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        extents.allocate(PAGE, Extents::whole(bytes.len() as u64)).unwrap();
        extents.write_mapped(PAGE, &bytes, io::ErrorKind::FileTooLarge.into()).unwrap();
        let mut out = Vec::new();
        extents.read(PAGE, bytes.len() as u64, &mut out).unwrap();
        assert!(out == bytes);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let extents = Extents::create("x").unwrap();
        assert!(extents.window(0, 4096).is_err());
        assert!(extents.read(0, 1, &mut Vec::new()).is_err());
        assert!(extents.read(u64::MAX, u64::MAX, &mut Vec::new()).is_err());
        extents.allocate(4096, 8192).unwrap();
        for (at, len) in
            [(4096, 0), (4096, 12_288), (4097, 4096), (4096, 100), (u64::MAX, 4096), (4096, u64::MAX)]
        {
            assert!(extents.window(at, len).is_err(), "{at} {len}");
        }
        let one = extents.window(4096, 8192).unwrap();
        let other = Extents::open(Arc::clone(extents.descriptor())).unwrap().window(4096, 4096).unwrap();
        one.word(3).store(7, Ordering::Relaxed);
        assert_eq!((other.word(3).load(Ordering::Relaxed), one.words()), (7, 1024));
        one.write(10, b"hello");
        let mut out = Vec::new();
        other.read(10, 5, &mut out);
        assert_eq!(out, b"hello");
        assert!(Extents::open(Arc::new(tempfile::tempfile().unwrap().into())).is_err());
    }
}
