//! The parent's side of a fork server: a child that makes copies of itself.
//!
//! ```text
//!  launch ─► a child, its socket ─► ready: its preload has run ─► copy: a child that waits for
//!                                                                 its setup (`launch::ServerCopy`)
//!  dropped: the socket is closed, and the server exits
//! ```
//!
//! The owner of a server reaps it, and says how long to wait for its answers. Each wait ends when
//! the server dies, because then the other end of the socket is closed, and when the server is
//! stopped or hangs ([`until_readable`]). The owner then ends it, and asks another one.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    identity,
    launch::{Launch, Launched, ServerCopy, Way},
};
use crate::{
    id::FnId,
    os::{
        asked::Asked,
        exit_status::ExitStatus,
        fork::{Creator, NotInherited},
        process::{Child, Start, lead_own_group},
        socket,
    },
    registry,
    task::{IntoTask, TaskArgs, TaskFn},
    wire::{
        attachment,
        buffer::Buffer,
        frame::Reply,
        handshake::{self, ForkServerSetup, Identity, Report, Role},
    },
};

/// A task that a fork server runs before it makes its first copy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Preload {
    function: FnId,
    name: String,
    /// The encoded arguments.
    arguments: Vec<u8>,
}

impl Preload {
    /// Encodes the arguments of a task. Returns the reason if `preload` cannot run it.
    pub(crate) fn of<T: IntoTask>(task: T) -> Result<Self, String> {
        let entry = T::Function::entry();
        let (args, options) = task.into_task().into_parts();
        let called = options.called(entry.name).to_owned();
        let mut buffer = Buffer::new();
        let (encoded, attached) =
            attachment::collect(|| T::Function::encode_args(&args, &mut buffer));
        match entry.known().and(encoded.map_err(|error| error.message)) {
            // A task in the server cannot be stopped on its own: it runs in the server itself.
            _ if options.timeout().is_some() => {
                Err(format!("`{called}` has a time limit, which `preload` cannot keep"))
            }
            Err(error) => Err(format!("`{called}` cannot be sent to it: {error}")),
            Ok(()) if !attached.is_empty() => {
                Err(format!("the arguments of `{called}` carry descriptors"))
            }
            Ok(()) => match options.refusal_without_queue() {
                Some(what) => Err(format!("`{called}` has a {what}")),
                None => Ok(Preload {
                    function: entry.number(),
                    name: called,
                    arguments: buffer.into_vec(),
                }),
            },
        }
    }

    /// Returns the name of the task.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// A running fork server. It ends when this is dropped; its owner reaps it.
pub(crate) struct Server {
    /// A forked copy of this process must not keep the socket, because the server ends when it is
    /// closed.
    socket: NotInherited,
    pub(crate) child: Arc<Child>,
    creator: Creator,
    has_preload: bool,
}

/// Why there is no server, or no copy of it.
pub(crate) enum ServerError {
    /// The system has refused something that is needed to start the server, or to ask it.
    Start(io::Error),
    /// The server has ended before it could say anything: its program does not call the entry.
    NoEntry,
    /// The server cannot make copies, for this reason.
    Unusable(String),
    /// The server does not answer: it has died, or takes too long.
    Silent(io::Error),
    /// The system has refused the server a copy.
    Refused(io::Error),
}

/// Waits until this socket has something to read, or is closed. An error ends the wait.
pub(crate) type Await<'a> = &'a dyn Fn(BorrowedFd<'_>) -> io::Result<()>;

/// How often a wait for a server looks whether it is to go on. With a lower value, it takes the
/// processor, and the lock of a pool, more often. With a higher value, a pool that is killed while
/// its server prepares ends later.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long a server may be stopped by a signal. Meanwhile no child starts. A lower value replaces
/// a server that is stopped for a moment, and runs its `preload` again.
const STOPPED_GRACE: Duration = Duration::from_secs(2);

/// How long a server that is asked for a copy may take without using the processor. A copy takes a
/// millisecond or so for each 20 MiB that the server has, and that is processor time of the server.
/// A lower value takes a server for one that hangs on a machine that is far too busy.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// How long a server may take to end when it has closed its socket. With a lower value it is more
/// often not known how it ended.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The error for a server that a signal has stopped.
struct IsStopped(i32);

crate::debug::debug_is_display!(IsStopped);

impl fmt::Display for IsStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it was stopped by signal {}", self.0)
    }
}

impl std::error::Error for IsStopped {}

/// Whether a socket was closed by the other side.
fn has_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// Returns whether a wait has ended because the server was stopped.
pub(crate) fn is_stop(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<IsStopped>())
}

/// Waits until a socket of a server can be read, or is closed. An error ends the wait: `go_on`
/// returns one, or the server is of no use, because it is stopped or hangs. `is_asked` says whether
/// it has something to do: a `preload` may sleep.
pub(crate) fn until_readable(
    socket: BorrowedFd<'_>,
    server: &Child,
    is_asked: bool,
    go_on: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let mut stopped_since = None;
    let (mut computed, mut computed_at) = (server.computed(), Instant::now());
    while socket::retry(|| poll(&mut fds, Some(&STEP)))? == 0 {
        go_on()?;
        let now = Instant::now();
        let since = |at: Instant| now.saturating_duration_since(at);
        match server.stopped_by() {
            Some(signal) if since(*stopped_since.get_or_insert(now)) >= STOPPED_GRACE => {
                return Err(io::Error::other(IsStopped(signal)));
            }
            Some(_) => {}
            None => stopped_since = None,
        }
        let before = std::mem::replace(&mut computed, server.computed());
        if computed.is_none() || computed != before || stopped_since.is_some() {
            computed_at = now;
        } else if is_asked && since(computed_at) >= HANGS_AFTER {
            return Err(io::Error::other("it hangs"));
        }
    }
    Ok(())
}

impl Server {
    /// Starts a server, which then runs the tasks of `preload`.
    pub(crate) fn launch(
        pool: Option<&str>,
        preload: &[Preload],
        start: Start<'_>,
    ) -> Result<Self, ServerError> {
        let run = |Preload { function, name, arguments }: &Preload| {
            (*function, name.clone(), arguments.clone().into())
        };
        let setup = ForkServerSetup {
            pool: pool.map(str::to_owned),
            tasks: registry::fingerprint(),
            preload: preload.iter().map(run).collect(),
        };
        let identity = Identity {
            name: "ForkServer".to_owned(),
            daemon: true,
            ..identity::for_child().map_err(ServerError::Start)?
        };
        let role = Role::ForkServer(setup);
        let launch = Launch { identity, role, descriptors: &[], attachments: &[] };
        let Launched { child, socket } =
            launch.by(Way::Program(start)).map_err(|refused| ServerError::Start(refused.error))?;
        Ok(Server {
            socket: NotInherited::new(socket),
            child: Arc::new(child),
            creator: Creator::here(),
            has_preload: !preload.is_empty(),
        })
    }

    /// Returns whether the server belongs to another process, of which this one is a fork.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.creator.is_elsewhere()
    }

    /// Waits until the server has run its `preload`.
    pub(crate) fn ready(&self, wait: Await<'_>) -> Result<(), ServerError> {
        let socket = self.socket().map_err(ServerError::Start)?;
        wait(socket).map_err(ServerError::Silent)?;
        match handshake::receive_answer::<Report>(socket) {
            Ok(Ok(report)) if report.kind == Reply::Ready as u8 => Ok(()),
            Ok(Ok(_)) => Err(ServerError::Unusable("it says what a fork server does not".into())),
            Ok(Err(refusal)) => Err(ServerError::Unusable(refusal.why)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(ServerError::Unusable(error.to_string()))
            }
            // It has said nothing, and its end of the socket is closed.
            Err(error) if has_left(&error) && self.has_preload => {
                let status = self.ends();
                Err(ServerError::Unusable(format!("it ended while `preload` ran: it {status}")))
            }
            Err(error) if has_left(&error) => Err(ServerError::NoEntry),
            Err(error) => {
                let what = "to receive its first word (recvmsg)";
                Err(ServerError::Start(Err::<(), _>(error).asked(what).unwrap_err()))
            }
        }
    }

    /// Returns how a server has ended that has closed its socket, and so is about to end.
    pub(crate) fn ends(&self) -> ExitStatus {
        self.child.ends_within(LAST_MOMENT);
        self.child.reap(|_| false)
    }

    /// Makes a copy of the server, which then waits for its setup.
    pub(crate) fn copy(&self, wait: Await<'_>) -> Result<ServerCopy, ServerError> {
        let pair = socket::pair().asked("a pair of sockets for a copy");
        let (socket, theirs) = pair.map_err(ServerError::Start)?;
        let server = self.socket().map_err(ServerError::Silent)?;
        socket::send(server, &[1], &[theirs.as_fd()]).map_err(ServerError::Silent)?;
        // Close our copy, so that reading the answer ends if neither the server nor the copy can
        // answer.
        drop(theirs);
        let mut answer = [0; 8];
        wait(socket.as_fd()).map_err(ServerError::Silent)?;
        let (len, _) = socket::recv_short(&socket, &mut answer).map_err(ServerError::Silent)?;
        if len != answer.len() {
            return Err(ServerError::Silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let invalid = |_| ServerError::Silent(io::ErrorKind::InvalidData.into());
        match i64::from_le_bytes(answer) {
            pid @ 1.. => {
                let pid = u32::try_from(pid).map_err(invalid)?;
                // The copy does so itself, but it may die or be stopped before. Any process in the
                // server's group is killed and reaped with the server, and the status of the copy
                // would be lost.
                lead_own_group(pid);
                Ok(ServerCopy::new(pid, socket))
            }
            error => Err(ServerError::Refused(io::Error::from_raw_os_error(-error as i32))),
        }
    }

    fn socket(&self) -> io::Result<BorrowedFd<'_>> {
        self.socket.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
