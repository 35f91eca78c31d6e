//! Locks, semaphores, conditions, events and barriers, used by tasks in other processes and by
//! threads of this process.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, Process, RLock, RawValue,
    ReleaseError, Semaphore, TaskError, Value, prelude::*,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::support::{LONG, descriptors, eventually, pool, signal, stop, watchdog};

const SHORT: Duration = Duration::from_millis(20);

/// Kills this process with SIGKILL while it holds everything that it has acquired.
fn die() -> ! {
    // SAFETY: only sends a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it was killed")
}

// ---- locks --------------------------------------------------------------------------------------

#[test]
fn sy01_a_held_lock_cannot_be_acquired_and_a_free_one_cannot_be_released() {
    let lock = Lock::new().unwrap();
    let guard = lock.acquire().unwrap();
    assert!(lock.try_acquire().is_none());
    assert_eq!(lock.release(), Err(ReleaseError::Guarded));
    drop(guard);
    drop(lock.try_acquire().unwrap().unwrap());
    assert_eq!(lock.release(), Err(ReleaseError::NotLocked));
}

#[test]
fn acquire_timeout_waits_for_its_whole_timeout_and_no_longer() {
    let lock = Lock::new().unwrap();
    let guard = lock.acquire().unwrap();
    for limit in [Duration::ZERO, SHORT, Duration::from_millis(150)] {
        let started = Instant::now();
        assert!(lock.acquire_timeout(limit).is_none());
        assert!(started.elapsed() >= limit);
    }
    thread::scope(|scope| {
        let waiting = scope.spawn(|| lock.acquire_timeout(LONG).unwrap().unwrap());
        drop(guard);
        drop(waiting.join().unwrap());
    });
    assert!(lock.acquire_timeout(Duration::MAX).is_some());
}

#[task]
fn hold(lock: Lock, held: Event, release: Event) -> (bool, String) {
    let _guard = lock.acquire().unwrap();
    held.set();
    assert!(release.wait_timeout(LONG));
    (lock.is_locked(), format!("{lock:?}"))
}

#[task]
fn hold_again(lock: RLock, held: Event, release: Event) -> (bool, String) {
    let _guards = (lock.acquire().unwrap(), lock.acquire().unwrap());
    held.set();
    assert!(release.wait_timeout(LONG));
    (lock.is_locked(), format!("{lock:?}"))
}

#[test]
fn sy02_a_lock_acquired_in_another_process_is_locked_in_both() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (held, release) = (Event::new().unwrap(), Event::new().unwrap());
    let lock = Lock::new().unwrap();
    assert!(!lock.is_locked());
    let holds = pool.submit(hold::task(lock.clone(), held.clone(), release.clone()));
    assert!(held.wait_timeout(LONG));
    assert!(lock.is_locked() && lock.try_acquire().is_none());
    release.set();
    assert!(holds.result().unwrap().0);
    assert!(!lock.is_locked());

    held.clear();
    release.clear();
    let lock = RLock::new().unwrap();
    let holds = pool.submit(hold_again::task(lock.clone(), held.clone(), release.clone()));
    assert!(held.wait_timeout(LONG));
    assert!(lock.is_locked() && lock.try_acquire().is_none());
    release.set();
    assert!(holds.result().unwrap().0);
    assert!(!lock.is_locked());
}

#[test]
fn sy03_debug_shows_the_kind_of_owner() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (held, release) = (Event::new().unwrap(), Event::new().unwrap());
    let lock = Lock::new().unwrap();
    assert_eq!(format!("{lock:?}"), "Lock(free)");
    let guard = lock.acquire().unwrap();
    assert_eq!(format!("{lock:?}"), "Lock(held by this thread)");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(format!("{lock:?}"), "Lock(held by another thread)"));
    });
    drop(guard);
    let holds = pool.submit(hold::task(lock.clone(), held.clone(), release.clone()));
    assert!(held.wait_timeout(LONG));
    assert_eq!(format!("{lock:?}"), "Lock(held by another process)");
    release.set();
    assert_eq!(holds.result().unwrap().1, "Lock(held by this thread)");

    held.clear();
    release.clear();
    let lock = RLock::new().unwrap();
    assert_eq!(format!("{lock:?}"), "RLock(free)");
    let guards = (lock.acquire().unwrap(), lock.acquire().unwrap());
    assert_eq!(format!("{lock:?}"), "RLock(held by this thread, count 2)");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(format!("{lock:?}"), "RLock(held by another thread, count 2)"));
    });
    drop(guards);
    let holds = pool.submit(hold_again::task(lock.clone(), held.clone(), release.clone()));
    assert!(held.wait_timeout(LONG));
    assert_eq!(format!("{lock:?}"), "RLock(held by another process, count 2)");
    release.set();
    assert_eq!(holds.result().unwrap().1, "RLock(held by this thread, count 2)");
}

#[test]
fn a_lock_left_locked_can_be_released_by_any_process() {
    let _watchdog = watchdog();
    #[task]
    fn leave(lock: Lock) {
        lock.acquire().unwrap().leave_locked();
    }
    #[task]
    fn release(lock: Lock) -> bool {
        lock.release().is_ok()
    }
    let pool = pool(2);
    let lock = Lock::new().unwrap();
    pool.submit(leave::task(lock.clone())).result().unwrap();
    assert!(lock.try_acquire().is_none());
    lock.release().unwrap();
    lock.acquire().unwrap().leave_locked();
    assert!(pool.submit(release::task(lock.clone())).result().unwrap());
    assert!(!pool.submit(release::task(lock.clone())).result().unwrap());
    drop(lock.try_acquire().unwrap().unwrap());
}

#[test]
fn a_recursive_lock_is_free_when_all_its_guards_are_dropped_on_any_thread() {
    let lock = RLock::new().unwrap();
    let guards: Vec<_> = (0..3).map(|_| lock.acquire().unwrap()).collect();
    let free_for_others =
        || thread::scope(|scope| scope.spawn(|| lock.try_acquire().is_some()).join().unwrap());
    for guard in guards {
        assert!(!free_for_others());
        thread::scope(|scope| {
            scope.spawn(|| drop(guard));
        });
    }
    assert!(free_for_others());
    let outer = lock.acquire().unwrap();
    assert!(lock.acquire_timeout(Duration::ZERO).is_some());
    drop(outer);
}

#[task]
fn die_holding(lock: Lock, holding: Event) {
    let _guard = lock.acquire().unwrap();
    holding.set();
    die();
}

#[task]
fn die_holding_twice(lock: RLock, value: Value<[u64; 2]>) {
    let _guards = (lock.acquire().unwrap(), lock.acquire().unwrap());
    let mut value = value.lock().unwrap();
    value[0] = 1;
    die();
}

#[test]
fn a_lock_whose_holder_was_killed_reports_owner_died() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (lock, holding) = (Lock::new().unwrap(), Event::new().unwrap());
    let dies = pool.submit(die_holding::task(lock.clone(), holding.clone()));
    assert!(holding.wait_timeout(LONG));
    // While the holder is dying, or after that.
    let died = lock.acquire().unwrap_err();
    assert!(died.to_string().contains("has died"));
    drop(died.into_guard());
    drop(lock.acquire().unwrap());
    assert!(matches!(dies.result(), Err(TaskError::WorkerLost { .. })));

    let (lock, value) = (RLock::new().unwrap(), Value::new([0_u64; 2]).unwrap());
    let dies = pool.submit(die_holding_twice::task(lock.clone(), value.clone()));
    assert!(matches!(dies.result(), Err(TaskError::WorkerLost { .. })));
    assert!(!lock.is_locked());
    assert_eq!(format!("{lock:?}"), "RLock(its holder has died)");
    // If a caller drops the report without looking at it, the next caller gets it again.
    for _ in 0..3 {
        drop(lock.try_acquire().unwrap().unwrap_err());
    }
    let guard = lock.acquire().unwrap_err().into_guard();
    let deeper = lock.acquire().unwrap();
    drop((guard, deeper));
    drop(lock.acquire().unwrap());
    // `get` and `update` leave the report to a caller that locks.
    assert_eq!(value.get(), [1, 0]);
    value.update(|value| value[1] = 1);
    assert_eq!(*value.lock().unwrap_err().into_guard(), [1, 1]);
    drop(value.lock().unwrap());
}

// ---- semaphores ---------------------------------------------------------------------------------

#[test]
fn sy06_a_semaphore_of_two_counts_its_permits() {
    let semaphore = Semaphore::new(2).unwrap();
    assert_eq!(semaphore.value(), 2);
    let first = semaphore.acquire();
    assert_eq!(semaphore.value(), 1);
    let second = semaphore.acquire();
    assert_eq!(semaphore.value(), 0);
    assert!(semaphore.try_acquire().is_none());
    assert_eq!(semaphore.value(), 0);
    drop(first);
    assert_eq!(semaphore.value(), 1);
    drop(second);
    assert_eq!(semaphore.value(), 2);
    semaphore.release();
    assert_eq!(semaphore.value(), 3);
    semaphore.acquire().forget();
    semaphore.release_many(5);
    assert_eq!(semaphore.value(), 7);
}

#[test]
fn sy07_a_bounded_semaphore_cannot_be_released_above_its_bound() {
    let semaphore = BoundedSemaphore::new(2).unwrap();
    assert_eq!(semaphore.release(), Err(ReleaseError::AboveBound));
    let permit = semaphore.acquire();
    assert_eq!(
        semaphore.release(),
        Err(ReleaseError::AboveBound),
        "its permit comes back by itself"
    );
    drop(permit);
    semaphore.acquire().forget();
    assert_eq!(semaphore.value(), 1);
    assert_eq!(semaphore.release(), Ok(()));
    assert_eq!(semaphore.release(), Err(ReleaseError::AboveBound));
    assert_eq!(semaphore.value(), 2);
}

#[test]
fn sy08_acquire_timeout_of_a_semaphore_at_zero_waits_for_its_whole_timeout() {
    let semaphore = Semaphore::new(0).unwrap();
    assert!(semaphore.try_acquire().is_none());
    for limit in [Duration::ZERO, SHORT, Duration::from_millis(150)] {
        let started = Instant::now();
        assert!(semaphore.acquire_timeout(limit).is_none());
        assert!(started.elapsed() >= limit);
    }
}

#[task]
fn take_permits(semaphore: Semaphore, permits: usize, forgotten: usize) {
    for _ in 0..forgotten {
        semaphore.acquire().forget();
    }
    let _permits: Vec<_> = (0..permits).map(|_| semaphore.acquire()).collect();
    die();
}

#[test]
fn permits_of_a_killed_process_are_returned_except_forgotten_ones() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let semaphore = Semaphore::new(5).unwrap();
    let dies = pool.submit(take_permits::task(semaphore.clone(), 3, 2));
    assert!(dies.result().is_err());
    let permits: Vec<_> = (0..3).map(|_| semaphore.acquire_timeout(LONG).unwrap()).collect();
    assert!(semaphore.try_acquire().is_none());
    drop(permits);
    semaphore.release_many(2);
    assert_eq!(semaphore.value(), 5);
}

#[task]
fn acquire_without_end(semaphore: Semaphore) {
    loop {
        drop(semaphore.acquire());
    }
}

#[test]
fn semaphore_calls_keep_their_timeouts_while_a_process_is_stopped_at_any_moment() {
    let _watchdog = watchdog();
    for round in 0..20 {
        let semaphore = Semaphore::new(1000).unwrap();
        let task = acquire_without_end::task(semaphore.clone());
        let child = Process::new(task).daemon(true).start().unwrap();
        eventually("it has acquired", || semaphore.value() < 1000);
        stop(child.pid());
        // The process stays stopped until these calls have returned. Most often it holds the
        // semaphore's mutex.
        let (sender, returned) = std::sync::mpsc::channel();
        thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                drop(semaphore.acquire_timeout(Duration::from_millis(20)));
                drop(semaphore.try_acquire());
                let _ = semaphore.value();
                sender.send(()).unwrap();
            }
        });
        assert!(returned.recv_timeout(Duration::from_secs(20)).is_ok(), "round {round}: it hangs");
        child.kill().unwrap();
        child.wait_exit();
        // The permit that the process held is returned.
        assert!(semaphore.acquire_timeout(LONG).is_some());
        eventually("all permits are back", || semaphore.value() == 1000);
    }
}

#[task]
fn within(semaphore: Semaphore, inside: RawValue<u32>, most: RawValue<u32>) -> u32 {
    for _ in 0..200 {
        let _permit = semaphore.acquire();
        let now = inside.fetch_add(1) + 1;
        if now > most.get() {
            most.set(now);
        }
        inside.fetch_add(u32::MAX);
    }
    most.get()
}

#[test]
fn no_more_processes_than_permits_are_inside_at_a_time() {
    let _watchdog = watchdog();
    let pool = pool(4);
    let semaphore = Semaphore::new(2).unwrap();
    let (inside, most) = (RawValue::new(0).unwrap(), RawValue::new(0).unwrap());
    let futures: Vec<_> = (0..4)
        .map(|_| pool.submit(within::task(semaphore.clone(), inside.clone(), most.clone())))
        .collect();
    for future in futures {
        assert!((1..=2).contains(&future.result().unwrap()));
    }
    assert_eq!((inside.get(), semaphore.value()), (0, 2));
}

// ---- conditions ---------------------------------------------------------------------------------

#[task]
fn wait_once(condition: Condition, sleeping: Value<u32>, woken: Value<u32>) {
    let guard = condition.acquire().unwrap();
    sleeping.fetch_add(1);
    let guard = condition.wait(guard).unwrap();
    woken.fetch_add(1);
    drop(guard);
}

#[test]
fn sy09_notify_one_wakes_exactly_one_waiter() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let condition = Condition::new().unwrap();
    let [sleeping, woken] = [(); 2].map(|()| Value::new(0_u32).unwrap());
    thread::scope(|scope| {
        let task = pool.submit(wait_once::task(condition.clone(), sleeping.clone(), woken.clone()));
        let wait = || wait_once(condition.clone(), sleeping.clone(), woken.clone());
        let waiting = scope.spawn(wait);
        eventually("both wait", || sleeping.get() == 2 && !condition.get_lock().is_locked());
        for expected in 1..=2 {
            // Notify with the lock held, so that both waiters really sleep by now.
            let guard = condition.acquire().unwrap();
            condition.notify_one();
            drop(guard);
            eventually("one woke", || woken.get() == expected);
            thread::sleep(SHORT);
            assert_eq!(woken.get(), expected);
        }
        task.result().unwrap();
        waiting.join().unwrap();
    });
}

#[test]
fn sy11_notify_wakes_as_many_waiters_as_asked() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let condition = Condition::new().unwrap();
    let [sleeping, woken] = [(); 2].map(|()| Value::new(0_u32).unwrap());
    thread::scope(|scope| {
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                pool.submit(wait_once::task(condition.clone(), sleeping.clone(), woken.clone()))
            })
            .collect();
        for _ in 0..3 {
            scope.spawn(|| wait_once(condition.clone(), sleeping.clone(), woken.clone()));
        }
        eventually("all wait", || sleeping.get() == 6);
        for (count, expected) in [(2, 2), (4, 6), (3, 6)] {
            let guard = condition.acquire().unwrap();
            condition.notify(count);
            drop(guard);
            eventually("they woke", || woken.get() == expected);
            thread::sleep(SHORT);
            assert_eq!(woken.get(), expected);
        }
        for task in tasks {
            task.result().unwrap();
        }
    });
}

#[test]
fn sy12_a_wait_without_a_notification_returns_false_after_its_timeout() {
    let condition = Condition::new().unwrap();
    for limit in [Duration::ZERO, SHORT, Duration::from_millis(150)] {
        let started = Instant::now();
        let (guard, notified) =
            condition.wait_timeout(condition.acquire().unwrap(), limit).unwrap();
        assert!(!notified && started.elapsed() >= limit);
        let (guard, holds) = condition.wait_for_timeout(guard, limit, || false).unwrap();
        assert!(!holds && condition.get_lock().is_locked());
        drop(guard);
    }
}

#[test]
fn sy15_a_wait_returns_true_after_a_notification_and_is_not_ended_by_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    let _watchdog = watchdog();
    // SAFETY: installs a handler that does nothing, without SA_RESTART, so that system calls are
    // interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let condition = Condition::new().unwrap();
    let (thread_of_it, woken) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let guard = condition.acquire().unwrap();
            // SAFETY: only asks for the id of this thread.
            thread_of_it.store(unsafe { libc::pthread_self() } as usize, Ordering::SeqCst);
            let (_guard, notified) = condition.wait_timeout(guard, LONG).unwrap();
            woken.store(true, Ordering::SeqCst);
            notified
        });
        eventually("it waits", || {
            thread_of_it.load(Ordering::SeqCst) != 0 && !condition.get_lock().is_locked()
        });
        for _ in 0..20 {
            // SAFETY: the thread has not ended: nothing has notified it, and it is not joined.
            unsafe { libc::pthread_kill(thread_of_it.load(Ordering::SeqCst) as _, libc::SIGUSR1) };
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!woken.load(Ordering::SeqCst));
        let guard = condition.acquire().unwrap();
        condition.notify_one();
        drop(guard);
        assert!(waiting.join().unwrap());
    });
}

#[task]
fn wait_for_ever(condition: Condition, sleeping: Event) {
    let guard = condition.acquire().unwrap();
    sleeping.set();
    let _guard = condition.wait(guard).unwrap();
}

#[test]
fn a_killed_waiter_consumes_no_notification() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let condition = Condition::new().unwrap();
    let [sleeping, woken] = [(); 2].map(|()| Value::new(0_u32).unwrap());
    let asleep = Event::new().unwrap();
    let doomed = pool.submit(wait_for_ever::task(condition.clone(), asleep.clone()));
    assert!(asleep.wait_timeout(LONG));
    // The waiter that is going to be killed is the first in line.
    eventually("it waits", || !condition.get_lock().is_locked());
    let survivor = pool.submit(wait_once::task(condition.clone(), sleeping.clone(), woken.clone()));
    eventually("the other waits", || sleeping.get() == 1 && !condition.get_lock().is_locked());
    doomed.cancel_handle().cancel_running();
    assert!(doomed.result().is_err());
    condition.notify_one();
    survivor.result().unwrap();
    assert_eq!(woken.get(), 1);
}

#[test]
fn a_notification_of_a_waiter_that_dies_before_it_has_the_lock_goes_to_another() {
    let _watchdog = watchdog();
    let (victims, others) = (pool(1), pool(1));
    let condition = Condition::new().unwrap();
    let [sleeping, woken] = [(); 2].map(|()| Value::new(0_u32).unwrap());
    let asleep = Event::new().unwrap();
    let doomed = victims.submit(wait_for_ever::task(condition.clone(), asleep.clone()));
    assert!(asleep.wait_timeout(LONG));
    eventually("it waits", || !condition.get_lock().is_locked());
    let survivor =
        others.submit(wait_once::task(condition.clone(), sleeping.clone(), woken.clone()));
    eventually("the other waits", || sleeping.get() == 1 && !condition.get_lock().is_locked());
    let pid = victims.worker_pids()[0];
    // The waiter is stopped, notified, and then killed.
    stop(pid);
    condition.notify_one();
    assert_eq!(woken.get(), 0);
    signal(pid, Signal::KILL);
    assert!(doomed.result().is_err());
    survivor.result().unwrap();
    assert_eq!(woken.get(), 1);
}

#[test]
fn more_callers_can_wait_than_there_are_wait_slots() {
    let _watchdog = watchdog();
    let condition = Condition::new().unwrap();
    let [sleeping, woken] = [(); 2].map(|()| Value::new(0_u32).unwrap());
    thread::scope(|scope| {
        for _ in 0..80 {
            scope.spawn(|| wait_once(condition.clone(), sleeping.clone(), woken.clone()));
        }
        eventually("all wait", || sleeping.get() == 80);
        let guard = condition.acquire().unwrap();
        condition.notify_all();
        drop(guard);
        eventually("all woke", || woken.get() == 80);
    });
}

#[test]
#[should_panic(expected = "of another lock")]
fn waiting_with_a_guard_of_another_lock_panics() {
    let (condition, lock) = (Condition::new().unwrap(), Lock::new().unwrap());
    let _ = condition.wait_timeout(lock.acquire().unwrap(), SHORT);
}

// ---- events -------------------------------------------------------------------------------------

#[task]
fn set_later(event: Event) {
    thread::sleep(SHORT);
    event.set();
}

#[test]
fn sy16_an_event_can_be_set_cleared_and_waited_for() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let event = Event::new().unwrap();
    assert!(!event.is_set());
    for limit in [Duration::ZERO, SHORT] {
        let started = Instant::now();
        assert!(!event.wait_timeout(limit));
        assert!(started.elapsed() >= limit);
    }
    event.set();
    assert!(event.is_set() && event.wait_timeout(Duration::ZERO) && event.wait_timeout(LONG));
    event.wait();
    event.clear();
    assert!(!event.is_set() && !event.wait_timeout(Duration::ZERO));
    let sets = pool.submit(set_later::task(event.clone()));
    event.wait();
    assert!(event.is_set());
    sets.result().unwrap();
}

#[test]
fn a_waiter_notices_an_event_that_is_set_and_cleared_at_once() {
    let _watchdog = watchdog();
    let event = Event::new().unwrap();
    let waiting = AtomicUsize::new(0);
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            waiting.store(1, Ordering::SeqCst);
            event.wait_timeout(LONG)
        });
        eventually("it is about to wait", || waiting.load(Ordering::SeqCst) == 1);
        // The waiter may not sleep yet, but it notices one of many pulses.
        while !waits.is_finished() {
            event.set();
            event.clear();
        }
        assert!(waits.join().unwrap());
    });
}

#[test]
fn sy17_debug_shows_whether_an_event_is_set() {
    let event = Event::new().unwrap();
    assert_eq!(format!("{event:?}"), "Event(unset)");
    event.set();
    assert_eq!(format!("{event:?}"), "Event(set)");
}

// ---- barriers -----------------------------------------------------------------------------------

#[task]
fn pass(barrier: Barrier, arrived: RawValue<u32>, times: u32) -> Vec<usize> {
    (1..=times)
        .map(|time| {
            arrived.fetch_add(1);
            let index = barrier.wait().unwrap();
            let arrived = arrived.get();
            // All parties have come this time, and none is a round ahead of a party that has not
            // passed.
            assert!((5 * time..=5 * time + 4).contains(&arrived), "{arrived} at {time}");
            index
        })
        .collect()
}

fn pass_barrier(times: u32) -> Vec<Vec<usize>> {
    let pool = pool(5);
    let (barrier, arrived) = (Barrier::new(5).unwrap(), RawValue::new(0_u32).unwrap());
    let futures: Vec<_> =
        (0..5).map(|_| pool.submit(pass::task(barrier.clone(), arrived.clone(), times))).collect();
    let indices = futures.into_iter().map(|future| future.result().unwrap()).collect();
    assert_eq!((barrier.n_waiting(), barrier.is_broken(), barrier.parties()), (0, false, 5));
    indices
}

#[test]
fn sy18_parties_pass_in_lock_step_once_and_ten_times() {
    let _watchdog = watchdog();
    pass_barrier(1);
    pass_barrier(10);
}

#[test]
fn sy19_each_party_gets_a_different_index_in_each_round() {
    let _watchdog = watchdog();
    let indices = pass_barrier(10);
    for time in 0..10 {
        let mut of_this_time: Vec<_> = indices.iter().map(|own| own[time]).collect();
        of_this_time.sort_unstable();
        assert_eq!(of_this_time, [0, 1, 2, 3, 4]);
    }
}

#[task]
fn come_to_barrier(barrier: Barrier) -> bool {
    match barrier.wait() {
        Ok(_) => true,
        Err(BarrierError::Broken) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn sy21_abort_breaks_the_barrier_for_all_waiting_parties() {
    let _watchdog = watchdog();
    let pool = pool(4);
    let barrier = Barrier::new(5).unwrap();
    let futures: Vec<_> =
        (0..4).map(|_| pool.submit(come_to_barrier::task(barrier.clone()))).collect();
    eventually("four wait", || barrier.n_waiting() == 4);
    barrier.abort();
    for future in futures {
        assert!(!future.result().unwrap());
    }
    assert!(barrier.is_broken() && barrier.n_waiting() == 0);
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
}

#[test]
fn sy23_a_broken_barrier_works_again_after_a_reset() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let barrier = Barrier::new(3).unwrap();
    for round in 0..3 {
        let futures: Vec<_> =
            (0..2).map(|_| pool.submit(come_to_barrier::task(barrier.clone()))).collect();
        eventually("two wait", || barrier.n_waiting() == 2);
        // By an abort and a reset, and by a reset alone.
        if round == 0 {
            barrier.abort();
        }
        barrier.reset();
        for future in futures {
            assert!(!future.result().unwrap());
        }
        assert!(!barrier.is_broken());
    }
    let futures: Vec<_> =
        (0..2).map(|_| pool.submit(come_to_barrier::task(barrier.clone()))).collect();
    barrier.wait().unwrap();
    for future in futures {
        assert!(future.result().unwrap());
    }
}

#[test]
fn sy25_a_barrier_for_one_party_never_waits() {
    let barrier = Barrier::new(1).unwrap();
    assert_eq!((barrier.wait(), barrier.wait()), (Ok(0), Ok(0)));
    assert_eq!(Barrier::new(0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn one_party_runs_the_action_before_any_party_goes_on() {
    let _watchdog = watchdog();
    let (barrier, actions) = (Barrier::new(3).unwrap(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for time in 1..=20 {
                    barrier.wait_with(|| _ = actions.fetch_add(1, Ordering::SeqCst)).unwrap();
                    assert_eq!(actions.load(Ordering::SeqCst), time);
                    barrier.wait().unwrap();
                }
            });
        }
    });
}

#[test]
fn an_action_that_panics_breaks_the_barrier() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(2).unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(|| barrier.wait());
        eventually("it waits", || barrier.n_waiting() == 1);
        let panicked = scope.spawn(|| barrier.wait_with(|| panic!("in the action"))).join();
        assert!(panicked.is_err());
        assert_eq!(other.join().unwrap(), Err(BarrierError::Broken));
    });
    assert!(barrier.is_broken());
}

#[test]
fn a_timeout_breaks_the_barrier_for_all_parties() {
    let _watchdog = watchdog();
    let barrier = Barrier::with_timeout(3, SHORT).unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| barrier.wait())).collect();
        let results: Vec<_> = waiting.into_iter().map(|waiting| waiting.join().unwrap()).collect();
        assert!(results.contains(&Err(BarrierError::TimedOut)), "{results:?}");
        assert!(results.iter().all(Result::is_err));
    });
    assert!(barrier.is_broken());
    barrier.reset();
    assert_eq!(barrier.wait_timeout(Duration::ZERO), Err(BarrierError::TimedOut));
}

#[test]
fn a_party_that_dies_while_it_waits_breaks_the_barrier() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let barrier = Barrier::new(3).unwrap();
    let doomed = pool.submit(come_to_barrier::task(barrier.clone()));
    let waits = pool.submit(come_to_barrier::task(barrier.clone()));
    eventually("both wait", || barrier.n_waiting() == 2);
    doomed.cancel_handle().cancel_running();
    assert!(doomed.result().is_err());
    assert!(!waits.result().unwrap());
    assert!(barrier.is_broken());
}

// ---- all of them --------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct All {
    lock: Lock,
    rlock: RLock,
    semaphores: (Semaphore, BoundedSemaphore),
    conditions: Vec<Condition>,
    event: Option<Event>,
    barrier: Barrier,
}

impl All {
    fn new() -> All {
        let lock = Lock::new().unwrap();
        All {
            conditions: vec![Condition::new().unwrap(), Condition::with_lock(&lock).unwrap()],
            lock,
            rlock: RLock::new().unwrap(),
            semaphores: (Semaphore::new(1).unwrap(), BoundedSemaphore::new(1).unwrap()),
            event: Some(Event::new().unwrap()),
            barrier: Barrier::new(2).unwrap(),
        }
    }
}

#[task]
fn use_all(all: All) -> All {
    all.lock.acquire().unwrap().leave_locked();
    let _guard = all.rlock.acquire().unwrap();
    all.semaphores.0.acquire().forget();
    all.semaphores.1.acquire().forget();
    all.event.as_ref().unwrap().set();
    all.barrier.wait().unwrap();
    assert_eq!(all.conditions[1].get_lock(), &all.lock);
    all.conditions[0].notify_all();
    all.clone()
}

#[test]
fn sy28_an_object_passed_to_a_task_is_the_same_object() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let all = All::new();
    // The objects are passed to a running pool, and not inherited.
    for _ in 0..2 {
        let task = pool.submit(use_all::task(all.clone()));
        assert!(all.event.as_ref().unwrap().wait_timeout(LONG));
        all.barrier.wait().unwrap();
        let condition = &all.conditions[0];
        let guard = condition.acquire().unwrap();
        let (guard, _) = condition.wait_timeout(guard, SHORT).unwrap();
        drop(guard);
        assert_eq!(task.result().unwrap(), all);
        assert!(all.lock.try_acquire().is_none());
        all.lock.release().unwrap();
        assert_eq!((all.semaphores.0.value(), all.semaphores.1.value()), (0, 0));
        all.semaphores.0.release();
        all.semaphores.1.release().unwrap();
        all.event.as_ref().unwrap().clear();
    }
    assert_ne!(All::new(), all);
}

#[test]
fn another_serializer_rejects_sync_primitives_with_a_reason() {
    let error = serde_json::to_string(&Lock::new().unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("a Lock: it travels in the arguments and results of tasks only"),
        "{error}"
    );
    let text = r#"{"index":0,"offset":64,"len":8}"#;
    let error = serde_json::from_str::<Event>(text).unwrap_err().to_string();
    assert!(error.contains("an Event: its descriptor did not come with these bytes"), "{error}");
}

#[task]
fn descriptors_with(locks: Vec<Lock>) -> usize {
    let with = descriptors();
    drop(locks);
    with - descriptors()
}

/// Returns how many descriptors this process opens for that many locks.
#[task]
fn descriptors_for(locks: usize) -> usize {
    let before = descriptors();
    let locks: Vec<_> = (0..locks).map(|_| Lock::new().unwrap()).collect();
    let with = descriptors();
    drop(locks);
    with - before
}

#[test]
fn ten_thousand_locks_share_a_few_descriptors() {
    let _watchdog = watchdog();
    let pool = pool(1);
    // In a worker, where no other test opens descriptors meanwhile.
    let made = pool.submit(descriptors_for::task(10_000)).result().unwrap();
    assert!(made <= 24, "{made}");
    let locks: Vec<_> = (0..10_000).map(|_| Lock::new().unwrap()).collect();
    let there = pool.submit(descriptors_with::task(locks)).result().unwrap();
    assert!(there <= 24, "{there}");
}

#[task]
fn contend(lock: Lock, count: RawValue<u64>, times: u32) {
    for _ in 0..times {
        let _guard = lock.acquire().unwrap();
        // This is not atomic: only the lock excludes the other processes.
        count.set(count.get() + 1);
    }
}

#[test]
fn processes_exclude_each_other_with_a_lock() {
    let _watchdog = watchdog();
    let pool = pool(4);
    let (lock, count) = (Lock::new().unwrap(), RawValue::new(0_u64).unwrap());
    let futures: Vec<_> =
        (0..4).map(|_| pool.submit(contend::task(lock.clone(), count.clone(), 5_000))).collect();
    for future in futures {
        future.result().unwrap();
    }
    assert_eq!(count.get(), 20_000);
}

#[test]
fn async_waits_work_and_can_be_cancelled() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let all = All::new();
    let (held, release) = (Event::new().unwrap(), Event::new().unwrap());
    let holds = pool.submit(hold::task(all.lock.clone(), held.clone(), release.clone()));
    runtime.block_on(async {
        held.wait_async().await;
        // A cancelled wait acquires nothing.
        let waited = tokio::time::timeout(SHORT, all.lock.acquire_async()).await;
        assert!(waited.is_err());
        release.set();
        let guard = all.lock.acquire_async().await.unwrap();
        let condition = &all.conditions[1];
        let (_, guard) = tokio::join!(
            async {
                // The other one has begun to wait when this one goes on.
                tokio::task::yield_now().await;
                let _guard = condition.acquire_async().await.unwrap();
                condition.notify_one();
            },
            condition.wait_async(guard),
        );
        drop(guard.unwrap());
        // The notification of a dropped waiter goes to another one.
        let mut first = Box::pin(condition.wait_async(condition.acquire().unwrap()));
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(condition.wait_async(condition.acquire().unwrap()));
        assert!(futures::poll!(&mut second).is_pending());
        condition.notify_one();
        drop(first);
        drop(second.await.unwrap());

        let semaphore = &all.semaphores.0;
        let permit = semaphore.acquire_async().await;
        let (_, second) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                drop(permit);
            },
            semaphore.acquire_async(),
        );
        drop(second);
        let (one, other) = tokio::join!(all.barrier.wait_async(), all.barrier.wait_async());
        assert_eq!(one.unwrap() + other.unwrap(), 1);
        let abandoned = tokio::time::timeout(SHORT, all.barrier.wait_async()).await;
        assert!(abandoned.is_err() && all.barrier.is_broken());
    });
    holds.result().unwrap();
}

#[test]
fn a_task_can_await_an_rlock_and_nobody_enters_it_once_more() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let lock = RLock::new().unwrap();
    let (held, release) = (Event::new().unwrap(), Event::new().unwrap());
    let holds = pool.submit(hold_again::task(lock.clone(), held.clone(), release.clone()));
    runtime.block_on(async {
        held.wait_async().await;
        // A cancelled wait acquires nothing.
        assert!(tokio::time::timeout(SHORT, lock.acquire_async()).await.is_err());
        release.set();
        let guard = lock.acquire_async().await.unwrap();
        assert_eq!(format!("{lock:?}"), "RLock(held by a task, count 1)");
        // The thread of the task is not its holder.
        assert!(lock.try_acquire().is_none());
        let mut again = Box::pin(lock.acquire_async());
        assert!(futures::poll!(&mut again).is_pending());
        drop(guard);
        drop(again.await.unwrap());

        let outer = lock.acquire().unwrap();
        let inner = lock.acquire().unwrap();
        let mut waits = Box::pin(lock.acquire_async());
        assert!(futures::poll!(&mut waits).is_pending());
        drop(outer);
        assert!(futures::poll!(&mut waits).is_pending());
        drop(inner);
        drop(waits.await.unwrap());
        assert!(!lock.is_locked());
    });
    holds.result().unwrap();
}

/// Waits with 10,000 tasks. Returns the share of time in which the process used the CPU while all
/// tasks waited (the least of several seconds), and the number of watcher threads. Runs in a
/// process of its own.
#[task]
fn await_idly(what: u8) -> (f64, usize) {
    const WAITS: usize = 10_000;
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    let used = || {
        let times = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(times.tv_sec as u64, times.tv_nsec as u32)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async move {
        let (event, semaphore) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
        let lock = Lock::new().unwrap();
        lock.acquire().unwrap().leave_locked();
        let tasks: Vec<_> = (0..WAITS)
            .map(|_| {
                let (one, own) = (event.clone(), (what == 1).then(|| Event::new().unwrap()));
                let (semaphore, lock) = (semaphore.clone(), lock.clone());
                tokio::spawn(async move {
                    BEGUN.fetch_add(1, Ordering::Relaxed);
                    match what {
                        0 => one.wait_async().await,
                        1 => own.unwrap().wait_async().await,
                        2 => semaphore.acquire_async().await.forget(),
                        _ => lock.acquire_async().await.unwrap().leave_locked(),
                    }
                })
            })
            .collect();
        while BEGUN.load(Ordering::Relaxed) < WAITS {
            tokio::task::yield_now().await;
        }
        // The rest of the start-up work falls into one of these seconds. A permanent cost shows in
        // all of them.
        let mut least = f64::INFINITY;
        for _ in 0..10 {
            let (began, before) = (Instant::now(), used());
            tokio::time::sleep(Duration::from_secs(1)).await;
            least = least.min((used() - before).as_secs_f64() / began.elapsed().as_secs_f64());
            if least < 0.1 {
                break;
            }
        }
        let threads = std::fs::read_dir("/proc/self/task").unwrap().filter(|thread| {
            let name = std::fs::read_to_string(thread.as_ref().unwrap().path().join("comm"));
            name.is_ok_and(|name| name.trim() == "executor-waits")
        });
        let threads = threads.count();
        assert!(tasks.iter().all(|task| !task.is_finished()));
        (least, threads)
    })
}

#[test]
fn ten_thousand_idle_async_waits_use_little_cpu_and_few_threads() {
    let _watchdog = watchdog();
    for what in 0..4 {
        let child = Process::new(await_idly::task(what)).start().unwrap();
        let (computes, threads) = child.join().unwrap();
        // It was 0.4 when the watcher checked every wait.
        assert!(computes < 0.25, "what {what}: {computes:.3} of the time");
        assert!((1..=4).contains(&threads), "what {what}: {threads} threads");
        println!("{what}: {computes:.3}, {threads} watchers");
    }
}

#[test]
fn three_hundred_tasks_can_await_a_semaphore_at_the_same_time() {
    let _watchdog = watchdog();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let semaphore = Semaphore::new(0).unwrap();
    runtime.block_on(async {
        let waiting: Vec<_> = (0..300)
            .map(|_| {
                let semaphore = semaphore.clone();
                tokio::spawn(async move { semaphore.acquire_async().await.forget() })
            })
            .collect();
        for _ in 0..300 {
            semaphore.release();
        }
        for waiting in waiting {
            waiting.await.unwrap();
        }
    });
    assert_eq!(semaphore.value(), 0);
}
