//! Peers that run tasks in threads: `rayon::spawn` and tokio's `spawn_blocking`.
//!
//! ```text
//!  rayon, spawn_blocking   the result comes through a channel of std, with room for one
//!  rayon, oneshot          the same through a oneshot channel of the crate `futures`
//!  in await-…              the result is the output of spawn_blocking's own handle
//! ```
//!
//! They copy nothing and isolate nothing. They show the cost of a queue and of a thread's wake-up.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    measure::{self, Job, Pool, perform},
    workload::{Figures, Request, figure},
};

pub(crate) struct Rayon(rayon::ThreadPool);

impl Pool for Rayon {
    type Pending = Receiver<u64>;

    fn start(workers: usize) -> Self {
        Rayon(rayon::ThreadPoolBuilder::new().num_threads(workers).build().expect("threads"))
    }

    fn submit(&self, job: Job, x: u64) -> Receiver<u64> {
        let (sender, receiver) = sync_channel(1);
        self.0.spawn(move || _ = sender.send(perform(job, x)));
        receiver
    }

    fn take(pending: Receiver<u64>) -> u64 {
        pending.recv().expect("no task fails")
    }
}

/// Rayon, with a oneshot channel of the crate `futures` for each result. It allocates once and
/// takes no lock, which is about as little as a future of a thread pool can cost.
pub(crate) struct RayonOneshot(rayon::ThreadPool);

impl Pool for RayonOneshot {
    type Pending = futures::channel::oneshot::Receiver<u64>;

    fn start(workers: usize) -> Self {
        RayonOneshot(rayon::ThreadPoolBuilder::new().num_threads(workers).build().expect("threads"))
    }

    fn submit(&self, job: Job, x: u64) -> Self::Pending {
        let (sender, receiver) = futures::channel::oneshot::channel();
        self.0.spawn(move || _ = sender.send(perform(job, x)));
        receiver
    }

    fn take(pending: Self::Pending) -> u64 {
        futures::executor::block_on(pending).expect("no task fails")
    }
}

struct SpawnBlocking(Runtime);

impl Pool for SpawnBlocking {
    type Pending = Receiver<u64>;

    fn start(workers: usize) -> Self {
        SpawnBlocking(
            Builder::new_multi_thread()
                .worker_threads(workers)
                .max_blocking_threads(workers)
                .build()
                .expect("a runtime"),
        )
    }

    // The caller's thread does not belong to the runtime, so it gets the result through a channel,
    // as with rayon.
    fn submit(&self, job: Job, x: u64) -> Receiver<u64> {
        let (sender, receiver) = sync_channel(1);
        self.0.spawn_blocking(move || _ = sender.send(perform(job, x)));
        receiver
    }

    fn take(pending: Receiver<u64>) -> u64 {
        pending.recv().expect("no task fails")
    }
}

pub(crate) fn run_rayon(request: &Request) -> Result<Figures, String> {
    if request.workload != "as_completed" {
        return measure::pool::<Rayon>(request);
    }
    let pool = Rayon::start(measure::WORKERS);
    let run = |count: u64| {
        measure::timed(|| {
            let (sender, receiver) = channel();
            for x in 0..count {
                let sender = sender.clone();
                pool.0.spawn(move || _ = sender.send(perform(Job::NoOp, x)));
            }
            let sum: u64 = receiver.iter().take(count as usize).sum();
            assert_eq!(sum, count * (count - 1) / 2);
        })
    };
    run(request.count / 10 + 2);
    Ok(measure::rate(request.count, run(request.count)))
}

/// `spawn_blocking` with two threads for blocking calls, as every pool here has two workers, or
/// with as many as tokio has by default.
pub(crate) fn run_tokio(request: &Request, threads: usize) -> Result<Figures, String> {
    match request.workload.as_str() {
        "await-1" | "await-2" | "await-64" | "await-1000" => {
            Ok(on_tokio(request.count, request.in_flight()?, threads, |x| {
                let handle = tokio::task::spawn_blocking(move || x);
                async move { handle.await.expect("no task fails") }
            }))
        }
        _ => measure::pool::<SpawnBlocking>(request),
    }
}

/// The threads for blocking calls that tokio may start unless it is told otherwise.
pub(crate) const DEFAULT_BLOCKING_THREADS: usize = 512;

/// Measures round trips in some tasks of a multi-thread runtime with two workers: how long each
/// takes, and how many all tasks together make in a second.
///
/// Each task makes one round trip after the other. Each takes the next number, so that all tasks
/// are busy until the last numbers, whichever of them the runtime prefers.
pub(crate) fn on_tokio<F>(
    count: u64,
    tasks: usize,
    blocking_threads: usize,
    submit: impl Fn(u64) -> F + Send + Sync + 'static,
) -> Figures
where
    F: Future<Output = u64> + Send,
{
    let runtime = Builder::new_multi_thread()
        .worker_threads(measure::WORKERS)
        .max_blocking_threads(blocking_threads)
        // As `#[tokio::main]` does it. One of the workers then sleeps in the runtime's I/O driver.
        .enable_all()
        .build()
        .expect("a runtime");
    let submit = Arc::new(submit);
    let run = |count: u64| {
        let next = Arc::new(AtomicU64::new(0));
        // Twice the share of each task: a vector rarely has to grow while time is measured.
        let room = (count as usize / tasks + 1) * 2;
        let mut trips: Vec<Vec<Duration>> = (0..tasks).map(|_| Vec::with_capacity(room)).collect();
        let work = |mut trips: Vec<Duration>| {
            let (next, submit) = (Arc::clone(&next), Arc::clone(&submit));
            async move {
                loop {
                    let x = next.fetch_add(1, Ordering::Relaxed);
                    if x >= count {
                        break trips;
                    }
                    let started = Instant::now();
                    assert_eq!(submit(x).await, x);
                    trips.push(started.elapsed());
                }
            }
        };
        // Spawn the work: `block_on` runs its future on the calling thread, which is not one of the
        // runtime's threads.
        runtime.block_on(async {
            let started = Instant::now();
            let running: Vec<_> = trips.drain(..).map(|trips| tokio::spawn(work(trips))).collect();
            let mut all = Vec::new();
            for task in running {
                all.push(task.await.expect("no panic"));
            }
            (all.concat(), started.elapsed())
        })
    };
    run((count / 10).max(2));
    let (trips, time) = run(count);
    let mut figures = measure::trips(trips);
    figures.extend([figure("awaits/s", count as f64 / time.as_secs_f64())]);
    figures
}
