//! Submitting single calls, and mapping functions over inputs.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use executor::{
    BuildError, Phase, ProcessPoolExecutor, ShutdownOptions, Side, TaskError, TaskFuture,
    as_completed, task,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use crate::support::{
    self, Gate, come_to, echo_number, eventually, forbid_calls, hold, memory_to_spare, note, notes,
    pid, pool, variable, watchdog, watchdog_of,
};

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task]
fn square(x: u64) -> u64 {
    x * x
}

fn squares(n: u64) -> Vec<u64> {
    (0..n).map(|x| x * x).collect()
}

// ---- submit -------------------------------------------------------------------------------------

#[test]
fn ex01_a_submitted_task_returns_its_value() {
    let _watchdog = watchdog();
    let pool = pool(2);
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
    // The same when the worker exists already and is idle.
    assert_eq!(pool.submit(add::task(i64::MIN, i64::MAX)).result().unwrap(), -1);
}

/// Returns how many calls of it this process has run before.
#[task]
fn count_up() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::SeqCst)
}

/// More tasks than the scheduler takes at a time.
const LONG_QUEUE: usize = 5_000;

/// Returns a pool whose only worker is held at a gate by a task.
fn held_pool() -> (ProcessPoolExecutor, Gate, TaskFuture<u32>) {
    let (pool, gate) = (pool(1), Gate::new());
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    (pool, gate, held)
}

#[test]
fn tasks_of_a_long_queue_run_in_order_and_none_that_was_cancelled() {
    let _watchdog = watchdog();
    let (pool, gate, held) = held_pool();
    let futures: Vec<_> = (0..LONG_QUEUE).map(|_| pool.submit(count_up::task())).collect();
    // From the last one on, where the scheduler has not looked yet.
    let is_cancelled = |i: usize| i.is_multiple_of(7);
    for (i, future) in futures.iter().enumerate().rev().filter(|(i, _)| is_cancelled(*i)) {
        assert!(future.cancel(), "task {i} has not begun");
    }
    // Others follow behind them.
    let later: Vec<_> = (0..LONG_QUEUE).map(|_| pool.submit(count_up::task())).collect();
    gate.open();
    held.result().unwrap();
    let mut expected = 0;
    for (i, future) in futures.into_iter().enumerate() {
        match is_cancelled(i) {
            true => assert!(future.result().unwrap_err().is_cancelled(), "task {i}"),
            false => {
                assert_eq!(future.result().unwrap(), expected, "task {i}");
                expected += 1;
            }
        }
    }
    for future in later {
        assert_eq!(future.result().unwrap(), expected);
        expected += 1;
    }
}

#[test]
fn a_long_queue_survives_the_death_of_its_worker() {
    let _watchdog = watchdog();
    let (pool, gate, held) = held_pool();
    let futures: Vec<_> = (0..LONG_QUEUE).map(|_| pool.submit(count_up::task())).collect();
    // SAFETY: `kill` has no preconditions, and the worker is ours.
    unsafe { libc::kill(gate.arrivals()[0] as i32, libc::SIGKILL) };
    assert!(matches!(held.result(), Err(TaskError::WorkerLost { .. })));
    for (i, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), i, "in order, by the next worker");
    }
}

#[test]
fn threads_that_submit_all_the_time_keep_no_cancel_from_its_end() {
    let _watchdog = watchdog();
    let (pool, gate, held) = held_pool();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut futures = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        futures.push(pool.submit(count_up::task()));
                    }
                    futures
                })
            })
            .collect();
        // The worker is held, so all of them wait, and each cancel looks at all of them.
        for _ in 0..300 {
            assert!(pool.submit(count_up::task()).cancel());
        }
        is_over.store(true, Ordering::Relaxed);
        gate.open();
        held.result().unwrap();
        let futures = submitters.into_iter().flat_map(|thread| thread.join().unwrap());
        let mut results: Vec<_> = futures.map(|future| future.result().unwrap()).collect();
        results.sort_unstable();
        assert!((0..).zip(&results).all(|(i, result)| i == *result), "each has run once");
    });
}

#[test]
fn a_long_queue_is_cancelled_by_a_shutdown_and_ended_by_a_kill() {
    let _watchdog = watchdog();
    for kills in [false, true] {
        let (pool, gate, held) = held_pool();
        let futures: Vec<_> = (0..LONG_QUEUE).map(|_| pool.submit(count_up::task())).collect();
        if kills {
            pool.kill_workers();
        } else {
            pool.shutdown_with(ShutdownOptions::new().wait(false).cancel_pending(true));
            gate.open();
        }
        for future in futures {
            let error = future.result().unwrap_err();
            assert!(if kills {
                matches!(error, TaskError::Shutdown)
            } else {
                error.is_cancelled()
            });
        }
        assert_eq!(held.result().is_ok(), !kills);
        pool.shutdown(true);
    }
}

#[test]
fn ex01_many_threads_can_submit_at_a_time() {
    let _watchdog = watchdog();
    let pool = pool(2);
    std::thread::scope(|scope| {
        for thread in 0..8_i64 {
            let pool = &pool;
            scope.spawn(move || {
                let futures: Vec<_> =
                    (0..100).map(|i| pool.submit(add::task(thread * 1_000, i))).collect();
                for (i, future) in (0..).zip(futures) {
                    assert_eq!(future.result().unwrap(), thread * 1_000 + i);
                }
            });
        }
    });
}

/// Field names that are keywords, or names that code around a call often uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Odd {
    r#fn: u8,
    r#type: String,
    self_: Option<i64>,
    task: Option<Option<u16>>,
    executor: Vec<f64>,
    args: (bool, char),
    callback: BTreeMap<String, u8>,
    timeout: (),
    name: [i128; 2],
}

fn odd() -> Odd {
    Odd {
        r#fn: 255,
        r#type: "a \0 zero byte, and ünïcödé".into(),
        self_: None,
        task: Some(None),
        executor: vec![f64::MIN, -0.0, f64::INFINITY],
        args: (true, '\u{10ffff}'),
        callback: [("".into(), 0), ("self".into(), 1)].into(),
        timeout: (),
        name: [i128::MIN, i128::MAX],
    }
}

#[task]
fn give_back(value: Odd) -> Odd {
    value
}

type Strange = (u8, String, i32, u16, String, Vec<u8>, (i32, i32, i32), bool, u8);

#[task]
#[allow(clippy::too_many_arguments)]
fn strange_names(
    r#fn: u8,
    self_: &str,
    task: i32,
    pool: u16,
    args: &str,
    bytes: &[u8],
    out: i32,
    cx: i32,
    reader: i32,
    result: bool,
    __bytes: u8,
) -> Strange {
    (r#fn, self_.into(), task, pool, args.into(), bytes.into(), (out, cx, reader), result, __bytes)
}

#[test]
fn ex02_named_and_struct_arguments_reach_the_task_unchanged() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.submit(give_back::task(odd())).result().unwrap(), odd());
    let strange = strange_names::task(1, "two", -3, 4, "five", b"six\0", 7, 8, 9, true, 11);
    assert_eq!(
        pool.submit(strange).result().unwrap(),
        (1, "two".into(), -3, 4, "five".into(), b"six\0".to_vec(), (7, 8, 9), true, 11)
    );
}

/// Counts how often it is dropped.
struct Dropping<'a>(&'a Cell<u32>);

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

#[derive(Serialize, Deserialize)]
struct Argument(u32);

impl Drop for Argument {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

#[task]
fn consume(argument: Argument, gate: &Path) -> u32 {
    support::come_to(gate);
    argument.0
}

/// Returns the private memory of this process, in bytes.
fn private_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[task]
fn length(bytes: &[u8]) -> usize {
    bytes.len()
}

/// Submits 8 MiB 64 times and drops the futures. Runs in a process where nothing else allocates.
/// Returns the memory used before and after.
#[task]
fn submit_and_forget() -> (usize, usize) {
    let pool = pool(1);
    let bytes = vec![7_u8; 8 << 20];
    pool.submit(length::task(&bytes)).result().unwrap();
    let before = private_memory();
    for _ in 0..64 {
        // The future is dropped before the task is done. When the second task is done, so is the
        // first.
        drop(pool.submit(length::task(&bytes)));
        pool.submit(length::task(&[])).result().unwrap();
    }
    (before, private_memory())
}

#[test]
fn ex19_the_parent_keeps_no_argument_of_a_dropped_future() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    drop(pool.submit(consume::task(Argument(1), gate.path())));
    // The argument is no longer needed once it is encoded, so it is dropped while the task still
    // runs.
    gate.wait_for(1);
    assert_eq!(DROPPED.load(Ordering::SeqCst), 1);
    gate.open();

    // The encoded bytes are not kept either.
    let (before, after) = pool.submit(submit_and_forget::task()).result().unwrap();
    assert!(
        after < before + (256 << 20),
        "{before} bytes before, {after} after 512 MiB went through"
    );
}

#[test]
fn ex19_callbacks_and_their_captured_values_are_dropped() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let captured = Arc::new(());
    for _ in 0..10 {
        let future = pool.submit(echo_number::task(1));
        let held = Arc::clone(&captured);
        future.add_done_callback(move |_| drop(held));
        let held = Arc::clone(&captured);
        future.on_done(move |_| drop(held));
    }
    eventually("all callbacks are gone", || Arc::strong_count(&captured) == 1);
}

// ---- map ----------------------------------------------------------------------------------------

#[task]
fn power(base: u64, exponent: u32) -> u64 {
    base.wrapping_pow(exponent)
}

#[test]
fn ex04_a_map_of_two_zipped_inputs_keeps_its_order() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let sequential: Vec<u64> =
        (0..10).zip(0..10).map(|(base, exponent)| power(base, exponent)).collect();
    let pairs = || (0..10_u64).zip(0..10_u32);
    let plain = pool.map(|(base, exponent)| power::task(base, exponent), pairs());
    assert_eq!(plain.map(Result::unwrap).collect::<Vec<_>>(), sequential);
    let chunked = pool.map(|(base, exponent)| power::task(base, exponent), pairs()).chunk_size(3);
    assert_eq!(chunked.map(Result::unwrap).collect::<Vec<_>>(), sequential);
}

#[test]
fn ex05_every_chunk_size_gives_the_sequential_result() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for chunk_size in [6, 40, 50, 1_000, usize::MAX] {
        let results = pool.map(square::task, 0..40).chunk_size(chunk_size);
        assert_eq!(
            results.map(Result::unwrap).collect::<Vec<_>>(),
            squares(40),
            "chunk size {chunk_size}"
        );
    }
}

#[test]
fn ex05_a_chunk_size_of_0_is_rejected() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_rejected(&pool, |input| pool.map(echo_number::task, input).chunk_size(0), "chunk_size");
    assert_rejected(
        &pool,
        |input| pool.map(echo_number::task, input).chunk_size(0).unordered(),
        "chunk_size",
    );
}

/// Asserts that the map yields one error that names the option, and then ends. It must not pull an
/// item or start a process.
fn assert_rejected<M: Iterator<Item = Result<u32, TaskError>>>(
    pool: &ProcessPoolExecutor,
    map: impl FnOnce(Box<dyn Iterator<Item = u32>>) -> M,
    option: &str,
) {
    let pulled = Rc::new(Cell::new(0));
    let count = Rc::clone(&pulled);
    let mut map = map(Box::new((0..).inspect(move |_| count.set(count.get() + 1))));
    match map.next() {
        Some(Err(error @ TaskError::Invalid(_))) => {
            let text = error.to_string();
            assert!(text.contains(option) && text.contains("above 0"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(map.next().is_none());
    assert_eq!(pulled.get(), 0, "nothing was pulled");
    assert!(pool.worker_pids().is_empty(), "no process was started");
}

#[task]
fn invert(x: i32) -> Result<i32, String> {
    100_i32.checked_div(x).ok_or_else(|| "division by zero".to_owned())
}

#[test]
fn ex06_a_failing_item_fails_at_its_own_position() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for chunk_size in [1, 2, 4] {
        let mut map = pool.map(invert::task, [1, 2, 0, 4]).chunk_size(chunk_size);
        assert_eq!(map.next().unwrap().unwrap(), 100);
        assert_eq!(map.next().unwrap().unwrap(), 50);
        let error = map.next().unwrap().unwrap_err();
        assert!(error.is_failed() && error.to_string().contains("division by zero"), "{error}");
        // Unlike in Python, the iteration goes on.
        assert_eq!(map.next().unwrap().unwrap(), 25);
        assert!(map.next().is_none());
        assert!(map.next().is_none(), "and it stays ended");
    }
}

#[test]
fn an_item_that_is_an_error_is_yielded_in_its_place_and_no_task_runs_for_it() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let parsed = |text: &'static str| text.parse::<i32>();
    for chunk_size in [1, 2, 16] {
        let inputs = ["1", "x", "2", "0", "", "4"].map(parsed);
        let items: Vec<_> = pool
            .map(|input| input.map(invert::task), inputs)
            .chunk_size(chunk_size)
            .map(|result| result.map_err(|error| error.to_string()))
            .collect();
        let [Ok(100), Err(x), Ok(50), Err(zero), Err(empty), Ok(25)] = &items[..] else {
            panic!("{items:?}")
        };
        assert!(x.contains("invalid digit"), "{x}");
        assert!(zero.contains("division by zero"), "{zero}");
        assert!(empty.contains("empty string"), "{empty}");
    }
    // An endless input of errors is taken as far as the buffer, like any other.
    let taken = std::cell::Cell::new(0);
    let input = std::iter::repeat_with(|| {
        taken.set(taken.get() + 1);
        Err("no")
    });
    let errors = pool.map(|x: Result<i32, &str>| x.map(invert::task), input).buffer_size(8);
    for error in errors.take(3) {
        let Err(TaskError::Failed(error)) = error else { panic!("{error:?}") };
        assert_eq!(error.message(), "no");
    }
    assert!(taken.get() <= 8 + 3, "{}", taken.get());
}

#[test]
fn errors_of_one_map_go_through_the_next_one_as_they_are() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let first = pool.map(die_of_3::task, 0..6);
    let second: Vec<_> = pool.map(|x| x.map(die_of_3::task), first).collect();
    for (at, result) in second.iter().enumerate() {
        match result {
            Ok(x) => assert!(at != 3 && *x == at as u32),
            Err(error) => assert!(at == 3 && error.is_worker_lost(), "{at}: {error}"),
        }
    }
}

#[task]
fn die_of_3(x: u32) -> u32 {
    if x == 3 {
        std::process::abort();
    }
    x
}

#[test]
fn ex06_an_item_that_kills_its_worker_fails_at_its_own_position() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for chunk_size in [1, 4, 64] {
        let results: Vec<_> = pool.map(die_of_3::task, 0..10).chunk_size(chunk_size).collect();
        assert_eq!(results.len(), 10);
        for (x, result) in (0..).zip(results) {
            match result {
                Err(error) => assert!(x == 3 && error.is_worker_lost(), "{x}: {error}"),
                Ok(y) => assert!(x == y && x != 3),
            }
        }
    }
}

#[test]
fn ex11_every_buffer_size_gives_the_sequential_result() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let n = 20;
    for buffer_size in [1, 2, n, 2 * n, usize::MAX] {
        let results = pool.map(square::task, 0..n as u64).buffer_size(buffer_size);
        assert_eq!(
            results.map(Result::unwrap).collect::<Vec<_>>(),
            squares(n as u64),
            "buffer size {buffer_size}"
        );
    }
}

#[test]
fn ex11_no_combination_of_options_loses_or_repeats_an_item() {
    let _watchdog = watchdog();
    for workers in [1, 3] {
        let pool = pool(workers);
        for n in [0, 1, 2, 7, 100] {
            for chunk_size in [1, 3, 64, 200] {
                for buffer_size in [1, 2, 5, 80] {
                    let map = || {
                        pool.map(square::task, 0..n).chunk_size(chunk_size).buffer_size(buffer_size)
                    };
                    let what = format!(
                        "{workers} workers, {n} items, chunk {chunk_size}, buffer {buffer_size}"
                    );
                    assert_eq!(map().map(Result::unwrap).collect::<Vec<_>>(), squares(n), "{what}");
                    let mut unordered: Vec<_> = map().unordered().map(Result::unwrap).collect();
                    unordered.sort_unstable();
                    assert_eq!(unordered, squares(n), "{what}, unordered");
                }
            }
        }
    }
}

#[task]
fn same(a: u32, b: u32) -> bool {
    a == b
}

#[test]
fn ex12_zipped_inputs_stay_aligned_with_any_buffer_size() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for buffer_size in [1, 2, 7] {
        let pairs = (0..50_u32).zip((0..50).map(|x| x * 3));
        let map = pool.map(|(a, b)| same::task(a * 3, b), pairs).buffer_size(buffer_size);
        let aligned: Vec<bool> = map.map(Result::unwrap).collect();
        assert_eq!(aligned, [true; 50]);
    }
}

#[test]
fn ex13_an_endless_input_is_pulled_only_as_far_as_the_buffer_size() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for (buffer_size, chunk_size) in [(2, 1), (2, 64), (1, 1), (5, 2)] {
        let pulled = Cell::new(0);
        let input = (0..).inspect(|_| pulled.set(pulled.get() + 1));
        let mut map = pool.map(square::task, input).buffer_size(buffer_size).chunk_size(chunk_size);
        assert_eq!(pulled.get(), 0, "it is lazy");
        for yielded in 0..3_usize {
            assert_eq!(map.next().unwrap().unwrap(), (yielded * yielded) as u64);
            assert!(pulled.get() <= yielded + buffer_size, "{} pulled for {yielded}", pulled.get());
        }
    }
}

#[task]
fn squared_slowly(x: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(1));
    x * x
}

#[test]
fn x27_more_items_are_sent_together_if_their_calls_are_short() {
    let _watchdog = watchdog();
    // So many are taken ahead for a worker if each is sent alone.
    const ALONE: u64 = 32;
    let pool = pool(1);
    let pulled = Cell::new(0);
    let input = || {
        pulled.set(0);
        (0..).inspect(|_| pulled.set(pulled.get() + 1))
    };
    for (yielded, square) in pool.map(squared_slowly::task, input()).take(100).enumerate() {
        square.unwrap();
        let ahead = pulled.get() - yielded as u64;
        assert!(ahead <= ALONE, "{ahead}");
    }
    // The first calls are sent alone, too: nobody knows yet how long they take.
    let is_more =
        pool.map(square::task, input()).take(1_000_000).enumerate().any(|(yielded, square)| {
            assert_eq!(square.unwrap(), (yielded * yielded) as u64);
            pulled.get() - yielded as u64 > 2 * ALONE
        });
    assert!(is_more);
}

#[task]
fn index_of_worker(_item: u32) -> usize {
    executor::worker_index().unwrap()
}

#[test]
fn x27_splits_cut_an_input_of_known_length_into_so_many_chunks() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let chunks = |len: u32, splits: usize| -> Vec<usize> {
        let map = pool.map(index_of_worker::task, 0..len).splits(splits).round_robin();
        map.map(Result::unwrap).collect()
    };
    assert_eq!(chunks(7, 3), [0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(chunks(6, 3), [0, 0, 1, 1, 2, 2]);
    assert_eq!(chunks(2, 3), [0, 1]);
    assert_eq!(chunks(4, 1), [0; 4]);
    assert_eq!(chunks(0, 3), [0; 0]);
    let mut none = pool.map(index_of_worker::task, 0..4).splits(0);
    assert!(matches!(none.next(), Some(Err(TaskError::Invalid(text))) if text.contains("splits")));
    assert!(none.next().is_none());
}

#[test]
fn ex15_a_map_of_an_empty_input_ends_at_once() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for buffer_size in [1, 2, 100] {
        let mut map = pool.map(square::task, std::iter::empty()).buffer_size(buffer_size);
        assert!(map.next().is_none());
        assert!(map.next().is_none());
        assert!(pool.map(square::task, []).buffer_size(buffer_size).unordered().next().is_none());
        let mut stream = pool.map(square::task, []).buffer_size(buffer_size).stream();
        assert!(futures::executor::block_on(stream.next()).is_none());
    }
    assert!(pool.worker_pids().is_empty(), "no process was started");
}

#[test]
fn ex17_a_buffer_size_of_0_is_rejected_before_anything_is_submitted() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_rejected(
        &pool,
        |input| pool.map(echo_number::task, input).buffer_size(0),
        "buffer_size",
    );
    assert_rejected(
        &pool,
        |input| pool.map(echo_number::task, input).buffer_size(0).unordered(),
        "buffer_size",
    );
    let stream = |input| pool.map(echo_number::task, input).buffer_size(0).stream();
    assert_rejected(
        &pool,
        |input| futures::executor::block_on_stream(stream(input)),
        "buffer_size",
    );
}

#[test]
fn ex35_a_panic_of_the_input_reaches_the_caller_and_the_pool_stays_usable() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for chunk_size in [1, 4] {
        let input = (0..10).map(|x| if x == 3 { panic!("item {x} of the input") } else { x });
        let mut map = pool.map(square::task, input).chunk_size(chunk_size);
        let panic = catch_unwind(AssertUnwindSafe(|| map.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "item 3 of the input");
        // Items pulled before the panic are not lost, and the map can be continued.
        let rest: Vec<u64> = map.map(Result::unwrap).collect();
        assert_eq!(rest, [0, 1, 4, 16, 25, 36, 49, 64, 81]);
        assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
    }
    // The same for the closure that makes the tasks.
    let make = |x| if x == 3 { panic!("no task for {x}") } else { square::task(x) };
    let caught = catch_unwind(AssertUnwindSafe(|| pool.map(make, 0..10).count()));
    assert_eq!(caught.unwrap_err().downcast_ref::<String>().unwrap(), "no task for 3");
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
}

#[test]
fn ex35_an_error_of_the_input_stays_with_the_caller() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let mut failure = None;
    let input = (0..10_u64).map(|x| if x == 3 { Err("item 3") } else { Ok(x) });
    let good = input.map_while(|item| item.map_err(|error| failure = Some(error)).ok());
    assert_eq!(pool.map(square::task, good).map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 4]);
    assert_eq!(failure, Some("item 3"));
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
}

#[test]
fn map_pulls_on_the_callers_thread_from_an_input_that_is_not_send() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let dropped = Cell::new(0);
    let (here, guard) = (std::thread::current().id(), Dropping(&dropped));
    let input = Rc::new([1_u64, 2, 3]);
    let borrowed = &input;
    let sum: u64 = pool
        .map(
            |i: usize| {
                let _ = &guard;
                assert_eq!(std::thread::current().id(), here);
                square::task(borrowed[i])
            },
            0..3,
        )
        .map(Result::unwrap)
        .sum();
    assert_eq!(sum, 14);
    drop(guard);
    assert_eq!(dropped.get(), 1);
}

#[test]
fn an_unordered_map_yields_finished_items_before_unfinished_ones() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let closed = gate.path();
    let open = Gate::new();
    open.open();
    let mut map =
        pool.map(|i| hold::task(if i == 0 { closed } else { open.path() }), 0..10).unordered();
    for _ in 1..10 {
        map.next().unwrap().unwrap();
    }
    gate.open();
    map.next().unwrap().unwrap();
    assert!(map.next().is_none());
}

#[test]
fn dropping_a_map_cancels_items_that_have_not_begun() {
    let _watchdog = watchdog();
    for unordered in [false, true] {
        let (pool, gate) = (pool(1), Gate::new());
        let open = Gate::new();
        open.open();
        let mut map = pool
            .map(|i| hold::task(if i == 0 { open.path() } else { gate.path() }), 0..100)
            .buffer_size(10);
        if unordered {
            map = map.unordered();
        }
        map.next().unwrap().unwrap();
        gate.wait_for(1);
        drop(map);
        gate.open();
        // Eight items waited behind the running one, and none of them has run.
        pool.shutdown(true);
        assert_eq!(gate.arrivals().len(), 1);
    }
}

#[test]
fn the_timeout_of_a_map_yields_one_error_and_cancels_the_rest() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let limit = Duration::from_millis(20);
    let mut map = pool.map(|_| hold::task(gate.path()), 0..10).timeout(limit);
    match map.next() {
        Some(Err(TaskError::TimedOut { limit: of, phase: Phase::Map, .. })) => {
            assert_eq!(of, limit)
        }
        other => panic!("{other:?}"),
    }
    assert!(map.next().is_none());

    let mut stream = pool.map(|_| hold::task(gate.path()), 0..10).timeout(limit).stream();
    let first = futures::executor::block_on(stream.next());
    assert!(matches!(first, Some(Err(TaskError::TimedOut { phase: Phase::Map, .. }))), "{first:?}");
    assert!(futures::executor::block_on(stream.next()).is_none());

    gate.open();
    pool.shutdown(true);
    assert!(gate.arrivals().len() <= 1, "what had not begun was cancelled");
}

#[tokio::test]
async fn a_map_as_a_stream_keeps_its_order_and_options() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let results: Vec<u64> =
        pool.map(square::task, 0..100).chunk_size(7).stream().map(Result::unwrap).collect().await;
    assert_eq!(results, squares(100));
    let map = pool.map(square::task, 0..100).buffer_size(9).unordered();
    let mut results: Vec<u64> = map.stream().map(Result::unwrap).collect().await;
    results.sort_unstable();
    assert_eq!(results, squares(100));
    pool.shutdown_async().await;
}

#[test]
fn task_options_apply_to_each_item_of_a_map() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let make = |i: u32| {
        hold::task(gate.path()).timeout(Duration::from_millis(20)).name(format!("item {i}"))
    };
    let results: Vec<_> = pool.map(make, 0..3).chunk_size(3).collect();
    assert_eq!(results.len(), 3);
    for result in results {
        assert!(matches!(result, Err(TaskError::TimedOut { phase: Phase::Run, .. })), "{result:?}");
    }
    let named = |i: i32| invert::task(i).name(format!("item {i}"));
    let Some(Err(TaskError::Failed(error))) = pool.map(named, [0]).next() else {
        panic!("it fails")
    };
    assert_eq!(error.task(), "item 0");
}

// ---- building and scaling -----------------------------------------------------------------------

#[test]
fn ex21_max_workers_of_0_is_an_error_that_says_so() {
    match ProcessPoolExecutor::builder().max_workers(0).build() {
        Err(error @ BuildError::Invalid(_)) => {
            assert!(error.to_string().contains("max_workers must be above 0"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ex22_seventy_workers_run_at_the_same_time() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(70), Gate::new());
    let futures: Vec<_> = (0..70).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(70);
    assert_eq!(pool.worker_pids().len(), 70);
    gate.open();
    let pids: BTreeSet<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(pids.len(), 70);
    pool.shutdown(true);
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn ex22_any_number_of_workers_is_allowed() {
    let _watchdog = watchdog();
    let pool = pool(usize::MAX);
    assert_eq!(pool.max_workers(), usize::MAX);
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
    assert_eq!(pool.map(square::task, 0..3).map(Result::unwrap).collect::<Vec<_>>(), squares(3));
}

/// Builds a pool while queries of limits are forbidden. Runs in a process of its own, because the
/// filter cannot be removed.
#[task]
fn build_in_a_sandbox() -> Result<(usize, i64), String> {
    forbid_calls(&[
        libc::SYS_sched_getaffinity,
        libc::SYS_prlimit64,
        libc::SYS_getrlimit,
        libc::SYS_sysinfo,
    ]);
    let pool = ProcessPoolExecutor::new().map_err(|error| error.to_string())?;
    let sum = pool.submit(add::task(1, 2)).result().map_err(|error| error.to_string())?;
    Ok((pool.max_workers(), sum))
}

#[test]
fn ex23_a_pool_works_in_a_sandbox_that_forbids_querying_limits() {
    let _watchdog = watchdog();
    let (workers, sum) = pool(1).submit(build_in_a_sandbox::task()).result().unwrap();
    assert!(workers >= 1);
    assert_eq!(sum, 3);
}

#[test]
fn ex24_blocked_tasks_start_exactly_max_workers_processes() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(3), Gate::new());
    let futures: Vec<_> = (0..15 * 3).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(3);
    assert_eq!(pool.worker_pids().len(), 3);
    assert_eq!(gate.arrivals().len(), 3);
    assert_eq!(futures.iter().filter(|future| future.running()).count(), 3);
    gate.open();
    let pids: BTreeSet<u32> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!(gate.arrivals().len(), 15 * 3);
    assert_eq!(pids, BTreeSet::from_iter(pool.worker_pids()));
    assert_eq!(pids.len(), 3);
}

#[test]
fn ex25_tasks_submitted_one_at_a_time_reuse_one_worker() {
    let _watchdog = watchdog();
    let pool = pool(4);
    let first = pool.submit(pid::task()).result().unwrap();
    for _ in 0..3 {
        assert_eq!(pool.submit(pid::task()).result().unwrap(), first);
        assert_eq!(pool.worker_pids(), [first]);
    }
}

// ---- errors -------------------------------------------------------------------------------------

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    TooLarge { asked: u64, allowed: u64 },
    Because(Box<Refusal>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooLarge { asked, allowed } => write!(f, "{asked} asked, {allowed} allowed"),
            Refusal::Because(_) => f.write_str("refused"),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Refusal::Because(why) => Some(why),
            Refusal::TooLarge { .. } => None,
        }
    }
}

fn refusal() -> Refusal {
    Refusal::Because(Box::new(Refusal::TooLarge { asked: 8, allowed: 5 }))
}

#[task]
fn refuse() -> Result<u32, Refusal> {
    Err(refusal())
}

/// The line on which the task below panics.
const PANIC_LINE: u32 = line!() + 4;

#[task]
fn panic_with(text: &str) -> u32 {
    panic!("message: {text}")
}

#[test]
fn ex27_an_error_is_reported_with_its_type_and_its_fields() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(refuse::task()).result().unwrap_err();
    let TaskError::Failed(remote) = &error else { panic!("{error:?}") };
    assert_eq!(remote.downcast::<Refusal>(), Some(refusal()));
    assert_eq!(remote.downcast::<String>(), None);
    assert_eq!(remote.type_name(), std::any::type_name::<Refusal>());
    assert_eq!(remote.message(), "refused");
    assert_eq!(remote.sources(), ["8 asked, 5 allowed"]);
    assert_eq!(error.to_string(), "task `pool::submit_map::refuse` failed: refused");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "8 asked, 5 allowed");
    assert!(cause.source().is_none());
    assert_eq!(
        format!("{error:?}"),
        "task `pool::submit_map::refuse` failed: refused: 8 asked, 5 allowed"
    );
}

#[test]
fn ex27_a_panic_is_reported_with_message_location_and_backtrace() {
    let _watchdog = watchdog();
    let pool =
        ProcessPoolExecutor::builder().max_workers(1).env("RUST_BACKTRACE", "1").build().unwrap();
    let error = pool.submit(panic_with::task("ünï\ncode")).result().unwrap_err();
    let TaskError::Panicked(remote) = &error else { panic!("{error:?}") };
    assert_eq!(remote.message(), "message: ünï\ncode");
    let location = remote.location().unwrap();
    assert!(
        location.contains(&format!("tests/pool/submit_map.rs:{PANIC_LINE}:")),
        "{location} {PANIC_LINE}"
    );
    assert!(remote.backtrace().unwrap().contains("panic_with"), "{:?}", remote.backtrace());
    assert!(
        error.to_string().contains(location) && error.to_string().contains("message: ünï"),
        "{error}"
    );
    // The worker goes on.
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

#[task]
fn fail_with_nothing() -> Result<u32, Nothing> {
    Err(Nothing)
}

#[task]
fn fail_with_empty_text() -> Result<(), String> {
    Err(String::new())
}

#[task]
fn fail_with_false() -> Result<(), bool> {
    Err(false)
}

#[task]
fn panic_with_nothing() {
    std::panic::panic_any(())
}

#[task]
fn panic_with_empty_text() {
    panic!("")
}

#[task]
fn succeed_with_an_error() -> Result<Result<u8, String>, String> {
    Ok(Err("a value".into()))
}

#[test]
fn ex28_an_error_that_looks_empty_is_still_an_error() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let Err(TaskError::Failed(error)) = pool.submit(fail_with_nothing::task()).result() else {
        panic!()
    };
    assert_eq!((error.message(), error.downcast()), ("", Some(Nothing)));
    let Err(TaskError::Failed(error)) = pool.submit(fail_with_empty_text::task()).result() else {
        panic!()
    };
    assert_eq!((error.message(), error.downcast()), ("", Some(String::new())));
    let Err(TaskError::Failed(error)) = pool.submit(fail_with_false::task()).result() else {
        panic!()
    };
    assert_eq!((error.message(), error.downcast()), ("false", Some(false)));
    assert!(pool.submit(panic_with_nothing::task()).result().unwrap_err().is_panic());
    assert!(pool.submit(panic_with_empty_text::task()).result().unwrap_err().is_panic());
    // The reverse case: a value that looks like an error.
    assert_eq!(pool.submit(succeed_with_an_error::task()).result().unwrap(), Err("a value".into()));
}

// ---- data ---------------------------------------------------------------------------------------

/// Returns the length, and a mix of about one byte for each page.
#[task]
fn digest(bytes: &[u8]) -> (usize, u64) {
    digest_of(bytes)
}

fn digest_of(bytes: &[u8]) -> (usize, u64) {
    let mix = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
    (bytes.len(), bytes.iter().step_by(4_093).fold(0, mix))
}

#[task]
fn make_bytes(length: usize) -> Vec<u8> {
    bytes(length)
}

fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (i, byte) in bytes.iter_mut().step_by(4_093).enumerate() {
        *byte = (i % 251) as u8;
    }
    bytes
}

fn round_trip(argument: usize, result: usize) {
    let pool = pool(1);
    let sent = bytes(argument);
    let expected = digest_of(&sent);
    let future = pool.submit(digest::task(&sent));
    drop(sent);
    assert_eq!(future.result().unwrap(), expected);
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3, "the pool works on");
    let received = pool.submit(make_bytes::task(result)).result().unwrap();
    assert_eq!(digest_of(&received), digest_of(&bytes(result)));
    assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3, "the pool works on");
}

/// This test always runs. The next one tests the size that its name says, if there is enough
/// memory.
#[test]
fn ex31_an_argument_of_300_megabytes_arrives() {
    let _watchdog = watchdog();
    round_trip(300_000_000, 300_000_000);
}

/// Needs about 6 GiB of memory for the parent and the worker together.
#[test]
fn ex31_an_argument_of_2_gigabytes_arrives() {
    let Some(_leave) = memory_to_spare(10) else { return };
    let _watchdog = watchdog_of(Duration::from_secs(600));
    round_trip(2_200_000_000, 1_000);
}

/// Encodes its text in reverse, and counts in each process how often it is encoded and decoded.
#[derive(Clone, Debug, PartialEq)]
struct Reversed(String);

static ENCODED: AtomicU32 = AtomicU32::new(0);
static DECODED: AtomicU32 = AtomicU32::new(0);

impl Serialize for Reversed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ENCODED.fetch_add(1, Ordering::SeqCst);
        self.0.chars().rev().collect::<String>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Reversed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, Ordering::SeqCst);
        Ok(Reversed(String::deserialize(deserializer)?.chars().rev().collect()))
    }
}

fn counts() -> (u32, u32) {
    (ENCODED.load(Ordering::SeqCst), DECODED.load(Ordering::SeqCst))
}

/// Returns the worker's counts before its result is encoded.
#[task]
fn reversed(mut value: Reversed) -> (Reversed, (u32, u32)) {
    value.0.push('!');
    (value, counts())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
    More { value: serde_json::Value },
}

#[task(codec = "messagepack")]
fn self_describing(value: Untagged, text: Reversed) -> (Untagged, Reversed) {
    (value, text)
}

#[task]
fn not_self_describing(value: Untagged) -> Untagged {
    value
}

#[test]
fn ex32_a_types_encoder_and_a_tasks_codec_are_applied_in_both_directions() {
    let _watchdog = watchdog();
    let (first, second) = (pool(1), pool(1));
    let before = counts();
    let future = first.submit(reversed::task(Reversed("straight".into())));
    assert_eq!(counts(), (before.0 + 1, before.1), "encoded in `submit`, here");
    let (value, in_worker) = future.result().unwrap();
    assert_eq!(value, Reversed("straight!".into()));
    assert_eq!(counts(), (before.0 + 1, before.1 + 1), "decoded where the result is read");
    let (again, in_worker_again) = first.submit(reversed::task(value)).result().unwrap();
    assert_eq!(again, Reversed("straight!!".into()));
    assert_eq!(
        in_worker_again,
        (in_worker.0 + 1, in_worker.1 + 1),
        "and once a call in the worker"
    );

    // The codec belongs to the task. Tasks with another codec are not affected, in the same
    // executor or in another one.
    let value = Untagged::More { value: serde_json::json!({ "a": [1, null, "b"] }) };
    for pool in [&first, &second] {
        let sent = self_describing::task(value.clone(), Reversed("text".into()));
        assert_eq!(pool.submit(sent).result().unwrap(), (value.clone(), Reversed("text".into())));
        assert_eq!(pool.submit(give_back::task(odd())).result().unwrap(), odd());
    }
    let error = second.submit(not_self_describing::task(Untagged::Number(1))).result().unwrap_err();
    let TaskError::Encode(failure) = &error else { panic!("{error:?}") };
    assert_eq!(failure.side(), Side::Arguments);
    assert!(error.to_string().contains("messagepack"), "it names the cure: {error}");
}

// ---- environment --------------------------------------------------------------------------------

#[test]
fn ex33_workers_see_the_overridden_environment_and_the_parent_does_not() {
    let _watchdog = watchdog();
    let path = std::env::var("PATH").unwrap();
    let build = ProcessPoolExecutor::builder().max_workers(1);
    let pool = build
        .env("EXECUTOR_TEST_EX33", "first")
        .env("EXECUTOR_TEST_EX33", "last")
        .env("EXECUTOR_TEST_EMPTY", "")
        .env("PATH", "/nowhere")
        .build()
        .unwrap();
    let in_worker = |name: &str| pool.submit(variable::task(name)).result().unwrap();
    assert_eq!(in_worker("EXECUTOR_TEST_EX33").as_deref(), Some("last"));
    assert_eq!(in_worker("EXECUTOR_TEST_EMPTY").as_deref(), Some(""));
    assert_eq!(in_worker("PATH").as_deref(), Some("/nowhere"));
    assert_eq!(in_worker("EXECUTOR_TEST_UNSET"), None);
    // Other variables are inherited.
    assert_eq!(in_worker("CARGO_MANIFEST_DIR"), std::env::var("CARGO_MANIFEST_DIR").ok());

    assert_eq!(std::env::var("PATH").unwrap(), path);
    assert!(std::env::var_os("EXECUTOR_TEST_EX33").is_none());
    let other = support::pool(1);
    assert_eq!(other.submit(variable::task("PATH")).result().unwrap().unwrap(), path);
    assert_eq!(other.submit(variable::task("EXECUTOR_TEST_EX33")).result().unwrap(), None);
}

#[test]
fn ex33_a_replacement_worker_has_the_environment_too() {
    let _watchdog = watchdog();
    let build = ProcessPoolExecutor::builder().max_workers(1);
    let pool = build.env("EXECUTOR_TEST_EX33", "set").build().unwrap();
    assert!(pool.submit(die_of_3::task(3)).result().unwrap_err().is_worker_lost());
    assert_eq!(
        pool.submit(variable::task("EXECUTOR_TEST_EX33")).result().unwrap().as_deref(),
        Some("set")
    );
}

#[test]
fn ex33_an_invalid_variable_name_or_value_is_rejected() {
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
        let built = ProcessPoolExecutor::builder().env(name, value).build();
        assert!(matches!(built, Err(BuildError::Invalid(_))), "{name:?}={value:?}: {built:?}");
    }
}

/// Runs a program that reads the worker's stdin to the end.
#[task]
fn run_cat() -> Result<String, String> {
    let output =
        Command::new("cat").output_with_inherited_stdin().map_err(|error| error.to_string())?;
    Ok(output)
}

trait InheritedStdin {
    fn output_with_inherited_stdin(&mut self) -> std::io::Result<String>;
}

impl InheritedStdin for Command {
    fn output_with_inherited_stdin(&mut self) -> std::io::Result<String> {
        let output = self.stdin(std::process::Stdio::inherit()).output()?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[task]
fn read_own_stdin() -> std::io::Result<String> {
    std::io::read_to_string(std::io::stdin())
}

/// Replaces its own stdin by a pipe that has some text and never ends, then starts workers. Runs in
/// a process of its own.
#[task]
fn parent_with_open_stdin() -> (String, String, Vec<u8>) {
    use std::io::{Read, Write};
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"typed").unwrap();
    rustix::stdio::dup2_stdin(&reader).unwrap();
    let pool = pool(1);
    let cat = pool.submit(run_cat::task()).result().unwrap();
    let own = pool.submit(read_own_stdin::task()).result().unwrap();
    // The workers have taken nothing from the pipe.
    let mut typed = [0; 5];
    std::io::stdin().read_exact(&mut typed).unwrap();
    drop(writer);
    (cat, own, typed.to_vec())
}

#[test]
fn ex37_a_program_started_by_a_task_does_not_read_the_parents_stdin() {
    let _watchdog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.submit(run_cat::task()).result().unwrap(), "");
    let (cat, own, typed) = pool.submit(parent_with_open_stdin::task()).result().unwrap();
    assert_eq!((cat.as_str(), own.as_str()), ("", ""));
    assert_eq!(typed, b"typed");
}

// ---- bad data -----------------------------------------------------------------------------------

#[derive(Debug)]
struct Unwilling {
    panics: bool,
}

impl Serialize for Unwilling {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        assert!(!self.panics, "I panic instead");
        Err(serde::ser::Error::custom("I do not want to"))
    }
}

impl<'de> Deserialize<'de> for Unwilling {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let panics = bool::deserialize(deserializer)?;
        assert!(!panics, "I panic instead");
        Err(serde::de::Error::custom("I do not want to"))
    }
}

#[task]
fn take_unwilling(value: Unwilling) -> bool {
    value.panics
}

#[task]
fn give_unwilling(panics: bool) -> Unwilling {
    Unwilling { panics }
}

#[test]
fn a_value_that_does_not_encode_fails_only_its_own_task() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for (panics, says) in [(false, "I do not want to"), (true, "I panic instead")] {
        let error = pool.submit(take_unwilling::task(Unwilling { panics })).result().unwrap_err();
        let TaskError::Encode(failure) = &error else { panic!("{error:?}") };
        assert_eq!(
            (failure.side(), failure.task()),
            (Side::Arguments, "pool::submit_map::take_unwilling")
        );
        assert!(error.to_string().contains(says), "{error}");

        let error = pool.submit(give_unwilling::task(panics)).result().unwrap_err();
        let TaskError::Encode(failure) = &error else { panic!("{error:?}") };
        assert_eq!(
            (failure.side(), failure.task()),
            (Side::ResultInWorker, "pool::submit_map::give_unwilling")
        );
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), 3);
    }
}

#[test]
fn arguments_are_encoded_before_submit_returns() {
    let _watchdog = watchdog();
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1);
    let mut file = dir.path().join("notes");
    let future = pool.submit(note::task(file.clone(), 1));
    let encoded = note::task(file.clone(), 2).encode();
    file.push("changed");
    future.result().unwrap();
    pool.submit(encoded).result().unwrap();
    assert_eq!(notes(&dir.path().join("notes")), [1, 2]);
}

// ---- which result belongs to which input --------------------------------------------------------

#[task]
fn triple(x: u32) -> Result<u32, String> {
    if x == 13 { Err("unlucky".into()) } else { Ok(3 * x) }
}

#[task]
fn triple_when_let(gate: Option<&Path>, x: u32) -> u32 {
    if let Some(gate) = gate {
        come_to(gate);
    }
    3 * x
}

#[test]
fn unordered_results_come_with_the_index_of_their_item() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for chunk_size in [1, 7, 100] {
        let mut seen = BTreeSet::new();
        for (index, result) in
            pool.map(triple::task, 0..300).unordered().chunk_size(chunk_size).with_index()
        {
            assert!(seen.insert(index), "{index} came twice");
            match result {
                Ok(value) => assert_eq!(value, 3 * index as u32),
                Err(error) => assert!(index == 13 && error.is_failed(), "{index}: {error}"),
            }
        }
        assert_eq!(seen.len(), 300);
    }
    let in_order: Vec<usize> =
        pool.map(triple::task, 0..50).with_index().map(|(index, _)| index).collect();
    assert!(in_order.into_iter().eq(0..50));
}

#[test]
fn an_item_that_finishes_last_is_identified_by_its_index() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let path = gate.path().to_owned();
    let items = (0..20).map(|x| (x == 0).then(|| path.clone())).zip(0..20);
    let make =
        |(gate, x): (Option<PathBuf>, u32)| triple_when_let::task(gate.as_deref(), x).encode();
    let mut results = pool.map(make, items).unordered().chunk_size(1).with_index();
    let mut early: Vec<usize> = results
        .by_ref()
        .take(19)
        .map(|(index, result)| {
            assert_eq!(result.unwrap(), 3 * index as u32);
            index
        })
        .collect();
    early.sort();
    assert!(early.into_iter().eq(1..20));
    gate.open();
    assert!(matches!(results.next(), Some((0, Ok(0)))));
    assert!(results.next().is_none());
}

#[test]
fn an_error_of_the_whole_map_has_an_index_that_no_item_has() {
    let pool = pool(1);
    let mut results = pool.map(triple::task, 0..3).chunk_size(0).with_index();
    assert!(matches!(results.next(), Some((0, Err(TaskError::Invalid(_))))), "nothing was taken");
    let gate = Gate::new();
    let path = gate.path().to_owned();
    let make = |x: u32| triple_when_let::task(Some(path.as_path()), x).encode();
    let mut results = pool.map(make, 0..3).timeout(Duration::from_millis(50)).with_index();
    let (index, result) = results.next().unwrap();
    assert!(index == 3 && result.unwrap_err().is_timeout(), "{index}");
    assert!(results.next().is_none());
}

#[test]
fn a_stream_can_have_indexes_too() {
    let _watchdog = watchdog();
    let results = pool(2).map(triple::task, 20..60).unordered().with_index().stream();
    let results: Vec<_> = futures::executor::block_on_stream(results).collect();
    assert_eq!(results.len(), 40);
    assert!(
        results.iter().all(|(index, result)| *result.as_ref().unwrap() == 3 * (20 + *index as u32))
    );
}

#[test]
fn a_hash_map_of_futures_finds_the_key_of_each_finished_future() {
    let _watchdog = watchdog();
    let pool = pool(2);
    // In Python: `{pool.submit(triple, x): x for x in …}`.
    let (mut futures, mut keys) = (Vec::new(), HashMap::new());
    for x in 0..30 {
        let future = pool.submit(triple::task(x));
        keys.insert(future.id(), x);
        futures.push(future);
    }
    for future in as_completed(futures) {
        let x = keys.remove(&future.id()).expect("each comes once");
        match future.result() {
            Ok(value) => assert_eq!(value, 3 * x),
            Err(error) => assert_eq!(x, 13, "{error}"),
        }
    }
    assert!(keys.is_empty());
}
