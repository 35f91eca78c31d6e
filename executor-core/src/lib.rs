//! The machinery of the `executor` crate.
#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
pub mod error;
pub mod id;
#[doc(hidden)]
pub mod registry;
pub mod task;
pub mod wire;
pub use error::*;
pub use task::{Encoded, Task, TaskArgs, TaskFn};
