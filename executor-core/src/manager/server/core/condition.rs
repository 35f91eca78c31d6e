//! Conditions: calls that wait to be notified, without the lock that they held before and hold
//! afterwards.
//!
//! ```text
//!  holds the lock ──wait──► condition's line ──notify, give up──► lock's line ──► holds the lock
//! ```

use super::{
    actions::{Progress, Refusal},
    clients::Caller,
    lock::{Claim, Lock, Owner, Why},
    references::{Objects, State},
    turn::Turn,
    waiting::{Leave, Line, Ticket},
};
use crate::manager::protocol::{Fields, ObjectId, Operation, Status};

/// A condition.
#[derive(Debug)]
pub(super) struct Condition {
    /// Counts as a reference.
    pub(super) lock: ObjectId,
    /// Calls that wait, and how they are to hold the lock again.
    line: Line<Claim>,
}

/// Returns the condition with an id.
fn condition(objects: &mut Objects, id: ObjectId) -> Result<&mut Condition, Refusal> {
    match objects.get_mut(id).map(|object| &mut object.state) {
        Some(State::Condition(condition)) => Ok(condition),
        Some(_) => Err(Status::WrongKind.into()),
        None => Err(Status::NoObject.into()),
    }
}

/// Returns the lock with an id.
fn lock(objects: &mut Objects, id: ObjectId) -> Result<&mut Lock, Refusal> {
    match objects.get_mut(id).map(|object| &mut object.state) {
        Some(State::Lock(lock)) => Ok(lock),
        Some(_) => Err(Status::WrongKind.into()),
        None => Err(Status::NoObject.into()),
    }
}

impl Condition {
    pub(super) fn create(
        mut fields: Fields<'_>,
        objects: &Objects,
        turn: &mut Turn<'_>,
    ) -> Result<Self, Refusal> {
        let lock = ObjectId(fields.number()?);
        fields.end()?;
        if !turn.clients.has_reference(turn.caller.client, lock) {
            return Err(Status::NoObject.into());
        }
        match objects.get(lock).map(|object| &object.state) {
            Some(State::Lock(_)) => {}
            Some(_) => return Err(Status::WrongKind.into()),
            None => return Err(Status::NoObject.into()),
        }
        turn.changes.keep_one(lock);
        Ok(Condition { lock, line: Line::default() })
    }

    /// Returns the calls that wait to be notified.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, _)| caller)
    }
}

/// Does a request for the condition whose turn it is.
pub(super) fn request(
    objects: &mut Objects,
    operation: Operation,
    mut fields: Fields<'_>,
    turn: &mut Turn<'_>,
) -> Result<Progress, Refusal> {
    let id = turn.object;
    let lock_id = condition(objects, id)?.lock;
    let (Operation::ConditionWait | Operation::ConditionNotify) = operation else {
        return Err(Status::WrongKind.into());
    };
    let number = fields.number()?;
    let owner = Owner { client: turn.caller.client, number };
    if operation == Operation::ConditionWait {
        fields.end()?;
        let held = lock(objects, lock_id)?;
        if held.owner() != Some(owner) {
            return Err(Status::Refused.into());
        }
        let claim = Claim { number, count: held.count(), why: Why::Notified };
        let ticket = turn.wait(0)?;
        condition(objects, id)?.line.push(ticket, turn.caller, claim);
        turn.object = lock_id;
        lock(objects, lock_id)?.release(turn);
        return Ok(Progress::Waits);
    }
    let many = fields.number()?;
    fields.end()?;
    if lock(objects, lock_id)?.owner() != Some(owner) {
        return Err(Status::Refused.into());
    }
    turn.object = lock_id;
    let mut woken = 0;
    while woken < many
        && let Some((caller, claim)) = condition(objects, id)?.line.pop()
    {
        lock(objects, lock_id)?.line_up(caller, claim, turn);
        woken += 1;
    }
    Ok(Progress::Done(woken))
}

/// Takes a call out of the line of the condition whose turn it is. If it was given up, it is
/// answered when it holds the lock again.
pub(super) fn leave(objects: &mut Objects, ticket: Ticket, why: Leave, turn: &mut Turn<'_>) {
    let Ok(Condition { lock: lock_id, line }) = condition(objects, turn.object) else { return };
    let lock_id = *lock_id;
    let Some((caller, claim)) = line.remove(ticket) else { return };
    if why == Leave::GivenUp
        && let Ok(lock) = lock(objects, lock_id)
    {
        turn.object = lock_id;
        lock.line_up(caller, Claim { why: Why::GivenUp, ..claim }, turn);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        ClientId,
        testing::{Body, Desk, number},
    };
    use crate::manager::protocol::{Kind, ObjectId, Operation as O, Status};

    /// Returns a lock and a condition of it.
    fn pair(desk: &mut Desk, reentrant: u64) -> (ObjectId, ObjectId) {
        let (a, b) = (ClientId(1), ClientId(2));
        let lock = desk.create(a, Kind::Lock, number(reentrant));
        let condition = desk.create(a, Kind::Condition, number(lock.0));
        desk.share(b, lock);
        desk.share(b, condition);
        (lock, condition)
    }

    #[test]
    fn those_who_wait_hold_the_lock_again_as_often_as_before() {
        let (mut desk, a, b) = Desk::with_two();
        let (lock, condition) = pair(&mut desk, 1);
        let refused = desk.refused(a, O::ConditionWait, condition, number(1));
        assert_eq!(refused, Status::Refused);
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        let waiting = desk.waits(a, O::ConditionWait, condition, number(1));
        let refused = desk.refused(b, O::ConditionNotify, condition, number(1).number(1));
        assert_eq!(refused, Status::Refused);
        desk.ask(b, O::LockAcquire, lock, number(1).number(0)).done();
        let notified = desk.ask(b, O::ConditionNotify, condition, number(1).number(9));
        assert_eq!(notified.done(), 1);
        assert_eq!(desk.answer(waiting), None);
        // It was notified already.
        desk.give_up(waiting);
        desk.ask(b, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.outcome(waiting), Ok(0));
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.ask(b, O::LockIsHeld, lock, Body::new()).done(), 1);
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.ask(b, O::LockIsHeld, lock, Body::new()).done(), 0);
    }

    #[test]
    fn a_wait_that_is_given_up_ends_with_the_lock() {
        let (mut desk, a, b) = Desk::with_two();
        let (lock, condition) = pair(&mut desk, 0);
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        let waiting = desk.waits(a, O::ConditionWait, condition, number(1));
        desk.ask(b, O::LockAcquire, lock, number(1).number(0)).done();
        desk.give_up(waiting);
        desk.give_up(waiting);
        assert_eq!(desk.answer(waiting), None);
        let notified = desk.ask(b, O::ConditionNotify, condition, number(1).number(1));
        assert_eq!(notified.done(), 0);
        // The client dies with the lock, which this call is told as well.
        desk.disconnect(b);
        let answer = desk.answer(waiting).unwrap();
        assert_eq!((answer.status, answer.number), (Status::GivenUp, 1));
        assert_eq!(desk.ask(a, O::LockIsHeld, lock, Body::new()).done(), 1);
        // With a free lock, it ends at once.
        let waiting = desk.waits(a, O::ConditionWait, condition, number(1));
        desk.give_up(waiting);
        assert_eq!(desk.outcome(waiting), Err(Status::GivenUp));
    }

    #[test]
    fn as_many_as_asked_for_are_notified_in_order() {
        let (mut desk, a, b) = Desk::with_two();
        let (lock, condition) = pair(&mut desk, 0);
        let mut calls = Vec::new();
        for thread in 0..4 {
            let client = if thread == 0 { b } else { a };
            desk.ask(client, O::LockAcquire, lock, number(thread).number(0)).done();
            calls.push(desk.waits(client, O::ConditionWait, condition, number(thread)));
        }
        // A call of a dead client is not notified in place of another one.
        desk.disconnect(b);
        desk.ask(a, O::LockAcquire, lock, number(9).number(0)).done();
        let notified = desk.ask(a, O::ConditionNotify, condition, number(9).number(2));
        assert_eq!(notified.done(), 2);
        desk.ask(a, O::LockRelease, lock, number(9)).done();
        assert_eq!(desk.outcome(calls[1]), Ok(0));
        assert_eq!(desk.answer(calls[2]), None);
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.outcome(calls[2]), Ok(0));
        desk.ask(a, O::LockRelease, lock, number(2)).done();
        assert_eq!(desk.answer(calls[3]), None);
    }

    #[test]
    fn a_condition_keeps_its_lock_alive() {
        let (mut desk, a, b) = Desk::with_two();
        let (lock, condition) = pair(&mut desk, 0);
        desk.release(a, lock, 1);
        desk.disconnect(b);
        assert!(desk.exists(lock));
        desk.release(a, condition, 1);
        assert_eq!(desk.core.objects(), 0);
        let event = desk.create(a, Kind::Event, Body::new());
        let mut create = |lock: ObjectId| {
            let body = number(Kind::Condition as u64).number(lock.0);
            desk.refused(a, O::Create, ObjectId::NONE, body)
        };
        assert_eq!(create(event), Status::WrongKind);
        assert_eq!(create(lock), Status::NoObject);
    }
}
