//! A client, as the server's loop knows it: over shared memory, or over TCP.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::{
    collections::VecDeque,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{
    super::{
        client::connection::LOOK,
        link::{LinkReceiver, LinkSender},
        protocol::ObjectId,
    },
    core::{ClientId, Core},
    segments::Segments,
    unread::Unread,
};
use crate::os::{fork::NotInherited, socket};

/// A client.
pub(super) struct Guest {
    pub(super) socket: GuestSocket,
    pub(super) sender: LinkSender,
    pub(super) receiver: LinkReceiver,
    /// Whether the loop looks at its link. Otherwise the client has to send something.
    pub(super) hot: bool,
    /// Whether replies were sent that the client has not been woken for.
    pub(super) touched: bool,
    /// Whether it is to be cut off, and gets no more replies.
    pub(super) condemned: bool,
    /// The replies that have given it something.
    pub(super) unread: Unread,
    /// Number of replies to a far client that were marked, and of those that it has received.
    marked: u64,
    received: u64,
    /// Whether the poll reports room in a TCP socket.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "there are no TCP sockets"))]
    pub(super) polls_for_room: bool,
    /// Number of handles that it has sent to other processes and that are still there.
    pub(super) leases_held: usize,
    /// Pipes that have come, and were not asked for yet.
    pub(super) leases: VecDeque<(ObjectId, OwnedFd)>,
    /// The segments in which large values travel, if it has asked for them.
    pub(super) segments: Option<Segments>,
}

/// The socket of a client.
pub(super) enum GuestSocket {
    /// A pair. What is sent over it are bytes that ask to look at the lane, and pipes. A process
    /// that a user's function has forked does not keep it: otherwise the client would not notice
    /// the end of this process while that one lives.
    Near(NotInherited),
    /// TCP. What is sent over it are the messages themselves.
    #[cfg(feature = "tls")]
    Far(Arc<NotInherited>),
}

impl GuestSocket {
    /// Returns the socket of a near client.
    pub(super) fn near(&self) -> Option<BorrowedFd<'_>> {
        match self {
            GuestSocket::Near(socket) => socket.get(),
            #[cfg(feature = "tls")]
            GuestSocket::Far(_) => None,
        }
    }

    /// Returns the descriptor, to poll it. `None` in a fork.
    pub(super) fn get(&self) -> Option<BorrowedFd<'_>> {
        match self {
            GuestSocket::Near(socket) => socket.get(),
            #[cfg(feature = "tls")]
            GuestSocket::Far(socket) => socket.get(),
        }
    }
}

impl Guest {
    pub(super) fn new(socket: GuestSocket, sender: LinkSender, receiver: LinkReceiver) -> Self {
        Guest {
            socket,
            sender,
            receiver,
            hot: true,
            touched: false,
            condemned: false,
            unread: Unread::default(),
            marked: 0,
            received: 0,
            polls_for_room: false,
            leases_held: 0,
            leases: VecDeque::new(),
            segments: None,
        }
    }

    pub(super) fn is_far(&self) -> bool {
        self.receiver.is_far()
    }

    /// Whether a part of a request or of a reply is on its way over a lane, and the rest has yet to
    /// come.
    pub(super) fn is_in_message(&self) -> bool {
        !self.is_far() && (self.receiver.is_in_message() || !self.sender.is_flushed())
    }

    /// Whether there is a request, or room for a reply that waits for it.
    pub(super) fn is_ready(&self) -> bool {
        !self.receiver.is_empty() || !self.sender.is_flushed() && self.receiver.room_was_made()
    }

    /// Returns where the last reply ends, which has given the client something. One to a far client
    /// has to be marked.
    pub(super) fn end(&mut self) -> u64 {
        if self.is_far() {
            self.marked += 1;
            return self.marked;
        }
        self.sender.end()
    }

    /// Returns how far the client has come. `None` if it has written a position that cannot be.
    pub(super) fn taken(&self) -> Option<u64> {
        if self.is_far() { Some(self.received) } else { self.sender.taken() }
    }

    /// A far client says how many of the marked replies it has received. Returns whether that can
    /// be.
    pub(super) fn has_received(&mut self, count: u64) -> bool {
        let can_be = self.is_far() && (self.received..=self.marked).contains(&count);
        if can_be {
            self.received = count;
        }
        can_be
    }

    /// Returns how much memory is kept for replies that the client has not taken.
    pub(super) fn untaken_bytes(&self) -> u64 {
        // Those of a near client that have given it something lie in its ring, or wait as well.
        let given = if self.is_far() { self.unread.kept_bytes() } else { 0 };
        self.sender.waiting_bytes().saturating_add(given) as u64
    }

    /// Lets the core forget what the client has read.
    pub(super) fn look_at_unread(&mut self, client: ClientId, core: &mut Core) {
        if !self.unread.is_empty()
            && let Some(position) = self.taken()
        {
            core.takes_read(client, self.unread.read_up_to(position));
        }
    }

    /// Has to be called behind the last of several replies. Wakes the client if it sleeps. Returns
    /// whether it did.
    pub(super) fn wake(&mut self) -> bool {
        let sleeps = self.sender.must_wake();
        if sleeps {
            self.send_look();
        }
        sleeps
    }

    /// Asks a near client to look at its lane.
    pub(super) fn send_look(&self) {
        if let Some(socket) = self.socket.near() {
            // A full socket has bytes that the client has yet to look at.
            let _ = socket::send_now(socket, &[LOOK], &[]);
        }
    }
}
