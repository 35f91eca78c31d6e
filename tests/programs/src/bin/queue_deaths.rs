//! Users of a queue that are killed at every step of a queue operation, and at random moments. No
//! item whose `put` has returned may be lost, no item may arrive twice or incomplete, the order of
//! items must be kept, and all other processes must go on.
//!
//! Each round is determined by its seed: a queue, two producers and three consumers, the items, the
//! `OnLost` policy, and which process is killed where. The processes are forked by hand, so that
//! ten thousand rounds take less than an hour. What was put and got is recorded in memory that is
//! independent of the queue. A dead consumer loses at most the items that it had not marked as
//! done. With `Requeue` it loses none, and with `Keep` all of them can be retrieved.
//!
//! With `EXECUTOR_STOPS=1` the processes are stopped there instead of killed. While a process is
//! stopped, the parent makes every call that has a timeout, whose name begins with `try_`, or that
//! is async ([`keep_their_limits`]). Each call must return in time, whatever its result. After that
//! the process is continued, or killed while stopped, and the round ends as usual.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often a process was killed or stopped at each
//! step.

#[path = "../dying.rs"]
mod dying;

use std::{
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, ROUNDS, Random, number, seeds};
use executor::{GetError, JoinableQueue, OnLost, PutError, SharedBytes};
use executor_core::kill_point::{self, Step};

const PRODUCERS: usize = 2;
const CONSUMERS: usize = 3;
const ITEMS: usize = 24;
/// Index under which the parent records the items that it puts while a process is stopped.
const PARENT: usize = PRODUCERS;
/// Timeout of the calls that the parent makes meanwhile.
const LIMIT: Duration = Duration::from_millis(20);
/// How much longer than its timeout a call may take. It includes the time for which a queue waits
/// for a lock.
const MARGIN: Duration = Duration::from_millis(150);
/// Number of attempts for each call. On a busy machine a call may be late without being delayed by
/// the stopped process, but not so often in a row.
const ATTEMPTS: usize = 8;

// ---- where a process is killed ------------------------------------------------------------------

/// The step plus one at which this process is killed or stopped. 0 means never.
static STEP: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
/// Whether this process is stopped there instead of killed.
static STOPS: AtomicBool = AtomicBool::new(false);

/// The record of a round. It is a mapping of its own, so that it does not depend on the tested
/// code.
#[repr(C)]
struct Record {
    died: [AtomicU32; PRODUCERS + CONSUMERS],
    /// How many puts have returned, for each producer and the parent.
    put: [AtomicU32; PRODUCERS + 1],
    got: [[AtomicU8; ITEMS]; PRODUCERS + 1],
    /// How many losses were reported to consumers.
    told: AtomicU32,
}

fn record() -> &'static Record {
    static RECORD: OnceLock<&Record> = OnceLock::new();
    // SAFETY: the record consists of atomics, of which zero is a valid value.
    RECORD.get_or_init(|| unsafe { dying::record() })
}

static ME: AtomicU32 = AtomicU32::new(0);

fn on_step(step: Step) {
    if STEP.load(SeqCst) == step as u32 + 1 && LEFT.fetch_sub(1, SeqCst) == 1 {
        record().died[ME.load(SeqCst) as usize].store(step as u32 + 1, SeqCst);
        let signal = if STOPS.load(SeqCst) { libc::SIGSTOP } else { libc::SIGKILL };
        // SAFETY: only sends a signal to this process itself.
        unsafe { libc::kill(libc::getpid(), signal) };
        assert_eq!(signal, libc::SIGSTOP, "it was killed");
    }
}

// ---- what the processes do ----------------------------------------------------------------------

/// The producer, the number of the item, its bytes, and sometimes shared bytes with the same two
/// numbers.
type Item = (u8, u8, String, Option<SharedBytes>);

/// Returns the length of an item. The lengths cover every way in which a queue stores an item.
fn len_of(round: u64, producer: usize, number: usize) -> usize {
    let mut random = Random(round ^ (producer * 1000 + number) as u64);
    match random.below(12) {
        0..5 => random.below(100) as usize,
        5..8 => 15_000 + random.below(5_000) as usize,
        8 => 100_000,
        9 => 262_000 + random.below(300) as usize,
        _ => 300_000,
    }
}

/// Returns the `OnLost` policy of this round.
fn on_lost_of(round: u64) -> OnLost {
    [OnLost::Tell, OnLost::Keep, OnLost::Requeue][Random(round ^ 0x1057).below(3) as usize]
}

/// Returns how many items a consumer gets before it marks them as done.
fn batch_of(round: u64) -> usize {
    match on_lost_of(round) {
        OnLost::Requeue => 1,
        _ if Random(round ^ 0xba7c).below(3) == 0 => 8,
        _ => 1,
    }
}

fn item(round: u64, producer: usize, number: usize) -> Item {
    let len = len_of(round, producer, number);
    let letter = char::from(b'a' + ((producer * 7 + number) % 26) as u8);
    let mut random = Random(round ^ (producer * 77 + number) as u64);
    let may_have_handle = on_lost_of(round) == OnLost::Tell;
    let handle = (may_have_handle && random.below(3) == 0)
        .then(|| SharedBytes::copy_from_slice(&[producer as u8, number as u8]));
    (producer as u8, number as u8, letter.to_string().repeat(len), handle)
}

fn produce(queue: &JoinableQueue<Item>, round: u64, producer: usize) {
    for number in 0..ITEMS {
        queue.put(item(round, producer, number)).expect("put");
        record().put[producer].store(number as u32 + 1, SeqCst);
    }
}

/// Checks that an item is complete.
fn check(round: u64, item: &Item) {
    let (producer, number, text, handle) = item;
    let (_, _, expected, expected_handle) =
        self::item(round, usize::from(*producer), usize::from(*number));
    assert!(*text == expected, "item {number} of {producer} is torn: {} bytes", text.len());
    assert_eq!(handle.is_some(), expected_handle.is_some());
    if let Some(handle) = handle {
        assert_eq!(&**handle, &[*producer, *number], "another item's handle");
    }
}

/// Records an item. Checks that it is complete, and that it comes after the previous item of its
/// producer, unless items may come again.
fn note(round: u64, last: &mut [Option<u8>; PRODUCERS + 1], item: &Item) {
    check(round, item);
    let (producer, number, ..) = *item;
    let place = usize::from(producer);
    let times = record().got[place][usize::from(number)].fetch_add(1, SeqCst);
    if on_lost_of(round) == OnLost::Requeue {
        return;
    }
    assert!(
        last[place].is_none_or(|last| last < number),
        "{number} after {:?} of {producer}",
        last[place]
    );
    last[place] = Some(number);
    assert_eq!(times, 0, "item {number} of {producer} came twice");
}

fn consume(queue: &JoinableQueue<Item>, round: u64) {
    let mut last = [None; PRODUCERS + 1];
    let mut held = 0;
    let all_are_done = |held: &mut usize| {
        // A process's own items are marked first, so these calls mark exactly the items it holds.
        (0..std::mem::take(held)).for_each(|_| queue.task_done().expect("it was got"));
    };
    for count in 1.. {
        let item = match queue.get() {
            Ok(item) => item,
            Err(GetError::Closed) => break,
            Err(error) => panic!("{error:?}"),
        };
        note(round, &mut last, &item);
        held += 1;
        if held == batch_of(round) {
            all_are_done(&mut held);
        }
        if count % 5 == 0 {
            // This makes the consumers check for dead processes as well. Each loss is reported only
            // once, so count it here.
            if let Err(lost) = queue.join_timeout(Duration::ZERO) {
                record().told.fetch_add(lost.count as u32, SeqCst);
            }
        }
    }
    all_are_done(&mut held);
}

// ---- calls while a process is stopped -----------------------------------------------------------

/// Polls a future once and drops it. No async call may block its thread.
fn polled<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// What the parent puts and gets while a process is stopped.
struct Parent<'a> {
    queue: &'a JoinableQueue<Item>,
    round: u64,
    last: [Option<u8>; PRODUCERS + 1],
}

impl Parent<'_> {
    /// Makes the next item, passes it to `put`, and records it if it was put.
    fn put(&self, put: impl FnOnce(Item) -> Option<Result<(), PutError<Item>>>) {
        let number = record().put[PARENT].load(SeqCst) as usize;
        if number == ITEMS {
            return;
        }
        match put(item(self.round, PARENT, number)) {
            Some(Ok(())) => record().put[PARENT].store(number as u32 + 1, SeqCst),
            None | Some(Err(PutError::Full(_) | PutError::Busy(_) | PutError::Closed(_))) => {}
            Some(Err(error)) => panic!("{error:?}"),
        }
    }

    fn got(&mut self, got: Option<Result<Item, GetError>>) {
        match got {
            Some(Ok(item)) => {
                note(self.round, &mut self.last, &item);
                self.queue.task_done().expect("it was got");
            }
            None | Some(Err(GetError::Empty | GetError::Busy | GetError::Closed)) => {}
            Some(Err(error)) => panic!("{error:?}"),
        }
    }
}

/// A call's name, its timeout and the call. `try_` and async calls have no timeout.
type Limited = (&'static str, Duration, fn(&mut Parent<'_>));

const LIMITED: [Limited; 7] = [
    ("put_timeout", LIMIT, |parent| parent.put(|item| Some(parent.queue.put_timeout(item, LIMIT)))),
    ("try_put", Duration::ZERO, |parent| parent.put(|item| Some(parent.queue.try_put(item)))),
    ("put_async", Duration::ZERO, |parent| parent.put(|item| polled(parent.queue.put_async(item)))),
    ("get_timeout", LIMIT, |parent| parent.got(Some(parent.queue.get_timeout(LIMIT)))),
    ("try_get", Duration::ZERO, |parent| parent.got(Some(parent.queue.try_get()))),
    ("get_async", Duration::ZERO, |parent| parent.got(polled(parent.queue.get_async()))),
    ("join_timeout", LIMIT, |parent| {
        if let Err(lost) = parent.queue.join_timeout(LIMIT) {
            record().told.fetch_add(lost.count as u32, SeqCst);
        }
    }),
];

/// Makes all these calls while a child is stopped.
///
/// # Panics
/// If one of them takes too long.
fn keep_their_limits(parent: &mut Parent<'_>) {
    for (call, limit, make) in LIMITED {
        let mut slowest = Duration::ZERO;
        let in_time = (0..ATTEMPTS).any(|_| {
            let began = Instant::now();
            make(parent);
            let took = began.elapsed();
            slowest = slowest.max(took);
            took <= limit + MARGIN
        });
        assert!(in_time, "{call} with a limit of {limit:?} took {slowest:?}");
    }
}

// ---- a round ------------------------------------------------------------------------------------

/// How a process is killed or stopped.
#[derive(Clone, Copy, Debug)]
enum Doom {
    At(Step, u32),
    After(Duration),
    Never,
}

/// Steps of the locks that a queue uses.
const LOCKS: [Step; 9] = [
    Step::MutexTaken,
    Step::MutexTakenSlowly,
    Step::MutexMarked,
    Step::MutexWoken,
    Step::MutexReleased,
    Step::MutexHandedOn,
    Step::BellListened,
    Step::BellWoken,
    Step::BellRung,
];

/// Returns the steps at which producers or consumers can be killed.
fn steps_of(producers: bool) -> Vec<Step> {
    let own =
        Step::QUEUE.iter().copied().filter(|step| (*step <= Step::QueueTailStored) == producers);
    own.chain(LOCKS).collect()
}

fn steps() -> Vec<Step> {
    Step::QUEUE.iter().copied().chain(LOCKS).collect()
}

/// Returns the memory that the queue's file uses, in bytes.
fn file_bytes() -> i64 {
    let files = std::fs::read_dir("/proc/self/fd").expect("descriptors").filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_it =
            std::fs::read_link(&path).ok()?.to_string_lossy().starts_with("/memfd:executor-queue");
        is_it.then(|| std::fs::File::open(path).ok()).flatten()
    });
    files
        .map(|file| {
            // SAFETY: an all-zero `stat` is valid, and the call fills it.
            unsafe {
                let mut stat: libc::stat = std::mem::zeroed();
                assert_eq!(libc::fstat(file.as_raw_fd(), &mut stat), 0);
                stat.st_blocks * 512
            }
        })
        .sum()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors").count()
}

/// Runs a round. Returns the steps at which processes were killed or stopped.
fn round(seed: u64, wanted: Option<Step>, stops: bool) -> Vec<Step> {
    let mut random = Random(seed);
    let mut dooms = [Doom::Never; PRODUCERS + CONSUMERS];
    let victims = if wanted.is_some() { 3 } else { random.below(4) };
    for victim in 0..victims {
        // Victims of both kinds, so that one producer and one consumer survive.
        let place = [0, PRODUCERS, PRODUCERS + 1][victim as usize];
        dooms[place] = match wanted {
            // Steps that handle the items of a dead process need another process that died before.
            Some(_) if victim == 2 => Doom::At(Step::QueueTakeCounted, 1 + random.below(4) as u32),
            Some(step) => Doom::At(step, 1 + random.below(4) as u32),
            None => match random.below(10) {
                0..3 => Doom::After(Duration::from_micros(random.below(6_000))),
                _ => {
                    let steps = steps_of(place < PRODUCERS);
                    let step = steps[random.below(steps.len() as u64) as usize];
                    let most = if random.below(2) == 0 { 3 } else { ITEMS as u64 };
                    Doom::At(step, 1 + random.below(most) as u32)
                }
            },
        };
    }
    // Clear the record of the previous round.
    for died in &record().died {
        died.store(0, SeqCst);
    }
    for (put, got) in record().put.iter().zip(&record().got) {
        put.store(0, SeqCst);
        got.iter().for_each(|got| got.store(0, SeqCst));
    }
    record().told.store(0, SeqCst);
    let before = open_descriptors();
    let queue: JoinableQueue<Item> = match random.below(3) {
        0 => JoinableQueue::bounded(1 + random.below(5) as usize).expect("a queue"),
        _ => JoinableQueue::unbounded().expect("a queue"),
    };
    let on_lost = on_lost_of(seed);
    let queue = queue.on_lost(on_lost);
    let mut parent = Parent { queue: &queue, round: seed, last: [None; PRODUCERS + 1] };
    let mut children = Vec::new();
    for (place, doom) in dooms.iter().enumerate() {
        // SAFETY: this process has one thread, and the child only uses the library and ends without
        // unwinding.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            // The child ends together with this program, however the program ends.
            // SAFETY: only requests a signal.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            ME.store(place as u32, SeqCst);
            if let Doom::At(step, times) = *doom {
                // For steps that handle the items of a dead process, one process is always killed.
                STOPS.store(stops && (wanted.is_none() || place <= PRODUCERS), SeqCst);
                LEFT.store(times, SeqCst);
                STEP.store(step as u32 + 1, SeqCst);
            }
            let lived = catch_unwind(AssertUnwindSafe(|| match place.checked_sub(PRODUCERS) {
                None => produce(&queue, seed, place),
                Some(_) => consume(&queue, seed),
            }));
            // SAFETY: ends this process.
            unsafe { libc::_exit(if lived.is_ok() { 0 } else { 101 }) };
        }
        CHILDREN[place].store(pid, SeqCst);
        children.push((pid, place));
    }
    let mut began = Instant::now();
    let mut killed = [false; PRODUCERS + CONSUMERS];
    let (mut dead_consumers, mut closed) = (0, false);
    while !children.is_empty() {
        for (pid, place) in &children {
            if let Doom::After(moment) = dooms[*place]
                && !killed[*place]
                && began.elapsed() >= moment
            {
                killed[*place] = true;
                // SAFETY: `pid` is a child that was not waited for.
                unsafe { libc::kill(*pid, if stops { libc::SIGSTOP } else { libc::SIGKILL }) };
            }
        }
        // Consumers end when the queue is closed, which happens after the last producer.
        if !closed && children.iter().all(|(_, place)| *place >= PRODUCERS) {
            closed = true;
            queue.close();
        }
        let mut status = 0;
        // SAFETY: only asks for a child that has ended or was stopped.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) };
        if pid > 0 && libc::WIFSTOPPED(status) {
            keep_their_limits(&mut parent);
            let signal = if random.below(2) == 0 { libc::SIGCONT } else { libc::SIGKILL };
            // SAFETY: `pid` is a child that was not waited for.
            unsafe { libc::kill(pid, signal) };
            // The calls took time, so the round's time starts anew.
            began = Instant::now();
        } else if pid > 0 {
            let at = children
                .iter()
                .position(|(child, _)| *child == pid)
                .expect("a child of this round");
            let (_, place) = children.remove(at);
            CHILDREN[place].store(0, SeqCst);
            if libc::WIFSIGNALED(status) && !matches!(dooms[place], Doom::Never) {
                dead_consumers += usize::from(place >= PRODUCERS);
            } else {
                assert_eq!(status, 0, "{place} failed: {status:#x}, {dooms:?}");
            }
        } else {
            if began.elapsed() > HANGS_AFTER {
                for (child, _) in &children {
                    // SAFETY: `child` was not waited for.
                    unsafe { libc::kill(*child, libc::SIGKILL) };
                }
                panic!("hangs: {children:?} of {dooms:?}, {queue:?}");
            }
            thread::sleep(Duration::from_micros(50));
        }
    }
    // No item may be left in the queue, since at least one consumer survives.
    assert!(matches!(queue.try_get(), Err(GetError::Closed)), "{queue:?}");
    assert_eq!(queue.len(), 0);
    // Items that dead consumers held are reported as lost to `join`, and only once.
    let most = if on_lost == OnLost::Requeue { 0 } else { dead_consumers * batch_of(seed) };
    let mut told = record().told.load(SeqCst) as usize;
    if let Err(lost) = queue.join() {
        told += lost.count;
    }
    assert!(told <= most, "{told} losses are told, and {dead_consumers} consumers died");
    assert!(queue.join_timeout(Duration::ZERO).is_ok_and(|done| done));
    assert_eq!((queue.unfinished(), queue.task_done().is_err()), (0, true));
    let mut kept = Vec::new();
    for item in queue.lost_items() {
        let item = item.expect("it is whole");
        check(seed, &item);
        kept.push((item.0, item.1));
    }
    if on_lost == OnLost::Keep {
        // A consumer may be killed after a loss was reported to it and before it recorded the loss
        // here.
        assert!(kept.len() >= told, "{kept:?} are kept, and {told} losses told");
    } else {
        assert_eq!(kept, []);
    }
    let count = kept.len();
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(kept.len(), count, "one is kept twice");
    assert!(count <= most, "{kept:?} are kept, and {dead_consumers} consumers died");
    let mut lost = 0;
    for (producer, (put, got)) in record().put.iter().zip(&record().got).enumerate() {
        let put = put.load(SeqCst) as usize;
        let may_put_less = dooms.get(producer).is_none_or(|doom| !matches!(doom, Doom::Never))
            || producer == PARENT;
        assert!(may_put_less || put == ITEMS);
        for (number, got) in got.iter().enumerate() {
            let got = usize::from(got.load(SeqCst));
            let again = if on_lost == OnLost::Requeue { dead_consumers } else { 0 };
            assert!(got <= 1 + again, "item {number} of {producer} came {got} times");
            // An item that was being put when its producer died may have arrived.
            assert!(got == 0 || number <= put, "item {number} of {producer} was never put");
            let is_lost =
                got == 0 && number < put && !kept.contains(&(producer as u8, number as u8));
            lost += usize::from(is_lost);
        }
    }
    // A consumer may be killed between taking an item and recording it here. With `Keep` and
    // `Requeue` no item is lost there.
    let most = if on_lost == OnLost::Tell { dead_consumers } else { 0 };
    assert!(lost <= most, "{lost} items are lost, and {dead_consumers} consumers died: {dooms:?}");
    // The memory of the ring, the memory kept for the next large item, and one piece or ring for
    // each victim that held it when it died.
    let kept = file_bytes();
    let most = (1 << 20) + (640 << 10) + ((victims as i64) << 20);
    assert!(kept <= most, "{kept} bytes are kept: {dooms:?}");
    drop(queue);
    assert_eq!(open_descriptors(), before, "descriptors are kept");
    let died = record().died.iter().filter_map(|at| (at.load(SeqCst) as usize).checked_sub(1));
    died.map(|at| all_steps()[at]).collect()
}

/// Returns all steps, ordered by their numbers.
fn all_steps() -> Vec<Step> {
    let mut all: Vec<Step> =
        Step::ALL.iter().chain(Step::QUEUE).chain(Step::SYNC).copied().collect();
    all.sort_unstable();
    all
}

static FAILED: AtomicBool = AtomicBool::new(false);

/// Children of this round that were not waited for.
static CHILDREN: [AtomicI32; PRODUCERS + CONSUMERS] =
    [const { AtomicI32::new(0) }; PRODUCERS + CONSUMERS];

fn attempt(seed: u64, wanted: Option<Step>, stops: bool) -> Vec<Step> {
    match catch_unwind(AssertUnwindSafe(|| round(seed, wanted, stops))) {
        Ok(steps) => steps,
        Err(_) => {
            println!(
                "EXECUTOR_SEED={seed} failed{}",
                wanted.map_or(String::new(), |step| format!(" for {step:?}"))
            );
            FAILED.store(true, SeqCst);
            for child in
                CHILDREN.iter().map(|child| child.swap(0, SeqCst)).filter(|child| *child > 0)
            {
                // SAFETY: `child` was not waited for.
                unsafe {
                    libc::kill(child, libc::SIGKILL);
                    libc::waitpid(child, std::ptr::null_mut(), 0);
                }
            }
            Vec::new()
        }
    }
}

fn main() {
    kill_point::set_hook(on_step);
    // Make one queue first, so that descriptors that a process opens only once are open before
    // counting.
    drop(JoinableQueue::<u32>::unbounded());
    let seeds = seeds();
    let all = number("EXECUTOR_SEED").is_none();
    let stops = number("EXECUTOR_STOPS").unwrap_or(0) != 0;
    let every_step = all && seeds.end >= ROUNDS;
    let steps = steps();
    let mut died = vec![0_u32; steps.len()];
    let count = |hit: Vec<Step>, died: &mut Vec<u32>| {
        for step in hit {
            if let Some(at) = steps.iter().position(|other| *other == step) {
                died[at] += 1;
            }
        }
    };
    let began = Instant::now();
    for seed in seeds.clone() {
        count(attempt(seed, None, stops), &mut died);
    }
    let mut extra = 0;
    if every_step {
        for (at, step) in steps.iter().enumerate() {
            for seed in (0..EXTRA_ROUNDS_MAX).map(|seed| seeds.end + seed) {
                if died[at] > 0 || FAILED.load(SeqCst) {
                    break;
                }
                count(attempt(seed, Some(*step), stops), &mut died);
                extra += 1;
            }
        }
    }
    println!(
        "{} rounds, and {extra} for steps left out, in {:?}",
        seeds.end - seeds.start,
        began.elapsed()
    );
    for (step, died) in steps.iter().zip(&died) {
        println!("{died:>8}  {step:?}");
    }
    let missing: Vec<_> =
        steps.iter().zip(&died).filter(|(_, died)| **died == 0).map(|(step, _)| step).collect();
    assert!(!FAILED.load(SeqCst), "rounds have failed: see above");
    assert!(!every_step || missing.is_empty(), "nobody was there at {missing:?}");
}
