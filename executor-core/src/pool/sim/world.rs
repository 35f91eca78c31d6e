//! The world: events go into the scheduler, its actions are carried out, and each is checked.

use super::*;

pub(super) struct Step {
    pub(super) at: Duration,
    pub(super) what: &'static str,
    pub(super) worker: Option<WorkerId>,
    pub(super) task: Option<TaskId>,
}

/// How long tasks waited although a worker could run them or could be started for them.
#[derive(Default)]
pub(super) struct Neglect {
    pub(super) waited: Vec<Duration>,
    /// The same waits in multiples of the estimate, for estimates of a millisecond and more.
    pub(super) estimates: Vec<f64>,
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) climate: Climate,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) config: Config,
    /// The largest number of workers that was allowed at any time.
    pub(super) workers_most: usize,
    pub(super) scheduler: Scheduler<Ticket>,
    pub(super) processes: BTreeMap<WorkerId, Process>,
    pub(super) stories: Vec<Story>,
    /// The last task that has begun, of each worker to which tasks are bound, each set of resources
    /// and each priority.
    pub(super) last_begun: BTreeMap<(Option<u32>, Vec<u8>, i32), TaskId>,
    pub(super) shut_down: bool,
    pub(super) cancelled_pending: bool,
    pub(super) deadline: Option<Instant>,
    /// When the workers that are left are killed.
    pub(super) kill_at: Option<Instant>,
    pub(super) killed: bool,
    pub(super) broken: bool,
    pub(super) ever_ready: bool,
    /// When a worker has died right after it was ready.
    pub(super) young_death: Option<Instant>,
    /// When the starter has taken up an order, if that may take long.
    pub(super) taken_up: Option<Instant>,
    pub(super) start_troubles: Vec<Instant>,
    /// Whether the last failed start failed after the hello.
    pub(super) trouble_in_initializer: bool,
    pub(super) closed: bool,
    /// How long a start takes until the process exists.
    pub(super) start_takes: Duration,
    /// How long tasks that are submitted from now on may wait for a worker.
    pub(super) queue_timeout: Option<Duration>,
    /// The worker to which tasks are bound that are submitted from now on.
    pub(super) bound_to: Option<u32>,
    /// What tasks need that are submitted from now on.
    pub(super) needs: Rc<[Need]>,
    /// The priority of tasks that are submitted from now on.
    pub(super) priority: i32,
    /// How often tasks that are submitted from now on may be tried again.
    pub(super) retries: u32,
    /// Tasks whose next attempt is to be decided.
    pub(super) undecided: Vec<TaskId>,
    /// Tasks that are to be tried again, and when.
    pub(super) later: Vec<(TaskId, Instant)>,
    /// Workers whose tasks wait for each other.
    pub(super) meeting: Vec<WorkerId>,
    /// Since when tasks have waited although a worker could run them or could be started for them.
    pub(super) neglects_since: Option<Instant>,
    pub(super) neglect: Neglect,
    pub(super) trace: VecDeque<Step>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) events: u64,
}

impl World {
    pub(super) fn new(seed: u64, config: Config, climate: Climate) -> Self {
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
            young_death: None,
            taken_up: None,
            start_troubles: Vec::new(),
            trouble_in_initializer: false,
            closed: false,
            start_takes: Duration::ZERO,
            queue_timeout: None,
            bound_to: None,
            needs: Rc::default(),
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

    pub(super) fn note(
        &mut self,
        what: &'static str,
        worker: Option<WorkerId>,
        task: Option<TaskId>,
    ) {
        *self.counts.get_mut(what).unwrap_or_else(|| panic!("{what:?} is not among the kinds")) +=
            1;
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(Step { at: self.now - self.start, what, worker, task });
    }

    pub(super) fn process(&mut self, id: WorkerId) -> &mut Process {
        self.processes.get_mut(&id).expect("a worker of this world")
    }

    pub(super) fn story(&mut self, task: TaskId) -> &mut Story {
        &mut self.stories[task.as_u64() as usize - 1]
    }

    pub(super) fn unresolved(&self) -> usize {
        self.stories.iter().filter(|story| story.ending.is_none()).count()
    }
}

impl World {
    pub(super) fn event<R>(
        &mut self,
        decide: impl FnOnce(&mut Scheduler<Ticket>, Instant, &Boards<'_>, &mut Vec<Action<Ticket>>) -> R,
    ) -> R {
        self.event_then(decide, |_, _| {})
    }

    /// Does the same as [`event`](Self::event). `then` records the scheduler's result before the
    /// actions are checked against the record.
    pub(super) fn event_then<R>(
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

    pub(super) fn perform(&mut self, action: Action<Ticket>) {
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
                    reports: None,
                    grown: false,
                    stop_sent: None,
                    leaves: None,
                    asked: None,
                    terminated: None,
                    outlived: false,
                    has_replied: false,
                    killed: None,
                    killed_for: None,
                };
                if never_starts {
                    self.note("start: never answers", Some(id), None);
                }
                assert!(self.processes.insert(id, process).is_none(), "{id:?} is used twice");
                let backs_off = self.young_death.is_some_and(|at| at + BACK_OFF > self.now);
                assert!(!backs_off, "{id:?} follows at once on one that has died young");
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
                assert!(process.reports.is_none(), "{worker:?} reports an error");
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
                let alone = process.lied || process.words.borrow().holding.is_empty();
                let is_broadcast = broadcast_to.is_some();
                self.check_tokens(item(base, items.first), alone || is_broadcast);
                let process = self.process(worker);
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
                assert!(process.reports.is_none(), "{id:?} reports an error");
                process.stop_sent = Some(now);
                let leaving = match finalizes {
                    _ if !process.ready => LastStep::Initializing,
                    true => LastStep::Finalizing,
                    false => LastStep::Ending,
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
                assert_eq!(leaving, LastStep::Finalizing, "{id:?} runs no finalizer");
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
            Action::WarnNotReady(cause) => {
                assert!(!self.broken, "{cause}: the pool's reason says this");
            }
            Action::WarnNotStopping(id, grace) => {
                let (leaving, since) = self.processes[&id].leaves.expect("it was asked to leave");
                assert!(grace == STOP_GRACE && since + grace <= self.now, "{id:?} has time left");
                assert_ne!(leaving, LastStep::Finalizing, "the finalizer has a timeout of its own");
            }
            Action::Closed => {
                assert_eq!(self.unresolved(), 0, "closed over unresolved tasks");
                assert!(self.shut_down || self.killed || self.broken, "closed while open");
                self.closed = true;
                self.note("closed", None, None);
            }
        }
    }
}
