//! The new process finds the implementation by its name.
use executor::{Run, prelude::*};

#[derive(serde::Serialize, serde::Deserialize)]
struct Counter<T>(T);

#[task]
impl<T> Run for Counter<T> {
    fn run(self) -> T {
        self.0
    }
}

fn main() {}
