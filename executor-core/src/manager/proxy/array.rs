//! A list of fixed length that processes share.

use std::{borrow::Borrow, ops::Range};

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, creations, handle, list::indexed};
use crate::manager::{
    Step, StepFn,
    protocol::{Kind, Operation, Status},
};

handle! {
    /// A list of fixed length that processes share. It corresponds to `manager.Array()`.
    ///
    /// [`Manager::array`] makes it. For numbers, [`Array`](crate::Array) at the root of the crate
    /// is a hundred times as fast.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let array = manager.array([1.5, 2.5])?;
    ///     assert_eq!(array.set(1, &4.0)?, Some(2.5));
    ///     assert_eq!(array.set(2, &4.0)?, None, "there are two items");
    ///     assert_eq!(array.snapshot()?, [1.5, 4.0]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::array`]: crate::manager::Manager::array
    Array<T>
}

creations! {
    /// Creates an array of these items.
    fn array / array_async [T](&self, items: impl IntoIterator<Item = T>) -> Array<T>
    where [T: Serialize]
    { self.creation(Kind::List).flag(true).values(items) }
}

indexed!(Array, "array");

impl<T: Serialize + DeserializeOwned> Array<T> {
    calls! {
        /// Replaces the items from `start` on by these. Returns whether they fit into the array: if
        /// not, nothing is changed.
        fn write / write_async [](&self, start: usize, items: Vec<T>) -> bool
        {
            self.reference
                .request(Operation::ListSplice)
                .number(start as u64)
                .number((start as u64).saturating_add(items.len() as u64))
                .values(items)
                => |answer| Ok(answer.status() == Status::Done)
        }
    }
}
