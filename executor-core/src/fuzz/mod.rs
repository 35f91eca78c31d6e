//! Every decoder of foreign bytes, as a function of bytes. It is for the fuzzer
//! (`executor-core/fuzz`) and for the runner in [`tests`], which needs no other toolchain. It is
//! not compiled into anything else.
//!
//! ```text
//!  corpus, mutations ─► Input ─► target: a decoder, and the invariants of what it returns
//!    (`executor-core/fuzz/corpus`)   frames, handshake, values, blocks, queues, boards …
//! ```
//!
//! A target panics if one of its invariants does not hold. The code that runs a target checks that
//! the target does not panic for other reasons, and that it takes no more memory than
//! [`Target::bytes_max`].

mod codecs;
#[expect(
    clippy::disallowed_methods,
    reason = "the thread of a test runs no code while its locals are destroyed"
)]
mod shared;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the thread of a test runs no code while its locals are destroyed"
)]
mod tests;

use crate::{
    error::{Failure, RemoteError},
    wire::{
        frame::{Assembler, FromWorker, HEADER_BYTES, Header, Reply, ToWorker, item_of},
        handshake::{self as first, Hello, Setup},
    },
};

pub use codecs::{messagepack, postcard, round_trip};
pub(crate) use shared::turn;
pub use shared::{board, ring};

/// A decoder and the bound on its memory.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the target, and of its folder in the corpus.
    pub name: &'static str,
    /// Runs the decoder on an input.
    pub run: fn(&[u8]),
    /// Maximum number of bytes that it may have allocated at one time, for an input of this length.
    pub bytes_max: fn(usize) -> usize,
}

/// Bytes that serde may reserve for a list before its elements are read. It reserves up to 1 MiB
/// for each list whose length is announced, and somewhat more for a map.
const AHEAD: usize = 3 << 20;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, bytes_max: |len| 4096 + 8 * len },
    Target { name: "setup", run: setup, bytes_max: |len| AHEAD + 64 * len },
    Target { name: "hello", run: hello, bytes_max: |len| 4096 + 8 * len },
    Target { name: "failure", run: failure, bytes_max: |len| AHEAD + 64 * len },
    Target { name: "items", run: items, bytes_max: |_| 4096 },
    Target {
        name: "postcard",
        run: postcard,
        bytes_max: |len| codecs::levels(len) * AHEAD + 64 * len,
    },
    Target {
        name: "messagepack",
        run: messagepack,
        bytes_max: |len| codecs::levels(len) * AHEAD + 64 * len,
    },
    Target { name: "round_trip", run: round_trip, bytes_max: |len| AHEAD + 64 * len },
    Target { name: "ring", run: ring, bytes_max: shared::ring_bytes_max },
    Target { name: "message", run: message, bytes_max: crate::ipc::fuzzed::message_bytes_max },
    Target { name: "handshake", run: handshake, bytes_max: |_| 4096 },
    Target { name: "queue", run: queue, bytes_max: |_| crate::ipc::fuzzed::QUEUE_BYTES_MAX },
    Target {
        name: "requests",
        run: requests,
        bytes_max: crate::manager::fuzzed::requests_bytes_max,
    },
    Target { name: "replies", run: replies, bytes_max: |len| AHEAD + 64 * len },
    Target { name: "meeting", run: meeting, bytes_max: |len| (1 << 16) + 8 * len },
    Target { name: "place", run: place, bytes_max: |len| (1 << 16) + 64 * len },
    #[cfg(feature = "tls")]
    Target { name: "way", run: way, bytes_max: |len| AHEAD + 64 * len },
];

/// The board. Only the text of a panic takes memory in it, but it is run with threads, which take
/// some.
pub const BOARD: Target = Target { name: "board", run: board, bytes_max: |_| 1 << 20 };

/// Reads numbers from the input. It returns zeros after the input's end.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Input(data)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let here = self.bytes(N);
        out[..here.len()].copy_from_slice(here);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (here, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        here
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Passes messages to one assembler. Each message in the input follows its length in two bytes.
pub fn frame(data: &[u8]) {
    frames::<FromWorker>(data);
    frames::<ToWorker>(data);
}

fn frames<H: Header + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let mut input = Input(data);
    let mut assembler = Assembler::<H>::default();
    let (mut taken, mut given) = (0, 0);
    while !input.is_empty() {
        let len = usize::from(input.u16());
        let message = input.bytes(len);
        taken += message.len();
        let assembled = assembler.message(message, |frame| {
            given += HEADER_BYTES + frame.payload.len();
            assert_eq!(
                frame.header.length(),
                frame.payload.len() as u64,
                "a frame is as long as it says"
            );
            let again = H::from_bytes(&frame.header.to_bytes());
            assert_eq!(again, Ok(frame.header), "a header survives");
        });
        assert!(given <= taken, "more came out than went in");
        if assembled.is_err() {
            // The connection is closed.
            return;
        }
    }
}

/// Decodes what arrives through a connection.
pub fn message(data: &[u8]) {
    crate::ipc::fuzzed::message(data);
}

/// Decodes the messages that come before a peer is authenticated.
pub fn handshake(data: &[u8]) {
    crate::ipc::fuzzed::handshake(data);
}

/// Uses a queue whose words another process writes.
pub fn queue(data: &[u8]) {
    crate::ipc::fuzzed::queue(data);
}

/// Decodes the places of shared objects that a peer names, in memory that the peer has written.
pub fn place(data: &[u8]) {
    crate::heap::block::fuzzed::place(data);
}

/// Gives a manager's server the requests of two clients.
pub fn requests(data: &[u8]) {
    crate::manager::fuzzed::requests(data);
}

/// Decodes a reply of a manager's server.
pub fn replies(data: &[u8]) {
    crate::manager::fuzzed::replies(data);
}

/// Decodes what a client and a manager's server say to each other inside TLS, before and after they
/// know each other.
pub fn meeting(data: &[u8]) {
    crate::manager::fuzzed::meeting(data);
}

/// Decodes the way to a manager's server that another process has sent with a handle.
#[cfg(feature = "tls")]
pub fn way(data: &[u8]) {
    crate::manager::fuzzed::way(data);
}

/// Decodes the first message that a worker reads.
pub fn setup(data: &[u8]) {
    if let Ok(setup) = first::from_bytes::<Setup>(data) {
        assert_eq!(first::from_bytes::<Setup>(&first::to_bytes(&setup)), Ok(setup));
    }
}

/// Decodes the first message of a worker.
pub fn hello(data: &[u8]) {
    if let Ok(Ok(hello)) = first::answer_from_bytes::<Hello>(data) {
        assert_eq!(first::answer_from_bytes::<Hello>(&first::to_bytes(&hello)), Ok(Ok(hello)));
    }
}

/// Decodes the error in a reply of any kind, and calls everything that the error offers.
pub fn failure(data: &[u8]) {
    let kinds = [
        Reply::Failed,
        Reply::Panicked,
        Reply::DecodeError,
        Reply::EncodeError,
        Reply::Unsuited,
        Reply::Done,
    ];
    for kind in kinds {
        let _ = crate::error::reply::failure("task", kind, data).to_string();
    }
    if let Ok(failure) = ::postcard::from_bytes::<Failure>(data) {
        let error = RemoteError::new("task", failure);
        let _ = (format!("{error:?}"), error.downcast::<Vec<String>>(), error.downcast::<u64>());
    }
}

/// Decodes an item of a chunk. The input is the number of the item, followed by the payload.
pub fn items(data: &[u8]) {
    let mut input = Input(data);
    let item = u32::from_le_bytes(input.array());
    let payload = input.0;
    for item in [item, item % 16] {
        if let Some(arguments) = item_of(payload, item) {
            assert!(arguments.is_empty() || payload.as_ptr_range().contains(&arguments.as_ptr()));
            assert!(arguments.len() + 4 + 4 * item as usize <= payload.len());
        }
    }
}
