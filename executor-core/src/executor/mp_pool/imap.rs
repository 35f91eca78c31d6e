//! The lazy maps of a pool.

use std::{
    any::Any,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Shared;
use crate::{
    error::{Phase, TaskError},
    executor::{Executor, Map, map::NotInTime},
    task::{Task, TaskArgs},
};

/// Made by [`Pool::imap`](crate::Pool::imap) and [`imap_unordered`](crate::Pool::imap_unordered): an iterator over the
/// results, one `Result` for each item.
///
/// Nothing happens before the first `next`. The input is pulled in the thread that iterates, a bounded number of items
/// ahead, so it may be endless. When it panics, the results of the items before come first, and then its panic goes on
/// here. When the pool is terminated or broken, one error says so, and the iteration ends. Dropping it cancels what has
/// not begun.
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
    #[expect(clippy::type_complexity, reason = "a shorter name for it would have the same parameters")]
    map: Map<F, A, Tasks<F, A, I, M>, Ready<F, A>>,
    panic: Panic,
    /// Dropped at its end, after the map: that withdraws what it has submitted.
    feeding: Option<Feeding>,
    /// What ended the pool.
    ended_by: Option<TaskError>,
}

/// What is made already.
type Ready<F, A> = fn(Task<F, A>) -> Task<F, A>;

/// What the input has thrown.
type Panic = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

/// The input, as tasks; it ends where it panics.
struct Tasks<F, A, I, M> {
    input: I,
    make: M,
    panic: Panic,
    marker: PhantomData<fn() -> (F, A)>,
}

impl<F, A, I, M> Iterator for Tasks<F, A, I, M>
where
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = Task<F, A>;

    fn next(&mut self) -> Option<Task<F, A>> {
        // Neither is used again after a panic.
        match catch_unwind(AssertUnwindSafe(|| self.input.next().map(&mut self.make))) {
            Ok(task) => task,
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
            feeding: Some(Feeding(Arc::clone(shared))),
            ended_by: None,
        };
        if !shared.enter() {
            imap.map.close_input();
            imap.ended_by = Some(TaskError::Shutdown);
        }
        imap
    }

    /// Items that go to a worker together: see [`Map::chunk_size`]. By default as many as should take 100 µs.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.map = self.map.chunk_size(items);
        self
    }

    /// At most this many items are with the pool and not yet yielded: see [`Map::buffer_size`].
    pub fn buffer_size(mut self, items: usize) -> Self {
        self.map = self.map.buffer_size(items);
        self
    }
}

impl<F, A, I, M> IMap<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    /// Like `next`, but waits at most `timeout`. When the time has passed, [`TaskError::TimedOut`] comes with
    /// [`Phase::Next`], and nothing is lost: ask again.
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
                // No later item can have another end. What came of those before is yielded first.
                Some(Err(error)) if error.is_shutdown() || error.is_broken() => {
                    self.map.close_input();
                    self.ended_by.get_or_insert(error);
                }
                Some(result) => return Ok(Some(result)),
                None => {
                    self.feeding = None;
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

impl<F, A, I, M> Iterator for IMap<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = Result<F::Output, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_until(None).unwrap_or_default()
    }
}

/// A lazy map has not ended: the pool's workers stay for it, also after `close`.
struct Feeding(Arc<Shared>);

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.leave();
    }
}
