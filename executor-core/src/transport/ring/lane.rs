//! A lane: two rings between a server and one of its clients, for messages of any length.
//!
//! ```text
//!              memory (a sealed memfd that the client has made, mapped by both)
//!  client      ┌──────────────────────────────────────┐       server
//!  LaneSender ►│ requests ─────────────────────────── │► LaneReceiver
//!  LaneReceiver│◄ ──────────────────────────── replies │◄ LaneSender
//!              └──────────────────────────────────────┘
//!  socket      ◄──────── a byte: "look at the rings" ───────►
//! ```
//!
//! The rings are those of the pool and its workers, and the order of the steps is the same (see the
//! parent module). What differs is how a side sleeps. A server has many clients, and a client waits
//! for replies and for the server's death at the same time. So both sleep in a call that waits for
//! the socket, which reports either. The side that wakes the other sends one byte. While both are
//! awake, no byte is sent.
//!
//! No side ever blocks in here. What finds no room waits in the sender's outbox, and the other side
//! wakes the sender when it has made room.
//!
//! A long message is sent in parts, straight from the memory in which its sender has it, and
//! received into one buffer. These buffers are [kept](spare) for the next long message.
//!
//! Neither side trusts the other: all positions and lengths are checked, and memory grows with the
//! data that arrives. A side that stops to read, or that does not wake the other, harms its own
//! lane only.

use std::{borrow::Cow, collections::VecDeque, io, os::fd::OwnedFd, sync::Arc};

use super::{
    PART_BYTES_MAX,
    spsc::{Consumer, Impossible, Producer, Ring, words_for},
};
use crate::os::{
    memory::{Shared, SharedLayout},
    spare,
};

/// The memory of a lane.
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), derive(Default))]
#[repr(C)]
pub(crate) struct LaneMemory {
    requests: Ring,
    replies: Ring,
}

// SAFETY: `repr(C)`, its fields contain only atomics and have no drop glue, and all-zero bytes are
// a valid value.
unsafe impl SharedLayout for LaneMemory {}

/// Length of the header of each message, whose last 8 bytes are the length of the body.
pub(crate) const LANE_HEADER_BYTES: usize = 24;

crate::debug::debug_is_display!(LaneError);

/// The other side does not keep to the protocol.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaneError {
    #[error("the other side wrote impossible positions to the shared memory")]
    Impossible,
    #[error("a message is shorter than it says")]
    Border,
    #[error("a message has {0} bytes, which is more than the limit")]
    TooLong(u64),
    /// Only the header was kept. The messages behind it are received as usual.
    #[error("there is no memory for a message of this length")]
    NoMemory,
}

impl From<Impossible> for LaneError {
    fn from(_: Impossible) -> Self {
        LaneError::Impossible
    }
}

/// Which side of a lane this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneSide {
    Client,
    Server,
}

impl LaneMemory {
    fn sent_by(&self, side: LaneSide) -> &Ring {
        match side {
            LaneSide::Client => &self.requests,
            LaneSide::Server => &self.replies,
        }
    }

    fn received_by(&self, side: LaneSide) -> &Ring {
        match side {
            LaneSide::Client => &self.replies,
            LaneSide::Server => &self.requests,
        }
    }
}

/// Creates the memory of a lane, and the descriptor with which the server maps it.
pub(crate) fn create() -> io::Result<(Arc<Shared<LaneMemory>>, OwnedFd)> {
    let (memory, descriptor) = Shared::create("executor-lane")?;
    Ok((Arc::new(memory), descriptor))
}

/// Maps the memory of a lane that a client has made.
pub(crate) fn open(descriptor: OwnedFd) -> io::Result<Arc<Shared<LaneMemory>>> {
    Ok(Arc::new(Shared::open(&descriptor)?))
}

/// Returns both ends of one side.
pub(crate) fn ends(
    memory: &Arc<Shared<LaneMemory>>,
    side: LaneSide,
    message_bytes_max: u64,
) -> (LaneSender, LaneReceiver) {
    let sender = LaneSender {
        memory: Arc::clone(memory),
        side,
        producer: Producer::default(),
        outbox: VecDeque::new(),
        outbox_bytes: 0,
        sent: 0,
        end: 0,
    };
    let receiver = LaneReceiver {
        memory: Arc::clone(memory),
        side,
        consumer: Consumer::default(),
        missing: None,
        skips: false,
        begun: Vec::new(),
        message_bytes_max,
    };
    (sender, receiver)
}

/// The end through which one side sends.
pub(crate) struct LaneSender {
    memory: Arc<Shared<LaneMemory>>,
    side: LaneSide,
    producer: Producer,
    /// Messages that found no room, in order.
    outbox: VecDeque<Unsent>,
    outbox_bytes: usize,
    /// How many bytes of the first message of the outbox are sent.
    sent: usize,
    /// How many words of the ring all messages take, with those in the outbox.
    end: u64,
}

/// Returns how many words of the ring a message takes, whose parts are as long as possible.
fn words_of(len: usize) -> u64 {
    if len <= PART_BYTES_MAX {
        return words_for(len);
    }
    let (whole, rest) = (len / PART_BYTES_MAX, len % PART_BYTES_MAX);
    let rest = if rest == 0 { 0 } else { words_for(rest) };
    whole as u64 * words_for(PART_BYTES_MAX) + rest
}

/// A message that is sent part by part.
struct Parts<'a> {
    header: &'a [u8; LANE_HEADER_BYTES],
    /// How many bytes of the body are not in `body`, because they are sent.
    skipped: usize,
    body: &'a [u8],
    /// The bytes behind the body.
    tail: &'a [u8],
}

impl<'a> Parts<'a> {
    fn len(&self) -> usize {
        LANE_HEADER_BYTES + self.skipped + self.body.len() + self.tail.len()
    }

    /// Returns how many words of the ring the message takes.
    fn words(&self) -> u64 {
        let tail = if self.tail.is_empty() { 0 } else { words_of(self.tail.len()) };
        words_of(LANE_HEADER_BYTES + self.skipped + self.body.len()) + tail
    }

    /// Returns the next part of the message, of which so many bytes are sent. No part has bytes of
    /// both body and tail: within a part, only the last bytes may end within a word.
    fn next(&self, sent: usize) -> [&'a [u8]; 2] {
        let header = if sent == 0 { &self.header[..] } else { &[] };
        let at = sent.saturating_sub(LANE_HEADER_BYTES) - self.skipped;
        let rest = match at.checked_sub(self.body.len()) {
            None => &self.body[at..],
            Some(_) if sent == 0 => &[],
            Some(at) => &self.tail[at..],
        };
        [header, &rest[..rest.len().min(PART_BYTES_MAX - header.len())]]
    }
}

/// A message that waits for room, or the rest of one.
struct Unsent {
    header: [u8; LANE_HEADER_BYTES],
    skipped: usize,
    body: Vec<u8>,
    tail: Option<Arc<[u8]>>,
}

impl Unsent {
    fn parts(&self) -> Parts<'_> {
        Parts {
            header: &self.header,
            skipped: self.skipped,
            body: &self.body,
            tail: self.tail.as_deref().unwrap_or_default(),
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        spare::give(std::mem::take(&mut self.body));
    }
}

impl LaneSender {
    /// Sends a message without shared bytes.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(crate) fn send<'a>(
        &mut self,
        header: &[u8; LANE_HEADER_BYTES],
        body: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), LaneError> {
        self.send_with_tail(header, body.into(), None)
    }

    /// Sends a message, or as much of it as finds room. The rest waits in the outbox.
    ///
    /// Only what finds no room is copied, and of a body that is owned, nothing. The memory of such
    /// a body is [kept](spare) for others when it is sent.
    ///
    /// The last bytes of the body may be shared: the `tail`, which is not copied.
    pub(crate) fn send_with_tail(
        &mut self,
        header: &[u8; LANE_HEADER_BYTES],
        body: Cow<'_, [u8]>,
        tail: Option<&Arc<[u8]>>,
    ) -> Result<(), LaneError> {
        let shared = tail.map(|tail| &**tail).unwrap_or_default();
        let parts = Parts { header, skipped: 0, body: &body, tail: shared };
        self.end += parts.words();
        let mut sent = 0;
        if self.outbox.is_empty() {
            let ring = self.memory.sent_by(self.side);
            loop {
                let part = parts.next(sent);
                if !self.producer.write(ring, part)? {
                    break;
                }
                sent += part[0].len() + part[1].len();
                if sent == parts.len() {
                    if let Cow::Owned(body) = body {
                        spare::give(body);
                    }
                    return Ok(());
                }
            }
            self.sent = sent;
        }
        self.outbox_bytes += parts.len();
        let (skipped, body) = match body {
            Cow::Owned(body) => (0, body),
            Cow::Borrowed(body) => {
                let skipped = sent.saturating_sub(LANE_HEADER_BYTES).min(body.len());
                let mut rest = spare::take(body.len() - skipped);
                rest.extend_from_slice(&body[skipped..]);
                (skipped, rest)
            }
        };
        self.outbox.push_back(Unsent { header: *header, skipped, body, tail: tail.cloned() });
        self.flush().map(drop)
    }

    /// Sends from the outbox what finds room. Returns whether everything is sent. If not, the other
    /// side has been asked to tell when there is room.
    pub(crate) fn flush(&mut self) -> Result<bool, LaneError> {
        let mut asked = false;
        while let Some(message) = self.outbox.front() {
            let parts = message.parts();
            let part = parts.next(self.sent);
            let ring = self.memory.sent_by(self.side);
            if !self.producer.write(ring, part)? {
                if asked {
                    return Ok(false);
                }
                // Ask, then try once more: the other side may have made room before it saw this.
                ring.want_room();
                asked = true;
                continue;
            }
            self.sent += part[0].len() + part[1].len();
            if self.sent == parts.len() {
                self.outbox_bytes -= self.sent;
                self.sent = 0;
                self.outbox.pop_front();
            }
        }
        debug_assert_eq!(self.end, self.producer.position(), "each message has been counted");
        Ok(true)
    }

    /// Returns where the last message ends. The other side has taken it when
    /// [`taken`](Self::taken) is not less.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Returns how far the other side has come. `None` if it has written a position that cannot
    /// be.
    pub(crate) fn taken(&self) -> Option<u64> {
        self.producer.taken(self.memory.sent_by(self.side)).ok()
    }

    /// Asks the other side to use nothing that it takes from now on. What it had not taken by then,
    /// according to [`taken`](Self::taken), counts as not sent.
    pub(crate) fn revoke(&self) {
        self.memory.sent_by(self.side).revoke();
    }

    /// Asks the other side to send a byte when it has taken what it was sent.
    pub(crate) fn ask_for_news(&self) {
        self.memory.sent_by(self.side).want_room();
    }

    /// Whether everything was sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Returns how many bytes wait in the outbox.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Returns whether the receiver sleeps, and has to be woken. Call it after the last of several
    /// messages.
    pub(crate) fn must_wake(&self) -> bool {
        self.memory.sent_by(self.side).take_sleeper()
    }
}

/// The end through which one side receives.
pub(crate) struct LaneReceiver {
    memory: Arc<Shared<LaneMemory>>,
    side: LaneSide,
    consumer: Consumer,
    /// The part of a message that has arrived, and how many bytes are missing.
    begun: Vec<u8>,
    missing: Option<u64>,
    /// Whether there is no memory for that message, so that its parts are dropped.
    skips: bool,
    message_bytes_max: u64,
}

impl Drop for LaneReceiver {
    fn drop(&mut self) {
        // The other side has died in the middle of a message.
        spare::give(std::mem::take(&mut self.begun));
    }
}

/// Makes room for the next part of a message, of which so many bytes are missing.
///
/// The length was announced, but memory grows only with what arrives: it is at most doubled. It
/// does not become larger than the message either, so that the memory can be used again for the
/// next one of the same length.
///
/// # Errors
/// If there is no memory. An allocation that aborts would end the process, and with it what all the
/// others have here.
pub(crate) fn grow(begun: &mut Vec<u8>, next: usize, missing: u64) -> Result<(), LaneError> {
    // The part is copied in whole words.
    let needed = next.next_multiple_of(8);
    if begun.capacity() - begun.len() >= needed {
        return Ok(());
    }
    let room = usize::try_from(missing).unwrap_or(usize::MAX).saturating_add(8);
    let more = begun.len().min(room).max(needed);
    begun.try_reserve_exact(more).map_err(|_| LaneError::NoMemory)
}

impl LaneReceiver {
    /// Puts the next whole message into `message`: its header, and behind it its body. Returns
    /// `false` if there is none yet.
    ///
    /// # Errors
    /// [`LaneError::NoMemory`] behind a message that found none. Its header is in `message`. After
    /// the other errors, nothing can be received.
    pub(crate) fn receive(&mut self, message: &mut Vec<u8>) -> Result<bool, LaneError> {
        let ring = self.memory.received_by(self.side);
        loop {
            let Some(missing) = self.missing else {
                if self.consumer.read(ring, message)?.is_none() {
                    return Ok(false);
                }
                let header: &[u8; LANE_HEADER_BYTES] =
                    message.first_chunk().ok_or(LaneError::Border)?;
                let (words, _) = header.as_chunks::<8>();
                let len = u64::from_le_bytes(words[2]);
                if len > self.message_bytes_max {
                    return Err(LaneError::TooLong(len));
                }
                let arrived = (message.len() - LANE_HEADER_BYTES) as u64;
                match len.checked_sub(arrived) {
                    None => return Err(LaneError::Border),
                    Some(0) => return Ok(true),
                    Some(missing) => {
                        self.missing = Some(missing);
                        let len = len.saturating_add(LANE_HEADER_BYTES as u64);
                        self.begun = spare::take(usize::try_from(len).unwrap_or(usize::MAX));
                        self.begun.extend_from_slice(message);
                    }
                }
                continue;
            };
            let Some(next) = self.consumer.next(ring)? else { return Ok(false) };
            if next.len as u64 > missing || next.len == 0 {
                return Err(LaneError::Border);
            }
            if grow(&mut self.begun, next.len, missing).is_err() {
                self.skips = true;
                self.begun.truncate(LANE_HEADER_BYTES);
                // It has had room for one part, at least.
                grow(&mut self.begun, next.len, missing)?;
            }
            self.consumer.append(ring, &next, &mut self.begun);
            if self.skips {
                self.begun.truncate(LANE_HEADER_BYTES);
            }
            let missing = missing - next.len as u64;
            self.missing = (missing > 0).then_some(missing);
            if missing == 0 {
                spare::give(std::mem::replace(message, std::mem::take(&mut self.begun)));
                return match std::mem::take(&mut self.skips) {
                    false => Ok(true),
                    true => Err(LaneError::NoMemory),
                };
            }
        }
    }

    /// Whether there is nothing to receive at this moment.
    pub(crate) fn is_empty(&self) -> bool {
        self.consumer.is_empty(self.memory.received_by(self.side))
    }

    /// Whether a part of a message has arrived, and the rest has not.
    pub(crate) fn is_in_message(&self) -> bool {
        self.missing.is_some()
    }

    /// Whether the other side has made room since this side's [`LaneSender`] last asked for it.
    pub(crate) fn room_was_made(&self) -> bool {
        !self.memory.sent_by(self.side).room_is_wanted()
    }

    /// Whether the other side has revoked the message that was just received. Then it must not be
    /// used.
    pub(crate) fn is_revoked(&self) -> bool {
        self.memory.received_by(self.side).is_revoked()
    }

    /// Returns the processor on which the other side last sent.
    pub(crate) fn sender_cpu(&self) -> u32 {
        self.memory.received_by(self.side).producer_cpu()
    }

    /// Returns whether the sender waits for room and has to be woken, since there is room now. Call
    /// it after receiving.
    pub(crate) fn must_wake(&mut self) -> bool {
        let ring = self.memory.received_by(self.side);
        (self.consumer.is_low(ring) || self.consumer.is_empty(ring)) && ring.take_wanted_room()
    }

    /// Announces that this side is about to sleep. Returns whether it may: there is nothing to
    /// receive. Afterwards [`awake`](Self::awake) must be called.
    pub(crate) fn announce_sleep(&self) -> bool {
        let ring = self.memory.received_by(self.side);
        ring.announce_sleep();
        if self.is_empty() {
            return true;
        }
        ring.end_sleep();
        false
    }

    /// Ends a sleep that was announced.
    pub(crate) fn awake(&self) {
        self.memory.received_by(self.side).end_sleep();
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    fn header(len: usize) -> [u8; LANE_HEADER_BYTES] {
        let mut header = [7; LANE_HEADER_BYTES];
        header[16..].copy_from_slice(&(len as u64).to_le_bytes());
        header
    }

    fn lane(max: u64) -> ((LaneSender, LaneReceiver), (LaneSender, LaneReceiver)) {
        let (memory, descriptor) = create().unwrap();
        let theirs = open(descriptor).unwrap();
        (ends(&memory, LaneSide::Client, max), ends(&theirs, LaneSide::Server, max))
    }

    #[test]
    fn messages_of_all_lengths_arrive_in_both_directions() {
        let ((mut to_server, mut from_server), (mut to_client, mut from_client)) = lane(1 << 30);
        let mut message = Vec::new();
        for len in [0, 1, 7, 8, 100, 32 * 1024, 32 * 1024 + 1, 100_000, 5_000_000] {
            let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
            for (sender, receiver) in
                [(&mut to_server, &mut from_client), (&mut to_client, &mut from_server)]
            {
                assert!(receiver.is_empty());
                sender.send(&header(len), &body[..]).unwrap();
                sender.send(&header(3), &b"end"[..]).unwrap();
                let mut received = Vec::new();
                while received.len() < 2 {
                    if receiver.receive(&mut message).unwrap() {
                        received.push(std::mem::take(&mut message));
                    } else {
                        sender.flush().unwrap();
                    }
                }
                assert!(sender.is_flushed() && sender.waiting_bytes() == 0);
                assert!(received[0] == [&header(len)[..], &body].concat(), "{len}");
                assert_eq!(received[1], [&header(3)[..], b"end"].concat());
            }
        }
    }

    #[test]
    fn a_body_may_be_borrowed_owned_or_shared_and_of_any_length() {
        let ((mut sender, _), (_, mut receiver)) = lane(1 << 30);
        let lengths = [0, 1, 8, 23, PART_BYTES_MAX - 24, PART_BYTES_MAX - 23, PART_BYTES_MAX];
        let lengths = lengths.into_iter().chain([100_000, 300_001]);
        let mut expected = VecDeque::new();
        let mut message = Vec::new();
        let mut take_all = |sender: &mut LaneSender, expected: &mut VecDeque<(Vec<u8>, u64)>| {
            while let Some((whole, end)) = expected.front() {
                if receiver.receive(&mut message).unwrap() {
                    assert!(message == *whole);
                    assert_eq!(sender.taken(), Some(*end), "each part is counted");
                    expected.pop_front();
                } else {
                    sender.flush().unwrap();
                }
            }
            assert!(sender.is_flushed() && sender.waiting_bytes() == 0);
        };
        for (number, body_len) in lengths.clone().enumerate() {
            for tail_len in lengths.clone() {
                let body: Vec<u8> = (0..body_len).map(|at| at as u8).collect();
                let tail: Arc<[u8]> = (0..tail_len).map(|at| (at * 7) as u8).collect();
                let header = header(body_len + tail_len);
                let whole = [&header[..], &body, &tail].concat();
                let body = if number % 2 == 0 { Cow::Borrowed(&body[..]) } else { body.into() };
                let tail = (tail_len > 0 || body_len == 1).then_some(&tail);
                sender.send_with_tail(&header, body, tail).unwrap();
                expected.push_back((whole, sender.end()));
                if (body_len ^ tail_len) % 3 == 0 {
                    // Otherwise the next message waits behind this one.
                    take_all(&mut sender, &mut expected);
                }
            }
        }
        take_all(&mut sender, &mut expected);
    }

    #[test]
    fn who_sleeps_is_woken_once_and_who_wants_room_is_told() {
        let ((mut to_server, _), (_, mut from_client)) = lane(1 << 30);
        to_server.send(&header(0), &[][..]).unwrap();
        assert!(!to_server.must_wake(), "it does not sleep");
        assert!(!from_client.announce_sleep(), "there is a message");
        let mut message = Vec::new();
        assert!(from_client.receive(&mut message).unwrap());
        assert!(!from_client.must_wake(), "nobody wants room");
        assert!(from_client.announce_sleep());
        to_server.send(&header(1 << 20), vec![1; 1 << 20]).unwrap();
        assert!(to_server.must_wake() && !to_server.must_wake());
        from_client.awake();
        assert!(!to_server.is_flushed());
        assert!(!from_client.receive(&mut message).unwrap());
        assert!(from_client.must_wake(), "the sender wants room");
        assert!(!to_server.flush().unwrap());
    }

    #[test]
    fn the_sender_knows_which_messages_were_taken_however_long_they_are() {
        let ((_, mut from_server), (mut to_client, _)) = lane(1 << 30);
        let lengths = [0, 5, 32 * 1024 - 24, 32 * 1024 - 23, 100_000, 65_512, 3, 400_000, 0];
        let ends: Vec<u64> = lengths
            .iter()
            .map(|len| {
                to_client.send(&header(*len), vec![1; *len]).unwrap();
                to_client.end()
            })
            .collect();
        let mut message = Vec::new();
        for read in 0..=lengths.len() {
            let taken = to_client.taken().unwrap();
            let unread = ends.iter().filter(|end| **end > taken).count();
            assert_eq!(unread, lengths.len() - read);
            while read < lengths.len() && !from_server.receive(&mut message).unwrap() {
                to_client.flush().unwrap();
            }
        }
        assert!(!from_server.is_revoked());
        to_client.revoke();
        assert!(from_server.is_revoked());
        to_client.memory.replies.fake_tail(u64::MAX);
        assert_eq!(to_client.taken(), None);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let mut message = Vec::new();
        let ((mut sender, _), (_, mut receiver)) = lane(100);
        sender.send(&header(101), vec![0; 101]).unwrap();
        assert_eq!(receiver.receive(&mut message), Err(LaneError::TooLong(101)));
        let ((mut sender, _), (_, mut receiver)) = lane(100);
        sender.send(&header(3), &b"more than three"[..]).unwrap();
        assert_eq!(receiver.receive(&mut message), Err(LaneError::Border));
        let ((mut sender, _), (_, mut receiver)) = lane(100);
        sender.send(&header(100), &b"part"[..]).unwrap();
        assert_eq!(receiver.receive(&mut message), Ok(false), "the rest has not come");
        sender.send(&header(100), vec![0; 100]).unwrap();
        assert_eq!(receiver.receive(&mut message), Err(LaneError::Border), "it is too long");
        let ((mut sender, _), (_, mut receiver)) = lane(u64::MAX);
        sender.send(&header(usize::MAX), &b"an absurd length"[..]).unwrap();
        assert_eq!(receiver.receive(&mut message), Ok(false));
        assert!(receiver.begun.capacity() < 4096, "nothing was reserved for it");
    }
}
