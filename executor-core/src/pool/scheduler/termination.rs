//! A worker that must end: the reason, and the signals that it gets until it has ended.
//!
//! ```text
//!  one worker (for a task, late, protocol violation) ──► SIGKILL ──► ended, or given up
//!  all workers ── at once ─────────────────────────────►    ▲        after KILL_GRACE
//!              └─ else SIGTERM ── after TERMINATE_GRACE ────┘
//! ```

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Action, Actions},
    claims::Claims,
    task::{Entry, Scheduled},
    worker::Worker,
};
use crate::{
    error::TaskError,
    id::{TaskId, WorkerId},
};

/// Time between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);

/// How long a killed worker may take to end. After that it is taken to hang in the kernel, and is
/// given up.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long a worker that the system does not let us signal may take to end itself when asked to.
/// Then it is given up.
const UNSIGNALLED_GRACE: Duration = Duration::from_millis(500);

/// A termination under way: a worker must end, and has got a signal.
#[derive(Clone, Debug)]
pub(super) struct Termination {
    reason: Reason,
    /// When to send SIGKILL, if only SIGTERM was sent. After SIGKILL, when to give the worker up.
    next: Instant,
    killed: bool,
}

/// What is to be done about a worker that has got a signal.
#[must_use]
pub(super) enum Due {
    Nothing,
    /// It gets SIGKILL, because it has not ended after SIGTERM.
    Kill,
    /// It has not ended after SIGKILL either.
    GiveUp,
}

#[derive(Clone, Debug)]
pub(super) enum Reason {
    /// Because of this task, which ends with this error.
    Task(TaskId, TaskError),
    /// Because the whole pool ends. The tasks that run end with this error.
    Pool(TaskError),
    /// Because it was not ready in time.
    Start,
    /// Because it violated the protocol.
    ProtocolViolation,
    /// Because the system refused something that its initializer needs.
    Refused,
    /// Because it was stopped for too long, or did not take its task or leave when it should have.
    Unresponsive,
}

impl Termination {
    /// A termination by SIGKILL.
    fn kill(now: Instant, reason: Reason) -> Self {
        Termination { reason, next: now + KILL_GRACE, killed: true }
    }

    /// A termination by SIGTERM, and SIGKILL after a grace time.
    fn terminate(now: Instant, reason: Reason) -> Self {
        Termination { reason, next: now + TERMINATE_GRACE, killed: false }
    }

    pub(super) fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Returns when [`tick`](Self::tick) has something to do.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Returns whether SIGKILL was sent.
    pub(super) fn is_killed(&self) -> bool {
        self.killed
    }

    /// Returns the error of this task, if the worker is ended because of it.
    #[inline]
    pub(super) fn error_of(&self, task: TaskId) -> Option<&TaskError> {
        match &self.reason {
            Reason::Task(other, error) if *other == task => Some(error),
            _ => None,
        }
    }

    /// Returns whether the worker is ended although nothing is wrong with it: because of a task,
    /// or because the pool ends.
    pub(super) fn is_of_task_or_pool(&self) -> bool {
        matches!(self.reason, Reason::Task(..) | Reason::Pool(_))
    }

    /// Takes the next step, if it is time.
    pub(super) fn tick(&mut self, now: Instant) -> Due {
        if now < self.next {
            return Due::Nothing;
        }
        if self.killed {
            return Due::GiveUp;
        }
        self.killed = true;
        self.next = now + KILL_GRACE;
        Due::Kill
    }

    /// Records that the system has refused the signal. The worker was asked to end itself instead.
    fn refused(&mut self, now: Instant) {
        if self.killed {
            self.next = self.next.min(now + UNSIGNALLED_GRACE);
        }
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Handles a protocol violation: the worker is killed, and its tasks are treated as after any
    /// death.
    pub(crate) fn on_protocol_violation(
        &mut self,
        now: Instant,
        id: WorkerId,
        out: &mut Actions<C>,
    ) {
        if self.is_wanted(id) {
            self.kill(now, id, Reason::ProtocolViolation, out);
            // There may be too few workers now.
            self.dispatch(now, out);
        }
    }

    /// Handles the system's refusal of something that a worker's initializer needs: the worker is
    /// killed. When it has ended, [`on_start_refused`](Self::on_start_refused) follows.
    pub(crate) fn on_initializer_refused(
        &mut self,
        now: Instant,
        id: WorkerId,
        out: &mut Actions<C>,
    ) {
        if self.is_wanted(id) {
            self.kill(now, id, Reason::Refused, out);
            self.dispatch(now, out);
        }
    }

    /// Kills the worker that runs this task because of the task. Returns whether the task was still
    /// running. The caller dispatches what was taken back.
    pub(super) fn kill_for_task(
        &mut self,
        now: Instant,
        task: TaskId,
        error: TaskError,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let Some(id) = self.tasks.get(task).and_then(Entry::worker) else { return false };
        let in_flight = &self.workers[&id].in_flight;
        let Some(place) = in_flight.place_of(task) else { return false };
        // From here on nothing behind the task can begin. If something behind it has begun already,
        // the task itself has ended and its reply is on its way. The task that runs now is
        // innocent, so the worker must not be killed.
        let behind = in_flight.len() - place - 1;
        let innocent = self.take_back_from(id, behind, claims) < behind;
        if !innocent {
            self.kill(now, id, Reason::Task(task, error), out);
        }
        !innocent
    }

    /// Sends SIGKILL to a worker.
    pub(super) fn kill(
        &mut self,
        now: Instant,
        id: WorkerId,
        reason: Reason,
        out: &mut Actions<C>,
    ) {
        self.begin_termination(id, Termination::kill(now, reason));
        out.push(Action::Kill(id));
    }

    /// Sends SIGTERM to a worker. SIGKILL follows after a grace time.
    pub(super) fn terminate(
        &mut self,
        now: Instant,
        id: WorkerId,
        reason: Reason,
        out: &mut Actions<C>,
    ) {
        self.begin_termination(id, Termination::terminate(now, reason));
        out.push(Action::Terminate(id));
    }

    fn begin_termination(&mut self, id: WorkerId, termination: Termination) {
        self.idle.retain(|idle| *idle != id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.transition_to_terminating(termination);
        }
    }

    /// Handles the system's refusal to signal a worker. The worker was asked to end itself instead.
    /// Whether or not it does, the tasks for which it was to be killed are resolved soon.
    pub(crate) fn on_signal_refused(&mut self, now: Instant, id: WorkerId) {
        if let Some(termination) = self.workers.get_mut(&id).and_then(Worker::termination_mut) {
            termination.refused(now);
        }
    }
}
