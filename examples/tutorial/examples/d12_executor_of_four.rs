//! Ten tasks on an executor with four workers: at most four run at a time, and `shutdown` waits for
//! all.

use std::{process, thread, time::Duration};

use executor::prelude::*;

#[task]
fn task(name: u32) {
    println!("task {name} begins in {}", process::id());
    thread::sleep(Duration::from_millis(20));
    println!("task {name} ends in {}", process::id());
}

#[executor::main]
fn main() -> Result<(), executor::BuildError> {
    let pool = ProcessPoolExecutor::builder().max_workers(4).build()?;
    for name in 0..10 {
        // Dropping a future does not cancel its task.
        pool.submit(task::task(name));
    }
    pool.shutdown(true);
    println!("main ends");
    Ok(())
}
