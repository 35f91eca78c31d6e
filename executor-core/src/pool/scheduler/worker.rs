//! The scheduler's record of one worker: its state, and what was sent to it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    estimate::FEW,
    placement::{REBALANCE, START_COST},
    termination::Termination,
};
use crate::{id::TaskId, transport::board::SLOTS};

/// The state of one worker.
pub(super) struct Worker {
    pub(super) state: WorkerState,
    /// What was sent to the worker, in the order sent. The first sending runs. The others were sent
    /// ahead.
    pub(super) in_flight: VecDeque<InFlight>,
    /// The number of the next sending.
    pub(super) next_seq: u32,
    /// Estimated running time of everything in flight, in nanoseconds.
    pub(super) load: u64,
    /// How many more tasks the worker may get, if there is a limit.
    pub(super) budget: Option<u32>,
    /// When the first sending in flight became the first. It cannot have begun earlier.
    pub(super) front_since: Instant,
    /// Since when the worker has been seen stopped by a signal. A stopped worker gets no tasks.
    pub(super) stopped: Option<Instant>,
    /// Whether the process has ended. What it had published may still have to be read.
    pub(super) ended: bool,
    /// Whether the worker is counted in [`with_waiting`](super::Scheduler::with_waiting).
    pub(super) counted: bool,
    /// The last value of [`taken_in`](super::Claims::taken_in) that was new, and when it was seen.
    pub(super) taken_in: Option<(u64, Instant)>,
    pub(super) termination: Option<Termination>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum WorkerState {
    Starting { since: Instant },
    Initializing { since: Instant },
    Ready,
    Stopping { since: Instant },
}

impl Worker {
    pub(super) fn new(now: Instant, budget: Option<u32>) -> Self {
        Worker {
            state: WorkerState::Starting { since: now },
            in_flight: VecDeque::new(),
            next_seq: 1,
            load: 0,
            budget,
            front_since: now,
            stopped: None,
            ended: false,
            counted: false,
            taken_in: None,
            termination: None,
        }
    }

    /// Returns whether the board has a free slot for another sending, and the worker may have
    /// another task.
    pub(super) fn has_room(&self) -> bool {
        !self.is_spent() && self.has_slot()
    }

    /// Returns whether the worker has had all the tasks that it may have.
    pub(super) fn is_spent(&self) -> bool {
        self.budget == Some(0)
    }

    /// Returns tasks to the budget that were sent to the worker and taken back.
    pub(super) fn gives_back(&mut self, tasks: u32) {
        self.budget = self.budget.map(|budget| budget + tasks);
    }

    pub(super) fn has_slot(&self) -> bool {
        self.in_flight
            .front()
            .is_none_or(|front| self.next_seq.wrapping_sub(front.seq) < SLOTS as u32)
    }

    pub(super) fn is_useful(&self) -> bool {
        self.state == WorkerState::Ready
            && self.termination.is_none()
            && self.stopped.is_none()
            && !self.ended
    }

    /// Returns whether the first sending should have ended by now.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.in_flight.front().is_some_and(|front| {
            let takes = Duration::from_nanos(u64::from(front.estimate)) + REBALANCE;
            now.saturating_duration_since(self.front_since) >= takes
        })
    }

    /// Returns whether the running task is expected to end soon: its estimate is short, and it has
    /// not run for longer than its [`patience`](InFlight::patience).
    pub(super) fn ends_soon(&self, now: Instant, floor: Duration) -> bool {
        self.in_flight.front().is_none_or(|front| {
            Duration::from_nanos(u64::from(front.estimate)) <= START_COST
                && now.saturating_duration_since(self.front_since) < front.patience(floor)
        })
    }

    /// Returns whether a task waits behind another one at this worker. The later items of a chunk
    /// count as waiting tasks.
    pub(super) fn has_waiting(&self) -> bool {
        self.in_flight.len() > 1 || self.in_flight.front().is_some_and(|front| front.left > 1)
    }

    /// Updates the number of workers with waiting tasks. Called after each change of what is in
    /// flight.
    pub(super) fn count_waiting(&mut self, workers: &mut usize) {
        let waiting = self.has_waiting();
        if waiting != self.counted {
            self.counted = waiting;
            *workers = if waiting { *workers + 1 } else { *workers - 1 };
        }
    }

    /// Returns when a task behind the first one will have waited for too long.
    pub(super) fn waits_until(&self, floor: Duration) -> Option<Instant> {
        let front = self.in_flight.front().filter(|front| front.left > 1);
        let waiting = front.into_iter().chain(self.in_flight.iter().skip(1));
        waiting.map(|sent| sent.at + sent.patience(floor)).min()
    }

    /// Returns the estimated running time of the tasks behind the one that runs.
    pub(super) fn ahead(&self) -> u64 {
        self.load - self.in_flight.front().map_or(0, |front| u64::from(front.estimate))
    }
}

/// A sending: a chunk that is with a worker.
#[derive(Clone, Copy)]
pub(super) struct InFlight {
    pub(super) chunk: TaskId,
    pub(super) seq: u32,
    /// Estimated running time of one item, in nanoseconds.
    pub(super) estimate: u32,
    /// The same estimate from calls that have ended. [`patience`](Self::patience) uses it, because
    /// raising `estimate` while a task runs must not let tasks wait for longer.
    pub(super) ended: u32,
    /// Number of unresolved items of the chunk.
    pub(super) left: u32,
    pub(super) at: Instant,
    /// The time limit is not checked before this.
    pub(super) look_at: Instant,
    /// When the task began, as the worker reported it first. If the worker reports another time
    /// later, the limit does not move.
    pub(super) began: Option<Instant>,
}

impl InFlight {
    /// Returns how long the sending may wait behind another one.
    pub(super) fn patience(&self, floor: Duration) -> Duration {
        Duration::from_nanos(u64::from(FEW) * u64::from(self.ended)) + floor
    }
}
