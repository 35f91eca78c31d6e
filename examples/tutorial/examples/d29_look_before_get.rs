//! `if not q.empty(): q.get()` never blocks while there is one consumer. With several consumers,
//! use `try_get`.

use executor::{Process, Queue, prelude::*};

#[task]
fn consume(queue: Queue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| queue.try_get().ok()).collect()
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = Queue::unbounded()?;
    for item in 0..5 {
        queue.put(item)?;
    }
    while !queue.is_empty() {
        println!("got {}", queue.get()?);
    }
    println!("empty: {}", queue.is_empty());
    for item in 0..100 {
        queue.put(item)?;
    }
    let consumers = [
        Process::new(consume::task(queue.clone())).start()?,
        Process::new(consume::task(queue)).start()?,
    ];
    let mut all = Vec::new();
    for consumer in consumers {
        all.extend(consumer.join()?);
    }
    all.sort_unstable();
    println!(
        "two consumers got {} items, each once: {}",
        all.len(),
        all.iter().copied().eq(0..100)
    );
    Ok(())
}
