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
//! Two rules carry the promises. *A worker's death fails only what it had begun*: beginning is a compare-and-swap on
//! the worker's board, asked through [`Claims`], so that after a death there is one answer. *Nobody innocent is killed
//! for another's sake*: before a worker is killed for a task's time limit or cancellation, everything behind that task
//! is taken back; if something behind it has begun already, the task has ended, and the worker lives.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    error::{BrokenCause, Phase, TaskError},
    id::{FnId, TaskId, WorkerId},
    transport::board::{Begun, SLOTS},
};

/// A worker gets tasks ahead worth this much time. More: results of uneven tasks wait behind each other, until another
/// worker is idle and takes them over. Less: a worker runs dry while its reply travels (about 100 µs here).
const AHEAD: Duration = Duration::from_micros(300);
/// A worker that was asked to stop is killed after this.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);
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

/// What the scheduler asks of the workers' boards.
pub(crate) trait Claims {
    fn begun(&self, worker: WorkerId, slot: u16, task: TaskId) -> Begun;
    fn take_back(&self, worker: WorkerId, slot: u16, task: TaskId) -> bool;
}

/// What is to be done. `T` is what the pool keeps of a task: its frame and its completer.
#[derive(Debug)]
pub(crate) enum Action<T> {
    /// Start a process for this worker.
    Start(WorkerId),
    /// Send this task.
    Send { worker: WorkerId, task: TaskId, slot: u16 },
    /// Ask the worker to leave.
    Stop(WorkerId),
    /// SIGTERM to the worker's group.
    Terminate(WorkerId),
    /// SIGKILL to the worker's group.
    Kill(WorkerId),
    /// This task has ended.
    Resolve(T, End),
    /// Nothing is left to be done, ever.
    Closed,
}

/// How a task ended that has no reply.
#[derive(Debug)]
pub(crate) enum End {
    Error(TaskError),
    /// This worker was lost while it ran the task; the pool knows how.
    Lost(WorkerId),
}

/// What the scheduler needs to know of a task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meta {
    /// For the estimate of its running time.
    pub(crate) function: Option<FnId>,
    pub(crate) timeout: Option<Duration>,
    /// Tasks of one chunk go to one worker together; 0 for none.
    pub(crate) chunk: u64,
}

struct Entry<T> {
    item: T,
    meta: Meta,
    place: Place,
    lost_unbegun: u8,
    /// Slots of workers it was taken back from: frames of it may still lie there, unread.
    stale: Vec<(WorkerId, u64)>,
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
    /// A bit for each free slot of the board.
    free_slots: u64,
    /// When the first one in flight came to be the first: it cannot have begun earlier.
    front_since: Instant,
    doom: Option<Doom>,
}

impl Worker {
    /// A free slot in which this task may be sent to this worker, `id`.
    ///
    /// Not one from which it was taken back: the old frame may still lie there unread, and would claim the task again,
    /// before those that are in flight ahead of it now. Where nothing is in flight, nothing can be overtaken.
    fn slot_for<T>(&self, id: WorkerId, entry: &Entry<T>) -> Option<u16> {
        let stale = match entry.stale.iter().find(|(worker, _)| *worker == id) {
            Some((_, slots)) if !self.in_flight.is_empty() => *slots,
            _ => 0,
        };
        let free = self.free_slots & !stale;
        (free != 0).then(|| free.trailing_zeros() as u16)
    }
}

#[derive(Clone, Copy)]
struct InFlight {
    task: TaskId,
    slot: u16,
    /// Its time limit is not looked at before this.
    look_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum WorkerState {
    Starting { since: Instant },
    Initializing,
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
    pub(crate) start_timeout: Duration,
}

pub(crate) struct Scheduler<T> {
    config: Config,
    tasks: HashMap<TaskId, Entry<T>, crate::id::IdHasher>,
    /// Ids of queued tasks, oldest first; one that was cancelled meanwhile is skipped when its turn comes.
    queue: VecDeque<TaskId>,
    queued: usize,
    workers: BTreeMap<WorkerId, Worker>,
    /// Ready workers with nothing to do, the one that worked last at the end: its caches are warm.
    idle: Vec<WorkerId>,
    /// Smoothed running time of each function.
    estimates: HashMap<FnId, Duration, crate::id::IdHasher>,
    /// Tasks with a time limit that are with workers.
    timed: usize,
    next_worker: u32,
    intake: Intake,
    shutdown_deadline: Option<Instant>,
    ever_ready: bool,
    start_failures: VecDeque<Instant>,
    no_start_before: Option<Instant>,
    closed: bool,
}

type Actions<T> = Vec<Action<T>>;

impl<T> Scheduler<T> {
    pub(crate) fn new(config: Config) -> Self {
        Scheduler {
            config,
            tasks: HashMap::default(),
            queue: VecDeque::new(),
            queued: 0,
            workers: BTreeMap::new(),
            idle: Vec::new(),
            estimates: HashMap::default(),
            timed: 0,
            next_worker: 0,
            intake: Intake::Open,
            shutdown_deadline: None,
            ever_ready: false,
            start_failures: VecDeque::new(),
            no_start_before: None,
            closed: false,
        }
    }

    // ---- what is asked of it ---------------------------------------------------------------------------------------

    /// What was submitted under this id, while it is unresolved.
    pub(crate) fn item(&self, task: TaskId) -> Option<&T> {
        self.tasks.get(&task).map(|entry| &entry.item)
    }

    pub(crate) fn timeout_of(&self, task: TaskId) -> Option<Duration> {
        self.tasks.get(&task)?.meta.timeout
    }

    /// Whether a worker has begun this task.
    pub(crate) fn is_running(&self, task: TaskId, claims: &dyn Claims) -> bool {
        let Some(Entry { place: Place::Sent(worker), .. }) = self.tasks.get(&task) else { return false };
        self.slot_of(*worker, task).is_some_and(|slot| claims.begun(*worker, slot, task) != Begun::No)
    }

    /// Whether this worker may still be put to work: nobody has decided to end it.
    pub(crate) fn is_wanted(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.doom.is_none())
    }

    /// When [`on_tick`](Self::on_tick) has something to do at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let mut next = self.shutdown_deadline;
        let mut earliest = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for worker in self.workers.values() {
            match worker.state {
                WorkerState::Starting { since } if worker.doom.is_none() => {
                    if let Some(at) = since.checked_add(self.config.start_timeout) {
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
                && let Some(limit) = self.timeout_of(front.task)
                && let Some(at) = worker.front_since.checked_add(limit)
            {
                earliest(at.max(front.look_at));
            }
        }
        if self.queued > 0
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

    #[cfg(test)]
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// (queued, with workers).
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.queued, self.tasks.len() - self.queued)
    }

    // ---- events: tasks ---------------------------------------------------------------------------------------------

    /// A task comes in.
    pub(crate) fn on_submit(
        &mut self,
        now: Instant,
        task: TaskId,
        item: T,
        meta: Meta,
        out: &mut Actions<T>,
    ) {
        if let Some(refusal) = self.refusal() {
            out.push(Action::Resolve(item, End::Error(refusal)));
            return;
        }
        let entry = Entry { item, meta, place: Place::Queued, lost_unbegun: 0, stale: Vec::new() };
        let previous = self.tasks.insert(task, entry);
        debug_assert!(previous.is_none(), "a task id is used once");
        self.queue.push_back(task);
        self.queued += 1;
        self.dispatch(now, out);
    }

    /// Why nothing is taken in any more.
    pub(crate) fn refusal(&self) -> Option<TaskError> {
        match &self.intake {
            Intake::Open => None,
            Intake::Draining | Intake::Killed => Some(TaskError::Shutdown),
            Intake::Broken(cause) => Some(TaskError::Broken(cause.clone())),
        }
    }

    /// A worker has answered. Returns what was submitted, to be resolved with the answer; `None` if the answer is to
    /// no task that this worker had, or comes too late for a task that was condemned.
    pub(crate) fn on_reply(
        &mut self,
        now: Instant,
        id: WorkerId,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<T>,
    ) -> Result<Option<T>, ReplyToNobody> {
        let worker = self.workers.get_mut(&id).ok_or(ReplyToNobody)?;
        // Answers come in order: what was in flight before this one was taken back, and is skipped by the worker.
        let Some(front) = worker.in_flight.front().copied() else { return Err(ReplyToNobody) };
        if front.task != task {
            return Err(ReplyToNobody);
        }
        if let Some(Doom { why: Why::Task(doomed, _), .. }) = &worker.doom
            && *doomed == task
        {
            return Ok(None);
        }
        worker.in_flight.pop_front();
        worker.free_slots |= 1 << front.slot;
        let took = now.saturating_duration_since(worker.front_since);
        worker.front_since = now;
        let entry = self.tasks.remove(&task).expect("what is in flight is in the table");
        self.timed -= usize::from(entry.meta.timeout.is_some());
        if let Some(function) = entry.meta.function {
            let estimate = self.estimates.entry(function).or_insert(took);
            *estimate = (*estimate * 3 + took) / 4;
        }
        self.after_reply(now, id, claims, out);
        Ok(Some(entry.item))
    }

    fn after_reply(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<T>) {
        self.rest_if_idle(id);
        self.dispatch(now, out);
        while let Some(&idle) = self.idle.last() {
            if !self.take_over(now, idle, claims, out) {
                break;
            }
        }
        self.close_if_drained(now, out);
    }

    /// Puts a worker that has nothing to do among the idle.
    fn rest_if_idle(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let free = worker.state == WorkerState::Ready && worker.doom.is_none() && worker.in_flight.is_empty();
        if free && !self.idle.contains(&id) {
            self.idle.push(id);
        }
    }

    /// An idle worker takes over half of what was sent ahead to the one that has most of it.
    fn take_over(&mut self, now: Instant, idle: WorkerId, claims: &dyn Claims, out: &mut Actions<T>) -> bool {
        let Some((&victim, _)) = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != idle && worker.doom.is_none() && worker.in_flight.len() > 1)
            .max_by_key(|(_, worker)| worker.in_flight.len())
        else {
            return false;
        };
        let ahead = self.workers[&victim].in_flight.len() - 1;
        let taken = self.take_back_from(victim, ahead.div_ceil(2), claims);
        if taken > 0 {
            self.dispatch(now, out);
        }
        taken > 0
    }

    /// Takes back up to `count` tasks, from the end, and puts them at the front of the queue; how many it got.
    fn take_back_from(&mut self, id: WorkerId, count: usize, claims: &dyn Claims) -> usize {
        let mut taken = 0;
        while taken < count {
            let Some(worker) = self.workers.get_mut(&id) else { break };
            let Some(last) = worker.in_flight.back().copied() else { break };
            // Tasks begin in order: if this one has begun, so have all before it.
            if !claims.take_back(id, last.slot, last.task) {
                break;
            }
            worker.in_flight.pop_back();
            worker.free_slots |= 1 << last.slot;
            let stale =
                &mut self.tasks.get_mut(&last.task).expect("what was in flight is in the table").stale;
            match stale.iter_mut().find(|(worker, _)| *worker == id) {
                Some((_, slots)) => *slots |= 1 << last.slot,
                None => stale.push((id, 1 << last.slot)),
            }
            self.requeue(last.task);
            taken += 1;
        }
        taken
    }

    fn requeue(&mut self, task: TaskId) {
        let entry = self.tasks.get_mut(&task).expect("what was in flight is in the table");
        self.timed -= usize::from(entry.meta.timeout.is_some());
        entry.place = Place::Queued;
        self.queue.push_front(task);
        self.queued += 1;
    }

    fn slot_of(&self, worker: WorkerId, task: TaskId) -> Option<u16> {
        self.workers.get(&worker)?.in_flight.iter().find(|sent| sent.task == task).map(|sent| sent.slot)
    }

    /// Withdraws a task that has not begun; whether it is withdrawn.
    pub(crate) fn on_cancel(
        &mut self,
        now: Instant,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<T>,
    ) -> bool {
        let Some(entry) = self.tasks.get(&task) else { return false };
        match entry.place {
            // Its id stays in the queue and is skipped when its turn comes: finding it there would take long.
            Place::Queued => {
                self.queued -= 1;
                // But they must not pile up behind a first task that waits long.
                if self.queue.len() > 2 * self.queued + QUEUE_SLACK {
                    let tasks = &self.tasks;
                    self.queue.retain(|queued| *queued != task && tasks.contains_key(queued));
                }
            }
            Place::Sent(id) => {
                let Some(slot) = self.slot_of(id, task) else { return false };
                if !claims.take_back(id, slot, task) {
                    return false;
                }
                let worker = self.workers.get_mut(&id).expect("it has the task in flight");
                if worker.in_flight.front().is_some_and(|front| front.task == task) {
                    worker.front_since = now;
                }
                worker.in_flight.retain(|sent| sent.task != task);
                worker.free_slots |= 1 << slot;
                self.timed -= usize::from(entry.meta.timeout.is_some());
                self.rest_if_idle(id);
            }
        }
        let entry = self.tasks.remove(&task).expect("looked at above");
        out.push(Action::Resolve(entry.item, End::Error(TaskError::Cancelled)));
        self.dispatch(now, out);
        self.close_if_drained(now, out);
        true
    }

    /// Withdraws a task, killing the worker if it has begun; whether it ends because of this.
    pub(crate) fn on_cancel_running(
        &mut self,
        now: Instant,
        task: TaskId,
        claims: &dyn Claims,
        out: &mut Actions<T>,
    ) -> bool {
        if self.on_cancel(now, task, claims, out) {
            return true;
        }
        let Some(Entry { place: Place::Sent(id), .. }) = self.tasks.get(&task) else { return false };
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
        self.dispatch(now, out);
        condemned
    }

    /// Dooms the worker that runs this task, for the task's sake; whether the task still ran. The caller kills, and
    /// dispatches what was taken back.
    fn condemn(&mut self, now: Instant, task: TaskId, error: TaskError, claims: &dyn Claims) -> bool {
        let Some(Entry { place: Place::Sent(id), .. }) = self.tasks.get(&task) else { return false };
        let id = *id;
        let Some(at) = self.workers[&id].in_flight.iter().position(|sent| sent.task == task) else {
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

    /// A worker has said hello; its initializer comes next. `false` if nobody wants it any more.
    pub(crate) fn on_hello(&mut self, id: WorkerId) -> bool {
        match self.workers.get_mut(&id) {
            Some(worker) if worker.doom.is_none() => {
                if let WorkerState::Starting { .. } = worker.state {
                    worker.state = WorkerState::Initializing;
                }
                true
            }
            _ => false,
        }
    }

    /// Whether a worker runs its initializer.
    pub(crate) fn is_initializing(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.state == WorkerState::Initializing)
    }

    /// A worker can take tasks.
    pub(crate) fn on_ready(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<T>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.state != WorkerState::Initializing || worker.doom.is_some() {
            return;
        }
        worker.state = WorkerState::Ready;
        self.ever_ready = true;
        self.no_start_before = None;
        self.after_reply(now, id, claims, out);
    }

    /// The system refused to start this worker. `exhausted`: for want of something that may come back.
    pub(crate) fn on_start_refused(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: BrokenCause,
        exhausted: bool,
        out: &mut Actions<T>,
    ) {
        let unwanted = self.forget(id).is_some_and(|worker| worker.doom.is_some());
        let others_live = self.workers.values().any(|worker| worker.doom.is_none());
        if unwanted {
            // Nobody waits for it: the pool is shutting down.
        } else if exhausted && others_live {
            // The others do the work meanwhile, and their end may give back what was missing.
            self.back_off(now);
        } else {
            self.start_failed(now, cause, out);
        }
        self.dispatch(now, out);
        self.close_if_drained(now, out);
    }

    /// A worker's process has ended, and everything it had published has been seen.
    pub(crate) fn on_exit(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: impl FnOnce(bool) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<T>,
    ) {
        self.on_end(now, id, cause, claims, out);
        self.dispatch(now, out);
        self.close_if_drained(now, out);
    }

    /// A worker is no more, or nobody waits for it any longer.
    fn on_end(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: impl FnOnce(bool) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<T>,
    ) {
        let Some(worker) = self.forget(id) else { return };
        self.settle(id, &worker, claims, out);
        let was_ready = matches!(worker.state, WorkerState::Ready | WorkerState::Stopping { .. });
        let expected = matches!(worker.doom, Some(Doom { why: Why::Pool(_) | Why::Task(..), .. }));
        if !was_ready && !expected {
            let said_hello = worker.state == WorkerState::Initializing;
            let cause = match worker.doom {
                Some(Doom { why: Why::Start, .. }) => {
                    let waited = self.config.start_timeout;
                    BrokenCause::Start(
                        format!("it did not report within {waited:?} (`start_timeout`)").into(),
                    )
                }
                _ => cause(said_hello),
            };
            self.start_failed(now, cause, out);
        }
    }

    fn forget(&mut self, id: WorkerId) -> Option<Worker> {
        self.idle.retain(|idle| *idle != id);
        self.workers.remove(&id)
    }

    /// Decides about what a dead worker had: what it had begun has ended, the rest goes back in order.
    fn settle(&mut self, id: WorkerId, worker: &Worker, claims: &dyn Claims, out: &mut Actions<T>) {
        for (ahead, sent) in worker.in_flight.iter().enumerate().rev() {
            let mut end = match &worker.doom {
                Some(Doom { why: Why::Task(task, error), .. }) if *task == sent.task => {
                    Some(End::Error(error.clone()))
                }
                Some(Doom { why: Why::Pool(error), .. }) => Some(End::Error(error.clone())),
                // Not only asked but taken back: a worker that was given up may live, and must not begin it later.
                _ if !claims.take_back(id, sent.slot, sent.task)
                    && claims.begun(id, sent.slot, sent.task) != Begun::No =>
                {
                    Some(End::Lost(id))
                }
                _ => None,
            };
            let entry = self.tasks.get_mut(&sent.task).expect("what is in flight is in the table");
            // Only the first can have been the cause. Who waits behind three tasks that crash is innocent.
            if end.is_none() && ahead == 0 {
                entry.lost_unbegun += 1;
                end = (entry.lost_unbegun >= LOST_UNBEGUN_MAX).then_some(End::Lost(id));
            }
            match end {
                Some(end) => {
                    let entry = self.tasks.remove(&sent.task).expect("looked at above");
                    self.timed -= usize::from(entry.meta.timeout.is_some());
                    out.push(Action::Resolve(entry.item, end));
                }
                None => self.requeue(sent.task),
            }
        }
        // A worker that was doomed before the pool was ended gives back what nobody is going to run.
        if matches!(self.intake, Intake::Killed | Intake::Broken(_))
            && let Some(error) = self.refusal()
        {
            self.resolve_queue(&error, out);
        }
    }

    fn start_failed(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<T>) {
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
        let doublings = self.start_failures.len().min(7) as u32;
        self.no_start_before = Some(now + BACK_OFF_MIN * 2_u32.pow(doublings));
    }

    /// A worker breaks the protocol: it is killed, and what it had is treated as at any death.
    pub(crate) fn on_unruly(&mut self, now: Instant, id: WorkerId, out: &mut Actions<T>) {
        if self.workers.get(&id).is_some_and(|worker| worker.doom.is_none()) {
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
        }
    }

    // ---- events: the whole pool ------------------------------------------------------------------------------------

    /// The pool cannot go on: everything unresolved fails with the cause, every worker is killed.
    pub(crate) fn on_broken(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<T>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        self.intake = Intake::Broken(cause.clone());
        self.end_all(now, TaskError::Broken(cause), true, out);
    }

    /// The pool's own machinery has failed: no exit will be noticed any more, so nothing waits for one.
    pub(crate) fn on_collapse(&mut self, now: Instant, cause: BrokenCause, out: &mut Actions<T>) {
        let error = TaskError::Broken(cause.clone());
        self.on_broken(now, cause, out);
        for (_, entry) in self.tasks.drain() {
            out.push(Action::Resolve(entry.item, End::Error(error.clone())));
        }
        self.workers.clear();
        self.idle.clear();
        self.queue.clear();
        (self.queued, self.timed) = (0, 0);
        self.close_if_drained(now, out);
    }

    /// Takes nothing in any more. What was accepted is finished, or with `cancel_pending` only what has begun.
    pub(crate) fn on_shutdown(
        &mut self,
        now: Instant,
        cancel_pending: bool,
        deadline: Option<Instant>,
        claims: &dyn Claims,
        out: &mut Actions<T>,
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
                self.rest_if_idle(id);
            }
            self.resolve_queue(&TaskError::Cancelled, out);
        }
        self.close_if_drained(now, out);
    }

    /// Ends all workers, now: by SIGTERM and, after a grace time, SIGKILL; or by SIGKILL at once.
    pub(crate) fn on_kill(&mut self, now: Instant, at_once: bool, out: &mut Actions<T>) {
        if matches!(self.intake, Intake::Open | Intake::Draining) {
            self.intake = Intake::Killed;
        }
        self.end_all(now, TaskError::Shutdown, at_once, out);
    }

    fn end_all(&mut self, now: Instant, error: TaskError, at_once: bool, out: &mut Actions<T>) {
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

    fn resolve_queue(&mut self, error: &TaskError, out: &mut Actions<T>) {
        for task in std::mem::take(&mut self.queue) {
            if self.tasks.get(&task).is_some_and(|entry| entry.place == Place::Queued) {
                let entry = self.tasks.remove(&task).expect("looked at above");
                out.push(Action::Resolve(entry.item, End::Error(error.clone())));
            }
        }
        self.queued = 0;
    }

    /// Time has passed.
    pub(crate) fn on_tick(&mut self, now: Instant, claims: &dyn Claims, out: &mut Actions<T>) {
        if self.shutdown_deadline.is_some_and(|deadline| deadline <= now) {
            self.on_kill(now, false, out);
        }
        // It is over, whether or not a worker is started now: else it would stay due, and the driver would not sleep.
        self.no_start_before.take_if(|at| *at <= now);
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.tick_worker(now, id, claims, out);
        }
        self.dispatch(now, out);
    }

    fn tick_worker(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<T>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(doom) = &mut worker.doom {
            if doom.next <= now && !doom.killed {
                doom.killed = true;
                doom.next = now + KILL_GRACE;
                out.push(Action::Kill(id));
            } else if doom.next <= now {
                // It hangs in the kernel. Nobody waits for it any longer.
                let cause = |_| BrokenCause::Start("it was killed and did not end".into());
                self.on_end(now, id, cause, claims, out);
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
            WorkerState::Stopping { since } if since + STOP_GRACE <= now => {
                self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
                out.push(Action::Kill(id));
            }
            _ => self.tick_task(now, id, claims, out),
        }
    }

    /// Looks at the time limit of what a worker runs.
    fn tick_task(&mut self, now: Instant, id: WorkerId, claims: &dyn Claims, out: &mut Actions<T>) {
        let worker = &self.workers[&id];
        let Some(front) = worker.in_flight.front().copied() else { return };
        let deaf = worker.front_since.checked_add(self.config.start_timeout).is_some_and(|at| at <= now);
        if deaf && claims.begun(id, front.slot, front.task) == Begun::No {
            // It had nothing to do but to take this, and has not for as long as a whole start may last: somebody
            // stopped it. The task has not begun, so it can go elsewhere.
            self.doom(id, Doom { why: Why::Unruly, next: now + KILL_GRACE, killed: true });
            out.push(Action::Kill(id));
            return;
        }
        let Some(limit) = self.timeout_of(front.task) else { return };
        if worker.front_since.checked_add(limit).is_none_or(|at| at.max(front.look_at) > now) {
            return;
        }
        // The limit counts from the moment when the worker began, which may be later than when it could have.
        let since = match claims.begun(id, front.slot, front.task) {
            Begun::No => None,
            Begun::Yes(at) => Some(at.unwrap_or(worker.front_since).max(worker.front_since)),
        };
        let over = |since: Instant| since.checked_add(limit).is_some_and(|at| at <= now);
        let error = TaskError::TimedOut { limit, phase: Phase::Run };
        if since.is_some_and(over) && self.condemn(now, front.task, error, claims) {
            out.push(Action::Kill(id));
            return;
        }
        // It has not begun, or begun later, or its answer is on its way.
        let worker = self.workers.get_mut(&id).expect("it has a front");
        match since {
            Some(since) if !over(since) => worker.front_since = since,
            _ => {
                let front = worker.in_flight.front_mut().expect("looked at above");
                front.look_at = now + limit.max(LOOK_AGAIN);
            }
        }
    }

    // ---- decisions -------------------------------------------------------------------------------------------------

    /// Gives queued tasks to workers: to an idle one, else to a new one, else ahead to a busy one.
    fn dispatch(&mut self, now: Instant, out: &mut Actions<T>) {
        if matches!(self.intake, Intake::Broken(_) | Intake::Killed) {
            return;
        }
        while let Some(task) = self.next_queued() {
            if let Some(id) = self.idle.pop() {
                self.send(now, id, task, out);
            } else if self.may_start(now) {
                let id = WorkerId(self.next_worker);
                self.next_worker += 1;
                self.workers.insert(
                    id,
                    Worker {
                        state: WorkerState::Starting { since: now },
                        in_flight: VecDeque::new(),
                        free_slots: u64::MAX,
                        front_since: now,
                        doom: None,
                    },
                );
                out.push(Action::Start(id));
            } else if let Some(id) = self.ahead(task) {
                self.send(now, id, task, out);
            } else {
                return;
            }
        }
    }

    /// The queue's first task that was not cancelled; it stays there.
    fn next_queued(&mut self) -> Option<TaskId> {
        while let Some(&task) = self.queue.front() {
            if self.tasks.get(&task).is_some_and(|entry| entry.place == Place::Queued) {
                return Some(task);
            }
            self.queue.pop_front();
        }
        None
    }

    /// Another worker is started if there is work for it beyond those that are already coming up.
    fn may_start(&self, now: Instant) -> bool {
        if self.workers.len() >= self.config.workers_max || self.no_start_before.is_some_and(|at| at > now) {
            // The rule in a pool under load, so first: to count costs a look at every worker.
            return false;
        }
        let coming = self
            .workers
            .values()
            .filter(|worker| matches!(worker.state, WorkerState::Starting { .. } | WorkerState::Initializing))
            .filter(|worker| worker.doom.is_none())
            .count();
        self.queued > coming
    }

    /// A busy worker that may have this task ahead: the one with the fewest.
    fn ahead(&self, task: TaskId) -> Option<WorkerId> {
        let entry = &self.tasks[&task];
        let estimate = *self.estimates.get(&entry.meta.function?)?;
        let ahead = (AHEAD.as_nanos() / estimate.as_nanos().max(1)).min(SLOTS as u128 - 1) as usize;
        if ahead == 0 {
            return None;
        }
        self.workers
            .iter()
            .filter(|(_, worker)| worker.state == WorkerState::Ready && worker.doom.is_none())
            .filter(|(id, worker)| worker.in_flight.len() <= ahead && worker.slot_for(**id, entry).is_some())
            .min_by_key(|(_, worker)| worker.in_flight.len())
            .map(|(id, _)| *id)
    }

    /// Sends the queue's first task, and those of its chunk that stand right behind it.
    fn send(&mut self, now: Instant, id: WorkerId, task: TaskId, out: &mut Actions<T>) {
        let chunk = self.tasks[&task].meta.chunk;
        let mut next = Some(task);
        while let Some(task) = next {
            let worker = self.workers.get_mut(&id).expect("chosen among the workers");
            let entry = self.tasks.get_mut(&task).expect("queued");
            let Some(slot) = worker.slot_for(id, entry) else { return };
            worker.free_slots &= !(1 << slot);
            if worker.in_flight.is_empty() {
                worker.front_since = now;
            }
            worker.in_flight.push_back(InFlight { task, slot, look_at: now + LOOK_AGAIN });
            entry.place = Place::Sent(id);
            self.timed += usize::from(entry.meta.timeout.is_some());
            self.queue.pop_front();
            self.queued -= 1;
            out.push(Action::Send { worker: id, task, slot });
            next = self.next_queued().filter(|task| chunk != 0 && self.tasks[task].meta.chunk == chunk);
        }
    }

    /// Nothing is unresolved, and nothing more comes in.
    fn is_drained(&self) -> bool {
        !matches!(self.intake, Intake::Open) && self.tasks.is_empty()
    }

    /// Once nothing is unresolved and nothing more comes in, the workers leave; once they have left, all is over.
    fn close_if_drained(&mut self, now: Instant, out: &mut Actions<T>) {
        if !self.is_drained() {
            return;
        }
        self.shutdown_deadline = self.shutdown_deadline.filter(|_| !self.workers.is_empty());
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            let worker = self.workers.get_mut(&id).expect("listed above");
            if worker.doom.is_some() {
                continue;
            }
            match worker.state {
                WorkerState::Starting { .. } => {
                    let why = Why::Pool(TaskError::Shutdown);
                    self.doom(id, Doom { why, next: now + KILL_GRACE, killed: true });
                    out.push(Action::Kill(id));
                }
                WorkerState::Initializing | WorkerState::Ready => {
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
        let waiting = self.queue.iter().filter(|task| self.tasks.contains_key(task));
        assert_eq!(waiting.count(), queued, "each queued task waits in the queue once");
        assert!(self.queue.len() <= 2 * self.queued + QUEUE_SLACK + SLOTS, "ids of cancelled tasks pile up");
        let mut sent = 0;
        for (id, worker) in &self.workers {
            sent += worker.in_flight.len();
            assert_eq!(worker.free_slots.count_zeros() as usize, worker.in_flight.len(), "slots of {id:?}");
            for in_flight in &worker.in_flight {
                assert!(
                    self.tasks[&in_flight.task].place == Place::Sent(*id),
                    "place of {:?}",
                    in_flight.task
                );
            }
            let idle =
                worker.state == WorkerState::Ready && worker.doom.is_none() && worker.in_flight.is_empty();
            assert_eq!(idle, self.idle.contains(id), "{id:?} is idle");
        }
        assert_eq!(sent, self.tasks.len() - queued, "what is sent is in flight once");
        let timed = self
            .tasks
            .values()
            .filter(|entry| entry.place != Place::Queued && entry.meta.timeout.is_some())
            .count();
        assert_eq!(timed, self.timed, "the count of timed tasks");
        let working = !matches!(self.intake, Intake::Broken(_) | Intake::Killed);
        assert!(
            !working || self.queued == 0 || self.idle.is_empty(),
            "a worker is idle while work is queued"
        );
        assert!(self.workers.len() <= self.config.workers_max, "too many workers");
    }
}

/// A worker answered a question that nobody asked it.
#[derive(Debug, PartialEq)]
pub(crate) struct ReplyToNobody;
