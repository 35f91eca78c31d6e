//! One process puts squares into a queue. Another process prints them until the queue is empty.

use executor::{Process, PutError, Queue, prelude::*};

#[task]
fn square(numbers: Vec<u32>, queue: Queue<u32>) -> Result<(), PutError<u32>> {
    for number in numbers {
        queue.put(number * number)?;
    }
    Ok(())
}

#[task]
fn print_all(queue: Queue<u32>) {
    println!("Queue elements:");
    while let Ok(element) = queue.try_get() {
        println!("{element}");
    }
    println!("Queue is now empty!");
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = Queue::unbounded()?;
    Process::new(square::task(vec![1, 2, 3, 4], queue.clone())).start()?.join()?;
    Process::new(print_all::task(queue)).start()?.join()?;
    Ok(())
}
