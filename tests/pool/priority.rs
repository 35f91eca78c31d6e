//! Priorities of tasks, and how several maps share a pool.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::{FutureExt, StreamExt};

use executor::{BuildError, Pool, Process, prelude::*};

use crate::support::{Gate, hold, pool};

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Returns how many calls this worker has had before this one.
#[task]
fn calls() -> u32 {
    CALLS.fetch_add(1, Ordering::Relaxed)
}

#[task]
fn calls_of(_item: u32) -> u32 {
    calls()
}

/// Submits a task that keeps the only worker until the gate opens, and waits until it runs.
fn keep(pool: &ProcessPoolExecutor, gate: &Gate) -> TaskFuture<u32> {
    let kept = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    kept
}

#[test]
fn x35_the_highest_priority_goes_first_and_equal_ones_keep_their_order() {
    let (pool, gate) = (pool(1), Gate::new());
    let kept = keep(&pool, &gate);
    let priorities = [0, -3, 5, 0, i32::MAX, 5, i32::MIN, 1];
    let futures = priorities.map(|priority| pool.submit(calls::task().priority(priority)));
    gate.open();
    kept.result().unwrap();
    let places = futures.map(|future| future.result().unwrap());
    assert_eq!(places, [4, 6, 1, 5, 0, 2, 7, 3]);
}

#[test]
fn x35_an_urgent_task_overtakes_a_burst_of_any_size() {
    const BURST: u32 = 5_000;
    let (pool, gate) = (pool(1), Gate::new());
    let kept = keep(&pool, &gate);
    let before: Vec<_> = (0..BURST).map(|_| pool.submit(calls::task())).collect();
    let late = pool.submit(calls::task().priority(-1));
    let urgent = pool.submit(calls::task().priority(1));
    let after: Vec<_> = (0..BURST).map(|_| pool.submit(calls::task())).collect();
    gate.open();
    kept.result().unwrap();
    assert_eq!(urgent.result().unwrap(), 0);
    // Everything older, and then 16 that overtake it.
    let its_place = BURST + 1 + 16;
    for (at, future) in before.into_iter().chain(after).enumerate() {
        let place = at as u32 + 1;
        assert_eq!(future.result().unwrap(), place + u32::from(place >= its_place));
    }
    assert_eq!(late.result().unwrap(), its_place);
}

#[test]
fn x35_a_task_of_low_priority_gets_a_turn_among_many_urgent_ones() {
    let (pool, gate) = (pool(1), Gate::new());
    let kept = keep(&pool, &gate);
    let low = pool.submit(calls::task().priority(-1));
    let urgent: Vec<_> = (0..100).map(|_| pool.submit(calls::task().priority(1))).collect();
    gate.open();
    kept.result().unwrap();
    // 16 have overtaken it.
    assert_eq!(low.result().unwrap(), 16);
    let last = urgent.into_iter().last().unwrap();
    assert_eq!(last.result().unwrap(), 100);
}

#[test]
fn items_of_a_map_may_have_priorities() {
    let (pool, gate) = (pool(1), Gate::new());
    let kept = keep(&pool, &gate);
    let map = pool.map(|x| calls_of::task(x).priority(x as i32), 1..=8).buffer_size(8);
    let mut results = map.stream();
    assert!(results.next().now_or_never().is_none(), "all items are submitted, and none has run");
    gate.open();
    kept.result().unwrap();
    let places = futures::executor::block_on(results.map(Result::unwrap).collect::<Vec<_>>());
    assert_eq!(places, [7, 6, 5, 4, 3, 2, 1, 0]);
}

#[test]
fn a_task_with_a_priority_is_cancelled_like_any_other() {
    let (pool, gate) = (pool(1), Gate::new());
    let kept = keep(&pool, &gate);
    let futures: Vec<_> = (0..300).map(|at| pool.submit(calls::task().priority(at % 7))).collect();
    let (gone, stay): (Vec<_>, Vec<_>) =
        futures.into_iter().enumerate().partition(|(at, _)| at % 3 != 0);
    assert!(gone.iter().all(|(_, future)| future.cancel()));
    gate.open();
    kept.result().unwrap();
    let mut places: Vec<_> = stay.into_iter().map(|(_, one)| one.result().unwrap()).collect();
    places.sort_unstable();
    assert_eq!(places, (0..100).collect::<Vec<_>>());
    assert!(gone.into_iter().all(|(_, future)| future.result().unwrap_err().is_cancelled()));
}

#[test]
fn x35_a_priority_is_refused_where_nothing_queues() {
    let error = Process::new(calls::task().priority(1)).start().unwrap_err();
    assert!(error.to_string().contains("`priority`"), "{error}");
    let builder = ProcessPoolExecutor::builder().initializer(calls::task().priority(0));
    let error = builder.build().unwrap_err();
    assert!(matches!(error, BuildError::Invalid(_)) && error.to_string().contains("`priority`"));
    // Calls of a `Pool` do queue.
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.apply(calls::task().priority(1)).unwrap(), 0);
    pool.terminate();
}

#[test]
fn several_maps_share_a_pool_by_their_buffers() {
    const BUFFER: u32 = 8;
    let pool = pool(1);
    let endless = || pool.map(calls_of::task, 0..).chunk_size(1).buffer_size(BUFFER as usize);
    // The second map comes when the first one has all its items in the queue.
    let (mut first, mut second) = (endless(), endless());
    let mut places = Vec::new();
    for _ in 0..100 {
        places.push([first.next().unwrap().unwrap(), second.next().unwrap().unwrap()]);
    }
    for (at, [first, second]) in places.into_iter().enumerate() {
        // Neither is ever more than what both have submitted before the other.
        assert!(first.abs_diff(second) <= 2 * BUFFER, "item {at}: {first} and {second}");
    }
}
