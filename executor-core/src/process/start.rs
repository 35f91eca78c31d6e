//! Starts one process: from the options of a [`Process`] to a child in the table of processes.
//!
//! ```text
//!  Process ─► checks ─► identity, streams, board ─► Launch ─► by method ─► Record ─► table, Child
//! ```

use std::{
    ffi::OsString,
    io, iter,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    sync::Arc,
    time::Duration,
};

use super::{
    Child, Process, StartError, fork, output,
    record::{Asked, Record},
    server::Server,
    streams::Streams,
    table,
};
use crate::{
    child::{
        birth, environment, identity,
        launch::{Launch, Refused, Step, Way},
        start_method::{self, StartMethod},
    },
    error::TaskError,
    os::{process::Start, ready},
    registry,
    transport::board,
    wire::handshake::{BodySetup, Identity, Role, Surroundings},
};

/// How long to wait for the end of a child that was killed because its start failed.
const KILLED_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends a child that exists but was not launched, and converts the reason to an error.
fn refused(Refused { step, error, child }: Refused) -> StartError {
    if let Some(child) = child {
        table::kill(&child, KILLED_TIMEOUT);
    }
    let what = match step {
        Step::Start => "to start a process",
        Step::Pair => "a pair of sockets",
        Step::Tell => "to tell a process what it is",
        Step::Fork => return StartError::Fork(Arc::new(error)),
        Step::Watch => "to watch a process",
    };
    StartError::os(what, error)
}

/// Determines the identity of the child.
fn identity(
    name: Option<String>,
    daemon: Option<bool>,
    method: Option<StartMethod>,
) -> io::Result<Identity> {
    let number = identity::next_child();
    let program = identity::for_child()?;
    let path = [&*program.path, &[number]].concat();
    let default_name = || format!("Process-{}", identity::path_text(&path));
    let inherited_daemon = || identity::told().is_some_and(|told| told.daemon && !told.is_worker());
    Ok(Identity {
        name: name.unwrap_or_else(default_name),
        daemon: daemon.unwrap_or_else(inherited_daemon),
        start_method: Some(start_method::number_for_child(method)),
        path,
        ..program
    })
}

/// Checks the options that do not depend on the state of this process.
fn check_options(
    changes: &[(OsString, Option<OsString>)],
    has_executable: bool,
    method: StartMethod,
) -> Result<(), StartError> {
    let invalid = |text: &str| Err(StartError::Invalid(text.into()));
    if !environment::is_valid(changes) {
        return invalid(environment::INVALID);
    }
    if has_executable && method != StartMethod::Spawn {
        return invalid("`executable` needs StartMethod::Spawn");
    }
    Ok(())
}

/// Starts a process: checks, what the child is told, the launch, the record.
pub(super) fn start<T>(process: Process<T>) -> Result<Child<T>, StartError> {
    birth::may_have_children()?;
    let os = |what| move |error: io::Error| StartError::os(what, error);
    let (arguments, attachments) = process.arguments.map_err(|error| match error {
        TaskError::Invalid(what) => StartError::Invalid(what),
        error => StartError::Arguments(error),
    })?;
    let (changes, directory) = (&*process.environment, process.directory.as_deref());
    let method = process.method.unwrap_or_else(start_method::start_method);
    check_options(changes, process.executable.is_some(), method)?;
    // Held until the child is started. The watcher thread sleeps meanwhile, and so is no danger for
    // a fork.
    let pause = (method == StartMethod::Fork).then(table::pause);
    if let Some(pause) = &pause {
        fork::check_threads(pause)?;
    }
    let identity = identity(process.name, process.daemon, process.method)
        .map_err(os("what a process is told"))?;
    let asked = Asked {
        name: identity.name.clone(),
        task: process.task,
        daemon: identity.daemon,
        keeps_programs: process.keeps_programs,
        timeout: process.timeout,
    };
    // A copy inherits the streams, environment and directory of the fork server, so it is sent its
    // own.
    let copied = method != StartMethod::Spawn;
    let (board, board_fd) = board::create().map_err(os("memory"))?;
    let streams = Streams::open(process.stdin, process.stdout, process.stderr, copied)
        .map_err(os("a pipe for standard input or output"))?;
    let role = Role::Body(Box::new(BodySetup {
        tasks: registry::fingerprint(),
        function: process.entry.number(),
        arguments: arguments.into(),
        attachments: attachments.len() as u32,
        outlives_parent: process.outlives_parent,
        stdin: streams.has_stdin,
        limits: process.limits,
        surroundings: copied.then(|| surroundings(changes, directory)),
    }));
    let descriptors: Vec<_> = iter::once(&board_fd).chain(&streams.told).map(AsFd::as_fd).collect();
    ready::check().map_err(os("to wait for descriptors (`poll`)"))?;
    if method != StartMethod::Fork {
        // A fork flushes its output itself, after it has checked that there are no other threads.
        output::flush();
    }
    let way = match pause {
        Some(pause) => Way::Fork(Box::new(move |theirs, ours| fork::child(pause, theirs, ours))),
        None if copied => Way::Copied(process.server.unwrap_or_else(Server::of_program).make()?),
        None => {
            let [stdout, stderr] = streams.inherited;
            let executable = process.executable.as_deref();
            Way::Program(Start { executable, stdout, stderr, environment: changes, directory })
        }
    };
    let launch = Launch { identity, role, descriptors: &descriptors, attachments: &attachments };
    let launched = launch.by(way).map_err(refused)?;
    let record = Record::new(asked, launched, board);
    table::add(&record);
    Ok(Child::new(record, streams.ours, process.decode))
}

fn surroundings(
    changes: &[(OsString, Option<OsString>)],
    directory: Option<&std::path::Path>,
) -> Surroundings {
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    for (key, value) in changes {
        environment.retain(|(other, _)| other != key);
        environment.extend(value.clone().map(|value| (key.clone(), value)));
    }
    let bytes = |text: OsString| serde_bytes::ByteBuf::from(text.as_bytes());
    let directory = directory.map(|path| path.as_os_str().to_owned());
    Surroundings {
        environment: environment
            .into_iter()
            .map(|(key, value)| (bytes(key), bytes(value)))
            .collect(),
        directory: directory.or_else(|| std::env::current_dir().ok().map(Into::into)).map(bytes),
    }
}
