//! The library and the program of a package are crates with the same name, so their functions can
//! have the same name as well. Macros generate several functions on the same line.

// The unsafe code that the attribute generates belongs to the library.
#![forbid(unsafe_code)]

use executor::{Process, prelude::*};

#[task]
fn work(x: u32) -> u32 {
    x + 1
}

/// Defines a function in each of two modules, on the same line.
macro_rules! modules {
    ($($module:ident: $add:literal),*) => {$(
        mod $module {
            #[executor::task(name = "work")]
            pub(crate) fn work(x: u32) -> u32 {
                x + $add
            }
        }
    )*};
}
modules!(ten: 10, twenty: 20);

/// Defines a function in each of two bodies, on the same line. Nothing distinguishes them except
/// that there are two.
macro_rules! bodies {
    ($($body:ident: $add:literal),*) => {$(
        fn $body(pool: &ProcessPoolExecutor) -> u32 {
            #[task]
            fn work(x: u32) -> u32 {
                x + $add
            }
            pool.submit(work::task(1)).result().unwrap()
        }
    )*};
}
bodies!(thirty: 30, forty: 40);

#[executor::main]
fn main() {
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    for _ in 0..3 {
        let library = pool.submit(executor_test_programs::work::task(1));
        let program = pool.submit(work::task(1));
        let modules = [pool.submit(ten::work::task(1)), pool.submit(twenty::work::task(1))];
        assert_eq!((library.result().unwrap(), program.result().unwrap()), (101, 2));
        assert_eq!(modules.map(|future| future.result().unwrap()), [11, 21]);
        assert_eq!((thirty(&pool), forty(&pool)), (31, 41));
    }
    assert_eq!(work::NAME, executor_test_programs::work::NAME);
    let both =
        pool.map(work::task, [1, 2]).chain(pool.map(executor_test_programs::work::task, [1, 2]));
    assert_eq!(both.map(Result::unwrap).collect::<Vec<_>>(), [2, 3, 101, 102]);
    assert_eq!(Process::new(ten::work::task(1)).start().unwrap().join().unwrap(), 11);
    println!("told apart");
}
