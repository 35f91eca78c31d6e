//! When workers are started, and what a failed start means: back-off, or a broken pool.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Scheduler,
    action::{Action, Actions},
    task::Scheduled,
    termination::Termination,
    worker::Worker,
};
use crate::{child::verdict::Progress, error::BrokenCause, id::WorkerId};

/// Number of workers that may die before they are ready, within [`START_FAILURES_PERIOD`]. Then the
/// pool is broken. These are OTP's restart intensity and period.
const START_FAILURES_MAX: usize = 5;

const START_FAILURES_PERIOD: Duration = Duration::from_secs(10);

/// Stands for the end of time.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A worker that dies this soon after it was ready, and has answered no task, has died of its
/// start. With a lower value, workers that take this long to die are replaced more often than
/// failed starts may be repeated. With a higher value, a worker that was killed by somebody else
/// counts as well.
pub(super) const YOUNG: Duration = Duration::from_secs(2);

const BACK_OFF_MIN: Duration = Duration::from_millis(10);

impl<C: Scheduled> Scheduler<C> {
    /// Handles the creation of the pool: starts the workers that exist from the beginning.
    pub(crate) fn on_open(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch(now, out);
    }

    pub(super) fn start(&mut self, now: Instant, out: &mut Actions<C>) {
        self.start_as(now, self.free_index(), out);
    }

    /// Starts a worker with this index, which no worker has.
    pub(super) fn start_as(&mut self, now: Instant, index: u32, out: &mut Actions<C>) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.counted.started();
        let since = now.checked_add(self.config.launch_timeout).unwrap_or_else(|| now + FAR);
        self.workers.insert(id, Worker::new(now, since, index, self.config.tasks_max));
        out.push(Action::Start(id, index));
    }

    /// Returns the lowest index that no worker has. So a worker that replaces another inherits its
    /// index, and an index is below the number of workers.
    fn free_index(&self) -> u32 {
        let taken: BTreeSet<u32> = self.workers.values().map(Worker::index).collect();
        (0..).find(|index| !taken.contains(index)).expect("there are fewer workers than numbers")
    }

    /// Handles that the next worker is being started. Those behind it have waited for the one
    /// before, and not for their own processes, so their time begins again.
    pub(crate) fn on_order_taken_up(&mut self, now: Instant) {
        let since = now.checked_add(self.config.launch_timeout).unwrap_or_else(|| now + FAR);
        for worker in self.workers.values_mut() {
            worker.is_ordered_until(since);
        }
    }

    /// Handles the creation of a worker's process. Its hello is to come within `start_timeout`.
    pub(crate) fn on_launched(&mut self, now: Instant, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.seen_launched(now);
        }
    }

    /// Returns whether to start another worker: there is more work than for the workers that are
    /// coming up.
    pub(super) fn may_start(&mut self, now: Instant) -> bool {
        if !self.has_place(now) {
            // Checked first, because it is the normal case in a pool under load, and counting means
            // looking at every worker.
            return false;
        }
        let comes = |worker: &&Worker| worker.is_coming_up() && worker.stays();
        let coming = self.workers.values().filter(comes).count();
        if self.config.spares.is_some() {
            return self.needs_another(coming);
        }
        // With a limit on tasks per worker, a worker may take only a part of a chunk.
        let too_many = |tasks_max: u32| {
            let chunks = self.queue.iter().filter_map(|chunk| self.tasks.get(chunk));
            let waiting = chunks
                .filter(|entry| entry.is_queued())
                .map(|entry| u64::from(entry.chunk().left()));
            waiting.sum::<u64>() > coming as u64 * u64::from(tasks_max)
        };
        self.queued > 0 && self.config.tasks_max.is_some_and(too_many)
            || self.queued > coming
            || self.queued + self.count_with_tokens(coming + 1) > coming
    }

    /// Returns whether another worker could be started now.
    pub(super) fn has_place(&self, now: Instant) -> bool {
        self.workers.len() < self.workers_limit() && self.no_start_before.is_none_or(|at| at <= now)
    }

    /// Returns whether there are fewer workers than `workers_min`, or fewer spare ones than there
    /// should be, and there is a place for another one.
    pub(super) fn lacks_workers(&self) -> bool {
        if self.config.spares.is_some() {
            return self.lacks_spares();
        }
        // Workers are counted only if it matters, because counting means looking at each.
        let min = self.workers_min();
        min > 0 && self.workers.len() < self.config.workers_max && self.staying() < min
    }

    /// Handles a worker that could not be started: the system refused it, or something that it
    /// needs before it can take a task.
    pub(crate) fn on_start_refused(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: BrokenCause,
        out: &mut Actions<C>,
    ) {
        // A worker that was given up is unknown by now. Its end was judged then.
        let Some(worker) = self.forget(id) else { return };
        self.lose_broadcasts(id, &worker, out);
        let unwanted = worker.termination().is_some_and(Termination::is_of_task_or_pool);
        // What was refused does not matter. What matters is whether another worker works or is
        // coming up. Such workers do the work meanwhile, and may free the missing resource when
        // they end. So this counts as a failed start only if there is no such worker.
        if unwanted {
            // The pool is shutting down, so nothing waits for this worker.
        } else if self.workers.values().any(Worker::is_wanted) {
            self.refusals += 1;
            self.back_off(now);
        } else {
            self.start_failed(now, cause, out);
        }
        self.dispatch(now, out);
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Returns whether another worker is started in place of one that has failed. After the pool
    /// has broken, or has been drained, nothing waits for a worker.
    fn starts_workers(&self) -> bool {
        !self.state.is_over() && !self.is_drained()
    }

    /// Handles a failed start beside workers that work, so that no task waits for it alone.
    pub(super) fn start_failed_beside_others(
        &mut self,
        now: Instant,
        cause: BrokenCause,
        out: &mut Actions<C>,
    ) {
        if !self.starts_workers() {
            return;
        }
        self.refusals += 1;
        self.back_off(now);
        out.push(Action::WarnNotReady(cause));
    }

    pub(super) fn start_failed(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if !self.starts_workers() {
            return;
        }
        self.start_failures.push_back(now);
        forget_old(&mut self.start_failures, now);
        if !self.ever_ready || self.start_failures.len() >= START_FAILURES_MAX {
            // These announce other workers: several may be given up in one event.
            out.retain(|action| !matches!(action, Action::WarnNotReady(_)));
            self.on_broken(now, cause, out);
        } else {
            self.back_off(now);
            out.push(Action::WarnNotReady(cause));
        }
    }

    /// Handles the death of a worker right after it was ready. It would be replaced at once, if it
    /// is one of those that are kept, and its successor would die as it did.
    pub(super) fn died_young(
        &mut self,
        now: Instant,
        worker: &Worker,
        cause: impl FnOnce(Progress) -> BrokenCause,
        out: &mut Actions<C>,
    ) {
        self.young_deaths.push_back(now);
        forget_old(&mut self.young_deaths, now);
        // A task that was sent to it is tried a few times, and is lost then. So the pool gets on.
        let gets_on = !worker.in_flight.is_empty() || self.workers.values().any(Worker::is_wanted);
        match gets_on {
            true => self.back_off(now),
            false => self.start_failed(now, cause(Progress::Ready), out),
        }
    }

    /// Lets workers be started again, because one is ready.
    pub(super) fn end_back_off(&mut self, now: Instant) {
        self.refusals = 0;
        forget_old(&mut self.young_deaths, now);
        // The one that is ready may die as those did.
        if self.young_deaths.is_empty() {
            self.no_start_before = None;
        }
    }

    pub(super) fn back_off(&mut self, now: Instant) {
        let failures = self.start_failures.len().max(self.young_deaths.len()) as u32;
        let doublings = failures.max(self.refusals).min(7);
        self.no_start_before = Some(now + BACK_OFF_MIN * 2_u32.pow(doublings));
    }
}

/// Removes what counts no more as a failure.
fn forget_old(failures: &mut VecDeque<Instant>, now: Instant) {
    let is_old = |at: &Instant| now.saturating_duration_since(*at) > START_FAILURES_PERIOD;
    while failures.front().is_some_and(is_old) {
        failures.pop_front();
    }
}
