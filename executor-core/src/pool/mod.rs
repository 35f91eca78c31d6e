//! One executor's worker processes, and the state the parent keeps about them.
//!
//! ```text
//!  submit ──► intake ──► Core (one lock) ── Scheduler: event in, actions out (pure) ──┐
//!                          ▲   ▲   ▲                                                  │ performed
//!                          │   │   │      Start ─► starter thread ─► process          │ under the
//!                          │   │   │      Send, Stop ─► Link (never blocks)   ◄───────┤ same lock
//!                          │   │   │      Kill ─► the worker's group                  │
//!                          │   │   │      Resolve ─► future, after the lock is free   ┘
//!                          │   │   └── driver thread: handshakes, deaths (pidfd), deadlines
//!                          │   └────── replies: the thread in `result()`, else the reader thread
//!                          └────────── cancel, shutdown
//! ```
//!
//! The scheduler owns every [`Chunk`] of tasks and the state of every worker. A [`Worker`] owns
//! what the system provides for a worker: its process, link and exit status. The driver owns the
//! descriptors that it polls. None of this is stored twice. A chunk that is submitted while another
//! thread holds the lock waits in the intake, and the thread that holds the lock takes it from
//! there.
//!
//! In the common case a task is not handed from thread to thread: `submit` itself writes to an idle
//! worker, the thread that waits for a result drains the worker's replies itself ([`reader`]), and
//! the thread that takes a reply writes the next task at once.
//!
//! When a worker dies, its pidfd wakes the driver. The driver kills the remaining processes of the
//! worker's group, reaps the worker and closes the link. The thread that drains the worker first
//! receives everything that the worker had published, and then the end. Only after that does the
//! scheduler decide which tasks had begun. When the pool's own threads cannot be started, the pool
//! is broken and reports it. When the parent dies, each worker's watcher kills its group. A process
//! that was forked from this one has none of the pool's threads, so all handles do nothing there.

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
    debug::Chain,
    error::{BrokenCause, TaskError, reply},
    future::{
        callback::{self, CallbackQueue},
        cell::{Awaited, Control, Wakers},
        timer::Timer,
        wait::Signal as Flag,
    },
    id::{FnId, TaskId, WorkerId},
    os::{
        asked::Asked, cpu::usable_cpus, eventfd::EventFd, fork::Creator, local, memory::Shared,
        process::Child, signals,
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

/// Workers and shared memory of an executor at one moment. See
/// [`ProcessPoolExecutor::stats`](crate::ProcessPoolExecutor::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Number of workers that are alive or being started.
    pub workers: usize,
    /// Number of shared-memory segments that hold large arguments and results, or are kept for
    /// later ones. There are at most 64 for arguments, and 64 for the results of each worker.
    pub segments: usize,
    /// Bytes of memory in those segments: at most 4 GiB for arguments, and 4 GiB for the results of
    /// each worker. Memory that has not been used for a second or two is returned to the system.
    /// The memory of a [`SharedBytes`](crate::SharedBytes) is not counted: it belongs to the owner
    /// of the handle.
    pub segment_bytes: u64,
}

/// A call that each worker runs before any task.
pub(crate) struct Initializer<A> {
    pub(crate) entry: &'static TaskEntry,
    /// The name of the function, used in errors.
    pub(crate) name: Box<str>,
    /// The time limit that the task function itself declares.
    pub(crate) timeout: Option<Duration>,
    pub(crate) arguments: A,
}

/// Configuration of a pool.
pub(crate) struct PoolOptions {
    pub(crate) workers_max: usize,
    /// Number of workers that are started at once and kept.
    pub(crate) workers_min: usize,
    pub(crate) tasks_max: Option<u32>,
    pub(crate) start_timeout: Duration,
    pub(crate) initializer_timeout: Duration,
    pub(crate) initializer: Option<Initializer<Payload>>,
    pub(crate) envs: Vec<(OsString, Option<OsString>)>,
    pub(crate) stack_bytes: Option<u64>,
    pub(crate) transport: Transport,
    /// What happens to accepted work when the program ends, and how long that may take.
    pub(crate) at_end: AtEnd,
    pub(crate) exit_timeout: Option<Duration>,
}

/// State protected by the pool's one lock.
struct Core {
    scheduler: Scheduler<Chunk>,
    workers: BTreeMap<WorkerId, Worker>,
    threads: Threads,
    /// When the driver wakes up next.
    armed: Option<Instant>,
    /// Whether the driver checks for workers that are stopped. It checks while there are tasks, and
    /// for a moment after.
    attended: bool,
    closed: bool,
    /// Whether descriptors are waiting for space in a worker's control socket.
    stuck: bool,
    /// Empty between two events. Kept to reuse the allocation.
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
    /// Locked only for a push or a swap. A thread that unlocks `core` checks the intake once more.
    intake: Mutex<Vec<Chunk>>,
    /// The rings of all connected workers.
    rings: reader::Rings,
    /// The word that the reader sleeps on, and the descriptor through which workers map it.
    doorbell: (Arc<Shared<Doorbell>>, OwnedFd),
    /// Memory for large arguments, and the descriptor through which workers read it. `None` if the
    /// system does not allow such a file. Large arguments are then sent in parts, like everything
    /// that is too large for one frame.
    arguments: Option<(Arc<Store>, OwnedFd)>,
    /// Whether segments hold memory that is to be returned to the system later.
    warm: AtomicBool,
    /// Wakes the driver.
    bell: EventFd,
    /// Messages of other threads to the driver.
    notices: Mutex<Vec<driver::Notice>>,
    options: PoolOptions,
    creator: Creator,
    /// Whether starting the threads has been attempted.
    started: AtomicBool,
    /// Whether all workers have as many tasks as they may. Submitted chunks then wait in the intake
    /// until a worker has replied.
    saturated: AtomicBool,
    /// Whether the reader may spin for a moment before it sleeps. Updated with each reply.
    spare_processor: AtomicBool,
    callbacks: Arc<CallbackQueue>,
    on_the_way: Arc<OnTheWay>,
    /// The last thread to end. Joining the pool joins this thread.
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
        let (doorbell, doorbell_fd) = Shared::create("executor-doorbell")
            .asked("shared memory (memfd_create, ftruncate, mmap)")?;
        // The file is opened a second time, which must happen as the user that created it.
        let arguments = signals::as_one_user(|_| {
            let store = Store::create()?;
            let descriptor = store.read_only()?;
            std::io::Result::Ok((store, descriptor))
        });
        let arguments = match arguments {
            // A limit on descriptors may be temporary, and the rest of an executor needs
            // descriptors too. So this error is returned instead of working without the memory.
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
            bell: EventFd::new().asked("an eventfd")?,
            notices: Mutex::default(),
            options,
            creator: Creator::here(),
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
        self.creator.is_elsewhere()
    }

    pub(crate) fn callbacks(&self) -> &Arc<CallbackQueue> {
        &self.callbacks
    }

    /// Returns the process ids of the workers that are alive.
    pub(crate) fn worker_pids(&self) -> Vec<u32> {
        if self.forked() {
            return Vec::new();
        }
        let core = self.lock();
        core.workers.values().filter_map(Worker::living).map(|child| child.pid()).collect()
    }

    /// Returns the processes of the workers that are alive.
    fn living(&self) -> Vec<(WorkerId, Arc<Child>)> {
        let core = self.lock();
        let living = core
            .workers
            .iter()
            .filter_map(|(id, worker)| Some((*id, Arc::clone(worker.living()?))));
        living.collect()
    }

    // ---- tasks ----------------------------------------------------------------------------------

    /// Accepts a chunk. In a forked process the chunk is dropped, and its futures and its map know
    /// that no result will come.
    pub(crate) fn submit(self: &Arc<Self>, chunk: Chunk) {
        if !self.forked() {
            self.take_in(chunk);
        }
    }

    /// Returns the estimated running time of a call of this function, if there is an estimate.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        if self.forked() { None } else { self.lock().scheduler.estimate(function) }
    }

    // ---- memory ---------------------------------------------------------------------------------

    /// Returns the memory in which large arguments are encoded.
    pub(crate) fn arguments(&self) -> Option<Arc<Store>> {
        self.arguments.as_ref().map(|(store, _)| Arc::clone(store))
    }

    /// Records that a segment was used, so that the driver empties it when it is no longer used.
    fn warm_up(&self) {
        if !self.warm.load(Ordering::Relaxed) && !self.warm.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    fn is_warm(&self) -> bool {
        self.warm.load(Ordering::SeqCst)
    }

    /// Returns why the pool is broken, if it is.
    pub(crate) fn broken(&self) -> Option<BrokenCause> {
        if self.forked() {
            return Some(BrokenCause::Forked);
        }
        self.lock().scheduler.broken().cloned()
    }

    /// Returns the current numbers of workers and segments.
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
        core.workers
            .values()
            .filter_map(|worker| worker.beside.as_ref()?.results().cloned())
            .collect()
    }

    /// Empties segments that were not used since the last call. Returns whether any still hold
    /// memory.
    fn trim(&self) -> bool {
        // Cleared first: a thread that uses a segment after this sets it again, and wakes the
        // driver.
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

    /// Sends descriptors that found no space in a worker's socket. Returns whether any are left.
    fn unstick(&self) -> bool {
        let mut core = self.lock();
        if core.stuck {
            let all = core.workers.values().filter_map(|worker| worker.beside.as_ref());
            core.stuck = all.fold(false, |left, beside| beside.flush() | left);
        }
        core.stuck
    }

    /// Puts a chunk into the intake. It gets to the scheduler through this thread, or through the
    /// thread that holds the lock.
    fn take_in(self: &Arc<Self>, chunk: Chunk) {
        let warms = chunk.is_in_segment();
        if !self.started.load(Ordering::Acquire) {
            // Before the push: the thread that takes the chunk in may ask the starter for a worker
            // at once.
            self.event(|core, now, out| self.ensure_threads(core, now, out));
        }
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        // The push must be visible before `saturated` and the lock are examined: see
        // `intake_waits`.
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

    /// Starts the driver, the reader and the starter when the first task comes, so that an unused
    /// pool costs no thread.
    fn ensure_threads(self: &Arc<Self>, core: &mut Core, now: Instant, out: &mut Actions) {
        if !matches!(core.threads, Threads::NotStarted) || core.scheduler.refusal().is_some() {
            return;
        }
        self.started.store(true, Ordering::Release);
        let (sender, receiver) = mpsc::channel();
        // Exit handlers are called in reverse order. Registering at the first use, and not when the
        // pool is created, means that everything the program registered before is still there when
        // the remaining work is finished.
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
                // Without the driver, the end of a worker would go unnoticed.
                let cause =
                    BrokenCause::Start(format!("the system refused a thread: {error}").into());
                core.scheduler.on_collapse(now, cause, out);
            }
        }
    }

    // ---- shutdown -------------------------------------------------------------------------------

    pub(crate) fn shutdown(&self, cancel_pending: bool, deadline: Option<Instant>) {
        if self.forked() {
            return;
        }
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_shutdown(now, cancel_pending, deadline, &Boards(workers), out);
        });
    }

    /// Ends all workers: with SIGTERM and, after a grace time, SIGKILL, or with SIGKILL at once.
    pub(crate) fn end_workers(&self, at_once: bool) {
        if !self.forked() {
            self.event(|core, now, out| core.scheduler.on_kill(now, at_once, out));
        }
    }

    /// Waits until every task is resolved, every worker is reaped, every thread has ended, and
    /// every queued callback has run.
    ///
    /// On one of the pool's own threads it returns at once. Wakers run there, and a waker that
    /// joined the pool would wait for its own thread.
    pub(crate) fn join(&self) {
        if self.forked() || is_own_thread() {
            return;
        }
        self.join_threads();
        self.callbacks.flush();
        self.callbacks.join();
    }

    /// Waits until every worker is reaped and every thread except the callback thread has ended.
    /// Must not be called on one of those threads.
    fn join_threads(&self) {
        // Nothing is ever sent on this channel. `recv` returns when it is closed.
        let _ = self.ended.1.recv_blocking();
        // Joined under the lock, so that a second caller also returns only after the thread has
        // ended. The driver no longer waits for anything at this point.
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = driver.take() {
            let _ = driver.join();
        }
    }

    /// Returns whether every worker is reaped and every thread has ended. Always `false` in a fork.
    pub(crate) fn has_ended(&self) -> bool {
        !self.forked() && self.ended.1.is_closed()
    }

    /// Like [`join`](Self::join), at most until `deadline`. Returns whether everything has ended.
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
        // Callbacks run in order: when this one runs, the earlier ones have run.
        let (last, flushed) = async_channel::bounded::<()>(1);
        self.callbacks.push(Box::new(move || drop(last)));
        if !self.callbacks.is_attended() {
            // The system refused the callback thread, so nothing else would ever run the callbacks.
            self.callbacks.flush();
        }
        let mut flushed = pin!(shielded(flushed.recv()));
        loop {
            // In an exit hook, only this caller can notice that an earlier callback is blocked in
            // `exit`.
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

    // ---- one event at a time --------------------------------------------------------------------

    /// Waits for the lock.
    fn lock(&self) -> Locked<'_> {
        self.locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the lock if it is free, also after a panic.
    fn try_lock(&self) -> Option<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Some(core),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn locked<'a>(&'a self, core: MutexGuard<'a, Core>) -> Locked<'a> {
        let unwinding = std::thread::panicking();
        Locked { core: Some(core), pool: self, outcomes: Outcomes::default(), unwinding }
    }

    /// Lets the scheduler decide, does what it says, and completes futures when the lock is free.
    fn event<R>(&self, decide: impl FnOnce(&mut Core, Instant, &mut Actions) -> R) -> R {
        self.lock().event(decide)
    }

    /// Returns whether a submitted chunk needs to be taken in now. Called after the lock was freed.
    /// A submitter first pushes, and then examines `saturated` and the lock. This thread first
    /// frees the lock, and then examines `saturated` and the intake. With the fence between the two
    /// steps on each side, at least one of the threads sees what the other did.
    fn intake_waits(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.saturated.load(Ordering::Relaxed) {
            return false;
        }
        !self.intake.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn absorb_intake(&self, core: &mut Core, now: Instant, out: &mut Actions) {
        let mut absorbed = std::mem::take(&mut core.absorbed);
        std::mem::swap(
            &mut absorbed,
            &mut self.intake.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for chunk in absorbed.drain(..) {
            core.scheduler.on_submit(now, chunk, out);
        }
        core.absorbed = absorbed;
    }

    /// Performs actions. Returns whether any action was neither a send nor a resolution.
    fn perform(&self, core: &mut Core, actions: &mut Actions, outcomes: &mut Outcomes) -> bool {
        let mut rare = false;
        let was_stuck = core.stuck;
        // Several frames for one worker need only one wake-up, after the last of them.
        let mut unflushed: Option<WorkerId> = None;
        for action in actions.drain(..) {
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
                    let error = match end {
                        End::Error(error) => error.of_task(chunk.name()),
                        End::Lost(worker) => core.workers.get(&worker).map_or_else(
                            || {
                                TaskError::Broken(BrokenCause::Internal(
                                    "lost an unknown worker".into(),
                                ))
                            },
                            |worker| worker.ending().of_task(chunk.first_id(), chunk.name()),
                        ),
                    };
                    outcomes.batch.get_or_insert_with(|| {
                        // The outcome counts as on its way from here, under the lock, until it
                        // reaches its future.
                        self.on_the_way.leave();
                        self.on_the_way.batch()
                    });
                    outcomes.fail(chunk, error);
                    continue;
                }
                Action::Start(id) => {
                    core.workers.insert(id, Worker::default());
                    if let Threads::Running { starter } = &core.threads {
                        // The starter lives until the driver has ended, which is after the end of
                        // the last worker.
                        let _ = starter.send(id);
                    }
                }
                Action::Stop(id) => {
                    if let Some(link) =
                        core.workers.get(&id).and_then(|worker| worker.link.as_ref())
                    {
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

    // ---- replies --------------------------------------------------------------------------------

    /// Takes frames that came from one worker together.
    fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        let mut replies = Outcomes::default();
        let mut credit = 0;
        let mut odd = Vec::new();
        let mut broken = None;
        let mut locked = self.lock();
        locked.event(|core, now, out| {
            let broke = |core: &Core| core.workers.get(&id).is_some_and(Worker::broke_protocol);
            // Everything that a worker sends after a protocol violation is ignored, even valid
            // frames.
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
                        core.scheduler.on_protocol_violation(now, id, out);
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
        // Outside the lock, because a subscriber of `tracing` is user code.
        if let Some(cause) = broken {
            tracing::error!(cause = %Chain(&cause), "the pool is broken");
        }
        for header in odd {
            tracing::error!(?header, "a worker sent what it should not, and is ended");
        }
        let in_chunks = replies.in_chunks;
        let mut wakers = Wakers::default();
        replies.deliver(&mut wakers);
        let _on_the_way = resolved.deliver(&mut wakers);
        let batch = (!wakers.is_empty()).then(|| self.on_the_way.batch());
        // Without wakers the outcomes have arrived. Otherwise they arrive when the wakers have been
        // called.
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
        // Ids of tasks begin at 1. The initializer's reply has id 0.
        let initializer = frame.header.task.as_u64() == 0;
        match frame.header.reply {
            // A worker's ring shows its free space by itself. If credit frames were allowed as
            // well, a worker could send them without end.
            Reply::Credit if self.rings.of(id).is_some() => return Obeys::No,
            Reply::Credit => {}
            Reply::Ready if scheduler.is_initializing(id) => {
                scheduler.on_ready(now, id, &claims, out)
            }
            Reply::Ready => return Obeys::No,
            _ if initializer => match &self.options.initializer {
                Some(Initializer { name, .. }) if scheduler.is_initializing(id) => {
                    let error = reply::failure(name, frame.header.reply, &frame.payload);
                    let cause = BrokenCause::Initializer(Arc::new(error));
                    if frame.header.reply != Reply::Refused {
                        return Obeys::ButIsBroken(cause);
                    }
                    // The initializer has not failed. The system refused something that it needs,
                    // which counts as a refused start.
                    if let Some(worker) = workers.get_mut(&id) {
                        worker.refused = Some(cause);
                    }
                    scheduler.on_protocol_violation(now, id, out);
                }
                _ => return Obeys::No,
            },
            reply => {
                let Frame { header, payload, more } = frame;
                let (mut task, nanos) = (header.task, header.nanos);
                // A drain takes at most one ring's worth of frames, so the number fits.
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
    /// The worker keeps to the protocol, and its initializer has failed.
    ButIsBroken(BrokenCause),
}

thread_local! {
    static OWN_THREAD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Returns whether the current thread is one of a pool's own threads. Wakers run there, and may
/// drop any value.
pub(crate) fn is_own_thread() -> bool {
    local::get(&OWN_THREAD)
}

/// Completes futures and calls their wakers. Must not be called with a lock held.
fn complete(outcomes: Outcomes) {
    let mut wakers = Wakers::default();
    let batch = outcomes.deliver(&mut wakers);
    wakers.wake();
    drop(batch);
}

/// The lock on the core. When it is freed, chunks that were submitted meanwhile are taken in.
struct Locked<'a> {
    /// `None` once the lock is free, and while an event is decided.
    core: Option<MutexGuard<'a, Core>>,
    pool: &'a Pool,
    /// Results of the events up to now.
    outcomes: Outcomes,
    /// The thread was unwinding already when it took the lock: it drops a pool or a future.
    unwinding: bool,
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
        // Also perform what the intake led to before `decide` asks whether a worker has begun a
        // task: a task that is not on the board yet looks as if it could not be taken back any
        // more.
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
        // Only the first task after a time without tasks wakes the driver for this. From then on,
        // the driver looks by its own clock. If every event asked for a look, the driver's own tick
        // would wake it again and again.
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
        // If a panic began under the lock, only free it. Another panic while this thread unwinds
        // would abort the program; the next event takes in what was submitted.
        if std::thread::panicking() && !self.unwinding {
            self.core = None;
        } else if self.core.is_some() {
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

/// The result of taking frames.
#[derive(Default)]
struct Taken {
    /// Wakers are user code, so they must be called without any lock.
    wakers: Wakers,
    /// Whether the worker is in the middle of a chunk, so that more results follow within a
    /// microsecond.
    in_chunks: bool,
    /// The outcomes count as on their way until this is dropped, after the wakers were called.
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
        self.creator.is_elsewhere()
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
