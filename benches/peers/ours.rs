//! `executor` as a peer: the workloads of all pools, and the workloads that only `executor` has.
//!
//! It runs with default options and two workers, except where the number of workers is varied.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use executor::{SharedBytes, prelude::*};

use crate::{
    measure::{self, Job, Meeting, Pool, ProcessPool, WORKERS, timed},
    threads::{DEFAULT_BLOCKING_THREADS, on_tokio},
    workload::{Figures, Request, figure},
};

#[task]
fn no_op(x: u64) -> u64 {
    x
}

#[task]
fn spin(rounds: u64) -> u64 {
    measure::spin(rounds)
}

#[task]
fn sleep(milliseconds: u64) -> u64 {
    measure::perform(Job::Sleep, milliseconds)
}

#[task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[task]
fn echo_shared(bytes: SharedBytes) -> (SharedBytes, u64) {
    let sum = measure::sum(&bytes);
    (bytes, sum)
}

#[task]
fn attend(path: &str, write: bool) -> u32 {
    measure::attend(path, write)
}

struct Ours(ProcessPoolExecutor);

impl Pool for Ours {
    type Pending = TaskFuture<u64>;

    fn start(workers: usize) -> Self {
        Ours(ProcessPoolExecutor::builder().max_workers(workers).build().expect("a pool"))
    }

    fn submit(&self, job: Job, x: u64) -> TaskFuture<u64> {
        match job {
            Job::NoOp => self.0.submit(no_op::task(x)),
            Job::Spin => self.0.submit(spin::task(x)),
            Job::Sleep => self.0.submit(sleep::task(x)),
        }
    }

    fn take(pending: TaskFuture<u64>) -> u64 {
        pending.result().expect("no task fails")
    }
}

impl ProcessPool for Ours {
    fn echo(&self, bytes: Vec<u8>) -> (Duration, Vec<u8>) {
        let started = Instant::now();
        let back = self.0.submit(echo::task(bytes)).result().expect("no task fails");
        (started.elapsed(), back)
    }

    fn meet(&self, meeting: &Meeting) -> [u32; 2] {
        let path = meeting.path();
        [false, true]
            .map(|write| self.0.submit(attend::task(&path, write)))
            .map(|pid| pid.result().expect("no task fails"))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // Wait for the end of all workers before the driver answers. Otherwise they would end
        // beside the next peer's measurement.
        self.0.shutdown(true);
    }
}

pub(crate) fn run(request: &Request) -> Result<Figures, String> {
    match request.workload.as_str() {
        "callbacks" => Ok(called_back(request.count, |future| {
            future.add_done_callback(|outcome| called(*outcome.expect("no task fails")));
        })),
        "on_done" => Ok(called_back(request.count, |future| {
            future.on_done(|outcome| called(outcome.expect("no task fails")));
        })),
        "as_completed" => Ok(completed(request.count)),
        "map" => Ok(map(request.count)),
        "await-1" | "await-2" | "await-64" | "await-1000" => {
            Ok(awaited(request.count, request.in_flight()?))
        }
        "shared" => Ok(shared(request)),
        "grid" => Ok(grid(request)),
        "pending" => Ok(pending(request.count)),
        _ => measure::process_pool::<Ours>(request),
    }
}

/// The number of callbacks that have run, and the sum of the values that they were given. The
/// callbacks capture nothing, so that no allocation of this benchmark is measured.
static CALLS: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);

fn called(value: u64) {
    SUM.fetch_add(value, Relaxed);
    CALLS.fetch_add(1, Relaxed);
}

/// Measures tasks with callbacks, from the first submit until the shutdown has waited for the last
/// callback. `attach` adds the callback to a future, which it then drops.
fn called_back(count: u64, attach: fn(TaskFuture<u64>)) -> Figures {
    let pool = Ours::start(WORKERS);
    let warm_up = count / 10 + 2;
    CALLS.store(0, Relaxed);
    (0..warm_up).for_each(|x| attach(pool.submit(Job::NoOp, x)));
    while CALLS.load(Relaxed) < warm_up {
        std::thread::sleep(Duration::from_micros(100));
    }
    SUM.store(0, Relaxed);
    let time = timed(|| {
        (0..count).for_each(|x| attach(pool.submit(Job::NoOp, x)));
        pool.0.shutdown(true);
    });
    assert_eq!(CALLS.load(Relaxed), warm_up + count, "the shutdown waits for all callbacks");
    assert_eq!(SUM.load(Relaxed), count * (count - 1) / 2);
    measure::rate(count, time)
}

fn completed(count: u64) -> Figures {
    let pool = Ours::start(WORKERS);
    let run = |count: u64| {
        let mut futures = Vec::with_capacity(count as usize);
        timed(|| {
            futures.extend((0..count).map(|x| pool.submit(Job::NoOp, x)));
            let sum: u64 = as_completed(futures.drain(..)).map(Ours::take).sum();
            assert_eq!(sum, count * (count - 1) / 2);
        })
    };
    run(count / 10 + 2);
    measure::rate(count, run(count))
}

fn map(count: u64) -> Figures {
    let pool = Ours::start(WORKERS);
    let map = |count| {
        timed(|| {
            for x in pool.0.map(no_op::task, 0..count) {
                black_box(x.expect("no task fails"));
            }
        })
    };
    map(count / 10 + 1);
    [figure("items/s", count as f64 / map(count).as_secs_f64())].into_iter().collect()
}

fn awaited(count: u64, tasks: usize) -> Figures {
    let pool = Ours::start(WORKERS);
    let handle = pool.0.clone();
    on_tokio(count, tasks, DEFAULT_BLOCKING_THREADS, move |x| {
        let future = handle.submit(no_op::task(x));
        async move { future.await.expect("no task fails") }
    })
}

/// `SharedBytes` are sent, read completely by the task, and returned. It is measured
/// once with bytes that are kept and sent again, and once with bytes that are created for each
/// call, read completely after their return, and dropped.
fn shared(request: &Request) -> Figures {
    let pool = Ours::start(WORKERS);
    let trip = |bytes: SharedBytes| {
        pool.0.submit(echo_shared::task(bytes)).result().expect("no task fails")
    };
    let mut figures = Figures::new();
    for &size in &request.sizes {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let rate = |time: Duration| (size * request.count) as f64 / time.as_secs_f64() / 1e6;
        let kept = SharedBytes::from(bytes.clone());
        let sum = measure::sum(&bytes);
        let same =
            |back: &(SharedBytes, u64)| assert_eq!(back.1, sum, "the task has read what was sent");
        same(&trip(kept.clone()));
        let time = timed(|| (0..request.count).for_each(|_| same(&trip(kept.clone()))));
        figures.extend([figure(format!("{} KiB MB/s", size >> 10), rate(time))]);
        let time = timed(|| {
            for _ in 0..request.count {
                let back = trip(SharedBytes::copy_from_slice(&bytes));
                same(&back);
                assert_eq!(measure::sum(&back.0), sum);
            }
        });
        figures.extend([figure("made anew, MB/s", rate(time))]);
    }
    figures
}

/// Submits a task that waits at each gate, and returns when all of them run.
fn hold(pool: &Ours, gates: &[Meeting]) -> Vec<TaskFuture<u32>> {
    let held: Vec<_> =
        gates.iter().map(|gate| pool.0.submit(attend::task(&gate.path(), false))).collect();
    while !held.iter().all(TaskFuture::running) {
        std::thread::sleep(Duration::from_millis(1));
    }
    held
}

fn open(gates: &[Meeting]) {
    for gate in gates {
        measure::attend(&gate.path(), true);
    }
}

/// Measures each point of a grid: a number of workers, and a number of threads that each submit
/// their share and take the results.
fn grid(request: &Request) -> Figures {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut figures = Figures::new();
    let (mut best, mut least) = (0.0_f64, f64::INFINITY);
    for &workers in &request.axis {
        let pool = Ours::start(workers as usize);
        // Each of these tasks waits until all of them run. So all workers have started before the
        // measurement.
        let gates: Vec<Meeting> = (0..workers).map(|_| Meeting::new()).collect();
        let held = hold(&pool, &gates);
        open(&gates);
        held.into_iter().for_each(|task| assert_ne!(task.result().expect("no task fails"), 0));
        for &threads in &request.axis {
            let share = request.count / threads;
            let run = |share: u64| {
                timed(|| {
                    std::thread::scope(|scope| {
                        for _ in 0..threads {
                            scope.spawn(|| {
                                measure::run_all(&pool, (0..share).map(|x| (Job::NoOp, x)))
                            });
                        }
                    });
                })
            };
            run(share / 10 + 1);
            let rate = (share * threads) as f64 / run(share).as_secs_f64();
            best = best.max(rate);
            if workers > cores || threads > cores {
                least = least.min(rate);
            }
            figures.extend([figure(format!("{workers} x {threads} tasks/s"), rate)]);
        }
    }
    figures.extend([figure("least / best", least / best)]);
    figures
}

/// Measures futures that are pending behind tasks that wait at a gate.
fn pending(count: u64) -> Figures {
    let gates: Vec<Meeting> = (0..WORKERS).map(|_| Meeting::new()).collect();
    let pool = Ours::start(WORKERS);
    measure::run_all(&pool, (0..1000).map(|x| (Job::NoOp, x)));
    let held = hold(&pool, &gates);
    let before = resident();
    // The handles count as memory too, because a program with pending futures must keep them.
    let mut futures = Vec::with_capacity(count as usize);
    let tenth = (count / 10).max(1);
    let mut rates = Vec::new();
    for part in 0..10 {
        let time =
            timed(|| futures.extend((0..tenth).map(|x| pool.submit(Job::NoOp, part * tenth + x))));
        rates.push(tenth as f64 / time.as_secs_f64());
    }
    let each = (resident() - before) / futures.len() as f64;
    open(&gates);
    let number = futures.len() as f64;
    let time = timed(|| futures.into_iter().for_each(|future| _ = black_box(Ours::take(future))));
    held.into_iter().for_each(|task| assert_ne!(task.result().expect("no task fails"), 0));
    [
        figure("bytes each", each),
        figure("first tenth, submits/s", rates[0]),
        figure("last tenth, submits/s", rates[9]),
        figure("last / first", rates[9] / rates[0]),
        figure("then results/s", number / time.as_secs_f64()),
    ]
    .into_iter()
    .collect()
}

/// The resident memory of this process in bytes.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 =
        pages.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("resident pages");
    (pages * rustix::param::page_size() as u64) as f64
}
