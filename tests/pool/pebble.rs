//! What users of pebble and mpire know: the lines TO… of the checklist, as far as no other file has
//! them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use executor::{ExitStatus, Pool, PoolError, Process, ShutdownOptions, TaskError, prelude::*};
use futures::{StreamExt as _, executor::block_on, future::join_all};

use super::support::{Gate, echo, eventually, exit, fail, hold, note, notes, pool, runs, watchdog};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(600);

#[test]
fn to01_a_task_that_exceeds_its_time_limit_times_out_and_its_worker_is_gone() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()).timeout(SHORT));
    let error = future.result().unwrap_err();
    assert!(matches!(error, TaskError::TimedOut { limit, .. } if limit == SHORT), "{error}");
    // At about the limit: nobody has opened the gate, so without it the task would run on.
    // It may have been ended before it came to the gate.
    for worker in gate.arrivals() {
        eventually("the worker is gone", || !runs(worker));
        assert!(
            pool.worker_stats().iter().all(|row| row.pid != Some(worker) || row.task.is_none())
        );
    }
    let stats = pool.stats();
    assert_eq!((stats.running, stats.queued, stats.failed.timed_out), (0, 0, 1));
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn to09_a_worker_that_ends_by_itself_is_reported_with_pid_and_exit_code_and_the_pool_goes_on() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let worker = pool.submit(super::support::pid::task()).result().unwrap();
    match pool.submit(exit::task(7)).result().unwrap_err() {
        TaskError::WorkerLost { pid, status, .. } => {
            assert_eq!((pid, status), (worker, ExitStatus::Exited(7)));
        }
        other => panic!("{other}"),
    }
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn to10_a_pool_that_is_closed_and_joined_has_done_all_its_tasks() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let futures: Vec<_> = (0..30).map(|x| pool.submit(echo::task(x))).collect();
    pool.shutdown(false);
    assert!(pool.join_timeout(LONG));
    assert!(futures.iter().all(TaskFuture::done));
    let sum: u64 = futures.into_iter().map(|future| future.result().unwrap()).sum();
    assert_eq!(sum, 435);
    assert!(pool.worker_pids().is_empty());
    assert!(pool.submit(echo::task(1)).result().unwrap_err().is_shutdown());
}

#[test]
fn to11_a_pool_that_is_stopped_cancels_what_has_not_begun() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    let waiting: Vec<_> = (0..10).map(|x| pool.submit(echo::task(x))).collect();
    gate.wait_for(1);
    pool.shutdown_with(ShutdownOptions::new().cancel_pending(true).wait(false));
    gate.open();
    assert!(pool.join_timeout(LONG));
    running.result().unwrap();
    for future in waiting {
        assert!(future.result().unwrap_err().is_cancelled());
    }
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn to13_an_open_pool_cannot_be_joined_and_a_busy_one_only_with_a_limit() {
    let _watchdog = watchdog();
    let (pool, gate) = (Pool::new(1).unwrap(), Gate::new());
    assert_eq!(pool.join(), Err(PoolError::StillRunning));
    assert_eq!(pool.join_timeout(SHORT), Err(PoolError::StillRunning));
    let held = pool.apply_async(hold::task(gate.path()));
    gate.wait_for(1);
    pool.close();
    assert_eq!(pool.join_timeout(SHORT), Ok(false));
    gate.open();
    assert_eq!(pool.join_timeout(LONG), Ok(true));
    held.get().unwrap();
}

#[task]
fn odd(x: u64) -> Result<u64, String> {
    if x % 2 == 1 { Ok(x) } else { Err(format!("{x} is even")) }
}

#[test]
fn to15_a_map_yields_an_error_for_each_failing_item_and_goes_on() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let results: Vec<_> = pool.map(odd::task, 0..20).collect();
    for (x, result) in (0..20).zip(results) {
        match result {
            Ok(value) => assert!(value == x && x % 2 == 1),
            Err(error) => assert!(x % 2 == 0 && error.to_string().contains("is even"), "{error}"),
        }
    }
}

#[task]
fn hold_item(gate: &std::path::Path, file: &std::path::Path, item: u32) -> u32 {
    note(file.into(), item);
    super::support::come_to(gate);
    item
}

#[test]
fn to16_of_a_map_that_is_cancelled_nothing_more_runs() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let file = gate.file("begun");
    let hold = |item| hold_item::task(gate.path(), &file, item);
    // The remaining items of a map are those that it has submitted and not yielded. Dropping it
    // cancels them.
    let mut map = pool.map(|item: u32| hold(item), 0..100).chunk_size(10).stream();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(map.poll_next_unpin(&mut context).is_pending());
    gate.wait_for(1);
    drop(map);
    gate.open();
    pool.submit(echo::task(1)).result().unwrap();
    assert_eq!(notes(&file), [0], "only the item that had begun");
    // And if the executor cancels them, each of them says so.
    let (gate, pool) = (Gate::new(), super::support::pool(1));
    let file = gate.file("begun");
    let hold = |item| hold_item::task(gate.path(), &file, item);
    let mut map = pool.map(|item: u32| hold(item), 0..10).buffer_size(10).stream();
    assert!(map.poll_next_unpin(&mut context).is_pending());
    gate.wait_for(1);
    pool.shutdown_with(ShutdownOptions::new().cancel_pending(true).wait(false));
    gate.open();
    let results: Vec<_> = block_on(map.collect());
    assert_eq!(results.len(), 10);
    assert_eq!(*results[0].as_ref().unwrap(), 0);
    assert!(results[1..].iter().all(|result| result.as_ref().is_err_and(TaskError::is_cancelled)));
    assert_eq!(notes(&file), [0]);
}

/// Starts a process, a pool and an executor.
#[task]
fn nest(x: u64) -> u64 {
    let process = Process::new(echo::task(x)).start().unwrap();
    let pool = Pool::new(1).unwrap();
    let executor = super::support::pool(1);
    let sum = process.join().unwrap()
        + pool.apply(echo::task(x)).unwrap()
        + executor.submit(echo::task(x)).result().unwrap();
    pool.close();
    pool.join().unwrap();
    sum
}

#[test]
fn to17_a_task_may_start_processes_pools_and_executors() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let sums: Result<Vec<u64>, _> = pool.map(nest::task, 0..3).collect();
    assert_eq!(sums.unwrap(), [0, 3, 6]);
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Frozen {
    code: u32,
}

impl std::fmt::Display for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frozen: {}", self.code)
    }
}

#[task]
fn returns_an_error(code: u32) -> Frozen {
    Frozen { code }
}

#[task]
fn fails_with(code: u32) -> Result<(), Frozen> {
    Err(Frozen { code })
}

#[test]
fn to18_an_error_comes_back_as_it_was_written_whether_returned_or_failed_with() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.submit(returns_an_error::task(1)).result().unwrap(), Frozen { code: 1 });
    match pool.submit(fails_with::task(2)).result().unwrap_err() {
        TaskError::Failed(error) => {
            assert_eq!(error.downcast::<Frozen>().unwrap(), Frozen { code: 2 });
        }
        other => panic!("{other}"),
    }
}

#[test]
fn to19_a_call_in_a_process_of_its_own_behaves_like_a_future_of_a_pool() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    assert_eq!(Process::new(echo::task(1)).start().unwrap().join().unwrap(), 1);
    let limited = Process::new(hold::task(gate.path()).timeout(SHORT)).start().unwrap();
    assert!(limited.join().unwrap_err().is_timeout());
    let failing = Process::new(fail::task("no".into())).start().unwrap();
    assert!(matches!(failing.join(), Err(TaskError::Failed(_))));
    let crashing = Process::new(exit::task(3)).start().unwrap();
    assert!(crashing.join().unwrap_err().is_worker_lost());
    let named = Process::new(hold::task(gate.path())).name("carol").daemon(true).start().unwrap();
    assert_eq!(named.name(), "carol");
    // The only way to cancel a process is to end it.
    named.terminate().unwrap();
    assert!(named.join().unwrap_err().is_worker_lost());
    assert!(!named.is_alive());
}

#[test]
fn to21_an_async_map_of_twenty_items_is_a_list_and_a_stream_in_order() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let expected: Vec<u64> = (0..20).collect();
    let futures: Vec<_> = (0..20).map(|x| pool.submit(echo::task(x))).collect();
    let list: Result<Vec<u64>, _> = block_on(join_all(futures)).into_iter().collect();
    assert_eq!(list.unwrap(), expected);
    let streamed = block_on(pool.map(echo::task, 0..20).stream().collect::<Vec<_>>());
    assert_eq!(streamed.into_iter().collect::<Result<Vec<u64>, _>>().unwrap(), expected);
}

#[test]
fn to22_a_closed_pool_refuses_tasks_also_in_async_code() {
    let _watchdog = watchdog();
    let pool = pool(1);
    block_on(async {
        assert_eq!(pool.submit(echo::task(1)).await.unwrap(), 1);
        // This closes the pool, so there is no way to wait for an open one for ever.
        pool.shutdown_async().await;
        assert!(pool.submit(echo::task(2)).await.unwrap_err().is_shutdown());
        assert!(pool.submit_async(echo::task(2)).await.await.unwrap_err().is_shutdown());
    });
    let open = Pool::new(1).unwrap();
    assert_eq!(open.join(), Err(PoolError::StillRunning));
    open.terminate();
}

/// Maps over an executor of its own, in a worker or in a process.
#[task]
fn inner_sum(workers: usize) -> u64 {
    super::support::pool(workers).map(echo::task, 0..5).map(Result::unwrap).sum()
}

#[test]
fn to26_nested_pools_work_in_workers_and_in_daemons() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let sums: Result<BTreeSet<u64>, _> = pool.map(inner_sum::task, [1, 2]).collect();
    assert_eq!(sums.unwrap(), BTreeSet::from([10]));
    for daemon in [false, true] {
        let process = Process::new(inner_sum::task(1)).daemon(daemon).start().unwrap();
        assert_eq!(process.join().unwrap(), 10);
    }
}

#[test]
fn to27_a_progress_bar_around_a_map_never_exceeds_the_total_whatever_fails() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let bar = indicatif::ProgressBar::hidden();
    bar.set_length(20);
    let (counted, failed) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let mut last = 0;
    for result in bar.wrap_iter(pool.map(odd::task, 0..20)) {
        failed.fetch_add(usize::from(result.is_err()), SeqCst);
        assert!(bar.position() <= 20 && bar.position() >= last);
        last = bar.position();
    }
    assert!(bar.is_finished());
    assert_eq!((bar.position(), failed.into_inner()), (20, 10));
    // The same with a hook for each task.
    let futures = (0..20).map(|x| {
        let (future, counted) = (pool.submit(odd::task(x)), Arc::clone(&counted));
        future.add_done_callback(move |_| assert!(counted.fetch_add(1, SeqCst) < 20));
        future
    });
    futures.collect::<Vec<_>>().into_iter().for_each(|future| drop(future.result()));
    pool.shutdown(true);
    assert_eq!(counted.load(SeqCst), 20);
}
