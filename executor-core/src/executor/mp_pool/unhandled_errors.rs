//! Logs errors that nobody handles, because nobody has read the result. There are two cases: the
//! result was dropped before it was read, and it has still not been read when the pool is joined.
//!
//! ```text
//!  apply_async ──► hold(key) ──┬─ get, await, error_callback … ──► forget(key)
//!                              ├─ dropped ──► forgotten when the task ends; logged if it failed
//!                              └─ join ──► forgotten and logged if the task failed
//!
//! Only the caller that removes a result from the table logs it, so each error is logged once.
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{debug::Chain, error::TaskError, future::callback::CallbackQueue, os::fork::Creator};

/// The outcome of a task, as far as the log needs it.
pub(super) trait Outlook: Send + Sync {
    /// Returns the error, if the task has ended with one. Otherwise returns `None`.
    fn failure(&self) -> Option<TaskError>;
}

/// The results of one pool whose outcome nobody has read.
pub(super) struct UnhandledErrors {
    creator: Creator,
    pub(super) callbacks: Arc<CallbackQueue>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    results: BTreeMap<u64, Arc<dyn Outlook>>,
}

impl UnhandledErrors {
    pub(super) fn new(callbacks: Arc<CallbackQueue>) -> Arc<Self> {
        Arc::new(UnhandledErrors { creator: Creator::here(), callbacks, held: Mutex::default() })
    }

    /// Returns whether this process is a fork of the pool's process. A fork has no callback thread,
    /// and locks may be held there for ever.
    pub(super) fn forked(&self) -> bool {
        self.creator.is_elsewhere()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a result that nobody has read yet, and returns its key.
    pub(super) fn hold(&self, result: Arc<dyn Outlook>) -> u64 {
        if self.forked() {
            return 0;
        }
        let mut held = self.lock();
        let key = held.next;
        held.next += 1;
        held.results.insert(key, result);
        key
    }

    /// Removes a result, because its outcome was read. Returns whether nobody had read it until
    /// now.
    pub(super) fn forget(&self, key: u64) -> bool {
        if self.forked() {
            return false;
        }
        let result = self.lock().results.remove(&key);
        // Dropped after the lock is released, because this may drop a user's waker or callback.
        result.is_some()
    }

    /// Logs the errors that nobody has read so far, and removes them. Each is logged once.
    pub(super) fn log(&self) {
        if self.forked() {
            return;
        }
        // The results are kept until the lock is released: dropping one may drop a user's callback.
        let mut failed = Vec::new();
        self.lock().results.retain(|_, result| {
            let failure = result.failure();
            let keep = failure.is_none();
            failed.extend(failure.map(|error| (error, Arc::clone(result))));
            keep
        });
        for (error, _) in &failed {
            log(error);
        }
    }
}

/// Logs an error that was not read, except if the task was cancelled or its pool was shut down.
/// These errors are expected.
pub(super) fn log(error: &TaskError) {
    if !error.is_shutdown() && !error.is_cancelled() {
        tracing::warn!(error = %Chain(error), "a task failed, and nobody has read its error");
    }
}
