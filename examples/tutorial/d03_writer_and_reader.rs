//! A writer and an endless reader over one `Queue`: the writer is joined, the reader terminated once it has read all.

use executor::{JoinableQueue, Process, prelude::*};

#[task]
fn write(queue: JoinableQueue<String>) -> Result<(), String> {
    for value in ["A", "B", "C"] {
        println!("Put {value} to queue...");
        queue.put(value.to_owned()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[task]
fn read(queue: JoinableQueue<String>) -> Result<(), String> {
    loop {
        let value = queue.get().map_err(|error| error.to_string())?;
        println!("Get {value} from queue.");
        queue.task_done().map_err(|error| error.to_string())?;
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = JoinableQueue::unbounded()?;
    let writer = Process::new(write::task(queue.clone())).start()?;
    let reader = Process::new(read::task(queue.clone())).start()?;
    writer.join()?;
    // Everything was read and accounted for. The tutorial terminates the reader at once, and may lose items.
    queue.join()?;
    // It is somewhere within `get`. In Python that may leave the queue locked for ever; here the queue goes on.
    reader.terminate()?;
    println!("the reader {}", reader.wait_exit());
    queue.put("D".to_owned())?;
    println!("and the queue still gives {}", queue.get()?);
    Ok(())
}
