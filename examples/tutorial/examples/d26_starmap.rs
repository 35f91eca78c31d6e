//! `pool.starmap(f, [(a, b), …])` calls a function with several arguments.

use executor::{Pool, prelude::*};

#[task]
fn multiply(a: i64, b: i64) -> i64 {
    a * b
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(2)?;
    println!("{:?}", pool.starmap(multiply::task, [(1, 2), (3, 4), (5, 6)])?);
    // Use a closure to fix one argument, where Python has `functools.partial`.
    println!("{:?}", pool.map(|b| multiply::task(10, b), [1, 2, 3])?);
    println!("{:?}", pool.starmap_async(multiply::task, [(7, 8)]).get()?);
    pool.close();
    pool.join()?;
    Ok(())
}
