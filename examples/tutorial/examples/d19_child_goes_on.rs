//! A child that is neither a daemon nor joined: the parent prints its last line first, and the
//! program still waits for the child before it ends.

use executor::{Event, Process, prelude::*};

#[task]
fn speak(go_on: Event) {
    // The tutorial relies on a sleep here. An event guarantees that the parent's last line comes
    // first.
    go_on.wait();
    for number in 1..=3 {
        println!("child: {number}");
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let go_on = Event::new()?;
    Process::new(speak::task(go_on.clone())).start()?;
    println!("parent: the end");
    go_on.set();
    Ok(())
}
