//! The segments of shared memory in which near clients send large values, and other memory that is
//! given back while it is not used. See [`client::segments`](super::super::client::GRANTED).
//!
//! ```text
//!  Segments ──► an arena for this client ── its descriptor ──► socket     (once for each client)
//!
//!  request: segment 3, 5,000,000 bytes ──► checked ──► copied to where the value is kept
//!                                                         └──► the segment is free again
//!  a value, as an object has it ──► copied to a segment ──► reply: segment 7, 3,000,000 bytes
//!                                   free again ◄── the client has copied it
//! ```
//!
//! The bytes are copied before anything looks at them. So a client that changes them at the same
//! time has sent arbitrary bytes, and no more. This process has sealed the length of the file, so
//! no access fails. The length of a value counts as part of its message, and is checked against the
//! limit of messages first. It is also checked against the memory that the file really uses, so
//! that a length alone costs nothing here.
//!
//! A client that gives back no segments gets its replies through the ring, when what it has not
//! given back is as long as the replies that may wait for it.

use std::{
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        client::{GRANTED, SEGMENT_FROM},
        link::LinkError,
        protocol::{InSegment, Reply, RequestBody},
    },
    core::ReplyBody,
    guest::Guest,
};
use crate::{
    os::{allocator, available_memory::has_memory_for, socket, spare},
    segment::{Lease, Results, Store},
};

/// How long memory is kept that is not used: spare buffers while there is nothing to do, and
/// segments up to twice as long in any case. With a higher value, one large request costs memory
/// for longer. With a lower value, large requests that are rare allocate.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(1);
/// A message of this length leaves memory behind that is worth giving back.
const LARGE_BYTES: usize = 64 << 10;

/// A request of this length or more is done only if the system has memory for it: see
/// `os/available_memory.rs`. With a lower value, the question costs as much as the request.
const ASKED_FROM: usize = 64 << 20;
/// A request of this length or more is done only if this process may allocate as much again.
const TRIED_FROM: usize = 1 << 20;

/// Whether there is memory to keep so many bytes. An allocation that fails would end the server,
/// and with it the objects of all.
pub(super) fn has_room_for(len: usize) -> bool {
    len < TRIED_FROM
        || Vec::<u8>::new().try_reserve_exact(len).is_ok()
            && (len < ASKED_FROM || has_memory_for(len as u64))
}

/// Why the bytes of a request were not copied from their segment.
#[derive(Debug)]
pub(super) enum NotCopied {
    /// Its client cannot have filled such a segment.
    Impossible,
    NoMemory,
}

impl Guest {
    /// Makes segments for a client, and sends it their descriptor. Returns whether that was
    /// possible.
    pub(super) fn grant_segments(&mut self) -> bool {
        let Some(socket) = self.socket.near().filter(|_| self.segments.is_none()) else {
            return false;
        };
        let made = Results::create_for("executor-values").and_then(|from_client| {
            let to_client = Store::beside(&from_client)?;
            kill_point!(ManagerSegmentsMade);
            socket::send_now(socket, &[GRANTED], &[from_client.descriptor().as_fd()])?;
            Ok(Segments { from_client, to_client, left: Vec::new(), confirmed: false })
        });
        match made {
            Ok(segments) => self.segments = Some(segments),
            Err(error) => tracing::debug!(%error, "no segments for a client of a manager"),
        }
        self.segments.is_some()
    }

    /// The client has opened its segments.
    pub(super) fn confirm_segments(&mut self) {
        if let Some(segments) = &mut self.segments {
            segments.confirmed = true;
        }
    }

    /// Copies the bytes of a request that are in a segment, and gives the segment back. Returns the
    /// fields in front of them, too.
    pub(super) fn copy_tail<'a>(
        &self,
        body: &'a [u8],
        message_bytes_max: u64,
    ) -> Result<(&'a [u8], Arc<[u8]>), NotCopied> {
        use NotCopied::{Impossible, NoMemory};
        let (fields, InSegment { number, len }) = InSegment::take(body).ok_or(Impossible)?;
        if len > message_bytes_max.saturating_sub(fields.len() as u64) {
            return Err(Impossible);
        }
        let segments = self.segments.as_ref().ok_or(Impossible)?;
        let received = segments.from_client.receive(number, len).ok_or(Impossible)?;
        if !has_room_for(received.len()) {
            return Err(NoMemory);
        }
        let tail = received.to_shared().map_err(|error| {
            tracing::error!(%error, "a manager cannot read a segment of a client");
            NoMemory
        })?;
        kill_point!(ManagerSegmentCopied);
        Ok((fields, tail))
    }

    /// Sends a reply. A large value at its end travels in a segment, if there is one.
    pub(super) fn send(
        &mut self,
        reply: Reply,
        body: ReplyBody<'_>,
        unread_bytes_max: u64,
        takes: bool,
    ) -> Result<(), LinkError> {
        let lease = body
            .tail
            .filter(|tail| tail.len() > SEGMENT_FROM)
            .and_then(|tail| self.segments.as_mut()?.fill(tail, unread_bytes_max));
        let Some((lease, there)) = lease else {
            let mut header = reply.to_bytes();
            if takes && self.is_far() {
                Reply::mark(&mut header);
            }
            return self.sender.send_with_tail(&header, body.front.into(), body.tail);
        };
        kill_point!(ManagerSegmentFilled);
        let mut front = body.front.to_vec();
        let mut header = Reply { len: (front.len() + InSegment::BYTES) as u64, ..reply }.to_bytes();
        there.put(&mut header, &mut front);
        self.sender.send(&header, front)?;
        lease.leave();
        Ok(())
    }
}

/// The segments of one client: an arena of which both sides take segments.
pub(super) struct Segments {
    from_client: Arc<Results>,
    to_client: Arc<Store>,
    /// The segments that were left to the client and how long they are. It gives them back when it
    /// has copied them.
    left: Vec<(u8, u64)>,
    /// Whether the client has said that it has them. It may have no room for a descriptor, and then
    /// could read nothing that is in a segment.
    confirmed: bool,
}

impl Segments {
    /// Puts a value into a segment, if there is one. Returns where it is.
    fn fill(&mut self, value: &[u8], unread_bytes_max: u64) -> Option<(Lease, InSegment)> {
        if !self.confirmed {
            return None;
        }
        // The client can write that it has given back what it has not. Then it reads what it gets
        // later, and there still are no more segments than one arena has.
        self.left.retain(|(number, _)| self.to_client.is_taken(*number));
        if self.left.iter().map(|(_, len)| len).sum::<u64>() > unread_bytes_max {
            return None;
        }
        let mut lease = self.to_client.take(value.len())?;
        lease.write(0, value);
        let (number, len) = (lease.number(), value.len() as u64);
        self.left.retain(|(other, _)| *other != number);
        self.left.push((number, len));
        Some((lease, InSegment { number: number.into(), len }))
    }
}

/// What the server keeps for the next large message, and when it looks at that.
pub(super) struct Kept {
    /// Whether there may be memory in segments.
    in_segments: bool,
    /// Whether something large has come or gone, so that the allocator may keep memory.
    in_allocator: bool,
    looked: Instant,
}

impl Kept {
    pub(super) fn new() -> Self {
        Kept { in_segments: false, in_allocator: false, looked: Instant::now() }
    }

    /// Notes a request.
    pub(super) fn note_request(&mut self, body: RequestBody<'_>) {
        self.in_segments |= body.tail.is_some();
        self.in_allocator |= body.len() >= LARGE_BYTES;
    }

    /// Notes that a reply is sent.
    pub(super) fn note_reply(&mut self, body: ReplyBody<'_>) {
        self.in_segments |= body.tail.is_some_and(|tail| tail.len() > SEGMENT_FROM);
        self.in_allocator |= body.len() >= LARGE_BYTES;
    }

    /// Notes that something large may have been forgotten.
    pub(super) fn note_large(&mut self) {
        self.in_allocator = true;
    }

    /// Whether there is something to give back later.
    pub(super) fn is_any(&self) -> bool {
        self.in_segments || self.in_allocator || spare::any()
    }

    /// Gives back the memory of segments that were not used for a while, if it is time for that.
    pub(super) fn look<'a>(&mut self, guests: impl Iterator<Item = &'a Guest>) {
        if self.in_segments && self.looked.elapsed() >= KEPT_FOR {
            self.in_segments = trim(guests);
            self.looked = Instant::now();
        }
    }

    /// Gives back what can be given back. The server has had nothing to do for [`KEPT_FOR`].
    pub(super) fn give_back<'a>(&mut self, guests: impl Iterator<Item = &'a Guest>) {
        spare::clear();
        if self.in_segments {
            self.in_segments = trim(guests);
            self.looked = Instant::now();
        }
        if std::mem::take(&mut self.in_allocator) {
            allocator::trim();
        }
    }
}

/// Returns whether memory is left in any segment.
fn trim<'a>(guests: impl Iterator<Item = &'a Guest>) -> bool {
    guests
        .filter_map(|guest| guest.segments.as_ref())
        .fold(false, |left, segments| segments.from_client.trim() | left)
}
