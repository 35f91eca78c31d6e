//! The user's handles of a started process: [`Child`] and [`ChildHandle`].

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

use super::record::Record;
use crate::{
    error::{ExitStatus, TaskError},
    future::cell::Outcome,
};

/// A process that was started by [`Process::start`](crate::Process::start), and the value that it
/// will return.
///
/// It derefs to [`ChildHandle`], which has all methods that do not concern the value. Dropping it
/// does not affect the process, which continues and is reaped when it ends.
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
    /// This process's ends of the child's piped standard input, output and error, until they are
    /// taken.
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

    /// Waits for the end of the process, and returns the value that its body returned. It may be
    /// called several times: the value is decoded each time.
    ///
    /// This process's end of the child's standard input is closed first, unless it was
    /// [taken](Self::take_stdin), so that a body that reads to the end of the input finishes. Read
    /// [piped](crate::Stdio::piped) output before calling this. A pipe holds 64 KiB, and a child
    /// that writes more waits until somebody reads.
    ///
    /// The result may have any size. A result of about 64 KiB or more is stored in an anonymous
    /// file, which takes memory until the last handle of the process is dropped. This process maps
    /// the file, and each decoded value takes its own memory. If the child could not create the
    /// file (for lack of memory, for example), the result is an error that says how many bytes
    /// there were.
    ///
    /// # Errors
    /// - The `Err` or the panic of the body, as a future reports it.
    /// - [`TaskError::WorkerLost`] with the exit status, if the process ended before the body
    ///   returned: by `std::process::exit` (even with 0, because there is no value), by a signal,
    ///   or by [`terminate`](ChildHandle::terminate).
    /// - [`TaskError::Invalid`] in a fork of the process that started it.
    pub fn join(&self) -> Result<T, TaskError> {
        drop(self.take_stdin());
        self.handle.record.wait(None);
        (self.decode)(self.handle.record.outcome())
    }

    /// Does the same as [`join`](Self::join), but waits at most `timeout`. Returns `None` if the
    /// time has passed; the process continues. Its standard input stays open.
    pub fn join_timeout(&self, timeout: Duration) -> Option<Result<T, TaskError>> {
        // In a fork, waiting returns `None` at once, and the outcome is an error that says so.
        if self.handle.record.wait(Instant::now().checked_add(timeout)).is_none()
            && !self.handle.record.creator.is_elsewhere()
        {
            return None;
        }
        Some((self.decode)(self.handle.record.outcome()))
    }

    /// Does the same as [`join`](Self::join), for async code on any runtime.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn join_async(&self) -> Result<T, TaskError> {
        drop(self.take_stdin());
        Ended(&self.handle.record).await;
        (self.decode)(self.handle.record.outcome())
    }

    /// Takes this process's end of the child's standard input, if it is
    /// [`piped`](crate::Stdio::piped). The second call returns `None`.
    pub fn take_stdin(&self) -> Option<OwnedFd> {
        self.take(0)
    }

    /// Takes this process's end of the child's standard output, if it is
    /// [`piped`](crate::Stdio::piped). The second call returns `None`.
    pub fn take_stdout(&self) -> Option<OwnedFd> {
        self.take(1)
    }

    /// Takes this process's end of the child's standard error, if it is
    /// [`piped`](crate::Stdio::piped). The second call returns `None`.
    pub fn take_stderr(&self) -> Option<OwnedFd> {
        self.take(2)
    }

    fn take(&self, number: usize) -> Option<OwnedFd> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)[number].take()
    }

    /// Returns a handle without the type of the value, which can be stored separately.
    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// Releases the resources of a process that has ended.
    ///
    /// # Errors
    /// The child itself, if it is still running.
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

/// A handle of a process without the type of its value, as [`Child::handle`] and
/// [`active_children`](crate::active_children) return it.
///
/// In a fork of the process that started the child, the handle is inert. It sends no signals, and
/// the process never seems to have ended. Waiting returns at once, with [`ExitStatus::Unknown`].
#[derive(Clone)]
pub struct ChildHandle {
    pub(super) record: Arc<Record>,
}

impl ChildHandle {
    /// Returns the process id. No other process gets the same id until this process is reaped.
    pub fn pid(&self) -> u32 {
        self.record.process.pid()
    }

    /// Returns the name of the process.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Returns whether the process is terminated when the program ends.
    pub fn daemon(&self) -> bool {
        self.record.daemon
    }

    /// Returns whether the process is running. If it has ended, this call reaps it.
    pub fn is_alive(&self) -> bool {
        self.record.status().is_none()
    }

    /// Returns how the process ended, by exit code or by signal. Returns `None` while it is
    /// running.
    pub fn exit_code(&self) -> Option<ExitStatus> {
        self.record.status()
    }

    /// Waits for the end of the process, whatever its value is.
    pub fn wait_exit(&self) -> ExitStatus {
        self.record.wait(None).unwrap_or(ExitStatus::Unknown)
    }

    /// Does the same as [`wait_exit`](Self::wait_exit), but waits at most `timeout`. Returns `None`
    /// if the time has passed.
    pub fn wait_exit_timeout(&self, timeout: Duration) -> Option<ExitStatus> {
        self.record.wait(Instant::now().checked_add(timeout))
    }

    /// Sends `SIGTERM` to the process, and to no other process. It ends without running its exit
    /// hooks, unless it handles the signal. Its own children notice its end. If the process has
    /// ended, nothing happens.
    ///
    /// A child has the signal mask of the thread that started it, as with `fork`. If this thread
    /// had blocked `SIGTERM`, the signal stays pending until the child unblocks it.
    /// [`kill`](Self::kill) cannot be blocked.
    ///
    /// # Errors
    /// If the system refuses, because the process has changed to another user.
    pub fn terminate(&self) -> std::io::Result<()> {
        self.record.signal(Signal::TERM)
    }

    /// Sends `SIGKILL` to the process, and to no other process.
    ///
    /// # Errors
    /// The same as [`terminate`](Self::terminate).
    pub fn kill(&self) -> std::io::Result<()> {
        self.record.signal(Signal::KILL)
    }

    /// Sends `SIGINT` to the process, and to no other process. Nothing happens if the program
    /// ignores the signal. A program that a shell script started in the background (`program &`)
    /// ignores it, and so do its children.
    ///
    /// # Errors
    /// The same as [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> std::io::Result<()> {
        self.record.signal(Signal::INT)
    }

    /// Kills the process and its process group, which contains the programs that it started, unless
    /// they have left the group. Its own [`Process`](crate::Process)es and workers notice its end,
    /// and kill their own groups.
    ///
    /// If the process has ended, this kills the remaining members of its group: the programs that
    /// it was [allowed to leave](crate::Process::keep_programs).
    pub fn kill_tree(&self) {
        self.record.kill_group();
    }

    /// Returns a descriptor that becomes readable when the process has ended: a pidfd, for `poll`,
    /// [`wait_any`](crate::wait_any) and similar functions. Returns `None` if other code had reaped
    /// the process before the descriptor could be opened.
    pub fn sentinel(&self) -> Option<BorrowedFd<'_>> {
        self.record.process.pidfd()
    }
}

impl AsFd for ChildHandle {
    /// Returns the [`sentinel`](Self::sentinel).
    ///
    /// # Panics
    /// If there is none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel().expect(
            "SIGCHLD is ignored, or others wait for any child: there is no descriptor to watch",
        )
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

/// A future that is ready when the process has ended.
struct Ended<'a>(&'a Record);

impl Future for Ended<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx.waker())
    }
}
