//! One executor's worker processes, and the state the parent keeps about them.
//!
//! ```text
//!  submit ──► intake ──► Core (one lock) ── Scheduler: event in, actions out (pure) ──┐
//!                           ▲   ▲   ▲                                                   │ perform, under the same lock
//!                           │   │   │        Start ─► starter thread ─► process         │
//!                           │   │   │        Send, Stop ─► Link (never blocks)   ◄──────┤
//!                           │   │   │        Kill ─► the worker's group                 │
//!                           │   │   │        Resolve ─► future, after the lock is free  ┘
//!                           │   │   └── driver thread: handshakes, deaths (pidfd), deadlines
//!                           │   └────── replies: the thread in `result()` itself, else the reader thread
//!                           └────────── cancel, shutdown
//! ```
//!
//! Who owns what: the scheduler every [`Chunk`] of tasks and the state of every worker; a [`Worker`] what the
//! system knows of a worker (process, link, exit); the driver the descriptors it polls. Nobody keeps a second copy.
//! What was submitted while somebody else had the lock waits in the intake, and whoever has the lock takes it in.
//!
//! In the common case a task costs no hop: `submit` itself writes to an idle worker, the thread that waits for a result
//! drains the worker's replies itself ([`reader`]), and whoever takes a reply writes the next task at once.
//!
//! When a worker dies: its pidfd wakes the driver, which kills what is left of its group, reaps it and hangs up; who
//! drains it then sees all that the worker had published, and after that the end; only then the scheduler judges who had
//! begun what. When the pool's own threads cannot be started, the pool is broken, and says so. When the parent dies,
//! each worker's watcher kills its group. A process forked from this one has no threads: all handles are inert there.

mod beside;
mod chunk;
mod driver;
mod ending;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models;
mod reader;
pub(crate) mod scheduler;
#[cfg(test)]
mod sim;
mod starter;
mod task_table;
mod worker;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering, fence},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub(crate) use chunk::{Chunk, next_task_ids};
use chunk::{Outcomes, Sending};
pub(crate) use ending::AtEnd;
use ending::{Batch, OnTheWay};
use reader::Drains;
use rustix::process::Signal;
use scheduler::{Action, Config, End, Replied, Scheduler};
use worker::{Boards, Worker};

use crate::{
    child::exit,
    error::{BrokenCause, TaskError, reply},
    future::{
        callback::{self, CallbackQueue},
        cell::{Awaited, Control, Wakers},
        timer::Timer,
        wait::Signal as Flag,
    },
    id::{FnId, TaskId, WorkerId},
    os::{
        asked::Asked, cpu::usable_cpus, fork::Origin, local, memory::Shared, process::Child, signals,
        wake::Bell,
    },
    registry::TaskEntry,
    segment::{Results, Store},
    shield::shielded,
    transport::{Link, ipc, ring::doorbell::Doorbell},
    wire::{
        frame::{Frame, FromWorker, Order, Reply, ToWorker, WireError},
        handshake::Transport,
        payload::Payload,
    },
};

/// What an executor holds at a moment: see [`ProcessPoolExecutor::stats`](crate::ProcessPoolExecutor::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Workers that live, or are being started.
    pub workers: usize,
    /// Segments of shared memory that large arguments and results are in, or that are kept for the next ones. There are
    /// at most 64 for arguments, and 64 for the results of each worker.
    pub segments: usize,
    /// Bytes of memory in those segments: at most 4 GiB for arguments, and 4 GiB for the results of each worker. What
    /// has not been used for a second or two goes back to the system. The memory of a
    /// [`SharedBytes`](crate::SharedBytes) is not in it: that belongs to whoever has the handle.
    pub segment_bytes: u64,
}

/// What each worker runs before any task.
pub(crate) struct Initializer<A> {
    pub(crate) entry: &'static TaskEntry,
    /// What errors call it.
    pub(crate) name: Box<str>,
    /// As the task itself says.
    pub(crate) timeout: Option<Duration>,
    pub(crate) arguments: A,
}

/// What the pool is to be like.
pub(crate) struct PoolOptions {
    pub(crate) workers_max: usize,
    /// Started at once, and kept.
    pub(crate) workers_min: usize,
    pub(crate) tasks_max: Option<u32>,
    pub(crate) start_timeout: Duration,
    pub(crate) initializer_timeout: Duration,
    pub(crate) initializer: Option<Initializer<Payload>>,
    pub(crate) envs: Vec<(OsString, Option<OsString>)>,
    pub(crate) stack_bytes: Option<u64>,
    pub(crate) transport: Transport,
    /// What becomes of accepted work when the program ends, and how long that may take.
    pub(crate) at_end: AtEnd,
    pub(crate) exit_timeout: Option<Duration>,
}

/// Everything under the pool's one lock.
struct Core {
    scheduler: Scheduler<Chunk>,
    workers: BTreeMap<WorkerId, Worker>,
    threads: Threads,
    /// Until when the driver sleeps.
    armed: Option<Instant>,
    /// Whether the driver looks for workers that are stopped: it does while there are tasks, and for a moment after.
    attended: bool,
    closed: bool,
    /// Descriptors wait for room in a worker's control socket.
    stuck: bool,
    /// Empty between two events; kept for their memory.
    actions: Actions,
    absorbed: Vec<Chunk>,
}

enum Threads {
    NotStarted,
    Running { starter: mpsc::Sender<WorkerId> },
    Ended,
}

pub(crate) struct Pool {
    core: Mutex<Core>,
    /// Held for a push or a swap only. Whoever frees `core` looks here once more.
    intake: Mutex<Vec<Chunk>>,
    /// The rings of the workers that are connected.
    rings: reader::Rings,
    /// Where the reader sleeps, and the descriptor by which workers see it.
    doorbell: (Arc<Shared<Doorbell>>, OwnedFd),
    /// Where large arguments lie, and the descriptor by which workers read them. `None` if the system allows no such
    /// file: then they go in parts, as everything does that is too large.
    arguments: Option<(Arc<Store>, OwnedFd)>,
    /// Segments hold memory that is to be given back some time.
    warm: AtomicBool,
    /// Wakes the driver.
    bell: Bell,
    /// What other threads have to tell the driver.
    notices: Mutex<Vec<driver::Notice>>,
    options: PoolOptions,
    origin: Origin,
    /// Whether the threads were asked for.
    started: AtomicBool,
    /// All workers have as much as they may: what is submitted waits in the intake until one has answered.
    saturated: AtomicBool,
    /// Whether the reader may look again for a moment before it sleeps; as it was at the last reply.
    spare_processor: AtomicBool,
    callbacks: Arc<CallbackQueue>,
    on_the_way: Arc<OnTheWay>,
    /// The last thread to end; whoever joins the pool joins it.
    driver: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the pool's threads have ended.
    ended: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

type Actions = Vec<Action<Chunk>>;

impl Pool {
    pub(crate) fn new(options: PoolOptions) -> std::io::Result<Arc<Self>> {
        if options.transport == Transport::Ipc {
            ipc::prepare()?;
        }
        let config = Config {
            workers_max: options.workers_max,
            workers_min: options.workers_min,
            initializer: options.initializer.as_ref().map(|initializer| initializer.name.clone()),
            initializer_timeout: options.initializer_timeout,
            tasks_max: options.tasks_max,
            start_timeout: options.start_timeout,
            processors: usable_cpus(),
        };
        let (doorbell, doorbell_fd) =
            Shared::create("executor-doorbell").asked("shared memory (memfd_create, ftruncate, mmap)")?;
        // Opened again by the same user who made it.
        let arguments = signals::as_one_user(|_| {
            let store = Store::create()?;
            let descriptor = store.read_only()?;
            std::io::Result::Ok((store, descriptor))
        });
        let arguments = match arguments {
            // What may be there another time is what the rest of an executor needs too.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                return Err(error).asked("shared memory for arguments");
            }
            arguments => arguments
                .inspect_err(|error| tracing::debug!(%error, "large arguments will go in parts"))
                .ok(),
        };
        let callbacks = Arc::new(CallbackQueue::new(options.exit_timeout));
        let pool = Arc::new(Pool {
            core: Mutex::new(Core {
                scheduler: Scheduler::new(config),
                workers: BTreeMap::new(),
                threads: Threads::NotStarted,
                armed: None,
                attended: false,
                closed: false,
                stuck: false,
                actions: Actions::new(),
                absorbed: Vec::new(),
            }),
            intake: Mutex::default(),
            rings: reader::Rings::default(),
            doorbell: (Arc::new(doorbell), doorbell_fd),
            arguments,
            warm: AtomicBool::new(false),
            bell: Bell::new().asked("an eventfd")?,
            notices: Mutex::default(),
            options,
            origin: Origin::here(),
            started: AtomicBool::new(false),
            saturated: AtomicBool::new(false),
            spare_processor: AtomicBool::new(false),
            callbacks,
            on_the_way: Arc::default(),
            driver: Mutex::default(),
            ended: async_channel::bounded(1),
        });
        if pool.options.workers_min > 0 {
            pool.event(|core, now, out| {
                pool.ensure_threads(core, now, out);
                core.scheduler.on_open(now, out);
            });
        }
        Ok(pool)
    }

    pub(crate) fn workers_max(&self) -> usize {
        self.options.workers_max
    }

    pub(crate) fn forked(&self) -> bool {
        self.origin.forked()
    }

    pub(crate) fn callbacks(&self) -> &Arc<CallbackQueue> {
        &self.callbacks
    }

    /// Process ids of the workers that live now.
    pub(crate) fn worker_pids(&self) -> Vec<u32> {
        if self.forked() {
            return Vec::new();
        }
        let core = self.lock();
        core.workers.values().filter_map(Worker::living).map(|child| child.pid()).collect()
    }

    /// The processes of the workers that live now.
    fn living(&self) -> Vec<(WorkerId, Arc<Child>)> {
        let core = self.lock();
        let living = core.workers.iter().filter_map(|(id, worker)| Some((*id, Arc::clone(worker.living()?))));
        living.collect()
    }

    // ---- tasks -----------------------------------------------------------------------------------------------------

    /// Takes a chunk in. In a fork it is dropped: its futures and its map know that nothing comes.
    pub(crate) fn submit(self: &Arc<Self>, chunk: Chunk) {
        if !self.forked() {
            self.take_in(chunk);
        }
    }

    /// How long a call of this function takes, as far as is known.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        if self.forked() { None } else { self.lock().scheduler.estimate(function) }
    }

    // ---- memory ----------------------------------------------------------------------------------------------------

    /// Where large arguments are to be encoded.
    pub(crate) fn arguments(&self) -> Option<Arc<Store>> {
        self.arguments.as_ref().map(|(store, _)| Arc::clone(store))
    }

    /// A segment was used: the driver is to empty it when it is not used any more.
    fn warm_up(&self) {
        if !self.warm.load(Ordering::Relaxed) && !self.warm.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    fn is_warm(&self) -> bool {
        self.warm.load(Ordering::SeqCst)
    }

    /// Why it cannot go on.
    pub(crate) fn broken(&self) -> Option<BrokenCause> {
        if self.forked() {
            return Some(BrokenCause::Forked);
        }
        self.lock().scheduler.broken().cloned()
    }

    /// What the pool holds now.
    pub(crate) fn stats(&self) -> Stats {
        if self.forked() {
            return Stats::default();
        }
        let (mut segments, mut segment_bytes) =
            self.arguments.as_ref().map_or((0, 0), |(store, _)| store.count());
        for results in self.results() {
            let (count, bytes) = results.count();
            segments += count;
            segment_bytes += bytes;
        }
        Stats { workers: self.worker_pids().len(), segments, segment_bytes }
    }

    fn results(&self) -> Vec<Arc<Results>> {
        let core = self.lock();
        core.workers.values().filter_map(|worker| worker.beside.as_ref()?.results().cloned()).collect()
    }

    /// Empties segments that were not used since the last call; whether any hold memory still.
    fn trim(&self) -> bool {
        // Cleared first: who uses one from here on sets it again, and rings.
        self.warm.store(false, Ordering::SeqCst);
        let mut left = self.arguments.as_ref().is_some_and(|(store, _)| store.trim());
        for results in self.results() {
            left |= results.trim();
        }
        if left {
            self.warm.store(true, Ordering::SeqCst);
        }
        left
    }

    /// Sends descriptors that found no room in a worker's socket; whether any are left.
    fn unstick(&self) -> bool {
        let mut core = self.lock();
        if core.stuck {
            let all = core.workers.values().filter_map(|worker| worker.beside.as_ref());
            core.stuck = all.fold(false, |left, beside| beside.flush() | left);
        }
        core.stuck
    }

    /// Into the intake, and from there to the scheduler: by this thread, or by the one that has the lock.
    fn take_in(self: &Arc<Self>, chunk: Chunk) {
        let warms = chunk.is_in_segment();
        if !self.started.load(Ordering::Acquire) {
            // First: whoever takes the task in may ask the starter for a worker at once.
            self.event(|core, now, out| self.ensure_threads(core, now, out));
        }
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        fence(Ordering::SeqCst);
        // A thread that has the lock takes the chunk in when it frees the lock.
        if !self.saturated.load(Ordering::Relaxed)
            && let Some(core) = self.try_lock()
        {
            self.locked(core).take_intake();
        }
        if warms {
            self.warm_up();
        }
    }

    /// Starts the driver, the reader and the starter with the first task: a pool that is never used costs no thread.
    fn ensure_threads(self: &Arc<Self>, core: &mut Core, now: Instant, out: &mut Actions) {
        if !matches!(core.threads, Threads::NotStarted) || core.scheduler.refusal().is_some() {
            return;
        }
        self.started.store(true, Ordering::Release);
        let (sender, receiver) = mpsc::channel();
        // With the first use and not with the pool: exit handlers are called in reverse order, so what the program has
        // registered before is still there when work is finished.
        let (pool, callbacks) = (Arc::downgrade(self), Arc::downgrade(&self.callbacks));
        exit::finish_at_the_end(pool);
        exit::finish_at_the_end(callbacks);
        match driver::start(Arc::clone(self), receiver) {
            Ok(driver) => {
                core.threads = Threads::Running { starter: sender };
                *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver);
            }
            Err(error) => {
                core.threads = Threads::Ended;
                // Nobody would notice the end of a worker.
                let cause = BrokenCause::Start(format!("the system refused a thread: {error}").into());
                core.scheduler.on_collapse(now, cause, out);
            }
        }
    }

    // ---- shutdown --------------------------------------------------------------------------------------------------

    pub(crate) fn shutdown(&self, cancel_pending: bool, deadline: Option<Instant>) {
        if self.forked() {
            return;
        }
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_shutdown(now, cancel_pending, deadline, &Boards(workers), out);
        });
    }

    /// Ends all workers: by SIGTERM and, after a grace time, SIGKILL; or by SIGKILL at once.
    pub(crate) fn end_workers(&self, at_once: bool) {
        if !self.forked() {
            self.event(|core, now, out| core.scheduler.on_kill(now, at_once, out));
        }
    }

    /// Waits until every task is resolved, every worker reaped, every thread gone, every queued callback run.
    ///
    /// On one of the pool's own threads it returns at once: a waker may run there, and would wait for itself.
    pub(crate) fn join(&self) {
        if self.forked() || is_own_thread() {
            return;
        }
        self.join_threads();
        self.callbacks.flush();
        self.callbacks.join();
    }

    /// Waits until every worker is reaped and every thread but that of callbacks is gone. Not on one of them.
    fn join_threads(&self) {
        // Only closes, never receives.
        let _ = self.ended.1.recv_blocking();
        // Under the lock, so that whoever comes second finds it gone as well. It waits for nothing any more.
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = driver.take() {
            let _ = driver.join();
        }
    }

    /// Whether every worker is reaped and every thread gone. Never in a fork.
    pub(crate) fn has_ended(&self) -> bool {
        !self.forked() && self.ended.1.is_closed()
    }

    /// As [`join`](Self::join), at most until `deadline`; whether all is over.
    pub(crate) fn join_until(&self, deadline: Instant) -> bool {
        if self.forked() || is_own_thread() {
            return true;
        }
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut end = pin!(self.ended.1.recv());
        loop {
            flag.clear();
            if end.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.join_threads();
                let flushed = self.callbacks.flush_until(Some(deadline));
                if flushed {
                    self.callbacks.join();
                }
                return flushed;
            }
            if !flag.wait(Some(deadline)) {
                return false;
            }
        }
    }

    pub(crate) async fn join_async(&self) {
        if self.forked() {
            return;
        }
        let _ = shielded(self.ended.1.recv()).await;
        if self.callbacks.is_current_thread() {
            return;
        }
        // Callbacks run in order: once this one runs, those before it have.
        let (last, flushed) = async_channel::bounded::<()>(1);
        self.callbacks.push(Box::new(move || drop(last)));
        if !self.callbacks.is_attended() {
            // The system refused a thread; nobody else would ever run them.
            self.callbacks.flush();
        }
        let mut flushed = pin!(shielded(flushed.recv()));
        loop {
            // In an exit hook, nobody but the caller notices that a callback before this one is held in `exit`.
            let mut look = exit::has_begun().then(|| Timer::new(Instant::now() + callback::LOOK));
            let looks = poll_fn(|context| match (flushed.as_mut().poll(context), &mut look) {
                (Poll::Ready(_), _) => Poll::Ready(false),
                (Poll::Pending, Some(look)) => look.poll(context.waker()).map(|()| true),
                (Poll::Pending, None) => Poll::Pending,
            });
            if !looks.await {
                return;
            }
            self.callbacks.look_at_the_end();
        }
    }

    // ---- one event at a time ---------------------------------------------------------------------------------------

    /// Waits for the lock.
    fn lock(&self) -> Locked<'_> {
        self.locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the lock, unless another thread has it.
    fn try_lock(&self) -> Option<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Some(core),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn locked<'a>(&'a self, core: MutexGuard<'a, Core>) -> Locked<'a> {
        Locked { core: Some(core), pool: self, outcomes: Outcomes::default() }
    }

    /// Lets the scheduler decide, does what it says, and completes futures when the lock is free.
    fn event<R>(&self, decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R) -> R {
        self.lock().event(decide)
    }

    /// Whether something was submitted that should not wait. Asked after the lock was freed: a submitter pushes first
    /// and asks for `saturated` and the lock then, so that one of the two sees what the other did.
    fn intake_waits(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.saturated.load(Ordering::Relaxed) {
            return false;
        }
        !self.intake.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn absorb_intake(&self, core: &mut Core, now: Instant, out: &mut Actions) {
        let mut absorbed = std::mem::take(&mut core.absorbed);
        std::mem::swap(&mut absorbed, &mut self.intake.lock().unwrap_or_else(PoisonError::into_inner));
        for chunk in absorbed.drain(..) {
            core.scheduler.on_submit(now, chunk, out);
        }
        core.absorbed = absorbed;
    }

    /// Acts; whether it did anything beside sending and resolving.
    fn perform(&self, core: &mut Core, actions: &mut Actions, outcomes: &mut Outcomes) -> bool {
        let mut rare = false;
        let was_stuck = core.stuck;
        // Woken after the last frame of several.
        let mut unflushed: Option<WorkerId> = None;
        for action in actions.drain(..) {
            match action {
                Action::Send(worker, sending) => {
                    if let Some(other) = unflushed.replace(worker).filter(|other| *other != worker) {
                        core.flush(other);
                    }
                    core.send(worker, sending);
                    continue;
                }
                Action::Resolve(resolve) => {
                    let (chunk, end) = *resolve;
                    let error = match end {
                        End::Error(error) => error.of_task(chunk.name()),
                        End::Lost(worker) => core.workers.get(&worker).map_or_else(
                            || TaskError::Broken(BrokenCause::Internal("lost an unknown worker".into())),
                            |worker| worker.ending().of_task(chunk.first_id(), chunk.name()),
                        ),
                    };
                    outcomes.batch.get_or_insert_with(|| {
                        self.on_the_way.leave();
                        self.on_the_way.batch()
                    });
                    outcomes.fail(chunk, error);
                    continue;
                }
                Action::Start(id) => {
                    core.workers.insert(id, Worker::default());
                    if let Threads::Running { starter } = &core.threads {
                        // The starter lives until the driver has ended, which is after the last worker.
                        let _ = starter.send(id);
                    }
                }
                Action::Stop(id) => {
                    if let Some(link) = core.workers.get(&id).and_then(|worker| worker.link.as_ref()) {
                        link.send(ToWorker::new(Order::Stop), &Vec::new().into());
                        link.flush();
                    }
                }
                Action::Terminate(id) => core.signal(id, Signal::TERM),
                Action::Kill(id) => core.signal(id, Signal::KILL),
                Action::Closed => {
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

    // ---- replies ---------------------------------------------------------------------------------------------------

    /// Frames that came from one worker together.
    fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        let mut replies = Outcomes::default();
        let mut credit = 0;
        let mut odd = Vec::new();
        let mut broken = None;
        let mut locked = self.lock();
        locked.event(|core, now, out| {
            let broke = |core: &Core| core.workers.get(&id).is_some_and(Worker::broke_protocol);
            // What a worker says after it broke the protocol is not believed, even where it would make sense.
            let mut believed = !broke(core);
            for frame in frames.drain(..) {
                if !believed {
                    continue;
                }
                credit = credit.max(frame.header.consumed);
                let header = frame.header;
                match self.on_frame(core, now, id, frame, out, &mut replies) {
                    Obeys::Yes => {}
                    Obeys::No => {
                        odd.push(header);
                        believed = false;
                        if let Some(worker) = core.workers.get_mut(&id) {
                            worker.breaks_protocol(WireError::Unasked);
                        }
                        core.scheduler.on_unruly(now, id, out);
                    }
                    Obeys::ButIsBroken(cause) => {
                        broken = Some(cause.clone());
                        core.scheduler.on_broken(now, cause, out);
                    }
                }
            }
            self.on_the_way.leave();
            let Core { scheduler, workers, .. } = core;
            scheduler.after_replies(now, id, &Boards(workers), out);
            self.spare_processor.store(scheduler.has_spare_processor(), Ordering::Relaxed);
            if let Some(link) = workers.get(&id).and_then(|worker| worker.link.as_ref()) {
                link.credit(credit);
            }
        });
        let resolved = locked.unlock();
        // Not under the lock: a subscriber is user code.
        if let Some(cause) = broken {
            tracing::error!(%cause, "the pool is broken");
        }
        for header in odd {
            tracing::error!(?header, "a worker sent what it should not, and is ended");
        }
        let in_chunks = replies.in_chunks;
        let mut wakers = Wakers::default();
        replies.deliver(&mut wakers);
        let _on_the_way = resolved.deliver(&mut wakers);
        let batch = (!wakers.is_empty()).then(|| self.on_the_way.batch());
        if batch.is_none() {
            self.on_the_way.arrive();
        }
        Taken { wakers, in_chunks, batch }
    }

    fn on_frame(
        &self,
        core: &mut Core,
        now: Instant,
        id: WorkerId,
        mut frame: Frame<FromWorker>,
        out: &mut Actions,
        replies: &mut Outcomes,
    ) -> Obeys {
        let Core { scheduler, workers, .. } = core;
        let claims = Boards(workers);
        if frame.header.flags != 0 {
            let opened = workers
                .get(&id)
                .and_then(|worker| worker.beside.as_ref())
                .ok_or(beside::Impossible)
                .and_then(|beside| beside.open(&mut frame));
            if opened.is_err() {
                return Obeys::No;
            }
            self.warm_up();
        }
        let initializer = frame.header.task.as_u64() == 0;
        match frame.header.reply {
            // A ring tells its room by itself: a worker that says so in frames could do so without end.
            Reply::Credit if self.rings.of(id).is_some() => return Obeys::No,
            Reply::Credit => {}
            Reply::Ready if scheduler.is_initializing(id) => scheduler.on_ready(now, id, &claims, out),
            Reply::Ready => return Obeys::No,
            _ if initializer => match &self.options.initializer {
                Some(Initializer { name, .. }) if scheduler.is_initializing(id) => {
                    let error = reply::failure(name, frame.header.reply, &frame.payload);
                    let cause = BrokenCause::Initializer(Arc::new(error));
                    if frame.header.reply != Reply::Refused {
                        return Obeys::ButIsBroken(cause);
                    }
                    // Its initializer has not failed: the system has refused what that needs, which is a refused start.
                    if let Some(worker) = workers.get_mut(&id) {
                        worker.refused = Some(cause);
                    }
                    scheduler.on_unruly(now, id, out);
                }
                _ => return Obeys::No,
            },
            reply => {
                let Frame { header, payload, more } = frame;
                let (mut task, nanos) = (header.task, header.nanos);
                // A drain takes a ring's worth at most.
                let mut left = 1 + more.len() as u32;
                let mut payloads = std::iter::once(payload).chain(more);
                while left > 0 {
                    let count = match scheduler.on_reply(now, id, task, left, nanos) {
                        Ok(Replied::Last(chunk, at, count)) => {
                            replies.answer_last(chunk, (at, count), reply, &mut payloads);
                            count
                        }
                        Ok(Replied::Items(chunk, at, count)) => {
                            replies.in_chunks = true;
                            replies.answer_some(chunk, (at, count), reply, &mut payloads);
                            count
                        }
                        Ok(Replied::Late) => payloads.next().map_or(0, |_| 1),
                        Err(scheduler::ReplyToNobody) => return Obeys::No,
                    };
                    task = TaskId::from_raw(task.as_u64().wrapping_add(u64::from(count)));
                    left -= count;
                }
            }
        }
        Obeys::Yes
    }
}

/// Whether a worker keeps to the protocol.
enum Obeys {
    Yes,
    No,
    /// It does, and its initializer has failed.
    ButIsBroken(BrokenCause),
}

thread_local! {
    static OWN_THREAD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the caller is one of a pool's own threads: a waker runs there, and may drop anything.
pub(crate) fn is_own_thread() -> bool {
    local::get(&OWN_THREAD)
}

/// Runs wakers, so never under a lock.
fn complete(outcomes: Outcomes) {
    let mut wakers = Wakers::default();
    let batch = outcomes.deliver(&mut wakers);
    wakers.wake();
    drop(batch);
}

/// The locked core. There is no other way to it than [`Pool::lock`] and [`Pool::try_lock`].
///
/// ```text
///  lock ─► event: what was submitted is taken in ─► decide ─► perform ─┐
///            ▲                                                         │
///            └── try_lock ◄── yes ── was anything submitted? ◄─ free ◄─┘
///                                          └─ no ─► complete futures
/// ```
///
/// When it is dropped, it frees the lock, and takes in what was submitted meanwhile by threads that
/// found the lock taken. Then it completes futures, which runs wakers, so under no lock.
struct Locked<'a> {
    /// `None` once the lock is free, and while an event is decided.
    core: Option<MutexGuard<'a, Core>>,
    pool: &'a Pool,
    /// Results of the events up to now.
    outcomes: Outcomes,
}

impl Locked<'_> {
    /// Takes in what was submitted, lets the scheduler decide, and performs its actions.
    fn event<R>(&mut self, decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R) -> R {
        // Taken out of `self`, so that after a panic `drop` finds no lock and does nothing.
        let mut core = self.core.take().expect("it is freed last");
        let now = Instant::now();
        let mut actions = std::mem::take(&mut core.actions);
        // First what came first: a task that is to be cancelled must be there.
        self.pool.absorb_intake(&mut core, now, &mut actions);
        // And if it was given to a worker, that must be done before anybody is asked whether the worker has begun it: what
        // is not on the board yet looks like what is not there to be taken back any more.
        let mut rare = self.pool.perform(&mut core, &mut actions, &mut self.outcomes);
        let result = decide(&mut core, now, &mut actions);
        rare |= self.pool.perform(&mut core, &mut actions, &mut self.outcomes);
        core.actions = actions;
        let saturated = core.scheduler.is_saturated();
        if saturated != self.pool.saturated.load(Ordering::Relaxed) {
            self.pool.saturated.store(saturated, Ordering::Relaxed);
        }
        let rebalance_at = core.scheduler.rebalance_at();
        let next = match rare || core.scheduler.has_timed() {
            true => core.scheduler.next_deadline(),
            // Comes and goes with ordinary events, and the rest cannot have changed.
            false => rebalance_at,
        };
        // Only the first task after a while without tasks wakes the driver for this. From then on the driver looks by its own
        // clock; if every event asked for a look, its own tick would wake it again and again.
        let begins = !core.attended && core.scheduler.has_tasks();
        core.attended |= begins;
        let next = match begins {
            true => next.into_iter().chain([now + driver::ATTEND_EVERY]).min(),
            false => next,
        };
        if next.is_some_and(|next| core.armed.is_none_or(|armed| next < armed)) {
            core.armed = next;
            self.pool.bell.ring();
        }
        self.core = Some(core);
        result
    }

    /// Takes in what was submitted.
    fn take_intake(&mut self) {
        self.event(|_, _, _| ());
    }

    /// Frees the lock, and returns results for the caller to deliver.
    fn unlock(mut self) -> Outcomes {
        self.free();
        std::mem::take(&mut self.outcomes)
    }

    fn free(&mut self) {
        loop {
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
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.core.is_some() {
            self.free();
            complete(std::mem::take(&mut self.outcomes));
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
    fn link(&self, worker: WorkerId) -> Option<&dyn Link> {
        self.workers.get(&worker)?.link.as_deref()
    }

    fn signal(&mut self, worker: WorkerId, signal: Signal) {
        if !self.workers.entry(worker).or_default().signal(signal) {
            self.scheduler.on_signal_refused(Instant::now(), worker);
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

/// What taking frames has led to.
#[derive(Default)]
struct Taken {
    /// User code, so to be woken under no lock.
    wakers: Wakers,
    /// The worker is in the middle of a chunk: more is to come within the microsecond.
    in_chunks: bool,
    /// What was taken is on its way until this is dropped, which is after the wakers were woken.
    batch: Option<Batch>,
}

impl Taken {
    fn wake(self) {
        self.wakers.wake();
        drop(self.batch);
    }
}

impl Control for Pool {
    fn cancel(&self, task: TaskId) -> bool {
        if self.forked() {
            return false;
        }
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_cancel(now, task, &Boards(workers), out)
        })
    }

    fn cancel_running(&self, task: TaskId) -> bool {
        if self.forked() {
            return false;
        }
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_cancel_running(now, task, &Boards(workers), out)
        })
    }

    fn is_running(&self, task: TaskId) -> bool {
        if self.forked() {
            return false;
        }
        let core = self.lock();
        core.scheduler.is_running(task, &Boards(&core.workers))
    }

    fn callbacks(&self) -> &Arc<CallbackQueue> {
        &self.callbacks
    }

    fn forked(&self) -> bool {
        self.origin.forked()
    }

    fn cancel_chunk(&self, base: TaskId, count: u32) {
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_cancel_chunk(now, base, count, &Boards(workers), out);
        });
    }

    fn help(&self, awaited: &dyn Awaited, deadline: Option<Instant>) {
        self.take_own_reply(awaited, deadline);
    }

    fn poke(&self, worker: WorkerId) {
        if let Some(ring) = self.rings.of(worker) {
            ring.poke();
        }
    }
}
