//! The format of the messages of a connection, and their reassembly. No I/O: no socket, no clock.
//!
//! ```text
//!  SEQPACKET   │header│ first 64 KiB │   │header: More, offset│ next 64 KiB │   …
//!              each one packet, which arrives whole or not at all
//!  TCP         │header│ all of it ………………………………………………………………………………………………………………│
//! ```
//!
//! Lengths have 64 bits. A message announces its length, but memory is allocated only as its bytes
//! arrive, so an absurd length costs nothing. A packet must also be exactly as long as its header
//! says.

use std::os::fd::OwnedFd;

/// Length of the header of each message. A message in several parts has a header before each part.
pub(super) const HEADER_BYTES: usize = 16;

/// Maximum number of bytes of a message in one packet.
///
/// By default the kernel buffers about 200 KiB for a reader. That holds three parts, so neither
/// side has to wait for the other after each part. A lower value means more system calls for large
/// messages. A higher value means packets that the kernel cannot allocate while memory is
/// fragmented.
pub(super) const PART_BYTES: usize = 64 * 1024;

/// The first bytes of each header. A client of another protocol is recognized by them at once.
const MARK: [u8; 2] = *b"xq";

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MessageKind {
    /// An encoded value.
    Value = 1,
    /// The user's own bytes.
    Bytes,
    /// A further part of a message, not a message of its own.
    More,
    /// The messages of authentication, from here on, in the order in which they are sent.
    Hello,
    Challenge,
    Answer,
    Welcome,
    Refused,
}

impl MessageKind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        use MessageKind::*;
        [Value, Bytes, More, Hello, Challenge, Answer, Welcome, Refused]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The header of a message or of a further part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageHeader {
    pub(super) kind: MessageKind,
    /// Number of descriptors sent with the first packet of the message.
    pub(super) descriptors: u8,
    /// Identifies the message: all its parts have the same number, which the sender chooses.
    pub(super) number: u32,
    /// Length of the message in bytes. In the header of a further part, the part's offset in it.
    pub(super) len: u64,
}

impl MessageHeader {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..2].copy_from_slice(&MARK);
        out[2] = self.kind as u8;
        out[3] = self.descriptors;
        out[4..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Disorder> {
        let [m0, m1, kind, descriptors, n0, n1, n2, n3, len @ ..] = *bytes;
        let kind =
            MessageKind::from_byte(kind).filter(|_| [m0, m1] == MARK).ok_or(Disorder::NotOurs)?;
        let number = u32::from_le_bytes([n0, n1, n2, n3]);
        Ok(MessageHeader { kind, descriptors, number, len: u64::from_le_bytes(len) })
    }
}

crate::debug::debug_is_display!(Disorder);

/// A protocol violation by a peer. On a stream, the bytes after it have no meaning any more.
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
    pub(super) kind: MessageKind,
    /// `None` if the message fills the rest of its packet, after the header.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A message that has begun to arrive.
#[derive(Debug)]
struct Partial {
    header: MessageHeader,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Partial {
    fn missing(&self) -> u64 {
        self.header.len - self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        // Limit the capacity to about twice the bytes that have arrived, whatever length was
        // announced.
        let room = self.bytes.capacity() - self.bytes.len();
        if room < bytes.len() {
            let wanted = self.bytes.len().max(PART_BYTES).max(bytes.len());
            self.bytes
                .reserve_exact(usize::try_from(self.missing()).unwrap_or(usize::MAX).min(wanted));
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn into_message(self) -> Message {
        Message { kind: self.header.kind, bytes: Some(self.bytes), descriptors: self.descriptors }
    }
}

/// Reassembles messages from packets or from the bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    partial: Option<Partial>,
    /// On a stream: the bytes of a header that has not arrived completely.
    header: Vec<u8>,
}

/// The result of feeding the assembler.
#[derive(Debug)]
pub(super) enum Arrival {
    Complete(Message),
    More,
    /// The message is longer than `max`. Nothing is lost: later input continues the message, and a
    /// call with a higher limit can still receive it.
    TooLong(u64),
}

impl Assembler {
    /// Whether a message has begun to arrive.
    pub(super) fn has_begun(&self) -> bool {
        self.partial.is_some() || !self.header.is_empty()
    }

    /// Whether a message that was too long for an earlier call is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.missing() == 0)
    }

    /// The length that the arriving message has announced.
    pub(super) fn announced(&self) -> Option<u64> {
        self.partial.as_ref().map(|partial| partial.header.len)
    }

    /// Takes one packet. A message that fits into one packet is not copied.
    pub(super) fn packet(
        &mut self,
        packet: &[u8],
        descriptors: Vec<OwnedFd>,
        max: u64,
    ) -> Result<Arrival, Disorder> {
        let (header, body) = packet.split_first_chunk().ok_or(Disorder::NotOurs)?;
        let header = MessageHeader::from_bytes(header)?;
        let part_of = |missing: u64| missing.min(PART_BYTES as u64);
        if header.kind == MessageKind::More {
            let fits = |partial: &&mut Partial| {
                partial.header.number == header.number && partial.bytes.len() as u64 == header.len
            };
            let partial = self.partial.as_mut().filter(fits).ok_or(Disorder::Part)?;
            if body.len() as u64 != part_of(partial.missing()) || !descriptors.is_empty() {
                return Err(Disorder::Border);
            }
            partial.push(body);
            return Ok(self.complete());
        }
        // A new message while another is partial: its sender died in the middle of it, or gave it
        // up, and the end is still in use.
        self.partial = None;
        if body.len() as u64 != part_of(header.len) {
            return Err(Disorder::Border);
        }
        if descriptors.len() != usize::from(header.descriptors) {
            return Err(Disorder::Descriptors);
        }
        // The common case. The caller still has the packet and reads the body from there.
        if body.len() as u64 == header.len && header.len <= max {
            return Ok(Arrival::Complete(Message { kind: header.kind, bytes: None, descriptors }));
        }
        let mut partial = Partial { header, bytes: Vec::new(), descriptors };
        partial.push(body);
        self.partial = Some(partial);
        Ok(if header.len > max { Arrival::TooLong(header.len) } else { Arrival::More })
    }

    /// On a stream: how many bytes may be read without reading into the next message.
    pub(super) fn wanted(&self) -> u64 {
        match &self.partial {
            Some(partial) => partial.missing(),
            None => (HEADER_BYTES - self.header.len()) as u64,
        }
    }

    /// On a stream: takes bytes, at most as many as [`wanted`](Self::wanted) says.
    pub(super) fn bytes(&mut self, bytes: &[u8], max: u64) -> Result<Arrival, Disorder> {
        if let Some(partial) = &mut self.partial {
            partial.push(bytes);
            return Ok(self.complete());
        }
        self.header.extend_from_slice(bytes);
        let Some(header) = self.header.first_chunk() else { return Ok(Arrival::More) };
        let header = MessageHeader::from_bytes(header)?;
        self.header.clear();
        // Descriptors cannot cross a network, and a message on a stream has no further parts.
        if header.descriptors != 0 || header.kind == MessageKind::More {
            return Err(Disorder::NotOurs);
        }
        self.partial = Some(Partial { header, bytes: Vec::new(), descriptors: Vec::new() });
        Ok(if header.len > max { Arrival::TooLong(header.len) } else { self.complete() })
    }

    /// Returns the partial message if no byte of it is missing.
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
        let header = MessageHeader {
            kind: MessageKind::Bytes,
            descriptors: 0,
            number,
            len: bytes.len() as u64,
        };
        let mut packets = vec![header.to_bytes().to_vec()];
        let first = bytes.len().min(PART_BYTES);
        packets[0].extend_from_slice(&bytes[..first]);
        for (index, part) in bytes[first..].chunks(PART_BYTES).enumerate() {
            let len = (first + index * PART_BYTES) as u64;
            let header = MessageHeader { kind: MessageKind::More, descriptors: 0, number, len };
            packets.push([&header.to_bytes(), part].concat());
        }
        packets
    }

    fn all(assembler: &mut Assembler, packets: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut whole = None;
        for packet in packets {
            assert!(whole.is_none());
            match assembler.packet(packet, Vec::new(), u64::MAX).unwrap() {
                Arrival::Complete(message) => {
                    whole = Some(message.bytes.unwrap_or_else(|| packet[HEADER_BYTES..].to_vec()));
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
        for len in
            [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 7]
        {
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
        // The remaining part of the first message is not taken for a part of another one.
        assert_eq!(assembler.packet(&begun[2], Vec::new(), u64::MAX).unwrap_err(), Disorder::Part);
        let mut mixed = packets(3, &[3; 2 * PART_BYTES]);
        mixed[1] = packets(4, &[4; 2 * PART_BYTES])[1].clone();
        assert!(matches!(assembler.packet(&mixed[0], Vec::new(), u64::MAX), Ok(Arrival::More)));
        assert_eq!(assembler.packet(&mixed[1], Vec::new(), u64::MAX).unwrap_err(), Disorder::Part);
    }

    #[test]
    fn messages_come_together_from_a_stream_in_any_pieces() {
        let bytes = vec![5; 1000];
        let header =
            MessageHeader { kind: MessageKind::Value, descriptors: 0, number: 0, len: 1000 };
        let stream =
            [&header.to_bytes(), &bytes[..], &MessageHeader { len: 0, ..header }.to_bytes()]
                .concat();
        for piece in [1, 3, 16, 17, 999] {
            let (mut assembler, mut messages, mut rest) =
                (Assembler::default(), Vec::new(), &stream[..]);
            while !rest.is_empty() {
                let len = piece.min(assembler.wanted() as usize).min(rest.len());
                if let Arrival::Complete(message) = assembler.bytes(&rest[..len], u64::MAX).unwrap()
                {
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
        let header =
            MessageHeader { kind: MessageKind::Value, descriptors: 0, number: 0, len: u64::MAX };
        assert!(matches!(assembler.bytes(&header.to_bytes(), u64::MAX), Ok(Arrival::More)));
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
        let header = MessageHeader { kind: MessageKind::Value, descriptors: 2, number: 0, len: 0 };
        assert_eq!(refused(&mut assembler, &header.to_bytes()), Disorder::Descriptors);
    }
}
