//! `max_tasks_per_worker`: workers that end after a number of tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use executor::{BuildError, ProcessPoolExecutor, prelude::*};
use rustix::process::Signal;

use crate::support::{self, Gate, echo, eventually, exit, hold, pid, signal, watchdog};

fn pool(workers: usize, tasks: usize) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(workers).max_tasks_per_worker(tasks).build().unwrap()
}

/// Succeeds once and leaves a note. Exits after that.
#[task]
fn only_once(notes: &Path) {
    let first = std::fs::File::create_new(notes.join("begun")).is_ok();
    if !first {
        std::process::exit(4);
    }
}

/// Counts how often each pid occurs.
fn count(pids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    pids.into_iter().for_each(|pid| *counts.entry(pid).or_default() += 1);
    counts
}

#[test]
fn mt01_a_worker_is_replaced_after_max_tasks() {
    let _watchdog = watchdog();
    let pool = pool(1, 3);
    let futures: Vec<_> = (0..4).map(|_| pool.submit(pid::task())).collect();
    let pids: Vec<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert!(pids[0] == pids[1] && pids[1] == pids[2] && pids[2] != pids[3], "{pids:?}");
    assert_eq!(pool.worker_pids(), [pids[3]], "one process");
    // A worker that has done its last task ends. Without further work it is not replaced.
    pool.submit(pid::task()).result().unwrap();
    pool.submit(pid::task()).result().unwrap();
    eventually("nobody is left", || pool.worker_pids().is_empty());
    // A worker that dies in its last task is replaced as well.
    let lost = [pool.submit(exit::task(1)), pool.submit(exit::task(2))].map(TaskFuture::result);
    assert!(lost.iter().all(|outcome| outcome.as_ref().unwrap_err().is_worker_lost()));
    assert_eq!(pool.submit(echo::task(5)).result().unwrap(), 5);
}

#[test]
fn mt01_each_item_of_a_map_counts_as_a_task() {
    let _watchdog = watchdog();
    for (workers, tasks, chunk) in [(1, 1, 8), (1, 7, 64), (3, 10, 512), (4, 3, 2)] {
        let pool = pool(workers, tasks);
        let pids: Vec<u32> =
            pool.map(|_| pid::task(), 0..200).chunk_size(chunk).map(Result::unwrap).collect();
        assert_eq!(pids.len(), 200);
        let counts = count(pids);
        assert!(
            counts.values().all(|count| *count <= tasks),
            "{workers} {tasks} {chunk}: {counts:?}"
        );
        let values: Vec<u64> = pool.map(echo::task, 0..500).map(Result::unwrap).collect();
        assert_eq!(values, (0..500).collect::<Vec<_>>());
    }
}

#[test]
fn mt02_a_shutdown_before_the_last_result_loses_none() {
    let _watchdog = watchdog();
    let pool = pool(3, 1);
    let futures: Vec<_> = (0..6).map(|n| pool.submit(echo::task(n))).collect();
    pool.shutdown(false);
    let values: Vec<u64> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(values, [0, 1, 2, 3, 4, 5]);
    pool.shutdown(true);
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn mt06_a_forced_shutdown_while_a_worker_ends_starts_no_other() {
    let _watchdog = watchdog();
    for _ in 0..20 {
        let pool = pool(1, 1);
        let (gate, more) = (Gate::new(), Gate::new());
        let first = pool.submit(hold::task(gate.path()));
        let queued: Vec<_> = (0..3).map(|_| pool.submit(hold::task(more.path()))).collect();
        gate.wait_for(1);
        gate.open();
        first.result().unwrap();
        // The worker is ending now, or has ended.
        pool.kill_workers();
        for future in queued {
            assert!(future.result().unwrap_err().is_shutdown());
        }
        pool.shutdown(true);
        assert!(pool.worker_pids().is_empty());
    }
}

#[test]
fn mt07_queued_tasks_fail_when_the_replacement_worker_cannot_start() {
    let _watchdog = watchdog();
    let notes = tempfile::tempdir().unwrap();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .max_tasks_per_worker(1)
        .initializer(only_once::task(notes.path()))
        .build()
        .unwrap();
    let futures: Vec<_> = (0..3).map(|n| pool.submit(echo::task(n))).collect();
    let mut outcomes = futures.into_iter().map(TaskFuture::result);
    assert_eq!(outcomes.next().unwrap().unwrap(), 0);
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(error.is_broken() && error.to_string().contains("exited with code 4"), "{error}");
    }
}

#[test]
fn mt08_a_limit_of_zero_is_rejected() {
    let error = ProcessPoolExecutor::builder().max_tasks_per_worker(0).build().unwrap_err();
    assert!(
        matches!(&error, BuildError::Invalid(text) if text.contains("max_tasks_per_worker")),
        "{error}"
    );
    // A limit that is never reached has no effect.
    let pool = pool(1, usize::MAX);
    assert_eq!(
        pool.submit(pid::task()).result().unwrap(),
        pool.submit(pid::task()).result().unwrap()
    );
}

#[task]
fn item(number: u64, gate: &Path) -> u64 {
    if number == 50 {
        support::come_to(gate);
    }
    number
}

#[test]
fn br30_a_worker_killed_in_the_middle_of_a_map_with_max_tasks_fails_only_its_item() {
    let _watchdog = watchdog();
    for tasks in [1, 3] {
        for (workers, chunk) in [(1, 1), (3, 1), (1, 7), (3, 7)] {
            let gate = Gate::new();
            let pool = pool(workers, tasks);
            let outcomes: Vec<_> = std::thread::scope(|scope| {
                scope.spawn(|| signal(gate.wait_for(1)[0], Signal::KILL));
                let make = |number| item::task(number, gate.path()).encode();
                pool.map(make, 0..100).chunk_size(chunk).collect()
            });
            assert_eq!(outcomes.len(), 100);
            for (number, outcome) in outcomes.into_iter().enumerate() {
                match outcome {
                    Err(error) if number == 50 => assert!(error.is_worker_lost(), "{error}"),
                    other => {
                        assert_eq!(other.unwrap(), number as u64, "only item 50 was being run")
                    }
                }
            }
        }
    }
}

#[test]
fn three_hundred_tasks_run_on_a_succession_of_workers() {
    let _watchdog = watchdog();
    let pool = pool(4, 2);
    let futures: Vec<_> = (0..300).map(|_| pool.submit(pid::task())).collect();
    let counts = count(futures.into_iter().map(|future| future.result().unwrap()));
    assert_eq!(counts.values().sum::<usize>(), 300);
    assert!(counts.values().all(|count| *count <= 2), "{counts:?}");
    let left: BTreeSet<u32> = pool.worker_pids().into_iter().collect();
    assert!(left.len() <= 4);
    pool.shutdown(true);
    assert!(pool.worker_pids().is_empty());
}
