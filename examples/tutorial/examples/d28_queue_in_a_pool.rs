//! A plain `Queue` is an argument of tasks of a running pool. In Python this fails, and a manager
//! is needed.

use executor::{Pool, PutError, Queue, prelude::*};

#[task]
fn work(number: u32, queue: Queue<(u32, u32)>) -> Result<(), PutError<(u32, u32)>> {
    queue.put((number, number * number))
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = Queue::unbounded()?;
    let pool = Pool::new(3)?;
    pool.map(|number| work::task(number, queue.clone()), 0..10)?;
    pool.close();
    pool.join()?;
    let mut all = Vec::new();
    while let Ok(item) = queue.try_get() {
        all.push(item);
    }
    all.sort_unstable();
    println!("{all:?}");
    Ok(())
}
