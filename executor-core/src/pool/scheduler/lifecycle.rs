//! Events in a worker's lifespan: its hello, ready, grown too large, reporting an error, stopped by
//! a signal, continued, ended.

use std::time::{Duration, Instant};

use super::{
    Scheduler, action::Actions, claims::Claims, task::Scheduled, termination::Reason,
    worker::Worker,
};
use crate::id::WorkerId;

/// How long a worker may be stopped by a signal before it is killed, if waiting gains nothing: the
/// terminal has stopped it, the pool is shutting down, or it has nothing to do while tasks wait. A
/// lower value kills workers that are stopped for a moment. A worker that runs a task in an open
/// pool may be stopped for as long as a start may last.
const STOPPED_GRACE: Duration = Duration::from_secs(2);

/// A worker that was found stopped by a signal.
pub(crate) struct Stopped {
    pub(crate) worker: WorkerId,
    /// Whether nothing is going to continue it.
    pub(crate) for_good: bool,
    /// Whether it has computed since it was last seen stopped, because it is stopped and continued
    /// in turn.
    pub(crate) has_run: bool,
}

impl<C: Scheduled> Scheduler<C> {
    /// Handles a worker's hello. Its initializer comes next. Returns `false` if the worker is not
    /// wanted any more.
    pub(crate) fn on_hello(&mut self, now: Instant, id: WorkerId) -> bool {
        self.workers.get_mut(&id).is_some_and(|worker| worker.transition_to_initializing(now))
    }

    /// Returns whether a worker runs its initializer.
    pub(crate) fn is_initializing(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(Worker::is_initializing)
    }

    /// Returns whether a worker that was asked to leave still runs its initializer.
    pub(crate) fn leaves_after_initializer(&self, id: WorkerId) -> bool {
        self.workers
            .get(&id)
            .is_some_and(|worker| worker.runs_initializer() && !worker.is_initializing())
    }

    /// Handles the end of a worker's finalizer. Returns `false` if the worker runs none.
    pub(crate) fn on_finalized(&mut self, now: Instant, id: WorkerId) -> bool {
        self.workers.get_mut(&id).is_some_and(|worker| worker.transition_to_finalized(now))
    }

    /// Returns whether this worker may still get work: there is no decision that it must end.
    pub(crate) fn is_wanted(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(Worker::is_wanted)
    }

    /// Handles a worker that can take tasks now.
    pub(crate) fn on_ready(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let old_at = self.config.lifespan.old_at(now, id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if !worker.transition_to_ready(now, old_at) {
            worker.leaves_after_initializer(now, self.config.finalizer.is_some());
            if !worker.is_stopping()
                && let Some(termination) = worker.termination_mut()
            {
                // Its initializer has outlived SIGTERM.
                termination.answer(now);
            }
            return self.end_answered(now, id, out);
        }
        self.look_at_age_of(id);
        self.ever_ready = true;
        self.end_back_off(now);
        self.after_replies(now, id, claims, out);
    }

    /// Handles a worker that has more memory than it should go on with. It ends the tasks that it
    /// has begun and leaves. The others go elsewhere. [`after_replies`](Self::after_replies) must
    /// be called after this. Returns `false` if the worker was to leave anyway.
    pub(crate) fn on_grown(&mut self, id: WorkerId, claims: &dyn Claims) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        if !worker.is_working() || worker.is_leaving() || worker.in_flight.is_spent() {
            return false;
        }
        worker.in_flight.spend();
        self.take_back_unbegun(id, claims);
        // It may have become idle by that, and then leaves.
        self.idle.retain(|idle| *idle != id);
        true
    }

    /// Handles a worker that reports the error of a task that it has answered. What it has not
    /// begun goes elsewhere. [`after_replies`](Self::after_replies) must be called after this.
    pub(crate) fn on_reports(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.transition_to_reporting(now);
        self.take_back_unbegun(id, claims);
        // It may have become idle by that.
        self.idle.retain(|idle| *idle != id);
    }

    /// Handles a worker that has reported an error. [`after_replies`](Self::after_replies) must be
    /// called after this. Returns `false` if the worker was not to report any.
    pub(crate) fn on_reported(&mut self, now: Instant, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        let reports = worker.transition_to_reported();
        if reports
            && worker.in_flight.is_empty()
            && let Some(termination) = worker.termination_mut()
        {
            // It got SIGTERM while it reported.
            termination.answer(now);
        }
        reports
    }

    /// Handles all workers that were found stopped by a signal at this time. Tasks that they have
    /// not begun go to others. Returns those that are killed for being stopped.
    pub(crate) fn on_stopped(
        &mut self,
        now: Instant,
        stopped: &[Stopped],
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> Vec<WorkerId> {
        let mut killed = Vec::new();
        // First all of them: what one gives back must not go to another one. It could not be taken
        // back from there, because it is not on the board yet.
        for Stopped { worker: id, has_run, .. } in stopped {
            let worker = self.workers.get_mut(id).filter(|worker| worker.is_wanted());
            let Some(worker) = worker else { continue };
            worker.seen_stopped(now, *has_run);
            // A stopped worker takes no step, so it keeps only what it has begun.
            self.idle.retain(|idle| idle != id);
            self.take_back_unbegun(*id, claims);
        }
        for Stopped { worker: id, for_good, .. } in stopped {
            if self.is_wanted(*id) && self.end_stopped(now, *id, *for_good, out) {
                killed.push(*id);
            }
        }
        self.after_changes(now, claims, out);
        killed
    }

    /// Kills a worker that has been stopped for too long. Returns whether it did.
    fn end_stopped(
        &mut self,
        now: Instant,
        id: WorkerId,
        for_good: bool,
        out: &mut Actions<C>,
    ) -> bool {
        let Some(since) = self.workers[&id].stopped() else { return false };
        // A stopped worker without tasks takes the place of a worker that could run the waiting
        // ones.
        let in_the_way = self.workers[&id].in_flight.is_empty()
            && (self.queued > 0
                || self.waits_for(self.workers[&id].index())
                || self.next_with_tokens().is_some());
        let waited_for = for_good || in_the_way || !self.state.is_open();
        let patience =
            if waited_for { STOPPED_GRACE } else { self.config.start_timeout.max(STOPPED_GRACE) };
        let killed = now.saturating_duration_since(since) >= patience;
        if killed {
            self.kill(now, id, Reason::Unresponsive, out);
        }
        killed
    }

    /// Handles a stopped worker that was continued.
    pub(crate) fn on_continued(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.seen_continued();
            self.after_replies(now, id, claims, out);
        }
    }

    /// Records that a worker's process has ended. The worker gets no more tasks until everything
    /// that it had published is read and [`on_exit`](Self::on_exit) decides. A task that was sent
    /// to it now would have this death counted against it, as one that it may have caused.
    pub(crate) fn on_ended(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.seen_ended();
            self.idle.retain(|idle| *idle != id);
        }
    }
}
