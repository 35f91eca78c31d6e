//! How an executor ends: shutdown with and without waiting, drop in every place where it may
//! happen, terminate and kill.

mod support;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use executor::{BrokenCause, OnDrop, ShutdownOptions, TaskError, TaskFuture, prelude::*};
use serde::{Serialize, Serializer};
use support::{
    Gate, alone, come_to, echo, eventually, executor_threads, hold, hold_then_mark, pid, pool,
    runs, spin, state, stop, watchdog,
};

executor::test_support!();

const NOW: ShutdownOptions = ShutdownOptions::new().cancel_pending(true);

/// Less than the half minute after which a pool checks its state without being woken. On any
/// machine, a wake-up takes less than this.
const A_LOOK_AROUND: Duration = Duration::from_secs(25);

/// Asserts that no process and no thread of any executor is left. Joined threads may still be
/// listed for a moment.
#[track_caller]
fn assert_nothing_left() {
    eventually("all threads are gone", || executor_threads().is_empty());
    assert_eq!(support::children(), [], "no child, also no zombie");
}

#[test]
fn sd01_nothing_is_accepted_after_shutdown() {
    let _alone = (alone(), watchdog());
    let pool = pool(1);
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    pool.shutdown(true);
    assert!(matches!(pool.submit(echo::task(2)).result(), Err(TaskError::Shutdown)));
    assert!(matches!(pool.map(echo::task, [3]).next(), Some(Err(TaskError::Shutdown))));
    // The same while accepted tasks are still being finished, and through another handle.
    let (pool, gate) = (support::pool(1), Gate::new());
    let other = pool.clone();
    let held = pool.submit(hold::task(gate.path()));
    pool.shutdown(false);
    assert!(matches!(other.submit(echo::task(2)).result(), Err(TaskError::Shutdown)));
    gate.open();
    held.result().unwrap();
}

#[test]
fn sd04_fifty_queued_tasks_are_done_when_shutdown_returns() {
    let _alone = (alone(), watchdog());
    let pool = pool(2);
    let futures: Vec<_> = (0..50).map(|i| pool.submit(echo::task(i))).collect();
    pool.shutdown(true);
    for (i, future) in futures.into_iter().enumerate() {
        assert!(future.done());
        assert_eq!(future.result().unwrap(), i as u64);
    }
    assert_nothing_left();
}

#[test]
fn sd05_shutdown_with_cancel_pending_leaves_no_task_pending() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(5), Gate::new());
    let futures: Vec<_> = (0..50).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(5);
    pool.shutdown_with(NOW.wait(false));
    let cancelled = futures.iter().filter(|future| future.cancelled()).count();
    assert_eq!(cancelled, 45, "all that had not begun, at once");
    gate.open();
    pool.shutdown(true);
    assert!(futures.iter().all(TaskFuture::done));
    let done = futures.into_iter().filter_map(|future| match future.result() {
        Ok(_) => Some(()),
        Err(error) => {
            assert!(error.is_cancelled(), "{error}");
            None
        }
    });
    assert_eq!(done.count(), 5);
    assert_nothing_left();
}

#[test]
fn sd09_every_worker_is_reaped_when_shutdown_returns() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(3), Gate::new());
    let futures: Vec<_> = (0..3).map(|_| pool.submit(hold::task(gate.path()))).collect();
    let workers = gate.wait_for(3);
    assert!(workers.iter().all(|worker| runs(*worker)));
    gate.open();
    pool.shutdown(true);
    assert_eq!(support::children(), [], "reaped: there is no zombie either");
    assert!(workers.iter().all(|worker| state(*worker).is_none()));
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    assert_nothing_left();
}

#[test]
fn sd10_the_end_of_a_scope_is_a_shutdown() {
    let _alone = (alone(), watchdog());
    let futures: Vec<_> = {
        let pool = pool(2);
        (0..20).map(|i| pool.submit(echo::task(i))).collect()
    };
    assert!(futures.iter().all(TaskFuture::done));
    assert_nothing_left();
    assert_eq!(futures.into_iter().map(|future| future.result().unwrap()).sum::<u64>(), 190);
}

#[test]
fn sd11_an_executor_dropped_in_a_runtime_finishes_its_tasks() {
    let _alone = (alone(), watchdog());
    // In a runtime, drop must not wait. It returns at once, and everything is done nevertheless.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let gate = Gate::new();
    let futures: Vec<_> = runtime.block_on(async {
        let pool = pool(2);
        (0..10).map(|_| pool.submit(hold::task(gate.path()))).collect()
    });
    gate.wait_for(2);
    assert!(!futures.iter().any(TaskFuture::done));
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    eventually("the workers are gone", || support::children().is_empty());
    assert_nothing_left();
}

#[test]
fn sd12_shutdown_without_waiting_finishes_by_itself() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(2), Gate::new());
    let futures: Vec<_> = (0..10).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(2);
    pool.shutdown(false);
    assert!(!futures.iter().any(TaskFuture::done), "it did not wait");
    gate.open();
    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
    // The handle still exists: processes and threads end without it being dropped.
    eventually("the workers are gone", || support::children().is_empty());
    assert_nothing_left();
    drop(pool);
}

struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

impl<'de> serde::Deserialize<'de> for Unencodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Unencodable)
    }
}

#[task]
fn take(_unencodable: Unencodable) {}

#[test]
fn sd16_an_argument_that_does_not_encode_does_not_delay_a_shutdown() {
    let _alone = (alone(), watchdog());
    // As the only task, and with another task.
    for others in [0, 1] {
        let pool = pool(1);
        let fine: Vec<_> = (0..others).map(|_| pool.submit(echo::task(1))).collect();
        let future = pool.submit(take::task(Unencodable));
        pool.shutdown(false);
        assert!(matches!(future.result(), Err(TaskError::Encode(_))));
        fine.into_iter().for_each(|future| assert_eq!(future.result().unwrap(), 1));
        eventually("the workers are gone", || support::children().is_empty());
        assert_nothing_left();
    }
}

#[test]
fn sd17_encoding_errors_and_repeated_shutdowns_leave_nothing_behind() {
    let _alone = (alone(), watchdog());
    for _ in 0..5 {
        let pool = pool(4);
        let fine: Vec<_> = (0..4).map(|i| pool.submit(echo::task(i))).collect();
        let future = pool.submit(take::task(Unencodable));
        // Shut down several times.
        for _ in 0..5 {
            pool.shutdown(true);
        }
        assert!(matches!(future.result(), Err(TaskError::Encode(_))));
        fine.into_iter().for_each(|future| assert!(future.result().is_ok()));
        assert_nothing_left();
    }
}

#[test]
fn sd19_killing_a_pool_with_a_hundred_tasks_ends_them_all() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(2), Gate::new());
    let futures: Vec<_> = (0..100).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(2);
    pool.kill_workers();
    pool.shutdown(true);
    // The gate is still closed, so nothing waited for a task.
    for future in futures {
        assert!(future.done());
        assert!(matches!(future.result(), Err(TaskError::Shutdown)));
    }
    assert_eq!(gate.arrivals().len(), 2, "nothing was started meanwhile");
    assert_nothing_left();
}

#[task]
fn hold_deaf_to_sigterm(gate: &std::path::Path) {
    // SAFETY: only ignores a signal; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    come_to(gate);
}

#[test]
fn sd20_a_worker_killed_within_a_task_never_runs_the_rest_of_it() {
    let _alone = (alone(), watchdog());
    for kill in [true, false] {
        let (pool, gate) = (pool(1), Gate::new());
        let mark = gate.file("mark");
        let future = pool.submit(hold_then_mark::task(gate.path(), &mark));
        let worker = gate.wait_for(1)[0];
        if kill {
            pool.kill_workers()
        } else {
            pool.terminate_workers()
        }
        assert!(matches!(future.result(), Err(TaskError::Shutdown)));
        eventually("the worker is gone", || state(worker).is_none());
        gate.open();
        pool.shutdown(true);
        assert!(!mark.exists());
        assert_nothing_left();
    }
    // A worker that is stopped, and one that ignores SIGTERM.
    for stopped in [true, false] {
        let (pool, gate) = (pool(1), Gate::new());
        let future = match stopped {
            true => pool.submit(spin::task(gate.path())),
            false => pool.submit(hold_deaf_to_sigterm::task(gate.path())),
        };
        let worker = gate.wait_for(1)[0];
        if stopped {
            stop(worker);
        }
        pool.terminate_workers();
        assert!(matches!(future.result(), Err(TaskError::Shutdown)));
        pool.shutdown(true);
        assert_eq!(state(worker), None);
        assert_nothing_left();
    }
}

#[task]
fn fail() -> Result<(), String> {
    Err("no".to_owned())
}

#[test]
fn sd21_terminating_a_broken_pool_keeps_its_cause() {
    let _alone = (alone(), watchdog());
    let pool =
        ProcessPoolExecutor::builder().max_workers(1).initializer(fail::task()).build().unwrap();
    let broken = |error| matches!(error, TaskError::Broken(BrokenCause::Initializer(_)));
    assert!(broken(pool.submit(echo::task(1)).result().unwrap_err()));
    pool.terminate_workers();
    pool.kill_workers();
    assert!(
        broken(pool.submit(echo::task(1)).result().unwrap_err()),
        "why it broke is still what is told"
    );
    pool.shutdown(true);
    assert_nothing_left();
}

#[test]
fn sd22_terminating_a_pool_that_never_started_does_nothing() {
    let _alone = (alone(), watchdog());
    for kill in [true, false] {
        let pool = pool(2);
        if kill {
            pool.kill_workers()
        } else {
            pool.terminate_workers()
        }
        assert_eq!(pool.worker_pids(), []);
        assert!(executor_threads().is_empty());
        pool.shutdown(true);
    }
}

#[test]
fn sd23_a_terminated_or_killed_pool_rejects_tasks() {
    let _alone = (alone(), watchdog());
    for kill in [true, false] {
        for started in [true, false] {
            let pool = pool(1);
            if started {
                pool.submit(echo::task(1)).result().unwrap();
            }
            if kill {
                pool.kill_workers()
            } else {
                pool.terminate_workers()
            }
            assert!(matches!(pool.submit(echo::task(1)).result(), Err(TaskError::Shutdown)));
            pool.shutdown(true);
            assert_nothing_left();
        }
    }
}

// ---- related cases ------------------------------------------------------------------------------

#[test]
fn a_deadline_ends_running_tasks() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(spin::task(gate.path()));
    let queued = pool.submit(echo::task(1));
    gate.wait_for(1);
    let start = Instant::now();
    pool.shutdown_with(ShutdownOptions::new().deadline(start + Duration::from_millis(50)));
    assert!(start.elapsed() < A_LOOK_AROUND, "it kept the deadline, it did not come across it");
    assert!(matches!(running.result(), Err(TaskError::Shutdown)));
    assert!(matches!(queued.result(), Err(TaskError::Shutdown)));
    assert_nothing_left();
}

#[test]
fn a_later_and_harder_shutdown_overrides_a_softer_one() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(spin::task(gate.path()));
    let queued = pool.submit(echo::task(1));
    gate.wait_for(1);
    pool.shutdown(false);
    pool.shutdown_with(NOW.wait(false).deadline(Instant::now() + Duration::from_secs(3600)));
    assert!(queued.result().unwrap_err().is_cancelled());
    assert!(!running.done());
    // The worker is stopped so that it cannot react to being terminated, and then killed.
    stop(gate.arrivals()[0]);
    pool.terminate_workers();
    pool.kill_workers();
    assert!(matches!(running.result(), Err(TaskError::Shutdown)));
    pool.shutdown(true);
    assert_nothing_left();
}

#[test]
fn many_threads_can_shut_down_at_once_while_others_submit() {
    let _alone = (alone(), watchdog());
    for round in 0..10 {
        let pool = pool(2);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let submitting: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| (0..200).map(|i| pool.submit(echo::task(i))).collect::<Vec<_>>())
                })
                .collect();
            for kind in 0..4 {
                let pool = &pool;
                scope.spawn(move || match (kind + round) % 4 {
                    0 => pool.shutdown(true),
                    1 => pool.shutdown(false),
                    2 => pool.shutdown_with(NOW),
                    _ => pool.shutdown_with(NOW.deadline(Instant::now())),
                });
            }
            submitting.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        pool.shutdown(true);
        for future in outcomes {
            assert!(future.done(), "when shutdown has returned, everything is resolved");
            match future.result() {
                Ok(_) | Err(TaskError::Shutdown | TaskError::Cancelled) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_nothing_left();
    }
}

#[test]
fn shutdown_async_waits_without_blocking_the_runtime() {
    let _alone = (alone(), watchdog());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    runtime.block_on(async {
        // Dropping the future stops only the waiting, not the shutdown.
        drop(pool.shutdown_async());
        assert!(matches!(pool.submit(echo::task(1)).await, Err(TaskError::Shutdown)));
        let open = async { gate.open() };
        // Both run on one thread: if the shutdown blocked it, the gate would never open.
        futures::join!(pool.shutdown_async(), open);
    });
    assert!(future.done());
    assert_nothing_left();
    drop(pool);
}

#[test]
fn shutdown_with_async_ends_what_runs_at_its_timeout_and_waits_only_if_it_should() {
    let _alone = (alone(), watchdog());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (one, gate) = (pool(1), Gate::new());
        let future = one.submit(hold::task(gate.path()));
        gate.wait_for(1);
        let soon = ShutdownOptions::new().timeout(Duration::from_millis(50));
        one.shutdown_with_async(soon.wait(false)).await;
        one.shutdown_with_async(soon).await;
        assert!(future.done() && future.await.unwrap_err().is_shutdown());
        assert!(one.worker_pids().is_empty());

        // A callback that does not return holds up nobody for longer than the timeout.
        let two: std::sync::Arc<dyn Executor> = std::sync::Arc::new(pool(1));
        let (block, blocked) = std::sync::mpsc::channel::<()>();
        two.submit(echo::task(1)).on_done(move |_| _ = blocked.recv());
        two.shutdown_with_async(soon).await;
        drop(block);
        two.shutdown_async().await;
    });
    assert_nothing_left();
}

#[test]
fn shutdown_waits_for_callbacks_and_a_callback_may_shut_down() {
    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(1), Gate::new());
    let (sender, receiver) = mpsc::channel();
    let future = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let (other, first) = (pool.clone(), sender.clone());
    future.add_done_callback(move |_| {
        // This shutdown cannot wait for the callback that it runs in.
        other.shutdown(true);
        first.send("first").unwrap();
    });
    future.add_done_callback(move |_| {
        // This sleep does not enforce an order: it is time in which the shutdown would return.
        thread::sleep(Duration::from_millis(20));
        sender.send("second").unwrap();
    });
    gate.open();
    pool.shutdown(true);
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["first", "second"], "both have run");
}

// ---- drop ---------------------------------------------------------------------------------------

#[test]
fn only_dropping_the_last_handle_shuts_down() {
    let _alone = (alone(), watchdog());
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let other = pool.clone();
    drop(pool);
    assert_eq!(other.submit(pid::task()).result().unwrap(), worker);
    drop(other);
    assert_nothing_left();
}

#[test]
fn drop_follows_the_on_drop_policy() {
    let _alone = (alone(), watchdog());
    for policy in [OnDrop::CancelPending, OnDrop::Kill] {
        let gate = Gate::new();
        let pool = ProcessPoolExecutor::builder().max_workers(1).on_drop(policy).build().unwrap();
        let running = pool.submit(hold::task(gate.path()));
        let queued = pool.submit(echo::task(1));
        gate.wait_for(1);
        let dropped = thread::spawn(move || drop(pool));
        let error = queued.result().unwrap_err();
        if policy == OnDrop::Kill {
            assert!(matches!(error, TaskError::Shutdown));
            assert!(matches!(running.result(), Err(TaskError::Shutdown)));
        } else {
            assert!(error.is_cancelled());
            assert!(!running.done());
            gate.open();
            running.result().unwrap();
        }
        dropped.join().unwrap();
        assert_nothing_left();
    }
}

#[test]
fn dropping_a_pool_on_the_callback_thread_returns() {
    let _alone = (alone(), watchdog());
    let (pool, gate, late) = (Arc::new(pool(1)), Gate::new(), Gate::new());
    let (sender, receiver) = mpsc::channel();
    let first = pool.submit(hold::task(gate.path()));
    let behind = pool.submit(hold::task(late.path()));
    gate.wait_for(1);
    let last = Arc::clone(&pool);
    first.add_done_callback(move |_| {
        drop(last);
        sender.send(()).unwrap();
    });
    drop(pool);
    gate.open();
    // The second task still runs.
    receiver.recv_timeout(support::LONG).expect("the callback returned");
    late.open();
    behind.result().unwrap();
    eventually("the workers are gone", || support::children().is_empty());
    assert_nothing_left();
}

/// Drops an executor that has unfinished work. Returns whether the work is done.
#[task]
fn drop_within(gate: &std::path::Path) -> bool {
    let pool = support::pool(1);
    let future = pool.submit(hold::task(gate));
    eventually("it runs", || future.running());
    drop(pool);
    future.done()
}

#[test]
fn dropping_a_pool_within_a_task_returns() {
    let _alone = (alone(), watchdog());
    let gate = Gate::new();
    let pool = pool(1);
    assert!(!pool.submit(drop_within::task(gate.path())).result().unwrap(), "nobody waited");
    let inner = gate.wait_for(1)[0];
    gate.open();
    eventually("the inner worker is gone", || !runs(inner));
}

#[test]
fn dropping_a_pool_while_unwinding_cancels_and_kills() {
    let _alone = (alone(), watchdog());
    let gate = Gate::new();
    let (sender, receiver) = mpsc::channel();
    let path = gate.path().to_owned();
    let unwinding = thread::spawn(move || {
        let pool = pool(1);
        let futures = [pool.submit(spin::task(&path)), pool.submit(spin::task(&path))];
        eventually("it runs", || futures[0].running());
        sender.send(futures).unwrap();
        // Like `panic!`, but without running the panic hook.
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    let [running, queued] = receiver.recv().unwrap();
    let start = Instant::now();
    assert!(unwinding.join().is_err());
    assert!(queued.result().unwrap_err().is_cancelled());
    assert!(matches!(running.result(), Err(TaskError::Shutdown)));
    assert!(start.elapsed() < A_LOOK_AROUND);
    assert_nothing_left();
}

#[test]
fn dropping_a_pool_in_a_waker_returns() {
    use std::task::{Context, Poll, Wake, Waker};

    /// Holds the last handle and drops it when it is woken, on whatever thread that is.
    struct Last(std::sync::Mutex<Option<ProcessPoolExecutor>>, mpsc::Sender<()>);
    impl Wake for Last {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.send(()).unwrap();
        }
    }

    let _alone = (alone(), watchdog());
    let (pool, gate) = (pool(1), Gate::new());
    let (sender, receiver) = mpsc::channel();
    let mut future = pool.submit(hold::task(gate.path()));
    let behind = pool.submit(echo::task(5));
    gate.wait_for(1);
    let waker = Waker::from(Arc::new(Last(std::sync::Mutex::new(Some(pool)), sender)));
    let mut context = Context::from_waker(&waker);
    assert!(matches!(std::pin::Pin::new(&mut future).poll(&mut context), Poll::Pending));
    gate.open();
    receiver.recv_timeout(support::LONG).expect("the waker returned");
    assert_eq!(behind.result().unwrap(), 5);
    eventually("the workers are gone", || support::children().is_empty());
    assert_nothing_left();
}
