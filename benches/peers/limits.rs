//! Limits of the machine: what two processes can do without a library between them.
//!
//! ```text
//!  socket, pipe              16 bytes to a child of this executable, and back
//!  shared memory, spinning   a number that each side waits for without sleeping
//!  bare chain                tokio task ─futex─► child ─futex─► driver thread ─Waker─► tokio task
//!  bare reactor              tokio task ─eventfd─► child ─eventfd─► tokio's driver ─► tokio task
//!  two children              started one right after the other, until each has sent its first byte
//!                            at the point of its `init()`
//!  four copies               into a buffer, into a new vector, and the same again; in one process
//!  warm memcpy               one buffer to another, both touched before
//! ```

use std::{
    future::poll_fn,
    hint::{black_box, spin_loop},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use rustix::{event::EventfdFlags, fs::MemfdFlags, mm, thread::futex};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    measure::{self, timed, trips},
    threads::{DEFAULT_BLOCKING_THREADS, on_tokio},
    workload::{Figures, Request, figure},
};

const MESSAGE: usize = 16;

pub(crate) fn run(limit: &str, request: &Request) -> Result<Figures, String> {
    let figures = match limit {
        "socket" => socket(request.count),
        "pipe" => pipe(request.count),
        "shared memory, spinning" => spinning(request.count),
        "bare chain" => return Ok(chain(request.count)),
        "bare reactor" => reactor(request.count),
        "two children" => two_children(request.count),
        "four copies" => {
            Ok(request.sizes.iter().map(|&size| four_copies(size, request.count)).collect())
        }
        "warm memcpy" => {
            Ok(request.sizes.iter().map(|&size| warm_memcpy(size, request.count)).collect())
        }
        other => return Err(format!("nobody is called {other}")),
    };
    figures.map_err(|error| error.to_string())
}

/// Makes this process die with its parent, however the parent ends.
pub(crate) fn die_with(parent: &str) {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // The parent may have died before the signal was set.
    if std::os::unix::process::parent_id().to_string() != parent {
        std::process::exit(0);
    }
}

/// A child of this executable. Dropping it kills and reaps the child.
struct Other(Child);

impl Other {
    fn start(kind: &str, argument: i32, stdin: Stdio, stdout: Stdio) -> std::io::Result<Self> {
        let arguments = ["--child", kind, &std::process::id().to_string(), &argument.to_string()];
        Command::new("/proc/self/exe")
            .args(arguments)
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .map(Other)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this program as the child of a limit: `--child KIND PARENT ARGUMENT`.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    let [kind, parent, argument] = arguments else { return ExitCode::FAILURE };
    if kind == "hello" {
        // Do this before anything else: the arrival of this byte is measured.
        let _ = std::io::stdout().write_all(b"h");
        let _ = std::io::stdout().flush();
        return ExitCode::SUCCESS;
    }
    die_with(parent);
    let mut bytes = [0; MESSAGE];
    match kind.as_str() {
        "socket" => {
            use std::os::fd::AsFd;
            let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else {
                return ExitCode::FAILURE;
            };
            let mut socket = UnixStream::from(socket);
            while socket.read_exact(&mut bytes).is_ok() && socket.write_all(&bytes).is_ok() {}
        }
        "pipe" => {
            // Open files instead of using std's streams, which have buffers and locks.
            let open =
                |fd: &str, write: bool| std::fs::File::options().read(!write).write(write).open(fd);
            let (Ok(mut input), Ok(mut output)) =
                (open("/proc/self/fd/0", false), open("/proc/self/fd/1", true))
            else {
                return ExitCode::FAILURE;
            };
            while input.read_exact(&mut bytes).is_ok() && output.write_all(&bytes).is_ok() {}
        }
        "eventfd" => {
            let (input, output) = (std::io::stdin(), std::io::stdout());
            while rustix::io::read(&input, &mut bytes[..8]).is_ok()
                && rustix::io::write(&output, &bytes[..8]).is_ok()
            {}
        }
        "spin" => {
            let there = attach(argument);
            loop {
                let seen = there.answer.load(Ordering::Relaxed);
                while there.request.load(Ordering::Acquire) == seen {
                    spin_loop();
                }
                there.answer.store(seen.wrapping_add(1), Ordering::Release);
            }
        }
        "futex" => {
            let there = attach(argument);
            loop {
                let seen = there.answer.load(Ordering::Relaxed);
                sleep_while(&there.request, seen);
                there.answer.store(seen.wrapping_add(1), Ordering::Release);
                let _ = futex::wake(&there.answer, futex::Flags::empty(), 1);
            }
        }
        "load" => loop {
            black_box(measure::spin(1_000_000));
        },
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// A busy process for each core. Dropping this ends them.
pub(crate) struct Load(#[allow(dead_code, reason = "held for its end")] Vec<Other>);

impl Load {
    pub(crate) fn start() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores)
            .map(|_| Other::start("load", 0, Stdio::null(), Stdio::null()))
            .collect::<Result<_, _>>()
            .map(Load)
    }
}

fn ping_pong(
    count: u64,
    mut trip: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<Figures> {
    for _ in 0..(count / 10).clamp(2, 200) {
        trip()?;
    }
    let mut times = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let started = Instant::now();
        trip()?;
        times.push(started.elapsed());
    }
    Ok(trips(times))
}

fn socket(count: u64) -> std::io::Result<Figures> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let _other = Other::start("socket", 0, OwnedFd::from(theirs).into(), Stdio::null())?;
    let mut bytes = [7; MESSAGE];
    ping_pong(count, || {
        ours.write_all(&bytes)?;
        ours.read_exact(&mut bytes)
    })
}

fn pipe(count: u64) -> std::io::Result<Figures> {
    let mut other = Other::start("pipe", 0, Stdio::piped(), Stdio::piped())?;
    let (mut input, mut output) =
        (other.0.stdin.take().expect("piped"), other.0.stdout.take().expect("piped"));
    let mut bytes = [7; MESSAGE];
    ping_pong(count, || {
        input.write_all(&bytes)?;
        output.read_exact(&mut bytes)
    })
}

/// Two numbers that two processes share. Each is in its own pair of cache lines, so that a write to
/// one does not slow access to the other.
#[repr(C)]
struct Shared {
    request: AtomicU32,
    apart: [u8; 124],
    answer: AtomicU32,
}

/// Maps the shared memory. The mapping is never removed: it takes one page for each run.
fn map(memory: &OwnedFd) -> &'static Shared {
    let (protection, flags) = (mm::ProtFlags::READ | mm::ProtFlags::WRITE, mm::MapFlags::SHARED);
    let bytes = size_of::<Shared>();
    // SAFETY: this is a new mapping of a file of this size, and it is never unmapped. Every bit
    // pattern is valid for the atomics.
    unsafe {
        &*mm::mmap(std::ptr::null_mut(), bytes, protection, flags, memory, 0)
            .expect("a mapping")
            .cast()
    }
}

fn attach(descriptor: &str) -> &'static Shared {
    let path = format!("/proc/self/fd/{descriptor}");
    map(&std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the parent's memory")
        .into())
}

/// Creates shared memory, and starts a child that maps it too.
#[expect(clippy::disallowed_methods, reason = "no limit is set here")]
fn share(kind: &str) -> std::io::Result<(&'static Shared, Other)> {
    // Create it without CLOEXEC, because the child opens it by its number.
    let memory = rustix::fs::memfd_create("ping-pong", MemfdFlags::empty())?;
    rustix::fs::ftruncate(&memory, size_of::<Shared>() as u64)?;
    let other = Other::start(kind, memory.as_raw_fd(), Stdio::null(), Stdio::null())?;
    let shared = map(&memory);
    // Wait for one answer. After it, the child no longer needs this process's descriptor.
    shared.request.store(1, Ordering::Release);
    let _ = futex::wake(&shared.request, futex::Flags::empty(), 1);
    let started = Instant::now();
    while shared.answer.load(Ordering::Acquire) != 1 {
        if started.elapsed() > Duration::from_secs(10) {
            return Err(std::io::Error::other("the child does not answer"));
        }
        std::thread::yield_now();
    }
    Ok((shared, other))
}

fn sleep_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        let _ = futex::wait(word, futex::Flags::empty(), value, None);
    }
}

fn spinning(count: u64) -> std::io::Result<Figures> {
    let (shared, _other) = share("spin")?;
    let mut turn = 1;
    ping_pong(count, || {
        turn += 1;
        shared.request.store(turn, Ordering::Release);
        while shared.answer.load(Ordering::Acquire) != turn {
            spin_loop();
        }
        Ok(())
    })
}

/// Makes the wake-ups that a result needs to reach a task on tokio, and nothing else.
fn chain(count: u64) -> Figures {
    let (shared, _other) = share("futex").expect("a child");
    let waker = Arc::new(AtomicWaker::new());
    let over = Arc::new(AtomicBool::new(false));
    let driver = std::thread::spawn({
        let (waker, over) = (Arc::clone(&waker), Arc::clone(&over));
        move || {
            let mut seen = 1;
            loop {
                sleep_while(&shared.answer, seen);
                if over.load(Ordering::Acquire) {
                    break;
                }
                seen = shared.answer.load(Ordering::Acquire);
                waker.wake();
            }
        }
    });
    let turn = AtomicU32::new(1);
    let figures = on_tokio(count, 1, DEFAULT_BLOCKING_THREADS, move |x| {
        let (mine, waker) = (turn.fetch_add(1, Ordering::Relaxed) + 1, Arc::clone(&waker));
        let mut sent = false;
        poll_fn(move |context| {
            // Register before sending. Otherwise the answer could arrive before there is a waker to
            // wake.
            waker.register(context.waker());
            if !std::mem::replace(&mut sent, true) {
                shared.request.store(mine, Ordering::Release);
                let _ = futex::wake(&shared.request, futex::Flags::empty(), 1);
            }
            if shared.answer.load(Ordering::Acquire) == mine {
                Poll::Ready(x)
            } else {
                Poll::Pending
            }
        })
    });
    over.store(true, Ordering::Release);
    shared.answer.fetch_add(1, Ordering::Release);
    let _ = futex::wake(&shared.answer, futex::Flags::empty(), 1);
    let _ = driver.join();
    figures
}

/// Makes the wake-ups of a result that only tokio's own threads wait for, and nothing else.
fn reactor(count: u64) -> std::io::Result<Figures> {
    let there = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let back = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let _other = Other::start("eventfd", 0, there.try_clone()?.into(), back.try_clone()?.into())?;
    // The first call registers it, because a descriptor is registered with a runtime from inside.
    let registered = Arc::new(OnceLock::new());
    let (there, back) = (Arc::new(there), Arc::new(back));
    Ok(on_tokio(count, 1, DEFAULT_BLOCKING_THREADS, move |x| {
        let (there, back) = (Arc::clone(&there), Arc::clone(&back));
        let registered = Arc::clone(&registered);
        async move {
            let back = registered.get_or_init(|| {
                // SAFETY: an `OwnedFd` is always the same open descriptor, and stays registered
                // until it is closed.
                unsafe { AsyncFd::register_with_interest(back, Interest::READABLE) }
                    .expect("inside of a runtime")
            });
            rustix::io::write(&there, &1_u64.to_ne_bytes()).expect("a wake-up");
            back.readable().await.expect("the runtime runs").clear_ready();
            let mut bytes = [0; 8];
            rustix::io::read(back, &mut bytes).expect("the child has written");
            x
        }
    }))
}

fn two_children(count: u64) -> std::io::Result<Figures> {
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        let mut children = Vec::with_capacity(2);
        for _ in 0..2 {
            children.push(Other::start("hello", 0, Stdio::null(), Stdio::piped())?);
        }
        for child in &mut children {
            child.0.stdout.as_mut().expect("piped").read_exact(&mut [0])?;
        }
        times.push(started.elapsed());
    }
    times.sort();
    Ok([figure("ms", times[times.len() / 2].as_secs_f64() * 1e3)].into_iter().collect())
}

/// The copies that an echo through shared memory makes, one after the other.
fn four_copies(size: u64, count: u64) -> (String, serde_json::Value) {
    let mut buffer = vec![1_u8; size as usize];
    measure::echo_rate(size, count, |bytes| {
        let started = Instant::now();
        buffer.copy_from_slice(black_box(&bytes));
        let there = black_box(&buffer).clone();
        drop(bytes);
        buffer.copy_from_slice(black_box(&there));
        drop(there);
        let back = black_box(&buffer).clone();
        (started.elapsed(), back)
    })
}

fn warm_memcpy(size: u64, count: u64) -> (String, serde_json::Value) {
    let from = vec![7_u8; size as usize];
    let mut to = vec![1_u8; size as usize];
    let mut copy = || timed(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    copy();
    let time: Duration = (0..count).map(|_| copy()).sum();
    figure(format!("{} KiB MB/s", size >> 10), (size * count) as f64 / time.as_secs_f64() / 1e6)
}
