//! Sending: from values and bytes to packets or the bytes of a stream.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::event::PollFlags;
use serde::Serialize;
use tokio::io::Interest;

use super::{
    super::{
        error::SendError,
        message::{HEADER_BYTES, MessageHeader, MessageKind, PART_BYTES},
        readiness::{Attempt, Deadline, has_passed, wait_for},
    },
    CALLS_MAX, Endpoint,
};
use crate::{
    os::{
        fork::PerProcess,
        local,
        socket::{self, send_parts_now},
        std_or_model::lock,
    },
    wire::{
        attachment::{self, Attachment, is_secret},
        buffer::Buffer,
        codec::{Format, Postcard},
    },
};

/// A vector with a larger capacity is freed instead of being kept for the next value.
const KEPT_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// Buffer to encode values into.
    static VALUE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The state of the sending half.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Number of messages whose sending has begun.
    begun: u64,
    /// The rest of the last of these messages, if it was not sent completely.
    pub(super) rest: Option<Rest>,
    /// The number of the last message that was begun and then given up because the system refused a
    /// part of it.
    given_up: u64,
    closed: bool,
}

/// A message that was sent in part.
#[derive(Debug)]
pub(super) struct Rest {
    progress: Progress,
    /// The bytes of the message from offset `from` on.
    bytes: Vec<u8>,
    from: usize,
}

/// How much of a message was sent.
#[derive(Clone, Copy, Debug)]
struct Progress {
    header: MessageHeader,
    /// Number of bytes sent. On a stream, the bytes of the header count too.
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
pub(in crate::ipc) enum Outgoings<'a> {
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
pub(in crate::ipc) struct Encoded {
    pub(in crate::ipc) bytes: Vec<u8>,
    pub(in crate::ipc) attachments: Vec<Attachment>,
}

impl Encoded {
    pub(in crate::ipc) fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, String> {
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
    /// Sends one message. Waits until there was space for all of it.
    pub(in crate::ipc) fn send(
        &self,
        kind: MessageKind,
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
    pub(in crate::ipc) async fn send_async(
        &self,
        kind: MessageKind,
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
        kind: MessageKind,
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
        kind: MessageKind,
        what: &mut Outgoings<'_>,
        attachments: &[Attachment],
    ) -> Result<Sent, SendError> {
        if outgoing.closed {
            return Err(SendError::Closed);
        }
        if !attachments.is_empty() && self.has_address() && attachments.iter().any(is_secret) {
            return Err(SendError::Encode(
                "a handle of a manager that was reached over TCP brings the key of the manager, and \
                 is sent only to processes of this program: not through a connection at an address"
                    .to_owned(),
            ));
        }
        let len = what.bytes().len() as u64;
        let descriptors = u8::try_from(attachments.len())
            .map_err(|error| SendError::Encode(error.to_string()))?;
        let header = MessageHeader { kind, descriptors, number: part_number(outgoing.begun), len };
        let mut progress = Progress { header, at: 0, begun: false };
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
                            false => progress.at.saturating_sub(HEADER_BYTES),
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
        let whole = from + bytes.len() + if self.packets { 0 } else { HEADER_BYTES };
        let descriptors: Vec<BorrowedFd<'_>> = attachments.iter().map(|one| one.as_fd()).collect();
        for _ in 0..CALLS_MAX {
            if progress.begun && progress.at >= whole {
                return Ok(Pushed::All);
            }
            // On packets, each part after the first has a header of its own, with its offset.
            let header = match (self.packets, progress.begun) {
                (true, true) => MessageHeader {
                    kind: MessageKind::More,
                    descriptors: 0,
                    len: progress.at as u64,
                    ..progress.header
                },
                _ => progress.header,
            };
            let header = header.to_bytes();
            let sent = if self.packets {
                let left = &bytes[progress.at - from..];
                // The descriptors are sent with the first packet only.
                let part = &left[..left.len().min(PART_BYTES)];
                let descriptors = if progress.begun { &[][..] } else { &descriptors };
                send_parts_now(
                    &self.socket,
                    &[IoSlice::new(&header), IoSlice::new(part)],
                    descriptors,
                )
                .map(|_| part.len())
            // On a stream, the header comes first and may itself be sent in pieces.
            } else {
                let body = progress.at.saturating_sub(HEADER_BYTES).saturating_sub(from);
                let parts = [
                    IoSlice::new(&header[progress.at.min(HEADER_BYTES)..]),
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

    pub(in crate::ipc) fn send_value<T: Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<(), SendError> {
        let mut encoded = self.encode(value)?;
        let attachments = std::mem::take(&mut encoded.attachments);
        self.send(MessageKind::Value, Outgoings::Owned(&mut encoded.bytes), &attachments, None)
    }

    /// Encodes the value at once, so that the future does not borrow it.
    pub(in crate::ipc) fn send_value_async<'a, T: Serialize + ?Sized>(
        &'a self,
        value: &T,
    ) -> impl Future<Output = Result<(), SendError>> + Send + use<'a, T> {
        let encoded = self.encode(value);
        async move {
            let mut encoded = encoded?;
            let attachments = std::mem::take(&mut encoded.attachments);
            self.send_async(MessageKind::Value, Outgoings::Owned(&mut encoded.bytes), &attachments)
                .await
        }
    }

    pub(in crate::ipc) fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send(MessageKind::Bytes, Outgoings::Borrowed(bytes), &[], None)
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
