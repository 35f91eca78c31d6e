//! Who runs what, and what to do next: events in, actions out. No I/O, no clock, no thread.
//!
//! ```text
//!  task    Queued ──send──► Sent(worker, slot) ──reply──► resolved
//!            ▲ │                │      │
//!            │ └─cancel─► resolved     └─ worker exits: begun → resolved with why, not begun ─┐
//!            └──────────── taken back, or given back by a dead worker, in order ◄────────────┘
//!
//!  worker  Starting ──hello──► Initializing ──ready──► Ready ──stop──► Stopping
//!             └───────────────────┴───── any ── doom (why) ─┴──────────────┴──► exit ──► forgotten
//!
//!  intake  Open ──shutdown──► Draining        Open, Draining ──kill──► Killed
//!                                             any ──restart limit, initializer──► Broken(cause)
//! ```
//!
//! It is the only place that knows that a task exists ([`Entry`]) and in what state a worker is ([`Worker`]). It is
//! deterministic: the same events give the same actions, so a seeded simulation ([`sim`](super::sim)) can take it
//! through thousands of crashes without starting a process.
//!
//! What is submitted is a *chunk* of tasks: one function, consecutive ids, most often a single one. The items of a chunk
//! begin, end, and are blamed one by one; a chunk only travels together, and is split when half of it goes elsewhere.
//!
//! Two rules carry the promises. *A worker's death fails only what it had begun*: beginning is a compare-and-swap on
//! the worker's board, asked through [`Claims`], so that after a death there is one answer. *Nobody innocent is killed
//! for another's sake*: before a worker is killed for a task's time limit or cancellation, everything behind that task
//! is taken back; if something behind it has begun already, the task has ended, and the worker lives.

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

/// A worker gets tasks ahead worth this much time. More: results of uneven tasks wait behind each other, until another
/// worker is idle and takes them over. Less: a worker runs dry while its reply travels (about 100 µs here).
const AHEAD: Duration = Duration::from_micros(300);
/// In a pool of more workers than processors, a task that is shorter than this waits for a worker that runs: to wake one
/// that sleeps costs more, and takes the processor from one that runs. More: calls that wait for something themselves,
/// as for an answer over a local socket, are kept from waiting side by side.
const SHORT: Duration = Duration::from_micros(10);
/// What waits in this way, and has not begun although it should have, goes to an idle worker after this; one worker at a
/// time is woken for it. Less: a worker counts as late whose turn on the processor has not come.
const REBALANCE: Duration = Duration::from_millis(4);
/// What waits behind another task for longer than this, and for longer than [`FEW`] of its own estimates, goes to
/// another worker, which is started for it if need be. As long as a start takes: who waits less does not gain by one.
const START_COST: Duration = Duration::from_millis(1);
/// A chunk of several that waits for a worker to come up for longer than this, as for one that initializes, is shared among
/// more. Less: two workers are started for what one would have done as soon as it had come up.
const SLOW_START: Duration = Duration::from_millis(10);
/// So many of its own estimates a task may wait behind another one while somebody else could run it.
const FEW: u32 = 4;
/// A worker that was asked to stop is killed after this.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a worker may be stopped before it is killed, where nobody gains by waiting: the terminal has stopped it, the pool is
/// shutting down, or it has nothing to do and tasks wait. Lower values kill workers that are stopped for a moment. A worker
/// that runs a task in an open pool may be stopped for as long as a start may last.
const STOPPED_GRACE: Duration = Duration::from_secs(2);
/// A worker that may not be signalled is asked to end itself, and is given up after this.
const UNSIGNALLED_GRACE: Duration = Duration::from_millis(500);
/// Between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);
/// Chunks that are sent to one worker before the next is looked for. More: the first gets all of a short queue. Less: more
/// looking.
const SHARE_MAX: usize = 32;
/// A killed worker that does not end (it hangs in the kernel) is given up after this.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// A limit that may have passed, of a task that has not begun or whose answer is on its way, is looked at again after
/// this at the earliest. Less: with a tiny limit the driver would do nothing else. More: a tiny limit is kept late.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// OTP's intensity and period: this many workers may die before they are ready, within this time.
const START_FAILURES_MAX: usize = 5;
const START_FAILURES_PERIOD: Duration = Duration::from_secs(10);
/// Ids of cancelled tasks that may stay in the queue besides as many as are waiting there.
const QUEUE_SLACK: usize = 64;
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
/// A task that was first in line, not begun, with a dying worker this often is taken to be the cause: its frame ends
/// who reads it.
const LOST_UNBEGUN_MAX: u8 = 3;

/// What the scheduler asks of the workers' boards. `seq` is the number of a sending.
pub(crate) trait Claims {
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun;
    /// Takes back what has not begun at all; `first` is the item that was offered.
    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool;
    /// Takes back what is behind the item that has begun: that item, or `None` if nothing has begun.
    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32>;
    /// How much of what it was sent has left for this worker, in any unit: while this grows, the worker takes it in.
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

/// What the pool has to do. `C` is the pool's chunk.
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
    /// The unresolved items of this chunk have ended. Boxed, because it is rare.
    Resolve(Box<(C, End)>),
    /// Nothing is left to be done, ever.
    Closed,
}

/// How a task ended that has no reply.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Error(TaskError),
    /// This worker was lost while it ran the task; the pool knows how.
    Lost(WorkerId),
}

/// To whom a reply belongs.
pub(crate) enum Replied<'a, C> {
    /// The last items that were unresolved, and how many: the chunk is over.
    Last(C, u32, u32),
    /// Some of more: from which on, and how many.
    Items(&'a C, u32, u32),
    /// It comes too late for a task that was condemned.
    Late,
}

/// The entry's own id is that of the chunk's first item when the entry was made.
struct Entry<C> {
    chunk: C,
    place: Place,
    /// Since when it is, or its part of a chunk is, here, in nanoseconds of [`Scheduler::first`]: an `Instant` would make an entry
    /// larger than what is moved without a call.
    at: u64,
    lost_unbegun: u8,
}

/// Larger, and each insertion and each removal calls `memcpy`: 4 % of a no-op.
const _: () = assert!(size_of::<Entry<[u64; 13]>>() <= 128);

fn item_id(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Queued,
    Sent(WorkerId),
}

struct Worker {
    state: WorkerState,
    /// In the order sent; the first one runs, the others were sent ahead.
    in_flight: VecDeque<InFlight>,
    /// The number of the next sending.
    next_seq: u32,
    /// What is in flight should take this long.
    load: u64,
    /// How many more tasks it may have, if there is a limit.
    budget: Option<u32>,
    /// When the first one in flight came to be the first: it cannot have begun earlier.
    front_since: Instant,
    /// Since when it has been seen stopped by a signal: it takes no step, and gets nothing to do.
    stopped: Option<Instant>,
    /// Its process has ended; what it had published is still to be read.
    ended: bool,
    /// Whether it counts among [`Scheduler::with_waiting`].
    counted: bool,
    /// How much it had taken in when it was last looked at for that, and when this was.
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

    /// Whether the board has room for another sending, and the worker may have another task.
    fn has_room(&self) -> bool {
        !self.is_spent() && self.has_slot()
    }

    /// Whether it has had all the tasks that it may have.
    fn is_spent(&self) -> bool {
        self.budget == Some(0)
    }

    /// It does not get this many of the tasks that it was sent.
    fn gives_back(&mut self, tasks: u32) {
        self.budget = self.budget.map(|budget| budget + tasks);
    }

    fn has_slot(&self) -> bool {
        self.in_flight.front().is_none_or(|front| self.next_seq.wrapping_sub(front.seq) < SLOTS as u32)
    }

    fn is_useful(&self) -> bool {
        self.state == WorkerState::Ready && self.doom.is_none() && self.stopped.is_none() && !self.ended
    }

    /// Whether its first should have ended by now.
    fn is_late(&self, now: Instant) -> bool {
        self.in_flight.front().is_some_and(|front| {
            let takes = Duration::from_nanos(u64::from(front.estimate)) + REBALANCE;
            now.saturating_duration_since(self.front_since) >= takes
        })
    }

    /// Whether what it runs is going to end soon, as far as is known: it is short, and has not run for longer than that.
    fn ends_soon(&self, now: Instant, floor: Duration) -> bool {
        self.in_flight.front().is_none_or(|front| {
            Duration::from_nanos(u64::from(front.estimate)) <= START_COST
                && now.saturating_duration_since(self.front_since) < front.patience(floor)
        })
    }

    /// Whether a task waits behind another one here. Later items of a chunk wait as other tasks do.
    fn has_waiting(&self) -> bool {
        self.in_flight.len() > 1 || self.in_flight.front().is_some_and(|front| front.left > 1)
    }

    /// After a change of what is in flight.
    fn count_waiting(&mut self, workers: &mut usize) {
        let waiting = self.has_waiting();
        if waiting != self.counted {
            self.counted = waiting;
            *workers = if waiting { *workers + 1 } else { *workers - 1 };
        }
    }

    /// When what waits behind its first has waited for too long.
    fn waits_until(&self, floor: Duration) -> Option<Instant> {
        let front = self.in_flight.front().filter(|front| front.left > 1);
        let waiting = front.into_iter().chain(self.in_flight.iter().skip(1));
        waiting.map(|sent| sent.at + sent.patience(floor)).min()
    }

    /// How long what waits behind the one that runs should take.
    fn ahead(&self) -> u64 {
        self.load - self.in_flight.front().map_or(0, |front| u64::from(front.estimate))
    }
}

#[derive(Clone, Copy)]
struct InFlight {
    chunk: TaskId,
    seq: u32,
    /// How long one item should take, in nanoseconds.
    estimate: u32,
    /// How long one took of those that had ended: what is corrected while it runs makes nobody more patient.
    ended: u32,
    /// How many items of it the worker has or had.
    left: u32,
    at: Instant,
    /// Its time limit is not looked at before this.
    look_at: Instant,
    /// When it began, as the worker first told: a worker that tells of another moment later moves nothing.
    began: Option<Instant>,
}

impl InFlight {
    /// How long it may wait behind another one.
    fn patience(&self, floor: Duration) -> Duration {
        Duration::from_nanos(u64::from(FEW) * u64::from(self.ended)) + floor
    }
}

/// How long a call of a function takes, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Estimate {
    nanos: u32,
    /// As those calls say that have ended. A call that runs for longer puts `nanos` above it, until the next end.
    ended: u32,
}

impl Estimate {
    fn learn(&mut self, took: u32) {
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

/// Why a worker is going to be dead.
#[derive(Clone, Debug)]
struct Doom {
    why: Why,
    /// When SIGKILL is due, if only SIGTERM was sent; afterwards, when to give up waiting.
    next: Instant,
    killed: bool,
}

#[derive(Clone, Debug)]
enum Why {
    /// For the sake of this task, which ends with this error.
    Task(TaskId, TaskError),
    /// The whole pool ends, and what runs ends with this error.
    Pool(TaskError),
    /// It did not come up in time.
    Start,
    /// It does not keep to the protocol, or did not leave when asked.
    Unruly,
}

enum Intake {
    Open,
    Draining,
    Killed,
    Broken(BrokenCause),
}

/// What cannot change while the pool lives.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) workers_max: usize,
    /// So many are started without being asked for, and replaced when they end.
    pub(crate) workers_min: usize,
    /// What workers do of their own before they take tasks. It is not cut short when there is nothing to do after all, if
    /// they were started without being asked for: somebody may want nothing else.
    pub(crate) initializer: Option<Box<str>>,
    pub(crate) initializer_timeout: Duration,
    /// A worker leaves after so many tasks.
    pub(crate) tasks_max: Option<u32>,
    pub(crate) start_timeout: Duration,
    /// How many workers can run at the same time.
    pub(crate) processors: usize,
}

pub(crate) struct Scheduler<C> {
    config: Config,
    /// When the first task came.
    first: Option<Instant>,
    tasks: TaskTable<Entry<C>>,
    /// Ids of queued chunks, oldest first; one that was cancelled meanwhile is skipped when its turn comes.
    queue: VecDeque<TaskId>,
    queued: usize,
    workers: BTreeMap<WorkerId, Worker>,
    /// Ready workers with nothing to do, the one that worked last at the end: its caches are warm.
    idle: Vec<WorkerId>,
    /// Smoothed running time of each function.
    estimates: HashMap<FnId, Estimate, crate::id::IdHasher>,
    /// The busy worker that got the last short task ahead.
    favourite: Option<WorkerId>,
    /// Workers behind whose first task others wait. Where there are none, as at one call after the other, no event looks at
    /// each worker.
    with_waiting: usize,
    /// When to look whether tasks wait where they should not.
    rebalance_at: Option<Instant>,
    /// Tasks with a time limit that are with workers.
    timed: usize,
    next_worker: u32,
    intake: Intake,
    shutdown_deadline: Option<Instant>,
    ever_ready: bool,
    start_failures: VecDeque<Instant>,
    /// Starts that failed, one after the other, while somebody else worked.
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

    // ---- what is asked of it ---------------------------------------------------------------------------------------

    /// Whether a chunk is unresolved whose id is below this one.
    pub(crate) fn has_before(&self, id: TaskId) -> bool {
        self.tasks.has_before(id)
    }

    fn timeout_of(&self, chunk: TaskId) -> Option<Duration> {
        self.tasks.get(chunk)?.chunk.timeout()
    }

    /// How long a call of this function takes, as far as is known.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        self.estimates.get(&function).map(|estimate| Duration::from_nanos(u64::from(estimate.nanos)))
    }

    /// Whether a worker has begun this task.
    pub(crate) fn is_running(&self, task: TaskId, claims: &dyn Claims) -> bool {
        let Some(Entry { place: Place::Sent(worker), .. }) = self.tasks.get(task) else { return false };
        self.seq_of(*worker, task).is_some_and(|seq| claims.begun(*worker, seq) != Begun::No)
    }

    /// Whether this worker may still be put to work: nobody has decided to end it.
    pub(crate) fn is_wanted(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.doom.is_none())
    }

    /// When [`on_tick`](Self::on_tick) has something to do at the latest.
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
                WorkerState::Stopping { since } if worker.doom.is_none() => earliest(since + STOP_GRACE),
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
        if (self.queued > 0 || self.lacks_workers())
            && let Some(at) = self.no_start_before
        {
            earliest(at);
        }
        next
    }

    /// Whether an event that starts and ends no worker can have brought a deadline closer.
    pub(crate) fn has_timed(&self) -> bool {
        self.timed > 0 || self.shutdown_deadline.is_some() || self.no_start_before.is_some()
    }

    /// Whether anything is unresolved.
    pub(crate) fn has_tasks(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// The one deadline that comes and goes with ordinary events.
    pub(crate) fn rebalance_at(&self) -> Option<Instant> {
        self.rebalance_at
    }

    #[cfg(test)]
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// How long calls of this function took that have ended.
    #[cfg(test)]
    pub(crate) fn ended_estimate(&self, function: FnId) -> Duration {
        self.estimates
            .get(&function)
            .map_or(Duration::ZERO, |estimate| Duration::from_nanos(u64::from(estimate.ended)))
    }

    /// (queued, with workers).
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.queued, self.tasks.len() - self.queued)
    }

    // ---- events: tasks ---------------------------------------------------------------------------------------------

    /// A chunk comes in.
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
        // With others before it in the queue, nobody has room: every event ends with giving out what can be given.
        if self.queued == 1 || self.workers.len() < self.config.workers_max {
            self.dispatch(now, out);
            self.watch(now);
        }
    }

    /// Why nothing is taken in any more.
    pub(crate) fn refusal(&self) -> Option<TaskError> {
        match &self.intake {
            Intake::Open => None,
            Intake::Draining | Intake::Killed => Some(TaskError::Shutdown),
            Intake::Broken(cause) => Some(TaskError::Broken(cause.clone())),
        }
    }

    /// Why no worker can be had any more.
    pub(crate) fn broken(&self) -> Option<&BrokenCause> {
        match &self.intake {
            Intake::Broken(cause) => Some(cause),
            _ => None,
        }
    }

    /// A worker has answered for a task, which took this long, and for those that follow, up to `count` in all. The
    /// answer says for how many of them this chunk accounts. After the last answer of several that came together,
    /// [`after_replies`](Self::after_replies) must be called.
    pub(crate) fn on_reply(
        &mut self,
        now: Instant,
        id: WorkerId,
        task: TaskId,
        count: u32,
        nanos: u64,
    ) -> Result<Replied<'_, C>, ReplyToNobody> {
        let worker = self.workers.get_mut(&id).ok_or(ReplyToNobody)?;
        // Answers come in order: what was in flight before this one was taken back, and is skipped by the worker.
        let front = worker.in_flight.front_mut().ok_or(ReplyToNobody)?;
        let chunk = front.chunk;
        let entry = self.tasks.get_mut(chunk).expect("what is in flight is in the table");
        let item = entry.chunk.items().first;
        if item_id(entry.chunk.base(), item) != task {
            return Err(ReplyToNobody);
        }
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
        // A worker that lies here has more or less sent ahead to it, nothing else.
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

    /// Gives a worker that has answered more to do.
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

    /// What follows from any event: who has nothing to do gets something, or takes it over.
    fn after_changes(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        self.dispatch(now, out);
        self.balance(now, claims, out);
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Lets a worker go that has done all it may. Its place is free when its process has ended.
    fn retire_if_spent(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.is_useful() && worker.is_spent() && worker.in_flight.is_empty() {
            worker.state = WorkerState::Stopping { since: now };
            out.push(Action::Stop(id));
        }
    }

    /// Idle workers take over what was sent ahead to others.
    fn balance(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        if !self.anything_waits() {
            return;
        }
        while let Some(&idle) = self.idle.last() {
            let crowded = self.is_crowded(now);
            if !self.take_over(now, idle, claims, out) || crowded {
                break;
            }
        }
        let left = self.is_crowded(now) && !self.idle.is_empty() && self.idle.len() < self.workers.len();
        if left {
            self.rebalance_by(now + REBALANCE);
        }
    }

    /// Whether a task waits, in the queue or behind another one.
    fn anything_waits(&self) -> bool {
        self.queued > 0 || self.with_waiting > 0
    }

    /// Whether somebody else could run what waits behind a task, now or when starts are tried again.
    fn could_grow(&self) -> bool {
        !self.idle.is_empty() || self.workers.len() < self.config.workers_max
    }

    /// What a task may wait behind another one besides its own estimates.
    fn floor(&self, now: Instant) -> Duration {
        if !self.idle.is_empty() && self.is_crowded(now) { REBALANCE } else { START_COST }
    }

    /// Sees to it that what waits behind another task is looked at in time.
    fn watch(&mut self, now: Instant) {
        let ends = matches!(self.intake, Intake::Broken(_) | Intake::Killed);
        // A look that is far away is for what takes long.
        let soon = self.rebalance_at.is_some_and(|at| at <= now + REBALANCE);
        if soon || ends || !self.anything_waits() || !self.could_grow() {
            return;
        }
        let floor = self.floor(now);
        let useful = self.workers.values().filter(|worker| worker.is_useful());
        let sent = useful.filter_map(|worker| worker.waits_until(floor)).min();
        let Some(at) = sent.into_iter().chain(self.queue_waits_until()).min() else { return };
        let start_at = self.no_start_before.filter(|_| self.idle.is_empty()).unwrap_or(now);
        self.rebalance_by(at.max(start_at).max(now + START_COST));
    }

    fn rebalance_by(&mut self, at: Instant) {
        self.rebalance_at = Some(self.rebalance_at.map_or(at, |before| before.min(at)));
    }

    /// When a chunk of several has waited in the queue for too long: those that come up are fewer than its tasks.
    fn queue_waits_until(&self) -> Option<Instant> {
        if self.queued == 0 || self.workers.len() >= self.config.workers_max {
            return None;
        }
        // No more are waiting here than workers come up, or no worker can be started at this moment.
        let chunks =
            self.queue.iter().take(self.config.workers_max).filter_map(|chunk| self.tasks.get(*chunk));
        let several = chunks.filter(|entry| entry.place == Place::Queued && entry.chunk.left() > 1);
        several.filter_map(|entry| self.waits_until(entry)).min()
    }

    /// Until when a queued chunk of several waits for those that come up.
    fn waits_until(&self, entry: &Entry<C>) -> Option<Instant> {
        let nanos = self.estimates.get(&entry.chunk.function()).map_or(0, |estimate| estimate.ended);
        let patience = Duration::from_nanos(u64::from(FEW) * u64::from(nanos)) + SLOW_START;
        Some(self.first? + Duration::from_nanos(entry.at) + patience)
    }

    /// What has waited behind another task for too long goes to somebody else: the estimate was wrong.
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
            if !worker.ends_soon(now, floor) {
                self.correct(now, id, claims);
            }
            if waits_until.is_none_or(|until| until > now) {
                continue;
            }
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
                        // One comes up for it already.
                        let parts = self.parts(chunk, self.takers() + 1);
                        self.queued += parts.len();
                        self.queue.extend(parts);
                    }
                    _ => self.queue.push_back(chunk),
                }
            }
        }
    }

    /// What a worker runs takes at least as long as it has run by now.
    fn correct(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims) {
        let worker = self.workers.get_mut(&id).expect("looked at by the caller");
        let next = worker.in_flight.get(1).map(|next| next.seq);
        let Some(front) = worker.in_flight.front_mut() else { return };
        let chunk = &self.tasks[front.chunk].chunk;
        // Otherwise it waits for its turn, or its answers are on their way: nothing is known about its time.
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

    /// Takes back what a worker has not begun of the chunk that it is in, and puts it at the front of the queue in as many
    /// parts as there are workers that could take one.
    fn spread_rest(&mut self, id: WorkerId, claims: &dyn Claims) {
        let Some(front) = self.workers[&id].in_flight.front() else { return };
        let Some(rest) = self.take_rest(id, front.chunk, claims) else { return };
        for part in self.parts(rest, self.takers()).into_iter().rev() {
            self.requeue(part);
        }
    }

    /// How many workers could take something.
    fn takers(&self) -> usize {
        self.idle.len() + self.config.workers_max.saturating_sub(self.workers.len())
    }

    /// Splits a chunk that is in no place into as many parts, if it has so many tasks.
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

    /// Whether more workers would run at a time than there are processors, if another one were woken.
    fn is_crowded(&self, now: Instant) -> bool {
        let processors = self.config.processors;
        if self.config.workers_max <= processors || self.workers.len() - self.idle.len() < processors {
            return false;
        }
        // One that starts, initializes or leaves may take long for it, and nothing can wait behind it. One that runs
        // what takes long may sleep in it, and nothing should wait behind it.
        let running = self
            .workers
            .values()
            .filter(|worker| !worker.in_flight.is_empty() && worker.ends_soon(now, REBALANCE));
        running.take(processors).count() == processors
    }

    /// Whether a processor is left when one more worker gets a task, for a thread that does not want to sleep.
    pub(crate) fn has_spare_processor(&self) -> bool {
        self.workers.len() - self.idle.len() + 2 <= self.config.processors
    }

    /// Puts a worker that has nothing to do among the idle.
    fn rest_if_idle(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.is_useful() && worker.in_flight.is_empty() && !self.idle.contains(&id) {
            self.idle.push(id);
        }
    }

    /// An idle worker takes over half of what was sent ahead to the one that has most of it.
    fn take_over(&mut self, now: Instant, idle: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) -> bool {
        let spare = if self.is_crowded(now) { AHEAD.as_nanos() as u64 } else { 0 };
        let Some((&victim, worker)) = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != idle && worker.doom.is_none())
            .filter(|(_, worker)| worker.has_waiting() && (worker.ahead() > spare || worker.is_late(now)))
            .max_by_key(|(_, worker)| worker.ahead())
        else {
            return false;
        };
        let behind = worker.in_flight.len() - 1;
        let taken = match behind {
            0 => self.halve(victim, claims),
            _ => self.take_back_from(victim, behind.div_ceil(2), claims) > 0,
        };
        if taken {
            // To the idle one first, or it would go where it came from.
            if self.next_queued().is_some() {
                self.idle.retain(|other| *other != idle);
                self.send(now, idle, SHARE_MAX, out);
            }
            self.dispatch(now, out);
        }
        taken
    }

    /// Takes back, from the end, up to `count` sendings that have not begun, and puts them at the front of the queue;
    /// how many it got.
    fn take_back_from(&mut self, id: WorkerId, count: usize, claims: &dyn Claims) -> usize {
        let mut taken = 0;
        while taken < count {
            let Some(last) = self.workers.get(&id).and_then(|worker| worker.in_flight.back()).copied() else {
                break;
            };
            // Tasks begin in order: if this one has begun, so have all before it.
            if !claims.take_back(id, last.seq, self.tasks[last.chunk].chunk.items().first) {
                break;
            }
            self.remove_sending(id, last.chunk);
            self.requeue(last.chunk);
            taken += 1;
        }
        taken
    }

    /// Takes back what a worker has not begun of the chunk that it is in, and puts it at the front of the queue in two
    /// halves; whether it got anything.
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

    /// Takes back what a worker has not begun of a chunk that it is in: the id under which that is now, in no place.
    fn take_rest(&mut self, id: WorkerId, chunk: TaskId, claims: &dyn Claims) -> Option<TaskId> {
        let worker = self.workers.get_mut(&id)?;
        let sent = worker.in_flight.iter_mut().find(|sent| sent.chunk == chunk)?;
        let items = self.tasks[chunk].chunk.items();
        // A broken worker may say anything about where it is.
        let begun = claims.take_rest(id, sent.seq)?.min(items.count - 1);
        let from = (begun + 1).max(items.first);
        if from >= items.count {
            return None;
        }
        if from == items.first {
            // What it had begun is answered: all that is left goes.
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

    /// Makes the items of a chunk from `at` on a chunk of their own.
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

    /// Takes a sending out of a worker's list, whichever it is.
    fn remove_sending(&mut self, id: WorkerId, chunk: TaskId) {
        let worker = self.workers.get_mut(&id).expect("it has the chunk in flight");
        let Some(at) = worker.in_flight.iter().rposition(|sent| sent.chunk == chunk) else { return };
        if let Some(sent) = worker.in_flight.remove(at) {
            worker.load -= u64::from(sent.estimate) * u64::from(sent.left);
            worker.gives_back(sent.left);
        }
        worker.count_waiting(&mut self.with_waiting);
        let entry = self.tasks.get_mut(chunk).expect("what was in flight is in the table");
        self.timed -= usize::from(entry.chunk.timeout().is_some());
        entry.place = Place::Queued;
    }

    /// Puts a chunk that is in no place at the front of the queue.
    fn requeue(&mut self, chunk: TaskId) {
        debug_assert!(self.tasks[chunk].place == Place::Queued);
        self.queue.push_front(chunk);
        self.queued += 1;
    }

    fn seq_of(&self, worker: WorkerId, chunk: TaskId) -> Option<u32> {
        self.workers.get(&worker)?.in_flight.iter().find(|sent| sent.chunk == chunk).map(|sent| sent.seq)
    }

    /// Withdraws a task that has not begun; whether it is withdrawn.
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

    /// Withdraws what has not begun of a chunk of this many tasks.
    pub(crate) fn on_cancel_chunk(
        &mut self,
        now: Instant,
        base: TaskId,
        count: u32,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        // It may have been split anywhere. The last first: withdrawing the first would let the next begin.
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

    fn cancel(&mut self, now: Instant, chunk: TaskId, claims: &dyn Claims, out: &mut Actions<C>) -> bool {
        let Some(entry) = self.tasks.get(chunk) else { return false };
        match entry.place {
            // Its id stays in the queue and is skipped when its turn comes: finding it there would take long.
            Place::Queued => {
                self.queued -= 1;
                // But they must not pile up behind a first task that waits long.
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

    /// Withdraws a task, killing the worker if it has begun; whether it ends because of this.
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
            Some(Doom { why: Why::Task(other, TaskError::Cancelled), .. }) => return *other == task,
            // It ends with its worker, but not because of this.
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

    /// Dooms the worker that runs this task, for the task's sake; whether the task still ran. The caller kills, and
    /// dispatches what was taken back.
    fn condemn(&mut self, now: Instant, task: TaskId, error: TaskError, claims: &dyn Claims) -> bool {
        let Some(Entry { place: Place::Sent(id), .. }) = self.tasks.get(task) else { return false };
        let id = *id;
        let Some(at) = self.workers[&id].in_flight.iter().position(|sent| sent.chunk == task) else {
            return false;
        };
        // From now on nothing can begin behind it. If something has begun already, the task itself has ended and its
        // answer is on its way: whoever runs now is innocent.
        let behind = self.workers[&id].in_flight.len() - at - 1;
        let innocent = self.take_back_from(id, behind, claims) < behind;
        if !innocent {
            self.doom(id, Doom { why: Why::Task(task, error), next: now + KILL_GRACE, killed: true });
        }
        !innocent
    }

    fn doom(&mut self, id: WorkerId, doom: Doom) {
        self.idle.retain(|idle| *idle != id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.doom = Some(doom);
        }
    }

    // ---- events: workers -------------------------------------------------------------------------------------------

    /// The pool is made: starts the workers that are there from the beginning.
    pub(crate) fn on_open(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch(now, out);
    }

    /// A worker has said hello; its initializer comes next. `false` if nobody wants it any more.
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

    /// Whether a worker runs its initializer.
    pub(crate) fn is_initializing(&self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        matches!(worker.state, WorkerState::Initializing { .. })
    }

    /// A worker can take tasks.
    pub(crate) fn on_ready(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) {
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

    /// This worker could not be started: the system refused it, or something that it needs before it can take a task.
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
        // Whatever was refused, the question is whether somebody works, or is coming up. Others do the work meanwhile,
        // and their end may give back what was missing; the last that could not be started decides.
        if unwanted {
            // Nobody waits for it: the pool is shutting down.
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

    /// A worker's process has ended, and everything it had published has been seen.
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

    /// A worker is no more, or nobody waits for it any longer: then it may live, and `has_ended` is `false`.
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
            // Also what goes to others: it may have begun after all, and their end comes before its.
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
                        format!("its initializer did not end within {waited:?} (`initializer_timeout`)")
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
            // One that ended before it said hello met a limit of the system, if others of this program work; and one that was
            // too slow is no reason to end those that were not.
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

    /// Decides about what a dead worker had: what it had begun has ended, the rest goes back in order.
    fn settle(&mut self, id: WorkerId, worker: &Worker, claims: &dyn Claims, out: &mut Actions<C>) {
        for (ahead, sent) in worker.in_flight.iter().enumerate().rev() {
            let entry = self.tasks.get_mut(sent.chunk).expect("what is in flight is in the table");
            self.timed -= usize::from(entry.chunk.timeout().is_some());
            entry.place = Place::Queued;
            let first = entry.chunk.items().first;
            // What has ended with it: one item, unless its last answers could not be read.
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
                // Not only asked but taken back: a worker that was given up may live, and must not begin it later.
                _ if claims.take_back(id, sent.seq, first) => None,
                _ => {
                    claims.take_rest(id, sent.seq);
                    match claims.begun(id, sent.seq) {
                        // An item before the first that is unresolved was answered; the next had not begun.
                        Begun::Yes(item, _) if item >= first => {
                            behind = item.min(entry.chunk.items().count - 1) + 1;
                            Some(End::Lost(id))
                        }
                        // It must not run twice.
                        Begun::Unknown => {
                            behind = entry.chunk.items().count;
                            Some(End::Lost(id))
                        }
                        _ => None,
                    }
                }
            };
            // Only the first can have been the cause. Who waits behind three tasks that crash is innocent.
            if end.is_none() && ahead == 0 {
                entry.lost_unbegun += 1;
                end = (entry.lost_unbegun >= LOST_UNBEGUN_MAX).then_some(End::Lost(id));
            }
            let Some(end) = end else {
                self.requeue(sent.chunk);
                continue;
            };
            if behind < entry.chunk.items().count {
                // The others are as good as new.
                let rest = self.split_off(sent.chunk, behind);
                self.requeue(rest);
            }
            let entry = self.tasks.remove(sent.chunk).expect("looked at above");
            out.push(Action::Resolve(Box::new((entry.chunk, end))));
        }
        // A worker that was doomed before the pool was ended gives back what nobody is going to run.
        if matches!(self.intake, Intake::Killed | Intake::Broken(_))
            && let Some(error) = self.refusal()
        {
            self.resolve_queue(&error, out);
        }
    }

    fn start_failed(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if self.is_drained() {
            // Nobody waits for it.
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

    /// A worker's process has ended. Until all that it had published is read, and [`on_exit`](Self::on_exit) judges, it gets
    /// nothing: a task that was sent to it now would count one of the deaths that it may be the cause of.
    pub(crate) fn on_ended(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended = true;
            self.idle.retain(|idle| *idle != id);
        }
    }

    /// The system refuses to signal a worker, which was asked to end itself: what it was to be killed for is told soon,
    /// whether or not it does.
    pub(crate) fn on_signal_refused(&mut self, now: Instant, id: WorkerId) {
        if let Some(doom) = self.workers.get_mut(&id).and_then(|worker| worker.doom.as_mut())
            && doom.killed
        {
            doom.next = doom.next.min(now + UNSIGNALLED_GRACE);
        }
    }

    /// A worker was looked at, and is stopped by a signal. What it has not begun goes to others. `for_good`: nobody is
    /// going to continue it. `has_run`: it has computed since it was last seen stopped, because somebody stops and continues it
    /// in turn. Whether it is killed for it.
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
        self.idle.retain(|idle| *idle != id);
        self.take_back_from(id, usize::MAX, claims);
        if let Some(front) = self.workers[&id].in_flight.front()
            && let Some(rest) = self.take_rest(id, front.chunk, claims)
        {
            self.requeue(rest);
        }
        // One that holds nothing takes up the place of a worker that could run what waits.
        let in_the_way = self.workers[&id].in_flight.is_empty() && self.queued > 0;
        let waited_for = for_good || in_the_way || !matches!(self.intake, Intake::Open);
        let patience = if waited_for { STOPPED_GRACE } else { self.config.start_timeout.max(STOPPED_GRACE) };
        let killed = now.saturating_duration_since(since) >= patience;
        if killed {
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
        }
        self.after_changes(now, claims, out);
        killed
    }

    /// A worker that was stopped goes on.
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

    /// A worker breaks the protocol: it is killed, and what it had is treated as at any death.
    pub(crate) fn on_unruly(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        if self.workers.get(&id).is_some_and(|worker| worker.doom.is_none()) {
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
        }
    }

    // ---- events: the whole pool ------------------------------------------------------------------------------------

    /// The pool cannot go on: everything unresolved fails with the cause, every worker is killed.
    pub(crate) fn on_broken(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<C>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        self.intake = Intake::Broken(cause.clone());
        self.end_all(now, TaskError::Broken(cause), true, out);
    }

    /// The pool's own machinery has failed: no exit will be noticed any more, so nothing waits for one.
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

    /// Takes nothing in any more. What was accepted is finished, or with `cancel_pending` only what has begun.
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
            self.shutdown_deadline = Some(self.shutdown_deadline.map_or(deadline, |old| old.min(deadline)));
        }
        if cancel_pending {
            for id in self.workers.keys().copied().collect::<Vec<_>>() {
                self.take_back_from(id, usize::MAX, claims);
                // What is still there has begun, maybe not with all its items.
                let begun: Vec<_> = self.workers[&id].in_flight.iter().map(|sent| sent.chunk).collect();
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

    /// Ends all workers, now: by SIGTERM and, after a grace time, SIGKILL; or by SIGKILL at once.
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

    /// Time has passed.
    pub(crate) fn on_tick(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<C>) {
        if self.shutdown_deadline.is_some_and(|deadline| deadline <= now) {
            self.on_kill(now, false, out);
        }
        // It is over, whether or not a worker is started now: else it would stay due, and the driver would not sleep.
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
            // What waits behind another task may be due before the next look at short ones.
            let next = self.rebalance_at.take();
            self.watch(now);
            self.rebalance_at = self.rebalance_at.into_iter().chain(next).min();
        } else {
            self.watch(now);
        }
    }

    fn tick_worker(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(doom) = &mut worker.doom {
            if doom.next <= now && !doom.killed {
                doom.killed = true;
                doom.next = now + KILL_GRACE;
                out.push(Action::Kill(id));
            } else if doom.next <= now {
                // It hangs in the kernel. Nobody waits for it any longer.
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
                if since.checked_add(self.config.initializer_timeout).is_some_and(|at| at <= now) =>
            {
                if self.workers.values().any(Worker::is_useful) {
                    // Others have been through it, and do the work: this one was slow, or was stopped.
                    self.doom(id, Doom { why: Why::Start, next: now + KILL_GRACE, killed: true });
                    out.push(Action::Kill(id));
                    return;
                }
                // As if it had failed: the next worker's would do the same, and tasks would wait for it again.
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

    /// Looks at the time limit of what a worker runs.
    fn tick_task(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<C>) {
        let worker = &self.workers[&id];
        let Some(front) = worker.in_flight.front().copied() else { return };
        // A large argument may take longer than that to arrive, and while more of it does nobody is deaf.
        let since = worker.taken_in.map_or(worker.front_since, |(_, at)| at.max(worker.front_since));
        let deaf = since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now);
        if deaf && matches!(claims.begun(id, front.seq), Begun::No | Begun::Unknown) {
            let taken_in = claims.taken_in(id);
            let worker = self.workers.get_mut(&id).expect("looked up above");
            if taken_in != worker.taken_in.map_or(0, |(before, _)| before) {
                worker.taken_in = Some((taken_in, now));
                return;
            }
            // It had nothing to do but to take this, and has not for as long as a whole start may last: somebody
            // stopped it. The task has not begun, so it can go elsewhere.
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
            return;
        }
        let Some(limit) = self.timeout_of(front.chunk) else { return };
        if worker.front_since.checked_add(limit).is_none_or(|at| at.max(front.look_at) > now) {
            return;
        }
        // The limit counts from the moment when the worker began, which may be later than when it could have.
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
        // It has not begun, or begun later, or its answer is on its way.
        let worker = self.workers.get_mut(&id).expect("it has a front");
        let front = worker.in_flight.front_mut().expect("looked at above");
        front.began = since;
        match since {
            Some(since) if !over(since) => worker.front_since = since,
            _ => front.look_at = now + limit.max(LOOK_AGAIN),
        }
    }

    // ---- decisions -------------------------------------------------------------------------------------------------

    /// Gives queued tasks to workers, and starts those that are always to be there.
    fn dispatch(&mut self, now: Instant, out: &mut Actions<C>) {
        self.dispatch_to(now, false, out);
    }

    /// `waited`: what is in the queue has waited for a worker that runs, for long enough.
    fn dispatch_to(&mut self, now: Instant, waited: bool, out: &mut Actions<C>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        self.give_out(now, waited, out);
        while self.lacks_workers() && self.no_start_before.is_none_or(|at| at <= now) {
            self.start(now, out);
        }
    }

    /// Whether there are fewer workers than there are always to be.
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
            if !self.idle.is_empty() && self.is_short(chunk) && self.is_crowded(now) {
                match self.busy_with_room(now, chunk) {
                    Some(id) => {
                        self.favourite = Some(id);
                        self.send(now, id, SHARE_MAX, out);
                    }
                    None if !woken && (waited || self.workers.values().any(|worker| worker.is_late(now))) => {
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
                // Several at once when many wait: to look for the next worker costs a look at each.
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

    /// A busy worker that may have this short chunk ahead: the one that got the last, so that few are busy.
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

    /// Whether nobody could take a task that came now: what is submitted may wait for the next event.
    pub(crate) fn is_saturated(&self) -> bool {
        self.queued > 0
            && self.workers.len() >= self.config.workers_max
            && matches!(self.intake, Intake::Open)
    }

    /// The queue's first chunk that was not cancelled; it stays there.
    fn next_queued(&mut self) -> Option<TaskId> {
        while let Some(&chunk) = self.queue.front() {
            if self.tasks.get(chunk).is_some_and(|entry| entry.place == Place::Queued) {
                return Some(chunk);
            }
            self.queue.pop_front();
        }
        None
    }

    /// Another worker is started if there is work for it beyond those that are already coming up.
    fn may_start(&self, now: Instant) -> bool {
        if !self.has_place(now) {
            // The rule in a pool under load, so first: to count costs a look at every worker.
            return false;
        }
        let coming = self
            .workers
            .values()
            .filter(|worker| {
                matches!(worker.state, WorkerState::Starting { .. } | WorkerState::Initializing { .. })
            })
            .filter(|worker| worker.doom.is_none())
            .count();
        // A worker that may have few tasks takes no more of a chunk.
        let too_many = |tasks_max: u32| {
            let chunks = self.queue.iter().filter_map(|chunk| self.tasks.get(*chunk));
            let waiting = chunks
                .filter(|entry| entry.place == Place::Queued)
                .map(|entry| u64::from(entry.chunk.left()));
            waiting.sum::<u64>() > coming as u64 * u64::from(tasks_max)
        };
        self.queued > coming || self.queued > 0 && self.config.tasks_max.is_some_and(too_many)
    }

    /// Whether another worker could be started now.
    fn has_place(&self, now: Instant) -> bool {
        self.workers.len() < self.config.workers_max && self.no_start_before.is_none_or(|at| at <= now)
    }

    /// A busy worker that may have this chunk ahead: the one that has the least.
    fn least_ahead(&self, now: Instant, chunk: TaskId) -> Option<WorkerId> {
        let entry = &self.tasks[chunk];
        let estimate = u64::from(self.estimates.get(&entry.chunk.function())?.nanos).max(1);
        // Where all have been started, and none is idle, it can as well wait there: who is idle first takes it over.
        let anywhere = !self.could_grow();
        let most = (AHEAD.as_nanos() as u64).checked_sub(estimate)?;
        self.workers
            .iter()
            .filter(|(_, worker)| worker.is_useful() && worker.ahead() <= most && worker.has_room())
            .filter(|(_, worker)| anywhere || worker.ends_soon(now, START_COST))
            .min_by_key(|(_, worker)| worker.load)
            .map(|(id, _)| *id)
    }

    /// Sends the queue's first chunk, and up to `most` in all as long as they are of the same function and the worker may
    /// have them ahead.
    fn send(&mut self, now: Instant, id: WorkerId, most: usize, out: &mut Actions<C>) {
        let mut of: Option<(FnId, Estimate)> = None;
        let mut sent = 0;
        while sent < most {
            let Some(&chunk) = self.queue.front() else { return };
            let worker = self.workers.get_mut(&id).expect("chosen among the workers");
            // One that was cancelled has no entry: `dispatch` goes over it.
            let Some(entry) = self.tasks.get_mut(chunk).filter(|entry| entry.place == Place::Queued) else {
                return;
            };
            let estimate = match of {
                None => self.estimates.get(&entry.chunk.function()).copied().unwrap_or_default(),
                Some((function, estimate)) => {
                    let room = worker.ahead() + u64::from(estimate.nanos) <= AHEAD.as_nanos() as u64;
                    if function != entry.chunk.function() || !room || !worker.has_room() {
                        return;
                    }
                    estimate
                }
            };
            let (seq, left, function) = (worker.next_seq, entry.chunk.left(), entry.chunk.function());
            if let Some(budget) = &mut worker.budget {
                if *budget < left {
                    // What the worker may not have is the next that somebody else gets.
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

    /// Nothing is unresolved, and nothing more comes in.
    fn is_drained(&self) -> bool {
        !matches!(self.intake, Intake::Open) && self.tasks.is_empty()
    }

    /// Once nothing is unresolved and nothing more comes in, the workers leave; once they have left, all is over.
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
                // It leaves when it has initialized.
                WorkerState::Starting { .. }
                    if self.config.initializer.is_some() && self.config.workers_min > 0 => {}
                WorkerState::Starting { .. } => {
                    let why = Why::Pool(TaskError::Shutdown);
                    self.doom(id, Doom { why, next: now + KILL_GRACE, killed: true });
                    out.push(Action::Kill(id));
                }
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

    /// What must hold between any two events.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let queued = self.tasks.values().filter(|entry| entry.place == Place::Queued).count();
        assert_eq!(queued, self.queued, "the queue's count");
        let waiting = self
            .queue
            .iter()
            .filter(|chunk| self.tasks.get(**chunk).is_some_and(|entry| entry.place == Place::Queued));
        assert_eq!(waiting.count(), queued, "each queued chunk waits in the queue once");
        assert!(self.queue.len() <= 2 * self.queued + QUEUE_SLACK + SLOTS, "ids of cancelled tasks pile up");
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
                assert!(back.seq.wrapping_sub(front.seq) < SLOTS as u32, "two sendings in one slot");
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
        let waits = |worker: &Worker| worker.is_useful() && worker.waits_until(START_COST).is_some();
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

/// Ends the unresolved items of a chunk with this error.
fn resolve<C: Scheduled>(chunk: C, error: TaskError) -> Action<C> {
    Action::Resolve(Box::new((chunk, End::Error(error))))
}

/// A worker answered a question that nobody asked it.
#[derive(Debug, PartialEq)]
pub(crate) struct ReplyToNobody;
