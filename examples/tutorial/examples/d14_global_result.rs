//! A child fills a global list, and both sides print it: the child prints `[1, 4, 9, 16]`, the
//! parent prints `[]`.

use std::sync::Mutex;

use executor::{Process, prelude::*};

static RESULT: Mutex<Vec<u32>> = Mutex::new(Vec::new());

#[task]
fn square_list(numbers: Vec<u32>) {
    let mut result = RESULT.lock().unwrap();
    result.extend(numbers.iter().map(|number| number * number));
    println!("in the child: {result:?}");
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    Process::new(square_list::task(vec![1, 2, 3, 4])).start()?.join()?;
    println!("in the parent: {:?}", RESULT.lock().unwrap());
    Ok(())
}
