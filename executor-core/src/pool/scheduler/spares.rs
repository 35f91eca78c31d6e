//! Isolation of tasks: each task has a worker of its own, and further workers are kept ready.
//!
//! ```text
//!  starting ─► spare ──its task──► running ──reply──► leaving ─► forgotten
//!  └─ as many as `spares` ─┘       └ workers_max ┘    (its successor runs already)
//! ```

use super::{Scheduler, claims::Claims, task::Scheduled, worker::Worker};
use crate::id::WorkerId;

impl<C: Scheduled> Scheduler<C> {
    /// Returns how many workers there may be.
    ///
    /// With isolation, these are those that run, the spare ones, and as many that leave: a task
    /// need not wait for the end of the process that has run the one before. A worker may take long
    /// to leave, because of its exit hooks. So there has to be a limit.
    pub(super) fn workers_limit(&self) -> usize {
        match self.config.spares {
            None => self.config.workers_max,
            Some(spares) => self.config.workers_max.saturating_add(spares).saturating_mul(2),
        }
    }

    /// Returns whether no other task may begin, although a worker may be idle.
    pub(super) fn is_full(&self) -> bool {
        self.config.spares.is_some() && self.occupied() >= self.config.workers_max
    }

    /// Returns whether there are fewer spare workers than there should be.
    pub(super) fn lacks_spares(&self) -> bool {
        let spare = |worker: &&Worker| worker.is_spare();
        // While the pool drains, workers are only needed for what is left to do.
        self.state.is_open()
            && self.workers.len() < self.workers_limit()
            && self
                .config
                .spares
                .is_some_and(|spares| self.workers.values().filter(spare).count() < spares)
    }

    /// Lets workers leave that are too many since fewer tasks may run: of those that run, what they
    /// have not begun goes back to the queue. Returns how many leave only after a task.
    pub(super) fn shrink_isolated(&mut self, spares: usize, claims: &dyn Claims) -> usize {
        let workers_max = self.config.workers_max;
        let running = |worker: &Worker| !worker.in_flight.is_empty();
        let too_many = self.occupied_to_stay().saturating_sub(workers_max);
        let mut busy = 0;
        for id in self.least_missed(too_many, running) {
            self.let_go(id, 0, claims);
            busy += usize::from(!self.workers[&id].in_flight.is_empty());
        }
        // A worker that is about to end makes room for one of these.
        let places = workers_max.saturating_sub(self.occupied_to_stay());
        let waiting = self.workers.values().filter(|worker| worker.stays() && worker.is_spare());
        let too_many = waiting.count().saturating_sub(spares.saturating_add(places));
        for id in self.least_missed(too_many, Worker::is_spare) {
            self.let_go(id, 0, claims);
        }
        busy
    }

    /// Returns up to `count` of these workers, and those first whose place is missed least.
    fn least_missed(&self, count: usize, which: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        let stays = self.workers.iter().filter(|(_, worker)| worker.stays() && which(worker));
        let mut by_value: Vec<_> = stays.map(|(id, worker)| (worker.value(), *id)).collect();
        by_value.sort_unstable();
        by_value.into_iter().take(count).map(|(_, id)| id).collect()
    }

    /// Returns whether tasks wait that could begin if there were another worker, with isolation.
    /// `coming` is the number of workers that are coming up.
    pub(super) fn needs_another(&mut self, coming: usize) -> bool {
        let places = self.config.workers_max.saturating_sub(self.occupied());
        let wanted = coming as u64 + 1;
        if (places as u64) < wanted {
            return false;
        }
        let mut waiting = self.count_with_tokens(coming + 1) as u64;
        let chunks = self.queue.iter().filter_map(|chunk| self.tasks.get(chunk));
        for entry in chunks.filter(|entry| entry.is_queued()) {
            if waiting >= wanted {
                return true;
            }
            waiting += u64::from(entry.chunk().left());
        }
        waiting >= wanted
    }

    /// Returns the number of workers that have a task, without those that leave when it ends.
    pub(super) fn occupied_to_stay(&self) -> usize {
        let runs = |worker: &&Worker| worker.stays() && !worker.in_flight.is_empty();
        self.workers.values().filter(runs).count()
    }

    /// Returns the number of workers that have a task.
    pub(super) fn occupied(&self) -> usize {
        self.workers.values().filter(|worker| !worker.in_flight.is_empty()).count()
    }
}
