//! Two processes, one longer than the other: `is_alive` before and after `join`; default names and given ones.

use std::{thread::sleep, time::Duration};

use executor::{Process, prelude::*};

#[task]
fn work(ms: u64) {
    sleep(Duration::from_millis(ms));
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let first = Process::new(work::task(10)).start()?;
    let second = Process::new(work::task(300)).name("worker 2").start()?;
    println!("{} and {}", first.name(), second.name());
    println!("alive: {}", second.is_alive());
    second.join()?;
    println!("alive: {}", second.is_alive());
    first.join()?;
    Ok(())
}
