//! One process with one task: the parent's lines frame the child's, which has another pid, because `join` waits.

use executor::{Process, getpid, prelude::*};

#[task]
fn run_proc(name: &str) {
    println!("Run child process {name} ({})...", getpid());
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("Parent process {}.", getpid());
    println!("Child process will start.");
    let child = Process::new(run_proc::task("test")).start()?;
    child.join()?;
    println!("Child process end.");
    Ok(())
}
