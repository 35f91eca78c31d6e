//! What an error says is what happened: the panic that ended the task, and no other; the step that went wrong, by its name;
//! the remedy, also where `Debug` is what is printed.

mod support;

use std::{
    fmt,
    panic::{catch_unwind, panic_any, resume_unwind},
    thread,
};

use executor::{ExitStatus, Process, StartMethod, TaskError, prelude::*};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use support::{Gate, echo, pid, pool, signal, stop, watchdog};

executor::test_support!();

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

// ---- the panic that ended it ---------------------------------------------------------------------------------------

/// Panics, and catches that.
#[task]
fn catches(text: String) -> bool {
    catch_unwind(|| panic!("{text}")).is_err()
}

/// What a thread threw comes out of this one, as rayon does it: no hook of this thread sees it.
#[task]
fn passes_on(text: String) {
    let thrown = thread::spawn(move || panic!("{text}")).join().unwrap_err();
    resume_unwind(thrown);
}

#[test]
fn a_panic_that_an_earlier_task_caught_is_not_told_of_a_later_one() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert!(pool.submit(catches::task("the old one".into())).result().unwrap());
    let error = pool.submit(passes_on::task("bad record 7".into())).result().unwrap_err();
    assert_eq!(message(&error), "bad record 7");
    assert!(location(&error).is_some_and(|place| place.starts_with("tests/blame.rs:")), "{error}");
    assert!(!error.to_string().contains("the old one"), "{error}");
}

/// Catches one panic, and ends by another that passes no hook.
#[task]
fn catches_and_resumes(text: String) {
    let _ = catch_unwind(|| panic!("caught and forgotten"));
    resume_unwind(Box::new(text));
}

#[test]
fn a_panic_that_the_task_itself_caught_is_not_told_of_the_one_that_ended_it() {
    let _watchdog = watchdog();
    let error = pool(1).submit(catches_and_resumes::task("the end".into())).result().unwrap_err();
    assert_eq!(message(&error), "the end");
    assert_eq!(location(&error), None, "nobody knows where it was thrown");
}

/// One text for two panics, in two threads at two places: constant, so that it lies in one place of memory.
const SAME: &str = "the same words";

#[task]
fn catches_here_and_resumes_from_there() {
    let _ = catch_unwind(|| panic_any(SAME));
    let thrown = thread::spawn(|| panic_any(SAME)).join().unwrap_err();
    resume_unwind(thrown);
}

#[test]
fn where_two_places_are_possible_none_is_told() {
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
fn each_kind_of_payload_has_its_own_words_and_place() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for (what, text) in [(0, "constant"), (1, "made 1"), (2, "(a panic payload that is no text)")] {
        let error = pool.submit(throws::task(what)).result().unwrap_err();
        assert_eq!(message(&error), text);
        assert!(location(&error).is_some_and(|place| place.starts_with("tests/blame.rs:")), "{error}");
    }
    let error = pool.submit(throws::task(3)).result().unwrap_err();
    assert_eq!(location(&error), None, "{error}");
}

/// In a worker whose hook was replaced by the task's own.
#[task]
fn replaces_the_hook() {
    std::panic::set_hook(Box::new(|_| {}));
    panic!("without our hook")
}

#[test]
fn a_panic_that_passes_no_hook_of_ours_has_its_words() {
    let _watchdog = watchdog();
    let error = pool(1).submit(replaces_the_hook::task()).result().unwrap_err();
    assert_eq!(message(&error), "without our hook");
}

#[test]
fn a_fork_servers_preload_is_told_with_its_own_words() {
    let _watchdog = watchdog();
    let context = executor::Context::new(StartMethod::ForkServer).preload(throws::task(1));
    let error = context.process(echo::task(1)).start().unwrap_err();
    assert!(error.to_string().contains("made 1"), "{error}");
}

// ---- an abort ------------------------------------------------------------------------------------------------------

#[task]
fn aborts() {
    std::process::abort()
}

#[task]
fn catches_and_aborts(text: String) {
    let _ = catch_unwind(|| panic!("{text}"));
    std::process::abort()
}

/// A panic in a thread of its own, then an abort.
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
fn after_an_abort_the_signal_and_the_last_panic_are_told_as_such() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(catches_and_aborts::task("caught".into())).result().unwrap_err();
    assert_eq!(assert_aborted(&error), Some(("caught".into(), false)));
    let error = pool.submit(a_thread_panics_and_it_aborts::task("aside".into())).result().unwrap_err();
    assert_eq!(assert_aborted(&error), Some(("aside".into(), true)));
}

#[test]
fn an_abort_is_not_explained_by_what_an_earlier_task_caught() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert!(pool.submit(catches::task("the old one".into())).result().unwrap());
    let error = pool.submit(aborts::task()).result().unwrap_err();
    assert_eq!(assert_aborted(&error), None, "{error}");
    // Also of another thread.
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
fn a_worker_that_was_stopped_and_died_of_something_else_is_not_said_to_be_killed_for_it() {
    let _watchdog = watchdog();
    for last in [Signal::KILL, Signal::ABORT] {
        let (gate, pool) = (Gate::new(), pool(2));
        let held = pool.submit(catches_and_holds::task(gate.path()));
        gate.wait_for(1);
        let idle = pool.submit(pid::task()).result().unwrap();
        let busy = *pool.worker_pids().iter().find(|pid| **pid != idle).expect("it holds the task");
        stop(busy);
        stop(idle);
        // The idle one is replaced when it has been seen stopped for long enough. So the busy one has been seen, too.
        let other = pool.submit(pid::task()).result().unwrap();
        assert!(other != idle && other != busy);
        // Comes first of all when it goes on.
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
fn a_process_tells_its_last_panic_after_an_abort_too() {
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

/// A caught one, then one that cannot be caught.
#[task]
fn panics_through_c() {
    let _ = catch_unwind(|| panic!("caught"));
    cannot_unwind();
}

#[test]
fn a_panic_that_nobody_can_catch_is_told_as_the_panic_with_the_signal() {
    let _watchdog = watchdog();
    let error = pool(1).submit(panics_through_c::task()).result().unwrap_err();
    assert_eq!(message(&error), "through C");
    let TaskError::Panicked(remote) = &error else { unreachable!() };
    assert_eq!(remote.exit_status(), Some(ExitStatus::Signaled(libc::SIGABRT)));
    assert!(error.to_string().contains("SIGABRT"), "{error}");
}

/// A copy of the worker panics, and overflows nothing; the worker lives on and aborts.
#[task]
fn a_copy_panics_and_it_aborts() {
    // SAFETY: the copy calls nothing but a panic that is caught, and ends. No other thread of the worker holds a lock
    // that a panic needs: its only one waits for the parent.
    match unsafe { libc::fork() } {
        0 => {
            let _ = catch_unwind(|| panic!("in the copy"));
            // SAFETY: ends the copy.
            unsafe { libc::_exit(0) }
        }
        copy => {
            let mut status = 0;
            // SAFETY: waits for the child made above.
            assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
            assert_eq!(status, 0);
        }
    }
    std::process::abort()
}

#[test]
fn a_panic_of_a_copy_of_the_worker_is_not_the_workers() {
    let _watchdog = watchdog();
    let error = pool(1).submit(a_copy_panics_and_it_aborts::task()).result().unwrap_err();
    assert_eq!(assert_aborted(&error), None, "{error}");
}

#[allow(unconditional_recursion, reason = "to overflow the stack")]
fn recurse(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    page[0] + recurse(depth + 1)
}

/// A copy of the worker overflows its stack; the worker itself is ended by a signal later.
#[task]
fn a_copy_overflows(signal: i32) {
    // SAFETY: as in `a_copy_panics_and_it_aborts`.
    match unsafe { libc::fork() } {
        0 => {
            // What std says then belongs to nobody.
            let _ = rustix::stdio::dup2_stderr(std::fs::File::create("/dev/null").unwrap());
            recurse(0);
        }
        copy => {
            let mut status = 0;
            // SAFETY: waits for the child made above.
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
    // SAFETY: sends a signal to this process.
    unsafe { libc::raise(signal) };
    loop {
        thread::park();
    }
}

#[test]
fn a_stack_overflow_of_a_copy_is_not_the_workers() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGKILL] {
        let error = pool.submit(a_copy_overflows::task(signal)).result().unwrap_err();
        let TaskError::WorkerLost { status, detail, .. } = &error else { panic!("{error}") };
        assert_eq!(*status, ExitStatus::Signaled(signal));
        assert!(!detail.stack_overflow, "{error}");
    }
    let error = pool.submit(overflows::task()).result().unwrap_err();
    assert!(matches!(&error, TaskError::WorkerLost { detail, .. } if detail.stack_overflow), "{error}");
}

// ---- each step by its name -----------------------------------------------------------------------------------------

/// Whether this process is a worker: what is dropped in the test itself does no harm.
fn in_worker() -> bool {
    executor::parent_process().is_some()
}

/// Panics when it is dropped in a worker.
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
fn a_panic_in_a_drop_is_a_panic_of_the_task() {
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
        assert!(location(&error).is_some_and(|place| place.starts_with("tests/blame.rs:")), "{error}");
        assert!(error.to_string().contains("while its arguments or its result were dropped"), "{error}");
    }
    let error = pool.submit(takes::task(Guard(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    assert!(!error.to_string().contains("while"), "the function itself has dropped it: {error}");
    let error = Process::new(gives::task()).start().unwrap().join().map(std::mem::forget).unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    // The worker goes on, and what was encoded before is nobody's result.
    assert_eq!(pool.submit(echo::task(7)).result().unwrap(), 7);
}

/// Decodes as it should, then the next argument does not.
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
fn a_drop_after_arguments_that_do_not_decode_is_not_deserialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(takes_both::task(&Guard(1), Never(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of a Guard");
    assert!(!error.to_string().contains("Deserialize"), "{error}");
}

/// Panics when it is dropped, here.
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
fn a_drop_of_arguments_in_the_caller_is_not_serialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(takes_mine::task(Mine(1))).result().unwrap_err();
    assert_eq!(message(&error), "drop of what is mine");
    assert!(error.to_string().contains("in the caller, while its arguments were dropped"), "{error}");
}

/// Cannot be put into words.
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
fn a_panic_in_the_display_of_an_error_is_not_serialize() {
    let _watchdog = watchdog();
    let error = pool(1).submit(fails_unspeakably::task()).result().unwrap_err();
    assert_eq!(message(&error), "no words");
    assert!(error.to_string().contains("while its error was put into words"), "{error}");
}

/// An error with words and without bytes.
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
fn an_error_whose_serialize_panics_is_still_the_tasks_error() {
    let _watchdog = watchdog();
    let error = pool(1).submit(fails_unwritably::task()).result().unwrap_err();
    let TaskError::Failed(remote) = &error else { panic!("{error}") };
    assert_eq!(remote.message(), "what went wrong");
    assert!(remote.downcast::<Unwritable>().is_none());
}

/// From now on this worker has room for little more, and for the stack of a thread none. How many bytes it may have.
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
fn no_runtime_is_not_a_decode_error() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let addresses = pool.submit(allows_no_more_threads::task()).result().unwrap();
    let error = pool.submit(gives_async::task()).result().map(std::mem::forget).unwrap_err();
    assert!(matches!(error, TaskError::Refused(_)), "with {addresses} bytes: {error}");
    assert!(error.to_string().contains("no runtime for async tasks"), "{error}");
    assert!(error.to_string().contains("gives_async"), "{error}");
}

// ---- a pool that cannot go on --------------------------------------------------------------------------------------

/// Fails where it has run before.
#[task]
fn only_once(note: std::path::PathBuf) -> Result<(), String> {
    match std::fs::File::create_new(note) {
        Ok(_) => Ok(()),
        Err(_) => Err("it has run before".into()),
    }
}

#[test]
fn an_initializer_that_fails_at_a_later_restart_is_told_and_can_be_asked_for() {
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = executor::ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(only_once::task(directory.path().join("note")))
        .build()
        .unwrap();
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    assert!(pool.broken().is_none());
    assert!(pool.submit(aborts::task()).result().unwrap_err().is_worker_lost());
    let error = pool.submit(echo::task(2)).result().unwrap_err();
    assert!(error.is_broken() && error.to_string().contains("it has run before"), "{error}");
    let cause = pool.broken().unwrap();
    assert!(matches!(cause, executor::BrokenCause::Initializer(_)), "{cause}");
}
