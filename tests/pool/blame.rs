//! Errors report what really happened: the panic that ended the task and no other panic, the step
//! that failed by its name, and the remedy (also in the `Debug` output).

use std::{
    fmt,
    panic::{catch_unwind, panic_any, resume_unwind},
    thread,
};

use executor::{ExitStatus, Process, StartMethod, TaskError, prelude::*};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::support::{self, Gate, echo_number, pid, pool, signal, stop, watchdog};

fn message(error: &TaskError) -> &str {
    match error {
        TaskError::Panicked(remote) => remote.message(),
        other => panic!("not a panic: {other}"),
    }
}

fn location(error: &TaskError) -> Option<&str> {
    match error {
        TaskError::Panicked(remote) => remote.location(),
        other => panic!("not a panic: {other}"),
    }
}

// ---- the panic that ended it --------------------------------------------------------------------

/// Panics and catches the panic.
#[task]
fn catches(text: String) -> bool {
    catch_unwind(|| panic!("{text}")).is_err()
}

/// Resumes in this thread a panic that was caught in another thread, as rayon does. This thread's
/// panic hook does not run for it.
#[task]
fn passes_on(text: String) {
    let thrown = thread::spawn(move || panic!("{text}")).join().unwrap_err();
    resume_unwind(thrown);
}

#[test]
fn a_panic_caught_by_an_earlier_task_is_not_reported_for_a_later_one() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert!(pool.submit(catches::task("the old one".into())).result().unwrap());
    let error = pool.submit(passes_on::task("bad record 7".into())).result().unwrap_err();
    assert_eq!(message(&error), "bad record 7");
    assert!(
        location(&error).is_some_and(|place| place.starts_with("tests/pool/blame.rs:")),
        "{error}"
    );
    assert!(!error.to_string().contains("the old one"), "{error}");
}

/// Catches one panic, then ends with another that runs no panic hook.
#[task]
fn catches_and_resumes(text: String) {
    let _ = catch_unwind(|| panic!("caught and forgotten"));
    resume_unwind(Box::new(text));
}

#[test]
fn a_panic_caught_by_the_task_is_not_reported_as_the_one_that_ended_it() {
    let _watchdog = watchdog();
    let error = pool(1).submit(catches_and_resumes::task("the end".into())).result().unwrap_err();
    assert_eq!(message(&error), "the end");
    assert_eq!(location(&error), None, "nobody knows where it was thrown");
}

/// The same text for two panics in two threads at two places. It is a constant, so both payloads
/// point to the same address.
const SAME: &str = "the same words";

#[task]
fn catches_here_and_resumes_from_there() {
    let _ = catch_unwind(|| panic_any(SAME));
    let thrown = thread::spawn(|| panic_any(SAME)).join().unwrap_err();
    resume_unwind(thrown);
}

#[test]
fn the_location_is_omitted_when_two_panics_have_the_same_payload() {
    let _watchdog = watchdog();
    let error = pool(1).submit(catches_here_and_resumes_from_there::task()).result().unwrap_err();
    assert_eq!((message(&error), location(&error)), (SAME, None));
}

#[task]
fn throws(what: u8) {
    match what {
        0 => panic!("constant"),
        1 => panic!("made {what}"),
        2 => panic_any(7_u32),
        _ => {
            let _ = catch_unwind(|| panic_any(7_u32));
            resume_unwind(Box::new(7_u64))
        }
    }
}

#[test]
fn each_kind_of_panic_payload_has_its_own_message_and_location() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for (what, text) in [(0, "constant"), (1, "made 1"), (2, "(a panic payload that is no text)")] {
        let error = pool.submit(throws::task(what)).result().unwrap_err();
        assert_eq!(message(&error), text);
        assert!(
            location(&error).is_some_and(|place| place.starts_with("tests/pool/blame.rs:")),
            "{error}"
        );
    }
    let error = pool.submit(throws::task(3)).result().unwrap_err();
    assert_eq!(location(&error), None, "{error}");
}

/// Panics after replacing the worker's panic hook with its own.
#[task]
fn replaces_the_hook() {
    std::panic::set_hook(Box::new(|_| {}));
    panic!("without our hook")
}

#[test]
fn a_panic_after_the_task_replaced_the_hook_still_has_its_message() {
    let _watchdog = watchdog();
    let error = pool(1).submit(replaces_the_hook::task()).result().unwrap_err();
    assert_eq!(message(&error), "without our hook");
}

#[test]
fn a_panic_in_a_fork_server_preload_is_reported_with_its_message() {
    let _watchdog = watchdog();
    let context = executor::Context::new(StartMethod::ForkServer).preload(throws::task(1));
    let error = context.process(echo_number::task(1)).start().unwrap_err();
    assert!(error.to_string().contains("made 1"), "{error}");
}

// ---- an abort -----------------------------------------------------------------------------------

#[task]
fn aborts() {
    std::process::abort()
}

#[task]
fn catches_and_aborts(text: String) {
    let _ = catch_unwind(|| panic!("{text}"));
    std::process::abort()
}

/// Lets a thread panic, then aborts.
#[task]
fn a_thread_panics_and_it_aborts(text: String) {
    let _ = thread::spawn(move || panic!("{text}")).join();
    std::process::abort()
}

#[track_caller]
fn assert_aborted(error: &TaskError) -> Option<(String, bool)> {
    let TaskError::WorkerLost { status, detail, .. } = error else { panic!("{error}") };
    assert_eq!(*status, ExitStatus::Signaled(libc::SIGABRT));
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    let last = detail.last_panic.as_ref()?;
    assert!(error.to_string().contains(last.panic.message()), "{error}");
    assert!(error.to_string().contains("may have been caught"), "{error}");
    Some((last.panic.message().to_owned(), last.elsewhere))
}

#[test]
fn an_abort_reports_the_signal_and_the_tasks_last_panic() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(catches_and_aborts::task("caught".into())).result().unwrap_err();
    assert_eq!(assert_aborted(&error), Some(("caught".into(), false)));
    let error =
        pool.submit(a_thread_panics_and_it_aborts::task("aside".into())).result().unwrap_err();
    assert_eq!(assert_aborted(&error), Some(("aside".into(), true)));
}

#[test]
fn an_abort_does_not_report_a_panic_caught_by_an_earlier_task() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert!(pool.submit(catches::task("the old one".into())).result().unwrap());
    let error = pool.submit(aborts::task()).result().unwrap_err();
    assert_eq!(assert_aborted(&error), None, "{error}");
    // The same when that panic happened in another thread of the earlier task.
    let error = pool.submit(passes_on::task("of a thread".into())).result().unwrap_err();
    assert_eq!(message(&error), "of a thread");
    let error = pool.submit(aborts::task()).result().unwrap_err();
    assert_eq!(assert_aborted(&error), None, "{error}");
}

#[task]
fn catches_and_holds(gate: &std::path::Path) {
    let _ = catch_unwind(|| panic!("caught"));
    support::come_to(gate);
}

#[test]
fn a_worker_that_was_stopped_but_died_otherwise_is_not_reported_as_killed_for_stopping() {
    let _watchdog = watchdog();
    for last in [Signal::KILL, Signal::ABORT] {
        let (gate, pool) = (Gate::new(), pool(2));
        let held = pool.submit(catches_and_holds::task(gate.path()));
        gate.wait_for(1);
        let idle = pool.submit(pid::task()).result().unwrap();
        let busy = *pool.worker_pids().iter().find(|pid| **pid != idle).expect("it holds the task");
        stop(busy);
        stop(idle);
        // The idle worker is replaced once it has been seen stopped for long enough. By then the
        // busy worker has been seen stopped as well.
        let other = pool.submit(pid::task()).result().unwrap();
        assert!(other != idle && other != busy);
        // The signal is pending while the worker is stopped, so it is delivered first when the
        // worker continues.
        signal(busy, last);
        if last != Signal::KILL {
            signal(busy, Signal::CONT);
        }
        let error = held.result().unwrap_err();
        let TaskError::WorkerLost { detail, .. } = &error else { panic!("{error}") };
        assert!(detail.stopped_by.is_none() && !error.to_string().contains("stopped"), "{error}");
        match last {
            Signal::KILL => assert!(detail.killed_by_system, "{error}"),
            _ => assert_eq!(assert_aborted(&error), Some(("caught".into(), false))),
        }
    }
}

#[test]
fn an_aborted_process_reports_its_last_panic() {
    let _watchdog = watchdog();
    let child = Process::new(catches_and_aborts::task("caught".into())).start().unwrap();
    let error = child.join().unwrap_err();
    assert_eq!(assert_aborted(&error), Some(("caught".into(), false)));
    let child = Process::new(aborts::task()).start().unwrap();
    assert_eq!(assert_aborted(&child.join().unwrap_err()), None);
}

extern "C" fn cannot_unwind() {
    panic!("through C")
}

/// Catches a panic, then panics where unwinding is impossible.
#[task]
fn panics_through_c() {
    let _ = catch_unwind(|| panic!("caught"));
    cannot_unwind();
}

#[test]
fn a_panic_that_cannot_unwind_is_reported_as_a_panic_with_the_signal() {
    let _watchdog = watchdog();
    let error = pool(1).submit(panics_through_c::task()).result().unwrap_err();
    assert_eq!(message(&error), "through C");
    let TaskError::Panicked(remote) = &error else { unreachable!() };
    assert_eq!(remote.exit_status(), Some(ExitStatus::Signaled(libc::SIGABRT)));
    assert!(error.to_string().contains("SIGABRT"), "{error}");
}

/// A forked copy of the worker panics without overflowing its stack. The worker itself lives on and
/// aborts.
#[task]
fn a_copy_panics_and_it_aborts() {
    // SAFETY: the copy only panics, catches the panic and exits. No other thread of the worker can
    // hold a lock that a panic needs: the only other thread waits for the parent.
    match unsafe { libc::fork() } {
        0 => {
            let _ = catch_unwind(|| panic!("in the copy"));
            // SAFETY: `_exit` only ends the copy.
            unsafe { libc::_exit(0) }
        }
        copy => {
            let mut status = 0;
            // SAFETY: waits for the child forked above; `status` is valid for the call.
            assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
            assert_eq!(status, 0);
        }
    }
    std::process::abort()
}

#[test]
fn a_panic_in_a_forked_copy_of_the_worker_is_not_reported_for_the_worker() {
    let _watchdog = watchdog();
    let error = pool(1).submit(a_copy_panics_and_it_aborts::task()).result().unwrap_err();
    assert_eq!(assert_aborted(&error), None, "{error}");
}

#[allow(unconditional_recursion, reason = "to overflow the stack")]
fn recurse(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    page[0] + recurse(depth + 1)
}

/// A forked copy of the worker overflows its stack. Later a signal ends the worker itself.
#[task]
fn a_copy_overflows(signal: i32) {
    // SAFETY: as in `a_copy_panics_and_it_aborts`.
    match unsafe { libc::fork() } {
        0 => {
            // Discard what std prints about the overflow.
            let _ = rustix::stdio::dup2_stderr(std::fs::File::create("/dev/null").unwrap());
            recurse(0);
        }
        copy => {
            let mut status = 0;
            // SAFETY: waits for the child forked above; `status` is valid for the call.
            assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
            assert!(libc::WIFSIGNALED(status), "{status}");
        }
    }
    raise(signal);
}

#[task]
fn overflows() {
    let _ = rustix::stdio::dup2_stderr(std::fs::File::create("/dev/null").unwrap());
    recurse(0);
}

fn raise(signal: i32) {
    // SAFETY: only sends a signal to this process.
    unsafe { libc::raise(signal) };
    loop {
        thread::park();
    }
}

#[test]
fn a_stack_overflow_in_a_forked_copy_is_not_reported_for_the_worker() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGKILL] {
        let error = pool.submit(a_copy_overflows::task(signal)).result().unwrap_err();
        let TaskError::WorkerLost { status, detail, .. } = &error else { panic!("{error}") };
        assert_eq!(*status, ExitStatus::Signaled(signal));
        assert!(!detail.stack_overflow, "{error}");
    }
    let error = pool.submit(overflows::task()).result().unwrap_err();
    assert!(
        matches!(&error, TaskError::WorkerLost { detail, .. } if detail.stack_overflow),
        "{error}"
    );
}

// ---- each step by its name ----------------------------------------------------------------------

/// Returns whether this process is a worker. The guards below panic only there, so a drop in the
/// test itself does no harm.
fn in_worker() -> bool {
    executor::parent_process().is_some()
}

/// A value that panics when a worker drops it.
#[derive(Serialize, Deserialize)]
struct Guard(u8);

impl Drop for Guard {
    fn drop(&mut self) {
        if in_worker() && !thread::panicking() {
            panic!("drop of a Guard");
        }
    }
}

#[task]
fn gives() -> Guard {
    Guard(1)
}

#[task]
fn borrows(guard: &Guard) -> u8 {
    guard.0
}

#[task]
fn takes(guard: Guard) -> u8 {
    guard.0
}

#[task]
async fn gives_async() -> Guard {
    Guard(1)
}

#[test]
fn a_panic_in_a_drop_is_reported_as_a_panic_of_the_task() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let given = |error: Result<Guard, TaskError>| error.map(std::mem::forget).unwrap_err();
    let dropped = [
        given(pool.submit(gives::task()).result()),
        given(pool.submit(gives_async::task()).result()),
        pool.submit(borrows::task(&Guard(1))).result().unwrap_err(),
    ];
    for error in dropped {
        assert_eq!(message(&error), "drop of a Guard");
        assert!(
            location(&error).is_some_and(|place| place.starts_with("tests/pool/blame.rs:")),
            "{error}"
        );
        assert!(
            error.to_string().contains("while its arguments or its result were dropped"),
            "{error}"
        );
    }
    let error = pool.submit(takes::task(Guard(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    assert!(!error.to_string().contains("while"), "the function itself has dropped it: {error}");
    let error =
        Process::new(gives::task()).start().unwrap().join().map(std::mem::forget).unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    // The worker goes on, and the result encoded before the panic is not delivered to another task.
    assert_eq!(pool.submit(echo_number::task(7)).result().unwrap(), 7);
}

/// Its `Deserialize` reads its byte and then fails.
#[derive(Serialize)]
struct Never(u8);

impl<'de> Deserialize<'de> for Never {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        Err(serde::de::Error::custom("never"))
    }
}

#[task]
fn takes_both(guard: &Guard, never: Never) -> u8 {
    guard.0 + never.0
}

#[test]
fn a_panic_in_a_drop_after_failed_decoding_is_not_blamed_on_deserialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(takes_both::task(&Guard(1), Never(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    assert!(!error.to_string().contains("Deserialize"), "{error}");
}

/// A value that panics when the caller's process drops it.
#[derive(Serialize, Deserialize)]
struct Mine(u8);

impl Drop for Mine {
    fn drop(&mut self) {
        if !in_worker() && !thread::panicking() && self.0 == 1 {
            panic!("drop of what is mine");
        }
    }
}

#[task]
fn takes_mine(mine: Mine) -> u8 {
    mine.0
}

#[test]
fn a_panic_in_a_drop_of_arguments_in_the_caller_is_not_blamed_on_serialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(takes_mine::task(Mine(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of what is mine");
    assert!(
        error.to_string().contains("in the caller, while its arguments were dropped"),
        "{error}"
    );
}

/// An error whose `Display` panics.
#[derive(Serialize, Deserialize)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words")
    }
}

#[task]
fn fails_unspeakably() -> Result<u8, Unspeakable> {
    Err(Unspeakable)
}

#[test]
fn a_panic_in_an_errors_display_is_not_blamed_on_serialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(fails_unspeakably::task()).result().unwrap_err();
    assert_eq!(message(&error), "no words");
    assert!(error.to_string().contains("while its error was put into words"), "{error}");
}

/// An error with a working `Display` whose `Serialize` panics.
#[derive(Debug, Deserialize)]
struct Unwritable;

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what went wrong")
    }
}

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no bytes")
    }
}

#[task]
fn fails_unwritably() -> Result<u8, Unwritable> {
    Err(Unwritable)
}

#[test]
fn an_error_whose_serialize_panics_is_still_reported_as_the_tasks_error() {
    let _watchdog = watchdog();
    let error = pool(1).submit(fails_unwritably::task()).result().unwrap_err();
    let TaskError::Failed(remote) = &error else { panic!("{error}") };
    assert_eq!(remote.message(), "what went wrong");
    assert!(remote.downcast::<Unwritable>().is_none());
}

/// Limits this worker's address space to about 1 MiB more than it uses, which is too little for the
/// stack of another thread. Returns the limit in bytes.
#[task]
fn allows_no_more_threads() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = pages * rustix::param::page_size() as u64 + (1 << 20);
    let limits = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(rustix::process::Resource::As, limits).unwrap();
    limit
}

#[test]
fn a_runtime_that_cannot_start_is_not_reported_as_a_decode_error() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let addresses = pool.submit(allows_no_more_threads::task()).result().unwrap();
    let error = pool.submit(gives_async::task()).result().map(std::mem::forget).unwrap_err();
    assert!(matches!(error, TaskError::Refused(_)), "with {addresses} bytes: {error}");
    assert!(error.to_string().contains("no runtime for async tasks"), "{error}");
    assert!(error.to_string().contains("gives_async"), "{error}");
}

// ---- a pool that cannot go on -------------------------------------------------------------------

/// Succeeds only the first time it is called with this path.
#[task]
fn only_once(note: std::path::PathBuf) -> Result<(), String> {
    match std::fs::File::create_new(note) {
        Ok(_) => Ok(()),
        Err(_) => Err("it has run before".into()),
    }
}

#[test]
fn an_initializer_that_fails_at_a_restart_breaks_the_pool_and_broken_returns_the_cause() {
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = executor::ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(only_once::task(directory.path().join("note")))
        .build()
        .unwrap();
    assert_eq!(pool.submit(echo_number::task(1)).result().unwrap(), 1);
    assert!(pool.broken().is_none());
    assert!(pool.submit(aborts::task()).result().unwrap_err().is_worker_lost());
    let error = pool.submit(echo_number::task(2)).result().unwrap_err();
    assert!(error.is_broken() && error.to_string().contains("it has run before"), "{error}");
    let cause = pool.broken().unwrap();
    assert!(matches!(cause, executor::BrokenCause::Initializer(_)), "{cause}");
}
