//! Demos of the tutorials, with gates instead of sleeps.

mod support;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    thread,
};

use executor::prelude::*;
use support::{Gate, come_to, eventually, watchdog};

executor::test_support!();

#[task]
fn work(number: u64, gate: &std::path::Path) -> u64 {
    come_to(gate);
    number * number
}

#[test]
fn d12_at_most_four_of_ten_tasks_run_at_a_time_and_shutdown_waits_for_all() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = ProcessPoolExecutor::builder().max_workers(4).build().unwrap();
    let futures: Vec<_> =
        (0..10).map(|number| pool.submit(work::task(number, gate.path()))).collect();
    gate.wait_for(4);
    assert_eq!(futures.iter().filter(|future| future.running()).count(), 4);
    assert_eq!(pool.worker_pids().len(), 4);
    // Nothing passes the gate, so a fifth task would be counted here.
    assert_eq!(gate.arrivals().len(), 4);
    let open = thread::spawn(move || {
        gate.open();
        gate
    });
    pool.shutdown(true);
    assert!(futures.iter().all(TaskFuture::done), "shutdown waits for all");
    let gate = open.join().unwrap();
    let workers: BTreeSet<u32> = gate.arrivals().into_iter().collect();
    assert_eq!((gate.arrivals().len(), workers.len()), (10, 4), "ten tasks in four processes");
    let values: Vec<u64> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(values, (0..10).map(|number| number * number).collect::<Vec<_>>());
}

#[test]
fn d13_a_callback_for_each_future_runs_in_the_parent() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    gate.open();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let pool = ProcessPoolExecutor::builder().max_workers(4).build().unwrap();
    for number in 0..10 {
        let future = pool.submit(work::task(number, gate.path()));
        let seen = Arc::clone(&seen);
        future.add_done_callback(move |outcome| {
            seen.lock().unwrap().push((std::process::id(), *outcome.unwrap()))
        });
    }
    pool.shutdown(true);
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let own = std::process::id();
    assert_eq!(
        seen,
        (0..10).map(|number| (own, number * number)).collect::<Vec<_>>(),
        "once each, here"
    );
    assert!(gate.arrivals().iter().all(|pid| *pid != own), "and the tasks elsewhere");
    eventually("no child is left", || support::children().is_empty());
}
