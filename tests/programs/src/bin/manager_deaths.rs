//! Clients and servers of a manager that are killed at every step of a call, of connecting and of
//! sending a handle on, and at random moments. Whatever a dead client had must come back, and when
//! the server has died, every call must say so.
//!
//! Each round is determined by its seed: a manager, one to three client processes of one or two
//! threads, what they do, and which process dies where. A client dies by a signal, by `_exit` or by
//! `abort`, inside a call or between two. What the clients have done is recorded in memory that is
//! independent of the manager. If the server lives, this is checked when all clients have ended:
//!
//! - The locks can be acquired. The next owner is told if the one before died, and otherwise finds
//!   both halves of what the lock protects changed.
//! - All permits are back, and nobody is counted as waiting for a condition or at a barrier.
//! - Each update, each item of the list and each item of the queue is there once if its call has
//!   returned, and at most once if its caller died inside the call. A dead client loses at most the
//!   items that it was just getting.
//! - The pool runs a task.
//! - The server has as many objects as this process has handles, and none after the last handle.
//!
//! A client is given handles, or has the address of a Unix socket or of a TCP port, where it finds
//! the objects by their name.
//!
//! If the server dies, each client's next call returns `ManagerError::Gone`, so each client ends.
//! After each round no process and no descriptor is left.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often a process died at each step.

#[path = "../dying.rs"]
mod dying;

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::DirBuilderExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::pin,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    task::{self, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, ROUNDS, Random, number, seeds};
use executor::{
    Address, AuthKey, Child, Context, GetError, PutError, StartMethod,
    manager::{
        Barrier, Condition, Dict, Event, Identity, List, Lock, LockGuard, Manager, ManagerError,
        Pool, Queue, Semaphore, Trust,
    },
    prelude::*,
};
use executor_core::kill_point::{self, Step};

/// Names the file of the record.
const RECORD: &str = "EXECUTOR_TEST_RECORD";

const CLIENTS: usize = 3;
const THREADS: usize = 2;
/// A thread of a client. Each has its own numbers of items.
const ACTORS: usize = CLIENTS * THREADS;
/// Number of things that a thread does, if the server lives.
const ACTS: usize = 40;
const KEYS: usize = 4;
const PERMITS: u64 = 2;
/// Descriptors of the connection over which the last handle came: it is kept for the next handle of
/// the same server, and closed when a handle of another one comes. What each round leaves is more
/// than that after a few.
const KEPT: usize = 2;
/// Time after which a check counts as failed. It allows for a busy machine.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after the server's death within which all clients must have ended.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Time after which a server that has not come to its step is killed from outside.
const SERVER_LIVES: Duration = Duration::from_millis(300);
/// Number of objects of which this process has handles at the end. A condition has a lock.
const OBJECTS: u64 = 14;
const EXIT_CODE: i32 = 7;

// ---- the record ---------------------------------------------------------------------------------

/// Says which process this is.
const NOBODY: u32 = 0;
const SERVER: u32 = 1;
const CLIENT: u32 = 2;

/// A record shared with processes that may die at any moment. It consists of atomics, of which zero
/// is a valid value.
#[repr(C)]
struct Record {
    /// Which process dies, the step plus one, how often it reaches that step, and how it dies.
    victim: AtomicU32,
    step: AtomicU32,
    left: AtomicU32,
    how: AtomicU32,
    /// The step plus one at which it has died.
    died_at: AtomicU32,
    /// The thread that holds the lock, plus one.
    in_lock: AtomicU32,
    /// Handles that came when their object was gone.
    orphans: AtomicU32,
    actors: [Actor; ACTORS],
    /// How often each item of each actor was got.
    got: [[AtomicU8; ACTS]; ACTORS],
}

/// What a thread of a client has done.
#[repr(C)]
struct Actor {
    added: [Calls; KEYS],
    pushed: Calls,
    counted: Calls,
    put: Calls,
    /// How many items it may be getting at this moment.
    unsure: AtomicU64,
}

/// How many calls have begun and have returned.
#[repr(C)]
struct Calls {
    begun: AtomicU64,
    done: AtomicU64,
}

impl Calls {
    fn clear(&self) {
        self.begun.store(0, SeqCst);
        self.done.store(0, SeqCst);
    }

    fn begun(&self) -> u64 {
        self.begun.load(SeqCst)
    }

    fn done(&self) -> u64 {
        self.done.load(SeqCst)
    }
}

impl Record {
    fn clear(&self) {
        let Record { victim, step, left, how, died_at, in_lock, orphans, .. } = self;
        for word in [victim, step, left, how, died_at, in_lock, orphans] {
            word.store(0, SeqCst);
        }
        for actor in &self.actors {
            actor
                .added
                .iter()
                .chain([&actor.pushed, &actor.put, &actor.counted])
                .for_each(Calls::clear);
            actor.unsure.store(0, SeqCst);
        }
        self.got.iter().flatten().for_each(|got| got.store(0, SeqCst));
    }
}

static OWN: OnceLock<&'static Record> = OnceLock::new();

fn record() -> &'static Record {
    OWN.get().expect("every process of this program has it")
}

/// Which process this is, or `NOBODY`. A client's number is added to `CLIENT`.
static ME: AtomicU32 = AtomicU32::new(NOBODY);

/// How a process dies.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum How {
    Killed,
    Exits,
    Aborts,
}

impl How {
    const ALL: [How; 3] = [How::Killed, How::Exits, How::Aborts];

    fn die(self) -> ! {
        // SAFETY: ends this process.
        unsafe {
            match self {
                How::Killed => {
                    libc::kill(libc::getpid(), libc::SIGKILL);
                    loop {
                        libc::pause();
                    }
                }
                How::Exits => libc::_exit(EXIT_CODE),
                How::Aborts => libc::abort(),
            }
        }
    }
}

fn on_step(step: Step) {
    let me = ME.load(SeqCst);
    if me == NOBODY {
        return;
    }
    let record = record();
    if record.victim.load(SeqCst) == me
        && record.step.load(SeqCst) == step as u32 + 1
        && record.left.fetch_sub(1, SeqCst) == 1
    {
        record.died_at.store(step as u32 + 1, SeqCst);
        How::ALL[record.how.load(SeqCst) as usize].die();
    }
}

// ---- what the processes do ----------------------------------------------------------------------

/// The actor, the number of the item, some text, and sometimes a handle.
type Item = (u32, u32, String, Option<Event>);

/// The objects that the clients share. Each client has a permit of the second semaphore as long as
/// the server knows it.
type Shared = (
    Dict<u32, u64>,
    Dict<u32, Event>,
    List<(u32, u32)>,
    Queue<Item>,
    (Lock, Dict<u8, u64>),
    (Semaphore, Semaphore),
    Condition,
    Barrier,
    Event,
    executor::Queue<Event>,
    Vec<Event>,
    (CounterProxy, Pool),
);

/// The objects that clients find that come by an address.
type Published = (
    Dict<u32, u64>,
    Dict<u32, Event>,
    List<(u32, u32)>,
    Queue<Item>,
    (Lock, Dict<u8, u64>),
    (Semaphore, Semaphore),
    Condition,
    Barrier,
    Event,
    (CounterProxy, Pool),
);

/// The name under which they find them.
const NAME: &str = "objects";
/// What they have to know.
const KEY: &str = "a key";

/// How a client gets to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// By the handles that it is given.
    Near,
    Unix,
    Tcp,
}

impl Way {
    const BY_ADDRESS: [Way; 2] = [Way::Unix, Way::Tcp];
    const ALL: [Way; 5] = [Way::Near, Way::Near, Way::Near, Way::Unix, Way::Tcp];
}

/// The server's identity, and the fingerprint that clients trust. All rounds have the same one.
static IDENTITY: LazyLock<(Identity, String)> = LazyLock::new(|| {
    let identity = Identity::generate().expect("random numbers");
    let fingerprint = identity.fingerprint().to_string();
    (identity, fingerprint)
});

/// What a client is given that comes by an address: the address, the fingerprint, and what does not
/// belong to the manager.
type Directions = (String, String, executor::Queue<Event>);

/// Comes to the server by its address.
fn come(directions: &Directions) -> Result<(Manager, Shared), ManagerError> {
    let (address, fingerprint, sent) = directions;
    let address: Address = address.parse().expect("an address");
    let trust = Trust::fingerprint(fingerprint.parse().expect("a fingerprint"));
    let connector = Manager::connector(&address, &AuthKey::new(KEY)).trust(trust);
    let manager = connector.timeout(CHECK_TIMEOUT).connect()?;
    let found: Option<Published> = manager.published(NAME)?;
    let (counts, handles, list, queue, lock, semaphore, condition, barrier, event, counter) =
        found.expect("it is published");
    let sent = sent.clone();
    let shared = (
        counts,
        handles,
        list,
        queue,
        lock,
        semaphore,
        condition,
        barrier,
        event,
        sent,
        Vec::new(),
        counter,
    );
    Ok((manager, shared))
}

/// The folder of the Unix sockets. Removed with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(seed: u64) -> Self {
        let name = format!("executor-manager-deaths-{}-{seed}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&folder).expect("a folder");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An object of a type of our own.
struct Counter {
    n: u64,
    /// A handle that a client has given to it.
    event: Option<Event>,
    /// How many of them there are in this process.
    _counted: Counted,
}

static COUNTERS: AtomicU64 = AtomicU64::new(0);

struct Counted;

impl Counted {
    fn new() -> Self {
        COUNTERS.fetch_add(1, SeqCst);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTERS.fetch_sub(1, SeqCst);
    }
}

#[managed]
#[allow(unreachable_pub, reason = "only public methods can be called")]
impl Counter {
    pub fn new() -> Self {
        Counter { n: 0, event: None, _counted: Counted::new() }
    }

    pub fn add(&mut self) -> u64 {
        self.n += 1;
        self.n
    }

    /// Takes so long that another thread of the server goes on.
    pub fn add_slowly(&mut self) -> u64 {
        thread::sleep(Duration::from_millis(2));
        self.add()
    }

    pub fn get(&self) -> u64 {
        self.n
    }

    /// Keeps a handle, and returns the one that it had.
    pub fn exchange(&mut self, event: Option<Event>) -> Option<Event> {
        std::mem::replace(&mut self.event, event)
    }

    /// Uses the handle, in the server, and returns it.
    pub fn event(&self) -> Result<Option<Event>, ManagerError> {
        self.event.iter().try_for_each(Event::set)?;
        Ok(self.event.clone())
    }

    /// Returns how many counters the server has.
    pub fn counters(&self) -> u64 {
        COUNTERS.load(SeqCst)
    }
}

/// Runs in the server before it serves.
#[task]
fn begin_as_server() {
    ME.store(SERVER, SeqCst);
}

#[task]
fn one_more(count: Option<u64>) -> u64 {
    count.unwrap_or(0) + 1
}

/// Takes so long that another thread of the server goes on.
#[task]
fn one_more_slowly(count: Option<u64>) -> u64 {
    thread::sleep(Duration::from_millis(4));
    count.unwrap_or(0) + 1
}

/// Polls a future once and drops it.
fn polled<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut task::Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn text(round: u64, actor: u32, number: u32) -> String {
    let mut random = Random(round ^ u64::from(actor * 1000 + number));
    // The first large one of a process goes through its lane, the next ones in segments.
    let len = match random.below(9) {
        0..6 => random.below(100),
        6 => 20_000 + random.below(20_000),
        _ => 600_000,
    };
    char::from(b'a' + (number % 26) as u8).to_string().repeat(len as usize)
}

/// Checks that an item is complete, and records it.
fn note_got(round: u64, (actor, number, text, _): &Item) {
    assert!(*text == self::text(round, *actor, *number), "item {number} of {actor} is torn");
    let got = &record().got[*actor as usize][*number as usize];
    assert_eq!(got.fetch_add(1, SeqCst), 0, "item {number} of {actor} came twice");
}

/// Does what a lock protects: both values change, or the next owner is told that the owner died.
fn change_pair(guard: &LockGuard<'_>, pair: &Dict<u8, u64>, name: u32) -> Result<(), ManagerError> {
    let before = record().in_lock.swap(name, SeqCst);
    let values = pair.get_many([&0_u8, &1])?;
    if guard.owner_died() {
        pair.insert(&1, &values[0].unwrap_or(0))?;
    } else {
        assert_eq!(before, 0, "two threads hold the lock");
        assert_eq!(values[0], values[1], "the last owner died, and nobody was told");
    }
    let next = values[0].unwrap_or(0) + 1;
    pair.insert(&0, &next)?;
    kill_point::reached(Step::ClientInLock);
    pair.insert(&1, &next)?;
    record().in_lock.store(0, SeqCst);
    Ok(())
}

/// A thread of a client.
struct Player<'a> {
    round: u64,
    name: u32,
    shared: &'a Shared,
    random: Random,
    /// Handles that it may send on.
    pocket: Vec<Event>,
}

impl Player<'_> {
    fn actor(&self) -> &'static Actor {
        &record().actors[self.name as usize]
    }

    fn moment(&mut self) -> Duration {
        Duration::from_micros(self.random.below(3_000))
    }

    fn act(&mut self) -> Result<(), ManagerError> {
        match self.random.below(23) {
            0..3 => self.add(),
            3 => self.push(),
            4..6 => self.put(),
            6..8 => return self.get(),
            8..10 => self.lock(),
            10 => self.semaphore(),
            11 => self.condition(),
            12 => self.barrier(),
            13 => self.event(),
            14 => self.send_by_dict(),
            15 => self.receive_by_dict(),
            16 => self.send_by_queue(),
            17..19 => self.count(),
            19 => self.run_a_task(),
            20..22 => self.exchange(),
            _ => {
                let dropped = self.random.below(self.pocket.len() as u64 + 1) as usize;
                if dropped < self.pocket.len() {
                    self.pocket.swap_remove(dropped);
                }
                self.shared.0.len().map(drop)
            }
        }?;
        if self.actor().unsure.load(SeqCst) > 0 {
            self.give_back()?;
        }
        Ok(())
    }

    /// Waits until the queue has everything back that calls have brought which this thread has
    /// abandoned.
    fn give_back(&self) -> Result<(), ManagerError> {
        // Replies come in the order of the requests, so this call's comes after those. The second
        // call comes behind what is given back, which may be too large to be sent at once.
        self.shared.0.len()?;
        self.shared.0.len()?;
        self.actor().unsure.store(0, SeqCst);
        Ok(())
    }

    fn add(&mut self) -> Result<(), ManagerError> {
        let key = self.random.below(KEYS as u64);
        let calls = &self.actor().added[key as usize];
        calls.begun.fetch_add(1, SeqCst);
        if self.random.one_in(12) {
            self.shared.0.update_or_insert(&(key as u32), one_more_slowly::with())?;
        } else {
            self.shared.0.update_or_insert(&(key as u32), one_more::with())?;
        }
        calls.done.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Gives a handle to the object of our own type, and takes another one.
    fn exchange(&mut self) -> Result<(), ManagerError> {
        let counter = &self.shared.11.0;
        let taken = match self.random.below(3) {
            0 => counter.event()?,
            1 => counter.exchange(None)?,
            _ => counter.exchange(self.pocket.pop())?,
        };
        if let Some(event) = taken {
            event.is_set()?;
            self.pocket.push(event);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), ManagerError> {
        let counter = &self.shared.11.0;
        if self.random.one_in(3) {
            let (before, after) = (counter.get()?, counter.get()?);
            assert!(before <= after, "{after} was counted after {before}");
            return Ok(());
        }
        let calls = &self.actor().counted;
        calls.begun.fetch_add(1, SeqCst);
        if self.random.one_in(6) {
            counter.add_slowly()?;
        } else {
            counter.add()?;
        }
        calls.done.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Runs a task in a worker of the server, or leaves one there.
    fn run_a_task(&mut self) -> Result<(), ManagerError> {
        let pool = &self.shared.11.1;
        let number = self.random.below(1000);
        match self.random.below(4) {
            0 => drop(pool.submit(one_more::task(Some(number)))),
            1 => drop(polled(pool.apply_async(one_more::task(Some(number))))),
            _ => assert_eq!(pool.apply(one_more::task(Some(number)))?, number + 1),
        }
        Ok(())
    }

    fn push(&mut self) -> Result<(), ManagerError> {
        let calls = &self.actor().pushed;
        let number = calls.begun.fetch_add(1, SeqCst) as u32;
        self.shared.2.push(&(self.name, number))?;
        calls.done.fetch_add(1, SeqCst);
        Ok(())
    }

    fn put(&mut self) -> Result<(), ManagerError> {
        let calls = &self.actor().put;
        let number = calls.begun() as u32;
        // An item that found no room is tried again under the same number.
        if number as usize == ACTS || calls.begun() != calls.done() {
            return Ok(());
        }
        let handle = if self.random.one_in(3) { self.pocket.pop() } else { None };
        let item = (self.name, number, text(self.round, self.name, number), handle);
        calls.begun.fetch_add(1, SeqCst);
        let timeout = self.moment();
        match self.shared.3.put_timeout(&item, timeout) {
            Ok(true) => drop(calls.done.fetch_add(1, SeqCst)),
            Ok(false) => drop(calls.begun.fetch_sub(1, SeqCst)),
            // The machine is busy. It is unknown whether the item was put, so this thread puts no
            // others.
            Err(ManagerError::TimedOut) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn get(&mut self) -> Result<(), ManagerError> {
        let queue = &self.shared.3;
        let timeout = self.moment();
        self.actor().unsure.fetch_add(1, SeqCst);
        let (item, is_known) = match self.random.below(4) {
            0 => (queue.try_get()?, true),
            1 => (polled(queue.get_async()).transpose()?, false),
            _ => (queue.get_timeout(timeout)?, false),
        };
        if let Some(item) = &item {
            note_got(self.round, item);
        }
        if is_known || item.is_some() {
            self.actor().unsure.fetch_sub(1, SeqCst);
        }
        self.pocket.extend(item.and_then(|item| item.3));
        Ok(())
    }

    fn lock(&mut self) -> Result<(), ManagerError> {
        let (lock, pair) = &self.shared.4;
        let timeout = self.moment();
        let guard = match self.random.below(4) {
            0 => lock.acquire_timeout(timeout)?,
            1 => polled(lock.acquire_async()).transpose()?,
            _ => Some(lock.acquire()?),
        };
        if let Some(guard) = guard {
            change_pair(&guard, pair, self.name + 1)?;
            if self.random.one_in(2) {
                guard.release()?;
            }
        }
        Ok(())
    }

    fn semaphore(&mut self) -> Result<(), ManagerError> {
        let timeout = self.moment();
        let _permit = match self.random.below(3) {
            0 => polled(self.shared.5.0.acquire_async()).transpose()?,
            1 => self.shared.5.0.acquire_timeout(timeout)?,
            _ => Some(self.shared.5.0.acquire()?),
        };
        self.shared.8.is_set().map(drop)
    }

    fn condition(&mut self) -> Result<(), ManagerError> {
        let condition = &self.shared.6;
        let timeout = self.moment();
        let guard = condition.acquire()?;
        match self.random.below(4) {
            0..2 => condition.notify_all(&guard).map(drop),
            2 => polled(condition.wait_async(guard)).transpose().map(drop),
            _ => condition.wait_timeout(guard, timeout).map(drop),
        }
    }

    fn barrier(&mut self) -> Result<(), ManagerError> {
        let timeout = self.moment();
        match self.shared.7.wait_timeout(timeout) {
            Ok(Ok(_)) | Err(ManagerError::TimedOut) => Ok(()),
            Ok(Err(_)) => self.shared.7.reset(),
            Err(error) => Err(error),
        }
    }

    fn event(&mut self) -> Result<(), ManagerError> {
        let timeout = self.moment();
        let event = &self.shared.8;
        match self.random.below(3) {
            0 => event.set(),
            1 => event.clear(),
            _ => event.wait_timeout(timeout).map(drop),
        }
    }

    fn send_by_dict(&mut self) -> Result<(), ManagerError> {
        let key = self.random.below(4) as u32;
        match self.pocket.pop() {
            Some(handle) => self.shared.1.insert(&key, &handle).map(drop),
            None => self.shared.1.remove(&key).map(drop),
        }
    }

    fn receive_by_dict(&mut self) -> Result<(), ManagerError> {
        let key = self.random.below(4) as u32;
        let handle = match self.random.below(2) {
            0 => self.shared.1.get(&key)?,
            _ => self.shared.1.remove(&key)?,
        };
        if let Some(handle) = handle {
            handle.set()?;
            self.pocket.push(handle);
        }
        Ok(())
    }

    /// Sends or receives a handle through memory that is independent of the manager.
    fn send_by_queue(&mut self) -> Result<(), ManagerError> {
        let queue = &self.shared.9;
        if self.random.one_in(2)
            && let Some(handle) = self.pocket.pop()
        {
            return match queue.try_put(handle) {
                Ok(()) => Ok(()),
                Err(PutError::Full(handle) | PutError::Busy(handle)) => {
                    self.pocket.push(handle);
                    Ok(())
                }
                // It could not be encoded. If the server is gone, this call says so.
                Err(error) => {
                    self.shared.0.len()?;
                    panic!("{error:?}");
                }
            };
        }
        match queue.try_get() {
            Ok(handle) => {
                // Some are sent on before they are used.
                if self.random.one_in(4) && queue.try_put(handle.clone()).is_ok() {
                    return Ok(());
                }
                match handle.is_set() {
                    Ok(_) => self.pocket.push(handle),
                    // Whoever has sent it over TCP has ended before it came.
                    Err(ManagerError::NoObject) => drop(record().orphans.fetch_add(1, SeqCst)),
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            Err(GetError::Empty | GetError::Busy) => Ok(()),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// When a client ends.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u32)]
enum End {
    /// After its acts. The server lives.
    Acts,
    /// When the server is gone.
    Server,
    /// After its acts, or when the server is gone.
    Either,
}

impl End {
    const ALL: [End; 3] = [End::Acts, End::Server, End::Either];
}

/// What one thread of a client does. Returns whether the server is gone.
fn play(round: u64, name: u32, shared: &Shared, dies: Option<(u32, u32)>, end: End) -> bool {
    let random = Random(round ^ 0x9a3e << 40 ^ u64::from(name));
    let mut player = Player { round, name, shared, random, pocket: shared.10.clone() };
    let began = Instant::now();
    for count in 0.. {
        if let Some((_, how)) = dies.filter(|(at, _)| *at == count) {
            match How::ALL[how as usize] {
                // Runs what is registered for the end of the process.
                How::Exits => std::process::exit(EXIT_CODE),
                how => how.die(),
            }
        }
        match player.act() {
            Ok(()) => {}
            Err(ManagerError::Gone(_)) if end != End::Acts => return true,
            // A handle that came over TCP to a process that has no connection there.
            Err(ManagerError::NotConnected { .. }) if end != End::Acts => return true,
            Err(error) => panic!("{error:?}"),
        }
        if end != End::Server && count as usize == ACTS {
            break;
        }
        assert!(began.elapsed() < HANGS_AFTER, "the server is not gone");
    }
    match player.give_back() {
        Err(ManagerError::Gone(_)) if end != End::Acts => true,
        given => {
            given.expect("the server lives");
            false
        }
    }
}

/// Whether the server is gone, for a client that may find that.
fn is_gone(error: ManagerError, end: End) -> bool {
    let is_gone = matches!(error, ManagerError::Gone(_) | ManagerError::NotConnected { .. });
    assert!(is_gone && end != End::Acts, "{error:?}");
    true
}

/// A client that comes by an address, as [`client()`] otherwise.
#[task]
fn client_by_address(
    round: u64,
    place: u32,
    threads: u32,
    dies: Option<(u32, u32)>,
    end: u32,
    directions: Directions,
) -> bool {
    ME.store(CLIENT + place, SeqCst);
    let end = End::ALL[end as usize];
    match come(&directions) {
        Ok((manager, shared)) => {
            // Few do that otherwise, and it has steps of its own over TCP.
            match manager.event() {
                Ok(event) => drop(shared.9.try_put(event)),
                Err(error) => return is_gone(error, end),
            }
            play_all(round, place, threads, dies, end, &shared)
        }
        Err(error) => is_gone(error, end),
    }
}

/// A client. With `dies`, its first thread ends the process after so many acts, in this way.
/// `end` is the number of an [`End`].
#[task]
fn client(
    round: u64,
    place: u32,
    threads: u32,
    dies: Option<(u32, u32)>,
    end: u32,
    shared: Shared,
) -> bool {
    ME.store(CLIENT + place, SeqCst);
    play_all(round, place, threads, dies, End::ALL[end as usize], &shared)
}

/// All threads of a client.
fn play_all(
    round: u64,
    place: u32,
    threads: u32,
    dies: Option<(u32, u32)>,
    end: End,
    shared: &Shared,
) -> bool {
    match shared.5.1.acquire() {
        // It comes back when the server has served this client's last request.
        Ok(known) => known.forget(),
        Err(error) => return is_gone(error, end),
    }
    let first = place * THREADS as u32;
    thread::scope(|scope| {
        let others = (1..threads)
            .map(|thread| scope.spawn(move || play(round, first + thread, shared, None, end)))
            .collect::<Vec<_>>();
        let gone = play(round, first, shared, dies, end);
        let others = others.into_iter().map(|thread| thread.join().expect("it has not panicked"));
        others.fold(gone, |gone, other| gone && other)
    })
}

// ---- a round ------------------------------------------------------------------------------------

/// Who dies, and where.
#[derive(Clone, Copy, Debug)]
enum Doom {
    Nobody,
    At {
        server: bool,
        step: Step,
        times: u32,
        how: How,
    },
    /// Between two calls.
    Between {
        acts: u32,
        how: How,
    },
    /// Killed from outside.
    After {
        server: bool,
        time: Duration,
    },
}

/// Steps of the rings, which both sides reach.
const RINGS: [Step; 5] =
    [Step::HeadRead, Step::MessageCopied, Step::TailStored, Step::WordsWritten, Step::HeadStored];

/// A step, and whether the server reaches it.
type Place = (bool, Step);

fn places() -> Vec<Place> {
    let of = |server, steps: &[Step]| {
        steps.iter().chain(&RINGS).map(|step| (server, *step)).collect::<Vec<_>>()
    };
    [of(false, Step::MANAGER_CLIENT), of(true, Step::MANAGER_SERVER)].concat()
}

/// Returns how clients come to the server, if that matters for a step.
fn ways_to(step: Step) -> Option<&'static [Way]> {
    match step {
        Step::ClientAddressReached
        | Step::ClientMeets
        | Step::GateListens
        | Step::GateAccepted
        | Step::GateHeard
        | Step::GateCloses => Some(&Way::BY_ADDRESS),
        Step::ClientHasDoor | Step::GateDoorGiven => Some(&[Way::Unix]),
        Step::ClientWelcomed
        | Step::ClientMarkedTaken
        | Step::ClientMarkedTold
        | Step::GateFarMet
        | Step::ClientFarPipeMade
        | Step::ClientFarLeased
        | Step::ClientFarLeaseEnded => Some(&[Way::Tcp]),
        _ => None,
    }
}

struct Plan {
    seed: u64,
    doom: Doom,
    /// How each client comes to the server.
    ways: Vec<Way>,
    /// The number of threads of each client.
    clients: Vec<u32>,
    victim: u32,
    methods: Vec<StartMethod>,
    /// Clients that do not wait for the server's death, so that the server sees clients that end.
    leave: Vec<bool>,
    capacity: Option<usize>,
}

impl Plan {
    fn new(seed: u64, wanted: Option<Place>, places: &[Place]) -> Self {
        let mut random = Random(seed);
        let at = |random: &mut Random, (server, step): Place| {
            let most = random.pick(&[1, 4, 40]);
            let (times, how) = (1 + random.below(most) as u32, random.pick(&How::ALL));
            Doom::At { server, step, times, how }
        };
        let doom = match wanted {
            Some(place) => at(&mut random, place),
            None => match random.below(20) {
                0..12 => {
                    let place = random.pick(places);
                    at(&mut random, place)
                }
                12..14 => {
                    let acts = random.below(ACTS as u64) as u32;
                    Doom::Between { acts, how: random.pick(&How::ALL) }
                }
                14..18 => {
                    let time = Duration::from_micros(random.below(60_000));
                    Doom::After { server: random.one_in(3), time }
                }
                _ => Doom::Nobody,
            },
        };
        let count = 1 + random.below(CLIENTS as u64);
        let ways = match doom {
            Doom::At { step, .. } => ways_to(step),
            _ => None,
        };
        let ways = (0..count).map(|_| random.pick(ways.unwrap_or(&Way::ALL))).collect();
        Plan {
            seed,
            doom,
            ways,
            clients: (0..count).map(|_| 1 + u32::from(random.one_in(3))).collect(),
            victim: random.below(count) as u32,
            methods: (0..count)
                .map(|_| random.pick(&[StartMethod::Fork, StartMethod::Spawn]))
                .collect(),
            capacity: random.pick(&[None, Some(2)]),
            leave: (0..count).map(|_| random.one_in(3)).collect(),
        }
    }

    fn end(&self, place: u32) -> End {
        match (self.server_dies(), self.leave[place as usize]) {
            (false, _) => End::Acts,
            (true, false) => End::Server,
            (true, true) => End::Either,
        }
    }

    /// Whether the server dies while clients use it.
    fn server_dies(&self) -> bool {
        match self.doom {
            // It is at this step when the manager is dropped.
            Doom::At { step: Step::ManagerOwnerGone | Step::GateCloses, .. } => false,
            Doom::At { server, .. } | Doom::After { server, .. } => server,
            _ => false,
        }
    }

    fn client_dies(&self) -> bool {
        match self.doom {
            Doom::At { server, .. } | Doom::After { server, .. } => !server,
            Doom::Between { .. } => true,
            Doom::Nobody => false,
        }
    }
}

/// Waits until something is so.
fn eventually<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: T,
    mut actual: impl FnMut() -> Result<T, ManagerError>,
) -> Result<(), ManagerError> {
    let began = Instant::now();
    loop {
        let now = actual()?;
        if now == expected {
            return Ok(());
        }
        assert!(began.elapsed() < CHECK_TIMEOUT, "{what}: {now:?}, and not {expected:?}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn start(manager: &Manager, plan: &Plan) -> Result<Shared, ManagerError> {
    let events = (0..4).map(|_| manager.event()).collect::<Result<Vec<_>, _>>()?;
    Ok((
        manager.dict([])?,
        manager.dict([])?,
        manager.list([])?,
        manager.queue(plan.capacity)?,
        (manager.lock()?, manager.dict([(0, 0), (1, 0)])?),
        (manager.semaphore(PERMITS as u32)?, manager.semaphore(CLIENTS as u32)?),
        manager.condition()?,
        manager.barrier(2)?,
        manager.event()?,
        executor::Queue::bounded(4).expect("a queue"),
        events,
        {
            // One that is dropped at once.
            drop(CounterProxy::new(manager)?);
            (CounterProxy::new(manager)?, manager.pool(1)?)
        },
    ))
}

/// Plays a round. An error says that the server is gone.
fn round(plan: &Plan) -> Result<(), ManagerError> {
    let (identity, fingerprint) = &*IDENTITY;
    let builder = Manager::builder().key(AuthKey::new(KEY)).identity(identity.clone());
    let manager = builder.initializer(begin_as_server::task()).start()?;
    let folder = Folder::new(plan.seed);
    let file = folder.0.join("socket");
    let mut shared = start(&manager, plan)?;
    let listen = |way: Way, address: Address| match plan.ways.contains(&way) {
        true => manager.listen(&address).map(|address| address.to_string()),
        false => Ok(String::new()),
    };
    let local = listen(Way::Unix, file.as_path().into())?;
    let tcp = listen(Way::Tcp, "127.0.0.1:0".parse().expect("an address"))?;
    if plan.ways.iter().any(|way| *way != Way::Near) {
        publish(&manager, &shared)?;
    }
    let mut children: Vec<(u32, Child<bool>)> = Vec::new();
    for (place, threads) in (0..).zip(&plan.clients) {
        let dies = match plan.doom {
            Doom::Between { acts, how } if place == plan.victim => Some((acts, how as u32)),
            _ => None,
        };
        let context = Context::new(plan.methods[place as usize]);
        let (seed, end, way) = (plan.seed, plan.end(place) as u32, plan.ways[place as usize]);
        // It ends together with this program, however this program ends.
        let process = match way {
            Way::Near => {
                let body = client::task(seed, place, *threads, dies, end, shared.clone());
                context.process(body).daemon(true).start()
            }
            Way::Unix | Way::Tcp => {
                let address = if way == Way::Tcp { &tcp } else { &local };
                let directions = (address.clone(), fingerprint.clone(), shared.9.clone());
                let body = client_by_address::task(seed, place, *threads, dies, end, directions);
                context.process(body).daemon(true).start()
            }
        };
        match process {
            Ok(child) => children.push((place, child)),
            Err(error) => {
                // Its arguments contain handles. If the server is gone, this call says so, and the
                // clients that were started before end as well.
                let answer = shared.0.len();
                let ended = |(_, child): &(u32, Child<bool>)| child.join_timeout(CHECK_TIMEOUT);
                assert!(answer.is_ok() || children.iter().all(|one| ended(one).is_some()));
                answer?;
                panic!("{error:?}");
            }
        }
    }
    // Now only the clients have these.
    shared.10.clear();
    let began = Instant::now();
    let mut struck = None;
    while !children.is_empty() {
        let is_due = match plan.doom {
            Doom::After { time, .. } => began.elapsed() >= time,
            Doom::At { .. } if plan.server_dies() => began.elapsed() >= SERVER_LIVES,
            _ => false,
        };
        if is_due && struck.is_none() {
            struck = Some(Instant::now());
            if plan.server_dies() {
                // SAFETY: the process was not waited for, or this returns an error.
                unsafe { libc::kill(manager.pid() as i32, libc::SIGKILL) };
            } else if let Some((_, child)) =
                children.iter().find(|(place, _)| *place == plan.victim)
            {
                let _ = child.kill();
            }
        }
        children.retain(|(place, child)| match child.join_timeout(Duration::from_micros(300)) {
            None => true,
            Some(Ok(gone)) => {
                let end = plan.end(*place);
                assert!(end == End::Either || gone == (end == End::Server), "client {place}");
                false
            }
            Some(Err(error)) => {
                assert!(
                    plan.client_dies() && *place == plan.victim,
                    "client {place} failed: {error:?}"
                );
                false
            }
        });
        let late = match struck {
            Some(at) if plan.server_dies() => at.elapsed() > GONE_WITHIN,
            _ => began.elapsed() > HANGS_AFTER / 2,
        };
        assert!(!late, "clients hang: {children:?}");
        if !plan.server_dies() {
            manager.objects()?;
        }
    }
    if plan.server_dies() {
        if manager.exit_status().is_none() {
            // All clients have left before.
            // SAFETY: the process was not waited for, or this returns an error.
            unsafe { libc::kill(manager.pid() as i32, libc::SIGKILL) };
        }
        let began = Instant::now();
        let error = loop {
            // It may take a moment until it has died.
            match shared.0.len() {
                Err(error) => break error,
                Ok(_) => assert!(began.elapsed() < GONE_WITHIN, "it lives"),
            }
        };
        drop(shared);
        manager.shutdown();
        assert!(manager.exit_status().is_some(), "it has not ended");
        return Err(error);
    }
    manager.unpublish(NAME)?;
    check(plan, &manager, shared)?;
    eventually("objects", 0, || manager.objects())?;
    if matches!(plan.doom, Doom::At { step: Step::ManagerOwnerGone | Step::GateCloses, .. }) {
        return Ok(());
    }
    manager.shutdown();
    assert!(!file.exists(), "the file of the socket is left");
    Ok(())
}

fn publish(manager: &Manager, shared: &Shared) -> Result<(), ManagerError> {
    let (counts, handles, list, queue, lock, semaphore, condition, barrier, event, _, _, counter) =
        shared.clone();
    let published: Published =
        (counts, handles, list, queue, lock, semaphore, condition, barrier, event, counter);
    manager.publish(NAME, &published)
}

fn check(plan: &Plan, manager: &Manager, shared: Shared) -> Result<(), ManagerError> {
    let (
        counts,
        handles,
        list,
        queue,
        (lock, pair),
        semaphore,
        condition,
        barrier,
        event,
        sent,
        _,
        (counter, pool),
    ) = &shared;
    // Behind all tasks of dead clients that run, and before none: those are cancelled.
    assert_eq!(pool.apply(one_more::task(None))?, 1, "a task of the pool");
    let (semaphore, known) = semaphore;
    let record = record();
    eventually("clients that the server knows no more", CLIENTS as u64, || known.value())?;
    let guard = lock.acquire_timeout(CHECK_TIMEOUT)?.expect("the lock can be acquired");
    assert!(plan.client_dies() || !guard.owner_died(), "nobody died");
    change_pair(&guard, pair, u32::MAX)?;
    guard.release()?;
    assert!(!lock.acquire()?.owner_died(), "it is told once");
    assert_eq!(semaphore.value()?, PERMITS, "permits");
    let permits = [(); PERMITS as usize].map(|()| semaphore.try_acquire());
    for permit in permits {
        assert!(permit?.is_some());
    }
    let own = condition.get_lock().acquire_timeout(CHECK_TIMEOUT)?;
    let own = own.expect("the lock of the condition can be acquired");
    assert_eq!(condition.notify_all(&own)?, 0, "threads that wait for the condition");
    own.release()?;
    assert_eq!(barrier.waiting()?, 0, "threads at the barrier");
    barrier.reset()?;
    event.set()?;
    assert!(event.wait_timeout(CHECK_TIMEOUT)?);
    let died = |actor: usize| plan.client_dies() && actor / THREADS == plan.victim as usize;
    for actor in 0..ACTORS {
        let all = &record.actors[actor];
        // A put whose outcome is unknown is not counted as done.
        let all = all.added.iter().chain([&all.pushed, &all.counted]);
        assert!(died(actor) || all.clone().all(|calls| calls.begun() == calls.done()));
    }
    let mut unsure = 0;
    for actor in (0..ACTORS).filter(|actor| died(*actor)) {
        unsure += record.actors[actor].unsure.load(SeqCst);
    }
    while let Some(item) = queue.try_get()? {
        note_got(plan.seed, &item);
    }
    let mut lost = Vec::new();
    for (place, (actor, got)) in record.actors.iter().zip(&record.got).enumerate() {
        for (number, got) in (0..).zip(got) {
            let got = got.load(SeqCst);
            assert!(got == 0 || number < actor.put.begun(), "an item that nobody has put");
            if got == 0 && number < actor.put.done() {
                lost.push((place, number));
            }
        }
    }
    assert!(
        lost.len() as u64 <= unsure,
        "{lost:?} are lost, and dead clients were getting {unsure}"
    );
    for key in 0..KEYS {
        let value = counts.get(&(key as u32))?.unwrap_or(0);
        let sum = |each: fn(&Calls) -> u64| {
            record.actors.iter().map(|actor| each(&actor.added[key])).sum::<u64>()
        };
        let (done, begun) = (sum(Calls::done), sum(Calls::begun));
        assert!((done..=begun).contains(&value), "{value} updates of {done} to {begun}");
    }
    let sum = |each: fn(&Calls) -> u64| {
        record.actors.iter().map(|actor| each(&actor.counted)).sum::<u64>()
    };
    let (value, done, begun) = (counter.get()?, sum(Calls::done), sum(Calls::begun));
    assert!((done..=begun).contains(&value), "{value} calls of {done} to {begun}");
    let items = list.snapshot()?;
    for (actor, calls) in (0..).zip(record.actors.iter().map(|actor| &actor.pushed)) {
        let numbers: Vec<u64> =
            items.iter().filter(|item| item.0 == actor).map(|item| u64::from(item.1)).collect();
        let count = numbers.len() as u64;
        assert!(numbers.iter().copied().eq(0..count), "{numbers:?} of {actor}");
        assert!((calls.done()..=calls.begun()).contains(&count), "{count} items of {actor}");
    }
    handles.clear()?;
    while let Ok(handle) = sent.try_get() {
        match handle.set() {
            Err(ManagerError::NoObject) => drop(record.orphans.fetch_add(1, SeqCst)),
            set => set?,
        }
    }
    let over_tcp = plan.ways.contains(&Way::Tcp);
    assert!(over_tcp || record.orphans.load(SeqCst) == 0, "a handle came without its object");
    counter.exchange(None)?;
    let (
        counts,
        handles,
        list,
        queue,
        lock,
        semaphore,
        condition,
        barrier,
        event,
        sent,
        _,
        (counter, pool),
    ) = shared;
    // What a dead process has left in this queue's socket ends with the queue.
    drop(sent);
    let own = (counts, handles, list, queue, lock, semaphore, condition, barrier, event);
    eventually("objects that this process's handles explain", OBJECTS, || manager.objects())?;
    drop((own, pool));
    eventually("one counter", 1, || counter.counters())?;
    Ok(())
}

/// Returns all steps, ordered by their numbers.
fn all_steps() -> Vec<Step> {
    let lists =
        [Step::ALL, Step::QUEUE, Step::SYNC, Step::NAMED, Step::PROCESS, Step::MANAGER_CLIENT];
    let mut all = lists.concat();
    all.extend(Step::MANAGER_SERVER);
    all.sort_unstable();
    all
}

fn descriptors() -> Vec<String> {
    let all = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    let name = |entry: io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        Some(std::fs::read_link(path).ok()?.to_string_lossy().into_owned())
    };
    all.filter_map(name).collect()
}

/// Plays a round, and checks that nothing is left of it. Returns where a process has died.
fn whole_round(plan: &Plan, base: Option<&[String]>) -> Option<Place> {
    let record = record();
    record.clear();
    if let Doom::At { server, step, times, how } = plan.doom {
        record.left.store(times, SeqCst);
        record.how.store(how as u32, SeqCst);
        record.victim.store(if server { SERVER } else { CLIENT + plan.victim }, SeqCst);
        record.step.store(step as u32 + 1, SeqCst);
    }
    match round(plan) {
        Ok(()) => assert!(!plan.server_dies()),
        Err(ManagerError::Gone(_) | ManagerError::NotStarted(_)) if plan.server_dies() => {}
        Err(error) => panic!("{error:?}"),
    }
    // SAFETY: only asks for a child that has ended.
    let left = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    let error = io::Error::last_os_error();
    assert!(left == -1 && error.raw_os_error() == Some(libc::ECHILD), "a process is left: {left}");
    // The thread that watches processes may not have forgotten the last one yet.
    let began = Instant::now();
    while let Some(base) = base {
        let now = descriptors();
        if now.len() <= base.len() + KEPT {
            break;
        }
        let late = began.elapsed() > CHECK_TIMEOUT;
        assert!(!late, "descriptors are left: {now:?}, and before {base:?}");
        thread::sleep(Duration::from_micros(200));
    }
    let at = record.died_at.load(SeqCst).checked_sub(1)? as usize;
    Some((record.victim.load(SeqCst) == SERVER, all_steps()[at]))
}

static SEED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicBool = AtomicBool::new(false);

/// Ends a round that hangs. The other processes end with this one.
extern "C" fn on_alarm(_: libc::c_int) {
    let text = format!("EXECUTOR_SEED={} hangs\n", SEED.load(SeqCst));
    // SAFETY: writes a text and ends this process.
    unsafe {
        libc::write(1, text.as_ptr().cast(), text.len());
        libc::_exit(101);
    }
}

fn attempt(
    seed: u64,
    wanted: Option<Place>,
    places: &[Place],
    base: Option<&[String]>,
) -> Option<Place> {
    SEED.store(seed, SeqCst);
    let plan = Plan::new(seed, wanted, places);
    // SAFETY: sets a timer.
    unsafe { libc::alarm(HANGS_AFTER.as_secs() as u32) };
    let died = catch_unwind(AssertUnwindSafe(|| whole_round(&plan, base)));
    // SAFETY: clears it.
    unsafe { libc::alarm(0) };
    died.unwrap_or_else(|_| {
        let for_step = wanted.map_or(String::new(), |place| format!(" for {place:?}"));
        println!("EXECUTOR_SEED={seed} failed{for_step}: {:?}", plan.doom);
        FAILED.store(true, SeqCst);
        None
    })
}

fn main() {
    kill_point::set_hook(on_step);
    if let Some(path) = std::env::var_os(RECORD) {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the record");
        // SAFETY: `Record` consists of atomics, of which zero is a valid value.
        let _ = OWN.set(unsafe { dying::map(file.as_fd()) });
    }
    executor::init();
    // SAFETY: `Record` consists of atomics, of which zero is a valid value.
    let (record, fd) = unsafe { dying::named_record::<Record>(c"manager-deaths") };
    let _ = OWN.set(record);
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var(RECORD, path) };
    // SAFETY: sets a signal handler, and a limit so that `abort` writes no file.
    unsafe {
        libc::signal(libc::SIGALRM, on_alarm as *const () as libc::sighandler_t);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
    }
    let places = places();
    // What is open after the first rounds is the base for the comparison.
    for seed in 0..4 {
        let _ = attempt(1 << 40 | seed, None, &places, None);
    }
    let base = descriptors();
    let seeds = seeds();
    let all = number("EXECUTOR_SEED").is_none();
    let every_step = all && seeds.end >= ROUNDS;
    let mut died = vec![0_u32; places.len()];
    let mut count = |hit: Option<Place>| {
        if let Some(at) = hit.and_then(|hit| places.iter().position(|place| *place == hit)) {
            died[at] += 1;
        }
        died.clone()
    };
    let began = Instant::now();
    for seed in seeds.clone() {
        count(attempt(seed, None, &places, Some(&base)));
    }
    let mut extra = 0;
    if every_step {
        for (at, place) in places.iter().enumerate() {
            for seed in (0..EXTRA_ROUNDS_MAX).map(|seed| seeds.end + seed) {
                if count(None)[at] > 0 || FAILED.load(SeqCst) {
                    break;
                }
                count(attempt(seed, Some(*place), &places, Some(&base)));
                extra += 1;
            }
        }
    }
    let died = count(None);
    println!(
        "{} rounds, and {extra} for steps left out, in {:.1?}",
        seeds.end - seeds.start,
        began.elapsed()
    );
    for ((server, step), died) in places.iter().zip(&died) {
        println!("{died:>8}  {} {step:?}", if *server { "server" } else { "client" });
    }
    let missing: Vec<_> =
        places.iter().zip(&died).filter(|(_, died)| **died == 0).map(|(place, _)| place).collect();
    assert!(!FAILED.load(SeqCst), "rounds have failed: see above");
    assert!(!every_step || missing.is_empty(), "nobody was there at {missing:?}");
    drop(fd);
}
