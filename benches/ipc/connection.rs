//! Benchmarks of connections: round trips, and messages in one direction.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Instant,
};

use executor::{Connection, Receiver, channel, pipe, prelude::*};

use crate::queue::python;

const RUNS: usize = 5;

#[task]
fn echo(peer: Connection<u64, u64>) {
    while let Ok(number) = peer.recv() {
        peer.send(&number).expect("it is received");
    }
}

#[task]
fn take_bytes(peer: Receiver<()>) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    let mut count = 0;
    while peer.recv_bytes_into(&mut buffer).is_ok() {
        count += 1;
    }
    count
}

fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut figures: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    figures.sort_by(f64::total_cmp);
    figures[RUNS / 2]
}

/// Microseconds for a round trip.
fn round_trip(pool: &ProcessPoolExecutor, count: u64) -> f64 {
    let (ours, theirs) = pipe::<u64, u64>().expect("a pipe");
    let task = pool.submit(echo::task(theirs));
    let figure = median(|| {
        let began = Instant::now();
        for number in 0..count {
            ours.send(&number).expect("it is received");
            assert_eq!(ours.recv().expect("it comes back"), number);
        }
        began.elapsed().as_secs_f64() / count as f64 * 1e6
    });
    drop(ours);
    task.result().expect("it ends");
    figure
}

fn raw_round_trip(count: u64) -> f64 {
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    let echo = thread::spawn(move || {
        let mut bytes = [0; 8];
        while theirs.read_exact(&mut bytes).is_ok() {
            theirs.write_all(&bytes).expect("it is read");
        }
    });
    let figure = median(|| {
        let began = Instant::now();
        for number in 0..count {
            ours.write_all(&number.to_le_bytes()).expect("it is read");
            ours.read_exact(&mut [0; 8]).expect("it comes back");
        }
        began.elapsed().as_secs_f64() / count as f64 * 1e6
    });
    drop(ours);
    echo.join().expect("it ends");
    figure
}

/// Messages per second in one direction.
fn one_way(pool: &ProcessPoolExecutor, size: usize, count: u64) -> f64 {
    median(|| {
        let (sender, receiver) = channel::<()>().expect("a pipe");
        let task = pool.submit(take_bytes::task(receiver));
        let message = vec![7; size];
        let began = Instant::now();
        for _ in 0..count {
            sender.send_bytes(&message).expect("it is received");
        }
        drop(sender);
        assert_eq!(task.result().expect("it takes them"), count);
        count as f64 / began.elapsed().as_secs_f64()
    })
}

fn raw_one_way(size: usize, count: u64) -> f64 {
    median(|| {
        let (mut from, mut to) = UnixStream::pair().expect("a pair");
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(move || {
                let message = vec![7; size];
                (0..count).for_each(|_| to.write_all(&message).expect("it is read"));
            });
            let mut message = vec![0; size];
            (0..count).for_each(|_| from.read_exact(&mut message).expect("it is written"));
        });
        count as f64 / began.elapsed().as_secs_f64()
    })
}

pub(crate) fn run(short: bool) {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool");
    let python = python(short, "connection");
    let line = |what: &str, ours: f64, limit: f64| {
        let theirs = python.as_ref().and_then(|figures| figures[what].as_f64());
        let theirs = theirs.map_or("–".into(), |figure| format!("{figure:.1}"));
        println!("{what:<36} {ours:>12.1} {theirs:>16} {limit:>12.1}");
    };
    println!("{:<36} {:>12} {:>16} {:>12}", "", "ours", "multiprocessing", "a socket");
    let count = if short { 20 } else { 20_000 };
    line("round trip, microseconds", round_trip(&pool, count), raw_round_trip(count));
    for (size, name, count) in [
        (16, "16 B one way, messages a second", 300_000),
        (1024, "1 KiB one way, messages a second", 300_000),
        (1 << 20, "1 MiB one way, messages a second", 2_000_u64),
    ] {
        let count = if short { (count / 1_000).max(8) } else { count };
        line(name, one_way(&pool, size, count), raw_one_way(size, count));
    }
}
