//! A manager's queue is an argument of tasks of a pool, as in Python. `d28_queue_in_a_pool` does
//! the same with a plain `Queue`, which is faster.

use executor::{
    Pool,
    manager::{Manager, ManagerError, Queue},
    prelude::*,
};

#[task]
fn work(number: u32, queue: Queue<(u32, u32)>) -> Result<(), ManagerError> {
    queue.put(&(number, number * number))
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::start()?;
    let queue = manager.queue(None)?;
    let pool = Pool::new(3)?;
    pool.map(|number| work::task(number, queue.clone()), 0..10)?;
    pool.close();
    pool.join()?;
    let mut all = Vec::new();
    while let Some(item) = queue.try_get()? {
        all.push(item);
    }
    all.sort_unstable();
    println!("{all:?}");
    Ok(())
}
