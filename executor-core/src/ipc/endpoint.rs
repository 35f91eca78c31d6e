//! One end of a connection, untyped: messages in, messages out.
//!
//! Locks are held during one attempt to send or receive, never while waiting, and no user code runs
//! while a lock is held. A wait may end at any moment, by a time limit or because a future is
//! dropped. So the received part of a long message, and the part still to be sent, are kept in the
//! endpoint and not on a stack, and the next attempt continues there. Threads that share an end see
//! whole messages.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use rustix::{
    event::PollFlags,
    net::{AddressFamily, SocketType, sockopt},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;

use super::{
    error::{RecvError, SendError},
    message::{Arrival, Assembler, Disorder, HEAD_BYTES, Head, Kind, Message, PART_BYTES},
    readiness::{Attempt, Deadline, Readiness, has_passed, wait_for},
};
use crate::{
    os::{
        asked::Asked,
        fork::PerProcess,
        local,
        socket::{self, recv_short_now, send_parts_now},
        spin::Spin,
        std_or_model::lock,
    },
    wire::{
        attachment::{self, Attachment},
        buffer::Buffer,
        codec::{Format, Postcard},
    },
};

/// Maximum number of system calls in one attempt, for either direction. That is some megabytes,
/// more than the kernel buffers for one end.
///
/// A lower value means more locking for long messages. A higher value means that a peer that sends
/// endlessly holds the lock, a runtime's thread, and a caller past its time limit for that long.
const CALLS_MAX: usize = 128;

/// A vector with a larger capacity is freed instead of being kept for the next value.
const KEPT_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// Buffer for one packet. It belongs to the thread and not to the end, since a process may have
    /// thousands of ends.
    static PACKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Buffer to encode values into.
    static VALUE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The thread's packet buffer, for as long as this lives.
struct Packet(Vec<u8>);

impl Packet {
    fn take() -> Self {
        let mut room = local::take(&PACKET);
        room.resize(HEAD_BYTES + PART_BYTES, 0);
        Packet(room)
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        local::put(&PACKET, std::mem::take(&mut self.0));
    }
}

/// A received message.
pub(super) struct Received {
    packet: Packet,
    body: Body,
    pub(super) kind: Kind,
    descriptors: Vec<OwnedFd>,
}

/// Where the bytes of a message are.
enum Body {
    InPacket(Range<usize>),
    Owned(Vec<u8>),
}

/// Like [`Received`], without the packet buffer.
struct Arrived {
    body: Body,
    kind: Kind,
    descriptors: Vec<OwnedFd>,
}

impl Arrived {
    fn received(self, packet: Packet) -> Received {
        let Arrived { body, kind, descriptors } = self;
        Received { packet, body, kind, descriptors }
    }
}

impl Received {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::InPacket(range) => &self.packet.0[range.clone()],
            Body::Owned(bytes) => bytes,
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        match self.body {
            Body::InPacket(range) => self.packet.0[range].to_vec(),
            Body::Owned(bytes) => bytes,
        }
    }

    /// Returns the bytes of a message that was sent as bytes.
    pub(super) fn into_user_bytes(self) -> Result<Vec<u8>, RecvError> {
        match self.kind {
            Kind::Bytes => Ok(self.into_bytes()),
            Kind::Value => {
                Err(RecvError::Decode("a value was sent, and bytes were asked for".to_owned()))
            }
            other => Err(unexpected(other)),
        }
    }

    /// Decodes a message that was sent as a value.
    pub(super) fn into_value<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        match self.kind {
            Kind::Value => {}
            Kind::Bytes => {
                return Err(RecvError::Decode(
                    "bytes were sent, and a value was asked for".to_owned(),
                ));
            }
            other => return Err(unexpected(other)),
        }
        let mut received = self;
        let descriptors: Vec<Attachment> = received.descriptors.drain(..).map(Arc::new).collect();
        attachment::offer(&descriptors, || Postcard::decode(received.bytes()))
            .map_err(|error| RecvError::Decode(error.message))
    }
}

/// The error for a message of the handshake where there should be none.
fn unexpected(kind: Kind) -> RecvError {
    RecvError::Invalid(
        match kind {
            Kind::Challenge => "the listener asks for a key, and the client was given none",
            Kind::Hello => "the client has a key, and the listener was given none",
            _ => "a message of a handshake came after it",
        }
        .to_owned(),
    )
}

/// One end of a connection. See the module's documentation.
#[derive(Debug)]
pub(super) struct Endpoint {
    socket: Arc<OwnedFd>,
    /// Whether the socket preserves packets and can transfer descriptors. Otherwise it is TCP.
    packets: bool,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    readiness: Readiness,
}

/// The receiving half.
#[derive(Debug, Default)]
struct Incoming {
    assembler: Assembler,
    end: Option<End>,
    spin: Spin,
}

/// Why nothing more can be received.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    Truncated,
    Disorder(Disorder),
}

impl From<End> for RecvError {
    fn from(end: End) -> Self {
        match end {
            End::Closed => RecvError::Closed,
            End::Truncated => RecvError::Truncated,
            End::Disorder(disorder) => disorder.into(),
        }
    }
}

/// The sending half.
#[derive(Debug, Default)]
struct Outgoing {
    /// Number of messages whose sending has begun.
    begun: u64,
    /// The rest of the last of these messages, if it was not sent completely.
    rest: Option<Rest>,
    /// The number of the last message that was begun and then given up because the system refused a
    /// part of it.
    given_up: u64,
    closed: bool,
}

/// A message that was sent in part.
#[derive(Debug)]
struct Rest {
    progress: Progress,
    /// The bytes of the message from offset `from` on.
    bytes: Vec<u8>,
    from: usize,
}

/// How much of a message was sent.
#[derive(Clone, Copy, Debug)]
struct Progress {
    head: Head,
    /// Number of bytes sent. On a stream, the bytes of the head count too.
    at: usize,
    /// Whether anything was sent. An empty message is sent too, so `at` cannot tell.
    begun: bool,
}

/// How far an attempt to push bytes has come.
enum Pushed {
    All,
    /// The socket's buffer is full.
    Full,
    /// There is space, but this attempt has made enough system calls.
    Enough,
}

/// How far the sending of a new message has come.
enum Sent {
    All,
    /// A part was sent. The rest is sent before any other message: at once, or when there is space
    /// if the buffer is `full`.
    Part {
        number: u64,
        full: bool,
    },
    /// Nothing was sent.
    Nothing,
}

/// The bytes to send. Owned ones can be kept without a copy if only a part is sent.
pub(super) enum Outgoings<'a> {
    Borrowed(&'a [u8]),
    Owned(&'a mut Vec<u8>),
}

impl Outgoings<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Outgoings::Borrowed(bytes) => bytes,
            Outgoings::Owned(bytes) => bytes,
        }
    }
}

/// An encoded value with its attachments.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) attachments: Vec<Attachment>,
}

impl Encoded {
    pub(super) fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, String> {
        let mut buffer = Buffer::new().using(local::take(&VALUE));
        let (encoded, attachments) = attachment::collect(|| Postcard::encode(value, &mut buffer));
        let bytes = buffer.into_vec();
        let this = Encoded { bytes, attachments };
        // Even if encoding failed, dropping `this` returns the buffer to be used again.
        encoded.map_err(|error| error.message)?;
        Ok(this)
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        if self.bytes.capacity() <= KEPT_BYTES_MAX {
            local::put(&VALUE, std::mem::take(&mut self.bytes));
        }
    }
}

impl Endpoint {
    /// Wraps a connected socket.
    ///
    /// # Errors
    /// If it is not a socket of a kind that connections use.
    pub(super) fn new(socket: Arc<OwnedFd>) -> io::Result<Self> {
        let packets = socket::is_one(socket.as_fd());
        let stream = || {
            let domain = sockopt::socket_domain(&socket);
            sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
                && matches!(domain, Ok(AddressFamily::INET | AddressFamily::INET6))
        };
        if !packets && !stream() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a connection is a SOCK_SEQPACKET Unix socket or a TCP socket, and this is neither",
            ));
        }
        let (incoming, outgoing) = Default::default();
        Ok(Endpoint { socket, packets, incoming, outgoing, readiness: Readiness::default() })
    }

    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socket::pair().asked("a pair of sockets (socketpair)")?;
        Ok((Self::new(Arc::new(one))?, Self::new(Arc::new(other))?))
    }

    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Whether no message is partly sent or partly received. The socket is then the whole state of
    /// the endpoint.
    pub(super) fn is_at_rest(&self) -> bool {
        !lock(&self.incoming).assembler.has_begun() && lock(&self.outgoing).rest.is_none()
    }

    pub(super) fn crosses_network(&self) -> bool {
        !self.packets
    }

    // Receiving.

    /// Receives one message of at most `max` bytes. Waits until the deadline if `wait` is set.
    /// Returns [`RecvError::Empty`] if no message came.
    pub(super) fn receive(
        &self,
        max: u64,
        deadline: Deadline,
        wait: bool,
    ) -> Result<Received, RecvError> {
        let mut packet = Packet::take();
        let mut spun = false;
        loop {
            let more = match self.receive_now(&mut packet, max)? {
                Attempt::Done(arrived) => return Ok(arrived.received(packet)),
                Attempt::NotYet => false,
                Attempt::Again => true,
            };
            // Check the deadline here as well: while a peer keeps sending, the wait below always
            // finds input and never times out.
            if !wait || has_passed(deadline) {
                return Err(RecvError::Empty);
            }
            if more {
                continue;
            }
            // Spin once before the first sleep, since an answer often comes within microseconds.
            if !spun {
                spun = true;
                if self.spin() {
                    continue;
                }
            }
            if !wait_for(self.socket.as_fd(), PollFlags::IN, deadline)? {
                return Err(RecvError::Empty);
            }
        }
    }

    /// Looks for input for a moment before sleeping, if that has paid off so far.
    fn spin(&self) -> bool {
        let look = || {
            matches!(
                wait_for(self.socket.as_fd(), PollFlags::IN, Some(std::time::Instant::now())),
                Ok(true)
            )
        };
        match self.incoming.try_lock() {
            Ok(mut incoming) => incoming.spin.wait(u32::MAX, look),
            Err(_) => false,
        }
    }

    /// Async version of [`receive`](Self::receive). A dropped future has taken no message.
    pub(super) async fn receive_async(&self, max: u64) -> Result<Received, RecvError> {
        let step = || {
            let mut packet = Packet::take();
            Ok(match self.receive_now(&mut packet, max)? {
                Attempt::Done(arrived) => Attempt::Done(arrived.received(packet)),
                Attempt::NotYet => Attempt::NotYet,
                Attempt::Again => Attempt::Again,
            })
        };
        self.readiness.until(&self.socket, Interest::READABLE, step).await
    }

    /// Receives a message if its last byte is here.
    fn receive_now(&self, packet: &mut Packet, max: u64) -> Result<Attempt<Arrived>, RecvError> {
        let mut incoming = lock(&self.incoming);
        let Incoming { assembler, end, .. } = &mut *incoming;
        if let Some(end) = *end {
            return Err(end.into());
        }
        for _ in 0..CALLS_MAX {
            // A message that is too long stays where it is, for a caller with a higher limit.
            if let Some(len) = assembler.announced()
                && len > max
            {
                return Err(RecvError::TooLong { len, max });
            }
            // A message that was too long for an earlier call may be complete already.
            let mut arrival = assembler.complete();
            let mut received = 0;
            if matches!(arrival, Arrival::More) {
                // Packets are read whole. On a stream, do not read into the next message.
                let room = match self.packets {
                    true => packet.0.len(),
                    false => packet
                        .0
                        .len()
                        .min(usize::try_from(assembler.wanted()).unwrap_or(usize::MAX)),
                };
                let (len, descriptors) = match recv_short_now(&self.socket, &mut packet.0[..room]) {
                    Ok(came) => came,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Attempt::NotYet);
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
                    Err(error) => return Err(error.into()),
                };
                if len == 0 {
                    let now = if assembler.has_begun() { End::Truncated } else { End::Closed };
                    *end = Some(now);
                    return Err(now.into());
                }
                received = len;
                let taken = match self.packets {
                    true => assembler.packet(&packet.0[..len], descriptors, max),
                    false => assembler.bytes(&packet.0[..len], max),
                };
                arrival = match taken {
                    Ok(arrival) => arrival,
                    Err(disorder) => {
                        // A stream cannot be resynchronized. With packets, the next one may start a
                        // new message.
                        if !self.packets {
                            *end = Some(End::Disorder(disorder));
                        }
                        // Lost descriptors spoil only this message, so the error is one after which
                        // receiving can go on.
                        return Err(match disorder {
                            Disorder::Descriptors => RecvError::Decode(disorder.to_string()),
                            other => other.into(),
                        });
                    }
                };
            }
            match arrival {
                Arrival::Complete(Message { kind, bytes, descriptors }) => {
                    let body = match bytes {
                        Some(bytes) => Body::Owned(bytes),
                        None => Body::InPacket(HEAD_BYTES..received),
                    };
                    return Ok(Attempt::Done(Arrived { body, kind, descriptors }));
                }
                Arrival::TooLong(len) => return Err(RecvError::TooLong { len, max }),
                Arrival::More => {}
            }
        }
        Ok(Attempt::Again)
    }

    // Sending.

    /// Sends one message. Waits until there was space for all of it.
    pub(super) fn send(
        &self,
        kind: Kind,
        mut what: Outgoings<'_>,
        attachments: &[Attachment],
        deadline: Deadline,
    ) -> Result<(), SendError> {
        let mut ticket = None;
        loop {
            let more = match self.send_some(kind, &mut what, attachments, &mut ticket)? {
                Attempt::Done(()) => return Ok(()),
                Attempt::NotYet => false,
                Attempt::Again => true,
            };
            if has_passed(deadline)
                || !more && !wait_for(self.socket.as_fd(), PollFlags::OUT, deadline)?
            {
                return Err(SendError::Io(io::ErrorKind::TimedOut.into()));
            }
        }
    }

    /// Async version of [`send`](Self::send). A dropped future has sent nothing, or has begun to
    /// send. In the second case the next sender sends the rest first.
    pub(super) async fn send_async(
        &self,
        kind: Kind,
        mut what: Outgoings<'_>,
        attachments: &[Attachment],
    ) -> Result<(), SendError> {
        let mut ticket = None;
        let step = || self.send_some(kind, &mut what, attachments, &mut ticket);
        self.readiness.until(&self.socket, Interest::WRITABLE, step).await
    }

    /// Makes one attempt to send. Done when the whole message is sent.
    ///
    /// `ticket` is kept between attempts on the same message. Once a part of it was sent, `ticket`
    /// is the message's number.
    fn send_some(
        &self,
        kind: Kind,
        what: &mut Outgoings<'_>,
        attachments: &[Attachment],
        ticket: &mut Option<u64>,
    ) -> Result<Attempt<()>, SendError> {
        let mut outgoing = lock(&self.outgoing);
        let outgoing = &mut *outgoing;
        // The rest of an earlier message goes first. It may be the rest of this one.
        let not_all = match self.send_rest(outgoing)? {
            Pushed::Enough => Attempt::Again,
            _ => Attempt::NotYet,
        };
        // This message was begun by an earlier attempt, and another sender may have sent its rest.
        if let Some(ticket) = *ticket {
            if outgoing.given_up == ticket {
                return Err(SendError::Io(io::Error::other(
                    "the system refused a part of the message",
                )));
            }
            let sent = outgoing.rest.is_none() || outgoing.begun != ticket;
            return Ok(if sent { Attempt::Done(()) } else { not_all });
        }
        if outgoing.rest.is_some() {
            return Ok(not_all);
        }
        Ok(match self.begin(outgoing, kind, what, attachments)? {
            Sent::All => Attempt::Done(()),
            Sent::Nothing => Attempt::NotYet,
            Sent::Part { number, full } => {
                *ticket = Some(number);
                if full { Attempt::NotYet } else { Attempt::Again }
            }
        })
    }

    /// Begins to send a new message. If only a part could be sent, keeps the rest.
    fn begin(
        &self,
        outgoing: &mut Outgoing,
        kind: Kind,
        what: &mut Outgoings<'_>,
        attachments: &[Attachment],
    ) -> Result<Sent, SendError> {
        if outgoing.closed {
            return Err(SendError::Closed);
        }
        let len = what.bytes().len() as u64;
        let descriptors = u8::try_from(attachments.len())
            .map_err(|error| SendError::Encode(error.to_string()))?;
        let head = Head { kind, descriptors, number: part_number(outgoing.begun), len };
        let mut progress = Progress { head, at: 0, begun: false };
        let pushed = self.push(&mut progress, what.bytes(), 0, attachments);
        if progress.begun {
            outgoing.begun += 1;
        }
        match pushed {
            Ok(Pushed::All) => Ok(Sent::All),
            Ok(_) if !progress.begun => Ok(Sent::Nothing),
            // The caller may drop its bytes now, so the rest is moved or copied.
            Ok(pushed) => {
                let (bytes, from) = match what {
                    Outgoings::Owned(bytes) => (std::mem::take(*bytes), 0),
                    Outgoings::Borrowed(bytes) => {
                        let from = match self.packets {
                            true => progress.at,
                            false => progress.at.saturating_sub(HEAD_BYTES),
                        };
                        (bytes[from..].to_vec(), from)
                    }
                };
                outgoing.rest = Some(Rest { progress, bytes, from });
                Ok(Sent::Part { number: outgoing.begun, full: matches!(pushed, Pushed::Full) })
            }
            Err(error) => Err(self.refused(outgoing, progress.begun, error)),
        }
    }

    /// Sends the rest of the previous message, if there is one.
    fn send_rest(&self, outgoing: &mut Outgoing) -> Result<Pushed, SendError> {
        let Some(mut rest) = outgoing.rest.take() else { return Ok(Pushed::All) };
        match self.push(&mut rest.progress, &rest.bytes, rest.from, &[]) {
            Ok(Pushed::All) => Ok(Pushed::All),
            Ok(pushed) => {
                outgoing.rest = Some(rest);
                Ok(pushed)
            }
            Err(error) => Err(self.refused(outgoing, true, error)),
        }
    }

    /// Updates the state after the system refused, and returns the error.
    fn refused(&self, outgoing: &mut Outgoing, begun: bool, error: io::Error) -> SendError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        if matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected) {
            outgoing.closed = true;
            return SendError::Closed;
        }
        if begun {
            outgoing.given_up = outgoing.begun;
            // On a stream, the peer could not tell where the next message begins, so the end is
            // closed.
            outgoing.closed = !self.packets;
        }
        SendError::Io(error)
    }

    /// Sends as much as there is space for, within one attempt. `bytes` begins at offset `from` of
    /// the message.
    fn push(
        &self,
        progress: &mut Progress,
        bytes: &[u8],
        from: usize,
        attachments: &[Attachment],
    ) -> io::Result<Pushed> {
        let whole = from + bytes.len() + if self.packets { 0 } else { HEAD_BYTES };
        let descriptors: Vec<BorrowedFd<'_>> = attachments.iter().map(|one| one.as_fd()).collect();
        for _ in 0..CALLS_MAX {
            if progress.begun && progress.at >= whole {
                return Ok(Pushed::All);
            }
            // On packets, each part after the first has a head of its own, with its offset.
            let head = match (self.packets, progress.begun) {
                (true, true) => Head {
                    kind: Kind::More,
                    descriptors: 0,
                    len: progress.at as u64,
                    ..progress.head
                },
                _ => progress.head,
            };
            let head = head.to_bytes();
            let sent = if self.packets {
                let left = &bytes[progress.at - from..];
                // The descriptors are sent with the first packet only.
                let part = &left[..left.len().min(PART_BYTES)];
                let descriptors = if progress.begun { &[][..] } else { &descriptors };
                send_parts_now(
                    &self.socket,
                    &[IoSlice::new(&head), IoSlice::new(part)],
                    descriptors,
                )
                .map(|_| part.len())
            // On a stream, the head comes first and may itself be sent in pieces.
            } else {
                let body = progress.at.saturating_sub(HEAD_BYTES).saturating_sub(from);
                let parts = [
                    IoSlice::new(&head[progress.at.min(HEAD_BYTES)..]),
                    IoSlice::new(&bytes[body..]),
                ];
                send_parts_now(&self.socket, &parts, &[])
            };
            match sent {
                Ok(len) => {
                    progress.begun = true;
                    progress.at += len;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pushed::Full),
                Err(error) => return Err(socket::explained(error)),
            }
        }
        Ok(if progress.at >= whole { Pushed::All } else { Pushed::Enough })
    }

    // Values.

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Encoded, SendError> {
        let encoded = Encoded::of(value).map_err(SendError::Encode)?;
        if self.crosses_network() && !encoded.attachments.is_empty() {
            return Err(SendError::Encode(
                "it contains handles of shared objects or descriptors, and those do not cross a network"
                    .to_owned(),
            ));
        }
        Ok(encoded)
    }

    pub(super) fn send_value<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        let mut encoded = self.encode(value)?;
        let attachments = std::mem::take(&mut encoded.attachments);
        self.send(Kind::Value, Outgoings::Owned(&mut encoded.bytes), &attachments, None)
    }

    /// Encodes the value at once, so that the future does not borrow it.
    pub(super) fn send_value_async<'a, T: Serialize + ?Sized>(
        &'a self,
        value: &T,
    ) -> impl Future<Output = Result<(), SendError>> + Send + use<'a, T> {
        let encoded = self.encode(value);
        async move {
            let mut encoded = encoded?;
            let attachments = std::mem::take(&mut encoded.attachments);
            self.send_async(Kind::Value, Outgoings::Owned(&mut encoded.bytes), &attachments).await
        }
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send(Kind::Bytes, Outgoings::Borrowed(bytes), &[], None)
    }

    /// Waits until there is something to receive, or the end of the connection. Returns whether
    /// there is.
    pub(super) fn poll(&self, deadline: Deadline) -> io::Result<bool> {
        {
            let incoming = lock(&self.incoming);
            if incoming.end.is_some() || incoming.assembler.is_complete() {
                return Ok(true);
            }
        }
        wait_for(self.socket.as_fd(), PollFlags::IN, deadline)
    }
}

/// Returns the number that identifies the parts of a message. A random number distinguishes the
/// parts of two processes that share an end, and the count those of two messages of one process.
fn part_number(begun: u64) -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // A forked child continues the count of its parent, so it must not have the same random number.
    static PROCESS: PerProcess<u32> =
        PerProcess::new(|| RandomState::new().hash_one(std::process::id()) as u32);
    PROCESS.get().wrapping_add((begun as u32).wrapping_mul(0x9e37_79b9))
}
