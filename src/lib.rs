//! `concurrent.futures` and `multiprocessing` for Rust.
pub use executor_core::*;
pub use executor_macros::{main, task};
