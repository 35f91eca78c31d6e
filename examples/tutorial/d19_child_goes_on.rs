//! No daemon, not joined: the parent's last line comes, and the program waits for the child all the same.

use std::{thread::sleep, time::Duration};

use executor::{Process, prelude::*};

#[task]
fn speak() {
    for number in 1..=3 {
        sleep(Duration::from_millis(100));
        println!("child: {number}");
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    Process::new(speak::task()).start()?;
    println!("parent: the end");
    Ok(())
}
