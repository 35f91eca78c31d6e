//! The fork server of a pool. The starter thread has it, and starts it with the first worker.
//!
//! ```text
//!  starter thread                                    driver thread
//!    no server, or it has died ─► launch ─ apart ─►    sleeps on its pidfd, reaps it
//!    wait for `preload` ─┐
//!    ask for a copy ─────┴─► a copy, launched like any child
//!    the pool ends: the socket is closed               waits for its end
//! ```
//!
//! The starter waits in short steps: for an answer, for the end of its patience, and for the worker
//! not to be wanted any more, as when the pool is killed while `preload` runs.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};

use super::Pool;
use crate::{
    child::{
        launch::ServerCopy,
        server::{Preload, Server, ServerError},
    },
    error::BrokenCause,
    id::WorkerId,
    os::{process::Child, socket},
};

/// How often the starter checks whether the worker for which it waits is still wanted. With a lower
/// value, it takes the pool's lock more often. With a higher value, a pool that is killed while its
/// server prepares ends later.
const STEP: Duration = Duration::from_millis(50);

/// How long a server that has closed its socket may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The fork server of a pool, if it runs.
#[derive(Default)]
pub(super) struct ForkServer(Option<Running>);

struct Running {
    server: Server,
    /// When it was started, until its `preload` has run.
    preloads_since: Option<Instant>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends when its socket is closed. One that still runs `preload` would not notice.
        if self.preloads_since.is_some() {
            kill(&self.server.child);
        }
    }
}

/// Kills a server. The driver reaps it.
fn kill(child: &Child) {
    // If the system refuses this, the server ends when its socket is closed.
    let _ = child.signal_group(Signal::KILL);
}

impl ForkServer {
    /// Makes a copy of the server for this worker, and starts the server before that if needed.
    pub(super) fn copy(
        &mut self,
        pool: &Pool,
        id: WorkerId,
        preload: &[Preload],
    ) -> Result<ServerCopy, BrokenCause> {
        // A dead server is noticed when it is asked. Start another one then, and ask once more.
        let again = self.0.as_ref().is_some_and(|running| running.preloads_since.is_none());
        match self.ask(pool, id, preload) {
            Err(ServerError::Silent(error)) if again && error.kind() != io::ErrorKind::TimedOut => {
                self.ask(pool, id, preload)
            }
            other => other,
        }
        .map_err(|error| self.cause(pool, error))
    }

    fn ask(
        &mut self,
        pool: &Pool,
        id: WorkerId,
        preload: &[Preload],
    ) -> Result<ServerCopy, ServerError> {
        if !is_wanted(pool, id) {
            return Err(ServerError::Silent(unwanted()));
        }
        let options = &pool.options;
        let running = match &mut self.0 {
            Some(running) => running,
            none => {
                let program = &options.start.program;
                let start = program.start(&program.environment).map_err(ServerError::Start)?;
                let server = Server::launch(preload, start)?;
                pool.set_apart(Arc::clone(&server.child));
                none.insert(Running { server, preloads_since: Some(Instant::now()) })
            }
        };
        if let Some(since) = running.preloads_since {
            let patience = options.start.preload_timeout.saturating_add(options.start_timeout);
            let deadline = since.checked_add(patience);
            let ready = running.server.ready(&|socket| wait(pool, id, socket, deadline));
            match ready {
                Ok(()) => running.preloads_since = None,
                // The next worker waits on.
                Err(ServerError::Silent(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    return Err(ServerError::Silent(error));
                }
                Err(ServerError::Silent(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    self.0 = None;
                    let why = format!("`preload` has not ended after {patience:?}");
                    return Err(ServerError::Unusable(why));
                }
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now().checked_add(options.start_timeout);
        let copy = running.server.copy(&|socket| wait(pool, id, socket, deadline));
        if let Err(ServerError::Silent(_)) = &copy {
            // It is dead, or stopped. If it made the copy later, nobody would know that copy, which
            // is in the server's group until it has been answered.
            kill(&running.server.child);
            self.0 = None;
        }
        copy
    }

    /// Returns what an error means for the pool.
    fn cause(&mut self, pool: &Pool, error: ServerError) -> BrokenCause {
        let start = |text: String| BrokenCause::Start(text.into());
        match error {
            ServerError::Start(error) => start(format!("to start the fork server: {error}")),
            ServerError::NoEntry => {
                let child = self.0.take().map(|running| Arc::clone(&running.server.child));
                let status = child.map(|child| {
                    child.ends_within(LAST_MOMENT);
                    child.reap(|_| false)
                });
                pool.bell.ring();
                BrokenCause::NoEntry { status: status.unwrap_or(crate::error::ExitStatus::Unknown) }
            }
            ServerError::Unusable(why) => {
                self.0 = None;
                start(format!("the fork server cannot be used: {why}"))
            }
            ServerError::Silent(error) => start(format!("to ask the fork server: {error}")),
            ServerError::Refused(error) => {
                start(format!("the fork server cannot copy itself (clone): {error}"))
            }
        }
    }
}

fn is_wanted(pool: &Pool, id: WorkerId) -> bool {
    pool.lock().scheduler.is_wanted(id)
}

fn unwanted() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the worker is not wanted any more")
}

/// Waits until a socket can be read, or is closed. An error ends the wait: the deadline has passed,
/// or the worker is not wanted any more.
fn wait(
    pool: &Pool,
    id: WorkerId,
    socket: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let step = left.map_or(STEP, |left| left.min(STEP));
        let step = Timespec { tv_sec: 0, tv_nsec: step.subsec_nanos().into() };
        if socket::retry(|| poll(&mut fds, Some(&step)))? > 0 {
            return Ok(());
        }
        if !is_wanted(pool, id) {
            return Err(unwanted());
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
        }
    }
}

impl Pool {
    /// Hands a child that is no worker to the driver, which reaps it: a fork server, or a copy of
    /// it that never learned what it is for.
    pub(super) fn set_apart(&self, child: Arc<Child>) {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        self.bell.ring();
    }

    /// Returns the children that are no workers, and that were not reaped.
    pub(super) fn apart(&self) -> Vec<Arc<Child>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets children that are no workers, and that were reaped.
    pub(super) fn forget_apart(&self, child: &Arc<Child>) {
        let mut apart = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        apart.retain(|other| !Arc::ptr_eq(other, child));
    }
}
