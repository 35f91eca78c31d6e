//! A join with a time limit returns when the limit has passed, and the child lives on: the parent's
//! last line comes first.

use std::time::Duration;

use executor::{Event, Process, prelude::*};

#[task]
fn hello(go_on: Event) {
    go_on.wait();
    println!("hello world");
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let go_on = Event::new()?;
    let child = Process::new(hello::task(go_on.clone())).start()?;
    println!("is alive: {}", child.is_alive());
    let joined = child.join_timeout(Duration::from_millis(50));
    println!("joined: {}", joined.is_some());
    println!("end main");
    go_on.set();
    Ok(())
}
