use executor::task;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Stack<T>(Vec<T>);

#[task]
impl<T> Stack<T> {
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[task]
impl Clone for Stack<u8> {
    fn clone(&self) -> Self {
        Stack(self.0.clone())
    }
}

#[task(name = "length")]
impl Stack<u8> {
    fn length(&self) -> usize {
        self.0.len()
    }
}

#[task]
impl Stack<u16> {
    const EMPTY: bool = true;
}

struct NotSerde;

#[task]
impl NotSerde {
    fn call(&self) {}
}

fn main() {}
