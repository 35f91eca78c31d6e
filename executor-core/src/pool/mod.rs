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
//! thread holds the lock, or while no worker has room, waits in the intake. The thread that holds
//! the lock takes it from there, once the scheduler's queue is short. Only tasks with a limit on
//! their wait go to the scheduler at once, because the intake keeps no time.
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

mod ancillary;
mod broadcast;
mod chunk;
mod core;
mod driver;
mod ending;
mod finalizer;
mod fork_server;
mod join;
mod log;
mod memory;
#[cfg(all(test, any(executor_loom, executor_shuttle)))]
mod models;
pub(crate) mod place;
pub(crate) mod pressure;
pub(crate) mod program;
mod reader;
mod replies;
pub(crate) mod resources;
mod retry;
pub(crate) mod scheduler;
#[cfg(test)]
mod sim;
mod starter;
pub(crate) mod stats;
mod task_table;
mod worker;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use self::broadcast::Standing;
use self::core::{Actions, Core, Intake, Threads};
pub(crate) use chunk::{Chunk, next_task_ids};
pub(crate) use ending::AtEnd;
use ending::OnTheWay;
use finalizer::Finalized;
use log::LogRecord;
use pressure::Pressure;
use program::StartOptions;
use reader::Drains;
use resources::Resources;
pub(crate) use scheduler::Lifespan;
use scheduler::{Config, Scheduler};
pub(crate) use scheduler::{Graces, Shutdown};
use worker::{Boards, Worker};

use crate::{
    child::exit,
    error::{BrokenCause, TaskError},
    future::{
        callback::CallbackQueue,
        cell::{Awaited, Control},
    },
    id::{FnId, TaskId, WorkerId},
    os::{
        asked::Asked, cgroup::ControlGroup, cpu, eventfd::EventFd, fork::Creator, local,
        memory::Shared, process::Child, signals,
    },
    registry::TaskEntry,
    segment::Store,
    transport::{ipc, ring::doorbell::Doorbell},
    wire::{
        handshake::{ErrorHook, Restraints, Transport},
        payload::Payload,
    },
};

/// A call that each worker runs before any task, or when it leaves.
#[derive(Clone)]
pub(crate) struct Initializer<A> {
    pub(crate) entry: &'static TaskEntry,
    /// The name of the function, used in errors.
    pub(crate) name: Box<str>,
    /// The timeout that the task function itself declares.
    pub(crate) timeout: Option<Duration>,
    pub(crate) arguments: A,
}

/// Options of tasks that do not set them themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskDefaults {
    pub(crate) timeout: Option<Duration>,
    pub(crate) queue_timeout: Option<Duration>,
    /// The number of workers that a task may end before it is not tried again.
    pub(crate) poison_limit: Option<u32>,
}

impl TaskDefaults {
    /// Returns whether there are any.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.timeout.is_some() || self.queue_timeout.is_some()
    }
}

/// Configuration of a pool.
pub(crate) struct PoolOptions {
    /// Until [`resize`](Pool::resize) changes it.
    pub(crate) workers_max: usize,
    /// Number of workers that are started at once and kept.
    pub(crate) workers_min: usize,
    pub(crate) tasks_max: Option<u32>,
    pub(crate) lifespan: Lifespan,
    pub(crate) start_timeout: Duration,
    pub(crate) initializer_timeout: Duration,
    pub(crate) initializer: Option<Initializer<Payload>>,
    /// A call that each worker runs before it leaves.
    pub(crate) finalizer: Option<Initializer<Payload>>,
    pub(crate) finalizer_timeout: Duration,
    pub(crate) graces: Graces,
    pub(crate) start: StartOptions,
    pub(crate) places: place::Places,
    pub(crate) resources: Resources,
    /// Whether chunks go to the workers in turn.
    pub(crate) round_robin: bool,
    pub(crate) stack_bytes: Option<u64>,
    pub(crate) transport: Transport,
    /// What happens to accepted work when the program ends, and how long that may take.
    pub(crate) at_end: AtEnd,
    pub(crate) exit_timeout: Option<Duration>,
    pub(crate) defaults: TaskDefaults,
    /// The limits on pending tasks, if there are any.
    pub(crate) pressure: Option<Arc<Pressure>>,
    /// What a worker may not exceed.
    pub(crate) restraints: Restraints,
    /// Where each worker has a control group of its own.
    pub(crate) control_group: Option<Arc<ControlGroup>>,
    /// What a worker calls when a task has failed, and how long that may take.
    pub(crate) error_hook: Option<(ErrorHook, Duration)>,
}

pub(crate) struct Pool {
    me: Weak<Pool>,
    core: Mutex<Core>,
    /// A thread that unlocks `core` checks the intake once more.
    intake: Intake,
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
    /// Children that are no workers, and that the driver reaps.
    apart: Mutex<Vec<Arc<Child>>>,
    /// Messages of other threads to the driver.
    notices: Mutex<Vec<driver::Notice>>,
    options: PoolOptions,
    /// The maximum number of workers, which the scheduler has, too.
    workers_max: AtomicUsize,
    pressure: Option<Arc<Pressure>>,
    /// Number of chunks that were bound to workers in turn.
    turns: AtomicU64,
    creator: Creator,
    /// Whether starting the threads has been attempted.
    started: AtomicBool,
    /// Whether no worker could take a task now. Submitted chunks then wait in the intake until the
    /// next event.
    saturated: AtomicBool,
    /// The function whose calls may wait in the intake for a moment, or 0. See
    /// [`Scheduler::deferred`].
    deferred: AtomicU64,
    /// Whether the reader may spin for a moment before it sleeps. Updated with each reply.
    spare_processor: AtomicBool,
    /// Whether there are so few tasks that a task of the caller's runtime that is about to wait
    /// looks for replies itself.
    few_tasks: AtomicBool,
    callbacks: Arc<CallbackQueue>,
    on_the_way: Arc<OnTheWay>,
    finalized: Finalized,
    standing: Standing,
    /// The last thread to end. Joining the pool joins this thread.
    driver: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the pool's threads have ended.
    ended: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

impl Pool {
    pub(crate) fn new(options: PoolOptions) -> std::io::Result<Arc<Self>> {
        if options.transport == Transport::Ipc {
            ipc::prepare()?;
        }
        let config = Config {
            workers_max: options.workers_max,
            workers_min: options.workers_min,
            spares: options.start.spares,
            initializer: options.initializer.as_ref().map(|initializer| initializer.name.clone()),
            initializer_timeout: options.initializer_timeout,
            finalizer: options.finalizer.as_ref().map(|finalizer| finalizer.name.clone()),
            finalizer_timeout: options.finalizer_timeout,
            graces: options.graces,
            tasks_max: options.tasks_max,
            lifespan: options.lifespan,
            launch_timeout: options.start.launch_timeout(options.start_timeout),
            start_timeout: options.start_timeout,
            // The driver adds the quota while the first worker comes up.
            processors: cpu::usable_cpus_within(None),
            resources: options.resources.numbers(),
            report_timeout: options.error_hook.map(|(_, timeout)| timeout),
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
        let bell = EventFd::new().asked("an eventfd")?;
        let pool = Arc::new_cyclic(|me| Pool {
            me: Weak::clone(me),
            core: Mutex::new(Core::new(Scheduler::new(config), options.restraints.clone())),
            intake: Intake::default(),
            rings: reader::Rings::default(),
            doorbell: (Arc::new(doorbell), doorbell_fd),
            arguments,
            warm: AtomicBool::new(false),
            bell,
            apart: Mutex::default(),
            notices: Mutex::default(),
            pressure: options.pressure.clone(),
            workers_max: AtomicUsize::new(options.workers_max),
            options,
            turns: AtomicU64::new(0),
            creator: Creator::here(),
            started: AtomicBool::new(false),
            saturated: AtomicBool::new(false),
            deferred: AtomicU64::new(0),
            spare_processor: AtomicBool::new(false),
            few_tasks: AtomicBool::new(true),
            callbacks,
            on_the_way: Arc::default(),
            finalized: Finalized::default(),
            standing: Standing::default(),
            driver: Mutex::default(),
            ended: async_channel::bounded(1),
        });
        if pool.options.workers_min > 0
            || pool.options.start.spares.is_some_and(|spares| spares > 0)
        {
            pool.event(|core, now, out| {
                pool.ensure_threads(core, now, out);
                core.scheduler.on_open(now, out);
            });
        }
        Ok(pool)
    }

    pub(crate) fn workers_max(&self) -> usize {
        self.workers_max.load(Ordering::Relaxed)
    }

    /// Changes the maximum number of workers, which must be above 0.
    pub(crate) fn resize(&self, workers_max: usize) {
        if self.forked() {
            return;
        }
        self.event(|core, now, out| {
            // Under the lock, so that the last of several callers decides both numbers.
            self.workers_max.store(workers_max, Ordering::Relaxed);
            let Core { scheduler, workers, log, .. } = core;
            let busy = scheduler.on_resize(now, workers_max, &Boards(workers), out);
            if busy > 0 {
                log.push(LogRecord::Shrinks { workers_max, busy });
            }
        });
    }

    /// Returns the number of slots, if the workers have slots.
    pub(crate) fn slots(&self) -> Option<usize> {
        let slots = self.options.places.slots.len();
        (slots > 0).then_some(slots)
    }

    pub(crate) fn graces(&self) -> Graces {
        self.options.graces
    }

    /// Returns the finalizer's function, if there is one.
    pub(crate) fn finalizer(&self) -> Option<&'static TaskEntry> {
        self.options.finalizer.as_ref().map(|finalizer| finalizer.entry)
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
    pub(crate) fn submit(self: &Arc<Self>, mut chunk: Chunk) {
        if self.forked() {
            return;
        }
        if chunk.has_options()
            && let Err(what) = chunk.find_place(self)
        {
            let error = TaskError::invalid(format!("task `{}` {what}", chunk.name()));
            return core::refuse(chunk, error);
        }
        if self.options.round_robin {
            chunk.bind(|| self.next_in_turn());
        }
        if chunk.has_options() || self.options.defaults.any() {
            chunk.accepted(&self.options.defaults);
        }
        self.take_in(chunk);
    }

    /// Returns the index of the worker whose turn it is, in round-robin order.
    fn next_in_turn(&self) -> u16 {
        // With more workers than numbers, the last workers get none.
        let workers = self.workers_max().min(usize::from(u16::MAX)) as u64;
        (self.turns.fetch_add(1, Ordering::Relaxed) % workers) as u16
    }

    /// Returns the limits on pending tasks, if there are any.
    #[inline]
    pub(crate) fn pressure(&self) -> Option<&Arc<Pressure>> {
        self.pressure.as_ref()
    }

    /// Returns whether each task has options, because the pool has defaults for them. A chunk of
    /// several tasks has none.
    pub(crate) fn takes_single_calls(&self) -> bool {
        self.options.defaults.any()
    }

    /// Returns whether each task has a worker of its own.
    pub(crate) fn is_isolated(&self) -> bool {
        self.options.start.spares.is_some()
    }

    /// Returns the estimated running time of a call of this function, if there is an estimate.
    pub(crate) fn estimate(&self, function: FnId) -> Option<Duration> {
        if self.forked() { None } else { self.lock().scheduler.estimate(function) }
    }

    /// Returns whether tasks are accepted.
    pub(crate) fn is_open(&self) -> bool {
        !self.forked() && self.lock().scheduler.is_open()
    }

    /// Returns why the pool is broken, if it is.
    pub(crate) fn broken(&self) -> Option<BrokenCause> {
        if self.forked() {
            return Some(BrokenCause::Forked);
        }
        self.lock().scheduler.broken().cloned()
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
}

thread_local! {
    static OWN_THREAD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Returns whether the current thread is one of a pool's own threads. Wakers run there, and may
/// drop any value.
pub(crate) fn is_own_thread() -> bool {
    local::get(&OWN_THREAD)
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

    fn attend(&self, awaited: &dyn Awaited, deadline: Option<Instant>) {
        // Over ipc-channel each worker has a thread that takes its replies.
        if self.options.transport == Transport::Ring {
            self.attend_until(awaited, deadline);
        }
    }

    fn attend_briefly(&self) {
        if self.options.transport == Transport::Ring && self.few_tasks.load(Ordering::Relaxed) {
            Drains::attend_briefly(self);
        }
    }

    fn is_served(&self) {
        self.rings.serve();
    }

    fn unpark(&self) {
        self.rings.unpark(&self.doorbell.0);
    }
}
