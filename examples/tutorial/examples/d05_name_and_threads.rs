//! The parent gives the child its name. The child has a pid of its own and two threads: one runs
//! the body, and the other watches the parent.

use executor::{Process, current_process, getpid, prelude::*, thread_count};

#[task]
fn introduce() {
    let own = current_process();
    println!("child {} pid {} threads {}", own.name(), own.pid(), thread_count());
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("parent {} pid {}", current_process().name(), getpid());
    Process::new(introduce::task()).name("subprocess").start()?.join()?;
    Ok(())
}
