//! Model-checked tests of a queue's words. See `os/std_or_model.rs`, and `CONTRIBUTING.md` for how
//! to run them.
//!
//! Threads play processes. Here the first ring has sixteen words, and records have four, so the
//! fourth untaken item lies in the next ring. A ring that is given back is zeroed, as the kernel
//! does; a process that still looks at it finds nothing. Sleeps have no timeout, so a lost wake-up
//! is a deadlock. Deaths of processes are tested by `queue_deaths`.

use std::{collections::HashMap, io, sync::Arc};

use super::{
    core::listen_for_others,
    ring_list::{
        Body, Claimed, Entry, Failed, FoundBody, Held, Layout, Memory, Piece, Reading, RingList,
        RingPlace, Side, Words,
    },
};
use crate::{
    os::{
        liveness::{OwnerId, Owners},
        std_or_model::{
            Mutex, Shadow,
            atomic::{AtomicU64, Ordering},
            thread,
        },
    },
    sync::raw::RECHECK,
    transport::ring::models::{check, few},
};

struct Process(u32);

impl Owners for Process {
    fn me(&self) -> OwnerId {
        OwnerId::from_bits(self.0).unwrap()
    }

    fn is_me(&self, id: OwnerId) -> bool {
        id == self.me()
    }

    fn is_alive(&self, _: OwnerId) -> bool {
        true
    }
}

struct Ring(Vec<AtomicU64>, Vec<Shadow>);

impl Words for Ring {
    fn words(&self) -> usize {
        self.0.len()
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0[index]
    }

    fn shadow(&self, index: usize) -> &Shadow {
        &self.1[index]
    }

    fn write(&self, index: usize, bytes: &[u8]) {
        for (at, word) in bytes.chunks(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().expect("whole words"));
            self.1[index + at].fill();
            self.0[index + at].store(word, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct File {
    rings: Mutex<HashMap<u64, Arc<Ring>>>,
    pieces: Mutex<HashMap<u64, Arc<(AtomicU64, Shadow)>>>,
}

impl File {
    /// Returns the memory at a place outside of rings. The same place always has the same memory.
    fn piece(&self, piece: Piece) -> Arc<(AtomicU64, Shadow)> {
        Arc::clone(self.pieces.lock().unwrap().entry(piece.at).or_default())
    }
}

impl Memory for File {
    type Ring = Ring;
    type Mapped<'a> = Arc<Ring>;

    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()> {
        let words = 0..bytes / 8;
        let ring = Ring(
            words.clone().map(|_| AtomicU64::new(0)).collect(),
            words.map(|_| Shadow::default()).collect(),
        );
        // A place that was allocated before has the same memory. A place that was merged with the
        // next one is longer now.
        let mut rings = self.rings.lock().unwrap();
        if rings.get(&at).is_none_or(|before| before.0.len() != ring.0.len()) {
            rings.insert(at, Arc::new(ring));
        }
        Ok(())
    }

    fn free(&self, at: u64, _: u64) -> bool {
        let Some(ring) = self.rings.lock().unwrap().get(&at).cloned() else { return true };
        ring.1.iter().for_each(Shadow::fill);
        ring.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        true
    }

    fn table(&self, _: u64, _: u64) -> io::Result<Arc<Ring>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn ring(&self, _: Side, place: RingPlace) -> io::Result<Arc<Ring>> {
        let Piece { at, bytes } = place.piece();
        let ring = self.rings.lock().unwrap().get(&at).cloned().ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(ring.0.len() as u64 * 8, bytes);
        Ok(ring)
    }

    fn keep(&self, _: Side, _: RingPlace, ring: Arc<Ring>) -> Arc<Ring> {
        ring
    }

    fn discard(&self, _: u64) {}
}

#[derive(Default)]
struct Queue {
    layout: Layout,
    file: File,
}

impl Queue {
    fn new(capacity: u64) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        queue.list(&Process(1)).begin(capacity).unwrap();
        queue
    }

    fn list<'a>(&'a self, process: &'a Process) -> RingList<'a, File, Process> {
        RingList { layout: &self.layout, memory: &self.file, owners: process }
    }

    /// Puts an item like `Core::put`; returns `false` if the queue is closed.
    fn put(&self, process: &Process, item: u64) -> bool {
        let list = self.list(process);
        let mut slept = false;
        loop {
            let Some(guard) = list.lock(Side::Producers, None).unwrap() else { continue };
            if list.is_closed() {
                return false;
            }
            let heard = match list.look_for_room(true) {
                Ok(()) => {
                    let bytes = item.to_le_bytes();
                    list.put(Entry { body: Body::Inline(&bytes), ticket: None }, &mut None)
                        .unwrap();
                    let rung = self.layout.producers.items.ring();
                    let room = &self.layout.consumers.room;
                    let pass_on = slept && listen_for_others(room, || list.has_room());
                    drop(guard);
                    rung.wake_one();
                    if pass_on {
                        room.pass_on();
                    }
                    return true;
                }
                Err(heard) => heard,
            };
            drop(guard);
            self.layout.consumers.room.sleep(heard, RECHECK).settle();
            slept = true;
        }
    }

    /// Gets an item like `Core::get`; returns `None` if the queue is closed and empty.
    fn get(&self, process: &Process) -> Option<u64> {
        let list = self.list(process);
        let mut slept = false;
        loop {
            let Some(guard) = list.lock(Side::Consumers, None).unwrap() else { continue };
            let found = match list.find_or_listen(true).unwrap() {
                Ok(found) => found,
                Err(heard) => match list.is_closed().then(|| list.find().unwrap()) {
                    None => {
                        drop(guard);
                        self.layout.producers.items.sleep(heard, RECHECK).settle();
                        slept = true;
                        continue;
                    }
                    Some(found) => found?,
                },
            };
            let FoundBody::Inline { ring, word, len: 8 } = &found.body else {
                panic!("another item")
            };
            ring.1[*word].look();
            let item = ring.0[*word].load(Ordering::Relaxed);
            assert!(list.take(&found, &Reading::Nothing, None, guard.me()).is_none());
            let rung = self.layout.consumers.room.ring();
            let items = &self.layout.producers.items;
            let pass_on = slept && listen_for_others(items, || list.len() > 0);
            drop(guard);
            rung.wake_one();
            if pass_on {
                items.pass_on();
            }
            return Some(item);
        }
    }

    /// Takes an item that is there, like `Core::get` with `hold`. The item is not read yet.
    fn take_held(&self, process: &Process) -> Held {
        let list = self.list(process);
        let guard = list.lock(Side::Consumers, None).unwrap().unwrap();
        let found = list.find().unwrap().expect("there is one");
        let entry = list.free_hold(guard.me()).unwrap();
        list.take(&found, &Reading::Nothing, Some(entry), guard.me()).expect("it is held")
    }

    fn get_held(&self, process: &Process) -> Held {
        let held = self.take_held(process);
        self.list(process).has_read(held, process.me());
        held
    }

    fn close(&self, process: &Process) {
        let list = self.list(process);
        let guard = list.lock(Side::Producers, None).unwrap();
        list.close();
        drop(guard);
        self.layout.producers.items.ring_unlocked().wake_all();
        self.layout.consumers.room.ring_unlocked().wake_all();
    }

    /// Puts a large item like `Core::put`, which writes it after unlocking.
    fn put_large(&self, process: &Process, item: u64) {
        let list = self.list(process);
        let room = &self.layout.consumers.room;
        let mut large: Option<(Piece, Option<Claimed>)> = None;
        let mut slept = false;
        loop {
            let Some(guard) = list.lock(Side::Producers, None).unwrap() else { continue };
            if let Some((piece, claim)) = &mut large {
                let body = Body::Elsewhere { piece: *piece, len: 8 };
                // The ring may be full. The place of the next ring needs a claim, too, and a
                // consumer that merges the holes beside an old ring has two claims for a moment.
                if let Err(heard) =
                    with_claims(&list, || list.put(Entry { body, ticket: None }, claim))
                {
                    drop(guard);
                    claim.take().into_iter().for_each(|claim| list.give_back(claim));
                    room.ring_unlocked().wake_all();
                    large = None;
                    list.freed().sleep_with_all(heard, RECHECK);
                    slept = true;
                    continue;
                }
                let rung = self.layout.producers.items.ring();
                let pass_on = slept && listen_for_others(room, || list.has_room());
                drop(guard);
                rung.wake_one();
                if pass_on {
                    room.pass_on();
                }
                return;
            }
            if let Err(heard) = list.look_for_room(true) {
                drop(guard);
                room.sleep(heard, RECHECK).settle();
                slept = true;
                continue;
            }
            match with_claims(&list, || list.reserve_item(64, guard.me())) {
                Ok((piece, claim, _)) => {
                    drop(guard);
                    let memory = self.file.piece(piece);
                    memory.1.fill();
                    memory.0.store(item, Ordering::Relaxed);
                    large = Some((piece, Some(claim)));
                }
                Err(heard) => {
                    drop(guard);
                    list.freed().sleep_with_all(heard, RECHECK);
                    slept = true;
                }
            }
        }
    }

    /// Gets a large item like `Core::get`.
    fn get_large(&self, process: &Process) -> u64 {
        let list = self.list(process);
        let mut slept = false;
        loop {
            let Some(guard) = list.lock(Side::Consumers, None).unwrap() else { continue };
            let found = match with_claims(&list, || list.find_or_listen(true)) {
                Ok(Ok(found)) => found,
                Ok(Err(heard)) => {
                    drop(guard);
                    self.layout.producers.items.sleep(heard, RECHECK).settle();
                    slept = true;
                    continue;
                }
                Err(heard) => {
                    drop(guard);
                    list.freed().sleep_with_all(heard, RECHECK);
                    continue;
                }
            };
            let FoundBody::Elsewhere { piece, len: 8 } = found.body else { panic!("another item") };
            let reading = match with_claims(&list, || list.claim_for(&found, guard.me(), false)) {
                Ok(reading) => reading,
                Err(heard) => {
                    drop(guard);
                    list.freed().sleep_with_all(heard, RECHECK);
                    continue;
                }
            };
            list.take(&found, &reading, None, guard.me());
            let read = |claim| {
                let memory = self.file.piece(piece);
                memory.1.look();
                let item = memory.0.load(Ordering::Relaxed);
                list.give_back(claim);
                item
            };
            let (now, later) = match reading {
                Reading::Now(claim) => (Some(read(claim)), None),
                Reading::Later(claim) => (None, Some(claim)),
                other => panic!("{other:?}"),
            };
            let rung = self.layout.consumers.room.ring();
            let items = &self.layout.producers.items;
            let pass_on = slept && listen_for_others(items, || list.len() > 0);
            drop(guard);
            rung.wake_one();
            if pass_on {
                items.pass_on();
            }
            return now.or_else(|| later.map(read)).expect("it was read");
        }
    }
}

/// Runs a step like `Core::with_claims`.
fn with_claims<T>(
    list: &RingList<'_, File, Process>,
    mut step: impl FnMut() -> Result<T, Failed>,
) -> Result<T, u32> {
    let mut heard = None;
    loop {
        match (step(), heard) {
            (Ok(done), _) => return Ok(done),
            (Err(Failed::Io(error)), _) => panic!("{error}"),
            (Err(Failed::NoClaim), None) => heard = Some(list.listen_for_claims()),
            (Err(Failed::NoClaim), Some(heard)) => return Err(heard),
        }
    }
}

/// Here there are two claims for the pieces of large items, and three producers that need one each.
fn three_producers_and_two_claims(capacity: u64, preemptions: usize) {
    let each = few(1, 5);
    check(preemptions, move || {
        let queue = Queue::new(capacity);
        let producers: Vec<_> = (0..3)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let process = Process(1 + number);
                    (0..each)
                        .for_each(|item| queue.put_large(&process, u64::from(number) * 100 + item));
                })
            })
            .collect();
        let consumer = Process(10);
        let mut all: Vec<_> = (0..3 * each).map(|_| queue.get_large(&consumer)).collect();
        for producer in producers {
            producer.join().unwrap();
        }
        for producer in 0..3 {
            assert!(all.iter().filter(|item| *item / 100 == producer).is_sorted(), "{all:?}");
        }
        all.sort_unstable();
        let put = (0..3).flat_map(|number| (0..each).map(move |item| number * 100 + item));
        assert!(all.iter().copied().eq(put), "{all:?}");
        assert_eq!(queue.list(&consumer).len(), 0);
    });
}

#[test]
fn more_producers_of_large_items_than_there_are_claims_all_put_theirs_one_at_a_time() {
    three_producers_and_two_claims(1, 1);
}

#[test]
fn more_producers_of_large_items_than_there_are_claims_all_put_theirs_without_a_bound() {
    // Four threads run at the same time. With even one preemption, loom takes more than half an
    // hour.
    three_producers_and_two_claims(0, few(0, 2) as usize);
}

#[test]
fn items_come_in_order_through_one_ring_after_the_other() {
    let count = few(4, 20);
    check(2, move || {
        let queue = Queue::new(0);
        let theirs = Arc::clone(&queue);
        let producer = thread::spawn(move || {
            (1..=count).for_each(|item| assert!(theirs.put(&Process(1), item)));
        });
        let consumer = Process(2);
        for item in 1..=count {
            assert_eq!(queue.get(&consumer), Some(item));
        }
        producer.join().unwrap();
        assert_eq!(queue.list(&consumer).len(), 0);
    });
}

#[test]
fn a_place_in_a_ring_is_filled_again_only_after_its_item_was_taken() {
    // The fourth item ends where the first one began, and the fifth lies in the first one's place.
    // So either the first item has been taken, or the new ones go to another ring.
    check(1, || {
        let queue = Queue::new(0);
        let producer = Process(1);
        (1..=3).for_each(|item| assert!(queue.put(&producer, item)));
        let theirs = Arc::clone(&queue);
        let consumer = thread::spawn(move || {
            let consumer = Process(2);
            (1..=2).for_each(|item| assert_eq!(theirs.get(&consumer), Some(item)));
        });
        (4..=5).for_each(|item| assert!(queue.put(&producer, item)));
        consumer.join().unwrap();
        (3..=5).for_each(|item| assert_eq!(queue.get(&producer), Some(item)));
    });
}

#[test]
fn a_producer_waits_for_room_and_is_woken() {
    let count = few(3, 20);
    check(2, move || {
        let queue = Queue::new(1);
        let theirs = Arc::clone(&queue);
        let producer = thread::spawn(move || {
            for item in 1..=count {
                assert!(theirs.put(&Process(1), item));
                assert!(theirs.list(&Process(1)).len() <= 1);
            }
        });
        for item in 1..=count {
            assert_eq!(queue.get(&Process(2)), Some(item));
        }
        producer.join().unwrap();
    });
}

#[test]
fn several_of_each_put_and_get_all_once() {
    let (each, threads) = (few(1, 6), few(1, 3) as u32);
    check(2, move || {
        let queue = Queue::new(few(0, 2));
        let producers: Vec<_> = (0..few(2, 3) as u32)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let process = Process(1 + number);
                    for item in 0..each {
                        assert!(queue.put(&process, u64::from(number) * 100 + item));
                    }
                })
            })
            .collect();
        let consumers: Vec<_> = (0..threads)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let process = Process(10 + number);
                    let mut got = Vec::new();
                    while let Some(item) = queue.get(&process) {
                        got.push(item);
                    }
                    got
                })
            })
            .collect();
        let count = producers.len() as u64 * each;
        for producer in producers {
            producer.join().unwrap();
        }
        queue.close(&Process(20));
        let mut all = Vec::new();
        for consumer in consumers {
            let got: Vec<u64> = consumer.join().unwrap();
            for producer in 0..3 {
                let of_one: Vec<_> = got.iter().filter(|item| *item / 100 == producer).collect();
                assert!(of_one.is_sorted(), "{got:?}");
            }
            all.extend(got);
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len() as u64, count);
    });
}

#[test]
fn closing_wakes_who_waits_and_loses_nothing() {
    check(2, || {
        let queue = Queue::new(1);
        let theirs = Arc::clone(&queue);
        let consumer = thread::spawn(move || {
            let mut got = 0;
            while theirs.get(&Process(2)).is_some() {
                got += 1;
            }
            got
        });
        let theirs = Arc::clone(&queue);
        let producer =
            thread::spawn(move || (0..2).filter(|item| theirs.put(&Process(1), *item)).count());
        queue.close(&Process(3));
        let put = producer.join().unwrap();
        assert_eq!(consumer.join().unwrap(), put);
        assert!(!queue.put(&Process(3), 1));
        assert_eq!(queue.get(&Process(3)), None);
    });
}

#[test]
fn each_of_several_that_sleep_is_woken_for_an_item_of_its_own() {
    let consumers = few(2, 3);
    check(2, move || {
        let queue = Queue::new(0);
        let consumers: Vec<_> = (0..consumers as u32)
            .map(|number| {
                let queue = Arc::clone(&queue);
                // It takes one item and never looks again.
                thread::spawn(move || queue.get(&Process(2 + number)).unwrap())
            })
            .collect();
        (0..consumers.len() as u64).for_each(|item| assert!(queue.put(&Process(1), item)));
        let mut all: Vec<u64> =
            consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
    });
}

/// Makes a queue of which this process holds one item. The item's entry is the second, and the
/// first entry is free.
fn with_one_in_hand(process: &Process) -> (Arc<Queue>, Held) {
    let queue = Queue::new(0);
    assert!(queue.put(process, 1) && queue.put(process, 2));
    let (first, second) = (queue.get_held(process), queue.get_held(process));
    assert!(queue.list(process).is_done(first, process.me()));
    (queue, second)
}

/// A worker puts follow-up items before it marks its own item as done, like one that crawls pages.
/// `more` runs in between.
fn never_finished(more: impl Fn(&Queue, &Process) + Copy + Send + Sync + 'static) {
    check(2, move || {
        let (queue, held) = with_one_in_hand(&Process(1));
        let theirs = Arc::clone(&queue);
        let joiner = thread::spawn(move || {
            let process = Process(2);
            let list = theirs.list(&process);
            assert!(!list.is_finished());
            assert_ne!(list.unfinished(), 0);
        });
        let process = Process(1);
        assert!(queue.put(&process, 3));
        more(&queue, &process);
        assert!(queue.list(&process).is_done(held, process.me()));
        joiner.join().unwrap();
        assert_eq!(queue.list(&process).unfinished(), 1);
    });
}

#[test]
fn a_queue_is_not_finished_when_each_item_is_put_before_the_last_one_is_done() {
    never_finished(|_, _| ());
}

#[test]
fn a_queue_is_not_finished_when_each_item_is_got_before_the_last_one_is_done() {
    never_finished(|queue, process| {
        queue.get_held(process);
    });
}
