//! Tasks that run in every worker.
//!
//! ```text
//!  broadcast ─► for each worker there is: a chunk for it alone ─► scheduler.on_broadcast
//!  and_later ─► Standing ── Action::Start ─► the same for each worker that comes later
//!                   └─ until `end_broadcasts`, or the end of the pool
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

/// Number of broadcasts that may also reach workers that come later. Each of them is one more task
/// for each worker, before its first other task. With a lower value, programs that set up workers
/// in many small steps are refused. With a higher value, a program that forgets to end its
/// broadcasts has workers that start more and more slowly before it is told.
const STANDING_MAX: usize = 1_000;

/// The broadcasts that also reach workers that come later.
#[derive(Default)]
pub(super) struct Standing {
    any: AtomicBool,
    list: Mutex<Vec<Make>>,
}

impl Pool {
    /// Submits a chunk for each worker that there is, and with `later` also for each one that comes
    /// later. `make` is called without a lock. Returns the reason if it is refused.
    pub(crate) fn broadcast(
        &self,
        mut make: impl FnMut() -> Option<Chunk>,
        later: Option<Make>,
    ) -> Result<(), String> {
        if self.forked() {
            return Ok(());
        }
        // Under one lock, so that each worker is reached once.
        let workers = self.event(|core, _, _| {
            // No worker of a pool that is shut down gets it.
            if let Some(later) = later
                && core.scheduler.is_open()
            {
                let mut standing = lock(&self.standing.list);
                if standing.len() >= STANDING_MAX {
                    return Err(format!(
                        "cannot be kept for later workers, because {STANDING_MAX} are kept already: \
                         see `end_broadcasts`"
                    ));
                }
                standing.push(later);
                self.standing.any.store(true, Ordering::Relaxed);
            }
            Ok(core.scheduler.reachable())
        })?;
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
        Ok(())
    }

    /// Ends the broadcasts that also reach workers that come later.
    pub(crate) fn end_broadcasts(&self) {
        if self.forked() {
            return;
        }
        // A worker is ordered, and gets what it is to run, under the same lock.
        let ended = self.event(|_, _, _| {
            self.standing.any.store(false, Ordering::Relaxed);
            std::mem::take(&mut *lock(&self.standing.list))
        });
        // Dropped without a lock, because arguments may hold descriptors.
        drop(ended);
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
