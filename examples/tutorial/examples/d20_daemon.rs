//! A daemon is terminated when its parent ends, so it never prints its first line.

use std::{thread::sleep, time::Duration};

use executor::{Process, prelude::*};

#[task]
fn speak() {
    for number in 1..=3 {
        sleep(Duration::from_secs(20));
        println!("child: {number}");
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    Process::new(speak::task()).daemon(true).start()?;
    println!("parent: the end");
    Ok(())
}
