//! A first look at the cost of a task, in seconds.
//!
//! Run it with `cargo bench --bench pool` (`-- --quick` for a shorter run).
//!
//! A benchmark with its own `main` needs an entry point for workers, like any program: here it is
//! the first line of `main`.

use std::time::{Duration, Instant};

use executor::prelude::*;

#[task]
fn no_op(x: u64) -> u64 {
    x
}

#[task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// Sleeps long enough that each of two tasks gets a worker of its own.
#[task]
fn nap() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Returns the proportional memory of a process in KiB: each shared page is divided equally among
/// the processes that share it. The figure depends on the other programs that are running, because
/// they all share the C library.
fn pss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
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
    let rounds: u64 = if quick { 200 } else { 20_000 };
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().expect("a pool");

    let started = Instant::now();
    pool.submit(no_op::task(0)).result().expect("a result");
    row("first result of a new pool", started.elapsed(), 1);

    // Start both workers before measuring their memory.
    let both: Vec<_> = (0..2).map(|_| pool.submit(nap::task())).collect();
    both.into_iter().for_each(|nap| nap.result().expect("a nap"));
    let memory: u64 = pool.worker_pids().into_iter().map(pss_kib).sum();
    println!("{:<28} {memory:>12} KiB", "both workers, idle, PSS");

    let mut trips: Vec<Duration> =
        (0..rounds).map(|x| timed(|| pool.submit(no_op::task(x)).result())).collect();
    trips.sort();
    row("round trip, median", trips[trips.len() / 2], 1);
    row("round trip, 99 of 100", trips[trips.len() * 99 / 100], 1);

    let time = timed(|| {
        let futures: Vec<_> = (0..rounds).map(|x| pool.submit(no_op::task(x))).collect();
        futures.into_iter().map(TaskFuture::result).collect::<Result<Vec<_>, _>>()
    });
    row("submitted one by one", time, rounds);

    let time = timed(|| pool.map(no_op::task, 0..rounds).collect::<Result<Vec<_>, _>>());
    row("map", time, rounds);

    for size in [1 << 10, 64 << 10, 1 << 20] {
        let bytes = vec![7_u8; size];
        let rounds = (rounds / 100).max(2);
        let time = timed(|| {
            (0..rounds).try_for_each(|_| pool.submit(echo::task(bytes.clone())).result().map(drop))
        });
        let rate = size as f64 * rounds as f64 / time.as_secs_f64() / 1e6;
        println!("{:<28} {rate:>12.1} MB/s", format!("echo of {} KiB", size >> 10));
    }
}

fn timed<T, E: std::fmt::Debug>(work: impl FnOnce() -> Result<T, E>) -> Duration {
    let started = Instant::now();
    work().expect("no task fails");
    started.elapsed()
}

fn row(name: &str, time: Duration, tasks: u64) {
    let each = time.as_secs_f64() / tasks as f64;
    println!("{name:<28} {:>12.2} µs {:>12.0} tasks/s", each * 1e6, 1.0 / each);
}
