//! "Am I a worker?": asked first of all in `main`.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::io::fcntl_dupfd_cloexec;

use super::{beside::Arguments, serve, watcher};
use crate::{
    os::{memory::Shared, socket},
    registry,
    segment::Store,
    transport::{
        ipc,
        ring::{RingWorkerEnd, Segment, doorbell::Doorbell},
    },
    wire::handshake::{self, Hello, Setup, Transport},
};

/// A worker's only argument. Not in the environment: that is inherited by everything a task starts.
pub(crate) const MARKER: &str = "--executor-worker";

/// Pools within tasks within pools; loky's limit. More than this is a task that submits itself without end.
pub(crate) const DEPTH_MAX: u32 = 10;

static PASSED: AtomicBool = AtomicBool::new(false);
static SETUP: OnceLock<(u32, Vec<OsString>)> = OnceLock::new();

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
    if let Some(socket) = adopt() {
        // SAFETY: sets a disposition; no other thread exists yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        run(socket, true);
    }
    PASSED.store(true, Ordering::Release);
}

/// The arguments of the program that the user started; in a worker, those of its executor's program, however deep.
///
/// (`std::env::args()` shows a worker how it was started itself.)
///
/// ```
/// assert!(executor::args().count() >= 1);
/// ```
pub fn args() -> impl Iterator<Item = OsString> {
    match SETUP.get() {
        Some((_, args)) => args.clone().into_iter(),
        None => std::env::args_os().collect::<Vec<_>>().into_iter(),
    }
}

/// How deep executors are nested around this process: 0 in the program that the user started.
pub(crate) fn depth() -> u32 {
    SETUP.get().map_or(0, |(depth, _)| *depth)
}

/// Whether this process was started as a worker but its program did not ask.
pub(crate) fn was_missed() -> bool {
    !PASSED.load(Ordering::Acquire) && SETUP.get().is_none() && is_marked()
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
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).ok()?;
    rustix::stdio::dup2_stdin(null).ok()?;
    Some(socket)
}

/// Never returns.
fn run(socket: OwnedFd, own_thread: bool) {
    kill_point!(Started);
    let (setup, segment, doorbell, arenas) = match read_setup(&socket) {
        Ok(read) => read,
        // The parent is gone, or is another version: it sees our exit and says so. Our own words go nowhere.
        Err(_) => std::process::exit(1),
    };
    kill_point!(SetupRead);
    let segment: &'static Segment = Box::leak(Box::new(segment));
    let doorbell: &'static Doorbell = Box::leak(Box::new(doorbell));
    let stack_bytes = setup.stack_bytes;
    let work = move || -> io::Result<()> {
        let args = setup.args.into_iter().map(|arg| OsString::from_vec(arg.into_vec())).collect();
        let _ = SETUP.set((setup.depth, args));
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
        let watched = watcher::start(setup.parent, directory)
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
    };
    let ended = if own_thread {
        // 8 MiB: what a main thread has.
        let stack_bytes = stack_bytes.map_or(8 << 20, |bytes| bytes as usize);
        std::thread::Builder::new()
            .name("executor-worker".into())
            .stack_size(stack_bytes)
            .spawn(work)
            .and_then(|thread| thread.join().unwrap_or(Ok(())))
    } else {
        work()
    };
    kill_point!(Exiting);
    std::process::exit(i32::from(ended.is_err()));
}

fn read_setup(socket: &OwnedFd) -> io::Result<(Setup, Shared<Segment>, Shared<Doorbell>, serve::Arenas)> {
    let (mut bytes, mut fds) = socket::recv(socket)?;
    // A setup that finds no room in a message lies in the last descriptor, and only its version here.
    if bytes.len() == size_of_val(&handshake::VERSION)
        && let Some(large) = fds.pop()
    {
        let mut file = std::fs::File::from(large);
        bytes.clear();
        io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
        io::Read::read_to_end(&mut file, &mut bytes)?;
    }
    let setup = handshake::from_bytes(&bytes).map_err(io::Error::other)?;
    let mut fds = fds.into_iter();
    let segment = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let doorbell = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let arenas = match (fds.next(), fds.next()) {
        (Some(arguments), Some(results)) => Some((Arguments::open(arguments)?, Store::open(results)?)),
        _ => None,
    };
    Ok((setup, Shared::open(segment.as_fd())?, Shared::open(doorbell.as_fd())?, arenas))
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
