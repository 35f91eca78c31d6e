//! A daemon that is joined prints all its lines before the parent's last line.

use std::{thread::sleep, time::Duration};

use executor::{Process, prelude::*};

#[task]
fn speak() {
    for number in 1..=3 {
        sleep(Duration::from_millis(20));
        println!("child: {number}");
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let child = Process::new(speak::task()).daemon(true).start()?;
    child.join()?;
    println!("parent: the end");
    Ok(())
}
