//! The calls of one connection that wait for their replies, and who waits for each.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Waker,
    time::Instant,
};

use super::super::protocol::{CallId, ObjectId, Operation};
use crate::os::std_or_model::lock;

/// What a reply is needed for when nobody waits for it any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    pub(crate) operation: Operation,
    /// The object that the call is about. For a condition, its lock.
    pub(crate) object: ObjectId,
    /// The owner, if the call takes a lock.
    pub(crate) owner: u64,
}

impl Undo {
    /// Whether the reply may bring something that has to be given back to the object.
    pub(crate) fn keeps_object(self) -> bool {
        matches!(
            self.operation,
            Operation::QueueGet
                | Operation::LockAcquire
                | Operation::ConditionWait
                | Operation::SemaphoreAcquire
        )
    }
}

/// Who waits for the reply to a call.
pub(crate) enum Waiting {
    /// A thread, on its own seat.
    Thread(Arc<Seat>),
    /// A future.
    Task(Arc<Slot>),
    /// The connection itself, which has asked for segments. It is not in the tables.
    Connection,
    /// Nobody any more. What the reply brings has to be given back.
    Nobody(Undo),
}

/// All calls of a connection that wait.
#[derive(Default)]
pub(crate) struct Calls {
    last: u32,
    threads: HashMap<CallId, Arc<Seat>>,
    /// The calls for which no thread waits.
    others: HashMap<CallId, Waiting>,
    /// The call of the thread that receives, if it is not in the table.
    pub(crate) unrecorded: Option<CallId>,
    /// The call of the connection itself. Nobody waits for its reply, which is read with the next
    /// one.
    pub(crate) own: Option<CallId>,
}

impl Calls {
    /// Returns an id that no waiting call has.
    pub(crate) fn new_id(&mut self) -> CallId {
        loop {
            // The count wraps after four thousand million calls. One of then may still wait.
            self.last = self.last.wrapping_add(1);
            let id = CallId(self.last);
            let used = self.threads.contains_key(&id) || self.others.contains_key(&id);
            let taken = [self.unrecorded, self.own].contains(&Some(id));
            if id != CallId::NONE && !taken && !used {
                return id;
            }
        }
    }

    /// Records who waits for a call, in place of who did so before.
    pub(crate) fn insert(&mut self, call: CallId, waiting: Waiting) {
        self.remove(call);
        match waiting {
            Waiting::Thread(seat) => drop(self.threads.insert(call, seat)),
            other => drop(self.others.insert(call, other)),
        }
    }

    pub(crate) fn remove(&mut self, call: CallId) -> Option<Waiting> {
        if self.own.take_if(|own| *own == call).is_some() {
            return Some(Waiting::Connection);
        }
        match self.threads.remove(&call) {
            Some(seat) => Some(Waiting::Thread(seat)),
            None => self.others.remove(&call),
        }
    }

    pub(crate) fn take_all(&mut self) -> Vec<Waiting> {
        let threads = std::mem::take(&mut self.threads).into_values().map(Waiting::Thread);
        threads.chain(std::mem::take(&mut self.others).into_values()).collect()
    }

    /// Whether no call is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.unrecorded.is_none() && self.threads.is_empty() && self.others.is_empty()
    }

    /// Returns the seat of any thread that waits.
    pub(crate) fn any_thread(&self) -> Option<Arc<Seat>> {
        self.threads.values().next().cloned()
    }

    /// Whether only the reader can serve the calls that wait: no thread waits for any.
    pub(crate) fn need_reader(&self) -> bool {
        self.threads.is_empty() && !self.others.is_empty()
    }
}

/// A whole reply, as it was received: header and body.
pub(crate) type Message = Vec<u8>;

/// Where a thread waits while another thread receives.
#[derive(Default)]
pub(crate) struct Seat {
    state: Mutex<SeatState>,
    changed: Condvar,
}

#[derive(Default)]
struct SeatState {
    reply: Option<Message>,
    /// The thread is to receive now, since nobody else does.
    called: bool,
}

impl Seat {
    pub(crate) fn put(&self, reply: Message) {
        lock(&self.state).reply = Some(reply);
        self.changed.notify_one();
    }

    /// Calls the thread to receive by itself.
    pub(crate) fn call(&self) {
        lock(&self.state).called = true;
        self.changed.notify_one();
    }

    pub(crate) fn take(&self) -> Option<Message> {
        lock(&self.state).reply.take()
    }

    /// Waits until there is a reply, or the thread was called, or the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut state = lock(&self.state);
        while state.reply.is_none() && !state.called {
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.called = false;
    }
}

/// Where the reply to a future's call arrives.
#[derive(Default)]
pub(crate) struct Slot(Mutex<SlotState>);

#[derive(Default)]
struct SlotState {
    reply: Option<Message>,
    /// The connection has ended, and there will be no reply.
    ended: bool,
    waker: Option<Waker>,
    /// The future was dropped. What the reply brings has to be given back.
    abandoned: Option<Undo>,
}

impl Slot {
    /// Puts the reply there. Returns the waker, which is to be woken while no lock is held. Or
    /// returns the reply, and what it is needed for, if the future was dropped.
    pub(crate) fn put(&self, reply: Message) -> Result<Option<Waker>, (Message, Undo)> {
        let mut state = lock(&self.0);
        if let Some(undo) = state.abandoned {
            return Err((reply, undo));
        }
        state.reply = Some(reply);
        Ok(state.waker.take())
    }

    /// Records that the future was dropped, while its reply is being passed on. Returns the reply
    /// if it is there already.
    pub(crate) fn abandon(&self, undo: Undo) -> Option<Message> {
        let mut state = lock(&self.0);
        state.abandoned = Some(undo);
        state.reply.take()
    }

    /// Records that there will be no reply. Returns the waker.
    #[must_use]
    pub(crate) fn end(&self) -> Option<Waker> {
        let mut state = lock(&self.0);
        state.ended = true;
        state.waker.take()
    }

    /// Returns the reply if it is there, and whether the connection has ended without one.
    pub(crate) fn take(&self) -> (Option<Message>, bool) {
        let mut state = lock(&self.0);
        (state.reply.take(), state.ended)
    }

    /// Sets the waker, unless there is something to take. Returns the previous waker, to be dropped
    /// while no lock is held, and whether this one was set.
    pub(crate) fn wait(&self, waker: Waker) -> (Option<Waker>, bool) {
        let mut state = lock(&self.0);
        if state.reply.is_some() || state.ended {
            return (Some(waker), false);
        }
        (state.waker.replace(waker), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_by_the_drop_of_its_future_or_comes_back_to_who_brings_it() {
        let undo = Undo { operation: Operation::QueueGet, object: ObjectId(1), owner: 0 };
        let early = Slot::default();
        assert!(early.put(b"reply".to_vec()).is_ok());
        assert_eq!(early.abandon(undo).as_deref(), Some(&b"reply"[..]));
        let late = Slot::default();
        assert_eq!(late.abandon(undo), None);
        let (reply, undo) = late.put(b"reply".to_vec()).unwrap_err();
        assert_eq!((&reply[..], undo.object), (&b"reply"[..], ObjectId(1)));
    }
}
