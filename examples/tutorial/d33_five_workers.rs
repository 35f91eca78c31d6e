//! Seven tasks on five workers: two processes serve a second task.

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
    let results: Vec<_> = (1..=7).map(|n| pool.apply_async(worker::task(format!("mark{n}")))).collect();
    pool.close();
    pool.join()?;
    for result in results {
        // Unread, an error would be lost, as it was in the tutorial; here the join would have logged it.
        println!("{}", result.get()?);
    }
    println!("--end--");
    Ok(())
}
