//! `cpu_count()`: how many processors there are, and how many of them this process may use, which is the number for a pool.

fn main() {
    println!("{} processors, {} usable", executor::cpu_count(), executor::usable_cpus());
}
