//! One start, by each method.
//!
//! ```text
//!  a pair of sockets: the setup is written into ours
//!    Spawn       theirs is descriptor 0 of the program, started anew
//!    ForkServer  theirs goes to the fork server, whose copy says its pid over it, and is sent the setup then
//!    Fork        theirs is read by the copy of this process
//! ```
//!
//! From there on all are the same: the child reads what it is for, and reports over the same socket.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    time::Duration,
};

use super::{
    Child, Place, Process, Stdio, fork, output,
    server::Server,
    table::{self, Asked, Record},
};
use crate::{
    child::{
        birth::{self, Barren},
        identity,
        start_method::{self, StartMethod},
    },
    error::TaskError,
    os::{
        asked::Asked as _,
        process::{self, Start, above_stdio},
        ready,
        signals::Signals,
        socket,
    },
    registry,
    transport::board,
    wire::handshake::{self, BodySetup, Identity, Role, Setup, Surroundings},
};

/// Why a process was not started.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The arguments of its task cannot be encoded.
    #[error("{0}")]
    Arguments(TaskError),
    /// An option makes no sense.
    #[error("invalid option: {0}")]
    Invalid(Arc<str>),
    /// This process, or the fork server, never passed the entry; going on would start processes without end.
    #[error(
        "a process was started again but never reached executor's entry point; {remedy}",
        remedy = crate::error::ADD_THE_ENTRY
    )]
    NoEntry,
    /// Processes within processes, too deep.
    #[error(
        "processes are nested {depth} deep, {max} is the limit: does a process start itself without end?"
    )]
    TooDeep {
        /// How deep it would be.
        depth: u32,
        /// How deep is allowed.
        max: u32,
    },
    /// Two task functions have one name. Made where tasks are found by name across builds; a process of this program never makes
    /// it, as it tells such functions apart.
    #[error("{0}")]
    DuplicateTask(Arc<str>),
    /// [`StartMethod::Fork`] in a process with other threads.
    #[error(
        "this process has {threads} threads, and a copy of it would have one: what the others have locked stays locked in \
         it for ever; use StartMethod::Spawn or StartMethod::ForkServer, or start it before any thread"
    )]
    Threads {
        /// All of them, this one included.
        threads: usize,
    },
    /// The fork server cannot make children.
    #[error("the fork server cannot be used: {0}")]
    ForkServer(Arc<str>),
    /// The system made no copy.
    #[error("the operating system refused to fork: {0}")]
    Fork(Arc<io::Error>),
    /// The operating system refused something.
    #[error("the operating system refused {what}: {error}")]
    Os {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        error: Arc<io::Error>,
    },
}

crate::debug::debug_is_display!(StartError);

impl StartError {
    pub(super) fn os(what: &'static str, error: io::Error) -> Self {
        StartError::Os { what, error: Arc::new(error) }
    }
}

/// How long a child of the fork server may take to end whose socket does not take its setup. It has closed it, most often because it
/// dies. It is killed after that, and the start refused.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Where a stream of the child goes, and our end of it.
struct Stream {
    theirs: Option<OwnedFd>,
    ours: Option<OwnedFd>,
}

fn stream(place: Stdio, input: bool) -> io::Result<Stream> {
    let (theirs, ours) = match place.0 {
        // The child has an empty input anyway.
        Place::Null if input => (None, None),
        Place::Null => (Some(null()?), None),
        Place::Inherit if input => (Some(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?), None),
        Place::Inherit => (None, None),
        Place::Given(descriptor) => (Some(descriptor), None),
        Place::Piped => {
            let (read, write) = io::pipe()?;
            let (read, write) = (above_stdio(read.into())?, above_stdio(write.into())?);
            if input { (Some(read), Some(write)) } else { (Some(write), Some(read)) }
        }
    };
    Ok(Stream { theirs, ours })
}

fn null() -> io::Result<OwnedFd> {
    above_stdio(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Standard output and error of a child that does not inherit them. Where this process has closed its own, nothing.
fn outputs(stdout: &Stream, stderr: &Stream) -> io::Result<Vec<OwnedFd>> {
    let own = |stream| match rustix::io::fcntl_dupfd_cloexec(stream, 3) {
        Err(rustix::io::Errno::BADF) => null(),
        other => Ok(other?),
    };
    let of = |stream: &Stream, inherited| match &stream.theirs {
        Some(theirs) => theirs.try_clone(),
        None => own(inherited),
    };
    Ok(vec![of(stdout, rustix::stdio::stdout())?, of(stderr, rustix::stdio::stderr())?])
}

impl From<Barren> for StartError {
    fn from(barren: Barren) -> Self {
        match barren {
            Barren::NoEntry => StartError::NoEntry,
            Barren::TooDeep { depth, max } => StartError::TooDeep { depth, max },
        }
    }
}

pub(super) fn start<T>(process: Process<T>) -> Result<Child<T>, StartError> {
    birth::may_have_children()?;
    let Process { arguments, environment, directory, stdin, stdout, stderr, .. } = process;
    let (arguments, attachments) = arguments.map_err(StartError::Arguments)?;
    let invalid = |text: &str| StartError::Invalid(text.into());
    if environment.iter().any(|(key, value)| !is_environment(key, value.as_ref())) {
        return Err(invalid("an environment variable has a name that is empty or contains `=`, or a NUL"));
    }
    let method = process.method.unwrap_or_else(start_method::start_method);
    if process.executable.is_some() && method != StartMethod::Spawn {
        return Err(invalid("`executable` needs StartMethod::Spawn"));
    }
    // Held until it is started: the watcher sleeps meanwhile, and is no thread to be feared by a fork.
    let pause = (method == StartMethod::Fork).then(table::pause);
    if let Some(pause) = &pause {
        fork::check_threads(pause)?;
    }
    let os = |what| move |error: io::Error| StartError::os(what, error);
    let number = identity::next_child();
    let program = identity::for_child().map_err(os("what a process is told"))?;
    let path = [&*program.path, &[number]].concat();
    let name = process.name.unwrap_or_else(|| format!("Process-{}", identity::path_text(&path)));
    let daemon = process
        .daemon
        .unwrap_or_else(|| identity::told().is_some_and(|told| told.daemon && !told.is_worker()));
    let identity = Identity {
        name: name.clone(),
        path,
        daemon,
        start_method: Some(start_method::number_for_child(process.method)),
        ..program
    };
    let streams = |error| StartError::os("a pipe for standard input or output", error);
    let has_stdin = !matches!(stdin.0, Place::Null);
    let stdin = stream(stdin, true).map_err(streams)?;
    let stdout = stream(stdout, false).map_err(streams)?;
    let stderr = stream(stderr, false).map_err(streams)?;
    let (board, board_fd) = board::create().map_err(os("memory"))?;
    let forked = method != StartMethod::Spawn;
    let setup = Setup {
        parent: std::process::id(),
        identity,
        signals: Signals::of_this_thread(),
        role: Role::Body(Box::new(BodySetup {
            tasks: registry::fingerprint(),
            function: process.entry.number(),
            arguments: arguments.into(),
            attachments: attachments.len() as u32,
            outlives_parent: process.outlives_parent,
            stdin: has_stdin,
            limits: process.limits,
            surroundings: forked.then(|| surroundings(&environment, directory.as_deref())),
        })),
    };
    let mut descriptors = vec![board_fd.as_fd()];
    if has_stdin {
        descriptors.extend(stdin.theirs.as_ref().map(AsFd::as_fd));
    }
    let outputs = if forked { outputs(&stdout, &stderr).map_err(streams)? } else { Vec::new() };
    descriptors.extend(outputs.iter().map(AsFd::as_fd));
    let send = |socket: &OwnedFd| {
        handshake::send(socket, &setup, &descriptors).asked("the setup of a process")?;
        handshake::send_attachments(socket, &attachments).asked("descriptors for a process")
    };
    ready::check().map_err(os("to wait for descriptors (`poll`)"))?;
    if method != StartMethod::Fork {
        // A fork does so itself, where no other thread is.
        output::flush();
    }
    let (child, socket) = match method {
        StartMethod::Spawn => {
            let start = Start {
                executable: process.executable.as_deref(),
                marker: birth::MARKER,
                stdout: stdout.theirs,
                stderr: stderr.theirs,
                environment: &environment,
                directory: directory.as_deref(),
            };
            process::Child::start(start, send).map_err(os("to start a process"))?
        }
        StartMethod::ForkServer => {
            let (pid, ours) = process.server.unwrap_or_else(Server::of_program).make()?;
            let child = process::Child::adopt(pid).map_err(os("to watch a process"))?;
            // After it exists: should the server die, no other child reads the same setup. If the child has died meanwhile,
            // its status is going to say so; its socket is closed a moment before.
            if let Err(error) = send(&ours)
                && !child.ends_within(LAST_MOMENT)
            {
                child.kill_and_reap(Duration::from_secs(5));
                table::left_behind(&child);
                return Err(os("to tell a process what it is")(error));
            }
            (child, ours)
        }
        StartMethod::Fork => {
            let (ours, theirs) = socket::pair().map_err(os("a pair of sockets"))?;
            send(&ours).map_err(os("to tell a process what it is"))?;
            let pid = match pause {
                Some(pause) => fork::child(pause, theirs, ours.as_fd())?,
                None => return Err(invalid("no pause before a fork")),
            };
            (process::Child::adopt(pid).map_err(os("to watch a process"))?, ours)
        }
    };
    let asked = Asked {
        name,
        task: process.task,
        daemon,
        keeps_programs: process.keeps_programs,
        limit: process.timeout,
    };
    let record = Record::new(asked, child, socket, board);
    table::add(&record);
    Ok(Child::new(record, [stdin.ours, stdout.ours, stderr.ours], process.decode))
}

fn is_environment(key: &OsString, value: Option<&OsString>) -> bool {
    let key = key.as_bytes();
    !key.is_empty()
        && !key.contains(&b'=')
        && !key.contains(&0)
        && value.is_none_or(|value| !value.as_bytes().contains(&0))
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
        environment: environment.into_iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
        directory: directory.or_else(|| std::env::current_dir().ok().map(Into::into)).map(bytes),
    }
}
