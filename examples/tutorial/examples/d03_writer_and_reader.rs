//! A writer and an endless reader share a `Queue`. The parent joins the writer, and terminates the
//! reader once it has read all items.

use std::error::Error;

use executor::{JoinableQueue, Process, PutError, prelude::*};

#[task]
fn write(queue: JoinableQueue<String>) -> Result<(), PutError<String>> {
    for value in ["A", "B", "C"] {
        println!("Put {value} to queue...");
        queue.put(value.to_owned())?;
    }
    Ok(())
}

#[task]
fn read(queue: JoinableQueue<String>) -> Result<(), Box<dyn Error>> {
    loop {
        let value = queue.get()?;
        println!("Get {value} from queue.");
        queue.task_done()?;
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn Error>> {
    let queue = JoinableQueue::unbounded()?;
    let writer = Process::new(write::task(queue.clone())).start()?;
    let reader = Process::new(read::task(queue.clone())).start()?;
    writer.join()?;
    // Returns when every item has been read and marked as done. The tutorial terminates the reader
    // at once, and may lose items.
    queue.join()?;
    // The reader is killed somewhere within `get`. In Python this may leave the queue locked
    // forever. Here the queue still works.
    reader.terminate()?;
    println!("the reader {}", reader.wait_exit());
    queue.put("D".to_owned())?;
    println!("and the queue still gives {}", queue.get()?);
    Ok(())
}
