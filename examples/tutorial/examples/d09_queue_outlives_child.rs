//! A child fills a queue and ends. The parent takes three items afterwards: they come in order, and
//! nothing is lost.

use executor::{Process, PutError, Queue, prelude::*};

#[task]
fn fill(queue: Queue<u32>) -> Result<(), PutError<u32>> {
    for item in 0..10 {
        queue.put(item)?;
    }
    Ok(())
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = Queue::unbounded()?;
    Process::new(fill::task(queue.clone())).start()?.join()?;
    for _ in 0..3 {
        println!("{}", queue.get()?);
    }
    println!("{} left", queue.len());
    Ok(())
}
