//! A seeded simulation: the real [`Scheduler`] among workers that crash, hang, are stopped or slow,
//! and lie.
//!
//! ```text
//!  World ── user: submit, cancel, cancel_running, resize, shutdown, kill ──┐
//!    │ ─── driver: hello, replies in batches, deaths drained first, ticks ─┤ event ──► Scheduler
//!    │ ─── workers: a claim word for each slot, frames in, replies out,    │             │
//!    │              a process that may be dead before its end is seen      └── perform ◄─┘ actions
//!    └─► after each event: the scheduler's promises are checked against the world's own record
//! ```
//!
//! There is no process, no thread and no clock: time is a number that the world moves. The world
//! keeps its own record of what happened ([`Story`], [`Process`]), and never asks the scheduler for
//! it.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds. `EXECUTOR_SEED=17` runs one seed. A failure prints
//! its seed and the last events.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::{Duration, Instant},
};

use super::scheduler::{
    Action, Claims, Config, End, Graces, Lifespan, Replied, ReplyToNobody, Scheduled, Scheduler,
    Shutdown,
};
use crate::{
    error::{BrokenCause, ExitStatus, Phase, TaskError},
    id::{FnId, TaskId, WorkerId},
    transport::board::Begun,
    wire::frame::Items,
};

const ROUNDS: u64 = 300;
const TRACE_LEN: usize = 40;
/// How long an initializer takes at most, unless it hangs.
const INITIALIZER_MAX: Duration = Duration::from_millis(100);
/// Limits that the scheduler promises. They are repeated here, so that a change there is noticed.
const STOP_GRACE: Duration = Duration::from_secs(5);
const KILL_GRACE: Duration = Duration::from_secs(5);
const STOPPED_GRACE: Duration = Duration::from_secs(2);
const START_FAILURES_MAX: usize = 5;
const START_FAILURES_PERIOD: Duration = Duration::from_secs(10);
const LOST_UNBEGUN_MAX: u8 = 3;
/// How many workers a task with retries may end.
const LOSSES: u32 = 3;

/// Everything that may happen. Each kind is counted, and none may be missing over the default
/// number of rounds.
const KINDS: &[&str] = &[
    "submit",
    "submit: with a timeout",
    "submit: with a limit on waiting",
    "submit: with retries",
    "submit: with a priority",
    "submit: bound to a worker",
    "submit: a chunk of several",
    "submit: refused",
    "broadcast",
    "broadcast: to a worker that has left",
    "broadcast: to one that is ordered",
    "broadcast: sent to one that is to leave",
    "cancel: withdrawn",
    "cancel: too late",
    "cancel: a chunk",
    "cancel_running: withdrawn",
    "cancel_running: asks",
    "cancel_running: kills",
    "cancel_running: too late",
    "shutdown",
    "shutdown: cancel pending",
    "shutdown: deadline",
    "shutdown: with a limit for the whole",
    "asked: for a task",
    "asked: the pool ends",
    "asked: stops in time",
    "terminated: for a task",
    "runs its finalizer",
    "a finalizer ends",
    "a finalizer has no result",
    "dies in the finalizer",
    "ready to leave",
    "kill: at once",
    "kill: terminate first",
    "broken from outside",
    "tick: due",
    "tick: early",
    "start: a process",
    "start: refused",
    "start: never answers",
    "start: overdue signal",
    "hello",
    "hello: nobody wants it",
    "hello: connecting fails",
    "ready",
    "initializer fails",
    "initializer is refused",
    "dies before hello",
    "dies in the initializer",
    "hangs in the initializer",
    "an initializer takes too long",
    "claims",
    "claims the next of a chunk",
    "skips what was taken back",
    "skips the rest of a chunk",
    "a chunk is split",
    "publishes a reply",
    "reply: value",
    "reply: too late",
    "reply: failed, perhaps to be tried again",
    "an attempt fails",
    "an attempt is lost",
    "an attempt times out",
    "decided: again at once",
    "decided: again later",
    "decided: not again",
    "decided too late",
    "batch of replies",
    "dies in a task",
    "dies between reply and claim",
    "dies of a frame, before the claim",
    "dies idle",
    "dies after publishing, unseen",
    "leaves by its limit",
    "leaves: idle",
    "leaves: old",
    "leaves: too many",
    "leaves: too many, after its task",
    "resize: grows",
    "resize: shrinks",
    "resize: one that was about to leave stays",
    "has grown",
    "leaves because it has grown",
    "exits as asked",
    "ignores stop",
    "ignores SIGTERM",
    "obeys SIGTERM",
    "hangs in a task",
    "is stopped",
    "goes on",
    "lies: a task it does not have",
    "lies: answers twice",
    "lies: out of order",
    "lies: garbage",
    "violates the protocol",
    "SIGKILL takes time",
    "SIGKILL without effect",
    "exit",
    "exit: of one given up",
    "exit: after a refusal",
    "given up",
    "a worker that was given up reads on",
    "killed: for a task",
    "killed: pool ends",
    "killed: start timeout",
    "killed: initializer timeout",
    "killed: initializer refused",
    "killed: protocol violation",
    "killed: deaf",
    "killed: did not stop",
    "killed: finalizer timeout",
    "killed: stopped",
    "seen stopped",
    "seen to go on",
    "end: value",
    "end: value, at a later attempt",
    "end: failed",
    "end: waited too long, at a later attempt",
    "end: cancelled between two attempts",
    "end: lost, begun",
    "end: lost, of a broadcast",
    "end: lost, first in line three times",
    "end: timed out",
    "end: waited too long, queued",
    "end: waited too long, sent ahead",
    "end: cancelled",
    "end: cancelled by shutdown",
    "end: cancelled while running",
    "end: shutdown",
    "end: broken",
    "closed",
];

// ---- the world's record -------------------------------------------------------------------------

/// A submitted chunk, or a part of one. Only the owner of a ticket can resolve its items.
#[derive(Debug)]
struct Ticket {
    function: FnId,
    timeout: Option<Duration>,
    wait: Option<(Instant, Duration)>,
    bound_to: Option<u32>,
    priority: i32,
    /// How often it may be tried again.
    retries: u32,
    /// The number of workers that may still be lost with it.
    losses: u32,
    base: TaskId,
    items: Items,
    /// Whether the memory of the arguments is excluded from reuse. Shared by all parts of a chunk.
    left: Rc<Cell<bool>>,
}

impl Scheduled for Ticket {
    type Sending = (TaskId, Items, u32);

    fn function(&self) -> FnId {
        self.function
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    fn queue_until(&self) -> Option<Instant> {
        self.wait.map(|(until, _)| until)
    }

    fn queue_timeout(&self) -> Duration {
        self.wait.map_or(Duration::ZERO, |(_, timeout)| timeout)
    }

    fn bound_to(&self) -> Option<u32> {
        self.bound_to
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn base(&self) -> TaskId {
        self.base
    }

    fn items(&self) -> Items {
        self.items
    }

    fn resolve_first(&mut self, count: u32) {
        self.items.first += count;
    }

    fn split_off(&mut self, at: u32) -> Self {
        let items = Items { first: at, count: std::mem::replace(&mut self.items.count, at) };
        Ticket { items, left: Rc::clone(&self.left), ..*self }
    }

    fn may_retry(&self, lost: bool) -> bool {
        self.retries > 0 && !(lost && self.losses <= 1)
    }

    fn next_attempt(&mut self, lost: bool) {
        self.retries -= 1;
        self.losses -= u32::from(lost);
        self.items = Items::ONE;
    }

    fn wait_anew(&mut self, now: Instant) {
        self.wait = self.wait.map(|(_, timeout)| (now + timeout, timeout));
    }

    fn send_to(&self, seq: u32) -> Self::Sending {
        (self.base, self.items, seq)
    }

    fn leave_arguments(&self) {
        self.left.set(true);
    }
}

fn item(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}

fn ids(base: TaskId, items: Items) -> impl Iterator<Item = TaskId> {
    (items.first..items.count).map(move |at| item(base, at))
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Conduct {
    Returns,
    /// Replies that it has failed.
    Fails,
    /// The worker replies, and dies before it claims the next frame.
    ReturnsAndDies,
    Crashes,
    Hangs,
    /// The frame kills the worker before the worker claims it.
    Poison,
    /// Returns when as many tasks of this kind run at the same time as there may be workers.
    Meets,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Value,
    Failed,
    Lost,
    TimedOut,
    Cancelled,
    Shutdown,
    Broken,
}

/// What the world knows about a task.
struct Story {
    /// The chunk in which it was submitted: the first id, and the number of tasks.
    chunk: (TaskId, u32),
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    bound_to: Option<u32>,
    priority: i32,
    conduct: Conduct,
    takes: Duration,
    /// How often it may be tried again, and how many workers it may lose.
    retries: u32,
    losses: u32,
    /// Number of attempts that have failed, and of workers that were lost with them.
    failed: u32,
    lost: u32,
    /// Whether it is between two attempts, and not in the queue.
    held: bool,
    /// When it was submitted, or put into the queue again.
    submitted: Instant,
    function: FnId,
    /// The only worker that may run it, for a task of a broadcast.
    broadcast_to: Option<WorkerId>,
    /// The estimated running time, from calls that had ended when the task was submitted.
    estimate: Duration,
    begun: Option<(WorkerId, Instant)>,
    ending: Option<Ending>,
    /// How many workers died while the task was their first one and had not begun.
    first_in_line: u8,
    cancel_granted: bool,
    cancel_running_asked: bool,
    cancel_running_granted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// The starter has not come to this worker.
    Ordered,
    /// The process runs, and has not said hello.
    Booting,
    /// The hello is in the socket.
    Greeted,
    /// The hello was read, and the worker serves.
    Connected,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ToWorker {
    Init,
    Run {
        base: TaskId,
        seq: u32,
        items: Items,
    },
    /// Not sent: the items of a chunk that the worker still has to run.
    Rest {
        base: TaskId,
        seq: u32,
        items: Items,
    },
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FromWorker {
    Ready,
    Finalized,
    InitFailed,
    /// The system has refused something that the initializer needs.
    InitRefused,
    Reply(TaskId),
    /// A frame that no worker may send. The reader goes on.
    Unexpected,
    /// Bytes that are no frame. The reader ends.
    Garbage,
}

#[derive(Clone, Copy)]
enum Running {
    Initializer { until: Option<Instant>, dies: bool, says: FromWorker },
    Finalizer { until: Option<Instant>, dies: bool },
    Task { task: TaskId, until: Option<Instant>, rest: Option<ToWorker> },
}

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Offered(u32),
    Begun(u32),
    Last(u32),
    Taken,
}

#[derive(Default)]
struct Words {
    sent: BTreeMap<u32, (Word, TaskId, Items)>,
    began: Option<Instant>,
    /// The tasks that the pool has with this worker, in the order sent.
    holding: VecDeque<TaskId>,
}

struct Process {
    life: Life,
    index: u32,
    ordered: Instant,
    /// When its process was created.
    launched: Option<Instant>,
    /// The starter hangs, so nothing will be heard of this worker.
    never_starts: bool,
    /// Whether the worker is stopped. It takes no step until it is continued, but SIGKILL ends it.
    stopped: bool,
    /// Since when the pool has seen the worker stopped.
    seen_stopped: Option<Instant>,
    greeted: Option<Instant>,
    /// How much of a large argument the worker has taken in.
    taken_in: u64,
    /// Whether no signal has an effect, so that the worker goes on.
    immortal: bool,
    dies_at: Option<Instant>,
    frames: VecDeque<ToWorker>,
    running: Option<Running>,
    published: VecDeque<FromWorker>,
    answered: Option<TaskId>,
    begun: Vec<TaskId>,
    words: RefCell<Words>,
    // What the pool's record of the worker says.
    linked: bool,
    /// Whether the reader has stopped reading.
    unread: bool,
    reaped: bool,
    ready: bool,
    /// When the worker was ready.
    ready_at: Option<Instant>,
    /// When the worker was ready, or its last reply was read.
    rested: Option<Instant>,
    /// Whether the worker was there when the number of workers became too large, and not taken out
    /// of this number since.
    surplus: bool,
    overdue: bool,
    /// Whether the system has refused something that the initializer needs.
    refused: bool,
    // Reasons to end the worker.
    caught: bool,
    lied: bool,
    /// Whether its memory has grown so much that it leaves.
    grown: bool,
    stop_sent: Option<Instant>,
    /// What the worker does since it was asked to leave, and since when it may take its time.
    leaves: Option<(Leaving, Instant)>,
    /// The task that was asked to stop because of itself, and when.
    asked: Option<(TaskId, Instant)>,
    terminated: Option<Instant>,
    killed: Option<Instant>,
    killed_for: Option<TaskId>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaving {
    Initializing,
    Finalizing,
    Ending,
}

impl Process {
    fn alive(&self) -> bool {
        matches!(self.life, Life::Booting | Life::Greeted | Life::Connected)
    }

    /// Returns whether the worker will never do anything again unless it is ended.
    fn hopeless(&self) -> bool {
        let endless = match self.running {
            Some(
                Running::Initializer { until, .. }
                | Running::Task { until, .. }
                | Running::Finalizer { until, .. },
            ) => until.is_none(),
            None => false,
        };
        self.never_starts || self.alive() && (self.stopped || self.immortal || endless)
    }

    fn publish(&mut self, message: FromWorker) {
        if self.unread {
            // The channel is closed, so the worker ends itself.
            self.die();
        } else {
            self.published.push_back(message);
        }
    }

    fn die(&mut self) {
        self.life = Life::Dead;
        self.dies_at = None;
        self.running = None;
        self.frames.clear();
    }
}

/// The pool's view of the boards. A worker without a link has begun nothing.
struct Boards<'a>(&'a BTreeMap<WorkerId, Process>);

impl Boards<'_> {
    fn linked(&self, worker: WorkerId) -> Option<&Process> {
        self.0.get(&worker).filter(|process| process.linked)
    }
}

impl Claims for Boards<'_> {
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun {
        let Some(process) = self.linked(worker) else { return Begun::No };
        let words = process.words.borrow();
        match words.sent.get(&seq) {
            Some((Word::Begun(item) | Word::Last(item), ..)) => Begun::Yes(*item, words.began),
            _ => Begun::No,
        }
    }

    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool {
        let Some(process) = self.linked(worker) else { return true };
        let mut words = process.words.borrow_mut();
        let Words { sent, holding, .. } = &mut *words;
        match sent.get_mut(&seq) {
            Some((word, base, items)) if *word == Word::Offered(first) => {
                *word = Word::Taken;
                let taken: Vec<_> = ids(*base, *items).collect();
                holding.retain(|held| !taken.contains(held));
                true
            }
            _ => false,
        }
    }

    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32> {
        let mut words = self.linked(worker)?.words.borrow_mut();
        let Words { sent, holding, .. } = &mut *words;
        let (word, base, items) = sent.get_mut(&seq)?;
        match *word {
            Word::Begun(at) => {
                *word = Word::Last(at);
                let taken: Vec<_> =
                    ids(*base, Items { first: at + 1, count: items.count }).collect();
                holding.retain(|held| !taken.contains(held));
                Some(at)
            }
            Word::Last(at) => Some(at),
            Word::Offered(_) | Word::Taken => None,
        }
    }

    fn taken_in(&self, worker: WorkerId) -> u64 {
        self.linked(worker).map_or(0, |process| process.taken_in)
    }
}

/// The SplitMix64 generator: small, and the same on every platform.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn permille(&mut self, n: u64) -> bool {
        self.below(1_000) < n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn micros(&mut self, max: u64) -> Duration {
        Duration::from_micros(self.below(max + 1))
    }
}

/// How often things happen in this seed's world, in permille of the occasions.
struct Climate {
    crashes: u64,
    hangs: u64,
    poison: u64,
    lies: u64,
    start_trouble: u64,
    stops: u64,
    initializer: bool,
    timeouts: u64,
    priorities: u64,
    bound: u64,
    ends: u64,
    resizes: u64,
    /// How often the memory of a worker has grown too much after a task.
    grows: u64,
}

impl Climate {
    fn roll(dice: &mut Dice) -> Self {
        Climate {
            crashes: dice.pick(&[0, 0, 20, 100, 400]),
            hangs: dice.pick(&[0, 0, 10, 50]),
            poison: dice.pick(&[0, 0, 0, 20]),
            lies: dice.pick(&[0, 0, 0, 5, 30]),
            start_trouble: dice.pick(&[0, 0, 0, 50, 300, 300]),
            stops: dice.pick(&[0, 0, 2, 10]),
            initializer: dice.permille(300),
            timeouts: dice.pick(&[0, 100, 500, 1_000]),
            priorities: dice.pick(&[0, 0, 300, 1_000]),
            bound: dice.pick(&[0, 0, 300, 1_000]),
            ends: dice.pick(&[0, 1, 3, 10]),
            resizes: dice.pick(&[0, 0, 300, 1_000]),
            grows: dice.pick(&[0, 0, 0, 20, 300]),
        }
    }

    fn calm() -> Self {
        Climate {
            crashes: 0,
            hangs: 0,
            poison: 0,
            lies: 0,
            start_trouble: 0,
            stops: 0,
            initializer: false,
            timeouts: 0,
            priorities: 0,
            bound: 0,
            ends: 0,
            resizes: 0,
            grows: 0,
        }
    }
}

struct Step {
    at: Duration,
    what: &'static str,
    worker: Option<WorkerId>,
    task: Option<TaskId>,
}

/// A step of one worker, or a step of the pool for this worker.
#[derive(Clone, Copy)]
enum Turn {
    Starter(WorkerId),
    Boot(WorkerId),
    Hello(WorkerId),
    Work(WorkerId),
    Read(WorkerId),
    Reap(WorkerId),
}

/// How long tasks waited although a worker could run them or could be started for them.
#[derive(Default)]
struct Neglect {
    waited: Vec<Duration>,
    /// The same waits in multiples of the estimate, for estimates of a millisecond and more.
    estimates: Vec<f64>,
}

struct World {
    dice: Dice,
    climate: Climate,
    start: Instant,
    now: Instant,
    config: Config,
    /// The largest number of workers that was allowed at any time.
    workers_most: usize,
    scheduler: Scheduler<Ticket>,
    processes: BTreeMap<WorkerId, Process>,
    stories: Vec<Story>,
    /// The last task that has begun, of each worker to which tasks are bound and each priority.
    last_begun: BTreeMap<(Option<u32>, i32), TaskId>,
    shut_down: bool,
    cancelled_pending: bool,
    deadline: Option<Instant>,
    /// When the workers that are left are killed.
    kill_at: Option<Instant>,
    killed: bool,
    broken: bool,
    ever_ready: bool,
    start_troubles: Vec<Instant>,
    /// Whether the last failed start failed after the hello.
    trouble_in_initializer: bool,
    closed: bool,
    /// How long a start takes until the process exists.
    start_takes: Duration,
    /// How long tasks that are submitted from now on may wait for a worker.
    queue_timeout: Option<Duration>,
    /// The worker to which tasks are bound that are submitted from now on.
    bound_to: Option<u32>,
    /// The priority of tasks that are submitted from now on.
    priority: i32,
    /// How often tasks that are submitted from now on may be tried again.
    retries: u32,
    /// Tasks whose next attempt is to be decided.
    undecided: Vec<TaskId>,
    /// Tasks that are to be tried again, and when.
    later: Vec<(TaskId, Instant)>,
    /// Workers whose tasks wait for each other.
    meeting: Vec<WorkerId>,
    /// Since when tasks have waited although a worker could run them or could be started for them.
    neglects_since: Option<Instant>,
    neglect: Neglect,
    trace: VecDeque<Step>,
    counts: BTreeMap<&'static str, u64>,
    events: u64,
}

impl World {
    fn new(seed: u64, config: Config, climate: Climate) -> Self {
        let start = Instant::now();
        World {
            dice: Dice(seed),
            climate,
            start,
            now: start,
            scheduler: Scheduler::new(config.clone()),
            workers_most: config.workers_max,
            config,
            processes: BTreeMap::new(),
            stories: Vec::new(),
            last_begun: BTreeMap::new(),
            shut_down: false,
            cancelled_pending: false,
            deadline: None,
            kill_at: None,
            killed: false,
            broken: false,
            ever_ready: false,
            start_troubles: Vec::new(),
            trouble_in_initializer: false,
            closed: false,
            start_takes: Duration::ZERO,
            queue_timeout: None,
            bound_to: None,
            priority: 0,
            retries: 0,
            undecided: Vec::new(),
            later: Vec::new(),
            meeting: Vec::new(),
            neglects_since: None,
            neglect: Neglect::default(),
            trace: VecDeque::new(),
            counts: KINDS.iter().map(|kind| (*kind, 0)).collect(),
            events: 0,
        }
    }

    fn note(&mut self, what: &'static str, worker: Option<WorkerId>, task: Option<TaskId>) {
        *self.counts.get_mut(what).unwrap_or_else(|| panic!("{what:?} is not among the kinds")) +=
            1;
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(Step { at: self.now - self.start, what, worker, task });
    }

    fn process(&mut self, id: WorkerId) -> &mut Process {
        self.processes.get_mut(&id).expect("a worker of this world")
    }

    fn story(&mut self, task: TaskId) -> &mut Story {
        &mut self.stories[task.as_u64() as usize - 1]
    }

    fn unresolved(&self) -> usize {
        self.stories.iter().filter(|story| story.ending.is_none()).count()
    }

    // ---- the pool's part: one event, its actions, and the look at the result --------------------

    fn event<R>(
        &mut self,
        decide: impl FnOnce(&mut Scheduler<Ticket>, Instant, &Boards<'_>, &mut Vec<Action<Ticket>>) -> R,
    ) -> R {
        self.event_then(decide, |_, _| {})
    }

    /// Does the same as [`event`](Self::event). `then` records the scheduler's result before the
    /// actions are checked against the record.
    fn event_then<R>(
        &mut self,
        decide: impl FnOnce(&mut Scheduler<Ticket>, Instant, &Boards<'_>, &mut Vec<Action<Ticket>>) -> R,
        then: impl FnOnce(&mut Self, &R),
    ) -> R {
        self.events += 1;
        let mut actions = Vec::new();
        let result = decide(&mut self.scheduler, self.now, &Boards(&self.processes), &mut actions);
        then(self, &result);
        if !self.broken && matches!(self.scheduler.refusal(), Some(TaskError::Broken(_))) {
            // Nothing outside broke the pool, so failed starts must have been the reason.
            self.broken = true;
            let timeout = self.config.initializer_timeout;
            let late = |process: &Process| {
                let over = process
                    .greeted
                    .and_then(|at| at.checked_add(timeout))
                    .is_some_and(|at| at <= self.now);
                over && !process.ready
            };
            if self.processes.values().any(late) {
                self.note("an initializer takes too long", None, None);
                return self.perform_all(actions, result);
            }
            let recent = self
                .start_troubles
                .iter()
                .filter(|at| self.now - **at <= START_FAILURES_PERIOD)
                .count();
            let now = self.start_troubles.last() == Some(&self.now);
            assert!(now, "broken without a failed start");
            assert!(
                !self.ever_ready || recent >= START_FAILURES_MAX,
                "broken after {recent} failed starts"
            );
            // This event may have decided to kill a worker before it broke the pool.
            let to_kill = |id: &WorkerId| {
                actions.iter().any(|action| matches!(action, Action::Kill(other) if other == id))
            };
            let works = |(id, process): (&WorkerId, &Process)| {
                // Neither a worker whose end was seen and not reported yet, nor a stopped one.
                let lives = process.life != Life::Dead && !process.stopped;
                let fit = lives && process.ready && process.seen_stopped.is_none();
                let wanted = process.stop_sent.is_none() && process.killed.is_none();
                fit && wanted && !process.unread && !to_kill(id)
            };
            let before_hello = !self.trouble_in_initializer;
            assert!(
                !before_hello || !self.processes.iter().any(works),
                "broken while a worker works"
            );
        }
        self.perform_all(actions, result)
    }

    fn perform_all<R>(&mut self, actions: Vec<Action<Ticket>>, result: R) -> R {
        for action in actions {
            self.perform(action);
        }
        self.scheduler.check();
        result
    }

    fn perform(&mut self, action: Action<Ticket>) {
        assert!(!self.closed, "after the end: {action:?}");
        match action {
            Action::Start(id, index) => {
                let never_starts = self.dice.permille(self.climate.start_trouble / 20);
                let process = Process {
                    life: Life::Ordered,
                    index,
                    ordered: self.now,
                    launched: None,
                    never_starts,
                    stopped: false,
                    seen_stopped: None,
                    greeted: None,
                    taken_in: 0,
                    immortal: self.dice.permille(self.climate.stops * 10),
                    dies_at: None,
                    frames: VecDeque::new(),
                    running: None,
                    published: VecDeque::new(),
                    answered: None,
                    begun: Vec::new(),
                    words: RefCell::default(),
                    linked: false,
                    unread: false,
                    reaped: false,
                    ready: false,
                    ready_at: None,
                    rested: None,
                    surplus: false,
                    overdue: false,
                    refused: false,
                    caught: false,
                    lied: false,
                    grown: false,
                    stop_sent: None,
                    leaves: None,
                    asked: None,
                    terminated: None,
                    killed: None,
                    killed_for: None,
                };
                if never_starts {
                    self.note("start: never answers", Some(id), None);
                }
                assert!(self.processes.insert(id, process).is_none(), "{id:?} is used twice");
                let known = self.processes.keys().filter(|id| self.scheduler.knows(**id)).count();
                let Config { workers_max, spares, .. } = self.config;
                // With isolation, as many leave as run and are spare.
                let most = spares.map_or(workers_max, |spares| 2 * (workers_max + spares));
                assert!(known <= most, "{id:?} is one too many");
            }
            Action::Send(worker, (base, items, seq)) => {
                if self.config.spares.is_some() {
                    assert_eq!(items.count - items.first, 1, "a worker for each task");
                    assert!(self.processes[&worker].begun.is_empty(), "{worker:?} has run one");
                }
                for task in ids(base, items) {
                    assert!(self.story(task).ending.is_none(), "{task:?} is sent after its end");
                    let only = self.story(task).broadcast_to;
                    assert!(only.is_none_or(|to| to == worker), "{task:?} is for {only:?}");
                    if only.is_some() && self.scheduler.leaves(worker) {
                        let kind = "broadcast: sent to one that is to leave";
                        self.note(kind, Some(worker), Some(task));
                    }
                    let lied = |id: &WorkerId| self.processes.get(id).is_some_and(|one| one.lied);
                    let story = &self.stories[task.as_u64() as usize - 1];
                    if story.failed > 0 && story.begun.is_some_and(|(on, _)| lied(&on)) {
                        // It had answered before it began, and the attempt counts as failed.
                        self.story(task).begun = None;
                    }
                    assert!(
                        self.story(task).begun.is_none(),
                        "{task:?} is sent after its beginning"
                    );
                }
                let Story { bound_to, broadcast_to, .. } = *self.story(item(base, items.first));
                let workers = self.config.workers_max as u32;
                // In a pool that has become smaller, workers may have indices that are too high.
                let smaller = self.config.workers_max < self.workers_most;
                let process = self.process(worker);
                assert!(
                    smaller || bound_to.is_none_or(|to| to % workers == process.index),
                    "{base:?} is bound to another worker"
                );
                // The worker may be dead: the scheduler learns that after the worker's last reply.
                assert!(process.linked && process.ready, "{worker:?} cannot take tasks");
                assert!(
                    process.killed.is_none()
                        && process.stop_sent.is_none()
                        && process.terminated.is_none()
                        && (!process.grown || broadcast_to.is_some()),
                    "{worker:?} is leaving"
                );
                let asked = process
                    .asked
                    .is_some_and(|(task, _)| process.words.borrow().holding.contains(&task));
                assert!(!asked, "something is sent behind a task that is asked to stop");
                let mut words = process.words.borrow_mut();
                assert!(
                    words.sent.last_key_value().is_none_or(|(last, _)| *last < seq),
                    "{seq} is no new number"
                );
                words.sent.insert(seq, (Word::Offered(items.first), base, items));
                words.holding.extend(ids(base, items));
                drop(words);
                if process.alive() {
                    process.frames.push_back(ToWorker::Run { base, seq, items });
                }
                if (base, items.count - items.first) != self.story(item(base, items.first)).chunk {
                    self.note("a chunk is split", Some(worker), Some(item(base, items.first)));
                }
            }
            Action::Stop(id) => {
                let (now, finalizes) = (self.now, self.config.finalizer.is_some());
                let process = self.process(id);
                assert!(process.linked && process.stop_sent.is_none());
                process.stop_sent = Some(now);
                let leaving = match finalizes {
                    _ if !process.ready => Leaving::Initializing,
                    true => Leaving::Finalizing,
                    false => Leaving::Ending,
                };
                process.leaves = Some((leaving, now));
                process.frames.push_back(ToWorker::Stop);
                let spent = self.config.tasks_max.map(|max| max as usize);
                let process = &self.processes[&id];
                let begun = self.begun_of_any(id);
                // A worker that lied may have run fewer tasks than its replies say.
                let retires = spent.is_some_and(|spent| begun == spent || process.lied);
                let grown = process.grown;
                let doomed = self.shut_down || self.killed || self.broken;
                match self.why_leaves(id) {
                    _ if doomed => {}
                    _ if grown => self.note("leaves because it has grown", Some(id), None),
                    _ if retires => self.note("leaves by its limit", Some(id), None),
                    Some(why) => self.note(why, Some(id), None),
                    None => panic!("{id:?} is stopped in an open pool"),
                }
                let process = &self.processes[&id];
                let left = process.words.borrow().holding.len();
                assert!(process.lied || left == 0, "{id:?} is stopped and has {left} tasks");
            }
            Action::Ask(id, seq) => self.ask(id, seq),
            Action::NotFinalized(id, end) => {
                let (leaving, since) = self.processes[&id].leaves.expect("it was asked to leave");
                assert_eq!(leaving, Leaving::Finalizing, "{id:?} runs no finalizer");
                match end {
                    End::Lost(worker) => assert_eq!(worker, id),
                    End::Error(TaskError::TimedOut { limit, phase: Phase::Run, .. }) => {
                        assert!(limit == self.config.finalizer_timeout);
                        assert!(since + limit <= self.now, "its finalizer had time left");
                    }
                    End::Error(TaskError::Shutdown) => assert!(self.killed || self.ends()),
                    End::Error(TaskError::Broken(_)) => assert!(self.broken),
                    other => panic!("a finalizer ends with {other:?}"),
                }
                self.note("a finalizer has no result", Some(id), None);
            }
            Action::Terminate(id) => {
                if !self.killed && !self.ends() {
                    self.ends_for_task(id);
                    assert!(self.config.graces.terminate.is_some_and(|grace| !grace.is_zero()));
                    self.note("terminated: for a task", Some(id), None);
                }
                let now = self.now;
                let obeys = self.dice.permille(700);
                let process = self.process(id);
                process.terminated = Some(now);
                if process.life == Life::Ordered {
                    // Only one overdue signal is kept. This world keeps SIGKILL.
                } else if obeys && process.alive() && !process.immortal && !process.stopped {
                    process.dies_at.get_or_insert(now);
                    self.note("obeys SIGTERM", Some(id), None);
                } else {
                    self.note("ignores SIGTERM", Some(id), None);
                }
            }
            Action::Kill(id) => {
                let why = self.why_killed(id);
                self.note(why, Some(id), None);
                let delay =
                    if self.dice.permille(300) { self.dice.micros(50_000) } else { Duration::ZERO };
                let now = self.now;
                let process = self.process(id);
                assert!(process.killed.is_none(), "{id:?} is killed twice");
                process.killed = Some(now);
                let kind = match process.life {
                    Life::Ordered => {
                        process.overdue = true;
                        return;
                    }
                    Life::Dead => return,
                    _ if process.immortal => "SIGKILL without effect",
                    _ => {
                        process.dies_at =
                            Some(process.dies_at.unwrap_or(now + delay).min(now + delay));
                        if delay.is_zero() {
                            return;
                        }
                        "SIGKILL takes time"
                    }
                };
                self.note(kind, Some(id), None);
            }
            Action::Resolve(resolve) => {
                let (Ticket { base, items, left, .. }, end) = *resolve;
                // A worker that cannot be killed may read the arguments for ever.
                let mut living = self
                    .processes
                    .values()
                    .filter(|process| process.alive() && process.killed.is_some());
                let is_read = living.any(|process| {
                    // After its reply a worker reads them no more.
                    let last = process.begun.last().filter(|last| process.answered != Some(**last));
                    last.is_some_and(|last| ids(base, items).any(|task| task == *last))
                });
                assert!(
                    left.get() || !is_read,
                    "the arguments of {base:?} are used again while they are read"
                );
                if is_read {
                    self.note("a worker that was given up reads on", None, None);
                }
                ids(base, items).for_each(|task| self.on_resolve(task, end.clone()));
            }
            Action::Undecided(undecided) => {
                let (task, end) = *undecided;
                let is_lost = matches!(end, End::Lost(_));
                let kind = if is_lost { "an attempt is lost" } else { "an attempt times out" };
                match end {
                    End::Lost(worker) => assert!(self.begun_on(task, worker)),
                    End::Error(TaskError::TimedOut { limit, phase: Phase::Run, .. }) => {
                        let story = self.story(task);
                        let (_, began) = story.begun.expect("it has begun");
                        assert_eq!(story.timeout, Some(limit));
                        assert!(began + limit <= self.now, "{task:?} has timed out too early");
                    }
                    other => panic!("{task:?} is not to be tried again after {other:?}"),
                }
                self.on_failed_attempt(task, is_lost, kind);
            }
            Action::WarnNotStopping(id, grace) => {
                let (leaving, since) = self.processes[&id].leaves.expect("it was asked to leave");
                assert!(grace == STOP_GRACE && since + grace <= self.now, "{id:?} has time left");
                assert_ne!(leaving, Leaving::Finalizing, "the finalizer has a timeout of its own");
            }
            Action::Closed => {
                assert_eq!(self.unresolved(), 0, "closed over unresolved tasks");
                assert!(self.shut_down || self.killed || self.broken, "closed while open");
                self.closed = true;
                self.note("closed", None, None);
            }
        }
    }

    /// Returns why a worker of an open pool is asked to leave, if there is a reason.
    fn why_leaves(&self, id: WorkerId) -> Option<&'static str> {
        let Lifespan { idle_timeout, lifetime_max } = self.config.lifespan;
        let process = &self.processes[&id];
        let since = |at: Option<Instant>, time: Option<Duration>| {
            at.zip(time)
                .and_then(|(at, time)| at.checked_add(time))
                .is_some_and(|at| at <= self.now)
        };
        if since(process.ready_at, lifetime_max.map(|lifetime| lifetime / 10 * 9)) {
            return Some("leaves: old");
        }
        if process.surplus {
            return Some(match process.begun.is_empty() {
                true => "leaves: too many",
                false => "leaves: too many, after its task",
            });
        }
        let idle = since(process.rested, idle_timeout);
        let min = self.config.workers_min.min(self.config.workers_max);
        (idle && self.staying() >= min).then_some("leaves: idle")
    }

    /// Returns the number of workers that are not known to be about to end.
    fn staying(&self) -> usize {
        let stays = |(id, process): &(&WorkerId, &Process)| {
            let ends = process.killed.is_some() || process.terminated.is_some();
            process.stop_sent.is_none() && !ends && self.scheduler.knows(**id)
        };
        self.processes.iter().filter(stays).count()
    }

    /// Returns why a worker is killed. There must be a reason.
    fn why_killed(&mut self, id: WorkerId) -> &'static str {
        let (now, start_timeout) = (self.now, self.config.start_timeout);
        let over = self.shut_down && self.unresolved() == 0;
        let process = &self.processes[&id];
        let since = |at: Option<Instant>, grace: Duration| {
            at.and_then(|at| at.checked_add(grace)).is_some_and(|at| at <= now)
        };
        if self.killed
            || self.ends()
            || self.broken
            || self.scheduler.refusal().is_some_and(|why| why.is_broken())
        {
            return "killed: pool ends";
        }
        if process.caught {
            return "killed: protocol violation";
        }
        if process.refused {
            return "killed: initializer refused";
        }
        match process.leaves {
            Some((Leaving::Finalizing, at)) if since(Some(at), self.config.finalizer_timeout) => {
                return "killed: finalizer timeout";
            }
            Some((Leaving::Initializing | Leaving::Ending, at)) if since(Some(at), STOP_GRACE) => {
                return "killed: did not stop";
            }
            _ => {}
        }
        if since(process.seen_stopped, STOPPED_GRACE) {
            return "killed: stopped";
        }
        if !process.linked {
            let launch_timeout = self.config.launch_timeout;
            let latest = process.ordered + launch_timeout;
            let started = process.launched.unwrap_or(latest).min(latest);
            assert!(
                over || since(Some(started), start_timeout),
                "{id:?} is killed while it starts"
            );
            return if over { "killed: pool ends" } else { "killed: start timeout" };
        }
        if !process.ready && since(process.greeted, self.config.initializer_timeout) {
            return "killed: initializer timeout";
        }
        // The worker was sent a task and has not begun it for as long as a start may last.
        let front = process.words.borrow().holding.front().copied();
        if front.is_some_and(|front| !self.begun_on(front, id))
            && since(Some(process.ordered), start_timeout)
        {
            return "killed: deaf";
        }
        self.ends_for_task(id);
        "killed: for a task"
    }

    /// Checks that a worker may be ended because of the task that it runs. That must be the task
    /// that it began last: otherwise it runs another task, which is innocent.
    fn ends_for_task(&mut self, id: WorkerId) {
        let now = self.now;
        let since = |at: Option<Instant>, grace: Duration| {
            at.and_then(|at| at.checked_add(grace)).is_some_and(|at| at <= now)
        };
        let process = &self.processes[&id];
        let Some(&task) = process.begun.last() else {
            panic!("{id:?} is killed and has begun nothing")
        };
        let story = &self.stories[task.as_u64() as usize - 1];
        let (_, began) = story.begun.expect("noted at the claim");
        assert!(story.ending.is_none(), "{id:?} is killed for {task:?}, which has ended");
        assert!(
            story.cancel_running_asked
                || since(Some(began), story.timeout.unwrap_or(Duration::MAX)),
            "{id:?} is killed while it runs {task:?} rightfully"
        );
        assert!(
            process
                .words
                .borrow()
                .holding
                .iter()
                .all(|held| *held == task || self.begun_on(*held, id))
        );
        let Graces { cancel, terminate } = self.config.graces;
        if !cancel.is_zero() {
            let (asked, at) = process.asked.expect("it is asked first");
            assert!(asked == task && at + cancel <= now, "{task:?} had time left to stop");
        }
        if let Some(grace) = terminate.filter(|grace| !grace.is_zero())
            && let Some(at) = process.terminated
        {
            assert!(at + grace <= now, "{id:?} had time left after SIGTERM");
        }
        self.process(id).killed_for = Some(task);
    }

    /// Returns how many tasks a worker has begun that any worker could have run.
    fn begun_of_any(&self, id: WorkerId) -> usize {
        let any = |task: &&TaskId| self.stories[task.as_u64() as usize - 1].broadcast_to.is_none();
        self.processes[&id].begun.iter().filter(any).count()
    }

    /// Submits a task for each worker, and perhaps for one that has left.
    fn broadcast(&mut self) {
        let mut workers = self.scheduler.reachable();
        let last = self.processes.keys().next_back().map_or(0, |id| id.0);
        let gone = WorkerId(self.dice.below(u64::from(last) + 1) as u32);
        if !self.scheduler.knows(gone) {
            self.note("broadcast: to a worker that has left", Some(gone), None);
            workers.push(gone);
        }
        for id in workers {
            let process = self.processes.get(&id);
            if process.is_some_and(|process| process.life == Life::Ordered) {
                self.note("broadcast: to one that is ordered", Some(id), None);
            }
            let (conduct, timeout) = (self.any_conduct(), self.any_timeout());
            self.queue_timeout = self.any_timeout();
            let function = self.dice.below(6);
            let (ticket, ..) = self.ticket(function, timeout, &[conduct]);
            self.queue_timeout = None;
            let task = ticket.base;
            self.story(task).broadcast_to = Some(id);
            self.note("broadcast", Some(id), Some(task));
            self.event(|scheduler, now, claims, out| {
                scheduler.on_broadcast(now, [(id, ticket)], claims, out);
            });
        }
    }

    /// Returns whether the time for a shutdown is over, so that the rest is ended.
    fn ends(&self) -> bool {
        [self.deadline, self.kill_at].iter().flatten().any(|at| *at <= self.now)
    }

    /// A task is asked to stop, and perhaps does.
    fn ask(&mut self, id: WorkerId, seq: u32) {
        let now = self.now;
        let (_, task, items) = self.processes[&id].words.borrow().sent[&seq];
        let ends = self.ends() && self.story(item(task, items.first)).chunk.1 > 1;
        let task = match self.processes[&id].words.borrow().sent[&seq] {
            (Word::Begun(at) | Word::Last(at), base, _) => item(base, at),
            _ => panic!("{task:?} is asked before it has begun"),
        };
        let story = self.story(task);
        let over = story.begun.and_then(|(_, at)| at.checked_add(story.timeout?));
        let itself = story.cancel_running_asked || over.is_some_and(|at| at <= now);
        assert!(itself || ends || self.ends(), "{task:?} is asked to stop without a reason");
        let kind = if itself { "asked: for a task" } else { "asked: the pool ends" };
        self.note(kind, Some(id), Some(task));
        let (obeys, takes) = (self.dice.permille(500), self.dice.micros(2_000_000));
        let process = self.process(id);
        if itself {
            process.asked = Some((task, now));
        }
        if let Some(Running::Task { task: running, until, .. }) = &mut process.running
            && *running == task
            && obeys
        {
            let at = now + takes;
            *until = Some(until.map_or(at, |until| until.min(at)));
        }
    }

    fn begun_on(&self, task: TaskId, worker: WorkerId) -> bool {
        matches!(self.stories[task.as_u64() as usize - 1].begun, Some((on, _)) if on == worker)
    }

    /// Records that an attempt has failed, and that another one may follow.
    fn on_failed_attempt(&mut self, task: TaskId, lost: bool, kind: &'static str) {
        assert!(!self.cancelled_pending, "{task:?} may not begin again");
        let story = self.story(task);
        assert!(story.ending.is_none() && !story.held, "{task:?} fails after its end");
        story.failed += 1;
        story.lost += u32::from(lost);
        assert!(story.failed <= story.retries, "{task:?} has too many attempts");
        assert!(story.lost < story.losses, "{task:?} loses too many workers");
        (story.begun, story.held, story.first_in_line) = (None, true, 0);
        let conduct = self.any_conduct();
        self.story(task).conduct = conduct;
        self.note(kind, None, Some(task));
        self.undecided.push(task);
    }

    /// Decides about a task whose attempt has failed.
    fn decide(&mut self) {
        let at = self.dice.below(self.undecided.len() as u64) as usize;
        let task = self.undecided.swap_remove(at);
        if self.story(task).ending.is_some() {
            self.note("decided too late", None, Some(task));
        }
        let over = self.story(task).ending.is_some();
        if self.dice.permille(300) {
            self.note("decided: not again", None, Some(task));
            let error = TaskError::invalid("given up");
            self.event(|scheduler, now, _, out| scheduler.on_give_up(now, task, error, out));
            assert!(over || self.story(task).ending == Some(Ending::Failed));
            return;
        }
        let delay = self.dice.pick(&[0, 0, 1_000, 100_000, 10_000_000]);
        let delay = self.dice.micros(delay);
        let (kind, now) = match delay.is_zero() {
            true => ("decided: again at once", self.now),
            false => ("decided: again later", self.now),
        };
        self.note(kind, None, Some(task));
        if !over {
            self.later.push((task, now + delay));
            // The scheduler looks at all that is due, but not after a decision that comes too late.
            self.again();
        }
        self.event(|scheduler, now, claims, out| scheduler.on_retry(now, task, delay, claims, out));
    }

    /// Records which tasks wait for a worker again from now on, at the latest.
    fn again(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.later.extract_if(.., |(_, at)| *at <= now).collect();
        for (task, _) in due {
            let story = self.story(task);
            (story.held, story.submitted) = (false, now);
        }
    }

    /// Checks that a task that ended without a reply ended for a valid reason.
    fn on_resolve(&mut self, task: TaskId, end: End) {
        self.later.retain(|(later, _)| *later != task);
        let broken = self.scheduler.refusal().is_some_and(|why| why.is_broken());
        let ended = self.killed || self.ends();
        let (now, shut_down, cancelled_pending) =
            (self.now, self.shut_down, self.cancelled_pending);
        let story = &self.stories[task.as_u64() as usize - 1];
        let (kind, ending) = match end {
            End::Lost(worker) => {
                let begun = matches!(story.begun, Some((on, _)) if on == worker);
                let awaited = story.broadcast_to == Some(worker) && story.begun.is_none();
                let thrice = story.begun.is_none() && story.first_in_line >= LOST_UNBEGUN_MAX;
                assert!(
                    begun || thrice || awaited,
                    "{task:?} is lost with {worker:?}, which had not begun it"
                );
                let process = self.processes.get(&worker);
                let over = |process: &Process| {
                    let given_up = process.killed.is_some_and(|at| at + KILL_GRACE <= now);
                    process.reaped || given_up || awaited && process.life == Life::Ordered
                };
                assert!(
                    process.is_none_or(over) || !self.scheduler.knows(worker),
                    "{task:?} is lost with {worker:?}, which lives"
                );
                let kind = match awaited {
                    _ if begun => "end: lost, begun",
                    true => "end: lost, of a broadcast",
                    false => "end: lost, first in line three times",
                };
                (kind, Ending::Lost)
            }
            End::Error(TaskError::TimedOut { limit, phase: Phase::Run, .. }) => {
                let (_, began) = story.begun.expect("a timeout counts from the beginning");
                assert_eq!(story.timeout, Some(limit));
                assert!(began + limit <= now, "{task:?} has timed out too early");
                ("end: timed out", Ending::TimedOut)
            }
            End::Error(TaskError::TimedOut { limit, phase: Phase::Queue, .. }) => {
                assert_eq!(story.begun, None, "{task:?} has begun, so it waits no longer");
                assert_eq!(story.queue_timeout, Some(limit));
                assert!(story.submitted + limit <= now, "{task:?} was ended too early");
                let sent = |process: &Process| {
                    process.words.borrow().sent.values().any(|(_, base, _)| *base == task)
                };
                let kind = match self.processes.values().any(sent) {
                    _ if story.failed > 0 => "end: waited too long, at a later attempt",
                    true => "end: waited too long, sent ahead",
                    false => "end: waited too long, queued",
                };
                (kind, Ending::TimedOut)
            }
            End::Error(TaskError::Cancelled) if story.begun.is_some() => {
                assert!(
                    story.cancel_running_asked,
                    "{task:?} has begun, and nobody asked to cancel it"
                );
                ("end: cancelled while running", Ending::Cancelled)
            }
            // `cancel` is being granted in this very event.
            End::Error(TaskError::Cancelled)
                if story.cancel_granted || story.cancel_running_asked =>
            {
                match story.held {
                    true => ("end: cancelled between two attempts", Ending::Cancelled),
                    false => ("end: cancelled", Ending::Cancelled),
                }
            }
            End::Error(TaskError::Cancelled) => {
                assert!(cancelled_pending, "{task:?} is cancelled, and nobody asked");
                ("end: cancelled by shutdown", Ending::Cancelled)
            }
            End::Error(TaskError::Shutdown) => {
                assert!(
                    ended || shut_down && story.begun.is_none(),
                    "{task:?} ends with a pool that lives"
                );
                ("end: shutdown", Ending::Shutdown)
            }
            End::Error(TaskError::Broken(_)) => {
                assert!(broken, "{task:?} is broken in a whole pool");
                ("end: broken", Ending::Broken)
            }
            End::GivenUp(_) => {
                assert!(story.held, "{task:?} is given up in the middle of an attempt");
                ("end: failed", Ending::Failed)
            }
            End::Error(error) => panic!("{task:?}: {error}"),
        };
        if story.cancel_running_granted {
            assert_eq!(
                ending,
                Ending::Cancelled,
                "`cancel_running` had said it would be cancelled"
            );
        }
        self.end(task, ending, kind);
    }

    fn end(&mut self, task: TaskId, ending: Ending, kind: &'static str) {
        let story = self.story(task);
        assert_eq!(story.ending, None, "{task:?} is resolved twice");
        story.ending = Some(ending);
        self.note(kind, None, Some(task));
    }

    // ---- the user -------------------------------------------------------------------------------

    fn submit(&mut self, function: u64, timeout: Option<Duration>, conduct: Conduct) -> TaskId {
        self.submit_chunk(function, timeout, &[conduct])
    }

    fn submit_chunk(
        &mut self,
        function: u64,
        timeout: Option<Duration>,
        conducts: &[Conduct],
    ) -> TaskId {
        let (ticket, task, count, open) = self.ticket(function, timeout, conducts);
        self.event(|scheduler, now, _, out| scheduler.on_submit(now, [ticket], out));
        for task in ids(task, Items { first: 0, count }) {
            assert_eq!(open, self.story(task).ending.is_none(), "taken in, or refused");
        }
        task
    }

    /// Makes a chunk, and its record. Returns also its first id, the number of its tasks, and
    /// whether tasks are accepted.
    fn ticket(
        &mut self,
        function: u64,
        timeout: Option<Duration>,
        conducts: &[Conduct],
    ) -> (Ticket, TaskId, u32, bool) {
        const TAKES_MICROS: [u64; 6] = [1, 5, 30, 300, 20_000, 1_000_000];
        let most = TAKES_MICROS[function as usize];
        let chunk = (TaskId::from_raw(self.stories.len() as u64 + 1), conducts.len() as u32);
        let estimate = self.scheduler.ended_estimate(FnId(function));
        for &conduct in conducts {
            let takes = Duration::from_micros(most / 2) + self.dice.micros(most);
            self.stories.push(Story {
                chunk,
                timeout,
                queue_timeout: self.queue_timeout,
                bound_to: self.bound_to,
                priority: self.priority,
                retries: self.retries,
                losses: LOSSES,
                failed: 0,
                lost: 0,
                held: false,
                conduct,
                takes,
                submitted: self.now,
                function: FnId(function),
                broadcast_to: None,
                estimate,
                begun: None,
                ending: None,
                first_in_line: 0,
                cancel_granted: false,
                cancel_running_asked: false,
                cancel_running_granted: false,
            });
        }
        let (task, count) = chunk;
        let open = self.scheduler.refusal().is_none();
        self.note(if open { "submit" } else { "submit: refused" }, None, Some(task));
        if timeout.is_some() {
            self.note("submit: with a timeout", None, Some(task));
        }
        if count > 1 {
            self.note("submit: a chunk of several", None, Some(task));
        }
        if self.queue_timeout.is_some() {
            self.note("submit: with a limit on waiting", None, Some(task));
        }
        let wait =
            self.queue_timeout.and_then(|timeout| Some((self.now.checked_add(timeout)?, timeout)));
        let items = Items { first: 0, count };
        let (function, left) = (FnId(function), Rc::default());
        if self.retries > 0 {
            self.note("submit: with retries", None, Some(task));
        }
        let (retries, losses, priority) = (self.retries, LOSSES, self.priority);
        if priority != 0 {
            self.note("submit: with a priority", None, Some(task));
        }
        let bound_to = self.bound_to;
        if bound_to.is_some() {
            self.note("submit: bound to a worker", None, Some(task));
        }
        let base = task;
        let ticket = Ticket {
            function,
            timeout,
            wait,
            bound_to,
            priority,
            retries,
            losses,
            base,
            items,
            left,
        };
        (ticket, task, count, open)
    }

    fn any_conduct(&mut self) -> Conduct {
        match self.dice.below(1_000) {
            n if n < self.climate.poison => Conduct::Poison,
            n if n < self.climate.poison + self.climate.hangs => Conduct::Hangs,
            n if n < self.climate.poison + self.climate.hangs + self.climate.crashes => {
                self.dice.pick(&[Conduct::Crashes, Conduct::ReturnsAndDies, Conduct::Fails])
            }
            _ => Conduct::Returns,
        }
    }

    fn submit_any(&mut self) {
        let count = self.dice.pick(&[1, 1, 1, 2, 5, 20, 80]);
        let slow = self.dice.permille(150);
        let function = if slow { 4 + self.dice.below(2) } else { self.dice.below(4) };
        if count > 1 && self.dice.permille(400) {
            let conducts: Vec<_> = (0..count).map(|_| self.any_conduct()).collect();
            self.bound_to = self.any_worker();
            self.submit_chunk(function, None, &conducts);
            self.bound_to = None;
            return;
        }
        for _ in 0..count {
            self.bound_to = self.any_worker();
            let conduct = self.any_conduct();
            let timeout = self.any_timeout();
            self.queue_timeout = self.any_timeout();
            self.retries = self.dice.pick(&[0, 0, 1, 2, 5]);
            self.priority = self.any_priority();
            self.submit(function, timeout, conduct);
            (self.queue_timeout, self.retries, self.priority) = (None, 0, 0);
            self.bound_to = None;
        }
    }

    /// Returns a worker to which a task is bound. It may be one beyond the number of workers.
    fn any_worker(&mut self) -> Option<u32> {
        let workers = self.config.workers_max as u64 + 1;
        self.dice.permille(self.climate.bound).then(|| self.dice.below(workers) as u32)
    }

    fn any_priority(&mut self) -> i32 {
        if self.dice.permille(self.climate.priorities) {
            self.dice.pick(&[-1, 1, 1, 2, 7, i32::MIN, i32::MAX])
        } else {
            0
        }
    }

    fn any_timeout(&mut self) -> Option<Duration> {
        self.dice.permille(self.climate.timeouts).then(|| {
            let micros = self.dice.pick(&[0, 1, 100, 10_000, 1_000_000, 10_000_000]);
            self.dice.pick(&[
                Duration::from_micros(micros),
                Duration::from_micros(micros),
                Duration::MAX,
            ])
        })
    }

    /// Cancels the tasks of a chunk that have not begun.
    fn cancel_chunk(&mut self, (base, count): (TaskId, u32)) {
        self.note("cancel: a chunk", None, Some(base));
        let all = || ids(base, Items { first: 0, count });
        let withdrawn: Vec<_> = all()
            .filter(|task| self.story(*task).ending.is_none() && self.story(*task).begun.is_none())
            .collect();
        for task in &withdrawn {
            self.story(*task).cancel_granted = true;
        }
        self.event(|scheduler, now, claims, out| {
            scheduler.on_cancel_chunk(now, base, count, claims, out)
        });
        for task in withdrawn {
            assert_eq!(
                self.story(task).ending,
                Some(Ending::Cancelled),
                "{task:?} could be withdrawn"
            );
        }
    }

    fn any_task(&mut self) -> Option<TaskId> {
        let recent = self.stories.len().min(1 + self.dice.pick(&[3, 30, 300])) as u64;
        (recent > 0).then(|| TaskId::from_raw(self.stories.len() as u64 - self.dice.below(recent)))
    }

    fn cancel(&mut self, task: TaskId) -> bool {
        if self.story(task).chunk.1 > 1 {
            let chunk = self.story(task).chunk;
            self.cancel_chunk(chunk);
            return false;
        }
        let before = self.story(task).ending;
        let pending = before.is_none() && self.story(task).begun.is_none();
        self.story(task).cancel_granted = true;
        let granted =
            self.event(|scheduler, now, claims, out| scheduler.on_cancel(now, task, claims, out));
        self.story(task).cancel_granted = granted;
        assert_eq!(granted, pending, "{task:?} can be withdrawn, or cannot");
        assert_eq!(granted, before != self.story(task).ending, "an answer that is true");
        self.note(if granted { "cancel: withdrawn" } else { "cancel: too late" }, None, Some(task));
        granted
    }

    fn cancel_running(&mut self, task: TaskId) -> bool {
        if self.story(task).chunk.1 > 1 {
            // A single task of a chunk has no handle.
            return false;
        }
        let asks = !self.config.graces.cancel.is_zero();
        let before = self.story(task).ending;
        self.story(task).cancel_running_asked = true;
        let granted = self.event(|scheduler, now, claims, out| {
            scheduler.on_cancel_running(now, task, claims, out)
        });
        let story = self.story(task);
        story.cancel_running_granted |= granted;
        story.cancel_running_asked = story.cancel_running_granted;
        let kind = match (granted, before == story.ending) {
            (false, unchanged) => {
                assert!(unchanged);
                "cancel_running: too late"
            }
            (true, true) if asks => "cancel_running: asks",
            (true, true) => "cancel_running: kills",
            (true, false) => "cancel_running: withdrawn",
        };
        assert!(!granted || before.is_none());
        self.note(kind, None, Some(task));
        granted
    }

    fn resize(&mut self, workers_max: usize) {
        let old = std::mem::replace(&mut self.config.workers_max, workers_max);
        self.workers_most = self.workers_most.max(workers_max);
        let staying = self.staying();
        self.note(if workers_max > old { "resize: grows" } else { "resize: shrinks" }, None, None);
        if staying > workers_max {
            // Any of them may be the one that leaves.
            self.processes.values_mut().for_each(|process| process.surplus = true);
        }
        self.event(|scheduler, now, claims, out| {
            scheduler.on_resize(now, workers_max, claims, out);
        });
        // With isolation, none that is about to leave is kept.
        if workers_max > old && workers_max >= staying && self.config.spares.is_none() {
            let surplus = self.processes.values_mut().filter(|process| process.stop_sent.is_none());
            let kept = surplus.map(|process| std::mem::take(&mut process.surplus));
            if kept.filter(|surplus| *surplus).count() > 0 {
                self.note("resize: one that was about to leave stays", None, None);
            }
        }
    }

    fn shutdown(&mut self, cancel_pending: bool, deadline: Option<Instant>) {
        self.note("shutdown", None, None);
        self.shut_down = true;
        if cancel_pending {
            self.cancelled_pending = true;
            self.note("shutdown: cancel pending", None, None);
        }
        if let Some(deadline) = deadline {
            self.deadline = Some(self.deadline.map_or(deadline, |old| old.min(deadline)));
            self.note("shutdown: deadline", None, None);
        }
        let grace = |dice: &mut Dice| {
            let millis = dice.pick(&[0, 50, 2_000]);
            dice.permille(300).then_some(Duration::from_millis(millis))
        };
        let (cancel_grace, terminate_grace) = (grace(&mut self.dice), grace(&mut self.dice));
        let kill_at = deadline.filter(|_| self.dice.permille(500)).map(|at| at + A_MOMENT);
        if let Some(at) = kill_at {
            self.kill_at = Some(self.kill_at.map_or(at, |old| old.min(at)));
            self.note("shutdown: with a limit for the whole", None, None);
        }
        let how = Shutdown { cancel_pending, deadline, cancel_grace, terminate_grace, kill_at };
        self.event(|scheduler, now, claims, out| {
            scheduler.on_shutdown(now, how, claims, out);
        });
        if cancel_pending {
            assert!(
                self.stories.iter().all(|story| story.ending.is_some() || story.begun.is_some())
            );
        }
    }

    fn kill(&mut self, at_once: bool) {
        self.note(if at_once { "kill: at once" } else { "kill: terminate first" }, None, None);
        self.killed = true;
        self.event(|scheduler, now, _, out| scheduler.on_kill(now, at_once, out));
    }

    fn break_it(&mut self) {
        self.note("broken from outside", None, None);
        self.broken = true;
        let cause = BrokenCause::Internal("the simulation".into());
        self.event(|scheduler, now, _, out| scheduler.on_broken(now, cause, out));
    }

    // ---- the driver and the readers -------------------------------------------------------------

    fn tick(&mut self) {
        self.again();
        let due = self.scheduler.next_deadline().is_some_and(|at| at <= self.now);
        self.note(if due { "tick: due" } else { "tick: early" }, None, None);
        // The tick decides about workers that are given up in it. Their first tasks count as at a
        // death.
        let given_up: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.killed.is_some_and(|at| at + KILL_GRACE <= self.now))
            .map(|(id, _)| *id)
            .filter(|id| self.scheduler.knows(*id))
            .collect();
        for id in &given_up {
            self.count_losses(*id);
        }
        self.event(|scheduler, now, claims, out| scheduler.on_tick(now, claims, out));
        for id in given_up {
            assert!(!self.scheduler.knows(id), "{id:?} is not given up");
            self.note("given up", Some(id), None);
        }
        for (story, number) in self.stories.iter().zip(1..) {
            let limit = story.queue_timeout.and_then(|limit| story.submitted.checked_add(limit));
            let waits = story.ending.is_none() && story.begun.is_none() && !story.held;
            let over = limit.is_some_and(|at| at <= self.now);
            assert!(!waits || !over, "task {number} waits after its limit");
        }
        // If something stayed due, the driver would tick again and again.
        let next = self.scheduler.next_deadline();
        assert!(next.is_none_or(|at| at > self.now), "a tick leaves something due: {next:?}");
    }

    /// Lets the driver check which workers are stopped.
    fn look_at_stopped(&mut self) {
        let linked =
            |process: &Process| process.linked && process.alive() && process.killed.is_none();
        let all = self.processes.iter().filter(|(_, process)| linked(process));
        for id in all.map(|(id, _)| *id).collect::<Vec<_>>() {
            let (now, for_good, has_run) =
                (self.now, self.dice.permille(500), self.dice.permille(200));
            let Some(process) = self.processes.get_mut(&id) else { continue };
            if process.stopped {
                if has_run {
                    process.seen_stopped = None;
                }
                process.seen_stopped.get_or_insert(now);
                self.note("seen stopped", Some(id), None);
                self.event(|scheduler, now, claims, out| {
                    scheduler.on_stopped(now, id, for_good, has_run, claims, out);
                });
                let holding = self.processes[&id].words.borrow().holding.clone();
                let begun = |task: &TaskId| {
                    let story = &self.stories[task.as_u64() as usize - 1];
                    story.begun.is_some() || story.broadcast_to.is_some()
                };
                let lied = self.processes[&id].lied;
                // A worker that is about to end gives back its tasks when it has ended.
                let doomed = self.killed || self.broken || self.processes[&id].terminated.is_some();
                assert!(
                    doomed || lied || holding.iter().all(begun),
                    "{id:?} keeps what it has not begun"
                );
            } else if process.seen_stopped.take().is_some() {
                self.note("seen to go on", Some(id), None);
                self.event(|scheduler, now, claims, out| {
                    scheduler.on_continued(now, id, claims, out)
                });
            }
        }
    }

    /// Updates the record before the scheduler decides about a worker's end.
    fn count_losses(&mut self, id: WorkerId) {
        let process = &self.processes[&id];
        if !process.ready && process.terminated.is_none() && process.stop_sent.is_none() {
            let expected = self.killed
                || self.ends()
                || self.broken
                || self.shut_down && self.unresolved() == 0;
            if !expected {
                self.trouble_in_initializer = process.linked;
                self.start_troubles.push(self.now);
            }
        }
        let first = process.words.borrow().holding.front().copied();
        if let Some(task) = first
            && self.story(task).begun.is_none()
        {
            self.story(task).first_in_line += 1;
        }
    }

    fn on_starter(&mut self, id: WorkerId) {
        let trouble = self.climate.start_trouble;
        if self.dice.permille(trouble) {
            self.note("start: refused", Some(id), None);
            self.refuse_start(id);
            self.processes.remove(&id);
            return;
        }
        self.note("start: a process", Some(id), None);
        let now = self.now;
        let process = self.process(id);
        process.life = Life::Booting;
        process.launched = Some(now);
        self.event(|scheduler, now, _, _| scheduler.on_launched(now, id));
        let process = self.process(id);
        if process.overdue {
            process.immortal = false;
            process.dies_at = Some(now);
            self.note("start: overdue signal", Some(id), None);
        }
    }

    fn refuse_start(&mut self, id: WorkerId) {
        if self.scheduler.knows(id) {
            self.trouble_in_initializer = false;
            self.start_troubles.push(self.now);
        }
        let cause = BrokenCause::Start("refused".into());
        self.event(|scheduler, now, _, out| scheduler.on_start_refused(now, id, cause, out));
    }

    fn on_hello(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.start_trouble / 20) {
            self.note("hello: connecting fails", Some(id), None);
            self.process(id).die();
            self.refuse_start(id);
            return;
        }
        let (initializer, now) = (self.climate.initializer, self.now);
        let process = self.process(id);
        process.life = Life::Connected;
        process.linked = true;
        process.greeted = Some(now);
        self.note("hello", Some(id), None);
        let (knows, killed) = (self.scheduler.knows(id), self.processes[&id].killed.is_some());
        // A worker that was only sent SIGTERM is not wanted either.
        let wanted = knows && !killed && self.processes[&id].terminated.is_none();
        if wanted && !initializer {
            self.is_ready(id);
        }
        let welcome = self.event(|scheduler, now, claims, out| {
            let welcome = scheduler.on_hello(now, id);
            if welcome && !initializer {
                scheduler.on_ready(now, id, claims, out);
            }
            welcome
        });
        assert_eq!(welcome, wanted, "{id:?} is wanted, or is not");
        if welcome && !initializer {
            self.note("ready", Some(id), None);
        }
        if !welcome {
            self.note("hello: nobody wants it", Some(id), None);
        } else if initializer {
            self.process(id).frames.push_front(ToWorker::Init);
        }
    }

    fn is_ready(&mut self, id: WorkerId) {
        let now = self.now;
        let process = self.process(id);
        process.ready = true;
        (process.ready_at, process.rested) = (Some(now), Some(now));
        self.ever_ready = true;
    }

    /// Reads up to `at_most` messages of one worker as one event. If there are none, the worker is
    /// dead, and its end is read.
    fn on_read(&mut self, id: WorkerId, at_most: usize) {
        let process = self.process(id);
        if process.published.is_empty() {
            assert!(process.reaped);
            return self.on_exit(id);
        }
        let count = process.published.len().min(at_most);
        let mut batch: Vec<FromWorker> = process.published.drain(..count).collect();
        let garbage = batch.iter().position(|message| *message == FromWorker::Garbage);
        if let Some(at) = garbage {
            batch.truncate(at);
            process.unread = true;
            process.published.clear();
        }
        if count > 1 {
            self.note("batch of replies", Some(id), None);
        }
        let (now, finalizes) = (self.now, self.config.finalizer.is_some());
        // All replies of a batch are processed before any action is performed, as in the pool.
        for message in &batch {
            match message {
                FromWorker::InitFailed => self.broken = true,
                FromWorker::InitRefused => {
                    let known = self.scheduler.knows(id);
                    let process = self.process(id);
                    process.refused = known && !process.caught;
                }
                FromWorker::Unexpected => self.process(id).caught = true,
                FromWorker::Reply(task)
                    if self.processes[&id].words.borrow().holding.front() != Some(task) =>
                {
                    // It is not this task's turn: a lie, or a reply of a worker that was given up.
                    self.process(id).caught = true;
                }
                FromWorker::Reply(task) if self.processes[&id].killed_for != Some(*task) => {
                    let now = self.now;
                    let process = self.process(id);
                    process.rested = Some(now);
                    process.words.borrow_mut().holding.pop_front();
                }
                FromWorker::Ready => {
                    let process = self.process(id);
                    if !process.caught && process.killed.is_none() && process.terminated.is_none() {
                        match process.leaves {
                            None => self.is_ready(id),
                            Some(_) => {
                                let leaving = match finalizes {
                                    true => Leaving::Finalizing,
                                    false => Leaving::Ending,
                                };
                                process.ready = true;
                                process.leaves = Some((leaving, now));
                            }
                        }
                    }
                }
                FromWorker::Finalized => {
                    let process = self.process(id);
                    if let Some((leaving @ Leaving::Finalizing, since)) = &mut process.leaves {
                        (*leaving, *since) = (Leaving::Ending, now);
                    }
                }
                _ => {}
            }
        }
        let takes: Vec<u64> = batch
            .iter()
            .map(|message| match message {
                FromWorker::Reply(task) => self.stories.get(task.as_u64() as usize - 1),
                _ => None,
            })
            .map(|story| story.map_or(0, |story| story.takes.as_nanos() as u64))
            .collect();
        let fails: Vec<_> = batch
            .iter()
            .filter_map(|message| match message {
                FromWorker::Reply(task) => Some(*task),
                _ => None,
            })
            .filter(|task| {
                let story = self.stories.get(task.as_u64() as usize - 1);
                story.is_some_and(|story| story.conduct == Conduct::Fails)
            })
            .collect();
        let grows: Vec<bool> =
            batch.iter().map(|_| self.dice.permille(self.climate.grows)).collect();
        self.event_then(
            |scheduler, now, claims, out| {
                let mut decide = |scheduler: &mut Scheduler<Ticket>, message, nanos| match message {
                    FromWorker::Ready => {
                        let leaves = scheduler.leaves_after_initializer(id);
                        scheduler.on_ready(now, id, claims, out);
                        (if leaves { "ready to leave" } else { "ready" }, None)
                    }
                    FromWorker::Finalized => {
                        // A worker that was given up may still run its own.
                        scheduler.on_finalized(now, id);
                        ("a finalizer ends", None)
                    }
                    FromWorker::InitFailed => {
                        let cause = BrokenCause::Internal("the initializer".into());
                        scheduler.on_broken(now, cause, out);
                        ("initializer fails", None)
                    }
                    FromWorker::InitRefused => {
                        scheduler.on_initializer_refused(now, id, out);
                        ("initializer is refused", None)
                    }
                    FromWorker::Reply(task) => {
                        match scheduler.on_reply(now, id, task, 1, nanos, fails.contains(&task)) {
                            Ok(
                                Replied::Last(Ticket { base, .. }, at, count)
                                | Replied::Items(&Ticket { base, .. }, at, count),
                            ) => {
                                assert_eq!(
                                    (item(base, at), count),
                                    (task, 1),
                                    "a reply resolves the task it belongs to"
                                );
                                ("reply: value", Some(task))
                            }
                            Ok(Replied::Undecided(undecided)) => {
                                assert_eq!(undecided, task, "a reply belongs to its task");
                                ("reply: failed, perhaps to be tried again", Some(task))
                            }
                            Ok(Replied::Late) => ("reply: too late", Some(task)),
                            Err(ReplyToNobody) => {
                                scheduler.on_protocol_violation(now, id, out);
                                ("violates the protocol", Some(task))
                            }
                        }
                    }
                    FromWorker::Unexpected => {
                        scheduler.on_protocol_violation(now, id, out);
                        ("violates the protocol", None)
                    }
                    FromWorker::Garbage => unreachable!("cut off above"),
                };
                let mut answers = Vec::new();
                for ((message, nanos), grows) in batch.into_iter().zip(takes).zip(grows) {
                    let answer = decide(scheduler, message, nanos);
                    answers.push(answer);
                    if grows && answer.0.starts_with("reply: ") && scheduler.on_grown(id, claims) {
                        answers.push(("has grown", None));
                    }
                }
                scheduler.after_replies(now, id, claims, out);
                answers
            },
            |world, answers| {
                for &(what, task) in answers {
                    world.note(what, Some(id), task);
                    world.process(id).grown |= what == "has grown";
                    let asked = world.processes[&id].asked.map(|(task, _)| task);
                    if what == "reply: too late"
                        && task == asked
                        && world.processes[&id].killed_for.is_none()
                    {
                        world.process(id).asked = None;
                        world.note("asked: stops in time", Some(id), task);
                    }
                    if let ("reply: value", Some(task)) = (what, task) {
                        let just = world.begun_on(task, id) || world.processes[&id].lied;
                        assert!(just, "{task:?} is answered by {id:?}, which did not run it");
                        let fails = world.story(task).conduct == Conduct::Fails;
                        let (ending, kind) = match world.story(task).failed {
                            _ if fails => (Ending::Failed, "end: failed"),
                            0 => (Ending::Value, "end: value"),
                            _ => (Ending::Value, "end: value, at a later attempt"),
                        };
                        world.end(task, ending, kind);
                    }
                    if let ("reply: failed, perhaps to be tried again", Some(task)) = (what, task) {
                        let just = world.begun_on(task, id) || world.processes[&id].lied;
                        assert!(just, "{task:?} is answered by {id:?}, which did not run it");
                        world.on_failed_attempt(task, false, "an attempt fails");
                    }
                }
            },
        );
        if garbage.is_some() {
            if self.processes[&id].reaped {
                self.on_exit(id);
            } else {
                self.process(id).caught = true;
                self.note("violates the protocol", Some(id), None);
                self.event(|scheduler, now, _, out| scheduler.on_protocol_violation(now, id, out));
            }
        }
    }

    fn on_reap(&mut self, id: WorkerId) {
        let process = self.process(id);
        process.reaped = true;
        self.scheduler.on_ended(id);
        let process = self.process(id);
        if !process.linked || process.unread {
            self.on_exit(id);
        }
    }

    fn on_exit(&mut self, id: WorkerId) {
        let known = self.scheduler.knows(id);
        self.note(if known { "exit" } else { "exit: of one given up" }, Some(id), None);
        let process = self.process(id);
        process.unread = true;
        if process.refused {
            self.note("exit: after a refusal", Some(id), None);
            self.refuse_start(id);
        } else {
            if known {
                self.count_losses(id);
            }
            self.event(|scheduler, now, claims, out| {
                let cause = |_| BrokenCause::NoEntry { status: ExitStatus::Unknown };
                scheduler.on_exit(now, id, cause, claims, out);
            });
        }
        assert!(!self.scheduler.knows(id));
        self.processes.remove(&id);
    }

    // ---- the workers ----------------------------------------------------------------------------

    fn on_boot(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.start_trouble / 3) {
            self.note("dies before hello", Some(id), None);
            self.process(id).die();
        } else if self.dice.permille(self.climate.start_trouble / 5) {
            // The worker hangs before its hello.
            self.note("is stopped", Some(id), None);
            self.process(id).stopped = true;
        } else {
            self.process(id).life = Life::Greeted;
        }
    }

    fn on_work(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.lies) {
            return self.lie(id);
        }
        match self.process(id).running {
            Some(Running::Initializer { dies, says, .. }) => {
                let process = self.process(id);
                process.running = None;
                if dies {
                    process.die();
                    self.note("dies in the initializer", Some(id), None);
                } else {
                    process.publish(says);
                }
            }
            Some(Running::Finalizer { dies, .. }) => {
                let lingers = self.dice.permille(100);
                let process = self.process(id);
                process.running = None;
                if !dies {
                    process.publish(FromWorker::Finalized);
                }
                process.stopped |= lingers && !dies;
                if !process.stopped {
                    process.die();
                }
                let kind = if dies { "dies in the finalizer" } else { "exits as asked" };
                self.note(kind, Some(id), None);
            }
            Some(Running::Task { task, rest, .. }) => self.finish(id, task, rest),
            None => {
                let frame = self.process(id).frames.pop_front().expect("else it has no turn");
                self.take(id, frame);
            }
        }
    }

    fn finish(&mut self, id: WorkerId, task: TaskId, rest: Option<ToWorker>) {
        let conduct = self.story(task).conduct;
        let process = self.process(id);
        process.running = None;
        if let Some(rest) = rest {
            process.frames.push_front(rest);
        }
        if conduct == Conduct::Crashes {
            process.die();
            return self.note("dies in a task", Some(id), Some(task));
        }
        process.publish(FromWorker::Reply(task));
        process.answered = Some(task);
        let more = process.published.len() > 1;
        if conduct == Conduct::ReturnsAndDies && process.alive() {
            process.die();
            self.note("dies between reply and claim", Some(id), Some(task));
            if more {
                self.note("dies after publishing, unseen", Some(id), None);
            }
        }
        self.note("publishes a reply", Some(id), Some(task));
    }

    fn take(&mut self, id: WorkerId, frame: ToWorker) {
        let now = self.now;
        match frame {
            ToWorker::Init => {
                let takes = self.dice.micros(INITIALIZER_MAX.as_micros() as u64);
                let trouble = self.climate.start_trouble;
                let (dies, fails, refused, hangs) = (
                    self.dice.permille(trouble / 2),
                    self.dice.permille(trouble / 4),
                    self.dice.permille(trouble / 4),
                    self.dice.permille(self.climate.hangs),
                );
                let says = match (fails, refused) {
                    (true, _) => FromWorker::InitFailed,
                    (_, true) => FromWorker::InitRefused,
                    _ => FromWorker::Ready,
                };
                let until = if hangs { None } else { now.checked_add(takes) };
                self.process(id).running = Some(Running::Initializer { until, dies, says });
                if hangs {
                    self.note("hangs in the initializer", Some(id), None);
                }
            }
            ToWorker::Stop => {
                if self.dice.permille(100) {
                    let process = self.process(id);
                    process.stopped = true;
                    process.frames.push_front(ToWorker::Stop);
                    self.note("ignores stop", Some(id), None);
                } else if self.config.finalizer.is_some() {
                    let takes = self.dice.micros(INITIALIZER_MAX.as_micros() as u64);
                    let hangs = self.dice.permille(self.climate.hangs);
                    let dies = self.dice.permille(self.climate.crashes);
                    let until = if hangs { None } else { Some(now + takes) };
                    self.process(id).running = Some(Running::Finalizer { until, dies });
                    self.note("runs its finalizer", Some(id), None);
                } else {
                    self.process(id).die();
                    self.note("exits as asked", Some(id), None);
                }
            }
            ToWorker::Run { base, seq, items } | ToWorker::Rest { base, seq, items } => {
                let at = items.first;
                let task = item(base, at);
                let (conduct, takes) = (self.story(task).conduct, self.story(task).takes);
                let timed = self.story(task).timeout.is_some();
                let tasks_max = self.config.tasks_max;
                let process = self.process(id);
                let words = process.words.get_mut();
                let word = &mut words.sent.get_mut(&seq).expect("it was sent").0;
                let (expected, skips, claims) = match frame {
                    ToWorker::Run { .. } => {
                        (Word::Offered(at), "skips what was taken back", "claims")
                    }
                    _ => (
                        Word::Begun(at - 1),
                        "skips the rest of a chunk",
                        "claims the next of a chunk",
                    ),
                };
                if *word != expected {
                    return self.note(skips, Some(id), Some(task));
                }
                if conduct == Conduct::Poison {
                    process.die();
                    return self.note("dies of a frame, before the claim", Some(id), Some(task));
                }
                if timed {
                    words.began = Some(now);
                }
                *word = Word::Begun(at);
                process.begun.push(task);
                let waits = matches!(conduct, Conduct::Hangs | Conduct::Meets);
                let until = if waits { None } else { Some(now + takes) };
                let rest = Items { first: at + 1, ..items };
                let rest =
                    (rest.first < rest.count).then_some(ToWorker::Rest { base, seq, items: rest });
                process.running = Some(Running::Task { task, until, rest });
                let (killed_for, lied) = (process.killed_for, process.lied);
                self.note(claims, Some(id), Some(task));
                if conduct == Conduct::Hangs {
                    self.note("hangs in a task", Some(id), Some(task));
                }
                assert!(
                    tasks_max.is_none_or(|max| self.begun_of_any(id) <= max as usize),
                    "{id:?} has had enough"
                );
                assert_eq!(
                    killed_for, None,
                    "{task:?} begins behind a task that {id:?} is killed for"
                );
                let Story { failed, priority, bound_to, broadcast_to, .. } = *self.story(task);
                let again = failed > 0;
                if broadcast_to.is_none() {
                    let last =
                        self.last_begun.entry((bound_to, priority)).or_insert(TaskId::from_raw(0));
                    let in_order = self.workers_most > 1 || lied || again || task > *last;
                    assert!(in_order, "{task:?} begins after {last:?}");
                    *last = task.max(*last);
                }
                let story = self.story(task);
                assert!(story.ending.is_none() || lied, "{task:?} begins after its end");
                assert!(story.begun.is_none(), "{task:?} runs twice");
                story.begun = Some((id, now));
                let (submitted, estimate, function) =
                    (story.submitted, story.estimate, story.function);
                self.note_wait(submitted, estimate.max(self.scheduler.ended_estimate(function)));
                if conduct == Conduct::Meets {
                    self.meet(id);
                }
            }
        }
    }

    fn meet(&mut self, id: WorkerId) {
        self.meeting.push(id);
        if self.meeting.len() == self.config.workers_max {
            let now = self.now;
            for id in std::mem::take(&mut self.meeting) {
                if let Some(Running::Task { until, .. }) = &mut self.process(id).running {
                    *until = Some(now);
                }
            }
        }
    }

    fn lie(&mut self, id: WorkerId) {
        let behind = self.processes[&id].words.borrow().holding.iter().skip(1).last().copied();
        let answered = self.processes[&id].answered;
        let (what, message) = match (self.dice.below(5), answered, behind) {
            (0, Some(task), _) => ("lies: answers twice", FromWorker::Reply(task)),
            (1, _, Some(task)) => ("lies: out of order", FromWorker::Reply(task)),
            (2, ..) => ("lies: garbage", FromWorker::Garbage),
            (3, ..) => ("lies: garbage", FromWorker::Unexpected),
            _ => (
                "lies: a task it does not have",
                FromWorker::Reply(TaskId::from_raw(u64::MAX >> 3)),
            ),
        };
        self.note(what, Some(id), None);
        let process = self.process(id);
        process.lied = true;
        process.publish(message);
    }

    // ---- time and chance ------------------------------------------------------------------------

    /// Returns all steps that could happen now.
    fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (&id, process) in &self.processes {
            match process.life {
                Life::Ordered
                    if !process.never_starts && process.ordered + self.start_takes <= self.now =>
                {
                    turns.push(Turn::Starter(id));
                }
                Life::Booting if !process.stopped => turns.push(Turn::Boot(id)),
                Life::Greeted => turns.push(Turn::Hello(id)),
                Life::Connected if !process.stopped => {
                    let free = match process.running {
                        Some(
                            Running::Initializer { until, .. }
                            | Running::Task { until, .. }
                            | Running::Finalizer { until, .. },
                        ) => until.is_some_and(|until| until <= self.now),
                        None => !process.frames.is_empty(),
                    };
                    if free {
                        turns.push(Turn::Work(id));
                    }
                }
                Life::Dead if !process.reaped => turns.push(Turn::Reap(id)),
                _ => {}
            }
            if process.linked
                && !process.unread
                && (process.reaped || !process.published.is_empty())
            {
                turns.push(Turn::Read(id));
            }
        }
        turns
    }

    fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Starter(id) => self.on_starter(id),
            Turn::Boot(id) => self.on_boot(id),
            Turn::Hello(id) => self.on_hello(id),
            Turn::Work(id) => self.on_work(id),
            Turn::Reap(id) => self.on_reap(id),
            Turn::Read(id) => {
                let at_most = self.dice.pick(&[1, 2, 64]);
                self.on_read(id, at_most);
            }
        }
    }

    /// Takes one of the steps that could happen now. Returns `false` if there is none.
    fn any_turn(&mut self) -> bool {
        let turns = self.turns();
        if turns.is_empty() {
            return false;
        }
        let turn = self.dice.pick(&turns);
        self.take_turn(turn);
        true
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        let due: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| {
                process.alive() && process.dies_at.is_some_and(|at| at <= self.now)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.process(id).die();
        }
    }

    /// Returns when something will happen by itself.
    fn next_moment(&self) -> Option<Instant> {
        let work = self.processes.values().filter(|process| process.alive()).flat_map(|process| {
            let until = match process.running {
                Some(
                    Running::Initializer { until, .. }
                    | Running::Task { until, .. }
                    | Running::Finalizer { until, .. },
                ) if !process.stopped => until,
                _ => None,
            };
            [until, process.dies_at]
        });
        let starts = self.processes.values().filter(|process| process.life == Life::Ordered);
        let starts = starts.map(|process| process.ordered + self.start_takes);
        work.flatten()
            .chain(starts)
            .filter(|at| *at > self.now)
            .chain(self.scheduler.next_deadline())
            .min()
    }

    fn wait(&mut self) -> bool {
        let Some(next) = self.next_moment() else { return false };
        self.advance(next.saturating_duration_since(self.now));
        true
    }

    fn any_process(&mut self) -> Option<WorkerId> {
        let alive: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.alive())
            .map(|(id, _)| *id)
            .collect();
        (!alive.is_empty()).then(|| self.dice.pick(&alive))
    }

    fn anything(&mut self) {
        let pause = self.dice.pick(&[0, 0, 0, 5, 5, 50, 500, 5_000]);
        let pause = self.dice.micros(pause);
        self.advance(pause);
        if self.dice.permille(self.climate.ends) {
            return self.end_of_pool();
        }
        if self.dice.permille(self.climate.stops) {
            return self.stop_or_continue();
        }
        if self.dice.permille(self.climate.crashes / 20)
            && let Some(id) = self.any_process()
            && self.processes[&id].running.is_none()
            && self.processes[&id].life == Life::Connected
            && !self.processes[&id].immortal
        {
            self.process(id).die();
            return self.note("dies idle", Some(id), None);
        }
        match self.dice.below(100) {
            // Seldom when tasks are refused, because a refused task can end in only one way.
            0..=5 if self.scheduler.refusal().is_none() || self.dice.permille(50) => {
                self.submit_any()
            }
            6..=8 => {
                if let Some(task) = self.any_task() {
                    self.cancel(task);
                }
            }
            9..=10 => {
                let running: Vec<_> = self
                    .processes
                    .values()
                    .filter_map(|process| match process.running {
                        Some(Running::Task { task, .. }) => Some(task),
                        _ => None,
                    })
                    .collect();
                let task = match running.is_empty() || self.dice.permille(500) {
                    true => self.any_task(),
                    false => Some(self.dice.pick(&running)),
                };
                if let Some(task) = task {
                    self.cancel_running(task);
                }
            }
            11 if self.config.spares.is_none() && self.dice.permille(200) => self.broadcast(),
            11 => self.tick(),
            31..=50 if !self.undecided.is_empty() => self.decide(),
            51..=53 if !self.undecided.is_empty() => {
                let task = self.undecided[0];
                if self.story(task).ending.is_none() {
                    self.cancel(task);
                }
            }
            12 if self.climate.stops > 0 => self.look_at_stopped(),
            12 => self.tick(),
            54 if self.dice.permille(self.climate.resizes) => {
                let workers_max = self.dice.pick(&[1, 1, 2, 3, 4, 8]);
                self.resize(workers_max);
            }
            // The driver ticks about when it should.
            13..=30 if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) => {
                self.tick()
            }
            13..=16 => {
                self.wait();
            }
            17..=18 => {
                if let Some(at) = self.scheduler.next_deadline() {
                    self.advance(at.saturating_duration_since(self.now));
                    self.tick();
                }
            }
            19 => {
                let long = self.dice.micros(3_000_000);
                self.advance(long);
            }
            _ => {
                if !self.any_turn() && self.dice.permille(500) {
                    self.wait();
                }
            }
        }
    }

    fn end_of_pool(&mut self) {
        match self.dice.below(10) {
            0..=5 => {
                let cancel_pending = self.dice.permille(500);
                let deadline = self
                    .dice
                    .permille(700)
                    .then(|| self.now + Duration::from_millis(self.dice.below(3_000)));
                self.shutdown(cancel_pending, deadline);
            }
            6..=7 => {
                let at_once = self.dice.permille(500);
                self.kill(at_once);
            }
            8 => self.break_it(),
            _ => {}
        }
    }

    fn stop_or_continue(&mut self) {
        let Some(id) = self.any_process() else { return };
        let process = self.process(id);
        process.stopped = !process.stopped;
        let kind = if process.stopped { "is stopped" } else { "goes on" };
        self.note(kind, Some(id), None);
    }

    /// Runs the pool to its end. From here on nothing new goes wrong.
    fn drain(&mut self) {
        const STEPS_MAX: u32 = 60_000;
        const PATIENCE: u32 = 30_000;
        self.climate = Climate { initializer: self.climate.initializer, ..Climate::calm() };
        if !self.shut_down {
            let cancel_pending = self.dice.permille(300);
            let deadline = self.now + Duration::from_millis(self.dice.below(3_000));
            let deadline = self.dice.permille(200).then_some(deadline);
            self.shutdown(cancel_pending, deadline);
        }
        for step in 0.. {
            assert!(step < STEPS_MAX, "it does not come to its end");
            if self.closed {
                break;
            }
            let goes_on = |process: &Process| {
                process.seen_stopped.is_some()
                    && !process.stopped
                    && process.alive()
                    && process.killed.is_none()
            };
            if !self.undecided.is_empty() {
                self.decide();
            } else if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if self.processes.values().any(goes_on) {
                self.look_at_stopped();
            } else if step > PATIENCE && !self.killed || !self.any_turn() && !self.wait() {
                let hopeless = self.processes.values().any(Process::hopeless);
                assert!(hopeless && !self.killed, "everybody could go on, and nothing happens");
                let at_once = self.dice.permille(500);
                self.kill(at_once);
            }
        }
        self.after_the_end();
    }

    fn after_the_end(&mut self) {
        assert_eq!(self.unresolved(), 0, "every task has ended");
        assert_eq!(self.scheduler.counts(), (0, 0));
        assert_eq!(self.scheduler.next_deadline(), None, "nothing is waited for");
        // Workers that were given up may still end, and users still have their handles.
        for process in self.processes.values_mut().filter(|process| process.alive()) {
            process.die();
        }
        while self.any_turn() {}
        let task = self.submit_refused();
        assert!(!self.cancel(task) && !self.cancel_running(task));
        self.shut_down = true;
        self.event(|scheduler, now, claims, out| {
            let deadline = Some(now + Duration::from_secs(1));
            let how = Shutdown { cancel_pending: true, deadline, ..Shutdown::default() };
            scheduler.on_shutdown(now, how, claims, out);
            scheduler.on_kill(now, true, out);
            scheduler.on_tick(now + Duration::from_secs(2), claims, out);
            assert!(out.is_empty(), "after the end: {out:?}");
        });
        assert_eq!(self.scheduler.next_deadline(), None);
    }

    /// Submits a task after the end. Its refusal is the only action that may still come.
    fn submit_refused(&mut self) -> TaskId {
        self.closed = false;
        let task = self.submit(0, None, Conduct::Returns);
        self.closed = true;
        task
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for Step { at, what, worker, task } in &self.trace {
            text += &format!("\n{:>14.6}s  {what}", at.as_secs_f64());
            if let Some(WorkerId(worker)) = worker {
                text += &format!(", worker {worker}");
            }
            if let Some(task) = task {
                text += &format!(", task {task}");
            }
        }
        text += &format!("\nunresolved: {:?}", self.scheduler.counts());
        for (id, process) in &self.processes {
            let Process { life, stopped, immortal, killed, frames, published, asked, .. } = process;
            let at = |at: Option<Instant>| at.map(|at| at - self.start);
            let (terminated, stop_sent) = (at(process.terminated), at(process.stop_sent));
            text +=
                &format!("\nasked {asked:?}, terminated {terminated:?}, stop sent {stop_sent:?}:");
            let killed = killed.map(|at| at - self.start);
            let holding = &process.words.borrow().holding;
            text += &format!(
                "\n{id:?} known {}: {life:?}, stopped {stopped}, immortal {immortal}, killed {killed:?}, \
                 {holding:?}, {frames:?} in, {published:?} out",
                self.scheduler.knows(*id)
            );
        }
        text
    }
}

// ---- the simulation itself ----------------------------------------------------------------------

fn any_lifespan(dice: &mut Dice) -> Lifespan {
    let mut any = |micros: &[u64]| {
        let micros = dice.pick(micros);
        (micros > 0).then_some(match micros {
            u64::MAX => Duration::MAX,
            micros => Duration::from_micros(micros),
        })
    };
    Lifespan {
        idle_timeout: any(&[0, 0, 0, 1, 500, 20_000, 1_000_000, u64::MAX]),
        lifetime_max: any(&[0, 0, 0, 1, 2_000, 100_000, 3_000_000, u64::MAX]),
    }
}

fn run_seed(seed: u64) -> World {
    let mut dice = Dice(seed);
    let workers_max = dice.pick(&[1, 1, 2, 2, 3, 4, 8]);
    // From another sequence, so that what happens in the other worlds stays the same.
    let mut more = Dice(seed ^ 0x5a_7e57);
    let spares = match more.below(4) {
        0 => Some(more.pick(&[0, 1, workers_max])),
        _ => None,
    };
    let mut config = Config {
        workers_max,
        workers_min: dice.pick(&[0, 0, 1, workers_max]).min(workers_max),
        spares,
        initializer: dice.permille(500).then(|| "prepare".into()),
        initializer_timeout: dice.pick(&[
            Duration::from_millis(150),
            Duration::from_secs(30),
            Duration::MAX,
        ]),
        finalizer: dice.permille(400).then(|| "clean".into()),
        finalizer_timeout: dice.pick(&[
            Duration::from_millis(50),
            Duration::from_secs(30),
            Duration::MAX,
        ]),
        graces: Graces {
            cancel: dice.pick(&[
                Duration::ZERO,
                Duration::ZERO,
                Duration::from_micros(300),
                Duration::from_secs(1),
                Duration::MAX,
            ]),
            terminate: dice.pick(&[
                None,
                None,
                Some(Duration::ZERO),
                Some(Duration::from_millis(100)),
                Some(Duration::from_secs(10)),
            ]),
        },
        tasks_max: dice.pick(&[None, None, Some(1), Some(2), Some(7)]),
        lifespan: any_lifespan(&mut dice),
        processors: dice.pick(&[1, 2, 64]),
        launch_timeout: more.pick(&[Duration::ZERO, Duration::from_secs(60)]),
        start_timeout: dice.pick(&[
            Duration::from_millis(100),
            Duration::from_secs(10),
            Duration::MAX,
        ]),
    };
    if spares.is_some() {
        (config.workers_min, config.tasks_max) = (0, Some(1));
        config.lifespan = Lifespan::default();
    }
    let mut climate = Climate::roll(&mut dice);
    if spares.is_some() {
        climate.bound = 0;
    }
    let steps = dice.pick(&[30, 200, 600, 1_200]);
    let mut world = World::new(dice.roll(), config, climate);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        for _ in 0..steps {
            if world.closed {
                break;
            }
            world.anything();
        }
        if world.closed { world.after_the_end() } else { world.drain() }
    }));
    if let Err(panic) = ran {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!("EXECUTOR_SEED={seed}: {message}\nwhat happened last:{}", world.describe());
    }
    world
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is what `--nocapture` asks for")]
fn promises_hold_among_crashing_slow_stopped_and_lying_workers() {
    if let Some(seed) = number("EXECUTOR_SEED") {
        run_seed(seed);
        return;
    }
    let rounds = number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS);
    let (mut counts, mut events) = (BTreeMap::<&str, u64>::new(), 0);
    for seed in 0..rounds {
        let world = run_seed(seed);
        events += world.events;
        for (kind, count) in world.counts {
            *counts.entry(kind).or_default() += count;
        }
    }
    println!("{rounds} seeds, {events} events");
    for kind in KINDS {
        println!("{:>12}  {kind}", counts.get(kind).copied().unwrap_or_default());
    }
    if rounds >= ROUNDS {
        let missing: Vec<_> =
            counts.iter().filter(|(_, count)| **count == 0).map(|(kind, _)| kind).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

// ---- no task waits behind another one for long --------------------------------------------------

/// Limits of the scheduler, repeated here so that a change there is noticed.
const START_COST: Duration = Duration::from_millis(1);
const REBALANCE: Duration = Duration::from_millis(4);
const SLOW_START: Duration = Duration::from_millis(10);
const FEW: u32 = 4;

impl World {
    /// Lets everything that can happen happen at once, until `end`.
    fn go_on_until(&mut self, end: Instant) {
        loop {
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if !self.any_turn() {
                self.look_for_neglect();
                match self.next_moment().filter(|next| *next < end) {
                    Some(next) => self.advance(next - self.now),
                    None => return self.advance(end.saturating_duration_since(self.now)),
                }
            }
        }
    }

    /// Checks that no task has waited for too long. Called when nothing more happens at this
    /// moment.
    fn look_for_neglect(&mut self) {
        let coming =
            self.processes.values().filter(|process| !process.ready && process.killed.is_none());
        let idle = |process: &Process| {
            process.ready
                && process.stop_sent.is_none()
                && process.words.borrow().holding.is_empty()
        };
        let could =
            self.processes.len() < self.config.workers_max || self.processes.values().any(idle);
        let (now, coming) = (self.now, coming.count());
        let waiting: Vec<_> = self
            .stories
            .iter()
            .filter(|story| story.begun.is_none() && story.ending.is_none())
            .collect();
        if !could || waiting.len() <= coming {
            self.neglects_since = None;
            return;
        }
        let since = *self.neglects_since.get_or_insert(now);
        // A worker that comes up meanwhile may have to prepare itself first.
        let prepares = if self.climate.initializer { INITIALIZER_MAX } else { Duration::ZERO };
        for Story { submitted, estimate, function, .. } in waiting {
            let waited = now - since.max(*submitted);
            let estimate = self.scheduler.ended_estimate(*function).max(*estimate);
            // Once in the queue, and once behind another task: each sending counts anew.
            assert!(
                waited <= (estimate * FEW + SLOW_START + REBALANCE) * 2 + prepares,
                "a task of {estimate:?} has waited for {waited:?} while somebody could run it"
            );
        }
    }

    fn note_wait(&mut self, submitted: Instant, estimate: Duration) {
        let waited =
            self.neglects_since.map_or(Duration::ZERO, |since| self.now - since.max(submitted));
        self.neglect.waited.push(waited);
        if estimate >= Duration::from_millis(1) {
            self.neglect.estimates.push(waited.as_secs_f64() / estimate.as_secs_f64());
        }
    }

    /// Submits `count` calls of one function with this running time and conduct, in one chunk if
    /// `together`.
    fn call(
        &mut self,
        function: u64,
        takes: Duration,
        conduct: Conduct,
        count: usize,
        together: bool,
    ) {
        let first = self.stories.len();
        if together {
            self.submit_chunk(function, None, &vec![conduct; count]);
        } else {
            for _ in 0..count {
                self.submit(function, None, conduct);
            }
        }
        for story in &mut self.stories[first..] {
            story.takes = takes;
        }
    }

    fn wait_for_all(&mut self) {
        let end = self.now + Duration::from_secs(600);
        while self.unresolved() > 0 {
            assert!(self.now < end, "a task has no end");
            let next = self.next_moment().unwrap_or(end).max(self.now + Duration::from_nanos(1));
            self.go_on_until(next);
        }
    }
}

fn run_changing_seed(seed: u64) -> World {
    let mut dice = Dice(seed ^ 0xc4a_9e50);
    let workers_max = dice.pick(&[1, 2, 3, 4, 8, 16, 64]);
    let mut config = Config {
        workers_max,
        workers_min: dice.pick(&[0, 0, 1, workers_max]),
        spares: None,
        initializer: None,
        initializer_timeout: Duration::MAX,
        finalizer: None,
        finalizer_timeout: Duration::MAX,
        graces: Graces::default(),
        tasks_max: dice.pick(&[None, None, None, Some(1), Some(7)]),
        lifespan: any_lifespan(&mut dice),
        processors: dice.pick(&[1, 2, 4, 64]),
        launch_timeout: Duration::ZERO,
        start_timeout: Duration::from_secs(10),
    };
    if config.workers_min > 0 {
        // Workers that are replaced all the time would make this take minutes.
        let lifetime = &mut config.lifespan.lifetime_max;
        *lifetime = lifetime.filter(|lifetime| *lifetime >= Duration::from_millis(100));
    }
    let climate = Climate { initializer: dice.permille(200), ..Climate::calm() };
    let mut world = World::new(dice.roll(), config, climate);
    world.start_takes = START_COST;
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        for _ in 0..12 {
            let function = dice.below(3);
            let takes = Duration::from_micros(dice.pick(&[1, 1, 1, 30, 1_000, 1_000_000]));
            let together = dice.permille(400);
            match dice.below(3) {
                0 => world.call(function, takes, Conduct::Meets, workers_max, together),
                1 => world.call(function, takes, Conduct::Returns, 20, together),
                _ => {
                    let count = 1 + dice.below(workers_max as u64 + 3) as usize;
                    world.call(function, takes, Conduct::Returns, count, together);
                }
            }
            // Two groups that meet at the same time could wait for each other for ever.
            if dice.permille(300)
                && world.stories.last().is_some_and(|last| last.conduct != Conduct::Meets)
            {
                let pause = dice.micros(3_000);
                world.go_on_until(world.now + pause);
            } else {
                world.wait_for_all();
            }
        }
        world.wait_for_all();
    }));
    if let Err(panic) = ran {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!(
            "EXECUTOR_SEED={seed} of changing times: {message}\nwhat happened last:{}",
            world.describe()
        );
    }
    world
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what `--nocapture` asks for")]
fn no_task_waits_long_behind_another_one_while_somebody_could_run_it() {
    let seeds = match number("EXECUTOR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS),
    };
    let mut all = Neglect::default();
    for seed in seeds.clone() {
        let Neglect { waited, estimates } = run_changing_seed(seed).neglect;
        all.waited.extend(waited);
        all.estimates.extend(estimates);
    }
    all.waited.sort_unstable();
    all.estimates.sort_unstable_by(f64::total_cmp);
    let Neglect { waited, estimates } = all;
    let at = |of: usize, permille: usize| (of * permille / 1_000).min(of - 1);
    println!("{} seeds, {} tasks begun", seeds.end - seeds.start, waited.len());
    for (name, permille) in [("p50", 500), ("p99", 990), ("p99.9", 999), ("max", 1_000)] {
        println!(
            "{name:>6}: waited {:?} while somebody could run it; {:.3} of its estimates, of those of 1 ms and more",
            waited[at(waited.len(), permille)],
            estimates[at(estimates.len(), permille)],
        );
    }
}

// ---- small cases, by hand -----------------------------------------------------------------------

/// A pool with as many workers as processors, started on demand, without limits.
fn small(workers_max: usize, start_timeout: Duration) -> Config {
    Config {
        workers_max,
        workers_min: 0,
        spares: None,
        initializer: None,
        initializer_timeout: Duration::MAX,
        finalizer: None,
        finalizer_timeout: Duration::MAX,
        graces: Graces::default(),
        tasks_max: None,
        lifespan: Lifespan::default(),
        processors: workers_max,
        launch_timeout: Duration::ZERO,
        start_timeout,
    }
}

const A_MOMENT: Duration = Duration::from_millis(20);

impl World {
    /// Returns a world with `n` ready workers, whose scheduler knows that function 0 takes a
    /// microsecond.
    fn ready(n: usize) -> Self {
        Self::ready_for(n, 0)
    }

    /// Returns a world with `n` ready workers, whose scheduler knows how long this function takes.
    fn ready_for(n: usize, function: u64) -> Self {
        let mut world = World::new(1, small(n, Duration::from_secs(10)), Climate::calm());
        for _ in 0..n {
            world.submit(function, None, Conduct::Returns);
        }
        world.settle();
        assert_eq!(
            world.stories.iter().filter(|story| story.ending == Some(Ending::Value)).count(),
            n
        );
        assert_eq!(world.processes.len(), n);
        world
    }

    fn quick(&mut self, count: usize) -> Vec<TaskId> {
        self.calls(0, count)
    }

    fn calls(&mut self, function: u64, count: usize) -> Vec<TaskId> {
        (0..count).map(|_| self.submit(function, None, Conduct::Returns)).collect()
    }

    /// Runs until nothing happens by itself.
    fn settle(&mut self) {
        while self.any_turn() || self.wait() {
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            }
        }
    }

    fn ending(&mut self, task: TaskId) -> Option<Ending> {
        self.story(task).ending
    }

    fn all_return(&mut self, tasks: &[TaskId]) -> bool {
        tasks.iter().all(|task| self.ending(*task) == Some(Ending::Value))
    }

    /// Lets the worker take one step: it claims its next task, or ends the running one.
    fn work(&mut self, id: u32) {
        self.advance(A_MOMENT);
        self.on_work(WorkerId(id));
    }

    fn holding(&self, id: u32) -> usize {
        self.processes[&WorkerId(id)].words.borrow().holding.len()
    }
}

#[test]
fn an_idle_worker_takes_over_what_was_sent_ahead_to_a_stopped_one() {
    // Five microseconds are short, but not tiny.
    let mut world = World::ready_for(2, 1);
    let tasks = world.calls(1, 12);
    assert!(world.holding(0) > 3 && world.holding(1) > 3, "sent ahead to both");
    world.process(WorkerId(0)).stopped = true;
    world.settle();
    // The first task in line might begin at any time, so it is not taken away.
    assert_eq!(world.holding(0), 1);
    assert_eq!(
        tasks
            .iter()
            .filter(|task| world.stories[task.as_u64() as usize - 1].ending.is_none())
            .count(),
        1
    );
    world.process(WorkerId(0)).stopped = false;
    world.settle();
    assert!(world.all_return(&tasks));
}

#[test]
fn tiny_tasks_go_to_a_worker_that_runs_and_leave_it_if_it_stops() {
    let mut world = World::ready(2);
    let tasks = world.quick(12);
    let busy = u32::from(world.holding(1) > 0);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (12, 0));
    world.process(WorkerId(busy)).stopped = true;
    world.settle();
    assert_eq!(world.holding(busy), 1, "it might still begin the first one");
    world.process(WorkerId(busy)).stopped = false;
    world.settle();
    assert!(world.all_return(&tasks));
}

#[test]
fn a_tiny_task_does_not_wait_behind_a_long_one_nor_a_long_one_behind_tiny_ones() {
    let mut world = World::ready(2);
    // The long function is known, too.
    world.submit(4, None, Conduct::Returns);
    world.settle();
    let long = world.submit(4, None, Conduct::Returns);
    let busy = u32::from(world.holding(1) > 0);
    let tiny = world.quick(3);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (1, 3));
    world.settle();
    assert!(world.all_return(&[long]) && world.all_return(&tiny));

    let tiny = world.quick(3);
    let busy = u32::from(world.holding(1) > 0);
    let long = world.submit(4, None, Conduct::Returns);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (3, 1));
    world.settle();
    assert!(world.all_return(&[long]) && world.all_return(&tiny));
}

#[test]
fn only_tiny_calls_are_deferred_and_only_while_a_worker_has_enough_of_them() {
    let mut world = World::ready(2);
    world.quick(15);
    assert_eq!(world.scheduler.deferred(), None);
    world.quick(1);
    assert_eq!(world.scheduler.deferred(), Some(FnId(0)));
    world.settle();
    assert_eq!(world.scheduler.deferred(), None, "nothing is left to do");

    let mut world = World::ready_for(2, 1);
    world.calls(1, 40);
    assert_eq!(world.scheduler.deferred(), None, "five microseconds are not tiny");
}

#[test]
fn a_worker_that_is_still_receiving_is_not_taken_for_a_deaf_one() {
    let mut world = World::ready(1);
    let task = world.quick(1)[0];
    // The worker begins nothing for longer than a start may last, while more of its argument
    // arrives.
    world.process(WorkerId(0)).stopped = true;
    for _ in 0..10 {
        world.process(WorkerId(0)).taken_in += 1;
        world.advance(Duration::from_secs(11));
        world.tick();
        assert!(world.processes[&WorkerId(0)].killed.is_none());
    }
    // Now nothing arrives any more.
    world.advance(Duration::from_secs(9));
    world.tick();
    assert!(world.processes[&WorkerId(0)].killed.is_none(), "it may still");
    world.advance(Duration::from_secs(2));
    world.tick();
    world.settle();
    assert!(!world.processes.contains_key(&WorkerId(0)), "it was killed");
    assert_eq!(world.ending(task), Some(Ending::Value), "and another has run the task");
}

#[test]
fn cancel_withdraws_what_was_sent_ahead_and_nothing_else() {
    let mut world = World::ready(1);
    let tasks = world.quick(4);
    world.work(0);
    assert!(!world.cancel(tasks[0]), "it runs");
    assert!(world.cancel(tasks[2]));
    world.settle();
    assert_eq!(world.ending(tasks[2]), Some(Ending::Cancelled));
    assert!(world.all_return(&[tasks[0], tasks[1], tasks[3]]));
    assert_eq!(world.story(tasks[2]).begun, None);
}

#[test]
fn a_timeout_with_the_reply_on_its_way_does_not_kill_the_next_task() {
    let mut world = World::ready(1);
    let first = world.submit(0, Some(A_MOMENT / 2), Conduct::Returns);
    let next = world.submit(0, None, Conduct::Returns);
    let last = world.submit(0, None, Conduct::Returns);
    world.work(0); // claims the first
    world.work(0); // publishes its reply, which nobody reads yet
    world.work(0); // claims the next
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.processes[&WorkerId(0)].killed, None);
    world.settle();
    assert!(world.all_return(&[first, next, last]));
}

#[test]
fn a_limit_on_waiting_ends_what_has_not_begun_and_nothing_else() {
    let mut world = World::ready(1);
    world.queue_timeout = Some(2 * A_MOMENT);
    let limited = world.calls(0, 3);
    world.queue_timeout = None;
    let unlimited = world.quick(1);
    world.work(0); // claims the first
    assert_eq!(world.holding(0), 4, "all are with the worker, and most have not begun");
    world.advance(A_MOMENT);
    world.tick();
    for task in &limited[1..] {
        assert_eq!(world.ending(*task), Some(Ending::TimedOut));
    }
    assert_eq!(world.ending(limited[0]), None);
    world.settle();
    assert!(world.all_return(&limited[..1]) && world.all_return(&unlimited));
}

#[test]
fn a_frame_that_kills_three_workers_ends_its_task_and_no_other() {
    let mut world = World::ready(1);
    let before = world.quick(2);
    let poison = world.submit(0, None, Conduct::Poison);
    let behind = world.quick(3);
    world.settle();
    assert_eq!(world.ending(poison), Some(Ending::Lost));
    assert_eq!(world.story(poison).first_in_line, LOST_UNBEGUN_MAX);
    assert!(world.all_return(&before) && world.all_return(&behind));
}

#[test]
fn who_waits_behind_many_crashing_tasks_is_innocent() {
    let mut world = World::ready(1);
    let crashing: Vec<_> = (0..6).map(|_| world.submit(0, None, Conduct::Crashes)).collect();
    let behind = world.quick(3);
    world.settle();
    assert!(
        crashing
            .iter()
            .all(|task| world.stories[task.as_u64() as usize - 1].ending == Some(Ending::Lost))
    );
    assert!(world.all_return(&behind));
}

#[test]
fn a_draining_pool_gets_past_frames_that_kill() {
    let mut world = World::ready(2);
    let poison: Vec<_> = (0..3).map(|_| world.submit(0, None, Conduct::Poison)).collect();
    let good = world.quick(5);
    world.shutdown(false, None);
    world.drain();
    assert!(
        poison
            .iter()
            .all(|task| world.stories[task.as_u64() as usize - 1].ending == Some(Ending::Lost))
    );
    assert!(world.all_return(&good));
    assert!(!world.broken);
}

/// Lets the only worker of a pool die idle. Then each new worker dies before its hello, `pause`
/// after the one before.
fn failing_starts(pause: Duration, count: usize) -> World {
    let mut world = World::ready(1);
    world.process(WorkerId(0)).die();
    world.on_reap(WorkerId(0));
    world.on_read(WorkerId(0), 1);
    world.quick(1);
    for _ in 0..count {
        if world.scheduler.next_deadline().is_some_and(|at| at < world.now + pause) {
            world.advance(pause);
            world.tick();
        }
        let Some((&id, _)) = world.processes.iter().next() else { break };
        world.on_starter(id);
        world.process(id).die();
        world.on_reap(id);
    }
    world
}

#[test]
fn five_failed_starts_within_the_period_break_a_pool_that_has_worked() {
    let pause = Duration::from_secs(2);
    assert!(!failing_starts(pause, START_FAILURES_MAX - 1).broken);
    assert!(failing_starts(pause, START_FAILURES_MAX).broken);
    // These are fewer than five in any ten seconds.
    assert!(!failing_starts(Duration::from_secs(3), 20).broken);
}

#[test]
fn a_refusal_of_a_worker_that_was_given_up_is_no_further_failed_start() {
    let mut world = failing_starts(Duration::from_secs(2), START_FAILURES_MAX - 1);
    let given_up = WorkerId(0);
    assert!(!world.scheduler.knows(given_up) && world.processes.is_empty());
    world.refuse_start(given_up);
    assert!(!world.broken);
}

#[test]
fn starts_that_hang_and_cannot_be_killed_break_the_pool_in_the_end() {
    let mut world = World::new(1, small(1, Duration::from_secs(1)), Climate::calm());
    let task = world.submit(0, None, Conduct::Returns);
    world.process(WorkerId(0)).never_starts = true;
    world.settle();
    assert_eq!(world.ending(task), Some(Ending::Broken));
    assert!(world.closed);
}

#[test]
fn cancel_running_says_no_to_a_task_that_its_timeout_is_ending() {
    let mut world = World::ready(1);
    let task = world.submit(0, Some(A_MOMENT), Conduct::Hangs);
    world.work(0);
    world.process(WorkerId(0)).immortal = true;
    world.advance(2 * A_MOMENT);
    world.tick();
    assert!(!world.cancel_running(task));
    world.advance(KILL_GRACE);
    world.tick();
    assert_eq!(world.ending(task), Some(Ending::TimedOut));
}

#[test]
fn short_tasks_do_not_wait_for_a_worker_that_starts_or_leaves() {
    // With more workers than processors, short tasks wait for a worker that runs. These workers do
    // not run.
    let crowded = |tasks_max| {
        let config = Config {
            workers_max: 2,
            workers_min: 2,
            processors: 1,
            tasks_max,
            ..small(2, Duration::from_secs(10))
        };
        let mut world = World::new(1, config, Climate::calm());
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        world.settle();
        let first = world.submit(0, None, Conduct::Returns);
        world.settle();
        assert!(world.all_return(&[first]));
        world
    };
    let mut world = crowded(None);
    world.process(WorkerId(0)).die();
    world.on_reap(WorkerId(0));
    world.on_read(WorkerId(0), 1);
    world.process(WorkerId(2)).never_starts = true;
    let tasks = world.quick(3);
    assert!(world.holding(1) > 0, "the idle one has it at once");
    let since = world.now;
    while !world.all_return(&tasks) {
        assert!((world.any_turn() || world.wait()) && world.now - since < Duration::from_secs(1));
    }

    let mut world = crowded(Some(3));
    let busy = u32::from(world.processes[&WorkerId(1)].begun.len() == 1);
    let last = world.quick(2);
    while world.processes[&WorkerId(busy)].stop_sent.is_none() {
        assert!(world.any_turn() || world.wait(), "it has had its three");
    }
    world.process(WorkerId(busy)).stopped = true;
    assert!(world.all_return(&last));
    let next = world.submit(0, None, Conduct::Returns);
    assert_eq!(world.holding(1 - busy), 1, "the idle one has it at once");
    let since = world.now;
    while !world.all_return(&[next]) {
        assert!((world.any_turn() || world.wait()) && world.now - since < Duration::from_secs(1));
    }
}

// ---- workers that leave although nothing is wrong -----------------------------------------------

impl World {
    fn of(config: Config) -> Self {
        let mut world = World::new(1, config, Climate::calm());
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        world
    }

    /// Lets this much time pass, in which everything happens at once that can happen.
    fn pass(&mut self, time: Duration) {
        self.go_on_until(self.now + time);
    }

    /// Goes on until the last task has ended, and no further.
    fn until_all_end(&mut self) {
        while self.unresolved() > 0 {
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if !self.any_turn() {
                assert!(self.wait(), "a task has no end");
            }
        }
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.processes.keys().copied().collect()
    }
}

#[test]
fn an_idle_pool_shrinks_to_its_minimum_and_grows_again_on_demand() {
    const IDLE: Duration = Duration::from_secs(5);
    for workers_min in 0..=4 {
        let lifespan = Lifespan { idle_timeout: Some(IDLE), ..Lifespan::default() };
        let config = Config { workers_min, lifespan, ..small(4, Duration::from_secs(10)) };
        let mut world = World::of(config);
        for _ in 0..5 {
            let tasks = world.calls(5, 4);
            world.until_all_end();
            assert!(world.all_return(&tasks));
            assert_eq!(world.processes.len(), 4);
            world.pass(IDLE - Duration::from_secs(1));
            assert_eq!(world.processes.len(), 4, "they have been idle for less than that");
            // One that does not leave when it is asked to is killed after this time.
            world.pass(IDLE + STOP_GRACE + Duration::from_secs(1));
            assert_eq!(world.processes.len(), workers_min, "{}", world.describe());
            let events = world.events;
            world.pass(20 * IDLE);
            assert_eq!(world.processes.len(), workers_min);
            assert_eq!(world.events, events, "nothing wakes the driver any more");
        }
    }
}

#[test]
fn a_worker_that_is_busy_now_and_then_is_not_idle_for_long() {
    const IDLE: Duration = Duration::from_secs(5);
    let lifespan = Lifespan { idle_timeout: Some(IDLE), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(2, Duration::from_secs(10)) });
    world.calls(5, 2);
    world.until_all_end();
    let events = world.events;
    for _ in 0..100 {
        world.calls(0, 1);
        world.pass(IDLE / 5);
    }
    // The one that was busy last gets the next task, and the other one leaves.
    assert_eq!(world.processes.len(), 1);
    // A submission, its reply, and seldom a tick: the timeout is not set anew with each task.
    let ticks = world.counts["tick: due"];
    assert!(ticks < 60, "{ticks} ticks for {} events", world.events - events);
}

#[test]
fn an_old_worker_ends_its_task_and_leaves_what_was_sent_ahead_to_others() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let first = world.calls(0, 1);
    world.until_all_end();
    assert!(world.all_return(&first));
    let tasks = world.calls(0, 5);
    world.on_work(WorkerId(0)); // claims the first
    assert_eq!(world.holding(0), 5);
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!((world.holding(0), world.processes[&WorkerId(0)].stop_sent), (1, None));
    world.until_all_end();
    assert!(world.all_return(&tasks));
    assert!(world.story(tasks[1]).begun.unwrap().0 != WorkerId(0));
    // An idle worker leaves as well when it is old, and nobody needs another one.
    world.pass(2 * (A_MOMENT + STOP_GRACE));
    assert!(world.processes.is_empty());
}

#[test]
fn a_worker_that_is_old_at_once_keeps_its_first_task() {
    let lifetime_max = Some(Duration::from_nanos(1));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let tasks = world.calls(0, 3);
    while world.processes.values().all(|process| !process.ready) {
        assert!(world.any_turn());
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), 1, "it has not begun it, and nobody takes it away");
    world.until_all_end();
    let ran_by = |task: &TaskId| world.stories[task.as_u64() as usize - 1].begun.unwrap().0;
    assert_eq!(tasks.iter().map(ran_by).collect::<Vec<_>>(), [0, 1, 2].map(WorkerId));
}

#[test]
fn a_worker_gets_nothing_at_the_moment_at_which_it_is_too_old() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    world.retries = 1;
    let tasks = [(); 3].map(|()| world.submit(0, None, Conduct::Fails));
    world.retries = 0;
    while world.undecided.len() < tasks.len() {
        assert!(world.any_turn() || world.wait(), "all of them fail");
    }
    for task in std::mem::take(&mut world.undecided) {
        world.later.push((task, world.now + A_MOMENT));
        world.event(|scheduler, now, claims, out| {
            scheduler.on_retry(now, task, A_MOMENT, claims, out)
        });
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), 0, "they are due, and are for the next worker");
    assert!(world.processes[&WorkerId(0)].stop_sent.is_some());
    world.until_all_end();
    assert!(world.all_return(&tasks));
}

#[test]
fn what_a_worker_keeps_for_too_long_while_it_leaves_goes_to_others() {
    // The function takes a second, which nobody knows yet.
    const ITEMS: usize = 20;
    let lifetime_max = Some(Duration::from_nanos(1));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(2, Duration::from_secs(10)) });
    world.submit_chunk(5, None, &[Conduct::Returns; ITEMS]);
    while world.processes.values().all(|process| !process.ready) {
        assert!(world.any_turn());
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), ITEMS, "it is old, and keeps its first chunk");
    world.pass(5 * (START_COST + SLOW_START));
    assert_eq!(world.holding(0), 1, "it has begun one, and the others went elsewhere");
    assert_eq!(world.processes.len(), 2, "another worker was started for them");
    world.until_all_end();
    let ends = world.stories.iter().map(|story| story.ending);
    assert!(ends.into_iter().all(|ending| ending == Some(Ending::Value)));
}

#[test]
fn ticks_for_other_reasons_do_not_put_off_the_end_of_an_old_worker() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let first = world.calls(0, 1);
    world.until_all_end();
    assert!(world.all_return(&first));
    let since = world.now;
    while world.processes[&WorkerId(0)].stop_sent.is_none() {
        // The driver is woken for other reasons, ten times in a millisecond.
        world.advance(Duration::from_micros(100));
        world.tick();
        assert!(world.now - since < 2 * A_MOMENT, "it is far too old");
    }
}

#[test]
fn workers_that_are_kept_are_replaced_when_they_are_old_at_different_times() {
    let lifetime_max = Some(Duration::from_secs(100));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let config = Config { workers_min: 4, lifespan, ..small(4, Duration::from_secs(10)) };
    let mut world = World::of(config);
    world.pass(Duration::from_secs(80));
    assert_eq!(world.ids(), [0, 1, 2, 3].map(WorkerId));
    let mut left = Vec::new();
    for _ in 0..21 {
        world.pass(Duration::from_secs(1));
        assert_eq!(world.processes.len(), 4, "each is replaced at once");
        left.push((0..4).filter(|id| !world.processes.contains_key(&WorkerId(*id))).count());
    }
    assert_eq!((left[9], left[20]), (0, 4), "after nine tenths of the time at the earliest");
    assert!((1..4).all(|some| left.contains(&some)), "one after the other: {left:?}");
}

#[test]
fn a_shrinking_pool_loses_no_task_and_keeps_the_workers_with_the_most_to_do() {
    let mut world = World::ready_for(4, 5);
    let long = world.calls(5, 2);
    let busy: Vec<_> = world.ids().into_iter().filter(|id| world.holding(id.0) == 1).collect();
    assert_eq!(busy.len(), 2, "one for each of the long ones");
    world.resize(2);
    assert_eq!(world.staying(), 2, "those that run nothing are asked at once");
    let waiting = world.quick(40);
    world.until_all_end();
    world.pass(STOP_GRACE);
    assert_eq!(world.ids(), busy);
    assert!(world.all_return(&long) && world.all_return(&waiting));

    // Both run a task, so one of them leaves after it. It stays if it is wanted again before that.
    let long = world.calls(5, 2);
    for id in &busy {
        world.on_work(*id);
    }
    world.resize(1);
    assert_eq!(world.staying(), 2);
    let next = world.calls(5, 2);
    world.resize(2);
    world.until_all_end();
    assert!(world.all_return(&long) && world.all_return(&next));
    assert_eq!(world.ids(), busy);
}

// ---- priorities, and several who share a pool ---------------------------------------------------

/// The scheduler's limit, repeated here so that a change there is noticed.
const OVERTAKES_MAX: u32 = 16;

/// A function that takes too long for a task to be sent ahead.
const SLOW: u64 = 4;

impl World {
    fn urgent(&mut self, priority: i32) -> TaskId {
        self.priority = priority;
        let task = self.submit(SLOW, None, Conduct::Returns);
        self.priority = 0;
        task
    }

    /// Lets the only worker go on until it has begun the next task, which is returned.
    fn begin_next(&mut self) -> Option<TaskId> {
        let begun = |world: &Self| world.processes[&WorkerId(0)].begun.len();
        let before = begun(self);
        while begun(self) == before {
            if !self.any_turn() && !self.wait() {
                return None;
            }
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            }
        }
        self.processes[&WorkerId(0)].begun.last().copied()
    }
}

#[test]
fn the_highest_priority_begins_first_and_the_oldest_task_after_many_overtakes() {
    for seed in 0..100 {
        let mut world = World::ready_for(1, SLOW);
        world.dice = Dice(seed);
        let most = world.dice.pick(&[2, 3, 6]);
        // The waiting tasks, in the order in which they came.
        let mut line: Vec<(i32, TaskId)> = Vec::new();
        let mut overtakes = 0;
        // This one runs while the first ones come.
        world.urgent(0);
        world.begin_next().unwrap();
        for round in 0..200 {
            for _ in 0..world.dice.below(if round < 150 { most } else { 1 }) {
                let priority = world.dice.pick(&[0, 0, 1, 1, 9, i32::MIN, i32::MAX]);
                line.push((priority, world.urgent(priority)));
            }
            let (mut next, oldest) = (0, 0);
            for (at, (priority, _)) in line.iter().enumerate() {
                if *priority > line[next].0 {
                    next = at;
                }
            }
            if overtakes == OVERTAKES_MAX {
                next = oldest;
            }
            overtakes = if next == oldest { 0 } else { overtakes + 1 };
            let expected = (!line.is_empty()).then(|| line.remove(next).1);
            assert_eq!(world.begin_next(), expected, "seed {seed}, round {round}");
            if expected.is_none() {
                world.urgent(0);
                world.begin_next().unwrap();
            }
        }
    }
}

#[test]
fn a_flood_of_urgent_tasks_leaves_a_share_to_all_others() {
    let mut world = World::ready_for(1, SLOW);
    world.urgent(0);
    world.begin_next().unwrap();
    let batch: Vec<_> = (0..20).map(|_| world.urgent(-5)).collect();
    let mut begun = Vec::new();
    for _ in 0..20 * (OVERTAKES_MAX as usize + 1) {
        // An urgent task waits at any time.
        world.urgent(i32::MAX);
        begun.extend(world.begin_next());
    }
    let turns: Vec<_> = (0..begun.len()).filter(|at| batch.contains(&begun[*at])).collect();
    let every = OVERTAKES_MAX as usize + 1;
    assert_eq!(turns, (1..=20).map(|turn| turn * every - 1).collect::<Vec<_>>());
    assert!(begun.iter().filter(|task| batch.contains(task)).eq(&batch), "in their order");
}

#[test]
fn an_urgent_task_that_is_given_back_is_the_first_of_its_priority() {
    let mut world = World::ready_for(1, SLOW);
    world.urgent(0);
    world.begin_next().unwrap();
    let usual = world.urgent(0);
    let urgent = [(); 3].map(|()| world.urgent(2));
    // The worker is given the first one, and dies before it begins it.
    let process = world.process(WorkerId(0));
    process.frames.clear();
    world.settle_until_sent(urgent[0]);
    world.process(WorkerId(0)).die();
    world.settle();
    let mut ends: Vec<_> = [usual, urgent[0], urgent[1], urgent[2]].into();
    ends.sort_by_key(|task| world.stories[task.as_u64() as usize - 1].begun.map(|(_, at)| at));
    assert_eq!(ends, [urgent[0], urgent[1], urgent[2], usual]);
    assert!(world.all_return(&[urgent[0], urgent[1], urgent[2], usual]));
}

impl World {
    /// Goes on until the only worker has been sent this task.
    fn settle_until_sent(&mut self, task: TaskId) {
        while !self.processes[&WorkerId(0)].words.borrow().holding.contains(&task) {
            assert!(self.any_turn() || self.wait(), "nothing happens");
        }
    }
}

#[test]
fn several_maps_share_the_workers_by_the_items_that_each_has_submitted() {
    // Each keeps this many items submitted, as maps do.
    for sizes in [[8, 8, 8], [4, 8, 16]] {
        let mut world = World::ready_for(1, SLOW);
        world.urgent(0);
        world.begin_next().unwrap();
        let mut owner = BTreeMap::new();
        for (map, size) in sizes.into_iter().enumerate() {
            for _ in 0..size {
                owner.insert(world.urgent(0), map);
            }
        }
        let mut begun = [0; 3];
        let rounds: usize = 20 * sizes.iter().sum::<usize>();
        for _ in 0..rounds {
            let task = world.begin_next().expect("there is always one");
            let map = owner[&task];
            begun[map] += 1;
            // Its result is read at once, and the map submits its next item.
            owner.insert(world.urgent(0), map);
        }
        assert_eq!(begun, sizes.map(|size| size * 20), "of {sizes:?}");
    }
}

#[test]
fn what_is_bound_to_a_worker_waits_for_it_and_others_do_not_wait_behind() {
    // Five microseconds are short, so chunks are sent ahead.
    let mut world = World::ready_for(2, 1);
    world.bound_to = Some(0);
    let bound = world.calls(1, 40);
    world.bound_to = None;
    assert!(world.holding(0) > 3, "sent ahead");
    assert_eq!(world.holding(1), 0);
    world.process(WorkerId(0)).stopped = true;
    let others = world.calls(1, 40);
    world.settle();
    assert!(world.all_return(&others), "nothing waits behind what is bound");
    assert!(bound.iter().all(|task| world.ending(*task).is_none()), "nobody else took it over");
    // The worker is replaced by one with the same index.
    world.process(WorkerId(0)).die();
    world.settle();
    assert!(world.all_return(&bound));
    assert_eq!(world.processes[&WorkerId(2)].index, 0);
}
