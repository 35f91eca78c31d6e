//! Workers that write garbage to the memory that they share with their pool, and how the pool
//! handles it.
//!
//! The tasks here find the shared memory in the way a wild pointer would: it is mapped into the
//! worker. [`layout`] says where its words are. One test compares `layout` with the actual memory.

mod support;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use executor::{
    __private::{Buffer, Format, Postcard},
    TaskError,
    prelude::*,
};
use serde::{Deserialize, Serialize};
use support::{
    LONG, alone, descriptors, echo, eventually, executor_threads, pid, pool, rounds, watchdog,
    with_a_timeout_long_enough,
};

executor::test_support!();

/// Offsets of the words in the shared segment, in bytes.
mod layout {
    pub(crate) const CLAIMS: usize = 0;
    pub(crate) const SLOTS: usize = 1024;
    pub(crate) const BEGAN: usize = 8 * SLOTS;
    pub(crate) const DOWN: usize = 11_328;
    /// Offsets within one ring, down to `WORD_COUNT`.
    pub(crate) const HEAD: usize = 0;
    pub(crate) const TAIL: usize = 64;
    pub(crate) const ASLEEP: usize = 128;
    pub(crate) const WANTING_ROOM: usize = 192;
    pub(crate) const WORDS: usize = 320;
    pub(crate) const WORD_COUNT: u64 = 16 * 1024;
    pub(crate) const RING: usize = WORDS + 8 * WORD_COUNT as usize;
    pub(crate) const UP: usize = DOWN + RING;
    pub(crate) const END: usize = UP + RING;
}

const DONE: u8 = 5;
const CREDIT: u8 = 11;
const FAILED: u8 = 6;
const USAGE: u8 = 13;
const REPORTED: u8 = 14;
/// The flag of a reply that says that the worker reports an error.
const REPORTS: u8 = 1;
/// The flag of a reply that says that the worker's memory has grown.
const GROWN: u8 = 32;
const HEADER_BYTES: usize = 40;

/// A mapping of this process that other processes write to as well.
#[derive(Clone, Copy)]
struct Mapping {
    at: usize,
    bytes: usize,
}

impl Mapping {
    fn of(name: &str) -> Option<Mapping> {
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| line.contains(name))?;
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some(Mapping { at: number(from)?, bytes: number(to)? - number(from)? })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.bytes && at.is_multiple_of(8));
        // SAFETY: the word is within the mapping, which stays until the process ends. Others write
        // to it only with atomic operations.
        unsafe { AtomicU64::from_ptr((self.at + at) as *mut u64) }
    }

    fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.bytes && at.is_multiple_of(4));
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr((self.at + at) as *mut u32) }
    }
}

/// The mappings that a hostile task writes to.
struct Shared {
    segment: Mapping,
    doorbell: Mapping,
}

impl Shared {
    fn find() -> Shared {
        let segment = Mapping::of("memfd:executor-worker").expect("the segment is mapped");
        let doorbell = Mapping::of("memfd:executor-doorbell").expect("the doorbell is mapped");
        Shared { segment, doorbell }
    }

    fn up(&self, at: usize) -> &AtomicU64 {
        self.segment.word(layout::UP + at)
    }

    fn down(&self, at: usize) -> &AtomicU64 {
        self.segment.word(layout::DOWN + at)
    }

    fn ring_word(&self, position: u64) -> &AtomicU64 {
        self.up(layout::WORDS + 8 * (position % layout::WORD_COUNT) as usize)
    }

    /// Publishes one message as soon as there is memory available in the ring. Then wakes any
    /// reader that may sleep.
    fn publish(&self, message: &[u8]) {
        self.publish_as(message, message.len() as u64);
    }

    fn publish_as(&self, message: &[u8], len: u64) {
        let head = self.up(layout::HEAD).load(Ordering::SeqCst);
        let words = 1 + message.len().div_ceil(8) as u64;
        let room =
            || head - self.up(layout::TAIL).load(Ordering::SeqCst) + words <= layout::WORD_COUNT;
        // Wake the reader while waiting, because only the reader makes room.
        while !room() {
            self.wake();
            std::thread::yield_now();
        }
        // The length and the content come first. The head is stored last, so that the reader sees a
        // whole message.
        self.ring_word(head).store(len, Ordering::Relaxed);
        for (at, chunk) in message.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.ring_word(head + 1 + at as u64).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        self.up(layout::HEAD).store(head + words, Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the reader of the ring, wherever it sleeps.
    fn wake(&self) {
        // The attendant sleeps on the first word of the doorbell, and the reader on the second.
        let (attention, reader) = (self.doorbell.half(0), self.doorbell.half(4));
        attention.store(0, Ordering::SeqCst);
        wake(attention);
        reader.store(1, Ordering::SeqCst);
        wake(reader);
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: a system call on a word that is mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

fn header(kind: u8, task: u64, length: u64) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    for word in [task, 0, length, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(out.len(), HEADER_BYTES);
    out
}

/// A small random number generator: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a small number, a large one, or any.
    fn number(&mut self) -> u64 {
        match self.roll() % 6 {
            0 => self.roll() % 8,
            1 => u64::MAX - self.roll() % 8,
            2 => 1 << (self.roll() % 64),
            3 => self.roll() % (2 * layout::WORD_COUNT),
            _ => self.roll(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Deed {
    WildHead,
    HeadBack,
    WildLength,
    ZeroLength,
    GarbageMessage,
    ReplyForATaskItNeverHad,
    WrongKind,
    UnknownKind,
    ReservedBits,
    HugeLength,
    TooManyBytes,
    FloodOfNothing,
    FloodOfCredit,
    FloodOfReplies,
    UsageTwice,
    UsageOfNothing,
    GrownWithoutALimit,
    ReportsWithoutAHook,
    ReportedUnasked,
    EverythingRandom,
}

use Deed::*;

/// Violations after which the worker is cut off, whatever it does next.
const DEEDS: [Deed; 20] = [
    WildHead,
    HeadBack,
    WildLength,
    ZeroLength,
    GarbageMessage,
    ReplyForATaskItNeverHad,
    WrongKind,
    UnknownKind,
    ReservedBits,
    HugeLength,
    TooManyBytes,
    FloodOfNothing,
    FloodOfCredit,
    FloodOfReplies,
    UsageTwice,
    UsageOfNothing,
    GrownWithoutALimit,
    ReportsWithoutAHook,
    ReportedUnasked,
    EverythingRandom,
];

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// Commits the violation, then does nothing more.
#[task]
fn misbehave(deed: Deed, seed: u64) {
    let shared = Shared::find();
    let head = shared.up(layout::HEAD).load(Ordering::SeqCst);
    match deed {
        WildHead => shared.up(layout::HEAD).store(head + layout::WORD_COUNT + 1, Ordering::SeqCst),
        HeadBack => {
            // Publishes the first message of a frame. Once it has been read, takes it back, which
            // is too late.
            shared.publish(&header(DONE, 1, 4));
            while shared.up(layout::TAIL).load(Ordering::SeqCst) == head {
                shared.wake();
            }
            shared.up(layout::HEAD).store(head, Ordering::SeqCst);
        }
        WildLength => shared.publish_as(&[1; 64], 65),
        ZeroLength => shared.publish(&[]),
        GarbageMessage => shared.publish(&[0xa5; 1000]),
        ReplyForATaskItNeverHad => shared.publish(&header(DONE, 1 << 40, 0)),
        WrongKind => shared.publish(&header(2, 1, 0)),
        UnknownKind => shared.publish(&header(200, 1, 0)),
        ReservedBits => {
            let mut message = header(DONE, 1, 0);
            message[2] = 1;
            shared.publish(&message);
        }
        HugeLength => shared.publish(&header(DONE, 1, u64::MAX)),
        TooManyBytes => {
            shared.publish(&header(DONE, 1, 4));
            shared.publish(&[0; 5]);
        }
        FloodOfNothing => loop {
            shared.publish(&[]);
        },
        FloodOfCredit => loop {
            shared.publish(&header(CREDIT, 0, 0));
        },
        FloodOfReplies => loop {
            shared.publish(&header(DONE, seed, 0).repeat(300));
        },
        UsageTwice => {
            let usage = [header(USAGE, 1, 72), vec![1; 72]].concat();
            shared.publish(&usage);
            shared.publish(&usage);
        }
        UsageOfNothing => shared.publish(&[header(USAGE, 1, 5), vec![1; 5]].concat()),
        GrownWithoutALimit => {
            let mut message = header(DONE, 1, 0);
            message[1] = GROWN;
            shared.publish(&message);
        }
        ReportsWithoutAHook => {
            let mut message = header(FAILED, 1, 0);
            message[1] = REPORTS;
            shared.publish(&message);
        }
        ReportedUnasked => shared.publish(&header(REPORTED, 0, 0)),
        EverythingRandom => {
            let mut dice = Dice(seed | 1);
            for at in (0..layout::END).step_by(8) {
                shared.segment.word(at).store(dice.roll(), Ordering::Relaxed);
            }
        }
    }
    shared.wake();
    park()
}

/// Writes to random places up to a hundred times, then returns as if nothing had happened.
#[task]
fn scribble(seed: u64) -> u64 {
    let shared = Shared::find();
    let mut dice = Dice(seed | 1);
    for _ in 0..dice.roll() % 100 + 1 {
        let head = shared.up(layout::HEAD).load(Ordering::SeqCst);
        let ring = if dice.roll().is_multiple_of(3) { layout::DOWN } else { layout::UP };
        match dice.roll() % 12 {
            0 => shared.segment.word(ring + layout::HEAD).store(dice.number(), Ordering::SeqCst),
            1 => shared.segment.word(ring + layout::TAIL).store(dice.number(), Ordering::SeqCst),
            2 => shared.up(layout::HEAD).store(head + dice.roll() % 50, Ordering::SeqCst),
            3 => shared.ring_word(head).store(dice.number(), Ordering::SeqCst),
            4 => shared
                .segment
                .half(ring + layout::ASLEEP)
                .store(dice.roll() as u32 % 4, Ordering::SeqCst),
            5 => {
                shared
                    .segment
                    .half(ring + layout::WANTING_ROOM)
                    .store(dice.roll() as u32 % 3, Ordering::SeqCst);
            }
            6 => {
                let slot = layout::CLAIMS + 8 * (dice.roll() as usize % layout::SLOTS);
                shared.segment.word(slot).store(dice.number(), Ordering::SeqCst);
            }
            7 => shared.segment.word(layout::BEGAN).store(dice.number(), Ordering::SeqCst),
            8 => shared
                .doorbell
                .half(4 * (dice.roll() as usize % 2))
                .store(dice.roll() as u32 % 4, Ordering::SeqCst),
            9 => shared.wake(),
            10 => {
                let at = 8 * (dice.roll() as usize % (layout::END / 8));
                shared.segment.word(at).store(dice.number(), Ordering::SeqCst);
            }
            _ => {
                for _ in 0..dice.roll() % 100 {
                    let at = layout::UP
                        + layout::WORDS
                        + 8 * (dice.roll() % layout::WORD_COUNT) as usize;
                    shared.segment.word(at).store(dice.number(), Ordering::SeqCst);
                }
            }
        }
    }
    seed
}

/// Checks that the words are where this file says they are.
#[task]
fn look_around() -> Result<(), String> {
    let Shared { segment, .. } = Shared::find();
    let pages = layout::END.next_multiple_of(4096);
    if segment.bytes != pages {
        return Err(format!("the segment has {} bytes, not {pages}", segment.bytes));
    }
    let head = segment.word(layout::UP).load(Ordering::SeqCst);
    let first = segment.word(layout::UP + layout::WORDS).load(Ordering::SeqCst);
    let kind = segment.word(layout::UP + layout::WORDS + 8).load(Ordering::SeqCst) as u8;
    if head == 0 || first < HEADER_BYTES as u64 || first > 8 * head || kind != DONE {
        return Err(format!("no first reply: head {head}, length {first}, kind {kind}"));
    }
    let begun = (0..layout::SLOTS)
        .filter(|slot| segment.word(8 * slot).load(Ordering::SeqCst) & 3 == 2)
        .count();
    if begun < 2 { Err("no task has begun".into()) } else { Ok(()) }
}

/// Returns whether the transport is ipc-channel, which has no ring to write to.
fn over_ipc() -> bool {
    std::env::var_os("EXECUTOR_TRANSPORT").is_some_and(|name| name == "ipc")
}

#[test]
fn the_shared_words_are_where_these_tests_expect_them() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let pool = pool(1);
    pool.submit(echo::task(1)).result().unwrap();
    pool.submit(look_around::task()).result().unwrap();
}

fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    maps.lines().filter(|line| line.contains("memfd:executor-")).count()
}

/// Returns the number of descriptors and mappings while no pool exists. A pool's threads hold its
/// resources a moment longer than its owner.
fn at_rest() -> (usize, usize) {
    // Also wait for the threads, because each one closes its descriptors when it ends.
    eventually("the pools of other tests are gone", || {
        mappings() == 0 && executor_threads().is_empty()
    });
    (descriptors(), 0)
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_other_tasks_go_on() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let before = at_rest();
    for deed in DEEDS {
        // Once the test's own thread waits for the result and reads the ring, and once the pool's
        // reader does it.
        for helps in [true, false] {
            let pool = pool(2);
            let bad = pool.submit(misbehave::task(deed, 7));
            let others: Vec<_> = (0..50).map(|value| pool.submit(echo::task(value))).collect();
            if !helps {
                eventually("it is done", || bad.done());
            }
            let error = bad.result().unwrap_err();
            let TaskError::WorkerLost { detail, status, .. } = &error else {
                panic!("{deed:?}: {error}")
            };
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{deed:?}");
            assert!(detail.broke_protocol.is_some(), "{deed:?}: {error}");
            assert!(error.to_string().contains("broke the protocol"), "{deed:?}: {error}");
            println!("{deed:?}: {error}");
            for (value, other) in others.into_iter().enumerate() {
                match other.result() {
                    Ok(came) => assert_eq!(came, value as u64),
                    // Any task that had been sent to this worker may count as begun.
                    Err(TaskError::WorkerLost { .. }) if deed == EverythingRandom => {}
                    Err(error) => panic!("{deed:?}, the other {value}: {error}"),
                }
            }
            assert_eq!(
                pool.submit(echo::task(1)).result().unwrap(),
                1,
                "{deed:?}: the pool goes on"
            );
            pool.shutdown(true);
        }
    }
    eventually("descriptors and mappings are given back", || (descriptors(), mappings()) == before);
}

/// Leaves a thread behind that keeps overwriting the worker's position in the ring to the worker.
#[task]
fn leave_a_garbler() {
    std::thread::spawn(|| {
        let shared = Shared::find();
        loop {
            shared.down(layout::TAIL).store(u64::MAX, Ordering::SeqCst);
        }
    });
}

#[test]
fn a_garbled_position_in_the_ring_to_the_worker_is_noticed_when_the_ring_is_full() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let pool = pool(1);
    pool.submit(leave_a_garbler::task()).result().unwrap();
    let garbler = pool.submit(pid::task()).result().unwrap();
    // The argument is larger than the ring, so that the position is checked. The task has not
    // begun, so it goes to another worker.
    let after = loop {
        assert_eq!(pool.submit(length::task(vec![0; 1 << 20])).result().unwrap(), 1 << 20);
        let after = pool.submit(pid::task()).result().unwrap();
        if after != garbler {
            break after;
        }
    };
    assert_eq!(pool.worker_pids(), [after]);
}

#[task]
fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// Encodes a value as the worker encodes a result.
fn encoded(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Buffer::new();
    Postcard::encode(value, &mut bytes).expect("a number");
    bytes.into_vec()
}

/// Waits until it is told the ids of tasks, publishes a reply to each one by hand, and never
/// returns.
#[task]
fn reply_by_hand(notes: &Path) -> u64 {
    let ids = loop {
        match fs::read_to_string(notes.join("ids")) {
            Ok(ids) => break ids,
            Err(_) => std::thread::yield_now(),
        }
    };
    let shared = Shared::find();
    for id in ids.split_whitespace() {
        let value = encoded(&9_u64);
        let len = value.len() as u64;
        shared.publish(&[header(DONE, id.parse().expect("a number"), len), value].concat());
    }
    park()
}

#[test]
fn duplicate_early_and_unordered_replies_are_accepted_or_break_the_protocol() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    for order in [&[0, 0][..], &[1], &[0, 1, 0], &[1, 0], &[0, 2]] {
        let (pool, notes) = (pool(1), tempfile::tempdir().unwrap());
        let first = pool.submit(reply_by_hand::task(notes.path()));
        let second = pool.submit(echo::task(9));
        let ids = [first.id().as_u64(), second.id().as_u64(), 1 << 60];
        let ids: Vec<_> = order.iter().map(|at: &usize| ids[*at].to_string()).collect();
        fs::write(notes.path().join("draft"), ids.join(" ")).unwrap();
        fs::rename(notes.path().join("draft"), notes.path().join("ids")).unwrap();
        match first.result() {
            Ok(value) => assert!(value == 9 && order[0] == 0),
            Err(error) => {
                assert!(
                    error.to_string().contains("broke the protocol") && order[0] != 0,
                    "{error}"
                )
            }
        }
        assert_eq!(second.result().unwrap(), 9, "{order:?}");
        assert_eq!(pool.submit(echo::task(5)).result().unwrap(), 5, "{order:?}");
    }
}

/// Overwrites the word on which the reader of its replies sleeps, and leaves a note that it has
/// done so. Then it aborts, parks or returns.
#[task]
fn garble_who_sleeps(value: u32, how: u8, said: &Path) {
    let shared = Shared::find();
    let attention = shared.doorbell.half(0);
    // The thread that asks for the result is going to sleep on this word.
    while attention.load(Ordering::SeqCst) != 2 {
        std::thread::yield_now();
    }
    attention.store(value, Ordering::SeqCst);
    shared.doorbell.half(4).store(value, Ordering::SeqCst);
    fs::write(said, "").expect("a note");
    match how {
        0 => std::process::abort(),
        1 => park(),
        _ => {}
    }
}

#[test]
fn a_reader_that_sleeps_on_a_garbled_word_is_woken_nevertheless() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    for value in [0, 1, 2, 3, u32::MAX] {
        for how in 0..3 {
            // If the pool's own thread is checking the worker when the result is asked for, then
            // the asking thread waits elsewhere. So try again until it waits on this word.
            let (pool, ended, behind) =
                with_a_timeout_long_enough("somebody sleeps there", |limit| {
                    let (pool, notes) = (pool(1), tempfile::tempdir().unwrap());
                    let said = notes.path().join("garbled");
                    let future = pool.submit(garble_who_sleeps::task(value, how, &said));
                    let behind = pool.submit(echo::task(1));
                    let canceller = future.cancel_handle();
                    // A thread that asks before a worker has the task waits elsewhere as well.
                    eventually("it runs", || future.running());
                    let ended = std::thread::spawn(move || future.result());
                    let deadline = Instant::now() + limit;
                    while !said.exists() {
                        if Instant::now() >= deadline {
                            canceller.cancel_running();
                            let _ = ended.join().unwrap();
                            return None;
                        }
                        std::thread::yield_now();
                    }
                    if how == 1 {
                        assert!(canceller.cancel_running());
                    }
                    Some((pool, ended.join().unwrap(), behind))
                });
            assert_eq!(ended.is_ok(), how == 2, "{value} {how}: {ended:?}");
            assert_eq!(behind.result().unwrap(), 1, "{value} {how}");
            drop(pool);
        }
    }
}

/// Records again and again that its task has just begun.
#[task]
fn always_just_begun(garble: bool) {
    let shared = Shared::find();
    loop {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        shared.segment.word(layout::BEGAN).store(now, Ordering::SeqCst);
        if garble {
            (0..layout::SLOTS)
                .for_each(|slot| shared.segment.word(8 * slot).store(now, Ordering::SeqCst));
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_task_cannot_postpone_its_timeout() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    for garble in [false, true] {
        let pool = pool(1);
        let future =
            pool.submit(always_just_begun::task(garble).timeout(Duration::from_millis(100)));
        let error = future.result().unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}

/// Leaves a note that it runs, overwrites its claim word, and aborts.
#[task]
fn deny_and_die(notes: &Path) {
    let note = notes.join(std::process::id().to_string());
    fs::write(note, "").expect("a note");
    let shared = Shared::find();
    (0..layout::SLOTS).for_each(|slot| shared.segment.word(8 * slot).store(0, Ordering::SeqCst));
    std::process::abort();
}

#[test]
fn a_task_that_overwrote_its_claim_does_not_run_again() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let (pool, notes) = (pool(1), tempfile::tempdir().unwrap());
    let error = pool.submit(deny_and_die::task(notes.path())).result().unwrap_err();
    assert!(error.is_worker_lost(), "{error}");
    assert_eq!(fs::read_dir(notes.path()).unwrap().count(), 1, "it ran once");
}

/// Announces a payload of the given length, sends a little of it, and then nothing more.
#[task]
fn promise(id: u64, length: u64) {
    let shared = Shared::find();
    shared.publish(&header(DONE, id, length));
    for _ in 0..10 {
        shared.publish(&[0; 30_000]);
    }
    park()
}

fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("VmPeak");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn an_announced_payload_of_a_terabyte_allocates_no_memory() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let pool = pool(1);
    pool.submit(echo::task(0)).result().unwrap();
    let before = memory();
    let future = pool.submit(promise::task(u64::MAX, 1 << 40).timeout(Duration::from_millis(500)));
    // The announcement itself is valid, so only the timeout ends the task.
    assert!(future.result().unwrap_err().is_timeout());
    // A terabyte would exceed this bound. The threads and pools of other tests do not.
    assert!(memory() - before < 4 << 30, "{} bytes more", memory() - before);
}

#[test]
fn random_writes_to_the_shared_memory_never_hang_or_break_the_pool() {
    let _guards = (watchdog(), alone());
    if over_ipc() {
        return;
    }
    let before = at_rest();
    let first = std::env::var("EXECUTOR_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = first.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    println!("EXECUTOR_SEED={first}");
    let (mut survived, mut lost, mut wrong) = (0, 0, 0);
    let mut pool = pool_of_two();
    for round in 0..rounds() as u64 {
        if round % 50 == 49 {
            pool.shutdown(true);
            pool = pool_of_two();
        }
        let seed = first + round;
        let limit = Duration::from_secs(2);
        let bad = pool.submit(scribble::task(seed).timeout(limit));
        let others: Vec<_> =
            (0..4).map(|value| pool.submit(echo::task(value).timeout(limit))).collect();
        for (value, other) in others.into_iter().enumerate() {
            match other
                .result_timeout(LONG)
                .unwrap_or_else(|_| panic!("EXECUTOR_SEED={seed}: {value} hangs"))
            {
                Ok(came) if came == value as u64 => {}
                // The pool itself must not be broken or shut down, and must not cancel.
                Err(error) if error.is_broken() || error.is_shutdown() || error.is_cancelled() => {
                    panic!("EXECUTOR_SEED={seed}: the other {value}: {error}")
                }
                // Replies in the same ring may be wrong in either direction: to another task or to
                // none, with any value or any error. Nothing is known about tasks on the same
                // board.
                Ok(_) | Err(_) => wrong += 1,
            }
        }
        match bad.result_timeout(LONG).unwrap_or_else(|_| panic!("EXECUTOR_SEED={seed}: it hangs"))
        {
            Ok(came) if came == seed => survived += 1,
            Err(TaskError::WorkerLost { .. } | TaskError::TimedOut { .. }) => lost += 1,
            Ok(_) | Err(_) => wrong += 1,
        }
    }
    // In a worker whose shared memory is damaged, a task is not answered, reaches its timeout, or
    // is lost.
    println!("{survived} went unnoticed, {lost} workers were lost, {wrong} tasks beside them");
    pool.kill_workers();
    drop(pool);
    eventually("descriptors and mappings are given back", || (descriptors(), mappings()) == before);
}

fn pool_of_two() -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder()
        .max_workers(2)
        .start_timeout(Duration::from_secs(5))
        .build()
        .unwrap()
}
