//! A callback for each of ten tasks. It runs once, in the parent, and gets the result.

use std::{process, thread, time::Duration};

use executor::prelude::*;

#[task]
fn square(n: u64) -> u64 {
    println!("{n} in {}", process::id());
    thread::sleep(Duration::from_millis(10));
    n * n
}

fn done(outcome: Result<&u64, &TaskError>) {
    match outcome {
        Ok(value) => println!("callback in {}: {value}", process::id()),
        Err(error) => println!("callback in {}: {error}", process::id()),
    }
}

#[executor::main]
fn main() -> Result<(), executor::BuildError> {
    println!("main is {}", process::id());
    let pool = ProcessPoolExecutor::builder().max_workers(4).build()?;
    for n in 0..10 {
        pool.submit(square::task(n)).add_done_callback(done);
    }
    // Returns when all tasks have ended and all callbacks have run.
    pool.shutdown(true);
    println!("main ends");
    Ok(())
}
