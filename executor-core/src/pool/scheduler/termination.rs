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
    task::{Entry, Scheduled, TaskState},
};
use crate::{
    error::TaskError,
    id::{TaskId, WorkerId},
};

/// Time between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);

/// How long a killed worker may take to end. After that it is taken to hang in the kernel, and is
/// given up.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long a worker that the system does not let us signal may take to end itself when asked to.
/// Then it is given up.
const UNSIGNALLED_GRACE: Duration = Duration::from_millis(500);

/// A termination under way: a worker must end, and has got a signal.
#[derive(Clone, Debug)]
pub(super) struct Termination {
    pub(super) reason: Reason,
    /// When to send SIGKILL, if only SIGTERM was sent. After SIGKILL, when to give the worker up.
    pub(super) next: Instant,
    pub(super) killed: bool,
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
    /// Because it was stopped for too long, or did not take its task or leave when it should have.
    Unresponsive,
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
        if self.workers.get(&id).is_some_and(|worker| worker.termination.is_none()) {
            self.kill(now, id, Reason::ProtocolViolation, out);
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
        let Some(Entry { state: TaskState::Sent(id), .. }) = self.tasks.get(task) else {
            return false;
        };
        let id = *id;
        let Some(at) = self.workers[&id].in_flight.iter().position(|sent| sent.chunk == task)
        else {
            return false;
        };
        // From here on nothing behind the task can begin. If something behind it has begun already,
        // the task itself has ended and its reply is on its way. The task that runs now is
        // innocent, so the worker must not be killed.
        let behind = self.workers[&id].in_flight.len() - at - 1;
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
        self.begin_termination(id, Termination { reason, next: now + KILL_GRACE, killed: true });
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
        let next = now + TERMINATE_GRACE;
        self.begin_termination(id, Termination { reason, next, killed: false });
        out.push(Action::Terminate(id));
    }

    fn begin_termination(&mut self, id: WorkerId, termination: Termination) {
        self.idle.retain(|idle| *idle != id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.termination = Some(termination);
        }
    }

    /// Handles the system's refusal to signal a worker. The worker was asked to end itself instead.
    /// Whether or not it does, the tasks for which it was to be killed are resolved soon.
    pub(crate) fn on_signal_refused(&mut self, now: Instant, id: WorkerId) {
        if let Some(termination) =
            self.workers.get_mut(&id).and_then(|worker| worker.termination.as_mut())
            && termination.killed
        {
            termination.next = termination.next.min(now + UNSIGNALLED_GRACE);
        }
    }
}
