//! Workers that leave although nothing is wrong: they are idle for too long, too old, or too many.
//!
//! ```text
//!  on_tick: idle above the minimum, too old ─┐
//!  on_resize: more than the new maximum ─────┴─► leaving: what it has not begun is taken back
//!               ▲                                   │ nothing is in flight any more
//!               └── recalled, if the pool grows ────┤
//!                                                   ▼
//!                                                 Stop ──► exit; a new worker, if one is needed
//! ```
//!
//! A worker that leaves keeps only the task that it has begun, and gets no other, except those of
//! [broadcasts](super::broadcast) that wait for it. So it leaves between two tasks, however long
//! they are and however many wait.
//!
//! Each worker runs one task at least, however soon it is too old, if one waits for it: a pool
//! whose workers leave before their first task would start workers and do nothing else.

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Action, Actions},
    claims::Claims,
    task::Scheduled,
    worker::Worker,
};
use crate::id::WorkerId;

/// How long workers may live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lifespan {
    /// How long a worker above `workers_min` may be idle.
    pub(crate) idle_timeout: Option<Duration>,
    /// How long a worker may take tasks before it is replaced.
    pub(crate) lifetime_max: Option<Duration>,
}

/// A worker leaves up to this part of its lifetime early, so that workers that were started
/// together do not leave together. With a larger part, fewer of them leave early. With a smaller
/// part, more of them are away at the same time.
const SPREAD: u32 = 10;

impl Lifespan {
    /// Returns when a worker that is ready now is too old.
    ///
    /// Workers that follow each other are spread over the last part of the lifetime. Multiples of
    /// the golden ratio do that evenly for any number of workers, and without a random generator.
    pub(super) fn old_at(&self, now: Instant, id: WorkerId) -> Option<Instant> {
        const GOLDEN_RATIO: u32 = 0x9e37_79b9;
        let lifetime = self.lifetime_max?;
        let part = f64::from(id.0.wrapping_mul(GOLDEN_RATIO)) / f64::from(u32::MAX);
        now.checked_add(lifetime - (lifetime / SPREAD).mul_f64(part))
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Returns how many workers are kept although they have nothing to do.
    pub(super) fn workers_min(&self) -> usize {
        // While the pool drains, workers are only needed for what is left to do.
        if self.state.is_open() { self.config.workers_min.min(self.config.workers_max) } else { 0 }
    }

    /// Returns the number of workers that are there to stay.
    pub(super) fn staying(&self) -> usize {
        self.workers.values().filter(|worker| worker.stays()).count()
    }

    /// Handles the wish for another number of workers. If it is smaller, the workers that have the
    /// least to do leave. If it is larger, workers that have not left yet stay, and others are
    /// started on demand. Returns how many workers leave only after a task that they have begun.
    pub(crate) fn on_resize(
        &mut self,
        now: Instant,
        workers_max: usize,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> usize {
        self.config.workers_max = workers_max;
        let busy = match self.config.spares {
            None => self.shrink_or_grow(now, claims),
            Some(spares) => self.shrink_isolated(spares, claims),
        };
        self.after_changes(now, claims, out);
        self.look_at_lives();
        busy
    }

    /// Lets workers leave that are too many, or keeps some that were about to leave. Returns how
    /// many leave only after a task.
    fn shrink_or_grow(&mut self, now: Instant, claims: &dyn Claims) -> usize {
        let workers_max = self.config.workers_max;
        let staying = self.staying();
        for _ in staying..workers_max {
            if !self.recall(now) {
                break;
            }
        }
        let stays = self.workers.iter().filter(|(_, worker)| worker.stays());
        let mut by_value: Vec<_> = stays.map(|(id, worker)| (worker.value(), *id)).collect();
        by_value.sort_unstable();
        let mut busy = 0;
        for (_, id) in by_value.into_iter().take(staying.saturating_sub(workers_max)) {
            self.let_go(id, 0, claims);
            busy += usize::from(!self.workers[&id].in_flight.is_empty());
        }
        busy
    }

    /// Keeps a worker that was about to leave. Returns `false` if there is none.
    fn recall(&mut self, now: Instant) -> bool {
        let young = |worker: &Worker| worker.may_be_recalled() && !worker.is_old(now);
        let workers = &self.workers;
        let Some(at) = self.leaving.iter().position(|id| workers.get(id).is_some_and(young)) else {
            return false;
        };
        let id = self.leaving.remove(at);
        self.workers.get_mut(&id).expect("looked at above").transition_to_staying();
        self.rest_if_idle(id);
        true
    }

    /// Lets a worker leave as soon as it has ended what it has begun, and its first `keeps` chunks.
    pub(super) fn let_go(&mut self, id: WorkerId, keeps: usize, claims: &dyn Claims) {
        let worker = self.workers.get_mut(&id).expect("one of the workers");
        worker.transition_to_leaving();
        let behind = worker.in_flight.len().saturating_sub(keeps);
        self.idle.retain(|idle| *idle != id);
        self.leaving.push(id);
        // The task of a broadcast runs on this worker only.
        if !self.has_broadcast(id) {
            self.take_back_from(id, behind, claims);
            self.spread_rest(id, claims);
        }
    }

    /// Asks those workers to leave that are to leave, and have nothing to do any more.
    pub(super) fn stop_the_leaving(&mut self, now: Instant, out: &mut Actions<C>) {
        if self.leaving.is_empty() {
            return;
        }
        let finalizes = self.config.finalizer.is_some();
        let (workers, tasks) = (&mut self.workers, &self.tasks);
        self.leaving.retain(|id| {
            // Otherwise it leaves already, in another way.
            let Some(worker) = workers.get_mut(id).filter(|worker| worker.may_be_recalled()) else {
                return false;
            };
            worker.broadcasts.retain(|task| tasks.get(*task).is_some());
            let rests = worker.in_flight.is_empty()
                && worker.broadcasts.is_empty()
                && worker.reports().is_none();
            let leaves = worker.is_working() && rests;
            if leaves {
                worker.transition_to_stopping(now, finalizes);
                out.push(Action::Stop(*id));
            }
            !leaves
        });
    }

    /// Lets workers leave that are too old. Returns whether it was time to look, also for those
    /// that [have no task yet](Self::end_fresh) and those that are [idle](Self::end_idle).
    pub(super) fn end_lives(&mut self, now: Instant, claims: &dyn Claims) -> bool {
        if self.life_at.take_if(|at| *at <= now).is_none() || self.state.is_over() {
            return false;
        }
        for id in self.old(now) {
            if !self.is_fresh(id) {
                let keeps = usize::from(!self.workers[&id].has_served());
                self.let_go(id, keeps, claims);
            }
        }
        true
    }

    /// Lets workers leave that are too old before they have had a task. Called after all tasks
    /// that they can get were given to them. One that has got its first task now leaves at the next
    /// look, and one that runs the task of a broadcast is looked at when that has ended. Returns
    /// whether any are to leave.
    pub(super) fn end_fresh(&mut self, now: Instant, claims: &dyn Claims) -> bool {
        let mut any = false;
        for id in self.old(now) {
            if self.is_fresh(id) && !self.has_broadcast(id) {
                self.let_go(id, 0, claims);
                any = true;
            }
        }
        any
    }

    /// Returns the workers that are there to stay, although they are too old.
    fn old(&self, now: Instant) -> Vec<WorkerId> {
        let stays = self.workers.iter().filter(|(_, worker)| worker.stays());
        stays.filter(|(_, worker)| worker.is_old(now)).map(|(id, _)| *id).collect()
    }

    /// Returns whether a worker has had no task yet, except those of broadcasts.
    fn is_fresh(&self, id: WorkerId) -> bool {
        let worker = &self.workers[&id];
        !worker.has_served() && (worker.in_flight.is_empty() || self.has_broadcast(id))
    }

    /// Lets workers leave that have been idle for too long. Called after all tasks that they can
    /// get were given to them.
    pub(super) fn end_idle(&mut self, now: Instant, claims: &dyn Claims) {
        // While tasks wait, one of the idle workers may be about to get them.
        let surplus = if self.queued > 0 { 0 } else { self.staying() };
        let mut surplus = surplus.saturating_sub(self.workers_min());
        for id in self.idle.clone() {
            if surplus > 0 && self.idle_until(id).is_some_and(|until| until <= now) {
                self.let_go(id, 0, claims);
                surplus -= 1;
            }
        }
    }

    /// Returns when an idle worker has been idle for too long.
    fn idle_until(&self, id: WorkerId) -> Option<Instant> {
        let since = self.workers.get(&id)?.in_flight.front_since();
        since.checked_add(self.config.lifespan.idle_timeout?)
    }

    /// Sets the time of the next check for workers that are to leave.
    pub(super) fn look_at_lives(&mut self) {
        if self.config.lifespan == Lifespan::default() || self.state.is_over() || self.is_drained()
        {
            return;
        }
        let surplus = self.staying() > self.workers_min();
        let idle = self.idle.iter().filter(|_| surplus).filter_map(|id| self.idle_until(*id));
        let stays = self.workers.iter().filter(|(_, worker)| worker.stays());
        // Such a worker is looked at when the task of its broadcast has ended.
        let old = stays.filter(|(id, _)| !(self.has_broadcast(**id) && self.is_fresh(**id)));
        self.life_at = old.filter_map(|(_, worker)| worker.old_at()).chain(idle).min();
    }

    /// Checks a worker that is ready now once it is too old.
    pub(super) fn look_at_age_of(&mut self, id: WorkerId) {
        if let Some(at) = self.workers.get(&id).and_then(Worker::old_at) {
            self.look_at_lives_by(at);
        }
    }

    /// Checks a worker that is idle now once it has been idle for too long. The check may come
    /// earlier, because another worker was idle before. So work that comes and goes does not move
    /// it each time, and wakes the driver no more often than the timeout passes.
    pub(super) fn look_at_idle(&mut self, id: WorkerId) {
        // Otherwise no worker leaves because it is idle.
        if self.config.lifespan.idle_timeout.is_some()
            && self.workers_min() < self.config.workers_max
            && let Some(at) = self.idle_until(id)
        {
            self.look_at_lives_by(at);
        }
    }

    fn look_at_lives_by(&mut self, at: Instant) {
        self.life_at = Some(self.life_at.map_or(at, |before| before.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_one_age_leave_at_different_times_before_their_lifetime_ends() {
        let now = Instant::now();
        let lifetime = Duration::from_secs(1_000);
        let lifespan = Lifespan { idle_timeout: None, lifetime_max: Some(lifetime) };
        for first in [0, 17, u32::MAX - 3] {
            let mut ages: Vec<_> = (0..8)
                .map(|n| lifespan.old_at(now, WorkerId(first.wrapping_add(n))).unwrap() - now)
                .collect();
            ages.sort_unstable();
            assert!(ages[0] >= lifetime - lifetime / SPREAD && ages[7] <= lifetime, "{ages:?}");
            let gaps = ages.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.min().unwrap() > lifetime / SPREAD / 16, "{ages:?}");
        }
        let of = |lifetime| {
            Lifespan { lifetime_max: Some(lifetime), ..lifespan }.old_at(now, WorkerId(1))
        };
        assert!(of(Duration::from_nanos(1)).unwrap() > now, "there is time for a task");
        assert_eq!(of(Duration::MAX), None);
        assert_eq!(Lifespan::default().old_at(now, WorkerId(1)), None);
    }
}
