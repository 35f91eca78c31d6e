//! Locks, semaphores, queues, conditions, events and barriers of a manager.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{
    BarrierError,
    manager::{
        Barrier, Condition, Dict, Event, JoinableQueue, Lock, Manager, ManagerError, Queue, RLock,
        Value,
    },
    prelude::*,
};

use super::{Done, SHORT, start};
use crate::support::{LONG, pool, rounds, signal, stop, watchdog, with_a_timeout_long_enough};

#[task]
fn acquire_and_keep(lock: Lock, held: Event, end: Event) -> Done {
    lock.acquire()?.leak();
    held.set()?;
    end.wait()
}

#[test]
fn mg18_a_lock_acquired_in_a_child_is_released_in_the_parent_and_only_once() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let lock = manager.lock().unwrap();
    let (held, end) = (manager.event().unwrap(), manager.event().unwrap());
    let child = start(acquire_and_keep::task(lock.clone(), held.clone(), end.clone()));
    assert!(held.wait_timeout(LONG).unwrap());
    assert!(lock.is_locked().unwrap() && lock.try_acquire().unwrap().is_none());
    lock.release().unwrap();
    assert!(!lock.is_locked().unwrap());
    let error = lock.release().unwrap_err();
    assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    let guard = lock.acquire().unwrap();
    assert!(!guard.owner_died());
    end.set().unwrap();
    child.join().unwrap();
    // The end of the child, which does not hold it any more, changes nothing.
    assert!(lock.is_locked().unwrap());
    guard.release().unwrap();
    assert!(!lock.is_locked().unwrap());
}

#[test]
fn an_rlock_is_free_when_all_its_guards_are_dropped() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let lock = manager.rlock().unwrap();
    let outer = lock.acquire().unwrap();
    let inner = lock.try_acquire().unwrap().unwrap();
    let elsewhere = || thread::scope(|s| s.spawn(|| lock.try_acquire().unwrap().is_some()).join());
    assert!(!elsewhere().unwrap());
    drop(inner);
    assert!(!elsewhere().unwrap());
    drop(outer);
    assert!(elsewhere().unwrap());
}

#[test]
fn threads_of_one_process_exclude_each_other() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let lock = manager.lock().unwrap();
    let within = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..rounds() / 10 {
                    let guard = lock.acquire().unwrap();
                    assert_eq!(within.fetch_add(1, Ordering::SeqCst), 0);
                    within.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                }
            });
        }
    });
}

#[test]
fn acquire_timeout_waits_for_its_whole_timeout() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (lock, semaphore) = (manager.lock().unwrap(), manager.semaphore(0).unwrap());
    let queue = manager.queue::<u8>(Some(1)).unwrap();
    let (event, guard) = (manager.event().unwrap(), lock.acquire().unwrap());
    for timeout in [Duration::ZERO, SHORT, 5 * SHORT] {
        let waits: [&dyn Fn() -> bool; 4] = [
            &|| lock.acquire_timeout(timeout).unwrap().is_some(),
            &|| semaphore.acquire_timeout(timeout).unwrap().is_some(),
            &|| queue.get_timeout(timeout).unwrap().is_some(),
            &|| event.wait_timeout(timeout).unwrap(),
        ];
        for wait in waits {
            let started = Instant::now();
            assert!(!wait());
            assert!(started.elapsed() >= timeout);
        }
    }
    drop(guard);
    assert!(lock.acquire_timeout(Duration::MAX).unwrap().is_some());
    queue.put(&1).unwrap();
    assert!(!queue.put_timeout(&2, SHORT).unwrap() && !queue.try_put(&2).unwrap());
    assert_eq!(
        (queue.get_timeout(Duration::MAX).unwrap(), queue.try_get().unwrap()),
        (Some(1), None)
    );
}

#[task]
fn drain(queue: Queue<u32>, joinable: JoinableQueue<u32>) -> Result<(u32, u32), ManagerError> {
    assert!(queue.is_full()? && joinable.is_full()?);
    assert_eq!((queue.len()?, joinable.len()?), (2, 2));
    let sum = queue.get()? + queue.get()?;
    let mut other = 0;
    for _ in 0..2 {
        other += joinable.get()?;
        joinable.task_done()?;
    }
    assert!(queue.is_empty()? && joinable.is_empty()?);
    Ok((sum, other))
}

#[test]
fn mg19_queues_of_size_2_are_full_and_empty_on_both_sides() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue(Some(2)).unwrap();
    let joinable = manager.joinable_queue(Some(2)).unwrap();
    assert!(queue.is_empty().unwrap() && joinable.is_empty().unwrap());
    for item in 1..=2 {
        assert!(!queue.is_full().unwrap() && !joinable.is_full().unwrap());
        queue.put(&item).unwrap();
        joinable.put(&(10 * item)).unwrap();
        assert_eq!((queue.len().unwrap(), joinable.len().unwrap()), (item as usize, item as usize));
    }
    assert!(queue.is_full().unwrap() && joinable.is_full().unwrap());
    assert!(!queue.try_put(&3).unwrap() && !joinable.try_put(&3).unwrap());
    let child = start(drain::task(queue.clone(), joinable.clone()));
    joinable.join().unwrap();
    assert_eq!(child.join().unwrap(), (3, 30));
    assert!(queue.is_empty().unwrap() && joinable.is_empty().unwrap());
    assert_eq!(queue.try_get().unwrap(), None);
    let error = joinable.task_done().unwrap_err();
    assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    let none = manager.queue::<u8>(Some(0)).unwrap_err();
    assert!(matches!(none, ManagerError::Refused(_)), "{none:?}");
}

#[task]
fn produce(queue: Queue<(u32, u32)>, own: u32, count: u32) -> Done {
    (0..count).try_for_each(|number| queue.put(&(own, number)))
}

#[task]
fn consume(queue: Queue<(u32, u32)>, count: u32) -> Result<Vec<(u32, u32)>, ManagerError> {
    (0..count).map(|_| queue.get()).collect()
}

#[test]
fn items_of_several_producers_reach_several_consumers_once_and_in_order() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let pool = pool(4);
    let count = rounds() as u32 * 2;
    let queue = manager.queue(Some(3)).unwrap();
    let consumers = [0; 2].map(|_| pool.submit(consume::task(queue.clone(), count)));
    let producers = [0, 1].map(|own| pool.submit(produce::task(queue.clone(), own, count)));
    producers.into_iter().for_each(|producer| producer.result().unwrap());
    let mut all = Vec::new();
    for consumer in consumers {
        let items = consumer.result().unwrap();
        for own in 0..2 {
            let numbers = items.iter().filter(|item| item.0 == own).map(|item| item.1);
            assert!(numbers.is_sorted(), "the items of {own} came in order");
        }
        all.extend(items);
    }
    all.sort_unstable();
    let expected = (0..2).flat_map(|own| (0..count).map(move |number| (own, number)));
    assert!(all.into_iter().eq(expected));
}

/// Puts items while another process gets them with timeouts of about the time between two items.
#[test]
fn a_get_timeout_that_runs_out_loses_no_item() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<u32>(None).unwrap();
    let count = rounds() as u32;
    thread::scope(|scope| {
        let (mut got, mut timeouts) = (BTreeSet::new(), 0);
        let producer = scope.spawn(|| {
            for number in 0..count {
                queue.put(&number).unwrap();
                if number % 3 == 0 {
                    thread::sleep(Duration::from_micros(u64::from(number % 7) * 50));
                }
            }
        });
        while got.len() < count as usize {
            let timeout = Duration::from_micros(timeouts % 13 * 25);
            match queue.get_timeout(timeout).unwrap() {
                Some(item) => assert!(item < count && got.insert(item), "{item} came twice"),
                None => timeouts += 1,
            }
        }
        producer.join().unwrap();
        println!("{timeouts} timeouts");
    });
    assert_eq!(queue.len().unwrap(), 0);
}

#[test]
fn timeouts_hold_while_the_server_is_stopped() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (queue, lock) = (manager.queue::<u32>(None).unwrap(), manager.lock().unwrap());
    queue.put(&1).unwrap();
    queue.len().unwrap();
    stop(manager.pid());
    for timeout in [Duration::ZERO, SHORT, 5 * SHORT] {
        let started = Instant::now();
        assert_eq!(queue.get_timeout(timeout).unwrap(), None);
        assert!(lock.acquire_timeout(timeout).unwrap().is_none());
        assert!(started.elapsed() >= 2 * timeout);
    }
    signal(manager.pid(), rustix::process::Signal::CONT);
    // What the calls that gave up have got comes back.
    let back =
        with_a_timeout_long_enough("the item", |timeout| queue.get_timeout(timeout).unwrap());
    assert_eq!(back, 1);
    assert!(lock.acquire().is_ok());
    assert_eq!(queue.len().unwrap(), 0);
}

#[task]
fn wait_for_turn(condition: Condition, turn: Value<u32>, own: u32) -> Done {
    let guard = condition.acquire()?;
    let guard = condition.wait_for(guard, || Ok(turn.get()? == own))?;
    turn.set(&(own + 1))?;
    condition.notify_all(&guard).map(drop)
}

#[test]
fn processes_take_turns_with_a_condition() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (condition, turn) = (manager.condition().unwrap(), manager.value(0).unwrap());
    let children: Vec<_> = (0..4)
        .rev()
        .map(|own| start(wait_for_turn::task(condition.clone(), turn.clone(), own)))
        .collect();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!(turn.get().unwrap(), 4);
    assert!(!condition.get_lock().is_locked().unwrap());
    // A wait that times out has the lock again.
    let guard = condition.acquire().unwrap();
    let (guard, notified) = condition.wait_timeout(guard, SHORT).unwrap();
    assert!(!notified && condition.get_lock().is_locked().unwrap());
    assert_eq!(condition.notify_all(&guard).unwrap(), 0);
    drop(guard);
}

#[task]
fn wait_at(barrier: Barrier, places: Dict<usize, u32>) -> Done {
    let place = barrier.wait()?.map_err(|_| ManagerError::TimedOut)?;
    let before = places.insert(&place, &std::process::id())?;
    assert_eq!(before, None);
    Ok(())
}

#[test]
fn a_barrier_lets_all_parties_pass_and_gives_each_its_place() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (barrier, places) = (manager.barrier(3).unwrap(), manager.dict([]).unwrap());
    let children = [0; 3].map(|_| start(wait_at::task(barrier.clone(), places.clone())));
    children.iter().for_each(|child| child.join().unwrap());
    let mut taken = places.keys().unwrap();
    taken.sort_unstable();
    assert_eq!(taken, [0, 1, 2]);
    // One that gives up breaks it, until it is reset.
    assert_eq!(barrier.wait_timeout(SHORT).unwrap(), Err(BarrierError::TimedOut));
    assert!(barrier.is_broken().unwrap());
    assert_eq!(barrier.wait().unwrap(), Err(BarrierError::Broken));
    barrier.reset().unwrap();
    assert_eq!((barrier.is_broken().unwrap(), barrier.waiting().unwrap()), (false, 0));
    assert_eq!(barrier.parties().unwrap(), 3);
}

#[test]
fn a_bounded_semaphore_never_has_more_permits_than_at_first() {
    let manager = Manager::start().unwrap();
    let (semaphore, bounded) =
        (manager.semaphore(1).unwrap(), manager.bounded_semaphore(1).unwrap());
    semaphore.release().unwrap();
    assert_eq!(semaphore.value().unwrap(), 2);
    let error = bounded.release().unwrap_err();
    assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    let permit = bounded.acquire().unwrap();
    assert!(bounded.try_acquire().unwrap().is_none());
    permit.forget();
    bounded.release().unwrap();
    assert_eq!(bounded.value().unwrap(), 1);
}

/// An item that is on its way when the timeout is over must not be put back behind the next call,
/// which would get the item after it.
#[test]
fn a_get_timeout_that_runs_out_keeps_the_order() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<u32>(None).unwrap();
    let count = rounds() as u32;
    let mut got = Vec::new();
    thread::scope(|scope| {
        let mut timeouts = 0;
        scope.spawn(|| {
            for number in 0..count {
                queue.put(&number).unwrap();
                if number % 3 == 0 {
                    thread::sleep(Duration::from_micros(u64::from(number % 7) * 50));
                }
            }
        });
        while got.len() < count as usize {
            timeouts += 1;
            got.extend(queue.get_timeout(Duration::from_micros(timeouts % 13 * 25)).unwrap());
        }
    });
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), got.len(), "each once");
    assert!(got.is_sorted(), "{got:?}");
}

#[test]
fn a_guard_releases_its_own_acquisition_and_no_later_one_of_the_same_thread() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let lock = manager.lock().unwrap();
    let (first, owned) = (lock.acquire().unwrap(), lock.clone());
    lock.release().unwrap();
    let second = owned.acquire_owned().unwrap();
    drop(first);
    assert!(lock.is_locked().unwrap(), "the second guard holds it");
    lock.release().unwrap();
    let third = lock.acquire().unwrap();
    assert!(matches!(second.release(), Err(ManagerError::Refused(_))));
    assert!(lock.is_locked().unwrap(), "the third guard holds it");
    third.release().unwrap();
    assert!(!lock.is_locked().unwrap());
}

#[task]
fn tell(condition: Condition<RLock>, ready: Value<bool>) -> Done {
    let outer = condition.acquire()?;
    let inner = condition.get_lock().acquire_owned()?;
    ready.set(&true)?;
    assert!(condition.notify_one(&inner)?);
    drop(outer);
    condition.notify_all(&inner).map(drop)
}

#[test]
fn a_condition_of_an_rlock_gives_it_up_however_often_it_is_held() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let condition = manager.condition_with_lock(manager.rlock().unwrap()).unwrap();
    let ready = manager.value(false).unwrap();
    let outer = condition.acquire().unwrap();
    let inner = condition.acquire().unwrap();
    let child = start(tell::task(condition.clone(), ready.clone()));
    let inner = condition.wait_for(inner, || ready.get()).unwrap();
    child.join().unwrap();
    // It is held twice again.
    let lock = condition.get_lock().clone();
    let is_free = || {
        thread::scope(|scope| scope.spawn(|| lock.try_acquire().unwrap().is_some()).join().unwrap())
    };
    drop(inner);
    assert!(!is_free());
    drop(outer);
    assert!(is_free());
    // The guards of another lock of the same thread are no guards of this one.
    let other = manager.rlock().unwrap();
    let (held, guard) = (condition.acquire().unwrap(), other.acquire().unwrap());
    let refused = |error| assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    refused(condition.notify_all(&guard).unwrap_err());
    refused(condition.wait(guard).map(drop).unwrap_err());
    assert!(!other.is_locked().unwrap() && condition.get_lock().is_locked().unwrap());
    drop(held);
}

#[test]
fn a_condition_is_waited_for_with_owned_guards() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let condition = manager.condition().unwrap();
    let ready = manager.value(false).unwrap();
    thread::scope(|scope| {
        let guard = condition.get_lock().acquire_owned().unwrap();
        let (guard, notified) = condition.wait_timeout(guard, SHORT).unwrap();
        assert!(!notified);
        let tells = scope.spawn(|| {
            let guard = condition.get_lock().acquire_owned().unwrap();
            ready.set(&true).unwrap();
            condition.notify_all(&guard).unwrap()
        });
        let guard = condition.wait_for(guard, || ready.get()).unwrap();
        assert!(condition.get_lock().is_locked().unwrap());
        drop(guard);
        assert_eq!(tells.join().unwrap(), 1);
    });
    futures::executor::block_on(async {
        let guard = condition.get_lock().acquire_owned_async().await.unwrap();
        {
            // Dropped early: the lock is not held.
            let mut waits = std::pin::pin!(condition.wait_async(guard));
            super::own::begin(waits.as_mut());
        }
        let guard = condition.get_lock().acquire_owned_async().await.unwrap();
        let waits = condition.wait_async(guard);
        let tells = async {
            let guard = condition.get_lock().acquire_async().await?;
            condition.notify_one_async(&guard).await
        };
        let (waited, told) = futures::join!(waits, tells);
        assert!(told.unwrap());
        waited.unwrap().release_async().await.unwrap();
    });
    assert!(!condition.get_lock().is_locked().unwrap());
}

#[test]
fn a_condition_is_not_waited_for_with_the_guard_of_another_lock_of_the_same_thread() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (condition, other) = (manager.condition().unwrap(), manager.lock().unwrap());
    let held = condition.acquire().unwrap();
    let guard = other.acquire().unwrap();
    let refused = |error| assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    refused(condition.notify_one(&guard).unwrap_err());
    refused(condition.notify_all(&guard).unwrap_err());
    refused(condition.wait_timeout(guard, SHORT).map(drop).unwrap_err());
    // It was the guard that is given back.
    assert!(!other.is_locked().unwrap());
    let waited = condition.wait_async(other.acquire().unwrap());
    refused(futures::executor::block_on(waited).map(drop).unwrap_err());
    assert!(!other.is_locked().unwrap() && condition.get_lock().is_locked().unwrap());
    assert_eq!(condition.notify_all(&held).unwrap(), 0);
}
