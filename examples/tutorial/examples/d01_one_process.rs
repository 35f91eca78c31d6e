//! One process runs one task. Because the parent waits in `join`, the child's line, with another
//! pid, comes between the lines of the parent.

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
