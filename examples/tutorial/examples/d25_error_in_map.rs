//! A task that fails in `pool.map` gives an error value. The other items and the pool are not
//! affected.

use executor::{Pool, prelude::*};

#[task]
fn divide(a: i64, b: i64) -> Result<i64, String> {
    a.checked_div(b).ok_or_else(|| format!("{a} divided by {b}"))
}

/// Panics for short slices, because the index is out of bounds.
#[task]
fn third(numbers: &[i64]) -> i64 {
    numbers[2]
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(2)?;
    println!("map: {}", pool.map(|b| divide::task(12, b), [1, 0, 3]).unwrap_err());
    for result in pool.map_collect(|b| divide::task(12, b), [1, 0, 3]) {
        match result {
            Ok(value) => println!("value: {value}"),
            Err(error) => println!("error: {error}"),
        }
    }
    println!("panic: {}", pool.apply(third::task(&[1, 2])).unwrap_err());
    println!("the same pool: {:?}", pool.map(|b| divide::task(12, b), [1, 2, 3])?);
    pool.close();
    pool.join()?;
    Ok(())
}
