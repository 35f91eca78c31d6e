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
    /// Who sleeps, and on which words.
    static ref SLEEPERS: Mutex<Sleepers> = Mutex::new(Sleepers::default());
    /// Somebody has begun to sleep.
    static ref MORE: Condvar = Condvar::new();
}

#[derive(Default)]
struct Sleepers {
    /// The earliest first.
    list: Vec<Sleeper>,
}

/// One that sleeps on one word, or on one of several.
struct Sleeper {
    word: usize,
    /// Of its words, which this is.
    index: usize,
    wakes: Arc<Condvar>,
}

impl Sleepers {
    fn first_on(&self, word: &AtomicU32) -> Option<usize> {
        self.list.iter().position(|sleeper| sleeper.word == address(word))
    }
}

fn address(word: &AtomicU32) -> usize {
    ptr::from_ref(word).addr()
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, _limit: Option<Duration>) {
    sleep(&[(word, expected)]);
}

/// Which of them were woken; the kernel tells the last one only.
fn sleep(words: &[(&AtomicU32, u32)]) -> Option<usize> {
    let mut sleepers = SLEEPERS.lock().unwrap();
    if words.iter().any(|(word, expected)| word.load(Ordering::Relaxed) != *expected) {
        return None;
    }
    let wakes = Arc::new(Condvar::new());
    let me = |sleeper: &Sleeper| Arc::ptr_eq(&sleeper.wakes, &wakes);
    sleepers.list.extend(words.iter().enumerate().map(|(index, (word, _))| Sleeper {
        word: address(word),
        index,
        wakes: Arc::clone(&wakes),
    }));
    MORE.notify_all();
    while sleepers.list.iter().filter(|sleeper| me(sleeper)).count() == words.len() {
        sleepers = wakes.wait(sleepers).unwrap();
    }
    let others: Vec<_> =
        sleepers.list.extract_if(.., |sleeper| me(sleeper)).map(|other| other.index).collect();
    (0..words.len()).rev().find(|index| !others.contains(index))
}

pub(crate) fn wake_one(word: &AtomicU32) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    if let Some(at) = sleepers.first_on(word) {
        sleepers.list.remove(at).wakes.notify_one();
    }
}

pub(crate) fn wake_all(word: &AtomicU32) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    while let Some(at) = sleepers.first_on(word) {
        sleepers.list.remove(at).wakes.notify_one();
    }
}

/// Waits until so many sleep on the word.
pub(crate) fn until_asleep(word: &AtomicU32, count: usize) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    while sleepers.list.iter().filter(|sleeper| sleeper.word == address(word)).count() < count {
        sleepers = MORE.wait(sleepers).unwrap();
    }
}

pub(crate) const WAIT_ANY_MAX: usize = 128;

pub(crate) fn wait_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    _limit: Duration,
) -> Option<usize> {
    sleep(&words.collect::<Vec<_>>())
}
