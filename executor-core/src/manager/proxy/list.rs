//! A list that processes share.

use std::{borrow::Borrow, ops::Range};

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, creations, handle, iter::Iter};
use crate::manager::{
    ManagerError, Step, StepFn,
    client::{Answer, Request},
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
    ///
    /// [`Manager::list`]: crate::manager::Manager::list
    List<T>
}

creations! {
    /// Creates a list of these items.
    fn list / list_async [T](&self, items: impl IntoIterator<Item = T>) -> List<T>
    where [T: Serialize]
    { self.creation(Kind::List).flag(false).values(items) }
}

/// Defines what lists and arrays have in common.
macro_rules! indexed {
    ($handle:ident, $word:literal) => {
        impl<T: Serialize + DeserializeOwned> $handle<T> {
            $crate::manager::proxy::calls! {
                /// Returns a copy of an item.
                fn get / get_async [](&self, index: usize) -> Option<T>
                {
                    self.reference.request(Operation::ListGet).number(index as u64)
                        => |answer| answer.optional()
                }

                /// Replaces an item. Returns the previous one, or `None` if there is no such index.
                fn set / set_async [Q](&self, index: usize, item: &Q) -> Option<T>
                where [T: Borrow<Q>, Q: Serialize + ?Sized]
                {
                    self.reference.request(Operation::ListSet).number(index as u64).last_value(item)
                        => |answer| answer.optional()
                }

                #[doc = concat!(
                    "Returns copies of the items of a range, or `None` if it is not within the ", $word, "."
                )]
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

                /// Replaces an item by what the function makes of it, in the server. Returns the
                /// new item, or `None` if there is no such index. See [`Step`].
                fn update / update_async [F, A](&self, index: usize, step: Step<F, A>) -> Option<T>
                where [T: Borrow<F::Current>, F: StepFn<A, Output = T>]
                {
                    {
                        let call = step.encode(self.reference.door())?;
                        let request = self.reference.request(Operation::ListUpdate);
                        request.number(index as u64).call_of(call)
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
    };
}

pub(super) use indexed;

indexed!(List, "list");

impl<T: Serialize + DeserializeOwned> List<T> {
    calls! {
        /// Appends an item.
        fn push / push_async [Q](&self, item: &Q) -> ()
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::ListExtend).last_value(item) => |_answer| Ok(()) }

        /// Appends all these items in one call.
        fn extend / extend_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::ListExtend).values(items) => |_answer| Ok(()) }

        /// Inserts an item before the one at `index`, or at the end if that is the length. Returns
        /// whether it was inserted: `false` if the list is shorter.
        fn insert / insert_async [Q](&self, index: usize, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        {
            self.reference.request(Operation::ListInsert).number(index as u64).last_value(item)
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
        loop {
            let (version, items) = self.contents(&self.all().call()?)?;
            // Two items are equal if their bytes are, so the server is asked which one it is.
            let Some(at) = self.position(item)? else { return Ok(false) };
            if let Some(request) = self.without(version, items, at)
                && request.call()?.is_yes()
            {
                return Ok(true);
            }
        }
    }

    /// Does what [`remove_item`](Self::remove_item) does, without blocking the thread.
    pub async fn remove_item_async<Q>(&self, item: &Q) -> Result<bool, ManagerError>
    where
        T: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        loop {
            let (version, items) = self.contents(&self.all().call_async().await?)?;
            let Some(at) = self.position_async(item).await? else { return Ok(false) };
            if let Some(request) = self.without(version, items, at)
                && request.call_async().await?.is_yes()
            {
                return Ok(true);
            }
        }
    }

    /// Sorts the items. Equal ones keep their order.
    ///
    /// The items are sorted in this process. If another process changes the list meanwhile, they
    /// are fetched and sorted again.
    pub fn sort(&self) -> Result<(), ManagerError>
    where
        T: Ord,
    {
        self.change(|items| items.sort())
    }

    /// Does what [`sort`](Self::sort) does, without blocking the thread while it waits for the
    /// server.
    pub async fn sort_async(&self) -> Result<(), ManagerError>
    where
        T: Ord,
    {
        self.change_async(|items| items.sort()).await
    }

    /// Sorts the items by a key. See [`sort`](Self::sort).
    pub fn sort_by_key<O: Ord>(&self, mut key: impl FnMut(&T) -> O) -> Result<(), ManagerError> {
        self.change(|items| items.sort_by_key(&mut key))
    }

    /// Sorts the items by a key. See [`sort_async`](Self::sort_async).
    pub async fn sort_by_key_async<O: Ord>(
        &self,
        mut key: impl FnMut(&T) -> O,
    ) -> Result<(), ManagerError> {
        self.change_async(|items| items.sort_by_key(&mut key)).await
    }

    /// Keeps the items for which `keep` returns `true`. See [`sort`](Self::sort).
    pub fn retain(&self, mut keep: impl FnMut(&T) -> bool) -> Result<(), ManagerError> {
        self.change(|items| items.retain(&mut keep))
    }

    /// Keeps the items for which `keep` returns `true`. See [`sort_async`](Self::sort_async).
    pub async fn retain_async(&self, mut keep: impl FnMut(&T) -> bool) -> Result<(), ManagerError> {
        self.change_async(|items| items.retain(&mut keep)).await
    }

    /// Changes all items, in this process. Repeats it if another process has changed the list
    /// meanwhile.
    fn change(&self, mut change: impl FnMut(&mut Vec<T>)) -> Result<(), ManagerError> {
        loop {
            let (version, mut items) = self.contents(&self.all().call()?)?;
            change(&mut items);
            if self.replacing(version, items).call()?.is_yes() {
                return Ok(());
            }
        }
    }

    async fn change_async(&self, mut change: impl FnMut(&mut Vec<T>)) -> Result<(), ManagerError> {
        loop {
            let request = {
                let (version, mut items) = self.contents(&self.all().call_async().await?)?;
                change(&mut items);
                self.replacing(version, items)
            };
            if request.call_async().await?.is_yes() {
                return Ok(());
            }
        }
    }

    /// Asks for all items.
    fn all(&self) -> Request<'_> {
        self.reference.request(Operation::Snapshot)
    }

    /// Returns the version of the list, and its items.
    fn contents(&self, answer: &Answer) -> Result<(u64, Vec<T>), ManagerError> {
        Ok((answer.number(), answer.values()?))
    }

    /// Asks to replace all items, if the list still has this version.
    fn replacing(&self, version: u64, items: Vec<T>) -> Request<'_> {
        self.reference.request(Operation::ListReplace).number(version).values(items)
    }

    /// Asks to remove an item from these. `None` if there is no such index, since the list was
    /// changed meanwhile.
    fn without(&self, version: u64, mut items: Vec<T>, at: usize) -> Option<Request<'_>> {
        if at >= items.len() {
            return None;
        }
        items.remove(at);
        Some(self.replacing(version, items))
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
    pub fn iter(&self) -> Iter<T> {
        Iter::new(&self.reference, Answer::values)
    }
}

impl<T: Serialize + DeserializeOwned> IntoIterator for &List<T> {
    type Item = Result<T, ManagerError>;
    type IntoIter = Iter<T>;

    fn into_iter(self) -> Iter<T> {
        self.iter()
    }
}
