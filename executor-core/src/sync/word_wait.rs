//! A wait for a change of a word in shared memory that blocks no thread of the caller.
//!
//! ```text
//!  WordWait (word, expected) ──► a place on a watcher thread ──► futex_waitv over its words
//!                     waker ◄──── woken, changed, or RECHECK is over
//! ```
//!
//! Futures that wait for the same change of the same word form a group, and a watcher waits for it
//! once: ten thousand tasks that await one event are one word of one thread. A watcher sleeps on up
//! to 127 words in `futex_waitv`, besides its own. There are at most four watchers, which end when
//! they have had nothing to do for a while. Further words are checked every 20 ms.
//!
//! A woken future checks its condition and waits again if necessary. If a future was woken and is
//! dropped before it is polled, another sleeper is woken in its place. If its group has more
//! members, the watcher wakes the next one directly: the watcher may not be asleep on the word at
//! that moment, so a futex wake-up would not reach it. If the group is empty, a futex wake-up goes
//! to another sleeper on the word.
//!
//! A death changes no word. So every 100 ms, some members of each group are woken in turn to look
//! for what a death has left. It is not all of them, because all would see the same.
//!
//! Everything that can be done with a waker may run user code. So wakers are cloned before a lock
//! is taken, and a place, which owns a waker, is dropped after the lock is released. A task's waker
//! may itself own other futures of this module.

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
        fork::Creator,
        futex::{self, WAIT_ANY_MAX},
        std_or_model::{
            MODEL, Mutex,
            atomic::{AtomicU32, Ordering},
            lock_of_model as lock, start,
        },
    },
};

#[cfg(all(test, any(executor_loom, executor_shuttle)))]
pub(crate) mod models;

/// How long a watcher lives that has nothing to watch. With a lower value, threads are started and
/// ended more often. With a higher value, they stay for longer after all waits are over.
const IDLE: Duration = if MODEL { Duration::ZERO } else { Duration::from_secs(2) };

/// Maximum number of watchers. A higher value takes more threads when very many objects are awaited
/// at once. With a lower value, more of those objects are checked only every [`GLANCE`].
const WATCHERS_MAX: usize = 4;

/// Maximum number of words that a watcher sleeps on, besides its own.
const WORDS_MAX: usize = WAIT_ANY_MAX - 1;

/// How often words are checked that a watcher does not sleep on. A lower value takes more processor
/// time (50 µs for ten thousand words). With a higher value, changes are noticed later.
const GLANCE: Duration = Duration::from_millis(20);

/// Number of members of a group that look for what a death has left, each [`RECHECK`].
const LOOKS: usize = 16;
/// The same for all groups of a watcher together. With a lower value, a death is noticed later when
/// many objects are awaited at once. With a higher value, these looks cost more (about 2 µs each).
const LOOKS_OF_ALL: usize = 512;

/// A future that waits for a change of one word in shared memory.
pub(crate) struct WordWait<'a> {
    /// The block that contains the word. `None` in a model, where words stay as long as it runs.
    block: Option<Block>,
    word: &'a AtomicU32,
    expected: u32,
    looks: bool,
    place: Option<(Arc<Watcher>, Key, u64)>,
}

impl<'a> WordWait<'a> {
    /// Resolves when the word is no longer `expected`, when it was woken, or at some time after
    /// [`RECHECK`], in turn with others that wait for the same. The word lies in `block`.
    pub(crate) fn new(block: &Block, word: &'a AtomicU32, expected: u32) -> Self {
        WordWait { block: Some(block.clone()), word, expected, looks: true, place: None }
    }

    /// Like [`new`](Self::new), for words that need no check after a death. It resolves only when
    /// the word is no longer `expected`, or when it was woken.
    pub(crate) fn ignoring_deaths(block: &Block, word: &'a AtomicU32, expected: u32) -> Self {
        WordWait { block: Some(block.clone()), word, expected, looks: false, place: None }
    }
}

impl Future for WordWait<'_> {
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

impl Drop for WordWait<'_> {
    fn drop(&mut self) {
        if let Some((watcher, key, number)) = &self.place {
            watcher.leave(*key, *number, self.word);
        }
    }
}

/// All watchers of this process. A forked process has none of its parent's threads.
#[derive(Default)]
struct Watchers {
    list: Mutex<Vec<Arc<Watcher>>>,
}

/// A thread that waits for words on behalf of futures.
struct Watcher {
    /// Changed when the thread must look at its places again.
    news: AtomicU32,
    places: Mutex<Places>,
}

/// The futures that a watcher waits for.
#[derive(Default)]
struct Places {
    groups: HashMap<Key, Group>,
    /// Wake-ups of futures that were dropped. Each is for the next member of its group.
    passed_on: Vec<(Key, Word)>,
    /// Counts the rounds in which some members have looked. A new group starts at the present
    /// round, because its first member has just looked.
    turn: u64,
    /// The thread has ended, or is about to.
    over: bool,
}

/// What a group waits for: the address of a word, the word's value, and whether the members look
/// for what a death has left.
type Key = (usize, u32, bool);

/// The futures that wait for the same change.
struct Group {
    word: Word,
    /// Ordered by arrival.
    wakers: BTreeMap<u64, Waker>,
    /// The last round in which some members have looked.
    looked: u64,
}

/// A word, and the block that contains it, which keeps it alive.
#[derive(Clone)]
struct Word {
    at: *const AtomicU32,
    _block: Option<Block>,
}

// SAFETY: this is a pointer to an atomic, which lives as long as the block that is sent along.
unsafe impl Send for Word {}

impl Word {
    fn get(&self) -> &AtomicU32 {
        // SAFETY: the word lies in the block, which `self` keeps alive.
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

/// Takes a place on some watcher. It is given back with [`Watcher::leave`].
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
        // For an existing group, the thread already sleeps on the word.
        if is_new {
            watcher.announce();
        }
    };
    let mut list = lock(&watchers().list);
    // Prefer a watcher that already has the group, then one that can sleep on another word.
    let tries: [fn(&Places, &Key) -> bool; 2] = [
        |places, key| places.groups.contains_key(key),
        |places, _| places.groups.len() < WORDS_MAX,
    ];
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
        // Enter before the thread starts, because it ends if nobody waits.
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
        // No thread could be started. Wake the waiters at once: they look again and again, like
        // tasks that yield.
        for waker in left.into_values().flat_map(|group| group.wakers.into_values()) {
            waker.wake();
        }
        return (watcher, key, number);
    }
    // All watchers have as many words as they can sleep on.
    let last = list.last().expect("there are some");
    come_to(last, &mut lock(&last.places));
    (Arc::clone(last), key, number)
}

impl Watcher {
    /// Makes the thread look at its places again.
    fn announce(&self) {
        self.news.fetch_add(1, Ordering::Release);
        futex::wake_one(&self.news);
    }

    /// Gives the place back. A future that was woken, and does not use the wake-up, wakes another
    /// sleeper.
    fn leave(&self, key: Key, number: u64, word: &AtomicU32) {
        let mut places = lock(&self.places);
        let Some(group) = places.groups.get_mut(&key) else {
            // The whole group is gone, so this future was woken, and no other member is left.
            drop(places);
            futex::wake_one(word);
            return;
        };
        let Some(waker) = group.wakers.remove(&number) else {
            // This future was woken, but others of its group still wait.
            let word = group.word.clone();
            places.passed_on.push((key, word));
            drop(places);
            // The watcher wakes the next member. If it were woken here, its waker could drop
            // another future, which would wake the next one, and so on.
            self.announce();
            return;
        };
        let empty = if group.wakers.is_empty() { places.groups.remove(&key) } else { None };
        drop(places);
        drop((waker, empty));
    }

    /// Sets a new waker for the place. Returns `false` if the place no longer exists, because it
    /// was woken.
    fn renew(&self, key: Key, number: u64, waker: &Waker) -> bool {
        // After the swap this is the old waker, otherwise the new one. In either case it is dropped
        // after the lock is released.
        let mut other = waker.clone();
        let mut places = lock(&self.places);
        let place = places.groups.get_mut(&key).and_then(|group| group.wakers.get_mut(&number));
        let is_there = place.map(|place| std::mem::swap(place, &mut other)).is_some();
        drop(places);
        drop(other);
        is_there
    }

    /// The body of the watcher's thread.
    fn run(&self) {
        let (mut idle_since, mut looked) = (Instant::now(), Instant::now());
        let creator = Creator::here();
        loop {
            // If a waker has forked this process and returned in the copy, end the copy: nobody
            // waits there.
            creator.end_copy(0);
            // Read this before the places: if they change later, the wait below returns at once.
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
                    // Lock the list first, as `enter` does, so that nobody enters between the check
                    // and the end.
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
            let timeout = match words.len() {
                0 => IDLE,
                some if some < all => GLANCE,
                _ => RECHECK.saturating_sub(looked.elapsed()).max(Duration::from_millis(1)),
            };
            let others = words.iter().map(|((_, expected, _), word)| (word.get(), *expected));
            let woken = futex::wait_any(std::iter::once((&self.news, news)).chain(others), timeout);
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

    /// Takes all groups whose words have changed.
    fn take_changed(&self) -> Over {
        let mut over = Over::default();
        let mut places = lock(&self.places);
        let changed = |(_, expected, _): &Key, group: &mut Group| {
            group.word.get().load(Ordering::Acquire) != *expected
        };
        for (_, group) in places.groups.extract_if(changed) {
            over.wakers.extend(group.wakers.into_values());
            over.words.push(group.word);
        }
        over
    }

    /// Passes on a wake-up that the thread received on the last of these words. It is for the first
    /// member of that group. If all members have left in the meantime, another sleeper gets it.
    ///
    /// The thread may have been woken on other words before it in the list as well, which the
    /// kernel does not report. For each of them whose group is gone, another sleeper is woken in
    /// any case.
    fn tell_one(&self, words: &[(Key, Word)], over: &mut Over) {
        let Some(((key, word), others)) = words.split_last() else { return };
        let is_told = |over: &Over, word: &Word| over.words.iter().any(|other| other.at == word.at);
        let left: Vec<&Word> = {
            let places = lock(&self.places);
            others
                .iter()
                .filter(|(key, _)| !places.groups.contains_key(key))
                .map(|(_, word)| word)
                .collect()
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

    /// Takes the futures that get the wake-ups of dropped ones.
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

    /// Takes up to `count` members of a group, in order of arrival. Returns how many.
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

    /// Takes some members of each group, beginning with the groups that have not looked for
    /// longest.
    fn take_lookers(&self, over: &mut Over) {
        let mut groups: Vec<(u64, Key)> = {
            let mut places = lock(&self.places);
            places.turn = places.turn.saturating_add(1);
            places
                .groups
                .iter()
                .filter(|(key, _)| key.2)
                .map(|(key, group)| (group.looked, *key))
                .collect()
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

/// Wakers and words that are woken and dropped when no lock is held.
#[derive(Default)]
struct Over {
    wakers: Vec<Waker>,
    words: Vec<Word>,
}

impl Over {
    fn wake(self) {
        for waker in self.wakers {
            // User code: a panic in it must not end this thread.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| waker.wake()));
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::{
        super::{raw::Bell, unused_wake_ups::wakes_a_sleeper},
        *,
    };
    use crate::heap::block::BlockKind;

    #[test]
    fn a_wake_up_for_those_who_have_left_meanwhile_is_another_sleepers() {
        let block = Block::allocate(BlockKind::Event, 64).unwrap();
        let bell: &Bell = block.part(0);
        let word = Word { at: bell.word(), _block: Some(block.clone()) };
        let watcher = Watcher { news: AtomicU32::new(0), places: Mutex::default() };
        let key = (word.at.addr(), 0, true);
        wakes_a_sleeper(word.get(), || {
            watcher.tell_one(&[(key, word.clone())], &mut Over::default())
        });
    }
}
