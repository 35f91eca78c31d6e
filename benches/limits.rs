//! How late time limits are: the time between the moment at which a limit passes and the moment at
//! which the caller is told.
//!
//! Run it with `cargo bench --bench limits` on a machine that does nothing else. It prints median,
//! the 99th of 100, and maximum, in milliseconds, of limits on waiting for a worker, and of limits
//! on running: of tasks whose worker is killed, and of tasks that stop when they are asked.
//!
//! A benchmark with its own `main` needs an entry point for workers, like any program: here it is
//! the first line of `main`.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use executor::{OnDrop, Phase, RawArray, TaskError, TaskFuture, prelude::*};

/// What each limit has to be kept to on an idle machine.
const PROMISED: Duration = Duration::from_millis(20);

/// Returns the time of the clock that all processes of a machine share, in nanoseconds.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Notes when it begins, and never returns.
#[task]
fn forever(began: RawArray<u64>, at: usize) {
    began.set(at, monotonic());
    loop {
        thread::park();
    }
}

/// Notes when it begins, and returns when it is asked to stop.
#[task]
async fn until_asked(began: RawArray<u64>, at: usize) {
    began.set(at, monotonic());
    executor::cancelled().await;
}

/// Lets a task tell when it was found to have timed out.
fn told<T: Send + Sync + 'static>(
    future: &TaskFuture<T>,
    phase: Phase,
    tell: impl Fn(u64) + Send + 'static,
) {
    future.add_done_callback(move |outcome| {
        let now = monotonic();
        assert!(
            matches!(outcome, Err(TaskError::TimedOut { phase: passed, .. }) if *passed == phase),
            "the limit has passed"
        );
        tell(now);
    });
}

/// Limits from `first` on, evenly spread over `spread`, in an order that looks random.
fn limits(count: usize, first: Duration, spread: Duration) -> impl Iterator<Item = Duration> {
    // A number without a factor in common with any usual count.
    (0..count).map(move |at| first + spread * (at * 7_919 % count) as u32 / count as u32)
}

/// Returns how late the limits on waiting of this many tasks are, while the only worker is busy.
fn of_waiting(count: usize) -> Vec<Duration> {
    let builder = ProcessPoolExecutor::builder().max_workers(1).on_drop(OnDrop::Kill);
    let pool = builder.build().expect("a pool");
    let began = RawArray::zeroed(1).expect("memory");
    drop(pool.submit(forever::task(began.clone(), 0)));
    while began.get(0) == 0 {
        thread::yield_now();
    }
    let (sender, receiver) = mpsc::channel();
    // All are submitted before the first limit passes.
    let first = Duration::from_micros(20 * count as u64).max(Duration::from_millis(100));
    for limit in limits(count, first, first) {
        let due = monotonic() + limit.as_nanos() as u64;
        let future = pool.submit(forever::task(began.clone(), 0).queue_timeout(limit));
        let sender = sender.clone();
        told(&future, Phase::Queue, move |now| sender.send(now.saturating_sub(due)).expect("here"));
    }
    drop(sender);
    receiver.into_iter().map(Duration::from_nanos).collect()
}

/// Returns how late the limits on running of this many tasks are. If they stop when they are asked,
/// their workers are kept. Otherwise each needs a new worker.
fn of_running(count: usize, workers: usize, asks: bool) -> Vec<Duration> {
    let grace = Duration::from_secs(if asks { 60 } else { 0 });
    let builder = ProcessPoolExecutor::builder().max_workers(workers).cancel_grace(grace);
    let pool = builder.build().expect("a pool");
    let began = RawArray::zeroed(count).expect("memory");
    let (sender, receiver) = mpsc::channel();
    let limits = limits(count, Duration::from_millis(5), Duration::from_millis(20));
    for (at, limit) in limits.enumerate() {
        let (sender, noted) = (sender.clone(), began.clone());
        let tell = move |now: u64| {
            let due = noted.get(at) + limit.as_nanos() as u64;
            sender.send(now.saturating_sub(due)).expect("here");
        };
        if asks {
            let future = pool.submit(until_asked::task(began.clone(), at).timeout(limit));
            told(&future, Phase::Run, tell);
        } else {
            let future = pool.submit(forever::task(began.clone(), at).timeout(limit));
            told(&future, Phase::Run, tell);
        }
    }
    drop(sender);
    receiver.into_iter().map(Duration::from_nanos).collect()
}

fn row(name: &str, mut late: Vec<Duration>) {
    late.sort();
    let of = |hundredth: usize| late[(late.len() - 1) * hundredth / 100].as_secs_f64() * 1e3;
    let over = late.iter().filter(|late| **late > PROMISED).count();
    let count = late.len();
    println!("{name:<34} {count:>6} {:>10.3} {:>10.3} {:>10.3} {over:>8}", of(50), of(99), of(100));
}

fn main() {
    executor::init();
    // `cargo bench` passes `--bench`. `cargo test` does not; it runs this program to check that a
    // benchmark's workers start.
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--list") {
        // cargo-nextest asks every test program for its tests; this program has none.
        return;
    }
    let quick = args.iter().any(|arg| arg == "--quick") || !args.iter().any(|arg| arg == "--bench");
    let count = if quick { 50 } else { 5_000 };
    let started = Instant::now();
    println!(
        "{:<34} {:>6} {:>10} {:>10} {:>10} {:>8}",
        "milliseconds late", "limits", "median", "99 of 100", "most", "> 20 ms"
    );
    row("waiting for a worker", of_waiting(count));
    row("running, worker killed", of_running(count / 10, 2, false));
    row("running, asked to stop", of_running(count, 8, true));
    println!("{:.1} s", started.elapsed().as_secs_f64());
}
