//! Whether a task whose attempt has failed is tried again: asks the user, and computes the delay.
//!
//! ```text
//!  scheduler: held ─► Decision ─► Wakers: called without a lock ─► retry_on(&error)?
//!       ▲                                                             │
//!       └──── on_retry(delay) or on_give_up(error) ◄──────────────────┘
//! ```
//!
//! The user's predicate runs where wakers run: on a thread that takes results, and never under a
//! lock. If it panics, the task is not tried again. A decision that is dropped gives the task up,
//! so that no task is held for ever.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Arc, Weak},
    task::Wake,
    time::Duration,
};

use super::{Pool, chunk::Answer, core::Core, log::LogRecord, worker::Boards};
use crate::{error::TaskError, id::TaskId, task::Retry, unwind::catch};

/// A decision that is due: what to do with a task after a failed attempt.
pub(super) struct Decision(Option<Due>);

struct Due {
    pool: Weak<Pool>,
    task: TaskId,
    /// Number of attempts up to now.
    attempts: u32,
    retry: Retry,
    answer: Answer,
}

impl Decision {
    pub(super) fn new(
        pool: Weak<Pool>,
        task: TaskId,
        attempts: u32,
        retry: Retry,
        answer: Answer,
    ) -> Self {
        Decision(Some(Due { pool, task, attempts, retry, answer }))
    }
}

impl Wake for Decision {
    fn wake(self: Arc<Self>) {
        if let Some(Decision(due)) = &mut Arc::into_inner(self)
            && let Some(due) = due.take()
        {
            due.decide(true);
        }
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        if let Some(due) = self.0.take() {
            due.decide(false);
        }
    }
}

impl Due {
    /// `asks` says whether the task may be tried again at all.
    fn decide(self, asks: bool) {
        let Due { pool, task, attempts, retry, answer } = self;
        let Some(pool) = pool.upgrade() else { return };
        let Err(error) = answer.outcome() else { return };
        let again = asks && error.is_retryable() && retry.wants(&error);
        if pool.forked() {
            return;
        }
        pool.event(|core, now, out| {
            let Core { scheduler, workers, counts, log, .. } = core;
            match again {
                true => {
                    let delay = delay_before(attempts + 1, retry.delay);
                    let name = scheduler.undecided(task).map(|chunk| Box::from(chunk.name()));
                    let tries = scheduler.on_retry(now, task, delay, &Boards(workers), out);
                    counts.retried += u64::from(tries);
                    if let Some(name) = name.filter(|_| tries) {
                        let attempt = attempts + 1;
                        log.push(LogRecord::TriedAgain { task: name, attempt, delay, error });
                    }
                }
                false => scheduler.on_give_up(now, task, error, out),
            }
        });
    }
}

impl Retry {
    fn wants(&self, error: &TaskError) -> bool {
        let Some(on) = &self.on else { return true };
        catch(|| on(error)).unwrap_or_else(|message| {
            tracing::error!(message, "`retry_on` panicked, so the task is not tried again");
            false
        })
    }
}

/// The longest delay that doubling leads to, unless the first one is longer.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Returns the delay before this attempt. It doubles with each attempt. A random half of it is left
/// out, so that tasks that have failed together do not come back together.
fn delay_before(attempt: u32, first: Duration) -> Duration {
    let doublings = attempt.saturating_sub(2).min(31);
    let full = first.saturating_mul(1 << doublings).min(first.max(DELAY_MAX));
    // A new state has new keys, so this is a random number.
    let random = RandomState::new().hash_one(attempt) >> 32;
    full / 2 + (full / 2).mul_f64(random as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_vary_by_half() {
        let first = Duration::from_millis(100);
        for (attempt, full) in [(2, 100), (3, 200), (4, 400), (20, 30_000), (u32::MAX, 30_000)] {
            let full = Duration::from_millis(full);
            let delays: Vec<_> = (0..200).map(|_| delay_before(attempt, first)).collect();
            assert!(delays.iter().all(|delay| (full / 2..=full).contains(delay)), "{delays:?}");
            let varied = delays.iter().max().unwrap().saturating_sub(*delays.iter().min().unwrap());
            assert!(varied > full / 4, "{varied:?}");
        }
        assert_eq!(delay_before(2, Duration::ZERO), Duration::ZERO);
        let long = Duration::from_secs(100);
        assert!(delay_before(9, long) <= long && delay_before(9, long) >= long / 2);
        delay_before(9, Duration::from_secs(u64::MAX / 4));
    }
}
