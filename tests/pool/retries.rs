//! Tasks that are tried again: `retries`, `retry_on`, `retry_delay`, `poison_limit`.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use executor::{Process, StartError, prelude::*};

use crate::support::*;

/// What an attempt does.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Way {
    Returns,
    Fails,
    Panics,
    Exits,
    Hangs,
}

/// Does at each attempt what the list says, and notes the attempt.
#[task]
fn attempt(notes: PathBuf, ways: Vec<Way>) -> Result<usize, String> {
    use std::io::Write;
    let before = support_notes(&notes);
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(notes).unwrap();
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
    match ways[before] {
        Way::Returns => Ok(before + 1),
        Way::Fails => Err(format!("attempt {}", before + 1)),
        Way::Panics => panic!("attempt {}", before + 1),
        Way::Exits => std::process::exit(7),
        Way::Hangs => loop {
            std::thread::park();
        },
    }
}

fn support_notes(file: &Path) -> usize {
    notes(file).len()
}

const NO_DELAY: Duration = Duration::ZERO;

#[test]
fn x37_a_task_is_tried_again_after_every_way_to_fail_and_then_returns() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let ways = [Way::Fails, Way::Panics, Way::Exits, Way::Hangs, Way::Exits, Way::Returns];
    with_a_timeout_long_enough("an attempt ends in its own way", |timeout| {
        let file = gate.file(&format!("notes-{timeout:?}"));
        let task = attempt::task(file.clone(), ways.to_vec()).timeout(timeout);
        let future = pool.submit(task.retries(5).retry_delay(NO_DELAY));
        let returned = future.result().ok()?;
        assert_eq!((returned, notes(&file).len()), (6, 6));
        Some(())
    });
}

#[test]
fn x37_the_last_error_says_how_many_attempts_there_were() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let run = |way: Way, retries: u32| {
        let file = gate.file(&format!("{way:?}-{retries}"));
        let task = attempt::task(file.clone(), vec![way; 9]);
        let error = pool
            .submit(task.retries(retries).retry_delay(NO_DELAY).name("the task"))
            .result()
            .unwrap_err();
        assert_eq!(error.attempts(), retries + 1, "{error}");
        assert_eq!(notes(&file).len() as u32, retries + 1);
        error.to_string()
    };
    assert_eq!(run(Way::Fails, 0), "task `the task` failed: attempt 1");
    assert_eq!(run(Way::Fails, 3), "task `the task` failed: attempt 4 (after 4 attempts)");
    let panicked = run(Way::Panics, 1);
    assert!(panicked.ends_with("attempt 2 (after 2 attempts)"), "{panicked}");
    let lost = run(Way::Exits, 1);
    assert!(lost.contains("exited with code 7") && lost.ends_with("(after 2 attempts)"), "{lost}");
}

#[test]
fn a_time_limit_is_for_each_attempt() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    with_a_timeout_long_enough("an attempt begins", |timeout| {
        let file = gate.file(&format!("notes-{timeout:?}"));
        let task = attempt::task(file.clone(), vec![Way::Hangs; 9]).timeout(timeout);
        let error = pool.submit(task.retries(2).retry_delay(NO_DELAY)).result().unwrap_err();
        assert!(error.is_timeout() && error.attempts() == 3, "{error}");
        // Each attempt began, unless it was killed before it could write its note.
        (notes(&file).len() == 3).then_some(())
    });
}

#[test]
fn what_cannot_pass_is_not_tried_again() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = || {
        let asked = Arc::clone(&asked);
        move |_: &TaskError| {
            asked.fetch_add(1, Ordering::SeqCst);
            true
        }
    };
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let soon = Duration::from_millis(20);
    let waited = pool.submit(echo::task(1).queue_timeout(soon).retries(5).retry_on(counted()));
    let error = waited.result().unwrap_err();
    assert!(error.is_timeout() && error.attempts() == 1, "{error}");
    let cancelled = pool.submit(echo::task(1).retries(5).retry_on(counted()));
    assert!(cancelled.cancel());
    assert!(cancelled.result().unwrap_err().is_cancelled());
    gate.open();
    held.result().unwrap();
    let gate = Gate::new();
    let running = pool.submit(hold::task(gate.path()).retries(5).retry_on(counted()));
    gate.wait_for(1);
    assert!(running.cancel_running());
    assert!(running.result().unwrap_err().is_cancelled());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn x37_retry_on_sees_each_error_that_has_an_attempt_left() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let file = gate.file("notes");
    let task = attempt::task(file.clone(), vec![Way::Fails; 9]).retries(5).retry_delay(NO_DELAY);
    let errors = Arc::clone(&seen);
    let task = task.retry_on(move |error| {
        errors.lock().unwrap().push(error.attempts());
        !error.to_string().contains("attempt 3")
    });
    let error = pool.submit(task).result().unwrap_err();
    assert_eq!(error.attempts(), 3);
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
    // Its panic is a no.
    let task = attempt::task(gate.file("other"), vec![Way::Fails; 9]).retries(5);
    let error = pool.submit(task.retry_on(|_| panic!("on purpose"))).result().unwrap_err();
    assert_eq!(error.attempts(), 1);
    assert!(error.is_failed());
    // It may call the library.
    let inner = pool.clone();
    let task = attempt::task(gate.file("third"), vec![Way::Fails, Way::Returns]).retries(5);
    let task = task.retry_delay(NO_DELAY).retry_on(move |_| {
        drop(inner.submit(echo::task(1)));
        true
    });
    assert_eq!(pool.submit(task).result().unwrap(), 2);
}

#[test]
fn x38_a_task_that_ends_worker_after_worker_is_given_up() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let builder = || ProcessPoolExecutor::builder().max_workers(2);
    for (limit, pool) in
        [(3, builder().build().unwrap()), (2, builder().poison_limit(2).build().unwrap())]
    {
        let file = gate.file(&format!("notes-{limit}"));
        let task =
            attempt::task(file.clone(), vec![Way::Exits; 20]).retries(19).retry_delay(NO_DELAY);
        let innocent: Vec<_> = (0..20).map(|n| pool.submit(echo::task(n))).collect();
        let error = pool.submit(task).result().unwrap_err();
        assert!(error.is_worker_lost() && error.attempts() == limit, "{error}");
        assert!(error.to_string().contains("poison_limit"), "{error}");
        assert_eq!(notes(&file).len() as u32, limit);
        for (n, future) in (0..).zip(innocent) {
            assert_eq!(future.result().unwrap(), n);
        }
    }
    // Errors do not count as lost workers.
    let task =
        attempt::task(gate.file("errors"), [vec![Way::Fails; 7], vec![Way::Returns]].concat());
    let pool = builder().build().unwrap();
    assert_eq!(pool.submit(task.retries(7).retry_delay(NO_DELAY)).result().unwrap(), 8);
}

#[test]
fn x37_a_task_between_two_attempts_is_cancelled_at_once() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let long = Duration::from_secs(3600);
    let task = |name: &str| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let task = attempt::task(gate.file(name), vec![Way::Fails; 9]).retries(5);
        (task.retry_delay(long).retry_on(move |_| sender.send(()).is_ok()), receiver)
    };
    let (first, receiver) = task("cancel");
    let future = pool.submit(first);
    receiver.recv().unwrap();
    assert!(!future.done() && !future.running());
    assert!(future.cancel());
    assert!(future.result().unwrap_err().is_cancelled());
    let (second, receiver) = task("cancel_running");
    let future = pool.submit(second);
    receiver.recv().unwrap();
    assert!(future.cancel_running());
    assert!(future.result().unwrap_err().is_cancelled());
    let item =
        |()| attempt::task(gate.file("map"), vec![Way::Fails; 9]).retries(5).retry_delay(long);
    let mut map = pool.map(item, [(), ()]).timeout(Duration::from_millis(30));
    assert!(map.next().unwrap().unwrap_err().is_timeout());
    let (last, receiver) = task("shutdown");
    let future = pool.submit(last);
    receiver.recv().unwrap();
    pool.shutdown_with(executor::ShutdownOptions::new().cancel_pending(true));
    assert!(future.result().unwrap_err().is_cancelled());
}

#[test]
fn a_shutdown_that_cancels_what_is_pending_begins_no_attempt() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    let task = hold_and_fail::task(gate.path()).retries(5).retry_delay(Duration::from_secs(3600));
    let future = pool.submit(task.retry_on(move |_| asks.fetch_add(1, Ordering::SeqCst) == 0));
    gate.wait_for(1);
    pool.shutdown_with(executor::ShutdownOptions::new().wait(false).cancel_pending(true));
    gate.open();
    pool.shutdown(true);
    let error = future.result().unwrap_err();
    assert!(error.is_failed() && error.attempts() == 1, "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_shutdown_finishes_all_attempts_and_a_kill_ends_them() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let ways = vec![Way::Fails, Way::Exits, Way::Fails, Way::Returns];
    let first = pool(1);
    let task = attempt::task(gate.file("finished"), ways.clone()).retries(3);
    let future = first.submit(task.retry_delay(Duration::from_millis(20)));
    first.shutdown(true);
    assert!(future.done());
    assert_eq!(future.result().unwrap(), 4);

    let (sender, receiver) = std::sync::mpsc::channel();
    let second = pool(1);
    let task = attempt::task(gate.file("killed"), ways).retries(3);
    let task = task.retry_delay(Duration::from_secs(3600));
    let future = second.submit(task.retry_on(move |_| sender.send(()).is_ok()));
    receiver.recv().unwrap();
    second.kill_workers();
    assert!(future.result().unwrap_err().is_shutdown());
    second.shutdown(true);
}

#[test]
fn x37_items_of_a_map_are_tried_again_one_by_one() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let ways = |n: usize| match n % 4 {
        0 => vec![Way::Returns],
        1 => vec![Way::Fails, Way::Exits, Way::Returns],
        2 => vec![Way::Panics, Way::Returns],
        _ => vec![Way::Fails; 3],
    };
    let task = |n: usize| {
        let task = attempt::task(gate.file(&format!("item-{n}")), ways(n));
        task.retries(2).retry_delay(Duration::from_millis(1))
    };
    let results: Vec<_> = pool.map(task, 0..40).collect();
    for (n, result) in results.into_iter().enumerate() {
        match n % 4 {
            3 => assert_eq!(result.unwrap_err().attempts(), 3),
            kind => assert_eq!(result.unwrap(), [1, 3, 2][kind]),
        }
    }
}

#[test]
fn arguments_in_shared_memory_and_descriptors_are_there_at_each_attempt() {
    #[task]
    fn read_twice(notes: PathBuf, shared: executor::SharedBytes, large: &[u8]) -> usize {
        let before = support_notes(&notes);
        std::fs::write(notes, format!("{}1\n", "1\n".repeat(before))).unwrap();
        let sum = shared.iter().chain(large).filter(|byte| **byte == 7).count();
        if before < 2 {
            std::process::abort();
        }
        sum
    }

    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = ProcessPoolExecutor::builder().max_workers(1).max_pending(1).build().unwrap();
    let shared = executor::SharedBytes::from(vec![7; 100_000]);
    let task = read_twice::task(gate.file("notes"), shared, &vec![7; 1 << 20]).encode();
    let future = pool.submit(task.retries(2).retry_delay(NO_DELAY));
    assert_eq!(future.result().unwrap(), 100_000 + (1 << 20));
    assert!(pool.try_submit(echo::task(1)).is_ok(), "it has given its place back");
}

#[test]
fn retries_are_refused_where_a_task_runs_once_and_other_options_need_them() {
    match Process::new(pid::task().retries(1).name("mine")).start() {
        Err(StartError::Invalid(text)) => {
            assert!(text.contains("`mine`") && text.contains("`retries`"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    match ProcessPoolExecutor::builder().initializer(pid::task().retries(1)).build() {
        Err(executor::BuildError::Invalid(text)) => assert!(text.contains("`retries`"), "{text}"),
        other => panic!("{other:?}"),
    }
    let _watchdog = watchdog();
    let pool = pool(1);
    for task in [pid::task().retry_on(|_| true), pid::task().retry_delay(NO_DELAY)] {
        let error = pool.submit(task).result().unwrap_err();
        assert!(matches!(&error, TaskError::Invalid(text) if text.contains("retries")), "{error}");
    }
    let worker = pool.submit(pid::task().retries(0)).result().unwrap();
    assert_eq!(pool.worker_pids(), [worker]);
}

#[test]
fn more_retries_than_are_counted_are_as_many_as_are_counted() {
    // A count that stops at its maximum, below the number, would try for ever.
    for (given, kept) in [(65_535, 65_535), (65_536, 65_535), (u32::MAX, 65_535), (7, 7)] {
        let text = format!("{:?}", pid::task().retries(given));
        assert!(text.contains(&format!("retries: Some({kept})")), "{text}");
    }
}
