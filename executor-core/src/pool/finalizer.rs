//! How the finalizers of workers have ended, until somebody asks.
//!
//! ```text
//!  worker: Stop ─► finalizer ─► reply ─► on_finalized ──┐
//!  scheduler: NotFinalized, the worker ended without ───┴─► Finalized ─► finalizer_results
//! ```

use std::{collections::VecDeque, sync::Mutex};

use super::{Pool, core::Core, scheduler::End};
use crate::{
    error::{BrokenCause, TaskError, reply},
    future::cell::Outcome,
    id::WorkerId,
    os::std_or_model::lock,
    transport::board::INITIALIZER,
    wire::{frame::Reply, payload::Payload},
};

/// Number of results that are kept. With more, a pool that replaces workers for years would keep
/// more and more memory for results that nobody reads. With fewer, the last ones of a large pool
/// would be lost.
const KEPT_MAX: usize = 4096;

/// The results of finalizers, oldest first.
#[derive(Default)]
pub(super) struct Finalized(Mutex<VecDeque<Outcome>>);

impl Finalized {
    /// Adds a result. Returns an old one that is not kept any more, to be dropped without a lock.
    #[must_use]
    fn add(&self, outcome: Outcome) -> Option<Outcome> {
        let mut kept = lock(&self.0);
        let old = if kept.len() >= KEPT_MAX { kept.pop_front() } else { None };
        kept.push_back(outcome);
        old
    }
}

impl Pool {
    /// Takes the results that there are.
    pub(crate) fn take_finalized(&self) -> Vec<Outcome> {
        if self.forked() {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&self.finalized.0)).into()
    }

    /// Records how a finalizer has replied.
    pub(super) fn on_finalized(&self, core: &mut Core, kind: Reply, payload: Payload) {
        let outcome = match kind {
            Reply::Done => Ok(payload),
            kind => Err(reply::failure(self.finalizer_name(), kind, &payload)),
        };
        core.unneeded.extend(self.finalized.add(outcome));
    }

    /// Records that a worker has ended without a reply of its finalizer.
    pub(super) fn on_not_finalized(&self, core: &mut Core, id: WorkerId, end: End) {
        let name = self.finalizer_name();
        let error = match end {
            End::Error(error) | End::GivenUp(error) => error.of_task(name),
            End::Lost(_) | End::Unbegun(_) => match core.workers.get(&id) {
                Some(worker) => worker.ending(&core.restraints).of_task(INITIALIZER, name),
                None => TaskError::Broken(BrokenCause::Internal("lost an unknown worker".into())),
            },
        };
        core.unneeded.extend(self.finalized.add(Err(error)));
    }

    fn finalizer_name(&self) -> &str {
        self.options.finalizer.as_ref().map_or("", |finalizer| &finalizer.name)
    }
}
