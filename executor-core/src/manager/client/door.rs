//! A server's door: the socket through which processes connect to it.
//!
//! The door is one end of a pair of sockets, and whoever has a managed object has a copy of it: it
//! travels with the object's handle. So no name exists that others could find, and nothing is left
//! behind. A process connects by sending the other end of a pair of its own, and memory for a lane.

use std::{io, os::fd::AsFd, sync::Arc, time::Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{super::error::ManagerError, connection::Connection};
use crate::{
    os::{fork::NotInherited, socket},
    registry,
    transport::ring::lane::{self, LaneSide},
    wire::attachment::Attachment,
};

/// Identifies a server. Chosen at random by the process that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServerId(pub(crate) u128);

/// The first bytes of a message through the door. The last of them is the protocol's version.
const MARK: [u8; 8] = *b"xqmgr\0\0\x01";
/// Length of a message through the door: the mark, and the fingerprint of the program's tasks.
pub(crate) const KNOCK_BYTES: usize = 16;
/// Length of the server's answer: a byte that says whether the client may come in, and the maximum
/// length of a message. After a refusal, a text follows.
pub(crate) const WELCOME_BYTES: usize = 9;
pub(crate) const WELCOME: u8 = b'W';
pub(crate) const REFUSED: u8 = b'R';

/// Returns the fingerprint of this program's tasks.
fn own_tasks() -> u64 {
    // The unit tests of this crate are linked with two copies of it, so they have no registry.
    if cfg!(test) { 0 } else { registry::fingerprint().hash }
}

/// Returns what a client says at the door.
pub(crate) fn knock() -> [u8; KNOCK_BYTES] {
    let mut knock = [0; KNOCK_BYTES];
    knock[..8].copy_from_slice(&MARK);
    knock[8..].copy_from_slice(&own_tasks().to_le_bytes());
    knock
}

/// Checks what a client has said at the door. Returns why it may not come in.
pub(crate) fn check_knock(bytes: &[u8]) -> Result<(), &'static str> {
    let Ok(knock) = <&[u8; KNOCK_BYTES]>::try_from(bytes) else {
        return Err("it speaks another protocol");
    };
    let (mark, tasks) = knock.split_at(8);
    if *mark != MARK {
        return Err("it speaks another version of the protocol");
    }
    // Functions of updates are known by numbers, which only mean the same in the same program.
    if *tasks != own_tasks().to_le_bytes() {
        return Err("it is a process of another program, or of another build");
    }
    Ok(())
}

/// A server, as its clients know it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) id: ServerId,
    pub(crate) socket: Attachment,
}

impl Door {
    /// Connects to the server.
    ///
    /// Without a deadline it waits as long as the server lives.
    pub(super) fn connect(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Connection>, ManagerError> {
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
        loop {
            match socket::send_now(&*self.socket, &knock, &[theirs.as_fd(), descriptor.as_fd()]) {
                Ok(()) => break,
                // Others are at the door, and the server has not come to them.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::OUT, deadline)?;
                }
                Err(error) => {
                    let error = socket::explained(error);
                    return Err(ManagerError::socket("a message to a manager")(error));
                }
            }
        }
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
                Ok(Connection::new(Arc::clone(self), ours, ends, max))
            }
            Some((&REFUSED, text)) => {
                let text = String::from_utf8_lossy(text);
                Err(ManagerError::Gone(format!("it does not let this process in: {text}").into()))
            }
            Some(_) => Err(ManagerError::Protocol("its answer at the door".into())),
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
