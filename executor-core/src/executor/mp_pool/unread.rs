//! Errors that nobody reads are logged: of a result that is dropped unread when its task fails, and of those that are
//! held unread when the pool is joined.
//!
//! ```text
//!  apply_async ──► hold(key) ──┬─ get, await, error_callback … ──► forget(key)
//!                              ├─ dropped ──► forgotten at its end, and logged if it has failed
//!                              └─ join: failed ──► forgotten, logged
//!
//! Who forgets it logs it: so it is logged once.
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{error::TaskError, future::callback::CallbackQueue, os::fork::Origin};

/// What a result knows of its end.
pub(super) trait Outlook: Send + Sync {
    /// Its error, if it has ended with one by now.
    fn failure(&self) -> Option<TaskError>;
}

/// The results of one pool whose end nobody has looked at.
pub(super) struct Unread {
    origin: Origin,
    pub(super) callbacks: Arc<CallbackQueue>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    results: BTreeMap<u64, Arc<dyn Outlook>>,
}

impl Unread {
    pub(super) fn new(callbacks: Arc<CallbackQueue>) -> Arc<Self> {
        Arc::new(Unread { origin: Origin::here(), callbacks, held: Mutex::default() })
    }

    /// In a fork of the pool's process there is no callback thread, and locks may be held for ever.
    pub(super) fn forked(&self) -> bool {
        self.origin.forked()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A result is unread from now on; its key.
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

    /// Somebody has looked at its end; whether nobody had until now.
    pub(super) fn forget(&self, key: u64) -> bool {
        if self.forked() {
            return false;
        }
        let result = self.lock().results.remove(&key);
        // Outside the lock: with it goes what a user's waker or callback holds.
        result.is_some()
    }

    /// Logs the errors that nobody has read so far. Each is logged once.
    pub(super) fn log(&self) {
        if self.forked() {
            return;
        }
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

/// Says that this error was not read. Results that the pool's own end has cut off are no news.
pub(super) fn log(error: &TaskError) {
    if !error.is_shutdown() && !error.is_cancelled() {
        tracing::warn!(%error, "a task failed, and nobody has read its error");
    }
}
