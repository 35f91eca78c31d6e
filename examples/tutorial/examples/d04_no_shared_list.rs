//! A child fills a static list. The parent's list stays empty, because processes share only the
//! objects that are passed to them.

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
    // Join the child before looking at the parent's list. Otherwise an empty list would prove
    // nothing.
    println!("in the child: {} names", child.join()?);
    println!("in the parent: {:?}", NAMES.lock().unwrap());
    Ok(())
}
