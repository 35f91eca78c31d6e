//! The words that processes share of a queue, and what is done with them, step by step: production code for one process or
//! ten, and for the model checkers.
//!
//! ```text
//!              places[0], [1]: at, bytes, position                        places[0], [1]
//!  consumers ──────────────┐                                 producers ────────┐
//!                          ▼                                                   ▼
//!  ring 4   …│ item │ item │ item │ Moved ► ring 5         ring 5   │ item │ item │ 0 …
//!             taken          to be taken
//!
//!  record:   header │ number │ [ticket] │ bytes, or where they are │       a multiple of 32 bytes, never broken by the end
//! ```
//!
//! # One store is the act
//!
//! A record is written behind the last one and published by the store of its header, where zero was before; so the word
//! behind the last record is always zero. It is taken by the store of `position` behind it. Everything else (the counts,
//! where the next record goes) follows from these and is put right by the next owner of the mutex if one dies before it has
//! followed. So a producer that is killed has either put a whole item or none, and what a killed consumer had begun to take
//! is there still, up to that one store.
//!
//! # Rings
//!
//! Producers never wait for room in a ring: when it is full, the record `Moved` says where the next one is, four times as
//! large up to a bound. A consumer that comes there gives the old one back. While consumers keep up, one ring goes round.
//!
//! `places[generation & 1]` is what counts. The other one is filled before the generation is stored, and belongs to a
//! generation that nobody looks at.
//!
//! # Descriptors
//!
//! They go over a socket before the record is published, with a number of their own, the ticket. If the producer dies in
//! between, the next one publishes a `Void` with the ticket, and consumers throw away what belongs to it. A consumer looks at
//! what is in the socket, takes the record, and only then takes the descriptors out of the socket. If it dies in between,
//! the next one throws them away.

use std::{io, sync::Arc, time::Instant};

use crate::{
    os::{
        liveness::{OwnerId, Owners},
        memory::SharedLayout,
        sync::{
            MODEL,
            atomic::{AtomicU32, AtomicU64, Ordering, fence},
        },
    },
    sync::raw::{Bell, RobustGuard, RobustMutex},
};

/// The first ring. More: each queue takes so much. Less: it is left sooner.
pub(super) const FIRST_BYTES: u64 = if MODEL { 128 } else { 64 << 10 };
/// The largest one. More: what consumers left behind goes back later. Less: a backlog moves more often.
const MOST_BYTES: u64 = if MODEL { 128 } else { 1 << 20 };
/// A record takes at most a quarter of its ring: longer items lie elsewhere.
pub(super) const INLINE_MAX: usize = if MODEL { 8 } else { MOST_BYTES as usize / 4 - 64 };

/// Records are multiples of so many words, and so are rings: at the end of a ring there is always room for a `Moved`.
const UNIT: u64 = 4;

/// Pieces outside of rings that are being written or read. More: a look at more when one looks for the dead. Less: so many
/// large items can be put and got at a time.
const CLAIMS: usize = if MODEL { 2 } else { 32 };

#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Place {
    at: AtomicU64,
    bytes: AtomicU64,
    /// In words, counted on and on.
    position: AtomicU64,
}

/// What producers do under their mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Producers {
    mutex: RobustMutex,
    /// Rung by producers: there are items.
    pub(super) items: Bell,
    generation: AtomicU64,
    places: [Place; 2],
    /// Items put so far.
    count: AtomicU64,
    /// A ring to which nothing leads yet; none if `pending_bytes` is 0.
    pending_at: AtomicU64,
    pending_bytes: AtomicU64,
    /// The claim of a piece that is about to be put, plus one; 0 if there is none.
    pending_claim: AtomicU64,
    /// The last ticket.
    ticket: AtomicU64,
    /// Descriptors may lie in the socket for which there is no record yet; 0 if not.
    sending: AtomicU64,
}

/// What consumers do under theirs.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Consumers {
    mutex: RobustMutex,
    /// Rung by consumers: there is room.
    pub(super) room: Bell,
    generation: AtomicU64,
    places: [Place; 2],
    /// Items taken so far.
    count: AtomicU64,
    /// What `count` will be when the item is taken that is being taken.
    taking: AtomicU64,
    /// The ticket of what is being taken, or was last.
    ticket: AtomicU64,
    /// A ring that is being left; none if `pending_bytes` is 0.
    pending_at: AtomicU64,
    pending_bytes: AtomicU64,
    /// The claim for a piece that is about to be taken, plus one; 0 if there is none.
    pending_claim: AtomicU64,
}

/// A piece outside of rings that a process writes or reads, without any mutex; or one that is kept for the next one who needs
/// any. Where a piece is when it is in the queue, only its record says.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Claim {
    /// Who has it; 0 for nobody, or [`STOCK`].
    owner: AtomicU32,
    reserved: AtomicU32,
    at: AtomicU64,
    /// 0: it has no piece (any more).
    bytes: AtomicU64,
}

/// The piece of a claim is kept: pages that were used before are filled several times as fast as new ones.
const STOCK: u32 = u32::MAX;
/// Of all that is kept. More: memory that lies idle. Less: larger items come to new pages.
///
/// Where processes are made to die at each step, little is kept, so that they come to giving back as well.
const STOCK_BYTES_MAX: u64 = if cfg!(feature = "kill-points") { 400 << 10 } else { 8 << 20 };

/// All of it. Zero is a queue without a ring: see [`Chain::begin`].
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Layout {
    /// 0: unbounded.
    capacity: AtomicU64,
    closed: AtomicU32,
    reserved: AtomicU32,
    /// The first byte of the file that was never given to anybody.
    next: AtomicU64,
    /// Items that were [done](Chain::mark_done).
    pub(super) done: AtomicU64,
    /// Rung when all are, or when the queue is closed.
    pub(super) all_done: Bell,
    pub(super) done_mutex: RobustMutex,
    pub(super) producers: Producers,
    pub(super) consumers: Consumers,
    claims: [Claim; CLAIMS],
}

// SAFETY: `repr(C)`, atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Layout {}

/// Words of a ring.
pub(super) trait Words {
    fn words(&self) -> usize;
    fn word(&self, index: usize) -> &AtomicU64;
    fn write(&self, index: usize, bytes: &[u8]);
}

/// Where rings and large items lie, and how descriptors go.
pub(super) trait Memory {
    type Ring: Words;

    /// Makes a piece that was not there before.
    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()>;
    /// Gives it back; more than once does no harm.
    fn free(&self, at: u64, bytes: u64);
    /// The ring of producers, and of consumers: each side is often asked for the same one.
    fn ring(&self, side: Side, at: u64, bytes: u64) -> io::Result<Arc<Self::Ring>>;
    /// Throws away descriptors with tickets up to this one.
    fn discard(&self, ticket: u64);
}

/// So many records that are no items follow each other only where somebody garbles the memory.
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

/// What is put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) body: Body<'a>,
    pub(super) ticket: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'a> {
    Inline(&'a [u8]),
    /// In a piece of its own.
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

/// Of the place of an item that lies elsewhere, in its record.
const PIECE_BYTES: usize = 24;

/// What can be taken.
pub(super) struct Found<R> {
    number: u64,
    /// Behind it.
    end: u64,
    pub(super) ticket: Option<u64>,
    pub(super) body: FoundBody<R>,
}

pub(super) enum FoundBody<R> {
    Inline { ring: Arc<R>, word: usize, len: usize },
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

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the queue's memory is garbled")
}

/// Where a side is.
struct Cursor<'a, R> {
    ring: Arc<R>,
    place: &'a Place,
    generation: u64,
    position: u64,
}

impl<R: Words> Cursor<'_, R> {
    fn size(&self) -> u64 {
        self.ring.words() as u64
    }

    /// How many words there are from here to the end of the ring.
    fn to_end(&self) -> u64 {
        self.size() - self.position % self.size()
    }

    fn word(&self, ahead: u64) -> &AtomicU64 {
        self.ring.word(((self.position + ahead) % self.size()) as usize)
    }

    /// Where the words of a record are, none of which lies beyond the end of the ring.
    fn index(&self, ahead: u64) -> usize {
        (self.position % self.size() + ahead) as usize
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

/// Words of a record with this header.
fn words(header: u64) -> u64 {
    let attached = u64::from(header & ATTACHED != 0);
    (2 + attached + (header >> LEN_SHIFT).div_ceil(8)).next_multiple_of(UNIT)
}

impl<'a, M: Memory, O: Owners> Chain<'a, M, O> {
    /// Makes a queue of zeroed words.
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

    /// Items that were put and not taken.
    pub(super) fn len(&self) -> u64 {
        // In this order: what is taken meanwhile was put before.
        let taken = self.layout.consumers.count.load(Ordering::Acquire);
        let put = self.layout.producers.count.load(Ordering::Acquire);
        // An item can be taken before its producer has counted it.
        let len = put.wrapping_sub(taken);
        if len > u64::MAX / 2 { 0 } else { len }
    }

    pub(super) fn put_so_far(&self) -> u64 {
        self.layout.producers.count.load(Ordering::Acquire)
    }

    pub(super) fn capacity(&self) -> Option<u64> {
        Some(self.layout.capacity.load(Ordering::Relaxed)).filter(|capacity| *capacity > 0)
    }

    pub(super) fn is_full(&self) -> bool {
        self.capacity().is_some_and(|capacity| self.len() >= capacity)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.layout.closed.load(Ordering::Acquire) != 0
    }

    // Producers.

    /// What was begun by one that died is finished or undone when it is got.
    pub(super) fn lock_producers(&self, deadline: Option<Instant>) -> io::Result<Option<RobustGuard<'a, O>>> {
        let mutex = &self.layout.producers.mutex;
        let Some(guard) = mutex.lock_until(self.owners, deadline) else { return Ok(None) };
        if guard.owner_died()
            && let Err(error) = self.repair_producers()
        {
            // For the next one to try.
            std::mem::forget(guard);
            mutex.abandon();
            return Err(error);
        }
        Ok(Some(guard))
    }

    fn tail(&self) -> io::Result<Cursor<'a, M::Ring>> {
        let producers = &self.layout.producers;
        let generation = producers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Producers, &producers.places, generation)
    }

    fn cursor(&self, side: Side, places: &'a [Place; 2], generation: u64) -> io::Result<Cursor<'a, M::Ring>> {
        let place = &places[(generation & 1) as usize];
        let (at, bytes) = (place.at.load(Ordering::Relaxed), place.bytes.load(Ordering::Relaxed));
        let ring = self.memory.ring(side, at, bytes)?;
        let position = place.position.load(Ordering::Relaxed);
        if !(ring.words() as u64).is_multiple_of(UNIT)
            || !position.is_multiple_of(UNIT)
            || position > u64::MAX / 2
        {
            return Err(garbled());
        }
        Ok(Cursor { ring, place, generation, position })
    }

    fn repair_producers(&self) -> io::Result<()> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        let claimed = producers.pending_claim.load(Ordering::Relaxed);
        let claim = self.layout.claims.get((claimed as usize).wrapping_sub(1));
        let piece = claim.map(|claim| claim.at.load(Ordering::Relaxed));
        let mut tail = self.tail()?;
        for step in 0.. {
            let header = tail.word(0).load(Ordering::Acquire);
            let attached = u64::from(header & ATTACHED != 0);
            match header & 0xff {
                0 => break,
                _ if step > STEPS_MAX => return Err(garbled()),
                MOVED => {
                    let (at, bytes) = moved_to(&tail);
                    self.flip(&producers.places, &producers.generation, tail.generation, at, bytes);
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
                        // It is the queue's.
                        claim.bytes.store(0, Ordering::Relaxed);
                    }
                }
                _ => {}
            }
            if attached == 1 && tail.word(2).load(Ordering::Relaxed) == sending {
                producers.sending.store(0, Ordering::Relaxed);
            }
            // Last: as long as this is not stored, the one who repairs after us finds the record, too.
            let words = checked_words(header, &tail)?;
            tail.advance(words);
        }
        let (at, bytes) =
            (producers.pending_at.load(Ordering::Relaxed), producers.pending_bytes.load(Ordering::Relaxed));
        if bytes != 0 && tail.place.at.load(Ordering::Relaxed) != at {
            self.memory.free(at, bytes);
        }
        producers.pending_bytes.store(0, Ordering::Relaxed);
        // A piece that is not in the queue stays the dead one's, until somebody who wants one finds it.
        producers.pending_claim.store(0, Ordering::Release);
        self.void_what_was_sent()
    }

    /// From now on, the descriptors with this ticket are thrown away unless they are put. Under the mutex.
    pub(super) fn new_ticket(&self) -> u64 {
        let producers = &self.layout.producers;
        let ticket = producers.ticket.load(Ordering::Relaxed).wrapping_add(1);
        producers.ticket.store(ticket, Ordering::Relaxed);
        producers.sending.store(ticket, Ordering::Relaxed);
        kill_point!(QueueTicketTaken);
        ticket
    }

    /// Nothing was sent with the last ticket.
    pub(super) fn forget_ticket(&self) {
        self.layout.producers.sending.store(0, Ordering::Relaxed);
    }

    /// Whether there is room for one more. Under the mutex; if there is none, the number to sleep with.
    pub(super) fn look_for_room(&self) -> Result<(), u32> {
        if !self.is_full() {
            return Ok(());
        }
        let heard = self.layout.consumers.room.listen();
        // Either the consumer sees that we listen, or we see that it has taken something.
        fence(Ordering::SeqCst);
        if self.is_full() { Err(heard) } else { Ok(()) }
    }

    /// Puts an item. Under the mutex. If it is an error, nothing was put; descriptors that were sent for it are thrown away.
    pub(super) fn put(&self, entry: Entry<'_>, claim: &mut Option<Claimed>) -> io::Result<()> {
        let producers = &self.layout.producers;
        // If there is no memory, this is where that comes out, and nothing has changed but `sending`: the next one that
        // sends descriptors, or gets the mutex after a death, says that those are void.
        self.reserve(words(entry.header()))?;
        let place;
        let (bytes, claim) = match &entry.body {
            Body::Inline(bytes) => (*bytes, None),
            Body::Elsewhere { piece, len } => {
                place = piece.to_bytes(*len);
                (&place[..], claim.take())
            }
        };
        if let Some(Claimed(index)) = &claim {
            // From now on, whoever repairs says whose it is.
            producers.pending_claim.store(*index as u64 + 1, Ordering::Release);
            kill_point!(QueuePendingNoted);
        }
        let number = producers.count.load(Ordering::Relaxed);
        // There is room, so it is published.
        self.publish(entry.header(), number, entry.ticket.unwrap_or(0), bytes, || {
            producers.count.store(number.wrapping_add(1), Ordering::Release);
            kill_point!(QueuePutCounted);
            if let Some(claim) = claim {
                // In this order: a claim that others may take is nobody's pending one.
                let claim = &self.layout.claims[claim.0];
                claim.bytes.store(0, Ordering::Relaxed);
                producers.pending_claim.store(0, Ordering::Release);
                kill_point!(QueueClaimHandedOn);
                claim.owner.store(0, Ordering::Release);
            }
            if entry.ticket.is_some() {
                producers.sending.store(0, Ordering::Relaxed);
            }
        })?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Says of descriptors that were sent in vain that they are. Under the mutex.
    pub(super) fn void_what_was_sent(&self) -> io::Result<()> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        if sending != 0 {
            let follow = || producers.sending.store(0, Ordering::Relaxed);
            self.publish(VOID | ATTACHED, 0, sending, &[], follow)?;
        }
        Ok(())
    }

    /// Makes room for a record of so many words, in this ring or in the next.
    fn reserve(&self, need: u64) -> io::Result<Cursor<'a, M::Ring>> {
        let mut tail = self.tail()?;
        loop {
            let size = tail.size();
            let used = tail.position.wrapping_sub(self.taken_of(tail.generation));
            if used > size {
                return Err(garbled());
            }
            let pad = if need > tail.to_end() { tail.to_end() } else { 0 };
            // What is kept free behind it is for a `Moved`, and for the zero until then.
            if need <= size / 4 && used + pad + need + UNIT <= size {
                if pad > 0 {
                    tail.word(pad).store(0, Ordering::Relaxed);
                    tail.word(0).store(PAD | (pad * 8) << LEN_SHIFT, Ordering::Release);
                    tail.advance(pad);
                    kill_point!(QueuePadded);
                }
                return Ok(tail);
            }
            tail = self.move_on(tail, need)?;
        }
    }

    /// Writes a record behind the last one. What follows from its being there is to be done by `follow`, or by the one who
    /// repairs, who finds the record as long as the next one's place is not stored.
    fn publish(
        &self,
        header: u64,
        number: u64,
        ticket: u64,
        bytes: &[u8],
        follow: impl FnOnce(),
    ) -> io::Result<()> {
        let need = words(header);
        let mut tail = self.reserve(need)?;
        let attached = u64::from(header & ATTACHED != 0);
        tail.word(1).store(number, Ordering::Relaxed);
        if attached == 1 {
            tail.word(2).store(ticket, Ordering::Relaxed);
        }
        tail.ring.write(tail.index(2 + attached), bytes);
        kill_point!(QueueRecordWritten);
        tail.word(need).store(0, Ordering::Relaxed);
        tail.word(0).store(header, Ordering::Release);
        kill_point!(QueueRecordPublished);
        follow();
        tail.advance(need);
        kill_point!(QueueTailStored);
        Ok(())
    }

    /// How far consumers have come in this ring, which is the producers'.
    fn taken_of(&self, generation: u64) -> u64 {
        let consumers = &self.layout.consumers;
        // They are in this one, or still in one before; not in a later one, since there is none.
        if consumers.generation.load(Ordering::Acquire) != generation {
            return 0;
        }
        consumers.places[(generation & 1) as usize].position.load(Ordering::Acquire)
    }

    fn move_on(&self, tail: Cursor<'a, M::Ring>, need: u64) -> io::Result<Cursor<'a, M::Ring>> {
        let producers = &self.layout.producers;
        // A record is a quarter of it at most.
        let fits = need.next_power_of_two() * 8 * 4;
        let bytes = (tail.size() * 8 * 4).min(MOST_BYTES).max(fits);
        let at = self.layout.next.fetch_add(bytes, Ordering::Relaxed);
        producers.pending_at.store(at, Ordering::Relaxed);
        producers.pending_bytes.store(bytes, Ordering::Release);
        kill_point!(QueueRingNoted);
        let undo = |error| {
            self.memory.free(at, bytes);
            producers.pending_bytes.store(0, Ordering::Relaxed);
            error
        };
        self.memory.allocate(at, bytes).map_err(undo)?;
        kill_point!(QueueRingMade);
        // Mapped before it is published, so that this cannot fail afterwards.
        self.memory.ring(Side::Producers, at, bytes).map_err(undo)?;
        tail.word(2).store(at, Ordering::Relaxed);
        tail.word(3).store(bytes, Ordering::Relaxed);
        tail.word(0).store(MOVED | 16 << LEN_SHIFT, Ordering::Release);
        kill_point!(QueueMovePublished);
        self.flip(&producers.places, &producers.generation, tail.generation, at, bytes);
        kill_point!(QueueProducersMoved);
        producers.pending_bytes.store(0, Ordering::Relaxed);
        self.tail()
    }

    fn flip(&self, places: &[Place; 2], generation: &AtomicU64, now: u64, at: u64, bytes: u64) {
        let other = &places[((now + 1) & 1) as usize];
        other.at.store(at, Ordering::Relaxed);
        other.bytes.store(bytes, Ordering::Relaxed);
        other.position.store(0, Ordering::Relaxed);
        generation.store(now + 1, Ordering::Release);
    }

    /// Ends it for producers, and for consumers when it is empty. Under the producers' mutex.
    pub(super) fn close(&self) {
        self.layout.closed.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    // Consumers.

    /// As [`lock_producers`](Self::lock_producers).
    pub(super) fn lock_consumers(&self, deadline: Option<Instant>) -> io::Result<Option<RobustGuard<'a, O>>> {
        let mutex = &self.layout.consumers.mutex;
        let Some(guard) = mutex.lock_until(self.owners, deadline) else { return Ok(None) };
        if guard.owner_died()
            && let Err(error) = self.repair_consumers()
        {
            std::mem::forget(guard);
            mutex.abandon();
            return Err(error);
        }
        Ok(Some(guard))
    }

    fn head(&self) -> io::Result<Cursor<'a, M::Ring>> {
        let consumers = &self.layout.consumers;
        let generation = consumers.generation.load(Ordering::Relaxed);
        self.cursor(Side::Consumers, &consumers.places, generation)
    }

    fn repair_consumers(&self) -> io::Result<()> {
        let consumers = &self.layout.consumers;
        let (at, bytes) =
            (consumers.pending_at.load(Ordering::Relaxed), consumers.pending_bytes.load(Ordering::Relaxed));
        let head = self.head()?;
        if bytes != 0 && head.place.at.load(Ordering::Relaxed) != at {
            self.memory.free(at, bytes);
        }
        consumers.pending_bytes.store(0, Ordering::Relaxed);
        let claimed = consumers.pending_claim.load(Ordering::Relaxed);
        if let Some(claim) = self.layout.claims.get((claimed as usize).wrapping_sub(1)) {
            // Not taken: the piece is the item's still. Otherwise it is the dead one's.
            if self.item_elsewhere(&head) == Some(claim.at.load(Ordering::Relaxed)) {
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
        let ticket = consumers.ticket.load(Ordering::Relaxed);
        if ticket != 0 && found.is_none_or(|found| found.ticket != Some(ticket)) {
            self.memory.discard(ticket);
        }
        Ok(())
    }

    /// Where the item lies that is next, if that is not in the ring.
    fn item_elsewhere(&self, head: &Cursor<'a, M::Ring>) -> Option<u64> {
        let header = head.word(0).load(Ordering::Acquire);
        let attached = u64::from(header & ATTACHED != 0);
        (header & 0xff == ITEM && header & ELSEWHERE != 0)
            .then(|| head.word(2 + attached).load(Ordering::Relaxed))
    }

    /// The next item. Under the mutex.
    pub(super) fn find(&self) -> io::Result<Option<Found<M::Ring>>> {
        let consumers = &self.layout.consumers;
        let mut head = self.head()?;
        for _ in 0..STEPS_MAX {
            let header = head.word(0).load(Ordering::Acquire);
            match header & 0xff {
                0 => return Ok(None),
                MOVED => {
                    // The producer stands, or has died, between publishing this and going there itself. Nothing can be
                    // there before it has; and until then, whoever repairs reads here where it went.
                    if self.layout.producers.generation.load(Ordering::Acquire) <= head.generation {
                        return Ok(None);
                    }
                    let (at, bytes) = moved_to(&head);
                    // Mapped before it counts, so that a failure changes nothing.
                    self.memory.ring(Side::Consumers, at, bytes)?;
                    let old =
                        (head.place.at.load(Ordering::Relaxed), head.place.bytes.load(Ordering::Relaxed));
                    consumers.pending_at.store(old.0, Ordering::Relaxed);
                    consumers.pending_bytes.store(old.1, Ordering::Release);
                    kill_point!(QueueOldRingNoted);
                    self.flip(&consumers.places, &consumers.generation, head.generation, at, bytes);
                    kill_point!(QueueConsumersMoved);
                    self.memory.free(old.0, old.1);
                    kill_point!(QueueOldRingFreed);
                    consumers.pending_bytes.store(0, Ordering::Relaxed);
                    head = self.head()?;
                }
                PAD => {
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                VOID => {
                    self.memory.discard(head.word(2).load(Ordering::Relaxed));
                    let words = checked_words(header, &head)?;
                    head.advance(words);
                }
                ITEM => {
                    let words = checked_words(header, &head)?;
                    let attached = u64::from(header & ATTACHED != 0);
                    let body = 2 + attached;
                    return Ok(Some(Found {
                        number: head.word(1).load(Ordering::Relaxed),
                        end: head.position + words,
                        ticket: (attached == 1).then(|| head.word(2).load(Ordering::Relaxed)),
                        body: if header & ELSEWHERE != 0 {
                            let number = |at: u64| head.word(body + at).load(Ordering::Relaxed);
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
                _ => return Err(garbled()),
            }
        }
        Err(garbled())
    }

    /// As [`find`](Self::find); if there is none, the number to sleep with.
    pub(super) fn find_or_listen(&self) -> io::Result<Result<Found<M::Ring>, u32>> {
        if let Some(found) = self.find()? {
            return Ok(Ok(found));
        }
        let heard = self.layout.producers.items.listen();
        // Either the producer sees that we listen, or we see what it has put.
        fence(Ordering::SeqCst);
        Ok(self.find()?.ok_or(heard))
    }

    /// Takes what was found. Under the same mutex. A piece outside of rings is claimed by this process then.
    pub(super) fn take(&self, found: &Found<M::Ring>, me: OwnerId) -> io::Result<Option<Claimed>> {
        let consumers = &self.layout.consumers;
        let claim = match found.body {
            FoundBody::Elsewhere { piece, .. } => {
                // Before anything has changed.
                let claim = self.claim_for(None, me)?;
                consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
                self.note(&claim, piece);
                kill_point!(QueuePieceClaimed);
                Some(claim)
            }
            FoundBody::Inline { .. } => None,
        };
        consumers.taking.store(found.number.wrapping_add(1), Ordering::Relaxed);
        if let Some(ticket) = found.ticket {
            consumers.ticket.store(ticket, Ordering::Relaxed);
        }
        kill_point!(QueueTakeNext);
        let place = &consumers.places[(consumers.generation.load(Ordering::Relaxed) & 1) as usize];
        place.position.store(found.end, Ordering::Release);
        kill_point!(QueueTaken);
        consumers.count.store(found.number.wrapping_add(1), Ordering::Release);
        kill_point!(QueueTakeCounted);
        fence(Ordering::SeqCst);
        if claim.is_some() {
            consumers.pending_claim.store(0, Ordering::Release);
        }
        Ok(claim)
    }

    // Pieces outside of rings.

    /// A claim for this process: with a piece of so many bytes at least, if there is one, otherwise without any.
    fn claim_for(&self, bytes: Option<u64>, me: OwnerId) -> io::Result<Claimed> {
        // Of pieces that are there, those that are neither too small nor far too large.
        let fits = |claim: &Claim| {
            let has = claim.bytes.load(Ordering::Acquire);
            bytes.is_some_and(|bytes| has >= bytes && has / 4 <= bytes)
        };
        let claims = || self.layout.claims.iter().enumerate();
        let found = claims()
            .find(|(_, claim)| fits(claim) && self.take_claim(claim, STOCK, me))
            .or_else(|| claims().find(|(index, claim)| self.take_of_dead(*index, claim, me)))
            .or_else(|| claims().find(|(_, claim)| self.take_claim(claim, 0, me)))
            .or_else(|| claims().find(|(_, claim)| self.take_claim(claim, STOCK, me)));
        let Some((index, claim)) = found else {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "too many large items are being put and got at this moment",
            ));
        };
        let has = claim.bytes.load(Ordering::Acquire);
        if has != 0 && !fits(claim) {
            self.memory.free(claim.at.load(Ordering::Relaxed), has);
            claim.bytes.store(0, Ordering::Relaxed);
        }
        Ok(Claimed(index))
    }

    fn take_claim(&self, claim: &Claim, from: u32, me: OwnerId) -> bool {
        claim.owner.load(Ordering::Relaxed) == from
            && claim.owner.compare_exchange(from, me.bits(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn take_of_dead(&self, index: usize, claim: &Claim, me: OwnerId) -> bool {
        let owner = claim.owner.load(Ordering::Relaxed);
        let is_dead = || OwnerId::from_bits(owner).is_none_or(|owner| !self.owners.is_alive(owner));
        // Whose the piece is, is for those to say who repair what it has left.
        let is_pending = || {
            let number = index as u64 + 1;
            self.layout.producers.pending_claim.load(Ordering::Acquire) == number
                || self.layout.consumers.pending_claim.load(Ordering::Acquire) == number
        };
        owner != 0 && owner != STOCK && is_dead() && !is_pending() && self.take_claim(claim, owner, me)
    }

    fn note(&self, claim: &Claimed, piece: Piece) {
        let claim = &self.layout.claims[claim.0];
        claim.at.store(piece.at, Ordering::Relaxed);
        claim.bytes.store(piece.bytes, Ordering::Release);
    }

    /// A piece for so many bytes, claimed; and whether it has never been used.
    pub(super) fn new_piece(&self, bytes: u64, me: OwnerId) -> io::Result<(Piece, Claimed, bool)> {
        let claim = self.claim_for(Some(bytes), me)?;
        let kept = &self.layout.claims[claim.0];
        let mut piece =
            Piece { at: kept.at.load(Ordering::Relaxed), bytes: kept.bytes.load(Ordering::Relaxed) };
        let is_new = piece.bytes == 0;
        if is_new {
            piece = Piece { at: self.layout.next.fetch_add(bytes, Ordering::Relaxed), bytes };
            self.note(&claim, piece);
        }
        kill_point!(QueuePieceMade);
        Ok((piece, claim, is_new))
    }

    /// Nobody needs the piece any more: it is kept, or given back.
    pub(super) fn give_back(&self, claim: Claimed) {
        let mine = &self.layout.claims[claim.0];
        let bytes = mine.bytes.load(Ordering::Relaxed);
        let kept = self.layout.claims.iter().filter(|claim| claim.owner.load(Ordering::Relaxed) == STOCK);
        let kept = kept.fold(0_u64, |sum, claim| claim.bytes.load(Ordering::Relaxed).saturating_add(sum));
        if bytes.saturating_add(kept) <= STOCK_BYTES_MAX {
            mine.owner.store(STOCK, Ordering::Release);
            kill_point!(QueuePieceKept);
            return;
        }
        self.memory.free(mine.at.load(Ordering::Relaxed), bytes);
        kill_point!(QueuePieceFreed);
        mine.bytes.store(0, Ordering::Relaxed);
        mine.owner.store(0, Ordering::Release);
    }

    // Items that are done.

    /// One item more is done; `false` if all were already.
    pub(super) fn mark_done(&self) -> bool {
        let mut done = self.layout.done.load(Ordering::Acquire);
        while done < self.put_so_far() {
            let next = self.layout.done.compare_exchange(done, done + 1, Ordering::AcqRel, Ordering::Acquire);
            match next {
                Ok(_) => {
                    fence(Ordering::SeqCst);
                    return true;
                }
                Err(now) => done = now,
            }
        }
        false
    }

    pub(super) fn all_are_done(&self) -> bool {
        self.layout.done.load(Ordering::Acquire) >= self.put_so_far()
    }
}

/// A claimed piece. To be [given back](Chain::give_back), or else somebody else takes it when this process has ended.
#[must_use = "it stays claimed until it is given back"]
#[derive(Debug)]
pub(super) struct Claimed(usize);

/// Where a `Moved` leads.
fn moved_to<R: Words>(cursor: &Cursor<'_, R>) -> (u64, u64) {
    (cursor.word(2).load(Ordering::Relaxed), cursor.word(3).load(Ordering::Relaxed))
}

/// The length of a record; an error if it cannot be one.
fn checked_words<R: Words>(header: u64, cursor: &Cursor<'_, R>) -> io::Result<u64> {
    let words = match header & 0xff {
        PAD => (header >> LEN_SHIFT) / 8,
        _ => words(header),
    };
    let least = if header & ELSEWHERE != 0 { PIECE_BYTES as u64 } else { 0 };
    let fits = words > 0
        && words.is_multiple_of(UNIT)
        && words <= cursor.to_end()
        && header >> LEN_SHIFT >= least
        && (header & 0xff != PAD || header & 0xff <= ITEM);
    if fits { Ok(words) } else { Err(garbled()) }
}
