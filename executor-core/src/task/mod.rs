//! A call of a task function as plain data: the arguments and options of a call that runs somewhere
//! else.
//!
//! ```text
//!  add::task(1, 2) ──► Task<add, (i64, i64)> ──► submit: encode, frame ──► worker: TaskEntry::call
//!                       │ options: timeout, name        TaskFn::entry
//!                       └─ encode() ──► Task<add, Encoded>, owned
//! ```

pub(crate) mod encode;
pub(crate) mod usage;

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use self::usage::UsageSlot;
use crate::{
    error::TaskError,
    registry::TaskEntry,
    sealed::Sealed,
    wire::{
        attachment::{self, Attachment},
        buffer::Buffer,
        codec::{Codec, CodecError},
    },
};

/// The type that `#[task]` generates for a function.
///
/// The attribute generates a type with the function's own name: `#[task] fn add(…)` makes `struct
/// add {}`. It implements this trait for the type; no other code implements it. Code that is
/// generic over tasks uses it as a bound:
///
/// ```
/// use executor::prelude::*;
///
/// fn describe<F: TaskFn>() -> String {
///     format!("`{}` gives {}", F::NAME, std::any::type_name::<F::Output>())
/// }
///
/// #[task(name = "add")]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// assert_eq!(describe::<add>(), "`add` gives i64");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task function",
    label = "not a task function",
    note = "write `#[task]` above the function, and name it by its path: `add`, not `add()` or `add::task`"
)]
pub trait TaskFn: Sized + 'static {
    /// The type of the value that the future yields. It is `T` for a function that returns
    /// `Result<T, E>`, and the function's return type otherwise.
    type Output: Send + 'static;

    /// The name of the function in messages and on the wire. It is the function's path, unless
    /// `#[task(name = "…")]` sets another one.
    const NAME: &'static str;

    #[doc(hidden)]
    const CODEC: Codec;

    #[doc(hidden)]
    fn entry() -> &'static TaskEntry;

    #[doc(hidden)]
    fn decode_output(bytes: &[u8]) -> Result<Self::Output, CodecError>;
}

/// The argument tuples that a task function takes: the tuple of its parameters, and [`Encoded`].
///
/// `#[task]` implements it; no other code does. Generic code uses it as a bound where it takes a
/// [`Task`]:
///
/// ```
/// use executor::{TaskArgs, prelude::*};
///
/// fn queue_for_later<F: TaskArgs<A>, A>(task: Task<F, A>, queue: &mut Vec<Task<F, executor::Encoded>>) {
///     queue.push(task.encode());
/// }
///
/// #[task]
/// fn shout(text: &str) -> String { text.to_uppercase() }
///
/// let mut queue = Vec::new();
/// queue_for_later(shout::task(&String::from("one")), &mut queue);
/// assert_eq!(queue.len(), 1);
/// ```
#[diagnostic::on_unimplemented(
    message = "the task function `{Self}` does not take `{A}`",
    note = "make the task with its own function, `{Self}::task(…)`"
)]
pub trait TaskArgs<A>: TaskFn {
    #[doc(hidden)]
    fn encode_args(args: &A, out: &mut Buffer) -> Result<(), CodecError>;
}

impl<F: TaskFn> TaskArgs<Encoded> for F {
    fn encode_args(args: &Encoded, out: &mut Buffer) -> Result<(), CodecError> {
        let (bytes, attachments) = args.0.as_ref().map_err(CodecError::clone)?;
        attachment::adopt(attachments);
        out.extend_from_slice(bytes);
        Ok(())
    }
}

/// One call of a task function, such as `add::task(1, 2)`, that runs somewhere else.
///
/// A task is plain data. Nothing happens until an executor gets it. `submit` encodes the arguments,
/// so they may be borrowed. Options are set by chained calls:
///
/// ```
/// use std::time::Duration;
/// use executor::prelude::*;
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// let task = add::task(1, 2).timeout(Duration::from_secs(5)).name("the sum");
/// # let _ = task;
/// ```
#[must_use = "a task does nothing until it is submitted"]
pub struct Task<F, A> {
    args: A,
    options: TaskOptions,
    marker: PhantomData<fn() -> F>,
}

impl<F: TaskFn, A> Task<F, A> {
    #[doc(hidden)]
    #[inline]
    pub fn new(args: A) -> Self {
        Task { args, options: TaskOptions(None), marker: PhantomData }
    }

    /// Sets a limit on the time that the task runs, counted from the moment a worker begins it. A
    /// worker that exceeds the limit is killed and replaced, and the future gets
    /// [`TaskError::TimedOut`](crate::TaskError::TimedOut) with [`Phase::Run`](crate::Phase::Run).
    /// If the executor gives tasks [time to stop](crate::ProcessPoolBuilder::cancel_grace), the
    /// task is asked to stop first, and its worker is kept if it does.
    ///
    /// It takes precedence over the
    /// [`default_timeout`](crate::ProcessPoolBuilder::default_timeout) of the executor.
    /// [`Duration::MAX`] means no limit.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use executor::prelude::*;
    /// #[task]
    /// fn parse(text: &str) -> usize { text.len() }
    ///
    /// let task = parse::task("{…}").timeout(Duration::from_millis(200));
    /// # let _ = task;
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.set().timeout = Some(timeout);
        self
    }

    /// Sets a limit on the time that the task waits for a worker, counted from the moment it is
    /// submitted. If no worker has begun the task by then, it never runs, and the future gets
    /// [`TaskError::TimedOut`](crate::TaskError::TimedOut) with
    /// [`Phase::Queue`](crate::Phase::Queue). No worker is killed for it. The time that `submit`
    /// waits for room ([`max_pending`](crate::ProcessPoolBuilder::max_pending)) does not count.
    ///
    /// It takes precedence over the
    /// [`default_queue_timeout`](crate::ProcessPoolBuilder::default_queue_timeout) of the executor.
    /// [`Duration::MAX`] means no limit. It is for executors: where nothing queues, as in
    /// [`Process::new`](crate::Process::new), a task with this option is refused.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use executor::{Phase, prelude::*};
    /// #[task]
    /// fn forever() { loop { std::thread::park() } }
    /// #[task]
    /// fn quote(symbol: &str) -> String { format!("{symbol}: 1") }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let busy = pool.submit(forever::task());
    ///     // An old answer is of no use to anybody.
    ///     let late = pool.submit(quote::task("AB").queue_timeout(Duration::from_millis(20)));
    ///     match late.result() {
    ///         Err(TaskError::TimedOut { phase, .. }) => assert_eq!(phase, Phase::Queue),
    ///         other => panic!("{other:?}"),
    ///     }
    ///     busy.cancel_running();
    /// }
    /// ```
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.options.set().queue_timeout = Some(timeout);
        self
    }

    /// Sets the priority of the task among those that wait for a worker: the highest goes first.
    /// The default is 0. Tasks of one priority keep the order in which they were submitted.
    ///
    /// No task waits for ever. When 16 tasks in a row have overtaken an older one, the oldest task
    /// that waits goes next, whatever its priority. So however many urgent tasks there are, each
    /// 17th that goes to a worker is the one that was submitted first.
    ///
    /// A priority does not interrupt what runs. Nor does it overtake short tasks that were sent to
    /// a worker ahead: for each worker, these are worth 300 µs. A task that is tried again
    /// ([`retries`](Self::retries)) keeps its priority, and waits behind the others of that
    /// priority. Items of a `map` with a priority are sent one at a time, and not in chunks.
    ///
    /// It is for executors: where nothing queues, as in [`Process::new`](crate::Process::new), a
    /// task with this option is refused.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    ///
    /// /// Returns how many calls came before it.
    /// #[task]
    /// fn calls() -> u32 { CALLS.fetch_add(1, Ordering::Relaxed) }
    /// #[task]
    /// fn wait_for(line: SimpleQueue<()>) { line.get().unwrap(); }
    ///
    /// # use executor::SimpleQueue;
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let line = SimpleQueue::new().unwrap();
    ///     let busy = pool.submit(wait_for::task(line.clone()));
    ///     let batch = pool.submit(calls::task().priority(-1));
    ///     let usual = pool.submit(calls::task());
    ///     let urgent = pool.submit(calls::task().priority(10));
    ///     line.put(()).unwrap();
    ///     busy.result().unwrap();
    ///     let order = [urgent, usual, batch].map(|future| future.result().unwrap());
    ///     assert_eq!(order, [0, 1, 2]);
    /// }
    /// ```
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.set().priority = Some(priority);
        self
    }

    /// Lets the task wait until it gets this many tokens of a resource of its executor, in addition
    /// to a worker. See [`resources`](crate::ProcessPoolBuilder::resources). It has them from its
    /// begin to its end: until its result is known, or until its worker has ended.
    ///
    /// It may be called several times, for several resources. The task then gets all tokens at
    /// once, and none before. For one resource, the last call counts.
    ///
    /// The order is that of [priorities](Self::priority), and of age among equal ones. A task that
    /// has its turn and lacks tokens keeps the free ones of its resources, so no later task takes
    /// them away for ever. Tasks that need other resources or none overtake it meanwhile. When 16
    /// tasks with tokens in a row have overtaken an older one that is the first of those that need
    /// the same resources, the oldest of these is served before all others. When a task that could
    /// have its tokens waits for a worker, no later task is sent to a worker ahead of time.
    ///
    /// A task that needs more tokens than there are, 0 of them, or a resource that its executor
    /// does not have, is refused with [`TaskError::Invalid`](crate::TaskError::Invalid). So is one
    /// that is bound to a worker: with [`on_worker`](Self::on_worker), in a map in
    /// [round-robin order](crate::Map::round_robin), or in a
    /// [broadcast](crate::ProcessPoolExecutor::broadcast). Items of a `map` that need tokens are
    /// sent one at a time, and not in chunks. Where there is no executor, as in
    /// [`Process::new`](crate::Process::new), a task with this option is refused.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn render(frame: u32) -> u32 { frame }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(8);
    ///     let pool = builder.resources([("gpu", 2), ("licence", 1)]).build().unwrap();
    ///     // However many workers there are, at most two of these run at the same time.
    ///     let frames = pool.map(|frame| render::task(frame).needs("gpu", 1), 0..10);
    ///     assert_eq!(frames.map(Result::unwrap).sum::<u32>(), 45);
    ///
    ///     let error = pool.submit(render::task(0).needs("gpu", 3)).result().unwrap_err();
    ///     assert!(error.to_string().contains("only 2"));
    /// }
    /// ```
    pub fn needs(mut self, resource: impl Into<String>, tokens: u32) -> Self {
        let (resource, set) = (resource.into().into_boxed_str(), self.options.set());
        match set.needs.iter_mut().find(|(other, _)| *other == resource) {
            Some((_, other)) => *other = tokens,
            None => set.needs.push((resource, tokens)),
        }
        self
    }

    /// Lets the task run in the worker with this [index](crate::worker_index) and in no other, for
    /// example because it has loaded what the task works on. By default a task goes to whichever
    /// worker is free.
    ///
    /// The task waits for this worker however long it is busy. If the worker ends, the task waits
    /// for the one that replaces it, which has the same index. In the pool of a smaller number
    /// ([`resize`](crate::ProcessPoolExecutor::resize)), it runs in the worker with this index
    /// modulo the number of workers. It takes precedence over round-robin order.
    ///
    /// An index that no worker can have when the task is submitted is refused with
    /// [`TaskError::Invalid`](crate::TaskError::Invalid). So is a task with this option if each
    /// task has a worker of its own ([`Isolation::PerTask`](crate::Isolation::PerTask)), in a
    /// [broadcast](crate::ProcessPoolExecutor::broadcast), and where there are no workers, as in
    /// [`Process::new`](crate::Process::new). Items of a `map` with this option are sent one at a
    /// time.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn index() -> Option<usize> { executor::worker_index() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(3).build().unwrap();
    ///     assert_eq!(pool.submit(index::task().on_worker(2)).result().unwrap(), Some(2));
    ///     assert!(pool.submit(index::task().on_worker(3)).result().is_err());
    /// }
    /// ```
    pub fn on_worker(mut self, index: usize) -> Self {
        self.options.set().on_worker = Some(index);
        self
    }

    /// Sets the name of this one call in errors and logs. The default is the name of its function.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn resize(image: &str) -> u64 { image.len() as u64 }
    ///
    /// let image = "cat.png";
    /// let task = resize::task(image).name(format!("resize {image}"));
    /// # let _ = task;
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.set().name = Some(name.into().into_boxed_str());
        self
    }

    /// Measures what the task costs: time, processor time, memory, bytes. See
    /// [`TaskFuture::usage`](crate::TaskFuture::usage), which returns it when the task has ended.
    ///
    /// Each measured task is also logged at the level `DEBUG` of `tracing`, with all figures. For
    /// the items of a [`map`](crate::ProcessPoolExecutor::map), which have no futures, that is the
    /// only report.
    ///
    /// Measuring takes some ten microseconds for each task, in its worker. Tasks without this
    /// option are not affected. `Process::new`, `initializer` and `preload` refuse it.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn fill(bytes: usize) -> usize { vec![1_u8; bytes].iter().map(|byte| *byte as usize).sum() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let future = pool.submit(fill::task(32 << 20).measure_usage());
    ///     future.wait();
    ///     let usage = future.usage().unwrap();
    ///     assert!(usage.running >= usage.cpu_user / 2);
    ///     assert!(usage.peak_memory.is_none_or(|bytes| bytes >= 32 << 20));
    ///     assert_eq!(future.result().unwrap(), 32 << 20);
    /// }
    /// ```
    pub fn measure_usage(mut self) -> Self {
        self.options.set().measures = true;
        self
    }

    /// Tries the task again, up to `retries` times, if it fails in a way that may pass: it returns
    /// an error ([`Failed`](crate::TaskError::Failed)), it panics, its worker is lost, its
    /// [time limit](Self::timeout) passes, or it exceeds the
    /// [limit on memory](crate::ProcessPoolBuilder::worker_memory_limit). Each attempt has the
    /// whole time limit. A number above 65,535 means 65,535.
    ///
    /// Use it only for a task that may run more than once: without retries, nothing that has begun
    /// ever runs a second time. A task that was cancelled is not tried again, nor one whose
    /// arguments or result cannot be encoded or decoded, nor one whose
    /// [`queue_timeout`](Self::queue_timeout) has passed. The arguments are kept until the last
    /// attempt.
    ///
    /// Between two attempts there is a [delay](Self::retry_delay), and the task waits in the queue
    /// behind the others. Meanwhile it can be cancelled at once. A
    /// [`shutdown`](crate::ProcessPoolExecutor::shutdown) finishes all attempts. With
    /// `cancel_pending`, a task between two attempts is cancelled, and one that runs is not tried
    /// again.
    ///
    /// Crashes are limited in any case: see
    /// [`poison_limit`](crate::ProcessPoolBuilder::poison_limit). The error of the last attempt is
    /// the task's error, and says how many there were:
    /// [`TaskError::attempts`](crate::TaskError::attempts).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::{path::{Path, PathBuf}, time::Duration};
    /// #[task]
    /// fn flaky(marks: &Path) -> Result<String, std::io::Error> {
    ///     // It works at the third attempt.
    ///     let marks: Vec<PathBuf> = ["1", "2"].map(|name| marks.join(name)).into();
    ///     match marks.iter().find(|mark| !mark.exists()) {
    ///         Some(mark) => Err(std::fs::write(mark, "").err().unwrap_or(std::io::Error::other("down"))),
    ///         None => Ok("up".into()),
    ///     }
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let dir = tempfile::tempdir().unwrap();
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let task = flaky::task(dir.path()).retries(5).retry_delay(Duration::from_millis(1));
    ///     assert_eq!(pool.submit(task).result().unwrap(), "up");
    /// }
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        let retries = u16::try_from(retries).unwrap_or(u16::MAX);
        self.options.set().retry.get_or_insert_default().retries = Some(retries);
        self
    }

    /// Tries the task again only after errors for which this returns `true`. It is called for the
    /// errors that [`retries`](Self::retries) lists, and only if there is an attempt left. Without
    /// `retries`, a task with this option is refused: its future gets
    /// [`TaskError::Invalid`](crate::TaskError::Invalid).
    ///
    /// It is called on a thread of the executor or on one that waits for a result, as wakers are.
    /// So it must return soon. If it panics, the task is not tried again.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn fetch(url: &str) -> Result<String, String> { Err(format!("{url}: forbidden")) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let task = fetch::task("a.example").retries(5);
    ///     let task = task.retry_on(|error| !error.to_string().contains("forbidden"));
    ///     assert_eq!(pool.submit(task).result().unwrap_err().attempts(), 1);
    /// }
    /// ```
    pub fn retry_on(mut self, wants: impl Fn(&TaskError) -> bool + Send + Sync + 'static) -> Self {
        self.options.set().retry.get_or_insert_default().on = Some(Arc::new(wants));
        self
    }

    /// Sets the delay before the first retry. The default is 100 ms. It doubles with each further
    /// attempt, up to 30 seconds, or up to the first delay if that is longer. Each time, a random
    /// part of up to one half is left out, so that tasks that have failed together do not come back
    /// together. [`Duration::ZERO`] means no delay.
    ///
    /// A task that waits for its next attempt is unresolved, so a
    /// [`shutdown`](crate::ProcessPoolExecutor::shutdown) waits for it, and with a delay that does
    /// not end ([`Duration::MAX`]) for ever. The task can be
    /// [cancelled](crate::TaskFuture::cancel), and a shutdown that
    /// [cancels](crate::ShutdownOptions::cancel_pending) what does not run, or has a
    /// [deadline](crate::ShutdownOptions::deadline), ends it.
    ///
    /// Without [`retries`](Self::retries), a task with this option is refused, as for
    /// [`retry_on`](Self::retry_on).
    pub fn retry_delay(mut self, first: Duration) -> Self {
        self.options.set().retry.get_or_insert_default().delay = first;
        self
    }

    /// Whether the task has no options.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.options.is_none()
    }

    #[doc(hidden)]
    #[inline]
    pub fn into_parts(self) -> (A, TaskOptions) {
        (self.args, self.options)
    }
}

impl<F: TaskArgs<A>, A> Task<F, A> {
    /// Encodes the arguments now and returns the same task.
    ///
    /// The returned task is owned, `'static`, and of one type whatever it borrowed before. So it
    /// can be kept in a `Vec`, sent to another thread, or made in a closure from values that the
    /// closure owns.
    ///
    /// If the arguments cannot be encoded, the future that `submit` returns reports the error, as
    /// it does for every other error.
    ///
    /// ```
    /// use executor::{Encoded, prelude::*};
    ///
    /// #[task]
    /// fn shout(text: &str) -> String { text.to_uppercase() }
    ///
    /// fn tasks() -> Vec<Task<shout, Encoded>> {
    ///     (0..3).map(|i| shout::task(&format!("line {i}")).encode()).collect()
    /// }
    /// assert_eq!(tasks().len(), 3);
    /// ```
    pub fn encode(self) -> Task<F, Encoded> {
        let mut bytes = Buffer::new();
        let (encoded, attachments) = attachment::collect(|| F::encode_args(&self.args, &mut bytes));
        let encoded = encoded.map(|()| (bytes.into_vec(), attachments));
        Task { args: Encoded(encoded), options: self.options, marker: PhantomData }
    }
}

/// A value that executors accept as a task: a [`Task`].
///
/// The trait exists for the compiler's error message: where something else is submitted, the
/// message says what to write instead.
///
/// This trait is sealed: it cannot be implemented outside this crate.
///
/// ```compile_fail
/// # use executor::prelude::*;
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// # fn submit(pool: &ProcessPoolExecutor) {
/// pool.submit(add(1, 2)); // `i64` is not a task … `add::task(1, 2)`
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    label = "expected a task",
    note = "the task of `add(1, 2)` is `add::task(1, 2)`: write `pool.submit(add::task(1, 2))`, `pool.map(square::task, 0..4)`, or \
            for several parameters `pool.map(|(a, b)| add::task(a, b), pairs)`",
    note = "`#[task]` above a function makes its `::task`"
)]
pub trait IntoTask: Sized + Sealed {
    /// The task function that is called.
    type Function: TaskArgs<Self::Arguments, Output = Self::Output>;
    /// The arguments of the call.
    type Arguments;
    /// The type of the value that the future yields.
    type Output: Send + 'static;

    #[doc(hidden)]
    fn into_task(self) -> Task<Self::Function, Self::Arguments>;
}

impl<F, A> Sealed for Task<F, A> {}

impl<F: TaskArgs<A>, A> IntoTask for Task<F, A> {
    type Function = F;
    type Arguments = A;
    type Output = F::Output;

    #[inline]
    fn into_task(self) -> Self {
        self
    }
}

impl<F, A: Clone> Clone for Task<F, A> {
    fn clone(&self) -> Self {
        Task { args: self.args.clone(), options: self.options.clone(), marker: PhantomData }
    }
}

impl<F: TaskFn, A> fmt::Debug for Task<F, A> {
    /// Writes the function's name and the options. Arguments need not be `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("function", &F::NAME)
            .field("name", &self.options.name())
            .field("timeout", &self.options.timeout())
            .field("queue_timeout", &self.options.queue_timeout())
            .field("priority", &self.options.priority())
            .field("needs", &self.options.needs())
            .field("on_worker", &self.options.on_worker())
            .field("retries", &self.options.retry().and_then(|retry| retry.retries))
            .finish_non_exhaustive()
    }
}

/// The encoded arguments of a task. See [`Task::encode`].
#[derive(Clone)]
pub struct Encoded(Result<(Vec<u8>, Vec<Attachment>), CodecError>);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok((bytes, _)) => write!(f, "Encoded({} bytes)", bytes.len()),
            Err(error) => write!(f, "Encoded({error})"),
        }
    }
}

/// The options that were set on a [`Task`].
///
/// Nearly all tasks have none. For these it is one word, which is moved along with the task.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct TaskOptions(Option<Box<SetOptions>>);

/// The options of a task that has any.
#[derive(Clone, Debug)]
pub(crate) struct SetOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) priority: Option<i32>,
    /// The names of resources, and how many tokens of each the task needs.
    pub(crate) needs: Vec<(Box<str>, u32)>,
    /// The same, by the numbers that resources have in the pool. Set by the pool.
    pub(crate) needed: Box<[Need]>,
    /// The index of the only worker that may run the task.
    pub(crate) on_worker: Option<usize>,
    pub(crate) name: Option<Box<str>>,
    pub(crate) retry: Option<Retry>,
    /// The number of workers that the task may end before it is not tried again. Set by the pool.
    pub(crate) poison_limit: u32,
    /// Whether the worker measures what the task uses.
    pub(crate) measures: bool,
    /// Where the usage of this submission is put. Set when the task is submitted.
    pub(crate) usage: Option<Arc<UsageSlot>>,
}

impl Default for SetOptions {
    fn default() -> Self {
        SetOptions {
            timeout: None,
            queue_timeout: None,
            priority: None,
            needs: Vec::new(),
            needed: Box::default(),
            on_worker: None,
            name: None,
            retry: None,
            poison_limit: POISON_LIMIT,
            measures: false,
            usage: None,
        }
    }
}

/// How many tokens of one resource of a pool a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) resource: u8,
    pub(crate) tokens: u32,
}

/// Default number of workers that a task with retries may end before it is not tried again. A task
/// that was lost by chance, for example to the system's lack of memory, is seldom lost three times.
/// A higher value lets a task that always crashes end more workers.
const POISON_LIMIT: u32 = 3;

/// Default delay before the first retry. A lower value tries again before what was wrong has
/// passed. A higher value delays tasks for which one retry is enough.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Whether and when a task is tried again.
#[derive(Clone)]
pub(crate) struct Retry {
    /// `None` if it was not set, although other options were.
    pub(crate) retries: Option<u16>,
    /// The delay before the first retry.
    pub(crate) delay: Duration,
    /// Asked for each error.
    pub(crate) on: Option<Wanted>,
}

/// The user's decision about an error.
type Wanted = Arc<dyn Fn(&TaskError) -> bool + Send + Sync>;

impl Default for Retry {
    fn default() -> Self {
        Retry { retries: None, delay: RETRY_DELAY, on: None }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("retries", &self.retries)
            .field("delay", &self.delay)
            .finish_non_exhaustive()
    }
}

impl TaskOptions {
    /// Returns whether no option was set.
    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the options, if there are any.
    pub(crate) fn get(&self) -> Option<&SetOptions> {
        self.0.as_deref()
    }

    /// Returns the options, to set one.
    pub(crate) fn set(&mut self) -> &mut SetOptions {
        self.0.get_or_insert_default()
    }

    #[inline]
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.0.as_ref()?.timeout
    }

    #[inline]
    pub(crate) fn queue_timeout(&self) -> Option<Duration> {
        self.0.as_ref()?.queue_timeout
    }

    #[inline]
    pub(crate) fn priority(&self) -> Option<i32> {
        self.0.as_ref()?.priority
    }

    pub(crate) fn needs(&self) -> &[(Box<str>, u32)] {
        self.0.as_ref().map_or(&[], |set| &set.needs)
    }

    /// Returns what the task needs, by the numbers that resources have in the pool.
    #[inline]
    pub(crate) fn needed(&self) -> &[Need] {
        self.0.as_ref().map_or(&[], |set| &set.needed)
    }

    #[inline]
    pub(crate) fn on_worker(&self) -> Option<usize> {
        self.0.as_ref()?.on_worker
    }

    #[inline]
    pub(crate) fn retry(&self) -> Option<&Retry> {
        self.0.as_ref()?.retry.as_ref()
    }

    pub(crate) fn poison_limit(&self) -> u32 {
        self.0.as_ref().map_or(POISON_LIMIT, |set| set.poison_limit)
    }

    /// Returns whether the worker measures what the task uses.
    #[inline]
    pub(crate) fn measures(&self) -> bool {
        self.0.as_ref().is_some_and(|set| set.measures)
    }

    /// Returns the place for the usage of the task that is submitted now, if it is measured.
    #[inline]
    pub(crate) fn begin_usage(&mut self) -> Option<Arc<UsageSlot>> {
        let set = self.0.as_mut().filter(|set| set.measures)?;
        set.usage = Some(UsageSlot::new());
        set.usage.clone()
    }

    pub(crate) fn usage(&self) -> Option<&Arc<UsageSlot>> {
        self.0.as_ref()?.usage.as_ref()
    }

    /// Returns what is wrong with the options of a task, if they make no sense.
    pub(crate) fn invalid(&self) -> Option<&'static str> {
        match self.0.as_deref()? {
            SetOptions { timeout: Some(Duration::ZERO), .. } => {
                Some("a `timeout` of 0, but it must be above 0")
            }
            SetOptions { queue_timeout: Some(Duration::ZERO), .. } => {
                Some("a `queue_timeout` of 0, but it must be above 0")
            }
            SetOptions { retry: Some(Retry { retries: None, .. }), .. } => {
                Some("`retry_on` or `retry_delay`, but no `retries`")
            }
            _ => None,
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_ref()?.name.as_deref()
    }

    /// Returns the name of this call: its own name if it has one, and the name of its function
    /// otherwise.
    pub(crate) fn called<'a>(&'a self, function: &'a str) -> &'a str {
        self.name().unwrap_or(function)
    }

    /// Returns what is wrong with a task that is given to something that runs it at once and once,
    /// if it has an option for tasks that are submitted to an executor.
    pub(crate) fn refusal_without_queue(&self) -> Option<&'static str> {
        match self.0.as_deref()? {
            SetOptions { queue_timeout: Some(_), .. } => Some(
                "`queue_timeout`, but nothing queues here: it is for tasks that are submitted to \
                 an executor",
            ),
            SetOptions { priority: Some(_), .. } => Some(
                "`priority`, but nothing queues here: it is for tasks that are submitted to an \
                 executor",
            ),
            SetOptions { needs, .. } if !needs.is_empty() => Some(
                "`needs`, but nothing has resources here: it is for tasks that are submitted to an \
                 executor",
            ),
            SetOptions { on_worker: Some(_), .. } => Some(
                "`on_worker`, but there are no workers here: it is for tasks that are submitted to \
                 an executor",
            ),
            SetOptions { retry: Some(_), .. } => Some(
                "`retries`, but is tried only once here: they are for tasks that are submitted to \
                 an executor",
            ),
            SetOptions { measures: true, .. } => Some(
                "`measure_usage`, but nothing reports it here: it is for tasks that are submitted \
                 to an executor",
            ),
            _ => None,
        }
    }
}
