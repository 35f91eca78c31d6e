//! Queues between processes.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use executor::{
    Child, Connection, Consumer, GetError, JoinableQueue, Lock, OnLost, ProcessPoolExecutor,
    Producer, PutError, Queue, SharedBytes, SimpleQueue, TaskError, Transfer, pipe, prelude::*,
};
use futures::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::support::{self, Gate, LONG, come_to, eventually, pool, watchdog, watchdog_of};

const SHORT: Duration = Duration::from_millis(50);

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn qu01_every_form_of_put_works_until_the_queue_is_full() {
    let _watchdog = watchdog();
    let queue = Queue::bounded(6).unwrap();
    queue.put(1).unwrap();
    queue.put_timeout(2, LONG).unwrap();
    queue.put_timeout(3, Duration::ZERO).unwrap();
    queue.try_put(4).unwrap();
    queue.clone().put(5).unwrap();
    assert!(!queue.is_full());
    futures::executor::block_on(queue.put_async(6)).unwrap();
    assert!(queue.is_full() && queue.len() == 6 && queue.capacity() == Some(6));
    for limit in [None, Some(Duration::ZERO), Some(SHORT)] {
        let started = Instant::now();
        let error = match limit {
            None => queue.try_put(7),
            Some(limit) => queue.put_timeout(7, limit),
        };
        assert!(matches!(&error, Err(PutError::Full(7))), "{error:?}");
        assert_eq!(error.unwrap_err().into_inner(), 7);
        assert!(started.elapsed() >= limit.unwrap_or_default());
    }
    let all: Vec<i32> = (0..6).map(|_| queue.get().unwrap()).collect();
    assert_eq!(all, [1, 2, 3, 4, 5, 6]);
    assert!(Queue::<u32>::bounded(0).is_err());
}

#[task]
fn put_all(queue: Queue<u32>, items: Vec<u32>) {
    for item in items {
        queue.put(item).unwrap();
    }
}

#[test]
fn qu02_every_form_of_get_returns_what_a_worker_has_put() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::unbounded().unwrap();
    pool.submit(put_all::task(queue.clone(), vec![1, 2, 3, 4])).result().unwrap();
    assert_eq!(queue.get().unwrap(), 1);
    assert_eq!(queue.get_timeout(LONG).unwrap(), 2);
    assert_eq!(queue.try_get().unwrap(), 3);
    assert_eq!(queue.get_timeout(Duration::ZERO).unwrap(), 4);
    for limit in [None, Some(Duration::ZERO), Some(SHORT)] {
        let started = Instant::now();
        let error = match limit {
            None => queue.try_get(),
            Some(limit) => queue.get_timeout(limit),
        };
        assert!(matches!(error, Err(GetError::Empty)), "{error:?}");
        assert!(started.elapsed() >= limit.unwrap_or_default());
    }
}

#[test]
fn qu04_len_is_exact_after_every_put_and_get() {
    let queue = Queue::unbounded().unwrap();
    assert!(queue.is_empty() && queue.capacity().is_none());
    for size in 1..=100 {
        queue.put(vec![0_u8; size * 100]).unwrap();
        assert_eq!((queue.len(), queue.is_empty()), (size, false));
    }
    for size in (0..100).rev() {
        queue.get().unwrap();
        assert_eq!(queue.len(), size);
    }
    assert!(queue.is_empty() && !queue.is_full());
}

static AT_INIT: LazyLock<(Queue<u32>, u32)> = LazyLock::new(|| {
    let queue = Queue::unbounded().unwrap();
    queue.put(7).unwrap();
    let got = queue.get().unwrap();
    (queue, got)
});

#[test]
fn qu06_a_queue_can_be_used_while_a_static_is_initialized() {
    let _watchdog = watchdog();
    assert_eq!(AT_INIT.1, 7);
    assert!(AT_INIT.0.is_empty());
}

#[test]
fn qu07_get_timeout_waits_for_its_whole_timeout() {
    let _watchdog = watchdog();
    let queue = Queue::<u32>::unbounded().unwrap();
    let limit = Duration::from_millis(200);
    let started = Instant::now();
    assert!(matches!(queue.get_timeout(limit), Err(GetError::Empty)));
    assert!(started.elapsed() >= limit);
}

/// A number that refuses to be encoded if it is odd.
#[derive(Debug, Deserialize)]
struct Fussy(u32);

impl Serialize for Fussy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 2 {
            0 => self.0.serialize(serializer),
            _ => Err(serde::ser::Error::custom("odd")),
        }
    }
}

#[test]
fn qu09_put_of_an_item_that_cannot_be_encoded_is_an_error_with_the_item() {
    let queue = Queue::unbounded().unwrap();
    match queue.put(Fussy(3)) {
        Err(PutError::Encode(Fussy(3), text)) => assert_eq!(text, "odd"),
        other => panic!("{other:?}"),
    }
    assert!(queue.is_empty());
    queue.put(Fussy(4)).unwrap();
    assert_eq!(queue.get().unwrap().0, 4);
}

#[test]
fn qu10_a_closed_queue_accepts_nothing_and_still_yields_its_items() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    queue.put(1).unwrap();
    queue.close();
    queue.close();
    assert!(queue.is_closed());
    assert!(matches!(queue.put(2), Err(PutError::Closed(2))));
    assert!(matches!(queue.try_put(2), Err(PutError::Closed(2))));
    assert_eq!(queue.get().unwrap(), 1);
    assert!(matches!(queue.get(), Err(GetError::Closed)));
    assert!(matches!(queue.try_get(), Err(GetError::Closed)));
    assert!(matches!(queue.get_timeout(LONG), Err(GetError::Closed)));
    // Closing also wakes waiting callers with an error.
    let (full, empty) = (Queue::bounded(1).unwrap(), Queue::<u32>::unbounded().unwrap());
    full.put(1).unwrap();
    thread::scope(|scope| {
        let putting = scope.spawn(|| full.put(2));
        let getting = scope.spawn(|| empty.get());
        full.close();
        empty.close();
        assert!(matches!(putting.join().unwrap(), Err(PutError::Closed(2))));
        assert!(matches!(getting.join().unwrap(), Err(GetError::Closed)));
    });
}

/// Returns how many descriptors this process has open, and how many mappings of queues' memory it
/// has.
fn open_and_mapped() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("/memfd:executor-queue")).count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), mapped)
}

/// Makes a queue, uses it in the given way and drops it, a hundred times. Returns `open_and_mapped`
/// before and after. The worker does nothing else meanwhile, so even one descriptor that stays open
/// is noticed.
#[task]
fn descriptors_of_queues(way: u8) -> [(usize, usize); 2] {
    let round = || {
        let queue = SimpleQueue::new().unwrap();
        match way {
            // The queue is emptied.
            0 => {
                queue.put(SharedBytes::copy_from_slice(b"x")).unwrap();
                queue.close();
                queue.get().unwrap();
                queue.close();
                assert!(matches!(queue.is_empty(), Err(GetError::Closed)));
            }
            // The queue still has items, with descriptors among them. It is closed in one way and
            // not in the other.
            1 | 2 => {
                (0..3).for_each(|_| queue.put(SharedBytes::copy_from_slice(b"x")).unwrap());
                if way == 1 {
                    queue.close();
                }
            }
            // The queue is received by a process that still has it, or no longer has it.
            3 | 4 => {
                let office = SimpleQueue::new().unwrap();
                office.put(queue.clone()).unwrap();
                office.put(queue.clone()).unwrap();
                let kept = (way == 3).then_some(queue);
                let received = (office.get().unwrap(), office.get().unwrap());
                assert!(received.0 == received.1 && kept.is_none_or(|kept| kept == received.0));
                received.0.put(SharedBytes::copy_from_slice(b"x")).unwrap();
                received.0.close();
            }
            // Large items, one of which stays in the queue.
            _ => {
                let queue = SimpleQueue::new().unwrap();
                (0..2).for_each(|_| queue.put(large('a')).unwrap());
                assert_eq!(queue.get().unwrap().len(), LARGE);
            }
        }
    };
    // The first round opens what all rounds share.
    round();
    let before = open_and_mapped();
    (0..100).for_each(|_| round());
    [before, open_and_mapped()]
}

/// Uses a queue that came as an argument and drops it. Afterwards the process must have as much
/// open as before.
#[task]
fn puts_and_closes(queue: SimpleQueue<u32>) {
    queue.put(1).unwrap();
    queue.close();
}

#[task]
fn what_is_open() -> (usize, usize) {
    open_and_mapped()
}

#[test]
fn qu11_a_closed_simple_queue_leaves_no_descriptor_open() {
    let _watchdog = watchdog();
    let queue = SimpleQueue::new().unwrap();
    queue.put(1).unwrap();
    assert!(!queue.is_empty().unwrap());
    queue.close();
    assert!(matches!(queue.is_empty(), Err(GetError::Closed)), "with an item in it");
    queue.close();
    assert!(matches!(queue.is_empty(), Err(GetError::Closed)));
    assert!(matches!(queue.put(2), Err(PutError::Closed(2))));
    assert_eq!(queue.get().unwrap(), 1);
    assert!(matches!(queue.is_empty(), Err(GetError::Closed)), "and when it is empty");
    assert!(matches!(queue.get(), Err(GetError::Closed)));
    let pool = pool(1);
    for way in 0..6 {
        let [before, after] = pool.submit(descriptors_of_queues::task(way)).result().unwrap();
        assert_eq!(before, after, "way {way}");
    }
    // The same in a process that did not make the queue.
    let pass = || {
        let queue = SimpleQueue::new().unwrap();
        pool.submit(puts_and_closes::task(queue.clone())).result().unwrap();
        assert_eq!(queue.get().unwrap(), 1);
        assert!(queue.is_empty().is_err());
    };
    let open = || pool.submit(what_is_open::task()).result().unwrap();
    pass();
    let before = open();
    (0..20).for_each(|_| pass());
    assert_eq!(before, open());
}

#[task]
fn put_emptiness(queue: SimpleQueue<bool>) {
    for _ in 0..2 {
        let empty = queue.is_empty().unwrap();
        queue.put(empty).unwrap();
    }
}

#[test]
fn qu12_is_empty_is_right_at_each_step() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = SimpleQueue::new().unwrap();
    assert!(queue.is_empty().unwrap());
    pool.submit(put_emptiness::task(queue.clone())).result().unwrap();
    assert!(!queue.is_empty().unwrap());
    assert!(queue.get().unwrap());
    assert!(!queue.get().unwrap());
    assert!(queue.is_empty().unwrap());
}

#[test]
fn qu14_more_calls_of_task_done_than_puts_are_an_error() {
    let queue = JoinableQueue::unbounded().unwrap();
    assert!(queue.task_done().is_err());
    queue.put(1).unwrap();
    assert_eq!((queue.get().unwrap(), queue.unfinished()), (1, 1));
    queue.task_done().unwrap();
    assert!(queue.task_done().is_err());
    assert_eq!(queue.unfinished(), 0);
}

#[task]
fn work_off(queue: JoinableQueue<u32>, sums: Queue<u32>) {
    let mut sum = 0;
    while let Ok(item) = queue.get_unfinished() {
        sum += *item;
    }
    sums.put(sum).unwrap();
}

#[test]
fn join_returns_only_when_all_items_are_done() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (queue, sums) = (JoinableQueue::bounded(3).unwrap(), Queue::unbounded().unwrap());
    assert!(queue.join_timeout(Duration::ZERO).unwrap());
    queue.put(1).unwrap();
    assert!(!queue.join_timeout(SHORT).unwrap());
    let workers: Vec<_> =
        (0..2).map(|_| pool.submit(work_off::task(queue.clone(), sums.clone()))).collect();
    for item in 2..=100 {
        queue.put(item).unwrap();
    }
    queue.join().unwrap();
    assert!(queue.is_empty() && queue.unfinished() == 0);
    futures::executor::block_on(queue.join_async()).unwrap();
    queue.close();
    workers.into_iter().for_each(|worker| worker.result().unwrap());
    assert_eq!(sums.get().unwrap() + sums.get().unwrap(), 5050);
}

#[task]
fn get_one_and_die(queue: JoinableQueue<u32>) {
    queue.get().unwrap();
    std::process::abort();
}

#[test]
fn join_reports_the_items_that_a_dead_process_held() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = JoinableQueue::unbounded().unwrap();
    for item in 0..5 {
        queue.put(item).unwrap();
    }
    assert!(pool.submit(get_one_and_die::task(queue.clone())).result().is_err());
    assert_eq!(queue.join().unwrap_err().count, 1);
    // This living process gets and finishes the other items.
    let mut all = Vec::new();
    while let Ok(item) = queue.try_get() {
        all.push(item);
        assert!(
            !queue.join_timeout(Duration::ZERO).unwrap(),
            "it is in the hands of one that lives"
        );
        queue.task_done().unwrap();
    }
    assert_eq!(all, [1, 2, 3, 4]);
    queue.join().unwrap();
}

#[test]
fn qu18_a_task_of_a_running_pool_puts_and_the_parent_gets() {
    let _watchdog = watchdog();
    let pool = pool(2);
    // Make sure that the pool runs.
    pool.submit(support::pid::task()).result().unwrap();
    let queue = Queue::unbounded().unwrap();
    let tasks: Vec<_> = (0..10)
        .map(|i| pool.submit(put_all::task(queue.clone(), vec![10 * i, 10 * i + 1])))
        .collect();
    let mut all: Vec<u32> = (0..20).map(|_| queue.get().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..10).flat_map(|i| [10 * i, 10 * i + 1]).collect::<Vec<_>>());
    tasks.into_iter().for_each(|task| task.result().unwrap());
}

#[test]
fn qu19_a_queue_is_not_empty_right_after_a_put() {
    for _ in 0..1000 {
        let queue = Queue::unbounded().unwrap();
        queue.put(1).unwrap();
        assert!(!queue.is_empty() && queue.try_get().unwrap() == 1);
    }
}

#[task]
fn put_and_nest(queue: Queue<u32>, depth: u32) {
    queue.put(depth).unwrap();
    if depth > 0 {
        let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
        pool.submit(put_and_nest::task(queue, depth - 1)).result().unwrap();
    }
}

#[test]
fn qu20_a_worker_and_its_own_worker_put_into_the_same_queue() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::unbounded().unwrap();
    pool.submit(put_and_nest::task(queue.clone(), 2)).result().unwrap();
    assert_eq!([queue.get().unwrap(), queue.get().unwrap(), queue.get().unwrap()], [2, 1, 0]);
}

#[derive(Serialize, Deserialize)]
struct Office {
    inbox: Queue<String>,
    trays: Vec<Option<Queue<String>>>,
    by_name: HashMap<String, JoinableQueue<u8>>,
}

#[task]
fn answer_mail(office: Office) -> Office {
    let letter = office.inbox.get().unwrap();
    office.trays[1].as_ref().unwrap().put(letter.to_uppercase()).unwrap();
    office.by_name["x"].put(1).unwrap();
    office
}

#[test]
fn queues_nested_in_arguments_and_results_are_the_same_queues() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (inbox, tray, joinable) = (
        Queue::unbounded().unwrap(),
        Queue::unbounded().unwrap(),
        JoinableQueue::unbounded().unwrap(),
    );
    inbox.put("letter".to_owned()).unwrap();
    let office = Office {
        inbox: inbox.clone(),
        trays: vec![None, Some(tray.clone()), Some(inbox.clone())],
        by_name: [("x".to_owned(), joinable.clone())].into(),
    };
    let back = pool.submit(answer_mail::task(office)).result().unwrap();
    assert!(
        back.inbox == inbox
            && back.trays[1] == Some(tray.clone())
            && back.trays[2] == Some(inbox.clone())
    );
    assert!(back.inbox != tray);
    assert!(back.by_name["x"] == joinable);
    assert_eq!(tray.get().unwrap(), "LETTER");
    assert_eq!(joinable.len(), 1);
    // The handle that came back still works.
    back.inbox.put("again".to_owned()).unwrap();
    assert_eq!(inbox.get().unwrap(), "again");
    let error = serde_json::to_string(&inbox).unwrap_err().to_string();
    assert!(error.contains("a Queue:") && error.contains("serde_json"), "{error}");
}

#[test]
fn getting_an_item_as_another_type_is_a_decode_error() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    queue.put("text".to_owned()).unwrap();
    let (one, other) = pipe::<Queue<String>, Queue<u32>>().unwrap();
    let other = other.with_types::<(), Queue<u32>>();
    one.send(&queue).unwrap();
    let of_numbers = other.recv().unwrap();
    assert!(
        matches!(of_numbers.get(), Err(GetError::Decode(_))),
        "the types are the sender's to keep"
    );
    assert!(queue.is_empty());
}

#[task]
fn produce(queue: Queue<(u32, u32, Vec<u8>)>, producer: u32, count: u32) {
    for number in 0..count {
        let len = (number as usize * 37) % 3000;
        queue.put((producer, number, vec![number as u8; len])).unwrap();
    }
}

#[task]
fn consume(queue: Queue<(u32, u32, Vec<u8>)>) -> BTreeMap<u32, Vec<u32>> {
    let mut got = BTreeMap::<u32, Vec<u32>>::new();
    loop {
        match queue.get() {
            Ok((producer, number, bytes)) => {
                assert!(bytes.iter().all(|byte| *byte == number as u8));
                got.entry(producer).or_default().push(number);
            }
            Err(GetError::Closed) => return got,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn many_producers_and_consumers_pass_each_item_once_and_in_its_producers_order() {
    let _watchdog = watchdog();
    let pool = pool(8);
    for queue in [Queue::bounded(5).unwrap(), Queue::unbounded().unwrap()] {
        let consumers: Vec<_> = (0..4).map(|_| pool.submit(consume::task(queue.clone()))).collect();
        let producers: Vec<_> =
            (0..4).map(|i| pool.submit(produce::task(queue.clone(), i, 500))).collect();
        producers.into_iter().for_each(|producer| producer.result().unwrap());
        queue.close();
        let mut all = BTreeMap::<u32, Vec<u32>>::new();
        for consumer in consumers {
            for (producer, numbers) in consumer.result().unwrap() {
                assert!(numbers.is_sorted(), "{numbers:?}");
                all.entry(producer).or_default().extend(numbers);
            }
        }
        assert_eq!(all.len(), 4);
        for (_, mut numbers) in all {
            numbers.sort_unstable();
            assert_eq!(numbers, (0..500).collect::<Vec<_>>());
        }
        assert!(queue.is_empty());
    }
}

#[task]
fn put_large(queue: Queue<SharedOr>, len: usize) {
    queue.put(SharedOr::Bytes(serde_bytes_of(len))).unwrap();
}

/// A string that is encoded in one piece, as a task's argument is.
#[derive(Serialize, Deserialize)]
enum SharedOr {
    Bytes(String),
}

fn serde_bytes_of(len: usize) -> String {
    "0123456789abcdef".repeat(len.div_ceil(16))
}

#[test]
fn items_larger_than_any_buffer_arrive() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let queue = Queue::unbounded().unwrap();
    let lens = [1, 60_000, 70_000, 262_000, 262_100, 262_144, 300_000, 5 << 20, 64 << 20];
    for len in lens {
        let put = pool.submit(put_large::task(queue.clone(), len));
        let SharedOr::Bytes(text) = queue.get().unwrap();
        assert!(text == serde_bytes_of(len), "{len}");
        put.result().unwrap();
    }
    // `put` returns without a `get`.
    pool.submit(put_large::task(queue.clone(), 64 << 20)).result().unwrap();
    assert_eq!(queue.len(), 1);
}

#[test]
#[ignore = "takes 8 GiB of memory: `cargo test --release --test objects queue:: -- --ignored`"]
fn items_of_more_than_two_gigabytes_arrive() {
    let _watchdog = watchdog_of(Duration::from_secs(900));
    let queue = Queue::unbounded().unwrap();
    let len = (2_usize << 30) + 12_352;
    queue.put(serde_bytes_of(len)).unwrap();
    queue.put("after".to_owned()).unwrap();
    assert_eq!(queue.get().unwrap().len(), len);
    assert_eq!(queue.get().unwrap(), "after");
}

#[test]
fn a_backlog_of_a_hundred_thousand_items_arrives_in_order() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    for round in 0..3_u64 {
        for number in 0..100_000_u64 {
            queue.put((round, number)).unwrap();
        }
        assert_eq!(queue.len(), 100_000);
        for number in 0..100_000_u64 {
            assert_eq!(queue.get().unwrap(), (round, number));
        }
    }
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
}

#[task]
fn put_and_die(queue: Queue<String>, gate: &Path) {
    for len in [10, 100_000, 1_000_000] {
        queue.put(serde_bytes_of(len)).unwrap();
    }
    come_to(gate);
}

#[test]
fn items_survive_the_death_of_their_producer() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::unbounded().unwrap();
    let gate = Gate::new();
    let pid = pool.submit(support::pid::task()).result().unwrap();
    let lost = pool.submit(put_and_die::task(queue.clone(), gate.path()));
    gate.wait_for(1);
    kill(pid);
    assert!(matches!(lost.result(), Err(TaskError::WorkerLost { .. })));
    for len in [10, 100_000, 1_000_000] {
        assert!(queue.get().unwrap() == serde_bytes_of(len));
    }
    assert!(queue.is_empty());
}

#[task]
fn wait_in_get(queue: Queue<u32>) -> u32 {
    queue.get().unwrap()
}

#[test]
fn a_consumer_killed_while_it_waits_does_not_affect_others() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let queue = Queue::unbounded().unwrap();
    for _ in 0..20 {
        let victim = pool.submit(wait_in_get::task(queue.clone()));
        eventually("it runs", || victim.running());
        victim.cancel_running();
        let other = pool.submit(wait_in_get::task(queue.clone()));
        assert!(victim.result().is_err());
        queue.put(7).unwrap();
        assert_eq!(other.result().unwrap(), 7);
    }
}

#[task]
fn produce_through(queue: Producer<u32>, count: u32, then_die: bool) {
    for number in 0..count {
        queue.put(number).unwrap();
    }
    if then_die {
        std::process::abort();
    }
}

#[test]
fn a_split_queue_closes_when_its_last_producer_is_dropped_or_dies() {
    let _watchdog = watchdog();
    let pool = pool(2);
    for then_die in [false, true] {
        let (producer, consumer) = Queue::bounded(3).unwrap().split().unwrap();
        let tasks: Vec<_> = (0..2)
            .map(|_| pool.submit(produce_through::task(producer.clone(), 50, then_die)))
            .collect();
        drop(producer);
        let mut count = 0;
        loop {
            match consumer.get() {
                Ok(_) => count += 1,
                Err(GetError::Closed) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(count, 100);
        assert!(matches!(consumer.try_get(), Err(GetError::Closed)));
        for task in tasks {
            assert_eq!(task.result().is_err(), then_die);
        }
    }
}

#[task]
fn consume_one_and_die(queue: Consumer<u32>) {
    queue.get().unwrap();
    std::process::abort();
}

#[test]
fn put_fails_when_the_last_consumer_is_gone() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (producer, consumer) = Queue::bounded(1).unwrap().split().unwrap();
    let task = pool.submit(consume_one_and_die::task(consumer));
    let mut put = 0;
    let error = loop {
        match producer.put(put) {
            Ok(()) => put += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PutError::Closed(_)) && put >= 1);
    assert!(task.result().is_err());
}

#[derive(Serialize, Deserialize)]
enum Parcel {
    Socket(Transfer<TcpStream>),
    File(Transfer<File>),
    Connection(Connection<u32, u32>),
    Bytes(SharedBytes),
    Back(Queue<u64>, Lock),
}

#[task]
fn open_parcels(queue: Queue<Parcel>) -> u32 {
    let mut count = 0;
    while let Ok(parcel) = queue.get() {
        match parcel {
            Parcel::Socket(socket) => (&*socket).write_all(b"over tcp").unwrap(),
            Parcel::File(mut file) => file.write_all(b"into the file").unwrap(),
            Parcel::Connection(connection) => {
                connection.send(&(connection.recv().unwrap() + 1)).unwrap()
            }
            Parcel::Bytes(bytes) => assert_eq!(*bytes, *b"shared"),
            Parcel::Back(queue, lock) => {
                let _guard = lock.acquire();
                queue.put(u64::from(count)).unwrap();
            }
        }
        count += 1;
    }
    count
}

#[test]
fn mx13_sockets_files_connections_and_shared_objects_can_be_put_into_a_queue() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::unbounded().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    queue.put(Parcel::Socket(listener.accept().unwrap().0.into())).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    queue.put(Parcel::File(file.try_clone().unwrap().into())).unwrap();
    let (ours, theirs) = pipe().unwrap();
    queue.put(Parcel::Connection(theirs)).unwrap();
    queue.put(Parcel::Bytes(SharedBytes::copy_from_slice(b"shared"))).unwrap();
    let (back, lock) = (Queue::unbounded().unwrap(), Lock::new().unwrap());
    queue.put(Parcel::Back(back.clone(), lock)).unwrap();
    queue.close();
    let opened = pool.submit(open_parcels::task(queue));
    ours.send(&1).unwrap();
    assert_eq!(ours.recv().unwrap(), 2);
    assert!(ours.recv().is_err(), "an end of it was left somewhere");
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "over tcp");
    assert_eq!(back.get().unwrap(), 4);
    assert_eq!(opened.result().unwrap(), 5);
    file.seek(SeekFrom::Start(0)).unwrap();
    text.clear();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "into the file");
}

#[test]
fn put_waits_when_the_system_accepts_no_more_descriptors_and_loses_nothing() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let bytes = SharedBytes::copy_from_slice(b"many");
    let mut put = 0;
    let error = loop {
        match queue.try_put((put, bytes.clone())) {
            Ok(()) => put += 1,
            Err(error) => break error,
        }
        assert!(put < 100_000);
    };
    assert!(matches!(error, PutError::Full(_) | PutError::Io(..)), "{error:?}");
    assert!(put > 50, "{put}");
    // A waiting `put` goes on when others get items.
    let getting = thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.put_timeout((put, bytes.clone()), LONG));
        for number in 0..put {
            let (got, bytes) = queue.get().unwrap();
            assert_eq!((got, &*bytes), (number, &b"many"[..]));
        }
        waiting.join().unwrap()
    });
    getting.unwrap();
    assert_eq!(queue.get().unwrap().0, put);
    assert!(queue.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_can_be_awaited_and_cancelling_loses_no_item() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (queue, back) = (Queue::bounded(2).unwrap(), Queue::bounded(2).unwrap());
    let task = pool.submit(double::task(queue.clone(), back.clone()));
    let putting = {
        let queue = queue.clone();
        tokio::spawn(async move {
            for number in 0..200_u32 {
                queue.put_async(number).await.unwrap();
            }
            queue.close();
        })
    };
    for number in 0..200_u32 {
        // The future is dropped again and again.
        let got = loop {
            if let Ok(got) = tokio::time::timeout(Duration::from_micros(50), back.get_async()).await
            {
                break got.unwrap();
            }
        };
        assert_eq!(got, 2 * number);
    }
    putting.await.unwrap();
    task.await.unwrap();
    assert!(matches!(queue.get_async().await, Err(GetError::Closed)));
}

#[task]
fn double(queue: Queue<u32>, back: Queue<u32>) {
    while let Ok(number) = queue.get() {
        back.put(2 * number).unwrap();
    }
}

#[tokio::test]
async fn stream_and_sink_carry_all_items_in_order() {
    let _watchdog = watchdog();
    let (producer, consumer) = Queue::bounded(4).unwrap().split().unwrap();
    let putting = async move {
        let items = (0..100_u32).map(Ok);
        producer.sink().send_all(&mut futures::stream::iter(items)).await.unwrap();
    };
    let getting = async { consumer.stream().map(Result::unwrap).collect::<Vec<u32>>().await };
    let ((), all) = tokio::join!(putting, getting);
    assert_eq!(all, (0..100).collect::<Vec<_>>());
}

#[test]
fn queues_can_be_awaited_without_tokio() {
    let _watchdog = watchdog();
    let queue = Queue::bounded(1).unwrap();
    let all = futures::executor::block_on(async {
        let putting = async {
            for number in 0..50_u32 {
                queue.put_async(number).await.unwrap();
            }
        };
        let getting = async {
            let mut all = Vec::new();
            while all.len() < 50 {
                all.push(queue.get_async().await.unwrap());
            }
            all
        };
        futures::join!(putting, getting).1
    });
    assert_eq!(all, (0..50).collect::<Vec<_>>());
}

#[test]
fn joining_a_worker_before_the_get_does_not_hang() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::unbounded().unwrap();
    // Far more than a pipe holds, and nothing gets items while the worker is joined.
    pool.submit(put_large::task(queue.clone(), 10 << 20)).result().unwrap();
    pool.shutdown(true);
    let SharedOr::Bytes(text) = queue.get().unwrap();
    assert_eq!(text.len(), 10 << 20);
}

/// Longer than the items that are stored in a ring.
const LARGE: usize = 300_000;

/// Returns a text, which is encoded in one piece.
fn large(letter: char) -> String {
    letter.to_string().repeat(LARGE)
}

#[test]
fn consumers_make_progress_while_very_many_producers_of_large_items_wait() {
    let _watchdog = watchdog();
    const PRODUCERS: usize = 80;
    for capacity in [1, 70] {
        let queue = Queue::bounded(capacity).unwrap();
        for _ in 0..capacity {
            queue.put((0, large('a'))).unwrap();
        }
        thread::scope(|scope| {
            for number in 1..=PRODUCERS {
                let queue = &queue;
                scope.spawn(move || queue.put((number, large('b'))).unwrap());
            }
            let mut counts = BTreeMap::new();
            for _ in 0..PRODUCERS + capacity {
                let (number, text) = queue.get().unwrap();
                assert!(text == large(if number == 0 { 'a' } else { 'b' }));
                *counts.entry(number).or_insert(0) += 1;
            }
            assert_eq!(counts.remove(&0), Some(capacity));
            assert!(
                counts.len() == PRODUCERS && counts.values().all(|count| *count == 1),
                "{counts:?}"
            );
        });
    }
}

/// Returns the memory used by the files of this process's queues. The tests that call it run in a
/// worker that has only one queue.
fn bytes_of_queues() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_it =
            std::fs::read_link(&path).ok()?.to_string_lossy().starts_with("/memfd:executor-queue");
        is_it.then(|| File::open(path).ok()).flatten()
    });
    files.map(|file| file.metadata().unwrap().blocks() * 512).sum()
}

/// Returns how many items' memory a queue with a bound of one uses at most, with ten producers.
#[task]
fn ten_producers_of_ten_megabytes_at_a_bound_of_one() -> u64 {
    const LEN: usize = 10 << 20;
    let queue = Queue::bounded(1).unwrap();
    let most = thread::scope(|scope| {
        let producers: Vec<_> =
            (0..10).map(|_| scope.spawn(|| queue.put_timeout("a".repeat(LEN), LONG))).collect();
        let mut most = 0;
        for _ in 0..9 {
            eventually("the queue is full", || queue.is_full());
            // Give every producer time to write before the item is got, if it is going to.
            for _ in 0..20 {
                most = most.max(bytes_of_queues());
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(queue.get().unwrap().len(), LEN);
        }
        queue.get().unwrap();
        producers.into_iter().for_each(|producer| producer.join().unwrap().unwrap());
        most
    });
    most / LEN as u64
}

#[test]
fn the_bound_of_a_queue_limits_the_memory_of_items_being_put() {
    let _watchdog = watchdog();
    // The item, and the memory kept for the next one.
    let items =
        pool(1).submit(ten_producers_of_ten_megabytes_at_a_bound_of_one::task()).result().unwrap();
    assert!(items <= 2, "{items} items lie in a queue for one");
}

#[task]
fn put_without_end(queue: Queue<u64>) {
    let mut number = 0;
    while queue.put(number).is_ok() {
        number += 1;
    }
}

#[task]
fn get_without_end(queue: Queue<u64>) {
    loop {
        let _ = queue.try_get();
    }
}

/// Lets a process use a queue and stops it, again and again, until it is stopped while it holds one
/// of the queue's locks. Then nobody else gets that lock before the process is continued or killed.
/// `is_in_the_way` tells which lock is held, by trying an operation.
fn with_a_process_stopped_within_a_lock(
    start: impl Fn(Queue<u64>) -> Child<()>,
    is_in_the_way: impl Fn(&Queue<u64>) -> bool,
    then: impl FnOnce(&Queue<u64>, Child<()>),
) {
    for _ in 0..2_000 {
        let queue = Queue::unbounded().unwrap();
        let child = start(queue.clone());
        // The child has started and is somewhere in its loop.
        eventually("it is at it", || ticks(child.pid()) > 0);
        support::stop(child.pid());
        if is_in_the_way(&queue) {
            return then(&queue, child);
        }
        child.kill().unwrap();
        child.wait_exit();
    }
    panic!("it was never stopped within a lock");
}

/// Returns the user time of a process, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(11)?.parse().ok())
        .unwrap_or_default()
}

/// Polls ten new futures. None may be ready, and at least the quickest poll must not have been
/// blocked.
fn is_pending_at_once<T>(mut future: impl FnMut() -> std::pin::Pin<Box<dyn Future<Output = T>>>) {
    let quickest = (0..10).map(|_| {
        let mut future = future();
        let began = Instant::now();
        assert!(futures::FutureExt::now_or_never(future.as_mut()).is_none(), "it is ready");
        began.elapsed()
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest < SHORT, "the thread was blocked for {quickest:?}");
}

#[test]
fn an_awaited_put_does_not_block_while_a_stopped_process_holds_the_lock() {
    let _watchdog = watchdog();
    with_a_process_stopped_within_a_lock(
        |queue| executor::Process::new(put_without_end::task(queue)).daemon(true).start().unwrap(),
        |queue| queue.put_timeout(7, SHORT).is_err(),
        |queue, child| {
            let queue = queue.clone();
            is_pending_at_once(|| {
                let queue = queue.clone();
                Box::pin(async move { queue.put_async(7).await })
            });
            // These calls return at once or after a timeout. The error must not be `Full`, because
            // there is memory available.
            assert!(matches!(queue.try_put(7), Err(PutError::Busy(7))));
            assert!(matches!(queue.put_timeout(7, SHORT), Err(PutError::Busy(7))));
            futures::executor::block_on(async {
                let put = queue.put_async(u64::MAX);
                let killed = async {
                    child.kill().unwrap();
                    child.wait_exit();
                };
                futures::join!(put, killed).0
            })
            .unwrap();
            let all: Vec<u64> = std::iter::from_fn(|| queue.try_get().ok()).collect();
            assert_eq!(all.last(), Some(&u64::MAX));
        },
    );
}

#[test]
fn an_awaited_get_does_not_block_while_a_stopped_process_holds_the_lock() {
    let _watchdog = watchdog();
    with_a_process_stopped_within_a_lock(
        |queue| executor::Process::new(get_without_end::task(queue)).daemon(true).start().unwrap(),
        |queue| {
            queue.put(7).unwrap();
            queue.get_timeout(SHORT).is_err()
        },
        |queue, child| {
            let queue = queue.clone();
            is_pending_at_once(|| {
                let queue = queue.clone();
                Box::pin(async move { queue.get_async().await })
            });
            assert!(matches!(queue.try_get(), Err(GetError::Busy)));
            assert!(matches!(queue.get_timeout(SHORT), Err(GetError::Busy)));
            let got = futures::executor::block_on(async {
                let killed = async {
                    child.kill().unwrap();
                    child.wait_exit();
                };
                futures::join!(queue.get_async(), killed).0
            });
            // The killed process has taken nothing.
            assert_eq!(got.unwrap(), 7);
        },
    );
}

#[task]
fn get_and_die(queue: JoinableQueue<u32>) {
    let _ = queue.get();
    std::process::abort();
}

#[test]
fn join_returns_after_more_successive_deaths_than_the_table_has_entries() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::unbounded().unwrap();
    for number in 0..70 {
        queue.put(number).unwrap();
        executor::Process::new(get_and_die::task(queue.clone())).start().unwrap().wait_exit();
    }
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, 70);
    queue.join().unwrap();
    // The next death is noticed as well.
    queue.put(0).unwrap();
    executor::Process::new(get_and_die::task(queue.clone())).start().unwrap().wait_exit();
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, 1);
    queue.join().unwrap();
}

#[task]
fn get_and_wait(queue: JoinableQueue<u32>, gate: &Path) {
    let _ = queue.get();
    come_to(gate);
}

#[test]
fn join_returns_after_more_simultaneous_deaths_than_the_table_has_entries() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::unbounded().unwrap();
    let gate = Gate::new();
    let children: Vec<_> = (0..40)
        .map(|number| {
            queue.put(number).unwrap();
            let body = get_and_wait::task(queue.clone(), gate.path());
            executor::Process::new(body).start().unwrap()
        })
        .collect();
    gate.wait_for(40);
    assert_eq!((queue.len(), queue.unfinished()), (0, 40));
    let joining = thread::spawn({
        let queue = queue.clone();
        move || queue.join_timeout(LONG)
    });
    children.iter().for_each(|child| child.kill().unwrap());
    for child in &children {
        child.wait_exit();
    }
    // The processes die one after the other, so `join` may report them in parts.
    let mut lost = joining.join().unwrap().unwrap_err().count;
    while let Err(more) = queue.join_timeout(LONG) {
        lost += more.count;
    }
    assert_eq!(lost, 40);
}

#[task]
fn take_one(queue: JoinableQueue<u32>) -> u32 {
    queue.get().unwrap()
}

#[test]
fn an_item_is_not_lost_while_the_process_that_got_it_lives_without_a_handle() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = JoinableQueue::unbounded().unwrap();
    queue.put(5).unwrap();
    let worker = pool.submit(support::pid::task()).result().unwrap();
    // The worker got the item, and this process works on it.
    let item = pool.submit(take_one::task(queue.clone())).result().unwrap();
    // Long enough for `join` to check for dead processes more than once.
    assert!(!queue.join_timeout(Duration::from_millis(350)).unwrap());
    assert_eq!((item, queue.task_done(), queue.join_timeout(LONG)), (5, Ok(()), Ok(true)));
    // The item counts as held by the process that got it, as long as that process lives.
    queue.put(6).unwrap();
    pool.submit(take_one::task(queue.clone())).result().unwrap();
    kill(worker);
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, 1);
    assert!(queue.task_done().is_err());
}

#[task]
fn get_large_and_die(queue: JoinableQueue<String>) {
    let _ = queue.get();
    std::process::abort();
}

#[test]
fn a_try_get_among_many_large_items_leaves_no_item_counted_as_held() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::bounded(2).unwrap();
    let threads: Vec<_> = (0..40)
        .map(|_| {
            let queue = queue.clone();
            thread::spawn(move || queue.put_timeout(large('a'), Duration::from_secs(1)).is_ok())
        })
        .collect();
    eventually("it is full", || queue.is_full());
    if queue.try_get().is_ok() {
        queue.task_done().unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    executor::Process::new(get_large_and_die::task(queue.clone())).start().unwrap().wait_exit();
    while queue.try_get().is_ok() {
        queue.task_done().unwrap();
    }
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, 1);
    queue.join().unwrap();
}

#[derive(Serialize)]
struct CannotBeDecoded(u8);

impl<'de> Deserialize<'de> for CannotBeDecoded {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("it cannot be decoded")
    }
}

#[test]
fn an_item_whose_decoding_panics_or_fails_counts_as_done() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::unbounded().unwrap();
    let get = |how: &dyn Fn()| {
        queue.put(CannotBeDecoded(1)).unwrap();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(how)).is_err());
        assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
    };
    get(&|| drop(queue.get_unfinished()));
    get(&|| drop(queue.get()));
    get(&|| drop(queue.get_timeout(LONG)));
    get(&|| drop(queue.try_get()));
    get(&|| drop(futures::executor::block_on(queue.get_async())));
    get(&|| drop(futures::executor::block_on(queue.stream().next())));
    // An item that fails to decode counts as done as well: an error of `get` leaves nothing
    // unfinished.
    let failing = JoinableQueue::unbounded().unwrap();
    failing.put(NeverDecoded(1)).unwrap();
    assert!(matches!(failing.get(), Err(GetError::Decode(_))));
    assert_eq!((failing.join_timeout(Duration::ZERO), failing.unfinished()), (Ok(true), 0));
    assert!(failing.task_done().is_err());
}

#[derive(Serialize)]
struct NeverDecoded(u8);

impl<'de> Deserialize<'de> for NeverDecoded {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("never"))
    }
}

/// Fills queues with descriptors, as an ordinary user whose processes may have few open files.
#[task]
fn fill_queues_with_handles() -> Result<usize, String> {
    if rustix::process::geteuid().is_root() {
        // Become a user with no other processes. This also gives up root's privileges, which exempt
        // it from the limit.
        // SAFETY: only changes this process's user ids.
        assert_eq!(unsafe { libc::setuid(support::user_of_its_own()) }, 0);
    }
    let limit = rustix::process::Rlimit { current: Some(128), maximum: Some(128) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let queues: Vec<Queue<SharedBytes>> = (0..5).map(|_| Queue::unbounded().unwrap()).collect();
    let bytes = SharedBytes::copy_from_slice(b"x");
    let mut put = 0;
    for queue in &queues {
        for _ in 0..300 {
            match queue.try_put(bytes.clone()) {
                Ok(()) => put += 1,
                Err(PutError::Full(_)) => break,
                Err(other) => return Err(format!("{other:?}")),
            }
        }
    }
    // Other senders of this user can still send descriptors.
    let (here, there) = pipe::<SharedBytes, SharedBytes>().unwrap();
    here.send(&bytes).map_err(|error| format!("{error:?}"))?;
    assert_eq!(*there.recv().unwrap(), *b"x");
    // Getting items makes room for others.
    let full = queues.iter().find(|queue| !queue.is_empty()).unwrap();
    drop((full.get().unwrap(), full.get().unwrap()));
    full.try_put(bytes).map_err(|error| format!("{error:?}"))?;
    Ok(put)
}

#[test]
fn items_with_descriptors_leave_room_for_other_descriptors_the_user_sends() {
    let _watchdog = watchdog();
    let put =
        executor::Process::new(fill_queues_with_handles::task()).start().unwrap().join().unwrap();
    assert!((10..128).contains(&put), "{put} items with a handle each lie in queues");
}

#[task]
fn get_many_and_die(queue: JoinableQueue<u32>, count: usize) {
    for _ in 0..count {
        let _ = queue.get();
    }
    std::process::abort();
}

#[test]
fn items_held_by_dead_processes_are_got_again_with_on_lost_requeue() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::bounded(12).unwrap().on_lost(OnLost::Requeue);
    for number in 0..12 {
        queue.put(number).unwrap();
    }
    for _ in 0..5 {
        let body = get_many_and_die::task(queue.clone(), 3);
        executor::Process::new(body).start().unwrap().wait_exit();
    }
    let all: Vec<u32> = (0..12).map(|_| *queue.get_unfinished().unwrap()).collect();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..12).collect::<Vec<_>>());
    // The items that the last process had held come first.
    assert_eq!(all[..3], [0, 1, 2]);
    assert_eq!((queue.join_timeout(LONG), queue.len(), queue.unfinished()), (Ok(true), 0, 0));
    assert!(queue.lost_items().next().is_none());
}

#[test]
fn a_waiting_consumer_gets_the_item_of_a_process_that_dies() {
    let _watchdog = watchdog();
    for closed in [false, true] {
        for awaited in [false, true] {
            let queue = JoinableQueue::unbounded().unwrap().on_lost(OnLost::Requeue);
            queue.put(7).unwrap();
            let gate = Gate::new();
            let holder = executor::Process::new(get_and_wait::task(queue.clone(), gate.path()))
                .start()
                .unwrap();
            gate.wait_for(1);
            if closed {
                queue.close();
            }
            assert!(matches!(queue.try_get(), Err(GetError::Empty)), "it may come back");
            let waiting = thread::spawn({
                let queue = queue.clone();
                move || match awaited {
                    true => futures::executor::block_on(queue.get_async()),
                    false => queue.get(),
                }
            });
            holder.kill().unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), 7);
            assert!(!queue.join_timeout(Duration::ZERO).unwrap());
            queue.task_done().unwrap();
            queue.join().unwrap();
            queue.close();
            assert!(matches!(queue.get(), Err(GetError::Closed)));
        }
    }
}

#[test]
fn a_waiting_consumer_of_a_closed_queue_returns_when_the_held_item_is_done() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::unbounded().unwrap().on_lost(OnLost::Requeue);
    queue.put(7).unwrap();
    let gate = Gate::new();
    let holder =
        executor::Process::new(get_and_wait::task(queue.clone(), gate.path())).start().unwrap();
    gate.wait_for(1);
    queue.close();
    let waiting = thread::spawn({
        let queue = queue.clone();
        move || queue.get()
    });
    // The holder got the item, and this process marks it as done.
    queue.task_done().unwrap();
    assert!(matches!(waiting.join().unwrap(), Err(GetError::Closed)));
    gate.open();
    holder.wait_exit();
    assert_eq!(queue.join_timeout(LONG), Ok(true));
}

#[test]
fn lost_items_returns_the_items_kept_with_on_lost_keep() {
    let _watchdog = watchdog();
    let queue = JoinableQueue::unbounded().unwrap().on_lost(OnLost::Keep);
    for number in 0..6 {
        queue.put(number).unwrap();
    }
    let body = get_many_and_die::task(queue.clone(), 4);
    executor::Process::new(body).start().unwrap().wait_exit();
    (4..6).for_each(|number| assert_eq!(*queue.get_unfinished().unwrap(), number));
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, 4);
    queue.join().unwrap();
    let mut lost = queue.lost_items();
    assert_eq!(lost.next().unwrap().unwrap(), 0);
    assert_eq!(queue.lost_items().map(Result::unwrap).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(lost.next().is_none() && queue.unfinished() == 0);
    // The queue can still be used.
    queue.put(8).unwrap();
    assert_eq!(*queue.get_unfinished().unwrap(), 8);
}

#[test]
fn with_on_lost_requeue_put_rejects_an_item_with_descriptors() {
    let queue = JoinableQueue::unbounded().unwrap().on_lost(OnLost::Requeue);
    let error = queue.put(SharedBytes::copy_from_slice(b"x")).unwrap_err();
    assert!(
        matches!(&error, PutError::Io(_, error) if error.to_string().contains("handles")),
        "{error:?}"
    );
    assert_eq!((queue.len(), queue.unfinished()), (0, 0));
}

#[test]
fn more_items_than_the_first_table_has_entries_can_be_held_and_done_in_any_order() {
    let _watchdog = watchdog();
    const COUNT: u32 = 3_000;
    let queue = JoinableQueue::unbounded().unwrap();
    for round in 0..3 {
        (0..COUNT).for_each(|number| queue.put(number).unwrap());
        let mut held: Vec<_> = (0..COUNT).map(|_| queue.get_unfinished().unwrap()).collect();
        assert_eq!((queue.unfinished(), queue.len()), (COUNT as usize, 0));
        match round {
            0 => held.reverse(),
            1 => held.sort_by_key(|item| item.wrapping_mul(0x9e37_79b9)),
            _ => {}
        }
        let last = held.pop();
        drop(held);
        assert_eq!((queue.unfinished(), queue.join_timeout(Duration::ZERO)), (1, Ok(false)));
        drop(last);
        assert_eq!((queue.unfinished(), queue.join_timeout(LONG)), (0, Ok(true)));
    }
    // All held items are counted when their process dies.
    (0..COUNT).for_each(|number| queue.put(number).unwrap());
    let body = get_many_and_die::task(queue.clone(), COUNT as usize);
    executor::Process::new(body).start().unwrap().wait_exit();
    assert_eq!(queue.join_timeout(LONG).unwrap_err().count, COUNT as usize);
    queue.join().unwrap();
}

#[test]
fn more_items_can_be_held_than_tables_of_a_megabyte_have_entries() {
    let _watchdog = watchdog();
    const COUNT: usize = 40_000;
    let queue = JoinableQueue::unbounded().unwrap();
    (0..COUNT as u32).for_each(|number| queue.put(number).unwrap());
    let held: Vec<_> = (0..COUNT).map(|_| queue.get_unfinished().unwrap()).collect();
    assert_eq!(queue.unfinished(), COUNT);
    drop(held);
    assert_eq!((queue.unfinished(), queue.join_timeout(LONG)), (0, Ok(true)));
}

/// Returns the processor time that this process has used.
fn processor_time() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(clock).unwrap()
}

/// Fills a queue with items that have a descriptor each, then waits for room with four producers of
/// items of `len` bytes. Returns the processor time that the waiting took.
#[task]
fn waits_for_room_for_handles(len: usize, awaited: bool, files: u64) -> Duration {
    let limits = support::limit_of(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit {
        current: limits.maximum.map_or(Some(files), |most| Some(most.min(files))),
        ..limits
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let queue = Queue::unbounded().unwrap();
    let bytes = SharedBytes::copy_from_slice(b"x");
    let mut put = 0;
    while queue.try_put((String::new(), bytes.clone())).is_ok() {
        put += 1;
        assert!(put < 100_000);
    }
    let item = "a".repeat(len);
    let waiting = Duration::from_secs(1);
    let began = processor_time();
    if awaited {
        let put = || queue.put_async((item.clone(), bytes.clone()));
        let puts = futures::future::join_all((0..4).map(|_| put()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(waiting, puts).await.unwrap_err() });
    } else {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let refused =
                        queue.put_timeout((item.clone(), bytes.clone()), waiting).unwrap_err();
                    assert!(matches!(refused, PutError::Full(_)), "{refused:?}");
                });
            }
        });
    }
    let used = processor_time().saturating_sub(began);
    // Nothing was rejected for good: the next item still arrives.
    let all = thread::scope(|scope| {
        let last = scope.spawn(|| queue.put_timeout((item.clone(), bytes.clone()), LONG).unwrap());
        let all = (0..=put).map(|_| queue.get().unwrap().0.len()).sum::<usize>();
        last.join().unwrap();
        all
    });
    assert_eq!((all, queue.len()), (len, 0));
    used
}

#[test]
fn a_producer_sleeps_while_there_is_no_room_for_its_descriptors() {
    let _watchdog = watchdog();
    // With few open files, their number is the limit. With many, the full socket is.
    for (len, awaited, files) in [
        (10, false, 128),
        (400_000, false, 128),
        (400_000, true, 128),
        (10, false, 100_000),
        (400_000, false, 100_000),
        (400_000, true, 100_000),
    ] {
        // On a busy machine, some processor time may be charged by accident. A producer that polls
        // uses it in every attempt.
        let sleeps = (0..5).any(|_| {
            let body = waits_for_room_for_handles::task(len, awaited, files);
            let used = executor::Process::new(body).start().unwrap().join().unwrap();
            println!("{len} bytes, awaited: {awaited}, {files} files: {used:?}");
            used < Duration::from_millis(400)
        });
        assert!(sleeps, "{len} bytes, awaited: {awaited}, {files} files");
    }
}

#[task]
fn gets_a_large_item_without_memory(requeued: bool) -> (String, usize) {
    const LEN: usize = 64 << 20;
    let queue = JoinableQueue::<String>::unbounded().unwrap();
    let queue = if requeued { queue.on_lost(OnLost::Requeue) } else { queue };
    queue.put("a".repeat(LEN)).unwrap();
    if requeued {
        // Another process has held the item before and died.
        executor::Process::new(get_large_and_die::task(queue.clone())).start().unwrap().wait_exit();
    }
    let size: u64 = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let none = support::limit_of(rustix::process::Resource::As);
    let limit = rustix::process::Rlimit { current: Some(size * 4096 + (16 << 20)), ..none };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    let error = queue.get_timeout(LONG).map(|item| item.len()).unwrap_err();
    rustix::process::setrlimit(rustix::process::Resource::As, none).unwrap();
    (format!("{error:?}"), queue.get_timeout(LONG).map_or(0, |item| item.len()))
}

#[test]
fn an_item_stays_in_the_queue_when_there_is_no_memory_to_get_it() {
    let _watchdog = watchdog();
    for requeued in [false, true] {
        let process = executor::Process::new(gets_a_large_item_without_memory::task(requeued));
        let (error, len) = process.start().unwrap().join().unwrap();
        assert!(error.contains("memory"), "{error}");
        assert_eq!(len, 64 << 20, "{requeued}");
    }
}
