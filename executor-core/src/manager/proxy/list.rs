//! A list that processes share.

use std::{borrow::Borrow, iter::FusedIterator, ops::Range};

use serde::{Serialize, de::DeserializeOwned};

use super::{Pages, calls, create, handle};
use crate::manager::{
    Manager, ManagerError, Step, StepFn,
    client::Answer,
    protocol::{Kind, Operation, Status},
};

handle! {
    /// A list that processes share. It corresponds to `manager.list()`, and to a `Vec`.
    ///
    /// [`Manager::list`] makes it. Each call is atomic. Where a `Vec` would panic because an index
    /// is behind its end, the methods return `None` or `false`: another process may have shortened
    /// the list.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let list = manager.list([3, 1])?;
    ///     list.push(&2)?;
    ///     list.sort()?;
    ///     assert_eq!(list.snapshot()?, [1, 2, 3]);
    ///     assert_eq!(list.get(7)?, None);
    ///     Ok(())
    /// }
    /// ```
    List<T>
}

impl Manager {
    /// Creates a list of these items.
    pub fn list<T: Serialize>(
        &self,
        items: impl IntoIterator<Item = T>,
    ) -> Result<List<T>, ManagerError> {
        Ok(List::of(create(self.creation(Kind::List).flag(false).values(items))?))
    }
}

impl<T: Serialize + DeserializeOwned> List<T> {
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

        /// Appends an item.
        fn push / push_async [Q](&self, item: &Q) -> ()
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::ListExtend).value(item) => |_answer| Ok(()) }

        /// Appends all these items in one call.
        fn extend / extend_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::ListExtend).values(items) => |_answer| Ok(()) }

        /// Inserts an item before the one at `index`, or at the end if that is the length. Returns
        /// whether it was inserted: `false` if the list is shorter.
        fn insert / insert_async [Q](&self, index: usize, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListInsert).number(index as u64).value(item)
                => |answer| Ok(answer.status() == Status::Done)
        }

        /// Removes the last item, and returns it.
        fn pop / pop_async [](&self) -> Option<T>
        { self.reference.request(Operation::ListRemove).number(u64::MAX) => |answer| answer.optional() }

        /// Removes the item at `index`, and returns it.
        fn remove / remove_async [](&self, index: usize) -> Option<T>
        {
            self.reference.request(Operation::ListRemove).number((index as u64).min(u64::MAX - 1))
                => |answer| answer.optional()
        }

        /// Returns copies of the items of a range, or `None` if it is not within the list.
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

        /// Replaces the items of a range by others, of any number. Returns whether the range was
        /// within the list.
        fn splice / splice_async [](
            &self,
            range: Range<usize>,
            items: impl IntoIterator<Item = T>,
        ) -> bool
        {
            self.reference
                .request(Operation::ListSplice)
                .number(range.start as u64)
                .number(range.end as u64)
                .values(items)
                => |answer| Ok(answer.status() == Status::Done)
        }

        /// Returns the index of the first equal item. Python's `index`.
        fn position / position_async [Q](&self, item: &Q) -> Option<usize>
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListFind).value(item).number(0).number(u64::MAX)
                => |answer| Ok(match answer.status() {
                    Status::Done => Some(answer.number() as usize),
                    _ => None,
                })
        }

        /// Returns how many items are equal to this one.
        fn count / count_async [Q](&self, item: &Q) -> usize
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListCount).value(item)
                => |answer| Ok(answer.number() as usize)
        }

        /// Returns whether an item is equal to this one.
        fn contains / contains_async [Q](&self, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListCount).value(item)
                => |answer| Ok(answer.number() > 0)
        }

        /// Reverses the order of the items.
        fn reverse / reverse_async [](&self) -> ()
        { self.reference.request(Operation::ListReverse) => |_answer| Ok(()) }

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

        /// Removes all items.
        fn clear / clear_async [](&self) -> ()
        { self.reference.request(Operation::Clear) => |_answer| Ok(()) }
    }

    /// Removes the first equal item. Returns whether there was one. Python's `remove`.
    pub fn remove_item<Q>(&self, item: &Q) -> Result<bool, ManagerError>
    where
        T: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.change(|items: &mut Vec<T>| {
            let mut same = false;
            // Two items are equal if their bytes are, so the server is asked which one it is.
            if let Some(at) = self.position(item)?
                && at < items.len()
            {
                items.remove(at);
                same = true;
            }
            Ok(same)
        })
    }

    /// Sorts the items. Equal ones keep their order.
    ///
    /// The items are sorted in this process. If another process changes the list meanwhile, they
    /// are fetched and sorted again.
    pub fn sort(&self) -> Result<(), ManagerError>
    where
        T: Ord,
    {
        self.change(|items: &mut Vec<T>| {
            items.sort();
            Ok(())
        })
    }

    /// Sorts the items by a key. See [`sort`](Self::sort).
    pub fn sort_by_key<O: Ord>(&self, mut key: impl FnMut(&T) -> O) -> Result<(), ManagerError> {
        self.change(|items: &mut Vec<T>| {
            items.sort_by_key(&mut key);
            Ok(())
        })
    }

    /// Keeps the items for which `keep` returns `true`. See [`sort`](Self::sort).
    pub fn retain(&self, mut keep: impl FnMut(&T) -> bool) -> Result<(), ManagerError> {
        self.change(|items: &mut Vec<T>| {
            items.retain(&mut keep);
            Ok(())
        })
    }

    /// Changes all items, in this process. Repeats it if another process has changed the list
    /// meanwhile.
    fn change<R>(
        &self,
        mut change: impl FnMut(&mut Vec<T>) -> Result<R, ManagerError>,
    ) -> Result<R, ManagerError> {
        loop {
            let answer = self.reference.request(Operation::Snapshot).call()?;
            let mut items = answer.values()?;
            let result = change(&mut items)?;
            let request = self.reference.request(Operation::ListReplace).number(answer.number());
            if request.values(items).call()?.is_yes() {
                return Ok(result);
            }
        }
    }

    /// Iterates over the items. They are fetched in pages of 64 KiB, so a list of any length is
    /// iterated in little memory.
    ///
    /// The list may change meanwhile. Each page continues at the index behind the last one, as the
    /// items are then: an iteration sees changes behind the current page, and an item that was
    /// moved by an insertion or removal before it may be yielded twice or not at all. For one
    /// consistent state, use [`snapshot`](Self::snapshot).
    ///
    /// An error is the last item.
    pub fn iter(&self) -> ListIter<T> {
        ListIter(Pages::new(&self.reference, Answer::values))
    }
}

impl<T: Serialize + DeserializeOwned> IntoIterator for &List<T> {
    type Item = Result<T, ManagerError>;
    type IntoIter = ListIter<T>;

    fn into_iter(self) -> ListIter<T> {
        self.iter()
    }
}

/// Iterates over the items of a [`List`] or a [`Set`](super::set::Set).
pub struct ListIter<T>(pub(super) Pages<T>);

impl<T> std::fmt::Debug for ListIter<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ListIter").field(&self.0.reference).finish()
    }
}

impl<T> Iterator for ListIter<T> {
    type Item = Result<T, ManagerError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<T> FusedIterator for ListIter<T> {}
