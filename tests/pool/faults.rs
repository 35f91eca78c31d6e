//! The fault matrix: each fault at each place where code of a user runs, with each way to start
//! workers. The name of a test is its cell: `per_task::stack_overflow_at_decode_arguments`.
//!
//! Each cell asserts who was hit, and with which error; that tasks before and behind it are done;
//! that the executor goes on (or, for an initializer, that it is broken for this reason); and that
//! no process is left. [`why_not`] has the cells that cannot be, and
//! `each_cell_is_a_test_or_has_a_reason` that none is forgotten.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use executor::{
    BrokenCause, ExitStatus, Isolation, ProcessPoolBuilder, Side, StartMethod, TaskError,
    WorkerStatus, prelude::*,
};
use rustix::process::Signal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{
    self, Gate, come_to, echo, eventually, pid, runs, signal, state, tagged, watchdog,
};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Fault {
    Error,
    Panic,
    Exit0,
    Exit42,
    Abort,
    Segfault,
    Kill,
    StackOverflow,
    MemoryLimit,
}

const FAULTS: [Fault; 9] = [
    Fault::Error,
    Fault::Panic,
    Fault::Exit0,
    Fault::Exit42,
    Fault::Abort,
    Fault::Segfault,
    Fault::Kill,
    Fault::StackOverflow,
    Fault::MemoryLimit,
];

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Place {
    EncodeArguments,
    DecodeArguments,
    Run,
    EncodeResult,
    DecodeResult,
    Callback,
    Idle,
    Initializer,
    Finalizer,
    AtShutdown,
}

const PLACES: [Place; 10] = [
    Place::EncodeArguments,
    Place::DecodeArguments,
    Place::Run,
    Place::EncodeResult,
    Place::DecodeResult,
    Place::Callback,
    Place::Idle,
    Place::Initializer,
    Place::Finalizer,
    Place::AtShutdown,
];

/// Why this cell cannot be, whatever the start method is.
fn why_not(place: Place, fault: Fault) -> Option<&'static str> {
    match (place, fault) {
        (Place::Callback, Fault::Error) => Some("a callback returns nothing"),
        (Place::Idle, Fault::Error) => Some("nobody would get the error of an idle worker"),
        (Place::EncodeArguments | Place::DecodeResult | Place::Callback, Fault::MemoryLimit) => {
            Some("the limit is one of workers, and this place is in the caller's process")
        }
        (
            Place::EncodeArguments | Place::DecodeResult | Place::Callback,
            Fault::Exit0
            | Fault::Exit42
            | Fault::Abort
            | Fault::Segfault
            | Fault::Kill
            | Fault::StackOverflow,
        ) => Some("this place is in the caller's process, and the fault ends the caller's program"),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Spawn,
    ForkServer,
    PerTask,
}

/// The limit of the executors whose workers exceed it.
const LIMIT: u64 = 48 << 20;

/// Tags the processes of one test, so that none of them can be left unseen: also a fork server and
/// workers that are kept ready.
const TAG: &str = "EXECUTOR_TEST_OF_FAULTS";

/// What one test has. Its gate also keeps the notes of those who were struck.
struct Cell {
    mode: Mode,
    fault: Fault,
    gate: Gate,
    tag: String,
}

impl Cell {
    fn new(mode: Mode, fault: Fault) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Cell { mode, fault, gate: Gate::new(), tag: format!("{}-{number}", std::process::id()) }
    }

    fn builder(&self) -> ProcessPoolBuilder {
        let builder = ProcessPoolExecutor::builder().max_workers(1).env(TAG, &self.tag);
        let builder = match self.fault {
            Fault::MemoryLimit => builder.worker_memory_limit(LIMIT),
            _ => builder,
        };
        match self.mode {
            Mode::Spawn => builder.start_method(StartMethod::Spawn),
            Mode::ForkServer => builder.start_method(StartMethod::ForkServer),
            Mode::PerTask => builder.isolation(Isolation::PerTask).ready(1),
        }
    }

    fn trap(&self, place: Place) -> Trap {
        Trap { place, fault: self.fault, notes: self.gate.path().to_owned() }
    }

    /// Returns the processes that the fault has hit.
    fn struck(&self) -> Vec<u32> {
        let names = fs::read_dir(self.gate.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_prefix("struck-")?.parse().ok()).collect()
    }

    /// Returns the only process that the fault has hit.
    #[track_caller]
    fn struck_one(&self) -> u32 {
        match self.struck()[..] {
            [one] => one,
            ref others => panic!("{others:?} were hit"),
        }
    }

    /// Shuts down, and asserts that no process is left.
    #[track_caller]
    fn end(&self, pool: &ProcessPoolExecutor, workers: &[u32]) {
        pool.shutdown(true);
        let left = tagged(&format!("{TAG}={}", self.tag));
        assert!(left.is_empty(), "{left:?}");
        for worker in workers.iter().copied().chain(self.struck()) {
            // A zombie has no environment, and so no tag.
            let is_left = worker != std::process::id() && state(worker).is_some();
            assert!(!is_left, "process {worker} was not reaped");
        }
    }
}

/// Causes the fault, if this is its place.
#[derive(Clone, Serialize, Deserialize)]
#[serde(remote = "Self")]
struct Trap {
    place: Place,
    fault: Fault,
    notes: PathBuf,
}

/// The same as a result.
struct Returned(Trap);

impl Trap {
    fn at(&self, place: Place) -> Result<(), String> {
        match self.place == place {
            true => self.strike(),
            false => Ok(()),
        }
    }

    fn strike(&self) -> Result<(), String> {
        let note = format!("struck-{}", std::process::id());
        File::create(self.notes.join(note)).expect("a note");
        match self.fault {
            Fault::Error => return Err("struck".to_owned()),
            Fault::Panic => panic!("struck"),
            Fault::Exit0 => std::process::exit(0),
            Fault::Exit42 => std::process::exit(42),
            Fault::Abort => std::process::abort(),
            // SAFETY: none. It writes to address zero on purpose, and SIGSEGV ends the process.
            Fault::Segfault => unsafe {
                std::ptr::without_provenance_mut::<u8>(std::hint::black_box(0)).write_volatile(1);
            },
            Fault::Kill => {
                signal(std::process::id(), Signal::KILL);
                loop {
                    thread::park();
                }
            }
            Fault::StackOverflow => drop(deeper(1)),
            // Nobody looks at the memory of an idle worker, so only an allocation that is far too
            // large ends it.
            Fault::MemoryLimit if self.place == Place::Idle => {
                drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 31)));
            }
            // Slowly, so that the limit and not the system's refusal ends it. This sleep does not
            // enforce an order.
            Fault::MemoryLimit => loop {
                std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 20]));
                thread::sleep(Duration::from_micros(200));
            },
        }
        Ok(())
    }
}

#[expect(unconditional_recursion, reason = "it is meant to overflow the stack")]
fn deeper(level: u64) -> u64 {
    std::hint::black_box([level; 200])[0] + deeper(level + 1)
}

impl Serialize for Trap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.at(Place::EncodeArguments).map_err(serde::ser::Error::custom)?;
        Trap::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let trap = Trap::deserialize(deserializer)?;
        trap.at(Place::DecodeArguments).map_err(serde::de::Error::custom)?;
        Ok(trap)
    }
}

impl Serialize for Returned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.at(Place::EncodeResult).map_err(serde::ser::Error::custom)?;
        Trap::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Returned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let trap = Trap::deserialize(deserializer)?;
        trap.at(Place::DecodeResult).map_err(serde::de::Error::custom)?;
        Ok(Returned(trap))
    }
}

#[task]
fn spring(trap: Trap) -> Result<Returned, String> {
    trap.at(Place::Run)?;
    Ok(Returned(trap))
}

#[task]
fn spring_later(trap: Trap) -> Result<(), String> {
    come_to(&trap.notes);
    trap.at(Place::AtShutdown)
}

/// An initializer or a finalizer.
#[task]
fn spring_around(trap: Trap) -> Result<(), String> {
    trap.strike()
}

/// An initializer. In the first worker it leaves a thread behind that causes the fault when the
/// gate opens, while the worker is idle.
#[task]
fn lay_fuse(trap: Trap) {
    struct Ended(PathBuf);
    impl Drop for Ended {
        fn drop(&mut self) {
            File::create(&self.0).expect("a note");
        }
    }
    if File::create_new(trap.notes.join("laid")).is_ok() {
        thread::spawn(move || {
            let _ended = Ended(trap.notes.join("ended"));
            come_to(&trap.notes);
            let _ = trap.strike();
        });
    }
}

fn ends_worker(fault: Fault) -> bool {
    !matches!(fault, Fault::Error | Fault::Panic)
}

/// Asserts that `error` describes this fault at this place.
#[track_caller]
fn assert_blame(error: &TaskError, place: Place, fault: Fault, hit: &[u32], function: &str) {
    let text = error.to_string();
    if fault == Fault::MemoryLimit {
        let TaskError::MemoryLimit { limit, peak, .. } = error else { panic!("{error:?}") };
        assert!(*limit == LIMIT && *peak > LIMIT, "{error:?}");
        assert!(*peak < LIMIT + (256 << 20), "{error:?}");
        assert!(text.contains("memory limit exceeded") && text.contains(function), "{text}");
        return;
    }
    if !ends_worker(fault) {
        return assert_told(error, place, fault, function);
    }
    let TaskError::WorkerLost { pid, status, detail, .. } = error else { panic!("{error:?}") };
    let (expected, words): (&[ExitStatus], _) = match fault {
        Fault::Exit0 => (&[ExitStatus::Exited(0)], "exited with code 0"),
        Fault::Exit42 => (&[ExitStatus::Exited(42)], "exited with code 42"),
        Fault::Abort => (&[ExitStatus::Signaled(libc::SIGABRT)], "SIGABRT"),
        Fault::Segfault => (&[ExitStatus::Signaled(libc::SIGSEGV)], "SIGSEGV"),
        Fault::Kill => (&[ExitStatus::Signaled(libc::SIGKILL)], "SIGKILL"),
        // The standard library ends a process with the one or the other.
        _ => (
            &[ExitStatus::Signaled(libc::SIGABRT), ExitStatus::Signaled(libc::SIGSEGV)],
            "(stack overflow)",
        ),
    };
    assert!(expected.contains(status) && text.contains(words), "{text}");
    assert!(hit.contains(pid) && text.contains(&pid.to_string()), "{text}, not {hit:?}");
    assert!(detail.task == function && text.contains(&format!("`{function}`")), "{text}");
    assert_eq!(detail.killed_by_system, fault == Fault::Kill);
    assert_eq!(detail.stack_overflow, fault == Fault::StackOverflow);
}

/// The same for faults that the worker survives.
#[track_caller]
fn assert_told(error: &TaskError, place: Place, fault: Fault, function: &str) {
    let side = match place {
        Place::EncodeArguments => Side::Arguments,
        Place::DecodeArguments => Side::ArgumentsInWorker,
        Place::EncodeResult => Side::ResultInWorker,
        Place::DecodeResult => Side::Result,
        _ => {
            let remote = match (fault, error) {
                (Fault::Error, TaskError::Failed(remote)) => remote,
                (Fault::Panic, TaskError::Panicked(remote)) => remote,
                _ => panic!("{error:?}"),
            };
            assert_eq!((remote.message(), remote.task()), ("struck", function));
            let location = remote.location().unwrap_or_default();
            assert_eq!(location.starts_with("tests/pool/faults.rs:"), fault == Fault::Panic);
            return;
        }
    };
    let failure = match (side, error) {
        (Side::Arguments | Side::ResultInWorker, TaskError::Encode(failure)) => failure,
        (Side::Result | Side::ArgumentsInWorker, TaskError::Decode(failure)) => failure,
        _ => panic!("{error:?}"),
    };
    assert_eq!((failure.side(), failure.task()), (side, function));
    assert!(failure.message().contains("struck"), "{failure}");
}

/// The fault at a step of a task that has others before and behind it.
fn task(mode: Mode, place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let pool = cell.builder().build().unwrap();
    let first = pool.submit(pid::task()).result().unwrap();
    let before = [1, 2].map(|i| pool.submit(echo::task(i)));
    let struck = pool.submit(spring::task(cell.trap(place)));
    let behind = [1, 2].map(|i| pool.submit(echo::task(i)));
    let Err(error) = struck.result() else { panic!("it went by") };
    let hit = cell.struck_one();
    let here = matches!(place, Place::EncodeArguments | Place::DecodeResult);
    assert_eq!(hit == std::process::id(), here);
    assert_blame(&error, place, fault, &[hit], spring::NAME);
    for (one, other) in before.into_iter().zip(behind) {
        assert_eq!(one.result().unwrap(), other.result().unwrap());
    }
    let next = pool.submit(pid::task()).result().unwrap();
    if mode != Mode::PerTask {
        assert!(here || hit == first);
        assert_eq!(next != first, ends_worker(fault), "replaced if and only if it ended");
    }
    assert!(pool.broken().is_none());
    cell.end(&pool, &[first, next]);
}

fn callback(mode: Mode, _: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let pool = cell.builder().build().unwrap();
    let (sender, ran) = std::sync::mpsc::channel();
    let held = pool.submit(support::hold::task(cell.gate.path()));
    let worker = cell.gate.wait_for(1)[0];
    let first = sender.clone();
    held.add_done_callback(move |outcome| {
        first.send(*outcome.unwrap()).unwrap();
        // Like `panic!`, but without the panic hook, which would print it.
        std::panic::resume_unwind(Box::new("struck"));
    });
    held.add_done_callback(move |outcome| sender.send(*outcome.unwrap()).unwrap());
    cell.gate.open();
    assert_eq!(held.result().unwrap(), worker);
    assert_eq!(pool.submit(echo::task(3)).result().unwrap(), 3, "the executor goes on");
    cell.end(&pool, &[worker]);
    assert_eq!(ran.iter().collect::<Vec<_>>(), [worker, worker], "each callback ran once");
}

fn idle(mode: Mode, place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let pool = cell.builder().initializer(lay_fuse::task(cell.trap(place))).build().unwrap();
    // With one worker for each task, it is the one that is kept ready.
    if mode != Mode::PerTask {
        pool.submit(echo::task(1)).result().unwrap();
    }
    let worker = cell.gate.wait_for(1)[0];
    // The thread may come to the gate before its initializer has ended.
    eventually("the worker is idle", || {
        let workers = pool.worker_stats();
        workers.iter().any(|one| one.pid == Some(worker) && one.status == WorkerStatus::Idle)
    });
    cell.gate.open();
    match ends_worker(fault) {
        true => eventually("the idle worker has ended", || !runs(worker)),
        false => eventually("the thread has ended", || cell.gate.file("ended").exists()),
    }
    let next = pool.submit(pid::task()).result().unwrap();
    assert_eq!(next != worker, ends_worker(fault), "replaced if and only if it ended");
    assert_eq!(cell.struck_one(), worker);
    assert!(pool.broken().is_none());
    cell.end(&pool, &[worker, next]);
}

fn initializer(mode: Mode, place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let pool = cell.builder().initializer(spring_around::task(cell.trap(place))).build().unwrap();
    let assert_cause = |cause: &BrokenCause, hit: &[u32]| match cause {
        BrokenCause::Initializer(error) => {
            assert_blame(error, place, fault, hit, spring_around::NAME);
        }
        other => panic!("{other:?}"),
    };
    for future in [(); 3].map(|()| pool.submit(pid::task())) {
        match future.result() {
            Err(TaskError::Broken(cause)) => assert_cause(&cause, &cell.struck()),
            other => panic!("{other:?}"),
        }
    }
    assert_cause(&pool.broken().expect("it cannot go on"), &cell.struck());
    cell.end(&pool, &[]);
}

fn finalizer(mode: Mode, place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let builder = cell.builder().finalizer(spring_around::task(cell.trap(place)));
    let pool = match mode {
        Mode::PerTask => builder,
        Mode::Spawn | Mode::ForkServer => builder.max_tasks_per_worker(1),
    };
    let pool = pool.build().unwrap();
    let workers = [(); 3].map(|()| pool.submit(pid::task())).map(|task| task.result().unwrap());
    assert!(pool.broken().is_none());
    cell.end(&pool, &workers);
    let struck = cell.struck();
    assert!(workers.iter().all(|worker| struck.contains(worker)), "{struck:?}, not {workers:?}");
    let results = pool.finalizer_results::<spring_around>();
    assert_eq!(results.len(), struck.len(), "one from each");
    for result in results {
        assert_blame(&result.unwrap_err(), place, fault, &struck, spring_around::NAME);
    }
}

/// A task is struck while a shutdown waits for it and for those behind it.
fn at_shutdown(mode: Mode, place: Place, fault: Fault) {
    let _watchdog = watchdog();
    let cell = Cell::new(mode, fault);
    let pool = cell.builder().build().unwrap();
    let struck = pool.submit(spring_later::task(cell.trap(place)));
    let behind = [1, 2].map(|i| pool.submit(echo::task(i)));
    let worker = cell.gate.wait_for(1)[0];
    pool.shutdown(false);
    cell.gate.open();
    cell.end(&pool, &[worker]);
    assert!(struck.done() && behind.iter().all(|future| future.done()));
    let error = struck.result().unwrap_err();
    assert_blame(&error, place, fault, &[worker], spring_later::NAME);
    assert_eq!(cell.struck_one(), worker);
    assert_eq!(behind.map(|future| future.result().unwrap()), [1, 2]);
}

macro_rules! matrix {
    ($($name:ident: $check:ident($place:ident, $fault:ident);)*) => {
        const CELLS: &[(Place, Fault)] = &[$((Place::$place, Fault::$fault)),*];

        mod spawn {
            use super::*;
            $(#[test] fn $name() { $check(Mode::Spawn, Place::$place, Fault::$fault) })*
        }

        mod fork_server {
            use super::*;
            $(#[test] fn $name() { $check(Mode::ForkServer, Place::$place, Fault::$fault) })*
        }

        mod per_task {
            use super::*;
            $(#[test] fn $name() { $check(Mode::PerTask, Place::$place, Fault::$fault) })*
        }
    };
}

matrix! {
    error_at_encode_arguments: task(EncodeArguments, Error);
    panic_at_encode_arguments: task(EncodeArguments, Panic);

    error_at_decode_arguments: task(DecodeArguments, Error);
    panic_at_decode_arguments: task(DecodeArguments, Panic);
    exit_0_at_decode_arguments: task(DecodeArguments, Exit0);
    exit_42_at_decode_arguments: task(DecodeArguments, Exit42);
    abort_at_decode_arguments: task(DecodeArguments, Abort);
    segfault_at_decode_arguments: task(DecodeArguments, Segfault);
    kill_at_decode_arguments: task(DecodeArguments, Kill);
    stack_overflow_at_decode_arguments: task(DecodeArguments, StackOverflow);
    memory_limit_at_decode_arguments: task(DecodeArguments, MemoryLimit);

    error_at_run: task(Run, Error);
    panic_at_run: task(Run, Panic);
    exit_0_at_run: task(Run, Exit0);
    exit_42_at_run: task(Run, Exit42);
    abort_at_run: task(Run, Abort);
    segfault_at_run: task(Run, Segfault);
    kill_at_run: task(Run, Kill);
    stack_overflow_at_run: task(Run, StackOverflow);
    memory_limit_at_run: task(Run, MemoryLimit);

    error_at_encode_result: task(EncodeResult, Error);
    panic_at_encode_result: task(EncodeResult, Panic);
    exit_0_at_encode_result: task(EncodeResult, Exit0);
    exit_42_at_encode_result: task(EncodeResult, Exit42);
    abort_at_encode_result: task(EncodeResult, Abort);
    segfault_at_encode_result: task(EncodeResult, Segfault);
    kill_at_encode_result: task(EncodeResult, Kill);
    stack_overflow_at_encode_result: task(EncodeResult, StackOverflow);
    memory_limit_at_encode_result: task(EncodeResult, MemoryLimit);

    error_at_decode_result: task(DecodeResult, Error);
    panic_at_decode_result: task(DecodeResult, Panic);

    panic_at_callback: callback(Callback, Panic);

    panic_at_idle: idle(Idle, Panic);
    exit_0_at_idle: idle(Idle, Exit0);
    exit_42_at_idle: idle(Idle, Exit42);
    abort_at_idle: idle(Idle, Abort);
    segfault_at_idle: idle(Idle, Segfault);
    kill_at_idle: idle(Idle, Kill);
    stack_overflow_at_idle: idle(Idle, StackOverflow);
    memory_limit_at_idle: idle(Idle, MemoryLimit);

    error_at_initializer: initializer(Initializer, Error);
    panic_at_initializer: initializer(Initializer, Panic);
    exit_0_at_initializer: initializer(Initializer, Exit0);
    exit_42_at_initializer: initializer(Initializer, Exit42);
    abort_at_initializer: initializer(Initializer, Abort);
    segfault_at_initializer: initializer(Initializer, Segfault);
    kill_at_initializer: initializer(Initializer, Kill);
    stack_overflow_at_initializer: initializer(Initializer, StackOverflow);
    memory_limit_at_initializer: initializer(Initializer, MemoryLimit);

    error_at_finalizer: finalizer(Finalizer, Error);
    panic_at_finalizer: finalizer(Finalizer, Panic);
    exit_0_at_finalizer: finalizer(Finalizer, Exit0);
    exit_42_at_finalizer: finalizer(Finalizer, Exit42);
    abort_at_finalizer: finalizer(Finalizer, Abort);
    segfault_at_finalizer: finalizer(Finalizer, Segfault);
    kill_at_finalizer: finalizer(Finalizer, Kill);
    stack_overflow_at_finalizer: finalizer(Finalizer, StackOverflow);
    memory_limit_at_finalizer: finalizer(Finalizer, MemoryLimit);

    error_at_shutdown: at_shutdown(AtShutdown, Error);
    panic_at_shutdown: at_shutdown(AtShutdown, Panic);
    exit_0_at_shutdown: at_shutdown(AtShutdown, Exit0);
    exit_42_at_shutdown: at_shutdown(AtShutdown, Exit42);
    abort_at_shutdown: at_shutdown(AtShutdown, Abort);
    segfault_at_shutdown: at_shutdown(AtShutdown, Segfault);
    kill_at_shutdown: at_shutdown(AtShutdown, Kill);
    stack_overflow_at_shutdown: at_shutdown(AtShutdown, StackOverflow);
    memory_limit_at_shutdown: at_shutdown(AtShutdown, MemoryLimit);
}

#[test]
fn each_cell_is_a_test_or_has_a_reason() {
    for place in PLACES {
        for fault in FAULTS {
            let tests = CELLS.iter().filter(|cell| **cell == (place, fault)).count();
            let expected = usize::from(why_not(place, fault).is_none());
            assert_eq!(tests, expected, "{fault:?} at {place:?}");
        }
    }
}
