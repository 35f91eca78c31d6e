//! Tasks of broadcasts: one for each worker, which no other may run.
//!
//! ```text
//!  on_broadcast ─► waits for a worker ── it has nothing in flight ──► sent, alone ── reply ─► next
//!                      │                                               │
//!                      └─ cancel, shutdown, the worker ends ──► resolved with why
//! ```
//!
//! A worker that has such a task gets no others until the task has ended. So nothing is ever behind
//! it, and it is never taken back to run elsewhere. It does not count as one of the tasks after
//! which a worker is replaced. A worker that is to leave runs what waits for it, and leaves then.

use std::time::Instant;

use super::{
    Scheduler,
    action::{Action, Actions, End, resolve},
    claims::Claims,
    estimate::Estimate,
    task::{Entry, Scheduled},
    worker::Worker,
};
use crate::{
    error::TaskError,
    id::{TaskId, WorkerId},
};

impl<C: Scheduled> Scheduler<C> {
    /// Returns the workers that a broadcast reaches: those that run tasks now, or will.
    pub(crate) fn reachable(&self) -> Vec<WorkerId> {
        let reachable = self.workers.iter().filter(|(_, worker)| worker.takes_broadcasts());
        reachable.map(|(id, _)| *id).collect()
    }

    /// Accepts tasks, each for one worker. The task of a worker that has left meanwhile is lost.
    pub(crate) fn on_broadcast(
        &mut self,
        now: Instant,
        tasks: impl IntoIterator<Item = (WorkerId, C)>,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        for (id, task) in tasks {
            self.counted.submitted += 1;
            if let Some(refusal) = self.refusal() {
                out.push(resolve(task, refusal));
                continue;
            }
            let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.takes_broadcasts())
            else {
                out.push(Action::Resolve(Box::new((task, End::Unbegun(id)))));
                continue;
            };
            let (base, until) = (task.base(), task.queue_until());
            worker.broadcasts.push_back(base);
            self.any_broadcast = true;
            self.idle.retain(|idle| *idle != id);
            let new = self.tasks.insert(base, Entry::broadcast(task, id));
            debug_assert!(new, "a task id is used once");
            self.add_wait(base, until);
            self.send_broadcast(now, id, out);
        }
        self.after_changes(now, claims, out);
    }

    /// Accepts a task for a worker that has just been ordered, for which nothing can be sent yet.
    /// Returns the task if the worker does not come.
    pub(crate) fn broadcast_to(&mut self, id: WorkerId, task: C) -> Option<C> {
        let worker = self.workers.get_mut(&id).filter(|worker| worker.takes_broadcasts());
        let (Some(worker), true) = (worker, self.state.is_open()) else { return Some(task) };
        let (base, until) = (task.base(), task.queue_until());
        worker.broadcasts.push_back(base);
        self.any_broadcast = true;
        self.counted.submitted += 1;
        let new = self.tasks.insert(base, Entry::broadcast(task, id));
        debug_assert!(new, "a task id is used once");
        self.add_wait(base, until);
        None
    }

    /// Sends a worker the next task of a broadcast, if it has nothing to do.
    pub(super) fn send_broadcast(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        // Those that have ended or were cancelled.
        while worker.broadcasts.front().is_some_and(|task| self.tasks.get(*task).is_none()) {
            worker.broadcasts.pop_front();
        }
        if !worker.in_flight.is_empty() || !worker.can_begin() {
            return;
        }
        let Some(&task) = worker.broadcasts.front() else { return };
        let entry = self.tasks.get_mut(task).expect("looked at above");
        let estimate: Estimate =
            self.estimates.get(&entry.chunk().function()).copied().unwrap_or_default();
        let seq = worker.in_flight.push_beyond(now, task, estimate, &mut self.with_waiting);
        self.timed += usize::from(entry.transition_to_sent(id));
        out.push(Action::Send(id, entry.chunk().send_to(seq)));
    }

    /// Does the same for every worker. What a worker had in flight may have been cancelled, or may
    /// have gone to another worker.
    pub(super) fn send_all_broadcasts(&mut self, now: Instant, out: &mut Actions<C>) {
        if !self.any_broadcast {
            return;
        }
        self.any_broadcast = false;
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.send_broadcast(now, id, out);
            self.any_broadcast |= !self.workers[&id].broadcasts.is_empty();
        }
    }

    /// Ends a task that waits for its worker.
    pub(super) fn withdraw_broadcast(
        &mut self,
        now: Instant,
        id: WorkerId,
        task: TaskId,
        error: TaskError,
        out: &mut Actions<C>,
    ) {
        let entry = self.tasks.remove(task).expect("the caller has looked at it");
        out.push(resolve(entry.into_chunk(), error));
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.broadcasts.retain(|other| *other != task);
        }
        self.send_broadcast(now, id, out);
        // It may have had all tasks that it may have before it got this one.
        self.retire_if_spent(now, id, out);
        self.rest_if_idle(id);
    }

    /// Ends all tasks that wait for their workers.
    pub(super) fn end_all_broadcasts(
        &mut self,
        now: Instant,
        error: &TaskError,
        out: &mut Actions<C>,
    ) {
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            let waiting = std::mem::take(&mut worker.broadcasts);
            for task in waiting {
                match self.tasks.get(task) {
                    // It runs.
                    Some(entry) if entry.worker().is_some() => {
                        let worker = self.workers.get_mut(&id).expect("looked up above");
                        worker.broadcasts.push_back(task);
                    }
                    Some(_) => {
                        let entry = self.tasks.remove(task).expect("looked at above");
                        out.push(resolve(entry.into_chunk(), error.clone()));
                    }
                    None => {}
                }
            }
            self.retire_if_spent(now, id, out);
            self.rest_if_idle(id);
        }
    }

    /// Ends the tasks that have waited for a worker that has ended.
    pub(super) fn lose_broadcasts(&mut self, id: WorkerId, worker: &Worker, out: &mut Actions<C>) {
        for task in &worker.broadcasts {
            // The one that was sent is settled like every task in flight.
            if self.tasks.get(*task).is_some_and(|entry| entry.worker().is_none()) {
                let entry = self.tasks.remove(*task).expect("looked at above");
                let chunk = entry.into_chunk();
                out.push(Action::Resolve(Box::new((chunk, End::Unbegun(id)))));
            }
        }
    }
}
