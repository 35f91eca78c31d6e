//! Calls that are awaited, and futures that are dropped early.

use std::{
    collections::{BTreeSet, HashSet},
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use executor::{
    manager::{Dict, List, Manager, ManagerError, Queue},
    prelude::*,
};
use futures::{
    executor::block_on,
    future::{join_all, select},
};

use super::{Done, SHORT, has_objects, start};
use rustix::process::Signal;

use crate::support::{
    LONG, eventually, executor_threads, rounds, signal, stop, watchdog, with_a_timeout_long_enough,
};

/// Polls a future some times, and drops it unless it is ready.
fn poll_and_drop<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..times {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
    }
    None
}

#[test]
fn a_get_async_that_is_dropped_loses_no_item() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<u32>(None).unwrap();
    let count = rounds() as u32;
    let mut got = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| (0..count).for_each(|number| queue.put(&number).unwrap()));
        let mut dropped = 0;
        while got.len() < count as usize {
            match poll_and_drop(queue.get_async(), dropped % 3) {
                Some(item) => got.push(item.unwrap()),
                None => dropped += 1,
            }
            // One call that is not dropped, so that the loop ends whatever the order of things.
            if dropped % 10 == 9 {
                got.extend(queue.get_timeout(Duration::from_millis(1)).unwrap());
            }
        }
        println!("{dropped} dropped");
    });
    got.sort_unstable();
    assert!(got.into_iter().eq(0..count), "each item once");
    assert_eq!(queue.len().unwrap(), 0);
}

#[test]
fn many_get_asyncs_dropped_at_once_lose_no_item() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue(None).unwrap();
    let count = rounds() as u32 / 3;
    {
        let mut waiting: Vec<_> = (0..count).map(|_| Box::pin(queue.get_async())).collect();
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut waiting {
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        (0..count).for_each(|number| queue.put(&number).unwrap());
        // Items are on their way to the futures, or have come. All of them are dropped.
    }
    let mut got = BTreeSet::new();
    eventually("all are back", || {
        while let Some(item) = queue.try_get().unwrap() {
            assert!(got.insert(item), "{item} came twice");
        }
        got.len() == count as usize
    });
    assert_eq!(queue.len().unwrap(), 0);
    // What never had an item has left the line.
    for _ in 0..count {
        assert!(poll_and_drop(queue.get_async(), 1).is_none());
    }
    queue.put(&1).unwrap();
    assert_eq!(queue.get_timeout(LONG).unwrap(), Some(1));
}

#[test]
fn a_dropped_acquire_async_leaves_the_lock_and_the_permit_free() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (lock, semaphore) = (manager.lock().unwrap(), manager.semaphore(1).unwrap());
    for round in 0..rounds() {
        let guard = (round % 2 == 0).then(|| lock.acquire().unwrap());
        let permit = (round % 2 == 0).then(|| semaphore.acquire().unwrap());
        drop(poll_and_drop(lock.acquire_async(), round % 3));
        drop(poll_and_drop(semaphore.acquire_async(), round % 3));
        if round % 4 == 0 {
            let _other = poll_and_drop(lock.acquire_async(), 1);
            drop((guard, permit));
        }
    }
    drop(lock.acquire().unwrap());
    drop(semaphore.acquire().unwrap());
    eventually("the lock is free", || !lock.is_locked().unwrap());
    eventually("the permit is back", || semaphore.value().unwrap() == 1);
    // Many at once, while it is held, and then not.
    let guard = lock.acquire().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(lock.acquire_async())).collect();
    for future in &mut waiting {
        assert!(future.as_mut().poll(&mut context).is_pending());
    }
    drop(guard);
    drop(waiting);
    assert!(lock.acquire_timeout(LONG).unwrap().is_some());
    drop((lock, semaphore));
    has_objects(&manager, 0);
}

#[test]
fn a_dropped_wait_async_leaves_the_lock_of_its_condition_free() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let condition = manager.condition().unwrap();
    for times in 0..5 {
        let guard = condition.acquire().unwrap();
        assert!(poll_and_drop(condition.wait_async(guard), times).is_none());
        let guard = condition.get_lock().acquire_timeout(LONG).unwrap().expect("it is free");
        drop(guard);
    }
    // The dropped ones consume no notification.
    let waits = async {
        let guard = condition.get_lock().acquire_async().await.unwrap();
        condition.wait_async(guard).await.map(drop)
    };
    let notifies = async {
        eventually("one is notified", || {
            let guard = condition.acquire().unwrap();
            condition.notify_one(&guard).unwrap()
        });
    };
    thread::scope(|scope| {
        let waits = scope.spawn(|| block_on(waits).unwrap());
        block_on(notifies);
        waits.join().unwrap();
    });
}

#[test]
fn a_dropped_creation_leaves_no_object() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let inner = manager.list([1]).unwrap();
    let list = manager.list([inner.clone()]).unwrap();
    drop(inner);
    for times in 0..20 {
        drop(poll_and_drop(list.get_async(0), times % 3));
        drop(poll_and_drop(list.snapshot_async(), times % 3));
    }
    list.clear().unwrap();
    has_objects(&manager, 1);
    for round in 0..rounds() {
        drop(poll_and_drop(manager.list_async([1]), round % 3));
        drop(poll_and_drop(manager.dict_async([(1, 1)]), round % 4));
        drop(poll_and_drop(manager.condition_async(), round % 4));
    }
    has_objects(&manager, 1);
}

/// Returns a runtime with this number of threads.
fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().unwrap()
}

#[test]
fn every_object_is_created_and_used_in_futures_that_are_spawned() {
    let _watchdog = watchdog();
    let runtime = runtime(2);
    let manager = Arc::new(Manager::start().unwrap());
    let own = Arc::clone(&manager);
    let containers = runtime.spawn(async move {
        let dict = own.dict_async([("a".to_owned(), 1_u32)]).await?;
        dict.extend_async([("b".to_owned(), 2), ("c".to_owned(), 3)]).await?;
        dict.extend_async([]).await?;
        assert_eq!(dict.keys_async().await?, ["a", "b", "c"]);
        assert_eq!(dict.values_async().await?, dict.values()?);
        assert_eq!(dict.entry("d".to_owned()).or_insert_async(&4).await?, 4);
        assert_eq!(dict.entry("d".to_owned()).or_insert_with_async(|| 5).await?, 4);
        let more = dict.entry("d".to_owned()).update_async(one_more::with()).await?;
        assert_eq!(more, 5);
        let mut entries = dict.iter();
        let mut sum = 0;
        while let Some(entry) = entries.next_async().await {
            sum += entry?.1;
        }
        assert_eq!(sum, 11);
        assert!(entries.next_async().await.is_none());

        let list = own.list_async([3, 1, 2]).await?;
        list.sort_async().await?;
        assert_eq!(list.snapshot_async().await?, [1, 2, 3]);
        list.sort_by_key_async(|item| -item).await?;
        assert!(list.remove_item_async(&2).await? && !list.remove_item_async(&2).await?);
        list.retain_async(|item| *item > 1).await?;
        assert_eq!(list.snapshot()?, [3]);
        assert_eq!(own.array_async([1, 2]).await?.range_async(0..2).await?, Some(vec![1, 2]));

        let (set, other) = (own.set_async([1, 2]).await?, HashSet::from([2, 3]));
        assert!(!set.is_disjoint_async(&other).await? && !set.is_subset_async(&other).await?);
        assert!(!set.is_superset_async(&other).await?);
        assert_eq!(set.union_async(&other).await?, HashSet::from([1, 2, 3]));
        assert_eq!(set.intersection_async(&other).await?, HashSet::from([2]));
        assert_eq!(set.difference_async(&other).await?, HashSet::from([1]));
        assert_eq!(set.symmetric_difference_async(&other).await?, HashSet::from([1, 3]));
        assert_eq!(set.to_hash_set_async().await?, HashSet::from([1, 2]));

        let namespace = own.namespace_async().await?;
        namespace.set_async("a", &1).await?;
        assert_eq!(own.value_async(7).await?.get_async().await?, 7);
        own.joinable_queue_async::<u8>(None).await?.join_async().await?;
        let queue = own.queue_async::<u8>(Some(1)).await?;
        queue.put_async(&1).await?;
        assert_eq!(own.objects_async().await?, own.objects()?);
        assert!(matches!(own.queue_async::<u8>(Some(0)).await, Err(ManagerError::Refused(_))));
        assert!(matches!(own.barrier_async(0).await, Err(ManagerError::Refused(_))));
        Done::Ok(())
    });
    runtime.block_on(containers).unwrap().unwrap();
    let own = Arc::clone(&manager);
    let locks = runtime.spawn(async move {
        let lock = own.lock_async().await?;
        lock.acquire_async().await?.release_async().await?;
        lock.acquire_async().await?.leak();
        lock.release_async().await?;
        assert!(matches!(lock.release_async().await, Err(ManagerError::Refused(_))));
        own.rlock_async().await?.acquire_async().await?.release_async().await?;
        let semaphore = own.semaphore_async(1).await?;
        semaphore.acquire_async().await?.forget();
        semaphore.release_async().await?;
        let bounded = own.bounded_semaphore_async(1).await?;
        assert!(matches!(bounded.release_async().await, Err(ManagerError::Refused(_))));
        own.event_async().await?.set_async().await?;
        own.barrier_async(1).await?.wait_async().await?.unwrap();

        let condition = own.condition_with_lock_async(lock).await?;
        let (theirs, flag) = (condition.clone(), own.value(false)?);
        let seen = flag.clone();
        let waits = tokio::spawn(async move {
            let guard = theirs.acquire_async().await?;
            theirs.wait_for_async(guard, || seen.get_async()).await.map(drop)
        });
        loop {
            let guard = condition.acquire_async().await?;
            flag.set_async(&true).await?;
            let woken = condition.notify_async(&guard, 1).await?
                + usize::from(condition.notify_one_async(&guard).await?)
                + condition.notify_all_async(&guard).await?;
            assert!(woken <= 1);
            drop(guard);
            if waits.is_finished() {
                return waits.await.unwrap();
            }
        }
    });
    runtime.block_on(locks).unwrap().unwrap();
    has_objects(&manager, 0);
}

#[test]
fn owned_guards_outlive_the_handles_and_futures_that_took_them() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let runtime = runtime(2);
    let (lock, rlock) = (manager.lock().unwrap(), manager.rlock().unwrap());
    let (semaphore, bounded) =
        (manager.semaphore(1).unwrap(), manager.bounded_semaphore(1).unwrap());
    let taken = {
        let (lock, rlock) = (lock.clone(), rlock.clone());
        let (semaphore, bounded) = (semaphore.clone(), bounded.clone());
        runtime.spawn(async move {
            Ok::<_, ManagerError>((
                lock.acquire_owned_async().await?,
                rlock.acquire_owned_async().await?,
                semaphore.acquire_owned_async().await?,
                bounded.acquire_owned_async().await?,
            ))
        })
    };
    let taken = runtime.block_on(taken).unwrap().unwrap();
    assert!(lock.try_acquire_owned().unwrap().is_none());
    assert!(rlock.try_acquire_owned().unwrap().is_none());
    assert!(semaphore.try_acquire_owned().unwrap().is_none());
    assert!(bounded.acquire_owned_timeout(SHORT).unwrap().is_none());
    assert!(lock.acquire_owned_timeout(SHORT).unwrap().is_none());
    // Dropped while they wait, or when they have just got it.
    for round in 0..rounds() {
        drop(poll_and_drop(lock.acquire_owned_async(), round % 3));
        drop(poll_and_drop(semaphore.acquire_owned_async(), round % 3));
    }
    assert!(!taken.0.owner_died());
    drop(taken);
    for round in 0..rounds() {
        drop(poll_and_drop(lock.acquire_owned_async(), round % 3));
        if let Some(guard) = poll_and_drop(lock.acquire_owned_async(), 1) {
            // Also if the release is dropped, before or after it has begun.
            drop(poll_and_drop(guard.unwrap().release_async(), round % 2));
        }
    }
    lock.acquire_owned().unwrap().release().unwrap();
    let (outer, inner) = (rlock.acquire_owned().unwrap(), rlock.acquire_owned().unwrap());
    drop((outer, inner));
    semaphore.acquire_owned().unwrap().forget();
    semaphore.release().unwrap();
    lock.acquire_owned().unwrap().leak();
    lock.release().unwrap();
    eventually("all are free", || {
        !lock.is_locked().unwrap()
            && !rlock.is_locked().unwrap()
            && semaphore.value().unwrap() == 1
            && bounded.value().unwrap() == 1
    });
    let guard = lock.acquire_owned().unwrap();
    drop((lock, rlock, semaphore, bounded));
    has_objects(&manager, 1);
    drop(guard);
    has_objects(&manager, 0);
}

#[task]
fn one_more(count: Option<u32>) -> u32 {
    count.unwrap_or(0) + 1
}

#[task]
fn answer(asks: Queue<Option<(u32, u32)>>, answers: Dict<u32, u32>) -> Done {
    while let Some((key, value)) = asks.get()? {
        answers.insert(&key, &(value + 1))?;
    }
    Ok(())
}

#[test]
fn threads_and_futures_of_one_process_call_at_once() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = manager.dict([(0_u32, 0_u32)]).unwrap();
    let queue = manager.queue::<u32>(Some(4)).unwrap();
    let lock = manager.lock().unwrap();
    let runtime = runtime(2);
    let each = rounds() as u32 / 3;
    let within = AtomicU32::new(0);
    let mut tasks = Vec::new();
    for own in 0..10 {
        let (counter, queue, lock) = (counter.clone(), queue.clone(), lock.clone());
        tasks.push(runtime.spawn(async move {
            for number in 0..each {
                assert_eq!(
                    counter.insert_async(&(1 + own), &number).await.unwrap(),
                    number.checked_sub(1)
                );
                assert_eq!(counter.get_async(&(1 + own)).await.unwrap(), Some(number));
                queue.put_async(&number).await.unwrap();
                let guard = lock.acquire_async().await.unwrap();
                let old = counter.get_async(&0).await.unwrap().unwrap();
                counter.insert_async(&0, &(old + 1)).await.unwrap();
                drop(guard);
            }
        }));
    }
    thread::scope(|scope| {
        for own in 100..104 {
            let (counter, queue, lock, within) = (&counter, &queue, &lock, &within);
            scope.spawn(move || {
                for number in 0..each {
                    assert_eq!(counter.insert(&own, &number).unwrap(), number.checked_sub(1));
                    assert_eq!(counter.get(&own).unwrap(), Some(number));
                    let guard = lock.acquire().unwrap();
                    assert_eq!(within.fetch_add(1, Ordering::SeqCst), 0);
                    let old = counter.get(&0).unwrap().unwrap();
                    counter.insert(&0, &(old + 1)).unwrap();
                    within.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                    let _ = queue.get_timeout(Duration::from_micros(50)).unwrap();
                }
            });
        }
        scope.spawn(|| {
            while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
                let _ = queue.get_timeout(Duration::from_millis(1)).unwrap();
            }
        });
    });
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    assert_eq!(counter.get(&0).unwrap(), Some(14 * each));
}

#[test]
fn thousands_of_calls_are_awaited_together() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let dict = manager.dict::<u32, u32>([]).unwrap();
    let asks = manager.queue(None).unwrap();
    let child = start(answer::task(asks.clone(), dict.clone()));
    let count = 10 * rounds() as u32;
    block_on(async {
        let puts = (0..count).map(|key| {
            let asks = &asks;
            async move { asks.put_async(&Some((key, key))).await.unwrap() }
        });
        join_all(puts).await;
        asks.put_async(&None).await.unwrap();
    });
    child.join().unwrap();
    let gets = (0..count).map(|key| {
        let dict = &dict;
        async move { dict.get_async(&key).await.unwrap() }
    });
    let values = block_on(join_all(gets));
    assert!(values.into_iter().eq((1..=count).map(Some)));
}

#[test]
fn the_future_that_loses_a_select_takes_no_item() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (a, b) = (manager.queue(None).unwrap(), manager.queue(None).unwrap());
    let count = rounds() as u32;
    let puts = [(&a, 0), (&b, 1)];
    let mut got = [Vec::new(), Vec::new()];
    thread::scope(|scope| {
        for (queue, own) in puts {
            scope.spawn(move || (0..count).for_each(|n| queue.put(&(2 * n + own)).unwrap()));
        }
        block_on(async {
            while got[0].len() + got[1].len() < 2 * count as usize {
                let (first, second) = (Box::pin(a.get_async()), Box::pin(b.get_async()));
                match select(first, second).await {
                    futures::future::Either::Left((item, _)) => got[0].push(item.unwrap()),
                    futures::future::Either::Right((item, _)) => got[1].push(item.unwrap()),
                }
            }
        });
    });
    for (own, items) in (0..).zip(got) {
        let distinct: BTreeSet<u32> = items.iter().copied().collect();
        assert_eq!(distinct.len(), items.len());
        assert!(distinct.into_iter().eq((0..count).map(|n| 2 * n + own)));
    }
}

/// What a process does whose server is stopped meanwhile.
#[task]
fn first_calls(
    list: List<u32>,
    other: Queue<u32>,
    connects_before: bool,
    begun: executor::Event,
    stopped: executor::Event,
    progress: executor::Event,
) -> Result<usize, ManagerError> {
    if connects_before {
        // Only the claims of the others are left to be done.
        list.clone().len()?;
    }
    begun.set();
    stopped.wait();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let own = other.clone();
        let call = tokio::spawn(async move { own.len_async().await });
        for _ in 0..50 {
            // Its first call, each time, and dropped each time.
            let first = tokio::time::timeout(Duration::from_millis(1), other.get_async());
            assert!(first.await.is_err());
        }
        let threads = executor_threads();
        let own = threads.iter().filter(|name| name.starts_with("executor-manage")).count();
        assert!(own <= 2, "{threads:?}");
        assert!(!call.is_finished());
        // Threads with a timeout do not wait for those without.
        std::thread::scope(|scope| {
            scope.spawn(|| list.len().map(drop));
            for _ in 0..3 {
                assert_eq!(other.get_timeout(SHORT)?, None);
            }
            progress.set();
            Done::Ok(())
        })?;
        call.await.unwrap()
    })
}

#[test]
fn a_first_call_that_is_awaited_does_not_block_its_thread_while_the_server_is_stopped() {
    let _watchdog = watchdog();
    for (connects_before, killed) in [(false, false), (true, false), (false, true), (true, true)] {
        let manager = Manager::start().unwrap();
        let (list, queue) = (manager.list([1]).unwrap(), manager.queue(None).unwrap());
        let events = [(); 3].map(|()| executor::Event::new().unwrap());
        let [begun, stopped, progress] = &events;
        let child = start(first_calls::task(
            list.clone(),
            queue.clone(),
            connects_before,
            begun.clone(),
            stopped.clone(),
            progress.clone(),
        ));
        assert!(begun.wait_timeout(LONG));
        stop(manager.pid());
        stopped.set();
        assert!(progress.wait_timeout(LONG), "other tasks of the thread go on");
        if killed {
            signal(manager.pid(), Signal::KILL);
            let error = child.join().unwrap_err();
            assert!(error.to_string().contains("the manager's server is gone"), "{error}");
        } else {
            queue.put_timeout(&1, SHORT).unwrap_err();
            signal(manager.pid(), Signal::CONT);
            assert!(child.join().unwrap() <= 1);
            // The item that was put meanwhile was not lost with the calls that were dropped.
            let item = with_a_timeout_long_enough("the item", |t| queue.get_timeout(t).unwrap());
            assert_eq!(item, 1);
        }
    }
}

#[test]
fn a_first_wait_for_a_condition_that_is_dropped_early_leaves_the_lock_free() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let sent = manager.condition().unwrap();
    let queue = executor::SimpleQueue::new().unwrap();
    for times in 1..4 {
        // Another handle, which has made no call yet.
        queue.put(sent.clone()).unwrap();
        let condition = queue.get().unwrap();
        let guard = condition.acquire().unwrap();
        stop(manager.pid());
        assert!(poll_and_drop(condition.wait_async(guard), times).is_none());
        signal(manager.pid(), Signal::CONT);
        assert!(sent.get_lock().acquire_timeout(LONG).unwrap().is_some(), "it is free");
    }
}
