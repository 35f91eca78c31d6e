//! The pool's end of one worker's rings: sending, and the lease with which a thread receives.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

#[cfg(test)]
use super::super::Inbox;
use super::{
    super::{Closed, Link, board::Board, outbox::Outbox},
    PART_BYTES_MAX, Segment,
    doorbell::{Doorbell, HEARING},
    full_fence,
    spsc::{self, Consumer, Producer},
};
use crate::{
    id::TaskId,
    os::{
        memory::Shared,
        spin::Spin,
        std_or_model::{
            Mutex, MutexGuard,
            atomic::{AtomicBool, Ordering},
        },
    },
    wire::{
        frame::{
            Assembler, Frame, FromWorker, HEADER_BYTES, Header, Order, Reply, ToWorker, WireError,
        },
        payload::Payload,
    },
};

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

/// The right to drain a worker's replies. See "The lease" in the parent module.
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
            if kind == spsc::MessageKind::Frames {
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

    /// Sleeps until there is something to do or `ended` returns true, at most for `timeout`. Code
    /// that makes `ended` true must call [`poke`](RingLink::poke) after that.
    ///
    /// May return early: the worker can also write the word that announces this sleep, and no side
    /// rings once it is garbled. So a sleep lasts at most [`HEARING`].
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>, ended: impl Fn() -> bool) {
        let timeout = Some(timeout.map_or(HEARING, |timeout| timeout.min(HEARING)));
        let link = self.link;
        let mut spin = std::mem::take(&mut self.receiving.spin);
        link.sleeps.store(true, Ordering::SeqCst);
        link.segment
            .up
            .sleep_consumer(&mut spin, timeout, || ended() || link.is_due(&self.receiving));
        link.sleeps.store(false, Ordering::SeqCst);
        self.receiving.spin = spin;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let up = &self.link.segment.up;
        // First the word, then a look at the ring: see "The lease" in the parent module.
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

/// The lease of a ring that no other thread drains, as an [`Inbox`], for the conformance tests.
#[cfg(test)]
pub(super) struct RingInbox(pub(super) Arc<RingLink>);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ring::create;

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
