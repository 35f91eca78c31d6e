//! One end of a connection, untyped: messages in, messages out.
//!
//! ```text
//!  value ─► Encoded ─► send ─► header, part │ header, part │ …
//!                                        socket
//!  value ◄─ Received ◄─ receive ◄─ assembler ◄─ packets, or bytes of a stream
//! ```
//!
//! Locks are held during one attempt to send or receive, never while waiting, and no user code runs
//! while a lock is held. A wait may end at any moment, by a timeout or because a future is
//! dropped. So the received part of a long message, and the part still to be sent, are kept in the
//! endpoint and not on a stack, and the next attempt continues there. Threads that share an end see
//! whole messages.

mod receive;
mod send;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
};

use receive::Incoming;
pub(super) use receive::Received;
use rustix::net::{AddressFamily, SocketAddrAny, SocketType, getpeername, getsockname, sockopt};
use send::Outgoing;
pub(super) use send::{Encoded, Outgoings};

use super::readiness::Readiness;
use crate::os::{asked::Asked, socket, std_or_model::lock};

/// Maximum number of system calls in one attempt, for either direction. That is some megabytes,
/// more than the kernel buffers for one end.
///
/// A lower value means more locking for long messages. A higher value means that a peer that sends
/// endlessly holds the lock, a runtime's thread, and a caller past its deadline for that long.
const CALLS_MAX: usize = 128;

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

    /// Whether one end was bound to an address, so that another program may be at the other end.
    /// The ends of a [`pair`](Self::pair) have none.
    fn has_address(&self) -> bool {
        // The address of a socket that was never bound is nothing but its family.
        let is_bound = |name: SocketAddrAny| {
            name.address_family() != AddressFamily::UNIX
                || name.addr_len() as usize > size_of::<libc::sa_family_t>()
        };
        // If there is no peer any more, nothing can be sent to it.
        let names = [getsockname(&self.socket).ok(), getpeername(&self.socket).ok().flatten()];
        names.into_iter().flatten().any(is_bound)
    }

    pub(super) fn crosses_network(&self) -> bool {
        !self.packets
    }
}
