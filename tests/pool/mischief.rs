//! Harm that a task may do to its worker, and the error that its caller gets.

use std::{fs, path::Path, process::Command, time::Duration};

use executor::{BrokenCause, BuildError, ExitStatus, Phase, TaskError, prelude::*};
use rustix::process::Signal;

use crate::support::{
    Gate, come_to, echo, eventually, exit, hold, pid, pool, rounds, runs, signal, spin, state,
    stop, watchdog, with_a_timeout_long_enough,
};

/// Asserts that the pool still works, by running another task.
#[track_caller]
fn assert_whole(pool: &ProcessPoolExecutor) {
    assert_eq!(pool.submit(echo::task(42)).result().unwrap(), 42);
}

#[task]
fn panic_with(message: String) {
    panic!("{message}")
}

#[test]
fn a_panic_is_reported_with_its_message_and_location() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let long = "x".repeat(100_000);
    for message in ["", "boom", "two\nlines", &long] {
        let line = "tests/pool/mischief.rs:";
        let Err(TaskError::Panicked(error)) =
            pool.submit(panic_with::task(message.into())).result()
        else {
            panic!("it came back")
        };
        assert_eq!(error.message(), message);
        assert!(error.location().unwrap().starts_with(line), "{error:?}");
        assert!(error.task().ends_with("panic_with"));
    }
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker, "the worker lives on");
}

#[task]
fn panic_where_unwinding_is_not_possible() {
    extern "C" fn callback() {
        panic!("within C");
    }
    callback();
}

#[task]
fn panic_in_a_drop_of_a_panic() {
    struct Second;
    impl Drop for Second {
        fn drop(&mut self) {
            panic!("the second");
        }
    }
    let _second = Second;
    panic!("the first");
}

#[test]
fn a_panic_that_aborts_is_still_reported_as_a_panic() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let Err(TaskError::Panicked(error)) =
        pool.submit(panic_where_unwinding_is_not_possible::task()).result()
    else {
        panic!("it came back")
    };
    assert_eq!(error.message(), "within C");
    assert!(error.location().unwrap().starts_with("tests/pool/mischief.rs:"));
    let Err(TaskError::Panicked(error)) = pool.submit(panic_in_a_drop_of_a_panic::task()).result()
    else {
        panic!("it came back")
    };
    assert!(["the first", "the second"].contains(&error.message()), "{error:?}");
    assert_whole(&pool);
}

#[task]
fn catch_a_panic_then_dive() -> u64 {
    let _ = std::panic::catch_unwind(|| panic!("caught"));
    dive(0)
}

#[test]
fn a_caught_panic_is_not_blamed_for_a_later_stack_overflow() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(catch_a_panic_then_dive::task()).result().unwrap_err();
    let TaskError::WorkerLost { detail, .. } = &error else { panic!("{error:?}") };
    assert!(detail.stack_overflow, "{error}");
    assert_whole(&pool);
}

#[test]
fn a_worker_that_exits_with_code_zero_is_lost_too() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(exit::task(0)).result().unwrap_err();
    let TaskError::WorkerLost { status, .. } = &error else { panic!("{error:?}") };
    assert!(status.success());
    assert!(error.to_string().contains("exited with code 0"), "{error}");
    assert_whole(&pool);
}

#[task]
fn dive(level: u64) -> u64 {
    #[expect(unconditional_recursion, reason = "it is meant to overflow the stack")]
    fn deeper(level: u64) -> u64 {
        std::hint::black_box([level; 200])[0] + deeper(level + 1)
    }
    deeper(level)
}

#[test]
fn a_stack_overflow_is_reported_as_one() {
    let _watchdog = watchdog();
    let small =
        ProcessPoolExecutor::builder().max_workers(1).stack_size(256 << 10).build().unwrap();
    for pool in [pool(1), small] {
        let error = pool.submit(dive::task(0)).result().unwrap_err();
        let TaskError::WorkerLost { status, detail, .. } = &error else { panic!("{error:?}") };
        assert!(detail.stack_overflow, "{error}");
        assert!([Some(libc::SIGABRT), Some(libc::SIGSEGV)].contains(&status.signal()), "{status}");
        assert!(error.to_string().contains("stack overflow"), "{error}");
        assert_whole(&pool);
    }
}

#[test]
fn a_stopped_worker_is_killed_when_its_task_times_out() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let (limit, error) = with_a_timeout_long_enough("it is stopped", |limit| {
        let future = pool.submit(hold::task(gate.path()).timeout(limit));
        let behind = pool.submit(echo::task(1));
        // If the worker was killed before it came to the gate or before it stopped, this attempt
        // did not test the case.
        let arrivals = gate.arrivals();
        while gate.arrivals().len() == arrivals.len() && !future.done() {
            std::thread::yield_now();
        }
        let worker = gate.arrivals().into_iter().find(|worker| !arrivals.contains(worker))?;
        let stopped = rustix::process::kill_process(
            rustix::process::Pid::from_raw(worker as i32).unwrap(),
            Signal::STOP,
        );
        stopped.ok()?;
        eventually("it stands still or is gone", || {
            matches!(state(worker), Some('T' | 'Z') | None)
        });
        let stands_still = state(worker) == Some('T');
        let error = future.result().unwrap_err();
        assert_eq!(behind.result().unwrap(), 1);
        assert_eq!(state(worker), None, "dead and reaped");
        stands_still.then_some((limit, error))
    });
    assert!(
        matches!(error, TaskError::TimedOut { limit: told, phase: Phase::Run, .. } if told == limit),
        "{error:?}"
    );
}

#[test]
fn a_busy_loop_is_ended_by_a_timeout_and_by_cancel_running() {
    let _watchdog = watchdog();
    // The task with the timeout may be ended before it comes to its gate.
    let (pool, early, gate) = (pool(1), Gate::new(), Gate::new());
    let late = pool.submit(spin::task(early.path()).timeout(Duration::from_millis(50)));
    assert!(late.result().unwrap_err().is_timeout());
    let cancelled = pool.submit(spin::task(gate.path()));
    gate.wait_for(1);
    assert!(cancelled.cancel_running());
    assert!(cancelled.result().unwrap_err().is_cancelled());
    assert_whole(&pool);
    assert!(early.arrivals().into_iter().chain(gate.arrivals()).all(|worker| !runs(worker)));
}

#[test]
fn a_worker_that_was_stopped_for_a_while_goes_on() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    stop(worker);
    // This is more than the worker's window of sent tasks takes. `submit` does not block.
    let more: Vec<_> = (0..10).map(|_| pool.submit(length::task(vec![0; 1 << 20]))).collect();
    gate.open();
    signal(worker, Signal::CONT);
    assert_eq!(future.result().unwrap(), worker);
    assert!(more.into_iter().all(|future| future.result().unwrap() == 1 << 20));
}

#[task]
fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// Starts two programs, a child and its child, and writes their pids to files.
#[task]
#[expect(clippy::zombie_processes, reason = "they are to outlive the task, if it does not wait")]
fn start_programs(gate: &Path, wait: bool) {
    let script = "sleep 1000 & echo $! > \"$0/grandchild\"; mv \"$0/grandchild\" \"$0/kin\"; wait";
    let mut child = Command::new("sh").arg("-c").arg(script).arg(gate).spawn().expect("sh");
    fs::write(gate.join("child"), child.id().to_string()).expect("a note");
    if wait {
        child.wait().expect("it was started");
    }
}

/// Returns the pid that `start_programs` wrote for one of its programs.
fn started(gate: &Gate, name: &str) -> Option<u32> {
    fs::read_to_string(gate.file(name)).ok()?.trim().parse().ok()
}

#[test]
fn programs_that_a_task_started_end_with_its_worker() {
    let _watchdog = watchdog();
    for how in ["kill", "timeout", "cancel", "terminate", "shutdown"] {
        if how == "timeout" {
            with_a_timeout_long_enough("the programs are there", |limit| {
                let (pool, gate) = (pool(1), Gate::new());
                let late = pool.submit(start_programs::task(gate.path(), true).timeout(limit));
                assert!(late.result().unwrap_err().is_timeout());
                let started = [started(&gate, "child")?, started(&gate, "kin")?];
                eventually("timeout: the programs are gone", || !started.into_iter().any(runs));
                Some(())
            });
            continue;
        }
        let (pool, gate) = (pool(1), Gate::new());
        let future = pool.submit(start_programs::task(gate.path(), how != "shutdown"));
        let started = ["child", "kin"].map(|name| {
            eventually("the programs are there", || started(&gate, name).is_some());
            started(&gate, name).unwrap()
        });
        match how {
            "kill" => signal(pool.worker_pids()[0], Signal::KILL),
            "cancel" => assert!(future.cancel_running()),
            "terminate" => pool.terminate_workers(),
            // The task has returned and left its programs running. They end with the worker.
            "shutdown" => pool.shutdown(true),
            other => unreachable!("{other}"),
        }
        assert_eq!(future.result().is_ok(), how == "shutdown", "{how}");
        eventually(&format!("{how}: the programs are gone"), || !started.into_iter().any(runs));
    }
}

/// Forks by hand and aborts. The copy keeps everything open that the worker had open.
#[task]
fn fork_and_die(gate: &Path) {
    // SAFETY: the child only sleeps.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: only waits for a signal.
            unsafe { libc::pause() };
        },
        child => {
            fs::write(gate.join("child"), child.to_string()).expect("a note");
            std::process::abort();
        }
    }
}

#[test]
fn a_forked_copy_of_a_dead_worker_blocks_nothing() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let Err(TaskError::WorkerLost { status, .. }) =
        pool.submit(fork_and_die::task(gate.path())).result()
    else {
        panic!("it came back")
    };
    assert_eq!(status, ExitStatus::Signaled(libc::SIGABRT));
    let child = fs::read_to_string(gate.file("child")).unwrap().parse().unwrap();
    eventually("the copy is gone", || !runs(child));
    assert_whole(&pool);
}

/// Closes descriptors that it does not own.
#[task]
fn close_everything() -> u64 {
    for fd in 3..100 {
        // SAFETY: none. It takes descriptors away from their owners, on purpose.
        unsafe { libc::close(fd) };
    }
    1
}

#[test]
fn a_worker_that_closes_every_descriptor_goes_on_or_is_replaced() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let closed = pool.submit(close_everything::task()).result();
    let after = pool.submit(pid::task()).result().unwrap();
    if std::env::var_os("EXECUTOR_TRANSPORT").is_some_and(|name| name == "ipc") {
        // With ipc-channel, the channels themselves are descriptors.
        assert!(closed.as_ref().is_err_and(TaskError::is_worker_lost), "{closed:?}");
        assert_ne!(after, worker);
    } else {
        // Shared memory stays mapped.
        assert_eq!((closed.unwrap(), after), (1, worker));
    }
}

// ---- nesting ------------------------------------------------------------------------------------

#[task]
fn nest(levels: u32) -> Result<u32, String> {
    if levels == 0 {
        return Ok(0);
    }
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .build()
        .map_err(|error| format!("build: {error}"))?;
    pool.submit(nest::task(levels - 1))
        .result()
        .map(|below| below + 1)
        .map_err(|error| error.to_string())
}

#[test]
fn executors_can_be_nested_ten_deep() {
    let _watchdog = watchdog();
    assert_eq!(pool(1).submit(nest::task(9)).result().unwrap(), 9);
}

#[test]
fn endless_nesting_of_executors_is_an_error() {
    let _watchdog = watchdog();
    let error = pool(1).submit(nest::task(u32::MAX)).result().unwrap_err();
    assert!(error.is_failed());
    assert!(error.to_string().contains("nested 11 deep, 10 is the limit"), "{error}");
}

#[task]
fn too_deep() -> bool {
    matches!(ProcessPoolExecutor::new(), Err(BuildError::TooDeep { .. }))
}

#[test]
fn one_level_of_nesting_is_allowed() {
    let _watchdog = watchdog();
    assert!(!pool(1).submit(too_deep::task()).result().unwrap());
}

#[test]
fn cancelling_a_task_just_submitted_affects_no_other_task() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Keeps the pool busy with requests, so that new tasks wait in the pool's intake.
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                pool.worker_pids();
            }
        });
        for round in 0..rounds() as u64 {
            let before = pool.submit(echo::task(round));
            let late = pool.submit(echo::task(round));
            let cancelled = late.cancel_running();
            assert_eq!(late.result().is_err_and(|error| error.is_cancelled()), cancelled);
            let before = before.result();
            if before.as_ref().ok() != Some(&round) {
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("round {round}: {before:?}");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_pool_used_from_many_threads_while_its_workers_are_killed_keeps_working() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let done = &std::sync::atomic::AtomicBool::new(false);
    let kills = &std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        let killer = scope.spawn({
            let pool = pool.clone();
            move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for worker in pool.worker_pids() {
                        let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
                        // The worker may have ended and been reaped meanwhile.
                        if rustix::process::kill_process(pid, Signal::KILL).is_ok() {
                            kills.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
        });
        let submitting: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    // On a busy machine all tasks might be done before the first worker is killed.
                    let more = |value| {
                        value < 300 || kills.load(std::sync::atomic::Ordering::Relaxed) == 0
                    };
                    for value in (0..).take_while(|value| more(*value)) {
                        match pool.submit(echo::task(value)).result() {
                            Ok(came) => assert_eq!(came, value),
                            Err(TaskError::WorkerLost { status, .. }) => {
                                assert_eq!(status, ExitStatus::Signaled(libc::SIGKILL));
                            }
                            // All replacements were killed before they had started.
                            Err(TaskError::Broken(BrokenCause::NoEntry { status })) => {
                                assert_eq!(status, ExitStatus::Signaled(libc::SIGKILL));
                            }
                            Err(TaskError::Broken(BrokenCause::Start(text))) => {
                                assert!(text.contains("SIGKILL"), "{text}");
                            }
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        submitting.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        killer.join().unwrap();
    });
    pool.shutdown(true);
}

/// Starts a program that leaves the process group which is killed with the worker. The program may
/// survive, but nothing may wait for it.
#[task]
#[expect(clippy::zombie_processes, reason = "its parent, the worker, is killed")]
fn leave_the_group(gate: &Path) {
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec setsid sleep 1000").stdin(std::process::Stdio::null());
    let child = command.spawn().expect("setsid");
    fs::write(gate.join("child"), child.id().to_string()).expect("a note");
    come_to(gate);
}

#[test]
fn a_program_that_left_the_workers_process_group_blocks_nothing() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let future = pool.submit(leave_the_group::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    let child: u32 = fs::read_to_string(gate.file("child")).unwrap().parse().unwrap();
    // In a session of its own, the program is out of reach of the executor's signals.
    eventually("it is sleep", || {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "sleep")
    });
    signal(worker, Signal::KILL);
    assert!(future.result().unwrap_err().is_worker_lost());
    assert_whole(&pool);
    pool.shutdown(true);
    assert_eq!(state(worker), None);
    if runs(child) {
        signal(child, Signal::KILL);
    }
}
