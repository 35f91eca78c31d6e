//! Workers that are killed at every step of the protocol, and at random moments. Everything that a
//! pool promises must still hold.
//!
//! Each round is determined by its seed: a pool, what is submitted to it, how the results are
//! waited for, and which of its workers dies where and how. Workers read their part from a record
//! in memory that they share with this program, and record there which tasks they begin. So after
//! each round it is known which worker ran which task, whatever the pool believes.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often workers died at each step.

#[path = "../dying.rs"]
mod dying;

use std::{
    fmt,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, ROUNDS, Random, number};
use executor::{BrokenCause, ExitStatus, SharedBytes, StartMethod, prelude::*};
use executor_core::kill_point::{self, Step};

/// Names the file of the record.
const RECORD: &str = "EXECUTOR_TEST_RECORD";
/// Is set if workers are copies of a fork server.
const COPIES: &str = "EXECUTOR_TEST_COPIES";

// ---- the record ---------------------------------------------------------------------------------

/// Maximum number of workers that are recorded in one round. Later ones do not die.
const LIVES: usize = 16;
/// Maximum number of workers that are planned to die. With more, a pool may rightly consider itself
/// broken.
const DOOMED_MAX: usize = 3;
const TASKS: usize = 512;

/// A record shared with processes that may die at any moment. It consists of atomics, of which zero
/// is a valid value.
#[repr(C)]
struct Record {
    /// Whether workers that are planned to die do so.
    armed: AtomicU32,
    /// How many workers have started.
    started: AtomicU32,
    lives: [Life; LIVES],
    /// How many tasks have begun, and which ones, in order. Each entry is the task's number plus
    /// one.
    begun: AtomicU32,
    order: [AtomicU32; 2 * TASKS],
    tasks: [Ran; TASKS],
}

#[repr(C)]
struct Life {
    pid: AtomicU32,
    /// The step to die at, plus one.
    step: AtomicU32,
    /// How often that step must be reached before.
    left: AtomicU32,
    manner: AtomicU32,
    /// The step at which it died, plus one.
    died: AtomicU32,
    /// Whether it is stopped and wants to be killed.
    stands: AtomicU32,
    /// Whether it has claimed something and has not come back for more since.
    inside: AtomicU32,
    /// Messages that it has published since then, not counting one about the usage: see
    /// [`answers`](Life::answers).
    published: AtomicU32,
    /// Length in bytes of the result of its last task, once that task has begun.
    result_len: AtomicU32,
}

#[repr(C)]
struct Ran {
    times: AtomicU32,
    /// The worker that ran it, plus one.
    life: AtomicU32,
}

fn map(fd: i32) -> &'static Record {
    // SAFETY: a new mapping of a file of that size, which is never unmapped. `Record` consists of
    // atomics only, so other processes may write to it.
    unsafe {
        let flags = libc::PROT_READ | libc::PROT_WRITE;
        let at =
            libc::mmap(std::ptr::null_mut(), size_of::<Record>(), flags, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        &*at.cast::<Record>()
    }
}

impl Record {
    /// Makes the record. The descriptor must stay open, so that workers find the record.
    fn create() -> (&'static Record, OwnedFd) {
        // SAFETY: makes a descriptor, which then belongs to us.
        let fd = unsafe {
            #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
            let fd = libc::memfd_create(c"deaths".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let file = std::fs::File::from(fd.try_clone().expect("a descriptor"));
        #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
        file.set_len(size_of::<Record>() as u64).expect("memory");
        (map(fd.as_raw_fd()), fd)
    }

    fn clear(&self) {
        // SAFETY: writes exactly the size of the record, for which zero is a valid value. No worker
        // exists now.
        unsafe { std::ptr::from_ref(self).cast_mut().write_bytes(0, 1) };
    }

    fn lives(&self) -> &[Life] {
        &self.lives[..(self.started.load(SeqCst) as usize).min(LIVES)]
    }

    fn life_of(&self, pid: u32) -> Option<(usize, &Life)> {
        self.lives().iter().enumerate().find(|(_, life)| life.pid.load(SeqCst) == pid)
    }
}

impl Life {
    fn died_at(&self) -> Option<Step> {
        Step::ALL.get((self.died.load(SeqCst) as usize).checked_sub(1)?).copied()
    }

    /// Returns the number of messages of an answer that it has published.
    fn answers(&self) -> u32 {
        match self.published.load(SeqCst) {
            u32::MAX => 0,
            answers => answers,
        }
    }

    fn manner(&self) -> Manner {
        Manner::ALL[self.manner.load(SeqCst) as usize]
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |field: &AtomicU32| field.load(SeqCst);
        let planned =
            (number(&self.step) as usize).checked_sub(1).map(|at| (Step::ALL[at], self.manner()));
        write!(f, "pid {}, planned {planned:?}, left {}, ", number(&self.pid), number(&self.left))?;
        write!(f, "died at {:?}, inside {}, ", self.died_at(), number(&self.inside))?;
        write!(f, "published {}, result {}", number(&self.published), number(&self.result_len))
    }
}

/// How a worker dies.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u32)]
enum Manner {
    Kill,
    Exit,
    Abort,
    /// It is stopped, and killed after a while.
    Stop,
}

impl Manner {
    const ALL: [Manner; 4] = [Manner::Kill, Manner::Exit, Manner::Abort, Manner::Stop];
    const EXIT_CODE: i32 = 3;

    fn status(self) -> ExitStatus {
        match self {
            Manner::Kill | Manner::Stop => ExitStatus::Signaled(libc::SIGKILL),
            Manner::Exit => ExitStatus::Exited(Self::EXIT_CODE),
            Manner::Abort => ExitStatus::Signaled(libc::SIGABRT),
        }
    }
}

// ---- the side of the workers --------------------------------------------------------------------

/// In a worker, and in the fork server: the record.
static OWN: OnceLock<&'static Record> = OnceLock::new();
/// The worker's number in the record, and the process that has this number.
static NUMBER: AtomicUsize = AtomicUsize::new(LIVES);
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// In a worker: enables the hook, so that every step from now on may be the last.
fn enroll(path: &std::ffi::OsStr) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the record");
    let _ = OWN.set(map(file.as_raw_fd()));
    if std::env::var_os(COPIES).is_some() {
        // The fork server is no worker, and has no number.
        PROCESS.store(std::process::id(), SeqCst);
    }
    own();
    kill_point::set_hook(on_step);
}

/// Returns the record and this worker's number. A copy of a fork server gets its number here.
fn own() -> Option<(&'static Record, usize)> {
    let record = *OWN.get()?;
    let process = std::process::id();
    if PROCESS.swap(process, SeqCst) != process {
        let number = record.started.fetch_add(1, SeqCst) as usize;
        if let Some(life) = record.lives.get(number) {
            life.pid.store(process, SeqCst);
        }
        NUMBER.store(number, SeqCst);
    }
    Some((record, NUMBER.load(SeqCst)))
}

fn own_life() -> Option<(&'static Record, &'static Life)> {
    let (record, number) = own()?;
    Some((record, record.lives.get(number)?))
}

fn on_step(step: Step) {
    let Some((record, life)) = own_life() else { return };
    match step {
        Step::Claimed | Step::NextClaimed => {
            life.published.store(0, SeqCst);
            life.result_len.store(0, SeqCst);
            life.inside.store(1, SeqCst);
        }
        Step::HeadStored | Step::IpcSent => {
            life.published.fetch_add(1, SeqCst);
        }
        // The worker has come back for more, so its last task has been answered.
        Step::HeadRead | Step::MessageCopied | Step::SleepAnnounced | Step::IpcReceived => {
            life.inside.store(0, SeqCst);
        }
        Step::BeforeClaim | Step::BeforeClaimNext | Step::StopRead => life.inside.store(0, SeqCst),
        _ => {}
    }
    if life.step.load(SeqCst) == step as u32 + 1
        && record.armed.load(SeqCst) != 0
        && life.left.fetch_sub(1, SeqCst) == 1
    {
        life.died.store(step as u32 + 1, SeqCst);
        die(life);
    }
}

fn die(life: &Life) -> ! {
    // SAFETY: each of these calls ends or stops this process, and none touches its memory.
    unsafe {
        match life.manner() {
            Manner::Kill => libc::kill(libc::getpid(), libc::SIGKILL),
            Manner::Exit => libc::_exit(Manner::EXIT_CODE),
            Manner::Abort => libc::abort(),
            Manner::Stop => {
                life.stands.store(1, SeqCst);
                libc::kill(libc::getpid(), libc::SIGSTOP)
            }
        };
        loop {
            libc::pause();
        }
    }
}

/// Records that a task has begun. Called before anything else in the task.
fn begin(number: u32, result_len: usize) {
    let Some((record, own)) = own() else { return };
    if let Some(life) = record.lives.get(own) {
        life.result_len.store(result_len as u32, SeqCst);
    }
    let task = &record.tasks[number as usize];
    // Record the worker first, then the task: if the worker were killed from outside in between,
    // the task would have run in no recorded worker.
    task.life.store(own as u32 + 1, SeqCst);
    task.times.fetch_add(1, SeqCst);
    let at = record.begun.fetch_add(1, SeqCst) as usize;
    if let Some(place) = record.order.get(at) {
        place.store(number + 1, SeqCst);
    }
    kill_point::reached(Step::InTask);
}

/// Returns the result of a task without a large result.
fn value(number: u32) -> u64 {
    u64::from(number) * 31 + 7
}

/// Returns the value of each byte of a large value.
fn filler(number: u32) -> u8 {
    number as u8 ^ 0x5a
}

#[task]
fn tiny(number: u32) -> u64 {
    begin(number, 0);
    value(number)
}

/// Is measured: a message that is no answer comes before the answer.
#[task]
fn weighed(number: u32) -> u64 {
    begin(number, 0);
    if let Some((_, life)) = own_life() {
        // The next message makes it 0.
        life.published.store(u32::MAX, SeqCst);
    }
    value(number)
}

/// Computes for a while, so that other processes go to sleep meanwhile.
#[task]
fn busy(number: u32, micros: u64) -> u64 {
    begin(number, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
    value(number)
}

/// Takes large arguments, returns a large result, or both.
#[task]
fn bulk(number: u32, bytes: Vec<u8>, back: usize) -> Vec<u8> {
    begin(number, back);
    assert!(
        bytes == vec![filler(number); bytes.len()],
        "the arguments of task {number} came as they were sent"
    );
    vec![filler(number); back]
}

/// Takes a descriptor and returns another one.
#[task]
fn shared(number: u32, bytes: SharedBytes) -> SharedBytes {
    begin(number, 0);
    SharedBytes::copy_from_slice(&bytes)
}

/// The initializer of a pool.
#[task]
fn prepare() {}

// ---- the plan of a round ------------------------------------------------------------------------

#[derive(Debug)]
struct Plan {
    workers: usize,
    initializer: bool,
    /// Whether its workers run a finalizer.
    finalizer: bool,
    /// Whether workers are copies of a fork server.
    copies: bool,
    /// Whether a first task ends before any worker dies. From then on, the pool does not consider
    /// itself broken.
    warm: bool,
    deaths: Vec<Death>,
    /// A worker is killed from outside after this many microseconds.
    outside: Option<u64>,
    works: Vec<Work>,
}

#[derive(Clone, Copy, Debug)]
struct Death {
    life: usize,
    step: Step,
    /// How often the step must be reached.
    nth: u32,
    manner: Manner,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Tiny(Wait),
    Busy(u64, Wait),
    Bulk {
        take: usize,
        back: usize,
        wait: Wait,
    },
    /// Bytes that are sent as a descriptor in both directions.
    Shared(Wait),
    /// More large arguments and results at a time than there are segments, so that some are sent in
    /// parts.
    Hoard,
    /// A map of this many items, which take this long. Only some of the results are taken.
    Map {
        items: usize,
        micros: u64,
        chunk: Option<usize>,
        taken: usize,
        aside: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    /// `result()`, before anything else is submitted.
    Now,
    /// `result()` on one of the threads.
    Thread(usize),
    /// `.await` on one of the threads.
    Await(usize),
    /// `cancel()`, which may come too late.
    Cancel,
    /// `cancel_running()`, which may come too late as well.
    CancelRunning,
}

const THREADS: usize = 2;
/// Threads of this program between two rounds: the main thread and the watchdog.
const OWN_THREADS: usize = 2;
/// Number of segments for arguments, and for the results of each worker.
const SEGMENTS: usize = 64;
/// A payload that is too long for the frame itself.
const LARGE: usize = 40 * 1024;
const SIZES: [usize; 3] = [0, 100 * 1024, 1024 * 1024];

/// Returns whether a worker reaches this step only once.
fn is_single(step: Step) -> bool {
    is_early(step) || matches!(step, Step::StopRead | Step::Finalized | Step::Exiting)
}

/// Returns whether this step comes before a worker can take tasks.
fn is_early(step: Step) -> bool {
    step <= Step::ServeBegins || matches!(step, Step::InitBegins | Step::InitEnds)
}

impl Plan {
    fn of(seed: u64, steps: &[Step]) -> Plan {
        let mut dice = Random(seed);
        // Every step is the first one in turn, so that rounds in a row cover all steps.
        let first = steps[(seed % steps.len() as u64) as usize];
        let mut steps_to_die_at = vec![first];
        // Sometimes further workers die at random steps.
        while steps_to_die_at.len() < DOOMED_MAX && dice.one_in(4) {
            steps_to_die_at.push(dice.pick(steps));
        }
        let warm = !dice.one_in(6);
        let initializer = dice.one_in(5)
            || steps_to_die_at.iter().any(|step| [Step::InitBegins, Step::InitEnds].contains(step));
        let finalizer = steps_to_die_at.contains(&Step::Finalized);
        // If the pool is warm, the first worker is already past these steps.
        let from = usize::from(warm && is_early(first));
        let deaths: Vec<Death> = (from..)
            .zip(&steps_to_die_at)
            .map(|(life, step)| Death {
                life,
                step: *step,
                nth: match step {
                    step if is_single(*step) => 1,
                    // These steps are rarely reached.
                    Step::ClaimRefused | Step::NextRefused | Step::UsageSent => 1,
                    step if goes_in_parts(*step) => dice.pick(&[1, 1, 2, 5]),
                    _ => dice.pick(&[1, 1, 1, 2, 3, 5, 9]),
                },
                manner: dice.pick(&[
                    Manner::Kill,
                    Manner::Kill,
                    Manner::Kill,
                    Manner::Kill,
                    Manner::Exit,
                    Manner::Abort,
                    Manner::Stop,
                ]),
            })
            .collect();
        // A hoard keeps the only worker busy until the segments are used up.
        let hoards = goes_in_parts(first);
        let workers = if hoards { 1 } else { (1 + dice.below(3) as usize).max(1 + from) };
        let outside = (warm && dice.one_in(4)).then(|| dice.below(4_000));
        let mut works = Vec::new();
        let mut tasks = 1;
        if hoards {
            works.push(Work::Hoard);
            tasks += Work::Hoard.tasks();
        }
        for _ in 0..8 + dice.below(16) {
            let work = Work::roll(&mut dice, first);
            tasks += work.tasks();
            if tasks <= TASKS {
                works.push(work);
            }
        }
        // A copy is past the first step when it is made.
        let copies = dice.one_in(3) && first != Step::Started;
        Plan { workers, initializer, finalizer, copies, warm, deaths, outside, works }
    }
}

/// Returns whether a worker reaches this step only when payloads are sent in parts.
fn goes_in_parts(step: Step) -> bool {
    use Step::{PartSent, RingFull, RoomSleepAnnounced, RoomWishTaken, RoomWoken};
    [PartSent, RingFull, RoomSleepAnnounced, RoomWishTaken, RoomWoken].contains(&step)
}

impl Work {
    fn roll(dice: &mut Random, first: Step) -> Work {
        let wait = match dice.below(10) {
            0..=2 => Wait::Now,
            3..=6 => Wait::Thread(dice.below(THREADS as u64) as usize),
            7 => Wait::Await(dice.below(THREADS as u64) as usize),
            8 if dice.one_in(4) => Wait::CancelRunning,
            _ => Wait::Cancel,
        };
        // Some steps are reached only with some kinds of work.
        let rare = match first {
            Step::AttachmentsReceived | Step::AttachmentsSent => 1,
            Step::BeforeClaimNext | Step::NextClaimed | Step::NextRefused => 2,
            Step::ClaimRefused => 3,
            _ => 0,
        };
        match (dice.below(20), rare) {
            (0..=8, 1) | (19, _) => Work::Shared(wait),
            (0 | 1, _) => {
                let (take, back) = (dice.pick(&SIZES), dice.pick(&SIZES));
                Work::Bulk { take, back, wait }
            }
            (0..=8, 2) | (2 | 3, _) => {
                let items = 1 + dice.below(60) as usize;
                let taken =
                    if dice.one_in(3) { dice.below(items as u64) as usize } else { usize::MAX };
                let chunk = dice.pick(&[None, Some(1), Some(7), Some(20), Some(60)]);
                let micros =
                    if rare == 2 { dice.pick(&[0, 50, 300]) } else { dice.pick(&[0, 0, 50, 300]) };
                Work::Map { items, micros, chunk, taken, aside: dice.one_in(2) }
            }
            (4..=6, 3) => Work::Busy(1_000, Wait::Thread(0)),
            (7..=15, 3) => Work::Tiny(Wait::Cancel),
            (4..=8, _) => Work::Busy(dice.pick(&[20, 100, 300, 1_000]), wait),
            _ => Work::Tiny(wait),
        }
    }

    /// Returns whether it may make the pool kill a worker.
    fn forces(&self) -> bool {
        match self {
            Work::Tiny(wait)
            | Work::Busy(_, wait)
            | Work::Shared(wait)
            | Work::Bulk { wait, .. } => {
                matches!(wait, Wait::CancelRunning)
            }
            Work::Hoard | Work::Map { .. } => false,
        }
    }

    fn tasks(&self) -> usize {
        match self {
            Work::Map { items, .. } => *items,
            Work::Hoard => SEGMENTS + 8,
            _ => 1,
        }
    }
}

// ---- a round ------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Outcome {
    Unknown,
    /// Nobody waits for the result, because its map was dropped before.
    Dropped,
    Right,
    Wrong,
    Failed(TaskError),
}

/// The outcome of each task of a round, by its number.
type Outcomes = Arc<Mutex<Vec<Outcome>>>;

type Job = Box<dyn FnOnce() + Send>;

struct Round<'a> {
    pool: &'a ProcessPoolExecutor,
    outcomes: Outcomes,
    /// How often each future's callback was called.
    calls: Arc<Vec<AtomicU32>>,
    /// The numbers of tasks that are not items of a map, in the order of submission.
    singles: Vec<u32>,
    /// The numbers of the items of each map.
    maps: Vec<std::ops::Range<u32>>,
    next: u32,
}

fn is_filled(bytes: &[u8], number: u32, len: usize) -> bool {
    *bytes == *vec![filler(number); len]
}

fn note(outcomes: &Outcomes, number: u32, outcome: Outcome) {
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    let place = &mut outcomes[number as usize];
    assert!(
        matches!(place, Outcome::Unknown),
        "task {number} was {place:?} and now is {outcome:?}"
    );
    *place = outcome;
}

fn judge<T>(result: Result<T, TaskError>, right: impl FnOnce(&T) -> bool) -> Outcome {
    match result {
        Ok(value) if right(&value) => Outcome::Right,
        Ok(_) => Outcome::Wrong,
        Err(error) => Outcome::Failed(error),
    }
}

impl Round<'_> {
    fn number(&mut self) -> u32 {
        let number = self.next;
        self.next += 1;
        self.singles.push(number);
        number
    }

    fn wait<T: Send + 'static>(
        &self,
        number: u32,
        future: TaskFuture<T>,
        right: impl FnOnce(&T) -> bool + Send + 'static,
        wait: Wait,
        threads: &[mpsc::Sender<Job>],
    ) {
        let calls = Arc::clone(&self.calls);
        future.add_done_callback(move |_| {
            calls[number as usize].fetch_add(1, SeqCst);
        });
        let outcomes = Arc::clone(&self.outcomes);
        let send =
            |thread: usize, job: Job| threads[thread].send(job).expect("the thread is there");
        match wait {
            Wait::Now => note(&outcomes, number, judge(future.result(), right)),
            Wait::Thread(thread) => {
                send(
                    thread,
                    Box::new(move || note(&outcomes, number, judge(future.result(), right))),
                );
            }
            Wait::Await(thread) => {
                let job = move || {
                    note(&outcomes, number, judge(futures::executor::block_on(future), right))
                };
                send(thread, Box::new(job));
            }
            Wait::Cancel | Wait::CancelRunning => {
                let cancelled = match wait {
                    Wait::Cancel => future.cancel(),
                    _ => future.cancel_running(),
                };
                let result = future.result();
                assert_eq!(cancelled, matches!(result, Err(TaskError::Cancelled)), "task {number}");
                note(&outcomes, number, judge(result, right));
            }
        }
    }

    fn submit_bulk(&mut self, take: usize, back: usize) -> (u32, TaskFuture<Vec<u8>>) {
        let number = self.number();
        (number, self.pool.submit(bulk::task(number, vec![filler(number); take], back)))
    }

    fn submit(&mut self, work: Work, threads: &[mpsc::Sender<Job>]) -> Option<Job> {
        match work {
            Work::Tiny(wait) => {
                let number = self.number();
                let right = move |came: &u64| *came == value(number);
                let future = match number % 5 {
                    0 => self.pool.submit(weighed::task(number).measure_usage()),
                    _ => self.pool.submit(tiny::task(number)),
                };
                self.wait(number, future, right, wait, threads);
            }
            Work::Busy(micros, wait) => {
                let number = self.number();
                let right = move |came: &u64| *came == value(number);
                self.wait(
                    number,
                    self.pool.submit(busy::task(number, micros)),
                    right,
                    wait,
                    threads,
                );
            }
            Work::Bulk { take, back, wait } => {
                let (number, future) = self.submit_bulk(take, back);
                self.wait(number, future, move |came| is_filled(came, number, back), wait, threads);
            }
            Work::Shared(wait) => {
                let number = self.number();
                let bytes = SharedBytes::copy_from_slice(&vec![filler(number); LARGE]);
                let future = self.pool.submit(shared::task(number, bytes));
                self.wait(
                    number,
                    future,
                    move |came| is_filled(came, number, LARGE),
                    wait,
                    threads,
                );
            }
            Work::Hoard => {
                // The worker is kept busy until the arguments have taken all segments.
                self.submit(Work::Busy(10_000, Wait::Thread(0)), threads);
                // No result is read before all tasks are done, because an unread result keeps its
                // segment.
                let sizes =
                    (1..work.tasks()).map(|at| if at <= SEGMENTS { LARGE } else { SIZES[2] });
                let all: Vec<_> = sizes.map(|size| (size, self.submit_bulk(size, size))).collect();
                all.iter().for_each(|(_, (_, future))| future.wait());
                for (size, (number, future)) in all {
                    self.wait(
                        number,
                        future,
                        move |came| is_filled(came, number, size),
                        Wait::Now,
                        threads,
                    );
                }
            }
            Work::Map { items, micros, chunk, taken, aside } => {
                let numbers = self.next..self.next + items as u32;
                self.next = numbers.end;
                self.maps.push(numbers.clone());
                let (outcomes, pool) = (Arc::clone(&self.outcomes), self.pool.clone());
                let job: Job = Box::new(move || {
                    let mut map = pool.map(|number| busy::task(number, micros), numbers.clone());
                    if let Some(chunk) = chunk {
                        map = map.chunk_size(chunk);
                    }
                    let mut came = 0;
                    for (number, result) in numbers.clone().zip(map.by_ref().take(taken)) {
                        note(&outcomes, number, judge(result, |came| *came == value(number)));
                        came += 1;
                    }
                    assert_eq!(came, taken.min(items), "a map yields one result for each item");
                    drop(map);
                    for number in numbers.skip(came) {
                        note(&outcomes, number, Outcome::Dropped);
                    }
                });
                if aside {
                    return Some(job);
                }
                job();
            }
        }
        None
    }
}

/// Resources that must be the same before and after each round.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Resources {
    threads: usize,
    descriptors: usize,
    /// Mappings of segments and doorbells.
    mappings: usize,
}

fn resources() -> Resources {
    // Count threads first: a thread releases its resources before it ends.
    let threads = std::fs::read_dir("/proc/self/task").expect("/proc").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
    Resources {
        threads,
        descriptors: std::fs::read_dir("/proc/self/fd").expect("/proc").count() - 1,
        mappings: maps.lines().filter(|line| line.contains("memfd:executor")).count(),
    }
}

/// Returns whether this process has a child, running or dead.
fn has_child() -> bool {
    // SAFETY: only asks, and writes nothing.
    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) != -1 }
}

struct Test {
    record: &'static Record,
    path: String,
    steps: Vec<Step>,
    base: Option<Resources>,
    deaths: Vec<u64>,
    outside: u64,
    broken: u64,
    /// Descriptors kept by ipc-channel.
    kept: usize,
    slowest: (Duration, u64),
}

/// The current round and its start, which the watchdog checks.
static CURRENT: Mutex<Option<(u64, Instant)>> = Mutex::new(None);

impl Test {
    fn run_seed(&mut self, seed: u64) {
        let plan = Plan::of(seed, &self.steps);
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
        let began = Instant::now();
        let outcomes = Outcomes::default();
        let ran =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.round(&plan, &outcomes)));
        if ran.is_err() {
            println!("EXECUTOR_SEED={seed} failed: {plan:#?}\n{}", describe(self.record));
            let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            for (number, outcome) in outcomes.iter().enumerate() {
                if !matches!(outcome, Outcome::Unknown | Outcome::Right) {
                    println!("task {number}: {outcome:?}");
                }
            }
            std::process::exit(1);
        }
        self.slowest = self.slowest.max((began.elapsed(), seed));
    }

    fn round(&mut self, plan: &Plan, outcomes: &Outcomes) {
        let record = self.record;
        record.clear();
        // Tell each planned victim where to die. Workers read this when they start.
        for death in &plan.deaths {
            let life = &record.lives[death.life];
            life.step.store(death.step as u32 + 1, SeqCst);
            life.left.store(death.nth, SeqCst);
            life.manner.store(death.manner as u32, SeqCst);
        }
        let mut builder =
            ProcessPoolExecutor::builder().max_workers(plan.workers).env(RECORD, &self.path);
        if plan.finalizer {
            // A worker that stands still in it is killed as soon as one that does not leave.
            let timeout = Duration::from_secs(5);
            builder = builder.finalizer(prepare::task()).finalizer_timeout(timeout);
        }
        if plan.initializer {
            builder = builder.initializer(prepare::task());
        }
        if plan.copies {
            builder = builder.start_method(StartMethod::ForkServer).env(COPIES, "");
        }
        let pool = builder.build().expect("a pool");
        outcomes.lock().expect("nobody has it").resize(TASKS, Outcome::Unknown);
        let mut round = Round {
            pool: &pool,
            outcomes: Arc::clone(outcomes),
            calls: Arc::new((0..TASKS).map(|_| AtomicU32::new(0)).collect()),
            singles: Vec::new(),
            maps: Vec::new(),
            next: 0,
        };
        let killed = Mutex::new(Vec::new());
        let over = AtomicU32::new(0);
        thread::scope(|scope| {
            let (threads, handles): (Vec<_>, Vec<_>) = (0..THREADS)
                .map(|_| {
                    let (sender, receiver) = mpsc::channel::<Job>();
                    (sender, scope.spawn(move || receiver.into_iter().for_each(|job| job())))
                })
                .unzip();
            // In a warm round no worker dies before the first task has ended.
            record.armed.store(u32::from(!plan.warm), SeqCst);
            let undertaker = (plan.outside.is_some()
                || plan.deaths.iter().any(|death| death.manner == Manner::Stop))
            .then(|| scope.spawn(|| undertake(record, &pool, plan.outside, &over, &killed)));
            round.submit(Work::Tiny(Wait::Now), &threads);
            record.armed.store(1, SeqCst);
            let mut aside = Vec::new();
            for work in &plan.works {
                aside.extend(round.submit(*work, &threads).map(|job| scope.spawn(job)));
            }
            // Without senders, the threads end when their jobs are done.
            drop(threads);
            for thread in handles.into_iter().chain(aside) {
                thread.join().expect("its assertions hold");
            }
            // `shutdown` also waits for workers that die when they are told to stop.
            pool.shutdown(true);
            over.store(1, SeqCst);
            if let Some(undertaker) = undertaker {
                undertaker.join().expect("its assertions hold");
            }
        });
        let Round { calls, singles, maps, next, .. } = round;
        drop(pool);
        let outcomes = outcomes.lock().expect("everybody is through")[..next as usize].to_vec();
        let killed = killed.into_inner().expect("everybody is through");
        check(record, plan, &outcomes, &killed);
        for number in &singles {
            assert_eq!(calls[*number as usize].load(SeqCst), 1, "callbacks of task {number}");
        }
        if plan.workers == 1 {
            check_order(record, &singles, &maps);
        }
        self.broken += u64::from(outcomes.iter().any(is_broken));
        self.outside += killed.len() as u64;
        for step in record.lives().iter().filter_map(Life::died_at) {
            self.deaths[step as usize] += 1;
        }
        self.check_resources(killed.len());
    }

    fn check_resources(&mut self, killed: usize) {
        assert!(!has_child(), "a child is left");
        let base = *self.base.get_or_insert_with(|| {
            // The first call comes after a round without deaths. It waits until only this program's
            // own threads are left.
            let alone = || Some(resources()).filter(|now| now.threads == OWN_THREADS);
            std::iter::repeat_with(alone).find_map(|now| now).expect("without end")
        });
        // The last of the pool's threads releases its resources a moment after everyone waiting for
        // them was notified.
        let deadline = Instant::now() + HANGS_AFTER / 2;
        loop {
            let now = resources();
            if now == base {
                return;
            }
            // ipc-channel keeps a descriptor for a worker that dies while a connection to it is
            // made.
            let died = self.record.lives().iter().filter(|life| life.died_at().is_some()).count();
            let kept = now.descriptors - base.descriptors.min(now.descriptors);
            if over_ipc()
                && kept <= died + killed
                && (Resources { descriptors: base.descriptors, ..now }) == base
            {
                self.kept += kept;
                self.base = Some(now);
                return;
            }
            assert!(Instant::now() < deadline, "{now:?} are left, {base:?} were there at first");
            thread::yield_now();
        }
    }
}

/// Kills stopped workers, and once a worker from outside after a while.
fn undertake(
    record: &Record,
    pool: &ProcessPoolExecutor,
    outside: Option<u64>,
    over: &AtomicU32,
    killed: &Mutex<Vec<u32>>,
) {
    let mut began = Instant::now();
    let mut outside = outside.map(Duration::from_micros);
    while over.load(SeqCst) == 0 {
        // The time starts when workers may die.
        if record.armed.load(SeqCst) == 0 {
            began = Instant::now();
        }
        for life in record.lives() {
            if life.stands.swap(0, SeqCst) != 0 {
                kill(life.pid.load(SeqCst));
            }
        }
        if outside
            .take_if(|after| record.armed.load(SeqCst) != 0 && began.elapsed() >= *after)
            .is_some()
            && let Some(pid) = pool.worker_pids().first()
        {
            // Record it before the kill, because its task may be judged at any moment after that.
            killed.lock().expect("nobody panics here").push(*pid);
            kill(*pid);
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Kills a process, which may have ended meanwhile.
fn kill(pid: u32) {
    // SAFETY: only sends a signal.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

fn is_broken(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(TaskError::Broken(_)))
}

/// Checks what must hold, whichever workers died, and wherever they did.
fn check(record: &Record, plan: &Plan, outcomes: &[Outcome], killed: &[u32]) {
    let deaths =
        record.lives().iter().filter(|life| life.died_at().is_some()).count() + killed.len();
    // The pool may have killed a worker as well, perhaps the worker that was about to die.
    let forced = plan.works.iter().any(Work::forces);
    let mut victims = vec![0_u32; LIVES];
    let mut bystanders = vec![0_u32; LIVES];
    for (number, outcome) in outcomes.iter().enumerate() {
        let ran = record.tasks[number].times.load(SeqCst);
        assert!(ran <= 1, "task {number} ran {ran} times");
        match outcome {
            Outcome::Right => assert_eq!(ran, 1, "task {number} has a result without having run"),
            Outcome::Dropped => {}
            Outcome::Unknown | Outcome::Wrong => panic!("task {number} is {outcome:?}"),
            Outcome::Failed(TaskError::Cancelled) => {
                assert!(ran == 0 || forced, "task {number} was cancelled, and ran");
            }
            Outcome::Failed(TaskError::WorkerLost { pid, status, .. }) => {
                let (at, life) = record.life_of(*pid).expect("it says which worker it was");
                let by_us = killed.contains(pid);
                assert!(
                    by_us || life.died_at().is_some(),
                    "task {number} says that {life:?} was lost"
                );
                // The status is only known if nothing else can have killed the worker.
                if !by_us && !forced {
                    assert_eq!(*status, life.manner().status(), "task {number}, {life:?}");
                }
                let runner = record.tasks[number].life.load(SeqCst) as usize;
                assert!(
                    ran == 0 || runner == at + 1,
                    "task {number} ran in life {runner}, lost by {at}"
                );
                let inside = life.inside.load(SeqCst) == 1;
                // A task that was first in line with several dead workers did not fail because of
                // what this worker had claimed.
                let claimed = ran == 1 || (inside && life.answers() == 0);
                victims[at] += u32::from(claimed);
                bystanders[at] += u32::from(!claimed);
                // An unstarted task is lost only if it was first in line with three workers that
                // died.
                assert!(
                    inside || by_us || deaths >= 3,
                    "task {number} had not begun when {life:?} died"
                );
            }
            Outcome::Failed(TaskError::Broken(cause)) => {
                let cause = matches!(cause, BrokenCause::NoEntry { .. } | BrokenCause::Start(_))
                    || (plan.initializer && matches!(cause, BrokenCause::Initializer(_)));
                assert!(cause && !plan.warm && deaths > 0, "task {number}: {outcome:?}");
                assert_eq!(
                    record.begun.load(SeqCst),
                    0,
                    "the pool is broken although a worker was ready"
                );
            }
            Outcome::Failed(error) => panic!("task {number} failed: {error}"),
        }
    }
    // A pool that is broken before any task has begun has run none of its tasks.
    let broken = outcomes.iter().filter(|outcome| is_broken(outcome)).count();
    let others = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Right)).count();
    assert!(
        broken == 0 || others == 0,
        "{broken} tasks say that the pool is broken, {others} have results"
    );
    for (at, (life, (victims, bystanders))) in
        record.lives().iter().zip(victims.into_iter().zip(bystanders)).enumerate()
    {
        assert!(
            victims + bystanders <= 1,
            "{victims} + {bystanders} tasks were lost with life {at}, {life:?}"
        );
        if killed.contains(&life.pid.load(SeqCst)) || life.died_at().is_none() {
            continue;
        }
        let (inside, published) = (life.inside.load(SeqCst) == 1, life.answers());
        // The worker died with a claimed task and no answer, so exactly this task must have failed.
        if inside && published == 0 && broken == 0 {
            let dropped = outcomes.iter().enumerate().any(|(number, outcome)| {
                matches!(outcome, Outcome::Dropped)
                    && record.tasks[number].life.load(SeqCst) as usize == at + 1
            });
            // The error may belong to a task whose result nobody waits for.
            let unseen = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Dropped));
            assert!(
                victims == 1 || dropped || unseen || forced,
                "what life {at} had begun did not fail: {life:?}"
            );
        }
        // A complete answer was published before the death, so no task may have failed.
        if inside && published > 0 && life.result_len.load(SeqCst) == 0 {
            assert_eq!(victims, 0, "the answer of life {at} was published: {life:?}");
        }
    }
}

/// With one worker, tasks must begin in the order of submission, whichever workers died meanwhile.
fn check_order(record: &Record, singles: &[u32], maps: &[std::ops::Range<u32>]) {
    let begun = (record.begun.load(SeqCst) as usize).min(record.order.len());
    let order: Vec<u32> =
        record.order[..begun].iter().filter_map(|at| at.load(SeqCst).checked_sub(1)).collect();
    let of =
        |belongs: &dyn Fn(&u32) -> bool| order.iter().copied().filter(belongs).collect::<Vec<_>>();
    let of_singles = of(&|number| singles.contains(number));
    assert!(of_singles.is_sorted(), "begun in this order: {of_singles:?}");
    for map in maps {
        let items = of(&|number| map.contains(number));
        assert!(items.is_sorted(), "items of a map begun in this order: {items:?}");
    }
}

fn describe(record: &Record) -> String {
    let mut text = format!("{} tasks have begun", record.begun.load(SeqCst));
    for (at, life) in record.lives().iter().enumerate() {
        text += &format!("\nlife {at}: {life:?}");
    }
    text
}

/// Ends this program if a round hangs.
fn watch(record: &'static Record) {
    loop {
        thread::sleep(Duration::from_secs(1));
        let current = *CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((seed, _)) = current.filter(|(_, since)| since.elapsed() > HANGS_AFTER) else {
            continue;
        };
        println!("EXECUTOR_SEED={seed} hangs\n{}", describe(record));
        let order = record.order.iter().map(|at| at.load(SeqCst)).take_while(|number| *number > 0);
        println!("begun: {:?}", order.map(|number| number - 1).collect::<Vec<_>>());
        std::process::abort();
    }
}

fn over_ipc() -> bool {
    std::env::var_os("EXECUTOR_TRANSPORT").is_some_and(|name| name == "ipc")
}

/// Returns the steps that workers of this transport reach.
fn steps() -> Vec<Step> {
    let over_ipc = over_ipc();
    let is_there = |step: &Step| match step {
        Step::IpcReceived | Step::IpcSendNext | Step::IpcSent => over_ipc,
        Step::HeadRead | Step::MessageCopied | Step::TailStored | Step::RoomWishTaken => !over_ipc,
        Step::SleepAnnounced | Step::Woken => !over_ipc,
        Step::SegmentLeft | Step::PartSent => true,
        step => !over_ipc || !(Step::WordsWritten..=Step::RoomWoken).contains(step),
    };
    Step::ALL.iter().copied().filter(is_there).collect()
}

fn main() {
    if let Some(path) = std::env::var_os(RECORD) {
        enroll(&path);
    }
    executor::init();
    // SAFETY: only sets a limit. Workers that abort on purpose must not leave core files.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    let (record, fd) = Record::create();
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    thread::spawn(move || watch(record));
    let steps = steps();
    let mut test = Test {
        record,
        path,
        base: None,
        deaths: vec![0; Step::ALL.len()],
        outside: 0,
        broken: 0,
        kept: 0,
        slowest: (Duration::ZERO, 0),
        steps: steps.clone(),
    };
    // In this round no worker dies. What is open after it is the base for the comparison.
    let quiet = Plan { deaths: Vec::new(), outside: None, warm: true, ..Plan::of(0, &steps) };
    test.round(&quiet, &Outcomes::default());
    let began = Instant::now();
    if let Some(seed) = number("EXECUTOR_SEED") {
        for _ in 0..number("EXECUTOR_ROUNDS").unwrap_or(1) {
            test.run_seed(seed);
        }
    } else {
        let rounds = number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS);
        (0..rounds).for_each(|seed| test.run_seed(seed));
        let mut extra = 0;
        if rounds >= ROUNDS {
            let count = steps.len() as u64;
            for (at, step) in (0..).zip(&steps) {
                let mut seeds = (rounds.next_multiple_of(count) + at..).step_by(count as usize);
                for seed in seeds.by_ref().take(EXTRA_ROUNDS_MAX as usize) {
                    if test.deaths[*step as usize] > 0 {
                        break;
                    }
                    test.run_seed(seed);
                    extra += 1;
                }
            }
        }
        println!(
            "{rounds} rounds from seed 0 and {extra} for what these left out, in {:?}",
            began.elapsed()
        );
    }
    for step in &steps {
        println!("{:>8}  {step:?}", test.deaths[*step as usize]);
    }
    println!("{:>8}  killed from outside", test.outside);
    println!("{:>8}  pools broken before they were ready", test.broken);
    if over_ipc() {
        println!("{:>8}  descriptors kept by ipc-channel", test.kept);
    }
    println!("slowest round: seed {}, {:?}", test.slowest.1, test.slowest.0);
    if number("EXECUTOR_SEED").is_none() && number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS) >= ROUNDS {
        let missing: Vec<_> =
            steps.iter().filter(|step| test.deaths[**step as usize] == 0).collect();
        assert!(missing.is_empty() && test.outside > 0, "nobody died at {missing:?}");
    }
    drop(fd);
}
