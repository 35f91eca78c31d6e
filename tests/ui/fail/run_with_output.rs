//! `#[task]` adds the type that `run` returns.
use executor::{Run, prelude::*};

#[derive(serde::Serialize, serde::Deserialize)]
struct Counter(u32);

#[task]
impl Run for Counter {
    type Output = u32;

    fn run(self) -> u32 {
        self.0
    }
}

fn main() {}
