//! Frames over ipc-channel: one pair of byte channels for each worker.
//!
//! Limitations of ipc-channel determine the design. Each of them was reproduced before this was
//! written:
//!
//! - Messages above 212,448 bytes go over a second socket, and the sender keeps the other end of it
//!   open too. If the receiver dies in the middle, the sender blocks for ever. So frames are sent
//!   in parts below that size.
//! - A send blocks once the peer's socket is full. A window keeps it from ever being full
//!   ([`Window`]).
//! - If several workers share one result channel and one of them dies in the middle of a message,
//!   the channel is closed for all. So each worker has a channel of its own.
//! - Its receiver set and its router stall behind one stopped worker. So each worker has a blocking
//!   reader of its own.
//! - `recv` may return EINTR. It is called again.
//! - While a process that the worker forked holds a copy of the worker's ends, the channel does not
//!   report that the worker is dead. The death is noticed elsewhere (by a pidfd), and
//!   [`Link::hang_up`] then sends an end mark through the pool's own copy of the worker's sending
//!   end. A socket keeps order, so everything the worker published comes before the mark.
//! - Its server is a socket below `TMPDIR`. Who may open it depends on the umask, and it stays
//!   there if the worker is killed before the server is used. So each worker gets a directory of
//!   its own, which its parent removes, or the worker if the parent is gone.

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
        frame::{
            Assembler, Frame, FromWorker, HEADER_BYTES, Header, Order, PART_BYTES_MAX, Reply,
            ToWorker,
        },
        payload::Payload,
    },
};

/// Tells the pool's receiver that the worker is dead. Shorter than any header, so it cannot be a
/// frame.
const END_MARK: [u8; 3] = *b"end";

/// The ends that the pool sends to a worker after the worker's hello.
#[derive(Serialize, Deserialize)]
struct Offer {
    to_worker: IpcBytesReceiver,
    from_worker: IpcBytesSender,
}

/// The worker's side of connecting: listens under a name until the pool connects.
pub(crate) struct Server(IpcOneShotServer<Offer>);

impl Server {
    pub(crate) fn new() -> io::Result<(Server, String)> {
        let (server, name) = IpcOneShotServer::new()?;
        Ok((Server(server), name))
    }

    /// Waits for the pool. The caller must have arranged that the pool's death ends this process.
    pub(crate) fn accept(self, board: &'static Board) -> io::Result<IpcWorkerEnd> {
        let (once, offer) = self.0.accept().map_err(into_io)?;
        // This socket is not close-on-exec, so close it before a task can start another program.
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

/// Makes a directory for one worker's server. No other user can look into it, whatever the umask
/// is.
///
/// The parent makes and removes it, so that nothing is left behind whenever the worker dies.
/// ipc-channel makes a directory in it, and a socket in that. It silently truncates a path that is
/// too long for the address of a socket, and panics on a path that is not UTF-8. So such
/// directories are not used.
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
        match builder
            .prefix("executor-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
        {
            Ok(directory) => return Ok(directory),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Returns the reason why a directory cannot hold ipc-channel's socket, or `None` if it can.
fn unfit(directory: &Path) -> Option<&'static str> {
    /// `sun_path` has 108 bytes. `/executor-XXXXXX`, `/.tmpXXXXXX/socket` and a zero byte are
    /// appended to the directory.
    const BYTES_MAX: usize = 108 - 16 - 19;
    match directory.to_str() {
        None => Some("which is not UTF-8"),
        Some(_) if !directory.is_absolute() => Some("which is not absolute"),
        Some(text) if text.len() > BYTES_MAX => {
            Some("which is too long for the address of a socket")
        }
        Some(_) => None,
    }
}

/// Makes ipc-channel determine the size of a socket's buffer, once in a process.
///
/// It does so with its first message. If no descriptor is left at that moment, it panics, and
/// panics again at every later message. That must not happen in a driver.
pub(crate) fn prepare() -> io::Result<()> {
    static READY: Mutex<bool> = Mutex::new(false);
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ready {
        // Check that enough descriptors are free: open more than it needs, and close them at once.
        let spare: io::Result<Vec<_>> =
            (0..8).map(|_| crate::os::eventfd::EventFd::new()).collect();
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

/// Connects to a worker's server. Does not block.
///
/// If the worker is dead, ipc-channel leaks a descriptor. So the caller makes as sure as possible
/// that the worker is alive.
pub(crate) fn dial(server: String) -> io::Result<Dialed> {
    let sender = IpcSender::connect(server).map_err(|error| match error.raw_os_error() {
        // ipc-channel does not check the result of `socket`. With no descriptor left that is -1,
        // and connecting it gives EBADF.
        Some(libc::EBADF) => io::Error::from_raw_os_error(libc::EMFILE),
        _ => error,
    })?;
    Ok(Dialed(sender))
}

/// The pool's side of connecting: makes the channels and sends the worker its ends.
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
    let inbox =
        IpcInbox { receiver: from_worker_receiver, assembler: Assembler::default(), hung_up };
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
            // A failure means that the worker is dead or about to be. Its exit will be noticed, and
            // its tasks are handled then.
            dead = retry(|| self.sender.send(message)).is_err();
            !dead
        });
        if dead {
            outbox.close();
        }
    }
}

/// A flow-control window that keeps sends from ever blocking.
///
/// A Unix socket accepts a message as long as the unread bytes in it are below its send buffer:
/// 212,992 bytes by default, of which each message takes its length plus some hundred bytes. So
/// with at most [`WINDOW_BYTES`] unread, there is always space for the next message. The worker
/// reports what it has consumed in every frame it sends.
#[derive(Default)]
pub(crate) struct Window {
    sent: u64,
    consumed: u64,
}

/// Maximum number of unread bytes in the worker's socket, counted by [`cost`].
pub(crate) const WINDOW_BYTES: u64 = 192 * 1024;

/// Returns how much of the window a message takes: what the kernel counts for it, and a little
/// more.
///
/// Up to about 16 KB, the kernel keeps a message and its own bookkeeping in one allocation, rounded
/// up to a power of two. Longer messages are kept in pages. Measured with `TIOCOUTQ` for every
/// length that frames have.
pub(crate) fn cost(message_len: usize) -> u64 {
    match message_len {
        ..16_000 => ((message_len + 336).next_power_of_two() + 512) as u64,
        _ => message_len as u64 + 6 * 1024,
    }
}

impl Window {
    /// Reserves a part of the window for a message. Returns `false` if too little is left.
    pub(crate) fn take(&mut self, message_len: usize) -> bool {
        // With nothing unread, any message fits into the socket.
        let unread = self.sent - self.consumed;
        if unread != 0 && unread + cost(message_len) > WINDOW_BYTES {
            return false;
        }
        self.sent += cost(message_len);
        true
    }

    /// Notes that the worker has consumed this much in total. An impossible number is ignored: that
    /// harms only the worker that sent it.
    pub(crate) fn credit(&mut self, consumed: u64) {
        if consumed > self.consumed && consumed <= self.sent {
            self.consumed = consumed;
        }
    }
}

/// Calls `send` again while a signal interrupts it.
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
        // Nothing to do: a message wakes the worker that waits for it.
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
        // If the socket is full, this waits until the reader has made space. That ends, as the
        // reader never waits for anything else.
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
        // The worker could send the bytes of the mark too. Only after `hang_up` does it mean the
        // end.
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
            // Report now: no other frame may be sent soon that could carry the report, and the pool
            // may be waiting for space.
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
    // Send it through a real channel, so that the pool's copies of the worker's ends are closed as
    // in production.
    sender.send(offer).unwrap();
    let worker = IpcWorkerEnd::new(receiver.recv().unwrap(), &mirror.board);
    super::conformance::Pair { link, inbox: Box::new(inbox), worker: Box::new(worker) }
}
