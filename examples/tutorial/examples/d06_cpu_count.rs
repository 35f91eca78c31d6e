//! `cpu_count()` returns the number of processors. `usable_cpus()` returns how many of them this
//! process may use, which is the right size for a pool.

fn main() {
    println!("{} processors, {} usable", executor::cpu_count(), executor::usable_cpus());
}
