//! The maps of a pool that read their whole input first, and send it in chunks of one size.

use super::{AsyncResult, MakeTask, Pool};
use crate::{
    error::TaskError,
    executor::{Executor, Map, MapTask},
    task::TaskArgs,
};

/// The maps of a [`Pool`] with a chosen chunk size, made by [`Pool::chunk_size`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it does nothing until it maps"]
pub struct Chunked<'a> {
    pool: &'a Pool,
    chunk_size: Option<usize>,
}

impl<'a> Chunked<'a> {
    pub(super) fn new(pool: &'a Pool, chunk_size: Option<usize>) -> Self {
        Chunked { pool, chunk_size }
    }

    /// Reads the whole input, and makes a map of it. Nothing is submitted yet.
    fn start<T, I, M>(
        &self,
        make: M,
        items: I,
    ) -> Map<T::Function, T::Arguments, std::vec::IntoIter<I::Item>, M>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        let executor = &self.pool.shared.executor;
        let items: Vec<_> = items.into_iter().collect();
        let share = items.len().div_ceil(4 * executor.max_workers()).max(1);
        Map::new(Executor::handle(executor), make, items.into_iter())
            .chunk_size(self.chunk_size.unwrap_or(share))
            .buffer_size(usize::MAX)
    }

    /// See [`Pool::map`].
    ///
    /// # Errors
    /// The same as [`Pool::map`], and [`TaskError::Invalid`] if the chunk size is 0.
    pub fn map<T, I, M>(&self, make: M, items: I) -> Result<Vec<T::Output>, TaskError>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        if !self.pool.shared.is_running() {
            return Err(TaskError::Shutdown);
        }
        let (mut values, mut first_error) = (Vec::new(), None);
        // Iterate to the end even after an error: all items run, as documented, and are waited for.
        for result in self.start(make, items) {
            match result {
                Ok(value) if first_error.is_none() => values.push(value),
                Ok(_) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(values), Err)
    }

    /// See [`Pool::map_collect`]. If the chunk size is 0, the list contains one
    /// [`TaskError::Invalid`].
    pub fn map_collect<T, I, M>(&self, make: M, items: I) -> Vec<Result<T::Output, TaskError>>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        if !self.pool.shared.is_running() {
            return items.into_iter().map(|_| Err(TaskError::Shutdown)).collect();
        }
        self.start(make, items).collect()
    }

    /// See [`Pool::map_async`].
    pub fn map_async<T, I, M>(&self, make: M, items: I) -> AsyncResult<Vec<T::Output>>
    where
        T: MapTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        let unhandled = &self.pool.shared.unhandled;
        if !self.pool.shared.is_running() {
            return AsyncResult::refused(TaskError::Shutdown, unhandled);
        }
        match self.start(make, items).submit_all() {
            Ok((results, total)) => AsyncResult::of_map::<T::Function>(
                self.pool.shared.join_all(results, total),
                unhandled,
            ),
            Err(error) => AsyncResult::refused(error, unhandled),
        }
    }

    /// See [`Pool::starmap`].
    ///
    /// # Errors
    /// The same as [`map`](Self::map).
    pub fn starmap<F, A, I, M, Form>(
        &self,
        mut make: M,
        items: I,
    ) -> Result<Vec<F::Output>, TaskError>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.map(|item| make.make(item), items)
    }

    /// See [`Pool::starmap_async`].
    pub fn starmap_async<F, A, I, M, Form>(
        &self,
        mut make: M,
        items: I,
    ) -> AsyncResult<Vec<F::Output>>
    where
        F: TaskArgs<A>,
        I: IntoIterator,
        M: MakeTask<I::Item, F, A, Form>,
    {
        self.map_async(|item| make.make(item), items)
    }
}
