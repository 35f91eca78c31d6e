//! Python's `with Pool(5) as p: print(p.map(f, [1, 2, 3]))`.

use executor::{Pool, prelude::*};

#[task]
fn f(x: u64) -> u64 {
    x * x
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The end of the scope terminates the pool, as the end of a `with` block does.
    let squares = Pool::new(5)?.scope(|pool| pool.map(f::task, [1, 2, 3]))??;
    println!("{squares:?}");
    Ok(())
}
