//! The words of a queue in shared memory, and the operations on them, step by step. The same code
//! runs in one process, in many, and in the model checkers.
//!
//! ```text
//!              places[0], [1]: at, bytes, position                        places[0], [1]
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
//! `places[generation & 1]` is the current place. The other one is filled before the new generation
//! is stored. Until then it belongs to a generation that nobody looks at.
//!
//! # Places
//!
//! Rings and large items have places in the file. A place has exactly one owner at any moment. The
//! owner is either the queue (a record or `places` names the place) or one of the `claims`. A claim
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

mod holds;

use std::{io, ops::Deref, sync::Arc, time::Instant};

use holds::Holds;
pub(super) use holds::{FreeHold, Held, Lost, Returned};

use crate::{
    os::{
        liveness::{OwnerId, Owners},
        memory::SharedLayout,
        sync::{
            MODEL, Shadow,
            atomic::{AtomicU32, AtomicU64, Ordering, fence},
        },
    },
    sync::raw::{Bell, RobustGuard, RobustMutex},
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
/// Longest item in a ring. It takes at most a quarter of the ring; longer items lie elsewhere, and
/// are written and read without a mutex.
pub(super) const INLINE_MAX: usize = if MODEL { 8 } else { (256 << 10) - 64 };

/// Records and rings are multiples of this many words, so there is always room for a `Moved` at the
/// end of a ring.
const UNIT: u64 = 4;

/// Number of claims: places that are being written or read, kept, or holes. A higher value makes
/// the search for claims of dead processes slower. The value limits how many large items can be put
/// and received at a time, and how many holes are remembered; the places of further holes are lost.
const CLAIMS: usize = if MODEL { 4 } else { 64 };
/// Number of claims reserved for the holders of the two mutexes: for a ring (each side moves one at
/// a time), or for the piece of a consumer that finds no other claim.
const CLAIMS_OF_RINGS: usize = 2;

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Place {
    at: AtomicU64,
    bytes: AtomicU64,
    /// In words. It only ever grows; the index in the ring is the position modulo the ring's size.
    position: AtomicU64,
}

/// State that producers change under their mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Producers {
    mutex: RobustMutex,
    /// Rung by producers when there are items.
    pub(super) items: Bell,
    generation: AtomicU64,
    places: [Place; 2],
    /// Number of items put so far.
    count: AtomicU64,
    /// One plus the index of the claim of a piece that is about to be put, or of a ring that
    /// nothing refers to yet; 0 if there is none.
    pending_claim: AtomicU64,
    /// The last ticket, which is also the number of descriptors sent so far.
    ticket: AtomicU64,
    /// The ticket of descriptors that may be in the socket without a record yet; 0 if there are
    /// none.
    sending: AtomicU64,
    /// Number of items that are being written and have reserved room: the claims with `has_room`,
    /// as of the last count.
    reserved: AtomicU64,
}

/// State that consumers change under their mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Consumers {
    mutex: RobustMutex,
    /// Rung by consumers when there is room.
    pub(super) room: Bell,
    /// Rung by consumers when descriptors have left the socket. This is not `room`, because a
    /// producer that waits for descriptors cannot use room, and would be woken in place of one that
    /// can.
    pub(super) descriptors: Bell,
    generation: AtomicU64,
    places: [Place; 2],
    /// Number of items taken so far.
    count: AtomicU64,
    /// The value that `count` will have once the current item is taken.
    taking: AtomicU64,
    /// The ticket of the item that is being taken or discarded, or was last.
    ticket: AtomicU64,
    /// One plus the index of the claim for a piece that is about to be taken, or for a ring that is
    /// about to be left; 0 if there is none.
    pending_claim: AtomicU64,
}

/// A place in the file that no record refers to. It belongs to a process: for a piece that the
/// process writes or reads without a mutex, or for a ring that is being added or removed. Or it
/// belongs to nobody, and the next process may take it. While a piece is in the queue, only its
/// record says where it is.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Claim {
    /// The process that owns the claim; 0 for nobody, [`STOCK`], or [`HOLE`].
    owner: AtomicU32,
    /// Not 0 if the claim is for an item with reserved room in the queue. Set only under the
    /// producers' mutex.
    has_room: AtomicU32,
    at: AtomicU64,
    /// 0 if the claim has no piece (any more).
    bytes: AtomicU64,
}

/// Owner value: the claim's piece is kept with its memory. Filling pages that were used before is
/// several times as fast as filling new ones.
const STOCK: u32 = u32::MAX;
/// Owner value: the claim's place belongs to nobody, has no memory, and reads as zeros.
const HOLE: u32 = u32::MAX - 1;
/// Maximum number of bytes that all kept pieces have. A higher value keeps more memory idle. A
/// lower value makes larger items use new pages.
///
/// In tests that kill processes at each step, little is kept, so that they exercise giving back
/// too.
const STOCK_BYTES_MAX: u64 = if cfg!(feature = "kill-points") { 400 << 10 } else { 8 << 20 };
/// Maximum number of kept pieces. A higher value leaves fewer claims for holes, and places of holes
/// are lost. A lower value makes small pieces use new pages.
const STOCK_PIECES_MAX: usize = CLAIMS / 2;

/// All shared words of a queue. All zeros is a queue without a ring: see [`Chain::begin`].
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Layout {
    /// 0 means unbounded.
    capacity: AtomicU64,
    closed: AtomicU32,
    reserved: AtomicU32,
    /// End of all places of the file that are owned or are holes.
    next: AtomicU64,
    /// Rung when a claim becomes free. It is written to without a mutex.
    freed: Bell,
    /// Rung when all items are done, or when the queue is closed. It is written to without a mutex.
    pub(super) all_done: Bell,
    pub(super) producers: Producers,
    pub(super) consumers: Consumers,
    claims: [Claim; CLAIMS],
    holds: Holds,
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Layout {}

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
    fn keep<'a>(&'a self, side: Side, place: RingPlace, ring: Self::Mapped<'a>) -> Self::Mapped<'a>;
    /// Maps a table of entries. See `holds.rs`.
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

const PAD: u64 = 1;
const MOVED: u64 = 2;
const VOID: u64 = 3;
const ITEM: u64 = 4;

const ATTACHED: u64 = 1 << 8;
const ELSEWHERE: u64 = 1 << 9;
const LEN_SHIFT: u32 = 16;

/// An item to be put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) body: Body<'a>,
    pub(super) ticket: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'a> {
    Inline(&'a [u8]),
    /// The bytes are in a piece of their own.
    Elsewhere {
        piece: Piece,
        len: u64,
    },
}

/// Memory outside of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl Piece {
    fn to_bytes(self, len: u64) -> [u8; PIECE_BYTES] {
        let mut out = [0; PIECE_BYTES];
        for (place, number) in out.chunks_exact_mut(8).zip([self.at, len, self.bytes]) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        out
    }
}

/// Number of bytes in a record that describe the piece of an item.
const PIECE_BYTES: usize = 24;

/// An item that can be taken.
pub(super) struct Found<G> {
    number: u64,
    /// The position behind the record.
    end: u64,
    pub(super) ticket: Option<u64>,
    pub(super) body: FoundBody<G>,
}

pub(super) enum FoundBody<G> {
    Inline { ring: G, word: usize, len: usize },
    Elsewhere { piece: Piece, len: u64 },
}

pub(super) struct Chain<'a, M, O: Owners> {
    pub(super) layout: &'a Layout,
    pub(super) memory: &'a M,
    pub(super) owners: &'a O,
}

impl<M, O: Owners> Clone for Chain<'_, M, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M, O: Owners> Copy for Chain<'_, M, O> {}

/// Number of items taken and put so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counts {
    taken: u64,
    put: u64,
}

impl Counts {
    /// Returns the number of items that were put and not taken.
    fn waiting(self) -> u64 {
        // An item can be taken before its producer has counted it.
        let waiting = self.put.wrapping_sub(self.taken);
        if waiting > u64::MAX / 2 { 0 } else { waiting }
    }
}

/// Location of a ring, read from shared words that any process with a handle may have written.
///
/// The length is checked. It is not longer than a ring can be, so that no process maps more than
/// that because of another process's word. It is a power of two of at least one record, as the
/// rings of [`Chain`] are. A position in a ring is masked with its length, so other lengths would
/// lead beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingPlace(Piece);

impl RingPlace {
    fn new(at: u64, bytes: u64) -> io::Result<Self> {
        if bytes.is_power_of_two() && (UNIT * 8..=MOST_BYTES).contains(&bytes) {
            Ok(RingPlace(Piece { at, bytes }))
        } else {
            Err(garbled())
        }
    }

    pub(super) fn piece(self) -> Piece {
        self.0
    }
}

/// Why a step was not taken. Nothing has changed then.
#[derive(Debug)]
pub(super) enum Failed {
    /// Other processes have all claims. Try again when one of them has given its claim back:
    /// [`Chain::listen_for_claims`].
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

/// The position of one side in its ring.
struct Cursor<'a, G> {
    ring: G,
    /// Number of words in the ring, a power of two.
    size: u64,
    place: &'a Place,
    generation: u64,
    position: u64,
}

impl<G: Deref<Target: Words>> Cursor<'_, G> {
    /// Returns the number of words from here to the end of the ring.
    fn to_end(&self) -> u64 {
        self.size - (self.position & (self.size - 1))
    }

    /// Returns the index in the ring of the word that is `ahead` words from here.
    fn wrapped(&self, ahead: u64) -> usize {
        (self.position.wrapping_add(ahead) & (self.size - 1)) as usize
    }

    fn word(&self, ahead: u64) -> &AtomicU64 {
        self.ring.word(self.wrapped(ahead))
    }

    /// Reads a word of a record that is published and not taken yet.
    fn look(&self, ahead: u64) -> u64 {
        self.ring.shadow(self.wrapped(ahead)).look();
        self.word(ahead).load(Ordering::Relaxed)
    }

    /// Writes a word in memory that consumers have given back. They see it when the record is
    /// published.
    fn fill(&self, ahead: u64, word: u64) {
        self.ring.shadow(self.wrapped(ahead)).fill();
        self.word(ahead).store(word, Ordering::Relaxed);
    }

    /// Returns the index of a word of the record that starts here. No word of a record lies beyond
    /// the end of the ring.
    fn index(&self, ahead: u64) -> usize {
        self.wrapped(0) + ahead as usize
    }

    fn advance(&mut self, words: u64) {
        self.position += words;
        self.place.position.store(self.position, Ordering::Release);
    }
}

impl Entry<'_> {
    fn header(&self) -> u64 {
        let attached = if self.ticket.is_some() { ATTACHED } else { 0 };
        match self.body {
            Body::Inline(bytes) => ITEM | attached | (bytes.len() as u64) << LEN_SHIFT,
            Body::Elsewhere { .. } => ITEM | attached | ELSEWHERE | (PIECE_BYTES as u64) << LEN_SHIFT,
        }
    }
}

/// Returns the number of words of a record with this header.
fn words(header: u64) -> u64 {
    let attached = u64::from(header & ATTACHED != 0);
    (2 + attached + (header >> LEN_SHIFT).div_ceil(8)).next_multiple_of(UNIT)
}

impl<'a, M: Memory, O: Owners> Chain<'a, M, O> {
    /// Initializes a queue from zeroed words.
    pub(super) fn begin(&self, capacity: u64) -> io::Result<()> {
        let Layout { next, producers, consumers, .. } = self.layout;
        self.layout.capacity.store(capacity, Ordering::Relaxed);
        self.memory.allocate(0, FIRST_BYTES)?;
        next.store(FIRST_BYTES, Ordering::Relaxed);
        for places in [&producers.places, &consumers.places] {
            places[0].bytes.store(FIRST_BYTES, Ordering::Release);
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
            self.len().saturating_add(self.layout.producers.reserved.load(Ordering::Relaxed)) < capacity
        };
        self.capacity().is_none_or(with)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.layout.closed.load(Ordering::Acquire) != 0
    }

    // Producers.

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

    fn repaired(&self, side: Side, guard: RobustGuard<'a, O>) -> Result<RobustGuard<'a, O>, Failed> {
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

    fn tail(&self) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let producers = &self.layout.producers;
        let generation = producers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Producers, &producers.places, generation)
    }

    fn cursor(
        &self,
        side: Side,
        places: &'a [Place; 2],
        generation: u64,
    ) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let place = &places[(generation & 1) as usize];
        let (at, bytes) = (place.at.load(Ordering::Relaxed), place.bytes.load(Ordering::Relaxed));
        self.cursor_in(self.memory.ring(side, RingPlace::new(at, bytes)?)?, place, generation)
    }

    fn cursor_in(
        &self,
        ring: M::Mapped<'a>,
        place: &'a Place,
        generation: u64,
    ) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let position = place.position.load(Ordering::Relaxed);
        let size = ring.words() as u64;
        if !size.is_power_of_two() || !position.is_multiple_of(UNIT) || position > u64::MAX / 2 {
            return Err(garbled());
        }
        Ok(Cursor { ring, size, place, generation, position })
    }

    fn repair_producers(&self) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        let claimed = producers.pending_claim.load(Ordering::Relaxed);
        let claim = self.layout.claims.get((claimed as usize).wrapping_sub(1));
        let piece = claim.map(|claim| claim.at.load(Ordering::Relaxed));
        let mut tail = self.tail()?;
        // Go through the records behind the stored position. They are published, but the updates
        // that follow from them may be missing.
        for step in 0.. {
            let header = tail.word(0).load(Ordering::Acquire);
            let attached = u64::from(header & ATTACHED != 0);
            match header & 0xff {
                0 => break,
                _ if step > STEPS_MAX => return Err(garbled().into()),
                MOVED => {
                    let (at, bytes) = moved_to(&tail);
                    self.flip(&producers.places, &producers.generation, tail.generation, at, bytes);
                    drop(tail);
                    tail = self.tail()?;
                    continue;
                }
                ITEM => {
                    let number = tail.word(1).load(Ordering::Relaxed);
                    producers.count.store(number.wrapping_add(1), Ordering::Release);
                    if header & ELSEWHERE != 0
                        && Some(tail.word(2 + attached).load(Ordering::Relaxed)) == piece
                        && let Some(claim) = claim
                    {
                        // The record names the piece, so it belongs to the queue.
                        claim.bytes.store(0, Ordering::Relaxed);
                    }
                }
                _ => {}
            }
            if attached == 1 && tail.word(2).load(Ordering::Relaxed) == sending {
                producers.sending.store(0, Ordering::Relaxed);
            }
            // Store this last: until it is stored, a process that repairs after us finds the
            // record, too.
            let words = checked_words(header, &tail)?;
            tail.advance(words);
        }
        if let Some(claim) = claim
            && piece == Some(tail.place.at.load(Ordering::Relaxed))
        {
            // The claim is of a ring, and `places` already refers to it.
            claim.bytes.store(0, Ordering::Relaxed);
        }
        // A piece that is not in the queue stays the dead process's, until a process that needs a
        // claim finds it.
        producers.pending_claim.store(0, Ordering::Release);
        self.count_reserved(true);
        self.void_what_was_sent()
    }

    /// Returns the number of descriptors that are in the socket, or are being sent or taken.
    pub(super) fn in_flight(&self) -> u64 {
        // In this order, so that the difference is never too small: descriptors that are sent and
        // taken between the two loads count only as sent.
        let taken = self.layout.consumers.ticket.load(Ordering::Acquire);
        self.layout.producers.ticket.load(Ordering::Acquire).wrapping_sub(taken)
    }

    /// Starts sending `count` descriptors and returns their ticket. From now on they are discarded
    /// unless an item with this ticket is put. Called under the mutex.
    pub(super) fn new_ticket(&self, count: u64) -> u64 {
        let producers = &self.layout.producers;
        let ticket = producers.ticket.load(Ordering::Relaxed).wrapping_add(count);
        producers.ticket.store(ticket, Ordering::Relaxed);
        producers.sending.store(ticket, Ordering::Relaxed);
        kill_point!(QueueTicketTaken);
        ticket
    }

    /// Undoes the last ticket, which was for `count` descriptors: nothing was sent with it.
    pub(super) fn forget_ticket(&self, count: u64) {
        let producers = &self.layout.producers;
        producers.sending.store(0, Ordering::Relaxed);
        producers
            .ticket
            .store(producers.ticket.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    /// Checks whether there is room for one more item. If there is none, returns the value of the
    /// word to sleep on. With `of_dead`, it also frees room that dead processes have reserved,
    /// which costs a system call for each other process that is writing an item. Called under the
    /// mutex.
    pub(super) fn look_for_room(&self, of_dead: bool) -> Result<(), u32> {
        if self.has_room() {
            return Ok(());
        }
        let heard = self.layout.consumers.room.listen();
        // Either the consumer sees that we listen, or we see that it has taken something.
        fence(Ordering::SeqCst);
        if self.layout.producers.reserved.load(Ordering::Relaxed) > 0 {
            self.count_reserved(of_dead);
        }
        if self.has_room() { Ok(()) } else { Err(heard) }
    }

    /// Reserves a piece for an item of `bytes` bytes, with the room in the queue that
    /// [`look_for_room`](Self::look_for_room) has found. The flag is whether the piece has no
    /// memory yet. Called under the mutex; the piece is written after unlocking.
    pub(super) fn reserve_item(&self, bytes: u64, me: OwnerId) -> Result<(Piece, Claimed, bool), Failed> {
        let (piece, claimed, is_new) = self.new_piece(bytes, me)?;
        let producers = &self.layout.producers;
        self.layout.claims[claimed.0].has_room.store(1, Ordering::Relaxed);
        kill_point!(QueueRoomNoted);
        let reserved = producers.reserved.load(Ordering::Relaxed);
        producers.reserved.store(reserved.wrapping_add(1), Ordering::Relaxed);
        kill_point!(QueueRoomReserved);
        Ok((piece, claimed, is_new))
    }

    /// Counts again how many items have reserved room. A process that gave its room back, or died,
    /// has not updated the count. Called under the mutex.
    fn count_reserved(&self, of_dead: bool) {
        let mut reserved: u64 = 0;
        for claim in &self.layout.claims {
            if claim.has_room.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let owner = OwnerId::from_bits(claim.owner.load(Ordering::Relaxed));
            if of_dead && owner.is_none_or(|owner| !self.owners.is_alive(owner)) {
                claim.has_room.store(0, Ordering::Relaxed);
            } else {
                reserved = reserved.saturating_add(1);
            }
        }
        self.layout.producers.reserved.store(reserved, Ordering::Relaxed);
    }

    /// Puts an item. Called under the mutex. On an error, nothing was put, and descriptors that
    /// were sent for the item are discarded.
    pub(super) fn put(&self, entry: Entry<'_>, claim: &mut Option<Claimed>) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        // A lack of memory is detected here, where nothing has changed but `sending`. The next
        // producer that sends descriptors, or that repairs after a death, marks those descriptors
        // as void.
        let tail = self.reserve(words(entry.header()))?;
        let place;
        let (bytes, claim) = match &entry.body {
            Body::Inline(bytes) => (*bytes, None),
            Body::Elsewhere { piece, len } => {
                place = piece.to_bytes(*len);
                (&place[..], claim.take())
            }
        };
        if let Some(Claimed(index)) = &claim {
            // From now on, a repairer decides which side owns the piece.
            producers.pending_claim.store(*index as u64 + 1, Ordering::Release);
            kill_point!(QueuePendingNoted);
        }
        let number = producers.count.load(Ordering::Relaxed);
        self.publish(tail, entry.header(), number, entry.ticket.unwrap_or(0), bytes, || {
            producers.count.store(number.wrapping_add(1), Ordering::Release);
            kill_point!(QueuePutCounted);
            if let Some(claim) = claim {
                self.hand_on(claim);
            }
            if entry.ticket.is_some() {
                producers.sending.store(0, Ordering::Relaxed);
            }
        });
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Releases a claim whose place now belongs to the queue.
    fn hand_on(&self, claim: Claimed) {
        // In this order: a claim that others may take must not be a pending one.
        let claim = &self.layout.claims[claim.0];
        let producers = &self.layout.producers;
        claim.bytes.store(0, Ordering::Relaxed);
        producers.pending_claim.store(0, Ordering::Release);
        kill_point!(QueueClaimHandedOn);
        if claim.has_room.load(Ordering::Relaxed) != 0 {
            // The item now counts as one that was put.
            claim.has_room.store(0, Ordering::Relaxed);
            let reserved = producers.reserved.load(Ordering::Relaxed);
            producers.reserved.store(reserved.saturating_sub(1), Ordering::Relaxed);
        }
        self.set_free(claim, 0);
    }

    /// Releases a claim to nobody, to [`STOCK`], or to [`HOLE`]; others may take it then.
    fn set_free(&self, claim: &Claim, to: u32) {
        claim.owner.store(to, Ordering::Release);
        // Either a process that looks for a claim sees this one, or we see that it listens.
        fence(Ordering::SeqCst);
        if self.layout.freed.is_listened_to() {
            self.layout.freed.ring_unlocked().wake_all();
        }
    }

    /// Marks a listener for claims. Returns the value to sleep on with [`freed`](Self::freed). The
    /// caller must look for a claim once more before it sleeps.
    pub(super) fn listen_for_claims(&self) -> u32 {
        let heard = self.layout.freed.listen();
        fence(Ordering::SeqCst);
        heard
    }

    /// Returns the bell that is rung when a claim becomes free.
    pub(super) fn freed(&self) -> &'a Bell {
        &self.layout.freed
    }

    /// Publishes a `Void` for descriptors that were sent without a record. Called under the mutex.
    pub(super) fn void_what_was_sent(&self) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        if sending != 0 {
            let follow = || producers.sending.store(0, Ordering::Relaxed);
            let tail = self.reserve(words(VOID | ATTACHED))?;
            self.publish(tail, VOID | ATTACHED, 0, sending, &[], follow);
        }
        Ok(())
    }

    /// Makes room for a record of `need` words, in this ring or in the next.
    fn reserve(&self, need: u64) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let mut tail = self.tail()?;
        loop {
            let size = tail.size;
            let used = tail.position.wrapping_sub(self.taken_of(tail.generation));
            if used > size {
                return Err(garbled().into());
            }
            let pad = if need > tail.to_end() { tail.to_end() } else { 0 };
            // `UNIT` words behind the record stay free: they hold the terminating zero now, and a
            // `Moved` later.
            if need <= size / 4 && used + pad + need + UNIT <= size {
                if pad > 0 {
                    tail.fill(pad, 0);
                    tail.word(0).store(PAD | (pad * 8) << LEN_SHIFT, Ordering::Release);
                    tail.advance(pad);
                    kill_point!(QueuePadded);
                }
                return Ok(tail);
            }
            tail = self.move_on(tail, need)?;
        }
    }

    /// Writes a record behind the last one, where [`reserve`](Self::reserve) made room for it.
    ///
    /// `follow` performs the updates that follow from the record's being published. If this process
    /// dies before it has, the repairer performs them: it finds the record until the position
    /// behind it is stored.
    fn publish(
        &self,
        mut tail: Cursor<'a, M::Mapped<'a>>,
        header: u64,
        number: u64,
        ticket: u64,
        bytes: &[u8],
        follow: impl FnOnce(),
    ) {
        let need = words(header);
        let attached = u64::from(header & ATTACHED != 0);
        tail.fill(1, number);
        if attached == 1 {
            tail.fill(2, ticket);
        }
        tail.ring.write(tail.index(2 + attached), bytes);
        kill_point!(QueueRecordWritten);
        // The word behind the record must be zero before the record is published: it marks the end.
        tail.fill(need, 0);
        tail.word(0).store(header, Ordering::Release);
        kill_point!(QueueRecordPublished);
        follow();
        tail.advance(need);
        kill_point!(QueueTailStored);
    }

    /// Returns how far consumers have come in the producers' ring.
    fn taken_of(&self, generation: u64) -> u64 {
        let consumers = &self.layout.consumers;
        // Consumers are in this ring or still in an earlier one. There is no later one.
        if consumers.generation.load(Ordering::Acquire) != generation {
            return 0;
        }
        consumers.places[(generation & 1) as usize].position.load(Ordering::Acquire)
    }

    fn move_on(
        &self,
        tail: Cursor<'a, M::Mapped<'a>>,
        need: u64,
    ) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let producers = &self.layout.producers;
        // A record takes at most a quarter of the ring.
        let fits = need.next_power_of_two() * 8 * 4;
        let bytes = (tail.size * 8 * 4).min(MOST_BYTES).max(fits);
        let (Piece { at, bytes }, claim) = self.new_place(bytes, self.owners.me(), &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| {
            kill_point!(QueueRingMade);
            // Map the ring before it is published, so that mapping cannot fail afterwards.
            let next = RingPlace::new(at, bytes)?;
            Ok((next, self.memory.ring(Side::Producers, next)?))
        });
        let (next, ring) = match made {
            Ok(made) => made,
            Err(error) => {
                self.shed(claim);
                return Err(error.into());
            }
        };
        // From now on, a repairer decides which side owns the ring.
        producers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
        kill_point!(QueueRingNoted);
        tail.fill(2, at);
        tail.fill(3, bytes);
        tail.word(0).store(MOVED | 16 << LEN_SHIFT, Ordering::Release);
        kill_point!(QueueMovePublished);
        let (place, generation) =
            self.flip(&producers.places, &producers.generation, tail.generation, at, bytes);
        kill_point!(QueueProducersMoved);
        self.hand_on(claim);
        drop(tail);
        Ok(self.cursor_in(self.memory.keep(Side::Producers, next, ring), place, generation)?)
    }

    /// Switches to the next ring. Returns its place and generation.
    fn flip<'p>(
        &self,
        places: &'p [Place; 2],
        generation: &AtomicU64,
        now: u64,
        at: u64,
        bytes: u64,
    ) -> (&'p Place, u64) {
        let other = &places[((now + 1) & 1) as usize];
        other.at.store(at, Ordering::Relaxed);
        other.bytes.store(bytes, Ordering::Relaxed);
        other.position.store(0, Ordering::Relaxed);
        generation.store(now + 1, Ordering::Release);
        (other, now + 1)
    }

    /// Closes the queue for producers at once, and for consumers when it is empty. Called under the
    /// producers' mutex.
    pub(super) fn close(&self) {
        self.layout.closed.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    // Consumers.

    fn head(&self) -> io::Result<Cursor<'a, M::Mapped<'a>>> {
        let consumers = &self.layout.consumers;
        let generation = consumers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Consumers, &consumers.places, generation)
    }

    fn repair_consumers(&self) -> Result<(), Failed> {
        let consumers = &self.layout.consumers;
        let head = self.head()?;
        let claimed = consumers.pending_claim.load(Ordering::Relaxed);
        if let Some(claim) = self.layout.claims.get((claimed as usize).wrapping_sub(1)) {
            let at = claim.at.load(Ordering::Relaxed);
            // Three cases in which the place is not the dead process's: the item is not taken, so
            // the piece is still the item's; the ring is not left, so it is still the queue's; the
            // place is still that of an entry. Otherwise the dead process's claim keeps it.
            if self.item_elsewhere(&head) == Some(at)
                || head.place.at.load(Ordering::Relaxed) == at
                || self.is_place_of_holds(at)?
            {
                claim.bytes.store(0, Ordering::Relaxed);
            }
        }
        consumers.pending_claim.store(0, Ordering::Release);
        let found = self.find()?;
        let count = match &found {
            Some(found) => found.number,
            None => consumers.taking.load(Ordering::Relaxed),
        };
        consumers.count.store(count, Ordering::Release);
        self.repair_holds(count)?;
        let ticket = consumers.ticket.load(Ordering::Relaxed);
        if ticket != 0 && found.is_none_or(|found| found.ticket != Some(ticket)) {
            self.discard(ticket);
        }
        Ok(())
    }

    /// Discards descriptors with tickets up to this one, and wakes producers that wait for room for
    /// descriptors. Called under the consumers' mutex.
    pub(super) fn discard(&self, ticket: u64) {
        self.memory.discard(ticket);
        let descriptors = &self.layout.consumers.descriptors;
        // Either the producer sees that there is room, or we see that it listens.
        fence(Ordering::SeqCst);
        if descriptors.is_listened_to() {
            descriptors.ring_unlocked().wake_all();
        }
    }

    /// Returns where the next item lies, if it lies outside of the ring.
    fn item_elsewhere(&self, head: &Cursor<'a, M::Mapped<'a>>) -> Option<u64> {
        let header = head.word(0).load(Ordering::Acquire);
        let attached = u64::from(header & ATTACHED != 0);
        (header & 0xff == ITEM && header & ELSEWHERE != 0)
            .then(|| head.word(2 + attached).load(Ordering::Relaxed))
    }

    /// Finds the next item. Called under the mutex.
    pub(super) fn find(&self) -> Result<Option<Found<M::Mapped<'a>>>, Failed> {
        let consumers = &self.layout.consumers;
        let mut head = self.head()?;
        for _ in 0..STEPS_MAX {
            let header = head.word(0).load(Ordering::Acquire);
            match header & 0xff {
                0 => return Ok(None),
                MOVED => {
                    // The producer is suspended, or has died, between publishing `Moved` and moving
                    // to the next ring itself. The next ring has no items before it has moved. And
                    // until then, a repairer reads in this ring where the next one is, so the ring
                    // must not be given back.
                    if self.layout.producers.generation.load(Ordering::Acquire) <= head.generation {
                        return Ok(None);
                    }
                    let (at, bytes) = moved_to(&head);
                    // Map the ring before switching to it, so that a failure changes nothing.
                    let next = RingPlace::new(at, bytes)?;
                    let ring = self.memory.ring(Side::Consumers, next)?;
                    let old =
                        (head.place.at.load(Ordering::Relaxed), head.place.bytes.load(Ordering::Relaxed));
                    let me = self.owners.me();
                    let claim = self.claim(me, &self.layout.claims).ok_or(Failed::NoClaim)?;
                    // From now on, a repairer decides whether the old ring has been left.
                    consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
                    self.note(&claim, Piece { at: old.0, bytes: old.1 });
                    kill_point!(QueueOldRingNoted);
                    let (place, generation) =
                        self.flip(&consumers.places, &consumers.generation, head.generation, at, bytes);
                    kill_point!(QueueConsumersMoved);
                    consumers.pending_claim.store(0, Ordering::Release);
                    self.shed(claim);
                    kill_point!(QueueOldRingFreed);
                    drop(head);
                    let ring = self.memory.keep(Side::Consumers, next, ring);
                    head = self.cursor_in(ring, place, generation)?;
                }
                PAD => {
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                VOID => {
                    // Store the ticket first: if this process dies while it discards, the repairer
                    // discards again.
                    consumers.ticket.store(head.look(2), Ordering::Release);
                    self.discard(head.look(2));
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                ITEM => {
                    head.look(0);
                    let words = checked_words(header, &head)?;
                    let attached = u64::from(header & ATTACHED != 0);
                    let body = 2 + attached;
                    return Ok(Some(Found {
                        number: head.look(1),
                        end: head.position + words,
                        ticket: (attached == 1).then(|| head.look(2)),
                        body: if header & ELSEWHERE != 0 {
                            let number = |at: u64| head.look(body + at);
                            FoundBody::Elsewhere {
                                piece: Piece { at: number(0), bytes: number(2) },
                                len: number(1),
                            }
                        } else {
                            let word = head.index(body);
                            FoundBody::Inline { ring: head.ring, word, len: (header >> LEN_SHIFT) as usize }
                        },
                    }));
                }
                _ => return Err(garbled().into()),
            }
        }
        Err(garbled().into())
    }

    /// Finds the next item, like [`find`](Self::find). If there is none, returns the value to sleep
    /// on, provided that `listen` is set.
    pub(super) fn find_or_listen(&self, listen: bool) -> Result<Result<Found<M::Mapped<'a>>, u32>, Failed> {
        if let Some(found) = self.find()? {
            return Ok(Ok(found));
        }
        if !listen {
            return Ok(Err(0));
        }
        let heard = self.layout.producers.items.listen();
        // Either the producer sees that we listen, or we see the item it has put.
        fence(Ordering::SeqCst);
        Ok(self.find()?.ok_or(heard))
    }

    /// Gets what is needed to take the item that was found. For a piece outside of rings, that is a
    /// claim, unless an entry of this process will name the piece. Called under the mutex.
    pub(super) fn claim_for(
        &self,
        found: &Found<M::Mapped<'a>>,
        me: OwnerId,
        hold: bool,
    ) -> Result<Reading, Failed> {
        let FoundBody::Elsewhere { .. } = found.body else { return Ok(Reading::Nothing) };
        if hold && self.keeps_items() {
            return Ok(Reading::Held);
        }
        if let Some(claim) = self.claim(me, self.claims_of_pieces()) {
            return Ok(Reading::Later(claim));
        }
        let spare = self.claim(me, &self.layout.claims[..CLAIMS_OF_RINGS]);
        spare.map(Reading::Now).ok_or(Failed::NoClaim)
    }

    /// Takes the item that was found. Called under the same mutex. A piece outside of rings then
    /// belongs to this process, through the claim or through the entry.
    pub(super) fn take(
        &self,
        found: &Found<M::Mapped<'a>>,
        reading: &Reading,
        free: Option<FreeHold<'_, M::Ring>>,
        me: OwnerId,
    ) -> Option<Held> {
        let consumers = &self.layout.consumers;
        // The entry comes first. If this process dies before `position` is stored, the entry's
        // number shows that its item is still in the queue.
        let held = free.map(|free| self.write_hold(&free, me, found));
        let claim = reading.claim();
        if let (FoundBody::Elsewhere { piece, .. }, Some(claim)) = (&found.body, claim) {
            consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
            self.note(claim, *piece);
            kill_point!(QueuePieceClaimed);
        }
        // If this process dies after `position` is stored, and no item follows, only `taking` tells
        // the repairer how many items are taken.
        consumers.taking.store(found.number.wrapping_add(1), Ordering::Relaxed);
        if let Some(ticket) = found.ticket {
            consumers.ticket.store(ticket, Ordering::Release);
        }
        kill_point!(QueueTakeNext);
        let place = &consumers.places[(consumers.generation.load(Ordering::Relaxed) & 1) as usize];
        // This store takes the item.
        place.position.store(found.end, Ordering::Release);
        kill_point!(QueueTaken);
        consumers.count.store(found.number.wrapping_add(1), Ordering::Release);
        kill_point!(QueueTakeCounted);
        fence(Ordering::SeqCst);
        if claim.is_some() {
            consumers.pending_claim.store(0, Ordering::Release);
        }
        held
    }

    // Places.

    fn claims_of_pieces(&self) -> &'a [Claim] {
        &self.layout.claims[CLAIMS_OF_RINGS..]
    }

    /// Takes all claims that are free, for tests.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn take_all_claims(&self) {
        while self.claim(self.owners.me(), &self.layout.claims).is_some() {}
    }

    fn index_of(&self, claim: &Claim) -> Claimed {
        let at = self.layout.claims.iter().position(|other| std::ptr::eq(other, claim));
        Claimed(at.expect("one of them"))
    }

    /// Takes a claim without a place, out of `claims`; `None` if other processes have them all.
    fn claim(&self, me: OwnerId, claims: &'a [Claim]) -> Option<Claimed> {
        let of = |owner: u32| claims.iter().filter(move |claim| claim.owner.load(Ordering::Relaxed) == owner);
        let bytes = |claim: &&Claim| claim.bytes.load(Ordering::Relaxed);
        // Each round frees or takes the claim of a dead process, or loses a claim to another
        // process.
        for _ in 0..4 * CLAIMS {
            if let Some(claim) = claims.iter().find(|claim| self.take_claim(claim, 0, me)) {
                return Some(self.index_of(claim));
            }
            if self.bury(me, claims) {
                continue;
            }
            // Give back a kept piece first: if it is beside a hole, or at the end of the file, it
            // then needs no claim of its own.
            if let Some(kept) = of(STOCK).min_by_key(bytes) {
                if self.take_claim(kept, STOCK, me) {
                    self.shed(self.index_of(kept));
                }
                continue;
            }
            // All claims are in use or holes. Take the smallest hole's claim; its place is lost
            // until the file is gone.
            let hole = of(HOLE).min_by_key(bytes)?;
            if self.take_claim(hole, HOLE, me) {
                hole.bytes.store(0, Ordering::Relaxed);
                return Some(self.index_of(hole));
            }
        }
        None
    }

    /// Gives back the places of dead processes among these claims, which nobody else would find.
    /// Returns whether there was one.
    fn bury(&self, me: OwnerId, claims: &'a [Claim]) -> bool {
        let mut found = false;
        for claim in claims.iter().filter(|claim| self.take_of_dead(claim, me)) {
            found = true;
            claim.has_room.store(0, Ordering::Relaxed);
            match claim.bytes.load(Ordering::Acquire) {
                0 => self.set_free(claim, 0),
                _ => self.shed(self.index_of(claim)),
            }
        }
        found
    }

    /// Takes a place of `bytes` bytes without memory, for one of `claims`.
    fn new_place(&self, bytes: u64, me: OwnerId, claims: &'a [Claim]) -> Result<(Piece, Claimed), Failed> {
        // Use places of the dead again before a new one is added to the file. Checking costs a
        // system call for each other process that has a claim.
        self.bury(me, &self.layout.claims);
        let claimed = self.claim(me, claims).ok_or(Failed::NoClaim)?;
        let Some(hole) = self.take_hole(bytes, me) else {
            let at = self.layout.next.fetch_add(bytes, Ordering::AcqRel);
            let piece = Piece { at, bytes };
            self.note(&claimed, piece);
            return Ok((piece, claimed));
        };
        let (at, has) = (hole.at.load(Ordering::Relaxed), hole.bytes.load(Ordering::Relaxed));
        // The place goes to the claim that was asked for, and the rest of the hole stays in the
        // hole's claim. The other way round, a piece could keep one of the claims for rings for as
        // long as it waits for room. The order of the stores is explained in the module's
        // documentation.
        let Some(left) = has.checked_sub(bytes) else {
            // Another process has written to the words since they were checked. The place is lost.
            hole.bytes.store(0, Ordering::Relaxed);
            self.set_free(hole, 0);
            self.set_free(&self.layout.claims[claimed.0], 0);
            return Err(garbled().into());
        };
        hole.bytes.store(left, Ordering::Release);
        kill_point!(QueueHoleSplit);
        hole.at.store(at.wrapping_add(bytes), Ordering::Release);
        let piece = Piece { at, bytes };
        self.note(&claimed, piece);
        self.set_free(hole, if left > 0 { HOLE } else { 0 });
        Ok((piece, claimed))
    }

    /// Takes the hole nearest to the start of the file that has at least `bytes` bytes.
    fn take_hole(&self, bytes: u64, me: OwnerId) -> Option<&'a Claim> {
        let fits = |claim: &Claim| claim.bytes.load(Ordering::Acquire) >= bytes;
        for _ in 0..CLAIMS {
            let holes = self.layout.claims.iter();
            let hole = holes
                .filter(|claim| claim.owner.load(Ordering::Relaxed) == HOLE && fits(claim))
                .min_by_key(|claim| claim.at.load(Ordering::Relaxed))?;
            if self.take_claim(hole, HOLE, me) {
                // It may have become another hole meanwhile.
                if fits(hole) {
                    return Some(hole);
                }
                self.set_free(hole, HOLE);
            }
        }
        None
    }

    /// Frees the memory of a place, and releases the place for the next process that needs one.
    fn shed(&self, claimed: Claimed) {
        let mine = &self.layout.claims[claimed.0];
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        if !self.memory.free(at, bytes) {
            // The old contents would be taken for records. So the place is never used again.
            mine.bytes.store(0, Ordering::Relaxed);
            self.set_free(mine, 0);
            return;
        }
        kill_point!(QueuePieceFreed);
        self.merge(mine);
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        let end = at.wrapping_add(bytes);
        if self.layout.next.load(Ordering::Relaxed) == end {
            // At the end of the file: the place becomes unused file again instead of a hole.
            mine.bytes.store(0, Ordering::Release);
            kill_point!(QueueEndNoted);
            if self.layout.next.compare_exchange(end, at, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.set_free(mine, 0);
                return;
            }
            mine.bytes.store(bytes, Ordering::Relaxed);
        }
        self.set_free(mine, HOLE);
        kill_point!(QueueHoleLeft);
    }

    /// Merges the holes beside a place into its claim, which belongs to this process.
    fn merge(&self, mine: &Claim) {
        let Some(me) = OwnerId::from_bits(mine.owner.load(Ordering::Relaxed)) else { return };
        for _ in 0..CLAIMS {
            let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
            let touches = |other: &Claim| {
                let (start, len) = (other.at.load(Ordering::Relaxed), other.bytes.load(Ordering::Acquire));
                len != 0 && (start.wrapping_add(len) == at || at.wrapping_add(bytes) == start)
            };
            let other = self.layout.claims.iter().find(|other| {
                let is_hole = other.owner.load(Ordering::Relaxed) == HOLE;
                is_hole && touches(other) && self.take_claim(other, HOLE, me)
            });
            let Some(other) = other else { return };
            // It may have become another hole meanwhile.
            if !touches(other) {
                self.set_free(other, HOLE);
                continue;
            }
            let (start, len) = (other.at.load(Ordering::Relaxed), other.bytes.load(Ordering::Relaxed));
            other.bytes.store(0, Ordering::Release);
            kill_point!(QueueHolesMerged);
            // A process that dies between these stores has claimed a part of both.
            mine.at.store(at.min(start), Ordering::Release);
            mine.bytes.store(bytes.wrapping_add(len), Ordering::Release);
            self.set_free(other, 0);
        }
    }

    fn take_claim(&self, claim: &Claim, from: u32, me: OwnerId) -> bool {
        claim.owner.load(Ordering::Relaxed) == from
            && claim.owner.compare_exchange(from, me.bits(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn take_of_dead(&self, claim: &Claim, me: OwnerId) -> bool {
        let owner = claim.owner.load(Ordering::Relaxed);
        let is_dead = || OwnerId::from_bits(owner).is_none_or(|owner| !self.owners.is_alive(owner));
        // While the claim is pending, only the repairer of the dead process's state may decide who
        // owns the piece.
        let is_pending = || {
            let number = self.index_of(claim).0 as u64 + 1;
            self.layout.producers.pending_claim.load(Ordering::Acquire) == number
                || self.layout.consumers.pending_claim.load(Ordering::Acquire) == number
        };
        ![0, STOCK, HOLE].contains(&owner) && is_dead() && !is_pending() && self.take_claim(claim, owner, me)
    }

    fn note(&self, claim: &Claimed, piece: Piece) {
        let claim = &self.layout.claims[claim.0];
        claim.at.store(piece.at, Ordering::Relaxed);
        claim.bytes.store(piece.bytes, Ordering::Release);
    }

    /// Takes a piece for `bytes` bytes. The flag is whether it has no memory yet.
    fn new_piece(&self, bytes: u64, me: OwnerId) -> Result<(Piece, Claimed, bool), Failed> {
        // Use a kept piece that is neither too small nor far too large.
        let fits = |claim: &Claim| {
            let has = claim.bytes.load(Ordering::Acquire);
            has >= bytes && has / 4 <= bytes
        };
        let kept =
            self.claims_of_pieces().iter().find(|claim| fits(claim) && self.take_claim(claim, STOCK, me));
        if let Some(claim) = kept {
            // It may have become another piece meanwhile.
            if fits(claim) {
                let (at, bytes) = (claim.at.load(Ordering::Relaxed), claim.bytes.load(Ordering::Relaxed));
                kill_point!(QueuePieceMade);
                return Ok((Piece { at, bytes }, self.index_of(claim), false));
            }
            self.set_free(claim, STOCK);
        }
        let (piece, claim) = self.new_place(bytes, me, self.claims_of_pieces())?;
        kill_point!(QueuePieceMade);
        Ok((piece, claim, true))
    }

    /// Gives back a piece that is not needed any more: it is kept, or its memory is freed.
    pub(super) fn give_back(&self, claim: Claimed) {
        let mine = &self.layout.claims[claim.0];
        // Release the reserved room as well. Producers that look for room count again.
        mine.has_room.store(0, Ordering::Relaxed);
        let bytes = mine.bytes.load(Ordering::Relaxed);
        let is_too_much = |more: usize, bytes: u64| {
            let kept = self.layout.claims.iter().filter(|claim| claim.owner.load(Ordering::Relaxed) == STOCK);
            let sum = |(count, sum): (usize, u64), claim: &Claim| {
                (count + 1, claim.bytes.load(Ordering::Relaxed).saturating_add(sum))
            };
            let (count, sum) = kept.fold((more, bytes), sum);
            count > STOCK_PIECES_MAX || sum > STOCK_BYTES_MAX
        };
        if !is_too_much(1, bytes) {
            let me = OwnerId::from_bits(mine.owner.load(Ordering::Relaxed));
            self.set_free(mine, STOCK);
            kill_point!(QueuePieceKept);
            // If two processes come here at the same time, at least one sees both pieces.
            fence(Ordering::SeqCst);
            if !is_too_much(0, 0) || !me.is_some_and(|me| self.take_claim(mine, STOCK, me)) {
                return;
            }
        }
        self.shed(claim);
    }
}

/// A claimed piece. It must be [given back](Chain::give_back); otherwise it stays claimed until
/// this process has ended and another one takes it.
#[must_use = "it stays claimed until it is given back"]
#[derive(Debug)]
pub(super) struct Claimed(usize);

/// How the bytes of a taken item are read.
#[derive(Debug)]
#[must_use = "it stays claimed until it is given back"]
pub(super) enum Reading {
    /// They were read from the ring, before the item was taken.
    Nothing,
    /// From the claimed piece, after unlocking.
    Later(Claimed),
    /// From the claimed piece, under the mutex, because the claim is one of those for the mutex's
    /// holder.
    Now(Claimed),
    /// From the piece that the item's entry names, after unlocking.
    Held,
}

impl Reading {
    fn claim(&self) -> Option<&Claimed> {
        match self {
            Reading::Nothing | Reading::Held => None,
            Reading::Later(claim) | Reading::Now(claim) => Some(claim),
        }
    }
}

/// Returns where a `Moved` leads: position in the file and length.
fn moved_to<G: Deref<Target: Words>>(cursor: &Cursor<'_, G>) -> (u64, u64) {
    (cursor.look(2), cursor.look(3))
}

/// Returns the length of a record, or an error if it is impossible.
fn checked_words<G: Deref<Target: Words>>(header: u64, cursor: &Cursor<'_, G>) -> io::Result<u64> {
    let words = match header & 0xff {
        PAD => (header >> LEN_SHIFT) / 8,
        _ => words(header),
    };
    let least = if header & ELSEWHERE != 0 { PIECE_BYTES as u64 } else { 0 };
    let fits =
        words > 0 && words.is_multiple_of(UNIT) && words <= cursor.to_end() && header >> LEN_SHIFT >= least;
    if fits { Ok(words) } else { Err(garbled()) }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    pub(super) struct Alone;

    impl Owners for Alone {
        fn me(&self) -> OwnerId {
            OwnerId::from_bits(1).unwrap()
        }

        fn is_me(&self, id: OwnerId) -> bool {
            id == self.me()
        }

        fn is_alive(&self, _: OwnerId) -> bool {
            true
        }
    }

    /// A memory that has places without contents.
    pub(super) struct Places;

    impl Words for Places {
        fn words(&self) -> usize {
            0
        }

        fn word(&self, _: usize) -> &AtomicU64 {
            unreachable!("there is no ring")
        }

        fn shadow(&self, _: usize) -> &Shadow {
            unreachable!("there is no ring")
        }

        fn write(&self, _: usize, _: &[u8]) {}
    }

    impl Memory for Places {
        type Ring = Places;
        type Mapped<'a> = Arc<Places>;

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn free(&self, _: u64, _: u64) -> bool {
            true
        }

        fn ring(&self, _: Side, _: RingPlace) -> io::Result<Arc<Places>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn keep(&self, _: Side, _: RingPlace, ring: Arc<Places>) -> Arc<Places> {
            ring
        }

        fn table(&self, _: u64, _: u64) -> io::Result<Arc<Places>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn discard(&self, _: u64) {}
    }

    #[test]
    fn as_many_pieces_as_there_can_be_leave_each_side_a_claim_for_its_ring() {
        // SAFETY: zero is a value, says `SharedLayout`.
        let layout: Layout = unsafe { mem::zeroed() };
        let chain = Chain { layout: &layout, memory: &Places, owners: &Alone };
        let me = Alone.me();
        chain.begin(0).unwrap();
        // Leave two rings, with one between them that is still used.
        let rings: Vec<_> =
            (0..3).map(|_| chain.new_place(MOST_BYTES, me, &layout.claims).unwrap()).collect();
        for (number, (_, claim)) in rings.into_iter().enumerate() {
            match number {
                1 => layout.claims[claim.0].owner.store(0, Ordering::Release),
                _ => chain.shed(claim),
            }
        }
        // Take pieces like producers that wait for room.
        let mut pieces = Vec::new();
        let refusal = loop {
            match chain.new_piece(MOST_BYTES / 2, me) {
                Ok((piece, claim, _)) => pieces.push((piece, claim)),
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, Failed::NoClaim), "{refusal:?}");
        assert_eq!(pieces.len(), CLAIMS - CLAIMS_OF_RINGS);
        let of_rings: Vec<_> = (0..CLAIMS_OF_RINGS).map(|_| chain.claim(me, &layout.claims)).collect();
        assert!(of_rings.iter().all(Option::is_some), "{of_rings:?}");
        // No byte is in two of the pieces.
        pieces.sort_by_key(|(piece, _)| piece.at);
        assert!(pieces.windows(2).all(|two| two[0].0.at + two[0].0.bytes <= two[1].0.at), "{pieces:?}");
    }
}
