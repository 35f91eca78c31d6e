//! Events: tasks are cancelled, before they begin or while they run.

use std::time::Instant;

use super::{
    Scheduler,
    action::{Actions, resolve},
    claims::Claims,
    queue::QUEUE_SLACK,
    task::{Entry, Scheduled, item_id},
};
use crate::{error::TaskError, id::TaskId};

impl<C: Scheduled> Scheduler<C> {
    /// Cancels a task that has not begun. Returns whether it was cancelled.
    pub(crate) fn on_cancel(
        &mut self,
        now: Instant,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let cancelled = self.withdraw(now, task, TaskError::Cancelled, claims, out);
        if cancelled {
            self.after_changes(now, claims, out);
        }
        cancelled
    }

    /// Cancels those of `count` tasks, from `base` on, that have not begun.
    pub(crate) fn on_cancel_chunk(
        &mut self,
        now: Instant,
        base: TaskId,
        count: u32,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        // The chunk may have been split anywhere. The last item comes first: cancelling the first
        // one would let the worker begin the next.
        for item in (0..count).rev() {
            let id = item_id(base, item);
            let Some(entry) = self.tasks.get(id) else { continue };
            let worker = entry.worker();
            if self.withdraw(now, id, TaskError::Cancelled, claims, out) {
                continue;
            }
            if let Some(worker) = worker
                && let Some(rest) = self.take_rest(worker, id, claims)
            {
                let entry = self.tasks.remove(rest).expect("just split off");
                out.push(resolve(entry.into_chunk(), TaskError::Cancelled));
            }
        }
        self.after_changes(now, claims, out);
    }

    /// Ends a task that has not begun with this error. Returns whether it has ended.
    pub(super) fn withdraw(
        &mut self,
        now: Instant,
        chunk: TaskId,
        error: TaskError,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let Some(entry) = self.tasks.get(chunk) else { return false };
        if entry.is_held() {
            self.end_held(chunk, error, out);
            return true;
        }
        if let Some(id) = entry.awaits() {
            self.withdraw_broadcast(now, id, chunk, error, out);
            return true;
        }
        let is_broadcast = entry.is_broadcast();
        match entry.worker() {
            // The id stays in the queue, because searching for it would take long. It is skipped
            // when its turn comes.
            None if entry.chunk().bound_to().is_some() => {
                let tasks = &self.tasks;
                self.bound.ended(chunk, |other| tasks.get(other).is_some_and(Entry::is_queued));
            }
            None if !entry.chunk().needs().is_empty() => {
                let tasks = &self.tasks;
                self.tokens
                    .lines
                    .ended(chunk, |other| tasks.get(other).is_some_and(Entry::is_queued));
            }
            None => {
                self.queued -= 1;
                // But such ids must not pile up behind a first task that waits for long.
                if self.queue.len() > 2 * self.queued + QUEUE_SLACK {
                    let tasks = &self.tasks;
                    self.queue.retain(|queued| queued != chunk && tasks.get(queued).is_some());
                }
            }
            Some(id) => {
                let first = entry.chunk().items().first;
                let Some(seq) = self.seq_of(id, chunk) else { return false };
                if !claims.take_back(id, seq, first) {
                    return false;
                }
                if self.remove_sending(id, chunk) == Some(0) {
                    let worker = self.workers.get_mut(&id).expect("it had the chunk in flight");
                    worker.in_flight.front_follows_cancelled(now);
                }
                if is_broadcast {
                    self.withdraw_broadcast(now, id, chunk, error, out);
                    return true;
                }
                self.rest_if_idle(id);
            }
        }
        let entry = self.tasks.remove(chunk).expect("looked at above");
        out.push(resolve(entry.into_chunk(), error));
        true
    }

    /// Cancels a task. If it has begun, it is asked to stop, or its worker is ended. Returns
    /// whether the task ends because it was cancelled.
    pub(crate) fn on_cancel_running(
        &mut self,
        now: Instant,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        if self.on_cancel(now, task, claims, out) {
            return true;
        }
        let Some(id) = self.tasks.get(task).and_then(Entry::worker) else { return false };
        if let Some(termination) = self.workers[&id].termination() {
            // The task ends with its worker, but perhaps for another reason.
            return matches!(termination.error_of(task), Some(TaskError::Cancelled));
        }
        if let Some(asked) = self.workers[&id].asked() {
            return matches!(asked.error_of(task), Some(TaskError::Cancelled));
        }
        let ends = self.end_running(now, task, TaskError::Cancelled, claims, out);
        self.after_changes(now, claims, out);
        ends
    }
}
