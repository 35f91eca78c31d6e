//! Frames over shared memory: two rings of bytes for each worker, and a doorbell for each direction.
//!
//! ```text
//!              segment (a sealed memfd, mapped by both)
//!  pool        ┌────────────────────────────────────────┐        worker
//!  RingLink ──►│ down: messages to the worker  ─────────│──► RingWorkerEnd::recv
//!  RingInbox ◄─│───────── up: messages from the worker  │◄── RingWorkerEnd::reply
//!              │ board: who has begun what              │
//!              └────────────────────────────────────────┘
//! ```
//!
//! # One direction
//!
//! One producer, one consumer. `head` counts the words that were ever published and is written by the producer only;
//! `tail` those that were ever consumed, by the consumer only. What lies between is one message after the other: a word
//! with its length, then its bytes in whole words.
//!
//! | step | who | what | if it dies right after |
//! |---|---|---|---|
//! | 1 | producer | writes length and bytes behind `head` | nobody sees them |
//! | 2 | producer | `head` (release) | the message is published, whole |
//! | 3 | producer | fence, looks at `asleep`, rings | see below |
//! | 4 | consumer | reads `head` (acquire), checks, copies the bytes out | the message is still there |
//! | 5 | consumer | `tail` (release) | it is consumed |
//! | 6 | consumer | fence, looks at `wanting_room`, rings | see below |
//!
//! # Sleeping
//!
//! A side that finds nothing to do says so in a word, looks once more, and sleeps on that word; the other side publishes
//! first and looks at the word then. With a sequentially consistent fence between the two steps on both sides, at least
//! one of them sees what the other did: a wake-up cannot be lost. Whoever wakes clears the word first, so that a
//! thousand messages to an awake consumer cost no system call. Before it sleeps, a side looks again for a few
//! microseconds, where that has paid ([`Spin`]).
//!
//! Who sleeps, and who wakes it if the other side dies now:
//!
//! - the worker, for a message or for room: its watcher thread kills the process when the pool's process dies;
//! - whoever drains the replies, for a message, or for room when the outbox waits: when the worker has died,
//!   [`Link::hang_up`] sets a flag and rings. What was published is read first; then comes the end. The worker may have
//!   died, or been stopped, after it had cleared a word and before it woke who sleeps there: so the pool's own wake-ups
//!   (`hang_up`, [`poke`](RingLink::poke)) do not go by what the word says.
//!
//! # The lease
//!
//! The replies of a worker have one drain lease. Who has it is the only consumer of the ring:
//!
//! ```text
//!            try_lease                        sleep                         rung
//!  UNATTENDED ─────────► AWAKE (drains) ─────────────► WAITS (on the word) ─────► AWAKE
//!      ▲ ▲                   │                                                      │
//!      │ └──── drop lease ───┴──────────────────────────────────────────────────────┘
//!      │
//!      └─ the worker that rings here wakes the pool's reader, by the pool's [`Doorbell`], and leaves AWAKE
//! ```
//!
//! A thread that waits for a result takes the lease of the worker that has its task, and so takes the reply without a
//! hop. When it gives the lease back, it says `UNATTENDED` first and looks at the ring then: what is there it rings for
//! itself, what comes later the worker rings for. The reader may hear that while the lease is not free yet, and cannot
//! wait for it; so who gave it back looks at the word once more after that, and rings again. So there is always someone who will look: the holder before it
//! sleeps or leaves; after that the reader. A ring that is `AWAKE` while nobody has the lease is one that the reader
//! has been told of and has not got to: it looks at all that are not `UNATTENDED` before it sleeps, and `Doorbell`'s
//! count, asked before the look, keeps it from sleeping over a ring that came during it.
//!
//! The pool's sender never sleeps: what finds no room waits in the outbox, and the worker rings whoever drains its
//! replies when it has made room, and that one pumps.
//!
//! # Distrust
//!
//! The worker may write anything anywhere in the segment at any time. The pool reads each word once into its own memory
//! and then looks at the copy: positions that cannot be (more published than the ring holds, consumed more than was
//! published) and lengths beyond what was published cut the worker off. All accesses are atomic, so a foreign write is a
//! wrong value at worst. Words that say who sleeps only decide about wake-ups, and nobody in the pool relies on one for
//! longer than [`HEARING`]: a worker that lies there delays itself, and what waits for it, by that much.

pub(crate) mod doorbell;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;
mod spsc;

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
    time::Duration,
};

use doorbell::{Doorbell, HEARING};
use spsc::{Consumer, Producer, Ring};

#[cfg(test)]
use super::Inbox;
use super::{Closed, Link, WorkerEnd, board::Board, outbox::Outbox};
use crate::{
    id::TaskId,
    os::{
        memory::{Shared, SharedLayout},
        spin::Spin,
        sync::{
            self, Mutex, MutexGuard,
            atomic::{AtomicBool, Ordering, fence},
        },
    },
    wire::{
        frame::{Assembler, Frame, FromWorker, HEADER_BYTES, Header, Order, Reply, ToWorker, WireError},
        payload::Payload,
    },
};

/// A frame above this goes in parts. Larger: a part waits for more room. Smaller: more rounds for a large payload.
const PART_BYTES_MAX: usize = if sync::MODEL { (spsc::WORDS - 1) * 8 } else { 32 * 1024 };

/// What pool and worker share.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) board: Board,
    down: Ring,
    up: Ring,
}

// SAFETY: `repr(C)`, its parts are atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Segment {}

/// A fresh segment and the descriptor to send to the worker.
pub(crate) fn create() -> io::Result<(Shared<Segment>, OwnedFd)> {
    Shared::create("executor-worker")
}

/// The pool's end.
pub(crate) fn connect(segment: Shared<Segment>, doorbell: Arc<Shared<Doorbell>>) -> RingLink {
    segment.up.leave_unattended();
    RingLink {
        sending: Mutex::new(Sending { outbox: Outbox::new(PART_BYTES_MAX), producer: Producer::default() }),
        receiving: Mutex::default(),
        wants_room: AtomicBool::new(false),
        sleeps: AtomicBool::new(false),
        hung_up: AtomicBool::new(false),
        unruly: AtomicBool::new(false),
        segment,
        doorbell,
    }
}

/// The pool's end of one worker's rings.
pub(crate) struct RingLink {
    segment: Shared<Segment>,
    doorbell: Arc<Shared<Doorbell>>,
    sending: Mutex<Sending>,
    /// Whoever holds it has the lease.
    receiving: Mutex<Receiving>,
    /// The outbox waits for room: who drains is to pump when the worker rings.
    wants_room: AtomicBool,
    /// Who drains sleeps, or is about to. Not among the shared words: the pool's own wake-ups do not depend on what the
    /// worker has done to those.
    sleeps: AtomicBool,
    hung_up: AtomicBool,
    /// The worker wrote what cannot be.
    unruly: AtomicBool,
}

struct Sending {
    outbox: Outbox,
    producer: Producer,
}

#[derive(Default)]
struct Receiving {
    consumer: Consumer,
    assembler: Assembler<FromWorker>,
    message: Vec<u8>,
    /// The header of the last value, with the id of the last that came without one.
    last: Option<FromWorker>,
    spin: Spin,
    /// The end was reported.
    over: bool,
}

impl RingLink {
    fn lock_sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what waits into the ring.
    fn pump(&self, Sending { outbox, producer }: &mut Sending) {
        let down = &self.segment.down;
        loop {
            let mut full = false;
            outbox.pump(|message| match producer.write(down, [message]) {
                Ok(true) => true,
                Ok(false) => {
                    full = true;
                    false
                }
                Err(spsc::Impossible) => {
                    self.set_unruly();
                    false
                }
            });
            down.ring_consumer();
            self.wants_room.store(full, Ordering::SeqCst);
            if !full {
                return;
            }
            // Said first, looked once more then: room that is made meanwhile is either seen here or rung for.
            down.want_room();
            if !producer.has_room_for(down, outbox.next_message_len()) {
                return;
            }
        }
    }

    fn set_unruly(&self) {
        self.unruly.store(true, Ordering::SeqCst);
        self.segment.up.ring_attendant(&self.doorbell);
    }

    /// Whether somebody should look at the replies, or does.
    pub(crate) fn is_rung(&self) -> bool {
        let rung = self.segment.up.is_attended();
        // Between this look and `try_lease`: either that finds the lease free, or who gives it back sees what we saw.
        full_fence();
        rung
    }

    /// Wakes who drains, if it sleeps: something it waits for has come from elsewhere.
    pub(crate) fn poke(&self) {
        self.segment.up.poke_consumer();
        if self.sleeps.load(Ordering::SeqCst) {
            self.segment.up.wake_consumer();
        }
    }

    /// The right to drain the replies, unless somebody has it.
    pub(crate) fn try_lease(&self) -> Option<Lease<'_>> {
        let receiving = match self.receiving.try_lock() {
            Ok(receiving) => receiving,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        self.segment.up.attend();
        Some(Lease { link: self, receiving, _left: Left(self) })
    }

    /// Whether there is something to do for who drains.
    fn is_due(&self, receiving: &Receiving) -> bool {
        !receiving.over
            && (!receiving.consumer.is_empty(&self.segment.up)
                || self.hung_up.load(Ordering::SeqCst)
                || self.unruly.load(Ordering::SeqCst)
                || (self.wants_room.load(Ordering::SeqCst) && !self.segment.down.room_is_wanted()))
    }
}

impl Link for RingLink {
    fn send(&self, header: ToWorker, payload: &Payload) {
        if header.order == Order::Run {
            self.segment.board.offer(header.seq, header.items.first);
        }
        let mut sending = self.lock_sending();
        let header = ToWorker { length: payload.len() as u64, ..header };
        if sending.outbox.is_empty() && HEADER_BYTES + payload.len() <= PART_BYTES_MAX {
            match sending.producer.write(&self.segment.down, [&header.to_bytes(), payload]) {
                Ok(true) => return,
                Ok(false) => {}
                Err(spsc::Impossible) => return self.set_unruly(),
            }
        }
        sending.outbox.push(header, payload.clone());
        self.pump(&mut sending);
    }

    fn flush(&self) {
        self.segment.down.ring_consumer();
    }

    fn credit(&self, _consumed: u64) {
        // The ring itself says how much room there is.
        if self.wants_room.load(Ordering::SeqCst) {
            self.pump(&mut self.lock_sending());
        }
    }

    fn taken_in(&self) -> u64 {
        self.lock_sending().outbox.sent()
    }

    fn hang_up(&self) {
        self.lock_sending().outbox.close();
        self.wants_room.store(false, Ordering::SeqCst);
        self.hung_up.store(true, Ordering::SeqCst);
        self.segment.up.ring_attendant(&self.doorbell);
        // The words look as if somebody had been woken if the worker died between taking one and waking who sleeps.
        self.segment.up.wake_consumer();
        self.doorbell.ring_anyway();
    }

    fn board(&self) -> &Board {
        &self.segment.board
    }
}

impl Drop for RingLink {
    fn drop(&mut self) {
        // For a worker in the same process, as in tests: a real one has a watcher for this.
        self.segment.down.close();
        self.segment.up.close();
    }
}

/// The right to drain a worker's replies; see the folder's opening.
pub(crate) struct Lease<'a> {
    link: &'a RingLink,
    receiving: MutexGuard<'a, Receiving>,
    /// Dropped last: the lease is free then.
    _left: Left<'a>,
}

/// The lease was given back.
struct Left<'a>(&'a RingLink);

impl Lease<'_> {
    /// Hands over what the worker has published, without waiting; whether there was anything.
    ///
    /// The end is reported once, and after everything that was published before it.
    pub(crate) fn drain(&mut self, mut sink: impl FnMut(Frame<FromWorker>)) -> Result<bool, Closed> {
        if self.receiving.over {
            return Ok(false);
        }
        let drained = self.drain_some(&mut sink);
        self.receiving.over = drained.is_err();
        drained
    }

    fn drain_some(&mut self, mut sink: impl FnMut(Frame<FromWorker>)) -> Result<bool, Closed> {
        let up = &self.link.segment.up;
        let Receiving { consumer, assembler, message, last, .. } = &mut *self.receiving;
        // Kept back for what may belong to it.
        let mut open: Option<Frame<FromWorker>> = None;
        let mut any = false;
        // Asked before looking: what the worker published before its death is seen below.
        let over = self.link.hung_up.load(Ordering::SeqCst);
        let unruly = self.link.unruly.load(Ordering::SeqCst);
        // At most a ring's worth, so that what came first is not held back by what keeps coming.
        let mut left = spsc::WORDS;
        while left > 0
            && let Some(kind) =
                consumer.read(up, message).map_err(|_| Closed::Protocol(WireError::Position))?
        {
            left = left.saturating_sub(message.len() / 8 + 1);
            any = true;
            if kind == spsc::Kind::Frames {
                assembler.message(message, |frame| {
                    *last = (frame.header.reply == Reply::Done).then_some(frame.header);
                    if let Some(before) = open.replace(frame) {
                        sink(before);
                    }
                })?;
                continue;
            }
            let header = last.as_mut().ok_or(WireError::Headless)?;
            header.task = TaskId::from_raw(header.task.as_u64().wrapping_add(1));
            match &mut open {
                Some(frame) => frame.more.push(message[..].into()),
                None => open = Some(Frame::new(*header, message[..].into())),
            }
        }
        if let Some(frame) = open {
            sink(frame);
        }
        if any {
            up.ring_producer();
        }
        match any {
            // Also while it still publishes: it might never cease to.
            _ if unruly => Err(Closed::Protocol(WireError::Position)),
            false if over => Err(Closed::Gone),
            any => Ok(any),
        }
    }

    /// Whether the end was reported.
    pub(crate) fn is_over(&self) -> bool {
        self.receiving.over
    }

    /// Sleeps until there is something to do or `ended` says so, at most for `limit`. Who makes `ended` true must
    /// [`poke`](RingLink::poke) after that.
    ///
    /// It may return early: the word that says who sleeps is the worker's as well, and once it is garbled nobody rings.
    pub(crate) fn sleep(&mut self, limit: Option<Duration>, ended: impl Fn() -> bool) {
        let limit = Some(limit.map_or(HEARING, |limit| limit.min(HEARING)));
        let link = self.link;
        let mut spin = std::mem::take(&mut self.receiving.spin);
        link.sleeps.store(true, Ordering::SeqCst);
        link.segment.up.sleep_consumer(&mut spin, limit, || ended() || link.is_due(&self.receiving));
        link.sleeps.store(false, Ordering::SeqCst);
        self.receiving.spin = spin;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let up = &self.link.segment.up;
        up.leave_unattended();
        if self.link.is_due(&self.receiving) {
            // For whoever is next; `Left` tells the reader.
            up.attend();
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        // Whoever was told of this ring before now has found the lease taken, and has gone back to sleep.
        full_fence();
        if self.0.segment.up.is_attended() {
            self.0.doorbell.ring();
        }
    }
}

/// The worker's end.
pub(crate) struct RingWorkerEnd {
    segment: &'static Segment,
    doorbell: &'static Doorbell,
    consumer: Consumer,
    producer: Producer,
    assembler: Assembler<ToWorker>,
    ready: VecDeque<Frame<ToWorker>>,
    message: Vec<u8>,
    spin: Spin,
    waited: bool,
    /// The header of the last reply, if it was a value.
    last: Option<FromWorker>,
}

/// A value above this has a header: there is little to be saved then.
const HEADLESS_BYTES_MAX: usize = 256;

impl RingWorkerEnd {
    pub(crate) fn new(segment: &'static Segment, doorbell: &'static Doorbell) -> Self {
        RingWorkerEnd {
            segment,
            doorbell,
            consumer: Consumer::default(),
            producer: Producer::default(),
            assembler: Assembler::default(),
            ready: VecDeque::new(),
            message: Vec::new(),
            spin: Spin::default(),
            waited: true,
            last: None,
        }
    }

    fn publish<const N: usize>(&mut self, parts: [&[u8]; N]) -> Result<(), Closed> {
        let up = &self.segment.up;
        while !self.producer.write(up, parts).map_err(|_| Closed::Gone)? {
            kill_point!(RingFull);
            if up.is_closed() {
                return Err(Closed::Gone);
            }
            let len = parts.iter().map(|part| part.len()).sum();
            up.sleep_producer(|| self.producer.has_room_for(up, Some(len)) || up.is_closed());
        }
        up.ring_attendant(self.doorbell);
        kill_point!(Rung);
        Ok(())
    }
}

impl WorkerEnd for RingWorkerEnd {
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed> {
        let Segment { down, up, .. } = self.segment;
        self.waited = false;
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            if self.consumer.read(down, &mut self.message).map_err(|_| Closed::Gone)?.is_some() {
                // Not the sender but who drains pumps: it is the one that may sleep.
                if self.consumer.is_low(down) && down.take_wanted_room() {
                    kill_point!(RoomWishTaken);
                    up.ring_attendant(self.doorbell);
                }
                let ready = &mut self.ready;
                self.assembler.message(&self.message, |frame| ready.push_back(frame))?;
                kill_point!(MessageTaken);
                continue;
            }
            if down.is_closed() {
                return Err(Closed::Gone);
            }
            if down.take_wanted_room() {
                kill_point!(RoomWishTaken);
                up.ring_attendant(self.doorbell);
            }
            self.waited = true;
            let consumer = &self.consumer;
            down.sleep_consumer(&mut self.spin, None, || !consumer.is_empty(down) || down.is_closed());
        }
    }

    fn has_waited(&self) -> bool {
        self.waited
    }

    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed> {
        let header = FromWorker { length: payload.len() as u64, ..header };
        let last = self.last.replace(header);
        if last.is_some_and(|last| last.precedes(&header))
            && payload.len() <= HEADLESS_BYTES_MAX
            && self.producer.write_headless(&self.segment.up, payload).map_err(|_| Closed::Gone)?
        {
            self.segment.up.ring_attendant(self.doorbell);
            kill_point!(Rung);
            return Ok(());
        }
        let (first, rest) = payload.split_at(payload.len().min(PART_BYTES_MAX - HEADER_BYTES));
        self.publish([&header.to_bytes(), first])?;
        rest.chunks(PART_BYTES_MAX).try_for_each(|part| {
            kill_point!(PartSent);
            self.publish([part])
        })
    }

    fn board(&self) -> &'static Board {
        &self.segment.board
    }
}

/// The lease of a ring that nobody else drains, in the form of the other transports: for the conformance tests.
#[cfg(test)]
struct RingInbox(Arc<RingLink>);

#[cfg(test)]
impl Inbox for RingInbox {
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed> {
        loop {
            let mut lease = self.0.try_lease().expect("nobody else drains");
            if lease.drain(&mut *sink)? {
                return Ok(());
            }
            lease.sleep(None, || false);
            if self.0.wants_room.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }
}

/// Both ends in one process, for the conformance tests.
#[cfg(test)]
pub(crate) fn pair() -> super::conformance::Pair {
    let (segment, fd) = create().unwrap();
    let mirror: &'static Segment = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let (doorbell, fd) = Shared::create("executor-doorbell").unwrap();
    let theirs: &'static Doorbell = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let link = Arc::new(connect(segment, Arc::new(doorbell)));
    super::conformance::Pair {
        inbox: Box::new(RingInbox(Arc::clone(&link))),
        link,
        worker: Box::new(RingWorkerEnd::new(mirror, theirs)),
    }
}

/// Where the words that mean something lie in a segment, as (first, how many).
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) fn places() -> [(usize, usize); 12] {
    use std::mem::offset_of;
    let [down, up] = [offset_of!(Segment, down), offset_of!(Segment, up)].map(|at| at / 8);
    let of = |ring: usize| spsc::places().map(|(at, count)| (ring + at, count));
    let [a, b, c, d, e] = of(up);
    let [f, g, h, i, _] = of(down);
    // The positions count twice.
    [a, b, c, d, e, f, g, h, i, a, g, (0, 8)]
}

/// A worker's side that publishes what it is told.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
#[derive(Default)]
pub(crate) struct Forger(Producer);

#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
impl Forger {
    pub(crate) fn publish(&mut self, segment: &Segment, message: &[u8]) {
        let _ = self.0.write(&segment.up, [message]);
    }
}

/// A full fence: see the folder's opening, on sleeping.
fn full_fence() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody sleeps until the worker says something; the worker takes its word, and gets no further.
    fn taken_and_not_woken(then: impl Fn(&RingLink)) {
        for _ in 0..100 {
            let (segment, _fd) = create().unwrap();
            let (doorbell, _fd) = Shared::create("executor-doorbell").unwrap();
            let link = connect(segment, Arc::new(doorbell));
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut lease = link.try_lease().unwrap();
                    while !ended.load(Ordering::SeqCst) && lease.drain(|_| ()).is_ok() {
                        lease.sleep(None, || ended.load(Ordering::SeqCst));
                    }
                });
                // Until it waits on its word, in the kernel or nearly so.
                while !link.segment.up.is_waited_for() {
                    std::thread::yield_now();
                }
                std::thread::yield_now();
                link.segment.up.attend();
                ended.store(true, Ordering::SeqCst);
                then(&link);
            });
        }
    }

    #[test]
    fn who_sleeps_hears_of_a_death_whatever_its_word_says() {
        taken_and_not_woken(|link| link.hang_up());
    }

    #[test]
    fn who_sleeps_is_poked_whatever_its_word_says() {
        taken_and_not_woken(|link| link.poke());
    }
}
