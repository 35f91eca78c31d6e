//! Processes that are killed while they hold or wait for something, and the server itself.

use std::{
    thread,
    time::{Duration, Instant},
};

use executor::{
    BarrierError,
    manager::{
        Barrier, Condition, Dict, Event, List, Lock, Manager, ManagerError, Queue, RLock, Semaphore,
    },
    prelude::*,
};
use futures::executor::block_on;
use rustix::process::Signal;

use super::{Done, die, ends_killed, has_objects, sleep, start};
use crate::support::{LONG, eventually, signal, state, stop, watchdog};

#[task]
fn hold_everything(lock: Lock, rlock: RLock, semaphore: Semaphore, held: Event) -> Done {
    let _guards = (lock.acquire()?, rlock.acquire()?, rlock.acquire()?);
    let _permits = (semaphore.acquire()?, semaphore.acquire()?);
    semaphore.acquire()?.forget();
    held.set()?;
    sleep()
}

#[test]
fn mg26_what_a_killed_client_held_is_freed_and_the_next_owner_is_told() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (lock, rlock) = (manager.lock().unwrap(), manager.rlock().unwrap());
    let (semaphore, held) = (manager.semaphore(3).unwrap(), manager.event().unwrap());
    let child =
        start(hold_everything::task(lock.clone(), rlock.clone(), semaphore.clone(), held.clone()));
    assert!(held.wait_timeout(LONG).unwrap());
    assert!(lock.try_acquire().unwrap().is_none() && rlock.try_acquire().unwrap().is_none());
    assert_eq!(semaphore.value().unwrap(), 0);
    thread::scope(|scope| {
        // One that waits already, and one that comes later.
        let waits = scope.spawn(|| lock.acquire().unwrap().owner_died());
        child.kill().unwrap();
        assert!(waits.join().unwrap());
    });
    ends_killed(&child);
    assert!(!lock.acquire().unwrap().owner_died(), "only the next owner is told");
    assert!(rlock.acquire().unwrap().owner_died());
    assert!(!rlock.acquire().unwrap().owner_died());
    eventually("the permits are back", || semaphore.value().unwrap() == 3);
    drop((lock, rlock, semaphore, held));
    has_objects(&manager, 0);
}

#[task]
fn get_for_ever(queue: Queue<u32>, begun: Event) -> Result<u32, ManagerError> {
    queue.len()?;
    begun.set()?;
    queue.get()
}

#[task]
fn acquire_for_ever(lock: Lock, semaphore: Semaphore, begun: Event) -> Done {
    thread::scope(|scope| {
        scope.spawn(|| lock.acquire().map(drop));
        scope.spawn(|| semaphore.acquire().map(drop));
        semaphore.value()?;
        begun.set()
    })
}

/// Waits until a process sleeps. It has said before that it is about to wait.
fn sleeps(pid: u32) {
    eventually("the process sleeps", || state(pid) == Some('S'));
}

#[test]
fn mg26_a_client_killed_in_a_waiting_call_takes_nothing_from_the_others() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (queue, begun) = (manager.queue(None).unwrap(), manager.event().unwrap());
    for _ in 0..3 {
        begun.clear().unwrap();
        let child = start(get_for_ever::task(queue.clone(), begun.clone()));
        assert!(begun.wait_timeout(LONG).unwrap());
        sleeps(child.pid());
        child.kill().unwrap();
        ends_killed(&child);
    }
    // The dead would have been first in the line. An item may be given to one whose death the
    // server has not noticed yet, so it is put once that has happened.
    drop(begun);
    has_objects(&manager, 1);
    let (lock, semaphore) = (manager.lock().unwrap(), manager.semaphore(1).unwrap());
    queue.put(&5).unwrap();
    assert_eq!(queue.try_get().unwrap(), Some(5));

    let (guard, permit) = (lock.acquire().unwrap(), semaphore.acquire().unwrap());
    let begun = manager.event().unwrap();
    let child = start(acquire_for_ever::task(lock.clone(), semaphore.clone(), begun.clone()));
    assert!(begun.wait_timeout(LONG).unwrap());
    sleeps(child.pid());
    child.kill().unwrap();
    ends_killed(&child);
    drop((guard, permit));
    assert!(!lock.acquire().unwrap().owner_died(), "the dead one never had it");
    eventually("the permit is back", || semaphore.try_acquire().unwrap().is_some());
    drop((queue, lock, semaphore, begun));
    has_objects(&manager, 0);
}

#[task]
fn take_at_once(queue: Queue<(u32, Vec<u8>)>, lock: Lock, begun: Event) -> Done {
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| queue.get().map(drop));
        }
        scope.spawn(|| lock.acquire().map(drop));
        lock.is_locked()?;
        begun.set()
    })
}

#[test]
fn mg26_what_a_client_was_given_and_had_not_read_when_it_was_killed_goes_to_others() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (queue, lock) = (manager.queue(None).unwrap(), manager.lock().unwrap());
    // The last one finds no room in the ring of a process that does not read.
    let items = [(1, vec![1]), (2, Vec::new()), (3, vec![3; 1_000_000])];
    eventually("the process has asked for everything when it is stopped", || {
        let begun = manager.event().unwrap();
        let guard = lock.acquire().unwrap();
        let child = start(take_at_once::task(queue.clone(), lock.clone(), begun.clone()));
        assert!(begun.wait_timeout(LONG).unwrap());
        sleeps(child.pid());
        stop(child.pid());
        guard.release().unwrap();
        items.iter().for_each(|item| queue.put(item).unwrap());
        queue.put(&(4, Vec::new())).unwrap();
        let all_given = lock.is_locked().unwrap() && queue.len().unwrap() == 1;
        child.kill().unwrap();
        ends_killed(&child);
        // The server has noticed it.
        drop(begun);
        has_objects(&manager, 2);
        assert!(!lock.acquire().unwrap().owner_died(), "nobody knew that it had it");
        for item in &items {
            assert_eq!(queue.get().unwrap(), *item);
        }
        assert_eq!(queue.get().unwrap(), (4, Vec::new()));
        all_given
    });
    drop((queue, lock));
    has_objects(&manager, 0);
}

#[task]
fn wait_at(barrier: Barrier) -> Result<bool, ManagerError> {
    Ok(barrier.wait()? == Err(BarrierError::Broken))
}

#[test]
fn mg26_a_client_killed_at_a_barrier_breaks_it() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let barrier = manager.barrier(3).unwrap();
    let [victim, other] = [0; 2].map(|_| start(wait_at::task(barrier.clone())));
    eventually("both wait", || barrier.waiting().unwrap() == 2);
    victim.kill().unwrap();
    ends_killed(&victim);
    assert!(other.join().unwrap(), "the other one is told");
    assert!(barrier.is_broken().unwrap());
    assert_eq!(barrier.waiting().unwrap(), 0);
}

#[task]
fn wait_for_notice(condition: Condition, notified: Queue<u32>, own: u32) -> Done {
    let guard = condition.acquire()?;
    let _guard = condition.wait(guard)?;
    notified.put(&own)
}

#[test]
fn mg26_a_client_killed_while_it_waits_for_a_condition_consumes_no_notification() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (condition, notified) = (manager.condition().unwrap(), manager.queue(None).unwrap());
    let started = |own| start(wait_for_notice::task(condition.clone(), notified.clone(), own));
    let victim = started(1);
    sleeps(victim.pid());
    let other = started(2);
    sleeps(other.pid());
    victim.kill().unwrap();
    ends_killed(&victim);
    // Until both are where they should be, nobody may be there to be notified.
    eventually("one is notified", || {
        let guard = condition.acquire().unwrap();
        condition.notify_one(&guard).unwrap()
    });
    assert_eq!(notified.get().unwrap(), 2);
    other.join().unwrap();
    assert!(!condition.get_lock().acquire().unwrap().owner_died());
    drop((condition, notified));
    has_objects(&manager, 0);
}

#[task]
fn die_with_handles(list: List<Dict<u32, u32>>, lock: Lock) -> Done {
    let _guard = lock.acquire()?;
    let own = list.get(0)?.expect("there is one");
    own.insert(&1, &1)?;
    die()
}

#[test]
fn mg26_the_handles_of_a_killed_client_are_gone() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([]).unwrap();
    let lock = manager.lock().unwrap();
    list.push(&manager.dict([]).unwrap()).unwrap();
    let child = start(die_with_handles::task(list.clone(), lock.clone()));
    ends_killed(&child);
    assert!(lock.acquire().unwrap().owner_died());
    assert_eq!(manager.objects().unwrap(), 3);
    list.clear().unwrap();
    has_objects(&manager, 2);
    drop((list, lock));
    has_objects(&manager, 0);
}

/// Begins calls of all kinds that wait, and calls that do not. Returns how they end after `end`.
fn calls_in_flight(manager: &Manager, end: impl FnOnce()) -> Vec<ManagerError> {
    let queue = manager.queue::<u32>(Some(1)).unwrap();
    queue.put(&1).unwrap();
    let empty = manager.queue::<u32>(None).unwrap();
    let (lock, semaphore) = (manager.lock().unwrap(), manager.semaphore(0).unwrap());
    let (event, barrier) = (manager.event().unwrap(), manager.barrier(2).unwrap());
    let (condition, list) = (manager.condition().unwrap(), manager.list([1]).unwrap());
    lock.acquire().unwrap().leak();
    let calls: Vec<Box<dyn Fn() -> Done + Send + Sync>> = vec![
        Box::new(|| empty.get().map(drop)),
        Box::new(|| empty.get_timeout(LONG).map(drop)),
        Box::new(|| block_on(empty.get_async()).map(drop)),
        Box::new(|| queue.put(&2)),
        Box::new(|| block_on(queue.put_async(&2))),
        Box::new(|| lock.acquire().map(drop)),
        Box::new(|| block_on(lock.acquire_async()).map(drop)),
        Box::new(|| semaphore.acquire().map(drop)),
        Box::new(|| block_on(semaphore.acquire_async()).map(drop)),
        Box::new(|| event.wait()),
        Box::new(|| block_on(event.wait_async())),
        Box::new(|| barrier.wait().map(drop)),
        Box::new(|| condition.wait(condition.acquire()?).map(drop)),
        Box::new(|| {
            loop {
                list.push(&1)?;
                list.pop()?;
            }
        }),
        Box::new(|| {
            block_on(async {
                loop {
                    list.len_async().await?;
                }
            })
        }),
    ];
    thread::scope(|scope| {
        let running: Vec<_> = calls.iter().map(|call| scope.spawn(call)).collect();
        // The barrier is the one of them that says when somebody waits.
        eventually("they wait", || barrier.waiting().unwrap() == 1);
        end();
        running.into_iter().map(|call| call.join().unwrap().unwrap_err()).collect()
    })
}

#[test]
fn mg26_every_call_in_flight_ends_soon_when_the_server_is_killed() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let mut killed = Instant::now();
    let errors = calls_in_flight(&manager, || {
        killed = Instant::now();
        signal(manager.pid(), Signal::KILL);
    });
    assert!(killed.elapsed() < LONG / 2, "soon");
    for error in errors {
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
    }
    assert!(matches!(list.len(), Err(ManagerError::Gone(_))));
    assert!(matches!(manager.lock(), Err(ManagerError::Gone(_))));
    assert!(matches!(block_on(list.len_async()), Err(ManagerError::Gone(_))));
    eventually("its end is known", || manager.exit_status().is_some());
    assert_eq!(manager.exit_status(), Some(executor::ExitStatus::Signaled(9)));
    manager.shutdown();
}

#[test]
fn every_call_in_flight_ends_soon_when_the_manager_is_shut_down() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let errors = calls_in_flight(&manager, || manager.shutdown());
    for error in errors {
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
    }
    assert_eq!(manager.exit_status(), Some(executor::ExitStatus::Exited(0)));
}

#[test]
fn every_call_in_flight_ends_when_a_stopped_server_is_shut_down() {
    let _watchdog = watchdog();
    let manager = Manager::builder().shutdown_timeout(Duration::from_millis(50)).start().unwrap();
    let list = manager.list([1]).unwrap();
    stop(manager.pid());
    thread::scope(|scope| {
        let waits = scope.spawn(|| list.len().unwrap_err());
        manager.shutdown();
        let error = waits.join().unwrap();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
    });
    assert_eq!(manager.exit_status(), Some(executor::ExitStatus::Signaled(9)));
}
