//! What clients have taken, as long as they may not have read the reply that says so.
//!
//! ```text
//!  get, acquire ──► reply ──► noted here ──┬─ the client has read it ──► forgotten
//!                                          └─ the client is gone ──────► the item is put back, or
//!                                                                        the lock is released
//! ```
//!
//! A process that dies while it waits for an item has not got it, also if the reply was on its way.
//! The permits of a semaphore are not noted: those of a client that is gone come back in any case.

use std::collections::{HashMap, VecDeque};

use super::{Core, actions::Actions, clients::ClientId, references::State, turn::Stored};
use crate::{id::IdHasher, manager::protocol::ObjectId};

/// What a reply has given to a client.
#[derive(Debug)]
pub(super) enum Take {
    /// An item of a queue.
    Item { queue: ObjectId, item: Stored },
    /// A lock, `count` times. `died` says whether the reply tells that the last owner died.
    Lock { lock: ObjectId, number: u64, count: u64, died: bool },
}

impl Core {
    /// A client has read the first `count` of its replies that are noted here.
    pub(crate) fn takes_read(&mut self, client: ClientId, count: usize) {
        self.clients.forget_takes(client, count);
    }

    /// Undoes the last `unread` of what a client has taken, which is gone. Items come first again,
    /// in their order. Locks are released as if they had not been acquired.
    pub(super) fn undo_takes(
        &mut self,
        client: ClientId,
        references: &HashMap<ObjectId, u64, IdHasher>,
        mut takes: VecDeque<Take>,
        unread: usize,
        out: &mut Actions,
    ) {
        let mut queues = Vec::new();
        for _ in 0..unread {
            let Some(take) = takes.pop_back() else { break };
            let (Take::Item { queue: object, .. } | Take::Lock { lock: object, .. }) = take;
            self.for_gone(client, object, out, |state, turn| match (take, state) {
                // A client that has given back what it cannot know of has spoilt its item.
                (Take::Item { item, .. }, State::Queue(queue))
                    if item.names.as_slice().iter().all(|name| references.contains_key(name)) =>
                {
                    turn.changes.keep(&item.names);
                    queue.put_back(item);
                    queues.push(object);
                }
                (Take::Lock { number, count, died, .. }, State::Lock(lock)) => {
                    lock.release_unread(number, count, died, turn);
                }
                _ => {}
            });
        }
        // All items have to be back before the first one is given to a call that waits.
        for object in queues {
            self.for_gone(client, object, out, |state, turn| {
                if let State::Queue(queue) = state {
                    queue.let_get(turn);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk, number};
    use crate::manager::protocol::{Kind, Operation as O};

    #[test]
    fn unread_items_come_first_again_in_order() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(0).number(1));
        desk.share(b, queue);
        for text in ["1", "2", "3", "4"] {
            desk.ask(a, O::QueuePut, queue, number(0).value(text)).done();
        }
        for text in ["1", "2", "3"] {
            assert_eq!(desk.ask(b, O::QueueGet, queue, number(1)).texts(), [text]);
        }
        // The first one was read, and the log may not know that yet.
        desk.disconnect_unread(b, 2);
        for text in ["2", "3", "4"] {
            assert_eq!(desk.ask(a, O::QueueGet, queue, number(1)).texts(), [text]);
        }
        for _ in 0..4 {
            desk.ask(a, O::QueueTaskDone, queue, Body::new()).done();
        }
    }

    #[test]
    fn unread_items_go_to_those_who_wait_in_order() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(0).number(0));
        desk.share(b, queue);
        desk.waits(b, O::QueueGet, queue, number(1));
        let dead = desk.waits(b, O::QueueGet, queue, number(1));
        desk.waits(b, O::QueueGet, queue, number(1));
        let [first, second] = [0; 2].map(|_| desk.waits(a, O::QueueGet, queue, number(1)));
        for text in ["1", "2"] {
            desk.ask(a, O::QueuePut, queue, number(0).value(text)).done();
        }
        assert_eq!(desk.answer(dead).unwrap().texts(), ["2"]);
        desk.answers_of(b);
        desk.disconnect_unread(b, 9);
        assert_eq!(desk.answer(first).unwrap().texts(), ["1"]);
        assert_eq!(desk.answer(second).unwrap().texts(), ["2"]);
    }

    #[test]
    fn an_unread_item_keeps_what_it_names_unless_its_client_has_given_that_back() {
        for given_back in [false, true] {
            let (mut desk, a, b) = Desk::with_two();
            let queue = desk.create(a, Kind::Queue, number(0).number(0));
            desk.share(b, queue);
            let event = desk.create(a, Kind::Event, Body::new());
            desk.ask(a, O::QueuePut, queue, number(0).naming("item", &[event])).done();
            desk.release(a, event, 1);
            desk.ask(b, O::QueueGet, queue, number(0)).done();
            if given_back {
                desk.release(b, event, 1);
            }
            desk.disconnect_unread(b, 1);
            assert_eq!(desk.exists(event), !given_back);
            let left = desk.ask(a, O::Len, queue, Body::new()).done();
            assert_eq!(left, u64::from(!given_back));
        }
    }

    #[test]
    fn a_lock_whose_owner_has_not_read_that_it_has_it_is_passed_on_without_a_mark() {
        let (mut desk, a, b) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(0));
        let acquire = |wait| number(1).number(wait);
        for (died, unread, told) in [(false, 1, 0), (false, 0, 1), (true, 1, 1), (false, 1, 0)] {
            if died {
                let dead = desk.client();
                desk.share(dead, lock);
                desk.ask(dead, O::LockAcquire, lock, acquire(0)).done();
                desk.disconnect(dead);
            }
            let dead = desk.client();
            desk.share(dead, lock);
            let answer = desk.ask(dead, O::LockAcquire, lock, acquire(0));
            assert_eq!(answer.done(), u64::from(died));
            let waiting = desk.waits(a, O::LockAcquire, lock, acquire(1));
            desk.disconnect_unread(dead, unread);
            assert_eq!(desk.outcome(waiting), Ok(told));
            desk.ask(a, O::LockRelease, lock, number(1)).done();
        }
        // It was released by somebody else, and taken by another one, in between.
        desk.share(b, lock);
        let dead = desk.client();
        desk.share(dead, lock);
        desk.ask(dead, O::LockAcquire, lock, acquire(0)).done();
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        desk.ask(b, O::LockAcquire, lock, acquire(0)).done();
        desk.disconnect_unread(dead, 1);
        assert_eq!(desk.ask(a, O::LockIsHeld, lock, Body::new()).done(), 1);
        desk.ask(b, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.ask(a, O::LockAcquire, lock, acquire(0)).done(), 0);
    }

    #[test]
    fn a_reentrant_lock_that_was_held_before_the_unread_reply_has_a_dead_owner() {
        let (mut desk, a, b) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(1));
        for (read, told) in [(1, 1), (0, 0)] {
            let dead = desk.client();
            desk.share(dead, lock);
            for _ in 0..2 {
                desk.ask(dead, O::LockAcquire, lock, number(1).number(0)).done();
            }
            desk.disconnect_unread(dead, 2 - read);
            let taken = desk.ask(a, O::LockAcquire, lock, number(1).number(0));
            assert_eq!(taken.done(), told);
            desk.ask(a, O::LockRelease, lock, number(1)).done();
        }
        // A wait for a condition takes it as often as it was held before.
        let condition = desk.create(a, Kind::Condition, number(lock.0));
        desk.share(b, lock);
        desk.share(b, condition);
        for _ in 0..2 {
            desk.ask(b, O::LockAcquire, lock, number(1).number(0)).done();
        }
        let wait = desk.waits(b, O::ConditionWait, condition, number(1));
        desk.core.takes_read(b, 2);
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        desk.ask(a, O::ConditionNotify, condition, number(1).number(1)).done();
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.outcome(wait), Ok(0));
        desk.disconnect_unread(b, 1);
        assert_eq!(desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done(), 0);
    }

    #[test]
    fn a_lock_of_a_far_client_counts_as_its_own_and_an_item_does_not() {
        let (mut desk, a, _) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(0));
        let queue = desk.create(a, Kind::Queue, number(0).number(0));
        desk.ask(a, O::QueuePut, queue, number(0).value("item")).done();
        let far = desk.core.connect_far().unwrap();
        desk.share(far, lock);
        desk.share(far, queue);
        desk.ask(far, O::LockAcquire, lock, number(1).number(0)).done();
        desk.ask(far, O::QueueGet, queue, number(0)).done();
        desk.disconnect_unread(far, 1);
        let taken = desk.ask(a, O::LockAcquire, lock, number(1).number(0));
        assert_eq!(taken.done(), 1, "the last owner died");
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["item"]);
    }

    #[test]
    fn what_was_read_is_not_kept() {
        let (mut desk, a, _) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(0).number(0));
        for _ in 0..3 {
            desk.ask(a, O::QueuePut, queue, number(0).value("item")).done();
            desk.ask(a, O::QueueGet, queue, number(0)).done();
        }
        desk.core.takes_read(a, 2);
        assert_eq!(desk.core.clients.get(a).unwrap().takes.len(), 1);
        // A loop that counts wrong does no harm.
        desk.core.takes_read(a, 9);
        assert_eq!(desk.core.clients.get(a).unwrap().takes.len(), 0);
    }
}
