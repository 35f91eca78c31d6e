//! Results that a worker has written to segments, for the pool that reads them.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use super::store::Ledger;
use crate::os::{
    arena::{Access, Arena, Mapping, SEGMENT_BYTES_MAX, SEGMENTS, vec_to_fill},
    fork::Creator,
    memory::Shared,
};

/// A worker's arena, as its pool uses it.
pub(crate) struct Results {
    arena: Arc<Arena>,
    ledger: Shared<Ledger>,
    /// Mappings from which results were copied. They are kept, because mapping again causes page
    /// faults.
    views: Mutex<[Option<Arc<Mapping>>; SEGMENTS]>,
    creator: Creator,
}

impl Results {
    /// Creates the arena. The worker gets its [descriptor](Self::descriptor).
    pub(crate) fn create() -> io::Result<Arc<Self>> {
        Self::create_for("executor-results")
    }

    /// Creates an arena for something else. The name appears in `/proc`.
    pub(crate) fn create_for(name: &str) -> io::Result<Arc<Self>> {
        Self::of(Arena::create(name)?)
    }

    /// Opens the arena of a process that is not trusted.
    pub(crate) fn open_foreign(descriptor: OwnedFd) -> io::Result<Arc<Self>> {
        Self::of(Arena::open_foreign(descriptor)?)
    }

    fn of(arena: Arena) -> io::Result<Arc<Self>> {
        let ledger = Shared::open(&arena)?;
        let arena = Arc::new(arena);
        Ok(Arc::new(Results {
            arena,
            ledger,
            views: Mutex::new([const { None }; SEGMENTS]),
            creator: Creator::here(),
        }))
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.arena.as_fd()
    }

    /// Returns the result that the worker reports to have written. Returns `None` if the number or
    /// the length is impossible.
    pub(crate) fn receive(self: &Arc<Self>, number: u64, len: u64) -> Option<Received> {
        let number = u8::try_from(number).ok().filter(|number| usize::from(*number) < SEGMENTS)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= SEGMENT_BYTES_MAX)?;
        // A wrong length must not cost memory. Bytes that were really written use as much memory in
        // the arena.
        (len as u64 <= self.arena.bytes()).then(|| Received {
            results: Arc::clone(self),
            number,
            len,
        })
    }

    fn view(&self, number: u8, len: usize) -> io::Result<Arc<Mapping>> {
        let slot = usize::from(number);
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        // A longer view also serves a shorter result.
        if let Some(view) = views[slot].as_ref().filter(|view| view.len() >= len) {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(self.arena.map(number, len, Access::Read)?);
        views[slot] = Some(Arc::clone(&view));
        Ok(view)
    }

    /// Gives back the memory of segments that were not used since the last call. Returns whether
    /// any memory is left.
    pub(crate) fn trim(&self) -> bool {
        self.ledger.trim(&self.arena)
    }

    /// Returns the number of segments in use or kept for later, and the memory that they use.
    pub(crate) fn count(&self) -> (usize, u64) {
        // The ledger's own page does not count.
        (self.ledger.count(), self.arena.bytes().saturating_sub(4096))
    }
}

/// A result in a segment. When it is dropped, the worker can use the segment again.
pub(crate) struct Received {
    results: Arc<Results>,
    number: u8,
    len: usize,
}

impl Received {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies everything from byte `start` on, to a vector of exactly that size.
    pub(crate) fn copy_from(&self, start: usize) -> io::Result<Vec<u8>> {
        let len = self.len.saturating_sub(start);
        let mut vec = vec_to_fill(len)?;
        let view = self.results.view(self.number, self.len)?;
        self.results.ledger.shadow(self.number).look();
        // SAFETY: either `start + len` is the segment's length, or `len` is 0. The view has that
        // many bytes, and none of them can go away, because the pool has sealed the file's length.
        // The vector has room for `len` bytes and is not shared. A broken worker may write
        // meanwhile. The bytes are copied without being looked at, through a pointer and not a
        // reference. So the vector then contains arbitrary bytes, as a broken worker could also
        // have sent.
        unsafe {
            std::ptr::copy_nonoverlapping(
                view.at().as_ptr().add(start.min(self.len)),
                vec.as_mut_ptr(),
                len,
            );
            vec.set_len(len);
        }
        Ok(vec)
    }

    /// Appends everything to a vector.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let view = self.results.view(self.number, self.len)?;
        out.try_reserve_exact(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.results.ledger.shadow(self.number).look();
        // SAFETY: the view has `len` bytes, of which none can go away, and the vector has room for
        // them behind its length. A broken process may write to the view meanwhile: see
        // `copy_from`.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            std::ptr::copy_nonoverlapping(view.at().as_ptr().cast_const(), end, self.len);
            out.set_len(out.len() + self.len);
        }
        Ok(())
    }

    /// Copies everything to memory that is shared within this process.
    pub(crate) fn to_shared(&self) -> io::Result<Arc<[u8]>> {
        let view = self.results.view(self.number, self.len)?;
        self.results.ledger.shadow(self.number).look();
        let mut bytes = Arc::new_uninit_slice(self.len);
        let place: &mut [MaybeUninit<u8>] = Arc::get_mut(&mut bytes).expect("nobody else has it");
        // SAFETY: `len` bytes, as the view has, of which none can go away, and as the place has,
        // which nobody else knows yet. A broken process may write to the view meanwhile: see
        // `copy_from`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                view.at().as_ptr().cast_const(),
                place.as_mut_ptr().cast(),
                self.len,
            );
            Ok(bytes.assume_init())
        }
    }

    /// Copies the first bytes, and returns how many there were.
    pub(crate) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.len);
        let view = self.results.view(self.number, self.len)?;
        self.results.ledger.shadow(self.number).look();
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(view.at().as_ptr(), into.as_mut_ptr(), len) };
        Ok(len)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.results.creator.is_elsewhere() {
            self.results.ledger.release(self.number);
        }
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Received(segment {}, {} bytes)", self.number, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lengths_that_cannot_be_are_refused() {
        let results = Results::create().unwrap();
        for (number, len) in [(64, 0), (u64::MAX, 1), (0, 1 << 20), (0, u64::MAX), (63, 3 << 30)] {
            assert!(results.receive(number, len).is_none(), "{number}, {len}");
        }
        assert_eq!(results.receive(63, 0).unwrap().copy_from(0).unwrap(), []);
    }

    #[test]
    fn a_ledger_full_of_garbage_hurts_nobody() {
        let results = Results::create().unwrap();
        let store =
            super::super::Store::open(results.descriptor().try_clone_to_owned().unwrap()).unwrap();
        for _ in 0..SEGMENTS {
            store.take(4096).unwrap().leave();
        }
        results.trim();
        assert!(results.trim(), "all are taken for ever");
        assert!(store.take(1).is_none());
        results.receive(5, 10).unwrap();
        results.receive(5, 10).unwrap();
        assert_eq!(store.take(1).unwrap().number(), 5);
    }
}
