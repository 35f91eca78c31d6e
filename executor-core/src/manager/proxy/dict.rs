//! A map that processes share.

use std::borrow::Borrow;

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, handle, iter::Iter};
use crate::manager::{
    Manager, ManagerError, Step, StepFn,
    client::{Answer, Reference, Request, Values},
    protocol::{Kind, Operation},
};

handle! {
    /// A map that processes share. It corresponds to `manager.dict()`, and to a `HashMap` that
    /// remembers the order of insertion.
    ///
    /// [`Manager::dict`] makes it. Each call is atomic: no other call comes in between. For a
    /// change that depends on the value that is there, use [`update`](Self::update),
    /// [`compare_exchange`](Self::compare_exchange) or [`entry`](Self::entry).
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let ages = manager.dict([("Ann".to_owned(), 31)])?;
    ///     ages.insert("Bob", &42)?;
    ///     assert_eq!(ages.get("Ann")?, Some(31));
    ///     assert_eq!(ages.remove("Ann")?, Some(31));
    ///     assert_eq!(ages.snapshot()?, [("Bob".to_owned(), 42)]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Values are copies: to change a part of one, [`insert`](Self::insert) it again, or let the
    /// server change it with [`update`](Self::update). Other managed objects can be values, too:
    /// those are shared.
    Dict<K, V>
}

fn entries<K: DeserializeOwned, V: DeserializeOwned>(
    answer: &Answer,
) -> Result<Vec<(K, V)>, ManagerError> {
    answer.each(|values: &mut Values<'_>| Ok((values.next()?, values.next()?)))
}

impl Manager {
    /// Creates a map with these entries. Of several with equal keys, the last one counts.
    ///
    /// ```
    /// # use executor::manager::Manager;
    /// # #[executor::main]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = Manager::start()?;
    /// let squares = manager.dict((1..=3).map(|n| (n, n * n)))?;
    /// let empty = manager.dict::<String, f64>([])?;
    /// # assert_eq!((squares.len()?, empty.len()?), (3, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn dict<K: Serialize, V: Serialize>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Dict<K, V>, ManagerError> {
        let dict = Dict::of(Reference::created(&self.creation(Kind::Map).call()?));
        dict.extend(entries)?;
        Ok(dict)
    }

    /// Does what [`dict`](Self::dict) does, without blocking the thread.
    pub async fn dict_async<K: Serialize, V: Serialize>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Dict<K, V>, ManagerError> {
        let dict = {
            let answer = self.creation(Kind::Map).call_async().await?;
            Dict::of(Reference::created(&answer))
        };
        dict.extend_async(entries).await?;
        Ok(dict)
    }
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> Dict<K, V> {
    calls! {
        /// Returns a copy of the value of a key.
        fn get / get_async [Q](&self, key: &Q) -> Option<V>
        where [K: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::MapGet).key(key) => |answer| answer.optional() }

        /// Sets the value of a key. Returns the previous value. An existing key keeps its place in
        /// the order.
        fn insert / insert_async [Q, W](&self, key: &Q, value: &W) -> Option<V>
        where [K: Borrow<Q>, Q: Serialize + ?Sized, V: Borrow<W>, W: Serialize + ?Sized]
        {
            self.reference.request(Operation::MapInsert).key(key).last_value(value)
                => |answer| answer.optional()
        }

        /// Removes a key. Returns its value.
        fn remove / remove_async [Q](&self, key: &Q) -> Option<V>
        where [K: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::MapRemove).key(key) => |answer| answer.optional() }

        /// Returns whether a key is there.
        fn contains_key / contains_key_async [Q](&self, key: &Q) -> bool
        where [K: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::MapContains).key(key) => |answer| Ok(answer.is_yes()) }

        /// Returns the value of a key. If it is not there, inserts this one first. Python's
        /// `setdefault`.
        fn get_or_insert / get_or_insert_async [Q, W](&self, key: &Q, value: &W) -> V
        where [K: Borrow<Q>, Q: Serialize + ?Sized, V: Borrow<W>, W: Serialize + ?Sized]
        {
            self.reference.request(Operation::MapGetOrInsert).key(key).last_value(value)
                => |answer| answer.value()
        }

        /// Removes the entry that was inserted last, and returns it. Python's `popitem`.
        fn pop / pop_async [](&self) -> Option<(K, V)>
        { self.reference.request(Operation::MapPop) => |answer| Ok(entries(&answer)?.pop()) }

        /// Replaces the value of a key if it is `expected`. `None` stands for a key that is not
        /// there, before and after. Returns whether it was, with the value that is there otherwise.
        ///
        /// ```
        /// # use executor::manager::Manager;
        /// # #[executor::main]
        /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
        /// # let manager = Manager::start()?;
        /// let owners = manager.dict::<String, u32>([])?;
        /// assert_eq!(owners.compare_exchange("door", None, Some(&1))?, Ok(()));
        /// assert_eq!(owners.compare_exchange("door", None, Some(&2))?, Err(Some(1)));
        /// assert_eq!(owners.compare_exchange("door", Some(&1), None)?, Ok(()));
        /// assert!(owners.is_empty()?);
        /// # Ok(())
        /// # }
        /// ```
        fn compare_exchange / compare_exchange_async [Q](
            &self,
            key: &Q,
            expected: Option<&V>,
            new: Option<&V>,
        ) -> Result<(), Option<V>>
        where [K: Borrow<Q>, Q: Serialize + ?Sized]
        {
            [expected, new].into_iter().fold(
                self.reference.request(Operation::MapCompareExchange).key(key),
                |request, value| match value {
                    Some(value) => request.flag(true).value(value),
                    None => request.flag(false),
                },
            ) => |answer| match answer.is_yes() {
                true => Ok(Ok(())),
                false => Ok(Err(answer.optional()?)),
            }
        }

        /// Replaces the value of a key by what the function makes of it, in the server. Returns the
        /// new value, or `None` if the key is not there. See [`Step`].
        ///
        /// ```
        /// use executor::{manager::Manager, prelude::*};
        ///
        /// #[task]
        /// fn add(value: i64, n: i64) -> i64 { value + n }
        ///
        /// #[executor::main]
        /// fn main() -> Result<(), Box<dyn std::error::Error>> {
        ///     let manager = Manager::start()?;
        ///     let counts = manager.dict([("a".to_owned(), 1)])?;
        ///     assert_eq!(counts.update("a", add::with(5))?, Some(6));
        ///     assert_eq!(counts.update("b", add::with(5))?, None);
        ///     Ok(())
        /// }
        /// ```
        ///
        /// # Errors
        /// [`ManagerError::Failed`] if the function returns an error or panics. The value is as it
        /// was before.
        fn update / update_async [Q, F, A](&self, key: &Q, step: Step<F, A>) -> Option<V>
        where [K: Borrow<Q>, Q: Serialize + ?Sized, V: Borrow<F::Current>, F: StepFn<A, Output = V>]
        {
            {
                let call = step.encode(self.reference.door())?;
                let request = self.reference.request(Operation::MapUpdate).key(key);
                request.number(call.function).flag(false).arguments_of(call)
            } => |answer| answer.optional()
        }

        /// Sets the value of a key to what the function makes of it. The function gets `None` if
        /// the key is not there. Returns the new value. See [`update`](Self::update).
        fn update_or_insert / update_or_insert_async [Q, F, A](
            &self,
            key: &Q,
            step: Step<F, A>,
        ) -> V
        where [
            K: Borrow<Q>, Q: Serialize + ?Sized, F: StepFn<A, Output = V, Current = Option<V>>
        ]
        {
            {
                let call = step.encode(self.reference.door())?;
                let request = self.reference.request(Operation::MapUpdate).key(key);
                request.number(call.function).flag(true).arguments_of(call)
            } => |answer| answer.value()
        }

        /// Returns copies of the values of several keys, in their order, in one call.
        fn get_many / get_many_async ['q, Q](
            &self,
            keys: impl IntoIterator<Item = &'q Q>,
        ) -> Vec<Option<V>>
        where [K: Borrow<Q>, Q: Serialize + ?Sized + 'q]
        {
            keys.into_iter().fold(
                self.reference.request(Operation::MapGetMany),
                |request, key| request.key(key),
            ) => |answer| answer.each(|values: &mut Values<'_>| values.optional())
        }

        /// Returns a copy of all entries at one moment, in the order of insertion.
        fn snapshot / snapshot_async [](&self) -> Vec<(K, V)>
        { self.reference.request(Operation::Snapshot) => |answer| entries(&answer) }

        /// Returns a copy of all keys at one moment, in the order of insertion.
        fn keys / keys_async [](&self) -> Vec<K>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| answer.each(|values: &mut Values<'_>| {
                    let key = values.next()?;
                    values.skip()?;
                    Ok(key)
                })
        }

        /// Returns a copy of all values at one moment, in the order of insertion.
        fn values / values_async [](&self) -> Vec<V>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| answer.each(|values: &mut Values<'_>| {
                    values.skip()?;
                    values.next()
                })
        }

        /// Returns the number of entries.
        fn len / len_async [](&self) -> usize
        { self.reference.request(Operation::Len) => |answer| Ok(answer.number() as usize) }

        /// Returns whether there is no entry.
        fn is_empty / is_empty_async [](&self) -> bool
        { self.reference.request(Operation::Len) => |answer| Ok(answer.number() == 0) }

        /// Removes all entries.
        fn clear / clear_async [](&self) -> ()
        { self.reference.request(Operation::Clear) => |_answer| Ok(()) }
    }

    /// Iterates over the entries in the order of insertion. They are fetched in pages of 64 KiB, so
    /// a map of any size is iterated in little memory.
    ///
    /// The map may change meanwhile. An entry that is there all the time is yielded exactly once,
    /// with the value that it has when its page is fetched. One that is inserted or removed
    /// meanwhile may be yielded or not.
    ///
    /// An error is the last item.
    pub fn iter(&self) -> Iter<(K, V)> {
        Iter::new(&self.reference, entries)
    }

    /// Begins a change of the entry of one key.
    ///
    /// ```
    /// # use executor::manager::Manager;
    /// # #[executor::main]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = Manager::start()?;
    /// let sizes = manager.dict::<String, u64>([])?;
    /// assert_eq!(sizes.entry("a".to_owned()).or_insert(&3)?, 3);
    /// assert_eq!(sizes.entry("a".to_owned()).or_insert(&4)?, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn entry(&self, key: K) -> Entry<'_, K, V> {
        Entry { dict: self, key }
    }
}

impl<K: Serialize, V: Serialize> Dict<K, V> {
    /// Inserts all these entries in one call. Python's `update`.
    pub fn extend(&self, entries: impl IntoIterator<Item = (K, V)>) -> Result<(), ManagerError> {
        self.extending(entries).map_or(Ok(()), |request| request.call().map(drop))
    }

    /// Does what [`extend`](Self::extend) does, without blocking the thread. If the future is
    /// dropped early, the call may or may not have been made.
    pub async fn extend_async(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(), ManagerError> {
        let request = self.extending(entries);
        match request {
            None => Ok(()),
            Some(request) => request.call_async().await.map(drop),
        }
    }

    /// Asks to insert entries. `None` if there are none.
    fn extending(&self, entries: impl IntoIterator<Item = (K, V)>) -> Option<Request<'_>> {
        let mut entries = entries.into_iter().peekable();
        entries.peek()?;
        let request = self.reference.request(Operation::MapExtend);
        Some(entries.fold(request, |request, (key, value)| request.key(&key).value(&value)))
    }
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> IntoIterator
    for &Dict<K, V>
{
    type Item = Result<(K, V), ManagerError>;
    type IntoIter = Iter<(K, V)>;

    fn into_iter(self) -> Iter<(K, V)> {
        self.iter()
    }
}

/// The entry of one key of a [`Dict`]. See [`Dict::entry`].
#[derive(Debug)]
#[must_use = "an entry does nothing until one of its methods is called"]
pub struct Entry<'a, K, V> {
    dict: &'a Dict<K, V>,
    key: K,
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> Entry<'_, K, V> {
    /// Returns the value. If there is none, inserts this one first.
    pub fn or_insert(self, value: &V) -> Result<V, ManagerError> {
        self.dict.get_or_insert(&self.key, value)
    }

    /// Returns the value. If there is none, inserts the one that the function makes. The function
    /// runs in this process, so another process may insert a value in between: then that one stays,
    /// and is returned.
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> Result<V, ManagerError> {
        match self.dict.get(&self.key)? {
            Some(value) => Ok(value),
            None => self.dict.get_or_insert(&self.key, &make()),
        }
    }

    /// Sets the value to what the function makes of it, in the server. See
    /// [`Dict::update_or_insert`].
    pub fn update<F: StepFn<A, Output = V, Current = Option<V>>, A>(
        self,
        step: Step<F, A>,
    ) -> Result<V, ManagerError> {
        self.dict.update_or_insert(&self.key, step)
    }

    /// Does what [`or_insert`](Self::or_insert) does, without blocking the thread.
    pub async fn or_insert_async(self, value: &V) -> Result<V, ManagerError> {
        self.dict.get_or_insert_async(&self.key, value).await
    }

    /// Does what [`or_insert_with`](Self::or_insert_with) does, without blocking the thread while
    /// it waits for the server.
    pub async fn or_insert_with_async(self, make: impl FnOnce() -> V) -> Result<V, ManagerError> {
        match self.dict.get_async(&self.key).await? {
            Some(value) => Ok(value),
            None => self.dict.get_or_insert_async(&self.key, &make()).await,
        }
    }

    /// Does what [`update`](Self::update) does, without blocking the thread.
    pub async fn update_async<F: StepFn<A, Output = V, Current = Option<V>>, A>(
        self,
        step: Step<F, A>,
    ) -> Result<V, ManagerError> {
        self.dict.update_or_insert_async(&self.key, step).await
    }
}
