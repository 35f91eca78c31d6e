//! `concurrent.futures` and `multiprocessing` for Rust: functions marked [`#[task]`](macro@task) run in child processes of the same
//! program, and futures come back.
#![doc(html_root_url = "https://docs.rs/executor/0.1.0")]

pub use executor_core::*;
pub use executor_macros::{main, task};

#[doc(hidden)]
pub use executor_core::__private;

pub mod prelude {
    //! The few names that most programs want: `use executor::prelude::*;`

    pub use crate::{
        Executor, ProcessPoolExecutor, ReturnWhen, Task, TaskError, TaskFn, TaskFuture, as_completed, task,
        wait,
    };
    // Its methods on `&dyn Executor`; the name itself is rarely needed.
    pub use crate::ExecutorExt as _;
}

/// Makes a test binary able to be a worker. One line for each test crate (each file in `tests/`, and `lib.rs` if it
/// has unit tests that use an executor):
///
/// ```
/// # #[cfg(test)]
/// executor::test_support!();
/// ```
///
/// A test binary's `main` belongs to the test harness, so this runs before `main`, from a table that the system's
/// loader calls. In a process that is no worker it does nothing but look at its arguments. Works with `cargo test` and
/// `cargo nextest`. Documentation tests need none of it: they have a `main` of their own, which can call
/// [`init`](crate::init).
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            extern "C" fn executor_init_before_main() {
                $crate::__private::init_before_main();
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static EXECUTOR_INIT: extern "C" fn() = executor_init_before_main;
        };
    };
}
