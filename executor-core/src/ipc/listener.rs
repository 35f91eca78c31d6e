//! Connections between processes that do not know each other: one listens at an address, others come.
//!
//! ```text
//!                ┌─ the listening socket
//!   epoll set ───┼─ clients in their handshakes, at most 256     accept: looks at all of them, returns the first that
//!                ├─ a timer: the first of them has no time left           is done; otherwise waits for the set
//!                └─ the bell that `close` rings
//! ```
//!
//! No thread stands behind it. Handshakes of many clients go on side by side within whatever calls of `accept` there are,
//! so a client that says nothing holds up nobody: it is dropped after a limit, or when 256 others have come.
//!
//! What clients do is looked at under one lock, which `close` and other calls wait for. So nothing under it waits, and
//! nothing goes on for as long as clients like: a handshake ends after a number of messages that the client cannot change
//! (`auth.rs`), a message after a number of bytes, and a call takes in as many new clients as there may be at a time.

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
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind,
        connect, listen, socket_with, sockopt,
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
    readiness::{Attempt, Deadline, Readiness, deadline_in, has_passed, left, poll_until, wait_for},
};
use crate::os::{fork::Origin, random, socket::retry, wake::Bell};

/// As many as the system lets wait to be accepted.
const BACKLOG: i32 = 4096;

/// Clients that are in their handshakes at a time. More: so many descriptors for those who say nothing. Less: who is slow is
/// dropped for those who come later.
const HANDSHAKES_MAX: usize = 256;

/// For a handshake, once the other side has begun it.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Instead of a limit that the clock cannot tell.
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
/// With a [key](Self::authkey), who knows it: both sides prove that to each other by HMAC-SHA-256 of random numbers, before a
/// byte of a message is decoded. Without one, everybody who can reach the address. Nothing is encrypted. What an
/// authenticated client sends is decoded as the type says; handles of shared objects and descriptors travel through Unix
/// sockets, never through TCP.
///
/// # What clients can do to it
///
/// A client with a wrong key, half a message or a wild length, or one that says something twice, is an error of the one
/// [`accept`](Self::accept) that finds out, and the next one goes on. One that says nothing, and one that never stops
/// talking, holds up nobody; it is dropped after [some seconds](Self::auth_timeout), or earlier when 256 others have come or
/// there is no descriptor left for one that comes.
///
/// What is not kept out: who opens 256 connections in less time than a good client needs for its answer crowds it out, and
/// it has to come again.
///
/// # Its end
///
/// [`close`](Self::close) and dropping end it; the file of a Unix socket is removed. If the process is killed, the file stays
/// until the next listener on that path removes it; an [`Abstract`](Address::Abstract) address leaves nothing.
/// Connections that were accepted live on.
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    /// Of a Unix socket with a name: what the file is that is ours.
    file: Option<File>,
    key: Option<AuthKey>,
    limit: Duration,
    set: Arc<OwnedFd>,
    /// In the set, so that who awaits or polls it learns of the time as well.
    timer: OwnedFd,
    bell: Bell,
    closed: AtomicBool,
    clients: Mutex<Clients>,
    readiness: Readiness,
    origin: Origin,
}

#[derive(Default)]
struct Clients {
    /// The oldest first.
    handshakes: Vec<Handshake>,
    /// What the timer is set to.
    alarm: Deadline,
    last_accepted: Option<Address>,
}

/// What one look at the clients has come to.
enum Turn {
    Accepted(Box<Endpoint>),
    /// Nothing is to be done before the set is ready.
    Wait,
    /// There may be more clients than were looked at.
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

/// Why no client was accepted.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The listener is closed.
    #[error("the listener is closed")]
    Closed,
    /// Nobody came within the limit. Only from [`Listener::accept_timeout`].
    #[error("no client came in time")]
    TimedOut,
    /// One client came and was not believed. The listener goes on.
    #[error("a client was refused: {error}")]
    #[non_exhaustive]
    Refused {
        /// Where it came from, if it has an address.
        peer: Option<Address>,
        /// Why.
        error: AuthError,
    },
    /// The system refused, perhaps because this process has too many open files. The client still waits.
    #[error("accepting failed: {0}")]
    Io(#[from] io::Error),
}

crate::debug::debug_is_display!(AcceptError, ConnectError);

/// Why there is no connection.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The two sides do not have the same key.
    #[error("could not authenticate at `{address}`: {error}")]
    #[non_exhaustive]
    Auth {
        /// Where.
        address: Address,
        /// Why.
        error: AuthError,
    },
    /// Nobody listens there, or the system refused.
    #[error("could not connect to `{address}`: {error}")]
    #[non_exhaustive]
    Io {
        /// Where.
        address: Address,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl Listener {
    /// Listens at an address; [`Address::any`] and port 0 let the system choose.
    ///
    /// # Errors
    /// The system's: the address is in use, or not allowed.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (socket, address, file) = match address {
            Address::Tcp(host, port) => {
                let (socket, address) = bind_tcp(host, *port)?;
                (socket, address, None)
            }
            Address::Abstract(name) => {
                let name = match name.is_empty() {
                    true => format!("executor-{:032x}", u128::from_ne_bytes(random::bytes()?)).into_bytes(),
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
        let bell = Bell::new()?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
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
            origin: Origin::here(),
        })
    }

    /// Accepts only who knows this key. An empty one is a key as well.
    #[must_use]
    pub fn authkey(mut self, key: AuthKey) -> Self {
        self.key = Some(key);
        self
    }

    /// How long a client's handshake may take; ten seconds, if nothing else is said.
    #[must_use]
    pub fn auth_timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Where it listens; with what the system has chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where the client came from that was accepted last; `None` if there was none yet, or it has no address, as nearly all
    /// clients of Unix sockets.
    pub fn last_accepted(&self) -> Option<Address> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).last_accepted.clone()
    }

    /// Waits for a client, and for its handshake.
    ///
    /// Threads may do so at the same time; each client goes to one of them.
    ///
    /// # Errors
    /// [`Refused`](AcceptError::Refused) if a client does not know the key: call it again for the next one. See
    /// [`incoming`](Self::incoming) for a loop that does. [`Closed`](AcceptError::Closed) when it is closed, also meanwhile.
    pub fn accept<S, R>(&self) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(None)
    }

    /// As [`accept`](Self::accept), waiting no longer than this.
    ///
    /// # Errors
    /// [`TimedOut`](AcceptError::TimedOut) if nobody came.
    pub fn accept_timeout<S, R>(&self, limit: Duration) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(deadline_in(Some(limit)))
    }

    /// As [`accept`](Self::accept), awaited.
    ///
    /// # Cancel safety
    /// A future that is dropped has accepted nobody.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
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

    /// All clients to come, until the listener is closed. Those that are refused are left out.
    ///
    /// While the system has no descriptor left for another one, it tries again every 50 ms.
    pub fn incoming<S, R>(&self) -> impl Iterator<Item = Connection<S, R>> {
        std::iter::from_fn(move || {
            loop {
                match self.accept() {
                    Ok(connection) => return Some(connection),
                    Err(AcceptError::Closed) => return None,
                    Err(AcceptError::Io(_)) => {
                        // Ends earlier if it is closed.
                        let bell = rustix::event::PollFd::new(&self.bell, rustix::event::PollFlags::IN);
                        let _ = poll_until(&mut [bell], deadline_in(Some(Duration::from_millis(50))));
                    }
                    Err(_) => {}
                }
            }
        })
    }

    /// Ends it: who waits in `accept`, and who calls it later, is told so.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) || self.origin.forked() {
            return;
        }
        self.bell.ring();
        // From now on clients are refused, also those that nobody has accepted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
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

    /// One look at all clients.
    fn accept_now(&self) -> Result<Turn, AcceptError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::SeqCst) {
            return Err(AcceptError::Closed);
        }
        // The oldest first, and before somebody is dropped for want of time or room: it may have answered meanwhile.
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
        // Before others come: the system may have no descriptor for them as long as these have theirs.
        let now = Instant::now();
        if let Some(at) = clients.handshakes.iter().position(|one| one.deadline <= now) {
            return Err(self.give_up(&mut clients, at));
        }
        for came in 0.. {
            if came == HANDSHAKES_MAX {
                return Ok(Turn::Again);
            }
            let (socket, peer) = match retry(|| acceptfrom_with(&self.socket, SocketFlags::CLOEXEC)) {
                Ok(client) => client,
                Err(Errno::AGAIN) => break,
                // It has gone away already.
                Err(Errno::CONNABORTED | Errno::PROTO) => continue,
                Err(_) if self.closed.load(Ordering::SeqCst) => return Err(AcceptError::Closed),
                // The system looks for a free descriptor before it looks for a client: so is there one?
                Err(Errno::MFILE | Errno::NFILE) if !clients.handshakes.is_empty() => {
                    if !wait_for(self.socket.as_fd(), rustix::event::PollFlags::IN, Some(now))? {
                        break;
                    }
                    // Those that say nothing may not keep it out by having all descriptors.
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
            // The first message of a connection: there is room for it, or the client is gone.
            if say(&end, kind, &said).is_err() {
                return Err(AcceptError::Refused { peer, error: AuthError::Closed });
            }
            epoll::add(&self.set, end.socket(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)
                .map_err(io::Error::from)?;
            // Further away than the clock can tell is as far as it can.
            let deadline = now.checked_add(self.limit).unwrap_or(now + FOREVER);
            clients.handshakes.push(Handshake { end, peer, state, deadline });
            if clients.handshakes.len() > HANDSHAKES_MAX {
                return Err(self.give_up(&mut clients, 0));
            }
        }
        self.set_alarm(&mut clients)?;
        Ok(Turn::Wait)
    }

    /// Drops a client for want of time or room.
    fn give_up(&self, clients: &mut Clients, at: usize) -> AcceptError {
        let (_, peer) = self.remove(clients, at);
        AcceptError::Refused { peer, error: AuthError::TimedOut }
    }

    fn remove(&self, clients: &mut Clients, at: usize) -> (Endpoint, Option<Address>) {
        let Handshake { end, peer, .. } = clients.handshakes.remove(at);
        // Not only because an accepted end lives on: a copy of this process may have the socket as well, and the set would
        // be ready for ever for one that nobody here can look at.
        let _ = epoll::delete(&self.set, end.socket());
        (end, peer)
    }

    /// Makes the set ready when the first of those that are waited for has no time left.
    fn set_alarm(&self, clients: &mut Clients) -> io::Result<()> {
        let first = clients.handshakes.iter().map(|one| one.deadline).min();
        if first != clients.alarm {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let it_value = left(first).map_or(zero, |left| match left == zero {
                // Zero would mean none.
                true => Timespec { tv_sec: 0, tv_nsec: 1 },
                false => left,
            });
            let time = Itimerspec { it_interval: zero, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
            clients.alarm = first;
        }
        Ok(())
    }

    /// What has come of a handshake, if it has ended.
    fn advance(&self, handshake: &mut Handshake) -> Option<Result<(), AuthError>> {
        let key = self.key.as_ref()?;
        // Ends, though the peer may send for ever: no state of the machine comes twice.
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
    /// Readable when there is something to do for [`accept_timeout`](Self::accept_timeout): a client has come, or has said
    /// something. It may be that none is accepted yet.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

/// Goes to where a [`Listener`] is.
#[derive(Debug)]
pub struct Client(());

impl Client {
    /// Connects, and authenticates both sides if there is a key.
    ///
    /// With a key it waits until the listener accepts. Without one it does not: if the listener wants a key, the first
    /// message to be received says so.
    ///
    /// # Errors
    /// If nobody listens there, or the keys differ.
    pub fn connect<S, R>(address: &Address, key: Option<&AuthKey>) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_until(address, key, None)
    }

    /// As [`connect`](Self::connect), waiting no longer than this.
    ///
    /// # Errors
    /// As there, and if it takes longer.
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
            Address::Unix(path) => {
                SocketAddrUnix::new(path).map_err(Into::into).and_then(|at| connect_unix(&at, deadline))
            }
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

/// The client's side of a handshake.
fn ask(end: &Endpoint, key: &AuthKey, mut deadline: Deadline) -> Result<(), AuthError> {
    let (mut state, (kind, said)) = Asking::begin();
    say(end, kind, &said).map_err(|_| AuthError::Closed)?;
    loop {
        let heard: Received = end.receive(LEN_MAX, deadline, true).map_err(|error| not_heard(&error))?;
        // It has been accepted: from now on the listener answers at once.
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

/// Never waits: a peer that has not read the little there was before has no business here.
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
    // std sets what is usual (no waiting for the port of a predecessor), tries all addresses of a name, and
    // makes it close-on-exec; its backlog is replaced.
    let listener = std::net::TcpListener::bind((host, port))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.into();
    let socket = OwnedFd::from(listener);
    listen(&socket, BACKLOG)?;
    Ok((socket, address))
}

/// Binds a path. A file that a listener has left which was killed is removed: nobody listens there any more.
///
/// Between "nobody listens" and "removed" another process could begin to listen, so the folder is locked meanwhile; by all
/// that bind in this way.
fn bind_path(path: &Path) -> io::Result<(OwnedFd, File)> {
    let address = SocketAddrUnix::new(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
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

/// Whether it is ours. Those who hold it do so for some microseconds; if somebody else does for longer, we go without.
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
    // Any other file refuses connections as well.
    let is_socket = lstat(path).is_ok_and(|now| FileType::from_raw_mode(now.st_mode) == FileType::Socket);
    let probe = || -> io::Result<()> { Ok(connect(&unix_socket(SocketFlags::NONBLOCK)?, address)?) };
    is_socket && probe().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn connect_unix(address: &SocketAddrUnix, deadline: Deadline) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketFlags::empty())?;
    loop {
        // It waits only if the listener's backlog is full.
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

/// Of TCP: small messages go at once, and a machine that has vanished is noticed within two minutes.
fn prepare(socket: &OwnedFd) {
    // Errors mean that it is no TCP socket.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    if sockopt::set_tcp_keepidle(socket, Duration::from_secs(60)).is_ok() {
        let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10));
        let _ = sockopt::set_tcp_keepcnt(socket, 6);
        let _ = sockopt::set_socket_keepalive(socket, true);
    }
}
