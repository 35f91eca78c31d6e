//! A worker that must end: the reason, and the signals that it gets until it has ended.
//!
//! ```text
//!  for a task ─► asked ── returns in time ──► the worker is kept
//!                  └── after `cancel` ─► SIGTERM ── after `terminate` ─┐
//!  late, protocol violation ──────────────────────────────────────► SIGKILL ──► ended, or
//!  all workers ── at once ─────────────────────────────────────────►   ▲        given up after
//!              └─ else SIGTERM ── after `terminate` ───────────────────┘        KILL_GRACE
//! ```
//!
//! `cancel` and `terminate` are the times of [`Graces`]. Without `cancel`, a task is not asked.
//! Without `terminate`, a worker that ends because of a task gets SIGKILL at once. A worker that
//! handles SIGTERM, and whose task returns then, gets SIGKILL with the reply: `terminate` is for
//! the task.

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Action, Actions, End, resolve},
    claims::Claims,
    in_flight::Sending,
    task::{Entry, Scheduled},
    worker::Worker,
};
use crate::{
    error::TaskError,
    id::{TaskId, WorkerId},
};

/// Default time between SIGTERM and SIGKILL when all workers are ended.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);

/// How much time a pool gives a task that must end, and its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Graces {
    /// Time between asking a task to stop and the first signal.
    pub(crate) cancel: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) terminate: Option<Duration>,
}

impl Graces {
    /// Returns the time between SIGTERM and SIGKILL when all workers are ended.
    pub(crate) fn terminate_at_end(&self) -> Duration {
        self.terminate.unwrap_or(TERMINATE_GRACE)
    }
}

/// A task that was asked to stop by itself.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    task: TaskId,
    /// The task ends with this error, whether it returns in time or not.
    error: TaskError,
    /// When its worker gets a signal. `None` if never.
    until: Option<Instant>,
    answered: bool,
}

impl Asked {
    /// Returns when the task's time is over.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Returns the error of this task, if it is the one that was asked.
    pub(super) fn error_of(&self, task: TaskId) -> Option<&TaskError> {
        (self.task == task).then_some(&self.error)
    }

    /// Records that the task has ended.
    pub(super) fn answer(&mut self) {
        self.answered = true;
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }
}

/// How long a killed worker may take to end. After that it is taken to hang in the kernel, and is
/// given up.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Stands for a time that does not end.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

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
    /// Because its finalizer took too long.
    Finalizer,
}

impl Termination {
    /// A termination by SIGKILL.
    fn kill(now: Instant, reason: Reason) -> Self {
        Termination { reason, next: now + KILL_GRACE, killed: true }
    }

    /// A termination by SIGTERM, and SIGKILL after a grace time.
    fn terminate(now: Instant, reason: Reason, grace: Duration) -> Self {
        // A grace beyond the end of time is a long one.
        let next = now.checked_add(grace).unwrap_or(now + FOREVER);
        Termination { reason, next, killed: false }
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

    /// Sends SIGKILL at this time at the latest, to a worker that only got SIGTERM.
    pub(super) fn shorten(&mut self, until: Instant) {
        debug_assert!(!self.killed, "then it is given up at that time");
        self.next = self.next.min(until);
    }

    /// Records that the worker has answered the task that it ran when it got SIGTERM, and has no
    /// other. It is not waited for any longer: it would only wait for frames.
    pub(super) fn answer(&mut self, now: Instant) {
        if !self.killed {
            self.next = self.next.min(now);
        }
    }

    /// Records that the system has refused the signal. The worker was asked to end itself instead.
    fn refused(&mut self, now: Instant) {
        self.next = self.next.min(now + UNSIGNALLED_GRACE);
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

    /// Ends the task that a worker runs: asks it to stop, or signals the worker. Returns whether
    /// the task was still running. The caller dispatches what was taken back.
    pub(super) fn end_running(
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
        let seq = in_flight.get(task).expect("it has a place").seq();
        // From here on nothing behind the task can begin. If something behind it has begun already,
        // the task itself has ended and its reply is on its way. The task that runs now is
        // innocent, so the worker must not be killed.
        let behind = in_flight.len() - place - 1;
        let innocent = self.take_back_from(id, behind, claims) < behind;
        if innocent {
            return false;
        }
        // The numbers of sendings begin at 1, and 0 on the board means that nothing is asked. The
        // task whose number is 0 after a wrap is only signalled.
        if seq == 0 || self.config.graces.cancel.is_zero() {
            self.signal_for_task(now, id, (task, seq), error, out);
        } else {
            let until = now.checked_add(self.config.graces.cancel);
            let worker = self.workers.get_mut(&id).expect("looked up above");
            worker.transition_to_asked(Asked { task, error, until, answered: false });
            out.push(Action::Ask(id, seq));
        }
        true
    }

    /// Signals the worker that runs this task because of the task.
    fn signal_for_task(
        &mut self,
        now: Instant,
        id: WorkerId,
        (task, seq): (TaskId, u32),
        error: TaskError,
        out: &mut Actions<C>,
    ) {
        let reason = Reason::Task(task, error);
        match self.config.graces.terminate.filter(|grace| !grace.is_zero()) {
            None => self.kill(now, id, reason, out),
            Some(grace) => {
                // A task that handles SIGTERM can tell by this what it is for.
                if self.workers[&id].asked().is_none() && seq != 0 {
                    out.push(Action::Ask(id, seq));
                }
                self.terminate(now, id, reason, grace, out);
            }
        }
    }

    /// Signals a worker whose task was asked to stop and has not done so in time.
    pub(super) fn tick_asked(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Some(asked) = worker.asked().filter(|asked| asked.until().is_some_and(|at| at <= now))
        else {
            return;
        };
        let (task, error) = (asked.task, asked.error.clone());
        let seq = worker.in_flight.get(task).map_or(0, Sending::seq);
        self.signal_for_task(now, id, (task, seq), error, out);
    }

    /// Ends a task that was asked to stop, and has.
    pub(super) fn settle_asked(&mut self, id: WorkerId, out: &mut Actions<C>) {
        let Some(asked) = self.workers.get_mut(&id).and_then(Worker::take_answered) else { return };
        let Asked { task, error, .. } = asked;
        let Some(entry) = self.tasks.get_mut(task) else { return };
        self.timed -= usize::from(entry.transition_to_queued());
        let retryable = matches!(error, TaskError::TimedOut { .. } | TaskError::MemoryLimit { .. });
        if retryable && self.may_retry(task, false) {
            self.hold(task, false);
            out.push(Action::Undecided(Box::new((task, End::Error(error)))));
            return;
        }
        let entry = self.tasks.remove(task).expect("looked at above");
        out.push(resolve(entry.into_chunk(), error));
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

    /// Sends SIGTERM to a worker. SIGKILL follows after the grace time.
    pub(super) fn terminate(
        &mut self,
        now: Instant,
        id: WorkerId,
        reason: Reason,
        grace: Duration,
        out: &mut Actions<C>,
    ) {
        self.begin_termination(id, Termination::terminate(now, reason, grace));
        out.push(Action::Terminate(id));
    }

    /// Sends SIGKILL to a worker that has got SIGTERM, has outlived it, and has nothing left to do.
    pub(super) fn end_answered(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let termination = self.workers.get_mut(&id).and_then(Worker::termination_mut);
        if let Some(termination) = termination.filter(|termination| !termination.is_killed())
            && let Due::Kill = termination.tick(now)
        {
            out.push(Action::Kill(id));
        }
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
