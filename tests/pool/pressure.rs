//! Limits on pending tasks: `max_pending`, `max_pending_bytes`, `try_submit`, `submit_async`.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use executor::{IntoTask, SubmitAsync, prelude::*};
use futures::StreamExt;

use crate::support::*;

/// Returns a pool with this number of workers, and of tasks that may be pending.
fn limited(workers: usize, max_pending: usize) -> ProcessPoolExecutor {
    let builder = ProcessPoolExecutor::builder().max_workers(workers);
    builder.max_pending(max_pending).build().unwrap()
}

fn poll<T: IntoTask>(future: &mut SubmitAsync<T>) -> Poll<TaskFuture<T::Output>> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn x28_submit_waits_for_room_and_try_submit_gives_the_task_back() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 3), Gate::new());
    let held: Vec<_> = (0..3).map(|_| pool.try_submit(hold::task(gate.path())).unwrap()).collect();
    let full = pool.try_submit(echo::task(4)).unwrap_err();
    assert!(full.to_string().contains("max_pending"), "{full}");
    let (returned, sleeper) = (AtomicBool::new(false), Sleeper::default());
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            sleeper.is_this_thread();
            let future = pool.submit(echo::task(5));
            returned.store(true, Ordering::SeqCst);
            future.result().unwrap()
        });
        gate.wait_for(1);
        sleeper.wait_until_asleep();
        assert!(!returned.load(Ordering::SeqCst), "there is no room");
        let stats = pool.stats();
        assert_eq!((stats.running, stats.queued), (1, 2), "nothing more was accepted");
        gate.open();
        assert_eq!(waits.join().unwrap(), 5);
    });
    for future in held {
        future.result().unwrap();
    }
    let task = full.into_task();
    assert_eq!(pool.try_submit(task).unwrap().result().unwrap(), 4);
}

#[test]
fn a_result_that_is_there_has_made_room() {
    let _watchdog = watchdog();
    let pool = limited(1, 1);
    for n in 0..500 {
        assert_eq!(pool.try_submit(echo::task(n)).unwrap().result().unwrap(), n);
    }
}

#[test]
fn room_is_made_however_a_task_ends() {
    #[derive(serde::Serialize)]
    struct Unfit(#[serde(serialize_with = "fails")] u8);
    fn fails<S: serde::Serializer>(_: &u8, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("unfit"))
    }
    impl<'de> serde::Deserialize<'de> for Unfit {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Unfit(0))
        }
    }
    #[task]
    fn take(unfit: Unfit) -> u8 {
        unfit.0
    }
    #[task]
    fn panics() {
        panic!("on purpose")
    }

    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 1), Gate::new());
    assert!(pool.try_submit(exit::task(3)).unwrap().result().unwrap_err().is_worker_lost());
    assert!(pool.try_submit(panics::task()).unwrap().result().unwrap_err().is_panic());
    assert!(pool.try_submit(fail::task("no".into())).unwrap().result().unwrap_err().is_failed());
    let unfit = pool.try_submit(take::task(Unfit(1))).unwrap().result().unwrap_err();
    assert!(matches!(unfit, TaskError::Encode(_)), "{unfit}");
    let soon = Duration::from_millis(20);
    let timed = pool.try_submit(hold::task(gate.path()).timeout(soon)).unwrap();
    assert!(timed.result().unwrap_err().is_timeout());
    let running = pool.try_submit(hold::task(gate.path())).unwrap();
    gate.wait_for(2);
    assert!(running.cancel_running());
    assert!(running.result().unwrap_err().is_cancelled());
    let dropped = pool.try_submit(echo::task(1)).unwrap();
    drop(dropped);
    assert_eq!(pool.submit(echo::task(2)).result().unwrap(), 2);
}

#[test]
fn who_waits_is_woken_when_the_pool_ends() {
    let _watchdog = watchdog();
    let ends: [fn(&ProcessPoolExecutor); 3] = [
        |pool| pool.shutdown(false),
        ProcessPoolExecutor::kill_workers,
        |pool| {
            // A pool breaks when a first worker ends before it is ready.
            assert!(pool.broken().is_none());
            pool.terminate_workers();
        },
    ];
    for end in ends {
        let (pool, gate) = (limited(1, 1), Gate::new());
        let held = pool.submit(hold::task(gate.path()));
        gate.wait_for(1);
        let mut awaits = pool.submit_async(echo::task(1));
        assert!(poll(&mut awaits).is_pending());
        let sleepers = [Sleeper::default(), Sleeper::default()];
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                sleepers[0].is_this_thread();
                pool.submit(echo::task(2)).result()
            });
            let maps = scope.spawn(|| {
                sleepers[1].is_this_thread();
                pool.map(echo::task, 0..3).next().unwrap()
            });
            sleepers.iter().for_each(Sleeper::wait_until_asleep);
            end(&pool);
            assert!(waits.join().unwrap().unwrap_err().is_shutdown());
            assert!(maps.join().unwrap().unwrap_err().is_shutdown());
        });
        let Poll::Ready(future) = poll(&mut awaits) else { panic!("nobody waits any more") };
        assert!(future.result().unwrap_err().is_shutdown());
        assert!(pool.try_submit(echo::task(3)).unwrap().result().unwrap_err().is_shutdown());
        gate.open();
        drop(held);
    }
}

#[test]
fn who_waits_is_woken_when_the_pool_breaks() {
    #[task]
    fn hold_and_refuse(gate: &std::path::Path) -> Result<(), String> {
        come_to(gate);
        Err("refused".into())
    }

    let _watchdog = watchdog();
    let gate = Gate::new();
    let builder = ProcessPoolExecutor::builder().max_workers(1).max_pending(1);
    let pool = builder.initializer(hold_and_refuse::task(gate.path())).build().unwrap();
    let first = pool.submit(echo::task(0));
    let mut awaits = pool.submit_async(echo::task(1));
    assert!(poll(&mut awaits).is_pending());
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.submit(echo::task(2)).result());
        gate.wait_for(1);
        gate.open();
        assert!(waits.join().unwrap().unwrap_err().is_broken());
    });
    assert!(first.result().unwrap_err().is_broken());
    let Poll::Ready(future) = poll(&mut awaits) else { panic!("nobody waits any more") };
    assert!(future.result().unwrap_err().is_broken());
}

#[test]
fn x28_submit_async_submits_nothing_if_it_is_dropped_and_keeps_the_order() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 1), Gate::new());
    let notes_file = gate.file("notes");
    let held = pool.submit(hold::task(gate.path()));
    let mut line: VecDeque<_> = (0..6)
        .map(|n| {
            let mut future = pool.submit_async(note::task(notes_file.clone(), n));
            assert!(poll(&mut future).is_pending());
            future
        })
        .collect();
    // Never polled, so it is not in the line.
    drop(pool.submit_async(note::task(notes_file.clone(), 100)));
    drop(line.remove(4));
    drop(line.pop_front());
    gate.open();
    held.result().unwrap();
    let others = thread::scope(|scope| {
        let thread = scope.spawn(|| pool.submit(note::task(notes_file.clone(), 6)).result());
        for future in line {
            futures::executor::block_on(future).result().unwrap();
        }
        thread.join().unwrap()
    });
    assert_eq!(others.unwrap(), 6);
    assert_eq!(notes(&notes_file), [1, 2, 3, 5, 6]);
}

#[test]
fn many_threads_and_async_tasks_share_a_small_pool() {
    const EACH: u64 = 100;
    let _watchdog = watchdog();
    let pool = limited(2, 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                let futures: Vec<_> =
                    (0..EACH).map(|n| pool.submit(echo::task(thread * EACH + n))).collect();
                for (n, future) in (0..).zip(futures) {
                    assert_eq!(future.result().unwrap(), thread * EACH + n);
                }
            });
            scope.spawn(move || {
                let results: Result<Vec<_>, _> = pool.map(echo::task, 0..EACH).collect();
                assert_eq!(results.unwrap(), (0..EACH).collect::<Vec<_>>());
            });
        }
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let pool = pool.clone();
                runtime.spawn(async move {
                    for n in 0..EACH {
                        let future = pool.submit_async(echo::task(task + n)).await;
                        assert_eq!(future.await.unwrap(), task + n);
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
    });
    for n in 0..3 {
        let future = pool.try_submit(echo::task(n));
        assert_eq!(future.expect("all places were given back").result().unwrap(), n);
    }
}

#[test]
fn x28_a_map_takes_only_as_many_items_as_there_is_room_for() {
    let _watchdog = watchdog();
    for max_pending in [1, 2, 7] {
        let pool = limited(2, max_pending);
        let taken = AtomicUsize::new(0);
        let items = (0_u64..).inspect(|_| _ = taken.fetch_add(1, Ordering::Relaxed));
        for (n, result) in (0..300).zip(pool.map(echo::task, items)) {
            assert_eq!(result.unwrap(), n);
            let ahead = taken.load(Ordering::Relaxed) as u64 - n;
            assert!(ahead <= max_pending as u64, "{ahead} items were taken ahead");
        }
        // Another pool, since tasks of the map that was dropped may still run.
        let (pool, gate, taken) = (limited(2, max_pending), Gate::new(), AtomicUsize::new(0));
        let items = (0..100).inspect(|_| _ = taken.fetch_add(1, Ordering::Relaxed));
        let mut map =
            pool.map(|_| hold::task(gate.path()), items).timeout(Duration::from_millis(20));
        assert!(map.next().unwrap().unwrap_err().is_timeout());
        assert_eq!(taken.load(Ordering::Relaxed), max_pending);
        drop(map);
        gate.open();
        assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    }
}

#[test]
fn a_map_without_pending_items_waits_in_the_line() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 1), Gate::new());
    let held = pool.submit(hold::task(gate.path()));
    let soon = Duration::from_millis(20);
    let mut late = pool.map(echo::task, 0..3).timeout(soon);
    assert!(late.next().unwrap().unwrap_err().is_timeout());
    assert!(late.next().is_none());
    let late: Vec<_> =
        futures::executor::block_on(pool.map(echo::task, 0..3).timeout(soon).stream().collect());
    assert!(matches!(&late[..], [Err(TaskError::TimedOut { .. })]), "{late:?}");
    let mut stream = pool.map(echo::task, 0..20).stream();
    let mut abandoned = pool.map(echo::task, 0..20).stream();
    let mut context = Context::from_waker(Waker::noop());
    assert!(abandoned.poll_next_unpin(&mut context).is_pending());
    assert!(stream.poll_next_unpin(&mut context).is_pending());
    drop(abandoned);
    thread::scope(|scope| {
        let map = scope.spawn(|| pool.map(echo::task, 0..20).collect::<Result<Vec<_>, _>>());
        gate.open();
        let results: Vec<_> = futures::executor::block_on(stream.map(Result::unwrap).collect());
        assert_eq!(results, (0..20).collect::<Vec<_>>());
        assert_eq!(map.join().unwrap().unwrap(), (0..20).collect::<Vec<_>>());
    });
    held.result().unwrap();
    assert!(pool.try_submit(echo::task(1)).is_ok());
}

#[test]
fn x28_max_pending_bytes_limits_arguments_and_admits_the_largest() {
    #[task]
    fn hold_with(gate: &std::path::Path, bytes: &[u8]) -> usize {
        come_to(gate);
        bytes.len()
    }

    let _watchdog = watchdog();
    let (gate, large) = (Gate::new(), vec![0; 1 << 20]);
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.max_pending_bytes(100_000).build().unwrap();
    let first = pool.try_submit(hold_with::task(gate.path(), &[])).unwrap();
    let second = pool.try_submit(hold_with::task(gate.path(), &large)).expect("it may be large");
    pool.try_submit(echo::task(1)).expect_err("a megabyte is pending");
    gate.open();
    assert_eq!((first.result().unwrap(), second.result().unwrap()), (0, 1 << 20));
    for _ in 0..20 {
        assert_eq!(pool.submit(hold_with::task(gate.path(), &large)).result().unwrap(), 1 << 20);
    }
    assert!(pool.try_submit(echo::task(1)).is_ok());
}

/// An endless input of arguments of this size, and a count of those that were taken.
fn large_items(len: usize) -> (impl Iterator<Item = Vec<u8>> + Unpin, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let items = std::iter::repeat_with(move || {
        count.fetch_add(1, Ordering::SeqCst);
        vec![0; len]
    });
    (items, taken)
}

#[task]
fn length_at(gate: std::path::PathBuf, bytes: Vec<u8>) -> usize {
    come_to(&gate);
    bytes.len()
}

#[test]
fn max_pending_bytes_stops_a_map_and_its_stream_after_each_large_item() {
    let _watchdog = watchdog();
    const LEN: usize = 1 << 20;
    let gate = Gate::new();
    let builder = || ProcessPoolExecutor::builder().max_workers(2).max_pending_bytes(LEN);
    let task = |bytes| length_at::task(gate.path().to_owned(), bytes);
    for pool in [builder().build().unwrap(), builder().max_pending(1000).build().unwrap()] {
        let (items, taken) = large_items(LEN);
        let mut stream = pool.map(task, items).stream();
        assert!(stream.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(taken.load(Ordering::SeqCst), 1);
        drop(stream);
    }
    gate.open();
    for pool in [builder().build().unwrap(), builder().max_pending(1000).build().unwrap()] {
        // A result that has come has made room for another item.
        let (items, taken) = large_items(LEN);
        assert_eq!(pool.map(task, items).next().unwrap().unwrap(), LEN);
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken <= 3, "{taken}");
        let (items, taken) = large_items(LEN);
        let mut stream = pool.map(task, items).stream();
        assert_eq!(futures::executor::block_on(stream.next()).unwrap().unwrap(), LEN);
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken <= 3, "{taken}");
        let (items, _) = large_items(LEN);
        assert_eq!(pool.map(task, items).take(20).filter(Result::is_ok).count(), 20);
        // Small items are not held back.
        let sum = pool.map(echo::task, 0..10_000).map(Result::unwrap).sum::<u64>();
        assert_eq!(sum, 49_995_000);
    }
}

#[test]
fn a_map_takes_few_large_items_ahead_unless_it_is_told_how_many() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    let task = |bytes| length_at::task(gate.path().to_owned(), bytes);
    let taken_at_once = |len: usize, buffer: Option<usize>| {
        let (items, taken) = large_items(len);
        let map = pool.map(task, items);
        let map = match buffer {
            Some(items) => map.buffer_size(items),
            None => map,
        };
        let mut stream = map.stream();
        assert!(stream.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        taken.load(Ordering::SeqCst)
    };
    assert_eq!(taken_at_once(8, None), 64);
    // 4 MiB for each worker, and at least two items for each.
    assert_eq!(taken_at_once(1 << 20, None), 8);
    assert_eq!(taken_at_once(6 << 20, None), 4);
    assert_eq!(taken_at_once(1 << 20, Some(20)), 20);
    gate.open();
    for unordered in [false, true] {
        let (items, taken) = large_items(6 << 20);
        let map = pool.map(task, items);
        let map = if unordered { map.unordered() } else { map };
        let mut results = map.map(Result::unwrap);
        assert_eq!(results.next(), Some(6 << 20));
        // Some of the first four may have been resolved, and have made room.
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken <= 8, "{taken}");
        assert!(results.take(20).all(|length| length == 6 << 20));
    }
}

#[test]
fn the_limits_hold_through_the_trait() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 1), Gate::new());
    let pool: Arc<dyn Executor> = Arc::new(pool);
    let held = pool.try_submit(hold::task(gate.path())).unwrap();
    let executor: &dyn Executor = &*pool;
    assert!(executor.try_submit(echo::task(1)).is_err());
    let mut awaits = executor.submit_async(echo::task(2));
    assert!(poll(&mut awaits).is_pending());
    gate.open();
    held.result().unwrap();
    assert_eq!(futures::executor::block_on(awaits).result().unwrap(), 2);
    assert_eq!(executor.map(echo::task, 0..10).map(Result::unwrap).sum::<u64>(), 45);
}

#[test]
fn a_waker_that_submits_to_a_full_pool_does_not_stop_it() {
    /// Submits tasks when it is woken.
    struct Submits(ProcessPoolExecutor, Mutex<Vec<TaskFuture<u64>>>);

    impl Wake for Submits {
        fn wake(self: Arc<Self>) {
            let futures: Vec<_> = (0..5).map(|n| self.0.submit(echo::task(n))).collect();
            self.1.lock().unwrap().extend(futures);
        }
    }

    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 1), Gate::new());
    let mut future = pool.submit(hold::task(gate.path()));
    let submits = Arc::new(Submits(pool.clone(), Mutex::default()));
    let waker = Waker::from(Arc::clone(&submits));
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open();
    eventually("the waker has submitted", || submits.1.lock().unwrap().len() == 5);
    for (n, future) in (0..).zip(submits.1.lock().unwrap().drain(..)) {
        assert_eq!(future.result().unwrap(), n);
    }
}

#[test]
fn a_callback_may_submit_to_a_full_pool() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1, 2), Gate::new());
    let (sender, receiver) = std::sync::mpsc::channel();
    let held = pool.submit(hold::task(gate.path()));
    let inner = pool.clone();
    pool.submit(echo::task(0)).on_done(move |_| {
        for n in 1..=10 {
            sender.send(inner.submit(echo::task(n))).unwrap();
        }
    });
    gate.open();
    held.result().unwrap();
    for (n, future) in (1..).zip(receiver) {
        assert_eq!(future.result().unwrap(), n);
    }
    pool.shutdown(true);
}
