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
