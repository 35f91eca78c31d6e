//! What an executor does when the program ends by itself: see [`exit`](crate::child::exit).
//!
//! ```text
//!  scheduler ──► outcomes on their way ──► futures; the callback queue ──► callbacks
//!  `settle` waits for all three, in this order: each is empty only after it has filled the next
//! ```

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Pool, Shutdown, chunk, is_own_thread};
use crate::{child::exit::Accepts, future::callback::CallbackQueue, id::TaskId};

/// What happens to unfinished work when the program ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AtEnd {
    #[default]
    Finish,
    CancelPending,
    Kill,
    /// Send SIGTERM first.
    Terminate,
}

/// How long the end of the program waits where it cannot wait without a timeout: for a waker of the
/// user that is being called, and, after `exit_timeout`, for processes that were killed. A lower
/// value loses callbacks on a busy machine. A higher value delays the exit more if a waker itself
/// ends the program.
const GRACE: Duration = Duration::from_secs(2);

/// Longest delay when a notification arrives just before the wait begins.
const RECHECK: Duration = Duration::from_millis(20);

/// Counts batches of outcomes that have left the scheduler and have not reached futures and
/// callbacks yet.
#[derive(Default)]
pub(super) struct OnTheWay {
    /// Written only under the pool's lock, so no atomic addition is needed.
    left: AtomicU64,
    arrived: AtomicU64,
    /// Whether the end of the program is waiting.
    awaited: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

/// A batch on its way. It arrives when this is dropped.
pub(super) struct Batch(Arc<OnTheWay>);

impl OnTheWay {
    /// Records that a batch has left the scheduler. Called only under the pool's lock.
    pub(super) fn leave(&self) {
        self.left.store(self.left.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Records that a batch has arrived.
    pub(super) fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Release);
        if self.awaited.load(Ordering::Relaxed) {
            let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.changed.notify_all();
        }
    }

    /// Returns a guard for a batch that has left. Dropping it calls `arrive`.
    pub(super) fn batch(self: &Arc<Self>) -> Batch {
        Batch(Arc::clone(self))
    }

    /// Returns whether no batch is on its way. Called under the pool's lock, so that none leaves
    /// meanwhile.
    fn is_empty(&self) -> bool {
        self.arrived.load(Ordering::Acquire) == self.left.load(Ordering::Relaxed)
    }

    fn wait(&self, timeout: Duration) {
        self.awaited.store(true, Ordering::Relaxed);
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(lock, timeout));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.0.arrive();
    }
}

impl Pool {
    /// Waits until `is_so` returns `true`, at most until `deadline`. Returns whether it did.
    fn wait_until(&self, deadline: Option<Instant>, is_so: impl Fn() -> bool) -> bool {
        while !is_so() {
            let left = deadline
                .map_or(RECHECK, |at| at.saturating_duration_since(Instant::now()).min(RECHECK));
            if left.is_zero() {
                return false;
            }
            self.on_the_way.wait(left);
        }
        true
    }

    /// Returns whether a task with an id below this one is unresolved.
    fn has_before(&self, id: TaskId) -> bool {
        self.event(|core, _, _| core.scheduler.has_before(id))
    }

    fn is_on_the_way(&self) -> bool {
        let _core = self.lock();
        !self.on_the_way.is_empty()
    }

    /// Returns when the end of the program, begun at `since`, stops waiting for this pool.
    fn deadline(&self, since: Instant) -> Option<Instant> {
        self.options.exit_timeout.and_then(|timeout| since.checked_add(timeout))
    }

    /// Returns whether the end of the program can wait for this pool on this thread.
    fn can_be_awaited(&self) -> bool {
        if self.forked() {
            return false;
        }
        if is_own_thread() {
            // The calling thread is the pool's own, and would have to do the work that it waits
            // for.
            tracing::warn!(
                "the program ends within a waker that runs on a thread of an executor, which therefore finishes nothing"
            );
            return false;
        }
        true
    }

    /// Begins to shut down, in the way the user chose for a pool that was not shut down explicitly.
    fn end_as_wished(&self) {
        match self.options.at_end {
            AtEnd::Finish => self.shutdown(Shutdown::default()),
            AtEnd::CancelPending => {
                self.shutdown(Shutdown { cancel_pending: true, ..Shutdown::default() });
            }
            AtEnd::Kill => self.end_workers(true),
            AtEnd::Terminate => self.end_workers(false),
        }
    }

    /// Ends work that has passed `exit_timeout`, and waits briefly for that.
    fn cut_short(&self) {
        tracing::warn!(timeout = ?self.options.exit_timeout, "accepted work holds up the end of the program, and is ended");
        // The program does not wait for what the tasks would do when they are asked to stop.
        self.shutdown(Shutdown {
            cancel_pending: true,
            deadline: Some(Instant::now()),
            cancel_grace: Some(Duration::ZERO),
            // The rest of the time is for the ends of the workers, which resolve their tasks.
            kill_at: Some(Instant::now() + GRACE / 2),
            ..Shutdown::default()
        });
        self.join_until(Instant::now() + GRACE);
    }

    /// Waits until everything that has left the scheduler has reached its callbacks, and these have
    /// run.
    fn finish_callbacks(&self, deadline: Option<Instant>) {
        let moment = Instant::now() + GRACE;
        self.wait_until(Some(deadline.map_or(moment, |at| at.min(moment))), || {
            !self.is_on_the_way()
        });
        self.callbacks.finish(deadline);
    }
}

impl Accepts for Pool {
    fn settle(&self, since: Instant) {
        if !self.can_be_awaited() {
            return;
        }
        // Work that is submitted later is not waited for here: threads that never end may submit
        // without end.
        let next = chunk::id_of_the_next();
        let mut deadline = self.deadline(since);
        // Shut down even if nothing is pending: whether a hook can use the pool must not depend on
        // that.
        if self.options.at_end != AtEnd::Finish {
            self.end_as_wished();
        }
        if !self.wait_until(deadline, || !self.has_before(next)) {
            self.cut_short();
            deadline = Some(Instant::now() + GRACE);
        }
        self.finish_callbacks(deadline);
    }

    fn close(&self) {
        if !self.forked() {
            self.end_as_wished();
        }
    }

    fn join(&self, since: Instant) {
        if !self.can_be_awaited() {
            return;
        }
        let mut deadline = self.deadline(since);
        match deadline {
            None => self.join_threads(),
            Some(at) if self.join_until(at) => {}
            Some(_) => {
                self.cut_short();
                deadline = Some(Instant::now() + GRACE);
            }
        }
        self.finish_callbacks(deadline);
    }
}

/// Callbacks may remain after the pool is gone, because callbacks for results that already existed
/// are queued, too.
impl Accepts for CallbackQueue {
    fn settle(&self, since: Instant) {
        let deadline =
            self.exit_timeout.and_then(|timeout| since.checked_add(timeout)?.checked_add(GRACE));
        self.finish(deadline);
    }

    fn close(&self) {}

    fn join(&self, since: Instant) {
        self.settle(since);
    }
}
