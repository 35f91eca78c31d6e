//! Waits of tasks under a model checker. See `os/std_or_model.rs`, and `CONTRIBUTING.md` for how to
//! run it.
//!
//! All tasks belong to one process, so they share its watchers; other threads play other processes.
//! No watcher looks by itself: a lost wake-up, or a place that stays on a watcher, is a deadlock.
//! Under loom, all waiters of a model wait for the same change, because the order of several groups
//! would differ between executions.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use super::{Watchers, WordWait};
#[cfg(executor_shuttle)]
use crate::{
    os::liveness::OwnerId,
    sync::{
        models::table,
        semaphore::{self, Permits},
    },
};
use crate::{
    os::{
        futex,
        liveness::Owners,
        memory::keep,
        std_or_model::{
            Condvar, Mutex,
            atomic::{AtomicU32, Ordering},
            join_started, lazy_static, lock_of_model as lock, thread,
        },
    },
    sync::{
        event::Flag,
        models::{Process, held},
        raw::RobustMutex,
        wait_slots::{State, WaitSlot},
    },
    transport::ring::models::{check, few},
};

pub(super) fn watchers() -> &'static Watchers {
    lazy_static! {
        static ref WATCHERS: Watchers = Watchers::default();
    }
    &WATCHERS
}

impl WordWait<'static> {
    /// Like [`new`](Self::new), for a word that stays as long as the model runs.
    pub(crate) fn in_model(word: &'static AtomicU32, expected: u32) -> Self {
        WordWait { block: None, word, expected, looks: true, place: None }
    }
}

/// Ends a model: makes the watchers see that nobody waits, and waits until they have ended.
pub(crate) fn nobody_waits() {
    let all = lock(&watchers().list).clone();
    for watcher in all {
        watcher.announce();
    }
    join_started();
}

/// Counts how often a task was woken.
#[derive(Default)]
pub(crate) struct Task {
    wakes: Mutex<u32>,
    woken: Condvar,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        *lock(&self.wakes) += 1;
        self.woken.notify_one();
    }
}

impl Task {
    fn poll<F: Future>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    /// Polls the future when it was woken, and only then. Also returns how often it was woken.
    fn run<F: Future>(self: &Arc<Self>, future: F) -> (F::Output, u32) {
        let mut future = pin!(future);
        let mut heard = 0;
        loop {
            if let Poll::Ready(output) = self.poll(future.as_mut()) {
                return (output, *lock(&self.wakes));
            }
            let mut wakes = lock(&self.wakes);
            while *wakes == heard {
                wakes = self.woken.wait(wakes).unwrap();
            }
            heard = *wakes;
        }
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    Arc::<Task>::default().run(future).0
}

/// Returns a waiting future that was polled once.
fn waiting(word: &'static AtomicU32, expected: u32) -> Pin<Box<WordWait<'static>>> {
    let mut waits = Box::pin(WordWait::in_model(word, expected));
    assert!(Arc::<Task>::default().poll(waits.as_mut()).is_pending());
    waits
}

async fn until(word: &'static AtomicU32, value: u32) {
    loop {
        match word.load(Ordering::Acquire) {
            now if now == value => return,
            now => WordWait::in_model(word, now).await,
        }
    }
}

#[test]
fn all_who_wait_for_a_word_are_told_by_one_wake_up_that_it_has_changed() {
    let tasks = few(1, 3);
    check(2, move || {
        let word = keep(AtomicU32::new(0));
        let threads: Vec<_> =
            (0..tasks).map(|_| thread::spawn(move || block_on(until(word, 1)))).collect();
        let changes = thread::spawn(move || {
            word.swap(1, Ordering::AcqRel);
            futex::wake_one(word);
        });
        let ((), wakes) = Arc::<Task>::default().run(until(word, 1));
        assert!(wakes <= 1, "one wait, and {wakes} wake-ups");
        for thread in threads {
            thread.join().unwrap();
        }
        changes.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn who_comes_while_a_watcher_ends_is_told_all_the_same() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let last = few(2, 4) as u32;
        let changes = thread::spawn(move || {
            for value in 1..=last {
                word.swap(value, Ordering::AcqRel);
                futex::wake_one(word);
            }
        });
        block_on(until(word, last));
        changes.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn a_task_that_is_polled_by_another_one_is_woken_there() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let waits = waiting(word, 0);
        let changes = thread::spawn(move || {
            word.swap(1, Ordering::AcqRel);
            futex::wake_one(word);
        });
        block_on(waits);
        changes.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn a_wake_up_for_one_that_is_dropped_is_the_next_tasks() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let dropped = waiting(word, 0);
        let other = waiting(word, 0);
        futex::until_asleep(word, 1);
        let drops = thread::spawn(move || drop(dropped));
        // Passes on a wake-up, like a woken waiter in another process: nothing changes.
        futex::wake_one(word);
        block_on(other);
        drops.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn a_wake_up_for_one_that_is_dropped_is_a_sleeping_threads_if_no_other_task_waits() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let dropped = waiting(word, 0);
        futex::until_asleep(word, 1);
        let sleeps = thread::spawn(move || futex::wait(word, 0, None));
        futex::until_asleep(word, 2);
        let drops = thread::spawn(move || drop(dropped));
        // The watcher came to the word first, so it is woken.
        futex::wake_one(word);
        drops.join().unwrap();
        sleeps.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn a_wake_up_that_is_passed_on_to_one_that_is_dropped_too_is_a_sleeping_threads() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let dropped = [waiting(word, 0), waiting(word, 0)];
        futex::until_asleep(word, 1);
        let sleeps = thread::spawn(move || futex::wait(word, 0, None));
        futex::until_asleep(word, 2);
        futex::wake_one(word);
        drop(dropped);
        sleeps.join().unwrap();
        nobody_waits();
    });
}

#[test]
fn one_that_is_dropped_leaves_nothing() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let dropped = waiting(word, 0);
        let drops = thread::spawn(move || drop(dropped));
        drops.join().unwrap();
        nobody_waits();
    });
}

/// The watcher sleeps on one word when the other one is added.
#[cfg(executor_shuttle)]
#[test]
fn a_task_that_waits_for_another_word_than_those_before_it_is_told() {
    check(3, || {
        let [word, other]: [&AtomicU32; 2] = [keep(AtomicU32::new(0)), keep(AtomicU32::new(0))];
        let first = waiting(other, 0);
        let changes = thread::spawn(move || {
            word.swap(1, Ordering::AcqRel);
            futex::wake_one(word);
        });
        block_on(until(word, 1));
        changes.join().unwrap();
        drop(first);
        nobody_waits();
    });
}

#[test]
fn one_that_is_dropped_while_its_word_changes_leaves_nothing() {
    check(3, || {
        let word = keep(AtomicU32::new(0));
        let dropped = waiting(word, 0);
        let changes = thread::spawn(move || {
            word.swap(1, Ordering::AcqRel);
            futex::wake_one(word);
        });
        drop(dropped);
        changes.join().unwrap();
        nobody_waits();
    });
}

/// Like `Event::wait_async`.
#[test]
fn a_task_hears_of_a_set_event_even_if_it_is_cleared_at_once() {
    check(3, || {
        let shared: &(Flag, AtomicU32) = keep(Default::default());
        let turn = shared.0.turn();
        let sets = thread::spawn(move || {
            shared.1.store(1, Ordering::Relaxed);
            shared.0.set();
            shared.0.clear();
        });
        block_on(async {
            while let Err(word) = shared.0.look(turn) {
                WordWait::in_model(&shared.0.word, word).await;
            }
        });
        // What was done before the event was set must be visible.
        assert_eq!(shared.1.load(Ordering::Relaxed), 1);
        sets.join().unwrap();
        nobody_waits();
    });
}

/// Like `Condition::wait_async`.
#[test]
fn a_task_in_a_slot_hears_what_it_is_told() {
    check(3, || {
        let shared: &(RobustMutex, WaitSlot) = keep(Default::default());
        let world = Process::world(2);
        shared.1.enter(world[0].me(), 1);
        let process = world[1].clone();
        let tells = thread::spawn(move || {
            let guard = held(&shared.0, &process);
            assert!(shared.1.tell(2));
            drop(guard);
            shared.1.wake();
        });
        block_on(async {
            while shared.1.state() == State::Waiting {
                let (word, expected) = shared.1.word();
                WordWait::in_model(word, expected).await;
            }
        });
        assert_eq!(shared.1.told_at(), 2);
        shared.1.leave();
        tells.join().unwrap();
        nobody_waits();
    });
}

/// Two words are woken at the same time, and the kernel reports only one of them.
#[cfg(executor_shuttle)]
#[test]
fn a_wake_up_on_each_of_two_words_is_another_sleepers_where_nobody_waits_any_more() {
    check(3, || {
        let words: [&AtomicU32; 2] = [keep(AtomicU32::new(0)), keep(AtomicU32::new(0))];
        let waits = words.map(|word| waiting(word, 0));
        for word in words {
            futex::until_asleep(word, 1);
        }
        let sleep = words.map(|word| thread::spawn(move || futex::wait(word, 0, None)));
        for word in words {
            futex::until_asleep(word, 2);
        }
        let drops = waits.map(|waits| thread::spawn(move || drop(waits)));
        for word in words {
            word.swap(1, Ordering::AcqRel);
            futex::wake_one(word);
        }
        for thread in drops.into_iter().chain(sleep) {
            thread.join().unwrap();
        }
        nobody_waits();
    });
}

/// Polls the future until it is ready, but at most twice.
#[cfg(executor_shuttle)]
fn twice<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let task = Arc::<Task>::default();
    (0..2).find_map(|_| match task.poll(future.as_mut()) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => {
            thread::yield_now();
            None
        }
    })
}

#[cfg(executor_shuttle)]
#[test]
fn a_semaphores_permit_reaches_tasks_and_threads_whoever_of_them_is_dropped() {
    check(3, || {
        let shared: &(semaphore::SemaphoreHeader, _) = keep((Default::default(), table(2)));
        let [mine, others] =
            [0, 1].map(|at| -> &'static Process { keep(Process::world(2).remove(at)) });
        let permits = |owners| Permits { header: &shared.0, table: &shared.1, owners };
        permits(others).init(1, u32::MAX);
        permits(others).acquire(None).unwrap();
        let gives = move |me: OwnerId| permits(mine).give_back(me);
        let threads = [
            thread::spawn(move || gives(block_on(permits(mine).acquire_async(WordWait::in_model)))),
            thread::spawn(move || {
                twice(permits(mine).acquire_async(WordWait::in_model)).map(gives);
            }),
            thread::spawn(move || {
                let me = permits(others).acquire(None).unwrap();
                permits(others).give_back(me);
            }),
        ];
        permits(others).give_back(others.me());
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(permits(others).value(), 1);
        nobody_waits();
    });
}

/// Like `Lock::acquire_async`.
#[cfg(executor_shuttle)]
async fn lock_async(mutex: &'static RobustMutex, process: &Process) {
    while let Err(word) = mutex.try_acquire_slowly(process, process.me(), RobustMutex::CONTENDED) {
        WordWait::in_model(mutex.word(), word).await;
    }
}

#[cfg(executor_shuttle)]
#[test]
fn a_mutex_reaches_tasks_and_threads_whoever_of_them_is_dropped() {
    check(3, || {
        let mutex: &RobustMutex = keep(RobustMutex::default());
        let [mine, others] =
            [0, 1].map(|at| -> &'static Process { keep(Process::world(2).remove(at)) });
        let first = held(mutex, others);
        let threads = [
            thread::spawn(move || {
                block_on(lock_async(mutex, mine));
                mutex.release();
            }),
            thread::spawn(move || {
                twice(lock_async(mutex, mine)).map(|()| mutex.release());
            }),
            thread::spawn(move || drop(held(mutex, others))),
        ];
        drop(first);
        // The mutex's word is the same as before.
        drop(held(mutex, others));
        for thread in threads {
            thread.join().unwrap();
        }
        nobody_waits();
    });
}
