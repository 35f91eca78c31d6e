//! Waiting for several futures: `wait` and `as_completed`, blocking and as streams.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use executor::{ReturnWhen, TaskFuture, TaskId, Unfinished, as_completed, task, wait};
use futures::{Stream as _, StreamExt, executor::block_on, executor::block_on_stream};

use crate::support::{Gate, LONG, echo_number, fail, hold, hold_and_fail, pool, watchdog};

fn ids<T>(futures: &[TaskFuture<T>]) -> Vec<TaskId> {
    futures.iter().map(TaskFuture::id).collect()
}

// ---- wait ---------------------------------------------------------------------------------------

#[test]
fn wt02_first_completed_returns_the_first_finished_future() {
    let _watchdog = watchdog();
    let (pool, closed, quick_gate) = (pool(2), Gate::new(), Gate::new());
    let slow = pool.submit(hold::task(closed.path()));
    let quick = pool.submit(hold::task(quick_gate.path()));
    quick_gate.wait_for(1);
    let expected = (vec![quick.id()], vec![slow.id()]);
    let (sender, result) = mpsc::channel();
    thread::spawn(move || {
        sender.send(wait([slow, quick], ReturnWhen::FirstCompleted, None)).unwrap();
    });
    assert!(result.try_recv().is_err(), "neither is done");
    quick_gate.open();
    let (done, not_done) = result.recv_timeout(LONG).unwrap();
    assert_eq!((ids(&done), ids(&not_done)), expected);
    // Unfinished futures work as before.
    closed.open();
    assert!(not_done.into_iter().all(|future| future.result().is_ok()));
}

/// A difference from Python: there, a cancelled future that no worker has seen is not done yet.
#[test]
fn wt02_a_cancelled_future_is_done() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    let cancelled = pool.submit(echo_number::task(1));
    assert!(cancelled.cancel());
    let expected = (vec![cancelled.id()], vec![running.id()]);
    let (done, not_done) = wait([running, cancelled], ReturnWhen::FirstCompleted, None);
    assert_eq!((ids(&done), ids(&not_done)), expected);
    assert!(done[0].cancelled());
}

#[test]
fn wt03_first_completed_returns_at_once_with_finished_futures() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let finished = pool.submit(echo_number::task(1));
    let failed = pool.submit(fail::task("no".into()));
    finished.wait();
    failed.wait();
    let running = pool.submit(hold::task(gate.path()));
    let pending = pool.submit(hold::task(gate.path()));
    let expected = (vec![finished.id(), failed.id()], vec![running.id(), pending.id()]);
    let (done, not_done) =
        wait([running, finished, pending, failed], ReturnWhen::FirstCompleted, None);
    assert_eq!((ids(&done), ids(&not_done)), expected, "each in the order in which they came in");
}

#[test]
fn wt04_first_error_returns_at_the_failure_and_not_before() {
    let _watchdog = watchdog();
    let (pool, closed, failure) = (pool(2), Gate::new(), Gate::new());
    let success = pool.submit(echo_number::task(1));
    success.wait();
    let failing = pool.submit(hold_and_fail::task(failure.path()));
    let slow = pool.submit(hold::task(closed.path()));
    failure.wait_for(1);
    closed.wait_for(1);
    let expected = (vec![success.id(), failing.id()], vec![slow.id()]);
    let (sender, result) = mpsc::channel();
    thread::spawn(move || {
        sender.send(wait([success, failing, slow], ReturnWhen::FirstError, None)).unwrap();
    });
    assert!(result.try_recv().is_err(), "a success is not what is waited for");
    failure.open();
    let (done, not_done) = result.recv_timeout(LONG).unwrap();
    assert_eq!((ids(&done), ids(&not_done)), expected);
}

#[test]
fn wt04_first_error_does_not_count_a_cancellation_as_a_failure() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    let cancelled = pool.submit(echo_number::task(1));
    cancelled.cancel();
    let (done, not_done) =
        wait([running, cancelled], ReturnWhen::FirstError, Some(Duration::from_millis(20)));
    assert_eq!((done.len(), not_done.len()), (1, 1), "only the time limit ended it");
    gate.open();
    let (done, not_done) = wait(done.into_iter().chain(not_done), ReturnWhen::FirstError, None);
    assert_eq!((done.len(), not_done.len()), (2, 0), "without a failure, when all are done");
}

#[task]
fn crash() -> u32 {
    std::process::abort()
}

#[test]
fn wt04_a_lost_worker_counts_as_a_failure() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let slow = pool.submit(hold::task(gate.path()));
    let crashing = pool.submit(crash::task());
    let expected = (vec![crashing.id()], vec![slow.id()]);
    let (done, not_done) = wait([slow, crashing], ReturnWhen::FirstError, None);
    assert_eq!((ids(&done), ids(&not_done)), expected);
}

#[test]
fn wt06_first_error_returns_at_once_if_a_future_has_failed() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let failed = pool.submit(fail::task("no".into()));
    failed.wait();
    let running = pool.submit(hold::task(gate.path()));
    let expected = (vec![failed.id()], vec![running.id()]);
    let (done, not_done) = wait([running, failed], ReturnWhen::FirstError, None);
    assert_eq!((ids(&done), ids(&not_done)), expected);
}

#[test]
fn wt07_all_completed_returns_all_futures_in_their_order() {
    let _watchdog = watchdog();
    let (pool, another, gate) = (pool(2), pool(1), Gate::new());
    let finished = another.submit(echo_number::task(1));
    let failed = pool.submit(fail::task("no".into()));
    let crashed = pool.submit(crash::task());
    for future in [&finished, &failed, &crashed] {
        future.wait();
    }
    let running = pool.submit(hold::task(gate.path()));
    let failing = pool.submit(hold_and_fail::task(gate.path()));
    gate.wait_for(2);
    let pending = pool.submit(echo_number::task(2));
    let cancelled = pool.submit(echo_number::task(3));
    cancelled.cancel();
    let futures = [running, finished, pending, failed, cancelled, crashed, failing];
    let expected = ids(&futures);
    let (sender, result) = mpsc::channel();
    thread::spawn(move || sender.send(wait(futures, ReturnWhen::AllCompleted, None)).unwrap());
    assert!(result.try_recv().is_err(), "three are not done");
    gate.open();
    let (done, not_done) = result.recv_timeout(LONG).unwrap();
    assert_eq!(ids(&done), expected);
    assert!(not_done.is_empty());
    assert!(done.iter().all(TaskFuture::done));
}

#[test]
fn wait_returns_after_its_timeout_and_the_tasks_go_on() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let mut futures = vec![pool.submit(hold::task(gate.path()))];
    for limit in [Duration::ZERO, Duration::from_millis(5)] {
        for when in [ReturnWhen::FirstCompleted, ReturnWhen::FirstError, ReturnWhen::AllCompleted] {
            let (done, not_done) = wait(futures, when, Some(limit));
            assert!(done.is_empty(), "{when:?}");
            futures = not_done;
        }
    }
    gate.open();
    let (done, _) = wait(futures, ReturnWhen::AllCompleted, Some(Duration::MAX));
    assert_eq!(done.len(), 1);
}

#[test]
fn wait_for_no_futures_returns_at_once() {
    let _watchdog = watchdog();
    for when in [ReturnWhen::FirstCompleted, ReturnWhen::FirstError, ReturnWhen::AllCompleted] {
        let (done, not_done) = wait(Vec::<TaskFuture<u32>>::new(), when, None);
        assert!(done.is_empty() && not_done.is_empty());
    }
}

#[test]
fn wait_notices_every_end_however_close_to_its_start() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for round in 0..200_u32 {
        let futures: Vec<_> =
            (0..round % 5 + 1).map(|i| pool.submit(echo_number::task(i))).collect();
        let (done, _) = wait(futures, ReturnWhen::FirstCompleted, None);
        assert!(!done.is_empty());
        let futures: Vec<_> =
            (0..round % 5 + 1).map(|i| pool.submit(echo_number::task(i))).collect();
        let (done, not_done) = wait(futures, ReturnWhen::AllCompleted, None);
        assert_eq!((done.len() as u32, not_done.len()), (round % 5 + 1, 0));
        let sum: u32 = as_completed(done).map(|future| future.result().unwrap()).sum();
        assert_eq!(sum, (0..=round % 5).sum::<u32>());
    }
}

// ---- as_completed -------------------------------------------------------------------------------

#[test]
fn ac01_each_future_is_yielded_exactly_once() {
    let _watchdog = watchdog();
    let (pool, first, second) = (pool(2), Gate::new(), Gate::new());
    let finished = pool.submit(echo_number::task(1));
    let failed = pool.submit(fail::task("no".into()));
    finished.wait();
    failed.wait();
    let later = pool.submit(hold::task(second.path()));
    let sooner = pool.submit(hold::task(first.path()));
    let cancelled = pool.submit(echo_number::task(2));
    cancelled.cancel();
    let (sooner_id, later_id) = (sooner.id(), later.id());
    let all = [later, finished, sooner, cancelled, failed];
    let expected: BTreeSet<u64> = all.iter().map(|future| future.id().as_u64()).collect();
    let mut completed = as_completed(all);
    assert_eq!(completed.size_hint(), (5, Some(5)));
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let future = completed.next().unwrap();
        assert!(future.done());
        assert!(![sooner_id, later_id].contains(&future.id()), "those that are done come first");
        seen.insert(future.id().as_u64());
    }
    // The other futures are yielded in the order in which they finish.
    for (gate, id) in [(&first, sooner_id), (&second, later_id)] {
        gate.open();
        let future = completed.next().unwrap();
        assert_eq!(future.id(), id);
        seen.insert(id.as_u64());
        assert!(future.result().is_ok());
    }
    assert!(completed.next().is_none());
    assert!(completed.next().is_none());
    assert_eq!(seen, expected);
}

#[test]
fn ac01_a_thousand_futures_are_yielded_once_each() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let futures: Vec<_> = (0..1_000).map(|i| pool.submit(echo_number::task(i))).collect();
    let values: Vec<u32> = as_completed(futures).map(|future| future.result().unwrap()).collect();
    assert_eq!(values.len(), 1_000);
    assert_eq!(BTreeSet::from_iter(values), (0..1_000).collect());
}

#[test]
fn ac05_the_timeout_error_says_how_many_futures_are_unfinished() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let done = [pool.submit(echo_number::task(1)), pool.submit(echo_number::task(2))];
    done.iter().for_each(TaskFuture::wait);
    let (callback, ran_on) = mpsc::channel();
    let running = [(); 2].map(|()| {
        let (future, callback) = (pool.submit(hold::task(gate.path())), callback.clone());
        future.add_done_callback(move |outcome| callback.send(outcome.is_ok()).unwrap());
        future
    });
    let mut completed =
        as_completed(done.into_iter().chain(running)).timeout(Duration::from_millis(20));
    let mut values: Vec<u32> =
        (0..2).map(|_| completed.next().unwrap().unwrap().result().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values, [1, 2]);
    let error = completed.next().unwrap().unwrap_err();
    assert_eq!(error, Unfinished { unfinished: 2, total: 4 });
    assert_eq!(error.to_string(), "2 of 4 futures are unfinished");
    let _: &dyn Error = &error;
    assert!(completed.next().is_none());
    drop(completed);
    // The unfinished tasks go on.
    gate.open();
    assert!(ran_on.recv_timeout(LONG).unwrap() && ran_on.recv_timeout(LONG).unwrap());
}

#[test]
fn ac05_with_a_timeout_of_zero_finished_futures_are_still_yielded() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let futures: Vec<_> = (0..3).map(|i| pool.submit(echo_number::task(i))).collect();
    futures.iter().for_each(TaskFuture::wait);
    assert_eq!(as_completed(futures).timeout(Duration::ZERO).filter(Result::is_ok).count(), 3);
    let futures: Vec<_> = (0..3).map(|i| pool.submit(echo_number::task(i))).collect();
    assert_eq!(as_completed(futures).timeout(Duration::MAX).map(Result::unwrap).count(), 3);
    assert!(as_completed(Vec::<TaskFuture<u32>>::new()).timeout(Duration::ZERO).next().is_none());
}

#[test]
fn as_completed_of_no_futures_ends_at_once() {
    let _watchdog = watchdog();
    assert!(as_completed(Vec::<TaskFuture<u32>>::new()).next().is_none());
    assert!(block_on(as_completed(Vec::<TaskFuture<u32>>::new()).stream().next()).is_none());
}

#[test]
fn dropping_as_completed_follows_the_drop_policy_of_each_future() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    let plain = pool.submit(hold::task(gate.path()));
    let cancelling = pool.submit(hold::task(gate.path())).cancel_on_drop();
    gate.wait_for(1);
    let handles = [&running, &plain, &cancelling].map(TaskFuture::cancel_handle);
    drop(as_completed([running, plain, cancelling]));
    assert_eq!(handles.each_ref().map(|handle| handle.done()), [false, false, true]);
    gate.open();
    pool.shutdown(true);
    assert_eq!(gate.arrivals().len(), 2);
}

// ---- streams ------------------------------------------------------------------------------------

#[tokio::test]
async fn as_completed_works_as_a_stream() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let held = pool.submit(hold::task(gate.path()));
    let held_id = held.id();
    let quick = (0..50).map(|i| pool.submit(echo_number::task(i)));
    let mut stream = as_completed(std::iter::once(held).chain(quick)).stream();
    assert_eq!(stream.size_hint(), (51, Some(51)));
    for _ in 0..50 {
        assert_ne!(stream.next().await.unwrap().id(), held_id);
    }
    assert!(futures::poll!(stream.next()).is_pending());
    gate.open();
    let last = stream.next().await.unwrap();
    assert_eq!(last.id(), held_id);
    assert!(last.await.is_ok());
    assert!(stream.next().await.is_none());
    pool.shutdown_async().await;
}

#[test]
fn streams_need_no_runtime() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let futures: Vec<_> = (0..100).map(|i| pool.submit(echo_number::task(i))).collect();
    let values =
        block_on_stream(as_completed(futures).stream()).map(|future| future.result().unwrap());
    assert_eq!(values.sum::<u32>(), 4_950);
    let mapped = block_on_stream(pool.map(echo_number::task, 0..100).stream()).map(Result::unwrap);
    assert!(mapped.eq(0..100));
}

/// The thread that waits with a timeout takes the replies of all tasks, and wakes those who await
/// them. It must look at the clock nevertheless.
#[test]
fn a_timed_wait_ends_while_other_tasks_are_awaited_without_end() {
    let _watchdog = watchdog();
    let (pool, gate) = (Arc::new(pool(2)), Gate::new());
    let mut held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let over = Arc::new(AtomicBool::new(false));
    let others: Vec<_> = (0..4)
        .map(|_| {
            let (pool, over) = (Arc::clone(&pool), Arc::clone(&over));
            thread::spawn(move || {
                block_on(async {
                    while !over.load(Ordering::Relaxed) {
                        let tasks = (0..8).map(|number| pool.submit(echo_number::task(number)));
                        futures::future::join_all(tasks).await;
                    }
                });
            })
        })
        .collect();
    for _ in 0..10 {
        held = held.result_timeout(Duration::from_millis(5)).expect_err("its gate is closed");
        let (done, mut not_done) =
            wait([held], ReturnWhen::AllCompleted, Some(Duration::from_millis(5)));
        assert!(done.is_empty());
        held = not_done.remove(0);
    }
    over.store(true, Ordering::Relaxed);
    others.into_iter().for_each(|other| other.join().unwrap());
    gate.open();
    held.result().unwrap();
}
