//! Passes a gigabyte to tasks without copying it.
//!
//! ```text
//! cargo run --release --example gigabyte            64 MiB
//! cargo run --release --example gigabyte -- 1024    a gigabyte
//! ```
//!
//! A worker makes the bytes and returns them as a [`SharedBytes`]. All workers then check parts of
//! them. Every process maps the same pages. The resident size (RSS) of each process counts all of
//! these pages. The proportional size (PSS) divides each page among the processes that map it, so
//! the sum over all processes is one copy.

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use executor::{SharedBytes, prelude::*, usable_cpus};

/// Fills `len` bytes with a pattern that is not constant.
#[task]
fn produce(len: usize) -> std::io::Result<SharedBytes> {
    let mut bytes = SharedBytes::try_zeroed(len)?;
    let (words, _) = bytes.get_mut().expect("nobody else has it yet").as_chunks_mut::<8>();
    for (i, word) in words.iter_mut().enumerate() {
        *word = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    Ok(bytes)
}

/// Sums the words of one part, and reads them in place.
#[task]
fn checksum(bytes: SharedBytes, part: usize, parts: usize) -> u64 {
    let size = bytes.len().div_ceil(parts).next_multiple_of(8);
    let (start, end) = ((part * size).min(bytes.len()), ((part + 1) * size).min(bytes.len()));
    let (words, _) = bytes[start..end].as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// Reads all the bytes and returns the memory that they take: (process, resident KiB, proportional
/// KiB).
#[task]
fn footprint(bytes: SharedBytes) -> std::io::Result<(u32, u64, u64)> {
    checksum(bytes.clone(), 0, 1);
    // Wait until the other workers have read them too: a proportional size depends on how many
    // processes map a page.
    std::thread::sleep(Duration::from_millis(300));
    let text = fs::read_to_string("/proc/self/smaps")?;
    // Count only the mapping of these bytes. In smaps, a header line is followed by its figures.
    let mut ours = false;
    let (mut resident, mut proportional) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        match first {
            "Rss:" if ours => resident += second.parse::<u64>().unwrap_or(0),
            "Pss:" if ours => proportional += second.parse::<u64>().unwrap_or(0),
            range if range.contains('-') => ours = line.contains("memfd:executor-bytes"),
            _ => {}
        }
    }
    // Do not unmap the bytes before the other workers have measured.
    std::thread::sleep(Duration::from_millis(300));
    Ok((std::process::id(), resident, proportional))
}

#[executor::main]
fn main() -> Result<(), Box<dyn Error>> {
    let mebibytes: usize = std::env::args().nth(1).map_or(Ok(64), |arg| arg.parse())?;
    let len = mebibytes << 20;
    let workers = usable_cpus().clamp(2, 4);
    let pool = ProcessPoolExecutor::builder().max_workers(workers).build()?;

    let started = Instant::now();
    let bytes = pool.submit(produce::task(len)).result()?;
    println!("made {mebibytes} MiB in a worker      {:>10.1?}", started.elapsed());

    let started = Instant::now();
    let first = bytes[..8.min(len)].to_vec();
    println!("looked at it in the parent   {:>10.1?}  ({first:02x?})", started.elapsed());

    let parts = workers * 4;
    let started = Instant::now();
    let sums = pool.map(|part| checksum::task(bytes.clone(), part, parts), 0..parts);
    let total = sums.sum::<Result<Wrapping, TaskError>>()?;
    let time = started.elapsed();
    let rate = len as f64 / time.as_secs_f64() / 1e9;
    println!(
        "summed by {workers} workers            {time:>10.1?}  ({rate:.1} GB/s, checksum {:016x})",
        total.0
    );

    let futures: Vec<_> =
        (0..workers).map(|_| pool.submit(footprint::task(bytes.clone()))).collect();
    let mut shares = 0;
    for future in futures {
        let (process, resident, proportional) = future.result()?;
        shares += proportional;
        println!(
            "worker {process}: resident {} MiB, proportional {} MiB",
            resident >> 10,
            proportional >> 10
        );
    }
    println!("all of them together hold {} MiB of {mebibytes}: there is one copy", shares >> 10);
    Ok(())
}

/// A sum that wraps on overflow.
struct Wrapping(u64);

impl std::iter::Sum<u64> for Wrapping {
    fn sum<I: Iterator<Item = u64>>(iter: I) -> Self {
        Wrapping(iter.fold(0, u64::wrapping_add))
    }
}
