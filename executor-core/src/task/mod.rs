//! A call of a task function, as plain data: arguments and options, to be run somewhere else.
//!
//! ```text
//!   add::task(1, 2)  ──►  Task<add, (i64, i64)>  ──►  submit: encode, frame  ──►  worker: TaskEntry::call
//!                          │ options: timeout, name          TaskFn::entry
//!                          └─ encode() ──►  Task<add, Encoded>, owned
//! ```

pub(crate) mod encode;

use std::{fmt, marker::PhantomData, time::Duration};

use crate::{
    registry::TaskEntry,
    wire::{
        attachment::{self, Attachment},
        buffer::Buffer,
        codec::{Codec, CodecError},
    },
};

/// The type that `#[task]` generates for a function.
///
/// The attribute implements it for a type that has the function's own name: `#[task] fn add(…)` makes `struct add {}`.
/// Nobody else implements it. It is what generic code over tasks names:
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
    /// What the future yields: `T` for a function that returns `Result<T, E>`, else what the function returns.
    type Output: Send + 'static;

    /// The name that stands for the function in messages and on the wire: its path, or what
    /// `#[task(name = "…")]` says.
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
/// `#[task]` implements it. Generic code names it where it takes a [`Task`]:
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

/// One call of a task function, to be run somewhere else: `add::task(1, 2)`.
///
/// It is plain data. Nothing happens before an executor gets it; arguments are encoded at `submit`, so they may be
/// borrowed. Options chain on it:
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
        Task { args, options: TaskOptions { timeout: None, name: None }, marker: PhantomData }
    }

    /// At most this long, counted from the moment a worker begins. A worker that is still running it then is killed
    /// and replaced, and the future gets [`TaskError::TimedOut`](crate::TaskError::TimedOut).
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
        self.options.timeout = Some(timeout);
        self
    }

    /// What errors and logs call this one call; by default the name of its function.
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
        self.options.name = Some(name.into().into_boxed_str());
        self
    }

    #[doc(hidden)]
    #[inline]
    pub fn into_parts(self) -> (A, TaskOptions) {
        (self.args, self.options)
    }
}

impl<F: TaskArgs<A>, A> Task<F, A> {
    /// The same task with its arguments encoded now: owned, `'static` and of one type whatever it borrowed, so it can
    /// be kept in a `Vec`, sent to another thread, or be made in a closure from values that end there.
    ///
    /// Arguments that cannot be encoded are reported where every error is: by the future that `submit` returns.
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

/// What executors take: a [`Task`]. Nothing else is one; the trait is there so that the compiler can say what to write where
/// something else stands.
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
pub trait IntoTask: Sized {
    /// Its task function.
    type Function: TaskArgs<Self::Arguments, Output = Self::Output>;
    /// The arguments of the call.
    type Arguments;
    /// What its future yields.
    type Output: Send + 'static;

    #[doc(hidden)]
    fn into_task(self) -> Task<Self::Function, Self::Arguments>;
}

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
    /// The function's name and the options; arguments need not be `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("function", &F::NAME)
            .field("name", &self.options.name)
            .field("timeout", &self.options.timeout)
            .finish_non_exhaustive()
    }
}

/// Arguments of a task, encoded: see [`Task::encode`].
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

/// What was set on a [`Task`].
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct TaskOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) name: Option<Box<str>>,
}

impl TaskOptions {
    /// What this call is called.
    pub(crate) fn called<'a>(&'a self, function: &'a str) -> &'a str {
        self.name.as_deref().unwrap_or(function)
    }
}
