//! Bytes in an anonymous file of their own. One process writes them until they are sealed; after
//! that, any process reads them.
//!
//! The kernel keeps the seal. It can only be set while no process has a writable mapping. From then
//! on it forbids writable mappings, writing, and any change of the length, and it cannot be
//! removed. So a process that has checked the seal may borrow from the bytes, wherever they came
//! from.

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

use super::{asked::Asked, file, fork::Creator, socket::retry};

/// What a sealed file forbids: writing, shrinking and growing.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// How long memory that is to be sealed may still be in use elsewhere.
///
/// Another thread may start a program by `fork`, and the copy has the mapping until its `exec`. Or
/// the kernel may be moving pages; it waits for these itself, but only for about 150 ms. With a
/// lower value, bytes are refused on a busy machine because of this. With a higher value, the error
/// for a copy that keeps the mapping comes later.
const FREE_AFTER: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_micros(100);

/// Bytes that can be sealed. See the module's documentation.
#[derive(Debug)]
pub(crate) struct SealedBytes {
    descriptor: Arc<OwnedFd>,
    /// Dangling if `len` is 0.
    at: NonNull<u8>,
    len: usize,
    state: Mutex<State>,
    /// `true` only if the bytes are sealed. It is for a fork, where `state` may be locked forever.
    known_sealed: AtomicBool,
    creator: Creator,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Writable,
    /// No longer writable in this process. They may still be writable elsewhere.
    ReadOnly,
    Sealed,
}

// SAFETY: a mapping belongs to the process, not to a thread, and writing takes `&mut self`.
unsafe impl Send for SealedBytes {}
// SAFETY: as above.
unsafe impl Sync for SealedBytes {}

impl SealedBytes {
    /// Creates `len` writable zeros. Memory is allocated as they are written.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let descriptor = Arc::new(create(len)?);
        Self::map(descriptor, len, State::Writable)
    }

    /// Copies `bytes`. It uses `write`, which fills new pages in half the time that it takes
    /// through a mapping.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let descriptor = Arc::new(create(bytes.len())?);
        file::write_at(&*descriptor, bytes, 0)?;
        Self::map(descriptor, bytes.len(), State::Writable)
    }

    /// Opens bytes that another process has sealed. Refuses any other file that the process may
    /// have sent.
    pub(crate) fn open(descriptor: Arc<OwnedFd>) -> io::Result<Self> {
        let len = sealed_len(&descriptor)?;
        Self::map(descriptor, len, State::Sealed)
    }

    fn map(descriptor: Arc<OwnedFd>, len: usize, state: State) -> io::Result<Self> {
        let at = map(&descriptor, len, state)?;
        let known_sealed = AtomicBool::new(state == State::Sealed);
        let (state, creator) = (Mutex::new(state), Creator::here());
        Ok(SealedBytes { descriptor, at, len, state, known_sealed, creator })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Ends writing, here and in every process. It does not disturb concurrent readers.
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

    /// Replaces the writable mapping by a read-only one, atomically: a reader finds the same bytes
    /// at the same address.
    ///
    /// The new mapping is first created elsewhere. If the system refuses something, it does so
    /// there, and the old mapping stays intact. Mapping directly over the old one could remove it
    /// and then fail. Readers would then access a hole, or another thread's memory.
    fn replace(&self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let fresh = map(&self.descriptor, self.len, State::ReadOnly)?;
        // SAFETY: both mappings have this length and belong to `self`. Their bytes are the same, so
        // code that borrows them sees no change.
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
        // SAFETY: the new mapping was not moved, and nothing uses it.
        let _ = unsafe { munmap(fresh.as_ptr().cast(), self.len) };
        // SAFETY: only checks whether the mapping exists.
        match unsafe { msync(self.at.as_ptr().cast(), self.len, MsyncFlags::ASYNC) } {
            // The old mapping is gone, although no case is known in which the kernel does that.
            // Nothing may access it any more, but there are borrowers that will.
            Err(Errno::NOMEM) => std::process::abort(),
            _ => Err(error.into()),
        }
    }

    /// Returns the bytes.
    ///
    /// # Panics
    /// In a fork of the process that created them, unless they are sealed. Otherwise the creator
    /// could write while this process reads.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.creator.is_elsewhere() && !self.known_sealed.load(Ordering::Relaxed) {
            self.check_sealed();
        }
        // SAFETY: the mapping has `len` bytes (or `at` dangles and `len` is 0) and lives as long as
        // `self`. Its memory cannot end early, because shrinking is sealed from the beginning. No
        // process writes to it while it is borrowed. As long as it is writable, only the process
        // that created it has references (checked above), and it writes through `bytes_mut`, which
        // takes `&mut self`. Afterwards no process can write. For references that were borrowed
        // before a fork, the code that forks is responsible.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// In a fork, asks the kernel whether the bytes are sealed, because the parent may have sealed
    /// them after the fork.
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

    /// Returns the bytes for writing, or `None` if they are sealed.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let state = *self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state != State::Writable || self.creator.is_elsewhere() {
            return None;
        }
        // SAFETY: as in `bytes`. The state says that they are writable, and `&mut self` that they
        // are borrowed once. A fork, which shares the memory with its parent, does not get here.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) })
    }
}

impl Drop for SealedBytes {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `map` mapped it with this length, and no reference outlives `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

/// Sealed bytes that are not sent further: a mapping without a descriptor.
#[derive(Debug)]
pub(crate) struct SealedView {
    /// Dangling if `len` is 0.
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: no process can write to the memory, and the mapping belongs to the process, not to a
// thread.
unsafe impl Send for SealedView {}
// SAFETY: as above.
unsafe impl Sync for SealedView {}

impl SealedView {
    /// Opens sealed bytes, as [`SealedBytes::open`] does.
    pub(crate) fn open(descriptor: &OwnedFd) -> io::Result<Self> {
        let len = sealed_len(descriptor)?;
        // The length alone proves nothing. The file's memory shows that the sender has really
        // allocated it.
        if fstat(descriptor)?.st_blocks.cast_unsigned().saturating_mul(512) < len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file that is mostly holes"));
        }
        Ok(SealedView { at: map(descriptor, len, State::Sealed)?, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes (or `at` dangles and `len` is 0) and lives as long as
        // `self`. The file is sealed, so its length is fixed and no process writes to it. A fork
        // has a mapping of its own, of the same bytes.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for SealedView {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `map` mapped it with this length, and no reference outlives `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

/// Creates a sealed file with these bytes. Unlike [`SealedBytes`], it is never mapped here, so the
/// bytes are only copied into the file.
pub(crate) fn sealed_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = create(bytes.len())?;
    file::write_at(&descriptor, bytes, 0)?;
    add_seals(&descriptor)?;
    Ok(descriptor)
}

/// Seals a file, so that it can never be written again.
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

/// Returns the length of a sealed file, which can never change. Fails for any other file.
fn sealed_len(descriptor: &OwnedFd) -> io::Result<usize> {
    // Files that are not in memory have no seals, so the call fails for them.
    if !fcntl_get_seals(descriptor)?.contains(SEALS) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its memory is not sealed against writing",
        ));
    }
    Ok(usize::try_from(fstat(descriptor)?.st_size).map_err(|_| io::ErrorKind::InvalidData)?)
}

fn create(len: usize) -> io::Result<OwnedFd> {
    let descriptor = file::anonymous("executor-bytes").asked("shared memory (memfd_create)")?;
    file::set_len(&descriptor, len as u64).asked("shared memory (ftruncate)")?;
    fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW)
        .asked("shared memory (fcntl)")?;
    Ok(descriptor)
}

fn map(descriptor: &OwnedFd, len: usize, state: State) -> io::Result<NonNull<u8>> {
    if len == 0 {
        return Ok(NonNull::dangling());
    }
    let (protection, flags) = match state {
        State::Writable => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
        // A private mapping has no private copy of a page as long as it is never written. A shared
        // mapping of a file that is open for writing would count as one that could become writable,
        // and the seal would be refused.
        State::ReadOnly | State::Sealed => (ProtFlags::READ, MapFlags::PRIVATE),
    };
    // SAFETY: this creates a new mapping at an address that the kernel chooses.
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
        // Each process has a mapping of its own: one file, many readers.
        drop(bytes);
        assert_eq!(other.bytes()[99_999], 7);
    }

    #[test]
    fn readers_see_the_same_bytes_while_it_is_sealed() {
        for round in 0..200_usize {
            let mut bytes = SealedBytes::zeroed(4096 * (1 + round % 7)).unwrap();
            bytes.bytes_mut().unwrap().fill(9);
            std::thread::scope(|scope| {
                let reader =
                    scope.spawn(|| (0..100).all(|_| bytes.bytes().iter().all(|byte| *byte == 9)));
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
