//! The pool's end of one worker's rings: sending, and draining the replies.

use std::sync::{Arc, PoisonError};

#[cfg(test)]
use super::super::Inbox;
use super::{
    super::{Closed, Link, board::Board, outbox::Outbox},
    PART_BYTES_MAX, Segment,
    doorbell::Doorbell,
    spsc::{self, Consumer, Producer},
};
use crate::{
    id::TaskId,
    os::{
        memory::Shared,
        std_or_model::{
            Mutex, MutexGuard,
            atomic::{AtomicBool, AtomicU64, Ordering},
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
    RingLink {
        sending: Mutex::new(Sending {
            outbox: Outbox::new(PART_BYTES_MAX),
            producer: Producer::default(),
        }),
        receiving: Mutex::default(),
        wants_room: AtomicBool::new(false),
        drained: AtomicU64::new(0),
        over: AtomicBool::new(false),
        hung_up: AtomicBool::new(false),
        violated_protocol: AtomicBool::new(false),
        segment,
        doorbell,
    }
}

/// The pool's end of one worker's rings.
pub(crate) struct RingLink {
    segment: Shared<Segment>,
    doorbell: Arc<Shared<Doorbell>>,
    sending: Mutex<Sending>,
    /// Locked by the attendant, so nobody waits for it.
    receiving: Mutex<Receiving>,
    /// How much of the replies was taken: the consumer's position. Not the one in shared memory,
    /// which the worker can write.
    drained: AtomicU64,
    /// Whether the end was reported.
    over: AtomicBool,
    /// Whether the outbox waits for space. The thread that drains sends from the outbox when the
    /// worker rings.
    wants_room: AtomicBool,
    hung_up: AtomicBool,
    /// Whether the worker wrote an impossible position.
    violated_protocol: AtomicBool,
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
                    self.note_protocol_violation();
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

    /// Records that the worker has violated the protocol, and wakes the thread that will report it.
    fn note_protocol_violation(&self) {
        self.violated_protocol.store(true, Ordering::SeqCst);
        self.doorbell.ring();
    }

    /// Whether there is something to do for the attendant. Takes no lock.
    pub(crate) fn is_due(&self) -> bool {
        if self.over.load(Ordering::SeqCst) {
            return false;
        }
        self.segment.up.has_more_than(self.drained.load(Ordering::Relaxed))
            || self.hung_up.load(Ordering::SeqCst)
            || self.violated_protocol.load(Ordering::SeqCst)
            // The worker has cleared our wish for space, so there may be space now.
            || (self.wants_room.load(Ordering::SeqCst) && !self.segment.down.room_is_wanted())
    }

    /// Returns the processor on which the worker last published a reply.
    pub(crate) fn worker_cpu(&self) -> u32 {
        self.segment.up.producer_cpu()
    }

    /// Passes everything the worker has published to `sink`, without waiting. Returns whether there
    /// was anything. Called only by the attendant.
    ///
    /// The end is reported once, after everything that was published before it.
    pub(crate) fn drain(&self, mut sink: impl FnMut(Frame<FromWorker>)) -> Result<bool, Closed> {
        if self.over.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let drained = self.drain_some(&mut receiving, &mut sink);
        // Read by attendants alone, and the lock on the attendance orders them.
        self.drained.store(receiving.consumer.position(), Ordering::Relaxed);
        if drained.is_err() {
            self.over.store(true, Ordering::SeqCst);
        }
        drained
    }

    fn drain_some(
        &self,
        receiving: &mut Receiving,
        mut sink: impl FnMut(Frame<FromWorker>),
    ) -> Result<bool, Closed> {
        let up = &self.segment.up;
        let Receiving { consumer, assembler, message, last } = receiving;
        // The last frame, kept back because values without a header that follow belong to it.
        let mut open: Option<Frame<FromWorker>> = None;
        let mut any = false;
        // Read before the ring, so that everything the worker published before its death is seen
        // below.
        let over = self.hung_up.load(Ordering::SeqCst);
        let violated_protocol = self.violated_protocol.load(Ordering::SeqCst);
        // Take at most a ring's worth of words. Otherwise a worker that keeps publishing would hold
        // back the frames that came first.
        let mut left = spsc::WORDS;
        while left > 0
            && let Some(next) =
                consumer.next(up).map_err(|_| Closed::Protocol(WireError::Position))?
        {
            left = left.saturating_sub(next.len / 8 + 1);
            any = true;
            if next.kind == spsc::MessageKind::Frames {
                message.clear();
                consumer.append(up, &next, message);
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
                Some(frame) => {
                    if frame.more.is_empty() {
                        // Values that come together are mostly of about the same length.
                        frame.more.reserve(consumer.count_of(&next), next.len);
                    }
                    frame.more.push_with(|to| consumer.append(up, &next, to));
                }
                None => {
                    message.clear();
                    consumer.append(up, &next, message);
                    open = Some(Frame::new(*header, message[..].into()));
                }
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
            _ if violated_protocol => Err(Closed::Protocol(WireError::Position)),
            false if over => Err(Closed::Gone),
            any => Ok(any),
        }
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
                Err(spsc::Impossible) => return self.note_protocol_violation(),
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
        // If the worker died between clearing a word and waking the sleeper, the words look as if
        // the sleeper had been woken. So wake it whatever they say.
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

/// A ring that is drained by one thread, as an [`Inbox`], for the conformance tests.
#[cfg(test)]
pub(super) struct RingInbox(pub(super) Arc<RingLink>);

#[cfg(test)]
impl Inbox for RingInbox {
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed> {
        loop {
            if self.0.drain(&mut *sink)? {
                return Ok(());
            }
            self.0.doorbell.sleep(super::doorbell::HEARING, || self.0.is_due());
            if self.0.wants_room.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }
}
