//! The end of a worker: which of its tasks end with it, and which go back to the queue.

use std::time::Instant;

use super::{
    Scheduler,
    action::{Action, Actions, End, resolve},
    claims::Claims,
    task::Scheduled,
    termination::{Reason, Termination},
    worker::Worker,
};
use crate::{
    child::verdict::Progress,
    error::{BrokenCause, Phase, TaskError},
    id::WorkerId,
    transport::board::Begun,
    wire::frame::Items,
};

/// After this many workers die with the same unstarted task at the head of their queue, the task is
/// assumed to be what kills them, and fails with `WorkerLost`. The likely cause is a frame that
/// kills every worker that reads it.
const LOST_UNBEGUN_MAX: u8 = 3;

impl<C: Scheduled> Scheduler<C> {
    /// Handles the end of a worker's process, after everything that it had published was read.
    pub(crate) fn on_exit(
        &mut self,
        now: Instant,
        id: WorkerId,
        cause: impl FnOnce(Progress) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.on_end(now, id, true, cause, claims, out);
        self.after_changes(now, claims, out);
    }

    /// Removes a worker that has ended. Also called for a worker that is given up: `has_ended` is
    /// then `false`, and the process may still live.
    pub(super) fn on_end(
        &mut self,
        now: Instant,
        id: WorkerId,
        has_ended: bool,
        cause: impl FnOnce(Progress) -> BrokenCause,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        let Some(worker) = self.forget(id) else { return };
        if !has_ended {
            // This includes chunks that now go to other workers. This worker may have begun them
            // after all, and may read their arguments after the other worker has finished.
            for sent in worker.in_flight.iter() {
                self.tasks[sent.chunk()].chunk().leave_arguments();
            }
        }
        let had_begun = self.settle(id, &worker, claims, out);
        self.lose_broadcasts(id, &worker, out);
        if worker.is_finalizing() {
            let end = match worker.termination().map(Termination::reason) {
                Some(Reason::Pool(error)) => End::Error(error.clone()),
                Some(Reason::Finalizer) => {
                    let error = TaskError::timed_out(self.config.finalizer_timeout, Phase::Run);
                    End::Error(error)
                }
                _ => End::Lost(id),
            };
            out.push(Action::NotFinalized(id, end));
        }
        let expected = worker.termination().is_some_and(Termination::is_of_task_or_pool);
        self.counted.lost += u64::from(!expected && !worker.is_stopping());
        if !worker.was_ready() && !expected {
            let said_hello = worker.is_initializing();
            let too_slow =
                matches!(worker.termination().map(Termination::reason), Some(Reason::Start));
            let cause = match too_slow {
                true if said_hello => {
                    let waited = self.config.initializer_timeout;
                    BrokenCause::Start(
                        format!(
                            "its initializer did not end within {waited:?} (`initializer_timeout`)"
                        )
                        .into(),
                    )
                }
                true => {
                    let waited = self.config.start_timeout;
                    BrokenCause::Start(
                        format!("it did not report within {waited:?} (`start_timeout`)").into(),
                    )
                }
                false if said_hello => cause(Progress::Greeted),
                false => cause(Progress::Launched),
            };
            // A worker that ended before its hello has met a limit of the system, if other workers
            // of the same program work. A worker that was too slow is no reason to end the workers
            // that were fast enough.
            if (!said_hello || too_slow) && self.workers.values().any(Worker::is_working) {
                self.start_failed_beside_others(now, cause, out);
            } else {
                self.start_failed(now, cause, out);
            }
        } else if !expected && !had_begun && worker.is_young(now) {
            self.died_young(now, &worker, cause, out);
        }
    }

    pub(super) fn forget(&mut self, id: WorkerId) -> Option<Worker> {
        self.idle.retain(|idle| *idle != id);
        let mut worker = self.workers.remove(&id)?;
        worker.in_flight.worker_ended(&mut self.with_waiting);
        self.counted.ended += 1;
        Some(worker)
    }

    /// Decides about the tasks of a dead worker: those that it had begun have ended, and the others
    /// go back to the queue in order. Returns whether it had begun any.
    fn settle(
        &mut self,
        id: WorkerId,
        worker: &Worker,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) -> bool {
        let mut had_begun = false;
        for (ahead, sent) in worker.in_flight.iter().enumerate().rev() {
            let chunk = sent.chunk();
            let entry = self.tasks.get_mut(chunk).expect("what is in flight is in the table");
            self.timed -= usize::from(entry.transition_to_queued());
            let Items { first, count } = entry.chunk().items();
            // The index after the items that ended with the worker. That is one item, unless the
            // worker's last replies could not be read.
            let mut behind = first + 1;
            let asked = worker.asked().and_then(|asked| asked.error_of(chunk));
            let mut end = match worker.termination().map(Termination::reason) {
                _ if let Some(error) = asked => Some(End::Error(error.clone())),
                Some(Reason::Task(task, error)) if *task == chunk => {
                    Some(End::Error(error.clone()))
                }
                Some(Reason::Pool(error)) => {
                    let entry = self.tasks.remove(chunk).expect("looked at above");
                    out.push(resolve(entry.into_chunk(), error.clone()));
                    continue;
                }
                // Taken back, and not only looked up: a worker that was given up may still live,
                // and must not begin this later.
                _ if claims.take_back(id, sent.seq(), first) => None,
                _ => {
                    claims.take_rest(id, sent.seq());
                    match claims.begun(id, sent.seq()) {
                        // If the begun item is before the first unresolved one, it was answered,
                        // and the next item had not begun.
                        Begun::Yes(item, _) if item >= first => {
                            behind = item.min(count - 1) + 1;
                            Some(End::Lost(id))
                        }
                        // Any item may have begun, and none may run twice.
                        Begun::Unknown => {
                            behind = count;
                            Some(End::Lost(id))
                        }
                        _ => None,
                    }
                }
            };
            // Whether the task had begun, so that this was an attempt.
            let (begun, lost) = (end.is_some(), matches!(end, Some(End::Lost(_))));
            had_begun |= begun;
            if end.is_none() && entry.is_broadcast() {
                // It cannot run elsewhere.
                end = Some(End::Unbegun(id));
            }
            // Only the first sending can have caused the death. A task that waited behind three
            // crashing tasks is innocent.
            if end.is_none() && ahead == 0 {
                end = (entry.lost_unbegun() >= LOST_UNBEGUN_MAX).then_some(End::Lost(id));
            }
            let Some(end) = end else {
                self.requeue(chunk);
                continue;
            };
            let retryable = matches!(
                end,
                End::Lost(_)
                    | End::Error(TaskError::TimedOut { .. } | TaskError::MemoryLimit { .. })
            );
            if begun && retryable && self.may_retry(chunk, lost) {
                self.hold(chunk, lost);
                out.push(Action::Undecided(Box::new((chunk, end))));
                continue;
            }
            if behind < count {
                // The items behind go back without any record of this death.
                let rest = self.split_off(chunk, behind);
                self.requeue(rest);
            }
            let entry = self.tasks.remove(chunk).expect("looked at above");
            out.push(Action::Resolve(Box::new((entry.into_chunk(), end))));
        }
        // A worker that had to end before the pool was ended gives back tasks that no worker will
        // run any more.
        if self.state.is_over()
            && let Some(error) = self.refusal()
        {
            self.resolve_queue(&error, out);
        }
        had_begun
    }
}
