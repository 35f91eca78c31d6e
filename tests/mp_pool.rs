//! `Pool`: the interface of Python's `multiprocessing.Pool`, and guarantees that Python does not
//! give.

mod support;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use executor::{
    AsyncResult, BuildError, Phase, Pool, PoolError, Side, TaskError, prelude::*, usable_cpus,
};
use serde::{Deserialize, Serialize, Serializer, ser::Error as _};
use support::{
    Gate, LONG, come_to, echo_number, eventually, fail, hold, hold_and_fail, note, notes, pid,
    watchdog,
};

executor::test_support!();

#[task]
fn slot_and_pid(_item: u32) -> (String, u32) {
    (executor::slot().expect("each worker has one"), std::process::id())
}

#[task]
fn pid_of(_item: u32) -> u32 {
    std::process::id()
}

#[task]
fn square(x: u64) -> u64 {
    x * x
}

#[task]
fn power(base: u64, exponent: u32) -> u64 {
    base.pow(exponent)
}

#[task]
fn repeat(text: &str, times: usize) -> String {
    text.repeat(times)
}

#[task]
fn forever() {
    loop {
        thread::park();
    }
}

#[task]
fn nap(time: Duration) {
    thread::sleep(time);
}

/// Returns squares, and fails for one number.
#[task]
fn all_but(bad: u64, x: u64) -> Result<u64, String> {
    if x == bad { Err(format!("{x} is bad")) } else { Ok(x * x) }
}

#[task]
fn die_at(bad: u64, x: u64) -> u64 {
    if x == bad {
        std::process::abort();
    }
    x
}

#[task]
fn panics() {
    panic!("as told");
}

fn squares(n: u64) -> Vec<u64> {
    (0..n).map(|x| x * x).collect()
}

fn end(pool: &Pool) {
    pool.close();
    pool.join().unwrap();
    assert!(pool.worker_pids().is_empty(), "all workers are reaped");
}

// ---- what is logged -----------------------------------------------------------------------------

/// A subscriber that keeps the text of all warnings and errors.
struct Log;

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        LOGGED.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

fn log() {
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| {
        tracing::subscriber::set_global_default(Log).expect("the only one of this test binary")
    });
}

/// Returns how many warnings contain this text.
fn logged(part: &str) -> usize {
    LOGGED.lock().unwrap().iter().filter(|text| text.contains(part)).count()
}

// ---- the lines of the checklist -----------------------------------------------------------------

#[test]
fn pl01_apply_returns_the_value() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(power::task(3, 4)).unwrap(), 81);
    // Python's keyword arguments are positional parameters in Rust. Options have methods of their
    // own.
    let task = repeat::task("ab", 2).name("twice").timeout(LONG);
    assert_eq!(pool.apply(task).unwrap(), "abab");
    end(&pool);
}

#[test]
fn pl02_map_equals_the_sequential_list() {
    let _watchdog = watchdog();
    let pool = Pool::new(3).unwrap();
    assert_eq!(pool.map(square::task, 0..10).unwrap(), squares(10));
    assert_eq!(pool.chunk_size(20).map(square::task, 0..100).unwrap(), squares(100));
    assert_eq!(pool.chunk_size(1_000_000).map(square::task, 0..100).unwrap(), squares(100));
    let each: Vec<u64> =
        pool.map_collect(square::task, 0..100).into_iter().map(Result::unwrap).collect();
    assert_eq!(each, squares(100));
    let error = pool.chunk_size(0).map(square::task, 0..3).unwrap_err();
    assert!(matches!(error, TaskError::Invalid(_)), "{error:?}");
    end(&pool);
}

#[test]
fn pl03_starmap_equals_the_sequential_list() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let pairs: Vec<(u64, u32)> = (0..40).map(|n| (n, 2)).collect();
    assert_eq!(pool.starmap(power::task, pairs.clone()).unwrap(), squares(40));
    assert_eq!(
        pool.starmap(|(base, exponent)| power::task(base, exponent), pairs.clone()).unwrap(),
        squares(40)
    );
    assert_eq!(pool.starmap_async(power::task, pairs.clone()).get().unwrap(), squares(40));
    assert_eq!(pool.chunk_size(7).starmap(power::task, pairs.clone()).unwrap(), squares(40));
    assert_eq!(pool.chunk_size(7).starmap_async(power::task, pairs).get().unwrap(), squares(40));
    // Tuples of one element work as well.
    assert_eq!(pool.starmap(square::task, [(3,)]).unwrap(), [9]);
    end(&pool);
}

#[test]
fn pl04_map_async_equals_the_sequential_list() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.map_async(square::task, 0..1_000).get().unwrap(), squares(1_000));
    let gate = Gate::new();
    // `map_async` returns while all tasks are still running.
    let held = pool.map_async(|_| hold::task(gate.path()), 0..3);
    gate.wait_for(2);
    assert!(!held.ready() && !held.wait_timeout(Duration::from_millis(5)));
    gate.open();
    held.wait();
    assert!(held.ready() && held.successful() == Some(true));
    assert_eq!(held.get_timeout(LONG).unwrap().unwrap().len(), 3);
    end(&pool);
}

#[test]
fn pl05_exactly_one_of_the_callbacks_runs_with_the_list_or_the_error() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let (sender, calls) = mpsc::channel();
    let watch = |result: AsyncResult<Vec<u64>>| {
        let (values, errors) = (sender.clone(), sender.clone());
        result
            .callback(move |list| values.send((thread::current().id(), Ok(list.clone()))).unwrap())
            .error_callback(move |error| {
                errors.send((thread::current().id(), Err(error.to_string()))).unwrap()
            })
    };
    let good = watch(pool.map_async(|x| all_but::task(99, x), 0..10));
    let bad = watch(pool.map_async(|x| all_but::task(5, x), 0..10));
    assert_eq!(good.get().unwrap(), squares(10));
    assert!(bad.get().unwrap_err().is_failed());
    // The same when the callbacks are added only after the end.
    let late = pool.map_async(|x| all_but::task(99, x), 0..3);
    late.wait();
    let _late = watch(late);
    end(&pool);
    drop(sender);
    // Two maps run at the same time, so their callbacks may run in any order.
    let (mut lists, mut errors) = (Vec::new(), Vec::new());
    for (at, outcome) in calls.try_iter() {
        assert_ne!(at, thread::current().id(), "callbacks have a thread of their own");
        match outcome {
            Ok(list) => lists.push(list),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(lists, [squares(10), squares(3)]);
    assert!(matches!(&errors[..], [error] if error.contains("5 is bad")), "{errors:?}");
}

#[test]
fn pl07_an_empty_map_async_is_ready_at_once() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = Pool::new(1).unwrap();
    let busy = pool.apply_async(hold::task(gate.path()));
    gate.wait_for(1);
    // The only worker is busy, but an empty map needs none.
    let empty = pool.chunk_size(1).map_async(square::task, Vec::new());
    assert!(empty.ready());
    assert_eq!(empty.get_timeout(Duration::ZERO).unwrap().unwrap(), []);
    gate.open();
    assert!(busy.get().is_ok());
    end(&pool);
}

#[test]
fn pl09_get_waits_until_the_task_has_ended() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    pool.apply(pid::task()).unwrap();
    let time = Duration::from_millis(50);
    let start = Instant::now();
    let result = pool.apply_async(nap::task(time));
    result.get().unwrap();
    assert!(start.elapsed() >= time, "{:?}", start.elapsed());
    end(&pool);
}

#[test]
fn pl10_get_timeout_returns_in_time_and_the_pool_can_be_terminated() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let limit = Duration::from_millis(30);
    let start = Instant::now();
    let late = pool.apply_async(forever::task()).get_timeout(limit).unwrap_err();
    assert!(start.elapsed() >= limit);
    let map = pool.map_async(|_: u32| forever::task(), 0..5).get_timeout(limit).unwrap_err();
    pool.terminate();
    pool.join().unwrap();
    assert!(pool.worker_pids().is_empty());
    // Results that are still waited for become errors.
    assert!(late.get().unwrap_err().is_shutdown());
    assert!(map.get().unwrap_err().is_shutdown());
}

#[test]
fn pl11_imap_yields_the_results_in_order_and_ends() {
    let _watchdog = watchdog();
    let pool = Pool::new(3).unwrap();
    for (n, chunk) in [(10, 1), (1_000, 100)] {
        let mut results = pool.imap(square::task, 0..n).chunk_size(chunk);
        for x in 0..n {
            assert_eq!(results.next().unwrap().unwrap(), x * x);
        }
        assert!(results.next().is_none() && results.next().is_none());
        assert!(results.next_timeout(LONG).is_none());
    }
    let all: Vec<u64> = pool.imap(square::task, 0..1_000).map(Result::unwrap).collect();
    assert_eq!(all, squares(1_000));
    end(&pool);
}

#[test]
fn pl11_next_timeout_loses_no_result_when_it_times_out() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let gate = Gate::new();
    let mut results = pool.imap(|_| hold::task(gate.path()), 0..2);
    let error = results.next_timeout(Duration::from_millis(10)).unwrap().unwrap_err();
    assert!(matches!(error, TaskError::TimedOut { phase: Phase::Next, .. }), "{error:?}");
    gate.open();
    assert!(results.next_timeout(LONG).unwrap().is_ok());
    assert!(results.next().unwrap().is_ok() && results.next().is_none());
    end(&pool);
}

#[test]
fn pl13_imap_unordered_yields_the_same_set() {
    let _watchdog = watchdog();
    let pool = Pool::new(3).unwrap();
    for (n, chunk) in [(10, 1), (1_000, 100)] {
        let results = pool.imap_unordered(square::task, 0..n).chunk_size(chunk);
        let mut all: Vec<u64> = results.map(Result::unwrap).collect();
        all.sort_unstable();
        assert_eq!(all, squares(n));
    }
    // A finished result is yielded although an earlier item has not finished.
    let gate = Gate::new();
    let mut results = pool.imap_unordered(
        |first| {
            if first {
                hold::task(gate.path()).encode()
            } else {
                hold::task(Path::new("/")).encode()
            }
        },
        [true, false],
    );
    let early = results.next().unwrap();
    assert!(early.unwrap_err().is_panic(), "the second has no gate to come to");
    gate.open();
    assert!(results.next().unwrap().is_ok());
    drop(results);
    end(&pool);
}

/// Yields numbers, and panics instead of yielding this one.
fn says_when(at: u64) -> impl Iterator<Item = u64> {
    (0..1_000).inspect(move |x| {
        if *x == at {
            std::panic::panic_any("when");
        }
    })
}

#[test]
fn l21_items_that_are_errors_are_the_errors_of_every_kind_of_map() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let inputs = || [Ok(1), Err("no"), Ok(3)];
    let make = |input: Result<u64, &'static str>| input.map(square::task);
    assert_eq!(pool.map(make, inputs()).unwrap_err().to_string().matches("no").count(), 1);
    let of_each = |results: Vec<Result<u64, TaskError>>| {
        let [Ok(1), Err(error), Ok(9)] = &results[..] else { panic!("{results:?}") };
        assert!(error.is_failed(), "{error}");
    };
    of_each(pool.map_collect(make, inputs()));
    of_each(pool.imap(make, inputs()).collect());
    assert!(pool.map_async(make, inputs()).get().unwrap_err().is_failed());
    end(&pool);
}

#[test]
fn pl14_results_before_the_panic_of_an_input_are_all_yielded() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    for at in [0, 1, 7] {
        for unordered in [false, true] {
            let mut seen = Vec::new();
            let panic = catch_unwind(AssertUnwindSafe(|| match unordered {
                true => seen
                    .extend(pool.imap_unordered(square::task, says_when(at)).map(Result::unwrap)),
                false => seen.extend(pool.imap(square::task, says_when(at)).map(Result::unwrap)),
            }));
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"when"));
            seen.sort_unstable();
            assert_eq!(seen, squares(at), "all that come before it, and nothing else");
        }
    }
    // After the panic the iterator has ended, and the pool still works.
    let mut results = pool.imap(square::task, says_when(1));
    assert_eq!(results.next().unwrap().unwrap(), 0);
    assert!(catch_unwind(AssertUnwindSafe(|| results.next())).is_err());
    assert!(results.next().is_none());
    assert_eq!(pool.apply(square::task(4)).unwrap(), 16);
    end(&pool);
}

#[test]
fn every_option_of_an_executor_can_be_set_and_none_is_ignored() {
    let _watchdog = watchdog();
    let pool = Pool::builder()
        .executor(|options| options.slots(["a", "b"]).max_tasks_per_worker(1))
        .build()
        .unwrap();
    let mut seen = pool.map(slot_and_pid::task, 0..6_u32).unwrap();
    seen.sort();
    let slots: Vec<_> = seen.iter().map(|(slot, _)| slot.as_str()).collect();
    assert_eq!(pool.processes(), 2, "one for each slot");
    assert!(slots.iter().all(|slot| ["a", "b"].contains(slot)), "{slots:?}");
    let mut pids: Vec<_> = seen.iter().map(|(_, pid)| *pid).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 6, "each worker has run one");
    end(&pool);

    type Set = fn(executor::ProcessPoolBuilder) -> executor::ProcessPoolBuilder;
    let without_effect: [(&str, Set); 4] = [
        ("max_workers", |options| options.max_workers(3)),
        ("min_workers", |options| options.min_workers(1)),
        ("idle_timeout", |options| options.idle_timeout(LONG)),
        ("on_drop", |options| options.on_drop(executor::OnDrop::Finish)),
    ];
    for (name, set) in without_effect {
        let error = Pool::builder().processes(1).executor(set).build().unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}` has no effect")), "{error}");
    }
    let both = Pool::builder().processes(1).max_tasks_per_child(1);
    let error = both.executor(|options| options.max_tasks_per_worker(2)).build().unwrap_err();
    assert!(error.to_string().contains("`max_tasks_per_worker` has no effect"), "{error}");
}

#[test]
fn each_task_of_a_pool_can_have_a_process_of_its_own() {
    let _watchdog = watchdog();
    let isolated = |options: executor::ProcessPoolBuilder| {
        options.isolation(executor::Isolation::PerTask).ready(2)
    };
    let pool = Pool::builder().processes(2).executor(isolated).build().unwrap();
    let mut pids = pool.map(pid_of::task, 0..8_u32).unwrap();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 8);
    end(&pool);
}

#[test]
fn pl15_a_size_of_0_is_an_error_and_a_size_of_3_starts_three_processes() {
    let _watchdog = watchdog();
    for error in [
        Pool::new(0).unwrap_err(),
        Pool::builder().processes(0).build().unwrap_err(),
        Pool::builder().processes(1).max_tasks_per_child(0).build().unwrap_err(),
    ] {
        assert!(matches!(error, BuildError::Invalid(_)), "{error:?}");
    }
    let pool = Pool::new(3).unwrap();
    assert_eq!(pool.processes(), 3);
    // The processes are started although no task was submitted.
    eventually("three processes", || pool.worker_pids().len() == 3);
    end(&pool);
}

#[test]
fn pl17_maps_of_an_empty_input_are_empty() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.map(square::task, []).unwrap(), []);
    assert!(pool.map_collect(square::task, []).is_empty());
    assert_eq!(pool.map_async(square::task, []).get().unwrap(), []);
    assert_eq!(pool.starmap(power::task, Vec::<(u64, u32)>::new()).unwrap(), []);
    assert!(pool.imap(square::task, []).next().is_none());
    assert!(pool.imap_unordered(square::task, []).next().is_none());
    end(&pool);
}

#[test]
fn pl18_a_pool_rejects_work_after_its_scope() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let result = pool.scope(|pool| pool.map_async(square::task, 0..10).get()).unwrap();
    assert_eq!(result.unwrap(), squares(10));
    refuses(&pool);
    pool.join().unwrap();
    assert!(pool.worker_pids().is_empty(), "the scope's end ends the workers");
    // The same when the scope panics.
    let pool = Pool::new(1).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| pool.scope(|_| std::panic::panic_any("out"))));
    assert!(panic.is_err());
    refuses(&pool);
}

/// Asserts that the pool rejects every kind of call.
fn refuses(pool: &Pool) {
    assert!(pool.apply(square::task(1)).unwrap_err().is_shutdown());
    let result = pool.apply_async(square::task(1));
    assert!(result.ready() && result.successful() == Some(false));
    let (sender, errors) = mpsc::channel();
    let result = result.callback(|_| unreachable!("there is no value"));
    let result = result.error_callback(move |error| sender.send(error.clone()).unwrap());
    assert!(result.get().unwrap_err().is_shutdown());
    assert!(errors.recv_timeout(LONG).unwrap().is_shutdown());
    assert!(pool.map(square::task, []).unwrap_err().is_shutdown());
    assert!(pool.map(square::task, 0..3).unwrap_err().is_shutdown());
    assert!(pool.map_collect(square::task, 0..3).iter().all(Result::is_err));
    assert!(pool.map_async(square::task, 0..3).get().unwrap_err().is_shutdown());
    assert!(pool.starmap(power::task, [(1, 1)]).unwrap_err().is_shutdown());
    assert!(pool.starmap_async(power::task, [(1, 1)]).get().unwrap_err().is_shutdown());
    // A rejected iteration yields one error, even for an endless input.
    assert_eq!(pool.imap(square::task, 0..).filter(Result::is_err).count(), 1);
    assert_eq!(pool.imap_unordered(square::task, 0..).filter(Result::is_err).count(), 1);
}

#[test]
fn pl19_an_error_has_type_message_and_location_and_a_panic_of_the_input_is_the_callers() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let TaskError::Failed(error) = pool.apply(fail::task("the reason".into())).unwrap_err() else {
        panic!("it returned Err")
    };
    assert_eq!((error.message(), error.type_name()), ("the reason", "alloc::string::String"));
    let TaskError::Panicked(error) = pool.apply(panics::task()).unwrap_err() else {
        panic!("it panicked")
    };
    assert_eq!(error.message(), "as told");
    assert!(error.location().unwrap().starts_with(file!()), "{:?}", error.location());
    // A panic of the input reaches the caller with its own payload, and nothing was submitted.
    let panic =
        catch_unwind(AssertUnwindSafe(|| pool.map(square::task, says_when(3)))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"when"));
    assert_eq!(pool.apply(square::task(3)).unwrap(), 9);
    end(&pool);
}

/// A value that can be made, but not sent.
#[derive(Debug, Deserialize)]
struct Unwilling;

impl Serialize for Unwilling {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("it stays here"))
    }
}

#[task]
fn unwilling() -> Unwilling {
    Unwilling
}

#[test]
fn br17_a_result_that_cannot_be_encoded_fails_only_its_call() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let worker = pool.apply(pid::task()).unwrap();
    let TaskError::Encode(failure) = pool.apply(unwilling::task()).unwrap_err() else {
        panic!("it cannot be encoded")
    };
    assert_eq!(failure.side(), Side::ResultInWorker);
    assert!(failure.to_string().contains("it stays here"), "{failure}");
    // The worker lives on.
    assert_eq!(pool.apply(pid::task()).unwrap(), worker);
    end(&pool);
}

#[test]
fn pl22_scope_on_a_terminated_or_closed_pool_is_an_error() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    pool.terminate();
    assert_eq!(
        pool.scope(|_| unreachable!("not running")).map(|(): ()| ()),
        Err(PoolError::NotRunning)
    );
    pool.join().unwrap();
    let pool = Pool::new(1).unwrap();
    pool.close();
    let error = pool.scope(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not running"), "{error}");
    pool.join().unwrap();
}

#[test]
fn pl23_dropping_a_running_pool_logs_a_warning_and_ends_its_workers() {
    let _watchdog = watchdog();
    log();
    // Only the pools of this test have this number of processes.
    let warned = || logged("processes=7 ");
    let pool = Pool::new(7).unwrap();
    let pid = pool.apply(pid::task()).unwrap();
    let endless = pool.apply_async(forever::task());
    drop(pool);
    assert_eq!(warned(), 1);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
    assert!(endless.get().unwrap_err().is_shutdown());
    for ends in [Pool::close, Pool::terminate] {
        let pool = Pool::new(7).unwrap();
        ends(&pool);
        drop(pool);
    }
    assert_eq!(warned(), 1, "not of one that was closed or terminated");
}

#[test]
fn pl24_the_caller_and_the_error_callback_both_get_the_error() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let (sender, errors) = mpsc::channel();
    let result = pool
        .apply_async(fail::task("for both".into()))
        .callback(|_| unreachable!("there is no value"))
        .error_callback(move |error: &TaskError| sender.send(error.clone()).unwrap());
    assert!(result.get().unwrap_err().to_string().contains("for both"));
    assert!(errors.recv_timeout(LONG).unwrap().to_string().contains("for both"));
    assert!(errors.recv().is_err(), "once");
    end(&pool);
}

#[test]
fn pl26_workers_are_replaced_after_max_tasks_and_no_result_is_lost() {
    let _watchdog = watchdog();
    let pool = Pool::builder().processes(3).max_tasks_per_child(10).build().unwrap();
    eventually("three processes", || pool.worker_pids().len() == 3);
    let first: BTreeSet<u32> = pool.worker_pids().into_iter().collect();
    let results: Vec<_> = (0..100).map(|x| pool.apply_async(square::task(x))).collect();
    let values: Vec<u64> = results.into_iter().map(|result| result.get().unwrap()).collect();
    assert_eq!(values, squares(100));
    // With 100 tasks and at most 10 for each worker, the first three workers have ended.
    eventually("three others", || {
        let pids = pool.worker_pids();
        pids.len() == 3 && pids.iter().all(|pid| !first.contains(pid))
    });
    // Each item of a map counts as a task, whatever the chunk size.
    let counts = pool.chunk_size(64).map(|_| pid::task(), 0..200).unwrap();
    for pid in &counts {
        assert!(counts.iter().filter(|other| *other == pid).count() <= 10, "{counts:?}");
    }
    end(&pool);
}

#[test]
fn pl30_an_initializer_runs_once_in_each_worker() {
    let _watchdog = watchdog();
    let notes_of = tempfile::tempdir().unwrap();
    for processes in [1, 4] {
        let file = notes_of.path().join(processes.to_string());
        let initializer = note::task(file.clone(), 1);
        let pool = Pool::builder().processes(processes).initializer(initializer).build().unwrap();
        // The initializers run although there is no task.
        pool.close();
        pool.join().unwrap();
        assert_eq!(notes(&file), vec![1; processes]);
    }
    // Only a task can be an initializer: see `tests/ui/fail/plain_function.rs`. When an initializer
    // fails, the calls return the error.
    let pool =
        Pool::builder().processes(1).initializer(fail::task("no model".into())).build().unwrap();
    let error = pool.apply(square::task(1)).unwrap_err();
    assert!(error.is_broken() && error.to_string().contains("no model"), "{error}");
    assert_eq!(
        pool.imap(square::task, 0..).filter(Result::is_err).count(),
        1,
        "and ends an endless map"
    );
    end(&pool);
}

#[test]
fn pl32_joining_a_running_pool_is_an_error() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.join(), Err(PoolError::StillRunning));
    assert_eq!(pool.join_timeout(LONG), Err(PoolError::StillRunning));
    assert!(pool.join().unwrap_err().to_string().contains("still running"));
    assert_eq!(pool.apply(square::task(2)).unwrap(), 4);
    end(&pool);
    assert_eq!(pool.join(), Ok(()), "again");
}

#[test]
fn pl34_successful_is_none_until_a_result_is_ready() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let gate = Gate::new();
    let (good, bad) = (
        pool.apply_async(hold::task(gate.path())),
        pool.apply_async(hold_and_fail::task(gate.path())),
    );
    assert!(!good.ready() && !bad.ready());
    assert_eq!((good.successful(), bad.successful()), (None, None));
    gate.open();
    good.wait();
    bad.wait();
    assert!(good.ready() && bad.ready());
    assert_eq!((good.successful(), bad.successful()), (Some(true), Some(false)));
    assert!(good.get().is_ok() && bad.get().is_err());
    end(&pool);
}

// ---- the programs of the tutorials --------------------------------------------------------------

/// Comes to its gate, which the test opens separately. Returns the pid.
#[task]
fn pass(gate: &Path) -> u32 {
    come_to(gate);
    std::process::id()
}

#[test]
fn se02_four_of_five_tasks_run_and_the_fifth_takes_the_first_free_process() {
    let _watchdog = watchdog();
    let pool = Pool::new(4).unwrap();
    let gates: Vec<Gate> = (0..5).map(|_| Gate::new()).collect();
    let mut results: Vec<_> =
        gates.iter().map(|gate| pool.apply_async(pass::task(gate.path()))).collect();
    let fifth = results.pop().unwrap();
    gates[..4].iter().for_each(|gate| drop(gate.wait_for(1)));
    assert_eq!(gates[4].arrivals().len(), 0, "four at once");
    gates[2].open();
    let freed = results.remove(2).get().unwrap();
    gates[4].wait_for(1);
    pool.close();
    gates.iter().for_each(Gate::open);
    pool.join().unwrap();
    assert_eq!(fifth.get().unwrap(), freed);
    let others: BTreeSet<u32> = results.into_iter().map(|result| result.get().unwrap()).collect();
    assert!(others.len() == 3 && !others.contains(&freed));
}

#[test]
fn se13_an_item_that_fails_is_an_error_and_the_pool_can_map_again() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let error = pool.map(|x| all_but::task(2, x), 0..5).unwrap_err();
    assert!(error.to_string().contains("2 is bad"), "{error}");
    assert_eq!(pool.map(|x| all_but::task(9, x), 0..5).unwrap(), squares(5));
    // The failure does not affect other items, whatever the chunk size.
    for chunk in [1, 3, 5] {
        let each = pool.chunk_size(chunk).map_collect(|x| all_but::task(2, x), 0..5);
        let values: Vec<Option<u64>> = each.into_iter().map(Result::ok).collect();
        assert_eq!(values, [Some(0), Some(1), None, Some(9), Some(16)]);
    }
    // Among several errors, the first one in input order is reported, not the first one in time.
    let gate = Gate::new();
    let slow = pool.map_async(
        |x| match x {
            0 => hold_and_fail::task(gate.path()).encode(),
            _ => hold_and_fail::task(Path::new("/")).encode(),
        },
        0..2,
    );
    gate.wait_for(1);
    gate.open();
    assert!(slow.get().unwrap_err().is_failed(), "and not the second's panic");
    end(&pool);
}

#[test]
fn se14_several_arguments_are_passed_by_starmap_and_apply_async() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.starmap(power::task, [(2, 3), (3, 2), (10, 3)]).unwrap(), [8, 9, 1000]);
    assert_eq!(pool.apply_async(power::task(2, 10)).get().unwrap(), 1024);
    end(&pool);
}

#[test]
fn se15_all_but_one_starts_one_process_fewer_than_cpus_and_at_least_one() {
    let _watchdog = watchdog();
    let pool = Pool::builder().all_but(1).build().unwrap();
    assert_eq!(pool.processes(), (usable_cpus() - 1).max(1));
    assert_eq!(pool.map(square::task, 0..10).unwrap(), squares(10));
    end(&pool);
    let pool = Pool::builder().all_but(100_000).build().unwrap();
    assert_eq!(pool.processes(), 1);
    end(&pool);
}

#[test]
fn se18_five_workers_run_seven_tasks_and_two_of_them_run_twice() {
    let _watchdog = watchdog();
    let pool = Pool::new(5).unwrap();
    let gates: Vec<Gate> = (0..7).map(|_| Gate::new()).collect();
    let results: Vec<_> =
        gates.iter().map(|gate| pool.apply_async(pass::task(gate.path()))).collect();
    gates[..5].iter().for_each(|gate| drop(gate.wait_for(1)));
    assert_eq!(gates[5].arrivals().len() + gates[6].arrivals().len(), 0, "five at once");
    // Only two tasks are released. The waiting tasks run on their workers, because all others are
    // held.
    gates[..2].iter().for_each(Gate::open);
    gates[5..].iter().for_each(|gate| drop(gate.wait_for(1)));
    gates.iter().for_each(Gate::open);
    let pids: Vec<u32> = results.into_iter().map(|result| result.get().unwrap()).collect();
    let distinct: BTreeSet<u32> = pids.iter().copied().collect();
    assert_eq!(distinct.len(), 5, "{pids:?}");
    let (freed, second): (BTreeSet<u32>, BTreeSet<u32>) =
        (pids[..2].iter().copied().collect(), pids[5..].iter().copied().collect());
    assert!(second.is_subset(&freed), "{pids:?}");
    end(&pool);
}

#[test]
fn se20_an_error_that_nobody_reads_is_logged_at_the_join() {
    let _watchdog = watchdog();
    log();
    let pool = Pool::new(2).unwrap();
    // As in the tutorial, the value that `apply_async` returns is ignored.
    pool.apply_async(fail::task("dropped at once".into()));
    let held = pool.apply_async(fail::task("held and not read".into()));
    let map = pool.map_async(|text: &str| fail::task(text.into()), ["held in a map", "its second"]);
    pool.map_async(|text: &str| fail::task(text.into()), ["dropped in a map"]);
    let done = pool.apply_async(fail::task("dropped when done".into()));
    done.wait();
    assert_eq!(logged("dropped when done"), 0);
    drop(done);
    assert_eq!(logged("dropped when done"), 1);
    // These errors are read, so they are not logged.
    let read = pool.apply_async(fail::task("read".into()));
    assert!(read.get().is_err());
    pool.apply_async(fail::task("heard".into())).error_callback(|_| ());
    let awaited = pool.apply_async(fail::task("awaited".into()));
    assert!(futures::executor::block_on(awaited).is_err());
    let asked = pool.apply_async(echo_number::task(3));
    asked.wait();
    pool.close();
    pool.join().unwrap();
    for lost in ["dropped at once", "held and not read", "held in a map", "dropped in a map"] {
        assert_eq!(logged(lost), 1, "{lost}");
    }
    assert_eq!(logged("task `read`") + logged(": read") + logged("heard") + logged("awaited"), 0);
    // An error that was logged as unhandled can still be read, and is not logged again.
    assert!(held.get().is_err());
    drop(map);
    assert_eq!(logged("held in a map"), 1);
}

// ---- beyond Python's promises -------------------------------------------------------------------

/// Returns the pids of the processes that came to the gate.
fn at_the_gate(gate: &Gate) -> Vec<u32> {
    let names = std::fs::read_dir(gate.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_prefix("arrival-")?.split('-').next()?.parse().ok())
        .collect()
}

#[test]
fn a_killed_worker_fails_only_its_call_and_the_join_returns() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let gate = Gate::new();
    let victim = pool.apply_async(hold::task(gate.path()));
    gate.wait_for(1);
    let others: Vec<_> = (0..20).map(|x| pool.apply_async(square::task(x))).collect();
    for result in others {
        assert!(result.get().is_ok());
    }
    let killed = at_the_gate(&gate)[0];
    let raw = rustix::process::Pid::from_raw(killed as i32).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let error = victim.get().unwrap_err();
    assert!(matches!(error, TaskError::WorkerLost { pid, .. } if pid == killed), "{error:?}");
    // A new worker takes its place even without work.
    eventually("two workers", || {
        pool.worker_pids().len() == 2 && !pool.worker_pids().contains(&killed)
    });
    // In a map only the item that aborts its worker is lost, whatever else is in its chunk.
    let each = pool.chunk_size(10).map_collect(|x| die_at::task(17, x), 0..40);
    for (x, result) in (0..).zip(each) {
        match x {
            17 => assert!(result.unwrap_err().is_worker_lost()),
            _ => assert_eq!(result.unwrap(), x),
        }
    }
    assert!(pool.map(|x| die_at::task(17, x), 0..40).unwrap_err().is_worker_lost());
    end(&pool);
}

#[test]
fn unread_results_and_errors_of_any_size_do_not_block_the_join() {
    let _watchdog = watchdog();
    log();
    let pool = Pool::new(2).unwrap();
    let big = "x".repeat(3 << 20);
    for _ in 0..20 {
        pool.apply_async(repeat::task(&big, 1));
    }
    let errors: Vec<_> = (0..5).map(|_| pool.apply_async(fail::task(big.clone()))).collect();
    let each = pool.map_collect(|text: &String| fail::task(text.clone()), [&big, &big]);
    assert!(each.iter().all(|result| result.as_ref().unwrap_err().to_string().len() > big.len()));
    // The pool is joined before anything is read.
    pool.close();
    pool.join().unwrap();
    for error in errors {
        assert!(error.get().unwrap_err().to_string().contains(&big));
    }
}

#[test]
fn two_hundred_workers_run_at_the_same_time() {
    use rustix::process::{Resource, setrlimit};
    let _watchdog = watchdog();
    // Each worker needs some descriptors in this process, and a program's initial limit may be too
    // low for so many.
    let mut limit = support::limit_of(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(8192), |maximum| Some(maximum.min(8192)));
    setrlimit(Resource::Nofile, limit).unwrap();
    let pool = Pool::new(200).unwrap();
    assert_eq!(pool.map(square::task, 0..1_000).unwrap(), squares(1_000));
    eventually("200 processes", || pool.worker_pids().len() == 200);
    let gate = Gate::new();
    let all = pool.map_async(|_| hold::task(gate.path()), 0..200);
    gate.wait_for(200);
    gate.open();
    assert_eq!(
        all.get().unwrap().into_iter().collect::<BTreeSet<u32>>().len(),
        200,
        "all at the same time"
    );
    end(&pool);
}

#[test]
fn endless_inputs_are_read_only_as_far_as_needed() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let pulled = Arc::new(Mutex::new(0));
    let count = Arc::clone(&pulled);
    let input = (0..).inspect(move |_| *count.lock().unwrap() += 1);
    let mut results = pool.imap(square::task, input).buffer_size(10);
    assert_eq!(*pulled.lock().unwrap(), 0, "nothing before the first `next`");
    let first: Vec<u64> = results.by_ref().take(100).map(Result::unwrap).collect();
    assert_eq!(first, squares(100));
    assert!(*pulled.lock().unwrap() <= 110);
    drop(results);
    let some: BTreeSet<u64> =
        pool.imap_unordered(square::task, 0..).take(100).map(Result::unwrap).collect();
    assert_eq!(some.len(), 100);
    end(&pool);
}

#[test]
fn an_imap_continues_after_close_and_ends_at_the_join() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let results = pool.imap(square::task, 0..500).buffer_size(4);
    pool.close();
    assert!(pool.apply(square::task(1)).unwrap_err().is_shutdown());
    let all: Vec<u64> = results.map(Result::unwrap).collect();
    assert_eq!(all, squares(500));
    // The workers end together with the iteration, without a call.
    eventually("no worker is left", || pool.worker_pids().is_empty());
    pool.join().unwrap();

    // An iteration that nobody advances does not delay the join. The items that it has not
    // submitted by then become one error.
    for unordered in [false, true] {
        let pool = Pool::new(2).unwrap();
        let mut results = match unordered {
            false => pool.imap(square::task, 0..),
            true => pool.imap_unordered(square::task, 0..),
        }
        .buffer_size(8);
        let first = results.next().unwrap().unwrap();
        pool.close();
        pool.join().unwrap();
        let rest: Vec<_> = results.collect();
        let (last, values) = rest.split_last().unwrap();
        assert!(last.as_ref().unwrap_err().is_shutdown());
        let mut values: Vec<u64> = values.iter().map(|value| *value.as_ref().unwrap()).collect();
        values.push(first);
        values.sort_unstable();
        assert_eq!(values, squares(8), "what was submitted is not lost");
    }
    // `terminate` ends an iteration too, even from another thread.
    let pool = Arc::new(Pool::new(1).unwrap());
    let gate = Gate::new();
    let mut results = pool.imap(|_| hold::task(gate.path()), 0..);
    let other = Arc::clone(&pool);
    thread::scope(|scope| {
        let gate = &gate;
        scope.spawn(move || {
            gate.wait_for(1);
            other.terminate();
        });
        assert!(results.next().unwrap().unwrap_err().is_shutdown());
    });
    assert!(results.next().is_none());
}

#[test]
fn join_timeout_returns_whether_everything_has_ended() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let gate = Gate::new();
    let result = pool.apply_async(hold::task(gate.path()));
    gate.wait_for(1);
    pool.close();
    assert_eq!(pool.join_timeout(Duration::from_millis(20)), Ok(false));
    assert_eq!(pool.join_timeout(Duration::ZERO), Ok(false));
    gate.open();
    assert_eq!(pool.join_timeout(LONG), Ok(true));
    assert!(result.ready() && pool.worker_pids().is_empty());
    // `join_timeout` waits for callbacks as well.
    let pool = Pool::new(1).unwrap();
    let (release, held) = mpsc::channel::<()>();
    pool.apply_async(square::task(1)).callback(move |_| assert!(held.recv().is_err()));
    pool.close();
    assert_eq!(pool.join_timeout(Duration::from_millis(50)), Ok(false));
    drop(release);
    assert_eq!(pool.join_timeout(Duration::MAX), Ok(true));
}

#[test]
fn a_task_that_ignores_sigterm_does_not_stop_terminate() {
    #[task]
    fn deaf(gate: &Path) {
        // SAFETY: only sets a signal's disposition, in a process that runs one task.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        come_to(gate);
    }
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let gate = Gate::new();
    let result = pool.apply_async(deaf::task(gate.path()));
    gate.wait_for(1);
    pool.terminate();
    pool.join().unwrap();
    assert!(result.get().unwrap_err().is_shutdown());
}

#[test]
fn a_callback_may_use_the_pool_and_its_panic_affects_nothing_else() {
    let _watchdog = watchdog();
    let pool = Arc::new(Pool::new(1).unwrap());
    let (sender, seen) = mpsc::channel();
    let other = Arc::clone(&pool);
    pool.apply_async(square::task(3)).callback(|_| std::panic::panic_any("mine")).callback(
        move |nine| {
            let again = other.apply(square::task(*nine)).unwrap();
            other.close();
            assert_eq!(other.join(), Ok(()), "it does not wait for itself");
            sender.send(again).unwrap();
        },
    );
    assert_eq!(seen.recv_timeout(LONG).unwrap(), 81);
    pool.join().unwrap();
}

#[tokio::test]
async fn results_can_be_awaited_and_dropping_a_pool_does_not_block_the_runtime() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let (one, all) = (pool.apply_async(square::task(7)), pool.map_async(square::task, 0..100));
    assert_eq!(all.await.unwrap(), squares(100));
    assert_eq!(one.await.unwrap(), 49);
    let gate = Gate::new();
    let mut held = pool.map_async(|_| hold::task(gate.path()), 0..3);
    assert!(futures::poll!(&mut held).is_pending(), "nothing has passed the gate");
    gate.open();
    assert_eq!(held.await.unwrap().len(), 3);
    pool.close();
    drop(pool);
}

#[test]
fn pools_can_be_nested_and_shared_by_threads() {
    #[task]
    fn inner(n: u64) -> Result<Vec<u64>, String> {
        let pool = Pool::new(2).map_err(|error| error.to_string())?;
        let squares = pool.map(square::task, 0..n).map_err(|error| error.to_string());
        pool.close();
        pool.join().map_err(|error| error.to_string())?;
        squares
    }
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.map(inner::task, [3, 4]).unwrap(), [squares(3), squares(4)]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(pool.map(square::task, 0..50).unwrap(), squares(50)));
        }
    });
    end(&pool);
}

#[test]
fn a_pool_is_inert_in_a_fork_of_its_process() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let gate = Gate::new();
    let (held, map) = (
        pool.apply_async(hold::task(gate.path())),
        pool.map_async(|_| hold::task(gate.path()), 0..3),
    );
    let closed = Pool::new(1).unwrap();
    end(&closed);
    gate.wait_for(2);
    // SAFETY: the child uses only memory and the handles that this test is about, and glibc's
    // allocator survives a fork.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: only sets an alarm, which ends the child if it hangs.
            unsafe { libc::alarm(60) };
            let inert = catch_unwind(AssertUnwindSafe(|| {
                let forked =
                    |error: TaskError| assert!(error.to_string().contains("forked"), "{error}");
                assert!(held.ready() && map.ready());
                forked(held.get().unwrap_err());
                forked(map.get().unwrap_err());
                forked(pool.apply(square::task(1)).unwrap_err());
                forked(pool.map(square::task, 0..3).unwrap_err());
                forked(pool.map_async(square::task, 0..3).get().unwrap_err());
                assert!(pool.imap(square::task, 0..).all(|result| result.is_err()));
                let calls = std::sync::atomic::AtomicU32::new(0);
                let calls: &'static _ = Box::leak(Box::new(calls));
                let count =
                    |_: &TaskError| _ = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                drop(pool.apply_async(square::task(1)).error_callback(count));
                drop(pool.map_async(square::task, 0..3).error_callback(count));
                drop(closed.apply_async(square::task(1)).error_callback(count));
                assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 3);
                assert_eq!(pool.worker_pids(), []);
                pool.terminate();
                pool.join().unwrap();
                assert_eq!(pool.join_timeout(LONG), Ok(true));
                drop((pool, closed));
                // A new pool belongs to this process, so it works.
                let own = Pool::new(1).unwrap();
                assert_eq!(own.apply(square::task(3)).unwrap(), 9);
                end(&own);
            }));
            // SAFETY: ends the process without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(inert.is_err())) }
        }
        child => {
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: `child` is our child, and the out-pointer is valid.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child's handles were inert");
            gate.open();
            assert!(held.get().is_ok() && map.get().is_ok(), "here everything goes on");
            end(&pool);
        }
    }
}
