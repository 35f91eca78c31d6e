//! Messages over TCP and TLS.
//!
//! ```text
//!  FarSender                                   FarReceiver
//!  outbox: messages that found no room         recv ─► bytes of the socket      (no lock is held)
//!     │ at most 64 KiB at a time                  │
//!     ▼                                           ▼
//!  encrypt ────────────► Mutex<TLS> ◄───────── decrypt
//!     │                                           │
//!     ▼                                           ▼
//!  out ─► send         (no lock is held)       plain ─► header │ body, one message after the other
//! ```
//!
//! The lock of the TLS state is held while bytes are encrypted and decrypted, and never during a
//! system call. So a thread that receives holds up none that sends. Only the sender sends: what TLS
//! itself has to say after the handshake, such as an update of its keys, goes with the next
//! message.
//!
//! A meeting of two sides ([`Meeting`]) is a state machine on a socket that never blocks, for both
//! sides. Who waits for it polls, with a deadline. So a peer that says nothing, or one byte a
//! second, costs a place in the list of meetings until the deadline, and no thread.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    io::{self, BufRead, IoSlice, Write},
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};
use rustls::{ClientConnection, Connection, Error, ServerConnection};

use super::{
    LinkError, LinkReceiver, LinkSender, MeetError, Progress, WAIT_TIMEOUT, Waits,
    challenge::{Answer, Challenge, whole},
    stream::Stream,
    tls::{Pinned, TlsClient, TlsServer},
    wait_for,
};
use crate::{
    ipc::AuthKey,
    manager::client::door::KNOCK_BYTES,
    os::{fork::NotInherited, socket::retry, std_or_model::lock},
    transport::ring::lane::LANE_HEADER_BYTES,
};

/// What the key of a session is derived for.
const LABEL: &[u8] = b"executor manager";
/// Maximum number of bytes that are accepted before both sides know each other. A chain of long
/// certificates has some ten thousand.
const MEETING_BYTES_MAX: usize = 128 * 1024;
/// Number of bytes that are encrypted, or received, at a time. With a higher value, a large message
/// takes fewer system calls, and each connection that has one needs more memory.
const PIECE_BYTES: usize = 64 * 1024;
/// Number of bytes that are received at a time while there are no large messages: one full record
/// of TLS and a bit.
const SMALL_PIECE_BYTES: usize = 20 * 1024;

/// Number of bytes that are sent, or received, before others get a turn. With a higher value, one
/// client whose long messages come as fast as they are read holds up the others for longer. With a
/// lower value, long messages take more system calls.
const TURN_BYTES: usize = 16 * PIECE_BYTES;

/// Sets the options of a TCP socket. A machine that has vanished is noticed within about ten
/// seconds, whether or not something is being sent to it. So is a peer that lives and makes no room
/// for what is being sent to it: the system's time limit holds for both.
pub(crate) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::ioctl_fionbio(socket, true)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_user_timeout(socket, 10_000)?;
    Ok(())
}

/// What both ends of a side share.
struct Shared {
    socket: Arc<NotInherited>,
    tls: Mutex<Connection>,
}

/// One side of a meeting, on its way.
pub(crate) struct Meeting {
    shared: Arc<Shared>,
    stage: Stage,
    key: AuthKey,
    /// What the client says at the end. `None` for the server.
    knock: Option<[u8; KNOCK_BYTES]>,
    pinned: Option<Arc<Pinned>>,
    out: Out,
    /// What has arrived and was decrypted.
    plain: Vec<u8>,
    received: usize,
}

enum Stage {
    /// TLS's own handshake.
    Tls,
    Challenge(Challenge),
    /// The server waits for the client's knock.
    Knock,
    /// The client has said everything.
    Said,
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meeting").finish_non_exhaustive()
    }
}

impl Meeting {
    /// Begins as the server. The socket was accepted just now.
    pub(crate) fn accept(
        socket: NotInherited,
        tls: &TlsServer,
        key: AuthKey,
    ) -> Result<Self, MeetError> {
        let tls = ServerConnection::new(Arc::clone(&tls.0)).map_err(refused)?;
        Meeting::new(socket, tls.into(), key, None, None)
    }

    /// Begins as the client. The socket was connected just now.
    pub(crate) fn connect(
        socket: NotInherited,
        tls: &TlsClient,
        key: AuthKey,
        knock: [u8; KNOCK_BYTES],
    ) -> Result<Self, MeetError> {
        // A verifier of its own: the errors of two meetings at the same time are not mixed up.
        let (config, pinned) = tls.for_one_meeting();
        let tls = ClientConnection::new(config, tls.name.clone()).map_err(refused)?;
        Meeting::new(socket, tls.into(), key, Some(knock), pinned)
    }

    fn new(
        socket: NotInherited,
        mut tls: Connection,
        key: AuthKey,
        knock: Option<[u8; KNOCK_BYTES]>,
        pinned: Option<Arc<Pinned>>,
    ) -> Result<Self, MeetError> {
        let descriptor = socket.get().ok_or(MeetError::Closed)?;
        prepare(descriptor).map_err(|error| MeetError::io(&error))?;
        // What is encrypted is taken out at once.
        tls.set_buffer_limit(None);
        Ok(Meeting {
            shared: Arc::new(Shared { socket: Arc::new(socket), tls: Mutex::new(tls) }),
            stage: Stage::Tls,
            key,
            knock,
            pinned,
            out: Out::default(),
            plain: Vec::new(),
            received: 0,
        })
    }

    /// Returns the socket, to poll it.
    pub(crate) fn socket(&self) -> &Arc<NotInherited> {
        &self.shared.socket
    }

    /// Goes on as far as the socket allows. After an error, the meeting is over.
    pub(crate) fn advance(&mut self) -> Result<Progress<FarEnd>, MeetError> {
        let shared = Arc::clone(&self.shared);
        let socket = shared.socket.get().ok_or(MeetError::Closed)?;
        let mut tls = lock(&shared.tls);
        let advanced = self.advance_on(socket, &mut tls);
        if advanced.is_err() {
            // The peer is told why, if it reads. Nobody waits for that.
            self.out.take_from(&mut tls);
            let _ = self.out.send(socket);
        }
        advanced
    }

    fn advance_on(
        &mut self,
        socket: BorrowedFd<'_>,
        tls: &mut Connection,
    ) -> Result<Progress<FarEnd>, MeetError> {
        // It ends: each turn takes a step of the meeting, or receives some of a limited number of
        // bytes.
        loop {
            self.out.take_from(tls);
            if !self.out.send(socket).map_err(|error| MeetError::io(&error))? {
                return Ok(Progress::Waits(Waits::ToWrite));
            }
            if let Some(end) = self.end()? {
                return Ok(Progress::Met(end));
            }
            if self.step(tls)? {
                continue;
            }
            let mut bytes = [0; 4096];
            let len = match recv_with(RecvFlags::DONTWAIT, socket, &mut bytes) {
                Ok(Some(0)) => return Err(MeetError::Closed),
                Ok(Some(len)) => len,
                Ok(None) => return Ok(Progress::Waits(Waits::ToRead)),
                Err(error) => return Err(MeetError::io(&error)),
            };
            self.received += len;
            if self.received > MEETING_BYTES_MAX {
                return Err(MeetError::Protocol);
            }
            match decrypt(tls, &bytes[..len], &mut self.plain) {
                Ok(closed) if closed && !tls.is_handshaking() && !self.plain.is_empty() => {
                    // What the peer said before its end may be why.
                }
                Ok(true) => return Err(MeetError::Closed),
                Ok(false) => {}
                Err(error) => return Err(self.explained(error)),
            }
        }
    }

    /// Takes one step. Returns whether there was one to take.
    fn step(&mut self, tls: &mut Connection) -> Result<bool, MeetError> {
        let system = |error: io::Error| MeetError::io(&error);
        let said = match &mut self.stage {
            Stage::Tls if tls.is_handshaking() => return Ok(false),
            Stage::Tls => {
                // A digest that is made with this key is of use in this session only. So nobody can
                // pass on the challenge between two sessions of his own.
                let session = tls.export_keying_material([0; 32], LABEL, None);
                let key = self.key.bound_to(&session.map_err(refused)?);
                let (challenge, said) = match self.knock {
                    Some(_) => Challenge::ask(key),
                    None => Challenge::listen(key).map_err(system)?,
                };
                self.stage = Stage::Challenge(challenge);
                said
            }
            Stage::Challenge(challenge) => {
                let Some(len) = whole(&self.plain)? else { return Ok(false) };
                let answer = challenge.hear(&self.plain[..len]).map_err(system)?;
                self.plain.drain(..len);
                match answer {
                    Answer::Listen => Vec::new(),
                    Answer::Say(said) => said,
                    Answer::Believe(mut said) => {
                        self.stage = match self.knock {
                            None => Stage::Knock,
                            Some(knock) => {
                                said.extend_from_slice(&knock);
                                said.extend_from_slice(&[0; LANE_HEADER_BYTES - KNOCK_BYTES]);
                                Stage::Said
                            }
                        };
                        said
                    }
                    Answer::Fail(said, error) => {
                        // The error is what counts.
                        let _ = tls.writer().write_all(&said);
                        return Err(error.into());
                    }
                }
            }
            Stage::Said | Stage::Knock => return Ok(false),
        };
        tls.writer().write_all(&said).map_err(system)?;
        Ok(true)
    }

    /// Returns this side's end if both sides know each other, and everything is said.
    fn end(&mut self) -> Result<Option<FarEnd>, MeetError> {
        let knock = match self.stage {
            Stage::Said => [0; KNOCK_BYTES],
            Stage::Knock => {
                let Some(header) = self.plain.first_chunk::<LANE_HEADER_BYTES>() else {
                    return Ok(None);
                };
                let (knock, len) = header.split_first_chunk().expect("it is longer");
                if len != [0; LANE_HEADER_BYTES - KNOCK_BYTES] {
                    return Err(MeetError::Protocol);
                }
                let knock = *knock;
                self.plain.drain(..LANE_HEADER_BYTES);
                knock
            }
            Stage::Tls | Stage::Challenge(_) => return Ok(None),
        };
        let plain = std::mem::take(&mut self.plain);
        Ok(Some(FarEnd { shared: Arc::clone(&self.shared), knock, plain }))
    }

    fn explained(&self, error: Error) -> MeetError {
        let Error::InvalidCertificate(why) = &error else { return refused(error) };
        let found = self.pinned.as_ref().and_then(|pinned| {
            let found = (*lock(&pinned.refused))?;
            Some(format!("its certificate has the fingerprint {found}, not {}", pinned.expected))
        });
        MeetError::Untrusted(found.unwrap_or_else(|| format!("its certificate: {why}")))
    }

    /// Goes on until both sides know each other, at most until the deadline.
    pub(crate) fn wait(mut self, deadline: Option<Instant>) -> Result<FarEnd, MeetError> {
        loop {
            let waits = match self.advance()? {
                Progress::Met(end) => return Ok(end),
                Progress::Waits(Waits::ToRead) => PollFlags::IN,
                Progress::Waits(Waits::ToWrite) => PollFlags::OUT,
            };
            kill_point!(ClientMeets);
            let socket = self.socket().get().ok_or(MeetError::Closed)?;
            if !wait_for(socket, waits, deadline).map_err(|error| MeetError::io(&error))? {
                return Err(MeetError::TimedOut);
            }
        }
    }
}

/// Receives what a socket has. Returns `None` if it has nothing, and 0 at its end.
#[expect(clippy::disallowed_methods, reason = "of TCP, where nothing comes after a reset")]
fn recv_with(
    flags: RecvFlags,
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<Option<usize>> {
    match retry(|| recv(socket, &mut *bytes, flags)) {
        Ok((len, _)) => Ok(Some(len)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn refused(error: Error) -> MeetError {
    match error {
        Error::InvalidCertificate(why) => MeetError::Untrusted(format!("its certificate: {why}")),
        error => MeetError::Tls(error.to_string()),
    }
}

/// Decrypts what has arrived, and appends it. Returns whether the other side has said that nothing
/// more comes.
fn decrypt(tls: &mut Connection, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<bool, Error> {
    let general = |error: io::Error| Error::General(error.to_string());
    loop {
        if !bytes.is_empty() && tls.read_tls(&mut bytes).map_err(general)? == 0 {
            return Ok(true);
        }
        let state = tls.process_new_packets()?;
        let mut left = state.plaintext_bytes_to_read();
        let mut reader = tls.reader();
        while left > 0 {
            let chunk = reader.fill_buf().map_err(general)?;
            let len = chunk.len();
            plain.extend_from_slice(chunk);
            reader.consume(len);
            left = left.saturating_sub(len.max(1));
        }
        if state.peer_has_closed() {
            return Ok(true);
        }
        if bytes.is_empty() {
            return Ok(false);
        }
    }
}

/// Encrypted bytes on their way to the socket.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    sent: usize,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Takes what TLS has encrypted.
    fn take_from(&mut self, tls: &mut Connection) {
        while tls.wants_write() {
            // Writing to a vector does not fail.
            let _ = tls.write_tls(&mut self.bytes);
        }
    }

    /// Sends what finds room. Returns whether that was everything.
    fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, &self.bytes[self.sent..], flags) {
                Ok(len) => self.sent += len,
                Err(rustix::io::Errno::AGAIN) => {
                    if self.sent >= PIECE_BYTES {
                        // A peer that always leaves a bit unread would make this grow for ever.
                        self.bytes.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(false);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(2 * PIECE_BYTES);
        self.sent = 0;
        Ok(true)
    }
}

/// What a side has when both know each other.
pub(crate) struct FarEnd {
    shared: Arc<Shared>,
    knock: [u8; KNOCK_BYTES],
    /// What the other side has sent since.
    plain: Vec<u8>,
}

impl fmt::Debug for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarEnd").finish_non_exhaustive()
    }
}

impl FarEnd {
    /// Returns what the client said at the end. For the server.
    pub(crate) fn knock(&self) -> &[u8; KNOCK_BYTES] {
        &self.knock
    }

    /// Returns the socket, to poll it and to shut it down.
    pub(crate) fn socket(&self) -> &Arc<NotInherited> {
        &self.shared.socket
    }

    /// Returns both ends of this side. Neither ever blocks.
    pub(crate) fn into_ends(self, message_bytes_max: u64) -> (LinkSender, LinkReceiver) {
        let sender = FarSender {
            shared: Arc::clone(&self.shared),
            out: Out::default(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            encrypted: 0,
            failed: None,
        };
        let receiver = FarReceiver {
            shared: self.shared,
            raw: vec![0; SMALL_PIECE_BYTES],
            stream: Stream::new(self.plain, message_bytes_max),
            drained: false,
            over: None,
        };
        (LinkSender::Far(sender), LinkReceiver::Far(receiver))
    }
}

/// The end through which one side sends.
pub(crate) struct FarSender {
    shared: Arc<Shared>,
    out: Out,
    /// Messages that found no room, in order.
    outbox: VecDeque<([u8; LANE_HEADER_BYTES], Vec<u8>)>,
    outbox_bytes: usize,
    /// How many bytes of the first message of the outbox are encrypted.
    encrypted: usize,
    /// Why nothing can be sent any more.
    failed: Option<LinkError>,
}

impl FarSender {
    pub(super) fn send(
        &mut self,
        header: &[u8; LANE_HEADER_BYTES],
        body: Cow<'_, [u8]>,
    ) -> Result<(), LinkError> {
        let fits = body.len() <= PIECE_BYTES && self.out.len() < PIECE_BYTES;
        if fits && self.outbox.is_empty() {
            // It is written together with what comes before the next `must_wake`.
            return self.encrypt(header, &body);
        }
        self.outbox_bytes += header.len() + body.len();
        self.outbox.push_back((*header, body.into_owned()));
        self.flush().map(drop)
    }

    /// Encrypts a part of a message. Header and body are in one record if they fit.
    fn encrypt(&mut self, header: &[u8], body: &[u8]) -> Result<(), LinkError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let mut tls = lock(&self.shared.tls);
        let written = tls.writer().write_vectored(&[IoSlice::new(header), IoSlice::new(body)]);
        self.out.take_from(&mut tls);
        drop(tls);
        match written {
            Ok(len) if len == header.len() + body.len() => Ok(()),
            Ok(_) => self.fail(LinkError::Closed),
            Err(error) => self.fail(LinkError::Forged(error.to_string())),
        }
    }

    fn fail<R>(&mut self, error: LinkError) -> Result<R, LinkError> {
        self.failed = Some(error.clone());
        // Nobody will read it.
        self.out = Out::default();
        self.outbox.clear();
        self.outbox_bytes = 0;
        Err(error)
    }

    /// Sends what is encrypted. Returns whether that was everything.
    fn write(&mut self) -> Result<bool, LinkError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.out.is_empty() {
            return Ok(true);
        }
        let shared = Arc::clone(&self.shared);
        let Some(socket) = shared.socket.get() else { return self.fail(LinkError::Closed) };
        match self.out.send(socket) {
            Ok(all) => Ok(all),
            Err(error) => self.fail(LinkError::io(&error)),
        }
    }

    /// Sends what finds room, up to the length of a turn. The poll reports at once that there is
    /// room for the rest.
    pub(super) fn flush(&mut self) -> Result<bool, LinkError> {
        let mut turn = 0;
        while self.write()? {
            if turn >= TURN_BYTES {
                return Ok(self.is_flushed());
            }
            let Some((header, body)) = self.outbox.front_mut() else { return Ok(true) };
            let (header, body) = (*header, std::mem::take(body));
            let rest = &body[self.encrypted.saturating_sub(LANE_HEADER_BYTES)..];
            let header_rest = if self.encrypted == 0 { &header[..] } else { &[] };
            let part = &rest[..rest.len().min(PIECE_BYTES)];
            self.encrypt(header_rest, part)?;
            turn += part.len();
            self.encrypted += header_rest.len() + part.len();
            if self.encrypted == LANE_HEADER_BYTES + body.len() {
                self.outbox_bytes -= self.encrypted;
                self.outbox.pop_front();
                self.encrypted = 0;
            } else if let Some((_, place)) = self.outbox.front_mut() {
                *place = body;
            }
        }
        Ok(false)
    }

    /// Writes what `send` has kept. An error is told by the next call, and by the poll.
    pub(super) fn write_now(&mut self) {
        let _ = self.flush();
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty() && self.outbox.is_empty()
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.out.len() + self.outbox_bytes
    }

    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn socket(&self) -> &NotInherited {
        &self.shared.socket
    }
}

/// The end through which one side receives.
pub(crate) struct FarReceiver {
    shared: Arc<Shared>,
    /// Where the bytes of the socket are put, before they are decrypted.
    raw: Vec<u8>,
    /// What is decrypted.
    stream: Stream,
    /// Whether the socket had nothing more to give. The poll says when that has changed.
    drained: bool,
    /// Why nothing more comes.
    over: Option<LinkError>,
}

impl FarReceiver {
    /// Returns `false` also if a message is so long that others get a turn. The poll reports at
    /// once that there is more of it.
    pub(super) fn receive(&mut self, message: &mut Vec<u8>) -> Result<bool, LinkError> {
        let mut turn = 0;
        loop {
            if self.stream.next(message)? {
                return Ok(true);
            }
            if let Some(over) = &self.over {
                return Err(over.clone());
            }
            if self.drained || turn >= TURN_BYTES {
                return Ok(false);
            }
            turn += self.read(RecvFlags::DONTWAIT);
        }
    }

    /// Receives what the socket has, as far as it fits into the buffer. Returns how many bytes
    /// came.
    fn read(&mut self, flags: RecvFlags) -> usize {
        let Some(socket) = self.shared.socket.get() else {
            self.over = Some(LinkError::Closed);
            return 0;
        };
        let len = match recv_with(flags, socket, &mut self.raw) {
            Ok(Some(0)) => {
                self.over = Some(LinkError::Closed);
                return 0;
            }
            Ok(Some(len)) => len,
            Ok(None) => {
                self.drained = true;
                return 0;
            }
            Err(error) => {
                self.over = Some(LinkError::io(&error));
                return 0;
            }
        };
        self.drained = len < self.raw.len();
        let decrypted = {
            let mut tls = lock(&self.shared.tls);
            decrypt(&mut tls, &self.raw[..len], self.stream.arriving())
        };
        match decrypted {
            Ok(false) => {}
            Ok(true) => self.over = Some(LinkError::Closed),
            Err(error) => self.over = Some(LinkError::Forged(error.to_string())),
        }
        // Large messages get a larger buffer, until they are over.
        if !self.drained && self.raw.len() < PIECE_BYTES {
            self.raw.resize(PIECE_BYTES, 0);
        } else if len < SMALL_PIECE_BYTES && self.raw.len() > SMALL_PIECE_BYTES {
            self.raw = vec![0; SMALL_PIECE_BYTES];
        }
        len
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.stream.has_message()
    }

    pub(super) fn look(&mut self) -> bool {
        if self.announce_sleep() {
            self.read(RecvFlags::DONTWAIT);
        }
        !self.announce_sleep()
    }

    /// Lets [`wait`](Self::wait) wait.
    pub(super) fn prepare_to_wait(&self) -> io::Result<()> {
        let Some(socket) = self.shared.socket.get() else { return Ok(()) };
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(WAIT_TIMEOUT))?;
        rustix::io::ioctl_fionbio(socket, false)?;
        Ok(())
    }

    /// Waits in the socket itself until something comes, for [`WAIT_TIMEOUT`] at most. Returns
    /// whether it came. That takes one system call, and a poll before the receive takes two.
    pub(super) fn wait(&mut self) -> bool {
        self.read(RecvFlags::empty()) > 0 || self.over.is_some()
    }

    pub(super) fn announce_sleep(&mut self) -> bool {
        self.is_empty() && self.over.is_none()
    }

    pub(super) fn awake(&mut self) {
        self.drained = false;
    }

    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn socket(&self) -> &NotInherited {
        &self.shared.socket
    }

    /// Returns how many bytes are reserved for what comes.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(super) fn memory(&self) -> usize {
        self.raw.capacity() + self.stream.memory()
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{io::Read, os::fd::AsFd, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_peer_that_always_leaves_a_bit_unread_costs_no_more_memory() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        sockopt::set_socket_send_buffer_size(&ours, 16 * 1024).unwrap();
        let (mut out, mut passed, mut empty) = (Out::default(), 0, 0);
        while passed < 20 << 20 {
            // As much as is encrypted before messages wait in the outbox.
            while out.len() < PIECE_BYTES {
                out.bytes.extend_from_slice(&[5; 8 * 1024]);
            }
            empty += usize::from(out.send(ours.as_fd()).unwrap());
            passed += theirs.read(&mut [0; 8 * 1024]).unwrap();
        }
        assert_eq!(empty, 0, "there was always a rest");
        assert!(out.bytes.capacity() < 1 << 20, "{} bytes", out.bytes.capacity());
    }
}
