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
    /// A piece that nothing refers to yet; none if `pending_bytes` is 0.
    pending_at: AtomicU64,
    pending_bytes: AtomicU64,
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
    /// A piece that nothing refers to any more; none if `pending_bytes` is 0.
    pending_at: AtomicU64,
    pending_bytes: AtomicU64,
}

/// A piece outside of rings that a process writes or reads, without any mutex.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
struct Claim {
    /// 0: free.
    owner: AtomicU32,
    reserved: AtomicU32,
    at: AtomicU64,
    /// 0: nothing is claimed (any more).
    bytes: AtomicU64,
}

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
    fn read(&self, index: usize, len: usize, out: &mut Vec<u8>);
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
        at: u64,
        len: u64,
    },
}

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
    Elsewhere { at: u64, len: u64 },
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
            Body::Elsewhere { .. } => ITEM | attached | ELSEWHERE | 16 << LEN_SHIFT,
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
        let pending = producers.pending_at.load(Ordering::Relaxed);
        let sending = producers.sending.load(Ordering::Relaxed);
        let (mut found_pending, mut found_sending) = (false, false);
        let mut tail = self.tail()?;
        let mut steps = 0..STEPS_MAX;
        loop {
            steps.next().ok_or_else(garbled)?;
            let header = tail.word(0).load(Ordering::Acquire);
            match header & 0xff {
                0 => break,
                MOVED => {
                    let (at, bytes) = moved_to(&tail);
                    found_pending |= at == pending;
                    self.flip(&producers.places, &producers.generation, tail.generation, at, bytes);
                    tail = self.tail()?;
                }
                _ => {
                    let words = checked_words(header, &tail)?;
                    if header & 0xff == ITEM {
                        let number = tail.word(1).load(Ordering::Relaxed);
                        producers.count.store(number.wrapping_add(1), Ordering::Release);
                        let attached = u64::from(header & ATTACHED != 0);
                        found_sending |= attached == 1 && tail.word(2).load(Ordering::Relaxed) == sending;
                        found_pending |= header & ELSEWHERE != 0
                            && tail.word(2 + attached).load(Ordering::Relaxed) == pending;
                    }
                    tail.advance(words);
                }
            }
        }
        let bytes = producers.pending_bytes.load(Ordering::Relaxed);
        if bytes != 0 && !found_pending {
            self.memory.free(pending, bytes);
        }
        producers.pending_bytes.store(0, Ordering::Relaxed);
        if sending != 0 && !found_sending {
            self.publish(VOID | ATTACHED, None, sending, &[])?;
        }
        producers.sending.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// From now on, the descriptors with this ticket are thrown away unless they are put. Under the mutex.
    pub(super) fn new_ticket(&self) -> u64 {
        let producers = &self.layout.producers;
        let ticket = producers.ticket.load(Ordering::Relaxed) + 1;
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
        let bytes: &[u8] = match &entry.body {
            Body::Inline(bytes) => bytes,
            Body::Elsewhere { at, len } => {
                // Whoever repairs knows of it before it is no more the claim's.
                producers.pending_at.store(*at, Ordering::Relaxed);
                producers.pending_bytes.store(*len, Ordering::Release);
                kill_point!(QueuePendingNoted);
                if let Some(claim) = claim.take() {
                    self.release(claim);
                }
                kill_point!(QueueClaimHandedOn);
                &[at.to_ne_bytes(), len.to_ne_bytes()].concat()
            }
        };
        let number = producers.count.load(Ordering::Relaxed);
        // There is room, so it is published.
        self.publish(entry.header(), Some(number), entry.ticket.unwrap_or(0), bytes)?;
        // All that follows is put right by the next one, if this one dies.
        producers.pending_bytes.store(0, Ordering::Relaxed);
        if entry.ticket.is_some() {
            producers.sending.store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Says of descriptors that were sent in vain that they are. Under the mutex.
    pub(super) fn void_what_was_sent(&self) -> io::Result<()> {
        let producers = &self.layout.producers;
        let sending = producers.sending.load(Ordering::Relaxed);
        if sending != 0 {
            self.publish(VOID | ATTACHED, None, sending, &[])?;
            producers.sending.store(0, Ordering::Relaxed);
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

    /// Writes a record behind the last one.
    fn publish(&self, header: u64, number: Option<u64>, ticket: u64, bytes: &[u8]) -> io::Result<()> {
        let need = words(header);
        let mut tail = self.reserve(need)?;
        let attached = u64::from(header & ATTACHED != 0);
        tail.word(1).store(number.unwrap_or(0), Ordering::Relaxed);
        if attached == 1 {
            tail.word(2).store(ticket, Ordering::Relaxed);
        }
        tail.ring.write(tail.index(2 + attached), bytes);
        kill_point!(QueueRecordWritten);
        tail.word(need).store(0, Ordering::Relaxed);
        tail.word(0).store(header, Ordering::Release);
        kill_point!(QueueRecordPublished);
        if let Some(number) = number {
            self.layout.producers.count.store(number.wrapping_add(1), Ordering::Release);
            kill_point!(QueuePutCounted);
        }
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
        let bytes = consumers.pending_bytes.load(Ordering::Relaxed);
        if bytes != 0 {
            let at = consumers.pending_at.load(Ordering::Relaxed);
            let head = self.head()?;
            // A ring that it had not left yet, or an item that it had not taken.
            let still_needed = head.place.at.load(Ordering::Relaxed) == at
                || self.item_elsewhere(&head).is_some_and(|item| item == at);
            if !still_needed {
                self.memory.free(at, bytes);
            }
            consumers.pending_bytes.store(0, Ordering::Relaxed);
        }
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
                            let mut place = Vec::new();
                            head.ring.read(head.index(body), 16, &mut place);
                            let number = |at: usize| {
                                place[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default()
                            };
                            FoundBody::Elsewhere { at: number(0), len: number(8) }
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
        let elsewhere = match found.body {
            FoundBody::Elsewhere { at, len } => {
                // Before anything has changed.
                let claim = self.claim(me)?;
                consumers.pending_at.store(at, Ordering::Relaxed);
                consumers.pending_bytes.store(len, Ordering::Release);
                Some((claim, at, len))
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
        Ok(elsewhere.map(|(claim, at, len)| {
            self.note(&claim, at, len);
            kill_point!(QueuePieceClaimed);
            consumers.pending_bytes.store(0, Ordering::Relaxed);
            claim
        }))
    }

    // Pieces outside of rings.

    /// A place to note a piece in, for this process.
    pub(super) fn claim(&self, me: OwnerId) -> io::Result<Claimed> {
        let mut mine = None;
        for (index, claim) in self.layout.claims.iter().enumerate() {
            let owner = claim.owner.load(Ordering::Relaxed);
            let dead = || OwnerId::from_bits(owner).is_none_or(|owner| !self.owners.is_alive(owner));
            let wanted = if owner == 0 { mine.is_none() } else { dead() };
            let take =
                || claim.owner.compare_exchange(owner, me.bits(), Ordering::Acquire, Ordering::Relaxed);
            if !wanted || take().is_err() {
                continue;
            }
            let bytes = claim.bytes.load(Ordering::Acquire);
            if bytes != 0 {
                // Of one that died.
                self.memory.free(claim.at.load(Ordering::Relaxed), bytes);
                claim.bytes.store(0, Ordering::Relaxed);
            }
            match mine {
                None => mine = Some(Claimed(index)),
                Some(_) => claim.owner.store(0, Ordering::Release),
            }
        }
        mine.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "too many large items are being put and got at this moment",
            )
        })
    }

    fn note(&self, claim: &Claimed, at: u64, bytes: u64) {
        let claim = &self.layout.claims[claim.0];
        claim.at.store(at, Ordering::Relaxed);
        claim.bytes.store(bytes, Ordering::Release);
    }

    /// A piece for so many bytes, claimed.
    pub(super) fn new_piece(&self, bytes: u64, me: OwnerId) -> io::Result<(u64, Claimed)> {
        let claim = self.claim(me)?;
        let at = self.layout.next.fetch_add(bytes, Ordering::Relaxed);
        self.note(&claim, at, bytes);
        kill_point!(QueuePieceMade);
        Ok((at, claim))
    }

    /// The piece is not this process's any more; it was handed on or given back.
    pub(super) fn release(&self, claim: Claimed) {
        let claim = &self.layout.claims[claim.0];
        claim.bytes.store(0, Ordering::Relaxed);
        claim.owner.store(0, Ordering::Release);
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

/// A claimed piece. To be [released](Chain::release), or else it is freed when the process has ended.
#[must_use = "it stays claimed until it is released"]
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
    let least = if header & ELSEWHERE != 0 { 16 } else { 0 };
    let fits = words > 0
        && words.is_multiple_of(UNIT)
        && words <= cursor.to_end()
        && header >> LEN_SHIFT >= least
        && (header & 0xff != PAD || header & 0xff <= ITEM);
    if fits { Ok(words) } else { Err(garbled()) }
}
