//! Time limits of tasks: on waiting for a worker and on running, of a task and of a whole pool.

use std::time::{Duration, Instant};

use executor::{Context, Phase, Pool, Process, StartError, StartMethod, prelude::*};

use crate::support::*;

const SOON: Duration = Duration::from_millis(30);

/// Returns the limit and the phase of a time-out.
fn passed<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> (Duration, Phase) {
    match outcome.unwrap_err() {
        TaskError::TimedOut { limit, phase, .. } => (limit, phase),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_that_has_waited_for_too_long_never_runs() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let first = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1);
    let begin = Instant::now();
    let late = pool.submit(note::task(gate.file("notes"), 1).queue_timeout(SOON).name("the note"));
    let patient = pool.submit(note::task(gate.file("notes"), 2));
    let error = late.result().unwrap_err();
    assert!(begin.elapsed() >= SOON);
    let text = error.to_string();
    assert_eq!(
        text,
        "task `the note` timed out: the limit on waiting for a worker of 30ms has passed"
    );
    assert_eq!(passed(Err::<(), _>(error)), (SOON, Phase::Queue));
    gate.open();
    assert_eq!(vec![first.result().unwrap()], worker, "the worker was not killed");
    assert_eq!(patient.result().unwrap(), 2);
    assert_eq!(notes(&gate.file("notes")), [2]);
}

#[test]
fn the_limit_on_waiting_ends_with_the_wait_and_the_limit_on_running_begins_then() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let task = hold::task(gate.path()).queue_timeout(Duration::from_secs(60));
    let running = pool.submit(task.timeout(SOON));
    assert_eq!(passed(running.result()), (SOON, Phase::Run));
    with_a_timeout_long_enough("a worker begins a task", |timeout| {
        let gate = Gate::new();
        let running = pool.submit(hold::task(gate.path()).queue_timeout(timeout));
        // A task that runs has no limit on waiting any more: the limit of the task behind it, which
        // is the same and begins later, passes meanwhile.
        let behind = pool.submit(echo::task(1).queue_timeout(timeout)).result();
        gate.open();
        match running.result() {
            Ok(_) => {
                assert_eq!(passed(behind), (timeout, Phase::Queue));
                Some(())
            }
            Err(error) => {
                assert_eq!(passed(Err::<(), _>(error)), (timeout, Phase::Queue));
                assert!(gate.arrivals().is_empty(), "it has not begun");
                None
            }
        }
    });
}

#[test]
fn thousands_of_limits_on_waiting_pass_while_one_task_runs() {
    const TASKS: u64 = 5_000;
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let submit = |n: u64| {
        // In no order.
        let limit = Duration::from_millis(1 + n * 7919 % 200);
        (Instant::now(), limit, pool.submit(echo::task(n).queue_timeout(limit)))
    };
    let waiting: Vec<_> = (0..TASKS).map(submit).collect();
    for (submitted, limit, future) in waiting {
        assert_eq!(passed(future.result()), (limit, Phase::Queue));
        assert!(submitted.elapsed() >= limit);
    }
    gate.open();
    running.result().unwrap();
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn a_limit_on_waiting_passes_behind_a_burst_and_changes_no_order() {
    const BURST: u32 = 3_000;
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let file = || gate.file("notes");
    // Most of these do not come to the scheduler before a worker needs them.
    let before: Vec<_> = (0..BURST).map(|n| pool.submit(note::task(file(), n))).collect();
    let long = Duration::from_secs(3600);
    let middle = pool.submit(note::task(file(), BURST).queue_timeout(long));
    let late = pool.submit(note::task(file(), u32::MAX).queue_timeout(SOON));
    let after = pool.submit(note::task(file(), BURST + 1));
    assert_eq!(passed(late.result()), (SOON, Phase::Queue));
    gate.open();
    running.result().unwrap();
    assert_eq!(after.result().unwrap(), BURST + 1);
    assert!(before.into_iter().chain([middle]).all(|future| future.result().is_ok()));
    assert_eq!(notes(&file()), (0..BURST + 2).collect::<Vec<_>>());
}

#[test]
fn a_pool_that_shuts_down_ends_with_its_last_limit_on_waiting() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let running = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let late = pool.submit(echo::task(1).queue_timeout(SOON));
    pool.shutdown(false);
    assert_eq!(passed(late.result()), (SOON, Phase::Queue));
    gate.open();
    pool.shutdown(true);
    assert!(running.done());
}

#[test]
fn the_defaults_of_a_pool_apply_to_tasks_without_limits_of_their_own() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.default_timeout(SOON).default_queue_timeout(SOON * 2).build().unwrap();
    let patient = || hold::task(gate.path()).queue_timeout(Duration::MAX);
    assert_eq!(passed(pool.submit(patient()).result()), (SOON, Phase::Run));
    let own = pool.submit(patient().timeout(Duration::MAX));
    gate.wait_for(2);
    assert_eq!(passed(pool.submit(echo::task(1)).result()), (SOON * 2, Phase::Queue));
    let own_wait = pool.submit(echo::task(2).queue_timeout(SOON));
    assert_eq!(passed(own_wait.result()), (SOON, Phase::Queue));
    let without = pool.submit(echo::task(3).queue_timeout(Duration::MAX).timeout(Duration::MAX));
    let mut items = pool.map(echo::task, 0..100);
    assert_eq!(passed(items.next().unwrap()), (SOON * 2, Phase::Queue), "items are tasks, too");
    drop(items);
    gate.open();
    own.result().unwrap();
    assert_eq!(without.result().unwrap(), 3);
}

#[test]
fn each_item_of_a_map_has_the_defaults_of_the_pool() {
    #[task]
    fn hold_some(gate: &std::path::Path, n: u64) -> u64 {
        if n % 4 == 2 {
            come_to(gate);
        }
        n
    }

    let _watchdog = watchdog();
    let gate = Gate::new();
    with_a_timeout_long_enough("eight short tasks end", |timeout| {
        let pool = Pool::builder().processes(2).default_timeout(timeout).build().unwrap();
        let results: Vec<_> = pool
            .imap(|n| hold_some::task(gate.path(), n), 0..12)
            .map(|result| result.map_err(|error| passed(Err::<(), _>(error))))
            .collect();
        pool.terminate();
        let expected = |n: u64| if n % 4 == 2 { Err((timeout, Phase::Run)) } else { Ok(n) };
        (results == (0..12).map(expected).collect::<Vec<_>>()).then_some(())
    });
}

#[test]
fn a_limit_on_waiting_is_refused_where_nothing_queues() {
    let task = || pid::task().queue_timeout(SOON).name("mine");
    let named = |text: &str| text.contains("`mine`") && text.contains("`queue_timeout`");
    match Process::new(task()).start() {
        Err(StartError::Invalid(text)) => assert!(named(&text), "{text}"),
        other => panic!("{other:?}"),
    }
    match ProcessPoolExecutor::builder().initializer(task()).build() {
        Err(executor::BuildError::Invalid(text)) => assert!(named(&text), "{text}"),
        other => panic!("{other:?}"),
    }
    let context = Context::new(StartMethod::ForkServer).preload(task());
    let text = context.process(pid::task()).start().unwrap_err().to_string();
    assert!(named(&text), "{text}");
}
