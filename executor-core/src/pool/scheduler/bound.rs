//! Chunks that only one worker may run: those of a map in round-robin order.
//!
//! ```text
//!  chunk for worker 2 ─► its own line ─┬─► the worker with index 2, when it is idle
//!                                      ├─► a new worker with index 2, if there is none
//!                                      └─► that worker ahead of time, behind other such chunks
//! ```
//!
//! No other worker takes them over, however long they wait. A worker has either such chunks or
//! others at one time, so that the others never wait behind them. When the worker is idle, the next
//! in its own line and the next in the queue compete, and the older one goes first.

use std::{collections::BTreeSet, time::Instant};

use super::{
    Scheduler,
    action::{Action, Actions},
    in_flight::Pushed,
    placement::AHEAD,
    task::{Entry, Scheduled},
    worker::Worker,
};
use crate::id::TaskId;

/// A worker that a chunk waits for.
pub(super) struct Awaited {
    index: u32,
    /// The first chunk that waits.
    since: TaskId,
}

/// Returns whether a chunk that is older than this one waits for the worker with this index. Then
/// the worker gets no other chunks ahead, so that it becomes idle. Otherwise short ones that come
/// without end could keep it busy for ever.
pub(super) fn is_awaited(awaited: &[Awaited], index: u32, chunk: TaskId) -> bool {
    awaited.iter().any(|awaited| awaited.index == index && awaited.since < chunk)
}

impl<C: Scheduled> Scheduler<C> {
    /// Returns the number of chunks that wait for a worker.
    pub(super) fn waiting(&self) -> usize {
        self.queued + self.bound.queued() + self.tokens.lines.queued()
    }

    /// Returns the index of the worker that is meant. The pool may have had more workers when the
    /// chunk was submitted.
    ///
    /// The workers that stay when a pool becomes smaller keep their indices, which may be too high.
    /// They are then the ones that are meant, with others that may be started beside them.
    pub(super) fn index_for(&self, worker: u32) -> u32 {
        let workers_max = u32::try_from(self.config.workers_max).unwrap_or(u32::MAX);
        let nth = worker % workers_max;
        if self.workers.values().all(|worker| worker.index() < workers_max) {
            return nth;
        }
        let stays = self.workers.values().filter(|worker| worker.stays());
        let mut indices: BTreeSet<u32> = stays.map(Worker::index).collect();
        let taken: BTreeSet<u32> = self.workers.values().map(Worker::index).collect();
        let missing = self.config.workers_max.saturating_sub(indices.len());
        indices.extend((0..).filter(|index| !taken.contains(index)).take(missing));
        indices.into_iter().nth(nth as usize).unwrap_or(nth)
    }

    /// Returns whether a queued chunk waits for the worker with this index.
    pub(super) fn waits_for(&self, index: u32) -> bool {
        self.bound.queued() > 0
            && self.bound.by_key.iter().any(|(worker, line)| {
                let is_queued = |chunk| self.tasks.get(chunk).is_some_and(Entry::is_queued);
                self.index_for(*worker) == index && line.iter().any(is_queued)
            })
    }

    /// Returns which workers chunks wait for.
    pub(super) fn awaited(&self) -> Vec<Awaited> {
        if self.bound.queued() == 0 {
            return Vec::new();
        }
        let is_queued = |chunk: &TaskId| self.tasks.get(*chunk).is_some_and(Entry::is_queued);
        let lines = self.bound.by_key.iter();
        let awaited = lines.filter_map(|(worker, line)| {
            Some(Awaited { index: self.index_for(*worker), since: line.iter().find(is_queued)? })
        });
        awaited.collect()
    }

    /// Gives chunks to the workers that they are bound to. `last` means that all others have been
    /// given out, as far as possible.
    pub(super) fn give_out_bound(&mut self, now: Instant, last: bool, out: &mut Actions<C>) {
        if self.bound.queued() == 0 {
            return;
        }
        for worker in self.bound.by_key.keys().copied().collect::<Vec<_>>() {
            while let Some(chunk) = self.next_bound(worker) {
                if !self.give_out_one(now, (worker, chunk), last, out) {
                    break;
                }
            }
        }
        self.bound.by_key.retain(|_, line| line.len() > 0);
    }

    /// Returns the first queued chunk of a line. It stays there.
    fn next_bound(&mut self, worker: u32) -> Option<TaskId> {
        let line = self.bound.by_key.get_mut(&worker)?;
        while let Some(chunk) = line.front() {
            if self.tasks.get(chunk).is_some_and(Entry::is_queued) {
                return Some(chunk);
            }
            line.discard_front();
        }
        None
    }

    /// Returns whether the first chunk of a line was sent.
    fn give_out_one(
        &mut self,
        now: Instant,
        (worker, chunk): (u32, TaskId),
        last: bool,
        out: &mut Actions<C>,
    ) -> bool {
        let index = self.index_for(worker);
        let found = self.workers.iter().find(|(_, worker)| worker.index() == index);
        let Some(id) = found.map(|(id, _)| *id) else {
            if self.has_place(now) {
                self.start_as(now, index, out);
            }
            return false;
        };
        let is_late = self.next_queued().is_some_and(|other| other < chunk)
            || self.next_with_tokens().is_some_and(|next| next.chunk() < chunk);
        let function = self.tasks[chunk].chunk().function();
        let estimate = self.estimates.get(&function).copied();
        let Some(worker_now) = self.workers.get_mut(&id).filter(|worker| worker.is_useful()) else {
            return false;
        };
        if worker_now.in_flight.is_empty() {
            if is_late && !last || !worker_now.in_flight.has_room() {
                return false;
            }
        } else {
            let ahead = worker_now.in_flight.ahead();
            let fits = |nanos: u32| ahead + u64::from(nanos) <= AHEAD.as_nanos() as u64;
            let may = worker_now.in_flight.is_bound() && worker_now.in_flight.has_room();
            if is_late || !may || !estimate.is_some_and(|estimate| fits(estimate.nanos)) {
                return false;
            }
        }
        let left = self.tasks[chunk].chunk().left();
        let estimate = estimate.unwrap_or_default();
        let waiting = &mut self.with_waiting;
        let seq = match worker_now.in_flight.push_bound(now, chunk, left, estimate, waiting) {
            Pushed::As(seq) => seq,
            Pushed::Beyond(budget) => {
                // The tasks beyond the worker's limit are for the one that replaces it.
                let beyond = self.tasks[chunk].chunk().items().first + budget;
                let rest = self.split_off(chunk, beyond);
                self.bound.added(worker).push_second(rest);
                return true;
            }
        };
        self.idle.retain(|idle| *idle != id);
        let entry = self.tasks.get_mut(chunk).expect("looked at above");
        self.timed += usize::from(entry.transition_to_sent(id));
        out.push(Action::Send(id, entry.chunk().send_to(seq)));
        self.bound.pop_front(worker);
        true
    }
}
