//! Five tasks of random length in a pool of four processes. The fifth task runs in the first
//! process that becomes free.

use std::{
    hash::{BuildHasher, RandomState},
    process, thread,
    time::{Duration, Instant},
};

use executor::{Pool, prelude::*};

#[task]
fn long_time_task(name: u32) {
    println!("Run task {name} ({})...", process::id());
    let start = Instant::now();
    let random = RandomState::new().hash_one(name) % 60;
    thread::sleep(Duration::from_millis(20 + random));
    println!("Task {name} ({}) runs {:.2} seconds.", process::id(), start.elapsed().as_secs_f64());
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("Parent process {}.", process::id());
    let pool = Pool::new(4)?;
    for name in 0..5 {
        pool.apply_async(long_time_task::task(name));
    }
    println!("Waiting for all subprocesses done...");
    pool.close();
    pool.join()?;
    println!("All subprocesses done.");
    Ok(())
}
