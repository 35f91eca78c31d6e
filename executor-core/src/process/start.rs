//! Starts one process: from the options of a [`Process`] to a child in the table of processes.
//!
//! ```text
//!  Process ─► checks ─► identity, streams, board ─► Launch ─► by method ─► Record ─► table, Child
//! ```

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    fs::OpenOptions,
    io, iter,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    time::Duration,
};

use super::{
    Child, Process, Stdio, StreamTarget, fork, output,
    server::Server,
    table::{self, Asked, Record},
};
use crate::{
    child::{
        birth::{self, Barren},
        identity,
        launch::{Launch, Refused, Step, Way},
        start_method::{self, StartMethod},
    },
    error::{ADD_THE_ENTRY, TaskError},
    os::{
        process::{Start, above_stdio},
        ready,
    },
    registry,
    transport::board,
    wire::handshake::{BodySetup, Identity, Role, Surroundings},
};

/// Why a process was not started.
#[derive(Clone)]
#[non_exhaustive]
pub enum StartError {
    /// The arguments of the task cannot be encoded.
    Arguments(TaskError),
    /// An option has an invalid value.
    Invalid(Arc<str>),
    /// This process, or the fork server, has never called the entry. Continuing would start
    /// processes without end.
    NoEntry,
    /// Processes are nested too deeply.
    TooDeep {
        /// The depth that the process would have.
        depth: u32,
        /// The maximum depth.
        max: u32,
    },
    /// Two task functions have the same name. This can happen only where tasks are found by name
    /// across builds. A process of this program never returns it, because it tells such functions
    /// apart.
    DuplicateTask(Arc<str>),
    /// [`StartMethod::Fork`] was used in a process with other threads.
    Threads {
        /// The number of threads, including the calling one.
        threads: usize,
    },
    /// The fork server cannot create children.
    ForkServer(Arc<str>),
    /// The system refused to fork.
    Fork(Arc<io::Error>),
    /// The operating system refused a request.
    Os {
        /// The request.
        what: &'static str,
        /// The error that the system returned.
        error: Arc<io::Error>,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Arguments(error) => fmt::Display::fmt(error, f),
            StartError::Invalid(what) => write!(f, "invalid option: {what}"),
            StartError::NoEntry => write!(
                f,
                "a process was started again but never reached executor's entry point; {ADD_THE_ENTRY}"
            ),
            StartError::TooDeep { depth, max } => write!(
                f,
                "processes are nested {depth} deep, {max} is the limit: does a process start itself without end?"
            ),
            StartError::DuplicateTask(what) => f.write_str(what),
            StartError::Threads { threads } => write!(
                f,
                "this process has {threads} threads, and a copy of it would have one: what the others have \
                 locked stays locked in it for ever; use StartMethod::Spawn or StartMethod::ForkServer, or \
                 start it before any thread"
            ),
            StartError::ForkServer(why) => write!(f, "the fork server cannot be used: {why}"),
            StartError::Fork(_) => f.write_str("the operating system refused to fork"),
            StartError::Os { what, error: _ } => write!(f, "the operating system refused {what}"),
        }
    }
}

impl Error for StartError {
    /// Returns the operating system's error, as an [`io::Error`].
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StartError::Arguments(error) => error.source(),
            StartError::Fork(error) | StartError::Os { error, .. } => Some(&**error),
            _ => None,
        }
    }
}

crate::debug::debug_is_chain!(StartError);

impl StartError {
    pub(super) fn os(what: &'static str, error: io::Error) -> Self {
        StartError::Os { what, error: Arc::new(error) }
    }
}

/// How long to wait for the end of a child that was killed because its start failed.
const KILLED_TIMEOUT: Duration = Duration::from_secs(5);

/// One standard stream of a child: the child's end, and this process's end of a pipe.
struct Stream {
    theirs: Option<OwnedFd>,
    ours: Option<OwnedFd>,
}

impl Stream {
    fn open(place: Stdio, input: bool) -> io::Result<Self> {
        let (theirs, ours) = match place.0 {
            // The child's input is empty by default.
            StreamTarget::Null if input => (None, None),
            StreamTarget::Null => (Some(null()?), None),
            StreamTarget::Inherit if input => {
                (Some(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?), None)
            }
            StreamTarget::Inherit => (None, None),
            StreamTarget::Given(descriptor) => (Some(descriptor), None),
            StreamTarget::Piped => {
                let (read, write) = io::pipe()?;
                let (read, write) = (above_stdio(read.into())?, above_stdio(write.into())?);
                if input { (Some(read), Some(write)) } else { (Some(write), Some(read)) }
            }
        };
        Ok(Stream { theirs, ours })
    }
}

fn null() -> io::Result<OwnedFd> {
    above_stdio(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Standard input, output and error of a child.
struct Streams {
    has_stdin: bool,
    /// Descriptors that are sent with the setup, because no child inherits them: the child's input,
    /// and for a copy also its output and error.
    told: Vec<OwnedFd>,
    /// Descriptors that a newly started program inherits in place of this process's output and
    /// error.
    inherited: [Option<OwnedFd>; 2],
    /// This process's ends of the pipes.
    ours: [Option<OwnedFd>; 3],
}

impl Streams {
    fn open(stdin: Stdio, stdout: Stdio, stderr: Stdio, copied: bool) -> io::Result<Self> {
        let has_stdin = !matches!(stdin.0, StreamTarget::Null);
        let stdin = Stream::open(stdin, true)?;
        let stdout = Stream::open(stdout, false)?;
        let stderr = Stream::open(stderr, false)?;
        let mut told = Vec::from_iter(stdin.theirs);
        let mut inherited = [stdout.theirs, stderr.theirs];
        if copied {
            let [stdout, stderr] = inherited.each_mut().map(Option::take);
            told.push(stdout.map_or_else(|| own(rustix::stdio::stdout()), Ok)?);
            told.push(stderr.map_or_else(|| own(rustix::stdio::stderr()), Ok)?);
        }
        Ok(Streams { has_stdin, told, inherited, ours: [stdin.ours, stdout.ours, stderr.ours] })
    }
}

/// Duplicates this process's output or error. If this process has closed its own, opens
/// `/dev/null`.
fn own(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match rustix::io::fcntl_dupfd_cloexec(stream, 3) {
        Err(rustix::io::Errno::BADF) => null(),
        other => Ok(other?),
    }
}

impl From<Barren> for StartError {
    fn from(barren: Barren) -> Self {
        match barren {
            Barren::NoEntry => StartError::NoEntry,
            Barren::TooDeep { depth, max } => StartError::TooDeep { depth, max },
        }
    }
}

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

pub(super) fn start<T>(process: Process<T>) -> Result<Child<T>, StartError> {
    birth::may_have_children()?;
    let os = |what| move |error: io::Error| StartError::os(what, error);
    let invalid = |text: &str| StartError::Invalid(text.into());
    let (arguments, attachments) = process.arguments.map_err(StartError::Arguments)?;
    let (environment, directory) = (&*process.environment, process.directory.as_deref());
    if environment.iter().any(|(key, value)| !is_environment(key, value.as_ref())) {
        return Err(invalid(
            "an environment variable has a name that is empty or contains `=`, or a NUL",
        ));
    }
    let method = process.method.unwrap_or_else(start_method::start_method);
    if process.executable.is_some() && method != StartMethod::Spawn {
        return Err(invalid("`executable` needs StartMethod::Spawn"));
    }
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
        surroundings: copied.then(|| surroundings(environment, directory)),
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
            Way::Program(Start { executable, stdout, stderr, environment, directory })
        }
    };
    let launch = Launch { identity, role, descriptors: &descriptors, attachments: &attachments };
    let launched = launch.by(way).map_err(refused)?;
    let record = Record::new(asked, launched, board);
    table::add(&record);
    Ok(Child::new(record, streams.ours, process.decode))
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
        environment: environment
            .into_iter()
            .map(|(key, value)| (bytes(key), bytes(value)))
            .collect(),
        directory: directory.or_else(|| std::env::current_dir().ok().map(Into::into)).map(bytes),
    }
}
