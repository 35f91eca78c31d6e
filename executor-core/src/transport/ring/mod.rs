//! Frames over shared memory: two byte rings for each worker, and one doorbell for each pool.
//!
//! ```text
//!              segment (a sealed memfd, mapped by both)
//!  pool        ┌────────────────────────────────────────┐        worker
//!  RingLink ──►│ down: messages to the worker  ─────────│──► RingWorkerEnd::recv
//!  Lease    ◄──│───────── up: messages from the worker  │◄── RingWorkerEnd::reply
//!              │ board: which tasks have begun          │
//!              └────────────────────────────────────────┘
//! ```
//!
//! # One direction
//!
//! Each ring has one producer and one consumer. `head` is the total number of words ever published
//! and is written only by the producer. `tail` is the total number of words ever consumed and is
//! written only by the consumer. The words between them are messages, one after the other. A
//! message is a word with its length, followed by its bytes in whole words.
//!
//! | step | side | action | if the side dies right after it |
//! |---|---|---|---|
//! | 1 | producer | writes length and bytes after `head` | the consumer does not see them |
//! | 2 | producer | stores `head` (release) | the message is published, whole |
//! | 3 | producer | fence, reads `asleep`, rings | see below |
//! | 4 | consumer | reads `head` (acquire), checks, copies the bytes | the message is still there |
//! | 5 | consumer | stores `tail` (release) | the message is consumed |
//! | 6 | consumer | fence, reads `wanting_room`, rings | see below |
//!
//! # Sleeping
//!
//! A side that finds nothing to do announces its sleep in a word, looks at the ring once more, and
//! then sleeps on that word. The other side does the opposite: it first publishes, then reads the
//! word. Both have a sequentially consistent fence between the two steps, so at least one of them
//! sees what the other wrote, and no wake-up is lost. The side that wakes the other clears the word
//! first. So a thousand messages to a consumer that is awake cost no system call. Before it sleeps,
//! a side looks again for a few microseconds, if that has paid off so far ([`Spin`]).
//!
//! Each sleeping side is also woken when the other side dies:
//!
//! - The worker sleeps until there is a message, or space. If the pool's process dies, the worker's
//!   watcher thread kills the worker.
//! - The thread that drains the replies sleeps until there is a message, or space for messages in
//!   the outbox. If the worker dies, [`Link::hang_up`] sets a flag and rings. The thread first
//!   reads what was published, then reports the end.
//! - The worker may die or be stopped after it has cleared a word and before it wakes the sleeper.
//!   So the pool's own wake-ups (`hang_up`, [`poke`](RingLink::poke)) wake the sleeper whatever the
//!   word says.
//!
//! # The lease
//!
//! The replies of a worker have one drain lease. Its owner is the ring's only consumer:
//!
//! ```text
//!            try_lease                        sleep                         rung
//!  UNATTENDED ─────────► AWAKE (drains) ─────────────► WAITS (on the word) ─────► AWAKE
//!      ▲ ▲                   │                                                      │
//!      │ └──── drop lease ───┴──────────────────────────────────────────────────────┘
//!      │
//!      └─ a worker that rings here wakes the pool's reader through the pool's [`Doorbell`],
//!         and leaves AWAKE
//! ```
//!
//! A thread that waits for a result takes the lease of the worker that has its task. So the thread
//! gets the reply directly, without a hop through the reader.
//!
//! To give the lease back, the owner takes these steps, in this order:
//!
//! 1. It writes `UNATTENDED`. From now on the worker rings the doorbell for new messages.
//! 2. It looks at the ring. If there is a message already, it writes `AWAKE`: the ring needs
//!    attention.
//! 3. It unlocks the lease.
//! 4. It reads the word once more. If the word is not `UNATTENDED`, it rings the doorbell.
//!
//! Step 4 is needed because the worker may ring between steps 1 and 3. The reader then finds the
//! lease taken, does not wait for it, and sleeps again. The doorbell has to ring once more when the
//! lease is free.
//!
//! So some thread always looks at a published message: the owner before it sleeps or leaves, and
//! after that the reader. If a ring is `AWAKE` while the lease is free, the reader was told of the
//! ring and has not got to it. Before it sleeps, the reader looks at all rings that are not
//! `UNATTENDED`. It reads the count of the `Doorbell` before that, so it does not sleep if a ring
//! came in the meantime.
//!
//! The pool's sender never sleeps. A message for which there is no space waits in the outbox. When
//! the worker has made space, it rings the thread that drains its replies, and that thread sends
//! from the outbox.
//!
//! # Distrust
//!
//! The worker may write anything anywhere in the segment at any time. The pool reads each word once
//! into its own memory and checks that copy. The worker is cut off if a position is impossible
//! (more published than the ring holds, or more consumed than was published), or if a length goes
//! beyond what was published. All accesses are atomic, so the worst effect of a foreign write is a
//! wrong value.
//!
//! The words that say which side sleeps decide only about wake-ups. No thread in the pool relies on
//! one for longer than [`HEARING`]. A worker that writes false values there delays itself, and the
//! threads that wait for it, by at most that time.

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
        std_or_model::{
            self, Mutex, MutexGuard,
            atomic::{AtomicBool, Ordering, fence},
        },
    },
    wire::{
        frame::{
            Assembler, Frame, FromWorker, HEADER_BYTES, Header, Order, Reply, ToWorker, WireError,
        },
        payload::Payload,
    },
};

/// Maximum number of bytes in a message. A longer frame is sent in parts. A higher value means that
/// a part waits until more space is free. A lower value means more rounds for a large payload.
const PART_BYTES_MAX: usize = if std_or_model::MODEL { (spsc::WORDS - 1) * 8 } else { 32 * 1024 };

/// The shared memory of the pool and one worker.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) board: Board,
    down: Ring,
    up: Ring,
}

// SAFETY: `repr(C)`, its fields contain only atomics and have no drop glue, and all-zero bytes are
// a valid value.
unsafe impl SharedLayout for Segment {}

/// Creates a segment, and the descriptor to send to the worker.
pub(crate) fn create() -> io::Result<(Shared<Segment>, OwnedFd)> {
    Shared::create("executor-worker")
}

/// Makes the pool's end of a segment.
pub(crate) fn connect(segment: Shared<Segment>, doorbell: Arc<Shared<Doorbell>>) -> RingLink {
    segment.up.leave_unattended();
    RingLink {
        sending: Mutex::new(Sending {
            outbox: Outbox::new(PART_BYTES_MAX),
            producer: Producer::default(),
        }),
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
    /// Its lock is the lease.
    receiving: Mutex<Receiving>,
    /// Whether the outbox waits for space. The thread that drains sends from the outbox when the
    /// worker rings.
    wants_room: AtomicBool,
    /// Whether the thread that drains sleeps, or is about to. Not in shared memory: the pool's own
    /// wake-ups must not depend on what the worker writes there.
    sleeps: AtomicBool,
    hung_up: AtomicBool,
    /// Whether the worker wrote an impossible position.
    unruly: AtomicBool,
}

/// The state of sending to the worker.
struct Sending {
    outbox: Outbox,
    producer: Producer,
}

/// The state of receiving from the worker.
#[derive(Default)]
struct Receiving {
    consumer: Consumer,
    assembler: Assembler<FromWorker>,
    message: Vec<u8>,
    /// The header of the last value. Its task id is that of the last value received, with or
    /// without header.
    last: Option<FromWorker>,
    spin: Spin,
    /// Whether the end was reported.
    over: bool,
}

impl RingLink {
    fn lock_sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves waiting messages from the outbox into the ring.
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
            // Announce the wish first, then look once more. Space made in the meantime is either
            // seen here, or the worker sees the wish and rings.
            down.want_room();
            if !producer.has_room_for(down, outbox.next_message_len()) {
                return;
            }
        }
    }

    /// Marks the worker as broken, and wakes the thread that will report it.
    fn set_unruly(&self) {
        self.unruly.store(true, Ordering::SeqCst);
        self.segment.up.ring_attendant(&self.doorbell);
    }

    /// Whether some thread should look at the replies, or is doing so.
    pub(crate) fn is_rung(&self) -> bool {
        let rung = self.segment.up.is_attended();
        // The caller tries to take the lease next. The fence orders that after the load above. So
        // either the caller finds the lease free, or the owner, who reads the word after unlocking
        // the lease, sees the same value and rings the doorbell.
        full_fence();
        rung
    }

    /// Wakes the thread that drains, if it sleeps. For events that do not come from the worker.
    pub(crate) fn poke(&self) {
        self.segment.up.poke_consumer();
        // The worker may have cleared the word without waking the thread.
        if self.sleeps.load(Ordering::SeqCst) {
            self.segment.up.wake_consumer();
        }
    }

    /// Takes the right to drain the replies. Returns `None` if another thread has it.
    pub(crate) fn try_lease(&self) -> Option<Lease<'_>> {
        let receiving = match self.receiving.try_lock() {
            Ok(receiving) => receiving,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        self.segment.up.attend();
        Some(Lease { link: self, receiving, _left: Left(self) })
    }

    /// Whether there is something to do for the thread that drains.
    fn is_due(&self, receiving: &Receiving) -> bool {
        !receiving.over
            && (!receiving.consumer.is_empty(&self.segment.up)
                || self.hung_up.load(Ordering::SeqCst)
                || self.unruly.load(Ordering::SeqCst)
                // The worker has cleared our wish for space, so there may be space now.
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
        // If no earlier frame waits and the frame is small, write it without going through the
        // outbox.
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
        // The ring itself tells how much space there is, so the number is not needed.
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
        // If the worker died between clearing a word and waking the sleeper, the words look as if
        // the sleeper had been woken. So wake it whatever they say.
        self.segment.up.wake_consumer();
        self.doorbell.ring_anyway();
    }

    fn board(&self) -> &Board {
        &self.segment.board
    }
}

impl Drop for RingLink {
    fn drop(&mut self) {
        // For a worker in the same process, as in tests. A real worker has a watcher thread for
        // this.
        self.segment.down.close();
        self.segment.up.close();
    }
}

/// The right to drain a worker's replies. See "The lease" in the module's documentation.
pub(crate) struct Lease<'a> {
    link: &'a RingLink,
    receiving: MutexGuard<'a, Receiving>,
    /// Dropped last, after the lock that is the lease was released.
    _left: Left<'a>,
}

/// Rings the doorbell when dropped, if the ring needs attention after the lease was given back.
struct Left<'a>(&'a RingLink);

impl Lease<'_> {
    /// Passes everything the worker has published to `sink`, without waiting. Returns whether there
    /// was anything.
    ///
    /// The end is reported once, after everything that was published before it.
    pub(crate) fn drain(
        &mut self,
        mut sink: impl FnMut(Frame<FromWorker>),
    ) -> Result<bool, Closed> {
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
        // The last frame, kept back because values without a header that follow belong to it.
        let mut open: Option<Frame<FromWorker>> = None;
        let mut any = false;
        // Read before the ring, so that everything the worker published before its death is seen
        // below.
        let over = self.link.hung_up.load(Ordering::SeqCst);
        let unruly = self.link.unruly.load(Ordering::SeqCst);
        // Take at most a ring's worth of words. Otherwise a worker that keeps publishing would hold
        // back the frames that came first.
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
            // A value without a header has the header of the value before it, with the next task
            // id.
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
            // Also while the worker still publishes, since it may never stop.
            _ if unruly => Err(Closed::Protocol(WireError::Position)),
            false if over => Err(Closed::Gone),
            any => Ok(any),
        }
    }

    /// Whether the end was reported.
    pub(crate) fn is_over(&self) -> bool {
        self.receiving.over
    }

    /// Sleeps until there is something to do or `ended` returns true, at most for `limit`. Code
    /// that makes `ended` true must call [`poke`](RingLink::poke) after that.
    ///
    /// May return early: the worker can also write the word that announces this sleep, and no side
    /// rings once it is garbled. So a sleep lasts at most [`HEARING`].
    pub(crate) fn sleep(&mut self, limit: Option<Duration>, ended: impl Fn() -> bool) {
        let limit = Some(limit.map_or(HEARING, |limit| limit.min(HEARING)));
        let link = self.link;
        let mut spin = std::mem::take(&mut self.receiving.spin);
        link.sleeps.store(true, Ordering::SeqCst);
        link.segment
            .up
            .sleep_consumer(&mut spin, limit, || ended() || link.is_due(&self.receiving));
        link.sleeps.store(false, Ordering::SeqCst);
        self.receiving.spin = spin;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let up = &self.link.segment.up;
        // First the word, then a look at the ring: see "The lease" in the module's documentation.
        up.leave_unattended();
        if self.link.is_due(&self.receiving) {
            // The next owner must look at the ring. `Left` tells the reader once the lease is free.
            up.attend();
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        // If the reader was told of this ring before now, it found the lease taken and went back to
        // sleep. So tell it again.
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

/// Maximum length of a value that is sent without a header. For longer values a header costs little
/// in comparison.
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

    /// Publishes a message made of these parts. Sleeps while there is no space.
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
                // Ring the thread that drains the replies, not the sender. The sender never sleeps,
                // and the thread that drains sends from the outbox.
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
            // The ring is empty, so there is as much space as there can be. Tell the pool before
            // sleeping.
            if down.take_wanted_room() {
                kill_point!(RoomWishTaken);
                up.ring_attendant(self.doorbell);
            }
            self.waited = true;
            let consumer = &self.consumer;
            down.sleep_consumer(&mut self.spin, None, || {
                !consumer.is_empty(down) || down.is_closed()
            });
        }
    }

    fn has_waited(&self) -> bool {
        self.waited
    }

    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed> {
        let header = FromWorker { length: payload.len() as u64, ..header };
        // If this value continues the last one with the next task id, its header can be left out.
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

/// The lease of a ring that no other thread drains, as an [`Inbox`], for the conformance tests.
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

/// Makes both ends in one process, for the conformance tests.
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

/// Returns where the interesting words of a segment are, as pairs of the first word and the number
/// of words.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) fn places() -> [(usize, usize); 12] {
    use std::mem::offset_of;
    let [down, up] = [offset_of!(Segment, down), offset_of!(Segment, up)].map(|at| at / 8);
    let of = |ring: usize| spsc::places().map(|(at, count)| (ring + at, count));
    let [a, b, c, d, e] = of(up);
    let [f, g, h, i, _] = of(down);
    // The positions are listed twice, so that they are chosen more often.
    [a, b, c, d, e, f, g, h, i, a, g, (0, 8)]
}

/// A worker's end that publishes any message.
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
#[derive(Default)]
pub(crate) struct Forger(Producer);

#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
impl Forger {
    pub(crate) fn publish(&mut self, segment: &Segment, message: &[u8]) {
        let _ = self.0.write(&segment.up, [message]);
    }
}

/// A sequentially consistent fence. See "Sleeping" in the module's documentation.
fn full_fence() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread sleeps until the worker rings. The worker clears the word and then does nothing
    /// more, and `then` has to wake the thread.
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
                // Wait until the thread sleeps on its word, or is about to.
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
