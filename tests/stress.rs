//! Random use of executors from eight threads and from tokio: tasks of every kind are submitted,
//! cancelled, asked to stop, killed, limited, retried, mapped and broadcast, in any order of
//! priority. Workers are spawned, copies of a fork server, or one for each task. They fill their
//! memory, are idle, grow old, run finalizers, and their number changes. The executor is shut down
//! at any moment. Each future ends exactly once, with its value or with an error that has a reason,
//! and nothing is left: no process, no thread, no descriptor, no mapping.
//!
//! `cargo xtask stress 600` runs it for ten minutes. `EXECUTOR_SEED=…` begins with the round of
//! that seed.

#[path = "programs/src/dying.rs"]
#[allow(dead_code, reason = "the numbers are used, the records of deaths are not")]
mod dying;
mod support;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dying::{Random, number};
use executor::{
    Isolation, OnDrop, ProcessPoolBuilder, ShutdownOptions, StartMethod, Task, TaskId,
    as_completed, prelude::*, wait,
};
use futures::StreamExt;
use support::{children, descriptors, eventually, executor_threads, tagged, watchdog_named};

executor::test_support!();

const THREADS: u64 = 8;

/// Tags the processes of a round, so that none of them can be left unseen.
const TAG: &str = "EXECUTOR_TEST_OF_STRESS";

/// The limit on the memory of workers, in the rounds that have one.
const MEMORY_LIMIT: u64 = 48 << 20;

/// Returns its argument, after some time.
#[task]
fn echo(value: u64, micros: u64) -> u64 {
    thread::sleep(Duration::from_micros(micros));
    value
}

/// Returns its argument, which may be too long for a frame.
#[task]
fn echo_bytes(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// Ends in this way.
#[task]
fn end(way: u8) -> Result<u64, String> {
    match way {
        0 => return Err("the task's own error".to_owned()),
        1 => panic!("a panic"),
        2 => std::process::exit(7),
        3 => std::process::abort(),
        _ => support::signal(std::process::id(), rustix::process::Signal::KILL),
    }
    loop {
        thread::park();
    }
}

/// Computes until it is killed.
#[task]
fn endless() -> u64 {
    loop {
        std::hint::spin_loop();
    }
}

/// Fills more memory than a worker may have, and then waits to be ended.
#[task]
fn fill() -> u64 {
    for _ in 0..2 * (MEMORY_LIMIT >> 20) {
        std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
    loop {
        thread::park();
    }
}

/// Keeps a little memory, so that its worker grows.
#[task]
fn leak(value: u64) -> u64 {
    std::mem::forget(std::hint::black_box(vec![1_u8; 100 << 10]));
    value
}

/// Returns its argument when it is asked to stop.
#[task]
fn until_asked(value: u64) -> u64 {
    while !executor::is_cancelled() {
        thread::yield_now();
    }
    value
}

#[task]
async fn until_asked_async(value: u64) -> u64 {
    executor::cancelled().await;
    value
}

/// The finalizer: ends in this way.
#[task]
fn last_words(way: u8) -> Result<u64, String> {
    match way {
        0 => Ok(LAST_WORDS),
        1 => Err("the finalizer's own error".to_owned()),
        2 => std::process::exit(7),
        _ => loop {
            thread::park();
        },
    }
}

const LAST_WORDS: u64 = 42;

#[task]
async fn later(value: u64) -> u64 {
    tokio::time::sleep(Duration::from_micros(value % 500)).await;
    value
}

/// What happened to the futures of a round.
#[derive(Default)]
struct Ledger {
    /// How often the callback of each task was called.
    calls: Mutex<HashMap<TaskId, u32>>,
    submitted: AtomicU64,
    /// Whether anybody has killed a worker from outside.
    killed: AtomicBool,
    /// Whether anybody has shut the executor down.
    shut_down: AtomicBool,
    values: AtomicU64,
    errors: AtomicU64,
}

/// What a task may end with beside its value.
#[derive(Clone, Copy, Debug, Default)]
struct May {
    /// Which task it is.
    be: &'static str,
    fail: bool,
    die: bool,
    exceed: bool,
    time_out: bool,
    be_cancelled: bool,
    be_refused: bool,
}

/// How the workers of a round are started.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Spawn,
    Copies,
    PerTask,
}

/// What an executor is like, as far as those that use it have to know.
#[derive(Clone, Copy)]
struct Traits {
    way: Way,
    /// Whether tasks without a limit of their own may time out.
    limited: bool,
    /// Whether the memory of workers is limited.
    memory: bool,
    /// Whether there are resources, of which tasks may need tokens.
    resources: bool,
    /// How the finalizer ends, if there is one.
    finalizer: Option<u8>,
}

impl Ledger {
    fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::SeqCst)
    }

    /// Checks that an outcome has a reason.
    fn check<T: PartialEq + std::fmt::Debug>(
        &self,
        outcome: Result<&T, &TaskError>,
        expected: Option<&T>,
        may: May,
    ) {
        let killed = self.killed.load(Ordering::SeqCst);
        let shut_down = self.is_shut_down();
        let error = match outcome {
            Ok(value) => {
                self.values.fetch_add(1, Ordering::Relaxed);
                assert_eq!(Some(value), expected);
                return;
            }
            Err(error) => error,
        };
        self.errors.fetch_add(1, Ordering::Relaxed);
        let has_reason = match error {
            TaskError::Failed(_) | TaskError::Panicked(_) => may.fail,
            TaskError::WorkerLost { .. } => may.die || killed,
            TaskError::MemoryLimit { .. } => may.exceed,
            TaskError::TimedOut { .. } => may.time_out,
            TaskError::Invalid(_) => may.be_refused,
            TaskError::Cancelled => may.be_cancelled || shut_down,
            TaskError::Shutdown => shut_down,
            // Workers that are killed again and again while they start break an executor.
            TaskError::Broken(_) => killed,
            _ => false,
        };
        assert!(has_reason, "there is no reason for it: {error:?}, of {may:?}");
    }

    /// Notes a future, whose callback must be called once.
    fn note<T>(self: &Arc<Self>, future: &TaskFuture<T>, expected: Option<T>, may: May)
    where
        T: PartialEq + std::fmt::Debug + Send + Sync + 'static,
    {
        self.submitted.fetch_add(1, Ordering::Relaxed);
        let (ledger, id) = (Arc::clone(self), future.id());
        future.add_done_callback(move |outcome| {
            *ledger.calls.lock().unwrap().entry(id).or_default() += 1;
            ledger.check(outcome, expected.as_ref(), may);
        });
    }
}

struct Player {
    pool: ProcessPoolExecutor,
    ledger: Arc<Ledger>,
    random: Random,
    /// Futures whose results may be asked for later.
    kept: Vec<TaskFuture<u64>>,
    traits: Traits,
}

impl Player {
    fn may(&self) -> May {
        May { time_out: self.traits.limited, be_cancelled: true, ..May::default() }
    }

    /// A time limit, so that a task ends that would not. A limit of 0 is refused.
    fn soon(&mut self) -> Duration {
        Duration::from_micros(1 + self.random.below(20_000))
    }

    /// Sets options of a task at random.
    fn options<F: executor::TaskArgs<A>, A>(
        &mut self,
        task: Task<F, A>,
        may: &mut May,
    ) -> Task<F, A> {
        let mut task = task;
        if self.random.one_in(4) {
            may.time_out = true;
            task = task.timeout(self.soon());
        }
        if self.random.one_in(8) {
            may.time_out = true;
            task = task.queue_timeout(self.soon());
        }
        if self.random.one_in(4) {
            task = task.priority(self.random.below(5) as i32 - 2);
        }
        if self.random.one_in(8) {
            task = task.measure_usage();
        }
        if self.traits.resources && self.random.one_in(3) {
            task = task.needs("gpu", 1 + self.random.below(2) as u32);
            if self.random.one_in(2) {
                task = task.needs("licence", 1);
            }
        } else if self.traits.way != Way::PerTask && self.random.one_in(8) {
            // There may be fewer workers.
            may.be_refused = true;
            task = task.on_worker(self.random.below(4) as usize);
        }
        if self.random.one_in(4) {
            let retries = self.random.below(4) as u32;
            task =
                task.retries(retries).retry_delay(Duration::from_micros(self.random.below(2_000)));
        }
        task
    }

    fn submit(&mut self) {
        let mut may = self.may();
        let value = self.random.next();
        let (future, expected) = match self.random.below(16) {
            0 => {
                (may.be, may.fail, may.die) = ("end", true, true);
                let task = end::task(self.random.below(5) as u8);
                let task = self.options(task, &mut may);
                (self.pool.submit(task), None)
            }
            1 => {
                (may.be, may.time_out) = ("endless", true);
                let limit = self.soon();
                (self.pool.submit(endless::task().timeout(limit)), None)
            }
            4 => {
                (may.be, may.time_out) = ("until_asked", true);
                let task = until_asked::task(value).timeout(self.soon());
                (self.pool.submit(task), Some(value))
            }
            5 => {
                (may.be, may.time_out) = ("until_asked_async", true);
                let task = until_asked_async::task(value).timeout(self.soon());
                (self.pool.submit(task), Some(value))
            }
            6 => {
                may.be = "leak";
                let task = leak::task(value);
                let task = self.options(task, &mut may);
                (self.pool.submit(task), Some(value))
            }
            7 if self.traits.memory && self.random.one_in(4) => {
                (may.be, may.exceed) = ("fill", true);
                let task = fill::task();
                let task = self.options(task, &mut may);
                (self.pool.submit(task), None)
            }
            2 => {
                may.be = "later";
                let task = later::task(value);
                let task = self.options(task, &mut may);
                (self.pool.submit(task), Some(value))
            }
            3 => {
                let bytes = vec![value as u8; self.random.below(300_000) as usize];
                may.be = "echo_bytes";
                let task = echo_bytes::task(bytes.clone());
                let task = self.options(task, &mut may);
                let future = self.pool.submit(task);
                self.ledger.note(&future, Some(bytes), may);
                return;
            }
            _ => {
                let micros = match self.random.one_in(4) {
                    true => self.random.below(5_000),
                    false => 0,
                };
                let task = echo::task(value, micros);
                let task = match self.random.one_in(2) {
                    true => self.options(task, &mut may),
                    false => task,
                };
                match self.random.one_in(4) {
                    true => match self.pool.try_submit(task) {
                        Ok(future) => (future, Some(value)),
                        // It is given back, and nothing has happened.
                        Err(_) => return,
                    },
                    false => (self.pool.submit(task), Some(value)),
                }
            }
        };
        self.ledger.note(&future, expected, may);
        match self.random.below(8) {
            0 => drop(future),
            1 => drop(future.cancel_on_drop()),
            2 => drop(future.kill_on_drop()),
            _ => self.kept.push(future),
        }
    }

    fn any_kept(&mut self) -> Option<TaskFuture<u64>> {
        let count = self.kept.len() as u64;
        (count > 0).then(|| self.kept.swap_remove(self.random.below(count) as usize))
    }

    fn step(&mut self) {
        match self.random.below(41) {
            0..=23 => self.submit(),
            24..=26 => {
                if let Some(future) = self.any_kept() {
                    future.cancel();
                }
            }
            27..=28 => {
                if let Some(future) = self.any_kept() {
                    future.cancel_running();
                }
            }
            29..=31 => {
                if let Some(future) = self.any_kept() {
                    let limit = Duration::from_micros(self.random.below(5_000));
                    if let Err(future) = future.result_timeout(limit) {
                        self.kept.push(future);
                    }
                }
            }
            32..=33 => self.map(),
            34..=35 => {
                let some = std::mem::take(&mut self.kept);
                let limit = Some(Duration::from_micros(self.random.below(5_000)));
                let when = self.random.pick(&[
                    ReturnWhen::FirstCompleted,
                    ReturnWhen::FirstError,
                    ReturnWhen::AllCompleted,
                ]);
                let (done, not_done) = wait(some, when, limit);
                assert!(done.iter().all(TaskFuture::done));
                self.kept.extend(not_done);
            }
            36 => {
                let some = std::mem::take(&mut self.kept);
                let count = some.len();
                assert_eq!(as_completed(some).count(), count);
            }
            37 => self.kill_a_worker(),
            38 => self.pool.resize(1 + self.random.below(5) as usize).expect("above 0"),
            39 => self.broadcast(),
            _ => self.look(),
        }
    }

    fn map(&mut self) {
        let items = self.random.below(100);
        let taken = self.random.below(items + 20) as usize;
        let mut map = self.pool.map(|x| echo::task(x, 0), 0..items);
        if self.random.one_in(2) {
            map = map.chunk_size(1 + self.random.below(20) as usize);
        }
        let mut may = May { be: "an item", ..self.may() };
        if self.random.one_in(4) {
            map = map.round_robin();
            may.be_refused = self.traits.way == Way::PerTask;
        }
        if self.random.one_in(4) {
            map = map.unordered();
        }
        for (index, outcome) in map.with_index().take(taken) {
            self.ledger.check(outcome.as_ref(), Some(&(index as u64)), may);
        }
    }

    /// Runs a task in every worker. One that ends before it has run it loses it.
    fn broadcast(&mut self) {
        let (value, micros) = (self.random.next(), self.random.below(500));
        let may = May {
            be: "a broadcast",
            die: true,
            be_refused: self.traits.way == Way::PerTask,
            ..self.may()
        };
        let futures = match self.random.one_in(4) {
            true => self.pool.broadcast_and_later(echo::task(value, micros)),
            false => self.pool.broadcast(echo::task(value, micros)),
        };
        for future in futures {
            self.ledger.note(&future, Some(value), may);
            self.kept.push(future);
        }
    }

    /// Asks for what can be asked at any time.
    fn look(&mut self) {
        let rows = self.pool.worker_stats();
        let numbers: BTreeSet<_> = rows.iter().map(|row| row.number).collect();
        assert_eq!(numbers.len(), rows.len(), "no two workers have one number: {rows:?}");
        let stats = self.pool.stats();
        assert!(stats.workers_lost <= stats.workers_started, "{stats:?}");
        let has_ended = self.pool.join_timeout(Duration::ZERO);
        let may_end = self.ledger.is_shut_down() || self.ledger.killed.load(Ordering::SeqCst);
        assert!(!has_ended || may_end);
    }

    /// Kills a worker or a fork server, as the system does when there is no memory left.
    fn kill_a_worker(&mut self) {
        let mut pids = self.pool.worker_pids();
        if self.random.one_in(4) {
            // A fork server is a child that is no worker.
            pids = children().into_iter().map(|(child, ..)| child).collect();
        }
        if pids.is_empty() {
            return;
        }
        self.ledger.killed.store(true, Ordering::SeqCst);
        let pid = self.random.pick(&pids);
        let raw = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
        let Ok(process) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
        else {
            return;
        };
        // The worker may have ended, and another process may have its number by now. A child of
        // this process is a worker.
        if children().iter().any(|(child, _, _)| *child == pid) {
            let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
        }
    }

    fn shut_down(&mut self) {
        self.ledger.shut_down.store(true, Ordering::SeqCst);
        match self.random.below(7) {
            0 => self.pool.shutdown(false),
            1 => self.pool.kill_workers(),
            2 => self.pool.terminate_workers(),
            3 => self.pool.shutdown_with(ShutdownOptions::new().wait(false).cancel_pending(true)),
            4 => {
                let options = ShutdownOptions::new().cancel_grace(self.soon());
                self.pool.shutdown_with(options.deadline(Instant::now()));
            }
            5 => {
                let timeout = self.soon();
                self.pool.shutdown_with(ShutdownOptions::new().timeout(timeout));
            }
            _ => {
                let deadline = Instant::now() + Duration::from_millis(self.random.below(20));
                self.pool.shutdown_with(ShutdownOptions::new().deadline(deadline));
            }
        }
    }
}

/// What one of tokio's tasks does.
async fn play_async(mut player: Player, steps: u64) {
    for _ in 0..steps {
        let value = player.random.next();
        let mut may = player.may();
        let task = echo::task(value, player.random.below(500));
        let task = player.options(task, &mut may);
        let future = player.pool.submit_async(task).await;
        player.ledger.note(&future, Some(value), may);
        match player.random.below(4) {
            0 => {
                // The client has left.
                let limit = Duration::from_micros(player.random.below(500));
                let _ = tokio::time::timeout(limit, future.kill_on_drop()).await;
            }
            1 => {
                let may = player.may();
                let items = player.random.below(20);
                let map = player.pool.map(later::task, 0..items).stream();
                let all: Vec<_> = map.collect().await;
                for (index, outcome) in all.iter().enumerate() {
                    player.ledger.check(outcome.as_ref(), Some(&(index as u64)), may);
                }
            }
            _ => {
                let _ = future.await;
            }
        }
    }
}

/// Draws an executor.
fn builder(random: &mut Random) -> (ProcessPoolBuilder, Traits) {
    let way = match random.below(6) {
        0..=2 => Way::Spawn,
        3..=4 => Way::Copies,
        _ => Way::PerTask,
    };
    let mut traits =
        Traits { way, limited: false, memory: false, resources: false, finalizer: None };
    let mut builder =
        ProcessPoolExecutor::builder().max_workers(1 + random.below(4) as usize).poison_limit(2);
    match way {
        Way::Spawn => {}
        Way::Copies => builder = builder.start_method(StartMethod::ForkServer),
        Way::PerTask => {
            builder = builder.isolation(Isolation::PerTask).ready(random.below(4) as usize);
        }
    }
    if way != Way::Spawn && random.one_in(2) {
        builder = builder.preload(echo::task(1, 0));
    }
    // Each of these says how long a worker is kept.
    if way != Way::PerTask {
        if random.one_in(3) {
            builder = builder.max_tasks_per_worker(1 + random.below(20) as usize);
        }
        if random.one_in(3) {
            builder = builder.idle_timeout(Duration::from_micros(1 + random.below(3_000)));
        }
        if random.one_in(3) {
            builder = builder.max_lifetime(Duration::from_micros(1 + random.below(20_000)));
        }
        if random.one_in(3) {
            builder = builder.min_workers(1);
        }
        if random.one_in(4) {
            builder = builder.max_rss_growth(1 << (18 + random.below(6)));
        }
    }
    match random.below(4) {
        0 => {
            traits.resources = true;
            builder = builder.resources([("gpu", 2), ("licence", 1)]);
        }
        1 if way != Way::PerTask => builder = builder.round_robin(),
        _ => {}
    }
    if random.one_in(3) {
        traits.memory = true;
        builder = builder.worker_memory_limit(MEMORY_LIMIT);
    }
    if random.one_in(3) {
        builder = builder.initializer(echo::task(2, random.below(500)));
    }
    if random.one_in(3) {
        let way = random.below(4) as u8;
        traits.finalizer = Some(way);
        builder = builder.finalizer(last_words::task(way));
        if way == 3 || random.one_in(2) {
            builder = builder.finalizer_timeout(Duration::from_millis(1 + random.below(30)));
        }
    }
    if random.one_in(2) {
        builder = builder.cancel_grace(Duration::from_micros(random.below(20_000)));
    }
    if random.one_in(2) {
        builder = builder.terminate_grace(Duration::from_micros(random.below(20_000)));
    }
    if random.one_in(3) {
        builder = builder.max_pending(1 + random.below(50) as usize);
    }
    if random.one_in(3) {
        builder = builder.max_pending_bytes(1 + random.below(1 << 20) as usize);
    }
    if random.one_in(4) {
        traits.limited = true;
        builder = builder.default_timeout(Duration::from_millis(1 + random.below(50)));
    }
    if random.one_in(4) {
        traits.limited = true;
        builder = builder.default_queue_timeout(Duration::from_millis(1 + random.below(50)));
    }
    let on_drop = random.pick(&[OnDrop::Finish, OnDrop::CancelPending, OnDrop::Kill]);
    (builder.on_drop(on_drop), traits)
}

/// Checks what the finalizers have returned. Each worker that leaves has run it once.
fn check_finalizers(pool: &ProcessPoolExecutor, ledger: &Ledger, way: u8) {
    let results = pool.finalizer_results::<last_words>();
    assert!(results.len() as u64 <= pool.stats().workers_started, "{results:?}");
    // A shutdown with a limit, or a killed worker, ends a finalizer.
    let may =
        May { be: "a finalizer", fail: way == 1, die: true, time_out: true, ..May::default() };
    let expected = (way == 0).then_some(LAST_WORDS);
    for result in &results {
        ledger.check(result.as_ref(), expected.as_ref(), may);
    }
}

/// Plays one executor, from its start to its end. Returns how many values and errors there were.
fn round(seed: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let (builder, traits) = builder(&mut random);
    let pool = builder.env(TAG, seed.to_string()).build().expect("the options make sense");
    let ledger = Arc::new(Ledger::default());
    let player = |random: &mut Random| Player {
        pool: pool.clone(),
        ledger: Arc::clone(&ledger),
        random: Random(random.next()),
        kept: Vec::new(),
        traits,
    };
    // A task takes longer if a worker has to be made for it.
    let steps = 1 + random.below(if traits.way == Way::PerTask { 20 } else { 100 });
    // In some rounds a thread shuts the executor down while the others use it.
    let early = random.one_in(2).then(|| random.below(THREADS));
    let start = Barrier::new(THREADS as usize);
    let players: Vec<_> = (0..THREADS).map(|_| player(&mut random)).collect();
    let in_tokio: Vec<_> = (0..2).map(|_| player(&mut random)).collect();
    thread::scope(|scope| {
        for (number, mut player) in players.into_iter().enumerate() {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for _ in 0..steps {
                    player.step();
                }
                if early == Some(number as u64) {
                    player.shut_down();
                }
                // Some are waited for, and the others only by their callbacks.
                for future in std::mem::take(&mut player.kept) {
                    if player.random.one_in(2) {
                        let _ = future.result();
                    }
                }
            });
        }
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_time()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let all =
                    in_tokio.into_iter().map(|player| tokio::spawn(play_async(player, steps)));
                for played in all.collect::<Vec<_>>() {
                    played.await.expect("it found nothing wrong");
                }
            });
        });
    });
    ledger.shut_down.store(true, Ordering::SeqCst);
    pool.shutdown(true);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.workers), (0, 0, 0), "{stats:?}");
    if let Some(way) = traits.finalizer {
        check_finalizers(&pool, &ledger, way);
    }
    drop(pool);
    eventually("no process is left", || tagged(&format!("{TAG}={seed}")).is_empty());
    let calls = ledger.calls.lock().unwrap();
    assert_eq!(calls.len() as u64, ledger.submitted.load(Ordering::Relaxed), "of every future");
    assert!(calls.values().all(|calls| *calls == 1), "once");
    (ledger.values.load(Ordering::Relaxed), ledger.errors.load(Ordering::Relaxed))
}

/// Returns how many mappings of this process are memory that the library shares with others.
fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    maps.lines().filter(|line| line.contains("memfd:executor")).count()
}

/// Returns the memory of this process that is no file, in KiB.
fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("since 4.5");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Panics on a callback thread and in scoped threads reach no test: so they are counted.
fn count_panics() -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let (counted, before) = (Arc::clone(&count), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
    count
}

#[test]
fn every_future_ends_once_and_nothing_is_left() {
    const SECONDS: u64 = 30;
    /// A round takes less than a second, and one with a worker for each task a few.
    const HANGS: Duration = Duration::from_secs(120);
    /// What an allocator and a runtime may keep.
    const KEPT_KIB_MAX: u64 = 128 << 10;

    let seconds = number("EXECUTOR_STRESS_SECONDS").unwrap_or(SECONDS);
    let first = number("EXECUTOR_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("a clock");
        now.as_nanos() as u64
    });
    let panics = count_panics();
    let (mut rounds, mut values, mut errors) = (0, 0, 0);
    let mut before = None;
    let began = Instant::now();
    while rounds == 0 || began.elapsed() < Duration::from_secs(seconds) {
        let seed = first.wrapping_add(rounds);
        println!("EXECUTOR_SEED={seed}");
        let _watchdog = watchdog_named(&format!("the round of EXECUTOR_SEED={seed}"), HANGS);
        let (of_values, of_errors) = round(seed);
        rounds += 1;
        values += of_values;
        errors += of_errors;
        assert_eq!(panics.load(Ordering::SeqCst), 0, "a check has failed");
        assert_eq!(children(), [], "a process is left");
        eventually("the executor's threads have ended", || {
            executor_threads().iter().all(|name| name == "executor-timer")
        });
        let now = (descriptors(), mappings(), memory_kib());
        println!("{now:?} descriptors, mappings and KiB of memory");
        // The first rounds start what stays until the program ends.
        if rounds == 5 {
            before = Some(now);
        }
        if let Some((descriptors, mappings, memory)) = before {
            assert!(now.0 <= descriptors, "descriptors are left: {} and {descriptors}", now.0);
            assert!(now.1 <= mappings, "mappings are left: {} and {mappings}", now.1);
            assert!(now.2 <= memory + KEPT_KIB_MAX, "memory is left: {} and {memory} KiB", now.2);
        }
    }
    println!("{rounds} rounds, {values} values, {errors} errors");
    assert!(values > 0 && errors > 0, "it has tried nothing");
}
