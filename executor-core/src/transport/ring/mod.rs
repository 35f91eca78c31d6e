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
//! thousand messages to an awake consumer cost no system call.
//!
//! Who sleeps, and who wakes it if the other side dies now:
//!
//! - the worker, for a message or for room: its watcher thread kills the process when the pool's process dies;
//! - the pool's reader, for a message, or for room when its outbox waits: when the worker has died, [`Link::hang_up`]
//!   sets a flag and rings. What was published is read first; then comes the end.
//!
//! The pool's sender never sleeps: what finds no room waits in the outbox, and the worker rings the *reader* when it has
//! made room, which pumps.
//!
//! # Distrust
//!
//! The worker may write anything anywhere in the segment at any time. The pool reads each word once into its own memory
//! and then looks at the copy: positions that cannot be (more published than the ring holds, consumed more than was
//! published) and lengths beyond what was published cut the worker off. All accesses are atomic, so a foreign write is a
//! wrong value at worst. Words that say who sleeps only decide about wake-ups: a worker that lies there delays itself.

mod spsc;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use spsc::{Consumer, Producer, Ring};

use super::{
    Closed, Inbox, Link, WorkerEnd,
    board::{Begun, Board},
    outbox::Outbox,
};
use crate::{
    id::TaskId,
    os::memory::{Shared, SharedLayout},
    wire::{
        frame::{Assembler, Frame, HEADER_BYTES, Header, Kind, WireError, flag},
        payload::Payload,
    },
};

/// A frame above this goes in parts. Larger: a part waits for more room. Smaller: more rounds for a large payload.
const PART_BYTES_MAX: usize = 32 * 1024;

/// What pool and worker share.
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) board: Board,
    down: Ring,
    up: Ring,
}

// SAFETY: `repr(C)`, its parts are atomics only, no drop, zero is a value.
unsafe impl SharedLayout for Segment {}

/// A fresh segment and the descriptor to send to the worker.
pub(crate) fn create() -> std::io::Result<(Shared<Segment>, std::os::fd::OwnedFd)> {
    Shared::create("executor-worker")
}

/// The pool's ends.
pub(crate) fn connect(segment: Shared<Segment>) -> (Arc<RingLink>, RingInbox) {
    let link = Arc::new(RingLink {
        sending: Mutex::new(Sending { outbox: Outbox::new(PART_BYTES_MAX), producer: Producer::default() }),
        wants_room: AtomicBool::new(false),
        hung_up: AtomicBool::new(false),
        unruly: AtomicBool::new(false),
        segment,
    });
    let inbox = RingInbox {
        link: Arc::clone(&link),
        consumer: Consumer::default(),
        assembler: Assembler::default(),
        message: Vec::new(),
    };
    (link, inbox)
}

/// The pool's sending end.
pub(crate) struct RingLink {
    segment: Shared<Segment>,
    sending: Mutex<Sending>,
    /// The outbox waits for room: the reader is to pump when the worker rings.
    wants_room: AtomicBool,
    hung_up: AtomicBool,
    /// The worker wrote what cannot be.
    unruly: AtomicBool,
}

struct Sending {
    outbox: Outbox,
    producer: Producer,
}

impl RingLink {
    fn pump(&self, change: impl FnOnce(&mut Outbox)) {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let Sending { outbox, producer } = &mut *sending;
        change(outbox);
        let down = &self.segment.down;
        loop {
            let mut full = false;
            outbox.pump(|message| match producer.write(down, message) {
                Ok(true) => true,
                Ok(false) => {
                    full = true;
                    false
                }
                Err(spsc::Impossible) => {
                    self.unruly.store(true, Ordering::SeqCst);
                    down.ring_consumer();
                    self.segment.up.ring_consumer();
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
}

impl Link for RingLink {
    fn send(&self, header: Header, payload: Payload) {
        if header.kind == Kind::Run {
            self.segment.board.offer(header.slot, header.task);
        }
        self.pump(|outbox| outbox.push(header, payload));
    }

    fn credit(&self, _consumed: u64) {
        // The ring itself says how much room there is.
        if self.wants_room.load(Ordering::SeqCst) {
            self.pump(|_| ());
        }
    }

    fn begun(&self, slot: u16, task: TaskId) -> Begun {
        self.segment.board.begun(slot, task)
    }

    fn take_back(&self, slot: u16, task: TaskId) -> bool {
        self.segment.board.take_back(slot, task)
    }

    fn hang_up(&self) {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        sending.outbox.close();
        self.wants_room.store(false, Ordering::SeqCst);
        drop(sending);
        self.hung_up.store(true, Ordering::SeqCst);
        self.segment.up.ring_consumer();
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

/// The pool's receiving end.
pub(crate) struct RingInbox {
    link: Arc<RingLink>,
    consumer: Consumer,
    assembler: Assembler,
    message: Vec<u8>,
}

impl Inbox for RingInbox {
    fn recv(&mut self, sink: &mut dyn FnMut(Frame)) -> Result<(), Closed> {
        let RingLink { segment, wants_room, hung_up, unruly, .. } = &*self.link;
        let up = &segment.up;
        loop {
            let mut any = false;
            // Asked before looking: what the worker published before its death is seen below.
            let over = hung_up.load(Ordering::SeqCst);
            // At most a ring's worth, so that what came first is not held back by what keeps coming.
            let mut left = spsc::WORDS;
            while left > 0
                && self
                    .consumer
                    .read(up, &mut self.message)
                    .map_err(|_| Closed::Protocol(WireError::Position))?
            {
                left = left.saturating_sub(self.message.len() / 8 + 1);
                self.assembler.message(&self.message, &mut *sink)?;
                any = true;
            }
            up.ring_producer();
            if any {
                return Ok(());
            }
            if over {
                return Err(Closed::Gone);
            }
            if unruly.load(Ordering::SeqCst) {
                return Err(Closed::Protocol(WireError::Position));
            }
            if wants_room.load(Ordering::SeqCst) && !segment.down.room_is_wanted() {
                // The worker has made room since: the caller pumps.
                return Ok(());
            }
            up.sleep_consumer(|| {
                !self.consumer.is_empty(up)
                    || hung_up.load(Ordering::SeqCst)
                    || unruly.load(Ordering::SeqCst)
                    || (wants_room.load(Ordering::SeqCst) && !segment.down.room_is_wanted())
            });
        }
    }
}

/// The worker's end.
pub(crate) struct RingWorkerEnd {
    segment: &'static Segment,
    consumer: Consumer,
    producer: Producer,
    assembler: Assembler,
    ready: VecDeque<Frame>,
    message: Vec<u8>,
    buffer: Vec<u8>,
}

impl RingWorkerEnd {
    pub(crate) fn new(segment: &'static Segment) -> Self {
        RingWorkerEnd {
            segment,
            consumer: Consumer::default(),
            producer: Producer::default(),
            assembler: Assembler::default(),
            ready: VecDeque::new(),
            message: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn publish(&mut self, message: &[u8]) -> Result<(), Closed> {
        let up = &self.segment.up;
        while !self.producer.write(up, message).map_err(|_| Closed::Gone)? {
            if up.is_closed() {
                return Err(Closed::Gone);
            }
            up.sleep_producer(|| self.producer.has_room_for(up, Some(message.len())));
        }
        up.ring_consumer();
        Ok(())
    }
}

impl WorkerEnd for RingWorkerEnd {
    fn recv(&mut self) -> Result<Frame, Closed> {
        let Segment { down, up, .. } = self.segment;
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            if self.consumer.read(down, &mut self.message).map_err(|_| Closed::Gone)? {
                // Not the sender but the reader pumps: it is the one that may sleep.
                if self.consumer.is_low(down) && down.take_wanted_room() {
                    up.ring_consumer();
                }
                let ready = &mut self.ready;
                self.assembler.message(&self.message, |frame| ready.push_back(frame))?;
                continue;
            }
            if down.is_closed() {
                return Err(Closed::Gone);
            }
            if down.take_wanted_room() {
                up.ring_consumer();
            }
            down.sleep_consumer(|| !self.consumer.is_empty(down) || down.is_closed());
        }
    }

    fn claim(&self, header: &Header) -> bool {
        self.segment.board.claim(header.slot, header.task, header.flags & flag::TIMED != 0)
    }

    fn reply(&mut self, header: Header, payload: &[u8]) -> Result<(), Closed> {
        let header = Header { length: payload.len() as u64, ..header };
        let first = payload.len().min(PART_BYTES_MAX - HEADER_BYTES);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&header.to_bytes());
        buffer.extend_from_slice(&payload[..first]);
        let sent = self.publish(&buffer);
        self.buffer = buffer;
        sent?;
        payload[first..].chunks(PART_BYTES_MAX).try_for_each(|part| self.publish(part))
    }

    fn board(&self) -> &'static Board {
        &self.segment.board
    }
}

/// Both ends in one process, for the conformance tests.
#[cfg(test)]
pub(crate) fn pair() -> super::conformance::Pair {
    let (segment, fd) = create().unwrap();
    let mirror: &'static Segment = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let (link, inbox) = connect(segment);
    super::conformance::Pair { link, inbox: Box::new(inbox), worker: Box::new(RingWorkerEnd::new(mirror)) }
}

/// A full fence: see the module's part on sleeping.
fn full_fence() {
    fence(Ordering::SeqCst);
}
