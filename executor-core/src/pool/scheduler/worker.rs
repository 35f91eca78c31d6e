//! The scheduler's record of one worker: its state, and what was sent to it.

use std::{collections::VecDeque, time::Instant};

use super::{
    in_flight::{InFlight, Sending},
    restarts::YOUNG,
    termination::{Asked, Termination},
};
use crate::id::TaskId;

/// The state of one worker.
pub(super) struct Worker {
    /// Which of the pool's workers it is. No other worker has this number.
    index: u32,
    state: WorkerState,
    /// Whether its process exists.
    launched: bool,
    pub(super) in_flight: InFlight,
    /// Since when the worker has been seen stopped by a signal. A stopped worker gets no tasks.
    stopped: Option<Instant>,
    /// Whether the process has ended. What it had published may still have to be read.
    ended: bool,
    /// Whether the worker leaves when it has ended what it has begun: see [`life`](super::life).
    leaving: bool,
    /// When the worker was ready.
    ready_at: Option<Instant>,
    /// When the worker is too old, if it may not live for ever.
    old_at: Option<Instant>,
    /// Number of tasks that the worker has answered.
    answered: u64,
    /// Whether one of them was for whichever worker could take it, and not of a broadcast.
    served: bool,
    /// The task that was asked to stop. Nothing is behind it, and it stays until the worker is
    /// signalled for it and beyond, because it has the error that the task ends with.
    asked: Option<Asked>,
    /// Since when the worker reports the error of a task. Until it has done so, it begins none.
    reports: Option<Instant>,
    termination: Option<Termination>,
    /// The tasks of broadcasts for this worker, in the order in which they run. The first one may
    /// have been sent.
    pub(super) broadcasts: VecDeque<TaskId>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum WorkerState {
    Starting { since: Instant },
    Initializing { since: Instant },
    Ready,
    Stopping { since: Instant, last: LastStep },
}

/// What a worker that was asked to leave still does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum LastStep {
    /// It runs its initializer, and reads the order after that.
    Initializing,
    /// It runs its finalizer.
    Finalizing,
    /// It has nothing left to do, and ends.
    Ending,
}

impl Worker {
    /// `since` is when the time for its start begins at the latest: when its process exists.
    pub(super) fn new(now: Instant, since: Instant, index: u32, budget: Option<u32>) -> Self {
        Worker {
            index,
            state: WorkerState::Starting { since },
            launched: false,
            in_flight: InFlight::new(now, budget),
            stopped: None,
            ended: false,
            leaving: false,
            ready_at: None,
            old_at: None,
            answered: 0,
            served: false,
            asked: None,
            reports: None,
            termination: None,
            broadcasts: VecDeque::new(),
        }
    }

    #[inline]
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    #[inline]
    pub(super) fn state(&self) -> WorkerState {
        self.state
    }

    #[inline]
    pub(super) fn termination(&self) -> Option<&Termination> {
        self.termination.as_ref()
    }

    pub(super) fn termination_mut(&mut self) -> Option<&mut Termination> {
        self.termination.as_mut()
    }

    /// Returns the task that was asked to stop, if there is one.
    #[inline]
    pub(super) fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// Returns whether there is no decision that the worker must end.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.termination.is_none()
    }

    /// Returns whether the worker can take a task that any worker can run.
    #[inline]
    pub(super) fn is_useful(&self) -> bool {
        self.can_begin() && !self.leaving && self.broadcasts.is_empty()
    }

    /// Returns whether the worker will run a task of a broadcast. One that is to leave runs it
    /// before it does.
    pub(super) fn takes_broadcasts(&self) -> bool {
        self.may_be_recalled() && !self.ended
    }

    /// Returns whether the worker can begin a task, if only one of a broadcast.
    #[inline]
    pub(super) fn can_begin(&self) -> bool {
        self.is_working() && self.asked.is_none() && self.reports.is_none()
    }

    /// Returns since when the worker reports the error of a task.
    #[inline]
    pub(super) fn reports(&self) -> Option<Instant> {
        self.reports
    }

    /// Returns whether the worker takes tasks, or would if it had not those of a broadcast, did not
    /// wait for a task that was asked to stop, did not report an error, or were not about to leave.
    #[inline]
    pub(super) fn is_working(&self) -> bool {
        self.state == WorkerState::Ready
            && self.is_wanted()
            && self.stopped.is_none()
            && !self.ended
    }

    /// Returns whether the worker is there to stay: there is no decision that it must end, or is to
    /// leave.
    pub(super) fn stays(&self) -> bool {
        !self.leaving && self.may_be_recalled()
    }

    /// Returns whether the worker would stay if it were not about to leave.
    pub(super) fn may_be_recalled(&self) -> bool {
        self.is_wanted() && !self.is_stopping()
    }

    /// Returns a key by which workers are ordered that could leave. The first is the one whose
    /// place is missed least.
    pub(super) fn value(&self) -> (u8, u64, Instant) {
        let class = match self.state {
            WorkerState::Ready if !self.is_working() => 1,
            WorkerState::Ready if self.in_flight.is_empty() => 2,
            WorkerState::Ready => 3,
            _ => 0,
        };
        (class, self.in_flight.load(), self.in_flight.front_since())
    }

    /// Returns when the worker is too old.
    pub(super) fn old_at(&self) -> Option<Instant> {
        self.old_at
    }

    pub(super) fn is_old(&self, now: Instant) -> bool {
        self.old_at.is_some_and(|at| at <= now)
    }

    /// Returns whether the worker was ready a moment ago, has answered nothing since then, and was
    /// there to stay.
    pub(super) fn is_young(&self, now: Instant) -> bool {
        let young = |at: Instant| now.saturating_duration_since(at) < YOUNG;
        let stays = self.state == WorkerState::Ready && !self.leaving;
        stays && self.answered == 0 && self.ready_at.is_some_and(young)
    }

    /// Returns whether the worker leaves when it has ended what it has begun.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Returns since when the worker has been seen stopped by a signal.
    pub(super) fn stopped(&self) -> Option<Instant> {
        self.stopped
    }

    /// Returns whether the worker was asked to leave.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.state, WorkerState::Stopping { .. })
    }

    /// Returns whether the process has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the number of tasks that the worker has answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Counts tasks that the worker has answered.
    #[inline]
    pub(super) fn has_answered(&mut self, tasks: u32, of_broadcast: bool) {
        self.answered += u64::from(tasks);
        self.served |= !of_broadcast;
    }

    /// Returns whether the worker has answered a task that others could have run as well.
    pub(super) fn has_served(&self) -> bool {
        self.served
    }

    /// Returns whether the worker can take a task and has none.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.is_useful() && self.in_flight.is_empty()
    }

    pub(super) fn is_initializing(&self) -> bool {
        matches!(self.state, WorkerState::Initializing { .. })
    }

    /// Returns whether the worker runs its initializer, also if it was asked to leave meanwhile.
    pub(super) fn runs_initializer(&self) -> bool {
        let leaves =
            matches!(self.state, WorkerState::Stopping { last: LastStep::Initializing, .. });
        self.is_initializing() || leaves
    }

    /// Returns whether the worker was asked to leave, and its finalizer has not ended.
    pub(super) fn is_finalizing(&self) -> bool {
        matches!(self.state, WorkerState::Stopping { last: LastStep::Finalizing, .. })
    }

    /// Returns whether the worker will be ready, if nothing goes wrong.
    pub(super) fn is_coming_up(&self) -> bool {
        matches!(self.state, WorkerState::Starting { .. } | WorkerState::Initializing { .. })
            && self.is_wanted()
    }

    /// Returns whether the worker has had no task, and is not about to leave. One that has died is
    /// spare until its end is known: it is replaced then.
    pub(super) fn is_spare(&self) -> bool {
        let leaves = self.leaving || self.is_stopping();
        !leaves && self.in_flight.is_empty() && !self.in_flight.is_spent()
    }

    /// Returns whether the worker has finished its start.
    pub(super) fn was_ready(&self) -> bool {
        matches!(self.state, WorkerState::Ready | WorkerState::Stopping { .. })
    }

    /// Records the worker's hello. Its initializer comes next. Returns whether the worker is
    /// wanted. If it is not, nothing changes.
    pub(super) fn transition_to_initializing(&mut self, now: Instant) -> bool {
        if self.is_wanted()
            && let WorkerState::Starting { .. } = self.state
        {
            self.state = WorkerState::Initializing { since: now };
        }
        self.is_wanted()
    }

    /// Records that the initializer has ended well. From then on the worker is idle, and `old_at`
    /// is when it is too old. Returns `false`, and changes nothing, if the worker runs none, or is
    /// not wanted any more.
    pub(super) fn transition_to_ready(&mut self, now: Instant, old_at: Option<Instant>) -> bool {
        let ready = self.is_initializing() && self.is_wanted();
        if ready {
            debug_assert!(self.in_flight.is_empty(), "only a ready worker gets tasks");
            self.state = WorkerState::Ready;
            self.ready_at = Some(now);
            self.old_at = old_at;
            self.in_flight.idle_from(now);
        }
        ready
    }

    /// Records that the worker is asked to leave. A worker that initializes reads this after its
    /// initializer. `finalizes` says whether it runs a finalizer then.
    pub(super) fn transition_to_stopping(&mut self, now: Instant, finalizes: bool) {
        debug_assert!(self.is_wanted(), "it is ended already");
        debug_assert!(
            matches!(self.state, WorkerState::Initializing { .. } | WorkerState::Ready),
            "it is asked once, over a link"
        );
        debug_assert!(self.in_flight.is_empty(), "it finishes its tasks first");
        let last = match finalizes {
            _ if self.is_initializing() => LastStep::Initializing,
            true => LastStep::Finalizing,
            false => LastStep::Ending,
        };
        self.state = WorkerState::Stopping { since: now, last };
    }

    /// Records that the initializer of a worker that was asked to leave has ended well. Returns
    /// `false`, and changes nothing, if the worker runs none, or must end.
    pub(super) fn leaves_after_initializer(&mut self, now: Instant, finalizes: bool) -> bool {
        let leaves = self.runs_initializer() && !self.is_initializing() && self.is_wanted();
        if leaves {
            let last = if finalizes { LastStep::Finalizing } else { LastStep::Ending };
            self.state = WorkerState::Stopping { since: now, last };
        }
        leaves
    }

    /// Records that the finalizer has ended. Returns `false`, and changes nothing, if the worker
    /// runs none.
    pub(super) fn transition_to_finalized(&mut self, now: Instant) -> bool {
        let finalized = self.is_finalizing();
        if finalized {
            self.state = WorkerState::Stopping { since: now, last: LastStep::Ending };
        }
        finalized
    }

    /// Records that a task, the last one that the worker has, is asked to stop. Of those before it,
    /// the replies are on their way.
    pub(super) fn transition_to_asked(&mut self, asked: Asked) {
        debug_assert!(self.asked.is_none() && self.is_wanted(), "it is asked once");
        let last = self.in_flight.back().map(Sending::chunk);
        debug_assert!(last.is_some_and(|last| asked.error_of(last).is_some()), "it is the last");
        self.asked = Some(asked);
    }

    /// Takes the record of a task that was asked to stop, if it has ended.
    pub(super) fn take_answered(&mut self) -> Option<Asked> {
        self.asked.take_if(|asked| asked.is_answered())
    }

    pub(super) fn asked_mut(&mut self) -> Option<&mut Asked> {
        self.asked.as_mut()
    }

    /// Records that the worker reports the error of the task that it has just answered.
    pub(super) fn transition_to_reporting(&mut self, now: Instant) {
        self.reports = Some(now);
    }

    /// Records that the worker has reported an error. Returns `false` if it was not to.
    pub(super) fn transition_to_reported(&mut self) -> bool {
        self.reports.take().is_some()
    }

    /// Records that the worker leaves when it has ended what it has begun. Until then it gets no
    /// task.
    pub(super) fn transition_to_leaving(&mut self) {
        debug_assert!(self.stays(), "it leaves already");
        self.leaving = true;
    }

    /// Records that the worker is needed after all.
    pub(super) fn transition_to_staying(&mut self) {
        debug_assert!(self.leaving && self.may_be_recalled(), "it is too late");
        self.leaving = false;
    }

    /// Records that the worker must end and gets a signal. The first reason stays, unless SIGKILL
    /// replaces SIGTERM.
    pub(super) fn transition_to_terminating(&mut self, termination: Termination) {
        debug_assert!(
            self.termination.as_ref().is_none_or(|old| !old.is_killed() && termination.is_killed()),
            "it is ended already"
        );
        self.termination = Some(termination);
    }

    /// Records that the worker was seen stopped by a signal. `has_run` means that it has run since
    /// it was last seen stopped.
    pub(super) fn seen_stopped(&mut self, now: Instant, has_run: bool) {
        if has_run {
            self.stopped = None;
        }
        self.stopped.get_or_insert(now);
    }

    /// Records that the worker was continued.
    pub(super) fn seen_continued(&mut self) {
        self.stopped = None;
    }

    /// Records that there is time for the worker's process to be created until `since`, if it does
    /// not exist yet.
    pub(super) fn is_ordered_until(&mut self, until: Instant) {
        if let WorkerState::Starting { since } = &mut self.state
            && !self.launched
        {
            *since = until;
        }
    }

    /// Records that the worker's process exists.
    pub(super) fn seen_launched(&mut self, now: Instant) {
        self.launched = true;
        if let WorkerState::Starting { since } = &mut self.state {
            *since = now.min(*since);
        }
    }

    /// Records that the worker's process has ended.
    pub(super) fn seen_ended(&mut self) {
        self.ended = true;
    }
}
