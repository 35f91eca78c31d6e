//! What the scheduler tells about workers and tasks when it is asked: see
//! [`stats`](crate::pool::stats).

use std::time::Instant;

use super::{
    Scheduler,
    claims::Claims,
    task::{Entry, Scheduled, item_id},
    worker::{Worker, WorkerState},
};
use crate::{
    id::{TaskId, WorkerId},
    pool::stats::WorkerStatus,
    transport::board::Begun,
};

/// What the scheduler has counted since the pool was created.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Number of tasks that were submitted, including those that were refused.
    pub(crate) submitted: u64,
    /// Number of workers that were started or could not be.
    pub(crate) started: u64,
    /// Number of those that have ended.
    pub(super) ended: u64,
    /// Number of workers that were started after another one had ended, each for one of those.
    pub(crate) restarted: u64,
    /// Number of workers that have ended although nobody wanted that.
    pub(crate) lost: u64,
}

impl Counted {
    pub(super) fn started(&mut self) {
        self.started += 1;
        self.restarted += u64::from(self.restarted < self.ended);
    }
}

/// One worker.
pub(crate) struct Row {
    pub(crate) id: WorkerId,
    pub(crate) index: u32,
    pub(crate) status: WorkerStatus,
    pub(crate) since: Instant,
    /// The key of the chunk that the worker runs, the task in it, and since when it runs.
    pub(crate) task: Option<(TaskId, TaskId, Instant)>,
    pub(crate) answered: u64,
}

impl<C: Scheduled> Scheduler<C> {
    pub(crate) fn counted(&self) -> Counted {
        self.counted
    }

    /// Returns an unresolved chunk by the key that a [`Row`] has.
    pub(crate) fn chunk(&self, key: TaskId) -> Option<&C> {
        self.tasks.get(key).map(Entry::chunk)
    }

    /// Returns a row for each worker, in the order in which they were started.
    pub(crate) fn rows(&self, claims: &dyn Claims) -> Vec<Row> {
        self.workers.iter().map(|(id, worker)| self.row(*id, worker, claims)).collect()
    }

    fn row(&self, id: WorkerId, worker: &Worker, claims: &dyn Claims) -> Row {
        let task = self.running_on(id, worker, claims);
        let idle_since = worker.in_flight.front_since();
        let since = match worker.state() {
            WorkerState::Starting { since }
            | WorkerState::Initializing { since }
            | WorkerState::Stopping { since, .. } => since,
            WorkerState::Ready => task.map_or(idle_since, |(_, _, since)| since),
        };
        let (status, since) = match worker.state() {
            _ if !worker.is_wanted() || worker.has_ended() => (WorkerStatus::Ending, since),
            _ if worker.is_leaving() => (WorkerStatus::Leaving, since),
            WorkerState::Stopping { .. } => (WorkerStatus::Leaving, since),
            _ if let Some(stopped) = worker.stopped() => (WorkerStatus::Stopped, stopped),
            WorkerState::Starting { .. } => (WorkerStatus::Starting, since),
            WorkerState::Initializing { .. } => (WorkerStatus::Initializing, since),
            WorkerState::Ready if worker.in_flight.is_empty() && worker.reports().is_none() => {
                (WorkerStatus::Idle, since)
            }
            WorkerState::Ready => (WorkerStatus::Busy, since),
        };
        Row { id, index: worker.index(), status, since, task, answered: worker.answered() }
    }

    /// Returns the number of tasks that workers have begun and not answered.
    pub(crate) fn running(&self, claims: &dyn Claims) -> usize {
        let workers = self.workers.iter();
        workers.filter(|(id, worker)| self.running_on(**id, worker, claims).is_some()).count()
    }

    /// Returns the key of the chunk that a worker runs, the task in it, and since when it runs.
    fn running_on(
        &self,
        id: WorkerId,
        worker: &Worker,
        claims: &dyn Claims,
    ) -> Option<(TaskId, TaskId, Instant)> {
        let front = worker.in_flight.front()?;
        let chunk = self.tasks.get(front.chunk())?.chunk();
        let items = chunk.items();
        let since = worker.in_flight.front_since();
        let (item, at) = match claims.begun(id, front.seq()) {
            // Otherwise the item was answered, and the next one has not begun.
            Begun::Yes(item, at) if (items.first..items.count).contains(&item) => (item, at),
            _ => return None,
        };
        let began = front.began().or(at).unwrap_or(since).max(since);
        Some((front.chunk(), item_id(chunk.base(), item), began))
    }
}
