//! `cpu_count()` returns a number. `active_children()` returns an empty list before the first
//! process is started.

use executor::{active_children, cpu_count};

fn main() {
    println!("cpu count: {}", cpu_count());
    println!("children: {:?}", active_children());
}
