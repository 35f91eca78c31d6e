//! The options that say how tasks share the workers, and what there is only some of.

use super::ProcessPoolBuilder;
use crate::{
    error::BuildError,
    pool::resources::{RESOURCES_MAX, Resources},
};

/// The options, as the user has set them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct SharingOptions {
    resources: Option<Vec<(String, u32)>>,
    round_robin: bool,
}

impl SharingOptions {
    pub(in super::super) fn is_round_robin(&self) -> bool {
        self.round_robin
    }

    /// Checks the options. Returns the resources, and whether chunks go to the workers in turn.
    pub(super) fn checked(self) -> Result<(Resources, bool), BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        let resources = self.resources.unwrap_or_default();
        if resources.len() > RESOURCES_MAX {
            return invalid(format!("there are more than {RESOURCES_MAX} resources"));
        }
        for (at, (name, tokens)) in resources.iter().enumerate() {
            if name.is_empty() {
                return invalid("the name of a resource is empty".into());
            }
            if *tokens == 0 {
                return invalid(format!("the number of `{name}` (resources) must be above 0"));
            }
            if resources[..at].iter().any(|(other, _)| other == name) {
                return invalid(format!("the resource `{name}` is there twice"));
            }
        }
        if self.round_robin && !resources.is_empty() {
            return invalid(
                "resources cannot be used with round_robin: a task would wait for its tokens and for one worker".into(),
            );
        }
        Ok((Resources(resources.into()), self.round_robin))
    }
}

/// # How tasks share the workers
impl ProcessPoolBuilder {
    /// Sets resources of which there are only some, and how many *tokens* there are of each. A task
    /// that [needs](crate::Task::needs) some waits until they are free, and has them while it runs.
    /// So no more tasks use the resource at the same time than it can bear: GPUs, licences,
    /// connections to a database, gigabytes of memory.
    ///
    /// Names and numbers mean what the program wants them to mean: they are only counted. Which of
    /// two GPUs a task has, they do not say. Use [`slots`](Self::slots) for that.
    ///
    /// The tokens of a task are free again when its result is known, whether it has a value or an
    /// error. If it loses its worker, or is ended by a time limit or by
    /// [`cancel_running`](crate::TaskFuture::cancel_running), they are free when the worker's
    /// process has ended. Between two attempts ([`retries`](crate::Task::retries)) a task has none.
    ///
    /// [`build`](Self::build) fails if a number is 0, if a name is empty or there twice, with more
    /// than 64 resources, and with [`round_robin`](Self::round_robin).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn load(gibibytes: u32) -> u32 { gibibytes }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(8);
    ///     let pool = builder.resources([("memory", 16)]).build().unwrap();
    ///     // Together they never need more than 16 GiB.
    ///     let sizes = [10, 4, 2, 16, 1, 1];
    ///     let tasks = sizes.map(|size| pool.submit(load::task(size).needs("memory", size)));
    ///     assert_eq!(tasks.map(|task| task.result().unwrap()), sizes);
    /// }
    /// ```
    pub fn resources<S: Into<String>>(
        mut self,
        resources: impl IntoIterator<Item = (S, u32)>,
    ) -> Self {
        let named = resources.into_iter().map(|(name, tokens)| (name.into(), tokens));
        self.sharing.resources = Some(named.collect());
        self
    }

    /// Gives tasks to the workers in turn: the first task that is submitted runs in the worker with
    /// [index](crate::worker_index) 0, the next one in the worker with index 1, and so on. By
    /// default a task goes to whichever worker is free.
    ///
    /// The price is that no other worker takes a task over, however long its own worker is busy,
    /// and that a task does not wait for another reason than its worker: if the worker ends, the
    /// task waits for the one that replaces it. Use it only if each worker is to get the same share
    /// of the tasks, or the same ones in each run.
    ///
    /// The chunks of a [`map`](crate::ProcessPoolExecutor::map) count as one task each, and go on
    /// where the tasks before have ended. A map with [`Map::round_robin`](crate::Map::round_robin)
    /// begins with the worker 0, and does not count, and neither does a task with
    /// [`on_worker`](crate::Task::on_worker). Tasks that several threads submit at the same time
    /// take turns in any order.
    ///
    /// [`build`](Self::build) fails with [`Isolation::PerTask`](crate::Isolation::PerTask), where
    /// no worker gets a second task, and with [`resources`](Self::resources).
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn index() -> Option<usize> { executor::worker_index() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(2).round_robin().build().unwrap();
    ///     let indices = [(); 5].map(|()| pool.submit(index::task()));
    ///     let indices = indices.map(|future| future.result().unwrap().unwrap());
    ///     assert_eq!(indices, [0, 1, 0, 1, 0]);
    /// }
    /// ```
    pub fn round_robin(mut self) -> Self {
        self.sharing.round_robin = true;
        self
    }
}
