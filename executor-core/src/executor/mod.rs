//! What users submit to.
//!
//! ```text
//!  pool.submit(add::task(1, 2))      typed: encodes in the caller's thread
//!        │
//!        ▼ RawTask: entry, bytes, options
//!  Executor::submit_raw              object-safe: `&dyn Executor`, `Arc<dyn Executor>`
//!        │
//!        ▼ RawFuture: a cell of bytes
//!  TaskFuture<i64>                   typed again: decodes where the value is read
//! ```

mod map;
mod mp_pool;
mod process;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

pub use map::{Map, MapStream, MapStreamWithIndex, MapWithIndex};
pub use mp_pool::{AsyncResult, Chunked, IMap, MakeTask, Pool, PoolBuilder, PoolError};
pub use process::{OnDrop, ProcessPoolBuilder, ProcessPoolExecutor};

use crate::{
    future::{TaskFuture, cell::Cell},
    os::local,
    pool::{Call, ChunkCall},
    registry::TaskEntry,
    task::encode::encode,
    task::{IntoTask, Task, TaskArgs},
    wire::buffer::Buffer,
};

/// Something that runs tasks: the common part of all executors, for code that does not care which.
///
/// It is object-safe; `submit` and `map` come with [`ExecutorExt`], also on `&dyn Executor` and `Arc<dyn Executor>`.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// fn sum_of_squares(executor: &dyn Executor, n: u64) -> Result<u64, TaskError> {
///     executor.map(square::task, 0..n).sum()
/// }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(sum_of_squares(&pool, 4).unwrap(), 14);
/// }
/// ```
pub trait Executor: Send + Sync {
    /// Takes a task in.
    #[doc(hidden)]
    fn submit_raw(&self, task: RawTask) -> RawFuture;

    /// Takes tasks of one function in that travel together.
    #[doc(hidden)]
    fn submit_chunk(&self, chunk: RawChunk);

    /// How long a call of this function takes, as far as is known.
    #[doc(hidden)]
    fn estimate(&self, entry: &'static TaskEntry) -> Option<Duration>;

    /// What arguments are to be encoded into.
    #[doc(hidden)]
    fn buffer(&self) -> Buffer {
        Buffer::new()
    }

    /// Another handle of the same executor.
    #[doc(hidden)]
    fn handle(&self) -> Box<dyn Executor>;

    /// How many tasks can run at a time.
    fn max_workers(&self) -> usize;

    /// Takes nothing in any more, and ends the executor as the options say.
    fn shutdown_with(&self, options: ShutdownOptions);

    /// As `shutdown(true)`, for async code.
    #[doc(hidden)]
    fn shutdown_boxed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A task whose arguments are encoded.
#[doc(hidden)]
pub struct RawTask(pub(crate) Call);

/// Some tasks whose arguments are encoded.
#[doc(hidden)]
pub struct RawChunk(pub(crate) ChunkCall);

/// A future whose type is not known.
#[doc(hidden)]
pub struct RawFuture(pub(crate) Arc<Cell>);

/// How [`Executor::shutdown_with`] ends an executor.
///
/// ```
/// use executor::{ShutdownOptions, prelude::*};
/// use std::time::{Duration, Instant};
///
/// #[task]
/// fn forever() { loop { std::thread::park() } }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let future = pool.submit(forever::task());
///     pool.shutdown_with(ShutdownOptions {
///         wait: true,
///         cancel_pending: true,
///         deadline: Some(Instant::now() + Duration::from_millis(50)),
///     });
///     assert!(future.done());
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ShutdownOptions {
    /// Return only when every task is resolved, every worker reaped, and every queued callback has run.
    pub wait: bool,
    /// Cancel what has not begun; otherwise it is finished first.
    pub cancel_pending: bool,
    /// When to end what still runs: by SIGTERM, and half a second later by SIGKILL. Its futures get
    /// [`TaskError::Shutdown`](crate::TaskError::Shutdown).
    pub deadline: Option<Instant>,
}

impl Default for ShutdownOptions {
    /// Waits, cancels nothing, has no deadline: as `shutdown(true)`.
    fn default() -> Self {
        ShutdownOptions { wait: true, cancel_pending: false, deadline: None }
    }
}

/// `submit`, `map` and `shutdown` for everything that is an [`Executor`].
///
/// ```
/// use executor::prelude::*;
/// use std::sync::Arc;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() {
///     let pool: Arc<dyn Executor> = Arc::new(ProcessPoolExecutor::builder().max_workers(1).build().unwrap());
///     assert_eq!(pool.submit(square::task(3)).result().unwrap(), 9);
///     pool.shutdown(true);
/// }
/// ```
pub trait ExecutorExt: Executor {
    /// Submits a task: see [`ProcessPoolExecutor::submit`].
    fn submit<T: IntoTask>(&self, task: T) -> TaskFuture<T::Output> {
        submit(self, task.into_task())
    }

    /// A task for each item: see [`ProcessPoolExecutor::map`].
    fn map<T, I, M>(&self, make: M, items: I) -> Map<T::Function, T::Arguments, I::IntoIter, M>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        Map::new(self.handle(), make, items.into_iter())
    }

    /// Takes nothing in any more: see [`ProcessPoolExecutor::shutdown`].
    fn shutdown(&self, wait: bool) {
        self.shutdown_with(ShutdownOptions { wait, ..ShutdownOptions::default() });
    }

    /// As `shutdown(true)`, for async code: see [`ProcessPoolExecutor::shutdown_async`].
    fn shutdown_async(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown_boxed()
    }
}

impl<E: Executor + ?Sized> ExecutorExt for E {}

impl<E: Executor + ?Sized> Executor for Arc<E> {
    fn submit_raw(&self, task: RawTask) -> RawFuture {
        (**self).submit_raw(task)
    }

    fn submit_chunk(&self, chunk: RawChunk) {
        (**self).submit_chunk(chunk);
    }

    fn estimate(&self, entry: &'static TaskEntry) -> Option<Duration> {
        (**self).estimate(entry)
    }

    fn buffer(&self) -> Buffer {
        (**self).buffer()
    }

    fn handle(&self) -> Box<dyn Executor> {
        (**self).handle()
    }

    fn max_workers(&self) -> usize {
        (**self).max_workers()
    }

    fn shutdown_with(&self, options: ShutdownOptions) {
        (**self).shutdown_with(options);
    }

    fn shutdown_boxed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (**self).shutdown_boxed()
    }
}

thread_local! {
    static SMALL: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

/// Encodes here, in the caller's thread; decodes where the value is read.
fn submit<E, F, A>(executor: &E, task: Task<F, A>) -> TaskFuture<F::Output>
where
    E: Executor + ?Sized,
    F: TaskArgs<A>,
{
    let (args, options) = task.into_parts();
    // One vector for each thread that submits.
    let mut buffer = executor.buffer().using(local::take(&SMALL));
    let arguments = encode::<F, A>(args, &options, &mut buffer).map(|attached| buffer.take(attached));
    local::put(&SMALL, buffer.into_small());
    let call = Call { entry: F::entry(), arguments, options };
    TaskFuture::new::<F>(executor.submit_raw(RawTask(call)).0)
}
