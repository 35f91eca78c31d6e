//! An error from another process, and the part of it that survives the trip between processes.

use std::{error::Error, fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::ExitStatus;
use crate::{debug::Chain, wire::codec::Codec};

/// A task's own error or panic, as reported by the process in which it happened.
///
/// It keeps the text: the message, the type, and the chain of sources. For a panic it also keeps
/// the location and, if `RUST_BACKTRACE` asks for it, the backtrace. Cloning is cheap.
///
/// ```
/// use executor::TaskError;
///
/// fn explain(error: &TaskError) -> String {
///     match error {
///         TaskError::Failed(remote) => format!("{} says {}", remote.task(), remote.message()),
///         other => other.to_string(),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct RemoteError(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    task: String,
    failure: Failure,
    /// How the process ended, if the panic ended it.
    ended: Option<ExitStatus>,
    /// How often the task was tried, or 0 if it was not tried again.
    attempts: u32,
    /// The first cause of the error, which contains the second, and so on.
    cause: Option<Cause>,
}

/// A cause of a task's error: the text of an error in another process.
#[derive(Clone)]
struct Cause {
    text: String,
    next: Option<Box<Cause>>,
}

/// The maximum length of a chain of causes. A worker can send a list of any length, and dropping a
/// longer chain could overflow the stack.
const MAX_CAUSES: usize = 64;

impl Cause {
    /// Returns the causes of an error as a chain.
    ///
    /// Many error types include their source in their own text. Such a source is left out, so that
    /// no text is printed twice.
    fn chain(failure: &Failure) -> Option<Cause> {
        let outer = std::iter::once(&failure.message).chain(&failure.sources);
        let causes = failure
            .sources
            .iter()
            .zip(outer)
            .filter(|(cause, outer)| !outer.ends_with(cause.as_str()));
        let causes: Vec<_> = causes.map(|(cause, _)| cause).take(MAX_CAUSES).collect();
        causes
            .into_iter()
            .rev()
            .fold(None, |next, cause| Some(Cause { text: cause.clone(), next: next.map(Box::new) }))
    }
}

crate::debug::debug_is_display!(Cause);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.next.as_deref().map(|next| next as _)
    }
}

/// The part of a [`RemoteError`] that crosses the wire.
#[doc(hidden)]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Failure {
    /// The `Display` text of the error, or the panic's message.
    pub message: String,
    /// The `type_name` of the error. Empty for a panic.
    pub type_name: String,
    /// The location of a panic, as `file:line:column`.
    pub location: Option<String>,
    /// The backtrace of a panic.
    pub backtrace: Option<String>,
    /// The `Display` text of each `source()`, outermost first.
    pub sources: Vec<String>,
    /// What the worker was doing when it panicked. `None` if it was running the function itself.
    pub during: Option<String>,
    /// The encoded error itself, if its type implements serde's traits.
    pub value: Option<(Codec, serde_bytes::ByteBuf)>,
}

impl RemoteError {
    pub(crate) fn new(task: impl Into<String>, failure: Failure) -> Self {
        let cause = Cause::chain(&failure);
        RemoteError(Arc::new(Inner { task: task.into(), failure, ended: None, attempts: 0, cause }))
    }

    /// Returns the same panic with the exit status of the process that it ended.
    pub(crate) fn ended_by(self, status: ExitStatus) -> Self {
        self.with(|inner| inner.ended = Some(status))
    }

    /// Returns the same error with the number of attempts.
    pub(super) fn after(self, attempts: u32) -> Self {
        self.with(|inner| inner.attempts = attempts)
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        RemoteError(Arc::new(inner))
    }

    pub(super) fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Returns everything that a copy in another process is made of.
    pub(super) fn parts(&self) -> (&str, &Failure, Option<ExitStatus>, u32) {
        (&self.0.task, &self.0.failure, self.0.ended, self.0.attempts)
    }

    pub(super) fn write_backtrace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backtrace() {
            Some(backtrace) => write!(f, "\n\n{backtrace}"),
            None => Ok(()),
        }
    }

    /// Returns the text between "panicked" and the message.
    pub(super) fn circumstances(&self) -> String {
        let mut text = String::new();
        for part in self
            .0
            .failure
            .during
            .iter()
            .cloned()
            .chain(self.location().map(|at| format!("at {at}")))
        {
            text.push(' ');
            text.push_str(&part);
        }
        text
    }

    /// Returns the text behind the message.
    pub(super) fn aftermath(&self) -> String {
        self.exit_status().map(|status| format!(" (the process {status})")).unwrap_or_default()
    }

    /// Returns the message of the error or the panic.
    pub fn message(&self) -> &str {
        &self.0.failure.message
    }

    /// Returns the name of the task that failed.
    pub fn task(&self) -> &str {
        &self.0.task
    }

    /// Returns the `std::any::type_name` of the task's error. Empty for a panic.
    pub fn type_name(&self) -> &str {
        &self.0.failure.type_name
    }

    /// Returns the location of a panic, as `file:line:column`. Returns `None` if the location is
    /// not known: a payload that was resumed by [`resume_unwind`](std::panic::resume_unwind) does
    /// not say where it came from.
    pub fn location(&self) -> Option<&str> {
        self.0.failure.location.as_deref()
    }

    /// Returns how the process ended, if the panic ended it. A panic ends the process in a program
    /// that is built with `panic = "abort"`, and where unwinding is not possible.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.0.ended
    }

    /// Returns the backtrace of a panic, if `RUST_BACKTRACE` is set in the worker.
    pub fn backtrace(&self) -> Option<&str> {
        self.0.failure.backtrace.as_deref()
    }

    /// Returns the messages of the error's `source()` chain, outermost first.
    ///
    /// [`source`](Error::source) gives the same messages as errors, without those that the message
    /// before them already contains.
    ///
    /// The list is filled if the task's error implements `std::error::Error`, or is an
    /// `anyhow::Error` or a `Box<dyn Error>`.
    pub fn sources(&self) -> &[String] {
        &self.0.failure.sources
    }

    /// Returns the task's error itself, if `E` is the type that the task returned and implements
    /// serde's traits.
    ///
    /// ```
    /// use executor::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// enum Refusal { TooLarge(u64) }
    ///
    /// impl std::fmt::Display for Refusal {
    ///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "refused: {self:?}") }
    /// }
    ///
    /// #[task]
    /// fn check(x: u64) -> Result<u64, Refusal> { if x > 9 { Err(Refusal::TooLarge(x)) } else { Ok(x) } }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    ///     let Err(TaskError::Failed(error)) = pool.submit(check::task(10)).result() else { panic!() };
    ///     assert_eq!(error.downcast::<Refusal>(), Some(Refusal::TooLarge(10)));
    /// }
    /// ```
    pub fn downcast<E: DeserializeOwned + 'static>(&self) -> Option<E> {
        if std::any::type_name::<E>() != self.0.failure.type_name {
            // The bytes of another error type might decode as an `E` by chance.
            return None;
        }
        let (codec, bytes) = self.0.failure.value.as_ref()?;
        codec.decode(bytes).ok()
    }
}

impl fmt::Display for RemoteError {
    /// Writes the message. The causes are in [`source`](Error::source).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for RemoteError {
    /// Writes the message, then each cause behind a colon, followed by the backtrace, if there is
    /// one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Chain(self), f)?;
        self.write_backtrace(f)
    }
}

impl Error for RemoteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.cause.as_ref().map(|cause| cause as _)
    }
}
