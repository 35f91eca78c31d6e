//! The futex for the model checkers. It does what the kernel promises, and no more.
//!
//! It compares the word with the expected value under the lock that a waker takes. No timeout
//! ends a sleep, and only a wake-up does. So a lost wake-up is a deadlock, which the checker
//! reports.

use std::{ptr, sync::Arc, time::Duration};

use crate::os::std_or_model::{
    Condvar, Mutex,
    atomic::{AtomicU32, Ordering},
    lazy_static,
};

lazy_static! {
    /// The waiters, and the words on which they wait.
    static ref SLEEPERS: Mutex<Sleepers> = Mutex::new(Sleepers::default());
    /// Notified when a thread has begun to wait.
    static ref MORE: Condvar = Condvar::new();
}

#[derive(Default)]
struct Sleepers {
    /// The earliest waiter comes first.
    list: Vec<Sleeper>,
}

/// A wait on one word. A thread that waits on several words has one for each.
struct Sleeper {
    word: usize,
    /// The index of this word among the thread's words.
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

pub(crate) fn wait(word: &AtomicU32, expected: u32, _timeout: Option<Duration>) {
    sleep(&[(word, expected)]);
}

/// Waits on these words. Returns the index of a word that was woken. If several were, it returns
/// the last one, as the kernel does.
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
    // A waker removes the entry that it wakes, so this thread sleeps while all its entries are
    // there.
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

/// Waits until `count` threads wait on the word.
pub(crate) fn until_asleep(word: &AtomicU32, count: usize) {
    let mut sleepers = SLEEPERS.lock().unwrap();
    while sleepers.list.iter().filter(|sleeper| sleeper.word == address(word)).count() < count {
        sleepers = MORE.wait(sleepers).unwrap();
    }
}

pub(crate) const WAIT_ANY_MAX: usize = 128;

pub(crate) fn wait_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    _timeout: Duration,
) -> Option<usize> {
    sleep(&words.collect::<Vec<_>>())
}
