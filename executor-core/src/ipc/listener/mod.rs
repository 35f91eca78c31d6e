//! Connections between unrelated processes: one process listens at an address, and others connect.
//!
//! The `Listener` is in this file. `client` is the other side, `handshake` has the messages that
//! both exchange before the connection is used, and `socket` binds and connects. `dial` tries the
//! addresses of a host, and `folder` says whether others can replace a socket's file.
//!
//! ```text
//!                ┌─ the listening socket
//!   epoll set ───┼─ the sockets of clients in their handshakes, at most 256
//!                ├─ a timer: the earliest deadline of a handshake has passed
//!                └─ an eventfd: `close` was called
//! ```
//!
//! `accept` looks at all clients and returns the first one that has finished its handshake. If none
//! has, it waits for the epoll set.
//!
//! There is no background thread. Any call of `accept` advances the handshakes of all clients, so a
//! client that says nothing delays no other client. It is dropped after a timeout, or when 256
//! other clients have come.
//!
//! One lock protects the clients, and `close` and other calls wait for that lock. So code that
//! holds it never blocks, and a client cannot prolong it:
//!
//! - A handshake ends after a fixed number of messages, which the client cannot change (`auth.rs`).
//! - A message of a handshake has a maximum length.
//! - One call takes in at most as many new clients as may be in their handshakes at a time.

mod client;
mod dial;
mod folder;
mod handshake;
mod socket;

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use client::{Client, ConnectError};
use handshake::{HANDSHAKE_TIMEOUT, Handshake, say};
use rustix::{
    event::epoll,
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
pub(crate) use socket::{SocketFile, bind_private, connect_to};
use socket::{address_of, bind_to, prepare};
use tokio::io::Interest;

use super::{
    address::Address,
    auth::{AuthError, AuthKey, Listening},
    connection::Connection,
    endpoint::Endpoint,
    readiness::{
        Attempt, Deadline, Readiness, deadline_in, has_passed, left, poll_until, wait_for,
    },
};
use crate::os::{eventfd::EventFd, fork::Creator, socket::retry};

/// Maximum number of clients in their handshakes at a time.
///
/// A lower value means that a slow client is dropped for others that come later. A higher value
/// means more descriptors spent on clients that say nothing.
const HANDSHAKES_MAX: usize = 256;

/// Used for timeouts that the clock cannot represent.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Waits for clients at an address.
///
/// ```
/// use executor::{Address, AuthKey, Client, Connection, Listener};
///
/// let key = AuthKey::random()?;
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?.authkey(key.clone());
/// let address = listener.address().clone();
/// let client = std::thread::spawn(move || {
///     let server: Connection<u32, String> = Client::connect(&address, Some(&key)).unwrap();
///     server.send(&7).unwrap();
///     server.recv().unwrap()
/// });
/// let client_end: Connection<String, u32> = listener.accept()?;
/// assert_eq!(client_end.recv()?, 7);
/// client_end.send(&"seven".to_owned())?;
/// assert_eq!(client.join().unwrap(), "seven");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Who may connect
///
/// With a [key](Self::authkey), only clients that know it. Both sides prove that to each other by
/// HMAC-SHA-256 over random numbers, before a byte of any other message is decoded. Without a key,
/// anyone who can reach the address.
///
/// Nothing is encrypted. Messages of an authenticated client are decoded as the connection's type
/// says. Handles of shared objects and descriptors can be sent through Unix sockets, never over
/// TCP.
///
/// # Misbehaving clients
///
/// A client may have a wrong key, send half a message or an absurd length, or send something twice.
/// The call of [`accept`](Self::accept) that notices it returns an error, and the next call
/// continues with other clients. A client that says nothing or never stops talking delays no other
/// client. It is dropped after [a timeout](Self::auth_timeout). It is dropped earlier if 256
/// others have come, or if there is no descriptor left for a new client.
///
/// One attack is not prevented: an attacker that opens 256 connections before a legitimate client
/// can answer crowds that client out, and the client has to connect again.
///
/// # Closing
///
/// [`close`](Self::close) and dropping close the listener and remove the file of a Unix socket. If
/// the process is killed, the file stays until the next listener on that path removes it. An
/// [`Abstract`](Address::Abstract) address leaves nothing behind. Accepted connections stay open.
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    /// The file of a Unix socket with a path. It tells our file from one that has replaced it.
    file: Option<SocketFile>,
    key: Option<AuthKey>,
    handshake_timeout: Duration,
    set: Arc<OwnedFd>,
    /// Part of the epoll set, so that a caller that awaits or polls the set also notices deadlines.
    timer: OwnedFd,
    bell: EventFd,
    closed: AtomicBool,
    clients: Mutex<Clients>,
    readiness: Readiness,
    creator: Creator,
}

#[derive(Default)]
struct Clients {
    /// The oldest first.
    handshakes: Vec<Handshake>,
    /// The deadline that the timer is set to.
    alarm: Deadline,
    last_accepted: Option<Address>,
}

/// The result of looking at all clients once.
enum Turn {
    Accepted(Box<Endpoint>),
    /// There is nothing to do until the epoll set is ready.
    Wait,
    /// There may be more new clients than this call has taken in.
    Again,
}

/// The error of accepting a client.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The listener is closed.
    #[error("the listener is closed")]
    Closed,
    /// No client finished its handshake within the timeout. Only from [`Listener::accept_timeout`].
    #[error("no client came in time")]
    TimedOut,
    /// A client failed to authenticate. The listener can still be used.
    #[error("a client was refused: {error}")]
    #[non_exhaustive]
    Refused {
        /// The client's address, if it has one.
        peer: Option<Address>,
        /// The reason.
        error: AuthError,
    },
    /// The system refused, for example because this process has too many open files. The client
    /// still waits.
    #[error("accepting failed")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_chain!(AcceptError);

impl Listener {
    /// Listens at an address. With [`Address::any`] or port 0 a free one is chosen.
    ///
    /// # Errors
    /// The system's, for example if the address is in use or not allowed.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (socket, address, file) = bind_to(address)?;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = EventFd::new()?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        for one in [socket.as_fd(), timer.as_fd(), bell.as_fd()] {
            epoll::add(&set, one, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Listener {
            socket,
            address,
            file,
            key: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            set: Arc::new(set),
            timer,
            bell,
            closed: AtomicBool::new(false),
            clients: Mutex::default(),
            readiness: Readiness::default(),
            creator: Creator::here(),
        })
    }

    /// Requires clients to know this key. An empty key is a key too.
    #[must_use]
    pub fn authkey(mut self, key: AuthKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the timeout for a client's handshake. The default is ten seconds.
    #[must_use]
    pub fn auth_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Returns the address it listens at, including a port or name that was chosen for it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the address of the client that was accepted last.
    ///
    /// `None` if there was none yet, or if the client has no address, as is the case for nearly all
    /// clients of Unix sockets.
    pub fn last_accepted(&self) -> Option<Address> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).last_accepted.clone()
    }

    /// Waits for a client and its handshake.
    ///
    /// Several threads may call it at the same time. Each client goes to one of them.
    ///
    /// # Errors
    /// [`Refused`](AcceptError::Refused) if a client does not know the key. Call it again for the
    /// next client, or use [`incoming`](Self::incoming), a loop that does so.
    /// [`Closed`](AcceptError::Closed) if the listener is closed, or is closed during the call.
    pub fn accept<S, R>(&self) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(None)
    }

    /// Like [`accept`](Self::accept), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept), and [`TimedOut`](AcceptError::TimedOut) if no client was
    /// accepted in time.
    pub fn accept_timeout<S, R>(&self, timeout: Duration) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(deadline_in(Some(timeout)))
    }

    /// Async version of [`accept`](Self::accept).
    ///
    /// # Cancel safety
    /// A dropped future has accepted no client.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept).
    pub async fn accept_async<S, R>(&self) -> Result<Connection<S, R>, AcceptError> {
        let step = || {
            Ok::<_, AcceptError>(match self.accept_now()? {
                Turn::Accepted(end) => Attempt::Done(*end),
                Turn::Wait => Attempt::NotYet,
                Turn::Again => Attempt::Again,
            })
        };
        Ok(Connection::over(self.readiness.until(&self.set, Interest::READABLE, step).await?))
    }

    /// Returns an iterator over all clients that will be accepted, until the listener is closed.
    /// Refused clients are skipped.
    ///
    /// While the system has no descriptor left for a new client, the iterator tries again every
    /// 50 ms.
    pub fn incoming<S, R>(&self) -> impl Iterator<Item = Connection<S, R>> {
        std::iter::from_fn(move || {
            loop {
                match self.accept() {
                    Ok(connection) => return Some(connection),
                    Err(AcceptError::Closed) => return None,
                    Err(AcceptError::Io(_)) => {
                        // Pause before the next attempt. The pause ends at once if the listener is
                        // closed.
                        let bell =
                            rustix::event::PollFd::new(&self.bell, rustix::event::PollFlags::IN);
                        let _ =
                            poll_until(&mut [bell], deadline_in(Some(Duration::from_millis(50))));
                    }
                    Err(_) => {}
                }
            }
        })
    }

    /// Closes the listener. Calls of `accept` that are waiting return an error, and so do later
    /// ones.
    pub fn close(&self) {
        // A forked copy of this process shares the socket and the file, and must not close them.
        if self.closed.swap(true, Ordering::SeqCst) || self.creator.is_elsewhere() {
            return;
        }
        self.bell.ring();
        // From now on clients are refused, including those that have connected but were not
        // accepted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(file) = &self.file {
            file.remove();
        }
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).handshakes.clear();
    }

    fn accept_until<S, R>(&self, deadline: Deadline) -> Result<Connection<S, R>, AcceptError> {
        loop {
            let more = match self.accept_now()? {
                Turn::Accepted(end) => return Ok(Connection::over(*end)),
                Turn::Wait => false,
                Turn::Again => true,
            };
            if has_passed(deadline) {
                return Err(AcceptError::TimedOut);
            }
            if !more {
                wait_for(self.set.as_fd(), rustix::event::PollFlags::IN, deadline)?;
            }
        }
    }

    /// Looks at all clients once.
    fn accept_now(&self) -> Result<Turn, AcceptError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::SeqCst) {
            return Err(AcceptError::Closed);
        }
        // The oldest first, and before any client is dropped for lack of time or descriptors: its
        // answer may have arrived in the meantime.
        let mut at = 0;
        while at < clients.handshakes.len() {
            let handshake = &mut clients.handshakes[at];
            match self.key.as_ref().and_then(|key| handshake.advance(key)) {
                None => at += 1,
                Some(result) => {
                    let (end, peer) = self.remove(&mut clients, at);
                    match result {
                        Ok(()) => {
                            clients.last_accepted = peer;
                            return Ok(Turn::Accepted(Box::new(end)));
                        }
                        Err(error) => return Err(AcceptError::Refused { peer, error }),
                    }
                }
            }
        }
        // Drop late clients before accepting new ones. Otherwise the late ones could hold the
        // descriptors that the new ones need.
        let now = Instant::now();
        if let Some(at) = clients.handshakes.iter().position(|one| one.deadline <= now) {
            return Err(self.give_up(&mut clients, at));
        }
        for came in 0.. {
            if came == HANDSHAKES_MAX {
                return Ok(Turn::Again);
            }
            let (socket, peer) = match retry(|| acceptfrom_with(&self.socket, SocketFlags::CLOEXEC))
            {
                Ok(client) => client,
                Err(Errno::AGAIN) => break,
                // The client has gone away already.
                Err(Errno::CONNABORTED | Errno::PROTO) => continue,
                Err(_) if self.closed.load(Ordering::SeqCst) => return Err(AcceptError::Closed),
                // The kernel allocates a descriptor before it looks for a client, so this error
                // does not mean that a client is waiting. Check that first.
                Err(Errno::MFILE | Errno::NFILE) if !clients.handshakes.is_empty() => {
                    if !wait_for(self.socket.as_fd(), rustix::event::PollFlags::IN, Some(now))? {
                        break;
                    }
                    // Silent clients must not keep a new one out by holding all descriptors.
                    return Err(self.give_up(&mut clients, 0));
                }
                Err(error) => return Err(AcceptError::Io(error.into())),
            };
            prepare(&socket);
            let end = Endpoint::new(Arc::new(socket))?;
            let peer = peer.and_then(address_of);
            if self.key.is_none() {
                clients.last_accepted = peer;
                return Ok(Turn::Accepted(Box::new(end)));
            }
            self.begin_handshake(&mut clients, end, peer, now)?;
        }
        self.set_alarm(&mut clients)?;
        Ok(Turn::Wait)
    }

    /// Sends the challenge to a new client. If there are too many clients then, drops the oldest.
    fn begin_handshake(
        &self,
        clients: &mut Clients,
        end: Endpoint,
        peer: Option<Address>,
        now: Instant,
    ) -> Result<(), AcceptError> {
        let (state, (kind, said)) = Listening::begin()?;
        // This is the first message on the socket, so there is space for it unless the client is
        // gone.
        if say(&end, kind, &said).is_err() {
            return Err(AcceptError::Refused { peer, error: AuthError::Closed });
        }
        epoll::add(&self.set, end.socket(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(io::Error::from)?;
        // A timeout that the clock cannot represent becomes a very late deadline.
        let deadline = now.checked_add(self.handshake_timeout).unwrap_or(now + FOREVER);
        clients.handshakes.push(Handshake { end, peer, state, deadline });
        if clients.handshakes.len() > HANDSHAKES_MAX {
            return Err(self.give_up(clients, 0));
        }
        Ok(())
    }

    /// Drops a client that is out of time, or whose place or descriptor is needed for another
    /// client.
    fn give_up(&self, clients: &mut Clients, at: usize) -> AcceptError {
        let (_, peer) = self.remove(clients, at);
        AcceptError::Refused { peer, error: AuthError::TimedOut }
    }

    fn remove(&self, clients: &mut Clients, at: usize) -> (Endpoint, Option<Address>) {
        let Handshake { end, peer, .. } = clients.handshakes.remove(at);
        // Remove the socket from the set explicitly. An accepted socket stays open, and a forked
        // copy of this process may hold the socket too. The set would then report it ready for
        // ever, though no code here could read it.
        let _ = epoll::delete(&self.set, end.socket());
        (end, peer)
    }

    /// Sets the timer to the earliest deadline of a handshake, so that the set becomes ready then.
    fn set_alarm(&self, clients: &mut Clients) -> io::Result<()> {
        let first = clients.handshakes.iter().map(|one| one.deadline).min();
        if first != clients.alarm {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let it_value = left(first).map_or(zero, |left| match left == zero {
                // Zero would disarm the timer.
                true => Timespec { tv_sec: 0, tv_nsec: 1 },
                false => left,
            });
            let time = Itimerspec { it_interval: zero, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
            clients.alarm = first;
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsFd for Listener {
    /// Returns a descriptor that is readable when [`accept_timeout`](Self::accept_timeout) has
    /// something to do: a client has connected or has sent something. The call may still accept no
    /// client.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}
