//! What a map makes of an item of its input: a task, or the error that the item already is.

use std::error::Error;

use crate::{
    error::{Failure, RemoteError, TaskError},
    sealed::Sealed,
    task::{IntoTask, Task, TaskArgs},
};

/// What the function of a [`map`](crate::ProcessPoolExecutor::map) returns for an item: a task, or
/// a `Result` with a task.
///
/// An input often consists of `Result`s, such as the lines of a file or the results of another map.
/// An item that is an error already is yielded as an error in its place, and no task runs for it.
///
/// - A [`TaskError`] is yielded as it is, so maps can be chained.
/// - Any other error is yielded as [`TaskError::Failed`], with its text, its type's name, and the
///   texts of its sources. Its value is not kept.
///
/// ```
/// use executor::prelude::*;
/// use std::io::BufRead;
///
/// #[task]
/// fn parse(line: String) -> Result<u32, std::num::ParseIntError> { line.parse() }
/// #[task]
/// fn double(x: u32) -> u32 { 2 * x }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
///     // The second line is no text: `lines` yields an error for it.
///     let lines = std::io::Cursor::new(b"1\n\xff\nthree\n4\n").lines();
///     let numbers = pool.map(|line| line.map(parse::task), lines);
///     let doubled: Vec<_> = pool.map(|number| number.map(double::task), numbers).collect();
///     assert!(matches!(doubled[0], Ok(2)));
///     assert!(doubled[1].as_ref().unwrap_err().to_string().contains("valid UTF-8"));
///     assert!(doubled[2].as_ref().unwrap_err().to_string().contains("invalid digit"));
///     assert!(matches!(doubled[3], Ok(8)));
/// }
/// ```
///
/// This trait is sealed: it cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    label = "expected a task",
    note = "the task of `add(1, 2)` is `add::task(1, 2)`: write `pool.map(square::task, 0..4)`, or for several parameters \
            `pool.map(|(a, b)| add::task(a, b), pairs)`",
    note = "if the items are `Result`s: `pool.map(|item| item.map(square::task), items)`",
    note = "`#[task]` above a function makes its `::task`"
)]
pub trait MapTask: Sized + Sealed {
    /// The task function that is called.
    type Function: TaskArgs<Self::Arguments, Output = Self::Output>;
    /// The arguments of the call.
    type Arguments;
    /// The type of the value that the map yields.
    type Output: Send + 'static;

    #[doc(hidden)]
    fn into_item(self) -> Result<Task<Self::Function, Self::Arguments>, TaskError>;
}

impl<F: TaskArgs<A>, A> MapTask for Task<F, A> {
    type Function = F;
    type Arguments = A;
    type Output = F::Output;

    #[inline]
    fn into_item(self) -> Result<Self, TaskError> {
        Ok(self)
    }
}

impl<T, E> Sealed for Result<T, E> {}

impl<T, E> MapTask for Result<T, E>
where
    T: IntoTask,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Function = T::Function;
    type Arguments = T::Arguments;
    type Output = T::Output;

    #[inline]
    fn into_item(self) -> Result<Task<T::Function, T::Arguments>, TaskError> {
        self.map(T::into_task).map_err(|error| input_error::<T::Function, T::Arguments, E>(error))
    }
}

/// Returns the error that a map yields for an item that is an error.
#[cold]
fn input_error<F, A, E>(error: E) -> TaskError
where
    F: TaskArgs<A>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let error = match error.into().downcast::<TaskError>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let mut sources = Vec::new();
    let mut next = error.source();
    while let Some(source) = next {
        sources.push(source.to_string());
        next = source.source();
    }
    let failure = Failure {
        message: error.to_string(),
        type_name: std::any::type_name::<E>().to_owned(),
        sources,
        ..Failure::default()
    };
    TaskError::Failed(RemoteError::new(F::NAME, failure))
}
