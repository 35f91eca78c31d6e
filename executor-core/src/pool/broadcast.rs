//! Tasks that run in every worker.
//!
//! ```text
//!  broadcast ─► for each worker there is: a chunk for it alone ─► scheduler.on_broadcast
//!  and_later ─► Standing ── Action::Start ─► the same for each worker that comes later
//! ```

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Pool,
    chunk::{Chunk, Outcomes},
    core::Core,
    worker::Boards,
};
use crate::{error::TaskError, id::WorkerId, os::std_or_model::lock};

/// Makes the chunk for a worker that comes later.
/// Returns `None` if the pool is gone.
type Make = Arc<dyn Fn() -> Option<Chunk> + Send + Sync>;

/// The broadcasts that also reach workers that come later.
#[derive(Default)]
pub(super) struct Standing {
    any: AtomicBool,
    list: Mutex<Vec<Make>>,
}

impl Pool {
    /// Submits a chunk for each worker that there is, and with `later` also for each one that comes
    /// later. `make` is called without a lock.
    pub(crate) fn broadcast(&self, mut make: impl FnMut() -> Option<Chunk>, later: Option<Make>) {
        if self.forked() {
            return;
        }
        // Under one lock, so that each worker is reached once.
        let workers = self.event(|core, _, _| {
            if let Some(later) = later {
                lock(&self.standing.list).push(later);
                self.standing.any.store(true, Ordering::Relaxed);
            }
            core.scheduler.reachable()
        });
        let accepted = |id| {
            let mut chunk = make()?;
            chunk.accepted(&self.options.defaults);
            Some((id, chunk))
        };
        let tasks: Vec<_> = workers.into_iter().filter_map(accepted).collect();
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_broadcast(now, tasks, &Boards(workers), out);
        });
    }

    /// Adds the standing broadcasts for a worker that has just been ordered.
    pub(super) fn add_standing(&self, core: &mut Core, id: WorkerId, outcomes: &mut Outcomes) {
        if !self.standing.any.load(Ordering::Relaxed) {
            return;
        }
        for make in &*lock(&self.standing.list) {
            let Some(mut chunk) = make() else { continue };
            chunk.accepted(&self.options.defaults);
            // A pool that is shut down orders workers only for the tasks that it has accepted.
            if let Some(chunk) = core.scheduler.broadcast_to(id, chunk) {
                outcomes.fail(chunk, TaskError::Shutdown);
            }
        }
    }
}
