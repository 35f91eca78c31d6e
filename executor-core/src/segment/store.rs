//! The segments that one side writes, and which of them are free.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use super::Results;
use crate::os::{
    arena::{Access, Arena, Mapping, SEGMENT_BYTES_MAX, SEGMENTS},
    fork::Creator,
    memory::{Shared, SharedLayout},
    std_or_model::{
        Shadow,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Maximum memory of all segments of an arena. With a higher value, a producer that is faster than
/// its consumer uses more memory that is not attributed to it. With a lower value, data is sent in
/// pieces earlier, at a third of the speed.
pub(crate) const BYTES_MAX: u64 = 4 << 30;

/// The state of an arena's segments. See the documentation of this folder's `mod.rs`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Ledger {
    /// A bit for each segment that has an owner.
    taken: AtomicU64,
    /// A bit for each segment that was taken since the last `trim`.
    used: AtomicU64,
    /// Bytes that were written since the segment was last empty. Only its owner changes this.
    resident: [AtomicU64; SEGMENTS],
    /// A shadow for each segment's memory.
    shadows: [Shadow; SEGMENTS],
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            taken: AtomicU64::default(),
            used: AtomicU64::default(),
            resident: std::array::from_fn(|_| AtomicU64::default()),
            shadows: std::array::from_fn(|_| Shadow::default()),
        }
    }
}

// SAFETY: `repr(C)`, atomics only, no drop, and zero is a valid value.
unsafe impl SharedLayout for Ledger {}

impl Ledger {
    /// Takes the free segment that fits best. That is the one with the least memory of those that
    /// have enough already, or else the one with the most memory.
    fn take(&self, bytes: u64) -> Option<u8> {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let free = (0..SEGMENTS as u8).filter(|number| taken & 1 << number == 0);
            let number = free.min_by_key(|number| {
                let resident = self.resident(*number);
                if resident >= bytes { (false, resident) } else { (true, u64::MAX - resident) }
            })?;
            if self.own(number) {
                self.used.fetch_or(1 << number, Ordering::Relaxed);
                return Some(number);
            }
        }
    }

    /// Sets the segment's bit. Returns whether it was clear. It has Acquire ordering, so this owner
    /// sees what the last owner did.
    pub(super) fn own(&self, number: u8) -> bool {
        self.taken.fetch_or(1 << number, Ordering::Acquire) & 1 << number == 0
    }

    /// Clears the segment's bit. It is called by the reader of what the owner wrote, or by the
    /// owner if no reader was told of the segment.
    pub(super) fn release(&self, number: u8) {
        self.taken.fetch_and(!(1 << number), Ordering::Release);
    }

    /// Returns the shadow of a segment's memory. The segment's owner fills it, and its reader looks
    /// at it.
    pub(super) fn shadow(&self, number: u8) -> &Shadow {
        &self.shadows[usize::from(number)]
    }

    fn resident(&self, number: u8) -> u64 {
        self.resident[usize::from(number)].load(Ordering::Relaxed)
    }

    fn total(&self) -> u64 {
        (0..SEGMENTS as u8).fold(0, |sum: u64, number| sum.saturating_add(self.resident(number)))
    }

    /// Returns how many segments have memory or an owner.
    pub(super) fn count(&self) -> usize {
        let taken = self.taken.load(Ordering::Relaxed);
        (0..SEGMENTS as u8)
            .filter(|number| taken & 1 << number != 0 || self.resident(*number) != 0)
            .count()
    }

    /// Empties the segments that were not used since the last call. Returns whether any memory is
    /// left.
    pub(super) fn trim(&self, arena: &Arena) -> bool {
        let used = self.used.swap(0, Ordering::Relaxed);
        let mut left = false;
        for number in 0..SEGMENTS as u8 {
            if self.resident(number) == 0 {
                continue;
            }
            // Become the segment's owner to empty it, so that nothing is written to it meanwhile.
            if used & 1 << number != 0 || !self.own(number) {
                left = true;
                continue;
            }
            self.shadow(number).fill();
            match arena.punch(number) {
                Ok(()) => self.resident[usize::from(number)].store(0, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "a segment's memory could not be given back"),
            }
            self.release(number);
        }
        left
    }
}

/// The memory in which a ledger lies.
enum LedgerMemory {
    /// Private: only this process takes and releases segments.
    Own(Box<Ledger>),
    /// Shared: the worker takes segments, and the pool releases them.
    Shared(Shared<Ledger>),
}

/// The segments of one arena, for the side that writes them.
pub(crate) struct Store {
    arena: Arc<Arena>,
    ledger: LedgerMemory,
    /// Mappings of segments that are not leased. They are kept, because mapping again causes page
    /// faults.
    mappings: Mutex<[Option<Mapping>; SEGMENTS]>,
    creator: Creator,
}

impl Store {
    /// Creates the pool's store, for arguments.
    pub(crate) fn create() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self::of(
            Arena::create("executor-arguments")?.into(),
            LedgerMemory::Own(Box::default()),
        )))
    }

    /// Opens a worker's store, for results, in the arena that its parent has created.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Arc<Self>> {
        let ledger = Shared::open(&fd)?;
        Ok(Arc::new(Self::of(Arena::open(fd)?.into(), LedgerMemory::Shared(ledger))))
    }

    /// Opens a store in an arena in which this process also reads. Each segment belongs to the side
    /// that takes it, and is released by the other one.
    pub(crate) fn beside(results: &Results) -> io::Result<Arc<Self>> {
        let arena = Arc::clone(results.arena());
        let ledger = Shared::open(&*arena)?;
        Ok(Arc::new(Self::of(arena, LedgerMemory::Shared(ledger))))
    }

    fn of(arena: Arc<Arena>, ledger: LedgerMemory) -> Self {
        Store {
            arena,
            ledger,
            mappings: Mutex::new([const { None }; SEGMENTS]),
            creator: Creator::here(),
        }
    }

    /// Returns the descriptor with which a worker reads its arguments.
    pub(crate) fn read_only(&self) -> io::Result<OwnedFd> {
        self.arena.read_only()
    }

    fn ledger(&self) -> &Ledger {
        match &self.ledger {
            LedgerMemory::Own(ledger) => ledger,
            LedgerMemory::Shared(ledger) => ledger,
        }
    }

    /// Takes a segment with room for `bytes`. Returns `None` if a limit is reached, or the system
    /// has no memory left.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Lease> {
        if bytes > SEGMENT_BYTES_MAX || self.creator.is_elsewhere() {
            return None;
        }
        let number = self.ledger().take(bytes as u64)?;
        kill_point!(SegmentTaken);
        // Use the mapping of an earlier lease, if there is one.
        let mapping = self.lock()[usize::from(number)].take();
        let mapping = match mapping {
            Some(mapping) => mapping,
            None => match self.arena.map(number, bytes, Access::Write) {
                Ok(mapping) => mapping,
                Err(error) => {
                    tracing::debug!(%error, "a segment could not be mapped");
                    self.ledger().release(number);
                    return None;
                }
            },
        };
        let mut lease = Lease {
            store: Arc::clone(self),
            number,
            mapping: Some(mapping),
            left: false,
            given_up: AtomicBool::new(false),
        };
        lease.reserve(bytes).then_some(lease)
    }

    /// Whether a segment has an owner. If this process has left it, the other side has not released
    /// it.
    pub(crate) fn is_taken(&self, number: u8) -> bool {
        self.ledger().taken.load(Ordering::Relaxed) & 1 << number != 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Option<Mapping>; SEGMENTS]> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the memory of segments that were not used since the last call. Returns whether
    /// any memory is left.
    pub(crate) fn trim(&self) -> bool {
        self.ledger().trim(&self.arena)
    }

    /// Returns the number of segments in use or kept for later, and the memory that they use.
    pub(crate) fn count(&self) -> (usize, u64) {
        (self.ledger().count(), self.arena.bytes())
    }
}

/// A segment that this process owns and may write.
pub(crate) struct Lease {
    store: Arc<Store>,
    number: u8,
    /// `Some` until drop.
    mapping: Option<Mapping>,
    /// Whether the other side clears the bit.
    left: bool,
    /// Whether the bit is never cleared: see [`give_up`](Self::give_up).
    given_up: AtomicBool,
}

impl Lease {
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    fn mapping(&self) -> &Mapping {
        self.mapping.as_ref().expect("there until drop")
    }

    /// Returns how many bytes the segment has room for.
    pub(crate) fn capacity(&self) -> usize {
        let resident = self.store.ledger().resident(self.number);
        self.mapping().len().min(usize::try_from(resident).unwrap_or(usize::MAX))
    }

    /// Makes room for `bytes`. The existing content is kept. Returns `false` if that is not
    /// possible.
    #[cold]
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        let Some(mapping) = &mut self.mapping else { return false };
        let ledger = self.store.ledger();
        let resident = ledger.resident(self.number);
        if bytes > SEGMENT_BYTES_MAX {
            return false;
        }
        // Only the pages beyond `resident` need new memory, and count towards the limit.
        let wanted = (bytes as u64).next_multiple_of(4096);
        if wanted > resident && ledger.total().saturating_add(wanted - resident) > BYTES_MAX {
            return false;
        }
        let result = mapping.grow(bytes).and_then(|()| match wanted > resident {
            true => mapping.populate(usize::try_from(resident).unwrap_or(0), bytes),
            false => Ok(()),
        });
        if let Err(error) = result {
            tracing::debug!(%error, bytes, "no memory for a segment");
            return false;
        }
        ledger.resident[usize::from(self.number)].store(wanted.max(resident), Ordering::Relaxed);
        true
    }

    /// Writes `bytes` at offset `at`. The caller has reserved room for them.
    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let mapping = self.mapping();
        self.store.ledger().shadow(self.number).fill();
        assert!(at + bytes.len() <= mapping.len(), "room was reserved");
        // SAFETY: within the mapping, by the assertion. No one else writes there, because this
        // process owns the segment. No one reads it before being told of it. `bytes` does not lie
        // in the mapping, because no other function hands out access to it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                mapping.at().as_ptr().add(at),
                bytes.len(),
            );
        }
    }

    /// Appends the first `len` bytes that were written to `out`.
    ///
    /// They cannot be borrowed instead. A hostile worker has a read-only descriptor of the pool's
    /// segments, and could open it again for writing through `/proc/self/fd`.
    pub(crate) fn copy_to(&self, len: usize, out: &mut Vec<u8>) {
        let mapping = self.mapping();
        assert!(len <= mapping.len(), "what was written");
        out.reserve(len);
        // SAFETY: within the mapping, which lives as long as `self`. The vector has room for `len`
        // bytes after its end, and is not part of the mapping. Only this process writes to the
        // mapping, and not while `self` is borrowed. A process that breaks this rule changes bytes
        // that are copied through a pointer without being looked at, so the vector then contains
        // arbitrary bytes.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            std::ptr::copy_nonoverlapping(mapping.at().as_ptr().cast_const(), end, len);
            out.set_len(out.len() + len);
        }
    }

    /// Leaves the segment to the other side, which clears the bit after reading it.
    pub(crate) fn leave(mut self) {
        self.keep_mapping();
        self.left = true;
    }

    /// Excludes the segment from any further use, although the lease ends. It is called if a
    /// process borrows from the segment and may live on. The segment's memory is freed with the
    /// store and that process.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn keep_mapping(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            self.store.lock()[usize::from(self.number)] = Some(mapping);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // In a fork the lock may be held forever, and the bit belongs to the parent.
        if self.store.creator.is_elsewhere() {
            return;
        }
        if !self.left && !self.given_up.load(Ordering::Relaxed) {
            self.keep_mapping();
            self.store.ledger().release(self.number);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease(segment {})", self.number)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (segments, bytes) = self.count();
        write!(f, "Store({segments} segments, {bytes} bytes)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{buffer::Buffer, payload::Payload};

    #[test]
    fn a_segment_that_somebody_may_still_read_is_not_used_again() {
        let store = Store::create().unwrap();
        let mut lease = store.take(100_000).unwrap();
        lease.write(0, &[5; 100_000]);
        let (number, descriptor) = (lease.number(), store.read_only().unwrap());
        let payload = Payload::in_segment(lease, 100_000, Vec::new());
        // With descriptors, the payload is a wrapper around another payload.
        let payload = payload.with(vec![Arc::new(crate::os::socket::pair().unwrap().0)]);
        payload.clone().leave_segment();
        drop(payload);
        let reader = Arena::open(descriptor).unwrap().map(number, 100_000, Access::Read).unwrap();
        let others: Vec<_> = std::iter::from_fn(|| store.take(50_000)).collect();
        assert_eq!(others.len(), SEGMENTS - 1);
        assert!(others.iter().all(|lease| lease.number() != number));
        // SAFETY: within the mapping, and nothing writes to it.
        let read = unsafe { std::slice::from_raw_parts(reader.at().as_ptr(), 100_000) };
        store.trim();
        assert!(read.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn a_segment_grows_keeps_its_bytes_and_is_reused() {
        let store = Store::create().unwrap();
        let mut lease = store.take(100_000).unwrap();
        lease.write(0, &[5; 100_000]);
        assert!(lease.reserve(10 << 20));
        lease.write(10 << 20, &[]);
        let mut copy = vec![4];
        lease.copy_to(100_000, &mut copy);
        assert!(copy.len() == 100_001 && copy[0] == 4 && copy[1..].iter().all(|byte| *byte == 5));
        let number = lease.number();
        drop(lease);
        assert_eq!(store.take(1 << 20).unwrap().number(), number, "there is memory in it already");
        assert_eq!(store.count(), (1, 10 << 20));
    }

    #[test]
    fn the_segment_that_fits_best_is_taken() {
        let store = Store::create().unwrap();
        let (large, small) = (store.take(1 << 20).unwrap(), store.take(1 << 16).unwrap());
        let (large_number, small_number) = (large.number(), small.number());
        drop((large, small));
        let lease = store.take(50_000).unwrap();
        assert_eq!(lease.number(), small_number);
        assert_eq!(store.take(50_000).unwrap().number(), large_number);
        drop(lease);
        assert_eq!(
            store.take(2 << 20).unwrap().number(),
            large_number,
            "the most is there already"
        );
    }

    #[test]
    fn bounds_are_kept_and_nothing_is_lost_at_them() {
        let store = Store::create().unwrap();
        let leases: Vec<_> = std::iter::from_fn(|| store.take(4096)).collect();
        assert_eq!(leases.len(), SEGMENTS);
        drop(leases);
        assert!(store.take(SEGMENT_BYTES_MAX + 1).is_none());
        let mut lease = store.take(4096).unwrap();
        assert!(!lease.reserve(SEGMENT_BYTES_MAX + 1));
        drop(lease);
        assert!(store.take(4096).is_some());
    }

    #[test]
    fn what_was_not_used_between_two_looks_goes_back() {
        let store = Store::create().unwrap();
        let held = store.take(1 << 16).unwrap();
        drop(store.take(1 << 20).unwrap());
        assert!(store.trim(), "both were used");
        assert!(store.trim(), "one is held");
        assert_eq!(store.count(), (1, 1 << 16));
        drop(held);
        store.trim();
        assert!(!store.trim());
        assert_eq!(store.count(), (0, 0));
        let mut lease = store.take(1 << 16).unwrap();
        lease.write(0, &[1; 1 << 16]);
        assert_eq!(store.count(), (1, 1 << 16), "an emptied one is as good as new");
    }

    #[test]
    fn what_a_buffer_gathers_stays_in_order_if_its_segment_cannot_grow() {
        let store = Store::create().unwrap();
        let mut buffer = Buffer::behind_in(b"front".to_vec(), Arc::clone(&store), 50_000);
        let bytes: Vec<u8> = (0..400_000).map(|n| n as u8).collect();
        bytes[..100_001].iter().for_each(|byte| buffer.push(*byte));
        assert!(store.is_taken(0));
        store.ledger().resident[63].store(BYTES_MAX, Ordering::Relaxed);
        bytes[100_001..].iter().for_each(|byte| buffer.push(*byte));
        let (vec, filling) = buffer.into_parts();
        assert!(filling.is_none() && vec[..5] == *b"front" && vec[5..] == bytes);
        assert!(!store.is_taken(0), "it was given back");
    }

    #[test]
    fn both_sides_of_a_connection_write_to_one_arena() {
        let ours = Results::create().unwrap();
        let descriptor = ours.descriptor().try_clone_to_owned().unwrap();
        let theirs = Results::open_foreign(descriptor).unwrap();
        let (our_store, their_store) =
            (Store::beside(&ours).unwrap(), Store::beside(&theirs).unwrap());
        for (store, results, fill) in [(&our_store, &theirs, 1), (&their_store, &ours, 2)] {
            let mut leases: Vec<_> = (0..3).map(|_| store.take(100_000).unwrap()).collect();
            for lease in &mut leases {
                lease.write(0, &[fill; 100_000]);
            }
            let numbers: Vec<u8> = leases.iter().map(Lease::number).collect();
            leases.into_iter().for_each(Lease::leave);
            for number in numbers {
                assert!(our_store.is_taken(number) && their_store.is_taken(number));
                let received = results.receive(u64::from(number), 100_000).unwrap();
                assert!(received.to_shared().unwrap().iter().all(|byte| *byte == fill));
                let mut vec = vec![9];
                received.append_to(&mut vec).unwrap();
                assert!(vec.len() == 100_001 && vec[0] == 9 && vec[100_000] == fill);
                drop(received);
                assert!(!our_store.is_taken(number));
            }
        }
    }

    #[test]
    fn the_pool_gives_back_what_a_worker_took() {
        let results = super::super::Results::create().unwrap();
        let store = Store::open(results.descriptor().try_clone_to_owned().unwrap()).unwrap();
        for round in 0..200_u8 {
            let mut lease = store.take(100_000).unwrap();
            lease.write(0, &[round; 100_000]);
            let number = lease.number();
            assert_eq!(number, 0);
            lease.leave();
            let received = results.receive(u64::from(number), 100_000).unwrap();
            assert!(received.copy_from(0).unwrap().iter().all(|byte| *byte == round));
        }
        assert_eq!(store.count().0, 1);
    }
}
