//! Frames: a fixed header, followed by a payload.
//!
//! ```text
//! 0    1      2      4      8        16        24        32         40
//! kind flags  failed seq    task     function  length    items      payload …      to the worker
//!             zero                   nanos               consumed                  from the worker
//! ```
//!
//! All numbers are little endian. `length` is the length of the whole payload. A payload above
//! [`PART_BYTES_MAX`] is sent in parts, each in a message of its own. The receiver trusts none of
//! these numbers. An impossible kind or length ends the connection, and memory grows with the bytes
//! that arrive, not with the length that was announced.
//!
//! One frame may carry a chunk: several tasks of one function with consecutive ids. `items` says
//! which of them to run, see [`Items`].

use super::{payload::Payload, values::Values};
use crate::{
    id::{FnId, TaskId},
    os::available_memory::has_memory_for,
};

/// Bytes of a header on the wire.
pub(crate) const HEADER_BYTES: usize = 40;

/// Maximum number of payload bytes in one message. ipc-channel sends messages up to 212,448 bytes
/// in one piece, and larger ones over a second socket that can hang the sender for ever. Below 128
/// KiB the C library also reuses the buffers.
pub(crate) const PART_BYTES_MAX: usize = 96 * 1024;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// Run the initializer.
    Init = 1,
    /// Run tasks.
    Run = 2,
    /// To the worker: finish, run the finalizer if there is one, and exit.
    Stop = 3,
}

impl Order {
    fn from_u8(byte: u8) -> Option<Order> {
        [Order::Init, Order::Run, Order::Stop].into_iter().find(|order| *order as u8 == byte)
    }
}

/// What a worker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reply {
    /// The initializer has run.
    Ready = 4,
    /// From the worker: the value that the task returned.
    Done = 5,
    /// From the worker: the error that the task returned.
    Failed = 6,
    /// The task panicked.
    Panicked = 7,
    /// From the worker: the arguments could not be decoded.
    DecodeError = 8,
    /// From the worker: the result could not be encoded.
    EncodeError = 9,
    /// From the worker: the arguments could not be decoded because their `Serialize` and
    /// `Deserialize` do not match each other, or do not suit the codec.
    Unsuited = 10,
    /// From the worker: the number of bytes it has consumed, and nothing else.
    Credit = 11,
    /// From the worker: the operating system refused it a resource that the call needs.
    Refused = 12,
    /// From the worker: what it has measured while it ran the task whose reply comes next.
    Usage = 13,
    /// From the worker: the function that is told of errors has ended. It was called after a reply
    /// with [`flag::REPORTS`].
    Reported = 14,
}

impl Reply {
    pub(crate) fn from_u8(byte: u8) -> Option<Reply> {
        use Reply::*;
        [
            Ready,
            Done,
            Failed,
            Panicked,
            DecodeError,
            EncodeError,
            Unsuited,
            Credit,
            Refused,
            Usage,
            Reported,
        ]
        .into_iter()
        .find(|reply| *reply as u8 == byte)
    }
}

/// Flags of a frame. They apply to [`Order::Run`] unless their comment says otherwise.
pub(crate) mod flag {
    /// From the worker: it runs the function that is told of errors next, and claims no task until
    /// [`Reply::Reported`](super::Reply::Reported).
    pub(crate) const REPORTS: u8 = 1;
    /// The task has a time limit, so the worker notes when it begins.
    pub(crate) const TIMED: u8 = 2;
    /// The payload is a chunk.
    pub(crate) const CHUNK: u8 = 4;
    /// For any kind: the payload is in a segment. The frame contains the
    /// [`Reference`](super::super::payload::Reference) to it instead.
    pub(crate) const SEGMENT: u8 = 8;
    /// For any kind: a message with the frame's descriptors is in the control socket.
    pub(crate) const ATTACHED: u8 = 16;
    /// From the worker: its memory has grown so much that it should get no more tasks. The board
    /// says how much.
    pub(crate) const GROWN: u8 = 32;
    /// The worker measures what the task uses, and reports it in front of the reply.
    pub(crate) const MEASURED: u8 = 64;
    /// For [`Order::Stop`](super::Order::Stop): the worker runs this function before it exits.
    pub(crate) const FINALIZES: u8 = 128;

    /// Those of frames to a worker.
    pub(crate) const TO_WORKER: u8 = TIMED | CHUNK | SEGMENT | ATTACHED | MEASURED | FINALIZES;
    /// Those of frames from a worker.
    pub(crate) const FROM_WORKER: u8 = REPORTS | SEGMENT | ATTACHED | GROWN;
}

/// The header of a frame to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToWorker {
    pub(crate) order: Order,
    pub(crate) flags: u8,
    /// To the worker: the number of attempts that have failed.
    pub(crate) failed: u16,
    /// To the worker: the number of this sending. Each sending has a number of its own. So a task
    /// that was taken back and sent again cannot be mistaken for its first sending.
    pub(crate) seq: u32,
    pub(crate) task: TaskId,
    /// To the worker: the task function to call.
    pub(crate) function: FnId,
    /// Bytes of the whole payload.
    pub(crate) length: u64,
    pub(crate) items: Items,
}

/// The header of a frame from a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FromWorker {
    pub(crate) reply: Reply,
    pub(crate) flags: u8,
    pub(crate) task: TaskId,
    /// How long the task ran, in nanoseconds.
    pub(crate) nanos: u64,
    /// Bytes of the whole payload.
    pub(crate) length: u64,
    /// From the worker: the bytes of the parent's window that it has consumed so far.
    pub(crate) consumed: u64,
}

/// The header of a frame in one of the two directions. A frame of the other direction does not
/// decode.
pub(crate) trait Header: Copy {
    fn to_bytes(self) -> [u8; HEADER_BYTES];
    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError>;
    /// Bytes of the whole payload.
    fn length(&self) -> u64;
}

/// The items of a chunk that are to be run: those from `first` up to, but not including, `count`.
///
/// With [`flag::CHUNK`], the payload begins with the number of all items in the chunk. Then
/// follows, for each item, the end of its arguments. All these are little-endian `u32`s. The
/// arguments follow, one after the other. Without the flag, the payload is the arguments of item 0,
/// the only one. The id in the header is the id of item 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Items {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Items {
    pub(crate) const ONE: Items = Items { first: 0, count: 1 };
}

/// Returns the payload of a chunk. `arguments` are the arguments of all items, and `ends` are the
/// positions at which the arguments of each item end.
pub(crate) fn chunk_of(ends: &[u32], arguments: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity((1 + ends.len()) * 4 + arguments.len());
    payload.extend((ends.len() as u32).to_le_bytes());
    payload.extend(ends.iter().flat_map(|end| end.to_le_bytes()));
    payload.extend_from_slice(arguments);
    payload
}

/// Returns the arguments of one item of a chunk. Returns `None` if the payload is not a chunk, or
/// if the chunk has no such item.
pub(crate) fn item_of(payload: &[u8], item: u32) -> Option<&[u8]> {
    let (count, payload) = payload.split_first_chunk()?;
    let ends_len = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(4)?;
    let (ends, arguments) = payload.split_at_checked(ends_len)?;
    let end = |item: u32| {
        let at = usize::try_from(item).ok()? * 4;
        Some(u32::from_le_bytes(ends.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let start = if item == 0 { 0 } else { end(item - 1)? };
    arguments.get(start..end(item)?)
}

impl ToWorker {
    pub(crate) fn new(order: Order) -> Self {
        let (task, function) = (TaskId::from_raw(0), FnId(0));
        ToWorker {
            order,
            flags: 0,
            failed: 0,
            seq: 0,
            task,
            function,
            length: 0,
            items: Items::ONE,
        }
    }
}

impl FromWorker {
    pub(crate) fn new(reply: Reply) -> Self {
        FromWorker { reply, flags: 0, task: TaskId::from_raw(0), nanos: 0, length: 0, consumed: 0 }
    }
}

impl Header for ToWorker {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let items = u64::from(self.items.first) << 32 | u64::from(self.items.count);
        let kind = [self.order as u8, self.flags];
        to_bytes(
            kind,
            self.failed,
            self.seq,
            [self.task.as_u64(), self.function.0, self.length, items],
        )
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let order = Order::from_u8(bytes[0]).ok_or(WireError::Kind(bytes[0]))?;
        let (flags, failed, seq, [task, function, length, items]) =
            from_bytes(bytes, flag::TO_WORKER)?;
        Ok(ToWorker {
            order,
            flags,
            failed,
            seq,
            task: TaskId::from_raw(task),
            function: FnId(function),
            length,
            items: Items { first: (items >> 32) as u32, count: items as u32 },
        })
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Header for FromWorker {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let kind = [self.reply as u8, self.flags];
        to_bytes(kind, 0, 0, [self.task.as_u64(), self.nanos, self.length, self.consumed])
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let reply = Reply::from_u8(bytes[0]).ok_or(WireError::Kind(bytes[0]))?;
        let (flags, zero, _, [task, nanos, length, consumed]) =
            from_bytes(bytes, flag::FROM_WORKER)?;
        if zero != 0 {
            return Err(WireError::Reserved);
        }
        Ok(FromWorker { reply, flags, task: TaskId::from_raw(task), nanos, length, consumed })
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// The layout that both directions have.
fn to_bytes(kind: [u8; 2], failed: u16, seq: u32, words: [u64; 4]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..2].copy_from_slice(&kind);
    out[2..4].copy_from_slice(&failed.to_le_bytes());
    out[4..8].copy_from_slice(&seq.to_le_bytes());
    for (place, word) in out[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Flags, which must be among the `known` ones, number of failed attempts, number of the sending,
/// and the words behind them.
fn from_bytes(
    bytes: &[u8; HEADER_BYTES],
    known: u8,
) -> Result<(u8, u16, u32, [u64; 4]), WireError> {
    let flags = bytes[1];
    if flags & !known != 0 {
        return Err(WireError::Reserved);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let failed = u16::from_le_bytes([bytes[2], bytes[3]]);
    let seq = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    Ok((flags, failed, seq, [word(8), word(16), word(24), word(32)]))
}

/// A header and its whole payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame<H> {
    pub(crate) header: H,
    pub(crate) payload: Payload,
    /// The values of the tasks with the following ids, if they came without headers of their own.
    pub(crate) more: Values,
}

impl<H> Frame<H> {
    pub(crate) fn new(header: H, payload: Payload) -> Self {
        Frame { header, payload, more: Values::default() }
    }
}

impl FromWorker {
    /// Returns whether the reply with the header `next` may be sent without its header, behind the
    /// reply with this header. It may if it is a value and the two headers differ only in the
    /// length and in the id, which is the next one. A reply with flags may not, because its payload
    /// is not all that belongs to it.
    pub(crate) fn precedes(&self, next: &FromWorker) -> bool {
        let same = FromWorker { task: self.task, length: self.length, ..*next };
        next.reply == Reply::Done
            && next.flags == 0
            && same == *self
            && next.task.as_u64() == self.task.as_u64().wrapping_add(1)
    }
}

crate::debug::debug_is_display!(WireError);

/// A violation of the protocol by the peer.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a message ends within its header")]
    Truncated,
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("a position in the ring that cannot be")]
    Position,
    #[error("reserved bits are set")]
    Reserved,
    #[error("a frame of {0} bytes, more than there can be")]
    Length(u64),
    #[error("a frame that goes on after {0} bytes, for which there is no memory")]
    Memory(usize),
    #[error("a message of no bytes")]
    Empty,
    #[error(
        "a frame that is not for the pool, not now, or about a task that the worker does not have"
    )]
    Unasked,
    #[error("a message part that belongs to no frame, or more bytes than promised")]
    Surplus,
    #[error("a value without a header, behind nothing that it could belong to")]
    Headless,
}

/// Assembles frames from messages. It takes bytes, returns frames, and does nothing else.
///
/// A message holds one or more frames. Only the last frame in it may continue in the messages that
/// follow.
///
/// The length that a frame announces costs no memory. Memory is taken as bytes arrive. Before a
/// large allocation doubles, the system is asked whether it has that much memory. So a peer that
/// sends without end is cut off in time. Without the question nothing would stop it: the allocation
/// does not fail, because the system gives out page after page and then kills a process.
#[derive(Debug)]
pub(crate) struct Assembler<H> {
    open: Option<(H, Vec<u8>)>,
    has_memory_for: fn(u64) -> bool,
}

impl<H> Default for Assembler<H> {
    fn default() -> Self {
        Assembler { open: None, has_memory_for }
    }
}

impl<H: Header> Assembler<H> {
    /// Takes one message, hands each completed frame to `sink`.
    pub(crate) fn message(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Frame<H>),
    ) -> Result<(), WireError> {
        if bytes.is_empty() {
            // A correct peer sends no empty messages. A faulty one could send them without end, and
            // would only cost time.
            return Err(WireError::Empty);
        }
        if let Some((header, mut payload)) = self.open.take() {
            let missing = header.length() - payload.len() as u64;
            let (here, rest) = split_at_most(bytes, missing);
            if payload.capacity() - payload.len() < here.len() {
                // The vector at least doubles. While it is copied, the old and the new memory both
                // exist.
                let more = payload.capacity().max(here.len());
                let has_memory =
                    (self.has_memory_for)(more as u64) && payload.try_reserve(here.len()).is_ok();
                if !has_memory {
                    return Err(WireError::Memory(payload.len()));
                }
            }
            payload.extend_from_slice(here);
            if (here.len() as u64) < missing {
                self.open = Some((header, payload));
                return Ok(());
            }
            sink(Frame::new(header, payload.into()));
            if !rest.is_empty() {
                return Err(WireError::Surplus);
            }
            return Ok(());
        }
        while !bytes.is_empty() {
            let (header, rest) =
                bytes.split_first_chunk::<HEADER_BYTES>().ok_or(WireError::Truncated)?;
            let header = H::from_bytes(header)?;
            // No vector can be longer than that.
            if header.length() > isize::MAX as u64 {
                return Err(WireError::Length(header.length()));
            }
            let (here, rest) = split_at_most(rest, header.length());
            if here.len() as u64 == header.length() {
                // Most frames are small and complete, so no memory is allocated for them.
                sink(Frame::new(header, here.into()));
            } else {
                self.open = Some((header, here.to_vec()));
            }
            bytes = rest;
        }
        Ok(())
    }
}

fn split_at_most(bytes: &[u8], length: u64) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn header(length: u64) -> ToWorker {
        ToWorker {
            flags: flag::TIMED,
            failed: 513,
            seq: 7,
            task: TaskId::from_raw(u64::MAX - 1),
            function: FnId(3),
            length,
            items: Items { first: 1, count: u32::MAX },
            ..ToWorker::new(Order::Run)
        }
    }

    #[test]
    fn header_survives_the_round_trip() {
        let header = header(1 << 40);
        assert_eq!(ToWorker::from_bytes(&header.to_bytes()), Ok(header));
        let reply = FromWorker { nanos: u64::MAX, consumed: 9, ..FromWorker::new(Reply::Done) };
        assert_eq!(FromWorker::from_bytes(&reply.to_bytes()), Ok(reply));
    }

    #[test]
    fn unknown_kinds_and_reserved_bits_are_refused() {
        for kind in 0..=255 {
            let mut bytes = header(0).to_bytes();
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            let (to_worker, from_worker) =
                (ToWorker::from_bytes(&bytes), FromWorker::from_bytes(&bytes));
            let known = (to_worker.is_ok(), from_worker.is_ok());
            assert_eq!(known, ((1..=3).contains(&kind), (4..=14).contains(&kind)), "one way only");
            assert!(to_worker.is_ok() || to_worker == Err(WireError::Kind(kind)));
            assert!(from_worker.is_ok() || from_worker == Err(WireError::Kind(kind)));
        }
        for at in 2..4 {
            let mut bytes = FromWorker::new(Reply::Done).to_bytes();
            bytes[at] = 0x80;
            assert_eq!(FromWorker::from_bytes(&bytes), Err(WireError::Reserved));
        }
        for bit in (0..8).map(|bit| 1 << bit) {
            let mut bytes = header(0).to_bytes();
            bytes[1] = bit;
            let to_worker = ToWorker::from_bytes(&bytes);
            assert_eq!(to_worker.is_ok(), flag::TO_WORKER & bit != 0, "{bit:#x} to a worker");
            bytes[0] = Reply::Done as u8;
            bytes[2..4].fill(0);
            let from_worker = FromWorker::from_bytes(&bytes);
            assert_eq!(from_worker.is_ok(), flag::FROM_WORKER & bit != 0, "{bit:#x} from a worker");
        }
    }

    #[test]
    fn a_chunk_gives_each_item_its_own_arguments() {
        let chunk = chunk_of(&[1, 1, 4], b"abcd");
        let items: Vec<_> = (0..4).map(|item| item_of(&chunk, item)).collect();
        assert_eq!(items, [Some(&b"a"[..]), Some(b""), Some(b"bcd"), None]);
        for broken in [&b""[..], &[9, 0, 0, 0], &[1, 0, 0, 0, 9, 0, 0, 0, 1], &[255; 12]] {
            assert_eq!(item_of(broken, 0), None);
        }
        assert_eq!(item_of(&chunk_of(&[3, 1], b"abc"), 1), None, "an end before its start");
    }

    fn assemble(messages: &[&[u8]]) -> Result<Vec<Frame<ToWorker>>, WireError> {
        let mut frames = Vec::new();
        let mut assembler = Assembler::default();
        for message in messages {
            assembler.message(message, |frame| frames.push(frame))?;
        }
        Ok(frames)
    }

    #[test]
    fn one_message_may_hold_several_frames_and_one_frame_several_messages() {
        let frame = |payload: &[u8]| Frame::new(header(payload.len() as u64), payload.into());
        let bytes =
            |frame: &Frame<ToWorker>| [&frame.header.to_bytes()[..], &frame.payload[..]].concat();
        let (small, empty, large) = (frame(b"small"), frame(b""), frame(&[5; 1000]));
        let first =
            [bytes(&small), bytes(&empty), bytes(&large)[..HEADER_BYTES + 10].to_vec()].concat();
        let frames = assemble(&[&first, &[5; 400], &[5; 590], &bytes(&small)]).unwrap();
        assert_eq!(frames, [small.clone(), empty, large, small]);
    }

    #[test]
    fn a_wild_length_allocates_nothing_and_surplus_bytes_are_refused() {
        let wild = header(u64::MAX >> 1).to_bytes();
        assert_eq!(assemble(&[&wild, &[1, 2, 3]]), Ok(vec![]));
        let wilder = header(1 << 63).to_bytes();
        assert_eq!(assemble(&[&wilder]), Err(WireError::Length(1 << 63)));
        assert_eq!(assemble(&[&wild, &[]]), Err(WireError::Empty));
        let short = [&header(4).to_bytes()[..], b"ab"].concat();
        assert_eq!(assemble(&[&short, b"cdX"]), Err(WireError::Surplus));
        assert_eq!(assemble(&[&wild[..39]]), Err(WireError::Truncated));
    }

    #[test]
    fn a_frame_that_goes_on_beyond_the_memory_there_is_ends_there() {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let has_memory_for = |bytes| {
            ASKED.fetch_add(bytes, Ordering::Relaxed);
            bytes < 10_000
        };
        let mut assembler = Assembler::<ToWorker> { has_memory_for, ..Assembler::default() };
        assembler.message(&header(1 << 40).to_bytes(), |_| unreachable!()).unwrap();
        let mut sent = 0;
        let error = loop {
            match assembler.message(&[7; 1000], |_| unreachable!()) {
                Ok(()) => sent += 1000,
                Err(error) => break error,
            }
        };
        assert_eq!(error, WireError::Memory(sent));
        assert!((10_000..40_000).contains(&sent), "{sent}");
        // Memory is asked for at each doubling, and not for each message.
        assert!(ASKED.load(Ordering::Relaxed) < 80_000, "{ASKED:?}");
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut to_worker = Assembler::<ToWorker>::default();
            let mut from_worker = Assembler::<FromWorker>::default();
            for _ in 0..4 {
                let mut bytes = [0_u8; 97];
                for byte in &mut bytes {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Mostly small values, so that some headers are good.
                    *byte = if state & 3 == 0 {
                        (state >> 8) as u8
                    } else {
                        (state >> 8) as u8 % (Reply::Refused as u8 + 1) * u8::from(state & 12 == 0)
                    };
                }
                let length = (state >> 20) as usize % bytes.len();
                let _ = to_worker.message(&bytes[..length], |_| ());
                let _ = from_worker.message(&bytes[..length], |_| ());
            }
        }
    }
}
