//! Code that works with any executor: `&impl Executor`, `&dyn Executor`, `Arc<dyn Executor>`.

use std::{sync::Arc, thread};

use executor::{OnDrop, ShutdownOptions, prelude::*};
use futures::StreamExt;

use crate::support::{self, Gate, watchdog};

#[task]
fn square(x: u64) -> u64 {
    x * x
}

#[task]
fn shout(text: &str) -> String {
    text.to_uppercase()
}

fn generic(executor: &impl Executor) -> u64 {
    let text = String::from("borrowed");
    assert_eq!(executor.submit(shout::task(&text)).result().unwrap(), "BORROWED");
    let one: TaskFuture<u64> = executor.submit(square::task(5));
    one.result().unwrap() + executor.map(square::task, 0..4).map(Result::unwrap).sum::<u64>()
}

fn dynamic(executor: &dyn Executor) -> u64 {
    let one: TaskFuture<u64> = executor.submit(square::task(5));
    let map = executor.map(square::task, 0..4).chunk_size(2).buffer_size(3).unordered();
    one.result().unwrap() + map.map(Result::unwrap).sum::<u64>()
}

fn unsized_or_not<E: Executor + ?Sized>(executor: &E) -> u64 {
    executor.submit(square::task(6)).result().unwrap() + 3
}

#[test]
fn the_same_code_runs_on_every_way_to_hold_an_executor() {
    let _watchdog = watchdog();
    let pool = support::pool(2);
    assert_eq!(generic(&pool), 39);
    assert_eq!(dynamic(&pool), 39);
    assert_eq!(unsized_or_not(&pool), 39);

    let shared: Arc<dyn Executor> = Arc::new(pool.clone());
    assert_eq!(generic(&shared), 39);
    assert_eq!(dynamic(&shared), 39);
    assert_eq!(dynamic(&*shared), 39);
    assert_eq!(unsized_or_not(&*shared), 39);
    assert_eq!(shared.max_workers(), 2);
    assert_eq!(shared.submit(square::task(3)).result().unwrap(), 9);

    let typed = Arc::new(pool.clone());
    assert_eq!(generic(&typed), 39);
    assert_eq!(dynamic(&typed), 39);

    let boxed: Box<dyn Executor> = Box::new(pool.clone());
    assert_eq!(dynamic(&*boxed), 39);
    assert_eq!(boxed.submit(square::task(3)).result().unwrap(), 9);
    // All of them are the same pool.
    for executor in [&pool as &dyn Executor, &shared, &*shared, &typed, &*boxed] {
        let pid = executor.submit(support::pid::task()).result().unwrap();
        assert!(pool.worker_pids().contains(&pid));
    }
}

#[test]
fn a_shared_executor_is_used_from_many_threads() {
    let _watchdog = watchdog();
    let shared: Arc<dyn Executor> = Arc::new(support::pool(2));
    let threads: Vec<_> = (0..4_u64)
        .map(|i| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.submit(square::task(i)).result().unwrap())
        })
        .collect();
    let squares: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(squares, [0, 1, 4, 9]);
}

#[test]
fn a_map_keeps_the_executor_alive() {
    let _watchdog = watchdog();
    // Each map holds the last handle, since all other handles are dropped.
    let build =
        || ProcessPoolExecutor::builder().max_workers(1).on_drop(OnDrop::Kill).build().unwrap();
    let shared: Arc<dyn Executor> = Arc::new(build());
    let map = shared.map(square::task, 0..10).buffer_size(1);
    drop(shared);
    assert_eq!(map.map(Result::unwrap).sum::<u64>(), 285);
    let map = build().map(square::task, 0..10).buffer_size(1);
    assert_eq!(map.map(Result::unwrap).sum::<u64>(), 285);
}

#[test]
fn shutdown_through_the_trait_rejects_new_tasks_and_cancels_pending_ones() {
    let _watchdog = watchdog();
    let pool = support::pool(1);
    let executor: &dyn Executor = &pool;
    let accepted = executor.submit(square::task(3));
    executor.shutdown(true);
    assert!(accepted.done() && pool.worker_pids().is_empty());
    assert_eq!(accepted.result().unwrap(), 9);
    assert!(executor.submit(square::task(3)).result().unwrap_err().is_shutdown());
    let mut map = executor.map(square::task, 0..2);
    assert!(map.next().unwrap().unwrap_err().is_shutdown());

    let gate = Gate::new();
    let shared: Arc<dyn Executor> = Arc::new(support::pool(1));
    let running = shared.submit(support::hold::task(gate.path()));
    let pending = shared.submit(support::hold::task(gate.path()));
    gate.wait_for(1);
    shared.shutdown_with(ShutdownOptions::new().wait(false).cancel_pending(true));
    assert!(pending.result().unwrap_err().is_cancelled());
    gate.open();
    assert!(running.result().is_ok());
    shared.shutdown(true);
    assert_eq!(gate.arrivals().len(), 1);
}

#[tokio::test]
async fn tasks_maps_and_shutdown_are_awaited_through_the_trait() {
    let _watchdog = watchdog();
    let shared: Arc<dyn Executor> = Arc::new(support::pool(1));
    let accepted = shared.submit(square::task(3));
    assert_eq!(shared.submit(square::task(4)).await.unwrap(), 16);
    let squares: Vec<u64> =
        shared.map(square::task, 0..4).stream().map(Result::unwrap).collect().await;
    assert_eq!(squares, [0, 1, 4, 9]);
    let executor: &dyn Executor = &shared;
    // The future of a shutdown borrows nothing, so it can be spawned.
    let end = tokio::spawn(executor.shutdown_async());
    end.await.unwrap();
    assert_eq!(accepted.await.unwrap(), 9);
    assert!(shared.submit(square::task(3)).await.unwrap_err().is_shutdown());
}
