//! Tasks that are asked to stop, and the signals that follow.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{ShutdownOptions, TaskError, prelude::*};

use super::support::{Gate, come_to, echo, eventually, hold, pid, runs, state, watchdog};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(20);

/// Returns a gate at which tasks only report that they have begun.
fn open_gate() -> Gate {
    let gate = Gate::new();
    gate.open();
    gate
}

fn pool_with_grace(grace: Duration) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(1).cancel_grace(grace).build().unwrap()
}

/// Comes to the gate, and returns when it is asked to stop.
#[task]
fn until_cancelled(gate: &Path) -> u32 {
    come_to(gate);
    while !executor::is_cancelled() {
        thread::yield_now();
    }
    std::process::id()
}

#[task]
async fn until_cancelled_async(gate: std::path::PathBuf) -> u32 {
    come_to(&gate);
    executor::cancelled().await;
    std::process::id()
}

/// Comes to the gate, and takes no notice of a request to stop.
#[task]
fn never_stops(gate: &Path) {
    come_to(gate);
    loop {
        thread::park();
    }
}

/// Comes to the first gate, and to the second one when it is asked to stop, which it does not.
#[task]
fn reports_that_it_is_asked(gate: &Path, asked: &Path) {
    come_to(gate);
    while !executor::is_cancelled() {
        thread::yield_now();
    }
    come_to(asked);
    loop {
        thread::park();
    }
}

/// Does the same as `never_stops`, and ignores SIGTERM.
#[task]
fn never_stops_nor_terminates(gate: &Path) {
    // SAFETY: sets a disposition in this worker.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    come_to(gate);
    loop {
        thread::park();
    }
}

/// Ends the process by a code of its own at SIGTERM. The code tells whether it was asked to stop.
#[task]
fn answers_sigterm(gate: &Path) {
    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: `_exit` is allowed in a handler.
        unsafe { libc::_exit(if executor::is_cancelled() { 7 } else { 8 }) }
    }
    // SAFETY: the handler only reads atomics and ends the process.
    unsafe { libc::signal(libc::SIGTERM, leave as *const () as libc::sighandler_t) };
    come_to(gate);
    loop {
        thread::park();
    }
}

#[task]
fn is_cancelled_here() -> bool {
    executor::is_cancelled()
}

#[test]
fn x05_a_cancelled_task_that_stops_in_time_keeps_its_worker() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    for round in 1..4 {
        let future = pool.submit(until_cancelled::task(gate.path()));
        let worker = gate.wait_for(round)[0];
        assert!(future.cancel_running());
        // It has returned a value, but it was promised to be cancelled.
        assert!(matches!(future.result(), Err(TaskError::Cancelled)));
        assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
        assert!(!pool.submit(is_cancelled_here::task()).result().unwrap(), "the next one was not");
    }
}

#[test]
fn x05_an_async_task_is_woken_and_so_are_blocking_waits_and_threads() {
    let _watchdog = watchdog();
    #[task]
    fn waits(gate: &Path) -> bool {
        let token = executor::cancellation();
        let other = thread::spawn(move || token.wait_timeout(LONG));
        come_to(gate);
        token.wait_timeout(LONG) && other.join().unwrap()
    }
    #[task]
    async fn joins(gate: std::path::PathBuf) {
        let one = tokio::spawn(executor::cancellation().cancelled());
        let two = executor::cancelled();
        come_to(&gate);
        let (_, joined) = tokio::join!(two, one);
        joined.unwrap();
    }
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    let futures = [
        pool.submit(until_cancelled_async::task(gate.path().into())).cancel_handle(),
        pool.submit(waits::task(gate.path())).cancel_handle(),
        pool.submit(joins::task(gate.path().into())).cancel_handle(),
        pool.submit(until_cancelled_async::task(gate.path().into())).cancel_handle(),
    ];
    for (future, arrivals) in futures.iter().zip(1..) {
        gate.wait_for(arrivals);
        assert!(future.cancel_running());
    }
    let workers = gate.wait_for(4);
    assert_eq!(pool.submit(pid::task()).result().unwrap(), workers[0]);
    assert!(workers.iter().all(|worker| *worker == workers[0]), "one worker has run them all");
}

#[test]
fn x05_a_time_limit_asks_first_and_the_task_may_be_tried_again() {
    let _watchdog = watchdog();
    #[task]
    fn counts(file: std::path::PathBuf) {
        super::support::note(file, std::process::id());
        while !executor::is_cancelled() {
            thread::yield_now();
        }
    }
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    let file = gate.file("attempts");
    let task = counts::task(file.clone()).timeout(SHORT).retries(3).retry_delay(Duration::ZERO);
    let error = pool.submit(task).result().unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.attempts(), 4);
    // Each attempt was asked anew, and none found that an earlier one was.
    let attempts = super::support::notes(&file);
    assert_eq!(attempts.len(), 4);
    assert!(attempts.iter().all(|worker| *worker == attempts[0]), "{attempts:?}");
    assert_eq!(pool.submit(pid::task()).result().unwrap(), attempts[0]);
}

#[test]
fn x05_a_task_that_does_not_stop_in_time_loses_its_worker() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(SHORT), open_gate());
    let cancelled = pool.submit(never_stops::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    let queued = pool.submit(echo::task(3));
    assert!(cancelled.cancel_running());
    assert!(matches!(cancelled.result(), Err(TaskError::Cancelled)));
    eventually("the worker is gone", || !runs(worker));
    assert_eq!(queued.result().unwrap(), 3);
    let limited = pool.submit(never_stops::task(gate.path()).timeout(SHORT));
    assert!(limited.result().unwrap_err().is_timeout());
    assert_eq!(pool.submit(echo::task(4)).result().unwrap(), 4);
}

#[test]
fn x05_whatever_ends_an_asked_task_it_ends_as_cancelled() {
    let _watchdog = watchdog();
    #[task]
    fn fails_when_asked(gate: &Path, how: u32) -> Result<(), String> {
        come_to(gate);
        while !executor::is_cancelled() {
            thread::yield_now();
        }
        match how {
            0 => Err("no".into()),
            1 => panic!("on purpose"),
            2 => std::process::exit(3),
            _ => std::process::abort(),
        }
    }
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    for how in 0..4 {
        let future = pool.submit(fails_when_asked::task(gate.path(), how));
        gate.wait_for(how as usize + 1);
        assert!(future.cancel_running());
        assert!(future.cancel_running(), "it is still the one who is cancelled");
        assert!(!future.cancel(), "it runs");
        let error = future.result().unwrap_err();
        assert!(error.is_cancelled(), "{how}: {error}");
    }
    assert_eq!(pool.submit(echo::task(5)).result().unwrap(), 5);
}

#[test]
fn x05_a_request_that_comes_with_the_reply_does_not_reach_the_next_task() {
    let _watchdog = watchdog();
    let pool = pool_with_grace(LONG);
    for _ in 0..super::support::rounds() {
        let first = pool.submit(echo::task(1));
        let next = pool.submit(is_cancelled_here::task());
        // It may be too early, too late, or between the end of the task and its reply.
        let cancelled = first.cancel_running();
        match first.result() {
            Ok(1) => assert!(!cancelled),
            Err(TaskError::Cancelled) => assert!(cancelled),
            other => panic!("{other:?}"),
        }
        assert!(!next.result().unwrap());
    }
}

#[test]
fn x05_outside_a_task_nothing_is_cancelled() {
    let _watchdog = watchdog();
    assert!(!executor::is_cancelled());
    let token = executor::cancellation();
    assert!(!token.is_cancelled() && !token.wait_timeout(Duration::ZERO));
    let mut waits = std::pin::pin!(token.cancelled());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waits.as_mut().poll(&mut context).is_pending());
    let process = executor::Process::new(is_cancelled_here::task()).start().unwrap();
    assert!(!process.join().unwrap());
}

#[test]
fn x05_a_token_stays_cancelled_when_its_task_has_ended() {
    let _watchdog = watchdog();
    #[task]
    fn leaves_a_thread(mark: &Path) {
        let (token, mark) = (executor::cancellation(), mark.to_owned());
        thread::spawn(move || {
            if token.wait_timeout(LONG) {
                std::fs::write(mark, "").unwrap();
            }
        });
    }
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    let mark = gate.file("mark");
    pool.submit(leaves_a_thread::task(&mark)).result().unwrap();
    eventually("the thread stops", || mark.exists());
}

#[test]
fn x08_the_time_between_sigterm_and_sigkill_is_the_pools() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    // So long that only a handled SIGTERM ends the worker.
    let pool = builder.terminate_grace(LONG).build().unwrap();
    let gate = open_gate();
    let cancelled = pool.submit(answers_sigterm::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    assert!(cancelled.cancel_running());
    assert!(cancelled.result().unwrap_err().is_cancelled());
    assert!(!runs(worker));
    let limited = pool.submit(answers_sigterm::task(gate.path()).timeout(SHORT));
    assert!(limited.result().unwrap_err().is_timeout());
    let last = pool.submit(never_stops_nor_terminates::task(gate.path()));
    gate.wait_for(3);
    let worker = pool.worker_pids()[0];
    pool.terminate_workers();
    // SIGTERM has no effect, and SIGKILL is far away.
    assert!(!pool.join_timeout(Duration::from_secs(2)));
    assert!(runs(worker));
    pool.kill_workers();
    assert!(last.result().unwrap_err().is_shutdown());
    assert_eq!(state(worker).filter(|state| *state != 'Z'), None);

    // Short, and the worker takes no notice of SIGTERM.
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.terminate_grace(SHORT).build().unwrap();
    for arrivals in 4..6 {
        let future = pool.submit(never_stops_nor_terminates::task(gate.path()));
        gate.wait_for(arrivals);
        assert!(future.cancel_running());
        assert!(future.result().unwrap_err().is_cancelled());
    }
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.terminate_grace(Duration::ZERO).build().unwrap();
    let future = pool.submit(never_stops_nor_terminates::task(gate.path()));
    gate.wait_for(6);
    pool.terminate_workers();
    assert!(future.result().unwrap_err().is_shutdown());
}

/// Comes to the gate, and returns when SIGTERM comes.
#[task]
fn returns_at_sigterm(gate: &Path) -> u32 {
    static CAME: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_: libc::c_int) {
        CAME.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler stores to an atomic.
    unsafe { libc::signal(libc::SIGTERM, note as *const () as libc::sighandler_t) };
    come_to(gate);
    while !CAME.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    std::process::id()
}

#[test]
fn x08_a_worker_whose_task_returns_at_sigterm_is_ended_at_once() {
    let _watchdog = watchdog();
    let gate = open_gate();
    let pool = || {
        let builder = ProcessPoolExecutor::builder().max_workers(1);
        // SIGKILL never comes because of this.
        builder.terminate_grace(Duration::MAX).build().unwrap()
    };
    let one = pool();
    for arrivals in 1..3 {
        let future = one.submit(returns_at_sigterm::task(gate.path()));
        let worker = gate.wait_for(arrivals)[arrivals - 1];
        assert!(future.cancel_running());
        assert!(future.result().unwrap_err().is_cancelled());
        assert_ne!(one.submit(pid::task()).result().unwrap(), worker, "SIGTERM is for the worker");
    }
    let limited = one.submit(returns_at_sigterm::task(gate.path()).timeout(SHORT));
    assert!(limited.result().unwrap_err().is_timeout());
    // The pool ends.
    let (one, gate) = (pool(), open_gate());
    let future = one.submit(returns_at_sigterm::task(gate.path()));
    let behind: Vec<_> = (0..3).map(|n| one.submit(echo::task(n))).collect();
    let worker = gate.wait_for(1)[0];
    one.terminate_workers();
    assert_eq!(future.result().unwrap(), worker, "it has returned in time");
    for future in behind {
        assert!(future.result().unwrap_err().is_shutdown());
    }
    one.shutdown(true);
    assert_eq!(state(worker), None);
}

#[test]
fn x08_a_task_is_asked_then_terminated_then_killed() {
    let _watchdog = watchdog();
    #[task]
    fn notes_sigterm(gate: &Path, mark: &Path) {
        static MARK: std::sync::OnceLock<std::ffi::CString> = std::sync::OnceLock::new();
        extern "C" fn note(_: libc::c_int) {
            let Some(mark) = MARK.get() else { return };
            // SAFETY: `open` and `close` are allowed in a handler, and the path lives for ever.
            unsafe {
                libc::close(libc::open(mark.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600))
            };
        }
        use std::os::unix::ffi::OsStrExt as _;
        MARK.set(std::ffi::CString::new(mark.as_os_str().as_bytes()).unwrap()).unwrap();
        // SAFETY: the handler makes two system calls that are allowed in it.
        unsafe { libc::signal(libc::SIGTERM, note as *const () as libc::sighandler_t) };
        come_to(gate);
        assert!(executor::cancellation().wait_timeout(LONG));
        // Asked, and no signal has come yet: it comes only when this file is there.
        std::fs::write(mark.with_extension("asked"), "").unwrap();
        loop {
            thread::park();
        }
    }
    let gate = open_gate();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let builder = builder.cancel_grace(Duration::from_millis(200)).terminate_grace(SHORT);
    let pool = builder.build().unwrap();
    let mark = gate.file("sigterm");
    let future = pool.submit(notes_sigterm::task(gate.path(), &mark));
    gate.wait_for(1);
    assert!(future.cancel_running());
    assert!(future.result().unwrap_err().is_cancelled());
    assert!(mark.with_extension("asked").exists() && mark.exists());
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn x53_a_shutdown_asks_and_results_of_tasks_that_stop_in_time_count() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(Duration::ZERO), open_gate());
    let running = pool.submit(until_cancelled::task(gate.path()));
    let queued = pool.submit(echo::task(1));
    let worker = gate.wait_for(1)[0];
    let now = Instant::now();
    pool.shutdown_with(ShutdownOptions::new().deadline(now).cancel_grace(LONG));
    assert_eq!(running.result().unwrap(), worker);
    assert!(queued.result().unwrap_err().is_shutdown());
    assert!(!runs(worker));
}

#[test]
fn x53_a_shutdown_with_a_limit_ends_whatever_a_worker_does() {
    let _watchdog = watchdog();
    let gate = open_gate();
    let options = ShutdownOptions::new().timeout(Duration::from_millis(300));
    // The graces are a part of the limit, whatever they are.
    for (arrivals, grace) in [(1, SHORT), (2, LONG), (3, Duration::MAX)] {
        let builder = ProcessPoolExecutor::builder().max_workers(1);
        let pool = builder.cancel_grace(grace).terminate_grace(grace).build().unwrap();
        let running = pool.submit(never_stops_nor_terminates::task(gate.path()));
        gate.wait_for(arrivals);
        let worker = pool.worker_pids()[0];
        let queued = pool.submit(echo::task(1));
        pool.shutdown_with(options);
        assert!(pool.join_timeout(LONG));
        assert!(running.result().unwrap_err().is_shutdown());
        assert!(queued.result().unwrap_err().is_shutdown());
        assert!(!runs(worker));
    }
    // A pool that has nothing to do ends at once, and not at the limit.
    let pool = pool_with_grace(LONG);
    pool.submit(echo::task(1)).result().unwrap();
    pool.shutdown_with(ShutdownOptions::new().timeout(LONG));
    assert!(pool.join_timeout(Duration::ZERO));
}

#[test]
fn x53_a_later_shutdown_may_give_tasks_that_were_asked_less_time() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(Duration::ZERO), open_gate());
    let asked = Gate::new();
    let running = pool.submit(reports_that_it_is_asked::task(gate.path(), asked.path()));
    gate.wait_for(1);
    let now = Instant::now();
    pool.shutdown_with(ShutdownOptions::new().wait(false).deadline(now).cancel_grace(LONG));
    asked.wait_for(1);
    // A deadline alone says nothing about their time.
    pool.shutdown_with(ShutdownOptions::new().wait(false).deadline(now));
    assert!(!pool.join_timeout(SHORT));
    pool.shutdown_with(ShutdownOptions::new().deadline(now).cancel_grace(Duration::ZERO));
    assert!(running.result().unwrap_err().is_shutdown());
}

#[test]
fn x53_a_shutdown_shortens_the_time_of_workers_that_were_signalled_before() {
    let _watchdog = watchdog();
    let gate = open_gate();
    let pool = ProcessPoolExecutor::builder().max_workers(1).terminate_grace(LONG).build().unwrap();
    let running = pool.submit(never_stops_nor_terminates::task(gate.path()));
    gate.wait_for(1);
    assert!(running.cancel_running(), "SIGTERM has no effect, and SIGKILL is far away");
    pool.shutdown_with(ShutdownOptions::new().deadline(Instant::now()).terminate_grace(SHORT));
    assert!(running.result().unwrap_err().is_cancelled());
}

#[test]
fn x53_a_callback_that_hangs_does_not_hold_up_a_shutdown_with_a_limit() {
    let _watchdog = watchdog();
    let pool = pool_with_grace(Duration::ZERO);
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    pool.submit(echo::task(1)).on_done(move |_| {
        let _ = may_go_on.recv();
    });
    pool.shutdown_with(ShutdownOptions::new().timeout(SHORT));
    assert!(!pool.join_timeout(Duration::ZERO), "the callback runs");
    drop(go_on);
    assert!(pool.join_timeout(LONG));
}

#[test]
fn to13_a_join_with_a_limit_says_whether_the_pool_has_ended() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(Duration::ZERO), Gate::new());
    assert!(!pool.join_timeout(SHORT), "nobody has shut it down");
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    pool.shutdown(false);
    assert!(!pool.join_timeout(SHORT), "it is busy");
    gate.open();
    assert!(pool.join_timeout(LONG));
    assert!(held.done());
    assert!(pool.join_timeout(Duration::ZERO), "also a second time");
}

#[test]
fn x05_a_worker_goes_on_after_a_measured_task_that_was_asked_to_stop() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool_with_grace(LONG), open_gate());
    for round in 1..5 {
        let asked = pool.submit(until_cancelled::task(gate.path()).measure_usage());
        gate.wait_for(round);
        assert!(asked.cancel_running());
        let usage = asked.usage_handle();
        assert!(asked.result().unwrap_err().is_cancelled());
        assert!(usage.get().is_none(), "it has no result of its own");
        let next = pool.submit(pid::task().measure_usage());
        let usage = next.usage_handle();
        assert_eq!(next.result().unwrap(), usage.get().unwrap().worker);
    }
    assert_eq!(pool.stats().workers_started, 1, "the worker is kept");
    assert_eq!((pool.stats().failed.cancelled, pool.stats().queued), (4, 0));
}
