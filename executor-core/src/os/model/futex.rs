//! The futex for the model checkers: what the kernel promises, and no more.
//!
//! Whether the word still is what was expected is asked under the lock that a waker takes. No limit ends a sleep, and
//! nothing wakes but a wake-up: one that is lost is a deadlock, which is reported.

use std::{ptr, sync::Arc, time::Duration};

use crate::os::sync::{
    Condvar, Mutex,
    atomic::{AtomicU32, Ordering},
    lazy_static,
};

lazy_static! {
    /// Who sleeps, and on which word.
    static ref SLEEPERS: Mutex<Vec<(usize, Arc<Condvar>)>> = Mutex::new(Vec::new());
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, _limit: Option<Duration>) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    if word.load(Ordering::Relaxed) != expected {
        return;
    }
    let me = Arc::new(Condvar::new());
    sleepers.push((ptr::from_ref(word).addr(), Arc::clone(&me)));
    while sleepers.iter().any(|(_, other)| Arc::ptr_eq(other, &me)) {
        sleepers = me.wait(sleepers).unwrap();
    }
}

pub(crate) fn wake_one(word: &AtomicU32) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    if let Some(at) = sleepers.iter().position(|(on, _)| *on == ptr::from_ref(word).addr()) {
        sleepers.remove(at).1.notify_one();
    }
}

pub(crate) fn wake_all(word: &AtomicU32) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    let (woken, others) =
        std::mem::take(&mut *sleepers).into_iter().partition(|(on, _)| *on == ptr::from_ref(word).addr());
    *sleepers = others;
    for (_, sleeper) in woken as Vec<(usize, Arc<Condvar>)> {
        sleeper.notify_one();
    }
}

pub(crate) const WAIT_ANY_MAX: usize = 128;

/// Models do not await.
pub(crate) fn wait_any<'a>(
    _words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    _limit: Duration,
) -> Option<usize> {
    unreachable!("a model that awaits")
}
