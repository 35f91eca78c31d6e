//! Benchmarks of queues: items per second, for several numbers of producers and consumers and
//! several sizes.

use std::{
    fmt,
    io::{Read, Write},
    process::Command,
    thread,
    time::Instant,
};

use executor::{Barrier, Queue, prelude::*};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const RUNS: usize = 5;

/// Bytes that are encoded as one byte string, not byte by byte.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
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
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[task]
fn put_many(queue: Queue<Bytes>, together: Barrier, size: usize, count: u64) {
    let mut item = Bytes(vec![7; size]);
    together.wait().expect("all come");
    for _ in 0..count {
        // Put an equal item each time.
        queue
            .put(std::mem::replace(&mut item, Bytes(Vec::new())))
            .unwrap_or_else(|error| panic!("{error:?}"));
        item = Bytes(vec![7; size]);
    }
}

#[task]
fn get_many(queue: Queue<Bytes>, together: Barrier) -> u64 {
    together.wait().expect("all come");
    let mut count = 0;
    while let Ok(item) = queue.get() {
        assert_eq!(item.0[0], 7);
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
    let run = || {
        // Use a bound, as a real program would. With a bound, memory is reused; without one,
        // producers run ahead of the consumers.
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
    };
    let mut rates: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

/// Items per second for the same bytes through a pipe, from one thread to another.
fn pipe(size: usize, count: u64) -> f64 {
    let run = || {
        let (mut from, mut to) = std::io::pipe().expect("a pipe");
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(move || {
                let item = vec![7; size];
                (0..count).for_each(|_| to.write_all(&item).expect("it is read"));
            });
            let mut item = vec![0; size];
            (0..count).for_each(|_| from.read_exact(&mut item).expect("it is written"));
        });
        count as f64 / began.elapsed().as_secs_f64()
    };
    let mut rates: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
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
    println!("{:<36} {:>12} {:>16} {:>12}", "items a second", "ours", "multiprocessing", "a pipe");
    for (size, name, count) in
        [(16, "16 B", 1_000_000), (1024, "1 KiB", 500_000), (1 << 20, "1 MiB", 2_000_u64)]
    {
        let count = if short { (count / 1_000).max(8) } else { count };
        let limit = pipe(size, count);
        let all: &[_] = if size > 100_000 {
            &[(1, 1), (4, 1), (4, 4), (40, 1), (40, 4)]
        } else {
            &[(1, 1), (4, 1), (4, 4)]
        };
        for &(producers, consumers) in all {
            let what = format!("{name}, {producers}:{consumers}");
            let ours = ours(&pool, producers, consumers, size, count.max(producers as u64));
            let theirs = python.as_ref().and_then(|figures| figures[&what].as_f64());
            let theirs = theirs.map_or("–".into(), |figure| format!("{figure:.0}"));
            println!("{what:<36} {ours:>12.0} {theirs:>16} {limit:>12.0}");
        }
    }
}
