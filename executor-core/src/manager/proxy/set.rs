//! A set that processes share.

use std::{borrow::Borrow, collections::HashSet, hash::Hash};

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, creations, handle, iter::Iter};
use crate::manager::{
    ManagerError,
    client::Answer,
    protocol::{Kind, Operation},
};

handle! {
    /// A set that processes share. It corresponds to `manager.set()`, and to a `HashSet` that
    /// remembers the order of insertion.
    ///
    /// [`Manager::set`] makes it. Each call is atomic.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let seen = manager.set(["a".to_owned()])?;
    ///     assert!(seen.insert("b")?);
    ///     assert!(!seen.insert("b")?, "it is there already");
    ///     assert_eq!(seen.snapshot()?, ["a", "b"]);
    ///     seen.retain_all(["b".to_owned(), "c".to_owned()])?;
    ///     assert_eq!(seen.snapshot()?, ["b"]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::set`]: crate::manager::Manager::set
    Set<T>
}

creations! {
    /// Creates a set of these items.
    fn set / set_async [T](&self, items: impl IntoIterator<Item = T>) -> Set<T>
    where [T: Serialize]
    { self.creation(Kind::Set).values(items) }
}

impl<T: Serialize + DeserializeOwned> Set<T> {
    calls! {
        /// Adds an item. Returns whether it was not there before.
        fn insert / insert_async [Q](&self, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::SetInsert).value(item) => |answer| Ok(answer.is_yes()) }

        /// Removes an item. Returns whether it was there.
        fn remove / remove_async [Q](&self, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::SetRemove).value(item) => |answer| Ok(answer.is_yes()) }

        /// Returns whether an item is there.
        fn contains / contains_async [Q](&self, item: &Q) -> bool
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::SetContains).value(item) => |answer| Ok(answer.is_yes()) }

        /// Removes any item, and returns it.
        fn pop / pop_async [](&self) -> Option<T>
        { self.reference.request(Operation::SetPop) => |answer| answer.optional() }

        /// Adds all these items in one call. Python's `|=`.
        fn extend / extend_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::SetUnion).values(items) => |_answer| Ok(()) }

        /// Removes all these items in one call. Python's `-=`.
        fn remove_all / remove_all_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::SetSubtract).values(items) => |_answer| Ok(()) }

        /// Keeps only these items, in one call. Python's `&=`.
        fn retain_all / retain_all_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::SetIntersect).values(items) => |_answer| Ok(()) }

        /// Removes those of these items that are there, and adds the others, in one call. Python's
        /// `^=`.
        fn toggle_all / toggle_all_async [](&self, items: impl IntoIterator<Item = T>) -> ()
        { self.reference.request(Operation::SetToggle).values(items) => |_answer| Ok(()) }

        /// Returns a copy of all items at one moment, in the order of insertion.
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

    /// Iterates over the items, in pages of 64 KiB. An item that is there all the time is yielded
    /// exactly once, whatever changes meanwhile. An error is the last item.
    pub fn iter(&self) -> Iter<T> {
        Iter::new(&self.reference, Answer::values)
    }
}

/// Returns how many of the items that were asked for are in the set, and how many items it has.
fn counts(answer: &Answer) -> Result<(usize, usize), ManagerError> {
    let [len] = answer.numbers()?;
    Ok((answer.number() as usize, len as usize))
}

/// The relations to another set, and what both have in common. Each is one call.
impl<T: Serialize + DeserializeOwned + Eq + Hash> Set<T> {
    calls! {
        /// Returns a copy of all items at one moment, as a `HashSet`.
        fn to_hash_set / to_hash_set_async [](&self) -> HashSet<T>
        { self.reference.request(Operation::Snapshot) => |answer| all(&answer) }

        /// Returns whether no item is in `other`.
        fn is_disjoint / is_disjoint_async [](&self, other: &HashSet<T>) -> bool
        {
            self.reference.request(Operation::SetCount).values(other)
                => |answer| Ok(counts(&answer)?.0 == 0)
        }

        /// Returns whether all items are in `other`. Python's `<=`.
        fn is_subset / is_subset_async [](&self, other: &HashSet<T>) -> bool
        {
            self.reference.request(Operation::SetCount).values(other)
                => |answer| counts(&answer).map(|(common, len)| common == len)
        }

        /// Returns whether all items of `other` are in the set. Python's `>=`.
        fn is_superset / is_superset_async [](&self, other: &HashSet<T>) -> bool
        {
            self.reference.request(Operation::SetCount).values(other)
                => |answer| Ok(counts(&answer)?.0 == other.len())
        }

        /// Returns the items of both. Python's `|`.
        fn union / union_async [](&self, other: &HashSet<T>) -> HashSet<T>
        where [T: Clone]
        {
            self.reference.request(Operation::Snapshot)
                => |answer| {
                    let mut all = all(&answer)?;
                    all.extend(other.iter().cloned());
                    Ok(all)
                }
        }

        /// Returns the items that are in both. Python's `&`.
        fn intersection / intersection_async [](&self, other: &HashSet<T>) -> HashSet<T>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| {
                    let mut all = all(&answer)?;
                    all.retain(|item| other.contains(item));
                    Ok(all)
                }
        }

        /// Returns the items that are not in `other`. Python's `-`.
        fn difference / difference_async [](&self, other: &HashSet<T>) -> HashSet<T>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| {
                    let mut all = all(&answer)?;
                    all.retain(|item| !other.contains(item));
                    Ok(all)
                }
        }

        /// Returns the items that are in one of both only. Python's `^`.
        fn symmetric_difference / symmetric_difference_async [](&self, other: &HashSet<T>)
            -> HashSet<T>
        where [T: Clone]
        {
            self.reference.request(Operation::Snapshot)
                => |answer| Ok(all(&answer)?.symmetric_difference(other).cloned().collect())
        }
    }
}

fn all<T: DeserializeOwned + Eq + Hash>(answer: &Answer) -> Result<HashSet<T>, ManagerError> {
    Ok(answer.values()?.into_iter().collect())
}

impl<T: Serialize + DeserializeOwned> IntoIterator for &Set<T> {
    type Item = Result<T, ManagerError>;
    type IntoIter = Iter<T>;

    fn into_iter(self) -> Iter<T> {
        self.iter()
    }
}
