//! The memory of a pool: segments for large arguments and results, which are emptied when they are
//! not used, and descriptors that wait for space in a worker's socket.

use std::sync::{Arc, atomic::Ordering};

use super::Pool;
use crate::segment::{Results, Store};

impl Pool {
    /// Returns the memory in which large arguments are encoded.
    pub(crate) fn arguments(&self) -> Option<Arc<Store>> {
        self.arguments.as_ref().map(|(store, _)| Arc::clone(store))
    }

    /// Records that a segment was used, so that the driver empties it when it is no longer used.
    pub(super) fn warm_up(&self) {
        if !self.warm.load(Ordering::Relaxed) && !self.warm.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    pub(super) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::SeqCst)
    }

    pub(super) fn results(&self) -> Vec<Arc<Results>> {
        let core = self.lock();
        core.workers
            .values()
            .filter_map(|worker| worker.ancillary.as_ref()?.results().cloned())
            .collect()
    }

    /// Empties segments that were not used since the last call. Returns whether any still hold
    /// memory.
    pub(super) fn trim(&self) -> bool {
        // Cleared first: a thread that uses a segment after this sets it again, and wakes the
        // driver.
        self.warm.store(false, Ordering::SeqCst);
        let mut left = self.arguments.as_ref().is_some_and(|(store, _)| store.trim());
        for results in self.results() {
            left |= results.trim();
        }
        if left {
            self.warm.store(true, Ordering::SeqCst);
        }
        left
    }

    /// Sends descriptors that found no space in a worker's socket. Returns whether any are left.
    pub(super) fn unstick(&self) -> bool {
        let mut core = self.lock();
        if core.stuck {
            let all = core.workers.values().filter_map(|worker| worker.ancillary.as_ref());
            core.stuck = all.fold(false, |left, ancillary| ancillary.flush() | left);
        }
        core.stuck
    }
}
