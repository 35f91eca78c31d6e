//! Connections between unrelated processes: one process listens at an address, and others connect.
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
//! client that says nothing delays no other client. It is dropped after a time limit, or when 256
//! other clients have come.
//!
//! One lock protects the clients, and `close` and other calls wait for that lock. So code that
//! holds it never blocks, and a client cannot prolong it:
//!
//! - A handshake ends after a fixed number of messages, which the client cannot change (`auth.rs`).
//! - A message of a handshake has a maximum length.
//! - One call takes in at most as many new clients as may be in their handshakes at a time.

use std::{
    fmt, io,
    net::{TcpStream, ToSocketAddrs},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::epoll,
    fs::{FileType, FlockOperation, Mode, OFlags, flock, lstat, open, unlink},
    io::Errno,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with,
        bind, connect, listen, socket_with, sockopt,
    },
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::io::Interest;

use super::{
    address::Address,
    auth::{Asking, AuthError, AuthKey, LEN_MAX, Listening, Step},
    connection::Connection,
    endpoint::{Endpoint, Outgoings, Received},
    error::{RecvError, SendError},
    message::Kind,
    readiness::{
        Attempt, Deadline, Readiness, deadline_in, has_passed, left, poll_until, wait_for,
    },
};
use crate::os::{eventfd::EventFd, fork::Creator, random, socket::retry};

/// Length of the queue of connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// Maximum number of clients in their handshakes at a time.
///
/// A lower value means that a slow client is dropped for others that come later. A higher value
/// means more descriptors spent on clients that say nothing.
const HANDSHAKES_MAX: usize = 256;

/// Default time limit for a handshake. A client applies it from the listener's first message on.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Used for time limits that the clock cannot represent.
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
/// client. It is dropped after [a time limit](Self::auth_timeout). It is dropped earlier if 256
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
    file: Option<File>,
    key: Option<AuthKey>,
    limit: Duration,
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

struct Handshake {
    end: Endpoint,
    peer: Option<Address>,
    state: Listening,
    deadline: Instant,
}

struct File {
    path: PathBuf,
    inode: (u64, u64),
}

/// The error of accepting a client.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The listener is closed.
    #[error("the listener is closed")]
    Closed,
    /// No client finished its handshake within the limit. Only from [`Listener::accept_timeout`].
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
    #[error("accepting failed: {0}")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_display!(AcceptError, ConnectError);

/// The error of connecting to a listener.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Authentication failed, for example because the two sides have different keys.
    #[error("could not authenticate at `{address}`: {error}")]
    #[non_exhaustive]
    Auth {
        /// The address of the listener.
        address: Address,
        /// The reason.
        error: AuthError,
    },
    /// No listener at this address, or the system refused.
    #[error("could not connect to `{address}`: {error}")]
    #[non_exhaustive]
    Io {
        /// The address that was given.
        address: Address,
        /// The system's error.
        #[source]
        error: io::Error,
    },
}

impl Listener {
    /// Listens at an address. With [`Address::any`] or port 0 a free one is chosen.
    ///
    /// # Errors
    /// The system's, for example if the address is in use or not allowed.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (socket, address, file) = match address {
            Address::Tcp(host, port) => {
                let (socket, address) = bind_tcp(host, *port)?;
                (socket, address, None)
            }
            Address::Abstract(name) => {
                let name = match name.is_empty() {
                    true => format!("executor-{:032x}", u128::from_ne_bytes(random::bytes()?))
                        .into_bytes(),
                    false => name.clone(),
                };
                let socket = unix_socket(SocketFlags::NONBLOCK)?;
                bind(&socket, &SocketAddrUnix::new_abstract_name(&name)?)?;
                listen(&socket, BACKLOG)?;
                (socket, Address::Abstract(name), None)
            }
            Address::Unix(path) => {
                let (socket, file) = bind_path(path)?;
                (socket, address.clone(), Some(file))
            }
        };
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
            limit: HANDSHAKE_LIMIT,
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

    /// Sets the time limit for a client's handshake. The default is ten seconds.
    #[must_use]
    pub fn auth_timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
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

    /// Like [`accept`](Self::accept), but waits no longer than `limit`.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept), and [`TimedOut`](AcceptError::TimedOut) if no client was
    /// accepted within the limit.
    pub fn accept_timeout<S, R>(&self, limit: Duration) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(deadline_in(Some(limit)))
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
        // Remove the file only if it is still ours: another listener may have replaced it.
        if let Some(File { path, inode }) = &self.file
            && lstat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == *inode)
        {
            let _ = unlink(path);
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
            match self.advance(&mut clients.handshakes[at]) {
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
            let peer = peer.and_then(address_of);
            prepare(&socket);
            let end = Endpoint::new(Arc::new(socket))?;
            let Some(_) = &self.key else {
                clients.last_accepted = peer;
                return Ok(Turn::Accepted(Box::new(end)));
            };
            let (state, (kind, said)) = Listening::begin()?;
            // This is the first message on the socket, so there is space for it unless the client
            // is gone.
            if say(&end, kind, &said).is_err() {
                return Err(AcceptError::Refused { peer, error: AuthError::Closed });
            }
            epoll::add(
                &self.set,
                end.socket(),
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN,
            )
            .map_err(io::Error::from)?;
            // A limit that the clock cannot represent becomes a very late deadline.
            let deadline = now.checked_add(self.limit).unwrap_or(now + FOREVER);
            clients.handshakes.push(Handshake { end, peer, state, deadline });
            if clients.handshakes.len() > HANDSHAKES_MAX {
                return Err(self.give_up(&mut clients, 0));
            }
        }
        self.set_alarm(&mut clients)?;
        Ok(Turn::Wait)
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

    /// Advances a handshake. Returns its result if it has ended.
    fn advance(&self, handshake: &mut Handshake) -> Option<Result<(), AuthError>> {
        let key = self.key.as_ref()?;
        // This loop ends even if the peer never stops sending: the handshake enters no state twice.
        loop {
            let heard = match handshake.end.receive(LEN_MAX, None, false) {
                Ok(heard) => heard,
                Err(RecvError::Empty) => return None,
                Err(error) => return Some(Err(not_heard(&error))),
            };
            match handshake.state.hear(key, heard.kind, heard.bytes()) {
                Step::Listen => {}
                Step::Say(kind, said) => {
                    if say(&handshake.end, kind, &said).is_err() {
                        return Some(Err(AuthError::Closed));
                    }
                }
                Step::SayAndBelieve(kind, said) => {
                    return Some(say(&handshake.end, kind, &said).map_err(|_| AuthError::Closed));
                }
                Step::Believe => return Some(Ok(())),
                Step::SayAndFail(kind, error) => {
                    let _ = say(&handshake.end, kind, &[]);
                    return Some(Err(error));
                }
            }
        }
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

/// Connects to a [`Listener`].
#[derive(Debug)]
pub struct Client(());

impl Client {
    /// Connects to a listener. With a key, both sides authenticate each other.
    ///
    /// With a key, the call waits until the listener accepts the client. Without a key it does not
    /// wait. If the listener requires a key, the first attempt to receive then returns an error
    /// that says so.
    ///
    /// # Errors
    /// If there is no listener at this address, or the keys differ.
    pub fn connect<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
    ) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_until(address, key, None)
    }

    /// Like [`connect`](Self::connect), but waits no longer than `limit`.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect), and if it takes longer than `limit`.
    pub fn connect_timeout<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
        limit: Duration,
    ) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_until(address, key, deadline_in(Some(limit)))
    }

    fn connect_until<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
        deadline: Deadline,
    ) -> Result<Connection<S, R>, ConnectError> {
        let connected = match address {
            Address::Tcp(host, port) => connect_tcp(host, *port, deadline),
            Address::Unix(path) => SocketAddrUnix::new(path)
                .map_err(Into::into)
                .and_then(|at| connect_unix(&at, deadline)),
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name)
                .map_err(Into::into)
                .and_then(|at| connect_unix(&at, deadline)),
        };
        let end = connected
            .and_then(|socket| Endpoint::new(Arc::new(socket)))
            .map_err(|error| ConnectError::Io { address: address.clone(), error })?;
        if let Some(key) = key {
            ask(&end, key, deadline)
                .map_err(|error| ConnectError::Auth { address: address.clone(), error })?;
        }
        Ok(Connection::over(end))
    }
}

/// Runs the client's side of a handshake.
fn ask(end: &Endpoint, key: &AuthKey, mut deadline: Deadline) -> Result<(), AuthError> {
    let (mut state, (kind, said)) = Asking::begin();
    say(end, kind, &said).map_err(|_| AuthError::Closed)?;
    loop {
        let heard: Received =
            end.receive(LEN_MAX, deadline, true).map_err(|error| not_heard(&error))?;
        // The listener is now calling `accept`, and a listener that accepts answers at once. So a
        // time limit applies from here on, even if the caller gave none.
        deadline = deadline.into_iter().chain(deadline_in(Some(HANDSHAKE_LIMIT))).min();
        match state.hear(key, heard.kind, heard.bytes()).map_err(|_| AuthError::Closed)? {
            Step::Say(kind, said) => say(end, kind, &said).map_err(|_| AuthError::Closed)?,
            Step::Believe => return Ok(()),
            Step::SayAndFail(kind, error) => {
                let _ = say(end, kind, &[]);
                return Err(error);
            }
            Step::SayAndBelieve(..) | Step::Listen => {}
        }
    }
}

/// Sends a message of the handshake without waiting. There are so few of them that a socket without
/// space for one belongs to a peer that does not read.
fn say(end: &Endpoint, kind: Kind, said: &[u8]) -> Result<(), SendError> {
    end.send(kind, Outgoings::Borrowed(said), &[], Some(Instant::now()))
}

fn not_heard(error: &RecvError) -> AuthError {
    match error {
        RecvError::Empty => AuthError::TimedOut,
        RecvError::Closed | RecvError::Truncated | RecvError::Io(_) => AuthError::Closed,
        _ => AuthError::NotAsked,
    }
}

fn address_of(address: SocketAddrAny) -> Option<Address> {
    if let Ok(address) = std::net::SocketAddr::try_from(address.clone()) {
        return Some(address.into());
    }
    let unix = SocketAddrUnix::try_from(address).ok()?;
    if let Some(name) = unix.abstract_name() {
        return Some(Address::Abstract(name.to_owned()));
    }
    use std::os::unix::ffi::OsStrExt;
    let path = unix.path_bytes().filter(|path| !path.is_empty())?;
    Some(Address::Unix(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned()))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

fn bind_tcp(host: &str, port: u16) -> io::Result<(OwnedFd, Address)> {
    // std sets the usual options (SO_REUSEADDR, close-on-exec) and tries all addresses of a host
    // name. Only its backlog is replaced below.
    let listener = std::net::TcpListener::bind((host, port))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.into();
    let socket = OwnedFd::from(listener);
    listen(&socket, BACKLOG)?;
    Ok((socket, address))
}

/// Binds a path. If a killed listener has left its file there, removes the file first.
///
/// Between the check that no process listens there and the removal, another process could begin to
/// listen, and its file would be removed. So the folder is locked meanwhile, by every process that
/// binds a path with this function.
fn bind_path(path: &Path) -> io::Result<(OwnedFd, File)> {
    let address = SocketAddrUnix::new(path)?;
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder =
        open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
    let locked = folder.as_ref().is_some_and(lock_folder);
    let socket = unix_socket(SocketFlags::NONBLOCK)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if locked && is_left_behind(path, &address) => {
            unlink(path)?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    listen(&socket, BACKLOG)?;
    let now = lstat(path)?;
    Ok((socket, File { path: path.to_owned(), inode: (now.st_dev, now.st_ino) }))
}

/// Tries to lock the folder and returns whether it did. Processes hold this lock for microseconds.
/// If another program holds it for longer, we continue without the lock, and then remove no file.
fn lock_folder(folder: &OwnedFd) -> bool {
    (0..100).any(|_| {
        let locked = flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !locked {
            std::thread::sleep(Duration::from_millis(1));
        }
        locked
    })
}

fn is_left_behind(path: &Path, address: &SocketAddrUnix) -> bool {
    // Check the type of the file as well: connecting to any other kind of file is refused too.
    let is_socket =
        lstat(path).is_ok_and(|now| FileType::from_raw_mode(now.st_mode) == FileType::Socket);
    let probe =
        || -> io::Result<()> { Ok(connect(&unix_socket(SocketFlags::NONBLOCK)?, address)?) };
    is_socket && probe().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn connect_unix(address: &SocketAddrUnix, deadline: Deadline) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketFlags::empty())?;
    loop {
        // Connecting to a Unix socket waits only if the listener's backlog is full.
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean no limit.
            sockopt::set_socket_timeout(
                &socket,
                sockopt::Timeout::Send,
                Some(left.max(Duration::from_millis(1))),
            )?;
        }
        match connect(&socket, address) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            other => {
                other?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
                return Ok(socket);
            }
        }
    }
}

fn connect_tcp(host: &str, port: u16, deadline: Deadline) -> io::Result<OwnedFd> {
    let stream = match deadline {
        None => TcpStream::connect((host, port))?,
        Some(deadline) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            let connected = (host, port).to_socket_addrs()?.find_map(|address| {
                let left = deadline.saturating_duration_since(Instant::now());
                TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1)))
                    .map_err(|error| last = error)
                    .ok()
            });
            connected.ok_or(last)?
        }
    };
    let socket = OwnedFd::from(stream);
    prepare(&socket);
    Ok(socket)
}

/// Sets options of TCP sockets. Small messages are sent at once, and a peer machine that has
/// vanished is noticed within two minutes.
fn prepare(socket: &OwnedFd) {
    // Errors mean that it is not a TCP socket.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    if sockopt::set_tcp_keepidle(socket, Duration::from_secs(60)).is_ok() {
        let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10));
        let _ = sockopt::set_tcp_keepcnt(socket, 6);
        let _ = sockopt::set_socket_keepalive(socket, true);
    }
}
