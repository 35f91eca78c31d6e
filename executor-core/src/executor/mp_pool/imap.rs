//! The lazy maps of a pool.

use std::{
    any::Any,
    fmt,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Shared;
use crate::{
    error::{Phase, TaskError},
    executor::MapTask,
    executor::{Executor, Map, map::NotInTime},
    task::{Task, TaskArgs},
};

/// An iterator over the results of [`Pool::imap`](crate::Pool::imap) and
/// [`imap_unordered`](crate::Pool::imap_unordered), one `Result` for each item.
///
/// Nothing happens before the first `next`. Items are taken from the input in the thread that
/// iterates, a bounded number of items ahead, so the input may be endless. If the input panics, the
/// iterator first yields the results of the items before the panic, and then `next` panics with the
/// same payload. If the pool is terminated or broken, the iterator yields one error for this and
/// ends. Dropping it cancels the tasks that have not begun.
///
/// ```
/// use executor::{Pool, prelude::*};
/// use std::time::Duration;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() {
///     let pool = Pool::new(2).unwrap();
///     let mut squares = pool.imap(square::task, 0..).chunk_size(4).buffer_size(16);
///     assert_eq!(squares.next().unwrap().unwrap(), 0);
///     assert_eq!(squares.next_timeout(Duration::from_secs(60)).unwrap().unwrap(), 1);
///     drop(squares);
///     pool.close();
///     pool.join().unwrap();
/// }
/// ```
#[must_use = "an imap does nothing until it is iterated"]
pub struct IMap<F: TaskArgs<A>, A, I, M> {
    #[expect(
        clippy::type_complexity,
        reason = "a shorter name for it would have the same parameters"
    )]
    map: Map<F, A, Tasks<F, A, I, M>, Ready<F, A>>,
    /// The panic of the input or of `make`, if there was one.
    panic: Panic,
    /// Registers the map with the pool while it has not ended. It is the field after `map`, so it
    /// is dropped after `map`, which cancels the tasks it has submitted.
    registration: Option<Registration>,
    /// The error that ended the pool. It is yielded after the results that remain.
    ended_by: Option<TaskError>,
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for IMap<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IMap").field("map", &self.map).finish_non_exhaustive()
    }
}

/// A task, or the error that the item is.
type Made<F, A> = Result<Task<F, A>, TaskError>;

/// The function that makes a task from an item. Here the items are tasks already.
type Ready<F, A> = fn(Made<F, A>) -> Made<F, A>;

/// The payload of a panic of the input or of `make`.
type Panic = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

/// The input, turned into tasks. It ends at a panic, and keeps the payload.
struct Tasks<F, A, I, M> {
    input: I,
    make: M,
    panic: Panic,
    marker: PhantomData<fn() -> (F, A)>,
}

impl<F, A, I, M, T> Iterator for Tasks<F, A, I, M>
where
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = Made<F, A>;

    fn next(&mut self) -> Option<Self::Item> {
        // Unwind safe: neither `input` nor `make` is used again after a panic.
        match catch_unwind(AssertUnwindSafe(|| self.input.next().map(&mut self.make))) {
            Ok(task) => task.map(T::into_item),
            Err(panic) => {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                None
            }
        }
    }
}

impl<F: TaskArgs<A>, A, I, M> IMap<F, A, I, M> {
    pub(super) fn new(shared: &Arc<Shared>, make: M, input: I, unordered: bool) -> Self {
        let panic = Panic::default();
        let tasks = Tasks { input, make, panic: Arc::clone(&panic), marker: PhantomData };
        let map = Map::new(Executor::handle(&shared.executor), (|task| task) as Ready<F, A>, tasks);
        let mut imap = IMap {
            map: if unordered { map.unordered() } else { map },
            panic,
            registration: Some(Registration(Arc::clone(shared))),
            ended_by: None,
        };
        if !shared.enter() {
            imap.map.close_input();
            imap.ended_by = Some(TaskError::Shutdown);
        }
        imap
    }

    /// Sets the number of items that are sent to one worker together: see [`Map::chunk_size`]. By
    /// default, a chunk has as many items as should take 100 µs.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.map = self.map.chunk_size(items);
        self
    }

    /// Sets the maximum number of items that are submitted and not yet yielded: see
    /// [`Map::buffer_size`].
    pub fn buffer_size(mut self, items: usize) -> Self {
        self.map = self.map.buffer_size(items);
        self
    }
}

impl<F, A, I, M, T> IMap<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    /// Does the same as `next`, but waits at most `timeout`. When the time has passed, it returns
    /// [`TaskError::TimedOut`] with [`Phase::Next`]. No result is lost: call it again.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<F::Output, TaskError>> {
        let until = Instant::now().checked_add(timeout);
        let late = || TaskError::timed_out(timeout, Phase::Next).of_task(F::NAME);
        self.next_until(until).unwrap_or_else(|NotInTime| Some(Err(late())))
    }

    fn next_until(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<Result<F::Output, TaskError>>, NotInTime> {
        loop {
            match self.map.next_until(until)? {
                // The items after this one end with the same error, so take no more from the input.
                // Items before it may still have results, which are yielded first.
                Some(Err(error)) if error.is_shutdown() || error.is_broken() => {
                    self.map.close_input();
                    self.ended_by.get_or_insert(error);
                }
                Some(result) => return Ok(Some(result)),
                None => {
                    self.registration = None;
                    let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(panic) = panic {
                        resume_unwind(panic);
                    }
                    return Ok(self.ended_by.take().map(Err));
                }
            }
        }
    }
}

impl<F, A, I, M, T> Iterator for IMap<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = Result<F::Output, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_until(None).unwrap_or_default()
    }
}

/// Registers a lazy map with its pool. As long as it exists, the pool keeps its workers, even after
/// `close`.
struct Registration(Arc<Shared>);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.leave();
    }
}
