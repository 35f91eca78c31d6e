//! What is due when: timeouts of starts, stops, tasks and terminations.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Scheduler,
    action::{Action, Actions},
    claims::Claims,
    placement::{LOOK_AGAIN, REBALANCE},
    task::Scheduled,
    termination::{Due, Reason},
    worker::{LastStep, Worker, WorkerState},
};
use crate::{
    error::{BrokenCause, Phase, TaskError},
    id::{TaskId, WorkerId},
    transport::board::Begun,
};

/// How long a worker may take to end after it was asked to stop. Then it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

impl<C: Scheduled> Scheduler<C> {
    /// Returns the latest time for the next call of [`on_tick`](Self::on_tick).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let mut next = self
            .ending
            .next()
            .into_iter()
            .chain(self.rebalance_at)
            .chain(self.life_at)
            .chain(self.waits.next())
            .chain(self.held.next())
            .min();
        let mut earliest = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for worker in self.workers.values() {
            match worker.state() {
                WorkerState::Starting { since } if worker.is_wanted() => {
                    if let Some(at) = since.checked_add(self.config.start_timeout) {
                        earliest(at);
                    }
                }
                WorkerState::Initializing { since } if worker.is_wanted() => {
                    if let Some(at) = since.checked_add(self.config.initializer_timeout) {
                        earliest(at);
                    }
                }
                WorkerState::Stopping { since, last } if worker.is_wanted() => {
                    if let Some(at) = since.checked_add(self.time_to_leave(last)) {
                        earliest(at);
                    }
                }
                _ => {}
            }
            if let Some(termination) = worker.termination() {
                earliest(termination.next());
            } else if let Some(at) = self.report_until(worker) {
                earliest(at);
            } else if let Some(asked) = worker.asked() {
                if let Some(at) = asked.until() {
                    earliest(at);
                }
            } else if self.timed > 0
                && let Some(front) = worker.in_flight.front()
                && let Some(timeout) = self.timeout_of(front.chunk())
                && let Some(at) = worker.in_flight.front_since().checked_add(timeout)
            {
                earliest(at.max(front.look_at()));
            }
        }
        // The end of the back-off matters only if a worker would be started then.
        if (self.waiting() > 0 || self.lacks_workers())
            && let Some(at) = self.no_start_before
        {
            earliest(at);
        }
        next
    }

    /// Returns whether an event that starts and ends no worker may have brought a deadline closer.
    pub(crate) fn has_timed(&self) -> bool {
        self.timed > 0
            || self.ending.next().is_some()
            || self.no_start_before.is_some()
            || self.config.report_timeout.is_some()
            || !self.waits.is_empty()
            || !self.held.is_empty()
    }

    /// Returns the earliest deadline of those that ordinary events set and clear.
    pub(crate) fn ordinary_deadline(&self) -> Option<Instant> {
        self.rebalance_at.into_iter().chain(self.life_at).min()
    }

    /// Returns until when a worker may report the error of a task, if it does.
    fn report_until(&self, worker: &Worker) -> Option<Instant> {
        worker.reports()?.checked_add(self.config.report_timeout?)
    }

    /// Returns how long a worker that was asked to leave may take for what it still does.
    fn time_to_leave(&self, last: LastStep) -> Duration {
        match last {
            LastStep::Finalizing => self.config.finalizer_timeout,
            LastStep::Initializing | LastStep::Ending => STOP_GRACE,
        }
    }

    fn timeout_of(&self, chunk: TaskId) -> Option<Duration> {
        self.tasks.get(chunk)?.chunk().timeout()
    }

    /// Does what is due: enforces timeouts, and moves tasks that have waited for too long.
    pub(crate) fn on_tick(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        self.tick_ending(now, claims, out);
        // The back-off is over, whether or not a worker is started now. If it stayed due, the
        // driver would not sleep.
        self.no_start_before.take_if(|at| *at <= now);
        self.queue_due(now);
        // Before the workers, since another task may become the first one of a worker, with a
        // timeout of its own.
        let any_ended = self.end_waits(now, claims, out);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.tick_worker(now, id, claims, out);
        }
        // Before anything is sent: what is not on the board yet cannot be taken back.
        let lives = self.end_lives(now, claims);
        let due = self.rebalance_at.take_if(|at| *at <= now).is_some();
        if due {
            self.relieve(now, claims);
        }
        self.dispatch_to(now, due, out);
        if due {
            self.balance(now, claims, out);
            // Tasks behind another task may be due before the next check of short ones.
            let next = self.rebalance_at.take();
            self.watch(now);
            self.rebalance_at = self.rebalance_at.into_iter().chain(next).min();
            // In a stream of short tasks, some wait again in a moment, although none does now. With
            // a check set already, the event that finds them need not wake the driver.
            if std::mem::take(&mut self.waits_again) && self.rebalance_at.is_none() {
                self.rebalance_by(now + REBALANCE);
            }
        } else {
            self.watch(now);
        }
        self.send_all_broadcasts(now, out);
        if lives {
            if self.end_fresh(now, claims) {
                // Those that are kept are replaced.
                self.dispatch(now, out);
            }
            self.end_idle(now, claims);
        }
        self.stop_the_leaving(now, out);
        if lives {
            self.look_at_lives();
        }
        // After a look, or if this tick has made a worker idle for which the next look is due, it
        // comes in a moment. Otherwise the driver would do nothing else. Any other look stays when
        // it is: the driver may tick more often than that for other reasons.
        let soon = |at| lives || at <= now;
        self.life_at = self.life_at.map(|at| if soon(at) { at.max(now + LOOK_AGAIN) } else { at });
        if any_ended {
            self.close_if_drained(now, out);
        }
    }

    fn tick_worker(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let Some(worker) = self.workers.get(&id) else { return };
        let report_until = self.report_until(worker);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(termination) = worker.termination_mut() {
            match termination.tick(now) {
                Due::Nothing => {}
                Due::Kill => out.push(Action::Kill(id)),
                Due::GiveUp => {
                    // It hangs in the kernel, and the pool stops waiting for it.
                    let cause = |_| BrokenCause::Start("it was killed and did not end".into());
                    self.on_end(now, id, false, cause, claims, out);
                    self.close_if_drained(now, out);
                }
            }
            return;
        }
        match worker.state() {
            WorkerState::Starting { since }
                if since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now) =>
            {
                self.kill(now, id, Reason::Start, out);
            }
            WorkerState::Initializing { since }
                if since
                    .checked_add(self.config.initializer_timeout)
                    .is_some_and(|at| at <= now) =>
            {
                if self.workers.values().any(Worker::is_working) {
                    // Other workers have finished it and do the work. This one was slow, or was
                    // stopped.
                    self.kill(now, id, Reason::Start, out);
                    return;
                }
                // This is treated as a failed initializer: the next worker's would take as long,
                // and tasks would wait for it again.
                let error = TaskError::timed_out(self.config.initializer_timeout, Phase::Run);
                let error = error.of_task(self.config.initializer.as_deref().unwrap_or_default());
                self.on_broken(now, BrokenCause::Initializer(Arc::new(error)), out);
            }
            WorkerState::Stopping { since, last } => {
                let timeout = self.time_to_leave(last);
                if since.checked_add(timeout).is_none_or(|at| at > now) {
                    return;
                }
                let reason = match last {
                    LastStep::Finalizing => Reason::Finalizer,
                    LastStep::Initializing | LastStep::Ending => {
                        out.push(Action::WarnNotStopping(id, timeout));
                        Reason::Unresponsive
                    }
                };
                self.kill(now, id, reason, out);
            }
            _ if report_until.is_some_and(|at| at <= now) => {
                self.kill(now, id, Reason::Unresponsive, out);
            }
            _ if worker.asked().is_some() => self.tick_asked(now, id, out),
            _ => self.tick_task(now, id, claims, out),
        }
    }

    /// Checks the timeout of the task that a worker runs.
    fn tick_task(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) {
        let worker = &self.workers[&id];
        let Some(front) = worker.in_flight.front().copied() else { return };
        // A worker is deaf if it takes nothing in for this long. A large argument may take longer
        // to arrive, so the time counts from the last progress.
        let since = worker.in_flight.last_progress();
        let front_since = worker.in_flight.front_since();
        let deaf = since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now);
        if deaf && matches!(claims.begun(id, front.seq()), Begun::No | Begun::Unknown) {
            let taken_in = claims.taken_in(id);
            let worker = self.workers.get_mut(&id).expect("looked up above");
            if worker.in_flight.has_taken_in(now, taken_in) {
                return;
            }
            // The worker had nothing to do but to take this task, and has not taken it for as long
            // as a whole start may last. So something stopped it. The task has not begun, and can
            // go elsewhere.
            self.kill(now, id, Reason::Unresponsive, out);
            return;
        }
        let Some(timeout) = self.timeout_of(front.chunk()) else { return };
        if front_since.checked_add(timeout).is_none_or(|at| at.max(front.look_at()) > now) {
            return;
        }
        // The timeout counts from when the worker began the task, which may be later than when it
        // could have.
        let since = front.began().or_else(|| match claims.begun(id, front.seq()) {
            Begun::No => None,
            Begun::Yes(_, at) => Some(at.unwrap_or(front_since).max(front_since)),
            Begun::Unknown => Some(front_since),
        });
        let over = |since: Instant| since.checked_add(timeout).is_some_and(|at| at <= now);
        let error = TaskError::timed_out(timeout, Phase::Run);
        if since.is_some_and(over) && self.end_running(now, front.chunk(), error, claims, out) {
            return;
        }
        // The task has not begun, or began later, or its reply is on its way.
        let worker = self.workers.get_mut(&id).expect("it has a front");
        match since {
            Some(since) if !over(since) => worker.in_flight.front_began(since),
            _ => worker.in_flight.look_again(since, now + timeout.max(LOOK_AGAIN)),
        }
    }
}
