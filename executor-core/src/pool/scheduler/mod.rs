//! Decides which worker runs which task: events in, actions out. It does no I/O, reads no clock,
//! and has no thread.
//!
//! ```text
//!  task    Queued ──send──► Sent(worker, slot) ──reply──► resolved
//!            ▲ │                │      │
//!            │ └─cancel─► resolved     └─ worker exits: begun → resolved with why, not begun ─┐
//!            ├──────────── taken back, or given back by a dead worker, in order ◄────────────┘
//!            └──retry── Held ◄── an attempt of a task with retries has failed
//!
//!  worker  Starting ──hello──► Initializing ──ready──► Ready ──stop──► Stopping
//!             leaving: takes no task, and is stopped once it is Ready and has none
//!             └───────────────────┴─── any ── termination ──┴──────────────┴──► exit ──► forgotten
//!
//!  pool    Open ──shutdown──► Draining        Open, Draining ──kill──► Killed
//!                                             any ──restart limit, initializer──► Broken(cause)
//! ```
//!
//! Only the scheduler knows which tasks exist ([`Entry`]) and in which state a worker is
//! ([`Worker`]). It is deterministic: the same events give the same actions, so a seeded simulation
//! ([`sim`](super::sim)) can take it through thousands of crashes without starting a process.
//!
//! Tasks are submitted in a *chunk*: calls of one function with consecutive ids, most often a
//! single call. The items of a chunk begin, end and fail one by one. A chunk is only the unit in
//! which they are sent, and it is split when a part of it goes elsewhere.
//!
//! One impl of [`Scheduler`] is spread over the files of this folder:
//!
//! ```text
//!  events in     broadcast, replies, cancel, lifecycle, life, shutdown, attempts, deadlines (time);
//!                `on_submit` in queue
//!  decisions     placement, bound, tokens, rebalance, restarts, spares, termination, verdict (a
//!                worker has ended)
//!  records       task, worker, in_flight, termination, state, estimate, queue, line, waits
//!  asked         claims, and `Scheduled` in task
//!  tells         rows
//!  actions out   action
//! ```
//!
//! Two rules carry the promises to the user:
//!
//! - *A worker's death fails only the tasks that it had begun.* A task is begun by a
//!   compare-and-swap on the worker's board, which the scheduler reads through [`Claims`]. So after
//!   a death it is certain whether the task had begun.
//! - *No task is killed because of another task.* Before a worker is killed for a task's timeout
//!   or cancellation, everything behind that task is taken back. If something behind it has begun
//!   already, the task has ended, and the worker is not killed.

mod action;
mod attempts;
mod bound;
mod broadcast;
mod cancel;
#[cfg(test)]
mod check;
mod claims;
mod deadlines;
mod estimate;
mod in_flight;
mod life;
mod lifecycle;
mod line;
mod lines;
mod placement;
mod queue;
mod rebalance;
mod replies;
mod restarts;
mod rows;
mod shutdown;
mod spares;
mod state;
mod task;
mod termination;
mod tokens;
mod verdict;
mod waits;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

pub(crate) use action::{Action, End, Replied, ReplyToNobody};
use attempts::Held;
pub(crate) use claims::Claims;
use estimate::Estimate;
use in_flight::Sending;
pub(crate) use life::Lifespan;
pub(crate) use lifecycle::Stopped;
use line::Line;
use lines::Lines;
use rows::Counted;
use shutdown::Ending;
pub(crate) use shutdown::Shutdown;
use state::PoolState;
use task::Entry;
pub(crate) use task::Scheduled;
pub(crate) use termination::Graces;
use tokens::Tokens;
use waits::Waits;
use worker::Worker;

use super::task_table::TaskTable;
use crate::{
    id::{FnId, TaskId, WorkerId},
    transport::board::Begun,
};

/// Settings of a pool. Once its driver runs, only `workers_max` changes.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) workers_max: usize,
    /// Number of workers that are started in advance, and replaced when they end. If it is above
    /// `workers_max`, all workers are.
    pub(crate) workers_min: usize,
    /// The name of the initializer, which a worker runs before it takes tasks. If `workers_min` is
    /// not 0, a shutdown lets workers that are starting run it although there are no tasks, because
    /// it may be all that the user wants.
    pub(crate) initializer: Option<Box<str>>,
    pub(crate) initializer_timeout: Duration,
    /// The name of the finalizer, which a worker runs when it is asked to leave.
    pub(crate) finalizer: Option<Box<str>>,
    pub(crate) finalizer_timeout: Duration,
    pub(crate) graces: Graces,
    /// With isolation of tasks, the number of workers that are kept ready beside those that run.
    /// `tasks_max` is 1 then.
    pub(crate) spares: Option<usize>,
    /// Number of tasks after which a worker leaves.
    pub(crate) tasks_max: Option<u32>,
    pub(crate) lifespan: Lifespan,
    /// How long it may take from the order to start a worker until its process exists, in addition
    /// to `start_timeout`.
    pub(crate) launch_timeout: Duration,
    pub(crate) start_timeout: Duration,
    /// Number of workers that can run at the same time.
    pub(crate) processors: usize,
    /// How long a worker may report an error, if workers do that.
    pub(crate) report_timeout: Option<Duration>,
    /// The number of tokens of each resource.
    pub(crate) resources: Box<[u32]>,
}

pub(crate) struct Scheduler<C> {
    config: Config,
    /// When the first task was submitted.
    first: Option<Instant>,
    tasks: TaskTable<Entry<C>>,
    /// Ids of queued chunks, in the order of their turns. The id of a cancelled chunk stays here,
    /// and is skipped when its turn comes.
    queue: Line,
    /// Number of chunks in the queue that were not cancelled.
    queued: usize,
    /// The chunks that wait for one worker. They are not in the queue.
    bound: Lines<u32>,
    /// The chunks that wait for tokens. They are not in the queue.
    tokens: Tokens,
    workers: BTreeMap<WorkerId, Worker>,
    /// Ready workers with nothing to do. The worker that was busy last is at the end, because its
    /// caches are warm.
    idle: Vec<WorkerId>,
    /// Smoothed running time of each function.
    estimates: HashMap<FnId, Estimate, crate::id::IdHasher>,
    /// The busy worker that was last given a short task ahead.
    favourite: Option<WorkerId>,
    /// The function of the tiny task that was last given to a busy worker.
    tiny: Option<FnId>,
    /// Number of workers where tasks wait behind the first one. If it is 0, as with one call after
    /// the other, no event has to look at each worker.
    with_waiting: usize,
    /// When to check for tasks that have waited for too long.
    rebalance_at: Option<Instant>,
    /// Workers that leave when they have ended what they have begun.
    leaving: Vec<WorkerId>,
    /// When to check for workers that are to leave.
    life_at: Option<Instant>,
    /// Whether tasks have waited at an event since the check was set.
    waits_again: bool,
    /// Number of chunks with a timeout that are with workers.
    timed: usize,
    /// When tasks have waited for a worker for too long.
    waits: Waits,
    /// Tasks whose last attempt has failed.
    held: Held,
    /// Whether tasks of broadcasts may wait for their workers.
    any_broadcast: bool,
    /// Whether a shutdown has cancelled what had not begun, so that no attempt begins any more.
    cancels_pending: bool,
    counted: Counted,
    next_worker: u32,
    state: PoolState,
    ending: Ending,
    ever_ready: bool,
    start_failures: VecDeque<Instant>,
    /// When workers have died right after they were ready.
    young_deaths: VecDeque<Instant>,
    /// Number of failed starts in a row while other workers worked.
    refusals: u32,
    no_start_before: Option<Instant>,
    closed: bool,
}

impl<C: Scheduled> Scheduler<C> {
    pub(crate) fn new(config: Config) -> Self {
        let tokens = Tokens::new(config.resources.clone());
        Scheduler {
            config,
            first: None,
            tasks: TaskTable::default(),
            queue: Line::default(),
            queued: 0,
            bound: Lines::default(),
            tokens,
            workers: BTreeMap::new(),
            idle: Vec::new(),
            estimates: HashMap::default(),
            favourite: None,
            tiny: None,
            with_waiting: 0,
            rebalance_at: None,
            leaving: Vec::new(),
            life_at: None,
            waits_again: false,
            timed: 0,
            waits: Waits::default(),
            held: Held::default(),
            any_broadcast: false,
            cancels_pending: false,
            counted: Counted::default(),
            next_worker: 0,
            state: PoolState::new(),
            ending: Ending::default(),
            ever_ready: false,
            start_failures: VecDeque::new(),
            young_deaths: VecDeque::new(),
            refusals: 0,
            no_start_before: None,
            closed: false,
        }
    }

    /// Returns whether an unresolved chunk has an id below this one.
    pub(crate) fn has_before(&self, id: TaskId) -> bool {
        self.tasks.has_before(id)
    }

    /// Whether there are no more tasks than workers.
    ///
    /// Then the reply to a task can come within microseconds. With more tasks, a caller that looks
    /// for its own reply takes those of others one by one, which the reader would take together: a
    /// thousand awaiting tasks were slower by a quarter.
    pub(crate) fn has_few_tasks(&self) -> bool {
        self.tasks.len() <= self.config.workers_max
    }

    /// Returns whether any task is unresolved, or a worker has not reported that it is ready.
    pub(crate) fn expects_replies(&self) -> bool {
        !self.tasks.is_empty() || self.workers.values().any(Worker::is_coming_up)
    }

    /// Returns whether a worker has begun this task.
    pub(crate) fn is_running(&self, task: TaskId, claims: &dyn Claims) -> bool {
        let Some(worker) = self.tasks.get(task).and_then(Entry::worker) else { return false };
        self.seq_of(worker, task).is_some_and(|seq| claims.begun(worker, seq) != Begun::No)
    }

    fn seq_of(&self, worker: WorkerId, chunk: TaskId) -> Option<u32> {
        self.workers.get(&worker)?.in_flight.get(chunk).map(Sending::seq)
    }

    /// Returns the estimated running time of a call of this function, if there is an estimate.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        self.estimates
            .get(&function)
            .map(|estimate| Duration::from_nanos(u64::from(estimate.nanos)))
    }

    #[cfg(test)]
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Returns whether a worker leaves when it has ended what it has begun.
    #[cfg(test)]
    pub(crate) fn leaves(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(Worker::is_leaving)
    }

    /// Returns the estimate from calls of this function that have ended.
    #[cfg(test)]
    pub(crate) fn ended_estimate(&self, function: FnId) -> Duration {
        self.estimates
            .get(&function)
            .map_or(Duration::ZERO, |estimate| Duration::from_nanos(u64::from(estimate.ended)))
    }

    /// Returns the number of queued chunks, and of chunks that are with workers.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        // Those of broadcasts wait for their workers, and are in no queue.
        let broadcasts = self.tasks.values().filter(|entry| entry.awaits().is_some()).count();
        let waiting = self.waiting() + broadcasts;
        (waiting, self.tasks.len() - waiting - self.held.len())
    }
}
