//! A list of fixed length that processes share.

use std::{borrow::Borrow, ops::Range};

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, create, handle};
use crate::manager::{
    Manager, ManagerError, Step, StepFn,
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
    Array<T>
}

impl Manager {
    /// Creates an array of these items.
    pub fn array<T: Serialize>(
        &self,
        items: impl IntoIterator<Item = T>,
    ) -> Result<Array<T>, ManagerError> {
        Ok(Array::of(create(self.creation(Kind::List).flag(true).values(items))?))
    }
}

impl<T: Serialize + DeserializeOwned> Array<T> {
    calls! {
        /// Returns a copy of an item.
        fn get / get_async [](&self, index: usize) -> Option<T>
        { self.reference.request(Operation::ListGet).number(index as u64) => |answer| answer.optional() }

        /// Replaces an item. Returns the previous one, or `None` if there is no such index.
        fn set / set_async [Q](&self, index: usize, item: &Q) -> Option<T>
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListSet).number(index as u64).value(item)
                => |answer| answer.optional()
        }

        /// Returns copies of the items of a range, or `None` if it is not within the array.
        fn range / range_async [](&self, range: Range<usize>) -> Option<Vec<T>>
        {
            self.reference
                .request(Operation::ListRange)
                .number(range.start as u64)
                .number(range.end as u64)
                => |answer| match answer.status() {
                    Status::Missing => Ok(None),
                    _ => answer.values().map(Some),
                }
        }

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

        /// Replaces an item by what the function makes of it, in the server. Returns the new item,
        /// or `None` if there is no such index. See [`Step`].
        fn update / update_async [F, A](&self, index: usize, step: Step<F, A>) -> Option<T>
        where [T: Borrow<F::Current>, F: StepFn<A, Output = T>]
        {
            {
                let (function, rest) = step.encode()?;
                let request = self.reference.request(Operation::ListUpdate).number(index as u64);
                request.number(function).bytes(&rest)
            } => |answer| answer.optional()
        }

        /// Returns a copy of all items at one moment.
        fn snapshot / snapshot_async [](&self) -> Vec<T>
        { self.reference.request(Operation::Snapshot) => |answer| answer.values() }

        /// Returns the number of items.
        fn len / len_async [](&self) -> usize
        { self.reference.request(Operation::Len) => |answer| Ok(answer.number() as usize) }

        /// Returns whether there is no item.
        fn is_empty / is_empty_async [](&self) -> bool
        { self.reference.request(Operation::Len) => |answer| Ok(answer.number() == 0) }
    }
}
