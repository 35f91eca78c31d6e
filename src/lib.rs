//! `concurrent.futures` and `multiprocessing` for Rust: functions marked [`#[task]`](macro@task) run in child processes
//! of the same program, and futures come back.
//!
//! ```
//! use executor::prelude::*;
//!
//! #[task]
//! fn add(a: i64, b: i64) -> i64 { a + b }
//!
//! #[executor::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = ProcessPoolExecutor::new()?;
//!     let future = pool.submit(add::task(1, 2));
//!     assert_eq!(future.result()?, 3);
//!     Ok(())
//! }
//! ```
//!
//! People use processes for **isolation**: native code that may crash, libraries that want a process of their own, input
//! that may blow up memory or never end. A task that does any of that takes down its worker and nothing else.
//!
//! # A tour in five minutes
//!
//! **Tasks.** [`#[task]`](macro@task) leaves a function as it is and puts a type of the same name beside it.
//! `add(1, 2)` calls; `add::task(1, 2)` is the call as data, a [`Task`], to be run elsewhere. Arguments and results are
//! any values that implement serde's traits. `Err` fails the task.
//!
//! **The entry.** A worker is your program, started again. [`#[executor::main]`](macro@main) (or [`init()`](init) as the
//! first line of `main`, or [`test_support!`] in a crate of tests) makes it a worker before your own code runs. A
//! documentation test needs a `main` with one of the first two.
//!
//! **The pool.** [`ProcessPoolExecutor::new`] has a worker for each CPU; [`builder`](ProcessPoolExecutor::builder) has
//! options. Workers start on demand, are reused, and are replaced when they die.
//!
//! **Futures.** [`submit`](ProcessPoolExecutor::submit) returns a [`TaskFuture`] at once. Block on its
//! [`result`](TaskFuture::result), `.await` it on any runtime, or leave a
//! [callback](TaskFuture::add_done_callback). [`wait`] and [`as_completed`] look at many;
//! [`map`](ProcessPoolExecutor::map) makes a task for each item of an input, lazily, and yields the results in order.
//!
//! **Errors.** A [`TaskError`] says what happened: the task's own `Err` ([`Failed`](TaskError::Failed)), its panic with
//! message and place ([`Panicked`](TaskError::Panicked)), the death of its worker with signal or exit code
//! ([`WorkerLost`](TaskError::WorkerLost)), its time limit ([`TimedOut`](TaskError::TimedOut)). A pool that cannot go on says so
//! in each future ([`Broken`](TaskError::Broken)), and when it is asked ([`broken`](ProcessPoolExecutor::broken)). What an error
//! prints with `{:?}`, as `unwrap` and `main` do, is the same text.
//!
//! **The end.** [`shutdown(true)`](ProcessPoolExecutor::shutdown), or dropping the last handle, finishes accepted work and
//! reaps the workers. What is not finished by then, because the handle was dropped inside of a runtime or is in a static, is
//! finished when the program ends by itself: [how](ProcessPoolExecutor#the-end-of-the-program). If the program dies in any other
//! way, its workers and what they have started die too.
//!
//! # Where is what
//!
//! | for | look at |
//! |---|---|
//! | tasks and their options | [`#[task]`](macro@task), [`Task`]; [`Encoded`] for those that are kept |
//! | pools | [`ProcessPoolExecutor`] and its [builder](ProcessPoolBuilder); [`Executor`] for code that takes any; [`Pool`], Python's |
//! | results | [`TaskFuture`], [`wait`], [`as_completed`], [`Map`], [`Map::with_index`]; [`TaskError`] |
//! | state in workers | [`initializer`](ProcessPoolBuilder::initializer), [`worker_state`] |
//! | one process for one call | [`Process`], [`Child`], [`Run`]; [`Context`] and [`StartMethod`]; [`Limits`] |
//! | this process and its relatives | [`current_process`], [`parent_process`], [`active_children`], [`at_exit`], [`spawn_thread`] |
//! | queues | [`Queue`], [`JoinableQueue`], [`SimpleQueue`] |
//! | pipes and connections | [`pipe`], [`channel`], [`Connection`], [`wait_any`]; [`Transfer`] for files and sockets |
//! | strangers that connect | [`Listener`], [`Client`], [`AuthKey`] |
//! | locks | [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`] |
//! | shared memory | [`Value`], [`Array`], [`SharedBytes`], [`SharedMemory`], [`ShareableList`] |
//! | pages that go further | [`guide`] |
//!
//! # Coming from Python
//!
//! [`guide::coming_from_python`] has each line of a tutorial's program beside ours; [`Pool`] has the methods of
//! `multiprocessing.Pool`.
//!
//! # Large bytes
//!
//! Any argument or result may be large: above 32 KiB it goes through shared memory, of which the executor keeps some for
//! the next one. A task that takes `&[u8]` or `&str` reads its argument where it lies; a `Vec<u8>` that comes back is
//! copied once. [`SharedBytes`] cross without any copy, and are in memory once however many tasks read them.
//! [`stats`](ProcessPoolExecutor::stats) tells how much memory an executor shares with its workers.
//!
//! # What processes share
//!
//! [`Lock`], [`RLock`], [`Semaphore`], [`Condition`], [`Event`] and [`Barrier`] work between tasks of any processes, and
//! [`Value`], [`Array`], [`SharedMemory`] and [`ShareableList`] are memory that all of them see. Handles are arguments and
//! results like any other, of pools that run already, too. A process that dies holds nobody up: its permits come back, and
//! whoever gets its lock is told ([`OwnerDied`]). An `Arc<Mutex<T>>` is not shared that way: what travels is a copy. Nothing is left behind, but names that were asked to stay.
//!
//! # Limits, per task
//!
//! ```
//! use executor::prelude::*;
//! use std::time::Duration;
//!
//! #[task]
//! fn parse(text: &str) -> Result<u64, std::num::ParseIntError> { text.parse() }
//!
//! #[executor::main]
//! fn main() {
//!     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
//!     let task = parse::task("12x").timeout(Duration::from_secs(5)).name("line 3");
//!     match pool.submit(task).result() {
//!         Err(TaskError::Failed(error)) => assert_eq!(error.task(), "line 3"),
//!         other => panic!("{other:?}"),
//!     }
//! }
//! ```
//!
//! # Logging
//!
//! The library writes nothing to stdout or stderr. What nobody else would hear of (a callback that panicked, a worker
//! that was cut off) it reports with [`tracing`](https://docs.rs/tracing).

pub use executor_core::*;

/// Makes a function a task function: one whose calls can be run in another process.
///
/// The function stays what it was: `add(1, 2) == 3`. `add::task(1, 2)` is the task, this call to be run somewhere else.
///
/// ```
/// use executor::prelude::*;
///
/// /// Adds.
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// /// Arguments may be borrowed: they are encoded at `submit`.
/// #[task]
/// fn shout(text: &str) -> String { text.to_uppercase() }
///
/// /// `Err` fails the task.
/// #[task]
/// fn size(path: std::path::PathBuf) -> std::io::Result<u64> { Ok(std::fs::metadata(path)?.len()) }
///
/// /// Runs on the worker's own tokio runtime.
/// #[task]
/// async fn later(seconds: u64) -> u64 {
///     // tokio::time::sleep(…).await
///     seconds
/// }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(pool.submit(add::task(1, 2)).result().unwrap(), add(1, 2));
///     assert_eq!(pool.submit(shout::task("hey")).result().unwrap(), "HEY");
///     assert!(pool.submit(size::task("/does/not/exist".into())).result().is_err());
/// }
/// ```
///
/// # What it makes
///
/// Beside the function, and as visible as it, a type of the same name, with the function `task` of the same parameters. `use
/// path::add` brings both. In documentation a link to the function is written ``[`add()`]``, and one to the type
/// ``[`add`](struct@add)``: without that, rustdoc does not know which is meant. The type implements [`TaskFn`]; the function is registered when
/// the program is linked, and found by its name in every process of the program. Calls through the function's name
/// cost nothing.
///
/// # Parameters
///
/// Any number, of any type that has serde's `Serialize` and `Deserialize`, also as patterns. `&T` is sent as a `T`,
/// `&[T]` as a `Vec<T>`; `&str`, `&[u8]` and `&Path` are read where they were received, also inside another type
/// (`Option<&str>`; `Option<&[u8]>` with the default codec only). Types that borrow by serde's rules work too; write their
/// lifetime, as in `Cow<'_, str>`.
/// Byte strings (`Vec<u8>`, `Box<[u8]>`, `&[u8]`, `[u8; N]`) are copied as a whole, not byte by byte.
///
/// # Result
///
/// Owned, `Send` and serde. A `Result<T, E>` under whatever name makes a future of `T`, and `Err` is
/// [`TaskError::Failed`]. `E` needs `Display`. If it is a `std::error::Error`, an `anyhow::Error` or a
/// `Box<dyn Error>`, the messages of its sources come along; if it is serde, [`RemoteError::downcast`] gives it back.
///
/// # Options
///
/// - `#[task(name = "images/resize")]`: the name on the wire and in messages. By default it is the path,
///   `my_crate::images::resize`. Several functions may have one name (functions in bodies of different functions of a
///   module do, and those of a library and a program of one package): the library tells them apart; messages show the same name for both.
/// - `#[task(handle = ResizeTask)]`: the name of the type, where the function's own is taken: `resize::resize` exported
///   beside the module `resize`, or a function called `u8`. Then `ResizeTask::task(…)` is the task.
/// - `#[task(codec = "messagepack")]`: how values are encoded. The default, postcard, is faster, but it cannot do
///   `#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]`, `skip_serializing_if`, nor types like
///   `serde_json::Value`; the error that you get names this option.
///   Both compare kinds and names of what was written with what `Deserialize` asks for, and refuse what differs. Some types say
///   nothing of a difference, and arrive as another value, as in JSON: fields of a tuple structure that are swapped by `skip`
///   attributes of one side, names that two `rename`s of one side exchange, and `untagged` variants of which the first takes
///   what the second wrote (an `f32` before an `f64`, bytes before a text, an `Option` before a variant without content).
///   serde reads `tag`, `untagged` and `flatten` from a copy of its own, where nothing is compared: there a field that is renamed
///   on one side is its `default`, and a variant that is written and not read is the `other` one.
/// - `#[task(crate = "my_facade::executor")]`: where the `executor` crate is found.
///
/// # What cannot be a task function
///
/// Each is a compile error with its reason: type and const parameters, `impl Trait`, `self`, `&mut`, `unsafe`,
/// `extern`, a result that borrows. A function in an `impl` block has no room for a type beside it: the compiler says
/// "struct is not supported in `impl`s". Move it out.
///
/// The type also takes its name from modules and crates: below `#[task] fn serde()`, `serde::Serialize` is not found. Use
/// `handle`.
pub use executor_macros::task;

/// Calls [`executor::init()`](init) before anything else in `main`, so that the program can be a worker of itself.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(square::task(7)).result()?, 49);
///     Ok(())
/// }
/// ```
///
/// In an async program it stands above the runtime's attribute. A worker then never starts that runtime:
///
/// ```
/// # use executor::prelude::*;
/// # #[task]
/// # fn square(x: u64) -> u64 { x * x }
/// #[executor::main]
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build()?;
///     assert_eq!(pool.submit(square::task(7)).await?, 49);
///     Ok(())
/// }
/// ```
///
/// The other attributes of `main` stay where they are. `#[executor::main(crate = "my_facade::executor")]` says where the
/// `executor` crate is found.
pub use executor_macros::main;

#[doc(hidden)]
pub use executor_core::__private;

pub mod guide {
    //! Pages that go further than the tour at the top.

    #[doc = include_str!("guide/coming_from_python.md")]
    pub mod coming_from_python {}
}

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
/// loader calls. In a process that is not a worker it only looks at the arguments. In a worker the other constructors of
/// the program (C++ statics, registries of plugins) have run before a task does. Works with `cargo test` and `cargo nextest`. Documentation tests need none of it: they have a `main` of their own, which can call
/// [`init`](crate::init).
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            extern "C" fn executor_init_before_main(
                argc: ::core::ffi::c_int,
                argv: *const *const ::core::ffi::c_char,
                envp: *const *const ::core::ffi::c_char,
            ) {
                // SAFETY: only the loader has this function, from the table in which `EXECUTOR_INIT` lies.
                unsafe { $crate::__private::init_before_main(&raw const EXECUTOR_INIT, argc, argv, envp) };
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static EXECUTOR_INIT: $crate::__private::Constructor = executor_init_before_main;
        };
    };
}

/// The programs in the README are documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
