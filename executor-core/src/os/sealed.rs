//! Bytes in an anonymous file of their own: written by one process until they are sealed, read by any afterwards.
//!
//! The seal is the kernel's. It is given only while no writable mapping exists in any process, allows none from then on,
//! nor writing, nor another length, and cannot be taken off. So whoever has checked it may borrow from the bytes,
//! whoever they came from.

use std::{
    io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat},
    io::Errno,
    mm::{MapFlags, MremapFlags, MsyncFlags, ProtFlags, mmap, mremap_fixed, msync, munmap},
};

use super::{asked::Asked, file, fork::Origin, socket::retry};

/// What a sealed file does not allow.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// How long memory that is to be sealed may still be in use elsewhere: another thread starts a program by `fork`, and the copy has the
/// mapping until its `exec`; or the kernel is moving pages (it waits for these itself, but only for some 150 ms). Shorter: on a busy
/// machine bytes are refused because of it. Longer: the error for a copy that stays comes so late.
const FREE_AFTER: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_micros(100);

/// See the module's opening.
#[derive(Debug)]
pub(crate) struct SealedBytes {
    descriptor: Arc<OwnedFd>,
    /// Dangling if `len` is 0.
    at: NonNull<u8>,
    len: usize,
    state: Mutex<State>,
    /// `true` only if it is sealed. For a fork, where `state` may be locked for ever.
    known_sealed: AtomicBool,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Writable,
    /// Not writable here any more. Whether elsewhere, is not known.
    ReadOnly,
    Sealed,
}

// SAFETY: a mapping belongs to the process, not to a thread; writing takes `&mut self`.
unsafe impl Send for SealedBytes {}
// SAFETY: as above.
unsafe impl Sync for SealedBytes {}

impl SealedBytes {
    /// So many zeros, writable. Memory is taken as they are written.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let descriptor = Arc::new(create(len)?);
        Self::map(descriptor, len, State::Writable)
    }

    /// A copy. By `write`, which fills fresh pages in half the time that it takes through a mapping.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let descriptor = Arc::new(create(bytes.len())?);
        file::write_at(&*descriptor, bytes, 0)?;
        Self::map(descriptor, bytes.len(), State::Writable)
    }

    /// What another process has sealed; refuses whatever else that process may have sent.
    pub(crate) fn open(descriptor: Arc<OwnedFd>) -> io::Result<Self> {
        let len = sealed_len(&descriptor)?;
        Self::map(descriptor, len, State::Sealed)
    }

    fn map(descriptor: Arc<OwnedFd>, len: usize, state: State) -> io::Result<Self> {
        let at = map(&descriptor, len, state)?;
        let known_sealed = AtomicBool::new(state == State::Sealed);
        let (state, origin) = (Mutex::new(state), Origin::here());
        Ok(SealedBytes { descriptor, at, len, state, known_sealed, origin })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Ends writing, here and everywhere. Whoever reads meanwhile notices nothing.
    pub(crate) fn seal(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Writable {
            self.replace()?;
            *state = State::ReadOnly;
        }
        if *state == State::ReadOnly {
            add_seals(&self.descriptor)?;
            *state = State::Sealed;
            self.known_sealed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Puts a read-only mapping in the place of the writable one, at once: a reader finds the same bytes at the same address.
    ///
    /// It is made elsewhere first. What the system may refuse it refuses there, and the old one is still whole; to map in its
    /// place could take that away and then fail, with readers in the hole, or another thread's memory.
    fn replace(&self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let fresh = map(&self.descriptor, self.len, State::ReadOnly)?;
        // SAFETY: both are mappings of this length, and ours; the bytes are the same, so that who borrows them sees no change.
        let moved = unsafe {
            mremap_fixed(
                fresh.as_ptr().cast(),
                self.len,
                self.len,
                MremapFlags::MAYMOVE,
                self.at.as_ptr().cast(),
            )
        };
        let Err(error) = moved else { return Ok(()) };
        // SAFETY: it did not move, and nobody has it.
        let _ = unsafe { munmap(fresh.as_ptr().cast(), self.len) };
        // SAFETY: asks only.
        match unsafe { msync(self.at.as_ptr().cast(), self.len, MsyncFlags::ASYNC) } {
            // The old one is gone all the same, though nothing is known that makes the kernel do that. Nobody may look there
            // again, and there are those who do.
            Err(Errno::NOMEM) => std::process::abort(),
            _ => Err(error.into()),
        }
    }

    /// # Panics
    /// In a fork of the process that made it, unless it is sealed: the other one could write while this one reads.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.origin.forked() && !self.known_sealed.load(Ordering::Relaxed) {
            self.check_sealed();
        }
        // SAFETY: the mapping has `len` bytes (or `at` dangles and `len` is 0) and lives as long as `self`. Its memory
        // cannot end early: shrinking is sealed from the beginning. Nobody writes: while it is writable, only the process that
        // made it has references (checked above), and writes by `bytes_mut`, which takes `&mut self`; afterwards nobody can.
        // What was borrowed before a fork is the promise of whoever forks.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// In a fork: asks the kernel, since the process that it was forked from may have sealed it after the fork.
    #[cold]
    #[track_caller]
    fn check_sealed(&self) {
        let seals = fcntl_get_seals(&*self.descriptor);
        assert!(
            self.len == 0 || seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE)),
            "this process is a fork of the one that made these `SharedBytes`, which can still write to them: \
             `freeze` them before the fork"
        );
        self.known_sealed.store(true, Ordering::Relaxed);
    }

    /// To be written, unless it is sealed.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let state = *self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state != State::Writable || self.origin.forked() {
            return None;
        }
        // SAFETY: as in `bytes`, writable by its state, and borrowed once. In a fork, where the memory is the parent's too,
        // there is none.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) })
    }
}

impl Drop for SealedBytes {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `map` with this length; no reference outlives `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

/// Sealed bytes that go no further: a mapping, and no descriptor.
#[derive(Debug)]
pub(crate) struct SealedView {
    /// Dangling if `len` is 0.
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: nobody can write to the memory, here or elsewhere, and the mapping belongs to the process.
unsafe impl Send for SealedView {}
// SAFETY: as above.
unsafe impl Sync for SealedView {}

impl SealedView {
    /// As [`SealedBytes::open`].
    pub(crate) fn open(descriptor: &OwnedFd) -> io::Result<Self> {
        let len = sealed_len(descriptor)?;
        // A length alone is a claim; memory that is there has been paid for by the other side.
        if fstat(descriptor)?.st_blocks.cast_unsigned().saturating_mul(512) < len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file that is mostly holes"));
        }
        Ok(SealedView { at: map(descriptor, len, State::Sealed)?, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes (or `at` dangles and `len` is 0) and lives as long as `self`. The file is sealed: it
        // keeps its length, and nobody writes to it. A fork has a mapping of its own, of the same bytes.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for SealedView {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `map` with this length; no reference outlives `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

/// A sealed file with these bytes. Unlike a [`SealedBytes`] it is never mapped here: nothing is copied but into the file.
pub(crate) fn sealed_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = create(bytes.len())?;
    file::write_at(&descriptor, bytes, 0)?;
    add_seals(&descriptor)?;
    Ok(descriptor)
}

/// Allows no more writing, for ever.
fn add_seals(descriptor: &OwnedFd) -> io::Result<()> {
    let deadline = Instant::now() + FREE_AFTER;
    loop {
        match retry(|| fcntl_add_seals(descriptor, SEALS | SealFlags::SEAL)) {
            Err(Errno::BUSY) if Instant::now() < deadline => thread::sleep(LOOK),
            Err(Errno::BUSY) => {
                return Err(io::Error::other(
                    "another process has the memory mapped for writing: a fork of this one? (EBUSY)",
                ));
            }
            other => return Ok(other?),
        }
    }
}

/// How long a sealed file is, for ever. An error if it is any other.
fn sealed_len(descriptor: &OwnedFd) -> io::Result<usize> {
    // Other files than these have no seals, which is an error here.
    if !fcntl_get_seals(descriptor)?.contains(SEALS) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its memory is not sealed against writing"));
    }
    Ok(usize::try_from(fstat(descriptor)?.st_size).map_err(|_| io::ErrorKind::InvalidData)?)
}

fn create(len: usize) -> io::Result<OwnedFd> {
    let descriptor = file::anonymous("executor-bytes").asked("shared memory (memfd_create)")?;
    file::set_len(&descriptor, len as u64).asked("shared memory (ftruncate)")?;
    fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW).asked("shared memory (fcntl)")?;
    Ok(descriptor)
}

fn map(descriptor: &OwnedFd, len: usize, state: State) -> io::Result<NonNull<u8>> {
    if len == 0 {
        return Ok(NonNull::dangling());
    }
    let (protection, flags) = match state {
        State::Writable => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
        // Never written, so there is no private copy of any page. A shared mapping of a file that is open for writing
        // counts as one that could become writable, and the seal would be refused.
        State::ReadOnly | State::Sealed => (ProtFlags::READ, MapFlags::PRIVATE),
    };
    // SAFETY: a fresh mapping where the kernel chooses.
    let at = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, descriptor, 0)? };
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tries what others could")]
mod tests {
    use rustix::{
        fs::{MemfdFlags, memfd_create},
        io::pwrite,
    };

    use super::*;

    #[test]
    fn sealing_ends_writing_and_disturbs_no_reader() {
        let mut bytes = SealedBytes::zeroed(100_000).unwrap();
        bytes.bytes_mut().unwrap().fill(7);
        let reading = bytes.bytes();
        assert!(SealedBytes::open(Arc::clone(bytes.descriptor())).is_err(), "not sealed yet");
        bytes.seal().unwrap();
        bytes.seal().unwrap();
        assert!(reading.iter().all(|byte| *byte == 7));
        assert!(bytes.bytes_mut().is_none());
        let descriptor = bytes.descriptor();
        assert_eq!(pwrite(&**descriptor, b"x", 0), Err(Errno::PERM));
        assert!(map(descriptor, 10, State::Writable).is_err());
        let other = SealedBytes::open(Arc::clone(descriptor)).unwrap();
        assert!(other.bytes() == bytes.bytes());
        // A new mapping each: one file, many readers.
        drop(bytes);
        assert_eq!(other.bytes()[99_999], 7);
    }

    #[test]
    fn readers_see_the_same_bytes_while_it_is_sealed() {
        for round in 0..200_usize {
            let mut bytes = SealedBytes::zeroed(4096 * (1 + round % 7)).unwrap();
            bytes.bytes_mut().unwrap().fill(9);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| (0..100).all(|_| bytes.bytes().iter().all(|byte| *byte == 9)));
                bytes.seal().unwrap();
                assert!(reader.join().unwrap());
            });
        }
        SealedBytes::zeroed(0).unwrap().seal().unwrap();
    }

    #[test]
    fn whatever_else_is_sent_is_refused() {
        let unsealed = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(SealedBytes::open(Arc::new(unsealed)).is_err());
        let no_seals = memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        assert!(SealedBytes::open(Arc::new(no_seals)).is_err());
        let (socket, _other) = crate::os::socket::pair().unwrap();
        assert!(SealedBytes::open(Arc::new(socket)).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(SealedBytes::open(Arc::new(file.into())).is_err());
    }

    #[test]
    fn who_can_still_write_keeps_it_from_being_sealed() {
        let bytes = SealedBytes::zeroed(10).unwrap();
        let writer = map(bytes.descriptor(), 10, State::Writable).unwrap();
        assert!(bytes.seal().unwrap_err().to_string().contains("mapped for writing"));
        // SAFETY: mapped above.
        unsafe { munmap(writer.as_ptr().cast(), 10).unwrap() };
        bytes.seal().unwrap();
    }

    #[test]
    fn a_sealed_file_is_read_by_a_view_and_another_is_refused() {
        for len in [0, 1, 100_000] {
            let view = SealedView::open(&sealed_file(&vec![7; len]).unwrap()).unwrap();
            assert_eq!(view.bytes(), vec![7; len], "without the descriptor");
        }
        assert!(SealedView::open(&create(10).unwrap()).is_err());
    }

    #[test]
    fn no_bytes_are_bytes_too() {
        let mut empty = SealedBytes::copy_of(&[]).unwrap();
        assert_eq!(empty.bytes_mut().unwrap(), []);
        empty.seal().unwrap();
        assert_eq!(SealedBytes::open(Arc::clone(empty.descriptor())).unwrap().bytes(), []);
    }
}
