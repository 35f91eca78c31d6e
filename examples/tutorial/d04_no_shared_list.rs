//! A child fills its own list, a static one; the parent's stays empty: processes share nothing that they are not given.

use std::sync::Mutex;

use executor::{Process, prelude::*};

static NAMES: Mutex<Vec<u32>> = Mutex::new(Vec::new());

#[task]
fn fill() -> usize {
    let mut names = NAMES.lock().unwrap();
    names.extend(0..1_000);
    names.len()
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let child = Process::new(fill::task()).start()?;
    // Joined before it is looked at: without that, an empty list would prove nothing.
    println!("in the child: {} names", child.join()?);
    println!("in the parent: {:?}", NAMES.lock().unwrap());
    Ok(())
}
