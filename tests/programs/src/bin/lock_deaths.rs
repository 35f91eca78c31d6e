//! Users of locks and their kin that die at every step of what those do, and at any moment; whatever happens, those who live
//! get on, and what the locks promise holds.
//!
//! Each round is made from its seed: a set of objects, three children (forked by hand, so that ten thousand rounds take no
//! hour) that use all of them in an order of their own, and which of them dies where. After that the parent looks: nobody
//! hangs, nobody was inside with another one, all permits are back, all tokens were taken or are there.
//!
//! `EXECUTOR_ROUNDS=10000` goes through that many seeds, `EXECUTOR_SEED=17` takes that one. What fails names its seed. At the
//! end it prints how often a child has died at each step.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use executor::{
    Acquired, Barrier, BarrierError, Condition, Event, Lock, OwnerDied, RLock, RawValue, Semaphore, Value,
};
use executor_core::kill_point::{self, Step};

/// Rounds when none are asked for.
const ROUNDS: u64 = 300;
/// A step that chance has left out gets this many rounds of its own.
const EXTRA_ROUNDS_MAX: u64 = 400;
/// A round takes some milliseconds, or a few tenths of a second after a death. Long after it should have ended.
const HANGS_AFTER: Duration = Duration::from_secs(30);
const CHILDREN: usize = 3;
const TIMES: u32 = 4;
const PERMITS: u32 = 100;

/// Small and seeded: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

// ---- where a child dies ----------------------------------------------------------------------------------------------

/// Plus one; 0 is nowhere.
static STEP: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// What parent and children write down about a round; the parent's own mapping, so that it does not depend on what is tested.
#[repr(C)]
struct Record {
    died: AtomicU32,
    inside: [AtomicU32; 3],
    /// How often each child has passed the barrier.
    passed: [AtomicU32; CHILDREN],
}

/// In a child: which one it is.
static NUMBER: AtomicU32 = AtomicU32::new(0);

fn record() -> &'static Record {
    static RECORD: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let at = *RECORD.get_or_init(|| {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, never unmapped, zeroed.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        at as usize
    });
    // SAFETY: mapped above, large enough, atomics only.
    unsafe { &*(at as *const Record) }
}

fn on_step(step: Step) {
    if STEP.load(SeqCst) == step as u32 + 1 && LEFT.fetch_sub(1, SeqCst) == 1 {
        record().died.store(step as u32 + 1, SeqCst);
        die();
    }
}

fn die() -> ! {
    // SAFETY: a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it was killed")
}

// ---- what they do ----------------------------------------------------------------------------------------------------

struct World {
    lock: Lock,
    /// Two counts that are the same outside of the lock.
    counts: RawValue<[u64; 2]>,
    rlock: RLock,
    deep: RawValue<[u64; 2]>,
    one: Semaphore,
    many: Semaphore,
    condition: Condition,
    tokens: RawValue<u32>,
    /// Here the parent gives, one for each time that a child takes, and no more.
    gifts: (Condition, RawValue<u32>),
    start: Event,
    pulse: Event,
    barrier: Barrier,
    actions: RawValue<u32>,
    sum: Value<u64>,
}

/// Takes what there is, and says whether somebody has died.
fn recovered<G>(acquired: Acquired<G>, into: impl FnOnce(OwnerDied<G>) -> G) -> (G, bool) {
    match acquired {
        Ok(guard) => (guard, false),
        Err(died) => (into(died), true),
    }
}

/// Counts who is inside of something in which only one may be.
fn alone(place: usize, died: bool, act: impl FnOnce()) {
    let inside = &record().inside[place];
    let mine = std::process::id();
    let before = inside.swap(mine, SeqCst);
    assert!(before == 0 || died, "{before} is inside of {place} with {mine}");
    act();
    thread::yield_now();
    assert_eq!(inside.swap(0, SeqCst), mine, "another one came into {place}");
}

/// Both counts, one after the other; whoever finds them apart after a death brings them together.
fn count(counts: &RawValue<[u64; 2]>, died: bool) {
    let [mut a, b] = counts.get();
    assert!(a == b || died, "{a} and {b} without a death");
    a += 1;
    counts.set([a, b]);
    thread::yield_now();
    counts.set([a, a]);
}

/// A token more, and one notification.
fn give(condition: &Condition, tokens: &RawValue<u32>) {
    let (guard, _) = recovered(condition.acquire(), OwnerDied::into_guard);
    tokens.set(tokens.get() + 1);
    condition.notify_one();
    drop(guard);
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
        }
    }

    fn act(&self, what: u64) {
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
                // A permit that came back from a dead one says nothing about it.
                record().inside[2].swap(1, SeqCst);
                thread::yield_now();
                drop(permit);
            }
            3 => {
                // There is one for all of them, at first: they wait for each other.
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

    /// What a child does from beginning to end.
    fn live(&self, mut random: Random) {
        self.start.wait();
        for _ in 0..TIMES {
            let mut acts: Vec<u64> = (0..10).collect();
            while !acts.is_empty() {
                let next = random.below(acts.len() as u64) as usize;
                self.act(acts.swap_remove(next));
            }
        }
    }

    /// What must hold when all children have ended.
    fn check(&self, deaths: u32) {
        let limit = HANGS_AFTER;
        let (guard, died) = recovered(self.lock.acquire_timeout(limit).expect("free"), OwnerDied::into_guard);
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
        if deaths == 0 {
            assert_eq!((self.tokens.get(), self.actions.get()), (1, TIMES));
        }
        self.take();
        self.give();
    }
}

// ---- a round ---------------------------------------------------------------------------------------------------------

/// How one of the children dies.
#[derive(Clone, Copy, Debug)]
enum Doom {
    At(Step, u32),
    After(Duration),
    Never,
}

fn round(seed: u64, wanted: Option<Step>) -> Option<Step> {
    let mut random = Random(seed);
    let steps = Step::SYNC;
    let doom = match wanted {
        Some(step) => Doom::At(step, 1 + random.below(4) as u32),
        None => match random.below(10) {
            0 => Doom::Never,
            1..3 => Doom::After(Duration::from_micros(random.below(3_000))),
            _ => Doom::At(steps[random.below(steps.len() as u64) as usize], 1 + random.below(6) as u32),
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
        // SAFETY: there is one thread; the child uses the library and ends without unwinding.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            NUMBER.store(number as u32, SeqCst);
            if let (0, Doom::At(step, times)) = (number, doom) {
                LEFT.store(times, SeqCst);
                STEP.store(step as u32 + 1, SeqCst);
            }
            let lived = catch_unwind(AssertUnwindSafe(|| world.live(own))).is_ok();
            // SAFETY: ends this process.
            unsafe { libc::_exit(if lived { 0 } else { 101 }) };
        }
        children.push(pid);
    }
    let began = Instant::now();
    if random.below(2) == 0 {
        thread::sleep(Duration::from_micros(random.below(500)));
    }
    world.start.set();
    let victim = children[0];
    let mut gifts = TIMES * CHILDREN as u32;
    let (mut killed, mut deaths) = (false, 0);
    while !children.is_empty() {
        if let Doom::After(moment) = doom
            && !killed
            && began.elapsed() >= moment
        {
            killed = true;
            // SAFETY: a child that was not waited for.
            unsafe { libc::kill(victim, libc::SIGKILL) };
        }
        if gifts > 0 && random.below(3) == 0 {
            gifts -= 1;
            give(&world.gifts.0, &world.gifts.1);
        }
        let mut status = 0;
        // SAFETY: asks for a child that has ended.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid > 0 {
            children.retain(|child| *child != pid);
            if libc::WIFSIGNALED(status) && pid == victim {
                deaths += 1;
                // If it has begun to let the others pass, they do.
                let died = record().died.load(SeqCst);
                if [Step::BarrierReleasing, Step::BarrierTold].map(|step| step as u32 + 1).contains(&died) {
                    let passed = || {
                        record().passed[1..].iter().all(|passed| passed.load(SeqCst) >= world.actions.get())
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
                // The others wait for its tokens, and for itself.
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
                    // SAFETY: a child that was not waited for.
                    unsafe { libc::kill(*child, libc::SIGKILL) };
                }
                panic!("hangs: {} children, {doom:?}, {state:?}, {tokens} tokens", children.len());
            }
            thread::sleep(Duration::from_micros(50));
        }
    }
    world.check(deaths);
    (record().died.load(SeqCst) as usize).checked_sub(1).map(|at| all_steps()[at])
}

/// By their numbers.
fn all_steps() -> Vec<Step> {
    Step::ALL.iter().chain(Step::QUEUE).chain(Step::SYNC).copied().collect()
}

static FAILED: AtomicBool = AtomicBool::new(false);

fn attempt(seed: u64, wanted: Option<Step>) -> Option<Step> {
    match catch_unwind(AssertUnwindSafe(|| round(seed, wanted))) {
        Ok(step) => step,
        Err(_) => {
            println!(
                "EXECUTOR_SEED={seed} failed{}",
                wanted.map_or(String::new(), |step| format!(" for {step:?}"))
            );
            FAILED.store(true, SeqCst);
            None
        }
    }
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    kill_point::set_hook(on_step);
    let seeds = match number("EXECUTOR_SEED") {
        Some(seed) => seed..seed + number("EXECUTOR_ROUNDS").unwrap_or(1),
        None => 0..number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS),
    };
    let all = number("EXECUTOR_SEED").is_none();
    let mut died = vec![0_u32; Step::SYNC.len()];
    let first = Step::ALL.len() + Step::QUEUE.len();
    let began = Instant::now();
    for seed in seeds.clone() {
        if let Some(step) = attempt(seed, None) {
            died[step as usize - first] += 1;
        }
        assert!(!FAILED.load(SeqCst), "seed {seed}");
    }
    let rounds = seeds.end - seeds.start;
    if all {
        for (at, step) in Step::SYNC.iter().enumerate() {
            let mut tries = 0;
            while died[at] == 0 {
                assert!(tries < EXTRA_ROUNDS_MAX, "nobody has died at {step:?}");
                tries += 1;
                if attempt(1 << 32 | (at as u64) << 16 | tries, Some(*step)).is_some() {
                    died[at] += 1;
                }
                assert!(!FAILED.load(SeqCst), "{step:?}, try {tries}");
            }
        }
    }
    println!("{rounds} rounds in {:.1?}", began.elapsed());
    for (step, times) in Step::SYNC.iter().zip(&died) {
        println!("{times:6} {step:?}");
    }
}
