//! A server's door: the socket through which processes connect to it.
//!
//! The door is one end of a pair of sockets, and whoever has a managed object has a copy of it: it
//! travels with the object's handle. So no name exists that others could find, and nothing is left
//! behind. A process connects by sending the other end of a pair of its own, and memory for a lane.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        error::ManagerError,
        link::{LinkReceiver, LinkSender},
    },
    connection::Connection,
    route::Route,
};
use crate::{
    os::{fork::NotInherited, socket},
    transport::ring::lane::{self, LaneSide},
    wire::attachment::Attachment,
};

/// Identifies a server. Chosen at random by the process that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServerId(pub(crate) u128);

/// What a client says at the door. The last byte is the protocol's version.
///
/// It says nothing about the client's program: the functions of updates are named together with
/// their types (`function.rs`), so another program can use what it has in common with this one.
const MARK: [u8; KNOCK_BYTES] = *b"xqmgr\0\0\x04";
/// Length of a message through the door.
pub(crate) const KNOCK_BYTES: usize = 8;
/// Length of the server's answer: a byte that says whether the client may come in, and the maximum
/// length of a message. After a refusal, a text follows.
pub(crate) const WELCOME_BYTES: usize = 9;
pub(crate) const WELCOME: u8 = b'W';
pub(crate) const REFUSED: u8 = b'R';

/// Returns what a client says at the door.
pub(crate) fn knock() -> [u8; KNOCK_BYTES] {
    MARK
}

/// Checks what a client has said at the door. Returns why it may not come in.
pub(crate) fn check_knock(bytes: &[u8]) -> Result<(), &'static str> {
    match bytes {
        _ if bytes == MARK => Ok(()),
        _ if bytes.starts_with(b"xqmgr") => Err("it speaks another version of the protocol"),
        _ => Err("it speaks another protocol"),
    }
}

/// A server, as its clients know it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) id: ServerId,
    /// `None` if the server can be reached over TCP only.
    socket: Option<Attachment>,
    /// How this process has got to know the server, if it did so by an address.
    route: Option<Arc<Route>>,
    /// The number of the server's process on its machine, if it has said it.
    pid: u32,
}

impl Door {
    /// Returns the door of a server of this machine.
    pub(crate) fn near(id: ServerId, socket: Attachment) -> Self {
        Door { id, socket: Some(socket), route: None, pid: 0 }
    }

    /// Returns the door of a server that was reached by its address.
    pub(super) fn at(
        (id, pid): (ServerId, u32),
        socket: Option<Attachment>,
        route: Arc<Route>,
    ) -> Self {
        Door { id, socket, route: Some(route), pid }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn socket(&self) -> Option<&Attachment> {
        self.socket.as_ref()
    }

    pub(super) fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// Whether both lead to the same connection of this process.
    pub(super) fn is_reached_as(&self, other: &Door) -> bool {
        let same = |(one, other)| Arc::ptr_eq(one, other);
        match (&self.route, &other.route) {
            (None, None) => self.id == other.id,
            (one, other) => one.as_ref().zip(other.as_ref()).is_some_and(same),
        }
    }

    /// Whether a connection that was lost is made again.
    pub(super) fn reconnects(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.reconnects())
    }

    /// Connects to the server.
    ///
    /// Without a deadline it waits as long as the server lives.
    pub(super) fn connect(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Connection>, ManagerError> {
        let Some(door) = &self.socket else {
            return Err(ManagerError::Gone("it is on another machine".into()));
        };
        let (memory, descriptor) =
            lane::create().map_err(ManagerError::os("memory for a connection to a manager"))?;
        let mut theirs = None;
        let ours = NotInherited::open(|| {
            let (ours, other) = socket::pair()?;
            theirs = Some(other);
            Ok(ours)
        });
        let ours = ours.map_err(ManagerError::os("a socket for a connection to a manager"))?;
        let (Some(theirs), Some(socket)) = (theirs, ours.get()) else {
            return Err(ManagerError::Gone("this process was forked while it connected".into()));
        };
        kill_point!(ClientLaneMade);
        let knock = knock();
        // It waits while others are at the door, and the server has not come to them.
        send(&**door, &knock, &[theirs.as_fd(), descriptor.as_fd()], deadline)?;
        kill_point!(ClientKnocked);
        drop(theirs);
        wait(&socket, PollFlags::IN, deadline)?;
        let mut answer = [0; 256];
        let (len, _) = socket::recv_short_now(socket, &mut answer)
            .map_err(ManagerError::socket("the answer of a manager (recvmsg)"))?;
        let answer = &answer[..len];
        match answer.split_first() {
            None => Err(ManagerError::Gone(
                "it ended, or has no descriptor left for another client".into(),
            )),
            Some((&WELCOME, rest)) if answer.len() == WELCOME_BYTES => {
                let max = rest.first_chunk().map_or(0, |max| u64::from_le_bytes(*max));
                // The server decides how long an answer is. Memory grows with what arrives.
                let ends = lane::ends(&memory, LaneSide::Client, u64::MAX);
                kill_point!(ClientLetIn);
                let ends = (LinkSender::Near(ends.0), LinkReceiver::Near(ends.1));
                Connection::new(Arc::clone(self), Arc::new(ours), ends, max)
            }
            Some((&REFUSED, text)) => {
                let text = String::from_utf8_lossy(text);
                Err(ManagerError::Gone(format!("it does not let this process in: {text}").into()))
            }
            Some(_) => Err(ManagerError::Protocol("its answer at the door".into())),
        }
    }
}

/// Sends a message with descriptors. Waits for room at most until the deadline.
pub(super) fn send(
    socket: &impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> Result<(), ManagerError> {
    loop {
        match socket::send_now(socket, message, descriptors) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(socket, PollFlags::OUT, deadline)?;
            }
            Err(error) => {
                let error = socket::explained(error);
                return Err(ManagerError::socket("a message to a manager")(error));
            }
        }
    }
}

/// Waits until a socket is ready, at most until the deadline.
fn wait(
    socket: &impl AsFd,
    flags: PollFlags,
    deadline: Option<Instant>,
) -> Result<(), ManagerError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ManagerError::TimedOut);
        }
        // A timeout that is too long for the system is waited for again.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(socket, flags)];
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) | Ok(0) => {}
            Err(error) => return Err(ManagerError::os("to wait for a manager")(error.into())),
            Ok(_) => return Ok(()),
        }
    }
}
