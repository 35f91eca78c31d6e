//! The parent's side of a fork server.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{StartError, table};
use crate::{
    child::{
        identity,
        launch::{self, Launch, Launched, ServerCopy, Way},
    },
    id::FnId,
    os::{
        fork::{Creator, NotInherited, PerProcess},
        process::{Child, Start},
    },
    registry::{self, TaskEntry},
    task::{Encoded, Task},
    wire::{
        buffer::Buffer,
        frame::Reply,
        handshake::{self, ForkServerSetup, Identity, Report, Role},
    },
};

/// A handle of a fork server. The server is started when the first child is requested, and again if
/// it has died. It ends with its last handle.
#[derive(Clone)]
pub(crate) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    preload: Vec<Preload>,
    running: Option<Running>,
}

/// A task of `preload`.
struct Preload {
    function: FnId,
    name: String,
    /// The encoded arguments, or why the task is refused.
    arguments: Result<Vec<u8>, String>,
}

struct Running {
    /// A forked copy of this process must not keep the socket, because the server ends when it is
    /// closed.
    socket: Option<NotInherited>,
    child: Child,
    creator: Creator,
}

/// How long a fork server may take to notice that it is not needed any more. After that it is
/// killed.
const LAST_MOMENT: std::time::Duration = std::time::Duration::from_secs(1);

impl Drop for Running {
    fn drop(&mut self) {
        if !self.creator.is_elsewhere() {
            // The server ends when this is closed, together with the programs that `preload` has
            // started. Children that it has made are not in its group: they have left it before
            // anybody is told their pids (see `ask`).
            self.socket.take();
            table::end(&self.child, LAST_MOMENT);
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

    pub(super) fn preload<F: crate::task::TaskFn>(
        &self,
        entry: &'static TaskEntry,
        task: Task<F, Encoded>,
    ) {
        let (args, options) = task.into_parts();
        let called = options.called(entry.name).to_owned();
        let mut buffer = Buffer::new();
        let (encoded, attached) = crate::wire::attachment::collect(|| {
            <F as crate::task::TaskArgs<Encoded>>::encode_args(&args, &mut buffer)
        });
        let arguments = match entry.known().and(encoded.map_err(|error| error.message)) {
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
                None => Ok(buffer.into_vec()),
            },
        };
        let preload = Preload { function: entry.number(), name: called, arguments };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).preload.push(preload);
    }

    /// Makes a child, which then waits for its setup.
    pub(super) fn make(&self) -> Result<ServerCopy, StartError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.running.as_ref().is_some_and(|running| running.creator.is_elsewhere()) {
            state.running = None;
        }
        // A dead server is noticed when it is asked. Start another one then, and ask once more.
        let again = state.running.is_some();
        match ask(&mut state) {
            Err(StartError::Os { .. }) if again => {
                state.running = None;
                ask(&mut state)
            }
            other => other,
        }
    }
}

fn ask(state: &mut State) -> Result<ServerCopy, StartError> {
    let os = |error: io::Error| StartError::os("to ask the fork server", error);
    if state.running.is_none() {
        state.running = Some(start(&state.preload)?);
    }
    let server = state.running.as_ref().and_then(|running| running.socket.as_ref()?.get());
    let Some(server) = server else {
        return Err(os(io::ErrorKind::NotConnected.into()));
    };
    launch::ask_for_copy(server).map_err(os)?.map_err(|error| StartError::Fork(Arc::new(error)))
}

fn start(preload: &[Preload]) -> Result<Running, StartError> {
    let os = |error: io::Error| StartError::os("to start the fork server", error);
    let preload = preload
        .iter()
        .map(|Preload { function, name, arguments }| match arguments {
            Ok(bytes) => Ok((*function, name.clone(), bytes.clone().into())),
            Err(error) => {
                Err(StartError::ForkServer(format!("`preload` is refused: {error}").into()))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let has_preload = !preload.is_empty();
    let identity = Identity {
        name: "ForkServer".to_owned(),
        daemon: true,
        ..identity::for_child().map_err(os)?
    };
    let role = Role::ForkServer(ForkServerSetup { tasks: registry::fingerprint(), preload });
    let child = Launch { identity, role, descriptors: &[], attachments: &[] };
    let Launched { child, socket } =
        child.by(Way::Program(Start::default())).map_err(|refused| os(refused.error))?;
    let running =
        Running { socket: Some(NotInherited::new(socket)), child, creator: Creator::here() };
    let Some(socket) = running.socket.as_ref().and_then(NotInherited::get) else {
        return Err(os(io::ErrorKind::NotConnected.into()));
    };
    match handshake::receive_answer::<Report>(socket) {
        Ok(Ok(report)) if report.kind == Reply::Ready as u8 => Ok(running),
        Ok(Ok(_)) => Err(StartError::ForkServer("it says what a fork server does not".into())),
        Ok(Err(refusal)) => Err(StartError::ForkServer(refusal.why.into())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(StartError::ForkServer(error.to_string().into()))
        }
        Err(_) if has_preload => Err(StartError::ForkServer("it ended while `preload` ran".into())),
        Err(_) => Err(StartError::NoEntry),
    }
}
