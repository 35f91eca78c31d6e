//! "Am I a worker?": asked first of all in `main`.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::fcntl_dupfd_cloexec;

use super::{beside::Arguments, body, fork_server, serve, watcher};
use crate::{
    os::{memory::Shared, process, socket},
    program, registry,
    segment::Store,
    transport::{
        ipc,
        ring::{RingWorkerEnd, Segment, doorbell::Doorbell},
    },
    wire::handshake::{self, Hello, Role, Setup, Transport, WorkerSetup},
};

/// A worker's only argument. Not in the environment: that is inherited by everything a task starts.
pub(crate) const MARKER: &str = "--executor-worker";

/// Pools and processes within tasks within pools; loky's limit. More than this is a task that submits itself without end.
pub(crate) const DEPTH_MAX: u32 = 10;

static PASSED: AtomicBool = AtomicBool::new(false);

/// Makes this program able to be a worker: call it first thing in `main`, before threads are started and before
/// anything is printed.
///
/// In the program that the user started it returns at once. In a worker it never returns: it runs tasks until the
/// executor is done with them, and ends the process. `#[executor::main]` calls it for you.
///
/// A program that makes an executor without having called it gets an error that says so, from the executor.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// fn main() {
///     executor::init();
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
/// }
/// ```
pub fn init() {
    if let Some(socket) = adopt() {
        // The main thread: where !Send state and thread-bound libraries expect to be.
        run(socket, false);
    }
    PASSED.store(true, Ordering::Release);
}

/// The entry of test binaries, whose `main` is not the user's: called from an `.init_array` entry.
///
/// std's runtime is not up yet. A thread of our own gives the worker a name and a stack; SIGPIPE is set by hand, as
/// std would have done.
#[doc(hidden)]
pub fn init_before_main() {
    if is_marked() {
        process::fill_stdio();
    }
    if let Some(socket) = adopt() {
        // SAFETY: sets a disposition; no other thread exists yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        run(socket, true);
    }
    PASSED.store(true, Ordering::Release);
}

/// Whether this process was started as a worker but its program did not ask.
pub(crate) fn was_missed() -> bool {
    !PASSED.load(Ordering::Acquire) && program::told().is_none() && is_marked()
}

fn is_marked() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == MARKER) && socket::is_one(rustix::stdio::stdin())
}

/// Takes descriptor 0 away, if it is an executor's socket: tasks and the programs they start see an empty input.
fn adopt() -> Option<OwnedFd> {
    if !is_marked() {
        return None;
    }
    let socket = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
    empty_stdin().ok()?;
    process::close_inherited(socket.as_fd());
    Some(socket)
}

/// Never returns.
fn run(mut socket: OwnedFd, own_thread: bool) -> ! {
    kill_point!(Started);
    loop {
        // The parent is gone, or is another version: it sees our exit and says so. Our own words go nowhere.
        let Ok((setup, descriptors)) = handshake::receive::<Setup>(&socket) else { std::process::exit(1) };
        kill_point!(SetupRead);
        let Setup { parent, program, signals, role } = setup;
        signals.adopt();
        program::become_child(program);
        crate::process::log::adopt();
        let code = match role {
            Role::Worker(setup) => {
                let stack_bytes = setup.stack_bytes;
                let work = move || work(parent, setup, socket, descriptors, own_thread);
                let ended = if own_thread { on_thread(stack_bytes, work) } else { work() };
                kill_point!(Exiting);
                i32::from(ended.is_err())
            }
            Role::Body(setup) => {
                let threads = 1 + usize::from(own_thread);
                let run = move || Ok(body::run(parent, *setup, socket, descriptors, threads));
                let ended = if own_thread { on_thread(None, run) } else { run() };
                ended.unwrap_or(1)
            }
            Role::ForkServer(setup) => match fork_server::serve(parent, &socket, setup) {
                // In a child, which is told by its own socket what it is for.
                Some(own) => {
                    lead_own_group();
                    socket = own;
                    continue;
                }
                None => 0,
            },
        };
        std::process::exit(code);
    }
}

/// In a copy of a process that has run for a while: the code to end it with.
pub(crate) fn forked(socket: OwnedFd) -> i32 {
    let Ok((setup, descriptors)) = handshake::receive::<Setup>(&socket) else { return 1 };
    let Role::Body(body) = setup.role else { return 1 };
    program::become_child(setup.program);
    lead_own_group();
    let Ok(()) = empty_stdin() else { return 1 };
    body::run(setup.parent, *body, socket, descriptors, 1)
}

fn lead_own_group() {
    let _ = rustix::process::setpgid(None, None);
}

fn empty_stdin() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
    Ok(rustix::stdio::dup2_stdin(null)?)
}

/// Where `main` is not ours.
fn on_thread<R: Send + 'static>(
    stack_bytes: Option<u64>,
    work: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> io::Result<R> {
    // 8 MiB: what a main thread has.
    let stack_bytes = stack_bytes.map_or(8 << 20, |bytes| bytes as usize);
    let thread =
        std::thread::Builder::new().name("executor-worker".into()).stack_size(stack_bytes).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

/// The life of a worker of a pool.
fn work(
    parent: u32,
    setup: WorkerSetup,
    socket: OwnedFd,
    descriptors: Vec<OwnedFd>,
    own_thread: bool,
) -> io::Result<()> {
    let (segment, doorbell, arenas) = open(descriptors)?;
    let segment: &'static Segment = Box::leak(Box::new(segment));
    let doorbell: &'static Doorbell = Box::leak(Box::new(doorbell));
    let refused = match (own_thread, setup.stack_bytes) {
        (false, Some(bytes)) => raise_stack_limit(bytes).err(),
        _ => None,
    };
    let directory = setup.directory.map(|path| OsString::from_vec(path.into_vec()));
    let able = refused.map_or_else(registry::check, Err);
    let server = match setup.transport {
        Transport::Ipc if able.is_ok() => directory.as_deref().map(listen),
        _ => None,
    };
    let name = match (able, &server) {
        (Err(error), _) => Err(error),
        (_, Some(Err(error))) => Err(format!("a worker cannot listen for its executor: {error}")),
        (_, Some(Ok((_, name)))) => Ok(Some(name.clone())),
        (_, None) => Ok(None),
    };
    // Before anything that waits for the parent.
    let watched = watcher::start(parent, directory)
        .map_err(|error| format!("a worker cannot watch its parent: {error}"));
    let name = watched.and(name);
    let able = name.is_ok();
    let hello = Hello { nonce: setup.nonce, tasks: registry::fingerprint(), server: name };
    kill_point!(HelloNext);
    socket::send(&socket, &handshake::to_bytes(&hello), &[])?;
    kill_point!(HelloSaid);
    match server {
        _ if !able => std::process::exit(1),
        Some(server) => serve::serve(server?.0.accept(&segment.board)?, socket, arenas),
        None => serve::serve(RingWorkerEnd::new(segment, doorbell), socket, arenas),
    }
}

fn open(descriptors: Vec<OwnedFd>) -> io::Result<(Shared<Segment>, Shared<Doorbell>, serve::Arenas)> {
    let mut fds = descriptors.into_iter();
    let segment = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let doorbell = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let arenas = match (fds.next(), fds.next()) {
        (Some(arguments), Some(results)) => Some((Arguments::open(arguments)?, Store::open(results)?)),
        _ => None,
    };
    Ok((Shared::open(segment.as_fd())?, Shared::open(doorbell.as_fd())?, arenas))
}

/// The main thread's stack grows up to this limit, asked at each growth; the kernel keeps at least 128 MiB of
/// addresses free for it.
fn raise_stack_limit(bytes: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const GAP_BYTES: u64 = 120 << 20;
    let limit = getrlimit(Resource::Stack);
    if limit.current.is_none_or(|current| current >= bytes) {
        return Ok(());
    }
    if bytes > GAP_BYTES {
        return Err(format!(
            "a stack of {bytes} bytes (`stack_size`) is more than the {GAP_BYTES} a worker can have"
        ));
    }
    setrlimit(Resource::Stack, Rlimit { current: Some(bytes), maximum: limit.maximum })
        .map_err(|error| format!("a stack of {bytes} bytes (`stack_size`) was refused: {error}"))
}

/// Opens an ipc-channel server in the parent's directory. ipc-channel asks `TMPDIR` where to make it, so that is changed
/// for the moment.
fn listen(directory: &OsStr) -> io::Result<(ipc::Server, String)> {
    /// The main thread, and in a test binary the one that was just made.
    const THREADS_AT_START: usize = 2;
    // A program that calls `init` with threads of its own running gets its environment left alone.
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > THREADS_AT_START) {
        return ipc::Server::new();
    }
    let own = std::env::var_os("TMPDIR");
    // SAFETY: no other thread is there that could read the environment meanwhile: counted above.
    unsafe { std::env::set_var("TMPDIR", directory) };
    let server = ipc::Server::new();
    match own {
        // SAFETY: as above.
        Some(own) => unsafe { std::env::set_var("TMPDIR", own) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var("TMPDIR") },
    }
    server
}
