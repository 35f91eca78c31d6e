//! Tasks between two attempts.
//!
//! ```text
//!  an attempt fails ─► held ──Undecided──► the pool asks the user ─┬─ on_retry ─► delay ─► queue
//!                       │                                          └─ on_give_up ─► resolved
//!                       └─ cancel, shutdown with cancel_pending, end of the pool ─► resolved
//! ```
//!
//! Whether a task is tried again may depend on its error and on the user's code, which does not run
//! under the pool's lock. Meanwhile the task stays in the table, so that it can be cancelled, and
//! that a pool that shuts down waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    Scheduler,
    action::{Action, Actions, End, resolve},
    claims::Claims,
    task::{Entry, Scheduled},
    tokens::resources_of,
};
use crate::{error::TaskError, id::TaskId};

/// The tasks between two attempts.
#[derive(Default)]
pub(super) struct Held {
    /// For each task, when its next attempt is due, if that is decided.
    tasks: BTreeMap<TaskId, Option<Instant>>,
    due: BTreeSet<(Instant, TaskId)>,
}

impl Held {
    fn hold(&mut self, task: TaskId) {
        let new = self.tasks.insert(task, None).is_none();
        debug_assert!(new, "it is held once");
    }

    /// Records when the next attempt of a task is due. Returns `false` if it is not waited for.
    fn decide(&mut self, task: TaskId, at: Instant) -> bool {
        match self.tasks.get_mut(&task) {
            Some(when @ None) => {
                *when = Some(at);
                self.due.insert((at, task))
            }
            _ => false,
        }
    }

    /// Removes a task. Returns whether it was held.
    pub(super) fn remove(&mut self, task: TaskId) -> bool {
        let held = self.tasks.remove(&task);
        if let Some(Some(at)) = held {
            self.due.remove(&(at, task));
        }
        held.is_some()
    }

    /// Returns when the next attempt is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn pop_due(&mut self, now: Instant) -> Option<TaskId> {
        let (_, task) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.remove(task);
        Some(task)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Held::default();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert!(self.due.len() <= self.tasks.len());
        self.tasks.len()
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Returns whether a task whose attempt has failed may be tried again. `lost` says whether its
    /// worker was lost.
    pub(super) fn may_retry(&self, task: TaskId, lost: bool) -> bool {
        let begins_tasks = !self.state.is_over() && !self.cancels_pending;
        begins_tasks && self.tasks.get(task).is_some_and(|entry| entry.chunk().may_retry(lost))
    }

    /// Holds a task that no worker has any more and whose attempt has failed. `lost` says whether
    /// its worker was lost.
    pub(super) fn hold(&mut self, task: TaskId, lost: bool) {
        let entry = self.tasks.get_mut(task).expect("it has been tried");
        entry.transition_to_held(lost);
        self.held.hold(task);
    }

    /// Returns a task whose next attempt is not decided.
    pub(crate) fn undecided(&self, task: TaskId) -> Option<&C> {
        match self.held.tasks.get(&task)? {
            None => self.tasks.get(task).map(Entry::chunk),
            Some(_) => None,
        }
    }

    /// Handles the decision to try a task again after this time. Returns `false` if the task has
    /// ended meanwhile, or the time never comes.
    pub(crate) fn on_retry(
        &mut self,
        now: Instant,
        task: TaskId,
        delay: Duration,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        // A delay beyond the end of time is one that does not end.
        let Some(at) = now.checked_add(delay) else { return false };
        let tries = self.held.decide(task, at);
        if tries && self.queue_due(now) {
            self.after_changes(now, claims, out);
        }
        tries
    }

    /// Handles the decision that a task is not tried again, and ends with this error.
    pub(crate) fn on_give_up(
        &mut self,
        now: Instant,
        task: TaskId,
        error: TaskError,
        out: &mut Actions<C>,
    ) {
        if self.undecided(task).is_none() {
            return;
        }
        self.held.remove(task);
        let entry = self.tasks.remove(task).expect("what is held is in the table");
        out.push(Action::Resolve(Box::new((entry.into_chunk(), End::GivenUp(error)))));
        self.close_if_drained(now, out);
    }

    /// Puts tasks whose next attempt is due at the end of the queue, or behind the others of their
    /// priority. Returns whether any was.
    pub(super) fn queue_due(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(task) = self.held.pop_due(now) {
            let entry = self.tasks.get_mut(task).expect("what is held is in the table");
            let until = entry.transition_to_queued_again(now);
            let (bound_to, priority) = (entry.chunk().bound_to(), entry.chunk().priority());
            let resources = resources_of(entry.chunk().needs());
            self.enqueue(task, bound_to, resources, priority);
            self.add_wait(task, until);
            any = true;
        }
        any
    }

    /// Resolves a held task with this error.
    pub(super) fn end_held(&mut self, task: TaskId, error: TaskError, out: &mut Actions<C>) {
        if self.held.remove(task) {
            let entry = self.tasks.remove(task).expect("what is held is in the table");
            out.push(resolve(entry.into_chunk(), error));
        }
    }

    /// Resolves all held tasks with this error.
    pub(super) fn end_all_held(&mut self, error: &TaskError, out: &mut Actions<C>) {
        while let Some((task, _)) = self.held.tasks.first_key_value() {
            let task = *task;
            self.end_held(task, error.clone(), out);
        }
    }
}
