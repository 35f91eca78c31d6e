//! Seven tasks on five workers: two of the tasks run in a process that has already run another one.

use std::{process, thread, time::Duration};

use executor::{Pool, prelude::*};

#[task]
fn worker(name: String) -> String {
    println!("{name} begins in {}", process::id());
    thread::sleep(Duration::from_millis(40));
    format!("{name} was in {}", process::id())
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(5)?;
    println!("--start--");
    let results: Vec<_> =
        (1..=7).map(|n| pool.apply_async(worker::task(format!("mark{n}")))).collect();
    pool.close();
    pool.join()?;
    for result in results {
        // In the tutorial, results are not read, and an error would be lost. Here `join` logs the
        // errors of results that nobody has read.
        println!("{}", result.get()?);
    }
    println!("--end--");
    Ok(())
}
