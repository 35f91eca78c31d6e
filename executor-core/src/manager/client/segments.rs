//! Segments of shared memory in which large values travel to a server on this machine, and back.
//!
//! ```text
//!  this process                                    the server
//!  a large value, by the ring ───────────────────►
//!  Segments (a request) ─────────────────────────► makes an arena, if it has a descriptor for it
//!      ◄──── socket: its descriptor ─── ring: Done
//!  opens it; Segments (again, no reply) ─────────► from now on, also for replies
//!
//!  encode ──► a segment ◄── ring: number, length ─► copies it once, to where it keeps the value
//!             free again ◄──────────────────────── clears the segment's bit
//!
//!  copied once, decoded ◄── ring: number, length ── a segment ◄── the value, as an object has it
//!  clears the segment's bit ─────────────────────► free again
//! ```
//!
//! The arena and who owns a segment are as for the results of a worker (see
//! [`segment`](crate::segment)), but both sides take segments of one arena. The side that reads
//! does not trust the other one: it copies the bytes before it looks at them. The server frees the
//! arena with the connection, and gives back the memory of segments that were not used for a second
//! or two.
//!
//! Nobody ever waits for segments. While there are none, whatever the reason, values go through the
//! ring.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::super::protocol::{HEADER_BYTES, InSegment};
use crate::{
    os::{arena::vec_to_fill, spare, std_or_model::lock},
    segment::{Lease, Results, Store},
};

/// A value longer than this travels in a segment. With a lower value, more processes take memory
/// and a descriptor for segments, for values that are as fast without. With a higher value, more
/// values go through the ring, at a third of the speed.
pub(crate) const SEGMENT_FROM: usize = 48 << 10;
/// The one byte of the message that brings the descriptor of the arena.
pub(crate) const GRANTED: u8 = b'S';

/// The segments of one connection.
pub(super) struct Segments {
    state: Mutex<State>,
    /// Whether there are any. Most values need not take the lock to know.
    granted: AtomicBool,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// A descriptor that has come over the socket, before the answer was read.
    arrived: Option<OwnedFd>,
}

#[derive(Default)]
enum Stage {
    /// No large value was sent so far.
    #[default]
    Unasked,
    Asked,
    Granted(Arc<Store>, Arc<Results>),
    /// The server has none for this process, or is far away, or gone.
    Without,
}

impl Segments {
    pub(super) fn new(is_near: bool) -> Self {
        let stage = if is_near { Stage::Unasked } else { Stage::Without };
        let state = Mutex::new(State { stage, arrived: None });
        Segments { state, granted: AtomicBool::new(false) }
    }

    /// Returns where segments are taken from, if there are any.
    pub(super) fn store(&self) -> Option<Arc<Store>> {
        if !self.granted.load(Ordering::Relaxed) {
            return None;
        }
        match &lock(&self.state).stage {
            Stage::Granted(store, _) => Some(Arc::clone(store)),
            _ => None,
        }
    }

    /// Returns where the server's values are read from, if there are segments.
    fn results(&self) -> Option<Arc<Results>> {
        match &lock(&self.state).stage {
            Stage::Granted(_, results) => Some(Arc::clone(results)),
            _ => None,
        }
    }

    /// Puts the last bytes of a reply, which are in a segment, behind the others, and gives the
    /// segment back.
    pub(super) fn complete(&self, message: &mut Vec<u8>) -> Result<(), &'static str> {
        const IMPOSSIBLE: &str = "a reply that names a segment which there is not";
        let (header, body) = message.split_first_chunk::<HEADER_BYTES>().ok_or(IMPOSSIBLE)?;
        let (fields, InSegment { number, len }) = InSegment::take(body).ok_or(IMPOSSIBLE)?;
        let results = self.results().ok_or(IMPOSSIBLE)?;
        let received = results.receive(number, len).ok_or(IMPOSSIBLE)?;
        let room = HEADER_BYTES + fields.len() + received.len();
        let mut whole = match spare::take(room) {
            none if none.capacity() == 0 => {
                vec_to_fill(room).map_err(|_| "there is no memory for a reply")?
            }
            spare => spare,
        };
        whole.extend_from_slice(header);
        whole.extend_from_slice(fields);
        received.append_to(&mut whole).map_err(|_| "there is no memory for a reply")?;
        kill_point!(ClientSegmentCopied);
        spare::give(std::mem::replace(message, whole));
        Ok(())
    }

    /// Returns whether the server is to be asked now. That is so once.
    pub(super) fn is_to_be_asked(&self) -> bool {
        let mut state = lock(&self.state);
        let asks = matches!(state.stage, Stage::Unasked);
        if asks {
            state.stage = Stage::Asked;
        }
        asks
    }

    /// Keeps a descriptor that has come over the socket, if it was asked for.
    pub(super) fn arrived(&self, descriptor: OwnedFd) {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Asked) {
            state.arrived = Some(descriptor);
        }
    }

    /// Notes the server's answer. The descriptor has arrived by then, unless this process has no
    /// room for it. Returns whether there are segments now, which the server is to be told.
    pub(super) fn answered(&self, done: bool) -> bool {
        let descriptor = lock(&self.state).arrived.take().filter(|_| done);
        let opened = descriptor.map(|descriptor| {
            let results = Results::open_foreign(descriptor)?;
            Ok::<_, io::Error>((Store::beside(&results)?, results))
        });
        let opened = opened.and_then(|opened| {
            opened
                .inspect_err(|error| tracing::debug!(%error, "no segments for a manager's values"))
                .ok()
        });
        let mut state = lock(&self.state);
        let granted = opened.is_some() && matches!(state.stage, Stage::Asked);
        if matches!(state.stage, Stage::Asked) {
            self.granted.store(granted, Ordering::Relaxed);
            state.stage = match opened {
                Some((store, results)) => Stage::Granted(store, results),
                None => Stage::Without,
            };
        }
        granted
    }

    /// The connection has ended. The memory is freed with the last value that is being encoded.
    pub(super) fn end(&self) {
        self.granted.store(false, Ordering::Relaxed);
        let state = std::mem::replace(
            &mut *lock(&self.state),
            State { stage: Stage::Without, arrived: None },
        );
        // Unmapped while no lock is held.
        drop(state);
    }
}

/// The bytes of a value in a segment, at the end of a request.
pub(crate) struct Tail {
    /// `None` when they were sent.
    lease: Option<Lease>,
    store: Arc<Store>,
    len: usize,
}

impl Tail {
    pub(super) fn new(lease: Lease, store: Arc<Store>, len: usize) -> Self {
        Tail { lease: Some(lease), store, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the bytes are in a segment of this connection.
    pub(super) fn is_of(&self, segments: &Segments) -> bool {
        segments.store().is_some_and(|store| Arc::ptr_eq(&store, &self.store))
    }

    /// Says in a request where the bytes are.
    pub(super) fn put(&self, header: &mut [u8; HEADER_BYTES], body: &mut Vec<u8>) {
        let number = self.lease.as_ref().map_or(u64::MAX, |lease| u64::from(lease.number()));
        InSegment { number, len: self.len as u64 }.put(header, body);
    }

    /// Appends the bytes to a body, which then goes through a ring.
    pub(super) fn append_to(self, body: &mut Vec<u8>) {
        if let Some(lease) = &self.lease {
            lease.copy_to(self.len, body);
        }
    }

    /// Leaves the segment to the server, which was told of it.
    pub(super) fn leave(mut self) {
        if let Some(lease) = self.lease.take() {
            lease.leave();
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            forget(lease, &self.store);
        }
    }
}

/// Gives back a segment of which the server was not told, with its memory: the server would not
/// know that there is some.
pub(super) fn forget(lease: Lease, store: &Store) {
    drop(lease);
    // What was used since the last look is only marked by the first one.
    store.trim();
    store.trim();
}
