use executor::prelude::*;

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task]
fn square(x: u64) -> u64 {
    x * x
}

fn run(pool: &ProcessPoolExecutor) {
    let _ = ProcessPoolExecutor::builder().initializer(add(1, 2));
}

fn main() {}
