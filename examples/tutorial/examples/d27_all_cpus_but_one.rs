//! `Pool(processes=cpu_count() - 1)` leaves one CPU to other programs. On a machine with a single
//! CPU the pool has one worker.

use executor::{Pool, prelude::*, usable_cpus};

#[task]
fn cube(n: u64) -> u64 {
    n * n * n
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().all_but(1).build()?;
    println!("usable CPUs: {}", usable_cpus());
    println!("processes: {}", pool.processes());
    println!("{:?}", pool.map(cube::task, 1..=5)?);
    pool.close();
    pool.join()?;
    Ok(())
}
