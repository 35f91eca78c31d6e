//! Benchmarks of connections: round trips, and messages in one direction.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Barrier,
    thread,
    time::Instant,
};

use executor::{Connection, Receiver, Semaphore, channel, pipe, prelude::*};

use crate::{medians, queue::python};

#[task]
fn echo(peer: Connection<u64, u64>) {
    while let Ok(number) = peer.recv() {
        peer.send(&number).expect("it is received");
    }
}

#[task]
fn take_bytes(peer: Receiver<()>, ready: Semaphore) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    ready.release();
    let mut count = 0;
    while peer.recv_bytes_into(&mut buffer).is_ok() {
        count += 1;
    }
    count
}

/// Microseconds for a round trip, and for one over a bare socket to a thread.
fn round_trips(pool: &ProcessPoolExecutor, count: u64) -> [f64; 2] {
    let (ours, theirs) = pipe::<u64, u64>().expect("a pipe");
    let task = pool.submit(echo::task(theirs));
    let (mut near, mut far) = UnixStream::pair().expect("a pair");
    let thread = thread::spawn(move || {
        let mut bytes = [0; 8];
        while far.read_exact(&mut bytes).is_ok() {
            far.write_all(&bytes).expect("it is read");
        }
    });
    let each = |began: Instant| began.elapsed().as_secs_f64() / count as f64 * 1e6;
    let figures = medians(
        || {
            let began = Instant::now();
            for number in 0..count {
                ours.send(&number).expect("it is received");
                assert_eq!(ours.recv().expect("it comes back"), number);
            }
            each(began)
        },
        || {
            let began = Instant::now();
            for number in 0..count {
                near.write_all(&number.to_le_bytes()).expect("it is read");
                near.read_exact(&mut [0; 8]).expect("it comes back");
            }
            each(began)
        },
    );
    drop((ours, near));
    task.result().expect("it ends");
    thread.join().expect("it ends");
    figures
}

/// Messages per second in one direction, from the first to the end of the task that takes them.
fn one_way(pool: &ProcessPoolExecutor, size: usize, count: u64) -> f64 {
    let (sender, receiver) = channel::<()>().expect("a pipe");
    let ready = Semaphore::new(0).expect("memory");
    let task = pool.submit(take_bytes::task(receiver, ready.clone()));
    let message = vec![7; size];
    ready.acquire().forget();
    let began = Instant::now();
    for _ in 0..count {
        sender.send_bytes(&message).expect("it is received");
    }
    drop(sender);
    assert_eq!(task.result().expect("it takes them"), count);
    count as f64 / began.elapsed().as_secs_f64()
}

/// The same bytes over a bare socket to another thread, with one system call for each message at
/// either end.
fn one_way_over_socket(size: usize, count: u64) -> f64 {
    let (mut from, mut to) = UnixStream::pair().expect("a pair");
    let together = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let message = vec![7; size];
            together.wait();
            (0..count).for_each(|_| to.write_all(&message).expect("it is read"));
        });
        let mut message = vec![0; size];
        together.wait();
        let began = Instant::now();
        (0..count).for_each(|_| from.read_exact(&mut message).expect("it is written"));
        count as f64 / began.elapsed().as_secs_f64()
    })
}

pub(crate) fn run(short: bool) {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool");
    let python = python(short, "connection");
    let line = |what: &str, [ours, limit]: [f64; 2], demanded: &str| {
        let theirs = python.as_ref().and_then(|figures| figures[what].as_f64());
        let theirs = theirs.map_or("–".into(), |figure| format!("{figure:.1}"));
        println!(
            "{what:<32} {ours:>12.1} {theirs:>16} {limit:>12.1} {:>10.2} {demanded:>9}",
            ours / limit
        );
    };
    println!(
        "{:<32} {:>12} {:>16} {:>12} {:>10} {:>9}",
        "", "ours", "multiprocessing", "a socket", "ours / it", "demanded"
    );
    let count = if short { 20 } else { 20_000 };
    line("round trip, microseconds", round_trips(&pool, count), "");
    for (size, name, count, demanded) in [
        (16, "16 B one way, messages a second", 300_000, "≥ 1.5"),
        (1024, "1 KiB one way, messages a second", 300_000, ""),
        (1 << 20, "1 MiB one way, messages a second", 2_000_u64, ""),
    ] {
        let count = if short { (count / 1_000).max(8) } else { count };
        let figures = medians(|| one_way(&pool, size, count), || one_way_over_socket(size, count));
        line(name, figures, demanded);
    }
}
