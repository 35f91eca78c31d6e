//! Connects to a TCP address whose host may have several addresses, of which some do not answer.
//!
//! ```text
//!  address 1  ├─ SYN ───────────────────────── nothing …
//!  address 2  │    head start ├─ SYN ── refused: the next one begins at once
//!  address 3  │               │         ├─ SYN ── connected: it is used, the others are closed
//! ```
//!
//! A host that is a name has often an address that leads nowhere, for example one of IPv6. The
//! system says so after two minutes. So the attempts overlap, as RFC 8305 ("Happy Eyeballs") has
//! it: each address has a head start before the next one, and nothing is given up before the end.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio},
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

use super::super::readiness::Deadline;

/// How long an address has before the next one is tried as well, as RFC 8305 recommends. With a
/// higher value, a host whose first address leads nowhere is reached later. With a lower value,
/// slow networks see connections that are closed at once.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to a host. If the time is short, the head start is as well, so that each address has
/// its share of it.
///
/// Looking up the name may take longer than the deadline: that is the system's.
pub(super) fn connect_tcp(host: &str, port: u16, deadline: Deadline) -> io::Result<OwnedFd> {
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    connect_any(&addresses, deadline)
}

/// Connects to the first of these addresses that answers.
fn connect_any(addresses: &[SocketAddr], deadline: Deadline) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut left = addresses.iter();
    let mut attempts: Vec<OwnedFd> = Vec::new();
    let head_start = match deadline {
        None => HEAD_START,
        Some(deadline) => {
            let time = deadline.saturating_duration_since(Instant::now());
            let share = time / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
            share.min(HEAD_START)
        }
    };
    // When the next address is tried. Since there is an end to the addresses, and the system ends
    // each attempt, this ends without a deadline as well.
    let mut next = Instant::now();
    loop {
        let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
        // An address whose turn came late, since this thread had to wait for a processor, is tried
        // all the same.
        if attempts.is_empty() || next <= Instant::now() || is_late {
            match left.next().map(begin) {
                Some(Ok(Begun::Connected(socket))) => return blocking(socket),
                Some(Ok(Begun::OnItsWay(socket))) => {
                    attempts.push(socket);
                    next = Instant::now() + head_start;
                }
                // The next one is tried at once.
                Some(Err(error)) => {
                    last = error;
                    continue;
                }
                None if attempts.is_empty() => return Err(last),
                None => {}
            }
        }
        let until = match left.len() {
            0 => deadline,
            _ => Some(deadline.map_or(next, |deadline| deadline.min(next))),
        };
        for at in ended(&attempts, until)?.into_iter().rev() {
            let socket = attempts.swap_remove(at);
            match sockopt::socket_error(&socket)? {
                Ok(()) => return blocking(socket),
                Err(error) => {
                    last = error.into();
                    next = Instant::now();
                }
            }
        }
        if is_late && left.len() == 0 && !attempts.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// An attempt.
enum Begun {
    Connected(OwnedFd),
    OnItsWay(OwnedFd),
}

fn begin(address: &SocketAddr) -> io::Result<Begun> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, address) {
        Ok(()) => Ok(Begun::Connected(socket)),
        // A signal does not end an attempt that has begun.
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(Begun::OnItsWay(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Waits for attempts that have ended, one way or the other, at most until then. Returns their
/// positions, in ascending order.
fn ended(attempts: &[OwnedFd], until: Deadline) -> io::Result<Vec<usize>> {
    let mut fds: Vec<_> =
        attempts.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A timeout that is too long for the system is waited for again.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
            Ok(_) => break,
        }
    }
    let has_ended = |fd: &PollFd<'_>| !fd.revents().is_empty();
    Ok(fds.iter().enumerate().filter(|(_, fd)| has_ended(fd)).map(|(at, _)| at).collect())
}

fn blocking(socket: OwnedFd) -> io::Result<OwnedFd> {
    ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// An address that does not answer: the kernel drops what comes to a queue that is full.
    struct Silent {
        address: SocketAddr,
        _listener: TcpListener,
        _waiting: Vec<OwnedFd>,
    }

    fn silent() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // A queue of length 0 takes one connection. The second one is on its way for ever.
        loop {
            let Begun::OnItsWay(socket) = begin(&address).unwrap() else { panic!("at once") };
            let ended = ended(std::slice::from_ref(&socket), after(Duration::from_millis(200)));
            let is_full = ended.unwrap().is_empty();
            waiting.push(socket);
            if is_full {
                return Silent { address, _listener: listener, _waiting: waiting };
            }
        }
    }

    fn after(time: Duration) -> Deadline {
        Some(Instant::now() + time)
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn an_address_that_does_not_answer_leaves_time_for_the_next_one() {
        let silent = [silent(), silent()];
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = [silent[0].address, silent[1].address, good.local_addr().unwrap()];
        for deadline in [None, after(PATIENCE)] {
            let socket = connect_any(&all, deadline).unwrap();
            let peer = TcpStream::from(socket).peer_addr().unwrap();
            assert_eq!(peer, all[2]);
            assert!(deadline.is_none_or(|deadline| Instant::now() < deadline));
        }
        // All of them have their share of a time that is short.
        let time = Duration::from_millis(300);
        let begun = Instant::now();
        connect_any(&all, Some(begun + time)).unwrap();
    }

    #[test]
    fn an_address_that_refuses_costs_no_head_start_and_the_last_error_is_told() {
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = connect_any(&[refusing, refusing], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = [refusing, good.local_addr().unwrap()];
        let socket = connect_any(&all, after(PATIENCE)).unwrap();
        // It blocks, as the sockets of other addresses do.
        let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
        assert_eq!(connect_any(&[], None).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn when_nobody_answers_the_deadline_ends_all_attempts() {
        let silent = silent();
        let all = [silent.address, silent.address];
        let error = connect_any(&all, after(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = connect_any(&all, Some(Instant::now())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
