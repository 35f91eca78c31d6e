//! How the server's process begins: a process with one task, whose task is to serve.

use std::{fmt, os::fd::OwnedFd, sync::Arc};

use serde::{Deserialize, Serialize};

#[cfg(feature = "tls")]
use super::super::link::tls::{Identity, IdentityParts, TlsServer};
use super::{
    super::client::{Door, ServerId},
    core::Limits,
    crew,
    gate::GateSetup,
    serve::{self, Server},
    serving,
};
use crate::{
    __private::{Arguments, AsSerde, reply, way},
    error::Failure,
    id::{FnId, TaskId},
    ipc::{AuthKey, Transfer},
    os::{
        fork::NotInherited,
        limits::{OPEN_FILES_USUAL, limit_of},
        random, signals,
    },
    registry::{Call, CallContext, CallResult, Registered, SourcePlace, TASKS, TaskEntry},
    task::{TaskArgs, TaskFn},
    wire::{
        buffer::Buffer,
        codec::{Codec, CodecError, Format, Postcard},
        frame::Reply,
    },
    worker::call_here,
};

/// The task of the server's process.
#[derive(Debug)]
pub(in crate::manager) struct Serve;

/// What the server is told.
#[derive(Serialize, Deserialize)]
pub(in crate::manager) struct ServerSetup {
    pub(in crate::manager) id: [u8; 16],
    /// The server's end of the door, and the clients' end.
    pub(in crate::manager) door: Transfer<OwnedFd>,
    pub(in crate::manager) outside: Transfer<OwnedFd>,
    /// Closed when the server is to end.
    pub(in crate::manager) owner: Transfer<OwnedFd>,
    pub(in crate::manager) clients_max: u64,
    pub(in crate::manager) objects_max: u64,
    pub(in crate::manager) client_calls_max: u64,
    pub(in crate::manager) client_bytes_max: u64,
    pub(in crate::manager) message_bytes_max: u64,
    pub(in crate::manager) unread_bytes_max: u64,
    /// What clients have to know that come through the gate.
    pub(in crate::manager) key: Option<Secret>,
    /// Who the server is, over TCP.
    #[cfg(feature = "tls")]
    pub(in crate::manager) identity: Option<IdentityParts>,
    /// The number and the encoded arguments of the initializer.
    pub(in crate::manager) initializer: Option<(u64, Vec<u8>)>,
}

/// The bytes of a key, on their way to the server's process.
#[derive(Serialize, Deserialize)]
pub(in crate::manager) struct Secret(pub(in crate::manager) Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[linkme::distributed_slice(TASKS)]
static ENTRY: TaskEntry = TaskEntry {
    name: <Serve as TaskFn>::NAME,
    place: SourcePlace { file: file!(), line: line!(), column: column!(), module: module_path!() },
    signature: || env!("CARGO_PKG_VERSION").to_owned(),
    call: Call::Sync(call),
    registered: Registered::new(),
};

impl TaskFn for Serve {
    type Output = ();
    const NAME: &'static str = "executor::manager::serve";
    const CODEC: Codec = Codec::Postcard;

    fn entry() -> &'static TaskEntry {
        &ENTRY
    }

    fn decode_output(bytes: &[u8]) -> Result<(), CodecError> {
        Postcard::decode(bytes)
    }
}

impl TaskArgs<ServerSetup> for Serve {
    fn encode_args(setup: &ServerSetup, out: &mut Buffer) -> Result<(), CodecError> {
        Postcard::encode(setup, out)
    }
}

fn call(bytes: &[u8], context: &mut CallContext) -> CallResult {
    let mut arguments = Arguments::<Postcard>::new(bytes, context);
    let way_in = way::<Postcard, ServerSetup, AsSerde, ServerSetup>(AsSerde);
    let setup = match arguments.next(way_in, "setup") {
        Ok(setup) => setup,
        Err(failed) => return failed,
    };
    if let Err(failed) = arguments.finish() {
        return failed;
    }
    // It has copies of the descriptors in the setup.
    drop(arguments);
    context.run_begins();
    let served = run(setup);
    context.run_ends();
    match served {
        Ok(()) => reply::<Postcard, ()>(way::<Postcard, (), AsSerde, ()>(AsSerde), &(), context),
        Err(message) => CallResult::Failed(Failure { message, ..Failure::default() }),
    }
}

/// Number of descriptors that are left for something else than handles and clients: strangers at
/// the gate, addresses, and what the functions of users open.
const OTHER_FILES: u64 = 256;

/// Allows this process as many open files as the system does. Each client and each handle that was
/// sent needs one.
///
/// Returns how many of them handles that were sent may use. The others are left for clients that
/// come later.
fn allow_many_files(clients_max: u64) -> usize {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = match limit_of(Resource::Nofile) {
        Ok(Rlimit { current, maximum }) => {
            // If that is refused, the limit stays.
            let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
            if raised { maximum } else { current }
        }
        // In a sandbox that forbids the question, it is not known what to raise it to.
        Err(_) => Some(OPEN_FILES_USUAL),
    };
    let for_handles =
        limit.map(|limit| limit - clients_max.saturating_add(OTHER_FILES).min(limit / 2));
    for_handles.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// Runs the initializer, then serves.
fn run(setup: ServerSetup) -> Result<(), String> {
    // The owner decides when the server ends, as in Python.
    signals::ignore_interrupt();
    let leases_max = allow_many_files(setup.clients_max);
    // Before any code of the user runs here, which may fork.
    let door = NotInherited::new(setup.door.into_inner());
    let owner = NotInherited::new(setup.owner.into_inner());
    if let Some((function, arguments)) = setup.initializer {
        initialize(FnId(function), &arguments)?;
    }
    let id = ServerId(u128::from_le_bytes(setup.id));
    let outside = Arc::new(Door::own(id, Arc::new(setup.outside.into_inner())));
    // From here on, the functions of users may ask for it.
    serving::set(&outside);
    let at_most = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let limits = Limits {
        clients: at_most(setup.clients_max),
        objects: at_most(setup.objects_max),
        calls_per_client: at_most(setup.client_calls_max),
        bytes_per_client: setup.client_bytes_max,
    };
    let setup = serve::Setup {
        door,
        outside,
        owner,
        limits,
        message_bytes_max: setup.message_bytes_max,
        unread_bytes_max: setup.unread_bytes_max,
        leases_max,
        ids_key: Some(random::bytes().map_err(|error| format!("random numbers: {error}"))?),
        gate: GateSetup {
            key: setup.key.map(|Secret(bytes)| AuthKey::new(bytes)),
            #[cfg(feature = "tls")]
            tls: setup.identity.map(tls_of).transpose()?,
            ..GateSetup::default()
        },
    };
    let serve = |server: Server| {
        let gate = server.gate();
        let served = crew::run(server);
        gate.close();
        served
    };
    Server::new(setup)
        .and_then(serve)
        .map_err(|error| format!("the server of a manager cannot wait: {error}"))
}

#[cfg(feature = "tls")]
fn tls_of(parts: IdentityParts) -> Result<TlsServer, String> {
    let identity = Identity::from_parts(parts).map_err(|error| error.to_string())?;
    TlsServer::new(&identity).map_err(|error| error.to_string())
}

fn initialize(function: FnId, arguments: &[u8]) -> Result<(), String> {
    // An id of its own, so that its panic is told to the caller and not printed.
    call_here(TaskId::from_raw(3), function, arguments, None, |kind, bytes, _| match kind {
        Reply::Done => Ok(()),
        kind => Err(format!("its initializer failed: {}", crate::error::reply::text(kind, bytes))),
    })
}
