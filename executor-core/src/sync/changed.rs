//! Waiting for a word of shared memory without blocking a thread of one's own.
//!
//! ```text
//!  changed(word, expected).await ──► a place on a watcher thread ──► futex_waitv over all its words
//!                        waker ◄──── woken, changed, or RECHECK is over
//! ```
//!
//! A watcher thread has up to 127 places; as many threads as are needed are started, and end when they have had nothing to do
//! for a while. Whoever is woken looks and, if need be, waits again. A future that was woken and is dropped before it was
//! polled wakes another sleeper in its place.
//!
//! Wakers are users' code in all that can be done with them: they are cloned before a lock is taken, and a place, which has
//! one, is dropped after it is free. A task's waker may own other futures of this module.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicU64},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use super::raw::RECHECK;
use crate::{
    os::{
        fork::{Origin, PerProcess},
        futex::{self, WAIT_ANY_MAX},
        sync::{
            atomic::{AtomicU32, Ordering},
            lock,
        },
    },
    shm::heap::Block,
};

/// Of a watcher that watches nothing. Less: threads come and go. More: they stay when all is over.
const IDLE: Duration = Duration::from_secs(2);

/// Resolves when the word of that block is not `expected` any more, when it was woken, or after [`RECHECK`] at the latest.
pub(crate) fn changed<'a>(block: &Block, word: &'a AtomicU32, expected: u32) -> Changed<'a> {
    Changed { block: block.clone(), word, expected, place: None }
}

pub(crate) struct Changed<'a> {
    block: Block,
    word: &'a AtomicU32,
    expected: u32,
    place: Option<(Arc<Watcher>, u64)>,
}

/// All watchers of this process. A fork has none of the parent's threads.
#[derive(Default)]
struct Watchers {
    list: Mutex<Vec<Arc<Watcher>>>,
}

struct Watcher {
    /// Changed when the thread is to look at its places anew.
    news: AtomicU32,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    list: Vec<Place>,
    /// The thread has ended, or is about to.
    over: bool,
}

struct Place {
    number: u64,
    word: Word,
    expected: u32,
    waker: Waker,
}

/// A word in a block, and the block, so that it stays.
#[derive(Clone)]
struct Word {
    at: *const AtomicU32,
    _block: Block,
}

// SAFETY: it is a pointer to an atomic that lives as long as the block, which goes with it.
unsafe impl Send for Word {}

impl Word {
    fn get(&self) -> &AtomicU32 {
        // SAFETY: in the block.
        unsafe { &*self.at }
    }
}

fn watchers() -> &'static Watchers {
    static WATCHERS: PerProcess<Watchers> = PerProcess::new(Watchers::default);
    WATCHERS.get()
}

/// A place on some watcher, which is given back by [`Watcher::leave`].
fn enter(word: &Word, expected: u32, waker: &Waker) -> (Arc<Watcher>, u64) {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let place = Place { number, word: word.clone(), expected, waker: waker.clone() };
    let mut list = lock(&watchers().list);
    for watcher in &*list {
        let mut places = lock(&watcher.places);
        // One word is the watcher's own.
        if !places.over && places.list.len() < WAIT_ANY_MAX - 1 {
            places.list.push(place);
            drop(places);
            watcher.announce();
            return (Arc::clone(watcher), number);
        }
    }
    let places = Places { list: vec![place], over: false };
    let watcher = Arc::new(Watcher { news: AtomicU32::new(0), places: Mutex::new(places) });
    let theirs = Arc::clone(&watcher);
    let started = thread::Builder::new().name("executor-watcher".into()).spawn(move || theirs.run());
    if started.is_ok() {
        list.push(Arc::clone(&watcher));
        return (watcher, number);
    }
    drop(list);
    // No thread is to be had: whoever waits looks again and again, as a runtime does for a task that yields.
    let unwatched = std::mem::replace(&mut *lock(&watcher.places), Places { list: Vec::new(), over: true });
    drop(unwatched);
    waker.wake_by_ref();
    (watcher, number)
}

impl Watcher {
    fn announce(&self) {
        self.news.fetch_add(1, Ordering::Release);
        futex::wake_one(&self.news);
    }

    /// Whether the place was there still: nobody has been woken.
    fn leave(&self, number: u64) -> bool {
        let left = {
            let mut places = lock(&self.places);
            let at = places.list.iter().position(|place| place.number == number);
            at.map(|at| places.list.swap_remove(at))
        };
        left.is_some()
    }

    /// A new waker for the place; `false` if it is not there any more.
    fn renew(&self, number: u64, waker: &Waker) -> bool {
        // The new one or, by then, the old one: dropped after the lock is free in any case.
        let mut other = waker.clone();
        let mut places = lock(&self.places);
        let place = places.list.iter_mut().find(|place| place.number == number);
        let is_there = place.map(|place| std::mem::swap(&mut place.waker, &mut other)).is_some();
        drop(places);
        drop(other);
        is_there
    }

    fn run(&self) {
        let mut idle_since = Instant::now();
        let origin = Origin::here();
        loop {
            // A waker has copied this process, and has returned in the copy, where nobody waits.
            origin.end_copy(0);
            let news = self.news.load(Ordering::Acquire);
            let words: Vec<_> = lock(&self.places)
                .list
                .iter()
                .map(|place| (place.number, place.word.clone(), place.expected))
                .collect();
            if words.is_empty() {
                if idle_since.elapsed() >= IDLE {
                    let mut list = lock(&watchers().list);
                    let mut places = lock(&self.places);
                    if places.list.is_empty() {
                        places.over = true;
                        list.retain(|other| !std::ptr::eq(&**other, self));
                        return;
                    }
                    continue;
                }
            } else {
                idle_since = Instant::now();
            }
            let started = Instant::now();
            let limit = if words.is_empty() { IDLE } else { RECHECK };
            let others = words.iter().map(|(_, word, expected)| (word.get(), *expected));
            let woken = futex::wait_any(std::iter::once((&self.news, news)).chain(others), limit);
            let woken = woken.and_then(|at| Some(words[at.checked_sub(1)?].0));
            let all = started.elapsed() >= RECHECK;
            let mut done = Vec::new();
            {
                let mut places = lock(&self.places);
                let mut at = 0;
                while at < places.list.len() {
                    let place = &places.list[at];
                    let differs = place.word.get().load(Ordering::Acquire) != place.expected;
                    if differs || all || woken == Some(place.number) {
                        done.push(places.list.swap_remove(at));
                    } else {
                        at = at.saturating_add(1);
                    }
                }
            }
            for place in done {
                // Users' code: what panics there is not this thread's end.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.waker.wake()));
            }
        }
    }
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let waits = match &self.place {
            Some((watcher, number)) => watcher.renew(*number, context.waker()),
            None => {
                let word = Word { at: self.word, _block: self.block.clone() };
                self.place = Some(enter(&word, self.expected, context.waker()));
                true
            }
        };
        if waits {
            return Poll::Pending;
        }
        self.place = None;
        Poll::Ready(())
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Some((watcher, number)) = &self.place
            && !watcher.leave(*number)
        {
            // It was woken and does nothing with that.
            futex::wake_one(self.word);
        }
    }
}
