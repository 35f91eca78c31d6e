//! Events that end the pool: it is shut down, killed or broken, or its threads have failed.

use std::time::Instant;

use super::{
    Scheduler,
    action::{Action, Actions, resolve},
    bound::BoundLines,
    claims::Claims,
    in_flight::Sending,
    task::Scheduled,
    termination::Reason,
    worker::WorkerState,
};
use crate::error::{BrokenCause, TaskError};

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
        self.bound = BoundLines::default();
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
        cancel_pending: bool,
        deadline: Option<Instant>,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.state.transition_to_draining();
        if let Some(deadline) = deadline {
            self.shutdown_deadline =
                Some(self.shutdown_deadline.map_or(deadline, |old| old.min(deadline)));
        }
        if cancel_pending {
            self.cancels_pending = true;
            for id in self.workers.keys().copied().collect::<Vec<_>>() {
                self.take_back_from(id, usize::MAX, claims);
                // The sendings that are left have begun, but perhaps not all of their items.
                let begun: Vec<_> =
                    self.workers[&id].in_flight.iter().map(Sending::chunk).collect();
                for chunk in begun {
                    if let Some(rest) = self.take_rest(id, chunk, claims) {
                        self.requeue(rest);
                    }
                }
                self.rest_if_idle(id);
            }
            self.resolve_queue(&TaskError::Cancelled, out);
            self.end_all_held(&TaskError::Cancelled, out);
        }
        self.stop_the_leaving(now, out);
        self.watch(now);
        // Workers that are kept while the pool is open may leave now.
        self.look_at_lives();
        self.close_if_drained(now, out);
    }

    /// Ends all workers: with SIGTERM and, after a grace time, SIGKILL, or with SIGKILL at once.
    pub(crate) fn on_kill(&mut self, now: Instant, at_once: bool, out: &mut Actions<C>) {
        self.state.transition_to_killed();
        self.end_all(now, TaskError::Shutdown, at_once, out);
    }

    fn end_all(&mut self, now: Instant, error: TaskError, at_once: bool, out: &mut Actions<C>) {
        (self.shutdown_deadline, self.life_at) = (None, None);
        self.resolve_queue(&error, out);
        self.end_all_held(&error, out);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            // A worker that must end already keeps its reason, unless SIGKILL now replaces SIGTERM.
            match self.workers[&id].termination() {
                Some(termination) if termination.is_killed() || !at_once => {}
                _ => {
                    let reason = Reason::Pool(error.clone());
                    match at_once {
                        true => self.kill(now, id, reason, out),
                        false => self.terminate(now, id, reason, out),
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
        self.shutdown_deadline = self.shutdown_deadline.filter(|_| !self.workers.is_empty());
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
                // A worker that initializes reads this order after its initializer.
                WorkerState::Initializing { .. } | WorkerState::Ready => {
                    worker.transition_to_stopping(now);
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
