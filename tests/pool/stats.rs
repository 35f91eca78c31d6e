//! `stats` and `worker_stats`: what an executor tells about its tasks and workers.

use std::time::{Duration, Instant};

use executor::{BrokenCause, Failures, Phase, Stats, WorkerStatus, prelude::*};
use serde::{Deserialize, Serialize};

use crate::support::{
    Gate, echo, eventually, exit, fail, hold, hold_and_fail, pool, runs, stop, watchdog,
};

#[task]
fn panics() {
    panic!("as asked");
}

/// Its `Deserialize` fails.
#[derive(Serialize)]
struct Unreadable(u8);

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        Err(serde::de::Error::custom("never"))
    }
}

/// Its `Serialize` fails.
#[derive(Deserialize)]
struct Unwilling;

impl Serialize for Unwilling {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

#[task]
fn reads(_: Unreadable) {}

#[task]
fn writes() -> Unwilling {
    Unwilling
}

#[task]
fn refuses_to_start() -> Result<(), String> {
    Err("not today".into())
}

/// Returns the failures in which the two differ.
fn since(before: &Failures, now: &Failures) -> Vec<(&'static str, u64)> {
    let pairs = [
        ("failed", before.failed, now.failed),
        ("panicked", before.panicked, now.panicked),
        ("worker_lost", before.worker_lost, now.worker_lost),
        ("timed_out", before.timed_out, now.timed_out),
        ("memory_limit", before.memory_limit, now.memory_limit),
        ("cancelled", before.cancelled, now.cancelled),
        ("encode", before.encode, now.encode),
        ("decode", before.decode, now.decode),
        ("refused", before.refused, now.refused),
        ("invalid", before.invalid, now.invalid),
        ("shutdown", before.shutdown, now.shutdown),
        ("broken", before.broken, now.broken),
    ];
    let changed = pairs.into_iter().filter(|(_, before, now)| before != now);
    changed.map(|(name, before, now)| (name, now - before)).collect()
}

#[test]
fn x54_each_way_to_fail_is_counted_as_its_kind_and_as_no_other() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (gate, long) = (Gate::new(), Duration::from_secs(60));
    let mut before = pool.stats();
    assert_eq!((before.done, before.failed.total(), before.queued), (0, 0, 0));
    let mut done = 0;
    let mut check = |name: &'static str, error: Option<TaskError>| {
        let now = pool.stats();
        let expected = if error.is_some() { vec![(name, 1)] } else { vec![] };
        assert_eq!(since(&before.failed, &now.failed), expected, "{error:?}");
        done += u64::from(error.is_none());
        assert_eq!((now.done, now.queued, now.running), (done, 0, 0));
        before = now;
    };
    check("", pool.submit(echo::task(1)).result().err());
    check("failed", pool.submit(fail::task("no".into())).result().err());
    check("panicked", pool.submit(panics::task()).result().err());
    check("worker_lost", pool.submit(exit::task(3)).result().err());
    check("decode", pool.submit(reads::task(Unreadable(1))).result().err());
    check("encode", pool.submit(writes::task()).result().err());
    let timeout = Duration::from_millis(10);
    check("timed_out", pool.submit(hold::task(gate.path()).timeout(timeout)).result().err());
    let held = pool.submit(hold::task(gate.path()).timeout(long));
    gate.wait_for(2);
    assert!(held.cancel_running());
    check("cancelled", held.result().err());
    // Two that never begin.
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(3);
    let late = pool.submit(echo::task(2).queue_timeout(timeout)).result().unwrap_err();
    assert!(matches!(late, TaskError::TimedOut { phase: Phase::Queue, .. }), "{late}");
    let cancelled = pool.submit(echo::task(2));
    assert!(cancelled.cancel());
    drop(cancelled);
    gate.open();
    assert!(held.result().is_ok());
    let now = pool.stats();
    assert_eq!(since(&before.failed, &now.failed), [("timed_out", 1), ("cancelled", 1)]);
    pool.shutdown(true);
    assert!(pool.submit(echo::task(3)).result().unwrap_err().is_shutdown());
    let ended = pool.stats();
    assert_eq!(since(&now.failed, &ended.failed), [("shutdown", 1)]);
    assert_eq!((ended.done, ended.queued, ended.running, ended.workers), (2, 0, 0, 0));

    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let broken = builder.initializer(refuses_to_start::task()).build().unwrap();
    let futures = [1, 2].map(|n| broken.submit(echo::task(n)));
    for future in futures {
        let error = future.result().unwrap_err();
        assert!(matches!(error, TaskError::Broken(BrokenCause::Initializer(_))), "{error}");
    }
    let stats = broken.stats();
    assert_eq!((stats.failed.broken, stats.failed.total(), stats.queued), (2, 2, 0));
}

#[test]
fn x54_tasks_that_wait_and_run_are_counted_also_the_items_of_a_map() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let futures: Vec<_> = (0..7).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(2);
    let Stats { queued, running, done, workers, workers_started, .. } = pool.stats();
    assert_eq!((queued, running, done, workers, workers_started), (5, 2, 0, 2, 2));
    // So many that most of them stay in the intake.
    let many: Vec<_> = (0..5_000).map(|n| pool.submit(echo::task(n))).collect();
    assert_eq!((pool.stats().queued, pool.stats().running), (5_005, 2));
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    many.into_iter().for_each(|future| assert!(future.result().is_ok()));
    assert_eq!((pool.stats().queued, pool.stats().done), (0, 5_007));
    let sum = pool.map(echo::task, 0..1_000).chunk_size(50).map(Result::unwrap).sum::<u64>();
    assert_eq!(sum, 499_500);
    let stats = pool.stats();
    assert_eq!((stats.done, stats.queued, stats.failed.total()), (6_007, 0, 0));
    assert_eq!((stats.workers_lost, stats.workers_replaced, stats.retried), (0, 0, 0));
}

#[test]
fn x54_attempts_and_lost_workers_are_counted() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let task = exit::task(1).retries(2).retry_delay(Duration::ZERO);
    assert!(pool.submit(task).result().unwrap_err().is_worker_lost());
    let task = fail::task("again".into()).retries(3).retry_delay(Duration::ZERO);
    assert_eq!(pool.submit(task).result().unwrap_err().attempts(), 4);
    let stats = pool.stats();
    // A task that was tried again is one task.
    assert_eq!((stats.failed.worker_lost, stats.failed.failed, stats.failed.total()), (1, 1, 2));
    assert_eq!(stats.retried, 2 + 3);
    let workers = (stats.workers_started, stats.workers_lost, stats.workers_replaced);
    assert_eq!(workers, (4, 3, 3));
    // A worker that is killed for its task is replaced, and is not lost.
    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    assert!(held.cancel_running() && held.result().is_err());
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    let stats = pool.stats();
    assert_eq!((stats.workers_lost, stats.workers_replaced), (3, 4));
}

#[test]
fn x54_there_is_a_row_for_each_worker() {
    let _watchdog = watchdog();
    let pool = pool(2);
    assert!(pool.worker_stats().is_empty());
    let (gate, started) = (Gate::new(), Instant::now());
    let held = pool.submit(hold::task(gate.path()).name("the held one"));
    let worker = gate.wait_for(1)[0];
    let rows = pool.worker_stats();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.pid, row.status, row.tasks_done), (Some(worker), WorkerStatus::Busy, 0));
    let task = row.task.as_ref().expect("it runs one");
    assert_eq!((task.id, &*task.name), (held.id(), "the held one"));
    assert!(task.since >= started && task.since <= Instant::now() && row.since == task.since);
    assert!(row.memory.is_some_and(|bytes| (100 << 10..8 << 30).contains(&bytes)), "{row:?}");
    // A second worker has a second row.
    let failing = pool.submit(hold_and_fail::task(gate.path()));
    gate.wait_for(2);
    let numbers: Vec<u32> = pool.worker_stats().iter().map(|row| row.number).collect();
    assert_eq!(numbers, [row.number, row.number + 1]);
    let indices: Vec<usize> = pool.worker_stats().iter().map(|row| row.index).collect();
    assert_eq!(indices, [0, 1]);
    gate.open();
    assert!(held.result().is_ok() && failing.result().is_err());
    for row in pool.worker_stats() {
        assert_eq!((row.status, row.tasks_done), (WorkerStatus::Idle, 1), "an error counts, too");
        assert!(row.task.is_none() && row.since >= started);
    }
    pool.shutdown(true);
    assert!(pool.worker_stats().is_empty() && !runs(worker));
}

#[test]
fn x54_a_row_says_that_a_worker_is_stopped() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    stop(worker);
    eventually("the pool notices", || pool.worker_stats()[0].status == WorkerStatus::Stopped);
    crate::support::signal(worker, rustix::process::Signal::CONT);
    gate.open();
    assert_eq!(held.result().unwrap(), worker);
}

#[test]
fn counts_can_be_asked_at_any_time_and_always_add_up() {
    let _watchdog = watchdog();
    let pool = pool(2);
    std::thread::scope(|scope| {
        let works = scope.spawn(|| {
            for round in 0..50 {
                let futures: Vec<_> = (0..40).map(|n| pool.submit(echo::task(n))).collect();
                let one = pool.submit(fail::task("no".into()));
                futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
                assert!(one.result().is_err());
                assert!(pool.map(echo::task, 0..round).all(|value| value.is_ok()));
            }
        });
        let mut before = 0;
        while !works.is_finished() {
            let stats = pool.stats();
            let all = stats.queued + stats.running as u64 + stats.done + stats.failed.total();
            assert!(all >= before, "{all} tasks in all, and {before} before: {stats:?}");
            before = all;
            assert!(pool.worker_stats().len() <= 2);
            std::thread::yield_now();
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed.total()), (50 * 40 + 1_225, 50));
    assert_eq!((stats.queued, stats.running), (0, 0));
}
