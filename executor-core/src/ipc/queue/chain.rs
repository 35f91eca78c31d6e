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
//! # Places
//!
//! Rings and large items have places in the file. A place has one owner at any moment: the queue (a place that a record or
//! `places` names), or one of the `claims`: of a process that writes or reads there, or of nobody, to be taken by the next one
//! who needs it, with its memory ([`STOCK`]) or without ([`HOLE`]). It goes from one to the other by one store; around that
//! store `pending_claim` tells whoever repairs to look which side has it. What is given back is merged with the holes beside it,
//! and at the end of the file `next` goes down again: so the file is about as long as what was in the queue at a time.
//!
//! A claim is had while a process writes, reads or gives back, and never while it waits for anything but a mutex: those for whom it
//! waits may need one. So a producer of a large item first gets room for it, under the mutex (`reserved` counts the items that are
//! being written), and then a claim, and writes when the mutex is free. If it cannot put the item at once then, it gives both back,
//! and waits with neither. Who finds no claim free waits on `freed`, except a consumer: it reads with a claim that is for rings
//! otherwise, under the mutex.
//!
//! Where a claim is shrunk or merged, the place is taken out of the one claim before it comes into the other. A process that
//! dies in between loses a place of a file that is sparse; two never have one.
//!
//! # Descriptors
//!
//! They go over a socket before the record is published, with a number of their own, the ticket. If the producer dies in
//! between, the next one publishes a `Void` with the ticket, and consumers throw away what belongs to it. A consumer looks at
//! what is in the socket, takes the record, and only then takes the descriptors out of the socket. If it dies in between,
//! the next one throws them away.

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

/// The first ring. More: each queue takes so much. Less: it is left sooner.
pub(super) const FIRST_BYTES: u64 = if MODEL { 128 } else { 64 << 10 };
/// Length of the largest ring.
///
/// A ring with the items of a bounded queue goes round; a queue whose items do not fit takes a new ring
/// again and again, and each new page costs as much as some items of 16 bytes. A thousand items of 1 KiB
/// need more than 1 MiB: with that as the largest ring they went at 0.6 times the rate. A higher value
/// means that a queue keeps more memory after a backlog, and that it takes longer to make a ring, which
/// is done under the producers' mutex (1 ms for 4 MiB).
///
/// It is smaller where processes are made to die at each step, so that they make rings more often.
const MOST_BYTES: u64 = match (MODEL, cfg!(feature = "kill-points")) {
    (true, _) => 256,
    (false, true) => 1 << 20,
    (false, false) => 4 << 20,
};
/// Longest item in a ring. It takes at most a quarter of the ring; longer items lie elsewhere, and are
/// written and read without a mutex.
pub(super) const INLINE_MAX: usize = if MODEL { 8 } else { (256 << 10) - 64 };

/// Records are multiples of so many words, and so are rings: at the end of a ring there is always room for a `Moved`.
const UNIT: u64 = 4;

/// Places that are being written or read, kept, or holes. More: a look at more when one looks for the dead. Less: so many
/// large items can be put and got at a time, and holes beyond that are lost.
const CLAIMS: usize = if MODEL { 4 } else { 64 };
/// Of those, so many are for whoever has one of the two mutexes: for a ring, of which each side moves one at a time, or for the
/// piece of a consumer that finds no other.
const CLAIMS_OF_RINGS: usize = 2;

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
    /// The claim of a piece that is about to be put, or of a ring to which nothing leads yet, plus one; 0 if there is none.
    pending_claim: AtomicU64,
    /// The last ticket: as many descriptors have been sent.
    ticket: AtomicU64,
    /// Descriptors may lie in the socket for which there is no record yet; 0 if not.
    sending: AtomicU64,
    /// Items that are being written and have room: claims that say so, or had said so when they were counted last.
    reserved: AtomicU64,
}

/// What consumers do under theirs.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Consumers {
    mutex: RobustMutex,
    /// Rung by consumers: there is room.
    pub(super) room: Bell,
    /// Rung by consumers: descriptors have left the socket. Who waits for that could do nothing with room, and would have been woken in
    /// the place of one that could.
    pub(super) descriptors: Bell,
    generation: AtomicU64,
    places: [Place; 2],
    /// Items taken so far.
    count: AtomicU64,
    /// What `count` will be when the item is taken that is being taken.
    taking: AtomicU64,
    /// The ticket of what is being taken or thrown away, or was last.
    ticket: AtomicU64,
    /// The claim for a piece that is about to be taken, or a ring that is about to be left, plus one; 0 if there is none.
    pending_claim: AtomicU64,
}

/// A place in the file that a process has, for a piece that it writes or reads without any mutex, or for a ring on its way in or
/// out; or one that the next one may have. Where a piece is when it is in the queue, only its record says.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Claim {
    /// Who has it; 0 for nobody, [`STOCK`], or [`HOLE`].
    owner: AtomicU32,
    /// Not 0: it is for an item that has room in the queue. Set under the producers' mutex only.
    has_room: AtomicU32,
    at: AtomicU64,
    /// 0: it has no piece (any more).
    bytes: AtomicU64,
}

/// The piece of a claim is kept: pages that were used before are filled several times as fast as new ones.
const STOCK: u32 = u32::MAX;
/// The place of a claim is nobody's, has no memory and reads as zeros.
const HOLE: u32 = u32::MAX - 1;
/// Of all that is kept. More: memory that lies idle. Less: larger items come to new pages.
///
/// Where processes are made to die at each step, little is kept, so that they come to giving back as well.
const STOCK_BYTES_MAX: u64 = if cfg!(feature = "kill-points") { 400 << 10 } else { 8 << 20 };
/// And of how many pieces. More: fewer claims are left for holes, and places of holes are lost. Less: small pieces come to new pages.
const STOCK_PIECES_MAX: usize = CLAIMS / 2;

/// All of it. Zero is a queue without a ring: see [`Chain::begin`].
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C, align(64))]
pub(super) struct Layout {
    /// 0: unbounded.
    capacity: AtomicU64,
    closed: AtomicU32,
    reserved: AtomicU32,
    /// Behind all places of the file that somebody has, or that are holes.
    next: AtomicU64,
    /// Rung when somebody needs a claim no more. It is written to without a mutex.
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

/// Words of a ring.
pub(super) trait Words {
    fn words(&self) -> usize;
    fn word(&self, index: usize) -> &AtomicU64;
    /// Beside that word.
    fn shadow(&self, index: usize) -> &Shadow;
    fn write(&self, index: usize, bytes: &[u8]);
}

/// Where rings and large items lie, and how descriptors go.
pub(super) trait Memory {
    type Ring: Words;
    /// A ring as one has it who is at it.
    type Mapped<'a>: Deref<Target = Self::Ring>
    where
        Self: 'a;

    /// Gives a place that reads as zeros its memory.
    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()>;
    /// Takes the memory of a place back, which reads as zeros then. Whether it does.
    fn free(&self, at: u64, bytes: u64) -> bool;
    /// The ring of producers, and of consumers: each side is often asked for the same one, and quicker if what it had before was
    /// dropped.
    fn ring(&self, side: Side, place: RingPlace) -> io::Result<Self::Mapped<'_>>;
    /// A ring that was mapped while the last one was in use is the last one now.
    fn keep<'a>(&'a self, side: Side, place: RingPlace, ring: Self::Mapped<'a>) -> Self::Mapped<'a>;
    /// A table of entries. See `holds.rs`.
    fn table(&self, at: u64, bytes: u64) -> io::Result<Arc<Self::Ring>>;
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
pub(super) struct Found<G> {
    number: u64,
    /// Behind it.
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

/// How many items were taken and put, ever.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counts {
    taken: u64,
    put: u64,
}

impl Counts {
    /// Items that were put and not taken.
    fn waiting(self) -> u64 {
        // An item can be taken before its producer has counted it.
        let waiting = self.put.wrapping_sub(self.taken);
        if waiting > u64::MAX / 2 { 0 } else { waiting }
    }
}

/// Where a ring lies, as shared words say, which any process that has a handle may have written.
///
/// The length is checked: not longer than a ring can be, so that no process maps more than that for
/// another one's word, and a power of two of at least one record, as the rings of [`Chain`] are. A
/// position in a ring is masked with its length, so other lengths would lead behind its end.
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
    /// Others have all claims. To be tried again when one of them has given its claim back: [`Chain::listen_for_claims`].
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

/// Where a side is.
struct Cursor<'a, G> {
    ring: G,
    /// Words of the ring, a power of two.
    size: u64,
    place: &'a Place,
    generation: u64,
    position: u64,
}

impl<G: Deref<Target: Words>> Cursor<'_, G> {
    /// Number of words from here to the end of the ring.
    fn to_end(&self) -> u64 {
        self.size - (self.position & (self.size - 1))
    }

    /// Index in the ring of the word that is `ahead` words from here.
    fn wrapped(&self, ahead: u64) -> usize {
        (self.position.wrapping_add(ahead) & (self.size - 1)) as usize
    }

    fn word(&self, ahead: u64) -> &AtomicU64 {
        self.ring.word(self.wrapped(ahead))
    }

    /// A word of a record that is published, and not taken yet.
    fn look(&self, ahead: u64) -> u64 {
        self.ring.shadow(self.wrapped(ahead)).look();
        self.word(ahead).load(Ordering::Relaxed)
    }

    /// Writes a word where consumers have given the memory back; they see it when the record is published.
    fn fill(&self, ahead: u64, word: u64) {
        self.ring.shadow(self.wrapped(ahead)).fill();
        self.word(ahead).store(word, Ordering::Relaxed);
    }

    /// Where the words of a record are, none of which lies beyond the end of the ring.
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

    /// Items that were put and not taken, and those that can be got again.
    pub(super) fn len(&self) -> u64 {
        self.counts().waiting().saturating_add(self.again())
    }

    fn counts(&self) -> Counts {
        // In this order: what is taken meanwhile was put before.
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

    /// Whether there is room for one more, beside what is being written.
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

    /// What was begun by one that died is finished or undone when it is got.
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

    /// As [`lock`](Self::lock), without waiting: if somebody has it, the mutex's word, for which to wait, marked.
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
                // For the next one to try.
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
        if let Some(claim) = claim
            && piece == Some(tail.place.at.load(Ordering::Relaxed))
        {
            // A ring, and something leads to it.
            claim.bytes.store(0, Ordering::Relaxed);
        }
        // A piece that is not in the queue stays the dead one's, until somebody who wants one finds it.
        producers.pending_claim.store(0, Ordering::Release);
        self.count_reserved(true);
        self.void_what_was_sent()
    }

    /// Descriptors that lie in the socket, or are being put there or taken.
    pub(super) fn in_flight(&self) -> u64 {
        // In this order: what is taken meanwhile was sent before.
        let taken = self.layout.consumers.ticket.load(Ordering::Acquire);
        self.layout.producers.ticket.load(Ordering::Acquire).wrapping_sub(taken)
    }

    /// From now on, so many descriptors, with this ticket, are thrown away unless they are put. Under the mutex.
    pub(super) fn new_ticket(&self, count: u64) -> u64 {
        let producers = &self.layout.producers;
        let ticket = producers.ticket.load(Ordering::Relaxed).wrapping_add(count);
        producers.ticket.store(ticket, Ordering::Relaxed);
        producers.sending.store(ticket, Ordering::Relaxed);
        kill_point!(QueueTicketTaken);
        ticket
    }

    /// Nothing was sent with the last ticket, which was for so many.
    pub(super) fn forget_ticket(&self, count: u64) {
        let producers = &self.layout.producers;
        producers.sending.store(0, Ordering::Relaxed);
        producers
            .ticket
            .store(producers.ticket.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    /// Whether there is room for one more. Under the mutex; if there is none, the number to sleep with. `of_dead`: to look as well
    /// whether it was reserved by processes that have died, which costs a system call for each other one that writes an item.
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

    /// A piece for an item of so many bytes, with room in the queue that [was found](Self::look_for_room); whether the piece has
    /// no memory yet. Under the mutex; to be written when that is free.
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

    /// Counts anew for how many items room is reserved: of those that gave it back or died, nobody has said so. Under the mutex.
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

    /// Puts an item. Under the mutex. If it is an error, nothing was put; descriptors that were sent for it are thrown away.
    pub(super) fn put(&self, entry: Entry<'_>, claim: &mut Option<Claimed>) -> Result<(), Failed> {
        let producers = &self.layout.producers;
        // If there is no memory, this is where that comes out, and nothing has changed but `sending`: the next one that
        // sends descriptors, or gets the mutex after a death, says that those are void.
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
            // From now on, whoever repairs says whose it is.
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

    /// What was claimed is the queue's.
    fn hand_on(&self, claim: Claimed) {
        // In this order: a claim that others may take is nobody's pending one.
        let claim = &self.layout.claims[claim.0];
        let producers = &self.layout.producers;
        claim.bytes.store(0, Ordering::Relaxed);
        producers.pending_claim.store(0, Ordering::Release);
        kill_point!(QueueClaimHandedOn);
        if claim.has_room.load(Ordering::Relaxed) != 0 {
            // The item counts as one that was put.
            claim.has_room.store(0, Ordering::Relaxed);
            let reserved = producers.reserved.load(Ordering::Relaxed);
            producers.reserved.store(reserved.saturating_sub(1), Ordering::Relaxed);
        }
        self.set_free(claim, 0);
    }

    /// Somebody else may have the claim, with what is in it, if it is kept.
    fn set_free(&self, claim: &Claim, to: u32) {
        claim.owner.store(to, Ordering::Release);
        // Either whoever looks for a claim sees this one, or we see that it waits.
        fence(Ordering::SeqCst);
        if self.layout.freed.is_listened_to() {
            self.layout.freed.ring_unlocked().wake_all();
        }
    }

    /// Of one that found no claim: the number to sleep with on [`freed`](Self::freed). It has to look once more before.
    pub(super) fn listen_for_claims(&self) -> u32 {
        let heard = self.layout.freed.listen();
        fence(Ordering::SeqCst);
        heard
    }

    /// Rung when somebody needs a claim no more.
    pub(super) fn freed(&self) -> &'a Bell {
        &self.layout.freed
    }

    /// Says of descriptors that were sent in vain that they are. Under the mutex.
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

    /// Makes room for a record of so many words, in this ring or in the next.
    fn reserve(&self, need: u64) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let mut tail = self.tail()?;
        loop {
            let size = tail.size;
            let used = tail.position.wrapping_sub(self.taken_of(tail.generation));
            if used > size {
                return Err(garbled().into());
            }
            let pad = if need > tail.to_end() { tail.to_end() } else { 0 };
            // What is kept free behind it is for a `Moved`, and for the zero until then.
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
    /// `follow` does what follows from the record's being there. If this process dies before it has,
    /// the one that repairs does it: it finds the record until the next one's place is stored.
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
        tail.fill(need, 0);
        tail.word(0).store(header, Ordering::Release);
        kill_point!(QueueRecordPublished);
        follow();
        tail.advance(need);
        kill_point!(QueueTailStored);
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

    fn move_on(
        &self,
        tail: Cursor<'a, M::Mapped<'a>>,
        need: u64,
    ) -> Result<Cursor<'a, M::Mapped<'a>>, Failed> {
        let producers = &self.layout.producers;
        // A record is a quarter of it at most.
        let fits = need.next_power_of_two() * 8 * 4;
        let bytes = (tail.size * 8 * 4).min(MOST_BYTES).max(fits);
        let (Piece { at, bytes }, claim) = self.new_place(bytes, self.owners.me(), &self.layout.claims)?;
        let made = self.memory.allocate(at, bytes).and_then(|()| {
            kill_point!(QueueRingMade);
            // Mapped before it is published, so that this cannot fail afterwards.
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
        // From now on, whoever repairs says whose it is.
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

    /// Goes to the next ring: its place, and the generation that it has.
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

    /// Ends it for producers, and for consumers when it is empty. Under the producers' mutex.
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
            // Not taken: the piece is the item's still; not left: the ring is the queue's; not given back: it is that of an entry.
            // Otherwise it is the dead one's.
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

    /// Throws away descriptors with tickets up to this one, and tells who waits for room for some. Under the consumers' mutex.
    pub(super) fn discard(&self, ticket: u64) {
        self.memory.discard(ticket);
        let descriptors = &self.layout.consumers.descriptors;
        // Either the producer sees that there is room, or we see that it listens.
        fence(Ordering::SeqCst);
        if descriptors.is_listened_to() {
            descriptors.ring_unlocked().wake_all();
        }
    }

    /// Where the item lies that is next, if that is not in the ring.
    fn item_elsewhere(&self, head: &Cursor<'a, M::Mapped<'a>>) -> Option<u64> {
        let header = head.word(0).load(Ordering::Acquire);
        let attached = u64::from(header & ATTACHED != 0);
        (header & 0xff == ITEM && header & ELSEWHERE != 0)
            .then(|| head.word(2 + attached).load(Ordering::Relaxed))
    }

    /// The next item. Under the mutex.
    pub(super) fn find(&self) -> Result<Option<Found<M::Mapped<'a>>>, Failed> {
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
                    let next = RingPlace::new(at, bytes)?;
                    let ring = self.memory.ring(Side::Consumers, next)?;
                    let old =
                        (head.place.at.load(Ordering::Relaxed), head.place.bytes.load(Ordering::Relaxed));
                    let me = self.owners.me();
                    let claim = self.claim(me, &self.layout.claims).ok_or(Failed::NoClaim)?;
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

    /// As [`find`](Self::find). If there is none: the number to sleep with, if this is to `listen`.
    pub(super) fn find_or_listen(&self, listen: bool) -> Result<Result<Found<M::Mapped<'a>>, u32>, Failed> {
        if let Some(found) = self.find()? {
            return Ok(Ok(found));
        }
        if !listen {
            return Ok(Err(0));
        }
        let heard = self.layout.producers.items.listen();
        // Either the producer sees that we listen, or we see what it has put.
        fence(Ordering::SeqCst);
        Ok(self.find()?.ok_or(heard))
    }

    /// What is needed to take what was found: for a piece outside of rings, a claim, unless an entry of this process's names it from
    /// then on. Under the mutex.
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

    /// Takes what was found. Under the same mutex. A piece outside of rings is this process's then, by that claim, or the entry's.
    pub(super) fn take(
        &self,
        found: &Found<M::Mapped<'a>>,
        reading: &Reading,
        free: Option<FreeHold<'_, M::Ring>>,
        me: OwnerId,
    ) -> Option<Held> {
        let consumers = &self.layout.consumers;
        let held = free.map(|free| self.write_hold(&free, me, found));
        let claim = reading.claim();
        if let (FoundBody::Elsewhere { piece, .. }, Some(claim)) = (&found.body, claim) {
            consumers.pending_claim.store(claim.0 as u64 + 1, Ordering::Release);
            self.note(claim, *piece);
            kill_point!(QueuePieceClaimed);
        }
        consumers.taking.store(found.number.wrapping_add(1), Ordering::Relaxed);
        if let Some(ticket) = found.ticket {
            consumers.ticket.store(ticket, Ordering::Release);
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
        held
    }

    // Places.

    fn claims_of_pieces(&self) -> &'a [Claim] {
        &self.layout.claims[CLAIMS_OF_RINGS..]
    }

    /// As somebody who has them all that are to be had.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn take_all_claims(&self) {
        while self.claim(self.owners.me(), &self.layout.claims).is_some() {}
    }

    fn index_of(&self, claim: &Claim) -> Claimed {
        let at = self.layout.claims.iter().position(|other| std::ptr::eq(other, claim));
        Claimed(at.expect("one of them"))
    }

    /// A claim without a place, one of these; none if others have them all.
    fn claim(&self, me: OwnerId, claims: &'a [Claim]) -> Option<Claimed> {
        let of = |owner: u32| claims.iter().filter(move |claim| claim.owner.load(Ordering::Relaxed) == owner);
        let bytes = |claim: &&Claim| claim.bytes.load(Ordering::Relaxed);
        // Each round makes the claim of a dead one somebody's or nobody's, or loses it to somebody else.
        for _ in 0..4 * CLAIMS {
            if let Some(claim) = claims.iter().find(|claim| self.take_claim(claim, 0, me)) {
                return Some(self.index_of(claim));
            }
            if self.bury(me, claims) {
                continue;
            }
            // What is kept is given back first: beside a hole, or at the end, it needs no claim of its own then.
            if let Some(kept) = of(STOCK).min_by_key(bytes) {
                if self.take_claim(kept, STOCK, me) {
                    self.shed(self.index_of(kept));
                }
                continue;
            }
            // There are as many holes as there can be; the place of one is lost until the file goes. The smallest.
            let hole = of(HOLE).min_by_key(bytes)?;
            if self.take_claim(hole, HOLE, me) {
                hole.bytes.store(0, Ordering::Relaxed);
                return Some(self.index_of(hole));
            }
        }
        None
    }

    /// Gives back what those of these claims had whose processes have died: nobody else finds it. Whether there was one.
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

    /// A place for so many bytes, without memory, claimed by one of these.
    fn new_place(&self, bytes: u64, me: OwnerId, claims: &'a [Claim]) -> Result<(Piece, Claimed), Failed> {
        // Places of the dead are used again before a new one is begun. Each of the others that has one costs a system call.
        self.bury(me, &self.layout.claims);
        let claimed = self.claim(me, claims).ok_or(Failed::NoClaim)?;
        let Some(hole) = self.take_hole(bytes, me) else {
            let at = self.layout.next.fetch_add(bytes, Ordering::AcqRel);
            let piece = Piece { at, bytes };
            self.note(&claimed, piece);
            return Ok((piece, claimed));
        };
        let (at, has) = (hole.at.load(Ordering::Relaxed), hole.bytes.load(Ordering::Relaxed));
        // The place goes to the claim that was asked for, and what is left of the hole stays where it was: a hole may be one of
        // the claims of rings, which a piece would keep for as long as it waits for room. In this order: see the module's opening.
        let Some(left) = has.checked_sub(bytes) else {
            // Somebody has written to the words since they were looked at. The place is lost.
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

    /// The first hole in the file with so many bytes at least, which is this process's then.
    fn take_hole(&self, bytes: u64, me: OwnerId) -> Option<&'a Claim> {
        let fits = |claim: &Claim| claim.bytes.load(Ordering::Acquire) >= bytes;
        for _ in 0..CLAIMS {
            let holes = self.layout.claims.iter();
            let hole = holes
                .filter(|claim| claim.owner.load(Ordering::Relaxed) == HOLE && fits(claim))
                .min_by_key(|claim| claim.at.load(Ordering::Relaxed))?;
            if self.take_claim(hole, HOLE, me) {
                // It may have become another one meanwhile.
                if fits(hole) {
                    return Some(hole);
                }
                self.set_free(hole, HOLE);
            }
        }
        None
    }

    /// Gives the memory of a place back, and the place to whoever needs one next.
    fn shed(&self, claimed: Claimed) {
        let mine = &self.layout.claims[claimed.0];
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        if !self.memory.free(at, bytes) {
            // What lies there would be taken for records. The place is lost.
            mine.bytes.store(0, Ordering::Relaxed);
            self.set_free(mine, 0);
            return;
        }
        kill_point!(QueuePieceFreed);
        self.merge(mine);
        let (at, bytes) = (mine.at.load(Ordering::Relaxed), mine.bytes.load(Ordering::Relaxed));
        let end = at.wrapping_add(bytes);
        if self.layout.next.load(Ordering::Relaxed) == end {
            // The last one: it is no hole, but what was never given to anybody.
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

    /// Takes the holes beside a place into its claim, which is this process's.
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
            // It may have become another one meanwhile.
            if !touches(other) {
                self.set_free(other, HOLE);
                continue;
            }
            let (start, len) = (other.at.load(Ordering::Relaxed), other.bytes.load(Ordering::Relaxed));
            other.bytes.store(0, Ordering::Release);
            kill_point!(QueueHolesMerged);
            // One that dies between these has claimed a part of both.
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
        // Whose the piece is, is for those to say who repair what it has left.
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

    /// A piece for so many bytes, claimed; and whether it has no memory yet.
    fn new_piece(&self, bytes: u64, me: OwnerId) -> Result<(Piece, Claimed, bool), Failed> {
        // Of pieces that are kept, those that are neither too small nor far too large.
        let fits = |claim: &Claim| {
            let has = claim.bytes.load(Ordering::Acquire);
            has >= bytes && has / 4 <= bytes
        };
        let kept =
            self.claims_of_pieces().iter().find(|claim| fits(claim) && self.take_claim(claim, STOCK, me));
        if let Some(claim) = kept {
            // It may have become another one meanwhile.
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

    /// Nobody needs the piece any more: it is kept, or given back.
    pub(super) fn give_back(&self, claim: Claimed) {
        let mine = &self.layout.claims[claim.0];
        // The room that it had: who looks for some counts anew.
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
            // Of two that come to this at the same time, one sees both.
            fence(Ordering::SeqCst);
            if !is_too_much(0, 0) || !me.is_some_and(|me| self.take_claim(mine, STOCK, me)) {
                return;
            }
        }
        self.shed(claim);
    }
}

/// A claimed piece. To be [given back](Chain::give_back), or else somebody else takes it when this process has ended.
#[must_use = "it stays claimed until it is given back"]
#[derive(Debug)]
pub(super) struct Claimed(usize);

/// How the bytes of an item that was taken are got.
#[derive(Debug)]
#[must_use = "it stays claimed until it is given back"]
pub(super) enum Reading {
    /// From the ring, before it is taken.
    Nothing,
    /// From the piece that is claimed, when the mutex is free.
    Later(Claimed),
    /// As before, under the mutex: the claim is one of those for whoever has that.
    Now(Claimed),
    /// From the piece that the item's entry names, when the mutex is free.
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

/// Where a `Moved` leads.
fn moved_to<G: Deref<Target: Words>>(cursor: &Cursor<'_, G>) -> (u64, u64) {
    (cursor.look(2), cursor.look(3))
}

/// The length of a record; an error if it cannot be one.
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

    /// Only places, nothing in them.
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
        // Two rings that were left, with one between them that is used.
        let rings: Vec<_> =
            (0..3).map(|_| chain.new_place(MOST_BYTES, me, &layout.claims).unwrap()).collect();
        for (number, (_, claim)) in rings.into_iter().enumerate() {
            match number {
                1 => layout.claims[claim.0].owner.store(0, Ordering::Release),
                _ => chain.shed(claim),
            }
        }
        // As of producers that wait for room.
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
        // No byte is in two of them.
        pieces.sort_by_key(|(piece, _)| piece.at);
        assert!(pieces.windows(2).all(|two| two[0].0.at + two[0].0.bytes <= two[1].0.at), "{pieces:?}");
    }
}
