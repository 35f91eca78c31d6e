//! Python's `class MyProcess(Process)` with its own `run` becomes a value whose type implements
//! `Run`. The parent goes on while the child runs.

use executor::{Process, Run, getpid, prelude::*};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct MyProcess {
    name: String,
}

#[task]
impl Run for MyProcess {
    fn run(self) {
        println!("{} runs in {}", self.name, getpid());
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let child = Process::new(MyProcess { name: "the child's run".into() }).start()?;
    println!("the parent is {}", getpid());
    child.join()?;
    // A direct call of `run` is an ordinary method call in this process.
    MyProcess { name: "the parent's run".into() }.run();
    Ok(())
}
