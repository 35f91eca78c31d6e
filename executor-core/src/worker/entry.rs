//! "Am I a worker?": asked first of all in `main`.

use std::{
    ffi::{OsStr, OsString, c_char, c_int},
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
    child::{
        self,
        birth::{self, Birth},
        identity,
    },
    os::{
        cpu,
        image::{self, Constructor},
        memory::Shared,
        process, setting, socket,
    },
    registry,
    segment::Store,
    transport::{
        ipc,
        ring::{RingWorkerEnd, Segment, doorbell::Doorbell},
    },
    wire::handshake::{self, Hello, Refusal, Role, Setup, Transport, WorkerSetup},
};

/// This process has seen that it is a child, and is one.
static ADOPTED: AtomicBool = AtomicBool::new(false);

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
///
/// # Who can make a worker of a program
///
/// A worker is started with the argument `--executor-worker` and a socket as its standard input, over which it is told what to
/// do. Whoever can start a program can do that too, so before a byte is read the kernel is asked who made the socket, and whether this
/// process has privileges that its starter has not (setuid, setgid, capabilities of its file). What a process with the argument is:
///
/// | standard input | without such privileges | with them |
/// |---|---|---|
/// | a socket that the user and group made as whom this process acts | a worker | it ends with exit code 1, and the socket is told why |
/// | a socket that others made | it ends with exit code 1, and the socket is told why | a program: `init` returns |
/// | anything else | it ends with exit code 2 and a line on standard error | a program: `init` returns |
///
/// So nobody runs anything with rights that he has not. A program with privileges has no workers of its own either; to start one is
/// an error. And a process that may have been started as a worker never runs the program's `main`, which would start the next one: a worker that
/// the system refuses what it needs ends with exit code 1, and its executor is told why.
pub fn init() {
    if ADOPTED.load(Ordering::Acquire) {
        return;
    }
    if let Some(socket) = adopt() {
        // The main thread: where !Send state and thread-bound libraries expect to be.
        run(socket, false);
    }
    registry::close();
    birth::pass_as_program();
}

/// The entry of test binaries, whose `main` is not the user's: called from an `.init_array` entry, `own`, with what the loader gives
/// to each.
///
/// std's runtime is not up yet. A thread of our own gives the worker a name and a stack; SIGPIPE is set by hand, as
/// std would have done. The constructors of libraries come behind ours in the table, and are run here, since the loader never gets to
/// them in a worker: a task finds them done, as everything in `main` does.
///
/// # Safety
/// Called by the loader, by way of `own`, with the arguments that it gives to constructors.
#[doc(hidden)]
pub unsafe fn init_before_main(
    own: *const Constructor,
    argc: c_int,
    argv: *const *const c_char,
    envp: *const *const c_char,
) {
    // There may be several of our entries, if a library has one, too: the first calls the others.
    if ADOPTED.load(Ordering::Acquire) {
        return;
    }
    if birth::is_marked() {
        process::fill_stdio();
    }
    if let Some(socket) = adopt() {
        let Some(behind) = image::constructors_behind(own) else {
            refuse(
                &socket,
                &"the table of the program's constructors (`.init_array`) was not found".to_owned().into(),
            );
        };
        // SAFETY: within the table, which is there, and not written any more, as long as the program.
        for constructor in unsafe { &*behind } {
            // SAFETY: as the loader would do next; it does not get to do it, since this never returns.
            unsafe { constructor(argc, argv, envp) };
        }
        // SAFETY: sets a disposition, as std's runtime does after the constructors. That a thread of theirs sets it at the same
        // moment is no worse than there.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        run(socket, true);
    }
    birth::pass_as_program();
}

/// Takes descriptor 0 away, if it is an executor's socket: tasks and the programs they start see an empty input. `None` in a program
/// that is no child; a child that cannot be one ends here.
fn adopt() -> Option<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    match birth::birth() {
        Birth::Program => return None,
        Birth::Child => {}
        Birth::Neither { why, has_socket: true } => refuse(stdin, &why.into()),
        Birth::Neither { why, has_socket: false } => end_unasked(&why),
    }
    ADOPTED.store(true, Ordering::Release);
    process::take_programs_name();
    let socket = match fcntl_dupfd_cloexec(stdin, 3) {
        Ok(socket) => socket,
        Err(error) => refuse(stdin, &Refusal::of("to duplicate descriptor 0 (fcntl)", &error.into())),
    };
    if let Err(error) = process::empty_stdin() {
        refuse(&socket, &Refusal::of("to open /dev/null, or a pipe in its place", &error));
    }
    Some(socket)
}

/// Ends a child that cannot be what it was started for.
fn refuse(socket: impl AsFd, refusal: &Refusal) -> ! {
    // Nobody may be there to hear it.
    let _ = handshake::refuse(socket, refusal);
    std::process::exit(1)
}

/// Ends a process that nobody has started as a worker, and that somebody has told to be one.
#[allow(clippy::print_stderr, reason = "the user's own terminal; there is nobody else to tell")]
fn end_unasked(why: &str) -> ! {
    eprintln!("`{}` is for an executor that starts its workers, and of no use by hand: {why}", birth::MARKER);
    std::process::exit(2)
}

/// Never returns.
fn run(mut socket: OwnedFd, own_thread: bool) -> ! {
    kill_point!(Started);
    loop {
        let (setup, descriptors) = match handshake::receive::<Setup>(&socket) {
            Ok(received) => received,
            // Another version, say. Where it is the parent that is gone, nobody hears it.
            Err(error) => refuse(&socket, &Refusal::of("to read its setup", &error)),
        };
        kill_point!(SetupRead);
        let Setup { parent, identity, signals, role } = setup;
        signals.adopt();
        identity::become_child(identity);
        child::log::adopt();
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
    let refuse = |refusal: &Refusal| {
        let _ = handshake::refuse(&socket, refusal);
        1
    };
    let (setup, descriptors) = match handshake::receive::<Setup>(&socket) {
        Ok(received) => received,
        Err(error) => return refuse(&Refusal::of("to read its setup", &error)),
    };
    let Role::Body(body) = setup.role else {
        return refuse(&"a copy can only be a process".to_owned().into());
    };
    identity::become_child(setup.identity);
    kill_point!(ForkRead);
    lead_own_group();
    crate::os::signals::block_terminal();
    if let Err(error) = process::empty_stdin() {
        return refuse(&Refusal::of("to open /dev/null, or a pipe in its place", &error));
    }
    body::run(setup.parent, *body, socket, descriptors, 1)
}

pub(super) fn lead_own_group() {
    let _ = rustix::process::setpgid(None, None);
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
    // Until the process ends: it is how the parent sees us, and we the parent.
    let socket: &'static OwnedFd = Box::leak(Box::new(socket));
    cpu::adopt_several(setup.several_cpus);
    let ready = prepare(parent, &setup, socket, descriptors, own_thread);
    let Ready { segment, doorbell, arenas, server } = match ready {
        Ok(ready) => ready,
        Err(refusal) => refuse(socket, &refusal),
    };
    let (server, name) = server.unzip();
    let hello = Hello { nonce: setup.nonce, tasks: registry::fingerprint(), server: name };
    kill_point!(HelloNext);
    socket::send(socket, &handshake::to_bytes(&hello), &[])?;
    kill_point!(HelloSaid);
    match server {
        Some(server) => serve::serve(server.accept(&segment.board)?, socket, arenas),
        None => serve::serve(RingWorkerEnd::new(segment, doorbell), socket, arenas),
    }
}

/// What a worker has before it says hello.
struct Ready {
    segment: &'static Segment,
    doorbell: &'static Doorbell,
    arenas: serve::Arenas,
    /// Over ipc-channel only, with its name.
    server: Option<(ipc::Server, String)>,
}

/// All that the system may refuse, before the parent counts on this worker.
fn prepare(
    parent: u32,
    setup: &WorkerSetup,
    socket: &'static OwnedFd,
    descriptors: Vec<OwnedFd>,
    own_thread: bool,
) -> Result<Ready, Refusal> {
    let (segment, doorbell, arenas) =
        open(descriptors).map_err(|error| Refusal::of("to map the memory of its pool", &error))?;
    if let (false, Some(bytes)) = (own_thread, setup.stack_bytes) {
        raise_stack_limit(bytes)?;
    }
    let directory = setup.directory.as_ref().map(|path| OsString::from_vec(path.to_vec()));
    let server = match (setup.transport, &directory) {
        (Transport::Ipc, Some(directory)) => Some(
            listen(directory, own_thread)
                .map_err(|error| Refusal::of("to listen for its executor (ipc-channel)", &error))?,
        ),
        _ => None,
    };
    // Before anything that waits for the parent.
    watcher::start(parent, socket, directory).map_err(|error| Refusal::of("to watch its parent", &error))?;
    Ok(Ready {
        segment: Box::leak(Box::new(segment)),
        doorbell: Box::leak(Box::new(doorbell)),
        arenas,
        server,
    })
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
fn listen(directory: &OsStr, own_thread: bool) -> io::Result<(ipc::Server, String)> {
    // The main thread, and in a test binary the one that was just made.
    let expected = 1 + usize::from(own_thread);
    // A program that calls `init` with threads of its own running gets its environment left alone, and so does one of which
    // nobody can say.
    if !process::thread_count().is_ok_and(|threads| threads <= expected) {
        return ipc::Server::new();
    }
    let own = setting::temporary_directory();
    // SAFETY: no other thread is there that could read the environment meanwhile: counted above. The main thread of a test binary
    // waits for this one, and none is started between here and there.
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
