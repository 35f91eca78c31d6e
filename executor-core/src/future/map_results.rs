//! The results of a map: all its items' outcomes are delivered here, whichever chunk an item is
//! sent in.
//!
//! ```text
//!  map: number  0 1 2 3 4 5 …           ChunkResults { results, number of its first item }
//!               └chunk┘└chunk┘             (in the pool's table, one for each chunk)
//!                                             │ deliver(item, outcome)
//!                                             ▼
//!  MapResults, in order:  a window of places, beginning with the next number to be yielded
//!                            ──► take: the outcomes at its front
//!              unordered: a queue of arrived outcomes
//!                            ──► take: all of them
//! ```
//!
//! If the pool drops a chunk, the chunk delivers an error for each item without an outcome. So no
//! map waits for ever.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock, PoisonError},
    task::Waker,
    time::Instant,
};

use super::cell::{Awaited, Control, Outcome, Wakers};
use crate::{
    error::{BrokenCause, TaskError},
    id::TaskId,
    os::std_or_model::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// An outcome, and the number of its item.
pub(crate) type Numbered = (u64, Outcome);

/// The results of one map.
pub(crate) struct MapResults {
    unordered: bool,
    /// The executor to which the chunks were submitted.
    control: OnceLock<Arc<dyn Control>>,
    /// Number of deliveries. A waiter compares it to notice a new one.
    version: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of the window's first place.
    first: u64,
    window: VecDeque<Option<Outcome>>,
    ready: VecDeque<Numbered>,
    /// Chunks with missing outcomes, as (id of the first task, number of tasks), by the number of
    /// the first item.
    open: BTreeMap<u64, (TaskId, u32)>,
    waker: Option<Waker>,
    waiting: u32,
    /// Whether the attendant waits here.
    attended: bool,
}

/// One chunk's share in the results of a map, through which its items are delivered. The scheduler
/// ensures that each item is delivered once.
pub(crate) struct ChunkResults {
    results: Arc<MapResults>,
    /// The number of its first item.
    number: u64,
    /// Number of its items.
    count: u32,
    /// Number of its items that were not delivered.
    left: AtomicU32,
    /// Which items of an unordered map were delivered, one bit for each. Written under the lock.
    ///
    /// Empty for a chunk of one item, for which `left` says it, and in an ordered map, where the
    /// empty places of the window say it.
    delivered: Box<[AtomicU64]>,
}

impl MapResults {
    pub(crate) fn new(unordered: bool) -> Arc<Self> {
        Arc::new(MapResults {
            unordered,
            control: OnceLock::new(),
            version: AtomicU32::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process is a fork of the executor's process. There, no outcome ever comes, and
    /// the lock may be held for ever.
    pub(crate) fn forked(&self) -> bool {
        self.control.get().is_some_and(|control| control.forked())
    }

    /// Announces a chunk of `count` items that is about to be submitted. `number` is the number of
    /// its first item.
    pub(crate) fn open(
        self: &Arc<Self>,
        base: TaskId,
        count: u32,
        number: u64,
        control: impl FnOnce() -> Arc<dyn Control>,
    ) -> Arc<ChunkResults> {
        self.control.get_or_init(control);
        let mut state = self.lock();
        state.open.insert(number, (base, count));
        if !self.unordered {
            let places = (number + u64::from(count) - state.first) as usize;
            if places > state.window.len() {
                state.window.resize_with(places, || None);
            }
        }
        drop(state);
        let words = if self.unordered && count > 1 { count.div_ceil(u64::BITS) } else { 0 };
        Arc::new(ChunkResults {
            results: Arc::clone(self),
            number,
            count,
            left: AtomicU32::new(count),
            delivered: (0..words).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Delivers an error for an item that never became a task.
    pub(crate) fn deliver_error(&self, number: u64, error: TaskError) {
        let mut state = self.lock();
        if self.unordered {
            state.ready.push_back((number, Err(error)));
        } else {
            let at = (number - state.first) as usize;
            if at >= state.window.len() {
                state.window.resize_with(at + 1, || None);
            }
            state.window[at] = Some(Err(error));
        }
    }

    /// Takes the outcomes that can be yielded now. Returns whether there were any.
    pub(crate) fn take(&self, into: &mut VecDeque<Numbered>) -> bool {
        Self::take_from(&mut self.lock(), into)
    }

    fn take_from(state: &mut State, into: &mut VecDeque<Numbered>) -> bool {
        let before = into.len();
        into.append(&mut state.ready);
        while let Some(Some(_)) = state.window.front() {
            let number = state.first;
            into.extend(state.window.pop_front().flatten().map(|outcome| (number, outcome)));
            state.first += 1;
        }
        into.len() > before
    }

    /// Waits until an outcome can be yielded, at most until `deadline`, and takes all that can be.
    /// Returns whether there were any. With `attend`, this thread drains the replies in the
    /// meantime.
    pub(crate) fn wait(
        &self,
        into: &mut VecDeque<Numbered>,
        deadline: Option<Instant>,
        help: bool,
    ) -> bool {
        loop {
            // Read before taking: a delivery after this changes the version, so it is not missed.
            let seen = self.version.load(Ordering::Acquire);
            if self.take(into) {
                return true;
            }
            if help && let Some(control) = self.control.get() {
                control.attend(&Waiter { results: self, seen }, deadline);
            }
            let mut state = self.lock();
            if Self::take_from(&mut state, into) {
                return true;
            }
            if self.version.load(Ordering::Acquire) != seen {
                // An outcome was delivered that cannot be yielded yet.
                continue;
            }
            state.waiting += 1;
            let late = match deadline {
                None => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    false
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    state = self
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    left.is_zero()
                }
            };
            state.waiting -= 1;
            if late {
                return Self::take_from(&mut state, into);
            }
        }
    }

    /// Takes the outcomes that can be yielded now, or leaves the waker. Returns whether there were
    /// any.
    pub(crate) fn poll(&self, into: &mut VecDeque<Numbered>, waker: &Waker) -> bool {
        // Cloned before the lock is taken, and the old one dropped after it is released: both run
        // user code.
        let waker = waker.clone();
        let mut state = self.lock();
        if Self::take_from(&mut state, into) {
            return true;
        }
        let old = state.waker.replace(waker);
        drop(state);
        drop(old);
        false
    }

    /// Cancels all items that have not begun.
    pub(crate) fn cancel(&self) {
        if self.forked() {
            return;
        }
        let open = std::mem::take(&mut self.lock().open);
        let Some(control) = self.control.get() else { return };
        // The last chunk first: cancelling an earlier one would let the next one begin.
        for (_, (base, count)) in open.into_iter().rev() {
            control.cancel_chunk(base, count);
        }
    }
}

/// A thread that waits for a map's results to change. `seen` is the version it has seen.
struct Waiter<'a> {
    results: &'a MapResults,
    seen: u32,
}

impl Awaited for Waiter<'_> {
    fn is_over(&self) -> bool {
        self.results.version.load(Ordering::Acquire) != self.seen
    }

    fn attendant_sleeps(&self) -> bool {
        // A map has one reader, so no other thread attends here.
        self.results.lock().attended = true;
        !self.is_over()
    }

    fn attendant_leaves(&self) {
        self.results.lock().attended = false;
    }
}

impl ChunkResults {
    /// Returns the word and the bit that say whether this item was delivered, if there are any.
    fn delivered(&self, item: u32) -> Option<(&AtomicU64, u64)> {
        let word = self.delivered.get((item / u64::BITS) as usize)?;
        Some((word, 1 << (item % u64::BITS)))
    }

    /// Delivers outcomes of items. Adds the waker to wake to `wakers`.
    pub(crate) fn deliver(&self, items: impl Iterator<Item = (u32, Outcome)>, wakers: &mut Wakers) {
        let results = &*self.results;
        let mut state = results.lock();
        let mut count = 0;
        for (item, outcome) in items {
            count += 1;
            if results.unordered {
                if let Some((word, bit)) = self.delivered(item) {
                    word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
                }
                state.ready.push_back((self.number + u64::from(item), outcome));
            } else if let Some(place) =
                (self.number + u64::from(item)).checked_sub(state.first).map(|at| at as usize)
                && let Some(place) = state.window.get_mut(place)
            {
                debug_assert!(place.is_none(), "an item is delivered once");
                *place = Some(outcome);
            }
        }
        if self.left.fetch_sub(count, Ordering::Relaxed) == count {
            state.open.remove(&self.number);
        }
        // Under the lock, since a waiter compares the version under the lock before it sleeps.
        results.version.fetch_add(1, Ordering::SeqCst);
        let (waiting, attended) = (state.waiting, state.attended);
        wakers.push(state.waker.take());
        drop(state);
        if waiting > 0 {
            results.changed.notify_all();
        }
        if attended && let Some(control) = results.control.get() {
            control.poke();
        }
    }
}

impl Drop for ChunkResults {
    fn drop(&mut self) {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 || self.results.forked() {
            return;
        }
        let error =
            TaskError::Broken(BrokenCause::Internal("the executor forgot this task".into()));
        let mut wakers = Wakers::default();
        let state = self.results.lock();
        let is_missing = |item: &u32| match (self.results.unordered, self.delivered(*item)) {
            (true, Some((word, bit))) => word.load(Ordering::Relaxed) & bit == 0,
            // The only item of its chunk.
            (true, None) => true,
            (false, _) => {
                let at = (self.number + u64::from(*item)).checked_sub(state.first);
                at.is_some_and(|at| state.window.get(at as usize).is_some_and(Option::is_none))
            }
        };
        let missing: Vec<u32> = (0..self.count).filter(is_missing).collect();
        drop(state);
        self.deliver(missing.into_iter().map(|item| (item, Err(error.clone()))), &mut wakers);
        wakers.wake();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::future::callback::CallbackQueue;

    struct Nobody(Arc<CallbackQueue>);

    impl Control for Nobody {
        fn cancel(&self, _: TaskId) -> bool {
            false
        }
        fn cancel_running(&self, _: TaskId) -> bool {
            false
        }
        fn cancel_chunk(&self, _: TaskId, _: u32) {}
        fn is_running(&self, _: TaskId) -> bool {
            false
        }
        fn callbacks(&self) -> &Arc<CallbackQueue> {
            &self.0
        }
        fn forked(&self) -> bool {
            false
        }
        fn attend(&self, _: &dyn Awaited, _: Option<Instant>) {}
        fn attend_briefly(&self) {}
        fn poke(&self) {}
    }

    pub(crate) fn open(results: &Arc<MapResults>, count: u32, number: u64) -> Arc<ChunkResults> {
        results
            .open(TaskId::from_raw(number + 1), count, number, || Arc::new(Nobody(Arc::default())))
    }

    pub(crate) fn value(byte: u8) -> Outcome {
        Ok(vec![byte].into())
    }

    fn bytes(taken: &VecDeque<Numbered>) -> Vec<u8> {
        taken
            .iter()
            .map(|(_, outcome)| outcome.as_ref().map_or(255, |payload| payload[0]))
            .collect()
    }

    #[test]
    fn in_order_what_comes_early_waits_for_what_is_before_it() {
        let results = MapResults::new(false);
        let (first, second) = (open(&results, 2, 0), open(&results, 2, 2));
        let (mut taken, mut wakers) = (VecDeque::new(), Wakers::default());
        second.deliver([(0, value(2)), (1, value(3))].into_iter(), &mut wakers);
        assert!(!results.take(&mut taken));
        first.deliver([(0, value(0))].into_iter(), &mut wakers);
        assert!(results.take(&mut taken));
        assert_eq!(bytes(&taken), [0]);
        first.deliver([(1, value(1))].into_iter(), &mut wakers);
        assert!(results.wait(&mut taken, None, true));
        assert_eq!(bytes(&taken), [0, 1, 2, 3]);
        assert!(results.lock().open.is_empty());
    }

    #[test]
    fn a_chunk_that_is_forgotten_delivers_errors_for_the_missing_items() {
        for (unordered, count) in [(false, 1), (false, 200), (true, 1), (true, 2), (true, 200)] {
            let results = MapResults::new(unordered);
            let before = open(&results, 3, 0);
            let chunk = open(&results, count, 3);
            let (mut taken, mut wakers) = (VecDeque::new(), Wakers::default());
            before.deliver((0..3).map(|item| (item, value(0))), &mut wakers);
            // The items are delivered in parts, and some are taken before the chunk is dropped.
            let is_delivered = |item: &u32| item % 3 == 1 || *item == 128;
            let (early, late) =
                (0..count).filter(is_delivered).partition::<Vec<_>, _>(|i| i % 2 == 1);
            for part in [early, late] {
                chunk.deliver(part.into_iter().map(|item| (item, value(1))), &mut wakers);
                results.take(&mut taken);
            }
            drop(chunk);
            results.take(&mut taken);
            let mut got: Vec<_> =
                taken.iter().map(|(number, result)| (*number, result.is_ok())).collect();
            got.sort();
            let owed = (0..count).map(|item| (u64::from(item) + 3, is_delivered(&item)));
            let all: Vec<_> = (0..3).map(|number| (number, true)).chain(owed).collect();
            assert_eq!(got, all, "unordered: {unordered}");
            assert!(results.lock().open.is_empty());
        }
    }
}
