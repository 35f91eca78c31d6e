//! Which worker gets a queued chunk.
//!
//! ```text
//!  first chunk of the queue ─┬─► an idle worker
//!                            ├─► a new worker, if one may be started
//!                            └─► a busy worker, ahead of time: at most AHEAD of work
//!  more workers than processors: a short chunk goes to a busy worker first
//!  a chunk that needs tokens: an idle worker, or a new one
//! ```

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Action, Actions},
    bound::{Awaited, is_awaited},
    estimate::Estimate,
    in_flight::Pushed,
    task::Scheduled,
    tokens::Next,
    worker::Worker,
};
use crate::id::{FnId, TaskId, WorkerId};

/// Amount of work that may be sent to a worker ahead of time, in estimated running time. A higher
/// value lets results of uneven tasks wait behind each other, until another worker is idle and
/// takes them over. A lower value lets a worker run dry while its reply travels (about 100 µs
/// here).
pub(super) const AHEAD: Duration = Duration::from_micros(300);

/// Tasks that are shorter than this are given to a busy worker, in a pool of more workers than
/// processors. Waking an idle worker costs more than such a task, and takes the processor from a
/// worker that runs. A higher value also affects calls that only wait, such as for a reply over a
/// local socket, and keeps them from waiting side by side.
pub(super) const SHORT: Duration = Duration::from_micros(10);

/// Tasks that are shorter than this are given to a busy worker in any pool, while it has less than
/// [`TINY_AHEAD`] to do. A second worker that is awake for them would take the processor that the
/// caller's thread needs. With a higher value, a processor is idle while tasks wait that are worth
/// a wake-up.
pub(super) const TINY: Duration = Duration::from_micros(1);

/// Amount of work behind which a tiny task waits although a worker is idle. An idle worker needs 30
/// to 50 µs to wake up (see [`Spin`](crate::os::spin::Spin)). With a higher value, callers wait for
/// a single worker. A lower value wakes workers that find little left to do: with 150 µs, a window
/// of 256 tasks kept a second worker half awake on a machine where a no-op took 0.5 µs, and
/// callbacks came at 0.9 of the rate.
pub(super) const TINY_AHEAD: Duration = Duration::from_micros(290);

/// Number of tasks that a worker must have for other tiny ones to wait for the next event. With a
/// lower value it can run dry meanwhile.
const DEFERS_FROM: usize = 16;

/// How long a short task may wait behind a busy worker before an idle one is woken for it. One
/// worker at a time is woken. A lower value mistakes a descheduled worker for a late one.
pub(super) const REBALANCE: Duration = Duration::from_millis(4);

/// How long a task may wait behind another task, in addition to [`FEW`] of its own estimates,
/// before it goes to another worker. That worker is started if necessary. The value is about what a
/// start takes: a task that waits for less would not gain by it.
pub(super) const START_COST: Duration = Duration::from_millis(1);

/// Number of queued chunks from which on the pool hands over no more of them, unless there are so
/// many workers that their [shares](SHARE_MAX) would become small. With a higher value, more memory
/// is used for each, and it has left the caches when the chunk's turn comes. With a lower value,
/// the pool hands them over more often.
const QUEUE_ENOUGH: usize = 512;

/// Maximum number of chunks sent to one worker before another worker is chosen. A higher value
/// gives all of a short queue to the first worker. A lower value means choosing a worker more
/// often.
pub(super) const SHARE_MAX: usize = 32;

/// Minimum time before a task's timeout is checked again, if it may have passed but the task has
/// not begun, or its reply is on its way. With a lower value and a tiny timeout, the driver would
/// do nothing else. With a higher value, a tiny timeout is enforced late.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl<C: Scheduled> Scheduler<C> {
    /// Gives queued tasks to workers, and starts workers up to `workers_min`.
    pub(super) fn dispatch(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch_to(now, false, out);
    }

    /// Does the same as [`dispatch`](Self::dispatch). `waited` means that the queued tasks have
    /// waited long enough for a busy worker, so that an idle one may be woken.
    pub(super) fn dispatch_to(&mut self, now: Instant, waited: bool, out: &mut Actions<C>) {
        if self.state.is_over() {
            return;
        }
        self.give_out_bound(now, false, out);
        self.give_out(now, waited, out);
        self.give_out_bound(now, true, out);
        while self.lacks_workers() && self.no_start_before.is_none_or(|at| at <= now) {
            self.start(now, out);
        }
    }

    /// Gives queued tasks to workers: to an idle one, else to a new one, else ahead to a busy one.
    fn give_out(&mut self, now: Instant, waited: bool, out: &mut Actions<C>) {
        let mut woken = false;
        let mut next = self.next_with_tokens();
        let awaited = self.awaited();
        loop {
            let queued = self.next_queued();
            if self.is_full() {
                return;
            }
            if let Some(first) = next
                && self.goes_first(&first, queued)
            {
                if let Some(id) = self.idle.pop() {
                    self.send_with_tokens(now, id, &first, out);
                    if let Some(waits) = queued {
                        self.has_passed(first.chunk(), waits);
                    }
                    next = self.next_with_tokens();
                } else if self.may_start(now) {
                    self.start(now, out);
                } else {
                    // Nothing that comes after it is sent ahead, so that a worker becomes idle.
                    return;
                }
                continue;
            }
            let Some(chunk) = queued else { return };
            // One at a time, if the next one may have to wait for the one with tokens.
            let most = if next.is_none() { SHARE_MAX } else { 1 };
            let all_rest = self.idle.len() == self.workers.len();
            let tiny = !all_rest && self.takes_at_most(TINY, chunk);
            let crowded = self.is_crowded(now);
            // Tiny tasks, and short tasks in a crowded pool, go to a busy worker. In a crowded pool
            // an idle one is woken for them only if none has room and the tasks have waited or a
            // worker is late, and then only one.
            if tiny
                && !crowded
                && !waited
                && let Some(id) = self.busy_with_room(now, chunk, TINY_AHEAD, &awaited)
                && self.workers[&id].in_flight.is_short()
            {
                self.favourite = Some(id);
                self.tiny = Some(self.tasks[chunk].chunk().function());
                self.send(now, id, most, out);
            } else if !self.idle.is_empty() && crowded && self.takes_at_most(SHORT, chunk) {
                match self.busy_with_room(now, chunk, AHEAD, &awaited) {
                    Some(id) => {
                        self.favourite = Some(id);
                        self.send(now, id, most, out);
                    }
                    None if !woken
                        && (waited
                            || self
                                .workers
                                .values()
                                .any(|worker| worker.in_flight.is_late(now))) =>
                    {
                        woken = true;
                        let id = self.idle.pop().expect("looked at above");
                        self.send(now, id, 1, out);
                    }
                    None => return self.rebalance_by(now + REBALANCE),
                }
                self.rebalance_by(now + REBALANCE);
            } else if let Some(id) = self.idle.pop() {
                self.send(now, id, 1, out);
            } else if self.may_start(now) {
                self.start(now, out);
            } else if let Some(id) = self.least_ahead(now, chunk, &awaited) {
                // When many tasks wait, several are sent at once, because choosing a worker means
                // looking at each.
                let share = (self.queued / self.workers.len()).clamp(1, most);
                self.send(now, id, share, out);
            } else {
                return;
            }
            if let Some(waits) = next
                && self.queue.front() != Some(chunk)
            {
                self.has_passed(chunk, waits.chunk());
            }
        }
    }

    /// Sends a chunk that gets its tokens now to an idle worker.
    fn send_with_tokens(&mut self, now: Instant, id: WorkerId, next: &Next, out: &mut Actions<C>) {
        self.give_tokens(next);
        let entry = self.tasks.get_mut(next.chunk()).expect("looked up before");
        let estimate = self.estimates.get(&entry.chunk().function()).copied().unwrap_or_default();
        let worker = self.workers.get_mut(&id).expect("one of the idle ones");
        let left = entry.chunk().left();
        let pushed =
            worker.in_flight.push(now, next.chunk(), left, estimate, &mut self.with_waiting);
        let Pushed::As(seq) = pushed else { unreachable!("an idle worker may have a task") };
        self.timed += usize::from(entry.transition_to_sent(id));
        out.push(Action::Send(id, entry.chunk().send_to(seq)));
    }

    /// Returns whether the chunk is expected to take at most this long.
    fn takes_at_most(&self, time: Duration, chunk: TaskId) -> bool {
        let entry = &self.tasks[chunk];
        let estimate = self.estimates.get(&entry.chunk().function());
        estimate.is_some_and(|estimate| {
            u128::from(estimate.nanos) * u128::from(entry.chunk().left()) <= time.as_nanos()
        })
    }

    /// Returns a busy worker that has at most `ahead` to do with this short chunk. The worker that
    /// got the last short chunk is preferred, so that few workers are busy.
    fn busy_with_room(
        &self,
        now: Instant,
        chunk: TaskId,
        ahead: Duration,
        awaited: &[Awaited],
    ) -> Option<WorkerId> {
        let estimate = u64::from(self.estimates.get(&self.tasks[chunk].chunk().function())?.nanos);
        let most = (ahead.as_nanos() as u64).saturating_sub(estimate);
        let floor = self.floor(now);
        let fits = |worker: &Worker| {
            worker.is_useful()
                && !worker.in_flight.is_empty()
                && !worker.in_flight.is_bound()
                && worker.in_flight.ahead() <= most
                && worker.in_flight.has_room()
                && worker.in_flight.ends_soon(now, floor)
                && !is_awaited(awaited, worker.index(), chunk)
        };
        if let Some(id) = self.favourite
            && self.workers.get(&id).is_some_and(fits)
        {
            return Some(id);
        }
        let fitting = self.workers.iter().filter(|(_, worker)| fits(worker));
        fitting.min_by_key(|(_, worker)| worker.in_flight.load()).map(|(id, _)| *id)
    }

    /// Returns the busy worker with the least work that may have this chunk ahead.
    fn least_ahead(&self, now: Instant, chunk: TaskId, awaited: &[Awaited]) -> Option<WorkerId> {
        let entry = &self.tasks[chunk];
        let estimate = u64::from(self.estimates.get(&entry.chunk().function())?.nanos).max(1);
        // If no worker can be started and none is idle, the chunk may wait behind any task. The
        // first worker that becomes idle takes it over.
        let anywhere = !self.could_grow();
        let most = (AHEAD.as_nanos() as u64).checked_sub(estimate)?;
        self.workers
            .iter()
            .filter(|(_, worker)| {
                worker.is_useful()
                    && !worker.in_flight.is_bound()
                    && worker.in_flight.ahead() <= most
                    && worker.in_flight.has_room()
                    && !is_awaited(awaited, worker.index(), chunk)
            })
            .filter(|(_, worker)| anywhere || worker.in_flight.ends_soon(now, START_COST))
            .min_by_key(|(_, worker)| worker.in_flight.load())
            .map(|(id, _)| *id)
    }

    /// Sends the first chunk of the queue to a worker. Sends further ones, up to `most` in all,
    /// while they are calls of the same function and the worker may have them ahead.
    pub(super) fn send(&mut self, now: Instant, id: WorkerId, most: usize, out: &mut Actions<C>) {
        let mut of: Option<(FnId, Estimate)> = None;
        let mut sent = 0;
        while sent < most {
            let Some(chunk) = self.queue.front() else { return };
            let worker = self.workers.get_mut(&id).expect("chosen among the workers");
            // A cancelled chunk has no entry. `next_queued` skips it.
            let Some(entry) = self.tasks.get_mut(chunk).filter(|entry| entry.is_queued()) else {
                return;
            };
            let estimate = match of {
                None => self.estimates.get(&entry.chunk().function()).copied().unwrap_or_default(),
                Some((function, estimate)) => {
                    let room = worker.in_flight.ahead() + u64::from(estimate.nanos)
                        <= AHEAD.as_nanos() as u64;
                    if function != entry.chunk().function() || !room || !worker.in_flight.has_room()
                    {
                        return;
                    }
                    estimate
                }
            };
            let left = entry.chunk().left();
            let pushed = worker.in_flight.push(now, chunk, left, estimate, &mut self.with_waiting);
            let seq = match pushed {
                Pushed::As(seq) => seq,
                Pushed::Beyond(budget) => {
                    // The tasks beyond the worker's limit come next in the queue.
                    let beyond = entry.chunk().items().first + budget;
                    let rest = self.split_off(chunk, beyond);
                    self.queue.push_second(rest);
                    self.queued += 1;
                    continue;
                }
            };
            of = Some((entry.chunk().function(), estimate));
            sent += 1;
            self.timed += usize::from(entry.transition_to_sent(id));
            self.queue.pop_front();
            self.queued -= 1;
            out.push(Action::Send(id, entry.chunk().send_to(seq)));
        }
    }

    /// Returns whether no worker could take a new task now. Submitted chunks may then wait for the
    /// next event.
    pub(crate) fn is_saturated(&self) -> bool {
        let full = self.workers.len() >= self.config.workers_max || !self.takes_more();
        self.queued > 0 && full && self.state.is_open()
    }

    /// Returns whether the queue is so short that the next events may need more than is in it.
    ///
    /// What waits elsewhere has no priority. So chunks with a priority do not count, as theirs may
    /// be lower.
    pub(crate) fn takes_more(&self) -> bool {
        self.queued.saturating_sub(self.queue.ranked_len())
            < QUEUE_ENOUGH.max(self.config.workers_max.saturating_mul(SHARE_MAX))
            || !self.state.is_open()
    }

    /// Returns a function whose calls may wait for the next event, if there is one: they take less
    /// time than an event, and a worker has several of them to do. Its replies are the next events,
    /// and come before it has run dry.
    pub(crate) fn deferred(&self) -> Option<FnId> {
        let worker = self.workers.get(&self.favourite?)?;
        let defers = self.state.is_open()
            && worker.is_useful()
            && worker.in_flight.len() >= DEFERS_FROM
            && worker.in_flight.waiting_are_tiny();
        let tiny = |function: &FnId| {
            let estimate = self.estimates.get(function);
            estimate.is_some_and(|estimate| u128::from(estimate.nanos) <= TINY.as_nanos())
        };
        self.tiny.filter(|_| defers).filter(tiny)
    }

    /// Sets how many workers can run at the same time.
    pub(crate) fn set_processors(&mut self, processors: usize) {
        self.config.processors = processors;
    }

    /// Returns whether waking another worker would make more workers run than there are processors.
    pub(super) fn is_crowded(&self, now: Instant) -> bool {
        let processors = self.config.processors;
        // With isolation, no task can wait behind another one.
        if self.config.spares.is_some()
            || self.config.workers_max <= processors
            || self.workers.len() - self.idle.len() < processors
        {
            return false;
        }
        // Workers that start, initialize or leave are not counted: this may take long, and no task
        // can wait behind them. Workers that run a long task are not counted either: it may be
        // sleeping, and no task should wait behind it.
        let running = self.workers.values().filter(|worker| {
            !worker.in_flight.is_empty() && worker.in_flight.ends_soon(now, REBALANCE)
        });
        running.take(processors).count() == processors
    }

    /// Returns whether a processor is left for a spinning thread when one more worker gets a task.
    pub(crate) fn has_spare_processor(&self) -> bool {
        self.workers.len() - self.idle.len() + 2 <= self.config.processors
    }
}
