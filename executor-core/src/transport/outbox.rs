//! The outbox: frames that wait to be sent to one worker. No I/O.

use std::collections::VecDeque;

use crate::{
    os::std_or_model,
    wire::{
        frame::{HEADER_BYTES, Header, ToWorker},
        payload::Payload,
    },
};

/// Small frames that wait together are sent in one message of up to this many bytes.
const MESSAGE_BYTES_GOAL: usize = if std_or_model::MODEL { 1 } else { 16 * 1024 };

/// The frames that wait to be sent to one worker, and the rest of a partly sent one.
pub(crate) struct Outbox {
    /// Maximum size of a message. A frame that does not fit continues in the next message.
    part_bytes_max: usize,
    waiting: VecDeque<(ToWorker, Payload)>,
    /// How many bytes of the first frame's payload were sent. `None` if its header was not sent
    /// yet.
    sent_of_first: Option<usize>,
    /// The next message, if it was put together and then refused.
    buffer: Vec<u8>,
    /// Total number of messages sent from here.
    sent: u64,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(part_bytes_max: usize) -> Self {
        Outbox {
            part_bytes_max,
            waiting: VecDeque::new(),
            sent_of_first: None,
            buffer: Vec::new(),
            sent: 0,
            closed: false,
        }
    }

    /// Whether no frame waits. `false` if the outbox is closed, so that the caller does not send a
    /// new frame past it.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.buffer.is_empty() && !self.closed
    }

    /// Adds a frame. A closed outbox drops it.
    pub(crate) fn push(&mut self, header: ToWorker, payload: Payload) {
        if !self.closed {
            self.waiting.push_back((header, payload));
        }
    }

    /// Drops all frames. No frame is sent after this.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.waiting.clear();
        self.sent_of_first = None;
        self.buffer = Vec::new();
    }

    /// Passes one message after the other to `send`, until `send` refuses one. The refused message
    /// is passed again at the next call.
    pub(crate) fn pump(&mut self, mut send: impl FnMut(&[u8]) -> bool) {
        while self.next_message_len().is_some() {
            if self.buffer.is_empty() {
                self.fill_buffer();
            }
            if !send(&self.buffer) {
                return;
            }
            self.buffer.clear();
            self.sent += 1;
        }
    }

    /// Returns the total number of messages sent from here.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the length of the next message, or `None` if no frame waits.
    pub(crate) fn next_message_len(&self) -> Option<usize> {
        if !self.buffer.is_empty() {
            return Some(self.buffer.len());
        }
        let (_, payload) = self.waiting.front()?;
        if let Some(sent) = self.sent_of_first {
            return Some((payload.len() - sent).min(self.part_bytes_max));
        }
        let mut len = HEADER_BYTES + payload.len().min(self.part_bytes_max - HEADER_BYTES);
        // If this frame is not split, more frames join the message, up to the goal.
        if payload.len() <= self.part_bytes_max - HEADER_BYTES {
            for (_, payload) in self.waiting.iter().skip(1) {
                let more = HEADER_BYTES + payload.len();
                if len + more > MESSAGE_BYTES_GOAL {
                    break;
                }
                len += more;
            }
        }
        Some(len)
    }

    /// Puts the next message together: the next part of a long frame, or as many small frames as
    /// fit.
    fn fill_buffer(&mut self) {
        if let (Some(sent), Some((_, payload))) = (self.sent_of_first, self.waiting.front()) {
            let part = (payload.len() - sent).min(self.part_bytes_max);
            self.buffer.extend_from_slice(&payload[sent..sent + part]);
            self.advance(sent + part);
            return;
        }
        while let Some((header, payload)) = self.waiting.front() {
            let len = HEADER_BYTES + payload.len();
            if !self.buffer.is_empty() && self.buffer.len() + len > MESSAGE_BYTES_GOAL {
                return;
            }
            self.buffer.extend_from_slice(
                &ToWorker { length: payload.len() as u64, ..*header }.to_bytes(),
            );
            let part = payload.len().min(self.part_bytes_max - HEADER_BYTES);
            self.buffer.extend_from_slice(&payload[..part]);
            if self.advance(part) {
                return;
            }
        }
    }

    /// Records that `sent` bytes of the first payload were sent. Returns whether the frame
    /// continues in another message.
    fn advance(&mut self, sent: usize) -> bool {
        let goes_on = self.waiting.front().is_some_and(|(_, payload)| sent < payload.len());
        if goes_on {
            self.sent_of_first = Some(sent);
        } else {
            self.sent_of_first = None;
            self.waiting.pop_front();
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::TaskId,
        wire::frame::{Assembler, Frame, Order},
    };

    const PART: usize = 96 * 1024;

    fn task(number: u64) -> ToWorker {
        ToWorker { task: TaskId::from_raw(number), ..ToWorker::new(Order::Run) }
    }

    #[test]
    fn frames_of_all_sizes_arrive_in_order_however_often_a_message_is_refused() {
        let mut outbox = Outbox::new(PART);
        let mut assembler = Assembler::default();
        let mut frames: Vec<Frame<ToWorker>> = Vec::new();
        let sizes = [0, 1, 40, 30_000, 5_000, PART - 40, PART, PART + 1, 1_000_000, 3];
        for (number, size) in sizes.into_iter().enumerate() {
            outbox.push(task(number as u64), vec![number as u8; size].into());
        }
        let mut refused = 0;
        while let Some(len) = outbox.next_message_len() {
            outbox.pump(|message| {
                assert!(message.len() <= PART);
                if refused == 0 {
                    assert_eq!(message.len(), len, "what was announced is what comes");
                }
                refused += 1;
                if refused % 3 != 0 {
                    return false;
                }
                refused = 1;
                assembler.message(message, |frame| frames.push(frame)).unwrap();
                true
            });
            refused += 1;
        }
        assert_eq!(frames.len(), sizes.len());
        for (number, (frame, size)) in frames.iter().zip(sizes).enumerate() {
            assert_eq!(frame.header.task.as_u64(), number as u64);
            assert_eq!(*frame.payload, vec![number as u8; size]);
        }
    }

    #[test]
    fn small_frames_that_wait_together_leave_together() {
        let mut outbox = Outbox::new(PART);
        for number in 0..100 {
            outbox.push(task(number), vec![1, 2].into());
        }
        let mut messages = 0;
        outbox.pump(|_| {
            messages += 1;
            true
        });
        assert_eq!(messages, 1);
    }

    #[test]
    fn after_close_nothing_leaves() {
        let mut outbox = Outbox::new(PART);
        outbox.push(task(1), vec![0; 10].into());
        outbox.close();
        outbox.push(task(2), vec![0; 10].into());
        outbox.pump(|_| panic!("closed"));
    }
}
