//! Pools of workers that processes share.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use futures::stream::{FuturesUnordered, StreamExt};

use super::{GRACE, calls, creations, handle};
use crate::{
    future::wait::Signal,
    manager::{
        Manager, ManagerError,
        client::{Answer, PendingAnswer, Reference, Request},
        function::{EncodedCall, encode_call},
        protocol::{Kind, Operation, POOL_WORKERS_MAX, Status},
    },
    task::{IntoTask, Task, TaskArgs, TaskFn},
};

handle! {
    /// A pool of workers that processes share. It corresponds to `manager.Pool()`.
    ///
    /// [`Manager::pool`] makes it. Its workers are children of the server, and run the server's
    /// program. Tasks of all processes that have a handle wait in one queue, in the order in which
    /// they came. So programs that run beside each other share the processors instead of each
    /// having a pool for all of them. A [`ProcessPoolExecutor`](crate::ProcessPoolExecutor) is many
    /// times as fast for short tasks, because each task of this pool passes through the server.
    ///
    /// ```
    /// use executor::{Process, manager::{Manager, Pool}, prelude::*};
    ///
    /// #[task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// /// Runs in another process, and uses the same workers.
    /// #[task]
    /// fn sum_of_squares(pool: Pool, n: u64) -> Result<u64, executor::manager::ManagerError> {
    ///     Ok(pool.map(square::task, 0..n)?.into_iter().sum())
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let pool = manager.pool(2)?;
    ///     let nine = pool.submit(square::task(3));
    ///     let other = Process::new(sum_of_squares::task(pool.clone(), 4)).start()?;
    ///     assert_eq!(nine.result()?, 9);
    ///     assert_eq!(other.join()?, 14);
    ///     pool.close()?;
    ///     pool.join()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Tasks
    ///
    /// Any task function of the server's program can be called, also an async one. A function that
    /// the server does not have, or has with other types, is an error of the task: this can happen
    /// to a client that is another program. Arguments and results cannot contain what belongs to
    /// processes: files, queues, or managed objects.
    ///
    /// The options of a task ([`timeout`](crate::Task::timeout),
    /// [`queue_timeout`](crate::Task::queue_timeout), [`priority`](crate::Task::priority),
    /// [`retries`](crate::Task::retries), [`name`](crate::Task::name)) mean the same as everywhere.
    /// The others are refused: `retry_on`, `measure_usage`, `needs`, `on_worker`.
    ///
    /// One process can have as many tasks in the pool as the manager allows it calls that wait
    /// ([`client_calls_max`](crate::manager::ManagerBuilder::client_calls_max),
    /// [`client_bytes_max`](crate::manager::ManagerBuilder::client_bytes_max)). More are an error,
    /// [`ManagerError::Limit`]. [`map`](Self::map) and [`imap`](Self::imap) submit no more than a
    /// few hundred at a time.
    ///
    /// Workers ignore SIGINT, as their parent does, and so do the programs that their tasks start.
    ///
    /// # When somebody dies
    ///
    /// - **A worker.** Its task fails with [`TaskError::WorkerLost`](crate::TaskError::WorkerLost),
    ///   and another worker starts.
    /// - **A process that has submitted tasks.** Those that have not begun never run. Those that
    ///   run go on to their end, which nobody sees.
    /// - **The last handle.** A future counts as one, and a handle on its way, too. The workers are
    ///   terminated, and their tasks with them: first by SIGTERM, and by SIGKILL half a second
    ///   later.
    /// - **The server.** Its workers end with it, and every call returns [`ManagerError::Gone`].
    ///
    /// A task that never ends occupies its worker. It holds up neither the server nor other
    /// objects.
    Pool
}

creations! {
    /// Creates a pool of at most `workers` workers, which start when there are tasks for them.
    ///
    /// A manager has at most 64 pools at a time, of at most 1024 workers each.
    ///
    /// # Errors
    /// [`ManagerError::Invalid`] for no worker, or more than that. [`ManagerError::Limit`] for more
    /// pools.
    fn pool / pool_async [](&self, workers: usize) -> Pool
    { creation(self, workers)? }
}

fn creation(manager: &Manager, workers: usize) -> Result<Request<'_>, ManagerError> {
    let number = workers as u64;
    if number == 0 || number > POOL_WORKERS_MAX {
        let text = format!("a managed pool has 1 to {POOL_WORKERS_MAX} workers, and not {workers}");
        return Err(ManagerError::Invalid(text.into()));
    }
    Ok(manager.creation(Kind::Pool).number(number))
}

/// How many tasks of a map are submitted and not yet taken. With a higher value, a map over large
/// items takes more memory. With a lower value, more workers wait while a result is being used.
const MAP_WINDOW: usize = 256;

const OPEN: &str = "a pool can be joined after it was closed or terminated";

impl Pool {
    fn submission(&self, call: &EncodedCall) -> Request<'static> {
        let request = Arc::clone(&self.reference).into_request(Operation::PoolSubmit);
        request.number(call.function).bytes(&call.options).bytes(&call.arguments)
    }

    /// Submits a task, and returns its future. It never fails: errors are reported by the future.
    ///
    /// The task goes on if the future is dropped.
    ///
    /// The first call of a handle waits until the server has answered. After that, this call does
    /// not wait.
    pub fn submit<T: IntoTask>(&self, task: T) -> PoolFuture<T::Output> {
        self.begin(task.into_task())
    }

    fn begin<F: TaskArgs<A>, A>(&self, task: Task<F, A>) -> PoolFuture<F::Output> {
        let begun = encode_call(task, None).and_then(|call| self.submission(&call).begin());
        PoolFuture {
            state: match begun {
                Ok(pending) => State::Pending(pending),
                Err(error) => State::Failed(error),
            },
            read: read::<F>,
            _pool: Arc::clone(&self.reference),
        }
    }

    /// Runs a task, and waits for its result. It corresponds to `apply`.
    ///
    /// # Errors
    /// [`ManagerError::Failed`] with the error of the task.
    pub fn apply<T: IntoTask>(&self, task: T) -> Result<T::Output, ManagerError> {
        let answer = self.submission(&encode_call(task.into_task(), None)?).call()?;
        read::<T::Function>(&answer)
    }

    /// Does what [`apply`](Self::apply) does, without blocking the thread. Nothing happens before
    /// the future is polled. If it is dropped later, the task goes on.
    pub async fn apply_async<T: IntoTask>(&self, task: T) -> Result<T::Output, ManagerError> {
        let request = self.submission(&encode_call(task.into_task(), None)?);
        let answer = request.call_async().await?;
        read::<T::Function>(&answer)
    }

    /// Runs a task for each item, and returns the results in the order of the items. For functions
    /// of several parameters, use a closure: `pool.map(|(a, b)| add::task(a, b), pairs)`.
    ///
    /// # Errors
    /// The error of the first item that fails. Further items may have been submitted: their tasks
    /// go on.
    pub fn map<T, I, M>(&self, make: M, items: I) -> Result<Vec<T::Output>, ManagerError>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        self.imap(make, items).collect()
    }

    /// Runs a task for each item, and returns an iterator over the results in the order of the
    /// items. Each item has its own result: one that fails does not end the iteration.
    ///
    /// It is lazy: items are taken from the input in `next`, so the input may be endless. At most
    /// 256 are submitted and not yet yielded.
    pub fn imap<T, I, M>(&self, make: M, items: I) -> PoolMap<I::IntoIter, M, T::Output>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        PoolMap { source: Source::new(self, make, items), futures: VecDeque::new() }
    }

    /// Runs a task for each item, as [`imap`](Self::imap) does, but returns an iterator over the
    /// results in the order in which they come.
    ///
    /// ```
    /// use executor::{manager::Manager, prelude::*};
    ///
    /// #[task]
    /// fn sleep(millis: u64) -> u64 {
    ///     std::thread::sleep(std::time::Duration::from_millis(millis));
    ///     millis
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let manager = Manager::start().unwrap();
    ///     let pool = manager.pool(2).unwrap();
    ///     let results = pool.imap_unordered(sleep::task, [300, 0]);
    ///     let mut results: Vec<u64> = results.collect::<Result<_, _>>().unwrap();
    ///     results.sort(); // 0 has probably come first.
    ///     assert_eq!(results, [0, 300]);
    /// }
    /// ```
    pub fn imap_unordered<T, I, M>(
        &self,
        make: M,
        items: I,
    ) -> UnorderedPoolMap<I::IntoIter, M, T::Output>
    where
        T: IntoTask,
        I: IntoIterator,
        M: FnMut(I::Item) -> T,
    {
        UnorderedPoolMap {
            source: Source::new(self, make, items),
            futures: FuturesUnordered::new(),
            signal: Arc::default(),
        }
    }

    calls! {
        /// Lets the pool accept no more tasks, from any process. Those that it has accepted are
        /// finished. Later ones fail with [`TaskError::Shutdown`](crate::TaskError::Shutdown).
        fn close / close_async [](&self) -> ()
        { self.reference.request(Operation::PoolClose) => |_answer| Ok(()) }

        /// Ends the pool at once: its workers get SIGTERM, and SIGKILL half a second later. Tasks
        /// that are not done fail with [`TaskError::Shutdown`](crate::TaskError::Shutdown).
        fn terminate / terminate_async [](&self) -> ()
        { self.reference.request(Operation::PoolTerminate) => |_answer| Ok(()) }

        /// Waits until all tasks are done and no worker is left.
        ///
        /// # Errors
        /// [`ManagerError::Refused`] if nobody has closed or terminated the pool.
        fn join / join_async [](&self) -> ()
        { self.joining() => |answer| answer.unless_refused(OPEN).map(drop) }

        /// Returns the process ids of the current workers, on the server's machine.
        fn worker_pids / worker_pids_async [](&self) -> Vec<u32>
        { self.reference.request(Operation::PoolWorkers) => |answer| answer.value() }
    }

    fn joining(&self) -> Request<'_> {
        self.reference.request(Operation::PoolJoin)
    }

    /// Waits as [`join`](Self::join) does, at most for `timeout`. Returns whether the end has come.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`] if the server does not answer for a second after that.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        let answer = self.joining().call_then_give_up(deadline, Some(GRACE))?;
        Ok(answer.unless_refused(OPEN)?.status() == Status::Done)
    }
}

fn read<F: TaskFn>(answer: &Answer) -> Result<F::Output, ManagerError> {
    answer.value_with(F::NAME, |bytes| F::decode_output(bytes))
}

/// The result to come of a task in a managed [`Pool`].
///
/// It can be awaited, on any runtime, or waited for with [`result`](Self::result). If it is
/// dropped, the task goes on.
///
/// ```
/// use executor::{manager::{Manager, ManagerError}, prelude::*};
///
/// #[task]
/// fn parse(text: &str) -> Result<u64, std::num::ParseIntError> { text.parse() }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let pool = manager.pool(1)?;
///     assert_eq!(futures::executor::block_on(pool.submit(parse::task("7")))?, 7);
///     match pool.submit(parse::task("x")).result() {
///         Err(ManagerError::Failed(TaskError::Failed(error))) => {
///             assert_eq!(error.message(), "invalid digit found in string");
///         }
///         other => panic!("{other:?}"),
///     }
///     Ok(())
/// }
/// ```
#[must_use = "the task runs in any case, and only its future tells how it has ended"]
pub struct PoolFuture<T> {
    state: State,
    read: fn(&Answer) -> Result<T, ManagerError>,
    /// The pool lives as long as somebody waits for its tasks.
    _pool: Arc<Reference>,
}

enum State {
    Pending(PendingAnswer),
    /// It was never submitted.
    Failed(ManagerError),
    Taken,
}

impl<T> fmt::Debug for PoolFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolFuture").finish_non_exhaustive()
    }
}

impl<T> PoolFuture<T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// [`ManagerError::Failed`] with the error of the task. [`ManagerError::Limit`] if this process
    /// has too many tasks in pools. [`ManagerError::Gone`] if the server has ended.
    pub fn result(mut self) -> Result<T, ManagerError> {
        // Without a deadline, it waits until there is a result.
        self.wait(None).unwrap_or(Err(ManagerError::TimedOut))
    }

    /// Waits for the result, at most for `timeout`. Otherwise it gives the future back.
    ///
    /// # Errors
    /// The future, if there is no result yet. The inner errors are those of
    /// [`result`](Self::result).
    pub fn result_timeout(mut self, timeout: Duration) -> Result<Result<T, ManagerError>, Self> {
        let waited = match Instant::now().checked_add(timeout) {
            Some(deadline) => self.wait(Some(deadline)),
            // A time that no clock reaches.
            None => self.wait(None),
        };
        waited.ok_or(self)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Option<Result<T, ManagerError>> {
        let answer = match &mut self.state {
            State::Pending(pending) => pending.wait(deadline)?,
            state => taken(state),
        };
        self.state = State::Taken;
        Some(answer.and_then(|answer| (self.read)(&answer)))
    }
}

/// Takes the error of a task that was never submitted.
fn taken(state: &mut State) -> Result<Answer, ManagerError> {
    match std::mem::replace(state, State::Taken) {
        State::Failed(error) => Err(error),
        _ => panic!("PoolFuture polled after it was ready"),
    }
}

impl<T> Future for PoolFuture<T> {
    type Output = Result<T, ManagerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let answer = match &mut this.state {
            State::Pending(pending) => ready!(Pin::new(pending).poll(context)),
            state => taken(state),
        };
        this.state = State::Taken;
        Poll::Ready(answer.and_then(|answer| (this.read)(&answer)))
    }
}

/// The results of [`Pool::imap`], in the order of the items.
#[must_use = "nothing is submitted before the first `next`"]
pub struct PoolMap<I, M, T> {
    source: Source<I, M>,
    futures: VecDeque<PoolFuture<T>>,
}

/// Where the tasks of a map come from.
struct Source<I, M> {
    pool: Pool,
    /// `None` when they have ended.
    items: Option<I>,
    make: M,
}

impl<I: Iterator, M> Source<I, M> {
    fn new(pool: &Pool, make: M, items: impl IntoIterator<IntoIter = I>) -> Self {
        Source { pool: pool.clone(), items: Some(items.into_iter()), make }
    }

    /// Submits the task of the next item, if there is one.
    fn submit_next<T: IntoTask>(&mut self) -> Option<PoolFuture<T::Output>>
    where
        M: FnMut(I::Item) -> T,
    {
        let Some(item) = self.items.as_mut()?.next() else {
            self.items = None;
            return None;
        };
        Some(self.pool.submit((self.make)(item)))
    }
}

impl<I, M, T> fmt::Debug for PoolMap<I, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolMap").field("pool", &self.source.pool).finish_non_exhaustive()
    }
}

impl<I, M, T> Iterator for PoolMap<I, M, T::Output>
where
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: IntoTask,
{
    type Item = Result<T::Output, ManagerError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.futures.len() < MAP_WINDOW
            && let Some(future) = self.source.submit_next()
        {
            self.futures.push_back(future);
        }
        self.futures.pop_front().map(PoolFuture::result)
    }
}

/// The results of [`Pool::imap_unordered`], in the order in which they come.
#[must_use = "nothing is submitted before the first `next`"]
pub struct UnorderedPoolMap<I, M, T> {
    source: Source<I, M>,
    futures: FuturesUnordered<PoolFuture<T>>,
    /// Raised when there is a result to look for.
    signal: Arc<Signal>,
}

impl<I, M, T> fmt::Debug for UnorderedPoolMap<I, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnorderedPoolMap").field("pool", &self.source.pool).finish_non_exhaustive()
    }
}

impl<I, M, T> Iterator for UnorderedPoolMap<I, M, T::Output>
where
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: IntoTask,
{
    type Item = Result<T::Output, ManagerError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.futures.len() < MAP_WINDOW
            && let Some(future) = self.source.submit_next()
        {
            self.futures.push(future);
        }
        let waker = Waker::from(Arc::clone(&self.signal));
        loop {
            // Before the look: what comes after it raises the flag again.
            self.signal.clear();
            match self.futures.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(next) => return next,
                Poll::Pending => _ = self.signal.wait(None),
            }
        }
    }
}
