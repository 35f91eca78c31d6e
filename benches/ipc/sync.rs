//! Benchmarks of locks, values and arrays.

use std::{
    hint::black_box,
    io::{Read, Write},
    process::Command,
    sync::{
        Barrier as ThreadBarrier, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use executor::{Array, Barrier, Lock, RawValue, Semaphore, Value, prelude::*};

use crate::Line;

const RUNS: usize = 5;

/// The median time of one operation in nanoseconds.
fn median(count: u64, mut act: impl FnMut(u64) -> Duration) -> f64 {
    act(count.div_ceil(10));
    let mut times: Vec<f64> =
        (0..RUNS).map(|_| act(count).as_secs_f64() / count as f64 * 1e9).collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

fn timed(act: impl FnOnce()) -> Duration {
    let began = Instant::now();
    act();
    began.elapsed()
}

/// Locks and unlocks `count` times. Returns the time that this process takes, from the moment when
/// both processes are ready.
#[task]
fn contend(lock: Lock, count: u64, together: Barrier) -> f64 {
    together.wait().expect("both come");
    timed(|| {
        for _ in 0..count {
            drop(lock.acquire().expect("nobody dies"));
        }
    })
    .as_secs_f64()
}

#[task]
fn receive(array: Array<f64>, ready: Semaphore, done: Semaphore) {
    loop {
        ready.acquire().forget();
        let first = array.read().expect("nobody dies")[0];
        done.release();
        if first < 0.0 {
            return;
        }
    }
}

fn uncontended(count: u64) -> Line {
    let (lock, mutex) = (Lock::new().expect("memory"), Mutex::new(()));
    let ours =
        median(count, |count| timed(|| (0..count).for_each(|_| drop(black_box(&lock).acquire()))));
    let limit =
        median(count, |count| timed(|| (0..count).for_each(|_| drop(black_box(&mutex).lock()))));
    Line { what: "lock, uncontended", ours, limit: ("std's Mutex", limit) }
}

fn contended(pool: &ProcessPoolExecutor, count: u64) -> Line {
    let (lock, together) = (Lock::new().expect("memory"), Barrier::new(2).expect("memory"));
    let both = |count: u64| {
        let tasks =
            [(); 2].map(|()| pool.submit(contend::task(lock.clone(), count / 2, together.clone())));
        let times = tasks.map(|task| task.result().expect("it runs"));
        Duration::from_secs_f64(times[0].max(times[1]))
    };
    let (mutex, there) = (Mutex::new(()), ThreadBarrier::new(2));
    let threads = |count: u64| {
        timed(|| {
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        there.wait();
                        (0..count / 2).for_each(|_| drop(mutex.lock()));
                    });
                }
            });
        })
    };
    Line {
        what: "lock, two processes",
        ours: median(count, both),
        limit: ("std's Mutex, two threads", median(count, threads)),
    }
}

fn increments(count: u64) -> [Line; 2] {
    let (value, raw, atomic) = (
        Value::new(0_u64).expect("memory"),
        RawValue::new(0_u64).expect("memory"),
        AtomicU64::new(0),
    );
    let locked =
        median(count, |count| timed(|| (0..count).for_each(|_| value.update(|value| *value += 1))));
    let added = median(count, |count| timed(|| (0..count).for_each(|_| _ = raw.fetch_add(1))));
    let limit = median(count, |count| {
        timed(|| (0..count).for_each(|_| _ = black_box(&atomic).fetch_add(1, Ordering::AcqRel)))
    });
    [
        Line { what: "value += 1", ours: locked, limit: ("an atomic", limit) },
        Line { what: "raw value, fetch_add", ours: added, limit: ("an atomic", limit) },
    ]
}

fn hand_over(pool: &ProcessPoolExecutor, bytes: usize, count: u64) -> Line {
    let array = Array::<f64>::zeroed(bytes / 8).expect("memory");
    let (ready, done) = (Semaphore::new(0).expect("memory"), Semaphore::new(0).expect("memory"));
    let task = pool.submit(receive::task(array.clone(), ready.clone(), done.clone()));
    let ours = median(count, |count| {
        timed(|| {
            for _ in 0..count {
                array.write().expect("nobody dies")[0] = 1.0;
                ready.release();
                done.acquire().forget();
            }
        })
    });
    array.write().expect("nobody dies")[0] = -1.0;
    ready.release();
    task.result().expect("it ends");

    let [(mut there, mut to), (mut back, mut from)] =
        [(); 2].map(|()| std::io::pipe().expect("a pipe"));
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while there.read(&mut byte).is_ok_and(|count| count > 0) {
            let _ = from.write(&byte);
        }
    });
    let limit = median(count, |count| {
        timed(|| {
            for _ in 0..count {
                let _ = to.write(&[1]);
                let _ = back.read(&mut [0]);
            }
        })
    });
    drop(to);
    let _ = echo.join();
    Line { what: "64 MiB array handed over and back", ours, limit: ("a byte over pipes", limit) }
}

fn python(short: bool) -> Option<serde_json::Value> {
    if short {
        return None;
    }
    let python = std::env::var_os("EXECUTOR_BENCH_PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/ipc/peers.py");
    let output = Command::new(python).args(["-B", script]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

pub(crate) fn run(short: bool) {
    let scale = |count: u64| if short { (count / 1_000).max(10) } else { count };
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().expect("a pool");
    let mut lines = vec![uncontended(scale(5_000_000)), contended(&pool, scale(1_000_000))];
    lines.extend(increments(scale(5_000_000)));
    lines.push(hand_over(&pool, if short { 1 << 16 } else { 64 << 20 }, scale(20_000)));
    drop(pool);
    let python = python(short);
    println!("{:<36} {:>12} {:>16} {:>12}", "nanoseconds", "ours", "multiprocessing", "limit");
    for Line { what, ours, limit: (name, limit) } in lines {
        let theirs = python.as_ref().and_then(|figures| figures[what].as_f64());
        let theirs = theirs.map_or("–".into(), |figure| format!("{figure:.0}"));
        println!("{what:<36} {ours:>12.1} {theirs:>16} {limit:>12.1}  ({name})");
    }
}
