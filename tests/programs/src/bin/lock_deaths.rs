//! Users of locks and other sync primitives that are killed at every step of an operation, and at
//! random moments. All other processes must go on, and the guarantees of the primitives must hold.
//!
//! Each round is determined by its seed: a set of objects, three children that use all of the
//! objects in a random order, and which child is killed where. The children are forked by hand, so
//! that ten thousand rounds take less than an hour. After that the parent checks that nothing hung,
//! that no two processes were inside of a lock together, that all permits were returned, and that
//! no token was lost.
//!
//! With `EXECUTOR_STOPS=1` the child is stopped there instead of killed. While it is stopped, the
//! parent makes every call on every object that has a timeout, whose name begins with `try_`, or
//! that is async ([`limited`]). Each call must return in time, whatever its result. After that the
//! child is continued, or killed while stopped, and the round ends as usual. Besides the random
//! rounds there is one round for each step of each act, so that each call is made while a process
//! is stopped at each step within the same object.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often a child was killed or stopped at each
//! step.

#[path = "../dying.rs"]
mod dying;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, Random, number, seeds};
use executor::{
    Array, Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockResult, OwnerDied,
    Queue, RLock, RawValue, Semaphore, ShareableList, Value,
};
use executor_core::kill_point::{self, Step};

const CHILDREN: usize = 3;
const TIMES: u32 = 4;
const PERMITS: u32 = 100;
const ACTS: u64 = 15;
/// Timeout of the calls that are made while a child is stopped.
const LIMIT: Duration = Duration::from_millis(20);
/// How long a child is stopped while it holds a mutex, so that another one has to return a permit
/// without the mutex.
const STANDS: Duration = Duration::from_millis(40);
/// How much longer than its timeout a call may take.
const MARGIN: Duration = Duration::from_millis(50);
/// The same for calls of a queue, which wait for a lock for some time in addition.
const QUEUE_MARGIN: Duration = Duration::from_millis(150);
/// Number of attempts for each call. On a busy machine a call may be late without being delayed by
/// the stopped process, but not so often in a row.
const ATTEMPTS: usize = 8;

// ---- where a child is killed --------------------------------------------------------------------

/// The step plus one at which this process is killed or stopped. 0 means never.
static STEP: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
/// The act, plus one, in which this may happen. 0 means any act.
static WITHIN: AtomicU32 = AtomicU32::new(0);
/// The current act, plus one.
static ACT: AtomicU32 = AtomicU32::new(0);
/// Whether this process is stopped there instead of killed.
static STOPS: AtomicBool = AtomicBool::new(false);

/// The record of a round, written by the parent and its children. It is the parent's own mapping,
/// so that it does not depend on the tested code.
#[repr(C)]
struct Record {
    died: AtomicU32,
    inside: [AtomicU32; 3],
    /// How often each child has passed the barrier.
    passed: [AtomicU32; CHILDREN],
}

/// The number of this child.
static NUMBER: AtomicU32 = AtomicU32::new(0);

fn record() -> &'static Record {
    static RECORD: OnceLock<&Record> = OnceLock::new();
    // SAFETY: the record consists of atomics, of which zero is a valid value.
    RECORD.get_or_init(|| unsafe { dying::record() })
}

fn on_step(step: Step) {
    let within = [0, ACT.load(SeqCst)].contains(&WITHIN.load(SeqCst));
    if STEP.load(SeqCst) == step as u32 + 1 && within && LEFT.fetch_sub(1, SeqCst) == 1 {
        if NUMBER.load(SeqCst) == 0 {
            record().died.store(step as u32 + 1, SeqCst);
        }
        if STOPS.load(SeqCst) {
            // SAFETY: only sends a signal to this process itself.
            unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
        } else {
            die();
        }
    }
}

fn die() -> ! {
    // SAFETY: only sends a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it was killed")
}

// ---- what the children do -----------------------------------------------------------------------

struct World {
    lock: Lock,
    /// Two counts that are equal while the lock is free.
    counts: RawValue<[u64; 2]>,
    rlock: RLock,
    deep: RawValue<[u64; 2]>,
    one: Semaphore,
    many: Semaphore,
    condition: Condition,
    tokens: RawValue<u32>,
    /// The parent gives these tokens, one for each time that a child takes one, and no more.
    gifts: (Condition, RawValue<u32>),
    start: Event,
    pulse: Event,
    barrier: Barrier,
    actions: RawValue<u32>,
    sum: Value<u64>,
    array: Array<u64>,
    bounded: BoundedSemaphore,
    list: ShareableList,
    queue: Queue<u64>,
    /// For two parties, which wait for each other only briefly.
    brief: Barrier,
}

/// Returns the guard, and whether its previous holder has died.
fn recovered<G>(acquired: LockResult<G>, into: impl FnOnce(OwnerDied<G>) -> G) -> (G, bool) {
    match acquired {
        Ok(guard) => (guard, false),
        Err(died) => (into(died), true),
    }
}

/// Records that this process is inside of something that only one process may be in, and checks
/// that no other process is.
fn alone(place: usize, died: bool, act: impl FnOnce()) {
    let inside = &record().inside[place];
    let mine = std::process::id();
    let before = inside.swap(mine, SeqCst);
    assert!(before == 0 || died, "{before} is inside of {place} with {mine}");
    act();
    thread::yield_now();
    assert_eq!(inside.swap(0, SeqCst), mine, "another one came into {place}");
}

/// Increments both counts, one after the other. After a death they may differ, and are made equal
/// again.
fn count(counts: &RawValue<[u64; 2]>, died: bool) {
    let [mut a, b] = counts.get();
    assert!(a == b || died, "{a} and {b} without a death");
    a += 1;
    counts.set([a, b]);
    thread::yield_now();
    counts.set([a, a]);
}

/// Lets other processes run while this one holds a permit. Waits longer in rounds in which another
/// process is to be stopped meanwhile.
fn linger() {
    if STEP.load(SeqCst) == Step::OwnerGaveBack as u32 + 1 {
        thread::sleep(Duration::from_millis(2));
    }
    thread::yield_now();
}

/// Adds a token and notifies one waiter.
fn give(condition: &Condition, tokens: &RawValue<u32>) {
    let (guard, _) = recovered(condition.acquire(), OwnerDied::into_guard);
    tokens.set(tokens.get() + 1);
    condition.notify_one();
    drop(guard);
}

/// Gives as many tokens as the children take, until the round is over.
fn give_gifts(world: &World, mut random: Random, over: &AtomicBool) {
    let mut gifts = TIMES * CHILDREN as u32;
    while gifts > 0 && !over.load(SeqCst) {
        if random.below(3) == 0 {
            gifts -= 1;
            give(&world.gifts.0, &world.gifts.1);
        }
        thread::sleep(Duration::from_micros(50));
    }
}

/// Sets the flag when dropped, even after a failed assertion.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn take(condition: &Condition, tokens: &RawValue<u32>) {
    let (mut guard, _) = recovered(condition.acquire(), OwnerDied::into_guard);
    while tokens.get() == 0 {
        guard = recovered(condition.wait(guard), OwnerDied::into_guard).0;
    }
    tokens.set(tokens.get() - 1);
    drop(guard);
}

impl World {
    fn new() -> World {
        World {
            lock: Lock::new().unwrap(),
            counts: RawValue::new([0; 2]).unwrap(),
            rlock: RLock::new().unwrap(),
            deep: RawValue::new([0; 2]).unwrap(),
            one: Semaphore::new(1).unwrap(),
            many: Semaphore::new(PERMITS).unwrap(),
            condition: Condition::new().unwrap(),
            tokens: RawValue::new(1).unwrap(),
            gifts: (Condition::new().unwrap(), RawValue::new(0).unwrap()),
            start: Event::new().unwrap(),
            pulse: Event::new().unwrap(),
            barrier: Barrier::new(CHILDREN).unwrap(),
            actions: RawValue::new(0).unwrap(),
            sum: Value::new(0).unwrap(),
            array: Array::zeroed(8).unwrap(),
            bounded: BoundedSemaphore::new(2).unwrap(),
            list: ShareableList::new([0_i64, 0]).unwrap(),
            queue: Queue::bounded(8).unwrap(),
            brief: Barrier::new(2).unwrap(),
        }
    }

    fn act(&self, what: u64) {
        ACT.store(what as u32 + 1, SeqCst);
        match what {
            0 => {
                let (guard, died) = recovered(self.lock.acquire(), OwnerDied::into_guard);
                alone(0, died, || count(&self.counts, died));
                drop(guard);
            }
            1 => {
                let (outer, died) = recovered(self.rlock.acquire(), OwnerDied::into_guard);
                let inner = self.rlock.acquire().expect("this thread holds it");
                alone(1, died, || count(&self.deep, died));
                drop((outer, inner));
            }
            2 => {
                let permit = self.one.acquire();
                // No check here: a permit returned for a dead process says nothing about that
                // process.
                record().inside[2].swap(1, SeqCst);
                thread::yield_now();
                drop(permit);
            }
            3 => {
                // At first there is one token for all children, so they wait for each other.
                self.take();
                thread::yield_now();
                self.give();
            }
            4 => match self.barrier.wait_with(|| _ = self.actions.fetch_add(1)) {
                Ok(index) => {
                    assert!(index < CHILDREN);
                    record().passed[NUMBER.load(SeqCst) as usize].fetch_add(1, SeqCst);
                }
                Err(BarrierError::Broken) => {}
                Err(other) => panic!("{other}"),
            },
            5 => {
                self.sum.update(|sum| *sum += 1);
            }
            6 => {
                let own = Lock::new().unwrap();
                own.acquire().unwrap().leave_locked();
                own.release().unwrap();
            }
            7 => {
                self.many.acquire().forget();
                self.many.release();
            }
            8 => take(&self.gifts.0, &self.gifts.1),
            9 => {
                let (mut guard, died) = recovered(self.array.write(), OwnerDied::into_guard);
                let first = guard[0];
                assert!(
                    died || guard.iter().all(|element| *element == first),
                    "half written: {guard:?}"
                );
                guard.fill(first + 1);
                drop(guard);
                let (guard, died) = recovered(self.array.read(), OwnerDied::into_guard);
                assert!(
                    died || guard.iter().all(|element| *element == guard[0]),
                    "half written: {guard:?}"
                );
            }
            10 => {
                let permit = self.bounded.acquire();
                linger();
                drop(permit);
            }
            11 => {
                self.list.set(0, i64::from(std::process::id())).unwrap();
                assert!(self.list.get(0).is_some());
            }
            12 => {
                // The parent puts and gets as well, so the queue may be full or empty.
                let _ = self.queue.put_timeout(0, Duration::from_millis(1));
                let _ = self.queue.get_timeout(Duration::from_millis(1));
            }
            13 => {
                // Most often this times out, which breaks the barrier.
                let _ = self.brief.wait_timeout(Duration::from_micros(20));
                self.brief.reset();
            }
            _ => {
                self.pulse.set();
                self.pulse.clear();
                self.pulse.wait_timeout(Duration::from_micros(20));
            }
        }
    }

    fn give(&self) {
        give(&self.condition, &self.tokens);
    }

    fn take(&self) {
        take(&self.condition, &self.tokens);
    }

    /// Runs a child from beginning to end.
    fn live(&self, mut random: Random) {
        self.start.wait();
        for _ in 0..TIMES {
            let mut acts: Vec<u64> = (0..ACTS).collect();
            while !acts.is_empty() {
                let next = random.below(acts.len() as u64) as usize;
                self.act(acts.swap_remove(next));
            }
        }
    }

    /// Checks what must hold when all children have ended.
    fn check(&self, deaths: u32, stops: bool) {
        let limit = HANGS_AFTER;
        let (guard, died) =
            recovered(self.lock.acquire_timeout(limit).expect("free"), OwnerDied::into_guard);
        let [a, b] = self.counts.get();
        assert!(a == b || died, "counts {a} and {b}");
        assert!(died as u32 <= deaths);
        drop(guard);
        drop(self.lock.acquire().expect("nobody died since"));
        let (guard, died) =
            recovered(self.rlock.acquire_timeout(limit).expect("free"), OwnerDied::into_guard);
        let [deep, other] = self.deep.get();
        assert!(deep == other || died, "deep counts {deep} and {other}");
        drop(guard);
        let all = u64::from(TIMES) * CHILDREN as u64;
        let lost = u64::from(TIMES) * u64::from(deaths);
        for (what, count) in [("lock", a), ("rlock", deep), ("sum", self.sum.get())] {
            assert!((all - lost..=all).contains(&count), "{what}: {count} of {all}, {deaths} died");
        }
        assert_eq!(self.one.value(), 1, "the permit");
        let many = self.many.value();
        assert!((PERMITS - deaths..=PERMITS).contains(&many), "{many} permits, {deaths} died");
        assert_eq!(self.barrier.n_waiting(), 0);
        self.barrier.reset();
        assert_eq!(self.bounded.value(), 2, "the bounded permits");
        drop(self.array.write_timeout(limit).expect("nobody reads"));
        // If a child was stopped, the calls made meanwhile have broken the barrier.
        if deaths == 0 && !stops {
            assert_eq!((self.tokens.get(), self.actions.get()), (1, TIMES));
        }
        self.take();
        self.give();
    }
}

// ---- calls with a limit -------------------------------------------------------------------------

/// Polls a future once and drops it. No async call may block its thread.
fn polled<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A call's name, its timeout and the call. `try_` and async calls have no timeout.
type Limited = (&'static str, Duration, fn(&World));

/// Waits with the condition's lock. A notification received here was meant for a child, so it is
/// passed on.
fn wait_with_limit(condition: &Condition) {
    if let Some(acquired) = condition.acquire_timeout(Duration::ZERO) {
        let (guard, _) = recovered(acquired, OwnerDied::into_guard);
        let ((guard, notified), _) =
            recovered(condition.wait_timeout(guard, LIMIT), OwnerDied::into_guard);
        drop(guard);
        if notified {
            condition.notify_one();
        }
    }
}

/// Returns all calls with a timeout, all `try_` calls and all async calls.
fn limited() -> Vec<Limited> {
    let now = Duration::ZERO;
    // Everything acquired is released at once. If a guard is dropped within the report of a death,
    // the report remains for the next caller.
    vec![
        ("Lock::acquire_timeout", LIMIT, |world| drop(world.lock.acquire_timeout(LIMIT))),
        ("Lock::try_acquire", now, |world| drop(world.lock.try_acquire())),
        ("Lock::acquire_async", now, |world| drop(polled(world.lock.acquire_async()))),
        ("RLock::acquire_timeout", LIMIT, |world| drop(world.rlock.acquire_timeout(LIMIT))),
        ("RLock::try_acquire", now, |world| drop(world.rlock.try_acquire())),
        ("RLock::acquire_async", now, |world| drop(polled(world.rlock.acquire_async()))),
        ("Semaphore::acquire_timeout of one", LIMIT, |world| {
            drop(world.one.acquire_timeout(LIMIT))
        }),
        ("Semaphore::try_acquire of one", now, |world| drop(world.one.try_acquire())),
        ("Semaphore::acquire_async of one", now, |world| drop(polled(world.one.acquire_async()))),
        ("Semaphore::acquire_timeout", LIMIT, |world| drop(world.many.acquire_timeout(LIMIT))),
        ("Semaphore::try_acquire", now, |world| drop(world.many.try_acquire())),
        ("Semaphore::acquire_async", now, |world| drop(polled(world.many.acquire_async()))),
        ("Semaphore::release", now, |world| {
            if let Some(permit) = world.many.try_acquire() {
                permit.forget();
                world.many.release();
            }
        }),
        ("Semaphore::value", now, |world| _ = world.many.value()),
        ("BoundedSemaphore::acquire_timeout", LIMIT, |world| {
            drop(world.bounded.acquire_timeout(LIMIT))
        }),
        ("BoundedSemaphore::try_acquire", now, |world| drop(world.bounded.try_acquire())),
        ("BoundedSemaphore::acquire_async", now, |world| {
            drop(polled(world.bounded.acquire_async()))
        }),
        ("Condition::acquire_timeout", LIMIT, |world| drop(world.condition.acquire_timeout(LIMIT))),
        ("Condition::try_acquire", now, |world| drop(world.condition.try_acquire())),
        ("Condition::acquire_async", now, |world| drop(polled(world.condition.acquire_async()))),
        ("Condition::wait_timeout", LIMIT, |world| wait_with_limit(&world.condition)),
        ("Condition::wait_timeout of the gifts", LIMIT, |world| wait_with_limit(&world.gifts.0)),
        ("Condition::wait_async", now, |world| {
            if let Some(acquired) = world.condition.try_acquire() {
                let (guard, _) = recovered(acquired, OwnerDied::into_guard);
                drop(polled(world.condition.wait_async(guard)));
            }
        }),
        ("Event::wait_timeout", LIMIT, |world| _ = world.pulse.wait_timeout(LIMIT)),
        ("Event::wait_async", now, |world| _ = polled(world.pulse.wait_async())),
        ("Barrier::wait_timeout", LIMIT, |world| _ = world.barrier.wait_timeout(LIMIT)),
        ("Barrier::wait_async", now, |world| _ = polled(world.barrier.wait_async())),
        ("Barrier::wait_timeout of the brief one", LIMIT, |world| {
            _ = world.brief.wait_timeout(LIMIT)
        }),
        ("Barrier::abort", now, |world| world.barrier.abort()),
        ("Value::lock_timeout", LIMIT, |world| drop(world.sum.lock_timeout(LIMIT))),
        ("Value::try_lock", now, |world| drop(world.sum.try_lock())),
        ("Value::lock_async", now, |world| drop(polled(world.sum.lock_async()))),
        ("Array::read_timeout", LIMIT, |world| drop(world.array.read_timeout(LIMIT))),
        ("Array::try_read", now, |world| drop(world.array.try_read())),
        ("Array::write_timeout", LIMIT, |world| drop(world.array.write_timeout(LIMIT))),
        ("Array::try_write", now, |world| drop(world.array.try_write())),
        ("Array::read_async", now, |world| drop(polled(world.array.read_async()))),
        ("Array::write_async", now, |world| drop(polled(world.array.write_async()))),
        ("Queue::put_timeout", LIMIT, |world| _ = world.queue.put_timeout(1, LIMIT)),
        ("Queue::try_put", now, |world| _ = world.queue.try_put(2)),
        ("Queue::put_async", now, |world| _ = polled(world.queue.put_async(3))),
        ("Queue::get_timeout", LIMIT, |world| _ = world.queue.get_timeout(LIMIT)),
        ("Queue::try_get", now, |world| _ = world.queue.try_get()),
        ("Queue::get_async", now, |world| _ = polled(world.queue.get_async())),
    ]
}

/// Makes all these calls while the child is stopped.
///
/// # Panics
/// If one of them takes too long.
fn keep_their_limits(world: &World) {
    for (number, (call, limit, make)) in limited().into_iter().enumerate() {
        CALL.store(number as u32, SeqCst);
        let margin = if call.starts_with("Queue") { QUEUE_MARGIN } else { MARGIN };
        let took = (0..ATTEMPTS).map(|_| {
            let began = Instant::now();
            make(world);
            began.elapsed()
        });
        let mut slowest = Duration::ZERO;
        let in_time = took.into_iter().any(|took| {
            slowest = slowest.max(took);
            took <= limit + margin
        });
        assert!(in_time, "{call} with a limit of {limit:?} took {slowest:?}");
    }
}

/// The call that is being made, as an index into [`limited`].
static CALL: AtomicU32 = AtomicU32::new(0);

/// Ends the program if a call of [`keep_their_limits`] hangs.
fn with_watchdog(seed: u64, act: impl FnOnce()) {
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if ended.recv_timeout(HANGS_AFTER) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let call = limited()[CALL.load(SeqCst) as usize].0;
            println!(
                "EXECUTOR_SEED={seed} failed: {call} hangs while {:?} is stopped",
                stopped_at()
            );
            std::process::abort();
        }
    });
    act();
    drop(done);
    watchdog.join().unwrap();
}

// ---- a round ------------------------------------------------------------------------------------

/// How the first child is killed or stopped.
#[derive(Clone, Copy, Debug)]
enum Doom {
    At(Step, u32),
    After(Duration),
    Never,
}

/// What a round is meant to reach.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// The step, if it is not random.
    step: Option<Step>,
    /// The act in which this happens. `None` means any act.
    act: Option<u64>,
    /// Whether the child is stopped, and not killed at once.
    stops: bool,
}

fn round(seed: u64, wanted: Wanted) -> Option<Step> {
    let mut random = Random(seed);
    let steps = Step::SYNC;
    let doom = match wanted.step {
        // This step is reached at most once in a round.
        Some(Step::OwnerGaveBack) => Doom::At(Step::OwnerGaveBack, 1),
        Some(step) => Doom::At(step, 1 + random.below(4) as u32),
        None => match random.below(10) {
            0 => Doom::Never,
            1..3 => Doom::After(Duration::from_micros(random.below(3_000))),
            _ => Doom::At(
                steps[random.below(steps.len() as u64) as usize],
                1 + random.below(6) as u32,
            ),
        },
    };
    record().died.store(0, SeqCst);
    for word in record().inside.iter().chain(&record().passed) {
        word.store(0, SeqCst);
    }
    let world = World::new();
    let mut children = Vec::new();
    for number in 0..CHILDREN {
        let own = Random(random.next());
        // SAFETY: this process has one thread, and the child only uses the library and ends without
        // unwinding.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            NUMBER.store(number as u32, SeqCst);
            match (number, doom) {
                (0, Doom::At(step, times)) => {
                    WITHIN.store(wanted.act.map_or(0, |act| act as u32 + 1), SeqCst);
                    STOPS.store(wanted.stops, SeqCst);
                    LEFT.store(times, SeqCst);
                    STEP.store(step as u32 + 1, SeqCst);
                }
                // This step is reached only while another child is stopped and holds a mutex.
                (1, Doom::At(Step::OwnerGaveBack, times)) => {
                    STOPS.store(true, SeqCst);
                    LEFT.store(times, SeqCst);
                    STEP.store(Step::OwnerCounted as u32 + 1, SeqCst);
                }
                _ => {}
            }
            let lived = catch_unwind(AssertUnwindSafe(|| world.live(own))).is_ok();
            // SAFETY: ends this process.
            unsafe { libc::_exit(if lived { 0 } else { 101 }) };
        }
        children.push(pid);
    }
    let mut began = Instant::now();
    if random.below(2) == 0 {
        thread::sleep(Duration::from_micros(random.below(500)));
    }
    world.start.set();
    let victim = children[0];
    // On a thread of its own: giving may wait for a lock that a stopped child holds, and this
    // thread has to continue that child.
    let gifts_random = Random(random.next());
    let over = AtomicBool::new(false);
    let (mut killed, mut deaths, mut stopped) = (false, 0, false);
    // The child that is stopped for the victim's sake, and since when.
    let mut stands: Option<(libc::pid_t, Instant)> = None;
    thread::scope(|scope| {
        scope.spawn(|| give_gifts(&world, gifts_random, &over));
        let _over = SetOnDrop(&over);
        while !children.is_empty() {
            if let Doom::After(moment) = doom
                && !killed
                && began.elapsed() >= moment
            {
                killed = true;
                let signal = if wanted.stops { libc::SIGSTOP } else { libc::SIGKILL };
                // SAFETY: `victim` is a child that was not waited for.
                unsafe { libc::kill(victim, signal) };
            }
            // Continue the other child once the victim was hit, or when it was not hit in time.
            if let Some((other, since)) = stands
                && (stopped || deaths > 0 || since.elapsed() > STANDS)
            {
                stands = None;
                // SAFETY: `other` is a child that was not waited for.
                unsafe { libc::kill(other, libc::SIGCONT) };
            }
            let mut status = 0;
            // SAFETY: only asks for a child that has ended or was stopped.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) };
            if pid > 0 && libc::WIFSTOPPED(status) && pid != victim {
                stands = Some((pid, Instant::now()));
            } else if pid > 0 && libc::WIFSTOPPED(status) {
                with_watchdog(seed, || keep_their_limits(&world));
                stopped = true;
                let signal = if random.below(2) == 0 { libc::SIGCONT } else { libc::SIGKILL };
                // SAFETY: `victim` is a child that was not waited for.
                unsafe { libc::kill(victim, signal) };
                // The calls took time, so the round's time starts anew.
                began = Instant::now();
            } else if pid > 0 {
                children.retain(|child| *child != pid);
                if libc::WIFSIGNALED(status) && pid == victim {
                    deaths += 1;
                    // If the dead party had begun to release the barrier, the other parties must
                    // pass it.
                    let died = record().died.load(SeqCst);
                    if !wanted.stops
                        && [Step::BarrierReleasing, Step::BarrierTold]
                            .map(|step| step as u32 + 1)
                            .contains(&died)
                    {
                        let passed = || {
                            record().passed[1..]
                                .iter()
                                .all(|passed| passed.load(SeqCst) >= world.actions.get())
                        };
                        let died = Instant::now();
                        while !passed() {
                            assert!(
                                died.elapsed() < HANGS_AFTER / 3,
                                "they stand at a barrier that was to let them pass"
                            );
                            thread::sleep(Duration::from_micros(50));
                        }
                    }
                    // The others wait for the victim's tokens, and for the victim at the barrier.
                    world.barrier.abort();
                    for _ in 0..TIMES {
                        world.give();
                    }
                } else {
                    assert_eq!(status, 0, "a child failed: {status:#x}");
                }
            } else {
                if began.elapsed() > HANGS_AFTER {
                    let state = [
                        format!("{:?}", world.lock),
                        format!("{:?}", world.condition),
                        format!("{:?}", world.barrier),
                    ];
                    let tokens = world.tokens.get();
                    for child in &children {
                        // SAFETY: `child` was not waited for.
                        unsafe { libc::kill(*child, libc::SIGKILL) };
                    }
                    panic!(
                        "hangs: {} children, {doom:?}, {state:?}, {tokens} tokens",
                        children.len()
                    );
                }
                thread::sleep(Duration::from_micros(50));
            }
        }
    });
    world.check(deaths, stopped);
    // In a round that must stop the victim, the step was not reached.
    if wanted.stops && !stopped {
        return None;
    }
    stopped_at()
}

/// Returns the step at which the victim is.
fn stopped_at() -> Option<Step> {
    (record().died.load(SeqCst) as usize).checked_sub(1).map(|at| all_steps()[at])
}

/// Returns all steps, ordered by their numbers.
fn all_steps() -> Vec<Step> {
    Step::ALL.iter().chain(Step::QUEUE).chain(Step::SYNC).copied().collect()
}

static FAILED: AtomicBool = AtomicBool::new(false);

fn attempt(seed: u64, wanted: Wanted) -> Option<Step> {
    let ended = catch_unwind(AssertUnwindSafe(|| round(seed, wanted)));
    ended.unwrap_or_else(|_| {
        println!("EXECUTOR_SEED={seed} failed for {wanted:?}");
        FAILED.store(true, SeqCst);
        None
    })
}

/// Runs a round and counts the step at which its victim was hit. Ends the program if the round
/// failed.
fn count_attempt(counts: &mut BTreeMap<Step, u32>, seed: u64, wanted: Wanted) -> bool {
    let step = attempt(seed, wanted);
    assert!(!FAILED.load(SeqCst), "seed {seed}, {wanted:?}");
    if let Some(step) = step {
        *counts.entry(step).or_default() += 1;
    }
    step.is_some()
}

fn main() {
    kill_point::set_hook(on_step);
    let stops = number("EXECUTOR_STOPS").unwrap_or(0) != 0;
    let chance = Wanted { stops, ..Wanted::default() };
    let seeds = seeds();
    let all = number("EXECUTOR_SEED").is_none();
    let mut counts: BTreeMap<Step, u32> = Step::SYNC.iter().map(|step| (*step, 0)).collect();
    let began = Instant::now();
    for seed in seeds.clone() {
        count_attempt(&mut counts, seed, chance);
    }
    let rounds = seeds.end - seeds.start;
    let mut places = 0;
    if all && stops {
        // Run each step of each act, as far as the act reaches the step.
        for act in 0..ACTS {
            for (at, step) in Step::SYNC.iter().enumerate() {
                let wanted = Wanted { step: Some(*step), act: Some(act), stops };
                places +=
                    u32::from(count_attempt(&mut counts, 2 << 32 | act << 16 | at as u64, wanted));
            }
        }
    }
    if all {
        for (at, step) in Step::SYNC.iter().enumerate() {
            let mut tries = 0;
            while counts[step] == 0 {
                assert!(tries < EXTRA_ROUNDS_MAX, "nobody was there at {step:?}");
                tries += 1;
                let wanted = Wanted { step: Some(*step), ..chance };
                count_attempt(&mut counts, 1 << 32 | (at as u64) << 16 | tries, wanted);
            }
        }
    }
    println!("{rounds} rounds, {places} steps of acts in {:.1?}", began.elapsed());
    for (step, times) in &counts {
        println!("{times:6} {step:?}");
    }
}
