//! Measures the cost of large arguments and results, one task at a time.
//!
//! Run it with `cargo bench --bench bytes` (`-- --quick` for a shorter run). Beside each figure is
//! the cost of the same copies within one process.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use executor::{SharedBytes, prelude::*};

#[task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[task]
fn sum_of_ends(bytes: &[u8]) -> u64 {
    ends(bytes)
}

/// Reads every byte.
#[task]
fn sum(bytes: SharedBytes) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn ends(bytes: &[u8]) -> u64 {
    bytes.first().zip(bytes.last()).map_or(0, |(first, last)| u64::from(*first) + u64::from(*last))
}

fn main() {
    executor::init();
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--list") {
        return;
    }
    let quick = args.iter().any(|arg| arg == "--quick") || !args.iter().any(|arg| arg == "--bench");
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().expect("a pool");
    for size in [1 << 10, 64 << 10, 1 << 20, 64 << 20] {
        if quick && size > 1 << 20 {
            break;
        }
        let rounds = (if quick { 4 << 20 } else { 1 << 30 } / size).clamp(2, 20_000);
        let bytes = vec![7_u8; size];
        let mut segment = vec![1_u8; size];
        let mut back = vec![1_u8; size];
        let copies = rate(size, rounds, || {
            segment.copy_from_slice(&bytes);
            let argument = segment.clone();
            back.copy_from_slice(&argument);
            black_box(back.clone());
        });
        let echoed = rate(size, rounds, || {
            let future = pool.submit(echo::task(bytes.clone()));
            assert_eq!(future.result().expect("a result").len(), size);
        });
        let read = rate(size, rounds, || {
            pool.submit(sum_of_ends::task(&bytes)).result().expect("a result");
        });
        let warm = rate(size, rounds, || {
            segment.copy_from_slice(&bytes);
            black_box(&segment);
        });
        let kept = SharedBytes::copy_from_slice(&bytes);
        let shared = rate(size, rounds, || {
            pool.submit(sum::task(kept.clone())).result().expect("a result");
        });
        let fresh = rate(size, rounds, || {
            let bytes = SharedBytes::copy_from_slice(&bytes);
            pool.submit(sum::task(bytes)).result().expect("a result");
        });
        println!("{} KiB, in MB/s", size >> 10);
        println!(
            "    echo                   {echoed:>8.0}    four copies within one process {copies:>8.0}"
        );
        println!(
            "    one way, borrowed      {read:>8.0}    a warm copy within one process {warm:>8.0}"
        );
        println!("    SharedBytes, kept      {shared:>8.0}");
        println!("    SharedBytes, made anew {fresh:>8.0}");
    }
}

/// Returns MB/s for `work`, from the median time of five repetitions.
fn rate(size: usize, rounds: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let started = Instant::now();
            (0..rounds.div_ceil(5)).for_each(|_| work());
            started.elapsed()
        })
        .collect();
    times.sort();
    (size * rounds.div_ceil(5)) as f64 / times[2].as_secs_f64() / 1e6
}
