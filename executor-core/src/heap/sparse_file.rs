//! A sparse anonymous file. Pieces of it are allocated, used for a while and given back. A
//! `Window` maps a part of it, to access its words.
//!
//! A piece that was given back becomes a hole in the file and reads as zeros, until its place is
//! allocated again. This module does not track which places are in use; its user does. The file is
//! sealed against shrinking, so no access through a window can hit the end of the file.

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

use crate::os::{asked::Asked, available_memory::has_memory_for, file, socket::retry};

const PAGE: u64 = 4096;

/// Highest offset of a piece. It is far below the maximum size of a file, so that sums do not
/// overflow.
const END: u64 = 1 << 60;

/// Maximum length of a window on a file that has less memory than that length. All pages of a
/// window are mapped and filled at once, and its length comes from memory that other processes
/// write to. So a longer window must not be longer than the memory that the file already has.
///
/// The longest ring of a queue is as long. A lower value would refuse new rings where the system
/// has no `fallocate`, and memory comes with the first write.
pub(crate) const WINDOW_MAX: u64 = 4 << 20;

/// A sparse file. See the module's documentation.
#[derive(Debug)]
pub(crate) struct SparseFile {
    file: Arc<OwnedFd>,
}

impl SparseFile {
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        let file = file::anonymous(name).asked("shared memory (memfd_create)")?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)
            .asked("shared memory (fcntl)")?;
        Ok(SparseFile { file: Arc::new(file) })
    }

    /// Opens a file that another process has created.
    pub(crate) fn open(file: Arc<OwnedFd>) -> io::Result<Self> {
        // Files that are not in memory have no seals, so the call fails for them.
        if !fcntl_get_seals(&*file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its memory could shrink"));
        }
        Ok(SparseFile { file })
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Returns how much of the file a piece of `len` bytes takes.
    pub(crate) fn whole(len: u64) -> u64 {
        len.min(END).next_multiple_of(PAGE)
    }

    /// Allocates a piece and its memory, zeroed if it was a hole. A later access cannot fail for
    /// lack of memory.
    pub(crate) fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        check(at, len)?;
        file::allocate(&self.file, at, len)
    }

    /// Gives the memory of a piece back. The piece then reads as zeros.
    ///
    /// Returns whether it succeeded. It fails if the system has no memory to record the hole.
    pub(crate) fn punch(&self, at: u64, len: u64) -> bool {
        check(at, len).is_ok() && len > 0 && file::punch(&self.file, at, Self::whole(len)).is_ok()
    }

    /// Writes a piece that no other process reads yet. If `new` is `true`, it first checks whether
    /// the system has memory available for it.
    pub(crate) fn write(&self, at: u64, bytes: &[u8], new: bool) -> io::Result<()> {
        check(at, bytes.len() as u64)?;
        if new && !has_memory_for(bytes.len() as u64) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match file::write_at(&self.file, bytes, at) {
            // The process's limit for the size of files applies to a write by system call even
            // where the file is long enough already. It does not apply to a write through a
            // mapping.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                self.write_mapped(at, bytes, error)
            }
            other => other,
        }
    }

    /// Writes a piece as [`write`](Self::write) does, through windows. A piece that is not within
    /// the file gives the error `too_large`.
    fn write_mapped(&self, at: u64, bytes: &[u8], too_large: io::Error) -> io::Result<()> {
        let whole = Self::whole(bytes.len() as u64);
        if !at.is_multiple_of(PAGE)
            || at + whole
                > fstat(&self.file).asked("shared memory (fstat)")?.st_size.cast_unsigned()
        {
            return Err(too_large);
        }
        // Allocate the memory first. A lack of memory is an error here, but a signal during the
        // copy.
        self.allocate(at, whole)?;
        // Windows of at most `WINDOW_MAX`, so that no long mapping is needed.
        for (at, bytes) in
            (at..).step_by(WINDOW_MAX as usize).zip(bytes.chunks(WINDOW_MAX as usize))
        {
            self.window(at, Self::whole(bytes.len() as u64))?.write(0, bytes);
        }
        Ok(())
    }

    /// Whether the file has at least `len` bytes of memory. Lengths up to `WINDOW_MAX` are not
    /// checked.
    pub(crate) fn may_hold(&self, len: u64) -> io::Result<bool> {
        Ok(len <= WINDOW_MAX || len <= memory_of(&fstat(&self.file)?))
    }

    /// Reads a piece and appends it to `out`.
    pub(crate) fn read(&self, mut at: u64, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "it is not within its memory");
        check(at, len)?;
        let stat = fstat(&self.file).asked("shared memory (fstat)")?;
        // A peer can make a file long at no cost, so the length is not enough. The piece must be no
        // larger than the memory that the file has. Then the copy at most doubles the memory in
        // use.
        if at + len > stat.st_size as u64 || len > memory_of(&stat) {
            return Err(garbled());
        }
        let len = usize::try_from(len).map_err(|_| garbled())?;
        out.try_reserve_exact(len)?;
        let end = out.len() + len;
        while out.len() < end {
            // A read may return bytes beyond the piece. It only reads into spare capacity, and
            // `truncate` below removes them.
            match retry(|| pread(&self.file, spare_capacity(out), at))? {
                0 => return Err(garbled()),
                n => at += n as u64,
            }
        }
        out.truncate(end);
        Ok(())
    }

    /// Maps a piece that was allocated.
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

/// Returns how much memory a file has, regardless of its length.
fn memory_of(stat: &Stat) -> u64 {
    (stat.st_blocks as u64).saturating_mul(512)
}

fn check(at: u64, len: u64) -> io::Result<()> {
    match at <= END && len <= END {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not within its memory")),
    }
}

/// A mapped part of the file, as words and as the bytes that lie in them.
#[derive(Debug)]
pub(crate) struct Window {
    at: NonNull<u64>,
    words: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Its content is accessed as atomics, or
// as bytes that are only copied.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn map(file: impl AsFd, at: u64, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Map all pages now, because a page fault for each page costs more.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: this creates a new mapping at an address that the kernel chooses.
        let at = unsafe { mmap(ptr::null_mut(), len, protection, flags, file, at)? };
        let at =
            NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Window { at, words: len / 8 })
    }

    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Returns the word at `index`.
    ///
    /// # Panics
    /// If the word is beyond the window. This is a mistake of the caller: nothing that another
    /// process writes can cause it.
    #[cfg_attr(
        all(test, any(executor_loom, executor_shuttle)),
        expect(dead_code, reason = "models have their own")
    )]
    #[inline]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "beyond the window");
        // SAFETY: the word is an atomic, within the mapping, and aligned. The file does not shrink.
        unsafe { self.at.cast::<AtomicU64>().add(index).as_ref() }
    }

    /// Copies `bytes` to the window, starting at word `index`.
    ///
    /// # Panics
    /// If the bytes reach beyond the window, as for [`word`](Self::word).
    #[inline]
    pub(crate) fn write(&self, index: usize, bytes: &[u8]) {
        assert!(
            index <= self.words && bytes.len() <= (self.words - index) * 8,
            "beyond the window"
        );
        // SAFETY: the bytes are within the mapping. There is no reference to them, and by the
        // protocol nobody reads them before they are published. A hostile process that garbles the
        // places can lead two threads of this process to the same bytes. Formally that is a data
        // race, of two copies through pointers, and no byte is looked at during the copies. A check
        // here could not detect it. Copying by atomic words would not help, because the same bytes
        // may be another thread's text.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.at.add(index).cast().as_ptr(),
                bytes.len(),
            )
        }
    }

    /// Appends `len` bytes, starting at word `index`, to `out`.
    ///
    /// # Panics
    /// If the bytes are beyond the window, as for [`word`](Self::word).
    #[inline]
    pub(crate) fn read(&self, index: usize, len: usize, out: &mut Vec<u8>) {
        assert!(index <= self.words && len <= (self.words - index) * 8, "beyond the window");
        out.reserve(len);
        // SAFETY: the bytes are within the mapping, and `out` has room for them after its end,
        // which is not in the mapping. No process that follows the protocol writes to them
        // meanwhile. If a process does not follow it, even a thread of this process may write to
        // them, led here by garbled places (see `write`). Then the copy contains arbitrary bytes,
        // and they are only looked at in `out`.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            ptr::copy_nonoverlapping(
                self.at.add(index).cast::<u8>().as_ptr().cast_const(),
                end,
                len,
            );
            out.set_len(out.len() + len);
        }
    }
}

impl Default for Window {
    /// Returns a window of no length.
    fn default() -> Self {
        Window { at: NonNull::dangling(), words: 0 }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.words > 0 {
            // SAFETY: `map` mapped it with this length, and no reference outlives `self`.
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
        let file = SparseFile::create("x").unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        file.write(8192, &bytes, true).unwrap();
        let mut out = vec![9];
        file.read(8192, 100_000, &mut out).unwrap();
        assert!(out[0] == 9 && out[1..] == bytes);
        let used = || fstat(file.descriptor()).unwrap().st_blocks * 512;
        assert!(used() >= 100_000);
        assert!(file.punch(8192, 100_000));
        assert_eq!(used(), 0);
        assert!(file.punch(8192, 100_000), "again");
        assert!(!file.punch(u64::MAX, 1));
        out.clear();
        assert!(file.read(8192, 10, &mut out).is_err(), "as many bytes are not in the whole file");
        file.write(1 << 20, b"x", true).unwrap();
        file.read(8192, 10, &mut out).unwrap();
        assert_eq!(out, [0; 10]);
    }

    #[test]
    fn a_length_that_another_process_wrote_is_not_believed_as_far_as_the_file_goes() {
        let file = SparseFile::create("x").unwrap();
        file::set_len(file.descriptor(), 1 << 50).unwrap();
        assert!(file.window(0, 300 << 20).is_err());
        assert!(file.window(0, WINDOW_MAX + PAGE).is_err());
        assert_eq!(file.window(0, PAGE).unwrap().words(), 512);
        let mut out = Vec::new();
        let error = file.read(0, 1 << 49, &mut out).unwrap_err();
        assert_eq!((error.kind(), out.capacity()), (io::ErrorKind::InvalidData, 0));
        assert_eq!(fstat(file.descriptor()).unwrap().st_blocks * 512, 4096, "the one page");
    }

    #[test]
    fn a_window_may_be_as_long_as_its_file_has_memory() {
        let file = SparseFile::create("x").unwrap();
        file.allocate(PAGE, 4 * WINDOW_MAX).unwrap();
        let window = file.window(PAGE, 4 * WINDOW_MAX).unwrap();
        assert_eq!(window.words() as u64, WINDOW_MAX / 2);
    }

    #[test]
    fn a_long_piece_is_written_through_windows() {
        let file = SparseFile::create("x").unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        file.allocate(PAGE, SparseFile::whole(bytes.len() as u64)).unwrap();
        file.write_mapped(PAGE, &bytes, io::ErrorKind::FileTooLarge.into()).unwrap();
        let mut out = Vec::new();
        file.read(PAGE, bytes.len() as u64, &mut out).unwrap();
        assert!(out == bytes);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let file = SparseFile::create("x").unwrap();
        assert!(file.window(0, 4096).is_err());
        assert!(file.read(0, 1, &mut Vec::new()).is_err());
        assert!(file.read(u64::MAX, u64::MAX, &mut Vec::new()).is_err());
        file.allocate(4096, 8192).unwrap();
        for (at, len) in [
            (4096, 0),
            (4096, 12_288),
            (4097, 4096),
            (4096, 100),
            (u64::MAX, 4096),
            (4096, u64::MAX),
        ] {
            assert!(file.window(at, len).is_err(), "{at} {len}");
        }
        let one = file.window(4096, 8192).unwrap();
        let other =
            SparseFile::open(Arc::clone(file.descriptor())).unwrap().window(4096, 4096).unwrap();
        one.word(3).store(7, Ordering::Relaxed);
        assert_eq!((other.word(3).load(Ordering::Relaxed), one.words()), (7, 1024));
        one.write(10, b"hello");
        let mut out = Vec::new();
        other.read(10, 5, &mut out);
        assert_eq!(out, b"hello");
        assert!(SparseFile::open(Arc::new(tempfile::tempfile().unwrap().into())).is_err());
    }
}
