//! The words of a queue in shared memory, and the operations on them, step by step. The same code
//! runs in one process, in many, and in the model checkers.
//!
//! ```text
//!               slots[0], [1]: at, bytes, position                         slots[0], [1]
//!  consumers ──────────────┐                                 producers ────────┐
//!                          ▼                                                   ▼
//!  ring 4   …│ item │ item │ item │ Moved ► ring 5         ring 5   │ item │ item │ 0 …
//!             taken          to be taken
//!
//!  record:   header │ number │ [ticket] │ bytes, or where they are
//!            (a multiple of 32 bytes, never split by the end of the ring)
//! ```
//!
//! # One store publishes, one store takes
//!
//! A record is written behind the last one. The store of its header publishes it. That word was
//! zero before, so the word behind the last record is always zero. A record is taken by one store
//! too: the one that moves `position` behind it. Everything else (the counts, where the next record
//! goes) follows from these two stores. If a process dies before it has updated the rest, the next
//! owner of the mutex does so. So a killed producer has put either a whole item or none, and an
//! item that a killed consumer had begun to take is still there, up to that one store.
//!
//! # Rings
//!
//! Producers never wait for room in a ring. When a ring is full, the record `Moved` says where the
//! next one is; it is four times as large, up to a bound. A consumer that reaches `Moved` gives the
//! old ring back. As long as consumers keep up, one ring is used round and round.
//!
//! `slots[generation & 1]` is the current slot. The other one is filled before the new generation
//! is stored. Until then it belongs to a generation that nobody looks at.
//!
//! # Places
//!
//! Rings and large items have places in the file. A place has exactly one owner at any moment. The
//! owner is either the queue (a record or a slot names the place) or one of the `claims`. A claim
//! belongs to a process that writes or reads at the place, or to nobody. A place that belongs to
//! nobody can be taken by the next process that needs one, with its memory ([`STOCK`]) or without
//! ([`HOLE`]). A place changes its owner by one store. Around that store, `pending_claim` tells a
//! repairer to look which side owns the place. A place that is given back is merged with the holes
//! beside it, and at the end of the file `next` goes down again. So the file is about as long as
//! the largest amount of data that was in the queue at one time.
//!
//! A process holds a claim while it writes, reads, or gives back, and never while it waits for
//! anything but a mutex: the processes that it waits for may need a claim themselves. So a producer
//! of a large item first gets room for it under the mutex (`reserved` counts the items that are
//! being written), then a claim, and writes after unlocking. If it cannot put the item at once
//! then, it gives both back, and waits with neither. A process that finds no free claim waits on
//! `freed`. A consumer first falls back to a claim that is otherwise for rings, and then reads
//! under the mutex.
//!
//! When a claim is shrunk or merged, the place is removed from one claim before it is added to the
//! other. If a process dies in between, a place in a sparse file is lost. Two processes never own
//! the same place.
//!
//! # Descriptors
//!
//! Descriptors are sent over a socket before the record is published, with a number of their own,
//! the ticket. If the producer dies in between, the next one publishes a `Void` with the ticket,
//! and consumers discard the descriptors. A consumer peeks at the descriptors in the socket, takes
//! the record, and only then removes the descriptors from the socket. If it dies in between, the
//! next consumer discards them.

mod consumers;
mod holds;
mod layout;
mod pieces;
mod producers;
mod record;

use std::{io, ops::Deref, sync::Arc, time::Instant};

use layout::{Counts, RingSlot};
use record::{Cursor, UNIT};

pub(super) use consumers::Reading;
pub(super) use holds::{FreeHold, Held, Lost, Returned};
pub(super) use layout::Layout;
pub(super) use pieces::{Claimed, Piece, RingPlace};
pub(super) use record::{Body, Entry, Found, FoundBody};

use crate::{
    os::{
        liveness::Owners,
        std_or_model::{
            MODEL, Shadow,
            atomic::{AtomicU64, Ordering},
        },
    },
    sync::raw::{RobustGuard, RobustMutex},
};

/// Length of the first ring. A higher value costs every queue that much memory. A lower value makes
/// a queue leave its first ring sooner.
pub(super) const FIRST_BYTES: u64 = if MODEL { 128 } else { 64 << 10 };
/// Length of the largest ring.
///
/// A ring with the items of a bounded queue goes round; a queue whose items do not fit takes a new
/// ring again and again, and each new page costs as much as some items of 16 bytes. A thousand
/// items of 1 KiB need more than 1 MiB: with that as the largest ring they went at 0.6 times the
/// rate. A higher value means that a queue keeps more memory after a backlog, and that it takes
/// longer to make a ring, which is done under the producers' mutex (1 ms for 4 MiB).
///
/// Smaller in tests that kill processes at each step, so that they make rings more often.
const MOST_BYTES: u64 = match (MODEL, cfg!(feature = "kill-points")) {
    (true, _) => 256,
    (false, true) => 1 << 20,
    (false, false) => 4 << 20,
};
// A ring is mapped also where it has no memory yet.
const _: () = assert!(MOST_BYTES <= crate::heap::sparse_file::WINDOW_MAX);
/// Longest item in a ring. It takes at most a quarter of the ring; longer items lie elsewhere, and
/// are written and read without a mutex.
pub(super) const INLINE_MAX: usize = if MODEL { 8 } else { (256 << 10) - 64 };

/// The words of a ring.
pub(super) trait Words {
    fn words(&self) -> usize;
    fn word(&self, index: usize) -> &AtomicU64;
    /// The model checkers' shadow of that word.
    fn shadow(&self, index: usize) -> &Shadow;
    fn write(&self, index: usize, bytes: &[u8]);
}

/// The memory of rings and large items, and the socket for descriptors.
pub(super) trait Memory {
    type Ring: Words;
    /// A mapped ring.
    type Mapped<'a>: Deref<Target = Self::Ring>
    where
        Self: 'a;

    /// Allocates memory for a place that reads as zeros.
    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()>;
    /// Frees the memory of a place, so that the place reads as zeros. Returns whether it does.
    fn free(&self, at: u64, bytes: u64) -> bool;
    /// Maps the ring of producers or of consumers. Each side often asks for the same ring again.
    /// That is faster if the previous mapping has been dropped.
    fn ring(&self, side: Side, place: RingPlace) -> io::Result<Self::Mapped<'_>>;
    /// Keeps a ring that was mapped while the previous one was in use, as the mapping of this side.
    fn keep<'a>(&'a self, side: Side, place: RingPlace, ring: Self::Mapped<'a>)
    -> Self::Mapped<'a>;
    /// Maps a table of entries. See `holds/mod.rs`.
    fn table(&self, at: u64, bytes: u64) -> io::Result<Arc<Self::Ring>>;
    /// Discards descriptors with tickets up to this one.
    fn discard(&self, ticket: u64);
}

/// Maximum number of consecutive records that are not items. More occur only if a process garbles
/// the memory.
const STEPS_MAX: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Producers,
    Consumers,
}

pub(super) struct RingList<'a, M, O: Owners> {
    pub(super) layout: &'a Layout,
    pub(super) memory: &'a M,
    pub(super) owners: &'a O,
}

impl<M, O: Owners> Clone for RingList<'_, M, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M, O: Owners> Copy for RingList<'_, M, O> {}

/// Why a step was not taken. Nothing has changed then.
#[derive(Debug)]
pub(super) enum Failed {
    /// Other processes have all claims. Try again when one of them has given its claim back:
    /// [`RingList::listen_for_claims`].
    NoClaim,
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Io(error)
    }
}

pub(super) fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the queue's memory is garbled")
}

impl<'a, M: Memory, O: Owners> RingList<'a, M, O> {
    /// Initializes a queue from zeroed words.
    pub(super) fn begin(&self, capacity: u64) -> io::Result<()> {
        let Layout { next, producers, consumers, .. } = self.layout;
        self.layout.capacity.store(capacity, Ordering::Relaxed);
        self.memory.allocate(0, FIRST_BYTES)?;
        next.store(FIRST_BYTES, Ordering::Relaxed);
        for slots in [&producers.slots, &consumers.slots] {
            slots[0].bytes.store(FIRST_BYTES, Ordering::Release);
        }
        Ok(())
    }

    // What can be seen without a mutex.

    /// Returns the number of items that were put and not taken, plus those that can be received
    /// again.
    pub(super) fn len(&self) -> u64 {
        self.counts().waiting().saturating_add(self.again())
    }

    fn counts(&self) -> Counts {
        // In this order, so that the difference is never too small: an item that is put and taken
        // between the two loads counts only as put.
        let taken = self.layout.consumers.count.load(Ordering::Acquire);
        let put = self.layout.producers.count.load(Ordering::Acquire);
        Counts { taken, put }
    }

    pub(super) fn capacity(&self) -> Option<u64> {
        Some(self.layout.capacity.load(Ordering::Relaxed)).filter(|capacity| *capacity > 0)
    }

    pub(super) fn is_full(&self) -> bool {
        self.capacity().is_some_and(|capacity| self.len() >= capacity)
    }

    /// Returns whether there is room for one more item, besides those that are being written.
    pub(super) fn has_room(&self) -> bool {
        let with = |capacity| {
            self.len().saturating_add(self.layout.producers.reserved.load(Ordering::Relaxed))
                < capacity
        };
        self.capacity().is_none_or(with)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.layout.closed.load(Ordering::Acquire) != 0
    }

    /// Locks a mutex. If its previous owner died, finishes or undoes what that process had begun.
    pub(super) fn lock(
        &self,
        side: Side,
        deadline: Option<Instant>,
    ) -> Result<Option<RobustGuard<'a, O>>, Failed> {
        match self.mutex(side).lock_until(self.owners, deadline) {
            Some(guard) => self.repaired(side, guard).map(Some),
            None => Ok(None),
        }
    }

    /// Locks a mutex like [`lock`](Self::lock), without waiting. If another process holds it,
    /// returns the value of the mutex's word to wait on; with `will_wait`, the word is marked as
    /// waited for.
    pub(super) fn try_lock(
        &self,
        side: Side,
        will_wait: bool,
    ) -> Result<Result<RobustGuard<'a, O>, u32>, Failed> {
        match self.mutex(side).try_guard(self.owners, will_wait) {
            Ok(guard) => self.repaired(side, guard).map(Ok),
            Err(word) => Ok(Err(word)),
        }
    }

    pub(super) fn mutex(&self, side: Side) -> &'a RobustMutex {
        match side {
            Side::Producers => &self.layout.producers.mutex,
            Side::Consumers => &self.layout.consumers.mutex,
        }
    }

    fn repaired(
        &self,
        side: Side,
        guard: RobustGuard<'a, O>,
    ) -> Result<RobustGuard<'a, O>, Failed> {
        if guard.owner_died() {
            let repaired = match side {
                Side::Producers => self.repair_producers(),
                Side::Consumers => self.repair_consumers(),
            };
            if let Err(error) = repaired {
                // Leave the mutex marked as its owner having died, so that the next locker tries
                // again.
                std::mem::forget(guard);
                self.mutex(side).abandon();
                return Err(error);
            }
        }
        Ok(guard)
    }

    fn cursor(
        &self,
        side: Side,
        slots: &'a [RingSlot; 2],
        generation: u64,
    ) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let slot = &slots[(generation & 1) as usize];
        let (at, bytes) = (slot.at.load(Ordering::Relaxed), slot.bytes.load(Ordering::Relaxed));
        self.cursor_in(self.memory.ring(side, RingPlace::new(at, bytes)?)?, slot, generation)
    }

    fn cursor_in(
        &self,
        ring: M::Mapped<'a>,
        slot: &'a RingSlot,
        generation: u64,
    ) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let position = slot.position.load(Ordering::Relaxed);
        let size = ring.words() as u64;
        if !size.is_power_of_two() || !position.is_multiple_of(UNIT) || position > u64::MAX / 2 {
            return Err(garbled());
        }
        Ok(Cursor { ring, size, slot, generation, position })
    }

    /// Switches to the next ring. Returns its slot and generation.
    fn flip<'p>(
        &self,
        slots: &'p [RingSlot; 2],
        generation: &AtomicU64,
        now: u64,
        at: u64,
        bytes: u64,
    ) -> (&'p RingSlot, u64) {
        // The generation comes from memory that other processes write to.
        let next = now.wrapping_add(1);
        let other = &slots[(next & 1) as usize];
        other.at.store(at, Ordering::Relaxed);
        other.bytes.store(bytes, Ordering::Relaxed);
        other.position.store(0, Ordering::Relaxed);
        generation.store(next, Ordering::Release);
        (other, next)
    }
}
