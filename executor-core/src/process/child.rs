//! The user's handle of a started process.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::table::Record;
use crate::{
    error::{ExitStatus, TaskError},
    future::cell::Outcome,
};

/// A process that was started by [`Process::start`](crate::Process::start), and the value that is to come of it.
///
/// All that does not concern the value is in [`ChildHandle`], which it derefs to. Dropping it changes nothing: the process
/// runs on, and is reaped when it ends.
///
/// ```
/// use executor::{Process, prelude::*};
/// use std::time::Duration;
///
/// #[task]
/// fn nap(ms: u64) -> u64 { std::thread::sleep(Duration::from_millis(ms)); ms }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let child = Process::new(nap::task(50)).start()?;
///     assert!(child.is_alive());
///     assert!(child.join_timeout(Duration::from_millis(1)).is_none());
///     assert_eq!(child.join()?, 50);
///     assert!(!child.is_alive());
///     Ok(())
/// }
/// ```
pub struct Child<T> {
    handle: ChildHandle,
    pipes: Mutex<[Option<OwnedFd>; 3]>,
    decode: fn(Outcome) -> Result<T, TaskError>,
}

impl<T> Child<T> {
    pub(super) fn new(
        record: Arc<Record>,
        pipes: [Option<OwnedFd>; 3],
        decode: fn(Outcome) -> Result<T, TaskError>,
    ) -> Self {
        Child { handle: ChildHandle { record }, pipes: Mutex::new(pipes), decode }
    }

    /// Waits for its end, and returns what its body has returned. As often as asked for: the value is decoded each time.
    ///
    /// The other end of its standard input is closed before, unless it was [taken](Self::take_stdin): a body that reads to the
    /// end must come to one. Its [piped](crate::Stdio::piped) output is to be read before: one that writes more than the 64 KiB that a
    /// pipe holds waits until somebody does.
    ///
    /// A result may be of any size. From about 64 KiB on it lies in an anonymous file, which takes memory until the last handle of
    /// the process is dropped; this process maps the file, and each decoded value takes memory of its own. If the process could
    /// not make the file (for lack of memory, say), this is an error that says how many bytes there were.
    ///
    /// # Errors
    /// The body's `Err` or panic, as from a future; [`TaskError::WorkerLost`] with the exit status if it ended without having
    /// returned: by `std::process::exit` (also with 0: there is no value), by a signal, by [`terminate`](ChildHandle::terminate);
    /// [`TaskError::Invalid`] in a fork of the process that started it.
    pub fn join(&self) -> Result<T, TaskError> {
        drop(self.take_stdin());
        self.handle.record.wait(None);
        (self.decode)(self.handle.record.outcome())
    }

    /// As [`join`](Self::join), but waits at most so long: then `None`, and the process runs on. Its standard input stays
    /// open.
    pub fn join_timeout(&self, timeout: Duration) -> Option<Result<T, TaskError>> {
        if self.handle.record.wait(Instant::now().checked_add(timeout)).is_none()
            && !self.handle.record.origin.forked()
        {
            return None;
        }
        Some((self.decode)(self.handle.record.outcome()))
    }

    /// As [`join`](Self::join), for async code, on any runtime.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn wait(&self) -> Result<T, TaskError> {
        drop(self.take_stdin());
        Ended(&self.handle.record).await;
        (self.decode)(self.handle.record.outcome())
    }

    /// The other end of its standard input, if that is [`piped`](crate::Stdio::piped); once.
    pub fn take_stdin(&self) -> Option<OwnedFd> {
        self.take(0)
    }

    /// The other end of its standard output, if that is [`piped`](crate::Stdio::piped); once.
    pub fn take_stdout(&self) -> Option<OwnedFd> {
        self.take(1)
    }

    /// The other end of its standard error, if that is [`piped`](crate::Stdio::piped); once.
    pub fn take_stderr(&self) -> Option<OwnedFd> {
        self.take(2)
    }

    fn take(&self, number: usize) -> Option<OwnedFd> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)[number].take()
    }

    /// A handle without the value, to be kept elsewhere.
    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// Gives up what is kept of a process that has ended.
    ///
    /// # Errors
    /// The child itself, while it runs.
    pub fn close(self) -> Result<(), Self> {
        if self.is_alive() { Err(self) } else { Ok(()) }
    }
}

impl<T> Deref for Child<T> {
    type Target = ChildHandle;

    fn deref(&self) -> &ChildHandle {
        &self.handle
    }
}

impl<T> AsFd for Child<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl<T> fmt::Debug for Child<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

/// A process, without the type of its value: from [`Child::handle`] and [`active_children`](crate::active_children).
///
/// In a fork of the process that started it, it is inert: nothing is signalled, it never seems to have ended, and to wait
/// for it ends at once, with [`ExitStatus::Unknown`].
#[derive(Clone)]
pub struct ChildHandle {
    pub(super) record: Arc<Record>,
}

impl ChildHandle {
    /// Its process id. While the process is not reaped, that is nobody else's.
    pub fn pid(&self) -> u32 {
        self.record.process.pid()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Whether it is terminated when the program ends.
    pub fn daemon(&self) -> bool {
        self.record.daemon
    }

    /// Whether it runs. One that has ended is reaped by asking.
    pub fn is_alive(&self) -> bool {
        self.record.status().is_none()
    }

    /// How it ended: exit code or signal. `None` while it runs.
    pub fn exit_code(&self) -> Option<ExitStatus> {
        self.record.status()
    }

    /// Waits for its end, whatever its value.
    pub fn wait_exit(&self) -> ExitStatus {
        self.record.wait(None).unwrap_or(ExitStatus::Unknown)
    }

    /// As [`wait_exit`](Self::wait_exit), at most so long.
    pub fn wait_exit_timeout(&self, timeout: Duration) -> Option<ExitStatus> {
        self.record.wait(Instant::now().checked_add(timeout))
    }

    /// Sends `SIGTERM` to it alone: it ends without its exit hooks, unless it handles the signal. Its own children notice its
    /// end. Nothing happens if it has ended.
    ///
    /// A child has the signal mask of the thread that started it, as with `fork`. Where that had blocked `SIGTERM`, the signal
    /// waits until the child unblocks it; [`kill`](Self::kill) cannot be blocked.
    ///
    /// # Errors
    /// If the system refuses: it has become another user's.
    pub fn terminate(&self) -> std::io::Result<()> {
        self.record.signal(Signal::TERM)
    }

    /// Sends `SIGKILL` to it alone.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> std::io::Result<()> {
        self.record.signal(Signal::KILL)
    }

    /// Sends `SIGINT` to it alone. Nothing happens where the program ignores the signal, as one does that a shell script started in
    /// the background (`program &`): its children ignore it, too.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> std::io::Result<()> {
        self.record.signal(Signal::INT)
    }

    /// Kills it and its process group: the programs that it started, unless they left the group. Its own
    /// [`Process`](crate::Process)es and workers notice its end, and kill their groups.
    ///
    /// After its end, what is left of the group: what it was [allowed to leave](crate::Process::keep_programs).
    pub fn kill_tree(&self) {
        self.record.kill_group();
    }

    /// A descriptor that becomes readable when it has ended: a pidfd, for `poll`, [`wait_any`](crate::wait_any) and the like.
    /// `None` where somebody else had reaped it before it could be opened.
    pub fn sentinel(&self) -> Option<BorrowedFd<'_>> {
        self.record.process.pidfd()
    }
}

impl AsFd for ChildHandle {
    /// The [`sentinel`](Self::sentinel).
    ///
    /// # Panics
    /// If there is none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel()
            .expect("SIGCHLD is ignored, or others wait for any child: there is no descriptor to watch")
    }
}

impl fmt::Debug for ChildHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        let state = match record.status() {
            None => "running".to_owned(),
            Some(status) => status.to_string(),
        };
        f.debug_struct("Process")
            .field("name", &record.name)
            .field("pid", &record.process.pid())
            .field("parent", &record.parent)
            .field("state", &format_args!("{state}"))
            .field("daemon", &record.daemon)
            .finish()
    }
}

struct Ended<'a>(&'a Record);

impl Future for Ended<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx.waker())
    }
}
