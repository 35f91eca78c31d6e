//! `active_children()` lists three children that run for different times. The shortest ends first,
//! whatever the order of the joins.

use std::{thread::sleep, time::Duration};

use executor::{Event, Process, active_children, current_process, prelude::*};

#[task]
fn work(begin: Event, ms: u64) {
    begin.wait();
    sleep(Duration::from_millis(ms));
    println!("{} ends", current_process().name());
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let begin = Event::new()?;
    for ms in [900, 600, 300] {
        Process::new(work::task(begin.clone(), ms)).start()?;
    }
    let children = active_children();
    for child in &children {
        println!("child {} pid {}", child.name(), child.pid());
    }
    begin.set();
    for child in &children {
        child.wait_exit();
    }
    println!("{} children left", active_children().len());
    Ok(())
}
