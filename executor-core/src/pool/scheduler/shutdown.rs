//! Events that end the pool: it is shut down, killed or broken, or its threads have failed.

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Action, Actions, resolve},
    claims::Claims,
    in_flight::Sending,
    lines::Lines,
    task::Scheduled,
    termination::{Reason, Termination},
    worker::WorkerState,
};
use crate::error::{BrokenCause, TaskError};

/// How a pool is to be shut down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shutdown {
    /// Whether tasks that have not begun are cancelled.
    pub(crate) cancel_pending: bool,
    /// When tasks that still run are asked to stop.
    pub(crate) deadline: Option<Instant>,
    /// How long they then have, if not as long as the pool's tasks have otherwise.
    pub(crate) cancel_grace: Option<Duration>,
    /// Time between SIGTERM and SIGKILL, if not the pool's.
    pub(crate) terminate_grace: Option<Duration>,
    /// When workers that still exist get SIGKILL, whatever else is planned.
    pub(crate) kill_at: Option<Instant>,
}

/// The planned end of the pool.
#[derive(Default)]
pub(super) struct Ending {
    /// When tasks are asked to stop.
    ask_at: Option<Instant>,
    /// When workers get SIGTERM. Known once the tasks were asked.
    terminate_at: Option<Instant>,
    /// When workers get SIGKILL.
    kill_at: Option<Instant>,
    cancel: Option<Duration>,
    terminate: Option<Duration>,
}

impl Ending {
    /// Returns when the next step is due.
    pub(super) fn next(&self) -> Option<Instant> {
        [self.ask_at, self.terminate_at, self.kill_at].into_iter().flatten().min()
    }

    /// Adds a plan. Of several, the earliest times count, and of the graces the last ones.
    fn plan(&mut self, how: &Shutdown) {
        let earlier = |old: Option<Instant>, new: Option<Instant>| old.into_iter().chain(new).min();
        match &mut self.terminate_at {
            None => self.ask_at = earlier(self.ask_at, how.deadline),
            // Tasks that were asked to stop already keep their time, unless this gives them less.
            Some(at) => {
                let times = how.deadline.zip(how.cancel_grace);
                let end = times.and_then(|(deadline, grace)| deadline.checked_add(grace));
                *at = end.map_or(*at, |end| end.min(*at));
            }
        }
        self.kill_at = earlier(self.kill_at, how.kill_at);
        self.cancel = how.cancel_grace.or(self.cancel);
        self.terminate = how.terminate_grace.or(self.terminate);
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Returns the error for new tasks, if no more are accepted.
    pub(crate) fn refusal(&self) -> Option<TaskError> {
        self.state.refusal()
    }

    /// Returns whether new tasks are accepted.
    pub(crate) fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Returns why the pool is broken, if it is.
    pub(crate) fn broken(&self) -> Option<&BrokenCause> {
        self.state.broken()
    }

    /// Breaks the pool: every unresolved task fails with the cause, and every worker is killed.
    pub(crate) fn on_broken(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if !self.state.transition_to_broken(&cause) {
            return;
        }
        self.end_all(now, TaskError::Broken(cause), true, out);
    }

    /// Handles a failure of the pool's own threads. No exit will be noticed any more, so all tasks
    /// are resolved without waiting for one.
    pub(crate) fn on_collapse(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        let error = TaskError::Broken(cause.clone());
        self.on_broken(now, cause, out);
        for entry in self.tasks.drain() {
            if entry.worker().is_some() {
                entry.chunk().leave_arguments();
            }
            out.push(resolve(entry.into_chunk(), error.clone()));
        }
        self.workers.clear();
        self.idle.clear();
        self.queue.clear();
        self.bound = Lines::default();
        self.tokens.clear();
        self.waits.clear();
        self.held.clear();
        self.leaving.clear();
        (self.queued, self.timed, self.with_waiting) = (0, 0, 0);
        self.close_if_drained(now, out);
    }

    /// Stops accepting tasks. Accepted tasks are finished, or with `cancel_pending` only those that
    /// have begun.
    pub(crate) fn on_shutdown(
        &mut self,
        now: Instant,
        how: Shutdown,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.state.transition_to_draining();
        self.ending.plan(&how);
        if how.cancel_pending {
            self.withdraw_all(now, &TaskError::Cancelled, claims, out);
        }
        self.stop_the_leaving(now, out);
        self.watch(now);
        // Workers that are kept while the pool is open may leave now.
        self.look_at_lives();
        self.close_if_drained(now, out);
    }

    /// Ends all tasks that have not begun with this error.
    fn withdraw_all(
        &mut self,
        now: Instant,
        error: &TaskError,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.cancels_pending = true;
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.take_back_from(id, usize::MAX, claims);
            // The sendings that are left have begun, but perhaps not all of their items.
            let begun: Vec<_> = self.workers[&id].in_flight.iter().map(Sending::chunk).collect();
            for chunk in begun {
                if let Some(rest) = self.take_rest(id, chunk, claims) {
                    self.requeue(rest);
                }
            }
            self.rest_if_idle(id);
        }
        self.resolve_queue(error, out);
        self.end_all_held(error, out);
        self.end_all_broadcasts(now, error, out);
    }

    /// Takes the next step of the pool's end, if it is time.
    pub(super) fn tick_ending(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if due(&mut self.ending.kill_at) {
            return self.on_kill(now, true, claims, out);
        }
        if due(&mut self.ending.terminate_at) {
            return self.on_kill(now, false, claims, out);
        }
        if !due(&mut self.ending.ask_at) {
            return;
        }
        let grace = self.ending.cancel.unwrap_or(self.config.graces.cancel);
        if grace.is_zero() {
            return self.on_kill(now, false, claims, out);
        }
        self.withdraw_all(now, &TaskError::Shutdown, claims, out);
        let mut any = false;
        for (id, worker) in &self.workers {
            // All sendings that are left have begun, so the last one runs. Of those before it, the
            // replies are on their way.
            if let Some(last) = worker.in_flight.back()
                && worker.is_wanted()
                && last.seq() != 0
            {
                any = true;
                if worker.asked().is_none() {
                    out.push(Action::Ask(*id, last.seq()));
                }
            }
        }
        match any {
            true => self.ending.terminate_at = now.checked_add(grace),
            // Nothing runs that could stop by itself.
            false => self.on_kill(now, false, claims, out),
        }
    }

    /// Ends all workers: with SIGTERM and, after a grace time, SIGKILL, or with SIGKILL at once.
    pub(crate) fn on_kill(
        &mut self,
        now: Instant,
        at_once: bool,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.state.transition_to_killed();
        if !at_once {
            // A worker that handles SIGTERM must not begin another task after that.
            self.withdraw_all(now, &TaskError::Shutdown, claims, out);
        }
        self.end_all(now, TaskError::Shutdown, at_once, out);
    }

    fn end_all(&mut self, now: Instant, error: TaskError, at_once: bool, out: &mut Actions<C>) {
        let grace = self.ending.terminate.unwrap_or(self.config.graces.terminate_at_end());
        let at_once = at_once || grace.is_zero();
        // Workers that got SIGTERM still have to be gone by then.
        let kill_at = self.ending.kill_at.filter(|_| !at_once);
        self.ending = Ending { kill_at, ..Ending::default() };
        self.life_at = None;
        self.resolve_queue(&error, out);
        self.end_all_held(&error, out);
        self.end_all_broadcasts(now, &error, out);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            // A worker that must end already keeps its reason, unless SIGKILL now replaces SIGTERM.
            match self.workers[&id].termination() {
                Some(termination) if termination.is_killed() => {}
                Some(_) if !at_once => {
                    // But it gets no more time than the others.
                    let worker = self.workers.get_mut(&id).expect("listed above");
                    if let (Some(termination), Some(until)) =
                        (worker.termination_mut(), now.checked_add(grace))
                    {
                        termination.shorten(until);
                    }
                }
                termination => {
                    // A task for which a worker has got SIGTERM ends with its own error.
                    let reason = match termination.map(Termination::reason) {
                        Some(reason @ Reason::Task(..)) => reason.clone(),
                        _ => Reason::Pool(error.clone()),
                    };
                    match at_once {
                        true => self.kill(now, id, reason, out),
                        false => self.terminate(now, id, reason, grace, out),
                    }
                }
            }
        }
        self.close_if_drained(now, out);
    }

    /// Returns whether nothing is unresolved and nothing more is accepted.
    pub(super) fn is_drained(&self) -> bool {
        !self.state.is_open() && self.tasks.is_empty()
    }

    /// Asks the workers to leave once the pool is drained. Reports that the pool is closed once
    /// they have left.
    pub(super) fn close_if_drained(&mut self, now: Instant, out: &mut Actions<C>) {
        if !self.is_drained() {
            return;
        }
        (self.rebalance_at, self.life_at) = (None, None);
        self.waits.clear();
        if self.workers.is_empty() {
            self.ending = Ending::default();
        }
        let finalizes = self.config.finalizer.is_some();
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let worker = self.workers.get_mut(&id).expect("listed above");
            if !worker.is_wanted() {
                continue;
            }
            match worker.state() {
                // This worker leaves after its initializer.
                WorkerState::Starting { .. }
                    if self.config.initializer.is_some() && self.config.workers_min > 0 => {}
                WorkerState::Starting { .. } => {
                    self.kill(now, id, Reason::Pool(TaskError::Shutdown), out);
                }
                // It is asked when it has reported the error, or is killed for taking too long.
                WorkerState::Ready if worker.reports().is_some() => {}
                // A worker that initializes reads this order after its initializer.
                WorkerState::Initializing { .. } | WorkerState::Ready => {
                    worker.transition_to_stopping(now, finalizes);
                    self.idle.retain(|idle| *idle != id);
                    out.push(Action::Stop(id));
                }
                WorkerState::Stopping { .. } => {}
            }
        }
        if self.workers.is_empty() && !self.closed {
            self.closed = true;
            out.push(Action::Closed);
        }
    }
}
