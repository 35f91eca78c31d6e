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
//! The starter waits in short steps: for an answer, for the end of its patience, for the worker not
//! to be wanted any more, as when the pool is killed while `preload` runs, and for the server to be
//! of no use: it is stopped, or hangs. Such a server is replaced once, and asked again.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Instant,
};

use rustix::process::Signal;

use super::Pool;
use crate::{
    child::{
        launch::ServerCopy,
        server::{Preload, Server, ServerError, is_stop, until_readable},
    },
    error::BrokenCause,
    id::WorkerId,
    os::process::Child,
};

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
        let was_ready = self.0.as_ref().is_some_and(|running| running.preloads_since.is_none());
        match self.ask(pool, id, preload) {
            Err(ServerError::Silent(error)) if was_ready && !is_final(&error) => {
                self.ask(pool, id, preload)
            }
            // It was stopped while `preload` ran. If it is the terminal that stops it, it will stop
            // the next one as well.
            Err(ServerError::Silent(error)) if is_stop(&error) => self.ask(pool, id, preload),
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
                let server = Server::launch(options.places.name.as_deref(), preload, start)?;
                pool.set_apart(Arc::clone(&server.child));
                none.insert(Running { server, preloads_since: Some(Instant::now()) })
            }
        };
        if let Some(since) = running.preloads_since {
            let patience = options.start.preload_timeout.saturating_add(options.start_timeout);
            let deadline = since.checked_add(patience);
            let child = &running.server.child;
            let go_on = || go_on(pool, id, deadline);
            let ready =
                running.server.ready(&|socket| until_readable(socket, child, false, &go_on));
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
                Err(ServerError::Silent(error)) => {
                    kill(child);
                    self.0 = None;
                    return Err(ServerError::Silent(error));
                }
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now().checked_add(options.start_timeout);
        let child = &running.server.child;
        let go_on = || go_on(pool, id, deadline);
        let copy = running.server.copy(&|socket| until_readable(socket, child, true, &go_on));
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
                let status = self.0.take().map(|running| running.server.ends());
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

/// Returns whether another server would not help: the worker is not wanted any more, or its time is
/// over.
fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Ends a wait for the server of a worker that is not wanted any more, or when its time is over.
fn go_on(pool: &Pool, id: WorkerId, deadline: Option<Instant>) -> io::Result<()> {
    if !is_wanted(pool, id) {
        return Err(unwanted());
    }
    if deadline.is_some_and(|at| at <= Instant::now()) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
    }
    Ok(())
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
