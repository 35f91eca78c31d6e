//! Replies: what the frames of a worker mean for the scheduler, and for futures and maps.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    Initializer, Pool, ancillary,
    chunk::{Chunk, Outcomes, Payloads},
    core::{Actions, Core},
    ending::Batch,
    log::LogRecord,
    scheduler::{self, Replied, Scheduled},
    worker::{Boards, Worker},
};
use crate::{
    error::{BrokenCause, reply},
    future::cell::Wakers,
    id::{TaskId, WorkerId},
    wire::{
        frame::{Frame, FromWorker, Reply, WireError, flag},
        measured::Measured,
        payload::Payload,
    },
};

impl Pool {
    /// Takes frames that came from one worker together.
    pub(super) fn on_frames(&self, id: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        let mut replies = Outcomes::default();
        let mut credit = 0;
        let mut locked = self.lock();
        locked.some_event(|core, now, out| {
            let broke = |core: &Core| core.workers.get(&id).is_some_and(Worker::broke_protocol);
            // Everything that a worker sends after a protocol violation is ignored, even valid
            // frames.
            let mut believed = !broke(core);
            for frame in frames.drain(..) {
                if !believed {
                    continue;
                }
                credit = credit.max(frame.header.consumed);
                let header = frame.header;
                match self.on_frame(core, now, id, frame, out, &mut replies) {
                    Obeys::Yes => {}
                    Obeys::No => {
                        core.log.push(LogRecord::Unasked(header));
                        believed = false;
                        if let Some(worker) = core.workers.get_mut(&id) {
                            worker.breaks_protocol(WireError::Unasked);
                        }
                        core.scheduler.on_protocol_violation(now, id, out);
                    }
                    Obeys::ButIsBroken(cause) => {
                        core.log.push(LogRecord::Broken(cause.clone()));
                        core.scheduler.on_broken(now, cause, out);
                    }
                }
            }
            self.on_the_way.leave();
            let Core { scheduler, workers, .. } = core;
            scheduler.after_replies(now, id, &Boards(workers), out);
            self.spare_processor.store(scheduler.has_spare_processor(), Ordering::Relaxed);
            if let Some(link) = workers.get(&id).and_then(|worker| worker.link.as_ref()) {
                link.credit(credit);
            }
        });
        let resolved = locked.unlock();
        let in_chunks = replies.in_chunks;
        let mut wakers = Wakers::default();
        replies.deliver(&mut wakers);
        let _on_the_way = match resolved.is_empty() {
            true => None,
            false => resolved.deliver(&mut wakers),
        };
        let batch = (!wakers.is_empty()).then(|| self.on_the_way.batch());
        // Without wakers the outcomes have arrived. Otherwise they arrive when the wakers have been
        // called.
        if batch.is_none() {
            self.on_the_way.arrive();
        }
        Taken { wakers, in_chunks, batch }
    }

    fn on_frame(
        &self,
        core: &mut Core,
        now: Instant,
        id: WorkerId,
        mut frame: Frame<FromWorker>,
        out: &mut Actions,
        replies: &mut Outcomes,
    ) -> Obeys {
        let Core { scheduler, workers, counts, log, .. } = core;
        let claims = Boards(workers);
        let has_grown = frame.header.flags & flag::GROWN != 0;
        let reports = frame.header.flags & flag::REPORTS != 0;
        frame.header.flags &= !(flag::GROWN | flag::REPORTS);
        if frame.header.flags != 0 {
            let opened = workers
                .get(&id)
                .and_then(|worker| worker.ancillary.as_ref())
                .ok_or(ancillary::Impossible)
                .and_then(|ancillary| ancillary.open(&mut frame));
            if opened.is_err() {
                return Obeys::No;
            }
            self.warm_up();
        }
        // Ids of tasks begin at 1. The initializer's reply has id 0.
        let initializer = frame.header.task.as_u64() == 0;
        let max = self.options.restraints.growth;
        if has_grown && (max.is_none() || initializer) {
            return Obeys::No;
        }
        let tells_an_error = matches!(
            frame.header.reply,
            Reply::Failed
                | Reply::Panicked
                | Reply::DecodeError
                | Reply::EncodeError
                | Reply::Unsuited
                | Reply::Refused
        );
        if reports && (self.options.error_hook.is_none() || initializer || !tells_an_error) {
            return Obeys::No;
        }
        match frame.header.reply {
            // A worker's ring shows its free space by itself. If credit frames were allowed as
            // well, a worker could send them without end.
            Reply::Credit if self.rings.of(id).is_some() => return Obeys::No,
            Reply::Credit => {}
            Reply::Reported if initializer && scheduler.on_reported(now, id) => {}
            Reply::Reported => return Obeys::No,
            // There is one for each task that is measured, and its reply comes next.
            Reply::Usage => {
                let measured = Measured::from_bytes(&frame.payload).map(Box::new);
                let (Some(measured), Some(worker)) = (measured, workers.get_mut(&id)) else {
                    return Obeys::No;
                };
                if initializer || has_grown || !frame.more.is_empty() || worker.measured.is_some() {
                    return Obeys::No;
                }
                worker.measured = Some((frame.header.task, measured));
            }
            Reply::Ready
                if scheduler.is_initializing(id) || scheduler.leaves_after_initializer(id) =>
            {
                scheduler.on_ready(now, id, &claims, out)
            }
            Reply::Ready => return Obeys::No,
            reply if initializer && scheduler.on_finalized(now, id) => {
                self.on_finalized(core, reply, frame.payload);
                return Obeys::Yes;
            }
            // Nothing waits for this worker any more, so the failure concerns nobody.
            _ if initializer && scheduler.leaves_after_initializer(id) => {
                scheduler.on_initializer_refused(now, id, out);
            }
            _ if initializer => match &self.options.initializer {
                Some(Initializer { name, .. }) if scheduler.is_initializing(id) => {
                    let error = reply::failure(name, frame.header.reply, &frame.payload);
                    let cause = BrokenCause::Initializer(Arc::new(error));
                    if frame.header.reply != Reply::Refused {
                        return Obeys::ButIsBroken(cause);
                    }
                    // The initializer has not failed. The system refused something that it needs,
                    // which counts as a refused start.
                    if let Some(worker) = workers.get_mut(&id) {
                        worker.refused = Some(cause);
                    }
                    scheduler.on_initializer_refused(now, id, out);
                }
                _ => return Obeys::No,
            },
            reply => {
                let Frame { header, payload, more } = frame;
                let (mut task, nanos) = (header.task, header.nanos);
                // A drain takes at most one ring's worth of frames, so the number fits.
                let mut left = 1 + more.len() as u32;
                let mut payloads = Payloads { first: Some(payload), more };
                while left > 0 {
                    let failed = matches!(reply, Reply::Failed | Reply::Panicked);
                    let count = match scheduler.on_reply(now, id, task, left, nanos, failed) {
                        Ok(Replied::Last(chunk, at, count)) => {
                            counts.answered(reply, count);
                            if chunk.measures() {
                                let worker = workers.get_mut(&id);
                                log.extend(used(&chunk, chunk.attempts(), worker, &payloads));
                            }
                            replies.answer_last(chunk, (at, count), reply, &mut payloads);
                            count
                        }
                        Ok(Replied::Items(chunk, at, count)) => {
                            counts.answered(reply, count);
                            replies.in_chunks = true;
                            replies.answer_some(chunk, (at, count), reply, &mut payloads);
                            count
                        }
                        Ok(Replied::Undecided(task)) => {
                            if let Some(chunk) =
                                scheduler.undecided(task).filter(|chunk| chunk.measures())
                            {
                                // The failure is counted already.
                                let attempt = chunk.attempts() - 1;
                                let worker = workers.get_mut(&id);
                                log.extend(used(chunk, attempt, worker, &payloads));
                            }
                            if let (Some(payload), Some(chunk)) =
                                (payloads.next(), scheduler.undecided(task))
                            {
                                let answer = chunk.answer(reply, payload, chunk.attempts() - 1);
                                replies.undecided(self, chunk, answer);
                            }
                            1
                        }
                        Ok(Replied::Late) => {
                            // What the task has used is of no interest any more.
                            if let Some(worker) = workers.get_mut(&id) {
                                worker.measured = None;
                            }
                            u32::from(payloads.next().is_some())
                        }
                        Err(scheduler::ReplyToNobody) => return Obeys::No,
                    };
                    task = TaskId::from_raw(task.as_u64().wrapping_add(u64::from(count)));
                    left -= count;
                }
            }
        }
        if reports {
            scheduler.on_reports(now, id, &Boards(workers));
        }
        if has_grown && scheduler.on_grown(id, &Boards(workers)) {
            let worker = workers.get(&id);
            let board = worker.and_then(|worker| worker.link.as_ref()).map(|link| link.board());
            log.push(LogRecord::Grown {
                pid: worker.map_or(0, Worker::pid),
                bytes: board.map_or(0, |board| board.memory_grown.load(Ordering::Acquire)),
                max: max.unwrap_or(0),
            });
        }
        Obeys::Yes
    }
}

/// Records what an attempt has cost, if its worker has reported that. Returns the log record.
#[cold]
fn used(
    chunk: &Chunk,
    attempt: u32,
    worker: Option<&mut Worker>,
    payloads: &Payloads,
) -> Option<LogRecord> {
    let worker = worker?;
    let (task, measured) = worker.measured.take()?;
    if task != Scheduled::base(chunk) {
        // The report of another task, whose reply never came.
        return None;
    }
    let bytes_out = payloads.first.as_ref().map_or(0, Payload::size);
    let (usage, task) = chunk.used(attempt, worker.pid(), &measured, bytes_out)?;
    Some(LogRecord::Used { task, usage: Box::new(usage) })
}

/// Whether a worker keeps to the protocol.
enum Obeys {
    Yes,
    No,
    /// The worker keeps to the protocol, and its initializer has failed.
    ButIsBroken(BrokenCause),
}

/// The result of taking frames.
#[derive(Default)]
pub(super) struct Taken {
    /// Wakers are user code, so they must be called without any lock.
    pub(super) wakers: Wakers,
    /// Whether the worker is in the middle of a chunk, so that more results follow within a
    /// microsecond.
    pub(super) in_chunks: bool,
    /// The outcomes count as on their way until this is dropped, after the wakers were called.
    pub(super) batch: Option<Batch>,
}

impl Taken {
    pub(super) fn wake(self) {
        self.wakers.wake();
        drop(self.batch);
    }
}
