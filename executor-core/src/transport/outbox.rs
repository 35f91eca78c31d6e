//! What is still to be sent to one worker, and how much it has room for: pure, no I/O.
//!
//! The window keeps a send from ever blocking. A Unix socket takes a message as long as what lies unread in it is
//! below its send buffer (212,992 bytes by default, of which each message takes its length plus some hundred bytes);
//! so with at most [`WINDOW_BYTES`] unread, the next message always finds room. The worker reports what it has
//! consumed in every frame that it sends.

use std::collections::VecDeque;

use crate::wire::{
    frame::{HEADER_BYTES, Header, PART_BYTES_MAX},
    payload::Payload,
};

/// Unread bytes in the worker's socket at the most, counted by [`cost`].
pub(crate) const WINDOW_BYTES: u64 = 192 * 1024;
/// Small frames that wait together leave together, up to this many bytes.
const MESSAGE_BYTES_GOAL: usize = 32 * 1024;

/// What a message takes of the window: its length and the kernel's overhead.
pub(crate) fn cost(message_len: usize) -> u64 {
    message_len as u64 + 1024
}

#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(Header, Payload)>,
    /// How much of the first one's payload has been sent; `None` while its header has not.
    sent_of_first: Option<usize>,
    sent: u64,
    consumed: u64,
    buffer: Vec<u8>,
    closed: bool,
}

impl Outbox {
    pub(crate) fn push(&mut self, header: Header, payload: Payload) {
        if !self.closed {
            self.waiting.push_back((header, payload));
        }
    }

    /// The worker has consumed this much, all in all. A number that cannot be is ignored: it would only hurt the
    /// worker that sent it.
    pub(crate) fn credit(&mut self, consumed: u64) {
        if consumed > self.consumed && consumed <= self.sent {
            self.consumed = consumed;
        }
    }

    /// Drops everything; nothing more will be sent.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.waiting.clear();
        self.sent_of_first = None;
        self.buffer = Vec::new();
    }

    /// Sends whatever the window allows.
    pub(crate) fn pump(&mut self, mut send: impl FnMut(&[u8]) -> std::io::Result<()>) {
        while let Some(len) = self.next_message_len() {
            let unread = self.sent - self.consumed;
            if unread != 0 && unread + cost(len) > WINDOW_BYTES {
                return;
            }
            self.fill_buffer();
            debug_assert_eq!(self.buffer.len(), len);
            self.sent += cost(len);
            if send(&self.buffer).is_err() {
                // The worker is dead, or as good as. Its exit will be noticed, and its tasks dealt with there.
                self.close();
            }
        }
    }

    fn next_message_len(&self) -> Option<usize> {
        let (_, payload) = self.waiting.front()?;
        if let Some(sent) = self.sent_of_first {
            return Some((payload.len() - sent).min(PART_BYTES_MAX));
        }
        let mut len = HEADER_BYTES + payload.len().min(PART_BYTES_MAX - HEADER_BYTES);
        if payload.len() <= PART_BYTES_MAX - HEADER_BYTES {
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

    fn fill_buffer(&mut self) {
        self.buffer.clear();
        if let (Some(sent), Some((_, payload))) = (self.sent_of_first, self.waiting.front()) {
            let part = (payload.len() - sent).min(PART_BYTES_MAX);
            self.buffer.extend_from_slice(&payload[sent..sent + part]);
            self.advance(sent + part);
            return;
        }
        while let Some((header, payload)) = self.waiting.front() {
            let len = HEADER_BYTES + payload.len();
            if !self.buffer.is_empty() && self.buffer.len() + len > MESSAGE_BYTES_GOAL {
                return;
            }
            self.buffer.extend_from_slice(&Header { length: payload.len() as u64, ..*header }.to_bytes());
            let part = payload.len().min(PART_BYTES_MAX - HEADER_BYTES);
            self.buffer.extend_from_slice(&payload[..part]);
            if self.advance(part) {
                return;
            }
        }
    }

    /// Notes that `sent` bytes of the first payload have gone; whether it goes on in another message.
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
        wire::frame::{Assembler, Frame, Kind},
    };

    fn task(number: u64) -> Header {
        Header { task: TaskId::from_raw(number), ..Header::new(Kind::Run) }
    }

    #[test]
    fn frames_of_all_sizes_arrive_in_order_and_the_window_holds() {
        let mut outbox = Outbox::default();
        let mut assembler = Assembler::default();
        let mut frames: Vec<Frame> = Vec::new();
        let sizes =
            [0, 1, 40, 30_000, 5_000, PART_BYTES_MAX - 40, PART_BYTES_MAX, PART_BYTES_MAX + 1, 1_000_000, 3];
        for (number, size) in sizes.into_iter().enumerate() {
            outbox.push(task(number as u64), vec![number as u8; size].into());
        }
        let mut consumed = 0;
        loop {
            let mut messages = Vec::new();
            outbox.pump(|message| {
                messages.push(message.to_vec());
                Ok(())
            });
            if messages.is_empty() {
                break;
            }
            let unread: u64 = messages.iter().map(|message| cost(message.len())).sum();
            assert!(unread <= WINDOW_BYTES, "{unread}");
            for message in messages {
                assert!(message.len() <= PART_BYTES_MAX);
                consumed += cost(message.len());
                assembler.message(&message, |frame| frames.push(frame)).unwrap();
            }
            outbox.credit(consumed);
        }
        assert_eq!(frames.len(), sizes.len());
        for (number, (frame, size)) in frames.iter().zip(sizes).enumerate() {
            assert_eq!(frame.header.task.as_u64(), number as u64);
            assert_eq!(frame.payload, vec![number as u8; size]);
        }
    }

    #[test]
    fn small_frames_that_wait_together_leave_together() {
        let mut outbox = Outbox::default();
        for number in 0..100 {
            outbox.push(task(number), vec![1, 2].into());
        }
        let mut messages = 0;
        outbox.pump(|_| {
            messages += 1;
            Ok(())
        });
        assert_eq!(messages, 1);
    }

    #[test]
    fn a_failed_send_closes_and_impossible_credit_is_ignored() {
        let mut outbox = Outbox::default();
        outbox.credit(u64::MAX);
        outbox.push(task(1), vec![0; 10].into());
        outbox.pump(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
        outbox.push(task(2), vec![0; 10].into());
        outbox.pump(|_| panic!("closed"));
    }
}
