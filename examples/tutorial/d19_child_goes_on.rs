//! No daemon, not joined: the parent's last line comes, and the program waits for the child all the same.

use executor::{Event, Process, prelude::*};

#[task]
fn speak(go_on: Event) {
    // The tutorial sleeps, and hopes; an event makes it certain that the parent's last line comes first.
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
