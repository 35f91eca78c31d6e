//! The worker's end of its rings: orders are received from the pool, replies are sent to it.

use std::collections::VecDeque;

use super::{
    super::{Closed, WorkerEnd, board::Board},
    PART_BYTES_MAX, Segment,
    doorbell::Doorbell,
    spsc::{Consumer, Producer},
};
use crate::{
    os::spin::Spin,
    wire::frame::{Assembler, Frame, FromWorker, HEADER_BYTES, Header, ToWorker},
};

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
            spin: Spin::after_first_wait(),
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
        self.doorbell.ring();
        kill_point!(Rung);
        Ok(())
    }
}

impl WorkerEnd for RingWorkerEnd {
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed> {
        let down = &self.segment.down;
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
                    self.doorbell.ring();
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
                self.doorbell.ring();
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
            self.doorbell.ring();
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
