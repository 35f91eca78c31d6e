//! Waiting for a word of shared memory without blocking a thread of one's own.
//!
//! ```text
//!  changed(word, expected).await ──► a place on a watcher thread ──► futex_waitv over all its words
//!                        waker ◄──── woken, changed, or RECHECK is over
//! ```
//!
//! Those who wait for the same change of the same word are one group, and a watcher waits for it once: ten thousand tasks that
//! await one event are one word of one thread. A watcher has up to 126 words in `futex_waitv`. There are four watchers at most,
//! which end when they have had nothing to do for a while; words beyond theirs are looked at every 20 ms.
//!
//! Whoever is woken looks and, if need be, waits again. A future that was woken and is dropped before it was polled wakes another
//! sleeper in its place: the next of its group, by the watcher, which may not sleep on the word at that moment and would not
//! hear of it through the futex; or whoever sleeps on the word, if its group is empty. What a death leaves changes no word, so each 100 ms some of each group are woken to look for it, in turn;
//! not all, who would see the same.
//!
//! Wakers are users' code in all that can be done with them: they are cloned before a lock is taken, and a place, which has
//! one, is dropped after it is free. A task's waker may own other futures of this module.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::raw::RECHECK;
use crate::{
    heap::block::Block,
    os::{
        fork::Origin,
        futex::{self, WAIT_ANY_MAX},
        sync::{
            MODEL, Mutex,
            atomic::{AtomicU32, Ordering},
            lock_of_model as lock, start,
        },
    },
};

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;

/// Of a watcher that watches nothing. Less: threads come and go. More: they stay when all is over.
const IDLE: Duration = if MODEL { Duration::ZERO } else { Duration::from_secs(2) };

/// At most so many watchers. More: more threads for who awaits very many objects at once. Less: more of those are looked at every
/// [`GLANCE`] only.
const WATCHERS_MAX: usize = 4;

/// Words that a watcher sleeps on; one is its own.
const WORDS_MAX: usize = WAIT_ANY_MAX - 1;

/// How often the words are looked at that a watcher does not sleep on. Less: more processor time (50 µs for ten thousand). More:
/// their changes are noticed later.
const GLANCE: Duration = Duration::from_millis(20);

/// So many of a group look for what the dead have left, each [`RECHECK`].
const LOOKS: usize = 16;
/// So many of all groups of a watcher. Less: where many objects are awaited at once, a death is noticed later. More: these looks
/// cost more (some 2 µs each).
const LOOKS_OF_ALL: usize = 512;

/// Resolves when the word of that block is not `expected` any more, when it was woken, or at some time after [`RECHECK`], in turn
/// with others who wait for the same.
pub(crate) fn changed<'a>(block: &Block, word: &'a AtomicU32, expected: u32) -> Changed<'a> {
    Changed { block: Some(block.clone()), word, expected, looks: true, place: None }
}

/// As [`changed`], where nobody's death changes anything: it resolves when the word is another one, or when it was woken.
pub(crate) fn changed_by_the_living<'a>(block: &Block, word: &'a AtomicU32, expected: u32) -> Changed<'a> {
    Changed { block: Some(block.clone()), word, expected, looks: false, place: None }
}

pub(crate) struct Changed<'a> {
    /// Where the word is. None in a model, whose words stay as long as it runs.
    block: Option<Block>,
    word: &'a AtomicU32,
    expected: u32,
    looks: bool,
    place: Option<(Arc<Watcher>, Key, u64)>,
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
    groups: HashMap<Key, Group>,
    /// Wake-ups of those who were dropped, each for the next of this group.
    passed_on: Vec<(Key, Word)>,
    /// Counts the times at which some have looked. One that comes has looked just now.
    turn: u64,
    /// The thread has ended, or is about to.
    over: bool,
}

/// What a group waits for: a word, what it is now, and whether its members look for what the dead have left.
type Key = (usize, u32, bool);

/// Those who wait for the same.
struct Group {
    word: Word,
    /// By the order in which they came.
    wakers: BTreeMap<u64, Waker>,
    /// The turn in which some have looked last.
    looked: u64,
}

/// A word, and the block in which it is, so that it stays.
#[derive(Clone)]
struct Word {
    at: *const AtomicU32,
    _block: Option<Block>,
}

// SAFETY: it is a pointer to an atomic that lives as long as the block, which goes with it.
unsafe impl Send for Word {}

impl Word {
    fn get(&self) -> &AtomicU32 {
        // SAFETY: in the block, which goes with it.
        unsafe { &*self.at }
    }
}

fn watchers() -> &'static Watchers {
    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    {
        static WATCHERS: crate::os::fork::PerProcess<Watchers> =
            crate::os::fork::PerProcess::new(Watchers::default);
        WATCHERS.get()
    }
    #[cfg(all(test, any(executor_loom, executor_shuttle)))]
    models::watchers()
}

/// A place on some watcher, which is given back by [`Watcher::leave`].
fn enter(word: &Word, expected: u32, looks: bool, waker: &Waker) -> (Arc<Watcher>, Key, u64) {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let key = (word.at.addr(), expected, looks);
    let (mut word, mut waker) = (Some(word.clone()), Some(waker.clone()));
    let mut come_to = |watcher: &Arc<Watcher>, places: &mut Places| {
        let (is_new, looked) = (!places.groups.contains_key(&key), places.turn);
        let group = places.groups.entry(key).or_insert_with(|| Group {
            word: word.take().expect("one comes once"),
            wakers: BTreeMap::new(),
            looked,
        });
        if let Some(waker) = waker.take() {
            group.wakers.insert(number, waker);
        }
        // The thread sleeps on the word already, otherwise.
        if is_new {
            watcher.announce();
        }
    };
    let mut list = lock(&watchers().list);
    let tries: [fn(&Places, &Key) -> bool; 2] =
        [|places, key| places.groups.contains_key(key), |places, _| places.groups.len() < WORDS_MAX];
    for fits in tries {
        for watcher in &*list {
            let mut places = lock(&watcher.places);
            if !places.over && fits(&places, &key) {
                come_to(watcher, &mut places);
                return (Arc::clone(watcher), key, number);
            }
        }
    }
    if list.len() < WATCHERS_MAX {
        let watcher = Arc::new(Watcher { news: AtomicU32::new(0), places: Mutex::default() });
        // Before the thread is there, which ends if nobody waits.
        come_to(&watcher, &mut lock(&watcher.places));
        let theirs = Arc::clone(&watcher);
        let started = start("executor-waits", move || theirs.run());
        if started.is_ok() {
            list.push(Arc::clone(&watcher));
            return (watcher, key, number);
        }
        let left = {
            let mut places = lock(&watcher.places);
            places.over = true;
            std::mem::take(&mut places.groups)
        };
        drop(list);
        // No thread is to be had: whoever waits looks again and again, as a runtime does for a task that yields.
        for waker in left.into_values().flat_map(|group| group.wakers.into_values()) {
            waker.wake();
        }
        return (watcher, key, number);
    }
    // All have as many words as they can sleep on.
    let last = list.last().expect("there are some");
    come_to(last, &mut lock(&last.places));
    (Arc::clone(last), key, number)
}

impl Watcher {
    fn announce(&self) {
        self.news.fetch_add(1, Ordering::Release);
        futex::wake_one(&self.news);
    }

    /// Gives the place back. One that has been woken, and does nothing with that, wakes another one.
    fn leave(&self, key: Key, number: u64, word: &AtomicU32) {
        let mut places = lock(&self.places);
        let Some(group) = places.groups.get_mut(&key) else {
            drop(places);
            futex::wake_one(word);
            return;
        };
        let Some(waker) = group.wakers.remove(&number) else {
            let word = group.word.clone();
            places.passed_on.push((key, word));
            drop(places);
            // Not woken here: a waker may own the next future that is dropped, and so on.
            self.announce();
            return;
        };
        let empty = if group.wakers.is_empty() { places.groups.remove(&key) } else { None };
        drop(places);
        drop((waker, empty));
    }

    /// A new waker for the place; `false` if it is not there any more.
    fn renew(&self, key: Key, number: u64, waker: &Waker) -> bool {
        // The new one or, by then, the old one: dropped after the lock is free in any case.
        let mut other = waker.clone();
        let mut places = lock(&self.places);
        let place = places.groups.get_mut(&key).and_then(|group| group.wakers.get_mut(&number));
        let is_there = place.map(|place| std::mem::swap(place, &mut other)).is_some();
        drop(places);
        drop(other);
        is_there
    }

    fn run(&self) {
        let (mut idle_since, mut looked) = (Instant::now(), Instant::now());
        let origin = Origin::here();
        loop {
            // A waker has copied this process, and has returned in the copy, where nobody waits.
            origin.end_copy(0);
            let news = self.news.load(Ordering::Acquire);
            self.take_passed_on().wake();
            let (words, all) = {
                let places = lock(&self.places);
                let words = places.groups.iter().take(WORDS_MAX);
                let words: Vec<_> = words.map(|(key, group)| (*key, group.word.clone())).collect();
                (words, places.groups.len())
            };
            if words.is_empty() {
                if idle_since.elapsed() >= IDLE {
                    let mut list = lock(&watchers().list);
                    let mut places = lock(&self.places);
                    if places.groups.is_empty() && places.passed_on.is_empty() {
                        places.over = true;
                        list.retain(|other| !std::ptr::eq(&**other, self));
                        return;
                    }
                    continue;
                }
            } else {
                idle_since = Instant::now();
            }
            let limit = match words.len() {
                0 => IDLE,
                some if some < all => GLANCE,
                _ => RECHECK.saturating_sub(looked.elapsed()).max(Duration::from_millis(1)),
            };
            let others = words.iter().map(|((_, expected, _), word)| (word.get(), *expected));
            let woken = futex::wait_any(std::iter::once((&self.news, news)).chain(others), limit);
            let mut over = self.take_changed();
            // The first word is `news`.
            if let Some(words) = woken.and_then(|at| words.get(..at)) {
                self.tell_one(words, &mut over);
            }
            if !MODEL && looked.elapsed() >= RECHECK {
                looked = Instant::now();
                self.take_lookers(&mut over);
            }
            over.wake();
        }
    }

    /// All whose words have changed.
    fn take_changed(&self) -> Over {
        let mut over = Over::default();
        let mut places = lock(&self.places);
        let changed =
            |(_, expected, _): &Key, group: &mut Group| group.word.get().load(Ordering::Acquire) != *expected;
        for (_, group) in places.groups.extract_if(changed) {
            over.wakers.extend(group.wakers.into_values());
            over.words.push(group.word);
        }
        over
    }

    /// Its thread was woken on the last of these words: the wake-up is for the first one of this group. If all have left meanwhile,
    /// it is another sleeper's. It may have been woken on others of them as well, which the kernel does not say: where all have
    /// left, another sleeper is woken in any case.
    fn tell_one(&self, words: &[(Key, Word)], over: &mut Over) {
        let Some(((key, word), others)) = words.split_last() else { return };
        let is_told = |over: &Over, word: &Word| over.words.iter().any(|other| other.at == word.at);
        let left: Vec<&Word> = {
            let places = lock(&self.places);
            others.iter().filter(|(key, _)| !places.groups.contains_key(key)).map(|(_, word)| word).collect()
        };
        for word in left {
            if !is_told(over, word) {
                futex::wake_one(word.get());
            }
        }
        if !is_told(over, word) && self.take_some(*key, 1, over) == 0 {
            futex::wake_one(word.get());
        }
    }

    /// Those for whom somebody who was dropped has passed a wake-up on.
    fn take_passed_on(&self) -> Over {
        let mut over = Over::default();
        let passed_on = std::mem::take(&mut lock(&self.places).passed_on);
        for (key, word) in passed_on {
            if self.take_some(key, 1, &mut over) == 0 {
                futex::wake_one(word.get());
            }
            over.words.push(word);
        }
        over
    }

    /// The first ones of a group: how many.
    fn take_some(&self, key: Key, count: usize, over: &mut Over) -> usize {
        let mut places = lock(&self.places);
        let turn = places.turn;
        let Some(group) = places.groups.get_mut(&key) else { return 0 };
        group.looked = turn;
        let first = std::iter::from_fn(|| group.wakers.pop_first()).take(count);
        let before = over.wakers.len();
        over.wakers.extend(first.map(|(_, waker)| waker));
        if group.wakers.is_empty() {
            over.words.extend(places.groups.remove(&key).map(|group| group.word));
        }
        over.wakers.len().saturating_sub(before)
    }

    /// Some of each group, of those first that have not looked for longest.
    fn take_lookers(&self, over: &mut Over) {
        let mut groups: Vec<(u64, Key)> = {
            let mut places = lock(&self.places);
            places.turn = places.turn.saturating_add(1);
            places.groups.iter().filter(|(key, _)| key.2).map(|(key, group)| (group.looked, *key)).collect()
        };
        groups.sort_unstable();
        let mut left = LOOKS_OF_ALL;
        for (_, key) in groups {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(self.take_some(key, LOOKS.min(left), over));
        }
    }
}

/// What is woken, and dropped, when no lock is held.
#[derive(Default)]
struct Over {
    wakers: Vec<Waker>,
    words: Vec<Word>,
}

impl Over {
    fn wake(self) {
        for waker in self.wakers {
            // Users' code: what panics there is not this thread's end.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| waker.wake()));
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::{
        super::{raw::Bell, wakes::wakes_a_sleeper},
        *,
    };
    use crate::heap::block::Kind;

    #[test]
    fn a_wake_up_for_those_who_have_left_meanwhile_is_another_sleepers() {
        let block = Block::allocate(Kind::Event, 64).unwrap();
        let bell: &Bell = block.part(0);
        let word = Word { at: bell.word(), _block: Some(block.clone()) };
        let watcher = Watcher { news: AtomicU32::new(0), places: Mutex::default() };
        let key = (word.at.addr(), 0, true);
        wakes_a_sleeper(word.get(), || watcher.tell_one(&[(key, word.clone())], &mut Over::default()));
    }
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let waits = match &self.place {
            Some((watcher, key, number)) => watcher.renew(*key, *number, context.waker()),
            None => {
                let word = Word { at: self.word, _block: self.block.clone() };
                self.place = Some(enter(&word, self.expected, self.looks, context.waker()));
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
        if let Some((watcher, key, number)) = &self.place {
            watcher.leave(*key, *number, self.word);
        }
    }
}
