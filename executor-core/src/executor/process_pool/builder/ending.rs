//! Options about the end of tasks and workers: how much time they get, and what workers do last.

use std::time::Duration;

use super::{ProcessPoolBuilder, call_in_workers};
use crate::task::IntoTask;

impl ProcessPoolBuilder {
    /// Gives a task that must end the time to stop by itself: it is asked to, and its worker is
    /// ended only if the task has not returned after this time. If it has, the worker is kept.
    ///
    /// A task must end when it is [cancelled](crate::TaskFuture::cancel_running), when its [time
    /// limit](crate::Task::timeout) has passed, and at the
    /// [deadline](crate::ShutdownOptions::deadline) of a shutdown. It finds out by
    /// [`is_cancelled`](crate::is_cancelled) or [`cancelled`](crate::cancelled). Its future is done
    /// when the task has returned or its worker has ended, so up to this time later. The default is
    /// zero: the worker is ended at once. [`Duration::MAX`] means that tasks are only asked.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn ticks() -> u64 {
    ///     (0..).find(|_| executor::cancellation().wait_timeout(Duration::from_millis(1))).unwrap()
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.cancel_grace(Duration::from_secs(30)).build().unwrap();
    ///     let future = pool.submit(ticks::task());
    ///     assert!(future.cancel_running());
    ///     assert!(future.result().unwrap_err().is_cancelled());
    /// }
    /// ```
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.graces.cancel = grace;
        self
    }

    /// Sets the time between SIGTERM and SIGKILL, wherever the executor ends a worker that works
    /// properly: for a task that is [cancelled](crate::TaskFuture::cancel_running) or has exceeded
    /// its [time limit](crate::Task::timeout), by
    /// [`terminate_workers`](crate::ProcessPoolExecutor::terminate_workers), and at the end of a
    /// shutdown. Zero means SIGKILL at once.
    ///
    /// If it is not set, a worker that is ended because of its task gets SIGKILL at once, and in
    /// the other cases the time is half a second. SIGTERM ends a process that does not handle it.
    /// The signals go to the worker's process group, and so also to programs that its tasks have
    /// started. A worker that was stopped (SIGSTOP) ends only by SIGKILL. Workers that have lost
    /// contact or do not start get SIGKILL.
    ///
    /// The time is for the task. One that handles SIGTERM and returns ends the wait: its worker,
    /// which has nothing left to do, gets SIGKILL at once. A worker that had no task when it got
    /// SIGTERM has the whole time for its handler; with [`Duration::MAX`] nothing else ends it.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::{Duration, Instant};
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.terminate_grace(Duration::from_secs(10)).build().unwrap();
    ///     let future = pool.submit(forever::task().timeout(Duration::from_millis(20)));
    ///     // Nothing handles SIGTERM in this worker, so it ends at once.
    ///     assert!(future.result().unwrap_err().is_timeout());
    /// }
    /// ```
    pub fn terminate_grace(mut self, grace: Duration) -> Self {
        self.graces.terminate = Some(grace);
        self
    }

    /// Sets a task that each worker runs once when it leaves, on the same thread as its tasks and
    /// after the last of them: when the executor is shut down, and when the worker leaves because
    /// it has had [its tasks](Self::max_tasks_per_worker), is [idle](Self::idle_timeout) or
    /// [old](Self::max_lifetime), has [grown](Self::max_rss_growth), or is one
    /// [too many](crate::ProcessPoolExecutor::resize).
    ///
    /// It is for what a worker should do last: write what it has collected, or close what the
    /// [`initializer`](Self::initializer) has opened. A worker that is ended by a signal does not
    /// run it, nor one whose initializer has failed. So it must not be needed for the safety of
    /// data.
    ///
    /// What finalizers have returned can be read by
    /// [`finalizer_results`](crate::ProcessPoolExecutor::finalizer_results). A finalizer that
    /// fails, panics or ends its worker does no harm to the executor, and no task has to wait for
    /// its result: results are delivered before. While it runs, the worker keeps its place among
    /// [`max_workers`](Self::max_workers). Its [time limit](crate::Task::timeout) is the default
    /// for [`finalizer_timeout`](Self::finalizer_timeout).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # #[derive(Default)]
    /// # struct Seen(Vec<u64>);
    /// #[task]
    /// fn prepare() { executor::worker_state::set(Seen::default()) }
    /// #[task]
    /// fn see(x: u64) { executor::with_worker_state(|seen: &mut Seen| seen.0.push(x)) }
    /// #[task]
    /// fn report() -> Vec<u64> { executor::with_worker_state(|seen: &mut Seen| seen.0.clone()) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.initializer(prepare::task()).finalizer(report::task()).build().unwrap();
    ///     pool.map(see::task, 0..3).for_each(|seen| seen.unwrap());
    ///     pool.shutdown(true);
    ///     let reports = pool.finalizer_results::<report>();
    ///     assert_eq!(reports[0].as_ref().unwrap(), &[0, 1, 2]);
    /// }
    /// ```
    pub fn finalizer<T: IntoTask>(mut self, task: T) -> Self {
        self.finalizer = Some(call_in_workers(task));
        self
    }

    /// Sets how long the [`finalizer`](Self::finalizer) may take in each worker. A worker whose
    /// finalizer takes longer is killed, and the result is
    /// [`TimedOut`](crate::TaskError::TimedOut).
    ///
    /// The default is the task's own [time limit](crate::Task::timeout), and 30 seconds if it has
    /// none. [`Duration::MAX`] means no limit: then a finalizer that never ends delays a
    /// [`shutdown`](crate::ProcessPoolExecutor::shutdown) for ever.
    pub fn finalizer_timeout(mut self, timeout: Duration) -> Self {
        self.finalizer_timeout = Some(timeout);
        self
    }
}
