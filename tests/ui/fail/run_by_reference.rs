//! The value is moved to the new process.
use executor::{Run, prelude::*};

#[derive(serde::Serialize, serde::Deserialize)]
struct Counter(u32);

#[task]
impl Run for Counter {
    fn run(&self) -> u32 {
        self.0
    }
}

fn main() {}
