//! The reusable executor. There is one in each process, so each test here is a task, and runs in a
//! process of its own.

use std::{collections::BTreeSet, path::Path, sync::Barrier, thread, time::Duration};

use executor::{BuildError, IntoTask, OnDrop, ProcessPoolBuilder, prelude::*};
use rustix::process::Signal;

use crate::support::{
    self, Gate, echo, eventually, hold, pid, pool, runs, signal, variable, watchdog,
};

/// Runs a test in a process that runs nothing else.
fn alone(test: impl IntoTask<Output = ()>) {
    let _watchdog = watchdog();
    if let Err(error) = pool(1).submit(test).result() {
        panic!("{error}");
    }
}

fn builder() -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder()
}

fn worker_of(pool: &ProcessPoolExecutor) -> u32 {
    pool.submit(pid::task()).result().unwrap()
}

#[task]
fn reuses() {
    let first = builder().max_workers(1).env("MODE", "a").reusable().unwrap();
    let worker = worker_of(&first);
    // Dropping the handle ends nothing.
    drop(first);
    let second = builder().max_workers(1).env("MODE", "a").reusable().unwrap();
    assert_eq!(second.worker_pids(), [worker]);
    assert_eq!(worker_of(&second), worker);
    // After a shutdown it is a new one, also if the workers were killed.
    second.shutdown(true);
    let third = builder().max_workers(1).env("MODE", "a").reusable().unwrap();
    let worker = worker_of(&third);
    third.kill_workers();
    let fourth = executor::reusable().unwrap();
    assert_ne!(worker_of(&fourth), worker);
    assert!(third.submit(pid::task()).result().unwrap_err().is_shutdown());
    assert!(fourth.max_workers() >= 1);
}

#[test]
fn re04_the_same_options_give_the_same_executor_until_it_is_shut_down() {
    alone(reuses::task());
}

#[task]
fn breaks() -> Result<(), String> {
    Err("broken".into())
}

#[task]
fn replaces_a_broken_one() {
    let broken = builder().max_workers(1).initializer(breaks::task()).reusable().unwrap();
    assert!(broken.submit(pid::task()).result().unwrap_err().is_broken());
    let pool = executor::reusable().unwrap();
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn a_broken_executor_is_not_reused() {
    alone(replaces_a_broken_one::task());
}

#[task]
fn resizes() {
    let pool = builder().max_workers(2).reusable().unwrap();
    let worker = worker_of(&pool);
    let same = builder().max_workers(1).reusable().unwrap();
    assert_eq!((pool.max_workers(), worker_of(&same)), (1, worker), "resized, not replaced");
    let same = builder().max_workers(3).reusable().unwrap();
    assert_eq!((pool.max_workers(), worker_of(&same)), (3, worker));
    // Who says nothing about the number takes what there is.
    let same = builder().reusable().unwrap();
    assert_eq!((same.max_workers(), worker_of(&same)), (3, worker));
    assert_eq!(executor::reusable().unwrap().worker_pids(), [worker]);
}

#[test]
fn x10_another_number_of_workers_resizes_the_executor() {
    alone(resizes::task());
}

#[task]
fn set_level(level: u32) {
    executor::worker_state::set(level);
}

#[task]
fn level() -> (u32, u32) {
    (executor::with_worker_state(|level: &mut u32| *level), std::process::id())
}

#[task]
fn changes_the_initializer() {
    let of = |wanted| {
        let pool = builder().max_workers(1).initializer(set_level::task(wanted)).reusable();
        pool.unwrap().submit(level::task()).result().unwrap()
    };
    let (first, again, other) = (of(1), of(1), of(2));
    assert_eq!((first.0, again, other.0), (1, first, 2));
    assert_ne!(first.1, other.1, "another process");
    eventually("the replaced worker leaves, since nobody has its executor", || !runs(first.1));
    let forced = executor::reusable().unwrap().submit(level::task()).result().unwrap();
    assert_eq!(forced, other, "whoever takes the one that is there gets the old state");
}

#[task]
fn changes_how_workers_end() {
    let of = |grace, finalizer: Option<u64>| {
        let options = builder().max_workers(1).cancel_grace(Duration::from_secs(grace));
        let pool = match finalizer {
            Some(x) => options.finalizer(echo::task(x)).reusable(),
            None => options.reusable(),
        };
        pool.unwrap().submit(pid::task()).result().unwrap()
    };
    let first = of(1, None);
    assert_eq!(of(1, None), first);
    let others = [of(2, None), of(2, Some(1)), of(2, Some(2))];
    assert_eq!(of(2, Some(2)), others[2]);
    assert!(!others.contains(&first) && others[0] != others[1] && others[1] != others[2]);
}

#[test]
fn another_finalizer_or_grace_means_other_workers() {
    alone(changes_how_workers_end::task());
}

#[test]
fn in04_another_initializer_means_other_workers_and_forced_reuse_keeps_the_state() {
    alone(changes_the_initializer::task());
}

#[task]
fn replaces(gate: &Path) {
    let old = builder().max_workers(1).env("MODE", "old").reusable().unwrap();
    let endless = old.submit(hold::task(gate));
    let queued = old.submit(echo::task(1));
    eventually("it runs", || endless.running());
    let worker = old.worker_pids()[0];
    let new = builder().max_workers(1).env("MODE", "new").reusable_replacing(OnDrop::Kill).unwrap();
    assert!(endless.result().unwrap_err().is_shutdown());
    assert!(queued.result().unwrap_err().is_shutdown());
    assert_eq!(new.submit(variable::task("MODE")).result().unwrap().as_deref(), Some("new"));
    eventually("the old worker is gone", || !runs(worker));
    // With another policy, what has begun is finished.
    let held = new.submit(hold::task(gate));
    let queued = new.submit(echo::task(1));
    eventually("it runs", || held.running());
    let last = builder().max_workers(1).env("MODE", "last");
    let last = last.reusable_replacing(OnDrop::CancelPending).unwrap();
    assert!(queued.result().unwrap_err().is_cancelled());
    assert_eq!(last.submit(variable::task("MODE")).result().unwrap().as_deref(), Some("last"));
    assert!(held.running());
    std::fs::write(gate.join("open"), "").unwrap();
    assert!(held.result().is_ok());
}

#[test]
fn re09_an_endless_task_is_ended_if_the_caller_that_changes_the_options_wants_that() {
    let gate = Gate::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the last step", || gate.file("open").exists());
            gate.open();
        });
        alone(replaces::task(gate.path()));
    });
}

#[task]
fn finishes_the_old_one(gate: &Path) {
    let old = builder().max_workers(1).env("MODE", "old").reusable().unwrap();
    let running = old.submit(hold::task(gate));
    let queued = old.submit(variable::task("MODE"));
    eventually("it runs", || running.running());
    let new = builder().max_workers(1).env("MODE", "new").reusable().unwrap();
    assert_eq!(new.submit(variable::task("MODE")).result().unwrap().as_deref(), Some("new"));
    // The old one is still usable for those that have it.
    let later = old.submit(variable::task("MODE"));
    drop(old);
    std::fs::write(gate.join("open"), "").unwrap();
    assert!(running.result().is_ok());
    for future in [queued, later] {
        assert_eq!(future.result().unwrap().as_deref(), Some("old"));
    }
}

#[test]
fn x10_tasks_of_an_executor_that_is_replaced_are_finished() {
    let gate = Gate::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the last step", || gate.file("open").exists());
            gate.open();
        });
        alone(finishes_the_old_one::task(gate.path()));
    });
}

#[task]
fn many_callers() {
    let start = Barrier::new(20);
    thread::scope(|scope| {
        for caller in 0..20 {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..3 {
                    // Each has options that no other caller has.
                    let mode = format!("{caller} in round {round}");
                    let builder = builder().max_workers(1 + caller % 2).env("MODE", &mode);
                    let pool = builder.reusable().unwrap();
                    let answer = pool.submit(variable::task("MODE")).result().unwrap();
                    assert_eq!(answer, Some(mode));
                }
            });
        }
    });
    let kept = executor::reusable().unwrap();
    let left: BTreeSet<u32> = kept.worker_pids().into_iter().collect();
    eventually("only the workers of the last executor are left", || {
        support::children().iter().all(|(child, state, _)| *state == 'Z' || left.contains(child))
    });
}

#[test]
fn re12_twenty_callers_with_different_options_all_get_what_they_asked_for() {
    alone(many_callers::task());
}

#[task]
fn asks_for_nonsense() {
    let kept = executor::reusable().unwrap();
    let worker = worker_of(&kept);
    let says = |builder: ProcessPoolBuilder, what: &str| {
        let error = builder.reusable().unwrap_err();
        assert!(matches!(&error, BuildError::Invalid(text) if text.contains(what)), "{error}");
    };
    says(builder().max_workers(0), "max_workers");
    says(builder().max_workers(2).min_workers(3), "min_workers (3)");
    says(builder().max_tasks_per_worker(0), "max_tasks_per_worker");
    says(builder().idle_timeout(Duration::ZERO), "idle_timeout");
    says(builder().initializer(set_level::task(1).retries(1)), "set_level");
    says(builder().start_method(executor::StartMethod::Fork), "Fork");
    assert_eq!(worker_of(&executor::reusable().unwrap()), worker, "nothing has changed");
}

#[test]
fn re14_options_that_make_no_sense_and_start_method_fork_are_an_error_and_change_nothing() {
    alone(asks_for_nonsense::task());
}

#[test]
fn re15_two_maps_with_different_functions_run_on_the_same_workers() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let held: Vec<_> = (0..2).map(|_| pool.submit(hold::task(gate.path()))).collect();
    let workers: BTreeSet<u32> = gate.wait_for(2).into_iter().collect();
    gate.open();
    held.into_iter().for_each(|future| assert!(future.result().is_ok()));
    assert!(pool.map(|()| pid::task(), [(); 50]).all(|pid| workers.contains(&pid.unwrap())));
    let sum = pool.map(echo::task, 0..50).chunk_size(7).map(Result::unwrap).sum::<u64>();
    assert_eq!(sum, 1_225);
    assert_eq!(pool.worker_pids().into_iter().collect::<BTreeSet<_>>(), workers);
    assert_eq!(pool.stats().workers_started, 2);
}

/// Comes back from an executor that is `depth` processes away, and says which processes took part.
#[task]
fn nested(depth: u32) -> Vec<u32> {
    let mut pids = vec![std::process::id()];
    if depth > 0 {
        let pool = builder().max_workers(1).reusable().unwrap();
        pids.extend(pool.submit(nested::task(depth - 1)).result().unwrap());
        // It is not waited for, and ends with this process.
        drop(pool.submit(echo::task(1)));
    }
    pids
}

#[test]
fn sd26_reusable_executors_nested_in_workers_hold_up_no_exit_and_leave_nothing() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let pids = pool.submit(nested::task(3)).result().unwrap();
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 4);
    pool.shutdown(true);
    eventually("all have ended", || !pids.iter().any(|pid| runs(*pid)));
}

#[task]
fn loses_its_workers(gate: &Path) {
    let pool = builder().max_workers(1).reusable().unwrap();
    let held = pool.submit(hold::task(gate));
    eventually("it runs", || held.running());
    signal(pool.worker_pids()[0], Signal::KILL);
    assert!(held.result().unwrap_err().is_worker_lost());
    assert_eq!(executor::reusable().unwrap().submit(echo::task(1)).result().unwrap(), 1);
    assert_eq!(pool.stats().done, 1, "the same executor");
}

#[test]
fn a_reusable_executor_that_lost_a_worker_is_reused() {
    let gate = Gate::new();
    alone(loses_its_workers::task(gate.path()));
}
