//! A join with a limit returns when that has passed, and the child lives on: the parent's line comes first.

use std::{thread::sleep, time::Duration};

use executor::{Process, prelude::*};

#[task]
fn hello() {
    sleep(Duration::from_millis(500));
    println!("hello world");
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let child = Process::new(hello::task()).start()?;
    println!("is alive: {}", child.is_alive());
    let joined = child.join_timeout(Duration::from_millis(50));
    println!("joined: {}", joined.is_some());
    println!("end main");
    Ok(())
}
