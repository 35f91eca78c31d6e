//! Decides which worker runs which task: events in, actions out. It does no I/O, reads no clock,
//! and has no thread.
//!
//! ```text
//!  task    Queued ──send──► Sent(worker, slot) ──reply──► resolved
//!            ▲ │                │      │
//!            │ └─cancel─► resolved     └─ worker exits: begun → resolved with why, not begun ─┐
//!            └──────────── taken back, or given back by a dead worker, in order ◄────────────┘
//!
//!  worker  Starting ──hello──► Initializing ──ready──► Ready ──stop──► Stopping
//!             └───────────────────┴───── any ── kill (why) ─┴──────────────┴──► exit ──► forgotten
//!
//!  intake  Open ──shutdown──► Draining        Open, Draining ──kill──► Killed
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
//! Two rules carry the promises to the user:
//!
//! - *A worker's death fails only the tasks that it had begun.* A task is begun by a
//!   compare-and-swap on the worker's board, which the scheduler reads through [`Claims`]. So after
//!   a death it is certain whether the task had begun.
//! - *No task is killed because of another task.* Before a worker is killed for a task's time limit
//!   or cancellation, everything behind that task is taken back. If something behind it has begun
//!   already, the task has ended, and the worker is not killed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::task_table::TaskTable;
use crate::{
    error::{BrokenCause, Phase, TaskError},
    id::{FnId, TaskId, WorkerId},
    transport::board::{Begun, SLOTS},
    wire::frame::Items,
};

/// Amount of work that may be sent to a worker ahead of time, in estimated running time. A higher
/// value lets results of uneven tasks wait behind each other, until another worker is idle and
/// takes them over. A lower value lets a worker run dry while its reply travels (about 100 µs
/// here).
const AHEAD: Duration = Duration::from_micros(300);
/// Tasks that are shorter than this are given to a busy worker, in a pool of more workers than
/// processors. Waking an idle worker costs more than such a task, and takes the processor from a
/// worker that runs. A higher value also affects calls that only wait, such as for a reply over a
/// local socket, and keeps them from waiting side by side.
const SHORT: Duration = Duration::from_micros(10);
/// How long a short task may wait behind a busy worker before an idle one is woken for it. One
/// worker at a time is woken. A lower value mistakes a descheduled worker for a late one.
const REBALANCE: Duration = Duration::from_millis(4);
/// How long a task may wait behind another task, in addition to [`FEW`] of its own estimates,
/// before it goes to another worker. That worker is started if necessary. The value is about what a
/// start takes: a task that waits for less would not gain by it.
const START_COST: Duration = Duration::from_millis(1);
/// How long a chunk of several tasks may wait for a worker to come up, in addition to [`FEW`] of
/// its own estimates, before it is shared among more workers. A worker may take long because it
/// initializes. A lower value starts two workers for work that one would have done right after it
/// had come up.
const SLOW_START: Duration = Duration::from_millis(10);
/// How many of its own estimated running times a task may wait behind another task while another
/// worker could run it.
const FEW: u32 = 4;
/// How long a worker may take to end after it was asked to stop. Then it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a worker may be stopped by a signal before it is killed, if waiting gains nothing: the
/// terminal has stopped it, the pool is shutting down, or it has nothing to do while tasks wait. A
/// lower value kills workers that are stopped for a moment. A worker that runs a task in an open
/// pool may be stopped for as long as a start may last.
const STOPPED_GRACE: Duration = Duration::from_secs(2);
/// How long a worker that the system does not let us signal may take to end itself when asked to.
/// Then it is given up.
const UNSIGNALLED_GRACE: Duration = Duration::from_millis(500);
/// Time between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);
/// Maximum number of chunks sent to one worker before another worker is chosen. A higher value
/// gives all of a short queue to the first worker. A lower value means choosing a worker more
/// often.
const SHARE_MAX: usize = 32;
/// How long a killed worker may take to end. After that it is taken to hang in the kernel, and is
/// given up.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Minimum time before a task's limit is checked again, if the limit may have passed but the task
/// has not begun, or its reply is on its way. With a lower value and a tiny limit, the driver would
/// do nothing else. With a higher value, a tiny limit is enforced late.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Number of workers that may die before they are ready, within [`START_FAILURES_PERIOD`]. Then the
/// pool is broken. These are OTP's restart intensity and period.
const START_FAILURES_MAX: usize = 5;
const START_FAILURES_PERIOD: Duration = Duration::from_secs(10);
/// Number of ids of cancelled tasks that may stay in the queue, in addition to as many ids as tasks
/// are waiting there.
const QUEUE_SLACK: usize = 64;
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
/// After this many workers die with the same unstarted task at the head of their queue, the task is
/// assumed to be what kills them, and fails with `WorkerLost`. The likely cause is a frame that
/// kills every worker that reads it.
const LOST_UNBEGUN_MAX: u8 = 3;

/// The scheduler's view of the workers' boards, where workers record what they have begun. A
/// sending is one chunk that was sent to one worker, and `seq` is its number.
pub(crate) trait Claims {
    /// Returns up to which item a sending has begun.
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun;
    /// Takes back a sending of which nothing has begun. `first` is the first item that was sent.
    /// Returns whether the sending was taken back.
    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool;
    /// Takes back the items behind the one that has begun last. Returns that item, or `None` if
    /// nothing has begun.
    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32>;
    /// Returns how much of the data sent to this worker has been taken in, in any unit. While the
    /// number grows, the worker is still receiving.
    fn taken_in(&self, worker: WorkerId) -> u64;
}

/// What the scheduler needs of a chunk. The pool's chunk also has arguments and a
/// sink for the results; the chunk of the simulation has neither.
pub(crate) trait Scheduled: Sized {
    /// What is sent to a worker.
    type Sending;

    /// Returns the function. Running times are estimated for each function.
    fn function(&self) -> FnId;

    /// Returns the time limit. A chunk of several tasks has none.
    fn timeout(&self) -> Option<Duration>;

    /// Returns the id of item 0.
    fn base(&self) -> TaskId;

    /// Returns the unresolved items. At most the first of them has begun.
    fn items(&self) -> Items;

    /// Removes the first `count` unresolved items: they are resolved.
    fn resolve_first(&mut self, count: u32);

    /// Splits the chunk: keeps the items before `at`, and returns the others as a second chunk.
    fn split_off(&mut self, at: u32) -> Self;

    /// Returns what is to be sent to this worker as the sending `seq`: all unresolved items.
    fn send_to(&self, worker: WorkerId, seq: u32) -> Self::Sending;

    /// Excludes the memory of the arguments from reuse. It is called before the chunk is resolved
    /// if a worker that was given up may still read them.
    fn leave_arguments(&self);

    /// Returns the number of unresolved items.
    fn left(&self) -> u32 {
        let Items { first, count } = self.items();
        count - first
    }
}

/// An action that the pool must perform. `C` is the pool's chunk.
#[derive(Debug)]
pub(crate) enum Action<C: Scheduled> {
    /// Start a process for this worker.
    Start(WorkerId),
    /// Send this to the worker.
    Send(WorkerId, C::Sending),
    /// Ask the worker to leave.
    Stop(WorkerId),
    /// SIGTERM to the worker's group.
    Terminate(WorkerId),
    /// SIGKILL to the worker's group.
    Kill(WorkerId),
    /// Resolve the unresolved items of this chunk. Boxed, because it is rare.
    Resolve(Box<(C, End)>),
    /// All workers have ended, and nothing will ever be done again.
    Closed,
}

/// How a task without a reply ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Error(TaskError),
    /// The worker was lost while it ran the task. The pool knows the reason.
    Lost(WorkerId),
}

/// The items that a reply belongs to.
pub(crate) enum Replied<'a, C> {
    /// The last unresolved items of a chunk, which is complete: the chunk, the first of these
    /// items, and their number.
    Last(C, u32, u32),
    /// Some items of a chunk that has more: the chunk, the first of these items, and their number.
    Items(&'a C, u32, u32),
    /// The reply comes too late: the worker is being killed because of this task.
    Late,
}

/// A chunk in the table of tasks. Its key is the id of its first item when the entry was made.
struct Entry<C> {
    chunk: C,
    place: Place,
    /// When the chunk was submitted, in nanoseconds since [`Scheduler::first`]. A part that was
    /// split off keeps the time of the whole. An `Instant` would make an entry so large that moving
    /// it calls `memcpy`.
    at: u64,
    lost_unbegun: u8,
}

/// If an entry is larger, each insertion and each removal calls `memcpy`, which costs 4 % of a
/// no-op task.
const _: () = assert!(size_of::<Entry<[u64; 13]>>() <= 128);

fn item_id(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Queued,
    Sent(WorkerId),
}

/// The state of one worker.
struct Worker {
    state: WorkerState,
    /// What was sent to the worker, in the order sent. The first sending runs. The others were sent
    /// ahead.
    in_flight: VecDeque<InFlight>,
    /// The number of the next sending.
    next_seq: u32,
    /// Estimated running time of everything in flight, in nanoseconds.
    load: u64,
    /// How many more tasks the worker may get, if there is a limit.
    budget: Option<u32>,
    /// When the first sending in flight became the first. It cannot have begun earlier.
    front_since: Instant,
    /// Since when the worker has been seen stopped by a signal. A stopped worker gets no tasks.
    stopped: Option<Instant>,
    /// Whether the process has ended. What it had published may still have to be read.
    ended: bool,
    /// Whether the worker is counted in [`Scheduler::with_waiting`].
    counted: bool,
    /// The last value of [`Claims::taken_in`] that was new, and when it was seen.
    taken_in: Option<(u64, Instant)>,
    doom: Option<Doom>,
}

impl Worker {
    fn new(now: Instant, budget: Option<u32>) -> Self {
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
            doom: None,
        }
    }

    /// Returns whether the board has a free slot for another sending, and the worker may have
    /// another task.
    fn has_room(&self) -> bool {
        !self.is_spent() && self.has_slot()
    }

    /// Returns whether the worker has had all the tasks that it may have.
    fn is_spent(&self) -> bool {
        self.budget == Some(0)
    }

    /// Returns tasks to the budget that were sent to the worker and taken back.
    fn gives_back(&mut self, tasks: u32) {
        self.budget = self.budget.map(|budget| budget + tasks);
    }

    fn has_slot(&self) -> bool {
        self.in_flight
            .front()
            .is_none_or(|front| self.next_seq.wrapping_sub(front.seq) < SLOTS as u32)
    }

    fn is_useful(&self) -> bool {
        self.state == WorkerState::Ready
            && self.doom.is_none()
            && self.stopped.is_none()
            && !self.ended
    }

    /// Returns whether the first sending should have ended by now.
    fn is_late(&self, now: Instant) -> bool {
        self.in_flight.front().is_some_and(|front| {
            let takes = Duration::from_nanos(u64::from(front.estimate)) + REBALANCE;
            now.saturating_duration_since(self.front_since) >= takes
        })
    }

    /// Returns whether the running task is expected to end soon: its estimate is short, and it has
    /// not run for longer than its [`patience`](InFlight::patience).
    fn ends_soon(&self, now: Instant, floor: Duration) -> bool {
        self.in_flight.front().is_none_or(|front| {
            Duration::from_nanos(u64::from(front.estimate)) <= START_COST
                && now.saturating_duration_since(self.front_since) < front.patience(floor)
        })
    }

    /// Returns whether a task waits behind another one at this worker. The later items of a chunk
    /// count as waiting tasks.
    fn has_waiting(&self) -> bool {
        self.in_flight.len() > 1 || self.in_flight.front().is_some_and(|front| front.left > 1)
    }

    /// Updates the number of workers with waiting tasks. Called after each change of what is in
    /// flight.
    fn count_waiting(&mut self, workers: &mut usize) {
        let waiting = self.has_waiting();
        if waiting != self.counted {
            self.counted = waiting;
            *workers = if waiting { *workers + 1 } else { *workers - 1 };
        }
    }

    /// Returns when a task behind the first one will have waited for too long.
    fn waits_until(&self, floor: Duration) -> Option<Instant> {
        let front = self.in_flight.front().filter(|front| front.left > 1);
        let waiting = front.into_iter().chain(self.in_flight.iter().skip(1));
        waiting.map(|sent| sent.at + sent.patience(floor)).min()
    }

    /// Returns the estimated running time of the tasks behind the one that runs.
    fn ahead(&self) -> u64 {
        self.load - self.in_flight.front().map_or(0, |front| u64::from(front.estimate))
    }
}

/// A sending: a chunk that is with a worker.
#[derive(Clone, Copy)]
struct InFlight {
    chunk: TaskId,
    seq: u32,
    /// Estimated running time of one item, in nanoseconds.
    estimate: u32,
    /// The same estimate from calls that have ended. [`patience`](Self::patience) uses it, because
    /// raising `estimate` while a task runs must not let tasks wait for longer.
    ended: u32,
    /// Number of unresolved items of the chunk.
    left: u32,
    at: Instant,
    /// The time limit is not checked before this.
    look_at: Instant,
    /// When the task began, as the worker reported it first. If the worker reports another time
    /// later, the limit does not move.
    began: Option<Instant>,
}

impl InFlight {
    /// Returns how long the sending may wait behind another one.
    fn patience(&self, floor: Duration) -> Duration {
        Duration::from_nanos(u64::from(FEW) * u64::from(self.ended)) + floor
    }
}

/// Estimated running time of one call of a function, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Estimate {
    nanos: u32,
    /// The estimate from calls that have ended. A call that runs for longer raises `nanos` above
    /// this, until the next call ends.
    ended: u32,
}

impl Estimate {
    fn learn(&mut self, took: u32) {
        // A call was seen to run for longer than `ended`, so the old value says nothing about the
        // next call and is replaced. Otherwise the values are smoothed.
        self.ended = match self.nanos > self.ended {
            true => took,
            false => ((u64::from(self.ended) * 3 + u64::from(took)) / 4) as u32,
        };
        self.nanos = self.ended;
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum WorkerState {
    Starting { since: Instant },
    Initializing { since: Instant },
    Ready,
    Stopping { since: Instant },
}

/// The decision that a worker must end.
#[derive(Clone, Debug)]
struct Doom {
    why: Why,
    /// When to send SIGKILL, if only SIGTERM was sent. After SIGKILL, when to give the worker up.
    next: Instant,
    killed: bool,
}

#[derive(Clone, Debug)]
enum Why {
    /// Because of this task, which ends with this error.
    Task(TaskId, TaskError),
    /// Because the whole pool ends. The tasks that run end with this error.
    Pool(TaskError),
    /// Because it was not ready in time.
    Start,
    /// Because it violated the protocol, was stopped for too long, or did not leave when asked.
    Unruly,
}

enum Intake {
    Open,
    Draining,
    Killed,
    Broken(BrokenCause),
}

/// Settings that do not change while the pool lives.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) workers_max: usize,
    /// Number of workers that are started in advance, and replaced when they end.
    pub(crate) workers_min: usize,
    /// The name of the initializer, which a worker runs before it takes tasks. If `workers_min` is
    /// not 0, a shutdown lets workers that are starting run it although there are no tasks, because
    /// it may be all that the user wants.
    pub(crate) initializer: Option<Box<str>>,
    pub(crate) initializer_timeout: Duration,
    /// Number of tasks after which a worker leaves.
    pub(crate) tasks_max: Option<u32>,
    pub(crate) start_timeout: Duration,
    /// Number of workers that can run at the same time.
    pub(crate) processors: usize,
}

pub(crate) struct Scheduler<C> {
    config: Config,
    /// When the first task was submitted.
    first: Option<Instant>,
    tasks: TaskTable<Entry<C>>,
    /// Ids of queued chunks, oldest first. The id of a cancelled chunk stays here, and is skipped
    /// when its turn comes.
    queue: VecDeque<TaskId>,
    queued: usize,
    workers: BTreeMap<WorkerId, Worker>,
    /// Ready workers with nothing to do. The worker that was busy last is at the end, because its
    /// caches are warm.
    idle: Vec<WorkerId>,
    /// Smoothed running time of each function.
    estimates: HashMap<FnId, Estimate, crate::id::IdHasher>,
    /// The busy worker that was last given a short task ahead.
    favourite: Option<WorkerId>,
    /// Number of workers where tasks wait behind the first one. If it is 0, as with one call after
    /// the other, no event has to look at each worker.
    with_waiting: usize,
    /// When to check for tasks that have waited for too long.
    rebalance_at: Option<Instant>,
    /// Number of chunks with a time limit that are with workers.
    timed: usize,
    next_worker: u32,
    intake: Intake,
    shutdown_deadline: Option<Instant>,
    ever_ready: bool,
    start_failures: VecDeque<Instant>,
    /// Number of failed starts in a row while other workers worked.
    refusals: u32,
    no_start_before: Option<Instant>,
    closed: bool,
}

type Actions<C> = Vec<Action<C>>;

impl<C: Scheduled> Scheduler<C> {
    pub(crate) fn new(config: Config) -> Self {
        Scheduler {
            config,
            first: None,
            tasks: TaskTable::default(),
            queue: VecDeque::new(),
            queued: 0,
            workers: BTreeMap::new(),
            idle: Vec::new(),
            estimates: HashMap::default(),
            favourite: None,
            with_waiting: 0,
            rebalance_at: None,
            timed: 0,
            next_worker: 0,
            intake: Intake::Open,
            shutdown_deadline: None,
            ever_ready: false,
            start_failures: VecDeque::new(),
            refusals: 0,
            no_start_before: None,
            closed: false,
        }
    }

    // ---- questions ------------------------------------------------------------------------------

    /// Returns whether an unresolved chunk has an id below this one.
    pub(crate) fn has_before(&self, id: TaskId) -> bool {
        self.tasks.has_before(id)
    }

    fn timeout_of(&self, chunk: TaskId) -> Option<Duration> {
        self.tasks.get(chunk)?.chunk.timeout()
    }

    /// Returns the estimated running time of a call of this function, if there is an estimate.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        self.estimates
            .get(&function)
            .map(|estimate| Duration::from_nanos(u64::from(estimate.nanos)))
    }

    /// Returns whether a worker has begun this task.
    pub(crate) fn is_running(&self, task: TaskId, claims: &dyn Claims) -> bool {
        let Some(Entry { place: Place::Sent(worker), .. }) = self.tasks.get(task) else {
            return false;
        };
        self.seq_of(*worker, task).is_some_and(|seq| claims.begun(*worker, seq) != Begun::No)
    }

    /// Returns whether this worker may still get work: there is no decision that it must end.
    pub(crate) fn is_wanted(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.doom.is_none())
    }

    /// Returns the latest time for the next call of [`on_tick`](Self::on_tick).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let mut next = self.shutdown_deadline.into_iter().chain(self.rebalance_at).min();
        let mut earliest = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for worker in self.workers.values() {
            match worker.state {
                WorkerState::Starting { since } if worker.doom.is_none() => {
                    if let Some(at) = since.checked_add(self.config.start_timeout) {
                        earliest(at);
                    }
                }
                WorkerState::Initializing { since } if worker.doom.is_none() => {
                    if let Some(at) = since.checked_add(self.config.initializer_timeout) {
                        earliest(at);
                    }
                }
                WorkerState::Stopping { since } if worker.doom.is_none() => {
                    earliest(since + STOP_GRACE)
                }
                _ => {}
            }
            if let Some(doom) = &worker.doom {
                earliest(doom.next);
            } else if self.timed > 0
                && let Some(front) = worker.in_flight.front()
                && let Some(limit) = self.timeout_of(front.chunk)
                && let Some(at) = worker.front_since.checked_add(limit)
            {
                earliest(at.max(front.look_at));
            }
        }
        // The end of the back-off matters only if a worker would be started then.
        if (self.queued > 0 || self.lacks_workers())
            && let Some(at) = self.no_start_before
        {
            earliest(at);
        }
        next
    }

    /// Returns whether an event that starts and ends no worker may have brought a deadline closer.
    pub(crate) fn has_timed(&self) -> bool {
        self.timed > 0 || self.shutdown_deadline.is_some() || self.no_start_before.is_some()
    }

    /// Returns whether any task is unresolved.
    pub(crate) fn has_tasks(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Returns the one deadline that ordinary events set and clear.
    pub(crate) fn rebalance_at(&self) -> Option<Instant> {
        self.rebalance_at
    }

    #[cfg(test)]
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
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
        (self.queued, self.tasks.len() - self.queued)
    }

    // ---- events: tasks --------------------------------------------------------------------------

    /// Accepts a chunk, or resolves it with the reason why it is not accepted.
    pub(crate) fn on_submit(&mut self, now: Instant, chunk: C, out: &mut Actions<C>) {
        if let Some(refusal) = self.refusal() {
            return out.push(resolve(chunk, refusal));
        }
        let at = now.saturating_duration_since(*self.first.get_or_insert(now)).as_nanos() as u64;
        let id = chunk.base();
        let new = self.tasks.insert(id, Entry { chunk, place: Place::Queued, at, lost_unbegun: 0 });
        debug_assert!(new, "a task id is used once");
        self.queue.push_back(id);
        self.queued += 1;
        // If other chunks are before it in the queue, no worker has room: every event ends by
        // giving out as much as possible.
        if self.queued == 1 || self.workers.len() < self.config.workers_max {
            self.dispatch(now, out);
            self.watch(now);
        }
    }

    /// Returns the error for new tasks, if no more are accepted.
    pub(crate) fn refusal(&self) -> Option<TaskError> {
        match &self.intake {
            Intake::Open => None,
            Intake::Draining | Intake::Killed => Some(TaskError::Shutdown),
            Intake::Broken(cause) => Some(TaskError::Broken(cause.clone())),
        }
    }

    /// Returns why the pool is broken, if it is.
    pub(crate) fn broken(&self) -> Option<&BrokenCause> {
        match &self.intake {
            Intake::Broken(cause) => Some(cause),
            _ => None,
        }
    }

    /// Handles a worker's reply for `task`, which took `nanos`, and for the tasks that follow, up
    /// to `count` in all. The result says how many of them belong to this chunk. After the last of
    /// several replies that came together, [`after_replies`](Self::after_replies) must be called.
    pub(crate) fn on_reply(
        &mut self,
        now: Instant,
        id: WorkerId,
        task: TaskId,
        count: u32,
        nanos: u64,
    ) -> Result<Replied<'_, C>, ReplyToNobody> {
        let worker = self.workers.get_mut(&id).ok_or(ReplyToNobody)?;
        // Replies come in order. A sending before this one can only have been taken back, and then
        // it is not in flight any more, and the worker skips it.
        let front = worker.in_flight.front_mut().ok_or(ReplyToNobody)?;
        let chunk = front.chunk;
        let entry = self.tasks.get_mut(chunk).expect("what is in flight is in the table");
        let item = entry.chunk.items().first;
        if item_id(entry.chunk.base(), item) != task {
            return Err(ReplyToNobody);
        }
        // The task ends with the error for which its worker is killed.
        if let Some(Doom { why: Why::Task(doomed, _), .. }) = &worker.doom
            && *doomed == task
        {
            return Ok(Replied::Late);
        }
        let count = count.min(entry.chunk.left());
        entry.chunk.resolve_first(count);
        front.left -= count;
        worker.load -= u64::from(front.estimate) * u64::from(count);
        worker.front_since = now;
        // A worker that reports a false time only changes how much is sent ahead to it.
        let took = u32::try_from(nanos).unwrap_or(u32::MAX);
        let new = Estimate { nanos: took, ended: took };
        self.estimates.entry(entry.chunk.function()).or_insert(new).learn(took);
        entry.lost_unbegun = 0;
        let left = entry.chunk.left();
        if left == 0 {
            worker.in_flight.pop_front();
        }
        worker.count_waiting(&mut self.with_waiting);
        if left > 0 {
            return Ok(Replied::Items(&self.tasks[chunk].chunk, item, count));
        }
        let entry = self.tasks.remove(chunk).expect("looked at above");
        self.timed -= usize::from(entry.chunk.timeout().is_some());
        Ok(Replied::Last(entry.chunk, item, count))
    }

    /// Gives a worker that has replied more to do.
    pub(crate) fn after_replies(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.retire_if_spent(now, id, out);
        self.rest_if_idle(id);
        self.after_changes(now, claims, out);
    }

    /// Does what every event requires: gives out tasks, and lets idle workers take over waiting
    /// ones.
    fn after_changes(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        self.dispatch(now, out);
        self.balance(now, claims, out);
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Asks a worker to leave if it has done all the tasks that it may do. Its place becomes free
    /// when its process has ended.
    fn retire_if_spent(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.is_useful() && worker.is_spent() && worker.in_flight.is_empty() {
            worker.state = WorkerState::Stopping { since: now };
            out.push(Action::Stop(id));
        }
    }

    /// Lets idle workers take over what was sent ahead to other workers.
    fn balance(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        if !self.anything_waits() {
            return;
        }
        while let Some(&idle) = self.idle.last() {
            // In a crowded pool at most one idle worker is woken at a time.
            let crowded = self.is_crowded(now);
            if !self.take_over(now, idle, claims, out) || crowded {
                break;
            }
        }
        let left =
            self.is_crowded(now) && !self.idle.is_empty() && self.idle.len() < self.workers.len();
        if left {
            self.rebalance_by(now + REBALANCE);
        }
    }

    /// Returns whether a task waits, in the queue or behind another one.
    fn anything_waits(&self) -> bool {
        self.queued > 0 || self.with_waiting > 0
    }

    /// Returns whether another worker could run what waits behind a task, now or when starts are
    /// tried again.
    fn could_grow(&self) -> bool {
        !self.idle.is_empty() || self.workers.len() < self.config.workers_max
    }

    /// Returns how long a task may wait behind another one, in addition to its own estimates.
    fn floor(&self, now: Instant) -> Duration {
        if !self.idle.is_empty() && self.is_crowded(now) { REBALANCE } else { START_COST }
    }

    /// Sets the time of the next check for tasks that wait behind another task.
    fn watch(&mut self, now: Instant) {
        let ends = matches!(self.intake, Intake::Broken(_) | Intake::Killed);
        // A check that is further away was set for long tasks, so it does not count.
        let soon = self.rebalance_at.is_some_and(|at| at <= now + REBALANCE);
        if soon || ends || !self.anything_waits() || !self.could_grow() {
            return;
        }
        let floor = self.floor(now);
        let useful = self.workers.values().filter(|worker| worker.is_useful());
        let sent = useful.filter_map(|worker| worker.waits_until(floor)).min();
        let Some(at) = sent.into_iter().chain(self.queue_waits_until()).min() else { return };
        // If no worker is idle, nothing can be moved before starts are tried again.
        let start_at = self.no_start_before.filter(|_| self.idle.is_empty()).unwrap_or(now);
        self.rebalance_by(at.max(start_at).max(now + START_COST));
    }

    fn rebalance_by(&mut self, at: Instant) {
        self.rebalance_at = Some(self.rebalance_at.map_or(at, |before| before.min(at)));
    }

    /// Returns when a queued chunk of several tasks has waited for too long. Splitting it lets more
    /// workers start than are already coming up.
    fn queue_waits_until(&self) -> Option<Instant> {
        if self.queued == 0 || self.workers.len() >= self.config.workers_max {
            return None;
        }
        // Looking at `workers_max` chunks is enough: no more chunks wait here than workers come up,
        // unless no worker can be started at this moment.
        let chunks = self
            .queue
            .iter()
            .take(self.config.workers_max)
            .filter_map(|chunk| self.tasks.get(*chunk));
        let several = chunks.filter(|entry| entry.place == Place::Queued && entry.chunk.left() > 1);
        several.filter_map(|entry| self.waits_until(entry)).min()
    }

    /// Returns how long a queued chunk of several tasks waits for the workers that are coming up.
    fn waits_until(&self, entry: &Entry<C>) -> Option<Instant> {
        let nanos =
            self.estimates.get(&entry.chunk.function()).map_or(0, |estimate| estimate.ended);
        let patience = Duration::from_nanos(u64::from(FEW) * u64::from(nanos)) + SLOW_START;
        Some(self.first? + Duration::from_nanos(entry.at) + patience)
    }

    /// Moves tasks that have waited behind another task for too long to other workers. Their wait
    /// shows that an estimate was wrong.
    fn relieve(&mut self, now: Instant, claims: &dyn Claims) {
        if self.idle.is_empty() && !self.has_place(now) {
            return;
        }
        let floor = self.floor(now);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let worker = &self.workers[&id];
            if !worker.is_useful() || worker.in_flight.is_empty() {
                continue;
            }
            let waits_until = worker.waits_until(floor);
            // The running task takes longer than expected. The estimate must not wait for its end.
            if !worker.ends_soon(now, floor) {
                self.correct(now, id, claims);
            }
            if waits_until.is_none_or(|until| until > now) {
                continue;
            }
            // If everything behind the first sending could be taken back, that one still runs, and
            // the items that it has not begun can go elsewhere too.
            let behind = self.workers[&id].in_flight.len() - 1;
            if self.take_back_from(id, behind, claims) == behind {
                self.spread_rest(id, claims);
            }
        }
        if self.queue_waits_until().is_some_and(|until| until <= now) {
            for chunk in std::mem::take(&mut self.queue) {
                match self.tasks.get(chunk).filter(|entry| entry.place == Place::Queued) {
                    Some(entry)
                        if entry.chunk.left() > 1
                            && self.waits_until(entry).is_some_and(|until| until <= now) =>
                    {
                        self.queued -= 1;
                        // One worker is already coming up for this chunk.
                        let parts = self.parts(chunk, self.takers() + 1);
                        self.queued += parts.len();
                        self.queue.extend(parts);
                    }
                    _ => self.queue.push_back(chunk),
                }
            }
        }
    }

    /// Raises the estimate of the task that a worker runs to the time that it has run.
    fn correct(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims) {
        let worker = self.workers.get_mut(&id).expect("looked at by the caller");
        let next = worker.in_flight.get(1).map(|next| next.seq);
        let Some(front) = worker.in_flight.front_mut() else { return };
        let chunk = &self.tasks[front.chunk].chunk;
        // Otherwise the task waits for its turn on the processor, or its replies are on their way.
        // Its running time is not known then.
        let runs = matches!(claims.begun(id, front.seq), Begun::Yes(item, _) if item <= chunk.items().first)
            && next.is_none_or(|next| claims.begun(id, next) == Begun::No);
        let nanos = now.saturating_duration_since(worker.front_since).as_nanos();
        let nanos = u32::try_from(nanos).unwrap_or(u32::MAX);
        if !runs || nanos <= front.estimate {
            return;
        }
        worker.load += u64::from(nanos - front.estimate) * u64::from(front.left);
        front.estimate = nanos;
        let estimate = self.estimates.entry(chunk.function()).or_default();
        estimate.nanos = estimate.nanos.max(nanos);
    }

    /// Takes back the items of its current chunk that a worker has not begun. Puts them at the
    /// front of the queue, in as many parts as there are workers that could take one.
    fn spread_rest(&mut self, id: WorkerId, claims: &dyn Claims) {
        let Some(front) = self.workers[&id].in_flight.front() else { return };
        let Some(rest) = self.take_rest(id, front.chunk, claims) else { return };
        for part in self.parts(rest, self.takers()).into_iter().rev() {
            self.requeue(part);
        }
    }

    /// Returns how many workers could take a part.
    fn takers(&self) -> usize {
        self.idle.len() + self.config.workers_max.saturating_sub(self.workers.len())
    }

    /// Splits a chunk that is neither queued nor sent into this many parts, or into single tasks if
    /// it has fewer.
    fn parts(&mut self, chunk: TaskId, of: usize) -> Vec<TaskId> {
        let Items { first, count } = self.tasks[chunk].chunk.items();
        let of = u32::try_from(of).unwrap_or(u32::MAX).clamp(1, count - first);
        let mut parts = vec![chunk];
        for part in (1..of).rev() {
            let at = u64::from(first) + u64::from(count - first) * u64::from(part) / u64::from(of);
            parts.insert(1, self.split_off(chunk, at as u32));
        }
        parts
    }

    /// Returns whether waking another worker would make more workers run than there are processors.
    fn is_crowded(&self, now: Instant) -> bool {
        let processors = self.config.processors;
        if self.config.workers_max <= processors
            || self.workers.len() - self.idle.len() < processors
        {
            return false;
        }
        // Workers that start, initialize or leave are not counted: this may take long, and no task
        // can wait behind them. Workers that run a long task are not counted either: it may be
        // sleeping, and no task should wait behind it.
        let running = self
            .workers
            .values()
            .filter(|worker| !worker.in_flight.is_empty() && worker.ends_soon(now, REBALANCE));
        running.take(processors).count() == processors
    }

    /// Returns whether a processor is left for a spinning thread when one more worker gets a task.
    pub(crate) fn has_spare_processor(&self) -> bool {
        self.workers.len() - self.idle.len() + 2 <= self.config.processors
    }

    /// Puts a worker among the idle ones if it has nothing to do.
    fn rest_if_idle(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.is_useful() && worker.in_flight.is_empty() && !self.idle.contains(&id) {
            self.idle.push(id);
        }
    }

    /// Lets an idle worker take over half of what was sent ahead to the worker with the most work
    /// ahead. Returns whether it got anything.
    fn take_over(
        &mut self,
        now: Instant,
        idle: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        // In a crowded pool the usual amount of work stays where it is, unless its worker is late.
        let spare = if self.is_crowded(now) { AHEAD.as_nanos() as u64 } else { 0 };
        let Some((&victim, worker)) = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != idle && worker.doom.is_none())
            .filter(|(_, worker)| {
                worker.has_waiting() && (worker.ahead() > spare || worker.is_late(now))
            })
            .max_by_key(|(_, worker)| worker.ahead())
        else {
            return false;
        };
        let behind = worker.in_flight.len() - 1;
        // With nothing behind the current chunk, the chunk itself is shared.
        let taken = match behind {
            0 => self.halve(victim, claims),
            _ => self.take_back_from(victim, behind.div_ceil(2), claims) > 0,
        };
        if taken {
            // The idle worker gets its tasks first. Otherwise they might be sent to where they came
            // from.
            if self.next_queued().is_some() {
                self.idle.retain(|other| *other != idle);
                self.send(now, idle, SHARE_MAX, out);
            }
            self.dispatch(now, out);
        }
        taken
    }

    /// Takes back up to `count` sendings that have not begun, from the last one on, and puts them
    /// at the front of the queue. Returns how many it got.
    fn take_back_from(&mut self, id: WorkerId, count: usize, claims: &dyn Claims) -> usize {
        let mut taken = 0;
        while taken < count {
            let Some(last) =
                self.workers.get(&id).and_then(|worker| worker.in_flight.back()).copied()
            else {
                break;
            };
            // Sendings begin in order: if this one has begun, all sendings before it have begun
            // too.
            if !claims.take_back(id, last.seq, self.tasks[last.chunk].chunk.items().first) {
                break;
            }
            self.remove_sending(id, last.chunk);
            self.requeue(last.chunk);
            taken += 1;
        }
        taken
    }

    /// Takes back the items of its current chunk that a worker has not begun, and puts them at the
    /// front of the queue in two halves. Returns whether there were any.
    fn halve(&mut self, id: WorkerId, claims: &dyn Claims) -> bool {
        let Some(front) = self.workers.get(&id).and_then(|worker| worker.in_flight.front()) else {
            return false;
        };
        let Some(rest) = self.take_rest(id, front.chunk, claims) else { return false };
        let items = self.tasks[rest].chunk.items();
        let middle = items.first + (items.count - items.first).div_ceil(2);
        if middle < items.count {
            let upper = self.split_off(rest, middle);
            self.requeue(upper);
        }
        self.requeue(rest);
        true
    }

    /// Takes back the items of a chunk that its worker has not begun. Returns the id of the chunk
    /// that they now are, which is neither queued nor sent.
    fn take_rest(&mut self, id: WorkerId, chunk: TaskId, claims: &dyn Claims) -> Option<TaskId> {
        let worker = self.workers.get_mut(&id)?;
        let sent = worker.in_flight.iter_mut().find(|sent| sent.chunk == chunk)?;
        let items = self.tasks[chunk].chunk.items();
        // A broken worker may claim to be at any item.
        let begun = claims.take_rest(id, sent.seq)?.min(items.count - 1);
        let from = (begun + 1).max(items.first);
        if from >= items.count {
            return None;
        }
        if from == items.first {
            // All items that had begun are answered, so the whole rest of the chunk is taken back.
            self.remove_sending(id, chunk);
            self.rest_if_idle(id);
            return Some(chunk);
        }
        let gone = items.count - from;
        sent.left -= gone;
        worker.load -= u64::from(sent.estimate) * u64::from(gone);
        worker.gives_back(gone);
        worker.count_waiting(&mut self.with_waiting);
        Some(self.split_off(chunk, from))
    }

    /// Splits a chunk: its items from `at` on become a chunk of their own. Returns the id of the
    /// new chunk.
    fn split_off(&mut self, chunk: TaskId, at: u32) -> TaskId {
        let entry = self.tasks.get_mut(chunk).expect("a task of this table");
        debug_assert!(entry.chunk.items().first < at && at < entry.chunk.items().count);
        let id = item_id(entry.chunk.base(), at);
        let tail = entry.chunk.split_off(at);
        let tail = Entry { chunk: tail, place: Place::Queued, at: entry.at, lost_unbegun: 0 };
        let new = self.tasks.insert(id, tail);
        debug_assert!(new, "no two entries have an item in common");
        id
    }

    /// Removes a sending from any position of a worker's list.
    fn remove_sending(&mut self, id: WorkerId, chunk: TaskId) {
        let worker = self.workers.get_mut(&id).expect("it has the chunk in flight");
        let Some(at) = worker.in_flight.iter().rposition(|sent| sent.chunk == chunk) else {
            return;
        };
        if let Some(sent) = worker.in_flight.remove(at) {
            worker.load -= u64::from(sent.estimate) * u64::from(sent.left);
            worker.gives_back(sent.left);
        }
        worker.count_waiting(&mut self.with_waiting);
        let entry = self.tasks.get_mut(chunk).expect("what was in flight is in the table");
        self.timed -= usize::from(entry.chunk.timeout().is_some());
        entry.place = Place::Queued;
    }

    /// Puts a chunk that is neither queued nor sent at the front of the queue.
    fn requeue(&mut self, chunk: TaskId) {
        debug_assert!(self.tasks[chunk].place == Place::Queued);
        self.queue.push_front(chunk);
        self.queued += 1;
    }

    fn seq_of(&self, worker: WorkerId, chunk: TaskId) -> Option<u32> {
        self.workers
            .get(&worker)?
            .in_flight
            .iter()
            .find(|sent| sent.chunk == chunk)
            .map(|sent| sent.seq)
    }

    /// Cancels a task that has not begun. Returns whether it was cancelled.
    pub(crate) fn on_cancel(
        &mut self,
        now: Instant,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let cancelled = self.cancel(now, task, claims, out);
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
            let place = entry.place;
            if self.cancel(now, id, claims, out) {
                continue;
            }
            if let Place::Sent(worker) = place
                && let Some(rest) = self.take_rest(worker, id, claims)
            {
                let entry = self.tasks.remove(rest).expect("just split off");
                out.push(resolve(entry.chunk, TaskError::Cancelled));
            }
        }
        self.after_changes(now, claims, out);
    }

    fn cancel(
        &mut self,
        now: Instant,
        chunk: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let Some(entry) = self.tasks.get(chunk) else { return false };
        match entry.place {
            // The id stays in the queue, because searching for it would take long. It is skipped
            // when its turn comes.
            Place::Queued => {
                self.queued -= 1;
                // But such ids must not pile up behind a first task that waits for long.
                if self.queue.len() > 2 * self.queued + QUEUE_SLACK {
                    let tasks = &self.tasks;
                    self.queue.retain(|queued| *queued != chunk && tasks.get(*queued).is_some());
                }
            }
            Place::Sent(id) => {
                let first = entry.chunk.items().first;
                let Some(seq) = self.seq_of(id, chunk) else { return false };
                if !claims.take_back(id, seq, first) {
                    return false;
                }
                let worker = self.workers.get_mut(&id).expect("it has the chunk in flight");
                // The next sending becomes the first one now.
                if worker.in_flight.front().is_some_and(|front| front.chunk == chunk) {
                    worker.front_since = now;
                }
                self.remove_sending(id, chunk);
                self.rest_if_idle(id);
            }
        }
        let entry = self.tasks.remove(chunk).expect("looked at above");
        out.push(resolve(entry.chunk, TaskError::Cancelled));
        true
    }

    /// Cancels a task, and kills its worker if the task has begun. Returns whether the task ends
    /// because it was cancelled.
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
        let Some(Entry { place: Place::Sent(id), .. }) = self.tasks.get(task) else { return false };
        let id = *id;
        match &self.workers[&id].doom {
            Some(Doom { why: Why::Task(other, TaskError::Cancelled), .. }) => {
                return *other == task;
            }
            // The task ends with its worker, but for another reason.
            Some(_) => return false,
            None => {}
        }
        let condemned = self.condemn(now, task, TaskError::Cancelled, claims);
        if condemned {
            out.push(Action::Kill(id));
        }
        self.after_changes(now, claims, out);
        condemned
    }

    /// Decides that the worker that runs this task must end because of the task. Returns whether
    /// the task was still running. The caller kills the worker, and dispatches what was taken back.
    fn condemn(
        &mut self,
        now: Instant,
        task: TaskId,
        error: TaskError,
        claims: &dyn Claims,
    ) -> bool {
        let Some(Entry { place: Place::Sent(id), .. }) = self.tasks.get(task) else { return false };
        let id = *id;
        let Some(at) = self.workers[&id].in_flight.iter().position(|sent| sent.chunk == task)
        else {
            return false;
        };
        // From here on nothing behind the task can begin. If something behind it has begun already,
        // the task itself has ended and its reply is on its way. The task that runs now is
        // innocent, so the worker must not be killed.
        let behind = self.workers[&id].in_flight.len() - at - 1;
        let innocent = self.take_back_from(id, behind, claims) < behind;
        if !innocent {
            self.doom(
                id,
                Doom { why: Why::Task(task, error), next: now + KILL_GRACE, killed: true },
            );
        }
        !innocent
    }

    fn doom(&mut self, id: WorkerId, doom: Doom) {
        self.idle.retain(|idle| *idle != id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.doom = Some(doom);
        }
    }

    // ---- events: workers ------------------------------------------------------------------------

    /// Handles the creation of the pool: starts the workers that exist from the beginning.
    pub(crate) fn on_open(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch(now, out);
    }

    /// Handles a worker's hello. Its initializer comes next. Returns `false` if the worker is not
    /// wanted any more.
    pub(crate) fn on_hello(&mut self, now: Instant, id: WorkerId) -> bool {
        match self.workers.get_mut(&id) {
            Some(worker) if worker.doom.is_none() => {
                if let WorkerState::Starting { .. } = worker.state {
                    worker.state = WorkerState::Initializing { since: now };
                }
                true
            }
            _ => false,
        }
    }

    /// Returns whether a worker runs its initializer.
    pub(crate) fn is_initializing(&self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        matches!(worker.state, WorkerState::Initializing { .. })
    }

    /// Handles a worker that can take tasks now.
    pub(crate) fn on_ready(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if !matches!(worker.state, WorkerState::Initializing { .. }) || worker.doom.is_some() {
            return;
        }
        worker.state = WorkerState::Ready;
        self.ever_ready = true;
        self.refusals = 0;
        self.no_start_before = None;
        self.after_replies(now, id, claims, out);
    }

    /// Handles a worker that could not be started: the system refused it, or something that it
    /// needs before it can take a task.
    pub(crate) fn on_start_refused(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: BrokenCause,
        out: &mut Actions<C>,
    ) {
        let worker = self.forget(id);
        let unwanted = worker.is_some_and(|worker| {
            matches!(worker.doom, Some(Doom { why: Why::Pool(_) | Why::Task(..), .. }))
        });
        // What was refused does not matter. What matters is whether another worker works or is
        // coming up. Such workers do the work meanwhile, and may free the missing resource when
        // they end. So this counts as a failed start only if there is no such worker.
        if unwanted {
            // The pool is shutting down, so nothing waits for this worker.
        } else if self.workers.values().any(|worker| worker.doom.is_none()) {
            self.refusals += 1;
            self.back_off(now);
        } else {
            self.start_failed(now, cause, out);
        }
        self.dispatch(now, out);
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Handles the end of a worker's process, after everything that it had published was read.
    pub(crate) fn on_exit(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: impl FnOnce(bool) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.on_end(now, id, true, cause, claims, out);
        self.after_changes(now, claims, out);
    }

    /// Removes a worker that has ended. Also called for a worker that is given up: `has_ended` is
    /// then `false`, and the process may still live.
    fn on_end(
        &mut self,
        now: Instant,
        id: WorkerId,
        has_ended: bool,
        cause: impl FnOnce(bool) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let Some(worker) = self.forget(id) else { return };
        if !has_ended {
            // This includes chunks that now go to other workers. This worker may have begun them
            // after all, and may read their arguments after the other worker has finished.
            for sent in &worker.in_flight {
                self.tasks
                    .get(sent.chunk)
                    .expect("what is in flight is in the table")
                    .chunk
                    .leave_arguments();
            }
        }
        self.settle(id, &worker, claims, out);
        let was_ready = matches!(worker.state, WorkerState::Ready | WorkerState::Stopping { .. });
        let expected = matches!(worker.doom, Some(Doom { why: Why::Pool(_) | Why::Task(..), .. }));
        if !was_ready && !expected {
            let said_hello = matches!(worker.state, WorkerState::Initializing { .. });
            let too_slow = matches!(worker.doom, Some(Doom { why: Why::Start, .. }));
            let cause = match worker.doom {
                Some(Doom { why: Why::Start, .. }) if said_hello => {
                    let waited = self.config.initializer_timeout;
                    BrokenCause::Start(
                        format!(
                            "its initializer did not end within {waited:?} (`initializer_timeout`)"
                        )
                        .into(),
                    )
                }
                Some(Doom { why: Why::Start, .. }) => {
                    let waited = self.config.start_timeout;
                    BrokenCause::Start(
                        format!("it did not report within {waited:?} (`start_timeout`)").into(),
                    )
                }
                _ => cause(said_hello),
            };
            // A worker that ended before its hello has met a limit of the system, if other workers
            // of the same program work. A worker that was too slow is no reason to end the workers
            // that were fast enough.
            if (!said_hello || too_slow) && self.workers.values().any(Worker::is_useful) {
                self.refusals += 1;
                self.back_off(now);
            } else {
                self.start_failed(now, cause, out);
            }
        }
    }

    fn forget(&mut self, id: WorkerId) -> Option<Worker> {
        self.idle.retain(|idle| *idle != id);
        let worker = self.workers.remove(&id)?;
        self.with_waiting -= usize::from(worker.counted);
        Some(worker)
    }

    /// Decides about the tasks of a dead worker: those that it had begun have ended, and the others
    /// go back to the queue in order.
    fn settle(&mut self, id: WorkerId, worker: &Worker, claims: &dyn Claims, out: &mut Actions<C>) {
        for (ahead, sent) in worker.in_flight.iter().enumerate().rev() {
            let entry = self.tasks.get_mut(sent.chunk).expect("what is in flight is in the table");
            self.timed -= usize::from(entry.chunk.timeout().is_some());
            entry.place = Place::Queued;
            let first = entry.chunk.items().first;
            // The index after the items that ended with the worker. That is one item, unless the
            // worker's last replies could not be read.
            let mut behind = first + 1;
            let mut end = match &worker.doom {
                Some(Doom { why: Why::Task(task, error), .. }) if *task == sent.chunk => {
                    Some(End::Error(error.clone()))
                }
                Some(Doom { why: Why::Pool(error), .. }) => {
                    let entry = self.tasks.remove(sent.chunk).expect("looked at above");
                    out.push(resolve(entry.chunk, error.clone()));
                    continue;
                }
                // Taken back, and not only looked up: a worker that was given up may still live,
                // and must not begin this later.
                _ if claims.take_back(id, sent.seq, first) => None,
                _ => {
                    claims.take_rest(id, sent.seq);
                    match claims.begun(id, sent.seq) {
                        // If the begun item is before the first unresolved one, it was answered,
                        // and the next item had not begun.
                        Begun::Yes(item, _) if item >= first => {
                            behind = item.min(entry.chunk.items().count - 1) + 1;
                            Some(End::Lost(id))
                        }
                        // Any item may have begun, and none may run twice.
                        Begun::Unknown => {
                            behind = entry.chunk.items().count;
                            Some(End::Lost(id))
                        }
                        _ => None,
                    }
                }
            };
            // Only the first sending can have caused the death. A task that waited behind three
            // crashing tasks is innocent.
            if end.is_none() && ahead == 0 {
                entry.lost_unbegun += 1;
                end = (entry.lost_unbegun >= LOST_UNBEGUN_MAX).then_some(End::Lost(id));
            }
            let Some(end) = end else {
                self.requeue(sent.chunk);
                continue;
            };
            if behind < entry.chunk.items().count {
                // The items behind go back without any record of this death.
                let rest = self.split_off(sent.chunk, behind);
                self.requeue(rest);
            }
            let entry = self.tasks.remove(sent.chunk).expect("looked at above");
            out.push(Action::Resolve(Box::new((entry.chunk, end))));
        }
        // A worker that had to end before the pool was ended gives back tasks that no worker will
        // run any more.
        if matches!(self.intake, Intake::Killed | Intake::Broken(_))
            && let Some(error) = self.refusal()
        {
            self.resolve_queue(&error, out);
        }
    }

    fn start_failed(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if self.is_drained() {
            // Nothing waits for a worker.
            return;
        }
        self.start_failures.push_back(now);
        while self
            .start_failures
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > START_FAILURES_PERIOD)
        {
            self.start_failures.pop_front();
        }
        if !self.ever_ready || self.start_failures.len() >= START_FAILURES_MAX {
            self.on_broken(now, cause, out);
        } else {
            self.back_off(now);
        }
    }

    fn back_off(&mut self, now: Instant) {
        let doublings = (self.start_failures.len() as u32).max(self.refusals).min(7);
        self.no_start_before = Some(now + BACK_OFF_MIN * 2_u32.pow(doublings));
    }

    /// Records that a worker's process has ended. The worker gets no more tasks until everything
    /// that it had published is read and [`on_exit`](Self::on_exit) decides. A task that was sent
    /// to it now would have this death counted against it, as one that it may have caused.
    pub(crate) fn on_ended(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended = true;
            self.idle.retain(|idle| *idle != id);
        }
    }

    /// Handles the system's refusal to signal a worker. The worker was asked to end itself instead.
    /// Whether or not it does, the tasks for which it was to be killed are resolved soon.
    pub(crate) fn on_signal_refused(&mut self, now: Instant, id: WorkerId) {
        if let Some(doom) = self.workers.get_mut(&id).and_then(|worker| worker.doom.as_mut())
            && doom.killed
        {
            doom.next = doom.next.min(now + UNSIGNALLED_GRACE);
        }
    }

    /// Handles a worker that was found stopped by a signal. Tasks that it has not begun go to
    /// others. `for_good` means that nothing is going to continue it. `has_run` means that it has
    /// computed since it was last seen stopped, because it is stopped and continued in turn.
    /// Returns whether it is killed for being stopped.
    pub(crate) fn on_stopped(
        &mut self,
        now: Instant,
        id: WorkerId,
        for_good: bool,
        has_run: bool,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.doom.is_none()) else {
            return false;
        };
        if has_run {
            worker.stopped = None;
        }
        let since = *worker.stopped.get_or_insert(now);
        // A stopped worker takes no step, so it keeps only what it has begun.
        self.idle.retain(|idle| *idle != id);
        self.take_back_from(id, usize::MAX, claims);
        if let Some(front) = self.workers[&id].in_flight.front()
            && let Some(rest) = self.take_rest(id, front.chunk, claims)
        {
            self.requeue(rest);
        }
        // A stopped worker without tasks takes the place of a worker that could run the waiting
        // ones.
        let in_the_way = self.workers[&id].in_flight.is_empty() && self.queued > 0;
        let waited_for = for_good || in_the_way || !matches!(self.intake, Intake::Open);
        let patience =
            if waited_for { STOPPED_GRACE } else { self.config.start_timeout.max(STOPPED_GRACE) };
        let killed = now.saturating_duration_since(since) >= patience;
        if killed {
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
        }
        self.after_changes(now, claims, out);
        killed
    }

    /// Handles a stopped worker that was continued.
    pub(crate) fn on_continued(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.stopped = None;
            self.after_replies(now, id, claims, out);
        }
    }

    /// Handles a protocol violation: the worker is killed, and its tasks are treated as after any
    /// death.
    pub(crate) fn on_unruly(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        if self.workers.get(&id).is_some_and(|worker| worker.doom.is_none()) {
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
        }
    }

    // ---- events: the whole pool -----------------------------------------------------------------

    /// Breaks the pool: every unresolved task fails with the cause, and every worker is killed.
    pub(crate) fn on_broken(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        self.intake = Intake::Broken(cause.clone());
        self.end_all(now, TaskError::Broken(cause), true, out);
    }

    /// Handles a failure of the pool's own threads. No exit will be noticed any more, so all tasks
    /// are resolved without waiting for one.
    pub(crate) fn on_collapse(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        let error = TaskError::Broken(cause.clone());
        self.on_broken(now, cause, out);
        for entry in self.tasks.drain() {
            if matches!(entry.place, Place::Sent(_)) {
                entry.chunk.leave_arguments();
            }
            out.push(resolve(entry.chunk, error.clone()));
        }
        self.workers.clear();
        self.idle.clear();
        self.queue.clear();
        (self.queued, self.timed, self.with_waiting) = (0, 0, 0);
        self.close_if_drained(now, out);
    }

    /// Stops accepting tasks. Accepted tasks are finished, or with `cancel_pending` only those that
    /// have begun.
    pub(crate) fn on_shutdown(
        &mut self,
        now: Instant,
        cancel_pending: bool,
        deadline: Option<Instant>,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        if matches!(self.intake, Intake::Open) {
            self.intake = Intake::Draining;
        }
        if let Some(deadline) = deadline {
            self.shutdown_deadline =
                Some(self.shutdown_deadline.map_or(deadline, |old| old.min(deadline)));
        }
        if cancel_pending {
            for id in self.workers.keys().copied().collect::<Vec<_>>() {
                self.take_back_from(id, usize::MAX, claims);
                // The sendings that are left have begun, but perhaps not all of their items.
                let begun: Vec<_> =
                    self.workers[&id].in_flight.iter().map(|sent| sent.chunk).collect();
                for chunk in begun {
                    if let Some(rest) = self.take_rest(id, chunk, claims) {
                        self.requeue(rest);
                    }
                }
                self.rest_if_idle(id);
            }
            self.resolve_queue(&TaskError::Cancelled, out);
        }
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Ends all workers: with SIGTERM and, after a grace time, SIGKILL, or with SIGKILL at once.
    pub(crate) fn on_kill(&mut self, now: Instant, at_once: bool, out: &mut Actions<C>) {
        if matches!(self.intake, Intake::Open | Intake::Draining) {
            self.intake = Intake::Killed;
        }
        self.end_all(now, TaskError::Shutdown, at_once, out);
    }

    fn end_all(&mut self, now: Instant, error: TaskError, at_once: bool, out: &mut Actions<C>) {
        self.shutdown_deadline = None;
        self.resolve_queue(&error, out);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let next = now + if at_once { KILL_GRACE } else { TERMINATE_GRACE };
            // A worker that must end already keeps its reason, unless SIGKILL now replaces SIGTERM.
            match &mut self.workers.get_mut(&id).expect("listed above").doom {
                Some(doom) if doom.killed || !at_once => {}
                _ => {
                    self.doom(id, Doom { why: Why::Pool(error.clone()), next, killed: at_once });
                    out.push(if at_once { Action::Kill(id) } else { Action::Terminate(id) });
                }
            }
        }
        self.close_if_drained(now, out);
    }

    fn resolve_queue(&mut self, error: &TaskError, out: &mut Actions<C>) {
        for task in std::mem::take(&mut self.queue) {
            if self.tasks.get(task).is_some_and(|entry| entry.place == Place::Queued) {
                let entry = self.tasks.remove(task).expect("looked at above");
                out.push(resolve(entry.chunk, error.clone()));
            }
        }
        self.queued = 0;
    }

    /// Does what is due: enforces limits, and moves tasks that have waited for too long.
    pub(crate) fn on_tick(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        if self.shutdown_deadline.is_some_and(|deadline| deadline <= now) {
            self.on_kill(now, false, out);
        }
        // The back-off is over, whether or not a worker is started now. If it stayed due, the
        // driver would not sleep.
        self.no_start_before.take_if(|at| *at <= now);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.tick_worker(now, id, claims, out);
        }
        let due = self.rebalance_at.take_if(|at| *at <= now).is_some();
        if due {
            self.relieve(now, claims);
        }
        self.dispatch_to(now, due, out);
        if due {
            self.balance(now, claims, out);
            // Tasks behind another task may be due before the next check of short ones.
            let next = self.rebalance_at.take();
            self.watch(now);
            self.rebalance_at = self.rebalance_at.into_iter().chain(next).min();
        } else {
            self.watch(now);
        }
    }

    fn tick_worker(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(doom) = &mut worker.doom {
            if doom.next <= now && !doom.killed {
                doom.killed = true;
                doom.next = now + KILL_GRACE;
                out.push(Action::Kill(id));
            } else if doom.next <= now {
                // It hangs in the kernel, and the pool stops waiting for it.
                let cause = |_| BrokenCause::Start("it was killed and did not end".into());
                self.on_end(now, id, false, cause, claims, out);
                self.close_if_drained(now, out);
            }
            return;
        }
        match worker.state {
            WorkerState::Starting { since }
                if since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now) =>
            {
                self.doom(id, Doom { why: Why::Start, next: now + KILL_GRACE, killed: true });
                out.push(Action::Kill(id));
            }
            WorkerState::Initializing { since }
                if since
                    .checked_add(self.config.initializer_timeout)
                    .is_some_and(|at| at <= now) =>
            {
                if self.workers.values().any(Worker::is_useful) {
                    // Other workers have finished it and do the work. This one was slow, or was
                    // stopped.
                    self.doom(id, Doom { why: Why::Start, next: now + KILL_GRACE, killed: true });
                    out.push(Action::Kill(id));
                    return;
                }
                // This is treated as a failed initializer: the next worker's would take as long,
                // and tasks would wait for it again.
                let error = TaskError::timed_out(self.config.initializer_timeout, Phase::Run);
                let error = error.of_task(self.config.initializer.as_deref().unwrap_or_default());
                self.on_broken(now, BrokenCause::Initializer(Arc::new(error)), out);
            }
            WorkerState::Stopping { since } if since + STOP_GRACE <= now => {
                let worker = id.0;
                tracing::warn!(worker, limit = ?STOP_GRACE, "a worker was asked to stop, has not ended, and is killed: \
                    work that its tasks have left in executors of their own is lost");
                self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
                out.push(Action::Kill(id));
            }
            _ => self.tick_task(now, id, claims, out),
        }
    }

    /// Checks the time limit of the task that a worker runs.
    fn tick_task(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) {
        let worker = &self.workers[&id];
        let Some(front) = worker.in_flight.front().copied() else { return };
        // A worker is deaf if it takes nothing in for this long. A large argument may take longer
        // to arrive, so the time counts from the last progress.
        let since =
            worker.taken_in.map_or(worker.front_since, |(_, at)| at.max(worker.front_since));
        let deaf = since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now);
        if deaf && matches!(claims.begun(id, front.seq), Begun::No | Begun::Unknown) {
            let taken_in = claims.taken_in(id);
            let worker = self.workers.get_mut(&id).expect("looked up above");
            if taken_in != worker.taken_in.map_or(0, |(before, _)| before) {
                worker.taken_in = Some((taken_in, now));
                return;
            }
            // The worker had nothing to do but to take this task, and has not taken it for as long
            // as a whole start may last. So something stopped it. The task has not begun, and can
            // go elsewhere.
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
            return;
        }
        let Some(limit) = self.timeout_of(front.chunk) else { return };
        if worker.front_since.checked_add(limit).is_none_or(|at| at.max(front.look_at) > now) {
            return;
        }
        // The limit counts from when the worker began the task, which may be later than when it
        // could have.
        let since = front.began.or_else(|| match claims.begun(id, front.seq) {
            Begun::No => None,
            Begun::Yes(_, at) => Some(at.unwrap_or(worker.front_since).max(worker.front_since)),
            Begun::Unknown => Some(worker.front_since),
        });
        let over = |since: Instant| since.checked_add(limit).is_some_and(|at| at <= now);
        let error = TaskError::timed_out(limit, Phase::Run);
        if since.is_some_and(over) && self.condemn(now, front.chunk, error, claims) {
            out.push(Action::Kill(id));
            return;
        }
        // The task has not begun, or began later, or its reply is on its way.
        let worker = self.workers.get_mut(&id).expect("it has a front");
        let front = worker.in_flight.front_mut().expect("looked at above");
        front.began = since;
        match since {
            Some(since) if !over(since) => worker.front_since = since,
            _ => front.look_at = now + limit.max(LOOK_AGAIN),
        }
    }

    // ---- decisions ------------------------------------------------------------------------------

    /// Gives queued tasks to workers, and starts workers up to `workers_min`.
    fn dispatch(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch_to(now, false, out);
    }

    /// Does the same as [`dispatch`](Self::dispatch). `waited` means that the queued tasks have
    /// waited long enough for a busy worker, so that an idle one may be woken.
    fn dispatch_to(&mut self, now: Instant, waited: bool, out: &mut Actions<C>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        self.give_out(now, waited, out);
        while self.lacks_workers() && self.no_start_before.is_none_or(|at| at <= now) {
            self.start(now, out);
        }
    }

    /// Returns whether there are fewer workers than `workers_min`.
    fn lacks_workers(&self) -> bool {
        self.workers.len() < self.config.workers_min && matches!(self.intake, Intake::Open)
    }

    fn start(&mut self, now: Instant, out: &mut Actions<C>) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.workers.insert(id, Worker::new(now, self.config.tasks_max));
        out.push(Action::Start(id));
    }

    /// Gives queued tasks to workers: to an idle one, else to a new one, else ahead to a busy one.
    fn give_out(&mut self, now: Instant, waited: bool, out: &mut Actions<C>) {
        let mut woken = false;
        while let Some(chunk) = self.next_queued() {
            // Short tasks in a crowded pool go to a busy worker. An idle one is woken for them only
            // if none has room and the tasks have waited or a worker is late, and then only one.
            if !self.idle.is_empty() && self.is_short(chunk) && self.is_crowded(now) {
                match self.busy_with_room(now, chunk) {
                    Some(id) => {
                        self.favourite = Some(id);
                        self.send(now, id, SHARE_MAX, out);
                    }
                    None if !woken
                        && (waited || self.workers.values().any(|worker| worker.is_late(now))) =>
                    {
                        woken = true;
                        let id = self.idle.pop().expect("looked at above");
                        self.send(now, id, 1, out);
                    }
                    None => return self.rebalance_by(now + REBALANCE),
                }
                self.rebalance_by(now + REBALANCE);
            } else if let Some(id) = self.idle.pop() {
                self.send(now, id, 1, out);
            } else if self.may_start(now) {
                self.start(now, out);
            } else if let Some(id) = self.least_ahead(now, chunk) {
                // When many tasks wait, several are sent at once, because choosing a worker means
                // looking at each.
                let share = (self.queued / self.workers.len()).clamp(1, SHARE_MAX);
                self.send(now, id, share, out);
            } else {
                return;
            }
        }
    }

    fn is_short(&self, chunk: TaskId) -> bool {
        let entry = &self.tasks[chunk];
        let estimate = self.estimates.get(&entry.chunk.function());
        estimate.is_some_and(|estimate| {
            u128::from(estimate.nanos) * u128::from(entry.chunk.left()) <= SHORT.as_nanos()
        })
    }

    /// Returns a busy worker that may have this short chunk ahead. The worker that got the last
    /// short chunk is preferred, so that few workers are busy.
    fn busy_with_room(&self, now: Instant, chunk: TaskId) -> Option<WorkerId> {
        let estimate = u64::from(self.estimates.get(&self.tasks[chunk].chunk.function())?.nanos);
        let most = (AHEAD.as_nanos() as u64).saturating_sub(estimate);
        let fits = |worker: &Worker| {
            worker.is_useful()
                && !worker.in_flight.is_empty()
                && worker.ahead() <= most
                && worker.has_room()
                && worker.ends_soon(now, REBALANCE)
        };
        if let Some(id) = self.favourite
            && self.workers.get(&id).is_some_and(fits)
        {
            return Some(id);
        }
        let fitting = self.workers.iter().filter(|(_, worker)| fits(worker));
        fitting.min_by_key(|(_, worker)| worker.load).map(|(id, _)| *id)
    }

    /// Returns whether no worker could take a new task now. Submitted chunks may then wait for the
    /// next event.
    pub(crate) fn is_saturated(&self) -> bool {
        self.queued > 0
            && self.workers.len() >= self.config.workers_max
            && matches!(self.intake, Intake::Open)
    }

    /// Returns the first chunk in the queue that was not cancelled. It stays in the queue.
    fn next_queued(&mut self) -> Option<TaskId> {
        while let Some(&chunk) = self.queue.front() {
            if self.tasks.get(chunk).is_some_and(|entry| entry.place == Place::Queued) {
                return Some(chunk);
            }
            self.queue.pop_front();
        }
        None
    }

    /// Returns whether to start another worker: there is more work than for the workers that are
    /// coming up.
    fn may_start(&self, now: Instant) -> bool {
        if !self.has_place(now) {
            // Checked first, because it is the normal case in a pool under load, and counting means
            // looking at every worker.
            return false;
        }
        let coming = self
            .workers
            .values()
            .filter(|worker| {
                matches!(
                    worker.state,
                    WorkerState::Starting { .. } | WorkerState::Initializing { .. }
                )
            })
            .filter(|worker| worker.doom.is_none())
            .count();
        // With a limit on tasks per worker, a worker may take only a part of a chunk.
        let too_many = |tasks_max: u32| {
            let chunks = self.queue.iter().filter_map(|chunk| self.tasks.get(*chunk));
            let waiting = chunks
                .filter(|entry| entry.place == Place::Queued)
                .map(|entry| u64::from(entry.chunk.left()));
            waiting.sum::<u64>() > coming as u64 * u64::from(tasks_max)
        };
        self.queued > coming || self.queued > 0 && self.config.tasks_max.is_some_and(too_many)
    }

    /// Returns whether another worker could be started now.
    fn has_place(&self, now: Instant) -> bool {
        self.workers.len() < self.config.workers_max
            && self.no_start_before.is_none_or(|at| at <= now)
    }

    /// Returns the busy worker with the least work that may have this chunk ahead.
    fn least_ahead(&self, now: Instant, chunk: TaskId) -> Option<WorkerId> {
        let entry = &self.tasks[chunk];
        let estimate = u64::from(self.estimates.get(&entry.chunk.function())?.nanos).max(1);
        // If no worker can be started and none is idle, the chunk may wait behind any task. The
        // first worker that becomes idle takes it over.
        let anywhere = !self.could_grow();
        let most = (AHEAD.as_nanos() as u64).checked_sub(estimate)?;
        self.workers
            .iter()
            .filter(|(_, worker)| worker.is_useful() && worker.ahead() <= most && worker.has_room())
            .filter(|(_, worker)| anywhere || worker.ends_soon(now, START_COST))
            .min_by_key(|(_, worker)| worker.load)
            .map(|(id, _)| *id)
    }

    /// Sends the first chunk of the queue to a worker. Sends further ones, up to `most` in all,
    /// while they are calls of the same function and the worker may have them ahead.
    fn send(&mut self, now: Instant, id: WorkerId, most: usize, out: &mut Actions<C>) {
        let mut of: Option<(FnId, Estimate)> = None;
        let mut sent = 0;
        while sent < most {
            let Some(&chunk) = self.queue.front() else { return };
            let worker = self.workers.get_mut(&id).expect("chosen among the workers");
            // A cancelled chunk has no entry. `next_queued` skips it.
            let Some(entry) =
                self.tasks.get_mut(chunk).filter(|entry| entry.place == Place::Queued)
            else {
                return;
            };
            let estimate = match of {
                None => self.estimates.get(&entry.chunk.function()).copied().unwrap_or_default(),
                Some((function, estimate)) => {
                    let room =
                        worker.ahead() + u64::from(estimate.nanos) <= AHEAD.as_nanos() as u64;
                    if function != entry.chunk.function() || !room || !worker.has_room() {
                        return;
                    }
                    estimate
                }
            };
            let (seq, left, function) =
                (worker.next_seq, entry.chunk.left(), entry.chunk.function());
            if let Some(budget) = &mut worker.budget {
                if *budget < left {
                    // The tasks beyond the worker's limit come next in the queue.
                    let beyond = entry.chunk.items().first + *budget;
                    let rest = self.split_off(chunk, beyond);
                    self.queue.insert(1, rest);
                    self.queued += 1;
                    continue;
                }
                *budget -= left;
            }
            of = Some((function, estimate));
            sent += 1;
            worker.next_seq = seq.wrapping_add(1);
            if worker.in_flight.is_empty() {
                worker.front_since = now;
            }
            worker.load += u64::from(estimate.nanos) * u64::from(left);
            worker.in_flight.push_back(InFlight {
                chunk,
                seq,
                estimate: estimate.nanos,
                ended: estimate.ended,
                left,
                at: now,
                look_at: now + LOOK_AGAIN,
                began: None,
            });
            worker.count_waiting(&mut self.with_waiting);
            entry.place = Place::Sent(id);
            self.timed += usize::from(entry.chunk.timeout().is_some());
            self.queue.pop_front();
            self.queued -= 1;
            out.push(Action::Send(id, entry.chunk.send_to(id, seq)));
        }
    }

    /// Returns whether nothing is unresolved and nothing more is accepted.
    fn is_drained(&self) -> bool {
        !matches!(self.intake, Intake::Open) && self.tasks.is_empty()
    }

    /// Asks the workers to leave once the pool is drained. Reports that the pool is closed once
    /// they have left.
    fn close_if_drained(&mut self, now: Instant, out: &mut Actions<C>) {
        if !self.is_drained() {
            return;
        }
        self.rebalance_at = None;
        self.shutdown_deadline = self.shutdown_deadline.filter(|_| !self.workers.is_empty());
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let worker = self.workers.get_mut(&id).expect("listed above");
            if worker.doom.is_some() {
                continue;
            }
            match worker.state {
                // This worker leaves after its initializer.
                WorkerState::Starting { .. }
                    if self.config.initializer.is_some() && self.config.workers_min > 0 => {}
                WorkerState::Starting { .. } => {
                    let why = Why::Pool(TaskError::Shutdown);
                    self.doom(id, Doom { why, next: now + KILL_GRACE, killed: true });
                    out.push(Action::Kill(id));
                }
                // A worker that initializes reads this order after its initializer.
                WorkerState::Initializing { .. } | WorkerState::Ready => {
                    worker.state = WorkerState::Stopping { since: now };
                    self.idle.retain(|idle| *idle != id);
                    out.push(Action::Stop(id));
                }
                WorkerState::Stopping { .. } => {}
            }
        }
        if self.workers.is_empty() && !self.closed {
            self.closed = true;
            out.push(Action::Closed);
        }
    }

    /// Checks what must be true between any two events.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let queued = self.tasks.values().filter(|entry| entry.place == Place::Queued).count();
        assert_eq!(queued, self.queued, "the queue's count");
        let waiting = self.queue.iter().filter(|chunk| {
            self.tasks.get(**chunk).is_some_and(|entry| entry.place == Place::Queued)
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
                assert!(entry.place == Place::Sent(*id), "place of {:?}", in_flight.chunk);
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
            .filter(|entry| entry.place != Place::Queued && entry.chunk.timeout().is_some())
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

/// Returns the action that ends the unresolved items of a chunk with this error.
fn resolve<C: Scheduled>(chunk: C, error: TaskError) -> Action<C> {
    Action::Resolve(Box::new((chunk, End::Error(error))))
}

/// The error for a reply about a task that the worker does not have.
#[derive(Debug, PartialEq)]
pub(crate) struct ReplyToNobody;
