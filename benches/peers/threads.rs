//! Peers that run tasks in threads: `rayon::spawn` and tokio's `spawn_blocking`.
//!
//! They copy nothing and isolate nothing. They show the cost of a queue and of a thread's wake-up.

use std::{
    future::Future,
    sync::mpsc::{Receiver, sync_channel},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    measure::{self, Job, Pool, perform},
    workload::{Figures, Request},
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

pub(crate) fn run_tokio(request: &Request) -> Result<Figures, String> {
    match request.workload.as_str() {
        "await" => Ok(on_tokio(request.count, |x| {
            let handle = tokio::task::spawn_blocking(move || x);
            async move { handle.await.expect("no task fails") }
        })),
        _ => measure::pool::<SpawnBlocking>(request),
    }
}

/// Measures round trips, one at a time, in a task of a multi-thread runtime.
pub(crate) fn on_tokio<F>(count: u64, mut submit: impl FnMut(u64) -> F + Send + 'static) -> Figures
where
    F: Future<Output = u64> + Send,
{
    let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let work = async move {
        for x in 0..(count / 10).clamp(2, 200) {
            submit(x).await;
        }
        let mut trips: Vec<Duration> = Vec::with_capacity(count as usize);
        for x in 0..count {
            let started = Instant::now();
            assert_eq!(submit(x).await, x);
            trips.push(started.elapsed());
        }
        trips
    };
    // Spawn the work: `block_on` runs its future on the calling thread, which is not one of the
    // runtime's threads.
    let trips = runtime.block_on(async { tokio::spawn(work).await }).expect("no panic");
    measure::trips(trips)
}
