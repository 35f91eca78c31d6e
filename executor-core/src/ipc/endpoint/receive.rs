//! Receiving: from packets or the bytes of a stream to whole messages and values.

use std::{
    cell::Cell,
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::event::PollFlags;
use serde::de::DeserializeOwned;
use tokio::io::Interest;

use super::{
    super::{
        error::RecvError,
        message::{Arrival, Assembler, Disorder, HEADER_BYTES, Message, MessageKind, PART_BYTES},
        readiness::{Attempt, Deadline, has_passed, wait_for},
    },
    CALLS_MAX, Endpoint,
};
use crate::{
    os::{local, socket::recv_short_now, spin::Spin, std_or_model::lock},
    wire::{
        attachment::{self, Attachment},
        codec::{Format, Postcard},
    },
};

thread_local! {
    /// Buffer for one packet. It belongs to the thread and not to the end, since a process may have
    /// thousands of ends.
    static PACKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The thread's packet buffer, for as long as this lives.
struct Packet(Vec<u8>);

impl Packet {
    fn take() -> Self {
        let mut room = local::take(&PACKET);
        room.resize(HEADER_BYTES + PART_BYTES, 0);
        Packet(room)
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        local::put(&PACKET, std::mem::take(&mut self.0));
    }
}

/// A received message.
pub(in crate::ipc) struct Received {
    packet: Packet,
    body: Body,
    pub(in crate::ipc) kind: MessageKind,
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
    kind: MessageKind,
    descriptors: Vec<OwnedFd>,
}

impl Arrived {
    fn received(self, packet: Packet) -> Received {
        let Arrived { body, kind, descriptors } = self;
        Received { packet, body, kind, descriptors }
    }
}

impl Received {
    pub(in crate::ipc) fn bytes(&self) -> &[u8] {
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
    pub(in crate::ipc) fn into_user_bytes(self) -> Result<Vec<u8>, RecvError> {
        match self.kind {
            MessageKind::Bytes => Ok(self.into_bytes()),
            MessageKind::Value => {
                Err(RecvError::Decode("a value was sent, and bytes were asked for".to_owned()))
            }
            other => Err(unexpected(other)),
        }
    }

    /// Decodes a message that was sent as a value.
    pub(in crate::ipc) fn into_value<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        match self.kind {
            MessageKind::Value => {}
            MessageKind::Bytes => {
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
fn unexpected(kind: MessageKind) -> RecvError {
    RecvError::Invalid(
        match kind {
            MessageKind::Challenge => "the listener asks for a key, and the client was given none",
            MessageKind::Hello => "the client has a key, and the listener was given none",
            _ => "a message of a handshake came after it",
        }
        .to_owned(),
    )
}

/// The state of the receiving half.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) assembler: Assembler,
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

impl Endpoint {
    /// Receives one message of at most `max` bytes. Waits until the deadline if `wait` is set.
    /// Returns [`RecvError::Empty`] if no message came.
    pub(in crate::ipc) fn receive(
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
            matches!(wait_for(self.socket.as_fd(), PollFlags::IN, Some(Instant::now())), Ok(true))
        };
        match self.incoming.try_lock() {
            Ok(mut incoming) => incoming.spin.wait(u32::MAX, look),
            Err(_) => false,
        }
    }

    /// Async version of [`receive`](Self::receive). A dropped future has taken no message.
    pub(in crate::ipc) async fn receive_async(&self, max: u64) -> Result<Received, RecvError> {
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
                        None => Body::InPacket(HEADER_BYTES..received),
                    };
                    return Ok(Attempt::Done(Arrived { body, kind, descriptors }));
                }
                Arrival::TooLong(len) => return Err(RecvError::TooLong { len, max }),
                Arrival::More => {}
            }
        }
        Ok(Attempt::Again)
    }

    /// Waits until there is something to receive, or the end of the connection. Returns whether
    /// there is.
    pub(in crate::ipc) fn poll(&self, deadline: Deadline) -> io::Result<bool> {
        {
            let incoming = lock(&self.incoming);
            if incoming.end.is_some() || incoming.assembler.is_complete() {
                return Ok(true);
            }
        }
        wait_for(self.socket.as_fd(), PollFlags::IN, deadline)
    }
}
