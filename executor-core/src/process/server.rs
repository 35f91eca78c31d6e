//! The fork server of a [`Context`](super::Context), or of the program.

use std::sync::{Arc, Mutex, PoisonError};

use super::{StartError, table};
use crate::{
    child::{
        launch::ServerCopy,
        server::{Preload, Server as Running, ServerError, is_stop, until_readable},
    },
    os::{fork::PerProcess, process::Start},
    task::IntoTask,
};

/// A handle of a fork server. The server is started when the first child is requested, and again if
/// it has died. It ends with its last handle.
#[derive(Clone)]
pub(crate) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    preload: Vec<Preload>,
    /// Why a task of `preload` is refused, if one is.
    refused: Option<String>,
    running: Option<Reaped>,
}

/// A server that is reaped when this is dropped.
struct Reaped(Option<Running>);

/// How long a fork server may take to notice that it is not needed any more. After that it is
/// killed.
const LAST_MOMENT: std::time::Duration = std::time::Duration::from_secs(1);

impl Drop for Reaped {
    fn drop(&mut self) {
        let Some(server) = self.0.take() else { return };
        if !server.is_elsewhere() {
            // The server ends when its socket is closed, together with the programs that `preload`
            // has started. Children that it has made are not in its group: they have left it before
            // anybody is told their pids (see `Running::copy`).
            let child = Arc::clone(&server.child);
            drop(server);
            table::end(&child, LAST_MOMENT);
        }
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        Server(Arc::default())
    }

    /// Returns the fork server of processes without a context.
    pub(super) fn of_program() -> Self {
        static OWN: PerProcess<Server> = PerProcess::new(Server::new);
        OWN.get().clone()
    }

    pub(super) fn preload<T: IntoTask>(&self, task: T) {
        let preload = Preload::of(task);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match preload {
            Ok(preload) => state.preload.push(preload),
            Err(why) => _ = state.refused.get_or_insert(why),
        }
    }

    /// Makes a child, which then waits for its setup.
    pub(super) fn make(&self) -> Result<ServerCopy, StartError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.server().is_some_and(Running::is_elsewhere) {
            state.running = None;
        }
        // A dead server is noticed when it is asked. Start another one then, and ask once more.
        let again = state.running.is_some();
        match ask(&mut state) {
            Err(ServerError::Silent(error)) if again || is_stop(&error) => {
                state.running = None;
                ask(&mut state)
            }
            other => other,
        }
        .inspect_err(|error| {
            // What it answers later nobody would hear.
            if let ServerError::Silent(_) = error {
                state.running = None;
            }
        })
        .map_err(start_error)
    }
}

impl State {
    fn server(&self) -> Option<&Running> {
        self.running.as_ref()?.0.as_ref()
    }
}

/// Asks the server for a copy, and starts it before that if needed. A process that starts another
/// one waits for it as long as `preload` takes.
fn ask(state: &mut State) -> Result<ServerCopy, ServerError> {
    if let Some(server) = state.server() {
        return copy(server);
    }
    if let Some(why) = &state.refused {
        return Err(ServerError::Unusable(format!("`preload` is refused: {why}")));
    }
    let server = Reaped(Some(Running::launch(None, &state.preload, Start::default())?));
    if let Some(running) = &server.0 {
        running.ready(&|socket| until_readable(socket, &running.child, false, &|| Ok(())))?;
    }
    let server = state.running.insert(server);
    match &server.0 {
        Some(running) => copy(running),
        None => Err(ServerError::NoEntry),
    }
}

fn copy(server: &Running) -> Result<ServerCopy, ServerError> {
    server.copy(&|socket| until_readable(socket, &server.child, true, &|| Ok(())))
}

fn start_error(error: ServerError) -> StartError {
    match error {
        ServerError::Start(error) => StartError::os("to start the fork server", error),
        ServerError::NoEntry => StartError::NoEntry,
        ServerError::Unusable(why) => StartError::ForkServer(why.into()),
        ServerError::Silent(error) => StartError::os("to ask the fork server", error),
        ServerError::Refused(error) => StartError::Fork(Arc::new(error)),
    }
}
