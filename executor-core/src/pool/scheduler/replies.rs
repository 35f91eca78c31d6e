//! Events: replies of workers, and what follows each event.

use std::time::Instant;

use super::{
    Scheduler,
    action::{Action, Actions, Replied, ReplyToNobody},
    claims::Claims,
    estimate::Estimate,
    task::{Scheduled, item_id},
};
use crate::id::{TaskId, WorkerId};

impl<C: Scheduled> Scheduler<C> {
    /// Handles a worker's reply for `task`, which took `nanos`, and for the tasks that follow, up
    /// to `count` in all. The result says how many of them belong to this chunk. After the last of
    /// several replies that came together, [`after_replies`](Self::after_replies) must be called.
    /// `failed` says whether it is the reply of a task that has failed and may be tried again.
    pub(crate) fn on_reply(
        &mut self,
        now: Instant,
        id: WorkerId,
        task: TaskId,
        count: u32,
        nanos: u64,
        failed: bool,
    ) -> Result<Replied<'_, C>, ReplyToNobody> {
        let worker = self.workers.get_mut(&id).ok_or(ReplyToNobody)?;
        // Replies come in order. A sending before this one can only have been taken back, and then
        // it is not in flight any more, and the worker skips it.
        let chunk = worker.in_flight.front().ok_or(ReplyToNobody)?.chunk();
        let entry = self.tasks.get_mut(chunk).expect("what is in flight is in the table");
        let item = entry.chunk().items().first;
        if item_id(entry.chunk().base(), item) != task {
            return Err(ReplyToNobody);
        }
        // The task ends with the error for which its worker is ended. The worker has outlived
        // SIGTERM, if it has got no more than that, and has nothing left to do.
        if let Some(termination) = worker.termination_mut()
            && termination.error_of(task).is_some()
        {
            termination.answer(now);
            return Ok(Replied::Late);
        }
        if let Some(asked) = worker.asked_mut().filter(|asked| asked.error_of(task).is_some()) {
            asked.answer();
            let left = entry.chunk().left();
            worker.has_answered(left, entry.is_broadcast());
            worker.in_flight.front_answered(now, left, &mut self.with_waiting);
            return Ok(Replied::Late);
        }
        let count = count.min(entry.chunk().left());
        worker.has_answered(count, entry.is_broadcast());
        let left = entry.answered(count);
        let in_flight = worker.in_flight.front_answered(now, count, &mut self.with_waiting);
        debug_assert_eq!(left, in_flight, "both records count the same items");
        if worker.in_flight.is_empty()
            && let Some(termination) = worker.termination_mut()
        {
            termination.answer(now);
        }
        // A worker that reports a false time only changes how much is sent ahead to it.
        let took = u32::try_from(nanos).unwrap_or(u32::MAX);
        let new = Estimate { nanos: took, ended: took };
        self.estimates.entry(entry.chunk().function()).or_insert(new).learn(took);
        if left > 0 {
            return Ok(Replied::Items(self.tasks[chunk].chunk(), item, count));
        }
        if failed && self.may_retry(chunk, false) {
            self.timed -= usize::from(self.tasks[chunk].has_timeout());
            self.hold(chunk, false);
            return Ok(Replied::Undecided(chunk));
        }
        let entry = self.tasks.remove(chunk).expect("looked at above");
        self.timed -= usize::from(entry.has_timeout());
        Ok(Replied::Last(entry.into_chunk(), item, count))
    }

    /// Gives a worker that has replied more to do.
    pub(crate) fn after_replies(
        &mut self,
        now: Instant,
        id: WorkerId,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.end_answered(now, id, out);
        self.settle_asked(id, out);
        self.send_broadcast(now, id, out);
        self.retire_if_spent(now, id, out);
        self.rest_if_idle(id);
        self.after_changes(now, claims, out);
    }

    /// Does what every event requires: gives out tasks, and lets idle workers take over waiting
    /// ones.
    pub(super) fn after_changes(
        &mut self,
        now: Instant,
        claims: &dyn Claims,
        out: &mut Actions<C>,
    ) {
        self.stop_the_leaving(now, out);
        self.dispatch(now, out);
        self.balance(now, claims, out);
        self.send_all_broadcasts(now, out);
        self.watch(now);
        self.close_if_drained(now, out);
    }

    /// Asks a worker to leave if it has done all the tasks that it may do. Its place becomes free
    /// when its process has ended.
    pub(super) fn retire_if_spent(&mut self, now: Instant, id: WorkerId, out: &mut Actions<C>) {
        let finalizes = self.config.finalizer.is_some();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.is_idle() && worker.in_flight.is_spent() {
            worker.transition_to_stopping(now, finalizes);
            out.push(Action::Stop(id));
        }
    }

    /// Puts a worker among the idle ones if it has nothing to do.
    pub(super) fn rest_if_idle(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.is_idle() && !self.idle.contains(&id) {
            self.idle.push(id);
            if !worker.has_served() {
                self.look_at_age_of(id);
            }
            self.look_at_idle(id);
        }
    }
}
