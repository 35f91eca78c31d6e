//! The library on one page: a task, a pool, a future, a callback and a map.
//!
//! `cargo run --release --example quickstart`

use executor::prelude::*;

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;

    let future = pool.submit(add::task(1, 2));
    println!("1 + 2 = {}", future.result()?);

    pool.submit(add::task(3, 4))
        .add_done_callback(|sum| println!("3 + 4 = {}, says a callback", sum.unwrap()));

    let sums: Vec<i64> =
        pool.map(|(a, b)| add::task(a, b), [(1, 1), (2, 2), (3, 3)]).collect::<Result<_, _>>()?;
    println!("in order: {sums:?}");

    pool.shutdown(true);
    Ok(())
}
