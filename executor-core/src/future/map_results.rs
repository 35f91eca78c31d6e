//! The results of a map: all its items' outcomes are delivered here, whichever chunk an item is
//! sent in.
//!
//! ```text
//!  map: number  0 1 2 3 4 5 …           ChunkResults { results, number of its first item }
//!               └chunk┘└chunk┘             (in the pool's table, one for each chunk)
//!                                             │ deliver(item, run of outcomes)
//!                                             ▼
//!  MapResults, in order:  early: runs behind a missing item ──► ready ──► take: all of them
//!              unordered: ────────────────────────────────────► ready ──► take: all of them
//! ```
//!
//! A *run* is one outcome, or the values of consecutive items that came together. A run stays as it
//! is until the map decodes its values.
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
    wire::values::Values,
};

/// The outcomes of items with consecutive numbers.
pub(crate) enum Run {
    One(Outcome),
    /// The values of several items, which came together.
    Values(Box<Values>),
}

/// A run, and the number of its first item.
pub(crate) type Numbered = (u64, Run);

impl Run {
    /// Number of items.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Run::One(_) => 1,
            Run::Values(values) => values.len() as u64,
        }
    }

    /// Returns the outcomes one by one.
    pub(crate) fn into_outcomes(self) -> impl Iterator<Item = Outcome> {
        let (one, values) = match self {
            Run::One(outcome) => (Some(outcome), Box::default()),
            Run::Values(values) => (None, values),
        };
        let mut values = values;
        let rest = std::iter::from_fn(move || Some(Ok(values.next()?.into())));
        one.into_iter().chain(rest)
    }
}

/// The results of one map.
pub(crate) struct MapResults {
    unordered: bool,
    /// The executor to which the chunks were submitted.
    control: OnceLock<Arc<dyn Control>>,
    /// Number of deliveries. A waiter compares it to notice a new one.
    version: AtomicU32,
    /// Bytes of the arguments of the chunks that have items without an outcome.
    bytes: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In an ordered map, the number of the first item whose outcome has not come.
    next: u64,
    /// In an ordered map, runs that came before an item in front of them, by the number of their
    /// first item.
    early: BTreeMap<u64, Run>,
    /// Runs that can be yielded.
    ready: VecDeque<Numbered>,
    /// Chunks with missing outcomes, as (id of the first task, number of tasks), by the number of
    /// the first item.
    open: BTreeMap<u64, (TaskId, u32)>,
    waker: Option<Waker>,
    waiting: u32,
    /// Whether the attendant waits here.
    attended: bool,
}

impl State {
    /// In an ordered map, whether the outcome of this item has come.
    fn has(&self, number: u64) -> bool {
        let before = self.early.range(..=number).next_back();
        number < self.next || before.is_some_and(|(first, run)| number - first < run.len())
    }
}

/// One chunk's share in the results of a map, through which its items are delivered. The scheduler
/// ensures that each item is delivered once.
pub(crate) struct ChunkResults {
    results: Arc<MapResults>,
    /// The number of its first item.
    number: u64,
    /// Number of its items.
    count: u32,
    /// Bytes of their arguments.
    bytes: u64,
    /// Number of its items that were not delivered.
    left: AtomicU32,
    /// Which items of an unordered map were delivered, one bit for each. Written under the lock.
    ///
    /// Empty for a chunk of one item, for which `left` says it, and in an ordered map, which keeps
    /// its outcomes by their numbers.
    delivered: Box<[AtomicU64]>,
}

impl MapResults {
    pub(crate) fn new(unordered: bool) -> Arc<Self> {
        Arc::new(MapResults {
            unordered,
            control: OnceLock::new(),
            version: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
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

    /// Returns how many bytes of arguments are pending.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Announces a chunk of `count` items that is about to be submitted. `number` is the number of
    /// its first item, and `bytes` the size of the arguments.
    pub(crate) fn open(
        self: &Arc<Self>,
        base: TaskId,
        count: u32,
        (number, bytes): (u64, u64),
        control: impl FnOnce() -> Arc<dyn Control>,
    ) -> Arc<ChunkResults> {
        self.control.get_or_init(control);
        let mut state = self.lock();
        state.open.insert(number, (base, count));
        drop(state);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let words = if self.unordered && count > 1 { count.div_ceil(u64::BITS) } else { 0 };
        Arc::new(ChunkResults {
            results: Arc::clone(self),
            number,
            count,
            bytes,
            left: AtomicU32::new(count),
            delivered: (0..words).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Delivers an error for an item that never became a task.
    pub(crate) fn deliver_error(&self, number: u64, error: TaskError) {
        self.add(&mut self.lock(), number, Run::One(Err(error)));
    }

    /// Adds a run. It can be yielded now, unless the map is ordered and an item before it is
    /// missing.
    fn add(&self, state: &mut State, number: u64, run: Run) {
        if self.unordered {
            state.ready.push_back((number, run));
            return;
        }
        debug_assert!(!state.has(number), "an item is delivered once");
        if number != state.next {
            state.early.insert(number, run);
            return;
        }
        state.next += run.len();
        state.ready.push_back((number, run));
        while let Some(entry) = state.early.first_entry()
            && *entry.key() == state.next
        {
            let (number, run) = entry.remove_entry();
            state.next += run.len();
            state.ready.push_back((number, run));
        }
    }

    /// Takes the outcomes that can be yielded now. Returns whether there were any.
    pub(crate) fn take(&self, into: &mut VecDeque<Numbered>) -> bool {
        Self::take_from(&mut self.lock(), into)
    }

    fn take_from(state: &mut State, into: &mut VecDeque<Numbered>) -> bool {
        let any = !state.ready.is_empty();
        into.append(&mut state.ready);
        any
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
                if control.forked() {
                    // A waker that was called there has forked this process, and this is the child.
                    // The caller looks for that.
                    return true;
                }
            }
            let mut state = self.lock();
            if Self::take_from(&mut state, into) {
                return true;
            }
            if self.version.load(Ordering::Acquire) != seen {
                // An outcome was delivered that cannot be yielded yet. Others may follow without
                // end, so look at the clock here, too.
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return false;
                }
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

    /// Delivers outcomes of items: runs, and the item with which each of them begins. Adds the
    /// waker to wake to `wakers`.
    pub(crate) fn deliver(&self, runs: impl Iterator<Item = (u32, Run)>, wakers: &mut Wakers) {
        let results = &*self.results;
        let mut state = results.lock();
        let mut count = 0;
        for (first, run) in runs {
            let len = run.len() as u32;
            count += len;
            if !self.delivered.is_empty() {
                for (word, bit) in (first..first + len).filter_map(|item| self.delivered(item)) {
                    word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
                }
            }
            results.add(&mut state, self.number + u64::from(first), run);
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
            control.unpark();
        }
    }
}

impl Drop for ChunkResults {
    fn drop(&mut self) {
        self.results.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
            (false, _) => !state.has(self.number + u64::from(*item)),
        };
        let missing: Vec<u32> = (0..self.count).filter(is_missing).collect();
        drop(state);
        let runs = missing.into_iter().map(|item| (item, Run::One(Err(error.clone()))));
        self.deliver(runs, &mut wakers);
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
        fn is_served(&self) {}
        fn unpark(&self) {}
    }

    pub(crate) fn open(results: &Arc<MapResults>, count: u32, number: u64) -> Arc<ChunkResults> {
        let control = || Arc::new(Nobody(Arc::default())) as Arc<dyn Control>;
        results.open(TaskId::from_raw(number + 1), count, (number, u64::from(count)), control)
    }

    pub(crate) fn value(byte: u8) -> Run {
        Run::One(Ok(vec![byte].into()))
    }

    pub(crate) fn values(bytes: impl IntoIterator<Item = u8>) -> Run {
        let mut values = Values::default();
        for byte in bytes {
            values.push_with(|bytes| bytes.push(byte));
        }
        Run::Values(Box::new(values))
    }

    fn bytes(taken: VecDeque<Numbered>) -> Vec<u8> {
        taken
            .into_iter()
            .flat_map(|(_, run)| run.into_outcomes())
            .map(|outcome| outcome.map_or(255, |payload| payload[0]))
            .collect()
    }

    #[test]
    fn in_order_what_comes_early_waits_for_what_is_before_it() {
        let results = MapResults::new(false);
        let (first, second) = (open(&results, 4, 0), open(&results, 4, 4));
        let (mut taken, mut wakers) = (VecDeque::new(), Wakers::default());
        second.deliver([(1, values(5..8)), (0, value(4))].into_iter(), &mut wakers);
        assert!(!results.take(&mut taken));
        first.deliver([(0, value(0))].into_iter(), &mut wakers);
        assert!(results.take(&mut taken));
        assert_eq!(taken.len(), 1);
        first.deliver([(1, values(1..3)), (3, value(3))].into_iter(), &mut wakers);
        assert!(results.wait(&mut taken, None, true));
        assert_eq!(taken.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 3, 4, 5]);
        assert_eq!(bytes(taken), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(results.lock().open.is_empty());
        assert_eq!(results.bytes(), 8);
        drop((first, second));
        assert_eq!(results.bytes(), 0);
    }

    #[test]
    fn a_chunk_that_is_forgotten_delivers_errors_for_the_missing_items() {
        for (unordered, count) in [(false, 1), (false, 200), (true, 1), (true, 2), (true, 200)] {
            let results = MapResults::new(unordered);
            let before = open(&results, 3, 0);
            let chunk = open(&results, count, 3);
            let (mut taken, mut wakers) = (VecDeque::new(), Wakers::default());
            before.deliver([(0, values(0..3))].into_iter(), &mut wakers);
            // The items are delivered in parts, and some are taken before the chunk is dropped.
            let is_delivered =
                |item: &u32| (*item < 128 && item % 3 == 1) || (128..194).contains(item);
            let (early, late) =
                (0..count).filter(is_delivered).partition::<Vec<_>, _>(|i| i % 2 == 1 && *i < 128);
            chunk.deliver(early.into_iter().map(|item| (item, value(1))), &mut wakers);
            results.take(&mut taken);
            let (runs, late) = late.into_iter().partition::<Vec<_>, _>(|item| *item >= 128);
            chunk.deliver(late.into_iter().map(|item| (item, value(1))), &mut wakers);
            results.take(&mut taken);
            if let Some(first) = runs.first() {
                chunk.deliver([(*first, values(runs.iter().map(|_| 1)))].into_iter(), &mut wakers);
            }
            drop(chunk);
            results.take(&mut taken);
            let mut got: Vec<_> = taken
                .into_iter()
                .flat_map(|(number, run)| (number..).zip(run.into_outcomes()))
                .map(|(number, outcome)| (number, outcome.is_ok()))
                .collect();
            got.sort();
            let owed = (0..count).map(|item| (u64::from(item) + 3, is_delivered(&item)));
            let all: Vec<_> = (0..3).map(|number| (number, true)).chain(owed).collect();
            assert_eq!(got, all, "unordered: {unordered}");
            assert!(results.lock().open.is_empty());
        }
    }
}
