//! The pool's one lock: events are decided under it, and the actions that follow are performed.
//!
//! ```text
//!  lock ─► intake ─► decide (scheduler) ─► perform: send, signal, start ─► unlock ─► log records
//!                                             └─► outcomes ───────────────────────► futures
//! ```
//!
//! User code never runs under the lock: outcomes and log records are collected, and leave when the
//! lock is free. After a panic under the lock, chunks and actions that are left stay for the next
//! event. If they were dropped, their wakers would run under the lock, and an action such as
//! [`Closed`](Action::Closed) would never come again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering, fence},
        mpsc,
    },
    time::Instant,
};

use rustix::process::Signal;

use super::{
    Initializer, Pool,
    chunk::{Answer, Chunk, Outcomes, Sending},
    driver,
    log::LogRecord,
    scheduler::{Action, End, Scheduled, Scheduler},
    starter,
    stats::Counts,
    worker::Worker,
};
use crate::{
    error::{Phase, TaskError},
    future::cell::{Outcome, Wakers},
    id::WorkerId,
    transport::Link,
    unwind::catch,
    wire::{
        frame::{Order, ToWorker, flag},
        handshake::Restraints,
    },
};

/// Maximum number of chunks that wait in the intake although a worker could take them: see
/// [`Scheduler::deferred`]. A higher value lets a worker run dry while they wait. With a lower
/// value, the work for each event is shared by fewer tasks.
const DEFERRED_MAX: usize = 16;

/// Number of chunks in a block of the intake. With a larger block, more memory is kept for reuse.
/// With a smaller one, blocks are changed more often.
const BLOCK: usize = 256;

/// Submitted chunks that are not with the scheduler yet.
///
/// A burst may leave a million of them here. They are taken in blocks, as the scheduler needs them:
/// its own record of a waiting chunk would be a second piece of memory for each, which is written
/// now and read much later.
#[derive(Default)]
pub(super) struct Intake {
    blocks: Mutex<Blocks>,
    /// Whether there are any. Written under the lock, so that most events need not take it.
    any: AtomicBool,
    /// Whether one of them must not wait for the next event.
    urgent: AtomicBool,
}

#[derive(Default)]
struct Blocks {
    /// Blocks of [`BLOCK`] chunks, oldest first.
    full: VecDeque<Vec<Chunk>>,
    /// The block to which chunks are added.
    last: Vec<Chunk>,
    /// An empty block, kept to reuse its memory.
    spare: Vec<Chunk>,
    /// Number of tasks in all blocks.
    tasks: u64,
}

impl Intake {
    /// Adds a chunk. `may_wait` says whether it may wait for the next event, if not too many do
    /// already. Returns whether it does.
    fn push(&self, chunk: Chunk, may_wait: bool) -> bool {
        let mut blocks = self.lock();
        let Blocks { full, last, spare, tasks } = &mut *blocks;
        *tasks += u64::from(chunk.left());
        if last.len() == BLOCK {
            full.push_back(std::mem::replace(last, std::mem::take(spare)));
        }
        last.push(chunk);
        let waits = may_wait && full.is_empty() && last.len() < DEFERRED_MAX;
        self.any.store(true, Ordering::Relaxed);
        if !waits {
            self.urgent.store(true, Ordering::Relaxed);
        }
        waits
    }

    #[inline]
    fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    #[inline]
    fn has_any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Returns the number of blocks that are not empty.
    fn blocks(&self) -> usize {
        let blocks = self.lock();
        blocks.full.len() + usize::from(!blocks.last.is_empty())
    }

    /// Returns the number of tasks that wait here.
    pub(super) fn tasks(&self) -> u64 {
        self.lock().tasks
    }

    /// Exchanges the oldest block for this empty one. Returns `false` if there is none.
    #[inline]
    fn take(&self, block: &mut Vec<Chunk>) -> bool {
        debug_assert!(block.is_empty());
        if !self.has_any() {
            return false;
        }
        let mut blocks = self.lock();
        let Blocks { full, last, spare, tasks } = &mut *blocks;
        match full.pop_front() {
            Some(oldest) => {
                let old = std::mem::replace(block, oldest);
                if spare.capacity() == 0 {
                    *spare = old;
                }
            }
            None => std::mem::swap(block, last),
        }
        *tasks -= block.iter().map(|chunk| u64::from(chunk.left())).sum::<u64>();
        if full.is_empty() && last.is_empty() {
            self.any.store(false, Ordering::Relaxed);
            self.urgent.store(false, Ordering::Relaxed);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// State protected by the pool's one lock.
pub(super) struct Core {
    pub(super) scheduler: Scheduler<Chunk>,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) threads: Threads,
    /// When the driver wakes up next.
    pub(super) armed: Option<Instant>,
    /// Whether the driver checks for workers that are stopped. It checks while there are tasks, and
    /// for a moment after.
    pub(super) attended: bool,
    pub(super) closed: bool,
    /// Whether descriptors are waiting for space in a worker's control socket.
    pub(super) stuck: bool,
    /// What is to be logged when the lock is free.
    pub(super) log: Vec<LogRecord>,
    pub(super) counts: Counts,
    /// What a worker may not exceed.
    pub(super) restraints: Restraints,
    /// What is to be dropped when the lock is free.
    pub(super) unneeded: Vec<Outcome>,
    /// Empty between two events, except after a panic. Kept to reuse the allocation.
    actions: Actions,
    absorbed: Vec<Chunk>,
    /// Chunks that a panic kept from being taken in.
    interrupted: Vec<Chunk>,
}

pub(super) enum Threads {
    NotStarted,
    Running { starter: mpsc::Sender<starter::Order> },
    Ended,
}

pub(super) type Actions = Vec<Action<Chunk>>;

impl Pool {
    /// Hands a chunk to the scheduler, if the lock is free and the scheduler can use the chunk now.
    /// Otherwise puts it into the intake, from where the thread that has the lock takes it, or the
    /// next event.
    pub(super) fn take_in(self: &Arc<Self>, chunk: Chunk) {
        let warms = chunk.is_in_segment();
        let function = chunk.deferrable();
        if !self.started.load(Ordering::Acquire) {
            // First of all: the thread that takes the chunk in may ask the starter for a worker at
            // once.
            self.event(|core, now, out| self.ensure_threads(core, now, out));
        }
        if chunk.priority() != 0 {
            // Nor may it wait in the intake behind tasks that it is to overtake.
            self.lock().some_event(|core, now, out| core.scheduler.on_submit(now, [chunk], out));
            return if warms {
                self.warm_up()
            };
        }
        if chunk.queue_until().is_some() {
            // It must not wait in the intake, which keeps no time. The event first takes in
            // everything that was submitted before.
            self.event(|core, now, out| core.scheduler.on_submit(now, [chunk], out));
            return if warms {
                self.warm_up()
            };
        }
        let is_deferred =
            || function.is_some_and(|id| id.0 == self.deferred.load(Ordering::Relaxed));
        let waits = self.saturated.load(Ordering::Relaxed) || is_deferred();
        match if waits { None } else { self.try_lock() } {
            // After those that are in the intake: each event begins with them.
            Some(core) => self.locked(core).some_event(|core, now, out| {
                // Others may be left in the intake, and go first.
                match self.intake.has_any() {
                    true => _ = self.intake.push(chunk, false),
                    false => core.scheduler.on_submit(now, [chunk], out),
                }
            }),
            None => self.put_into_intake(chunk, is_deferred),
        }
        if warms {
            self.warm_up();
        }
    }

    /// `is_deferred` says whether the chunk may wait for the next event although a worker has room.
    /// A chunk that waits because no worker has room is urgent as soon as one has.
    fn put_into_intake(&self, chunk: Chunk, is_deferred: impl Fn() -> bool) {
        let waits = self.intake.push(chunk, is_deferred());
        // The push must be visible before the conditions and the lock are examined: see
        // `intake_waits`.
        fence(Ordering::SeqCst);
        if self.saturated.load(Ordering::Relaxed) || waits && is_deferred() {
            return;
        }
        // A thread that has the lock takes the chunk in when it frees the lock.
        if let Some(core) = self.try_lock() {
            self.locked(core).take_intake();
        }
    }

    /// Waits for the lock.
    pub(super) fn lock(&self) -> Locked<'_> {
        self.locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the lock if it is free, also after a panic.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Some(core),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn locked<'a>(&'a self, core: MutexGuard<'a, Core>) -> Locked<'a> {
        let unwinding = std::thread::panicking();
        Locked {
            core: Some(core),
            pool: self,
            outcomes: Outcomes::default(),
            log: Vec::new(),
            unneeded: Vec::new(),
            unwinding,
        }
    }

    /// Lets the scheduler decide, does what it says, and completes futures when the lock is free.
    /// The scheduler has every chunk by then that was submitted before.
    pub(super) fn event<R>(&self, decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R) -> R {
        self.lock().event(decide)
    }

    /// Returns whether a submitted chunk needs to be taken in now. Called after the lock was freed.
    /// A submitter first pushes, and then examines `saturated`, `deferred` and the lock. This
    /// thread first frees the lock, and then examines the two and the intake. With the fence
    /// between the two steps on each side, at least one of the threads sees what the other did.
    fn intake_waits(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.saturated.load(Ordering::Relaxed) {
            return false;
        }
        let deferred = self.deferred.load(Ordering::Relaxed) != 0;
        self.intake.has_any() && (!deferred || self.intake.is_urgent())
    }

    /// Hands chunks of the intake to the scheduler: all that are there now, or as many of them as
    /// it needs.
    #[inline]
    fn absorb_intake(&self, core: &mut Core, all: bool, now: Instant, out: &mut Actions) {
        let Core { scheduler, absorbed, interrupted, .. } = core;
        if interrupted.is_empty() && !self.intake.has_any() {
            return;
        }
        absorbed.append(interrupted);
        // Other threads may add chunks for as long as this goes on. What they have not added yet
        // waits for the next event, or this one would never end.
        let mut there = self.intake.blocks();
        loop {
            if !absorbed.is_empty() {
                let items = absorbed.drain(..);
                scheduler.on_submit(now, Rest { items, kept: interrupted }, out);
            }
            if there == 0 || !(all || scheduler.takes_more()) || !self.intake.take(absorbed) {
                return;
            }
            there -= 1;
        }
    }

    fn on_closed(&self, core: &mut Core) {
        core.closed = true;
        match core.threads {
            Threads::Running { .. } => self.bell.ring(),
            Threads::NotStarted | Threads::Ended => {
                core.threads = Threads::Ended;
                self.ended.0.close();
                self.callbacks.close();
            }
        }
    }

    /// Performs actions. Returns whether any action was neither a send nor a resolution.
    fn perform(
        &self,
        core: &mut Core,
        actions: &mut Actions,
        kept: &mut Actions,
        outcomes: &mut Outcomes,
    ) -> bool {
        if actions.is_empty() {
            return false;
        }
        let mut rare = false;
        let was_stuck = core.stuck;
        // Several frames for one worker need only one wake-up, after the last of them.
        let mut unflushed: Option<WorkerId> = None;
        for action in (Rest { items: actions.drain(..), kept }) {
            match action {
                Action::Send(worker, sending) => {
                    if let Some(other) = unflushed.replace(worker).filter(|other| *other != worker)
                    {
                        core.flush(other);
                    }
                    core.send(worker, sending);
                    continue;
                }
                Action::Resolve(resolve) => {
                    let (chunk, end) = *resolve;
                    // What was given up is logged already.
                    let is_new = !matches!(end, End::GivenUp(_));
                    let error = core.error_of(&chunk, end);
                    if is_new {
                        let record = LogRecord::of_attempt(chunk.name(), chunk.attempts(), &error);
                        core.log.extend(record);
                    }
                    core.counts.failed(&error, chunk.left());
                    outcomes.batch.get_or_insert_with(|| {
                        // The outcome counts as on its way from here, under the lock, until it
                        // reaches its future.
                        self.on_the_way.leave();
                        self.on_the_way.batch()
                    });
                    outcomes.fail(chunk, error);
                    continue;
                }
                Action::Undecided(undecided) => {
                    let (task, end) = *undecided;
                    // `None` if this event has also ended the pool, and the task with it.
                    if let Some(chunk) = core.scheduler.undecided(task) {
                        let attempt = chunk.attempts() - 1;
                        let error = core.error_of_attempt(chunk, end).after(attempt);
                        core.log.extend(LogRecord::of_attempt(chunk.name(), attempt, &error));
                        outcomes.undecided(self, chunk, Answer::Error(Box::new(error)));
                    }
                    continue;
                }
                Action::Start(id, index) => {
                    core.workers.insert(id, Worker::default());
                    self.add_standing(core, id, outcomes);
                    if let Threads::Running { starter } = &core.threads {
                        // The starter lives until the driver has ended, which is after the end of
                        // the last worker.
                        let _ = starter.send((id, index));
                    }
                }
                Action::Stop(id) => {
                    if let Some(worker) = core.workers.get(&id) {
                        let order = ToWorker::new(Order::Stop);
                        core.stuck |= match &self.options.finalizer {
                            None => worker.send(order, &Vec::new().into()),
                            Some(Initializer { entry, arguments, .. }) => {
                                let (function, flags) = (entry.number(), flag::FINALIZES);
                                worker.send(ToWorker { function, flags, ..order }, arguments)
                            }
                        };
                    }
                    core.flush(id);
                }
                Action::Ask(id, seq) => {
                    if let Some(link) = core.link(id) {
                        link.board().ask(seq);
                    }
                }
                Action::NotFinalized(id, end) => self.on_not_finalized(core, id, end),
                Action::WarnNotReady(cause) => core.log.push(LogRecord::NotReady(cause)),
                Action::WarnNotStopping(id, timeout) => {
                    core.log.push(LogRecord::NotStopping { worker: id.0, timeout });
                }
                Action::Terminate(id) => core.signal(id, Signal::TERM),
                Action::Kill(id) => core.signal(id, Signal::KILL),
                Action::Closed => self.on_closed(core),
            }
            rare = true;
        }
        if let Some(worker) = unflushed {
            core.flush(worker);
        }
        if core.stuck && !was_stuck {
            self.bell.ring();
        }
        rare
    }
}

/// Completes futures and calls their wakers. Must not be called with a lock held.
fn complete(outcomes: Outcomes) {
    let mut wakers = Wakers::default();
    let batch = outcomes.deliver(&mut wakers);
    wakers.wake();
    drop(batch);
}

/// Ends a chunk that the pool does not take. Must not be called with a lock held.
pub(super) fn refuse(chunk: Chunk, error: TaskError) {
    let mut outcomes = Outcomes::default();
    outcomes.fail(chunk, error);
    complete(outcomes);
}

/// The lock on the core. When it is freed, chunks that were submitted meanwhile are taken in.
pub(super) struct Locked<'a> {
    /// `None` once the lock is free, and while an event is decided.
    core: Option<MutexGuard<'a, Core>>,
    pool: &'a Pool,
    /// Results of the events up to now.
    outcomes: Outcomes,
    /// What the events up to now have to log. A subscriber of `tracing` is user code, and may ask
    /// the pool.
    log: Vec<LogRecord>,
    /// Outcomes that nobody needs any more.
    unneeded: Vec<Outcome>,
    /// The thread was unwinding already when it took the lock: it drops a pool or a future.
    unwinding: bool,
}

impl<'a> Locked<'a> {
    /// Takes in all that was submitted, lets the scheduler decide, and performs its actions.
    pub(super) fn event<R>(
        &mut self,
        decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R,
    ) -> R {
        self.event_with(true, decide)
    }

    /// As [`event`](Self::event), but leaves chunks in the intake that no worker could take now.
    /// For decisions that do not depend on them.
    pub(super) fn some_event<R>(
        &mut self,
        decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R,
    ) -> R {
        self.event_with(false, decide)
    }

    fn event_with<R>(
        &mut self,
        all: bool,
        decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R,
    ) -> R {
        // Taken out of `self`, so that after a panic `drop` finds no lock and does nothing.
        let mut decision = Decision::begin(self.pool, self.core.take());
        let Decision { core, actions, kept, .. } = &mut decision;
        let core: &mut Core = core.as_mut().expect("it is freed last");
        let now = Instant::now();
        // First what came first: a task that is to be cancelled must be there.
        self.pool.absorb_intake(core, all, now, actions);
        // Also perform what the intake led to before `decide` asks whether a worker has begun a
        // task: a task that is not on the board yet looks as if it could not be taken back any
        // more.
        let mut rare = self.pool.perform(core, actions, kept, &mut self.outcomes);
        let result = decide(core, now, actions);
        // Workers may have room now for more than the scheduler had.
        self.pool.absorb_intake(core, false, now, actions);
        rare |= self.pool.perform(core, actions, kept, &mut self.outcomes);
        let saturated = core.scheduler.is_saturated();
        if saturated != self.pool.saturated.load(Ordering::Relaxed) {
            self.pool.saturated.store(saturated, Ordering::Relaxed);
        }
        let deferred = core.scheduler.deferred().map_or(0, |function| function.0);
        if deferred != self.pool.deferred.load(Ordering::Relaxed) {
            self.pool.deferred.store(deferred, Ordering::Relaxed);
        }
        let few = core.scheduler.has_few_tasks();
        if few != self.pool.few_tasks.load(Ordering::Relaxed) {
            self.pool.few_tasks.store(few, Ordering::Relaxed);
        }
        if let Some(pressure) = &self.pool.pressure
            && !core.scheduler.is_open()
            && !pressure.is_open()
        {
            // Those who wait for room are refused, like all who come later.
            self.outcomes.opens = Some(Arc::clone(pressure));
        }
        let next = match rare || core.scheduler.has_timed() {
            true => core.scheduler.next_deadline(),
            // Comes and goes with ordinary events, and the rest cannot have changed.
            false => core.scheduler.ordinary_deadline(),
        };
        // Only the first task after a time without tasks wakes the driver for this. From then on,
        // the driver looks by its own clock. If every event asked for a look, the driver's own tick
        // would wake it again and again.
        let begins = !core.attended && core.scheduler.expects_replies();
        core.attended |= begins;
        let next = match begins {
            true => next.into_iter().chain([now + driver::ATTEND_EVERY]).min(),
            false => next,
        };
        if next.is_some_and(|next| core.armed.is_none_or(|armed| next < armed)) {
            core.armed = next;
            self.pool.bell.ring();
        }
        self.core = decision.end();
        result
    }

    /// Takes in what was submitted, as far as the scheduler needs it now.
    fn take_intake(&mut self) {
        self.some_event(|_, _, _| ());
    }

    /// Frees the lock, and returns results for the caller to deliver.
    pub(super) fn unlock(mut self) -> Outcomes {
        self.free();
        self.log();
        std::mem::take(&mut self.outcomes)
    }

    fn free(&mut self) {
        loop {
            if let Some(core) = &mut self.core
                && (!core.log.is_empty() || !core.unneeded.is_empty())
            {
                self.log.append(&mut core.log);
                self.unneeded.append(&mut core.unneeded);
            }
            drop(self.core.take());
            if !self.pool.intake_waits() {
                return;
            }
            // Another thread that has the lock by now looks at the intake after this.
            let Some(core) = self.pool.try_lock() else { return };
            self.core = Some(core);
            self.take_intake();
        }
    }

    /// Logs what is to be logged. The lock is free.
    fn log(&mut self) {
        if self.log.is_empty() {
            return;
        }
        for record in self.log.drain(..) {
            // A panic of the subscriber must not keep results from their futures.
            let _ = catch(|| record.log());
        }
    }
}

/// The core while an event is decided.
struct Decision<'a> {
    /// `None` at the end.
    core: Option<MutexGuard<'a, Core>>,
    actions: Actions,
    /// Actions that a panic kept from being performed.
    kept: Actions,
    pool: &'a Pool,
}

impl<'a> Decision<'a> {
    #[inline]
    fn begin(pool: &'a Pool, mut core: Option<MutexGuard<'a, Core>>) -> Self {
        let actions = core.as_mut().map(|core| std::mem::take(&mut core.actions));
        Decision { core, actions: actions.unwrap_or_default(), kept: Actions::new(), pool }
    }

    /// Returns the core after all actions were performed.
    #[inline]
    fn end(mut self) -> Option<MutexGuard<'a, Core>> {
        debug_assert!(self.actions.is_empty() && self.kept.is_empty());
        let mut core = self.core.take()?;
        core.actions = std::mem::take(&mut self.actions);
        Some(core)
    }
}

impl Drop for Decision<'_> {
    fn drop(&mut self) {
        // Only after a panic. The next event performs what is left, and the driver makes one soon.
        if let Some(core) = &mut self.core {
            self.kept.append(&mut self.actions);
            core.actions = std::mem::take(&mut self.kept);
            core.armed = None;
            self.pool.bell.ring();
        }
    }
}

/// The items of a vector, one by one. Those that a panic leaves are kept, and not dropped.
struct Rest<'a, T> {
    items: std::vec::Drain<'a, T>,
    kept: &'a mut Vec<T>,
}

impl<T> Iterator for Rest<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        self.items.next()
    }
}

impl<T> Drop for Rest<'_, T> {
    fn drop(&mut self) {
        if !self.items.as_slice().is_empty() {
            self.kept.extend(&mut self.items);
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // If a panic began under the lock, only free it. Another panic while this thread unwinds
        // would abort the program; the next event takes in what was submitted.
        if std::thread::panicking() && !self.unwinding {
            self.core = None;
        } else if self.core.is_some() {
            self.free();
            if !self.outcomes.is_empty() {
                complete(std::mem::take(&mut self.outcomes));
            }
            self.log();
        }
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_deref().expect("it is freed last")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_deref_mut().expect("it is freed last")
    }
}

impl Core {
    pub(super) fn new(scheduler: Scheduler<Chunk>, restraints: Restraints) -> Self {
        Core {
            scheduler,
            restraints,
            workers: BTreeMap::new(),
            threads: Threads::NotStarted,
            armed: None,
            attended: false,
            closed: false,
            stuck: false,
            log: Vec::new(),
            counts: Counts::default(),
            unneeded: Vec::new(),
            actions: Actions::new(),
            absorbed: Vec::new(),
            interrupted: Vec::new(),
        }
    }

    fn link(&self, worker: WorkerId) -> Option<&dyn Link> {
        self.workers.get(&worker)?.link.as_deref()
    }

    pub(super) fn signal(&mut self, worker: WorkerId, signal: Signal) {
        let record = self.workers.entry(worker).or_default();
        if let Err(error) = record.signal(signal) {
            let pid = record.pid();
            self.log.push(LogRecord::NotSignalled { error, pid });
            self.scheduler.on_signal_refused(Instant::now(), worker);
        }
    }

    /// Returns the error for a task that ends without a reply.
    fn error_of(&self, chunk: &Chunk, end: End) -> TaskError {
        let attempts = match end {
            End::GivenUp(error) => return error,
            // It has waited for an attempt that never began.
            End::Error(TaskError::TimedOut { phase: Phase::Queue, .. }) => chunk.attempts() - 1,
            _ => chunk.attempts(),
        };
        let is_poison = matches!(end, End::Lost(_)) && chunk.is_poison();
        let error = self.error_of_attempt(chunk, end).after(attempts);
        if is_poison { error.of_poison() } else { error }
    }

    /// Returns the error for an attempt that ends without a reply.
    fn error_of_attempt(&self, chunk: &Chunk, end: End) -> TaskError {
        let (worker, begun) = match end {
            End::Error(error) | End::GivenUp(error) => return error.of_task(chunk.name()),
            End::Lost(worker) => (worker, true),
            End::Unbegun(worker) => (worker, false),
        };
        let none;
        let worker = match self.workers.get(&worker) {
            Some(worker) => worker,
            // It was for a worker that has left, or that could not be started.
            None => {
                none = Worker::default();
                &none
            }
        };
        let ending = worker.ending(&self.restraints);
        match begun {
            true => ending.of_task(chunk.first_id(), chunk.name()),
            false => ending.before_task(chunk.name()),
        }
    }

    fn send(&mut self, worker: WorkerId, Sending { header, arguments }: Sending) {
        if let Some(worker) = self.workers.get(&worker) {
            self.stuck |= worker.send(header, &arguments);
        }
    }

    fn flush(&self, worker: WorkerId) {
        if let Some(link) = self.link(worker) {
            link.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pool::{
            AtEnd, Graces, Lifespan, PoolOptions, Shutdown, TaskDefaults, program::StartOptions,
            worker::Boards,
        },
        wire::handshake::Transport,
    };

    /// Returns a pool that has no threads.
    fn pool() -> Arc<Pool> {
        let options = PoolOptions {
            workers_max: 1,
            workers_min: 0,
            tasks_max: None,
            lifespan: Lifespan::default(),
            start_timeout: std::time::Duration::from_secs(60),
            initializer_timeout: std::time::Duration::from_secs(60),
            initializer: None,
            finalizer: None,
            finalizer_timeout: std::time::Duration::from_secs(60),
            graces: Graces::default(),
            start: StartOptions::default(),
            places: Default::default(),
            resources: Default::default(),
            round_robin: false,
            stack_bytes: None,
            transport: Transport::Ring,
            at_end: AtEnd::default(),
            exit_timeout: None,
            defaults: TaskDefaults::default(),
            pressure: None,
            restraints: Restraints::default(),
            control_group: None,
            error_hook: None,
        };
        Pool::new(options).unwrap()
    }

    #[test]
    fn actions_that_a_panic_leaves_are_performed_by_the_next_event() {
        let pool = pool();
        let panics = || {
            pool.event(|core, now, out| {
                let Core { scheduler, workers, .. } = core;
                scheduler.on_shutdown(now, Shutdown::default(), &Boards(workers), out);
                panic!("under the lock");
            })
        };
        assert!(catch(panics).is_err());
        assert!(!pool.has_ended());
        pool.event(|_, _, _| ());
        assert!(pool.has_ended());
    }

    #[test]
    fn items_that_a_panic_leaves_are_kept_in_order() {
        let (mut items, mut kept) = (vec![1, 2, 3, 4], vec![0]);
        let panics = || {
            for item in (Rest { items: items.drain(..), kept: &mut kept }) {
                assert!(item < 2);
            }
        };
        assert!(catch(panics).is_err());
        assert_eq!((items, kept), (vec![], vec![0, 3, 4]));
    }
}
