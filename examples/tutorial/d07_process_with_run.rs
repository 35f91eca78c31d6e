//! `class MyProcess(Process)` with a `run` of its own: a value whose type has `Run`. The parent goes on meanwhile.

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
    // Called directly, it is a method as any other.
    MyProcess { name: "the parent's run".into() }.run();
    Ok(())
}
