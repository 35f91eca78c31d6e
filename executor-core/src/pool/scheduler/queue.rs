//! The chunks that no worker has: how they get into the queue, and how they are split.

use std::time::{Duration, Instant};

use super::{
    Scheduler,
    action::{Actions, resolve},
    estimate::FEW,
    task::{Entry, Scheduled, item_id},
    tokens::{Resources, resources_of},
};
use crate::{error::TaskError, id::TaskId, wire::frame::Items};

/// How long a chunk of several tasks may wait for a worker to come up, in addition to [`FEW`] of
/// its own estimates, before it is shared among more workers. A worker may take long because it
/// initializes. A lower value starts two workers for work that one would have done right after it
/// had come up.
const SLOW_START: Duration = Duration::from_millis(10);

/// Number of ids of cancelled tasks that may stay in the queue, in addition to as many ids as tasks
/// are waiting there.
pub(super) const QUEUE_SLACK: usize = 64;

impl<C: Scheduled> Scheduler<C> {
    /// Accepts chunks, in this order. Each is resolved with the reason if it is not accepted.
    pub(crate) fn on_submit(
        &mut self,
        now: Instant,
        chunks: impl IntoIterator<Item = C>,
        out: &mut Actions<C>,
    ) {
        let (queued, bound, for_tokens) =
            (self.queued, self.bound.queued(), self.tokens.lines.queued());
        for chunk in chunks {
            self.counted.submitted += u64::from(chunk.left());
            if let Some(refusal) = self.refusal() {
                out.push(resolve(chunk, refusal));
                continue;
            }
            let first = *self.first.get_or_insert(now);
            let at = now.saturating_duration_since(first).as_nanos() as u64;
            let id = chunk.base();
            let (until, priority) = (chunk.queue_until(), chunk.priority());
            let (bound_to, resources) = (chunk.bound_to(), resources_of(chunk.needs()));
            let new = self.tasks.insert(id, Entry::new(chunk, at));
            debug_assert!(new, "a task id is used once");
            self.enqueue(id, bound_to, resources, priority);
            self.add_wait(id, until);
        }
        // If other chunks were in the queue before, no worker has room: every event ends by giving
        // out as much as possible.
        let may_go = queued == 0 || self.workers.len() < self.config.workers_max;
        if self.queued > queued && may_go
            || self.bound.queued() > bound
            || self.tokens.lines.queued() > for_tokens
        {
            self.dispatch(now, out);
            self.watch(now);
        }
    }

    /// Puts a chunk behind the others that wait as it does.
    #[inline]
    pub(super) fn enqueue(
        &mut self,
        chunk: TaskId,
        bound_to: Option<u32>,
        resources: Resources,
        priority: i32,
    ) {
        debug_assert!(bound_to.is_none() || resources == 0, "it could wait for both");
        match bound_to {
            Some(worker) => self.bound.added(worker).push_back(chunk, priority),
            None if resources != 0 => self.tokens.lines.added(resources).push_back(chunk, priority),
            None => {
                self.queue.push_back(chunk, priority);
                self.queued += 1;
            }
        }
    }

    /// Returns the first chunk in the queue that was not cancelled. It stays in the queue.
    pub(super) fn next_queued(&mut self) -> Option<TaskId> {
        while let Some(chunk) = self.queue.front() {
            if self.tasks.get(chunk).is_some_and(Entry::is_queued) {
                return Some(chunk);
            }
            self.queue.discard_front();
        }
        None
    }

    /// Puts a chunk that is neither queued nor sent in front of all others of its priority.
    pub(super) fn requeue(&mut self, chunk: TaskId) {
        let entry = &self.tasks[chunk];
        debug_assert!(entry.is_queued());
        let priority = entry.chunk().priority();
        if let Some(worker) = entry.chunk().bound_to() {
            return self.bound.added(worker).push_front(chunk, priority);
        }
        let resources = resources_of(entry.chunk().needs());
        if resources != 0 {
            return self.tokens.lines.added(resources).push_front(chunk, priority);
        }
        self.queue.push_front(chunk, priority);
        self.queued += 1;
    }

    /// Splits a chunk: its items from `at` on become a chunk of their own. Returns the id of the
    /// new chunk.
    pub(super) fn split_off(&mut self, chunk: TaskId, at: u32) -> TaskId {
        let entry = self.tasks.get_mut(chunk).expect("a task of this table");
        let id = item_id(entry.chunk().base(), at);
        let tail = entry.split_off(at);
        let new = self.tasks.insert(id, tail);
        debug_assert!(new, "no two entries have an item in common");
        id
    }

    /// Splits a chunk that is neither queued nor sent into this many parts, or into single tasks if
    /// it has fewer.
    pub(super) fn parts(&mut self, chunk: TaskId, of: usize) -> Vec<TaskId> {
        let Items { first, count } = self.tasks[chunk].chunk().items();
        let of = u32::try_from(of).unwrap_or(u32::MAX).clamp(1, count - first);
        let mut parts = vec![chunk];
        for part in (1..of).rev() {
            let at = u64::from(first) + u64::from(count - first) * u64::from(part) / u64::from(of);
            parts.insert(1, self.split_off(chunk, at as u32));
        }
        parts
    }

    /// Returns when a queued chunk of several tasks has waited for too long. Splitting it lets more
    /// workers start than are already coming up.
    pub(super) fn queue_waits_until(&self) -> Option<Instant> {
        if self.queued == 0 || self.workers.len() >= self.config.workers_max {
            return None;
        }
        // Looking at `workers_max` chunks is enough: no more chunks wait here than workers come up,
        // unless no worker can be started at this moment.
        let chunks = self
            .queue
            .iter_plain()
            .take(self.config.workers_max)
            .filter_map(|chunk| self.tasks.get(chunk));
        let several = chunks.filter(|entry| entry.is_queued() && entry.chunk().left() > 1);
        several.filter_map(|entry| self.waits_until(entry)).min()
    }

    /// Returns how long a queued chunk of several tasks waits for the workers that are coming up.
    pub(super) fn waits_until(&self, entry: &Entry<C>) -> Option<Instant> {
        let nanos =
            self.estimates.get(&entry.chunk().function()).map_or(0, |estimate| estimate.ended);
        let patience = Duration::from_nanos(u64::from(FEW) * u64::from(nanos)) + SLOW_START;
        Some(self.first? + entry.at() + patience)
    }

    pub(super) fn resolve_queue(&mut self, error: &TaskError, out: &mut Actions<C>) {
        let (bound, for_tokens) =
            (std::mem::take(&mut self.bound), std::mem::take(&mut self.tokens.lines));
        self.resolve_lines(bound, error, out);
        self.resolve_lines(for_tokens, error, out);
        for task in std::mem::take(&mut self.queue).iter() {
            if self.tasks.get(task).is_some_and(Entry::is_queued) {
                let entry = self.tasks.remove(task).expect("looked at above");
                out.push(resolve(entry.into_chunk(), error.clone()));
            }
        }
        self.queued = 0;
    }
}
