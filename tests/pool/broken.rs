//! Faults in tasks and workers: which future fails, and with which error.
//!
//! All pairs of fault and place are in `faults.rs`. Here are those that a behaviour names, and what
//! is not a pair: tasks of several workers, maps, several faults at once.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use executor::{ExitStatus, ShutdownOptions, Side, TaskError, TaskFuture, prelude::*};
use rustix::process::Signal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{
    self, Gate, come_to, echo, eventually, exit, hold, pid, pool, runs, signal, watchdog,
};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Fault {
    Error,
    Panic,
    Exit,
    Abort,
    Kill,
    Segfault,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Place {
    EncodeArgs,
    DecodeArgs,
    Run,
    EncodeResult,
    DecodeResult,
}

fn strike(fault: Fault) -> Result<(), String> {
    match fault {
        Fault::Error => return Err("struck".to_owned()),
        Fault::Panic => panic!("struck"),
        Fault::Exit => std::process::exit(99),
        Fault::Abort => std::process::abort(),
        Fault::Kill => {
            signal(std::process::id(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        // SAFETY: none. It writes to address zero on purpose, and SIGSEGV ends the process.
        Fault::Segfault => unsafe {
            std::ptr::without_provenance_mut::<u8>(std::hint::black_box(0)).write_volatile(1);
        },
    }
    Ok(())
}

/// An argument that causes a fault at a given place.
#[derive(Clone, Copy)]
struct Trap(Place, Fault);

/// A result that causes a fault at a given place.
struct Returned(Place, Fault);

fn strike_at<E>(here: bool, fault: Fault, custom: impl FnOnce(String) -> E) -> Result<(), E> {
    if here { strike(fault).map_err(custom) } else { Ok(()) }
}

impl Serialize for Trap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        strike_at(self.0 == Place::EncodeArgs, self.1, serde::ser::Error::custom)?;
        (self.0, self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, fault) = Deserialize::deserialize(deserializer)?;
        strike_at(place == Place::DecodeArgs, fault, serde::de::Error::custom)?;
        Ok(Trap(place, fault))
    }
}

impl Serialize for Returned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        strike_at(self.0 == Place::EncodeResult, self.1, serde::ser::Error::custom)?;
        (self.0, self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Returned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, fault) = Deserialize::deserialize(deserializer)?;
        strike_at(place == Place::DecodeResult, fault, serde::de::Error::custom)?;
        Ok(Returned(place, fault))
    }
}

#[task(name = "spring")]
fn spring(trap: Trap) -> Result<Returned, String> {
    strike_at(trap.0 == Place::Run, trap.1, |message| message)?;
    Ok(Returned(trap.0, trap.1))
}

/// Waits at the gate, then runs the trap.
#[task]
fn spring_later(gate: &Path, trap: Trap) -> Result<Returned, String> {
    come_to(gate);
    strike_at(trap.0 == Place::Run, trap.1, |message| message)?;
    Ok(Returned(trap.0, trap.1))
}

/// Asserts that `error` describes this fault at this place. `worker` is the process that it hit.
#[track_caller]
fn assert_blame(place: Place, fault: Fault, error: &TaskError, worker: u32, function: &str) {
    let status = match fault {
        Fault::Exit => ExitStatus::Exited(99),
        Fault::Abort => ExitStatus::Signaled(libc::SIGABRT),
        Fault::Kill => ExitStatus::Signaled(libc::SIGKILL),
        Fault::Segfault => ExitStatus::Signaled(libc::SIGSEGV),
        Fault::Error | Fault::Panic => return assert_told(place, fault, error, function),
    };
    let TaskError::WorkerLost { pid, status: seen, detail, .. } = error else {
        panic!("{fault:?} at {place:?} gave {error:?}");
    };
    assert_eq!((*pid, *seen), (worker, status));
    assert_eq!(detail.task, "spring");
    assert_eq!(detail.killed_by_system, fault == Fault::Kill);
    assert!(!detail.stack_overflow);
    assert!(
        error.to_string().contains("`spring`") && error.to_string().contains(&pid.to_string()),
        "{error}"
    );
}

#[track_caller]
fn assert_told(place: Place, fault: Fault, error: &TaskError, function: &str) {
    match (place, fault, error) {
        (Place::Run, Fault::Error, TaskError::Failed(remote)) => {
            assert_eq!(remote.message(), "struck")
        }
        (Place::Run, Fault::Panic, TaskError::Panicked(remote)) => {
            assert_eq!(remote.message(), "struck");
            assert!(
                remote
                    .location()
                    .is_some_and(|location| location.starts_with("tests/pool/broken.rs:"))
            );
        }
        (Place::EncodeArgs | Place::EncodeResult, _, TaskError::Encode(failure))
        | (Place::DecodeArgs | Place::DecodeResult, _, TaskError::Decode(failure)) => {
            let side = match place {
                Place::EncodeArgs => Side::Arguments,
                Place::DecodeArgs => Side::ArgumentsInWorker,
                Place::EncodeResult => Side::ResultInWorker,
                _ => Side::Result,
            };
            assert_eq!(failure.side(), side);
            // The future knows only the function's name, not the name given to the task.
            let name = if place == Place::DecodeResult { function } else { "spring" };
            assert_eq!(failure.task(), name);
            assert!(failure.message().contains("struck"), "{failure}");
        }
        _ => panic!("{fault:?} at {place:?} gave {error:?}"),
    }
}

fn kills_worker(fault: Fault) -> bool {
    !matches!(fault, Fault::Error | Fault::Panic)
}

/// Causes one fault at one place, with other tasks before and behind it. Only that future fails,
/// and the pool works again afterwards.
#[track_caller]
fn check(place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let before: Vec<_> = (0..10).map(|i| pool.submit(echo::task(i))).collect();
    let struck = pool.submit(spring::task(Trap(place, fault)));
    let behind: Vec<_> = (10..20).map(|i| pool.submit(echo::task(i))).collect();
    let Err(error) = struck.result() else { panic!("{fault:?} at {place:?} went by") };
    assert_blame(place, fault, &error, worker, "spring");
    for (i, future) in before.into_iter().chain(behind).enumerate() {
        assert_eq!(future.result().unwrap(), i as u64);
    }
    let next = pool.submit(pid::task()).result().unwrap();
    assert_eq!(next != worker, kills_worker(fault), "a new worker if and only if the old one died");
    pool.shutdown(true);
    assert_eq!(
        (support::state(worker), support::state(next)),
        (None, None),
        "nobody is left, also no zombie"
    );
}

/// The same while a shutdown waits: the shutdown returns, and all accepted tasks are done.
#[track_caller]
fn check_during_shutdown(place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let struck = pool.submit(spring_later::task(gate.path(), Trap(place, fault)).name("spring"));
    let behind: Vec<_> = (0..10).map(|i| pool.submit(echo::task(i))).collect();
    let worker = gate.wait_for(1)[0];
    pool.shutdown(false);
    gate.open();
    pool.shutdown(true);
    assert!(struck.done());
    let Err(error) = struck.result() else { panic!("{fault:?} at {place:?} went by") };
    assert_blame(place, fault, &error, worker, spring_later::NAME);
    for (i, future) in behind.into_iter().enumerate() {
        assert!(future.done());
        assert_eq!(future.result().unwrap(), i as u64);
    }
    assert_eq!(support::state(worker), None);
}

macro_rules! matrix {
    ($($name:ident: $check:ident($place:ident, $fault:ident);)*) => {
        $(#[test] fn $name() { $check(Place::$place, Fault::$fault) })*
    };
}

matrix! {
    br07_error_at_encode_args: check(EncodeArgs, Error);
    br10_error_at_decode_args: check(DecodeArgs, Error);
    br09_exit_at_decode_args: check(DecodeArgs, Exit);
    br14_panic_at_run: check(Run, Panic);
    br12_segfault_at_run: check(Run, Segfault);
    br17_error_at_encode_result: check(EncodeResult, Error);
    br16_exit_at_encode_result: check(EncodeResult, Exit);
    br15_segfault_at_encode_result: check(EncodeResult, Segfault);
    br19_panic_at_decode_result: check(DecodeResult, Panic);

    exit_at_encode_result_during_shutdown: check_during_shutdown(EncodeResult, Exit);
    panic_at_encode_result_during_shutdown: check_during_shutdown(EncodeResult, Panic);
    panic_at_decode_result_during_shutdown: check_during_shutdown(DecodeResult, Panic);
}

// ---- idle ---------------------------------------------------------------------------------------

/// Leaves a thread behind that causes the fault when the gate opens, while the worker is idle.
#[task]
fn lay_fuse(gate: &Path, fault: Fault) -> u32 {
    let gate = gate.to_owned();
    std::thread::spawn(move || {
        come_to(&gate);
        let _ = strike(fault);
    });
    std::process::id()
}

fn check_idle(fault: Fault) {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let worker = pool.submit(lay_fuse::task(gate.path(), fault)).result().unwrap();
    gate.wait_for(1);
    gate.open();
    eventually("the idle worker is gone", || !runs(worker));
    let next = pool.submit(pid::task()).result().unwrap();
    assert_ne!(next, worker);
    pool.shutdown(true);
    assert_eq!(support::state(worker), None);
}

#[test]
fn br25_kill_at_idle() {
    check_idle(Fault::Kill);
}

#[test]
fn br25_an_idle_worker_killed_as_the_next_task_is_submitted_is_replaced() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for round in 0..20 {
        let worker = pool.submit(pid::task()).result().unwrap();
        signal(worker, Signal::KILL);
        // Submit at once, so that this happens before, while or after the executor notices the
        // death.
        let outcome = pool.submit(echo::task(round)).result();
        match outcome {
            Ok(value) => assert_eq!(value, round),
            // The worker had taken the task before the signal came.
            Err(TaskError::WorkerLost { pid, status, .. }) => {
                assert_eq!((pid, status), (worker, ExitStatus::Signaled(libc::SIGKILL)));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_panic_on_another_thread_of_a_worker_affects_no_task() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let worker = pool.submit(lay_fuse::task(gate.path(), Fault::Panic)).result().unwrap();
    gate.wait_for(1);
    let held = Gate::new();
    let during = pool.submit(hold::task(held.path()));
    held.wait_for(1);
    gate.open();
    let threads =
        || fs::read_dir(format!("/proc/{worker}/task")).map_or(0, |threads| threads.count());
    eventually("the thread has ended", || threads() <= 3);
    held.open();
    assert_eq!(during.result().unwrap(), worker, "the task that ran meanwhile is innocent");
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

// ---- single lines -------------------------------------------------------------------------------

#[test]
fn br01_a_worker_killed_while_it_runs_a_task_is_reported_with_pid_and_signal() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for (deadly, name) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        let gate = Gate::new();
        let future = pool.submit(hold::task(gate.path()));
        let worker = gate.wait_for(1)[0];
        signal(worker, deadly);
        let error = future.result().unwrap_err();
        let TaskError::WorkerLost { pid, status, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*pid, worker);
        assert_eq!(status.signal(), Some(deadly.as_raw()));
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(&worker.to_string()), "{text}");
    }
}

#[test]
fn br04_each_future_of_several_lost_workers_gets_its_own_error() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(3);
    let futures: Vec<_> =
        (0..3).map(|i| pool.submit(hold::task(gate.path()).name(format!("held {i}")))).collect();
    let mut workers = gate.wait_for(3);
    for worker in &workers {
        signal(*worker, Signal::KILL);
    }
    let mut lost = Vec::new();
    for (i, future) in futures.into_iter().enumerate() {
        let Err(TaskError::WorkerLost { pid, detail, .. }) = future.result() else {
            panic!("it came back")
        };
        assert_eq!(detail.task, format!("held {i}"));
        lost.push(pid);
    }
    lost.sort_unstable();
    workers.sort_unstable();
    assert_eq!(lost, workers, "each error names its own worker");
}

#[test]
fn br05_a_worker_that_exits_is_reported_with_its_exit_code() {
    let _watchdog = watchdog();
    let error = pool(1).submit(exit::task(99)).result().unwrap_err();
    let TaskError::WorkerLost { status, .. } = &error else { panic!("{error:?}") };
    assert_eq!(status.code(), Some(99));
    assert!(error.to_string().contains("exited with code 99"), "{error}");
}

#[test]
fn br23_callbacks_that_panic_do_not_stop_the_pool() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (sender, ran) = std::sync::mpsc::channel();
    for i in 0..20 {
        let future = pool.submit(echo::task(i));
        let sender = sender.clone();
        future.add_done_callback(move |outcome| {
            sender.send(*outcome.unwrap()).unwrap();
            // Like `panic!`, but without running the panic hook.
            std::panic::resume_unwind(Box::new("a callback"));
        });
    }
    assert_eq!(pool.submit(echo::task(42)).result().unwrap(), 42);
    pool.shutdown(true);
    drop(sender);
    let mut seen: Vec<_> = ran.iter().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>(), "each ran once");
}

#[task]
fn kill_other(other: u32) {
    signal(other, Signal::KILL);
}

#[test]
fn br27_a_worker_killed_while_shutdown_waits_fails_only_its_task() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(2);
    let held = pool.submit(hold::task(gate.path()));
    let sibling = gate.wait_for(1)[0];
    let killer = pool.submit(kill_other::task(sibling));
    pool.shutdown(true);
    killer.result().unwrap();
    let Err(TaskError::WorkerLost { pid, status, .. }) = held.result() else {
        panic!("it came back")
    };
    assert_eq!((pid, status), (sibling, ExitStatus::Signaled(libc::SIGKILL)));
}

/// An error that can be encoded but never decoded.
#[derive(Debug, Serialize)]
struct Stubborn(String);

impl<'de> Deserialize<'de> for Stubborn {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("needs other arguments"))
    }
}

impl std::fmt::Display for Stubborn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stubborn: {}", self.0)
    }
}

#[task]
fn refuse(text: String) -> Result<(), Stubborn> {
    Err(Stubborn(text))
}

#[test]
fn br28_an_error_that_cannot_be_decoded_keeps_its_text() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let Err(TaskError::Failed(error)) = pool.submit(refuse::task("no".into())).result() else {
        panic!()
    };
    assert_eq!(error.message(), "stubborn: no");
    assert!(error.downcast::<Stubborn>().is_none());
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

/// Returns its number. Item 50 first waits at the gate until its worker is killed.
#[task]
fn item(number: u64, gate: &Path) -> u64 {
    if number == 50 {
        come_to(gate);
    }
    number
}

#[test]
fn br30_a_worker_killed_in_the_middle_of_a_map_fails_only_its_item() {
    let _watchdog = watchdog();
    for workers in [1, 3] {
        for chunk in [1, 7] {
            let gate = Gate::new();
            let pool = pool(workers);
            let outcomes: Vec<_> = std::thread::scope(|scope| {
                scope.spawn(|| signal(gate.wait_for(1)[0], Signal::KILL));
                let make = |number| item::task(number, gate.path()).encode();
                pool.map(make, 0..100).chunk_size(chunk).collect()
            });
            assert_eq!(outcomes.len(), 100);
            for (number, outcome) in outcomes.into_iter().enumerate() {
                match outcome {
                    Err(error) if number == 50 => assert!(error.is_worker_lost(), "{error}"),
                    other => {
                        assert_eq!(other.unwrap(), number as u64, "only item 50 was being run")
                    }
                }
            }
        }
    }
}

#[test]
fn br31_a_map_whose_tasks_exit_reports_each_exit_code() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let outcomes = pool.map(exit::task, [1, 2, 3]).map(|outcome| match outcome {
        Err(TaskError::WorkerLost { status, .. }) => status,
        other => panic!("{other:?}"),
    });
    assert_eq!(outcomes.collect::<Vec<_>>(), [1, 2, 3].map(ExitStatus::Exited));
    assert_eq!(pool.submit(echo::task(7)).result().unwrap(), 7, "the pool goes on");
    let workers = pool.worker_pids();
    pool.shutdown(true);
    assert!(workers.into_iter().all(|worker| support::state(worker).is_none()), "it is closed");
}

#[task]
fn length(bytes: Vec<u8>) -> u64 {
    bytes.len() as u64
}

/// Stops a worker and sends it more than any buffer holds, so that sending blocks halfway.
fn half_sent(pool: &ProcessPoolExecutor) -> (u32, TaskFuture<u64>) {
    let worker = pool.submit(pid::task()).result().unwrap();
    support::stop(worker);
    (worker, pool.submit(length::task(vec![7; 16 << 20])))
}

#[test]
fn br33_a_worker_killed_while_it_reads_a_large_argument_does_not_lose_the_task() {
    let _watchdog = watchdog();
    // The task had not begun, so it runs on another worker.
    let one = pool(1);
    let (worker, future) = half_sent(&one);
    signal(worker, Signal::KILL);
    assert_eq!(future.result().unwrap(), 16 << 20);
    one.shutdown(true);
    // If the pool is terminated meanwhile, it returns even though nobody kills the stopped worker.
    let one = pool(1);
    let (worker, future) = half_sent(&one);
    one.terminate_workers();
    one.shutdown(true);
    assert!(matches!(future.result(), Err(TaskError::Shutdown)));
    assert_eq!(support::state(worker), None);
}

#[task]
fn throw_no_text() {
    std::panic::panic_any(42_u8)
}

#[task]
fn interrupt_itself() {
    // A shell script that starts these tests in the background makes them ignore SIGINT.
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    signal(std::process::id(), Signal::INT);
    loop {
        std::thread::park();
    }
}

#[test]
fn br34_unusual_ends_of_a_worker_affect_only_their_task() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(2);
    let bystander = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    assert!(pool.submit(throw_no_text::task()).result().unwrap_err().is_panic());
    let Err(TaskError::WorkerLost { status, .. }) = pool.submit(interrupt_itself::task()).result()
    else {
        panic!("it came back")
    };
    assert_eq!(status, ExitStatus::Signaled(libc::SIGINT));
    gate.open();
    bystander.result().unwrap();
    assert_eq!(pool.submit(echo::task(3)).result().unwrap(), 3);
}

static HELD_BY_THE_PARENT: std::sync::Mutex<u64> = std::sync::Mutex::new(0);

#[task]
fn take_the_lock() -> u64 {
    use std::io::Write;
    // The standard library's own locks, too: those of the standard streams.
    std::io::stderr().lock().flush().unwrap();
    std::io::stdout().lock().flush().unwrap();
    *HELD_BY_THE_PARENT.lock().unwrap()
}

#[test]
fn br36_locks_that_the_parent_holds_do_not_block_a_worker() {
    let _watchdog = watchdog();
    let mut held = HELD_BY_THE_PARENT.lock().unwrap();
    *held = 5;
    let streams = (std::io::stderr().lock(), std::io::stdout().lock());
    let outcome = pool(1).submit(take_the_lock::task()).result();
    drop(streams);
    assert_eq!(outcome.unwrap(), 0, "a worker has its own");
}

#[test]
fn every_future_is_resolved_once_while_workers_die_at_random() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let callbacks = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let futures: Vec<_> = (0..600)
        .map(|i| {
            let trap = match i % 20 {
                7 => Trap(Place::Run, Fault::Kill),
                13 => Trap(Place::EncodeResult, Fault::Exit),
                17 => Trap(Place::DecodeArgs, Fault::Abort),
                _ => Trap(Place::Run, if i % 2 == 0 { Fault::Error } else { Fault::Panic }),
            };
            let future = pool.submit(spring::task(trap));
            let callbacks = callbacks.clone();
            future.add_done_callback(move |_| {
                callbacks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            });
            (trap, future)
        })
        .collect();
    for (trap, future) in futures {
        let Err(error) = future.result() else { panic!("{:?} went by", trap.1) };
        match (&error, kills_worker(trap.1)) {
            (TaskError::WorkerLost { pid, .. }, true) => {
                assert_blame(trap.0, trap.1, &error, *pid, "spring")
            }
            (_, false) => assert_told(trap.0, trap.1, &error, "spring"),
            _ => panic!("{:?} gave {error:?}", trap.1),
        }
    }
    pool.shutdown_with(ShutdownOptions::new().deadline(Instant::now() + Duration::from_secs(30)));
    assert_eq!(callbacks.load(std::sync::atomic::Ordering::Relaxed), 600, "each callback once");
}
