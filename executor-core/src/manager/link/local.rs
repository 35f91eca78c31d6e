//! Unix sockets with a path: for processes of one user and machine that have only the path in
//! common.
//!
//! ```text
//!  client                                   server (its gate)
//!  connect ────────────────────────────────►  the kernel says which user it is
//!  the kernel says which user listens
//!  the key challenge ◄─────────────────────►  both know the key
//!         ◄─────────────────────────────────  id of the server, and a copy of its door
//!  from here on: a knock at the door, a lane, as every process of the program has
//! ```
//!
//! Only processes of the same user, or of root, come to the challenge at all. Nothing is encrypted:
//! nobody but the two processes and root can read the socket.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use super::{
    MeetError, Progress, Waits,
    challenge::{Answer, Challenge, SAID_BYTES_MAX},
    wait_for,
};
use crate::{
    ipc::{Address, AuthKey, connect_to},
    manager::client::ServerId,
    os::socket::{self, Credentials},
};

/// What the key of such a meeting is derived for. A digest made here proves nothing over TCP.
const SESSION: &[u8] = b"local";
/// The first byte of the message with the door. The server's id and the number of its process
/// follow.
const DOOR: u8 = b'D';
const DOOR_BYTES: usize = 21;

/// The server's side of a meeting, on its way.
pub(crate) struct LocalMeeting {
    socket: OwnedFd,
    challenge: Challenge,
}

impl LocalMeeting {
    /// Begins with a client whose socket was accepted just now.
    pub(crate) fn accept(socket: OwnedFd, key: &AuthKey) -> Result<Self, MeetError> {
        check_user(socket.as_fd())?;
        let listening = Challenge::listen(key.bound_to(SESSION));
        let (challenge, said) = listening.map_err(|error| MeetError::io(&error))?;
        say(&socket, &said, &[])?;
        Ok(LocalMeeting { socket, challenge })
    }

    /// Returns the socket, to poll it.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Goes on as far as the socket allows. At the end, the client has the `door`, and the socket
    /// is of no use any more. After an error, the meeting is over.
    pub(crate) fn advance(
        &mut self,
        id: ServerId,
        door: BorrowedFd<'_>,
    ) -> Result<Progress<()>, MeetError> {
        loop {
            let mut heard = [0; SAID_BYTES_MAX + 1];
            let Some((len, _)) = heard_now(&self.socket, &mut heard)? else {
                return Ok(Progress::Waits(Waits::ToRead));
            };
            match self.challenge.hear(&heard[..len]).map_err(|error| MeetError::io(&error))? {
                Answer::Listen => {}
                Answer::Say(said) => say(&self.socket, &said, &[])?,
                Answer::Believe(said) => {
                    say(&self.socket, &said, &[])?;
                    let mut message = [0; DOOR_BYTES];
                    message[0] = DOOR;
                    message[1..17].copy_from_slice(&id.0.to_le_bytes());
                    message[17..].copy_from_slice(&std::process::id().to_le_bytes());
                    say(&self.socket, &message, &[door])?;
                    return Ok(Progress::Met(()));
                }
                Answer::Fail(said, error) => {
                    // The error is what counts.
                    let _ = say(&self.socket, &said, &[]);
                    return Err(error.into());
                }
            }
        }
    }
}

/// How long a server may take for each of its messages. With a lower value, a server on a busy
/// machine seems dead. With a higher one, connecting to one that is stopped takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the server that listens at a path. Returns its id, the number of its
/// process, and its door.
pub(crate) fn connect(
    path: &Path,
    key: &AuthKey,
    deadline: Option<Instant>,
) -> Result<(ServerId, u32, OwnedFd), MeetError> {
    let deadline = deadline.or_else(|| Instant::now().checked_add(PATIENCE));
    let socket = connect_to(&Address::Unix(path.to_owned()), deadline);
    let socket = socket.map_err(|error| MeetError::Io((&error).into()))?;
    check_user(socket.as_fd())?;
    kill_point!(ClientAddressReached);
    let (mut challenge, said) = Challenge::ask(key.bound_to(SESSION));
    say(&socket, &said, &[])?;
    let mut believed = false;
    loop {
        let mut heard = [0; SAID_BYTES_MAX + 1];
        let Some((len, mut descriptors)) = heard_now(&socket, &mut heard)? else {
            kill_point!(ClientMeets);
            let came = wait_for(socket.as_fd(), PollFlags::IN, deadline);
            if !came.map_err(|error| MeetError::io(&error))? {
                return Err(MeetError::TimedOut);
            }
            continue;
        };
        let heard = &heard[..len];
        if believed {
            let (Ok(heard), Some(door)) = (<&[u8; DOOR_BYTES]>::try_from(heard), descriptors.pop())
            else {
                return Err(MeetError::Protocol);
            };
            let [DOOR, id @ .., p0, p1, p2, p3] = heard else { return Err(MeetError::Protocol) };
            let (id, pid) = (u128::from_le_bytes(*id), u32::from_le_bytes([*p0, *p1, *p2, *p3]));
            if !socket::is_one(door.as_fd()) {
                return Err(MeetError::Protocol);
            }
            return Ok((ServerId(id), pid, door));
        }
        match challenge.hear(heard).map_err(|error| MeetError::io(&error))? {
            Answer::Listen => {}
            Answer::Say(said) => say(&socket, &said, &[])?,
            Answer::Believe(_) => believed = true,
            Answer::Fail(said, error) => {
                // The error is what counts.
                let _ = say(&socket, &said, &[]);
                return Err(error.into());
            }
        }
    }
}

/// Checks that the peer is a process of this process's user, or of root.
fn check_user(socket: BorrowedFd<'_>) -> Result<(), MeetError> {
    let peer = Credentials::of_maker(socket).map_err(|error| MeetError::io(&error))?;
    let user = peer.user();
    match user == 0 || user == Credentials::own().user() {
        true => Ok(()),
        false => Err(MeetError::User(user)),
    }
}

/// Says something. There are so few messages that a socket without room is one of a peer that does
/// not read.
fn say(socket: &OwnedFd, said: &[u8], door: &[BorrowedFd<'_>]) -> Result<(), MeetError> {
    if said.is_empty() {
        return Ok(());
    }
    socket::send_now(socket, said, door).map_err(|error| MeetError::io(&error))
}

/// Receives a message if there is one.
fn heard_now(
    socket: &OwnedFd,
    heard: &mut [u8],
) -> Result<Option<(usize, Vec<OwnedFd>)>, MeetError> {
    match socket::recv_short_now(socket, heard) {
        Ok((0, _)) => Err(MeetError::Closed),
        Ok(heard) => Ok(Some(heard)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(MeetError::io(&error)),
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{os::unix::net::UnixDatagram, thread};

    use super::*;
    use crate::{
        ipc::AuthError,
        os::socket::{pair, recv_short, send_now},
    };

    /// Lets a server with `key` meet one client, in a thread. Returns the path of its socket, and
    /// how the meeting has ended.
    fn server(
        folder: &Path,
        key: &'static str,
    ) -> (std::path::PathBuf, thread::JoinHandle<Result<(), MeetError>>) {
        use rustix::net::{
            AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen,
            socket_with,
        };
        let path = folder.join("socket");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let listener = listener.unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let meeting = thread::spawn(move || {
            let socket = accept(&listener).unwrap();
            let mut meeting = LocalMeeting::accept(socket, &AuthKey::new(key))?;
            let (door, outside) = pair().unwrap();
            loop {
                match meeting.advance(ServerId(7), outside.as_fd())? {
                    Progress::Met(()) => break,
                    Progress::Waits(_) => {
                        assert!(wait_for(meeting.socket(), PollFlags::IN, None).unwrap());
                    }
                }
            }
            // The client knocks.
            let mut heard = [0; 16];
            let (len, _) = recv_short(&door, &mut heard).unwrap();
            assert_eq!(&heard[..len], b"knock");
            Ok(())
        });
        (path, meeting)
    }

    #[test]
    fn who_knows_the_path_and_the_key_gets_the_door() {
        let folder = tempfile::tempdir().unwrap();
        let (path, meeting) = server(folder.path(), "key");
        let (id, pid, door) = connect(&path, &AuthKey::new("key"), None).unwrap();
        assert_eq!((id, pid), (ServerId(7), std::process::id()));
        send_now(&door, b"knock", &[]).unwrap();
        meeting.join().unwrap().unwrap();
    }

    #[test]
    fn mg24_with_another_key_nobody_gets_the_door() {
        let folder = tempfile::tempdir().unwrap();
        let (path, meeting) = server(folder.path(), "key");
        let error = connect(&path, &AuthKey::new("other"), None).unwrap_err();
        assert_eq!(error, MeetError::Auth(AuthError::Refused));
        assert_eq!(meeting.join().unwrap(), Err(MeetError::Auth(AuthError::WrongKey)));
    }

    #[test]
    fn a_peer_that_ends_or_says_something_else_ends_the_meeting() {
        for said in [&b""[..], b"x", &[4, 0, 0], &[0; SAID_BYTES_MAX + 1], &[6, 64]] {
            let (client, server) = pair().unwrap();
            let mut meeting = LocalMeeting::accept(server, &AuthKey::new("key")).unwrap();
            let (_door, outside) = pair().unwrap();
            let begun = meeting.advance(ServerId(7), outside.as_fd()).unwrap();
            assert!(matches!(begun, Progress::Waits(Waits::ToRead)));
            match said {
                b"" => drop(client),
                said => send_now(&client, said, &[]).unwrap(),
            }
            let error = meeting.advance(ServerId(7), outside.as_fd()).unwrap_err();
            let expected = match said {
                b"" => MeetError::Closed,
                _ => MeetError::Auth(AuthError::NotAsked),
            };
            assert_eq!(error, expected, "{said:?}");
        }
    }

    #[test]
    fn a_socket_of_another_kind_tells_no_user() {
        let (one, _other) = UnixDatagram::pair().unwrap();
        let error = LocalMeeting::accept(OwnedFd::from(one), &AuthKey::new("key")).err();
        assert!(matches!(error, Some(MeetError::Io(_))), "{error:?}");
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for_longer_than_asked() {
        use rustix::net::{
            AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let listener = listener.unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = connect(&path, &AuthKey::new("key"), Some(deadline)).unwrap_err();
        assert_eq!(error, MeetError::TimedOut);
    }
}
