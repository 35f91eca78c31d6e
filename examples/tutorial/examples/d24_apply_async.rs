//! `pool.apply_async(f, args=(…))` and `.get()`: the value of a single call, with any number of
//! arguments.

use executor::{AsyncResult, Pool, prelude::*};

#[task]
fn square(n: i64) -> i64 {
    n * n
}

#[task]
fn volume(length: i64, width: i64, height: i64) -> i64 {
    length * width * height
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(3)?;
    let one = pool.apply_async(square::task(9));
    println!("one argument: {}", one.get()?);
    let several = pool.apply_async(volume::task(2, 3, 4));
    println!("several: {}", several.get()?);
    let many: Vec<AsyncResult<i64>> = (0..5).map(|n| pool.apply_async(square::task(n))).collect();
    let values: Result<Vec<i64>, TaskError> = many.into_iter().map(AsyncResult::get).collect();
    println!("many: {:?}", values?);
    pool.close();
    pool.join()?;
    Ok(())
}
