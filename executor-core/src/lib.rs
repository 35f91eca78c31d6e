//! The machinery of the `executor` crate.
pub mod error;
pub mod id;
pub mod wire;
pub use error::*;
