//! The entry point: finds out, at the start of `main`, whether this process is a child of an
//! executor.

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

use super::{ancillary::Arguments, body, fork_server, guard::Guard, place, serve, watcher};
use crate::{
    child::{
        self,
        birth::{self, Birth},
        identity, title,
    },
    os::{
        cpu,
        image::{self, Constructor},
        limits::limit_of,
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

/// Whether this process has passed the entry point as a child.
static ADOPTED: AtomicBool = AtomicBool::new(false);

/// Makes this program able to run as a worker. Call it at the start of `main`, before threads are
/// started and before anything is printed.
///
/// In the program that the user started, it returns at once. In a worker it never returns: it runs
/// tasks until the executor stops the worker, and then ends the process. `#[executor::main]` calls
/// it.
///
/// If a program builds an executor without having called this function, building returns an error
/// that says so.
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
/// # Which processes become workers
///
/// A worker is started with the argument `--executor-worker`, and with a socket as its standard
/// input, over which it receives its work. Any user who can start a program can do this, too. So
/// before reading any byte, this function asks the kernel who created the socket, and whether this
/// process has privileges that its starter does not have (setuid, setgid, or capabilities of its
/// file). A process with the argument behaves as follows, depending on its standard input:
///
/// - **A socket that was created by the user and group as which this process acts.** The process is
///   a worker. With such privileges, it ends with exit code 1, and sends the reason over the
///   socket.
/// - **A socket that was created by another user or group.** The process ends with exit code 1, and
///   sends the reason over the socket. With such privileges, it is a program: `init` returns.
/// - **Anything else.** The process ends with exit code 2, and writes a line to standard error.
///   With such privileges, it is a program: `init` returns.
///
/// So no user can run code with rights that the user does not have. A program with privileges
/// cannot have workers either: starting one is an error. A process that may have been started as a
/// worker never runs the program's `main`, which would start the next worker. If the system refuses
/// a worker the resources that it needs, the worker ends with exit code 1, and its executor
/// receives the reason.
pub fn init() {
    if ADOPTED.load(Ordering::Acquire) {
        return;
    }
    if let Some(socket) = adopt() {
        // Tasks run on the main thread, where libraries that are bound to a thread, and state that
        // is not `Send`, expect to be.
        run(socket, false);
    }
    registry::close();
    birth::pass_as_program();
}

/// The entry point of test binaries, in which the user does not write `main`. It is called from an
/// `.init_array` entry, `own`, with the arguments that the loader passes to each entry.
///
/// std's runtime is not initialised yet. A worker runs on a thread of its own, with a name and a
/// stack size, and SIGPIPE is set here as std would have done. The constructors of libraries that
/// follow this one in the table are called here, because in a worker the loader never reaches them.
/// So tasks can rely on them, like all code in `main`.
///
/// # Safety
/// It must be called by the loader, through `own`, with the arguments that the loader passes to
/// constructors.
#[doc(hidden)]
pub unsafe fn init_before_main(
    own: *const Constructor,
    argc: c_int,
    argv: *const *const c_char,
    envp: *const *const c_char,
) {
    // If a library also has an entry, there are several. The first one calls the others as
    // constructors, and they return here.
    if ADOPTED.load(Ordering::Acquire) {
        return;
    }
    // std opens closed standard descriptors before `main`. Without this, a file that is opened
    // below could get one of their numbers.
    if birth::is_marked() {
        process::fill_stdio();
    }
    if let Some(socket) = adopt() {
        let Some(behind) = image::constructors_behind(own) else {
            refuse(
                &socket,
                &"the table of the program's constructors (`.init_array`) was not found"
                    .to_owned()
                    .into(),
            );
        };
        // SAFETY: the pointer is within the table, which exists and is not written as long as the
        // program runs.
        for constructor in unsafe { &*behind } {
            // SAFETY: the loader would call it next in the same way. It does not get to do this,
            // because this function never returns.
            unsafe { constructor(argc, argv, envp) };
        }
        // SAFETY: this sets a disposition, as std's runtime does after the constructors. If a
        // thread that a constructor started does the same concurrently, the effect is the same as
        // with std.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        run(socket, true);
    }
    birth::pass_as_program();
}

/// Takes an executor's socket from descriptor 0. Tasks, and the programs that they start, see an
/// empty input. Returns `None` in a program that is not a child. A process that is marked but
/// cannot be a child ends here.
fn adopt() -> Option<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    match birth::birth() {
        Birth::Program => return None,
        Birth::Child => {}
        Birth::Neither { why, has_socket: true } => refuse(stdin, &why.into()),
        Birth::Neither { why, has_socket: false } => end_unasked(&why),
    }
    ADOPTED.store(true, Ordering::Release);
    let socket = match fcntl_dupfd_cloexec(stdin, 3) {
        Ok(socket) => socket,
        Err(error) => {
            refuse(stdin, &Refusal::of("to duplicate descriptor 0 (fcntl)", &error.into()))
        }
    };
    if let Err(error) = process::empty_stdin() {
        refuse(&socket, &Refusal::of("to open /dev/null, or a pipe in its place", &error));
    }
    Some(socket)
}

/// Ends a child that cannot serve its purpose.
fn refuse(socket: impl AsFd, refusal: &Refusal) -> ! {
    // The receiver may be gone.
    let _ = handshake::refuse(socket, refusal);
    std::process::exit(1)
}

/// Ends a process that has the marker argument but was not started by an executor.
#[allow(clippy::print_stderr, reason = "the user's own terminal; there is nobody else to tell")]
fn end_unasked(why: &str) -> ! {
    eprintln!(
        "`{}` is for an executor that starts its workers, and of no use by hand: {why}",
        birth::MARKER
    );
    std::process::exit(2)
}

/// Runs as a child, and never returns.
fn run(mut socket: OwnedFd, own_thread: bool) -> ! {
    kill_point!(Started);
    // A child that a fork server has made begins again here, with its own socket.
    let mut copied = false;
    loop {
        let (setup, descriptors) = match handshake::receive::<Setup>(&socket) {
            Ok(received) => received,
            // This happens if the parent runs another version of the library, for example. If the
            // parent is gone, nobody receives the reason.
            Err(error) => refuse(&socket, &Refusal::of("to read its setup", &error)),
        };
        kill_point!(SetupRead);
        let Setup { parent, identity, signals, role } = setup;
        signals.adopt();
        title::show(&identity, &role);
        if copied {
            title::replace_line(&identity, &role);
        }
        identity::become_child(identity);
        child::log::adopt();
        let code = match role {
            Role::Worker(mut setup) => {
                // Before any other thread is started, because each thread has its own CPUs.
                if let Err(refusal) = place::adopt(std::mem::take(&mut setup.place)) {
                    refuse(&socket, &refusal)
                }
                let stack_bytes = setup.stack_bytes;
                let work = move || work(parent, *setup, socket, descriptors, own_thread, copied);
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
                // This is a copy that the fork server has made. It receives its purpose over its
                // own socket.
                Some(own) => {
                    socket = own;
                    copied = true;
                    continue;
                }
                None => 0,
            },
        };
        std::process::exit(code);
    }
}

/// Runs as a child that is a copy of a process that has run for a while. Returns the exit code.
pub(crate) fn forked(socket: OwnedFd) -> i32 {
    let refuse = |refusal: &Refusal| {
        let _ = handshake::refuse(&socket, refusal);
        1
    };
    let (setup, descriptors) = match handshake::receive::<Setup>(&socket) {
        Ok(received) => received,
        Err(error) => return refuse(&Refusal::of("to read its setup", &error)),
    };
    title::show(&setup.identity, &setup.role);
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

/// Runs `work` on a new thread, for a process whose `main` is not the library's.
fn on_thread<R: Send + 'static>(
    stack_bytes: Option<u64>,
    work: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> io::Result<R> {
    // The default is 8 MiB, as for a main thread.
    let stack_bytes = stack_bytes.map_or(8 << 20, |bytes| bytes as usize);
    let thread = std::thread::Builder::new()
        .name("executor-worker".into())
        .stack_size(stack_bytes)
        .spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

/// Runs as a worker of a pool.
fn work(
    parent: u32,
    setup: WorkerSetup,
    socket: OwnedFd,
    mut descriptors: Vec<OwnedFd>,
    own_thread: bool,
    copied: bool,
) -> io::Result<()> {
    // The socket stays open until the process ends. By it, the parent notices the end of this
    // process, and this process notices the end of the parent.
    let socket: &'static OwnedFd = Box::leak(Box::new(socket));
    cpu::adopt_several(setup.several_cpus);
    if setup.stdin && !descriptors.is_empty() {
        let stdin = rustix::stdio::dup2_stdin(descriptors.remove(0));
        if let Err(error) = stdin {
            refuse(socket, &Refusal::of("to set its standard input (dup2)", &error.into()));
        }
    }
    if setup.control_group && !descriptors.is_empty() {
        watcher::end_with_control_group(descriptors.remove(0));
    }
    let ready = prepare(parent, &setup, socket, descriptors, own_thread, copied);
    let Ready { segment, doorbell, arenas, guard, server } = match ready {
        Ok(ready) => ready,
        Err(refusal) => refuse(socket, &refusal),
    };
    let (server, name) = server.unzip();
    let hello = Hello { nonce: setup.nonce, tasks: registry::fingerprint(), server: name };
    kill_point!(HelloNext);
    socket::send(socket, &handshake::to_bytes(&hello), &[])?;
    kill_point!(HelloSaid);
    match server {
        Some(server) => {
            let end = server.accept(&segment.board)?;
            serve::serve(end, socket, arenas, guard, (setup.crash_report, setup.error_hook))
        }
        None => {
            let end = RingWorkerEnd::new(segment, doorbell);
            serve::serve(end, socket, arenas, guard, (setup.crash_report, setup.error_hook))
        }
    }
}

/// The resources that a worker needs before it says hello.
struct Ready {
    segment: &'static Segment,
    doorbell: &'static Doorbell,
    arenas: serve::Arenas,
    guard: Guard,
    /// The server and its name. Only for the transport over ipc-channel.
    server: Option<(ipc::Server, String)>,
}

/// Acquires all resources that the system may refuse, before the parent counts on this worker.
fn prepare(
    parent: u32,
    setup: &WorkerSetup,
    socket: &'static OwnedFd,
    descriptors: Vec<OwnedFd>,
    own_thread: bool,
    copied: bool,
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
    let segment: &'static Segment = Box::leak(Box::new(segment));
    let guard = Guard::start(&setup.restraints, copied, &segment.board)?;
    // Start this before anything that waits for the parent.
    watcher::start(parent, socket, directory, guard.gauge())
        .map_err(|error| Refusal::of("to watch its parent", &error))?;
    Ok(Ready { segment, doorbell: Box::leak(Box::new(doorbell)), arenas, guard, server })
}

fn open(
    descriptors: Vec<OwnedFd>,
) -> io::Result<(Shared<Segment>, Shared<Doorbell>, serve::Arenas)> {
    let mut fds = descriptors.into_iter();
    let segment = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let doorbell = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let arenas = match (fds.next(), fds.next()) {
        (Some(arguments), Some(results)) => {
            Some((Arguments::open(arguments)?, Store::open(results)?))
        }
        _ => None,
    };
    Ok((Shared::open(segment.as_fd())?, Shared::open(doorbell.as_fd())?, arenas))
}

/// Raises the limit for the main thread's stack. The system reads the limit each time the stack
/// grows, and keeps at least 128 MiB of addresses free for it.
fn raise_stack_limit(bytes: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    const GAP_BYTES: u64 = 120 << 20;
    let refused = |error| format!("a stack of {bytes} bytes (`stack_size`) was refused: {error}");
    let limit = limit_of(Resource::Stack).map_err(refused)?;
    if limit.current.is_none_or(|current| current >= bytes) {
        return Ok(());
    }
    if bytes > GAP_BYTES {
        return Err(format!(
            "a stack of {bytes} bytes (`stack_size`) is more than the {GAP_BYTES} a worker can have"
        ));
    }
    setrlimit(Resource::Stack, Rlimit { current: Some(bytes), maximum: limit.maximum })
        .map_err(|error| refused(error.into()))
}

/// Opens an ipc-channel server in the parent's directory. ipc-channel creates it in the directory
/// that `TMPDIR` names, so `TMPDIR` is changed for the duration of the call.
fn listen(directory: &OsStr, own_thread: bool) -> io::Result<(ipc::Server, String)> {
    // The main thread, and in a test binary also the thread that was just started.
    let expected = 1 + usize::from(own_thread);
    // If other threads run, or the number of threads is unknown, the environment must not be
    // changed.
    if !process::thread_count().is_ok_and(|threads| threads <= expected) {
        return ipc::Server::new();
    }
    let own = setting::temporary_directory();
    // SAFETY: there is no other thread that could read the environment in the meantime, as counted
    // above. The main thread of a test binary waits for this thread, and no thread is started
    // between the count and here.
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
