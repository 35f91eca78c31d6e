//! Two processes, of which the second runs longer: `is_alive` before and after `join`, a default
//! name and a given name.

use executor::{Event, Process, prelude::*};

#[task]
fn work(until: Event) {
    until.wait();
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [soon, later] = [Event::new()?, Event::new()?];
    let first = Process::new(work::task(soon.clone())).start()?;
    let second = Process::new(work::task(later.clone())).name("worker 2").start()?;
    println!("{} and {}", first.name(), second.name());
    soon.set();
    first.join()?;
    println!("alive: {}", second.is_alive());
    later.set();
    second.join()?;
    println!("alive: {}", second.is_alive());
    Ok(())
}
