//! Peers in threads: `rayon::spawn` and tokio's `spawn_blocking`.
//!
//! They copy nothing and isolate nothing; what they show is what a queue and a thread's wake-up cost.

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

    // From a thread that is not the runtime's, so the result comes back as rayon's does.
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

/// Round trips, one at a time, within a task of a multi-thread runtime.
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
    // Spawned: `block_on`'s own thread is none of the runtime's.
    let trips = runtime.block_on(async { tokio::spawn(work).await }).expect("no panic");
    measure::trips(trips)
}
