//! What goes through a connection: messages, and how they are put together again. Pure: no socket, no clock.
//!
//! ```text
//!  SEQPACKET   │head│ first 64 KiB │  │head: More, offset│ next 64 KiB │  …      each one packet, whole or not at all
//!  TCP         │head│ all of it ………………………………………………………………………………………………│
//! ```
//!
//! Lengths have 64 bits. A message announces its own and takes memory as it arrives, so a wild one costs nothing; of a
//! packet the border is checked as well.

use std::os::fd::OwnedFd;

/// Before each message, and before each further part of one that goes in parts.
pub(super) const HEAD_BYTES: usize = 16;

/// Of a message, in one packet. The kernel keeps 200 KiB for a reader by default: with three times this much neither side
/// waits for the other at each part. Less: more system calls for large messages. More: packets that the kernel cannot find
/// room for while memory is fragmented.
pub(super) const PART_BYTES: usize = 64 * 1024;

/// First in each head, so that a client of some other protocol is told apart at once.
const MARK: [u8; 2] = *b"xq";

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An encoded value.
    Value = 1,
    /// The user's own bytes.
    Bytes,
    /// No message, but a further part of one.
    More,
    /// Authentication, in the order in which it goes.
    Hello,
    Challenge,
    Answer,
    Welcome,
    Refused,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Value, Bytes, More, Hello, Challenge, Answer, Welcome, Refused]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Descriptors that come with the first byte.
    pub(super) descriptors: u8,
    /// Parts of one message have the same number; its sender chooses it.
    pub(super) number: u32,
    /// Of the message; for a part, where it begins.
    pub(super) len: u64,
}

impl Head {
    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..2].copy_from_slice(&MARK);
        out[2] = self.kind as u8;
        out[3] = self.descriptors;
        out[4..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub(super) fn from_bytes(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Disorder> {
        let [m0, m1, kind, descriptors, n0, n1, n2, n3, len @ ..] = *bytes;
        let kind = Kind::from_byte(kind).filter(|_| [m0, m1] == MARK).ok_or(Disorder::NotOurs)?;
        let number = u32::from_le_bytes([n0, n1, n2, n3]);
        Ok(Head { kind, descriptors, number, len: u64::from_le_bytes(len) })
    }
}

crate::debug::debug_is_display!(Disorder);

/// What a peer may not send. What comes after it on a stream means nothing.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Disorder {
    #[error("the peer speaks another protocol")]
    NotOurs,
    #[error(
        "a part came of a message whose beginning another process received, or which was sent by two at a time"
    )]
    Part,
    #[error("a packet is shorter or longer than it says")]
    Border,
    #[error(
        "descriptors were lost on the way: this process may have too many open files, or the peer sent others than it said"
    )]
    Descriptors,
}

/// A whole message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// `None`: it fills the packet behind its head.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) descriptors: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Partial {
    head: Head,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Partial {
    fn missing(&self) -> u64 {
        self.head.len - self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        // At most twice what has arrived, whatever was announced.
        let room = self.bytes.capacity() - self.bytes.len();
        if room < bytes.len() {
            let wanted = self.bytes.len().max(PART_BYTES).max(bytes.len());
            self.bytes.reserve_exact(usize::try_from(self.missing()).unwrap_or(usize::MAX).min(wanted));
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn into_message(self) -> Message {
        Message { kind: self.head.kind, bytes: Some(self.bytes), descriptors: self.descriptors }
    }
}

/// Puts messages together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    partial: Option<Partial>,
    /// Of a stream: the part of a head that is here.
    head: Vec<u8>,
}

/// What is to be done with what has arrived.
#[derive(Debug)]
pub(super) enum Arrival {
    Complete(Message),
    More,
    /// It is longer than `max`. Nothing was lost: what comes next continues it.
    TooLong(u64),
}

impl Assembler {
    /// Whether a message has begun to arrive.
    pub(super) fn has_begun(&self) -> bool {
        self.partial.is_some() || !self.head.is_empty()
    }

    /// Whether there is a whole message that was too long before.
    pub(super) fn is_complete(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.missing() == 0)
    }

    /// The length that the message has which is arriving.
    pub(super) fn announced(&self) -> Option<u64> {
        self.partial.as_ref().map(|partial| partial.head.len)
    }

    /// What one packet was. A message of a single one is not copied.
    pub(super) fn packet(
        &mut self,
        packet: &[u8],
        descriptors: Vec<OwnedFd>,
        max: u64,
    ) -> Result<Arrival, Disorder> {
        let (head, body) = packet.split_first_chunk().ok_or(Disorder::NotOurs)?;
        let head = Head::from_bytes(head)?;
        let part_of = |missing: u64| missing.min(PART_BYTES as u64);
        if head.kind == Kind::More {
            let fits = |partial: &&mut Partial| {
                partial.head.number == head.number && partial.bytes.len() as u64 == head.len
            };
            let partial = self.partial.as_mut().filter(fits).ok_or(Disorder::Part)?;
            if body.len() as u64 != part_of(partial.missing()) || !descriptors.is_empty() {
                return Err(Disorder::Border);
            }
            partial.push(body);
            return Ok(self.complete());
        }
        // The sender of what was begun has died in the middle of it, and another holder of its end goes on.
        self.partial = None;
        if body.len() as u64 != part_of(head.len) {
            return Err(Disorder::Border);
        }
        if descriptors.len() != usize::from(head.descriptors) {
            return Err(Disorder::Descriptors);
        }
        if body.len() as u64 == head.len && head.len <= max {
            return Ok(Arrival::Complete(Message { kind: head.kind, bytes: None, descriptors }));
        }
        let mut partial = Partial { head, bytes: Vec::new(), descriptors };
        partial.push(body);
        self.partial = Some(partial);
        Ok(if head.len > max { Arrival::TooLong(head.len) } else { Arrival::More })
    }

    /// Of a stream: how many bytes may be read now without touching the next message.
    pub(super) fn wanted(&self) -> u64 {
        match &self.partial {
            Some(partial) => partial.missing(),
            None => (HEAD_BYTES - self.head.len()) as u64,
        }
    }

    /// Of a stream: at most as many bytes as were wanted.
    pub(super) fn bytes(&mut self, bytes: &[u8], max: u64) -> Result<Arrival, Disorder> {
        if let Some(partial) = &mut self.partial {
            partial.push(bytes);
            return Ok(self.complete());
        }
        self.head.extend_from_slice(bytes);
        let Some(head) = self.head.first_chunk() else { return Ok(Arrival::More) };
        let head = Head::from_bytes(head)?;
        self.head.clear();
        // No descriptor crosses a network, and a stream has no parts.
        if head.descriptors != 0 || head.kind == Kind::More {
            return Err(Disorder::NotOurs);
        }
        self.partial = Some(Partial { head, bytes: Vec::new(), descriptors: Vec::new() });
        Ok(if head.len > max { Arrival::TooLong(head.len) } else { self.complete() })
    }

    /// What was begun, if nothing is missing any more.
    pub(super) fn complete(&mut self) -> Arrival {
        match self.partial.take_if(|partial| partial.missing() == 0) {
            Some(partial) => Arrival::Complete(partial.into_message()),
            None => Arrival::More,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(number: u32, bytes: &[u8]) -> Vec<Vec<u8>> {
        let head = Head { kind: Kind::Bytes, descriptors: 0, number, len: bytes.len() as u64 };
        let mut packets = vec![head.to_bytes().to_vec()];
        let first = bytes.len().min(PART_BYTES);
        packets[0].extend_from_slice(&bytes[..first]);
        for (index, part) in bytes[first..].chunks(PART_BYTES).enumerate() {
            let len = (first + index * PART_BYTES) as u64;
            let head = Head { kind: Kind::More, descriptors: 0, number, len };
            packets.push([&head.to_bytes(), part].concat());
        }
        packets
    }

    fn all(assembler: &mut Assembler, packets: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut whole = None;
        for packet in packets {
            assert!(whole.is_none());
            match assembler.packet(packet, Vec::new(), u64::MAX).unwrap() {
                Arrival::Complete(message) => {
                    whole = Some(message.bytes.unwrap_or_else(|| packet[HEAD_BYTES..].to_vec()));
                }
                Arrival::More => {}
                Arrival::TooLong(_) => panic!(),
            }
        }
        whole
    }

    #[test]
    fn messages_come_together_from_packets() {
        let mut assembler = Assembler::default();
        for len in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 7] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert!(all(&mut assembler, &packets(9, &bytes)).unwrap() == bytes, "{len}");
            assert!(!assembler.has_begun());
        }
    }

    #[test]
    fn what_a_dead_sender_began_gives_way_to_the_next_message() {
        let mut assembler = Assembler::default();
        let begun = packets(1, &[1; 3 * PART_BYTES]);
        assert!(all(&mut assembler, &begun[..2]).is_none());
        assert_eq!(all(&mut assembler, &packets(2, b"next")).unwrap(), b"next");
        // And what is left of the first is not taken for anything else.
        assert_eq!(assembler.packet(&begun[2], Vec::new(), u64::MAX).unwrap_err(), Disorder::Part);
        let mut mixed = packets(3, &[3; 2 * PART_BYTES]);
        mixed[1] = packets(4, &[4; 2 * PART_BYTES])[1].clone();
        assert!(matches!(assembler.packet(&mixed[0], Vec::new(), u64::MAX), Ok(Arrival::More)));
        assert_eq!(assembler.packet(&mixed[1], Vec::new(), u64::MAX).unwrap_err(), Disorder::Part);
    }

    #[test]
    fn messages_come_together_from_a_stream_in_any_pieces() {
        let bytes = vec![5; 1000];
        let head = Head { kind: Kind::Value, descriptors: 0, number: 0, len: 1000 };
        let stream = [&head.to_bytes(), &bytes[..], &Head { len: 0, ..head }.to_bytes()].concat();
        for piece in [1, 3, 16, 17, 999] {
            let (mut assembler, mut messages, mut rest) = (Assembler::default(), Vec::new(), &stream[..]);
            while !rest.is_empty() {
                let len = piece.min(assembler.wanted() as usize).min(rest.len());
                if let Arrival::Complete(message) = assembler.bytes(&rest[..len], u64::MAX).unwrap() {
                    messages.push(message.bytes.unwrap());
                }
                rest = &rest[len..];
            }
            assert!(messages == [bytes.clone(), Vec::new()], "{piece}");
        }
    }

    #[test]
    fn a_wild_length_takes_no_memory_and_a_long_one_waits() {
        let mut assembler = Assembler::default();
        let head = Head { kind: Kind::Value, descriptors: 0, number: 0, len: u64::MAX };
        assert!(matches!(assembler.bytes(&head.to_bytes(), u64::MAX), Ok(Arrival::More)));
        assert!(matches!(assembler.bytes(&[0; 100], u64::MAX), Ok(Arrival::More)));
        assert!(assembler.partial.as_ref().unwrap().bytes.capacity() <= PART_BYTES);
        let mut assembler = Assembler::default();
        let long = packets(1, &[7; 100]);
        assert!(matches!(assembler.packet(&long[0], Vec::new(), 99), Ok(Arrival::TooLong(100))));
        let Arrival::Complete(message) = assembler.complete() else { panic!("it was kept") };
        assert_eq!(message.bytes.unwrap(), [7; 100]);
    }

    #[test]
    fn other_protocols_and_wrong_borders_are_told_apart() {
        let mut assembler = Assembler::default();
        let refused = |assembler: &mut Assembler, packet: &[u8]| {
            assembler.packet(packet, Vec::new(), u64::MAX).unwrap_err()
        };
        assert_eq!(refused(&mut assembler, b""), Disorder::NotOurs);
        assert_eq!(refused(&mut assembler, b"GET / HTTP/1.1\r\n\r\n"), Disorder::NotOurs);
        let mut cut = packets(1, b"whole")[0].clone();
        cut.pop();
        assert_eq!(refused(&mut assembler, &cut), Disorder::Border);
        let head = Head { kind: Kind::Value, descriptors: 2, number: 0, len: 0 };
        assert_eq!(refused(&mut assembler, &head.to_bytes()), Disorder::Descriptors);
    }
}
