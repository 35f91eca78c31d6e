//! A `SOCK_SEQPACKET` pair of Unix sockets. It keeps the borders of messages and can send
//! descriptors with them. Reading returns end of file when the other side is gone. One end is a
//! worker's descriptor 0 at its start.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv as recv_bytes, recvmsg, sendmsg, socketpair, sockopt,
};
use tokio::io::unix::AsyncFd;

use super::{limits::limit_of, process::above_stdio};

/// Maximum length of a message. No message of the bootstrap is longer. It is far below the size of
/// the socket's buffer, so that a first send never blocks.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of descriptors in one message. This is the system's limit.
const FDS_MAX: usize = 253;

pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((above_stdio(ours)?, above_stdio(theirs)?))
}

/// Runs `send` while sending over `socket` never waits. A message that finds no room fails with
/// [`io::ErrorKind::WouldBlock`].
pub(crate) fn without_waiting<R>(
    socket: &OwnedFd,
    send: impl FnOnce() -> io::Result<R>,
) -> io::Result<R> {
    rustix::io::ioctl_fionbio(socket, true)?;
    let sent = send();
    rustix::io::ioctl_fionbio(socket, false)?;
    sent
}

/// Whether a descriptor is an end of such a pair.
pub(crate) fn is_one(fd: BorrowedFd<'_>) -> bool {
    matches!(ask_whether_one(fd), Ok(true))
}

fn ask_whether_one(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sockopt::socket_type(fd)? == SocketType::SEQPACKET
        && sockopt::socket_domain(fd)? == AddressFamily::UNIX)
}

/// Whether the other end is closed in every process that had it.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let polled = retry(|| poll(&mut fds, Some(&Timespec::default())));
    polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Whether the other end sends nothing any more. Over TCP, an end that is closed is no more than
/// that, as long as this one is open.
pub(crate) fn is_at_end(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let polled = retry(|| poll(&mut fds, Some(&Timespec::default())));
    polled.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP)
}

/// Whether a message sent now finds room. This requires more room than one message needs, because
/// the system reports a socket as writable only while part of its buffer is free.
pub(crate) fn has_room(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    let polled = retry(|| poll(&mut fds, Some(&Timespec::default())));
    // If the poll fails, the send reports the problem.
    polled.is_err() || fds[0].revents().contains(PollFlags::OUT)
}

/// The effective user and group as which a process acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    user: libc::uid_t,
    group: libc::gid_t,
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Credentials { user, group } = self;
        write!(f, "user {user} of group {group}")
    }
}

impl Credentials {
    /// Returns the credentials of this process.
    pub(crate) fn own() -> Self {
        Credentials {
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
        }
    }

    /// Returns the number of the user.
    pub(crate) fn user(&self) -> u32 {
        self.user
    }

    /// Returns the credentials of the process that created the pair of which `fd` is an end, at the
    /// time of its creation. For a socket that was connected by its address, those of the process
    /// that connects, or listens, at the other end. They come from the kernel, and no process can
    /// forge them.
    ///
    /// # Errors
    /// If `fd` is not an end of such a pair, or the kernel does not tell.
    pub(crate) fn of_maker(fd: BorrowedFd<'_>) -> io::Result<Self> {
        if !ask_whether_one(fd)? {
            return Err(io::Error::other("it is another kind of socket"));
        }
        // rustix's function cannot be used: a process outside the PID namespace has the number 0,
        // which its type cannot represent.
        let mut maker = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
        let mut len = size_of_val(&maker) as libc::socklen_t;
        // SAFETY: writes at most `len` bytes of a structure of numbers.
        let asked = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut maker).cast(),
                &raw mut len,
            )
        };
        if asked != 0 {
            return Err(io::Error::last_os_error());
        }
        if maker.uid == libc::uid_t::MAX {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(Credentials { user: maker.uid, group: maker.gid })
    }
}

/// Sends one message with descriptors. It blocks only if the peer has left 200 KiB unread.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, bytes, fds, SendFlags::empty())
}

/// Sends as [`send`] does, but never blocks. A message that finds no room fails with
/// [`io::ErrorKind::WouldBlock`].
pub(crate) fn send_now(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, bytes, fds, SendFlags::DONTWAIT)
}

fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    send_parts(socket, &[IoSlice::new(bytes)], fds, flags).map(drop)
}

/// Sends a message from several places, as [`send_now`] does. Returns how much was sent, which may
/// be less than everything on a stream.
pub(crate) fn send_parts_now(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    send_parts(socket, parts, fds, SendFlags::DONTWAIT)
}

fn send_parts(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors in one message",
        ));
    }
    // Without NOSIGNAL, a send to a closed peer would raise SIGPIPE instead of returning an error.
    Ok(retry(|| sendmsg(&socket, parts, &mut ancillary, SendFlags::NOSIGNAL | flags))?)
}

/// Explains the error of a send to users. If too many descriptors are in flight, the system's
/// message is "too many references: cannot splice".
pub(crate) fn explained(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::ETOOMANYREFS) {
        return error;
    }
    let limit = match limit_of(rustix::process::Resource::Nofile) {
        Ok(limit) => limit.current.map_or("none".to_owned(), |limit| limit.to_string()),
        Err(_) => "unknown".to_owned(),
    };
    io::Error::other(format!(
        "too many descriptors of this user are on their way: those in messages that nobody has received yet, and in items of queues \
         that nobody has got, of all processes together. As many may be as open files (`ulimit -n`, here {limit})"
    ))
}

/// Receives one message and its descriptors. Empty bytes mean that the peer is gone.
#[expect(clippy::disallowed_methods, reason = "by way of `receive`")]
pub(crate) fn recv(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // Allocate only as much as the message needs. Otherwise a worker would touch, and keep, 64 KiB
    // for a setup of a hundred bytes.
    let (_, len) =
        receive(|| recv_bytes(&socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::TRUNC))?;
    let mut bytes = vec![0; len.min(MESSAGE_BYTES_MAX)];
    let (len, fds) = recv_with(socket, &mut bytes, RecvFlags::empty())?;
    bytes.truncate(len);
    Ok((bytes, fds))
}

/// Receives one message that has already arrived, with all its descriptors.
///
/// If this process has no free number for one of the descriptors, the call fails (`EMFILE`). The
/// message stays, and can be received later. If there is no message, it fails with
/// [`io::ErrorKind::WouldBlock`].
pub(crate) fn recv_whole_now(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    // Peek first, so that a message with a lost descriptor is still there.
    let (len, fds, whole) = recv_all(&socket, &mut bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
    if !whole {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    bytes.truncate(len);
    // An empty message is removed as well. At the end there is nothing to remove.
    remove_now(socket)?;
    Ok((bytes, fds))
}

/// Removes a message that has already arrived, with its descriptors. The descriptors are lost
/// unless the caller got them by peeking.
#[expect(clippy::disallowed_methods, reason = "by way of `receive`")]
pub(crate) fn remove_now(socket: impl AsFd) -> io::Result<()> {
    receive(|| recv_bytes(&socket, &mut [0_u8; 1], RecvFlags::DONTWAIT))?;
    Ok(())
}

/// Receives one short message and its descriptors. Returns its length. Descriptors for which this
/// process has no free number are lost.
pub(crate) fn recv_short(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    recv_with(socket, bytes, RecvFlags::empty())
}

/// Receives as [`recv_short`] does, but fails if this process has no free number for any of the
/// descriptors.
pub(crate) fn recv_short_whole(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (len, descriptors, whole) = recv_all(socket, bytes, RecvFlags::empty())?;
    whole.then_some((len, descriptors)).ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
}

/// Receives as [`recv_short`] does, but never blocks. If there is no message, it fails with
/// [`io::ErrorKind::WouldBlock`].
pub(crate) fn recv_short_now(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    recv_with(socket, bytes, RecvFlags::DONTWAIT)
}

/// Receives as [`recv_short_now`] does, but the message stays. It will be received again, with its
/// descriptors.
pub(crate) fn peek_short_now(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    recv_with(socket, bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK)
}

fn recv_with(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    recv_all(socket, bytes, flags).map(|(len, descriptors, _)| (len, descriptors))
}

/// Receives a message. Returns its length, its descriptors, and whether none of them was lost.
#[expect(clippy::disallowed_methods, reason = "by way of `receive`")]
fn recv_all(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = receive(|| {
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | flags,
        )
    })?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds, !received.flags.contains(ReturnFlags::CTRUNC)))
}

/// Makes a receiving call. Repeats it once if the peer is gone and had not read everything. The
/// kernel reports that once, to the next call of any kind, before it delivers what the peer had
/// sent.
fn receive<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match retry(&mut call) {
        Err(rustix::io::Errno::CONNRESET) => retry(call),
        other => other,
    }
}

/// Registers a descriptor with the current runtime. Panics if there is none, or if it does no I/O.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, with the same number and file, until it is dropped. It is
    // dropped with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// Repeats a system call that a signal handler has interrupted. Any blocking call may be
/// interrupted, and nothing is lost by repeating it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_whole_and_the_end_is_empty() {
        let (ours, theirs) = pair().unwrap();
        for len in [1, 100, MESSAGE_BYTES_MAX] {
            send(&theirs, &vec![7; len], &[ours.as_fd()]).unwrap();
            let (bytes, fds) = recv(&ours).unwrap();
            assert!(bytes == vec![7; len] && fds.len() == 1, "{len}");
        }
        send(&theirs, b"last", &[]).unwrap();
        send(&ours, b"unread", &[]).unwrap();
        drop(theirs);
        assert_eq!(recv(&ours).unwrap().0, b"last");
        assert_eq!(recv(&ours).unwrap().0, b"");
    }

    #[test]
    fn who_made_a_pair_is_known() {
        let (ours, _theirs) = pair().unwrap();
        assert_eq!(Credentials::of_maker(ours.as_fd()).unwrap(), Credentials::own());
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(
            Credentials::of_maker(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Credentials::of_maker(stream.as_fd()).is_err(), "another kind");
        let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        assert!(Credentials::of_maker(alone.as_fd()).is_err(), "nobody is at its other end");
    }

    #[test]
    fn what_a_peer_sent_is_there_after_its_death_whatever_it_left_unread() {
        let (ours, theirs) = pair().unwrap();
        send(&theirs, b"last", &[]).unwrap();
        send(&ours, b"unread", &[]).unwrap();
        drop(theirs);
        let mut bytes = [0; 8];
        let (len, _) = recv_short_now(&ours, &mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"last");
        assert_eq!(recv_short_now(&ours, &mut bytes).unwrap().0, 0);
    }

    #[test]
    fn a_peer_that_dies_between_a_peek_and_the_removal_is_no_error() {
        let (ours, theirs) = pair().unwrap();
        send(&theirs, b"last", &[]).unwrap();
        send(&ours, b"unread", &[]).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(peek_short_now(&ours, &mut bytes).unwrap().0, 4);
        drop(theirs);
        remove_now(&ours).unwrap();
        assert_eq!(recv_short_now(&ours, &mut bytes).unwrap().0, 0);
    }
}
