//! How the messages of a manager move between a client and the server, and how the two come to know
//! each other when they have only an address in common.
//!
//! ```text
//!  near   the door, or a Unix socket that hands out the door ──► a lane: two rings in shared memory
//!
//!  far    client                              server (its gate: no object, nothing is decoded)
//!         TCP ──────────────────────────────►
//!         TLS 1.3 ◄─────────────────────────► identity: a certificate, or a pinned fingerprint
//!         challenge, bound to the session ◄─► both know the key; else cut off
//!         knock ────────────────────────────► 24 bytes: protocol and version, zeros
//!                                             from here on the server's loop
//!               ◄──────────────────────────── welcome: id of the server, maximum of a message
//!         requests ─────────────────────────►
//!               ◄──────────────────────────── replies      │ header, 24 bytes │ body │
//! ```
//!
//! [`LinkSender`] and [`LinkReceiver`] are the two ends that a side has, whatever lies in between.
//! They have the rules of a lane: nobody ever blocks in them, what finds no room waits in the
//! sender's outbox, and memory grows only with what has arrived.
//!
//! What differs is how a side sleeps. Over a lane it announces that, and the other side sends a
//! byte. Over TCP the socket itself is what both poll: for something to read, and for room while
//! something is unsent ([`LinkSender::wants_write`]).

pub(crate) mod challenge;
#[cfg(feature = "tls")]
pub(crate) mod far;
pub(crate) mod local;
#[cfg(any(feature = "tls", test, fuzzing))]
pub(crate) mod stream;
#[cfg(all(test, feature = "tls", not(any(executor_loom, executor_shuttle))))]
mod tests;
#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::{
    borrow::Cow,
    fmt, io,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[cfg(feature = "tls")]
use crate::os::fork::NotInherited;
use crate::{
    ipc::AuthError,
    transport::ring::lane::{LANE_HEADER_BYTES, LaneError, LaneReceiver, LaneSender},
};

crate::debug::debug_is_display!(LinkError, MeetError);

/// How long a thread waits in a TCP socket itself before it polls. Meanwhile it does not notice
/// that there is room for what another thread has left unsent. With a lower value, more replies
/// take one more system call. With a higher value, the rest of a long message may be sent later, if
/// the other side was slow to take its beginning.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_millis(10);

/// Why a link cannot go on.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "some are of TCP"))]
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error("the other side has closed the connection, or its process has ended")]
    Closed,
    #[error("the connection was lost: {0}")]
    Lost(io::ErrorKind),
    #[error("what came over the connection is not what the other side encrypted: {0}")]
    Forged(String),
}

impl LinkError {
    #[cfg(feature = "tls")]
    fn io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
            kind => LinkError::Lost(kind),
        }
    }
}

/// Why two sides that had an address in common do not talk to each other.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "some are of TCP"))]
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MeetError {
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The identity of the server is not the one that this side trusts.
    #[error("{0}")]
    Untrusted(String),
    #[error("the TLS of the two sides does not fit together: {0}")]
    Tls(String),
    #[error("the other side has closed the connection before both knew each other")]
    Closed,
    #[error("the two sides did not come to know each other in time")]
    TimedOut,
    #[error("the other side speaks another protocol")]
    Protocol,
    #[error("the peer is a process of user {0}, which may not connect")]
    User(u32),
    #[error("the connection failed: {0}")]
    Io(Refusal),
}

/// What the system has said: the kind of its error, and its number if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(io::ErrorKind, Option<i32>);

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Self {
        Refusal(error.kind(), error.raw_os_error())
    }
}

impl From<Refusal> for io::Error {
    fn from(Refusal(kind, number): Refusal) -> Self {
        number.map_or_else(|| kind.into(), io::Error::from_raw_os_error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl MeetError {
    fn io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => MeetError::Closed,
            _ => MeetError::Io(error.into()),
        }
    }
}

/// What a meeting waits for. Poll its socket for that, then let it go on.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "a local one only reads"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    ToRead,
    ToWrite,
}

/// How far a meeting of two sides has come.
#[derive(Debug)]
pub(crate) enum Progress<T> {
    Waits(Waits),
    /// Both sides know each other.
    Met(T),
}

/// Waits until a socket is ready. Returns `false` at the deadline.
pub(super) fn wait_for(
    socket: BorrowedFd<'_>,
    flags: PollFlags,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        // A timeout that is too long for the system is waited for again.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) | Ok(0) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(true),
        }
    }
}

/// The end through which one side sends.
pub(crate) enum LinkSender {
    Near(LaneSender),
    #[cfg(feature = "tls")]
    Far(far::FarSender),
}

impl LinkSender {
    /// Sends a message, or as much of it as finds room. The rest waits in the outbox.
    ///
    /// A far sender may keep it until [`must_wake`](Self::must_wake), so that several messages take
    /// one system call.
    ///
    /// A long body that is owned is sent without being copied before.
    pub(crate) fn send<'a>(
        &mut self,
        header: &[u8; LANE_HEADER_BYTES],
        body: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), LinkError> {
        self.send_with_tail(header, body.into(), None)
    }

    /// Sends a message as [`send`](Self::send) does. The last bytes of its body are shared, and
    /// over a lane they are not copied.
    pub(crate) fn send_with_tail(
        &mut self,
        header: &[u8; LANE_HEADER_BYTES],
        body: Cow<'_, [u8]>,
        tail: Option<&Arc<[u8]>>,
    ) -> Result<(), LinkError> {
        match self {
            LinkSender::Near(lane) => Ok(lane.send_with_tail(header, body, tail)?),
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => match tail {
                None => far.send(header, body),
                Some(tail) => far.send(header, [&body, &tail[..]].concat().into()),
            },
        }
    }

    /// Sends what finds room now. Returns whether everything is sent.
    pub(crate) fn flush(&mut self) -> Result<bool, LinkError> {
        match self {
            LinkSender::Near(lane) => Ok(lane.flush()?),
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => far.flush(),
        }
    }

    /// Whether everything was sent.
    pub(crate) fn is_flushed(&self) -> bool {
        match self {
            LinkSender::Near(lane) => lane.is_flushed(),
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => far.is_flushed(),
        }
    }

    /// Returns how many bytes wait to be sent.
    pub(crate) fn waiting_bytes(&self) -> usize {
        match self {
            LinkSender::Near(lane) => lane.waiting_bytes(),
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => far.waiting_bytes(),
        }
    }

    /// Returns where the last message ends. The other side has taken it when
    /// [`taken`](Self::taken) is not less. Over TCP there is no such position.
    pub(crate) fn end(&self) -> u64 {
        match self {
            LinkSender::Near(lane) => lane.end(),
            #[cfg(feature = "tls")]
            LinkSender::Far(_) => 0,
        }
    }

    /// Returns how far the other side has come. `None` if it has written a position that cannot
    /// be.
    pub(crate) fn taken(&self) -> Option<u64> {
        match self {
            LinkSender::Near(lane) => lane.taken(),
            #[cfg(feature = "tls")]
            LinkSender::Far(_) => Some(0),
        }
    }

    /// Asks the other side to use nothing that it takes from now on.
    pub(crate) fn revoke(&self) {
        match self {
            LinkSender::Near(lane) => lane.revoke(),
            #[cfg(feature = "tls")]
            LinkSender::Far(_) => {}
        }
    }

    /// Asks the other side to send a byte when it has taken what it was sent.
    pub(crate) fn ask_for_news(&self) {
        match self {
            LinkSender::Near(lane) => lane.ask_for_news(),
            #[cfg(feature = "tls")]
            LinkSender::Far(_) => {}
        }
    }

    /// Has to be called behind the last of several messages. Returns whether the other side sleeps,
    /// so that it has to be woken by a byte over the socket. A far sender writes here what it has
    /// kept: its messages themselves wake the other side.
    #[must_use]
    pub(crate) fn must_wake(&mut self) -> bool {
        match self {
            LinkSender::Near(lane) => lane.must_wake(),
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => {
                far.write_now();
                false
            }
        }
    }

    /// Whether the socket is to be polled for room, since something is unsent. Never for a lane,
    /// whose other side says when there is room.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "it is asked for TCP sockets"))]
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            LinkSender::Near(_) => false,
            #[cfg(feature = "tls")]
            LinkSender::Far(far) => !far.is_flushed(),
        }
    }
}

/// The end through which one side receives.
pub(crate) enum LinkReceiver {
    Near(LaneReceiver),
    #[cfg(feature = "tls")]
    Far(far::FarReceiver),
}

impl LinkReceiver {
    /// Puts the next whole message into `message`: its header, and behind it its body. Returns
    /// `false` if there is none yet.
    pub(crate) fn receive(&mut self, message: &mut Vec<u8>) -> Result<bool, LinkError> {
        match self {
            LinkReceiver::Near(lane) => Ok(lane.receive(message)?),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.receive(message),
        }
    }

    /// Waits for what the server says first, at most until the deadline.
    #[cfg(feature = "tls")]
    pub(crate) fn wait_for_welcome(
        &mut self,
        socket: &NotInherited,
        deadline: Option<Instant>,
    ) -> Result<stream::Welcome, MeetError> {
        let mut message = Vec::new();
        loop {
            self.awake();
            match self.receive(&mut message) {
                Ok(true) => return stream::read_welcome(&message).ok_or(MeetError::Protocol),
                Ok(false) => {}
                Err(LinkError::Closed) => return Err(MeetError::Closed),
                Err(LinkError::Lost(kind)) => return Err(MeetError::Io(Refusal(kind, None))),
                Err(LinkError::Lane(_) | LinkError::Forged(_)) => return Err(MeetError::Protocol),
            }
            let socket = socket.get().ok_or(MeetError::Closed)?;
            let came = wait_for(socket, PollFlags::IN, deadline);
            if !came.map_err(|error| MeetError::io(&error))? {
                return Err(MeetError::TimedOut);
            }
        }
    }

    /// Whether the other side has revoked the message that was just received.
    pub(crate) fn is_revoked(&self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.is_revoked(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(_) => false,
        }
    }

    /// Whether there is nothing to receive at this moment. What still is in a TCP socket does not
    /// count: the poll reports it.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.is_empty(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.is_empty(),
        }
    }

    /// Looks whether there is something to receive. For a thread that looks again and again for a
    /// moment, before it sleeps. Over TCP, each look is a system call.
    pub(crate) fn look(&mut self) -> bool {
        match self {
            LinkReceiver::Near(lane) => !lane.is_empty(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.look(),
        }
    }

    /// Lets [`wait`](Self::wait) wait. For the side that has a thread for this link.
    pub(crate) fn prepare_to_wait(&self) -> io::Result<()> {
        match self {
            LinkReceiver::Near(_) => Ok(()),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.prepare_to_wait(),
        }
    }

    /// Waits for a moment in a TCP socket. Returns whether something came. Otherwise the socket has
    /// to be polled.
    pub(crate) fn wait(&mut self) -> bool {
        match self {
            LinkReceiver::Near(_) => false,
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.wait(),
        }
    }

    /// Whether a part of a message has arrived over a lane, and the rest has not.
    pub(crate) fn is_in_message(&self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.is_in_message(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(_) => false,
        }
    }

    /// Whether the other side of a lane has made room since this side's [`LinkSender`] last asked
    /// for it.
    pub(crate) fn room_was_made(&self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.room_was_made(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(_) => false,
        }
    }

    /// Whether messages come over TCP.
    pub(crate) fn is_far(&self) -> bool {
        !matches!(self, LinkReceiver::Near(_))
    }

    /// Returns the processor on which the other side last sent, if it is one of this machine.
    pub(crate) fn sender_cpu(&self) -> u32 {
        match self {
            LinkReceiver::Near(lane) => lane.sender_cpu(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(_) => u32::MAX,
        }
    }

    /// Returns whether the sender waits for room and has to be woken, since there is room now. Call
    /// it after receiving.
    #[must_use]
    pub(crate) fn must_wake(&mut self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.must_wake(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(_) => false,
        }
    }

    /// Announces that this side is about to sleep. Returns whether it may: there is nothing to
    /// receive. Afterwards [`awake`](Self::awake) must be called.
    pub(crate) fn announce_sleep(&mut self) -> bool {
        match self {
            LinkReceiver::Near(lane) => lane.announce_sleep(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.announce_sleep(),
        }
    }

    /// Ends a sleep that was announced: the poll has reported the socket.
    pub(crate) fn awake(&mut self) {
        match self {
            LinkReceiver::Near(lane) => lane.awake(),
            #[cfg(feature = "tls")]
            LinkReceiver::Far(far) => far.awake(),
        }
    }
}
