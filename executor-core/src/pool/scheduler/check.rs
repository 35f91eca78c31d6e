//! What must be true between any two events. The simulation checks it after each.

use super::{
    Intake, Scheduler,
    placement::START_COST,
    queue::QUEUE_SLACK,
    task::{Scheduled, TaskState},
    worker::Worker,
};
use crate::transport::board::SLOTS;

impl<C: Scheduled> Scheduler<C> {
    /// Checks what must be true between any two events.
    pub(crate) fn check(&self) {
        let queued = self.tasks.values().filter(|entry| entry.state == TaskState::Queued).count();
        assert_eq!(queued, self.queued, "the queue's count");
        let waiting = self.queue.iter().filter(|chunk| {
            self.tasks.get(**chunk).is_some_and(|entry| entry.state == TaskState::Queued)
        });
        assert_eq!(waiting.count(), queued, "each queued chunk waits in the queue once");
        assert!(
            self.queue.len() <= 2 * self.queued + QUEUE_SLACK + SLOTS,
            "ids of cancelled tasks pile up"
        );
        let mut sent = 0;
        for (id, worker) in &self.workers {
            sent += worker.in_flight.len();
            let mut load = 0;
            for in_flight in &worker.in_flight {
                let entry = &self.tasks[in_flight.chunk];
                assert!(entry.state == TaskState::Sent(*id), "state of {:?}", in_flight.chunk);
                assert_eq!(entry.chunk.left(), in_flight.left, "items of {:?}", in_flight.chunk);
                load += u64::from(in_flight.estimate) * u64::from(in_flight.left);
            }
            assert_eq!(load, worker.load, "load of {id:?}");
            if let (Some(front), Some(back)) = (worker.in_flight.front(), worker.in_flight.back()) {
                assert!(
                    back.seq.wrapping_sub(front.seq) < SLOTS as u32,
                    "two sendings in one slot"
                );
            }
            assert_eq!(worker.counted, worker.has_waiting(), "{id:?} is counted");
            let idle = worker.is_useful() && worker.in_flight.is_empty();
            assert_eq!(idle, self.idle.contains(id), "{id:?} is idle");
        }
        assert_eq!(sent, self.tasks.len() - queued, "what is sent is in flight once");
        let timed = self
            .tasks
            .values()
            .filter(|entry| entry.state != TaskState::Queued && entry.chunk.timeout().is_some())
            .count();
        assert_eq!(timed, self.timed, "the count of timed tasks");
        let working = !matches!(self.intake, Intake::Broken(_) | Intake::Killed);
        assert!(
            !working || self.queued == 0 || self.idle.is_empty() || self.rebalance_at.is_some(),
            "a worker is idle while work is queued"
        );
        let waits =
            |worker: &Worker| worker.is_useful() && worker.waits_until(START_COST).is_some();
        assert!(
            !working
                || !self.could_grow()
                || self.rebalance_at.is_some()
                || !self.workers.values().any(waits),
            "a task waits behind another one, and nobody is going to look"
        );
        assert!(self.workers.len() <= self.config.workers_max, "too many workers");
        assert!(
            !self.lacks_workers() || self.no_start_before.is_some() || self.next_worker == 0,
            "too few workers"
        );
    }
}
