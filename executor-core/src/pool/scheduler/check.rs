//! What must be true between any two events. The simulation checks it after each.

use std::collections::BTreeSet;

use super::{
    Scheduler, placement::START_COST, queue::QUEUE_SLACK, task::Scheduled, tokens::resources_of,
    worker::Worker,
};
use crate::transport::board::SLOTS;

impl<C: Scheduled> Scheduler<C> {
    /// Returns how often the scheduler has looked for a task.
    pub(crate) fn lookups(&self) -> u64 {
        self.tasks.lookups()
    }

    /// Checks what must be true between any two events.
    pub(crate) fn check(&mut self) {
        let next = self.next_with_tokens();
        let queued = self.tasks.values().filter(|entry| entry.is_queued()).count();
        assert_eq!(queued, self.waiting(), "the counts of the queue and of the lines");
        let in_lines = self.bound.iter().filter(|(worker, chunk)| {
            let entry = self.tasks.get(*chunk).filter(|entry| entry.is_queued());
            assert!(entry.is_none_or(|entry| entry.chunk().bound_to() == Some(*worker)));
            entry.is_some()
        });
        assert_eq!(in_lines.count(), self.bound.queued(), "each bound chunk is in its line once");
        let in_lines = self.tokens.lines.iter().filter(|(resources, chunk)| {
            let entry = self.tasks.get(*chunk).filter(|entry| entry.is_queued());
            assert!(entry.is_none_or(|entry| resources_of(entry.chunk().needs()) == *resources));
            entry.is_some()
        });
        assert_eq!(
            in_lines.count(),
            self.tokens.lines.queued(),
            "each is in the line of its resources"
        );
        let mut free = self.config.resources.clone();
        let with_workers = self.tasks.values().filter(|entry| entry.worker().is_some());
        for need in with_workers.flat_map(|entry| entry.chunk().needs()) {
            let left = free[usize::from(need.resource)].checked_sub(need.tokens);
            free[usize::from(need.resource)] = left.expect("more tokens than there are");
        }
        let waiting = self
            .queue
            .iter()
            .filter(|chunk| self.tasks.get(*chunk).is_some_and(|entry| entry.is_queued()));
        assert_eq!(waiting.count(), self.queued, "each queued chunk waits in the queue once");
        assert!(
            self.queue.len() <= 2 * self.queued + QUEUE_SLACK + SLOTS,
            "ids of cancelled tasks pile up"
        );
        let mut sent = 0;
        for (id, worker) in &self.workers {
            sent += worker.in_flight.len();
            let mut load = 0;
            for sending in worker.in_flight.iter() {
                let chunk = sending.chunk();
                let entry = &self.tasks[chunk];
                assert_eq!(entry.worker(), Some(*id), "state of {chunk:?}");
                let (left, its_load) = sending.left_and_load();
                assert_eq!(entry.chunk().left(), left, "items of {chunk:?}");
                load += its_load;
            }
            assert_eq!(load, worker.in_flight.load(), "load of {id:?}");
            if let (Some(front), Some(back)) = (worker.in_flight.front(), worker.in_flight.back()) {
                assert!(
                    back.seq().wrapping_sub(front.seq()) < SLOTS as u32,
                    "two sendings in one slot"
                );
            }
            assert_eq!(
                worker.in_flight.is_counted(),
                worker.in_flight.has_waiting(),
                "{id:?} is counted"
            );
            assert_eq!(worker.is_idle(), self.idle.contains(id), "{id:?} is idle");
            let neglects =
                worker.is_idle() && !worker.in_flight.is_spent() && self.waits_for(worker.index());
            assert!(!neglects || self.state.is_over(), "{id:?} neglects what only it may run");
            for sending in worker.in_flight.iter() {
                let bound_to = self.tasks[sending.chunk()].chunk().bound_to();
                assert_eq!(bound_to.is_some(), worker.in_flight.is_bound());
            }
        }
        let held = self.tasks.values().filter(|entry| entry.is_held()).count();
        assert_eq!(held, self.held.len(), "what is held is known as held");
        let waiting = self.tasks.values().filter_map(|entry| {
            let worker = entry.awaits()?;
            Some((worker, entry.chunk().base()))
        });
        let mut broadcasts = 0;
        for (worker, task) in waiting {
            broadcasts += 1;
            assert!(
                self.workers[&worker].broadcasts.contains(&task),
                "{task:?} waits for {worker:?}"
            );
        }
        for (id, worker) in &self.workers {
            let waits = worker.in_flight.is_empty() && worker.can_begin();
            assert!(!waits || worker.broadcasts.is_empty(), "{id:?} could run what waits for it");
        }
        assert_eq!(
            sent,
            self.tasks.len() - queued - held - broadcasts,
            "what is sent is in flight once"
        );
        let timed = self
            .tasks
            .values()
            .filter(|entry| entry.worker().is_some() && entry.has_timeout())
            .count();
        assert_eq!(timed, self.timed, "the count of timed tasks");
        let working = !self.state.is_over();
        assert!(
            !working
                || self.queued == 0
                || self.idle.is_empty()
                || self.rebalance_at.is_some()
                || self.is_full(),
            "a worker is idle while work is queued"
        );
        assert!(
            !working
                || next.is_none()
                || self.idle.is_empty()
                || self.rebalance_at.is_some()
                || self.is_full(),
            "a worker is idle while a chunk could have its tokens"
        );
        let waits = |worker: &Worker| {
            worker.is_working()
                && !worker.in_flight.is_bound()
                && worker.in_flight.waits_until(START_COST).is_some()
        };
        assert!(
            !working
                || !self.could_grow()
                || self.rebalance_at.is_some()
                || !self.workers.values().any(waits),
            "a task waits behind another one, and nobody is going to look"
        );
        // With isolation, workers that have had their task are many after the pool has shrunk. They
        // leave when they have come up, or have reported an error.
        let counts = |worker: &&Worker| {
            worker.stays() && (worker.is_spare() || !worker.in_flight.is_empty())
        };
        let staying = match self.config.spares {
            None => self.staying(),
            Some(_) => self.workers.values().filter(counts).count(),
        };
        assert!(staying <= self.workers_limit(), "too many workers");
        for (id, worker) in &self.workers {
            let leaves = worker.is_leaving() && worker.may_be_recalled();
            assert!(!leaves || self.leaving.contains(id), "{id:?} is leaving");
            assert!(
                !leaves
                    || !worker.is_working()
                    || !worker.in_flight.is_empty()
                    || !worker.broadcasts.is_empty()
                    || worker.reports().is_some(),
                "{id:?} is not asked to leave"
            );
        }
        let indices: BTreeSet<_> = self.workers.values().map(Worker::index).collect();
        assert_eq!(indices.len(), self.workers.len(), "two workers have one index");
        assert!(
            self.config.spares.is_none()
                || self.occupied_to_stay() <= self.config.workers_max
                    && self.workers.values().all(|worker| worker.in_flight.len() <= 1),
            "each task has a worker of its own"
        );
        assert!(
            !self.lacks_workers() || self.no_start_before.is_some() || self.next_worker == 0,
            "too few workers"
        );
    }
}
