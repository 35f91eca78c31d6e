//! `concurrent.futures` and `multiprocessing` for Rust.
pub use executor_core::*;
