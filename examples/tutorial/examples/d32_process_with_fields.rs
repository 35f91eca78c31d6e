//! `MyProcess(interval)`: the field is sent to the child, which runs for this interval. The parent
//! measures a slightly longer time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use executor::{Process, Run, prelude::*};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct MyProcess {
    interval: Duration,
}

#[task]
impl Run for MyProcess {
    fn run(self) -> Duration {
        let began = Instant::now();
        sleep(self.interval);
        began.elapsed()
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let interval = Duration::from_millis(200);
    let inside = Process::new(MyProcess { interval }).start()?.join()?;
    println!("the child ran at least 200 ms: {}", inside >= interval);
    println!("the parent measured more: {}", began.elapsed() >= inside);
    Ok(())
}
