//! Tasks that need tokens of a pool's resources.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use executor::{
    BuildError, Isolation, Pool, Process, ProcessPoolBuilder, ShutdownOptions, Value, prelude::*,
};

use crate::support::{Gate, eventually, exit, hold, hold_and_fail, pid, spin, stop, watchdog};

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Returns how many calls this worker has had before this one.
#[task]
fn calls() -> u32 {
    CALLS.fetch_add(1, Ordering::Relaxed)
}

/// Returns how many tokens the tasks had that ran at the same time, this one included, in all
/// workers.
#[task]
fn count(running: Value<i64>, tokens: u32) -> i64 {
    let now = running.fetch_add(tokens.into()) + i64::from(tokens);
    std::thread::yield_now();
    running.fetch_add(-i64::from(tokens));
    now
}

fn with(workers: usize, resources: &[(&str, u32)]) -> ProcessPoolExecutor {
    let resources = resources.iter().map(|(name, tokens)| (*name, *tokens));
    ProcessPoolExecutor::builder().max_workers(workers).resources(resources).build().unwrap()
}

#[test]
fn x36_no_more_tasks_run_than_there_are_tokens_and_others_go_on() {
    let (pool, gate) = (with(4, &[("gpu", 2)]), Gate::new());
    let held = [(); 3].map(|()| pool.submit(hold::task(gate.path()).needs("gpu", 1)));
    gate.wait_for(2);
    // Two workers are left for these, and none of them is given the third one.
    for _ in 0..50 {
        pool.submit(pid::task()).result().unwrap();
    }
    assert_eq!(gate.arrivals().len(), 2);
    assert!(!held[2].running());
    gate.open();
    let pids = held.map(|future| future.result().unwrap());
    assert!(pids.iter().collect::<BTreeSet<_>>().len() <= 3);
}

#[test]
fn x36_the_tokens_of_several_resources_are_given_at_once() {
    let (pool, gate) = (with(4, &[("gpu", 2), ("licence", 1)]), Gate::new());
    let licence = pool.submit(hold::task(gate.path()).needs("licence", 1));
    gate.wait_for(1);
    // It waits for the licence, and keeps a GPU, but has none.
    let both = pool.submit(pid::task().needs("gpu", 2).needs("licence", 1));
    let later = Gate::new();
    let gpu = pool.submit(hold::task(later.path()).needs("gpu", 1));
    assert_eq!(later.arrivals().len(), 0);
    assert!(!both.running() && !gpu.running());
    gate.open();
    licence.result().unwrap();
    both.result().unwrap();
    later.wait_for(1);
    later.open();
    gpu.result().unwrap();
}

#[test]
fn x36_a_task_that_needs_many_is_not_overtaken_for_ever_by_those_that_need_few() {
    const FEW: u32 = 200;
    let (pool, gate) = (with(1, &[("gpu", 4)]), Gate::new());
    let kept = pool.submit(hold::task(gate.path()).needs("gpu", 1));
    gate.wait_for(1);
    let many = pool.submit(calls::task().needs("gpu", 4));
    let few: Vec<_> = (0..FEW).map(|_| pool.submit(calls::task().needs("gpu", 1))).collect();
    gate.open();
    kept.result().unwrap();
    assert_eq!(many.result().unwrap(), 0);
    for (at, future) in few.into_iter().enumerate() {
        assert_eq!(future.result().unwrap(), at as u32 + 1);
    }
}

#[test]
fn x36_priorities_count_among_tasks_with_tokens_and_between_these_and_others() {
    let (pool, gate) = (with(1, &[("gpu", 1), ("disk", 1)]), Gate::new());
    let kept = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let tasks = [
        calls::task(),
        calls::task().needs("gpu", 1),
        calls::task().needs("gpu", 1).priority(1),
        calls::task().priority(2),
        calls::task().needs("disk", 1).priority(3),
        calls::task().needs("disk", 1),
        calls::task().needs("disk", 1).needs("gpu", 1).priority(-1),
        calls::task(),
    ];
    let futures = tasks.map(|task| pool.submit(task));
    gate.open();
    kept.result().unwrap();
    let places = futures.map(|future| future.result().unwrap());
    assert_eq!(places, [3, 4, 2, 1, 0, 5, 7, 6]);
}

#[test]
fn x36_tokens_come_back_however_a_task_ends() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(2).resources([("gpu", 1)]);
    let pool = builder.build().unwrap();
    let gate = Gate::new();
    gate.open();
    let next = || pool.submit(pid::task().needs("gpu", 1)).result().unwrap();
    assert!(pool.submit(hold_and_fail::task(gate.path()).needs("gpu", 1)).result().is_err());
    next();
    let lost = pool.submit(exit::task(3).needs("gpu", 1)).result().unwrap_err();
    assert!(lost.is_worker_lost());
    next();
    let gate = Gate::new();
    let limited = spin::task(gate.path()).needs("gpu", 1).timeout(Duration::from_millis(20));
    gate.open();
    assert!(pool.submit(limited).result().unwrap_err().is_timeout());
    next();
    let gate = Gate::new();
    let cancelled = pool.submit(hold::task(gate.path()).needs("gpu", 1));
    gate.wait_for(1);
    assert!(cancelled.cancel_running());
    next();
    // One that has never begun.
    let held = pool.submit(hold::task(gate.path()).needs("gpu", 1));
    let withdrawn = pool.submit(pid::task().needs("gpu", 1));
    assert!(withdrawn.cancel());
    gate.open();
    held.result().unwrap();
    next();
    let retried = exit::task(3).needs("gpu", 1).retries(2).retry_delay(Duration::from_millis(1));
    assert_eq!(pool.submit(retried).result().unwrap_err().attempts(), 3);
    next();
}

#[test]
fn x36_a_stopped_worker_keeps_the_tokens_of_its_task_until_it_is_killed() {
    let (pool, gate) = (with(2, &[("gpu", 1)]), Gate::new());
    let held = pool.submit(hold::task(gate.path()).needs("gpu", 1));
    let worker = gate.wait_for(1)[0];
    stop(worker);
    let next = pool.submit(pid::task().needs("gpu", 1));
    for _ in 0..20 {
        assert_ne!(pool.submit(pid::task()).result().unwrap(), worker);
    }
    assert!(!next.done() && !next.running());
    assert!(held.cancel_running());
    assert_ne!(next.result().unwrap(), worker);
}

#[test]
fn x36_items_of_maps_share_the_tokens() {
    let _watchdog = watchdog();
    let pool = with(4, &[("memory", 3)]);
    let running = Value::new(0_i64).unwrap();
    let map = |tokens: u32| {
        let running = running.clone();
        pool.map(move |_| count::task(running.clone(), tokens).needs("memory", tokens), 0..100_u32)
    };
    let results: Vec<_> = map(1).chain(map(2)).chain(map(3)).map(Result::unwrap).collect();
    assert_eq!(results.len(), 300);
    assert!(results.iter().all(|most| *most <= 3), "{results:?}");
}

#[test]
fn x36_tokens_limit_a_pool_and_isolated_tasks_too() {
    let builder = Pool::builder().processes(3).resources([("gpu", 1)]);
    let (pool, gate) = (builder.build().unwrap(), Gate::new());
    let held = pool.apply_async(hold::task(gate.path()).needs("gpu", 1));
    gate.wait_for(1);
    let next = pool.apply_async(hold::task(gate.path()).needs("gpu", 1));
    pool.apply(pid::task()).unwrap();
    assert_eq!(gate.arrivals().len(), 1);
    gate.open();
    held.get().unwrap();
    next.get().unwrap();
    pool.terminate();

    let builder = ProcessPoolExecutor::builder().isolation(Isolation::PerTask).max_workers(3);
    let (pool, gate) = (builder.resources([("gpu", 1)]).build().unwrap(), Gate::new());
    let held = [(); 2].map(|()| pool.submit(hold::task(gate.path()).needs("gpu", 1)));
    let first = gate.wait_for(1)[0];
    pool.submit(pid::task()).result().unwrap();
    assert_eq!(gate.arrivals(), [first]);
    gate.open();
    let [one, other] = held.map(|future| future.result().unwrap());
    assert_ne!(one, other);
}

#[test]
fn x36_a_shutdown_finishes_tasks_that_wait_for_tokens_or_cancels_them() {
    for cancel in [false, true] {
        let (pool, gate) = (with(2, &[("gpu", 1)]), Gate::new());
        let held = pool.submit(hold::task(gate.path()).needs("gpu", 1));
        gate.wait_for(1);
        let waiting = pool.submit(pid::task().needs("gpu", 1));
        let options = ShutdownOptions::new().wait(false).cancel_pending(cancel);
        pool.shutdown_with(options);
        gate.open();
        held.result().unwrap();
        assert_eq!(waiting.result().is_err(), cancel);
        assert!(pool.join_timeout(Duration::MAX));
    }
}

#[test]
fn x36_what_cannot_be_had_is_refused() {
    let pool = with(1, &[("gpu", 2)]);
    let refused = [
        (pid::task().needs("gpu", 3), "needs 3 of `gpu`, but its executor has only 2"),
        (pid::task().needs("gpu", 0), "needs 0 of `gpu`"),
        (pid::task().needs("tpu", 1), "no such resource"),
        (pid::task().needs("gpu", 1).on_worker(0), "bound to a worker"),
        (pid::task().needs("gpu", u32::MAX), "only 2"),
    ];
    for (task, expected) in refused {
        let error = pool.submit(task.name("mine")).result().unwrap_err();
        assert!(matches!(error, TaskError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("`mine`"), "{error}");
    }
    // The last call for a resource counts.
    pool.submit(pid::task().needs("gpu", 3).needs("gpu", 2)).result().unwrap();
    let map = pool.map(|x: u32| pid::task().needs("gpu", x), 1..=3);
    let ends: Vec<_> = map.map(|result| result.is_ok()).collect();
    assert_eq!(ends, [true, true, false]);
    let map = pool.map(|_| pid::task().needs("gpu", 1), 0..1).round_robin();
    assert!(map.map(Result::unwrap_err).all(|error| matches!(error, TaskError::Invalid(_))));
    let broadcast = pool.broadcast(pid::task().needs("gpu", 1)).pop().unwrap().result();
    assert!(matches!(broadcast, Err(TaskError::Invalid(_))));
    let process = Process::new(pid::task().needs("gpu", 1)).start();
    assert!(process.unwrap_err().to_string().contains("`needs`"));
    // A pool that has none.
    let error = crate::support::pool(1).submit(pid::task().needs("gpu", 1)).result().unwrap_err();
    assert!(error.to_string().contains("no such resource"));
    assert_eq!(pool.stats().queued, 0);
}

#[test]
fn x36_resources_that_make_no_sense_are_refused() {
    type Change = fn(ProcessPoolBuilder) -> ProcessPoolBuilder;
    let refused: [(Change, &str); 5] = [
        (|builder| builder.resources([("gpu", 0)]), "above 0"),
        (|builder| builder.resources([("", 1)]), "empty"),
        (|builder| builder.resources([("gpu", 1), ("gpu", 2)]), "twice"),
        (|builder| builder.resources((0..65).map(|n| (n.to_string(), 1))), "64"),
        (|builder| builder.resources([("gpu", 1)]).round_robin(), "round_robin"),
    ];
    for (change, expected) in refused {
        match change(ProcessPoolExecutor::builder().max_workers(1)).build() {
            Err(BuildError::Invalid(text)) => assert!(text.contains(expected), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let most: Vec<_> = (0..64).map(|n| (n.to_string(), u32::MAX)).collect();
    let pool = ProcessPoolExecutor::builder().max_workers(1).resources(most).build().unwrap();
    pool.submit(pid::task().needs("63", u32::MAX).needs("0", 1)).result().unwrap();
}

#[test]
fn x36_a_flood_of_short_tasks_does_not_keep_a_task_with_tokens_from_a_worker() {
    let _watchdog = watchdog();
    let pool = with(2, &[("gpu", 1)]);
    let flood = || (0..256).map(|_| pool.submit(calls::task())).collect::<Vec<_>>();
    // The pool knows that these are short, and sends them ahead.
    for future in flood() {
        future.result().unwrap();
    }
    let (mut waves, mut next) = (std::collections::VecDeque::from([flood(), flood()]), None);
    let mut rounds = 0;
    loop {
        let with_tokens = next.get_or_insert_with(|| pool.submit(pid::task().needs("gpu", 1)));
        waves.push_back(flood());
        for future in waves.pop_front().unwrap() {
            future.result().unwrap();
        }
        // There are always tasks that are younger, and no worker is idle by itself.
        rounds += 1;
        if with_tokens.done() {
            break;
        }
        assert!(rounds < 100, "it waits behind younger tasks");
    }
    eventually("all end", || pool.stats().queued == 0);
}
