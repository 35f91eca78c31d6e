//! Benchmarks of shared memory, with and without a name: creating, attaching and removing it.

use std::{
    fs::{self, File},
    hint::black_box,
    io::Write,
    time::{Duration, Instant},
};

use executor::SharedMemory;

use crate::Line;

const RUNS: usize = 5;
/// Number of objects that exist at the same time.
const BATCH: u64 = 50;

/// The median time of `make` in nanoseconds. The objects that it makes are dropped outside the
/// measured time.
fn median<T>(count: u64, mut make: impl FnMut(u64) -> T) -> f64 {
    let mut run = |count: u64| {
        let mut spent = Duration::ZERO;
        for from in (0..count).step_by(BATCH as usize) {
            let began = Instant::now();
            let made: Vec<T> = (from..from + BATCH).map(&mut make).collect();
            spent += began.elapsed();
            drop(made);
        }
        spent.as_secs_f64() / count as f64 * 1e9
    };
    run(count.div_ceil(10).next_multiple_of(BATCH));
    let mut times: Vec<f64> = (0..RUNS).map(|_| run(count.next_multiple_of(BATCH))).collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

fn name(number: u64) -> String {
    format!("bench-{}-{number}", std::process::id())
}

/// Creates and removes a file of one page in `/dev/shm`, without this library.
fn file(number: u64) -> File {
    let path = format!("/dev/shm/{}", name(number));
    let mut file = File::create_new(&path).expect("a new file");
    file.write_all(&[0; 4096]).expect("room");
    fs::remove_file(path).expect("it is there");
    file
}

fn named(number: u64) -> SharedMemory {
    SharedMemory::create_named(&name(number), 10_000).expect("a new name")
}

pub(crate) fn run(short: bool) {
    let count = if short { BATCH } else { 5_000 };
    let limit = ("a file made and removed", median(count, file));
    let mut lines =
        vec![Line { what: "memory, 1000 bytes", ours: median(count, |_| small()), limit }];
    lines.push(Line { what: "memory, 100 kB", ours: median(count, |_| large()), limit });
    lines.push(Line { what: "named memory", ours: median(count, named), limit });
    let one = |number| drop(black_box(named(number)));
    lines.push(Line { what: "named memory, and removed", ours: median(count, one), limit });
    let _there = named(1 << 32);
    let there = name(1 << 32);
    let attach = |_| drop(black_box(SharedMemory::attach(&there).expect("it is there")));
    lines.push(Line { what: "named memory, attached", ours: median(count, attach), limit });
    let many = if short { BATCH } else { 10_000 };
    // Keep only the names. A process may not have enough descriptors for so many objects.
    (0..many).for_each(|number| drop(named(1 << 33 | number).persistent().expect("it is ours")));
    lines.push(Line {
        what: "named memory beside 10,000 others",
        ours: median(count, named),
        limit,
    });
    for number in 0..many {
        SharedMemory::attach(&name(1 << 33 | number))
            .and_then(|memory| memory.unlink())
            .expect("it is there");
    }
    println!("{:<36} {:>12} {:>12}", "nanoseconds", "ours", "limit");
    for Line { what, ours, limit: (name, limit) } in lines {
        println!("{what:<36} {ours:>12.1} {limit:>12.1}  ({name})");
    }
}

fn small() -> SharedMemory {
    SharedMemory::create(1000).expect("memory")
}

fn large() -> SharedMemory {
    SharedMemory::create(100_000).expect("memory")
}
