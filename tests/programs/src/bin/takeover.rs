//! A program whose `main` does not call the entry point. `test_support!` takes over before `main`,
//! as in a test binary.

use executor::prelude::*;

executor::test_support!();

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

/// In another module than `add`, so that a linker could drop one of the two object files.
mod elsewhere {
    use super::task;

    #[task]
    pub(crate) fn thread_name() -> Option<String> {
        std::thread::current().name().map(str::to_owned)
    }
}

fn main() {
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().expect("a pool");
    assert_eq!(pool.submit(add::task(1, 2)).result().expect("a worker"), 3);
    let name = pool.submit(elsewhere::thread_name::task()).result().expect("the same worker");
    assert_eq!(name.as_deref(), Some("executor-worker"));
    pool.shutdown(true);
    println!("taken over");
}
