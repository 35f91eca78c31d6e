//! When the limits on waiting for a worker pass.
//!
//! ```text
//!  on_submit ──► heap of (when, task) ──► next_deadline: the earliest
//!                     │
//!                  on_tick ──► due: taken back and resolved, unless the task has begun
//! ```

use std::{cmp::Reverse, collections::BinaryHeap, time::Instant};

use super::{
    Scheduler,
    action::Actions,
    claims::Claims,
    task::{Entry, Scheduled},
};
use crate::{
    error::{Phase, TaskError},
    id::TaskId,
    pool::task_table::TaskTable,
};

/// Number of entries from which on those of ended tasks are removed.
const SWEEP_FROM: usize = 1024;

/// The limits on waiting, the earliest first.
///
/// Each costs the logarithm of their number when the task comes and when the limit passes. The
/// entry of a task that has ended meanwhile stays for a while, because searching for it would take
/// long.
pub(super) struct Waits {
    heap: BinaryHeap<Reverse<(Instant, TaskId)>>,
    /// At this length, entries of ended tasks are removed. That is at least twice the number that
    /// was left the last time, so that this costs a constant for each task.
    sweep_at: usize,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { heap: BinaryHeap::new(), sweep_at: SWEEP_FROM }
    }
}

impl Waits {
    /// Returns when the earliest limit passes. Its task may have begun or ended.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Adds a limit. `counts` says whether an entry still counts.
    fn add(&mut self, at: Instant, task: TaskId, counts: impl Fn(Instant, TaskId) -> bool) {
        if self.heap.len() >= self.sweep_at {
            self.heap.retain(|Reverse((at, task))| counts(*at, *task));
            self.sweep_at = SWEEP_FROM.max(2 * self.heap.len());
        }
        self.heap.push(Reverse((at, task)));
    }

    /// Removes the entries at the front that are due or do not count, up to the first one that
    /// counts. Returns its task if it is due.
    fn next_due(
        &mut self,
        now: Instant,
        counts: impl Fn(Instant, TaskId) -> bool,
    ) -> Option<TaskId> {
        while let Some(Reverse((at, task))) = self.heap.peek() {
            let (due, task, counts) = (*at <= now, *task, counts(*at, *task));
            if counts && !due {
                return None;
            }
            self.heap.pop();
            if counts {
                return Some(task);
            }
        }
        None
    }

    pub(super) fn clear(&mut self) {
        *self = Waits::default();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

/// Returns whether a task waits for a worker until then. A task that is tried again waits until
/// another time.
fn waits_until<C: Scheduled>(tasks: &TaskTable<Entry<C>>, task: TaskId, at: Instant) -> bool {
    tasks.get(task).is_some_and(|entry| {
        !entry.is_held() && entry.chunk().queue_until().is_some_and(|until| until == at)
    })
}

impl<C: Scheduled> Scheduler<C> {
    /// Adds the limit on a task's wait, if it has one.
    #[inline]
    pub(super) fn add_wait(&mut self, task: TaskId, until: Option<Instant>) {
        if let Some(until) = until {
            let tasks = &self.tasks;
            self.waits.add(until, task, |at, task| waits_until(tasks, task, at));
        }
    }

    /// Ends the tasks that have waited for a worker for too long. Returns whether there were any.
    pub(super) fn end_waits(
        &mut self,
        now: Instant,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let mut any = false;
        loop {
            let tasks = &self.tasks;
            let Some(task) = self.waits.next_due(now, |at, task| waits_until(tasks, task, at))
            else {
                return any;
            };
            let timeout = self.tasks.get(task).map(Entry::chunk).map(C::queue_timeout);
            let error = TaskError::timed_out(timeout.unwrap_or_default(), Phase::Queue);
            // A task that cannot be withdrawn has begun, and its limit is over.
            any |= self.withdraw(now, task, error, claims, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_of_ended_tasks_do_not_pile_up_and_no_other_is_lost() {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_micros(n);
        let exists = |_: Instant, task: TaskId| task.as_u64().is_multiple_of(1_000);
        let mut waits = Waits::default();
        for n in (1..=100_000).rev() {
            waits.add(at(n), TaskId::from_raw(n), exists);
            assert!(waits.len() <= SWEEP_FROM, "{} entries", waits.len());
        }
        assert_eq!(waits.next_due(start, exists), None);
        assert_eq!(waits.next(), Some(at(1_000)), "those before it have ended");
        for n in (1_000..=100_000).step_by(1_000) {
            assert_eq!(waits.next_due(at(n - 1), exists), None);
            assert_eq!(waits.next_due(at(n), exists), Some(TaskId::from_raw(n)));
        }
        assert_eq!(waits.next_due(at(u64::from(u32::MAX)), exists), None);
        assert!(waits.is_empty());
    }
}
