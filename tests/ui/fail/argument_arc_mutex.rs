use std::sync::{Arc, Mutex};

use executor::task;

#[task]
fn count(counter: Arc<Mutex<u64>>) {
    *counter.lock().unwrap() += 1;
}

fn main() {}
