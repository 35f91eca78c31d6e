//! Futures: what they report, and how they are waited for, cancelled and followed by callbacks.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use executor::{CancelHandle, Phase, ProcessPoolExecutor, Side, TaskError, TaskFuture, task};
use futures::{executor::block_on, future::join_all};
use serde::{Deserialize, Serialize};

use crate::support::{
    self, Gate, LONG, echo_number, eventually, fail, hold, hold_and_fail, note, notes, pool,
    watchdog,
};

/// One future in every state that a future can be in.
struct States {
    queued: TaskFuture<u32>,
    /// Not begun either, but already sent to a worker, because this function is known to be quick.
    sent_ahead: TaskFuture<u32>,
    running: TaskFuture<u32>,
    cancelled: TaskFuture<u32>,
    failed: TaskFuture<u32>,
    finished: TaskFuture<u32>,
    gate: Gate,
    pool: ProcessPoolExecutor,
}

impl States {
    fn new() -> Self {
        let (pool, gate) = (pool(1), Gate::new());
        // Often enough that the first call no longer affects the estimate of the function's running
        // time.
        for i in 0..50 {
            pool.submit(echo_number::task(i)).result().unwrap();
        }
        let finished = pool.submit(echo_number::task(7));
        let failed = pool.submit(fail::task("the reason".into()));
        finished.wait();
        failed.wait();
        let running = pool.submit(hold::task(gate.path()));
        gate.wait_for(1);
        let sent_ahead = pool.submit(echo_number::task(8));
        let queued = pool.submit(hold::task(gate.path()));
        let cancelled = pool.submit(echo_number::task(9));
        assert!(cancelled.cancel());
        States { queued, sent_ahead, running, cancelled, failed, finished, gate, pool }
    }

    fn all(&self) -> [&TaskFuture<u32>; 6] {
        [
            &self.queued,
            &self.sent_ahead,
            &self.running,
            &self.cancelled,
            &self.failed,
            &self.finished,
        ]
    }
}

/// The outcome that a callback saw, as an owned value.
type Seen = Result<u32, TaskError>;

fn seen(outcome: Result<&u32, &TaskError>) -> Seen {
    outcome.copied().map_err(TaskError::clone)
}

type Report = mpsc::Receiver<(Seen, thread::ThreadId)>;

/// Returns a callback that sends the outcome it sees and the thread that runs it.
fn reporter() -> (impl FnOnce(Result<&u32, &TaskError>) + Send + 'static, Report) {
    let (sender, receiver) = mpsc::channel();
    (
        move |outcome: Result<&u32, &TaskError>| {
            sender.send((seen(outcome), thread::current().id())).unwrap()
        },
        receiver,
    )
}

// ---- callbacks ----------------------------------------------------------------------------------

#[test]
fn fu01_a_callback_of_a_pending_future_sees_the_result() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    let (callback, report) = reporter();
    future.add_done_callback(callback);
    gate.wait_for(1);
    assert!(report.try_recv().is_err(), "not before the end");
    gate.open();
    let (seen, thread) = report.recv_timeout(LONG).unwrap();
    assert_eq!(seen.unwrap(), future.result().unwrap());
    assert_ne!(thread, thread::current().id());
}

#[test]
fn fu02_a_callback_of_a_pending_future_sees_the_error() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold_and_fail::task(gate.path()));
    let (callback, report) = reporter();
    future.add_done_callback(callback);
    gate.open();
    let (seen, _) = report.recv_timeout(LONG).unwrap();
    assert!(matches!(seen, Err(TaskError::Failed(error)) if error.message() == "let go"));
}

#[test]
fn fu03_a_callback_of_a_cancelled_future_sees_cancelled() {
    let _watchdog = watchdog();
    let states = States::new();
    for future in [&states.queued, &states.sent_ahead] {
        let (callback, report) = reporter();
        future.add_done_callback(callback);
        assert!(future.cancel());
        let (seen, _) = report.recv_timeout(LONG).unwrap();
        assert!(seen.unwrap_err().is_cancelled());
        assert!(report.recv_timeout(LONG).is_err(), "once");
    }
    // A running task that is cancelled.
    let (callback, report) = reporter();
    states.running.add_done_callback(callback);
    assert!(states.running.cancel_running());
    assert!(report.recv_timeout(LONG).unwrap().0.unwrap_err().is_cancelled());
}

#[test]
fn fu05_a_callback_added_to_a_succeeded_future_runs_at_once() {
    let _watchdog = watchdog();
    let future = pool(1).submit(echo_number::task(5));
    future.wait();
    for _ in 0..2 {
        let (callback, report) = reporter();
        future.add_done_callback(callback);
        let (seen, thread) =
            report.try_recv().expect("it has run when `add_done_callback` returns");
        assert_eq!(seen.unwrap(), 5);
        assert_eq!(thread, thread::current().id());
    }
    // The callbacks did not consume the value.
    assert_eq!(future.result().unwrap(), 5);
}

#[test]
fn fu06_a_callback_added_to_a_failed_or_cancelled_future_runs_at_once() {
    let _watchdog = watchdog();
    let states = States::new();
    let (callback, report) = reporter();
    states.failed.add_done_callback(callback);
    let (seen, thread) = report.try_recv().unwrap();
    assert!(matches!(seen, Err(TaskError::Failed(error)) if error.message() == "the reason"));
    assert_eq!(thread, thread::current().id());
    let (callback, report) = reporter();
    states.cancelled.add_done_callback(callback);
    assert!(report.try_recv().unwrap().0.unwrap_err().is_cancelled());
}

#[test]
fn callbacks_run_in_order_on_one_thread_and_a_panic_stops_no_other() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    let log = Arc::new(Mutex::new(Vec::new()));
    for number in 0..20 {
        let log = Arc::clone(&log);
        future.add_done_callback(move |_| {
            log.lock().unwrap().push((number, thread::current().id()));
            // `panic!` would print a message to stderr that looks like a failure.
            if number % 5 == 0 {
                std::panic::resume_unwind(Box::new("a callback panics"));
            }
        });
    }
    gate.open();
    // `shutdown` waits for callbacks, too.
    pool.shutdown(true);
    let log = log.lock().unwrap();
    assert_eq!(
        log.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        (0..20).collect::<Vec<_>>()
    );
    assert_eq!(
        log.iter().map(|(_, thread)| thread).collect::<std::collections::HashSet<_>>().len(),
        1
    );
    // This callback runs at once in the caller's thread. The caller does not see its panic either.
    future.add_done_callback(|_| std::panic::resume_unwind(Box::new("a callback panics")));
    assert!(future.result().is_ok());
}

#[test]
fn a_slow_callback_delays_other_callbacks_but_no_results() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let (entered, has_entered) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let slow = pool.submit(hold::task(gate.path()));
    slow.add_done_callback(move |_| {
        entered.send(()).unwrap();
        may_go_on.recv().unwrap();
    });
    gate.open();
    has_entered.recv_timeout(LONG).unwrap();
    // All of this works while the callback waits.
    for i in 0..20 {
        assert_eq!(pool.submit(echo_number::task(i)).result().unwrap(), i);
        assert_eq!(block_on(pool.submit(echo_number::task(i))).unwrap(), i);
    }
    let closed = Gate::new();
    let limited = pool.submit(hold::task(closed.path()).timeout(Duration::from_millis(20)));
    assert!(limited.result().unwrap_err().is_timeout());
    let (callback, report) = reporter();
    let other = pool.submit(hold::task(closed.path()));
    other.add_done_callback(callback);
    closed.open();
    other.wait();
    assert!(report.try_recv().is_err(), "another callback waits for it");
    go_on.send(()).unwrap();
    assert!(report.recv_timeout(LONG).unwrap().0.is_ok());
}

#[test]
fn to04_callbacks_of_a_timed_out_task_see_the_timeout() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let limit = Duration::from_millis(20);
    let timed_out = |error: &TaskError| {
        assert!(
            matches!(error, TaskError::TimedOut { limit: told, phase: Phase::Run, .. } if *told == limit),
            "{error:?}"
        );
    };
    let (sender, report) = mpsc::channel();
    let seen = sender.clone();
    let future = pool.submit(hold::task(gate.path()).timeout(limit));
    future.add_done_callback(move |outcome| {
        sender.send(outcome.map(|_| ()).map_err(Clone::clone)).unwrap()
    });
    pool.submit(hold::task(gate.path()).timeout(limit))
        .on_done(move |outcome| seen.send(outcome.map(|_| ())).unwrap());
    for _ in 0..2 {
        timed_out(&report.recv_timeout(LONG).unwrap().unwrap_err());
    }
    timed_out(&future.result().unwrap_err());
}

static DECODED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, PartialEq, Serialize)]
struct Counted(u32);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, Ordering::SeqCst);
        u32::deserialize(deserializer).map(Counted)
    }
}

#[task]
fn count_decoding(gate: &std::path::Path) -> Counted {
    support::come_to(gate);
    Counted(3)
}

#[test]
fn callbacks_of_one_future_share_one_decoded_value() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(count_decoding::task(gate.path()));
    let (sender, report) = mpsc::channel();
    for _ in 0..5 {
        let sender = sender.clone();
        future.add_done_callback(move |outcome| {
            let value: &Counted = outcome.unwrap();
            sender.send((std::ptr::from_ref(value) as usize, value.0)).unwrap();
        });
    }
    drop(sender);
    gate.open();
    let seen: BTreeSet<(usize, u32)> = report.iter().collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(DECODED.load(Ordering::SeqCst), 1);
    assert_eq!(future.result().unwrap(), Counted(3));
    assert_eq!(DECODED.load(Ordering::SeqCst), 2, "the reader decodes a copy of its own");
}

#[test]
fn a_callback_may_submit_wait_and_add_callbacks() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, report) = mpsc::channel();
    let inner = pool.clone();
    pool.submit(echo_number::task(1)).add_done_callback(move |outcome| {
        let next = inner.submit(echo_number::task(outcome.unwrap() + 1));
        next.wait();
        let sender_inner = sender.clone();
        // The future is done, so this callback runs at once, within the other one.
        next.add_done_callback(move |outcome| sender_inner.send(*outcome.unwrap()).unwrap());
        sender.send(next.result().unwrap() + 1).unwrap();
    });
    assert_eq!(report.iter().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_callback_may_consume_its_captured_values() {
    let _watchdog = watchdog();
    struct NotClone(Vec<u32>);
    let (sender, report) = mpsc::channel();
    let captured = NotClone(vec![1, 2]);
    let pool = pool(1);
    pool.submit(echo_number::task(3)).add_done_callback(move |outcome| {
        let NotClone(mut values) = captured;
        values.push(*outcome.unwrap());
        sender.send(values).unwrap();
    });
    assert_eq!(report.recv_timeout(LONG).unwrap(), [1, 2, 3]);
}

#[task]
fn text(of: u32) -> Result<String, String> {
    if of == 0 { Err("none".into()) } else { Ok(of.to_string()) }
}

#[test]
fn on_done_receives_the_result_by_value_before_and_after_the_end() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, report) = mpsc::channel::<Result<String, TaskError>>();
    for of in [5, 0] {
        let sender = sender.clone();
        pool.submit(text::task(of)).on_done(move |outcome| sender.send(outcome).unwrap());
    }
    assert_eq!(report.recv_timeout(LONG).unwrap().unwrap(), "5");
    assert!(report.recv_timeout(LONG).unwrap().unwrap_err().is_failed());

    let done = pool.submit(text::task(6));
    done.wait();
    let here = thread::current().id();
    done.on_done(move |outcome| {
        assert_eq!(thread::current().id(), here);
        sender.send(outcome).unwrap();
    });
    assert_eq!(report.try_recv().expect("it has run").unwrap(), "6");

    // The task goes on although the future is gone, even if the future was marked `kill_on_drop`.
    let (sender, report) = mpsc::channel();
    let gate = Gate::new();
    pool.submit(hold::task(gate.path()))
        .kill_on_drop()
        .on_done(move |outcome| sender.send(outcome).unwrap());
    gate.open();
    assert!(report.recv_timeout(LONG).unwrap().is_ok());
}

#[test]
fn a_callback_may_shut_the_executor_down_and_drop_its_last_handle() {
    let _watchdog = watchdog();
    for wait in [false, true] {
        let pool = pool(1);
        let gate = Gate::new();
        let future = pool.submit(hold::task(gate.path()));
        let (sender, report) = mpsc::channel();
        future.add_done_callback(move |_| {
            if wait {
                pool.shutdown(true);
            }
            drop(pool);
            sender.send(()).unwrap();
        });
        gate.open();
        report.recv_timeout(LONG).expect("the callback comes to its end");
        assert!(future.result().is_ok());
    }
}

// ---- what a future tells ------------------------------------------------------------------------

#[test]
fn fu09_debug_shows_the_state_and_the_type_of_the_result_or_the_error() {
    let _watchdog = watchdog();
    let states = States::new();
    let shows = |future: &TaskFuture<u32>, state: &str, more: &str| {
        let text = format!("{future:?}");
        assert!(text.contains(state) && text.contains(more), "{text}");
        assert!(text.contains(&future.id().as_u64().to_string()), "{text}");
        for other in ["pending", "running", "cancelled", "finished"] {
            assert!(other == state || !text.contains(other), "{text}");
        }
    };
    shows(&states.queued, "pending", "");
    shows(&states.sent_ahead, "pending", "");
    shows(&states.running, "running", "");
    shows(&states.cancelled, "cancelled", "");
    shows(&states.failed, "finished", "Failed");
    shows(&states.finished, "finished", "u32");
    assert!(!format!("{:?}", states.finished).contains("Failed"));
}

#[test]
fn fu10_cancel_returns_true_only_for_tasks_that_will_never_run() {
    let _watchdog = watchdog();
    let states = States::new();
    assert!(states.queued.cancel());
    assert!(states.sent_ahead.cancel());
    assert!(!states.running.cancel());
    assert!(states.cancelled.cancel());
    assert!(!states.failed.cancel());
    assert!(!states.finished.cancel());
    // A second call returns the same.
    assert!(states.queued.cancel() && states.sent_ahead.cancel() && !states.running.cancel());

    assert!(states.queued.cancelled() && states.queued.done());
    assert!(states.sent_ahead.cancelled());
    assert!(states.running.running() && !states.running.done());
    states.gate.open();
    assert!(states.running.result().is_ok());
    assert!(states.queued.result().unwrap_err().is_cancelled());
    assert!(states.sent_ahead.result().unwrap_err().is_cancelled());
    assert!(states.cancelled.result().unwrap_err().is_cancelled());
    assert!(states.failed.result().unwrap_err().is_failed());
    assert_eq!(states.finished.result().unwrap(), 7);
    // Only one task came to the gate: the other one never began.
    states.pool.shutdown(true);
    assert_eq!(states.gate.arrivals().len(), 1);
}

#[test]
fn fu11_cancelled_is_true_only_for_cancelled_futures() {
    let _watchdog = watchdog();
    let states = States::new();
    assert_eq!(states.all().map(TaskFuture::cancelled), [false, false, false, true, false, false]);
}

#[test]
fn fu12_done_is_true_for_cancelled_failed_and_finished_futures() {
    let _watchdog = watchdog();
    let states = States::new();
    assert_eq!(states.all().map(TaskFuture::done), [false, false, false, true, true, true]);
}

#[test]
fn fu13_running_is_true_only_for_the_running_future() {
    let _watchdog = watchdog();
    let states = States::new();
    assert_eq!(states.all().map(TaskFuture::running), [false, false, true, false, false, false]);
    states.gate.open();
    states.running.wait();
    assert!(!states.running.running());
}

#[test]
fn fu15_a_waiter_receives_the_value_that_arrives_while_it_waits() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let (sender, result) = mpsc::channel();
    let started = Arc::new(Barrier::new(2));
    let ready = Arc::clone(&started);
    thread::spawn(move || {
        ready.wait();
        sender.send(future.result()).unwrap();
    });
    started.wait();
    assert!(result.try_recv().is_err(), "nothing has come yet");
    gate.open();
    assert_eq!(result.recv_timeout(LONG).unwrap().unwrap(), pool.worker_pids()[0]);
}

#[test]
fn fu15_many_threads_may_wait_for_one_future() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    let waiting = Barrier::new(9);
    thread::scope(|scope| {
        for i in 0..8 {
            let (future, waiting) = (&future, &waiting);
            scope.spawn(move || {
                waiting.wait();
                match i % 3 {
                    0 => future.wait(),
                    1 => assert!(future.error().is_none()),
                    _ => assert!(future.wait_timeout(LONG)),
                }
                assert!(future.done());
            });
        }
        waiting.wait();
        gate.open();
    });
    assert!(future.result().is_ok());
}

#[test]
fn fu17_with_a_timeout_of_zero_error_and_result_agree_in_every_state() {
    let _watchdog = watchdog();
    let states = States::new();
    let waited = states.all().map(|future| future.wait_timeout(Duration::ZERO));
    assert_eq!(waited, [false, false, false, true, true, true]);
    // Futures that are done have their error at once. A finished one has none.
    assert!(states.cancelled.error().unwrap().is_cancelled());
    assert!(states.failed.error().unwrap().is_failed());
    assert!(states.finished.error().is_none());

    let States { queued, sent_ahead, running, cancelled, failed, finished, gate, pool } = states;
    let mut back = Vec::new();
    for future in [queued, sent_ahead, running] {
        let id = future.id();
        let future =
            future.result_timeout(Duration::ZERO).expect_err("it is not done, so it comes back");
        assert_eq!(future.id(), id);
        back.push(future);
    }
    assert!(cancelled.result_timeout(Duration::ZERO).unwrap().unwrap_err().is_cancelled());
    assert!(failed.result_timeout(Duration::ZERO).unwrap().unwrap_err().is_failed());
    assert_eq!(finished.result_timeout(Duration::ZERO).unwrap().unwrap(), 7);
    // The futures that were returned work as before.
    gate.open();
    assert!(back.into_iter().all(|future| future.result().is_ok()));
    drop(pool);
}

#[test]
fn a_timeout_of_duration_max_is_no_timeout() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_eq!(
        pool.submit(echo_number::task(1)).result_timeout(Duration::MAX).unwrap().unwrap(),
        1
    );
    assert!(pool.submit(echo_number::task(1)).wait_timeout(Duration::MAX));
    assert_eq!(pool.submit(echo_number::task(1).timeout(Duration::MAX)).result().unwrap(), 1);
}

#[test]
fn fu18_a_waiter_for_the_error_receives_it() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold_and_fail::task(gate.path()));
    let started = Barrier::new(2);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            started.wait();
            future.error()
        });
        started.wait();
        gate.open();
        let error = waiter.join().unwrap().unwrap();
        assert!(matches!(error, TaskError::Failed(error) if error.message() == "let go"));
    });
    // `error` returned a copy, so the future still has the error.
    assert!(future.error().unwrap().is_failed());
    assert!(future.result().unwrap_err().is_failed());
}

#[test]
fn ids_are_unique_across_executors() {
    let _watchdog = watchdog();
    let pools = [pool(1), pool(1)];
    let futures: Vec<_> = (0..100).map(|i| pools[i % 2].submit(echo_number::task(1))).collect();
    assert_eq!(
        futures.iter().map(|future| future.id().as_u64()).collect::<BTreeSet<_>>().len(),
        100
    );
    let handle = futures[0].cancel_handle();
    assert_eq!(handle.id(), futures[0].id());
}

// ---- cancelling ---------------------------------------------------------------------------------

#[test]
fn cancel_running_kills_only_the_running_task() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    let behind: Vec<_> = (0..10).map(|i| pool.submit(echo_number::task(i))).collect();
    gate.wait_for(1);
    let victim = pool.worker_pids()[0];
    assert!(running.cancel_running());
    assert!(running.cancel_running(), "and again");
    assert!(running.error().unwrap().is_cancelled());
    assert!(running.cancelled() && running.cancel());
    for (i, future) in (0..).zip(behind) {
        assert_eq!(future.result().unwrap(), i);
    }
    assert!(!pool.worker_pids().contains(&victim));
    // The same call for tasks that wait or have ended.
    let states = States::new();
    assert!(states.queued.cancel_running() && states.sent_ahead.cancel_running());
    assert!(states.running.running(), "which costs nobody's life");
    assert!(states.cancelled.cancel_running());
    assert!(!states.failed.cancel_running() && !states.finished.cancel_running());
}

#[test]
fn a_cancel_handle_works_after_the_future_was_moved() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    let handle: CancelHandle = future.cancel_handle();
    let waiter = thread::spawn(move || future.result());
    gate.wait_for(1);
    assert!(!handle.cancel() && !handle.done());
    assert!(handle.clone().cancel_running());
    assert!(waiter.join().unwrap().unwrap_err().is_cancelled());
    assert!(handle.done());
    // The handle still knows the outcome after the result was taken.
    assert!(handle.cancel() && handle.cancel_running());

    let finished = pool.submit(echo_number::task(1));
    let handle = finished.cancel_handle();
    finished.result().unwrap();
    assert!(handle.done() && !handle.cancel() && !handle.cancel_running());
}

#[test]
fn dropping_a_future_does_not_cancel_its_task() {
    let _watchdog = watchdog();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    let (pool, gate) = (pool(1), Gate::new());
    let first = pool.submit(hold::task(gate.path()));
    for line in 0..5 {
        drop(pool.submit(note::task(file.clone(), line)));
    }
    drop(first);
    gate.open();
    pool.shutdown(true);
    assert_eq!(notes(&file), [0, 1, 2, 3, 4]);
}

#[test]
fn cancel_on_drop_cancels_a_waiting_task_but_not_a_running_one() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path())).cancel_on_drop();
    let waiting = pool.submit(hold::task(gate.path())).cancel_on_drop();
    let (running_handle, waiting_handle) = (running.cancel_handle(), waiting.cancel_handle());
    let (callback, report) = reporter();
    running.add_done_callback(callback);
    gate.wait_for(1);
    drop((running, waiting));
    assert!(waiting_handle.done() && waiting_handle.cancel(), "it is cancelled");
    assert!(!running_handle.done());
    gate.open();
    assert!(report.recv_timeout(LONG).unwrap().0.is_ok());
    pool.shutdown(true);
    assert_eq!(gate.arrivals().len(), 1);
}

#[test]
fn kill_on_drop_ends_a_running_task() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path())).kill_on_drop();
    let waiting = pool.submit(hold::task(gate.path())).kill_on_drop();
    let waiting_handle = waiting.cancel_handle();
    let handle = running.cancel_handle();
    gate.wait_for(1);
    let victim = pool.worker_pids()[0];
    drop((waiting, running));
    assert!(waiting_handle.done());
    eventually("the task has ended", || handle.done());
    assert!(handle.cancel(), "by cancellation");
    assert_ne!(pool.submit(support::pid::task()).result().unwrap(), victim);
    assert_eq!(gate.arrivals().len(), 1);
    // A future whose result was taken kills nothing when it is dropped.
    let worker = pool.worker_pids();
    assert!(pool.submit(echo_number::task(1)).kill_on_drop().result().is_ok());
    assert_eq!(pool.submit(support::pid::task()).result().unwrap(), worker[0]);
}

// ---- await --------------------------------------------------------------------------------------

/// Awaits everything that behaves the same on every runtime.
async fn await_everything() {
    let pool = pool(2);
    assert_eq!(pool.submit(echo_number::task(4)).await.unwrap(), 4);
    assert!(pool.submit(fail::task("no".into())).await.unwrap_err().is_failed());
    let results = join_all((0..200).map(|i| pool.submit(echo_number::task(i)))).await;
    assert_eq!(
        results.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        (0..200).collect::<Vec<_>>()
    );

    // Await through a reference, after polling the future.
    let gate = Gate::new();
    let mut future = pool.submit(hold::task(gate.path()));
    assert!(futures::poll!(&mut future).is_pending());
    assert!(futures::poll!(&mut future).is_pending());
    gate.open();
    assert!((&mut future).await.is_ok());
    assert!(future.done() && !future.cancelled() && !future.running());

    // Cancel the task while it is awaited.
    let gate = Gate::new();
    let future = pool.submit(hold::task(gate.path()));
    let handle = future.cancel_handle();
    let path = gate.path().to_owned();
    let cancel = thread::spawn(move || {
        eventually("it has begun", || std::fs::read_dir(&path).unwrap().count() == 2);
        assert!(handle.cancel_running());
    });
    assert!(future.await.unwrap_err().is_cancelled());
    cancel.join().unwrap();
    pool.shutdown_async().await;
    assert!(pool.worker_pids().is_empty());
    assert!(matches!(pool.submit(echo_number::task(1)).await, Err(TaskError::Shutdown)));
}

#[tokio::test(flavor = "current_thread")]
async fn futures_are_awaited_on_tokios_current_thread_runtime() {
    let _watchdog = watchdog();
    await_everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_are_awaited_on_tokios_multi_thread_runtime() {
    let _watchdog = watchdog();
    await_everything().await;
    let pool = pool(2);
    let tasks: Vec<_> = (0..100).map(|i| tokio::spawn(pool.submit(echo_number::task(i)))).collect();
    for (i, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap().unwrap(), i);
    }
    pool.shutdown_async().await;
}

#[test]
fn futures_are_awaited_without_a_runtime() {
    let _watchdog = watchdog();
    block_on(await_everything());
}

#[tokio::test]
async fn select_by_reference_loses_no_result() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let mut future = pool.submit(hold::task(gate.path()));
    for _ in 0..10 {
        tokio::select! {
            biased;
            result = &mut future => panic!("the gate is closed: {result:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    gate.open();
    assert!(future.await.is_ok());
    pool.shutdown_async().await;
}

#[tokio::test]
async fn dropping_a_kill_on_drop_future_in_select_kills_its_task() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path())).kill_on_drop();
    let handle = future.cancel_handle();
    let begun = async {
        while gate.arrivals().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        result = future => panic!("the gate is closed: {result:?}"),
        () = begun => {}
    }
    while !handle.done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(handle.cancel());
    pool.shutdown_async().await;
}

/// A waker that counts its wake-ups.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn only_the_waker_of_the_last_poll_is_woken_and_once() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let mut future = pool.submit(hold::task(gate.path()));
    let (old, new) = (Arc::new(CountingWaker::default()), Arc::new(CountingWaker::default()));
    for waker in [&old, &old, &new] {
        let waker = Waker::from(Arc::clone(waker));
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    gate.open();
    eventually("the waker is woken", || new.0.load(Ordering::SeqCst) > 0);
    let Poll::Ready(result) = Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()))
    else {
        panic!("woken, but not ready");
    };
    result.unwrap();
    pool.shutdown(true);
    assert_eq!((old.0.load(Ordering::SeqCst), new.0.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(Arc::strong_count(&new), 1, "no waker is kept");
}

#[test]
fn polling_a_future_after_ready_panics() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let mut future = pool.submit(echo_number::task(1));
    assert_eq!(block_on(&mut future).unwrap(), 1);
    let panic = catch_unwind(AssertUnwindSafe(|| block_on(&mut future))).unwrap_err();
    assert!(panic.downcast_ref::<&str>().unwrap().contains("after it was ready"));
    // Only polling panics. Everything else still answers.
    assert!(future.done() && !future.cancel());
    let (callback, report) = reporter();
    future.add_done_callback(callback);
    assert!(matches!(report.try_recv().unwrap().0, Err(TaskError::Invalid(_))));
}

#[test]
fn an_error_that_was_awaited_is_still_reported() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let mut future = pool.submit(fail::task("no".into()));
    assert!(block_on(&mut future).unwrap_err().is_failed());
    assert!(future.error().unwrap().is_failed(), "`None` would say that it had a value");
    let (callback, report) = reporter();
    future.add_done_callback(callback);
    assert!(report.try_recv().unwrap().0.unwrap_err().is_failed());
}

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a waker panics"));
    }
}

#[test]
fn a_waker_that_panics_affects_no_other_task() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let mut future = pool.submit(hold::task(gate.path()));
    let waker = Waker::from(Arc::new(PanickingWaker));
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    let (callback, report) = reporter();
    future.add_done_callback(callback);
    gate.open();
    assert!(report.recv_timeout(LONG).unwrap().0.is_ok());
    assert!(future.result().is_ok());
    for i in 0..10 {
        assert_eq!(pool.submit(echo_number::task(i)).result().unwrap(), i);
    }
}

/// A waker that holds the last handle of an executor. It drops the handle when it is woken, on the
/// executor's own thread.
struct LastHandle(Mutex<Option<ProcessPoolExecutor>>, mpsc::Sender<()>);

impl Wake for LastHandle {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
        self.1.send(()).unwrap();
    }
}

#[test]
fn a_waker_may_drop_the_last_handle_of_the_executor() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let mut future = pool.submit(hold::task(gate.path()));
    let after = pool.submit(echo_number::task(1));
    let (sender, woken) = mpsc::channel();
    let waker = Waker::from(Arc::new(LastHandle(Mutex::new(Some(pool)), sender)));
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open();
    woken.recv_timeout(LONG).expect("the executor's thread is not stuck");
    assert!(future.result().is_ok());
    assert_eq!(after.result().unwrap(), 1, "accepted work is finished");
}

// ---- results that do not decode -----------------------------------------------------------------

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Undecodable {
    panics: bool,
}

impl<'de> Deserialize<'de> for Undecodable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            std::panic::resume_unwind(Box::new("I panic instead"));
        }
        Err(serde::de::Error::custom("I do not want to"))
    }
}

#[task]
fn undecodable(panics: bool) -> Undecodable {
    Undecodable { panics }
}

#[test]
fn a_result_that_does_not_decode_is_an_error_wherever_it_is_read() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for (panics, says) in [(false, "I do not want to"), (true, "I panic instead")] {
        let check = move |error: &TaskError| {
            let TaskError::Decode(failure) = error else { panic!("{error:?}") };
            assert_eq!(
                (failure.side(), failure.task()),
                (Side::Result, "pool::future::undecodable")
            );
            assert!(failure.message().contains(says), "{failure}");
        };
        let (sender, report) = mpsc::channel();
        let future = pool.submit(undecodable::task(panics));
        for _ in 0..2 {
            let sender = sender.clone();
            future.add_done_callback(move |outcome| {
                sender.send(outcome.unwrap_err().clone()).unwrap()
            });
        }
        pool.submit(undecodable::task(panics))
            .on_done(move |outcome| sender.send(outcome.unwrap_err()).unwrap());
        let errors: Vec<TaskError> = report.iter().collect();
        assert_eq!(errors.len(), 3);
        errors.iter().for_each(check);
        check(&future.result().unwrap_err());
        check(&block_on(pool.submit(undecodable::task(panics))).unwrap_err());
        assert_eq!(pool.submit(echo_number::task(1)).result().unwrap(), 1);
    }
}

// ---- types --------------------------------------------------------------------------------------

#[test]
fn types_are_small_and_can_be_sent_between_threads() {
    fn travels<T: Send + Sync + Unpin + 'static>() {}
    fn clones<T: Clone>() {}
    travels::<TaskError>();
    clones::<TaskError>();
    travels::<CancelHandle>();
    clones::<CancelHandle>();
    travels::<ProcessPoolExecutor>();
    clones::<ProcessPoolExecutor>();
    travels::<TaskFuture<u32>>();
    // A future holds no value, only the means to get it, so it is `Send` whatever the type of the
    // value.
    travels::<TaskFuture<std::rc::Rc<std::cell::Cell<u32>>>>();
    assert!(size_of::<TaskError>() <= 32, "{}", size_of::<TaskError>());
    fn is_error<E: std::error::Error>() {}
    is_error::<TaskError>();
}
