//! The options about errors that workers report by themselves.

use std::time::Duration;

use super::ProcessPoolBuilder;
use crate::{
    error::{BuildError, TaskFailure},
    registry::TaskEntry,
    task::TaskArgs,
    wire::{codec::Codec, handshake::ErrorHook},
};

/// Default for how long a worker may take to report an error. A lower value ends reports over a
/// slow network. With a higher one, a report that hangs holds up its worker, and a shutdown, for
/// longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The options, as the user has set them.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct ReportOptions {
    hook: Option<(&'static TaskEntry, Codec)>,
    timeout: Option<Duration>,
}

impl ReportOptions {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let entry = |options: &Self| options.hook.map(|(entry, _)| std::ptr::from_ref(entry));
        entry(self) == entry(other) && self.timeout == other.timeout
    }

    /// Checks the options. Returns the function, and how long it may take.
    pub(super) fn checked(self) -> Result<Option<(ErrorHook, Duration)>, BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        if self.timeout == Some(Duration::ZERO) {
            return invalid("on_task_error_timeout must be above 0".into());
        }
        let Some((entry, codec)) = self.hook else {
            return match self.timeout {
                Some(_) => invalid("on_task_error_timeout is set, but no on_task_error".into()),
                None => Ok(None),
            };
        };
        if let Err(why) = entry.known() {
            return invalid(format!("on_task_error: {why}"));
        }
        let hook = ErrorHook { function: entry.number(), codec };
        Ok(Some((hook, self.timeout.unwrap_or(TIMEOUT))))
    }
}

/// # Errors that workers report
impl ProcessPoolBuilder {
    /// Calls a task function in the worker whenever a task has failed there: it has returned an
    /// error or panicked, or its arguments or its result could not be converted. So errors reach a
    /// service such as Sentry from where they happen, with what that process knows.
    ///
    /// - The function runs on the thread of the tasks, after the result has been sent. Nothing that
    ///   it does changes the result, and the caller does not wait for it. It has the
    ///   [worker state](crate::worker_state), where an
    ///   [`initializer`](Self::initializer) may have put a client.
    /// - Each failed attempt ([`retries`](crate::Task::retries)) is reported, and each item of a
    ///   `map`.
    /// - The worker gets no task until the function has returned. What was sent ahead to it goes to
    ///   other workers.
    /// - If the function fails itself, that is logged in the worker (`tracing`), and that is all.
    ///   If it ends the worker, or takes longer than
    ///   [`on_task_error_timeout`](Self::on_task_error_timeout), the worker is replaced, and no
    ///   task fails for it. It counts as [lost](crate::Stats::workers_lost).
    /// - A worker that ends with its task can report nothing: it has crashed, was killed at a time
    ///   limit, or exceeded its memory. The caller gets these errors, and
    ///   [`add_done_callback`](crate::TaskFuture::add_done_callback) sees them. Nor is it called
    ///   for the initializer, the finalizer, and errors of the system
    ///   ([`Refused`](crate::TaskError::Refused)).
    ///
    /// ```
    /// use executor::{TaskFailure, prelude::*};
    ///
    /// #[task]
    /// fn report(failure: TaskFailure) -> Result<(), std::io::Error> {
    ///     let line = format!("{} at attempt {}: {}\n", failure.task, failure.attempt, failure.error);
    ///     std::fs::write(std::env::var_os("REPORTS").unwrap(), line)
    /// }
    ///
    /// #[task(name = "parse")]
    /// fn parse(text: &str) -> Result<u32, std::num::ParseIntError> { text.parse() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let dir = tempfile::tempdir().unwrap();
    ///     let reports = dir.path().join("reports");
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1).env("REPORTS", &reports);
    ///     let pool = builder.on_task_error::<report>().build().unwrap();
    ///     assert!(pool.submit(parse::task("seven")).result().is_err());
    ///     pool.shutdown(true);
    ///     let text = std::fs::read_to_string(reports).unwrap();
    ///     assert!(text.starts_with("parse at attempt 1: ") && text.contains("invalid digit"));
    /// }
    /// ```
    pub fn on_task_error<F: TaskArgs<(TaskFailure,), Output = ()>>(mut self) -> Self {
        self.reports.hook = Some((F::entry(), F::CODEC));
        self
    }

    /// Limits how long the function of [`on_task_error`](Self::on_task_error) may take. If it takes
    /// longer, its worker is killed and replaced. The default is 5 seconds. [`Duration::MAX`] means
    /// no limit: one that hangs then holds up its worker, and the end of the executor, for ever.
    pub fn on_task_error_timeout(mut self, timeout: Duration) -> Self {
        self.reports.timeout = Some(timeout);
        self
    }
}
