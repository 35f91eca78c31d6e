//! How many workers there are and how long they live: `min_workers`, `idle_timeout`,
//! `max_lifetime`, `resize`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use executor::{BuildError, ProcessPoolBuilder, ProcessPoolExecutor, WorkerStats, WorkerStatus};
use rustix::process::Signal;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::support::{Gate, echo, eventually, hold, pid, pool, rounds, runs, signal, watchdog};

const A_MOMENT: Duration = Duration::from_millis(10);

fn builder(workers: usize) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(workers)
}

/// Lets this many workers run a task at the same time, and returns their pids.
fn run_together(pool: &ProcessPoolExecutor, workers: usize) -> BTreeSet<u32> {
    let gate = Gate::new();
    let futures: Vec<_> = (0..workers).map(|_| pool.submit(hold::task(gate.path()))).collect();
    let pids = gate.wait_for(workers).into_iter().collect();
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    pids
}

fn pids(pool: &ProcessPoolExecutor) -> BTreeSet<u32> {
    pool.worker_pids().into_iter().collect()
}

// ---- idle workers -------------------------------------------------------------------------------

#[test]
fn re01_idle_workers_leave_each_time_and_come_back_for_the_next_round() {
    let _watchdog = watchdog();
    let pool = builder(4).idle_timeout(A_MOMENT).build().unwrap();
    let mut before = BTreeSet::new();
    for _ in 0..5 {
        let now = run_together(&pool, 4);
        assert!(now.len() == 4 && now.is_disjoint(&before), "{now:?} after {before:?}");
        eventually("all have left", || pool.worker_pids().is_empty());
        assert!(!now.iter().any(|pid| runs(*pid)));
        before = now;
    }
    let stats = pool.stats();
    assert_eq!((stats.done, stats.workers_started, stats.workers_lost), (20, 20, 0));
}

#[test]
fn x12_no_task_is_lost_when_it_comes_just_as_the_workers_leave() {
    let _watchdog = watchdog();
    let pool = builder(2).idle_timeout(Duration::from_millis(1)).build().unwrap();
    for round in 0..rounds() as u64 {
        let futures: Vec<_> = (0..3).map(|n| pool.submit(echo::task(round + n))).collect();
        for (n, future) in (round..).zip(futures) {
            assert_eq!(future.result().unwrap(), n);
        }
        // About as long as the workers may be idle. Whether they leave before, at or after the next
        // submission is a matter of chance, and must not matter.
        thread::sleep(Duration::from_micros(800 + 40 * (round % 20)));
    }
    let stats = pool.stats();
    assert!(stats.workers_replaced > 0, "{stats:?}");
    assert_eq!((stats.failed.total(), stats.workers_lost), (0, 0));
}

#[test]
fn x12_a_worker_that_is_busy_is_not_idle_however_long_its_task_takes() {
    let _watchdog = watchdog();
    let pool = builder(2).idle_timeout(A_MOMENT).build().unwrap();
    let (first, second) = (Gate::new(), Gate::new());
    let long = pool.submit(hold::task(first.path()));
    let worker = first.wait_for(1)[0];
    // Another one comes and leaves meanwhile.
    let short = pool.submit(hold::task(second.path()));
    let other = second.wait_for(1)[0];
    second.open();
    assert_eq!(short.result().unwrap(), other);
    eventually("the idle one has left", || pool.worker_pids() == [worker]);
    first.open();
    assert_eq!(long.result().unwrap(), worker);
}

#[test]
fn x12_the_minimum_of_workers_stays() {
    let _watchdog = watchdog();
    let pool = builder(4).min_workers(2).idle_timeout(A_MOMENT).build().unwrap();
    eventually("the minimum comes without a task", || pool.worker_pids().len() == 2);
    for _ in 0..3 {
        let all = run_together(&pool, 4);
        eventually("the others leave", || pool.worker_pids().len() == 2);
        assert!(pids(&pool).is_subset(&all), "two of those that were there stay");
    }
    let left = pids(&pool);
    let worker = pool.submit(pid::task()).result().unwrap();
    assert!(left.contains(&worker), "those that stay run the next tasks");
}

#[test]
fn kept_workers_are_replaced_without_a_task() {
    let _watchdog = watchdog();
    let pool = builder(3).min_workers(2).build().unwrap();
    // A worker that dies before it was ready would count as one that cannot be started.
    let idle = |row: &WorkerStats| row.status == WorkerStatus::Idle;
    eventually("they come at once", || {
        pool.worker_stats().iter().filter(|row| idle(row)).count() == 2
    });
    let before = pids(&pool);
    let killed = *before.first().unwrap();
    signal(killed, Signal::KILL);
    eventually("another one comes", || {
        let now = pids(&pool);
        now.len() == 2 && !now.contains(&killed)
    });
    assert_eq!(pool.stats().workers_lost, 1);
    pool.shutdown(true);
    assert!(pool.worker_pids().is_empty(), "none is kept any more");
}

// ---- old workers --------------------------------------------------------------------------------

#[test]
fn a_worker_is_replaced_when_it_is_old_and_never_within_a_task() {
    let _watchdog = watchdog();
    let pool = builder(1).max_lifetime(A_MOMENT).build().unwrap();
    let gate = Gate::new();
    let long = pool.submit(hold::task(gate.path()));
    let next = pool.submit(pid::task());
    let worker = gate.wait_for(1)[0];
    eventually("it is old", || pool.worker_stats()[0].status == WorkerStatus::Leaving);
    assert!(pool.worker_stats()[0].task.is_some(), "and its task goes on");
    gate.open();
    assert_eq!(long.result().unwrap(), worker);
    assert_ne!(next.result().unwrap(), worker, "it gets no other task");
    eventually("an idle worker leaves as well", || pool.worker_pids().is_empty());
    assert_eq!(pool.stats().workers_lost, 0);
}

#[test]
fn a_lifetime_that_is_over_at_once_still_lets_each_worker_run_a_task() {
    let _watchdog = watchdog();
    let pool = builder(2).max_lifetime(Duration::from_nanos(1)).build().unwrap();
    let futures: Vec<_> = (0..20).map(|n| pool.submit(echo::task(n))).collect();
    let values: Vec<u64> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(values, (0..20).collect::<Vec<_>>());
}

#[test]
fn no_task_of_a_stream_is_lost_while_workers_are_replaced() {
    let _watchdog = watchdog();
    let pool = builder(3).max_lifetime(Duration::from_millis(5)).build().unwrap();
    let mut n = 0;
    while pool.stats().workers_replaced < 10 {
        let chunk = n..n + 2_000;
        let values = pool.map(echo::task, chunk.clone()).map(Result::unwrap);
        assert!(values.eq(chunk));
        n += 2_000;
    }
    assert_eq!((pool.stats().done, pool.stats().failed.total()), (n, 0));
}

// ---- another number of workers ------------------------------------------------------------------

/// Collects the warnings of one thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Visit for Warnings {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn re05_a_smaller_pool_warns_finishes_its_tasks_and_keeps_a_worker() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (first, second) = (Gate::new(), Gate::new());
    let futures = [&first, &second].map(|gate| pool.submit(hold::task(gate.path())));
    let workers: BTreeSet<u32> = [first.wait_for(1)[0], second.wait_for(1)[0]].into();
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || pool.resize(1).unwrap());
    let warned = std::mem::take(&mut *warnings.0.lock().unwrap());
    assert!(warned.len() == 1 && warned[0].contains("leave after the tasks"), "{warned:?}");
    assert_eq!(pool.max_workers(), 1);
    assert_eq!(pids(&pool), workers, "both still run their tasks");
    first.open();
    second.open();
    futures.into_iter().for_each(|future| assert!(workers.contains(&future.result().unwrap())));
    eventually("one is left", || pool.worker_pids().len() == 1);
    let stays = pool.worker_pids()[0];
    assert!(workers.contains(&stays));
    // Growing keeps it, too.
    pool.resize(2).unwrap();
    let two = run_together(&pool, 2);
    assert!(two.len() == 2 && two.contains(&stays), "{two:?}, and {stays} was there");
    assert_eq!(pool.stats().workers_lost, 0);
}

#[test]
fn x11_more_workers_start_at_once_for_the_tasks_that_wait() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let futures: Vec<_> = (0..3).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(1);
    pool.resize(3).unwrap();
    gate.wait_for(3);
    assert_eq!((pool.max_workers(), pool.worker_pids().len()), (3, 3));
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
}

#[test]
fn x11_a_worker_that_is_wanted_again_before_it_leaves_stays() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let futures: Vec<_> = (0..2).map(|_| pool.submit(hold::task(gate.path()))).collect();
    let workers: BTreeSet<u32> = gate.wait_for(2).into_iter().collect();
    pool.resize(1).unwrap();
    pool.resize(2).unwrap();
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    assert_eq!(run_together(&pool, 2), workers);
}

#[test]
fn re07_a_worker_killed_right_after_a_resize_fails_no_later_task() {
    let _watchdog = watchdog();
    for (from, to) in [(2, 1), (1, 2), (3, 2), (2, 3)] {
        let pool = pool(from);
        let gate = Gate::new();
        let held: Vec<_> = (0..from).map(|_| pool.submit(hold::task(gate.path()))).collect();
        let killed = gate.wait_for(from)[0];
        pool.resize(to).unwrap();
        signal(killed, Signal::KILL);
        gate.open();
        let lost = held.into_iter().filter_map(|future| future.result().err());
        assert!(lost.map(|error| assert!(error.is_worker_lost(), "{error}")).count() == 1);
        let futures: Vec<_> = (0..10).map(|n| pool.submit(echo::task(n))).collect();
        for (n, future) in (0..).zip(futures) {
            assert_eq!(future.result().unwrap(), n);
        }
        assert!(pool.worker_pids().len() <= to);
    }
}

#[test]
fn re08_a_pool_whose_workers_have_left_can_be_resized() {
    let _watchdog = watchdog();
    let pool = builder(2).idle_timeout(A_MOMENT).build().unwrap();
    for workers in [2, 1, 3] {
        pool.resize(workers).unwrap();
        assert_eq!(run_together(&pool, workers).len(), workers);
        eventually("all have left", || pool.worker_pids().is_empty());
    }
}

#[test]
fn x11_no_task_is_lost_while_the_number_of_workers_changes() {
    let _watchdog = watchdog();
    let pool = pool(4);
    let chunk = 0..20_000;
    thread::scope(|scope| {
        let results = scope.spawn(|| {
            let values = pool.map(echo::task, chunk.clone()).chunk_size(16).map(Result::unwrap);
            assert!(values.eq(chunk.clone()));
            let futures: Vec<_> = chunk.clone().map(|n| pool.submit(echo::task(n))).collect();
            for (n, future) in chunk.clone().zip(futures) {
                assert_eq!(future.result().unwrap(), n);
            }
        });
        for workers in [1, 4, 2, 3].into_iter().cycle() {
            if results.is_finished() {
                break;
            }
            pool.resize(workers).unwrap();
            assert!(pool.worker_pids().len() <= 4);
            thread::yield_now();
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed.total(), stats.queued), (40_000, 0, 0), "{stats:?}");
    assert_eq!(stats.workers_lost, 0);
    pool.resize(1).unwrap();
    eventually("one is left", || pool.worker_pids().len() <= 1);
}

#[test]
fn x11_a_pool_that_has_ended_can_be_resized_without_an_effect() {
    let _watchdog = watchdog();
    let pool = pool(1);
    pool.shutdown(true);
    pool.resize(2).unwrap();
    assert!(pool.submit(pid::task()).result().unwrap_err().is_shutdown());
    assert!(pool.worker_pids().is_empty());
}

// ---- options that make no sense -----------------------------------------------------------------

#[test]
fn numbers_and_times_that_make_no_sense_are_rejected() {
    let says = |error: BuildError, what: &str| {
        assert!(
            matches!(&error, BuildError::Invalid(text) if text.contains(what)),
            "{error} does not name {what}"
        );
    };
    let built = |builder: ProcessPoolBuilder| builder.build().unwrap_err();
    says(built(builder(2).idle_timeout(Duration::ZERO)), "idle_timeout");
    says(built(builder(2).max_lifetime(Duration::ZERO)), "max_lifetime");
    says(built(builder(2).min_workers(3)), "min_workers (3) must not be above max_workers (2)");
    says(built(builder(0).min_workers(0)), "max_workers");
    says(pool(1).resize(0).unwrap_err(), "max_workers");
    // What is never reached has no effect.
    let forever = builder(1).idle_timeout(Duration::MAX).max_lifetime(Duration::MAX);
    let pool = forever.min_workers(1).build().unwrap();
    let worker = pool.submit(pid::task()).result().unwrap();
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

// ---- what a worker consists of ------------------------------------------------------------------

/// Returns the names of this process's threads.
#[executor::task]
fn threads() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.map(|thread| {
        std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap().trim_end().to_owned()
    });
    names.collect()
}

#[test]
fn m27_a_worker_has_a_thread_for_tasks_and_one_that_watches_its_parent() {
    let _watchdog = watchdog();
    let pool = pool(1);
    // The main thread belongs to the harness of this test binary. Names have at most 15 bytes. A
    // thread gives itself its name, on a busy machine after the first task has begun.
    eventually("a thread for tasks and one that watches", || {
        let names = pool.submit(threads::task()).result().unwrap();
        assert_eq!(names.len(), 3, "{names:?}");
        ["executor-worker", "executor-watche"]
            .iter()
            .all(|name| names.iter().filter(|other| other == name).count() == 1)
    });
}

/// Returns the process of a worker that is idle, and is none of these.
fn another_idle(pool: &ProcessPoolExecutor, old: &BTreeSet<u32>) -> Option<u32> {
    let idle = |worker: &WorkerStats| worker.status == WorkerStatus::Idle;
    let stats = pool.worker_stats();
    stats
        .iter()
        .filter(|worker| idle(worker))
        .find_map(|worker| worker.pid.filter(|pid| !old.contains(pid)))
}

#[test]
fn kept_workers_that_die_as_soon_as_they_are_ready_break_the_pool_in_the_end() {
    let _watchdog = watchdog();
    let pool = builder(1).min_workers(1).build().unwrap();
    let mut died = BTreeSet::new();
    while pool.broken().is_none() {
        if let Some(worker) = another_idle(&pool, &died) {
            died.insert(worker);
            signal(worker, Signal::KILL);
        }
        assert!(died.len() < 100, "it goes on and on");
        thread::sleep(A_MOMENT / 10);
    }
    let error = pool.submit(pid::task()).result().unwrap_err().to_string();
    assert!(error.contains("right after it was ready") && error.contains("SIGKILL"), "{error}");
    // A worker that has answered has not died of its start.
    let pool = builder(1).min_workers(1).build().unwrap();
    for _ in 0..10 {
        let worker = pool.submit(pid::task()).result().unwrap();
        signal(worker, Signal::KILL);
        eventually("it is gone", || !runs(worker));
    }
    assert!(pool.submit(pid::task()).result().is_ok());
}
