//! Tasks that wait behind other tasks: how long they may, and how they get to other workers.
//!
//! ```text
//!  busy worker   [ runs │ waits │ waits ]
//!                           │       └── an idle worker takes over half     (`balance`)
//!                           └── has waited for too long: back to the queue (`relieve`)
//! ```

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::Actions,
    claims::Claims,
    placement::{AHEAD, REBALANCE, SHARE_MAX, START_COST, TINY_AHEAD},
    task::Scheduled,
    worker::Worker,
};
use crate::{
    id::{TaskId, WorkerId},
    transport::board::Begun,
};

impl<C: Scheduled> Scheduler<C> {
    /// Lets idle workers take over what was sent ahead to other workers.
    pub(super) fn balance(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        if !self.anything_waits() {
            return;
        }
        while let Some(&idle) = self.idle.last() {
            // In a crowded pool at most one idle worker is woken at a time.
            let crowded = self.is_crowded(now);
            if !self.take_over(now, idle, claims, out) || crowded {
                break;
            }
        }
        let left =
            self.is_crowded(now) && !self.idle.is_empty() && self.idle.len() < self.workers.len();
        if left {
            self.rebalance_by(now + REBALANCE);
        }
    }

    /// Returns whether a task waits, in the queue or behind another one.
    fn anything_waits(&self) -> bool {
        self.queued > 0 || self.with_waiting > 0
    }

    /// Returns whether another worker could run what waits behind a task, now or when starts are
    /// tried again.
    pub(super) fn could_grow(&self) -> bool {
        !self.idle.is_empty() || self.workers.len() < self.workers_limit()
    }

    /// Returns how long a task may wait behind another one, in addition to its own estimates.
    pub(super) fn floor(&self, now: Instant) -> Duration {
        if !self.idle.is_empty() && self.is_crowded(now) { REBALANCE } else { START_COST }
    }

    /// Sets the time of the next check for tasks that wait behind another task.
    pub(super) fn watch(&mut self, now: Instant) {
        if self.state.is_over() || !self.anything_waits() || !self.could_grow() {
            return;
        }
        // A check that is further away was set for long tasks, so it does not count.
        if self.rebalance_at.is_some_and(|at| at <= now + REBALANCE) {
            self.waits_again = true;
            return;
        }
        let floor = self.floor(now);
        // Also those that leave: one that was too old at once has kept its first chunk.
        let may_move = |worker: &&Worker| worker.is_working() && !worker.in_flight.is_bound();
        let working = self.workers.values().filter(may_move);
        let sent = working.filter_map(|worker| worker.in_flight.waits_until(floor)).min();
        let Some(at) = sent.into_iter().chain(self.queue_waits_until()).min() else { return };
        // If no worker is idle, nothing can be moved before starts are tried again.
        let start_at = self.no_start_before.filter(|_| self.idle.is_empty()).unwrap_or(now);
        self.rebalance_by(at.max(start_at).max(now + START_COST));
    }

    pub(super) fn rebalance_by(&mut self, at: Instant) {
        self.rebalance_at = Some(self.rebalance_at.map_or(at, |before| before.min(at)));
    }

    /// Moves tasks that have waited behind another task for too long to other workers. Their wait
    /// shows that an estimate was wrong.
    pub(super) fn relieve(&mut self, now: Instant, claims: &dyn Claims) {
        if self.idle.is_empty() && !self.has_place(now) {
            return;
        }
        let floor = self.floor(now);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let worker = &self.workers[&id];
            let in_flight = &worker.in_flight;
            if !worker.is_working() || in_flight.is_empty() || in_flight.is_bound() {
                continue;
            }
            let waits_until = worker.in_flight.waits_until(floor);
            // The running task takes longer than expected. The estimate must not wait for its end.
            if !worker.in_flight.ends_soon(now, floor) {
                self.correct(now, id, claims);
            }
            if waits_until.is_none_or(|until| until > now) {
                continue;
            }
            // If everything behind the first sending could be taken back, that one still runs, and
            // the items that it has not begun can go elsewhere too.
            let behind = self.workers[&id].in_flight.len() - 1;
            if self.take_back_from(id, behind, claims) == behind {
                self.spread_rest(id, claims);
            }
        }
        if self.queue_waits_until().is_some_and(|until| until <= now) {
            for chunk in std::mem::take(self.queue.plain()) {
                match self.tasks.get(chunk).filter(|entry| entry.is_queued()) {
                    Some(entry)
                        if entry.chunk().left() > 1
                            && self.waits_until(entry).is_some_and(|until| until <= now) =>
                    {
                        self.queued -= 1;
                        // One worker is already coming up for this chunk.
                        let parts = self.parts(chunk, self.takers() + 1);
                        self.queued += parts.len();
                        self.queue.plain().extend(parts);
                    }
                    _ => self.queue.plain().push_back(chunk),
                }
            }
        }
    }

    /// Raises the estimate of the task that a worker runs to the time that it has run.
    fn correct(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims) {
        let worker = self.workers.get_mut(&id).expect("looked at by the caller");
        let mut in_order = worker.in_flight.iter();
        let Some(front) = in_order.next() else { return };
        let next = in_order.next();
        let chunk = self.tasks[front.chunk()].chunk();
        // Otherwise the task waits for its turn on the processor, or its replies are on their way.
        // Its running time is not known then.
        let runs = matches!(claims.begun(id, front.seq()), Begun::Yes(item, _) if item <= chunk.items().first)
            && next.is_none_or(|next| claims.begun(id, next.seq()) == Begun::No);
        let nanos = now.saturating_duration_since(worker.in_flight.front_since()).as_nanos();
        let nanos = u32::try_from(nanos).unwrap_or(u32::MAX);
        if !runs || !worker.in_flight.front_has_run(nanos) {
            return;
        }
        let estimate = self.estimates.entry(chunk.function()).or_default();
        estimate.nanos = estimate.nanos.max(nanos);
    }

    /// Takes back the items of its current chunk that a worker has not begun. Puts them at the
    /// front of the queue, in as many parts as there are workers that could take one.
    pub(super) fn spread_rest(&mut self, id: WorkerId, claims: &dyn Claims) {
        let Some(front) = self.workers[&id].in_flight.front() else { return };
        let Some(rest) = self.take_rest(id, front.chunk(), claims) else { return };
        for part in self.parts(rest, self.takers()).into_iter().rev() {
            self.requeue(part);
        }
    }

    /// Returns how many workers could take a part.
    fn takers(&self) -> usize {
        self.idle.len() + self.config.workers_max.saturating_sub(self.workers.len())
    }

    /// Lets an idle worker take over half of what was sent ahead to the worker with the most work
    /// ahead. Returns whether it got anything.
    fn take_over(
        &mut self,
        now: Instant,
        idle: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        // In a crowded pool the usual amount of work stays where it is, unless its worker is late.
        // Tiny tasks stay in any pool.
        let crowded = self.is_crowded(now);
        let spare = |worker: &Worker| match (crowded, worker.in_flight.waiting_are_tiny()) {
            (true, _) => AHEAD.as_nanos() as u64,
            (false, true) => TINY_AHEAD.as_nanos() as u64,
            (false, false) => 0,
        };
        let Some((&victim, worker)) = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != idle && worker.is_wanted())
            .filter(|(_, worker)| !worker.in_flight.is_bound())
            .filter(|(_, worker)| {
                worker.in_flight.has_waiting()
                    && (worker.in_flight.ahead() > spare(worker) || worker.in_flight.is_late(now))
            })
            .max_by_key(|(_, worker)| worker.in_flight.ahead())
        else {
            return false;
        };
        let behind = worker.in_flight.len() - 1;
        // With nothing behind the current chunk, the chunk itself is shared.
        let taken = match behind {
            0 => self.halve(victim, claims),
            _ => self.take_back_from(victim, behind.div_ceil(2), claims) > 0,
        };
        if taken {
            // The idle worker gets its tasks first. Otherwise they might be sent to where they came
            // from.
            if self.next_queued().is_some() {
                self.idle.retain(|other| *other != idle);
                self.send(now, idle, SHARE_MAX, out);
            }
            self.dispatch(now, out);
        }
        taken
    }

    /// Takes back up to `count` sendings that have not begun, from the last one on, and puts them
    /// at the front of the queue. Returns how many it got.
    pub(super) fn take_back_from(
        &mut self,
        id: WorkerId,
        count: usize,
        claims: &dyn Claims,
    ) -> usize {
        let mut taken = 0;
        while taken < count {
            let Some(last) =
                self.workers.get(&id).and_then(|worker| worker.in_flight.back()).copied()
            else {
                break;
            };
            // Sendings begin in order: if this one has begun, all sendings before it have begun
            // too.
            if !claims.take_back(id, last.seq(), self.tasks[last.chunk()].chunk().items().first) {
                break;
            }
            self.remove_sending(id, last.chunk());
            self.requeue(last.chunk());
            taken += 1;
        }
        taken
    }

    /// Returns whether a worker has the task of a broadcast, which is in flight alone.
    pub(super) fn has_broadcast(&self, id: WorkerId) -> bool {
        let front = self.workers[&id].in_flight.front();
        front.is_some_and(|front| self.tasks[front.chunk()].is_broadcast())
    }

    /// Takes back everything that a worker has not begun, and puts it at the front of the queue.
    pub(super) fn take_back_unbegun(&mut self, id: WorkerId, claims: &dyn Claims) {
        // It runs on this worker only.
        if self.has_broadcast(id) {
            return;
        }
        self.take_back_from(id, usize::MAX, claims);
        if let Some(front) = self.workers[&id].in_flight.front()
            && let Some(rest) = self.take_rest(id, front.chunk(), claims)
        {
            self.requeue(rest);
        }
    }

    /// Takes back the items of its current chunk that a worker has not begun, and puts them at the
    /// front of the queue in two halves. Returns whether there were any.
    fn halve(&mut self, id: WorkerId, claims: &dyn Claims) -> bool {
        let Some(front) = self.workers.get(&id).and_then(|worker| worker.in_flight.front()) else {
            return false;
        };
        let Some(rest) = self.take_rest(id, front.chunk(), claims) else { return false };
        let items = self.tasks[rest].chunk().items();
        let middle = items.first + (items.count - items.first).div_ceil(2);
        if middle < items.count {
            let upper = self.split_off(rest, middle);
            self.requeue(upper);
        }
        self.requeue(rest);
        true
    }

    /// Takes back the items of a chunk that its worker has not begun. Returns the id of the chunk
    /// that they now are, which is neither queued nor sent.
    pub(super) fn take_rest(
        &mut self,
        id: WorkerId,
        chunk: TaskId,
        claims: &dyn Claims,
    ) -> Option<TaskId> {
        let worker = self.workers.get_mut(&id)?;
        let seq = worker.in_flight.get(chunk)?.seq();
        let items = self.tasks[chunk].chunk().items();
        // A broken worker may claim to be at any item.
        let begun = claims.take_rest(id, seq)?.min(items.count - 1);
        let from = (begun + 1).max(items.first);
        if from >= items.count {
            return None;
        }
        if from == items.first {
            // All items that had begun are answered, so the whole rest of the chunk is taken back.
            self.remove_sending(id, chunk);
            self.rest_if_idle(id);
            return Some(chunk);
        }
        let gone = items.count - from;
        worker.in_flight.rest_taken_back(chunk, gone, &mut self.with_waiting);
        Some(self.split_off(chunk, from))
    }

    /// Removes a sending that was taken back from any place of a worker's list. Returns the place.
    pub(super) fn remove_sending(&mut self, id: WorkerId, chunk: TaskId) -> Option<usize> {
        let worker = self.workers.get_mut(&id).expect("it has the chunk in flight");
        let place = worker.in_flight.taken_back(chunk, &mut self.with_waiting)?;
        let entry = self.tasks.get_mut(chunk).expect("what was in flight is in the table");
        self.timed -= usize::from(entry.transition_to_queued());
        Some(place)
    }
}
