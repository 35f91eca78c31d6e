//! Benchmarks of queues: items per second, for several numbers of producers and consumers and
//! several sizes.

use std::{
    fmt,
    io::{Read, Write},
    process::Command,
    sync::Barrier as ThreadBarrier,
    thread,
    time::Instant,
};

use executor::{Barrier, Queue, prelude::*};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::medians;

/// Bytes that are encoded as one byte string, not byte by byte. Sixteen bytes are not on the heap:
/// the pipe beside them does not allocate either.
enum Bytes {
    Sixteen([u8; 16]),
    More(Vec<u8>),
}

impl Bytes {
    fn new(size: usize) -> Self {
        if size == 16 { Bytes::Sixteen([7; 16]) } else { Bytes::More(vec![7; size]) }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Sixteen(bytes) => bytes,
            Bytes::More(bytes) => bytes,
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_slice())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(bytes.try_into().map_or_else(|_| Bytes::More(bytes.to_vec()), Bytes::Sixteen))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[task]
fn put_many(queue: Queue<Bytes>, together: Barrier, size: usize, count: u64) {
    together.wait().expect("all come");
    for _ in 0..count {
        queue.put(Bytes::new(size)).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[task]
fn get_many(queue: Queue<Bytes>, together: Barrier) -> u64 {
    together.wait().expect("all come");
    let mut count = 0;
    while let Ok(item) = queue.get() {
        assert_eq!(item.as_slice()[0], 7);
        count += 1;
    }
    count
}

/// Items per second through a [`Queue`].
fn ours(
    pool: &ProcessPoolExecutor,
    producers: usize,
    consumers: usize,
    size: usize,
    count: u64,
) -> f64 {
    // Use a bound, as a real program would. With a bound, memory is reused; without one, producers
    // run ahead of the consumers.
    let queue = Queue::bounded(if size > 100_000 { 16 } else { 1024 }).expect("memory");
    let together = Barrier::new(producers + consumers + 1).expect("memory");
    let getting: Vec<_> = (0..consumers)
        .map(|_| pool.submit(get_many::task(queue.clone(), together.clone())))
        .collect();
    let each = count / producers as u64;
    let putting: Vec<_> = (0..producers)
        .map(|_| pool.submit(put_many::task(queue.clone(), together.clone(), size, each)))
        .collect();
    together.wait().expect("all come");
    let began = Instant::now();
    putting.into_iter().for_each(|task| task.result().expect("it puts"));
    queue.close();
    let got: u64 = getting.into_iter().map(|task| task.result().expect("it gets")).sum();
    let took = began.elapsed();
    assert_eq!(got, each * producers as u64);
    got as f64 / took.as_secs_f64()
}

/// Items per second for the same bytes through a pipe, from one thread to another, with one system
/// call for each item at either end.
fn through_pipe(size: usize, count: u64) -> f64 {
    let (mut from, mut to) = std::io::pipe().expect("a pipe");
    let together = ThreadBarrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let item = vec![7; size];
            together.wait();
            (0..count).for_each(|_| to.write_all(&item).expect("it is read"));
        });
        let mut item = vec![0; size];
        together.wait();
        let began = Instant::now();
        (0..count).for_each(|_| from.read_exact(&mut item).expect("it is written"));
        count as f64 / began.elapsed().as_secs_f64()
    })
}

pub(crate) fn python(short: bool, section: &str) -> Option<serde_json::Value> {
    if short {
        return None;
    }
    let python = std::env::var_os("EXECUTOR_BENCH_PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/ipc/message_peers.py");
    let output = Command::new(python).args(["-B", script, section]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

pub(crate) fn run(short: bool) {
    // The largest number of producers and consumers at one queue: they all run at the same time,
    // and each needs a worker.
    let pool = ProcessPoolExecutor::builder().max_workers(44).build().expect("a pool");
    let python = python(short, "queue");
    println!(
        "{:<20} {:>12} {:>16} {:>12} {:>10} {:>9}",
        "items a second", "ours", "multiprocessing", "a pipe", "ours / it", "demanded"
    );
    for (size, name, count) in
        [(16, "16 B", 1_000_000), (1024, "1 KiB", 500_000), (1 << 20, "1 MiB", 2_000_u64)]
    {
        let count = if short { (count / 1_000).max(8) } else { count };
        let all: &[_] = if size > 100_000 {
            &[(1, 1), (4, 1), (4, 4), (40, 1), (40, 4)]
        } else {
            &[(1, 1), (4, 1), (4, 4)]
        };
        for &(producers, consumers) in all {
            let what = format!("{name}, {producers}:{consumers}");
            let [ours, pipe] = medians(
                || ours(&pool, producers, consumers, size, count.max(producers as u64)),
                || through_pipe(size, count),
            );
            let theirs = python.as_ref().and_then(|figures| figures[&what].as_f64());
            let theirs = theirs.map_or("–".into(), |figure| format!("{figure:.0}"));
            let demanded = if size == 16 && producers == consumers { "≥ 2" } else { "" };
            println!(
                "{what:<20} {ours:>12.0} {theirs:>16} {pipe:>12.0} {:>10.2} {demanded:>9}",
                ours / pipe
            );
        }
    }
}
