//! `cpu_count()` and `active_children()`: a number, and nobody before the first process is started.

use executor::{active_children, cpu_count};

fn main() {
    println!("cpu count: {}", cpu_count());
    println!("children: {:?}", active_children());
}
