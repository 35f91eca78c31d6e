//! The scheduler's record of the chunks that one worker has.

use std::{
    collections::vec_deque::{self, VecDeque},
    time::{Duration, Instant},
};

use super::{
    estimate::{Estimate, FEW},
    placement::{LOOK_AGAIN, REBALANCE, SHORT, START_COST, TINY},
};
use crate::{id::TaskId, transport::board::SLOTS};

/// What was sent to one worker and is not resolved, in the order sent. The first sending runs. The
/// others were sent ahead.
///
/// Each transition that may change whether tasks wait takes the number of workers with waiting
/// tasks ([`with_waiting`](super::Scheduler::with_waiting)), and keeps it correct.
pub(super) struct InFlight {
    sendings: VecDeque<Sending>,
    /// The number of the next sending.
    next_seq: u32,
    /// Estimated running time of everything in flight, in nanoseconds.
    load: u64,
    /// How many more tasks the worker may get, if there is a limit.
    budget: Option<u32>,
    /// Whether it gets no more tasks for another reason.
    spent: bool,
    /// When the first sending became the first. It cannot have begun earlier.
    front_since: Instant,
    /// Whether the sendings are bound to this worker. Either all of them are, or none.
    bound: bool,
    /// Whether the worker is counted among those with waiting tasks.
    counted: bool,
    /// The last value of [`taken_in`](super::Claims::taken_in) that was new, and when it was seen.
    taken_in: Option<(u64, Instant)>,
}

/// A sending: a chunk that is with a worker.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    chunk: TaskId,
    seq: u32,
    /// Estimated running time of one item, in nanoseconds.
    estimate: u32,
    /// The same estimate from calls that have ended. [`patience`](Self::patience) uses it, because
    /// raising `estimate` while a task runs must not let tasks wait for longer.
    ended: u32,
    /// Number of unresolved items of the chunk.
    left: u32,
    at: Instant,
    /// The timeout is not checked before this.
    look_at: Instant,
    /// Whether it counts as one of the tasks that the worker may have.
    counts: bool,
    /// When the task began, as the worker reported it first. If the worker reports another time
    /// later, the timeout does not move.
    began: Option<Instant>,
}

/// What became of a chunk that was to be sent to a worker.
#[must_use]
pub(super) enum Pushed {
    /// It is the worker's last sending, with this number.
    As(u32),
    /// It was not sent, because it has more tasks than the worker may have: this many.
    Beyond(u32),
}

impl Sending {
    #[inline]
    pub(super) fn chunk(&self) -> TaskId {
        self.chunk
    }

    #[inline]
    pub(super) fn seq(&self) -> u32 {
        self.seq
    }

    /// Returns when the task began, if that is known already.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Returns the time before which the timeout is not checked.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Returns the number of unresolved items, and the estimated running time of all of them.
    #[cfg(test)]
    pub(super) fn left_and_load(&self) -> (u32, u64) {
        (self.left, self.load_of(self.left))
    }

    /// Returns the estimated running time of this many items, in nanoseconds.
    #[inline]
    fn load_of(&self, items: u32) -> u64 {
        u64::from(self.estimate) * u64::from(items)
    }

    /// Returns how long the sending may wait behind another one.
    #[inline]
    fn patience(&self, floor: Duration) -> Duration {
        Duration::from_nanos(u64::from(FEW) * u64::from(self.ended)) + floor
    }
}

impl InFlight {
    pub(super) fn new(now: Instant, budget: Option<u32>) -> Self {
        InFlight {
            sendings: VecDeque::new(),
            next_seq: 1,
            load: 0,
            budget,
            spent: false,
            front_since: now,
            bound: false,
            counted: false,
            taken_in: None,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.sendings.is_empty()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.sendings.len()
    }

    #[inline]
    pub(super) fn front(&self) -> Option<&Sending> {
        self.sendings.front()
    }

    #[inline]
    pub(super) fn back(&self) -> Option<&Sending> {
        self.sendings.back()
    }

    #[inline]
    pub(super) fn iter(&self) -> vec_deque::Iter<'_, Sending> {
        self.sendings.iter()
    }

    /// Returns the place of the sending of this chunk. The place of the first one is 0.
    pub(super) fn place_of(&self, chunk: TaskId) -> Option<usize> {
        self.iter().position(|sent| sent.chunk == chunk)
    }

    /// Returns the sending of this chunk.
    pub(super) fn get(&self, chunk: TaskId) -> Option<&Sending> {
        self.iter().find(|sent| sent.chunk == chunk)
    }

    /// Returns whether there are sendings that no other worker may take over.
    #[inline]
    pub(super) fn is_bound(&self) -> bool {
        self.bound && !self.is_empty()
    }

    /// Returns the estimated running time of everything in flight, in nanoseconds.
    #[inline]
    pub(super) fn load(&self) -> u64 {
        self.load
    }

    /// Returns when the first sending became the first. It cannot have begun earlier. If there is
    /// none, the worker has not replied since then.
    #[inline]
    pub(super) fn front_since(&self) -> Instant {
        self.front_since
    }

    /// Returns whether the board has a free slot for another sending, and the worker may have
    /// another task.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.is_spent() && self.has_slot()
    }

    /// Returns whether the worker has had all the tasks that it may have.
    #[inline]
    pub(super) fn is_spent(&self) -> bool {
        self.spent || self.budget == Some(0)
    }

    #[inline]
    fn has_slot(&self) -> bool {
        self.front().is_none_or(|front| self.next_seq.wrapping_sub(front.seq) < SLOTS as u32)
    }

    /// Returns whether the first sending should have ended by now.
    #[inline]
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.front().is_some_and(|front| {
            let takes = Duration::from_nanos(u64::from(front.estimate)) + REBALANCE;
            now.saturating_duration_since(self.front_since) >= takes
        })
    }

    /// Returns whether the running task is expected to end soon: its estimate is short, and it has
    /// not run for longer than its [`patience`](Sending::patience).
    #[inline]
    pub(super) fn ends_soon(&self, now: Instant, floor: Duration) -> bool {
        self.front().is_none_or(|front| {
            Duration::from_nanos(u64::from(front.estimate)) <= START_COST
                && now.saturating_duration_since(self.front_since) < front.patience(floor)
        })
    }

    /// Returns whether the sendings that wait are expected to take no longer than [`TINY`] each, on
    /// the average.
    pub(super) fn waiting_are_tiny(&self) -> bool {
        let waiting = self.sendings.len().saturating_sub(1) as u64;
        self.ahead() <= waiting * TINY.as_nanos() as u64
    }

    /// Returns whether the first sending is expected to take no longer than [`SHORT`], by calls of
    /// its function that have ended.
    pub(super) fn is_short(&self) -> bool {
        self.sendings.front().is_none_or(|front| {
            front.ended > 0
                && u64::from(front.estimate) * u64::from(front.left) <= SHORT.as_nanos() as u64
        })
    }

    /// Returns whether a task waits behind another one at this worker. The later items of a chunk
    /// count as waiting tasks.
    #[inline]
    pub(super) fn has_waiting(&self) -> bool {
        self.len() > 1 || self.front().is_some_and(|front| front.left > 1)
    }

    /// Returns when a task behind the first one will have waited for too long.
    #[inline]
    pub(super) fn waits_until(&self, floor: Duration) -> Option<Instant> {
        let front = self.front().filter(|front| front.left > 1);
        let mut until: Option<Instant> = None;
        for sent in front.into_iter().chain(self.iter().skip(1)) {
            // They are in the order in which they were sent, so no later one can wait for less. A
            // worker may have a thousand, and this runs under the pool's lock.
            if until.is_some_and(|until| until <= sent.at + floor) {
                break;
            }
            let at = sent.at + sent.patience(floor);
            until = Some(until.map_or(at, |until| until.min(at)));
        }
        until
    }

    /// Returns the estimated running time of the tasks behind the one that runs.
    #[inline]
    pub(super) fn ahead(&self) -> u64 {
        self.load - self.front().map_or(0, |front| u64::from(front.estimate))
    }

    /// Returns when the worker last made progress that shows that it takes in what it is sent.
    pub(super) fn last_progress(&self) -> Instant {
        self.taken_in.map_or(self.front_since, |(_, at)| at.max(self.front_since))
    }
}

/// Transitions.
impl InFlight {
    /// Records that a chunk with `left` unresolved tasks is sent to the worker, if the worker may
    /// have so many.
    #[inline]
    pub(super) fn push(
        &mut self,
        now: Instant,
        chunk: TaskId,
        left: u32,
        estimate: Estimate,
        waiting: &mut usize,
    ) -> Pushed {
        debug_assert!(!self.is_bound(), "others would wait behind those of this worker");
        self.bound = false;
        self.push_any(now, chunk, left, estimate, waiting)
    }

    /// Does the same for a chunk that only this worker may run.
    pub(super) fn push_bound(
        &mut self,
        now: Instant,
        chunk: TaskId,
        left: u32,
        estimate: Estimate,
        waiting: &mut usize,
    ) -> Pushed {
        debug_assert!(self.is_empty() || self.bound, "others might have to be taken over");
        self.bound = true;
        self.push_any(now, chunk, left, estimate, waiting)
    }

    #[inline]
    fn push_any(
        &mut self,
        now: Instant,
        chunk: TaskId,
        left: u32,
        estimate: Estimate,
        waiting: &mut usize,
    ) -> Pushed {
        debug_assert!(self.has_slot(), "two sendings would share a slot");
        debug_assert!(left > 0, "a resolved chunk is not sent");
        if let Some(budget) = &mut self.budget {
            if *budget < left {
                return Pushed::Beyond(*budget);
            }
            *budget -= left;
        }
        Pushed::As(self.append(now, chunk, left, estimate, true, waiting))
    }

    /// Records that a task is sent to the worker that does not count as one of those that it may
    /// have. Returns the number of the sending.
    pub(super) fn push_beyond(
        &mut self,
        now: Instant,
        task: TaskId,
        estimate: Estimate,
        waiting: &mut usize,
    ) -> u32 {
        debug_assert!(self.is_empty(), "it is sent alone");
        self.bound = false;
        self.append(now, task, 1, estimate, false, waiting)
    }

    #[inline]
    fn append(
        &mut self,
        now: Instant,
        chunk: TaskId,
        left: u32,
        estimate: Estimate,
        counts: bool,
        waiting: &mut usize,
    ) -> u32 {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        if self.sendings.is_empty() {
            self.front_since = now;
        }
        let sending = Sending {
            chunk,
            seq,
            estimate: estimate.nanos,
            ended: estimate.ended,
            left,
            at: now,
            look_at: now + LOOK_AGAIN,
            counts,
            began: None,
        };
        self.load += sending.load_of(left);
        self.sendings.push_back(sending);
        self.count(waiting);
        seq
    }

    /// Records that the first `count` unresolved items of the first sending were answered. Returns
    /// the number of its items that are left. With the last one the sending is removed.
    #[inline]
    pub(super) fn front_answered(&mut self, now: Instant, count: u32, waiting: &mut usize) -> u32 {
        let front = self.sendings.front_mut().expect("the caller has looked at it");
        debug_assert!(count <= front.left, "an item is answered once");
        front.left -= count;
        let left = front.left;
        self.load -= front.load_of(count);
        self.front_since = now;
        if left == 0 {
            self.sendings.pop_front();
        }
        self.count(waiting);
        left
    }

    /// Records that the worker gets no more tasks.
    pub(super) fn spend(&mut self) {
        self.spent = true;
    }

    /// Removes the sending of a chunk that was taken back. Returns the place that it had.
    pub(super) fn taken_back(&mut self, chunk: TaskId, waiting: &mut usize) -> Option<usize> {
        let place = self.iter().rposition(|sent| sent.chunk == chunk)?;
        let sent = self.sendings.remove(place)?;
        self.load -= sent.load_of(sent.left);
        if sent.counts {
            self.give_back(sent.left);
        }
        self.count(waiting);
        Some(place)
    }

    /// Records that the last `gone` items of a chunk were taken back, and that it keeps others.
    pub(super) fn rest_taken_back(&mut self, chunk: TaskId, gone: u32, waiting: &mut usize) {
        let sent = self.sendings.iter_mut().find(|sent| sent.chunk == chunk);
        let sent = sent.expect("the caller has looked at it");
        debug_assert!(0 < gone && gone < sent.left, "the begun item stays");
        sent.left -= gone;
        self.load -= sent.load_of(gone);
        self.give_back(gone);
        self.count(waiting);
    }

    /// Records that the worker is ready, and has nothing to do from now on.
    pub(super) fn idle_from(&mut self, now: Instant) {
        debug_assert!(self.is_empty(), "it was given nothing");
        self.front_since = now;
    }

    /// Records that the sending before the first one was cancelled, so that the first one became
    /// the first now.
    pub(super) fn front_follows_cancelled(&mut self, now: Instant) {
        self.front_since = now;
    }

    /// Records when the task that runs began. From then on its timeout counts from that time.
    pub(super) fn front_began(&mut self, at: Instant) {
        debug_assert!(at >= self.front_since, "it cannot have begun before it was the first");
        let front = self.sendings.front_mut().expect("the caller has looked at it");
        front.began = Some(at);
        self.front_since = at;
    }

    /// Records that the timeout of the first sending has passed without an effect, and when to
    /// check it again.
    pub(super) fn look_again(&mut self, began: Option<Instant>, look_at: Instant) {
        let front = self.sendings.front_mut().expect("the caller has looked at it");
        front.began = began;
        front.look_at = look_at;
    }

    /// Raises the estimate of the task that runs to the time that it has run. Returns whether that
    /// is more than the estimate was.
    pub(super) fn front_has_run(&mut self, nanos: u32) -> bool {
        let Some(front) = self.sendings.front_mut().filter(|front| nanos > front.estimate) else {
            return false;
        };
        self.load -= front.load_of(front.left);
        front.estimate = nanos;
        self.load += front.load_of(front.left);
        true
    }

    /// Records how much of what was sent the worker has taken in. Returns whether that is another
    /// amount than before.
    pub(super) fn has_taken_in(&mut self, now: Instant, amount: u64) -> bool {
        let new = amount != self.taken_in.map_or(0, |(before, _)| before);
        if new {
            self.taken_in = Some((amount, now));
        }
        new
    }

    /// Records that the worker has ended, so that it is counted no longer.
    pub(super) fn worker_ended(&mut self, waiting: &mut usize) {
        *waiting -= usize::from(std::mem::take(&mut self.counted));
    }

    /// Returns tasks to the budget that were sent to the worker and taken back.
    fn give_back(&mut self, tasks: u32) {
        self.budget = self.budget.map(|budget| budget + tasks);
    }

    /// Updates the number of workers with waiting tasks.
    #[inline]
    fn count(&mut self, workers: &mut usize) {
        let waiting = self.has_waiting();
        if waiting != self.counted {
            self.counted = waiting;
            *workers = if waiting { *workers + 1 } else { *workers - 1 };
        }
    }

    #[cfg(test)]
    pub(super) fn is_counted(&self) -> bool {
        self.counted
    }
}
