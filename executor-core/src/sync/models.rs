//! The words of this folder under a model checker. See `os/std_or_model.rs`, and `CONTRIBUTING.md`
//! for how to run it.
//!
//! Threads play processes. Each has a number and may die, which must leave everything intact.
//! Sleeps have no timeout here, so that a lost wake-up is a deadlock. Where a death is only noticed
//! when a sleep reaches its timeout, [`time_passes`] plays that. It works with shuttle only,
//! because for loom it is an endless loop. Under loom, deaths come first.

use std::sync::Arc;
#[cfg(executor_shuttle)]
use std::time::Duration;

#[cfg(executor_shuttle)]
use super::{
    barrier::{self, BarrierError, Meeting},
    raw::{Deadline, deadline_in},
};
use super::{
    condition::{self, Waiters},
    event::Flag,
    lock::LockLayout,
    owner_counts::{self, OwnerCount},
    raw::{Locked, MutexState, RECHECK, RobustGuard, RobustMutex},
    rlock,
    semaphore::{self, Permits},
    wait_slots::{self, WaitSlot},
};
use crate::{
    os::{
        futex,
        liveness::{OwnerId, Owners},
        std_or_model::{
            LOOM, Shadow,
            atomic::{AtomicU32, Ordering},
            thread,
        },
    },
    transport::ring::models::{check, few},
};

/// A process, played by a thread.
#[derive(Clone)]
pub(crate) struct Process {
    number: u32,
    /// One bit for each dead process.
    dead: Arc<AtomicU32>,
}

impl Process {
    pub(crate) fn world(count: u32) -> Vec<Process> {
        let dead = Arc::new(AtomicU32::new(0));
        (1..=count).map(|number| Process { number, dead: Arc::clone(&dead) }).collect()
    }

    fn die(&self) {
        // The kernel's answer orders like a lock: a check after the death sees it.
        self.dead.fetch_or(1 << self.number, Ordering::SeqCst);
    }
}

impl Owners for Process {
    fn me(&self) -> OwnerId {
        OwnerId::from_bits(self.number).unwrap()
    }

    fn is_me(&self, id: OwnerId) -> bool {
        id == self.me()
    }

    fn is_alive(&self, id: OwnerId) -> bool {
        id != OwnerId::NOBODY && self.dead.load(Ordering::SeqCst) & 1 << id.bits() == 0
    }
}

/// Lets all sleeps on this word reach their timeout, again and again, until the threads are done.
fn time_passes<T>(
    word: &AtomicU32,
    done: &AtomicU32,
    threads: Vec<thread::JoinHandle<T>>,
) -> Vec<T> {
    while !LOOM && done.load(Ordering::SeqCst) < threads.len() as u32 {
        futex::wake_all(word);
        thread::yield_now();
    }
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Locks the mutex, like a call without a timeout.
pub(crate) fn held<'a>(mutex: &'a RobustMutex, process: &'a Process) -> RobustGuard<'a, Process> {
    mutex.lock_until(process, None).unwrap()
}

/// Increments a count in two steps. If two threads do so at the same time, one increment is lost.
fn add_one(count: &AtomicU32) {
    let value = count.load(Ordering::Relaxed);
    count.store(value + 1, Ordering::Relaxed);
}

#[test]
fn one_at_a_time_holds_a_mutex_and_all_get_it() {
    let (threads, times) = (few(2, 4) as u32, few(2, 5) as u32);
    check(3, move || {
        let shared = Arc::new((RobustMutex::default(), AtomicU32::new(0)));
        let threads: Vec<_> = Process::world(threads)
            .into_iter()
            .map(|process| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 0..times {
                        let guard = held(&shared.0, &process);
                        assert!(!guard.owner_died());
                        add_one(&shared.1);
                    }
                })
            })
            .collect();
        let count = threads.len() as u32 * times;
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.1.load(Ordering::Relaxed), count);
        assert_eq!(shared.0.word().load(Ordering::Relaxed), 0, "no mark is left");
    });
}

#[test]
fn of_those_who_come_after_a_death_exactly_one_is_told() {
    let heirs = few(2, 4) as u32;
    check(3, move || {
        let shared = Arc::new((RobustMutex::default(), AtomicU32::new(0), AtomicU32::new(0)));
        let mut world = Process::world(heirs + 1);
        let doomed = world.pop().unwrap();
        let theirs = Arc::clone(&shared);
        let victim = thread::spawn(move || {
            std::mem::forget(held(&theirs.0, &doomed));
            doomed.die();
        });
        let victim = if LOOM { victim.join().map(|()| None).unwrap() } else { Some(victim) };
        let heirs: Vec<_> = world
            .into_iter()
            .map(|process| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let guard = held(&shared.0, &process);
                    add_one(&shared.1);
                    let told = u32::from(guard.owner_died());
                    drop(guard);
                    shared.2.fetch_add(1, Ordering::SeqCst);
                    told
                })
            })
            .collect();
        let count = heirs.len() as u32;
        let told = time_passes(shared.0.word(), &shared.2, heirs).iter().sum::<u32>();
        if let Some(victim) = victim {
            victim.join().unwrap();
        }
        assert_eq!(shared.1.load(Ordering::Relaxed), count);
        // The victim may have come last.
        let left = shared.0.state(&Process::world(1)[0]) != MutexState::Free;
        assert_eq!(told + u32::from(left), 1);
    });
}

#[cfg(executor_shuttle)]
#[test]
fn a_death_between_the_release_and_the_wake_up_holds_nobody_up() {
    check(3, || {
        let shared = Arc::new((RobustMutex::default(), AtomicU32::new(0), AtomicU32::new(0)));
        let mut world = Process::world(3);
        let doomed = world.pop().unwrap();
        let guard = held(&shared.0, &doomed);
        let waiting: Vec<_> = world
            .into_iter()
            .map(|process| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let guard = held(&shared.0, &process);
                    add_one(&shared.1);
                    assert!(!guard.owner_died());
                    drop(guard);
                    shared.2.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        std::mem::forget(guard);
        shared.0.word().swap(0, Ordering::Release);
        doomed.die();
        time_passes(shared.0.word(), &shared.2, waiting);
        assert_eq!(shared.1.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn what_is_left_locked_is_released_once_and_wakes() {
    check(3, || {
        let mutex = Arc::new(RobustMutex::default());
        let world = Process::world(3);
        assert_eq!(mutex.acquire(&world[0], world[0].me(), None), Some(Locked::Clean));
        let waits = {
            let (mutex, process) = (Arc::clone(&mutex), world[1].clone());
            thread::spawn(move || mutex.acquire(&process, process.me(), None))
        };
        let releases = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || mutex.release_left())
        };
        mutex.leave();
        let here = mutex.release_left();
        let there = releases.join().unwrap();
        assert!(here ^ there, "exactly one");
        assert_eq!(waits.join().unwrap(), Some(Locked::Clean));
    });
}

pub(crate) fn table(count: usize) -> Vec<OwnerCount> {
    (0..count).map(|_| OwnerCount::default()).collect()
}

type Semaphore = (semaphore::SemaphoreHeader, Vec<OwnerCount>);

fn permits<'a>(shared: &'a Semaphore, owners: &'a Process) -> Permits<'a, Process> {
    Permits { header: &shared.0, table: &shared.1, owners }
}

#[test]
fn no_permit_is_given_twice_and_no_release_unheard() {
    let (threads, times) = (few(2, 4) as u32, few(1, 4));
    check(3, move || {
        let world = Process::world(threads);
        let shared: Arc<(Semaphore, AtomicU32)> =
            Arc::new(((Default::default(), table(2)), AtomicU32::new(0)));
        permits(&shared.0, &world[0]).init(1, u32::MAX);
        let threads: Vec<_> = world
            .iter()
            .cloned()
            .map(|process| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let permits = permits(&shared.0, &process);
                    for _ in 0..times {
                        permits.acquire(None).unwrap();
                        assert_eq!(shared.1.fetch_add(1, Ordering::Relaxed), 0);
                        shared.1.fetch_sub(1, Ordering::Relaxed);
                        permits.give_back(process.me());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(permits(&shared.0, &world[0]).value(), 1);
    });
}

#[test]
fn what_is_given_back_without_the_mutex_is_never_lost() {
    check(3, || {
        let me = Process::world(1)[0].me();
        let shared = Arc::new((table(1), AtomicU32::new(0)));
        assert!(owner_counts::add(&shared.0, me) && owner_counts::add(&shared.0, me));
        let theirs = Arc::clone(&shared);
        let gives = thread::spawn(move || {
            theirs.1.store(1, Ordering::Relaxed);
            assert!(owner_counts::give_back(&theirs.0, me));
        });
        assert!(owner_counts::give_back(&shared.0, me));
        assert!(owner_counts::add(&shared.0, me));
        assert!(owner_counts::give_back(&shared.0, me));
        if owner_counts::total(&shared.0) == 0 {
            // A process that is let in now comes after everything that they did.
            assert_eq!(shared.1.load(Ordering::Relaxed), 1);
        }
        gives.join().unwrap();
        assert_eq!(owner_counts::total(&shared.0), 0);
    });
}

#[test]
fn what_was_done_in_a_guard_that_another_thread_drops_is_seen_by_the_holder() {
    check(3, || {
        let me = Process::world(1)[0].me();
        let shared = Arc::new((LockLayout::default(), AtomicU32::new(0)));
        shared.0.lend_to(Some(me));
        let theirs = Arc::clone(&shared);
        let drops = thread::spawn(move || {
            theirs.1.store(1, Ordering::Relaxed);
            theirs.0.lend_to(None);
        });
        if shared.0.lent_to().is_none() {
            assert_eq!(shared.1.load(Ordering::Relaxed), 1);
        }
        drops.join().unwrap();
    });
}

#[cfg(executor_shuttle)]
#[test]
fn a_permit_that_comes_back_while_another_one_has_the_mutex_is_counted_and_heard() {
    check(3, || {
        let world = Process::world(2);
        let shared: Arc<Semaphore> = Arc::new((Default::default(), table(2)));
        permits(&shared, &world[0]).init(1, u32::MAX);
        permits(&shared, &world[1]).acquire(None).unwrap();
        let (theirs, process) = (Arc::clone(&shared), world[1].clone());
        let gives = thread::spawn(move || permits(&theirs, &process).give_back_alone(process.me()));
        let here = permits(&shared, &world[0]);
        here.acquire(None).unwrap();
        gives.join().unwrap();
        assert_eq!(here.value(), 0);
        here.give_back(world[0].me());
        assert_eq!(here.value(), 1);
        assert!(here.try_acquire().is_some() && here.try_acquire().is_none());
    });
}

#[cfg(executor_shuttle)]
type Shared = (barrier::BarrierHeader, Vec<WaitSlot>);

#[cfg(executor_shuttle)]
fn meeting<'a>(shared: &'a Shared, owners: &'a Process) -> Meeting<'a, Process> {
    Meeting { header: &shared.0, slots: &shared.1, owners }
}

#[cfg(executor_shuttle)]
/// Lets two processes come to a barrier for two, each with its deadline. Returns both results.
fn two_meet(
    deadlines: [Deadline; 2],
) -> (Arc<Shared>, Vec<Process>, [Result<usize, BarrierError>; 2]) {
    let world = Process::world(2);
    let shared: Arc<Shared> =
        Arc::new((Default::default(), (0..4).map(|_| WaitSlot::default()).collect()));
    meeting(&shared, &world[0]).init(2, 0);
    let (theirs, process) = (Arc::clone(&shared), world[1].clone());
    let other =
        thread::spawn(move || meeting(&theirs, &process).wait_until(deadlines[1], None::<fn()>));
    let here = meeting(&shared, &world[0]).wait_until(deadlines[0], None::<fn()>);
    let both = [here, other.join().unwrap()];
    (shared, world, both)
}

#[cfg(executor_shuttle)]
#[test]
fn all_who_come_to_a_barrier_pass_it_and_leave_it_as_it_was() {
    check(2, || {
        let (shared, world, mut both) = two_meet([None, None]);
        both.sort_by_key(|passed| passed.clone().ok());
        assert!(both == [Ok(0), Ok(1)]);
        assert_eq!(meeting(&shared, &world[0]).n_waiting(), 0);
        assert!(shared.1.iter().all(WaitSlot::is_free));
    });
}

#[cfg(executor_shuttle)]
#[test]
fn nobody_passes_a_barrier_alone_whose_timeout_ever_is_over() {
    check(2, || {
        let over = deadline_in(Duration::ZERO);
        let (shared, _, both) = two_meet([over, over]);
        assert!(both[0].is_ok() == both[1].is_ok(), "one passed, and the other one did not");
        assert!(shared.1.iter().all(WaitSlot::is_free));
    });
}

/// Lets as many processes come to a barrier as it has parties. The timeout of one of them has
/// passed from the start.
#[cfg(executor_shuttle)]
fn one_leaves(parties: u32) {
    check(3, move || {
        let world = Process::world(parties);
        let shared: Arc<Shared> =
            Arc::new((Default::default(), (0..2 * parties).map(|_| WaitSlot::default()).collect()));
        meeting(&shared, &world[0]).init(parties, 0);
        let others: Vec<_> = world[1..]
            .iter()
            .cloned()
            .map(|process| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || meeting(&shared, &process).wait_until(None, None::<fn()>))
            })
            .collect();
        let over = deadline_in(Duration::ZERO);
        let left = meeting(&shared, &world[0]).wait_until(over, None::<fn()>);
        let others: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
        match left {
            // It was the last one to come, or all came before it looked at its timeout.
            Ok(index) => {
                let mut all: Vec<_> =
                    others.into_iter().map(|passed| passed.unwrap() as u32).collect();
                all.push(index as u32);
                all.sort_unstable();
                assert!(all.into_iter().eq(0..parties));
            }
            Err(BarrierError::TimedOut) => {
                assert!(others.iter().all(|other| *other == Err(BarrierError::Broken)));
            }
            Err(BarrierError::Broken) => panic!("nobody else breaks it"),
        }
        assert!(shared.1.iter().all(WaitSlot::is_free));
    });
}

#[cfg(executor_shuttle)]
#[test]
fn one_who_leaves_a_barrier_for_two_breaks_it_unless_both_pass() {
    one_leaves(2);
}

#[cfg(executor_shuttle)]
#[test]
fn one_who_leaves_a_barrier_for_three_breaks_it_unless_all_pass() {
    one_leaves(3);
}

#[derive(Default)]
struct Rooms {
    lock: rlock::Layout,
    /// Written while the lock is held.
    count: AtomicU32,
    shadow: Shadow,
}

impl Rooms {
    /// Enters two levels, and leaves them again.
    fn visit(&self, process: &Process, thread: u32) {
        let me = process.me();
        assert_eq!(self.lock.enter(process, me, thread, None), Some(Locked::Clean));
        self.shadow.fill();
        add_one(&self.count);
        assert_eq!(self.lock.try_enter(process, me, thread), Some(Locked::Clean), "it is in there");
        add_one(&self.count);
        self.lock.leave();
        self.shadow.fill();
        add_one(&self.count);
        self.lock.leave();
    }
}

#[test]
fn one_thread_at_a_time_is_in_an_rlock_and_finds_only_itself_there() {
    check(2, || {
        let world = Process::world(2);
        let rooms = Arc::new(Rooms::default());
        // Two threads of one process, and a thread of another process with the same number as one
        // of them.
        let others = [(&world[0], 2), (&world[1], 2)].map(|(process, number)| {
            let (rooms, process) = (Arc::clone(&rooms), process.clone());
            thread::spawn(move || rooms.visit(&process, number))
        });
        rooms.visit(&world[0], 1);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(rooms.count.load(Ordering::Relaxed), 9);
    });
}

#[test]
fn what_was_done_in_levels_of_an_rlock_that_other_threads_end_is_seen_by_the_next_one() {
    check(3, || {
        let world = Process::world(2);
        let rooms = Arc::new(Rooms::default());
        let me = world[0].me();
        for _ in 0..2 {
            assert_eq!(rooms.lock.enter(&world[0], me, 1, None), Some(Locked::Clean));
        }
        // The guard of one level was given to another thread.
        let theirs = Arc::clone(&rooms);
        let ends = thread::spawn(move || {
            theirs.shadow.look();
            theirs.count.store(1, Ordering::Relaxed);
            theirs.lock.leave();
        });
        let (theirs, process) = (Arc::clone(&rooms), world[1].clone());
        let next = thread::spawn(move || {
            assert_eq!(theirs.lock.enter(&process, process.me(), 1, None), Some(Locked::Clean));
            assert_eq!(theirs.count.load(Ordering::Relaxed), 1);
            theirs.shadow.fill();
            theirs.lock.leave();
        });
        rooms.lock.leave();
        ends.join().unwrap();
        next.join().unwrap();
    });
}

#[test]
fn the_permits_of_the_dead_come_back() {
    check(2, || {
        let world = Process::world(3);
        let shared: Arc<(Semaphore, AtomicU32)> =
            Arc::new(((Default::default(), table(2)), AtomicU32::new(0)));
        permits(&shared.0, &world[0]).init(1, u32::MAX);
        let (theirs, doomed) = (Arc::clone(&shared), world[2].clone());
        let victim = thread::spawn(move || {
            permits(&theirs.0, &doomed).acquire(None).unwrap();
            doomed.die();
        });
        victim.join().unwrap();
        let (theirs, process) = (Arc::clone(&shared), world[1].clone());
        let other = thread::spawn(move || {
            let permits = permits(&theirs.0, &process);
            permits.acquire(None).unwrap();
            permits.give_back(process.me());
            theirs.1.fetch_add(1, Ordering::SeqCst);
        });
        // Two processes look for the permit at the same time.
        let here = permits(&shared.0, &world[0]);
        here.acquire(None).unwrap();
        here.give_back(world[0].me());
        time_passes(semaphore::sleepers(&shared.0.0), &shared.1, vec![other]);
        assert_eq!(permits(&shared.0, &world[0]).value(), 1);
    });
}

struct Condition {
    lock: RobustMutex,
    header: condition::ConditionHeader,
    slots: Vec<WaitSlot>,
    ready: AtomicU32,
}

impl Condition {
    fn new(slots: usize) -> Arc<Self> {
        let slots = (0..slots).map(|_| WaitSlot::default()).collect();
        Arc::new(Condition {
            lock: RobustMutex::default(),
            header: condition::ConditionHeader::default(),
            slots,
            ready: AtomicU32::new(0),
        })
    }

    fn waiters<'a>(&'a self, owners: &'a Process) -> Waiters<'a, Process> {
        Waiters { header: &self.header, slots: &self.slots, owners }
    }

    /// Like `Condition::wait_for`.
    fn take(&self, process: &Process) {
        let mut guard = held(&self.lock, process);
        while self.ready.load(Ordering::Relaxed) == 0 {
            let mut waiting = self.waiters(process).enter(None).unwrap();
            drop(guard);
            assert!(waiting.sleep(None));
            guard = held(&self.lock, process);
            waiting.leave();
        }
        self.ready.store(self.ready.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        drop(guard);
    }

    fn give(&self, process: &Process) {
        let guard = held(&self.lock, process);
        add_one(&self.ready);
        self.waiters(process).notify(1, None);
        drop(guard);
    }
}

/// Runs with a slot for each waiter, and without slots, so that all waiters are in the crowd.
fn no_notification_is_lost(slots: usize) {
    let takers = few(1, 3) as u32;
    check(2, move || {
        let world = Process::world(takers + 1);
        let condition = Condition::new(slots);
        let threads: Vec<_> = world[1..]
            .iter()
            .cloned()
            .map(|process| {
                let condition = Arc::clone(&condition);
                thread::spawn(move || condition.take(&process))
            })
            .collect();
        for _ in 0..takers {
            condition.give(&world[0]);
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(condition.ready.load(Ordering::Relaxed), 0);
        assert!(condition.slots.iter().all(WaitSlot::is_free));
    });
}

#[test]
fn no_notification_is_lost_in_slots() {
    no_notification_is_lost(3);
}

#[test]
fn no_notification_is_lost_in_the_crowd() {
    no_notification_is_lost(0);
}

#[test]
fn a_slot_is_entered_again_only_after_it_was_left() {
    check(3, || {
        let world = Process::world(3);
        let shared = Arc::new((RobustMutex::default(), WaitSlot::default()));
        shared.1.enter(world[0].me(), 1);
        let (theirs, process) = (Arc::clone(&shared), world[1].clone());
        let teller = thread::spawn(move || {
            let guard = held(&theirs.0, &process);
            assert!(theirs.1.tell(2));
            drop(guard);
            theirs.1.wake();
        });
        let (theirs, process) = (Arc::clone(&shared), world[2].clone());
        let next = thread::spawn(move || {
            let guard = held(&theirs.0, &process);
            let enters = theirs.1.is_free();
            if enters {
                theirs.1.enter(process.me(), 3);
            }
            drop(guard);
            enters
        });
        while shared.1.state() == wait_slots::State::Waiting {
            shared.1.sleep(RECHECK);
        }
        assert_eq!(shared.1.told_at(), 2);
        // One store, without the mutex.
        shared.1.leave();
        teller.join().unwrap();
        assert_eq!(next.join().unwrap(), shared.1.is_waiting());
    });
}

#[test]
fn a_notification_of_one_that_died_goes_to_another_one() {
    check(2, || {
        let world = Process::world(3);
        let condition = Condition::new(2);
        // This waiter comes first, is told first, and dies before it has the lock.
        let mut doomed = {
            let _guard = held(&condition.lock, &world[2]);
            condition.waiters(&world[2]).enter(None).unwrap()
        };
        let (theirs, process) = (Arc::clone(&condition), world[1].clone());
        let other = thread::spawn(move || {
            let guard = held(&theirs.lock, &process);
            let mut waiting = theirs.waiters(&process).enter(None).unwrap();
            drop(guard);
            theirs.ready.store(1, Ordering::SeqCst);
            assert!(waiting.sleep(None));
            waiting.leave();
        });
        while condition.ready.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        condition.waiters(&world[0]).notify(1, None);
        assert!(doomed.sleep(None));
        std::mem::forget(doomed);
        world[2].die();
        // The next notifier, or a waiter that looks by itself, hands it on. Here the notifier
        // notifies nobody.
        condition.waiters(&world[0]).notify(0, None);
        other.join().unwrap();
    });
}

#[test]
fn a_set_event_is_heard_even_if_it_is_cleared_at_once() {
    let waiters = few(1, 3);
    check(3, move || {
        let shared = Arc::new((Flag::default(), AtomicU32::new(0)));
        let turn = shared.0.turn();
        let threads: Vec<_> = (0..waiters)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    while let Err(word) = shared.0.look(turn) {
                        shared.0.sleep(word, RECHECK);
                    }
                    // What was done before the event was set must be visible.
                    assert_eq!(shared.1.load(Ordering::Relaxed), 1);
                })
            })
            .collect();
        shared.1.store(1, Ordering::Relaxed);
        shared.0.set();
        shared.0.clear();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
