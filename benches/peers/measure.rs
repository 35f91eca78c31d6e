//! A driver's side: reads requests, runs them on one peer, and answers with figures.
//!
//! ```text
//!  stdin ─ Request ─► Pool::start ─ warm-up ─ measured part ─ drop ─► {"figures": …} ─ stdout
//! ```
//!
//! Workloads that all pools support are written once here, for the trait [`Pool`]. `peers.py` has
//! the same workloads in Python.

use std::{
    collections::VecDeque,
    hint::black_box,
    io::{BufRead, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    limits, ours, processes, threads,
    workload::{Figures, OWN_BURST, Request, figure},
};

pub(crate) const WORKERS: usize = 2;

/// What a task does with its number `x`.
#[derive(Clone, Copy)]
pub(crate) enum Job {
    NoOp,
    /// Compute for `x` rounds on the CPU.
    Spin,
    /// Sleep for `x` milliseconds.
    Sleep,
}

pub(crate) trait Pool: Sized {
    type Pending;
    /// Maximum number of tasks that may be pending at a time.
    const WINDOW: usize = usize::MAX;

    fn start(workers: usize) -> Self;
    fn submit(&self, job: Job, x: u64) -> Self::Pending;
    fn take(pending: Self::Pending) -> u64;
}

/// Operations that only a pool of processes has: bytes are copied, and a start takes time.
pub(crate) trait ProcessPool: Pool {
    /// Sends the bytes to a task and back. Returns the time from the call to the result, and the
    /// bytes.
    fn echo(&self, bytes: Vec<u8>) -> (Duration, Vec<u8>);
    /// Runs two tasks that wait for each other. Returns their process ids.
    fn meet(&self, meeting: &Meeting) -> [u32; 2];
}

/// Runs this program as a driver: `--peer NAME PARENT`.
pub(crate) fn serve(peer: &str, parent: &str) -> ExitCode {
    limits::die_with(parent);
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, r#"{{"ready":true}}"#);
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let request: Request = serde_json::from_str(&line).expect("the harness sends requests");
        let figures = match peer {
            "executor" => ours::run(&request),
            OWN_BURST => ours::run(&Request { workload: "burst".to_owned(), ..request }),
            "rayon, oneshot" => pool::<threads::RayonOneshot>(&request),
            "rayon" => threads::run_rayon(&request),
            "spawn_blocking" => threads::run_tokio(&request, threads::DEFAULT_BLOCKING_THREADS),
            "spawn_blocking, 2 threads" => threads::run_tokio(&request, WORKERS),
            "procspawn" => process_pool::<processes::Procspawn>(&request),
            limit => limits::run(limit, &request),
        };
        let reply = match figures {
            Ok(figures) => serde_json::json!({ "figures": figures }),
            Err(error) => serde_json::json!({ "error": error }),
        };
        if writeln!(stdout, "{reply}").is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// Runs a workload that any pool supports.
pub(crate) fn pool<P: Pool>(request: &Request) -> Result<Figures, String> {
    let count = request.count;
    let pool = P::start(WORKERS);
    let warm_up = |tasks: u64| run_all(&pool, (0..tasks).map(|x| (Job::NoOp, x)));
    Ok(match request.workload.as_str() {
        "burst" => {
            warm_up(count / 10 + 2);
            let time = run_all(&pool, (0..count).map(|x| (Job::NoOp, x)));
            rate(count, time)
        }
        "window" => {
            let in_flight = request.in_flight()?;
            let run = |count| run_window(&pool, in_flight, (0..count).map(|x| (Job::NoOp, x)));
            run(count / 10 + 2);
            rate(count, run(count))
        }
        "trip" | "loaded" => {
            warm_up((count / 10).clamp(2, 200));
            let trip = |x| {
                let started = Instant::now();
                black_box(P::take(pool.submit(Job::NoOp, x)));
                started.elapsed()
            };
            trips((0..count).map(trip).collect())
        }
        "cpu" => {
            warm_up(2);
            let rounds = calibrate(Duration::from_millis(5));
            // Half of the serial work runs before the parallel part and half after it, so that a
            // machine that slows down slows both. The median of single tasks is used, because a
            // burst of other work in a serial part would look like a speed-up.
            let half = (count / 10).max(2);
            let serial = || (0..half).map(|_| timed(|| _ = black_box(spin(rounds))));
            let mut alone: Vec<Duration> = serial().collect();
            let parallel = run_all(&pool, (0..count).map(|_| (Job::Spin, rounds)));
            alone.extend(serial());
            alone.sort();
            let each = alone[alone.len() / 2].as_secs_f64();
            [figure("speed-up", each * count as f64 / parallel.as_secs_f64())].into_iter().collect()
        }
        "uneven" => {
            warm_up(2);
            let time = run_all(&pool, request.sleeps.iter().map(|&ms| (Job::Sleep, ms)));
            let ideal = request.sleeps.iter().sum::<u64>() as f64 / 1e3 / WORKERS as f64;
            [figure("time / ideal", time.as_secs_f64() / ideal)].into_iter().collect()
        }
        other => return Err(format!("this peer has no workload {other}")),
    })
}

/// Runs a workload of any pool, or one that only process pools support.
pub(crate) fn process_pool<P: ProcessPool>(request: &Request) -> Result<Figures, String> {
    match request.workload.as_str() {
        "echo" | "large" => {
            let pool = P::start(WORKERS);
            Ok(request
                .sizes
                .iter()
                .map(|&size| echo_rate(size, request.count, |bytes| pool.echo(bytes)))
                .collect())
        }
        "first" => {
            let mut times: Vec<Duration> = (0..request.count)
                .map(|_| {
                    let meeting = Meeting::new();
                    let started = Instant::now();
                    let pool = P::start(WORKERS);
                    let [a, b] = pool.meet(&meeting);
                    let time = started.elapsed();
                    assert_ne!(a, b, "two tasks that wait for each other run in two processes");
                    time
                })
                .collect();
            times.sort();
            Ok([figure("ms", times[times.len() / 2].as_secs_f64() * 1e3)].into_iter().collect())
        }
        _ => pool::<P>(request),
    }
}

/// Submits all jobs and takes their results, in order. At most [`Pool::WINDOW`] tasks are pending
/// at a time.
pub(crate) fn run_all<P: Pool>(pool: &P, jobs: impl Iterator<Item = (Job, u64)>) -> Duration {
    run_window(pool, P::WINDOW, jobs)
}

/// As [`run_all`], with at most `in_flight` tasks pending at a time: before each further submit,
/// the result of the oldest task is taken.
fn run_window<P: Pool>(
    pool: &P,
    in_flight: usize,
    jobs: impl Iterator<Item = (Job, u64)>,
) -> Duration {
    let mut pending = VecDeque::with_capacity(jobs.size_hint().0.min(in_flight));
    timed(|| {
        for (job, x) in jobs {
            if pending.len() == in_flight {
                black_box(P::take(pending.pop_front().expect("as many as the window")));
            }
            pending.push_back(pool.submit(job, x));
        }
        for pending in pending.drain(..) {
            black_box(P::take(pending));
        }
    })
}

/// Payload divided by the time of the round trip. The copy that `echo` consumes is made outside the
/// measured time.
pub(crate) fn echo_rate(
    size: u64,
    count: u64,
    mut echo: impl FnMut(Vec<u8>) -> (Duration, Vec<u8>),
) -> (String, serde_json::Value) {
    let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
    let mut trip = || {
        let (time, back) = echo(bytes.clone());
        assert!(back == bytes, "an echo brings back what was sent");
        time
    };
    trip();
    let time: Duration = (0..count).map(|_| trip()).sum();
    figure(format!("{} KiB MB/s", size >> 10), (size * count) as f64 / time.as_secs_f64() / 1e6)
}

/// Reads all the bytes and returns their sum.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(words, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}

pub(crate) fn rate(count: u64, time: Duration) -> Figures {
    [figure("tasks/s", count as f64 / time.as_secs_f64())].into_iter().collect()
}

pub(crate) fn trips(mut trips: Vec<Duration>) -> Figures {
    trips.sort();
    let at =
        |part: usize| trips[(trips.len() * part / 100).min(trips.len() - 1)].as_secs_f64() * 1e6;
    [figure("p50 µs", at(50)), figure("p99 µs", at(99))].into_iter().collect()
}

pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Computes for a number of rounds. The compiler cannot shorten this work.
pub(crate) fn spin(rounds: u64) -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..rounds {
        state ^= state << 13;
        state ^= state >> 7;
        state = black_box(state ^ (state << 17));
    }
    state
}

/// The number of rounds of [`spin`] that take `time`. A fixed number of rounds is the same work
/// everywhere, whatever the clock says.
fn calibrate(time: Duration) -> u64 {
    const SOME: u64 = 200_000;
    let best = (0..5).map(|_| timed(|| _ = black_box(spin(SOME)))).min().expect("five");
    (SOME as f64 * time.as_secs_f64() / best.as_secs_f64()) as u64
}

/// Does the job of a task, in a process or in a thread.
pub(crate) fn perform(job: Job, x: u64) -> u64 {
    match job {
        Job::NoOp => x,
        Job::Spin => spin(x),
        Job::Sleep => {
            std::thread::sleep(Duration::from_millis(x));
            x
        }
    }
}

/// A named pipe. Opening it for reading waits until another process opens it for writing, in any
/// language.
pub(crate) struct Meeting(tempfile::TempDir);

impl Meeting {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .expect("a named pipe");
        Meeting(folder)
    }

    pub(crate) fn path(&self) -> String {
        self.0.path().join("pipe").to_str().expect("a temporary folder's name").to_owned()
    }
}

/// One side of a meeting. Returns its process id.
pub(crate) fn attend(path: &str, write: bool) -> u32 {
    std::fs::File::options().read(!write).write(write).open(path).expect("the other one comes");
    std::process::id()
}
