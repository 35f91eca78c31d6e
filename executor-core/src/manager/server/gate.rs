//! The gate: where clients come in that have the address of a server, and not its door.
//!
//! ```text
//!  owner ── a socket that listens ──► leader ──► gate: a thread, and an epoll of its own
//!                                                 │ accept
//!                                                 ▼
//!                                               meetings, at most 128, each with a deadline
//!                                                 │ both sides know each other
//!            the client gets a copy of the door ◄─┤ Unix socket
//!            leader: a new guest ◄── Late ◄───────┘ TCP
//! ```
//!
//! The thread never touches an object, and decodes nothing of a peer before the peer has shown that
//! it knows the key. A meeting is a state machine (`manager/link`). A peer that says nothing, half
//! of something or garbage costs one of the places, until its deadline at most, and no thread.
//!
//! If peers take all places, the oldest one has to leave. So an attacker who reaches the address
//! can keep others from coming in while it makes connections faster than they do. It does not
//! disturb those that are in.
//!
//! If this process has no descriptor left for another peer, the oldest meeting has to leave. If
//! there is none, the gate pauses for a moment.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
    net::{SocketFlags, accept_with},
};

#[cfg(feature = "tls")]
use super::super::{
    client::door::check_knock,
    link::{far, stream, tls::TlsServer},
};
use super::{
    super::{
        client::Door,
        link::{MeetError, Progress, Waits, local::LocalMeeting},
    },
    crew::Late,
};
use crate::{
    ipc::{AuthKey, SocketFile},
    os::{
        eventfd::EventFd,
        fork::NotInherited,
        socket::{self, retry},
        std_or_model::lock,
    },
    unwind::catch,
};

/// How long a peer may take until both sides know each other. With a lower value, clients on slow
/// networks do not get in. With a higher value, silent peers keep their places for longer.
const MEETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of peers that are not known yet. With a lower value, fewer strangers are enough
/// to crowd out a client. With a higher value, they cost more descriptors and memory.
const MEETINGS_MAX: usize = 128;
/// Maximum number of peers that are accepted at a socket before others get a turn.
const ACCEPT_TURN: usize = 32;
/// How long the gate accepts nobody when there are no descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// What the owner asks of a server: to accept clients at a socket, which comes with the message.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::manager) struct ListenOrder {
    /// The answer repeats it.
    pub(in crate::manager) number: u32,
    /// The file of a Unix socket, which the server removes at its end. Device, inode and path.
    pub(in crate::manager) file: Option<(u64, u64, PathBuf)>,
}

/// The first byte of a message from the owner that asks the server to listen. Any other message
/// ends the server.
const LISTEN: u8 = b'L';
/// The first byte of the answer.
const ANSWER: u8 = b'A';
/// Maximum length of an order, and of an answer. A path of a Unix socket is shorter than 108 bytes
/// where it is bound, and may be longer as an absolute path.
pub(in crate::manager) const ORDER_BYTES_MAX: usize = 8192;

impl ListenOrder {
    pub(in crate::manager) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![LISTEN];
        out.extend_from_slice(&self.number.to_le_bytes());
        if let Some((device, inode, path)) = &self.file {
            out.extend_from_slice(&device.to_le_bytes());
            out.extend_from_slice(&inode.to_le_bytes());
            out.extend_from_slice(path.as_os_str().as_bytes());
        }
        out
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (LISTEN, rest) = bytes.split_first().map(|(kind, rest)| (*kind, rest))? else {
            return None;
        };
        let (number, rest) = rest.split_first_chunk()?;
        let number = u32::from_le_bytes(*number);
        if rest.is_empty() {
            return Some(ListenOrder { number, file: None });
        }
        let (device, rest) = rest.split_first_chunk()?;
        let (inode, path) = rest.split_first_chunk()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        let file = Some((u64::from_le_bytes(*device), u64::from_le_bytes(*inode), path));
        Some(ListenOrder { number, file })
    }

    /// Returns the answer to this order.
    pub(super) fn answer(&self, done: &io::Result<()>) -> Vec<u8> {
        let mut out = vec![ANSWER];
        out.extend_from_slice(&self.number.to_le_bytes());
        if let Err(error) = done {
            out.extend_from_slice(error.to_string().as_bytes());
        }
        out
    }

    /// Reads an answer. Returns `None` if it is one to another order.
    pub(in crate::manager) fn read_answer(&self, bytes: &[u8]) -> Option<Result<(), String>> {
        let (number, text) = bytes.strip_prefix(&[ANSWER])?.split_first_chunk()?;
        if *number != self.number.to_le_bytes() {
            return None;
        }
        Some(match text {
            [] => Ok(()),
            text => Err(String::from_utf8_lossy(text).into_owned()),
        })
    }
}

/// What the gate is made of.
pub(super) struct GateSetup {
    /// What clients have to know. Without it, the server does not listen anywhere.
    pub(super) key: Option<AuthKey>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<TlsServer>,
    pub(super) meeting_timeout: Duration,
}

impl Default for GateSetup {
    fn default() -> Self {
        GateSetup {
            key: None,
            #[cfg(feature = "tls")]
            tls: None,
            meeting_timeout: MEETING_TIMEOUT,
        }
    }
}

/// The gate of a server.
pub(super) struct Gate {
    setup: GateSetup,
    door: Arc<Door>,
    late: Arc<Late>,
    orders: Mutex<Orders>,
    /// Wakes the thread.
    signal: EventFd,
}

#[derive(Default)]
struct Orders {
    /// Whether there is a thread.
    begun: bool,
    closed: bool,
    /// Sockets that the thread has not seen yet.
    new: Vec<Place>,
    /// All sockets.
    sockets: Vec<Arc<NotInherited>>,
    /// The files of Unix sockets.
    files: Vec<SocketFile>,
}

impl Gate {
    pub(super) fn new(setup: GateSetup, door: Arc<Door>, late: Arc<Late>) -> io::Result<Arc<Self>> {
        let (orders, signal) = (Mutex::default(), EventFd::new()?);
        Ok(Arc::new(Gate { setup, door, late, orders, signal }))
    }

    /// Accepts clients at a socket, from now on.
    pub(super) fn listen(
        self: &Arc<Self>,
        socket: OwnedFd,
        file: Option<SocketFile>,
    ) -> io::Result<()> {
        if self.setup.key.is_none() {
            return Err(io::Error::other("it has no key"));
        }
        let mut orders = lock(&self.orders);
        if !orders.begun {
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let data = Source::Signal.to_data();
            epoll::add(&poll, &self.signal, data, epoll::EventFlags::IN)?;
            let gate = Arc::clone(self);
            let thread = thread::Builder::new().name("executor-gate".to_owned());
            thread.spawn(move || gate.run(poll))?;
            orders.begun = true;
        }
        let is_local = socket::is_one(socket.as_fd());
        check_accept(socket.as_fd())?;
        let socket = Arc::new(NotInherited::new(socket));
        orders.sockets.push(Arc::clone(&socket));
        orders.new.push(Place { socket, is_local });
        orders.files.extend(file);
        drop(orders);
        self.signal.ring();
        Ok(())
    }

    /// Ends the thread, closes the addresses, and removes the files of Unix sockets. Afterwards
    /// others can listen there.
    pub(super) fn close(&self) {
        let (sockets, files) = {
            let mut orders = lock(&self.orders);
            orders.closed = true;
            (std::mem::take(&mut orders.sockets), std::mem::take(&mut orders.files))
        };
        for socket in sockets.iter().filter_map(|socket| socket.get()) {
            // The thread closes it later.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        kill_point!(GateCloses);
        files.iter().for_each(SocketFile::remove);
        self.signal.ring();
    }

    fn run(&self, poll: OwnedFd) {
        let mut keeper = Keeper {
            gate: self,
            poll,
            places: Vec::new(),
            meetings: BTreeMap::new(),
            last: 0,
            paused_until: None,
            is_short: false,
        };
        let ended = catch(|| keeper.keep());
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("its gate cannot wait: {error}"),
            Err(panic) => format!("its gate panicked: {panic}"),
        };
        // A server that nobody can reach any more says so by its end.
        self.late.fail(why);
    }
}

/// What a descriptor of the gate's epoll is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Signal,
    /// A socket that listens, by its position.
    Place(usize),
    Meeting(u64),
}

impl Source {
    fn to_data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Source::Signal => 0,
            Source::Place(at) => (at as u64) << 1 | 1,
            // Numbers of meetings begin at 1.
            Source::Meeting(number) => number << 1,
        })
    }

    fn from_data(data: epoll::EventData) -> Self {
        match data.u64() {
            0 => Source::Signal,
            data if data & 1 == 1 => Source::Place((data >> 1) as usize),
            data => Source::Meeting(data >> 1),
        }
    }
}

/// A socket that listens.
struct Place {
    socket: Arc<NotInherited>,
    is_local: bool,
}

/// The socket of a peer.
enum Accepted {
    Local(OwnedFd),
    /// So that the peer notices the end of this process, and of the connection.
    Far(
        #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "nobody meets it"))]
        NotInherited,
    ),
}

enum Meeting {
    Local(LocalMeeting),
    #[cfg(feature = "tls")]
    Far(far::Meeting),
}

impl Meeting {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Meeting::Local(meeting) => Some(meeting.socket()),
            #[cfg(feature = "tls")]
            Meeting::Far(meeting) => meeting.socket().get(),
        }
    }
}

/// A peer that is not known yet.
struct Peer {
    meeting: Meeting,
    waits: Waits,
    deadline: Instant,
}

/// How far a peer has come.
enum Met {
    NotYet(Waits),
    /// The client has the door, and knocks there.
    HasDoor,
    #[cfg(feature = "tls")]
    Far(Box<far::FarEnd>),
}

/// The thread of the gate.
struct Keeper<'a> {
    gate: &'a Gate,
    poll: OwnedFd,
    places: Vec<Place>,
    /// The oldest first, which has the earliest deadline.
    meetings: BTreeMap<u64, Peer>,
    /// Number of the last meeting.
    last: u64,
    paused_until: Option<Instant>,
    /// Whether the system has refused a descriptor, and nobody was accepted since.
    is_short: bool,
}

impl Keeper<'_> {
    /// Keeps the gate until it is closed.
    fn keep(&mut self) -> io::Result<()> {
        let none =
            epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; 64];
        loop {
            let first = self.meetings.values().next().map(|peer| peer.deadline);
            let next = first.into_iter().chain(self.paused_until).min();
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            // The timeouts are seconds, so all of them can be represented.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let count = match epoll::wait(&self.poll, &mut events[..], timeout.as_ref()) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                let epoll::Event { data, .. } = *event;
                match Source::from_data(data) {
                    Source::Signal => {
                        if self.take_orders()? {
                            return Ok(());
                        }
                    }
                    Source::Place(at) => self.accept_at(at),
                    Source::Meeting(number) => self.advance(number),
                }
            }
            self.look_at_clock();
        }
    }

    /// Takes new sockets. Returns whether the gate is closed.
    fn take_orders(&mut self) -> io::Result<bool> {
        self.gate.signal.clear();
        let (new, closed) = {
            let mut orders = lock(&self.gate.orders);
            (std::mem::take(&mut orders.new), orders.closed)
        };
        for place in new {
            if let Some(socket) = place.socket.get() {
                let data = Source::Place(self.places.len()).to_data();
                epoll::add(&self.poll, socket, data, self.interest_in_places())?;
            }
            self.places.push(place);
        }
        Ok(closed)
    }

    fn interest_in_places(&self) -> epoll::EventFlags {
        match self.paused_until {
            None => epoll::EventFlags::IN,
            Some(_) => epoll::EventFlags::empty(),
        }
    }

    /// Accepts peers.
    fn accept_at(&mut self, at: usize) {
        if self.paused_until.is_some() {
            // It was reported before the pause.
            return;
        }
        let mut let_in = false;
        for _ in 0..ACCEPT_TURN {
            let Some(place) = self.places.get(at) else { return };
            let (is_local, Some(listener)) = (place.is_local, place.socket.get()) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accept = || Ok(retry(|| accept_with(listener, flags))?);
            let accepted: io::Result<Accepted> = match is_local {
                true => accept().map(Accepted::Local),
                false => NotInherited::open(accept).map(Accepted::Far),
            };
            match accepted {
                Ok(socket) => {
                    (self.is_short, let_in) = (false, true);
                    self.begin(socket);
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::AGAIN) => return,
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        // The kernel looks for a descriptor before it looks for a peer, so this
                        // error does not mean that there is one.
                        if !has_come(listener) {
                            return;
                        }
                        if !std::mem::replace(&mut self.is_short, true) {
                            tracing::error!(%error, "a manager cannot accept another client");
                        }
                        if !self.let_oldest_go() {
                            return self.pause();
                        }
                    }
                    // The socket was shut down.
                    Some(Errno::INVAL | Errno::BADF) => {
                        let _ = epoll::delete(&self.poll, listener);
                        return;
                    }
                    // The peer has gone away already, or its network has.
                    _ => {}
                },
            }
        }
        if !let_in {
            // The system may refuse the call itself. Asking again at once would keep a processor
            // busy for ever.
            self.pause();
        }
        // The poll reports those that are left.
    }

    /// Accepts nobody for a moment.
    fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
        self.set_interest_in_places();
    }

    fn set_interest_in_places(&self) {
        let flags = self.interest_in_places();
        for (at, place) in self.places.iter().enumerate() {
            if let Some(socket) = place.socket.get() {
                // A socket that was shut down is not in the set any more.
                let _ = epoll::modify(&self.poll, socket, Source::Place(at).to_data(), flags);
            }
        }
    }

    /// Begins to get to know a peer.
    fn begin(&mut self, socket: Accepted) {
        kill_point!(GateAccepted);
        let begun = match catch(|| self.meet(socket)) {
            Ok(begun) => begun,
            Err(panic) => return tracing::error!(%panic, "a client at a manager's gate"),
        };
        let meeting = match begun {
            Ok(meeting) => meeting,
            Err(error) => return turned_away(&error),
        };
        self.last += 1;
        let number = self.last;
        let added = meeting.socket().map(|socket| {
            let data = Source::Meeting(number).to_data();
            epoll::add(&self.poll, socket, data, epoll::EventFlags::IN)
        });
        if let Some(Ok(())) = added {
            let deadline = Instant::now() + self.gate.setup.meeting_timeout;
            self.meetings.insert(number, Peer { meeting, waits: Waits::ToRead, deadline });
        }
        if self.meetings.len() > MEETINGS_MAX {
            self.let_oldest_go();
        }
    }

    fn meet(&self, socket: Accepted) -> Result<Meeting, MeetError> {
        let GateSetup { key: Some(key), .. } = &self.gate.setup else {
            return Err(MeetError::Protocol);
        };
        match socket {
            Accepted::Local(socket) => LocalMeeting::accept(socket, key).map(Meeting::Local),
            #[cfg(feature = "tls")]
            Accepted::Far(socket) if let Some(tls) = &self.gate.setup.tls => {
                far::Meeting::accept(socket, tls, key.clone()).map(Meeting::Far)
            }
            // The owner asks for no such socket.
            Accepted::Far(_) => Err(MeetError::Protocol),
        }
    }

    /// Goes on with a peer.
    fn advance(&mut self, number: u64) {
        let Some(peer) = self.meetings.get_mut(&number) else { return };
        let gate = self.gate;
        let met = match catch(|| advanced(&mut peer.meeting, gate)) {
            Ok(met) => met,
            Err(panic) => {
                tracing::error!(%panic, "a client at a manager's gate");
                self.forget(number);
                return;
            }
        };
        match met {
            Ok(Met::NotYet(waits)) => {
                kill_point!(GateHeard);
                if std::mem::replace(&mut peer.waits, waits) == waits {
                    return;
                }
                let flags = match waits {
                    Waits::ToRead => epoll::EventFlags::IN,
                    Waits::ToWrite => epoll::EventFlags::OUT,
                };
                if let Some(socket) = peer.meeting.socket() {
                    let data = Source::Meeting(number).to_data();
                    let _ = epoll::modify(&self.poll, socket, data, flags);
                }
            }
            Ok(Met::HasDoor) => {
                kill_point!(GateDoorGiven);
                self.forget(number);
            }
            #[cfg(feature = "tls")]
            Ok(Met::Far(end)) => {
                // The socket stays open, so it has to be taken out of the set.
                if let Some(socket) = end.socket().get() {
                    let _ = epoll::delete(&self.poll, socket);
                }
                self.meetings.remove(&number);
                kill_point!(GateFarMet);
                match check_knock(end.knock()) {
                    Ok(()) => self.gate.late.come(*end),
                    Err(why) => refuse(*end, why),
                }
            }
            Err(error) => {
                turned_away(&error);
                self.forget(number);
            }
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(peer) = self.meetings.remove(&number) else { return };
        // Closing it is not enough: a child that a user's function has forked may have a copy.
        if let Some(socket) = peer.meeting.socket() {
            let _ = epoll::delete(&self.poll, socket);
        }
    }

    /// Drops the peer that is here for longest. Returns whether there was one.
    fn let_oldest_go(&mut self) -> bool {
        let oldest = self.meetings.keys().next().copied();
        if let Some(number) = oldest {
            tracing::debug!("a client has to leave a manager's gate for another one");
            self.forget(number);
        }
        oldest.is_some()
    }

    /// Ends what has taken too long.
    fn look_at_clock(&mut self) {
        let now = Instant::now();
        while let Some((&number, peer)) = self.meetings.first_key_value()
            && peer.deadline <= now
        {
            turned_away(&MeetError::TimedOut);
            self.forget(number);
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.set_interest_in_places();
        }
    }
}

fn advanced(meeting: &mut Meeting, gate: &Gate) -> Result<Met, MeetError> {
    match meeting {
        Meeting::Local(meeting) => {
            let door = gate.door.socket().ok_or(MeetError::Closed)?;
            Ok(match meeting.advance(gate.door.id, door.as_fd())? {
                Progress::Waits(waits) => Met::NotYet(waits),
                Progress::Met(()) => Met::HasDoor,
            })
        }
        #[cfg(feature = "tls")]
        Meeting::Far(meeting) => Ok(match meeting.advance()? {
            Progress::Waits(waits) => Met::NotYet(waits),
            Progress::Met(end) => Met::Far(Box::new(end)),
        }),
    }
}

/// Tells a client that both sides know each other, and that it may not come in.
#[cfg(feature = "tls")]
pub(super) fn refuse(end: far::FarEnd, why: &str) {
    let (header, body) = stream::refusal(why);
    let (mut sender, _receiver) = end.into_ends(0);
    // A client that does not read it notices the end.
    let _ = sender.send(&header, body);
    let _ = sender.must_wake();
    tracing::warn!(%why, "a manager has refused a client");
}

fn turned_away(why: &MeetError) {
    // Anybody who reaches the address can cause it, so it must not fill a log.
    tracing::debug!(%why, "a manager has turned away a client");
}

/// Checks that the system lets this process accept somebody. In a sandbox that does not, clients
/// would wait for an answer, and the owner would not know why.
fn check_accept(listener: BorrowedFd<'_>) -> io::Result<()> {
    if has_come(listener) {
        // Somebody is there, who must not be dropped.
        return Ok(());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match retry(|| accept_with(listener, flags)) {
        Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS)) => Err(io::Error::other(
            format!("to accept clients (accept4): {}", io::Error::from(error)),
        )),
        _ => Ok(()),
    }
}

/// Whether somebody waits to be accepted.
fn has_come(listener: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    matches!(retry(|| poll(&mut fds, Some(&Timespec::default()))), Ok(1..))
}
