//! The same work in a plain loop and in a pool. The more work there is, the more a pool pays off.

use std::{hint::black_box, time::Instant};

use executor::{Pool, prelude::*};

/// Some work: a sum that the compiler cannot compute in advance.
#[task]
fn sum_up_to(n: u64) -> u64 {
    (0..n).fold(0, |sum, x| black_box(sum + x * x % 7))
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().build()?;
    // Start all workers before the measurement: the first call of a worker includes the time of its
    // start.
    pool.map(sum_up_to::task, vec![1; 4 * pool.processes()])?;
    for size in [100, 10_000, 1_000_000] {
        let start = Instant::now();
        let in_a_loop: Vec<u64> = (0..16).map(|n| sum_up_to(size + n)).collect();
        let loop_time = start.elapsed();

        let start = Instant::now();
        let in_the_pool = pool.map(sum_up_to::task, (0..16).map(|n| size + n))?;
        let pool_time = start.elapsed();

        assert_eq!(in_a_loop, in_the_pool);
        let faster = loop_time.as_secs_f64() / pool_time.as_secs_f64();
        println!(
            "size {size}: loop {loop_time:?}, pool {pool_time:?}, {faster:.2} times as fast, same results"
        );
    }
    pool.close();
    pool.join()?;
    Ok(())
}
