//! What survives of an error that happened in another process.

use std::{error::Error, fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::ExitStatus;
use crate::wire::codec::Codec;

/// A task's own error or panic, as told by the process in which it happened.
///
/// It keeps the text (message, type, source chain), for a panic also the place and, if `RUST_BACKTRACE` asks for it,
/// the backtrace. Cloning is cheap.
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

struct Inner {
    task: String,
    failure: Failure,
    /// How the process ended, where the panic was its end.
    ended: Option<ExitStatus>,
}

/// The part of a [`RemoteError`] that crosses the wire.
#[doc(hidden)]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Failure {
    /// `Display` of the error, or the panic's message.
    pub message: String,
    /// `type_name` of the error; empty for a panic.
    pub type_name: String,
    /// `file:line:column` of a panic.
    pub location: Option<String>,
    /// Backtrace of a panic.
    pub backtrace: Option<String>,
    /// `Display` of each `source()`, outermost first.
    pub sources: Vec<String>,
    /// What went on when it panicked, if it was not the function itself that ran.
    pub during: Option<String>,
    /// The error itself, encoded, when its type is serde.
    pub value: Option<(Codec, serde_bytes::ByteBuf)>,
}

impl RemoteError {
    pub(crate) fn new(task: impl Into<String>, failure: Failure) -> Self {
        RemoteError(Arc::new(Inner { task: task.into(), failure, ended: None }))
    }

    /// The same of a panic by which the process ended.
    pub(crate) fn ended_by(self, status: ExitStatus) -> Self {
        let ended = Some(status);
        RemoteError(Arc::new(match Arc::try_unwrap(self.0) {
            Ok(inner) => Inner { ended, ..inner },
            Err(shared) => Inner { task: shared.task.clone(), failure: shared.failure.clone(), ended },
        }))
    }

    pub(super) fn write_backtrace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backtrace() {
            Some(backtrace) => write!(f, "\n\n{backtrace}"),
            None => Ok(()),
        }
    }

    /// What stands between "panicked" and the message.
    pub(super) fn circumstances(&self) -> String {
        let mut text = String::new();
        for part in self.0.failure.during.iter().cloned().chain(self.location().map(|at| format!("at {at}")))
        {
            text.push(' ');
            text.push_str(&part);
        }
        text
    }

    /// What stands behind it.
    pub(super) fn aftermath(&self) -> String {
        self.exit_status().map(|status| format!(" (the process {status})")).unwrap_or_default()
    }

    /// The error's or the panic's message.
    pub fn message(&self) -> &str {
        &self.0.failure.message
    }

    /// Name of the task that failed.
    pub fn task(&self) -> &str {
        &self.0.task
    }

    /// `std::any::type_name` of the task's error; empty for a panic.
    pub fn type_name(&self) -> &str {
        &self.0.failure.type_name
    }

    /// Where a panic happened, as `file:line:column`. `None` where that is not known: the payload was resumed
    /// ([`resume_unwind`](std::panic::resume_unwind)), and where it came from cannot be told any more.
    pub fn location(&self) -> Option<&str> {
        self.0.failure.location.as_deref()
    }

    /// How the process ended, where a panic was its end: in a program that is built with `panic = "abort"`, or where
    /// unwinding is not possible.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.0.ended
    }

    /// Backtrace of a panic, if `RUST_BACKTRACE` is set in the worker.
    pub fn backtrace(&self) -> Option<&str> {
        self.0.failure.backtrace.as_deref()
    }

    /// Messages of the error's `source()` chain, outermost first.
    ///
    /// Filled when the task's error implements `std::error::Error`, or is an `anyhow::Error` or a `Box<dyn Error>`.
    pub fn sources(&self) -> &[String] {
        &self.0.failure.sources
    }

    /// The task's error itself, when its type `E` is the one the task returned and implements serde's traits.
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
            return None;
        }
        let (codec, bytes) = self.0.failure.value.as_ref()?;
        codec.decode(bytes).ok()
    }
}

impl fmt::Display for RemoteError {
    /// One line: the message, then the sources, each behind a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())?;
        let mut last = self.message();
        for source in self.sources() {
            // Many error types repeat their source in their own text; once is enough.
            if !last.ends_with(source.as_str()) {
                write!(f, ": {source}")?;
            }
            last = source;
        }
        Ok(())
    }
}

impl fmt::Debug for RemoteError {
    /// As `Display`, and the backtrace, if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        self.write_backtrace(f)
    }
}

impl Error for RemoteError {}
