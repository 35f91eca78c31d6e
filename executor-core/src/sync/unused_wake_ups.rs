//! Tests: a wake-up that its receiver does not use is passed on to another waiter. Otherwise that
//! one would sleep on.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use super::{
    Lock, Semaphore,
    raw::{RobustMutex, deadline_in},
};
use crate::os::{
    futex,
    liveness::{OwnerId, Owners},
};

/// Longer than anything in these tests should take.
const LONG: Duration = Duration::from_secs(30);

/// Lets a thread sleep on a word without a mark, and calls `act` meanwhile.
///
/// # Panics
/// If `act` does not wake the thread.
pub(crate) fn wakes_a_sleeper(word: &AtomicU32, act: impl FnOnce()) {
    assert!(is_woken(word, LONG, act), "it slept on");
}

/// Like [`wakes_a_sleeper`], but returns whether the thread is woken before `timeout` has passed.
pub(crate) fn is_woken(word: &AtomicU32, timeout: Duration, act: impl FnOnce()) -> bool {
    let sleeper = Sleeper::default();
    thread::scope(|scope| {
        let sleeps = scope.spawn(|| {
            let heard = word.load(Ordering::SeqCst);
            sleeper.is_this_thread();
            let began = Instant::now();
            futex::wait(word, heard, Some(timeout));
            began.elapsed()
        });
        sleeper.until_it_sleeps();
        act();
        sleeps.join().unwrap() < timeout
    })
}

/// A thread that is about to sleep. It is not enough that it has marked a word: until it really
/// sleeps, it notices a change by itself, and no wake-up is made.
#[derive(Default)]
pub(crate) struct Sleeper(AtomicI32);

impl Sleeper {
    pub(crate) fn is_this_thread(&self) {
        // SAFETY: only returns a number.
        self.0.store(unsafe { libc::gettid() }, Ordering::SeqCst);
    }

    pub(crate) fn until_it_sleeps(&self) {
        until(|| {
            let id = self.0.load(Ordering::SeqCst);
            let state =
                std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap_or_default();
            state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
        });
    }
}

pub(crate) fn until(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG);
        thread::yield_now();
    }
}

/// A future that a test polls by hand, and whether it was woken since.
pub(crate) struct ByHand<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<F: Future> ByHand<F> {
    pub(crate) fn new(future: F) -> Self {
        ByHand { future: Box::pin(future), woken: Arc::default() }
    }

    pub(crate) fn poll(&mut self) -> Poll<F::Output> {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    pub(crate) fn until_woken(&self) {
        until(|| self.woken.0.load(Ordering::SeqCst));
    }
}

/// Owners that are all alive. To check the last of them takes this long.
struct Slow(Duration);

impl Owners for Slow {
    fn me(&self) -> OwnerId {
        OwnerId::from_bits(1).unwrap()
    }

    fn is_me(&self, id: OwnerId) -> bool {
        id == self.me()
    }

    fn is_alive(&self, id: OwnerId) -> bool {
        if id.bits() == 3 {
            thread::sleep(self.0);
        }
        true
    }
}

fn mutex() -> RobustMutex {
    // SAFETY: all zeros is a valid value, as `SharedLayout` demands.
    unsafe { std::mem::zeroed() }
}

/// Returns the word of a mutex that this owner holds.
fn held_by(owner: u32) -> u32 {
    owner << 2
}

#[test]
fn one_whose_timeout_passes_after_it_was_woken_leaves_the_mutex_marked_for_others() {
    let mutex = mutex();
    let word = mutex.word();
    word.store(held_by(2), Ordering::SeqCst);
    let owners = Slow(Duration::from_millis(400));
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            mutex.acquire(&owners, owners.me(), deadline_in(Duration::from_millis(300))).is_some()
        });
        until(|| word.load(Ordering::SeqCst) & RobustMutex::CONTENDED != 0);
        // The mutex is released, and another owner takes it before the woken one does, without
        // having slept.
        word.store(held_by(3), Ordering::SeqCst);
        futex::wake_one(word);
        assert!(!waits.join().unwrap());
    });
    assert_ne!(word.load(Ordering::SeqCst) & RobustMutex::CONTENDED, 0, "others would sleep on");
}

#[test]
fn who_has_awaited_a_lock_wakes_others_when_it_is_released() {
    let lock = Lock::new().unwrap();
    let guard = lock.acquire().unwrap();
    let mut waits = ByHand::new(lock.acquire_async());
    assert!(waits.poll().is_pending());
    drop(guard);
    waits.until_woken();
    let Poll::Ready(Ok(guard)) = waits.poll() else { panic!("it is free") };
    let mutex = mutex();
    let again = mutex.lock_or_word(&Slow(Duration::ZERO), true).unwrap();
    assert_ne!(mutex.word().load(Ordering::SeqCst) & RobustMutex::CONTENDED, 0);
    drop(again);
    wakes_a_sleeper(lock.word(), || drop(guard));
}

#[test]
fn a_semaphores_waiter_that_is_dropped_after_it_was_woken_wakes_another_one() {
    let semaphore = Semaphore::new(1).unwrap();
    let permit = semaphore.acquire();
    let mut waits = ByHand::new(semaphore.acquire_async());
    assert!(waits.poll().is_pending());
    drop(permit);
    waits.until_woken();
    // It looks, and has to wait for another thread that has the mutex.
    let _inside = semaphore.inside();
    assert!(waits.poll().is_pending());
    wakes_a_sleeper(semaphore.bell(), || drop(waits));
}
