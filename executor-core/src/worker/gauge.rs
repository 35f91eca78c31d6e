//! Keeps a worker's memory within a limit.
//!
//! ```text
//!  serve (tasks)                     word                        watcher thread
//!  ─────────────                     ────                        ──────────────
//!  before a task is claimed   IDLE, ASLEEP ─► BUSY
//!     it was ASLEEP: look, and ring ──────────────────────────►  wakes up
//!                                                                looks, at most 50 ms apart
//!  before the reply           BUSY ─► IDLE
//!                                    IDLE ─► ASLEEP       ◄────  no task since the last look:
//!                                                                sleeps until the bell rings, or
//!                                                                looks every second, while tasks
//!                                                                have left threads
//!                               any ─► OVER               ◄────  too much: notes it, kills the group
//!  finds OVER: waits for the end
//! ```
//!
//! The word decides who is to blame, and counts the tasks: a look counts only if no task has begun
//! or ended meanwhile. A task that has replied was not the one that ran when there was too much. A
//! task that was not claimed runs in another worker. So the task that ends with the worker is one
//! that ran when its memory was above the limit.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::watcher;
use crate::{
    os::{
        arena::inode,
        private_memory::{self, PrivateMemory},
        process::thread_count,
        socket,
    },
    transport::board::Board,
};

const IDLE: u64 = 0;
const BUSY: u64 = 1;
const ASLEEP: u64 = 2;
const OVER: u64 = 3;
/// The bits of the word that hold one of these. The others count the tasks, and may wrap: the
/// watcher would have to sleep during 2⁶² tasks.
const STATE: u64 = 3;
const ONE_TASK: u64 = STATE + 1;
/// How often the watcher looks again because a task has begun or ended meanwhile. After that, the
/// task that runs then is blamed.
const LOOKS_MAX: u32 = 100;

/// Longest time between two looks while a task runs. A higher value notices growth later. A lower
/// value costs more: a look takes some microseconds of the watcher's time.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Shortest time between two looks, near the limit.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(2);
/// The memory that a process is taken to fill in a nanosecond, at most. The next look comes before
/// it could have reached the limit at this rate. A core fills fresh pages at half of it or less.
const BYTES_PER_NANO: u64 = 4;

/// Time between two looks while no task runs, if tasks have left threads, which may fill memory. A
/// higher value notices that later. A lower value wakes workers that have nothing to do.
const LOOK_IDLE: Duration = Duration::from_secs(1);

/// Watches this worker's memory.
pub(super) struct Gauge {
    word: AtomicU64,
    limit: u64,
    memory: &'static PrivateMemory,
    board: &'static Board,
    /// Number of threads that this process has without those of tasks.
    threads: usize,
    /// The worker's and the watcher's end of the bell.
    bell: (OwnedFd, OwnedFd),
    /// Which files these two are: a task may close descriptors that it does not own, and their
    /// numbers may then belong to other files.
    identities: [(u64, u64); 2],
}

impl Gauge {
    /// Begins to limit the private memory of this process. Fails if the process has more already.
    pub(super) fn start(
        limit: u64,
        memory: &'static PrivateMemory,
        board: &'static Board,
    ) -> Result<&'static Self, String> {
        let failed = |what: &str, error: io::Error| format!("{what}: {error}");
        let before = memory.in_use().ok_or("to read /proc/self/statm")?;
        if before > limit {
            return Err(format!(
                "it has {before} bytes of memory before its first task, and may have {limit} \
                 (`worker_memory_limit`)"
            ));
        }
        memory
            .limit_data(limit)
            .map_err(|error| failed("to limit its memory (setrlimit, RLIMIT_DATA)", error))?;
        let bell = socket::pair().map_err(|error| failed("to make a socket pair", error))?;
        let identity = |end| inode(end).map_err(|error| failed("to look at a socket", error));
        let identities = [identity(&bell.0)?, identity(&bell.1)?];
        private_memory::note_refused_memory(memory, &board.memory_refused);
        let word = AtomicU64::new(ASLEEP);
        // The watcher is started after this.
        let threads = 1 + thread_count().map_err(|error| failed("to count the threads", error))?;
        let gauge = Gauge { word, limit, memory, board, threads, bell, identities };
        Ok(Box::leak(Box::new(gauge)))
    }

    /// A task is about to begin. It must not be claimed before this returns.
    #[inline]
    pub(super) fn task_begins(&self) {
        let word = self.word.load(Ordering::Relaxed);
        if word & STATE != IDLE || !self.turn(word, word + (BUSY - IDLE)) {
            self.wake_up();
        }
    }

    #[cold]
    fn wake_up(&self) {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if word & STATE == OVER {
                wait_for_the_end();
            }
            if self.turn(word, word & !STATE | BUSY) {
                break;
            }
        }
        // Threads that earlier tasks have left may have filled memory while nobody looked. The task
        // that begins now is not to blame for it.
        self.look();
        if inode(&self.bell.0).is_ok_and(|now| now == self.identities[0]) {
            // If the socket is full, the watcher is about to wake up anyway.
            let _ = socket::send_now(&self.bell.0, &[1], &[]);
        }
    }

    /// A task has ended. It must not be answered before this returns. `looks` says whether it may
    /// have filled memory.
    #[inline]
    pub(super) fn task_ends(&self, looks: bool) {
        if looks {
            self.look();
        }
        let word = self.word.load(Ordering::Relaxed);
        if word & STATE != BUSY || !self.turn(word, (word & !STATE).wrapping_add(ONE_TASK) | IDLE) {
            wait_for_the_end();
        }
    }

    /// Returns whether there are threads that tasks have left, as far as the system tells.
    fn has_others(&self) -> bool {
        thread_count().map_or(true, |threads| threads > self.threads)
    }

    #[inline]
    fn turn(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends this process if it has too much memory. Otherwise returns how much it has, if the
    /// system tells.
    fn look(&self) -> Option<u64> {
        for looks in 0.. {
            let word = self.word.load(Ordering::Acquire);
            let in_use = self.memory.in_use()?;
            if in_use <= self.limit {
                return Some(in_use);
            }
            if looks >= LOOKS_MAX || self.turn(word, OVER) {
                self.word.store(OVER, Ordering::Release);
                self.board.memory_peak.store(in_use, Ordering::Release);
                watcher::end_group();
            }
        }
        None
    }
}

/// The watcher's side.
pub(super) struct Looks {
    gauge: &'static Gauge,
    /// The word at the last look.
    last: u64,
    /// Whether the watcher's end of the bell is still what it was.
    hears: bool,
}

impl Looks {
    pub(super) fn new(gauge: &'static Gauge) -> Self {
        Looks { gauge, last: OVER, hears: true }
    }

    /// Returns the descriptor that rings when a task begins while the watcher sleeps.
    pub(super) fn bell(&mut self) -> Option<&'static OwnedFd> {
        let gauge = self.gauge;
        self.hears &= inode(&gauge.bell.1).is_ok_and(|now| now == gauge.identities[1]);
        self.hears.then_some(&gauge.bell.1)
    }

    /// The bell has something to tell. `hung_up` means that the worker's end is closed, so that it
    /// cannot ring any more. From then on the watcher looks without being asked.
    pub(super) fn on_bell(&mut self, hung_up: bool) {
        self.hears &= !hung_up;
        if self.hears {
            let _ = socket::remove_now(&self.gauge.bell.1);
        }
    }

    /// Looks at the memory. Returns when to look next. `None` means when the bell rings.
    pub(super) fn look(&mut self) -> Option<Duration> {
        let gauge = self.gauge;
        let word = gauge.word.load(Ordering::Acquire);
        let last = std::mem::replace(&mut self.last, word);
        let asleep = match word & STATE {
            ASLEEP => true,
            // No task has run since the last look.
            IDLE => word == last && self.hears && gauge.turn(word, word - IDLE + ASLEEP),
            _ => false,
        };
        if asleep && self.hears {
            // Before the look, since a thread may fill memory and end in between.
            let others = gauge.has_others();
            // If there is too much, no task is to blame.
            gauge.look();
            return others.then_some(LOOK_IDLE);
        }
        let in_use = gauge.look().unwrap_or(0);
        let left = Duration::from_nanos((gauge.limit - in_use.min(gauge.limit)) / BYTES_PER_NANO);
        Some(left.clamp(LOOK_EVERY_MIN, LOOK_EVERY))
    }
}

/// Waits until the watcher has killed this process.
#[cold]
fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}
