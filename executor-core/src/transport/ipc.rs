//! Frames over ipc-channel: one pair of byte channels for each worker.
//!
//! ipc-channel's own limits decide the shape (each was reproduced before this was written):
//!
//! - Messages above 212,448 bytes go over a second socket whose other end the sender keeps open too, so that a
//!   receiver that dies in the middle blocks the sender for ever: frames travel in parts below that size.
//! - A send blocks once the peer's socket is full: a window keeps it from ever being full ([`Window`]).
//! - One result channel shared by several workers is closed for all when one dies in mid-message: each has its own.
//! - Its receiver set and its router stall behind one stopped worker: one blocking reader for each worker instead.
//! - `recv` reports EINTR: asked again.
//! - The channel does not say that a worker is dead while a process that the worker forked holds a copy of its ends:
//!   death is noticed elsewhere (pidfd), and [`Link::hang_up`] then sends an end mark through the pool's own copy of
//!   the worker's sending end. A socket keeps order, so all that the worker published comes before the mark.
//! - Its server is a socket below `TMPDIR`, open to whom the umask allows, and stays there if the worker is killed before
//!   it is used: each worker gets a directory of its own, which its parent removes, or the worker when that is gone.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ipc_channel::{
    IpcError,
    ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender},
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Closed, Inbox, Link, WorkerEnd, board::Board, outbox::Outbox, ring::Segment};
use crate::{
    os::{memory::Shared, setting},
    wire::{
        frame::{Assembler, Frame, FromWorker, HEADER_BYTES, Header, Order, PART_BYTES_MAX, Reply, ToWorker},
        payload::Payload,
    },
};

/// Shorter than any header, so it cannot be a frame.
const END_MARK: [u8; 3] = *b"end";

/// What the pool hands to a worker that has said hello.
#[derive(Serialize, Deserialize)]
struct Offer {
    to_worker: IpcBytesReceiver,
    from_worker: IpcBytesSender,
}

/// The worker's side of the meeting: listens under a name until the pool connects.
pub(crate) struct Server(IpcOneShotServer<Offer>);

impl Server {
    pub(crate) fn new() -> io::Result<(Server, String)> {
        let (server, name) = IpcOneShotServer::new()?;
        Ok((Server(server), name))
    }

    /// Waits for the pool. Whoever calls this must have arranged that the pool's death ends the process.
    pub(crate) fn accept(self, board: &'static Board) -> io::Result<IpcWorkerEnd> {
        let (once, offer) = self.0.accept().map_err(into_io)?;
        // Not close-on-exec, says the module's first rule list of ipc-channel: gone before any task can start one.
        drop(once);
        Ok(IpcWorkerEnd::new(offer, board))
    }
}

fn into_io(error: IpcError) -> io::Error {
    match error {
        IpcError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// Makes a directory for one worker's server, which nobody else can look into, whatever the umask is.
///
/// The parent makes and removes it, so that nothing stays behind at whatever moment the worker dies. ipc-channel makes a
/// directory and a socket in it; a path that is too long for a socket's address it cuts without a word, and over one that
/// is no UTF-8 it panics.
pub(crate) fn directory() -> io::Result<TempDir> {
    let own = setting::temporary_directory().map(PathBuf::from);
    if let Some(own) = &own
        && let Some(why) = unfit(own)
    {
        setting::temporary_directory_refused(own.as_os_str(), why);
    }
    let candidates = own.into_iter().chain(["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from));
    let mut refused = io::Error::other("no directory for temporary files has a short enough path");
    for parent in candidates.filter(|parent| unfit(parent).is_none()) {
        let mut builder = tempfile::Builder::new();
        match builder.prefix("executor-").permissions(Permissions::from_mode(0o700)).tempdir_in(&parent) {
            Ok(directory) => return Ok(directory),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Why a directory cannot hold the socket of ipc-channel, if it cannot.
fn unfit(directory: &Path) -> Option<&'static str> {
    /// `sun_path` has 108 bytes; `/executor-XXXXXX`, `/.tmpXXXXXX/socket` and a zero come behind it.
    const BYTES_MAX: usize = 108 - 16 - 19;
    match directory.to_str() {
        None => Some("which is not UTF-8"),
        Some(_) if !directory.is_absolute() => Some("which is not absolute"),
        Some(text) if text.len() > BYTES_MAX => Some("which is too long for the address of a socket"),
        Some(_) => None,
    }
}

/// Lets ipc-channel find out, once in a process, how much a socket takes. It does so with the first message, and if no
/// descriptor is left at that moment it panics, then and at every message that follows: a driver must not meet that.
pub(crate) fn prepare() -> io::Result<()> {
    static READY: Mutex<bool> = Mutex::new(false);
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ready {
        // More than it needs, and given back at once.
        let spare: io::Result<Vec<_>> = (0..8).map(|_| crate::os::wake::Bell::new()).collect();
        drop(spare?);
        let (sender, receiver) = ipc::bytes_channel()?;
        sender.send(b"first")?;
        receiver.recv().map_err(into_io)?;
        *ready = true;
    }
    Ok(())
}

/// A connection to a worker's server.
pub(crate) struct Dialed(IpcSender<Offer>);

/// Connects to a worker's server. Does not block. If the worker is dead, ipc-channel keeps a descriptor for ever:
/// whoever calls this makes as sure as can be that it lives.
pub(crate) fn dial(server: String) -> io::Result<Dialed> {
    let sender = IpcSender::connect(server).map_err(|error| match error.raw_os_error() {
        // It connects whatever `socket` has returned, also -1 when no descriptor was left.
        Some(libc::EBADF) => io::Error::from_raw_os_error(libc::EMFILE),
        _ => error,
    })?;
    Ok(Dialed(sender))
}

/// The pool's side of the meeting.
pub(crate) fn connect(
    Dialed(sender): Dialed,
    segment: Shared<Segment>,
) -> io::Result<(Arc<IpcLink>, IpcInbox)> {
    let (offer, link, inbox) = make(segment)?;
    sender.send(offer).map_err(into_io)?;
    Ok((link, inbox))
}

fn make(segment: Shared<Segment>) -> io::Result<(Offer, Arc<IpcLink>, IpcInbox)> {
    let (to_worker_sender, to_worker) = ipc::bytes_channel()?;
    let (from_worker, from_worker_receiver) = ipc::bytes_channel()?;
    let hung_up = Arc::new(AtomicBool::new(false));
    let link = Arc::new(IpcLink {
        segment,
        sending: Mutex::new((Outbox::new(PART_BYTES_MAX), Window::default())),
        sender: to_worker_sender,
        end: from_worker.clone(),
        hung_up: Arc::clone(&hung_up),
    });
    let inbox = IpcInbox { receiver: from_worker_receiver, assembler: Assembler::default(), hung_up };
    Ok((Offer { to_worker, from_worker }, link, inbox))
}

/// The pool's sending end.
pub(crate) struct IpcLink {
    segment: Shared<Segment>,
    sending: Mutex<(Outbox, Window)>,
    sender: IpcBytesSender,
    /// The pool's copy of the worker's sending end, for the end mark.
    end: IpcBytesSender,
    hung_up: Arc<AtomicBool>,
}

impl IpcLink {
    fn pump(&self, change: impl FnOnce(&mut Outbox, &mut Window)) {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let (outbox, window) = &mut *sending;
        change(outbox, window);
        let mut dead = false;
        outbox.pump(|message| {
            if !window.take(message.len()) {
                return false;
            }
            // A failure means that the worker is dead, or as good as. Its exit will be noticed, and its tasks dealt
            // with there.
            dead = retry(|| self.sender.send(message)).is_err();
            !dead
        });
        if dead {
            outbox.close();
        }
    }
}

/// Keeps a send from ever blocking.
///
/// A Unix socket takes a message as long as what lies unread in it is below its send buffer (212,992 bytes by default,
/// of which each message takes its length plus some hundred bytes); so with at most [`WINDOW_BYTES`] unread, the next
/// message always finds room. The worker reports what it has consumed in every frame that it sends.
#[derive(Default)]
pub(crate) struct Window {
    sent: u64,
    consumed: u64,
}

/// Unread bytes in the worker's socket at the most, counted by [`cost`].
pub(crate) const WINDOW_BYTES: u64 = 192 * 1024;

/// What a message takes of the window: what the kernel counts for it, and a little more.
///
/// Up to about 16 KB a message lies in one piece of memory with the kernel's bookkeeping, rounded up to a power of two;
/// above, in pages. Measured against `TIOCOUTQ` for every length that frames have.
pub(crate) fn cost(message_len: usize) -> u64 {
    match message_len {
        ..16_000 => ((message_len + 336).next_power_of_two() + 512) as u64,
        _ => message_len as u64 + 6 * 1024,
    }
}

impl Window {
    /// Takes room for a message, if there is any.
    pub(crate) fn take(&mut self, message_len: usize) -> bool {
        let unread = self.sent - self.consumed;
        if unread != 0 && unread + cost(message_len) > WINDOW_BYTES {
            return false;
        }
        self.sent += cost(message_len);
        true
    }

    /// The worker has consumed this much, all in all. A number that cannot be is ignored: it would only hurt the
    /// worker that sent it.
    pub(crate) fn credit(&mut self, consumed: u64) {
        if consumed > self.consumed && consumed <= self.sent {
            self.consumed = consumed;
        }
    }
}

fn retry(mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Link for IpcLink {
    fn send(&self, header: ToWorker, payload: &Payload) {
        if header.order == Order::Run {
            self.segment.board.offer(header.seq, header.items.first);
        }
        self.pump(|outbox, _| outbox.push(header, payload.clone()));
    }

    fn flush(&self) {
        // A message wakes who waits for it.
    }

    fn credit(&self, consumed: u64) {
        self.pump(|_, window| window.credit(consumed));
    }

    fn taken_in(&self) -> u64 {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).0.sent()
    }

    fn hang_up(&self) {
        self.pump(|outbox, _| outbox.close());
        self.hung_up.store(true, Ordering::Release);
        // Waits at most until the reader has made room: it reads without ever waiting for anybody.
        if let Err(error) = retry(|| self.end.send(&END_MARK)) {
            tracing::debug!(%error, "the end mark found its channel closed");
        }
    }

    fn board(&self) -> &Board {
        &self.segment.board
    }
}

/// The pool's receiving end.
pub(crate) struct IpcInbox {
    receiver: IpcBytesReceiver,
    assembler: Assembler<FromWorker>,
    hung_up: Arc<AtomicBool>,
}

impl Inbox for IpcInbox {
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed> {
        let message = recv(&self.receiver)?;
        if message == END_MARK && self.hung_up.load(Ordering::Acquire) {
            return Err(Closed::Gone);
        }
        Ok(self.assembler.message(&message, sink)?)
    }
}

fn recv(receiver: &IpcBytesReceiver) -> Result<Vec<u8>, Closed> {
    loop {
        match receiver.recv() {
            Ok(message) => return Ok(message),
            Err(IpcError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Closed::Gone),
        }
    }
}

/// The worker's end.
pub(crate) struct IpcWorkerEnd {
    receiver: IpcBytesReceiver,
    sender: IpcBytesSender,
    board: &'static Board,
    assembler: Assembler<ToWorker>,
    ready: std::collections::VecDeque<Frame<ToWorker>>,
    consumed: u64,
    reported: u64,
    buffer: Vec<u8>,
}

impl IpcWorkerEnd {
    fn new(offer: Offer, board: &'static Board) -> Self {
        IpcWorkerEnd {
            receiver: offer.to_worker,
            sender: offer.from_worker,
            board,
            assembler: Assembler::default(),
            ready: Default::default(),
            consumed: 0,
            reported: 0,
            buffer: Vec::new(),
        }
    }

    fn publish(&self, message: &[u8]) -> Result<(), Closed> {
        kill_point!(IpcSendNext);
        retry(|| self.sender.send(message)).map_err(|_| Closed::Gone)?;
        kill_point!(IpcSent);
        Ok(())
    }
}

impl WorkerEnd for IpcWorkerEnd {
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            // Nothing is going to be sent soon that could carry the report, and the pool may be waiting for room.
            if self.consumed - self.reported > WINDOW_BYTES / 4 {
                self.reply(FromWorker::new(Reply::Credit), &[])?;
            }
            let message = recv(&self.receiver)?;
            kill_point!(IpcReceived);
            self.consumed += cost(message.len());
            let ready = &mut self.ready;
            self.assembler.message(&message, |frame| ready.push_back(frame))?;
            kill_point!(MessageTaken);
        }
    }

    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed> {
        self.reported = self.consumed;
        let header = FromWorker { length: payload.len() as u64, consumed: self.consumed, ..header };
        let first = payload.len().min(PART_BYTES_MAX - HEADER_BYTES);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&header.to_bytes());
        buffer.extend_from_slice(&payload[..first]);
        let sent = self.publish(&buffer);
        self.buffer = buffer;
        sent?;
        payload[first..].chunks(PART_BYTES_MAX).try_for_each(|part| {
            kill_point!(PartSent);
            self.publish(part)
        })
    }

    fn board(&self) -> &'static Board {
        self.board
    }
}

/// Both ends in one process, for the conformance tests.
#[cfg(test)]
pub(crate) fn pair() -> super::conformance::Pair {
    let (segment, fd) = super::ring::create().unwrap();
    let mirror: &'static Segment = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let (offer, link, inbox) = make(segment).unwrap();
    let (sender, receiver) = ipc::channel().unwrap();
    // Through a real channel, so that the pool's copies of the worker's ends are closed as they are in life.
    sender.send(offer).unwrap();
    let worker = IpcWorkerEnd::new(receiver.recv().unwrap(), &mirror.board);
    super::conformance::Pair { link, inbox: Box::new(inbox), worker: Box::new(worker) }
}
